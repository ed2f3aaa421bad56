//! `svctl inspect`: what the processes of a service have, beside what its file says.

mod shut_in;

use super::control::unknown;
use super::host::Host;
use super::pool::Lane;
use super::unit::Process;
use crate::api::Reply;
use crate::api::request::Name;
use crate::api::types::{ApiError, ErrorCode, Has, Inspected, Inspection};
use crate::config::spec::{Limits, Resource, Service};
use crate::config::{diff, secrecy};
use crate::sys::inspect::{Seen, group_cpu, group_limit};
use crate::sys::sandbox::Sandbox;
use crate::sys::spawn::Ids;
use crate::sys::user::Account;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Processes in one answer.
const MOST: usize = 64;
/// `argv[0]` of what makes a sandbox.
const ENTRANCE: &str = "svd-entrance";
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
    /// Without those that it may lack here.
    limits: Limits,
    sandbox: Option<Arc<Sandbox>>,
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
                pids: held(process),
                group: process.worker.cgroup(),
            })
            .collect();
        crews.sort_by_key(|crew| crew.worker);
        let ids = made.plan.run_as.ids.clone().unwrap_or_else(own);
        let (now, then) = (Arc::clone(&unit.spec), Arc::clone(&made.plan.spec));
        let directory = super::launch::directory_of(&made.plan, &self.around);
        let limits = self.around.features.limits_of(&now).into_owned();
        let sandbox = made.plan.sandbox.clone();
        let (generation, release) = (made.id.number, made.plan.places.id.clone());
        let (pool, lane) = (self.pool.clone(), Lane::Look(service.id));
        tokio::task::spawn_local(async move {
            let wanted = Wanted { now, then, ids, directory, limits, sandbox };
            // The user database may hang, too.
            let work = move || Ok(look(&crews, &wanted));
            let looked = tokio::time::timeout(LIMIT, pool.run(lane, work)).await;
            match looked.unwrap_or_else(|_| Err("its processes could not be looked at in time".to_owned())) {
                Ok((processes, left_out)) => {
                    let differences = differences(&processes);
                    let differs = !differences.is_empty();
                    let service = name;
                    reply.ok(&Inspection { service, generation, release, differs, differences, processes, left_out });
                }
                Err(why) => reply.error(ApiError::new(ErrorCode::Failed, format!("{name}: {why}."))),
            }
        });
    }
}

/// All but svd's own.
fn held(process: &Process) -> Vec<i32> {
    let (numbers, started) = (process.numbers, process.worker.pid());
    process.worker.processes().into_iter().filter(|pid| !numbers.holds(*pid, started)).collect()
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
    let svd = i32::try_from(std::process::id()).ok().and_then(Seen::of).unwrap_or_default();
    let seen = all.into_iter().take(MOST).filter_map(|(crew, pid)| {
        let seen = Seen::of(pid)?;
        let command = secrecy::arguments(&seen.command).into_iter().map(Into::into).collect();
        let has = compare(&seen, crew, wanted, &svd);
        Some(Inspected { pid, parent: seen.parent, worker: crew.worker, command, has })
    });
    (seen.collect(), left_out)
}

/// Each difference in a sentence, with the processes that have it.
fn differences(processes: &[Inspected]) -> Vec<Box<str>> {
    let mut all: Vec<(&Has, Vec<i32>)> = Vec::new();
    for (pid, has) in processes.iter().flat_map(|p| p.has.iter().map(|has| (p.pid, has))) {
        if has.wanted.is_none() {
            continue;
        }
        match all.iter_mut().find(|(other, _)| *other == has) {
            Some((_, pids)) => pids.push(pid),
            None => all.push((has, vec![pid])),
        }
    }
    let sentence = |(has, pids): &(&Has, Vec<i32>)| {
        let who = pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
        let who = if pids.len() == 1 { format!("process {who}") } else { format!("processes {who}") };
        let (wanted, why) = (has.wanted.as_deref().unwrap_or_default(), has.why.as_deref().unwrap_or_default());
        format!("{}: {} ({who}), and the file says {wanted}; {why}.", has.what, has.value).into()
    };
    all.iter().map(sentence).collect()
}

const BEFORE: &str = "it was started before the file was changed: a reload mends it";
const NOT_BY_ITSELF: &str = "svd has not started it, or somebody has changed it from outside";

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

    /// `wanted`: where it differs. Nobody can do that to itself.
    fn by_others(&mut self, what: &str, value: String, wanted: Option<&str>) {
        let why = wanted.map(|_| NOT_BY_ITSELF.into());
        self.all.push(Has { what: what.into(), value: value.into(), wanted: wanted.map(Into::into), why });
    }

    fn why(&self, key: &str) -> &'static str {
        let of = |service: &Service| diff::rows(service).into_iter().find(|row| row.key == key).map(|row| row.value);
        match (of(&self.wanted.now) != of(&self.wanted.then), self.first) {
            (true, _) => BEFORE,
            (false, true) => "its program has changed that by itself, or somebody from outside",
            (false, false) => "the process that started it has changed that, or itself",
        }
    }
}

fn compare(seen: &Seen, crew: &Crew, wanted: &Wanted, svd: &Seen) -> Vec<Has> {
    let first = crew.first == Some(seen.pid);
    let mut all = Gathered { wanted, first, all: Vec::new() };
    let own = svd.command.first().map_or(ENTRANCE, String::as_str);
    let begins = |command: &[String]| command.first().is_some_and(|word| [ENTRANCE, own].contains(&&**word));
    if first && seen.executable == svd.executable && begins(&seen.command) {
        all.shown("state", "on its way to its program");
        return all.all;
    }
    program(&mut all, seen);
    user(&mut all, seen);
    shut_in::compare(&mut all, seen, svd);
    groups_limits(&mut all, crew);
    own_limits(&mut all, seen);
    let path = |path: &Option<PathBuf>| path.as_ref().map_or("unknown".to_owned(), |p| p.display().to_string());
    let same_directory = wanted.now.directory == wanted.then.directory && wanted.now.root == wanted.then.root;
    let directory = wanted.directory.as_ref().filter(|_| first && same_directory);
    // As the process sees it: with links followed.
    let directory = directory.map(|d| d.canonicalize().unwrap_or_else(|_| d.clone()));
    all.compared("directory", path(&seen.directory), directory.map(|d| d.display().to_string()));
    if seen.root.as_ref().is_some_and(|root| root.as_os_str() != "/") {
        all.shown("root", path(&seen.root));
    }
    let umask = wanted.now.umask.filter(|_| first).map(|mask| format!("{mask:04o}"));
    all.compared("umask", seen.says("Umask").to_owned(), umask);
    if !seen.listens.is_empty() {
        all.shown("listens on", seen.listens.join(", "));
    }
    environment(&mut all, seen);
    if first {
        changed_since(&mut all);
    }
    all.all
}

/// What the kernel puts behind the path of a file that is gone.
const GONE: &str = " (deleted)";

fn program(all: &mut Gathered<'_>, seen: &Seen) {
    let Some(path) = seen.executable.as_ref().map(|path| path.display().to_string()) else { return };
    let is_gone = path.strip_suffix(GONE).map(|path| format!("{path} as it is now"));
    let why = is_gone.as_ref().map(|_| "its file was replaced or removed since: a reload starts what is there".into());
    all.all.push(Has { what: "program".into(), value: path.into(), wanted: is_gone.map(Into::into), why });
}

/// What the file says otherwise than when it was started, and that nothing else here tells.
fn changed_since(all: &mut Gathered<'_>) {
    let told = ["user", "group", "groups", "umask", "directory"];
    let told = |key: &str| told.contains(&key) || key.starts_with("limits.") || key.starts_with("environment.");
    let rows = |service: &Service| {
        let mut rows = diff::rows(service);
        rows.retain(|row| row.needs >= diff::Needs::Reload && !told(&row.key));
        rows
    };
    let (then, mut now) = (rows(&all.wanted.then), rows(&all.wanted.now));
    let mut differ = |key: &str, then: Option<&str>, now: Option<&str>| {
        let shown = |value: Option<&str>| value.map_or("not set".into(), |value| secrecy::shown(key, value));
        all.all.push(Has { what: key.into(), value: shown(then), wanted: Some(shown(now)), why: Some(BEFORE.into()) });
    };
    for row in then {
        let twin = now.iter().position(|other| other.key == row.key).map(|at| now.remove(at));
        if twin.as_ref().is_none_or(|twin| twin.value != row.value) {
            differ(&row.key, Some(&row.value), twin.as_ref().map(|twin| &*twin.value));
        }
    }
    now.iter().for_each(|row| differ(&row.key, None, Some(&row.value)));
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

fn user(all: &mut Gathered<'_>, seen: &Seen) {
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
}

fn number(limit: Option<u64>) -> String {
    limit.map_or_else(|| "unlimited".to_owned(), |n| n.to_string())
}

/// Of the control groups above it.
fn groups_limits(all: &mut Gathered<'_>, crew: &Crew) {
    let limits = &all.wanted.limits;
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
    let limits = &all.wanted.limits;
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
        has.why = Some(BEFORE.into());
    }
}
