//! Health checks while a service runs.

use super::host::{Host, Message};
use super::probe;
use super::unit::Task;
use crate::api::types::HealthState;
use crate::config::spec::HealthAction;
use crate::core::{Event, GenerationId, ServiceId};
use std::time::SystemTime;

impl Host {
    /// The checks of a generation that was just committed, instead of the one before.
    pub fn begin_health(&mut self, id: GenerationId) {
        let Some(unit) = self.units.get_mut(&id.service) else { return };
        unit.health = None;
        let Some(health) = unit.spec.health.clone() else { return };
        let Some(by) = &health.by else { return };
        unit.health = Some(Box::default());
        let target = match self.target(id, 0, by) {
            Ok(mut target) => {
                if !matches!(by, crate::config::spec::ReadyBy::Http(_)) {
                    target.limit = health.timeout;
                }
                target
            }
            Err(text) => return self.warn(Some(id.service), &format!("cannot be checked: {text}")),
        };
        let messages = self.messages.clone();
        let task = tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(health.interval).await;
                let Some(result) = probe::run(&target, &messages).await else { continue };
                let message = Message::Health { service: id.service, generation: id.number, result };
                if messages.send(message).await.is_err() {
                    return;
                }
            }
        });
        if let Some(health) = self.units.get_mut(&id.service).and_then(|u| u.health.as_mut()) {
            health.task = Some(Task(task));
        }
    }

    pub fn handle_health(&mut self, service: ServiceId, generation: u64, result: Result<(), String>) {
        let committed = self.machine.service(service).and_then(|s| s.committed()).map(|g| g.id.number);
        let Some(unit) = self.units.get_mut(&service) else { return };
        if committed != Some(generation) {
            return;
        }
        let Some(spec) = &unit.spec.health else { return };
        let (limit, action) = (spec.failures, spec.action);
        let Some(health) = &mut unit.health else { return };
        health.last = Some(SystemTime::now());
        match result {
            Ok(()) => {
                let was = std::mem::replace(&mut health.state, HealthState::Healthy);
                health.failures = 0;
                health.message = None;
                if was == HealthState::Unhealthy {
                    self.info(Some(service), "is healthy again");
                }
            }
            Err(reason) => {
                health.failures = health.failures.saturating_add(1);
                health.message = Some(reason.as_str().into());
                if health.failures < limit {
                    return;
                }
                let was = std::mem::replace(&mut health.state, HealthState::Unhealthy);
                let failures = health.failures;
                if was != HealthState::Unhealthy {
                    self.warn(Some(service), &format!("is unhealthy: {reason} ({failures} times in a row)"));
                }
                if action == HealthAction::Restart {
                    self.tell(Event::Unhealthy { service, reason });
                }
            }
        }
    }
}
