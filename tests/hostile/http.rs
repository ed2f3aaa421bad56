//! The public HTTP address, which anybody on the network may reach: whatever comes there, workers are replaced as fast as ever,
//! and what svd holds for it has a limit.

use super::SLEEP;
use super::support::plain::script;
use super::support::steady::Steady;
use super::support::{PATIENCE, Svd, alone, http_get, wait_until};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Slower than when it is calm by so much at most, and what the machine's own noise may add.
const RATIO: u32 = 5;
const NOISE: Duration = Duration::from_millis(150);
/// Connections that svd serves and refuses at once, and its own descriptors while its workers are killed one after another.
const DESCRIPTORS: usize = 512 + 64 + 200;
/// For a request to arrive.
const REQUEST: Duration = Duration::from_secs(10);

fn descriptors(svd: &Svd) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", svd.pid())).expect("svd runs").count()
}

/// In bytes (`proc_pid_status(5)`).
fn resident(svd: &Svd) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", svd.pid())).expect("svd runs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Threads that attack until this is dropped.
struct Attack {
    go_on: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
    /// Rounds of all of them.
    rounds: Arc<AtomicU64>,
}

impl Attack {
    /// `round` begins with what the one before has left.
    fn start<T: Default + 'static>(threads: usize, address: SocketAddr, round: fn(SocketAddr, &mut T)) -> Attack {
        let (go_on, rounds) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let threads = (0..threads).map(|_| {
            let (go_on, rounds) = (Arc::clone(&go_on), Arc::clone(&rounds));
            std::thread::spawn(move || {
                let mut state = T::default();
                while go_on.load(Ordering::Relaxed) {
                    round(address, &mut state);
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        Attack { threads: threads.collect(), go_on, rounds }
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        self.go_on.store(false, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A connection that waits for nothing.
fn connect(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_nonblocking(true).ok()?;
    Some(stream)
}

/// Many requests that are sent a byte at a time.
fn slow_clients(address: SocketAddr, streams: &mut Vec<TcpStream>) {
    if streams.len() < 1000 {
        streams.extend(connect(address));
    }
    streams.retain_mut(|stream| match stream.write(b"X") {
        Err(e) => e.kind() == ErrorKind::WouldBlock,
        Ok(_) => true,
    });
    std::thread::sleep(Duration::from_millis(2));
}

/// Headers without an end, as fast as svd takes them.
fn huge_headers(address: SocketAddr, (): &mut ()) {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) else { return };
    let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
    let line = format!("X-Long: {}\r\n", "x".repeat(8000));
    let _ = stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n");
    for _ in 0..1000 {
        if stream.write_all(line.as_bytes()).is_err() {
            return;
        }
    }
    panic!("8 MB of headers were taken");
}

/// Bytes without sense.
fn garbage(address: SocketAddr, random: &mut Option<fastrand::Rng>) {
    let random = random.get_or_insert_with(|| fastrand::Rng::with_seed(7));
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) else { return };
    let _ = stream.set_write_timeout(Some(Duration::from_secs(1)));
    let mut bytes: Vec<u8> = (0..4096).map(|_| random.u8(..)).collect();
    if random.bool() {
        bytes.splice(0..0, *b"GET /metrics HTTP/1.1\r\n");
    }
    let _ = stream.write_all(&bytes);
}

/// Thousands of requests at once, whose answers nobody reads.
fn pipelined(address: SocketAddr, streams: &mut Vec<TcpStream>) {
    streams.extend(connect(address));
    if streams.len() > 64 {
        streams.remove(0);
    }
    let many = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nPOST /%00 HTTP/1.1\r\n\r\n".repeat(100);
    for stream in streams {
        let _ = stream.write(many.as_bytes());
    }
}

/// The costliest thing there is to ask, again and again.
fn questions(address: SocketAddr, stream: &mut Option<TcpStream>) {
    if stream.is_none() {
        *stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok();
        let _ = stream.as_ref().map(|s| s.set_read_timeout(Some(Duration::from_secs(5))));
    }
    let Some(open) = stream else { return };
    let asked = open.write_all("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(16).as_bytes());
    if asked.and_then(|()| open.read(&mut [0; 65_536])).map_or(true, |n| n == 0) {
        *stream = None;
    }
}

/// Kills workers under the attack, and looks at what svd holds.
#[track_caller]
fn endures(svd: &Svd, steady: &Steady, calm: Duration, name: &str, attack: &Attack) {
    wait_until("the attack has begun", PATIENCE, || attack.rounds.load(Ordering::Relaxed) > 20);
    let memory = resident(svd);
    let stormy = steady.median(9);
    let (files, grown) = (descriptors(svd), resident(svd).saturating_sub(memory) >> 20);
    let rounds = attack.rounds.load(Ordering::Relaxed);
    println!(
        "{name}: replaced within {stormy:.1?} ({calm:.1?} when calm); {files} descriptors, {grown} MiB more, {rounds} rounds"
    );
    assert!(stormy <= calm * RATIO + NOISE, "{name}: {calm:?} when calm, {stormy:?} under the attack");
    assert!(files < DESCRIPTORS, "{name}: {files} descriptors");
    assert!(grown < 100, "{name}: {grown} MiB more");
    svd.ok(&["status", "steady"]);
}

fn start() -> (Svd, Steady, Duration) {
    airdock::sys::spawn::OpenFiles::raise().expect("descriptors");
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    for n in 0..20 {
        svd.service(&format!("calm-{n}"), &script(SLEEP, ""));
    }
    svd.start();
    let calm = steady.median(9);
    (svd, steady, calm)
}

#[test]
fn attacks_on_the_public_address_slow_no_restart_down() {
    let _alone = alone();
    let (svd, steady, calm) = start();
    let at = svd.public;
    endures(&svd, &steady, calm, "slow clients", &Attack::start(2, at, slow_clients));
    endures(&svd, &steady, calm, "huge headers", &Attack::start(2, at, huge_headers));
    endures(&svd, &steady, calm, "garbage", &Attack::start(2, at, garbage));
    endures(&svd, &steady, calm, "pipelined", &Attack::start(2, at, pipelined));
    endures(&svd, &steady, calm, "questions", &Attack::start(4, at, questions));
    // Nothing of it stays.
    wait_until("svd answers", PATIENCE, || http_get(at, "/health").is_ok_and(|(status, _)| status == 200));
    let limit = REQUEST + PATIENCE;
    wait_until("the connections are gone", limit, || descriptors(&svd) < 100);
}

#[test]
fn ten_thousand_idle_connections_keep_nobody_out() {
    let _alone = alone();
    let (svd, steady, calm) = start();
    let begun = Instant::now();
    let mut idle = Vec::new();
    while idle.len() < 10_000 && begun.elapsed() < PATIENCE {
        idle.extend(connect(svd.public));
    }
    let stormy = steady.median(9);
    let files = descriptors(&svd);
    let asked = Instant::now();
    let (status, _) = http_get(svd.public, "/health/steady").expect("an answer");
    let answered = asked.elapsed();
    println!(
        "{} connections within {:.1?}: replaced within {stormy:.1?} ({calm:.1?} when calm), an answer within {answered:.1?}, {files} descriptors",
        idle.len(),
        begun.elapsed()
    );
    assert_eq!((idle.len(), status), (10_000, 200));
    assert!(stormy <= calm * RATIO + NOISE, "{calm:?} when calm, {stormy:?} with them");
    assert!(files < DESCRIPTORS, "{files} descriptors");
    assert!(answered < Duration::from_secs(5), "{answered:?}");
}

/// As docs/api.md says.
#[test]
fn a_request_has_ten_seconds_to_arrive() {
    let (svd, ..) = start();
    let begun = Instant::now();
    let text: [&[u8]; 3] = [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"];
    let mut streams = text.map(|text| {
        let mut stream = TcpStream::connect(svd.public).expect("connect");
        stream.set_read_timeout(Some(REQUEST * 3)).expect("a limit");
        stream.write_all(text).expect("sent");
        stream
    });
    for stream in &mut streams {
        let mut answer = Vec::new();
        // Cut without a word, or with an answer before.
        let _ = stream.read_to_end(&mut answer);
        let after = begun.elapsed();
        assert!(after > REQUEST - Duration::from_secs(1) && after < REQUEST * 2, "cut after {after:?}");
    }
}
