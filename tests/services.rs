//! The real svd with plain commands: restarted, given up, stopped to the last process, in order.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};
use support::plain::{NOBODY, SLEEP, alive, give_to_nobody, is_root, lines, needs_root, number_in, pids, script};
use support::svd::{both, quoted};
use support::{PATIENCE, Svd, alone, wait_for, wait_until};

const QUICK: &str = "[restart]\ndelay = '20ms'\nmax_delay = '80ms'\nsettled = '10s'\n";

/// Attempts begin at these times, in milliseconds.
fn attempts(svd: &Svd) -> Vec<i64> {
    let text = fs::read_to_string(svd.path("attempts")).unwrap_or_default();
    text.lines().map(|l| l.parse::<i64>().expect("a time") / 1_000_000).collect()
}

#[test]
fn restarts_back_off_and_end_in_failed_with_a_reason() {
    let mut svd = Svd::new();
    let times = quoted(&svd.path("attempts")).replace('"', "");
    let restart = "[restart]\ndelay = '100ms'\nmax_delay = '400ms'\n\
                   limit = { failures = 5, within = '5m', then = 'never' }";
    svd.service("flap", &script(&format!("date +%s%N >>{times}; echo my last words; exit 3"), restart));
    svd.start();
    svd.wait_state("flap", "failed");
    assert_eq!(svd.status("flap")["restarts"], 4);
    let at = attempts(&svd);
    assert_eq!(at.len(), 5, "{at:?}");
    let pauses: Vec<i64> = at.windows(2).map(|w| w[1] - w[0]).collect();
    // Doubling up to the longest, plus up to a quarter; and what the machine needs to start a shell.
    for (pause, least) in pauses.iter().zip([100, 200, 400, 400]) {
        assert!((least..least * 5 / 4 + 2000).contains(pause), "{pauses:?}");
    }
    let text = both(&svd.svctl(&["status", "flap"]));
    assert!(text.contains("exited with code 3") && text.contains("5 failures within 5m"), "{text}");
    assert!(text.contains("| my last words"), "{text}");
    // Cleared, and given up again after as many attempts.
    let said = svd.fails(&["start", "flap"]);
    assert!(said.contains("exited with code 3") && said.contains("my last words"), "{said}");
    wait_until("five more attempts", PATIENCE, || attempts(&svd).len() == 10);
    svd.wait_state("flap", "failed");
    assert_eq!(attempts(&svd).len(), 10);
}

#[test]
fn start_clears_failed_and_then_tries_again_by_itself() {
    let mut svd = Svd::new();
    let gate = svd.path("gate");
    let test = format!("test -e {} || exit 1; {SLEEP}", gate.display());
    let limit = |then: &str| format!("{QUICK}limit = {{ failures = 2, within = '1m', then = '{then}' }}");
    svd.service("never", &script(&test, &limit("never")));
    svd.service("then", &script(&test, &limit("300ms")));
    svd.start();
    svd.wait_state("never", "failed");
    svd.wait_state("then", "failed");
    fs::write(&gate, "").expect("opening the gate");
    svd.wait_state("then", "running");
    assert_eq!(svd.state("never"), "failed", "with then = never nothing is tried");
    svd.ok(&["start", "never"]);
    assert_eq!(svd.state("never"), "running");
    assert!(svd.status("never")["reason"].is_null(), "{:#}", svd.status("never"));
}

#[test]
fn policies_decide_what_an_end_means() {
    let mut svd = Svd::new();
    let policy = |name: &str, more: &str| format!("[restart]\npolicy = '{name}'\ndelay = '20ms'\n{more}");
    // Up for longer than it takes to count as started, then an end of its own.
    let ends = |code: u32| format!("echo begin; sleep 0.3; exit {code}");
    let settled = "settled = '100ms'";
    svd.service("always-0", &script(&ends(0), &policy("always", settled)));
    svd.service("failure-0", &script(&ends(0), &policy("on-failure", settled)));
    svd.service("failure-1", &script(&ends(1), &policy("on-failure", settled)));
    svd.service("failure-ok", &script(&ends(75), &policy("on-failure", "settled = '100ms'\nsuccess = [75]")));
    svd.service("never-1", &script(&ends(1), &policy("never", settled)));
    svd.start();
    for name in ["failure-0", "failure-ok", "never-1"] {
        svd.wait_state(name, "exited");
    }
    for name in ["always-0", "failure-1"] {
        wait_until(&format!("{name} begins three times"), PATIENCE, || lines(&svd, name, "begin") >= 3);
    }
    for name in ["failure-0", "failure-ok", "never-1"] {
        assert_eq!(lines(&svd, name, "begin"), 1, "{name}");
    }
    let reason = svd.status("never-1")["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("code 1"), "an end that is no success says why: {reason:?}");
    assert_eq!(svd.svctl(&["status", "failure-0"]).status.code(), Some(3), "LSB: not running");
}

#[test]
fn a_killed_worker_is_replaced_at_once() {
    let mut svd = Svd::new();
    svd.service("a", &script(SLEEP, "instances = 2\n[restart]\nsettled = '200ms'"));
    svd.start();
    svd.wait_state("a", "running");
    let before = pids(&svd, "a");
    wait_until("it has settled", PATIENCE, || svd.status("a")["since_seconds"].as_u64() >= Some(1));
    kill(Pid::from_raw(before[0]), Signal::SIGKILL).expect("killing a worker");
    let begun = Instant::now();
    let after = wait_for("a replacement", PATIENCE, || {
        Some(pids(&svd, "a")).filter(|now| now.len() == 2 && now[0] != before[0])
    });
    println!("replaced (as svctl sees it) after {:?}", begun.elapsed());
    assert_eq!(after[1], before[1], "the other one is left alone");
    svd.wait_state("a", "running");
    let status = svd.status("a");
    assert_eq!(status["restarts"], 1, "{status:#}");
    assert!(both(&svd.svctl(&["status", "a"])).contains("killed by signal 9"));
}

/// A program whose grandchildren leave its session and its process group, and write their pids to `DIR`.
fn runaway(dir: &std::path::Path) -> String {
    let dir = dir.display();
    format!(
        "(setsid sh -c 'echo $$ >{dir}/one; trap \"\" TERM HUP; (setsid sh -c \"echo \\$\\$ >{dir}/two; exec sleep \
         100000\" &); while :; do sleep 1; done' &) ; while :; do sleep 1; done"
    )
}

fn nothing_survives_a_stop(svd: &Svd) {
    let dir = svd.path("pids");
    svd.wait_state("runaway", "running");
    let (one, two) =
        wait_for("the grandchildren", PATIENCE, || Some((number_in(&dir.join("one"))?, number_in(&dir.join("two"))?)));
    assert!(alive(one) && alive(two));
    svd.ok(&["stop", "runaway"]);
    assert!(!alive(one) && !alive(two), "stop returned, and {one} or {two} lives");
    assert_eq!(svd.state("runaway"), "stopped");
}

fn prepare_runaway(svd: &Svd) {
    fs::create_dir(svd.path("pids")).expect("a directory");
    svd.service("runaway", &script(&runaway(&svd.path("pids")), "[stop]\ngrace = '500ms'"));
}

#[test]
fn nothing_survives_a_stop_by_this_user() {
    let mut svd = Svd::new();
    prepare_runaway(&svd);
    svd.start();
    nothing_survives_a_stop(&svd);
}

#[test]
fn nothing_survives_a_stop_by_a_plain_user() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    prepare_runaway(&svd);
    give_to_nobody(&svd);
    let mut command = svd.command();
    command.uid(NOBODY).gid(NOBODY);
    svd.start_with(command);
    let limitations = svd.json(&["version"])["svd"]["limitations"].to_string();
    assert!(limitations.contains("cgroup"), "what this user lacks is said: {limitations}");
    nothing_survives_a_stop(&svd);
}

#[test]
fn a_worker_that_ends_leaves_nothing_behind_either() {
    let mut svd = Svd::new();
    let dir = svd.path("pids");
    fs::create_dir(&dir).expect("a directory");
    let text = format!("(setsid sleep 100000 & echo $! >{}/left); sleep 0.2; exit 1", dir.display());
    svd.service("leaver", &script(&text, "[stop]\ngrace = '200ms'\n[restart]\npolicy = 'never'"));
    svd.start();
    let left = wait_for("the child that is left", PATIENCE, || number_in(&dir.join("left")));
    wait_until("it is gone, too", PATIENCE, || !alive(left));
}

#[test]
fn who_ignores_term_is_killed_after_its_grace() {
    let mut svd = Svd::new();
    let deaf = "trap '' TERM; echo deaf; while :; do sleep 0.05; done";
    svd.service("deaf", &script(deaf, "[stop]\ngrace = '600ms'"));
    svd.service(
        "usr1",
        &script("trap 'echo asked; exit 0' USR1; while :; do sleep 0.02; done", "[stop]\nsignal = 'USR1'"),
    );
    svd.start();
    for name in ["deaf", "usr1"] {
        svd.wait_state(name, "running");
    }
    wait_until("it is deaf", PATIENCE, || lines(&svd, "deaf", "deaf") == 1);
    let pid = svd.main_pid("deaf");
    let begun = Instant::now();
    let said = both(&svd.svctl(&["stop", "deaf"]));
    let took = begun.elapsed();
    assert!((Duration::from_millis(600)..Duration::from_secs(5)).contains(&took), "{took:?}");
    assert!(said.contains("grace"), "a kill is told: {said}");
    assert!(!alive(pid));
    svd.ok(&["stop", "usr1"]);
    assert_eq!(lines(&svd, "usr1", "asked"), 1);
}

#[test]
fn instances_and_scale() {
    let mut svd = Svd::new();
    svd.service("many", &script("echo number {worker}; exec sleep 100000", "instances = 3"));
    svd.start();
    svd.wait_state("many", "running");
    let three = pids(&svd, "many");
    assert_eq!(three.len(), 3);
    for n in 0..3 {
        assert_eq!(lines(&svd, "many", &format!("number {n}")), 1);
    }
    svd.ok(&["scale", "many", "5"]);
    let five = pids(&svd, "many");
    assert_eq!((five.len(), &five[..3]), (5, &three[..]), "those that ran go on");
    assert!(svd.ok(&["status"]).contains(&format!("{} +4", five[0])), "the table counts them");
    svd.ok(&["scale", "many", "1"]);
    assert_eq!(pids(&svd, "many"), three[..1]);
    assert!(three[1..].iter().chain(&five[3..]).all(|pid| !alive(*pid)));
    svd.fails(&["scale", "many", "0"]);
}

#[test]
fn without_overlap_the_old_release_comes_back() {
    let mut svd = Svd::new();
    let app = svd.app("beat");
    for (release, code) in [("good", "exec sleep 100000"), ("bad", "echo bad news; exit 1")] {
        let dir = app.root.join("releases").join(release);
        fs::create_dir_all(&dir).expect("a release");
        fs::write(dir.join("run.sh"), code).expect("a program");
    }
    app.switch("good");
    let file = format!(
        "kind = 'command'\ncommand = ['/bin/sh', '{{release}}/run.sh']\nroot = {}\n[reload]\noverlap = false\n",
        quoted(&app.root)
    );
    svd.service("beat", &file);
    svd.start();
    svd.wait_state("beat", "running");
    let old = svd.main_pid("beat");
    app.switch("bad");
    let said = svd.fails(&["reload", "beat"]);
    assert!(said.contains("bad news") && said.contains("code 1"), "why, and the last output: {said}");
    svd.wait_state("beat", "running");
    let status = svd.status("beat");
    assert_eq!(status["release"], "good", "{status:#}");
    assert!(!alive(old), "it was stopped before the new one began");
    app.switch("good");
    svd.ok(&["reload", "beat"]);
}

/// Where in `svctl events` something stands.
fn position(events: &str, text: &str) -> usize {
    let at = events.lines().position(|l| l.contains(text));
    at.unwrap_or_else(|| panic!("no {text:?} in:\n{events}"))
}

#[test]
fn requirements_start_first_and_stop_last() {
    let mut svd = Svd::new();
    let journal = svd.path("journal");
    let say = |name: &str| {
        let journal = journal.display();
        format!(
            "echo {name} up >>{journal}; trap 'echo {name} down >>{journal}; exit 0' TERM; while :; do sleep 0.02; done"
        )
    };
    let gate = svd.path("gate");
    let ready = format!("[ready]\ncommand = ['test', '-e', {}]", quoted(&gate));
    svd.service("db", &script(&say("db"), &ready));
    svd.service("web", &script(&say("web"), "requires = ['db']"));
    svd.service("edge", &script(&say("edge"), "after = ['web', 'unknown-to-svd']"));
    svd.start();
    svd.wait_state("web", "waiting");
    svd.wait_state("edge", "waiting");
    svd.wait_state("db", "starting");
    let reason = svd.status("web")["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("db"), "whom it waits for: {reason:?}");
    fs::write(&gate, "").expect("opening the gate");
    svd.wait_state("edge", "running");
    assert_eq!(fs::read_to_string(&journal).unwrap_or_default(), "db up\nweb up\nedge up\n");
    assert!(svd.stop().success());
    let all = fs::read_to_string(&journal).unwrap_or_default();
    assert_eq!(all, "db up\nweb up\nedge up\nedge down\nweb down\ndb down\n", "a stop of svd goes backwards");
    // A start of one starts what it requires.
    svd.service("web", &script(&say("web"), "requires = ['db']\nautostart = false"));
    svd.service("db", &script(&say("db"), &format!("autostart = false\n{ready}")));
    svd.remove_service("edge");
    svd.start();
    assert_eq!((&*svd.state("db"), &*svd.state("web")), ("stopped", "stopped"));
    svd.ok(&["start", "web"]);
    assert_eq!((&*svd.state("db"), &*svd.state("web")), ("running", "running"));
    let events = svd.ok(&["events"]);
    assert!(position(&events, "db info: generation") < position(&events, "web info: generation"), "{events}");
}

#[test]
fn enable_and_disable_survive_a_restart_of_svd() {
    let mut svd = Svd::new();
    svd.service("on", &script(SLEEP, ""));
    svd.service("off", &script(SLEEP, "autostart = false"));
    svd.start();
    svd.wait_state("on", "running");
    assert_eq!(svd.state("off"), "stopped");
    svd.ok(&["disable", "on"]);
    svd.ok(&["enable", "off"]);
    assert_eq!((&*svd.state("on"), &*svd.state("off")), ("running", "stopped"), "neither starts nor stops anything");
    svd.stop();
    svd.start();
    svd.wait_state("off", "running");
    assert_eq!(svd.state("on"), "stopped");
}

/// svctl's words about a service that cannot be started.
#[track_caller]
fn why_not(svd: &Svd, name: &str, parts: &[&str]) {
    let said = svd.fails(&["start", name]);
    for part in [&[name][..], parts].concat() {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
    svd.svctl(&["stop", name]);
}

#[test]
fn what_cannot_be_started_is_told_in_sentences() {
    let mut svd = Svd::new();
    let secret = svd.path("secret.env");
    let held = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = held.local_addr().expect("its address").to_string();
    let off = "autostart = false\n";
    svd.service("program", &format!("kind = 'command'\ncommand = ['/opt/none/prog']\n{off}"));
    svd.service("name", &format!("kind = 'command'\ncommand = ['no-such-program']\n{off}"));
    svd.service("directory", &script(SLEEP, &format!("directory = '/opt/none'\n{off}")));
    svd.service("account", &script(SLEEP, &format!("user = 'ghost'\n{off}")));
    svd.service("variables", &script(SLEEP, &format!("environment_files = [{}]\n{off}", quoted(&secret))));
    svd.service("port", &script(SLEEP, &format!("{off}[sockets.http]\nlisten = '{address}'")));
    let data = svd.path("data");
    fs::write(&data, "no program").expect("a file");
    svd.service("rights", &format!("kind = 'command'\ncommand = [{}]\n{off}", quoted(&data)));
    svd.start();
    why_not(&svd, "program", &["/opt/none/prog", "no such file"]);
    why_not(&svd, "name", &["no-such-program", "PATH"]);
    why_not(&svd, "directory", &["directory", "/opt/none", "No such file or directory"]);
    why_not(&svd, "account", &["no user", "ghost"]);
    why_not(&svd, "variables", &["environment file", "secret.env", "No such file or directory"]);
    why_not(&svd, "port", &[&address, "in use", &std::process::id().to_string()]);
    why_not(&svd, "rights", &["data"]);
    drop(held);
    svd.ok(&["start", "port"]);
}

/// `env -0` of a service, as pairs.
fn environment_of(svd: &Svd, name: &str) -> Vec<(String, String)> {
    let path = format!("/proc/{}/environ", svd.main_pid(name));
    let text = String::from_utf8(fs::read(path).expect("its environment")).expect("text");
    let mut all: Vec<_> = text
        .split_terminator('\0')
        .map(|pair| pair.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())).expect("a pair"))
        .collect();
    all.sort();
    all
}

#[test]
fn the_environment_is_the_same_from_a_shell_and_at_boot() {
    let mut svd = Svd::new();
    svd.service("env", &script(SLEEP, "[environment]\nMINE = '{service} {{release} {env.PATH_OF_TEST}'"));
    let mut shell = svd.command();
    shell.env("PATH_OF_TEST", "x").env("EDITOR", "vi").env("LC_ALL", "C").env("PYTHONPATH", "/evil");
    svd.start_with(shell);
    svd.wait_state("env", "running");
    let from_shell = environment_of(&svd, "env");
    svd.stop();
    let mut boot = svd.command();
    boot.env_clear().env("PATH_OF_TEST", "x").env("TERM", "linux").current_dir("/");
    svd.start_with(boot);
    svd.wait_state("env", "running");
    let numbered = |all: Vec<(String, String)>| -> Vec<(String, String)> {
        all.into_iter().filter(|(name, _)| name != "AIRDOCK_GENERATION").collect()
    };
    let from_shell = numbered(from_shell);
    assert_eq!(from_shell, numbered(environment_of(&svd, "env")));
    let value = |name: &str| from_shell.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!(value("MINE"), Some("env {release} x"));
    for name in ["PATH", "HOME", "USER", "LANG"] {
        assert!(value(name).is_some_and(|v| !v.is_empty()), "{name}: {from_shell:?}");
    }
    assert_eq!((value("EDITOR"), value("PYTHONPATH"), value("TERM")), (None, None, None));
}

#[test]
fn a_generation_keeps_the_directories_it_began_with() {
    let mut svd = Svd::new();
    let app = svd.app("site");
    for release in ["one", "two"] {
        fs::create_dir_all(app.root.join("releases").join(release)).expect("a release");
    }
    app.switch("one");
    fs::write(svd.path("site.env"), "# a comment\nA=1\nB=\"two words\"\nC=file\n").expect("a file");
    let text = format!(
        "echo pwd $PWD $(pwd) umask $(umask) nice $(nice) {{generation}} {{root}} {{host}} a=$A b=$B c=$C \
         {{a}} %({{x}}i)s; {SLEEP}"
    );
    let more = format!(
        "root = {}\numask = '0027'\nenvironment_files = [{}, '-/opt/none/env']\n[environment]\nC = 'service'\n[limits]\nnice = 5",
        quoted(&app.root),
        quoted(&svd.path("site.env")),
    );
    svd.service("site", &script(&text.replace("%({x}i)s", "'%({x}i)s'"), &more));
    svd.start();
    svd.wait_state("site", "running");
    let one = fs::canonicalize(app.root.join("releases/one")).expect("a real path");
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let wanted = format!(
        "pwd {0} {0} umask 0027 nice 5 1 {1} {2} a=1 b=two words c=service {{a}} %({{x}}i)s",
        one.display(),
        app.root.display(),
        host.trim()
    );
    let said = wait_for("its words", PATIENCE, || {
        svd.output("site").lines().find(|l| l.starts_with("pwd ")).map(str::to_owned)
    });
    assert_eq!(said, wanted);
    app.switch("two");
    kill(Pid::from_raw(svd.main_pid("site")), Signal::SIGKILL).expect("killing the worker");
    wait_until("a replacement", PATIENCE, || lines(&svd, "site", "pwd ") == 2);
    assert!(
        svd.output("site").lines().filter(|l| l.starts_with("pwd ")).all(|l| l == wanted),
        "{}",
        svd.output("site")
    );
    svd.ok(&["reload", "site"]);
    wait_until("the second release", PATIENCE, || svd.output("site").contains("releases/two"));
    assert_eq!(svd.status("site")["release"], "two");
}

#[test]
fn services_run_as_their_user() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    svd.service("who", &script(&format!("echo who $(id -u) $(id -g) $USER; {SLEEP}"), "user = 'nobody'"));
    svd.service("stdout", &script(&format!("echo again >/dev/stdout; {SLEEP}"), "user = 'nobody'"));
    svd.start();
    wait_until("it says who it is", PATIENCE, || lines(&svd, "who", "who 65534 65534 nobody") == 1);
    wait_until("its stdout can be opened again", PATIENCE, || lines(&svd, "stdout", "again") == 1);
    svd.wait_state("who", "running");
    let status = fs::read_to_string(format!("/proc/{}/status", svd.main_pid("who"))).unwrap_or_default();
    let groups = status.lines().find_map(|l| l.strip_prefix("Groups:")).unwrap_or_default().trim().to_owned();
    assert!(!groups.split(' ').any(|g| g == "0"), "root's groups are gone: {groups:?}");
}

#[test]
fn sockets_reach_their_service() {
    let mut svd = Svd::new();
    let port = support::free_port();
    let path = svd.path("front.sock");
    let text = "echo fds $LISTEN_FDS $LISTEN_FDNAMES own=$([ $LISTEN_PID = $$ ] && echo yes) {fd} {fd.front} \
                $(readlink /proc/$$/fd/{fd} | cut -c1-6) $(readlink /proc/$$/fd/{fd.front} | cut -c1-6); exec sleep 100000";
    let more = format!(
        "[sockets.http]\nlisten = '127.0.0.1:{port}'\n[sockets.front]\nlisten = 'unix:{}'\nmode = '0620'\n{}",
        path.display(),
        if is_root() { "owner = 'nobody'\n" } else { "" }
    );
    svd.service("net", &script(text, &more));
    svd.start();
    svd.wait_state("net", "running");
    let said = svd.output("net");
    assert!(said.contains("fds 2 http:front own=yes 3 4 socket socket"), "{said}");
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(&path).expect("the socket");
    assert_eq!(meta.mode() & 0o777, 0o620);
    if is_root() {
        assert_eq!(meta.uid(), NOBODY);
    }
    // Bound through the service's death, gone with its stop.
    kill(Pid::from_raw(svd.main_pid("net")), Signal::SIGKILL).expect("killing the worker");
    std::net::TcpStream::connect(("127.0.0.1", port)).expect("svd holds the socket");
    svd.wait_state("net", "running");
    svd.ok(&["stop", "net"]);
    std::net::TcpStream::connect(("127.0.0.1", port)).expect_err("a stopped service listens to nobody");
    assert!(!path.exists(), "its UNIX socket is gone");
}

#[test]
fn three_hundred_services_start_and_stop_together() {
    let _alone = alone();
    let mut svd = Svd::new();
    for n in 0..300 {
        let more = "autostart = false\n[restart]\nsettled = '50ms'";
        svd.service(&format!("s{n:03}"), &format!("kind = 'command'\ncommand = ['/bin/sleep', '100000']\n{more}"));
    }
    svd.start();
    let timed = |what: &str, args: &[&str]| {
        let begun = Instant::now();
        let output = svd.svctl(args);
        println!("{what}: {:?}", begun.elapsed());
        (output, begun.elapsed())
    };
    let (started, took) = timed("300 services started", &["start", "*"]);
    assert!(started.status.success(), "{}", both(&started));
    assert!(took < Duration::from_secs(15), "{took:?}");
    let (_, took) = timed("status of 300 services", &["status"]);
    assert!(took < Duration::from_secs(2), "{took:?}");
    let list = svd.json(&["status"]);
    let running = |s: &&Value| s["state"] == "running";
    assert_eq!(list["services"].as_array().map(|all| all.iter().filter(running).count()), Some(300));
    let (stopped, took) = timed("300 services stopped", &["stop", "*"]);
    assert!(stopped.status.success(), "{}", both(&stopped));
    assert!(took < Duration::from_secs(10), "{took:?}");
}
