//! The numbers of a service file that decisions need.

use super::service::Service as Running;
use crate::config::spec::{HealthAction, Kind, Restart, Service};
use serde::{Deserialize, Serialize};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Gunicorn's default `graceful_timeout` of 30 s, plus 5 s.
const GUNICORN_GRACE: Duration = Duration::from_secs(35);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Slots of a generation.
    pub instances: u32,
    pub overlap: bool,
    pub drain: Duration,
    pub max_draining: u32,
    pub ready_timeout: Duration,
    pub stop_signal: i32,
    pub grace: Duration,
    pub restart: Arc<Restart>,
    pub health_restarts: bool,
    pub after: Vec<Box<str>>,
    pub requires: Vec<Box<str>>,
}

/// The policies of a service and its generations, written apart from their states: they are long, and change seldom.
#[derive(Serialize)]
pub struct Policies<'a> {
    own: &'a Rc<Policy>,
    /// Of generations that began with another one, by their numbers.
    others: Vec<(u64, &'a Rc<Policy>)>,
}

/// [`Policies`] that were read.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SavedPolicies {
    own: Rc<Policy>,
    others: Vec<(u64, Rc<Policy>)>,
}

impl<'a> Policies<'a> {
    pub(super) fn of(service: &'a Running) -> Policies<'a> {
        let own = &service.policy;
        let others = service.generations.iter().filter(|g| !Rc::ptr_eq(&g.policy, own));
        Policies { own, others: others.map(|g| (g.id.number, &g.policy)).collect() }
    }

    /// A copy.
    pub fn saved(&self) -> SavedPolicies {
        SavedPolicies {
            own: Rc::clone(self.own),
            others: self.others.iter().map(|(number, policy)| (*number, Rc::clone(policy))).collect(),
        }
    }
}

impl SavedPolicies {
    pub(super) fn give_to(&self, service: &mut Running) {
        for generation in &mut service.generations {
            let other = self.others.iter().find(|(number, _)| *number == generation.id.number);
            generation.policy = Rc::clone(other.map_or(&self.own, |(_, policy)| policy));
        }
        service.policy = Rc::clone(&self.own);
    }
}

/// Until [`SavedPolicies`] are given.
pub(super) fn unknown() -> Rc<Policy> {
    thread_local! {
        static UNKNOWN: Rc<Policy> = Rc::new(Policy {
            instances: 1,
            overlap: false,
            drain: Duration::ZERO,
            max_draining: 1,
            ready_timeout: Duration::from_secs(60),
            stop_signal: libc::SIGTERM,
            grace: GUNICORN_GRACE,
            restart: Arc::new(Restart::default()),
            health_restarts: false,
            after: Vec::new(),
            requires: Vec::new(),
        });
    }
    UNKNOWN.with(Rc::clone)
}

impl Policy {
    pub fn new(service: &Service) -> Policy {
        Policy {
            instances: match service.kind {
                Kind::Command { .. } => service.instances,
                _ => 1,
            },
            overlap: service.overlaps(),
            drain: service.reload.drain,
            max_draining: service.reload.max_draining,
            ready_timeout: service.ready.timeout,
            stop_signal: service.stop.signal,
            grace: service.stop.grace.unwrap_or(GUNICORN_GRACE),
            restart: service.restart.clone(),
            health_restarts: service.health.as_ref().is_some_and(|h| h.action == HealthAction::Restart),
            after: service.after.clone(),
            requires: service.requires.clone(),
        }
    }
}
