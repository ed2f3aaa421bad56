//! Taking over what an svd that was killed has left: from the state file, what the guardian has kept, and what still runs.

use super::host::Host;
use super::state::Key;
use super::state::file::{self, Entries};
use super::state::records::{GenerationRecord, GunicornRecord, Head, PlanRecord, ProcessRecord, UnitRecord, kept};
use super::successor::Main;
use super::token;
use super::unit::{Generation, Gunicorn, Plan, Process, Unit};
use super::{launch, logs, retake};
use crate::config::spec::Service;
use crate::core::{
    self, Action, Event, Exit, Fate, GenerationId, Machine, Saved, SavedPolicies, ServiceId, WorkerId, WorkerState,
};
use crate::kinds::counters;
use crate::sys::fifo;
use crate::sys::poll::Interest;
use crate::sys::process::{self, ExitStatus, Identity, PidFd};
use crate::sys::socket::{Gate, NotifySocket, SharedWords};
use crate::sys::worker::{Containment, Worker};
use serde::de::DeserializeOwned;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

/// What the guardian has kept.
#[derive(Default)]
pub struct Kept {
    pub descriptors: BTreeMap<Box<str>, OwnedFd>,
    /// Of children that ended while no svd was there.
    pub exits: BTreeMap<Identity, ExitStatus>,
    /// Its pid, if there is one: it will tell of its children that end from now on.
    pub guardian: Option<i32>,
    /// How often svd has died since the guardian began.
    pub deaths: u32,
    /// Why an older version of svd runs than the one that was to.
    pub fallback: Option<Box<str>>,
}

/// The state of an svd of this boot that did not end in order.
pub struct Found {
    head: Head,
    saved: BTreeMap<ServiceId, Saved>,
    specs: BTreeMap<ServiceId, Arc<Service>>,
    units: BTreeMap<ServiceId, UnitRecord>,
    plans: BTreeMap<GenerationId, PlanRecord<'static>>,
    generations: BTreeMap<GenerationId, GenerationRecord>,
    processes: BTreeMap<WorkerId, ProcessRecord>,
}

/// Looks for the state of an svd that was killed.
///
/// # Errors
/// A sentence: the file is there and of no use; it was set aside.
pub fn look(path: &Path) -> Result<Option<Found>, String> {
    let unusable = |why: &str| {
        let aside = path.with_extension("unreadable");
        let what = format!("{} cannot be used: {why}; what runs is ended and started anew", path.display());
        match std::fs::rename(path, &aside) {
            Ok(()) => format!("{what}. The file is kept as {}.", aside.display()),
            Err(e) => format!("{what}. It cannot be moved away either: {}.", crate::sys::io_text(&e)),
        }
    };
    match file::read(path) {
        Ok(None) => Ok(None),
        Ok(Some(Ok(entries))) => match Found::of(&entries) {
            Ok(found) => Ok(found.of_this_boot()),
            Err(why) => Err(unusable(&why)),
        },
        Ok(Some(Err(why))) => Err(unusable(&why.to_string())),
        Err(e) => Err(unusable(&crate::sys::io_text(&e))),
    }
}

/// Would this program understand the state that is there? Changes nothing.
///
/// # Errors
/// A sentence.
pub fn try_out(path: &Path) -> Result<(), String> {
    let why = match file::read(path) {
        Ok(Some(Ok(entries))) => match Found::of(&entries) {
            Ok(_) => return Ok(()),
            Err(why) => why,
        },
        Ok(Some(Err(why))) => why.to_string(),
        Ok(None) => "there is none".to_owned(),
        Err(e) => crate::sys::io_text(&e).to_string(),
    };
    Err(format!("{} cannot be used: {why}", path.display()))
}

impl Found {
    fn of(entries: &Entries) -> Result<Found, String> {
        fn value<T: DeserializeOwned>(key: &str, text: &serde_json::value::RawValue) -> Result<T, String> {
            serde_json::from_str(text.get()).map_err(|e| format!("{key}: {e}"))
        }
        let head = entries.get("head").ok_or("it has no head")?;
        let mut found = Found {
            head: value("head", head)?,
            saved: BTreeMap::new(),
            specs: BTreeMap::new(),
            units: BTreeMap::new(),
            plans: BTreeMap::new(),
            generations: BTreeMap::new(),
            processes: BTreeMap::new(),
        };
        let mut policies: BTreeMap<ServiceId, SavedPolicies> = BTreeMap::new();
        for (key, text) in entries {
            match Key::parse(key) {
                Some(Key::Machine(id)) => drop(found.saved.insert(id, value(key, text)?)),
                Some(Key::Policies(id)) => drop(policies.insert(id, value(key, text)?)),
                Some(Key::Spec(id)) => drop(found.specs.insert(id, value(key, text)?)),
                Some(Key::Unit(id)) => drop(found.units.insert(id, value(key, text)?)),
                Some(Key::Plan(id)) => drop(found.plans.insert(id, value(key, text)?)),
                Some(Key::Generation(id)) => drop(found.generations.insert(id, value(key, text)?)),
                Some(Key::Process(id)) => drop(found.processes.insert(id, value(key, text)?)),
                Some(Key::Head) | None => {}
            }
        }
        for (id, unit) in &mut found.units {
            if let Some(spec) = unit.spec.take() {
                found.specs.insert(*id, spec);
            }
        }
        // A service is written with its unit, in one piece.
        found.units.retain(|id, _| found.specs.contains_key(id));
        found.saved.retain(|id, saved| *id == saved.service().id && found.units.contains_key(id));
        for (id, saved) in &mut found.saved {
            saved.give_policies(policies.get(id));
        }
        Ok(found)
    }

    fn of_this_boot(self) -> Option<Found> {
        process::boot_id().is_ok_and(|boot| *boot == *self.head.boot).then_some(self)
    }

    /// The names of the control groups that are taken over; all others are nobody's.
    pub fn groups(&self) -> BTreeSet<Box<str>> {
        self.processes.values().filter_map(|p| p.group.clone()).collect()
    }

    /// The configuration in force. The files may have changed since, and are read when somebody asks for an update.
    pub fn daemon(&self) -> crate::config::spec::Daemon {
        self.head.daemon.clone()
    }
}

impl Host {
    /// Goes on where the killed svd was.
    pub fn take_over(&mut self, found: Found, mut kept: Kept) {
        let Found { head, saved, mut specs, units, plans, generations, mut processes } = found;
        self.since = head.since;
        self.daemon = head.daemon;
        self.secret = head.secret;
        self.last_service = head.last_service;
        self.machine =
            Machine::restore(fastrand::u64(..), self.store.last_worker(), self.now(), saved.into_values().collect());
        for id in units.keys() {
            // The records may be old: it was said that they could not be written.
            let last = self.machine.service(*id).map(|s| self.store.beyond(&s.name, s.last_generation));
            self.machine.skip_generations(*id, last.unwrap_or_default());
        }
        let plan = |(id, plan): (GenerationId, PlanRecord<'_>)| Some((id, Rc::new(plan.plan(specs.get(&id.service)?))));
        let plans: BTreeMap<GenerationId, Rc<Plan>> = plans.into_iter().filter_map(plan).collect();
        for (id, record) in units {
            let workers = processes.values().filter(|p| p.generation.service == id);
            let Some(spec) = specs.remove(&id) else { continue };
            self.take_unit(id, spec, record, &plans, &mut kept, workers);
        }
        for (id, record) in generations {
            if let Some(plan) = plans.get(&id) {
                // Only a process that is the recorded one.
                let mut of_it = processes.values().filter(|p| p.generation == id).filter_map(|p| p.started);
                let master = of_it.find(|i| i.is(process::start_time(i.pid))).map(|i| i.pid);
                self.take_generation(record, Rc::clone(plan), &mut kept, master);
            }
        }
        let known: Vec<core::Worker> = self.machine.workers().values().map(|w| (**w).clone()).collect();
        let mut fates = Vec::with_capacity(known.len());
        for worker in known {
            let fate = match processes.get(&worker.id) {
                Some(record) => self.take_worker(&worker, record, &mut kept),
                None => Fate::NeverRan,
            };
            fates.push((worker, fate));
        }
        // Were svd killed before the machine is told, the next one would have to find it out again.
        let untold = fates.iter().filter(|(_, fate)| matches!(fate, Fate::Ended { .. }));
        let untold = untold.filter_map(|(worker, _)| Some((worker.id, processes.remove(&worker.id)?))).collect();
        self.write_whole_state(untold);
        let upgrade = head.upgrade.filter(|upgrade| {
            let executed = upgrade.deaths == self.deaths;
            if !executed && self.fallback.is_none() {
                self.fallback =
                    Some("it could not be executed, or ended at once; svd's own messages may say why".into());
            }
            executed
        });
        self.resume(fates, head.shutting_down, upgrade.as_ref().map(|upgrade| &*upgrade.from));
        self.forget_untold();
        self.keeper.acknowledge();
        // Of generations and workers that are gone.
        for name in kept.descriptors.keys() {
            self.keeper.remove(name);
        }
    }

    fn resume(&mut self, fates: Vec<(core::Worker, Fate)>, shutting_down: bool, from: Option<&str>) {
        let runs = fates.iter().filter(|(_, fate)| *fate == Fate::Runs).count();
        let ended = fates.len() - runs;
        let runs = crate::config::counted(runs, "worker");
        match from {
            Some(from) => {
                let own = env!("CARGO_PKG_VERSION");
                self.info(None, &format!("svd {own} goes on where {from} was: {runs} taken over"));
            }
            None => {
                self.warn(None, &format!("svd was killed, and goes on: {runs} taken over, {ended} ended meanwhile"));
            }
        }
        for action in self.machine.resume() {
            let told = |worker, signal| self.workers.get(&worker).is_some_and(|p| p.signalled == Some(signal));
            // Some take a second one for an order to hurry.
            if !matches!(action, Action::Signal { worker, signal } if told(worker, signal)) {
                self.execute(action);
            }
        }
        for (worker, fate) in fates {
            let id = worker.id;
            if let Some(event) = fate.event(&worker) {
                self.tell(event);
            }
            match (fate, worker.state) {
                (Fate::Runs, WorkerState::Spawning) => {
                    self.deliver();
                    self.begin_readiness(id);
                }
                (Fate::Runs, WorkerState::Booting { .. }) => {
                    self.begin_readiness_again(id);
                    if let Some(generation) = self.workers.get(&id).map(|p| p.generation) {
                        self.gunicorn_ready(generation);
                    }
                }
                _ => {}
            }
        }
        if shutting_down {
            self.tell(Event::Shutdown);
        }
        self.deliver();
        let committed: Vec<GenerationId> =
            self.machine.services().filter_map(|s| s.committed()).map(|g| g.id).collect();
        for id in committed {
            self.begin_health(id);
        }
        self.publish_directory();
    }

    fn take_unit<'a>(
        &mut self,
        id: ServiceId,
        spec: Arc<Service>,
        record: UnitRecord,
        plans: &BTreeMap<GenerationId, Rc<Plan>>,
        kept: &mut Kept,
        workers: impl Iterator<Item = &'a ProcessRecord>,
    ) {
        let numbers = 0..spec.sockets.len();
        let sockets: Option<Vec<Arc<OwnedFd>>> =
            numbers.map(|n| kept.descriptors.remove(kept::socket(id, n).as_str()).map(Arc::new)).collect();
        let retaken = || match &self.containment {
            _ if record.cookies.is_empty() || record.cookies.len() != spec.sockets.len() => None,
            Containment::Cgroup(tree) => retake::sockets(&record.cookies, tree, workers),
            Containment::Stub(_) => None,
        };
        let sockets = sockets.or_else(retaken).unwrap_or_default();
        let plan = record.kept.and_then(|n| Some((n, Rc::clone(plans.get(&GenerationId { service: id, number: n })?))));
        let name = Arc::clone(&spec.name);
        let unit = Unit {
            spec,
            name,
            // All or none: where they are lost, the next start binds them anew.
            sockets,
            enabled: record.enabled,
            drained: record.drained,
            removed: record.removed,
            scaled: record.scaled,
            health: None,
            kept: plan,
        };
        self.configure_logs(&unit);
        self.units.insert(id, Box::new(unit));
        self.keep_sockets(id);
    }

    /// One that was not prepared to its end is prepared again.
    fn take_generation(&mut self, record: GenerationRecord, plan: Rc<Plan>, kept: &mut Kept, master: Option<i32>) {
        let id = record.id;
        let known = self.machine.service(id.service).and_then(|s| s.generations.iter().find(|g| g.id == id));
        let Some(prepared) = known.map(|g| g.prepared) else { return };
        if !prepared {
            return;
        }
        let sockets = self.units.get(&id.service).map(|u| u.sockets.clone()).unwrap_or_default();
        let gunicorn = record
            .gunicorn
            .and_then(|record| self.take_gunicorn(id, &record, kept).or_else(|| self.share_anew(id, &record, master)));
        if let (true, Some(unit)) = (plan.spec.logs.capture, self.units.get(&id.service)) {
            let release = plan.places.id.as_deref().map(Into::into);
            let begins = logs::Begins { generation: id.number, release, at: record.began, adopted: true };
            let _ = self.logs.begin_generation(Arc::clone(&unit.name), begins);
        }
        let made = Generation {
            id,
            plan,
            began: record.began,
            sockets,
            port: record.port,
            gunicorn: gunicorn.map(Box::new),
            statsd: record.statsd.map(Box::new),
            until_gone: Vec::new(),
        };
        let statsd = made.statsd.as_deref().copied();
        self.generations.insert(id, Box::new(made));
        if let Some(address) = statsd
            && let Err(why) = self.resume_statsd_of(address, kept.descriptors.remove(super::statsd::KEPT))
        {
            self.warn(Some(id.service), &format!("is not counted any more: {why}"));
        }
        self.keep_generation(id);
    }

    /// `None`: what it shared with svd is lost, as the guardian was killed as well.
    fn take_gunicorn(&mut self, id: GenerationId, record: &GunicornRecord, kept: &mut Kept) -> Option<Gunicorn> {
        let mut take = |what: &str| kept.descriptors.remove(kept::shared(id, what).as_str());
        let (gate, report, theirs, counters) = (take("gate")?, take("report")?, take("theirs")?, take("counters")?);
        let shared = counters.try_clone().ok()?;
        let inherited = [
            ("AIRDOCK_GATE", Arc::new(gate.try_clone().ok()?)),
            ("AIRDOCK_REPORT", Arc::new(theirs)),
            ("AIRDOCK_COUNTERS", Arc::new(shared)),
        ];
        let counters = SharedWords::from_fd(counters, counters::SIZE_BYTES / 8).ok()?;
        if let Err(e) = self.poll.add(&report, Interest::Read, token::of_generation(id)) {
            self.warn(Some(id.service), &format!("gunicorn's reports cannot be read any more: {}", e.desc()));
        }
        Some(Gunicorn {
            gate: Gate::from_fd(gate),
            committed: record.committed,
            report,
            counters,
            inherited,
            token: record.token.clone(),
            workers: record.workers,
            timeout: record.timeout,
            booted: record.booted.clone(),
            ready: record.ready.clone(),
            target: record.target,
            scaling: None,
        })
    }

    fn take_worker(&mut self, known: &core::Worker, record: &ProcessRecord, kept: &mut Kept) -> Fate {
        let (id, state, ended) = (known.id, known.state, known.has_ended());
        let exit = |identity: Option<Identity>, kept: &mut Kept| {
            let end = kept.descriptors.get(kept::of_worker(id, kept::END).as_str());
            let end = end.filter(|_| record.started == identity).and_then(|fd| fd.try_clone().ok());
            let of_kernel = |i: Identity| PidFd::from_parts(i.pid, end?).any_exit();
            let status = identity.and_then(|i| {
                // Its start time was not to be read.
                let unsure = Identity { start_time: 0, ..i };
                kept.exits.remove(&i).or_else(|| kept.exits.remove(&unsure)).or_else(|| of_kernel(i))
            });
            status.map_or(Exit::Unknown, super::workers::exit_of)
        };
        let Containment::Cgroup(tree) = &self.containment else { return Fate::NeverRan };
        let Some(group) = record.group.as_deref().and_then(|name| tree.existing_group(name)) else {
            return Fate::Ended { exit: exit(record.started, kept), leftovers: false };
        };
        let adopted = record.started.and_then(|i| Worker::adopt(group.clone(), i, kept.guardian));
        let (worker, started_ended) = match adopted {
            Some(worker) => (worker, false),
            None => match Worker::adopt_rest(group) {
                Ok(Some(worker)) => (worker, true),
                Ok(None) => return Fate::Ended { exit: exit(record.started, kept), leftovers: false },
                Err(e) => {
                    self.warn(None, &format!("cannot look for what is left of a worker: {}", crate::sys::io_text(&e)));
                    return Fate::Ended { exit: exit(record.started, kept), leftovers: false };
                }
            },
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
            Fate::Ended { exit: exit(record.named.or(record.started), kept), leftovers: true }
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
        let readers = super::workers::PIPES.map(&mut take);
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
            started_ended,
            signalled: record.signalled,
            announced: None,
            watchdog: None,
            watchdog_every: record.watchdog_every,
        };
        self.workers.insert(id, Box::new(process));
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
        for ((at, (name, stream)), reader) in pipes.iter_mut().zip(streams(&spec)).zip(readers) {
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

/// The pipes of a worker: their names, and what comes through them.
pub fn streams(spec: &Service) -> &'static [(&'static str, logs::Stream)] {
    if launch::joined(spec) {
        &[("output", logs::Stream::Joined)]
    } else {
        &[("stdout", logs::Stream::Stdout), ("stderr", logs::Stream::Stderr)]
    }
}

/// The promise of [`crate::fuzz::run_state`].
#[cfg(any(test, feature = "fuzz"))]
pub fn check(input: &[u8]) {
    let _ = file::parse(input);
    let Ok(entries) = file::parse(&file::with_payload(input)) else { return };
    let Ok(found) = Found::of(&entries) else { return };
    let _ = found.groups();
    let mut machine = Machine::restore(1, 0, crate::core::Time(1), found.saved.into_values().collect());
    let _ = machine.resume();
    let workers: Vec<WorkerId> = machine.workers().keys().copied().collect();
    for worker in workers {
        let exited = Event::Exited { worker, exit: Exit::Unknown, leftovers: false, reason: None };
        let _ = machine.handle(crate::core::Time(2), exited);
    }
    let _ = machine.handle(crate::core::Time(3), Event::Shutdown);
}
