//! `[app.NAME.hooks]`: who is told of a rollout.

use std::collections::BTreeMap;
use std::time::Duration;

use toml::de::DeValue;

use super::spec::{Hook, Hooks, Occasion};
use crate::config::section::{Item, Schema, Section};
use crate::config::source::Problem;
use crate::config::units;

pub(super) static SCHEMA: Schema = Schema {
    name: "[app.NAME.hooks]",
    keys: &["start", "wave", "paused", "rollback", "success", "failure", "every", "timeout"],
};

const TIMEOUT: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(600);

pub(super) fn decode(parent: &Section<'_>) -> Hooks {
    let section = parent.section("hooks", &SCHEMA);
    let mut on = BTreeMap::new();
    for occasion in Occasion::ALL {
        if let Some(hook) = section.get(occasion.as_str(), hook) {
            on.insert(occasion, hook);
        }
    }
    Hooks { on, every: section.get("every", hook), timeout: section.get("timeout", timeout).unwrap_or(TIMEOUT) }
}

fn timeout(item: &Item<'_>) -> Result<Duration, Problem> {
    match units::positive(item)? {
        limit if limit >= Duration::from_secs(1) && limit <= LONGEST => Ok(limit),
        _ => Err(item.problem("this must be from 1s to 10m")),
    }
}

/// A list is a command, text an address.
fn hook(item: &Item<'_>) -> Result<Hook, Problem> {
    match item.value {
        DeValue::Array(_) => {
            let words = item.list("hooks", |item| item.text().map(Box::<str>::from)).unwrap_or_default();
            match words.first() {
                Some(first) if !first.value.is_empty() => {
                    Ok(Hook::Command(words.into_iter().map(|w| w.value).collect()))
                }
                _ => Err(item.problem("a hook must name a program").help("write [\"./tell-people\"]")),
            }
        }
        DeValue::String(_) => {
            let text = item.text()?;
            let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
            let fits = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
                && !text.chars().any(|c| c.is_control() || c.is_whitespace());
            match fits {
                true => Ok(Hook::Webhook(text.into())),
                false => Err(item
                    .problem(format!("{text:?} is no address of a web hook"))
                    .help("write \"https://…\", or a command as a list: [\"./tell-people\"]")),
            }
        }
        _ => Err(item.wrong_type("a hook is a command (a list) or an address (text)")),
    }
}
