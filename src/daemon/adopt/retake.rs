//! What only the workers hold any more, as svd and its guardian were both killed: taken back from them.

use crate::core::GenerationId;
use crate::daemon::host::Host;
use crate::daemon::state::records::GunicornRecord;
use crate::daemon::unit::Gunicorn;
use crate::kinds::counters;
use crate::sys::process::{self, PidFd};
use crate::sys::socket::{self, Gate, SharedWords};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

/// The sockets with these cookies, in their order; `None` unless all of them are found.
///
/// Looks into these processes, which should be the service's own. Needs the rights of ptrace(2) over them, and
/// `pidfd_getfd(2)`, Linux 5.6.
pub fn sockets(cookies: &[u64], pids: impl Iterator<Item = i32>) -> Option<Vec<Arc<OwnedFd>>> {
    let which = |fd: &OwnedFd| {
        let cookie = socket::cookie(fd).ok()?;
        cookies.iter().position(|c| *c == cookie)
    };
    let found = fill(cookies.iter().map(|_| None).collect(), pids, which)?;
    Some(found.into_iter().map(Arc::new).collect())
}

/// Adds what is missing of some listening sockets, and these processes have; `None` unless all of them are found. `which`: the
/// place of a socket.
pub(super) fn fill(
    mut found: Vec<Option<OwnedFd>>,
    pids: impl Iterator<Item = i32>,
    which: impl Fn(&OwnedFd) -> Option<usize>,
) -> Option<Vec<OwnedFd>> {
    for pid in pids {
        if found.iter().all(Option::is_some) {
            break;
        }
        look(pid, &which, &mut found);
    }
    found.into_iter().collect()
}

/// What one process has of them. That it is the right process does not matter: the sockets are told apart by what they are.
fn look(pid: i32, which: impl Fn(&OwnedFd) -> Option<usize>, found: &mut [Option<OwnedFd>]) {
    let Ok(process) = PidFd::open(pid) else { return };
    for number in process::sockets_of(pid) {
        let Ok(fd) = process.take_copy(number) else { continue };
        let at = which(&fd).filter(|_| socket::is_listening(&fd));
        if let Some(at) = at.and_then(|at| found.get_mut(at)) {
            at.get_or_insert(fd);
        }
    }
}

/// What a master of gunicorn counts in.
pub(super) fn counters_of(master: i32) -> Option<OwnedFd> {
    inherited(master, "AIRDOCK_COUNTERS", COUNTERS)
}

const COUNTERS: &str = "/memfd:airdock-counters";

impl Host {
    /// What a gunicorn generation and svd shared. Gate and counters are those of the running master, where they are to be had;
    /// its reports are lost, and the next master gets new ways for all of them.
    pub fn share_anew(&mut self, id: GenerationId, record: &GunicornRecord, master: Option<i32>) -> Option<Gunicorn> {
        let mut made = self.share(id).map_err(|why| self.warn(Some(id.service), &why)).ok()?;
        record.restore(&mut made);
        let gate = master.and_then(|pid| inherited(pid, "AIRDOCK_GATE", "anon_inode:[eventfd]"));
        let counted = master.and_then(counters_of);
        match gate.and_then(|gate| Some((gate.try_clone().ok()?, gate))) {
            Some((copy, gate)) => {
                made.inherited[0].1 = Arc::new(copy);
                made.gate = Gate::from_fd(gate);
            }
            // Nothing can let them answer any more: as if none had booted, and their time runs out.
            None => drop(std::mem::take(&mut made.ready)),
        }
        let counted = counted.and_then(|fd| Some((fd.try_clone().ok()?, fd)));
        if let Some((copy, fd)) = counted
            && let Ok(words) = SharedWords::from_fd(fd, counters::SIZE_BYTES / 8)
        {
            made.inherited[2].1 = Arc::new(copy);
            made.counters = words;
        } else {
            self.warn(Some(id.service), "what it counts is not seen until a reload: svd and its guardian were killed");
        }
        if made.committed
            && let Err(e) = made.gate.open()
        {
            self.warn(Some(id.service), &format!("its gate cannot be opened: {}", e.desc()));
        }
        Some(made)
    }
}

/// The descriptor whose number a process found in its environment, if it is what it should be.
fn inherited(pid: i32, variable: &str, target: &str) -> Option<OwnedFd> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let value =
        environment.split(|b| *b == 0).find_map(|entry| entry.strip_prefix(variable.as_bytes())?.strip_prefix(b"="));
    let number: i32 = std::str::from_utf8(value?).ok()?.parse().ok()?;
    let fd = PidFd::open(pid).ok()?.take_copy(number).ok()?;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
    link.as_os_str().as_encoded_bytes().starts_with(target.as_bytes()).then_some(fd)
}
