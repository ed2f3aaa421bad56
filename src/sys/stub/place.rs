//! svd's side of its stubs: what they are called, and where they are reached again after svd's death.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, connect, socket};

use super::END;
use crate::sys::process::{Identity, PidFd, ProcStat, all_pids};
use crate::sys::socket::peer;

/// Longest name of a socket's file. With what names the directory it fits into an address (`unix(7)`: 107 bytes).
const FILE_MAX: usize = 80;
/// Between two tries to reach a stub that does not listen yet.
const AGAIN: Duration = Duration::from_millis(2);

/// What the stubs of one run directory are called (`comm`): by it, the next svd finds those that a killed one left.
///
/// Made from the directory's device and inode, as its path may mean another one in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(pub(super) [u8; 16]);

impl Name {
    fn of(run_dir: &Path) -> io::Result<Name> {
        let meta = std::fs::metadata(run_dir)?;
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325; // FNV-1a: stable across builds
        for byte in meta.dev().to_ne_bytes().into_iter().chain(meta.ino().to_ne_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let mut name = [0_u8; 16];
        let text = format!("svd:{:011x}", hash & 0xfff_ffff_ffff);
        name.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        Ok(Name(name))
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default().trim_end_matches('\0')
    }
}

/// The process, if it lives and is the known one; and whether it is this process's child.
pub(in crate::sys) fn open(known: Identity) -> Option<(PidFd, bool)> {
    let pidfd = PidFd::open(known.pid).ok()?;
    let lives = |stat: &ProcStat| known.is(Some(stat.start_time)) && !matches!(stat.state, 'Z' | 'X');
    let stat = ProcStat::read(known.pid).filter(lives)?;
    Some((pidfd, stat.parent == std::process::id().cast_signed()))
}

/// The stubs of one svd: their name, and the directory in which each has a socket.
#[derive(Clone, Debug)]
pub struct Place {
    pub(in crate::sys) name: Name,
    directory: Arc<OwnedFd>,
}

impl Place {
    /// `directory`: svd's alone (mode 0700); whoever can connect there decides about the workers.
    ///
    /// # Errors
    /// `stat(2)` of the run directory, `open(2)` of the other one.
    pub fn open(run_dir: &Path, directory: &Path) -> io::Result<Place> {
        let options = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let directory = std::fs::OpenOptions::new().read(true).custom_flags(options).open(directory)?;
        Ok(Place { name: Name::of(run_dir)?, directory: Arc::new(directory.into()) })
    }

    /// However long the directory's own path is.
    fn path(&self, file: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{file}", self.directory.as_raw_fd()))
    }

    /// The name of the socket's file of a worker: the end of the worker's name, which tells it from all others.
    pub(in crate::sys) fn file(name: &str) -> Box<str> {
        let from = (name.len().saturating_sub(FILE_MAX)..).find(|at| name.is_char_boundary(*at));
        name.get(from.unwrap_or_default()..).unwrap_or_default().into()
    }

    /// A socket for a stub, which is to listen on it by itself: then its peers know it by its own pid.
    pub(in crate::sys) fn bind(&self, file: &str) -> Result<OwnedFd, Errno> {
        let path = self.path(file);
        // Of a worker that is gone, if there is one.
        let _ = std::fs::remove_file(&path);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        bind(fd.as_raw_fd(), &UnixAddr::new(&path)?)?;
        Ok(fd)
    }

    /// Best effort: what is left is removed by the next svd.
    pub(in crate::sys) fn remove(&self, file: &str) {
        let _ = std::fs::remove_file(self.path(file));
    }

    /// Removes the sockets of workers that are gone.
    pub fn sweep(&self, used: impl Fn(&str) -> bool) {
        for entry in std::fs::read_dir(self.path("")).into_iter().flatten().flatten() {
            if let Some(file) = entry.file_name().to_str().filter(|file| !used(file)) {
                self.remove(file);
            }
        }
    }

    /// Reaches a stub whose svd is gone. `None`: it has ended meanwhile.
    ///
    /// # Errors
    /// It lives, and is not reached until then: its socket's file is gone, say, or another process listens there.
    pub(in crate::sys) fn connect(&self, file: &str, stub: &PidFd, until: Instant) -> io::Result<Option<OwnedFd>> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        loop {
            let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
            match connect(fd.as_raw_fd(), &UnixAddr::new(&self.path(file))?) {
                Ok(()) if peer(&fd)?.pid == stub.pid() => return Ok(Some(fd)),
                Ok(()) => return Err(io::Error::other("another process listens at its socket")),
                Err(_) if stub.has_ended() => return Ok(None),
                // Before it listens, or with others waiting there.
                Err(Errno::ECONNREFUSED | Errno::EAGAIN) if Instant::now() < until => std::thread::sleep(AGAIN),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Ends what a killed svd left below its stubs but for the known ones, and gives how many of them there were. Blocks until
    /// nothing is left, at most `limit`. Only for the holder of the run directory's lock: then no living svd has stubs of
    /// that name.
    pub fn end_orphans(&self, known: &BTreeSet<Identity>, limit: Duration) -> usize {
        let ours = |pid: i32| {
            let stat = ProcStat::read(pid).filter(|stat| stat.comm == self.name.as_str() && stat.state != 'Z');
            stat.is_some_and(|stat| !known.contains(&Identity { pid, start_time: stat.start_time }))
                && std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == nix::unistd::geteuid().as_raw())
        };
        let mut left = Vec::new();
        for pid in all_pids().into_iter().filter(|pid| ours(*pid)) {
            let Ok(pidfd) = PidFd::open(pid) else { continue };
            // Again, now that the process cannot be confused any more.
            if ours(pid) && pidfd.queue(END).unwrap_or(false) {
                left.push(pidfd);
            }
        }
        wait_for_end(&left, limit);
        left.len()
    }
}

/// Ends one stub that cannot be reached, and all that is below it. Blocks until nothing is left, at most `limit`.
///
/// # Errors
/// It lives on.
pub fn end(stub: Identity, limit: Duration) -> Result<(), Errno> {
    let Some((pidfd, _)) = open(stub) else { return Ok(()) };
    pidfd.queue(END)?;
    wait_for_end(std::slice::from_ref(&pidfd), limit);
    if pidfd.has_ended() { Ok(()) } else { Err(Errno::ETIMEDOUT) }
}

fn wait_for_end(all: &[PidFd], limit: Duration) {
    let until = Instant::now() + limit;
    while all.iter().any(|pidfd| !pidfd.has_ended()) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until there is something to read; `false`: not in time.
pub(in crate::sys) fn readable(fd: impl AsFd, until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(Errno::EINTR) => {}
            result => return result == Ok(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_name_is_kept() {
        assert_eq!(&*Place::file("web.1.0.7"), "web.1.0.7");
        let long = format!("{}é{}.1.0.7", "x".repeat(30), "y".repeat(73));
        assert_eq!(Place::file(&long).len(), 79, "no half of a letter");
        assert!(long.ends_with(&*Place::file(&long)));
    }
}
