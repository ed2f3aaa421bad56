//! `svctl upgrade`: svd executes another program in its own place, and nothing else changes.

#![expect(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use airdock::sys::process::ProcStat;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use support::{PATIENCE, Svd, free_port, wait_until};

const COUNTS: &str = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.001; done";

fn service(script: &str) -> String {
    format!("kind = \"command\"\ncommand = [\"/bin/sh\", \"-c\", {script:?}]\n")
}

/// A copy of svd that this test may replace.
fn copy(svd: &Svd, name: &str) -> PathBuf {
    let path = svd.path(name);
    fs::copy(env!("CARGO_BIN_EXE_svd"), &path).expect("a copy of svd");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
    path
}

fn start_time(pid: i32) -> u64 {
    ProcStat::read(pid).expect("it runs").start_time
}

#[test]
fn ten_upgrades_in_a_row_change_neither_pids_nor_counts_nor_output() {
    let mut svd = Svd::new();
    svd.service("counts", &service(COUNTS));
    svd.service("sleeps", "kind = \"command\"\ncommand = [\"/bin/sleep\", \"100000\"]\ninstances = 2\n");
    svd.service("stopped", "kind = \"command\"\ncommand = [\"/bin/sleep\", \"100000\"]\n");
    svd.start();
    svd.wait_state("counts", "running");
    svd.wait_state("sleeps", "running");
    svd.ok(&["stop", "stopped"]);
    svd.ok(&["drain", "sleeps"]);
    let (own, counts, sleeps) = (svd.pid(), svd.main_pid("counts"), svd.main_pid("sleeps"));
    let began = start_time(own);
    let other = copy(&svd, "svd-other");
    for n in 0..10 {
        let said = if n % 2 == 0 {
            svd.ok(&["upgrade", "--binary", &other.to_string_lossy()])
        } else {
            svd.ok(&["upgrade", "--binary", env!("CARGO_BIN_EXE_svd")])
        };
        assert!(said.contains("runs"), "{said}");
    }
    let exe = fs::read_link(format!("/proc/{own}/exe")).expect("its program");
    assert_eq!(exe, PathBuf::from(env!("CARGO_BIN_EXE_svd")).canonicalize().expect("svd"));
    assert_eq!((svd.pid(), start_time(own)), (own, began), "the same process");
    assert_eq!((svd.main_pid("counts"), svd.main_pid("sleeps")), (counts, sleeps));
    assert_eq!(svd.status("counts")["restarts"], 0);
    assert_eq!(svd.status("stopped")["state"], "stopped");
    assert_eq!(svd.health("sleeps").0, 503, "it is drained still");
    svd.ok(&["stop", "counts"]);
    let output = svd.output("counts");
    let lines = output.lines().filter(|line| !line.starts_with("--"));
    for (n, line) in (1..).zip(lines) {
        assert_eq!(line, format!("line {n}"), "nothing is lost or doubled");
    }
}

#[test]
fn what_cannot_take_over_changes_nothing() {
    let mut svd = Svd::new();
    svd.service("sleeps", "kind = \"command\"\ncommand = [\"/bin/sleep\", \"100000\"]\n");
    svd.start();
    svd.wait_state("sleeps", "running");
    let (own, sleeps) = (svd.pid(), svd.main_pid("sleeps"));
    let image = svd.json(&["version"])["svd"]["image"].clone();
    let refused = |binary: &str, why: &str| {
        let said = both(&svd.svctl(&["upgrade", "--binary", binary]));
        assert!(said.contains(why), "{binary}: {said}");
        assert_eq!(svd.json(&["version"])["svd"]["image"], image, "{binary}");
    };
    refused("svd", "absolute");
    refused("/no/such/file", "No such file");
    refused("/bin/false", "exited with 1");
    let open = copy(&svd, "open");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).expect("a mode");
    refused(&open.to_string_lossy(), "written to by others");
    let dir = svd.path("dir");
    fs::create_dir(&dir).expect("a directory");
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("a mode");
    let inside = copy(&svd, "dir/svd");
    refused(&inside.to_string_lossy(), "written to by others");
    assert_eq!((svd.pid(), svd.main_pid("sleeps")), (own, sleeps));
}

#[test]
fn a_program_that_cannot_be_executed_leaves_the_old_version_in_charge() {
    let mut svd = Svd::new();
    svd.service("sleeps", "kind = \"command\"\ncommand = [\"/bin/sleep\", \"100000\"]\n");
    svd.start();
    svd.wait_state("sleeps", "running");
    let sleeps = svd.main_pid("sleeps");
    // It passes its trial, and ends at once when it is in earnest.
    for (name, text) in [("script", "#!/bin/sh\nexit 0\n"), ("odd", "#!/no/such/interpreter\n")] {
        let path = svd.path(name);
        fs::write(&path, text).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a program");
        let said = both(&svd.svctl(&["upgrade", "--binary", &path.to_string_lossy()]));
        assert!(!said.contains("runs ("), "{said}");
    }
    wait_until("svd is in charge", PATIENCE, || svd.svctl(&["status", "sleeps"]).status.success());
    assert_eq!(svd.main_pid("sleeps"), sleeps);
    svd.ok(&["restart", "sleeps"]);
}

fn both(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn the_next_svd_takes_up_another_public_address() {
    let mut svd = Svd::new();
    svd.service("sleeps", "kind = \"command\"\ncommand = [\"/bin/sleep\", \"100000\"]\n");
    svd.start();
    svd.wait_state("sleeps", "running");
    let worker = svd.main_pid("sleeps");
    let (old, binary) = (svd.public, copy(&svd, "next"));
    svd.public = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    svd.config("");
    let note = svd.ok(&["update"]);
    assert!(note.contains("`svctl upgrade`"), "{note}");
    assert!(TcpStream::connect(svd.public).is_err(), "not yet");
    svd.ok(&["upgrade", "--binary", binary.to_str().expect("a path")]);
    let moved = |svd: &Svd| TcpStream::connect(svd.public).is_ok() && TcpStream::connect(old).is_err();
    wait_until("the new address answers, and the old one nobody", PATIENCE, || moved(&svd));
    assert_eq!((svd.health("sleeps").0, svd.main_pid("sleeps")), (200, worker));
    // One that includes it: the guardian has a copy of the old socket.
    let port = svd.public.port();
    svd.public = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    svd.config("");
    svd.ok(&["update"]);
    let everywhere = || TcpStream::connect((Ipv4Addr::new(127, 0, 0, 2), port)).is_ok();
    assert!(!everywhere(), "not yet");
    svd.ok(&["upgrade", "--binary", binary.to_str().expect("a path")]);
    wait_until("it listens on all addresses", PATIENCE, everywhere);
    assert!(!svd.said().contains("cannot listen"), "{}", svd.said());
    std::fs::write(svd.path("etc/svd.toml"), "").expect("no public address at all");
    svd.ok(&["update"]);
    svd.ok(&["upgrade", "--binary", binary.to_str().expect("a path")]);
    wait_until("nobody listens there any more", PATIENCE, || TcpStream::connect(svd.public).is_err());
    svd.stop();
}
