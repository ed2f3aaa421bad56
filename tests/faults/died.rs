//! What must be there again after deaths that come together with other misfortunes.

use super::disk::SmallDisk;
use super::support::plain::{SLEEP, alive, needs_root, python, script};
use super::support::steady::Steady;
use super::support::{PATIENCE, Svd, free_port, wait_for, wait_until};
use super::world::{kill, send};
use nix::sys::signal::Signal;
use std::fs;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// On a full disk the last page of the state file has some room left.
#[track_caller]
fn until_nothing_is_written(svd: &Svd) {
    wait_until("the state file cannot be written", PATIENCE, || {
        svd.ok(&["restart", "filler"]);
        svd.said().contains("cannot write")
    });
}

/// svd becomes the guardian by executing itself: not before what it knows is written down.
#[test]
fn a_dead_guardian_and_a_full_disk_lose_nothing() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let Some(disk) = SmallDisk::mount(svd.path("run")) else { return };
    let steady = Steady::service(&svd);
    svd.service("other", &script(SLEEP, ""));
    svd.service("filler", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("other", "running");
    disk.fill();
    until_nothing_is_written(&svd);
    svd.ok(&["stop", "other"]);
    let (guardian, own) = (svd.guardian(), svd.pid());
    svd.kill_guardian();
    let told = || svd.said().contains("the guardian was killed");
    wait_until("svd has noticed", PATIENCE, told);
    for _ in 0..3 {
        steady.replaced();
        assert_eq!(svd.state("other"), "stopped");
    }
    assert!(alive(own), "svd goes on by itself");
    assert_eq!(fs::read_to_string(svd.path("run/svd.pid")).expect("pid file").trim(), guardian.to_string());
    disk.empty();
    svd.follow(guardian);
    steady.replaced();
    assert_eq!(svd.state("other"), "stopped", "what was told to be done stays done");
    svd.stop();
}

#[test]
fn a_killed_svd_comes_back_on_a_full_disk() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let Some(disk) = SmallDisk::mount(svd.path("run")) else { return };
    let steady = Steady::service(&svd);
    svd.service("changed", &script(SLEEP, ""));
    svd.service("same", &script(SLEEP, ""));
    svd.service("filler", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("changed", "running");
    svd.wait_state("same", "running");
    let same = svd.main_pid("same");
    disk.fill();
    until_nothing_is_written(&svd);
    // The file does not say that it runs: the guardian knows.
    svd.ok(&["restart", "changed"]);
    let changed = svd.main_pid("changed");
    kill(svd.pid());
    wait_until("svd is back", PATIENCE, || svd.svctl(&["status", "same"]).status.success());
    assert_eq!(svd.main_pid("same"), same, "what had not changed goes on");
    assert_eq!((svd.state("changed").as_str(), svd.main_pid("changed")), ("running", changed), "and what had");
    steady.replaced();
    disk.empty();
    svd.ok(&["stop", "same"]);
    svd.stop();
}

/// The one who looks after it dies on the way back, again and again.
#[test]
fn how_a_worker_ended_is_known_to_the_svd_that_stays() {
    let mut svd = Svd::new();
    let (go, starts) = (svd.path("go"), svd.path("starts"));
    let text = format!(
        "echo x >>{starts}; until test -e {go}; do sleep 0.01; done; exit 0",
        starts = starts.display(),
        go = go.display()
    );
    svd.service("once", &script(&text, "[restart]\npolicy = 'on-failure'"));
    svd.start();
    svd.wait_state("once", "running");
    let (worker, mut own) = (svd.main_pid("once"), svd.pid());
    svd.freeze_guardian();
    kill(own);
    fs::write(&go, "").expect("writing a file");
    wait_until("the worker has ended", PATIENCE, || !alive(worker));
    send(svd.guardian(), Signal::SIGCONT);
    let below = || airdock::sys::process::all_pids().into_iter().find(|pid| is_below(*pid, svd.guardian()));
    for n in 0..6 {
        own = wait_for("another svd", PATIENCE, || below().filter(|pid| *pid != own));
        // Not to be seen from outside: how far it has come.
        let until = Instant::now() + Duration::from_millis(3 * n);
        while Instant::now() < until {
            std::thread::yield_now();
        }
        kill(own);
    }
    wait_until("svd is back", PATIENCE, || svd.svctl(&["status", "once"]).status.code() == Some(3));
    svd.wait_state("once", "exited");
    assert_eq!(fs::read_to_string(&starts).expect("starts"), "x\n", "it ended well, and is not started again");
    svd.stop();
}

fn is_below(pid: i32, guardian: i32) -> bool {
    airdock::sys::process::ProcStat::read(pid)
        .is_some_and(|s| s.parent == guardian && s.comm == "svd" && s.state != 'Z')
}

#[test]
fn sockets_that_went_with_everybody_are_bound_anew() {
    let mut svd = Svd::new();
    let port = free_port();
    let program = "
import os, socket
listener = socket.socket(fileno=int(os.environ['LISTEN_FDS']) + 2)
while True:
    listener.accept()[0].close()
";
    let more = format!("[sockets.main]\nlisten = '127.0.0.1:{port}'\n[restart]\nsettled = '0ms'");
    svd.service("web", &python(program, &more));
    svd.start();
    svd.wait_state("web", "running");
    let worker = svd.main_pid("web");
    svd.kill_both();
    kill(worker);
    wait_until("the worker has ended", PATIENCE, || !alive(worker));
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "nobody has the socket any more");
    svd.start();
    wait_until("it listens again", PATIENCE, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    svd.wait_state("web", "running");
    assert!(svd.said().contains("bound anew"), "{}", svd.said());
    svd.stop();
}

/// A page of numbers is no reason to leave services alone.
#[test]
fn who_takes_the_public_address_meanwhile_does_not_keep_svd_from_its_services() {
    let mut svd = Svd::new();
    svd.service("web", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("web", "running");
    let worker = svd.main_pid("web");
    svd.kill_both();
    let taken = std::net::TcpListener::bind(svd.public).expect("the address, which nobody has");
    svd.start();
    assert_eq!((svd.main_pid("web"), &*svd.state("web")), (worker, "running"));
    let events = svd.ok(&["events"]);
    assert!(events.contains("[http] listen in svd.toml") && events.contains("tried again every 5 s"), "{events}");
    drop(taken);
    wait_until("it listens there again", PATIENCE, || TcpStream::connect(svd.public).is_ok());
    assert_eq!(svd.health("web").0, 200);
    svd.stop();
}
