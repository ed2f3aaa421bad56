//! svd's side of a stub.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::super::process::{ExitStatus, Identity, PidFd};
use super::super::socket::rights;
use super::super::spawn::{Prepared, Slot, SpawnError, Spawner};
use super::super::stub::{self, Birth, Message, Place};
use super::WorkerEvent;

#[derive(Debug)]
pub(super) struct Stub {
    pidfd: PidFd,
    /// Else somebody else's, who reaps it.
    own: bool,
    /// `None`: it had ended before it was looked at.
    known: Option<Identity>,
    socket: OwnedFd,
    place: Place,
    /// The name of the socket's file.
    file: Box<str>,
    worker: Option<PidFd>,
    /// Signals for a worker whose pidfd has not arrived yet.
    early: Vec<i32>,
    /// How the worker has ended, which came with the pidfd and is to be told.
    untold: Option<ExitStatus>,
    exited: bool,
    gone: bool,
}

/// A stub, and how its worker has ended if others are left; or how the stub itself has ended.
pub(super) type Found = Result<(Stub, Option<ExitStatus>), Option<ExitStatus>>;

pub(super) enum News {
    Event(WorkerEvent),
    Nothing,
    /// The socket closed without a last message.
    Lost,
}

impl Stub {
    pub(super) fn start(
        spawner: &Spawner,
        prepared: &Prepared,
        place: &Place,
        name: &str,
    ) -> Result<(Stub, Slot), SpawnError> {
        let (ours, theirs) = rights::pair().map_err(SpawnError::Socket)?;
        let file = Place::file(name);
        let listener = place.bind(&file).map_err(SpawnError::Listener)?;
        let birth = Birth { name: place.name, socket: theirs.as_raw_fd(), listener: listener.as_raw_fd() };
        let child = spawner
            .spawn_stub(prepared, |plan, way| stub::run(plan, way, birth))
            .inspect_err(|_| place.remove(&file))?;
        let known = Identity::of(child.pidfd.pid());
        Ok((Stub::new(child.pidfd, true, known, ours, place.clone(), file), child.slot))
    }

    fn new(pidfd: PidFd, own: bool, known: Option<Identity>, socket: OwnedFd, place: Place, file: Box<str>) -> Stub {
        Stub {
            pidfd,
            own,
            known,
            socket,
            place,
            file,
            worker: None,
            early: Vec::new(),
            untold: None,
            exited: false,
            gone: false,
        }
    }

    /// See [`super::Worker::adopt_below_stub`].
    pub(super) fn adopt(place: &Place, file: &str, known: Identity, limit: Duration) -> io::Result<Found> {
        let until = Instant::now() + limit;
        let Some((pidfd, own)) = stub::open(known) else { return Ok(Err(None)) };
        let Some(socket) = place.connect(file, &pidfd, until)? else { return Ok(Err(end_of(&pidfd, until))) };
        let mut stub = Stub::new(pidfd, own, Some(known), socket, place.clone(), file.into());
        // It answers at once. One that is stopped, say, is heard when it goes on.
        if stub::readable(&stub.socket, until) {
            match stub.ready()? {
                News::Event(_) => {}
                News::Nothing | News::Lost => return Ok(Err(end_of(&stub.pidfd, until))),
            }
        }
        let exit = stub.untold.take();
        stub.exited = exit.is_some();
        Ok(Ok((stub, exit)))
    }

    pub(super) fn pid(&self) -> i32 {
        self.pidfd.pid()
    }

    pub(super) fn known(&self) -> Option<Identity> {
        self.known
    }

    pub(super) fn file(&self) -> &str {
        &self.file
    }

    pub(super) fn worker(&self) -> Option<&PidFd> {
        self.worker.as_ref()
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    pub(super) fn has_exited(&self) -> bool {
        self.exited
    }

    pub(super) fn watch(&self) -> Option<BorrowedFd<'_>> {
        (!self.gone).then(|| self.socket.as_fd())
    }

    /// Once it is gone: the zombie that is left of it, if it is ours.
    pub(super) fn unreaped(&self) -> Option<i32> {
        (self.gone && self.own).then(|| self.pid())
    }

    /// For when the worker is known. `false`: it never will be.
    pub(super) fn signal_later(&mut self, signal: i32) -> bool {
        if !self.gone && !self.early.contains(&signal) {
            self.early.push(signal);
        }
        !self.gone
    }

    /// It was killed, or has failed. Gives the worker, if it has one.
    pub(super) fn lost(&mut self) -> Option<PidFd> {
        self.end();
        let _ = self.pidfd.try_wait();
        self.worker.take()
    }

    /// It has said its last.
    fn end(&mut self) {
        self.gone = true;
        self.place.remove(&self.file);
    }

    pub(super) fn command(&mut self, message: Message) -> io::Result<()> {
        if self.gone {
            return Ok(());
        }
        let bytes: Vec<u8> = message.iter().flat_map(|word| word.to_ne_bytes()).collect();
        match rights::send(&self.socket, &bytes, None) {
            // The stub has just ended, as nothing is left: its last message waits for us.
            Ok(()) | Err(Errno::EPIPE | Errno::ECONNRESET) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    pub(super) fn ready(&mut self) -> io::Result<News> {
        if self.gone {
            return Ok(News::Nothing);
        }
        if let Some(status) = self.untold.take() {
            self.exited = true;
            return Ok(News::Event(WorkerEvent::Exited { status, leftovers: true }));
        }
        let (message, descriptor) = match receive(&self.socket) {
            Ok(Some(received)) => received,
            Ok(None) | Err(Errno::ECONNRESET) => return Ok(News::Lost),
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(News::Nothing),
            Err(errno) => return Err(errno.into()),
        };
        let event = match message {
            [stub::STARTED, pid, ended, status] => {
                let Some(fd) = descriptor else {
                    return Err(Errno::EMFILE.into());
                };
                let worker = PidFd::from_parts(pid, fd);
                for signal in self.early.drain(..) {
                    worker.signal(signal)?;
                }
                self.worker = Some(worker);
                self.untold = (ended != 0).then(|| ExitStatus::from_wait_status(status));
                WorkerEvent::Started(pid)
            }
            [stub::EXITED, status, leftovers, _] => {
                self.exited = true;
                let leftovers = leftovers != 0;
                if !leftovers {
                    self.end();
                }
                WorkerEvent::Exited { status: ExitStatus::from_wait_status(status), leftovers }
            }
            [stub::EMPTY, ..] => {
                self.end();
                WorkerEvent::Empty
            }
            _ => return Err(Errno::EPROTO.into()),
        };
        Ok(News::Event(event))
    }
}

/// How a stub has ended that has said its last.
fn end_of(stub: &PidFd, until: Instant) -> Option<ExitStatus> {
    stub::readable(stub, until).then(|| stub.any_exit()).flatten()
}

fn receive(socket: &OwnedFd) -> Result<Option<(Message, Option<OwnedFd>)>, Errno> {
    let mut bytes = [0_u8; size_of::<Message>()];
    let packet = rights::receive(socket, &mut bytes)?;
    if packet.length < size_of::<Message>() {
        return Ok(None);
    }
    let mut message: Message = [0; 4];
    for (word, chunk) in message.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = i32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    Ok(Some((message, packet.descriptor)))
}
