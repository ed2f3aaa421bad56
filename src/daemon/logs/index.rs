//! The small file of times and offsets beside each log file.
//!
//! A header of 32 bytes (magic, sequence number of the log file, its birth as the file system tells it, the newest
//! generation whose beginning it or a file before it has a mark of), then records of 16 bytes: wall-clock milliseconds, and the offset of the first byte that was written then. All numbers are
//! little-endian. The sequence number goes up by one with every file of a stream, so that a reader finds the file after
//! the one it has finished, whatever its name is by then.
//!
//! An index is an aid: without one, or with a broken one, reading falls back to names and beginnings of files.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::names::Names;
use crate::sys::files::{self, Access};

const MAGIC: &[u8; 8] = b"AIRDIDX1";
const HEADER: u64 = 32;
const RECORD: u64 = 16;

/// Where the header has the newest marked generation; 0: none.
const MARKED: u64 = 24;

/// At most one record a second: it bounds an index to 16 bytes a second of output (1.4 MB a day), and "since" to be
/// exact to a second.
pub(super) const RECORD_EVERY_MS: u64 = 1000;

/// An index larger than this is not read: some 700 days of uninterrupted output in one file.
const MAX_INDEX: u64 = 1 << 30;

/// Tells a file from a later one that got the same inode number: its birth in nanoseconds, 0 where the file system has
/// none.
pub(super) fn guard(meta: &Metadata) -> u64 {
    meta.created().map_or(0, |t| t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64))
}

/// Wall-clock milliseconds since 1970; 0 before.
pub(super) fn millis(t: SystemTime) -> u64 {
    t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The writing side.
#[derive(Debug)]
pub(super) struct Index {
    file: File,
    /// Complete records in the file.
    records: u64,
    last_ms: u64,
    marked: u64,
}

/// Times and offsets of one log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Times {
    pub sequence: u64,
    /// (wall-clock milliseconds, offset), in the order of writing.
    pub records: Vec<(u64, u64)>,
}

impl Index {
    /// A new one, in place of whatever has that name.
    pub fn create(path: &Path, sequence: u64, guard: u64) -> io::Result<Index> {
        let file = files::create_anew(path, 0o640)?;
        let mut header = [0u8; HEADER as usize];
        header[..8].copy_from_slice(MAGIC);
        header[8..16].copy_from_slice(&sequence.to_le_bytes());
        header[16..24].copy_from_slice(&guard.to_le_bytes());
        file.write_all_at(&header, 0)?;
        Ok(Index { file, records: 0, last_ms: 0, marked: 0 })
    }

    /// Goes on with an existing index: it, the file's sequence number, and the time of its first record.
    /// `None` if it is missing, broken or another file's.
    pub fn resume(path: &Path, expected_guard: u64) -> Option<(Index, u64, Option<u64>)> {
        let file = files::open(path, Access::ReadWrite).ok()?;
        let sequence = read_header(&file, expected_guard)?;
        let len = file.metadata().ok()?.len();
        // A torn last record is written over.
        let records = len.saturating_sub(HEADER) / RECORD;
        let at = |i: u64| -> Option<u64> {
            let mut ms = [0u8; 8];
            file.read_exact_at(&mut ms, HEADER + i * RECORD).ok()?;
            Some(u64::from_le_bytes(ms))
        };
        let first = if records > 0 { at(0) } else { None };
        let last_ms = if records > 0 { at(records - 1)? } else { 0 };
        let mut marked = [0u8; 8];
        file.read_exact_at(&mut marked, MARKED).ok()?;
        let index = Index { file, records, last_ms, marked: u64::from_le_bytes(marked) };
        Some((index, sequence, first))
    }

    /// The newest generation with a mark.
    pub fn marked(&self) -> u64 {
        self.marked
    }

    /// Notes that a generation has its mark. Best effort: else it may get another one when svd is killed.
    pub fn mark(&mut self, generation: u64) {
        if generation > self.marked && self.file.write_all_at(&generation.to_le_bytes(), MARKED).is_ok() {
            self.marked = generation;
        }
    }

    /// Notes the mark in the index of a log file that is not open.
    pub fn note_mark(names: &Names, log: &Metadata, generation: u64) {
        if let Some((mut index, ..)) = Index::resume(&names.index(log.ino()), guard(log)) {
            index.mark(generation);
        }
    }

    /// Notes that the byte at `offset` was written at `now_ms`, unless the last record is younger than a second.
    pub fn note(&mut self, now_ms: u64, offset: u64) -> io::Result<()> {
        // A clock that was set back must not silence the index: only a young record does.
        if self.records > 0 && now_ms.abs_diff(self.last_ms) < RECORD_EVERY_MS {
            return Ok(());
        }
        let mut record = [0u8; RECORD as usize];
        record[..8].copy_from_slice(&now_ms.to_le_bytes());
        record[8..].copy_from_slice(&offset.to_le_bytes());
        self.file.write_all_at(&record, HEADER + self.records * RECORD)?;
        self.records += 1;
        self.last_ms = now_ms;
        Ok(())
    }
}

fn read_header(file: &File, expected_guard: u64) -> Option<u64> {
    let mut header = [0u8; HEADER as usize];
    file.read_exact_at(&mut header, 0).ok()?;
    let number = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).ok();
    (&header[..8] == MAGIC && number(16)? == expected_guard).then(|| number(8)).flatten()
}

/// The sequence number of the log file that the index at `path` belongs to.
pub(super) fn sequence(path: &Path, expected_guard: u64) -> Option<u64> {
    read_header(&files::open(path, Access::Read).ok()?, expected_guard)
}

/// The sequence number and the marked generation that an index has, whether or not its file is still there.
pub(super) fn unguarded(path: &Path) -> Option<(u64, u64)> {
    let file = files::open(path, Access::Read).ok()?;
    let mut header = [0u8; HEADER as usize];
    file.read_exact_at(&mut header, 0).ok()?;
    let number = |at: u64| header[at as usize..][..8].try_into().map(u64::from_le_bytes).ok();
    (&header[..8] == MAGIC).then(|| Some((number(8)?, number(MARKED)?))).flatten()
}

/// Reads a whole index; a torn tail is left out, and so are records beyond `log_len` (the log's own tail may have been
/// lost with the power).
pub(super) fn load(path: &Path, expected_guard: u64, log_len: Option<u64>) -> Option<Times> {
    let mut file = files::open(path, Access::Read).ok()?;
    let sequence = read_header(&file, expected_guard)?;
    let len = file.metadata().ok()?.len();
    if len > MAX_INDEX {
        return None;
    }
    io::Seek::seek(&mut file, io::SeekFrom::Start(HEADER)).ok()?;
    let mut bytes = Vec::new();
    file.take(len.saturating_sub(HEADER)).read_to_end(&mut bytes).ok()?;
    let word = |b: &[u8]| b.try_into().map_or(0, u64::from_le_bytes);
    let records = bytes
        .chunks_exact(RECORD as usize)
        .map(|r| (word(&r[..8]), word(&r[8..])))
        .filter(|&(_, offset)| log_len.is_none_or(|len| offset <= len))
        .collect();
    Some(Times { sequence, records })
}

/// Writes `times` as the index of another file: the compressed one that takes its log's place.
pub(super) fn copy(path: &Path, times: &Times, new_guard: u64) -> io::Result<()> {
    let index = Index::create(path, times.sequence, new_guard)?;
    let mut bytes = Vec::with_capacity(times.records.len() * RECORD as usize);
    for (ms, offset) in &times.records {
        bytes.extend_from_slice(&ms.to_le_bytes());
        bytes.extend_from_slice(&offset.to_le_bytes());
    }
    index.file.write_all_at(&bytes, HEADER)
}

impl Times {
    /// Offset of the first byte that may have been written at `since_ms` or later, exact to a second, and whether what is
    /// before it is older. `None`: all of the file is.
    ///
    /// What comes before something older is older, whatever its time says: the clock was set back since.
    pub fn offset_since(&self, since_ms: u64) -> Option<(u64, bool)> {
        let last = self.records.iter().rposition(|(ms, _)| ms.saturating_add(RECORD_EVERY_MS) <= since_ms);
        match last {
            None => Some((self.records.first().map_or(0, |(_, offset)| *offset), false)),
            Some(last) => self.records.get(last + 1).map(|(_, offset)| (*offset, true)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_a_torn_tail() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("i");
        let mut index = Index::create(&path, 7, 42).unwrap();
        for i in 0..5u64 {
            index.note(10_000 + i * 1000, i * 100).unwrap();
            index.note(10_000 + i * 1000 + 999, i * 100 + 50).unwrap(); // too young: left out
        }
        drop(index);
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(whole.len(), 32 + 5 * 16);
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            match load(&path, 42, None) {
                None => assert!(cut < 32),
                Some(times) => {
                    assert_eq!(times.sequence, 7);
                    assert_eq!(times.records.len(), (cut - 32) / 16);
                }
            }
        }
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let (mut index, sequence, first) = Index::resume(&path, 42).unwrap();
        assert_eq!((sequence, first), (7, Some(10_000)));
        index.note(20_000, 900).unwrap();
        let times = load(&path, 42, None).unwrap();
        assert_eq!(times.records.last(), Some(&(20_000, 900)));
        assert_eq!(times.records.len(), 5);
        assert_eq!(load(&path, 43, None), None, "another file's index");
        assert_eq!(load(&path, 42, Some(250)).unwrap().records.len(), 3);
    }

    #[test]
    fn since_is_never_too_late() {
        let times = Times { sequence: 1, records: vec![(1_000, 0), (2_500, 10), (9_000, 20)] };
        assert_eq!(times.offset_since(0), Some((0, false)));
        assert_eq!(times.offset_since(1_999), Some((0, false)));
        assert_eq!(times.offset_since(2_000), Some((10, true)));
        assert_eq!(times.offset_since(3_600), Some((20, true)));
        assert_eq!(times.offset_since(10_000), None);
        assert_eq!(Times { sequence: 1, records: vec![] }.offset_since(5), Some((0, false)));
    }

    #[test]
    fn what_a_clock_that_was_fast_has_written_is_not_new() {
        let times = Times { sequence: 1, records: vec![(900_000, 0), (901_000, 10), (50_000, 20), (60_000, 30)] };
        assert_eq!(times.offset_since(60_500), Some((30, true)));
        assert_eq!(times.offset_since(10_000), Some((0, false)));
        assert_eq!(times.offset_since(100_000), None);
    }
}
