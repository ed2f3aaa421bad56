//! svd's side. Nothing here waits but [`Client::receive_all`], [`Client::end`] and [`Client::across_exec`], each up to a limit.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::inherit::{GUARDED, set_inherited};
use super::protocol::{NAME_MAX, PACKET_MAX, ToGuardian, ToSvd};
use super::{Ended, Refused};
use crate::sys::process::ExitStatus;
use crate::sys::socket::rights;

/// So many messages wait in svd for a guardian that does not read; it reads whenever it is given a processor.
const QUEUE: usize = 65_536;
/// So many statuses, then svd's other work has its turn.
const BATCH: usize = 1024;
/// How long to wait for a guardian that is to read the last messages.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the guardian had kept.
#[derive(Debug, Default)]
pub struct Kept {
    /// By name; no name comes twice.
    pub descriptors: Vec<(Box<str>, OwnedFd)>,
    /// Children that ended while no svd was there, and those not acknowledged by an earlier one. In the order in which they
    /// were reaped.
    pub exits: Vec<Ended>,
    /// Why an older version of svd runs than the one that was to run.
    pub fallback: Option<String>,
    /// How often svd has died since the guardian began, and how the last one did.
    pub deaths: u32,
    pub last_death: Option<ExitStatus>,
}

/// The way to the guardian.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    queue: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    lost: bool,
    /// The number of the last status that was given to svd.
    seen: u64,
    refused: Refused,
    guardian: i32,
    open_files: u64,
}

impl Client {
    pub(super) fn new(socket: OwnedFd, open_files: u64) -> Client {
        Client {
            socket,
            queue: VecDeque::new(),
            lost: false,
            seen: 0,
            refused: Refused::default(),
            guardian: nix::unistd::getppid().as_raw(),
            open_files,
        }
    }

    /// The guardian's pid, as of the start; it is the one that others know as svd's.
    pub fn guardian(&self) -> i32 {
        self.guardian
    }

    /// The soft limit of open files before svd raised it.
    pub fn open_files(&self) -> u64 {
        self.open_files
    }

    /// Waits until the guardian has told everything that it keeps, at most `limit`. Once, at the start, with room for all
    /// descriptors (`RLIMIT_NOFILE`).
    ///
    /// # Errors
    /// `TimedOut`; `UnexpectedEof` if the guardian has died; `EMFILE` if there was no room for a descriptor, which the
    /// guardian still has: end, and be started again.
    pub fn receive_all(&mut self, limit: Duration) -> io::Result<Kept> {
        let until = Instant::now() + limit;
        // An answer to an earlier image of svd may still be under way; it is told apart by this number.
        let nonce = crate::sys::monotonic_micros();
        self.send(ToGuardian::Hello { nonce }, None)?;
        self.flush_until(until)?;
        let mut kept = None;
        loop {
            let Some((packet, descriptor)) = self.receive()? else {
                if self.lost {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the guardian has died"));
                }
                self.wait(PollFlags::POLLIN, until)?;
                continue;
            };
            match (ToSvd::decode(&packet), &mut kept) {
                (Some(ToSvd::Begin { nonce: of }), _) => kept = (of == nonce).then(Kept::default),
                (Some(ToSvd::Descriptor { name }), Some(kept)) => match descriptor {
                    Some(descriptor) => kept.descriptors.push((name.into(), descriptor)),
                    None => return Err(Errno::EMFILE.into()),
                },
                (Some(ToSvd::Exit { number, ended }), Some(kept)) => {
                    self.seen = number;
                    kept.exits.push(ended);
                }
                (Some(ToSvd::Fallback { why }), Some(kept)) => kept.fallback = Some(why.into()),
                (Some(ToSvd::Refused { descriptors, statuses, name }), Some(_)) => {
                    self.refused = Refused { descriptors, statuses, last: name.into() };
                }
                (Some(ToSvd::Complete { deaths, last }), Some(found)) => {
                    (found.deaths, found.last_death) = (deaths, last);
                    return Ok(std::mem::take(found));
                }
                // Of an earlier answer, or of a newer guardian.
                (_, _) => {}
            }
        }
    }

    /// Gives the guardian a copy of the descriptor to keep; it takes the place of one with the same name. What was stored
    /// before svd died is kept even if the guardian had not read it yet.
    ///
    /// # Errors
    /// `InvalidInput`: the name is empty or longer than [`NAME_MAX`]. As [`Client::ready`].
    pub fn store(&mut self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        if name.is_empty() || name.len() > NAME_MAX {
            let why = format!("a name of {} bytes; 1 to {NAME_MAX} are possible", name.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        self.send(ToGuardian::Store { name }, Some(fd))
    }

    /// The guardian closes its copy. A name that it does not have is no error.
    ///
    /// # Errors
    /// As [`Client::ready`].
    pub fn remove(&mut self, name: &str) -> io::Result<()> {
        self.send(ToGuardian::Remove { name }, None)
    }

    /// svd is up.
    ///
    /// # Errors
    /// `NotConnected`: the guardian is lost. `QuotaExceeded`: it has not read for so long that nothing more is queued.
    pub fn ready(&mut self) -> io::Result<()> {
        self.send(ToGuardian::Ready, None)
    }

    /// All statuses that [`Client::receive_all`] and [`Client::exits`] gave so far are recorded.
    ///
    /// # Errors
    /// As [`Client::ready`].
    pub fn acknowledge(&mut self) -> io::Result<()> {
        self.send(ToGuardian::Acknowledge { number: self.seen }, None)
    }

    /// The file to start svd from when it dies, from now on. Before an svd executes it in place; if that fails, the
    /// old file must be given again. One that does not come up twice is given up by the guardian ([`Kept::fallback`]).
    ///
    /// # Errors
    /// As [`Client::ready`].
    pub fn executable(&mut self, file: BorrowedFd<'_>) -> io::Result<()> {
        self.send(ToGuardian::Executable, Some(file))
    }

    /// Has the guardian tell the service manager (`sd_notify(3)`), which started it.
    ///
    /// # Errors
    /// As [`Client::ready`].
    pub fn notify(&mut self, text: &str) -> io::Result<()> {
        self.send(ToGuardian::Notify { text }, None)
    }

    /// svd is about to end on purpose: the guardian ends after it, with this code (0 to 255). Waits until that is under way.
    ///
    /// # Errors
    /// As [`Client::ready`]; `TimedOut` after 2 s: the guardian would start a new svd.
    pub fn end(&mut self, code: i32) -> io::Result<()> {
        self.send(ToGuardian::End { code }, None)?;
        self.flush_until(Instant::now() + LAST_WORDS)
    }

    /// What the environment of another image of svd must have, name and value, for it to find the guardian when it is executed in this
    /// process; [`start`](super::start) looks there. If the exec fails, [`Client::exec_failed`].
    ///
    /// # Errors
    /// As [`Client::end`], and `fcntl(2)`.
    pub fn across_exec(&mut self) -> io::Result<(&'static str, std::os::fd::RawFd)> {
        self.flush_until(Instant::now() + LAST_WORDS)?;
        set_inherited(&self.socket, true)?;
        Ok((GUARDED, self.socket.as_raw_fd()))
    }

    /// This image goes on. Does not take back [`Client::executable`].
    ///
    /// # Errors
    /// `fcntl(2)`.
    pub fn exec_failed(&mut self) -> io::Result<()> {
        set_inherited(&self.socket, false)
    }

    /// The children of the guardian that have ended since. To be called when the descriptor is readable; it stays so if there
    /// are more than were given. Then see [`Client::is_lost`].
    ///
    /// # Errors
    /// What `recvmsg(2)` says, shortage of memory for example.
    pub fn exits(&mut self) -> io::Result<Vec<Ended>> {
        let mut exits = Vec::new();
        for _ in 0..BATCH {
            let Some((packet, _)) = self.receive()? else { break };
            match ToSvd::decode(&packet) {
                Some(ToSvd::Exit { number, ended }) if number > self.seen => {
                    self.seen = number;
                    exits.push(ended);
                }
                Some(ToSvd::Refused { descriptors, statuses, name }) => {
                    self.refused = Refused { descriptors, statuses, last: name.into() };
                }
                _ => {}
            }
        }
        Ok(exits)
    }

    /// What the guardian could not keep so far.
    pub fn refused(&self) -> &Refused {
        &self.refused
    }

    /// The guardian has died: it keeps nothing any more, and will not start svd again.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Whether to wait for the descriptor to be writable, and call [`Client::flush`] then.
    pub fn wants_write(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends what waits, as far as there is room.
    ///
    /// # Errors
    /// What `sendmsg(2)` says other than that there is no room; what waits goes on waiting.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some((packet, fd)) = self.queue.front() {
            match rights::send(&self.socket, packet, fd.as_ref().map(AsFd::as_fd)) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(Errno::EAGAIN | Errno::ETOOMANYREFS) => return Ok(()),
                Err(Errno::EPIPE | Errno::ECONNRESET) => {
                    self.lose();
                    return Ok(());
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn lose(&mut self) {
        self.lost = true;
        self.queue.clear();
    }

    fn send(&mut self, message: ToGuardian<'_>, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.flush()?;
        if self.lost {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the guardian has died"));
        }
        let packet = message.encode();
        if self.queue.is_empty() {
            match rights::send(&self.socket, &packet, fd) {
                Ok(()) => return Ok(()),
                Err(Errno::EAGAIN | Errno::ETOOMANYREFS) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => {
                    self.lose();
                    return Err(io::Error::new(io::ErrorKind::NotConnected, "the guardian has died"));
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        if self.queue.len() >= QUEUE {
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "the guardian does not read"));
        }
        let copy = fd.map(|fd| fd.try_clone_to_owned()).transpose()?;
        self.queue.push_back((packet, copy));
        Ok(())
    }

    /// One message; `None` if there is none now, or the guardian is lost.
    fn receive(&mut self) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
        let mut buffer = [0; PACKET_MAX];
        loop {
            let packet = match rights::receive(&self.socket, &mut buffer) {
                Ok(packet) => packet,
                Err(Errno::EAGAIN) => return Ok(None),
                // It died with unread messages of ours; what it had sent comes after this.
                Err(Errno::ECONNRESET) => continue,
                Err(errno) => return Err(errno.into()),
            };
            let Some(bytes) = buffer.get(..packet.length).filter(|bytes| !bytes.is_empty()) else {
                self.lose();
                return Ok(None);
            };
            return Ok(Some((bytes.to_vec(), packet.descriptor)));
        }
    }

    fn flush_until(&mut self, until: Instant) -> io::Result<()> {
        loop {
            self.flush()?;
            if self.queue.is_empty() {
                return Ok(());
            }
            self.wait(PollFlags::POLLOUT, until)?;
        }
    }

    fn wait(&self, events: PollFlags, until: Instant) -> io::Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the guardian does not answer"));
        }
        let mut fds = [PollFd::new(self.socket.as_fd(), events)];
        let limit = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, limit) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Client {
    /// Readable when there are [`Client::exits`], or the guardian is lost.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
