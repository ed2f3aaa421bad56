//! The process between svd and a service's program: it makes the sandbox around itself, and becomes the program.

use super::super::spawn::Limit;
use super::{FAILED, Network, Order, Program, Sandbox, beside, filter, mounts, network, pids, probe, rights, user};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::process::ExitCode;

/// `argv[0]` of the process. Its arguments are the descriptor with the order, the program's file, and the program's own from
/// its `argv[0]` on.
pub const NAME: &std::ffi::CStr = c"svd-entrance";

/// What goes wrong, as a sentence without its end.
pub(super) type Result<T> = std::result::Result<T, String>;

/// An error of the kernel's with what was to be done.
pub(super) fn cannot(what: impl std::fmt::Display) -> impl FnOnce(nix::errno::Errno) -> String {
    move |errno| format!("cannot {what}: {}", errno.desc())
}

/// Never returns where it succeeds.
pub fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.peek().is_some_and(|word| word.as_bytes() == probe::WORD.as_bytes()) {
        return probe::tell();
    }
    let number = arguments.next().and_then(|n| n.to_str()?.parse::<RawFd>().ok()).filter(|fd| *fd > 2);
    // Whoever calls it by hand has no order for it.
    let Some(number) = number.filter(|fd| is_order(*fd)) else {
        eprintln!("svd-entrance is a part of svd, which alone starts it");
        return ExitCode::from(127);
    };
    // SAFETY: the descriptor is there, svd has put it there for this process, and nothing else here knows it.
    let mut file = unsafe { File::from_raw_fd(number) };
    let program = arguments.next().unwrap_or_default();
    let why = match enter(&mut file, program, arguments.collect()) {
        Ok(never) => match never {},
        Err(why) => why,
    };
    let text = [FAILED, why.as_bytes()].concat();
    // Best effort: svd still learns that the program never ran, by the exit code.
    let _ = file.set_len(0).and_then(|()| file.seek(SeekFrom::Start(0))).and_then(|_| file.write_all(&text));
    ExitCode::from(127)
}

/// A memfd of svd's.
fn is_order(fd: RawFd) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{fd}"));
    link.is_ok_and(|link| link.as_os_str().as_bytes().starts_with(b"/memfd:airdock-entrance"))
}

fn enter(file: &mut File, program: OsString, argv: Vec<OsString>) -> Result<std::convert::Infallible> {
    let unreadable =
        |e: std::io::Error| format!("cannot read what the process is to be: {}", super::super::io_text(&e));
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut text)).map_err(unreadable)?;
    // It may hold secrets, and svd keeps a descriptor of it.
    file.set_len(0).map_err(unreadable)?;
    nix::fcntl::fcntl(&*file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
        .map_err(cannot("close a descriptor at the start of the program"))?;
    let line = text.iter().position(|b| *b == b'\n').unwrap_or(text.len());
    let order: Order =
        serde_json::from_slice(&text[..line]).map_err(|e| format!("cannot read what the process is to be: {e}"))?;
    let Order { sandbox, program: how } = order;
    let environment = text.get(line + 1..line + 1 + how.environment).unwrap_or_default();
    let text = |text: OsString| CString::new(text.into_vec()).map_err(|_| "an argument has a NUL byte".to_owned());
    let argv = argv.into_iter().map(text).collect::<Result<Vec<_>>>()?;
    let (program, directory) = (text(program)?, text(how.directory.clone())?);

    let is_beside = leave(&sandbox, &how)?;
    let variables = variables(environment, how.listen_pid, how.watchdog_pid);
    // Made and opened while nothing is forbidden yet.
    let syscalls = sandbox.syscalls.as_ref().map(filter::Syscalls::program).transpose()?;
    let files = sandbox.landlock.as_ref().map(filter::Landlock::rules).transpose()?;
    if sandbox.user_namespace {
        rights::limit_apart(&sandbox)?;
    } else {
        set_limits(&how.limits)?;
        rights::limit(&sandbox, how.ids.as_ref())?;
    }
    // As the service's user: root may not see into its directories, nor should it in its place.
    nix::unistd::chdir(directory.as_c_str())
        .map_err(|e| format!("cannot change to directory {}: {}", directory.to_string_lossy(), e.desc()))?;
    // Rust's runtime ignores it, and that would survive.
    // SAFETY: the default action is no handler of ours.
    unsafe { nix::sys::signal::signal(nix::sys::signal::Signal::SIGPIPE, nix::sys::signal::SigHandler::SigDfl) }
        .map_err(cannot("reset SIGPIPE"))?;
    if is_beside && sandbox.private_pids {
        pids::end_with_entrance();
    }
    rights::confine(&sandbox)?;
    files.map(filter::restrict_files).transpose()?;
    syscalls.as_ref().map(filter::restrict_syscalls).transpose()?;
    nix::unistd::execve(&program, &argv, &variables).map_err(|e| {
        let failure =
            super::super::spawn::ExecFailure { step: super::super::spawn::Step::Exec, errno: e as i32, detail: 0 };
        failure.describe(&super::super::spawn::Prepared::new(program.clone(), Vec::new()))
    })
}

/// From what svd has to what the program is to have, but for its rights. Is that a neighbour's?
fn leave(sandbox: &Sandbox, how: &Program) -> Result<bool> {
    let kept = how.network.and_then(given);
    let is_kept = kept.is_some();
    if is_kept {
        // Svd's, so that it is entered with svd's rights.
        network::enter(sandbox.network, kept)?;
    }
    if sandbox.user_namespace {
        // What only svd's own rights allow comes first: beyond it they count for nothing.
        set_limits(&how.limits)?;
        how.ids.as_ref().map(rights::become_user).transpose()?;
    }
    let neighbour = how.neighbour.and_then(|(pid, number)| Some((pid, given(number)?)));
    if let Some((pid, process)) = neighbour
        && beside::enter(sandbox, !is_kept && sandbox.network != Network::Host, process, pid)?
    {
        if sandbox.private_pids {
            pids::enter_beside(how.terminal)?;
        }
        return Ok(true);
    }
    if sandbox.user_namespace {
        user::leave()?;
    }
    if !is_kept {
        network::enter(sandbox.network, None)?;
    }
    let has_view = !sandbox.mounts.is_empty();
    if has_view {
        mounts::leave()?;
    }
    if sandbox.private_pids {
        pids::enter(how.terminal)?;
    }
    if has_view {
        mounts::make(&sandbox.mounts, sandbox.user_namespace)?;
    }
    Ok(false)
}

/// A descriptor by its number in the order.
fn given(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: svd has put it there for this process, and nothing else here knows it.
    (number > 2).then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// With the numbers that nobody knew before.
fn variables(environment: &[u8], listen: bool, watchdog: bool) -> Vec<CString> {
    let given = environment.split_inclusive(|b| *b == 0).filter_map(|v| CString::from_vec_with_nul(v.to_vec()).ok());
    let own = [(listen, "LISTEN_PID"), (watchdog, "WATCHDOG_PID")].into_iter();
    let own = own.filter(|(wanted, _)| *wanted);
    given.chain(own.filter_map(|(_, name)| CString::new(format!("{name}={}", std::process::id())).ok())).collect()
}

fn set_limits(limits: &[Limit]) -> Result<()> {
    for limit in limits {
        limit.apply().map_err(|e| {
            let name = super::super::spawn::limit_name(limit.resource);
            format!("cannot set the limit {name}: {}", e.desc())
        })?;
    }
    Ok(())
}
