//! A host as its rollouts see it: the state that svd keeps of an app ([`App`]), with a journal, and time instead of work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::super::event::{Call, CallError, Count, Mark, Reply, Totals, View};
use super::super::journal::Entry;
use super::super::kept::Line;
use super::super::plan::Step;
use crate::release::ReleaseId;
use crate::release::app::{About, App, Expired, Fence, Lock, Moment, Refusal, StepState, Trial, Wanted};

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub rollout: Box<str>,
    pub release: Box<str>,
    pub number: u64,
}

impl Caller {
    fn fence(&self) -> Fence {
        Fence { number: self.number, rollout: self.rollout.clone() }
    }

    fn release(&self) -> ReleaseId {
        ReleaseId::new(&self.release).expect("a name")
    }
}

fn moment(now: Duration) -> Moment {
    Moment::default().after(now)
}

/// What becomes of releases, by their names.
#[derive(Clone, Debug, Default)]
pub struct Quality {
    /// Hosts on which it does not boot.
    pub broken_on: BTreeSet<usize>,
    /// Of requests, in per mille.
    pub errors: u64,
    /// Of requests that are slow, in per mille.
    pub slow: u64,
    /// Of its workers, a minute.
    pub restarts: u64,
    /// A migration fails.
    pub migration_fails: bool,
    /// It is unfit after so long.
    pub unfit_after: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct Host {
    pub at: usize,
    pub up: bool,
    /// Counts its starts: what was under way before is gone.
    pub boot: u32,
    pub app: App,
    /// Of the latest rollout: whose, and what.
    pub journal: (Box<str>, Vec<Entry>),
    /// The number that it was written with last: svd does not look into entries.
    pub written: u64,
    /// Migrations under way.
    migrating: BTreeSet<Box<str>>,
    pub prepared: BTreeMap<Box<str>, BTreeSet<Step>>,
    /// Of the processes that serve.
    pub since: Duration,
    pub load: u64,
    /// Leases that ran out.
    pub expired: u32,
    pub held: bool,
    /// Why it grants no lock.
    pub refuses: Option<&'static str>,
    /// It says to everything that somebody has had a higher number.
    pub lies: bool,
    /// It cannot be reached any more as soon as it is counted with a new release.
    pub vanishes: bool,
}

/// What lasts.
#[derive(Clone, Debug)]
pub enum Op {
    Prepare(Step),
    Migrate { key: Box<str> },
    Activate,
    TakeBack,
}

pub enum Done {
    Now(Result<Reply, CallError>),
    Later(Op),
}

fn refused(refusal: Refusal) -> CallError {
    match refusal {
        Refusal::Held(why) => CallError::Locked(why.into()),
        Refusal::Locked(lock) => CallError::Locked(format!("held by {}", lock.fence.rollout).into()),
        Refusal::Fenced { highest } => CallError::Fenced { highest: highest.number },
        Refusal::NotLocked => CallError::NotLocked,
        Refusal::Busy(why) => CallError::Busy(why.into()),
        Refusal::Unknown(id) => CallError::Failed(format!("{id} is not here").into()),
        Refusal::Not(why) => CallError::Failed(why.into()),
    }
}

impl Host {
    pub fn new(at: usize, load: u64, confirmed: &str) -> Host {
        let mut app = App::default();
        app.found(&ReleaseId::new(confirmed).expect("a name"), 0);
        Host {
            at,
            up: true,
            boot: 0,
            app,
            journal: ("".into(), Vec::new()),
            written: 0,
            migrating: BTreeSet::new(),
            prepared: BTreeMap::new(),
            since: Duration::ZERO,
            load,
            expired: 0,
            held: false,
            refuses: None,
            lies: false,
            vanishes: false,
        }
    }

    pub fn entries(&self, rollout: &str) -> &[Entry] {
        if *self.journal.0 == *rollout { &self.journal.1 } else { &[] }
    }

    pub fn confirmed(&self) -> &str {
        self.app.confirmed.as_ref().map_or("", ReleaseId::as_str)
    }

    pub fn has_trial_of(&self, rollout: &str) -> bool {
        self.app.trial.as_ref().is_some_and(|trial| *trial.fence.rollout == *rollout)
    }

    /// What has run out by now.
    pub fn expire(&mut self, now: Duration) {
        match self.app.expire(moment(now)) {
            Expired::Nothing => {}
            Expired::Holds(_) => self.held = true,
            Expired::TakeBack => {
                if self.app.begin_return(None).is_ok() {
                    self.app.switched(Ok(()));
                    self.expired += 1;
                    self.since = now;
                }
            }
        }
    }

    /// Another rollout has left its release on trial here.
    pub fn hold_for(&mut self, now: Duration, caller: &Caller) {
        let until = moment(now + Duration::from_secs(10 * 24 * 3600));
        let (release, before) = (caller.release(), self.app.confirmed.clone());
        self.app.fence = caller.fence();
        let fence = caller.fence();
        self.app.trial =
            Some(Trial { release, before, fence, until, holds: true, rollback: None, configurations: None });
    }

    /// It starts its last confirmed release; what holds stays.
    pub fn reboot(&mut self, now: Duration) {
        self.boot += 1;
        self.app.booted();
        self.since = now;
        self.migrating.clear();
    }

    fn view(&self, caller: &Caller) -> View {
        match &self.app.trial {
            _ if self.app.switch.as_ref().is_some_and(|s| s.to == Some(caller.release())) => View::OnTrial,
            Some(_) if self.has_trial_of(&caller.rollout) => View::OnTrial,
            None if *self.confirmed() == *caller.release => View::Confirmed,
            _ => View::Before,
        }
    }

    fn grant(&mut self, now: Duration, caller: &Caller, lease: Duration) -> Result<Reply, CallError> {
        let until = Some(moment(now + lease));
        let wanted = Lock { fence: caller.fence(), holder: "jane".into(), since: 0, until, message: "".into() };
        if let Some(why) = self.refuses {
            return Err(CallError::Failed(why.into()));
        }
        self.app.lock(moment(now), now.as_secs(), wanted).map_err(refused)?;
        let (rollout, entries) = &self.journal;
        let number = self.written;
        let ours = *rollout == caller.rollout;
        let journal = if ours { Mark { number, entries: entries.len() } } else { Mark::default() };
        let other = (!ours && !entries.is_empty()).then_some(number);
        Ok(Reply::Granted { view: self.view(caller), journal, other })
    }

    /// Answers at once, or begins what lasts.
    pub fn take(&mut self, now: Duration, caller: &Caller, call: &Call, quality: &Quality) -> Done {
        self.expire(now);
        if self.lies {
            return Done::Now(Err(CallError::Fenced { highest: self.app.fence.number }));
        }
        self.try_take(now, caller, call, quality).unwrap_or_else(|error| Done::Now(Err(error)))
    }

    fn try_take(&mut self, now: Duration, caller: &Caller, call: &Call, quality: &Quality) -> Result<Done, CallError> {
        let (fence, at) = (caller.fence(), moment(now));
        let reply = match call {
            Call::Lock { lease } => self.grant(now, caller, *lease)?,
            Call::Read => Reply::Journal(self.entries(&caller.rollout).to_vec()),
            Call::Counts { .. } => {
                self.up &= !(self.vanishes && self.app.trial.is_some());
                Reply::Counted(self.count(now, caller, quality))
            }
            Call::Unlock => {
                // Another's is not ours to unlock.
                let _ = self.app.unlock(&fence, false);
                Reply::Done
            }
            Call::Append { from, entries } => {
                self.app.admit(at, &fence).map_err(refused)?;
                Reply::Appended(self.append(caller, *from, entries))
            }
            Call::Renew { lease } => {
                self.app.renew(at, &fence, moment(now + *lease)).map_err(refused)?;
                Reply::Renewed(self.view(caller))
            }
            Call::Prepare(step) => {
                self.app.admit_change(at, &fence).map_err(refused)?;
                return Ok(Done::Later(Op::Prepare(*step)));
            }
            Call::Migrate { key, .. } => return self.migrate(at, &fence, key),
            Call::Activate { lease, holds } => return self.activate(now, caller, *lease, *holds),
            Call::TakeBack { why, failed } => {
                self.app.admit_change(at, &fence).map_err(refused)?;
                match self.app.begin_return(failed.then_some(why)).map_err(refused)? {
                    Some(_) => return Ok(Done::Later(Op::TakeBack)),
                    None => Reply::Done,
                }
            }
            Call::Confirm => {
                let id = self.app.confirm(at, &fence).map_err(refused)?;
                Reply::Confirmed(id.as_str().into())
            }
        };
        Ok(Done::Now(Ok(reply)))
    }

    fn append(&mut self, caller: &Caller, from: usize, entries: &[Arc<Line>]) -> usize {
        let rollout = &*caller.rollout;
        let there = self.entries(rollout).len();
        if from > there {
            return there;
        }
        if *self.journal.0 == *rollout && self.written == caller.number && from + entries.len() <= there {
            // It came late: there is more of the same driver already.
            return there;
        }
        if *self.journal.0 != *rollout {
            self.journal = (rollout.into(), Vec::new());
        }
        self.written = caller.number;
        self.journal.1.truncate(from);
        self.journal.1.extend(entries.iter().map(|line| Entry::clone(line)));
        self.journal.1.len()
    }

    fn migrate(&mut self, at: Moment, fence: &Fence, key: &str) -> Result<Done, CallError> {
        self.app.admit_change(at, fence).map_err(refused)?;
        if self.migrating.contains(key) {
            return Err(CallError::Busy("a step of a deploy runs".into()));
        }
        match self.app.begin_step(key) {
            None | Some(StepState::Failed(_)) => Ok(Done::Later(Op::Migrate { key: key.into() })),
            Some(StepState::Done) => Ok(Done::Now(Ok(Reply::Migrated { ran: false }))),
            Some(StepState::Begun) => Err(CallError::Failed("svd died in it: how far it came is not known".into())),
        }
    }

    fn activate(&mut self, now: Duration, caller: &Caller, lease: Duration, holds: bool) -> Result<Done, CallError> {
        let until = moment(now + lease);
        let again = self.has_trial_of(&caller.rollout) && self.app.switch.is_none();
        if again {
            self.app.renew(moment(now), &caller.fence(), until).map_err(refused)?;
            return Ok(Done::Now(Ok(Reply::Done)));
        }
        let how = Wanted { until, holds, rollback: None, configurations: None };
        self.app.begin_switch(moment(now), &caller.fence(), &caller.release(), how).map_err(refused)?;
        Ok(Done::Later(Op::Activate))
    }

    fn count(&self, now: Duration, caller: &Caller, quality: &Quality) -> Count {
        let ours = self.app.serving() == Some(&caller.release());
        let requests = (now - self.since.min(now)).as_secs() * self.load / 10;
        let errors = requests * if ours { quality.errors } else { 1 } / 1000;
        let bad = quality.unfit_after.filter(|after| ours && self.since + *after <= now);
        let slow = Some(requests * if ours { quality.slow } else { 20 } / 1000);
        Count {
            totals: Some(Totals { requests, errors, overdue: 0, slow }),
            unreliable: false,
            restarts: if ours { quality.restarts * (now - self.since.min(now)).as_secs() / 60 } else { 0 },
            unfit: bad.map(|_| "the health check fails".into()),
            view: self.view(caller),
        }
    }

    pub fn begin(&mut self, op: &Op) {
        if let Op::Migrate { key } = op {
            self.migrating.insert(key.clone());
        }
    }

    /// What was begun has come to its end.
    pub fn finish(&mut self, now: Duration, caller: &Caller, op: &Op, quality: &Quality) -> Result<Reply, CallError> {
        match op {
            Op::Prepare(step) => {
                let about = About { source: "abc".into(), ..About::default() };
                self.app.staged(&caller.release(), now.as_secs(), about).map_err(refused)?;
                self.app.built(&caller.release(), None).map_err(refused)?;
                self.prepared.entry(caller.rollout.clone()).or_default().insert(*step);
                Ok(Reply::Done)
            }
            Op::Migrate { key } => {
                self.migrating.remove(key);
                let fails = quality.migration_fails;
                self.app
                    .end_step(key, if fails { StepState::Failed("no such column".into()) } else { StepState::Done });
                if fails { Err(CallError::Failed("no such column".into())) } else { Ok(Reply::Migrated { ran: true }) }
            }
            Op::Activate => {
                let boots = !quality.broken_on.contains(&self.at);
                self.app.switched(if boots { Ok(()) } else { Err("it does not boot".into()) });
                if !boots {
                    return Err(CallError::Failed("it does not boot".into()));
                }
                self.since = now;
                Ok(Reply::Done)
            }
            Op::TakeBack => {
                self.app.switched(Ok(()));
                self.held = false;
                self.since = now;
                Ok(Reply::Done)
            }
        }
    }
}
