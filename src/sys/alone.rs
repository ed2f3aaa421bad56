//! What only a process with a single thread may do: fork without an exec, change its environment, close what it did
//! not open itself.

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, RawFd};

use nix::errno::Errno;

use super::spawn::child;

/// Whether this process has one thread. `false` where `/proc` does not tell.
pub fn is_alone() -> bool {
    std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1)
}

/// Which of the two processes goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forked {
    Parent { child: i32 },
    Child,
}

/// A second process that goes on here; it may do whatever this one may (`fork(2)`). `EBUSY` if there are other threads:
/// their locks, the allocator's among them, might be held in the child for ever.
pub fn fork() -> Result<Forked, Errno> {
    if !is_alone() {
        return Err(Errno::EBUSY);
    }
    // SAFETY: there is no other thread, so the child's memory is as consistent as ours.
    Ok(match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Forked::Parent { child: child.as_raw() },
        nix::unistd::ForkResult::Child => Forked::Child,
    })
}

/// Takes a variable out of the environment and gives its value. With other threads it stays.
pub fn take_variable(name: &str) -> Option<OsString> {
    let value = std::env::var_os(name)?;
    if is_alone() {
        // SAFETY: no other thread is there that could read the environment.
        unsafe { std::env::remove_var(name) };
    }
    Some(value)
}

/// Closes every descriptor but these and the standard ones (0, 1 and 2). For a process that has just begun, or one that will never return to whoever opened
/// the others: no owner of theirs may be used or dropped afterwards.
pub fn close_all_but(keep: &[BorrowedFd<'_>]) {
    use std::os::fd::AsRawFd;
    let mut numbers: Vec<RawFd> = vec![0, 1, 2];
    numbers.extend(keep.iter().map(AsRawFd::as_raw_fd));
    numbers.sort_unstable();
    numbers.dedup();
    child::close_all_but(&numbers);
}

/// Ends this process at once: nothing that was registered for its end is run, no buffer is written.
pub fn exit(code: i32) -> ! {
    child::exit(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_threads_forbid_it() {
        // The test's own thread and the main one.
        assert!(!is_alone());
        assert_eq!(fork(), Err(Errno::EBUSY));
        assert!(take_variable("PATH").is_some());
        assert!(std::env::var_os("PATH").is_some(), "others may be reading");
    }
}
