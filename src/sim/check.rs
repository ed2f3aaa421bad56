//! The invariants, by the names that the design gives them.

use super::world::World;
use crate::core::{GenerationId, Phase, Role, SlotState, WorkerId, WorkerState};

impl World {
    /// After every event.
    pub(super) fn check(&self) {
        for service in self.machine.services() {
            let committed = service.generations.iter().filter(|g| g.role == Role::Committed).count();
            assert!(committed <= 1, "I3: {committed} committed generations");
            let candidates = service.generations.iter().filter(|g| g.role == Role::Candidate).count();
            assert!(candidates <= 1, "I3: {candidates} candidates");
            let draining = service.generations.iter().filter(|g| g.role == Role::Draining).count();
            assert!(draining <= 40, "I10: {draining} draining generations");
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
        }
        for (id, process) in &self.processes {
            let worker = self.machine.worker(*id);
            assert!(worker.is_some(), "I4: {id:?} runs and nobody knows it");
            let stopping = worker.is_some_and(|w| matches!(w.state, WorkerState::Stopping { .. }));
            assert!(
                !stopping || process.told || self.lost.contains(id),
                "I5: {id:?} was to be stopped, and was not told"
            );
        }
        for service in self.machine.services() {
            let committed = service.committed().map(|g| g.id.number);
            let open = self.committed.get(&service.id).copied();
            assert!(committed.is_none() || committed == open, "I5: {committed:?} serves, and its gate is closed");
        }
        if let Some(at) = self.machine.next_timeout() {
            // A deadline in the past would spin. One that was passed over is due at the next tick, not before.
            assert!(at >= self.now || self.now.since(at) < std::time::Duration::from_secs(3600), "I7: a dead timer");
        }
    }

    /// Once a tick has been handled, no deadline may be due any more.
    pub fn check_no_spin(&self) {
        if let Some(at) = self.machine.next_timeout() {
            assert!(at > self.now, "I7: a deadline stays due after its tick");
        }
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
        if let Some((at, up)) = self.ended.get(&(id, slot)) {
            let restart = &self.policies[&id.service].restart;
            if *up < restart.settled {
                assert!(
                    self.now.since(*at) >= restart.delay,
                    "I7: slot {slot} of {id:?} is started again too soon ({at:?}, {up:?}, now {:?})",
                    self.now
                );
            }
        }
    }

    /// I2: the committed generation is told to stop only when it was replaced, or nothing of the service should run.
    pub(super) fn check_signal(&self, worker: WorkerId) {
        let Some(process) = self.processes.get(&worker) else {
            return;
        };
        let id = process.generation;
        assert!(process.main, "I4: a signal to a main process that is gone");
        if self.committed.get(&id.service) == Some(&id.number) {
            let service = self.machine.service(id.service).expect("it has processes");
            let generation = service.generations.iter().find(|g| g.id == id);
            let scaled_down = generation.is_some_and(|g| g.slots.len() <= process.slot as usize);
            // By what happened to it, not by what the machine thinks of it.
            let unfit = process.unfit || !process.ready;
            // Once more, after a death of svd.
            if process.told {
                return;
            }
            let stopping = service.phase != Phase::Active || !service.policy.overlap;
            assert!(stopping || scaled_down || unfit, "I2: the generation that serves is told to stop");
        }
    }

    pub(super) fn check_commit(&mut self, id: GenerationId) {
        let service = self.machine.service(id.service).expect("it is committed");
        let generation = service.generations.iter().find(|g| g.id == id).expect("it is committed");
        if self.committed.get(&id.service) == Some(&id.number) {
            // Once more, after a death of svd: the gate is open.
            return;
        }
        for slot in &generation.slots {
            let ready = match slot.state {
                SlotState::Filled(worker) => self.processes.get(&worker).is_some_and(|p| p.ready),
                SlotState::Done => true,
                _ => false,
            };
            assert!(ready, "I2: {id:?} is committed before all of it is ready");
        }
        let before = self.committed.insert(id.service, id.number);
        assert!(before.is_none_or(|b| b < id.number), "generations are committed in the order of their numbers");
    }

    pub(super) fn check_discard(&self, id: GenerationId) {
        let left = self.processes.values().filter(|p| p.generation == id).count();
        assert_eq!(left, 0, "I4: {id:?} is forgotten while it runs");
    }
}
