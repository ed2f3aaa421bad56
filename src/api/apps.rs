//! Releases over the control socket: what may be asked of an app, and what is answered.
//!
//! An app is what is deployed together: all services of one root. Its name is that of the service whose file has
//! `[deploy]`, or of the only one. Whoever changes an app takes its lock first, and carries the fence that the
//! lock was granted with in every call.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::types::{ServiceState, Traffic};
pub use crate::release::app::{Migrated, is_plausible, next_number};

/// Who holds the lock: a number that rises with every lock, and the rollout that it was granted to.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fence {
    pub number: u64,
    pub rollout: Box<str>,
}

/// What runs on a host for a release, as `[deploy.STEP]` of the service file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    Before,
    Verify,
    Migrate,
    Static,
    MigrateAfter,
    /// Undoes what `Migrate` did with the release: `down` of `[deploy.migrate]`.
    MigrateDown,
    After,
}

impl StepName {
    pub const ALL: [StepName; 7] = [
        StepName::Before,
        StepName::Verify,
        StepName::Migrate,
        StepName::Static,
        StepName::MigrateAfter,
        StepName::MigrateDown,
        StepName::After,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            StepName::Before => "before",
            StepName::Verify => "verify",
            StepName::Migrate => "migrate",
            StepName::Static => "static",
            StepName::MigrateAfter => "migrate_after",
            StepName::MigrateDown => "migrate_down",
            StepName::After => "after",
        }
    }
}

/// Something that is asked of one app.
#[derive(Clone, Debug, PartialEq)]
pub enum AppRequest {
    /// [`AppStatus`].
    Status {
        /// Together with [`ConfigurationStatus`], for which all files are read.
        configuration: bool,
    },
    /// [`History`], newest last.
    History {
        lines: u64,
    },
    /// [`LockResult`].
    Lock(LockOptions),
    Unlock(UnlockOptions),
    /// Takes what lies in the caller's staging place as a release. [`StageResult`].
    Stage(StageOptions),
    /// Makes its virtual environment. [`BuildResult`].
    Build(ReleaseOptions),
    /// [`StepResult`].
    Step(StepOptions),
    /// Switches the services to a release, which is on trial then. [`super::types::ActionResult`].
    Activate(ActivateOptions),
    /// Moves the end of lock and trial on.
    Renew(RenewOptions),
    /// What is on trial is good. [`ConfirmResult`].
    Confirm(FenceOptions),
    /// Goes back to what was confirmed before. [`super::types::ActionResult`].
    TakeBack(TakeBackOptions),
    /// Removes releases that nobody needs. [`PruneResult`].
    Prune(FenceOptions),
    /// [`Journal`].
    Journal {
        /// Its name, or its release's; the latest without.
        rollout: Option<Box<str>>,
    },
    /// Writes entries of the rollout's journal. [`AppendResult`].
    Append(AppendOptions),
}

impl AppRequest {
    /// Changes nothing.
    pub fn is_read(&self) -> bool {
        matches!(self, AppRequest::Status { .. } | AppRequest::History { .. } | AppRequest::Journal { .. })
    }

    /// For the audit journal.
    pub(super) fn detail(&self) -> Box<str> {
        match self {
            AppRequest::Status { .. } => "status".into(),
            AppRequest::History { .. } => "history".into(),
            AppRequest::Lock(o) => format!("lock rollout={} number={}", o.fence.rollout, o.fence.number).into(),
            AppRequest::Unlock(o) if o.force => "unlock force".into(),
            AppRequest::Unlock(_) => "unlock".into(),
            AppRequest::Stage(o) => format!("stage release={} source={}", o.release, o.source).into(),
            AppRequest::Build(o) => format!("build release={}", o.release).into(),
            AppRequest::Step(o) => format!("{} release={}", o.step.as_str(), o.release).into(),
            AppRequest::Activate(o) => format!("activate release={}", o.release).into(),
            AppRequest::Renew(_) => "renew".into(),
            AppRequest::Confirm(_) => "confirm".into(),
            AppRequest::TakeBack(o) => format!("take-back reason={}", o.reason).into(),
            AppRequest::Prune(_) => "prune".into(),
            AppRequest::Journal { .. } => "journal".into(),
            AppRequest::Append(_) => "append".into(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockOptions {
    pub fence: Fence,
    /// Until it has to be renewed; without it, it is held until it is unlocked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
    /// Whom the client acts for; told beside the user that svd knows.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub holder: Box<str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub message: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnlockOptions {
    /// Of the lock that is to go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// Whoever holds it.
    #[serde(default)]
    pub force: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FenceOptions {
    pub fence: Fence,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseOptions {
    pub fence: Fence,
    pub release: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageOptions {
    pub fence: Fence,
    pub release: Box<str>,
    /// The commit, or the digest of the artifact: two releases of one name must be the same.
    pub source: Box<str>,
    /// The branch or tag, or the artifact's name; for people.
    #[serde(default)]
    pub label: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepOptions {
    pub fence: Fence,
    pub release: Box<str>,
    pub step: StepName,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActivateOptions {
    pub fence: Fence,
    pub release: Box<str>,
    /// How long it is kept without a renewal.
    pub lease_seconds: u64,
    /// A migration came with it that the release before does not work with: it is not taken back by itself.
    #[serde(default)]
    pub holds: bool,
    /// It is a rollback, and why: what runs now is no way back any more once this is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewOptions {
    pub fence: Fence,
    pub lease_seconds: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeBackOptions {
    pub fence: Fence,
    pub reason: Box<str>,
    /// It is no good, and nobody is to switch to it again.
    #[serde(default)]
    pub failed: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppendOptions {
    pub fence: Fence,
    /// How many entries stay; what follows them is replaced. 0 begins a journal.
    pub from: usize,
    /// svd keeps them as they are.
    pub entries: Vec<Value>,
}

/// Of one rollout, as whoever drove it has written it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    pub rollout: Box<str>,
    /// Of the lock that the last entry was written with.
    pub number: u64,
    pub entries: Vec<Value>,
}

/// How far a journal goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JournalMark {
    pub rollout: Box<str>,
    pub number: u64,
    pub entries: usize,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppendResult {
    /// How many there are now.
    pub entries: usize,
}

/// The elements that are understood.
fn known<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let all = Vec::<Value>::deserialize(deserializer)?;
    Ok(all.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect())
}

/// Answer to `GET /v1/apps/NAME`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppStatus {
    pub app: Box<str>,
    pub root: Box<str>,
    pub services: Vec<AppService>,
    /// What `ROOT/current` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<Box<str>>,
    /// What a boot starts, and a release that fails is taken back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed: Option<Box<str>>,
    /// The rollout that has confirmed it; empty: none has.
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub confirmed_by: Box<str>,
    /// Where a rollback goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trial: Option<TrialStatus>,
    /// The services are on their way to this release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switching_to: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockStatus>,
    /// The highest fence that was granted or carried.
    pub fence: Fence,
    /// Oldest first.
    pub releases: Vec<ReleaseStatus>,
    /// Whoever asks has the right `deploy`, on all of its services.
    #[serde(default)]
    pub may_deploy: bool,
    /// Steps that the service file has; those of a newer svd's that are not known here are its own business.
    #[serde(default, deserialize_with = "known")]
    pub steps: Vec<StepName>,
    /// What `[deploy]` says about the migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationFacts>,
    /// A release needs an environment of its own.
    #[serde(default)]
    pub builds: bool,
    /// From what comes with the release alone (`build_on = "here"`).
    #[serde(default)]
    pub built_here: bool,
    /// What the environment is made from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requirements: Vec<Box<str>>,
    /// The static step runs where one of these differs; empty: always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub static_when_changed: Vec<Box<str>>,
    pub journal: JournalMark,
    /// Where it was asked for (`?configuration=true`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<ConfigurationStatus>,
    /// Needs somebody's decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert: Option<Box<str>>,
}

/// How the files of its services differ from what is in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConfigurationStatus {
    /// A release that is activated now brings them.
    pub changes: Vec<ConfigurationChange>,
    /// The files say what was taken back with a release: nothing but an activation uses that again.
    #[serde(default)]
    pub held_back: bool,
    /// Why nothing can be activated: the files have errors, or cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigurationChange {
    pub service: Box<str>,
    /// As in the file, sections included: `logs.max_size`.
    pub keys: Vec<Box<str>>,
    /// It stops the service (another socket, another kind), which no activation does.
    #[serde(default)]
    pub interrupts: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationFacts {
    pub on_each_host: bool,
    /// The old code works with the new schema.
    pub compatible: bool,
    /// There is a second half.
    pub after: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AppService {
    pub name: Box<str>,
    pub state: ServiceState,
    /// What really runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    pub restarts: u64,
    /// Why it does not serve as it should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unfit: Option<Box<str>>,
    /// Of the committed generation; absent where nothing counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

/// A release that serves and is not confirmed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrialStatus {
    pub release: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Box<str>>,
    pub rollout: Box<str>,
    /// Until the host takes it back by itself.
    pub seconds_left: u64,
    /// It does not: a migration came with it that the release before does not work with.
    pub holds: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockStatus {
    pub fence: Fence,
    pub holder: Box<str>,
    /// RFC 3339.
    pub since: Box<str>,
    pub since_seconds: u64,
    /// Absent: until somebody unlocks it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub message: Box<str>,
}

/// How far a release has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReleaseState {
    Staged,
    Built,
    Trial,
    /// It was good.
    Confirmed,
    /// Kept for whoever looks into it; no rollback goes there.
    Failed,
    /// What a newer svd says, and this svctl does not know. svd never says it.
    #[serde(other)]
    Unknown,
}

impl ReleaseState {
    pub fn as_str(self) -> &'static str {
        match self {
            ReleaseState::Staged => "staged",
            ReleaseState::Built => "built",
            ReleaseState::Trial => "on trial",
            ReleaseState::Confirmed => "confirmed",
            ReleaseState::Failed => "failed",
            ReleaseState::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReleaseStatus {
    pub release: Box<str>,
    pub state: ReleaseState,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Box<str>>,
    pub source: Box<str>,
    pub label: Box<str>,
    pub by: Box<str>,
    /// RFC 3339.
    pub since: Box<str>,
    pub since_seconds: u64,
    /// A migration was run on this host with it, and was not undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migrated: Option<Migrated>,
    /// Is it the one that serves?
    pub serving: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockResult {
    pub fence: Fence,
    /// A directory on the host that is the caller's own: what lies there becomes a release by `stage`.
    pub staging: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageResult {
    /// It was here already.
    pub known: bool,
    pub files: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BuildResult {
    /// Anything was built.
    pub changed: bool,
    /// Why, or why not.
    pub reason: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub venv: Option<Box<str>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepResult {
    pub ran: bool,
    /// Why, or why not.
    pub reason: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfirmResult {
    pub release: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PruneResult {
    pub releases: Vec<Box<str>>,
    pub venvs: u32,
}

/// One line of a host's journal of deploys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// RFC 3339, in UTC; in milliseconds.
    pub time: Box<str>,
    /// The user that svd knows, and whom the client says it acts for.
    pub who: Box<str>,
    pub rollout: Box<str>,
    /// `staged`, `built`, `migrate`, `activated`, `confirmed`, `taken back` …
    pub what: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub detail: Box<str>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    pub entries: Vec<HistoryEntry>,
}
