//! What services ask for, against what this host has: an update that asks for more is refused as a whole, a start as well.

pub mod isolation;
mod limits;

use super::network;
use crate::config::spec::{Limits, Network, Service};
use crate::sys::worker::Containment;
use std::borrow::Cow;
use std::sync::Arc;

/// What svd and its host have, found out once.
pub struct Features {
    limits: limits::Features,
    isolation: Arc<isolation::Features>,
}

/// A key that this host cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// As `optional` names it: `limits.memory`, `landlock`.
    pub key: &'static str,
    /// A sentence without its full stop: the key, the feature, what to do.
    pub why: String,
}

impl Features {
    /// `no_tree`: why there are no control groups, if so.
    pub fn probe(containment: &Containment, no_tree: Option<String>, isolation: Arc<isolation::Features>) -> Features {
        Features { limits: limits::Features::probe(containment, no_tree), isolation }
    }

    pub fn limits(&self) -> &limits::Features {
        &self.limits
    }

    /// All that the service asks for and cannot have here. Only looks.
    pub fn missing(&self, spec: &Service) -> Vec<Missing> {
        let mut missing = self.limits.missing(&spec.limits);
        missing.retain(|missing| !may_lack(spec, missing.key));
        missing.extend(self.isolation.missing(spec));
        missing.extend(network(spec));
        missing
    }

    /// What the service may lack, and is started without: each a sentence without its end.
    pub fn left_out(&self, spec: &Service) -> Vec<String> {
        if spec.isolation.as_ref().is_none_or(|isolation| isolation.optional.is_empty()) {
            return Vec::new();
        }
        let limits = self.limits.missing(&spec.limits).into_iter().filter(|missing| may_lack(spec, missing.key));
        let all = limits.map(|missing| missing.why).chain(self.isolation.left_out(spec));
        all.map(|why| format!("left out, as [isolation] optional allows: {why}")).collect()
    }

    /// The limits of a service without those that it may lack and cannot have here.
    pub fn limits_of<'a>(&self, spec: &'a Service) -> Cow<'a, Limits> {
        let lacks = |key: &str| key.starts_with("limits.") && may_lack(spec, key);
        let optional = spec.isolation.iter().flat_map(|isolation| &isolation.optional);
        if !optional.into_iter().any(|key| key.starts_with("limits.")) {
            return Cow::Borrowed(&spec.limits);
        }
        let mut limits = (*spec.limits).clone();
        for missing in self.limits.lacking(&spec.limits).iter().filter(|missing| lacks(missing.key)) {
            limits.leave_out(missing.key);
        }
        Cow::Owned(limits)
    }

    /// The same of many services, `NAME: why`.
    pub fn refused<'a>(&self, specs: impl Iterator<Item = &'a Service>) -> Vec<String> {
        let mut refused = Vec::new();
        for spec in specs {
            refused.extend(self.missing(spec).into_iter().map(|missing| format!("{}: {}", spec.name, missing.why)));
        }
        refused
    }

    /// The same for a start: what it can have is switched on.
    ///
    /// # Errors
    /// One sentence.
    pub fn suffice(&self, spec: &Service) -> Result<(), String> {
        let mut missing = self.missing(spec);
        if missing.is_empty() {
            missing.extend(self.limits.lacking(&spec.limits));
            missing.retain(|missing| !may_lack(spec, missing.key));
        }
        let missing: Vec<String> = missing.into_iter().map(|missing| missing.why).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
    }
}

/// Where each process has a network for itself, svd is in none of them.
fn network(spec: &Service) -> Option<Missing> {
    let settings = crate::isolation::of(spec);
    if settings.network == Network::Host || !(spec.counts.statsd || spec.has_check_of_port()) || network::can_be_kept()
    {
        return None;
    }
    let why = "[isolation] network: svd must connect to a port of the service's or be sent its counts, and needs CAP_SYS_ADMIN \
               for that, which root has; run svd as root, leave network out, or let the check be a command";
    Some(Missing { key: "network", why: why.to_owned() })
}

/// Does the file allow the service to run without this?
fn may_lack(spec: &Service, key: &str) -> bool {
    spec.isolation.iter().any(|isolation| isolation.optional.iter().any(|optional| **optional == *key))
}
