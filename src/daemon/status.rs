//! What is shown of services: the core's view and the daemon's, put together.

use super::control::{last_lines, unknown};
use super::host::Host;
use super::launch;
use super::numbers::Numbers;
use super::statsd::Reported;
use super::unit::{Announced, Generation, Gunicorn, RunAs};
use crate::api::Reply;
use crate::api::request::Name;
use crate::api::types::{
    Desired, FullStatusList, GenerationRole, GenerationStatus, GunicornWorker, HealthStatus, HostHealth, Latency,
    MetricsSnapshot, ServiceHealth, ServiceState, ServiceStatus, StatusRow, SvdMetric, Traffic, UserStatus,
    WorkerState, WorkerStatus, rfc3339,
};
use crate::core::{self, Phase, Role, Service, ServiceId, SlotState, State};
use crate::kinds::{
    self,
    counters::{self, Recent, Snapshot},
};
use crate::sys::spawn::Ids;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// For the memory of a service's processes: without it, the rest is shown.
const MEMORY_LIMIT: Duration = Duration::from_secs(2);
/// Of gunicorn's workers so many are shown: an application may report some that there are not.
const GUNICORNS: usize = 512;

impl Host {
    pub fn state_of(&self, id: ServiceId) -> Option<ServiceState> {
        self.machine.service(id).map(|s| self.state(s))
    }

    /// The core's word, unless every process that serves says of itself that it reloads or stops.
    fn state(&self, service: &Service) -> ServiceState {
        let state = service.state(self.machine.workers());
        let slots = service.committed().filter(|_| state == State::Running).map(|g| &*g.slots).unwrap_or_default();
        let mut said = slots.iter().map(|slot| match slot.state {
            SlotState::Filled(worker) => self.workers.get(&worker)?.announced,
            _ => None,
        });
        match said.next().flatten().filter(|first| said.all(|other| other == Some(*first))) {
            Some(Announced::Reloading) => ServiceState::Reloading,
            Some(Announced::Stopping) => ServiceState::Stopping,
            None => word(state),
        }
    }

    /// A line of the table.
    pub fn row(&self, name: &str) -> Option<StatusRow> {
        let service = self.machine.named(name)?;
        let unit = self.units.get(&service.id)?;
        let shown = service.committed().or_else(|| service.candidate());
        let release = shown.and_then(|g| self.generations.get(&g.id)?.plan.places.id.clone());
        let state = self.state(service);
        let ill = || unit.health.as_ref().filter(|_| state == ServiceState::Running)?.complaint();
        let unwritten = || Some(format!("its output is lost: {}", self.unwritten(service)?).into());
        let complaint = || ill().or_else(unwritten);
        Some(StatusRow {
            name: (&*service.name).into(),
            state,
            release,
            generation: shown.map(|g| g.id.number),
            pid: shown.and_then(|g| self.pids_of(g).next()),
            further_workers: shown.map_or(0, |g| self.pids_of(g).skip(1).count() as u64),
            since_seconds: self.now().since(service.since).as_secs(),
            restarts: service.restarts,
            enabled: unit.enabled,
            draining: unit.drained,
            reason: self.machine.reason(service.id).map(Into::into).or_else(complaint),
        })
    }

    /// Why output of what runs now is lost. A file that nothing is written to loses none, whatever is wrong with it.
    fn unwritten(&self, service: &Service) -> Option<&str> {
        let files = self.unwritten.get(&*service.name)?;
        let workers = service.generations.iter().flat_map(|g| &g.slots).filter_map(|slot| match slot.state {
            SlotState::Filled(worker) => self.workers.get(&worker),
            _ => None,
        });
        workers.filter_map(|w| Some((w, self.generations.get(&w.generation)?))).find_map(|(worker, made)| {
            let open = launch::streams(&made.plan.spec).iter().zip(&worker.pipes).filter(|(_, pipe)| pipe.is_some());
            open.filter_map(|((_, stream), _)| files.get(stream)).next().map(|why| &**why)
        })
    }

    fn pids_of(&self, generation: &core::Generation) -> impl Iterator<Item = u32> {
        generation.slots.iter().filter_map(|slot| match slot.state {
            SlotState::Filled(worker) => self.pid_of(worker),
            _ => None,
        })
    }

    fn pid_of(&self, worker: core::WorkerId) -> Option<u32> {
        let process = self.workers.get(&worker)?;
        u32::try_from(process.pid()?).ok()
    }

    /// Everything about a service.
    pub fn status(&self, name: &str) -> Option<ServiceStatus> {
        let service = self.machine.named(name)?;
        let unit = self.units.get(&service.id)?;
        let row = self.row(name)?;
        let generations: Vec<GenerationStatus> =
            service.generations.iter().map(|g| self.generation_status(g)).collect();
        let shown = service.committed().or_else(|| service.candidate()).map(|g| g.id.number);
        let workers = generations.iter().find(|g| Some(g.number) == shown).map(|g| g.workers.clone());
        let traffic = generations.iter().find(|g| Some(g.number) == shown).and_then(|g| g.traffic);
        let health = unit.health.as_ref().map(|health| HealthStatus {
            state: health.state,
            last_check: health.last.map(rfc3339),
            failures: health.failures,
            message: health.message.clone(),
        });
        let since = self.ago(service.since);
        let behind = || self.is_behind(service).then(|| super::update::behind(name).into());
        Some(ServiceStatus {
            name: row.name,
            kind: kinds::kind_word(&unit.spec.kind).into(),
            state: row.state,
            desired: if service.wanted { Desired::Up } else { Desired::Down },
            enabled: row.enabled,
            release: row.release,
            generation: row.generation,
            since: rfc3339(since.0),
            since_seconds: since.1,
            pid: row.pid,
            workers: workers.unwrap_or_default(),
            generations,
            restarts: row.restarts,
            reason: row.reason.or_else(behind),
            next_attempt_seconds: self.next_attempt(service),
            last_output: Vec::new(),
            health,
            draining: row.draining,
            listen: unit.spec.sockets.iter().map(|s| super::sockets::text(&s.listen).into()).collect(),
            traffic,
            memory_bytes: None,
            user: self.user_of(service),
        })
    }

    /// Whom what runs of it, or is kept of it, runs as.
    fn user_of(&self, service: &Service) -> Option<UserStatus> {
        let shown = service.committed().or_else(|| service.candidate());
        let made = shown.and_then(|g| self.generations.get(&g.id)).map(|made| &made.plan);
        let kept = || self.units.get(&service.id)?.kept.as_ref().map(|(_, plan)| plan);
        let RunAs { ids, login } = &made.or_else(kept)?.run_as;
        let Ids { uid, gid, groups } = ids.clone()?;
        Some(UserStatus { name: login.name.as_str().into(), uid, gid, groups })
    }

    fn next_attempt(&self, service: &Service) -> Option<f64> {
        let slots = service.committed().or_else(|| service.candidate()).into_iter().flat_map(|g| &g.slots);
        let at = match service.phase {
            Phase::Failed { until, .. } => until,
            _ => slots
                .filter_map(|s| match s.state {
                    SlotState::Backoff(at) => Some(at),
                    SlotState::Failed(at) => at,
                    _ => None,
                })
                .min(),
        };
        at.map(|at| at.since(self.now()).as_secs_f64())
    }

    fn ago(&self, at: core::Time) -> (SystemTime, u64) {
        let passed = self.now().since(at);
        (SystemTime::now().checked_sub(passed).unwrap_or(SystemTime::UNIX_EPOCH), passed.as_secs())
    }

    fn generation_status(&self, generation: &core::Generation) -> GenerationStatus {
        let made = self.generations.get(&generation.id);
        let since = self.ago(generation.since);
        let slots = (0..).zip(&generation.slots);
        GenerationStatus {
            number: generation.id.number,
            release: made.and_then(|g| g.plan.places.id.clone()),
            role: match generation.role {
                Role::Candidate => GenerationRole::Candidate,
                Role::Committed => GenerationRole::Committed,
                Role::Standby => GenerationRole::Standby,
                Role::Canary => GenerationRole::Canary,
                Role::Draining => GenerationRole::Draining,
            },
            since: rfc3339(since.0),
            since_seconds: since.1,
            ends_seconds: generation.until.map(|until| until.since(self.now()).as_secs()),
            gunicorn_workers: made.and_then(|g| Some(g.gunicorn.as_ref()?.ready.len() as u64)),
            gunicorn: made.and_then(|g| self.gunicorns(g, generation.role)).unwrap_or_default(),
            workers: slots.map(|(index, slot)| self.worker_status(generation, index, slot)).collect(),
            traffic: made.and_then(|g| self.traffic(g)),
        }
    }

    /// What gunicorn's workers have counted, or the service has reported.
    fn traffic(&self, generation: &Generation) -> Option<Traffic> {
        let now = crate::sys::monotonic_micros();
        if let Some(gunicorn) = &generation.gunicorn {
            let counted = counters::read(&gunicorn.counters, now).ok()?;
            let limit = Duration::from_secs_f64(gunicorn.timeout.clamp(0.0, 86_400.0));
            let overdue = if limit.is_zero() { 0 } else { counted.overdue(now, limit) };
            return Some(Traffic { overdue, ..traffic_of(&counted) });
        }
        let reported = self.statsd.reported(generation.statsd.as_ref()?, now)?;
        let counted = counters::read(reported.words, now).ok()?;
        let Reported { lost: lost_datagrams, unreliable, .. } = reported;
        Some(Traffic { lost_datagrams, unreliable, ..traffic_of(&counted) })
    }

    fn worker_status(&self, generation: &core::Generation, index: u32, slot: &core::Slot) -> WorkerStatus {
        let filled = match slot.state {
            SlotState::Filled(worker) => self.machine.worker(worker),
            _ => None,
        };
        let since = self.ago(filled.map_or(generation.since, |w| w.started));
        WorkerStatus {
            index,
            state: match (&slot.state, filled.map(|w| w.state)) {
                (SlotState::Backoff(_) | SlotState::Failed(_), _) => WorkerState::Backoff,
                (_, Some(core::WorkerState::Ready)) => {
                    match filled.and_then(|w| self.workers.get(&w.id)).and_then(|p| p.announced) {
                        Some(Announced::Reloading) => WorkerState::Reloading,
                        Some(Announced::Stopping) => WorkerState::Stopping,
                        None => WorkerState::Running,
                    }
                }
                (_, Some(core::WorkerState::Spawning | core::WorkerState::Booting { .. })) => WorkerState::Starting,
                (_, Some(_)) => WorkerState::Stopping,
                (_, None) => WorkerState::Ended,
            },
            pid: filled.and_then(|w| self.pid_of(w.id)),
            since: rfc3339(since.0),
            since_seconds: since.1,
            restarts: slot.restarts,
            status_text: filled.and_then(|w| self.workers.get(&w.id)?.status.clone()),
            last_exit: slot.last_exit.map(|exit| exit.to_string().into()),
        }
    }

    pub fn answer_full(&self, names: &[Name], reply: Reply) {
        let services = names.iter().filter_map(|n| self.status(n)).collect();
        reply.ok(&FullStatusList { services });
    }

    /// One service; with its last output where that explains its state.
    pub fn answer_service(&self, name: Name, reply: Reply) {
        let Some(mut status) = self.status(&name) else { return reply.error(unknown(&name)) };
        let troubled = matches!(status.state, ServiceState::Failed | ServiceState::Backoff);
        let unit = self.machine.named(&name).and_then(|s| self.units.get(&s.id));
        let families = self.families(&name);
        let tail = unit.filter(|_| troubled).and_then(|u| self.logs.tail(u.name.clone(), None, 4096).ok());
        let pool = self.pool.clone();
        let lane = self.machine.named(&name).map(|s| super::pool::Lane::Memory(s.id));
        tokio::task::spawn_local(async move {
            if let Some(tail) = tail {
                status.last_output = last_lines(&tail.await.unwrap_or_default());
            }
            if let Some(lane) = lane {
                let all: Vec<i32> = families.iter().flat_map(|(_, pids)| pids).copied().collect();
                let memory = pool.run(lane, move || {
                    Ok(all.into_iter().filter_map(|pid| Some((pid, crate::sys::process::pss(pid)?))).collect())
                });
                if let Ok(Ok(memory)) = tokio::time::timeout(MEMORY_LIMIT, memory).await {
                    add_memory(&mut status, &families, &memory);
                }
            }
            reply.ok(&status);
        });
    }

    /// Each of gunicorn's workers.
    fn gunicorns(&self, made: &Generation, role: Role) -> Option<Vec<GunicornWorker>> {
        let all = gunicorns(made.gunicorn.as_ref()?, role)?;
        let numbers = made.plan.numbers();
        if numbers == Numbers::Host {
            return Some(all);
        }
        let of = self.workers.values().filter(|p| p.generation == made.id).flat_map(|p| p.worker.processes());
        let outer = numbers.outer(of);
        let known = all.into_iter().filter_map(|worker| {
            let pid = outer.get(&i32::try_from(worker.pid).ok()?)?;
            Some(GunicornWorker { pid: pid.unsigned_abs(), ..worker })
        });
        Some(known.collect())
    }

    /// The processes of each generation.
    pub fn families(&self, name: &str) -> Vec<(u64, Vec<i32>)> {
        let generations = self.machine.named(name).into_iter().flat_map(|s| &s.generations);
        let of = |id| self.workers.values().filter(move |p| p.generation == id).flat_map(|p| p.worker.processes());
        generations.map(|g| (g.id.number, of(g.id).collect())).collect()
    }

    pub fn answer_health(&self, name: Option<Name>, reply: Reply) {
        match name {
            None => {
                let all: Vec<ServiceStatus> = self.all_statuses();
                let health = HostHealth::of(&all, self.machine.is_shutting_down());
                reply.health(health.ok, &health);
            }
            Some(name) => match self.status(&name) {
                Some(status) => {
                    let health = ServiceHealth::of(&status);
                    reply.health(health.ok, &health);
                }
                None => reply.error(unknown(&name)),
            },
        }
    }

    fn all_statuses(&self) -> Vec<ServiceStatus> {
        let mut names: Vec<&str> = self.machine.services().map(|s| &*s.name).collect();
        names.sort_unstable();
        names.dedup();
        names.into_iter().filter_map(|n| self.status(n)).collect()
    }

    pub fn answer_metrics(&self, reply: Reply) {
        let load = |c: &std::sync::atomic::AtomicU64| c.load(Ordering::Relaxed) as f64;
        let metric = |name, help, counter, value| SvdMetric { name, help, counter, value };
        let up = SystemTime::now().duration_since(self.since).unwrap_or_default().as_secs_f64();
        let c = &self.counters;
        let n = self.statsd.numbers;
        let known = self.unwritten.keys().filter_map(|name| self.machine.named(name));
        let failing = known.filter(|service| self.unwritten(service).is_some()).count();
        let svd = vec![
            metric("uptime_seconds", "How long svd runs.", false, up),
            metric("services", "Services that are configured.", false, self.units.len() as f64),
            metric("processes", "Workers of which something runs.", false, self.workers.len() as f64),
            metric("connections_total", "Connections taken.", true, load(&c.connections)),
            metric(
                "connections_refused_total",
                "Connections turned away at a limit.",
                true,
                load(&c.connections_refused),
            ),
            metric("requests_total", "Requests.", true, load(&c.requests)),
            metric("requests_refused_total", "Requests that were not allowed.", true, load(&c.requests_refused)),
            metric(
                "progress_dropped_total",
                "Progress lines left out for slow clients.",
                true,
                load(&c.progress_dropped),
            ),
            metric("streams_cut_total", "Streams ended because the client did not read.", true, load(&c.streams_cut)),
            metric(
                "notify_foreign_total",
                "Notifications of strangers, or that name one as MAINPID; not heeded.",
                true,
                self.foreign_notifications as f64,
            ),
            metric("logs_failing", "Services whose output cannot be written now, and is lost.", false, failing as f64),
            metric(
                "logs_lost_bytes_total",
                "Output that was lost, counted when it can be written again.",
                true,
                self.log_lost as f64,
            ),
            metric("statsd_datagrams_total", "Datagrams with counts, foreign ones included.", true, n.datagrams as f64),
            metric("statsd_foreign_total", "Datagrams without the prefix of a generation.", true, n.foreign as f64),
            metric("statsd_malformed_total", "Lines of generations that could not be read.", true, n.malformed as f64),
            metric("statsd_lost_total", "Datagrams lost as they came too fast.", true, n.lost as f64),
        ];
        reply.metrics(&MetricsSnapshot { services: self.all_statuses(), svd });
    }
}

/// By what their master calls them: those that count, and those that have but reported. Both are written by the service.
fn gunicorns(gunicorn: &Gunicorn, role: Role) -> Option<Vec<GunicornWorker>> {
    let now = crate::sys::monotonic_micros();
    let counted = counters::read(&gunicorn.counters, now).ok()?.workers;
    let state = |pid: u32| match role {
        Role::Draining => WorkerState::Stopping,
        _ if i32::try_from(pid).is_ok_and(|pid| gunicorn.ready.contains(&pid)) => WorkerState::Running,
        _ => WorkerState::Starting,
    };
    let mut all: BTreeMap<u32, GunicornWorker> = BTreeMap::new();
    for pid in gunicorn.booted.iter().filter_map(|pid| u32::try_from(*pid).ok()) {
        all.insert(pid, GunicornWorker::bare(pid, state(pid)));
    }
    for worker in counted.iter().filter(|worker| worker.pid != 0) {
        let shown = GunicornWorker {
            pid: worker.pid,
            state: state(worker.pid),
            since_seconds: Some(now.saturating_sub(worker.started_us) / 1_000_000),
            requests: Some(worker.finished),
            errors_5xx: Some(worker.errors),
            open: Some(worker.open()),
            latency_ms: latency(&worker.recent),
            memory_bytes: None,
        };
        all.insert(worker.pid, shown);
    }
    Some(all.into_values().take(GUNICORNS).collect())
}

/// Of gunicorn's workers, those alone that are processes of the service: their numbers are what it says.
fn add_memory(status: &mut ServiceStatus, families: &[(u64, Vec<i32>)], memory: &BTreeMap<i32, u64>) {
    for (number, pids) in families {
        let Some(generation) = status.generations.iter_mut().find(|g| g.number == *number) else { continue };
        for worker in &mut generation.gunicorn {
            let pid = pids.iter().find(|pid| u32::try_from(**pid) == Ok(worker.pid));
            worker.memory_bytes = pid.and_then(|pid| memory.get(pid).copied());
        }
        if generation.role == GenerationRole::Committed {
            let sum: u64 = pids.iter().filter_map(|pid| memory.get(pid)).sum();
            status.memory_bytes = (sum > 0).then_some(sum);
        }
    }
}

fn word(state: State) -> ServiceState {
    match state {
        State::Stopped => ServiceState::Stopped,
        State::Waiting => ServiceState::Waiting,
        State::Starting => ServiceState::Starting,
        State::Running => ServiceState::Running,
        State::Reloading => ServiceState::Reloading,
        State::Stopping => ServiceState::Stopping,
        State::Backoff => ServiceState::Backoff,
        State::Failed => ServiceState::Failed,
        State::Exited => ServiceState::Exited,
    }
}

fn latency(recent: &Recent) -> Option<Latency> {
    let milliseconds = |q: f64| recent.latency.quantile(q).map(|d: Duration| d.as_secs_f64() * 1e3);
    let all = milliseconds(0.5).zip(milliseconds(0.9)).zip(milliseconds(0.95)).zip(milliseconds(0.99));
    all.map(|(((p50, p90), p95), p99)| Latency { p50, p90, p95, p99 })
}

fn traffic_of(counted: &Snapshot) -> Traffic {
    Traffic {
        requests: counted.totals.finished,
        errors_5xx: counted.totals.errors,
        died_open: counted.totals.died_open,
        slow: counted.totals.slow,
        latency_ms: latency(&counted.recent),
        ..Traffic::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_and_the_interface_have_one_word_for_each_state() {
        let all = [
            State::Stopped,
            State::Waiting,
            State::Starting,
            State::Running,
            State::Reloading,
            State::Stopping,
            State::Backoff,
            State::Failed,
            State::Exited,
        ];
        assert_eq!(all.map(word), ServiceState::ALL);
        assert_eq!(all.map(|state| state.to_string()), ServiceState::ALL.map(|state| state.as_str().to_owned()));
    }
}
