//! Processes whose identity is certain: pidfds, exit statuses, reaping, and what `/proc` tells.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::check;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    Code(i32),
    Signal {
        signal: i32,
        core_dumped: bool,
    },
    /// Somebody else was its parent, and the kernel does not tell (Linux < 6.15).
    Unknown,
}

impl ExitStatus {
    pub fn success(self) -> bool {
        self == ExitStatus::Code(0)
    }

    /// From the status word of `wait(2)`.
    pub fn from_wait_status(status: i32) -> ExitStatus {
        if libc::WIFSIGNALED(status) {
            ExitStatus::Signal { signal: libc::WTERMSIG(status), core_dumped: libc::WCOREDUMP(status) }
        } else {
            ExitStatus::Code(libc::WEXITSTATUS(status))
        }
    }

    /// The status word of `wait(2)`; `None` where it is not known.
    pub fn to_wait_status(self) -> Option<i32> {
        match self {
            ExitStatus::Code(code) => Some((code & 0xff) << 8),
            ExitStatus::Signal { signal, core_dumped } => Some(signal & 0x7f | if core_dumped { 0x80 } else { 0 }),
            ExitStatus::Unknown => None,
        }
    }

    fn from_siginfo(info: &libc::siginfo_t) -> ExitStatus {
        // SAFETY: waitid filled it for a child's end, so the union holds a status.
        let status = unsafe { info.si_status() };
        match info.si_code {
            libc::CLD_EXITED => ExitStatus::Code(status),
            code => ExitStatus::Signal { signal: status, core_dumped: code == libc::CLD_DUMPED },
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code(code) => write!(f, "exited with {code}"),
            ExitStatus::Signal { signal, core_dumped } => {
                write!(f, "was ended by signal {}", signal_name(*signal))?;
                if *core_dumped {
                    f.write_str(" (core dumped)")?;
                }
                Ok(())
            }
            ExitStatus::Unknown => f.write_str("ended (its exit status is not known)"),
        }
    }
}

/// "SIGTERM", or the number where there is no name.
pub fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(known) => known.as_str().to_string(),
        Err(_) => signal.to_string(),
    }
}

/// A process that cannot be confused with a later one of the same number.
#[derive(Debug)]
pub struct PidFd {
    fd: OwnedFd,
    pid: i32,
}

impl PidFd {
    /// A pidfd that came from elsewhere, and the pid that its process had.
    pub fn from_parts(pid: i32, fd: OwnedFd) -> PidFd {
        PidFd { fd, pid }
    }

    /// Whoever has this pid now; `ESRCH` if nobody. For a child of ours that is not reaped it is certain; for others
    /// check the start time or the cgroup *afterwards* ([`ProcStat::read`]).
    pub fn open(pid: i32) -> Result<PidFd, Errno> {
        // SAFETY: numbers only.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: a new descriptor that nobody else knows; the kernel made it close-on-exec.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        Ok(PidFd { fd, pid })
    }

    /// For messages and records only: never signal by this number.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A second descriptor of the same process.
    pub fn try_clone(&self) -> io::Result<PidFd> {
        Ok(PidFd { fd: self.fd.try_clone()?, pid: self.pid })
    }

    /// Sends the signal (0 only asks); `false` if the process has ended and was reaped.
    pub fn signal(&self, signal: i32) -> Result<bool, Errno> {
        // SAFETY: a null siginfo means as with kill(2).
        unsafe { self.send(signal, std::ptr::null()) }
    }

    /// As [`PidFd::signal`], but with the mark of `sigqueue(3)` (`SI_QUEUE`), which `kill(1)` does not give it.
    pub fn queue(&self, signal: i32) -> Result<bool, Errno> {
        // SAFETY: all zero is a valid value of this plain structure.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        (info.si_signo, info.si_code) = (signal, libc::SI_QUEUE);
        // SAFETY: it lives through the call.
        unsafe { self.send(signal, &raw const info) }
    }

    /// # Safety
    /// `info` is null or points to one that lives through the call.
    unsafe fn send(&self, signal: i32, info: *const libc::siginfo_t) -> Result<bool, Errno> {
        // SAFETY: numbers, and what the caller vouches for.
        let result = check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, self.fd.as_raw_fd(), signal, info, 0) });
        match result {
            Ok(_) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Reaps our child if it has ended. `ECHILD`: it is not ours, or was reaped.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>, Errno> {
        self.waitid(libc::WEXITED | libc::WNOHANG)
    }

    /// How our child has ended, if it has; it stays to be reaped ([`reap`]), and its number stays its own until then.
    /// `ECHILD`: it is not ours, or was reaped.
    pub fn peek(&self) -> Result<Option<ExitStatus>, Errno> {
        self.waitid(libc::WEXITED | libc::WNOHANG | libc::WNOWAIT)
    }

    /// Waits for our child's end and reaps it. Blocks.
    pub fn wait(&self) -> Result<ExitStatus, Errno> {
        loop {
            match self.waitid(libc::WEXITED) {
                Ok(Some(status)) => return Ok(status),
                Ok(None) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }

    fn waitid(&self, flags: i32) -> Result<Option<ExitStatus>, Errno> {
        let info = waitid(libc::P_PIDFD, self.fd.as_raw_fd() as libc::id_t, flags)?;
        Ok(info.map(|info| ExitStatus::from_siginfo(&info)))
    }

    /// A copy of a descriptor of that process (`pidfd_getfd(2)`, Linux 5.6), close-on-exec. `EPERM` without the rights to
    /// trace it, `EBADF` if it has none of that number.
    pub fn take_copy(&self, number: i32) -> Result<OwnedFd, Errno> {
        // SAFETY: numbers only.
        let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.fd.as_raw_fd(), number, 0) })?;
        // SAFETY: a new descriptor that nobody else knows.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    /// Whether the process has ended, whosever child it is; reaps nothing.
    pub fn has_ended(&self) -> bool {
        let mut poll = libc::pollfd { fd: self.fd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure that lives through the call.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 && poll.revents != 0 }
    }

    /// How a process ended that has ended ([`PidFd::has_ended`]), whosever child it is; reaps nothing. `None` where its
    /// parent was faster than we and the kernel keeps no record ([`PidFd::foreign_exit`]).
    pub fn any_exit(&self) -> Option<ExitStatus> {
        if let Ok(status) = self.waitid(libc::WEXITED | libc::WNOHANG | libc::WNOWAIT) {
            return status;
        }
        self.zombie_exit().or_else(|| self.foreign_exit())
    }

    /// Of somebody else's zombie (`proc_pid_stat(5)`, field 52).
    fn zombie_exit(&self) -> Option<ExitStatus> {
        let stat = ProcStat::read(self.pid).filter(|stat| stat.state == 'Z')?;
        // Whoever may not trace it reads 0, which must not pass for a success; and may not read this link, either.
        if stat.wait_status == 0 {
            std::fs::read_link(format!("/proc/{}/ns/user", self.pid)).ok()?;
        }
        // Asked afterwards: as long as it can be signalled, nobody else can have its number.
        (self.signal(0) == Ok(true)).then(|| ExitStatus::from_wait_status(stat.wait_status))
    }

    /// The end of a process that is not our child, once its parent has reaped it (`PIDFD_GET_INFO`, Linux ≥ 6.15;
    /// `None` below, and before it was reaped).
    pub fn foreign_exit(&self) -> Option<ExitStatus> {
        const PIDFD_INFO_EXIT: u64 = 1 << 3;
        // _IOWR(0xff, 11, struct pidfd_info); the size is that of its first version.
        const PIDFD_GET_INFO: libc::c_ulong = 3 << 30 | 64 << 16 | 0xff << 8 | 11;
        let mut info = [0_u64; 8];
        info[0] = PIDFD_INFO_EXIT;
        // SAFETY: the request's number carries the size of the buffer.
        let result = unsafe { libc::ioctl(self.fd.as_raw_fd(), PIDFD_GET_INFO as _, info.as_mut_ptr()) };
        // struct pidfd_info: mask u64, cgroupid u64, pid … fsgid (11 × u32), exit_code i32.
        (result == 0 && info[0] & PIDFD_INFO_EXIT != 0).then(|| ExitStatus::from_wait_status((info[7] >> 32) as i32))
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn waitid(kind: libc::idtype_t, id: libc::id_t, flags: i32) -> Result<Option<libc::siginfo_t>, Errno> {
    // SAFETY: all zero is a valid value of this plain structure.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes into `info`, which lives through the call.
    let result = unsafe { libc::waitid(kind, id, &raw mut info, flags) };
    check(result.into())?;
    // SAFETY: zeroed or filled by waitid; pid 0 says that nothing has ended.
    Ok((unsafe { info.si_pid() } != 0).then_some(info))
}

/// A child (tracked or orphan) that has ended and waits to be reaped; nothing is reaped.
///
/// It is the same one until somebody reaps it: hand tracked pids to their worker, and [`reap`] the others.
pub fn peek_any() -> Option<i32> {
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let info = waitid(libc::P_ALL, 0, flags).ok().flatten()?;
    // SAFETY: filled by waitid for a child's end.
    Some(unsafe { info.si_pid() })
}

/// Reaps this child if it has ended. The pid is ours until then, so it is certain.
pub fn reap(pid: i32) -> Result<Option<ExitStatus>, Errno> {
    let id = libc::id_t::try_from(pid).map_err(|_| Errno::EINVAL)?;
    let info = waitid(libc::P_PID, id, libc::WEXITED | libc::WNOHANG)?;
    Ok(info.map(|info| ExitStatus::from_siginfo(&info)))
}

/// Orphans below this process become its children instead of pid 1's, so that it can reap them.
pub fn set_child_subreaper() -> Result<(), Errno> {
    // SAFETY: numbers only.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }.into()).map(drop)
}

/// Ends the ignoring of SIGCHLD, which a careless parent may have left to us: children would be reaped by the kernel, and
/// nobody would hear of their end (`waitid(2)`).
pub fn hear_of_children() {
    super::spawn::child::default_dispositions(1 << (libc::SIGCHLD - 1));
}

/// Lets the program get `signal` when the thread that starts it ends, however it ends (`prctl(2)`, PR_SET_PDEATHSIG).
pub fn end_with_parent(command: &mut std::process::Command, signal: nix::sys::signal::Signal) {
    use std::os::unix::process::CommandExt;
    let parent = std::process::id().cast_signed();
    let prepare = move || {
        // SAFETY: numbers only.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_int, 0, 0, 0) }.into())?;
        // It may have ended before that.
        // SAFETY: no arguments, cannot fail.
        if unsafe { libc::getppid() } == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: two system calls, which may be made between fork and exec; nothing is allocated.
    unsafe { command.pre_exec(prepare) };
}

/// What `/proc/PID/stat` says (`proc_pid_stat(5)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcStat {
    pub pid: i32,
    pub comm: String,
    /// `R`, `S`, `D`, `Z`, …
    pub state: char,
    pub parent: i32,
    pub session: i32,
    /// In clock ticks since boot; with [`boot_id`] and the pid it names a process for ever.
    pub start_time: u64,
    /// As wait(2) has it, once it has ended; 0 for who may not trace it.
    pub wait_status: i32,
}

impl ProcStat {
    /// `None` if there is no such process.
    pub fn read(pid: i32) -> Option<ProcStat> {
        // One call, as every start makes it. The text is never longer.
        let mut text = [0; 2048];
        let length = std::fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut text).ok()?;
        ProcStat::parse(&String::from_utf8_lossy(text.get(..length)?))
    }

    fn parse(text: &str) -> Option<ProcStat> {
        // The name may contain anything, parentheses and newlines too; the last ')' ends it.
        let (head, tail) = text.rsplit_once(')')?;
        let (pid, comm) = head.split_once('(')?;
        let mut fields = tail.split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        let start_time = fields.nth(15)?.parse().ok()?;
        let wait_status = fields.nth(29).and_then(|f| f.parse().ok()).unwrap_or(0);
        Some(ProcStat {
            pid: pid.trim().parse().ok()?,
            comm: comm.to_string(),
            state,
            parent,
            session,
            start_time,
            wait_status,
        })
    }
}

/// A process that cannot be confused with another one of this boot, whoever has its number by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// In clock ticks since boot.
    pub start_time: u64,
}

impl Identity {
    /// Certain only of a process that is held by a pidfd, or of a child that was not reaped.
    pub fn of(pid: i32) -> Option<Identity> {
        start_time(pid).map(|start_time| Identity { pid, start_time })
    }

    /// Is it the process that has its number now? `start_time`: of that one, if there is one.
    pub fn is(self, start_time: Option<u64>) -> bool {
        start_time == Some(self.start_time)
    }
}

/// Of an open file: its device and inode.
pub fn inode(fd: &impl AsFd) -> Option<(u64, u64)> {
    nix::sys::stat::fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// The start time of a process in clock ticks since boot.
pub fn start_time(pid: i32) -> Option<u64> {
    ProcStat::read(pid).map(|stat| stat.start_time)
}

/// Its number in the PID namespace directly below ours; `None`: it is in no such one.
pub fn inner_pid(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The numbers of its descriptors that are sockets; none where we may not look.
pub fn sockets_of(pid: i32) -> Vec<i32> {
    let is_socket = |path: &std::path::Path| {
        std::fs::read_link(path).is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
    };
    let all = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    all.filter(|fd| is_socket(&fd.path())).filter_map(|fd| fd.file_name().to_str()?.parse().ok()).collect()
}

/// All processes of this host that we may see.
pub fn all_pids() -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

/// Children, their children and so on at this moment, zombies included. Not certain enough to signal: see
/// [`super::worker::Worker::signal_tree`] for that.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for stat in all_pids().into_iter().filter_map(ProcStat::read) {
        children.entry(stat.parent).or_default().push(stat.pid);
    }
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(parent) = next.pop() {
        // Removing makes a loop impossible, should a pid have been used again while we read.
        let own = children.remove(&parent).unwrap_or_default();
        next.extend(&own);
        found.extend(own);
    }
    found
}

/// Proportional set size of one process in bytes (`smaps_rollup`); `None` if it is gone or not ours to see.
pub fn pss(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What a process has in memory, in bytes, what it has in common with others included: at once, other than [`pss`], and never less.
pub fn resident(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten()?;
    pages.checked_mul(u64::try_from(page).ok()?)
}

/// Of a process with that start time.
pub fn age(start_time: u64) -> std::time::Duration {
    std::time::Duration::from_millis(super::boot_millis()).saturating_sub(of_ticks(start_time))
}

/// The kernel's measure of time in `/proc`.
pub fn of_ticks(ticks: u64) -> std::time::Duration {
    let a_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    let a_second = a_second.and_then(|ticks| u64::try_from(ticks).ok()).filter(|ticks| *ticks > 0).unwrap_or(100);
    std::time::Duration::from_millis(ticks.saturating_mul(1000) / a_second)
}

/// The sum over several processes in bytes; those that are gone count nothing.
pub fn pss_of(pids: &[i32]) -> u64 {
    pids.iter().filter_map(|pid| pss(*pid)).sum()
}

/// Tells this boot from all others (`random(4)`).
pub fn boot_id() -> io::Result<String> {
    let text = std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))?;
    Ok(text.trim().to_string())
}

/// Names this process in `ps` and `/proc/PID/comm`; at most 15 bytes are used.
pub fn set_name(name: &std::ffi::CStr) {
    // SAFETY: a NUL-terminated string that lives through the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[expect(clippy::zombie_processes, reason = "reaped through its pidfd")]
    fn status_of(script: &str) -> ExitStatus {
        let child = Command::new("/bin/sh").args(["-c", script]).spawn().expect("sh");
        let pidfd = PidFd::open(child.id() as i32).expect("a pidfd");
        pidfd.wait().expect("our child")
    }

    #[test]
    fn exit_statuses() {
        assert_eq!(status_of("exit 0"), ExitStatus::Code(0));
        assert_eq!(status_of("exit 7"), ExitStatus::Code(7));
        let killed = status_of("kill -KILL $$");
        assert_eq!(killed, ExitStatus::Signal { signal: 9, core_dumped: false });
        let dumped = ExitStatus::Signal { signal: 11, core_dumped: true };
        for status in [ExitStatus::Code(0), ExitStatus::Code(255), killed, dumped] {
            assert_eq!(status.to_wait_status().map(ExitStatus::from_wait_status), Some(status));
        }
        assert_eq!(ExitStatus::Unknown.to_wait_status(), None);
        assert_eq!(killed.to_string(), "was ended by signal SIGKILL");
        assert_eq!(serde_json::to_string(&killed).expect("json"), r#"{"signal":{"signal":9,"core_dumped":false}}"#);
    }

    #[test]
    #[expect(clippy::zombie_processes, reason = "reaped through its pidfd")]
    fn a_reaped_process_is_never_signalled() {
        let child = Command::new("/bin/true").spawn().expect("true");
        let pidfd = PidFd::open(child.id() as i32).expect("a pidfd");
        assert!(pidfd.wait().expect("our child").success());
        assert!(pidfd.has_ended());
        assert_eq!(pidfd.signal(libc::SIGKILL), Ok(false));
        assert_eq!(pidfd.try_wait(), Err(Errno::ECHILD));
        assert_eq!(PidFd::open(pidfd.pid()).err(), Some(Errno::ESRCH));
    }

    #[test]
    fn the_end_of_a_strangers_child() {
        // The shell starts a child, tells its pid, waits for us and reaps it.
        use std::io::{BufRead, BufReader, Write};
        let mut shell = Command::new("/bin/sh")
            .args(["-c", "exec 3<&0; sh -c 'read x <&3; exit 42' & echo $!; wait; echo reaped; exec cat"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        let mut input = shell.stdin.take().expect("stdin");
        let mut lines = BufReader::new(shell.stdout.take().expect("stdout")).lines();
        let pid: i32 = lines.next().expect("a line").expect("text").parse().expect("pid");
        let pidfd = PidFd::open(pid).expect("a pidfd");
        assert!(!pidfd.has_ended());
        assert_eq!(pidfd.try_wait(), Err(Errno::ECHILD), "not our child");
        input.write_all(b"go\n").expect("write");
        assert_eq!(lines.next().expect("a line").expect("text"), "reaped");
        assert!(pidfd.has_ended());
        // None on kernels before 6.15.
        assert!(matches!(pidfd.foreign_exit(), Some(ExitStatus::Code(42)) | None));
        if crate::sys::kernel::release().is_some_and(|v| v >= (6, 15)) {
            assert_eq!(pidfd.foreign_exit(), Some(ExitStatus::Code(42)));
        }
        drop(input);
        shell.wait().expect("sh ends");
    }

    #[test]
    fn the_status_of_a_strangers_zombie() {
        use std::io::{BufRead, BufReader};
        // The shell becomes a program that never waits.
        for (script, expected) in [("exit 42", ExitStatus::Code(42)), ("exit 0", ExitStatus::Code(0))] {
            let mut shell = Command::new("/bin/sh")
                .args(["-c", &format!("exec 3<&0; sh -c 'read x <&3; {script}' & echo $!; exec sleep 60")])
                .stdin(std::process::Stdio::piped())
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("sh");
            let mut line = String::new();
            BufReader::new(shell.stdout.take().expect("stdout")).read_line(&mut line).expect("a line");
            let pidfd = PidFd::open(line.trim().parse().expect("pid")).expect("a pidfd");
            assert!(!pidfd.has_ended());
            drop(shell.stdin.take());
            let mut poll = libc::pollfd { fd: pidfd.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one structure that lives through the call.
            assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1, "it ends");
            assert_eq!(pidfd.any_exit(), Some(expected));
            shell.kill().expect("kill");
            shell.wait().expect("sh ends");
        }
    }

    #[test]
    fn stat_of_odd_names() {
        let text = "12 (a) b (c) S 1 12 11 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 987654 10 20";
        let stat = ProcStat::parse(text).expect("parses");
        assert_eq!(stat.comm, "a) b (c");
        assert_eq!((stat.pid, stat.parent, stat.session), (12, 1, 11));
        assert_eq!((stat.state, stat.start_time), ('S', 987_654));
        let own = ProcStat::read(std::process::id() as i32).expect("own stat");
        assert!(own.start_time > 0);
    }

    #[test]
    fn descendants_and_memory() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "sleep 60 & echo; wait"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        let mut line = [0; 1];
        std::io::Read::read_exact(child.stdout.as_mut().expect("stdout"), &mut line).expect("line");
        let below = descendants(child.id() as i32);
        assert_eq!(below.len(), 1, "{below:?}");
        assert!(descendants(std::process::id() as i32).contains(&below[0]));
        assert!(pss_of(&below) > 0);
        let sleeper = PidFd::open(below[0]).expect("a pidfd");
        sleeper.signal(libc::SIGKILL).expect("signal");
        child.wait().expect("sh ends");
    }
}
