//! Workers, and what is left of them.

use super::Kept;
use crate::core::{self, Exit, Fate, GenerationId, WorkerId, WorkerState};
use crate::daemon::contain::LEFT_LIMIT;
use crate::daemon::host::Host;
use crate::daemon::state::records::{ProcessRecord, kept};
use crate::daemon::successor::Main;
use crate::daemon::unit::Process;
use crate::daemon::{launch, logs, token, workers};
use crate::sys::poll::Interest;
use crate::sys::process::{self, ExitStatus, Identity, PidFd};
use crate::sys::socket::NotifySocket;
use crate::sys::worker::{Below, Containment, Worker};
use crate::sys::{fifo, stub};
use std::cell::OnceCell;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// For a stub to answer; it has nothing else to do.
const STUB_ANSWERS: Duration = Duration::from_secs(2);

/// What there is of a recorded worker.
enum Remains {
    Worker(Worker),
    /// The process that svd had started has ended, as the stub knows; others are left.
    Others(Worker, Option<ExitStatus>),
    /// How its stub has ended, if that was just seen.
    Nothing(Option<ExitStatus>),
}

impl Host {
    /// The processes of a recorded worker, as far as they can be told; to look at, not to signal.
    pub(super) fn remaining(&self, record: &ProcessRecord) -> Vec<i32> {
        if let Some(stub) = record.stub.filter(|s| s.is(process::start_time(s.pid))) {
            return process::descendants(stub.pid);
        }
        let Containment::Cgroup(tree) = &self.containment else { return Vec::new() };
        let group = record.group.as_deref().and_then(|name| tree.existing_group(name));
        group.and_then(|group| group.procs().ok()).unwrap_or_default()
    }

    fn look_for(&mut self, record: &ProcessRecord, guardian: Option<i32>) -> Remains {
        if let Some(stub) = record.stub {
            return self.look_below(stub, record);
        }
        match (&self.containment, record.group.as_deref()) {
            (Containment::Cgroup(tree), Some(name)) => {
                let Some(group) = tree.existing_group(name) else { return Remains::Nothing(None) };
                let started = record.started;
                if let Some(worker) = started.and_then(|i| Worker::adopt(group.clone(), i, guardian)) {
                    return Remains::Worker(worker);
                }
                match Worker::adopt_rest(group) {
                    Ok(Some(worker)) => Remains::Others(worker, None),
                    Ok(None) => Remains::Nothing(None),
                    Err(e) => {
                        let why = crate::sys::io_text(&e);
                        self.warn(None, &format!("cannot look for what is left of a worker: {why}"));
                        Remains::Nothing(None)
                    }
                }
            }
            // It was in a control group, and now there are none; or its stub was killed.
            (Containment::Stub(_), _) | (Containment::Cgroup(_), None) => self.look_for_one(record, None),
        }
    }

    fn look_below(&mut self, stub: Identity, record: &ProcessRecord) -> Remains {
        let paths = &self.around.paths;
        let file = record.group.as_deref().unwrap_or_default();
        let reached = stub::Place::open(&paths.run, &paths.stubs())
            .and_then(|place| Worker::adopt_below_stub(&place, file, stub, STUB_ANSWERS));
        match reached {
            Ok(Below::Worker(worker)) => Remains::Worker(worker),
            Ok(Below::Others(worker, exit)) => Remains::Others(worker, Some(exit)),
            Ok(Below::Nothing(exit)) => self.look_for_one(record, exit),
            Err(e) => {
                let why = crate::sys::io_text(&e);
                let service = record.generation.service;
                let text = format!("a worker cannot be taken over, and is ended: its stub cannot be reached: {why}");
                self.warn(Some(service), &text);
                if let Err(e) = stub::end(stub, LEFT_LIMIT) {
                    let text = format!("the stub {} of that worker cannot be ended: {}", stub.pid, e.desc());
                    self.warn(Some(service), &text);
                }
                Remains::Nothing(None)
            }
        }
    }

    /// The one process that is known by number and start time, where nothing keeps it and its descendants together.
    fn look_for_one(&mut self, record: &ProcessRecord, stub: Option<ExitStatus>) -> Remains {
        let Some(worker) = record.started.and_then(Worker::adopt_alone) else {
            return Remains::Nothing(stub);
        };
        let text = "nothing keeps its processes together any more: those that leave the worker are not found";
        self.warn(Some(record.generation.service), text);
        Remains::Worker(worker)
    }

    /// How a worker has ended that is not there any more. `stub`: how its stub was seen to end.
    fn exit_of_gone(
        id: WorkerId,
        record: &ProcessRecord,
        which: Option<Identity>,
        stub: Option<ExitStatus>,
        kept: &mut Kept,
    ) -> Exit {
        let end = kept.descriptors.get(kept::of_worker(id, kept::END).as_str());
        let end = end.filter(|_| record.started == which).and_then(|fd| fd.try_clone().ok());
        let of_kernel = |i: Identity| PidFd::from_parts(i.pid, end?).any_exit();
        let mut told = |i: Identity| {
            // Its start time was not to be read.
            let unsure = Identity { start_time: 0, ..i };
            kept.exits.remove(&i).or_else(|| kept.exits.remove(&unsure))
        };
        let status = which.and_then(|i| told(i).or_else(|| of_kernel(i)));
        // A stub ends as its worker.
        let of_stub = |known: Identity| {
            let same = known.is(process::start_time(known.pid));
            let zombie = || PidFd::open(known.pid).ok().filter(|_| same)?.any_exit();
            told(known).or(stub).or_else(zombie)
        };
        let of_stub = record.stub.filter(|_| record.named.is_none() && !record.named_ended).and_then(of_stub);
        status.or(of_stub).map_or(Exit::Unknown, workers::exit_of)
    }

    pub(super) fn take_worker(&mut self, known: &core::Worker, record: &ProcessRecord, kept: &mut Kept) -> Fate {
        let (id, state, ended) = (known.id, known.state, known.has_ended());
        let (worker, started_ended, told) = match self.look_for(record, kept.guardian) {
            Remains::Worker(worker) => (worker, false, None),
            Remains::Others(worker, told) => (worker, true, told),
            Remains::Nothing(stub) => {
                let exit = Host::exit_of_gone(id, record, record.started, stub, kept);
                return Fate::Ended { exit, leftovers: false };
            }
        };
        let named = record.named.and_then(|i| {
            let pidfd = PidFd::open(i.pid).ok()?;
            (i.is(process::start_time(i.pid)) && worker.contains(i.pid)).then_some(pidfd)
        });
        let main = match (named, record.named, record.named_ended) {
            (Some(pidfd), ..) => Main::Named(pidfd),
            (None, Some(_), _) | (None, None, true) => Main::Ended,
            (None, None, false) => Main::Started,
        };
        let over = match &main {
            Main::Named(_) => false,
            Main::Ended => true,
            Main::Started => started_ended,
        };
        let ready = !matches!(state, WorkerState::Spawning | WorkerState::Booting { .. });
        self.insert_worker(id, record, worker, main, started_ended, ready, kept);
        if over && !ended {
            let which = record.named.or(record.started);
            let told = told.filter(|_| record.named.is_none()).map(workers::exit_of);
            let exit = told.unwrap_or_else(|| Host::exit_of_gone(id, record, which, None, kept));
            Fate::Ended { exit, leftovers: true }
        } else {
            Fate::Runs
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the members of a process that the record does not have")]
    fn insert_worker(
        &mut self,
        id: WorkerId,
        record: &ProcessRecord,
        mut worker: Worker,
        main: Main,
        started_ended: bool,
        ready: bool,
        kept: &mut Kept,
    ) {
        if let Some((fd, interest)) = worker.watch()
            && let Err(e) = self.poll.add(fd, interest, token::of_worker(id))
        {
            self.warn(None, &format!("a worker cannot be watched and is killed: {}", e.desc()));
            let _ = worker.kill_tree();
        }
        if let Main::Named(pidfd) = &main {
            // The group's end follows in any case.
            let _ = self.poll.add(pidfd, Interest::Read, token::of_main(id));
        }
        let mut take = |what: &str| kept.descriptors.remove(kept::of_worker(id, what).as_str());
        let notify = take("notify").map(NotifySocket::from_fd);
        if let Some(socket) = &notify
            && let Err(e) = self.poll.add(socket, Interest::Read, token::of_notify(id))
        {
            tracing::warn!("a notify socket cannot be watched: {}", e.desc());
        }
        let ready_fd = take("ready").map(File::from);
        let readers = workers::PIPES.map(&mut take);
        let end_is_kept = take(kept::END).is_some();
        let process = Process {
            worker,
            generation: record.generation,
            slot: record.slot,
            pipes: [None, None],
            needs: Vec::new(),
            ready,
            notify: notify.map(Box::new),
            ready_fd,
            watch: None,
            probes: Vec::new(),
            status: record.status.clone(),
            main,
            identity: record.started.map(OnceCell::from).unwrap_or_default(),
            numbers: self.numbers_of(record.generation),
            behind: OnceCell::new(),
            started_ended,
            signalled: record.signalled,
            announced: None,
            watchdog: None,
            watchdog_every: record.watchdog_every,
        };
        self.workers.insert(id, Box::new(process));
        self.watch_oom(id);
        if !ready {
            // Before anything is read: the line may be in the pipe.
            self.begin_log_watch(id);
        }
        let pipes = self.take_pipes(id, record.generation, record.slot, readers);
        if let Some(process) = self.workers.get_mut(&id) {
            process.pipes = pipes;
        }
        if !end_is_kept {
            // The guardian is a new one: the one before it was killed together with svd.
            self.keep_worker(id);
        }
        if ready {
            self.feed_watchdog(id);
        }
    }

    /// The worker holds both ends of its pipes, so that they are where they were, with what is in them.
    fn take_pipes(
        &mut self,
        id: WorkerId,
        generation: GenerationId,
        slot: u32,
        readers: [Option<OwnedFd>; 2],
    ) -> [Option<logs::PipeId>; 2] {
        let mut pipes = [None, None];
        let Some(spec) = self.generations.get(&generation).map(|g| Arc::clone(&g.plan.spec)) else { return pipes };
        if !spec.logs.capture {
            return pipes;
        }
        for ((at, (name, stream)), reader) in pipes.iter_mut().zip(launch::streams(&spec)).zip(readers) {
            let path = self.pipe_path(&spec.name, slot, id, name);
            let reader = match reader {
                Some(reader) => reader,
                None => match fifo::open_reader(&path) {
                    Ok(file) => file.into(),
                    Err(e) => {
                        let why = crate::sys::io_text(&e);
                        self.warn(None, &format!("output is lost: cannot open {}: {why}", path.display()));
                        continue;
                    }
                },
            };
            let origin = logs::Attach {
                service: Arc::clone(&spec.name),
                generation: generation.number,
                worker: slot,
                stream: *stream,
                adopted: true,
            };
            match self.logs.attach(origin, reader) {
                Ok(pipe) => *at = Some(pipe),
                Err(e) => self.warn(None, &format!("output is lost: {e}")),
            }
        }
        pipes
    }
}
