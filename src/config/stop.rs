//! `[stop]`: how a worker is asked to leave, and for how long.

use std::time::Duration;

use super::kind::KindName;
use super::scope::Scope;
use super::section::{Schema, Section};
use super::spec::Stop;
use super::units;

pub(super) static SCHEMA: Schema = Schema { name: "[stop]", keys: &["signal", "grace"] };

/// Time for what is in flight in a program that says nothing about itself.
const GRACE: Duration = Duration::from_secs(30);

pub(super) fn decode(top: &Section<'_>, scope: &Scope<'_>) -> Stop {
    let section = top.section("stop", &SCHEMA);
    let known = if scope.kind == Some(KindName::Gunicorn) { None } else { Some(GRACE) };
    Stop {
        signal: section.get("signal", units::signal).unwrap_or(libc::SIGTERM),
        grace: section.get("grace", units::duration).or(known),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};
    use super::*;

    fn with(stop: &str) -> String {
        format!("kind = 'command'\ncommand = ['a']\n[stop]\n{stop}")
    }

    #[test]
    fn keys_and_defaults() {
        assert_eq!(service(&with("")).stop, Stop { signal: 15, grace: Some(GRACE) });
        assert_eq!(service("kind = 'gunicorn'\napp = 'a'").stop.grace, None);
        for text in ["'QUIT'", "'SIGQUIT'", "3", "'3'"] {
            assert_eq!(service(&with(&format!("signal = {text}\ngrace = '10m'"))).stop.signal, libc::SIGQUIT);
        }
    }

    #[test]
    fn mistakes() {
        assert_eq!(helps(&with("signal = 'TREM'")), ["did you mean \"TERM\"?"]);
        assert_eq!(errors(&with("signal = 'STOP'")), ["STOP does not end a process"]);
        assert_eq!(errors(&with("signal = 0")).len(), 1);
        assert_eq!(helps(&with("grace = 35")), ["write \"35s\" (or ms, m, h, d)"]);
        assert_eq!(
            helps(&with("timeout = '3s'")),
            ["\"timeout\" belongs in [ready], in [health], in probe = { … } or in [deploy.STEP]"]
        );
    }
}
