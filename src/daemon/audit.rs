//! The audit journal: a JSON line for each change that was asked for, by whom, and what came of it (I9).

use super::paths::{JOURNAL_BYTES, Paths, older};
use super::queue::{Receiver, Sender, queue};
use crate::api::audit::{AuditRecord, AuditSink};
use crate::api::types::rfc3339;
use crate::sys::files;
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

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
    let line = json!({
        "id": record.id, "time": rfc3339(record.time), "uid": record.uid, "user": record.user, "pid": record.pid,
        "verb": record.verb, "services": record.services, "detail": record.detail,
        "outcome": record.outcome.as_str(),
    });
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
