//! What people and programs ask of svd: updates, rights, health and metrics, and svd's own start and end.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use support::env::check_metrics;
use support::plain::{NOBODY, SLEEP, alive, is_root, lines, needs_root, number_in, pids, script};
use support::svd::both;
use support::{PATIENCE, Svd, http_get, run_limited, wait_until};

fn changes(value: &Value) -> Vec<String> {
    let all = value["changes"].as_array().unwrap_or_else(|| panic!("{value:#}"));
    all.iter().map(|c| c.to_string()).collect()
}

#[test]
fn an_update_touches_only_what_means_something_else() {
    let mut svd = Svd::new();
    for name in ["same", "limit", "command", "leaves"] {
        svd.service(name, &script(&format!("echo one; {SLEEP}"), ""));
    }
    svd.start();
    for name in ["same", "limit", "command", "leaves"] {
        svd.wait_state(name, "running");
    }
    let before: Vec<i32> = ["same", "limit", "command", "leaves"].iter().map(|n| svd.main_pid(n)).collect();
    assert_eq!(svd.json(&["update"])["changed"], false);
    svd.service("same", &format!("# only a comment\n{}", script(&format!("echo one; {SLEEP}"), "")));
    svd.service("limit", &script(&format!("echo one; {SLEEP}"), "[logs]\nmax_size = '64KiB'\n[stop]\ngrace = '3s'"));
    svd.service("command", &script(&format!("echo two; {SLEEP}"), ""));
    svd.service("comes", &script(SLEEP, ""));
    svd.remove_service("leaves");
    let dry = svd.json(&["update", "--dry-run"]);
    assert_eq!((&dry["changed"], changes(&dry).len()), (&true.into(), 4), "{dry:#}");
    assert!(alive(before[3]) && svd.output("command") == svd.output("command"), "nothing was done");
    let done = svd.json(&["update"]);
    assert_eq!((&done["changed"], changes(&done).len()), (&true.into(), 4), "{done:#}");
    assert_eq!((svd.main_pid("same"), svd.main_pid("limit")), (before[0], before[1]));
    assert_ne!(svd.main_pid("command"), before[2]);
    assert_eq!(lines(&svd, "command", "two"), 1);
    assert!(!alive(before[2]) && !alive(before[3]));
    svd.wait_state("comes", "running");
    assert_eq!(svd.svctl(&["status", "leaves"]).status.code(), Some(4), "it is unknown now");
    assert_eq!(svd.json(&["update"])["changed"], false);
}

#[test]
fn any_error_changes_nothing_and_all_are_shown() {
    let mut svd = Svd::new();
    svd.service("good", &script(&format!("echo one; {SLEEP}"), ""));
    svd.start();
    svd.wait_state("good", "running");
    let pid = svd.main_pid("good");
    svd.service("good", &script(&format!("echo two; {SLEEP}"), ""));
    svd.service("bad", "kind = 'command'\ncomand = ['x']\numask = 99\n");
    svd.service("worse", "kind = 'command'\ncommand = ['x'\n");
    let said = svd.fails(&["update"]);
    for part in ["bad.toml:2:1", "did you mean \"command\"", "bad.toml:3", "worse.toml:", "nothing was changed"] {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
    // As SIGHUP has it.
    svd.signal(Signal::SIGHUP);
    wait_until("the event is told", PATIENCE, || svd.ok(&["events"]).contains("error"));
    assert_eq!((svd.main_pid("good"), lines(&svd, "good", "two")), (pid, 0));
    svd.remove_service("bad");
    svd.remove_service("worse");
    svd.signal(Signal::SIGHUP);
    wait_until("SIGHUP is an update", PATIENCE, || lines(&svd, "good", "two") == 1);
}

/// Runs svctl as the user nobody.
fn as_nobody(svd: &Svd, args: &[&str]) -> Output {
    let mut command = svd.svctl_command(args);
    command.uid(NOBODY).gid(NOBODY);
    run_limited(command, PATIENCE)
}

/// `nobody` must be able to execute the program, wherever it was built.
fn nobody_can_run(svd: &Svd) -> bool {
    let mut command = svd.svctl_command(&["--version"]);
    command.uid(NOBODY).gid(NOBODY);
    let can = command.output().is_ok_and(|o| o.status.success());
    if !can {
        eprintln!("SKIPPED: the user nobody cannot reach the program");
    }
    can
}

#[test]
fn who_may_not_cannot_and_what_was_done_is_in_the_journal() {
    let mut svd = Svd::new();
    if needs_root() || !nobody_can_run(&svd) {
        return;
    }
    let rule = "[[access]]\nusers = ['nobody']\nverbs = ['status', 'restart']\nservices = ['web-*']\n";
    svd.config(rule);
    svd.service("web-1", &script(SLEEP, ""));
    svd.service("db", &script(SLEEP, ""));
    svd.start();
    for name in ["web-1", "db"] {
        svd.wait_state(name, "running");
    }
    let (web, db) = (svd.main_pid("web-1"), svd.main_pid("db"));
    assert!(as_nobody(&svd, &["status", "web-1"]).status.success());
    assert!(as_nobody(&svd, &["restart", "web-1"]).status.success());
    assert_ne!(svd.main_pid("web-1"), web);
    let refused: [&[&str]; 7] = [
        &["stop", "web-1"],
        &["restart", "db"],
        &["restart", "web-1", "db"],
        &["logs", "web-1"],
        &["update"],
        &["shutdown"],
        &["signal", "KILL", "db"],
    ];
    for args in refused {
        let output = as_nobody(&svd, args);
        assert_eq!(output.status.code(), Some(5), "{args:?}: {}", both(&output));
        assert!(both(&output).contains("nobody"), "{args:?}: {}", both(&output));
    }
    assert_eq!(svd.main_pid("db"), db);
    let list = as_nobody(&svd, &["--json", "status"]);
    let text = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(!text.contains("\"db\""), "what may not be seen is not listed: {text}");
    let journal = fs::read_to_string(svd.path("state/audit.log")).expect("the journal");
    let entries: Vec<Value> = journal.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    let of = |verb: &str, outcome: &str| {
        entries.iter().filter(|e| e["user"] == "nobody" && e["verb"] == verb && e["outcome"] == outcome).count()
    };
    assert_eq!(of("restart", "done"), 1, "{journal}");
    assert!(of("stop", "refused") == 1 && of("update", "refused") == 1, "{journal}");
    // Rules are updated, too.
    svd.config("");
    svd.ok(&["update"]);
    assert_eq!(as_nobody(&svd, &["restart", "web-1"]).status.code(), Some(5));
}

#[test]
fn curl_is_a_client() {
    let mut svd = Svd::new();
    svd.service("web", &script("echo hello; exec sleep 100000", ""));
    svd.start();
    svd.wait_state("web", "running");
    let curl = |args: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["-sS", "--max-time", "20", "--unix-socket"]).arg(svd.socket()).args(args);
        let output = run_limited(command, PATIENCE);
        assert!(output.status.success(), "{}", both(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let status: Value = serde_json::from_str(&curl(&["http://svd/v1/status"])).expect("JSON");
    assert_eq!(status["services"][0]["state"], "running");
    let said = curl(&["-X", "POST", "http://svd/v1/services/web/restart"]);
    let last: Value = serde_json::from_str(said.lines().last().unwrap_or_default()).expect("JSON");
    assert_eq!(last["result"]["services"][0]["ok"], true, "{said}");
    curl(&["-X", "POST", "http://svd/v1/services/web/scale", "-d", "{\"count\": 2}"]);
    assert_eq!(pids(&svd, "web").len(), 2);
    assert!(curl(&["http://svd/v1/services/web/logs?lines=5"]).contains("hello"));
    let unknown: Value = serde_json::from_str(&curl(&["http://svd/v1/nowhere"])).expect("JSON");
    assert_eq!(unknown["error"]["code"], "unknown_route");
}

/// Those of docs/api.md, but for following, which has no end.
#[test]
fn the_documented_calls_of_curl_work() {
    let mut svd = Svd::new();
    svd.service("airship", &script("echo hello; exec sleep 100000", ""));
    svd.start();
    svd.wait_state("airship", "running");
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md")).expect("the page");
    let calls: Vec<&str> = page.lines().filter(|l| l.starts_with("curl --")).collect();
    assert!(calls.len() >= 4, "{calls:#?}");
    let socket = svd.socket().display().to_string();
    for call in calls {
        let line = call.replace("/run/airdock/svd.sock", &socket).replace("?follow&", "?");
        assert!(line.contains(&socket), "{line}");
        let mut shell = Command::new("sh");
        shell.args(["-c", &line.replacen("curl ", "curl -sS --fail-with-body --max-time 20 ", 1)]);
        let output = run_limited(shell, PATIENCE);
        assert!(output.status.success() && !output.stdout.is_empty(), "{line}: {}", both(&output));
        assert!(!both(&output).contains("\"error\""), "{line}: {}", both(&output));
    }
    assert_eq!(pids(&svd, "airship").len(), 6);
}

#[test]
fn health_drain_and_metrics() {
    let mut svd = Svd::new();
    svd.service("web", &script(SLEEP, ""));
    svd.service("off", &script(SLEEP, "autostart = false"));
    svd.start();
    svd.wait_state("web", "running");
    let overall = || http_get(svd.public, "/health").expect("an answer").0;
    assert_eq!((svd.health("web").0, overall()), (200, 200));
    assert_eq!(svd.health("off").0, 503);
    assert_eq!(svd.health("unknown").0, 404);
    let pid = svd.main_pid("web");
    svd.ok(&["drain", "web"]);
    let (code, body) = svd.health("web");
    assert_eq!((code, &body["draining"], overall()), (503, &true.into(), 503), "{body:#}");
    assert_eq!(svd.main_pid("web"), pid, "it goes on");
    svd.ok(&["undrain", "web"]);
    assert_eq!(svd.health("web").0, 200);
    assert_eq!(http_get(svd.public, "/v1/status").expect("an answer").0, 404, "nothing else is public");
    let (code, text) = http_get(svd.public, "/metrics").expect("an answer");
    assert_eq!(code, 200);
    assert!(text.contains("airdock_service_state{service=\"web\",state=\"running\"} 1"), "{text}");
    check_metrics(&text);
}

#[test]
fn one_svd_per_run_directory() {
    let mut svd = Svd::new();
    svd.service("a", &script(SLEEP, ""));
    svd.start();
    let second = run_limited(svd.command(), PATIENCE);
    assert_eq!(second.status.code(), Some(1));
    let said = both(&second);
    assert!(said.contains(&svd.guardian().to_string()) && said.contains("only one svd"), "{said}");
    svd.wait_state("a", "running");
    // A lock, not a guess: after a kill the next one starts, whatever files are left.
    svd.kill();
    assert!(svd.path("run/svd.sock").exists() && svd.path("run/svd.pid").exists());
    svd.start();
    svd.wait_state("a", "running");
}

fn daemon(svd: &Svd) -> Output {
    let mut command = svd.command();
    command.arg("--daemon");
    run_limited(command, PATIENCE)
}

#[test]
fn a_daemon_says_whether_it_is_up() {
    let svd = Svd::new();
    svd.service("a", &script(SLEEP, ""));
    svd.service("broken", "kind = 'comand'\n");
    let failed = daemon(&svd);
    assert!(!failed.status.success());
    assert!(both(&failed).contains("broken.toml:1"), "{}", both(&failed));
    assert!(!svd.socket().exists());
    svd.remove_service("broken");
    let started = daemon(&svd);
    assert!(started.status.success(), "{}", both(&started));
    // Up at once, without a wait.
    let pid = number_in(&svd.path("run/svd.pid")).expect("a pid file");
    assert_eq!(svd.ok(&["pid"]).trim(), pid.to_string());
    let stat = airdock::sys::process::ProcStat::read(pid).expect("it runs");
    assert_ne!(stat.parent, std::process::id().cast_signed(), "it is nobody's child here");
    svd.wait_state("a", "running");
    let service = svd.main_pid("a");
    assert!(!daemon(&svd).status.success(), "a second one does not start");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("signalling svd");
    wait_until("svd has ended", Duration::from_secs(20), || !alive(pid));
    assert!(!alive(service));
    assert!(!svd.socket().exists(), "its socket is gone");
}

#[test]
fn a_daemons_own_log_is_kept_short_and_opened_anew() {
    let svd = Svd::new();
    fs::create_dir(svd.path("log")).expect("a directory");
    let log = svd.path("log/svd.log");
    fs::File::create(&log).and_then(|f| f.set_len(16 << 20)).expect("a long log");
    let started = daemon(&svd);
    assert!(started.status.success(), "{}", both(&started));
    let pid = number_in(&svd.path("run/svd.pid")).expect("a pid file");
    // An update that fails is worth a message.
    svd.service("broken", "kind = 'comand'\n");
    let said = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains("broken.toml"));
    svd.fails(&["update"]);
    wait_until("the message is in a new file", PATIENCE, || said(&log));
    assert!(fs::metadata(svd.path("log/svd.log.1")).is_ok_and(|m| m.len() >= 16 << 20), "the old one is kept");
    assert!(fs::metadata(&log).is_ok_and(|m| m.len() < 4096));
    // As logrotate does it.
    let renamed = svd.path("log/svd.log.renamed");
    fs::rename(&log, &renamed).expect("renaming");
    let length = fs::metadata(&renamed).expect("the log").len();
    kill(Pid::from_raw(pid), Signal::SIGUSR2).expect("signalling svd");
    wait_until("the log is there again", PATIENCE, || log.exists());
    svd.fails(&["update"]);
    wait_until("the message is in the new file", PATIENCE, || said(&log));
    assert_eq!(fs::metadata(&renamed).expect("the log").len(), length, "the renamed one is left alone");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("signalling svd");
    wait_until("svd has ended", Duration::from_secs(20), || !alive(pid));
}

#[test]
fn names_with_stars_several_names_and_exit_codes() {
    let mut svd = Svd::new();
    for name in ["web-1", "web-2", "db"] {
        svd.service(name, &script(SLEEP, ""));
    }
    svd.start();
    for name in ["web-1", "web-2", "db"] {
        svd.wait_state(name, "running");
    }
    svd.ok(&["stop", "web-*"]);
    assert_eq!((&*svd.state("web-1"), &*svd.state("web-2"), &*svd.state("db")), ("stopped", "stopped", "running"));
    let code_of = |svd: &Svd, args: &[&str]| svd.svctl(args).status.code();
    let code = |args: &[&str]| code_of(&svd, args);
    assert_eq!(code(&["status", "db"]), Some(0));
    assert_eq!(code(&["status", "web-1"]), Some(3));
    assert_eq!(code(&["status", "ghost"]), Some(4));
    assert_eq!(code(&["is-active", "db"]), Some(0));
    assert_eq!(code(&["is-active", "db", "web-1"]), Some(3));
    assert_eq!(code(&["frobnicate"]), Some(2));
    assert_eq!(code(&["reload"]), Some(2), "a reload of nothing in particular is refused");
    assert_eq!(code(&["signal", "USR9", "db"]), Some(2));
    assert_ne!(code(&["stop", "ghost"]), Some(0));
    let pid = svd.main_pid("db");
    svd.ok(&["signal", "KILL", "db"]);
    wait_until("it is replaced", PATIENCE, || svd.status("db")["pid"].as_i64().is_some_and(|p| p != i64::from(pid)));
    svd.ok(&["shutdown"]);
    assert!(svd.wait_end().success());
    assert_eq!(code_of(&svd, &["status"]), Some(4), "svd cannot be reached");
    let said = both(&svd.svctl(&["stop", "db"]));
    assert!(said.contains("svd.sock"), "{said}");
}

#[test]
fn an_open_unix_socket_gets_a_new_mode_and_owner_by_an_update() {
    let mut svd = Svd::new();
    let path = svd.path("web.sock");
    let file = |more: &str| script(SLEEP, &format!("[sockets.http]\nlisten = 'unix:{}'\n{more}", path.display()));
    svd.service("web", &file("mode = '0600'"));
    svd.start();
    svd.wait_state("web", "running");
    let shown = || fs::metadata(&path).expect("the socket");
    let (before, pid) = (shown(), svd.main_pid("web"));
    assert_eq!(before.mode() & 0o777, 0o600);
    let (uid, gid) = if is_root() { (NOBODY, NOBODY) } else { (before.uid(), before.gid()) };
    svd.service("web", &file(&format!("mode = '0660'\nowner = '{uid}'\ngroup = '{gid}'")));
    svd.ok(&["update"]);
    wait_until("the socket is the other user's", PATIENCE, || (shown().uid(), shown().mode() & 0o777) == (uid, 0o660));
    assert_eq!((shown().gid(), shown().ino()), (gid, before.ino()));
    assert_eq!(svd.main_pid("web"), pid, "nothing was restarted");
}
