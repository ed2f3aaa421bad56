//! Which files a captured stream has, and what a file's name says about it.
//!
//! In the service's folder: `output.log` (now written), `output.log.1` (the one before), `output.log.2.gz` … and hidden
//! beside them `.output.log.INODE.idx` (times and offsets), `.output.log.new` (the next file, until it gets its name)
//! and `.output.log.SEQUENCE.tmp` (a compression that is under way).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What a pipe carries, and so which file it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Stream {
    /// stdout and stderr in the order of writing: `output.log`.
    Joined,
    /// `stdout.log`.
    Stdout,
    /// `stderr.log`.
    Stderr,
}

impl Stream {
    /// Name of the file in the service's log folder.
    pub fn file_name(self) -> &'static str {
        match self {
            Stream::Joined => "output.log",
            Stream::Stdout => "stdout.log",
            Stream::Stderr => "stderr.log",
        }
    }

    /// The word that a JSON line carries.
    pub fn word(self) -> &'static str {
        match self {
            Stream::Joined => "output",
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }

    pub(super) fn number(self) -> usize {
        match self {
            Stream::Joined => 0,
            Stream::Stdout => 1,
            Stream::Stderr => 2,
        }
    }
}

/// Number of values of [`Stream`].
pub(super) const STREAMS: usize = 3;

/// The names of one stream's files.
#[derive(Clone, Debug)]
pub(super) struct Names {
    dir: PathBuf,
    base: &'static str,
}

/// What a file of the folder is.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    Rotated { number: u32, gz: bool },
    Index { inode: u64 },
    Leftover,
}

/// A rotated number's files. Both exist for an instant while the compressed file takes the plain one's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Slot {
    pub plain: bool,
    pub gz: bool,
}

/// What the folder holds of one stream.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub rotated: BTreeMap<u32, Slot>,
    pub indexes: Vec<u64>,
    pub leftovers: Vec<PathBuf>,
}

impl Names {
    pub fn new(dir: &Path, stream: Stream) -> Names {
        Names { dir: dir.to_path_buf(), base: stream.file_name() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn current(&self) -> PathBuf {
        self.dir.join(self.base)
    }

    /// `number` 0 is the current file.
    pub fn numbered(&self, number: u32, gz: bool) -> PathBuf {
        let dot_gz = if gz { ".gz" } else { "" };
        match number {
            0 => self.dir.join(format!("{}{dot_gz}", self.base)),
            n => self.dir.join(format!("{}.{n}{dot_gz}", self.base)),
        }
    }

    /// Named after the inode, so that it stays with its file however that one is renamed, by us or by others.
    pub fn index(&self, inode: u64) -> PathBuf {
        self.dir.join(format!(".{}.{inode}.idx", self.base))
    }

    /// The next current file before it gets its name.
    pub fn fresh(&self) -> PathBuf {
        self.dir.join(format!(".{}.new", self.base))
    }

    pub fn temporary(&self, sequence: u64) -> PathBuf {
        self.dir.join(format!(".{}.{sequence}.tmp", self.base))
    }

    fn role(&self, name: &str) -> Option<Role> {
        if let Some(rest) = name.strip_prefix('.') {
            let rest = rest.strip_prefix(self.base)?.strip_prefix('.')?;
            if let Some(inode) = rest.strip_suffix(".idx") {
                let inode = inode.parse().ok()?;
                return Some(Role::Index { inode });
            }
            let ours = rest == "new" || rest.strip_suffix(".tmp").is_some_and(|n| n.parse::<u64>().is_ok());
            return ours.then_some(Role::Leftover);
        }
        let rest = name.strip_prefix(self.base)?.strip_prefix('.')?;
        let (number, gz) = match rest.strip_suffix(".gz") {
            Some(number) => (number, true),
            None => (rest, false),
        };
        // "1" but neither "01" nor "+1": only what `numbered` would have written.
        let parsed: u32 = number.parse().ok()?;
        (parsed > 0 && parsed.to_string() == number).then_some(Role::Rotated { number: parsed, gz })
    }

    /// Reads the folder; one that does not exist is empty.
    pub fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        let entries = match std::fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(listing),
            Err(e) => return Err(e),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            match name.to_str().and_then(|n| self.role(n)) {
                Some(Role::Rotated { number, gz }) => {
                    let slot = listing.rotated.entry(number).or_default();
                    slot.gz |= gz;
                    slot.plain |= !gz;
                }
                Some(Role::Index { inode }) => listing.indexes.push(inode),
                Some(Role::Leftover) => listing.leftovers.push(entry.path()),
                None => {}
            }
        }
        Ok(listing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_role() {
        let names = Names::new(Path::new("/x"), Stream::Joined);
        assert_eq!(names.role("output.log.12.gz"), Some(Role::Rotated { number: 12, gz: true }));
        assert_eq!(names.role("output.log.1"), Some(Role::Rotated { number: 1, gz: false }));
        assert_eq!(names.role(".output.log.77.idx"), Some(Role::Index { inode: 77 }));
        assert_eq!(names.role(".output.log.new"), Some(Role::Leftover));
        assert_eq!(names.role(".output.log.3.tmp"), Some(Role::Leftover));
        for foreign in [
            "output.log",
            "output.log.0",
            "output.log.01",
            "output.log.1.xz",
            "output.log.2026-11-22",
            "stdout.log.1",
            ".output.log.x.tmp",
        ] {
            assert_eq!(names.role(foreign), None, "{foreign}");
        }
    }
}
