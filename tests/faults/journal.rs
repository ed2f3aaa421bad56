//! The audit journal names an outcome for whatever was begun: an update by a signal, and what the machine's end interrupts.

use super::count;
use super::support::plain::{needs_root, script};
use super::support::{PATIENCE, Svd, alone, wait_for, wait_until};
use super::world::{World, kill, locked};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The records of the audit journal.
pub fn records(svd: &Svd) -> Vec<Value> {
    let text = std::fs::read_to_string(svd.path("state/audit.log")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// Waits until the journal has an outcome for what it has said to begin since, if it has said that.
#[track_caller]
fn ended(svd: &Svd, verb: &str, before: usize) -> Vec<Value> {
    wait_for("the journal tells the outcome", PATIENCE, || {
        let mut lines = records(svd).split_off(before);
        lines.retain(|line| line["verb"] == *verb);
        lines.last().is_none_or(|last| last["outcome"] != "begun").then_some(lines)
    })
}

#[test]
fn an_update_by_a_signal_is_in_the_journal() {
    let mut svd = Svd::new();
    svd.service("one", &script("exec sleep 100000", ""));
    svd.start();
    svd.service("two", &script("exec sleep 100000", ""));
    svd.signal(Signal::SIGHUP);
    svd.wait_state("two", "running");
    let lines = ended(&svd, "update", 0);
    let outcomes: Vec<&Value> = lines.iter().map(|line| &line["outcome"]).collect();
    assert_eq!(outcomes, ["begun", "done"], "{lines:#?}");
    assert!(lines.iter().all(|l| l["detail"] == "SIGHUP" && l["id"] == lines[0]["id"]), "{lines:#?}");
    // One that changes nothing, for its mistakes.
    svd.service("two", "kind = 'nothing'\n");
    svd.signal(Signal::SIGHUP);
    let lines = wait_for("its outcome", PATIENCE, || Some(ended(&svd, "update", 2)).filter(|lines| lines.len() == 2));
    assert_eq!(lines[1]["outcome"], "bad_configuration", "{lines:#?}");
    assert_ne!(lines[1]["id"], outcomes_id(&svd), "numbers count up");
    svd.stop();
    let last = records(&svd).pop().expect("a record");
    assert_eq!((&last["verb"], &last["detail"]), (&"shutdown".into(), &"SIGTERM".into()), "{last:#}");
}

/// The number of the first record.
fn outcomes_id(svd: &Svd) -> Value {
    records(svd)[0]["id"].clone()
}

/// Nobody would ask again: what svd has heard is done by the next one.
#[test]
fn an_update_by_a_signal_is_done_after_a_death() {
    let mut world = World::start(None);
    let (mut heard, mut told) = (0, 0);
    for n in 0..count(10, 60) {
        let (old, new) = (format!("extra-{n}"), format!("extra-{}", n + 1));
        if n > 0 {
            world.svd.remove_service(&old);
        }
        world.svd.service(&new, &locked(&world.svd, &new, "exec sleep 100000", ""));
        let before = records(&world.svd).len();
        let svd = world.svd.pid();
        world.svd.signal(Signal::SIGHUP);
        // The moment is the point.
        std::thread::sleep(Duration::from_millis(60).mul_f64(world.random.f64()));
        kill(svd);
        wait_for("svd answers", PATIENCE, || world.status("pair"));
        let there = |name: &str| world.status(name).is_some_and(|s| s["state"].is_string());
        // What svd had not read is lost with it, and was not begun.
        let lines = wait_for("it is done, or was never begun", PATIENCE, || {
            let lines = ended(&world.svd, "update", before);
            (!lines.is_empty() || !there(&new)).then_some(lines)
        });
        let Some(last) = lines.last() else {
            world.svd.ok(&["update"]);
            continue;
        };
        assert_eq!(last["outcome"], "done", "{lines:#?}");
        assert!(lines.iter().all(|l| l["id"] == last["id"]), "one order, one number: {lines:#?}");
        world.svd.wait_state(&new, "running");
        wait_until("the removed one is gone", PATIENCE, || !there(&old));
        let tells = world.svd.ok(&["events"]).contains("update, ordered by SIGHUP before svd was killed");
        assert_eq!(tells, last["outlived_svd"] == true, "{last:#}");
        heard += 1;
        told += usize::from(tells);
        world.nothing_left(&old);
        world.check();
    }
    println!("update by SIGHUP: {heard} heard, {told} of them outlived svd");
}

/// Asks for it, and kills svd at the first sign that it is done.
fn killed_when_done(svd: &Svd, path: &str) {
    let pid = svd.pid();
    let mut stream = UnixStream::connect(svd.socket()).expect("svd listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
    write!(stream, "POST {path} HTTP/1.1\r\nHost: svd\r\nContent-Length: 0\r\n\r\n").expect("sent");
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&answer).contains("\"result\"") {
        let count = stream.read(&mut buffer).expect("an answer");
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..count]);
    }
    kill(pid);
    assert!(String::from_utf8_lossy(&answer).contains("\"ok\":true"), "{}", String::from_utf8_lossy(&answer));
}

/// Lets the thread of svd that writes the journal run only where nobody else wants to (`sched(7)`, SCHED_IDLE).
fn hold_back_the_journal(svd: &Svd) {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", svd.pid())).expect("svd runs").flatten();
    let is_its =
        |task: &std::path::Path| std::fs::read_to_string(task.join("comm")).is_ok_and(|n| n.trim() == "svd-audit");
    let thread = tasks.map(|task| task.path()).find(|task| is_its(task)).expect("the thread of the journal");
    let mut chrt = Command::new("chrt");
    chrt.args(["--idle", "--pid", "0"]).arg(thread.file_name().expect("its number"));
    assert!(chrt.status().expect("chrt").success());
}

/// Keeps all processors busy for as long as it lives.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Busy {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Busy(stop)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The journal is written by a thread of its own, which dies with svd.
#[test]
fn what_was_answered_is_in_the_journal() {
    let _alone = alone();
    let world = World::start(None);
    let mut outlived = 0;
    let deaths = count(8, 100);
    for n in 0..deaths {
        let (verb, state) = [("stop", "stopped"), ("start", "running")][n % 2];
        let before = records(&world.svd).len();
        hold_back_the_journal(&world.svd);
        let busy = Busy::start();
        killed_when_done(&world.svd, &format!("/v1/services/toggle/{verb}"));
        drop(busy);
        wait_for("svd answers", PATIENCE, || world.status("toggle"));
        world.svd.wait_state("toggle", state);
        let lines = wait_for("its outcome", PATIENCE, || {
            Some(ended(&world.svd, verb, before)).filter(|lines| !lines.is_empty())
        });
        let outcomes: Vec<&str> =
            lines.iter().filter_map(|l| l["outcome"].as_str()).filter(|o| *o != "begun").collect();
        assert_eq!(outcomes, ["done"], "once, and the truth: {lines:#?}");
        outlived += usize::from(lines.iter().any(|line| line["outlived_svd"] == true));
    }
    println!("{outlived} of {deaths} answers were not in the journal when svd was killed");
    world.check();
}

#[test]
fn what_a_reboot_has_interrupted_is_said_to_be() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    svd.service("late", &script("exec sleep 100000", "autostart = false\n[ready]\nlog = 'never'\n"));
    svd.start();
    let start = svd.svctl_beside(&["start", "late"]);
    wait_until("it is started", PATIENCE, || svd.status("late")["pid"].is_number());
    svd.kill_both();
    start.finish();
    // An order of which the machine has kept nothing but this, its run directory being in memory.
    let old = r#"{"id":40,"time":"2020-01-01T00:00:00.000Z","uid":0,"user":"alice","pid":7,"verb":"stop","services":["late"],"detail":"","outcome":"begun"}"#;
    let mut journal = std::fs::File::options().append(true).open(svd.path("state/audit.log")).expect("the journal");
    writeln!(journal, "{old}").expect("written");
    svd.start_after_a_reboot();
    let interrupted = "interrupted by a reboot";
    for (verb, user) in [("start", "root"), ("stop", "alice")] {
        let lines = ended(&svd, verb, 0);
        let outcomes: Vec<&Value> = lines.iter().map(|line| &line["outcome"]).collect();
        assert_eq!(outcomes, ["begun", interrupted], "{lines:#?}");
        assert!(lines[1]["user"] == user && lines[1]["outlived_svd"] == true, "{lines:#?}");
        let words = format!("{verb}, ordered by {user} before the machine was started anew: it was interrupted");
        assert!(svd.ok(&["events"]).contains(&words), "{words}");
    }
    assert_eq!(svd.state("late"), "stopped");
    // Once.
    svd.stop();
    svd.start();
    svd.ok(&["disable", "late"]);
    let all = records(&svd);
    assert_eq!(all.iter().filter(|line| line["outcome"] == interrupted).count(), 2, "{all:#?}");
    let disable = all.iter().find(|line| line["verb"] == "disable").expect("a record");
    assert!(disable["id"].as_u64().is_some_and(|id| id > 40), "{disable:#}");
}
