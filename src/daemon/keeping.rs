//! What the guardian keeps for the next svd, and what it tells this one.

use super::adopt::Kept;
use super::guardian::{self, Client, Ended};
use super::host::Host;
use super::state::Key;
use super::state::records::kept;
use super::token;
use super::unit::{Generation, Process};
use crate::core::{GenerationId, ServiceId, WorkerId};
use crate::sys::poll::{Interest, Poll};
use crate::sys::process::Identity;
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Variables of the environment that are for the first svd alone.
pub const OPTIONS: guardian::Options = guardian::Options { forget: &[super::background::REPORT] };

/// For the guardian to say what it keeps.
const ANSWER: Duration = Duration::from_secs(10);

/// Between two tries to send what the guardian had no room for.
const FLUSH_AGAIN: Duration = Duration::from_millis(5);

/// The lock of the run directory.
pub const LOCK: &str = "lock";
/// That of the tree of control groups.
pub const TREE: &str = "tree";
/// The listening sockets of svd's own.
pub const CONTROL: &str = "control";
pub const HTTP: &str = "http";

/// The guardian, while there is one.
#[derive(Default)]
pub struct Keeper {
    client: Option<Client>,
    /// Descriptors that are nobody's but the next svd's: the lock, svd's own listening sockets.
    own: Vec<(&'static str, OwnedFd)>,
    /// Something could not be given to it, and that was told.
    told: bool,
}

impl Keeper {
    pub fn new(client: Option<Client>) -> Keeper {
        Keeper { client, own: Vec::new(), told: false }
    }

    /// What an earlier svd had stored, at the start.
    ///
    /// # Errors
    /// A sentence.
    pub fn receive(&mut self) -> Result<Kept, String> {
        let Some(client) = &mut self.client else { return Ok(Kept::default()) };
        let failed = |e: io::Error| format!("the guardian does not answer: {}", crate::sys::io_text(&e));
        let kept = client.receive_all(ANSWER).map_err(failed)?;
        if let Some(why) = &kept.fallback {
            tracing::warn!("{why}");
        }
        let of = |ended: &Ended| Identity { pid: ended.pid, start_time: ended.start_time };
        Ok(Kept {
            descriptors: kept.descriptors.into_iter().collect(),
            exits: kept.exits.into_iter().map(|ended| (of(&ended), ended.status)).collect(),
            guardian: Some(client.guardian()),
            deaths: kept.deaths,
            fallback: kept.fallback.map(Into::into),
        })
    }

    /// Keeps a descriptor from now on.
    pub fn store(&mut self, name: &str, fd: BorrowedFd<'_>) {
        let stored = self.client.as_mut().map_or(Ok(()), |client| client.store(name, fd));
        self.tell(stored);
    }

    /// As [`Keeper::store`], for what nothing else of svd's holds.
    pub fn store_own(&mut self, name: &'static str, fd: OwnedFd) {
        self.store(name, fd.as_fd());
        self.own.push((name, fd));
    }

    pub fn remove(&mut self, name: &str) {
        let removed = self.client.as_mut().map_or(Ok(()), |client| client.remove(name));
        self.tell(removed);
    }

    /// svd is up.
    pub fn ready(&mut self) {
        let said = self.client.as_mut().map_or(Ok(()), Client::ready);
        self.tell(said);
    }

    /// Tells the service manager that has started svd, if one has.
    pub fn notify(&mut self, text: &str) {
        let said = match &mut self.client {
            Some(client) => client.notify(text),
            None => crate::sys::socket::notify_manager(text),
        };
        if let Err(e) = said {
            tracing::warn!("cannot tell the service manager {text}: {}", crate::sys::io_text(&e));
        }
    }

    /// What it has told is written down.
    pub fn acknowledge(&mut self) {
        let said = self.client.as_mut().map_or(Ok(()), Client::acknowledge);
        self.tell(said);
    }

    /// svd ends, and so does the guardian, with this code.
    pub fn end(&mut self, code: i32) {
        if let Some(mut client) = self.client.take()
            && let Err(e) = client.end(code)
        {
            tracing::warn!("the guardian does not hear that svd ends: {}", crate::sys::io_text(&e));
        }
    }

    /// The number that others know as svd's.
    pub fn pid(&self) -> u32 {
        let guardian = self.client.as_ref().map(Client::guardian).and_then(|pid| u32::try_from(pid).ok());
        guardian.unwrap_or_else(std::process::id)
    }

    pub fn is_there(&self) -> bool {
        self.client.as_ref().is_some_and(|client| !client.is_lost())
    }

    /// Executes the program in the place of this process. Returns only if that failed; then the guardian starts this
    /// version again when svd has ended.
    pub fn execute(&mut self, file: BorrowedFd<'_>, open_files: crate::sys::spawn::OpenFiles) -> io::Error {
        let Some(client) = &mut self.client else { return io::ErrorKind::NotConnected.into() };
        guardian::execute_successor(client, OPTIONS, file, open_files)
    }

    /// # Errors
    /// `epoll_ctl(2)`.
    pub fn watch(&self, poll: &Poll) -> Result<(), Errno> {
        self.client.as_ref().map_or(Ok(()), |client| poll.add(client, Interest::Read, token::GUARDIAN))
    }

    /// When what waits is to be sent.
    pub fn flush_at(&self) -> Option<Instant> {
        self.client.as_ref().is_some_and(Client::wants_write).then(|| Instant::now() + FLUSH_AGAIN)
    }

    pub fn flush(&mut self) {
        let flushed = self.client.as_mut().filter(|c| c.wants_write()).map_or(Ok(()), Client::flush);
        self.tell(flushed);
    }

    fn tell(&mut self, result: io::Result<()>) {
        if let Err(e) = result
            && !std::mem::replace(&mut self.told, true)
            // Its loss is told where it is dealt with.
            && e.kind() != io::ErrorKind::NotConnected
        {
            let why = crate::sys::io_text(&e);
            tracing::warn!(
                "the guardian does not take what it should keep ({why}): were svd killed, sockets could be lost"
            );
        }
    }
}

impl Host {
    /// The guardian has something to say, or is lost.
    pub fn handle_guardian(&mut self) {
        let Some(client) = &mut self.keeper.client else { return };
        match client.exits() {
            Ok(exits) => self.told_exits(&exits),
            Err(e) => {
                let text = format!("cannot hear from the guardian: {}", crate::sys::io_text(&e));
                self.warn(None, &text);
            }
        }
        if let Some(client) = self.keeper.client.as_ref().filter(|client| client.is_lost()) {
            // It has nothing more to say, and would say so for ever.
            let _ = self.poll.delete(client);
            self.warn(None, "the guardian was killed: svd takes its place, and another svd goes on");
        }
    }

    /// The guardian was killed, and everything that another svd would have to know is written.
    pub fn wants_guardian(&self) -> bool {
        self.keeper.client.as_ref().is_some_and(Client::is_lost) && !self.state.is_behind()
    }

    fn told_exits(&mut self, exits: &[Ended]) {
        for ended in exits {
            // A number may be another process's by now.
            let same = |known: &Identity| known.pid != ended.pid || known.start_time == ended.start_time;
            let is_its = |p: &Process| {
                let its = p.worker.pid() == Some(ended.pid) || p.worker.child_pid() == Some(ended.pid);
                its && (ended.start_time == 0 || p.identity.get().is_none_or(same))
            };
            let worker = self.workers.iter().find(|(_, p)| is_its(p)).map(|(id, _)| *id);
            let Some(id) = worker else { continue };
            // A stub tells it by itself, and has done so.
            if let Some(process) = self.workers.get_mut(&id).filter(|p| p.worker.stub().is_none()) {
                process.worker.tell_exit(ended.status);
            }
            self.handle_worker(id);
        }
        if !exits.is_empty() {
            self.deliver();
            self.write_state();
            self.keeper.acknowledge();
        }
    }

    /// svd takes the guardian's place, and with it the pid that is the workers' parent, and starts another svd.
    pub fn replace_guardian(&mut self) {
        let Some(client) = self.keeper.client.take() else { return };
        let open_files = client.open_files();
        let descriptors = self.for_the_next();
        let list: Vec<(&str, BorrowedFd<'_>)> = descriptors.iter().map(|(name, fd)| (&**name, *fd)).collect();
        let error = guardian::become_guardian(OPTIONS, &list, &[], open_files);
        let text =
            format!("svd cannot take the guardian's place, and goes on without one: {}", crate::sys::io_text(&error));
        self.warn(None, &text);
    }

    /// What the next svd needs, but for the pipes, which it finds by their path.
    fn for_the_next(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut descriptors: Vec<(String, BorrowedFd<'_>)> = Vec::new();
        descriptors.extend(self.keeper.own.iter().map(|(name, fd)| ((*name).to_owned(), fd.as_fd())));
        for (id, unit) in &self.units {
            descriptors.extend((0..).zip(&unit.sockets).map(|(n, fd)| (kept::socket(*id, n), fd.as_fd())));
        }
        for (id, generation) in &self.generations {
            descriptors.extend(shared(*id, generation));
        }
        descriptors.extend(self.statsd.sockets());
        for (id, process) in &self.workers {
            let notify = process.notify.as_ref().map(AsFd::as_fd);
            let ready = process.ready_fd.as_ref().map(AsFd::as_fd);
            for (what, fd) in [("notify", notify), ("ready", ready), (kept::END, process.worker.process())] {
                descriptors.extend(fd.map(|fd| (kept::of_worker(*id, what), fd)));
            }
        }
        descriptors
    }

    /// The guardian lets go of these, which an earlier svd had stored, but for those that this one has stored again.
    pub fn let_go(&mut self, names: impl Iterator<Item = Box<str>>) {
        let again: BTreeSet<String> = self.for_the_next().into_iter().map(|(name, _)| name).collect();
        for name in names.filter(|name| !again.contains(&**name)) {
            self.keeper.remove(&name);
        }
    }

    pub fn keep_sockets(&mut self, service: ServiceId) {
        self.state.mark(Key::Unit(service));
        let Some(unit) = self.units.get(&service) else { return };
        for (n, fd) in (0..).zip(&unit.sockets) {
            self.keeper.store(&kept::socket(service, n), fd.as_fd());
        }
    }

    pub fn keep_generation(&mut self, id: GenerationId) {
        let Some(generation) = self.generations.get(&id) else { return };
        for (name, fd) in shared(id, generation) {
            self.keeper.store(&name, fd);
        }
    }

    pub fn let_generation_go(&mut self, id: GenerationId, generation: &Generation) {
        for (name, _) in shared(id, generation) {
            self.keeper.remove(&name);
        }
    }

    /// During a shutdown the guardian ends soon, too.
    pub fn let_worker_go(&mut self, id: WorkerId, what: &str) {
        if self.machine.is_shutting_down() {
            return;
        }
        self.keeper.remove(&kept::of_worker(id, what));
    }
}

/// What svd and a generation share: its network, and all that gunicorn's have.
fn shared(id: GenerationId, generation: &Generation) -> Vec<(String, BorrowedFd<'_>)> {
    let mut all: Vec<(&str, BorrowedFd<'_>)> = Vec::new();
    all.extend(generation.network.as_ref().map(|network| (kept::NETWORK, network.as_fd())));
    if let Some(gunicorn) = generation.gunicorn.as_deref() {
        let [gate, theirs, counters] = &gunicorn.inherited;
        all.extend([
            ("gate", gate.1.as_fd()),
            ("theirs", theirs.1.as_fd()),
            ("counters", counters.1.as_fd()),
            ("report", gunicorn.report.as_fd()),
        ]);
    }
    all.into_iter().map(|(what, fd)| (kept::shared(id, what), fd)).collect()
}
