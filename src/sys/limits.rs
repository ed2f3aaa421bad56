//! Limits and priorities of processes: what this one may give, and changes of those that run.

use std::io;
use std::path::Path;

use nix::errno::Errno;

use super::check;
use super::spawn::{CpuMask, IoPriority, Limit};

/// Rights of root's that a container may lack, by their numbers (`capabilities(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    SetUid = 7,
    SetPcap = 8,
    SysAdmin = 21,
    SysNice = 23,
    SysResource = 24,
}

/// Does this process have it?
pub fn has(capability: Capability) -> bool {
    capability_set("CapEff:") & (1 << capability as u32) != 0
}

/// Those that this process can hand on, a bit each: it has them, and so can its children.
pub fn capabilities_to_give() -> u64 {
    capability_set("CapPrm:") & capability_set("CapBnd:")
}

fn capability_set(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix(name));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// This process's own nice value.
pub fn nice() -> i32 {
    Errno::clear();
    // SAFETY: numbers only.
    unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
}

/// How far a process without rights may go down (`RLIMIT_NICE`).
pub fn nice_floor() -> i32 {
    let soft = limit_of(libc::RLIMIT_NICE).map_or(0, |(soft, _)| soft);
    20 - soft.min(40) as i32
}

/// This process's own hard limit.
pub fn hard_limit(resource: u32) -> Option<u64> {
    limit_of(resource).map(|(_, hard)| hard)
}

/// This process's own, soft and hard.
pub fn limit_of(resource: u32) -> Option<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is written by the kernel.
    let result = unsafe { libc::prlimit(0, resource as _, std::ptr::null(), &raw mut limit) };
    (result == 0).then_some((limit.rlim_cur, limit.rlim_max))
}

/// The CPUs that this process may run on.
pub fn own_cpus() -> CpuMask {
    let mut words = vec![0_u64; 128];
    // SAFETY: the kernel writes at most so many bytes.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(words.as_slice()), words.as_mut_ptr()) };
    words.truncate(usize::try_from(result).unwrap_or(0) / size_of::<u64>());
    CpuMask::of_words(words)
}

/// What is changed of a process that runs.
#[derive(Clone, Copy, Debug)]
pub enum Change<'a> {
    Nice(i32),
    Io(IoPriority),
    Cpus(&'a CpuMask),
    OomScore(i32),
    Limit(Limit),
}

impl Change<'_> {
    /// Changes a process with all its threads. One that has ended needs nothing. The kernel goes by numbers here: whose it is
    /// must have been seen just before ([`crate::sys::worker::Family::certain`]).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn apply(self, pid: i32) -> Result<(), Errno> {
        let done = match self {
            Change::Limit(limit) => set_limit(pid, limit),
            Change::OomScore(score) => {
                std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()).map_err(errno_of)
            }
            Change::Nice(_) | Change::Io(_) | Change::Cpus(_) => self.apply_to_threads(pid),
        };
        match done {
            Err(Errno::ESRCH | Errno::ENOENT) if !Path::new(&format!("/proc/{pid}")).exists() => Ok(()),
            done => done,
        }
    }

    /// The kernel has these of each thread; a new one has its maker's.
    fn apply_to_threads(self, pid: i32) -> Result<(), Errno> {
        /// For threads that are made meanwhile.
        const ROUNDS: usize = 4;
        let mut known = Vec::new();
        for _ in 0..ROUNDS {
            let threads = threads_of(pid).map_err(errno_of)?;
            if threads.iter().all(|tid| known.contains(tid)) {
                break;
            }
            for tid in &threads {
                match self.apply_to(*tid) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(errno) => return Err(errno),
                }
            }
            known = threads;
        }
        Ok(())
    }

    fn apply_to(self, tid: i32) -> Result<(), Errno> {
        const PROCESS: i32 = 1;
        let result = match self {
            // SAFETY: numbers only.
            Change::Nice(nice) => unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, tid, nice) },
            // SAFETY: numbers only.
            Change::Io(io) => unsafe { libc::syscall(libc::SYS_ioprio_set, PROCESS, tid, i32::from(io.number())) },
            // SAFETY: the array has the stated length in bytes.
            Change::Cpus(cpus) => unsafe {
                libc::syscall(libc::SYS_sched_setaffinity, tid, size_of_val(cpus.words()), cpus.words().as_ptr())
            },
            Change::OomScore(_) | Change::Limit(_) => 0,
        };
        check(result).map(drop)
    }
}

fn set_limit(pid: i32, limit: Limit) -> Result<(), Errno> {
    let mut old = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure is written by the kernel.
    check(unsafe { libc::prlimit(pid, limit.resource as _, std::ptr::null(), &raw mut old) }.into())?;
    let hard = limit.hard.unwrap_or(old.rlim_max);
    let new = libc::rlimit { rlim_cur: limit.soft.min(hard), rlim_max: hard };
    // SAFETY: the structure is read by the kernel.
    check(unsafe { libc::prlimit(pid, limit.resource as _, &raw const new, std::ptr::null_mut()) }.into()).map(drop)
}

fn threads_of(pid: i32) -> io::Result<Vec<i32>> {
    let mut threads = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        threads.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(threads)
}

fn errno_of(e: io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_that_runs_is_changed() {
        let mut child = Command::new("sleep").arg("100").stdout(Stdio::null()).spawn().expect("sleep");
        let pid = child.id().cast_signed();
        let cpus = CpuMask::of(&[(0, 0)]);
        let limit = Limit { resource: libc::RLIMIT_NOFILE, soft: 55, hard: Some(66) };
        let changes = [
            Change::Nice(9),
            Change::Io(IoPriority::Idle),
            Change::Cpus(&cpus),
            Change::OomScore(77),
            Change::Limit(limit),
        ];
        for change in changes {
            change.apply(pid).unwrap_or_else(|e| panic!("{change:?}: {e}"));
        }
        let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("a file");
        assert_eq!(read("oom_score_adj").trim(), "77");
        assert!(read("status").contains("Cpus_allowed_list:\t0\n"));
        assert!(
            read("limits").lines().any(|l| l.starts_with("Max open files") && l.contains(" 55 ") && l.contains(" 66 "))
        );
        // The nice value is the 19th field; the second is the program's name.
        assert_eq!(
            read("stat")
                .rsplit(')')
                .next()
                .and_then(|rest| rest.split_whitespace().nth(16).map(str::to_owned))
                .as_deref(),
            Some("9")
        );
        child.kill().expect("killing it");
        child.wait().expect("its end");
        assert_eq!(Change::Nice(3).apply(pid), Ok(()), "it needs nothing any more");
    }

    #[test]
    fn what_this_process_has() {
        assert!((-20..=19).contains(&nice()) && (-20..=20).contains(&nice_floor()));
        assert!(hard_limit(libc::RLIMIT_NOFILE).is_some_and(|hard| hard > 0));
        assert!(!own_cpus().is_empty());
    }
}
