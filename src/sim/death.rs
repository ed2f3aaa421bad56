//! The state file, the death of svd, of its guardian and of both, and the return: what the daemon does, in its order.

use super::world::{Absence, World};
use crate::core::{
    Changed, Event, Exit, Fate, Machine, Saved, SavedPolicies, ServiceId, Worker, WorkerId, WorkerState,
};
use std::collections::BTreeSet;

fn text(record: &impl serde::Serialize) -> String {
    serde_json::to_string(record).expect("a record is text")
}

impl World {
    /// As the daemon does it: the records of what an event changed are written before anything of it is done. Where that fails
    /// they wait, and svd goes on.
    pub(super) fn write(&mut self) {
        let mut changed = self.machine.take_changed();
        if !self.mortal {
            return;
        }
        self.unwritten.services.append(&mut changed.services);
        self.unwritten.policies.append(&mut changed.policies);
        if self.full {
            return;
        }
        let Changed { services, policies } = std::mem::take(&mut self.unwritten);
        for id in services {
            match self.machine.record(id) {
                Some(record) => self.disk.insert(id, record.saved()),
                None => self.disk.remove(&id),
            };
        }
        for id in policies {
            match self.machine.policies(id) {
                Some(policies) => self.disk_policies.insert(id, policies.saved()),
                None => self.disk_policies.remove(&id),
            };
        }
        if self.records_changed {
            self.records_changed = false;
            self.disk_records.clone_from(&self.records);
        }
    }

    pub(super) fn set_full(&mut self, full: bool) -> bool {
        if self.full == full || self.exited {
            return false;
        }
        self.full = full;
        if !full && self.dead.is_none() {
            self.write();
            self.replace_guardian();
        }
        true
    }

    /// What is on the disk must be what the machine would write now.
    pub fn check_disk(&self) {
        if self.full || self.dead.is_some() || !self.mortal {
            return;
        }
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

    /// One doing less until svd dies. True: it has.
    pub(super) fn burn(&mut self) -> bool {
        let Some(left) = self.fuse else { return false };
        self.fuse = left.checked_sub(1);
        if self.fuse.is_none() {
            let both = std::mem::take(&mut self.fuse_of_both) || self.unguarded;
            self.die(both);
        }
        self.dead.is_some()
    }

    /// svd becomes the guardian, and gives its memory up for what is written: not before all of it is.
    pub(super) fn replace_guardian(&mut self) {
        if self.unguarded && !self.full {
            self.write();
            self.die(false);
        }
    }

    /// Callers lose their answers, the pool its work; what has no record is ended, by the end of its pipe or by the next svd.
    fn die(&mut self, both: bool) {
        self.say(|| format!("                † {}", if both { "svd and guardian" } else { "svd" }));
        self.stale |= !self.unwritten.services.is_empty() || self.records_changed;
        self.unwritten = Changed::default();
        self.unguarded = false;
        self.pending_ops.clear();
        self.preparing.clear();
        self.spawning.clear();
        self.lost.clear();
        self.unheard.clear();
        self.resuming = false;
        self.inbox.clear();
        self.together = 0;
        self.gone_meanwhile.clear();
        self.records.clone_from(&self.disk_records);
        self.records_changed = false;
        let unrecorded = |id: &&WorkerId| !self.disk_records.contains_key(*id);
        let ended: Vec<WorkerId> = self.processes.keys().filter(unrecorded).copied().collect();
        for worker in ended {
            self.gone(worker);
        }
        self.dead = Some(Absence { both });
        if both {
            self.forget_statuses();
        }
    }

    /// With nobody there, whoever becomes the parent of what has ended does not tell how.
    pub(super) fn forget_statuses(&mut self) {
        self.statuses.clear();
        let written = |w: &&Worker| w.has_ended();
        let told: BTreeSet<WorkerId> =
            self.disk.values().flat_map(|saved| saved.workers().iter().filter(written)).map(|w| w.id).collect();
        for (_, end) in self.ends.iter_mut().filter(|(worker, _)| !told.contains(worker)) {
            end.exit = Exit::Unknown;
        }
    }

    fn read(&self) -> Vec<Saved> {
        let read = |(id, saved): (&ServiceId, &Saved)| {
            let policies = &self.disk_policies[id];
            if self.thorough {
                let mut saved: Saved = serde_json::from_str(&text(saved)).expect("what was written");
                let policies: SavedPolicies = serde_json::from_str(&text(policies)).expect("what was written");
                saved.give_policies(Some(&policies));
                return saved;
            }
            let mut saved = saved.clone();
            saved.give_policies(Some(policies));
            saved
        };
        self.disk.iter().map(read).collect()
    }

    pub(super) fn return_again(&mut self, again: Option<u8>) -> bool {
        let Some(absence) = self.dead.take() else { return false };
        self.fuse = again;
        self.machine = Machine::restore(7, self.last_worker, self.now, self.read());
        for (id, number) in &self.highest {
            // Kept beside the records, in another directory.
            self.machine.skip_generations(*id, *number);
        }
        if std::mem::take(&mut self.stale) {
            self.forget_what_was_not_written();
        }
        self.find_sockets(absence);
        for worker in self.processes.keys() {
            assert!(self.machine.worker(*worker).is_some(), "I4: {worker:?} runs, and no record says so");
        }
        let known: Vec<Worker> = self.machine.workers().values().map(|w| (**w).clone()).collect();
        let fates: Vec<(Worker, Fate)> = known.into_iter().map(|w| (self.fate(&w), w)).map(|(f, w)| (w, f)).collect();
        for (worker, fate) in &fates {
            if !matches!(fate, Fate::Runs) {
                self.lost.insert(worker.id);
            }
            self.hear_again(worker);
        }
        self.unwritten.services.extend(self.machine.services().map(|s| s.id));
        self.resuming = true;
        let actions = self.machine.resume();
        self.write();
        self.obey(actions);
        self.resuming = false;
        if self.dead.is_none() {
            self.tell_what_happened(&fates);
        }
        true
    }

    fn tell_what_happened(&mut self, fates: &[(Worker, Fate)]) {
        for (worker, fate) in fates {
            self.lost.remove(&worker.id);
            if let Some(event) = fate.event(worker) {
                self.feed(event);
            }
            if self.dead.is_some() {
                return;
            }
        }
        // Only now need nobody know it once more.
        self.records.retain(|worker, _| self.processes.contains_key(worker));
        self.records_changed = true;
        self.statuses.clear();
        self.write();
        let again = self.shutting_down.then_some(Event::Shutdown);
        let heard = std::mem::take(&mut self.unheard).into_iter().map(|worker| Event::Ready { worker });
        for event in heard.chain(again) {
            if self.dead.is_none() {
                self.feed(event);
            }
        }
        if self.dead.is_none() {
            self.check();
        }
    }

    /// As the daemon finds out.
    fn fate(&self, worker: &Worker) -> Fate {
        let Some(recorded) = self.records.get(&worker.id) else { return Fate::NeverRan };
        let process = self.processes.get(&worker.id);
        let has_number = process.is_some_and(|p| {
            (p.main && p.identity.pid == recorded.pid) || p.children.iter().any(|child| child.pid == recorded.pid)
        });
        if has_number && recorded.is(self.table.get(&recorded.pid).copied()) {
            assert!(process.is_some_and(|p| p.main), "I4: another process is taken for {:?}", worker.id);
            return Fate::Runs;
        }
        assert!(process.is_none_or(|p| !p.main), "I3: {:?} runs, and is not taken over", worker.id);
        let exit = self.statuses.get(recorded).copied().unwrap_or(Exit::Unknown);
        match process {
            Some(_) if worker.has_ended() => Fate::Runs,
            left => Fate::Ended { exit, leftovers: left.is_some() },
        }
    }

    /// What was said and not written down: a probe passes once more.
    fn hear_again(&mut self, worker: &Worker) {
        let booting = matches!(worker.state, WorkerState::Spawning | WorkerState::Booting { .. });
        if let Some(process) = self.processes.get_mut(&worker.id).filter(|_| booting)
            && !self.unheard.contains(&worker.id)
        {
            (process.ready, process.heard) = (false, false);
        }
    }

    /// svd died when the state file could not be written: it goes on from an earlier moment. What the other checks remember of
    /// what has happened since, the machine does not know.
    fn forget_what_was_not_written(&mut self) {
        self.ended.clear();
        self.ends.clear();
        self.committed.clear();
        self.exposed.clear();
        self.reopening.extend(self.machine.services().map(|s| s.id));
        let machine = &self.machine;
        self.policies.retain(|id, _| machine.service(*id).is_some());
        self.open.retain(|id| machine.service(*id).is_some());
        for service in self.machine.services() {
            self.policies.entry(service.id).or_insert_with(|| service.policy.clone());
        }
    }

    /// Where the guardian was killed as well, those that no worker holds are gone. What has none though it should is bound anew.
    fn find_sockets(&mut self, absence: Absence) {
        if absence.both {
            let held: BTreeSet<ServiceId> = self.processes.values().map(|p| p.generation.service).collect();
            self.open.retain(|id| held.contains(id));
        }
        let started = self.machine.services().filter(|s| s.generations.iter().any(|g| g.prepared));
        self.lost_sockets = started.map(|s| s.id).filter(|id| !self.open.contains(id)).collect();
    }
}
