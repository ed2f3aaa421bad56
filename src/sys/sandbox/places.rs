//! Places for what is attached in a view: root makes and opens them, and the service, which owns what is around some of them,
//! must not lead it elsewhere by links.

use crate::sys::trust::{self, Distrust, Rule};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2};
use nix::sys::stat::{Mode, mkdirat};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path};

const PLACE: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// A directory whose own path root or svd alone decides on: one that was just covered, or `/`.
pub(super) fn directory_at(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, PLACE | OFlag::O_DIRECTORY, Mode::empty())
}

/// The directory `below` another, made where it is missing. `None`: another mount is above it, in which nothing is made.
pub(super) fn directory(above: &OwnedFd, below: &Path) -> Result<Option<OwnedFd>, Errno> {
    let strict = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV;
    let how = OpenHow::new().flags(PLACE | OFlag::O_DIRECTORY).resolve(strict);
    let mut at = above.try_clone().map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EMFILE)))?;
    for part in below.components() {
        let Component::Normal(name) = part else { return Err(Errno::EINVAL) };
        let mut found = openat2(&at, name, how);
        if found.as_ref().is_err_and(|e| *e == Errno::ENOENT) {
            mkdirat(&at, name, Mode::from_bits_truncate(0o755))?;
            found = openat2(&at, name, how);
        }
        at = match found {
            // Another mount begins there.
            Err(Errno::EXDEV) => return Ok(None),
            found => found?,
        };
    }
    Ok(Some(at))
}

/// The same for a file, which is empty.
pub(super) fn file(above: &OwnedFd, below: &Path) -> Result<Option<OwnedFd>, Errno> {
    let (Some(parent), Some(name)) = (below.parent(), below.file_name()) else { return Err(Errno::EINVAL) };
    let Some(above) = directory(above, parent)? else { return Ok(None) };
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    drop(openat(&above, name, flags, Mode::from_bits_truncate(0o600))?);
    openat(&above, name, PLACE | OFlag::O_NOFOLLOW, Mode::empty()).map(Some)
}

/// What is there. Links are followed if root and svd's user alone decide where they lead.
pub(super) fn existing(path: &Path) -> Result<OwnedFd, Errno> {
    let others = matches!(trust::parents(path, Rule::Strict), Err(Distrust::Owner { .. } | Distrust::Mode { .. }));
    let links = if others { ResolveFlag::RESOLVE_NO_SYMLINKS } else { ResolveFlag::RESOLVE_NO_MAGICLINKS };
    openat2(nix::fcntl::AT_FDCWD.as_fd(), path, OpenHow::new().flags(PLACE).resolve(links))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_is_made_through_a_link() {
        let dir = tempfile::tempdir().expect("a directory");
        let (cover, host) = (dir.path().join("cover"), dir.path().join("host"));
        std::fs::create_dir(&cover).and_then(|()| std::fs::create_dir(&host)).expect("directories");
        let there = directory_at(&cover).expect("it");
        assert!(directory(&there, Path::new("a/b")).expect("made").is_some() && cover.join("a/b").is_dir());
        assert!(file(&there, Path::new("a/c/d")).expect("made").is_some() && cover.join("a/c/d").is_file());
        symlink(&host, cover.join("a/link")).expect("a link");
        for path in ["a/link/x", "a/link", "../host/x", "a/../../host/x"] {
            assert!(directory(&there, Path::new(path)).is_err(), "{path}");
        }
        symlink(host.join("file"), cover.join("a/to")).expect("a link");
        assert!(file(&there, Path::new("a/to")).is_err());
        assert_eq!(std::fs::read_dir(&host).expect("it").count(), 0);
    }

    #[test]
    fn links_of_others_are_not_followed() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let (link, own) = (dir.path().join("link"), dir.path().join("own"));
        symlink("/etc", &link).expect("a link");
        assert!(existing(&link.join("passwd")).is_ok(), "root's");
        std::fs::create_dir(&own).expect("a directory");
        symlink("/etc", own.join("link")).expect("a link");
        std::os::unix::fs::chown(&own, Some(61_234), None).expect("chown");
        assert_eq!(existing(&own.join("link/passwd")).err(), Some(Errno::ELOOP));
        assert!(existing(&own).is_ok());
        assert_eq!(existing(&own.join("none")).err(), Some(Errno::ENOENT));
    }
}
