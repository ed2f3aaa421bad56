//! What this host lets svd do for its services, found by trying: in a process that does it to itself and ends.

use super::entrance::{NAME, Result, cannot};
use super::{Mount, Network, mounts, network, user};
use crate::sys::limits::{Capability, capabilities_to_give};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

/// The argument by which the entrance does this.
pub(super) const WORD: &str = "probe";

/// Longest time that it may take.
const LIMIT_MS: u16 = 5000;

/// What can be had; else a sentence without its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    pub root: bool,
    /// Capabilities that svd can hand on, a bit each.
    pub capabilities: u64,
    /// Those that svd has not the rights for are tried in it.
    pub user_namespace: Result<()>,
    pub mounts: Result<()>,
    /// Terminals of one's own.
    pub terminals: Result<()>,
    pub network: Result<()>,
    /// A process namespace with its own `/proc`.
    pub processes: Result<()>,
    pub syscalls: Result<()>,
    pub landlock: Result<()>,
}

impl Default for Found {
    /// All that there is.
    fn default() -> Found {
        let all = Ok(());
        Found {
            root: true,
            capabilities: u64::MAX,
            user_namespace: all.clone(),
            mounts: all.clone(),
            terminals: all.clone(),
            network: all.clone(),
            processes: all.clone(),
            syscalls: all.clone(),
            landlock: all,
        }
    }
}

impl Found {
    /// Is it in svd's power to make sandboxes, without a user namespace?
    pub fn is_mighty(&self) -> bool {
        self.has(Capability::SysAdmin) && self.has(Capability::SetPcap)
    }

    pub fn has(&self, capability: Capability) -> bool {
        self.capabilities & 1 << capability as u32 != 0
    }
}

/// Takes some milliseconds.
///
/// # Errors
/// A sentence: it could not be found out.
pub fn probe() -> Result<Found> {
    let failed =
        |e: std::io::Error| format!("cannot find out what services can be shut in with: {}", super::super::io_text(&e));
    let mut command = Command::new("/proc/self/exe");
    command.arg0(std::ffi::OsStr::new(NAME.to_str().unwrap_or_default())).arg(WORD).env_clear().current_dir("/");
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().map_err(failed)?;
    let mut text = Vec::new();
    let read = child.stdout.take().map(|mut output| {
        let mut ready = [PollFd::new(output.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, LIMIT_MS) {
            Ok(0) => Err(Errno::ETIMEDOUT.into()),
            Ok(_) => output.read_to_end(&mut text).map(drop),
            Err(e) => Err(e.into()),
        }
    });
    if let Some(Err(e)) = read {
        // Whoever hangs in the kernel is reaped when it ends, as all children are.
        let _ = child.kill();
        return Err(failed(e));
    }
    child.wait().map_err(failed)?;
    serde_json::from_slice(&text).map_err(|e| failed(e.into()))
}

/// In the process that tries.
pub(super) fn tell() -> ExitCode {
    let text = serde_json::to_vec(&try_all()).unwrap_or_default();
    // At once, for who reads waits for its beginning.
    match std::io::stdout().write_all(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn try_all() -> Found {
    let mut found = Found {
        root: nix::unistd::geteuid().is_root(),
        capabilities: capabilities_to_give(),
        syscalls: syscalls(),
        landlock: landlock(),
        ..Found::default()
    };
    let apart = !found.is_mighty();
    if apart {
        found.user_namespace = user::leave();
    }
    // A host may let a user namespace be made, and give no rights in it.
    let explain = |why: String| match user::forbidden().filter(|_| apart) {
        Some(switch) => format!("{why}; {switch}"),
        None => why,
    };
    found.network = network::enter(Network::Loopback, None).map_err(explain);
    let devices = Mount::Cover {
        path: "/dev".into(),
        mode: 0o755,
        keep: vec!["/dev/null".into()],
        make: Vec::new(),
        empty: false,
    };
    let read_only = Mount::ReadOnly { paths: vec!["/dev".into()], except: vec!["/dev/null".into()] };
    found.mounts = mounts::leave().and_then(|()| mounts::make(&[devices.clone(), read_only], apart)).map_err(explain);
    found.terminals = mounts::leave().and_then(|()| mounts::make(&[devices, Mount::Terminals], apart)).map_err(explain);
    found.processes = processes().map_err(explain);
    found
}

fn processes() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWPID).map_err(cannot("make a process namespace"))?;
    // SAFETY: this process has one thread.
    match unsafe { nix::unistd::fork() }.map_err(cannot("start a process in a process namespace"))? {
        ForkResult::Child => {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            let mounted = mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>);
            std::process::exit(mounted.err().map_or(0, |e| e as i32));
        }
        ForkResult::Parent { child } => match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, 0)) => Ok(()),
            Ok(WaitStatus::Exited(_, errno)) => Err(cannot(
                "mount a /proc of its own (a container that covers parts of /proc forbids it)",
            )(Errno::from_raw(errno))),
            Ok(status) => Err(format!("a process in a process namespace ended with {status:?}")),
            Err(e) => Err(cannot("wait for a process in a process namespace")(e)),
        },
    }
}

/// `SECCOMP_GET_ACTION_AVAIL`, which only asks.
fn syscalls() -> Result<()> {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads the number.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action) };
    let built = |_| "the kernel is built without filters of system calls (CONFIG_SECCOMP_FILTER)".to_owned();
    Errno::result(result).map(drop).map_err(built)
}

/// Asks for its version.
fn landlock() -> Result<()> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: without attributes, nothing is made.
    let result = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION) };
    Errno::result(result).map(drop).map_err(|e| match e {
        Errno::EOPNOTSUPP => "it is switched off: add landlock to lsm= of the kernel's command line".to_owned(),
        Errno::ENOSYS => "the kernel has none (Linux 5.13, CONFIG_SECURITY_LANDLOCK)".to_owned(),
        e => e.desc().to_owned(),
    })
}
