//! What somebody meets who operates services by hand: what is said when things go wrong, and what is shown of it later.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use airdock::sys::process::ProcStat;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use support::plain::{SLEEP, lines, python, script};
use support::svd::{both, quoted};
use support::{PATIENCE, Svd, wait_until};

/// User and system time of a process until now.
fn cpu(pid: i32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("svd runs");
    let after_name = text.rsplit_once(')').expect("a name in brackets").1;
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 10)
}

/// Leaves only when the file is there.
fn held(svd: &Svd) -> String {
    script(
        &format!(
            "trap 'while ! test -e {}; do sleep 0.05; done; exit 0' TERM; while :; do sleep 0.05; done",
            quoted(&svd.path("go"))
        ),
        "",
    )
}

#[test]
fn svd_sleeps_while_it_waits_for_the_last_service_and_svctl_waits_for_svd() {
    let mut svd = Svd::new();
    svd.service("quick", &script(SLEEP, ""));
    svd.service("slow", &held(&svd));
    svd.start();
    svd.wait_state("quick", "running");
    svd.wait_state("slow", "running");
    let pid = svd.pid();
    svd.belongings.note(pid);
    let shutdown = svd.svctl_beside(&["shutdown"]);
    svd.wait_state("quick", "stopped");
    let (before, began) = (cpu(pid), Instant::now());
    std::thread::sleep(Duration::from_secs(2));
    let used = cpu(pid) - before;
    assert!(used < began.elapsed() / 4, "svd used {used:?} of {:?} for nothing", began.elapsed());
    assert_eq!(svd.state("slow"), "stopping");
    std::fs::write(svd.path("go"), "").expect("letting it go");
    let output = shutdown.finish();
    assert!(output.status.success(), "{}", both(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("svd has stopped"));
    // Told when it was so: another svd can be started at once.
    assert!(!svd.socket().exists());
    assert!(ProcStat::read(pid).is_none_or(|stat| stat.state == 'Z') || svd.wait_end().success());
}

#[test]
fn who_is_not_ready_is_told_with_the_reason() {
    let mut svd = Svd::new();
    let ready = |more: &str| format!("[ready]\ntimeout = '600ms'\n{more}\n");
    let cases = [
        ("tcp", "tcp = '127.0.0.1:1'", "cannot connect to 127.0.0.1:1: Connection refused"),
        ("command", "command = ['sh', '-c', 'exit 7']", "sh -c exit 7 exited with 7"),
        ("log", "log = 'ready to serve'", "no line of its output contains \"ready to serve\""),
        ("notify", "notify = true", "READY=1 has not come"),
        ("descriptor", "descriptor = true", "nothing has come on its readiness descriptor"),
    ];
    for (name, more, _) in &cases {
        svd.service(name, &script(SLEEP, &format!("autostart = false\n{}", ready(more))));
    }
    svd.start();
    for (name, _, why) in &cases {
        let said = svd.fails(&["start", name]);
        let expected = format!("was not ready within 600ms: {why}");
        assert!(said.contains(&expected), "{name}: {said}");
        let shown = both(&svd.svctl(&["status", name]));
        assert!(shown.contains("was not ready within 600ms") && shown.contains(why), "{name}: {shown}");
        svd.ok(&["stop", name]);
    }
}

#[test]
fn a_start_in_vain_is_told_also_where_the_next_attempt_comes_at_once() {
    let mut svd = Svd::new();
    let more = "autostart = false\n[ready]\nnotify = true\ntimeout = '500ms'\n[restart]\ndelay = '0s'\n";
    svd.service("mute", &script(SLEEP, more));
    svd.start();
    let began = Instant::now();
    let said = svd.fails(&["start", "mute"]);
    assert!(said.contains("was not ready within 500ms: READY=1 has not come; it is tried again"), "{said}");
    assert!(began.elapsed() < PATIENCE);
    assert_eq!(svd.state("mute"), "starting", "the attempts go on");
    let shown = both(&svd.svctl(&["status"]));
    assert!(shown.contains("was not ready within 500ms"), "the table says why it is not there: {shown}");
    svd.ok(&["stop", "mute"]);
}

#[test]
fn messages_count_workers_as_the_status_does() {
    let mut svd = Svd::new();
    let stubborn = "trap '' TERM; echo deaf; while :; do sleep 0.05; done";
    svd.service("first", &script(SLEEP, ""));
    svd.service("stubborn", &script(stubborn, "[stop]\ngrace = '200ms'\n"));
    svd.start();
    wait_until("it ignores TERM", PATIENCE, || lines(&svd, "stubborn", "deaf") == 1);
    svd.wait_state("stubborn", "running");
    svd.ok(&["restart", "stubborn"]);
    wait_until("it ignores TERM again", PATIENCE, || lines(&svd, "stubborn", "deaf") == 2);
    svd.ok(&["stop", "stubborn"]);
    let events = svd.ok(&["events", "stubborn"]);
    let killed: Vec<&str> = events.lines().filter(|line| line.contains("grace time")).collect();
    assert_eq!(killed.len(), 2, "{events}");
    assert!(killed.iter().all(|line| line.contains("worker 0 ")), "{events}");
}

#[test]
fn a_reload_to_what_is_not_there_stops_nothing() {
    let mut svd = Svd::new();
    let app = svd.app("beat");
    std::fs::create_dir_all(app.root.join("releases/1")).expect("making a release");
    app.switch("1");
    let root = quoted(&app.root);
    svd.service("beat", &script(SLEEP, &format!("root = {root}\n[reload]\noverlap = false\n")));
    svd.start();
    svd.wait_state("beat", "running");
    let pid = svd.main_pid("beat");
    let said = svd.fails(&["reload", "beat", "--release", "typo"]);
    assert!(said.contains("there is no release typo") && said.contains("nothing was stopped"), "{said}");
    std::fs::remove_file(app.root.join("current")).expect("removing current");
    let said = svd.fails(&["reload", "beat"]);
    assert!(said.contains("no `current`") && said.contains("nothing was stopped"), "{said}");
    assert_eq!(svd.main_pid("beat"), pid, "it was not touched");
    app.switch("1");
    svd.ok(&["reload", "beat"]);
    assert_ne!(svd.main_pid("beat"), pid);
}

#[test]
fn an_update_to_what_is_not_there_stops_nothing() {
    let mut svd = Svd::new();
    let app = svd.app("beat");
    std::fs::create_dir_all(app.root.join("releases/1")).expect("making a release");
    app.switch("1");
    let file = |root: &str| script(SLEEP, &format!("root = {root}\n[reload]\noverlap = false\n"));
    let (there, typo) = (quoted(&app.root), quoted(&svd.path("typo")));
    svd.service("beat", &file(&there));
    svd.service("other", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("beat", "running");
    svd.wait_state("other", "running");
    let (pid, other) = (svd.main_pid("beat"), svd.main_pid("other"));
    svd.service("beat", &file(&typo));
    svd.service("other", &script(SLEEP, "umask = '0027'\n"));
    let said = svd.fails(&["update"]);
    assert!(said.contains("typo") && said.contains("nothing was stopped"), "{said}");
    assert_eq!(svd.main_pid("beat"), pid, "it was not touched");
    assert_ne!(svd.main_pid("other"), other, "the rest of the update is done");
    let shown = both(&svd.svctl(&["status", "beat"]));
    assert!(shown.contains("`svctl reload beat` tries it again"), "{shown}");
    assert!(svd.fails(&["reload", "beat"]).contains("nothing was stopped"));
    // By a signal, of which the events alone tell.
    svd.service("beat", &file(&there));
    svd.ok(&["update"]);
    assert!(!both(&svd.svctl(&["status", "beat"])).contains("tries it again"));
    std::fs::remove_file(app.root.join("current")).expect("removing current");
    let pid = svd.main_pid("beat");
    svd.service("beat", &script(SLEEP, &format!("root = {there}\numask = '0027'\n[reload]\noverlap = false\n")));
    svd.signal(Signal::SIGHUP);
    let told =
        |text: &str| text.lines().any(|l| l.contains("beat warning: is not reloaded") && l.contains("`current`"));
    wait_until("the failure is told", PATIENCE, || told(&svd.ok(&["events"])));
    assert_eq!(svd.main_pid("beat"), pid, "it was not touched");
    app.switch("1");
    svd.ok(&["reload", "beat"]);
    assert_ne!(svd.main_pid("beat"), pid);
}

#[test]
fn what_runs_with_an_older_configuration_is_named() {
    let mut svd = Svd::new();
    svd.service("web", &script(SLEEP, "[ready]\ndelay = '50ms'\n"));
    svd.start();
    svd.wait_state("web", "running");
    svd.service("web", &script("exit 3", "[ready]\ndelay = '50ms'\n"));
    svd.fails(&["update"]);
    svd.wait_state("web", "running");
    let again = svd.ok(&["update"]);
    assert!(again.contains("Nothing has changed") && again.contains("`svctl reload web`"), "{again}");
    assert!(both(&svd.svctl(&["status", "web"])).contains("the configuration that it had before"));
    svd.service("web", &script(SLEEP, "[ready]\ndelay = '60ms'\n"));
    svd.ok(&["update"]);
    let fine = svd.ok(&["update"]);
    assert!(!fine.contains("svctl reload"), "{fine}");
    assert!(!both(&svd.svctl(&["status", "web"])).contains("before"));
}

#[test]
fn events_tell_who_ordered_what_and_what_an_update_did() {
    let mut svd = Svd::new();
    svd.service("web", &script(SLEEP, "instances = 1\n"));
    svd.start();
    svd.wait_state("web", "running");
    svd.ok(&["stop", "web"]);
    svd.ok(&["start", "web"]);
    let events = svd.ok(&["events"]);
    assert!(events.contains("web info: stopped, ordered by "), "{events}");
    assert!(events.contains("web info: running, ordered by "), "{events}");
    svd.service("web", &script(SLEEP, "instances = 2\n"));
    assert!(svd.ok(&["update", "--dry-run"]).contains("scale web (instances)"));
    svd.signal(Signal::SIGHUP);
    let applied = "the changed configuration is applied: scale web";
    wait_until("the update is told", PATIENCE, || svd.ok(&["events"]).contains(applied));
}

#[test]
fn the_table_shows_who_is_unhealthy() {
    let mut svd = Svd::new();
    let health = "[health]\ncommand = ['sh', '-c', 'exit 9']\ninterval = '50ms'\nfailures = 2\n";
    svd.service("ill", &script(SLEEP, health));
    svd.start();
    wait_until("it is shown", PATIENCE, || svd.ok(&["status"]).contains("unhealthy: sh -c exit 9 exited with 9"));
    assert_eq!(svd.state("ill"), "running");
}

#[test]
fn the_last_lines_of_those_since() {
    let mut svd = Svd::new();
    let program = python("import time\nfor i in range(50): print('line', i)\nprint('all')\ntime.sleep(1000)", "");
    svd.service("talk", &program);
    svd.start();
    wait_until("it has written all", PATIENCE, || lines(&svd, "talk", "all") == 1);
    assert_eq!(svd.ok(&["logs", "talk", "--since", "1h", "-n", "3"]).lines().count(), 3);
    assert!(svd.ok(&["logs", "talk", "--since", "1h"]).lines().count() > 50);
    assert!(svd.ok(&["logs", "talk", "--since", "1h", "-n", "500"]).lines().count() > 50);
}

#[test]
fn who_cannot_be_signalled_is_named() {
    let mut svd = Svd::new();
    svd.service("web", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("web", "running");
    let said = svd.fails(&["signal", "HUP", "web", "--worker", "3"]);
    assert!(said.contains("worker 3 does not run"), "{said}");
    svd.ok(&["signal", "SEGV", "web"]);
    wait_until("its end is told", PATIENCE, || svd.ok(&["events"]).contains("was killed by signal 11 (SIGSEGV)"));
}

#[test]
fn a_command_in_a_services_environment() {
    let mut svd = Svd::new();
    let more = format!("directory = {}\n[environment]\nCOLOUR = 'blue'\n", quoted(&svd.path("etc")));
    svd.service("web", &script(SLEEP, &more));
    svd.service("off", &script(SLEEP, "autostart = false\n"));
    svd.start();
    svd.wait_state("web", "running");
    let said = svd.ok(&["exec", "web", "sh", "-c", "echo $COLOUR; pwd; echo err >&2; echo ${LISTEN_FDS-none}"]);
    assert_eq!(said, format!("blue\n{}\nnone\n", svd.path("etc").display()));
    let code = |args: &[&str]| svd.svctl(args).status.code();
    assert_eq!(code(&["exec", "web", "--", "sh", "-c", "exit 42"]), Some(42));
    assert_eq!(code(&["exec", "web", "sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(code(&["exec", "off", "sh", "-c", "exit 7"]), Some(7), "also where nothing runs");
    assert_eq!(code(&["exec", "ghost", "true"]), Some(4));
    assert_eq!(code(&["exec", "web"]), Some(2));
    let missing = svd.fails(&["exec", "web", "no-such-program"]);
    assert!(missing.contains("no-such-program"), "{missing}");
    let json = svd.svctl(&["--json", "exec", "web", "sh", "-c", "printf 'a\\303\\251'; exit 3"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("a document");
    assert_eq!(json, serde_json::json!({ "exit_code": 3, "signal": null, "output": "aé" }));
    let many = svd.ok(&["exec", "web", "seq", "1", "200000"]);
    assert!(many.lines().count() == 200_000 && many.ends_with("\n200000\n"), "nothing is left out");
    let journal = std::fs::read_to_string(svd.path("state/audit.log")).expect("the journal");
    assert!(journal.contains("command=seq 1 200000"), "{journal}");
}

#[test]
fn what_a_command_writes_arrives_byte_by_byte() {
    let mut svd = Svd::new();
    svd.service("web", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("web", "running");
    let copy = svd.path("copy");
    let noise = format!("head -c 100000 /dev/urandom | tee {}", copy.display());
    let output = svd.svctl(&["exec", "web", "sh", "-c", &noise]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let written = std::fs::read(copy).expect("a copy");
    assert!(written.len() == 100_000 && output.stdout == written, "{} bytes came", output.stdout.len());
    // Also a character that is cut at the end, and nothing but that.
    assert_eq!(svd.svctl(&["exec", "web", "printf", "a\\342\\202"]).stdout, b"a\xe2\x82");
    let json = svd.svctl(&["--json", "exec", "web", "printf", "a\\377"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("a document");
    assert_eq!(json["output"], "a\u{fffd}");
}

/// Outcomes of all `exec`s in the journal.
fn ends_of_commands(svd: &Svd) -> Vec<String> {
    let journal = std::fs::read_to_string(svd.path("state/audit.log")).unwrap_or_default();
    let lines = journal.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let lines = lines.filter(|line| line["verb"] == "exec" && line["outcome"] != "begun");
    lines.map(|line| line["outcome"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn a_command_ends_with_its_client() {
    let mut svd = Svd::new();
    svd.service("web", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("web", "running");
    let mark = svd.path("pid");
    let path = mark.display();
    let program = format!("echo $$ >{path}.new; mv {path}.new {path}; echo begun; exec sleep 100000");
    let mut client = svd.svctl_command(&["exec", "web", "sh", "-c", &program]);
    let mut client = client.stdout(std::process::Stdio::null()).spawn().expect("starting svctl");
    wait_until("it runs", PATIENCE, || mark.exists());
    let pid = support::plain::number_in(&mark).expect("its pid");
    assert!(support::plain::alive(pid));
    client.kill().expect("ending svctl");
    client.wait().expect("its end");
    wait_until("the command ends, too", PATIENCE, || !support::plain::alive(pid));
    wait_until("the journal tells of it", PATIENCE, || ends_of_commands(&svd) == ["ended with its client"]);
    // Before it has written anything.
    let silent = format!("touch {path}.silent; exec sleep 100000");
    let mut client = svd.svctl_command(&["exec", "web", "sh", "-c", &silent]).spawn().expect("starting svctl");
    wait_until("it runs", PATIENCE, || svd.path("pid.silent").exists());
    client.kill().expect("ending svctl");
    client.wait().expect("its end");
    wait_until("the journal tells of it", PATIENCE, || ends_of_commands(&svd) == ["ended with its client"; 2]);
    // As many at once as there may be, and one more.
    let (begun, free) = (svd.path("begun"), svd.path("free"));
    let waits = format!("echo >>{}; while ! test -e {}; do sleep 0.05; done", begun.display(), free.display());
    let busy: Vec<_> = (0..16).map(|_| svd.svctl_beside(&["exec", "web", "sh", "-c", &waits])).collect();
    wait_until("all of them run", PATIENCE, || std::fs::read(&begun).is_ok_and(|lines| lines.len() == 16));
    let said = svd.fails(&["exec", "web", "true"]);
    assert!(said.contains("16 commands of clients run already"), "{said}");
    std::fs::write(&free, "").expect("letting them end");
    assert!(busy.into_iter().all(|one| one.finish().status.success()));
    svd.ok(&["exec", "web", "true"]);
    // Also where only the reader of its output has left.
    let mut client = svd.svctl_command(&["exec", "web", "sh", "-c", "while :; do echo y; done"]);
    let mut client = client.stdout(std::process::Stdio::piped()).spawn().expect("starting svctl");
    drop(client.stdout.take());
    assert_eq!(client.wait().expect("its end").code(), Some(0), "quietly, as with `logs`");
}

#[test]
fn a_shell_completes_the_names_of_services() {
    let mut svd = Svd::new();
    for name in ["web", "web-queue", "other"] {
        svd.service(name, &script(SLEEP, ""));
    }
    svd.start();
    let script = svd.ok(&["completions", "bash"]);
    std::fs::write(svd.path("completion"), script).expect("a script");
    let offered = |words: &str| {
        let program = env!("CARGO_BIN_EXE_svctl");
        let text = format!(
            "svctl() {{ {program} \"$@\"; }}; . {}; COMP_WORDS=({words} we); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _svctl_with_services svctl we restart; echo \"${{COMPREPLY[@]}}\"",
            svd.path("completion").display()
        );
        let mut bash = std::process::Command::new("bash");
        let output = bash.args(["-c", &text]).env("AIRDOCK_SOCKET", svd.path("run/svd.sock")).output().expect("bash");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    };
    assert_eq!(offered("svctl restart"), "web web-queue");
    assert_eq!(offered("svctl --socket /else logs other"), "web web-queue");
    assert_eq!(offered("svctl check"), "", "it takes a directory");
}

#[test]
fn a_root_that_may_not_give_files_away_is_told_so() {
    if support::plain::needs_root() {
        return;
    }
    let mut svd = Svd::new();
    svd.service("other", &script(SLEEP, "user = 'nobody'"));
    // As in a container with few capabilities.
    let plain = svd.command();
    let mut command = std::process::Command::new("setpriv");
    command.args(["--bounding-set", "-chown", "--inh-caps", "-chown"]).arg(plain.get_program()).args(plain.get_args());
    svd.start_with(command);
    wait_until("the reason is told", PATIENCE, || svd.ok(&["status"]).contains("(CAP_CHOWN)"));
    assert!(!svd.ok(&["status"]).contains("does not run as root"));
}
