//! What the public address tells strangers: health for load balancers, numbers for Prometheus.

use serde::{Deserialize, Serialize};

use super::types::{
    Desired, GenerationRole, HealthState, ServiceState, ServiceStatus, Traffic, WorkerState, WorkerStatus,
};

/// Body of `/health` on the public address: 200 where `ok`, else 503.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostHealth {
    /// Every enabled service that nobody has stopped is running, none of them is drained, and svd does not shut down.
    pub ok: bool,
    /// Enabled ones.
    pub services: u64,
    /// Names of enabled services that should be running and are not, or that are drained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ok: Vec<Box<str>>,
}

impl HostHealth {
    pub fn of(services: &[ServiceStatus], shutting_down: bool) -> HostHealth {
        let mut health = HostHealth { ok: !shutting_down, services: 0, not_ok: Vec::new() };
        for service in services.iter().filter(|s| s.enabled) {
            health.services += 1;
            let stopped = service.desired == Desired::Down && !shutting_down;
            if !stopped && !service.takes_traffic() {
                health.ok = false;
                health.not_ok.push(service.name.clone());
            }
        }
        health
    }
}

/// Body of `/health/NAME` on the public address: 200 where `ok`, else 503. A status without what a stranger need not
/// see (output, reasons, process ids).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceHealth {
    /// Running and not drained.
    pub ok: bool,
    pub name: Box<str>,
    pub state: ServiceState,
    pub draining: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    pub since: Box<str>,
    pub since_seconds: u64,
    /// Running workers of the committed generation.
    pub workers: u32,
    pub restarts: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_check: Option<Box<str>>,
    pub generations: Vec<GenerationHealth>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationHealth {
    pub number: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<str>>,
    pub role: GenerationRole,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gunicorn_workers: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

impl ServiceHealth {
    pub fn of(status: &ServiceStatus) -> ServiceHealth {
        let running = |w: &&WorkerStatus| matches!(w.state, WorkerState::Running | WorkerState::Reloading);
        ServiceHealth {
            ok: status.takes_traffic(),
            name: status.name.clone(),
            state: status.state,
            draining: status.draining,
            release: status.release.clone(),
            generation: status.generation,
            since: status.since.clone(),
            since_seconds: status.since_seconds,
            workers: status.workers.iter().filter(running).count() as u32,
            restarts: status.restarts,
            health: status.health.as_ref().map(|h| h.state),
            last_check: status.health.as_ref().and_then(|h| h.last_check.clone()),
            generations: status
                .generations
                .iter()
                .map(|g| GenerationHealth {
                    number: g.number,
                    release: g.release.clone(),
                    role: g.role,
                    gunicorn_workers: g.gunicorn_workers,
                    traffic: g.traffic,
                })
                .collect(),
        }
    }
}

impl ServiceStatus {
    /// May a load balancer send requests? A failing health check does not take it away: a database that is down
    /// would take all hosts away at once.
    pub fn takes_traffic(&self) -> bool {
        matches!(self.state, ServiceState::Running | ServiceState::Reloading) && !self.draining
    }
}

/// What `/metrics` is made of. See [`crate::api::metrics::render`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricsSnapshot {
    pub services: Vec<ServiceStatus>,
    /// Counters of svd itself: name without the prefix `airdock_svd_`, help, kind, value.
    pub svd: Vec<SvdMetric>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SvdMetric {
    /// In base units; a counter's name ends in `_total`.
    pub name: &'static str,
    pub help: &'static str,
    pub counter: bool,
    pub value: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::running;

    #[test]
    fn a_service_stopped_by_hand_is_no_fault_of_the_host() {
        let mut stopped = running("stopped");
        (stopped.state, stopped.desired) = (ServiceState::Stopped, Desired::Down);
        let mut failed = running("failed");
        failed.state = ServiceState::Failed;
        let health = HostHealth::of(&[running("web"), stopped.clone()], false);
        assert_eq!((health.ok, health.services), (true, 2));
        let health = HostHealth::of(&[stopped.clone(), failed], false);
        assert_eq!((health.ok, health.not_ok), (false, vec!["failed".into()]));
        let health = HostHealth::of(&[stopped], true);
        assert!(!health.ok, "everything is stopped when svd shuts down, and that is no health");
    }
}
