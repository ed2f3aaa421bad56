//! Statuses that tests share.

use super::types::*;

const SINCE: &str = "2026-11-22T18:40:00Z";

fn worker(index: u32, pid: u32) -> WorkerStatus {
    WorkerStatus {
        index,
        state: WorkerState::Running,
        pid: Some(pid),
        since: SINCE.into(),
        since_seconds: 300,
        restarts: 0,
        status_text: None,
        last_exit: None,
    }
}

/// A plain command without anything special.
pub fn running(name: &str) -> ServiceStatus {
    ServiceStatus {
        name: name.into(),
        kind: "command".into(),
        state: ServiceState::Running,
        desired: Desired::Up,
        enabled: true,
        release: None,
        generation: Some(1),
        since: SINCE.into(),
        since_seconds: 300,
        pid: Some(812),
        workers: vec![worker(0, 812)],
        generations: vec![GenerationStatus {
            number: 1,
            release: None,
            role: GenerationRole::Committed,
            since: SINCE.into(),
            since_seconds: 300,
            ends_seconds: None,
            workers: vec![worker(0, 812)],
            gunicorn_workers: None,
            gunicorn: Vec::new(),
            traffic: None,
        }],
        restarts: 0,
        reason: None,
        next_attempt_seconds: None,
        last_output: Vec::new(),
        health: None,
        draining: false,
        listen: Vec::new(),
        traffic: None,
        memory_bytes: None,
        user: None,
    }
}

/// Everything that can be said about a service.
pub fn full_status(name: &str) -> ServiceStatus {
    let traffic = Traffic {
        requests: 1000,
        errors_5xx: 2,
        overdue: 1,
        died_open: 0,
        slow: Some([9, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        latency_ms: Some(Latency { p50: 12.0, p90: 80.0, p95: 120.0, p99: 250.0 }),
        lost_datagrams: 0,
        unreliable: false,
    };
    let mut first = worker(0, 4711);
    first.status_text = Some("serving".into());
    first.last_exit = Some("killed by SIGKILL".into());
    first.restarts = 2;
    let mut old = running(name).generations.remove(0);
    old.number = 6;
    old.role = GenerationRole::Draining;
    old.release = Some("deploy-2026-11-21_10-00-00".into());
    let committed = GenerationStatus {
        number: 7,
        release: Some("deploy-2026-11-22_18-40-00".into()),
        role: GenerationRole::Committed,
        workers: vec![first.clone()],
        gunicorn_workers: Some(4),
        gunicorn: vec![gunicorn_worker(4712), GunicornWorker::bare(4713, WorkerState::Starting)],
        traffic: Some(traffic),
        ..old.clone()
    };
    ServiceStatus {
        kind: "gunicorn".into(),
        release: Some("deploy-2026-11-22_18-40-00".into()),
        generation: Some(7),
        pid: Some(4711),
        workers: vec![first],
        generations: vec![committed, old],
        restarts: 2,
        health: Some(HealthStatus {
            state: HealthState::Healthy,
            last_check: Some("2026-11-22T18:44:55Z".into()),
            failures: 0,
            message: None,
        }),
        listen: vec!["0.0.0.0:8000".into()],
        traffic: Some(traffic),
        memory_bytes: Some(183_500_800),
        user: Some(UserStatus { name: "airdock-web".into(), uid: 71_234, gid: 71_234, groups: vec![71_234, 44] }),
        ..running(name)
    }
}

/// One of gunicorn's that has served.
fn gunicorn_worker(pid: u32) -> GunicornWorker {
    GunicornWorker {
        since_seconds: Some(290),
        requests: Some(512),
        errors_5xx: Some(2),
        open: Some(1),
        latency_ms: Some(Latency { p50: 11.0, p90: 70.0, p95: 110.0, p99: 240.0 }),
        memory_bytes: Some(47_185_920),
        ..GunicornWorker::bare(pid, WorkerState::Running)
    }
}
