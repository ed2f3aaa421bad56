//! A child that copies nothing: until it executes its program it uses svd's own memory, of which it is lent an arena with
//! everything that it needs, and a stack.
//!
//! A fork copies the page tables, and each page that svd writes to afterwards; both take several times as long as all the
//! rest. `vfork(2)` and `posix_spawn(3)` avoid that too, but stop the caller until the program was executed, for ever if its
//! disk hangs. Here svd goes on at once. What follows from the shared memory:
//!
//! - The child makes system calls only, by instructions of its own: `errno`, the allocator and locks are svd's.
//! - Signals are blocked from before its beginning until right before the exec, and svd's handlers are taken away
//!   (`CLONE_CLEAR_SIGHAND`): none ever runs in it.
//! - The kernel says when the arena is free again (`CLONE_CHILD_CLEARTID` works at an exec as well as at the end).
//! - `oom_score_adj` belongs to the memory: who needs another one is forked ([`super::child`]).
//! - A change of user makes the memory undumpable (`commit_creds` in `kernel/cred.c`), so that no process of that user can
//!   look into it (`ptrace(2)`), nor have it dumped; for svd that stays so, and it leaves no core dump any more. The setting
//!   `fs.suid_dumpable` may say otherwise ([`Setting`]). Before Linux 5.16 a dump of the child's memory could have
//!   ended svd with it: there, the way is not used.
//! - Where the kernel is out of memory and chooses to kill the child, it kills svd, too (`__oom_kill_process` in
//!   `mm/oom_kill.c`). It chooses by size, and the child has svd's: so it would have chosen svd, unless the control group of
//!   the child has a limit of its own: who has one is forked.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::MOST_ARENAS;
use super::arena::Arena;
use super::child::Plan;
use crate::sys::process::PidFd;

/// Is this machine and kernel one for it?
pub(super) fn works() -> bool {
    cfg!(target_arch = "x86_64") && crate::sys::kernel::release().is_some_and(|release| release >= (5, 16))
}

/// What `fs.suid_dumpable` allows (`proc_sys_fs(5)`).
///
/// - 0, the usual one: any number of children that change their user.
/// - 2: the memory can be dumped from a child's change of user until it forbids that, for a moment in which its own signals
///   are blocked. Another child's are not: one at a time.
/// - 1: the new user could trace the child, and write into svd: none.
#[derive(Debug, Default)]
pub(super) struct Setting {
    asked: Option<Instant>,
    most: usize,
}

impl Setting {
    /// For this long it is not asked for again: that would be a tenth of a start.
    const HOLDS: Duration = Duration::from_millis(100);

    /// How many children at once may be on their way to another user.
    pub(super) fn most_of_other_users(&mut self) -> usize {
        if self.asked.is_none_or(|at| at.elapsed() > Self::HOLDS) {
            self.asked = Some(Instant::now());
            self.most = read_setting();
        }
        self.most
    }
}

fn read_setting() -> usize {
    let mut text = [0; 4];
    let length = File::open("/proc/sys/fs/suid_dumpable").and_then(|mut file| file.read(&mut text));
    most_by(&text[..length.unwrap_or(0)])
}

fn most_by(suid_dumpable: &[u8]) -> usize {
    match suid_dumpable.trim_ascii() {
        b"0" => MOST_ARENAS,
        b"2" => 1,
        _ => 0,
    }
}

/// Starts a child that runs the plan. The caller's signals are blocked, so that the child's are.
///
/// # Errors
/// Of `clone3(2)`; the arena is not lent then.
///
/// # Safety
/// The plan and all that it points to lies in the arena, in memory that stays until the child has ended or in constants; the
/// arena is not lent, and is left alone until [`Arena::is_lent`] says so.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn start(plan: &mut Plan<'_>, arena: &Arena, into_cgroup: Option<RawFd>) -> Result<PidFd, Errno> {
    use super::child::{self, CLONE_INTO_CGROUP};
    use std::sync::atomic::Ordering;

    /// `CLONE_CLEAR_SIGHAND` of `linux/sched.h`; the crate's constant is an `int`, too narrow for it.
    const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;

    unsafe extern "C" fn begin(plan: *mut Plan<'_>) -> ! {
        // SAFETY: the caller of `start` gave it to the child alone.
        child::run(unsafe { &mut *plan })
    }

    let mut pidfd: RawFd = -1;
    let (stack, size) = arena.stack();
    // SAFETY: all zero is a valid value of this plain structure.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_VM | libc::CLONE_PIDFD | libc::CLONE_CHILD_CLEARTID) as u64 | CLONE_CLEAR_SIGHAND;
    args.pidfd = &raw mut pidfd as u64;
    args.child_tid = arena.lent().as_ptr() as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.stack = stack as u64;
    args.stack_size = size as u64;
    if let Some(fd) = into_cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd as u64;
    }
    if plan.share_files {
        args.flags |= libc::CLONE_FILES as u64;
    }
    arena.lent().store(1, Ordering::Release);
    let result: isize;
    // SAFETY: `args` has the stated size. The child begins behind the system call with the registers of this thread and an
    // empty stack, which is aligned as the call of a function needs it; it never comes back. This thread finds everything as
    // the kernel's convention says.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, rdx",
            "call r8",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") &raw mut args,
            in("rsi") size_of::<libc::clone_args>(),
            in("rdx") &raw mut *plan,
            in("r8") begin as unsafe extern "C" fn(*mut Plan<'_>) -> !,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    if result < 0 {
        arena.lent().store(0, Ordering::Release);
        return Err(Errno::from_raw(-result as i32));
    }
    // SAFETY: CLONE_PIDFD gave us this descriptor; nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(PidFd::from_parts(result as i32, pidfd))
}

/// # Errors
/// Always: see [`works`].
///
/// # Safety
/// None is needed.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn start(_: &mut Plan<'_>, _: &Arena, _: Option<RawFd>) -> Result<PidFd, Errno> {
    Err(Errno::EINVAL)
}

#[cfg(test)]
mod tests;
