//! What `[limits]` says.

use serde::{Deserialize, Serialize};
use std::fmt;

/// `[limits]`: sizes in bytes; what is `None` is not limited by svd.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Of a generation: what asks for more is killed.
    pub memory: Option<u64>,
    /// Of a generation: above it the kernel takes memory back, and slows down who asks for more.
    pub memory_high: Option<u64>,
    /// Of a generation; 0: none.
    pub swap: Option<u64>,
    /// Of a generation, watched by svd: above it, it is replaced.
    pub restart_above: Option<u64>,
    /// Of one of gunicorn's own workers, watched by svd: above it, that one is replaced.
    pub worker_memory: Option<u64>,
    /// Of a generation, in hundredths of one CPU's time.
    pub cpu: Option<u32>,
    /// Of a generation: its share where CPUs are short; the kernel's default is 100.
    pub cpu_weight: Option<u32>,
    /// Processes and threads of a generation.
    pub tasks: Option<u32>,
    pub cpus: Option<CpuList>,
    pub nice: Option<i32>,
    pub io: Option<Io>,
    /// Added to the badness by which the kernel picks its victim when memory is short.
    pub oom_score: Option<i32>,
    /// Those that the file gives, in the order of [`Resource::ALL`].
    pub rlimits: Vec<Rlimit>,
}

impl Limits {
    /// Without the limit of this key (`limits.memory`).
    pub fn leave_out(&mut self, key: &str) {
        match key {
            "limits.memory" => self.memory = None,
            "limits.memory_high" => self.memory_high = None,
            "limits.swap" => self.swap = None,
            "limits.cpu" => self.cpu = None,
            "limits.cpu_weight" => self.cpu_weight = None,
            "limits.tasks" => self.tasks = None,
            "limits.cpus" => self.cpus = None,
            "limits.nice" => self.nice = None,
            "limits.io" => self.io = None,
            "limits.oom_score" => self.oom_score = None,
            key => self.rlimits.retain(|limit| limit.resource.full_key() != key),
        }
    }
}

/// CPUs by number: ranges that neither touch nor overlap, in ascending order. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuList(Vec<(u16, u16)>);

impl CpuList {
    /// From ranges in any order; both ends belong to each.
    pub fn of(mut ranges: Vec<(u16, u16)>) -> CpuList {
        ranges.sort_unstable();
        let mut joined: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        CpuList(joined)
    }

    /// All of a range?
    pub fn has(&self, (first, last): (u16, u16)) -> bool {
        self.0.iter().any(|(begin, end)| *begin <= first && last <= *end)
    }

    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.0
    }
}

impl fmt::Display for CpuList {
    /// `0-3,5`, as the kernel writes and reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// `ioprio_set(2)`; level 0 comes first, 7 last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Io {
    Realtime(u8),
    BestEffort(u8),
    Idle,
}

impl fmt::Display for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Io::Realtime(level) => write!(f, "realtime:{level}"),
            Io::BestEffort(level) => write!(f, "best-effort:{level}"),
            Io::Idle => f.write_str("idle"),
        }
    }
}

/// `setrlimit(2)`, of each process; `u64::MAX` is unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    pub resource: Resource,
    pub soft: u64,
    pub hard: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    OpenFiles,
    Core,
    FileSize,
    Stack,
    Data,
    AddressSpace,
    LockedMemory,
    MessageQueues,
    CpuTime,
    RealtimeTime,
    RealtimePriority,
    PendingSignals,
    UserProcesses,
}

impl Resource {
    pub const ALL: [Resource; 13] = [
        Resource::OpenFiles,
        Resource::Core,
        Resource::FileSize,
        Resource::Stack,
        Resource::Data,
        Resource::AddressSpace,
        Resource::LockedMemory,
        Resource::MessageQueues,
        Resource::CpuTime,
        Resource::RealtimeTime,
        Resource::RealtimePriority,
        Resource::PendingSignals,
        Resource::UserProcesses,
    ];

    /// As in `[limits]`.
    pub fn key(self) -> &'static str {
        self.full_key().split_once('.').map_or("", |(_, key)| key)
    }

    /// With its section.
    pub fn full_key(self) -> &'static str {
        match self {
            Resource::OpenFiles => "limits.open_files",
            Resource::Core => "limits.core",
            Resource::FileSize => "limits.file_size",
            Resource::Stack => "limits.stack",
            Resource::Data => "limits.data",
            Resource::AddressSpace => "limits.address_space",
            Resource::LockedMemory => "limits.locked_memory",
            Resource::MessageQueues => "limits.message_queues",
            Resource::CpuTime => "limits.cpu_time",
            Resource::RealtimeTime => "limits.realtime_time",
            Resource::RealtimePriority => "limits.realtime_priority",
            Resource::PendingSignals => "limits.pending_signals",
            Resource::UserProcesses => "limits.user_processes",
        }
    }

    /// `RLIMIT_…`
    pub fn number(self) -> u32 {
        match self {
            Resource::OpenFiles => libc::RLIMIT_NOFILE,
            Resource::Core => libc::RLIMIT_CORE,
            Resource::FileSize => libc::RLIMIT_FSIZE,
            Resource::Stack => libc::RLIMIT_STACK,
            Resource::Data => libc::RLIMIT_DATA,
            Resource::AddressSpace => libc::RLIMIT_AS,
            Resource::LockedMemory => libc::RLIMIT_MEMLOCK,
            Resource::MessageQueues => libc::RLIMIT_MSGQUEUE,
            Resource::CpuTime => libc::RLIMIT_CPU,
            Resource::RealtimeTime => libc::RLIMIT_RTTIME,
            Resource::RealtimePriority => libc::RLIMIT_RTPRIO,
            Resource::PendingSignals => libc::RLIMIT_SIGPENDING,
            Resource::UserProcesses => libc::RLIMIT_NPROC,
        }
    }
}
