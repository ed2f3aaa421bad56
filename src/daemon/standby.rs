//! Generations beside the one that serves: a canary, and a copy of the release before, booted behind the gate (`[deploy] standby`): from what it is booted, whether it is of use for
//! a way back, and that it makes room where memory is short. When there is one, and until when, is the core's.

use super::host::{Host, Message};
use super::launch;
use super::unit::Task;
use crate::api::Reply;
use crate::api::request::{Name, Standby};
use crate::api::types::{ApiError, ErrorCode, ServiceResult};
use crate::config::diff;
use crate::core::{self, Canary, Command, Event, GenerationId, Role, ServiceId, Source};
use std::sync::Arc;
use std::time::Duration;

/// Between two looks at the memory, while there are standbys.
const LOOK: Duration = Duration::from_secs(10);

impl Host {
    /// What a request for a reload asks of the core.
    pub fn reload_command(
        &self,
        service: ServiceId,
        release: Option<Box<str>>,
        force: bool,
        standby: Standby,
    ) -> Command {
        let gated = || self.units.get(&service).is_some_and(|u| crate::kinds::gunicorn::is_gunicorn(&u.spec));
        let keep = match standby {
            // Anything else would answer the public as soon as it has booted.
            Standby::Keep(time) if gated() => Some(time),
            _ => None,
        };
        let recall = match (standby, &release) {
            (Standby::Recall, Some(release)) => self.standby_of(service, release),
            _ => None,
        };
        Command::Reload { release, force, keep, recall }
    }

    /// The standby that a new generation of the release would be no other than.
    fn standby_of(&self, service: ServiceId, release: &str) -> Option<u64> {
        let standby = self.machine.service(service)?.standby()?;
        let made = self.generations.get(&standby.id)?;
        let unit = self.units.get(&service)?;
        let differs = diff::needs(&made.plan.spec, &unit.spec)
            .is_some_and(|needs| !matches!(super::update::to_core(&unit.spec, needs), core::Change::Live));
        // One of whose workers is being replaced would serve with the others alone.
        let whole = made.gunicorn.as_ref().is_some_and(|g| g.ready.len() >= g.workers as usize);
        let booted = self.workers.values().any(|p| p.generation == standby.id && p.ready);
        let fits = made.plan.places.id.as_deref() == Some(release) && !differs && (whole || !booted);
        fits.then_some(standby.id.number)
    }

    /// One generation of gunicorn's workers beside the other, or its end.
    pub fn canary(&mut self, services: Vec<Name>, canary: &Canary, reply: Reply) {
        let call = self.begin_call(reply);
        for name in services {
            let Some(id) = self.machine.named(&name).map(|s| s.id) else {
                self.add_result(call, ServiceResult::failed(&name, super::control::unknown(&name)));
                continue;
            };
            if !self.units.get(&id).is_some_and(|u| crate::kinds::gunicorn::is_gunicorn(&u.spec)) {
                let why = format!("{name} is not run by gunicorn: a part of it cannot be tried beside the rest.");
                self.add_result(call, ServiceResult::failed(&name, ApiError::new(ErrorCode::BadRequest, why)));
                continue;
            }
            let (command, done) = match canary.workers {
                0 => (Command::Dismiss, "has no canary any more"),
                _ => (Command::Canary(canary.clone()), "canary serves"),
            };
            let op = self.begin_op(call, id, &name, done, core::Awaited::Nothing, Some(command.clone()));
            self.tell(Event::Command { op: Some(op), service: id, command });
        }
        self.finish_call(call);
    }

    /// Gunicorn's workers, where a generation has its own number of them.
    pub fn workers_of_canary(&self, id: GenerationId) -> Option<u32> {
        let canary = self.machine.service(id.service)?.canary().filter(|g| g.id == id)?;
        match &canary.source {
            Source::Canary(canary) => Some(canary.workers),
            _ => None,
        }
    }

    pub fn is_standby(&self, id: GenerationId) -> bool {
        self.machine.role(id) == Some(Role::Standby)
    }

    /// The release of an earlier generation, with the configuration that it had.
    pub fn prepare_standby(&mut self, id: GenerationId, source: &Source) {
        let had = match source {
            Source::Again { of } => self.plan_of(GenerationId { service: id.service, number: *of }),
            Source::Fresh { .. } | Source::Canary(_) => None,
        };
        let serving = self.machine.service(id.service).and_then(|s| s.committed()).and_then(|g| self.plan_of(g.id));
        let why = match (had, serving) {
            (None, _) => "what ran before is not known any more",
            (Some(had), _) if had.places.id.is_none() => "what ran before was no release",
            (Some(had), Some(serving)) if had.places.id == serving.places.id && had.spec == serving.spec => {
                "the release is the same"
            }
            (Some(had), _) => {
                let (spec, release) = (Arc::clone(&had.spec), had.places.id.clone());
                return self.plan_in_pool(id, spec, release);
            }
        };
        self.tell(Event::Prepared { generation: id, result: Err(why.to_owned()) });
    }

    /// Looks at the memory from time to time, if there are standbys.
    pub fn watch_memory(&mut self) {
        if self.standby_watch.is_some() || !self.machine.services().any(|s| s.standby().is_some()) {
            return;
        }
        let messages = self.messages.clone();
        self.standby_watch = Some(Task(tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                if messages.send(Message::LookAtMemory).await.is_err() {
                    return;
                }
            }
        })));
    }

    pub fn look_at_memory(&mut self) {
        let standbys = self.machine.services().filter(|s| s.standby().is_some()).map(|s| s.id);
        let standbys: Vec<ServiceId> = standbys.collect();
        if standbys.is_empty() {
            return self.standby_watch = None;
        }
        // Made by the kernel as it is read: no disk is asked.
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        if launch::memory_is_short(&text) {
            for service in standbys {
                self.tell(Event::Crowded { service, reason: "memory is short".to_owned() });
            }
        }
    }
}
