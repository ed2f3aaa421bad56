//! Clients of the control socket that begin and never end, and such as do not read.

use super::count;
use super::support::plain::script;
use super::support::steady::Steady;
use super::support::{PATIENCE, Svd, alone, wait_for, wait_until};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Without waiting for a place in svd's queue.
fn connect(svd: &Svd) -> Option<UnixStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
    use std::os::fd::AsRawFd;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("a socket");
    connect(fd.as_raw_fd(), &UnixAddr::new(&svd.socket()).expect("a path")).ok()?;
    Some(UnixStream::from(fd))
}

#[test]
fn hundreds_that_hang_in_a_request_keep_nobody_else_out_for_long() {
    let _alone = alone();
    airdock::sys::spawn::OpenFiles::raise().expect("descriptors");
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    svd.start();
    let calm = steady.median(5);
    let wanted = count(500, 5_000);
    let mut hanging = Vec::new();
    let begun = Instant::now();
    while hanging.len() < wanted && begun.elapsed() < PATIENCE {
        match connect(&svd) {
            Some(mut stream) => {
                // svd may have cut it already: that is its right.
                let _ = stream.write_all(b"POST /v1/services/steady/restart HTTP/1.1\r\nHost: svd\r\nContent-Le");
                hanging.push(stream);
            }
            // The queue is full: svd takes from it.
            None => std::thread::yield_now(),
        }
    }
    let stormy = steady.median(5);
    let asked = Instant::now();
    svd.ok(&["status", "steady"]);
    let answered = asked.elapsed();
    println!("{} hang: replaced within {stormy:.1?} ({calm:.1?} before), status within {answered:.1?}", hanging.len());
    assert!(hanging.len() >= wanted / 2, "{} connections only", hanging.len());
    assert!(stormy < calm * 5 + Duration::from_millis(150), "{calm:?} before, {stormy:?} with them");
    assert!(answered < Duration::from_secs(15), "status took {answered:?}");
}

#[test]
fn followers_that_stop_reading_are_let_go() {
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    let loud = "while :; do echo 0123456789012345678901234567890123456789012345678901234567890123456789; done";
    svd.service("loud", &script(loud, "[logs]\nmax_size = '4MiB'\nkeep = 2"));
    svd.start();
    svd.wait_state("loud", "running");
    let streams: Vec<UnixStream> = (0..20)
        .map(|_| {
            let mut stream = wait_for("a connection", PATIENCE, || connect(&svd));
            stream.write_all(b"GET /v1/services/loud/logs?follow=true HTTP/1.1\r\nHost: svd\r\n\r\n").expect("sent");
            stream
        })
        .collect();
    let written = || std::fs::metadata(svd.path("log/loud/output.log")).map_or(0, |m| m.len());
    let mut last = written();
    for _ in 0..10 {
        wait_until("the log of the loud one goes on", PATIENCE, || written() != last);
        last = written();
        assert!(steady.replaced() < Duration::from_secs(2));
    }
    svd.ok(&["logs", "loud", "-n", "5"]);
    drop(streams);
    svd.ok(&["stop", "loud"]);
}

/// svctl itself, stopped (as by Ctrl-Z, or a terminal that hangs).
struct Stopped(std::process::Child);

impl Stopped {
    fn run(svd: &Svd, args: &[&str]) -> Stopped {
        let mut command = svd.svctl_command(args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
        Stopped(child.expect("starting svctl"))
    }

    fn stop(&self) {
        let pid = self.0.id().cast_signed();
        super::world::send(pid, nix::sys::signal::Signal::SIGSTOP);
        let stopped = || airdock::sys::process::ProcStat::read(pid).is_some_and(|stat| stat.state == 'T');
        wait_until("svctl is stopped", PATIENCE, stopped);
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_svctl_that_is_stopped_and_who_never_reads_health_cost_svd_no_memory() {
    let _alone = alone();
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    let loud = "while :; do echo 0123456789012345678901234567890123456789012345678901234567890123456789; done";
    svd.service("loud", &script(loud, "[logs]\nmax_size = '4MiB'\nkeep = 2"));
    let often = "[restart]\ndelay = '1ms'\nmax_delay = '1ms'\nlimit = { failures = 10000, within = '1s' }";
    svd.service("crash", &script("exit 1", often));
    svd.start();
    svd.wait_state("loud", "running");
    let calm = steady.median(7);
    let before = super::noisy::resident(svd.pid());
    let verbs: [&[&str]; 4] =
        [&["logs", "-f", "loud"], &["events", "-f"], &["status", "--watch"], &["--json", "status", "--watch"]];
    let running: Vec<Stopped> = verbs.iter().cycle().take(16).map(|args| Stopped::run(&svd, args)).collect();
    let connected = || std::fs::read_dir(format!("/proc/{}/fd", svd.pid())).map_or(0, Iterator::count);
    wait_until("they are connected", PATIENCE, || connected() > 25);
    running.iter().for_each(Stopped::stop);
    let mut deaf = Vec::new();
    for _ in 0..50 {
        let mut stream = std::net::TcpStream::connect(svd.public).expect("svd's public address");
        stream.set_write_timeout(Some(Duration::from_millis(1))).expect("a limit");
        let request = b"GET /metrics HTTP/1.1\r\nHost: svd\r\n\r\n".repeat(100);
        // Until nobody takes any more.
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end && stream.write(&request).is_ok() {}
        deaf.push(stream);
    }
    let restarts = |svd: &Svd| svd.status("crash")["restarts"].as_u64().unwrap_or_default();
    let (wanted, mut worst) = (restarts(&svd) + count(300, 5_000) as u64, Duration::ZERO);
    wait_until("much has happened that they should be told", PATIENCE * 10, || {
        worst = worst.max(steady.replaced());
        restarts(&svd) > wanted
    });
    let after = super::noisy::resident(svd.pid());
    let stormy = steady.median(7);
    println!(
        "replaced within {calm:.1?} before, {stormy:.1?} ({worst:.1?} at most) with them; {before} bytes, then {after}"
    );
    assert!(after < before + (24 << 20), "svd had {before} bytes, and has {after}");
    assert!(stormy < calm * 5 + Duration::from_millis(150), "{calm:?} before, {stormy:?} with them");
    assert_eq!(svd.health("steady").0, 200, "others are answered");
    svd.ok(&["logs", "loud", "-n", "5"]);
    svd.ok(&["stop", "loud", "crash"]);
}
