//! Where a child that cannot get as far as its program says why: words in memory shared with the parent.
//!
//! A slot costs no descriptor and no read on the way of success, unlike a close-on-exec pipe.

use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::failure::{ExecFailure, Step};

const PAGE: usize = 4096;
const SLOTS_PER_PAGE: usize = PAGE / size_of::<AtomicU64>();
/// 65,536 children at once: more than the kernel's default `pid_max`.
const MAX_PAGES: usize = 128;

/// A growing set of slots, shared by everything that spawns.
#[derive(Debug, Default)]
pub struct StepSlots {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    pages: Vec<Page>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Page(NonNull<AtomicU64>);

// SAFETY: the page is reached only through atomics, and unmapped only when nobody holds the set any more.
unsafe impl Send for Page {}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped with this length in `Page::map`; slots keep the set alive, so nobody uses it any more.
        // A failure would leave the page mapped, which harms nobody.
        let _ = unsafe { munmap(self.0.cast(), PAGE) };
    }
}

impl Page {
    fn map() -> Result<Page, Errno> {
        let length = NonZeroUsize::new(PAGE).ok_or(Errno::EINVAL)?;
        // SAFETY: a new anonymous mapping touches no existing memory.
        let address = unsafe {
            mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED)
        }?;
        Ok(Page(address.cast()))
    }
}

impl StepSlots {
    pub fn new() -> Arc<StepSlots> {
        Arc::default()
    }

    /// A cleared slot; free again when all its clones are dropped. `EAGAIN`: all 65,536 are in use.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Slot, Errno> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.free.is_empty() {
            if inner.pages.len() == MAX_PAGES {
                return Err(Errno::EAGAIN);
            }
            inner.pages.push(Page::map()?);
            let first = (inner.pages.len() - 1) * SLOTS_PER_PAGE;
            inner.free.extend((first..first + SLOTS_PER_PAGE).rev().map(|i| i as u32));
        }
        let index = inner.free.pop().ok_or(Errno::EAGAIN)?;
        let page = &inner.pages[index as usize / SLOTS_PER_PAGE];
        // SAFETY: the offset is below SLOTS_PER_PAGE, hence inside of the page.
        let word = unsafe { page.0.add(index as usize % SLOTS_PER_PAGE) };
        let taken = Taken { set: Arc::clone(self), index, word };
        taken.word().store(0, Ordering::Relaxed);
        Ok(Slot(Arc::new(taken)))
    }
}

/// One child's word. Keep it as long as somebody asks; a child that uses svd's memory has its own clone (in the arena).
#[derive(Clone, Debug)]
pub struct Slot(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    set: Arc<StepSlots>,
    index: u32,
    word: NonNull<AtomicU64>,
}

// SAFETY: the word is atomic, and its page lives as long as `set`.
unsafe impl Send for Taken {}
// SAFETY: as above.
unsafe impl Sync for Taken {}

impl Taken {
    fn word(&self) -> &AtomicU64 {
        // SAFETY: `word` points into a page that `set` keeps mapped.
        unsafe { self.word.as_ref() }
    }
}

impl Slot {
    pub(super) fn word(&self) -> &AtomicU64 {
        self.0.word()
    }

    /// What failed between fork and exec; `None` if the program was started (or nothing has failed yet).
    ///
    /// Ask after the child ended: an exit with 127 is the program's own if there is nothing here.
    pub fn exec_failure(&self) -> Option<ExecFailure> {
        decode(self.word().load(Ordering::Acquire))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut inner = self.set.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.free.push(self.index);
    }
}

/// errno in the low half, the detail in 24 bits above it, the step on top: zero says that nothing failed.
pub(super) fn encode(step: Step, errno: i32, detail: i32) -> u64 {
    (step as u64) << 56 | (u64::from(detail as u32) & 0xff_ffff) << 32 | u64::from(errno as u32)
}

fn decode(word: u64) -> Option<ExecFailure> {
    Some(ExecFailure {
        step: Step::from_number((word >> 56) as u8)?,
        errno: word as u32 as i32,
        detail: (word >> 32) as u32 & 0xff_ffff,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_grow_by_pages_and_are_used_again() {
        let slots = StepSlots::new();
        let taken: Vec<Slot> = (0..SLOTS_PER_PAGE + 1).map(|_| slots.take().expect("a slot")).collect();
        assert_eq!(slots.inner.lock().expect("lock").pages.len(), 2);
        taken[3].word().store(encode(Step::Limit, 22, 7), Ordering::Release);
        let failure = taken[3].exec_failure().expect("a failure");
        assert_eq!((failure.step, failure.errno, failure.detail), (Step::Limit, 22, 7));
        assert!(taken[4].exec_failure().is_none());
        drop(taken);
        let again = slots.take().expect("a slot");
        let theirs = again.clone();
        let index = again.0.index;
        drop(again);
        let other = slots.take().expect("a slot");
        assert_ne!(other.0.index, index, "somebody has it still");
        drop((theirs, other));
        let again = slots.take().expect("a slot");
        assert!(again.exec_failure().is_none(), "a slot is cleared when taken");
        assert_eq!(slots.inner.lock().expect("lock").pages.len(), 2);
    }
}
