//! Who may do what. Pure: a peer, the rules, a verb and a name go in, yes or no comes out.

use std::sync::Arc;

use super::peer::Peer;
use super::request::Verb;
use crate::config::spec::AccessRule;

/// The rules in force, and the user who may everything beside root.
#[derive(Clone, Debug)]
pub struct Access {
    /// svd's own user.
    pub owner: u32,
    pub rules: Arc<[AccessRule]>,
}

impl Access {
    /// Root and svd's own user may do everything.
    pub fn is_master(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.owner
    }

    /// May `peer` do `verb` on the service `name`? For verbs of the host the name is not looked at.
    ///
    /// `upgrade` replaces what runs as svd's user, so no rule can give more than the word itself; see
    /// [`Verb::is_of_the_host`] for verbs that need a rule over all services.
    pub fn allows(&self, peer: &Peer, verb: Verb, name: &str) -> bool {
        if self.is_master(peer) || verb == Verb::Version {
            return true;
        }
        let of_the_host = verb.is_of_the_host();
        self.rules.iter().filter(|rule| concerns(rule, peer) && grants(rule, verb)).any(|rule| {
            rule.services.iter().any(|pattern| if of_the_host { &**pattern == "*" } else { matches(pattern, name) })
        })
    }

    /// What of all services `peer` may `verb`.
    pub fn scope(&self, peer: &Peer, verb: Verb) -> Scope {
        if self.is_master(peer) {
            return Scope::everything();
        }
        let allowed = self
            .rules
            .iter()
            .filter(|rule| concerns(rule, peer) && grants(rule, verb))
            .flat_map(|rule| rule.services.iter().cloned())
            .collect();
        Scope { wanted: vec!["*".into()], allowed: Some(allowed) }
    }
}

/// A set of services that is described rather than listed, as services come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    wanted: Vec<Box<str>>,
    /// `None`: all.
    allowed: Option<Vec<Box<str>>>,
}

impl Scope {
    pub fn everything() -> Scope {
        Scope { wanted: vec!["*".into()], allowed: None }
    }

    /// Of these, the ones that fit `patterns` (all, if there are none).
    pub fn wanting(mut self, patterns: Vec<Box<str>>) -> Scope {
        if !patterns.is_empty() {
            self.wanted = patterns;
        }
        self
    }

    /// The patterns that were asked for.
    pub fn wanted(&self) -> &[Box<str>] {
        &self.wanted
    }

    /// No rule grants anything.
    pub fn is_nothing(&self) -> bool {
        self.allowed.as_ref().is_some_and(Vec::is_empty)
    }

    pub fn includes(&self, name: &str) -> bool {
        let fits = |patterns: &[Box<str>]| patterns.iter().any(|p| matches(p, name));
        fits(&self.wanted) && self.allowed.as_deref().is_none_or(fits)
    }
}

/// By name or by number. A rule that names nobody concerns nobody.
fn concerns(rule: &AccessRule, peer: &Peer) -> bool {
    let user = rule.users.iter().any(|want| is(want, &peer.user, peer.uid));
    let group = || rule.groups.iter().any(|want| peer.groups.iter().any(|have| is(want, &have.name, have.gid)));
    user || group()
}

fn is(want: &str, name: &str, number: u32) -> bool {
    // An unknown user has the empty name, which must not meet an empty entry of a rule.
    (!name.is_empty() && want == name) || want.parse() == Ok(number)
}

fn grants(rule: &AccessRule, verb: Verb) -> bool {
    let everything = !matches!(verb, Verb::Exec | Verb::Upgrade | Verb::Deploy);
    rule.verbs.iter().any(|v| &**v == verb.as_str() || (everything && &**v == "*"))
}

/// `*` stands for any characters, also none; everything else for itself.
pub fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where the last star was, and how much of the name it takes; going back to it alone is enough.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, n));
            p += 1;
        } else if p < pattern.len() && pattern[p] == name[n] {
            p += 1;
            n += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            n = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

pub fn is_pattern(name: &str) -> bool {
    name.contains('*')
}

#[cfg(test)]
#[path = "access_test.rs"]
mod tests;
