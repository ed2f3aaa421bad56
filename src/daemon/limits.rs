//! `[limits]`: what is spawned is prepared with it, and what runs is changed.

use super::features::Features;
use super::host::{Host, Message};
use super::launch::Surroundings;
use super::pool::Lane;
use super::state::Key;
use super::unit::Plan;
use crate::config::spec::Service;
use crate::config::spec::{Io, Limits, Rlimit};
use crate::core::GenerationId;
use crate::core::ServiceId;
use crate::sys::cgroup::Tree;
use crate::sys::cgroup::control::{self, Setting};
use crate::sys::limits::{self as own, Change};
use crate::sys::spawn::{CpuMask, IoPriority, Limit, Prepared};
use crate::sys::worker::Family;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

/// What each process gets by itself.
pub fn prepare(prepared: &mut Prepared, limits: &Limits, around: &Surroundings) {
    prepared.limited.settings = around.features.limits().settings(limits);
    prepared.nice = limits.nice;
    prepared.io = limits.io.map(io_priority);
    prepared.cpus = limits.cpus.as_ref().map(|cpus| CpuMask::of(cpus.ranges())).unwrap_or_default();
    prepared.oom_score_adj = limits.oom_score.or(around.oom_score_adj);
    let own: Vec<Limit> = limits.rlimits.iter().map(rlimit).collect();
    let says = |resource| own.iter().any(|limit| limit.resource == resource);
    let open_files = Some(around.open_files).filter(|limit| !says(limit.resource));
    prepared.limits = open_files.into_iter().chain(own.iter().copied()).collect();
}

/// The directory of a generation, which has the limits of all its workers, where there can be such limits.
pub fn together(name: &str, generation: GenerationId, features: &Features) -> Option<Box<str>> {
    features.limits().together.then(|| control::together(&format!("{name}.{}", generation.number)))
}

fn io_priority(io: Io) -> IoPriority {
    match io {
        Io::Realtime(level) => IoPriority::Realtime(level),
        Io::BestEffort(level) => IoPriority::BestEffort(level),
        Io::Idle => IoPriority::Idle,
    }
}

fn rlimit(limit: &Rlimit) -> Limit {
    Limit { resource: limit.resource.number(), soft: limit.soft, hard: Some(limit.hard) }
}

/// Looks for processes that were forked while others were changed.
const ROUNDS: usize = 4;

/// Of a limit of memory that the kernel could keep by killing alone. Where it does not tell what is used, it may be set.
fn too_much(tree: &Tree, group: &str, limit: &str) -> Option<String> {
    let used = unreclaimable(&tree.read(group, "memory.current").ok()?, &tree.read(group, "memory.stat").ok()?)?;
    let limit: u64 = limit.parse().ok()?;
    (used > limit).then(|| format!("it uses {} MiB, more than that, and would be killed", used >> 20))
}

/// In bytes: what is used, without what is in files as well and can be dropped.
fn unreclaimable(current: &str, stat: &str) -> Option<u64> {
    let of = |name: &str| {
        let value = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let dropped = ["active_file", "inactive_file", "slab_reclaimable"].map(of);
    Some(current.trim().parse::<u64>().ok()?.saturating_sub(dropped.iter().sum()))
}

/// What changes of each process, by key.
struct Changes {
    nice: Option<i32>,
    io: Option<IoPriority>,
    cpus: Option<CpuMask>,
    oom_score: Option<i32>,
    limits: Vec<(&'static str, Limit)>,
}

impl Changes {
    /// A limit that is taken away leaves svd's own.
    fn between(old: &Limits, new: &Limits, around: &Surroundings) -> Changes {
        let changed = |is: bool| is.then_some(());
        let cpus = || new.cpus.as_ref().map_or_else(own::own_cpus, |cpus| CpuMask::of(cpus.ranges()));
        let score = || new.oom_score.or(around.oom_score_adj).unwrap_or_else(|| around.features.limits().oom_score);
        let gone = old.rlimits.iter().filter(|limit| !new.rlimits.iter().any(|other| other.resource == limit.resource));
        let own_limit = |limit: &Rlimit| {
            let resource = limit.resource.number();
            let (soft, hard) = own::limit_of(resource)?;
            let soft = if resource == around.open_files.resource { around.open_files.soft } else { soft };
            Some((limit.resource.full_key(), Limit { resource, soft, hard: Some(hard) }))
        };
        let set = new.rlimits.iter().filter(|limit| !old.rlimits.contains(limit));
        let set = set.map(|limit| (limit.resource.full_key(), rlimit(limit)));
        Changes {
            nice: changed(old.nice != new.nice).map(|()| new.nice.unwrap_or_else(own::nice)),
            io: changed(old.io != new.io).map(|()| new.io.map_or(IoPriority::None, io_priority)),
            cpus: changed(old.cpus != new.cpus).map(|()| cpus()),
            oom_score: changed(old.oom_score != new.oom_score).map(|()| score()),
            limits: set.chain(gone.filter_map(own_limit)).collect(),
        }
    }

    fn all(&self) -> Vec<(&'static str, Change<'_>)> {
        let mut all = Vec::new();
        all.extend(self.cpus.as_ref().map(|cpus| ("limits.cpus", Change::Cpus(cpus))));
        all.extend(self.nice.map(|nice| ("limits.nice", Change::Nice(nice))));
        all.extend(self.io.map(|io| ("limits.io", Change::Io(io))));
        all.extend(self.oom_score.map(|score| ("limits.oom_score", Change::OomScore(score))));
        all.extend(self.limits.iter().map(|(key, limit)| (*key, Change::Limit(*limit))));
        all
    }
}

/// What has become of a change; the sentences say what could not be changed.
pub struct Limited {
    service: ServiceId,
    /// The update that waits for it.
    call: Option<u64>,
    failed: Vec<String>,
}

/// What is to be changed, by whoever may wait for the kernel.
struct Work {
    old: Arc<Limits>,
    spec: Arc<Service>,
    around: Surroundings,
    workers: Vec<Family>,
}

impl Work {
    /// Gives what could not be changed: a sentence for each key.
    fn done(self) -> Vec<String> {
        let new = &*self.around.features.limits_of(&self.spec);
        let changes = Changes::between(&self.old, new, &self.around);
        let settings = self.around.features.limits().changed(&self.old, new);
        let mut failed = self.change_groups(&settings);
        for (key, change) in changes.all() {
            failed.extend(self.change_processes(change).map(|why| (key, why)));
        }
        let mut told = BTreeSet::new();
        failed.retain(|(key, _)| told.insert(*key));
        let sentence =
            |(key, why): (&str, String)| format!("{key} is not changed for what runs: {why}; a reload applies it");
        failed.into_iter().map(sentence).collect()
    }

    /// Gives the first reason of one that could not be.
    fn change_processes(&self, change: Change<'_>) -> Option<String> {
        let (mut done, mut failed) = (BTreeSet::new(), None);
        for _ in 0..ROUNDS {
            let now =
                self.workers.iter().flat_map(|family| family.processes().into_iter().map(move |pid| (family, pid)));
            let more: Vec<(&Family, i32)> = now.filter(|(_, pid)| !done.contains(pid)).collect();
            if more.is_empty() {
                break;
            }
            for (family, pid) in more {
                done.insert(pid);
                let Some(_certain) = family.certain(pid) else { continue };
                let error = change.apply(pid).err();
                failed = failed.or(error.map(|errno| format!("of process {pid}: {}", errno.desc())));
            }
        }
        failed
    }

    fn change_groups(&self, settings: &[(&'static str, Setting)]) -> Vec<(&'static str, String)> {
        let mut failed = Vec::new();
        let mut done = BTreeSet::new();
        for family in &self.workers {
            let Family::Group(group) = family else {
                failed.extend(settings.iter().map(|(key, _)| (*key, "it has no control group".to_owned())));
                continue;
            };
            if !done.insert(group.limited_name()) {
                continue;
            }
            for (key, setting) in settings {
                if setting.file == "memory.max"
                    && let Some(why) = too_much(group.tree(), group.limited_name(), &setting.value)
                {
                    failed.push((*key, why));
                    continue;
                }
                let set = group.tree().limit(group.limited_name(), std::slice::from_ref(setting));
                failed.extend(set.err().map(|why| (*key, why)));
            }
        }
        failed
    }
}

impl Host {
    /// Changes the limits of all that runs of a service; `call` waits for it. Checks and commands end soon, and the next ones have
    /// the new limits.
    pub fn change_limits(&mut self, id: ServiceId, old: Arc<Limits>, spec: &Arc<Service>, call: Option<u64>) {
        let workers = self.workers.values().filter(|process| process.generation.service == id);
        let workers = workers.map(|process| process.worker.family()).collect();
        self.replan(id, &spec.limits);
        let work = Work { old, spec: Arc::clone(spec), around: self.around.clone(), workers };
        self.add_part(call);
        let (pool, messages) = (self.pool.clone(), self.messages.clone());
        tokio::task::spawn_local(async move {
            let done = pool.run(Lane::Limits(id), move || Ok(work.done()));
            let failed = done.await.unwrap_or_else(|why| vec![why]);
            let _ = messages.send(Message::Limited(Limited { service: id, call, failed })).await;
        });
    }

    pub fn handle_limited(&mut self, Limited { service, call, failed }: Limited) {
        if let Some(name) = self.units.get(&service).map(|unit| Arc::clone(&unit.name)) {
            for why in failed {
                self.note(call, &name, &why);
                self.warn(Some(service), &why);
            }
        }
        if let Some(call) = call {
            self.finish_call(call);
        }
    }

    /// What is started again for a generation has the new limits, too.
    fn replan(&mut self, id: ServiceId, new: &Arc<Limits>) {
        let Some(unit) = self.units.get_mut(&id) else { return };
        let current = Arc::clone(&unit.spec);
        let with = |plan: &Plan| {
            let spec = Service { limits: Arc::clone(new), ..(*plan.spec).clone() };
            let spec = if spec == *current { Arc::clone(&current) } else { Arc::new(spec) };
            Rc::new(Plan { spec, ..plan.clone() })
        };
        if let Some((number, plan)) = &mut unit.kept {
            *plan = with(plan);
            self.state.mark(Key::Plan(GenerationId { service: id, number: *number }));
        }
        for (of, made) in self.generations.iter_mut().filter(|(of, _)| of.service == id) {
            made.plan = with(&made.plan);
            self.state.mark(Key::Plan(*of));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_have_as_well_is_not_in_the_way_of_a_lower_limit() {
        let stat = "anon 700\nfile 200\nslab_reclaimable 30\ninactive_file 120\nactive_file 50\n";
        assert_eq!(unreclaimable("1000\n", stat), Some(800));
        assert_eq!(unreclaimable("100\n", stat), Some(0));
        assert_eq!(unreclaimable("1000\n", ""), Some(1000));
        assert_eq!(unreclaimable("max", stat), None);
    }

    #[test]
    fn a_limit_below_what_is_used_is_too_much() {
        let dir = tempfile::tempdir().expect("a directory");
        let Ok(tree) = Tree::open(dir.path()) else {
            println!("skipped: a tree is no other directory here");
            return;
        };
        std::fs::create_dir(dir.path().join("web.1.limits")).expect("a directory");
        let write = |file: &str, text: &str| {
            std::fs::write(dir.path().join("web.1.limits").join(file), text).expect("a file");
        };
        assert_eq!(too_much(&tree, "web.1.limits", "1"), None, "the kernel tells nothing");
        write("memory.current", "104857600\n");
        write("memory.stat", "inactive_file 31457280\n");
        assert_eq!(too_much(&tree, "web.1.limits", "73400320"), None, "70 MiB are enough");
        assert_eq!(too_much(&tree, "web.1.limits", "max"), None);
        let why = too_much(&tree, "web.1.limits", "73400319").expect("it is too much");
        assert_eq!(why, "it uses 70 MiB, more than that, and would be killed");
    }
}
