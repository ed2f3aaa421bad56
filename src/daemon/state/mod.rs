//! What the next svd needs to take the services over when this one is killed: written before anything of it is acted upon.

pub mod aside;
pub mod file;
pub mod records;

use self::aside::Aside;
use self::file::{Batch, StateFile};
use self::records::{GenerationRecord, Head, PlanRecord, ProcessRecord, UnitRecord};
use super::host::Host;
use crate::core::{Action, GenerationId, ServiceId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Before a write that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What is written as one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Head,
    /// The state machine's side of a service.
    Machine(ServiceId),
    /// The numbers of its file that decisions need.
    Policies(ServiceId),
    /// The configuration in force.
    Spec(ServiceId),
    /// svd's side of it.
    Unit(ServiceId),
    /// What a generation was resolved to.
    Plan(GenerationId),
    Generation(GenerationId),
    Process(WorkerId),
    /// What somebody has asked for, by its number in the audit journal.
    Order(u64),
}

impl Key {
    fn text(self) -> String {
        match self {
            Key::Head => "head".into(),
            Key::Machine(id) => format!("machine/{}", id.0),
            Key::Policies(id) => format!("policies/{}", id.0),
            Key::Spec(id) => format!("spec/{}", id.0),
            Key::Unit(id) => format!("unit/{}", id.0),
            Key::Plan(id) => format!("plan/{}.{}", id.service.0, id.number),
            Key::Generation(id) => format!("generation/{}.{}", id.service.0, id.number),
            Key::Process(id) => format!("process/{}", id.0),
            Key::Order(id) => format!("order/{id}"),
        }
    }

    /// `None`: it is of a later svd, or nobody's.
    pub fn parse(text: &str) -> Option<Key> {
        let generation = |text: &str| {
            let (service, number) = text.split_once('.')?;
            Some(GenerationId { service: ServiceId(service.parse().ok()?), number: number.parse().ok()? })
        };
        Some(match text.split_once('/') {
            None if text == "head" => Key::Head,
            Some(("machine", id)) => Key::Machine(ServiceId(id.parse().ok()?)),
            Some(("policies", id)) => Key::Policies(ServiceId(id.parse().ok()?)),
            Some(("spec", id)) => Key::Spec(ServiceId(id.parse().ok()?)),
            Some(("unit", id)) => Key::Unit(ServiceId(id.parse().ok()?)),
            Some(("plan", id)) => Key::Plan(generation(id)?),
            Some(("generation", id)) => Key::Generation(generation(id)?),
            Some(("process", id)) => Key::Process(WorkerId(id.parse().ok()?)),
            Some(("order", id)) => Key::Order(id.parse().ok()?),
            _ => return None,
        })
    }
}

/// What is to be written, and where.
#[derive(Debug)]
pub struct State {
    file: StateFile,
    changed: BTreeSet<Key>,
    /// Some of it matters to the next svd.
    due: bool,
    /// A write failed, and is tried again then. Meanwhile everything goes aside.
    retry: Option<Instant>,
    aside: Option<Aside>,
    /// Workers whose main process has ended, as they were before, until the state machine has been told: an svd that comes
    /// before that must find out once more how they ended.
    untold: BTreeMap<WorkerId, ProcessRecord>,
}

impl State {
    pub fn new(path: PathBuf) -> State {
        State {
            file: StateFile::new(path),
            changed: BTreeSet::new(),
            due: false,
            retry: None,
            aside: None,
            untold: BTreeMap::new(),
        }
    }

    /// Is written with the next [`Host::write_state`].
    pub fn mark(&mut self, key: Key) {
        self.changed.insert(key);
        self.due = true;
    }

    /// It is gone. During a shutdown that is written only together with something else: the next svd would find out.
    pub fn mark_end(&mut self, key: Key, shutting_down: bool) {
        self.changed.insert(key);
        self.due |= !shutting_down;
    }

    /// When a write that failed is tried again, if one has: it must not wait until something happens.
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry
    }

    /// What was kept in memory by an svd that was killed. To be given up when it is written.
    pub fn take_aside(&mut self, aside: Aside) {
        self.aside = Some(aside);
    }

    /// What the next svd would find in the file is not what this one knows.
    pub fn is_behind(&self) -> bool {
        self.retry.is_some()
    }

    /// svd ends in order.
    pub fn remove(self) {
        self.file.remove();
    }
}

impl Host {
    /// As [`Host::write_state`], for what the machine made of these events.
    pub fn write_state_for(&mut self, all_ends: bool, actions: &[Action]) {
        let acts =
            |a: &Action| !matches!(a, Action::Discard { .. } | Action::CloseSockets { .. } | Action::Note { .. });
        self.state.due |= !all_ends || actions.iter().any(acts);
        self.write_state();
    }

    /// Writes what has changed. What fails is told, kept in memory, and tried again.
    pub fn write_state(&mut self) {
        self.state.changed.extend(self.orders.take_answered().into_iter().map(Key::Order));
        let changed = self.machine.take_changed();
        self.state.due |= !changed.services.is_empty() && !self.machine.is_shutting_down();
        self.state.changed.extend(changed.services.into_iter().map(Key::Machine));
        self.state.changed.extend(changed.policies.into_iter().map(Key::Policies));
        if self.state.retry.is_some() {
            return self.write_state_aside();
        }
        if !self.state.due || self.state.changed.is_empty() {
            return;
        }
        let changed = std::mem::take(&mut self.state.changed);
        let written = if self.state.file.wants_whole() {
            let batch = self.batch(self.all_keys());
            self.state.file.write_whole(batch)
        } else {
            let batch = self.batch(changed.iter().copied());
            self.state.file.append(batch)
        };
        self.state.due = false;
        match written {
            Ok(()) => self.give_up_aside(),
            Err(e) => {
                self.state.changed = changed;
                self.state.retry = Some(Instant::now() + RETRY);
                let (path, why) = (self.around.paths.state_file(), crate::sys::io_text(&e));
                let then = if self.keeper.is_there() {
                    "its guardian keeps meanwhile what changes; were both killed now, such services would be started anew"
                } else {
                    "were svd killed now, services that change meanwhile would be started anew"
                };
                self.warn(None, &format!("cannot write {}: {why}; {then}", path.display()));
                self.write_state_aside();
            }
        }
    }

    /// While the file cannot be written.
    fn write_state_aside(&mut self) {
        self.state.due = false;
        if !self.state.changed.is_empty() && self.keeper.is_there() {
            let changed = std::mem::take(&mut self.state.changed);
            let whole = self.state.aside.as_ref().is_none_or(Aside::wants_whole);
            let keys = if whole { self.all_keys() } else { changed };
            let batch = self.batch(keys);
            let written = match &mut self.state.aside {
                Some(aside) if !whole => aside.append(batch),
                aside => Aside::new(batch).map(|new| {
                    self.keeper.store(aside::KEPT, new.as_fd());
                    *aside = Some(new);
                }),
            };
            if written.is_err() {
                // It would be an old state that the next svd takes for the new one.
                self.give_up_aside();
            }
        }
        if self.state.retry.is_some_and(|at| Instant::now() >= at) {
            let batch = self.batch(self.all_keys());
            if self.state.file.write_whole(batch).is_ok() {
                self.state.changed.clear();
                self.state.retry = None;
                self.give_up_aside();
                self.info(None, "the state file can be written again");
            } else {
                self.state.retry = Some(Instant::now() + RETRY);
            }
        }
    }

    fn give_up_aside(&mut self) {
        if let Some(aside) = self.state.aside.take() {
            aside.give_up();
            self.keeper.remove(aside::KEPT);
        }
    }

    fn batch(&self, keys: impl IntoIterator<Item = Key>) -> Batch {
        let mut batch = Batch::default();
        for key in keys {
            self.put(key, &mut batch);
        }
        batch
    }

    /// Writes all of it into a new file. `untold`: until [`Host::forget_untold`], these processes are recorded so.
    pub fn write_whole_state(&mut self, untold: BTreeMap<WorkerId, ProcessRecord>) {
        let path = self.around.paths.state_file();
        let aside = self.state.aside.take();
        self.state = State { untold, aside, ..State::new(path) };
        self.state.mark(Key::Head);
        self.write_state();
    }

    /// The worker's main process has ended, and an event that tells how is on its way.
    pub fn record_until_told(&mut self, id: WorkerId) {
        if let Some(process) = self.workers.get(&id).filter(|_| !self.machine.is_shutting_down()) {
            self.state.untold.entry(id).or_insert_with(|| ProcessRecord::of(process));
        }
    }

    /// The event has arrived; what the state machine knows by it is written next.
    pub fn told(&mut self, id: WorkerId) {
        if self.state.untold.remove(&id).is_some() {
            self.state.mark_end(Key::Process(id), self.machine.is_shutting_down());
        }
    }

    /// All that a svd that has returned had to tell was told.
    pub fn forget_untold(&mut self) {
        for id in std::mem::take(&mut self.state.untold).into_keys() {
            self.state.mark(Key::Process(id));
        }
        self.write_state();
    }

    fn all_keys(&self) -> BTreeSet<Key> {
        let mut keys = BTreeSet::from([Key::Head]);
        for (id, unit) in &self.units {
            keys.extend([Key::Spec(*id), Key::Unit(*id)]);
            keys.extend(unit.kept.iter().map(|(number, _)| Key::Plan(GenerationId { service: *id, number: *number })));
        }
        keys.extend(self.machine.services().flat_map(|s| [Key::Machine(s.id), Key::Policies(s.id)]));
        keys.extend(self.generations.keys().flat_map(|id| [Key::Plan(*id), Key::Generation(*id)]));
        keys.extend(self.workers.keys().chain(self.state.untold.keys()).map(|id| Key::Process(*id)));
        keys.extend(self.orders.numbers().map(Key::Order));
        keys
    }

    fn put(&self, key: Key, batch: &mut Batch) {
        let text = key.text();
        match key {
            Key::Head => batch.put(&text, Some(Head::of(self))),
            Key::Machine(id) => batch.put(&text, self.machine.record(id)),
            Key::Policies(id) => batch.put(&text, self.machine.policies(id)),
            Key::Spec(id) => batch.put(&text, self.units.get(&id).map(|unit| &*unit.spec)),
            Key::Unit(id) => batch.put(&text, self.units.get(&id).map(|unit| UnitRecord::of(unit))),
            Key::Plan(id) => batch.put(
                &text,
                self.plan_of(id).map(|plan| PlanRecord::of(plan, self.units.get(&id.service).map(|unit| &**unit))),
            ),
            Key::Generation(id) => batch.put(&text, self.generations.get(&id).map(|g| GenerationRecord::of(g))),
            Key::Order(id) => batch.put(&text, self.orders.get(id)),
            Key::Process(id) => match self.state.untold.get(&id) {
                Some(found) => batch.put(&text, Some(found)),
                None => batch.put(&text, self.workers.get(&id).map(|p| ProcessRecord::of(p))),
            },
        }
    }

    /// The configuration in force of a service is another one, and not any more what its generations began with.
    pub fn mark_spec(&mut self, service: ServiceId) {
        self.state.mark(Key::Spec(service));
        let kept = self.units.get(&service).and_then(|unit| unit.kept.as_ref()).map(|(number, _)| *number);
        let all = GenerationId { service, number: 0 }..=GenerationId { service, number: u64::MAX };
        let running = self.generations.range(all).map(|(id, _)| id.number);
        self.state
            .changed
            .extend(kept.into_iter().chain(running).map(|n| Key::Plan(GenerationId { service, number: n })));
    }

    pub fn plan_of(&self, id: GenerationId) -> Option<&super::unit::Plan> {
        if let Some(made) = self.generations.get(&id) {
            return Some(&made.plan);
        }
        let kept = self.units.get(&id.service)?.kept.as_ref()?;
        (kept.0 == id.number).then_some(&*kept.1)
    }
}
