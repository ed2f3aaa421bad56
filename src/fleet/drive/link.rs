//! One host of a rollout: each call of the machine's as requests to its svd.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::inventory::{Host, Prometheus};
use super::super::rollout::event::{Count, Mark, Totals, View};
use super::super::rollout::plan::{Purpose, Step};
use super::super::rollout::{Call, CallError, Entry, Reply, kept};
use super::super::transport::{HostDial, Transport, Upload};
use super::super::verdict::Counts;
use super::{First, facts, prometheus};
use crate::api::apps::{
    ActivateOptions, AppStatus, AppendOptions, AppendResult, ConfirmResult, Fence, FenceOptions, Journal, LockOptions,
    LockResult, ReleaseOptions, RenewOptions, StageOptions, StepName, StepOptions, StepResult, TakeBackOptions,
    UnlockOptions,
};
use crate::api::client::{Caller, ClientError, encode};
use crate::api::types::{ActionResult, ApiError, ErrorCode, Progress};

/// For a request that a host answers from what it knows.
const SHORT: Duration = Duration::from_secs(30);
/// For copying a release, building its environment, and switching to it.
const LONG: Duration = Duration::from_secs(3600);
/// The lock while a migration is undone, which nobody renews meanwhile.
const DOWN: Duration = Duration::from_secs(24 * 3600);
/// For a step of the service file, which has a limit of its own, or none.
const STEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// Lines of a failed step that are told.
const QUOTED: usize = 20;

/// What is shipped, and by whom.
#[derive(Clone, Debug)]
pub struct Cargo {
    pub app: Box<str>,
    pub purpose: Purpose,
    pub rollout: Box<str>,
    pub release: Box<str>,
    /// The commit, or the digest of the artifact.
    pub source: Box<str>,
    /// The branch or tag, or the artifact's name.
    pub label: Box<str>,
    /// The user who deploys, and from where.
    pub by: Box<str>,
    /// Hosts that serve this very release already, and get another configuration.
    pub again: BTreeSet<Box<str>>,
    /// A directory with the release's files; `None`: none are sent (a rollout that is gone on with finds them there).
    pub files: Option<PathBuf>,
}

/// A way to one host.
pub struct Link {
    pub host: Host,
    caller: Caller,
    transport: Arc<dyn Transport>,
    /// Where files arrive; told with the lock.
    staging: RefCell<Option<String>>,
    /// What serves there, to copy only what differs.
    like: RefCell<Vec<String>>,
    /// What is to be done before it gets files.
    first: RefCell<Option<Rc<First>>>,
    /// Where requests and errors are taken from, if not from svd.
    prometheus: Option<Prometheus>,
}

impl Link {
    pub fn new(host: Host, transport: Arc<dyn Transport>, prometheus: Option<Prometheus>) -> Link {
        let caller = Caller::new(Arc::new(HostDial::new(Arc::clone(&transport), host.clone())));
        Link {
            host,
            caller,
            transport,
            staging: RefCell::default(),
            like: RefCell::default(),
            first: RefCell::default(),
            prometheus,
        }
    }

    /// It gets files when that is done, and none if it fails.
    pub fn after(&self, first: &Rc<First>) {
        self.first.replace(Some(Rc::clone(first)));
    }

    /// How things stand with an app there.
    ///
    /// # Errors
    /// The host cannot be reached, or svd says no.
    pub async fn status(&self, app: &str) -> Result<AppStatus, CallError> {
        self.get(&format!("/v1/apps/{}", encode(app))).await
    }

    /// As [`Link::status`], with what its files say: for a plan.
    ///
    /// # Errors
    /// As [`Link::status`].
    pub async fn facts(&self, app: &str) -> Result<AppStatus, CallError> {
        self.get(&format!("/v1/apps/{}?configuration=true", encode(app))).await
    }

    /// The journal of a rollout there, by its name or its release's; of the latest one without.
    ///
    /// # Errors
    /// As [`Link::status`].
    pub async fn journal(&self, app: &str, rollout: Option<&str>) -> Result<Journal, CallError> {
        let query = rollout.map(|id| format!("?rollout={}", encode(id))).unwrap_or_default();
        self.get(&format!("/v1/apps/{}/journal{query}", encode(app))).await
    }

    /// Undoes the migration that came with a release, under a lock of its own.
    ///
    /// # Errors
    /// It was not undone.
    pub async fn migrate_down(
        &self,
        cargo: &Cargo,
        number: u64,
        release: &str,
        tell: impl FnMut(&Progress),
    ) -> Result<StepResult, CallError> {
        let fence = Fence { number, rollout: cargo.rollout.clone() };
        self.lock(cargo, fence.clone(), DOWN).await?;
        let wanted = StepOptions { fence: fence.clone(), release: release.into(), step: StepName::MigrateDown };
        let done = self.post(cargo, "step", &wanted, STEP, tell).await;
        let wanted = UnlockOptions { fence: Some(fence), force: false };
        // The lease ends it as well.
        let _: Result<bool, _> = self.post(cargo, "unlock", &wanted, SHORT, |_| {}).await;
        done
    }

    /// One call of a rollout's.
    ///
    /// # Errors
    /// Why there is no reply.
    pub async fn call(
        &self,
        cargo: &Cargo,
        number: u64,
        call: Call,
        tell: impl FnMut(&Progress),
    ) -> Result<Reply, CallError> {
        let fence = Fence { number, rollout: cargo.rollout.clone() };
        match call {
            Call::Lock { lease } => self.lock(cargo, fence, lease).await,
            Call::Read => {
                let journal = self.journal(&cargo.app, None).await?;
                let entries = if journal.rollout == cargo.rollout { journal.entries } else { Vec::new() };
                let entries: Result<Vec<Entry>, _> = entries.into_iter().map(kept::read).collect();
                entries.map(Reply::Journal).map_err(|e| odd(&e))
            }
            Call::Append { from, entries } => {
                let entries: Result<_, _> = entries.iter().map(|entry| entry.kept().cloned()).collect();
                let wanted = AppendOptions { fence, from, entries: entries.map_err(|e| odd(&e))? };
                let done: AppendResult = self.post(cargo, "append", &wanted, SHORT, |_| {}).await?;
                Ok(Reply::Appended(done.entries))
            }
            Call::Prepare(step) => self.prepare(cargo, fence, step, tell).await.map(|()| Reply::Done),
            Call::Migrate { after, .. } => {
                let step = if after { StepName::MigrateAfter } else { StepName::Migrate };
                let done = self.step(cargo, fence, step, tell).await?;
                Ok(Reply::Migrated { ran: done.ran })
            }
            Call::Activate { lease, holds } => {
                let (release, lease_seconds) = (cargo.release.clone(), seconds(lease));
                let rollback = (cargo.purpose == Purpose::Rollback)
                    .then(|| format!("it was rolled back to {}", cargo.release).into());
                let wanted = ActivateOptions { fence, release, lease_seconds, holds, rollback };
                let done: ActionResult = self.post(cargo, "activate", &wanted, LONG, tell).await?;
                all_done(done).map(|()| Reply::Done)
            }
            Call::Counts { slow } => self.counts(cargo, slow, tell).await,
            Call::Renew { lease } => {
                let wanted = RenewOptions { fence, lease_seconds: seconds(lease) };
                let () = self.post(cargo, "renew", &wanted, SHORT, |_| {}).await?;
                Ok(Reply::Renewed(view(&self.status(&cargo.app).await?, cargo, &self.host.name)))
            }
            Call::Confirm => {
                let wanted = FenceOptions { fence: fence.clone() };
                let done: ConfirmResult = self.post(cargo, "confirm", &wanted, SHORT, |_| {}).await?;
                if done.release == cargo.release {
                    // It is confirmed, whatever comes of this; the host keeps what it says.
                    let mut tell = tell;
                    if let Err(why) = self.step(cargo, fence, StepName::After, &mut tell).await {
                        let why =
                            format!("the release is confirmed, and the step after has failed: {}", facts::text(why));
                        tell(&Progress::now(Some(&cargo.app), "after", why));
                    }
                }
                Ok(Reply::Confirmed(done.release))
            }
            Call::TakeBack { why, failed } => {
                let wanted = TakeBackOptions { fence, reason: why, failed };
                let done: ActionResult = self.post(cargo, "take-back", &wanted, LONG, tell).await?;
                all_done(done).map(|()| Reply::Done)
            }
            Call::Unlock => {
                // Best effort: the next deploy removes them.
                let wanted = FenceOptions { fence: fence.clone() };
                let _: Result<serde_json::Value, _> = self.post(cargo, "prune", &wanted, SHORT, |_| {}).await;
                let wanted = UnlockOptions { fence: Some(fence), force: false };
                let _: bool = self.post(cargo, "unlock", &wanted, SHORT, |_| {}).await?;
                Ok(Reply::Done)
            }
        }
    }

    async fn counts(
        &self,
        cargo: &Cargo,
        slow: Option<Duration>,
        mut tell: impl FnMut(&Progress),
    ) -> Result<Reply, CallError> {
        let status = self.status(&cargo.app).await?;
        let mut counted = count(&status, cargo, &self.host.name, slow);
        if let Some(from) = &self.prometheus {
            let release = facts::serves(&status).unwrap_or_default();
            // Its health is known all the same.
            counted.totals = match prometheus::totals(from, &self.host.name, &release).await {
                Ok(totals) => Some(totals),
                Err(why) => {
                    tell(&Progress::now(None, "prometheus", format!("{why}; these seconds do not count")));
                    None
                }
            };
        }
        Ok(Reply::Counted(counted))
    }

    async fn lock(&self, cargo: &Cargo, fence: Fence, lease: Duration) -> Result<Reply, CallError> {
        let wanted = LockOptions {
            fence,
            seconds: Some(seconds(lease)),
            holder: cargo.by.clone(),
            message: match cargo.purpose {
                Purpose::Deploy => format!("deploy of {}", cargo.release),
                Purpose::Rollback => format!("rollback to {}", cargo.release),
                Purpose::CatchUp => format!("catching up with {}", cargo.release),
            }
            .into(),
        };
        let locked: LockResult = self.post(cargo, "lock", &wanted, SHORT, |_| {}).await?;
        self.staging.replace(Some(locked.staging.into()));
        let status = self.status(&cargo.app).await?;
        let serves = status.services.first().and_then(|s| s.release.as_deref());
        self.like.replace(serves.map(|id| format!("{}/releases/{id}", status.root)).into_iter().collect());
        let kept = &status.journal;
        let ours = kept.rollout == cargo.rollout;
        let journal = if ours { Mark { number: kept.number, entries: kept.entries } } else { Mark::default() };
        let other = (!ours && kept.entries > 0).then_some(kept.number);
        Ok(Reply::Granted { view: view(&status, cargo, &self.host.name), journal, other })
    }

    async fn prepare(
        &self,
        cargo: &Cargo,
        fence: Fence,
        step: Step,
        mut tell: impl FnMut(&Progress),
    ) -> Result<(), CallError> {
        match step {
            Step::Stage => {
                self.upload(cargo).await?;
                let (release, source) = (cargo.release.clone(), cargo.source.clone());
                let label = cargo.label.clone();
                let wanted = StageOptions { fence: fence.clone(), release, source, label };
                let _: serde_json::Value = self.post(cargo, "stage", &wanted, LONG, &mut tell).await?;
                self.step(cargo, fence, StepName::Before, tell).await.map(drop)
            }
            Step::Build => {
                let wanted = ReleaseOptions { fence, release: cargo.release.clone() };
                let _: serde_json::Value = self.post(cargo, "build", &wanted, LONG, tell).await?;
                Ok(())
            }
            Step::Publish => self.step(cargo, fence, StepName::Static, tell).await.map(drop),
            Step::Verify => self.step(cargo, fence, StepName::Verify, tell).await.map(drop),
            Step::Migrate | Step::Activate | Step::MigrateAfter => Ok(()),
        }
    }

    async fn upload(&self, cargo: &Cargo) -> Result<(), CallError> {
        let (Some(files), Some(to)) = (&cargo.files, self.staging.borrow().clone()) else {
            return Err(CallError::Failed("there are no files to send; ship the release anew".into()));
        };
        let first = self.first.borrow().clone();
        if let Some(first) = first {
            first.done().await.map_err(CallError::Failed)?;
        }
        let upload = Upload { from: files.clone().into(), to, like: self.like.borrow().clone() };
        let copied = tokio::time::timeout(LONG, self.transport.copy(&self.host, &upload)).await;
        match copied {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) if error.away => Err(CallError::Unreachable(error.to_string().into())),
            Ok(Err(error)) => Err(CallError::Failed(error.to_string().into())),
            Err(_) => Err(CallError::Unreachable("its files did not arrive within an hour".into())),
        }
    }

    async fn step(
        &self,
        cargo: &Cargo,
        fence: Fence,
        step: StepName,
        tell: impl FnMut(&Progress),
    ) -> Result<StepResult, CallError> {
        let wanted = StepOptions { fence, release: cargo.release.clone(), step };
        self.post(cargo, "step", &wanted, STEP, tell).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, CallError> {
        let answer = tokio::time::timeout(SHORT, self.caller.fetch(path)).await;
        answer.unwrap_or(Err(ClientError::Lost)).map_err(why)
    }

    async fn post<T: DeserializeOwned>(
        &self,
        cargo: &Cargo,
        verb: &str,
        wanted: &impl Serialize,
        limit: Duration,
        mut tell: impl FnMut(&Progress),
    ) -> Result<T, CallError> {
        let path = format!("/v1/apps/{}/{verb}", encode(&cargo.app));
        let body = serde_json::to_value(wanted).map_err(|e| odd(&e))?;
        let answer = self.caller.act(&path, Some(&body), |line| {
            tell(line);
            ControlFlow::Continue(())
        });
        let answer = tokio::time::timeout(limit, answer).await.unwrap_or(Err(ClientError::Lost)).map_err(why)?;
        serde_json::from_str(answer.get()).map_err(|e| odd(&e))
    }
}

/// A lease in whole seconds, never shorter.
fn seconds(lease: Duration) -> u64 {
    (lease.as_secs() + u64::from(lease.subsec_nanos() > 0)).max(1)
}

fn odd(error: &serde_json::Error) -> CallError {
    CallError::Failed(format!("svctl and svd do not understand each other: {error}; are they of one version?").into())
}

fn why(error: ClientError) -> CallError {
    let ClientError::Api(error) = error else {
        return CallError::Unreachable(error.to_string().trim_end_matches('.').into());
    };
    match error.code {
        ErrorCode::Locked => CallError::Locked(error.message),
        ErrorCode::Fenced => {
            let highest = error.details.first().and_then(|text| text.parse().ok());
            CallError::Fenced { highest: highest.unwrap_or(u64::MAX) }
        }
        ErrorCode::NotLocked => CallError::NotLocked,
        ErrorCode::Busy => CallError::Busy(error.message),
        ErrorCode::Unavailable | ErrorCode::Timeout => CallError::Unreachable(error.message),
        _ => CallError::Failed(told(&error).into()),
    }
}

/// With the last lines of what failed.
fn told(error: &ApiError) -> String {
    let first = error.last_output.len().saturating_sub(QUOTED);
    let mut text = error.message.trim_end_matches('.').to_owned();
    for line in error.details.iter().chain(&error.last_output[first..]) {
        text.push_str("\n    ");
        text.push_str(line);
    }
    text
}

fn all_done(result: ActionResult) -> Result<(), CallError> {
    match result.services.into_iter().find_map(|s| s.error) {
        Some(error) => Err(CallError::Failed(told(&error).into())),
        None => Ok(()),
    }
}

/// Where the host is, or is on its way to.
fn view(status: &AppStatus, cargo: &Cargo, host: &str) -> View {
    // It was confirmed before this rollout, with what is to be replaced.
    let again = cargo.again.contains(host) && status.confirmed_by != cargo.rollout;
    if status.switching_to.as_ref() == Some(&cargo.release) {
        // What another driver has begun goes on, and is taken for done by whoever takes over.
        return View::OnTrial;
    }
    if status.trial.as_ref().is_some_and(|t| t.release == cargo.release && t.rollout == cargo.rollout) {
        View::OnTrial
    } else if status.confirmed.as_ref() == Some(&cargo.release) && status.trial.is_none() && !again {
        View::Confirmed
    } else {
        View::Before
    }
}

/// All services of the app together.
fn count(status: &AppStatus, cargo: &Cargo, host: &str, slow: Option<Duration>) -> Count {
    let Counts { requests, errors } = facts::decided(status);
    let traffic = || status.services.iter().filter_map(|s| s.traffic.as_ref());
    let slow = slow.and_then(|limit| traffic().map(|t| Some(t.slow.as_ref()?[facts::place(limit)])).sum());
    let totals = Some(Totals { requests, errors, overdue: facts::overdue(status), slow });
    let unreliable = traffic().any(|t| t.unreliable);
    let restarts = status.services.iter().map(|s| s.restarts).sum();
    let unfit = status.services.iter().find_map(|s| Some(format!("{}: {}", s.name, s.unfit.as_deref()?).into()));
    Count { totals, unreliable, restarts, unfit, view: view(status, cargo, host) }
}
