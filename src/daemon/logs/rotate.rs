//! Giving files their next names. Only the log thread renames or removes files, so that no two do it at once; nothing is
//! ever truncated, so that whoever holds a file open keeps all of it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::index;
use super::names::{Names, Slot};

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a file of ours and its index.
fn remove(names: &Names, path: &Path) -> io::Result<()> {
    let inode = match fs::symlink_metadata(path) {
        Ok(meta) => meta.ino(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    missing_is_fine(fs::remove_file(path))?;
    missing_is_fine(fs::remove_file(names.index(inode)))
}

/// Moves the current file to number 1 and those before it up by one, as far as numbers are taken without a gap; removes
/// what is beyond `keep`. Where something fails, no file has lost its content and the next call goes on.
pub(super) fn shift(names: &Names, keep: u32) -> io::Result<()> {
    let rotated = names.list()?.rotated;
    for (&number, slot) in rotated.range(keep.max(1)..) {
        // Whoever moves to keep + 1 would be removed at once.
        remove_slot(names, number, *slot)?;
    }
    if keep == 0 {
        return remove(names, &names.current());
    }
    let free = (1..=keep).find(|n| *n == keep || !rotated.contains_key(n)).unwrap_or(keep);
    for number in (1..free).rev() {
        let slot = rotated.get(&number).copied().unwrap_or_default();
        for (exists, gz) in [(slot.gz, true), (slot.plain, false)] {
            if exists {
                missing_is_fine(fs::rename(names.numbered(number, gz), names.numbered(number + 1, gz)))?;
            }
        }
    }
    missing_is_fine(fs::rename(names.current(), names.numbered(1, false)))
}

fn remove_slot(names: &Names, number: u32, slot: Slot) -> io::Result<()> {
    for (exists, gz) in [(slot.plain, false), (slot.gz, true)] {
        if exists {
            remove(names, &names.numbered(number, gz))?;
        }
    }
    Ok(())
}

/// Removes rotated files beyond `keep`: the limit may have been lowered.
pub(super) fn prune(names: &Names, keep: u32) -> io::Result<()> {
    for (number, slot) in names.list()?.rotated.range(keep.saturating_add(1).max(1)..) {
        remove_slot(names, *number, *slot)?;
    }
    Ok(())
}

/// What [`tidy`] has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tidied {
    /// The highest sequence number that any file has had.
    pub highest: u64,
    /// The newest generation that has a mark.
    pub marked: u64,
    pub interrupted: Option<Interrupted>,
}

/// What has become of a rotation in whose midst svd was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interrupted {
    /// The old file has its number; the next byte makes a new one.
    Done,
    /// The old file is written on, until the rotation that is due begins again.
    Undone,
}

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Interrupted::Done => "it is complete",
            Interrupted::Undone => "it was taken back, and is done with the next lines",
        })
    }
}

/// Removes what an interrupted rotation or compression left behind, and indexes without a file.
pub(super) fn tidy(names: &Names) -> io::Result<Tidied> {
    let listing = names.list()?;
    let mut alive = Vec::new();
    let mut see = |path: &Path| {
        if let Ok(meta) = fs::symlink_metadata(path) {
            alive.push(meta.ino());
        }
    };
    see(&names.current());
    for (&number, slot) in &listing.rotated {
        for (exists, gz) in [(slot.plain, false), (slot.gz, true)] {
            if exists {
                see(&names.numbered(number, gz));
            }
        }
        // Killed between the two steps that put a compressed file in a plain one's place: it is complete.
        if slot.plain && slot.gz {
            remove(names, &names.numbered(number, false))?;
        }
    }
    let fresh = fs::symlink_metadata(names.fresh()).ok().map(|meta| meta.ino());
    let interrupted = fresh.map(|_| match fs::symlink_metadata(names.current()) {
        Ok(_) => Interrupted::Undone,
        Err(_) => Interrupted::Done,
    });
    for path in &listing.leftovers {
        missing_is_fine(fs::remove_file(path))?;
    }
    let (mut highest, mut marked) = (0, 0);
    for inode in listing.indexes {
        let path = names.index(inode);
        let (sequence, mark) = index::unguarded(&path).unwrap_or_default();
        // The file of a rotation that did not come to its end never had a byte or a reader: its number is not missed.
        if Some(inode) != fresh {
            highest = highest.max(sequence);
        }
        marked = marked.max(mark);
        if !alive.contains(&inode) {
            missing_is_fine(fs::remove_file(&path))?;
        }
    }
    Ok(Tidied { highest, marked, interrupted })
}

/// The next file to compress: the oldest plain one from number 2 on (number 1 stays readable for whoever follows it by
/// name).
pub(super) fn next_to_compress(names: &Names, keep: u32) -> io::Result<Option<u32>> {
    let listing = names.list()?;
    Ok(listing.rotated.range(2..=keep.max(2)).rev().find(|(_, slot)| slot.plain && !slot.gz).map(|(n, _)| *n))
}

/// Puts the finished compression `temporary` in the place of the plain file with inode `source`, wherever that is by now.
/// False if it is gone (rotated away): then the compressed one goes as well.
pub(super) fn adopt_compressed(names: &Names, temporary: &Path, source: u64, keep: u32) -> io::Result<bool> {
    for (&number, slot) in names.list()?.rotated.range(1..=keep.max(1)) {
        let plain = names.numbered(number, false);
        if slot.plain && fs::symlink_metadata(&plain).is_ok_and(|m| m.ino() == source) {
            fs::rename(temporary, names.numbered(number, true))?;
            remove(names, &plain)?;
            return Ok(true);
        }
    }
    remove(names, temporary)?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::logs::names::Stream;
    use std::collections::BTreeMap;

    fn files(dir: &Path) -> BTreeMap<String, String> {
        fs::read_dir(dir)
            .unwrap()
            .map(|e| {
                let e = e.unwrap();
                let content = fs::read_to_string(e.path()).unwrap();
                (e.file_name().into_string().unwrap(), content)
            })
            .collect()
    }

    fn write(dir: &Path, list: &[(&str, &str)]) {
        for (name, content) in list {
            fs::write(dir.join(name), content).unwrap();
        }
    }

    fn expect(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    #[test]
    fn numbers_go_up_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names::new(dir.path(), Stream::Joined);
        write(
            dir.path(),
            &[
                ("output.log", "e"),
                ("output.log.1", "d"),
                ("output.log.2.gz", "c"),
                ("output.log.3.gz", "b"),
                ("output.log.7", "a"),
            ],
        );
        shift(&names, 3).unwrap();
        assert_eq!(
            files(dir.path()),
            expect(&[("output.log.1", "e"), ("output.log.2", "d"), ("output.log.3.gz", "c")])
        );
        write(dir.path(), &[("output.log", "f")]);
        shift(&names, 1).unwrap();
        assert_eq!(files(dir.path()), expect(&[("output.log.1", "f")]));
        write(dir.path(), &[("output.log", "g")]);
        shift(&names, 0).unwrap();
        assert_eq!(files(dir.path()), expect(&[]));
    }

    #[test]
    fn a_gap_keeps_the_older_ones_where_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names::new(dir.path(), Stream::Joined);
        write(dir.path(), &[("output.log", "c"), ("output.log.1", "b"), ("output.log.3", "a")]);
        shift(&names, 5).unwrap();
        assert_eq!(files(dir.path()), expect(&[("output.log.1", "c"), ("output.log.2", "b"), ("output.log.3", "a")]));
    }

    #[test]
    fn leftovers_go_and_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names::new(dir.path(), Stream::Joined);
        write(
            dir.path(),
            &[
                ("output.log", "c"),
                ("output.log.2", "plain"),
                ("output.log.2.gz", "whole"),
                (".output.log.9.tmp", "half"),
                (".output.log.new", ""),
                (".stdout.log.9.tmp", "another stream's"),
                ("notes.txt", "somebody's"),
            ],
        );
        let inode = fs::metadata(names.current()).unwrap().ino();
        index::Index::create(&names.index(inode), 5, 0).unwrap();
        index::Index::create(&names.index(1), 8, 0).unwrap();
        let found = Tidied { highest: 8, marked: 0, interrupted: Some(Interrupted::Undone) };
        assert_eq!(tidy(&names).unwrap(), found);
        let left: Vec<String> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let mut left: Vec<&str> = left.iter().map(String::as_str).collect();
        left.sort_unstable();
        let own = format!(".output.log.{inode}.idx");
        assert_eq!(left, [own.as_str(), ".stdout.log.9.tmp", "notes.txt", "output.log", "output.log.2.gz"]);
        assert_eq!(tidy(&names).unwrap().interrupted, None);
        write(dir.path(), &[(".output.log.new", "")]);
        fs::rename(names.current(), names.numbered(1, false)).unwrap();
        assert_eq!(tidy(&names).unwrap().interrupted, Some(Interrupted::Done));
    }
}
