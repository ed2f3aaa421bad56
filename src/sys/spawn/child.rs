//! The life of a child between fork and exec. Nothing here allocates, locks, or may unwind: only system calls, and
//! memory that the parent prepared.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;

use super::Limit;
use super::failure::Step;
use super::raw::call;
use super::slots::encode;

/// `WATCHDOG_PID=` and ten digits and NUL.
pub(super) const PID_TEXT: usize = 24;
const KERNEL_SIGSET: usize = 8;
const LAST_SIGNAL: i32 = 64;
/// From `linux/sched.h`; the crate's constant is an `int`, too narrow for it.
pub(super) const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// How to fork; the later ones are for kernels and seccomp filters that lack something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sys) enum Way {
    /// Linux 5.16, on x86-64: the child uses svd's memory until it executes its program ([`super::lent`]).
    Lent = 0,
    /// Linux 5.7
    Clone3IntoCgroup = 1,
    /// Linux 5.3: the child joins its cgroup itself.
    Clone3 = 2,
    /// Linux 5.2: `clone` with `CLONE_PIDFD`, where seccomp hides `clone3` (which it cannot inspect).
    Clone = 3,
}

impl Way {
    pub(super) fn from_number(number: u8) -> Way {
        match number {
            0 => Way::Lent,
            1 => Way::Clone3IntoCgroup,
            2 => Way::Clone3,
            _ => Way::Clone,
        }
    }

    /// The same, or the next one that gives the child memory of its own.
    pub(super) fn forking(self) -> Way {
        if self == Way::Lent { Way::Clone3IntoCgroup } else { self }
    }

    /// The next way to try after this error, if the error speaks about the way and not about the attempt.
    pub(super) fn without(self, errno: Errno, into_cgroup: bool) -> Option<Way> {
        match (self, errno) {
            (Way::Clone, _) => None,
            (Way::Lent, Errno::E2BIG | Errno::EINVAL) => Some(Way::Clone3IntoCgroup),
            (Way::Clone3IntoCgroup, Errno::E2BIG | Errno::EINVAL) if into_cgroup => Some(Way::Clone3),
            (_, Errno::ENOSYS | Errno::EPERM) => Some(Way::Clone),
            _ => None,
        }
    }
}

pub(super) enum Forked {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Forks, with a pidfd of the child.
///
/// # Safety
/// The child must make only system calls until it executes a program or exits: other threads' locks, the
/// allocator's among them, may be held for ever in its copy of the memory.
pub(super) unsafe fn fork(way: Way, into_cgroup: Option<RawFd>, share_files: bool) -> Result<Forked, Errno> {
    // SAFETY: as promised by the caller.
    let (pid, pidfd) = unsafe { raw_fork(way, into_cgroup, share_files) }?;
    if pid == 0 {
        return Ok(Forked::Child);
    }
    // SAFETY: CLONE_PIDFD gave us this descriptor; nobody else knows it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Forked::Parent { pid, pidfd })
}

/// As [`fork`], giving (0, -1) in the child and (pid, pidfd) in the parent. `share_files` (with a cgroup only): the
/// child begins with our own table of descriptors, and must leave it first of all ([`own_descriptors`]).
///
/// # Safety
/// As for [`fork`].
pub(in crate::sys) unsafe fn raw_fork(
    way: Way,
    into_cgroup: Option<RawFd>,
    share_files: bool,
) -> Result<(i32, RawFd), Errno> {
    let mut pidfd: RawFd = -1;
    let result = if way == Way::Clone {
        let flags = libc::CLONE_PIDFD | libc::SIGCHLD;
        // SAFETY: without CLONE_VM and with a null stack this is fork(2). The order of the last two arguments differs
        // between machines; both are unused (null).
        unsafe {
            libc::syscall(
                libc::SYS_clone,
                flags as libc::c_ulong,
                0 as libc::c_ulong,
                &raw mut pidfd,
                0 as libc::c_ulong,
                0 as libc::c_ulong,
            )
        }
    } else {
        // SAFETY: all zero is a valid value of this plain structure.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        args.flags = libc::CLONE_PIDFD as u64;
        args.pidfd = &raw mut pidfd as u64;
        args.exit_signal = libc::SIGCHLD as u64;
        // Kernels before 5.7 know a shorter structure and refuse a longer one only if the rest is not zero.
        if let Some(fd) = into_cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            if share_files {
                args.flags |= libc::CLONE_FILES as u64;
            }
            args.cgroup = fd as u64;
        }
        // SAFETY: `args` has the stated size and lives through the call; without CLONE_VM this is fork(2).
        unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) }
    };
    let pid = super::super::check(result)? as i32;
    Ok((pid, if pid == 0 { -1 } else { pidfd }))
}

/// A descriptor to be put in place.
#[derive(Clone, Copy)]
pub(in crate::sys) struct RawWire {
    /// The descriptor, or -1 until `path` is opened.
    source: RawFd,
    path: *const libc::c_char,
    flags: i32,
    pub(super) target: RawFd,
}

impl RawWire {
    pub(super) fn fd(source: RawFd, target: RawFd) -> RawWire {
        RawWire { source, path: std::ptr::null(), flags: 0, target }
    }

    pub(super) fn path(path: *const libc::c_char, flags: i32, target: RawFd) -> RawWire {
        RawWire { source: -1, path, flags, target }
    }
}

/// Whom the child becomes.
pub(super) struct RawIds<'a> {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: &'a [u32],
}

/// What the child works from. All of it lies in the arena, on the stack of the thread that forks, or in shared memory: the
/// heap may have stayed behind.
pub(in crate::sys) struct Plan<'a> {
    pub(super) slot: &'a AtomicU64,
    pub(super) program: *const libc::c_char,
    pub(super) argv: *const *const libc::c_char,
    pub(super) envp: *const *const libc::c_char,
    pub(super) directory: *const libc::c_char,
    /// By ascending target.
    pub(super) wires: &'a mut [RawWire],
    /// Where the child's own pid is to be written, in digits.
    pub(super) pids: [Option<&'a mut [u8]>; 2],
    pub(super) ids: Option<RawIds<'a>>,
    pub(super) umask: u32,
    pub(super) nice: Option<i32>,
    pub(super) io: Option<u16>,
    /// A bit for each that the child may run on; empty: all that svd may.
    pub(super) cpus: &'a [u64],
    pub(super) limits: &'a [Limit],
    pub(super) oom_score_adj: Option<i32>,
    pub(super) session: bool,
    pub(super) terminal: bool,
    /// A bit for each signal (the lowest is 1) that svd ignores, and the child must not.
    pub(in crate::sys) ignored_signals: u64,
    /// The directory of the cgroup that the child must join itself.
    pub(super) join_cgroup: Option<RawFd>,
    /// The table of descriptors is still svd's own.
    pub(super) share_files: bool,
}

impl Plan<'_> {
    /// Records what failed and ends the child.
    pub(in crate::sys) fn fail(&self, step: Step, errno: Errno, detail: i32) -> ! {
        self.slot.store(encode(step, errno as i32, detail), Ordering::Release);
        exit(127)
    }

    fn must(&self, step: Step, result: isize) -> isize {
        self.must_with(step, 0, result)
    }

    fn must_with(&self, step: Step, detail: i32, result: isize) -> isize {
        if result < 0 {
            self.fail(step, Errno::from_raw(-result as i32), detail);
        }
        result
    }
}

/// Ends the process without running anything that was registered for its end.
pub(in crate::sys) fn exit(code: i32) -> ! {
    loop {
        // SAFETY: has no preconditions.
        unsafe { call!(libc::SYS_exit_group, code) };
    }
}

/// Becomes the program, or records why not and exits with 127.
pub(in crate::sys) fn run(plan: &mut Plan<'_>) -> ! {
    if plan.share_files {
        own_descriptors(plan);
    }
    default_dispositions(plan.ignored_signals);
    if let Some(fd) = plan.join_cgroup {
        join_cgroup(plan, fd);
    }
    if plan.session {
        // SAFETY: no memory is involved.
        let result = unsafe { call!(libc::SYS_setsid) };
        plan.must(Step::Session, result);
    }
    place_descriptors(plan);
    if plan.terminal {
        // Nobody's yet: none is taken from another session, which would need root.
        // SAFETY: numbers only.
        let result = unsafe { call!(libc::SYS_ioctl, 0, libc::TIOCSCTTY, 0) };
        plan.must(Step::Terminal, result);
    }
    set_priorities_and_limits(plan);
    take_ids(plan);
    // As the child's user: root may not see into its directories (NFS), nor should it in its place.
    // SAFETY: a NUL-terminated string of the parent's.
    let result = unsafe { call!(libc::SYS_chdir, plan.directory) };
    plan.must(Step::Directory, result);
    write_pids(plan);
    unblock_signals();
    // SAFETY: the arrays end with a null pointer, and their strings with NUL.
    let result = unsafe { call!(libc::SYS_execve, plan.program, plan.argv, plan.envp) };
    plan.must(Step::Exec, result);
    exit(127)
}

/// Leaves the table of descriptors that is svd's as well, and keeps 0, 1 and 2: with thousands of them open, copying the
/// table at the fork and closing it again cost more than everything else here.
fn own_descriptors(plan: &Plan<'_>) {
    // SAFETY: numbers only; the table that is changed is a copy made by this call.
    let result = unsafe { call!(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_UNSHARE) };
    if result < 0 {
        // Linux before 5.9: copied whole, and closed one by one later.
        // SAFETY: numbers only.
        let result = unsafe { call!(libc::SYS_unshare, libc::CLONE_FILES) };
        plan.must(Step::Descriptor, result);
    }
}

/// What this process ignores, a bit for each signal (the lowest is 1). Only `SIG_IGN` would survive an exec: Rust's runtime
/// ignores SIGPIPE, `nohup` SIGHUP.
pub(super) fn ignored_signals() -> u64 {
    let mut ignored = 0;
    for signal in 1..=LAST_SIGNAL {
        let mut action = [0_u64; 8];
        // SAFETY: the kernel writes at most 32 bytes to `action`, the handler first.
        let result = unsafe { call!(libc::SYS_rt_sigaction, signal, 0, action.as_mut_ptr(), KERNEL_SIGSET) };
        if result == 0 && action[0] == libc::SIG_IGN as u64 {
            ignored |= 1 << (signal - 1);
        }
    }
    ignored
}

/// Ends the ignoring of these signals.
pub(in crate::sys) fn default_dispositions(ignored: u64) {
    // A kernel sigaction of all zero bytes is SIG_DFL, no flags, empty mask, on every machine.
    let action = [0_u64; 8];
    for signal in (1..=LAST_SIGNAL).filter(|signal| ignored & (1 << (signal - 1)) != 0) {
        // SAFETY: the kernel reads at most 32 bytes of `action`. Errors mean nothing.
        unsafe { call!(libc::SYS_rt_sigaction, signal, action.as_ptr(), 0, KERNEL_SIGSET) };
    }
}

/// The C library's own call would leave its two internal signals alone; this is all 64.
pub(in crate::sys) fn set_signal_mask(mask: u64) {
    // SAFETY: the kernel reads eight bytes. Cannot fail with these arguments.
    unsafe { call!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, 0, KERNEL_SIGSET,) };
}

/// Sets the mask of this thread, and gives what it was.
pub(super) fn replace_signal_mask(mask: u64) -> u64 {
    let mut old = 0_u64;
    // SAFETY: the kernel reads eight bytes and writes eight. Cannot fail with these arguments.
    unsafe { call!(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const mask, &raw mut old, KERNEL_SIGSET) };
    old
}

fn unblock_signals() {
    set_signal_mask(0);
}

fn join_cgroup(plan: &Plan<'_>, directory: RawFd) {
    // SAFETY: a NUL-terminated constant.
    let fd =
        unsafe { call!(libc::SYS_openat, directory, c"cgroup.procs".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC, 0) };
    let fd = plan.must(Step::Cgroup, fd);
    // SAFETY: one byte of a constant.
    let result = unsafe { call!(libc::SYS_write, fd, c"0".as_ptr(), 1_usize) };
    plan.must(Step::Cgroup, result);
    close(fd as RawFd);
}

pub(in crate::sys) fn close(fd: RawFd) {
    // SAFETY: closing is allowed on any number; the callers own it.
    unsafe { call!(libc::SYS_close, fd) };
}

/// Sources may have the numbers of other targets, in any permutation, so those are moved out of the way first.
fn place_descriptors(plan: &mut Plan<'_>) {
    let above = plan.wires.last().map_or(3, |w| w.target + 1);
    for i in 0..plan.wires.len() {
        let mut wire = plan.wires[i];
        if !wire.path.is_null() {
            // SAFETY: a NUL-terminated string of the parent's.
            let fd = unsafe {
                call!(libc::SYS_openat, libc::AT_FDCWD, wire.path, wire.flags | libc::O_CLOEXEC | libc::O_NOCTTY, 0,)
            };
            wire.source = plan.must_with(Step::Descriptor, wire.target, fd) as RawFd;
        }
        if wire.source < above && wire.source != wire.target {
            // Never in place: another wire may have the same source. What is left behind is closed below.
            // SAFETY: numbers only.
            let fd = unsafe { call!(libc::SYS_fcntl, wire.source, libc::F_DUPFD_CLOEXEC, above) };
            wire.source = plan.must_with(Step::Descriptor, wire.target, fd) as RawFd;
        }
        plan.wires[i] = wire;
    }
    let mut next = 0;
    for wire in plan.wires.iter() {
        let target = wire.target;
        let result = if wire.source == target {
            // dup3 refuses equal numbers, dup2 would leave CLOEXEC set.
            // SAFETY: numbers only.
            unsafe { call!(libc::SYS_fcntl, target, libc::F_SETFD, 0) }
        } else {
            // SAFETY: numbers only.
            unsafe { call!(libc::SYS_dup3, wire.source, target, 0) }
        };
        plan.must_with(Step::Descriptor, target, result);
        if target > next {
            close_between(next, target - 1);
        }
        next = target + 1;
    }
    close_between(next, RawFd::MAX);
}

/// Closes all descriptors but these, which are in ascending order.
pub(in crate::sys) fn close_all_but(keep: &[RawFd]) {
    let mut next = 0;
    for fd in keep {
        if *fd > next {
            close_between(next, fd - 1);
        }
        next = fd + 1;
    }
    close_between(next, RawFd::MAX);
}

/// Closes all descriptors from `first` to `last`.
pub(in crate::sys) fn close_between(first: RawFd, last: RawFd) {
    // SAFETY: numbers only; what is not wanted is closed on purpose.
    let result = unsafe { call!(libc::SYS_close_range, first, last, 0) };
    if result == 0 {
        return;
    }
    // Linux < 5.9, or hidden by seccomp. The descriptors above our own hard limit cannot exist.
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is written by the kernel.
    unsafe { call!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, 0, &raw mut limit) };
    let top = limit.rlim_cur.clamp(1024, 1 << 20) as RawFd;
    for fd in first..=last.min(top) {
        close(fd);
    }
}

fn set_priorities_and_limits(plan: &Plan<'_>) {
    // SAFETY: numbers only; umask cannot fail.
    unsafe { call!(libc::SYS_umask, plan.umask) };
    if let Some(nice) = plan.nice {
        // SAFETY: numbers only.
        let result = unsafe { call!(libc::SYS_setpriority, libc::PRIO_PROCESS, 0, nice) };
        plan.must(Step::Nice, result);
    }
    if let Some(io) = plan.io {
        const PROCESS: i32 = 1;
        // SAFETY: numbers only.
        let result = unsafe { call!(libc::SYS_ioprio_set, PROCESS, 0, io) };
        plan.must(Step::Io, result);
    }
    if !plan.cpus.is_empty() {
        // SAFETY: the array has the stated length in bytes.
        let result = unsafe { call!(libc::SYS_sched_setaffinity, 0, size_of_val(plan.cpus), plan.cpus.as_ptr()) };
        plan.must(Step::Cpus, result);
    }
    // Before the ids are given up: afterwards the file belongs to root.
    if let Some(score) = plan.oom_score_adj {
        write_oom_score(plan, score);
    }
    for limit in plan.limits {
        let resource = limit.resource;
        let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the structure is written by the kernel.
        let result = unsafe { call!(libc::SYS_prlimit64, 0, resource, 0, &raw mut old) };
        plan.must_with(Step::Limit, resource as i32, result);
        let hard = limit.hard.unwrap_or(old.rlim_max);
        let new = libc::rlimit { rlim_cur: limit.soft.min(hard), rlim_max: hard };
        // SAFETY: the structure is read by the kernel.
        let result = unsafe { call!(libc::SYS_prlimit64, 0, resource, &raw const new, 0) };
        plan.must_with(Step::Limit, resource as i32, result);
    }
}

fn write_oom_score(plan: &Plan<'_>, score: i32) {
    // SAFETY: a NUL-terminated constant.
    let fd = unsafe {
        call!(
            libc::SYS_openat,
            libc::AT_FDCWD,
            c"/proc/self/oom_score_adj".as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC,
            0,
        )
    };
    let fd = plan.must(Step::OomScore, fd);
    let mut text = [0_u8; 12];
    let mut length = 0;
    if score < 0 {
        text[0] = b'-';
        length = 1;
    }
    length += write_decimal(&mut text[length..], score.unsigned_abs());
    // SAFETY: `length` bytes of a buffer on the stack.
    let result = unsafe { call!(libc::SYS_write, fd, text.as_ptr(), length) };
    plan.must(Step::OomScore, result);
    close(fd as RawFd);
}

/// Groups first, while we may; the user last. Raw calls, as the C library's would signal all threads.
fn take_ids(plan: &Plan<'_>) {
    let Some(ids) = &plan.ids else {
        return;
    };
    // SAFETY: the array has the stated length.
    let result = unsafe { call!(libc::SYS_setgroups, ids.groups.len(), ids.groups.as_ptr()) };
    plan.must(Step::Groups, result);
    // SAFETY: numbers only. All three of real, effective and saved, so that there is no way back.
    let result = unsafe { call!(libc::SYS_setresgid, ids.gid, ids.gid, ids.gid) };
    plan.must(Step::Gid, result);
    // SAFETY: as above.
    let result = unsafe { call!(libc::SYS_setresuid, ids.uid, ids.uid, ids.uid) };
    plan.must(Step::Uid, result);
    forbid_dump();
}

/// From now on the user may send signals that end the child with a core dump, of svd's memory, until its program runs. The
/// kernel makes none after a change of user, unless `fs.suid_dumpable` is 2: then root gets one, whose handler may show it to
/// the user (`proc_sys_fs(5)`, `PR_SET_DUMPABLE(2const)`). The exec allows it again, for the program's memory.
fn forbid_dump() {
    const BY_ROOT: isize = 2;
    // SAFETY: numbers only.
    if unsafe { call!(libc::SYS_prctl, libc::PR_GET_DUMPABLE, 0, 0, 0, 0) } == BY_ROOT {
        // SAFETY: numbers only. Cannot fail with these.
        unsafe { call!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    }
}

fn write_pids(plan: &mut Plan<'_>) {
    if plan.pids.iter().all(Option::is_none) {
        return;
    }
    // SAFETY: no memory is involved; the raw call knows no cached value.
    let pid = unsafe { call!(libc::SYS_getpid) } as u32;
    for digits in plan.pids.iter_mut().flatten() {
        write_decimal(digits, pid);
    }
}

/// Decimal digits; gives their number. A buffer that is too short gets the last digits.
pub(in crate::sys) fn write_decimal(buffer: &mut [u8], mut number: u32) -> usize {
    let mut digits = [0_u8; 10];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 || start == 0 {
            break;
        }
    }
    let mut length = 0;
    for (to, digit) in buffer.iter_mut().zip(&digits[start..]) {
        *to = *digit;
        length += 1;
    }
    length
}
