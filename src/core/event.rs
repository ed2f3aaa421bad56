//! What comes in, what goes out, and the names of things in both.

use super::policy::Policy;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A service for as long as it is configured; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceId(pub u32);

/// A service's generation; numbered for ever upward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GenerationId {
    pub service: ServiceId,
    pub number: u64,
}

/// One spawn; never used twice (I3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WorkerId(pub u64);

/// Somebody's command, answered exactly once by [`Action::Done`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpId(pub u64);

/// How a process ended (`wait(2)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// It ended, but its status went to somebody else (an adopted process on an older kernel).
    Unknown,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Code(code) => write!(f, "exited with code {code}"),
            Exit::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(known) => write!(f, "was killed by signal {signal} ({known})"),
                Err(_) => write!(f, "was killed by signal {signal}"),
            },
            Exit::Unknown => write!(f, "ended (its exit status is not known)"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    Start,
    Stop,
    /// Stop, then start what `current` names now.
    Restart,
    Reload {
        /// This one instead of what `current` names.
        release: Option<Box<str>>,
        /// End the oldest draining generation if there are too many.
        force: bool,
        /// For so long a copy of what is replaced stays booted, and answers nobody.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keep: Option<Duration>,
        /// This standby takes over, if it is still there; else a new generation is begun, as ever.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recall: Option<u64>,
    },
    /// Number of slots.
    Scale(u32),
    /// A few of gunicorn's workers of a new generation beside the one that serves, on the same sockets.
    Canary(Canary),
    /// The canary goes.
    Dismiss,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// This one instead of what `current` names.
    pub release: Option<Box<str>>,
    pub workers: u32,
    /// If nobody decides about it for so long, once it serves, it goes by itself.
    pub stay: Duration,
}

/// When a command is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Awaited {
    Running,
    Stopped,
    /// Another generation is committed than this one.
    Replaced {
        before: Option<u64>,
    },
    /// As soon as it is decided.
    Nothing,
}

/// What a changed service file asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing but numbers of the policy.
    Live,
    /// Those of the next generation alone: whoever asks for that one will tell so.
    Next,
    /// New processes, by a reload.
    Reload,
    /// New sockets or another kind: stop, start.
    Restart,
}

/// A service that is new in the configuration.
#[derive(Clone, Debug)]
pub struct Setup {
    pub service: ServiceId,
    pub name: Arc<str>,
    pub policy: Rc<Policy>,
    /// Wanted up from the beginning.
    pub start: bool,
    /// The number of the last generation that ever was.
    pub last_generation: u64,
    /// Done when it runs.
    pub op: Option<OpId>,
}

#[derive(Clone, Debug)]
pub enum Event {
    /// The configuration changed, as a whole. Each service's operation is done when its change is.
    Configure {
        add: Vec<Setup>,
        change: Vec<(ServiceId, Rc<Policy>, Change, Option<OpId>)>,
        remove: Vec<(ServiceId, Option<OpId>)>,
    },
    Command {
        op: Option<OpId>,
        service: ServiceId,
        command: Command,
    },
    /// Stop everything in order, then [`Action::Exit`].
    Shutdown,
    /// Answer to [`Action::Prepare`].
    Prepared {
        generation: GenerationId,
        result: Result<(), String>,
    },
    /// Answer to [`Action::Spawn`].
    Spawned {
        worker: WorkerId,
        result: Result<(), String>,
    },
    /// No spawn was made of it, for no fault of its own: svd was killed. It is made now.
    Unspawned {
        worker: WorkerId,
    },
    Ready {
        worker: WorkerId,
    },
    /// It will not become ready, or is not any more (a failed probe).
    Unfit {
        worker: WorkerId,
        reason: String,
    },
    /// It missed its watchdog: as [`Event::Unfit`], but told to stop by SIGABRT, so that it may leave a core dump.
    Hung {
        worker: WorkerId,
        reason: String,
    },
    /// `EXTEND_TIMEOUT_USEC`: the running deadline (boot or grace) is at least this far away.
    Extend {
        worker: WorkerId,
        by: Duration,
    },
    /// The main process ended; `leftovers`: others of the worker remain, and [`Event::Empty`] will follow.
    /// `reason`: what is known beyond the exit (the program never ran, and why).
    Exited {
        worker: WorkerId,
        exit: Exit,
        leftovers: bool,
        reason: Option<String>,
    },
    /// Nothing of the worker is left.
    Empty {
        worker: WorkerId,
    },
    /// Health checks failed as often as the file allows, and the file says restart.
    Unhealthy {
        service: ServiceId,
        reason: String,
    },
    /// It has used more memory than the file allows, for a while.
    Oversized {
        service: ServiceId,
        reason: String,
    },
    /// Memory is short: what answers nobody is given up.
    Crowded {
        service: ServiceId,
        reason: String,
    },
    /// Gunicorn told its `graceful_timeout`.
    Grace {
        service: ServiceId,
        grace: Duration,
    },
    /// A deadline may have passed.
    Tick,
}

/// Where a generation's release and configuration come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// The configuration in force and the named release, else what `current` names.
    Fresh {
        release: Option<Box<str>>,
    },
    /// What this earlier generation had.
    Again {
        of: u64,
    },
    Canary(Canary),
}

impl Command {
    /// What `svctl reload` asks for.
    pub fn reload(release: Option<Box<str>>, force: bool) -> Command {
        Command::Reload { release, force, keep: None, recall: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info,
    Warning,
}

/// Why an operation did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    /// The generation whose output explains it.
    pub generation: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Resolve release and directories, open the service's sockets if they are closed, make the gate.
    Prepare {
        generation: GenerationId,
        source: Source,
    },
    Spawn {
        worker: WorkerId,
        generation: GenerationId,
        slot: u32,
        committed: bool,
    },
    /// To the worker's main process.
    Signal {
        worker: WorkerId,
        signal: i32,
    },
    /// To everything that is left of the worker.
    SignalTree {
        worker: WorkerId,
        signal: i32,
    },
    /// Until nothing is left; [`Event::Empty`] or [`Event::Exited`] follows.
    KillTree {
        worker: WorkerId,
    },
    /// Open the gate: from now on this generation serves.
    Commit {
        generation: GenerationId,
    },
    /// Open the gate of a canary: it serves beside the committed generation.
    Expose {
        generation: GenerationId,
    },
    /// This generation is about to be told to stop and may take that long for its requests.
    Drain {
        generation: GenerationId,
        limit: Duration,
    },
    /// Nothing of the generation is left: free what [`Action::Prepare`] made. Its plan is kept while it may be needed
    /// [`Source::Again`].
    Discard {
        generation: GenerationId,
    },
    CloseSockets {
        service: ServiceId,
    },
    /// The service is stopped and no longer configured.
    Forget {
        service: ServiceId,
    },
    /// Something worth telling: `op`'s caller, the event stream, the journal.
    Note {
        service: ServiceId,
        op: Option<OpId>,
        level: Level,
        text: String,
    },
    Done {
        op: OpId,
        result: Result<(), Failure>,
    },
    /// The answer to [`Event::Shutdown`]: everything is stopped.
    Exit,
}
