//! The guardian's loop. It waits for signals and for svd's messages, and for nothing else.
//!
//! One thread, no handlers, no files. svd is our child and only we reap our children, so that its number means svd and
//! nobody else until it is reaped here; that is as certain as a pidfd, and needs no descriptor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::inherit::{self, GUARDED, Inherited};
use super::keeper::Keeper;
use super::protocol::{PACKET_MAX, ToGuardian};
use super::restart::{Backoff, Executables};
use super::{Ended, Options};
use crate::daemon::trim::Trim;
use crate::sys::alone::{Forked, close_all_but, exit, fork};
use crate::sys::poll::{Received, Signals};
use crate::sys::process::{ExitStatus, peek_any, reap, set_child_subreaper, set_name, start_time};
use crate::sys::socket::rights;

/// Descriptors that are left for the guardian's own needs.
const RESERVE: u64 = 64;
/// So many ends, or messages, then the others have their turn.
const ENDS: usize = 256;
const MESSAGES: usize = 64;
/// More than fits into a socket.
const LAST_WORDS: usize = 1 << 20;
/// When too many descriptors are under way on this host, the kernel does not tell when there is room again.
const TELL_AGAIN: Duration = Duration::from_millis(100);
/// Told to end, the guardian gives up after so many svds that died before they were up.
const GIVE_UP: u32 = 5;

/// What every guardian begins with.
pub(super) struct Setup {
    pub(super) options: Options,
    /// The soft limit of open files that svd is started with.
    pub(super) limit: u64,
    pub(super) executable: OwnedFd,
    pub(super) signals: Signals,
}

/// svd, while it lives.
struct Svd {
    pid: i32,
    /// Since when this image of it runs; `None` once it is about to execute another one.
    began: Option<Instant>,
    up: Option<Instant>,
}

struct Guardian {
    setup: (Options, u64),
    signals: Signals,
    keeper: Keeper,
    executables: Executables,
    backoff: Backoff,
    svd: Option<Svd>,
    /// To svd; may outlive it until everything is read.
    socket: Option<OwnedFd>,
    /// When to start svd, while there is none.
    start_at: Instant,
    /// svd has not read for long: tell it more when there is room.
    full: bool,
    tell_at: Option<Instant>,
    /// The code of an svd that ends in order.
    ending: Option<i32>,
    /// Somebody wants us to end.
    stop: Option<Signal>,
    /// There was no svd to be told that the configuration has changed.
    update: bool,
    failed_stops: u32,
    /// More have ended than one turn reaps.
    busy: bool,
    /// When it gives back what it shared with svd at the fork, and what only svd's start needed.
    trim: Trim,
}

/// The guardian of an svd that was forked from it.
pub(super) fn first(setup: Setup, svd: i32, socket: OwnedFd) -> ! {
    let mut guardian = Guardian::new(setup, &[socket.as_fd()]);
    guardian.socket = Some(socket);
    guardian.svd = Some(Svd { pid: svd, began: Some(Instant::now()), up: None });
    guardian.run()
}

/// The guardian that an svd has become.
pub(super) fn resumed(mut setup: Setup, inherited: Inherited) -> ! {
    if let Some(limit) = inherited.open_files {
        setup.limit = limit;
    }
    // It was svd's already; a failure leaves orphans to the next one above.
    let _ = set_child_subreaper();
    let keep: Vec<BorrowedFd<'_>> = inherited.descriptors.iter().map(|(_, fd)| fd.as_fd()).collect();
    let mut guardian = Guardian::new(setup, &keep);
    for (name, fd) in inherited.descriptors {
        guardian.keeper.store(&name, Some(fd));
    }
    inherited.exits.into_iter().for_each(|ended| guardian.keeper.ended(ended));
    guardian.run()
}

impl Guardian {
    /// Closes everything but what it needs and `keep`.
    fn new(setup: Setup, keep: &[BorrowedFd<'_>]) -> Guardian {
        set_name(c"svd-guardian");
        let Setup { options, limit, executable, signals } = setup;
        let mut all: Vec<BorrowedFd<'_>> = keep.to_vec();
        all.extend([executable.as_fd(), signals.as_fd()]);
        close_all_but(&all);
        let room = raise_limit().saturating_sub(RESERVE);
        crate::sys::memory::trim();
        Guardian {
            setup: (options, limit),
            signals,
            keeper: Keeper::new(usize::try_from(room).unwrap_or(usize::MAX)),
            executables: Executables::new(executable),
            backoff: Backoff::default(),
            svd: None,
            socket: None,
            start_at: Instant::now(),
            full: false,
            tell_at: None,
            ending: None,
            stop: None,
            update: false,
            failed_stops: 0,
            busy: false,
            trim: Trim::default(),
        }
    }

    fn run(mut self) -> ! {
        loop {
            self.busy = false;
            self.reap();
            if self.svd.is_none() && Instant::now() >= self.start_at && !self.busy {
                self.start();
            }
            self.tell();
            self.wait();
        }
    }

    fn reap(&mut self) {
        for _ in 0..ENDS {
            let Some(pid) = peek_any() else { return };
            // While it is not reaped, its number and start time are its own.
            let start_time = start_time(pid).unwrap_or(0);
            let Ok(Some(status)) = reap(pid) else { return };
            if self.svd.as_ref().is_some_and(|svd| svd.pid == pid) {
                self.svd_ended(status);
            } else {
                self.keeper.ended(Ended { pid, start_time, status });
            }
        }
        self.busy = true;
    }

    fn svd_ended(&mut self, status: ExitStatus) {
        // What it had said before counts, its last order above all.
        for _ in 0..LAST_WORDS {
            if !self.receive() {
                break;
            }
        }
        self.socket = None;
        self.keeper.silence();
        if let Some(code) = self.ending {
            exit(code);
        }
        let Some(svd) = self.svd.take() else { return };
        self.keeper.deaths = self.keeper.deaths.saturating_add(1);
        self.keeper.last_death = Some(status);
        self.failed(svd.began, svd.up, Some(status));
    }

    /// An svd is gone, or could not be started.
    fn failed(&mut self, began: Option<Instant>, up: Option<Instant>, status: Option<ExitStatus>) {
        let now = Instant::now();
        if up.is_none() {
            let why = began.and_then(|began| self.executables.died_before_it_was_up(now, began, status));
            if why.is_some() {
                self.keeper.fallback = why;
            }
            if self.stop.is_some() {
                self.failed_stops += 1;
                if self.failed_stops >= GIVE_UP {
                    exit(1);
                }
            }
        }
        self.start_at = now + self.backoff.after_death(now, up);
    }

    fn start(&mut self) {
        if self.try_start().is_err() {
            // Out of processes, memory or descriptors: later.
            self.failed(None, None, None);
        }
    }

    fn try_start(&mut self) -> Result<(), Errno> {
        let (ours, theirs) = rights::pair()?;
        match fork()? {
            Forked::Child => {
                // It has nothing to say that anybody would hear; its code is told to the next one.
                let _ = self.execute(&theirs);
                exit(127)
            }
            Forked::Parent { child } => {
                self.svd = Some(Svd { pid: child, began: Some(Instant::now()), up: None });
                self.socket = Some(ours);
                Ok(())
            }
        }
    }

    /// In the child: becomes svd. Its memory is its own, and everything else that we hold closes by itself.
    fn execute(&self, socket: &OwnedFd) -> std::io::Result<std::convert::Infallible> {
        let (options, limit) = self.setup;
        let environment = inherit::environment(options, Some((GUARDED, socket.as_raw_fd())))?;
        inherit::set_inherited(socket, true)?;
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, limit.min(hard), hard)?;
        inherit::execute(self.executables.current(), &environment)
    }

    fn tell(&mut self) {
        let Some(socket) = &self.socket else { return };
        if self.tell_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.tell_at = None;
        let result = self.keeper.tell(|packet, fd| rights::send(socket, packet, fd));
        self.full = result == Err(Errno::EAGAIN);
        match result {
            Ok(()) | Err(Errno::EAGAIN) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => self.keeper.silence(),
            Err(_) => self.tell_at = Some(Instant::now() + TELL_AGAIN),
        }
    }

    fn wait(&mut self) {
        let (signals_ready, socket_ready) = {
            let mut events = PollFlags::POLLIN;
            if self.full {
                events |= PollFlags::POLLOUT;
            }
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            fds.extend(self.socket.as_ref().map(|socket| PollFd::new(socket.as_fd(), events)));
            let now = Instant::now();
            if self.trim.due(None).is_some_and(|due| due <= now) {
                self.trim.done(now);
                crate::sys::memory::trim();
            }
            // Interrupted, or out of memory for a moment: looks again.
            let _ = poll(&mut fds, self.timeout());
            let ready = |i: usize| fds.get(i).and_then(PollFd::any).unwrap_or(false);
            (ready(0), ready(1))
        };
        if signals_ready {
            // An error is one of the moment: what is pending stays so.
            while let Ok(Some((signal, _))) = self.signals.next() {
                self.handle_signal(signal);
            }
        }
        if socket_ready {
            self.trim.active(Instant::now());
            for _ in 0..MESSAGES {
                if !self.receive() {
                    break;
                }
            }
        }
    }

    fn timeout(&self) -> PollTimeout {
        if self.busy {
            return PollTimeout::ZERO;
        }
        let start = self.svd.is_none().then_some(self.start_at);
        let Some(due) = [start, self.tell_at, self.trim.due(None)].into_iter().flatten().min() else {
            return PollTimeout::NONE;
        };
        // Rounded up, so that it is due when we look.
        let wait = due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
    }

    fn handle_signal(&mut self, received: Received) {
        if !received.is_for_svd() {
            // The loop reaps whenever it turns.
            return;
        }
        // A new svd opens its logs anyhow; an end and an update must not be forgotten.
        if received.asks_for_the_end() {
            self.stop = Some(received.signal());
            self.failed_stops = 0;
        }
        if received == Received::Hangup {
            // svd may just have been killed.
            self.reap();
            self.update |= self.svd.is_none();
        }
        self.pass_on(received.signal());
    }

    fn pass_on(&self, signal: Signal) {
        if let Some(svd) = &self.svd {
            // It may have ended already.
            let _ = kill(Pid::from_raw(svd.pid), signal);
        }
    }

    /// One message; `false` if there is none now.
    fn receive(&mut self) -> bool {
        let Some(socket) = &self.socket else { return false };
        let mut buffer = [0; PACKET_MAX];
        let packet = match rights::receive(socket, &mut buffer) {
            Ok(packet) => packet,
            // svd died with unread messages of ours; its own come after this.
            Err(Errno::ECONNRESET) => return true,
            Err(_) => return false,
        };
        if packet.length == 0 {
            self.socket = None;
            self.keeper.silence();
            return false;
        }
        let message = buffer.get(..packet.length).and_then(ToGuardian::decode);
        if let Some(message) = message {
            self.handle(message, packet.descriptor);
        }
        true
    }

    fn handle(&mut self, message: ToGuardian<'_>, descriptor: Option<OwnedFd>) {
        match message {
            ToGuardian::Hello { nonce } => {
                self.keeper.begin(nonce);
                if let Some(svd) = &mut self.svd {
                    // Another image perhaps, executed in place.
                    svd.began = Some(Instant::now());
                    svd.up = None;
                }
            }
            ToGuardian::Store { name } => self.keeper.store(name, descriptor),
            ToGuardian::Remove { name } => self.keeper.remove(name),
            ToGuardian::Ready => self.svd_is_up(),
            ToGuardian::Acknowledge { number } => self.keeper.acknowledge(number),
            ToGuardian::End { code } => self.ending = Some(code),
            // Best effort: a manager that does not listen any more cannot be told so either.
            ToGuardian::Notify { text } => drop(crate::sys::socket::notify_manager(text)),
            ToGuardian::Executable => {
                if let Some(file) = descriptor {
                    self.executables.replace(file);
                    if let Some(svd) = &mut self.svd {
                        svd.began = None;
                    }
                }
            }
        }
    }

    fn svd_is_up(&mut self) {
        self.trim.wanted(Instant::now());
        let Some(svd) = &mut self.svd else { return };
        svd.up.get_or_insert_with(Instant::now);
        self.executables.works();
        self.keeper.fallback = None;
        self.failed_stops = 0;
        if std::mem::take(&mut self.update) {
            self.pass_on(Signal::SIGHUP);
        }
        if let Some(signal) = self.stop {
            self.pass_on(signal);
        }
    }
}

/// Raises this process's limit of open files as far as allowed, and gives it.
fn raise_limit() -> u64 {
    match crate::sys::spawn::OpenFiles::raise() {
        Ok(_) => inherit::soft_limit().unwrap_or(1024),
        Err(_) => 1024,
    }
}
