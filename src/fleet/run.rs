//! Programs that svctl runs and waits for: without input, with limits in time and output, and with what they said in the error.

use std::io::{self, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::sys::process::PidFd;

/// Of what a program says on stderr, the last bytes.
const SAID: usize = 8 * 1024;
/// For its pipes to be closed by others when it has ended.
const AFTER: Duration = Duration::from_secs(2);

/// Why a program gave no result. To be read after its name: no capital, no full stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot be run: {}", crate::sys::io_text(.0))]
    Start(io::Error),
    #[error("did not end within {} s", .0.as_secs())]
    Limit(Duration),
    #[error("wrote more than {0} bytes")]
    TooMuch(usize),
    #[error("failed ({status}){}", with_colon(said))]
    Failed { status: ExitStatus, said: String },
}

fn with_colon(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

impl RunError {
    /// What it said on stderr.
    pub fn said(&self) -> &str {
        match self {
            RunError::Failed { said, .. } => said,
            _ => "",
        }
    }
}

/// What it has printed, where it has ended well.
///
/// # Errors
/// [`RunError`]; after [`RunError::Limit`] and [`RunError::TooMuch`] it is killed.
pub fn output(command: Command, limit: Duration, most: usize) -> Result<Vec<u8>, RunError> {
    let done = run(command, limit, most)?;
    match done.status.success() {
        true => Ok(done.output),
        false => Err(RunError::Failed { status: done.status, said: done.said }),
    }
}

/// How a program has ended.
#[derive(Debug)]
pub struct Done {
    pub status: ExitStatus,
    pub output: Vec<u8>,
    /// The end of its stderr, without blanks around it.
    pub said: String,
}

/// The same, whatever its exit status is.
///
/// # Errors
/// As [`output`], but for [`RunError::Failed`].
pub fn run(mut command: Command, limit: Duration, most: usize) -> Result<Done, RunError> {
    command.stdin(Stdio::null());
    begun(command, None, limit, most)
}

/// The same with something on its standard input, which it need not read.
///
/// # Errors
/// As [`run`].
pub fn fed(mut command: Command, input: &[u8], limit: Duration, most: usize) -> Result<Done, RunError> {
    command.stdin(Stdio::piped());
    begun(command, Some(input.to_vec()), limit, most)
}

fn begun(mut command: Command, input: Option<Vec<u8>>, limit: Duration, most: usize) -> Result<Done, RunError> {
    let until = Instant::now() + limit;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(RunError::Start)?;
    if let (Some(input), Some(mut pipe)) = (input, child.stdin.take()) {
        // It ends with the child, if that does not read.
        std::thread::spawn(move || pipe.write_all(&input));
    }
    let output = reader(child.stdout.take(), move |from, into| head(from, into, most));
    let said = reader(child.stderr.take(), tail);
    let too_much = |bytes: &[u8]| bytes.len() > most;
    let status = match wait(&mut child, until) {
        Ok(Some(status)) => status,
        ended => {
            end(&mut child);
            return Err(match ended {
                Err(error) => RunError::Start(error),
                // It waits for somebody to read what is too much.
                _ if output.recv_timeout(AFTER).is_ok_and(|bytes| too_much(&bytes)) => RunError::TooMuch(most),
                _ => RunError::Limit(limit),
            });
        }
    };
    // What it has started may hold its pipes.
    let output = output.recv_timeout(AFTER).map_err(|_| RunError::Limit(limit))?;
    if too_much(&output) {
        return Err(RunError::TooMuch(most));
    }
    let said = said.recv_timeout(AFTER).unwrap_or_default();
    Ok(Done { status, output, said: String::from_utf8_lossy(&said).trim().to_owned() })
}

type Source = dyn FnMut(&mut [u8]) -> io::Result<usize>;

fn reader(
    pipe: Option<impl Read + Send + 'static>,
    read: impl FnOnce(&mut Source, &mut Vec<u8>) + Send + 'static,
) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            read(&mut move |buffer| pipe.read(buffer), &mut bytes);
        }
        let _ = sender.send(bytes);
    });
    receiver
}

/// The beginning; one byte more than `most` tells that there was more.
fn head(read: &mut Source, bytes: &mut Vec<u8>, most: usize) {
    let mut buffer = [0; 16 * 1024];
    while bytes.len() <= most {
        match read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// All of it is read, and its end is kept.
fn tail(read: &mut Source, bytes: &mut Vec<u8>) {
    let mut buffer = [0; 4 * 1024];
    loop {
        match read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => {
                bytes.extend_from_slice(&buffer[..n]);
                let over = bytes.len().saturating_sub(SAID);
                bytes.drain(..over);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// Waits until it has ended; `None` where it has not until then.
///
/// # Errors
/// Of the kernel.
pub(super) fn wait(child: &mut Child, until: Instant) -> io::Result<Option<ExitStatus>> {
    // A child that is not reaped keeps its number.
    let pidfd = PidFd::open(child.id().cast_signed())?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let timeout = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let mut set = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&pidfd), nix::poll::PollFlags::POLLIN)];
        match nix::poll::poll(&mut set, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Kills a child that has not been waited for.
pub(super) fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn shell(text: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    }

    #[test]
    fn what_it_printed_comes_back() {
        assert_eq!(output(shell("echo a; cat"), PATIENCE, 10).unwrap(), b"a\n");
        let done = run(shell("echo a; echo b >&2; exit 3"), PATIENCE, 10).unwrap();
        assert_eq!((done.status.code(), done.output.as_slice(), done.said.as_str()), (Some(3), &b"a\n"[..], "b"));
    }

    #[test]
    fn failures_are_told_apart() {
        let error = output(shell("echo no such host >&2; exit 3"), PATIENCE, 10).unwrap_err();
        assert_eq!(error.to_string(), "failed (exit status: 3): no such host");
        let error = output(Command::new("/nowhere/x"), PATIENCE, 10).unwrap_err();
        assert_eq!(error.to_string(), "cannot be run: No such file or directory");
        let error = output(shell("yes"), PATIENCE, 100_000).unwrap_err();
        assert!(matches!(error, RunError::TooMuch(100_000)), "{error}");
        let begun = Instant::now();
        let error = output(shell("exec sleep 1000"), Duration::from_millis(200), 10).unwrap_err();
        assert!(matches!(error, RunError::Limit(_)) && begun.elapsed() < PATIENCE, "{error}");
    }

    #[test]
    fn the_end_of_what_it_said_is_kept() {
        let error = output(shell("seq 1 100000 >&2; exit 1"), PATIENCE, 10).unwrap_err();
        assert!(error.said().ends_with("\n100000") && error.said().len() <= SAID, "{error}");
    }
}
