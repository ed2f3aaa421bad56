//! What a fleet file says, complete and checked.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::fleet::verdict;
use crate::fleet::waves::Wave;

/// Everything that `fleet.toml` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fleet {
    /// The file; paths in it are relative to its directory.
    pub path: PathBuf,
    /// In the order of the file, then of the command that lists hosts. Each name once.
    pub hosts: Vec<Host>,
    /// Names of hosts, in the fleet's order.
    pub groups: BTreeMap<Box<str>, Vec<Box<str>>>,
    pub apps: BTreeMap<Box<str>, App>,
    /// For ssh's `-F`; absolute where [`Fleet::path`] is.
    pub ssh_config: Option<PathBuf>,
    /// For a connection to a host.
    pub connect_timeout: Option<Duration>,
}

impl Fleet {
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| &*host.name == name)
    }

    /// What relative paths in the file begin at.
    pub fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        }
    }
}

/// Where a svd runs, and how it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// What people call it.
    pub name: Box<str>,
    /// What ssh is given, where that is not the name: `deploy@10.1.0.13`.
    pub ssh: Option<Box<str>>,
    pub user: Option<Box<str>>,
    pub port: Option<u16>,
    /// svd's control socket there, where it is not the usual one.
    pub socket: Option<PathBuf>,
    /// The program there, where it is not in the `PATH` of a command over ssh.
    pub svctl: Option<Box<str>>,
    /// This very machine: no ssh.
    pub local: bool,
}

impl Host {
    /// One that nothing is said of but its name.
    pub fn named(name: &str) -> Host {
        Host { name: name.into(), ..Host::default() }
    }

    /// What ssh is given.
    pub fn destination(&self) -> &str {
        self.ssh.as_deref().unwrap_or(&self.name)
    }
}

/// What is deployed together: one release, lock, migration, verdict and rollback.
#[derive(Clone, Debug, PartialEq)]
pub struct App {
    pub name: Box<str>,
    pub source: Source,
    /// In the order of the file.
    pub services: Vec<Box<str>>,
    /// Names, in the fleet's order; at least one.
    pub hosts: Vec<Box<str>>,
    /// Patterns of what in the repository concerns this app; empty: all of it.
    pub paths: Vec<Box<str>>,
    /// What this machine builds before files are sent.
    pub build: Option<BuildHere>,
    /// Cumulative; the last one is all hosts.
    pub waves: Vec<Wave>,
    pub bake: Duration,
    /// Hosts at once.
    pub parallel: u32,
    /// Hosts that may be away.
    pub max_unreachable: u32,
    pub lease: Duration,
    pub verdict: verdict::Settings,
    /// What requests and errors are taken from; `None`: svd's own counts.
    pub prometheus: Option<Prometheus>,
    pub hooks: Hooks,
}

/// When somebody is told of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Occasion {
    Start,
    /// A wave is about to be switched.
    Wave,
    /// It waits for somebody's decision.
    Paused,
    /// Releases are about to be taken back.
    Rollback,
    Success,
    Failure,
}

impl Occasion {
    pub const ALL: [Occasion; 6] =
        [Occasion::Start, Occasion::Wave, Occasion::Paused, Occasion::Rollback, Occasion::Success, Occasion::Failure];

    pub fn as_str(self) -> &'static str {
        match self {
            Occasion::Start => "start",
            Occasion::Wave => "wave",
            Occasion::Paused => "paused",
            Occasion::Rollback => "rollback",
            Occasion::Success => "success",
            Occasion::Failure => "failure",
        }
    }
}

/// How somebody is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A program and its arguments, which finds JSON on its standard input.
    Command(Vec<Box<str>>),
    /// An address that JSON is posted to.
    Webhook(Box<str>),
}

/// Who is told of an app's rollouts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hooks {
    pub on: BTreeMap<Occasion, Hook>,
    /// Whatever it is.
    pub every: Option<Hook>,
    /// Each has so long.
    pub timeout: Duration,
}

impl Hooks {
    pub fn is_empty(&self) -> bool {
        self.on.is_empty() && self.every.is_none()
    }

    /// What decides whether a deploy begins.
    pub fn asked(&self) -> Option<&Hook> {
        self.on.get(&Occasion::Start).filter(|hook| matches!(hook, Hook::Command(_)))
    }

    /// In the order in which they are told.
    pub fn of(&self, occasion: Occasion) -> impl Iterator<Item = &Hook> {
        self.on.get(&occasion).into_iter().chain(&self.every)
    }
}

/// What the deploying machine builds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildHere {
    /// Wheels of all requirements, which hosts install environments from.
    Wheels,
    /// Run in the release's files.
    Command(Vec<Box<str>>),
}

/// `verdict = { prometheus = { … } }`. `{host}` and `{release}` stand for those that are asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prometheus {
    /// Of its HTTP interface, without `/api`.
    pub url: Box<str>,
    /// Queries whose results are counters.
    pub requests: Box<str>,
    pub errors: Box<str>,
    /// From one look to the next.
    pub every: Duration,
}

/// Where releases come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Git {
        repository: Box<str>,
        /// What is shipped unless `--ref` says something else.
        branch: Box<str>,
        /// Where work comes together before it is pushed to `branch`; `None`: the repository's own default branch.
        trunk: Option<Box<str>>,
        /// Refuse commits that are not on the branch.
        only_branch: bool,
        /// Leave a tag behind for each deploy; whoever may only read cannot.
        tag: bool,
    },
    /// A file that is built elsewhere, relative to the fleet file.
    Artifact(PathBuf),
}
