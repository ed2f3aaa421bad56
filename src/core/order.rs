//! Starting, stopping, and what waits for what.

use super::event::{Action, Level, OpId, ServiceId, Source};
use super::generation::{Role, SlotState};
use super::machine::Machine;
use super::service::{Goal, Phase, Service, Stage};
use super::timers::Timer;

/// Callers that wait for one service. Each has a connection, unless it gave up: cron may start each minute what waits.
const WAITING: usize = 128;

impl Machine {
    pub(super) fn start(&mut self, id: ServiceId, op: Option<OpId>) {
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        service.wanted = true;
        match service.phase {
            Phase::Active if service.committed().is_some() && !service.failing() => self.done(op, Ok(()), None),
            Phase::Active if service.failing() => self.restart(id, op),
            Phase::Active => self.wait_for(id, op, Goal::Running),
            Phase::Waiting => {
                self.wait_for(id, op, Goal::Running);
                self.start_required(id);
                self.touched.insert(id);
            }
            Phase::Stopping => {
                service.then.get_or_insert(Source::Fresh { release: None });
                self.wait_for(id, op, Goal::Running);
            }
            Phase::Stopped | Phase::Failed { .. } | Phase::Exited => {
                service.restarts = 0;
                self.wait_for(id, op, Goal::Running);
                self.enter(id, Phase::Waiting);
                self.start_required(id);
            }
        }
    }

    fn wait_for(&mut self, id: ServiceId, op: Option<OpId>, goal: Goal) {
        let Some(op) = op else { return };
        if let Some(reason) = self.hangs(id) {
            return self.done(Some(op), Err(reason), None);
        }
        let Some(service) = self.services.get_mut(&id) else { return };
        if service.waiting.len() < WAITING {
            return service.waiting.push((op, goal));
        }
        let doing = match goal {
            Goal::Running => "it is being started",
            Goal::Stopped => "it is being stopped",
        };
        self.done(
            Some(op),
            Err(format!("{doing}, and {WAITING} callers wait for that already: see how it goes on")),
            None,
        );
    }

    /// What a service requires is wanted with it.
    fn start_required(&mut self, id: ServiceId) {
        let Some(service) = self.services.get(&id) else {
            return;
        };
        let required: Vec<ServiceId> = service
            .policy
            .requires
            .iter()
            .filter_map(|name| self.names.get(&**name).copied())
            .filter(|r| self.services.get(r).is_some_and(|s| s.phase == Phase::Stopped))
            .collect();
        for id in required {
            self.start(id, None);
        }
    }

    pub(super) fn stop(&mut self, id: ServiceId, op: Option<OpId>) {
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        service.wanted = false;
        service.then = None;
        self.end_everything(id, "it was stopped meanwhile");
        self.wait_for(id, op, Goal::Stopped);
        self.touched.insert(id);
    }

    pub(super) fn restart(&mut self, id: ServiceId, op: Option<OpId>) {
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        service.wanted = true;
        match service.phase {
            Phase::Stopped | Phase::Waiting | Phase::Failed { .. } | Phase::Exited => return self.start(id, op),
            Phase::Active | Phase::Stopping => {}
        }
        self.end_everything(id, "it was restarted meanwhile");
        if let Some(service) = self.services.get_mut(&id) {
            service.then = Some(Source::Fresh { release: None });
        }
        self.wait_for(id, op, Goal::Running);
        self.touched.insert(id);
    }

    /// Every generation is told to stop; whoever waited for it to run is told that it will not.
    fn end_everything(&mut self, id: ServiceId, why: &str) {
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        if let Some(op) = service.replacement.take().and_then(|r| r.op) {
            self.done(Some(op), Err(why.to_owned()), None);
        }
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let (in_vain, others) = service.waiting.drain(..).partition(|(_, goal)| *goal == Goal::Running);
        service.waiting = others;
        let in_vain: Vec<(OpId, Goal)> = in_vain;
        let numbers: Vec<u64> = service.generations.iter().map(|g| g.id.number).collect();
        for (op, _) in in_vain {
            self.done(Some(op), Err(why.to_owned()), None);
        }
        for number in numbers {
            self.retire(super::GenerationId { service: id, number }, None);
        }
        self.enter(id, Phase::Stopping);
    }

    /// Nothing is left of a service that was told to stop.
    pub(super) fn stopped(&mut self, id: ServiceId) {
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let then = service.then.take();
        service.restarts = 0;
        let (stops, others) = service.waiting.drain(..).partition(|(_, goal)| *goal == Goal::Stopped);
        service.waiting = others;
        let stops: Vec<(OpId, Goal)> = stops;
        let reopen = std::mem::take(&mut service.reopen);
        for (op, _) in stops {
            self.done(Some(op), Ok(()), None);
        }
        if then.is_none() || reopen {
            self.out.push(Action::CloseSockets { service: id });
        }
        if let (Some(source), false) = (then, self.shutting_down) {
            self.enter(id, Phase::Active);
            self.touched.remove(&id);
            return self.begin(id, source);
        }
        self.enter(id, Phase::Stopped);
        self.touched.remove(&id);
        self.up.remove(&id);
        if self.services.get(&id).is_some_and(|s| s.removed) {
            self.forget(id);
        }
    }

    fn forget(&mut self, id: ServiceId) {
        if let Some(service) = self.services.remove(&id) {
            self.repolicied.insert(id);
            // A new service may already have taken the name.
            if self.names.get(&service.name) == Some(&id) {
                self.names.remove(&service.name);
            }
            self.timers.clear(Timer::Service(id));
            self.waiting.remove(&id);
            self.out.push(Action::Forget { service: id });
        }
    }

    /// Starts what waited and need not wait any longer.
    pub(super) fn start_waiting(&mut self) {
        let mut moved = true;
        while std::mem::take(&mut moved) {
            let ids: Vec<ServiceId> = self.waiting.iter().copied().collect();
            for id in ids {
                let vain = match self.held_by(id) {
                    None => {
                        self.enter(id, Phase::Active);
                        self.begin(id, Source::Fresh { release: None });
                        moved = true;
                        None
                    }
                    Some(Hold::Order(_)) => None,
                    Some(Hold::Requirement(reason)) => Some(reason),
                };
                moved |= self.set_in_vain(id, vain);
            }
        }
    }

    /// Those who wait for a start that waits itself for something that does not come are told so; it goes on waiting.
    fn set_in_vain(&mut self, id: ServiceId, reason: Option<String>) -> bool {
        let Some(service) = self.services.get_mut(&id) else { return false };
        let waiting = if reason.is_some() { std::mem::take(&mut service.waiting) } else { Vec::new() };
        let changed = service.in_vain.as_deref() != reason.as_deref();
        service.in_vain = reason.as_deref().map(Into::into);
        for (op, _) in waiting {
            self.done(Some(op), Err(reason.clone().unwrap_or_default()), None);
        }
        changed
    }

    /// Why a service is not simply running, for people.
    pub fn reason(&self, id: ServiceId) -> Option<String> {
        let service = self.services.get(&id)?;
        service.reason().or_else(|| self.hangs(id)).or_else(|| {
            match self.held_by(id).filter(|_| service.phase == Phase::Waiting)? {
                Hold::Order(reason) | Hold::Requirement(reason) => Some(reason),
            }
        })
    }

    fn held_by(&self, id: ServiceId) -> Option<Hold> {
        let service = self.services.get(&id)?;
        // What is left of an earlier generation (one that was given up, say) must be gone where two may not overlap.
        let old = || Hold::Order("it waits for the end of what is left of it".to_owned());
        let mut hold = (!service.policy.overlap && self.any_live(id)).then(old);
        let known = |name: &str| self.names.get(name).and_then(|id| self.services.get(id));
        for needed in service.policy.requires.iter().map(|name| &**name).filter_map(known) {
            if needed.serves(self.workers.map()) {
                continue;
            }
            let hopeless = matches!(needed.phase, Phase::Stopped | Phase::Failed { .. } | Phase::Exited);
            if hopeless || needed.failing() {
                let state = needed.state(self.workers.map());
                let reason = format!("it waits for {}, which it requires and which is {state}", needed.name);
                return Some(Hold::Requirement(reason));
            }
            hold = Some(Hold::Order(format!("it waits for {}, which it requires", needed.name)));
        }
        for earlier in service.policy.after.iter().map(|name| &**name).filter_map(known) {
            // Order only: what fails, or is not wanted, does not hold anybody up.
            let coming = match earlier.phase {
                Phase::Waiting => earlier.in_vain.is_none(),
                Phase::Active => earlier.committed().is_none() && !earlier.failing(),
                _ => false,
            };
            if coming && earlier.id != id {
                hold = Some(Hold::Order(format!("it waits for {}, after which it starts", earlier.name)));
            }
        }
        hold
    }

    pub(super) fn handle_grace(&mut self, id: ServiceId, grace: std::time::Duration) {
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let old = std::rc::Rc::clone(&service.policy);
        if old.grace == grace {
            return;
        }
        let mut policy = (*old).clone();
        policy.grace = grace;
        let policy = std::rc::Rc::new(policy);
        for generation in service.generations.iter_mut().filter(|g| std::rc::Rc::ptr_eq(&g.policy, &old)) {
            generation.policy = std::rc::Rc::clone(&policy);
        }
        service.policy = policy;
        self.repolicied.insert(id);
    }

    /// More or fewer slots of a plain command, without a restart.
    pub(super) fn scale(&mut self, id: ServiceId, op: Option<OpId>, slots: u32) {
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        if service.replacement.is_some() {
            let why = "a reload is in progress: wait for it, then scale".to_owned();
            return self.done(op, Err(why), None);
        }
        service.scale = Some(slots.max(1));
        self.drop_aside(id, Level::Info, "the number of instances changes");
        let Some(service) = self.services.get(&id) else { return };
        let Some(generation) = service.committed().or_else(|| service.candidate()) else {
            return self.done(op, Ok(()), None);
        };
        let (gid, have) = (generation.id, generation.slots.len());
        self.note(id, op, Level::Info, format!("{have} → {} instances", slots.max(1)));
        self.resize(gid, slots.max(1));
        self.fill(gid);
        self.wait_for(id, op, Goal::Running);
        // Perhaps only slots that had ended are left.
        self.slot_left(gid);
        self.touched.insert(id);
    }
}

enum Hold {
    Order(String),
    Requirement(String),
}

impl Service {
    /// It should run and does not: every slot that there is waits for its next attempt.
    pub(super) fn failing(&self) -> bool {
        let generation = self.committed().or_else(|| self.candidate());
        let late = |s: &SlotState| matches!(s, SlotState::Backoff(_) | SlotState::Failed(_));
        generation
            .is_some_and(|g| g.role != Role::Draining && !g.slots.is_empty() && g.slots.iter().any(|s| late(&s.state)))
            && !matches!(self.replacement.as_ref().map(|r| &r.stage), Some(Stage::Beside))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Command, Event, Setup, Time};
    use super::*;
    use crate::sim::World;
    use std::rc::Rc;

    #[test]
    fn no_more_than_so_many_wait_for_a_start() {
        let mut machine = Machine::new(1, 0);
        let (service, policy) = (ServiceId(1), Rc::new(World::policy(true, 1)));
        let setup = Setup { service, name: "web".into(), policy, start: false, last_generation: 0, op: None };
        machine.handle(Time(1), Event::Configure { add: vec![setup], change: vec![], remove: vec![] });
        let mut refused = Vec::new();
        for n in 0..200 {
            let event = Event::Command { op: Some(OpId(n)), service, command: Command::Start };
            for action in machine.handle(Time(2), event) {
                if let Action::Done { op, result } = action {
                    assert_eq!(op, OpId(n));
                    refused.push(result.expect_err("it cannot have started").reason);
                }
            }
        }
        assert_eq!(refused.len(), 200 - WAITING);
        assert!(refused[0].contains("128 callers wait"), "{}", refused[0]);
        // A stop is taken nevertheless, and answers all of them.
        let event = Event::Command { op: Some(OpId(999)), service, command: Command::Stop };
        let done = machine.handle(Time(3), event).iter().filter(|a| matches!(a, Action::Done { .. })).count();
        assert_eq!(done, WAITING);
    }
}
