//! Generations beside the one that serves, which never take its place by themselves: a copy of what served before, so that the
//! way back to it needs no boot, and a canary.

use super::event::{Action, Canary, GenerationId, Level, OpId, ServiceId, Source};
use super::generation::Role;
use super::machine::Machine;
use super::service::{Phase, Replacement, Stage};
use super::timers::Timer;
use std::time::Duration;

impl Machine {
    /// `old` is about to be told to stop. A fresh boot of it, as one that has served cannot be made to accept no more and
    /// to serve again later: what it runs would have to be stopped meanwhile, and gunicorn's master kills workers that stand still.
    pub(super) fn begin_standby(&mut self, old: GenerationId, keep: Duration) {
        if self.shutting_down {
            return;
        }
        let until = self.now + keep;
        self.begin_as(old.service, Source::Again { of: old.number }, Some((Role::Standby, until)));
        self.timers.set(Timer::Aside(old.service), until);
    }

    pub(super) fn begin_canary(&mut self, id: ServiceId, op: Option<OpId>, canary: Canary) {
        let Some(service) = self.services.get(&id) else { return };
        let why = if service.phase != Phase::Active || service.committed().is_none() {
            Some("nothing serves that a canary could be compared with")
        } else if !service.policy.overlap {
            Some("two generations of it may not run at once (overlap = false)")
        } else {
            service.replacement.as_ref().map(|_| "a reload is in progress: wait for it, then try a canary")
        };
        if let Some(why) = why {
            return self.done(op, Err(why.to_owned()), None);
        }
        // With the time that its boot may take.
        let until = self.now + service.policy.ready_timeout + canary.stay;
        self.drop_aside(id, Level::Info, "a canary takes its place");
        self.begin_as(id, Source::Canary(canary), Some((Role::Canary, until)));
        self.timers.set(Timer::Aside(id), until);
        if let Some(service) = self.services.get_mut(&id) {
            service.canary_op = op;
        }
    }

    /// A canary that has booted serves.
    pub(super) fn expose(&mut self, id: ServiceId) {
        let Some(canary) = self.services.get(&id).and_then(|s| s.canary()).filter(|g| !g.open) else { return };
        if !self.all_ready(canary) {
            return;
        }
        let (canary, now) = (canary.id, self.now);
        let Some(generation) = self.generation_mut(canary) else { return };
        let Source::Canary(Canary { stay, .. }) = generation.source else { return };
        let until = now + stay;
        (generation.open, generation.since, generation.until) = (true, now, Some(until));
        self.timers.set(Timer::Aside(id), until);
        self.out.push(Action::Expose { generation: canary });
        let op = self.services.get_mut(&id).and_then(|s| s.canary_op.take());
        self.note(id, op, Level::Info, format!("generation {}, the canary, serves beside the others", canary.number));
        self.done(op, Ok(()), None);
    }

    pub(super) fn is_aside(&self, id: GenerationId) -> bool {
        self.generation(id).is_some_and(|g| matches!(g.role, Role::Standby | Role::Canary))
    }

    /// It ends; what serves goes on as if nothing had been.
    pub(super) fn drop_aside(&mut self, id: ServiceId, level: Level, why: &str) {
        let Some(aside) = self.services.get(&id).and_then(|s| s.aside()) else { return };
        let (aside, drain) = (aside.id, aside.open.then_some(aside.policy.drain));
        let word = if self.generation(aside).is_some_and(|g| g.role == Role::Canary) { "canary" } else { "standby" };
        let text = format!("generation {}, the {word}, is given up: {why}", aside.number);
        let op = self.services.get_mut(&id).and_then(|s| s.canary_op.take());
        self.done(op, Err(text.clone()), Some(aside.number));
        self.note(id, None, level, text);
        self.retire(aside, drain);
        self.touched.insert(id);
    }

    /// Whatever it becomes, its time counts no more.
    pub(super) fn leave_aside(&mut self, id: GenerationId) {
        if !self.is_aside(id) {
            return;
        }
        self.timers.clear(Timer::Aside(id.service));
        if let Some(generation) = self.generation_mut(id) {
            generation.until = None;
        }
        let op = self.services.get_mut(&id.service).and_then(|s| s.canary_op.take());
        self.done(op, Err("it was stopped meanwhile".to_owned()), None);
    }

    /// A standby takes over, at once if it has booted. It is the candidate of a reload from here on, with all that follows if it
    /// fails. False: it is not there any more.
    pub(super) fn recall(&mut self, id: ServiceId, op: Option<OpId>, standby: u64, force: bool) -> bool {
        let Some(service) = self.services.get(&id).filter(|s| s.phase == Phase::Active && s.policy.overlap) else {
            return false;
        };
        let Some(standby) = service.standby().filter(|g| g.id.number == standby).map(|g| g.id) else { return false };
        if let Err(why) = self.room_to_drain(id, force) {
            self.done(op, Err(why), None);
            return true;
        }
        self.supersede(id);
        self.leave_aside(standby);
        let now = self.now;
        if let Some(generation) = self.generation_mut(standby) {
            (generation.role, generation.since) = (Role::Candidate, now);
        }
        if let Some(service) = self.services.get_mut(&id) {
            service.replacement = Some(Box::new(Replacement { op, stage: Stage::Beside, keep: None }));
        }
        self.note(id, op, Level::Info, format!("generation {}, the standby, takes over", standby.number));
        self.touched.insert(id);
        true
    }
}
