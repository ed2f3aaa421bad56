//! What `-H` means: hosts by name, by group, by pattern, or all.

use super::names::ALL;
use super::spec::{Fleet, Host};
use crate::api::access::{is_pattern, matches};
use crate::config::suggest;

/// A name that no host or group has, or a pattern that none fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", match is_pattern(name) {
    true => format!("{name:?} fits no host of the fleet."),
    false => format!("The fleet has no host or group {name:?}."),
})]
pub struct UnknownHost {
    pub name: String,
    /// What it was probably meant to be.
    pub near: Option<String>,
}

impl Fleet {
    /// The hosts that are meant, in the fleet's order, each once: names, groups, patterns in which `*` stands for any
    /// characters, `all`.
    ///
    /// # Errors
    /// The first name that is unknown: nothing is done to the others then.
    pub fn select(&self, wanted: &[impl AsRef<str>]) -> Result<Vec<&Host>, UnknownHost> {
        let mut chosen = vec![false; self.hosts.len()];
        for name in wanted.iter().map(AsRef::as_ref) {
            if !choose(name, self, &mut chosen) {
                return Err(UnknownHost { name: name.to_owned(), near: near(name, self).map(str::to_owned) });
            }
        }
        Ok(self.hosts.iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(host, _)| host).collect())
    }
}

/// Marks what `name` means; `false` if that is nobody.
pub(super) fn choose(name: &str, fleet: &Fleet, chosen: &mut [bool]) -> bool {
    let mut found = false;
    let mut mark = |fits: &dyn Fn(&Host) -> bool| {
        for (host, chosen) in fleet.hosts.iter().zip(chosen.iter_mut()).filter(|(host, _)| fits(host)) {
            let _ = host;
            (*chosen, found) = (true, true);
        }
    };
    match fleet.groups.get(name) {
        _ if name == ALL => mark(&|_| true),
        _ if is_pattern(name) => mark(&|host| matches(name, &host.name)),
        Some(members) => mark(&|host| members.contains(&host.name)),
        None => mark(&|host| *host.name == *name),
    }
    found
}

/// The host or group whose name is nearest.
pub(super) fn near<'f>(name: &str, fleet: &'f Fleet) -> Option<&'f str> {
    let hosts = fleet.hosts.iter().map(|host| &*host.name);
    suggest::closest(name, hosts.chain(fleet.groups.keys().map(|group| &**group)))
}
