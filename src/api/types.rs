//! What is said over the control socket: plain data, written as JSON with `snake_case` names.
//!
//! Times are RFC 3339 in UTC; each `since` has a `since_seconds` beside it, so that nobody needs a clock that agrees
//! with the host's. Absent values are left out. Fields are only ever added: readers ignore what they do not know.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

pub use super::configuration::Configuration;
pub use super::error::{ApiError, ErrorCode};
pub use super::health::{GenerationHealth, HostHealth, MetricsSnapshot, ServiceHealth, SvdMetric};
pub use super::inspected::{Has, Inspected, Inspection};
pub use super::results::{
    ActionResult, Change, ChangeAction, ExecResult, ProcessStatus, ProcessesStatus, Progress, ServiceResult,
    UpdateResult, UpgradeResult,
};

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
    /// What a newer svd says, and this svctl does not know. svd never says it.
    #[serde(other)]
    Unknown,
}

impl ServiceState {
    /// What svd says.
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
            ServiceState::Unknown => "unknown",
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
    /// What a newer svd says. svd never says it.
    #[serde(other)]
    Unknown,
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
    /// Workers that run beside the first (instances of a command).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub further_workers: u64,
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
    /// Of all processes of the committed generation, what they have in common counted once; only where one service is asked
    /// for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Whom it runs as, where that is not svd's own user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<UserStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UserStatus {
    pub name: Box<str>,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary ones.
    pub groups: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    Starting,
    Running,
    /// It says so itself (`RELOADING=1`), and serves meanwhile.
    Reloading,
    Stopping,
    /// Waits for its next start.
    Backoff,
    Ended,
    /// What a newer svd says. svd never says it.
    #[serde(other)]
    Unknown,
}

impl WorkerState {
    pub fn as_str(self) -> &'static str {
        match self {
            WorkerState::Starting => "starting",
            WorkerState::Running => "running",
            WorkerState::Reloading => "reloading",
            WorkerState::Stopping => "stopping",
            WorkerState::Backoff => "backoff",
            WorkerState::Ended => "ended",
            WorkerState::Unknown => "unknown",
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

/// One of gunicorn's own workers, below the master that svd has started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GunicornWorker {
    pub pid: u32,
    /// `starting`: it boots, or its probe has not been answered yet.
    pub state: WorkerState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_seconds: Option<u64>,
    /// Finished; absent where it is not counted, as more than 255 live at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors_5xx: Option<u64>,
    /// Requests that it is answering now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<u64>,
    /// Of the last minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<Latency>,
    /// Its own and its share of what it has in common with others; only where one service is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

impl GunicornWorker {
    /// One of which nothing else is known.
    pub fn bare(pid: u32, state: WorkerState) -> GunicornWorker {
        GunicornWorker {
            pid,
            state,
            since_seconds: None,
            requests: None,
            errors_5xx: None,
            open: None,
            latency_ms: None,
            memory_bytes: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationRole {
    /// Boots; it is not known yet whether it is good.
    Candidate,
    /// Serves.
    Committed,
    /// A copy of what served before: booted, it answers nobody, and can take over at once.
    Standby,
    /// A part of a new generation: serves beside the committed one, until its answers are judged.
    Canary,
    /// Finishes its requests.
    Draining,
    /// What a newer svd says. svd never says it.
    #[serde(other)]
    Unknown,
}

impl GenerationRole {
    pub fn as_str(self) -> &'static str {
        match self {
            GenerationRole::Candidate => "candidate",
            GenerationRole::Committed => "committed",
            GenerationRole::Standby => "standby",
            GenerationRole::Canary => "canary",
            GenerationRole::Draining => "draining",
            GenerationRole::Unknown => "unknown",
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
    /// Of a standby or a canary: in so many seconds it is given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends_seconds: Option<u64>,
    pub workers: Vec<WorkerStatus>,
    /// Gunicorn's own workers that are ready, below the one process that svd has started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gunicorn_workers: Option<u64>,
    /// Each of gunicorn's own workers, those that boot or leave included; not more than 512.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gunicorn: Vec<GunicornWorker>,
    /// Where requests of this generation are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    Healthy,
    Unhealthy,
    /// No check has been made yet; or what a newer svd says.
    #[serde(other)]
    Unknown,
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
    /// Of the finished ones, those that took at least 65.536 ms, 131.072 ms, and so on, each time twice as long; `None`
    /// where a generation that an older svd has started does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow: Option<[u64; SLOW_COUNT]>,
    /// Datagrams with counts, anybody's, that were lost since the generation began; only where statsd counts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost_datagrams: u64,
    /// Some of them within the last minute: these numbers may be too small.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unreliable: bool,
}

/// Of [`Traffic::slow`].
pub const SLOW_COUNT: usize = 11;

/// How long the requests of [`Traffic::slow`] took at least, by their place.
pub fn slow_bound(place: usize) -> Duration {
    Duration::from_micros(65_536 << place.min(SLOW_COUNT - 1))
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    /// 0: an older svd does not say.
    #[serde(default)]
    pub p95: f64,
    pub p99: f64,
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
    /// Differs each time that svd is executed: after an upgrade, and after a death.
    #[serde(default)]
    pub image: u64,
    /// Why an older version runs than the one that was to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Box<str>>,
    /// Number of services.
    pub services: u64,
    /// The directory of `svd.toml` and `conf.d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Box<str>>,
    /// What this host's kernel lacks, and what that costs; sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub limitations: Vec<Box<str>>,
}

/// A place in a log that stays valid when files are rotated, compressed or svd is restarted: `FILE.OFFSET`.
///
/// Bytes received may be added to `offset` without a look at where files end: svd carries over what is beyond the end of
/// a file into the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPosition {
    /// Files of a log are numbered upward.
    pub file: u64,
    /// Bytes from its beginning.
    pub offset: u64,
}

impl std::fmt::Display for LogPosition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.file, self.offset)
    }
}

impl std::str::FromStr for LogPosition {
    type Err = ();

    fn from_str(text: &str) -> Result<LogPosition, ()> {
        let (file, offset) = text.split_once('.').ok_or(())?;
        Ok(LogPosition { file: file.parse().map_err(drop)?, offset: offset.parse().map_err(drop)? })
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

pub(super) fn is_zero(value: &u64) -> bool {
    *value == 0
}
