//! A copy of the release before, booted behind the gate (`[deploy] standby`): from what it is booted, whether it is of use for
//! a way back, and that it makes room where memory is short. When there is one, and until when, is the core's.

use super::host::{Host, Message};
use super::launch;
use super::unit::Task;
use crate::api::request::Standby;
use crate::config::diff;
use crate::core::{self, Command, Event, GenerationId, Role, ServiceId, Source};
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

    pub fn is_standby(&self, id: GenerationId) -> bool {
        self.machine.role(id) == Some(Role::Standby)
    }

    /// The release of an earlier generation, with the configuration that it had.
    pub fn prepare_standby(&mut self, id: GenerationId, source: &Source) {
        let had = match source {
            Source::Again { of } => self.plan_of(GenerationId { service: id.service, number: *of }),
            Source::Fresh { .. } => None,
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
