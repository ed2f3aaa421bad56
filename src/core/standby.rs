//! A copy of what served before, booted and answering nobody, so that the way back to it needs no boot.

use super::event::{GenerationId, Level, OpId, ServiceId, Source};
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
        self.begin_until(old.service, Source::Again { of: old.number }, Some(until));
        self.timers.set(Timer::Standby(old.service), until);
    }

    pub(super) fn is_standby(&self, id: GenerationId) -> bool {
        self.generation(id).is_some_and(|g| g.role == Role::Standby)
    }

    /// It ends; nobody notices.
    pub(super) fn drop_standby(&mut self, id: ServiceId, level: Level, why: &str) {
        let Some(standby) = self.services.get(&id).and_then(|s| s.standby()).map(|g| g.id) else { return };
        let text = format!("generation {}, the standby, is given up: {why}", standby.number);
        self.note(id, None, level, text);
        self.retire(standby, None);
        self.touched.insert(id);
    }

    /// Whatever it becomes, its time counts no more.
    pub(super) fn leave_standby(&mut self, id: GenerationId) {
        if !self.is_standby(id) {
            return;
        }
        self.timers.clear(Timer::Standby(id.service));
        if let Some(generation) = self.generation_mut(id) {
            generation.until = None;
        }
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
        self.leave_standby(standby);
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
