//! Workers: spawned, watched, signalled, ended.

use super::host::{Alarm, Host};
use super::launch::{self, Own};
use super::logs::{Attach, Stream};
use super::state::Key;
use super::state::records::kept;
use super::successor::Main;
use super::token::{self, Token};
use super::unit::{Need, Process};
use crate::api::Request;
use crate::core::{Event, Exit, GenerationId, WorkerId};
use crate::sys::poll::{Interest, Poll};
use crate::sys::process::{self, ExitStatus};
use crate::sys::spawn::{Source, c_path};
use crate::sys::worker::{Tells, Worker, WorkerEvent};
use crate::sys::{fifo, socket};
use nix::errno::Errno;
use std::cell::OnceCell;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The names of a worker's pipes at the guardian.
pub const PIPES: [&str; 2] = ["pipe0", "pipe1"];

/// For the guardian to say how an adopted worker has ended.
const GUARDIAN_TELLS: Duration = Duration::from_secs(2);
/// For whoever reaps it, where that is not the guardian.
const KERNEL_TELLS: Duration = Duration::from_millis(100);

/// Room in a log pipe: what a service may write while svd is away.
const PIPE_BYTES: usize = 1 << 20;

impl Host {
    /// Spawns a worker and sees to its output and readiness.
    ///
    /// # Errors
    /// A sentence: the step that failed, on what, why.
    pub fn spawn(&mut self, id: WorkerId, generation: GenerationId, slot: u32) -> Result<(), String> {
        let result = self.try_spawn(id, generation, slot);
        if result.is_err()
            && let Some(name) = self.units.get(&generation.service).map(|u| Arc::clone(&u.name))
        {
            // One that fails again and again must not fill the run directory.
            self.remove_files(&name, slot, id);
        }
        result
    }

    fn try_spawn(&mut self, id: WorkerId, generation: GenerationId, slot: u32) -> Result<(), String> {
        self.find_sockets(generation)?;
        let output = self.make_pipes(id, generation, slot)?;
        let notify = self.make_notify(id, generation)?;
        let (ready_ours, ready_theirs) = self.make_ready(generation)?;
        let unit = self.units.get(&generation.service);
        let made = self.generations.get(&generation).ok_or("its generation is gone")?;
        let own = Own {
            slot,
            number: Some(id.0),
            scaled: self.workers_of_canary(generation).or_else(|| unit.and_then(|u| u.scaled)),
            output: output.as_ref().map(|o| (&o.stdout.0, &o.stderr.as_ref().unwrap_or(&o.stdout).0)),
            notify: notify.as_ref().map(|(path, _)| &**path),
            ready: ready_theirs,
        };
        let mut prepared = launch::prepare(made, &self.around, &own)?;
        let name = unit.map(|u| Arc::clone(&u.name)).unwrap_or_default();
        let group = format!("{name}.{}.{slot}.{}", generation.number, id.0);
        prepared.limited.together = super::limits::together(&name, generation, &self.around.features);
        let mut worker =
            Worker::start(&self.spawner, &prepared, &self.containment, &group).map_err(|e| e.to_string())?;
        if let Some((fd, interest)) = worker.watch()
            && let Err(e) = self.poll.add(fd, interest, token::of_worker(id))
        {
            let _ = worker.kill_tree();
            return Err(format!("cannot watch the new process: {}", e.desc()));
        }
        if let Some(output) = &output {
            // Else what is in them would go with the worker, were svd dead at that moment.
            self.keeper.store(&kept::of_worker(id, PIPES[0]), output.stdout.1.as_fd());
            if let Some((_, reader)) = &output.stderr {
                self.keeper.store(&kept::of_worker(id, PIPES[1]), reader.as_fd());
            }
        }
        let pipes = self.attach(&name, generation, slot, output);
        let process = Process {
            worker,
            generation,
            slot,
            pipes,
            needs: Vec::new(),
            ready: false,
            notify: notify.map(|(_, socket)| Box::new(socket)),
            ready_fd: ready_ours,
            watch: None,
            probes: Vec::new(),
            status: None,
            main: Main::Started,
            identity: OnceCell::new(),
            numbers: self.numbers_of(generation),
            behind: OnceCell::new(),
            started_ended: false,
            signalled: None,
            announced: None,
            watchdog: None,
            watchdog_every: None,
        };
        self.workers.insert(id, Box::new(process));
        // Once that is written the next svd takes it over; if this one dies before, it is ended.
        self.state.mark(Key::Process(id));
        self.keep_worker(id);
        self.store.spawned(id.0);
        self.watch_oom(id);
        self.begin_readiness(id);
        Ok(())
    }

    /// What the next svd could not open again.
    pub fn keep_worker(&mut self, id: WorkerId) {
        let Some(process) = self.workers.get(&id) else { return };
        let notify = process.notify.as_ref().map(AsFd::as_fd);
        let ready = process.ready_fd.as_ref().map(AsFd::as_fd);
        for (what, fd) in [("notify", notify), ("ready", ready), (kept::END, process.worker.process())] {
            if let Some(fd) = fd {
                self.keeper.store(&kept::of_worker(id, what), fd);
            }
        }
    }

    fn make_pipes(&self, id: WorkerId, generation: GenerationId, slot: u32) -> Result<Option<Pipes>, String> {
        let made = self.generations.get(&generation).ok_or("its generation is gone")?;
        let spec = &made.plan.spec;
        if !spec.logs.capture {
            return Ok(None);
        }
        let owner = made.plan.run_as.ids.as_ref().map(|ids| (ids.uid, ids.gid));
        let pipe = |stream: &str| make_pipe(&self.pipe_path(&spec.name, slot, id, stream), owner);
        let joined = launch::joined(spec);
        let stdout = pipe(if joined { "output" } else { "stdout" })?;
        let stderr = if joined { None } else { Some(pipe("stderr")?) };
        Ok(Some(Pipes { stdout, stderr }))
    }

    pub fn pipe_path(&self, name: &str, slot: u32, id: WorkerId, stream: &str) -> PathBuf {
        self.around.paths.pipes().join(format!("{name}.{slot}.{}.{stream}", id.0))
    }

    fn attach(
        &mut self,
        name: &Arc<str>,
        generation: GenerationId,
        slot: u32,
        output: Option<Pipes>,
    ) -> [Option<super::logs::PipeId>; 2] {
        let mut pipes = [None, None];
        let Some(output) = output else { return pipes };
        let joined = output.stderr.is_none();
        let first = if joined { Stream::Joined } else { Stream::Stdout };
        let both = [(first, Some(output.stdout)), (Stream::Stderr, output.stderr)];
        for (at, (stream, pipe)) in pipes.iter_mut().zip(both) {
            let Some((_, reader)) = pipe else { continue };
            let service = Arc::clone(name);
            let origin = Attach { service, generation: generation.number, worker: slot, stream, adopted: false };
            match self.logs.attach(origin, reader) {
                Ok(pipe) => *at = Some(pipe),
                Err(e) => {
                    let text = format!("the output of generation {} cannot be kept: {e}", generation.number);
                    self.warn(Some(generation.service), &text);
                }
            }
        }
        pipes
    }

    fn make_notify(
        &self,
        id: WorkerId,
        generation: GenerationId,
    ) -> Result<Option<(PathBuf, socket::NotifySocket)>, String> {
        let made = self.generations.get(&generation).ok_or("its generation is gone")?;
        if !launch::notifies(&made.plan.spec) {
            return Ok(None);
        }
        let path = self.notify_path(id);
        let failed = |e: std::io::Error| {
            format!("cannot make the notify socket {}: {}", path.display(), crate::sys::io_text(&e))
        };
        // Of all whom the file lets send, only the service's own processes are heard.
        let owner = made.plan.run_as.ids.as_ref().map(|ids| ids.uid);
        let socket = socket::NotifySocket::bind(&path, owner).map_err(|e| e.to_string())?;
        self.poll.add(&socket, Interest::Read, token::of_notify(id)).map_err(|e| failed(e.into()))?;
        Ok(Some((path, socket)))
    }

    /// The readiness descriptor: our end, theirs.
    fn make_ready(&self, generation: GenerationId) -> Result<(Option<File>, Option<Arc<OwnedFd>>), String> {
        let made = self.generations.get(&generation).ok_or("its generation is gone")?;
        if !made.plan.spec.ready.by.contains(&crate::config::spec::ReadyBy::Descriptor) {
            return Ok((None, None));
        }
        let (ours, theirs) = fifo::pipe().map_err(|e| format!("cannot make a pipe: {}", crate::sys::io_text(&e)))?;
        Ok((Some(File::from(ours)), Some(Arc::new(theirs))))
    }

    /// For messages.
    pub fn describe(&self, id: WorkerId) -> String {
        let Some(process) = self.workers.get(&id) else { return format!("worker {}", id.0) };
        let name = self.units.get(&process.generation.service).map_or("", |u| &u.name);
        format!("{name} (generation {}, worker {})", process.generation.number, process.slot)
    }

    /// Why a program never ran; what it was prepared with is made once more for that.
    fn describe_failure(&self, id: WorkerId, failure: crate::sys::spawn::ExecFailure) -> String {
        let process = self.workers.get(&id);
        let Some((process, made)) = process.and_then(|p| Some((p, self.generations.get(&p.generation)?))) else {
            return "could not be started".to_owned();
        };
        let own = Own { slot: process.slot, number: None, scaled: None, output: None, notify: None, ready: None };
        launch::prepare(made, &self.around, &own).map_or_else(|why| why, |prepared| failure.describe(&prepared))
    }

    pub fn signal_worker(&mut self, id: WorkerId, signal: i32) {
        let Some(process) = self.workers.get_mut(&id) else { return };
        if let Err(e) = process.signal(signal) {
            let text = format!("cannot send signal {signal} to {}: {}", self.describe(id), e.desc());
            self.warn(None, &text);
        }
    }

    /// Something of the epoll set is ready.
    pub fn handle_descriptor(&mut self, token: u64) {
        match token::parse(token) {
            Some(Token::Guardian) => self.handle_guardian(),
            Some(Token::Signals) => self.handle_signals(),
            Some(Token::Worker(id)) => self.handle_worker(id),
            Some(Token::Notify(id)) => self.handle_notify(id),
            Some(Token::Ready(id)) => self.handle_ready_descriptor(id),
            Some(Token::Report(id)) => self.handle_report(id),
            Some(Token::Memory(id)) => self.handle_oom(id),
            Some(Token::Check(number)) => self.handle_check(number),
            Some(Token::Main(id)) => self.handle_main(id),
            Some(Token::Statsd(network)) => {
                self.handle_statsd(network);
            }
            None => {}
        }
    }

    pub fn handle_worker(&mut self, id: WorkerId) {
        loop {
            let Some(process) = self.workers.get_mut(&id) else { return };
            match process.worker.handle_ready() {
                Ok(Some(event)) => self.worker_event(id, event),
                Ok(None) => {
                    self.await_exit(id);
                    break;
                }
                Err(e) => {
                    let text = format!("cannot learn about {}: {}", self.describe(id), crate::sys::io_text(&e));
                    self.warn(None, &text);
                    break;
                }
            }
        }
    }

    /// An adopted worker has ended, and somebody else hears first how: until then it would keep the loop busy.
    fn await_exit(&mut self, id: WorkerId) {
        let Some(process) = self.workers.get(&id) else { return };
        let limit = match process.worker.awaits_exit() {
            Some(Tells::Parent) => GUARDIAN_TELLS,
            Some(Tells::Kernel) => KERNEL_TELLS,
            Some(Tells::Nobody) | None => return,
        };
        if let Some((fd, _)) = process.worker.watch() {
            let _ = self.poll.delete(fd);
        }
        let at = self.now() + limit;
        self.alarms.insert((at, id, Alarm::Exit));
    }

    fn worker_event(&mut self, id: WorkerId, event: WorkerEvent) {
        match event {
            // Its number is part of the record.
            WorkerEvent::Started(_) => self.state.mark(Key::Process(id)),
            WorkerEvent::StubLost => {
                self.state.mark(Key::Process(id));
                self.rewatch(id);
                let text = "its stub was killed: processes that leave the worker are not found any more";
                let service = self.workers.get(&id).map(|p| p.generation.service);
                self.warn(service, text);
            }
            WorkerEvent::Exited { status, leftovers } => {
                let ended = self.workers.get_mut(&id).and_then(|p| p.worker.take_unreaped());
                self.to_reap.extend(ended);
                self.started_ended(id, status, leftovers);
                if leftovers {
                    self.rewatch(id);
                } else {
                    self.release(id);
                }
            }
            WorkerEvent::Empty => {
                let ended = self.workers.get_mut(&id).and_then(|p| p.worker.take_unreaped());
                self.to_reap.extend(ended);
                self.worker_empty(id);
                self.release(id);
            }
        }
    }

    /// What to wait for has changed.
    fn rewatch(&mut self, id: WorkerId) {
        let Some(process) = self.workers.get(&id) else { return };
        if let Err(e) = watch_again(&self.poll, &process.worker, token::of_worker(id)) {
            let text = format!("cannot watch what is left of {}: {}", self.describe(id), e.desc());
            self.warn(None, &text);
        }
    }

    /// The main process has ended, and with it the worker.
    pub fn ended(&mut self, id: WorkerId, status: ExitStatus, leftovers: bool) {
        let Some(process) = self.workers.get_mut(&id) else { return };
        process.probes = Vec::new();
        process.needs = Vec::new();
        let generation = process.generation;
        self.scaling_ended(generation);
        self.requests_died(generation, id);
        let Some(process) = self.workers.get_mut(&id) else { return };
        // It never ran: the step that failed says more than an exit code.
        let never_ran = status == ExitStatus::Code(127);
        let failure = process.worker.exec_failure().filter(|_| never_ran);
        let entrance = process.worker.entrance_failure().filter(|_| never_ran);
        let reason = entrance.or_else(|| failure.map(|failure| self.describe_failure(id, failure)));
        let reason = reason.or_else(|| self.killed_for_memory(id, status));
        self.tell(Event::Exited { worker: id, exit: exit_of(status), leftovers, reason });
    }

    /// Nothing of a worker is left: closes what was open for it.
    fn release(&mut self, id: WorkerId) {
        let Some(process) = self.workers.remove(&id) else { return };
        self.watch_no_longer(&process);
        self.state.mark_end(Key::Process(id), self.machine.is_shutting_down());
        self.alarms.retain(|(_, worker, _)| *worker != id);
        for (n, pipe) in process.pipes.iter().enumerate().filter_map(|(n, pipe)| Some((n, (*pipe)?))) {
            self.let_worker_go(id, PIPES[n]);
            // Best effort: the log thread closes it at its end of file as well.
            let _ = self.logs.detach(pipe);
        }
        let (notify, ready) = (process.notify.is_some(), process.ready_fd.is_some());
        for (what, there) in [("notify", notify), ("ready", ready), (kept::END, true)] {
            if there {
                self.let_worker_go(id, what);
            }
        }
        if process.pipes == [None, None] && process.notify.is_none() {
            return;
        }
        let Some(name) = self.units.get(&process.generation.service).map(|u| Arc::clone(&u.name)) else { return };
        self.remove_files(&name, process.slot, id);
    }

    /// Closing a descriptor is not enough as long as the guardian holds a copy: what is ready for ever then (a process that has
    /// ended) would keep the loop busy.
    fn watch_no_longer(&self, process: &Process) {
        let notify = process.notify.as_ref().map(AsFd::as_fd);
        let ready = process.ready_fd.as_ref().map(AsFd::as_fd);
        for fd in [process.worker.process(), notify, ready].into_iter().flatten() {
            // What was never added, or has left already, is no fault.
            let _ = self.poll.delete(fd);
        }
    }

    /// Pipes and notify socket, as far as there are any. What is in a pipe is read through the log thread's descriptor.
    fn remove_files(&self, name: &str, slot: u32, id: WorkerId) {
        for stream in ["output", "stdout", "stderr"] {
            let _ = std::fs::remove_file(self.pipe_path(name, slot, id, stream));
        }
        let _ = std::fs::remove_file(self.notify_path(id));
    }

    /// Not to be guessed: the directory cannot be listed, and anybody may write to the socket.
    fn notify_path(&self, id: WorkerId) -> PathBuf {
        self.around.paths.notify().join(format!("{}.{:016x}", id.0, self.secret.hash_one(id.0)))
    }

    fn handle_signals(&mut self) {
        while let Ok(Some((received, _))) = self.signals.next() {
            use crate::sys::poll::Received;
            match received {
                Received::Terminate | Received::Interrupt | Received::Quit => {
                    if !self.machine.is_shutting_down() {
                        self.obey_signal(Request::Shutdown { force: true }, received.signal().as_str());
                    }
                }
                Received::Hangup => self.obey_signal(Request::Update { dry_run: false }, "SIGHUP"),
                Received::User1 => {}
                Received::User2 => {
                    // A full queue means that the log thread hangs; it says so itself.
                    let _ = self.logs.reopen();
                    self.own_messages.reopen();
                }
                Received::Child => self.reap = true,
                Received::Pipe => {}
            }
        }
    }

    /// Reaps what nobody tracks: orphans that came to svd, the sub-reaper. What is tracked is left to its pidfd.
    pub fn reap_orphans(&mut self) {
        while let Some(pid) = process::peek_any() {
            let tracked = self.workers.iter().find(|(_, p)| p.worker.reaps(pid)).map(|(id, _)| *id);
            if let Some(id) = tracked {
                self.handle_worker(id);
                self.deliver();
                if process::peek_any() == Some(pid) {
                    return;
                }
                continue;
            }
            let main = self.workers.iter().find(|(_, p)| p.reaps_main(pid)).map(|(id, _)| *id);
            if let Some(id) = main {
                // It came to svd when its parent ended. Its status is read, then it is an orphan as any.
                self.handle_main(id);
                self.deliver();
            }
            let check = self.checks.running.iter().find(|(_, c)| c.worker.reaps(pid)).map(|(n, _)| *n);
            if let Some(number) = check {
                self.handle_check(number);
                if process::peek_any() == Some(pid) {
                    return;
                }
                continue;
            }
            if process::reap(pid).is_err() {
                return;
            }
        }
    }

    /// Told by a probe, a message, a descriptor: one thing less to wait for.
    pub fn satisfied(&mut self, id: WorkerId, need: Need) {
        let Some(process) = self.workers.get_mut(&id) else { return };
        let before = process.needs.len();
        process.needs.retain(|other| *other != need);
        if process.needs.is_empty() && before > 0 && !process.ready {
            process.ready = true;
            (process.needs, process.probes) = (Vec::new(), Vec::new());
            self.feed_watchdog(id);
            self.tell(Event::Ready { worker: id });
        }
    }

    pub fn handle_alarm(&mut self, id: WorkerId, alarm: Alarm) {
        match alarm {
            Alarm::Exit => {
                if let Some(process) = self.workers.get_mut(&id) {
                    process.worker.wait_no_longer();
                    self.handle_worker(id);
                }
            }
            Alarm::Delay => self.satisfied(id, Need::Delay),
            Alarm::Watchdog => self.watchdog_due(id),
            Alarm::OwnEnd => self.own_end_late(id),
            Alarm::Scale => self.scale_late(id),
        }
    }
}

/// Watches what a worker waits for now, instead of what it waited for before its last event.
///
/// # Errors
/// The kernel refuses; then nothing tells of its next event.
pub fn watch_again(poll: &Poll, worker: &Worker, token: u64) -> Result<(), Errno> {
    if let Some(ended) = worker.watched_before() {
        // A reaped process stays readable: left in the set, it would keep the loop busy for ever.
        let _ = poll.delete(ended);
    }
    let Some((fd, interest)) = worker.watch() else { return Ok(()) };
    poll.modify(fd, interest, token).or_else(|_| poll.add(fd, interest, token))
}

/// For each: what the worker gets, and svd's end.
struct Pipes {
    stdout: (Source, OwnedFd),
    stderr: Option<(Source, OwnedFd)>,
}

/// The worker holds both ends itself, so that it gets no SIGPIPE while svd is away.
fn make_pipe(path: &Path, owner: Option<(u32, u32)>) -> Result<(Source, OwnedFd), String> {
    let failed = |e: std::io::Error| match (owner, e.raw_os_error()) {
        (Some(_), Some(libc::EPERM)) => cannot_give(nix::unistd::geteuid().is_root()).to_owned(),
        _ => format!("cannot make the log pipe {}: {}", path.display(), crate::sys::io_text(&e)),
    };
    let (source, reader) = match fifo::create(path, owner) {
        Ok(()) => {
            let reader = fifo::open_reader(path).map_err(failed)?;
            let path = c_path(path).ok_or("the run directory's path has a NUL byte")?;
            (Source::Path { path, flags: libc::O_RDWR }, reader)
        }
        // A run directory that is full or read-only. The guardian keeps a copy, for the next svd.
        Err(named) => {
            let (both, reader) = fifo::without_name(owner).map_err(|_| failed(named))?;
            (Source::Fd(Arc::new(both)), reader)
        }
    };
    fifo::grow(&reader, PIPE_BYTES);
    Ok((source, reader.into()))
}

/// A worker's pipe cannot be made its user's.
fn cannot_give(root: bool) -> &'static str {
    if root {
        "svd runs as root, but may not give files to others (CAP_CHOWN): give its container that capability, or leave `user` \
         and `group` out"
    } else {
        "svd may not start processes as another user, for it does not run as root: leave `user` and `group` out, or start svd \
         as root"
    }
}

pub fn exit_of(status: ExitStatus) -> Exit {
    match status {
        ExitStatus::Code(code) => Exit::Code(code),
        ExitStatus::Signal { signal, .. } => Exit::Signal(signal),
        ExitStatus::Unknown => Exit::Unknown,
    }
}
