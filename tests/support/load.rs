//! A load on one HTTP address in plain threads, which names the outcome of every request.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// On a connection of its own.
    New,
    /// On a connection that has been used before.
    Kept,
    /// A slow one, on a connection of its own.
    Slow,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// 200, by the release of that name.
    Ok(String),
    Refused,
    Reset,
    /// There is no way to the host.
    Unreachable,
    /// Closed in the midst of an answer, or before one on a new connection.
    Eof,
    Timeout,
    Status(u16),
    Malformed,
}

#[derive(Clone, Debug)]
pub struct Record {
    pub kind: Kind,
    pub begun: Instant,
    pub ended: Instant,
    pub outcome: Outcome,
    /// The connection had been used before and was closed before any byte of an answer; this is what its one
    /// repetition on a new connection came to (RFC 9110, section 9.2.2).
    pub stale: bool,
}

/// A load while it runs.
pub struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Vec<Record>>>,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub address: SocketAddr,
    /// Threads that make a connection for each request, and that keep theirs.
    pub new: usize,
    pub kept: usize,
    /// Threads that ask for `/slow`, and how long each answer takes.
    pub slow: (usize, Duration),
    /// Between the requests of a thread, so that the client does not take the machine from the servers.
    pub pause: Duration,
    pub timeout: Duration,
}

impl Plan {
    pub fn new(address: SocketAddr) -> Plan {
        let pause = Duration::from_millis(3);
        let timeout = Duration::from_secs(20);
        Plan { address, new: 3, kept: 3, slow: (0, Duration::ZERO), pause, timeout }
    }

    pub fn slow(mut self, threads: usize, each: Duration) -> Plan {
        self.slow = (threads, each);
        self
    }

    pub fn start(self) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let good = Arc::new(AtomicU64::new(0));
        let kinds = [(Kind::New, self.new), (Kind::Kept, self.kept), (Kind::Slow, self.slow.0)];
        let all = kinds.into_iter().flat_map(|(kind, n)| std::iter::repeat_n(kind, n));
        let threads = all
            .map(|kind| {
                let (plan, stop, good) = (self.clone(), Arc::clone(&stop), Arc::clone(&good));
                std::thread::spawn(move || client(kind, &plan, &stop, &good))
            })
            .collect();
        Load { stop, good, threads }
    }
}

impl Load {
    /// Three threads with new connections, three that keep theirs.
    pub fn start(address: SocketAddr) -> Load {
        Plan::new(address).start()
    }

    /// Good answers until now.
    pub fn good(&self) -> u64 {
        self.good.load(Ordering::Relaxed)
    }

    /// Waits until so many more good answers have come.
    #[track_caller]
    pub fn more(&self, count: u64) {
        let wanted = self.good() + count;
        super::wait_until("the load gets good answers", super::PATIENCE, || self.good() >= wanted);
    }

    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut records: Vec<Record> =
            self.threads.into_iter().flat_map(|t| t.join().expect("a client of the load")).collect();
        records.sort_by_key(|r| r.begun);
        Report { records }
    }
}

fn client(kind: Kind, plan: &Plan, stop: &AtomicBool, good: &AtomicU64) -> Vec<Record> {
    let mut records = Vec::new();
    let mut connection = None;
    let path = match kind {
        Kind::Slow => format!("/slow?seconds={}", plan.slow.1.as_secs_f64()),
        _ => "/".to_owned(),
    };
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let used_before = connection.is_some();
        let keep = kind == Kind::Kept;
        let mut answer = request(&mut connection, plan, &path, keep);
        let mut stale = false;
        if used_before && matches!(answer, Err(Failed { outcome: Outcome::Eof | Outcome::Reset, bytes: 0 })) {
            stale = true;
            connection = None;
            answer = request(&mut connection, plan, &path, keep);
        }
        let outcome = match answer {
            Ok(outcome) => outcome,
            Err(failed) => {
                connection = None;
                failed.outcome
            }
        };
        if matches!(outcome, Outcome::Ok(_)) {
            good.fetch_add(1, Ordering::Relaxed);
        }
        let kind = if used_before || kind != Kind::Kept { kind } else { Kind::New };
        records.push(Record { kind, begun, ended: Instant::now(), outcome, stale });
        std::thread::sleep(plan.pause);
    }
    records
}

struct Failed {
    outcome: Outcome,
    /// Of the answer.
    bytes: usize,
}

fn failed(e: &std::io::Error, bytes: usize) -> Failed {
    let outcome = match e.kind() {
        ErrorKind::ConnectionRefused => Outcome::Refused,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Outcome::Timeout,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Outcome::Unreachable,
        ErrorKind::UnexpectedEof => Outcome::Eof,
        _ => Outcome::Reset,
    };
    Failed { outcome, bytes }
}

fn request(connection: &mut Option<TcpStream>, plan: &Plan, path: &str, keep: bool) -> Result<Outcome, Failed> {
    let mut stream = match connection.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect_timeout(&plan.address, plan.timeout).map_err(|e| failed(&e, 0))?;
            stream.set_read_timeout(Some(plan.timeout)).map_err(|e| failed(&e, 0))?;
            stream.set_nodelay(true).map_err(|e| failed(&e, 0))?;
            stream
        }
    };
    let close = if keep { "" } else { "Connection: close\r\n" };
    let text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{close}\r\n");
    stream.write_all(text.as_bytes()).map_err(|e| failed(&e, 0))?;
    let mut answer = Vec::new();
    let (status, reusable, body) = read_answer(&mut stream, &mut answer).map_err(|e| failed(&e, answer.len()))?;
    if keep && reusable {
        *connection = Some(stream);
    }
    Ok(match status {
        None => Outcome::Malformed,
        Some(200) => {
            let release = body.split_once("release=").and_then(|(_, rest)| rest.split_whitespace().next());
            release.map_or(Outcome::Malformed, |r| Outcome::Ok(r.to_owned()))
        }
        Some(other) => Outcome::Status(other),
    })
}

/// Status, whether the connection may be used again, and the body.
fn read_answer(stream: &mut TcpStream, answer: &mut Vec<u8>) -> std::io::Result<(Option<u16>, bool, String)> {
    let mut buffer = [0_u8; 4096];
    let mut more = |answer: &mut Vec<u8>| {
        let n = stream.read(&mut buffer)?;
        answer.extend_from_slice(&buffer[..n]);
        Ok::<usize, std::io::Error>(n)
    };
    let head_end = loop {
        if let Some(at) = answer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if more(answer)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&answer[..head_end]).to_ascii_lowercase();
    let field = |name: &str| head.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let length: Option<usize> = field("content-length").and_then(|l| l.parse().ok());
    let closes = field("connection") == Some("close") || head.starts_with("http/1.0");
    loop {
        match length {
            Some(length) if answer.len() >= head_end + length => break,
            _ => {}
        }
        if more(answer)? == 0 {
            if length.is_some() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            break;
        }
    }
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let body = String::from_utf8_lossy(&answer[head_end..]).into_owned();
    Ok((status, length.is_some() && !closes, body))
}

/// What came of a load; records are in the order in which the requests began.
#[derive(Clone, Debug)]
pub struct Report {
    pub records: Vec<Record>,
}

impl Report {
    pub fn count(&self, kind: Kind) -> usize {
        self.records.iter().filter(|r| r.kind == kind).count()
    }

    /// Everything but a good answer.
    pub fn failures(&self) -> Vec<&Record> {
        self.records.iter().filter(|r| !matches!(r.outcome, Outcome::Ok(_))).collect()
    }

    /// Kept connections that were closed before any byte of an answer.
    pub fn stale(&self) -> usize {
        self.records.iter().filter(|r| r.stale).count()
    }

    /// Good answers by release.
    pub fn releases(&self) -> BTreeMap<String, usize> {
        let mut releases = BTreeMap::new();
        for record in &self.records {
            if let Outcome::Ok(release) = &record.outcome {
                *releases.entry(release.clone()).or_default() += 1;
            }
        }
        releases
    }

    /// The part whose requests began in that time.
    pub fn between(&self, from: Instant, until: Instant) -> Report {
        Report { records: self.records.iter().filter(|r| r.begun >= from && r.begun < until).cloned().collect() }
    }

    /// When the first request began.
    pub fn begun(&self) -> Instant {
        self.records.iter().map(|r| r.begun).min().unwrap_or_else(Instant::now)
    }

    /// Longest time between two good answers, slow ones left out.
    pub fn longest_gap(&self) -> Duration {
        let good = |r: &&Record| r.kind != Kind::Slow && matches!(r.outcome, Outcome::Ok(_));
        let mut ends: Vec<Instant> = self.records.iter().filter(good).map(|r| r.ended).collect();
        ends.sort();
        ends.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default()
    }

    /// Time from `since` to the begin of the last request that met another release than `new`; zero if there was none.
    pub fn everywhere(&self, new: &str, since: Instant, until: Instant) -> Duration {
        let other = |r: &&Record| matches!(&r.outcome, Outcome::Ok(release) if release != new);
        let late = self.records.iter().filter(|r| r.begun >= since && r.begun < until).filter(other);
        late.map(|r| r.begun - since).max().unwrap_or_default()
    }

    /// The duration that so much of all good answers (0 to 1) stay within; slow ones left out.
    pub fn latency(&self, part: f64) -> Duration {
        let good = |r: &&Record| r.kind != Kind::Slow && matches!(r.outcome, Outcome::Ok(_));
        let mut all: Vec<Duration> = self.records.iter().filter(good).map(|r| r.ended - r.begun).collect();
        all.sort();
        let at = ((all.len() as f64 * part) as usize).min(all.len().saturating_sub(1));
        all.get(at).copied().unwrap_or_default()
    }

    /// One line for people: `1234 new, 567 kept, 8 slow; 0 failed, 2 stale; gap 12ms; …`.
    pub fn summary(&self) -> String {
        let mut failures: BTreeMap<(Kind, &Outcome), usize> = BTreeMap::new();
        for record in self.failures() {
            *failures.entry((record.kind, &record.outcome)).or_default() += 1;
        }
        format!(
            "{} new, {} kept, {} slow; {} failed {failures:?}, {} stale; longest gap {:.0?}, median {:.1?}, 99% {:.1?}",
            self.count(Kind::New),
            self.count(Kind::Kept),
            self.count(Kind::Slow),
            self.failures().len(),
            self.stale(),
            self.longest_gap(),
            self.latency(0.5),
            self.latency(0.99),
        )
    }

    #[track_caller]
    pub fn assert_no_failure(&self) {
        assert!(!self.records.is_empty(), "the load made no request");
        assert!(self.failures().is_empty(), "{}\nfirst: {:?}", self.summary(), self.failures()[0]);
    }
}
