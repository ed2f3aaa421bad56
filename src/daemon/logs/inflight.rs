//! What keeps a death of svd from losing, doubling or tearing a byte: a small file in the run directory, which survives it.
//!
//! Nothing is taken out of a pipe before it is certain where it goes, so that nothing of a service's is ever in svd's memory
//! alone. What svd has to see first (where does the last line end?) it looks at with `tee(2)`, and what it does not want yet
//! stays in the pipe. There are three ways out of a pipe:
//!
//! - **One pipe, one file, bytes as they are**: `splice(2)` into the file. The kernel takes from the pipe what the file has
//!   accepted; a death before, in or after it leaves each byte in exactly one of the two. Nothing is recorded.
//! - **Several pipes, one file, bytes as they are**: the same, of whole lines. A death within it would leave a part of a line
//!   in the file, behind which somebody else's may come. So the record says before it: so many bytes from that pipe to that
//!   offset. The next svd looks at the file's length, and moves what is missing before it does anything else.
//! - **Times, JSON lines**: what goes into the file is not what was in the pipe. The finished text is put beside the record,
//!   then the record says: so many bytes of that pipe become this text, whose next piece goes to that offset. Then those
//!   bytes are spliced behind the text, *to the end of this very file*, whose length so tells how many have left the pipe;
//!   then the text is written; then the record is taken back. The next svd takes the rest out of the pipe and writes the
//!   text to the same place: repeating a write changes nothing. svd's own lines go this way as well, with no bytes taken.
//!
//! A record is one write within a page, with a checksum, into the older of two places: a torn one is as none, and none
//! means that what it would have announced was not begun. Every step is one system call that is done or not done, or (the
//! moves) tells by a length how much of it is. So of each instant the next svd knows enough to go on:
//!
//! | killed | found | done |
//! |---|---|---|
//! | before the record | no record; bytes in the pipe, nothing in the file | nothing |
//! | after it, before or in the move or the taking | a length that is short | the rest is moved or taken |
//! | in or after the write of the text | all taken | the piece is written again, and then the rest of the text |
//! | after the record was taken back | no record | nothing |
//!
//! The length is believed because nobody else writes these files, and the head of the pipe because nobody else reads it (a
//! service that reads its own output back only mixes up its own).

use std::cell::Cell;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::index;
use super::names::{Names, Stream};
use super::sink::open_log;
use crate::sys::fifo;
use crate::sys::files::{self, Access};

const MAGIC: &[u8; 8] = b"AIRDFLY1";

/// The two places for records; within a page.
const SLOTS: [u64; 2] = [0, 1024];
const SLOT: usize = 1024;

/// Where the text begins.
const TEXT: u64 = 4096;

/// Where the bytes taken begin: behind the longest text, which is a line as long as the buffer of which JSON makes six
/// times as much.
const TAKEN: u64 = 2 << 20;

/// A file's identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Node {
    dev: u64,
    ino: u64,
}

impl Node {
    pub fn of(meta: &Metadata) -> Node {
        Node { dev: meta.dev(), ino: meta.ino() }
    }

    pub fn of_descriptor(fd: impl AsFd) -> Result<Node, Errno> {
        let stat = nix::sys::stat::fstat(fd)?;
        Ok(Node { dev: stat.st_dev, ino: stat.st_ino })
    }
}

/// What has been begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub service: Box<str>,
    pub stream: Stream,
    /// The log file, and the offset where what follows begins.
    pub file: Node,
    pub at: u64,
    /// So many bytes of the text, or of the pipe where there is no text.
    pub length: u64,
    /// The pipe; default: svd's own words.
    pub pipe: Node,
    pub text: Option<Text>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Text {
    /// So many bytes of the pipe it stands for.
    pub taken: u64,
    /// All of it.
    pub total: u64,
    /// The part of it that is written: from here on, as many bytes as the record says.
    pub from: u64,
    /// It is the mark of this generation.
    pub mark: Option<u64>,
}

/// So many steps until a test lets the thread die, and whether the last one is done in part.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Fuse {
    pub left: std::sync::Mutex<Option<(u32, bool)>>,
    pub blown: std::sync::atomic::AtomicBool,
}

#[cfg(test)]
impl Fuse {
    fn step(&self, count: usize) -> usize {
        let mut left = self.left.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match *left {
            None => count,
            Some((0, _)) => {
                self.blown.store(true, std::sync::atomic::Ordering::SeqCst);
                std::panic::resume_unwind(Box::new("killed"))
            }
            Some((n, partly)) => {
                *left = Some((n - 1, partly));
                if n == 1 && partly { count.div_ceil(2) } else { count }
            }
        }
    }
}

/// Where the record is, and the pipes that it may speak of.
#[derive(Debug)]
pub struct InFlight {
    file: File,
    pipes: PathBuf,
    sequence: Cell<u64>,
    #[cfg(test)]
    pub(super) fuse: std::sync::Arc<Fuse>,
}

impl InFlight {
    /// Opens or makes the file. `pipes`: the directory with the named pipes.
    ///
    /// # Errors
    /// Of the file system.
    pub fn open(path: &Path, pipes: &Path) -> io::Result<InFlight> {
        let file = files::open_or_create(path, 0o600)?;
        let in_flight = InFlight {
            file,
            pipes: pipes.to_owned(),
            sequence: Cell::new(0),
            #[cfg(test)]
            fuse: Default::default(),
        };
        let highest = in_flight.slots().map(|(sequence, _)| sequence).max();
        in_flight.sequence.set(highest.unwrap_or(0));
        // What the text needs is there before it is needed, as far as the file system allows.
        in_flight.file.set_len(in_flight.file.metadata()?.len().max(TAKEN))?;
        Ok(in_flight)
    }

    /// Before each system call that changes something: here tests let the thread die, or let the call do less than the
    /// `count` bytes that it could.
    #[inline]
    pub(super) fn step(&self, count: usize) -> usize {
        #[cfg(test)]
        return self.fuse.step(count);
        #[cfg(not(test))]
        count
    }

    fn slots(&self) -> impl Iterator<Item = (u64, Option<Record>)> {
        SLOTS.into_iter().filter_map(|at| {
            let mut slot = [0u8; SLOT];
            self.file.read_exact_at(&mut slot, at).ok()?;
            parse(&slot)
        })
    }

    fn pending(&self) -> Option<Record> {
        self.slots().max_by_key(|(sequence, _)| *sequence)?.1
    }

    /// Announces a step, or (`None`) that the last one is done.
    pub(super) fn note(&self, record: Option<&Record>) -> io::Result<()> {
        let sequence = self.sequence.get() + 1;
        let mut slot = Vec::with_capacity(256);
        slot.extend_from_slice(MAGIC);
        slot.extend_from_slice(&[0; 8]);
        slot.extend_from_slice(&sequence.to_le_bytes());
        serde_json::to_writer(&mut slot, &record)?;
        let length = (slot.len() - 16) as u32;
        let sum = crc32fast::hash(&slot[16..]);
        slot[8..12].copy_from_slice(&length.to_le_bytes());
        slot[12..16].copy_from_slice(&sum.to_le_bytes());
        if slot.len() > SLOT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.step(0);
        self.file.write_all_at(&slot, SLOTS[(sequence % 2) as usize])?;
        self.sequence.set(sequence);
        Ok(())
    }

    /// The last step is done.
    pub(super) fn done(&self) {
        // Where even this fails, the next svd repeats what changes nothing.
        let _ = self.note(None);
    }

    /// Puts a text beside the record that will speak of it.
    pub(super) fn put(&self, text: &[u8]) -> io::Result<()> {
        if TEXT + text.len() as u64 > TAKEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.file.write_all_at(&text[..self.step(text.len())], TEXT)
    }

    /// Takes out of the pipe what the text stands for. True: all of it; false: the pipe has less.
    pub(super) fn take(&self, pipe: impl AsFd, count: u64) -> io::Result<bool> {
        loop {
            let end = self.file.metadata()?.len();
            let left = (TAKEN + count).saturating_sub(end);
            if left == 0 {
                return Ok(true);
            }
            match fifo::pour(&pipe, &self.file, end, self.step(left as usize)) {
                Ok(0) => return Ok(false),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Bytes taken so far.
    pub(super) fn taken(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.len().saturating_sub(TAKEN))
    }

    /// The text is written. The order matters: while the record is there, the length is what tells how much was taken.
    pub(super) fn written(&self) {
        if self.note(None).is_ok() {
            self.step(0);
            let _ = self.file.set_len(TAKEN);
        }
    }

    /// Ends what a killed svd has begun. What fails is not tried again: a file that is gone has no place for it.
    ///
    /// # Errors
    /// Of the file system, and then bytes may be lost.
    pub(super) fn recover(&self, log_dir: &Path) -> io::Result<()> {
        let result = match self.pending() {
            Some(record) => self.finish(record, log_dir),
            None => Ok(()),
        };
        self.note(None)?;
        self.step(0);
        self.file.set_len(TAKEN)?;
        result
    }

    fn finish(&self, record: Record, log_dir: &Path) -> io::Result<()> {
        let names = Names::new(&log_dir.join(&*record.service), record.stream);
        let pipe = self.pipe(record.pipe);
        let Some(text) = record.text else {
            return match (find(&names, record.file)?, pipe) {
                (Some(file), Some(pipe)) => self.move_rest(&pipe, &file, record.at, record.length),
                // The worker died as well, and what was in its pipe with it.
                _ => Ok(()),
            };
        };
        if let Some(pipe) = pipe {
            self.take(pipe, text.taken)?;
        }
        let mut all = vec![0; text.total.min(TAKEN - TEXT) as usize];
        self.file.read_exact_at(&mut all, TEXT)?;
        let (_, rest) = all.split_at_checked(text.from as usize).unwrap_or_default();
        let (piece, rest) = rest.split_at_checked(record.length as usize).unwrap_or_default();
        if let Some(file) = find(&names, record.file)? {
            self.step(0);
            file.write_all_at(piece, record.at)?;
            self.step(0);
            if let Some(generation) = text.mark {
                index::Index::note_mark(&names, &file.metadata()?, generation);
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        // It was killed before the next file had got its piece of the text.
        let file = open_log(&names.current())?;
        let meta = file.metadata()?;
        let from = text.from + record.length;
        let text = Some(Text { from, ..text });
        self.note(Some(&Record { file: Node::of(&meta), at: meta.len(), length: rest.len() as u64, text, ..record }))?;
        self.step(0);
        file.write_all_at(rest, meta.len())
    }

    /// Moves what is missing of `length` bytes from `at` on.
    fn move_rest(&self, pipe: &File, file: &File, at: u64, length: u64) -> io::Result<()> {
        loop {
            let end = file.metadata()?.len();
            // A file that is shorter than it was has been cut by somebody else.
            let left = (at + length).saturating_sub(end);
            if left == 0 || end < at {
                return Ok(());
            }
            match fifo::pour(pipe, file, end, self.step(left as usize)) {
                Ok(0) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    fn pipe(&self, node: Node) -> Option<File> {
        let is = |entry: &fs::DirEntry| entry.metadata().is_ok_and(|meta| Node::of(&meta) == node);
        let found = fs::read_dir(&self.pipes).ok()?.flatten().find(is)?;
        fifo::open_reader(&found.path()).ok()
    }
}

fn parse(slot: &[u8]) -> Option<(u64, Option<Record>)> {
    let rest = slot.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let body = rest.get(..u32::from_le_bytes(*length) as usize)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (sequence, json) = body.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*sequence), serde_json::from_slice(json).ok()?))
}

/// The log file, whatever its name is by now.
fn find(names: &Names, node: Node) -> io::Result<Option<File>> {
    let numbers = names.list()?.rotated.into_keys();
    for path in std::iter::once(names.current()).chain(numbers.map(|n| names.numbered(n, false))) {
        let file = match files::open(&path, Access::ReadWrite) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if Node::of(&file.metadata()?) == node {
            return Ok(Some(file));
        }
    }
    Ok(None)
}
