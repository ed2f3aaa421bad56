//! Measures services whose files limit what they may use (`limits.restart_above`, `limits.worker_memory`), one after the other and off
//! the loop. [`crate::core::memory`] says what follows.

use super::host::{Host, Message};
use super::numbers::Numbers;
use super::pool::Lane;
use super::unit::Task;
use crate::config::show_size;
use crate::config::spec::Limits;
use crate::core::memory::{Decision, Fat, Measure};
use crate::core::{Event, GenerationId, Phase, ServiceId};
use crate::sys::process::{self, Identity};
use std::collections::BTreeSet;
use std::time::Duration;

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(5);
/// For one service; without it, it is measured in the next round.
const LIMIT: Duration = Duration::from_secs(5);

/// Gunicorn's workers, by what their master calls them.
struct Gunicorns {
    booted: BTreeSet<i32>,
    numbers: Numbers,
}

fn is_limited(limits: &Limits) -> bool {
    limits.restart_above.is_some() || limits.worker_memory.is_some()
}

impl Host {
    /// Rounds, while there is somebody to measure.
    pub fn watch_limits(&mut self) {
        let limited = |unit: &super::unit::Unit| is_limited(&unit.spec.limits);
        if self.measuring.is_none() && self.units.values().any(|unit| limited(unit)) {
            self.measure_later(None, INTERVAL);
        }
    }

    fn measure_later(&mut self, after: Option<ServiceId>, pause: Duration) {
        let messages = self.messages.clone();
        self.measuring = Some(Task(tokio::task::spawn_local(async move {
            tokio::time::sleep(pause).await;
            let _ = messages.send(Message::Measure { after }).await;
        })));
    }

    /// The next one of this round; a new round when it is over.
    pub fn measure(&mut self, after: Option<ServiceId>) {
        let limited = self.units.iter().filter(|(_, unit)| is_limited(&unit.spec.limits));
        let next = limited.map(|(id, _)| *id).find(|id| after.is_none_or(|after| *id > after));
        let Some(next) = next else {
            self.measuring = None;
            let units = &self.units;
            self.measured.retain(|id, _| units.get(id).is_some_and(|unit| is_limited(&unit.spec.limits)));
            return self.watch_limits();
        };
        let Some((generation, limits, pids, gunicorns)) = self.to_measure(next) else {
            return self.measure_later(Some(next), Duration::ZERO);
        };
        let (pool, messages) = (self.pool.clone(), self.messages.clone());
        self.measuring = Some(Task(tokio::task::spawn_local(async move {
            let job = pool.run(Lane::Memory(next), move || Ok(take(&pids, &gunicorns, &limits)));
            if let Ok(Ok(measure)) = tokio::time::timeout(LIMIT, job).await {
                let _ = messages.send(Message::Measured { generation, measure }).await;
            }
            let _ = messages.send(Message::Measure { after: Some(next) }).await;
        })));
    }

    /// The generation that serves, if no other is on its way, its processes, and gunicorn's workers among them.
    fn to_measure(&self, id: ServiceId) -> Option<(GenerationId, Limits, Vec<i32>, Gunicorns)> {
        let service = self.machine.service(id).filter(|s| s.phase == Phase::Active && s.candidate().is_none())?;
        let generation = service.committed()?.id;
        let limits = Limits::clone(&self.units.get(&id)?.spec.limits);
        let of = self.workers.values().filter(|p| p.generation == generation);
        let pids: Vec<i32> = of.flat_map(|p| p.worker.processes()).collect();
        let made = self.generations.get(&generation)?;
        let booted = made.gunicorn.as_ref().map(|g| g.booted.clone()).unwrap_or_default();
        Some((generation, limits, pids, Gunicorns { booted, numbers: made.plan.numbers() }))
    }

    pub fn handle_measured(&mut self, generation: GenerationId, measure: &Measure) {
        let service = generation.service;
        let Some(unit) = self.units.get(&service) else { return };
        let limits = std::sync::Arc::clone(&unit.spec.limits);
        self.recycle_late(generation);
        let now = self.now();
        let watch = self.measured.entry(service).or_default();
        match watch.measured(now, generation.number, measure) {
            Decision::Nothing => {}
            Decision::Replace(used) => {
                let limit = limits.restart_above.map(show_size).unwrap_or_default();
                let reason = format!("it uses {} MiB, above limits.restart_above {limit}", used >> 20);
                self.tell(Event::Oversized { service, reason });
            }
            Decision::Recycle(fat) => {
                let limit = limits.worker_memory.map(show_size).unwrap_or_default();
                self.recycle(generation, fat, &limit);
            }
        }
    }
}

/// For the pool. What a process has in memory is told at once; its share of what it has in common with others takes the kernel a while,
/// and is never more than that.
fn take(pids: &[i32], gunicorns: &Gunicorns, limits: &Limits) -> Measure {
    let resident: Vec<(i32, u64)> = pids.iter().filter_map(|pid| Some((*pid, process::resident(*pid)?))).collect();
    let all: u64 = resident.iter().map(|(_, bytes)| bytes).sum();
    let above = limits.restart_above.filter(|limit| all > *limit).and_then(|limit| {
        let used = process::pss_of(pids);
        (used > limit).then_some(used)
    });
    let own = |(pid, bytes): &&(i32, u64)| {
        limits.worker_memory.is_some_and(|limit| *bytes > limit)
            && gunicorns.numbers.inner(*pid).is_some_and(|inner| gunicorns.booted.contains(&inner))
    };
    let mut fat: Vec<Fat> = resident.iter().filter(own).filter_map(|(pid, _)| fat_one(*pid, limits)).collect();
    fat.sort_by_key(|fat| std::cmp::Reverse(fat.used));
    Measure { above, fat }
}

fn fat_one(pid: i32, limits: &Limits) -> Option<Fat> {
    let Identity { start_time, .. } = Identity::of(pid)?;
    let used = process::pss(pid).filter(|used| limits.worker_memory.is_some_and(|limit| *used > limit))?;
    Some(Fat { pid, start_time, used, age: process::age(start_time) })
}
