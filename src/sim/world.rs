//! The simulated host: what the machine asks for happens here, or fails to.

use crate::config::spec::{Limit, Policy as RestartPolicy, Restart};
use crate::core::{
    Action, Change, Command, Event, Exit, GenerationId, Machine, OpId, Policy, Saved, SavedPolicies, ServiceId, Setup,
    Time, WorkerId,
};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Something that may happen next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Command(ServiceId, Command),
    Change(ServiceId, Change),
    Unhealthy(ServiceId),
    Prepared(GenerationId, bool),
    Spawned(WorkerId, bool),
    Ready(WorkerId),
    Unfit(WorkerId),
    Hung(WorkerId),
    /// The main process ends; with or without leaving others behind.
    Exit(WorkerId, Exit, bool),
    /// What was left behind ends.
    Empty(WorkerId),
    /// Time passes up to the next deadline.
    Deadline,
    /// A little time passes.
    Pause,
    Shutdown,
    /// svd is killed while it does what the next event leads to: before the event reaches the machine (0), or after so many
    /// actions and one; perhaps once more, in the same way, when it has returned.
    Death(u8, Option<u8>),
}

/// One simulated worker: a main process and, perhaps, others.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub generation: GenerationId,
    pub slot: u32,
    pub started: Time,
    pub main: bool,
    /// Told to stop, or killed: it will end.
    pub told: bool,
    pub killed: bool,
    pub ready: bool,
    /// The machine was told that it should not go on.
    pub unfit: bool,
}

#[derive(Clone, Debug)]
pub struct World {
    pub now: Time,
    pub machine: Machine,
    pub(super) policies: BTreeMap<ServiceId, Rc<Policy>>,
    pub(super) preparing: BTreeSet<GenerationId>,
    pub(super) spawning: BTreeSet<WorkerId>,
    pub(super) processes: BTreeMap<WorkerId, Process>,
    pub(super) last_worker: u64,
    pub(super) committed: BTreeMap<ServiceId, u64>,
    /// When and how soon after its start the last worker of a slot ended.
    pub(super) ended: BTreeMap<(GenerationId, u32), (Time, Duration)>,
    pub(super) pending_ops: BTreeSet<OpId>,
    last_op: u64,
    pub(super) exited: bool,
    pub(super) shutting_down: bool,
    /// The records, as they were last written.
    pub(super) disk: BTreeMap<ServiceId, Saved>,
    pub(super) disk_policies: BTreeMap<ServiceId, SavedPolicies>,
    /// Whether svd may die in this world: else nothing is written.
    pub mortal: bool,
    /// When svd dies, by [`Choice::Death`].
    pub(super) death: Option<u8>,
    pub(super) death_again: Option<u8>,
    /// What the svd that returns could not take over and has not told the machine yet.
    pub(super) lost: BTreeSet<WorkerId>,
}

impl World {
    /// Services with these policies, all wanted up from the start.
    pub fn new(seed: u64, policies: Vec<(&str, Policy)>) -> World {
        let mut world = World {
            now: Time(1),
            machine: Machine::new(seed, 0),
            policies: BTreeMap::new(),
            preparing: BTreeSet::new(),
            spawning: BTreeSet::new(),
            processes: BTreeMap::new(),
            last_worker: 0,
            committed: BTreeMap::new(),
            ended: BTreeMap::new(),
            pending_ops: BTreeSet::new(),
            last_op: 0,
            exited: false,
            shutting_down: false,
            disk: BTreeMap::new(),
            disk_policies: BTreeMap::new(),
            mortal: true,
            death: None,
            death_again: None,
            lost: BTreeSet::new(),
        };
        let mut add = Vec::new();
        for (n, (name, policy)) in (0..).zip(policies) {
            let (service, policy) = (ServiceId(n), Rc::new(policy));
            world.policies.insert(service, Rc::clone(&policy));
            let op = Some(world.op());
            add.push(Setup { service, name: name.into(), policy, start: true, last_generation: 0, op });
        }
        world.feed(Event::Configure { add, change: vec![], remove: vec![] });
        world
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

    fn op(&mut self) -> OpId {
        self.last_op += 1;
        let op = OpId(self.last_op);
        self.pending_ops.insert(op);
        op
    }

    pub fn pending_ops(&self) -> usize {
        self.pending_ops.len()
    }

    pub fn processes(&self) -> usize {
        self.processes.len()
    }

    pub fn exited(&self) -> bool {
        self.exited
    }

    /// What the kernel and the processes may do next, faults included.
    pub fn kernel_choices(&self) -> Vec<Choice> {
        if let Some(worker) = self.spawning.first() {
            return vec![Choice::Spawned(*worker, true), Choice::Spawned(*worker, false)];
        }
        let mut all = Vec::new();
        for generation in &self.preparing {
            all.extend([Choice::Prepared(*generation, true), Choice::Prepared(*generation, false)]);
        }
        for (worker, process) in &self.processes {
            let worker = *worker;
            if !process.main {
                all.push(Choice::Empty(worker));
                continue;
            }
            if process.killed {
                all.push(Choice::Exit(worker, Exit::Signal(libc::SIGKILL), false));
                continue;
            }
            all.extend([
                Choice::Exit(worker, Exit::Code(1), false),
                Choice::Exit(worker, Exit::Code(0), true),
                Choice::Exit(worker, Exit::Signal(libc::SIGTERM), false),
            ]);
            if !process.ready {
                all.push(Choice::Ready(worker));
            }
            all.extend([Choice::Unfit(worker), Choice::Hung(worker)]);
        }
        if self.machine.next_timeout().is_some() {
            all.push(Choice::Deadline);
        }
        all
    }

    /// What people may do next.
    pub fn people_choices(&self) -> Vec<Choice> {
        if !self.spawning.is_empty() || self.shutting_down {
            return vec![];
        }
        let mut all = vec![Choice::Shutdown];
        for id in self.policies.keys() {
            for force in [false, true] {
                all.push(Choice::Command(*id, Command::Reload { release: None, force }));
            }
            for command in [Command::Start, Command::Stop, Command::Restart, Command::Scale(1), Command::Scale(3)] {
                all.push(Choice::Command(*id, command));
            }
            for change in [Change::Live, Change::Reload, Change::Restart] {
                all.push(Choice::Change(*id, change));
            }
            all.push(Choice::Unhealthy(*id));
        }
        all
    }

    /// The next thing that a host without faults would do: boot, obey, empty; time passes when nothing else is due.
    pub fn well_behaved(&self) -> Option<Choice> {
        if let Some(worker) = self.spawning.first() {
            return Some(Choice::Spawned(*worker, true));
        }
        if let Some(generation) = self.preparing.first() {
            return Some(Choice::Prepared(*generation, true));
        }
        for (worker, process) in &self.processes {
            if !process.main {
                return Some(Choice::Empty(*worker));
            }
            if process.told {
                return Some(Choice::Exit(*worker, Exit::Signal(libc::SIGTERM), false));
            }
            if !process.ready {
                return Some(Choice::Ready(*worker));
            }
        }
        self.machine.next_timeout().map(|_| Choice::Deadline)
    }

    pub fn apply(&mut self, choice: Choice) {
        match choice {
            Choice::Command(service, command) => {
                if matches!(command, Command::Scale(_)) {
                    // Slots that are cut off and asked for again start afresh.
                    self.ended.retain(|(generation, _), _| generation.service != service);
                }
                let op = Some(self.op());
                self.feed(Event::Command { op, service, command });
            }
            Choice::Change(service, change) => {
                let op = Some(self.op());
                let policy = Rc::new((*self.policies[&service]).clone());
                self.policies.insert(service, Rc::clone(&policy));
                let change = vec![(service, policy, change, op)];
                self.feed(Event::Configure { add: vec![], change, remove: vec![] });
            }
            Choice::Unhealthy(service) => self.feed(Event::Unhealthy { service, reason: "probe failed".into() }),
            Choice::Prepared(generation, good) => {
                self.preparing.remove(&generation);
                let result = if good { Ok(()) } else { Err("no such release".into()) };
                self.feed(Event::Prepared { generation, result });
            }
            Choice::Spawned(worker, good) => self.spawned(worker, good),
            Choice::Ready(worker) => {
                // Where svd dies before it has heard, a probe passes once more.
                let heard = self.death != Some(0);
                if let Some(process) = self.processes.get_mut(&worker) {
                    process.ready = heard;
                }
                self.feed(Event::Ready { worker });
            }
            Choice::Unfit(worker) => {
                self.unfit(worker);
                self.feed(Event::Unfit { worker, reason: "failed its probe".into() });
            }
            Choice::Hung(worker) => {
                self.unfit(worker);
                self.feed(Event::Hung { worker, reason: "missed its watchdog".into() });
            }
            Choice::Exit(worker, exit, others) => self.exit(worker, exit, others),
            Choice::Empty(worker) => {
                self.end(worker);
                self.feed(Event::Empty { worker });
            }
            Choice::Deadline => {
                if let Some(at) = self.machine.next_timeout() {
                    self.now = self.now.max(at);
                    self.feed(Event::Tick);
                }
            }
            Choice::Death(at, again) => (self.death, self.death_again) = (Some(at), again),
            Choice::Pause => self.now = self.now + Duration::from_millis(700),
            Choice::Shutdown => {
                self.shutting_down = true;
                self.feed(Event::Shutdown);
            }
        }
    }

    fn unfit(&mut self, worker: WorkerId) {
        if let Some(process) = self.processes.get_mut(&worker) {
            process.unfit = true;
        }
    }

    fn spawned(&mut self, worker: WorkerId, good: bool) {
        self.spawning.remove(&worker);
        if !good {
            self.end(worker);
        }
        let result = if good { Ok(()) } else { Err("could not be spawned: Cannot allocate memory".into()) };
        self.feed(Event::Spawned { worker, result });
    }

    fn exit(&mut self, worker: WorkerId, exit: Exit, others: bool) {
        if others {
            if let Some(process) = self.processes.get_mut(&worker) {
                process.main = false;
                if !process.told {
                    let up = self.now.since(process.started);
                    self.ended.insert((process.generation, process.slot), (self.now, up));
                }
            }
        } else {
            self.end(worker);
        }
        self.feed(Event::Exited { worker, exit, leftovers: others, reason: None });
    }

    fn end(&mut self, worker: WorkerId) {
        if let Some(process) = self.processes.remove(&worker)
            && process.main
            && !process.told
        {
            let up = self.now.since(process.started);
            self.ended.insert((process.generation, process.slot), (self.now, up));
        }
    }

    pub(super) fn feed(&mut self, event: Event) {
        if self.death == Some(0) {
            self.death = None;
            return self.die();
        }
        let actions = self.machine.handle(self.now, event);
        self.write();
        if !self.do_until_death(actions) {
            self.check();
        }
    }

    pub(super) fn execute(&mut self, action: Action) {
        match action {
            Action::Signal { worker, .. } | Action::SignalTree { worker, .. } | Action::KillTree { worker }
                if self.lost.contains(&worker) => {}
            Action::Prepare { generation, .. } => {
                assert!(self.preparing.insert(generation), "{generation:?} is prepared twice");
            }
            Action::Spawn { worker, generation, slot, committed } => {
                self.check_spawn(worker, generation, slot, committed);
                let started = self.now;
                let process = Process {
                    generation,
                    slot,
                    started,
                    main: true,
                    told: false,
                    killed: false,
                    ready: false,
                    unfit: false,
                };
                self.processes.insert(worker, process);
                self.spawning.insert(worker);
            }
            Action::Signal { worker, .. } => {
                self.check_signal(worker);
                let process = self.processes.get_mut(&worker);
                process.expect("I4: a signal to a worker that is gone").told = true;
            }
            Action::SignalTree { worker, .. } => {
                let process = self.processes.get_mut(&worker);
                process.expect("I4: a signal to a tree that is gone").told = true;
            }
            Action::KillTree { worker } => {
                let process = self.processes.get_mut(&worker).expect("I4: a kill of a tree that is gone");
                (process.told, process.killed) = (true, true);
            }
            Action::Commit { generation } => self.check_commit(generation),
            Action::Discard { generation } => self.check_discard(generation),
            Action::Done { op, .. } => {
                assert!(self.pending_ops.remove(&op), "{op:?} is answered twice")
            }
            Action::Exit => {
                // But for what the kernel keeps.
                let hangs = |id: &WorkerId| self.machine.worker(*id).is_some_and(|w| w.hangs());
                let left: Vec<_> = self.processes.iter().filter(|(id, p)| !(p.killed && hangs(id))).collect();
                assert!(left.is_empty(), "svd exits and leaves {left:?}");
                self.exited = true;
            }
            Action::Forget { .. } | Action::Drain { .. } | Action::CloseSockets { .. } | Action::Note { .. } => {}
        }
    }
}
