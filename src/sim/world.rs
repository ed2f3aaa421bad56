//! The simulated host: what the machine asks for happens here, or fails to.

use super::choice::{Choice, Fault, Nth};
use super::kernel::{End, Process};
use crate::config::spec::{Limit, Policy as RestartPolicy, Restart};
use crate::core::{
    Action, Change, Changed, Command, Event, Exit, GenerationId, Machine, OpId, Policy, Saved, SavedPolicies,
    ServiceId, Setup, Time, WorkerId,
};
use crate::sys::process::Identity;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// No svd is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Absence {
    /// Nor a guardian.
    pub both: bool,
}

#[derive(Clone, Debug)]
pub struct World {
    pub now: Time,
    pub machine: Machine,
    /// The configuration.
    pub(super) files: Vec<(&'static str, Policy)>,
    pub(super) policies: BTreeMap<ServiceId, Rc<Policy>>,
    pub(super) last_service: u32,
    pub(super) preparing: BTreeSet<GenerationId>,
    pub(super) spawning: BTreeSet<WorkerId>,
    pub(super) processes: BTreeMap<WorkerId, Process>,
    /// The kernel's table of processes: when each one started.
    pub(super) table: BTreeMap<i32, u64>,
    pub(super) started: u64,
    /// How processes ended, for whoever asks: until they are reaped.
    pub(super) statuses: BTreeMap<Identity, Exit>,
    pub(super) last_worker: u64,
    /// The generation whose gate is open.
    pub(super) committed: BTreeMap<ServiceId, u64>,
    /// Canaries whose gates were opened.
    pub(super) exposed: BTreeSet<GenerationId>,
    /// Services whose listening sockets are open, and those that lost them.
    pub(super) open: BTreeSet<ServiceId>,
    pub(super) lost_sockets: BTreeSet<ServiceId>,
    /// Services whose file names other sockets.
    pub(super) reopening: BTreeSet<ServiceId>,
    /// The highest number that a generation ever had.
    pub(super) highest: BTreeMap<ServiceId, u64>,
    /// When and how soon after its start the last worker of a slot ended, and whether by itself and well.
    pub(super) ended: BTreeMap<(GenerationId, u32), (Time, Duration, bool)>,
    /// Of workers whose end the machine has not dealt with.
    pub(super) ends: BTreeMap<WorkerId, End>,
    pub(super) pending_ops: BTreeSet<OpId>,
    last_op: u64,
    pub(super) exited: bool,
    pub(super) shutting_down: bool,
    /// The records, as they were last written, and which are to be written.
    pub(super) disk: BTreeMap<ServiceId, Saved>,
    pub(super) disk_policies: BTreeMap<ServiceId, SavedPolicies>,
    pub(super) unwritten: Changed,
    /// The shell's records of processes: in memory, and written.
    pub(super) records: BTreeMap<WorkerId, Identity>,
    pub(super) disk_records: BTreeMap<WorkerId, Identity>,
    pub(super) records_changed: bool,
    /// The state file cannot be written.
    pub(super) full: bool,
    /// svd died meanwhile.
    pub(super) stale: bool,
    /// Whether svd may die in this world: else nothing is written.
    pub mortal: bool,
    /// What svd has heard, and so many more events that it hears before it deals with them.
    pub(super) inbox: Vec<Event>,
    pub(super) together: u8,
    /// Workers that have ended, of which something ended, since the first of them.
    pub(super) gone_meanwhile: BTreeSet<WorkerId>,
    /// Doings until svd dies.
    pub(super) fuse: Option<u8>,
    /// … and the guardian with it.
    pub(super) fuse_of_both: bool,
    /// The guardian was killed, and svd could not take its place yet.
    pub(super) unguarded: bool,
    pub(super) dead: Option<Absence>,
    /// What the svd that returns could not take over and has not told the machine yet.
    pub(super) lost: BTreeSet<WorkerId>,
    /// Ready since svd died.
    pub(super) unheard: BTreeSet<WorkerId>,
    pub(super) resuming: bool,
    /// [`super::History::forgetful`]
    pub(super) forgetful: bool,
    /// Records are read as text, as svd does it.
    pub thorough: bool,
    /// What people were told since the last event.
    pub(super) said: Vec<String>,
    /// What happens, for people.
    pub(super) trace: Option<Rc<RefCell<Vec<String>>>>,
}

impl World {
    /// Services with these policies, all wanted up from the start.
    pub fn new(seed: u64, files: Vec<(&'static str, Policy)>) -> World {
        World {
            now: Time(1),
            machine: Machine::new(seed, 0),
            files,
            policies: BTreeMap::new(),
            last_service: 0,
            preparing: BTreeSet::new(),
            spawning: BTreeSet::new(),
            processes: BTreeMap::new(),
            table: BTreeMap::new(),
            started: 0,
            statuses: BTreeMap::new(),
            last_worker: 0,
            committed: BTreeMap::new(),
            exposed: BTreeSet::new(),
            open: BTreeSet::new(),
            lost_sockets: BTreeSet::new(),
            reopening: BTreeSet::new(),
            highest: BTreeMap::new(),
            ended: BTreeMap::new(),
            ends: BTreeMap::new(),
            pending_ops: BTreeSet::new(),
            last_op: 0,
            exited: false,
            shutting_down: false,
            disk: BTreeMap::new(),
            disk_policies: BTreeMap::new(),
            unwritten: Changed::default(),
            records: BTreeMap::new(),
            disk_records: BTreeMap::new(),
            records_changed: false,
            full: false,
            stale: false,
            mortal: true,
            inbox: Vec::new(),
            together: 0,
            gone_meanwhile: BTreeSet::new(),
            fuse: None,
            fuse_of_both: false,
            unguarded: false,
            dead: None,
            lost: BTreeSet::new(),
            unheard: BTreeSet::new(),
            resuming: false,
            forgetful: false,
            thorough: false,
            said: Vec::new(),
            trace: None,
        }
    }

    /// svd starts, for the first time.
    pub fn begin(mut self) -> World {
        let add = (0..self.files.len()).map(|n| self.setup(n)).collect();
        self.feed(Event::Configure { add, change: vec![], remove: vec![] });
        self
    }

    /// A policy for tests: short, with every feature on.
    pub fn policy(overlap: bool, instances: u32) -> Policy {
        Policy {
            instances,
            overlap,
            drain: Duration::from_secs(600),
            max_draining: 2,
            ready_timeout: Duration::from_secs(60),
            stop_signal: libc::SIGTERM,
            grace: Duration::from_secs(10),
            restart: Arc::new(Restart {
                policy: RestartPolicy::Always,
                delay: Duration::from_millis(100),
                max_delay: Duration::from_secs(30),
                settled: Duration::from_secs(2),
                limit: Limit { failures: 3, within: Duration::from_secs(300), then: Some(Duration::from_secs(300)) },
                success: vec![],
            }),
            health_restarts: true,
            after: vec![],
            requires: vec![],
        }
    }

    fn setup(&mut self, file: usize) -> Setup {
        let (name, policy) = self.files[file].clone();
        let (service, policy) = (ServiceId(self.last_service), Rc::new(policy));
        self.last_service += 1;
        self.policies.insert(service, Rc::clone(&policy));
        Setup { service, name: name.into(), policy, start: true, last_generation: 0, op: self.op() }
    }

    fn op(&mut self) -> Option<OpId> {
        self.last_op += 1;
        let op = OpId(self.last_op);
        self.pending_ops.insert(op);
        Some(op)
    }

    pub fn pending_ops(&self) -> usize {
        self.pending_ops.len()
    }

    /// The generation that does.
    pub fn serving(&self, service: ServiceId) -> Option<u64> {
        self.machine.service(service).and_then(|service| service.committed()).map(|generation| generation.id.number)
    }

    pub fn exited(&self) -> bool {
        self.exited
    }

    pub fn is_dead(&self) -> bool {
        self.dead.is_some()
    }

    pub(super) fn say(&self, text: impl FnOnce() -> String) {
        if let Some(trace) = &self.trace {
            trace.borrow_mut().push(text());
        }
    }

    pub(super) fn worker(&self, nth: Nth) -> Option<WorkerId> {
        self.numbered().find(|(_, other)| *other == nth).map(|(worker, _)| worker)
    }

    /// False: it cannot happen now, and nothing did.
    pub fn apply(&mut self, choice: &Choice) -> bool {
        self.say(|| format!("{:8.1} s  {choice:?}", self.now.since(Time(1)).as_secs_f64()));
        let done = match choice {
            Choice::Return(again) => self.return_again(*again),
            Choice::Disk(full) => self.set_full(*full),
            Choice::Exit(nth, exit, others) => self.exit(*nth, *exit, *others),
            Choice::Empty(nth) => self.empty(*nth),
            Choice::Fork(nth) => self.fork(*nth),
            Choice::Ready(nth) => self.ready(*nth),
            Choice::Pause => {
                self.now = self.now + Duration::from_millis(700);
                true
            }
            Choice::DeathOfBoth(_) if self.dead.is_some() => {
                self.dead = Some(Absence { both: true });
                self.forget_statuses();
                true
            }
            _ if self.dead.is_some() || self.exited => false,
            choice => self.apply_to_svd(choice),
        };
        if !done && let Some(trace) = &self.trace {
            trace.borrow_mut().pop();
        }
        done
    }

    fn apply_to_svd(&mut self, choice: &Choice) -> bool {
        match choice {
            Choice::Command(service, command) => return self.command(*service, command.clone()),
            Choice::Change(service, change) => return self.change(*service, *change),
            Choice::Remove(service) => return self.remove(*service),
            Choice::Add(file) => return self.add(*file),
            Choice::Oversized(service) => {
                self.feed(Event::Oversized { service: *service, reason: "it is too large".into() });
            }
            Choice::Unhealthy(service) => {
                self.feed(Event::Unhealthy { service: *service, reason: "probe failed".into() });
            }
            Choice::Grace(service) => {
                self.feed(Event::Grace { service: *service, grace: Duration::from_secs(20) });
            }
            Choice::Crowded(service) => {
                self.feed(Event::Crowded { service: *service, reason: "memory is short".into() });
            }
            Choice::Shutdown => {
                self.shutting_down = true;
                self.feed(Event::Shutdown);
            }
            Choice::Prepared(nth, result) => return self.prepared_one(*nth, *result),
            Choice::Spawned(birth) => return self.spawned(*birth),
            Choice::Unfit(nth) | Choice::Hung(nth) | Choice::Extend(nth) => {
                let Some(worker) = self.worker(*nth).filter(|w| self.is_spawned(*w)) else { return false };
                self.disturb(worker, choice);
            }
            Choice::Deadline => {
                let Some(at) = self.machine.next_timeout() else { return false };
                self.now = self.now.max(at);
                self.feed(Event::Tick);
            }
            Choice::Death(at) | Choice::DeathOfBoth(at) => {
                self.fuse = Some(*at);
                self.fuse_of_both = matches!(choice, Choice::DeathOfBoth(_));
            }
            Choice::Together(events) => self.together = *events,
            Choice::DeathOfGuardian => {
                self.unguarded = true;
                self.replace_guardian();
            }
            _ => return false,
        }
        true
    }

    /// Forked, and svd has heard so.
    pub(super) fn is_spawned(&self, worker: WorkerId) -> bool {
        !self.spawning.contains(&worker) && self.processes[&worker].main
    }

    fn command(&mut self, service: ServiceId, command: Command) -> bool {
        if self.machine.service(service).is_none() {
            return false;
        }
        let op = self.op();
        self.feed(Event::Command { op, service, command });
        true
    }

    fn change(&mut self, service: ServiceId, change: Change) -> bool {
        if self.machine.service(service).is_none_or(|s| s.removed) {
            return false;
        }
        let op = self.op();
        let policy = Rc::new((*self.policies[&service]).clone());
        self.policies.insert(service, Rc::clone(&policy));
        self.feed(Event::Configure { add: vec![], change: vec![(service, policy, change, op)], remove: vec![] });
        true
    }

    fn remove(&mut self, service: ServiceId) -> bool {
        if self.machine.service(service).is_none_or(|s| s.removed) {
            return false;
        }
        let op = self.op();
        self.feed(Event::Configure { add: vec![], change: vec![], remove: vec![(service, op)] });
        true
    }

    fn add(&mut self, file: u8) -> bool {
        let file = file as usize;
        if self.shutting_down || !self.files.get(file).is_some_and(|(name, _)| self.is_absent(name)) {
            return false;
        }
        let add = vec![self.setup(file)];
        self.feed(Event::Configure { add, change: vec![], remove: vec![] });
        true
    }

    fn prepared_one(&mut self, nth: Nth, result: Result<(), Fault>) -> bool {
        let mut of_service = self.preparing.iter().filter(|g| g.service == nth.0);
        let Some(generation) = of_service.nth(nth.1.into()).copied() else { return false };
        self.preparing.remove(&generation);
        if result.is_ok() {
            self.open.insert(generation.service);
        }
        let result = result.map_err(|fault| format!("cannot make the gate: {fault}"));
        self.feed(Event::Prepared { generation, result });
        true
    }

    pub(super) fn feed_fault(&mut self, event: Event, fault: Fault) {
        let held = self.before(&event);
        let alone = self.inbox.is_empty() && self.together == 0;
        self.feed(event);
        if alone {
            self.check_told(fault, held.as_ref().map(|(_, held)| held));
        }
    }

    pub(super) fn feed(&mut self, event: Event) {
        if self.burn() {
            return;
        }
        self.inbox.push(event);
        match self.together.checked_sub(1) {
            Some(left) => self.together = left,
            None => self.deliver(),
        }
    }

    /// As the daemon does it: what came together is decided about together, then written, then done.
    pub(super) fn deliver(&mut self) {
        let mut all = Vec::new();
        self.said.clear();
        for event in std::mem::take(&mut self.inbox) {
            let ends = self.before(&event);
            let ended = match event {
                Event::Exited { worker, .. } | Event::Empty { worker } => Some(worker),
                _ => None,
            };
            if let Event::Command { service, command: Command::Scale(_), .. } = event {
                // Slots that are cut off and asked for again start afresh.
                self.ended.retain(|(generation, _), _| generation.service != service);
            }
            if let Event::Configure { change, .. } = &event {
                let reopening = change.iter().filter(|(_, _, change, _)| *change == Change::Restart);
                self.reopening.extend(reopening.map(|(service, ..)| *service));
            }
            if let Event::Ready { worker } = event
                && let Some(process) = self.processes.get_mut(&worker)
            {
                process.heard = true;
            }
            let recalled = self.recalled(&event);
            let mut actions = self.machine.handle(self.now, event);
            if let Some(recalled) = recalled {
                self.check_recall(recalled, &actions);
            }
            if let Some((worker, held)) = &ends {
                self.check_end(*worker, held);
            }
            if let Some(worker) = ended {
                self.forget_process(worker);
            }
            let first = all.len();
            all.append(&mut actions);
            self.check_decided(&all, first);
        }
        self.write();
        self.obey(all);
        if self.dead.is_none() {
            self.gone_meanwhile.clear();
            self.check();
        }
    }

    /// Does what was decided, as far as svd lives.
    pub(super) fn obey(&mut self, actions: Vec<Action>) {
        for action in actions {
            if self.burn() {
                return;
            }
            self.say(|| format!("                → {action:?}"));
            if !(self.resuming && self.forgetful && matches!(action, Action::Signal { .. })) {
                self.execute(action);
            }
        }
    }

    fn execute(&mut self, action: Action) {
        match action {
            Action::Signal { worker, .. } | Action::SignalTree { worker, .. } | Action::KillTree { worker }
                if self.lost.contains(&worker) || self.gone_meanwhile.contains(&worker) => {}
            Action::Prepare { generation, .. } => self.prepare(generation),
            Action::Spawn { worker, generation, slot, committed } => {
                self.check_spawn(worker, generation, slot, committed);
                self.check_sockets(generation);
                self.spawn(worker, generation, slot);
            }
            Action::Signal { worker, .. } => {
                let process = self.processes.get_mut(&worker);
                process.filter(|p| p.main).expect("I4: a signal to a worker that is gone").told = true;
            }
            Action::SignalTree { worker, .. } => {
                let process = self.processes.get_mut(&worker);
                process.expect("I4: a signal to a tree that is gone").told = true;
            }
            Action::KillTree { worker } => {
                let process = self.processes.get_mut(&worker).expect("I4: a kill of a tree that is gone");
                (process.told, process.killed) = (true, true);
            }
            Action::Commit { generation } => self.commit(generation),
            Action::Expose { generation } => drop(self.exposed.insert(generation)),
            Action::Discard { generation } => self.check_discard(generation),
            Action::Done { op, result } => {
                assert!(self.pending_ops.remove(&op), "{op:?} is answered twice");
                self.said.extend(result.err().map(|failure| failure.reason));
            }
            Action::CloseSockets { service } => {
                self.check_close(service);
                self.open.remove(&service);
            }
            Action::Exit => {
                // But for what the kernel keeps.
                let hangs = |id: &WorkerId| self.machine.worker(*id).is_some_and(|w| w.hangs());
                let left: Vec<_> = self.processes.iter().filter(|(id, p)| !(p.killed && hangs(id))).collect();
                assert!(left.is_empty(), "svd exits and leaves {left:?}");
                self.exited = true;
            }
            Action::Forget { service } => drop(self.policies.remove(&service)),
            Action::Note { text, .. } => self.said.push(text),
            Action::Drain { .. } => {}
        }
    }

    fn prepare(&mut self, id: GenerationId) {
        assert!(self.preparing.insert(id), "{id:?} is prepared twice");
        let highest = self.highest.entry(id.service).or_default();
        assert!(self.resuming || id.number > *highest, "the number {} is used for a second generation", id.number);
        *highest = (*highest).max(id.number);
    }

    fn spawn(&mut self, worker: WorkerId, generation: GenerationId, slot: u32) {
        let process = Process {
            generation,
            slot,
            started: self.now,
            identity: self.new_process(),
            main: true,
            children: Vec::new(),
            told: false,
            killed: false,
            ready: false,
            heard: false,
            unfit: false,
            mute: false,
            deaf: false,
            doomed: None,
        };
        self.processes.insert(worker, process);
        self.spawning.insert(worker);
    }
}
