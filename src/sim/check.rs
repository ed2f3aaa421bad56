//! The invariants, by the names that the design gives them.

use super::choice::{Fault, KEPT};
use super::world::World;
use crate::config::spec::Policy as RestartPolicy;
use crate::core::{
    Action, Command, Event, Exit, GenerationId, Phase, Role, Service, ServiceId, Slot, SlotState, WorkerId, WorkerState,
};

/// A worker's place, before its end was told.
pub(super) struct Held {
    generation: GenerationId,
    slot: u32,
    /// It is wanted there.
    wanted: bool,
    exit: Option<Exit>,
}

impl World {
    /// After every event.
    pub(super) fn check(&self) {
        for service in self.machine.services() {
            let with = |role: Role| service.generations.iter().filter(|g| g.role == role).count();
            assert!(with(Role::Committed) <= 1, "I3: {} committed generations", with(Role::Committed));
            assert!(with(Role::Candidate) <= 1, "I3: {} candidates", with(Role::Candidate));
            assert!(with(Role::Draining) <= 40, "I10: {} draining generations", with(Role::Draining));
            if service.phase == Phase::Stopped {
                let left = self.processes.values().filter(|p| p.generation.service == service.id).count();
                assert_eq!(left, 0, "I4: a stopped service left processes behind");
            }
            for generation in &service.generations {
                for slot in &generation.slots {
                    if let SlotState::Filled(worker) = slot.state {
                        assert!(self.machine.worker(worker).is_some(), "a slot holds a worker that is gone");
                    }
                }
            }
            self.check_aside(service);
            let committed = service.committed().map(|g| g.id.number);
            let open = self.committed.get(&service.id).copied();
            assert!(committed.is_none() || committed == open, "I5: {committed:?} serves, and its gate is closed");
            let sockets = self.open.contains(&service.id) || self.lost_sockets.contains(&service.id);
            assert!(committed.is_none() || sockets, "I1: {committed:?} serves, and its sockets are closed");
        }
        for (id, process) in &self.processes {
            let Some(worker) = self.machine.worker(*id) else { panic!("I4: {id:?} runs and nobody knows it") };
            let stopping = matches!(worker.state, WorkerState::Stopping { .. });
            assert!(
                !stopping || process.told || self.lost.contains(id),
                "I5: {id:?} was to be stopped, and was not told"
            );
        }
        if let Some(at) = self.machine.next_timeout() {
            // A deadline in the past would spin. One that was passed over is due at the next tick, not before.
            assert!(at >= self.now || self.now.since(at) < std::time::Duration::from_secs(3600), "I7: a dead timer");
        }
    }

    /// A standby answers nobody, a canary when it has booted; both are there for what serves alone.
    fn check_aside(&self, service: &Service) {
        let mut all = service.generations.iter().filter(|g| matches!(g.role, Role::Standby | Role::Canary));
        let Some(aside) = all.next() else { return };
        assert!(all.next().is_none(), "I3: two beside what serves");
        assert!(service.phase == Phase::Active, "I4: a standby of what does not run");
        assert!(service.committed().is_some(), "I4: a standby of what does not serve");
        assert!(self.committed.get(&service.id) != Some(&aside.id.number), "I2: the gate of a standby is open");
        assert!(!aside.open || aside.role == Role::Canary, "I2: a standby is to serve");
        assert!(
            aside.open == self.exposed.contains(&aside.id),
            "I2: the gate of {:?} is not as it should be",
            aside.id
        );
        let most = KEPT + service.policy.ready_timeout;
        assert!(aside.until.is_some_and(|until| until.since(self.now) <= most), "I7: a standby without an end");
        assert!(aside.slots.iter().all(|s| s.restarts == 0), "I7: a standby is restarted");
    }

    /// The standby that this event calls for, and whether it has booted.
    pub(super) fn recalled(&self, event: &Event) -> Option<(GenerationId, bool)> {
        let Event::Command { service, command: Command::Reload { recall: Some(number), .. }, .. } = event else {
            return None;
        };
        let standby = self.machine.service(*service)?.standby().filter(|g| g.id.number == *number)?;
        let ready = |id: WorkerId| self.machine.worker(id).is_some_and(|w| w.state == WorkerState::Ready);
        let booted = |slot: &Slot| matches!(slot.state, SlotState::Filled(worker) if ready(worker));
        Some((standby.id, standby.prepared && standby.slots.iter().all(booted)))
    }

    /// Nothing is booted for a way back to a standby, and one that has booted serves at once.
    pub(super) fn check_recall(&self, (standby, booted): (GenerationId, bool), actions: &[Action]) {
        let refused = actions.iter().any(|a| matches!(a, Action::Done { result: Err(_), .. }));
        if refused || self.machine.is_shutting_down() {
            return;
        }
        let begins =
            |a: &Action| matches!(a, Action::Prepare { generation, .. } if generation.service == standby.service);
        assert!(!actions.iter().any(begins), "a generation is begun beside the standby {standby:?} that is called for");
        let commits = actions.iter().any(|a| matches!(a, Action::Commit { generation } if *generation == standby));
        assert!(commits == booted, "{standby:?} has booted: {booted}; it takes over: {commits}");
    }

    /// Once a tick has been handled, no deadline may be due any more.
    pub fn check_no_spin(&self) {
        if let Some(at) = self.machine.next_timeout() {
            assert!(at > self.now, "I7: a deadline stays due after its tick");
        }
    }

    /// What the machine is about to be told of an end.
    pub(super) fn before(&mut self, event: &Event) -> Option<(WorkerId, Held)> {
        let (worker, exit) = match event {
            Event::Exited { worker, exit, .. } => (*worker, Some(*exit)),
            Event::Empty { worker } | Event::Spawned { worker, result: Err(_) } => (*worker, None),
            _ => return None,
        };
        let end = self.ends.get(&worker);
        if let (Some(end), Some(exit)) = (end, exit) {
            assert_eq!(exit, end.exit, "I5: how {worker:?} has ended is known, and not told");
        }
        let known = self.machine.worker(worker)?;
        let (generation, slot) = (known.generation, known.slot);
        let of_service = self.machine.service(generation.service)?;
        let role = of_service.generations.iter().find(|g| g.id == generation).map(|g| g.role);
        let held = Held {
            generation,
            slot,
            wanted: role.is_some_and(|r| r != Role::Draining) && !known.leaving(),
            exit: end.map(|end| end.exit),
        };
        if let Some(end) = end
            && end.unasked
            // Nor was anybody about to tell it.
            && !known.leaving()
            && !matches!(event, Event::Empty { .. })
        {
            let well = end.exit == Exit::Code(0) && held.wanted;
            let up = if end.proved { self.now.since(end.started) } else { std::time::Duration::ZERO };
            self.ended.insert((end.generation, end.slot), (self.now, up, well));
        }
        self.slot(&held).is_some_and(|s| s.state == SlotState::Filled(worker)).then_some((worker, held))
    }

    fn slot(&self, held: &Held) -> Option<&crate::core::Slot> {
        let service = self.machine.service(held.generation.service)?;
        let generation = service.generations.iter().find(|g| g.id == held.generation)?;
        generation.slots.get(held.slot as usize)
    }

    /// The machine has been told of an end.
    pub(super) fn check_end(&mut self, worker: WorkerId, held: &Held) {
        let slot = self.slot(held);
        if let (Some(slot), Some(exit)) = (slot, held.exit)
            && slot.state != SlotState::Filled(worker)
        {
            assert_eq!(slot.last_exit, Some(exit), "I5: how {worker:?} has ended is forgotten");
        }
        if self.machine.worker(worker).is_none() {
            self.ends.remove(&worker);
        }
    }

    /// Something failed of what people want: they are told why.
    pub(super) fn check_told(&self, fault: Fault, held: Option<&Held>) {
        if self.dead.is_some() || !held.is_some_and(|h| h.wanted) {
            return;
        }
        let why = fault.to_string();
        let shown = || self.machine.services().filter_map(|s| self.machine.reason(s.id)).any(|r| r.contains(&why));
        let slots = || self.machine.services().flat_map(|s| &s.generations).flat_map(|g| &g.slots);
        let kept = || slots().any(|s| s.reason.as_ref().is_some_and(|r| r.contains(&why)));
        assert!(
            self.said.iter().any(|text| text.contains(&why)) || shown() || kept(),
            "a spawn fails, and nobody is told that it is for {why:?}"
        );
    }

    pub(super) fn check_spawn(&mut self, worker: WorkerId, id: GenerationId, slot: u32, committed: bool) {
        assert!(worker.0 > self.last_worker, "I3: {worker:?} is started a second time");
        self.last_worker = worker.0;
        let is_committed = self.committed.get(&id.service) == Some(&id.number);
        assert_eq!(committed, is_committed, "I2: the gate of {id:?} would be wrong");
        let overlap = self.machine.service(id.service).is_some_and(|s| s.policy.overlap);
        for process in self.processes.values().filter(|p| p.generation.service == id.service) {
            let same = process.generation == id && process.slot == slot;
            assert!(!(same && process.main), "I3: slot {slot} of {id:?} is filled twice");
            let alone = !overlap && (same || process.generation != id);
            assert!(!alone, "without overlap, {id:?} starts beside {:?}", process.generation);
        }
        if let Some((at, up, well)) = self.ended.get(&(id, slot)) {
            let restart = &self.policies[&id.service].restart;
            assert!(*up >= restart.settled || self.now.since(*at) >= restart.delay, "I7: started again too soon");
            assert!(!well || restart.policy == RestartPolicy::Always, "what ended well is started again");
        }
    }

    /// I1: it gets the service's sockets; only where all who held them died they are bound anew.
    pub(super) fn check_sockets(&mut self, id: GenerationId) {
        let anew = self.lost_sockets.remove(&id.service) && self.open.insert(id.service);
        assert!(anew || self.open.contains(&id.service), "I1: {id:?} is started without its sockets");
    }

    /// I1: nobody serves from them.
    pub(super) fn check_close(&self, service: ServiceId) {
        let open = self.committed.get(&service);
        let serving = self.processes.iter().find(|(_, p)| {
            let id = p.generation;
            id.service == service && Some(&id.number) == open && p.main && p.ready && !p.told && !p.unfit
        });
        let serving = serving.filter(|(id, _)| !self.lost.contains(id));
        assert!(serving.is_none(), "I1: sockets are closed while {serving:?} serves");
    }

    /// What was decided just now, from the `first` of these actions on; those before it are not done yet either.
    pub(super) fn check_decided(&mut self, actions: &[Action], first: usize) {
        for (at, action) in actions.iter().enumerate().skip(first) {
            match action {
                Action::Commit { generation } | Action::Expose { generation } => self.check_commit(*generation),
                Action::Signal { worker, .. } => self.check_signal(*worker, &actions[..at]),
                Action::CloseSockets { service } => {
                    let up = self.machine.service(*service).is_some_and(|s| s.phase == Phase::Active);
                    let asked = self.reopening.remove(service);
                    assert!(!up || asked, "I1: sockets of what is restarted are closed");
                }
                _ => {}
            }
        }
    }

    /// I2: the generation that serves is told to stop only when it was replaced, or nothing of the service should run.
    fn check_signal(&self, worker: WorkerId, before: &[Action]) {
        let Some(process) = self.processes.get(&worker) else { return };
        let id = process.generation;
        let decided = before.iter().rev().find_map(|action| match action {
            Action::Commit { generation } if generation.service == id.service => Some(generation.number),
            _ => None,
        });
        let serves = decided.or(self.committed.get(&id.service).copied()) == Some(id.number);
        // Once more, after a death of svd, is not worse.
        if !serves || process.told {
            return;
        }
        let service = self.machine.service(id.service).expect("it has processes");
        let generation = service.generations.iter().find(|g| g.id == id);
        let scaled_down = generation.is_some_and(|g| g.slots.len() <= process.slot as usize);
        // By what happened to it, not by what the machine thinks of it.
        let unfit = process.unfit || !process.heard;
        let stopping = service.phase != Phase::Active || !service.policy.overlap;
        assert!(stopping || scaled_down || unfit, "I2: the generation that serves is told to stop");
    }

    /// I2: what is committed was ready when that was decided.
    fn check_commit(&self, id: GenerationId) {
        let service = self.machine.service(id.service).expect("it is committed");
        let generation = service.generations.iter().find(|g| g.id == id).expect("it is committed");
        for slot in &generation.slots {
            let ready = match slot.state {
                // One that has ended, which is not told yet, was ready when it was last heard of.
                SlotState::Filled(worker) => {
                    let ended = self.ends.contains_key(&worker) || self.lost.contains(&worker);
                    ended || self.processes.get(&worker).is_some_and(|p| p.ready)
                }
                SlotState::Done => true,
                _ => false,
            };
            assert!(ready, "I2: {id:?} is committed before all of it is ready");
        }
    }

    pub(super) fn commit(&mut self, id: GenerationId) {
        // Once more, after a death of svd: the gate is open.
        let before = self.committed.insert(id.service, id.number);
        assert!(before.is_none_or(|b| b <= id.number), "generations are committed in the order of their numbers");
        assert!(self.resuming || before != Some(id.number), "{id:?} is committed twice");
    }

    pub(super) fn check_discard(&self, id: GenerationId) {
        let left = self.processes.values().filter(|p| p.generation == id).count();
        assert_eq!(left, 0, "I4: {id:?} is forgotten while it runs");
    }
}
