//! Which processes belong to one svd, also when it is gone.

use airdock::sys::process::{PidFd, ProcStat, all_pids, descendants};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What svd's processes are known by: pid and start time, cgroup, and traces of the temporary directory.
#[derive(Debug, Default)]
pub struct Belongings {
    known: BTreeSet<(i32, u64)>,
    groups: BTreeSet<String>,
}

impl Belongings {
    /// Remembers what runs below `pid` now.
    pub fn note(&mut self, pid: i32) {
        for pid in descendants(pid) {
            if let Some(stat) = ProcStat::read(pid) {
                self.known.insert((pid, stat.start_time));
            }
            self.groups.extend(own_group(pid));
        }
    }

    /// Those that still live; `dir`: the temporary directory, which no other process has business in.
    pub fn living(&self, dir: &Path) -> Vec<ProcStat> {
        let own = std::process::id().cast_signed();
        let all = all_pids().into_iter().filter(|pid| *pid != own).filter_map(ProcStat::read);
        all.filter(|stat| !matches!(stat.state, 'Z' | 'X'))
            .filter(|stat| {
                self.known.contains(&(stat.pid, stat.start_time))
                    || own_group(stat.pid).is_some_and(|group| self.groups.contains(&group))
                    || has_traces(stat.pid, dir)
            })
            .collect()
    }

    /// Kills what is left, each by a descriptor whose identity has been looked at again.
    pub fn kill(&self, dir: &Path) {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            let living = self.living(dir);
            if living.is_empty() {
                return;
            }
            for stat in living {
                let Ok(pidfd) = PidFd::open(stat.pid) else { continue };
                if ProcStat::read(stat.pid).is_some_and(|now| now.start_time == stat.start_time) {
                    let _ = pidfd.signal(9);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The path of svd's own cgroup (`…/airdock.ID`) that the process is in.
fn own_group(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let line = text.lines().find(|l| l.starts_with("0::"))?;
    let at = line.find("/airdock.")?;
    let end = line[at + 1..].find('/').map_or(line.len(), |n| at + 1 + n);
    Some(line[..end].to_owned())
}

/// Does it run in the directory, or was it told of it?
fn has_traces(pid: i32, dir: &Path) -> bool {
    let proc = format!("/proc/{pid}");
    let below = |link: &str| fs::read_link(format!("{proc}/{link}")).is_ok_and(|target| target.starts_with(dir));
    let mentions = |file: &str| {
        let needle = dir.as_os_str().as_bytes();
        fs::read(format!("{proc}/{file}")).is_ok_and(|text| text.windows(needle.len()).any(|w| w == needle))
    };
    below("cwd") || below("exe") || mentions("cmdline")
}

/// One line for people.
pub fn describe(stat: &ProcStat) -> String {
    let command = fs::read(format!("/proc/{}/cmdline", stat.pid)).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    format!("{} ({}, state {}, parent {}) {command}", stat.pid, stat.comm, stat.state, stat.parent)
}
