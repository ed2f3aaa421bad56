//! Processes that the kernel kills for want of memory: recognised by the counters of their generation's control group, or of
//! the host where there are none, and named.
//!
//! A worker that is killed has it in the reason of its end. One of its processes (a gunicorn worker whose master lives) has an
//! event.

use super::host::{Host, Message};
use super::token;
use crate::config::show_size;
use crate::config::spec::Policy;
use crate::core::{GenerationId, WorkerId};
use crate::sys::poll::Interest;
use crate::sys::process::ExitStatus;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The kernel tells of every time that memory is taken back as well: it is not listened to more often.
const PAUSE: Duration = Duration::from_secs(1);
/// A kill and the end of a worker are the same within this time.
const SAME: Duration = Duration::from_secs(5);

#[derive(Default)]
pub struct Oom {
    /// Kills on this host.
    host: Option<u64>,
    groups: BTreeMap<GenerationId, Watched>,
}

/// The `memory.events` of a generation.
struct Watched {
    path: PathBuf,
    file: File,
    seen: Counts,
    /// Kills that no worker's end accounts for, and when the last of them was seen.
    unclaimed: u64,
    last: Option<Instant>,
    /// The last one was for the generation's own limit.
    own_limit: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// Processes of it that were killed.
    kills: u64,
    /// How often its own limit left no other way.
    own: u64,
}

impl Watched {
    fn look(&mut self) {
        let Some(counts) = read(&self.file) else { return };
        let more = counts.kills.saturating_sub(self.seen.kills);
        if more > 0 {
            self.own_limit = counts.own > self.seen.own;
            let fresh = self.last.is_some_and(|last| last.elapsed() < SAME);
            self.unclaimed = more + if fresh { self.unclaimed } else { 0 };
            self.last = Some(Instant::now());
        }
        self.seen = counts;
    }

    /// Is the end of a worker one of these kills?
    fn claim(&mut self) -> bool {
        self.look();
        let fresh = self.last.is_some_and(|last| last.elapsed() < SAME);
        let is = fresh && self.unclaimed > 0;
        self.unclaimed -= u64::from(is);
        is
    }
}

fn read(file: &File) -> Option<Counts> {
    let mut buffer = [0; 512];
    let length = file.read_at(&mut buffer, 0).ok()?;
    Some(parse(&String::from_utf8_lossy(&buffer[..length])))
}

fn parse(text: &str) -> Counts {
    let of = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    Counts { kills: of("oom_kill"), own: of("oom") }
}

/// Kills since the boot.
fn of_host() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

impl Host {
    /// Watches the memory of a worker's generation, where the kernel counts it. The directory may be another one than before.
    pub fn watch_oom(&mut self, id: WorkerId) {
        if self.oom.host.is_none() {
            self.oom.host = of_host();
        }
        let Some(process) = self.workers.get(&id) else { return };
        let Some(group) = process.worker.group() else { return };
        let path = group.tree().path().join(group.limited_name()).join("memory.events");
        let generation = process.generation;
        let Ok(file) = File::open(&path) else { return };
        let Some(seen) = read(&file) else { return };
        if self.oom.groups.contains_key(&generation) {
            self.look_for_kills(generation);
        }
        if self.poll.add(&file, Interest::Priority, token::of_memory(generation)).is_err() {
            return;
        }
        let watched = Watched { path, file, seen, unclaimed: 0, last: None, own_limit: false };
        self.oom.groups.insert(generation, watched);
    }

    /// Something has happened to the memory of a generation.
    pub fn handle_oom(&mut self, id: GenerationId) {
        let Some(watched) = self.oom.groups.get(&id) else { return };
        let _ = self.poll.delete(&watched.file);
        let messages = self.messages.clone();
        tokio::task::spawn_local(async move {
            // What kills a worker says so itself meanwhile.
            tokio::time::sleep(PAUSE).await;
            let _ = messages.send(Message::LookForKills(id)).await;
        });
    }

    pub fn handle_look_for_kills(&mut self, id: GenerationId) {
        if !self.generations.contains_key(&id) {
            self.oom.groups.remove(&id);
            return;
        }
        self.look_for_kills(id);
        let Some(watched) = self.oom.groups.get(&id) else { return };
        if !watched.path.exists() || self.poll.add(&watched.file, Interest::Priority, token::of_memory(id)).is_err() {
            self.oom.groups.remove(&id);
        }
    }

    /// Tells of processes of a generation that were killed while their worker lives.
    fn look_for_kills(&mut self, id: GenerationId) {
        let Some(watched) = self.oom.groups.get_mut(&id) else { return };
        watched.look();
        let (count, own) = (std::mem::take(&mut watched.unclaimed), watched.own_limit);
        if count > 0 {
            let why = self.why_killed(id, own);
            let whom = if count == 1 { "a process of".to_owned() } else { format!("{count} processes of") };
            self.warn(Some(id.service), &format!("{whom} generation {} killed by the kernel: {why}", id.number));
        }
    }

    /// Why a worker was killed that nobody here has killed; `None`: not for memory, as far as can be told.
    pub fn killed_for_memory(&mut self, id: WorkerId, status: ExitStatus) -> Option<String> {
        let reason = self.reason_of_kill(id, status)?;
        let process = self.workers.get(&id)?;
        let made = self.generations.get(&process.generation)?;
        if made.plan.spec.restart.policy == Policy::Never {
            // No attempt follows that would tell of it.
            let text = format!("worker {} {reason}", process.slot);
            let service = process.generation.service;
            self.warn(Some(service), &text);
        }
        Some(reason)
    }

    fn reason_of_kill(&mut self, id: WorkerId, status: ExitStatus) -> Option<String> {
        let process = self.workers.get(&id).filter(|process| process.signalled.is_none())?;
        let ExitStatus::Signal { signal: libc::SIGKILL, .. } = status else { return None };
        let generation = process.generation;
        if let Some(watched) = self.oom.groups.get_mut(&generation) {
            let (claimed, own) = (watched.claim(), watched.own_limit);
            return claimed.then(|| format!("{status}, by the kernel: {}", self.why_killed(generation, own)));
        }
        let (before, now) = (self.oom.host, of_host());
        self.oom.host = now;
        let more = now > before && before.is_some();
        more.then(|| format!("{status}, it seems by the kernel: the host had no memory left"))
    }

    fn why_killed(&self, id: GenerationId, own_limit: bool) -> String {
        let memory = self.generations.get(&id).and_then(|made| made.plan.spec.limits.memory);
        match memory.filter(|_| own_limit) {
            Some(memory) => format!("memory above {} (limits.memory)", show_size(memory)),
            None => "the host, or the control group that svd is in, had no memory left".to_owned(),
        }
    }

    /// Nothing of a generation is left.
    pub fn forget_oom(&mut self, id: GenerationId) {
        self.oom.groups.remove(&id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_as_the_kernel_writes_them() {
        let text = "low 0\nhigh 3\nmax 17\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(parse(text), Counts { kills: 1, own: 2 });
        assert_eq!(parse(""), Counts::default());
    }

    #[test]
    fn a_kill_is_claimed_once() {
        let path = std::env::temp_dir().join(format!("airdock-oom-{}", std::process::id()));
        let write =
            |kills: u64, own: u64| std::fs::write(&path, format!("oom {own}\noom_kill {kills}\n")).expect("a file");
        write(3, 3);
        let file = File::open(&path).expect("it");
        let seen = read(&file).expect("counts");
        let mut watched = Watched { path: path.clone(), file, seen, unclaimed: 0, last: None, own_limit: false };
        assert!(!watched.claim(), "old ones are nobody's");
        write(4, 4);
        assert!(watched.claim() && watched.own_limit && !watched.claim());
        write(5, 4);
        assert!(watched.claim() && !watched.own_limit, "for somebody else's limit");
        std::fs::remove_file(&path).expect("removing it");
    }
}
