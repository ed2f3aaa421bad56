//! Where everything lies that a child works from: one mapping of its own, so that the heap can stay behind at the fork
//! ([`crate::sys::memory::Heap`]).

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};

/// More than the kernel takes as arguments and environment with the usual limit of the stack (2 MiB); a page that was never
/// used costs nothing.
const SIZE: usize = 8 << 20;

/// What is used beyond this is given back after the fork.
const KEPT: usize = 64 << 10;

/// A bump allocator: what is copied into it stays until all is cleared.
#[derive(Debug)]
pub(super) struct Arena {
    start: NonNull<u8>,
    used: Cell<usize>,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for Arena {}

impl Arena {
    pub(super) fn map() -> Result<Arena, Errno> {
        let length = NonZeroUsize::new(SIZE).ok_or(Errno::EINVAL)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let start = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        Ok(Arena { start: start.cast(), used: Cell::new(0) })
    }

    /// A copy of the values.
    ///
    /// # Errors
    /// `E2BIG`: more than 8 MiB in all.
    #[expect(clippy::mut_from_ref, reason = "every call hands out memory that no other has")]
    pub(super) fn copy<T: Copy>(&self, values: &[T]) -> Result<&mut [T], Errno> {
        let from = self.used.get().next_multiple_of(align_of::<T>());
        let end = from.checked_add(size_of_val(values)).filter(|end| *end <= SIZE).ok_or(Errno::E2BIG)?;
        self.used.set(end);
        // SAFETY: `from..end` lies inside of the mapping, is aligned (the mapping is, to a page), belongs to nobody else until
        // `clear`, which needs the arena for itself, and is filled before it is seen.
        unsafe {
            let to = self.start.add(from).cast::<T>();
            to.copy_from_nonoverlapping(NonNull::from(values).cast(), values.len());
            Ok(std::slice::from_raw_parts_mut(to.as_ptr(), values.len()))
        }
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        if self.used.replace(0) > KEPT {
            // SAFETY: inside of the mapping, of which nothing is borrowed; it reads as zeros afterwards.
            // A failure would cost memory only.
            let _ = unsafe { madvise(self.start.add(KEPT).cast(), SIZE - KEPT, MmapAdvise::MADV_DONTNEED) };
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped with this length, and nothing of it is borrowed. A failure would leave it mapped.
        let _ = unsafe { munmap(self.start.cast(), SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_apart_aligned_and_bounded() {
        let mut arena = Arena::map().expect("a mapping");
        let bytes = arena.copy(b"abc").expect("room");
        let words = arena.copy(&[1_u64, 2]).expect("room");
        let more = arena.copy(b"d").expect("room");
        assert_eq!((&*bytes, &*words, &*more), (&b"abc"[..], &[1, 2][..], &b"d"[..]));
        assert!(words.as_ptr().is_aligned());
        let large = vec![7_u8; SIZE - 64];
        assert_eq!(arena.copy(&large).expect("room").last(), Some(&7));
        assert_eq!(arena.copy(&large).err(), Some(Errno::E2BIG));
        arena.clear();
        assert_eq!(arena.copy(&large).expect("room again").first(), Some(&7));
    }
}
