//! Files in directories that others may write to, such as a log folder that belongs to the service's user.
//!
//! Whoever may write there can put something else in a file's place: a symbolic link or one more name (a hard link) of a file
//! that only root may write, a pipe, a directory, or a file with a lease (`F_SETLEASE`), whose opening waits up to 45 seconds
//! for its holder. So nothing is followed, nothing is waited for, and what was opened is looked at before it is used. That the
//! directory itself is the one that was meant is [`super::trust`]'s part.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use super::spawn::Ids;
use super::trust::{self, Rule};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    ReadWrite,
}

/// Opens the regular file that has this name, and no other name.
///
/// # Errors
/// Of `open(2)`. `PermissionDenied`, with a sentence's part: what is there is something else.
pub fn open(path: &Path, access: Access) -> io::Result<File> {
    checked(options(access).open(path))
}

/// The same, for reading and writing, and makes the file with this mode if there is none.
///
/// # Errors
/// As of [`open`].
pub fn open_or_create(path: &Path, mode: u32) -> io::Result<File> {
    checked(options(Access::ReadWrite).create(true).truncate(false).mode(mode).open(path))
}

/// The same for what is written at its end only.
///
/// # Errors
/// As of [`open`].
pub fn append(path: &Path, mode: u32) -> io::Result<File> {
    let mut options = options(Access::Read);
    checked(options.read(false).append(true).create(true).mode(mode).open(path))
}

/// Makes a new file, for reading and writing, in place of whatever has that name.
///
/// # Errors
/// Of `unlink(2)` and `open(2)`; `AlreadyExists` when somebody makes another one at that very moment.
pub fn create_anew(path: &Path, mode: u32) -> io::Result<File> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // A new file is ours, whatever else may be there by now.
    options(Access::ReadWrite).create_new(true).mode(mode).open(path)
}

/// The text of a file that is handed to a user (`None`: svd's own): what root could read and he could not, only where nobody
/// else decides what the path leads to. Else he would put a link there, and be given any file.
///
/// # Errors
/// Of the file system. `PermissionDenied`, with a sentence's part.
pub fn read_for(path: &Path, reader: Option<&Ids>) -> io::Result<String> {
    // Links are followed: root's are fine.
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let meta = file.metadata()?;
    let refused = |why: &str| Err(io::Error::new(ErrorKind::PermissionDenied, why));
    if !meta.is_file() {
        return refused(NO_FILE);
    }
    if let Some(reader) = reader.filter(|reader| !may_read(&meta, reader)) {
        let roots = meta.uid() == 0 || meta.uid() == nix::unistd::geteuid().as_raw();
        let trusted = if roots { trust::path(path, Rule::Strict) } else { trust::parents(path, Rule::Strict) };
        if let Err(why) = trusted {
            let uid = reader.uid;
            let advice = "let that user read the file, or move it to a directory of root's";
            return refused(&format!(
                "user {uid} may not read it, and others decide what is read there: {why}; {advice}"
            ));
        }
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// By owner, group and mode (`path_resolution(7)`).
fn may_read(meta: &Metadata, ids: &Ids) -> bool {
    let bit = if meta.uid() == ids.uid {
        0o400
    } else if meta.gid() == ids.gid || ids.groups.contains(&meta.gid()) {
        0o040
    } else {
        0o004
    };
    meta.mode() & bit != 0
}

fn options(access: Access) -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    options.read(true).write(access == Access::ReadWrite).custom_flags(flags);
    options
}

fn checked(opened: io::Result<File>) -> io::Result<File> {
    let refused = |why: &str| Err(io::Error::new(ErrorKind::PermissionDenied, why));
    let file = match opened {
        Ok(file) => file,
        Err(e) => {
            return match e.raw_os_error() {
                Some(libc::ELOOP) => refused("it is a symbolic link, which svd does not follow: remove it"),
                Some(libc::EAGAIN) => refused("another process has a lease on it (fcntl(2), F_SETLEASE)"),
                // A socket; a pipe is opened.
                Some(libc::ENXIO) => refused(NO_FILE),
                _ => Err(e),
            };
        }
    };
    let meta = file.metadata()?;
    if !meta.is_file() {
        return refused(NO_FILE);
    }
    // None: it was removed just now, which its last user need not mind.
    if meta.nlink() > 1 {
        return refused("it is a hard link: the file has other names and may be anybody's. Remove this one");
    }
    Ok(file)
}

const NO_FILE: &str = "it is not a regular file: move it away";

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::symlink;

    fn refused(result: io::Result<File>) -> String {
        let error = result.expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        error.to_string()
    }

    #[test]
    fn what_is_no_file_of_ones_own_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("victim"), b"precious").expect("a file");
        symlink(at("victim"), at("link")).expect("a link");
        symlink(at("nothing"), at("dangling")).expect("a link");
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).expect("a socket");
        for access in [Access::Read, Access::ReadWrite] {
            assert!(open(&at("victim"), access).is_ok());
            for (name, why) in [("link", "symbolic link"), ("pipe", "regular"), ("socket", "regular")] {
                assert!(refused(open(&at(name), access)).contains(why), "{name}");
            }
        }
        assert!(refused(open_or_create(&at("dangling"), 0o600)).contains("symbolic link"));
        fs::hard_link(at("victim"), at("other")).expect("a hard link");
        assert!(refused(open(&at("other"), Access::Read)).contains("hard link"));
        assert!(refused(open_or_create(&at("other"), 0o600)).contains("hard link"));
        for name in ["link", "dangling", "other", "new"] {
            create_anew(&at(name), 0o600).expect("in its place");
            assert!(fs::symlink_metadata(at(name)).expect("there").is_file());
        }
        assert_eq!(fs::read(at("victim")).expect("there"), b"precious");
        assert!(!at("nothing").exists());
    }

    #[test]
    fn a_lease_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("leased");
        let file = File::create(&path).expect("a file");
        let set = |command: i32, value: i32| {
            // SAFETY: numbers only.
            super::super::check(unsafe { libc::fcntl(file.as_raw_fd(), command, value) }.into()).expect("fcntl")
        };
        // F_SETSIG in asm-generic/fcntl.h: whoever opens it makes the kernel send this signal, which does nothing.
        const SETSIG: i32 = 10;
        set(SETSIG, libc::SIGURG);
        set(libc::F_SETLEASE, libc::F_WRLCK);
        let began = std::time::Instant::now();
        assert!(refused(open(&path, Access::Read)).contains("lease"));
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
    }
}
