//! `svctl exec`: a command as the service's user, in the environment of the generation that serves.

use super::checks::{Check, Ended};
use super::host::Host;
use crate::api::Reply;
use crate::api::request::Name;
use crate::api::types::{ApiError, ErrorCode, ExecResult, Progress};
use crate::sys::process::ExitStatus;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;

/// Commands of clients that run at once.
const MOST: usize = 16;
/// Bytes of output in a line.
const BLOCK: usize = 16 * 1024;
/// What takes longer is a service.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A command's output, and what tells svd that nobody wants it any more.
struct Command {
    service: Name,
    output: Receiver,
    ended: oneshot::Receiver<Ended>,
    _wanted: oneshot::Sender<()>,
    _counted: Arc<()>,
}

impl Host {
    /// Answers with the output as it comes, then with how the command has ended. It is killed when its client leaves.
    pub fn exec(&mut self, name: &Name, argv: Vec<String>, reply: Reply) {
        let running = self.machine.named(name).and_then(|s| s.committed().or_else(|| s.candidate()));
        let Some(generation) = running.map(|g| g.id).filter(|id| self.generations.contains_key(id)) else {
            let why = format!("{name} is not running: a command gets the environment of what runs.");
            return reply
                .error(ApiError::new(ErrorCode::NotRunning, why).hint(format!("`svctl start {name}` starts it.")));
        };
        // One is the host's own.
        if Arc::strong_count(&self.executing) > MOST {
            let why = format!("{MOST} commands of clients run already.");
            return reply.error(ApiError::new(ErrorCode::Unavailable, why));
        }
        let (output, theirs) = match pipe() {
            Ok(pipe) => pipe,
            Err(e) => {
                let why = format!("no pipe for its output can be had: {}.", crate::sys::io_text(&e));
                return reply.error(ApiError::new(ErrorCode::Failed, why));
            }
        };
        let (done, ended) = oneshot::channel();
        let (wanted, unwanted) = oneshot::channel();
        let output_of = Some((Arc::new(theirs), unwanted));
        self.start_check(Check { generation, slot: 0, argv: argv.into(), limit: LONGEST, output: output_of, done });
        let command =
            Command { service: name.clone(), output, ended, _wanted: wanted, _counted: Arc::clone(&self.executing) };
        tokio::task::spawn_local(command.answer(reply));
    }
}

impl Command {
    async fn answer(mut self, mut reply: Reply) {
        // Somebody may page through it; the command ends after `LONGEST` at the latest.
        reply.wait_for_reader();
        let (mut block, mut kept) = (vec![0; BLOCK], 0);
        loop {
            let read = tokio::select! {
                read = self.output.read(&mut block[kept..]) => read,
                () = reply.closed() => return reply.left(),
            };
            let all = match read {
                Ok(0) | Err(_) => break,
                Ok(more) => kept + more,
            };
            // A character that is not complete yet waits for the rest of it.
            let whole = complete(&block[..all]);
            if !reply.output(&Progress::of_output(Some(&self.service), &block[..whole])).await {
                return reply.left();
            }
            block.copy_within(whole..all, 0);
            kept = all - whole;
        }
        if kept > 0 {
            reply.output(&Progress::of_output(Some(&self.service), &block[..kept])).await;
        }
        let ended = tokio::select! {
            ended = &mut self.ended => ended.unwrap_or_else(|_| Err("svd is about to end".to_owned())),
            () = reply.closed() => return reply.left(),
        };
        match ended {
            Ok(ExitStatus::Code(code)) => reply.ok(&ExecResult { exit_code: Some(code), signal: None }),
            Ok(ExitStatus::Signal { signal, .. }) => reply.ok(&ExecResult { exit_code: None, signal: Some(signal) }),
            Ok(ExitStatus::Unknown) => reply.ok(&ExecResult { exit_code: None, signal: None }),
            Err(why) => reply.error(ApiError::new(ErrorCode::Failed, format!("{why}."))),
        }
    }
}

/// How much of `bytes` ends with a whole character, or with what is none.
fn complete(bytes: &[u8]) -> usize {
    // The longest character has four bytes.
    let from = bytes.len().saturating_sub(3);
    let begun = (from..bytes.len()).rev().find(|&at| bytes[at] & 0xc0 != 0x80);
    match begun {
        Some(at) if std::str::from_utf8(&bytes[at..]).is_err_and(|e| e.error_len().is_none()) => at,
        _ => bytes.len(),
    }
}

/// Our end, which does not wait, and the command's, which does.
pub fn pipe() -> std::io::Result<(Receiver, OwnedFd)> {
    let (theirs, ours) = tokio::net::unix::pipe::pipe()?;
    Ok((ours, theirs.into_blocking_fd()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_not_cut() {
        for (bytes, whole) in [
            (&b""[..], 0),
            (b"abc", 3),
            ("aé".as_bytes(), 3),
            (b"a\xc3", 1),
            (b"\xe2\x82", 0),
            (b"x\xf0\x9f\x98", 1),
            (b"\xff", 1),
            (b"\x80\x80\x80\x80", 4),
        ] {
            assert_eq!(complete(bytes), whole, "{bytes:?}");
        }
    }
}
