//! A service as the machine keeps it, and the one word that describes it.

use super::event::{OpId, ServiceId, Setup, Source, WorkerId};
use super::generation::{Generation, Role, SlotState, Worker, WorkerState};
use super::policy::Policy;
use super::time::Time;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// As many as can be asked for; a damaged record may say more.
pub(super) const MOST_SLOTS: u32 = 10_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    Stopped,
    /// Wanted up; a service that it needs is not there yet.
    Waiting,
    /// It has generations that should run.
    Active,
    /// Everything is on its way out; what comes then is in `Service::then`.
    Stopping,
    /// Given up; tried again then, if ever.
    Failed {
        until: Option<Time>,
        reason: String,
    },
    /// Ended by itself, and the policy leaves it so.
    Exited,
}

/// A replacement in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Replacement {
    /// Whoever asked is gone when svd is.
    #[serde(skip)]
    pub op: Option<OpId>,
    pub stage: Stage,
    /// For so long a copy of what is replaced is kept, once it is.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub keep: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// The new generation boots beside the old one.
    Beside,
    /// Without overlap: the old one is being stopped, then `source` starts.
    StoppingOld { old: u64, source: Source },
    /// Without overlap: the new one boots alone; `old` comes back if it fails.
    StartingNew { old: u64 },
    /// Without overlap: the new one failed and is being stopped, then `old` comes back.
    Restoring { old: u64 },
}

/// Who waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Running,
    Stopped,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    pub name: Arc<str>,
    /// Written apart: [`super::policy::Policies`].
    #[serde(skip_serializing, default = "super::policy::unknown")]
    pub policy: Rc<Policy>,
    /// Wanted up.
    pub wanted: bool,
    pub phase: Phase,
    pub since: Time,
    /// In the order of their numbers.
    pub generations: Vec<Generation>,
    pub last_generation: u64,
    /// The number of its last worker. No later one gets it again, though this one is gone.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) last_worker: u64,
    /// Workers started after the first, and attempts after giving up, since the last start.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub restarts: u64,
    /// Slots asked for by `scale`, instead of the file's.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub scale: Option<u32>,
    /// It waits for something that does not come by itself.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) in_vain: Option<Box<str>>,
    /// It ended by itself, and not well.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) ended_badly: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) replacement: Option<Box<Replacement>>,
    /// After a stop: start this.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) then: Option<Source>,
    /// After a stop: close the sockets even if something starts then (their addresses changed).
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) reopen: bool,
    /// After a stop: forget the service.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub removed: bool,
    #[serde(skip)]
    pub(super) waiting: Vec<(OpId, Goal)>,
    /// Whoever asked for the canary that boots.
    #[serde(skip)]
    pub(super) canary_op: Option<OpId>,
    /// Generations that were replaced for bad health, and for their memory.
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) unhealthy: Replaced,
    #[serde(default, skip_serializing_if = "super::restore::is_usual")]
    pub(super) oversized: Replaced,
}

/// Between two generations that were replaced for the same reason: the first pause, and the longest. A database that is down
/// must not restart the fleet again and again.
const PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));

/// How many generations were replaced for one reason, one soon after another, and when the next one may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replaced {
    count: u32,
    not_before: Time,
}

impl Replaced {
    /// May another one be replaced now? Then it is counted. What does not help comes more and more seldom.
    pub(super) fn once_more(&mut self, now: Time) -> bool {
        if now < self.not_before {
            return false;
        }
        let (pause, most) = PAUSE;
        if now.since(self.not_before) > most {
            self.count = 0;
        }
        self.not_before = now + pause.saturating_mul(1 << self.count.min(16)).min(most);
        self.count = self.count.saturating_add(1);
        true
    }
}

/// What is told of it; the words for people and programs are those of `api::types::ServiceState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Stopped,
    Waiting,
    Starting,
    Running,
    Reloading,
    Stopping,
    Backoff,
    Failed,
    Exited,
}

/// Its own name, as `svctl status` has it.
impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_ascii_lowercase())
    }
}

impl Service {
    pub(super) fn new(setup: Setup, now: Time) -> Service {
        Service {
            id: setup.service,
            name: setup.name,
            policy: setup.policy,
            wanted: false,
            phase: Phase::Stopped,
            since: now,
            generations: Vec::new(),
            last_generation: setup.last_generation,
            last_worker: 0,
            restarts: 0,
            scale: None,
            in_vain: None,
            ended_badly: None,
            replacement: None,
            then: None,
            reopen: false,
            removed: false,
            waiting: Vec::new(),
            canary_op: None,
            unhealthy: Replaced::default(),
            oversized: Replaced::default(),
        }
    }

    pub fn committed(&self) -> Option<&Generation> {
        self.generations.iter().find(|g| g.role == Role::Committed)
    }

    pub fn candidate(&self) -> Option<&Generation> {
        self.generations.iter().find(|g| g.role == Role::Candidate)
    }

    pub fn standby(&self) -> Option<&Generation> {
        self.generations.iter().find(|g| g.role == Role::Standby)
    }

    pub fn canary(&self) -> Option<&Generation> {
        self.generations.iter().find(|g| g.role == Role::Canary)
    }

    /// What is there beside the committed generation, and goes when anything else happens.
    pub(super) fn aside(&self) -> Option<&Generation> {
        self.standby().or_else(|| self.canary())
    }

    pub(super) fn generation(&self, number: u64) -> Option<&Generation> {
        self.generations.iter().find(|g| g.id.number == number)
    }

    pub(super) fn generation_mut(&mut self, number: u64) -> Option<&mut Generation> {
        self.generations.iter_mut().find(|g| g.id.number == number)
    }

    pub(super) fn slots(&self) -> u32 {
        self.scale.unwrap_or(self.policy.instances).min(MOST_SLOTS)
    }

    /// The state in a word. `workers`: the machine's table.
    pub fn state(&self, workers: &BTreeMap<WorkerId, Box<Worker>>) -> State {
        match self.phase {
            Phase::Stopped => State::Stopped,
            Phase::Waiting => State::Waiting,
            Phase::Stopping => State::Stopping,
            Phase::Failed { .. } => State::Failed,
            Phase::Exited => State::Exited,
            Phase::Active => self.active_state(workers),
        }
    }

    fn active_state(&self, workers: &BTreeMap<WorkerId, Box<Worker>>) -> State {
        if self.replacement.is_some() {
            return State::Reloading;
        }
        let Some(generation) = self.committed().or_else(|| self.candidate()) else {
            return State::Starting;
        };
        let ready = |w: &WorkerId| workers.get(w).is_some_and(|w| w.state == WorkerState::Ready);
        let slots = &generation.slots;
        if generation.role == Role::Committed
            && slots.iter().any(|s| matches!(&s.state, SlotState::Filled(w) if ready(w)))
        {
            return State::Running;
        }
        let held = |s: &SlotState| matches!(s, SlotState::Backoff(_) | SlotState::Failed(_));
        if slots.iter().any(|s| held(&s.state)) { State::Backoff } else { State::Starting }
    }

    /// Running as others that require it need it: committed, and somebody is ready.
    pub(super) fn serves(&self, workers: &BTreeMap<WorkerId, Box<Worker>>) -> bool {
        self.phase == Phase::Active
            && self.committed().is_some_and(|g| {
                g.slots.iter().any(|s| match s.state {
                    SlotState::Filled(w) => workers.get(&w).is_some_and(|w| w.state == WorkerState::Ready),
                    SlotState::Done => true,
                    _ => false,
                })
            })
    }

    pub(super) fn reason(&self) -> Option<String> {
        match &self.phase {
            Phase::Failed { reason, .. } => Some(reason.clone()),
            Phase::Waiting => self.in_vain.as_deref().map(Into::into),
            Phase::Exited => self.ended_badly.as_deref().map(Into::into),
            Phase::Active => self.committed().or_else(|| self.candidate()).and_then(|g| {
                g.slots.iter().find_map(|s| match s.state {
                    // One that is filled has it until the worker is ready: why the one before is not there any more.
                    SlotState::Backoff(_) | SlotState::Failed(_) | SlotState::Filled(_) => s.reason.clone(),
                    _ => None,
                })
            }),
            _ => None,
        }
    }
}
