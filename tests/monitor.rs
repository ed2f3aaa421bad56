//! `svctl monitor`, on a terminal and elsewhere.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use nix::sys::signal::{Signal, kill};
use nix::sys::termios::LocalFlags;
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use support::plain::{SLEEP, script};
use support::pty::Pty;
use support::svd::quoted;
use support::{Env, PATIENCE, Release, Svd, free_port, http_get, wait_for, wait_until};

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

/// Each of gunicorn's own workers, with what it has served, and whether it is another one than before.
#[test]
fn gunicorns_workers_are_shown_one_by_one() {
    let Some(env) = Env::get("gunicorn-27.0.1") else { return };
    let mut svd = Svd::new();
    let app = svd.app("web");
    app.ship(&Release::new("r0"));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let (root, python) = (quoted(&app.root), quoted(&env.python()));
    svd.service(
        "web",
        &format!(
            "kind = \"gunicorn\"\napp = \"wsgi_app:application\"\nroot = {root}\npython = {python}\nworkers = 2\n\
             sockets.http.listen = \"{address}\"\n"
        ),
    );
    svd.start();
    svd.wait_state("web", "running");
    for _ in 0..30 {
        assert_eq!(http_get(address, "/").expect("an answer").0, 200);
    }
    let own = || -> Vec<Value> {
        svd.status("web")["generations"][0]["gunicorn"].as_array().expect("gunicorn's workers").clone()
    };
    let sum = |key: &str| own().iter().map(|worker| worker[key].as_u64().expect(key)).sum::<u64>();
    wait_until("all requests are counted", PATIENCE, || sum("requests") == 30);
    assert_eq!((own().len(), sum("errors_5xx"), sum("open")), (2, 0, 0));
    let master = svd.main_pid("web");
    for worker in own() {
        let pid = i32::try_from(worker["pid"].as_i64().expect("a pid")).expect("a pid");
        let stat = airdock::sys::process::ProcStat::read(pid).expect("it lives");
        assert_eq!(stat.parent, master);
        assert!(worker["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20), "{worker}");
        assert_eq!(worker["state"], "running");
        let quick = worker["requests"] == 0 || worker["latency_ms"]["p99"].as_f64().is_some_and(|ms| ms > 0.0);
        assert!(quick, "{worker}");
    }
    let pids = || own().iter().filter_map(|worker| worker["pid"].as_u64()).collect::<BTreeSet<u64>>();
    let before = pids();
    for words in [&["status", "web"][..], &["monitor", "web", "--once"], &["monitor", "--once"]] {
        let text = svd.ok(words);
        for pid in &before {
            assert!(text.contains(&format!("gunicorn worker {pid}: running, for ")), "{words:?}: {text}");
        }
        assert!(text.contains(" requests, 0 5xx, 0 open, ") && text.contains("MiB"), "{words:?}: {text}");
    }
    assert!(svd.ok(&["monitor", "web", "--once"]).contains(", release r0, "));

    // One dies: gunicorn puts another one in its place, which has served nothing.
    let gone = *before.first().expect("two");
    kill(Pid::from_raw(i32::try_from(gone).expect("a pid")), Signal::SIGKILL).expect("a signal");
    let after = wait_for("another one is ready", PATIENCE, || {
        let all = own();
        let ready = all.len() == 2 && all.iter().all(|worker| worker["state"] == "running" && worker["pid"] != gone);
        ready.then_some(all)
    });
    let new = after.iter().find(|worker| worker["pid"].as_u64().is_some_and(|pid| !before.contains(&pid)));
    assert_eq!(new.expect("a new one")["requests"], 0, "{after:?}");
}

/// Set for the process whose terminal is looked at.
const PANICS: &str = "AIRDOCK_TEST_PANICS";

/// A program of its own, as it is nothing without the test below: it takes the terminal, and panics.
#[test]
fn a_program_that_panics() {
    if std::env::var_os(PANICS).is_none() {
        return;
    }
    let whole = airdock::cli::screen::Whole::take();
    whole.draw(&["all is drawn".to_owned()]);
    // Until the test has looked.
    std::io::stdin().read_line(&mut String::new()).expect("a key");
    panic!("what a person has to read");
}

/// The terminal is as it was before the panic is told, so that its words are not on a screen that goes away.
#[test]
fn a_panic_gives_the_terminal_back() {
    let mut command = Command::new(std::env::current_exe().expect("a path"));
    command.args(["--exact", "a_program_that_panics", "--nocapture"]).env(PANICS, "1");
    let mut pty = Pty::start(command, 100, 20);
    let before = pty.settings();
    pty.wait_seen("all is drawn");
    assert_ne!(pty.settings().local_flags, before.local_flags);
    pty.type_in(b"\n");
    assert_eq!(pty.wait_end(PATIENCE).code(), Some(101), "{:?}", pty.seen());
    pty.wait_seen("what a person has to read");
    let seen = pty.seen();
    let (given, told) = (seen.find("\x1b[?25h\x1b[?1049l"), seen.find("what a person has to read"));
    assert!(given.is_some() && given < told, "{seen:?}");
    assert_eq!(seen.matches("\x1b[?1049l").count(), 1, "{seen:?}");
    assert_eq!(pty.settings().local_flags, before.local_flags);
}
