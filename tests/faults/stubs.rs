//! Where there are no control groups: a stub above each worker, which outlives svd, and is found by the next one.

use super::support::plain::{alive, needs_root, number_in, script};
use super::support::svd::Home;
use super::support::{PATIENCE, wait_for, wait_until};
use super::world::{Death, World, kill};
use std::path::{Path, PathBuf};

/// A worker whose grandchild leaves its session and hears no signal, and which ends with 7 when there is a file `go`.
fn runaway(dir: &Path) -> String {
    let dir = dir.display();
    let grandchild = format!("echo $$ >{dir}/away; trap \"\" TERM HUP; while :; do sleep 1; done");
    let text = format!(
        "rm -f {dir}/go {dir}/away; (setsid sh -c '{grandchild}' &); until test -e {dir}/away; do sleep 0.02; done; \
         echo $$ >{dir}/worker; until test -e {dir}/go; do sleep 0.02; done; exit 7"
    );
    script(&text, "[stop]\ngrace = '300ms'\n[restart]\npolicy = 'never'")
}

/// The worker, and its grandchild, of a service that has just been started.
fn started(world: &World, dir: &Path) -> (i32, i32) {
    let worker = wait_for("the worker", PATIENCE, || number_in(&dir.join("worker")).filter(|pid| alive(*pid)));
    world.svd.wait_state("runaway", "running");
    assert_eq!(world.svd.main_pid("runaway"), worker);
    (worker, number_in(&dir.join("away")).expect("its number"))
}

fn begin(home: Home) -> (World, PathBuf) {
    let world = World::start_at(home, None);
    let dir = world.svd.path("srv/runaway");
    std::fs::create_dir_all(&dir).expect("a directory");
    std::os::unix::fs::chown(&dir, Some(65534), Some(65534)).expect("given away");
    world.svd.service("runaway", &runaway(&dir));
    world.svd.ok(&["update"]);
    (world, dir)
}

#[test]
fn what_was_taken_over_is_stopped_to_the_last_process() {
    if needs_root() {
        return;
    }
    for (home, death) in [
        (Home::PlainUser, Death::Svd),
        (Home::PlainUser, Death::Guardian),
        (Home::PlainUser, Death::Both),
        (Home::Container, Death::Both),
    ] {
        let (mut world, dir) = begin(home);
        let (worker, away) = started(&world, &dir);
        // Twice: what was adopted is handed on as well.
        world.die(death);
        world.die(death);
        wait_for("svd answers", PATIENCE, || world.status("runaway"));
        assert_eq!(world.svd.main_pid("runaway"), worker, "{death:?}: the same worker");
        assert!(alive(away), "{death:?}");
        world.svd.ok(&["stop", "runaway"]);
        assert!(!alive(worker) && !alive(away), "{death:?}: stop returned, and {worker} or {away} lives");
        assert_eq!(world.svd.status("runaway")["restarts"], 0);
        let left: Vec<_> = std::fs::read_dir(world.svd.path("run/stubs")).expect("sockets").flatten().collect();
        assert!(left.iter().all(|e| !e.file_name().to_string_lossy().starts_with("runaway")), "{left:?}");
    }
}

#[track_caller]
fn told(world: &World, name: &str, exit: &str) {
    let ended = || world.status(name).filter(|status| status["pid"].is_null());
    let status = wait_for("it has ended", PATIENCE, ended);
    assert!(status["reason"].as_str().is_some_and(|why| why.contains(exit)), "{status:#}");
}

/// Even when nobody is there to hear it: the stub knows, as long as something else of the service lives.
#[test]
fn how_a_worker_ended_is_known_although_svd_and_guardian_were_dead() {
    if needs_root() {
        return;
    }
    let (mut world, dir) = begin(Home::PlainUser);
    let (worker, away) = started(&world, &dir);
    world.svd.kill_both();
    std::fs::write(dir.join("go"), "").expect("a file");
    wait_until("the worker has ended", PATIENCE, || !alive(worker));
    assert!(alive(away));
    world.svd.start();
    told(&world, "runaway", "exited with code 7");
    wait_until("what it has left is gone, too", PATIENCE, || !alive(away));
}

/// The guardian hears it from the stub, which ends as its worker.
#[test]
fn how_a_worker_ended_is_known_although_svd_was_dead() {
    if needs_root() {
        return;
    }
    let world = World::start_at(Home::PlainUser, None);
    let go = world.svd.path("go");
    let text = format!("until test -e {}; do sleep 0.02; done; exit 7", go.display());
    world.svd.service("ends", &script(&text, "[restart]\npolicy = 'never'"));
    world.svd.ok(&["update"]);
    world.svd.wait_state("ends", "running");
    let worker = world.svd.main_pid("ends");
    let svd = world.svd.pid();
    world.svd.freeze_guardian();
    kill(svd);
    std::fs::write(&go, "").expect("a file");
    wait_until("the worker has ended", PATIENCE, || !alive(worker));
    super::world::send(world.svd.guardian(), nix::sys::signal::Signal::SIGCONT);
    told(&world, "ends", "exited with code 7");
}

/// A stub that somebody has killed takes nothing along; and one that cannot be reached any more is no reason to start twice.
#[test]
fn lost_stubs_lead_to_no_second_worker() {
    if needs_root() {
        return;
    }
    let mut world = World::start_at(Home::PlainUser, None);
    let pid = world.svd.main_pid("toggle");
    let stub = airdock::sys::process::ProcStat::read(pid).expect("it runs").parent;
    world.svd.kill_both();
    kill(stub);
    world.svd.start();
    wait_for("svd answers", PATIENCE, || world.status("toggle"));
    assert_eq!(world.svd.main_pid("toggle"), pid, "it goes on");
    assert!(world.svd.said().contains("nothing keeps its processes together"), "{}", world.svd.said());
    world.svd.kill_both();
    for entry in std::fs::read_dir(world.svd.path("run/stubs")).expect("sockets").flatten() {
        std::fs::remove_file(entry.path()).expect("removed");
    }
    world.svd.start();
    wait_for("svd answers", PATIENCE, || world.status("pair").filter(|status| status["state"] == "running"));
    assert!(world.svd.said().contains("pair: a worker cannot be taken over, and is ended"), "{}", world.svd.said());
    world.check();
    world.svd.ok(&["stop", "toggle"]);
    world.nothing_left("toggle");
}
