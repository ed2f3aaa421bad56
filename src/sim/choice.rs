//! What may happen next: to processes, to svd, and what people ask for.

use super::world::World;
use crate::core::{Canary, Change, Command, Exit, ServiceId, WorkerId};
use std::fmt;
use std::time::Duration;

/// A service's n-th process (or generation that is being prepared) of those that there are, in the order of their numbers:
/// means something still when an earlier choice was left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nth(pub ServiceId, pub u8);

/// What the kernel answers when it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// `EAGAIN`: too many processes.
    Again,
    /// `ENOMEM`
    NoMemory,
    /// `EMFILE`
    NoFiles,
    /// `ENOENT`
    NotFound,
    /// `EACCES`
    NoAccess,
}

impl Fault {
    pub const FORK: [Fault; 3] = [Fault::Again, Fault::NoMemory, Fault::NoFiles];
    pub const EXEC: [Fault; 2] = [Fault::NotFound, Fault::NoAccess];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::Again => "Resource temporarily unavailable",
            Fault::NoMemory => "Cannot allocate memory",
            Fault::NoFiles => "Too many open files",
            Fault::NotFound => "No such file or directory",
            Fault::NoAccess => "Permission denied",
        })
    }
}

/// What a spawn comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Birth {
    Good,
    /// Nothing was forked.
    Refused(Fault),
    /// Forked; the program cannot be executed, and the child ends.
    NeverRuns(Fault),
    /// It is never ready.
    Mute,
    /// It ignores the stop signal.
    Deaf,
}

/// Something that may happen next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Command(ServiceId, Command),
    Change(ServiceId, Change),
    /// Its file is removed.
    Remove(ServiceId),
    /// Its file is there again: the n-th of the world's.
    Add(u8),
    Unhealthy(ServiceId),
    Oversized(ServiceId),
    Grace(ServiceId),
    /// Memory is short.
    Crowded(ServiceId),
    Shutdown,
    Prepared(Nth, Result<(), Fault>),
    /// The answer to the first spawn that has none.
    Spawned(Birth),
    Ready(Nth),
    Unfit(Nth),
    Hung(Nth),
    Extend(Nth),
    /// It forks a child of its own, which gets the lowest number that is free.
    Fork(Nth),
    /// The main process ends; with or without leaving others behind.
    Exit(Nth, Exit, bool),
    /// What was left behind ends.
    Empty(Nth),
    /// Time passes up to the next deadline.
    Deadline,
    /// A little time passes.
    Pause,
    /// The next events come together with one more each: they are decided about before anything of it is done.
    Together(u8),
    /// The state file cannot be written any more (`ENOSPC`, `EIO`), or can again.
    Disk(bool),
    /// svd is killed so many doings later: each event that is handled and each action is one.
    Death(u8),
    /// Together with the guardian, or after it.
    DeathOfBoth(u8),
    /// The guardian is killed: svd takes its place, and another svd comes.
    DeathOfGuardian,
    /// Another svd comes; and is killed, perhaps, so many doings later.
    Return(Option<u8>),
}

/// How long a standby is kept.
pub(super) const KEPT: Duration = Duration::from_secs(60);

const CRASH: Exit = Exit::Code(1);
const TERMINATED: Exit = Exit::Signal(libc::SIGTERM);
const KILLED: Exit = Exit::Signal(libc::SIGKILL);

impl World {
    /// The processes, as choices name them.
    pub(super) fn numbered(&self) -> impl Iterator<Item = (WorkerId, Nth)> {
        let mut counts: Vec<(ServiceId, u8)> = Vec::new();
        self.processes.iter().map(move |(worker, process)| {
            let service = process.generation.service;
            let at = counts.iter().position(|(id, _)| *id == service).unwrap_or_else(|| {
                counts.push((service, 0));
                counts.len() - 1
            });
            counts[at].1 += 1;
            (*worker, Nth(service, counts[at].1 - 1))
        })
    }

    /// What the kernel and the processes may do next, faults included. `all`: also what differs from another one only in
    /// words, or in what may come later.
    pub fn kernel_choices(&self, all: bool) -> Vec<Choice> {
        let mut list = Vec::new();
        if self.dead.is_none() && !self.spawning.is_empty() {
            let births = [Birth::Good, Birth::Refused(Fault::NoMemory), Birth::NeverRuns(Fault::NotFound)];
            list.extend(births.map(Choice::Spawned));
            if all {
                list.extend([Birth::Mute, Birth::Deaf].map(Choice::Spawned));
                list.extend(Fault::FORK.map(|f| Choice::Spawned(Birth::Refused(f))));
                list.extend(Fault::EXEC.map(|f| Choice::Spawned(Birth::NeverRuns(f))));
            }
            return list;
        }
        if self.dead.is_some() {
            list.push(Choice::Return(None));
        } else {
            self.events_of_svd(all, &mut list);
        }
        for (worker, nth) in self.numbered() {
            self.choices_of(worker, nth, all, &mut list);
        }
        list
    }

    /// What needs a svd.
    fn events_of_svd(&self, all: bool, list: &mut Vec<Choice>) {
        for nth in self.prepared() {
            list.extend([Choice::Prepared(nth, Ok(())), Choice::Prepared(nth, Err(Fault::NoFiles))]);
        }
        if self.machine.next_timeout().is_some() {
            list.push(Choice::Deadline);
        }
        if all && self.mortal {
            list.push(Choice::Disk(!self.full));
        }
    }

    fn prepared(&self) -> impl Iterator<Item = Nth> {
        let mut before: Option<Nth> = None;
        self.preparing.iter().map(move |id| {
            let n = before.filter(|b| b.0 == id.service).map_or(0, |b| b.1 + 1);
            *before.insert(Nth(id.service, n))
        })
    }

    fn choices_of(&self, worker: WorkerId, nth: Nth, all: bool, list: &mut Vec<Choice>) {
        let process = &self.processes[&worker];
        if !process.main {
            list.push(Choice::Empty(nth));
            if self.dead.is_some() {
                list.push(Choice::Fork(nth));
            }
            return;
        }
        if process.doomed.is_some() {
            return list.push(Choice::Exit(nth, Exit::Code(127), false));
        }
        if process.killed {
            return list.push(Choice::Exit(nth, KILLED, false));
        }
        let exits = [(CRASH, false), (Exit::Code(0), true), (TERMINATED, false)];
        list.extend(exits.map(|(exit, others)| Choice::Exit(nth, exit, others)));
        if all {
            list.push(Choice::Exit(nth, Exit::Code(0), false));
        }
        if !process.ready && !process.mute {
            list.push(Choice::Ready(nth));
        }
        if all || self.dead.is_some() {
            list.push(Choice::Fork(nth));
        }
        if self.dead.is_none() {
            list.extend([Choice::Unfit(nth), Choice::Hung(nth)]);
            if all {
                list.push(Choice::Extend(nth));
            }
        }
    }

    /// What makes a standby or a canary of what may run twice at once, takes it back, or ends it.
    pub fn standby_choices(&self) -> Vec<Choice> {
        if !self.spawning.is_empty() || self.dead.is_some() {
            return vec![];
        }
        let mut list = Vec::new();
        let reload =
            |id, keep, recall| Choice::Command(id, Command::Reload { release: None, force: true, keep, recall });
        for service in self.machine.services().filter(|s| s.policy.overlap && s.committed().is_some()) {
            match service.standby().map(|g| g.id.number) {
                None => {
                    list.push(reload(service.id, Some(KEPT), None));
                    let canary = Canary { release: None, workers: 1, stay: KEPT };
                    list.push(Choice::Command(service.id, Command::Canary(canary)));
                    list.extend(service.canary().map(|_| Choice::Command(service.id, Command::Dismiss)));
                }
                Some(standby) => list.extend([
                    reload(service.id, None, Some(standby)),
                    reload(service.id, None, Some(standby + 1)),
                    Choice::Crowded(service.id),
                ]),
            }
        }
        list
    }

    /// What people may do next.
    pub fn people_choices(&self, all: bool) -> Vec<Choice> {
        if !self.spawning.is_empty() || self.dead.is_some() || (self.shutting_down && !all) {
            return vec![];
        }
        let mut list = vec![Choice::Shutdown];
        for service in self.machine.services().filter(|s| !s.removed) {
            let id = service.id;
            for force in [false, true] {
                list.push(Choice::Command(id, Command::reload(None, force)));
            }
            for command in [Command::Start, Command::Stop, Command::Restart, Command::Scale(1), Command::Scale(3)] {
                list.push(Choice::Command(id, command));
            }
            for change in [Change::Live, Change::Reload, Change::Restart] {
                list.push(Choice::Change(id, change));
            }
            list.push(Choice::Unhealthy(id));
            list.push(Choice::Oversized(id));
            if all {
                list.extend([Choice::Grace(id), Choice::Remove(id)]);
            }
        }
        if all && !self.shutting_down {
            list.extend(
                (0..).zip(&self.files).filter(|(_, (name, _))| self.is_absent(name)).map(|(n, _)| Choice::Add(n)),
            );
        }
        list
    }

    pub(super) fn is_absent(&self, name: &str) -> bool {
        self.machine.services().all(|s| s.removed || *s.name != *name)
    }

    /// The next thing that a host without faults would do: boot, obey, empty; time passes when nothing else is due.
    pub fn well_behaved(&self) -> Option<Choice> {
        if self.dead.is_some() {
            return Some(Choice::Return(None));
        }
        if !self.spawning.is_empty() {
            return Some(Choice::Spawned(Birth::Good));
        }
        if let Some(nth) = self.prepared().next() {
            return Some(Choice::Prepared(nth, Ok(())));
        }
        for (worker, nth) in self.numbered() {
            let process = &self.processes[&worker];
            if !process.main {
                if process.deaf && !process.killed {
                    continue;
                }
                return Some(Choice::Empty(nth));
            }
            if process.doomed.is_some() {
                return Some(Choice::Exit(nth, Exit::Code(127), false));
            }
            if process.killed {
                return Some(Choice::Exit(nth, KILLED, false));
            }
            if process.told && !process.deaf {
                return Some(Choice::Exit(nth, TERMINATED, false));
            }
            if !process.ready && !process.mute && !process.told {
                return Some(Choice::Ready(nth));
            }
        }
        self.machine.next_timeout().map(|_| Choice::Deadline)
    }
}
