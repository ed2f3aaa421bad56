//! Files that nobody answers for: svd and the other services go on.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use nix::sys::signal::Signal;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use support::plain::{SLEEP, needs_root, script};
use support::svd::quoted;
use support::{PATIENCE, Svd, wait_until};

/// More than svd has threads for work on files.
const HUNG: usize = 20;

/// A directory on a server that does not answer: a file system in user space, whose program says nothing. Beneath it is a
/// file `env`, to be seen when the server is given up.
struct DeadServer {
    at: PathBuf,
    _server: File,
}

impl DeadServer {
    fn mount(svd: &Svd) -> Option<DeadServer> {
        if needs_root() {
            return None;
        }
        let at = svd.path("server");
        fs::create_dir(&at).expect("a directory");
        fs::write(at.join("env"), "A=1\n").expect("a file");
        let server = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let mounted = server.ok().filter(|server| {
            nix::fcntl::fcntl(server, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).expect("fcntl");
            let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
            let mut mount = Command::new("mount");
            mount.args(["-i", "-t", "fuse", "-o", &options, "airdock-test"]).arg(&at);
            mount.status().is_ok_and(|status| status.success())
        });
        let Some(server) = mounted else {
            eprintln!("SKIPPED: no file system in user space can be mounted here");
            return None;
        };
        nix::fcntl::fcntl(&server, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC)).expect("fcntl");
        Some(DeadServer { at, _server: server })
    }

    fn file(&self) -> String {
        quoted(&self.at.join("env"))
    }
}

impl Drop for DeadServer {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-i", "-l"]).arg(&self.at).status();
    }
}

#[test]
fn what_hangs_for_some_services_keeps_no_other_from_starting() {
    let mut svd = Svd::new();
    let Some(server) = DeadServer::mount(&svd) else { return };
    let again = "[restart]\nlimit = { failures = 1, within = '1m', then = '200ms' }";
    let hung = script(SLEEP, &format!("environment_files = [{}]\n{again}", server.file()));
    for n in 0..HUNG {
        svd.service(&format!("a-hung-{n}"), &hung);
    }
    svd.service("web", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("web", "running");
    let begun = Instant::now();
    svd.ok(&["disable", "web"]);
    svd.ok(&["enable", "web"]);
    svd.ok(&["restart", "web"]);
    svd.ok(&["update"]);
    svd.ok(&["logs", "web"]);
    svd.ok(&["status", "web"]);
    assert!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    assert_eq!(svd.state("a-hung-0"), "starting");
    assert_eq!(svd.state(&format!("a-hung-{}", HUNG - 1)), "starting");
    // Whoever hangs is told, and tries again, when the server is given up.
    drop(server);
    wait_until("all services run", PATIENCE, || {
        let list = svd.json(&["status"]);
        list["services"].as_array().is_some_and(|rows| rows.iter().all(|row| row["state"] == "running"))
    });
    svd.stop();
}

#[test]
fn an_update_whose_files_hang_stops_nothing_and_is_carried_on_by_the_next_svd() {
    let mut svd = Svd::new();
    let Some(server) = DeadServer::mount(&svd) else { return };
    svd.service("beat", &script(SLEEP, "[reload]\noverlap = false\n"));
    svd.service("web", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("beat", "running");
    svd.wait_state("web", "running");
    let (beat, web) = (svd.main_pid("beat"), svd.main_pid("web"));
    let missing = quoted(&svd.path("missing"));
    let files = format!("environment_files = [{}, {missing}]\n[reload]\noverlap = false\n", server.file());
    svd.service("beat", &script(SLEEP, &files));
    svd.service("web", &script(SLEEP, "umask = '0027'\n"));
    let update = svd.svctl_beside(&["update"]);
    wait_until("the other service is updated", PATIENCE, || {
        svd.state("web") == "running" && svd.main_pid("web") != web
    });
    assert_eq!((svd.state("beat"), svd.main_pid("beat")), ("running".into(), beat));
    let status = || String::from_utf8_lossy(&svd.svctl(&["status", "beat"]).stdout).into_owned();
    assert!(!status().contains("tries it again"), "nothing has failed yet: {}", status());
    let killed = svd.pid();
    svd.belongings.note(killed);
    svd.signal(Signal::SIGKILL);
    assert!(!update.finish().status.success());
    wait_until("the next svd", PATIENCE, || svd.pid() != killed);
    svd.wait_state("beat", "running");
    drop(server);
    let told = "beat warning: is not reloaded: cannot read the environment file";
    wait_until("it was tried, and what came of it is told", PATIENCE, || svd.ok(&["events"]).contains(told));
    assert_eq!(svd.main_pid("beat"), beat, "it was not touched");
    svd.stop();
}

#[test]
fn svd_ends_while_files_hang() {
    let mut svd = Svd::new();
    let Some(server) = DeadServer::mount(&svd) else { return };
    svd.service("hung", &script(SLEEP, &format!("environment_files = [{}]", server.file())));
    svd.start();
    assert_eq!(svd.state("hung"), "starting");
    let begun = Instant::now();
    assert!(svd.stop().success());
    assert!(begun.elapsed() < Duration::from_secs(15), "it took {:?}", begun.elapsed());
}
