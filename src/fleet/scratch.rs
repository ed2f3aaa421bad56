//! Directories that svctl needs for as long as it runs, for its user alone. What a svctl that was killed has left behind is removed
//! by the next one: each is locked by whoever it belongs to, and the kernel ends the lock with the process.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Begins their names; eight letters and digits follow.
const PREFIX: &str = "svctl-";
/// Begins the name of one that is not locked yet; nobody looks for those.
const NEW: &str = ".svctl-new-";
const LETTERS: usize = 8;
/// Locked while it is used.
const LOCK: &str = ".lock";

/// How long a name below the base is.
pub const NAME: usize = PREFIX.len() + LETTERS;

/// A directory with nothing in it but its lock; removed when this is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Below `base`, from which it also removes what nobody uses any more.
    ///
    /// # Errors
    /// Of the file system.
    pub fn new(base: &Path) -> io::Result<Scratch> {
        sweep(base);
        loop {
            let letters: String = std::iter::repeat_with(fastrand::alphanumeric).take(LETTERS).collect();
            let new = base.join(format!("{NEW}{letters}"));
            match DirBuilder::new().mode(0o700).create(&new) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made?,
            }
            let path = base.join(format!("{PREFIX}{letters}"));
            match lock(&new, true).and_then(|lock| lock.ok_or_else(|| io::ErrorKind::WouldBlock.into())) {
                Ok(lock) if fs::rename(&new, &path).is_ok() => return Ok(Scratch { path, _lock: lock }),
                locked => {
                    let _ = fs::remove_dir_all(&new);
                    locked?;
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// `None`: somebody else has it.
fn lock(dir: &Path, create: bool) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(create).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(dir.join(LOCK))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// Removes what is ours, and locked by nobody. Best effort.
fn sweep(base: &Path) {
    let own = nix::unistd::geteuid().as_raw();
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_str().is_some_and(|name| name.len() == NAME && name.starts_with(PREFIX)) {
            continue;
        }
        let path = entry.path();
        // Nobody else can put anything into one like that.
        let is_ours = |meta: fs::Metadata| meta.is_dir() && meta.uid() == own && meta.mode() & 0o077 == 0;
        if fs::symlink_metadata(&path).is_ok_and(is_ours)
            && let Ok(Some(_lock)) = lock(&path, false)
        {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_dead_have_left_is_removed_and_nothing_else() {
        let base = tempfile::tempdir().expect("a directory");
        let names = || {
            let mut names: Vec<String> = fs::read_dir(base.path())
                .expect("list")
                .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        };
        let used = Scratch::new(base.path()).expect("made");
        fs::write(used.path().join("file"), "x").expect("write");
        // As a killed svctl leaves it: the lock is there, and nobody's.
        let left = base.path().join("svctl-abcdefgh");
        DirBuilder::new().mode(0o700).create(&left).expect("mkdir");
        fs::write(left.join(LOCK), "").expect("write");
        // Nobody's of ours.
        for name in ["svctl-without1", "svctl-some-thing-else", "other"] {
            DirBuilder::new().mode(0o700).create(base.path().join(name)).expect("mkdir");
        }
        let open = base.path().join("svctl-fortoall");
        DirBuilder::new().mode(0o755).create(&open).expect("mkdir");
        fs::write(open.join(LOCK), "").expect("write");
        let second = Scratch::new(base.path()).expect("made");
        assert!(!left.exists() && used.path().join("file").exists(), "{:?}", names());
        assert_eq!(names().len(), 6, "{:?}", names());
        drop((used, second));
        assert_eq!(names(), ["other", "svctl-fortoall", "svctl-some-thing-else", "svctl-without1"]);
    }
}
