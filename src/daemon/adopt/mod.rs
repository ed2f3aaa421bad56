//! Taking over what an svd that was killed has left: from the state file, what the guardian has kept, and what still runs.

pub mod rebuild;
mod retake;
mod units;
mod workers;

use super::host::Host;
use super::orders::Order;
use super::state::Key;
use super::state::aside::Aside;
use super::state::file::{self, Entries};
use super::state::records::{GenerationRecord, Head, PlanRecord, ProcessRecord, UnitRecord};
use super::unit::Plan;
use crate::config::spec::Service;
use crate::core::{
    self, Action, Event, Fate, GenerationId, Machine, Saved, SavedPolicies, ServiceId, WorkerId, WorkerState,
};
use crate::sys::process::{self, ExitStatus, Identity};
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// What the guardian has kept.
#[derive(Default)]
pub struct Kept {
    pub descriptors: BTreeMap<Box<str>, OwnedFd>,
    /// Of children that ended while no svd was there.
    pub exits: BTreeMap<Identity, ExitStatus>,
    /// Its pid, if there is one: it will tell of its children that end from now on.
    pub guardian: Option<i32>,
    /// How often svd has died since the guardian began.
    pub deaths: u32,
    /// Why an older version of svd runs than the one that was to.
    pub fallback: Option<Box<str>>,
}

/// The state of an svd of this boot that did not end in order.
pub struct Found {
    head: Head,
    saved: BTreeMap<ServiceId, Saved>,
    specs: BTreeMap<ServiceId, Arc<Service>>,
    units: BTreeMap<ServiceId, UnitRecord>,
    plans: BTreeMap<GenerationId, PlanRecord<'static>>,
    generations: BTreeMap<GenerationId, GenerationRecord>,
    processes: BTreeMap<WorkerId, ProcessRecord>,
    orders: BTreeMap<u64, Order>,
}

/// What an earlier svd has left in its state file.
#[derive(Default)]
pub struct Left {
    /// Of this boot: its services may run.
    pub found: Option<Found>,
    /// Of another boot: what had been ordered, and was not answered.
    pub interrupted: BTreeMap<u64, Order>,
}

/// Looks for the state of an svd that was killed.
///
/// # Errors
/// A sentence: the file is there and of no use; it was set aside.
pub fn look(path: &Path) -> Result<Left, String> {
    let unusable = |why: &str| {
        let aside = path.with_extension("unreadable");
        let what = format!("{} cannot be used: {why}", path.display());
        match std::fs::rename(path, &aside) {
            Ok(()) => format!("{what}. The file is kept as {}.", aside.display()),
            Err(e) => format!("{what}. It cannot be moved away either: {}.", crate::sys::io_text(&e)),
        }
    };
    match file::read(path) {
        Ok(None) => Ok(Left::default()),
        Ok(Some(Ok(entries))) => match Found::of(&entries) {
            Ok(found) => Ok(found.by_boot()),
            Err(why) => Err(unusable(&why)),
        },
        Ok(Some(Err(why))) => Err(unusable(&why.to_string())),
        Err(e) => Err(unusable(&crate::sys::io_text(&e))),
    }
}

/// The same of what the guardian has kept, while the file could not be written. `None`: nothing of use.
pub fn look_aside(aside: &Aside) -> Option<Found> {
    let found = match aside.read() {
        Ok(None) => return None,
        Ok(Some(Ok(entries))) => Found::of(&entries),
        Ok(Some(Err(why))) => Err(why.to_string()),
        Err(e) => Err(crate::sys::io_text(&e)),
    };
    found.map_err(|why| tracing::warn!("the state that the guardian has kept cannot be used: {why}")).ok()
}

/// Would this program understand the state that is there? Changes nothing.
///
/// # Errors
/// A sentence.
pub fn try_out(path: &Path) -> Result<(), String> {
    let why = match file::read(path) {
        Ok(Some(Ok(entries))) => match Found::of(&entries) {
            Ok(_) => return Ok(()),
            Err(why) => why,
        },
        Ok(Some(Err(why))) => why.to_string(),
        Ok(None) => "there is none".to_owned(),
        Err(e) => crate::sys::io_text(&e).to_string(),
    };
    Err(format!("{} cannot be used: {why}", path.display()))
}

impl Found {
    fn empty(head: Head) -> Found {
        Found {
            head,
            saved: BTreeMap::new(),
            specs: BTreeMap::new(),
            units: BTreeMap::new(),
            plans: BTreeMap::new(),
            generations: BTreeMap::new(),
            processes: BTreeMap::new(),
            orders: BTreeMap::new(),
        }
    }

    fn of(entries: &Entries) -> Result<Found, String> {
        fn value<T: DeserializeOwned>(key: &str, text: &serde_json::value::RawValue) -> Result<T, String> {
            serde_json::from_str(text.get()).map_err(|e| format!("{key}: {e}"))
        }
        let head = entries.get("head").ok_or("it has no head")?;
        let mut found = Found::empty(value("head", head)?);
        let mut policies: BTreeMap<ServiceId, SavedPolicies> = BTreeMap::new();
        for (key, text) in entries {
            match Key::parse(key) {
                Some(Key::Machine(id)) => drop(found.saved.insert(id, value(key, text)?)),
                Some(Key::Policies(id)) => drop(policies.insert(id, value(key, text)?)),
                Some(Key::Spec(id)) => drop(found.specs.insert(id, value(key, text)?)),
                Some(Key::Unit(id)) => drop(found.units.insert(id, value(key, text)?)),
                Some(Key::Plan(id)) => drop(found.plans.insert(id, value(key, text)?)),
                Some(Key::Generation(id)) => drop(found.generations.insert(id, value(key, text)?)),
                Some(Key::Process(id)) => drop(found.processes.insert(id, value(key, text)?)),
                Some(Key::Order(id)) => drop(found.orders.insert(id, value(key, text)?)),
                Some(Key::Head) | None => {}
            }
        }
        for (id, unit) in &mut found.units {
            if let Some(spec) = unit.spec.take() {
                found.specs.insert(*id, spec);
            }
        }
        // A service is written with its unit, in one piece.
        found.units.retain(|id, _| found.specs.contains_key(id));
        found.saved.retain(|id, saved| *id == saved.service().id && found.units.contains_key(id));
        for (id, saved) in &mut found.saved {
            saved.give_policies(policies.get(id));
        }
        Ok(found)
    }

    fn by_boot(self) -> Left {
        if process::boot_id().is_ok_and(|boot| *boot == *self.head.boot) {
            Left { found: Some(self), interrupted: BTreeMap::new() }
        } else {
            Left { found: None, interrupted: self.orders }
        }
    }

    /// The directories with secrets of what is taken over.
    pub fn secrets(&self) -> BTreeSet<PathBuf> {
        self.plans.values().filter_map(PlanRecord::secrets).collect()
    }

    /// The highest number of an order.
    pub fn last_order(&self) -> u64 {
        self.orders.keys().next_back().copied().unwrap_or(0)
    }

    /// The names of the control groups, and of the stubs' sockets, that are taken over; all others are nobody's.
    pub fn groups(&self) -> BTreeSet<Box<str>> {
        self.processes.values().filter_map(|p| p.group.clone()).collect()
    }

    /// The stubs that are taken over; all others are nobody's.
    pub fn stubs(&self) -> BTreeSet<Identity> {
        self.processes.values().filter_map(|p| p.stub).collect()
    }

    /// The configuration in force. The files may have changed since, and are read when somebody asks for an update.
    pub fn daemon(&self) -> crate::config::spec::Daemon {
        self.head.daemon.clone()
    }
}

impl Host {
    /// Goes on where the killed svd was.
    pub fn take_over(&mut self, found: Found, mut kept: Kept) {
        let Found { head, saved, mut specs, units, plans, generations, mut processes, orders } = found;
        self.since = head.since;
        self.daemon = head.daemon;
        self.secret = head.secret;
        self.last_service = head.last_service;
        self.machine =
            Machine::restore(fastrand::u64(..), self.store.last_worker(), self.now(), saved.into_values().collect());
        for id in units.keys() {
            // The records may be old: it was said that they could not be written.
            let last = self.machine.service(*id).map(|s| self.store.beyond(&s.name, s.last_generation));
            self.machine.skip_generations(*id, last.unwrap_or_default());
        }
        let plan = |(id, plan): (GenerationId, PlanRecord<'_>)| Some((id, Rc::new(plan.plan(specs.get(&id.service)?))));
        let plans: BTreeMap<GenerationId, Rc<Plan>> = plans.into_iter().filter_map(plan).collect();
        for (id, record) in units {
            let workers = processes.values().filter(|p| p.generation.service == id);
            let Some(spec) = specs.remove(&id) else { continue };
            self.take_unit(id, spec, record, &plans, &mut kept, workers);
        }
        for (id, record) in generations {
            if let Some(plan) = plans.get(&id) {
                // Only a process that is the recorded one.
                let of_it = processes.values().filter(|p| p.generation == id).filter_map(|p| p.started);
                let running: Vec<Identity> = of_it.filter(|i| i.is(process::start_time(i.pid))).collect();
                self.take_generation(record, Rc::clone(plan), &mut kept, &running);
            }
        }
        let known: Vec<core::Worker> = self.machine.workers().values().map(|w| (**w).clone()).collect();
        let mut fates = Vec::with_capacity(known.len());
        for worker in known {
            let fate = match processes.get(&worker.id) {
                Some(record) => self.take_worker(&worker, record, &mut kept),
                None => Fate::NeverRan,
            };
            fates.push((worker, fate));
        }
        // Were svd killed before the machine is told, the next one would have to find it out again.
        let untold = fates.iter().filter(|(_, fate)| matches!(fate, Fate::Ended { .. }));
        let untold = untold.filter_map(|(worker, _)| Some((worker.id, processes.remove(&worker.id)?))).collect();
        let upgrade = head.upgrade.filter(|upgrade| {
            let executed = upgrade.deaths == self.deaths;
            if !executed && self.fallback.is_none() {
                self.fallback =
                    Some("it could not be executed, or ended at once; svd's own messages may say why".into());
            }
            executed
        });
        let orders = self.revive(orders, if upgrade.is_some() { "svd was upgraded" } else { "svd was killed" });
        self.write_whole_state(untold);
        self.resume(fates, head.shutting_down, upgrade.as_ref().map(|upgrade| &*upgrade.from));
        for order in orders {
            self.revive_whole(order, upgrade.is_some());
        }
        self.deliver();
        self.forget_untold();
        self.keeper.acknowledge();
        // Of generations and workers that are gone.
        self.let_go(kept.descriptors.into_keys());
    }

    fn resume(&mut self, fates: Vec<(core::Worker, Fate)>, shutting_down: bool, from: Option<&str>) {
        let runs = fates.iter().filter(|(_, fate)| *fate == Fate::Runs).count();
        let ended = fates.len() - runs;
        let runs = crate::config::counted(runs, "worker");
        match from {
            Some(from) => {
                let own = env!("CARGO_PKG_VERSION");
                self.info(None, &format!("svd {own} goes on where {from} was: {runs} taken over"));
            }
            None => {
                self.warn(None, &format!("svd was killed, and goes on: {runs} taken over, {ended} ended meanwhile"));
            }
        }
        for action in self.machine.resume() {
            let told = |worker, signal| self.workers.get(&worker).is_some_and(|p| p.signalled == Some(signal));
            // Some take a second one for an order to hurry.
            if !matches!(action, Action::Signal { worker, signal } if told(worker, signal)) {
                self.execute(action);
            }
        }
        for (worker, fate) in fates {
            let id = worker.id;
            if let Some(event) = fate.event(&worker) {
                self.tell(event);
            }
            match (fate, worker.state) {
                (Fate::Runs, WorkerState::Spawning) => {
                    self.deliver();
                    self.begin_readiness(id);
                }
                (Fate::Runs, WorkerState::Booting { .. }) => {
                    self.begin_readiness_again(id);
                    if let Some(generation) = self.workers.get(&id).map(|p| p.generation) {
                        self.gunicorn_ready(generation);
                    }
                }
                _ => {}
            }
        }
        if shutting_down {
            self.tell(Event::Shutdown);
        }
        self.deliver();
        let committed: Vec<GenerationId> =
            self.machine.services().filter_map(|s| s.committed()).map(|g| g.id).collect();
        for id in committed {
            self.begin_health(id);
            self.watch_secrets(id, true);
        }
        self.read_secrets_again();
        self.watch_memory();
        self.watch_limits();
        self.publish_directory();
    }
}

/// The promise of [`crate::fuzz::run_state`].
#[cfg(any(test, feature = "fuzz"))]
pub fn check(input: &[u8]) {
    let _ = file::parse(input);
    let Ok(entries) = file::parse(&file::with_payload(input)) else { return };
    let Ok(found) = Found::of(&entries) else { return };
    let _ = found.groups();
    let mut machine = Machine::restore(1, 0, crate::core::Time(1), found.saved.into_values().collect());
    let _ = machine.resume();
    let workers: Vec<WorkerId> = machine.workers().keys().copied().collect();
    for worker in workers {
        let exited = Event::Exited { worker, exit: core::Exit::Unknown, leftovers: false, reason: None };
        let _ = machine.handle(crate::core::Time(2), exited);
    }
    let _ = machine.handle(crate::core::Time(3), Event::Shutdown);
}

#[cfg(test)]
mod formats;
