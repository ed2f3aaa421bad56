//! The numbers of a service's processes: as svd knows them, and as the service does, which may have numbers of its own
//! (`isolation.private_pids`).

use super::host::Host;
use super::unit::{Plan, Process};
use crate::core::{GenerationId, WorkerId};
use crate::sys::process::inner_pid;
use crate::sys::sandbox::pids;
use std::collections::BTreeMap;

/// How the processes of a generation are numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// As everywhere on the host.
    Host,
    Own,
}

impl Numbers {
    /// What the service calls the process. Reads `/proc` where that differs.
    pub fn inner(self, pid: i32) -> Option<i32> {
        match self {
            Numbers::Host => Some(pid),
            Numbers::Own => inner_pid(pid),
        }
    }

    /// Is it a process of the service's, and not one of svd's that hold it?
    pub fn is_services(self, pid: i32) -> bool {
        self == Numbers::Host || inner_pid(pid).is_some_and(|inner| inner >= pids::PROGRAM)
    }

    /// Is it one of svd's that hold the service's: the one that was `started`, or the first of the namespace? Somebody from outside is not.
    pub fn holds(self, pid: i32, started: Option<i32>) -> bool {
        self == Numbers::Own && (Some(pid) == started || inner_pid(pid).is_some_and(|inner| inner < pids::PROGRAM))
    }

    /// By what the service calls them: what svd does.
    pub fn outer(self, pids: impl Iterator<Item = i32>) -> BTreeMap<i32, i32> {
        pids.filter_map(|pid| Some((self.inner(pid)?, pid))).collect()
    }
}

impl Plan {
    pub fn numbers(&self) -> Numbers {
        match self.sandbox.as_ref().is_some_and(|sandbox| sandbox.private_pids) {
            true => Numbers::Own,
            false => Numbers::Host,
        }
    }
}

impl Process {
    /// The service's program: the process that svd has started, or the one behind it.
    pub fn program(&self) -> Option<i32> {
        let started = self.worker.pid()?;
        if self.numbers == Numbers::Host || self.started_ended {
            return Some(started);
        }
        // It stays the same as long as the process in between is there.
        let known = self.behind.get().copied();
        let found = known.or_else(|| pids::program_of(started).inspect(|pid| _ = self.behind.set(*pid)));
        found.or(Some(started))
    }
}

impl Host {
    pub fn numbers_of(&self, id: GenerationId) -> Numbers {
        self.generations.get(&id).map_or(Numbers::Host, |made| made.plan.numbers())
    }

    /// `MAINPID=` of a service whose processes have numbers of their own: what svd has started ends as its program does, and all others
    /// with it.
    pub fn name_main_within(&mut self, id: WorkerId, inner: i32) {
        if inner == pids::PROGRAM {
            return;
        }
        let Some(process) = self.workers.get(&id) else { return };
        let (text, service) = (
            format!(
                "MAINPID={inner} is ignored: with isolation.private_pids the program itself is the main process, and a server that \
                 goes into the background ends; let it stay in the foreground, or set private_pids = false"
            ),
            process.generation.service,
        );
        self.warn(Some(service), &text);
    }
}
