//! Clients of the control socket that begin and never end, and such as do not read.

use super::count;
use super::support::plain::script;
use super::support::steady::Steady;
use super::support::{PATIENCE, Svd, alone, wait_for, wait_until};
use std::io::Write;
use std::os::unix::net::UnixStream;
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
