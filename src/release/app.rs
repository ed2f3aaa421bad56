//! What a host knows of one app: who may change it, which releases are here, which one is in force. PURE.
//!
//! A release comes here in steps, each of which leaves something that can be gone on from:
//!
//! ```text
//! staged ── built ──┬── switching ── on trial ── confirmed      what a boot starts, and a rollback goes back to
//!                   │       └────────────┴────── failed         kept, and never chosen again
//!                   └ pruned
//! ```
//!
//! - **The fence.** Whoever changes anything holds the lock, and carries a [`Fence`] in every call: a number that the lock
//!   was granted with, and the rollout it was granted to. Lower ones are refused for ever, so that whoever has lost
//!   the lock without noticing changes nothing any more.
//! - **Failed** is what did not start, or was found bad. What was taken back for another reason (a lease, a boot, somebody's
//!   decision) may be switched to again.
//! - **The lease.** The lock and a release on trial are held until a moment that whoever drives the rollout moves on, again
//!   and again. When it passes, the lock is free, and the release is taken back, unless a migration came with it that the
//!   old code does not work with: then the host holds what it has, and says so.
//! - **Two clocks.** [`Moment`]s do not jump and end with the boot; after one, every lease has run out. Times for people are
//!   seconds since 1970.
//!
//! Whoever calls [`App`] makes what it has decided durable before anything that follows from it is done.

use super::ReleaseId;
pub use super::record::{
    About, Configurations, Fence, Lock, Migrated, Moment, Release, State, StepState, Switch, Trial, Wanted,
    is_plausible, next_number,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Steps of earlier rollouts that are remembered.
const STEPS: usize = 64;
/// What the key of a release begins with that is taken in; those of steps are a rollout and the name of the step.
pub const TAKE_IN: &str = "take in ";
/// By which the clock of whoever locks may be ahead, in seconds.
const AHEAD: u64 = 24 * 3600;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct App {
    /// The highest that was granted or carried.
    pub fence: Fence,
    pub lock: Option<Lock>,
    pub releases: BTreeMap<ReleaseId, Release>,
    pub confirmed: Option<ReleaseId>,
    /// The rollout that has confirmed it; empty: none has.
    #[serde(default)]
    pub confirmed_by: Box<str>,
    pub trial: Option<Trial>,
    pub switch: Option<Switch>,
    /// By rollout and step, in the order in which they were begun.
    pub steps: Vec<(Box<str>, StepState)>,
    pub last_number: u64,
    pub last_confirmation: u64,
    /// The lease of a release that cannot be taken back has run out.
    #[serde(default)]
    pub alert: Option<Box<str>>,
    /// `from` was taken back, and while the files say just that, `to` is in force: else the next boot would bring it again.
    #[serde(default)]
    pub held_back: Option<Configurations>,
    /// Releases that are known no more, and whose files may still be there.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub leaving: BTreeSet<ReleaseId>,
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Locked(Box<Lock>),
    /// Another rollout has left a release on trial: until that is settled, the app is that one's.
    Held(String),
    /// Somebody else has been granted the lock since.
    Fenced {
        highest: Fence,
    },
    NotLocked,
    Busy(&'static str),
    Unknown(ReleaseId),
    Not(String),
}

impl App {
    /// Grants the lock to `fence`, or renews it. A rollout that is gone on with from elsewhere takes it over from itself, with a
    /// higher number. `seconds`: since 1970.
    ///
    /// # Errors
    /// Somebody else holds it or has left a release on trial, or the number is not higher than those before, or so high that nobody
    /// can have come to it.
    pub fn lock(&mut self, now: Moment, seconds: u64, wanted: Lock) -> Result<(), Refusal> {
        let is_plausible = |fence: &Fence| is_plausible(fence.number, seconds.saturating_add(AHEAD));
        if !is_plausible(&wanted.fence) {
            return Err(Refusal::Not(format!(
                "{} is no number for a lock: nobody can have come to it by this host's clock",
                wanted.fence.number
            )));
        }
        let held = self.lock.as_ref().filter(|lock| lock.until.is_none_or(|until| now < until));
        let ours = |fence: &Fence| fence.rollout == wanted.fence.rollout;
        if let Some(held) = held {
            if held.fence == wanted.fence {
                let since = held.since;
                self.lock = Some(Lock { since, ..wanted });
                return Ok(());
            }
            if !ours(&held.fence) {
                return Err(Refusal::Locked(Box::new(held.clone())));
            }
        }
        if let Some(trial) = self.trial.as_ref().filter(|trial| !ours(&trial.fence)) {
            return Err(Refusal::Held(format!(
                "release {} of the rollout {} is on trial here, and must be confirmed or taken back first",
                trial.release, trial.fence.rollout
            )));
        }
        // The same rollout may come back for what it held.
        let lower =
            wanted.fence < self.fence || (wanted.fence.number == self.fence.number && wanted.fence != self.fence);
        // Only an svd that knew no such limit has granted what nobody gets above.
        if lower && is_plausible(&self.fence) {
            return Err(Refusal::Fenced { highest: self.fence.clone() });
        }
        self.fence = wanted.fence.clone();
        for trial in [self.trial.as_mut(), self.switch.as_mut().and_then(|s| s.trial.as_mut())].into_iter().flatten() {
            trial.fence = wanted.fence.clone();
        }
        self.lock = Some(Lock { since: seconds, ..wanted });
        Ok(())
    }

    /// # Errors
    /// It is another's, and `force` is not given.
    pub fn unlock(&mut self, fence: &Fence, force: bool) -> Result<bool, Refusal> {
        match &self.lock {
            None => Ok(false),
            Some(lock) if force || lock.fence == *fence => {
                self.lock = None;
                Ok(true)
            }
            Some(lock) => Err(Refusal::Locked(Box::new(lock.clone()))),
        }
    }

    /// May a call that carries this fence change anything?
    ///
    /// # Errors
    /// No: somebody else has had the lock since, or it has run out.
    pub fn admit(&self, now: Moment, fence: &Fence) -> Result<(), Refusal> {
        if *fence != self.fence {
            return Err(Refusal::Fenced { highest: self.fence.clone() });
        }
        match &self.lock {
            Some(lock) if lock.fence == *fence && lock.until.is_none_or(|until| now < until) => Ok(()),
            _ => Err(Refusal::NotLocked),
        }
    }

    /// As [`App::admit`], and nothing is under way.
    ///
    /// # Errors
    /// As [`App::admit`], or the services are being switched.
    pub fn admit_change(&self, now: Moment, fence: &Fence) -> Result<(), Refusal> {
        self.admit(now, fence)?;
        match &self.switch {
            Some(_) => Err(Refusal::Busy("its services are being switched to another release")),
            None => Ok(()),
        }
    }

    /// Moves the ends of the lock and of the trial on.
    ///
    /// # Errors
    /// As [`App::admit`].
    pub fn renew(&mut self, now: Moment, fence: &Fence, until: Moment) -> Result<(), Refusal> {
        self.admit(now, fence)?;
        if let Some(lock) = self.lock.as_mut().filter(|lock| lock.until.is_some()) {
            lock.until = Some(until);
        }
        for trial in [self.trial.as_mut(), self.switch.as_mut().and_then(|s| s.trial.as_mut())].into_iter().flatten() {
            if trial.fence == *fence {
                trial.until = until;
            }
        }
        Ok(())
    }

    /// A release's files are here and sealed.
    ///
    /// # Errors
    /// One of that name is here, with other content.
    pub fn staged(&mut self, id: &ReleaseId, seconds: u64, about: About) -> Result<(), Refusal> {
        if let Some(there) = self.releases.get(id) {
            return match there.about.source == about.source && !about.source.is_empty() {
                true => Ok(()),
                false => Err(Refusal::Not(format!("there is a release {id} already, of another origin"))),
            };
        }
        self.last_number += 1;
        self.leaving.remove(id);
        let release = Release {
            state: State::Staged,
            number: self.last_number,
            confirmed: 0,
            staged_at: seconds,
            about,
            venv: None,
            migrated: None,
            configuration: None,
        };
        self.releases.insert(id.clone(), release);
        Ok(())
    }

    /// # Errors
    /// It is not here.
    pub fn built(&mut self, id: &ReleaseId, venv: Option<Box<str>>) -> Result<(), Refusal> {
        let release = self.releases.get_mut(id).ok_or_else(|| Refusal::Unknown(id.clone()))?;
        release.venv = venv;
        if release.state == State::Staged {
            release.state = State::Built;
        }
        Ok(())
    }

    /// A step of a rollout is about to be done; `Some`: it was begun before, and must not be done again.
    pub fn begin_step(&mut self, key: &str) -> Option<StepState> {
        if let Some((_, state)) = self.steps.iter_mut().find(|(known, _)| **known == *key) {
            let before = state.clone();
            if matches!(before, StepState::Failed(_)) {
                // It is tried again, and svd may die in that, too.
                *state = StepState::Begun;
            }
            return Some(before);
        }
        if self.steps.len() >= STEPS {
            self.steps.remove(0);
        }
        self.steps.push((key.into(), StepState::Begun));
        None
    }

    /// Steps of rollouts that were begun and have not ended, as rollout and name of the step.
    pub fn interrupted(&self) -> impl Iterator<Item = (&str, &str)> {
        let begun = self.steps.iter().filter(|(_, state)| *state == StepState::Begun);
        // What is taken in is begun again, whoever comes.
        begun.filter(|(key, _)| !key.starts_with(TAKE_IN)).filter_map(|(key, _)| key.rsplit_once(' '))
    }

    /// A migration was run with a release, or undone.
    pub fn migrated(&mut self, id: &ReleaseId, migrated: Option<Migrated>) {
        if let Some(release) = self.releases.get_mut(id) {
            release.migrated = migrated;
        }
    }

    /// It was not done, and may be begun again.
    pub fn forget_step(&mut self, key: &str) {
        self.steps.retain(|(known, _)| **known != *key);
    }

    pub fn end_step(&mut self, key: &str, state: StepState) {
        if let Some((_, known)) = self.steps.iter_mut().find(|(known, _)| **known == *key) {
            *known = state;
        }
    }

    /// What serves as far as is known: the one on trial, or the confirmed one.
    pub fn serving(&self) -> Option<&ReleaseId> {
        self.trial.as_ref().map(|trial| &trial.release).or(self.confirmed.as_ref())
    }

    /// The services are about to be switched to a release, which is then on trial.
    ///
    /// # Errors
    /// Who asks may not, it is not here, was not built, or has failed.
    pub fn begin_switch(&mut self, now: Moment, fence: &Fence, to: &ReleaseId, wanted: Wanted) -> Result<(), Refusal> {
        self.admit_change(now, fence)?;
        let Wanted { until, holds, rollback, configurations } = wanted;
        let release = self.releases.get(to).ok_or_else(|| Refusal::Unknown(to.clone()))?;
        if let State::Failed(why) = &release.state {
            return Err(Refusal::Not(format!("release {to} has failed here before: {why}")));
        }
        let (before, first) = match &self.trial {
            // A trial that follows another one goes back as far.
            Some(trial) => (trial.before.clone(), trial.configurations.as_ref().map(|c| c.from.clone())),
            None => (self.confirmed.clone(), None),
        };
        if let (None, Some(now), Some(serving)) = (&self.trial, &configurations, &self.confirmed)
            && let Some(release) = self.releases.get_mut(serving)
        {
            // A later rollback restores both.
            release.configuration = Some(now.from.clone());
        }
        let back =
            configurations.clone().map(|c| Configurations { from: first.unwrap_or_else(|| c.from.clone()), ..c });
        let holds = holds || self.trial.as_ref().is_some_and(|trial| trial.holds);
        let fence = fence.clone();
        let trial = Trial { release: to.clone(), before, fence, until, holds, rollback, configurations: back };
        let from = self.serving().cloned();
        self.switch = Some(Switch { to: Some(to.clone()), from, back: false, trial: Some(trial), configurations });
        Ok(())
    }

    /// The way back from what is on trial. `failed`: why it is no good, so that nobody goes there again. `None`: there is nothing
    /// to take back.
    ///
    /// # Errors
    /// The services are being switched.
    pub fn begin_return(&mut self, failed: Option<&str>) -> Result<Option<Switch>, Refusal> {
        if self.switch.is_some() {
            return Err(Refusal::Busy("its services are being switched to another release"));
        }
        let Some(trial) = &self.trial else { return Ok(None) };
        let switch = Switch {
            to: trial.before.clone(),
            from: Some(trial.release.clone()),
            back: true,
            trial: None,
            configurations: trial.configurations.as_ref().map(Configurations::swapped),
        };
        if let Some(why) = failed {
            self.fail(&trial.release.clone(), why);
        }
        self.switch = Some(switch.clone());
        Ok(Some(switch))
    }

    /// The switch has come to its end.
    pub fn switched(&mut self, result: Result<(), Box<str>>) {
        let Some(switch) = self.switch.take() else { return };
        match result {
            // An earlier trial that was come back to goes on.
            Ok(()) if switch.back => {
                // What it held is settled: the lease of the next one runs out as any does.
                if self.trial.take_if(|trial| Some(&trial.release) == switch.from.as_ref()).is_some() {
                    self.alert = None;
                }
                self.hold_back(switch.configurations);
            }
            Ok(()) => self.trial = switch.trial,
            // The way back failed: it is tried again, and the trial says from where.
            Err(_) if switch.back => {}
            Err(why) => {
                if let Some(to) = &switch.to {
                    self.fail(to, &why);
                }
                self.hold_back(switch.configurations.as_ref().map(Configurations::swapped));
            }
        }
    }

    /// What the services were given is in force no more, though their files say it.
    fn hold_back(&mut self, gone: Option<Configurations>) {
        if let Some(gone) = gone.filter(|gone| gone.to != gone.from) {
            self.held_back = Some(gone);
        }
    }

    /// Nobody carries a switch out any more: how it is brought to its end. It goes back, unless the release before does not work any
    /// more. `None`: there was no switch.
    pub fn settle_switch(&mut self) -> Option<Switch> {
        let switch = self.switch.as_mut()?;
        if switch.back || switch.trial.as_ref().is_some_and(|trial| trial.holds) {
            return Some(switch.clone());
        }
        let (to, from) = (switch.to.clone(), switch.from.clone());
        let configurations = switch.configurations.as_ref().map(Configurations::swapped);
        *switch = Switch { to: from, from: to, back: true, trial: None, configurations };
        Some(switch.clone())
    }

    /// What is on trial is good.
    ///
    /// # Errors
    /// Who asks may not, or nothing of his is on trial.
    pub fn confirm(&mut self, now: Moment, fence: &Fence) -> Result<ReleaseId, Refusal> {
        self.admit_change(now, fence)?;
        let Some(trial) = self.trial.take_if(|trial| trial.fence == *fence) else {
            return match &self.confirmed {
                // Asked again, after an answer that was lost.
                Some(id) if self.trial.is_none() => Ok(id.clone()),
                _ => Err(Refusal::Not("no release of this rollout is on trial here".to_owned())),
            };
        };
        self.set_confirmed(&trial.release);
        // A rollback leaves the files as they are.
        let said = self.held_back.take().map(|held| held.from);
        if trial.rollback.is_some() {
            let back = trial.configurations.map(|c| Configurations { from: said.unwrap_or(c.from), to: c.to });
            self.hold_back(back);
        }
        self.confirmed_by = trial.fence.rollout;
        if let (Some(why), Some(before)) = (&trial.rollback, &trial.before) {
            self.fail(before, why);
        }
        Ok(trial.release)
    }

    fn set_confirmed(&mut self, id: &ReleaseId) {
        self.last_confirmation += 1;
        if let Some(release) = self.releases.get_mut(id) {
            release.confirmed = self.last_confirmation;
            release.state = State::Confirmed;
        }
        self.confirmed = Some(id.clone());
        self.alert = None;
    }

    /// What `current` names while nothing is under way: people have decided for it, before svd kept books or past it.
    pub fn found(&mut self, id: &ReleaseId, seconds: u64) {
        if self.trial.is_some() || self.switch.is_some() || self.confirmed.as_ref() == Some(id) {
            return;
        }
        if !self.releases.contains_key(id) {
            let label = "found here".into();
            // It cannot be there already.
            let _ = self.staged(id, seconds, About { label, ..About::default() });
        }
        self.set_confirmed(id);
    }

    fn fail(&mut self, id: &ReleaseId, why: &str) {
        // One that was good once stays a way back, unless it is what was just left.
        if let Some(release) = self.releases.get_mut(id).filter(|_| self.confirmed.as_ref() != Some(id)) {
            release.state = State::Failed(why.into());
        }
    }

    /// What is to be taken back is tried again then.
    pub fn postpone(&mut self, until: Moment) {
        if let Some(trial) = &mut self.trial {
            trial.until = trial.until.max(until);
        }
    }

    /// The next moment at which [`App::expire`] has something to decide.
    pub fn deadline(&self) -> Option<Moment> {
        self.trial.as_ref().filter(|_| self.alert.is_none()).map(|trial| trial.until)
    }

    /// A lease may have run out.
    pub fn expire(&mut self, now: Moment) -> Expired {
        if self.lock.as_ref().is_some_and(|lock| lock.until.is_some_and(|until| until <= now)) {
            self.lock = None;
        }
        let Some(trial) = self.trial.as_ref().filter(|trial| trial.until <= now) else { return Expired::Nothing };
        if self.switch.is_some() || self.alert.is_some() {
            return Expired::Nothing;
        }
        if trial.holds {
            let text = format!(
                "the lease of {} has run out, and a migration came with it that the release before does not work with",
                trial.release
            );
            self.alert = Some(text.as_str().into());
            return Expired::Holds(text);
        }
        Expired::TakeBack
    }

    /// The machine was started anew: no lease has outlived that. True where something was under way: `current` must be made to
    /// name what is [`App::serving`] now.
    pub fn booted(&mut self) -> bool {
        self.lock.take_if(|lock| lock.until.is_some());
        let holds = |switch: &Switch| !switch.back && switch.trial.as_ref().is_some_and(|trial| trial.holds);
        if let Some(Switch { trial: Some(trial), .. }) = self.switch.take_if(|switch| holds(switch)) {
            self.trial = Some(Trial { until: Moment(0), ..trial });
            return true;
        }
        let switch = self.switch.take();
        let undone = switch.as_ref().and_then(|s| {
            let given = s.configurations.as_ref()?;
            Some(if s.back { given.clone() } else { given.swapped() })
        });
        if let Some(trial) = self.trial.as_mut().filter(|trial| trial.holds) {
            trial.until = Moment(0);
            self.hold_back(undone);
            return switch.is_some();
        }
        let trial = self.trial.take();
        let tried = trial.as_ref().and_then(|t| t.configurations.as_ref()).map(Configurations::swapped);
        self.hold_back(match (undone, tried) {
            // Beyond what was tried first.
            (Some(undone), Some(tried)) => Some(Configurations { from: undone.from, to: tried.to }),
            (undone, tried) => undone.or(tried),
        });
        switch.is_some() || trial.is_some()
    }

    /// The machine was started anew, and `current` could not be changed: what was under way is taken back as soon as that can be.
    pub fn stranded(&mut self) {
        self.lock.take_if(|lock| lock.until.is_some());
        for trial in [self.trial.as_mut(), self.switch.as_mut().and_then(|s| s.trial.as_mut())].into_iter().flatten() {
            trial.until = Moment(0);
        }
    }

    /// Where a rollback goes: to the one that was confirmed before the one in force. Releases that failed are no way back.
    pub fn previous(&self) -> Option<&ReleaseId> {
        let serving = self.serving();
        if self.trial.is_some() {
            return self.trial.as_ref().and_then(|trial| trial.before.as_ref());
        }
        let candidates = self
            .releases
            .iter()
            .filter(|(id, release)| Some(*id) != serving && release.confirmed > 0 && release.state == State::Confirmed);
        candidates.max_by_key(|(_, release)| release.confirmed).map(|(id, _)| id)
    }

    /// Releases beyond `keep`, oldest first: never one that `runs`, serves, is a way back, or has failed after the last
    /// confirmation and may still be looked into.
    pub fn prunable(&self, keep: usize, runs: &BTreeSet<ReleaseId>) -> Vec<ReleaseId> {
        let latest = self.confirmed.as_ref().and_then(|id| self.releases.get(id)).map_or(0, |r| r.number);
        let needed = |id: &ReleaseId, release: &Release| {
            let of_trial = self.trial.as_ref().is_some_and(|t| t.release == *id || t.before.as_ref() == Some(id));
            let of_switch =
                self.switch.as_ref().is_some_and(|s| s.to.as_ref() == Some(id) || s.from.as_ref() == Some(id));
            let newer = release.number > latest;
            runs.contains(id)
                || self.confirmed.as_ref() == Some(id)
                || self.previous() == Some(id)
                || of_trial
                || of_switch
                || newer
        };
        let mut by_age: Vec<_> = self.releases.iter().collect();
        by_age.sort_by_key(|(_, release)| release.number);
        let surplus = by_age.len().saturating_sub(keep);
        let old = by_age.into_iter().filter(|(id, release)| !needed(id, release));
        old.take(surplus).map(|(id, _)| id.clone()).collect()
    }

    /// Its files are about to be removed, which a death may leave half done: they are nobody's until [`App::gone`].
    pub fn pruned(&mut self, id: &ReleaseId) {
        self.releases.remove(id);
        self.leaving.insert(id.clone());
    }

    /// Nothing of them is left.
    pub fn gone(&mut self, ids: &BTreeSet<ReleaseId>) {
        self.leaving.retain(|id| !ids.contains(id));
    }

    /// What was taken back, and is not to come in force by itself; `None` also while a release is tried with just that.
    pub fn held_back(&self) -> Option<&Configurations> {
        let switch = self.switch.as_ref();
        let trials = [self.trial.as_ref(), switch.and_then(|s| s.trial.as_ref())];
        let tried = |held: &&Configurations| {
            trials.into_iter().flatten().any(|t| t.configurations.as_ref().is_some_and(|c| c.to == held.from))
        };
        self.held_back.as_ref().filter(|held| !tried(held))
    }

    /// Kept configurations that anything may go back to.
    pub fn configurations(&self) -> BTreeSet<&str> {
        let trial = self.trial.as_ref().and_then(|t| t.configurations.as_ref());
        let switch = self.switch.as_ref().and_then(|s| s.configurations.as_ref());
        let of_switch = self.switch.as_ref().and_then(|s| s.trial.as_ref()?.configurations.as_ref());
        let pairs = [trial, switch, of_switch, self.held_back.as_ref()];
        let names = pairs.into_iter().flatten().flat_map(|c| [&*c.to, &*c.from]);
        names.chain(self.releases.values().filter_map(|r| r.configuration.as_deref())).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expired {
    Nothing,
    TakeBack,
    /// Why it is held; told once.
    Holds(String),
}

#[cfg(test)]
#[path = "app_test.rs"]
mod tests;
