//! The load: clients on threads of their own, each with one request at a time. Plain HTTP/1.1 over `std::net`, so that
//! what is measured is the service and not a client library with retries of its own.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// In words, as the constants below have it.
pub const DESCRIPTION: &str = "4 clients with new connections, 4 with kept-alive ones, 1 with slow requests";
const NEW: usize = 4;
const KEPT: usize = 4;

/// Between two requests of a client: a load, not a contest for the processor.
const PAUSE: Duration = Duration::from_millis(5);
/// No answer after that long is a failure.
const PATIENCE: Duration = Duration::from_secs(10);
/// Reasons that are kept.
const ERRORS: usize = 5;

/// What the clients have seen so far.
#[derive(Clone, Default)]
pub struct Counts {
    pub requests: u64,
    pub failed: u64,
    /// Kept-alive connections that were closed before any byte of an answer; the request was sent anew (RFC 9110, 9.2.2).
    pub closed: u64,
    /// Answers by what the body says.
    pub releases: BTreeMap<String, u64>,
    pub longest_gap: Duration,
    pub slowest: Duration,
    pub errors: Vec<String>,
    last: Option<Instant>,
    /// The clients leave one after the other, which makes gaps of its own.
    over: bool,
}

impl Counts {
    /// For people, while it goes on.
    pub fn line(&self) -> String {
        let mut text = format!("{} requests, {} failed", self.requests, self.failed);
        for (release, count) in &self.releases {
            text.push_str(&format!(", release {release}: {count}"));
        }
        text
    }

    fn answered(&mut self, began: Instant, result: io::Result<String>) {
        let now = Instant::now();
        self.requests += 1;
        match result {
            Ok(release) => {
                *self.releases.entry(release).or_default() += 1;
                let gap = self.last.map_or(Duration::ZERO, |last| now - last);
                if !self.over {
                    self.longest_gap = self.longest_gap.max(gap);
                }
                self.last = Some(now);
                self.slowest = self.slowest.max(now - began);
            }
            Err(error) => {
                self.failed += 1;
                if self.errors.len() < ERRORS {
                    self.errors.push(error.to_string());
                }
            }
        }
    }
}

/// The clients; they end when this is dropped.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    address: SocketAddr,
    stop: AtomicBool,
    counts: Mutex<Counts>,
}

impl Shared {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    pub fn start(address: SocketAddr) -> Load {
        let shared = Arc::new(Shared { address, stop: AtomicBool::new(false), counts: Mutex::default() });
        let clients = [(NEW, "/", false), (KEPT, "/", true), (1, "/slow", false)];
        let mut threads = Vec::new();
        for (count, path, kept) in clients {
            for _ in 0..count {
                let client = Client { shared: Arc::clone(&shared), path, kept, connection: None };
                threads.push(std::thread::spawn(move || client.run()));
            }
        }
        Load { shared, threads }
    }

    pub fn counts(&self) -> Counts {
        self.shared.counts().clone()
    }

    /// Lets the requests in flight finish.
    pub fn finish(mut self) -> Counts {
        self.stop();
        self.counts()
    }

    fn stop(&mut self) {
        self.shared.counts().over = true;
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A client that panicked has counted nothing wrong.
            let _ = thread.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Client {
    shared: Arc<Shared>,
    path: &'static str,
    kept: bool,
    connection: Option<BufReader<TcpStream>>,
}

/// What came of one attempt.
enum Attempt {
    Done(io::Result<String>),
    /// A connection that had served before was closed before the answer began.
    Closed,
}

impl Client {
    fn run(mut self) {
        while !self.shared.stop.load(Ordering::Relaxed) {
            let began = Instant::now();
            let result = match self.attempt() {
                Attempt::Done(result) => result,
                Attempt::Closed => {
                    self.shared.counts().closed += 1;
                    match self.attempt() {
                        Attempt::Done(result) => result,
                        Attempt::Closed => Err(io::Error::other("closed before an answer, twice")),
                    }
                }
            };
            self.shared.counts().answered(began, result);
            std::thread::sleep(PAUSE);
        }
    }

    fn attempt(&mut self) -> Attempt {
        let used = self.connection.is_some();
        let connection = match self.connection.take() {
            Some(connection) => Ok(connection),
            None => connect(self.shared.address),
        };
        let mut connection = match connection {
            Ok(connection) => connection,
            Err(error) => return Attempt::Done(Err(context("connecting", &error))),
        };
        match exchange(&mut connection, self.path, self.kept) {
            Ok(answer) => {
                if self.kept && !answer.close {
                    self.connection = Some(connection);
                }
                Attempt::Done(answer.release())
            }
            Err((false, error)) if used && error.kind() != io::ErrorKind::WouldBlock => Attempt::Closed,
            Err((_, error)) => Attempt::Done(Err(context("waiting for an answer", &error))),
        }
    }
}

fn context(doing: &str, error: &io::Error) -> io::Error {
    io::Error::other(format!("{doing}: {error}"))
}

fn connect(address: SocketAddr) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

#[derive(Debug)]
struct Answer {
    status: u16,
    close: bool,
    body: Vec<u8>,
}

impl Answer {
    /// `release N` of a good answer.
    fn release(&self) -> io::Result<String> {
        let text = String::from_utf8_lossy(&self.body);
        let first = text.lines().next().unwrap_or_default();
        match first.strip_prefix("release ") {
            Some(name) if self.status == 200 => Ok(name.to_owned()),
            _ => Err(io::Error::other(format!("status {}: {first}", self.status))),
        }
    }
}

/// One request and its answer. The error says whether any byte of an answer had come.
fn exchange(connection: &mut BufReader<TcpStream>, path: &str, kept: bool) -> Result<Answer, (bool, io::Error)> {
    let wish = if kept { "keep-alive" } else { "close" };
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: {wish}\r\n\r\n");
    connection.get_mut().write_all(request.as_bytes()).map_err(|e| (false, e))?;
    let mut line = String::new();
    let begun = |line: &str| !line.is_empty();
    match connection.read_line(&mut line) {
        Ok(0) => return Err((false, io::ErrorKind::UnexpectedEof.into())),
        Ok(_) => {}
        Err(error) => return Err((begun(&line), error)),
    }
    read_rest(connection, &line).map_err(|e| (true, e))
}

fn read_rest(connection: &mut impl BufRead, status_line: &str) -> io::Result<Answer> {
    let odd = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| odd("no status line"))?;
    let (mut length, mut close) = (None, !status_line.starts_with("HTTP/1.1"));
    loop {
        let mut line = String::new();
        if connection.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.parse::<usize>().ok().filter(|&n| n <= 1 << 20);
        } else if name.eq_ignore_ascii_case("connection") {
            close |= value.eq_ignore_ascii_case("close");
        }
    }
    let mut body = vec![0; length.ok_or_else(|| odd("an answer without a length"))?];
    connection.read_exact(&mut body)?;
    Ok(Answer { status, close, body })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> io::Result<Answer> {
        let (status, rest) = text.split_once("\r\n").unwrap();
        read_rest(&mut BufReader::new(rest.as_bytes()), status)
    }

    #[test]
    fn only_a_whole_good_answer_counts() {
        let good = answer("HTTP/1.1 200 OK\r\nContent-Length: 10\r\nConnection: close\r\n\r\nrelease 2\n").unwrap();
        assert!(good.close);
        assert_eq!(good.release().unwrap(), "2");
        let bad = answer("HTTP/1.1 500 Oh\r\ncontent-length: 10\r\n\r\nrelease 2\n").unwrap();
        assert!(!bad.close);
        assert!(bad.release().is_err());
        assert!(answer("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nreleas").is_err());
        assert!(answer("HTTP/1.1 200 OK\r\nContent-Le").is_err());
    }

    #[test]
    fn a_server_that_closes_is_a_failure_on_a_new_connection() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let load = Load::start(listener.local_addr().unwrap());
        for _ in 0..20 {
            drop(listener.accept().unwrap());
        }
        drop(listener);
        let counts = load.finish();
        assert!(counts.failed >= 20, "{} failed", counts.failed);
        assert_eq!((counts.requests, counts.closed), (counts.failed, 0));
        assert_eq!(counts.errors.len(), ERRORS);
    }
}
