//! What is written down of an app: its lock, its releases, what is on trial. [`super::app`] decides what becomes of it.

use super::ReleaseId;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Milliseconds of a clock that does not jump and counts while the machine sleeps (`CLOCK_BOOTTIME`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    pub fn after(self, time: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// Numbers of locks count in their upper 32 bits; the lower ones are those of whoever locks, so that two who begin at the same moment
/// differ.
const COUNTED: u32 = 32;
/// Clocks that were never set say that it is 1970.
const EARLIEST: u64 = 1_600_000_000;

/// Can anybody have come to this number? Nobody locks more than once a second, all time since 1970 (`seconds`) long. Whoever names a higher one
/// wants the numbers to come to their end, so that nobody can lock any more.
pub fn is_plausible(number: u64, seconds: u64) -> bool {
    number >> COUNTED <= seconds.max(EARLIEST)
}

/// Above any that was granted before, with `own` in the lower bits.
pub fn next_number(highest: u64, own: u32) -> u64 {
    (highest >> COUNTED).saturating_add(1).min(u64::from(u32::MAX)) << COUNTED | u64::from(own)
}

/// Ordered by number; the rollout tells two apart that chose the same one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fence {
    pub number: u64,
    pub rollout: Box<str>,
}

/// Who holds the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub fence: Fence,
    /// The authenticated user, and what the client says of itself.
    pub holder: Box<str>,
    /// Seconds since 1970.
    pub since: u64,
    /// `None`: until it is unlocked (`svctl lock`); a boot does not end it either.
    pub until: Option<Moment>,
    /// Why, for those who are refused.
    #[serde(default)]
    pub message: Box<str>,
}

/// How far a release has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Its files are here and sealed.
    Staged,
    /// Its environment is as well.
    Built,
    /// It has served, and was found good.
    Confirmed,
    /// Why; it is kept for whoever looks into it.
    Failed(Box<str>),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub state: State,
    /// Counts the releases of this app, as they came.
    pub number: u64,
    /// Which confirmation of this app was its last one; 0: it has none.
    #[serde(default)]
    pub confirmed: u64,
    /// Seconds since 1970.
    pub staged_at: u64,
    pub about: About,
    /// The name of its virtual environment, where it has one.
    #[serde(default)]
    pub venv: Option<Box<str>>,
    /// A migration was run here with it.
    #[serde(default)]
    pub migrated: Option<Migrated>,
    /// The name of the configuration that it served with last, as far as that is kept.
    #[serde(default)]
    pub configuration: Option<Box<str>>,
}

/// What a migration that was run means for the releases before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Migrated {
    /// Their code works with it.
    Compatible,
    /// Nobody says so.
    Incompatible,
}

/// Names of kept configurations, of what comes and of what is gone back to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configurations {
    pub to: Box<str>,
    pub from: Box<str>,
}

impl Configurations {
    pub fn swapped(&self) -> Configurations {
        Configurations { to: self.from.clone(), from: self.to.clone() }
    }
}

/// What whoever sent it says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The commit, or the digest of the artifact.
    #[serde(default)]
    pub source: Box<str>,
    /// The branch or tag, or the artifact's name.
    #[serde(default)]
    pub label: Box<str>,
    #[serde(default)]
    pub by: Box<str>,
}

/// A release that serves and is not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    pub release: ReleaseId,
    /// What was confirmed before, and is gone back to; `None`: there was nothing.
    pub before: Option<ReleaseId>,
    pub fence: Fence,
    pub until: Moment,
    /// The old code does not work any more: when the lease runs out, the release stays.
    pub holds: bool,
    /// It is a rollback: why what was before is left, which no rollback goes to again.
    #[serde(default)]
    pub rollback: Option<Box<str>>,
    /// With which one it serves, and which is gone back to.
    #[serde(default)]
    pub configurations: Option<Configurations>,
}

/// The services are being brought from one release to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    pub to: Option<ReleaseId>,
    /// What they go back to when that fails.
    pub from: Option<ReleaseId>,
    /// It is a way back itself: nothing is beyond it.
    pub back: bool,
    /// For whom it is put on trial.
    pub trial: Option<Trial>,
    /// `to`: what the services are given on the way.
    #[serde(default)]
    pub configurations: Option<Configurations>,
}

/// How a release is put on trial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub until: Moment,
    pub holds: bool,
    pub rollback: Option<Box<str>>,
    pub configurations: Option<Configurations>,
}

/// What has become of a step of a rollout: it is never begun twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// svd may have died in it.
    Begun,
    Done,
    Failed(Box<str>),
}
