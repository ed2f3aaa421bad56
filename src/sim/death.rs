//! The death of svd between any two of its doings, and its return.

use super::world::World;
use crate::core::{Action, Changed, Event, Exit, Machine, Saved, SavedPolicies, Worker, WorkerState};

fn text(record: &impl serde::Serialize) -> String {
    serde_json::to_string(record).expect("a record is text")
}

/// As the next svd reads it.
fn read(saved: &Saved, policies: Option<&SavedPolicies>) -> Saved {
    let mut read: Saved = serde_json::from_str(&text(saved)).expect("what was written");
    let policies: SavedPolicies = serde_json::from_str(&text(&policies)).expect("what was written");
    read.give_policies(Some(&policies));
    read
}

impl World {
    /// As the daemon does it: the records of what an event changed are written before anything of it is done.
    pub(super) fn write(&mut self) {
        let Changed { services, policies } = self.machine.take_changed();
        for id in services {
            match self.machine.record(id).filter(|_| self.mortal) {
                Some(record) => self.disk.insert(id, record.saved()),
                None => self.disk.remove(&id),
            };
        }
        for id in policies {
            match self.machine.policies(id).filter(|_| self.mortal) {
                Some(policies) => self.disk_policies.insert(id, policies.saved()),
                None => self.disk_policies.remove(&id),
            };
        }
    }

    /// What is on the disk must be what the machine would write now.
    pub fn check_disk(&self) {
        for service in self.machine.services() {
            let record = self.machine.record(service.id).expect("it is there");
            assert_eq!(self.disk.get(&service.id).map(text), Some(text(&record)), "I5: a change was not written");
            let policies = self.machine.policies(service.id).expect("they are there");
            let written = self.disk_policies.get(&service.id).map(text);
            assert_eq!(written, Some(text(&policies)), "I5: a change of policies was not written");
        }
        assert_eq!(self.disk_policies.len(), self.disk.len(), "I5: policies of what is gone");
        assert_eq!(self.disk.len(), self.machine.services().count(), "I5: a record of what is gone");
    }

    /// Callers lose their answers, the pool its work; what was just forked has no record and is ended by the next svd.
    pub(super) fn die(&mut self) {
        self.pending_ops.clear();
        self.lost.clear();
        self.preparing.clear();
        for worker in std::mem::take(&mut self.spawning) {
            self.processes.remove(&worker);
        }
        self.return_again();
    }

    fn return_again(&mut self) {
        let saved: Vec<Saved> = self.disk.iter().map(|(id, saved)| read(saved, self.disk_policies.get(id))).collect();
        self.machine = Machine::restore(7, self.last_worker, self.now, saved);
        for worker in self.processes.keys() {
            assert!(self.machine.worker(*worker).is_some(), "I4: {worker:?} runs, and no record says so");
        }
        let known: Vec<Worker> = self.machine.workers().values().map(|w| (**w).clone()).collect();
        for worker in &known {
            if worker.state == WorkerState::Spawning {
                // Never forked, or forked and ended without having been recorded.
                self.processes.remove(&worker.id);
            }
            if self.processes.get(&worker.id).is_none_or(|p| !p.main && !worker.has_ended()) {
                self.lost.insert(worker.id);
            }
        }
        self.death = self.death_again.take();
        let actions = self.machine.resume();
        self.write();
        if self.do_until_death(actions) {
            return;
        }
        for worker in known {
            // Whoever died meanwhile has told the rest.
            if self.lost.contains(&worker.id) {
                self.tell_what_happened(&worker);
            }
        }
        if self.shutting_down {
            self.feed(Event::Shutdown);
        }
        self.check();
    }

    /// True if svd died on the way, and has returned.
    pub(super) fn do_until_death(&mut self, actions: Vec<Action>) -> bool {
        let death = self.death.take();
        for (n, action) in (1..).zip(actions) {
            if death == Some(n) {
                self.die();
                return true;
            }
            self.execute(action);
        }
        if death.is_some() {
            self.die();
        }
        death.is_some()
    }

    fn tell_what_happened(&mut self, worker: &Worker) {
        let id = worker.id;
        self.lost.remove(&id);
        let exited = |leftovers| Event::Exited { worker: id, exit: Exit::Unknown, leftovers, reason: None };
        if worker.state == WorkerState::Spawning {
            let result = Err("svd died while it was started".to_owned());
            return self.feed(Event::Spawned { worker: id, result });
        }
        let leftovers = self.processes.contains_key(&id);
        self.feed(exited(leftovers));
    }
}
