//! Reading a stream's files as one: the last lines, since a time, and on across rotation and compression. Everything here
//! blocks on the disk and belongs on a pool thread.
//!
//! A reader holds its file open, so that renaming and removal do not matter to it. When the file is finished it looks for
//! the one with the next higher sequence number (in its index), whatever its name is by then.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use flate2::bufread::MultiGzDecoder;

use super::index::{self, millis};
use super::names::{Names, Stream};
use super::signal::{Subscription, Wake};
use crate::sys::files::{self, Access};

/// Read at once when lines are counted or bytes are skipped.
const BLOCK: usize = 64 * 1024;

/// Numbers that are looked at beyond the highest one seen: a file may be renamed upward while the folder is read.
const MOVING: u32 = 8;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest byte there is.
    Beginning,
    /// That many lines before the end.
    Lines(u64),
    /// At the first whole line that came at that time or later; up to a second of older ones may come with it.
    Since(SystemTime),
    /// Of these two the later one.
    LinesSince(u64, SystemTime),
    /// So many bytes into the file of that number, or as many beyond its end into those that follow; at the oldest byte
    /// there is when that file is gone.
    At { sequence: u64, offset: u64 },
    /// After the last byte.
    End,
}

enum Source {
    Plain { file: File, offset: u64 },
    Gz { decoder: Box<MultiGzDecoder<BufReader<File>>>, offset: u64 },
}

/// One file of the stream, open.
struct Part {
    source: Source,
    inode: u64,
    /// `None`: it has no index.
    sequence: Option<u64>,
}

/// A file that was found in the folder, open.
struct Entry {
    gz: bool,
    file: File,
    inode: u64,
    len: u64,
    guard: u64,
    sequence: Option<u64>,
}

impl Part {
    fn new(entry: Entry) -> Part {
        let source = if entry.gz {
            Source::Gz { decoder: Box::new(MultiGzDecoder::new(BufReader::new(entry.file))), offset: 0 }
        } else {
            Source::Plain { file: entry.file, offset: 0 }
        };
        Part { source, inode: entry.inode, sequence: entry.sequence }
    }

    fn offset(&self) -> u64 {
        match &self.source {
            Source::Plain { offset, .. } | Source::Gz { offset, .. } => *offset,
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let result = match &mut self.source {
                Source::Plain { file, offset } => file.read_at(buf, *offset).inspect(|n| {
                    *offset += *n as u64;
                }),
                Source::Gz { decoder, offset } => decoder.read(buf).inspect(|n| {
                    *offset += *n as u64;
                }),
            };
            match result {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Goes on to `to`; stays at the end if that is before it.
    fn skip_to(&mut self, to: u64) -> io::Result<()> {
        if let Source::Plain { offset, .. } = &mut self.source {
            *offset = to;
            return Ok(());
        }
        let mut block = vec![0u8; BLOCK];
        while self.offset() < to {
            let want = (to - self.offset()).min(BLOCK as u64) as usize;
            if self.read(&mut block[..want])? == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Goes on past the next newline, if the position is within a line.
    fn skip_begun_line(&mut self, to: u64) -> io::Result<()> {
        if to == 0 {
            return Ok(());
        }
        // From the byte before: a newline there means that a line begins here.
        self.skip_to(to - 1)?;
        let mut byte = [0u8; 1];
        let mut block = vec![0u8; BLOCK];
        if let Source::Plain { file, offset } = &mut self.source {
            loop {
                let n = file.read_at(&mut block, *offset)?;
                if n == 0 {
                    return Ok(());
                }
                match block[..n].iter().position(|b| *b == b'\n') {
                    Some(at) => {
                        *offset += at as u64 + 1;
                        return Ok(());
                    }
                    None => *offset += n as u64,
                }
            }
        }
        while self.read(&mut byte)? == 1 && byte[0] != b'\n' {}
        Ok(())
    }
}

/// The stream's files, newest first. Files only ever move to higher numbers, and the numbers are opened upward, so that
/// none is missed while they move; one that is met twice is dropped.
fn scan(names: &Names) -> io::Result<Vec<Entry>> {
    let highest = names.list()?.rotated.last_key_value().map_or(0, |(n, _)| *n);
    let mut entries: Vec<Entry> = Vec::new();
    for number in 0..=highest.saturating_add(MOVING) {
        for gz in [false, true] {
            let path = names.numbered(number, gz);
            let file = match files::open(&path, Access::Read) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => {
                    return Err(io::Error::new(e.kind(), format!("{}: {}", path.display(), crate::sys::io_text(&e))));
                }
            };
            let meta = file.metadata()?;
            let (inode, guard) = (meta.ino(), index::guard(&meta));
            let sequence = index::sequence(&names.index(inode), guard);
            let known = entries.iter().any(|e| e.inode == inode || (sequence.is_some() && e.sequence == sequence));
            if !known {
                entries.push(Entry { gz, file, inode, len: meta.size(), guard, sequence });
            }
        }
    }
    Ok(entries)
}

/// Reads one stream's files as if they were one.
pub struct LogReader {
    names: Names,
    part: Option<Part>,
    /// The end when it was opened: (sequence, offset).
    opened_at: Option<(u64, u64)>,
    /// Where it stops.
    end: Option<(u64, u64)>,
    missed: u64,
}

impl LogReader {
    /// Opens a service's log in `dir` (the service's own folder). It reads on as the log grows; see
    /// [`LogReader::to_the_end_only`]. A folder without files is an empty log. Errors: files that cannot be read.
    pub fn open(dir: &Path, stream: Stream, start: Start) -> io::Result<LogReader> {
        let mut reader =
            LogReader { names: Names::new(dir, stream), part: None, opened_at: None, end: None, missed: 0 };
        let entries = scan(&reader.names)?;
        if let Some(newest) = entries.first() {
            reader.opened_at = newest.sequence.map(|s| (s, newest.len));
        }
        reader.part = match start {
            Start::Beginning => entries.into_iter().next_back().map(Part::new),
            Start::At { sequence, offset } => at_place(entries, sequence, offset)?,
            Start::End => at_end(entries)?,
            Start::Lines(count) => last_lines(entries, count)?,
            Start::Since(time) => reader.since(entries, time)?,
            Start::LinesSince(count, time) => {
                later(reader.since(scan(&reader.names)?, time)?, last_lines(entries, count)?)
            }
        };
        Ok(reader)
    }

    /// Makes it stop at what was the end when it was opened, however the log grows meanwhile.
    pub fn to_the_end_only(mut self) -> LogReader {
        // Without an index the end cannot be told; it is then where there is nothing more for the first time.
        self.end = self.opened_at;
        self
    }

    /// Where the next byte is: the number of its file and the offset there, for [`Start::At`]. `None`: the file has no
    /// index.
    pub fn position(&self) -> Option<(u64, u64)> {
        match &self.part {
            Some(part) => Some((part.sequence?, part.offset())),
            // Nothing is there yet: whatever comes follows.
            None => Some((0, 0)),
        }
    }

    /// Files that were rotated away before they could be read.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Reads the next bytes; 0: there are no more now.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(part) = &mut self.part else {
                self.part = scan(&self.names)?.into_iter().next_back().map(Part::new);
                if self.part.is_none() {
                    return Ok(0);
                }
                continue;
            };
            let mut room = buf.len();
            if let (Some((last, end)), Some(sequence)) = (self.end, part.sequence) {
                if sequence > last {
                    return Ok(0);
                }
                if sequence == last {
                    let left = end.saturating_sub(part.offset());
                    // A compressed file is at its end when it says so: its length was another.
                    if matches!(part.source, Source::Plain { .. }) {
                        room = room.min(usize::try_from(left).unwrap_or(usize::MAX));
                    }
                }
            }
            let n = part.read(&mut buf[..room])?;
            if n > 0 || room == 0 {
                return Ok(n);
            }
            let Some(next) = self.next_part()? else {
                return Ok(0);
            };
            // What was written between the end that we saw and the rotation.
            if let Some(part) = &mut self.part {
                let n = part.read(buf)?;
                if n > 0 {
                    return Ok(n);
                }
            }
            self.part = Some(next);
        }
    }

    /// The file after this one, if this one is finished.
    fn next_part(&mut self) -> io::Result<Option<Part>> {
        let Some(part) = &self.part else {
            return Ok(None);
        };
        if matches!(part.source, Source::Plain { .. }) {
            // The usual case, in one system call: it is still the current one.
            match std::fs::symlink_metadata(self.names.current()) {
                Ok(meta) if meta.ino() == part.inode => return Ok(None),
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let mut entries = scan(&self.names)?;
        entries.reverse();
        let Some(own) = part.sequence else {
            let at = entries.iter().position(|e| e.inode == part.inode);
            let next = at.map_or(entries.len().saturating_sub(1), |at| at + 1);
            return Ok(entries.into_iter().nth(next).map(Part::new));
        };
        // A file without an index follows by its place. An empty one may be an external logrotate's, before svd is told.
        let unindexed = |e: &Entry| e.sequence.is_none() && (e.gz || e.len > 0);
        let from =
            entries.iter().position(|e| e.inode == part.inode).map_or(entries.len().saturating_sub(1), |at| at + 1);
        let next = entries
            .into_iter()
            .enumerate()
            .find(|(i, e)| e.sequence.is_some_and(|s| s > own) || (*i >= from && unindexed(e)))
            .map(|(_, e)| e);
        if let Some(sequence) = next.as_ref().and_then(|e| e.sequence) {
            self.missed += sequence - own - 1;
        }
        Ok(next.map(Part::new))
    }

    fn since(&self, entries: Vec<Entry>, time: SystemTime) -> io::Result<Option<Part>> {
        let since_ms = millis(time);
        let mut found = None;
        // The newest first.
        for entry in entries {
            let len = (!entry.gz).then_some(entry.len);
            let times = index::load(&self.names.index(entry.inode), entry.guard, len);
            let from = match &times {
                Some(times) => times.offset_since(since_ms),
                // No index: by the file's last change, whole or not at all.
                None => entry.file.metadata().and_then(|m| m.modified()).map_or(Some((0, false)), |m| {
                    let latest = millis(m).saturating_add(index::RECORD_EVERY_MS);
                    (latest > since_ms).then_some((0, false))
                }),
            };
            match from {
                None if found.is_none() => return at_end(vec![entry]),
                None => break,
                Some((offset, older)) => {
                    found = Some((entry, offset));
                    if older {
                        break;
                    }
                }
            }
        }
        let Some((entry, offset)) = found else { return Ok(None) };
        let mut part = Part::new(entry);
        part.skip_begun_line(offset)?;
        Ok(Some(part))
    }
}

/// The part that begins later; the second where that cannot be told.
fn later(one: Option<Part>, other: Option<Part>) -> Option<Part> {
    let (one, other) = (one?, other?);
    let place = |part: &Part| Some((part.sequence?, part.offset()));
    match (place(&one), place(&other)) {
        (Some(a), Some(b)) if a > b => Some(one),
        _ => Some(other),
    }
}

fn at_end(entries: Vec<Entry>) -> io::Result<Option<Part>> {
    let Some(entry) = entries.into_iter().next() else {
        return Ok(None);
    };
    let len = if entry.gz { u64::MAX } else { entry.len };
    let mut part = Part::new(entry);
    part.skip_to(len)?;
    Ok(Some(part))
}

/// Opened at `offset` of the file with that number, carried over into the next ones beyond its end.
fn at_place(entries: Vec<Entry>, sequence: u64, offset: u64) -> io::Result<Option<Part>> {
    let at = entries.iter().rposition(|e| e.sequence.is_some_and(|s| s >= sequence)).map(|at| at + 1);
    let mut left = offset;
    let mut wanted = sequence;
    let mut last = None;
    let upward = at.unwrap_or(entries.len());
    for entry in entries.into_iter().take(upward).rev() {
        // Those before were removed, with what is left of the offset.
        if entry.sequence != Some(wanted) {
            left = 0;
        }
        wanted = entry.sequence.unwrap_or(wanted) + 1;
        let len = (!entry.gz).then_some(entry.len);
        let mut part = Part::new(entry);
        part.skip_to(len.map_or(left, |len| len.min(left)))?;
        left -= part.offset();
        let inside = left == 0;
        last = Some(part);
        if inside {
            break;
        }
    }
    Ok(last)
}

/// Opened at the beginning of the `count`th line from the end.
fn last_lines(entries: Vec<Entry>, count: u64) -> io::Result<Option<Part>> {
    let mut left = count;
    let last = entries.len().saturating_sub(1);
    let mut newest = true;
    for (i, entry) in entries.into_iter().enumerate() {
        if newest && left == 0 {
            return at_end(vec![entry]);
        }
        let found =
            if entry.gz { lines_from_start(&entry, left)? } else { lines_from_end(&entry.file, entry.len, left)? };
        match found {
            Ok(offset) => {
                let mut part = Part::new(entry);
                part.skip_to(offset)?;
                return Ok(Some(part));
            }
            Err(lines) if i == last => {
                let _ = lines;
                return Ok(Some(Part::new(entry)));
            }
            Err(lines) => left -= lines,
        }
        newest = false;
    }
    Ok(None)
}

/// The offset of the `count`th line from the end, or how many lines there are if fewer.
fn lines_from_end(file: &File, len: u64, count: u64) -> io::Result<Result<u64, u64>> {
    let mut block = vec![0u8; BLOCK];
    let (mut end, mut seen) = (len, 0u64);
    while end > 0 {
        let begin = end.saturating_sub(BLOCK as u64);
        let piece = &mut block[..(end - begin) as usize];
        file.read_exact_at(piece, begin)?;
        for (i, byte) in piece.iter().enumerate().rev() {
            let after = begin + i as u64 + 1;
            // The newline at the very end closes the last line; any other one begins the line after it.
            if *byte == b'\n' && after < len {
                seen += 1;
                if seen == count {
                    return Ok(Ok(after));
                }
            }
        }
        end = begin;
    }
    if len > 0 {
        seen += 1; // the first line has no newline before it
    }
    Ok(if seen == count && len > 0 { Ok(0) } else { Err(seen) })
}

/// As [`lines_from_end`], of a file that can be read forward only: once to count, and the caller once more to the place.
fn lines_from_start(entry: &Entry, count: u64) -> io::Result<Result<u64, u64>> {
    let total = count_lines(entry, None)?.0;
    if total < count {
        return Ok(Err(total));
    }
    Ok(Ok(count_lines(entry, Some(total - count))?.1))
}

/// Lines, or with `upto` the offset after that many.
fn count_lines(entry: &Entry, upto: Option<u64>) -> io::Result<(u64, u64)> {
    let mut file = entry.file.try_clone()?;
    io::Seek::rewind(&mut file)?;
    let mut decoder = MultiGzDecoder::new(BufReader::new(file));
    let mut block = vec![0u8; BLOCK];
    let (mut lines, mut offset, mut last) = (0u64, 0u64, b'\n');
    let result = loop {
        if upto == Some(lines) {
            break (lines, offset);
        }
        let n = decoder.read(&mut block)?;
        let Some(&end) = block[..n].last() else {
            break (lines + u64::from(last != b'\n'), offset);
        };
        last = end;
        let mut at = 0;
        for (i, _) in block[..n].iter().enumerate().filter(|(_, b)| **b == b'\n') {
            lines += 1;
            at = i + 1;
            if upto == Some(lines) {
                break;
            }
        }
        let here = if upto == Some(lines) { at } else { n };
        offset += here as u64;
    };
    // The caller reads the same open file from its beginning.
    io::Seek::rewind(&mut &entry.file)?;
    Ok(result)
}

/// What [`Follow::next`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// So many bytes are in the buffer.
    Data(usize),
    /// Nothing came in the time given.
    Idle,
    /// Everything is read, and nothing more will be told: svd ends or the service was removed.
    Closed,
}

/// Reads on as the log grows, woken by the log thread and never by a clock.
pub struct Follow {
    reader: LogReader,
    subscription: Subscription,
}

impl Follow {
    /// `subscription` was made before `reader`, so that nothing falls between them.
    pub fn new(subscription: Subscription, reader: LogReader) -> Follow {
        Follow { reader, subscription }
    }

    /// What there is now; 0: nothing, and [`Follow::changed`] tells when to try again. Blocks on the disk only.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reader.read(buf)
    }

    /// Waits without blocking the thread.
    pub async fn changed(&self) -> Wake {
        self.subscription.changed().await
    }

    /// The next bytes; blocks at most for `limit` while there are none.
    pub fn next(&mut self, buf: &mut [u8], limit: Duration) -> io::Result<Step> {
        loop {
            let n = self.reader.read(buf)?;
            if n > 0 {
                return Ok(Step::Data(n));
            }
            match self.subscription.wait(limit) {
                Wake::Changed => {}
                Wake::TimedOut => return Ok(Step::Idle),
                Wake::Closed => {
                    let n = self.reader.read(buf)?;
                    return Ok(if n > 0 { Step::Data(n) } else { Step::Closed });
                }
            }
        }
    }

    pub fn missed(&self) -> u64 {
        self.reader.missed()
    }
}
