//! What goes through an exec: the environment that says which part a process plays, and descriptors.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::protocol::NAME_MAX;
use super::{Ended, Options, keeper};
use crate::sys::alone::take_variable;
use crate::sys::spawn::c_string;

/// In svd's environment: its end of the socket.
pub(super) const GUARDED: &str = "AIRDOCK_GUARDED";
/// In the guardian's environment: the memory file with its [`State`].
const GUARD: &str = "AIRDOCK_GUARD";
const VERSION: u32 = 1;

/// What svd hands to the guardian that it becomes.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    version: u32,
    descriptors: Vec<(RawFd, Box<str>)>,
    exits: Vec<Ended>,
    /// The soft limit of open files that svd is started with.
    open_files: Option<u64>,
}

/// Puts the guardian in the place of this svd, whose pid and children it takes over: executes this program again, which
/// starts a new svd. Returns only if that failed; then nothing has changed.
///
/// `descriptors` are what the new svd gets, `exits` statuses that are not recorded yet, `open_files` the soft limit that svd
/// itself was started with ([`Client::open_files`](super::Client::open_files)). Other threads end: what they had begun must be
/// such that it can be taken up again.
pub fn become_guardian(
    options: Options,
    descriptors: &[(&str, BorrowedFd<'_>)],
    exits: &[Ended],
    open_files: u64,
) -> io::Error {
    match try_become(options, descriptors, exits, open_files) {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

fn try_become(
    options: Options,
    descriptors: &[(&str, BorrowedFd<'_>)],
    exits: &[Ended],
    open_files: u64,
) -> io::Result<std::convert::Infallible> {
    let too_many = descriptors.len() > keeper::NAMES || exits.len() > keeper::STATUSES;
    if too_many || descriptors.iter().any(|(name, _)| name.len() > NAME_MAX) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors, statuses, or too long a name"));
    }
    let executable = own_executable()?;
    // One that has two names becomes two, as each has one owner. The standard ones stay in their place.
    let mut copies: Vec<OwnedFd> = Vec::new();
    let mut numbers = BTreeSet::from([0, 1, 2]);
    let mut listed = Vec::with_capacity(descriptors.len());
    for (name, fd) in descriptors {
        let mut number = fd.as_raw_fd();
        if !numbers.insert(number) {
            let copy = fd.try_clone_to_owned()?;
            number = copy.as_raw_fd();
            numbers.insert(number);
            copies.push(copy);
        }
        listed.push((number, Box::from(*name)));
    }
    let state = State { version: VERSION, descriptors: listed, exits: exits.to_vec(), open_files: Some(open_files) };
    let file = write_state(&state)?;
    let mut handed: Vec<BorrowedFd<'_>> = descriptors.iter().map(|(_, fd)| *fd).collect();
    handed.extend(copies.iter().map(AsFd::as_fd));
    handed.push(file.as_fd());
    // In this thread, whichever it is: what comes meanwhile waits for the guardian's signalfd.
    let signals = crate::sys::poll::Signals::block()?;
    let environment = environment(options, Some((GUARD, file.as_raw_fd())))?;
    let result = handed
        .iter()
        .filter(|fd| fd.as_raw_fd() > 2)
        .try_for_each(|fd| set_inherited(fd, true))
        .and_then(|()| execute(executable.as_fd(), &environment));
    // Still here. Best effort: children are started with all others closed.
    handed.iter().filter(|fd| fd.as_raw_fd() > 2).for_each(|fd| drop(set_inherited(fd, false)));
    drop(signals);
    result
}

fn write_state(state: &State) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"airdock-guardian", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&serde_json::to_vec(state)?)?;
    file.rewind()?;
    Ok(file)
}

/// What a guardian was made of.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    pub(super) descriptors: Vec<(Box<str>, OwnedFd)>,
    pub(super) exits: Vec<Ended>,
    pub(super) open_files: Option<u64>,
}

/// What svd handed over, if it did. To be called before this process has opened anything.
///
/// A list that cannot be read is an empty one: to be a guardian who keeps nothing is better than to leave the workers alone.
pub(super) fn take_state() -> Option<Inherited> {
    let value = take_variable(GUARD)?;
    let file = value.to_str().and_then(|text| text.parse().ok()).filter(|fd| *fd > 2);
    let read = |fd| {
        let mut text = Vec::new();
        File::from(crate::sys::take_inherited(fd)?).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    };
    let state = file.and_then(read).filter(|state: &State| state.version == VERSION).unwrap_or_default();
    let mut taken = BTreeSet::from([0, 1, 2]);
    let mut descriptors = Vec::with_capacity(state.descriptors.len());
    for (number, name) in state.descriptors {
        // Each has one owner.
        if taken.insert(number) {
            descriptors.extend(crate::sys::take_inherited(number).map(|fd| (name, fd)));
        }
    }
    Some(Inherited { descriptors, exits: state.exits, open_files: state.open_files })
}

/// svd's end of the socket, if a guardian started this svd.
pub(super) fn take_socket() -> Option<OwnedFd> {
    let value = take_variable(GUARDED)?;
    let fd = value.to_str()?.parse().ok().filter(|fd: &RawFd| *fd > 2)?;
    let socket = crate::sys::take_inherited(fd)?;
    let kind = getsockopt(&socket, sockopt::SockType).ok();
    if kind != Some(SockType::SeqPacket) {
        // Somebody else's variable, and so is what has this number.
        std::mem::forget(socket);
        return None;
    }
    Some(socket)
}

/// Keeps or takes away what an exec closes.
pub(super) fn set_inherited(fd: impl AsFd, inherited: bool) -> io::Result<()> {
    let flags = if inherited { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    Ok(fcntl(fd, FcntlArg::F_SETFD(flags)).map(drop)?)
}

/// The file of this program, even if it was replaced or removed since (`O_PATH`).
pub(super) fn own_executable() -> io::Result<OwnedFd> {
    let mut options = std::fs::OpenOptions::new();
    Ok(options.read(true).custom_flags(libc::O_PATH).open("/proc/self/exe")?.into())
}

/// This process's soft limit of open files.
pub(super) fn soft_limit() -> Result<u64, Errno> {
    getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| soft)
}

/// Our environment without what says who we are, with what says who the next one is.
pub(super) fn environment(options: Options, part: Option<(&str, RawFd)>) -> io::Result<Vec<CString>> {
    let drop = |name: &std::ffi::OsStr| {
        [GUARD, GUARDED].iter().chain(options.forget).any(|gone| name.as_bytes() == gone.as_bytes())
    };
    let mut environment = Vec::new();
    for (mut entry, value) in std::env::vars_os().filter(|(name, _)| !drop(name)) {
        entry.push("=");
        entry.push(value);
        environment.push(c_string(entry).ok_or(Errno::EINVAL)?);
    }
    if let Some((name, fd)) = part {
        environment.push(c_string(format!("{name}={fd}")).ok_or(Errno::EINVAL)?);
    }
    Ok(environment)
}

/// Executes this file with our own arguments. Returns only if that failed.
pub(super) fn execute(file: BorrowedFd<'_>, environment: &[CString]) -> io::Result<std::convert::Infallible> {
    let arguments: Option<Vec<CString>> = std::env::args_os().map(c_string).collect();
    Ok(nix::unistd::fexecve(file, &arguments.ok_or(Errno::EINVAL)?, environment)?)
}
