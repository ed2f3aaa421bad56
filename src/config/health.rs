//! `[health]`: checks of a service that runs.

use std::time::Duration;

use super::probe::{self, Purpose};
use super::scope::Scope;
use super::section::{Item, Schema, Section};
use super::source::Problem;
use super::spec::{Health, HealthAction, ReadyBy};
use super::units;

pub(super) static SCHEMA: Schema = Schema {
    name: "[health]",
    keys: &["probe", "tcp", "command", "timeout", "interval", "failures", "action", "watchdog"],
};

const INTERVAL: Duration = Duration::from_secs(10);
const FAILURES: u32 = 3;

pub(super) fn decode(top: &Section<'_>, scope: &Scope<'_>) -> Option<Health> {
    let section = top.section("health", &SCHEMA);
    if !section.is_present() {
        return None;
    }
    let mut ways = Vec::new();
    for key in ["probe", "tcp", "command"] {
        ways.extend(section.key_span(key).map(|span| (key, span)));
    }
    for (key, span) in ways.iter().skip(1) {
        let problem = Problem::new(*span, format!("{key:?} is a second check beside {:?}; one is possible", ways[0].0));
        section.file.report(problem.help("remove one of them, or let a command do both"));
    }
    if ways.is_empty() && !section.has("watchdog") {
        let problem = Problem::new(section.span, "[health] does not say what to check").absent();
        section.file.report(problem.help("add probe = { path = \"/healthz\" }, tcp, command or watchdog"));
    }
    let by = [
        probe::decode(&section, scope, Purpose::Health).map(ReadyBy::Http),
        probe::tcp(&section, scope),
        scope.command(&section, "command").map(ReadyBy::Command),
    ];
    let timeout = section.get("timeout", units::positive);
    if let (true, Some(span)) = (section.has("probe"), section.key_span("timeout")) {
        let problem = Problem::new(span, "a probe has a timeout of its own");
        section.file.report(problem.help("move it: probe = { path = \"…\", timeout = \"5s\" }"));
    }
    Some(Health {
        by: by.into_iter().flatten().next(),
        timeout: timeout.unwrap_or(probe::TIMEOUT),
        interval: section.get("interval", units::positive).unwrap_or(INTERVAL),
        failures: section.get("failures", |item| item.count(1, 1_000)).unwrap_or(FAILURES),
        action: section.get("action", action).unwrap_or(HealthAction::Report),
        watchdog: section.get("watchdog", units::positive),
    })
}

fn action(item: &Item<'_>) -> Result<HealthAction, Problem> {
    item.choice(&[("report", HealthAction::Report), ("restart", HealthAction::Restart)])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, service};
    use super::*;

    fn with(health: &str) -> String {
        format!("kind = 'command'\ncommand = ['a']\n[health]\n{health}")
    }

    #[test]
    fn keys_and_defaults() {
        assert_eq!(service("kind = 'command'\ncommand = ['a']").health, None);
        let health = service(&with("command = ['check']")).health.unwrap();
        assert_eq!((health.interval, health.failures, health.action), (INTERVAL, 3, HealthAction::Report));
        assert_eq!((health.timeout, health.watchdog), (Duration::from_secs(5), None));
        let health =
            service(&with("watchdog = '30s'\naction = 'restart'\nfailures = 1\ninterval = '1m'")).health.unwrap();
        assert_eq!((health.by, health.watchdog), (None, Some(Duration::from_secs(30))));
        assert_eq!((health.failures, health.action), (1, HealthAction::Restart));
    }

    #[test]
    fn mistakes() {
        assert_eq!(errors(&with("")), ["[health] does not say what to check"]);
        assert_eq!(errors(&with("interval = '1s'\nfailures = 0")).len(), 2);
        assert_eq!(errors(&with("tcp = '1.1.1.1:1'\ncommand = ['a']")).len(), 1);
        assert_eq!(
            errors(&with("tcp = '1.1.1.1:1'\naction = 'reboot'")),
            ["\"reboot\" is not one of report or restart"]
        );
        assert_eq!(
            errors(&with("probe = { path = '/', port = 1 }\ntimeout = '1s'")),
            ["a probe has a timeout of its own"]
        );
    }
}
