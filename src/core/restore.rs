//! What survives svd's death, and how a machine goes on from it.

use super::event::{Action, Awaited, Command, Event, Exit, GenerationId, OpId, ServiceId, Setup, Source, WorkerId};
use super::generation::{Generation, Role, SlotState, Worker, WorkerState};
use super::machine::Machine;
use super::policy::{Policies, SavedPolicies};
use super::service::{Goal, MOST_SLOTS, Phase, Service};
use super::time::Time;
use super::timers::Timer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::rc::Rc;

/// No svd comes as far: a record with a larger number is damaged, and would leave no room for the next ones.
const LARGEST_WORKER: u64 = 1 << 48;

/// A service with its workers, to be written.
#[derive(Serialize)]
pub struct Record<'a> {
    service: &'a Service,
    workers: Vec<&'a Worker>,
}

/// A [`Record`] that was read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Saved {
    service: Service,
    workers: Vec<Worker>,
}

impl Record<'_> {
    /// As it would be read.
    pub fn saved(&self) -> Saved {
        let mut service = self.service.clone();
        service.waiting.clear();
        service.canary_op = None;
        if let Some(replacement) = &mut service.replacement {
            replacement.op = None;
        }
        Saved { service, workers: self.workers.iter().map(|w| (*w).clone()).collect() }
    }
}

impl Saved {
    pub fn service(&self) -> &Service {
        &self.service
    }

    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// A service of which only this is known: one generation serves, by ready workers in these slots.
    pub fn running(setup: Setup, number: u64, filled: &[(u32, WorkerId)], now: Time) -> Saved {
        let id = GenerationId { service: setup.service, number };
        let policy = Rc::clone(&setup.policy);
        let own = policy.instances;
        let slots = filled.iter().map(|(slot, _)| slot + 1).max().unwrap_or(0).max(own).min(MOST_SLOTS);
        let mut generation = Generation::new(id, Source::Fresh { release: None }, policy, slots, now);
        (generation.role, generation.prepared) = (Role::Committed, true);
        let mut workers = Vec::with_capacity(filled.len());
        for (slot, worker) in filled.iter().filter(|(slot, _)| *slot < slots) {
            generation.slots[*slot as usize].state = SlotState::Filled(*worker);
            generation.workers.push(*worker);
            let (state, fault, exit) = (WorkerState::Ready, None, None);
            workers.push(Worker {
                id: *worker,
                generation: id,
                slot: *slot,
                started: now,
                state,
                proved: true,
                fault,
                exit,
            });
        }
        generation.workers.sort_unstable();
        let mut service = Service::new(setup, now);
        (service.wanted, service.phase, service.generations) = (true, Phase::Active, vec![generation]);
        service.last_generation = service.last_generation.max(number);
        service.scale = (slots != own).then_some(slots);
        Saved { service, workers }
    }

    /// `None`: they are in the record itself, as in format 1, and each for itself.
    pub fn give_policies(&mut self, policies: Option<&SavedPolicies>) {
        match policies {
            Some(policies) => policies.give_to(&mut self.service),
            None => {
                let own = Rc::clone(&self.service.policy);
                for generation in self.service.generations.iter_mut().filter(|g| g.policy == own) {
                    generation.policy = Rc::clone(&own);
                }
            }
        }
    }
}

/// What is to be written before what was decided is done. Services without a record are gone.
#[derive(Clone, Debug, Default)]
pub struct Changed {
    pub services: BTreeSet<ServiceId>,
    /// Those of which the policies changed, too.
    pub policies: BTreeSet<ServiceId>,
}

/// Is not worth writing.
pub(super) fn is_usual<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// What has become of a worker while no svd was there, as the shell finds out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Runs,
    /// It has no record: if it was forked, it has been ended.
    NeverRan,
    /// Its main process has ended.
    Ended {
        exit: Exit,
        leftovers: bool,
    },
}

impl Fate {
    /// What a machine is told of a worker that had this state when it was restored, after it was resumed.
    pub fn event(self, worker: &Worker) -> Option<Event> {
        let id = worker.id;
        let spawning = worker.state == WorkerState::Spawning;
        match self {
            Fate::Runs if spawning => Some(Event::Spawned { worker: id, result: Ok(()) }),
            Fate::Runs => None,
            Fate::NeverRan if spawning => Some(Event::Unspawned { worker: id }),
            Fate::NeverRan if worker.has_ended() => Some(Event::Empty { worker: id }),
            Fate::NeverRan => Some(Event::Exited { worker: id, exit: Exit::Unknown, leftovers: false, reason: None }),
            // How its main process has ended was told before.
            Fate::Ended { leftovers, .. } if worker.has_ended() => (!leftovers).then_some(Event::Empty { worker: id }),
            Fate::Ended { exit, leftovers } => Some(Event::Exited { worker: id, exit, leftovers, reason: None }),
        }
    }
}

impl Machine {
    /// What changed since this was last asked.
    pub fn take_changed(&mut self) -> Changed {
        let mut services = self.services.take_changed();
        services.append(&mut self.workers.take_changed());
        Changed { services, policies: std::mem::take(&mut self.repolicied) }
    }

    pub fn policies(&self, id: ServiceId) -> Option<Policies<'_>> {
        self.services.get(&id).map(|service| Policies::of(service))
    }

    pub fn record(&self, id: ServiceId) -> Option<Record<'_>> {
        let service = self.services.get(&id)?;
        let workers = service.generations.iter().flat_map(|g| &g.workers).filter_map(|w| self.worker(*w)).collect();
        Some(Record { service, workers })
    }

    /// A machine that goes on where another one was when it wrote these. Whoever waited for an answer is gone.
    ///
    /// The shell finds out what of it still runs, then calls [`Machine::resume`], and then tells what has ended meanwhile
    /// and how the spawns went that were under way. A shutdown that was under way is told again.
    pub fn restore(seed: u64, last_worker: u64, now: Time, saved: Vec<Saved>) -> Machine {
        let mut machine = Machine::new(seed, last_worker);
        machine.now = now;
        for Saved { service, workers } in saved {
            machine.last_worker = machine.last_worker.max(service.last_worker.min(LARGEST_WORKER));
            for mut worker in workers {
                // Of one that an earlier version has written down.
                worker.proved |= worker.state == WorkerState::Ready;
                machine.last_worker = machine.last_worker.max(worker.id.0);
                machine.workers.insert(worker.id, Box::new(worker));
            }
            let id = service.id;
            if !service.removed || !machine.names.contains_key(&service.name) {
                machine.names.insert(service.name.clone(), id);
            }
            if service.phase == Phase::Waiting {
                machine.waiting.insert(id);
            }
            machine.touched.insert(id);
            machine.services.insert(id, Box::new(service));
        }
        machine.set_timers();
        machine
    }

    /// Every deadline is in the state of what it belongs to.
    fn set_timers(&mut self) {
        let mut due: Vec<(Timer, Time)> = Vec::new();
        for service in self.services.values() {
            if let Phase::Failed { until: Some(until), .. } = service.phase {
                due.push((Timer::Service(service.id), until));
            }
            due.extend(service.aside().and_then(|g| Some((Timer::Aside(service.id), g.until?))));
            for generation in &service.generations {
                for (number, slot) in (0..).zip(&generation.slots) {
                    if let SlotState::Backoff(at) | SlotState::Failed(Some(at)) = slot.state {
                        due.push((Timer::Slot(generation.id, number), at));
                    }
                }
            }
        }
        for worker in self.workers.values() {
            match worker.state {
                WorkerState::Booting { deadline }
                | WorkerState::Stopping { deadline }
                | WorkerState::Sweeping { deadline } => due.push((Timer::Worker(worker.id), deadline)),
                WorkerState::Killed { pause } => due.push((Timer::Worker(worker.id), self.now + pause)),
                WorkerState::Spawning | WorkerState::Ready => {}
            }
        }
        for (timer, at) in due {
            self.timers.set(timer, at);
        }
    }

    /// When this command would be done, if it were given now.
    pub fn awaited(&self, id: ServiceId, command: &Command) -> Awaited {
        match command {
            Command::Start | Command::Restart => Awaited::Running,
            Command::Stop => Awaited::Stopped,
            Command::Reload { .. } => Awaited::Replaced { before: self.committed_number(id) },
            Command::Scale(_) | Command::Canary(_) | Command::Dismiss => Awaited::Nothing,
        }
    }

    /// The number of the generation that serves.
    pub fn committed_number(&self, id: ServiceId) -> Option<u64> {
        Some(self.services.get(&id)?.committed()?.id.number)
    }

    /// Somebody waits again for what was asked for before the machine was restored, or is answered at once; with
    /// [`Machine::resume`], which comes next.
    pub fn await_again(&mut self, op: OpId, id: ServiceId, awaited: Awaited) {
        let result = self.answer(op, id, awaited);
        if let Some(result) = result {
            self.done(Some(op), result.map_err(str::to_owned), None);
        }
    }

    fn answer(&mut self, op: OpId, id: ServiceId, awaited: Awaited) -> Option<Result<(), &'static str>> {
        let Some(service) = self.services.get_mut(&id) else {
            let gone = matches!(awaited, Awaited::Stopped | Awaited::Nothing);
            return Some(if gone { Ok(()) } else { Err("there is no such service any more") });
        };
        let committed = service.committed().map(|g| g.id.number);
        let stays_down = matches!(service.phase, Phase::Stopping | Phase::Stopped) && service.then.is_none();
        match awaited {
            Awaited::Nothing => return Some(Ok(())),
            Awaited::Stopped if service.phase == Phase::Stopped => return Some(Ok(())),
            Awaited::Stopped if stays_down => service.waiting.push((op, Goal::Stopped)),
            Awaited::Stopped => return Some(Err("it was started again meanwhile")),
            Awaited::Replaced { before } => match &mut service.replacement {
                Some(replacement) => replacement.op = Some(op),
                None if committed > before => return Some(Ok(())),
                None if committed.is_some() => return Some(Err("the new generation was taken back")),
                None => return self.answer(op, id, Awaited::Running),
            },
            Awaited::Running if stays_down => return Some(Err("it was stopped meanwhile")),
            Awaited::Running => match service.phase {
                Phase::Failed { .. } => return Some(Err("it has failed")),
                Phase::Exited => return Some(Ok(())),
                _ => service.waiting.push((op, Goal::Running)),
            },
        }
        self.touched.insert(id);
        None
    }

    /// Decides again what may have been decided and not done. What was done is done once more, which is harmless: a stop
    /// signal to who is stopping, a gate that is open.
    pub fn resume(&mut self) -> Vec<Action> {
        let ids: Vec<ServiceId> = self.services.map().keys().copied().collect();
        for id in ids {
            self.resume_service(id);
        }
        self.settle();
        std::mem::take(&mut self.out)
    }

    fn resume_service(&mut self, id: ServiceId) {
        let Some(service) = self.services.get(&id) else { return };
        let mut again = Vec::new();
        // What serves first: the old generation's end follows from it.
        again.extend(service.committed().map(|g| Action::Commit { generation: g.id }));
        again.extend(service.canary().filter(|g| g.open).map(|g| Action::Expose { generation: g.id }));
        let mut unspawned = Vec::new();
        for generation in &service.generations {
            if !generation.prepared {
                again.push(Action::Prepare { generation: generation.id, source: generation.source.clone() });
            }
            self.resume_workers(generation, &mut again);
            unspawned.push(generation.id);
        }
        // When all who have them are told to stop.
        if matches!(service.phase, Phase::Stopped | Phase::Failed { .. } | Phase::Exited) {
            again.push(Action::CloseSockets { service: id });
        }
        self.out.append(&mut again);
        for generation in unspawned {
            self.fill(generation);
            self.discard_if_empty(generation);
        }
    }

    fn resume_workers(&self, generation: &Generation, again: &mut Vec<Action>) {
        let workers = || generation.workers.iter().filter_map(|w| self.workers.get(w));
        let last = workers().filter_map(|w| match w.state {
            WorkerState::Stopping { deadline } => Some(deadline),
            _ => None,
        });
        if let (Role::Draining, Some(last)) = (generation.role, last.max()) {
            again.push(Action::Drain { generation: generation.id, limit: last.since(self.now) });
        }
        let signal = generation.policy.stop_signal;
        again.extend(workers().filter_map(|worker| {
            let id: WorkerId = worker.id;
            match worker.state {
                WorkerState::Stopping { .. } => Some(Action::Signal { worker: id, signal }),
                WorkerState::Sweeping { .. } => Some(Action::SignalTree { worker: id, signal }),
                WorkerState::Killed { .. } => Some(Action::KillTree { worker: id }),
                WorkerState::Spawning | WorkerState::Booting { .. } | WorkerState::Ready => None,
            }
        }));
    }

    /// `number` was given out, as far as another file knows, which may be newer than the records: the next one is higher.
    pub fn skip_generations(&mut self, id: ServiceId, number: u64) {
        if self.services.get(&id).is_some_and(|s| s.last_generation < number)
            && let Some(service) = self.services.get_mut(&id)
        {
            service.last_generation = number;
        }
    }

    pub fn role(&self, id: GenerationId) -> Option<Role> {
        self.generation(id).map(|g| g.role)
    }

    /// The generations that the machine knows: what the shell holds for others is to be let go.
    pub fn knows(&self, id: GenerationId) -> bool {
        self.generation(id).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Event, Setup};
    use super::*;
    use crate::sim::World;

    const WEB: ServiceId = ServiceId(1);

    /// What a machine says of this when it goes on where the other was.
    fn again(machine: &Machine, awaited: Awaited) -> (Machine, Option<Result<(), String>>) {
        let saved = machine.services().filter_map(|s| Some(machine.record(s.id)?.saved())).collect();
        let mut restored = Machine::restore(1, 0, Time(10), saved);
        restored.await_again(OpId(7), WEB, awaited);
        let answer = answered(&restored.resume());
        (restored, answer)
    }

    fn answered(actions: &[Action]) -> Option<Result<(), String>> {
        actions.iter().find_map(|action| match action {
            Action::Done { op: OpId(7), result } => Some(result.clone().map_err(|failure| failure.reason)),
            _ => None,
        })
    }

    fn tell(machine: &mut Machine, event: Event) -> Vec<Action> {
        machine.handle(Time(11), event)
    }

    fn command(machine: &mut Machine, command: Command) {
        tell(machine, Event::Command { op: None, service: WEB, command });
    }

    /// The candidate, if there is one, runs from now on.
    fn boot(machine: &mut Machine) -> Vec<Action> {
        let generation = machine.service(WEB).and_then(|s| s.candidate()).expect("a candidate").id;
        let mut said = tell(machine, Event::Prepared { generation, result: Ok(()) });
        let workers =
            |m: &Machine| m.service(WEB).and_then(|s| s.generation(generation.number)).expect("it").workers.clone();
        for worker in workers(machine) {
            said.append(&mut tell(machine, Event::Spawned { worker, result: Ok(()) }));
            said.append(&mut tell(machine, Event::Ready { worker }));
        }
        said
    }

    fn running() -> Machine {
        let mut machine = Machine::new(1, 0);
        let policy = Rc::new(World::policy(true, 1));
        let setup = Setup { service: WEB, name: "web".into(), policy, start: true, last_generation: 0, op: None };
        tell(&mut machine, Event::Configure { add: vec![setup], change: vec![], remove: vec![] });
        boot(&mut machine);
        assert_eq!(machine.committed_number(WEB), Some(1));
        machine
    }

    #[test]
    fn who_waits_for_a_start_or_a_stop_is_answered_after_a_death() {
        let mut machine = running();
        assert_eq!(again(&machine, Awaited::Running).1, Some(Ok(())));
        assert_eq!(again(&machine, Awaited::Stopped).1, Some(Err("it was started again meanwhile".into())));
        command(&mut machine, Command::Stop);
        assert_eq!(again(&machine, Awaited::Running).1, Some(Err("it was stopped meanwhile".into())));
        let (mut restored, answer) = again(&machine, Awaited::Stopped);
        assert_eq!(answer, None, "it still runs");
        let worker = *restored.workers().keys().next().expect("its worker");
        let exit = super::super::Exit::Code(0);
        let end = tell(&mut restored, Event::Exited { worker, exit, leftovers: false, reason: None });
        assert_eq!(answered(&end), Some(Ok(())));
        assert_eq!(again(&restored, Awaited::Stopped).1, Some(Ok(())));
        // A restart stops first.
        command(&mut machine, Command::Restart);
        assert_eq!(again(&machine, Awaited::Running).1, None);
        let (_, answer) = again(&Machine::new(1, 0), Awaited::Running);
        assert!(answer.is_some_and(|a| a.is_err()), "it is not there any more");
    }

    #[test]
    fn who_waits_for_a_reload_is_answered_after_a_death() {
        let mut machine = running();
        let awaited = machine.awaited(WEB, &Command::reload(None, false));
        assert_eq!(awaited, Awaited::Replaced { before: Some(1) });
        // Decided, and taken back before the death.
        assert_eq!(again(&machine, awaited).1, Some(Err("the new generation was taken back".into())));
        command(&mut machine, Command::reload(None, false));
        let (mut restored, answer) = again(&machine, awaited);
        assert_eq!(answer, None, "it boots");
        assert_eq!(answered(&boot(&mut restored)), Some(Ok(())));
        assert_eq!(again(&restored, awaited).1, Some(Ok(())), "it was committed before the death");
        let (mut restored, _) = again(&machine, awaited);
        let generation = restored.service(WEB).and_then(|s| s.candidate()).expect("a candidate").id;
        let failed = tell(&mut restored, Event::Prepared { generation, result: Err("no such release".into()) });
        let why = answered(&failed).and_then(Result::err).expect("it was taken back");
        assert!(why.contains("no such release") && why.contains("generation 1 goes on"), "{why}");
    }

    #[test]
    fn who_is_ready_by_an_earlier_version_has_been_ready() {
        let machine = running();
        let mut saved: Vec<Saved> = machine.services().filter_map(|s| Some(machine.record(s.id)?.saved())).collect();
        saved.iter_mut().flat_map(|one| &mut one.workers).for_each(|worker| worker.proved = false);
        let mut restored = Machine::restore(1, 0, Time(20), saved);
        restored.resume();
        let worker = restored.workers().keys().next().copied().expect("its worker");
        let later = restored.now + std::time::Duration::from_secs(3600);
        let exit = super::super::Exit::Code(1);
        restored.handle(later, Event::Exited { worker, exit, leftovers: false, reason: None });
        assert!(!restored.workers().is_empty(), "it is replaced at once");
    }

    #[test]
    fn no_number_of_a_worker_is_given_twice_though_it_is_gone() {
        let mut machine = running();
        let gone = machine.workers().keys().next().copied().expect("its worker");
        let exit = super::super::Exit::Code(1);
        // It waits for its next attempt, and nobody else knows that number.
        tell(&mut machine, Event::Exited { worker: gone, exit, leftovers: false, reason: None });
        assert!(machine.workers().is_empty());
        let saved = machine.services().filter_map(|s| Some(machine.record(s.id)?.saved())).collect();
        let mut restored = Machine::restore(1, 0, Time(20), saved);
        restored.resume();
        let at = restored.next_timeout().expect("the next attempt");
        restored.handle(at, Event::Tick);
        let next = restored.workers().keys().next().copied().expect("another worker");
        assert!(next > gone, "{next:?} after {gone:?}");
    }

    #[test]
    fn a_spawn_that_a_death_prevented_is_nobodys_failure() {
        let mut machine = running();
        command(&mut machine, Command::reload(None, false));
        let generation = machine.service(WEB).and_then(|s| s.candidate()).expect("a candidate").id;
        tell(&mut machine, Event::Prepared { generation, result: Ok(()) });
        let worker = machine.workers().values().find(|w| w.generation == generation).expect("a worker").clone();
        let event = Fate::NeverRan.event(&worker).expect("an event");
        let spawned = tell(&mut machine, event);
        let again = |a: &Action| matches!(a, Action::Spawn { generation: of, worker: new, .. } if *of == generation && *new != worker.id);
        assert!(spawned.iter().any(again), "{spawned:?}");
        assert_eq!(machine.service(WEB).map(|s| s.restarts), Some(0));
        assert!(machine.worker(worker.id).is_none());
    }
}
