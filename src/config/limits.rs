//! `[limits]`: what a generation may use together, and each process of the service by itself.

use std::time::Duration;

use toml::de::DeValue;

use super::kind::KindName;
use super::scope::Scope;
use super::section::{Item, Schema, Section};
use super::source::Problem;
use super::spec::{CpuList, Io, Limits, Resource, Rlimit};
use super::units::{self, show_duration, show_size};

pub(super) static SCHEMA: Schema = Schema {
    name: "[limits]",
    keys: &[
        // Of a generation, all its processes together.
        "memory",
        "memory_high",
        "swap",
        "restart_above",
        "worker_memory",
        "cpu",
        "cpu_weight",
        "tasks",
        // Of each process.
        "cpus",
        "nice",
        "io",
        "oom_score",
        "open_files",
        "core",
        "file_size",
        "stack",
        "data",
        "address_space",
        "locked_memory",
        "message_queues",
        "cpu_time",
        "realtime_time",
        "realtime_priority",
        "pending_signals",
        "user_processes",
    ],
};

/// No program starts with less.
const LEAST_MEMORY: u64 = 1 << 20;
/// Of `kernel.pid_max`.
const MOST_TASKS: u32 = 1 << 22;
/// The kernel's own, on the largest machines.
const MOST_CPUS: u16 = 8192;
const MOST_PERCENT: u32 = MOST_CPUS as u32 * 100;

/// What a resource is counted in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Measure {
    Count,
    Bytes,
    Seconds,
    Microseconds,
}

fn measure(resource: Resource) -> Measure {
    match resource {
        Resource::Core
        | Resource::FileSize
        | Resource::Stack
        | Resource::Data
        | Resource::AddressSpace
        | Resource::LockedMemory
        | Resource::MessageQueues => Measure::Bytes,
        Resource::CpuTime => Measure::Seconds,
        Resource::RealtimeTime => Measure::Microseconds,
        Resource::OpenFiles | Resource::RealtimePriority | Resource::PendingSignals | Resource::UserProcesses => {
            Measure::Count
        }
    }
}

pub(super) fn decode(top: &Section<'_>, scope: &Scope<'_>) -> Limits {
    let section = top.section("limits", &SCHEMA);
    let limits = Limits {
        memory: section.get("memory", memory),
        memory_high: section.get("memory_high", memory),
        swap: section.get("swap", bytes),
        restart_above: section.get("restart_above", memory),
        worker_memory: section.get("worker_memory", |item| worker_memory(item, scope)),
        cpu: section.get("cpu", percent),
        cpu_weight: section.get("cpu_weight", |item| item.count(1, 10_000)),
        tasks: section.get("tasks", |item| item.count(1, MOST_TASKS)),
        cpus: section.get("cpus", cpus),
        nice: section.get("nice", |item| item.integer(-20, 19).map(|n| n as i32)),
        io: section.get("io", io),
        oom_score: section.get("oom_score", |item| item.integer(-1000, 1000).map(|n| n as i32)),
        rlimits: Resource::ALL.into_iter().filter_map(|resource| rlimit_of(&section, resource)).collect(),
    };
    below_memory(&section, &limits);
    limits
}

/// What acts before `memory` is reached must be smaller.
fn below_memory(section: &Section<'_>, limits: &Limits) {
    let Some(memory) = limits.memory else { return };
    let (high, above) =
        ("it throttles before memory is reached", "svd replaces the generation before memory is reached");
    let earlier = [
        ("memory_high", limits.memory_high, high),
        ("restart_above", limits.restart_above, above),
        ("worker_memory", limits.worker_memory, "it is a part of the generation's"),
    ];
    for (key, value, why) in earlier {
        if value.is_some_and(|value| value >= memory)
            && let Some(item) = section.item(key)
        {
            let message = format!("{key:?} is not below \"memory\", which is {}", show_size(memory));
            section.file.report(item.problem(message).help(why));
        }
    }
}

/// At least what a program needs to start.
fn memory(item: &Item<'_>) -> Result<u64, Problem> {
    match bytes(item)? {
        bytes if bytes < LEAST_MEMORY => Err(item
            .problem("no program starts with so little memory")
            .help("the least is \"1MiB\"; leave the key out for no limit")),
        bytes => Ok(bytes),
    }
}

/// A size that may be 0, which is none at all.
fn bytes(item: &Item<'_>) -> Result<u64, Problem> {
    match item.value {
        DeValue::String(text) if matches!(text.as_ref(), "never" | "unlimited" | "max") => {
            Err(item.problem(format!("{text:?} is not a size")).help("leave the key out for no limit"))
        }
        _ => units::size(item),
    }
}

fn worker_memory(item: &Item<'_>, scope: &Scope<'_>) -> Result<u64, Problem> {
    match scope.kind {
        Some(KindName::Gunicorn) | None => memory(item),
        Some(_) => Err(item
            .problem("only gunicorn has workers of its own that svd can recycle one by one")
            .help("use restart_above, which replaces the whole generation")),
    }
}

/// `"150%"`: of one CPU's time.
fn percent(item: &Item<'_>) -> Result<u32, Problem> {
    const FORM: &str = "write \"50%\" for half of one CPU, \"200%\" for two";
    let text = match item.value {
        DeValue::Integer(_) | DeValue::Float(_) => {
            return Err(item.problem("a share of the CPUs needs %").help(FORM));
        }
        _ => item.text()?,
    };
    let number = text.strip_suffix('%').and_then(|digits| digits.trim_end().parse::<u32>().ok());
    let fits = number.filter(|n| (1..=MOST_PERCENT).contains(n));
    fits.ok_or_else(|| item.problem(format!("{text:?} is not a share of the CPUs")).help(FORM))
}

/// `"0-3,5"`.
fn cpus(item: &Item<'_>) -> Result<CpuList, Problem> {
    const FORM: &str = "write numbers and ranges, as lscpu shows them: \"0-3,5\"";
    let text = match item.value {
        DeValue::Integer(_) => return Err(item.wrong_type("CPUs are listed in quotes").help(FORM)),
        _ => item.text()?,
    };
    let wrong = || item.problem(format!("{text:?} is not a list of CPUs")).help(FORM);
    let number = |digits: &str| digits.trim().parse::<u16>().ok().filter(|n| *n < MOST_CPUS);
    let mut ranges = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (number(first), number(last)) else { return Err(wrong()) };
        if last < first {
            return Err(wrong());
        }
        ranges.push((first, last));
    }
    Ok(CpuList::of(ranges))
}

/// `"best-effort:4"`, `"realtime:0"`, `"idle"`.
fn io(item: &Item<'_>) -> Result<Io, Problem> {
    const FORM: &str = "write \"idle\", or \"best-effort:N\" or \"realtime:N\" with N from 0 (first) to 7 (last)";
    let text = item.text()?;
    let (class, level) = match text.split_once(':') {
        Some((class, level)) => (class, level.parse::<u8>().ok().filter(|level| *level < 8)),
        None => (text, None),
    };
    match (class, level) {
        ("idle", None) if !text.contains(':') => Ok(Io::Idle),
        ("best-effort", Some(level)) => Ok(Io::BestEffort(level)),
        ("realtime", Some(level)) => Ok(Io::Realtime(level)),
        _ => Err(item.problem(format!("{text:?} is not an I/O priority")).help(FORM)),
    }
}

fn rlimit_of(section: &Section<'_>, resource: Resource) -> Option<Rlimit> {
    let (soft, hard) = section.get(resource.key(), |item| rlimit(item, measure(resource)))?;
    Some(Rlimit { resource, soft, hard })
}

/// A value for both limits, or `"SOFT:HARD"`.
fn rlimit(item: &Item<'_>, measure: Measure) -> Result<(u64, u64), Problem> {
    let DeValue::String(text) = item.value else {
        let both = match measure {
            Measure::Count => item.integer(0, i64::MAX)? as u64,
            Measure::Bytes => units::size(item)?,
            Measure::Seconds | Measure::Microseconds => in_time(units::duration(item)?, measure),
        };
        return Ok((both, both));
    };
    let parse = |text: &str| rlimit_text(item, text, measure);
    let (soft, hard) = match text.split_once(':') {
        Some((soft, hard)) => (parse(soft)?, parse(hard)?),
        None => parse(text).map(|both| (both, both))?,
    };
    match soft <= hard {
        true => Ok((soft, hard)),
        false => Err(item
            .problem("the soft limit is above the hard one")
            .help("write \"SOFT:HARD\"; the process may raise the soft one up to the hard one")),
    }
}

fn rlimit_text(item: &Item<'_>, text: &str, measure: Measure) -> Result<u64, Problem> {
    if text == "unlimited" {
        return Ok(u64::MAX);
    }
    let wrong = |(message, help): (String, String)| {
        item.problem(message).help(format!("{help}; \"unlimited\" is possible, and \"SOFT:HARD\""))
    };
    match measure {
        Measure::Count => text.parse::<u32>().map(u64::from).map_err(|_| {
            item.problem(format!("{text:?} is not a limit"))
                .help("write a whole number, \"unlimited\", or \"SOFT:HARD\" of them")
        }),
        Measure::Bytes => units::parse_size(text).map_err(wrong),
        Measure::Seconds | Measure::Microseconds => {
            units::parse_duration(text).map(|duration| in_time(duration, measure)).map_err(wrong)
        }
    }
}

/// What the kernel counts in; less than a second of CPU time is a second.
fn in_time(duration: Duration, measure: Measure) -> u64 {
    match measure {
        Measure::Seconds => duration.as_millis().div_ceil(1000) as u64,
        _ => duration.as_micros() as u64,
    }
}

/// As a file would say it.
pub(super) fn show_rlimit(limit: &Rlimit) -> String {
    let one = |value: u64| match measure(limit.resource) {
        _ if value == u64::MAX => "unlimited".to_owned(),
        Measure::Count => value.to_string(),
        Measure::Bytes if value == 0 => "0".to_owned(),
        Measure::Bytes => show_size(value),
        Measure::Seconds => show_duration(Duration::from_secs(value)),
        Measure::Microseconds => show_duration(Duration::from_micros(value)),
    };
    match limit.soft == limit.hard {
        true => one(limit.hard),
        false => format!("{}:{}", one(limit.soft), one(limit.hard)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};
    use super::*;

    fn with(limits: &str) -> String {
        format!("kind = 'gunicorn'\napp = 'a:b'\n[limits]\n{limits}")
    }

    #[test]
    fn nothing_is_limited_by_default() {
        assert_eq!(*service(&with("")).limits, Limits::default());
    }

    #[test]
    fn keys() {
        let limits = service(&with(
            "memory = '1GiB'\nmemory_high = '900MiB'\nswap = 0\nrestart_above = '800MiB'\nworker_memory = '300MiB'\ncpu = '150%'\n\
             cpu_weight = 200\ncpus = '5, 0-3,2-4'\ntasks = 256\nnice = -5\nio = 'best-effort:4'\noom_score = 200",
        ))
        .limits;
        assert_eq!((limits.memory, limits.memory_high, limits.swap), (Some(1 << 30), Some(900 << 20), Some(0)));
        assert_eq!((limits.restart_above, limits.worker_memory), (Some(800 << 20), Some(300 << 20)));
        assert_eq!((limits.cpu, limits.cpu_weight, limits.tasks), (Some(150), Some(200), Some(256)));
        assert_eq!(limits.cpus.as_ref().map(ToString::to_string).as_deref(), Some("0-5"));
        assert_eq!((limits.nice, limits.io, limits.oom_score), (Some(-5), Some(Io::BestEffort(4)), Some(200)));
        assert_eq!(service(&with("io = 'idle'")).limits.io, Some(Io::Idle));
        assert_eq!(service(&with("io = 'realtime:0'")).limits.io, Some(Io::Realtime(0)));
    }

    #[test]
    fn limits_of_each_process() {
        let limits = service(&with(
            "open_files = 65536\ncore = 'unlimited'\nstack = '8MiB:unlimited'\nfile_size = 0\ncpu_time = '90s'\nrealtime_time = '1ms'\n\
             user_processes = '100:200'",
        ))
        .limits;
        let shown: Vec<_> = limits.rlimits.iter().map(|l| format!("{} {}", l.resource.key(), show_rlimit(l))).collect();
        assert_eq!(
            shown,
            [
                "open_files 65536",
                "core unlimited",
                "file_size 0",
                "stack 8MiB:unlimited",
                "cpu_time 1m30s",
                "realtime_time 1ms",
                "user_processes 100:200"
            ]
        );
        assert_eq!(limits.rlimits[0], Rlimit { resource: Resource::OpenFiles, soft: 65_536, hard: 65_536 });
        let all: Vec<_> = Resource::ALL.iter().map(|r| r.key()).collect();
        assert!(all.iter().all(|key| SCHEMA.keys.contains(key)), "{all:?}");
    }

    #[test]
    fn mistakes() {
        assert_eq!(helps(&with("memory = 1000")), ["write \"1000B\" (or kB, MB, GB, KiB, MiB, GiB)"]);
        assert_eq!(helps(&with("memory = '1g'")), ["write \"1GB\" (powers of 1,000) or \"1GiB\" (of 1,024)"]);
        assert_eq!(helps(&with("memory = 'unlimited'")), ["leave the key out for no limit"]);
        assert_eq!(
            errors(&with("memory = '10B'\ncpu = 150\ncpus = 3\ntasks = 0\nnice = 20\noom_score = 1001")).len(),
            6
        );
        for wrong in ["cpu = '150'", "cpu = '0%'", "cpus = '3-1'", "cpus = ''", "cpus = '9999'", "io = 'best-effort'"] {
            assert_eq!(errors(&with(wrong)).len(), 1, "{wrong}");
        }
        for wrong in ["io = 'idle:3'", "io = 'realtime:8'", "open_files = '3:2'", "open_files = -1", "core = 'x'"] {
            assert_eq!(errors(&with(wrong)).len(), 1, "{wrong}");
        }
        assert_eq!(
            errors(&with("memory = '1GiB'\nmemory_high = '1GiB'\nrestart_above = '2GiB'")),
            [
                "\"memory_high\" is not below \"memory\", which is 1GiB",
                "\"restart_above\" is not below \"memory\", which is 1GiB"
            ]
        );
        let command = "kind = 'command'\ncommand = ['a']\n[limits]\nworker_memory = '1GiB'";
        assert_eq!(helps(command), ["use restart_above, which replaces the whole generation"]);
        assert_eq!(helps("kind = 'command'\ncommand = ['a']\nnice = 5"), ["\"nice\" belongs in [limits]"]);
        assert_eq!(helps("kind = 'command'\ncommand = ['a']\nMemoryMax = '1G'"), ["the key is memory in [limits]"]);
    }
}
