//! Steps of a deploy: what the service file says is run, once, where it is needed.

use super::book::{now, on_disk};
use super::command::{Place, ending};
use super::{Task, fence, release_id};
use crate::api::Reply;
use crate::api::apps::{StepName, StepOptions, StepResult};
use crate::api::types::{ApiError, ErrorCode};
use crate::config::spec::{Migrate, Step};
use crate::release::ReleaseId;
use crate::release::app::{Migrated, Refusal, StepState};
use crate::release::changed::changed;
use std::time::Duration;

/// For a look whether anything is pending.
const LOOK: Duration = Duration::from_secs(120);

fn not_run(reason: impl Into<Box<str>>) -> StepResult {
    StepResult { ran: false, reason: reason.into() }
}

impl Task {
    pub async fn step(&self, wanted: StepOptions, reply: &mut Reply) -> Result<StepResult, ApiError> {
        let id = release_id(&wanted.release)?;
        let theirs = fence(&wanted.fence);
        self.change(|app| {
            app.admit_change(now(), &theirs)?;
            app.releases.get(&id).map(drop).ok_or_else(|| Refusal::Unknown(id.clone()))
        })
        .await?;
        let name = wanted.step;
        let plain = |step: &Option<Step>| step.clone().map(|step| (step, None));
        let migration = |m: &Option<Migrate>| m.clone().map(|m| (m.step.clone(), Some(m)));
        let found = match name {
            StepName::Before => plain(&self.deploy.before),
            StepName::Verify => plain(&self.deploy.verify),
            StepName::Static => plain(&self.deploy.static_files),
            StepName::After => plain(&self.deploy.after),
            StepName::Migrate => migration(&self.deploy.migrate),
            StepName::MigrateAfter => migration(&self.deploy.migrate_after),
            StepName::MigrateDown => self.down(),
        };
        let Some((step, migrate)) = found else {
            return Ok(not_run(match name {
                StepName::MigrateDown => "[deploy.migrate] of the service file has no down".to_owned(),
                _ => format!("the service file has no [deploy.{}]", name.as_str()),
            }));
        };
        let migrated = self.book.app().releases.get(&id).and_then(|release| release.migrated);
        if name == StepName::MigrateDown && migrated.is_none() {
            return Ok(not_run(format!("no migration that came with {id} was run here")));
        }
        let _busy = self.begin("a step of a deploy runs")?;
        let place = self.place(&id).await?;
        if let Some(reason) = self.needless(&id, &place, &step, migrate.as_ref()).await? {
            return Ok(not_run(reason));
        }
        let key = format!("{} {}", wanted.fence.rollout, name.as_str());
        if let Some(migrate) = &migrate {
            let before = self.change(|app| Ok(app.begin_step(&key))).await?;
            if let Some(known) = self.done_before(name, migrate, before)? {
                return Ok(known);
            }
        }
        self.say(reply, name.as_str(), format!("{} begins", name.as_str()));
        let argv = self.words(&place, &step.command)?;
        let outcome = self.command(&place, name.as_str(), argv, step.timeout, Some(reply)).await;
        let ended = ending(&outcome.status);
        if migrate.is_some() {
            let state = if outcome.succeeded() { StepState::Done } else { StepState::Failed(ended.as_str().into()) };
            let migrated = if migrate.as_ref().is_some_and(|m| m.compatible) {
                Migrated::Compatible
            } else {
                Migrated::Incompatible
            };
            self.change(|app| {
                if state == StepState::Done && name == StepName::Migrate {
                    app.migrated(&id, Some(migrated));
                }
                app.end_step(&key, state);
                Ok(())
            })
            .await?;
        }
        if name == StepName::MigrateDown && outcome.succeeded() {
            self.change(|app| {
                app.migrated(&id, None);
                Ok(())
            })
            .await?;
        }
        self.tell(&wanted.fence, name.as_str(), Some(id.as_str()), &ended).await;
        if !outcome.succeeded() {
            let why = format!("{}: the step {} of {id} failed: {ended}.", self.book.name, name.as_str());
            return Err(ApiError::new(ErrorCode::Failed, why).last_output(outcome.last));
        }
        Ok(StepResult { ran: true, reason: "done".into() })
    }

    /// Nothing is pending for it: [`Migrated`] tells.
    fn down(&self) -> Option<(Step, Option<Migrate>)> {
        let migrate = self.deploy.migrate.as_ref().filter(|m| !m.down.is_empty())?;
        let step = Step { command: migrate.down.clone(), timeout: migrate.step.timeout, when_changed: Vec::new() };
        Some((step, None))
    }

    /// Why there is nothing to do.
    async fn needless(
        &self,
        id: &ReleaseId,
        place: &Place,
        step: &Step,
        migrate: Option<&Migrate>,
    ) -> Result<Option<String>, ApiError> {
        if let Some(pending) = migrate.map(|m| &m.pending).filter(|pending| !pending.is_empty()) {
            let argv = self.words(place, pending)?;
            let shown = argv.shown();
            let outcome = self.command(place, "pending", argv, Some(LOOK), None).await;
            if outcome.status.is_err() {
                let why = format!("{}: `{shown}` {}.", self.book.name, ending(&outcome.status));
                return Err(ApiError::new(ErrorCode::Failed, why).last_output(outcome.last));
            }
            return Ok(outcome.succeeded().then(|| format!("nothing is pending, says `{shown}`")));
        }
        if step.when_changed.is_empty() {
            return Ok(None);
        }
        let serving = self.book.app().serving().cloned();
        let Some(serving) = serving else { return Ok(None) };
        let venv = |id: &ReleaseId| self.book.app().releases.get(id).and_then(|r| r.venv.clone());
        if venv(&serving) != venv(id) {
            return Ok(None);
        }
        let (old, new) = (self.layout.release(&serving), self.layout.release(id));
        let globs = step.when_changed.clone();
        let found = on_disk(move || changed(&old, &new, &globs)).await.map_err(|why| self.failed(why))?;
        let reason = format!("none of {} differs from {serving}", step.when_changed.join(", "));
        Ok(found.is_none().then_some(reason))
    }

    /// A migration is done once a rollout.
    fn done_before(
        &self,
        name: StepName,
        migrate: &Migrate,
        before: Option<StepState>,
    ) -> Result<Option<StepResult>, ApiError> {
        match before {
            None | Some(StepState::Failed(_)) => Ok(None),
            Some(StepState::Done) => Ok(Some(not_run("it was done before in this rollout"))),
            // Whoever can say what is pending has just said so.
            Some(StepState::Begun) if !migrate.pending.is_empty() => Ok(None),
            Some(StepState::Begun) => {
                let why = format!(
                    "{}: the step {} was begun, and svd has died in it: how far it came is not known.",
                    self.book.name,
                    name.as_str()
                );
                let hint = "Look at the database. With a `pending` command, svd could tell by itself.";
                Err(ApiError::new(ErrorCode::Conflict, why).hint(hint))
            }
        }
    }
}
