//! `[ready]`: when a generation counts as started.

use std::time::Duration;

use super::probe::{self, Purpose};
use super::scope::Scope;
use super::section::{Item, Schema, Section};
use super::source::Problem;
use super::spec::{Ready, ReadyBy};
use super::units;

use toml::de::DeValue;

pub(super) static SCHEMA: Schema =
    Schema { name: "[ready]", keys: &["timeout", "notify", "descriptor", "probe", "tcp", "command", "log", "delay"] };

const TIMEOUT: Duration = Duration::from_secs(60);

/// Looks ahead for `descriptor = true`, which gives `{fd.ready}` a meaning.
pub(super) fn descriptor(top: &Section<'_>) -> bool {
    let Some(Item { value: DeValue::Table(table), .. }) = top.item("ready") else {
        return false;
    };
    table.get("descriptor").is_some_and(|value| value.get_ref().as_bool() == Some(true))
}

pub(super) fn decode(top: &Section<'_>, scope: &Scope<'_>) -> Ready {
    let section = top.section("ready", &SCHEMA);
    let timeout = section.get("timeout", units::positive).unwrap_or(TIMEOUT);
    let mut by = Vec::new();
    if section.get("notify", Item::boolean) == Some(true) {
        by.push(ReadyBy::Notify);
    }
    if section.get("descriptor", Item::boolean) == Some(true) {
        by.push(ReadyBy::Descriptor);
    }
    by.extend(probe::decode(&section, scope, Purpose::Ready).map(ReadyBy::Http));
    by.extend(probe::tcp(&section, scope));
    by.extend(scope.command(&section, "command").map(ReadyBy::Command));
    by.extend(section.get("log", log).map(ReadyBy::Log));
    let delay = section.get_at("delay", units::positive);
    if let Some(delay) = delay {
        if delay.value >= timeout {
            let limit = units::show_duration(timeout);
            let problem =
                Problem::new(delay.span, format!("the delay never ends: \"timeout\" comes first, after {limit}"));
            section.file.report(problem.help("make the delay shorter, or timeout longer"));
        }
        by.push(ReadyBy::Delay(delay.value));
    }
    by.shrink_to_fit();
    Ready { timeout, by }
}

fn log(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.name()?;
    match text.contains('\n') {
        true => Err(item.problem("the text is looked for in single lines, and this has several")),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, service};
    use super::*;

    fn with(ready: &str) -> String {
        format!("kind = 'command'\ncommand = ['a', '{{fd.ready}}']\n[ready]\ndescriptor = true\n{ready}")
    }

    #[test]
    fn all_ways_together() {
        let s = service(&with(
            "timeout = '1m'\nnotify = true\ntcp = '1.1.1.1:1'\ncommand = ['test', '-e', '/x']\nlog = 'up'\ndelay = '2s'",
        ));
        assert_eq!(s.ready.timeout, Duration::from_secs(60));
        assert_eq!(s.ready.by.len(), 6);
        assert_eq!(s.ready.by[5], ReadyBy::Delay(Duration::from_secs(2)));
    }

    #[test]
    fn nothing_is_needed() {
        let ready = service("kind = 'command'\ncommand = ['a']").ready;
        assert_eq!(*ready, Ready { timeout: TIMEOUT, by: Vec::new() });
        assert!(service("kind = 'command'\ncommand = ['a']\n[ready]\nnotify = false").ready.by.is_empty());
    }

    #[test]
    fn mistakes() {
        assert_eq!(errors(&with("timeout = '0s'")), ["this must be longer than 0"]);
        assert_eq!(errors(&with("timeout = '1s'\ndelay = '2s'")).len(), 1);
        assert_eq!(errors(&with("log = ''")).len(), 1);
        assert_eq!(errors(&with("command = 'true'")), ["\"command\" must be a list, not text in quotes"]);
        assert_eq!(
            errors("kind = 'command'\ncommand = ['a', '{fd.ready}']"),
            ["{fd.ready} needs a readiness descriptor"]
        );
    }
}
