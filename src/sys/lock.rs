//! One svd per run directory: a lock that the kernel takes back however its holder dies.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::process::PidFd;

/// Why the lock was not given.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{} is held by {holder}; only one svd can use this run directory", .path.display())]
    Held { path: PathBuf, holder: Holder },
    #[error("cannot lock {}: {}", .path.display(), super::io_text(.source))]
    Io { path: PathBuf, source: io::Error },
}

/// Who holds the lock, as far as the file tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder(pub Option<i32>);

impl Holder {
    /// The process that is named does not run any more; one that it has left (a thread, a copy of the descriptor) may.
    pub fn has_ended(self) -> bool {
        let gone = |pid| super::process::ProcStat::read(pid).is_none_or(|stat| matches!(stat.state, 'Z' | 'X'));
        self.0.is_some_and(gone)
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pid) => match super::process::ProcStat::read(pid) {
                Some(stat) => write!(f, "process {pid} ({})", stat.comm),
                None => write!(f, "process {pid}"),
            },
            None => f.write_str("another process"),
        }
    }
}

/// A held lock; given back when dropped. The file stays, as removing it would let two processes lock two files.
#[derive(Debug)]
pub struct Lock {
    file: Flock<File>,
}

impl Lock {
    /// Takes the lock without waiting and writes `pid` into the file, which serves as the pid file.
    pub fn acquire(path: &Path, pid: u32) -> Result<Lock, LockError> {
        let failed = |source| LockError::Io { path: path.into(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(failed)?;
        let mut file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => locked,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                return Err(LockError::Held { path: path.into(), holder: Holder(read_pid(&mut file)) });
            }
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        write_pid(&mut file, pid).map_err(failed)?;
        Ok(Lock { file })
    }

    /// Gives it back and empties the file, so that nobody takes our number for a running svd's. The file itself stays: with
    /// it removed, two others could each lock one of the same name.
    pub fn release(self) {
        // Best effort: a stale number is told from a living one by the lock.
        let _ = self.file.set_len(0);
    }

    /// Takes over a lock whose descriptor another process of the same svd has kept; it must be held already.
    pub fn adopt(fd: std::os::fd::OwnedFd, pid: u32) -> io::Result<Lock> {
        match Flock::lock(File::from(fd), FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                write_pid(&mut file, pid)?;
                Ok(Lock { file })
            }
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn write_pid(file: &mut File, pid: u32) -> io::Result<()> {
    let text = format!("{pid}\n");
    file.rewind()?;
    let mut there = String::new();
    if file.take(32).read_to_string(&mut there).is_ok() && there == text {
        // An svd that returns: there may be no room for it any more, or the disk may have become read-only.
        return Ok(());
    }
    // Readers take what is no number for a svd that is just beginning.
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

fn read_pid(file: &mut File) -> Option<i32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Who holds the lock at `path`; `None` if nobody does.
pub fn holder(path: &Path) -> io::Result<Option<Holder>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(None),
        Err((mut file, Errno::EWOULDBLOCK)) => Ok(Some(Holder(read_pid(&mut file)))),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// Whose the lock is.
#[derive(Debug)]
pub enum Holding {
    Nobody,
    /// The one that the file names, which is certain to hold it: it can be signalled.
    Process(PidFd),
    /// Somebody, but not (yet) the one that the file names.
    Unnamed,
}

/// Who holds the lock at `path`, with certainty.
pub fn holding(path: &Path) -> io::Result<Holding> {
    let Some(Holder(pid)) = holder(path)? else { return Ok(Holding::Nobody) };
    let Some(pidfd) = pid.and_then(|pid| PidFd::open(pid).ok()) else { return Ok(Holding::Unnamed) };
    // Asked afterwards, and it has not ended since: so it is about this process.
    let certain = has_locked(pidfd.pid(), path)? && !pidfd.has_ended();
    Ok(if certain { Holding::Process(pidfd) } else { Holding::Unnamed })
}

/// Does this process have a descriptor of the lock that is held (`proc_pid_fdinfo(5)`)? It may be another's as well.
fn has_locked(pid: i32, path: &Path) -> io::Result<bool> {
    let locked = std::fs::metadata(path)?;
    let holds = |entry: std::fs::DirEntry| {
        let same = std::fs::metadata(entry.path()).is_ok_and(|m| (m.dev(), m.ino()) == (locked.dev(), locked.ino()));
        let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(entry.file_name());
        let is_lock = |line: &str| line.starts_with("lock:") && line.contains("FLOCK") && line.contains("WRITE");
        same && std::fs::read_to_string(info).is_ok_and(|text| text.lines().any(is_lock))
    };
    // It may have ended, or be somebody's whom we may not look at.
    let Ok(descriptors) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { return Ok(false) };
    Ok(descriptors.flatten().any(holds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_was_first() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("svd.lock");
        assert_eq!(holder(&path).expect("ask"), None);
        let first = Lock::acquire(&path, std::process::id()).expect("the first");
        let own = std::process::id();
        let second = Lock::acquire(&path, 1).expect_err("the second").to_string();
        assert!(second.contains(&format!("is held by process {own} (")), "{second}");
        assert_eq!(holder(&path).expect("ask"), Some(Holder(Some(own as i32))));
        assert!(matches!(holding(&path).expect("ask"), Holding::Process(pidfd) if pidfd.pid() == own as i32));
        // A file that names another one, who may even have it open, but does not hold the lock.
        let mut other = std::process::Command::new("sleep");
        let mut other = other.arg("1000").stdin(File::open(&path).expect("the file")).spawn().expect("sleep");
        std::fs::write(&path, other.id().to_string()).expect("written");
        let unnamed = holding(&path);
        other.kill().and_then(|()| other.wait()).expect("ended");
        assert!(matches!(unnamed.expect("ask"), Holding::Unnamed));
        first.release();
        assert!(matches!(holding(&path).expect("ask"), Holding::Nobody));
        assert_eq!(holder(&path).expect("ask"), None);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "");
        Lock::acquire(&path, 1).expect("free again");
    }
}
