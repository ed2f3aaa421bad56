//! From a pipe to its file.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::engine::Engine;
use super::handle::{Attach, LogEvent, PipeId};
use super::index::millis;
use super::inflight::Node;
use super::memory::TAIL_MAX;
use super::names::Stream;
use super::service::{Pipe, Tools, Urgency};
use crate::sys::fifo;

/// Bytes of one pipe in one turn: a service that never stops printing must not keep the others waiting for longer than
/// about a millisecond.
const TURN_MAX: usize = 512 * 1024;

/// Bytes of one move: the kernel keeps the writer out of its pipe meanwhile.
const MOVE_MAX: usize = 96 * 1024;

/// The kernel's capacity of a pipe.
const PIPE_DEFAULT: usize = 64 * 1024;

/// The capacity of a pipe that streams: room for the pauses, and for what a busy machine adds to them. Twice as much moved
/// large blocks some 10 % slower (their pages leave the cache).
const PIPE_GROWN: usize = 512 * 1024;

/// So much in a pipe shows that one of default size would be half full.
const STREAMING: usize = PIPE_DEFAULT / 2;

/// Bytes of one turn that show that the next round will find some as well.
const MUCH: usize = 16 * 1024;

/// Pipes with a raised capacity: 8 MB, far from where the kernel refuses a plain user more than small pipes (64 MB).
const GROWN_MAX: usize = 16;

/// What is read of a pipe after its worker has gone and before a descendant that still prints is left alone: more than any
/// pipe of ours holds.
const PARTING_MAX: u32 = 4 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    /// So many were taken out; `more`: the pipe had more than that.
    Bytes {
        count: usize,
        more: bool,
    },
    /// All that there is waits for the end of a line.
    Held,
    Empty,
    /// It cannot be read.
    Broken,
}

impl Engine {
    pub(super) fn attach(&mut self, id: PipeId, slot: u32, origin: Attach, fd: OwnedFd) {
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map_or(OFlag::empty(), OFlag::from_bits_truncate);
        let prepared = fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))
            .and_then(|_| self.epoll.add(&fd, watched(id, false)))
            .and_then(|()| Node::of_descriptor(&fd));
        let node = match prepared {
            Ok(node) => node,
            Err(e) => return self.cannot_attach(id, &origin, e),
        };
        let Some(service) = self.service(slot) else {
            return;
        };
        service.begin(origin.generation, None);
        service.live[origin.stream.number()] += 1;
        let alone = service.live[origin.stream.number()] == 1;
        let pipe = Pipe {
            service: slot,
            worker: origin.worker,
            generation: origin.generation,
            stream: origin.stream,
            adopted: origin.adopted,
            capacity: fifo::grow(&fd, 0),
            node,
            fd,
            grown: false,
            leaving: false,
            skip_line: false,
            timer: false,
            parting: 0,
            edge: false,
            lost: false,
            held: 0,
            held_since: None,
        };
        if pipe.adopted {
            let tools = Tools {
                log_dir: &self.log_dir,
                scratch: &mut self.scratch,
                notify: &self.notify,
                in_flight: self.in_flight.as_ref(),
                now: Instant::now(),
                wall_ms: millis(SystemTime::now()),
            };
            if let Some(service) = self.services.get_mut(slot as usize).and_then(Option::as_mut) {
                service.inherit(id, pipe.stream, &tools);
            }
            self.after(slot, pipe.stream);
        }
        if !alone {
            // Whoever was alone may have begun a line in the file: its end may be in its pipe already.
            self.turn_others(slot, &pipe);
        }
        self.pipes.insert(id, pipe);
    }

    fn cannot_attach(&self, id: PipeId, origin: &Attach, error: Errno) {
        (self.notify)(LogEvent::Trouble {
            service: (&*origin.service).into(),
            text: format!(
                "{}: cannot watch the output of worker {}: {error}. It is not captured.",
                origin.service, origin.worker
            ),
        });
        (self.notify)(LogEvent::Drained { pipe: id });
    }

    fn turn_others(&mut self, slot: u32, beside: &Pipe) {
        let others: Vec<PipeId> = self
            .pipes
            .iter()
            .filter(|(_, p)| p.service == slot && p.stream == beside.stream)
            .map(|(id, _)| *id)
            .collect();
        for other in others {
            self.turn(other, false);
        }
    }

    pub(super) fn detach(&mut self, id: PipeId) {
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.leaving = true;
            self.turn(id, false);
        }
    }

    /// Everything that a pipe holds now, for the end of the thread; closes it.
    pub(super) fn drain(&mut self, id: PipeId) {
        self.detach(id);
        while self.pipes.contains_key(&id) {
            self.turn(id, false);
        }
    }

    /// One pipe's turn: what it has, at most [`TURN_MAX`]. `hung_up`: nobody holds the other end any more.
    pub(super) fn turn(&mut self, id: PipeId, hung_up: bool) {
        self.turn_as(id, hung_up, Urgency::Normal);
    }

    pub(super) fn turn_as(&mut self, id: PipeId, hung_up: bool, urgency: Urgency) {
        let Some((slot, stream)) = self.one_turn(id, hung_up, urgency) else { return };
        if let Some(service) = self.service(slot)
            && std::mem::take(&mut service.waiting)
        {
            // Another pipe of the service finished its line, or went: whoever waited for that is written now.
            let waiting: Vec<PipeId> =
                self.pipes.iter().filter(|(_, p)| p.service == slot && p.held > 0).map(|(id, _)| *id).collect();
            for id in waiting {
                if let Some((_, stream)) = self.one_turn(id, false, Urgency::Normal) {
                    self.after(slot, stream);
                }
            }
        }
        self.after(slot, stream);
        self.forget_if_done(slot);
    }

    fn one_turn(&mut self, id: PipeId, hung_up: bool, urgency: Urgency) -> Option<(u32, Stream)> {
        // Out of the map meanwhile, so that the pipe and the engine can both be changed.
        let mut pipe = self.pipes.remove(&id)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let (mut total, mut full, mut urgency) = (0, true, urgency);
        let ended = loop {
            match self.move_once(id, &mut pipe, &mut buffer, urgency) {
                Moved::Bytes { count, more } => {
                    total += count;
                    full = more;
                    // Of one that is about to be closed it has to be certain that it is empty.
                    if !more && !hung_up && !pipe.leaving {
                        break false;
                    }
                    if pipe.leaving {
                        pipe.parting = pipe.parting.saturating_add(count as u32);
                        if pipe.parting >= PARTING_MAX {
                            break true;
                        }
                    }
                    if total >= TURN_MAX {
                        break false;
                    }
                }
                // Nobody finishes that line any more.
                Moved::Held if (hung_up || pipe.leaving) && urgency == Urgency::Normal => urgency = Urgency::Overdue,
                Moved::Held | Moved::Empty => {
                    full = false;
                    // A FIFO that nobody has opened yet is empty as well, but it does not hang up.
                    break hung_up || pipe.leaving;
                }
                Moved::Broken => break true,
            }
        };
        self.buffer = buffer;
        self.pace.moved(total, pipe.capacity, full);
        let of = (pipe.service, pipe.stream);
        if ended {
            self.close(id, pipe);
            return Some(of);
        }
        if total >= MUCH {
            self.streams.insert(id);
        }
        if pipe.edge != (pipe.held > 0) {
            pipe.edge = !pipe.edge;
            // One that is not watched now will be as it says.
            let _ = self.epoll.modify(&pipe.fd, &mut watched(id, pipe.edge));
        }
        self.arm(id, &mut pipe);
        self.pipes.insert(id, pipe);
        Some(of)
    }

    /// As long as the thread pauses between two rounds, who gave much in the last one is not watched: each write to a watched
    /// pipe goes through the set that watches it, which costs the writer of small lines a quarter of its time.
    pub(super) fn choose_watched(&mut self, pauses: bool) {
        let mut streams = std::mem::take(&mut self.streams);
        if !pauses {
            streams.clear();
        }
        let before = std::mem::take(&mut self.unwatched);
        for id in before.difference(&streams) {
            self.watch(*id);
        }
        for id in streams.difference(&before) {
            if let Some(pipe) = self.pipes.get(id) {
                let _ = self.epoll.delete(pipe.fd.as_fd());
            }
        }
        self.unwatched = streams;
    }

    pub(super) fn watch(&mut self, id: PipeId) {
        let Some(mut pipe) = self.pipes.remove(&id) else { return };
        let added = self.epoll.add(&pipe.fd, watched(id, pipe.edge));
        pipe.lost = !matches!(added, Ok(()) | Err(Errno::EEXIST));
        self.arm(id, &mut pipe);
        self.pipes.insert(id, pipe);
    }

    /// The move itself. Nothing else takes bytes out of a pipe; how it survives a death: see [`super::inflight`].
    fn move_once(&mut self, id: PipeId, pipe: &mut Pipe, buffer: &mut [u8], urgency: Urgency) -> Moved {
        let waiting = match fifo::waiting(&pipe.fd) {
            Ok(0) => return Moved::Empty,
            Ok(count) => count,
            Err(_) => return Moved::Broken,
        };
        self.grow(pipe, waiting);
        let Some(service) = self.services.get_mut(pipe.service as usize).and_then(Option::as_mut) else {
            return Moved::Empty;
        };
        let mut tools = Tools {
            log_dir: &self.log_dir,
            scratch: &mut self.scratch,
            notify: &self.notify,
            in_flight: self.in_flight.as_ref(),
            now: Instant::now(),
            wall_ms: millis(SystemTime::now()),
        };
        let count = service.pour(id, pipe, waiting.min(MOVE_MAX), &mut buffer[..TAIL_MAX], &mut tools);
        if count > 0 {
            return Moved::Bytes { count, more: count < waiting };
        }
        let seen = match look(&pipe.fd, &self.aside, buffer) {
            Ok(0) => return Moved::Empty,
            Ok(count) => count,
            Err(_) => return Moved::Broken,
        };
        let data = &buffer[..seen];
        service.observe(pipe, data.get(pipe.held..).unwrap_or_default(), tools.notify);
        // A line that is longer than what can be looked at goes in pieces.
        let urgency = if seen < waiting && !data.contains(&b'\n') { Urgency::Overdue } else { urgency };
        match service.deliver(id, pipe, data, urgency, &mut tools) {
            0 => Moved::Held,
            count => Moved::Bytes { count, more: seen < waiting },
        }
    }

    fn grow(&mut self, pipe: &mut Pipe, waiting: usize) {
        if waiting >= STREAMING && pipe.capacity < PIPE_GROWN && !pipe.grown && self.grown < GROWN_MAX {
            // Refused to a plain user who has many large ones: then it stays as it is, and is not asked again.
            pipe.grown = true;
            self.grown += 1;
            pipe.capacity = fifo::grow(&pipe.fd, PIPE_GROWN);
        }
    }

    fn close(&mut self, id: PipeId, pipe: Pipe) {
        if pipe.grown {
            self.grown = self.grown.saturating_sub(1);
        }
        let _ = self.epoll.delete(pipe.fd.as_fd());
        if let Some(service) = self.service(pipe.service) {
            service.closed(id, pipe.stream);
        }
        drop(pipe); // closed by the time anybody is told
        (self.notify)(LogEvent::Drained { pipe: id });
    }
}

/// `edge`: told when something new comes, not as long as something is there: what waits for the end of its line stays in
/// the pipe. The kernel does not tell of all of it (a write that is longer than the pipe wakes nobody in its middle unless
/// it found the pipe empty), so that the timer looks as well.
fn watched(id: PipeId, edge: bool) -> EpollEvent {
    let flags = if edge { EpollFlags::EPOLLIN | EpollFlags::EPOLLET } else { EpollFlags::EPOLLIN };
    EpollEvent::new(flags, id.0)
}

/// What a pipe begins with, which stays in it. 0: nothing is there.
fn look(pipe: &OwnedFd, (reader, writer): &(File, OwnedFd), buffer: &mut [u8]) -> io::Result<usize> {
    let count = loop {
        match fifo::copy(pipe, writer, buffer.len()) {
            Ok(count) => break count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            Err(e) => return Err(e),
        }
    };
    // As much as was copied is there: the pipe has no other writer and no other reader.
    let mut reader = reader;
    reader.read_exact(&mut buffer[..count])?;
    Ok(count)
}
