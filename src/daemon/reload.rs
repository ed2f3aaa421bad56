//! `svctl reload`. Where the old generation is stopped first (`overlap = false`), what the new one needs is looked at before
//! that: a release that does not exist must not cost an interruption.

use super::host::{Host, Message};
use super::launch;
use super::pool::Lane;
use crate::api::Reply;
use crate::api::request::Name;
use crate::api::types::{ApiError, ErrorCode, ServiceResult};
use crate::config::spec::Service;
use crate::core::{Command, ServiceId};
use std::sync::Arc;

/// What was asked for.
pub struct Reload {
    pub services: Vec<Name>,
    pub release: Option<Box<str>>,
    pub force: bool,
    pub reply: Reply,
}

impl Host {
    pub fn reload(&mut self, asked: Reload) {
        let first: Vec<(Name, ServiceId, Arc<Service>)> =
            asked.services.iter().filter_map(|name| self.stopped_first(name)).collect();
        if first.is_empty() {
            return self.reload_the_fit(asked, Vec::new());
        }
        let (own, pool, messages) = (self.own.clone(), self.pool.clone(), self.messages.clone());
        tokio::task::spawn_local(async move {
            let mut unfit = Vec::new();
            for (name, id, spec) in first {
                let (own, release) = (own.clone(), asked.release.clone());
                let plan = move || launch::plan(&spec, release.as_deref(), &own, &[]).map(drop);
                if let Err(why) = pool.run(Lane::Files(id), plan).await {
                    unfit.push((name, why));
                }
            }
            let _ = messages.send(Message::ReloadLookedAt { asked: Box::new(asked), unfit }).await;
        });
    }

    /// A service that serves, and would not while its new generation boots.
    fn stopped_first(&self, name: &Name) -> Option<(Name, ServiceId, Arc<Service>)> {
        let id = self.machine.named(name).filter(|service| service.committed().is_some())?.id;
        let spec = &self.units.get(&id)?.spec;
        (!spec.reload.overlap).then(|| (name.clone(), id, Arc::clone(spec)))
    }

    /// `unfit`: those whose new generation cannot even be prepared, and why; they go on as they are.
    pub fn reload_the_fit(&mut self, asked: Reload, unfit: Vec<(Name, String)>) {
        let Reload { services, release, force, reply } = asked;
        let call = self.begin_call(reply);
        let is_fit = |name: &Name| !unfit.iter().any(|(other, _)| other == name);
        let fit: Vec<Name> = services.into_iter().filter(is_fit).collect();
        for (name, why) in unfit {
            let text = format!("{name}: {why}; nothing was stopped, what runs goes on.");
            self.add_result(call, ServiceResult::failed(&name, ApiError::new(ErrorCode::Failed, text)));
        }
        self.each_of(call, fit, "reloaded", |_, _| Command::Reload { release: release.clone(), force });
    }
}
