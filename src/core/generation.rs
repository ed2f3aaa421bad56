//! What a service consists of while it runs: generations, their slots, and the workers in them.

use super::event::{Exit, GenerationId, Source, WorkerId};
use super::policy::Policy;
use super::restart::Failures;
use super::time::Time;
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Booting; where it can be gated, it answers nobody.
    Candidate,
    /// It serves. At most one of a service (I3).
    Committed,
    /// A copy of what served before the committed one: booted, it answers nobody, and can take over at once. At most one.
    Standby,
    /// Some of the workers that a new generation would have, beside the committed one. At most one, and no standby beside it.
    Canary,
    /// On its way out: replaced, taken back or stopped.
    Draining,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Generation {
    pub id: GenerationId,
    pub role: Role,
    /// When it got its role.
    pub since: Time,
    /// Of a standby or a canary: when it is given up.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub until: Option<Time>,
    /// Of a canary: it has booted, and serves.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub open: bool,
    /// The shell has resolved what it needs; its slots may be filled.
    pub prepared: bool,
    /// What the shell is resolving it from.
    pub source: Source,
    /// Written apart: [`super::policy::Policies`].
    #[serde(skip_serializing, default = "super::policy::unknown")]
    pub policy: Rc<Policy>,
    pub slots: Vec<Slot>,
    /// Every worker of which something is left, those that lost their slot included. In the order of their numbers.
    pub workers: Vec<WorkerId>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Slot {
    pub state: SlotState,
    /// Workers started after the first.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub restarts: u64,
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub last_exit: Option<Exit>,
    /// Why it is in backoff or failed, or why the worker before is not there any more, until this one is ready.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) failures: Failures,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotState {
    /// Not filled yet, or not to be filled any more.
    Empty,
    Filled(WorkerId),
    /// Tried again then.
    Backoff(Time),
    /// Given up; tried again then, if ever.
    Failed(Option<Time>),
    /// Ended by itself, and the policy leaves it so.
    Done,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Worker {
    pub id: WorkerId,
    pub generation: GenerationId,
    pub slot: u32,
    pub started: Time,
    pub state: WorkerState,
    /// It has been ready.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) proved: bool,
    /// Why it is being stopped although it should run: counts as a failure of its slot.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) fault: Option<String>,
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerState {
    /// Until the shell has answered.
    Spawning,
    /// Spawned, not ready; given up at the deadline.
    Booting {
        deadline: Time,
    },
    Ready,
    /// Told to stop; killed at the deadline.
    Stopping {
        deadline: Time,
    },
    /// Its main process is gone; the rest was told to stop and is killed at the deadline.
    Sweeping {
        deadline: Time,
    },
    /// The kill is under way; repeated after `pause`, as what hangs in the kernel does not end at once.
    Killed {
        pause: Duration,
    },
}

impl Generation {
    pub(super) fn new(id: GenerationId, source: Source, policy: Rc<Policy>, slots: u32, now: Time) -> Generation {
        Generation {
            id,
            role: Role::Candidate,
            since: now,
            until: None,
            open: false,
            prepared: false,
            source,
            policy,
            slots: (0..slots).map(|_| Slot::new()).collect(),
            workers: Vec::with_capacity(slots as usize),
        }
    }
}

impl Slot {
    pub(super) fn new() -> Slot {
        Slot { state: SlotState::Empty, restarts: 0, last_exit: None, reason: None, failures: Failures::default() }
    }
}

impl Worker {
    /// Has its main process ended, as far as the machine was told?
    pub fn has_ended(&self) -> bool {
        self.exit.is_some()
    }

    /// It was killed, and has not ended for so long that the kernel must keep it.
    pub fn hangs(&self) -> bool {
        matches!(self.state, WorkerState::Killed { pause } if pause > super::worker::KILL_AGAIN.0)
    }

    /// Told to stop, or already ended.
    pub fn leaving(&self) -> bool {
        matches!(self.state, WorkerState::Stopping { .. } | WorkerState::Sweeping { .. } | WorkerState::Killed { .. })
    }
}
