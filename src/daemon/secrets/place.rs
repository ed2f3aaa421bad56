//! Where secrets are files: a directory for each generation, in memory (tmpfs), which its service can read and not change.

use crate::sys::spawn::Ids;
use crate::sys::{io_text, process};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// In `linux/magic.h`.
const RAMFS: FsType = FsType(0x8584_58f6);

/// svd ends, and what runs goes on: its files stay for the next svd.
static LEFT: AtomicBool = AtomicBool::new(false);

/// The directory of one generation; gone with it.
#[derive(Debug)]
pub struct Place(PathBuf);

/// svd ends in some other way than in order: nothing is removed from now on.
pub fn leave_all() {
    LEFT.store(true, Ordering::Relaxed);
}

/// The directories that may have such places: in the run directory, or where every Linux has memory.
pub fn roots(run: &Path, id: &str) -> [PathBuf; 2] {
    [run.join("secrets"), PathBuf::from(format!("/dev/shm/airdock-secrets-{id}"))]
}

/// Makes a directory with these files. `ids`: who is to read them; `None`: svd's own user. Waits for the file system.
///
/// # Errors
/// A sentence.
pub fn make(roots: &[PathBuf; 2], service: &str, ids: Option<&Ids>, files: &[(&str, &[u8])]) -> Result<Place, String> {
    let root = root(roots)?;
    let name = format!("{service}.{:016x}", crate::daemon::secret::Secret::new().hash_one(process::boot_id().ok()));
    let place = Place(root.join(name));
    let dir = place.path();
    let failed = |e: io::Error| format!("cannot deliver its secrets in {}: {}", dir.display(), io_text(&e));
    DirBuilder::new().mode(0o700).create(dir).map_err(failed)?;
    for (name, content) in files {
        write(&dir.join(name), content, ids).map_err(failed)?;
    }
    // Its user finds what it knows the name of, and can neither list nor make files there.
    let mode = if ids.is_some_and(|ids| ids.uid != nix::unistd::geteuid().as_raw()) { 0o711 } else { 0o700 };
    fs::set_permissions(dir, Permissions::from_mode(mode)).map_err(failed)?;
    Ok(place)
}

fn write(path: &Path, content: &[u8], ids: Option<&Ids>) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
    file.write_all(content)?;
    if let Some(ids) = ids {
        fchown(&file, Some(ids.uid), Some(ids.gid))?;
    }
    file.set_permissions(Permissions::from_mode(0o400))
}

/// The first root that is in memory, made if it is not there.
fn root(roots: &[PathBuf; 2]) -> Result<&Path, String> {
    for root in roots {
        let Some(above) = root.parent() else { continue };
        let kind = statfs(above).map(|s| s.filesystem_type());
        if !matches!(kind, Ok(TMPFS_MAGIC | RAMFS)) {
            continue;
        }
        let failed = |why: &str| format!("cannot keep secrets as files in {}: {why}", root.display());
        match DirBuilder::new().mode(0o711).create(root) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(failed(&io_text(&e))),
            _ => {}
        }
        // In /dev/shm anybody may have been there before.
        let meta = fs::symlink_metadata(root).map_err(|e| failed(&io_text(&e)))?;
        if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
            return Err(failed("somebody else has made it; remove it"));
        }
        fs::set_permissions(root, Permissions::from_mode(0o711)).map_err(|e| failed(&io_text(&e)))?;
        return Ok(root);
    }
    Err(format!(
        "secrets as files are kept in memory only, and neither svd's run directory nor /dev/shm is a tmpfs: give svd a run \
         directory on a tmpfs (--run-dir), or deliver them as = \"env\" ({})",
        roots[0].display()
    ))
}

/// Could it be what was made for this service? A process can write what it likes into its own environment.
pub fn is_of(path: &Path, roots: &[PathBuf; 2], service: &str) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix(service));
    let fits = name.and_then(|rest| rest.strip_prefix('.')).is_some_and(|rest| rest.len() == 16);
    fits && roots.iter().any(|root| path.parent() == Some(root))
}

/// Removes what an svd that was killed has left and no generation has. Best effort: a later start looks again.
pub fn sweep(roots: &[PathBuf; 2], used: &BTreeSet<PathBuf>) {
    for root in roots {
        let ours = fs::symlink_metadata(root).is_ok_and(|m| m.is_dir() && m.uid() == nix::unistd::geteuid().as_raw());
        if !ours {
            continue;
        }
        for entry in fs::read_dir(root).into_iter().flatten().flatten() {
            if !used.contains(&entry.path()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        let _ = fs::remove_dir(root);
    }
}

impl Place {
    /// One that an earlier svd has made.
    pub fn take_over(path: PathBuf) -> Place {
        Place(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !LEFT.load(Ordering::Relaxed) && !std::thread::panicking() {
            // A few files in memory, none of them anybody else's. Best effort: the next start of svd looks for what is left.
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_memory_and_goes_with_its_generation() {
        let dir = tempfile::Builder::new().prefix("airdock-place-").tempdir_in("/dev/shm").expect("a directory");
        let roots = [PathBuf::from("/proc/none"), dir.path().join("secrets")];
        let place = make(&roots, "web", None, &[("key", b"s3cret"), ("other", b"x")]).expect("a place");
        let file = place.path().join("key");
        assert_eq!(fs::read(&file).expect("there"), b"s3cret");
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o7777;
        assert_eq!((mode(&file), mode(place.path()), mode(&roots[1])), (0o400, 0o700, 0o711));
        let (kept, left) =
            (make(&roots, "a", None, &[]).expect("a place"), make(&roots, "b", None, &[]).expect("a place"));
        let used = BTreeSet::from([kept.path().to_owned(), place.path().to_owned()]);
        sweep(&roots, &used);
        assert!(kept.path().exists() && !left.path().exists() && file.exists());
        drop((place, kept));
        assert!(!file.exists());
        let all = ["web.0123456789abcdef", "web.0", "b.0123456789abcdef", "../web.0123456789abcdef"];
        assert_eq!(all.map(|name| is_of(&roots[1].join(name), &roots, "web")), [true, false, false, false]);
        sweep(&roots, &BTreeSet::new());
        assert!(!roots[1].exists());
    }

    #[test]
    fn none_is_made_on_a_disk_or_where_somebody_was_before() {
        let none = make(&["/proc/none".into(), "/proc/other".into()], "web", None, &[]).expect_err("no memory");
        assert!(none.contains("tmpfs"), "{none}");
        let dir = tempfile::Builder::new().prefix("airdock-place-").tempdir_in("/dev/shm").expect("a directory");
        let roots = [PathBuf::from("/proc/none"), dir.path().join("secrets")];
        std::os::unix::fs::symlink("/etc", &roots[1]).expect("a link");
        let why = make(&roots, "web", None, &[]).expect_err("a link");
        assert!(why.contains("somebody else"), "{why}");
    }
}
