//! epoll with tokens, and signals as a descriptor.

use std::os::fd::{AsFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What to wait for. All are level-triggered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    Read,
    Write,
    /// `EPOLLPRI`, for `cgroup.events`. Reading the file from its start clears it.
    Priority,
}

impl Interest {
    fn flags(self) -> EpollFlags {
        match self {
            Interest::Read => EpollFlags::EPOLLIN,
            Interest::Write => EpollFlags::EPOLLOUT,
            Interest::Priority => EpollFlags::EPOLLPRI,
        }
    }
}

/// One ready descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    pub token: u64,
    /// The other end is gone or there is an error; reported whatever was asked for.
    pub hung_up: bool,
}

/// A descriptor for tokio, which tells when it is ready.
///
/// # Errors
/// Of `epoll_ctl(2)`.
pub fn for_tokio(fd: std::os::fd::OwnedFd) -> std::io::Result<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
    // SAFETY: an OwnedFd keeps its descriptor open and the same until it is dropped.
    Ok(unsafe { tokio::io::unix::AsyncFd::register(fd) }?)
}

/// A set of descriptors, each with a token of the caller's. A closed descriptor leaves the set by itself unless somebody
/// (a child) holds a copy: delete it first.
#[derive(Debug)]
pub struct Poll {
    epoll: Epoll,
    events: Vec<EpollEvent>,
}

impl Poll {
    /// `batch`: how many events one [`Poll::wait`] gives at most.
    pub fn new(batch: usize) -> Result<Poll, Errno> {
        Ok(Poll {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            events: vec![EpollEvent::empty(); batch.max(1)],
        })
    }

    /// A copy of the epoll set's descriptor for tokio, which tells when something in the set is ready.
    pub fn for_tokio(&self) -> std::io::Result<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
        for_tokio(self.as_fd().try_clone_to_owned()?)
    }

    pub fn add(&self, fd: impl AsFd, interest: Interest, token: u64) -> Result<(), Errno> {
        self.epoll.add(fd, EpollEvent::new(interest.flags(), token))
    }

    pub fn modify(&self, fd: impl AsFd, interest: Interest, token: u64) -> Result<(), Errno> {
        let mut event = EpollEvent::new(interest.flags(), token);
        self.epoll.modify(fd, &mut event)
    }

    pub fn delete(&self, fd: impl AsFd) -> Result<(), Errno> {
        self.epoll.delete(fd)
    }

    /// Appends what is ready now to `ready`; waits up to `timeout_ms` for the first (0: not at all, `None`: for ever).
    pub fn wait(&mut self, timeout_ms: Option<u16>, ready: &mut Vec<Ready>) -> Result<(), Errno> {
        let timeout = timeout_ms.map_or(EpollTimeout::NONE, EpollTimeout::from);
        let count = match self.epoll.wait(&mut self.events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno),
        };
        ready.extend(self.events[..count].iter().map(|event| Ready {
            token: event.data(),
            hung_up: event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR),
        }));
        Ok(())
    }
}

/// Readable when something in the set is ready, so that one event loop can hold another's set.
impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Poll {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

/// What svd is told by signals. Those that come while one of the same kind is pending are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    Terminate,
    Interrupt,
    Quit,
    Hangup,
    User1,
    User2,
    Child,
    Pipe,
}

impl Received {
    const ALL: [(Received, Signal); 8] = [
        (Received::Terminate, Signal::SIGTERM),
        (Received::Interrupt, Signal::SIGINT),
        (Received::Quit, Signal::SIGQUIT),
        (Received::Hangup, Signal::SIGHUP),
        (Received::User1, Signal::SIGUSR1),
        (Received::User2, Signal::SIGUSR2),
        (Received::Child, Signal::SIGCHLD),
        (Received::Pipe, Signal::SIGPIPE),
    ];

    pub fn signal(self) -> Signal {
        let found = Received::ALL.iter().find(|(received, _)| *received == self);
        found.map_or(Signal::SIGTERM, |(_, signal)| *signal)
    }

    /// Is it somebody's wish, and not the kernel's about this process alone?
    pub fn is_for_svd(self) -> bool {
        !matches!(self, Received::Child | Received::Pipe)
    }

    pub fn asks_for_the_end(self) -> bool {
        matches!(self, Received::Terminate | Received::Interrupt | Received::Quit)
    }
}

/// The signals that svd handles, blocked and read from a descriptor: no handler exists anywhere.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
}

impl Signals {
    /// Blocks them in this thread and in all that it starts from now on; call it first in `main`.
    pub fn block() -> Result<Signals, Errno> {
        let set: SigSet = Received::ALL.iter().map(|(_, signal)| *signal).collect();
        set.thread_block()?;
        let fd = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Signals { fd })
    }

    /// The next one, with the pid of who sent it (0: the kernel); `None` if there is none now.
    pub fn next(&self) -> Result<Option<(Received, i32)>, Errno> {
        loop {
            let Some(info) = self.fd.read_signal()? else {
                return Ok(None);
            };
            let found = Received::ALL.iter().find(|(_, signal)| *signal as u32 == info.ssi_signo);
            if let Some((received, _)) = found {
                return Ok(Some((*received, info.ssi_pid as i32)));
            }
        }
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn tokens_come_back() {
        let mut poll = Poll::new(8).expect("epoll");
        let (reader, writer) = crate::sys::fifo::pipe().expect("pipe");
        poll.add(&reader, Interest::Read, 0xfeed_0000_0001).expect("add");
        let mut ready = Vec::new();
        poll.wait(Some(0), &mut ready).expect("wait");
        assert!(ready.is_empty());
        std::fs::File::from(writer).write_all(b"x").expect("write");
        poll.wait(Some(1000), &mut ready).expect("wait");
        assert_eq!(ready, [Ready { token: 0xfeed_0000_0001, hung_up: true }]);
        poll.modify(&reader, Interest::Read, 2).expect("modify");
        ready.clear();
        poll.wait(Some(1000), &mut ready).expect("wait");
        assert_eq!(ready[0].token, 2);
        poll.delete(&reader).expect("delete");
        ready.clear();
        poll.wait(Some(0), &mut ready).expect("wait");
        assert!(ready.is_empty());
    }

    #[test]
    fn signals_are_read_not_handled() {
        // In a thread of its own: the mask is the thread's, and the signal is sent to it alone.
        let thread = std::thread::spawn(|| {
            let signals = Signals::block().expect("signalfd");
            assert_eq!(signals.next().expect("none"), None);
            // SAFETY: a blocked signal to this thread.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGHUP) };
            let (received, from) = signals.next().expect("read").expect("one");
            assert_eq!(received, Received::Hangup);
            assert_eq!(from, std::process::id() as i32);
        });
        thread.join().expect("the thread");
    }
}
