//! What can be told of services from what runs of them, when the state file is of no use.
//!
//! A worker's control group has its service's, its generation's, its slot's and its own number in its name; the rest is in the
//! service's file. Nothing is guessed: where several generations run, as in the middle of a reload, or it is not certain which
//! process svd has started, a service is not taken over.

use super::{Found, Kept, retake};
use crate::config::spec::{Config, Kind, Listen, Service};
use crate::core::{GenerationId, Policy, Saved, ServiceId, Setup, Time, WorkerId};
use crate::daemon::launch;
use crate::daemon::secret::Secret;
use crate::daemon::secrets::place;
use crate::daemon::sockets;
use crate::daemon::state::records::{
    GenerationRecord, GunicornRecord, Head, PlanRecord, ProcessRecord, UnitRecord, kept as names,
};
use crate::daemon::store::Store;
use crate::daemon::users::Users;
use crate::sys::cgroup::{Group, Tree};
use crate::sys::process::{self, Identity, ProcStat};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

/// A worker that runs.
struct Running {
    slot: u32,
    id: WorkerId,
    group: Group,
    process: Identity,
}

/// `name.GENERATION.SLOT.WORKER`
fn parse(group: &str) -> Option<(&str, u64, u32, WorkerId)> {
    let mut parts = group.rsplitn(4, '.');
    let worker = WorkerId(parts.next()?.parse().ok()?);
    let slot = parts.next()?.parse().ok()?;
    let generation = parts.next()?.parse().ok()?;
    Some((parts.next()?, generation, slot, worker))
}

/// The process of the group that none of it has started: the worker itself, if it is the only one.
fn first_of(group: &Group) -> Option<Identity> {
    let pids: BTreeSet<i32> = group.procs().ok()?.into_iter().collect();
    let began_it = |pid: &&i32| ProcStat::read(**pid).is_some_and(|stat| !pids.contains(&stat.parent));
    let mut first = pids.iter().filter(began_it);
    let pid = first.next().filter(|_| first.next().is_none())?;
    Identity::of(*pid)
}

/// What an svd without its state file knows nevertheless.
pub struct Known<'a> {
    pub store: &'a Store,
    pub users: &'a Users,
    /// The directories that may have secrets.
    pub places: &'a [PathBuf; 2],
}

/// Services of the configuration of which exactly one generation runs.
pub fn rebuild(config: &Config, tree: &Arc<Tree>, known: &Known<'_>, kept: &mut Kept) -> Option<Found> {
    let mut running: BTreeMap<Box<str>, BTreeMap<u64, Vec<Running>>> = BTreeMap::new();
    let mut uncertain: BTreeSet<Box<str>> = BTreeSet::new();
    for group in tree.groups().ok()? {
        let Some((name, generation, slot, id)) = parse(group.own_name()) else { continue };
        let name = Box::from(name);
        let Some(process) = first_of(&group) else {
            if group.is_populated().unwrap_or(true) {
                uncertain.insert(name);
            }
            continue;
        };
        running.entry(name).or_default().entry(generation).or_default().push(Running { slot, id, group, process });
    }
    let mut found = Found::empty(Head {
        boot: process::boot_id().ok()?.into(),
        since: SystemTime::now(),
        last_service: 0,
        shutting_down: false,
        daemon: config.daemon.clone(),
        secret: Secret::new(),
        upgrade: None,
    });
    running.retain(|name, _| !uncertain.contains(name));
    for (name, mut generations) in running {
        let Some(spec) = config.services.get(&name) else { continue };
        if let (Some((number, workers)), true) = (generations.pop_first(), generations.is_empty()) {
            found.add(spec, number, workers, known, kept);
        }
    }
    (!found.units.is_empty()).then_some(found)
}

impl Found {
    fn add(&mut self, spec: &Arc<Service>, number: u64, workers: Vec<Running>, known: &Known<'_>, kept: &mut Kept) {
        let slots: BTreeSet<u32> = workers.iter().map(|w| w.slot).collect();
        // Its private port was svd's to know.
        if slots.len() < workers.len() || crate::kinds::wants_port(spec) {
            return;
        }
        let id = ServiceId(self.head.last_service + 1);
        let generation = GenerationId { service: id, number };
        let release = workers.first().and_then(|worker| release_of(spec, worker.process.pid));
        let Ok(plan) = launch::plan(spec, release.as_deref(), known.users) else { return };
        let Some(plan) = PlanRecord::of(&plan, None).owned() else { return };
        let place = workers.first().and_then(|worker| variable_of(worker.process.pid, launch::CREDENTIALS));
        let place = place.map(PathBuf::from).filter(|place| place::is_of(place, known.places, &spec.name));
        let plan = plan.with_secrets(place.filter(|_| !spec.secrets.is_empty()));
        self.head.last_service = id.0;
        let setup = Setup {
            service: id,
            name: Arc::clone(&spec.name),
            policy: Rc::new(Policy::new(spec)),
            start: true,
            last_generation: known.store.last_generation(&spec.name).max(number),
            op: None,
        };
        let filled: Vec<(u32, WorkerId)> = workers.iter().map(|w| (w.slot, w.id)).collect();
        let now = Time(crate::sys::monotonic_micros().saturating_mul(1000));
        self.saved.insert(id, Saved::running(setup, number, &filled, now));
        take_sockets(spec, id, &workers, kept);
        let gunicorn = matches!(spec.kind, Kind::Gunicorn { .. });
        if let (true, Some(master)) = (gunicorn, workers.first()) {
            rename_shared(generation, master.process.pid, kept);
        }
        self.generations.insert(
            generation,
            GenerationRecord {
                id: generation,
                port: None,
                gunicorn: gunicorn.then(GunicornRecord::serving),
                statsd: None,
                began: SystemTime::now(),
            },
        );
        self.units.insert(
            id,
            UnitRecord {
                spec: None,
                enabled: known.store.enabled(&spec.name, spec.autostart),
                removed: false,
                drained: false,
                scaled: None,
                kept: Some(number),
                cookies: Vec::new(),
            },
        );
        self.plans.insert(generation, plan);
        self.specs.insert(id, Arc::clone(spec));
        for worker in workers {
            let record = ProcessRecord {
                generation,
                slot: worker.slot,
                group: Some(worker.group.name().into()),
                stub: None,
                started: Some(worker.process),
                named: None,
                named_ended: false,
                status: None,
                watchdog_every: None,
                signalled: None,
            };
            self.processes.insert(worker.id, record);
        }
    }

    /// The services that are taken over.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.specs.values()
    }
}

/// The release that a process began in, where the service has releases; `current` may name another one by now.
fn release_of(spec: &Service, pid: i32) -> Option<String> {
    let releases = std::fs::canonicalize(spec.root.as_deref()?).ok()?.join("releases");
    let directory = variable_of(pid, "PWD")?;
    let below = Path::new(&directory).strip_prefix(&releases).ok()?;
    Some(below.iter().next()?.to_str()?.to_owned())
}

/// With which value a process began.
fn variable_of(pid: i32, name: &str) -> Option<String> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut entries = environment.split(|b| *b == 0);
    let value = entries.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
    Some(std::str::from_utf8(value).ok()?.to_owned())
}

/// Gives the sockets that the guardian has kept, or that the workers hold, the name by which they are looked for.
fn take_sockets(spec: &Service, id: ServiceId, workers: &[Running], kept: &mut Kept) {
    let listens: Vec<&Listen> = spec.sockets.iter().map(|socket| &socket.listen).collect();
    let is_one = |fd: &OwnedFd| listens.iter().position(|listen| sockets::listens_at(fd, listen));
    let named: Vec<Box<str>> = kept.descriptors.keys().filter(|name| name.starts_with("socket/")).cloned().collect();
    let mut found: Vec<Option<OwnedFd>> = listens.iter().map(|_| None).collect();
    for name in named {
        let at = kept.descriptors.get(&name).and_then(is_one);
        if let Some(entry) = at.and_then(|at| found.get_mut(at)) {
            *entry = kept.descriptors.remove(&name);
        }
    }
    let pids = workers.iter().flat_map(|worker| worker.group.procs().unwrap_or_default());
    if let Some(all) = retake::fill(found, pids, is_one) {
        kept.descriptors.extend((0..).zip(all).map(|(n, fd)| (names::socket(id, n).into(), fd)));
    }
}

/// What the guardian has kept of what svd and this master share gets the name by which it is looked for.
fn rename_shared(generation: GenerationId, master: i32, kept: &mut Kept) {
    let Some(counters) = retake::counters_of(master) else { return };
    let same = |fd: &OwnedFd| process::inode(fd).is_some_and(|inode| Some(inode) == process::inode(&counters));
    let mut all = kept.descriptors.iter().filter_map(|(name, fd)| Some((name.strip_prefix("counters/")?, fd)));
    let Some(old) = all.find(|(_, fd)| same(fd)).map(|(old, _)| old.to_owned()) else { return };
    for what in ["gate", "report", "theirs", "counters"] {
        if let Some(fd) = kept.descriptors.remove(format!("{what}/{old}").as_str()) {
            kept.descriptors.insert(names::shared(generation, what).into(), fd);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_groups_are_read_from_their_end() {
        assert_eq!(parse("web.2.0.17"), Some(("web", 2, 0, WorkerId(17))));
        assert_eq!(parse("a.b.c.1.2.3"), Some(("a.b.c", 1, 2, WorkerId(3))));
        for wrong in ["web", "1.2.3", "web.x.0.1", "web.1.-1.1", ""] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
