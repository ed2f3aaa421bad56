//! What the tests of the real svd share: an svd of their own in a temporary directory, prepared servers, a load.
//!
//! Nothing here waits a fixed time: [`wait_until`] looks again until a limit has passed, and says what was waited for.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "forbidden in the core alone")]

pub mod app;
pub mod deployer;
pub mod env;
pub mod leftovers;
pub mod load;
pub mod plain;
pub mod pty;
pub mod steady;
pub mod svd;

pub use app::{App, Release};
pub use env::Env;
pub use load::{Kind, Load, Outcome, Report};
pub use svd::Svd;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest time that anything may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Tests that load the machine, or measure it, run one after another.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks until `found` gives something; panics with `what` after `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut found: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < end, "waited {limit:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut is: impl FnMut() -> bool) {
    wait_for(what, limit, || is().then_some(()));
}

/// A port that nobody listens on. Below the range that outgoing connections take theirs from, so that a load does not
/// snatch it before it is bound.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 10_000 + (std::process::id() % 200) as u16 * 100;
    for _ in 0..20_000 {
        let port = 10_000 + (first - 10_000 + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free on 127.0.0.1");
}

/// One GET on a connection of its own: status and body.
pub fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((status, body.to_owned()))
}

/// Runs a command to its end; kills it and panics when that takes longer than `limit`.
#[track_caller]
pub fn run_limited(mut command: Command, limit: Duration) -> Output {
    let text = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    finish(child.unwrap_or_else(|e| panic!("cannot run {text}: {e}")), &text, limit)
}

/// Waits for the end of a child whose stdout and stderr are pipes.
#[track_caller]
pub fn finish(mut child: Child, what: &str, limit: Duration) -> Output {
    fn collect(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<Vec<u8>> {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.map(|mut p| p.read_to_end(&mut bytes));
            bytes
        })
    }
    let (out, err) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            break status;
        }
        if Instant::now() >= end {
            let _ = child.kill();
            let _ = child.wait();
            let said = String::from_utf8_lossy(&err.join().unwrap_or_default()).into_owned();
            panic!("{what} did not end within {limit:?}; it had said:\n{said}");
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: out.join().unwrap_or_default(), stderr: err.join().unwrap_or_default() }
}
