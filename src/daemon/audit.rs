//! The audit journal: a JSON line for each change that was asked for, by whom, and what came of it (I9).

use super::paths::{JOURNAL_BYTES, Paths, older};
use super::queue::{Receiver, Sender, queue};
use crate::api::audit::{AuditRecord, AuditSink, Outcome};
use crate::api::request::Verb;
use crate::api::types::{ErrorCode, rfc3339};
use crate::sys::files;
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::{Duration, SystemTime};

/// Records that wait for the disk.
const WAITING: usize = 4096;
const AT_THE_END: Duration = Duration::from_secs(1);

enum Entry {
    Line(String),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// The way to the thread that writes.
pub struct Journal(Sender<Entry>);

/// Starts the thread.
pub fn start(paths: &Paths) -> Journal {
    let path = paths.audit_file();
    let (entries, waiting) = queue::<Entry>(WAITING);
    let thread = std::thread::Builder::new().name("svd-audit".into()).stack_size(128 * 1024);
    if let Err(e) = thread.spawn(move || write_all(&path, &waiting)) {
        tracing::warn!("the audit journal cannot be written: {e}");
    }
    Journal(entries)
}

impl Journal {
    /// Never blocks.
    pub fn sink(&self) -> AuditSink {
        let entries = self.0.clone();
        Arc::new(move |record| send(&entries, record))
    }

    /// At svd's end: waits a moment for the disk.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.0.try_send(Entry::Flush(done)).is_ok() && written.recv_timeout(AT_THE_END).is_err() {
            tracing::warn!("the audit journal's disk hangs: its last records may be lost");
        }
    }
}

fn send(entries: &Sender<Entry>, record: &AuditRecord) {
    let mut line = json!({
        "id": record.id, "time": rfc3339(record.time), "uid": record.uid, "user": record.user, "pid": record.pid,
        "verb": record.verb, "services": record.services, "detail": record.detail,
        "outcome": record.outcome.as_str(),
    });
    if record.outlived {
        line["outlived_svd"] = true.into();
    }
    match entries.try_send(Entry::Line(format!("{line}\n"))) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => tracing::warn!("the audit journal's disk hangs: a record is lost: {line}"),
        Err(TrySendError::Disconnected(_)) => tracing::warn!("not in the audit journal: {line}"),
    }
}

fn write_all(path: &PathBuf, waiting: &Receiver<Entry>) {
    while let Ok(entry) = waiting.recv() {
        let line = match entry {
            Entry::Line(line) => line,
            Entry::Flush(done) => {
                // Whoever asked may have given up.
                let _ = done.try_send(());
                continue;
            }
        };
        if let Err(e) = append(path, &line) {
            tracing::warn!("cannot write {}: {}; not in the journal: {line}", path.display(), crate::sys::io_text(&e));
        }
    }
}

fn append(path: &PathBuf, line: &str) -> std::io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() >= JOURNAL_BYTES) {
        std::fs::rename(path, older(path))?;
    }
    files::append(path, 0o600)?.write_all(line.as_bytes())
}

/// What is looked at of a journal for records that were begun.
const LOOKED_AT: u64 = 256 << 10;

/// A line of the journal, as far as its record may need an end.
#[derive(Deserialize)]
struct Line {
    id: u64,
    uid: u32,
    user: Box<str>,
    pid: i32,
    verb: Verb,
    services: Vec<Box<str>>,
    detail: Box<str>,
    outcome: Box<str>,
}

/// The last lines of the journal; others than svd's own are passed over.
fn last_lines(path: &Path) -> Vec<Line> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = files::open(path, files::Access::Read)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOOKED_AT)))?;
        let mut bytes = Vec::new();
        file.take(LOOKED_AT).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    bytes.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// The number of the last record.
pub fn last_id(paths: &Paths) -> u64 {
    last_lines(&paths.audit_file()).last().map_or(0, |line| line.id)
}

/// Gives the records an end that a killed svd has begun and no state file knows of, but for the known ones: it was killed
/// before it did anything (a signal may have been sent).
pub fn close_others(path: &Path, known: &BTreeSet<u64>, sink: &AuditSink) {
    let mut open: BTreeMap<u64, Line> = BTreeMap::new();
    for line in last_lines(path) {
        if &*line.outcome == "begun" {
            open.insert(line.id, line);
        } else {
            open.remove(&line.id);
        }
    }
    for (id, line) in open.into_iter().filter(|(id, _)| !known.contains(id)) {
        let Line { uid, user, pid, verb, services, detail, .. } = line;
        let (time, outcome) = (SystemTime::now(), Outcome::Failed(ErrorCode::Unavailable));
        sink(&AuditRecord { id, time, uid, pid, user, verb, services, detail, outcome, outlived: true });
    }
}
