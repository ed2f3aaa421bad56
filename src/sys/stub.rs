//! The sub-reaper stub: a tiny process between svd and one worker, where no cgroup can be made (a plain user).
//!
//! Whatever the worker forks, and however often it changes its session, comes to the stub when its parent dies, because
//! the stub is a sub-reaper (`PR_SET_CHILD_SUBREAPER`). So "no children" means "nothing is left", and killing every
//! descendant until then is complete. The stub is forked from svd and never executes anything: only system calls and
//! memory on its stack, as the allocator's lock may have been held by another thread at the fork.
//!
//! It talks over a `SOCK_SEQPACKET` pair. When svd's end closes it goes on by itself until nothing is left.

use std::os::fd::RawFd;

use nix::errno::Errno;
use std::time::{Duration, Instant};

use super::check;
use super::process::{PidFd, ProcStat};
use super::spawn::Step;
use super::spawn::child::{self, Plan, Way, close, write_decimal};

/// Four words a message: kind, two arguments, zero.
pub(super) type Message = [i32; 4];
/// To svd: the worker's pid; its pidfd comes with it.
pub(super) const STARTED: i32 = 1;
/// To svd: the worker's wait status, and 1 if descendants are left.
pub(super) const EXITED: i32 = 2;
/// To svd: the descendants that were left are gone; the stub ends.
pub(super) const EMPTY: i32 = 3;
/// From svd: send this signal to all descendants.
pub(super) const SIGNAL_ALL: i32 = 4;
/// From svd: kill until nothing is left.
pub(super) const KILL_ALL: i32 = 5;

/// The signal that tells a stub whose svd is gone to kill until nothing is left.
const END: i32 = libc::SIGTERM;

/// How long to wait, while killing, before looking again for what was forked meanwhile.
const KILL_AGAIN_MS: i64 = 20;
const KILL_AGAIN_MAX_MS: i64 = 1000;

/// What the stubs of one run directory are called (`comm`): by it, the next svd finds those that a killed one left.
///
/// Made from the directory's device and inode, as its path may mean another one in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name([u8; 16]);

impl Name {
    /// # Errors
    /// `stat(2)` of the directory.
    pub fn of(run_dir: &std::path::Path) -> std::io::Result<Name> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(run_dir)?;
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325; // FNV-1a: stable across builds
        for byte in meta.dev().to_ne_bytes().into_iter().chain(meta.ino().to_ne_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        let mut name = [0_u8; 16];
        let text = format!("svd:{:011x}", hash & 0xfff_ffff_ffff);
        name.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        Ok(Name(name))
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default().trim_end_matches('\0')
    }
}

/// Ends what a killed svd left below its stubs, and gives how many of them there were. Blocks until nothing is left, at most
/// `limit`. Only for the holder of the run directory's lock: then no living svd has stubs of that name.
pub fn end_orphans(name: Name, limit: Duration) -> usize {
    let ours = |pid: i32| {
        use std::os::unix::fs::MetadataExt;
        ProcStat::read(pid).is_some_and(|stat| stat.comm == name.as_str())
            && std::fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == nix::unistd::geteuid().as_raw())
    };
    let mut left = Vec::new();
    for pid in super::process::all_pids().into_iter().filter(|pid| ours(*pid)) {
        let Ok(pidfd) = PidFd::open(pid) else { continue };
        // Again, now that the process cannot be confused any more.
        if ours(pid) && pidfd.signal(END).unwrap_or(false) {
            left.push(pidfd);
        }
    }
    let count = left.len();
    let until = Instant::now() + limit;
    while left.iter().any(|pidfd| !pidfd.has_ended()) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    count
}

struct Stub {
    own: i32,
    /// svd's socket; -1 once svd is gone.
    socket: RawFd,
    signals: RawFd,
    worker: i32,
    worker_fd: RawFd,
    /// The worker's wait status between its reaping and the report.
    ended: Option<i32>,
    reaped: bool,
    /// Told to end everything once svd is gone.
    told: bool,
    /// 0: not killing; else the wait before the next round.
    killing_ms: i64,
}

/// Lives in the forked child until no descendant is left. Only system calls from here on.
pub(super) fn run(plan: &mut Plan<'_>, way: Way, socket: RawFd, name: Name) -> ! {
    child::set_signal_mask(u64::MAX);
    child::default_dispositions(plan.ignored_signals);
    let signals = match prepare(&name) {
        Ok(signals) => signals,
        Err(errno) => plan.fail(Step::Stub, errno, 0),
    };
    // SAFETY: the worker's side makes only system calls and executes or exits.
    let (worker, worker_fd) = match unsafe { child::raw_fork(way, None, false) } {
        Ok((0, _)) => child::run(plan),
        Ok(parts) => parts,
        Err(errno) => plan.fail(Step::StubFork, errno, 0),
    };
    // SAFETY: no memory is involved.
    let own = unsafe { libc::syscall(libc::SYS_getpid) } as i32;
    let mut stub =
        Stub { own, socket, signals, worker, worker_fd, ended: None, reaped: false, told: false, killing_ms: 0 };
    stub.keep_only_own_descriptors();
    stub.report_start();
    loop {
        stub.reap();
        if stub.killing_ms > 0 {
            stub.kill_round();
        }
        stub.wait();
    }
}

fn prepare(name: &Name) -> Result<RawFd, Errno> {
    let on: libc::c_ulong = 1;
    // SAFETY: numbers, a name that ends with NUL (15 bytes are set at most), and a NUL-terminated constant.
    unsafe {
        check(libc::syscall(libc::SYS_setsid))?;
        check(libc::syscall(libc::SYS_prctl, libc::PR_SET_CHILD_SUBREAPER, on, 0, 0, 0))?;
        libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, name.0.as_ptr(), 0, 0, 0);
        // So that no file system is kept from being unmounted.
        libc::syscall(libc::SYS_chdir, c"/".as_ptr());
    }
    let mask: u64 = 1 << (libc::SIGCHLD - 1) | 1 << (END - 1);
    // SAFETY: the kernel reads eight bytes.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8_usize, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    })?;
    Ok(fd as RawFd)
}

impl Stub {
    fn keep_only_own_descriptors(&self) {
        let mut keep = [self.socket, self.signals, self.worker_fd];
        keep.sort_unstable();
        child::close_all_but(&keep);
    }

    fn send(&mut self, message: Message, descriptor: Option<RawFd>) {
        if self.socket < 0 {
            return;
        }
        let mut part = libc::iovec { iov_base: message.as_ptr().cast_mut().cast(), iov_len: size_of::<Message>() };
        // Aligned for a cmsghdr, with room for one descriptor.
        let mut control = [0_u64; 4];
        // SAFETY: all zero is a valid value of this plain structure.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut part;
        header.msg_iovlen = 1;
        if let Some(fd) = descriptor {
            header.msg_control = control.as_mut_ptr().cast();
            // SAFETY: `control` has CMSG_SPACE(4) = 24 bytes and more; the macros compute addresses inside of it.
            unsafe {
                header.msg_controllen = libc::CMSG_SPACE(4) as _;
                let first = libc::CMSG_FIRSTHDR(&raw const header);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = libc::CMSG_LEN(4) as _;
                libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd);
            }
        }
        // SAFETY: the header describes memory on this stack. svd gone or not reading: the state is kept, nobody waits.
        unsafe {
            libc::syscall(libc::SYS_sendmsg, self.socket, &raw const header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        };
    }

    fn report_start(&mut self) {
        self.send([STARTED, self.worker, 0, 0], Some(self.worker_fd));
    }

    /// Reaps whatever has ended; ends the stub when there are no children any more.
    fn reap(&mut self) {
        loop {
            let mut status = 0_i32;
            // SAFETY: the kernel writes one int.
            let result = check(unsafe {
                libc::syscall(libc::SYS_wait4, -1, &raw mut status, libc::WNOHANG, std::ptr::null_mut::<libc::rusage>())
            });
            match result {
                Ok(0) => {
                    if let Some(status) = self.ended.take() {
                        self.send([EXITED, status, 1, 0], None);
                    }
                    return;
                }
                Ok(pid) if pid as i32 == self.worker && !self.reaped => {
                    self.ended = Some(status);
                    self.reaped = true;
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => {
                    let last = match self.ended.take() {
                        Some(status) => [EXITED, status, 0, 0],
                        None => [EMPTY, 0, 0, 0],
                    };
                    self.send(last, None);
                    child::exit(0);
                }
            }
        }
    }

    fn wait(&mut self) {
        let mut fds = [
            libc::pollfd { fd: self.signals, events: libc::POLLIN, revents: 0 },
            libc::pollfd { fd: self.socket, events: libc::POLLIN, revents: 0 },
        ];
        let timeout = libc::timespec { tv_sec: self.killing_ms / 1000, tv_nsec: (self.killing_ms % 1000) * 1_000_000 };
        let limit = if self.killing_ms > 0 { &raw const timeout } else { std::ptr::null() };
        // SAFETY: two structures and a time on this stack; no signal mask.
        unsafe { libc::syscall(libc::SYS_ppoll, fds.as_mut_ptr(), 2, limit, std::ptr::null::<u64>(), 8_usize) };
        if fds[0].revents != 0 {
            let mut info = [0_u64; 16];
            // SAFETY: at most 128 bytes, the size of a signalfd_siginfo, into this stack's buffer.
            unsafe { libc::syscall(libc::SYS_read, self.signals, info.as_mut_ptr(), 128_usize) };
            // Its first field is ssi_signo, a u32. As long as svd lives, svd decides.
            let first = info[0].to_ne_bytes();
            self.told |= u32::from_ne_bytes([first[0], first[1], first[2], first[3]]) == END as u32;
        }
        if fds[1].revents != 0 {
            self.receive();
        }
        if self.told && self.socket < 0 && self.killing_ms == 0 {
            self.killing_ms = KILL_AGAIN_MS;
        }
    }

    fn receive(&mut self) {
        let mut message: Message = [0; 4];
        // SAFETY: at most the size of `message` is written.
        let result = check(unsafe {
            libc::syscall(
                libc::SYS_recvfrom,
                self.socket,
                message.as_mut_ptr(),
                size_of::<Message>(),
                libc::MSG_DONTWAIT,
                std::ptr::null_mut::<libc::sockaddr>(),
                std::ptr::null_mut::<libc::socklen_t>(),
            )
        });
        match result {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(0) | Err(_) => {
                close(self.socket);
                self.socket = -1;
            }
            Ok(_) => match message {
                [SIGNAL_ALL, signal, ..] => signal_descendants(self.own, signal),
                [KILL_ALL, ..] => {
                    self.killing_ms = KILL_AGAIN_MS;
                    // Most workers are one process: its end may already leave nothing to look for in /proc.
                    send_signal(self.worker_fd, libc::SIGKILL);
                    if !self.reaped {
                        self.wait();
                        self.reap();
                    }
                }
                _ => {}
            },
        }
    }

    fn kill_round(&mut self) {
        signal_descendants(self.own, libc::SIGKILL);
        self.killing_ms = (self.killing_ms * 2).min(KILL_AGAIN_MAX_MS);
    }
}

fn send_signal(pidfd: RawFd, signal: i32) {
    // SAFETY: numbers and a null siginfo. ESRCH (it has ended) is as good as success.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, std::ptr::null_mut::<libc::siginfo_t>(), 0) };
}

/// Walks `/proc` once. The list of children (`/proc/PID/task/TID/children`) would be shorter, but not every kernel has it,
/// and it leaves out what is forked meanwhile just the same.
fn signal_descendants(own: i32, signal: i32) {
    // SAFETY: a NUL-terminated constant.
    let proc = check(unsafe {
        libc::syscall(
            libc::SYS_openat,
            libc::AT_FDCWD,
            c"/proc".as_ptr(),
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC,
            0,
        )
    });
    let Ok(proc) = proc else { return };
    let mut buffer = [0_u64; 512];
    loop {
        // SAFETY: the kernel writes at most the stated 4,096 bytes.
        let length = unsafe { libc::syscall(libc::SYS_getdents64, proc, buffer.as_mut_ptr(), 4096_usize) };
        if length <= 0 {
            break;
        }
        // SAFETY: the same memory as bytes; any byte is valid.
        let bytes: &[u8; 4096] = unsafe { &*buffer.as_ptr().cast() };
        let mut rest = bytes.get(..length as usize).unwrap_or_default();
        // struct linux_dirent64: inode u64, offset i64, length u16, type u8, name.
        while let (Some(&[low, high]), Some(name)) = (rest.get(16..18), rest.get(19..)) {
            if let Some(pid) = leading_number(name).filter(|pid| *pid != own) {
                signal_if_descendant(own, pid, signal);
            }
            let length = usize::from(u16::from_ne_bytes([low, high])).max(1);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    close(proc as RawFd);
}

fn signal_if_descendant(own: i32, pid: i32, signal: i32) {
    if !is_descendant(own, pid) {
        return;
    }
    // SAFETY: numbers only.
    let pidfd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) });
    let Ok(pidfd) = pidfd else { return };
    // Again, now that the process cannot be confused any more.
    if is_descendant(own, pid) {
        send_signal(pidfd as RawFd, signal);
    }
    close(pidfd as RawFd);
}

/// Whether the chain of parents leads to us. A parent that ends meanwhile (our own signal may have ended it) changes the
/// chain, so that it is walked again.
fn is_descendant(own: i32, pid: i32) -> bool {
    for _ in 0..4 {
        match walk(own, pid) {
            Chain::Ours => return true,
            Chain::Foreign => return false,
            Chain::Changed => {}
        }
    }
    false
}

enum Chain {
    Ours,
    Foreign,
    Changed,
}

/// Walks the chain twice: a parent that ended in between, and whose number was given away, shows as a different chain. One
/// that is deeper than 64 is found when its upper part has gone.
fn walk(own: i32, pid: i32) -> Chain {
    let mut chain = [0_i32; 64];
    let mut depth = 0;
    let mut current = pid;
    for place in &mut chain {
        current = parent_of(current);
        *place = current;
        depth += 1;
        if current <= 1 || current == own {
            break;
        }
    }
    match current {
        // Somebody above it was reaped while we looked (or has no parent here, as kernel threads).
        0 if depth > 1 => return Chain::Changed,
        _ if current != own => return Chain::Foreign,
        _ => {}
    }
    let mut current = pid;
    let same = chain.iter().take(depth).all(|parent| {
        let same = parent_of(current) == *parent;
        current = *parent;
        same
    });
    if same { Chain::Ours } else { Chain::Changed }
}

/// The fourth field of `/proc/PID/stat`; 0 if there is no such process.
fn parent_of(pid: i32) -> i32 {
    let mut path = [0_u8; 32];
    let (start, end) = (b"/proc/", b"/stat");
    path[..start.len()].copy_from_slice(start);
    let digits = write_decimal(&mut path[start.len()..24], pid.unsigned_abs());
    let after = start.len() + digits;
    path[after..after + end.len()].copy_from_slice(end);
    // SAFETY: NUL-terminated, as the buffer is longer than the text.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0)
    });
    let Ok(fd) = fd else { return 0 };
    let mut text = [0_u8; 256];
    // SAFETY: at most the buffer's length is written.
    let length = unsafe { libc::syscall(libc::SYS_read, fd, text.as_mut_ptr(), text.len()) };
    close(fd as RawFd);
    let text = text.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
    // PID (NAME) STATE PARENT: the name may contain parentheses itself.
    let Some(end) = text.iter().rposition(|b| *b == b')') else {
        return 0;
    };
    text.get(end + 4..).and_then(leading_number).unwrap_or(0)
}

fn leading_number(text: &[u8]) -> Option<i32> {
    let mut number: Option<i32> = None;
    for byte in text {
        if !byte.is_ascii_digit() {
            break;
        }
        let digit = i32::from(byte - b'0');
        number = Some(number.unwrap_or(0).checked_mul(10)?.checked_add(digit)?);
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_and_chains() {
        let own = std::process::id() as i32;
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().expect("sleep");
        let pid = child.id() as i32;
        assert_eq!(parent_of(pid), own);
        assert!(is_descendant(own, pid));
        assert!(!is_descendant(pid, own));
        assert!(!is_descendant(own, 1));
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert_eq!(parent_of(pid), 0);
        assert!(!is_descendant(own, pid));
        assert_eq!(leading_number(b"4711 (x)"), Some(4711));
        assert_eq!(leading_number(b"self"), None);
        assert_eq!(leading_number(b"99999999999"), None);
    }
}
