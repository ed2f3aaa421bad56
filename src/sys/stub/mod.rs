//! The sub-reaper stub: a tiny process between svd and one worker, where no cgroup can be made (a plain user).
//!
//! Whatever the worker forks, and however often it changes its session, comes to the stub when its parent dies, because
//! the stub is a sub-reaper (`PR_SET_CHILD_SUBREAPER`). So "no children" means "nothing is left", and killing every
//! descendant until then is complete. The stub is forked from svd and never executes anything: only system calls and
//! memory on its stack, as the allocator's lock may have been held by another thread at the fork.
//!
//! It talks over a `SOCK_SEQPACKET` pair. When svd's end closes it goes on by itself, and the next svd connects to the
//! socket that it listens on: it is told the worker's pidfd again, and how the worker has ended if it has. The stub ends with the
//! last process below it, as the worker has ended (the same code, the same signal), so that whoever reaps it (the
//! guardian, where svd is dead) knows that.

mod descent;
mod place;

pub use place::{Name, Place, end};
pub(super) use place::{open, readable};

use std::os::fd::RawFd;

use nix::errno::Errno;

use super::check;
use super::spawn::Step;
use super::spawn::child::{self, Plan, Way, close};
use descent::{send_signal, signal_descendants};

/// Four words a message: kind, three arguments.
pub(super) type Message = [i32; 4];
/// To svd: the worker's pid, 1 if it has ended and others are left, its wait status then; its pidfd comes with it. The
/// first message, to each svd.
pub(super) const STARTED: i32 = 1;
/// To svd: the worker's wait status, and 1 if descendants are left.
pub(super) const EXITED: i32 = 2;
/// To svd: the descendants that were left are gone; the stub ends.
pub(super) const EMPTY: i32 = 3;
/// From svd: send this signal to all descendants.
pub(super) const SIGNAL_ALL: i32 = 4;
/// From svd: kill until nothing is left.
pub(super) const KILL_ALL: i32 = 5;

/// The signal that tells a stub to kill until nothing is left: sent by an svd ([`end`]), or by anybody once its own svd is gone.
const END: i32 = libc::SIGTERM;

/// How long to wait, while killing, before looking again for what was forked meanwhile.
const KILL_AGAIN_MS: i64 = 20;
const KILL_AGAIN_MAX_MS: i64 = 1000;

/// Of svds that connect; there is one.
const BACKLOG: i32 = 4;

/// What a stub begins with.
#[derive(Clone, Copy)]
pub(super) struct Birth {
    pub(super) name: Name,
    /// To svd.
    pub(super) socket: RawFd,
    /// Bound, for the svds that come after this one.
    pub(super) listener: RawFd,
}

struct Stub {
    own: i32,
    /// svd's socket; -1 once svd is gone.
    socket: RawFd,
    /// For the next svd.
    listener: RawFd,
    signals: RawFd,
    worker: i32,
    worker_fd: RawFd,
    /// The worker's wait status, once it is reaped.
    ended: Option<i32>,
    /// This svd knows that it has ended.
    reported: bool,
    /// 0: not killing; else the wait before the next round.
    killing_ms: i64,
}

/// Lives in the forked child until no descendant is left. Only system calls from here on.
pub(super) fn run(plan: &mut Plan<'_>, way: Way, birth: Birth) -> ! {
    child::set_signal_mask(u64::MAX);
    child::default_dispositions(plan.ignored_signals);
    let signals = match prepare(birth) {
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
    let Birth { socket, listener, .. } = birth;
    let mut stub =
        Stub { own, socket, listener, signals, worker, worker_fd, ended: None, reported: false, killing_ms: 0 };
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

fn prepare(birth: Birth) -> Result<RawFd, Errno> {
    let on: libc::c_ulong = 1;
    // SAFETY: numbers, a name that ends with NUL (15 bytes are set at most), and a NUL-terminated constant.
    unsafe {
        check(libc::syscall(libc::SYS_setsid))?;
        check(libc::syscall(libc::SYS_prctl, libc::PR_SET_CHILD_SUBREAPER, on, 0, 0, 0))?;
        libc::syscall(libc::SYS_prctl, libc::PR_SET_NAME, birth.name.0.as_ptr(), 0, 0, 0);
        // By this process itself, so that the kernel tells its pid to whoever connects.
        check(libc::syscall(libc::SYS_listen, birth.listener, BACKLOG))?;
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
        let mut keep = [self.socket, self.listener, self.signals, self.worker_fd];
        keep.sort_unstable();
        child::close_all_but(&keep);
    }

    /// `false`: svd is gone or does not read. The state is kept, and nobody waits.
    fn send(&mut self, message: Message, descriptor: Option<RawFd>) -> bool {
        if self.socket < 0 {
            return false;
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
        // SAFETY: the header describes memory on this stack.
        let sent = unsafe {
            libc::syscall(libc::SYS_sendmsg, self.socket, &raw const header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        };
        sent >= 0
    }

    fn report_start(&mut self) {
        let ended = i32::from(self.ended.is_some());
        let message = [STARTED, self.worker, ended, self.ended.unwrap_or(0)];
        self.reported = self.send(message, Some(self.worker_fd)) && self.ended.is_some();
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
                    if let Some(status) = self.ended.filter(|_| !self.reported) {
                        self.reported = self.send([EXITED, status, 1, 0], None);
                    }
                    return;
                }
                Ok(pid) if pid as i32 == self.worker && self.ended.is_none() => self.ended = Some(status),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => {
                    let last = match self.ended.filter(|_| !self.reported) {
                        Some(status) => [EXITED, status, 0, 0],
                        None => [EMPTY, 0, 0, 0],
                    };
                    self.send(last, None);
                    end_as(self.own, self.ended.unwrap_or(0));
                }
            }
        }
    }

    fn wait(&mut self) {
        let mut fds =
            [self.signals, self.socket, self.listener].map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
        let timeout = libc::timespec { tv_sec: self.killing_ms / 1000, tv_nsec: (self.killing_ms % 1000) * 1_000_000 };
        let limit = if self.killing_ms > 0 { &raw const timeout } else { std::ptr::null() };
        // SAFETY: three structures and a time on this stack; no signal mask.
        unsafe { libc::syscall(libc::SYS_ppoll, fds.as_mut_ptr(), 3, limit, std::ptr::null::<u64>(), 8_usize) };
        let (mut told, mut by_svd) = (false, false);
        if fds[0].revents != 0 {
            let mut info = [0_u64; 16];
            // SAFETY: at most 128 bytes, the size of a signalfd_siginfo, into this stack's buffer.
            unsafe { libc::syscall(libc::SYS_read, self.signals, info.as_mut_ptr(), 128_usize) };
            // struct signalfd_siginfo: ssi_signo u32, ssi_errno i32, ssi_code i32.
            let ([a, b, c, d, ..], [e, f, g, h, ..]) = (info[0].to_ne_bytes(), info[1].to_ne_bytes());
            told = i32::from_ne_bytes([a, b, c, d]) == END;
            // A child that was forked when svd died may keep svd's socket open a moment longer.
            by_svd = told && i32::from_ne_bytes([e, f, g, h]) == libc::SI_QUEUE;
        }
        if fds[1].revents != 0 {
            while self.receive() {}
        }
        if fds[2].revents != 0 {
            self.accept();
        }
        // As long as svd lives, svd decides.
        if (by_svd || told && self.socket < 0) && self.killing_ms == 0 {
            self.killing_ms = KILL_AGAIN_MS;
        }
    }

    /// The next svd takes the place of the one before, which is dead.
    fn accept(&mut self) {
        let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let null = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: the address of the peer is not asked for.
        let fd = check(unsafe { libc::syscall(libc::SYS_accept4, self.listener, null, null, flags) });
        let Ok(fd) = fd.map(|fd| fd as RawFd) else { return };
        if !is_ours(fd) {
            return close(fd);
        }
        if self.socket >= 0 {
            close(self.socket);
        }
        self.socket = fd;
        self.report_start();
    }

    /// Takes one message; `false`: there is none.
    fn receive(&mut self) -> bool {
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
            Err(Errno::EAGAIN | Errno::EINTR) => return false,
            Ok(0) | Err(_) => {
                if self.socket >= 0 {
                    close(self.socket);
                }
                self.socket = -1;
                return false;
            }
            Ok(_) => match message {
                [SIGNAL_ALL, signal, ..] => signal_descendants(self.own, signal),
                [KILL_ALL, ..] => {
                    self.killing_ms = KILL_AGAIN_MS;
                    // Most workers are one process: its end may already leave nothing to look for in /proc.
                    send_signal(self.worker_fd, libc::SIGKILL);
                    if self.ended.is_none() {
                        self.wait();
                        self.reap();
                    }
                }
                _ => {}
            },
        }
        true
    }

    fn kill_round(&mut self) {
        signal_descendants(self.own, libc::SIGKILL);
        self.killing_ms = (self.killing_ms * 2).min(KILL_AGAIN_MAX_MS);
    }
}

/// Whether who has connected is svd's user, or root.
fn is_ours(fd: RawFd) -> bool {
    let mut peer = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `peer`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_getsockopt,
            fd,
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast::<libc::c_void>(),
            &raw mut length,
        )
    };
    // SAFETY: no memory is involved.
    let own = unsafe { libc::syscall(libc::SYS_geteuid) } as u32;
    result == 0 && (peer.uid == own || peer.uid == 0)
}

/// Ends this process with this wait status, without a core.
fn end_as(own: i32, status: i32) -> ! {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        let no: libc::c_ulong = 0;
        child::default_dispositions(1 << (signal - 1));
        // SAFETY: numbers only.
        unsafe {
            libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, no, 0, 0, 0);
            libc::syscall(libc::SYS_kill, own, signal);
        }
        child::set_signal_mask(!(1 << (signal - 1)));
        // Not reached: it has ended the worker, so it ends us.
        child::exit(128 + signal);
    }
    child::exit(libc::WEXITSTATUS(status))
}
