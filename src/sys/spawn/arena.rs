//! Where everything lies that a child works from: a mapping of its own, which svd does not touch while a child uses it
//! ([`super::lent`]), so that the heap can stay behind where a child is forked ([`crate::sys::memory::Heap`]).

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};

use super::Slot;

/// More than the kernel takes as arguments and environment with the usual limit of the stack (2 MiB); a page that was never
/// used costs nothing.
const SIZE: usize = 8 << 20;

/// At its end: the stack of a child that has none of its own.
const STACK: usize = 128 << 10;

/// Between the two, for a stack that is too short to end the child.
const GUARD: usize = 64 << 10;

const ROOM: usize = SIZE - STACK - GUARD;

/// The first word: not zero while a child uses the arena.
const HEAD: usize = 64;

/// What is used beyond this is given back after the fork.
const KEPT: usize = 64 << 10;

/// A bump allocator: what is copied into it stays until all is cleared.
#[derive(Debug)]
pub(super) struct Arena {
    start: NonNull<u8>,
    used: Cell<usize>,
    /// Where the child says what failed: not another's, and mapped, for as long as it may.
    slot: ManuallyDrop<Option<Slot>>,
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for Arena {}

impl Arena {
    pub(super) fn map() -> Result<Arena, Errno> {
        let length = NonZeroUsize::new(SIZE).ok_or(Errno::EINVAL)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let start = unsafe { mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
        let arena = Arena { start: start.cast(), used: Cell::new(HEAD), slot: ManuallyDrop::new(None) };
        // A huge one would be 2 MiB for ever, to be filled with zeroes while svd waits. A kernel without them refuses.
        // SAFETY: inside of the mapping; changes nothing that can be read.
        let _ = unsafe { madvise(start, SIZE, MmapAdvise::MADV_NOHUGEPAGE) };
        // SAFETY: inside of the mapping, of which nothing is used yet.
        unsafe { mprotect(arena.start.add(ROOM).cast(), GUARD, ProtFlags::PROT_NONE) }?;
        Ok(arena)
    }

    /// Which the kernel sets to zero when a child that was lent this arena has executed its program, or ended
    /// (`CLONE_CHILD_CLEARTID`).
    pub(super) fn lent(&self) -> &AtomicU32 {
        // SAFETY: the first word of the mapping, aligned, and used as this alone.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().cast()) }
    }

    pub(super) fn is_lent(&self) -> bool {
        self.lent().load(Ordering::Acquire) != 0
    }

    /// The child that it is lent to next writes there.
    pub(super) fn keep(&mut self, slot: Slot) {
        *self.slot = Some(slot);
    }

    /// The lowest address of the stack, and its size in bytes.
    pub(super) fn stack(&self) -> (*mut u8, usize) {
        // SAFETY: inside of the mapping.
        (unsafe { self.start.add(SIZE - STACK) }.as_ptr(), STACK)
    }

    /// The value, moved here; it is never dropped.
    ///
    /// # Errors
    /// As [`Arena::copy`].
    #[expect(clippy::mut_from_ref, reason = "every call hands out memory that no other has")]
    pub(super) fn place<T>(&self, value: T) -> Result<&mut T, Errno> {
        let at = self.reserve(size_of::<T>(), align_of::<T>())?.cast::<T>();
        // SAFETY: `reserve` gave aligned memory of this size that nobody else has.
        unsafe {
            at.write(value);
            Ok(&mut *at.as_ptr())
        }
    }

    fn reserve(&self, size: usize, align: usize) -> Result<NonNull<u8>, Errno> {
        let from = self.used.get().next_multiple_of(align);
        let end = from.checked_add(size).filter(|end| *end <= ROOM).ok_or(Errno::E2BIG)?;
        self.used.set(end);
        // SAFETY: `from..end` lies inside of the mapping.
        Ok(unsafe { self.start.add(from) })
    }

    /// A copy of the values.
    ///
    /// # Errors
    /// `E2BIG`: more than 8 MiB in all.
    #[expect(clippy::mut_from_ref, reason = "every call hands out memory that no other has")]
    pub(super) fn copy<T: Copy>(&self, values: &[T]) -> Result<&mut [T], Errno> {
        let to = self.reserve(size_of_val(values), align_of::<T>())?.cast::<T>();
        // SAFETY: aligned memory of this size that belongs to nobody else until `clear`, which needs the arena for itself; it
        // is filled before it is seen.
        unsafe {
            to.copy_from_nonoverlapping(NonNull::from(values).cast(), values.len());
            Ok(std::slice::from_raw_parts_mut(to.as_ptr(), values.len()))
        }
    }

    /// Forgets everything. For an arena that is not lent.
    pub(super) fn clear(&mut self) {
        *self.slot = None;
        if self.used.replace(HEAD) > KEPT {
            // SAFETY: inside of the mapping, of which nothing is borrowed; it reads as zeros afterwards.
            // A failure would cost memory only.
            let _ = unsafe { madvise(self.start.add(KEPT).cast(), ROOM - KEPT, MmapAdvise::MADV_DONTNEED) };
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.is_lent() {
            // A child would lose its memory: it stays mapped until this process ends, and so does the slot.
            return;
        }
        // SAFETY: dropped once, here.
        unsafe { ManuallyDrop::drop(&mut self.slot) };
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
        let large = vec![7_u8; ROOM - 128];
        assert_eq!(arena.copy(&large).expect("room").last(), Some(&7));
        assert_eq!(arena.copy(&large).err(), Some(Errno::E2BIG));
        arena.clear();
        assert_eq!(arena.copy(&large).expect("room again").first(), Some(&7));
    }
}
