//! Where the state goes while its file cannot be written: a file in memory, of which the guardian has a descriptor. It
//! survives svd, but not svd and its guardian together.

use super::file::{Batch, Entries, Unusable, parse, whole};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// The descriptor's name at the guardian.
pub const KEPT: &str = "state";

/// Written anew when it has grown to so much more than twice what it was at first.
const APPENDED: u64 = 8 << 20;

/// It is newer than the file in the run directory as long as it has any content.
#[derive(Debug)]
pub struct Aside {
    file: File,
    length: u64,
    whole: u64,
}

impl Aside {
    /// A new one, with this content.
    ///
    /// # Errors
    /// `memfd_create(2)`, or there is no memory.
    pub fn new(content: Batch) -> io::Result<Aside> {
        let file = File::from(memfd_create(c"airdock-state", MFdFlags::MFD_CLOEXEC)?);
        let bytes = whole(content);
        file.write_all_at(&bytes, 0)?;
        let length = bytes.len() as u64;
        Ok(Aside { file, length, whole: length })
    }

    /// What an earlier svd has left at the guardian.
    pub fn left(descriptor: OwnedFd) -> Aside {
        Aside { file: descriptor.into(), length: 0, whole: 0 }
    }

    /// What it has; `None`: nothing.
    ///
    /// # Errors
    /// Outside: it cannot be read. Inside: why it is of no use.
    pub fn read(&self) -> io::Result<Option<Result<Entries, Unusable>>> {
        let mut bytes = vec![0; usize::try_from(self.file.metadata()?.len()).unwrap_or(0)];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok((!bytes.is_empty()).then(|| parse(&bytes)))
    }

    /// Adds what has changed. A frame that is there in part counts as none.
    ///
    /// # Errors
    /// There is no memory: it is to be given up, as it is not the newest any more.
    pub fn append(&mut self, batch: Batch) -> io::Result<()> {
        let frame = batch.frame();
        self.file.write_all_at(&frame, self.length)?;
        self.length += frame.len() as u64;
        Ok(())
    }

    /// Is it an earlier svd's, or has so much been appended that it should be written anew?
    pub fn wants_whole(&self) -> bool {
        self.whole == 0 || self.length > 2 * self.whole + APPENDED
    }

    /// The file in the run directory is the newest again. At once, and not only when the guardian has let go of it.
    pub fn give_up(self) {
        // Memory is given back; what could fail?
        let _ = self.file.set_len(0);
    }
}

impl AsFd for Aside {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(key: &str, value: u32) -> Batch {
        let mut batch = Batch::default();
        batch.put(key, Some(value));
        batch
    }

    #[test]
    fn the_next_one_reads_what_was_added_until_it_is_given_up() {
        let mut aside = Aside::new(batch("a", 1)).expect("memory");
        aside.append(batch("b", 2)).expect("memory");
        assert!(!aside.wants_whole());
        let left = Aside::left(aside.as_fd().try_clone_to_owned().expect("a copy"));
        assert!(left.wants_whole());
        let entries = left.read().expect("readable").expect("content").expect("usable");
        assert_eq!((entries["a"].get(), entries["b"].get()), ("1", "2"));
        aside.give_up();
        assert!(left.read().expect("readable").is_none());
    }
}
