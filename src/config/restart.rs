//! `[restart]`: what follows a worker's end.

use std::time::Duration;

use super::section::{Item, Schema, Section};
use super::source::Problem;
use super::spec::{Limit, Policy, Restart};
use super::units;

pub(super) static SCHEMA: Schema =
    Schema { name: "[restart]", keys: &["policy", "delay", "max_delay", "settled", "limit", "success"] };

pub(super) static LIMIT: Schema =
    Schema { name: "limit = { … } of [restart]", keys: &["failures", "within", "then"] };

const DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(30);
const SETTLED: Duration = Duration::from_secs(2);
const FAILURES: u32 = 10;
const WITHIN: Duration = Duration::from_secs(300);
const THEN: Duration = Duration::from_secs(300);

/// Without a word about it in the file.
impl Default for Restart {
    fn default() -> Restart {
        let limit = Limit { failures: FAILURES, within: WITHIN, then: Some(THEN) };
        Restart {
            policy: Policy::Always,
            delay: DELAY,
            max_delay: MAX_DELAY,
            settled: SETTLED,
            limit,
            success: Vec::new(),
        }
    }
}

pub(super) fn decode(top: &Section<'_>) -> Restart {
    let section = top.section("restart", &SCHEMA);
    let delay = section.get_at("delay", units::duration);
    let max_delay = section.get("max_delay", units::positive);
    let limit = max_delay.unwrap_or(MAX_DELAY);
    if let Some(delay) = delay.as_ref().filter(|delay| delay.value > limit) {
        let limit = units::show_duration(limit);
        let problem = Problem::new(delay.span, format!("\"delay\" is longer than \"max_delay\", which is {limit}"));
        section.file.report(problem.help("delay is the first one, and doubles up to max_delay"));
    }
    let delay = delay.map(|at| at.value);
    let mut success = section.values("success", |item| item.integer(0, 255).map(|n| n as i32));
    success.sort_unstable();
    success.dedup();
    Restart {
        policy: section.get("policy", policy).unwrap_or(Policy::Always),
        // Whoever lowers the last delay alone does not mean a first one above it.
        delay: delay.unwrap_or(DELAY.min(limit)),
        max_delay: limit,
        settled: section.get("settled", units::duration).unwrap_or(SETTLED),
        limit: decode_limit(&section),
        success,
    }
}

fn policy(item: &Item<'_>) -> Result<Policy, Problem> {
    item.choice(&[("always", Policy::Always), ("on-failure", Policy::OnFailure), ("never", Policy::Never)])
}

fn decode_limit(restart: &Section<'_>) -> Limit {
    let section = restart.section("limit", &LIMIT);
    Limit {
        failures: section.get("failures", |item| item.count(1, 10_000)).unwrap_or(FAILURES),
        within: section.get("within", units::positive).unwrap_or(WITHIN),
        then: section.get("then", units::duration_or_never).unwrap_or(Some(THEN)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};
    use super::*;

    fn with(restart: &str) -> String {
        format!("kind = 'command'\ncommand = ['a']\n[restart]\n{restart}")
    }

    #[test]
    fn defaults() {
        let restart = service(&with("")).restart;
        assert_eq!((restart.policy, restart.delay, restart.max_delay), (Policy::Always, DELAY, MAX_DELAY));
        assert_eq!((restart.settled, &restart.success), (SETTLED, &vec![]));
        assert_eq!(restart.limit, Limit { failures: 10, within: WITHIN, then: Some(THEN) });
    }

    #[test]
    fn keys() {
        let restart = service(&with(
            "policy = 'on-failure'\ndelay = '1s'\nmax_delay = '2s'\nsettled = 0\nsuccess = [2, 0, 2]\nlimit = { failures = 1, within = '1h', then = 'never' }",
        ))
        .restart;
        assert_eq!((restart.policy, &restart.success), (Policy::OnFailure, &vec![0, 2]));
        assert_eq!(restart.limit, Limit { failures: 1, within: Duration::from_secs(3600), then: None });
        assert_eq!(service(&with("delay = '0s'")).restart.delay, Duration::ZERO);
        assert_eq!(service(&with("max_delay = '50ms'")).restart.delay, Duration::from_millis(50));
    }

    #[test]
    fn mistakes() {
        assert_eq!(helps(&with("policy = 'on_failure'")), ["did you mean \"on-failure\"?"]);
        assert_eq!(errors(&with("delay = '1m'")), ["\"delay\" is longer than \"max_delay\", which is 30s"]);
        assert_eq!(errors(&with("success = [256, 'a']")).len(), 2);
        assert_eq!(helps(&with("within = '1m'")), ["\"within\" belongs in limit = { … } of [restart]"]);
        assert_eq!(errors(&with("limit = { then = 'nevr', failures = 0 }")).len(), 2);
    }
}
