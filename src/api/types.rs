//! What is said over the control socket: plain data, written as JSON with `snake_case` names.
//!
//! Times are RFC 3339 in UTC; each `since` has a `since_seconds` beside it, so that nobody needs a clock that agrees
//! with the host's. Absent values are left out. Fields are only ever added: readers ignore what they do not know.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// `2026-11-22T18:40:00Z`.
pub fn rfc3339(time: SystemTime) -> Box<str> {
    humantime::format_rfc3339_seconds(time).to_string().into_boxed_str()
}

/// What a service is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    Stopped,
    /// For what it requires.
    Waiting,
    Starting,
    Running,
    Reloading,
    Stopping,
    /// It failed and is started again after a delay.
    Backoff,
    /// It failed too often; `reason` says why and when the next attempt is.
    Failed,
    /// It ended by itself and its policy does not start it again.
    Exited,
}

impl ServiceState {
    pub const ALL: [ServiceState; 9] = [
        ServiceState::Stopped,
        ServiceState::Waiting,
        ServiceState::Starting,
        ServiceState::Running,
        ServiceState::Reloading,
        ServiceState::Stopping,
        ServiceState::Backoff,
        ServiceState::Failed,
        ServiceState::Exited,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            ServiceState::Stopped => "stopped",
            ServiceState::Waiting => "waiting",
            ServiceState::Starting => "starting",
            ServiceState::Running => "running",
            ServiceState::Reloading => "reloading",
            ServiceState::Stopping => "stopping",
            ServiceState::Backoff => "backoff",
            ServiceState::Failed => "failed",
            ServiceState::Exited => "exited",
        }
    }

    /// What `service NAME status` means by running (LSB: exit code 0, else 3).
    pub fn counts_as_running(self) -> bool {
        matches!(self, ServiceState::Starting | ServiceState::Running | ServiceState::Reloading)
    }
}

/// What it should be doing, by the last `start` or `stop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Desired {
    Up,
    Down,
}

/// One line of `svctl status`: all that the table shows. `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusRow {
    pub name: Box<str>,
    pub state: ServiceState,
    /// The committed release, if the service has releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<str>>,
    /// The committed generation; the candidate's while there is no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Of the first worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Seconds in this state.
    pub since_seconds: u64,
    /// Of its workers, since the last `start`.
    pub restarts: u64,
    /// Starts when svd starts.
    pub enabled: bool,
    /// Taken out of the load balancer by `svctl drain`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub draining: bool,
    /// Why it is failed, in backoff or waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<str>>,
}

/// Answer to `GET /v1/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StatusList {
    /// Sorted by name.
    pub services: Vec<StatusRow>,
}

/// Answer to `GET /v1/status?full=true`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FullStatusList {
    /// Sorted by name.
    pub services: Vec<ServiceStatus>,
}

/// Everything about a service. `GET /v1/services/NAME`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    pub name: Box<str>,
    /// `gunicorn`, `jvm` or `command`.
    pub kind: Box<str>,
    pub state: ServiceState,
    pub desired: Desired,
    /// Starts when svd starts.
    pub enabled: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// RFC 3339: when it came into this state.
    pub since: Box<str>,
    pub since_seconds: u64,
    /// Of the first worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Of the committed generation.
    pub workers: Vec<WorkerStatus>,
    /// Those with processes: the candidate of a reload, the committed one, those that drain.
    pub generations: Vec<GenerationStatus>,
    pub restarts: u64,
    /// Why it is failed, in backoff or waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<str>>,
    /// Seconds until the next attempt, in backoff and failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_seconds: Option<f64>,
    /// Last lines that it wrote; only when failed or in backoff.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_output: Vec<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthStatus>,
    /// Taken out of the load balancer by `svctl drain`.
    pub draining: bool,
    /// Where it listens (`0.0.0.0:8000`, `unix:/run/airship.sock`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<Box<str>>,
    /// Of the committed generation; `None` where nothing counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// Resident bytes of the committed generation, shared pages counted once a process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    Starting,
    Running,
    Stopping,
    /// Waits for its next start.
    Backoff,
    Ended,
}

impl WorkerState {
    pub fn as_str(self) -> &'static str {
        match self {
            WorkerState::Starting => "starting",
            WorkerState::Running => "running",
            WorkerState::Stopping => "stopping",
            WorkerState::Backoff => "backoff",
            WorkerState::Ended => "ended",
        }
    }
}

/// One supervised process (a gunicorn master, a JVM, an instance of a command).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// From 0.
    pub index: u32,
    pub state: WorkerState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    pub since: Box<str>,
    pub since_seconds: u64,
    pub restarts: u64,
    /// What the process said by `STATUS=` (sd_notify).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_text: Option<Box<str>>,
    /// `exited with code 1`, `killed by SIGSEGV (core dumped)`, of the process before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<Box<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationRole {
    /// Boots; it is not known yet whether it is good.
    Candidate,
    /// Serves.
    Committed,
    /// Finishes its requests.
    Draining,
}

impl GenerationRole {
    pub fn as_str(self) -> &'static str {
        match self {
            GenerationRole::Candidate => "candidate",
            GenerationRole::Committed => "committed",
            GenerationRole::Draining => "draining",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationStatus {
    pub number: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<str>>,
    pub role: GenerationRole,
    pub since: Box<str>,
    pub since_seconds: u64,
    pub workers: Vec<WorkerStatus>,
    /// Where requests of this generation are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// No check has been made yet.
    Unknown,
    Healthy,
    Unhealthy,
}

impl HealthState {
    pub fn as_str(self) -> &'static str {
        match self {
            HealthState::Unknown => "unknown",
            HealthState::Healthy => "healthy",
            HealthState::Unhealthy => "unhealthy",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HealthStatus {
    pub state: HealthState,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_check: Option<Box<str>>,
    /// In a row.
    pub failures: u32,
    /// What the last failed check met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Box<str>>,
}

/// Counted where the requests are served, since the generation began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// Finished; svd's own probes do not count.
    pub requests: u64,
    /// Answered with a status of 500 to 599.
    pub errors_5xx: u64,
    /// Open for longer than the service's timeout, now.
    pub overdue: u64,
    /// Workers that died with requests open.
    pub died_open: u64,
    /// Of the last minute; `None` when there was no request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<Latency>,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

/// A line while a long operation goes on: `{"progress": {…}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// RFC 3339.
    pub time: Box<str>,
    /// `None`: about the host as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Box<str>>,
    /// A word that programs may compare: `starting`, `ready`, `commit`, `drain`, `stopped` …
    pub step: Box<str>,
    /// A sentence for people.
    pub message: Box<str>,
    /// Lines that were left out before this one, because the client did not read fast enough.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
}

impl Progress {
    pub fn now(service: Option<&str>, step: &str, message: impl Into<Box<str>>) -> Progress {
        Progress {
            time: rfc3339(SystemTime::now()),
            service: service.map(Into::into),
            step: step.into(),
            message: message.into(),
            dropped: 0,
        }
    }
}

/// Result of a verb that acts on services: one entry for each, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ActionResult {
    pub services: Vec<ServiceResult>,
}

/// What became of one service. It went well where `error` is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceResult {
    pub service: Box<str>,
    pub ok: bool,
    /// Whether anything was done (`start` of a running service does nothing and is `ok`).
    pub changed: bool,
    /// `started with pid 812`, `already running`; the last sentence of the operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ServiceState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

impl ServiceResult {
    /// It went well; `changed` says whether anything was done.
    pub fn done(service: &str, changed: bool, message: impl Into<Box<str>>) -> ServiceResult {
        ServiceResult {
            service: service.into(),
            ok: true,
            changed,
            message: Some(message.into()),
            state: None,
            generation: None,
            release: None,
            error: None,
        }
    }

    pub fn failed(service: &str, error: ApiError) -> ServiceResult {
        ServiceResult {
            service: service.into(),
            ok: false,
            changed: false,
            message: None,
            state: None,
            generation: None,
            release: None,
            error: Some(error),
        }
    }
}

/// What an `update` does, or would do, to one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    Add,
    Remove,
    /// The process stays; a log limit or a timeout is another.
    Adjust,
    /// A new generation.
    Reload,
    /// Stop and start.
    Restart,
}

impl ChangeAction {
    pub fn as_str(self) -> &'static str {
        match self {
            ChangeAction::Add => "add",
            ChangeAction::Remove => "remove",
            ChangeAction::Adjust => "adjust",
            ChangeAction::Reload => "reload",
            ChangeAction::Restart => "restart",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub service: Box<str>,
    pub action: ChangeAction,
    /// Keys whose meaning differs: `command`, `logs.max_size`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Box<str>>,
}

/// Result of `update`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpdateResult {
    /// Whether anything differed. With `dry_run`: whether anything would be done.
    pub changed: bool,
    pub dry_run: bool,
    pub changes: Vec<Change>,
    /// What became of the services that were touched; empty in a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceResult>,
    /// Sentences about what an update cannot change while svd runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Box<str>>,
}

/// Answer to `GET /v1/services/NAMES/pid`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PidList {
    pub services: Vec<PidEntry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PidEntry {
    pub service: Box<str>,
    /// Of the committed generation's workers, in their order; empty when it is not running.
    pub pids: Vec<u32>,
}

/// Something that happened. `GET /v1/events`: one a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339.
    pub time: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Box<str>>,
    /// A word that programs may compare: `state`, `worker_exit`, `health`, `log_dropped` …
    pub event: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ServiceState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<u32>,
    /// A sentence for people.
    pub message: Box<str>,
}

/// Answer to `GET /v1/version`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Of svd.
    pub version: Box<str>,
    pub pid: u32,
    /// RFC 3339: since when svd runs.
    pub since: Box<str>,
    pub since_seconds: u64,
    /// Number of services.
    pub services: u64,
    /// What this host's kernel lacks, and what that costs; sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limitations: Vec<Box<str>>,
}

/// Body of `/health` on the public address: 200 where `ok`, else 503.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostHealth {
    /// Every enabled service is running and none of them is drained.
    pub ok: bool,
    /// Enabled ones.
    pub services: u64,
    /// Names of enabled services that are not running, or drained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_ok: Vec<Box<str>>,
}

impl HostHealth {
    pub fn of(services: &[ServiceStatus]) -> HostHealth {
        let mut health = HostHealth { ok: true, services: 0, not_ok: Vec::new() };
        for service in services.iter().filter(|s| s.enabled) {
            health.services += 1;
            if !service.takes_traffic() {
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
    pub traffic: Option<Traffic>,
}

impl ServiceHealth {
    pub fn of(status: &ServiceStatus) -> ServiceHealth {
        let running = |w: &&WorkerStatus| w.state == WorkerState::Running;
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

/// What `/metrics` is made of. See [`super::metrics::render`].
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

/// Why a request failed. Programs compare `code`; people read `message` and `hint`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    /// What happened, to what, why: one or more sentences.
    pub message: Box<str>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<Box<str>>,
    /// Errors of the configuration, each with file and line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<Box<str>>,
    /// Last lines of what failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_output: Vec<Box<str>>,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<Box<str>>) -> ApiError {
        ApiError { code, message: message.into(), hint: None, details: Vec::new(), last_output: Vec::new() }
    }

    pub fn hint(mut self, hint: impl Into<Box<str>>) -> ApiError {
        self.hint = Some(hint.into());
        self
    }

    pub fn details(mut self, details: Vec<Box<str>>) -> ApiError {
        self.details = details;
        self
    }

    pub fn last_output(mut self, lines: Vec<Box<str>>) -> ApiError {
        self.last_output = lines;
        self
    }
}

/// The kinds of failure; also the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed. 400.
    BadRequest,
    /// The access rules do not allow it. 403.
    Forbidden,
    /// There is no such path. 404.
    UnknownRoute,
    /// There is no service of that name. 404.
    UnknownService,
    /// There is no such release. 404.
    UnknownRelease,
    /// 405.
    MethodNotAllowed,
    /// It does not fit what is going on now: a stop came during the reload. 409.
    Conflict,
    /// It needs a running service. 409.
    NotRunning,
    /// 413.
    TooLarge,
    /// The configuration has errors; nothing was changed. 422.
    BadConfiguration,
    /// It was tried and did not work: the new generation died, the signal could not be sent. 500.
    Failed,
    /// svd did something that it should not. 500.
    Internal,
    /// 501.
    NotImplemented,
    /// Too many connections or requests, or svd is about to end; try again. 503.
    Unavailable,
    /// It took too long. 504.
    Timeout,
    /// A code of a newer svd.
    #[serde(other)]
    Other,
}

impl ErrorCode {
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "bad_request",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::UnknownRoute => "unknown_route",
            ErrorCode::UnknownService => "unknown_service",
            ErrorCode::UnknownRelease => "unknown_release",
            ErrorCode::MethodNotAllowed => "method_not_allowed",
            ErrorCode::Conflict => "conflict",
            ErrorCode::NotRunning => "not_running",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::BadConfiguration => "bad_configuration",
            ErrorCode::Failed => "failed",
            ErrorCode::Internal => "internal",
            ErrorCode::NotImplemented => "not_implemented",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Timeout => "timeout",
            ErrorCode::Other => "other",
        }
    }

    pub fn http_status(self) -> u16 {
        match self {
            ErrorCode::BadRequest => 400,
            ErrorCode::Forbidden => 403,
            ErrorCode::UnknownRoute | ErrorCode::UnknownService | ErrorCode::UnknownRelease => 404,
            ErrorCode::MethodNotAllowed => 405,
            ErrorCode::Conflict | ErrorCode::NotRunning => 409,
            ErrorCode::TooLarge => 413,
            ErrorCode::BadConfiguration => 422,
            ErrorCode::Failed | ErrorCode::Internal | ErrorCode::Other => 500,
            ErrorCode::NotImplemented => 501,
            ErrorCode::Unavailable => 503,
            ErrorCode::Timeout => 504,
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}
