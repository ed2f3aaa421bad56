//! A host is made ready: what it has, what is missing, and the script that brings it. Pure.
//!
//! Two scripts for `sh` run on a host, as root. The first changes nothing and prints [`Found`]; from that and from what is [`Wanted`] come
//! [`Change`]s, each of which is one line for people; the second script makes exactly these. What is there stays: users, directories, a
//! program of the same name, init scripts; a file of another content is kept beside the new one.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sha2::{Digest, Sha256};

pub use script::{Delivery, apply, as_root, probe, program_there, remove, replace};

/// Where svd goes, and the link by which svctl is the same program.
pub const SVD: &str = "/usr/local/sbin/svd";
pub const SVCTL: &str = "/usr/local/bin/svctl";
/// svd's configuration, where [`SETTINGS`] on the host say nothing else.
pub const CONFIGURATION: &str = "/etc/airdock";
/// svd's own file in that directory.
pub const MAIN: &str = "svd.toml";
/// What svd's init script and unit read: `CONFIG_DIR` is what counts here.
pub const SETTINGS: &str = "/etc/default/svd";

/// What a host is to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// `Linux x86_64`: of the program that is sent.
    pub system: String,
    /// Its SHA-256.
    pub program: String,
    pub version: String,
    /// Users that services run as, and the root of one of them.
    pub users: BTreeMap<String, Option<String>>,
    /// Roots of services, and what is below them; whose each is, if not root's.
    pub directories: BTreeMap<String, Option<String>>,
    /// Names below the configuration's directory, and contents.
    pub files: BTreeMap<String, String>,
    /// `svd.toml`, where the host has none.
    pub standard: Option<String>,
    /// svd's socket there.
    pub socket: String,
}

/// What a host has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub system: String,
    /// The program svd that root's `PATH` leads to, and its SHA-256.
    pub svd: Option<(String, String)>,
    /// `systemd`, `sysv`, or nothing that starts svd at boot.
    pub init: String,
    /// svd's init script or unit is there.
    pub has_init: bool,
    pub running: bool,
    /// `rsync` is there, by which releases come.
    pub has_rsync: bool,
    /// The directory of svd's configuration.
    pub configuration: String,
    pub users: BTreeSet<String>,
    pub directories: BTreeSet<String>,
    /// SHA-256 by name below that directory.
    pub files: BTreeMap<String, String>,
}

impl Found {
    /// What [`probe`] prints: words with tabs between them. Lines that it does not know are somebody else's.
    pub fn parse(text: &str) -> Found {
        let mut found = Found { configuration: CONFIGURATION.to_owned(), ..Found::default() };
        for line in text.lines() {
            let words: Vec<&str> = line.split('\t').collect();
            match words[..] {
                ["system", system] => found.system = system.to_owned(),
                ["svd", sum, path] => found.svd = Some((path.to_owned(), sum.to_owned())),
                ["init", init] => found.init = init.to_owned(),
                ["has-init"] => found.has_init = true,
                ["running"] => found.running = true,
                ["rsync"] => found.has_rsync = true,
                ["configuration", path] => found.configuration = path.to_owned(),
                ["user", name] => _ = found.users.insert(name.to_owned()),
                ["directory", path] => _ = found.directories.insert(path.to_owned()),
                ["file", sum, name] => _ = found.files.insert(name.to_owned(), sum.to_owned()),
                _ => {}
            }
        }
        found
    }
}

/// One step, in the order in which they are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Program,
    User {
        name: String,
        home: Option<String>,
    },
    Directory {
        path: String,
        owner: Option<String>,
    },
    /// `replaced`: another one is there, and is kept.
    File {
        path: String,
        content: String,
        replaced: bool,
    },
    /// Init scripts, or the unit.
    Init(String),
    Start(String),
    /// svd reads its configuration.
    Update,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Program => write!(f, "install {SVD}, and {SVCTL} as a link to it"),
            Change::User { name, .. } => write!(f, "make the user {name}"),
            Change::Directory { path, owner: None } => write!(f, "make the directory {path}"),
            Change::Directory { path, owner: Some(owner) } => write!(f, "make the directory {path}, {owner}'s"),
            Change::File { path, replaced: false, .. } => write!(f, "write {path}"),
            Change::File { path, .. } => write!(f, "replace {path}, and keep the old one as {path}.before"),
            Change::Init(init) => write!(f, "install svd's files for {init}"),
            Change::Start(_) => f.write_str("start svd, now and at boot"),
            Change::Update => f.write_str("let svd apply the changed files (svctl update)"),
        }
    }
}

/// What is to be done, and what people should know besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Todo {
    pub changes: Vec<Change>,
    pub notes: Vec<String>,
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// # Errors
/// The host cannot have what is wanted.
pub fn todo(wanted: &Wanted, found: &Found) -> Result<Todo, String> {
    let (mut changes, mut notes) = (Vec::new(), Vec::new());
    match &found.svd {
        None if found.system != wanted.system => {
            let theirs = if found.system.is_empty() { "something that is not known" } else { &found.system };
            return Err(format!("it is {theirs}, and this svctl is for {}: install svd there by hand", wanted.system));
        }
        None => changes.push(Change::Program),
        Some((_, sum)) if *sum == wanted.program => {}
        Some((path, _)) => {
            notes.push(format!("{path} is there, another build than this one: it stays (`svctl upgrade --ship`)"))
        }
    }
    let missing = wanted.users.iter().filter(|(name, _)| !found.users.contains(*name));
    changes.extend(missing.map(|(name, home)| Change::User { name: name.clone(), home: home.clone() }));
    let conf = &found.configuration;
    let ours = [conf.clone(), format!("{conf}/conf.d")].map(|path| (path, None));
    let all = wanted.directories.iter().map(|(path, owner)| (path.clone(), owner.clone()));
    let missing = ours.into_iter().chain(all).filter(|(path, _)| !found.directories.contains(path));
    changes.extend(missing.map(|(path, owner)| Change::Directory { path, owner }));
    let mut files = wanted.files.clone();
    match (&wanted.standard, found.files.contains_key(MAIN)) {
        (Some(text), false) => _ = files.entry(MAIN.to_owned()).or_insert_with(|| text.clone()),
        (Some(_), true) => notes.push(format!("{conf}/{MAIN} is there and stays: add the access rule by hand")),
        (None, _) => {}
    }
    let before = changes.len();
    for (name, content) in files {
        match found.files.get(&name) {
            Some(sum) if *sum == sha256(content.as_bytes()) => {}
            there => {
                let (path, replaced) = (format!("{conf}/{name}"), there.is_some());
                changes.push(Change::File { path, content, replaced });
            }
        }
    }
    let changed = changes.len() > before;
    if !found.has_init {
        changes.push(Change::Init(found.init.clone()));
    }
    match found.running {
        false => changes.push(Change::Start(found.init.clone())),
        true if changed => changes.push(Change::Update),
        true => {}
    }
    if !found.has_rsync {
        notes.push("there is no rsync, without which no release can be sent there: install it".to_owned());
    }
    Ok(Todo { changes, notes })
}

/// What an access rule for whoever deploys says.
pub fn standard(deployer: &str) -> String {
    // A name of a user's has nothing that would have to be escaped in JSON's way and not in TOML's.
    let name = serde_json::Value::from(deployer);
    format!(
        "# Written by svctl setup. See docs/configuration.md.\n[[access]]\nusers = [{name}]\nverbs = [\"*\", \"exec\", \"deploy\"]\nservices = [\"*\"]\n"
    )
}

#[cfg(test)]
mod tests;
