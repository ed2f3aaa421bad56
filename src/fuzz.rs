//! What must hold for any input from outside, as one function for each kind of input: libFuzzer drives them (`fuzz/`), and
//! a test drives them with the seeds and with damaged seeds. Test and feature builds only.
//!
//! A function panics where a promise is broken, and else returns: whether the input made sense does not matter.

use std::time::{Duration, SystemTime};

use crate::api::access::Access;
use crate::api::peer::Peer;
use crate::api::request::{Name, Verb};
use crate::api::resolve::resolve;
use crate::api::routes;
use crate::config::spec::{AccessRule, Config};
use crate::config::{Diagnostics, difference, load_texts};
use crate::daemon;
use crate::kinds::counters;
use crate::kinds::statsd::{self, Line, MOST, Prefix};
use crate::kinds::tally::Tally;

/// Takes an input; see above.
pub type Target = fn(&[u8]);

/// Each target by the name of its program in `fuzz/targets` and its folder in `fuzz/seeds`.
pub const TARGETS: [(&str, Target); 6] = [
    ("config", config),
    ("control_request", control_request),
    ("notify_datagram", notify_datagram),
    ("statsd_datagram", statsd_datagram),
    ("state_file", state_file),
    ("run_state", run_state),
];

/// `==> NAME` begins a file; what follows is its text. `None` for a text that does not begin so.
pub fn files(script: &str) -> Option<Vec<(&str, String)>> {
    let mut files: Vec<(&str, String)> = Vec::new();
    for line in script.split_inclusive('\n') {
        match line.strip_prefix("==> ") {
            Some(name) => files.push((name.trim_end(), String::new())),
            None => files.last_mut()?.1.push_str(line),
        }
    }
    Some(files)
}

/// The configuration that a script of [`files`] stands for.
///
/// # Errors
/// As [`load_texts`].
pub fn load_files(files: &[(&str, String)]) -> Result<Config, Diagnostics> {
    let daemon = files.iter().find(|(name, _)| *name == "svd.toml").map(|(_, text)| text.as_str());
    let services: Vec<_> = files
        .iter()
        .filter_map(|(name, text)| Some((name.strip_prefix("conf.d/")?.strip_suffix(".toml")?, text.as_str())))
        .collect();
    load_texts(daemon, &services)
}

/// A script of [`files`], or one text, which is read both as `svd.toml` and as a service's file: an answer, whose errors
/// can be printed in both forms; a valid one differs from itself in nothing, and from an empty one can be told.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match files(text) {
        Some(files) => judge(load_files(&files), text),
        None => {
            judge(load_texts(Some(text), &[]), text);
            judge(load_texts(None, &[("a", text)]), text);
        }
    }
}

fn judge(result: Result<Config, Diagnostics>, text: &str) {
    match result {
        Ok(config) => {
            assert!(difference(&config, &config).is_empty());
            let all = difference(&Config::default(), &config);
            assert!(all.len() >= config.services.len());
            for service in config.services.values() {
                crate::core::Policy::new(service);
            }
        }
        Err(errors) => {
            assert!(!errors.0.is_empty());
            assert!(!errors.to_string().chars().any(|c| c.is_control() && c != '\n'));
            assert!(serde_json::to_string(&errors.0).is_ok());
            for position in errors.0.iter().filter_map(|e| e.position.as_ref()) {
                assert!(position.line >= 1 && position.column >= 1 && position.length >= 1);
                assert!(text.contains(&*position.text));
            }
        }
    }
}

/// `METHOD TARGET`, a line feed, and a body: an error that can be printed, or a request that is resolved to services
/// that exist and that the peer may touch.
pub fn control_request(input: &[u8]) {
    let (head, body) = match input.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &[][..]),
    };
    let Some((method, target)) = std::str::from_utf8(head).ok().and_then(|head| head.split_once(' ')) else { return };
    // What hyper refuses does not come as far.
    let Ok(uri) = target.parse::<hyper::Uri>() else { return };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let parsed = routes::find(method, uri.path()).and_then(|found| routes::parse(found, uri.query(), body, now));
    let mut request = match parsed {
        Ok(request) => request,
        Err(error) => {
            assert!(!error.message.is_empty() && serde_json::to_string(&error).is_ok());
            routes::allowed(uri.path());
            return;
        }
    };
    let names: Vec<Name> = ["airship", "airship-celery", "search"].map(Into::into).to_vec();
    let rule = AccessRule {
        users: vec!["deploy".into()],
        groups: Vec::new(),
        verbs: vec!["*".into()],
        services: vec!["airship*".into()],
    };
    let access = Access { owner: 0, rules: [rule].into() };
    let peer = Peer { uid: 1000, user: "deploy".into(), ..Peer::nobody() };
    if let Err(error) = resolve(&mut request, &names, &access, &peer) {
        assert!(!error.message.is_empty() && serde_json::to_string(&error).is_ok());
        return;
    }
    let resolved = request.services().into_iter().flatten().map(|name| &**name).chain(request.single_name());
    let mut last = "";
    for name in resolved {
        assert!(names.iter().any(|n| **n == *name) && name.starts_with("airship"), "{name} in {request:?}");
        assert!(last < name, "sorted, each once: {request:?}");
        last = name;
    }
    // Its version is anyone's.
    let verb = request.verb();
    assert!(!verb.is_of_the_host() || verb == Verb::Version, "the rule is not over all services: {request:?}");
    let named = matches!(verb, Verb::Exec | Verb::Upgrade | Verb::Deploy);
    assert!(!named, "a rule that does not name it grants {request:?}");
}

/// A datagram of sd_notify(3).
pub fn notify_datagram(input: &[u8]) {
    daemon::check_notify(input);
}

/// A datagram of statsd: whatever it says, the counts of its generation stay such as can be read.
pub fn statsd_datagram(input: &[u8]) {
    let mut tally = Tally::default();
    let mut now_us = 1 << 40;
    let mut times = 0.0;
    for line in statsd::lines(input) {
        let Line::Ours(prefix, rest) = statsd::line(line) else { continue };
        assert_eq!(statsd::line(format!("{prefix}.").as_bytes()), Line::Ours(prefix, b""));
        statsd::read(rest, |count| {
            assert!(count.times > 0.0 && count.times <= MOST, "{count:?}");
            times += count.times;
            tally.add(count, now_us);
        });
        // Windows follow each other, and are used again.
        now_us += 3_000_000 * (prefix.0 & 7) as u64;
    }
    tally.died();
    let Some(words) = tally.words() else { return };
    let seen = counters::read(words, now_us).unwrap_or_else(|e| panic!("our own layout: {e}"));
    assert!(seen.recent.finished <= seen.totals.finished && seen.recent.errors <= seen.totals.errors);
    assert!(seen.totals.finished as f64 <= times + 1.0 && seen.totals.died_open <= seen.totals.begun);
    assert_eq!(seen.recent.latency.quantile(0.99).is_some(), seen.recent.latency.count() > 0);
}

/// A prefix that seeds may use.
pub const PREFIX: Prefix = Prefix(1);

/// The file of what survives svd's end: set aside, or read such that what is written after it is read the same.
pub fn state_file(input: &[u8]) {
    daemon::check_state(input);
}

/// A payload of the state file in the run directory, and the file itself: set aside, or a state machine that decides what may
/// not have been done without a panic.
pub fn run_state(input: &[u8]) {
    daemon::check_run_state(input);
}

#[cfg(test)]
#[path = "fuzz_test.rs"]
mod tests;
