//! `[limits]`, as what is spawned is prepared with it.

use super::launch::Surroundings;
use crate::config::spec::{Io, Limits, Rlimit};
use crate::sys::spawn::{CpuMask, IoPriority, Limit, Prepared};

/// What each process gets by itself.
pub fn prepare(prepared: &mut Prepared, limits: &Limits, around: &Surroundings) {
    prepared.nice = limits.nice;
    prepared.io = limits.io.map(io_priority);
    prepared.cpus = limits.cpus.as_ref().map(|cpus| CpuMask::of(cpus.ranges())).unwrap_or_default();
    prepared.oom_score_adj = limits.oom_score.or(around.oom_score_adj);
    let own: Vec<Limit> = limits.rlimits.iter().map(rlimit).collect();
    let says = |resource| own.iter().any(|limit| limit.resource == resource);
    let open_files = Some(around.open_files).filter(|limit| !says(limit.resource));
    prepared.limits = open_files.into_iter().chain(own.iter().copied()).collect();
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
