//! What nobody but root and svd's own user may change: a path is judged from `/` on, each directory and each link on the
//! way, as whoever may rename in a directory decides on all that is below it.
//!
//! Once a path is trusted it stays so: only those who are trusted could change that. So it is enough to judge first and to
//! use it by its name afterwards. Compare `sudoers(5)` and `StrictModes` of `sshd_config(5)`.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// As many links in a path as the kernel follows.
const LINKS: u32 = 40;
/// The owner that a user namespace shows for those whom it does not know.
const OVERFLOW: u32 = 65_534;

/// Who could change it, and how that is mended.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    #[error("{} belongs to user {uid}, who could change it", .path.display())]
    Owner { path: PathBuf, uid: u32 },
    #[error("{} may be written to by others (mode {mode:04o})", .path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("{}: {}", .path.display(), super::io_text(.source))]
    Io { path: PathBuf, source: io::Error },
}

impl Distrust {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        match self {
            Distrust::Owner { path, .. } => Some(format!("chown -h {} {}", own(), path.display())),
            Distrust::Mode { path, .. } => Some(format!("chmod go-w {}", path.display())),
            Distrust::Io { .. } => None,
        }
    }
}

impl From<Distrust> for io::Error {
    fn from(distrust: Distrust) -> io::Error {
        match distrust {
            Distrust::Io { source, .. } => source,
            other => io::Error::new(io::ErrorKind::PermissionDenied, other.to_string()),
        }
    }
}

/// How much is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Strict,
    /// Members of a group that may write are trusted, as `/var/log` belongs to the group of the system's logger on some
    /// systems; and others may make files of their own in the directory itself if it is sticky, as a new `tmpfs` is.
    Logs,
}

/// The file or directory of this name, through links, and all that decides on what that is.
///
/// # Errors
/// Who else could change it; of the file system.
pub fn path(path: &Path, rule: Rule) -> Result<(), Distrust> {
    let (real, meta) = walk(path, rule)?;
    if rule == Rule::Logs && is_sticky(&meta) { Ok(()) } else { judge(&real, &meta, rule) }
}

/// As [`path`], but the file or directory itself may be anybody's.
///
/// # Errors
/// As of [`path`].
pub fn parents(path: &Path, rule: Rule) -> Result<(), Distrust> {
    walk(path, rule).map(drop)
}

/// As [`path`] by the strict rule, in words: who else could change it, and what to do. What cannot be looked at is for
/// whoever reads it to tell.
///
/// # Errors
/// Both.
pub fn in_words(file: &Path) -> Result<(), (String, Option<String>)> {
    match path(file, Rule::Strict) {
        Err(distrust) if !matches!(distrust, Distrust::Io { .. }) => Err((distrust.to_string(), distrust.help())),
        _ => Ok(()),
    }
}

fn look(path: &Path) -> Result<Metadata, Distrust> {
    fs::symlink_metadata(path).map_err(|source| Distrust::Io { path: path.into(), source })
}

/// Goes to `path` from `/` on, and judges all that is on the way. Gives where it came to, without links.
fn walk(path: &Path, rule: Rule) -> Result<(PathBuf, Metadata), Distrust> {
    let io = |path: &Path, source| Distrust::Io { path: path.into(), source };
    let mut left = components(&std::path::absolute(path).map_err(|e| io(path, e))?);
    let mut at = PathBuf::from("/");
    let mut meta = look(&at)?;
    let mut links = 0;
    while let Some(name) = left.pop_front() {
        if name == ".." {
            at.pop();
            meta = look(&at)?;
            continue;
        }
        // Others may make files in a sticky directory, but not replace ours.
        if !is_sticky(&meta) {
            judge(&at, &meta, rule)?;
        }
        let next = at.join(name);
        let found = look(&next)?;
        if !found.is_symlink() {
            (at, meta) = (next, found);
            continue;
        }
        if !is_ours(&found) {
            return Err(Distrust::Owner { uid: found.uid(), path: next });
        }
        links += 1;
        if links > LINKS {
            return Err(io(path, io::Error::from_raw_os_error(libc::ELOOP)));
        }
        let target = fs::read_link(&next).map_err(|e| io(&next, e))?;
        if target.is_absolute() {
            at = PathBuf::from("/");
            meta = look(&at)?;
        }
        let mut components = components(&target);
        components.append(&mut left);
        left = components;
    }
    Ok((at, meta))
}

fn components(path: &Path) -> VecDeque<OsString> {
    let named = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
    named.map(|c| c.as_os_str().to_owned()).collect()
}

fn judge(path: &Path, meta: &Metadata, rule: Rule) -> Result<(), Distrust> {
    if !is_ours(meta) {
        return Err(Distrust::Owner { path: path.into(), uid: meta.uid() });
    }
    // A plain user's own group is often nobody else's, and may write by the usual umask.
    let own_group = rule == Rule::Logs || (own() != 0 && meta.gid() == nix::unistd::getegid().as_raw());
    let others = if own_group { 0o002 } else { 0o022 };
    match meta.mode() & others {
        0 => Ok(()),
        _ => Err(Distrust::Mode { path: path.into(), mode: meta.mode() & 0o7777 }),
    }
}

/// A directory of ours where others have files.
fn is_sticky(meta: &Metadata) -> bool {
    meta.is_dir() && meta.mode() & libc::S_ISVTX != 0 && is_ours(meta)
}

fn own() -> u32 {
    nix::unistd::geteuid().as_raw()
}

fn is_ours(meta: &Metadata) -> bool {
    meta.uid() == 0 || meta.uid() == own() || (meta.uid() == OVERFLOW && is_unmapped(OVERFLOW))
}

/// Is this user somebody outside of our user namespace (`user_namespaces(7)`)? In a container, `/` may be.
fn is_unmapped(uid: u32) -> bool {
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else { return false };
    let covers = |line: &str| {
        let mut numbers = line.split_whitespace().map(|n| n.parse::<u64>().unwrap_or(0));
        let (first, _, count) = (numbers.next().unwrap_or(0), numbers.next(), numbers.next().unwrap_or(0));
        (first..first + count).contains(&u64::from(uid))
    };
    !map.lines().any(covers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const ALL: [Rule; 2] = [Rule::Strict, Rule::Logs];

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
    }

    #[test]
    fn whoever_may_write_on_the_way_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let (open, file) = (dir.path().join("open"), dir.path().join("open/in/file"));
        fs::create_dir_all(dir.path().join("open/in")).expect("directories");
        fs::write(&file, "").expect("a file");
        for rule in ALL {
            super::path(&file, rule).expect("trusted");
        }
        mode(&open, 0o777);
        let why = super::path(&file, Rule::Logs).expect_err("anybody's");
        assert!(why.to_string().ends_with("/open may be written to by others (mode 0777)"), "{why}");
        assert!(why.help().is_some_and(|help| help.ends_with("/open")));
        assert!(super::in_words(&file).is_err() && super::in_words(&file.join("none")).is_err());
        // Sticky: what is in it is its owner's alone.
        mode(&open, 0o1777);
        super::path(&file, Rule::Strict).expect("trusted");
        mode(&file, 0o666);
        assert!(super::path(&file, Rule::Strict).is_err());
        super::parents(&file, Rule::Strict).expect("the file itself may be anybody's");
        mode(&open, 0o777);
        // Links lead through it from elsewhere.
        let link = dir.path().join("link");
        symlink("open/../open/in", &link).expect("a link");
        assert!(super::path(&link, Rule::Logs).is_err());
        mode(&open, 0o755);
        super::path(&link, Rule::Logs).expect("trusted");
        super::in_words(&dir.path().join("none/at/all")).expect("nobody's");
        symlink("loop", dir.path().join("loop")).expect("a link");
        assert!(super::path(&dir.path().join("loop"), Rule::Logs).is_err());
    }

    #[test]
    fn other_owners_and_groups_are_told() {
        if own() != 0 {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        fs::write(&file, "").expect("a file");
        mode(&file, 0o664);
        super::path(&file, Rule::Logs).expect("trusted");
        assert!(super::path(&file, Rule::Strict).is_err());
        mode(&file, 0o644);
        std::os::unix::fs::chown(&file, Some(61_234), None).expect("chown");
        let why = super::path(&file, Rule::Strict).expect_err("another's").to_string();
        assert!(why.contains("belongs to user 61234"), "{why}");
        let link = dir.path().join("link");
        symlink("/etc/passwd", &link).expect("a link");
        super::path(&link, Rule::Strict).expect("root's link to root's file");
        std::os::unix::fs::lchown(&link, Some(61_234), None).expect("lchown");
        assert!(super::path(&link, Rule::Strict).is_err());
        assert!(!is_unmapped(0));
    }
}
