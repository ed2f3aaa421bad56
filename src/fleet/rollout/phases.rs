//! From one phase to the next.

use std::collections::BTreeMap;

use super::bake::Bake;
use super::event::{Action, Call, End, Mark, Report, Wish};
use super::host::{At, Host};
use super::journal::{Outcome, Place, Stage, What};
use super::machine::{Machine, Purpose};
use super::plan::{MigrateOn, Step};
use super::timers::Timer;
use crate::fleet::waves::Condition;

/// Times that all is looked through once more for hosts that have come back.
const AGAIN: u32 = 3;

/// Why everything goes back.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub cause: Box<str>,
    /// Somebody wants it even where the old code may not work any more.
    pub force: bool,
    /// The release is no good.
    pub faulty: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Phase {
    Begin,
    /// `rest`: the first host has answered.
    Locking {
        rest: bool,
        refused: Option<Box<str>>,
        higher: u64,
        tries: u32,
        marks: BTreeMap<usize, Mark>,
        /// Of another rollout's journal.
        other: u64,
    },
    Reading {
        best: Mark,
        marks: BTreeMap<usize, Mark>,
        error: Option<Box<str>>,
    },
    /// Looks where the journal says that the rollout is.
    Route,
    Preparing,
    Migrating {
        ran: bool,
    },
    /// Takes back what the journal knows nothing of, or not any more.
    Tidying,
    Activating {
        wave: usize,
    },
    Baking(Box<Bake>),
    Paused {
        told: bool,
    },
    /// Waits for calls under way.
    Draining(Failure),
    TakingBack {
        wave: usize,
        /// Hosts that could not be reached may be back.
        again: u32,
    },
    Confirming,
    Completing {
        error: Option<Box<str>>,
    },
    /// Hosts that have come back are brought to where the rollout has ended.
    Ending,
    Unlocking {
        end: End,
    },
}

impl Machine {
    pub(super) fn begin(&mut self) {
        if matches!(self.phase, Phase::Begin) {
            if self.plan.hosts.is_empty() {
                return self.end(End::Refused("the plan has no host".into()));
            }
            self.lock_first(0);
        }
    }

    /// As far as it goes without another answer.
    pub(super) fn advance(&mut self) {
        loop {
            if std::mem::take(&mut self.wake_all) {
                for at in 0..self.hosts.len() {
                    self.tend(at);
                }
                continue;
            }
            if self.ended || self.committed < self.entries.len() {
                return;
            }
            if let Some(next) = self.next.take() {
                self.phase = next;
                self.enter();
            } else if self.jobs > 0 || !self.complete() {
                return;
            }
        }
    }

    /// What a phase begins with.
    fn enter(&mut self) {
        match &self.phase {
            Phase::Route => self.route(),
            Phase::Preparing => self.prepare(),
            Phase::Migrating { .. } => self.migrate(),
            Phase::Tidying => self.take_back_if(|host| host.is_part() && host.may_run_it()),
            Phase::Activating { wave } => {
                let (wave, activate) = (*wave, self.activation());
                self.jobs_for(|host| {
                    let wanted = host.is_part() && host.wave <= Some(wave) && host.at != At::OnTrial;
                    wanted.then(|| vec![activate.clone()])
                });
            }
            Phase::Baking(_) => self.begin_bake(),
            Phase::Paused { .. } => self.begin_pause(),
            Phase::TakingBack { wave, .. } => {
                let wave = *wave;
                self.take_back_if(|host| host.wave == Some(wave) && host.may_run_it());
            }
            Phase::Ending => self.bring_back_in(),
            Phase::Confirming => self.confirm(),
            Phase::Completing { .. } => self.complete_migration(),
            Phase::Unlocking { .. } => {
                self.chores.clear();
                let now = self.now;
                self.hosts.iter_mut().for_each(|host| host.retry_at = now);
                self.jobs_for(|host| host.locked.then(|| vec![Call::Unlock]));
            }
            Phase::Begin | Phase::Locking { .. } | Phase::Reading { .. } | Phase::Draining(_) => {}
        }
    }

    pub(super) fn jobs_for(&mut self, calls: impl Fn(&Host) -> Option<Vec<Call>>) {
        for at in 0..self.hosts.len() {
            if let Some(calls) = calls(&self.hosts[at]) {
                self.give_job(at, calls);
            }
        }
    }

    /// No job is left: what follows. False: it waits for something else.
    fn complete(&mut self) -> bool {
        if matches!(self.phase, Phase::Baking(_)) {
            return false;
        }
        match self.phase.clone() {
            Phase::Begin | Phase::Route | Phase::Baking(_) => false,
            Phase::Locking { .. } => self.locked(),
            Phase::Reading { error, .. } => match error {
                Some(why) => self.unlock_and(End::Refused(why)),
                None => false,
            },
            Phase::Preparing => self.write_and(What::Prepared, Phase::Route),
            Phase::Migrating { ran } => self.write_and(What::Migrated { ran }, Phase::Route),
            Phase::Tidying => self.and(Phase::Route),
            Phase::Activating { wave } => self.activated(wave),
            Phase::Paused { told } => self.told_pause(told),
            Phase::Draining(failure) => self.drained(failure),
            Phase::TakingBack { wave, again } => match wave.checked_sub(1) {
                Some(wave) => self.and(Phase::TakingBack { wave, again }),
                None => self.taken_back(again),
            },
            Phase::Ending => self.unlock_ended(),
            Phase::Confirming => self.all_confirmed(),
            Phase::Completing { error } => self.write_and(What::Completed { error }, Phase::Route),
            Phase::Unlocking { end } => {
                // A lock that is granted still is given back.
                if !self.under_way.values().any(|call| call.purpose == Purpose::Lock) {
                    self.end(end);
                }
                false
            }
        }
    }

    fn and(&mut self, phase: Phase) -> bool {
        self.goto(phase);
        true
    }

    pub(super) fn write_and(&mut self, what: What, phase: Phase) -> bool {
        self.record(what);
        self.and(phase)
    }

    pub(super) fn unlock_and(&mut self, end: End) -> bool {
        self.and(Phase::Unlocking { end })
    }

    /// Goes where the journal says that the rollout is.
    fn route(&mut self) {
        if !matches!(self.wish, None | Some(Wish::Pause))
            && let Some(wish) = self.wish.take()
        {
            return self.grant(wish);
        }
        if self.progress.paused.is_some() {
            return self.goto(Phase::Paused { told: false });
        }
        match self.progress.stage.clone() {
            Stage::Nothing => {}
            Stage::Planned => self.goto(Phase::Preparing),
            Stage::Prepared if self.progress.migration().is_some() => {
                let host = match self.progress.migration().map(|m| m.on) {
                    Some(MigrateOn::Each) => None,
                    _ => self.migration_host(),
                };
                self.write_and(What::Migrating { host }, Phase::Migrating { ran: false });
            }
            // It may have run; that it says no now means nothing.
            Stage::Migrating { .. } => self.goto(Phase::Migrating { ran: true }),
            Stage::Prepared | Stage::Ready => self.route_waves(None, 0),
            Stage::Wave(wave) => self.route_waves(Some(wave), wave),
            Stage::Passed(wave) => self.route_waves(Some(wave), wave + 1),
            Stage::Failing { .. } => self.goto(self.first_back(0)),
            Stage::Confirming => self.goto(Phase::Confirming),
            Stage::Completing { .. } => self.goto(Phase::Completing { error: None }),
            Stage::Completed { error } => {
                self.remarks.extend(error);
                self.done();
            }
            Stage::Ended => self.goto(Phase::Ending),
        }
    }

    /// Where the migration runs that is to run once: a fit host, if there is one. `None`: no host has one.
    fn migration_host(&self) -> Option<Box<str>> {
        let runs = |name: &&str| {
            let skipped = self.places.get(*name).is_none_or(|at| self.hosts[*at].skipped);
            !skipped && self.plan.host(name).is_some_and(|host| host.runs(Step::Migrate))
        };
        let fit = |name: &&str| self.plan.host(name).is_some_and(|host| host.condition == Condition::Fit);
        let hosts: Vec<&str> = self.plan.waves.hosts().filter(runs).collect();
        hosts.iter().copied().find(fit).or_else(|| hosts.first().copied()).map(Into::into)
    }

    /// To the wave `next`, if the hosts are where the journal says: all up to `begun` switched, and no other.
    fn route_waves(&mut self, begun: Option<usize>, next: usize) {
        let one_way = self.progress.is_one_way();
        let gone = |host: &&Host| host.is_part() && host.wave < Some(next) && host.at == At::Before && host.locked;
        let beyond = |host: &Host| host.is_part() && host.may_run_it();
        if next > 0 && !one_way && self.hosts.iter().any(|host| gone(&host)) {
            let who: Vec<&str> = self.hosts.iter().filter(gone).map(|host| &*host.name).collect();
            let why = format!("these hosts have gone back by themselves: {}", who.join(", "));
            self.write_and(What::Restarted { why: why.into() }, Phase::Tidying);
            return;
        }
        if !one_way && begun.is_none() && self.hosts.iter().any(beyond) {
            return self.goto(Phase::Tidying);
        }
        match begun {
            Some(wave) if wave == next => self.goto(Phase::Activating { wave }),
            _ => self.next_wave(next),
        }
    }

    pub(super) fn next_wave(&mut self, wave: usize) {
        match wave < self.plan.wave_count() {
            true => self.write_and(What::Begun { wave }, Phase::Activating { wave }),
            false => self.write_and(What::Confirming, Phase::Confirming),
        };
    }

    fn prepare(&mut self) {
        let steps: Vec<Vec<Call>> = self
            .plan
            .hosts
            .iter()
            .map(|host| {
                let first = [Step::Stage, Step::Build, Step::Publish, Step::Verify];
                first.into_iter().filter(|step| host.runs(*step)).map(Call::Prepare).collect()
            })
            .collect();
        for (at, calls) in steps.into_iter().enumerate() {
            if self.hosts[at].is_part() {
                self.give_job(at, calls);
            }
        }
    }

    fn migration_call(&self, after: bool) -> Call {
        let step = if after { Step::MigrateAfter } else { Step::Migrate };
        Call::Migrate { key: format!("{} {step}", self.plan.rollout).into(), after }
    }

    fn migrate(&mut self) {
        let call = self.migration_call(false);
        let Stage::Migrating { host } = &self.progress.stage else { return };
        match host.as_ref().and_then(|name| self.places.get(name)).copied() {
            Some(at) if self.hosts[at].skipped => {
                let name = self.hosts[at].name.clone();
                self.fail(&format!("{name}: whether the migration ran there is not known: it is left out"), false);
            }
            Some(at) => self.give_job(at, [call]),
            None => {
                for at in 0..self.hosts.len() {
                    if self.hosts[at].is_part() && self.plan.hosts[at].runs(Step::Migrate) {
                        self.give_job(at, [call.clone()]);
                    }
                }
            }
        }
    }

    fn take_back_if(&mut self, wanted: impl Fn(&Host) -> bool) {
        let (why, failed): (Box<str>, bool) = match &self.progress.stage {
            Stage::Failing { cause, faulty } => (cause.clone(), *faulty),
            _ => ("the rollout begins again at the first wave".into(), false),
        };
        for at in 0..self.hosts.len() {
            if !wanted(&self.hosts[at]) {
                continue;
            }
            // One that is lost gets another chance, as long as the others.
            let host = &mut self.hosts[at];
            if let Some((since, _)) = &mut host.lost {
                *since = self.now;
            }
            host.retry_at = self.now;
            self.give_job(at, [Call::TakeBack { why: why.clone(), failed }]);
        }
    }

    fn activated(&mut self, wave: usize) -> bool {
        let serves = |at: &[At]| self.hosts.iter().any(|host| host.is_part() && at.contains(&host.at));
        if !self.plan.purpose.is_judged() && !serves(&[At::OnTrial, At::Confirmed]) {
            let why = if self.remarks.is_empty() { "no host has got there".into() } else { self.remarks.join("\n") };
            self.fail(&why, false);
            return true;
        }
        if self.plan.is_unwatched(wave) {
            return self.write_and(What::Confirming, Phase::Confirming);
        }
        if !serves(&[At::OnTrial]) {
            self.fail(&format!("no host of wave {} serves the release", wave + 1), false);
            return true;
        }
        let bake = Bake::new(wave, &self.plan.limits, self.now);
        self.and(Phase::Baking(Box::new(bake)))
    }

    /// Everything that was changed goes back; or is held, where that would do harm.
    pub(super) fn fail(&mut self, cause: &str, force: bool) {
        self.fail_by(Failure { cause: cause.into(), force, faulty: false });
    }

    pub(super) fn fail_by(&mut self, failure: Failure) {
        let going = matches!(self.phase, Phase::Draining(_)) || matches!(self.next, Some(Phase::Draining(_)));
        let failing = matches!(self.progress.stage, Stage::Failing { .. });
        if going || failing || self.is_past_return() || self.progress.stage == Stage::Nothing {
            return;
        }
        self.timers.clear(Timer::Bake);
        self.drop_jobs();
        self.goto(Phase::Draining(failure));
    }

    fn drained(&mut self, failure: Failure) -> bool {
        let Failure { cause, force, faulty } = failure;
        let changed = self.hosts.iter().any(|host| host.wave.is_some() && host.may_run_it());
        if self.progress.is_one_way() && changed && !force {
            let alert = format!(
                "{cause}. A migration ran that the release before may not work with: nothing is taken back. Promote the \
                 release, or abort with force"
            );
            self.out.push(Action::Report(Report::Alert(alert.into())));
            if self.progress.paused.is_none() {
                self.record(What::Paused { why: cause });
            }
            return self.and(Phase::Paused { told: false });
        }
        let back = self.first_back(0);
        self.write_and(What::Failing { cause, faulty }, back)
    }

    /// The newest wave.
    fn first_back(&self, again: u32) -> Phase {
        Phase::TakingBack { wave: self.plan.wave_count().saturating_sub(1), again }
    }

    fn taken_back(&mut self, again: u32) -> bool {
        if again < AGAIN && self.hosts.iter().any(|host| host.may_run_it() && host.locked && host.lost.is_none()) {
            return self.and(self.first_back(again + 1));
        }
        let Stage::Failing { cause, .. } = self.progress.stage.clone() else { return self.and(Phase::Route) };
        let outcome = match self.progress.begun {
            Some(_) => Outcome::TakenBack { cause },
            None => Outcome::Failed { cause },
        };
        let places = self.where_all_are();
        self.write_and(What::Ended { outcome, places }, Phase::Route)
    }

    /// It is over: what is on trial still, and answers, follows.
    fn bring_back_in(&mut self) {
        let done =
            matches!(self.entries.last().map(|e| &e.what), Some(What::Ended { outcome: Outcome::Done { .. }, .. }));
        let why: Box<str> = "the rollout has ended without it".into();
        self.jobs_for(|host| {
            let call = if done { Call::Confirm } else { Call::TakeBack { why: why.clone(), failed: false } };
            (host.at == At::OnTrial && host.locked && host.lost.is_none()).then(|| vec![call])
        });
    }

    fn unlock_ended(&mut self) -> bool {
        let Some(What::Ended { outcome, mut places }) = self.entries.last().map(|entry| entry.what.clone()) else {
            return false;
        };
        for ((_, place), now) in places.iter_mut().zip(self.where_all_are()) {
            if matches!(place, Place::Unknown(_)) && self.hosts.iter().any(|host| host.name == now.0 && host.locked) {
                *place = now.1;
            }
        }
        self.unlock_and(End::Over { outcome, places })
    }

    fn confirm(&mut self) {
        let activate = self.activation();
        self.jobs_for(|host| match host.at {
            _ if !host.is_part() => None,
            At::Confirmed => None,
            At::OnTrial => Some(vec![Call::Confirm]),
            At::Before | At::Unsure => Some(vec![activate.clone(), Call::Confirm]),
        });
    }

    fn all_confirmed(&mut self) -> bool {
        let after = self.progress.migration().is_some_and(|migration| migration.after);
        let first = self.plan.waves.hosts().find(|name| {
            let at = self.places.get(*name).copied();
            at.is_some_and(|at| self.hosts[at].at == At::Confirmed && self.hosts[at].is_part())
        });
        match first.map(Box::<str>::from) {
            Some(host) if after => self.write_and(What::Completing { host }, Phase::Completing { error: None }),
            _ => {
                self.done();
                true
            }
        }
    }

    fn complete_migration(&mut self) {
        let call = self.migration_call(true);
        let Stage::Completing { host } = &self.progress.stage else { return };
        match self.places.get(host).copied().filter(|at| !self.hosts[*at].skipped) {
            Some(at) => self.give_job(at, [call]),
            None => {
                let why = format!("{host}: whether the second migration ran there is not known: it is left out");
                self.phase = Phase::Completing { error: Some(why.into()) };
            }
        }
    }

    fn done(&mut self) {
        let outcome = Outcome::Done { remarks: self.remarks.clone() };
        let places = self.where_all_are();
        self.write_and(What::Ended { outcome, places }, Phase::Route);
    }
}
