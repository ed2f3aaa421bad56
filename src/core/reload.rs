//! Generations: begun, committed, taken back, retired, discarded; and the replacement of one by another.

use super::event::{Action, GenerationId, Level, OpId, ServiceId, Source};
use super::generation::{Generation, Role, Slot, SlotState};
use super::machine::Machine;
use super::service::{Goal, Phase, Replaced, Replacement, Service, Stage};
use super::time::Time;
use super::timers::Timer;
use std::rc::Rc;
use std::time::Duration;

/// The answer to a reload of what is stopped.
pub const NOT_RUNNING: &str = "it is not running; `svctl start` starts it with what `current` names";

impl Machine {
    /// Begins a new generation as the candidate.
    pub(super) fn begin(&mut self, id: ServiceId, source: Source) {
        self.begin_as(id, source, None);
    }

    /// `aside`: not as a candidate, and it is given up then.
    pub(super) fn begin_as(&mut self, id: ServiceId, source: Source, aside: Option<(Role, Time)>) {
        let now = self.now;
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        service.last_generation += 1;
        let generation = GenerationId { service: id, number: service.last_generation };
        let policy = Rc::clone(&service.policy);
        let slots = service.slots();
        // One is the rule; a vector would begin with room for four.
        service.generations.reserve_exact(1);
        let mut begun = Generation::new(generation, source.clone(), policy, slots, now);
        if let Some((role, until)) = aside {
            (begun.role, begun.until) = (role, Some(until));
        }
        service.generations.push(begun);
        self.out.push(Action::Prepare { generation, source });
    }

    pub(super) fn handle_prepared(&mut self, id: GenerationId, result: Result<(), String>) {
        let Some(generation) = self.generation_mut(id) else {
            return;
        };
        if generation.role == Role::Draining {
            // Taken back while it was being prepared.
            generation.prepared = true;
            return self.discard_if_empty(id);
        }
        generation.prepared = result.is_ok();
        match result {
            Ok(()) => self.fill(id),
            Err(reason) => self.unprepared(id, reason),
        }
        self.touched.insert(id.service);
    }

    /// A generation that could not even be prepared: taken back, or tried again as a slot that failed.
    fn unprepared(&mut self, id: GenerationId, reason: String) {
        if let Some(generation) = self.generation_mut(id) {
            generation.prepared = true;
        }
        if self.is_replacement(id) {
            return self.take_back(id, reason);
        }
        if self.is_aside(id) {
            return self.drop_aside(id.service, Level::Warning, &reason);
        }
        let Some(restart) = self.generation(id).map(|g| g.policy.restart.clone()) else {
            return;
        };
        let then = restart.limit.then.map(|then| then.min(restart.max_delay));
        self.give_up_for_now(id, then, reason);
    }

    /// Spawns a worker in every empty slot, but for those whose former worker (before a `scale`) is still leaving.
    pub(super) fn fill(&mut self, id: GenerationId) {
        let Some(generation) = self.generation(id) else { return };
        if generation.role == Role::Draining || !generation.prepared {
            return;
        }
        let leaving = |n: u32| generation.workers.iter().any(|w| self.workers.get(w).is_some_and(|w| w.slot == n));
        let empty: Vec<u32> = (0..)
            .zip(&generation.slots)
            .filter(|(n, s)| s.state == SlotState::Empty && !leaving(*n))
            .map(|(n, _)| n)
            .collect();
        for slot in empty {
            self.spawn(id, slot);
        }
    }

    /// Cuts or lengthens a generation's slots; those cut off are told to stop.
    pub(super) fn resize(&mut self, id: GenerationId, slots: u32) {
        let Some(generation) = self.generation_mut(id) else {
            return;
        };
        let keep = slots as usize;
        let grace = generation.policy.grace;
        let mut leaving = Vec::new();
        while generation.slots.len() > keep {
            let number = generation.slots.len() as u32 - 1;
            if let Some(slot) = generation.slots.pop() {
                leaving.push((number, slot));
            }
        }
        generation.slots.resize_with(keep.max(generation.slots.len()), Slot::new);
        for (number, slot) in leaving {
            self.timers.clear(Timer::Slot(id, number));
            if let SlotState::Filled(worker) = slot.state {
                self.stop_worker(worker, grace);
            }
        }
    }

    /// Is this the candidate of a reload, so that its failure takes it back?
    pub(super) fn is_replacement(&self, id: GenerationId) -> bool {
        let Some(service) = self.services.get(&id.service) else {
            return false;
        };
        let candidate = service.candidate().is_some_and(|g| g.id == id);
        candidate
            && service
                .replacement
                .as_ref()
                .is_some_and(|r| matches!(r.stage, Stage::Beside | Stage::StartingNew { .. }))
    }

    /// `keep`: a copy of what is replaced, for so long.
    pub(super) fn reload(
        &mut self,
        id: ServiceId,
        op: Option<OpId>,
        source: Source,
        force: bool,
        keep: Option<Duration>,
    ) {
        let Some(service) = self.services.get(&id) else {
            return;
        };
        match service.phase {
            Phase::Active => {}
            Phase::Stopping | Phase::Stopped => {
                let why = NOT_RUNNING.to_owned();
                return self.done(op, Err(why), None);
            }
            Phase::Waiting | Phase::Failed { .. } | Phase::Exited => return self.start(id, op),
        }
        let Some(old) = service.committed().map(|g| g.id.number) else {
            return self.reload_without_old(id, op, source);
        };
        if let Err(why) = self.room_to_drain(id, force) {
            return self.done(op, Err(why), None);
        }
        self.supersede(id);
        self.drop_aside(id, Level::Info, "another reload begins");
        let overlap = self.services.get(&id).is_some_and(|s| s.policy.overlap);
        let stage = if overlap { Stage::Beside } else { Stage::StoppingOld { old, source: source.clone() } };
        if let Some(service) = self.services.get_mut(&id) {
            let keep = keep.filter(|_| overlap);
            service.replacement = Some(Box::new(Replacement { op, stage, keep }));
        }
        if overlap {
            self.begin(id, source);
        } else {
            self.note(id, op, Level::Info, format!("stopping generation {old} first (overlap = false)"));
            self.retire(GenerationId { service: id, number: old }, None);
        }
        self.touched.insert(id);
    }

    /// Nothing serves yet: what boots is replaced by a fresh start.
    fn reload_without_old(&mut self, id: ServiceId, op: Option<OpId>, source: Source) {
        let Some(service) = self.services.get(&id) else {
            return;
        };
        if let Some(Stage::StoppingOld { old, .. } | Stage::StartingNew { old } | Stage::Restoring { old }) =
            service.replacement.as_ref().map(|r| r.stage.clone())
        {
            // A newer reload while the one before is between old and new: only what starts next changes.
            let booting = service.candidate().map(|g| g.id);
            self.supersede_op(id);
            if let Some(service) = self.services.get_mut(&id) {
                service.replacement =
                    Some(Box::new(Replacement { op, stage: Stage::StoppingOld { old, source }, keep: None }));
            }
            if let Some(booting) = booting {
                self.retire(booting, None);
            }
            self.touched.insert(id);
            return;
        }
        self.restart(id, op);
        if let Some(service) = self.services.get_mut(&id) {
            service.then = Some(source);
        }
    }

    pub(super) fn room_to_drain(&mut self, id: ServiceId, force: bool) -> Result<(), String> {
        let Some(service) = self.services.get(&id) else {
            return Ok(());
        };
        let draining: Vec<GenerationId> =
            service.generations.iter().filter(|g| g.role == Role::Draining).map(|g| g.id).collect();
        let most = service.policy.max_draining.max(1) as usize;
        if draining.len() < most {
            return Ok(());
        }
        if !force {
            return Err(format!(
                "{} older generations are still finishing their requests ([reload] max_draining = {most}); wait, or \
                 use --force to end the oldest",
                draining.len()
            ));
        }
        if let Some(oldest) = draining.first() {
            self.note(id, None, Level::Warning, format!("generation {} is ended: too many drain", oldest.number));
            self.retire(*oldest, None);
        }
        Ok(())
    }

    /// A newer reload takes the place of one in progress.
    pub(super) fn supersede(&mut self, id: ServiceId) {
        self.supersede_op(id);
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        service.replacement = None;
        if let Some(candidate) = service.candidate().map(|g| g.id) {
            self.retire(candidate, None);
        }
    }

    fn supersede_op(&mut self, id: ServiceId) {
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        if let Some(op) = service.replacement.as_mut().and_then(|r| r.op.take()) {
            self.done(Some(op), Err("a newer reload took its place".to_owned()), None);
        }
    }

    /// Commits the candidate if all of it is ready; moves a replacement without overlap along.
    pub(super) fn settle_active(&mut self, id: ServiceId) {
        self.expose(id);
        let Some(service) = self.services.get(&id) else {
            return;
        };
        if let Some(candidate) = service.candidate()
            && self.all_ready(candidate)
        {
            return self.commit(candidate.id);
        }
        if let Some(committed) = service.committed()
            && service.replacement.is_none()
            && !service.waiting.is_empty()
            && self.all_ready(committed)
            && !self.has_cut_off(committed)
        {
            self.reached(id, Goal::Running, "it runs");
        }
        let Some(service) = self.services.get(&id) else {
            return;
        };
        let alone = service.committed().is_none() && service.candidate().is_none();
        if !alone {
            return;
        }
        match service.replacement.as_ref().map(|r| r.stage.clone()) {
            Some(Stage::StoppingOld { old, source }) if !self.any_live(id) => {
                self.set_stage(id, Stage::StartingNew { old });
                self.begin(id, source);
            }
            Some(Stage::Restoring { old }) if !self.any_live(id) => {
                if let Some(service) = self.services.get_mut(&id) {
                    service.replacement = None;
                }
                self.begin(id, Source::Again { of: old });
            }
            _ => {}
        }
    }

    /// Are workers left whose slots a `scale` has cut off?
    fn has_cut_off(&self, generation: &Generation) -> bool {
        let slots = generation.slots.len();
        generation.workers.iter().any(|w| self.workers.get(w).is_some_and(|w| w.slot as usize >= slots))
    }

    fn set_stage(&mut self, id: ServiceId, stage: Stage) {
        if let Some(replacement) = self.services.get_mut(&id).and_then(|s| s.replacement.as_mut()) {
            replacement.stage = stage;
        }
    }

    pub(super) fn any_live(&self, id: ServiceId) -> bool {
        self.services.get(&id).is_some_and(|s| s.generations.iter().any(|g| !g.workers.is_empty()))
    }

    fn commit(&mut self, id: GenerationId) {
        let now = self.now;
        let Some(service) = self.services.get_mut(&id.service) else {
            return;
        };
        let old = service.committed().map(|g| g.id);
        let replacement = service.replacement.take();
        let keep = replacement.as_ref().and_then(|r| r.keep);
        let op = replacement.and_then(|r| r.op);
        if let Some(generation) = service.generation_mut(id.number) {
            generation.role = Role::Committed;
            generation.since = now;
        }
        service.since = now;
        self.out.push(Action::Commit { generation: id });
        self.note(id.service, op, Level::Info, format!("generation {} is committed", id.number));
        if let Some(old) = old {
            if let Some(keep) = keep {
                // While what it had is still known.
                self.begin_standby(old, keep);
            }
            let drain = self.generation(old).map(|g| g.policy.drain);
            self.retire(old, drain);
        }
        self.done(op, Ok(()), None);
        self.reached(id.service, Goal::Running, "it runs again");
        self.touched.insert(id.service);
    }

    /// A replacement failed before its commit: the old generation goes on as if nothing had been.
    pub(super) fn take_back(&mut self, id: GenerationId, reason: String) {
        let Some(service) = self.services.get_mut(&id.service) else {
            return;
        };
        let Some(replacement) = service.replacement.take() else {
            return;
        };
        let kept = service.committed().map(|g| g.id.number);
        if let Stage::StartingNew { old } = replacement.stage {
            service.replacement = Some(Box::new(Replacement { op: None, stage: Stage::Restoring { old }, keep: None }));
        }
        let number = id.number;
        let what_now = match (kept, &replacement.stage) {
            (Some(kept), _) => format!("generation {kept} goes on"),
            (None, Stage::StartingNew { old }) => format!("generation {old} comes back"),
            (None, _) => "no older generation is left".to_owned(),
        };
        let text = format!("generation {number} is taken back: {reason}; {what_now}");
        // Answered first, so that who waits for it does not read the same twice.
        self.done(replacement.op, Err(text.clone()), Some(number));
        self.note(id.service, None, Level::Warning, text);
        self.retire(id, None);
        self.fail_if_nothing_is_left(id.service, reason);
        self.touched.insert(id.service);
    }

    /// Tells a generation to stop. `drain`: it served, and may take that long for its requests.
    pub(super) fn retire(&mut self, id: GenerationId, drain: Option<Duration>) {
        let now = self.now;
        self.leave_aside(id);
        let Some(generation) = self.generation_mut(id) else {
            return;
        };
        if generation.role != Role::Draining {
            generation.role = Role::Draining;
            generation.since = now;
        }
        let limit = drain.unwrap_or(generation.policy.grace);
        let workers = generation.workers.clone();
        let slots = generation.slots.len() as u32;
        for slot in &mut generation.slots {
            if !matches!(slot.state, SlotState::Filled(_)) {
                slot.state = SlotState::Empty;
            }
        }
        if let Some(limit) = drain {
            self.out.push(Action::Drain { generation: id, limit });
        }
        for slot in 0..slots {
            self.timers.clear(Timer::Slot(id, slot));
        }
        for worker in workers {
            self.stop_worker(worker, limit);
        }
        self.discard_if_empty(id);
    }

    /// Forgets a retired generation of which nothing is left.
    pub(super) fn discard_if_empty(&mut self, id: GenerationId) {
        let Some(service) = self.services.get_mut(&id.service) else {
            return;
        };
        let gone = |g: &Generation| g.id == id && g.role == Role::Draining && g.workers.is_empty() && g.prepared;
        if let Some(at) = service.generations.iter().position(gone) {
            let discarded = service.generations.remove(at);
            if !Rc::ptr_eq(&discarded.policy, &service.policy) {
                self.repolicied.insert(id.service);
            }
            self.out.push(Action::Discard { generation: id });
            self.touched.insert(id.service);
        }
    }

    /// A generation in which nothing runs any more and nothing is tried soon.
    pub(super) fn give_up_for_now(&mut self, id: GenerationId, then: Option<Duration>, reason: String) {
        self.retire(id, None);
        let Some(service) = self.services.get(&id.service) else {
            return;
        };
        if let Some(other) = service.committed().or(service.candidate()).map(|g| g.id.number) {
            let text = format!("generation {} is given up: {reason}; generation {other} goes on", id.number);
            return self.note(id.service, None, Level::Warning, text);
        }
        if let Some(op) = self.services.get_mut(&id.service).and_then(|s| s.replacement.take()).and_then(|r| r.op) {
            self.done(Some(op), Err(reason.clone()), Some(id.number));
        }
        self.fail(id.service, then, reason, Some(id.number));
    }

    fn fail_if_nothing_is_left(&mut self, id: ServiceId, reason: String) {
        let Some(service) = self.services.get(&id) else {
            return;
        };
        let left = service.committed().is_some() || service.candidate().is_some() || service.replacement.is_some();
        if !left && service.phase == Phase::Active {
            let then = service.policy.restart.limit.then;
            self.fail(id, then, reason, None);
        }
    }

    fn fail(&mut self, id: ServiceId, then: Option<Duration>, reason: String, generation: Option<u64>) {
        let until = then.map(|then| self.now + then);
        self.note(id, None, Level::Warning, format!("failed: {reason}"));
        self.enter(id, Phase::Failed { until, reason: reason.clone() });
        if let Some(until) = until {
            self.timers.set(Timer::Service(id), until);
        }
        self.out.push(Action::CloseSockets { service: id });
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        for (op, _) in std::mem::take(&mut service.waiting) {
            self.done(Some(op), Err(reason.clone()), generation);
        }
    }

    /// The pause after a failure is over.
    pub(super) fn retry_failed(&mut self, id: ServiceId) {
        if self.services.get(&id).is_some_and(|s| s.wanted && matches!(s.phase, Phase::Failed { .. })) {
            self.note(id, None, Level::Info, "is tried again".to_owned());
            if let Some(service) = self.services.get_mut(&id) {
                service.restarts += 1;
            }
            self.enter(id, Phase::Waiting);
        }
    }

    /// Everything ended by itself, and the policy leaves it so.
    pub(super) fn exited(&mut self, id: GenerationId) {
        let bad = self.generation(id).and_then(|g| g.slots.iter().find_map(|s| s.reason.clone()));
        if let Some(service) = self.services.get_mut(&id.service) {
            service.ended_badly = bad.map(Into::into);
        }
        self.retire(id, None);
        let left = |s: &super::Service| s.committed().is_some() || s.candidate().is_some() || s.replacement.is_some();
        if self.services.get(&id.service).is_some_and(|s| s.phase == Phase::Active && !left(s)) {
            self.enter(id.service, Phase::Exited);
            self.out.push(Action::CloseSockets { service: id.service });
            self.reached(id.service, Goal::Running, "it ended");
        }
    }

    pub(super) fn handle_unhealthy(&mut self, id: ServiceId, reason: &str) {
        if self.services.get(&id).is_some_and(|service| service.policy.health_restarts) {
            let why = format!("is unhealthy and is replaced: {reason}");
            self.replace_for(id, |service| &mut service.unhealthy, why);
        }
    }

    /// By another generation of the same, as soon as the pause after the last time for this reason is over.
    pub(super) fn replace_for(&mut self, id: ServiceId, reason: fn(&mut Service) -> &mut Replaced, why: String) {
        let now = self.now;
        let Some(service) = self.services.get_mut(&id) else {
            return;
        };
        let Some(serving) = service.committed().map(|g| g.id.number) else {
            return;
        };
        if service.replacement.is_some() || service.phase != Phase::Active {
            return;
        }
        if !reason(service).once_more(now) {
            return;
        }
        self.note(id, None, Level::Warning, why);
        self.reload(id, None, Source::Again { of: serving }, false, None);
    }
}
