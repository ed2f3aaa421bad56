//! From a pipe to its file.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use super::engine::Engine;
use super::handle::{Attach, LogEvent, PipeId};
use super::index::millis;
use super::service::{Pipe, Tools, Urgency};

/// Bytes of one pipe in one turn: a service that never stops printing must not keep the others waiting for longer than
/// about a millisecond.
const TURN_MAX: usize = 512 * 1024;

/// The kernel's capacity of a pipe.
const PIPE_DEFAULT: usize = 64 * 1024;

/// The capacity of a pipe that streams: room for the pauses.
const PIPE_GROWN: usize = 512 * 1024;

/// A read of this size shows that a pipe of default size was half full.
const STREAMING_READ: usize = PIPE_DEFAULT / 2;

/// Pipes with a raised capacity: 8 MB, far from where the kernel refuses a plain user more than small pipes (64 MB).
const GROWN_MAX: usize = 16;

/// What is read of a pipe after its worker has gone and before a descendant that still prints is left alone: more than any
/// pipe of ours holds.
const PARTING_MAX: u32 = 4 * 1024 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    Bytes { count: usize, more: bool },
    Empty,
    EndOfFile,
}

impl Engine {
    pub(super) fn attach(&mut self, id: PipeId, slot: u32, origin: Attach, fd: OwnedFd) {
        let flags = fcntl(&fd, FcntlArg::F_GETFL).map_or(OFlag::empty(), OFlag::from_bits_truncate);
        let prepared = fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))
            .and_then(|_| self.epoll.add(&fd, EpollEvent::new(EpollFlags::EPOLLIN, id.0)));
        if let Err(e) = prepared {
            (self.notify)(LogEvent::Trouble {
                service: (&*origin.service).into(),
                text: format!(
                    "{}: cannot watch the output of worker {}: {e}. It is not captured.",
                    origin.service, origin.worker
                ),
            });
            (self.notify)(LogEvent::Drained { pipe: id });
            return;
        }
        let Some(service) = self.service(slot) else {
            return;
        };
        service.begin(origin.generation, None, None);
        service.live[origin.stream.number()] += 1;
        let alone = service.live[origin.stream.number()] == 1;
        let pipe = Pipe {
            fd,
            service: slot,
            worker: origin.worker,
            generation: origin.generation,
            stream: origin.stream,
            grown: false,
            leaving: false,
            skip_line: false,
            timer: false,
            parting: 0,
            held: Vec::new(),
            held_since: None,
        };
        if !alone {
            // Whoever was alone may have begun a line in the file: its end may be in its pipe already.
            self.turn_others(slot, &pipe);
        }
        self.pipes.insert(id, pipe);
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
        // Out of the map meanwhile, so that the pipe and the engine can both be changed.
        let Some(mut pipe) = self.pipes.remove(&id) else {
            return;
        };
        let mut buffer = std::mem::take(&mut self.buffer);
        let (mut total, mut full) = (0, true);
        let ended = loop {
            match self.move_once(id, &mut pipe, &mut buffer) {
                Moved::Bytes { count, more } => {
                    total += count;
                    full = more;
                    // A short read has emptied the pipe. Of one that is about to be closed that has to be certain.
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
                Moved::Empty => {
                    full = false;
                    break pipe.leaving;
                }
                // A FIFO that nobody has opened yet looks the same, but it does not hang up.
                Moved::EndOfFile => break hung_up || pipe.leaving,
            }
        };
        self.buffer = buffer;
        let capacity = if pipe.grown { PIPE_GROWN } else { PIPE_DEFAULT };
        self.pace.moved(total, capacity, full);
        let (slot, stream) = (pipe.service, pipe.stream);
        if ended {
            self.close(id, pipe);
        } else {
            self.arm(id, &mut pipe);
            self.pipes.insert(id, pipe);
        }
        if self.service(slot).is_some_and(|s| s.waiting) {
            self.release_waiting(slot);
        }
        self.after(slot, stream);
        if ended {
            self.forget_if_done(slot);
        }
    }

    /// The move itself: read, write, account. Nothing else takes bytes out of a pipe, so that a way that survives a death
    /// between its steps can take this one's place.
    fn move_once(&mut self, id: PipeId, pipe: &mut Pipe, buffer: &mut [u8]) -> Moved {
        let held = pipe.held.len();
        let count = match nix::unistd::read(&pipe.fd, &mut buffer[held..]) {
            Ok(0) => return Moved::EndOfFile,
            Ok(n) => n,
            Err(Errno::EAGAIN | Errno::EINTR) => return Moved::Empty,
            // EIO and the like: there is nothing to be had from it, now or later.
            Err(_) => {
                pipe.leaving = true;
                return Moved::EndOfFile;
            }
        };
        buffer[..held].copy_from_slice(&pipe.held);
        let end = held + count;
        let Some(service) = self.services.get_mut(pipe.service as usize).and_then(Option::as_mut) else {
            return Moved::Empty;
        };
        service.observe(pipe, &buffer[held..end], &self.notify);
        let mut tools = Tools {
            log_dir: &self.log_dir,
            scratch: &mut self.scratch,
            notify: &self.notify,
            now: Instant::now(),
            wall_ms: millis(SystemTime::now()),
        };
        service.deliver(id, pipe, &buffer[..end], Urgency::Normal, &mut tools);
        if count >= STREAMING_READ && !pipe.grown && self.grown < GROWN_MAX {
            // Refused to a plain user who has many large ones: then it stays as it is, and is not asked again.
            pipe.grown = true;
            self.grown += 1;
            let _ = fcntl(&pipe.fd, FcntlArg::F_SETPIPE_SZ(PIPE_GROWN as i32));
        }
        Moved::Bytes { count, more: end == buffer.len() }
    }

    /// Another pipe of the service finished its line, or went: whoever waited for that is written now.
    fn release_waiting(&mut self, slot: u32) {
        if let Some(service) = self.service(slot) {
            service.waiting = false;
        }
        let waiting: Vec<PipeId> =
            self.pipes.iter().filter(|(_, p)| p.service == slot && !p.held.is_empty()).map(|(id, _)| *id).collect();
        for id in waiting {
            if let Some(mut pipe) = self.pipes.remove(&id) {
                self.release_held(id, &mut pipe, Urgency::Normal);
                self.arm(id, &mut pipe);
                let stream = pipe.stream;
                self.pipes.insert(id, pipe);
                self.after(slot, stream);
            }
        }
    }

    fn close(&mut self, id: PipeId, mut pipe: Pipe) {
        if !pipe.held.is_empty() {
            self.release_held(id, &mut pipe, Urgency::Overdue);
        }
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
