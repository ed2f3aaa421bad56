//! One handle for a worker and everything it forks, held together by a cgroup or by a stub: the caller need not know which.

mod below_stub;
mod family;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::cgroup::{self, Events, Group, Tree};
use super::poll::Interest;
use super::process::{ExitStatus, Identity, PidFd, ProcStat};
use super::spawn::{ExecFailure, Prepared, Slot, SpawnError, Spawner};
use super::stub;
use below_stub::{News, Stub};
pub use family::Family;

/// What holds a worker's descendants together.
#[derive(Debug, Clone)]
pub enum Containment {
    Cgroup(Arc<Tree>),
    /// A small process above each worker.
    Stub(stub::Place),
}

/// What [`Worker::handle_ready`] learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkerEvent {
    /// The worker's pid is known now (with a stub it comes a moment after the start).
    Started(i32),
    /// The worker itself has ended and is reaped. Without leftovers nothing is left of it, and this is the last event;
    /// else [`WorkerEvent::Empty`] will follow.
    Exited { status: ExitStatus, leftovers: bool },
    /// The descendants that were left are gone, too. The last event.
    Empty,
    /// Somebody killed the stub. The worker goes on and is watched, but descendants that leave it are not any more.
    StubLost,
}

/// A started worker. Dropping it lets go of it: nothing is signalled.
///
/// The caller watches [`Worker::watch`], calls [`Worker::handle_ready`] until it gives `None` whenever that is ready, and
/// then looks whether `watch` has changed; if so, [`Worker::watched_before`] leaves the set.
#[derive(Debug)]
pub struct Worker {
    keeper: Keeper,
    slot: Option<Slot>,
    /// Our child has ended, which was told, and is to be reaped when that is written down.
    unreaped: Option<i32>,
    /// Where the entrance of its sandbox says what went wrong.
    report: Option<super::sandbox::Report>,
}

/// What [`Worker::adopt_below_stub`] found.
#[derive(Debug)]
pub enum Below {
    Worker(Worker),
    /// The worker has ended like this while no svd was there; others that it has forked are left.
    Others(Worker, ExitStatus),
    /// The stub has ended, as a rule with the last process below it, and as the worker has (if that is still known); but it
    /// may have been killed: look for the worker ([`Worker::adopt_alone`]).
    Nothing(Option<ExitStatus>),
}

#[derive(Debug)]
enum Keeper {
    Group {
        /// `None`: it ended while no svd was there, and others that it has forked are left.
        pidfd: Option<PidFd>,
        group: Group,
        stage: Stage,
        parent: Parent,
    },
    Stub(Stub),
    /// Its stub died; the worker came to us, the sub-reaper, or to the guardian.
    Alone {
        pidfd: PidFd,
        ended: bool,
    },
}

/// Whose child the worker is, so who gets to know how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// This process.
    Own,
    /// An adopted one: somebody else.
    Other { tells: Tells, told: Option<ExitStatus> },
}

/// Who says how an adopted worker has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tells {
    /// Its parent, by [`Worker::tell_exit`].
    Parent,
    /// The kernel (Linux ≥ 6.15), as soon as its parent has reaped it.
    Kernel,
    Nobody,
}

#[derive(Debug)]
enum Stage {
    Running,
    Leftovers(Events),
    Gone,
}

impl Worker {
    /// Starts a worker; `name` names its cgroup and must be unique among the living ones of the tree.
    pub fn start(
        spawner: &Spawner,
        prepared: &Prepared,
        containment: &Containment,
        name: &str,
    ) -> Result<Worker, SpawnError> {
        let Some(sandbox) = &prepared.sandbox else {
            return Worker::start_as_is(spawner, prepared, containment, name);
        };
        let enclosed = super::sandbox::enclose(sandbox, prepared)?;
        let mut worker = Worker::start_as_is(spawner, &enclosed.prepared, containment, name)?;
        worker.report = Some(enclosed.report);
        Ok(worker)
    }

    fn start_as_is(
        spawner: &Spawner,
        prepared: &Prepared,
        containment: &Containment,
        name: &str,
    ) -> Result<Worker, SpawnError> {
        match containment {
            Containment::Cgroup(tree) => {
                let failed =
                    |e: io::Error| SpawnError::Cgroup(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EINVAL)));
                let group = tree.limited_group(&prepared.limited, name).map_err(SpawnError::Limited)?;
                let directory = group.directory().map_err(failed)?;
                let child = spawner.spawn(prepared, Some(directory.as_fd())).inspect_err(|_| {
                    // Best effort: an empty directory does no harm, and the next start takes it.
                    let _ = group.remove();
                })?;
                Ok(Worker {
                    keeper: Keeper::Group {
                        pidfd: Some(child.pidfd),
                        group,
                        stage: Stage::Running,
                        parent: Parent::Own,
                    },
                    slot: Some(child.slot),
                    unreaped: None,
                    report: None,
                })
            }
            Containment::Stub(place) => {
                let (stub, slot) = Stub::start(spawner, prepared, place, name)?;
                Ok(Worker { keeper: Keeper::Stub(stub), slot: Some(slot), unreaped: None, report: None })
            }
        }
    }

    /// Takes over a worker that another svd started: the process must be the recorded one, in the recorded cgroup. `guardian`: its
    /// parent, if it is that one, will say how it ended ([`Worker::tell_exit`]).
    ///
    /// `None` if it is not (any more): then [`Worker::adopt_rest`].
    pub fn adopt(group: Group, recorded: Identity, guardian: Option<i32>) -> Option<Worker> {
        let pid = recorded.pid;
        let pidfd = PidFd::open(pid).ok()?;
        let stat = ProcStat::read(pid).filter(|stat| recorded.is(Some(stat.start_time)))?;
        let same = group.procs().is_ok_and(|pids| pids.contains(&pid));
        // After an svd has executed its successor in its own place, they are its children still.
        let own = stat.parent == std::process::id().cast_signed();
        let tells = if Some(stat.parent) == guardian { Tells::Parent } else { Tells::Kernel };
        let parent = if own { Parent::Own } else { Parent::Other { tells, told: None } };
        let pidfd = Some(pidfd);
        same.then_some(Worker {
            keeper: Keeper::Group { pidfd, group, stage: Stage::Running, parent },
            slot: None,
            unreaped: None,
            report: None,
        })
    }

    /// As [`Worker::adopt`], below a stub, which must be the recorded one.
    ///
    /// # Errors
    /// The stub lives, and cannot be reached within `limit`: [`stub::end`].
    pub fn adopt_below_stub(place: &stub::Place, file: &str, known: Identity, limit: Duration) -> io::Result<Below> {
        let worker = |stub| Worker { keeper: Keeper::Stub(stub), slot: None, unreaped: None, report: None };
        Ok(match Stub::adopt(place, file, known, limit)? {
            Ok((stub, None)) => Below::Worker(worker(stub)),
            Ok((stub, Some(exit))) => Below::Others(worker(stub), exit),
            Err(exit) => Below::Nothing(exit),
        })
    }

    /// Takes over a worker whose stub was killed: the process of that number and start time, if it lives.
    pub fn adopt_alone(recorded: Identity) -> Option<Worker> {
        let (pidfd, _) = stub::open(recorded)?;
        Some(Worker { keeper: Keeper::Alone { pidfd, ended: false }, slot: None, unreaped: None, report: None })
    }

    /// How an adopted worker has ended, by its parent; [`Worker::handle_ready`] gives it.
    pub fn tell_exit(&mut self, status: ExitStatus) {
        if let Keeper::Group { parent: Parent::Other { told, .. }, .. } = &mut self.keeper {
            *told = Some(status);
        }
    }

    /// It is of no use to wait longer for how an adopted worker has ended.
    pub fn wait_no_longer(&mut self) {
        if let Keeper::Group { parent: Parent::Other { tells, .. }, .. } = &mut self.keeper {
            *tells = Tells::Nobody;
        }
    }

    /// It has ended, and who will tell how: until then what [`Worker::watch`] gives stays ready for ever.
    pub fn awaits_exit(&self) -> Option<Tells> {
        match &self.keeper {
            Keeper::Group {
                pidfd: Some(pidfd),
                stage: Stage::Running,
                parent: Parent::Other { tells, told: None },
                ..
            } if pidfd.has_ended() => Some(*tells),
            _ => None,
        }
    }

    /// Takes over what a worker has left that ended while no svd was there. `None`: nothing is left.
    pub fn adopt_rest(group: Group) -> io::Result<Option<Worker>> {
        let left = look_for_leftovers(&group)?;
        Ok(left.map(|events| {
            let (stage, parent) = (Stage::Leftovers(events), Parent::Other { tells: Tells::Nobody, told: None });
            Worker {
                keeper: Keeper::Group { pidfd: None, group, stage, parent },
                slot: None,
                unreaped: None,
                report: None,
            }
        }))
    }

    /// Our child (the worker, or its stub) that has ended, once: whoever gets it reaps it ([`super::process::reap`]) when its end need not be found out
    /// again, by another svd that would take over.
    pub fn take_unreaped(&mut self) -> Option<i32> {
        self.unreaped.take()
    }

    /// The name of its cgroup, or of its stub's socket, for records.
    pub fn group_name(&self) -> Option<&str> {
        match &self.keeper {
            Keeper::Group { group, .. } => Some(group.name()),
            Keeper::Stub(stub) => Some(stub.file()),
            Keeper::Alone { .. } => None,
        }
    }

    /// Its stub, for records.
    pub fn stub(&self) -> Option<Identity> {
        match &self.keeper {
            Keeper::Stub(stub) => stub.known(),
            Keeper::Group { .. } | Keeper::Alone { .. } => None,
        }
    }

    /// The worker's pid, for messages and records; `None` until [`WorkerEvent::Started`].
    pub fn pid(&self) -> Option<i32> {
        self.pidfd().map(PidFd::pid)
    }

    /// The process that is svd's own child: the worker, or its stub. Its zombie belongs to this handle while it is tracked.
    pub fn child_pid(&self) -> Option<i32> {
        match &self.keeper {
            Keeper::Group { pidfd, .. } => pidfd.as_ref().map(PidFd::pid),
            Keeper::Alone { pidfd, .. } => Some(pidfd.pid()),
            Keeper::Stub(stub) => Some(stub.pid()),
        }
    }

    /// Is the zombie of that number this handle's to reap? Not once the handle has reaped its own: the kernel may have given
    /// the number to somebody else.
    pub fn reaps(&self, pid: i32) -> bool {
        let reaped = match &self.keeper {
            Keeper::Group { stage, .. } => !matches!(stage, Stage::Running),
            Keeper::Stub(stub) => stub.is_gone(),
            Keeper::Alone { ended, .. } => *ended,
        };
        !reaped && self.child_pid() == Some(pid)
    }

    /// The worker's process, once it is known: what tells of its end.
    pub fn process(&self) -> Option<BorrowedFd<'_>> {
        self.pidfd().map(AsFd::as_fd)
    }

    /// Its control group.
    pub fn group(&self) -> Option<&Group> {
        match &self.keeper {
            Keeper::Group { group, .. } => Some(group),
            Keeper::Stub(_) | Keeper::Alone { .. } => None,
        }
    }

    /// Where the worker's cgroup is, for records.
    pub fn cgroup(&self) -> Option<PathBuf> {
        match &self.keeper {
            Keeper::Group { group, .. } => Some(group.path()),
            Keeper::Stub(_) | Keeper::Alone { .. } => None,
        }
    }

    fn pidfd(&self) -> Option<&PidFd> {
        match &self.keeper {
            Keeper::Group { pidfd, .. } => pidfd.as_ref(),
            Keeper::Alone { pidfd, .. } => Some(pidfd),
            Keeper::Stub(stub) => stub.worker(),
        }
    }

    /// Why the program never ran, by the entrance of its sandbox. Ask after an exit with 127.
    pub fn entrance_failure(&self) -> Option<String> {
        self.report.as_ref()?.failure()
    }

    /// Why the program never ran, once the worker has exited with 127.
    pub fn exec_failure(&self) -> Option<ExecFailure> {
        self.slot.as_ref().and_then(Slot::exec_failure)
    }

    /// Signals the worker itself; `false` if it has ended. Before [`WorkerEvent::Started`] the signal is kept and sent then.
    pub fn signal(&mut self, signal: i32) -> Result<bool, Errno> {
        if let Keeper::Stub(stub) = &mut self.keeper
            && stub.worker().is_none()
        {
            return Ok(stub.signal_later(signal));
        }
        self.pidfd().map_or(Ok(false), |pidfd| pidfd.signal(signal))
    }

    /// Signals the worker and all its descendants. What is forked at this moment may be missed.
    pub fn signal_tree(&mut self, signal: i32) -> io::Result<()> {
        match &mut self.keeper {
            Keeper::Group { group, .. } => group.signal_all(signal).map(drop),
            Keeper::Stub(stub) => stub.command([stub::SIGNAL_ALL, signal, 0, 0]),
            Keeper::Alone { pidfd, .. } => Ok(pidfd.signal(signal).map(drop)?),
        }
    }

    /// Kills the worker and all its descendants, however they forked. The events tell when nothing is left.
    ///
    /// Repeat it after a while on kernels without `cgroup.kill` (before 5.14).
    pub fn kill_tree(&mut self) -> io::Result<()> {
        match &mut self.keeper {
            Keeper::Group { group, .. } => group.kill(),
            Keeper::Stub(stub) => stub.command([stub::KILL_ALL, 0, 0, 0]),
            Keeper::Alone { pidfd, .. } => Ok(pidfd.signal(libc::SIGKILL).map(drop)?),
        }
    }

    /// Whether a process (the sender of a notification, an orphan) belongs to this worker now.
    pub fn contains(&self, pid: i32) -> bool {
        match &self.keeper {
            Keeper::Group { group, .. } => group.procs().is_ok_and(|pids| pids.contains(&pid)),
            Keeper::Stub(stub) => ancestors(pid).any(|parent| parent == stub.pid()),
            Keeper::Alone { pidfd, .. } => pid == pidfd.pid() || ancestors(pid).any(|parent| parent == pidfd.pid()),
        }
    }

    /// What to wait for; `None` after the last event. Changes only with an event.
    pub fn watch(&self) -> Option<(BorrowedFd<'_>, Interest)> {
        match &self.keeper {
            Keeper::Group { pidfd, stage, .. } => match stage {
                Stage::Running => pidfd.as_ref().map(|pidfd| (pidfd.as_fd(), Interest::Read)),
                Stage::Leftovers(events) => Some((events.as_fd(), Interest::Priority)),
                Stage::Gone => None,
            },
            Keeper::Stub(stub) => stub.watch().map(|fd| (fd, Interest::Read)),
            Keeper::Alone { pidfd, ended } => (!ended).then_some((pidfd.as_fd(), Interest::Read)),
        }
    }

    /// What was watched for the worker's own end, once it has ended and others are left: it stays ready for ever, so it
    /// must leave the set.
    pub fn watched_before(&self) -> Option<BorrowedFd<'_>> {
        match &self.keeper {
            Keeper::Group { pidfd, stage: Stage::Leftovers(_), .. } => pidfd.as_ref().map(AsFd::as_fd),
            _ => None,
        }
    }

    /// The next event, without waiting.
    pub fn handle_ready(&mut self) -> io::Result<Option<WorkerEvent>> {
        match &mut self.keeper {
            Keeper::Group { pidfd, group, stage, parent } => {
                let event = group_ready(pidfd.as_ref(), group, stage, *parent)?;
                if let (Some(WorkerEvent::Exited { .. }), Parent::Own) = (event, *parent) {
                    self.unreaped = pidfd.as_ref().map(PidFd::pid);
                }
                Ok(event)
            }
            Keeper::Stub(stub) => match stub.ready()? {
                News::Event(event) => {
                    self.unreaped = stub.unreaped();
                    Ok(Some(event))
                }
                News::Nothing => Ok(None),
                News::Lost => Ok(self.stub_lost()),
            },
            Keeper::Alone { pidfd, ended } => {
                if *ended {
                    return Ok(None);
                }
                Ok(wait_for(pidfd)?.map(|status| {
                    *ended = true;
                    WorkerEvent::Exited { status, leftovers: false }
                }))
            }
        }
    }

    fn stub_lost(&mut self) -> Option<WorkerEvent> {
        let failed = self.exec_failure().is_some();
        let Keeper::Stub(stub) = &mut self.keeper else {
            return None;
        };
        match stub.lost() {
            _ if stub.has_exited() => Some(WorkerEvent::Empty),
            Some(pidfd) => {
                self.keeper = Keeper::Alone { pidfd, ended: false };
                Some(WorkerEvent::StubLost)
            }
            // It failed before it had a worker (the slot says how), or was killed in its first moment.
            None => Some(WorkerEvent::Exited {
                status: if failed { ExitStatus::Code(127) } else { ExitStatus::Unknown },
                leftovers: false,
            }),
        }
    }
}

fn group_ready(
    pidfd: Option<&PidFd>,
    group: &Group,
    stage: &mut Stage,
    parent: Parent,
) -> io::Result<Option<WorkerEvent>> {
    match stage {
        Stage::Gone => Ok(None),
        Stage::Running => {
            let status = match (pidfd, parent) {
                (Some(pidfd), Parent::Own) => end_of(pidfd, PidFd::peek)?,
                (Some(pidfd), Parent::Other { tells, told }) => exit_of_other(pidfd, tells, told),
                (None, _) => None,
            };
            let Some(status) = status else {
                return Ok(None);
            };
            // From here on nothing may fail: this is the only time that its end is told.
            let left = look_for_leftovers(group).unwrap_or_else(|_| {
                // No descriptor is to be had, say: what may be left cannot be watched, so it must not go on.
                let _ = group.kill();
                None
            });
            let leftovers = left.is_some();
            *stage = left.map_or(Stage::Gone, Stage::Leftovers);
            Ok(Some(WorkerEvent::Exited { status, leftovers }))
        }
        Stage::Leftovers(events) => {
            if events.is_populated()? {
                return Ok(None);
            }
            *stage = Stage::Gone;
            group.discard();
            Ok(Some(WorkerEvent::Empty))
        }
    }
}

/// Discards the group, or gives what tells that the rest of it has ended.
fn look_for_leftovers(group: &Group) -> io::Result<Option<Events>> {
    // Opened first, then asked: a change in between makes the descriptor ready.
    let mut events = group.events()?;
    if events.is_populated()? {
        return Ok(Some(events));
    }
    group.discard();
    Ok(None)
}

/// The end of somebody else's child: as its parent has told it, or as the kernel knows it.
fn exit_of_other(pidfd: &PidFd, tells: Tells, told: Option<ExitStatus>) -> Option<ExitStatus> {
    if !pidfd.has_ended() {
        return None;
    }
    let last = || (tells == Tells::Nobody).then(|| pidfd.any_exit().unwrap_or(ExitStatus::Unknown));
    told.or_else(|| pidfd.foreign_exit()).or_else(last)
}

/// The end of the worker, whether it is our child or was adopted.
fn wait_for(pidfd: &PidFd) -> io::Result<Option<ExitStatus>> {
    end_of(pidfd, PidFd::try_wait)
}

fn end_of(pidfd: &PidFd, ask: impl Fn(&PidFd) -> Result<Option<ExitStatus>, Errno>) -> io::Result<Option<ExitStatus>> {
    match ask(pidfd) {
        Ok(status) => Ok(status),
        Err(Errno::ECHILD) if pidfd.has_ended() => Ok(Some(pidfd.any_exit().unwrap_or(ExitStatus::Unknown))),
        Err(Errno::ECHILD) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Parent, its parent and so on.
fn ancestors(pid: i32) -> impl Iterator<Item = i32> {
    let parent = |pid: &i32| ProcStat::read(*pid).map(|stat| stat.parent);
    std::iter::successors(parent(&pid), move |pid| parent(pid)).take(64)
}

/// Whose an orphan is, as far as a cgroup tells: the name of its group in this tree.
pub fn group_of(tree: &Arc<Tree>, pid: i32) -> Option<String> {
    let path = cgroup::of_process(pid)?;
    let mut parts = path.components().map(|c| c.as_os_str());
    let tree_name = tree.path().file_name()?;
    parts.find(|part| *part == tree_name)?;
    let group = parts.next()?.to_string_lossy().into_owned();
    // A worker that shares its limits with others is one directory deeper.
    let below = parts.next().map(|part| format!("{group}/{}", part.to_string_lossy()));
    Some(below.filter(|name| tree.existing_group(name).is_some()).unwrap_or(group))
}

#[cfg(test)]
mod tests;
