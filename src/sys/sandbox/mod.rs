//! A process in an environment of its own: other files, devices, processes, rights.
//!
//! Making a view takes hundreds of system calls and memory, which a child between fork and exec must not have. So the child
//! executes svd's own program once more, under the name [`entrance::NAME`], with no environment and still as svd's user; that
//! process has one thread, reads what to do from a memfd, does it ([`entrance`]), and becomes the service's program. What
//! fails is written into the same memfd, of which svd keeps a descriptor.

mod beside;
pub mod entrance;
mod filter;
mod mounts;
mod network;
pub mod pids;
mod places;
pub mod probe;
mod rights;
mod root;
mod user;

pub use beside::Neighbour;
pub use filter::{Landlock, Syscalls};
pub use mounts::is_read_only;
pub use network::Namespace;
pub use root::Inside;

use super::spawn::{Ids, Limit, Prepared, Source, SpawnError, Wire, c_string};
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

/// What a process is shut in. Plain data, the same for all processes of a generation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// All of it is done in a user namespace (`user_namespaces(7)`), by whoever has not the rights for it. The program keeps its
    /// user, and has no capabilities over the host.
    #[serde(default)]
    pub user_namespace: bool,
    /// Not empty: a mount namespace.
    pub mounts: Vec<Mount>,
    /// The highest number of a capability is the kernel's to know; `None`: all stay.
    pub bounding: Option<Vec<u8>>,
    /// The program has all of `bounding` from the beginning, whatever its user.
    pub ambient: bool,
    pub no_new_privileges: bool,
    pub syscalls: Option<Syscalls>,
    pub landlock: Option<Landlock>,
    pub network: Network,
    /// Processes of its own; [`Mount::Processes`] shows them.
    pub private_pids: bool,
}

impl Sandbox {
    /// The kinds of namespaces that it has of its own, as `/proc/PID/ns` names them.
    pub fn namespaces(&self) -> Vec<&'static str> {
        let all = [
            ("mnt", !self.mounts.is_empty()),
            ("net", self.network != Network::Host),
            ("pid", self.private_pids),
            ("user", self.user_namespace),
        ];
        all.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect()
    }
}

/// What a process has of the host's network (`network_namespaces(7)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    #[default]
    Host,
    /// Descriptors that it was handed, and nothing else.
    None,
    /// An own 127.0.0.1 beside them.
    Loopback,
}

/// A step of making a view (`mount_namespaces(7)`). Paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mount {
    /// The first one: another directory is `/`, and all other paths are those in it, but for the sources of [`Mount::Bind`].
    Root {
        path: PathBuf,
        /// What is seen of the host nevertheless, at the same place. What is not there is left out.
        shown: Vec<PathBuf>,
    },
    /// A file system in memory over a directory; a file is covered by `/dev/null`. What is not there needs no cover.
    Cover {
        path: PathBuf,
        /// Permission bits of the directory.
        mode: u32,
        /// Below it, and visible in it as before. What is not there is left out.
        keep: Vec<PathBuf>,
        /// Directories that are made in it, for what is to be mounted there.
        make: Vec<PathBuf>,
        /// Nothing is in it.
        empty: bool,
    },
    /// In a `/dev` that was covered: pseudo-terminals of its own, shared memory, and the usual links.
    Terminals,
    /// A `/proc` of the PID namespace that the program is in.
    Processes,
    /// Something else to see at a path that is there.
    Bind { source: PathBuf, target: PathBuf },
    /// All that is mounted at or below `paths`, but for what is at or below `except`; the longer path decides.
    ReadOnly { paths: Vec<PathBuf>, except: Vec<PathBuf> },
}

/// What the entrance becomes.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Program {
    directory: OsString,
    ids: Option<Ids>,
    limits: Vec<Limit>,
    listen_pid: bool,
    watchdog_pid: bool,
    /// The descriptor of a network that is there already.
    network: Option<RawFd>,
    /// Whose sandbox it enters, in place of one of its own: the number of the process, and a descriptor of it.
    neighbour: Option<(i32, RawFd)>,
    /// 0 is a terminal, which the process behind the entrance is to take.
    terminal: bool,
    /// Bytes of the environment, `NAME=value` each with a NUL, behind this in the memfd.
    environment: usize,
}

#[derive(Serialize, Deserialize)]
struct Order {
    sandbox: Sandbox,
    program: Program,
}

/// What stands before a failure in the memfd, where the order was.
const FAILED: &[u8] = b"failed: ";
/// Bytes of a failure's text.
const LONGEST: u64 = 4096;

/// A child that first enters its sandbox.
pub struct Enclosed {
    pub prepared: Prepared,
    pub report: Report,
}

/// Where the entrance says why the program never ran.
#[derive(Debug)]
pub struct Report(Arc<OwnedFd>);

impl Report {
    /// A sentence without its end.
    pub fn failure(&self) -> Option<String> {
        let mut file = File::from(self.0.try_clone().ok()?);
        file.seek(SeekFrom::Start(0)).ok()?;
        let mut text = Vec::new();
        file.take(LONGEST).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(text.strip_prefix(FAILED)?).into_owned())
    }
}

/// The same program, behind the entrance.
///
/// # Errors
/// There is no descriptor or memory for the order.
pub fn enclose(sandbox: &Sandbox, prepared: &Prepared) -> Result<Enclosed, SpawnError> {
    let failed = |e: std::io::Error| SpawnError::Entrance(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EINVAL)));
    let mut environment = Vec::with_capacity(2048);
    prepared.environment.iter().for_each(|v| environment.extend_from_slice(v.as_bytes_with_nul()));
    // Behind all that the program is to have.
    let target = prepared.descriptors.iter().map(|w| w.target + 1).max().unwrap_or(0).max(3);
    let network = prepared.network.as_ref().map(|network| (network, target + 1));
    let neighbour = prepared.neighbour.as_ref().map(|neighbour| (neighbour, target + 2));
    let order = Order {
        sandbox: sandbox.clone(),
        program: Program {
            directory: os(&prepared.directory),
            ids: prepared.ids.clone(),
            limits: prepared.limits.clone(),
            listen_pid: prepared.listen_pid,
            watchdog_pid: prepared.watchdog_pid,
            network: network.map(|(_, target)| target),
            neighbour: neighbour.map(|(neighbour, target)| (neighbour.pid, target)),
            terminal: prepared.terminal,
            environment: environment.len(),
        },
    };
    let mut text = serde_json::to_vec(&order).map_err(|e| failed(e.into()))?;
    text.push(b'\n');
    text.append(&mut environment);
    let fd = memfd_create(c"airdock-entrance", MFdFlags::MFD_CLOEXEC).map_err(SpawnError::Entrance)?;
    let mut file = File::from(fd);
    file.write_all(&text).map_err(failed)?;
    let fd = Arc::new(OwnedFd::from(file));
    let mut argv = vec![entrance::NAME.to_owned(), c_string(target.to_string()).unwrap_or_default()];
    argv.push(prepared.program.clone());
    argv.extend(prepared.argv.iter().cloned());
    let mut descriptors = prepared.descriptors.clone();
    descriptors.push(Wire { source: Source::Fd(Arc::clone(&fd)), target });
    if let Some((network, target)) = network {
        descriptors.push(Wire { source: Source::Fd(network.descriptor()), target });
    }
    if let Some((neighbour, target)) = neighbour {
        descriptors.push(Wire { source: Source::Fd(Arc::clone(&neighbour.process)), target });
    }
    let outer = Prepared {
        program: c"/proc/self/exe".into(),
        argv,
        // Of the service's user's making, perhaps, and the entrance is root's.
        environment: Vec::new(),
        directory: c"/".into(),
        ids: None,
        limits: Vec::new(),
        listen_pid: false,
        watchdog_pid: false,
        // Its session is not the program's then.
        terminal: prepared.terminal && !sandbox.private_pids,
        sandbox: None,
        network: None,
        neighbour: None,
        descriptors,
        ..prepared.clone()
    };
    Ok(Enclosed { prepared: outer, report: Report(fd) })
}

fn os(text: &CString) -> OsString {
    use std::os::unix::ffi::OsStrExt;
    std::ffi::OsStr::from_bytes(text.as_bytes()).to_owned()
}
