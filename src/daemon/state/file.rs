//! The file in the run directory by which the next svd finds out what this one was doing.
//!
//! A line names the format. After it come frames: the length of their payload and its CRC-32, both as little-endian 32-bit
//! words, and the payload, a JSON object. Each member of it is the newest value of its key; `null` ends the key. A frame is
//! written by one `write(2)` and counts as a whole or not at all: a torn one at the end was never acted upon.
//!
//! A svd that starts never continues a file; it writes a new one, whole, and renames it into place. The disk is not waited
//! for, as the processes do not survive the machine's end either.

use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

const FORMAT: &[u8] = b"airdock state 2\n";
/// Is read as well; its values say the same in more words.
const FORMAT_1: &[u8] = b"airdock state 1\n";
const FORMAT_NAME: &[u8] = b"airdock state ";
const HEAD: usize = 8;

/// The file is written anew when what was appended exceeds the last whole content and this many bytes.
const APPENDED: u64 = 8 << 20;

/// The newest value of each key, as JSON text.
pub type Entries = BTreeMap<Box<str>, Box<RawValue>>;

/// Why a file is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("it is not a state file of svd")]
    Foreign,
    #[error("it has the format {0}, which this svd does not know")]
    Newer(String),
    #[error("its first record is damaged")]
    Damaged,
}

/// What changes together.
#[derive(Debug, Default)]
pub struct Batch {
    /// A JSON object without its last brace.
    text: Vec<u8>,
}

impl Batch {
    /// A key's new value; `None`: it has none any more.
    pub fn put(&mut self, key: &str, value: Option<impl serde::Serialize>) {
        match serde_json::to_vec(&value) {
            Ok(value) => self.raw(key, &value),
            // No type that is written here can fail.
            Err(e) => debug_assert!(false, "{key} is not written: {e}"),
        }
    }

    fn raw(&mut self, key: &str, value: &[u8]) {
        self.text.push(if self.text.is_empty() { b'{' } else { b',' });
        self.text.push(b'"');
        // Keys are ours: letters, digits, `/` and `.`.
        self.text.extend_from_slice(key.as_bytes());
        self.text.extend_from_slice(b"\":");
        self.text.extend_from_slice(value);
    }

    pub fn frame(mut self) -> Vec<u8> {
        if self.text.is_empty() {
            self.text.push(b'{');
        }
        self.text.push(b'}');
        let mut frame = Vec::with_capacity(HEAD + self.text.len());
        frame.extend_from_slice(&(self.text.len() as u32).to_le_bytes());
        frame.extend_from_slice(&crc32fast::hash(&self.text).to_le_bytes());
        frame.append(&mut self.text);
        frame
    }
}

/// The content of a file that has this alone.
pub fn whole(content: Batch) -> Vec<u8> {
    let mut bytes = FORMAT.to_vec();
    bytes.append(&mut content.frame());
    bytes
}

/// The file that is written now.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    file: Option<File>,
    length: u64,
    /// After it was written whole.
    whole: u64,
}

impl StateFile {
    pub fn new(path: PathBuf) -> StateFile {
        StateFile { path, file: None, length: 0, whole: 0 }
    }

    /// Replaces the file by one with this content.
    ///
    /// # Errors
    /// Of the file system; the old file is as it was, and so is what is appended to.
    pub fn write_whole(&mut self, content: Batch) -> io::Result<()> {
        let bytes = whole(content);
        crate::sys::durable::write_fast(&self.path, &bytes, 0o600)?;
        self.file = Some(OpenOptions::new().append(true).open(&self.path)?);
        self.length = bytes.len() as u64;
        self.whole = self.length;
        Ok(())
    }

    /// Adds what has changed.
    ///
    /// # Errors
    /// Of the file system. What was written of it is cut off again; where even that fails nothing more is appended until
    /// the file is written whole.
    pub fn append(&mut self, batch: Batch) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(ErrorKind::NotFound.into()) };
        let frame = batch.frame();
        match file.write(&frame) {
            Ok(length) if length == frame.len() => {
                self.length += length as u64;
                Ok(())
            }
            written => {
                if file.set_len(self.length).is_err() {
                    self.file = None;
                }
                Err(written.err().unwrap_or_else(|| ErrorKind::StorageFull.into()))
            }
        }
    }

    /// Has so much been appended that it should be written anew, or can nothing be appended any more?
    pub fn wants_whole(&self) -> bool {
        self.file.is_none() || self.length > 2 * self.whole + APPENDED
    }

    /// svd ends in order: nothing is left to be taken over.
    pub fn remove(self) {
        // Best effort: what it tells of does not run any more, and the next svd sees that.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Reads a file. `None`: there is none.
///
/// # Errors
/// Outside: of the file system. Inside: why it is of no use.
pub fn read(path: &Path) -> io::Result<Option<Result<Entries, Unusable>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(parse(&bytes))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// The entries of a file's content. What follows a torn or damaged frame is not read: nothing of it was acted upon, or the
/// file was changed by somebody else.
///
/// # Errors
/// Why it is of no use.
pub fn parse(bytes: &[u8]) -> Result<Entries, Unusable> {
    let Some(mut rest) = [FORMAT, FORMAT_1].iter().find_map(|format| bytes.strip_prefix(*format)) else {
        let line = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
        return Err(match line.strip_prefix(FORMAT_NAME) {
            Some(format) if line.len() < bytes.len() => Unusable::Newer(String::from_utf8_lossy(format).into_owned()),
            _ => Unusable::Foreign,
        });
    };
    let mut entries = Entries::new();
    let mut frames = 0;
    while let Some((payload, after)) = frame(rest) {
        let Ok(members) = serde_json::from_slice::<BTreeMap<Box<str>, Box<RawValue>>>(payload) else { break };
        for (key, value) in members {
            if value.get() == "null" {
                entries.remove(&key)
            } else {
                entries.insert(key, value)
            };
        }
        frames += 1;
        rest = after;
    }
    if frames == 0 { Err(Unusable::Damaged) } else { Ok(entries) }
}

/// A file with this one payload.
#[cfg(any(test, feature = "fuzz"))]
pub fn with_payload(payload: &[u8]) -> Vec<u8> {
    let mut bytes = FORMAT.to_vec();
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The payload of the first frame, and what follows.
fn frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let [a, b, c, d, e, f, g, h] = *head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    let (payload, rest) = rest.split_at_checked(length)?;
    (crc32fast::hash(payload) == u32::from_le_bytes([e, f, g, h])).then_some((payload, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(members: &[(&str, Option<u32>)]) -> Batch {
        let mut batch = Batch::default();
        for (key, value) in members {
            batch.put(key, *value);
        }
        batch
    }

    fn values(entries: &Entries) -> Vec<(&str, &str)> {
        entries.iter().map(|(key, value)| (&**key, value.get())).collect()
    }

    #[test]
    fn the_newest_value_counts_wherever_the_file_is_torn() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("state");
        let mut file = StateFile::new(path.clone());
        file.write_whole(batch(&[("a", Some(1)), ("b", Some(2))])).expect("written");
        let first = std::fs::metadata(&path).expect("file").len() as usize;
        file.append(batch(&[("a", Some(3)), ("b", None), ("c", Some(4))])).expect("appended");
        let bytes = std::fs::read(&path).expect("file");
        for cut in 0..=bytes.len() {
            let read = parse(&bytes[..cut]);
            match read {
                Err(Unusable::Foreign) => assert!(cut < FORMAT.len()),
                Err(Unusable::Damaged) => assert!((FORMAT.len()..first).contains(&cut), "{cut}"),
                Err(other) => panic!("{cut}: {other}"),
                Ok(entries) if cut == bytes.len() => assert_eq!(values(&entries), [("a", "3"), ("c", "4")]),
                Ok(entries) => assert_eq!(values(&entries), [("a", "1"), ("b", "2")], "{cut}"),
            }
        }
        // A byte that is not what was written ends the reading, never more.
        for at in first..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x20;
            assert_eq!(values(&parse(&bytes).expect("the first frame")), [("a", "1"), ("b", "2")], "{at}");
        }
    }

    #[test]
    fn other_files_are_told_apart() {
        assert_eq!(parse(b"").err(), Some(Unusable::Foreign));
        assert_eq!(parse(b"{}").err(), Some(Unusable::Foreign));
        assert_eq!(parse(b"airdock state 3\nwhatever").err(), Some(Unusable::Newer("3".into())));
        assert_eq!(parse(FORMAT).err(), Some(Unusable::Damaged));
    }

    #[test]
    fn it_is_written_anew_when_much_was_appended() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("state");
        let mut file = StateFile::new(path.clone());
        assert!(file.wants_whole());
        file.write_whole(batch(&[("a", Some(1))])).expect("written");
        let mut large = Batch::default();
        large.put("b", Some("x".repeat(APPENDED as usize + 100)));
        file.append(large).expect("appended");
        assert!(file.wants_whole());
        file.write_whole(batch(&[("a", Some(2))])).expect("written");
        assert!(!file.wants_whole());
        file.append(batch(&[("c", Some(3))])).expect("appended");
        let entries = read(&path).expect("readable").expect("there").expect("usable");
        assert_eq!(values(&entries), [("a", "2"), ("c", "3")]);
        file.remove();
        assert!(read(&path).expect("readable").is_none());
    }
}
