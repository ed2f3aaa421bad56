//! The audit journal: a JSON line for each change that was asked for, by whom, and what came of it (I9).

use super::paths::{JOURNAL_BYTES, Paths, older};
use super::queue::{Receiver, Sender, queue};
use crate::api::audit::{AuditRecord, AuditSink, Outcome};
use crate::api::request::Verb;
use crate::api::types::rfc3339;
use crate::sys::files;
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

/// Records that wait for the disk.
const WAITING: usize = 4096;
const AT_THE_END: Duration = Duration::from_secs(1);

enum Entry {
    Line {
        text: String,
        /// Of the record, if it is an outcome.
        outcome_of: Option<u64>,
    },
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// The way to the thread that writes.
pub struct Journal {
    entries: Sender<Entry>,
    answered: Answered,
}

/// Numbers of the records whose outcome is in the journal, or cannot be written there. Until then the state file names them:
/// a svd that is killed in between has said nothing to the next one.
#[derive(Clone, Debug, Default)]
pub struct Answered(Arc<Mutex<Vec<u64>>>);

impl Answered {
    fn add(&self, number: Option<u64>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(number);
    }

    /// Those that came since this was last asked.
    pub fn take(&self) -> Vec<u64> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Starts the thread.
pub fn start(paths: &Paths) -> Journal {
    let path = paths.audit_file();
    let (entries, waiting) = queue::<Entry>(WAITING);
    let answered = Answered::default();
    let thread = std::thread::Builder::new().name("svd-audit".into()).stack_size(128 * 1024);
    let written = answered.clone();
    if let Err(e) = thread.spawn(move || write_all(&path, &waiting, &written)) {
        tracing::warn!("the audit journal cannot be written: {e}");
    }
    Journal { entries, answered }
}

impl Journal {
    /// Never blocks.
    pub fn sink(&self) -> AuditSink {
        let (entries, answered) = (self.entries.clone(), self.answered.clone());
        Arc::new(move |record| send(&entries, &answered, record))
    }

    pub fn answered(&self) -> Answered {
        self.answered.clone()
    }

    /// At svd's end: waits a moment for the disk.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.entries.try_send(Entry::Flush(done)).is_ok() && written.recv_timeout(AT_THE_END).is_err() {
            tracing::warn!("the audit journal's disk hangs: its last records may be lost");
        }
    }
}

fn send(entries: &Sender<Entry>, answered: &Answered, record: &AuditRecord) {
    let mut line = json!({
        "id": record.id, "time": rfc3339(record.time), "uid": record.uid, "user": record.user, "pid": record.pid,
        "verb": record.verb, "services": record.services, "detail": record.detail,
        "outcome": record.outcome.as_str(),
    });
    if record.outlived {
        line["outlived_svd"] = true.into();
    }
    let outcome_of = (record.outcome != Outcome::Begun).then_some(record.id);
    match entries.try_send(Entry::Line { text: format!("{line}\n"), outcome_of }) {
        Ok(()) => return,
        Err(TrySendError::Full(_)) => tracing::warn!("the audit journal's disk hangs: a record is lost: {line}"),
        Err(TrySendError::Disconnected(_)) => tracing::warn!("not in the audit journal: {line}"),
    }
    answered.add(outcome_of);
}

fn write_all(path: &PathBuf, waiting: &Receiver<Entry>, answered: &Answered) {
    if is_cut(path) {
        // Of a svd that was killed while it wrote: the next record must not become a part of it.
        let _ = append(path, "\n");
    }
    while let Ok(entry) = waiting.recv() {
        let (line, outcome_of) = match entry {
            Entry::Line { text, outcome_of } => (text, outcome_of),
            Entry::Flush(done) => {
                // Whoever asked may have given up.
                let _ = done.try_send(());
                continue;
            }
        };
        if let Err(e) = append(path, &line) {
            tracing::warn!("cannot write {}: {}; not in the journal: {line}", path.display(), crate::sys::io_text(&e));
        }
        answered.add(outcome_of);
    }
}

fn append(path: &PathBuf, line: &str) -> std::io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|m| m.len() >= JOURNAL_BYTES) {
        std::fs::rename(path, older(path))?;
    }
    files::append(path, 0o600)?.write_all(line.as_bytes())
}

fn is_cut(path: &Path) -> bool {
    let last = || -> std::io::Result<u8> {
        let mut file = files::open(path, files::Access::Read)?;
        file.seek(SeekFrom::End(-1))?;
        let mut byte = [0];
        file.read_exact(&mut byte)?;
        Ok(byte[0])
    };
    last().is_ok_and(|byte| byte != b'\n')
}

/// What is looked at of a journal for records that were begun.
const LOOKED_AT: u64 = 256 << 10;

/// A line of the journal, as far as its record may need an end.
#[derive(Deserialize)]
struct Line {
    id: u64,
    time: Box<str>,
    uid: u32,
    user: Box<str>,
    pid: i32,
    verb: Verb,
    services: Vec<Box<str>>,
    detail: Box<str>,
    outcome: Box<str>,
}

impl Line {
    /// The record that was begun.
    fn record(self) -> AuditRecord {
        let Line { id, time, uid, user, pid, verb, services, detail, .. } = self;
        let time = humantime::parse_rfc3339_weak(&time).unwrap_or(SystemTime::UNIX_EPOCH);
        AuditRecord { id, time, uid, pid, user, verb, services, detail, outcome: Outcome::Begun, outlived: true }
    }
}

/// The last lines of the journal; others than svd's own are passed over.
fn last_lines(path: &Path) -> Vec<Line> {
    let read = |path: &Path| -> std::io::Result<Vec<u8>> {
        let mut file = files::open(path, files::Access::Read)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOOKED_AT)))?;
        let mut bytes = Vec::new();
        file.take(LOOKED_AT).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // It may have been renamed a moment ago.
    let both = [older(path), path.to_owned()].map(|path| read(&path).unwrap_or_default());
    let lines = both.iter().flat_map(|bytes| bytes.split(|b| *b == b'\n'));
    lines.filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

/// The highest number of a record.
pub fn last_id(paths: &Paths) -> u64 {
    last_lines(&paths.audit_file()).iter().map(|line| line.id).max().unwrap_or(0)
}

/// What the journal tells of the records of earlier svds.
#[derive(Debug, Default)]
pub struct Earlier {
    /// Those that were begun and have no outcome, with the time of their beginning.
    pub open: BTreeMap<u64, AuditRecord>,
    /// Those that have one.
    pub ended: BTreeSet<u64>,
}

pub fn earlier(path: &Path) -> Earlier {
    let mut found = Earlier::default();
    for line in last_lines(path) {
        if &*line.outcome == "begun" {
            found.open.insert(line.id, line.record());
        } else {
            found.open.remove(&line.id);
            found.ended.insert(line.id);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: u64, outcome: &str) -> String {
        format!(
            "{{\"id\":{id},\"time\":\"2026-11-22T18:40:00.000Z\",\"uid\":0,\"user\":\"root\",\"pid\":7,\"verb\":\"stop\",\
             \"services\":[\"web\"],\"detail\":\"\",\"outcome\":\"{outcome}\"}}\n"
        )
    }

    #[test]
    fn a_record_is_answered_when_its_outcome_is_in_the_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().to_owned();
        let paths = Paths { config: at.clone(), run: at.clone(), state: at.clone(), log: at };
        let journal = start(&paths);
        let (sink, answered) = (journal.sink(), journal.answered());
        let begun: AuditRecord = {
            std::fs::write(paths.audit_file(), line(0, "begun")).expect("written");
            earlier(&paths.audit_file()).open.remove(&0).expect("a record")
        };
        for id in 1..=200 {
            sink(&AuditRecord { id, ..begun.clone() });
            sink(&AuditRecord { id, outcome: Outcome::Done, ..begun.clone() });
            let until = std::time::Instant::now() + Duration::from_secs(30);
            let told = loop {
                let told = answered.take();
                if !told.is_empty() {
                    break told;
                }
                assert!(std::time::Instant::now() < until, "it is never answered");
                std::hint::spin_loop();
            };
            assert_eq!(told, [id]);
            assert!(earlier(&paths.audit_file()).ended.contains(&id), "{id} is not in the file yet");
        }
    }

    #[test]
    fn what_is_open_and_the_last_number_are_found_across_a_rename() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().to_owned();
        let paths = Paths { config: at.clone(), run: at.clone(), state: at.clone(), log: at };
        let path = paths.audit_file();
        assert_eq!((last_id(&paths), earlier(&path).open.len()), (0, 0));
        let text = [line(8, "begun"), line(9, "begun"), line(8, "done"), "of somebody else\n".into()].concat();
        std::fs::write(older(&path), text).expect("written");
        assert_eq!(last_id(&paths), 9, "the file was renamed, and nothing came since");
        // The one that was begun first has ended last.
        std::fs::write(&path, [line(11, "begun"), line(10, "begun"), line(10, "failed")].concat()).expect("written");
        assert_eq!(last_id(&paths), 11);
        let Earlier { open, ended } = earlier(&path);
        assert_eq!((open.keys().collect::<Vec<_>>(), ended), (vec![&9, &11], BTreeSet::from([8, 10])));
        let record = &open[&9];
        assert_eq!((record.verb, &*record.services[0], record.outlived), (Verb::Stop, "web", true));
        assert_eq!(&*rfc3339(record.time), "2026-11-22T18:40:00Z");
    }
}
