//! The simulated kernel: processes are born, fork, become ready, and end.

use super::choice::{Birth, Choice, Fault, Nth};
use super::world::{Absence, World};
use crate::core::{Event, Exit, GenerationId, Time, WorkerId};
use crate::sys::process::Identity;
use std::time::Duration;

/// One simulated worker: a main process and, perhaps, others.
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub generation: GenerationId,
    pub slot: u32,
    pub started: Time,
    pub identity: Identity,
    pub main: bool,
    /// What it has forked.
    pub children: Vec<Identity>,
    /// Told to stop, or killed: it will end.
    pub told: bool,
    pub killed: bool,
    pub ready: bool,
    /// … and svd has heard so.
    pub heard: bool,
    /// The machine was told that it should not go on.
    pub unfit: bool,
    /// Never ready by itself.
    pub mute: bool,
    /// Heeds nothing but a kill.
    pub deaf: bool,
    /// Its program cannot be executed.
    pub doomed: Option<Fault>,
}

/// How a worker's main process has ended.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub generation: GenerationId,
    pub slot: u32,
    pub started: Time,
    /// It had been ready.
    pub proved: bool,
    /// Nobody had told it to.
    pub unasked: bool,
    /// What svd can know of it.
    pub exit: Exit,
}

impl World {
    pub(super) fn spawned(&mut self, birth: Birth) -> bool {
        let Some(worker) = self.spawning.first().copied() else { return false };
        if let Birth::Refused(fault) = birth {
            self.spawning.remove(&worker);
            self.gone(worker);
            let event = Event::Spawned { worker, result: Err(format!("could not be forked: {fault}")) };
            self.feed_fault(event, fault);
            return true;
        }
        if self.burn() {
            // Forked and not recorded.
            return true;
        }
        self.spawning.remove(&worker);
        if let Some(process) = self.processes.get_mut(&worker) {
            (process.mute, process.deaf) = (birth == Birth::Mute, birth == Birth::Deaf);
            process.doomed = if let Birth::NeverRuns(fault) = birth { Some(fault) } else { None };
            self.records.insert(worker, process.identity);
            self.records_changed = true;
        }
        self.write();
        self.feed(Event::Spawned { worker, result: Ok(()) });
        true
    }

    pub(super) fn disturb(&mut self, worker: WorkerId, choice: &Choice) {
        if let Choice::Extend(_) = choice {
            return self.feed(Event::Extend { worker, by: Duration::from_secs(30) });
        }
        if let Some(process) = self.processes.get_mut(&worker) {
            process.unfit = true;
        }
        self.feed(match choice {
            Choice::Hung(_) => Event::Hung { worker, reason: "missed its watchdog".into() },
            _ => Event::Unfit { worker, reason: "failed its probe".into() },
        });
    }

    pub(super) fn ready(&mut self, nth: Nth) -> bool {
        let Some(worker) = self.worker(nth).filter(|w| self.is_spawned(*w)) else { return false };
        let Some(process) = self.processes.get_mut(&worker).filter(|p| !p.ready && !p.mute && p.doomed.is_none())
        else {
            return false;
        };
        match self.dead {
            Some(Absence { both: true }) => {}
            Some(_) => {
                process.ready = true;
                self.unheard.insert(worker);
            }
            None => {
                // Where svd dies before it has heard, a probe passes once more.
                process.ready = self.fuse != Some(0);
                self.feed(Event::Ready { worker });
            }
        }
        true
    }

    /// The lowest number that is free: numbers come back soon.
    pub(super) fn new_process(&mut self) -> Identity {
        let pid = (1..).find(|pid| !self.table.contains_key(pid)).unwrap_or_default();
        self.started += 1;
        self.table.insert(pid, self.started);
        Identity { pid, start_time: self.started }
    }

    pub(super) fn fork(&mut self, nth: Nth) -> bool {
        let Some(worker) = self.worker(nth).filter(|w| !self.spawning.contains(w)) else { return false };
        let child = self.new_process();
        if let Some(process) = self.processes.get_mut(&worker) {
            process.children.push(child);
        }
        true
    }

    pub(super) fn exit(&mut self, nth: Nth, exit: Exit, others: bool) -> bool {
        let Some(worker) = self.worker(nth).filter(|w| self.is_spawned(*w)) else { return false };
        if others && self.processes[&worker].children.is_empty() {
            self.fork(nth);
        }
        let Some(process) = self.processes.get(&worker) else { return false };
        let (doomed, recorded) = (process.doomed, self.records.contains_key(&worker));
        let identity = process.identity;
        self.end(worker, exit);
        if recorded && self.dead.is_none_or(|absence| !absence.both) {
            self.statuses.insert(identity, exit);
        }
        if others {
            self.processes.get_mut(&worker).expect("it is there").main = false;
        } else {
            self.gone(worker);
        }
        if self.dead.is_none() {
            let reason = doomed.map(|fault| format!("cannot be executed: {fault}"));
            let event = Event::Exited { worker, exit, leftovers: others, reason };
            match doomed {
                Some(fault) => self.feed_fault(event, fault),
                None => self.feed(event),
            }
        }
        true
    }

    /// Its end is decided about: it is reaped, and its record written as what is left of it. Not before, as whatever is written
    /// meanwhile would leave the next svd without a way to find out how it ended.
    pub(super) fn forget_process(&mut self, worker: WorkerId) {
        let Some(identity) = self.records.get(&worker) else { return };
        self.statuses.remove(identity);
        if !self.processes.contains_key(&worker) {
            self.records.remove(&worker);
            self.records_changed = true;
        }
    }

    pub(super) fn empty(&mut self, nth: Nth) -> bool {
        let Some(worker) = self.worker(nth).filter(|w| !self.processes[w].main) else { return false };
        self.gone(worker);
        if self.dead.is_none() {
            self.feed(Event::Empty { worker });
        }
        true
    }

    /// Nothing of it is left.
    pub(super) fn gone(&mut self, worker: WorkerId) {
        self.note_meanwhile(worker);
        if let Some(process) = self.processes.remove(&worker) {
            for identity in process.children.iter().chain(process.main.then_some(&process.identity)) {
                self.table.remove(&identity.pid);
            }
        }
    }

    /// What is decided about earlier events does not know it yet; what is done for them finds nobody.
    fn note_meanwhile(&mut self, worker: WorkerId) {
        if self.dead.is_none() && (self.together > 0 || !self.inbox.is_empty()) {
            self.gone_meanwhile.insert(worker);
        }
    }

    /// Its main process ends.
    pub(super) fn end(&mut self, worker: WorkerId, exit: Exit) {
        self.note_meanwhile(worker);
        let Some(process) = self.processes.get(&worker) else { return };
        self.table.remove(&process.identity.pid);
        let Process { generation, slot, started, .. } = *process;
        let exit = if self.dead.is_some_and(|absence| absence.both) { Exit::Unknown } else { exit };
        self.ends
            .insert(worker, End { generation, slot, started, proved: process.ready, unasked: !process.told, exit });
    }
}
