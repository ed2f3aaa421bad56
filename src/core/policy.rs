//! The numbers of a service file that decisions need.

use crate::config::spec::{HealthAction, Kind, Restart, Service};
use serde::{Deserialize, Serialize};
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
