//! What a process uses now, by `/proc`.

use std::time::Duration;

use super::process::{ProcStat, pss};

/// What can be told of it; others' descriptors are told to root alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub name: String,
    pub start_time: u64,
    /// Its own memory, and its share of what it has in common with others.
    pub memory: Option<u64>,
    pub processor: Duration,
    pub threads: u32,
    pub open_files: Option<u64>,
}

impl Usage {
    /// `None`: there is no such process, or it has ended. May wait for its page faults.
    pub fn of(pid: i32) -> Option<Usage> {
        let stat = ProcStat::read(pid).filter(|stat| !matches!(stat.state, 'Z' | 'X'))?;
        let (processor, threads) = processor_and_threads(pid)?;
        let open_files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok().map(|all| all.count() as u64);
        Some(Usage { name: stat.comm, start_time: stat.start_time, memory: pss(pid), processor, threads, open_files })
    }
}

/// How long it has had a processor, in user mode and in the kernel, and how many threads it has (`proc_pid_stat(5)`).
pub fn processor_and_threads(pid: i32) -> Option<(Duration, u32)> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name may contain anything.
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let (user, kernel): (u64, u64) = (fields.nth(11)?.parse().ok()?, fields.next()?.parse().ok()?);
    let threads = fields.nth(4)?.parse().ok()?;
    Some((super::process::of_ticks(user.saturating_add(kernel)), threads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own() {
        let pid = std::process::id().cast_signed();
        let before = Usage::of(pid).expect("we live");
        assert!(before.threads >= 1 && before.open_files.is_some_and(|n| n >= 3), "{before:?}");
        assert!(before.memory.is_none_or(|bytes| bytes > 100_000), "{before:?}");
        let begun = std::time::Instant::now();
        while processor_and_threads(pid).is_some_and(|(now, _)| now <= before.processor) {
            assert!(begun.elapsed() < Duration::from_secs(20), "no time passes");
        }
        assert_eq!(Usage::of(i32::MAX), None);
    }
}
