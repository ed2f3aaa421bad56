//! `[limits]`: for each key a hostile program that tries what it forbids, and fails; and as a control the same program without
//! the key, which succeeds.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

#[path = "../support/mod.rs"]
mod support;

mod live;
mod processes;

use std::os::unix::fs::PermissionsExt;
use support::plain::is_root;
use support::svd::quoted;
use support::{PATIENCE, Svd, wait_for};

const ATTEMPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/limits/attempt.py");

/// A service that tries to break out, as a user without rights, with these lines in `[limits]`.
fn attempt(svd: &Svd, what: &str, limits: &str) -> String {
    let program = std::fs::read_to_string(ATTEMPT).expect("the program");
    let copy = svd.path("attempt.py");
    if !copy.exists() {
        std::fs::write(&copy, program).expect("its copy");
    }
    let user = if is_root() { "user = 'nobody'\n" } else { "" };
    let scratch = svd.path("scratch");
    std::fs::create_dir_all(&scratch).expect("a directory");
    std::fs::set_permissions(&scratch, PermissionsExt::from_mode(0o1777)).expect("its mode");
    let file = scratch.join(format!("{what}-{}", limits.is_empty()));
    format!(
        "kind = 'command'\ncommand = ['/usr/bin/python3', {}, '{what}']\n{user}[environment]\nSCRATCH = {}\n[limits]\n{limits}\n",
        quoted(&copy),
        quoted(&file)
    )
}

/// What the program of that service has said about its attempt.
#[track_caller]
fn outcome(svd: &Svd, name: &str) -> String {
    wait_for(&format!("the outcome of {name}"), PATIENCE, || {
        let said = svd.output(name);
        said.lines().find(|l| l.starts_with("held") || l.starts_with("broke out")).map(str::to_owned)
    })
}
