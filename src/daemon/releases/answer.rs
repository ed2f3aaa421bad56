//! How things stand with an app.

use super::book::{now, seconds};
use super::{Task, shown};
use crate::api::Request;
use crate::api::apps::{
    AppService, AppStatus, History, LockStatus, MigrationFacts, ReleaseState, ReleaseStatus, StepName, TrialStatus,
};
use crate::api::types::{ApiError, FullStatusList, HealthState, ServiceState, ServiceStatus, rfc3339};
use crate::config::spec::{Build, BuildOn, Deploy, Kind, StepOn};
use crate::release::ReleaseId;
use crate::release::app::{App, Lock, Moment, Release, State, Trial};
use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

/// For the disk to say what `current` names.
const LOOK: Duration = Duration::from_secs(5);

impl Task {
    pub async fn status(&self, configuration: bool) -> Result<AppStatus, ApiError> {
        let services = self.running().await?;
        let configuration = if configuration { Some(self.configuration().await) } else { None };
        let layout = self.layout.clone();
        let current = self.book.look(LOOK, move || Ok(layout.current_release())).await;
        let current = current.map_err(|trouble| self.failed(format!("its releases cannot be looked at: {trouble}")))?;
        let app = self.book.app();
        let name = |id: Option<&ReleaseId>| id.map(|id| id.as_str().into());
        let mut releases: Vec<_> = app.releases.iter().collect();
        releases.sort_by_key(|(_, release)| release.number);
        Ok(AppStatus {
            app: self.book.name.clone(),
            root: self.book.root.to_string_lossy().into(),
            services,
            current: name(current.as_ref()),
            confirmed: name(app.confirmed.as_ref()),
            confirmed_by: app.confirmed_by.clone(),
            previous: name(app.previous()),
            trial: app.trial.as_ref().map(trial),
            switching_to: app.switch.as_ref().and_then(|s| name(s.to.as_ref())),
            lock: app.lock.as_ref().map(lock),
            fence: shown(&app.fence),
            releases: releases.into_iter().map(|(id, known)| release(&app, id, known)).collect(),
            may_deploy: self.may_deploy,
            steps: steps(&self.deploy),
            migration: self.deploy.migrate.as_ref().map(|m| MigrationFacts {
                on_each_host: m.on == StepOn::EachHost,
                compatible: m.compatible,
                after: self.deploy.migrate_after.is_some(),
            }),
            builds: self.deploy.build != Build::Nothing && !matches!(self.lead.kind, Kind::Jvm { .. }),
            built_here: self.deploy.build_on == BuildOn::Here,
            requirements: self.deploy.requirements.clone(),
            static_when_changed: self.deploy.static_files.iter().flat_map(|s| s.when_changed.clone()).collect(),
            journal: self.book.kept.mark(),
            configuration,
            alert: app.alert.clone(),
        })
    }

    /// What really runs of each service.
    pub async fn running(&self) -> Result<Vec<AppService>, ApiError> {
        Ok(self.full().await?.into_iter().map(service).collect())
    }

    async fn full(&self) -> Result<Vec<ServiceStatus>, ApiError> {
        let services = self.services.iter().map(|s| (&*s.name).into()).collect();
        let list: FullStatusList = self.ask(Request::Status { services, full: true }, None).await?;
        Ok(list.services)
    }

    /// Releases that any process runs, also one that drains still or is a standby.
    pub async fn in_use(&self) -> Result<BTreeSet<ReleaseId>, ApiError> {
        let services = self.full().await?;
        let generations = services.iter().flat_map(|s| &s.generations).filter_map(|g| g.release.as_deref());
        let all = services.iter().filter_map(|s| s.release.as_deref()).chain(generations);
        Ok(all.filter_map(|id| ReleaseId::new(id).ok()).collect())
    }

    pub async fn history(&self, lines: u64) -> Result<History, ApiError> {
        let most = usize::try_from(lines).unwrap_or(usize::MAX);
        let entries = self.book.history(most).await.map_err(|why| self.failed(why))?;
        Ok(History { entries })
    }
}

fn service(status: ServiceStatus) -> AppService {
    let ill = status.health.filter(|health| health.state == HealthState::Unhealthy);
    let ill = ill.map(|health| format!("unhealthy: {}", health.message.as_deref().unwrap_or("its check fails")));
    let unfit = match status.state {
        ServiceState::Failed | ServiceState::Backoff => {
            Some(format!("{}: {}", status.state.as_str(), status.reason.as_deref().unwrap_or("it fails")))
        }
        _ => ill,
    };
    AppService {
        name: status.name,
        state: status.state,
        release: status.release,
        generation: status.generation,
        restarts: status.restarts,
        unfit: unfit.map(Into::into),
        traffic: status.traffic,
    }
}

fn left(until: Moment) -> u64 {
    until.0.saturating_sub(now().0) / 1000
}

fn trial(trial: &Trial) -> TrialStatus {
    TrialStatus {
        release: trial.release.as_str().into(),
        before: trial.before.as_ref().map(|id| id.as_str().into()),
        rollout: trial.fence.rollout.clone(),
        seconds_left: left(trial.until),
        holds: trial.holds,
    }
}

pub fn lock(lock: &Lock) -> LockStatus {
    LockStatus {
        fence: shown(&lock.fence),
        holder: lock.holder.clone(),
        since: rfc3339(UNIX_EPOCH + Duration::from_secs(lock.since)),
        since_seconds: seconds().saturating_sub(lock.since),
        seconds_left: lock.until.map(left),
        message: lock.message.clone(),
    }
}

fn release(app: &App, id: &ReleaseId, release: &Release) -> ReleaseStatus {
    let on_trial = app.trial.as_ref().is_some_and(|trial| trial.release == *id);
    let (state, reason) = match &release.state {
        _ if on_trial => (ReleaseState::Trial, None),
        State::Staged => (ReleaseState::Staged, None),
        State::Built => (ReleaseState::Built, None),
        State::Confirmed => (ReleaseState::Confirmed, None),
        State::Failed(why) => (ReleaseState::Failed, Some(why.clone())),
    };
    ReleaseStatus {
        release: id.as_str().into(),
        state,
        reason,
        source: release.about.source.clone(),
        label: release.about.label.clone(),
        by: release.about.by.clone(),
        since: rfc3339(UNIX_EPOCH + Duration::from_secs(release.staged_at)),
        since_seconds: seconds().saturating_sub(release.staged_at),
        migrated: release.migrated,
        serving: app.serving() == Some(id),
    }
}

fn steps(deploy: &Deploy) -> Vec<StepName> {
    let there = |step: &StepName| match step {
        StepName::Before => deploy.before.is_some(),
        StepName::Verify => deploy.verify.is_some(),
        StepName::Migrate => deploy.migrate.is_some(),
        StepName::Static => deploy.static_files.is_some(),
        StepName::MigrateAfter => deploy.migrate_after.is_some(),
        StepName::MigrateDown => deploy.migrate.as_ref().is_some_and(|m| !m.down.is_empty()),
        StepName::After => deploy.after.is_some(),
    };
    StepName::ALL.into_iter().filter(there).collect()
}
