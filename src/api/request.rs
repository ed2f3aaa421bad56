//! What can be asked, as the daemon sees it. [`super::routes`] makes these from HTTP.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::access::Scope;
use super::apps::AppRequest;
use super::types::LogPosition;
use crate::config::show_signal;

/// A name of a service; before it is resolved it may have `*` in it.
pub type Name = Box<str>;

/// A request that is allowed and whose names are resolved: sorted, each once, none of them a pattern.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// [`super::types::StatusList`], or with `full` [`super::types::FullStatusList`].
    Status {
        services: Vec<Name>,
        full: bool,
    },
    /// [`super::types::ServiceStatus`].
    Service {
        name: Name,
    },
    /// Its processes, with what they use. [`super::types::ProcessesStatus`].
    Processes {
        name: Name,
    },
    /// Its settings, with where they come from. [`super::types::Configuration`].
    Configuration {
        name: Name,
    },
    /// What its processes have. [`super::types::Inspection`].
    Inspect {
        name: Name,
    },
    /// Until ready. [`super::types::ActionResult`], as for the next ones.
    Start {
        services: Vec<Name>,
    },
    /// Until nothing of them is left.
    Stop {
        services: Vec<Name>,
    },
    Restart {
        services: Vec<Name>,
    },
    Reload {
        services: Vec<Name>,
        /// `None`: what `current` names now.
        release: Option<Box<str>>,
        /// Where too many old generations drain already, end the oldest.
        force: bool,
        /// svd's own wish, when it switches releases.
        standby: Standby,
    },
    /// A few of gunicorn's workers of a new generation, which serve beside the others.
    Canary {
        services: Vec<Name>,
        /// `None`: what `current` names now.
        release: Option<Box<str>>,
        /// 0: there is to be none any more.
        workers: u32,
        /// It goes by itself then, unless somebody has decided about it.
        stay: Duration,
    },
    Enable {
        services: Vec<Name>,
    },
    Disable {
        services: Vec<Name>,
    },
    /// Out of the load balancer: `/health/NAME` turns 503.
    Drain {
        services: Vec<Name>,
    },
    Undrain {
        services: Vec<Name>,
    },
    Scale {
        services: Vec<Name>,
        /// At least 1.
        count: u32,
    },
    Signal {
        services: Vec<Name>,
        /// 1 to 64.
        signal: i32,
        /// `None`: all workers of the committed generation.
        worker: Option<u32>,
    },
    /// [`super::types::PidList`].
    Pid {
        services: Vec<Name>,
    },
    /// Bytes by [`super::Reply::stream`].
    Logs(LogsRequest),
    /// [`super::types::Event`], one a line, by [`super::Reply::stream`].
    Events(EventsRequest),
    /// Reads the configuration again. [`super::types::UpdateResult`].
    Update {
        /// Says what would be done.
        dry_run: bool,
    },
    /// Runs a command as a service's user, in its environment; its output comes as progress. One service.
    /// [`super::types::ExecResult`].
    Exec {
        services: Vec<Name>,
        what: ExecRequest,
    },
    /// Goes on with another program. [`super::types::UpgradeResult`].
    Upgrade {
        /// `None`: the file that svd was started from, as it is now.
        binary: Option<PathBuf>,
        /// Also where a step of a deploy runs, which ends with it.
        force: bool,
    },
    /// Of the releases of an app.
    App {
        name: Name,
        ask: AppRequest,
    },
    /// [`super::types::Version`].
    Version,
    /// Stops everything in order, then svd.
    Shutdown {
        /// Also where a step of a deploy runs, which ends with it.
        force: bool,
    },
    /// Of the public address, by [`super::Reply::health`]: of the host, or of one service (which may be unknown).
    PublicHealth {
        name: Option<Name>,
    },
    /// Of the public address, by [`super::Reply::metrics`].
    Metrics,
}

/// What a reload has to do with copies of earlier releases that wait for a way back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standby {
    #[default]
    Nothing,
    /// One of what is replaced is to be kept for so long.
    Keep(Duration),
    /// If there is one of the release, it takes over.
    Recall,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogsRequest {
    pub name: Name,
    /// Goes on until the client leaves.
    pub follow: bool,
    /// The last so many lines; `None` with `since` or `from`: all of them from there.
    pub lines: Option<u64>,
    pub since: Option<SystemTime>,
    /// To go on after a lost connection (see [`super::Reply::stream`]).
    pub from: Option<LogPosition>,
    /// The file of its own that stderr has, where it is apart.
    pub stderr: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ExecRequest {
    pub command: Vec<String>,
    /// Whether it runs or not; `None`: what runs, or would.
    pub release: Option<Box<str>>,
    /// With what the client types; `None`: only its output is wanted.
    pub session: Option<SessionWanted>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SessionWanted {
    /// `None`: the client's own input and outputs are none.
    pub terminal: Option<TerminalWanted>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalWanted {
    pub columns: u16,
    pub rows: u16,
    /// As in `$TERM`; empty: not known.
    #[serde(default)]
    pub kind: Box<str>,
}

impl TerminalWanted {
    /// Could the kind be one? It becomes a variable of a command that may be root's.
    pub fn is_plausible(&self) -> bool {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-+._".contains(&byte);
        self.kind.len() <= 64 && self.kind.bytes().all(fits)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct EventsRequest {
    /// Goes on until the client leaves; without it: the latest that svd remembers.
    pub follow: bool,
    /// Which services' events; those of the host as a whole go to everyone.
    pub scope: Scope,
}

/// What access rules grant. One word may cover several requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    /// `status`, `pid`, `events`, `is-active`.
    Status,
    Logs,
    /// The settings of a service, and what its processes have.
    Inspect,
    Start,
    Stop,
    Restart,
    Reload,
    Update,
    Enable,
    Disable,
    /// And `undrain`.
    Drain,
    Scale,
    Signal,
    Shutdown,
    /// Not covered by `*`.
    Exec,
    /// Root's; not covered by `*`.
    Upgrade,
    /// Brings releases here and switches to them: code of one's own choice runs as the service's user. Not covered by `*`.
    Deploy,
    /// Anyone who may connect.
    Version,
}

impl Verb {
    pub const ALL: [Verb; 18] = [
        Verb::Status,
        Verb::Logs,
        Verb::Inspect,
        Verb::Start,
        Verb::Stop,
        Verb::Restart,
        Verb::Reload,
        Verb::Update,
        Verb::Enable,
        Verb::Disable,
        Verb::Drain,
        Verb::Scale,
        Verb::Signal,
        Verb::Shutdown,
        Verb::Exec,
        Verb::Upgrade,
        Verb::Deploy,
        Verb::Version,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Status => "status",
            Verb::Logs => "logs",
            Verb::Inspect => "inspect",
            Verb::Start => "start",
            Verb::Stop => "stop",
            Verb::Restart => "restart",
            Verb::Reload => "reload",
            Verb::Update => "update",
            Verb::Enable => "enable",
            Verb::Disable => "disable",
            Verb::Drain => "drain",
            Verb::Scale => "scale",
            Verb::Signal => "signal",
            Verb::Shutdown => "shutdown",
            Verb::Exec => "exec",
            Verb::Upgrade => "upgrade",
            Verb::Deploy => "deploy",
            Verb::Version => "version",
        }
    }

    pub fn from_name(name: &str) -> Option<Verb> {
        Verb::ALL.into_iter().find(|v| v.as_str() == name)
    }

    /// Concerns the host, not single services: a rule grants it only where its services are `*`.
    pub fn is_of_the_host(self) -> bool {
        matches!(self, Verb::Update | Verb::Shutdown | Verb::Upgrade | Verb::Version)
    }

    /// Changes nothing, and is not in the audit journal.
    pub fn is_read(self) -> bool {
        matches!(self, Verb::Status | Verb::Logs | Verb::Inspect | Verb::Version)
    }
}

/// Characters of a command that the audit journal keeps.
const MOST_DETAIL: usize = 1000;

/// Shared or mutable, as the request is.
macro_rules! list_of {
    ($request:expr) => {
        match $request {
            Request::Status { services, .. }
            | Request::Start { services }
            | Request::Stop { services }
            | Request::Restart { services }
            | Request::Reload { services, .. }
            | Request::Canary { services, .. }
            | Request::Enable { services }
            | Request::Disable { services }
            | Request::Drain { services }
            | Request::Undrain { services }
            | Request::Scale { services, .. }
            | Request::Signal { services, .. }
            | Request::Exec { services, .. }
            | Request::Pid { services } => Some(services),
            _ => None,
        }
    };
}

impl Request {
    pub fn verb(&self) -> Verb {
        match self {
            Request::Status { .. }
            | Request::Service { .. }
            | Request::Processes { .. }
            | Request::Pid { .. }
            | Request::Events(_)
            | Request::PublicHealth { .. }
            | Request::Metrics => Verb::Status,
            Request::Start { .. } => Verb::Start,
            Request::Stop { .. } => Verb::Stop,
            Request::Restart { .. } => Verb::Restart,
            Request::Reload { .. } | Request::Canary { .. } => Verb::Reload,
            Request::Enable { .. } => Verb::Enable,
            Request::Disable { .. } => Verb::Disable,
            Request::Drain { .. } | Request::Undrain { .. } => Verb::Drain,
            Request::Scale { .. } => Verb::Scale,
            Request::Signal { .. } => Verb::Signal,
            Request::Logs(_) => Verb::Logs,
            Request::Configuration { .. } | Request::Inspect { .. } => Verb::Inspect,
            Request::Update { .. } => Verb::Update,
            Request::Exec { .. } => Verb::Exec,
            Request::Upgrade { .. } => Verb::Upgrade,
            Request::App { ask, .. } if ask.is_read() => Verb::Status,
            Request::App { .. } => Verb::Deploy,
            Request::Version => Verb::Version,
            Request::Shutdown { .. } => Verb::Shutdown,
        }
    }

    /// Answered by lines of JSON: progress, then the result.
    pub fn has_lines(&self) -> bool {
        match self {
            Request::Events(_) => true,
            Request::Status { .. }
            | Request::Service { .. }
            | Request::Processes { .. }
            | Request::Configuration { .. }
            | Request::Inspect { .. }
            | Request::Pid { .. }
            | Request::Logs(_)
            | Request::Version
            | Request::PublicHealth { .. }
            | Request::Metrics => false,
            Request::App { ask, .. } => !ask.is_read(),
            Request::Exec { what, .. } => what.session.is_none(),
            _ => true,
        }
    }

    /// A part of a rollout that comes again and again, and changes nothing that is not in the journal of the rollout.
    pub(super) fn is_renewal(&self) -> bool {
        matches!(self, Request::App { ask: AppRequest::Renew(_) | AppRequest::Append(_), .. })
    }

    /// The list of names, where the request has one.
    pub fn services(&self) -> Option<&Vec<Name>> {
        list_of!(self)
    }

    pub(super) fn services_mut(&mut self) -> Option<&mut Vec<Name>> {
        list_of!(self)
    }

    /// The one name, where the request has exactly one.
    pub fn single_name(&self) -> Option<&str> {
        match self {
            Request::Service { name }
            | Request::Configuration { name }
            | Request::Inspect { name }
            | Request::Processes { name }
            | Request::App { name, .. } => Some(name),
            Request::Logs(logs) => Some(&logs.name),
            _ => None,
        }
    }

    /// For the audit journal: what was asked for beside names.
    pub(super) fn detail(&self) -> Box<str> {
        match self {
            Request::Reload { release, force, .. } => {
                let id = release.as_ref().map(|id| format!("release={id}"));
                let force = force.then(|| "force".to_owned());
                id.into_iter().chain(force).collect::<Vec<_>>().join(" ").into()
            }
            Request::Canary { workers: 0, .. } => "canary=none".into(),
            Request::Canary { release, workers, .. } => {
                let id = release.as_ref().map(|id| format!("release={id} ")).unwrap_or_default();
                format!("{id}canary={workers}").into()
            }
            Request::Scale { count, .. } => format!("count={count}").into(),
            Request::Signal { signal, worker: Some(worker), .. } => {
                format!("signal={} worker={worker}", show_signal(*signal)).into()
            }
            Request::Signal { signal, .. } => format!("signal={}", show_signal(*signal)).into(),
            Request::Undrain { .. } => "undrain".into(),
            Request::Exec { what: ExecRequest { command, release, session }, .. } => {
                let release = release.as_ref().map(|id| format!("release={id} ")).unwrap_or_default();
                let terminal = session.as_ref().is_some_and(|s| s.terminal.is_some());
                let terminal = if terminal { "terminal " } else { "" };
                let whole = format!("{release}{terminal}command={}", command.join(" "));
                whole.chars().take(MOST_DETAIL).collect::<String>().into()
            }
            Request::Update { dry_run: true } => "dry-run".into(),
            Request::App { ask, .. } => ask.detail(),
            Request::Upgrade { binary, force } => {
                let binary = binary.as_ref().map(|path| format!("binary={}", path.display()));
                let force = force.then(|| "force".to_owned());
                binary.into_iter().chain(force).collect::<Vec<_>>().join(" ").into()
            }
            Request::Shutdown { force: true } => "force".into(),
            _ => "".into(),
        }
    }
}

/// A point in time as a duration before now (`10m`) or RFC 3339 (`2026-11-22T18:40:00Z`).
pub fn parse_since(text: &str, now: SystemTime) -> Option<SystemTime> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Some(now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH));
    }
    if let Ok(seconds) = text.parse::<u64>() {
        let ago = Duration::from_secs(seconds);
        return Some(now.checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH));
    }
    humantime::parse_rfc3339_weak(text).ok()
}
