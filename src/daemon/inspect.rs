//! `svctl inspect`: what the processes of a service have, beside what its file says.

use super::control::unknown;
use super::host::Host;
use super::pool::Lane;
use crate::api::Reply;
use crate::api::request::Name;
use crate::api::types::{ApiError, ErrorCode, Has, Inspected, Inspection};
use crate::config::capability::Capability;
use crate::config::spec::{Resource, Service};
use crate::config::{diff, secrecy};
use crate::sys::inspect::{Seen, group_cpu, group_limit};
use crate::sys::spawn::Ids;
use crate::sys::user::Account;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Processes in one answer.
const MOST: usize = 64;
/// For all of them to be read: one that waits for its disk may keep us from its own files.
const LIMIT: Duration = Duration::from_secs(10);

/// A worker of the generation that serves.
struct Crew {
    worker: u32,
    /// The process that svd started.
    first: Option<i32>,
    pids: Vec<i32>,
    group: Option<PathBuf>,
}

/// What the processes should have.
struct Wanted {
    now: Arc<Service>,
    /// What they were started with.
    then: Arc<Service>,
    ids: Ids,
    directory: Option<PathBuf>,
}

impl Host {
    /// What serves is looked at in the pool.
    pub fn answer_inspection(&self, name: Name, reply: Reply) {
        let Some(service) = self.machine.named(&name) else { return reply.error(unknown(&name)) };
        let running = service.committed().or_else(|| service.candidate()).map(|g| g.id);
        let made = running.and_then(|id| self.generations.get(&id));
        let (Some(unit), Some(made)) = (self.units.get(&service.id), made) else {
            let why = format!("{name} is not running: it has no processes.");
            let hint = format!("`svctl start {name}` starts it; `svctl show {name}` has its settings.");
            return reply.error(ApiError::new(ErrorCode::NotRunning, why).hint(hint));
        };
        let mut crews: Vec<Crew> = self
            .workers
            .values()
            .filter(|process| process.generation == made.id)
            .map(|process| Crew {
                worker: process.slot,
                first: process.pid(),
                pids: process.worker.processes().into_iter().filter(|pid| process.numbers.is_services(*pid)).collect(),
                group: process.worker.cgroup(),
            })
            .collect();
        crews.sort_by_key(|crew| crew.worker);
        let ids = made.plan.run_as.ids.clone().unwrap_or_else(own);
        let (now, then) = (Arc::clone(&unit.spec), Arc::clone(&made.plan.spec));
        let directory = super::launch::directory_of(&made.plan, &self.around);
        let (generation, release) = (made.id.number, made.plan.places.id.clone());
        let (pool, lane) = (self.pool.clone(), Lane::Look(service.id));
        tokio::task::spawn_local(async move {
            let wanted = Wanted { now, then, ids, directory };
            // The user database may hang, too.
            let work = move || Ok(look(&crews, &wanted));
            let looked = tokio::time::timeout(LIMIT, pool.run(lane, work)).await;
            match looked.unwrap_or_else(|_| Err("its processes could not be looked at in time".to_owned())) {
                Ok((processes, left_out)) => {
                    let differs = processes.iter().flat_map(|p| &p.has).any(|has| has.wanted.is_some());
                    reply.ok(&Inspection { service: name, generation, release, differs, processes, left_out });
                }
                Err(why) => reply.error(ApiError::new(ErrorCode::Failed, format!("{name}: {why}."))),
            }
        });
    }
}

/// What svd itself has, and its children get.
fn own() -> Ids {
    let groups = nix::unistd::getgroups().unwrap_or_default();
    Ids {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        groups: groups.into_iter().map(|gid| gid.as_raw()).collect(),
    }
}

fn look(crews: &[Crew], wanted: &Wanted) -> (Vec<Inspected>, u64) {
    let all = crews.iter().flat_map(|crew| {
        let mut pids = crew.pids.clone();
        pids.sort_by_key(|pid| (Some(*pid) != crew.first, *pid));
        pids.into_iter().map(move |pid| (crew, pid))
    });
    let all: Vec<_> = all.collect();
    let left_out = all.len().saturating_sub(MOST) as u64;
    let seen = all.into_iter().take(MOST).filter_map(|(crew, pid)| {
        let seen = Seen::of(pid)?;
        let command = secrecy::arguments(&seen.command).into_iter().map(Into::into).collect();
        let has = compare(&seen, crew, wanted);
        Some(Inspected { pid, parent: seen.parent, worker: crew.worker, command, has })
    });
    (seen.collect(), left_out)
}

/// Gathers what a process has.
struct Gathered<'a> {
    wanted: &'a Wanted,
    /// It is the process that svd started: nobody but itself can have changed what it began with.
    first: bool,
    all: Vec<Has>,
}

impl Gathered<'_> {
    fn shown(&mut self, what: &str, value: impl Into<Box<str>>) {
        self.all.push(Has { what: what.into(), value: value.into(), wanted: None, why: None });
    }

    /// `wanted`: `None` where the file says nothing about it.
    fn compared(&mut self, what: &str, value: String, wanted: Option<String>) {
        let wanted = wanted.filter(|wanted| *wanted != value);
        let why = wanted.as_ref().map(|_| self.why(what).into());
        self.all.push(Has { what: what.into(), value: value.into(), wanted: wanted.map(Into::into), why });
    }

    fn why(&self, key: &str) -> &'static str {
        let of = |service: &Service| diff::rows(service).into_iter().find(|row| row.key == key).map(|row| row.value);
        match (of(&self.wanted.now) != of(&self.wanted.then), self.first) {
            (true, _) => "it was started before the file was changed: a reload mends it",
            (false, true) => "its program has changed that by itself, or somebody from outside",
            (false, false) => "the process that started it has changed that, or itself",
        }
    }
}

fn compare(seen: &Seen, crew: &Crew, wanted: &Wanted) -> Vec<Has> {
    let first = crew.first == Some(seen.pid);
    let mut all = Gathered { wanted, first, all: Vec::new() };
    rights(&mut all, seen);
    groups_limits(&mut all, crew);
    own_limits(&mut all, seen);
    let path = |path: &Option<PathBuf>| path.as_ref().map_or("unknown".to_owned(), |p| p.display().to_string());
    let same_directory = wanted.now.directory == wanted.then.directory && wanted.now.root == wanted.then.root;
    let directory = wanted.directory.as_ref().filter(|_| first && same_directory);
    all.compared("directory", path(&seen.directory), directory.map(|d| d.display().to_string()));
    if seen.root.as_ref().is_some_and(|root| root.as_os_str() != "/") {
        all.shown("root", path(&seen.root));
    }
    let umask = wanted.now.umask.filter(|_| first).map(|mask| format!("{mask:04o}"));
    all.compared("umask", seen.says("Umask").to_owned(), umask);
    files(&mut all, seen);
    if !seen.listens.is_empty() {
        all.shown("listens on", seen.listens.join(", "));
    }
    environment(&mut all, seen);
    all.all
}

fn name_of(uid: u32) -> String {
    match Account::by_uid(uid) {
        Ok(account) if account.name != uid.to_string() => format!("{} ({uid})", account.name),
        _ => uid.to_string(),
    }
}

fn joined(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

fn rights(all: &mut Gathered<'_>, seen: &Seen) {
    let Wanted { now, then, ids, .. } = all.wanted;
    // What the new names mean is looked up when something is started with them.
    let other = |named: &Option<Box<str>>| named.as_deref().unwrap_or("svd's own").to_owned();
    let user = if now.user == then.user { name_of(ids.uid) } else { other(&now.user) };
    let group = if now.group == then.group { ids.gid.to_string() } else { other(&now.group) };
    let uids = seen.numbers("Uid");
    let effective = uids.get(1).copied().unwrap_or_default();
    let mut value = name_of(effective);
    if uids.iter().any(|uid| *uid != effective) {
        value = format!("{value}, of real, effective, saved and file {}", joined(&uids));
    }
    all.compared("user", value, Some(user));
    let gids = seen.numbers("Gid");
    all.compared("group", gids.get(1).map(u32::to_string).unwrap_or_default(), Some(group));
    let mut groups = seen.numbers("Groups");
    let mut wanted = ids.groups.clone();
    for list in [&mut groups, &mut wanted] {
        list.sort_unstable();
        list.dedup();
    }
    let same = now.user == then.user && now.groups == then.groups;
    let shown = |list: &[u32]| if list.is_empty() { "none".to_owned() } else { joined(list) };
    all.compared("groups", shown(&groups), same.then(|| shown(&wanted)));
    all.shown("capabilities", sets(seen));
    all.shown("no_new_privileges", if seen.says("NoNewPrivs") == "1" { "true" } else { "false" });
    let filters = seen.says("Seccomp_filters");
    all.shown(
        "system calls",
        match seen.says("Seccomp") {
            "1" => "read, write and exit alone".to_owned(),
            "2" => format!("filtered ({})", if filters.is_empty() { "1" } else { filters }),
            _ => "all".to_owned(),
        },
    );
    let own = match &seen.namespaces[..] {
        [] => "none: svd's own".to_owned(),
        names => names.join(", "),
    };
    all.shown("namespaces of its own", own);
}

/// What it has now, what it could get by a program with more rights, and what its children keep.
fn sets(seen: &Seen) -> String {
    let all = capabilities();
    let shown = |set: u64| match set & all {
        0 => "none".to_owned(),
        set if set == all => "all".to_owned(),
        set => (0..64).filter(|n| set >> n & 1 == 1).map(|n| Capability(n).name()).collect::<Vec<_>>().join(" "),
    };
    let (effective, bounding, ambient) =
        (seen.capabilities("CapEff"), seen.capabilities("CapBnd"), seen.capabilities("CapAmb"));
    let mut text = shown(effective);
    if bounding & all != effective & all {
        text += &format!("; at most {}", shown(bounding));
    }
    if ambient != 0 {
        text += &format!("; kept by what it starts: {}", shown(ambient));
    }
    text
}

/// Those that this kernel has.
fn capabilities() -> u64 {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok());
    let count: u32 = last.map_or(41, |last: u32| last.saturating_add(1)).min(64);
    u64::MAX.checked_shr(64 - count).unwrap_or(u64::MAX)
}

fn number(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string())
}

/// Of the control groups above it.
fn groups_limits(all: &mut Gathered<'_>, crew: &Crew) {
    let limits = Arc::clone(&all.wanted.now).limits.clone();
    let wanted = [
        ("limits.memory", "memory.max", limits.memory),
        ("limits.memory_high", "memory.high", limits.memory_high),
        ("limits.swap", "memory.swap.max", limits.swap),
        ("limits.tasks", "pids.max", limits.tasks.map(u64::from)),
        ("limits.cpu", "cpu.max", limits.cpu.map(u64::from)),
    ];
    for (key, file, wanted) in wanted {
        let found = crew
            .group
            .as_deref()
            .and_then(|group| if file == "cpu.max" { group_cpu(group) } else { group_limit(group, file) });
        // The kernel counts memory in pages.
        let same = |a: u64, b: u64| a == b || (file.starts_with("memory") && a / 65_536 == b / 65_536);
        match (found, wanted) {
            (None, None) => {}
            (Some(found), Some(wanted)) if same(found, wanted) => all.shown(key, wanted.to_string()),
            (found, wanted) => all.compared(key, number(found), wanted.map(|n| n.to_string())),
        }
    }
}

/// Of the process itself.
fn own_limits(all: &mut Gathered<'_>, seen: &Seen) {
    let now = Arc::clone(&all.wanted.now);
    let limits = &now.limits;
    for resource in Resource::ALL {
        let Some([soft, hard]) = seen.rlimits.get(kernels_word(resource)) else { continue };
        let wanted = limits.rlimits.iter().find(|limit| limit.resource == resource);
        if (soft, hard) == (&None, &None) && wanted.is_none() {
            continue;
        }
        let shown = |soft: Option<u64>, hard: Option<u64>| match soft == hard {
            true => number(soft),
            false => format!("{}, at most {}", number(soft), number(hard)),
        };
        let finite = |n: u64| Some(n).filter(|n| *n != u64::MAX);
        let wanted = wanted.map(|limit| shown(finite(limit.soft), finite(limit.hard)));
        all.compared(&format!("limits.{}", resource.key()), shown(*soft, *hard), wanted);
    }
    all.compared("limits.nice", seen.nice.to_string(), limits.nice.map(|n| n.to_string()));
    let io = seen.io.clone().unwrap_or_else(|| "by its nice value".to_owned());
    all.compared("limits.io", io, limits.io.map(|io| io.to_string()));
    let oom = seen.oom_score.map_or("unknown".to_owned(), |n| n.to_string());
    all.compared("limits.oom_score", oom, limits.oom_score.map(|n| n.to_string()));
    let cpus = seen.says("Cpus_allowed_list").to_owned();
    all.compared("limits.cpus", cpus, limits.cpus.as_ref().map(ToString::to_string));
}

fn kernels_word(resource: Resource) -> &'static str {
    match resource {
        Resource::OpenFiles => "Max open files",
        Resource::Core => "Max core file size",
        Resource::FileSize => "Max file size",
        Resource::Stack => "Max stack size",
        Resource::Data => "Max data size",
        Resource::AddressSpace => "Max address space",
        Resource::LockedMemory => "Max locked memory",
        Resource::MessageQueues => "Max msgqueue size",
        Resource::CpuTime => "Max cpu time",
        Resource::RealtimeTime => "Max realtime timeout",
        Resource::RealtimePriority => "Max realtime priority",
        Resource::PendingSignals => "Max pending signals",
        Resource::UserProcesses => "Max processes",
    }
}

/// Mounts that are named.
const PLACES: usize = 12;

fn files(all: &mut Gathered<'_>, seen: &Seen) {
    let root = if seen.mounts.root_read_only { "/ is read-only" } else { "/ as it is on the host" };
    let places = seen.mounts.writable.iter().filter(|place| place.as_os_str() != "/");
    let places: Vec<String> = places.map(|place| place.display().to_string()).collect();
    let more = match places.len().saturating_sub(PLACES) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let text = match (&places[..], seen.mounts.root_read_only) {
        ([], _) => root.to_owned(),
        (_, true) => format!("{root}; may be written to: {}{more}", places[..places.len().min(PLACES)].join(", ")),
        (_, false) => format!("{root}, with {} mounts that may be written to", places.len()),
    };
    all.shown("files", text);
}

/// Names alone.
fn environment(all: &mut Gathered<'_>, seen: &Seen) {
    let Some(names) = &seen.environment else { return };
    let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted.dedup();
    let now = Arc::clone(&all.wanted.now);
    // A program that writes its title has overwritten them.
    let intact = all.first && sorted.contains(&"PATH");
    let missing = now.environment.iter().map(|(name, _)| &**name).filter(|name| intact && !sorted.contains(name));
    let missing: Vec<&str> = missing.collect();
    all.shown("environment", sorted.join(" "));
    if let (false, Some(has)) = (missing.is_empty(), all.all.last_mut()) {
        has.wanted = Some(format!("{} as well", missing.join(" ")).into());
        has.why = Some("it was started before the file was changed: a reload mends it".into());
    }
}
