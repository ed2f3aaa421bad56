//! Workers: spawned, ready, told to stop, ended; and what their end means for their slot.

use super::event::{Action, Exit, GenerationId, Level, OpId, ServiceId, WorkerId};
use super::generation::{Generation, Role, SlotState, Worker, WorkerState};
use super::machine::Machine;
use super::restart::{Life, Verdict};
use super::service::{Phase, Stage};
use super::time::Time;
use super::timers::Timer;
use crate::config::spec::Policy as RestartPolicy;
use std::time::Duration;

/// Between two kills of a worker that does not end: at first, and at most.
pub(super) const KILL_AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));

/// Before another attempt to start what could not even be spawned, whatever the policy says.
const UNSPAWNED: Duration = Duration::from_millis(100);

fn unending(slot: u32) -> String {
    format!(
        "worker {slot} was killed and cannot be ended: it hangs in the kernel, on a disk that does not answer, say. It is killed \
         again and again, and what was asked for is done when it ends"
    )
}

impl Machine {
    pub(super) fn spawn(&mut self, id: GenerationId, slot: u32) {
        let now = self.now;
        let worker = WorkerId(self.last_worker + 1);
        let Some(service) = self.services.get_mut(&id.service) else {
            return;
        };
        let Some(generation) = service.generations.iter_mut().find(|g| g.id == id) else {
            return;
        };
        let committed = generation.role == Role::Committed;
        let Some(entry) = generation.slots.get_mut(slot as usize) else {
            return;
        };
        entry.state = SlotState::Filled(worker);
        generation.workers.push(worker);
        service.last_worker = worker.0;
        self.last_worker += 1;
        self.workers.insert(
            worker,
            Box::new(Worker {
                id: worker,
                generation: id,
                slot,
                started: now,
                state: WorkerState::Spawning,
                proved: false,
                fault: None,
                exit: None,
            }),
        );
        self.out.push(Action::Spawn { worker, generation: id, slot, committed });
    }

    pub(super) fn is_ready(&self, worker: WorkerId) -> bool {
        self.workers.get(&worker).is_some_and(|w| w.state == WorkerState::Ready)
    }

    pub(super) fn handle_spawned(&mut self, id: WorkerId, result: Result<(), String>) {
        let now = self.now;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        match result {
            Ok(()) if worker.state == WorkerState::Spawning => {
                let timeout = self.timeout_of(id);
                let deadline = now + timeout;
                if let Some(worker) = self.workers.get_mut(&id) {
                    worker.state = WorkerState::Booting { deadline };
                }
                self.timers.set(Timer::Worker(id), deadline);
            }
            Ok(()) => {}
            Err(reason) => {
                worker.fault.get_or_insert(reason);
                self.gone(id);
            }
        }
    }

    fn timeout_of(&self, id: WorkerId) -> Duration {
        let generation = self.workers.get(&id).and_then(|w| self.generation(w.generation));
        generation.map_or(Duration::ZERO, |g| g.policy.ready_timeout)
    }

    /// Workers whose time to become ready is over at `now`, before an [`super::Event::Tick`] says so, and why they end then.
    pub fn late(&self, now: Time) -> Vec<(WorkerId, String)> {
        let due = self.timers.due(now).filter_map(|timer| match timer {
            Timer::Worker(id) => self.workers.get(&id),
            _ => None,
        });
        let booting = due.filter(|w| matches!(w.state, WorkerState::Booting { .. }));
        booting.map(|w| (w.id, self.not_ready(w.id))).collect()
    }

    fn not_ready(&self, id: WorkerId) -> String {
        format!("was not ready within {}", humantime::format_duration(self.timeout_of(id)))
    }

    /// How long it has to end when it is told to.
    pub fn grace_of(&self, id: WorkerId) -> Option<Duration> {
        let worker = self.workers.get(&id)?;
        Some(self.generation(worker.generation)?.policy.grace)
    }

    pub(super) fn handle_ready(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        if !matches!(worker.state, WorkerState::Booting { .. }) {
            return;
        }
        worker.state = WorkerState::Ready;
        worker.proved = true;
        let (generation, slot) = (worker.generation, worker.slot);
        self.timers.clear(Timer::Worker(id));
        if let Some(slot) = self.generation_mut(generation).and_then(|g| g.slots.get_mut(slot as usize)) {
            slot.reason = None;
        }
        self.touched.insert(generation.service);
    }

    pub(super) fn handle_unfit(&mut self, id: WorkerId, reason: String) {
        if self.workers.get(&id).is_some_and(|w| !w.leaving()) {
            self.find_fault(id, reason);
        }
    }

    pub(super) fn handle_hung(&mut self, id: WorkerId, reason: String) {
        let Some(worker) = self.workers.get(&id).filter(|w| !w.leaving()) else { return };
        let grace = self.generation(worker.generation).map_or(Duration::ZERO, |g| g.policy.grace);
        self.stop_worker_by(id, grace, Some(libc::SIGABRT));
        self.find_fault(id, reason);
    }

    /// A worker that runs but should not go on: its generation is taken back, or it is stopped and replaced.
    fn find_fault(&mut self, id: WorkerId, reason: String) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let generation = worker.generation;
        worker.fault = Some(reason.clone());
        if self.is_replacement(generation) {
            return self.take_back(generation, reason);
        }
        if self.is_aside(generation) {
            return self.drop_aside(generation.service, Level::Warning, &reason);
        }
        let grace = self.generation(generation).map_or(Duration::ZERO, |g| g.policy.grace);
        self.stop_worker(id, grace);
        self.touched.insert(generation.service);
    }

    pub(super) fn handle_extend(&mut self, id: WorkerId, by: Duration) {
        let now = self.now;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let (WorkerState::Booting { deadline }
        | WorkerState::Stopping { deadline }
        | WorkerState::Sweeping { deadline }) = &mut worker.state
        else {
            return;
        };
        *deadline = (*deadline).max(now + by);
        let at = *deadline;
        self.timers.set(Timer::Worker(id), at);
    }

    /// Tells a worker to stop, or moves the end of its grace time nearer.
    pub(super) fn stop_worker(&mut self, id: WorkerId, grace: Duration) {
        self.stop_worker_by(id, grace, None);
    }

    /// `signal`: in place of the stop signal.
    fn stop_worker_by(&mut self, id: WorkerId, grace: Duration, signal: Option<i32>) {
        let mut deadline = self.now + grace;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let tell = match &mut worker.state {
            WorkerState::Spawning | WorkerState::Booting { .. } | WorkerState::Ready => {
                worker.state = WorkerState::Stopping { deadline };
                true
            }
            WorkerState::Stopping { deadline: old } | WorkerState::Sweeping { deadline: old } => {
                deadline = deadline.min(*old);
                *old = deadline;
                false
            }
            WorkerState::Killed { .. } => return,
        };
        let generation = worker.generation;
        self.timers.set(Timer::Worker(id), deadline);
        if tell {
            let own = self.generation(generation).map_or(libc::SIGTERM, |g| g.policy.stop_signal);
            let signal = signal.unwrap_or(own);
            self.out.push(Action::Signal { worker: id, signal });
        }
    }

    /// A worker's deadline has passed.
    pub(super) fn worker_due(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        match worker.state {
            WorkerState::Booting { .. } => {
                let reason = self.not_ready(id);
                self.find_fault(id, reason);
            }
            WorkerState::Stopping { .. } | WorkerState::Sweeping { .. } => {
                let text = format!("worker {} did not leave within its grace time and is killed", worker.slot);
                self.kill(id, KILL_AGAIN.0, text);
            }
            WorkerState::Killed { pause } => {
                let (service, number) = (worker.generation.service, worker.slot);
                self.kill(id, pause.saturating_mul(2).min(KILL_AGAIN.1), unending(number));
                self.tell_that_it_hangs(service);
            }
            WorkerState::Spawning | WorkerState::Ready => {}
        }
    }

    /// Why what was asked of the service does not come about: something of it was killed, and does not end.
    pub(super) fn hangs(&self, id: ServiceId) -> Option<String> {
        let service = self.services.get(&id)?;
        let all_of_it = match service.phase {
            Phase::Stopping => true,
            Phase::Waiting => !service.policy.overlap,
            _ => service.replacement.as_ref().is_some_and(|r| r.stage != Stage::Beside),
        };
        let holds_its_slot = |g: &Generation, w: &Worker| {
            g.slots.get(w.slot as usize).is_some_and(|s| s.state == SlotState::Filled(w.id)) && g.role != Role::Draining
        };
        let hung = service.generations.iter().find_map(|g| {
            let workers = g.workers.iter().filter_map(|w| self.workers.get(w));
            workers.map(|w| &**w).find(|w| w.hangs() && (all_of_it || holds_its_slot(g, w)))
        })?;
        Some(unending(hung.slot))
    }

    /// Nobody is to wait for what may never come, nor is the end of svd.
    fn tell_that_it_hangs(&mut self, id: ServiceId) {
        let Some(reason) = self.hangs(id) else { return };
        let Some(service) = self.services.get_mut(&id) else { return };
        let mut ops: Vec<OpId> = std::mem::take(&mut service.waiting).into_iter().map(|(op, _)| op).collect();
        ops.extend(service.replacement.as_mut().and_then(|r| r.op.take()));
        for op in ops {
            self.done(Some(op), Err(reason.clone()), None);
        }
        self.leave_behind(id);
    }

    /// Of a service that hangs, during the shutdown.
    pub(super) fn leave_behind(&mut self, id: ServiceId) {
        let Some(service) = self.services.get(&id).filter(|_| self.shutting_down) else { return };
        let mut left = service.generations.iter().flat_map(|g| &g.workers).filter_map(|w| self.workers.get(w));
        let hang = service.generations.iter().any(|g| !g.workers.is_empty()) && left.all(|w| w.hangs());
        if hang && self.up.remove(&id) {
            self.note(id, None, Level::Warning, "it is left behind: svd ends without it".to_owned());
        }
    }

    fn kill(&mut self, id: WorkerId, pause: Duration, text: String) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.state = WorkerState::Killed { pause };
        let service = worker.generation.service;
        self.timers.set(Timer::Worker(id), self.now + pause);
        self.out.push(Action::KillTree { worker: id });
        self.note(service, None, Level::Warning, text);
    }

    pub(super) fn handle_exited(&mut self, id: WorkerId, exit: Exit, leftovers: bool, reason: Option<String>) {
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        worker.exit = Some(exit);
        if !worker.leaving() {
            worker.fault = worker.fault.take().or(reason);
        }
        if !leftovers {
            return self.gone(id);
        }
        let generation = worker.generation;
        let Some(policy) = self.generation(generation).map(|g| std::rc::Rc::clone(&g.policy)) else {
            return;
        };
        let deadline = self.now + policy.grace;
        let Some(worker) = self.workers.get_mut(&id) else {
            return;
        };
        let unasked = !worker.leaving();
        match worker.state {
            WorkerState::Killed { .. } | WorkerState::Sweeping { .. } => return,
            WorkerState::Stopping { deadline } => worker.state = WorkerState::Sweeping { deadline },
            WorkerState::Spawning | WorkerState::Booting { .. } | WorkerState::Ready => {
                worker.state = WorkerState::Sweeping { deadline };
                self.timers.set(Timer::Worker(id), deadline);
            }
        }
        self.out.push(Action::SignalTree { worker: id, signal: policy.stop_signal });
        if unasked && policy.overlap {
            // What is left finishes its work beside the replacement.
            if let Some(worker) = self.workers.get(&id).cloned() {
                self.vacate(&worker);
            }
        }
        self.touched.insert(generation.service);
    }

    pub(super) fn handle_empty(&mut self, id: WorkerId) {
        if self.workers.contains_key(&id) {
            self.gone(id);
        }
    }

    /// Nothing of the worker is left.
    fn gone(&mut self, id: WorkerId) {
        // Out of the tables first: nothing that follows may signal it any more (I4).
        let Some(worker) = self.workers.remove(&id) else { return };
        self.timers.clear(Timer::Worker(id));
        if let Some(generation) = self.generation_mut(worker.generation) {
            generation.workers.retain(|worker| *worker != id);
        }
        self.vacate(&worker);
        self.fill(worker.generation);
        self.discard_if_empty(worker.generation);
        self.touched.insert(worker.generation.service);
    }

    pub(super) fn handle_unspawned(&mut self, id: WorkerId) {
        if self.workers.get(&id).is_some_and(|worker| worker.state != WorkerState::Spawning) {
            // It was told to stop meanwhile, as its generation was taken back.
            return self.gone(id);
        }
        let Some(worker) = self.workers.remove(&id) else { return };
        self.timers.clear(Timer::Worker(id));
        if let Some(generation) = self.generation_mut(worker.generation) {
            generation.workers.retain(|worker| *worker != id);
            let slot = generation.slots.get_mut(worker.slot as usize);
            if let Some(slot) = slot.filter(|slot| slot.state == SlotState::Filled(id)) {
                slot.state = SlotState::Empty;
            }
        }
        self.fill(worker.generation);
        self.discard_if_empty(worker.generation);
        self.touched.insert(worker.generation.service);
    }

    /// The worker leaves its slot, if it still holds one; what that means depends on why.
    fn vacate(&mut self, worker: &Worker) {
        let now = self.now;
        let Some(generation) = self.generation_mut(worker.generation) else { return };
        let draining = generation.role == Role::Draining;
        let Some(slot) = generation.slots.get_mut(worker.slot as usize) else { return };
        if slot.state != SlotState::Filled(worker.id) {
            return;
        }
        slot.state = SlotState::Empty;
        slot.last_exit = worker.exit.or(slot.last_exit);
        if !draining {
            self.ended(worker, now.since(worker.started));
        }
    }

    /// A worker of a generation that should go on has ended: again at once, again later, never, or given up.
    fn ended(&mut self, worker: &Worker, up: Duration) {
        let id = worker.generation;
        let reason = match (&worker.fault, worker.exit) {
            (Some(fault), _) => fault.clone(),
            (None, Some(exit)) if worker.state == WorkerState::Spawning || !self.was_ready(worker) => {
                format!("{exit} before it was ready")
            }
            (None, Some(exit)) => exit.to_string(),
            (None, None) => "ended".to_owned(),
        };
        if self.is_replacement(id) {
            return self.take_back(id, reason);
        }
        if self.is_aside(id) {
            return self.drop_aside(id.service, Level::Warning, &reason);
        }
        let now = self.now;
        let Some(service) = self.services.get_mut(&id.service) else {
            return;
        };
        let Some(generation) = service.generations.iter_mut().find(|g| g.id == id) else {
            return;
        };
        let restart = generation.policy.restart.clone();
        let success = worker.fault.is_none()
            && matches!(worker.exit, Some(Exit::Code(code)) if code == 0 || restart.success.contains(&code));
        let done = match restart.policy {
            RestartPolicy::Always => false,
            RestartPolicy::OnFailure => success,
            RestartPolicy::Never => true,
        };
        let Some(slot) = generation.slots.get_mut(worker.slot as usize) else {
            return;
        };
        if done {
            slot.state = SlotState::Done;
            slot.reason = (!success).then_some(reason);
            return self.slot_left(id);
        }
        let verdict = slot.failures.ended(now, Life { up, proved: worker.proved }, !success, &restart, &mut self.rng);
        let unspawned = worker.state == WorkerState::Spawning;
        match verdict {
            Verdict::After(delay) => {
                let delay = if unspawned { delay.max(UNSPAWNED) } else { delay };
                slot.restarts += 1;
                service.restarts += 1;
                slot.reason = Some(reason.clone());
                let at = now + delay;
                slot.state = SlotState::Backoff(at);
                self.again(worker, delay, reason);
            }
            Verdict::GiveUp => {
                let limit = &restart.limit;
                let within = humantime::format_duration(limit.within);
                let reason = format!("{reason} ({} failures within {within})", limit.failures);
                let until = limit.then.map(|then| now + then);
                slot.state = SlotState::Failed(until);
                slot.reason = Some(reason.clone());
                slot.failures.forget();
                if generation.slots.len() > 1 {
                    // The service's own message, if it has failed with this one, names one reason only.
                    let text = format!("worker {} is given up: {reason}", worker.slot);
                    self.note(id.service, None, Level::Warning, text);
                }
                if let Some(until) = until {
                    self.timers.set(Timer::Slot(id, worker.slot), until);
                }
                self.slot_left(id);
            }
        }
    }

    fn was_ready(&self, worker: &Worker) -> bool {
        self.generation(worker.generation).is_some_and(|g| g.role == Role::Committed)
    }

    fn again(&mut self, worker: &Worker, delay: Duration, reason: String) {
        let id = worker.generation;
        if delay.is_zero() {
            self.note(id.service, None, Level::Warning, format!("worker {} {reason}; it is replaced", worker.slot));
            if !self.was_ready(worker) {
                self.tell_of_failure(id, &format!("{reason}; it is tried again"));
            }
            return self.spawn(id, worker.slot);
        }
        let shown = humantime::format_duration(Duration::from_millis(delay.as_millis() as u64)).to_string();
        let text = format!("worker {} {reason}; next attempt in {shown}", worker.slot);
        self.note(id.service, None, Level::Warning, text);
        self.timers.set(Timer::Slot(id, worker.slot), self.now + delay);
        self.tell_of_failure(id, &format!("{reason}; next attempt in {shown}"));
    }

    /// Whoever waits for the start is told now; the attempts go on.
    fn tell_of_failure(&mut self, id: GenerationId, reason: &str) {
        let Some(service) = self.services.get_mut(&id.service) else { return };
        for (op, _) in std::mem::take(&mut service.waiting) {
            self.done(Some(op), Err(reason.to_owned()), Some(id.number));
        }
    }

    /// A slot will not be filled for now. When that goes for all of them, the generation has ended.
    pub(super) fn slot_left(&mut self, id: GenerationId) {
        let Some(generation) = self.generation(id) else {
            return;
        };
        let left = |g: &Generation| g.slots.iter().all(|s| matches!(s.state, SlotState::Done | SlotState::Failed(_)));
        if !left(generation) {
            return;
        }
        let failed = generation.slots.iter().find(|s| matches!(s.state, SlotState::Failed(_)));
        match failed.map(|s| s.reason.clone().unwrap_or_default()) {
            Some(reason) => {
                let then = generation.policy.restart.limit.then;
                self.give_up_for_now(id, then, reason);
            }
            None => self.exited(id),
        }
    }

    /// A slot's pause is over.
    pub(super) fn slot_due(&mut self, id: GenerationId, slot: u32) {
        let due = self.generation(id).and_then(|g| g.slots.get(slot as usize)).map(|s| s.state);
        if matches!(due, Some(SlotState::Backoff(_) | SlotState::Failed(_))) {
            self.spawn(id, slot);
        }
    }
}
