//! Processes of its own: a namespace in which the service's processes see each other, and nobody else (`pid_namespaces(7)`).
//!
//! ```text
//! the entrance     svd's child: passes signals on, and ends as the program does; outside
//!  ├─ 1  the init  reaps orphans; ends with the entrance, and all of the namespace with it
//!  └─ 2  the program
//! ```
//! The program is the entrance's child, not the init's: so its end and its number are certain, and no signal can go to another. It is not
//! the first process either, for which the kernel ignores signals that are not handled.

use super::entrance::{Result, cannot};
use crate::sys::process::{ExitStatus, inner_pid};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::unistd::{ForkResult, Pid, fork};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// The number of the program in its namespace: the first one after the init.
pub const PROGRAM: i32 = 2;
/// For what is left in the namespace to end once the program has. What the kernel holds up is svd's to wait for.
const REST: Duration = Duration::from_secs(5);

/// The program behind an entrance, by the number that svd knows; `None`: it is not there (yet, or any more).
pub fn program_of(entrance: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{entrance}/task/{entrance}/children"));
    let children = match children {
        Ok(text) => text.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).collect(),
        // The kernel is built without it.
        Err(_) => crate::sys::process::descendants(entrance),
    };
    children.into_iter().find(|pid| inner_pid(*pid) == Some(PROGRAM))
}

/// Comes back as a child in a new namespace and a session of its own. The calling process stays behind, and never does. `terminal`: 0 is
/// one, which becomes that of the session.
pub(super) fn enter(terminal: bool) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(cannot("leave the host's processes (PID namespace)"))?;
    block_signals();
    let alive = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(cannot("make a pipe"))?;
    // SAFETY: this process has one thread.
    let init = match unsafe { fork() }.map_err(cannot("start the first process of a PID namespace"))? {
        ForkResult::Child => be_init(alive),
        ForkResult::Parent { child } => child,
    };
    let child = start_program(Some(init), terminal)?;
    let Some(program) = child else { return Ok(()) };
    stand_between(program, Some((init, alive.1)))
}

/// As [`enter`], into the namespace that this process's children are in already. What ends that, ends the program.
pub(super) fn enter_beside(terminal: bool) -> Result<()> {
    block_signals();
    let Some(program) = start_program(None, terminal)? else { return Ok(()) };
    stand_between(program, None)
}

/// No first process of its own sees to that. Last, for a change of user undoes it.
pub(super) fn end_with_entrance() {
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
}

/// `None`: this is it. The other one's signals are blocked still.
fn start_program(init: Option<Pid>, terminal: bool) -> Result<Option<Pid>> {
    // SAFETY: this process has one thread.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => Ok(Some(child)),
        Ok(ForkResult::Child) => {
            nix::unistd::setsid().map_err(cannot("begin a session"))?;
            if terminal {
                // SAFETY: numbers only.
                let result = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
                Errno::result(result).map_err(cannot("take over the terminal"))?;
            }
            unblock_signals();
            Ok(None)
        }
        // The first process of the namespace has ended.
        Err(Errno::ENOMEM) if init.is_none() => Err(super::beside::GONE.to_owned()),
        Err(e) => {
            if let Some(init) = init {
                let _ = nix::sys::signal::kill(init, Signal::SIGKILL);
            }
            Err(cannot("start a process in its PID namespace")(e))
        }
    }
}

/// A `/proc`, which has the numbers of the namespace of whoever makes it.
pub(super) fn own_processes() -> Result<OwnedFd> {
    mount_proc().map_err(cannot("show its own processes in /proc"))
}

/// `fsopen(2)`, `fsconfig(2)`, `fsmount(2)`: not at any place yet. Linux 5.2.
fn mount_proc() -> std::result::Result<OwnedFd, Errno> {
    const CLOEXEC: libc::c_uint = 1;
    const CREATE: libc::c_uint = 6;
    const ATTRIBUTES: libc::c_uint = 2 | 4 | 8; // nosuid, nodev, noexec
    // SAFETY: NUL-terminated strings that live through the calls, and numbers; what is made is nobody else's.
    unsafe {
        let made = Errno::result(libc::syscall(libc::SYS_fsopen, c"proc".as_ptr(), CLOEXEC))?;
        let made = OwnedFd::from_raw_fd(made as i32);
        let nothing = std::ptr::null::<u8>();
        Errno::result(libc::syscall(libc::SYS_fsconfig, made.as_raw_fd(), CREATE, nothing, nothing, 0))?;
        let mounted = Errno::result(libc::syscall(libc::SYS_fsmount, made.as_raw_fd(), CLOEXEC, ATTRIBUTES))?;
        Ok(OwnedFd::from_raw_fd(mounted as i32))
    }
}

fn block_signals() {
    // SAFETY: both read or write the set alone.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

fn unblock_signals() {
    // SAFETY: as above.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// What the service has open is not held open by others.
fn close_all_but(kept: Option<&OwnedFd>) {
    let close = |first: u32, last: u32| {
        // SAFETY: numbers only; nothing here uses a descriptor any more but what is kept. Linux before 5.9: they stay open.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    };
    match kept.and_then(|fd| u32::try_from(fd.as_raw_fd()).ok()) {
        Some(kept) => {
            if kept > 0 {
                close(0, kept - 1);
            }
            close(kept + 1, u32::MAX);
        }
        None => close(0, u32::MAX),
    }
}

fn prctl(option: i32, value: libc::c_ulong) {
    // SAFETY: numbers only, or a text with a NUL. None of those used here fails.
    unsafe { libc::prctl(option, value, 0, 0, 0) };
}

/// The first process of the namespace: with it all others end.
fn be_init((reader, writer): (OwnedFd, OwnedFd)) -> ! {
    drop(writer);
    prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
    // The environment is in its memory, and the service could see it.
    prctl(libc::PR_SET_DUMPABLE, 0);
    prctl(libc::PR_SET_NAME, c"svd-init".as_ptr() as libc::c_ulong);
    // SAFETY: ignoring is no handler of ours. The kernel reaps for who ignores it.
    let _ = unsafe { nix::sys::signal::signal(Signal::SIGCHLD, nix::sys::signal::SigHandler::SigIgn) };
    close_all_but(Some(&reader));
    let mut poll = libc::pollfd { fd: reader.as_raw_fd(), events: 0, revents: 0 };
    loop {
        // Its other end is the entrance's, which may have ended before it was to be told of that. All signals are blocked.
        // SAFETY: the kernel writes to the structure.
        unsafe { libc::poll(&raw mut poll, 1, -1) };
        if poll.revents != 0 {
            super::super::spawn::child::exit(0);
        }
    }
}

/// Svd's child for as long as the program runs. `init`: of the namespace that ends with the program, and what tells it that this process is
/// there.
fn stand_between(program: Pid, init: Option<(Pid, OwnedFd)>) -> ! {
    close_all_but(init.as_ref().map(|(_, alive)| alive));
    prctl(libc::PR_SET_NAME, super::entrance::NAME.as_ptr() as libc::c_ulong);
    let status = loop {
        if let Some(status) = ended(program) {
            break status;
        }
        match next_signal(None) {
            // Never another's: it is this process's own child, and not reaped.
            // SAFETY: numbers only.
            Some(signal) if signal != libc::SIGCHLD => _ = unsafe { libc::kill(program.as_raw(), signal) },
            _ => {}
        }
    };
    if let Some((init, _)) = init {
        let _ = nix::sys::signal::kill(init, Signal::SIGKILL);
        let until = Instant::now() + REST;
        while ended(init).is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            next_signal(Some(left));
        }
    }
    end_as(status)
}

/// As `waitpid(2)` says it, once.
fn ended(child: Pid) -> Option<i32> {
    let mut status = 0;
    // SAFETY: the kernel writes the status.
    let result = unsafe { libc::waitpid(child.as_raw(), &raw mut status, libc::WNOHANG) };
    match Errno::result(result) {
        Ok(0) | Err(Errno::EINTR) => None,
        Ok(_) => Some(status),
        // It is nobody's any more, which cannot be.
        Err(_) => Some(127 << 8),
    }
}

fn next_signal(limit: Option<Duration>) -> Option<i32> {
    // SAFETY: the kernel reads the set and the time; both live through the call.
    let signal = unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        match limit {
            None => libc::sigwaitinfo(&raw const all, std::ptr::null_mut()),
            Some(limit) => {
                let time = libc::timespec {
                    tv_sec: limit.as_secs() as libc::time_t,
                    tv_nsec: libc::c_long::from(limit.subsec_nanos().cast_signed()),
                };
                libc::sigtimedwait(&raw const all, std::ptr::null_mut(), &raw const time)
            }
        }
    };
    (signal > 0).then_some(signal)
}

/// Svd takes this process's end for the program's.
fn end_as(status: i32) -> ! {
    use super::super::spawn::child::exit;
    match ExitStatus::from_wait_status(status) {
        ExitStatus::Signal { signal, .. } => {
            // The program's core is enough.
            prctl(libc::PR_SET_DUMPABLE, 0);
            // SAFETY: the default action is no handler of ours; numbers only.
            unsafe {
                libc::signal(signal, libc::SIG_DFL);
                libc::kill(libc::getpid(), signal);
            }
            unblock_signals();
            exit(128 + signal)
        }
        ExitStatus::Code(code) => exit(code),
        ExitStatus::Unknown => exit(127),
    }
}
