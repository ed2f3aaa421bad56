//! Reloads (`svctl reload`, and of an update). Where the old generation is stopped first (`overlap = false`), what the new one
//! needs is looked at before that: a release that does not exist must not cost an interruption.

use super::host::{Host, Message};
use super::launch;
use super::pool::Lane;
use crate::config::spec::Service;
use crate::core::{Command, Event, Failure, OpId, ServiceId};
use std::sync::Arc;

/// A command that waits for a look at what it would start.
pub struct Look {
    pub op: Option<OpId>,
    pub service: ServiceId,
    pub command: Command,
}

impl Host {
    /// Tells the state machine what somebody wants; a reload that stops what serves, once it is known that the new generation can
    /// be prepared.
    pub fn give(&mut self, op: Option<OpId>, service: ServiceId, command: Command) {
        let release = match &command {
            Command::Reload { release, .. } => release.clone(),
            _ => return self.tell(Event::Command { op, service, command }),
        };
        let Some(spec) = self.stopped_first(service) else {
            return self.tell(Event::Command { op, service, command });
        };
        let secrets = self.secrets_of(service);
        let (users, pool, messages) = (Arc::clone(&self.users), self.pool.clone(), self.messages.clone());
        tokio::task::spawn_local(async move {
            let plan = move || launch::plan(&spec, release.as_deref(), &users);
            let result = match pool.run(Lane::Files(service), plan).await {
                Ok(plan) => secrets.give(plan).await.map(drop),
                Err(why) => Err(why),
            };
            let _ = messages.send(Message::LookedAt(Look { op, service, command }, result)).await;
        });
    }

    /// The file of a service that serves, and would not while its new generation boots.
    pub fn stopped_first(&self, id: ServiceId) -> Option<Arc<Service>> {
        self.machine.service(id).filter(|service| service.committed().is_some())?;
        let spec = &self.units.get(&id)?.spec;
        (!spec.reload.overlap).then(|| Arc::clone(spec))
    }

    /// `result`: an error where the new generation cannot even be prepared: what runs goes on as it is.
    pub fn handle_looked_at(&mut self, look: Look, result: Result<(), String>) {
        let Look { op, service, command } = look;
        let Err(why) = result else { return self.tell(Event::Command { op, service, command }) };
        let reason = format!("{why}; nothing was stopped, what runs goes on");
        // Who sends SIGHUP is answered nowhere else.
        let text = format!("is not reloaded: {reason}");
        if let Some(op) = op {
            self.handle_done(op, Err(Failure { reason, generation: None }));
        }
        self.warn(Some(service), &text);
    }
}
