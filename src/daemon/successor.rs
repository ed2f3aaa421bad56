//! The main process of a worker: the one that svd has started, or the one that it names in its place by `MAINPID=`.
//!
//! As with systemd's `Type=notify`, the main process gets the signals, and its end is the worker's end; what is left then
//! is told to stop. The process that svd has started is watched all the same: it may end (a server that goes into the
//! background) without the service ending with it.

use super::host::Host;
use super::numbers::Numbers;
use super::state::Key;
use super::token;
use super::unit::Process;
use crate::core::{Event, WorkerId};
use crate::sys::poll::Interest;
use crate::sys::process::{ExitStatus, PidFd};
use nix::errno::Errno;

/// Who the main process is.
#[derive(Debug)]
pub enum Main {
    /// The one that svd has started.
    Started,
    /// Another one of the worker's. Opened first and looked for among the worker's processes then: it is certain (I4).
    Named(PidFd),
    /// Another one, which has ended; the core knows.
    Ended,
}

impl Process {
    /// Of the main process, for people.
    pub fn pid(&self) -> Option<i32> {
        match &self.main {
            Main::Started => self.program(),
            Main::Named(pidfd) => Some(pidfd.pid()),
            Main::Ended => None,
        }
    }

    /// Signals the main process; `false` if it has ended.
    pub fn signal(&mut self, signal: i32) -> Result<bool, Errno> {
        match &self.main {
            Main::Started => self.worker.signal(signal),
            Main::Named(pidfd) => pidfd.signal(signal),
            Main::Ended => Ok(false),
        }
    }

    /// Is this process, which sent a notification, one of the worker's? One that has ended since may be asked for only
    /// as long as nobody else can have its number.
    pub fn is_own(&self, pid: i32) -> bool {
        let main = matches!(&self.main, Main::Named(pidfd) if pidfd.pid() == pid && pidfd.signal(0) == Ok(true));
        let started = !self.started_ended && self.worker.pid() == Some(pid);
        main || started || self.worker.contains(pid)
    }

    /// Is the zombie of that number the main process, whose end [`Host::handle_main`] tells?
    pub fn reaps_main(&self, pid: i32) -> bool {
        matches!(&self.main, Main::Named(pidfd) if pidfd.pid() == pid && pidfd.has_ended())
    }
}

impl Host {
    /// `MAINPID=`, sent by a process of the worker's.
    pub fn name_main(&mut self, id: WorkerId, pid: i32) {
        let Some(process) = self.workers.get_mut(&id) else { return };
        if process.numbers == Numbers::Own {
            return self.name_main_within(id, pid);
        }
        if process.pid() == Some(pid) || matches!(process.main, Main::Ended) {
            return;
        }
        if process.worker.pid() == Some(pid) && !process.started_ended {
            return self.replace_main(id, Main::Started);
        }
        // In this order: had the number changed hands in between, the process that was opened would have ended.
        let opened = PidFd::open(pid).ok().filter(|pidfd| process.worker.contains(pid) && !pidfd.has_ended());
        let Some(pidfd) = opened else {
            self.foreign_notifications += 1;
            return tracing::debug!("MAINPID={pid} is ignored: not of this service");
        };
        if let Err(e) = self.poll.add(&pidfd, Interest::Read, token::of_main(id)) {
            let service = process.generation.service;
            return self.warn(Some(service), &format!("its main process {pid} cannot be watched: {}", e.desc()));
        }
        self.replace_main(id, Main::Named(pidfd));
    }

    fn replace_main(&mut self, id: WorkerId, main: Main) {
        self.state.mark(Key::Process(id));
        let Some(process) = self.workers.get_mut(&id) else { return };
        if let Main::Named(old) = std::mem::replace(&mut process.main, main) {
            let _ = self.poll.delete(&old);
        }
    }

    /// A named main process has ended: so has the worker, and what is left of it is told to stop.
    pub fn handle_main(&mut self, id: WorkerId) {
        // It may have named another one just before.
        self.drain_notify(id);
        if self.workers.get(&id).is_some_and(|p| matches!(&p.main, Main::Named(pidfd) if pidfd.has_ended())) {
            // The process that svd has started, or the group's own end, follows in any case.
            self.end_main(id, true);
        }
    }

    fn end_main(&mut self, id: WorkerId, leftovers: bool) {
        self.record_until_told(id);
        let Some(process) = self.workers.get_mut(&id) else { return };
        let Main::Named(pidfd) = std::mem::replace(&mut process.main, Main::Ended) else { return };
        let _ = self.poll.delete(&pidfd);
        let status = if pidfd.has_ended() {
            pidfd.any_exit().unwrap_or(ExitStatus::Unknown)
        } else {
            // Nothing can hold it any more (its stub was killed), so it must not go on.
            let _ = pidfd.signal(libc::SIGKILL);
            ExitStatus::Unknown
        };
        self.ended(id, status, leftovers);
    }

    /// The process that svd has started has ended.
    pub fn started_ended(&mut self, id: WorkerId, status: ExitStatus, leftovers: bool) {
        if leftovers {
            // A server that goes into the background says who goes on, and the first process ends at once.
            self.drain_notify(id);
        }
        if self.workers.get(&id).is_some_and(|p| matches!(p.main, Main::Started)) {
            self.record_until_told(id);
        }
        let Some(process) = self.workers.get_mut(&id) else { return };
        process.started_ended = true;
        self.state.mark(Key::Process(id));
        match &process.main {
            Main::Started => self.ended(id, status, leftovers),
            Main::Named(pidfd) if leftovers && !pidfd.has_ended() => {
                let text = format!("goes on as process {}; the process that was started {status}", pidfd.pid());
                let service = process.generation.service;
                self.info(Some(service), &text);
            }
            Main::Named(_) => self.end_main(id, leftovers),
            Main::Ended if leftovers => {}
            Main::Ended => self.tell(Event::Empty { worker: id }),
        }
    }

    /// Nothing is left of a worker whose first process had ended before.
    pub fn worker_empty(&mut self, id: WorkerId) {
        if self.workers.get(&id).is_some_and(|p| matches!(p.main, Main::Named(_))) {
            return self.end_main(id, false);
        }
        self.tell(Event::Empty { worker: id });
    }
}
