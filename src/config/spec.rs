//! What the files say, validated: plain data, compared to decide what an update touches.
//!
//! A value here is complete: defaults are filled in, names are checked, durations are durations. What depends on the
//! host at run time (users, directories, the release that `current` names) is still text or a [`Template`].

mod limits;

pub use limits::{CpuList, Io, Limits, Resource, Rlimit};

use super::capability::Capability;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Text with placeholders (`{release}/app.jar`), kept as written; its placeholders are known to be valid.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Template(pub Box<str>);

/// The whole configuration: `svd.toml` and every file of `conf.d`.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Config {
    pub daemon: Daemon,
    /// By name, which is the file's name without `.toml`. Shared: a generation keeps the one it was started with.
    pub services: BTreeMap<Box<str>, Arc<Service>>,
    /// What is allowed and hardly meant.
    #[serde(skip)]
    pub warnings: Vec<super::Diagnostic>,
}

/// `svd.toml`.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Daemon {
    /// `[http] listen`: read-only health and metrics; none by default.
    pub http: Option<SocketAddr>,
    pub control: Control,
    pub access: Vec<AccessRule>,
}

/// `[control]`: the UNIX socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// Permission bits of the socket; default 0600; 0666 for root with access rules, which decide who may what.
    pub mode: Option<u32>,
    pub group: Option<Box<str>>,
    /// Connections that one user may hold at once; root has some kept free beyond them.
    pub connections_per_user: u32,
}

impl Default for Control {
    fn default() -> Self {
        Control { mode: None, group: None, connections_per_user: 64 }
    }
}

/// `[[access]]`: who may do what to which services. Root and svd's own user may do everything; anybody else nothing
/// but what a rule grants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AccessRule {
    pub users: Vec<Box<str>>,
    pub groups: Vec<Box<str>>,
    /// `status`, `logs`, `start` … or `*` (all but `exec` and `upgrade`, which must be named).
    pub verbs: Vec<Box<str>>,
    /// Names with `*`.
    pub services: Vec<Box<str>>,
}

/// As a service's `user`: a user that no other service and no account has.
pub const AUTO_USER: &str = "auto";

/// One file of `conf.d`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub name: Arc<str>,
    pub kind: Kind,
    /// Where the releases are; the directory of svd's configuration is never assumed.
    pub root: Option<PathBuf>,
    /// `None`: svd's own user. [`AUTO_USER`]: one of its own.
    pub user: Option<Box<str>>,
    /// `None`: the user's primary group.
    pub group: Option<Box<str>>,
    /// Supplementary groups, beside those of the user.
    #[serde(default)]
    pub groups: Vec<Box<str>>,
    /// Default `{release}` where there is a root, else `/`.
    pub directory: Option<Template>,
    /// What the service sees as `/`.
    #[serde(default)]
    pub chroot: Option<PathBuf>,
    pub umask: Option<u32>,
    pub after: Vec<Box<str>>,
    pub requires: Vec<Box<str>>,
    /// In the order of the file. At most one for a JVM.
    pub sockets: Vec<Socket>,
    pub environment: Vec<(Box<str>, Template)>,
    /// Files with `NAME=value` lines, read at each start of a generation; a leading `-` in the file allows its absence.
    pub environment_files: Vec<Template>,
    #[serde(default)]
    pub secrets: Vec<Secret>,
    /// `instances`: workers of a plain command (1 for gunicorn and the JVM).
    pub instances: u32,
    /// `autostart`: started when svd starts.
    pub autostart: bool,
    /// Shared, as `restart`: most services have the same.
    pub ready: Arc<Ready>,
    pub health: Option<Box<Health>>,
    pub reload: Reload,
    pub stop: Stop,
    pub restart: Arc<Restart>,
    #[serde(default)]
    pub limits: Arc<Limits>,
    pub logs: Logs,
    pub counts: Counts,
    /// Where the file has the section; nothing is isolated else.
    #[serde(default)]
    pub isolation: Option<Box<Isolation>>,
    /// Where the file has the section. [`Deploy::standard`] holds else.
    #[serde(default)]
    pub deploy: Option<Box<Deploy>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Kind {
    Gunicorn { app: Template, python: Option<Template>, workers: Workers, args: Vec<Template> },
    Jvm { program: JvmProgram, java: Java, args: Vec<Template> },
    Command { command: Vec<Template> },
}

/// Gunicorn's own workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Workers {
    /// Not given: gunicorn's configuration decides.
    Unset,
    /// `"auto"`: 2 × cores + 1, as gunicorn's documentation advises.
    Auto,
    Count(u32),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JvmProgram {
    Jar(Template),
    Main { class: Template, classpath: Vec<Template> },
}

/// `[java]`
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
pub struct Java {
    /// `None`: the `java` that is in `PATH`.
    pub home: Option<Template>,
    pub options: Vec<Template>,
}

/// One of `[secrets]`: never its value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Secret {
    pub name: Box<str>,
    pub from: SecretFrom,
    pub to: SecretTo,
    /// How often svd looks whether it has changed.
    pub every: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretFrom {
    File(PathBuf),
    /// Its output; run as svd itself.
    Command(Vec<Template>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecretTo {
    Variable,
    File,
}

/// `[sockets.NAME]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Socket {
    pub name: Box<str>,
    pub listen: Listen,
    /// Length of the accept queue; default 2048 (the kernel caps it at `net.core.somaxconn`).
    pub backlog: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix { path: PathBuf, mode: u32, owner: Option<Box<str>>, group: Option<Box<str>> },
}

/// `[ready]`: every way has the timeout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ready {
    pub timeout: Duration,
    /// In addition to what the kind itself knows (gunicorn's workers have booted).
    pub by: Vec<ReadyBy>,
}

/// All that are given must hold.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ReadyBy {
    /// `notify = true`: `READY=1` on `NOTIFY_SOCKET`.
    Notify,
    /// `descriptor = true`: a line (or end of file after at least one byte) on the descriptor `{fd.ready}`.
    Descriptor,
    /// `probe = { … }`.
    Http(HttpProbe),
    /// `tcp = "127.0.0.1:{port}"`.
    Tcp(Template),
    /// `command = [ … ]`, repeated until it exits 0, as the service's user.
    Command(Vec<Template>),
    /// `log = "text"`: a line of output that contains it.
    Log(Box<str>),
    /// `delay = "2s"`: still up after that long.
    Delay(Duration),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HttpProbe {
    pub path: Template,
    /// `Host` header; default `localhost`.
    pub host: Option<Template>,
    /// A private port on 127.0.0.1 (`{port}`); default: the service's first socket.
    pub port: Option<Template>,
    pub headers: Vec<(Box<str>, Template)>,
    /// Accepted statuses; default 200 to 399.
    pub expect: Expect,
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// Any status from 200 to 399.
    Success,
    OneOf(Vec<u16>),
}

/// `[health]`: while the service runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// [`ReadyBy::Http`], [`ReadyBy::Tcp`] or [`ReadyBy::Command`] only; none when only the watchdog is on.
    pub by: Option<ReadyBy>,
    /// How long a TCP or command check may take; an HTTP probe has a limit of its own. Default 5 s.
    pub timeout: Duration,
    pub interval: Duration,
    /// Consecutive failures before the action.
    pub failures: u32,
    pub action: HealthAction,
    /// `watchdog = "30s"`: `WATCHDOG=1` must come at least that often.
    pub watchdog: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthAction {
    Report,
    Restart,
}

/// `[reload]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reload {
    /// Default: true where the service has sockets, else false.
    pub overlap: bool,
    /// How long an old generation may finish its requests.
    pub drain: Duration,
    /// Old generations that may drain at once; default 10.
    pub max_draining: u32,
}

/// `[stop]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Signal number.
    pub signal: i32,
    /// `None` only for gunicorn: its own `graceful_timeout` plus 5 s, learned at boot (35 s until then).
    pub grace: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    Always,
    OnFailure,
    Never,
}

/// `[restart]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restart {
    pub policy: Policy,
    /// Before the first retry after a failure within `settled` of its start, or before it was ready; doubles with jitter up to `max_delay`.
    pub delay: Duration,
    pub max_delay: Duration,
    /// A worker that was ready, and up at least that long, is replaced at once.
    pub settled: Duration,
    pub limit: Limit,
    /// Exit codes that count as success beside 0 (`success = [0, 3]`).
    pub success: Vec<i32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    pub failures: u32,
    pub within: Duration,
    /// Tried again after this long; `None`: `then = "never"`.
    pub then: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stderr {
    /// One file, in the order of writing (the default).
    Join,
    /// A file of its own.
    Apart,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFormat {
    /// The bytes as the service wrote them (the default).
    Raw,
    /// Each line prefixed by an RFC 3339 UTC time.
    Timestamps,
    /// Each line an object with time, service, generation, worker, stream and message.
    Json,
}

/// `[logs]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Logs {
    /// `false`: the output goes to /dev/null.
    pub capture: bool,
    pub stderr: Stderr,
    pub format: LogFormat,
    /// Bytes; 0 turns rotation by size off.
    pub max_size: u64,
    /// `None`: no rotation by age.
    pub max_age: Option<Duration>,
    /// Rotated files kept.
    pub keep: u32,
    pub compress: bool,
}

/// `[counts]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// svd takes the generation's counts as statsd datagrams. Never for gunicorn, whose launcher counts.
    pub statsd: bool,
}

/// `[isolation]`, as written: where a key is `None`, the profile says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    pub profile: Profile,
    /// Keys that a kernel without the feature need not keep.
    pub optional: Vec<Box<str>>,
    pub private_tmp: Option<bool>,
    pub read_only: Option<Vec<Template>>,
    /// In addition to the profile's.
    pub writable: Vec<Template>,
    pub hidden: Option<Vec<Template>>,
    pub bind: Vec<Bind>,
    pub private_devices: Option<bool>,
    pub private_pids: Option<bool>,
    pub network: Option<Network>,
    /// All that the service can ever have; it has them from the beginning. Sorted.
    pub capabilities: Option<Vec<Capability>>,
    pub no_new_privileges: Option<bool>,
    /// Empty: no filter.
    pub syscalls: Option<Vec<SyscallRule>>,
    pub landlock: Option<bool>,
}

/// A bundle of isolation, documented under `[isolation]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    #[default]
    None,
    Standard,
    Strict,
}

/// `bind = { "/target" = "/source:ro" }`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Where the service sees it.
    pub target: Box<str>,
    pub source: Template,
    pub read_only: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    #[default]
    Host,
    /// Nothing but the sockets that svd hands over.
    None,
    /// A loopback of its own.
    Loopback,
}

/// `"@service"`, `"~mount"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyscallRule {
    pub allow: bool,
    /// A system call, or a group with its `@`.
    pub name: Box<str>,
}

/// `[deploy]`: how a release gets onto this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deploy {
    pub build: Build,
    pub build_on: BuildOn,
    /// Paths inside the release: what a virtual environment is made from, and named after.
    pub requirements: Vec<Box<str>>,
    /// What makes it; default `python3` from `PATH`.
    pub python: Option<Template>,
    /// Paths inside each release that are links into `ROOT/shared`.
    pub shared: Vec<Box<str>>,
    /// Releases that are kept, beside those that are needed.
    pub keep: u32,
    /// How long a copy of the old release stays booted behind the gate.
    pub standby: Option<Duration>,
    /// Before anything else is done with the new release.
    pub before: Option<Step>,
    pub verify: Option<Step>,
    pub migrate: Option<Migrate>,
    /// When all waves have passed.
    pub migrate_after: Option<Migrate>,
    pub static_files: Option<Step>,
    /// When the release is confirmed.
    pub after: Option<Step>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Build {
    /// A virtual environment where there are requirements; nothing for a JVM.
    #[default]
    Auto,
    Nothing,
    Command(Vec<Template>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BuildOn {
    /// Every host builds.
    #[default]
    Hosts,
    /// The machine that deploys does, and ships the result.
    Here,
}

/// A command that runs in the new release, as the service's user, in its environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    pub command: Vec<Template>,
    /// `None`: it may take as long as it takes.
    pub timeout: Option<Duration>,
    /// Only where one of these paths differs from the release that runs; empty: always.
    pub when_changed: Vec<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrate {
    pub step: Step,
    /// Exits with 0 when there is nothing to do; empty: there always is.
    pub pending: Vec<Template>,
    pub on: StepOn,
    /// The old code works with the new schema.
    pub compatible: bool,
    /// Undoes it; only ever by hand.
    pub down: Vec<Template>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepOn {
    /// Once a rollout, on one host.
    #[default]
    One,
    EachHost,
}

impl Service {
    /// What `[ready]` and `[health]` ask.
    pub fn checks(&self) -> impl Iterator<Item = &ReadyBy> {
        self.ready.by.iter().chain(self.health.iter().filter_map(|h| h.by.as_ref()))
    }

    /// Does a check connect to a port, and not to one of its sockets?
    pub fn has_check_of_port(&self) -> bool {
        self.checks().any(|check| match check {
            ReadyBy::Tcp(address) => address.0.parse().map_or(true, |address| !self.listens_at(address)),
            ReadyBy::Http(probe) => probe.port.is_some(),
            _ => false,
        })
    }

    /// Is that one of its sockets, which svd has bound?
    pub fn listens_at(&self, address: SocketAddr) -> bool {
        self.sockets.iter().any(|socket| match &socket.listen {
            Listen::Tcp(own) => own.port() == address.port() && (own.ip() == address.ip() || own.ip().is_unspecified()),
            Listen::Unix { .. } => false,
        })
    }

    /// Takes what is equal from another one, so that both have it once.
    pub fn share(&mut self, other: &Service) {
        if self.ready == other.ready {
            self.ready = Arc::clone(&other.ready);
        }
        if self.restart == other.restart {
            self.restart = Arc::clone(&other.restart);
        }
        if self.limits == other.limits {
            self.limits = Arc::clone(&other.limits);
        }
    }

    /// Does a new process run beside the old one while it is replaced?
    pub fn overlaps(&self) -> bool {
        self.reload.overlap
    }
}
