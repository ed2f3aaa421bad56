//! Into the sandbox that a living process of the service is in, for what is to see the same as it: a check, a command of a client's.

use super::Sandbox;
use super::entrance::{NAME, Result, cannot};
use super::pids::program_of;
use crate::sys::process::PidFd;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A process that svd has started for the service: its program, or the entrance in front of that.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Certain as long as the descriptor says that it lives.
    pub pid: i32,
    pub process: Arc<OwnedFd>,
}

/// For one that has just been started to be where it is to be.
const LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(2);

/// As a sentence without its end.
pub(super) const GONE: &str = "its worker has ended in this moment; try again";

/// Enters it; `false`: it is not to be had (Linux before 5.8, a root that may not look at others' processes), and nothing has changed.
/// The process has one thread, and rights over what it enters.
pub(super) fn enter(sandbox: &Sandbox, own_network: bool, neighbour: OwnedFd, pid: i32) -> Result<bool> {
    let kinds = [
        (!sandbox.mounts.is_empty(), "mnt", CloneFlags::CLONE_NEWNS),
        (sandbox.user_namespace, "user", CloneFlags::CLONE_NEWUSER),
        (own_network, "net", CloneFlags::CLONE_NEWNET),
        (sandbox.private_pids, "pid", CloneFlags::CLONE_NEWPID),
    ];
    let mut asked = kinds.into_iter().filter(|(is, ..)| *is).map(|(_, name, flag)| (name, flag)).peekable();
    let Some((first, _)) = asked.peek().copied() else { return Ok(false) };
    let flags = asked.fold(CloneFlags::empty(), |all, (_, flag)| all | flag);
    // From here on the service's processes could look at this one, which has svd's rights and svd's file, and do more than that.
    nix::sys::prctl::set_dumpable(false).map_err(cannot("keep the service out of svd's own process"))?;
    let Some(program) = program(&PidFd::from_parts(pid, neighbour), sandbox.private_pids, first)? else {
        return Ok(false);
    };
    // All of them or none.
    match setns(program.as_fd(), flags) {
        Ok(()) => Ok(true),
        Err(Errno::ESRCH) => Err(GONE.to_owned()),
        Err(Errno::EPERM | Errno::EINVAL) => Ok(false),
        Err(e) => Err(cannot("enter what its worker is in")(e)),
    }
}

/// The program of the service, once all around it is made; `None`: it may not be looked at. `kind` is a namespace that it has not in
/// common with svd.
fn program(started: &PidFd, private_pids: bool, kind: &str) -> Result<Option<PidFd>> {
    let until = Instant::now() + LIMIT;
    let own = namespace("self", kind).map_err(|e| format!("cannot look at /proc: {}", super::super::io_text(&e)))?;
    loop {
        let found = if private_pids { behind(started) } else { started.try_clone().ok() };
        if let Some(found) = found {
            match is_shut_in(found.pid(), kind, own) {
                // The number was its own all the time.
                Ok(true) if !found.has_ended() => return Ok(Some(found)),
                Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !found.has_ended() => return Ok(None),
                _ => {}
            }
        }
        if started.has_ended() {
            return Err(GONE.to_owned());
        }
        if Instant::now() >= until {
            return Err("its worker has not begun yet; try again".to_owned());
        }
        std::thread::sleep(PAUSE);
    }
}

/// The program behind an entrance that lives.
fn behind(entrance: &PidFd) -> Option<PidFd> {
    let program = PidFd::open(program_of(entrance.pid())?).ok()?;
    // Asked again: that it is the one that was opened, and that the entrance had its number until now.
    let same = program_of(entrance.pid()) == Some(program.pid());
    (same && !entrance.has_ended()).then_some(program)
}

/// Svd's child first leaves svd's namespaces, and becomes the program when all is done: asked in this order it is certain.
fn is_shut_in(pid: i32, kind: &str, own: u64) -> io::Result<bool> {
    if namespace(&pid.to_string(), kind)? == own {
        return Ok(false);
    }
    let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
    let name = line.split(|b| *b == 0).next().unwrap_or_default();
    Ok(!line.is_empty() && name != NAME.to_bytes())
}

fn namespace(process: &str, kind: &str) -> io::Result<u64> {
    Ok(std::fs::metadata(format!("/proc/{process}/ns/{kind}"))?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    #[test]
    fn a_process_is_shut_in_when_it_has_left_svds_namespaces_and_become_the_program() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let own = namespace("self", "mnt").expect("this process's own");
        for (name, leaves, expected) in [
            ("svd-entrance", false, false),
            ("svd-entrance", true, false),
            ("sleep", false, false),
            ("sleep", true, true),
        ] {
            let mut command = Command::new("sleep");
            command.arg0(name).arg("1000");
            if leaves {
                // SAFETY: one system call, which allocates nothing.
                unsafe { command.pre_exec(|| Ok(nix::sched::unshare(CloneFlags::CLONE_NEWNS)?)) };
            }
            let mut child = command.spawn().expect("a process");
            let found = is_shut_in(child.id().cast_signed(), "mnt", own);
            child.kill().and_then(|()| child.wait()).expect("its end");
            assert_eq!(found.expect("a look"), expected, "{name}, {leaves}");
        }
    }
}
