//! What is shared with a generation's processes besides sockets: the gate, and words to count in.

use std::ffi::CStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A gate that is opened once for everybody: readable from then on, as nobody ever reads it.
#[derive(Debug)]
pub struct Gate {
    event: EventFd,
}

impl Gate {
    pub fn new() -> Result<Gate, Errno> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let event = EventFd::from_value_and_flags(0, flags)?;
        Ok(Gate { event })
    }

    /// One that was kept by another process.
    pub fn from_fd(fd: OwnedFd) -> Gate {
        // SAFETY: an eventfd is used by read and write only, which are safe on any descriptor.
        Gate { event: unsafe { EventFd::from_owned_fd(fd) } }
    }

    /// Opens it; opening it again changes nothing.
    pub fn open(&self) -> Result<(), Errno> {
        match self.event.write(1) {
            // The count is full: it is as open as can be.
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// A descriptor for the children: they poll it for reading, and never read.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.event.as_fd().try_clone_to_owned()
    }
}

/// 64-bit words in memory that processes share through a descriptor (`memfd_create(2)`), zero at first.
///
/// Its size is sealed: a process that holds it can write nonsense, but cannot shrink it under us.
#[derive(Debug)]
pub struct SharedWords {
    fd: OwnedFd,
    words: NonNull<AtomicU64>,
    count: NonZeroUsize,
}

// SAFETY: the words are reached only as atomics, and the mapping belongs to this value until it is dropped.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// `EINVAL` if `count` is 0 or too large.
    pub fn new(name: &CStr, count: usize) -> Result<SharedWords, Errno> {
        let bytes = count.checked_mul(8).ok_or(Errno::EINVAL)?;
        let length = i64::try_from(bytes).map_err(|_| Errno::EINVAL)?;
        let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        nix::unistd::ftruncate(&fd, length)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
        SharedWords::map(fd, count)
    }

    /// Maps one that was kept across an exec or by another process. Refuses a file that is smaller or not sealed.
    pub fn from_fd(fd: OwnedFd, count: usize) -> Result<SharedWords, Errno> {
        let seals = fcntl(&fd, FcntlArg::F_GET_SEALS)?;
        let size = nix::sys::stat::fstat(&fd)?.st_size;
        let wanted = count.checked_mul(8).and_then(|n| i64::try_from(n).ok());
        if seals & SealFlag::F_SEAL_SHRINK.bits() == 0 || wanted.is_none_or(|n| n > size) {
            return Err(Errno::EINVAL);
        }
        SharedWords::map(fd, count)
    }

    fn map(fd: OwnedFd, count: usize) -> Result<SharedWords, Errno> {
        let count = NonZeroUsize::new(count).ok_or(Errno::EINVAL)?;
        let eight = NonZeroUsize::MIN.saturating_add(7);
        let length = count.checked_mul(eight).ok_or(Errno::EINVAL)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping touches no existing memory; the file has the size and is sealed against shrinking.
        let address = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &fd, 0) }?;
        Ok(SharedWords { fd, words: address.cast(), count })
    }

    /// How many words there are.
    pub fn count(&self) -> usize {
        self.count.get()
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= self.count.get() {
            return None;
        }
        // SAFETY: the index is inside of the mapping, which is page-aligned and lives as long as `self`.
        Some(unsafe { self.words.add(index).as_ref() })
    }

    /// One word, whoever writes it meanwhile; `None` beyond the end.
    pub fn load(&self, index: usize) -> Option<u64> {
        self.word(index).map(|word| word.load(Ordering::Acquire))
    }

    /// Writes one word; `false` beyond the end.
    pub fn store(&self, index: usize, value: u64) -> bool {
        self.word(index).map(|word| word.store(value, Ordering::Release)).is_some()
    }

    /// Adds to one word and gives its former value; `None` beyond the end.
    pub fn add(&self, index: usize, value: u64) -> Option<u64> {
        self.word(index).map(|word| word.fetch_add(value, Ordering::AcqRel))
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and no reference outlives `self`. A failure would leave it mapped.
        let _ = unsafe { munmap(self.words.cast(), self.count.get() * 8) };
    }
}

impl AsFd for SharedWords {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate_stays_open_for_everybody() {
        let gate = Gate::new().expect("an eventfd");
        let (one, other) = (gate.descriptor().expect("dup"), gate.descriptor().expect("dup"));
        let ready = |fd: &OwnedFd| {
            let mut poll = crate::sys::poll::Poll::new(1).expect("epoll");
            let mut ready = Vec::new();
            poll.add(fd, crate::sys::poll::Interest::Read, 1).expect("add");
            poll.wait(Some(0), &mut ready).expect("wait");
            !ready.is_empty()
        };
        assert!(!ready(&one));
        gate.open().expect("open");
        gate.open().expect("open again");
        assert!(ready(&one) && ready(&other) && ready(&one));
    }

    #[test]
    fn words_are_shared_and_cannot_shrink() {
        let words = SharedWords::new(c"counts", 16).expect("memfd");
        assert_eq!(words.load(15), Some(0));
        assert_eq!(words.load(16), None);
        assert!(!words.store(16, 1));
        let fd = words.as_fd().try_clone_to_owned().expect("dup");
        assert_eq!(nix::unistd::ftruncate(&fd, 0), Err(Errno::EPERM));
        let file = std::fs::File::from(fd.try_clone().expect("dup"));
        std::os::unix::fs::FileExt::write_at(&file, &7_u64.to_ne_bytes(), 24).expect("write");
        assert_eq!(words.load(3), Some(7));
        let other = SharedWords::from_fd(fd, 16).expect("map again");
        assert_eq!(other.add(3, 2), Some(7));
        assert_eq!(words.load(3), Some(9));
        let fd = words.as_fd().try_clone_to_owned().expect("dup");
        assert!(SharedWords::from_fd(fd, 1 << 20).is_err());
    }
}
