//! Files that nobody answers for: svd and the other services go on.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};
use support::plain::{SLEEP, script};
use support::svd::quoted;
use support::{PATIENCE, Svd, wait_until};

/// More than svd has threads for work on files.
const HUNG: usize = 20;

/// Opening a pipe that nobody writes to hangs as a file of a dead server does.
#[test]
fn what_hangs_for_some_services_keeps_no_other_from_starting() {
    let mut svd = Svd::new();
    let pipe = svd.path("env.pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    let hung = script(SLEEP, &format!("environment_files = [{}]", quoted(&pipe)));
    for n in 0..HUNG {
        svd.service(&format!("a-hung-{n}"), &hung);
    }
    svd.service("web", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("web", "running");
    let begun = Instant::now();
    svd.ok(&["disable", "web"]);
    svd.ok(&["enable", "web"]);
    svd.ok(&["restart", "web"]);
    svd.ok(&["update"]);
    svd.ok(&["logs", "web"]);
    svd.ok(&["status", "web"]);
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert_eq!(svd.state("a-hung-0"), "starting");
    assert_eq!(svd.state(&format!("a-hung-{}", HUNG - 1)), "starting");
    // Whoever hangs goes on when the server is back.
    wait_until("all services run", PATIENCE, || {
        drop(OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&pipe));
        let list = svd.json(&["status"]);
        list["services"].as_array().is_some_and(|rows| rows.iter().all(|row| row["state"] == "running"))
    });
}

#[test]
fn svd_ends_while_files_hang() {
    let mut svd = Svd::new();
    let pipe = svd.path("env.pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
    svd.service("hung", &script(SLEEP, &format!("environment_files = [{}]", quoted(&pipe))));
    svd.start();
    let begun = Instant::now();
    assert!(svd.stop().success());
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
}
