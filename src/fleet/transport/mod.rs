//! The ways to a host: a connection to its svd, and files to a staging place there. Commands are run on a host by [`Ways::run`] alone, for what
//! makes a host ready before there is an svd.
//!
//! | file | what it has |
//! |---|---|
//! | [`local`] | this machine: svd's UNIX socket, files copied |
//! | [`ssh`] | others: the system's `ssh`, one connection a host, on which all else goes; files by `rsync` |
//! | `program` | ssh and rsync as processes: their ends, their last words, their limits |
//!
//! [`Ways`] takes the right one for each host.

pub mod local;
mod program;
pub mod ssh;

use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::inventory::Host;
use crate::api::client::{Away, ClientError, Dial, Dialing, Io};
use local::Local;
pub use program::Ran;
use ssh::Ssh;

/// Something under way on a host.
pub type Under<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way to hosts. Whoever waits needs a tokio runtime with its timers and I/O; a connection belongs to the runtime that made it.
pub trait Transport: Send + Sync {
    /// A new connection to the host's svd.
    ///
    /// # Errors
    /// [`ClientError::Away`], which says how far it came; [`ClientError::Local`].
    fn connect<'a>(&'a self, host: &'a Host) -> Under<'a, Result<Box<dyn Io>, ClientError>>;

    /// Makes a directory of the host's the same as one here.
    ///
    /// # Errors
    /// [`CopyError`]; the directory may then have some of it.
    fn copy<'a>(&'a self, host: &'a Host, upload: &'a Upload) -> Under<'a, Result<(), CopyError>>;

    /// Connections are so dear that they are kept for more than one request.
    fn is_dear(&self, host: &Host) -> bool;
}

/// What is copied, and to where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// A directory here.
    pub from: Box<Path>,
    /// The directory there, an absolute path: whatever else it has is removed. What is above it must exist.
    pub to: String,
    /// Directories there with much the same in them, absolute paths: what has not changed is taken from there.
    pub like: Vec<String>,
}

/// Why files have not arrived.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} could not be copied to {host}: {why}.", .from.display())]
pub struct CopyError {
    pub host: Box<str>,
    pub from: Box<Path>,
    /// Without a full stop.
    pub why: String,
    /// The host cannot be reached; another time may do.
    pub away: bool,
}

impl Upload {
    fn error(&self, host: &Host, why: impl Into<String>) -> CopyError {
        CopyError { host: host.name.clone(), from: self.from.clone(), why: why.into(), away: false }
    }

    /// Paths on a host are absolute and plain: some pass through rsync's own syntax.
    fn check(&self, host: &Host) -> Result<(), CopyError> {
        let plain = |path: &String| {
            path.starts_with('/') && !path.split('/').any(|part| part == "..") && !path.chars().any(char::is_control)
        };
        match [&self.to].into_iter().chain(&self.like).find(|path| !plain(path)) {
            Some(path) => Err(self.error(host, format!("{path:?} is no absolute path"))),
            None => Ok(()),
        }
    }
}

/// This machine's svd for hosts that are `local`, ssh for all others.
pub struct Ways {
    local: Local,
    ssh: Ssh,
}

impl Ways {
    pub fn new(local: Local, ssh: Ssh) -> Ways {
        Ways { local, ssh }
    }

    /// Runs a command of the host's shell to its end, with something on its standard input.
    ///
    /// # Errors
    /// The host cannot be reached, or the command has not ended within `limit`.
    pub async fn run(&self, host: &Host, command: &str, input: &[u8], limit: Duration) -> Result<Ran, ClientError> {
        if !host.local {
            return self.ssh.run(host, command, input, limit).await;
        }
        let mut shell = Command::new("sh");
        shell.args(["-c", command]);
        let ran = program::fed(shell, input, limit).await;
        ran.map_err(|source| ClientError::Local { message: "sh cannot be started here", source })
    }

    fn of(&self, host: &Host) -> &dyn Transport {
        if host.local { &self.local } else { &self.ssh }
    }

    /// Ends all connections of ssh's, and removes what they needed; what is under way fails.
    pub fn close(&self) {
        self.ssh.close();
    }
}

impl Transport for Ways {
    fn connect<'a>(&'a self, host: &'a Host) -> Under<'a, Result<Box<dyn Io>, ClientError>> {
        self.of(host).connect(host)
    }

    fn copy<'a>(&'a self, host: &'a Host, upload: &'a Upload) -> Under<'a, Result<(), CopyError>> {
        self.of(host).copy(host, upload)
    }

    fn is_dear(&self, host: &Host) -> bool {
        self.of(host).is_dear(host)
    }
}

/// One host, for [`crate::api::client`].
pub struct HostDial {
    transport: Arc<dyn Transport>,
    host: Host,
}

impl HostDial {
    pub fn new(transport: Arc<dyn Transport>, host: Host) -> HostDial {
        HostDial { transport, host }
    }
}

impl Dial for HostDial {
    fn dial(&self) -> Dialing<'_> {
        self.transport.connect(&self.host)
    }

    fn place(&self) -> &str {
        &self.host.name
    }

    fn is_dear(&self) -> bool {
        self.transport.is_dear(&self.host)
    }
}

fn away(host: &Host, stage: crate::api::client::Stage, said: &str) -> ClientError {
    let said = said.trim().trim_end_matches('.');
    ClientError::Away(Away { host: host.name.clone(), stage, said: said.into() })
}

#[cfg(test)]
mod tests;
