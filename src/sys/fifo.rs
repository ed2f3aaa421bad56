//! Named pipes for captured output. The worker holds both ends, so that it neither gets SIGPIPE nor loses a line while
//! svd is away.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, fchownat};

/// Makes a pipe of mode 0600 for this user, or takes the one that is there if it is his.
///
/// The owner matters: a service that re-opens `/dev/stdout` needs it.
pub fn create(path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    match nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) => {}
        Err(nix::errno::Errno::EEXIST) => {
            let meta = std::fs::symlink_metadata(path)?;
            if !meta.file_type().is_fifo() {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    format!("{} exists and is not a pipe", path.display()),
                ));
            }
            if owner.is_none_or(|(uid, _)| uid == meta.uid()) {
                return Ok(());
            }
        }
        Err(errno) => return Err(errno.into()),
    }
    if let Some((uid, gid)) = owner {
        fchownat(AT_FDCWD, path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Both ends at once, as a worker gets it: writing never fails for lack of a reader.
pub fn open_both(path: &Path) -> io::Result<OwnedFd> {
    // Reading and writing does not block (fifo(7)).
    open(path, libc::O_RDWR, 0)
}

/// svd's end: reads what is there, never waits. A reader that is the last holder sees end of file.
pub fn open_reader(path: &Path) -> io::Result<File> {
    open(path, libc::O_RDONLY, libc::O_NONBLOCK).map(File::from)
}

fn open(path: &Path, access: i32, flags: i32) -> io::Result<OwnedFd> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(access == libc::O_RDWR).custom_flags(flags | libc::O_NOFOLLOW);
    let file = options.open(path)?;
    if !file.metadata()?.file_type().is_fifo() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not a pipe", path.display())));
    }
    Ok(file.into())
}

/// An unnamed pipe: (reader, writer), both close-on-exec.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// What [`create`], [`open_both`] and [`open_reader`] give, of a pipe that has no name: both ends in one descriptor, and a reader.
pub fn without_name(owner: Option<(u32, u32)>) -> io::Result<(OwnedFd, File)> {
    let (reader, _writer) = pipe()?;
    if let Some((uid, gid)) = owner {
        nix::unistd::fchown(&reader, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    let own = std::path::PathBuf::from(format!("/proc/self/fd/{}", reader.as_raw_fd()));
    // Through the link in proc(5), which the other openings refuse to follow.
    let open = |write, flags| std::fs::OpenOptions::new().read(true).write(write).custom_flags(flags).open(&own);
    Ok((open(true, 0)?.into(), open(false, libc::O_NONBLOCK)?))
}

/// Makes the pipe's buffer as large as allowed, up to `wanted` bytes, and gives its size.
///
/// A plain user is held to `fs.pipe-max-size` and, for all its pipes, to `fs.pipe-user-pages-soft`; then what there is
/// must do.
pub fn grow(fd: impl AsFd, wanted: usize) -> usize {
    let fd = fd.as_fd().as_raw_fd();
    let mut size = i32::try_from(wanted).unwrap_or(i32::MAX);
    while size > 65_536 {
        // SAFETY: numbers only.
        let got = unsafe { libc::fcntl(fd, libc::F_SETPIPE_SZ, size) };
        if got > 0 {
            return got as usize;
        }
        size /= 2;
    }
    // SAFETY: numbers only.
    let got = unsafe { libc::fcntl(fd, libc::F_GETPIPE_SZ) };
    usize::try_from(got).unwrap_or(0)
}

/// How many bytes wait in a pipe.
pub fn waiting(fd: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let result = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    super::check(result.into())?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Copies what waits in a pipe, at most `most` bytes, into another pipe with room for it, and takes nothing out (`tee(2)`).
///
/// # Errors
/// `WouldBlock`: nothing is there. 0 bytes: nothing is there, and nobody can write any more.
pub fn copy(from: impl AsFd, to: impl AsFd, most: usize) -> io::Result<usize> {
    let (from, to) = (from.as_fd().as_raw_fd(), to.as_fd().as_raw_fd());
    // SAFETY: numbers only.
    let count = unsafe { libc::tee(from, to, most, libc::SPLICE_F_NONBLOCK) };
    Ok(super::check(count as libc::c_long)? as usize)
}

/// Moves bytes out of a pipe into a file, from offset `at` on, at most `most` (`splice(2)`).
///
/// What has left the pipe is in the file, and nothing else, however short the move was and whoever killed the caller in
/// it: the kernel takes from the pipe what the file has accepted, holds the pipe meanwhile, and looks for signals only
/// between two pages (`iter_file_splice_write` in fs/splice.c). Not of file systems whose writes can succeed and fail at
/// once, as NFS when its server refuses.
///
/// # Errors
/// As for the copy, and of the file system; `EINVAL` where it cannot do that, or when the file was opened for appending.
pub fn pour(from: impl AsFd, file: impl AsFd, at: u64, most: usize) -> io::Result<usize> {
    let mut offset = i64::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
    let (from, to) = (from.as_fd().as_raw_fd(), file.as_fd().as_raw_fd());
    let none = std::ptr::null_mut();
    // SAFETY: the offset is read and written during the call only.
    let count = unsafe { libc::splice(from, none, to, &raw mut offset, most, libc::SPLICE_F_NONBLOCK) };
    Ok(super::check(count as libc::c_long)? as usize)
}

/// Our own copy of a pipe that another process holds as its descriptor, opened for reading without blocking.
pub fn open_of_process(pid: i32, fd: i32) -> io::Result<File> {
    let path = std::ffi::CString::new(format!("/proc/{pid}/fd/{fd}"))?;
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: a NUL-terminated string.
    let fd = super::check(unsafe { libc::open(path.as_ptr(), flags) }.into())?;
    // SAFETY: a new descriptor that nobody else knows.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn bytes_wait_while_the_reader_is_away() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("out");
        create(&path, None).expect("create");
        create(&path, None).expect("one that is there is taken");
        assert_eq!(std::fs::metadata(&path).expect("stat").mode() & 0o777, 0o600);
        let mut worker = File::from(open_both(&path).expect("both ends"));
        assert!(grow(&worker, 1 << 20) >= 65_536);
        worker.write_all(b"nobody reads\n").expect("no SIGPIPE");
        let mut reader = open_reader(&path).expect("reader");
        assert_eq!(waiting(&reader).expect("count"), 13);
        let mut text = [0; 64];
        assert_eq!(reader.read(&mut text).expect("read"), 13);
        let again = reader.read(&mut text).expect_err("empty, not ended");
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        drop(worker);
        assert_eq!(reader.read(&mut text).expect("end of file"), 0);
    }

    #[test]
    fn bytes_are_looked_at_and_moved() {
        let dir = tempfile::tempdir().expect("a directory");
        let (reader, writer) = pipe().expect("a pipe");
        let (aside, into) = pipe().expect("a pipe");
        assert_eq!(copy(&reader, &into, 10).expect_err("empty").kind(), io::ErrorKind::WouldBlock);
        File::from(writer.try_clone().expect("dup")).write_all(b"some words").expect("room");
        assert_eq!(copy(&reader, &into, 4).expect("copied"), 4);
        let mut text = [0; 64];
        assert_eq!(File::from(aside).read(&mut text).expect("read"), 4);
        assert_eq!((&text[..4], waiting(&reader).expect("count")), (&b"some"[..], 10));
        let path = dir.path().join("file");
        std::fs::write(&path, b"12").expect("a file");
        let file = std::fs::OpenOptions::new().write(true).open(&path).expect("open");
        assert_eq!(pour(&reader, &file, 2, 5).expect("moved"), 5);
        assert_eq!(pour(&reader, &file, 7, 100).expect("moved"), 5);
        assert_eq!(pour(&reader, &file, 12, 1).expect_err("empty").kind(), io::ErrorKind::WouldBlock);
        assert_eq!(std::fs::read(&path).expect("read"), b"12some words");
        drop(writer);
        assert_eq!(pour(&reader, &file, 12, 1).expect("end of file"), 0);
    }

    #[test]
    fn without_a_name_it_is_the_same() {
        let (both, mut reader) = without_name(None).expect("a pipe");
        File::from(both.try_clone().expect("a pipe")).write_all(b"a line\n").expect("a pipe");
        let mut got = [0; 100];
        assert_eq!(reader.read(&mut got).expect("a pipe"), 7);
        // Somebody still writes, or may.
        assert_eq!(reader.read(&mut got).expect_err("nothing").kind(), io::ErrorKind::WouldBlock);
        assert_eq!(waiting(&both).expect("a pipe"), 0);
        drop(both);
        assert_eq!(reader.read(&mut got).expect("a pipe"), 0, "nobody any more");
    }

    #[test]
    fn other_files_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, b"").expect("a file");
        assert!(create(&path, None).is_err());
        assert!(open_reader(&path).is_err());
    }
}
