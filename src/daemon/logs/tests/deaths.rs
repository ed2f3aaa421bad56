//! A log thread that dies before any of its steps, or in the middle of one, and another that goes on.

use super::*;
use crate::daemon::logs::inflight::Fuse;
use crate::sys::fifo;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Directories, and pipes that hold what the log thread does not.
struct World {
    dir: tempfile::TempDir,
    logs: Logs,
    pipes: Vec<File>,
}

impl World {
    fn new(logs: &Logs, writers: u32) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pipes")).unwrap();
        let both = |w: u32| {
            let path = dir.path().join(format!("pipes/{w}"));
            fifo::create(&path, None).unwrap();
            File::from(fifo::open_both(&path).unwrap())
        };
        let pipes = (0..writers).map(both).collect();
        World { dir, logs: logs.clone(), pipes }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// One svd, which dies: when `fuse` says so (true), or else when it has nothing to do any more.
    fn die(&self, fuse: (u32, bool), adopted: bool) -> bool {
        let Some((thread, fuse, _events)) = self.start(Some(fuse), adopted) else { return true };
        let blown = || fuse.blown.load(Ordering::SeqCst);
        // What it leaves is less than a line. Where the first pipe had its turn before the second one was there, that one
        // waits for the end of the line that the first has begun, and must not wait in vain.
        let late = Instant::now() + Duration::from_millis(200);
        let idle = || Instant::now() > late || self.pipes.iter().all(|pipe| fifo::waiting(pipe).unwrap() < 80);
        assert!(until(|| blown() || idle()));
        let mut answer = thread.handle().status(NAME.into()).unwrap();
        assert!(until(|| blown() || answer.try_recv().is_ok()));
        let died = blown();
        if !died {
            *fuse.left.lock().unwrap() = Some((0, false));
        }
        thread.shutdown();
        died
    }

    /// One svd, which takes all that there is and ends.
    fn live(&self) {
        let (thread, _, events) = self.start(None, true).unwrap();
        thread.shutdown();
        let drained = events.try_iter().filter(|e| matches!(e, LogEvent::Drained { .. })).count();
        assert_eq!(drained, self.pipes.len());
    }

    /// `None`: it has died before it had a thread.
    fn start(&self, fuse: Option<(u32, bool)>, adopted: bool) -> Option<(LogThread, Arc<Fuse>, Receiver<LogEvent>)> {
        let in_flight = InFlight::open(&self.path("in-flight"), &self.path("pipes")).unwrap();
        let held = in_flight.fuse.clone();
        *held.left.lock().unwrap() = fuse;
        let (tx, events) = channel();
        let notify: Notify = Box::new(move |e| drop(tx.send(e)));
        let in_flight = Some(in_flight);
        let options = Options { log_dir: self.path("log"), notify, lower_priority: None, in_flight };
        let start = || LogThread::start(options);
        let thread = std::panic::catch_unwind(std::panic::AssertUnwindSafe(start)).ok()?.unwrap();
        let handle = thread.handle();
        handle.configure(NAME.into(), self.logs.clone()).unwrap();
        let begins = Begins { adopted, ..begins(1, None, SystemTime::now()) };
        handle.begin_generation(NAME.into(), begins).unwrap();
        for w in 0..self.pipes.len() as u32 {
            let reader = fifo::open_reader(&self.path(&format!("pipes/{w}"))).unwrap();
            let origin = Attach { service: NAME.into(), generation: 1, worker: w, stream: Stream::Joined, adopted };
            handle.attach(origin, reader.into()).unwrap();
        }
        Some((thread, held, events))
    }

    fn whole(&self) -> String {
        let dir = self.path("log").join(NAME);
        String::from_utf8(read_all(LogReader::open(&dir, Stream::Joined, Start::Beginning).unwrap())).unwrap()
    }
}

fn line(writer: u32, n: u32) -> String {
    let pad: String = ('a'..='z').cycle().take((n * 37 % 60) as usize).collect();
    format!("w{writer} {n} {pad}.\n")
}

fn message(format: LogFormat, line: &str, path: &Path) -> String {
    match format {
        LogFormat::Raw => line.to_owned(),
        LogFormat::Timestamps => {
            let (time, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{}: torn: {line:?}", path.display()));
            assert!(humantime::parse_rfc3339(time).is_ok(), "torn: {line:?}");
            rest.to_owned()
        }
        LogFormat::Json => {
            let value: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("torn: {e}: {line:?}"));
            assert!(value["partial"].is_null(), "torn: {line:?}");
            if value["event"] == "generation" { "-- mark".into() } else { value["message"].as_str().unwrap().into() }
        }
    }
}

fn check(world: &World, count: u32, what: &str) {
    let whole = world.whole();
    let mut next: BTreeMap<u32, u32> = (0..world.pipes.len() as u32).map(|w| (w, 0)).collect();
    let mut marks = 0;
    for text in whole.lines() {
        let text = message(world.logs.format, text, world.dir.path());
        if text.starts_with("-- ") {
            marks += 1;
            continue;
        }
        let mut words = text.split(' ');
        let writer: u32 = words.next().and_then(|w| w.strip_prefix('w')?.parse().ok()).unwrap_or(u32::MAX);
        let Some(n) = next.get_mut(&writer) else { panic!("{what}: torn: {text:?} in\n{whole}") };
        assert_eq!(text, line(writer, *n).trim_end(), "{what}: lost, doubled or torn in\n{whole}");
        *n += 1;
    }
    assert!(next.values().all(|n| *n == count), "{what}: {next:?} of {count} in\n{whole}");
    assert_eq!(marks, 1, "{what}: marks in\n{whole}");
}

/// Dies at every step that there is, and the next one at the steps of its recovery as well.
fn every_death(format: LogFormat, max_size: u64, writers: u32) {
    const LINES: u32 = 6;
    let limits = Logs { format, max_size, keep: 1000, ..logs() };
    for partly in [false, true] {
        for step in 0.. {
            let mut deaths = 0;
            for again in [None, Some(0), Some(1), Some(2), Some(3), Some(5)] {
                let world = World::new(&limits, writers);
                let mut later = Vec::new();
                for w in 0..writers {
                    let all: String = (0..LINES).map(|n| line(w, n)).collect();
                    let (now, rest) = all.split_at(all.len() * 2 / 3 - w as usize);
                    (&world.pipes[w as usize]).write_all(now.as_bytes()).unwrap();
                    later.push(rest.to_owned());
                }
                let what = format!("{format:?}, {max_size}, {writers}, {step}, {partly}, {again:?}");
                deaths += u32::from(world.die((step, partly), false));
                if deaths == 0 {
                    break;
                }
                for (pipe, rest) in world.pipes.iter().zip(&later) {
                    let mut pipe = pipe;
                    pipe.write_all(rest.as_bytes()).unwrap();
                }
                if let Some(again) = again {
                    world.die((again, partly), true);
                }
                world.live();
                check(&world, LINES, &what);
            }
            if deaths == 0 {
                assert!(step > 3, "{step} steps only");
                break;
            }
        }
    }
}

#[test]
fn bytes_as_they_are() {
    every_death(LogFormat::Raw, 0, 1);
    every_death(LogFormat::Raw, 100, 1);
}

#[test]
fn bytes_of_two_as_they_are() {
    every_death(LogFormat::Raw, 0, 2);
    every_death(LogFormat::Raw, 100, 2);
}

#[test]
fn lines_with_times() {
    every_death(LogFormat::Timestamps, 0, 1);
    every_death(LogFormat::Timestamps, 150, 2);
}

#[test]
fn lines_in_json() {
    every_death(LogFormat::Json, 0, 1);
    every_death(LogFormat::Json, 300, 2);
}
