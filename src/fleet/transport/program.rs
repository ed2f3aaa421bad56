//! ssh and rsync as processes that others wait for without a thread: their input and output is a socket, what they say is
//! kept, and they are killed when dropped.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::super::run;
use crate::sys::poll;
use crate::sys::process::PidFd;

/// Of what it says on stderr, the first bytes; the kernel refuses what is more.
const SAID: usize = 64 * 1024;

/// A process that is killed when this is dropped.
pub(super) struct Program {
    child: Child,
    said: File,
    ended: bool,
}

/// What a program that was fed has said, and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// `None`: it did not, and was killed; or a signal has ended it.
    pub code: Option<i32>,
    pub output: String,
    /// Its stderr.
    pub said: String,
}

impl Ran {
    /// The last line that it said; else its code.
    pub fn last_line(&self) -> String {
        let line = self.said.lines().rev().map(str::trim).find(|line| !line.is_empty());
        line.map_or_else(|| format!("it ended without a word ({:?})", self.code), str::to_owned)
    }
}

/// Of what such a program prints.
const OUTPUT: usize = 16 << 20;

/// Runs it to its end, with something on its standard input, which it need not read.
///
/// # Errors
/// Of the kernel; where there is no such program.
pub(super) async fn fed(command: Command, input: &[u8], limit: Duration) -> io::Result<Ran> {
    let until = tokio::time::Instant::now() + limit;
    let (program, stream) = Program::start(command)?;
    let (mut from, mut to) = stream.into_split();
    let mut output = Vec::new();
    let feed = async {
        // It may have ended, or read enough.
        let _ = to.write_all(input).await;
        let _ = to.shutdown().await;
    };
    let read = async {
        let mut from = (&mut from).take(OUTPUT as u64);
        let _ = from.read_to_end(&mut output).await;
    };
    let _ = tokio::time::timeout_at(until, async { tokio::join!(feed, read) }).await;
    let ended = program.end(until.saturating_duration_since(tokio::time::Instant::now())).await;
    Ok(Ran { code: ended.code(), output: String::from_utf8_lossy(&output).into_owned(), said: ended.said })
}

/// How a program has ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// `None`: it did not, and was killed.
    pub status: Option<ExitStatus>,
    /// Its stderr.
    pub said: String,
}

impl Ended {
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// The last line that it said; else how it ended.
    pub fn last_line(&self) -> String {
        let line = self.said.lines().rev().map(str::trim).find(|line| !line.is_empty());
        match (line, self.status) {
            (Some(line), _) => line.to_owned(),
            (None, Some(status)) => format!("it ended without a word ({status})"),
            (None, None) => "it does not answer".to_owned(),
        }
    }
}

impl Program {
    /// Gives the other end of its standard input and output, too.
    ///
    /// # Errors
    /// Of the kernel; where there is no such program.
    pub fn start(mut command: Command) -> io::Result<(Program, UnixStream)> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let stream = UnixStream::from_std(ours)?;
        let said = File::from(memfd_create(c"said", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
        said.set_len(SAID as u64)?;
        fcntl(&said, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_GROW))?;
        let output = theirs.try_clone()?;
        command.stdin(OwnedFd::from(theirs)).stdout(OwnedFd::from(output)).stderr(said.try_clone()?);
        // With the command go the copies of its ends, so that the program's end is one of the stream as well.
        let child = command.spawn()?;
        drop(command);
        Ok((Program { child, said, ended: false }, stream))
    }

    pub fn is_running(&mut self) -> bool {
        self.ended = self.ended || !matches!(self.child.try_wait(), Ok(None));
        !self.ended
    }

    /// Waits for its end, and kills it when that has not come within `limit`.
    pub async fn end(mut self, limit: Duration) -> Ended {
        let status = tokio::time::timeout(limit, self.wait()).await.ok().and_then(Result::ok);
        self.ended = status.is_some();
        Ended { status, said: self.said() }
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        // A child that is not reaped keeps its number.
        let pidfd = PidFd::open(self.child.id().cast_signed())?;
        let pidfd = poll::for_tokio(pidfd.as_fd().try_clone_to_owned()?)?;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            pidfd.readable().await?.clear_ready();
        }
    }

    /// The same for a thread that waits.
    pub fn end_until(mut self, until: Instant) {
        self.ended = matches!(run::wait(&mut self.child, until), Ok(Some(_)));
    }

    fn said(&self) -> String {
        let mut bytes = vec![0; SAID];
        let read = self.said.read_at(&mut bytes, 0).unwrap_or(0);
        bytes.truncate(read);
        let length = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        String::from_utf8_lossy(&bytes[..length]).trim().to_owned()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if !self.ended {
            run::end(&mut self.child);
        }
    }
}
