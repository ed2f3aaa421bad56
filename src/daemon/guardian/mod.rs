//! The guardian: a tiny process that is svd's parent, and keeps what must outlive svd.
//!
//! It starts svd again when svd dies, holds descriptors for it (listening sockets, log pipes), and reaps what a dead svd
//! leaves, so that no exit status is lost. It does nothing else, so that it has no reason to die: it opens no file, writes
//! none (not even to stderr, which may block), talks to nobody but svd, and never waits for it.
//!
//! | file | what it has |
//! |---|---|
//! | [`protocol`] | the messages between the two |
//! | [`client`] | svd's side |
//! | [`keeper`] | what is kept, and how far svd was told |
//! | [`restart`] | when svd is started again, and from which file |
//! | [`process`] | the guardian's own loop |
//! | [`inherit`] | environment and descriptors across an exec |
//!
//! ## Who is who
//!
//! One program plays three parts, all with the same arguments. The environment says which, so that `ps` shows what the
//! operator typed, and a version that does not know about it just does without:
//!
//! - neither variable: the first start. [`start`] forks; the parent is the guardian and never returns, and so keeps the pid
//!   that the starter knows; the child goes on as svd.
//! - `AIRDOCK_GUARDED=FD`: svd, executed by its guardian, with its end of the socket. svd takes the variable away.
//! - `AIRDOCK_GUARD=FD`: the guardian itself. svd executed itself into it ([`become_guardian`]), so that the workers stay its
//!   children; FD is a memory file that lists what it keeps.
//!
//! Whichever way svd begins, the signals that it reads from its signalfd ([`Signals`](crate::sys::poll::Signals)) are blocked
//! already, so that none is lost or deadly before that is there. Directory, umask, limits and what is ignored are as the
//! guardian was started with.
//!
//! ## What svd must do
//!
//! 1. [`resume`] first of all in `main`; [`start`] once the arguments are valid, before there is a second thread.
//! 2. Raise its limit of open files, then [`Client::receive_all`]: descriptors, exit statuses, and why an older version runs.
//! 3. [`Client::ready`] when it is up. Nothing else resets the backoff.
//! 4. [`Client::store`] a descriptor before anybody depends on it; [`Client::acknowledge`] statuses once they are recorded.
//! 5. [`Client::end`] before it ends on purpose, a start that failed included: else it is started again.
//! 6. When [`Client::is_lost`], [`become_guardian`].
//!
//! ## What happens when somebody dies
//!
//! Whatever svd had sent before it died counts: the guardian reads its socket to the end before it starts the next one. A signal
//! that asks for the end (SIGTERM, SIGINT, SIGQUIT) is passed on to each svd again until one says [`Client::end`]. If
//! svd cannot be brought up any more then, the guardian ends with code 1, and the services run on: nobody could end it otherwise.
//!
//! When the guardian dies, svd notices by the end of its socket, and puts itself in its place. When both die, what the
//! guardian held is gone, as far as no worker holds it too.

mod client;
mod inherit;
mod keeper;
mod process;
mod protocol;
mod restart;

pub use client::{Client, Kept};
pub use inherit::become_guardian;
pub use protocol::NAME_MAX;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::sys::alone::{Forked, fork};
use crate::sys::process::{ExitStatus, hear_of_children, set_child_subreaper};
use crate::sys::socket::rights;

/// A child of the guardian that has ended: a worker whose svd had died, or an orphan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    pub pid: i32,
    /// In clock ticks since boot (`proc_pid_stat(5)`), as the same pid may come twice; 0 if it was not to be read.
    pub start_time: u64,
    pub status: ExitStatus,
}

/// What the guardian could not keep, as its table was full (65,536 each, and its limit of open files).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    pub descriptors: u64,
    pub statuses: u64,
    /// The name of the descriptor that was refused last.
    pub last: Box<str>,
}

/// What the guardian is to know of svd.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Variables of the environment that only the first svd is to see, such as those that name descriptors.
    pub forget: &'static [&'static str],
}

/// Makes this process the guardian, and gives svd's side of it in a child that goes on from here; in an svd that a guardian
/// has started, just the latter.
///
/// For a process with one thread that has little in memory. On an error svd can go on without a guardian.
///
/// # Errors
/// `EBUSY` if there are other threads; what the kernel says to `fork(2)`, `signalfd(2)` and `socketpair(2)`.
pub fn start(options: Options) -> io::Result<Client> {
    resume(options);
    let limit = inherit::soft_limit()?;
    if let Some(socket) = inherit::take_socket() {
        // The kernel calls it by the number of the descriptor that it was executed from.
        crate::sys::process::set_name(c"svd");
        return Ok(Client::new(socket, limit));
    }
    let executable = inherit::own_executable()?;
    hear_of_children();
    // Before the fork, so that no signal finds either of them unprepared.
    let signals = crate::sys::poll::Signals::block()?;
    let (ours, theirs) = rights::pair()?;
    set_child_subreaper()?;
    match fork()? {
        Forked::Child => {
            drop((signals, ours, executable));
            Ok(Client::new(theirs, limit))
        }
        Forked::Parent { child } => {
            // Not dropped, as nothing of svd's is; closed with the rest.
            std::mem::forget(theirs);
            let setup = process::Setup { options, limit, executable, signals };
            process::first(setup, child, ours)
        }
    }
}

/// Executes another program in the place of this svd, with the same arguments; it finds the guardian as this one did.
/// Returns only if that failed; then this program is the one that the guardian starts next again.
pub fn execute_successor(
    client: &mut Client,
    options: Options,
    file: BorrowedFd<'_>,
    open_files: crate::sys::spawn::OpenFiles,
) -> io::Error {
    match try_execute(client, options, file, open_files) {
        Ok(never) => match never {},
        Err(error) => {
            // Best effort: the guardian gives up a program that does not come up.
            let _ = client.exec_failed();
            let _ = inherit::own_executable().and_then(|own| client.executable(own.as_fd()));
            error
        }
    }
}

fn try_execute(
    client: &mut Client,
    options: Options,
    file: BorrowedFd<'_>,
    open_files: crate::sys::spawn::OpenFiles,
) -> io::Result<std::convert::Infallible> {
    client.executable(file)?;
    let socket = client.across_exec()?;
    let environment = inherit::environment(options, Some((socket.0, socket.1)))?;
    open_files.lower()?;
    inherit::execute(file, &environment)
}

/// Has a guardian started this svd? Not known any more after [`start`].
pub fn is_guarded() -> bool {
    std::env::var_os(inherit::GUARDED).is_some()
}

/// Goes on as the guardian if svd executed itself to be it, and never returns then. To be called first in `main`: what is
/// done before it is done in the guardian, too, and stays in its memory.
pub fn resume(options: Options) {
    let Some(inherited) = inherit::take_state() else { return };
    hear_of_children();
    let setup = inherit::soft_limit().map_err(io::Error::from).and_then(|limit| {
        let executable: OwnedFd = inherit::own_executable()?;
        Ok(process::Setup { options, limit, executable, signals: crate::sys::poll::Signals::block()? })
    });
    match setup {
        Ok(setup) => process::resumed(setup, inherited),
        // Three descriptors and a limit are not to be had: the next svd, started by hand, adopts what runs.
        Err(_) => crate::sys::alone::exit(1),
    }
}
