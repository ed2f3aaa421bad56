//! Steps of a deploy: what the service file says is run, once, where it is needed.

use super::book::{now, on_disk};
use super::command::{Place, ending};
use super::{Task, fence};
use crate::api::Reply;
use crate::api::apps::{StepName, StepOptions, StepResult};
use crate::api::types::{ApiError, ErrorCode};
use crate::config::spec::{Migrate, Step};
use crate::release::ReleaseId;
use crate::release::app::{App, Migrated, StepState};
use crate::release::changed::changed;
use std::time::Duration;

/// For a look whether anything is pending.
const LOOK: Duration = Duration::from_secs(120);

fn not_run(reason: impl Into<Box<str>>) -> StepResult {
    StepResult { ran: false, reason: reason.into() }
}

impl Task {
    pub async fn step(&self, wanted: StepOptions, reply: &mut Reply) -> Result<StepResult, ApiError> {
        let id = self.admitted(&wanted.fence, &wanted.release).await?;
        let name = wanted.step;
        let Some((step, migrate)) = self.in_file(name) else {
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
        // What cannot be begun is not said to be.
        let argv = self.words(&place, &step.command)?;
        let key = match name {
            // One rollback leaves several releases.
            StepName::MigrateDown => format!("{} {id} {}", wanted.fence.rollout, name.as_str()),
            _ => format!("{} {}", wanted.fence.rollout, name.as_str()),
        };
        let is_noted = migrate.is_some() || name == StepName::MigrateDown;
        if is_noted {
            let theirs = fence(&wanted.fence);
            // Whether anything is pending may have taken its time.
            let begin = |app: &mut App| app.admit_change(now(), &theirs).map(|()| app.begin_step(&key));
            let before = self.change(begin).await?;
            let can_tell = migrate.as_ref().is_some_and(|m| !m.pending.is_empty());
            if let Some(known) = self.done_before(name, can_tell, before)? {
                return Ok(known);
            }
        }
        self.say(reply, name.as_str(), format!("{} begins", name.as_str()));
        let outcome = self.command(&place, name.as_str(), argv, step.timeout, Some(reply)).await;
        let ended = ending(&outcome.status);
        if is_noted {
            let state = if outcome.succeeded() { StepState::Done } else { StepState::Failed(ended.as_str().into()) };
            let migrated = if migrate.as_ref().is_some_and(|m| m.compatible) {
                Migrated::Compatible
            } else {
                Migrated::Incompatible
            };
            self.change(|app| {
                match (name, &state) {
                    (StepName::Migrate, StepState::Done) => app.migrated(&id, Some(migrated)),
                    (StepName::MigrateDown, StepState::Done) => app.migrated(&id, None),
                    _ => {}
                }
                app.end_step(&key, state);
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

    /// What the service file says of a step.
    fn in_file(&self, name: StepName) -> Option<(Step, Option<Migrate>)> {
        let plain = |step: &Option<Step>| step.clone().map(|step| (step, None));
        let migration = |m: &Option<Migrate>| m.clone().map(|m| (m.step.clone(), Some(m)));
        match name {
            StepName::Before => plain(&self.deploy.before),
            StepName::Verify => plain(&self.deploy.verify),
            StepName::Static => plain(&self.deploy.static_files),
            StepName::After => plain(&self.deploy.after),
            StepName::Migrate => migration(&self.deploy.migrate),
            StepName::MigrateAfter => migration(&self.deploy.migrate_after),
            StepName::MigrateDown => self.down(),
        }
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

    /// A migration is done once a rollout. `can_tell`: the service file has a command that says what is pending.
    fn done_before(
        &self,
        name: StepName,
        can_tell: bool,
        before: Option<StepState>,
    ) -> Result<Option<StepResult>, ApiError> {
        match before {
            None | Some(StepState::Failed(_)) => Ok(None),
            Some(StepState::Done) => Ok(Some(not_run("it was done before in this rollout"))),
            // Whoever can say what is pending has just said so.
            Some(StepState::Begun) if can_tell => Ok(None),
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
