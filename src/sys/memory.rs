//! Giving back memory that only the start needed.

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use std::io;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

/// One heap for all threads: the few that svd has seldom allocate, and each heap of its own keeps pages.
///
/// To be called before there are other threads; `mallopt(3)`.
///
/// What is large gets a mapping of its own, always (the allocator would learn otherwise to take it from the heap): it goes
/// back to the kernel as a whole, and of a buffer that is not used no page is there.
pub fn one_heap() {
    // SAFETY: sets numbers of the allocator's.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Bytes.
const LARGE: libc::c_int = 64 << 10;

/// Returns free heap pages to the kernel, and lets go of the program's own pages of code and constants: what is still
/// used comes back from the page cache when it is next needed, by minor faults; what only the start used does not.
///
/// `malloc_trim(3)`, `madvise(2)` with `MADV_DONTNEED`.
pub fn trim() {
    // Before the heap is trimmed, as it takes some of that.
    let files = unchanged_files();
    // SAFETY: no arguments that could be wrong.
    unsafe { libc::malloc_trim(0) };
    for (start, length) in files {
        // SAFETY: a mapping of a file that cannot be written to and of which no page was changed (relocated), and which stays, as
        // nothing here unmaps files or closes libraries, so that nothing else can have its place by now: dropping its
        // pages changes nothing that can be read, as they are read from the file again.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Is it to be trimmed before the thread sleeps?
static DUE: AtomicBool = AtomicBool::new(false);

/// Has [`trim`] called by [`before_sleep`]: what runs until then would come back at once.
pub fn trim_before_sleep() {
    DUE.store(true, Ordering::Relaxed);
}

/// For the loop's thread, when it has nothing left to do.
pub fn before_sleep() {
    if DUE.swap(false, Ordering::Relaxed) {
        trim();
    }
}

/// Zeroes outside of the heap, of which only pages that were written to take memory.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    length: usize,
}

impl Default for Pages {
    /// None.
    fn default() -> Pages {
        Pages { start: NonNull::dangling(), length: 0 }
    }
}

// SAFETY: the mapping belongs to this value alone.
unsafe impl Send for Pages {}

impl Pages {
    /// # Errors
    /// Of `mmap(2)`.
    pub fn map(length: NonZeroUsize) -> io::Result<Pages> {
        // SAFETY: a new anonymous mapping touches no existing memory.
        let start = unsafe {
            mmap_anonymous(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
        }?;
        Ok(Pages { start: start.cast(), length: length.get() })
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped with this length, readable, and zero or written by whoever had the only reference.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and this is the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: mapped with this length, and nothing of it is borrowed. A failure would leave it mapped.
            let _ = unsafe { munmap(self.start.cast(), self.length) };
        }
    }
}

/// The heap of `brk(2)`, which children that execute a program at once do not need.
///
/// A fork copies the page tables of what it takes along, and every page of it that is changed afterwards costs a fault and a
/// copy as long as a child is there.
#[derive(Debug)]
pub struct Heap {
    start: usize,
    /// As far as it is marked.
    marked: usize,
}

impl Heap {
    /// `None` where there is no such heap, or where it holds more than what the allocator gave out (a statically linked C
    /// library keeps the threads' own variables there).
    pub fn find() -> Option<Heap> {
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let line = maps.lines().find(|line| line.ends_with("[heap]"))?;
        let start = usize::from_str_radix(line.split_once('-')?.0, 16).ok()?;
        // SAFETY: no arguments; the address is of this thread's own variable.
        let errno = unsafe { libc::__errno_location() } as usize;
        (!(start..end_of_heap()).contains(&errno)).then_some(Heap { start, marked: start })
    }

    /// Children that are forked from now on have nothing of it (`madvise(2)`, `MADV_DONTFORK`): one that looks there dies.
    pub fn leave_behind(&mut self) {
        let end = end_of_heap();
        if end > self.marked {
            let start = self.start as *mut libc::c_void;
            // SAFETY: changes nothing in this process. A failure leaves the heap to be copied, as it always is.
            unsafe { libc::madvise(start, end - self.start, libc::MADV_DONTFORK) };
        }
        // Where it has become smaller, what it grows by again is not marked.
        self.marked = end;
    }
}

fn end_of_heap() -> usize {
    // SAFETY: an increment of zero only asks.
    unsafe { libc::sbrk(0) as usize }
}

/// Mappings of files that are not writable and have no page of their own, by `/proc/self/smaps`.
fn unchanged_files() -> Vec<(usize, usize)> {
    let Ok(text) = std::fs::read_to_string("/proc/self/smaps") else { return Vec::new() };
    parse(&text)
}

fn parse(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        match line.split_once(':') {
            Some((key, value)) if key.bytes().all(|b| b.is_ascii_alphabetic() || b == b'_') => {
                if key == "Anonymous" && value.trim() == "0 kB" {
                    found.extend(current.take());
                }
            }
            _ => current = mapping(line),
        }
    }
    found
}

fn mapping(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, permissions) = (words.next()?, words.next()?);
    let path = words.nth(3)?;
    if !matches!(permissions, "r-xp" | "r--p") || !path.starts_with('/') {
        return None;
    }
    let (from, to) = range.split_once('-')?;
    let from = usize::from_str_radix(from, 16).ok()?;
    Some((from, usize::from_str_radix(to, 16).ok()?.checked_sub(from)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_file_still_has_is_let_go() {
        let smaps = "\
55d0c0000000-55d0c0002000 r-xp 00001000 fe:00 123                        /usr/sbin/svd
Rss:                   8 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
55d0c0002000-55d0c0003000 r--p 00003000 fe:00 123                        /usr/sbin/svd
Anonymous:             4 kB
55d0c0003000-55d0c0004000 rw-p 00004000 fe:00 123                        /usr/sbin/svd
Anonymous:             0 kB
7ffd00000000-7ffd00002000 r-xp 00000000 00:00 0                          [vdso]
Anonymous:             0 kB
";
        assert_eq!(parse(smaps), [(0x55d0_c000_0000, 0x2000)]);
        assert!(!unchanged_files().is_empty());
        trim_before_sleep();
        before_sleep();
    }

    #[test]
    fn pages_are_zeroes_that_can_be_written() {
        let mut pages = Pages::map(NonZeroUsize::new(10_000).expect("not zero")).expect("a mapping");
        assert_eq!((pages.len(), pages.iter().find(|byte| **byte != 0)), (10_000, None));
        pages[9_999] = 7;
        assert_eq!(pages.last(), Some(&7));
    }
}
