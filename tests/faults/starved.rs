//! What svd lives on runs out: room on its disks, descriptors, processes.

use super::disk::{Disk, SmallDisk};
use super::support::plain::{SLEEP, needs_root, script};
use super::support::steady::Steady;
use super::support::{PATIENCE, Svd, wait_until};
use super::world::kill;
use std::fs;
use std::process::Command;
use std::time::Duration;

/// All that must work however badly svd is off: a dead worker is replaced, and svctl is answered.
#[track_caller]
pub fn works(svd: &Svd, steady: &Steady, when: &str) {
    let within = steady.replaced();
    assert!(within < Duration::from_secs(3), "{when}: replaced only after {within:?}");
    assert!(svd.svctl(&["status"]).status.code().is_some_and(|code| code == 0 || code == 3), "{when}: no status");
    svd.wait_state("steady", "running");
}

fn die(svd: &Svd) {
    let old = svd.pid();
    kill(old);
    wait_until("svd is back", PATIENCE, || svd.answers() && svd.pid() != old);
}

fn without_room(directory: &str) {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let Some(disk) = SmallDisk::mount(svd.path(directory)) else { return };
    let steady = Steady::service(&svd);
    svd.service("other", &script(SLEEP, ""));
    svd.service("unchanged", &script(SLEEP, ""));
    svd.service("stopped", &script(SLEEP, ""));
    svd.start();
    works(&svd, &steady, "before");
    disk.fill();
    works(&svd, &steady, "full");
    // Orders are carried out, or refused with a reason.
    for order in ["stop", "start", "disable", "enable"] {
        let output = svd.svctl(&[order, "other"]);
        let said = super::support::svd::both(&output);
        assert!(output.status.success() || said.contains("space"), "{order} on a full disk:\n{said}");
    }
    let pids = ["steady", "other", "unchanged"].map(|name| svd.main_pid(name));
    let held = || assert_eq!(["steady", "other", "unchanged"].map(|name| svd.main_pid(name)), pids, "after a death");
    die(&svd);
    held();
    // I5, whatever the disk is like.
    svd.ok(&["stop", "stopped"]);
    die(&svd);
    held();
    assert_eq!(svd.state("stopped"), "stopped");
    works(&svd, &steady, "full, after a death");
    disk.empty();
    works(&svd, &steady, "with room again");
    svd.ok(&["restart", "other"]);
    // A death now finds what was written since.
    die(&svd);
    works(&svd, &steady, "after a death");
    svd.stop();
}

#[test]
fn no_room_for_state_stops_nothing() {
    without_room("state");
}

#[test]
fn no_room_in_the_run_directory_stops_nothing() {
    without_room("run");
}

#[test]
fn no_room_for_logs_stops_nothing() {
    without_room("log");
}

/// The disk has an error, and the system makes it read-only under svd's hands.
fn read_only(directory: &str) {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let Some(mut disk) = Disk::mount(&svd, svd.path(directory)) else { return };
    let steady = Steady::service(&svd);
    svd.service("loud", &script("while :; do echo a line; sleep 0.01; done", ""));
    svd.service("other", &script(SLEEP, ""));
    svd.start();
    works(&svd, &steady, "before");
    if !disk.break_down() {
        return;
    }
    works(&svd, &steady, "read-only");
    let loud = svd.main_pid("loud");
    for order in ["stop", "start", "disable", "enable", "restart"] {
        let output = svd.svctl(&[order, "other"]);
        let said = super::support::svd::both(&output);
        let told = said.contains("Read-only file system");
        println!("{directory}, {order}: {}", if told { said.trim() } else { "done" });
        assert!(output.status.success() || told, "{order} on a read-only disk:\n{said}");
    }
    let told = || svd.said().contains("Read-only file system");
    wait_until("svd tells of it", PATIENCE, told);
    works(&svd, &steady, "after orders");
    assert_eq!(svd.main_pid("loud"), loud, "it goes on");
    let pids = ["steady", "other", "loud"].map(|name| svd.main_pid(name));
    die(&svd);
    assert_eq!(["steady", "other", "loud"].map(|name| svd.main_pid(name)), pids, "after a death");
    assert_eq!(pids[2], loud);
    works(&svd, &steady, "read-only, after a death");
    if directory == "run" {
        // Nobody could connect to a socket that is not there any more.
        return;
    }
    // Somebody puts another disk in its place.
    disk.take_away();
    works(&svd, &steady, "with another disk");
}

#[test]
fn a_read_only_state_directory_stops_nothing() {
    read_only("state");
}

#[test]
fn a_read_only_run_directory_stops_nothing() {
    read_only("run");
}

#[test]
fn a_read_only_log_directory_stops_nothing() {
    read_only("log");
}

#[test]
fn out_of_descriptors_svd_goes_on_and_says_so() {
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    svd.start();
    works(&svd, &steady, "before");
    let pid = svd.pid();
    let used = fs::read_dir(format!("/proc/{pid}/fd")).expect("svd runs").count();
    let limit = |most: usize| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &pid.to_string(), &format!("--nofile={most}:")]);
        assert!(prlimit.status().expect("prlimit").success());
    };
    limit(used + 30);
    for n in 0..40 {
        svd.service(&format!("more-{n}"), &script(SLEEP, ""));
    }
    let update = svd.svctl_beside(&["update"]);
    let told = || svd.said().contains("Too many open files") || svd.said().contains("descriptors");
    wait_until("svd tells that it has no descriptors left", PATIENCE, told);
    limit(4096);
    update.finish();
    works(&svd, &steady, "with descriptors again");
    let running = || {
        let list = svd.json(&["status"]);
        list["services"].as_array().is_some_and(|all| all.iter().all(|s| s["state"] == "running"))
    };
    wait_until("all of them run", PATIENCE, running);
}
