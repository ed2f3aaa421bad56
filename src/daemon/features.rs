//! What services ask for, against what this host has: an update that asks for more is refused as a whole, a start as well.

mod limits;

use crate::config::spec::Service;
use crate::sys::worker::Containment;

/// What svd and its host have, found out once.
pub struct Features {
    limits: limits::Features,
}

/// A key that this host cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// `limits.memory`
    pub key: &'static str,
    /// A sentence without its full stop: the key, the feature, what to do.
    pub why: String,
}

impl Features {
    /// `no_tree`: why there are no control groups, if so.
    pub fn probe(containment: &Containment, no_tree: Option<String>) -> Features {
        Features { limits: limits::Features::probe(containment, no_tree) }
    }

    pub fn limits(&self) -> &limits::Features {
        &self.limits
    }

    /// All that the service asks for and cannot have here. Switches on the controllers that it can have.
    pub fn missing(&self, spec: &Service) -> Vec<Missing> {
        let mut missing = self.limits.missing(&spec.limits);
        missing.retain(|missing| !may_lack(spec, missing.key));
        missing
    }

    /// The same of many services, `NAME: why`.
    pub fn refused<'a>(&self, specs: impl Iterator<Item = &'a Service>) -> Vec<String> {
        let mut refused = Vec::new();
        for spec in specs {
            refused.extend(self.missing(spec).into_iter().map(|missing| format!("{}: {}", spec.name, missing.why)));
        }
        refused
    }

    /// # Errors
    /// The same, as one sentence.
    pub fn suffice(&self, spec: &Service) -> Result<(), String> {
        let missing: Vec<String> = self.missing(spec).into_iter().map(|missing| missing.why).collect();
        if missing.is_empty() { Ok(()) } else { Err(missing.join("; ")) }
    }
}

/// Does the file allow the service to run without this?
fn may_lack(_spec: &Service, _key: &str) -> bool {
    false
}
