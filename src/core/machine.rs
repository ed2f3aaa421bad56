//! The machine: its tables, the way in, and the way out.

use super::event::{
    Action, Change, Command, Event, Failure, GenerationId, Level, OpId, ServiceId, Setup, Source, WorkerId,
};
use super::generation::{Generation, SlotState, Worker};
use super::policy::Policy;
use super::restart::Rng;
use super::service::{Goal, Phase, Service};
use super::time::Time;
use super::timers::{Timer, Timers};
use super::tracked::Tracked;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

/// To who asks for something of a service that is forgotten by now.
const GONE: &str = "there is no such service any more";

/// All services of a host. See the module's contract.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) now: Time,
    /// Boxed, as the other tables' values: a tree keeps its nodes half empty.
    pub(super) services: Tracked<ServiceId, Box<Service>>,
    pub(super) workers: Tracked<WorkerId, Box<Worker>>,
    pub(super) names: BTreeMap<Arc<str>, ServiceId>,
    pub(super) last_worker: u64,
    pub(super) timers: Timers,
    pub(super) rng: Rng,
    pub(super) out: Vec<Action>,
    /// Services in phase `Waiting`: looked at again whenever anything changes.
    pub(super) waiting: BTreeSet<ServiceId>,
    /// Services that an event touched and that are still to be settled.
    pub(super) touched: BTreeSet<ServiceId>,
    pub(super) shutting_down: bool,
    /// During the shutdown: what is not stopped yet …
    pub(super) up: BTreeSet<ServiceId>,
    /// … and of that, what was not told to stop yet, since others that need it still run.
    held: BTreeSet<ServiceId>,
    exit_said: bool,
    /// Services whose policies changed since that was last asked.
    pub(super) repolicied: BTreeSet<ServiceId>,
}

impl Machine {
    /// `seed`: of the jitter. `last_worker`: the number of the last worker that ever was.
    pub fn new(seed: u64, last_worker: u64) -> Machine {
        Machine {
            now: Time::default(),
            services: Tracked::new(),
            workers: Tracked::new(),
            names: BTreeMap::new(),
            last_worker,
            timers: Timers::default(),
            rng: Rng(seed),
            out: Vec::new(),
            waiting: BTreeSet::new(),
            touched: BTreeSet::new(),
            shutting_down: false,
            up: BTreeSet::new(),
            held: BTreeSet::new(),
            exit_said: false,
            repolicied: BTreeSet::new(),
        }
    }

    /// Takes an event in and returns what is to be done, in order. `now` never goes back.
    pub fn handle(&mut self, now: Time, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        self.dispatch(event);
        self.settle();
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Tick`] is due.
    pub fn next_timeout(&self) -> Option<Time> {
        self.timers.next()
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().map(|s| &**s)
    }

    pub fn service(&self, id: ServiceId) -> Option<&Service> {
        self.services.get(&id).map(|s| &**s)
    }

    pub fn named(&self, name: &str) -> Option<&Service> {
        self.services.get(self.names.get(name)?).map(|s| &**s)
    }

    /// Everything is told to stop, or has stopped.
    pub fn is_shutting_down(&self) -> bool {
        self.shutting_down
    }

    pub fn worker(&self, id: WorkerId) -> Option<&Worker> {
        self.workers.get(&id).map(|w| &**w)
    }

    pub fn workers(&self) -> &BTreeMap<WorkerId, Box<Worker>> {
        self.workers.map()
    }

    fn dispatch(&mut self, event: Event) {
        match event {
            Event::Configure { add, change, remove } => self.handle_configure(add, change, remove),
            Event::Command { op, service, command } => self.handle_command(op, service, command),
            Event::Shutdown => self.handle_shutdown(),
            Event::Prepared { generation, result } => self.handle_prepared(generation, result),
            Event::Spawned { worker, result } => self.handle_spawned(worker, result),
            Event::Unspawned { worker } => self.handle_unspawned(worker),
            Event::Ready { worker } => self.handle_ready(worker),
            Event::Unfit { worker, reason } => self.handle_unfit(worker, reason),
            Event::Hung { worker, reason } => self.handle_hung(worker, reason),
            Event::Extend { worker, by } => self.handle_extend(worker, by),
            Event::Exited { worker, exit, leftovers, reason } => self.handle_exited(worker, exit, leftovers, reason),
            Event::Empty { worker } => self.handle_empty(worker),
            Event::Unhealthy { service, reason } => self.handle_unhealthy(service, &reason),
            Event::Oversized { service, reason } => {
                let why = format!("is replaced by a fresh generation: {reason}");
                self.replace_for(service, |service| &mut service.oversized, why);
            }
            Event::Crowded { service, reason } => self.drop_aside(service, Level::Warning, &reason),
            Event::Grace { service, grace } => self.handle_grace(service, grace),
            Event::Tick => self.handle_tick(),
        }
    }

    fn handle_tick(&mut self) {
        while let Some(timer) = self.timers.pop(self.now) {
            match timer {
                Timer::Worker(worker) => self.worker_due(worker),
                Timer::Slot(generation, slot) => self.slot_due(generation, slot),
                Timer::Service(service) => self.retry_failed(service),
                Timer::Aside(service) => self.drop_aside(service, Level::Info, "its time is over"),
            }
        }
    }

    fn handle_configure(
        &mut self,
        add: Vec<Setup>,
        change: Vec<(ServiceId, Rc<Policy>, Change, Option<OpId>)>,
        remove: Vec<(ServiceId, Option<OpId>)>,
    ) {
        for (id, op) in remove {
            let Some(service) = self.services.get_mut(&id) else {
                self.done(op, Ok(()), None);
                continue;
            };
            service.removed = true;
            self.stop(id, op);
            self.touched.insert(id);
        }
        for (id, policy, change, op) in change {
            self.change(id, policy, change, op);
        }
        // All are known before any of them starts: they may need each other.
        let started: Vec<(ServiceId, Option<OpId>)> =
            add.iter().filter(|s| s.start).map(|s| (s.service, s.op)).collect();
        for setup in add {
            self.repolicied.insert(setup.service);
            self.names.insert(setup.name.clone(), setup.service);
            self.services.insert(setup.service, Box::new(Service::new(setup, self.now)));
        }
        for (id, op) in started {
            self.start(id, op);
        }
    }

    fn change(&mut self, id: ServiceId, policy: Rc<Policy>, change: Change, op: Option<OpId>) {
        let Some(service) = self.services.get_mut(&id) else {
            return self.done(op, Err(GONE.to_owned()), None);
        };
        let old = std::mem::replace(&mut service.policy, Rc::clone(&policy));
        self.repolicied.insert(id);
        let resized = old.instances != policy.instances;
        if change == Change::Live {
            // The running processes live by the new numbers at once.
            for generation in service.generations.iter_mut().filter(|g| Rc::ptr_eq(&g.policy, &old)) {
                generation.policy = Rc::clone(&policy);
            }
        }
        if resized {
            service.scale = None;
        }
        match (&service.phase, change) {
            (Phase::Active, Change::Reload) => self.reload(id, op, Source::Fresh { release: None }, true, None),
            (Phase::Active, Change::Restart) => {
                service.reopen = true;
                self.restart(id, op);
            }
            (Phase::Active, Change::Live) if resized => self.scale(id, op, policy.instances),
            (Phase::Stopping, Change::Restart) => {
                // It may be on its way to another start, which needs the new sockets.
                service.reopen = true;
                self.done(op, Ok(()), None);
            }
            (Phase::Failed { .. }, Change::Reload | Change::Restart) => self.start(id, op),
            _ => self.done(op, Ok(()), None),
        }
    }

    fn handle_command(&mut self, op: Option<OpId>, id: ServiceId, command: Command) {
        if !self.services.contains_key(&id) {
            return self.done(op, Err(GONE.to_owned()), None);
        }
        if self.shutting_down && command != Command::Stop {
            return self.done(op, Err("svd is shutting down".to_owned()), None);
        }
        match command {
            Command::Start => self.start(id, op),
            Command::Stop => self.stop(id, op),
            Command::Restart => self.restart(id, op),
            Command::Reload { release, force, keep, recall } => {
                if !recall.is_some_and(|standby| self.recall(id, op, standby, force)) {
                    self.reload(id, op, Source::Fresh { release }, force, keep);
                }
            }
            Command::Scale(slots) => self.scale(id, op, slots),
            Command::Canary(canary) => self.begin_canary(id, op, canary),
            Command::Dismiss => {
                self.drop_aside(id, Level::Info, "somebody has asked for that");
                self.done(op, Ok(()), None);
            }
        }
    }

    fn handle_shutdown(&mut self) {
        if std::mem::replace(&mut self.shutting_down, true) {
            return;
        }
        for service in self.services.values_mut() {
            service.wanted = false;
            service.then = None;
            if service.phase != Phase::Stopped {
                self.up.insert(service.id);
                self.held.insert(service.id);
            }
        }
    }

    /// The second phase of every event: moves touched services towards what is wanted until nothing moves any more.
    pub(super) fn settle(&mut self) {
        let mut changed = false;
        while let Some(id) = self.touched.pop_first() {
            changed = true;
            self.settle_service(id);
        }
        if changed && !self.waiting.is_empty() {
            self.start_waiting();
            while let Some(id) = self.touched.pop_first() {
                self.settle_service(id);
            }
        }
        if self.shutting_down {
            self.stop_in_order();
        }
    }

    fn settle_service(&mut self, id: ServiceId) {
        let Some(service) = self.services.get(&id) else {
            return;
        };
        if service.phase == Phase::Stopping && service.generations.is_empty() {
            return self.stopped(id);
        }
        if service.committed().is_none() {
            self.drop_aside(id, Level::Info, "nothing serves any more");
        }
        let Some(service) = self.services.get(&id) else {
            return;
        };
        if let Phase::Active = service.phase {
            self.settle_active(id);
        }
    }

    fn stop_in_order(&mut self) {
        while !self.held.is_empty() {
            let up = self.up.iter().filter_map(|id| self.services.get(id));
            let needed: BTreeSet<&str> = up
                .flat_map(|s| s.policy.after.iter().chain(&*s.policy.requires).filter(|n| ***n != *s.name))
                .map(|n| &**n)
                .collect();
            let held = self.held.iter().filter_map(|id| self.services.get(id));
            let free: Vec<ServiceId> = held.filter(|s| !needed.contains(&*s.name)).map(|s| s.id).collect();
            if free.is_empty() {
                break;
            }
            for id in free {
                self.held.remove(&id);
                self.stop(id, None);
                self.leave_behind(id);
            }
            while let Some(id) = self.touched.pop_first() {
                self.settle_service(id);
            }
        }
        if !self.exit_said && self.up.is_empty() {
            self.exit_said = true;
            self.out.push(Action::Exit);
        }
    }

    // What the other files of the machine use.

    pub(super) fn note(&mut self, service: ServiceId, op: Option<OpId>, level: Level, text: String) {
        self.out.push(Action::Note { service, op, level, text });
    }

    pub(super) fn done(&mut self, op: Option<OpId>, result: Result<(), String>, generation: Option<u64>) {
        if let Some(op) = op {
            let result = result.map_err(|reason| Failure { reason, generation });
            self.out.push(Action::Done { op, result });
        }
    }

    /// Answers everybody who waits for `goal`; the others are told why they wait in vain.
    pub(super) fn reached(&mut self, id: ServiceId, goal: Goal, otherwise: &str) {
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        for (op, wanted) in std::mem::take(&mut service.waiting) {
            let result = if wanted == goal { Ok(()) } else { Err(otherwise.to_owned()) };
            self.done(Some(op), result, None);
        }
    }

    pub(super) fn generation(&self, id: GenerationId) -> Option<&Generation> {
        self.services.get(&id.service)?.generation(id.number)
    }

    pub(super) fn generation_mut(&mut self, id: GenerationId) -> Option<&mut Generation> {
        self.services.get_mut(&id.service)?.generation_mut(id.number)
    }

    pub(super) fn enter(&mut self, id: ServiceId, phase: Phase) {
        let now = self.now;
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        if matches!(service.phase, Phase::Failed { .. }) {
            self.timers.clear(Timer::Service(id));
        }
        if phase == Phase::Waiting {
            self.waiting.insert(id);
        } else {
            self.waiting.remove(&id);
        }
        service.phase = phase;
        service.since = now;
        self.touched.insert(id);
    }

    /// Is every slot filled by a ready worker (or done)?
    pub(super) fn all_ready(&self, generation: &Generation) -> bool {
        generation.prepared
            && generation.slots.iter().all(|s| match s.state {
                SlotState::Filled(w) => self.is_ready(w),
                SlotState::Done => true,
                _ => false,
            })
    }
}
