//! The whole thread, with real pipes and files.

mod capture;
mod cost;
mod deaths;
mod full_disk;
mod reading;
mod rotation;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::OFlag;

use super::*;
use crate::config::spec::{LogFormat, Logs, Stderr};

/// A limit for every wait: reached only when something is wrong.
const LIMIT: Duration = Duration::from_secs(30);

const NAME: &str = "airship";

fn logs() -> Logs {
    Logs {
        capture: true,
        stderr: Stderr::Join,
        format: LogFormat::Raw,
        max_size: 0,
        max_age: None,
        keep: 10,
        compress: false,
    }
}

fn begins(generation: u64, release: Option<std::sync::Arc<str>>, at: SystemTime) -> Begins {
    Begins { generation, release, at, adopted: false }
}

struct Rig {
    thread: Option<LogThread>,
    handle: LogHandle,
    events: Receiver<LogEvent>,
    root: PathBuf,
    _dir: Option<tempfile::TempDir>,
    _run: tempfile::TempDir,
}

impl Rig {
    fn new(logs: Logs) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_path_buf();
        let mut rig = Rig::at(root, logs);
        rig._dir = Some(dir);
        rig
    }

    fn at(root: PathBuf, logs: Logs) -> Rig {
        let (tx, events) = channel();
        let run = tempfile::tempdir().unwrap();
        let thread = LogThread::start(Options {
            log_dir: root.clone(),
            notify: Box::new(move |e| {
                let _ = tx.send(e);
            }),
            lower_priority: None,
            in_flight: Some(InFlight::open(&run.path().join("in-flight"), run.path()).unwrap()),
        })
        .unwrap();
        let handle = thread.handle();
        handle.configure(NAME.into(), logs).unwrap();
        Rig { thread: Some(thread), handle, events, root, _dir: None, _run: run }
    }

    fn dir(&self) -> PathBuf {
        self.root.join(NAME)
    }

    fn attach(&self, generation: u64, worker: u32, stream: Stream) -> (PipeId, File) {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        let origin = Attach { service: NAME.into(), generation, worker, stream, adopted: false };
        (self.handle.attach(origin, read).unwrap(), File::from(write))
    }

    /// Waits for an event that satisfies `f`; others are dropped.
    fn event<T>(&self, mut f: impl FnMut(LogEvent) -> Option<T>) -> T {
        let end = Instant::now() + LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left).expect("an event in time");
            if let Some(t) = f(event) {
                return t;
            }
        }
    }

    fn drained(&self, id: PipeId) {
        self.event(|e| (e == LogEvent::Drained { pipe: id }).then_some(()));
    }

    /// After everything that was sent before.
    fn sync(&self) -> LogStatus {
        self.handle.status(NAME.into()).unwrap().blocking_recv().unwrap()
    }

    fn shutdown(&mut self) {
        self.thread.take().unwrap().shutdown();
    }

    fn file(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.dir().join(name)).unwrap_or_default()
    }

    /// Everything in the order of writing, compressed files included.
    fn whole(&self) -> Vec<u8> {
        read_all(LogReader::open(&self.dir(), Stream::Joined, Start::Beginning).unwrap())
    }
}

fn read_all(mut reader: LogReader) -> Vec<u8> {
    let (mut out, mut buf) = (Vec::new(), vec![0u8; 7919]);
    loop {
        match reader.read(&mut buf).unwrap() {
            0 => return out,
            n => out.extend_from_slice(&buf[..n]),
        }
    }
}

/// Waits for a condition that no event tells; true if it came.
fn until(mut f: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        if f() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

fn gunzip(path: &std::path::Path) -> Vec<u8> {
    let mut out = Vec::new();
    flate2::read::MultiGzDecoder::new(File::open(path).unwrap()).read_to_end(&mut out).unwrap();
    out
}
