//! The machine: its tables, the way in, and the way out.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::event::{Action, CallError, CallId, End, Event, Report, Wish};
use super::host::{At, Host};
use super::journal::{Entry, Place, Progress, Stage, What};
use super::kept::Line;
use super::phases::Phase;
use super::plan::{Plan, PlannedHost};
use super::timers::{Timer, Timers};
use crate::api::apps::next_number;

/// Until what does not answer is asked again.
pub(super) const RETRY: Duration = Duration::from_secs(5);
/// A host is given up after that, or after a third of the lease. One that has vanished is silent for 15 s before ssh says so, is tried
/// once more 5 s later, and ssh's own limit for that is 10 s: half a minute in all. One that is back until then is not left out.
const PATIENCE: Duration = Duration::from_secs(15);
/// The same while the release is being confirmed.
const CONFIRMING: Duration = Duration::from_secs(180);

/// Why there is a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Deploy,
    /// Takes over what another driver has begun, and does this with it.
    TakeOver(Wish),
}

/// Who drives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// For the journal: the user, and from where.
    pub by: Box<str>,
    /// Chosen at random: two drivers that begin at the same moment do not lock with the same number.
    pub salt: u32,
    /// Seconds since 1970.
    pub unix: u64,
}

/// What a call under way is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Job,
    Lock,
    Renew,
    Append { until: usize },
    Counts { round: u64 },
}

#[derive(Clone, Copy, Debug)]
pub(super) struct UnderWay {
    pub host: usize,
    pub purpose: Purpose,
    pub work: bool,
    pub sent: Duration,
    /// The lease of that time.
    pub lease: Duration,
}

/// Drives one rollout. See the module's contract.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) now: Duration,
    /// Seconds since 1970 when `now` was 0.
    epoch: u64,
    pub(super) by: Box<str>,
    pub(super) start: Start,
    pub(super) number: u64,
    pub(super) plan: Plan,
    pub(super) progress: Progress,
    pub(super) entries: Vec<Arc<Line>>,
    /// How many of the entries a quorum has.
    pub(super) committed: usize,
    /// So many more hosts have to get an entry at least, until it can be on a quorum.
    lacking: usize,
    /// By name, as in the plan.
    pub(super) hosts: Vec<Host>,
    pub(super) places: BTreeMap<Box<str>, usize>,
    pub(super) phase: Phase,
    /// To be entered when all entries are committed.
    pub(super) next: Option<Phase>,
    /// What people have asked for and has to wait.
    pub(super) wish: Option<Wish>,
    pub(super) remarks: Vec<Box<str>>,
    /// Every host has to be looked at.
    pub(super) wake_all: bool,
    pub(super) timers: Timers,
    pub(super) under_way: BTreeMap<CallId, UnderWay>,
    /// Hosts whose job may go on; small calls, in order.
    pub(super) ready: VecDeque<usize>,
    pub(super) chores: VecDeque<(usize, Purpose)>,
    pub(super) jobs: usize,
    pub(super) working: usize,
    pub(super) small: usize,
    last_call: u64,
    pub(super) out: Vec<Action>,
    pub(super) ended: bool,
}

impl Machine {
    /// `highest`: that any host of the rollout is known to have granted a lock with. `now` is of the same moment as the driver's `unix`.
    pub fn new(plan: Plan, start: Start, driver: &Driver, highest: u64, now: Duration) -> Machine {
        let waves = plan.waves.by_host();
        let host = |h: &PlannedHost| Host::new(h.name.clone(), waves.get(&*h.name).copied());
        let mut hosts: Vec<Host> = plan.hosts.iter().map(host).collect();
        let places: BTreeMap<Box<str>, usize> =
            hosts.iter().enumerate().map(|(at, host)| (host.name.clone(), at)).collect();
        for (host, planned) in hosts.iter_mut().zip(&plan.hosts) {
            if host.wave.is_none() && planned.serves.as_deref() == Some(&*plan.release) {
                host.at = At::Confirmed;
            }
        }
        Machine {
            now,
            epoch: driver.unix.saturating_sub(now.as_secs()),
            by: driver.by.clone(),
            start,
            number: next_number(highest, driver.salt),
            plan,
            progress: Progress::default(),
            entries: Vec::new(),
            committed: 0,
            lacking: 0,
            hosts,
            places,
            phase: Phase::Begin,
            next: None,
            wish: None,
            remarks: Vec::new(),
            wake_all: false,
            timers: Timers::default(),
            under_way: BTreeMap::new(),
            ready: VecDeque::new(),
            chores: VecDeque::new(),
            jobs: 0,
            working: 0,
            small: 0,
            last_call: 0,
            out: Vec::new(),
            ended: false,
        }
    }

    /// Takes an event in and returns what is to be done, in order. `now` never goes back.
    pub fn handle(&mut self, now: Duration, event: Event) -> Vec<Action> {
        self.now = self.now.max(now);
        if !self.ended {
            match event {
                Event::Begin => self.begin(),
                Event::Answer { id, result } => self.handle_answer(id, result),
                Event::Tick => self.handle_tick(),
                Event::Wish(wish) => self.handle_wish(wish),
            }
            self.advance();
            self.send();
        }
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Tick`] is due.
    pub fn next_timeout(&self) -> Option<Duration> {
        self.timers.next().filter(|_| !self.ended)
    }

    /// The journal, as far as a quorum has it.
    pub fn journal(&self) -> &[Arc<Line>] {
        &self.entries[..self.committed]
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The lock was granted with it.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn handle_tick(&mut self) {
        while let Some(timer) = self.timers.pop(self.now) {
            match timer {
                Timer::Host(at) => self.tend(at),
                Timer::Bake => self.next_round(),
                Timer::Quorum => {
                    let lacks = self.entries.len();
                    let why = self.why_not(|host| host.locked && host.journal >= lacks);
                    self.end(End::Lost(format!("{why}; what is unconfirmed goes back by its lease").into()));
                }
            }
            if self.ended {
                return;
            }
        }
    }

    pub(super) fn next_call(&mut self) -> CallId {
        self.last_call += 1;
        CallId(self.last_call)
    }

    /// How long a host may not answer.
    pub(super) fn patience(&self) -> Duration {
        let lease = self.plan.limits.lease();
        match self.progress.stage {
            // There is no way back: what misses the confirmation goes back by its lease. A machine that boots is waited for.
            Stage::Confirming | Stage::Completing { .. } => CONFIRMING.min(lease),
            _ => PATIENCE.min(lease / 3),
        }
    }

    /// More than half of the hosts, or half of them with the first: two such sets have a host in common.
    pub(super) fn is_quorum(&self, has: impl Fn(&Host) -> bool) -> bool {
        let count = self.hosts.iter().filter(|host| has(host)).count();
        let half = 2 * count == self.hosts.len() && self.hosts.first().is_some_and(&has);
        2 * count > self.hosts.len() || half
    }

    /// Writes an entry down; what follows from it waits until a quorum has it.
    pub(super) fn record(&mut self, what: What) {
        let entry = Entry { at: self.unix(), number: self.number, what };
        if let Err(why) = self.progress.apply(&entry) {
            // Never: what is impossible is not to be written down.
            debug_assert!(false, "{why}");
            return self.end(End::Refused(format!("svctl is wrong about its own rollout: {why}").into()));
        }
        self.entries.push(Line::new(entry));
        self.replicate();
    }

    /// Sends what hosts lack.
    pub(super) fn replicate(&mut self) {
        self.timers.set(Timer::Quorum, self.now + self.plan.limits.lease());
        self.wake_all = true;
        self.commit();
    }

    /// A host has more of the journal now. All of them are looked at only when there may be enough.
    pub(super) fn appended(&mut self) {
        self.lacking = self.lacking.saturating_sub(1);
        if self.lacking == 0 && self.committed < self.entries.len() {
            self.commit();
        }
    }

    /// What others have written counts with the first entry of our own that is on a quorum: until then, a host that has not
    /// heard of us may still have the furthest journal for somebody else.
    fn commit(&mut self) {
        let own = |n: &usize| self.entries[*n].number == self.number;
        let next = |from: usize| (from..self.entries.len()).find(own).unwrap_or(self.entries.len().saturating_sub(1));
        let mut until = next(self.committed);
        let mut committed = self.committed;
        while committed < self.entries.len() && self.is_quorum(|host| host.journal > until) {
            committed = until + 1;
            until = next(committed);
        }
        for entry in &self.entries[self.committed..committed] {
            self.out.push(Action::Report(Report::Recorded(Arc::clone(entry))));
        }
        self.committed = committed;
        let have = self.hosts.iter().filter(|host| host.journal > until).count();
        self.lacking = (self.hosts.len() / 2).saturating_sub(have);
        if self.committed == self.entries.len() {
            self.timers.clear(Timer::Quorum);
        }
    }

    pub(super) fn goto(&mut self, phase: Phase) {
        self.next = Some(phase);
    }

    pub(super) fn say(&mut self, host: usize, what: impl Into<Box<str>>) {
        let host = self.hosts[host].name.clone();
        self.out.push(Action::Report(Report::Host { host, what: what.into() }));
    }

    pub(super) fn end(&mut self, end: End) {
        if !self.ended {
            self.out.push(Action::End(end));
            self.ended = true;
        }
    }

    /// Why there is no majority of hosts that do.
    pub(super) fn why_not(&self, does: impl Fn(&Host) -> bool) -> String {
        let of = |host: &Host| {
            let lost = host.lost.as_ref().map(|(_, why)| why).or(host.trouble.as_ref());
            match lost {
                Some(why) => format!("{}: {why}", host.name),
                None => host.name.to_string(),
            }
        };
        let not: Vec<String> = self.hosts.iter().filter(|host| !does(host)).map(of).collect();
        format!("no majority of the hosts answers ({})", not.join("; "))
    }

    /// Seconds since 1970.
    pub(super) fn unix(&self) -> u64 {
        self.epoch + self.now.as_secs()
    }

    /// Where each host is, as far as is known.
    pub(super) fn where_all_are(&self) -> Vec<(Box<str>, Place)> {
        let of = |host: &Host| {
            let lost = host.lost.as_ref().map(|(_, why)| why.clone());
            match host.at {
                At::Confirmed => Place::Confirmed,
                At::Before if !host.taken && (host.locked || host.wave.is_some()) => Place::Before,
                At::Before => Place::Unknown(lost.unwrap_or_else(|| "it was down from the beginning".into())),
                At::OnTrial | At::Unsure => {
                    Place::Unknown(lost.unwrap_or_else(|| "it could not be brought to an end there".into()))
                }
            }
        };
        self.hosts.iter().map(|host| (host.name.clone(), of(host))).collect()
    }

    /// What can be said of a call that failed, where the answer ends everything. True: it did.
    pub(super) fn is_superseded(&mut self, at: usize, error: &CallError) -> bool {
        let over = match error {
            CallError::Fenced { highest } => *highest > self.number,
            CallError::Locked(_) => {
                // A host that another rollout has left a release on is that one's; most of them are ours all the same.
                self.hosts[at].taken = true;
                !self.is_quorum(|host| !host.taken)
            }
            _ => false,
        };
        if over {
            self.end(End::Superseded);
        }
        over
    }
}
