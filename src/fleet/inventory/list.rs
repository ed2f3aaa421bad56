//! The command that lists hosts: what `ansible-inventory --list` prints, or one name a line.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::Value;

use super::host::check_user;
use super::names::{ALL, check_host_name};
use crate::fleet::run::{self, RunError};

/// For the command to end.
const LIMIT: Duration = Duration::from_secs(60);
/// Bytes of its output; ten thousand hosts with their variables have less.
const LARGEST: usize = 64 << 20;

/// What a command has listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// In the command's order, each once.
    pub hosts: Vec<Listed>,
    /// Names of hosts by group.
    pub groups: BTreeMap<Box<str>, Vec<Box<str>>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    pub name: Box<str>,
    pub address: Option<Box<str>>,
    pub user: Option<Box<str>>,
    pub port: Option<u16>,
    pub local: bool,
}

/// Why there is no list; no capital, no full stop.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    #[error("the command that lists hosts {0}")]
    Command(RunError),
    #[error("the output of the command that lists hosts is no inventory: {0}")]
    Format(String),
    #[error("the command that lists hosts names {name:?}, which cannot be a host: {why}")]
    Name { name: String, why: &'static str },
    #[error("the command that lists hosts has listed none")]
    Empty,
}

impl ListingError {
    pub(super) fn help(&self) -> Option<&'static str> {
        match self {
            ListingError::Format(_) => Some("it prints what `ansible-inventory --list` does, or one name a line"),
            _ => None,
        }
    }
}

/// Runs the command, beside the fleet file, and understands what it prints.
pub(super) fn run(command: &[Box<str>], fleet: &Path) -> Result<Listing, ListingError> {
    let Some((program, arguments)) = command.split_first() else { return Err(ListingError::Empty) };
    let mut process = Command::new(&**program);
    process.args(arguments.iter().map(|word| &**word));
    if let Some(dir) = fleet.parent().filter(|dir| *dir != Path::new("")) {
        process.current_dir(dir);
    }
    let output = run::output(process, LIMIT, LARGEST).map_err(ListingError::Command)?;
    let text = String::from_utf8(output).map_err(|_| ListingError::Format("it is not UTF-8".to_owned()))?;
    parse(&text)
}

/// JSON if it begins with `{`, else one name a line; what follows the name, and `#`, is not looked at.
pub(super) fn parse(text: &str) -> Result<Listing, ListingError> {
    let mut listing = match text.trim_start().starts_with('{') {
        true => ansible(text)?,
        false => plain(text),
    };
    let mut seen = std::collections::BTreeSet::new();
    listing.hosts.retain(|host| seen.insert(host.name.clone()));
    for host in &listing.hosts {
        for name in [Some(&host.name), host.address.as_ref()].into_iter().flatten() {
            check_host_name(name).map_err(|why| ListingError::Name { name: name.to_string(), why })?;
        }
        if let Some(user) = host.user.as_ref().filter(|user| !check_user(user)) {
            return Err(ListingError::Name { name: user.to_string(), why: "no user is called that" });
        }
    }
    if listing.hosts.is_empty() { Err(ListingError::Empty) } else { Ok(listing) }
}

fn plain(text: &str) -> Listing {
    let names = text.lines().filter_map(|line| line.split('#').next()?.split_whitespace().next());
    let hosts = names.map(|name| Listed { name: name.into(), ..Listed::default() });
    Listing { hosts: hosts.collect(), ..Listing::default() }
}

/// A group of an inventory.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Group {
    hosts: Vec<Box<str>>,
    children: Vec<Box<str>>,
}

/// An object in the order in which it is written.
struct Ordered(Vec<(Box<str>, Value)>);

impl<'de> Deserialize<'de> for Ordered {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ordered, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Ordered;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of groups")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ordered, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Ordered(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

fn ansible(text: &str) -> Result<Listing, ListingError> {
    let format = |error: serde_json::Error| ListingError::Format(error.to_string());
    let Ordered(entries) = serde_json::from_str(text).map_err(format)?;
    let mut groups: Vec<(Box<str>, Group)> = Vec::new();
    let mut variables = Value::Null;
    for (name, value) in entries {
        match &*name {
            "_meta" => variables = value,
            // Old inventories have a bare list of hosts.
            _ if value.is_array() => {
                groups.push((name, Group { hosts: serde_json::from_value(value).map_err(format)?, ..Group::default() }))
            }
            _ => groups.push((name, serde_json::from_value(value).map_err(format)?)),
        }
    }
    let variables = &variables["hostvars"];
    let mut names: Vec<Box<str>> = groups.iter().flat_map(|(_, group)| group.hosts.iter().cloned()).collect();
    names.extend(variables.as_object().into_iter().flat_map(|all| all.keys().map(|name| name.as_str().into())));
    let hosts = names.into_iter().map(|name| listed(&variables[&*name], name)).collect();
    let mut found = BTreeMap::new();
    for (name, _) in groups.iter().filter(|(name, _)| !matches!(&**name, ALL | "ungrouped")) {
        let mut members = Vec::new();
        collect(name, &groups, &mut Vec::new(), &mut members);
        found.insert(name.clone(), members);
    }
    Ok(Listing { hosts, groups: found })
}

fn listed(variables: &Value, name: Box<str>) -> Listed {
    let text = |keys: &[&str]| keys.iter().find_map(|key| variables[key].as_str()).map(Box::from);
    let port = &variables["ansible_port"];
    let port = port.as_u64().or_else(|| port.as_str()?.parse().ok());
    let address: Option<Box<str>> = text(&["ansible_host", "ansible_ssh_host"]);
    Listed {
        address: address.filter(|address| *address != name),
        user: text(&["ansible_user", "ansible_ssh_user"]),
        port: port.and_then(|port| u16::try_from(port).ok()),
        local: variables["ansible_connection"] == "local",
        name,
    }
}

/// The group's hosts and those of the groups in it, each once, whatever circle they make.
fn collect<'g>(name: &'g str, groups: &'g [(Box<str>, Group)], seen: &mut Vec<&'g str>, members: &mut Vec<Box<str>>) {
    if seen.contains(&name) {
        return;
    }
    seen.push(name);
    let Some((_, group)) = groups.iter().find(|(group, _)| **group == *name) else { return };
    for host in &group.hosts {
        if !members.contains(host) {
            members.push(host.clone());
        }
    }
    for child in &group.children {
        collect(child, groups, seen, members);
    }
}
