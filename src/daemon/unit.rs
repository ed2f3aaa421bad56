//! The daemon's side of a service, a generation and a worker: what the core decides about, held open.

use crate::api::types::HealthState;
use crate::config::spec::Service;
use crate::core::{GenerationId, OpId, Time};
use crate::daemon::logs::{PipeId, WatchId};
use crate::daemon::secrets::Secrets;
use crate::daemon::successor::Main;
use crate::kinds::{Places, environment::Login};
use crate::sys::process::Identity;
use crate::sys::sandbox::{Namespace, Sandbox};
use crate::sys::socket::{Gate, NotifySocket, SharedWords};
use crate::sys::spawn::Ids;
use crate::sys::worker::Worker;
use serde::{Deserialize, Serialize};
use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::task::JoinHandle;

/// A configured service.
pub struct Unit {
    pub spec: Arc<Service>,
    pub name: Arc<str>,
    /// Open from the first start to the stop, in the order of the file.
    pub sockets: Vec<Arc<OwnedFd>>,
    pub enabled: bool,
    /// Its file is gone; forgotten when it has stopped.
    pub removed: bool,
    /// Out of the load balancer.
    pub drained: bool,
    /// Gunicorn's workers by `svctl scale`.
    pub scaled: Option<u32>,
    /// Where the file asks for checks.
    pub health: Option<Box<Health>>,
    /// What the last committed generation had, for [`crate::core::Source::Again`].
    pub kept: Option<(u64, Rc<Plan>)>,
    /// Looks for changes of its secrets.
    pub secrets: Option<Task>,
}

pub struct Health {
    pub state: HealthState,
    pub last: Option<SystemTime>,
    pub failures: u32,
    pub message: Option<Box<str>>,
    pub task: Option<Task>,
}

impl Default for Health {
    fn default() -> Health {
        Health { state: HealthState::Unknown, last: None, failures: 0, message: None, task: None }
    }
}

impl Health {
    /// What is wrong, for the table of services.
    pub fn complaint(&self) -> Option<Box<str>> {
        let message = self.message.as_deref().filter(|_| self.state == HealthState::Unhealthy)?;
        Some(format!("unhealthy: {message}").into())
    }
}

/// Everything that a generation keeps from its beginning: the configuration and the real directories.
#[derive(Clone, Debug)]
pub struct Plan {
    pub spec: Arc<Service>,
    pub places: Places,
    pub run_as: RunAs,
    /// Of its sockets, in the order of the file. What is wrong with them is said when they are bound.
    pub owners: Result<Vec<super::sockets::Owner>, String>,
    /// The program, where it does not depend on the worker: looked for once, in the pool, as its disk may hang.
    pub program: Option<PathBuf>,
    /// From the environment files.
    pub variables: Vec<(String, String)>,
    /// What its processes are shut in.
    pub sandbox: Option<Arc<Sandbox>>,
    /// Read when all else is known; none where the file has none.
    pub secrets: Option<Arc<Secrets>>,
}

impl Plan {
    pub fn without_secrets(&self) -> Plan {
        Plan {
            spec: Arc::clone(&self.spec),
            places: self.places.clone(),
            run_as: self.run_as.clone(),
            owners: self.owners.clone(),
            program: self.program.clone(),
            variables: self.variables.clone(),
            sandbox: self.sandbox.clone(),
            secrets: None,
        }
    }
}

/// Whom workers run as.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunAs {
    /// `None`: svd's own user.
    pub ids: Option<Ids>,
    pub login: Arc<Login>,
}

pub struct Generation {
    pub id: GenerationId,
    pub plan: Rc<Plan>,
    pub began: SystemTime,
    pub sockets: Vec<Arc<OwnedFd>>,
    /// The private port of `{port}`.
    pub port: Option<u16>,
    pub gunicorn: Option<Box<Gunicorn>>,
    /// Its own, if it has one.
    pub network: Option<Namespace>,
    /// Where it sends its counts, if it asked for that.
    pub statsd: Option<Box<super::statsd::Address>>,
    /// Who wants to know when nothing of it is left: they are dropped with it.
    pub until_gone: Vec<tokio::sync::oneshot::Sender<()>>,
}

/// What svd shares with a gunicorn generation.
pub struct Gunicorn {
    pub gate: Gate,
    /// Was the gate opened?
    pub committed: bool,
    /// Our end of the report socket.
    pub report: OwnedFd,
    pub counters: SharedWords,
    /// What the generation inherits: gate, report, counters, by the names of their variables.
    pub inherited: [(&'static str, Arc<OwnedFd>); 3],
    /// Marks svd's own probes, which do not count.
    pub token: Box<str>,
    /// By the master's report; 0: not yet.
    pub workers: u32,
    /// Seconds, of `overdue`.
    pub timeout: f64,
    pub booted: BTreeSet<i32>,
    pub ready: BTreeSet<i32>,
    /// Where `svctl scale` wants it; one signal for each step.
    pub target: Option<u32>,
    /// Who waits for that.
    pub scaling: Option<Scaling>,
    /// One that has grown too large is being replaced.
    pub recycling: Option<super::recycle::Recycling>,
}

impl Gunicorn {
    /// One that nobody has heard of yet.
    pub fn new(
        gate: Gate,
        report: OwnedFd,
        counters: SharedWords,
        inherited: [(&'static str, Arc<OwnedFd>); 3],
    ) -> Gunicorn {
        Gunicorn {
            gate,
            committed: false,
            report,
            counters,
            inherited,
            token: format!("{:016x}", fastrand::u64(..)).into(),
            workers: 0,
            timeout: 0.0,
            booted: BTreeSet::new(),
            ready: BTreeSet::new(),
            target: None,
            scaling: None,
            recycling: None,
        }
    }
}

pub struct Process {
    pub worker: Worker,
    pub generation: GenerationId,
    pub slot: u32,
    /// Of stdout (or both), and of stderr.
    pub pipes: [Option<PipeId>; 2],
    /// What readiness still waits for; empty: ready.
    pub needs: Vec<Need>,
    pub ready: bool,
    pub notify: Option<Box<NotifySocket>>,
    pub ready_fd: Option<File>,
    pub watch: Option<WatchId>,
    pub probes: Vec<Probing>,
    /// By `STATUS=`.
    pub status: Option<Box<str>>,
    pub main: Main,
    /// The process that svd has started, once that was asked for.
    pub identity: OnceCell<Identity>,
    pub numbers: super::numbers::Numbers,
    /// Where those are its own: the program, once that was asked for.
    pub behind: OnceCell<i32>,
    /// It has ended; others may be left.
    pub started_ended: bool,
    /// The signal that told it to stop, if one has.
    pub signalled: Option<i32>,
    /// By `RELOADING=1` and `STOPPING=1`.
    pub announced: Option<Announced>,
    /// When the next `WATCHDOG=1` must have come.
    pub watchdog: Option<Time>,
    /// By `WATCHDOG_USEC=`, in place of the configured one; zero: none is awaited any more.
    pub watchdog_every: Option<Duration>,
}

/// A `svctl scale` under way.
pub struct Scaling {
    pub op: OpId,
    /// Answered then at the latest.
    pub until: Time,
}

/// What a process says that it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announced {
    /// Until its next `READY=1`.
    Reloading,
    Stopping,
}

/// One thing that readiness waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    Gunicorn,
    Notify,
    Descriptor,
    /// The probe of that number in the file's list.
    Probe(usize),
    Log,
    Delay,
}

/// A probe that is repeated until it succeeds.
pub struct Probing {
    pub need: Need,
    /// What came of it last.
    pub last: Rc<RefCell<Option<String>>>,
    pub _task: Task,
}

/// A task that ends when it is dropped.
pub struct Task(pub JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Boxed: a tree keeps its nodes half empty.
pub type Units = BTreeMap<crate::core::ServiceId, Box<Unit>>;

impl crate::kinds::counters::Words for SharedWords {
    fn count(&self) -> usize {
        SharedWords::count(self)
    }

    fn load(&self, index: usize) -> u64 {
        SharedWords::load(self, index).unwrap_or(0)
    }
}
