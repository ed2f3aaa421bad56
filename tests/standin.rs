//! An svd that a service manager starts while another one runs stands in for it.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use airdock::sys::process::{ProcStat, all_pids};
use nix::sys::signal::Signal;
use std::collections::VecDeque;
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use support::svd::Svd;
use support::{PATIENCE, wait_for, wait_until};

/// As systemd is to svd: starts it, hears it, and sends it signals.
struct Manager {
    socket: UnixDatagram,
    heard: VecDeque<String>,
    main: Option<Child>,
}

impl Manager {
    /// `svd`: whose directories it is given.
    fn start(svd: &Svd) -> Manager {
        let path = svd.path("manager");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("an option");
        let log = fs::File::options().create(true).append(true).open(svd.path("svd.stderr")).expect("a log");
        let mut command: Command = svd.command();
        let main = command.env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).stderr(log).spawn().expect("svd");
        Manager { socket, heard: VecDeque::new(), main: Some(main) }
    }

    fn pid(&self) -> i32 {
        self.main.as_ref().expect("it runs").id().cast_signed()
    }

    fn ended(&mut self) -> Option<i32> {
        let status = self.main.as_mut()?.try_wait().expect("our child")?;
        self.main = None;
        Some(status.code().unwrap_or(-1))
    }

    /// Waits until it says this; what it said before is passed over.
    #[track_caller]
    fn hears(&mut self, words: &str) {
        wait_for(&format!("svd says {words}"), PATIENCE, || {
            let mut buffer = [0; 4096];
            if let Ok(length) = self.socket.recv(&mut buffer) {
                self.heard.push_back(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
            self.heard.pop_front().filter(|text| text.contains(words))
        });
    }

    fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    #[track_caller]
    fn ends(&mut self) -> i32 {
        wait_for("the stand-in ends", PATIENCE, || self.ended())
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(mut main) = self.main.take() {
            main.kill().and_then(|()| main.wait()).expect("its end");
        }
    }
}

/// One whose identity is certain: our child, or one below it that was just looked up.
fn send(pid: i32, signal: Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("a signal");
}

/// A running svd with one service.
fn running() -> (Svd, i32) {
    let mut svd = Svd::new();
    svd.service("web", "kind = \"command\"\ncommand = [\"sh\", \"-c\", \"while :; do echo up; sleep 0.1; done\"]\n");
    svd.start();
    svd.wait_state("web", "running");
    let worker = svd.main_pid("web");
    (svd, worker)
}

/// The number that others know svd by.
fn known(svd: &Svd) -> Option<i32> {
    fs::read_to_string(svd.path("run/svd.pid")).ok()?.trim().parse().ok()
}

fn child_of(pid: i32) -> Option<i32> {
    let of_it = |stat: &ProcStat| stat.parent == pid && stat.comm == "svd" && stat.state != 'Z';
    all_pids().into_iter().filter_map(ProcStat::read).find(of_it).map(|stat| stat.pid)
}

fn gone(pid: i32) {
    wait_until("the worker has ended", PATIENCE, || ProcStat::read(pid).is_none_or(|s| s.state == 'Z'));
}

#[test]
fn it_says_that_svd_is_up_and_passes_a_stop_on() {
    let (mut svd, worker) = running();
    let mut manager = Manager::start(&svd);
    manager.hears("READY=1\nSTATUS=Stands in");
    assert_eq!(svd.main_pid("web"), worker, "nothing has changed");
    assert_ne!(known(&svd), Some(manager.pid()));
    let began = Instant::now();
    manager.signal(Signal::SIGTERM);
    manager.hears("STOPPING=1");
    assert_eq!(manager.ends(), 0);
    assert!(svd.wait_end().success(), "it was stopped, {:?} after the signal", began.elapsed());
    gone(worker);
    assert_eq!(fs::read_to_string(svd.path("run/svd.pid")).expect("the file"), "");
}

#[test]
fn it_ends_when_svd_is_shut_down() {
    let (mut svd, worker) = running();
    let mut manager = Manager::start(&svd);
    manager.hears("READY=1");
    svd.ok(&["shutdown"]);
    assert!(svd.wait_end().success());
    assert_eq!(manager.ends(), 0, "nobody wants an svd any more");
    gone(worker);
}

#[test]
fn signals_reach_svd() {
    let (svd, _) = running();
    let mut manager = Manager::start(&svd);
    manager.hears("READY=1");
    // What USR2 asks for: logs are opened by their names again.
    let log = svd.path("log/web/output.log");
    wait_until("the log is there", PATIENCE, || log.exists());
    fs::rename(&log, svd.path("log/web/away")).expect("renamed");
    manager.signal(Signal::SIGUSR2);
    wait_until("the log is opened again", PATIENCE, || log.exists());
    drop(manager);
    assert_eq!(svd.state("web"), "running", "its own death means nothing");
}

#[test]
fn after_the_death_of_the_guardian() {
    let (mut svd, worker) = running();
    svd.leaves_processes = true;
    let in_group = fs::read_to_string(format!("/proc/{worker}/cgroup")).is_ok_and(|text| text.contains("/airdock."));
    let (first, old) = (svd.guardian(), svd.pid());
    send(first, Signal::SIGKILL);
    assert!(!svd.wait_end().success());
    // At once: svd is about to take the guardian's place.
    let mut manager = Manager::start(&svd);
    manager.hears("READY=1\nSTATUS=Stands in");
    assert_eq!(known(&svd), Some(old), "svd has become the guardian");
    assert_eq!(svd.main_pid("web"), worker);

    // That one's death as well: there is another.
    send(old, Signal::SIGKILL);
    manager.hears("READY=1\nSTATUS=Stands in");
    let third = known(&svd).expect("a pid");
    assert_ne!(third, old);
    assert_eq!(svd.main_pid("web"), worker);
    assert_eq!(manager.ended(), None);

    // Both: the stand-in is svd from now on.
    let next = wait_for("an svd", PATIENCE, || child_of(third));
    send(third, Signal::SIGSTOP);
    send(next, Signal::SIGKILL);
    send(third, Signal::SIGKILL);
    manager.hears("READY=1");
    assert_eq!(known(&svd), Some(manager.pid()));
    let now = svd.main_pid("web");
    assert_eq!(now == worker, in_group, "taken over, where control groups say whose it is");
    manager.signal(Signal::SIGTERM);
    assert_eq!(manager.ends(), 0);
    gone(worker);
    gone(now);
    assert!(svd.belongings.living(&svd.path("")).is_empty());
}

#[test]
fn who_has_no_manager_is_told_that_svd_runs() {
    let (svd, _) = running();
    let output = support::run_limited(svd.command(), PATIENCE);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("only one svd can use this run directory"), "{said}");
}
