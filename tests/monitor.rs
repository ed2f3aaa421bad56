//! `svctl monitor`, on a terminal and elsewhere.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use nix::sys::signal::{Signal, kill};
use nix::sys::termios::LocalFlags;
use nix::unistd::Pid;
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use support::plain::{SLEEP, script};
use support::pty::Pty;
use support::{PATIENCE, Svd};

fn started() -> Svd {
    let mut svd = Svd::new();
    svd.service("web", &script(&format!("printf 'it \\033[31mserves\\n'; {SLEEP}"), ""));
    svd.service("queue", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("web", "running");
    svd.wait_state("queue", "running");
    svd
}

#[test]
fn without_a_terminal_it_is_text_once_or_again_and_again() {
    let svd = started();
    let text = svd.ok(&["monitor", "--once"]);
    for part in [
        "SERVICE",
        "web",
        "queue",
        "running",
        "committed",
        "web generation 1 worker 0: running, pid ",
        "web | it \\x1b[31mserves",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let text = svd.ok(&["monitor", "web", "--once"]);
    assert!(text.contains("web") && !text.contains("queue"), "{text}");
    let once: Value = serde_json::from_str(&svd.ok(&["--json", "monitor", "w*", "--once"])).expect("a document");
    assert_eq!(once["services"][0]["name"], "web", "{once}");
    assert_eq!(svd.svctl(&["monitor", "nobody-knows", "--once"]).status.code(), Some(4));

    let mut command = svd.svctl_command(&["--json", "monitor", "web", "--interval", "100ms"]);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("svctl");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next = || serde_json::from_str::<Value>(&lines.next().expect("a line").expect("text")).expect("a document");
    assert_eq!(next()["services"][0]["state"], "running");
    svd.ok(&["stop", "web"]);
    while next()["services"][0]["state"] != "stopped" {}
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("a signal");
    assert_eq!(child.wait().expect("its end").code(), Some(143));
}

/// What is taken of the terminal is given back, however it ends.
#[test]
fn the_whole_terminal_is_used_and_given_back() {
    let svd = started();
    for (end, code) in
        [(None, 0), (Some(Signal::SIGINT), 130), (Some(Signal::SIGTERM), 143), (Some(Signal::SIGHUP), 129)]
    {
        let mut pty = Pty::start(svd.svctl_command(&["monitor", "--interval", "100ms"]), 100, 20);
        let before = pty.settings();
        pty.wait_seen("q ends");
        pty.wait_seen("web generation 1 worker 0: running");
        assert!(pty.seen().starts_with("\x1b[?1049h\x1b[?25l"), "{:?}", pty.seen());
        let during = pty.settings().local_flags;
        assert!(!during.intersects(LocalFlags::ICANON | LocalFlags::ECHO), "keys come at once: {during:?}");
        match end {
            None => pty.type_in(b"xq"),
            Some(signal) => kill(Pid::from_raw(pty.pid()), signal).expect("a signal"),
        }
        let status = pty.wait_end(PATIENCE);
        assert_eq!((status.code(), status.signal()), (Some(code), None), "{end:?}");
        pty.wait_seen("\x1b[?25h\x1b[?1049l");
        assert_eq!(pty.settings().local_flags, before.local_flags, "{end:?}");
        assert_eq!(pty.seen().matches("\x1b[?1049l").count(), 1, "once");
    }
}

#[test]
fn it_goes_on_when_svd_does() {
    let mut svd = started();
    let pty = Pty::start(svd.svctl_command(&["monitor", "--interval", "100ms"]), 100, 20);
    pty.wait_seen("web generation 1 worker 0: running");
    svd.ok(&["reload", "web"]);
    pty.wait_seen("web generation 2 worker 0: running");
    svd.kill();
    pty.wait_seen("svd cannot be reached");
    svd.start();
    svd.wait_state("web", "running");
    svd.ok(&["reload", "web"]);
    pty.wait_seen("web generation 3 worker 0: running");
}
