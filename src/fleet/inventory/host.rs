//! `[host.NAME]`: how one host is reached, where it is not by its name alone.

use std::path::PathBuf;

use super::names;
use super::spec::Host;
use crate::config::section::{Item, Schema, Section};
use crate::config::source::Problem;

pub(super) static SCHEMA: Schema =
    Schema { name: "[host.NAME]", keys: &["ssh", "user", "port", "socket", "svctl", "local"] };

/// Puts what the section says over what is known of the host.
pub(super) fn decode(section: &Section<'_>, host: &mut Host) {
    set(&mut host.ssh, section.get("ssh", names::host_name));
    set(&mut host.user, section.get("user", user));
    set(&mut host.port, section.get("port", |item| item.count(1, 65_535).map(|n| n as u16)));
    set(&mut host.socket, section.get("socket", path));
    set(&mut host.svctl, section.get("svctl", program));
    if let Some(local) = section.get("local", Item::boolean) {
        host.local = local;
    }
    if host.local {
        for key in ["ssh", "user", "port", "svctl"] {
            if let Some(span) = section.key_span(key) {
                let problem = Problem::new(span, format!("{key:?} has no effect on the machine that svctl runs on"));
                section.file.report(problem.help("remove it, or local = true"));
            }
        }
    }
}

fn set<T>(place: &mut Option<T>, value: Option<T>) {
    if value.is_some() {
        *place = value;
    }
}

/// A user's name, for ssh's `-l`.
fn user(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.name()?;
    match check_user(&text) {
        true => Ok(text),
        false => Err(item.problem(format!("{text:?} cannot be the name of a user"))),
    }
}

pub(super) fn check_user(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('-') && !name.chars().any(|c| c.is_control() || c.is_whitespace() || c == '@')
}

fn path(item: &Item<'_>) -> Result<PathBuf, Problem> {
    let text = item.name()?;
    match text.starts_with('/') {
        true => Ok(PathBuf::from(&*text)),
        false => Err(item.problem(format!("{text:?} is not an absolute path")).help("begin it with \"/\"")),
    }
}

/// One word: the host's shell gets it in quotes.
fn program(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.name()?;
    match text.starts_with('-') || text.chars().any(char::is_control) {
        true => Err(item.problem(format!("{text:?} is no program")).help("write its path: \"/opt/airdock/bin/svctl\"")),
        false => Ok(text),
    }
}
