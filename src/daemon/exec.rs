//! `svctl exec`: a command as the service's user, with what a worker of it has: of the generation that serves, or of a release,
//! whether that runs or not.

use super::checks::{Check, Ended, ForClient, Line};
use super::host::{Host, Message};
use super::launch;
use super::pool::Lane;
use super::releases::of_release;
use super::session::Session;
use crate::api::Reply;
use crate::api::reply::Talk;
use crate::api::request::{ExecRequest, Name};
use crate::api::types::{ApiError, ErrorCode, ExecResult, Progress};
use crate::core::GenerationId;
use crate::kinds::Argv;
use crate::sys::io_text;
use crate::sys::process::ExitStatus;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, oneshot};

/// Commands of clients that run at once.
const MOST: usize = 16;
/// Bytes of output in a line.
const BLOCK: usize = 16 * 1024;
/// What takes longer is a service.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Signals of a client on their way.
const SIGNALS: usize = 8;

/// What a command's answer is made of, and what tells svd that nobody wants it any more.
pub struct Begun {
    pub ended: oneshot::Receiver<Ended>,
    pub signals: mpsc::Sender<i32>,
}

/// A command whose output alone is wanted.
struct Command {
    service: Name,
    output: Receiver,
    begun: Begun,
}

impl Host {
    /// Answers with the output as it comes, then with how the command has ended; or goes over to frames. The command is ended when
    /// its client leaves.
    pub fn exec(&mut self, name: &Name, what: ExecRequest, reply: Reply) {
        // One is the host's own.
        if Arc::strong_count(&self.checks.executing) > MOST {
            let why = format!("{MOST} commands of clients run already.");
            return reply.error(ApiError::new(ErrorCode::Unavailable, why));
        }
        if self.machine.named(name).is_none() {
            return reply.error(super::control::unknown(name));
        }
        let no_pipe = |e: std::io::Error| {
            let why = format!("no terminal or pipe for it can be had: {}.", io_text(&e));
            ApiError::new(ErrorCode::Failed, why)
        };
        let Some(session) = &what.session else {
            let (output, theirs) = match pipe() {
                Ok(pipe) => pipe,
                Err(e) => return reply.error(no_pipe(e)),
            };
            let begun = self.begin_command(name, &what, launch::outputs(theirs), None);
            let command = Command { service: name.clone(), output, begun };
            return drop(tokio::task::spawn_local(command.answer(reply)));
        };
        let kind = session.terminal.as_ref().map(|t| t.kind.clone());
        let (session, wires) = match Session::new(session.terminal.as_ref()) {
            Ok(made) => made,
            Err(e) => return reply.error(no_pipe(e)),
        };
        let Some(talk): Option<Talk> = reply.talk() else { return };
        let begun = self.begin_command(name, &what, wires, kind);
        tokio::task::spawn_local(session.run(begun, talk));
    }

    /// Starts it in the generation that serves, or in what a new one would have.
    fn begin_command(
        &mut self,
        name: &Name,
        what: &ExecRequest,
        wires: Vec<crate::sys::spawn::Wire>,
        terminal: Option<Box<str>>,
    ) -> Begun {
        let (done, ended) = oneshot::channel();
        let (signals, theirs) = mpsc::channel(SIGNALS);
        let line = Line { signals: theirs, counted: Arc::clone(&self.checks.executing) };
        let client = ForClient { wires, terminal, line };
        let argv: Argv = what.command.clone().into();
        match self.serving(name).filter(|_| what.release.is_none()) {
            Some(generation) => {
                let slot = self.living_slot(generation);
                let check = Check { generation, slot, argv, limit: LONGEST, client: Some(client), done };
                self.start_check(check);
            }
            None => self.command_of_release(name, what.release.clone(), argv, client, done),
        }
        Begun { ended, signals }
    }

    /// Of the worker whose sandbox the command shares: the first that lives.
    fn living_slot(&self, generation: GenerationId) -> u32 {
        let living = self.workers.values().filter(|p| p.generation == generation && !p.started_ended);
        living.map(|p| p.slot).min().unwrap_or(0)
    }

    fn serving(&self, name: &Name) -> Option<GenerationId> {
        let running = self.machine.named(name).and_then(|s| s.committed().or_else(|| s.candidate()));
        running.map(|g| g.id).filter(|id| self.generations.contains_key(id))
    }

    /// In a release's directory, with the configuration that it has served with; `None`: the one that would be started now.
    fn command_of_release(
        &self,
        name: &Name,
        release: Option<Box<str>>,
        argv: Argv,
        client: ForClient,
        done: oneshot::Sender<Ended>,
    ) {
        let found = self.machine.named(name).and_then(|s| Some((s.id, Arc::clone(&self.units.get(&s.id)?.spec))));
        let Some((service, spec)) = found else { return drop(done.send(Err(format!("there is no service {name}")))) };
        let kept = release.as_deref().map(|id| of_release(&self.releases, &spec, id));
        let (users, secrets, around) = (Arc::clone(&self.users), self.secrets_of(service), self.around.clone());
        let (pool, messages) = (self.pool.clone(), self.messages.clone());
        tokio::task::spawn_local(async move {
            let prepared = async {
                let spec = match kept {
                    Some(kept) => kept.await?,
                    None => spec,
                };
                let plan = move || launch::plan(&spec, release.as_deref(), &users);
                let plan = Arc::new(secrets.give(pool.run(Lane::Files(service), plan).await?).await?);
                let (words, of) = (argv.words().to_vec(), Arc::clone(&plan));
                let prepare = move || launch::prepare_command(&of, &around, &words, Vec::new());
                let mut prepared = pool.run(Lane::Files(service), prepare).await?;
                let line = client.equip(&mut prepared)?;
                Ok((prepared, line, plan))
            };
            let (prepared, line, plan) = match prepared.await {
                Ok(prepared) => prepared,
                Err(why) => return drop(done.send(Err(why))),
            };
            let (prepared, line) = (Box::new(prepared), Some(line));
            let (ending, ended) = oneshot::channel();
            let message = Message::Command { prepared, what: argv.shown(), limit: LONGEST, line, done: ending };
            let _ = messages.send(message).await;
            if let Ok(ended) = ended.await {
                let _ = done.send(ended);
            }
            // Its secrets are there until now.
            drop(plan);
        });
    }
}

/// How it ended, for its client.
pub fn result_of(ended: Ended) -> Result<ExecResult, ApiError> {
    match ended {
        Ok(ExitStatus::Code(code)) => Ok(ExecResult { exit_code: Some(code), signal: None }),
        Ok(ExitStatus::Signal { signal, .. }) => Ok(ExecResult { exit_code: None, signal: Some(signal) }),
        Ok(ExitStatus::Unknown) => Ok(ExecResult { exit_code: None, signal: None }),
        Err(why) => Err(ApiError::new(ErrorCode::Failed, format!("{why}."))),
    }
}

/// Where svd does not know either.
pub fn about_to_end<E>(_: E) -> Ended {
    Err("svd is about to end".to_owned())
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
            ended = &mut self.begun.ended => ended.unwrap_or_else(about_to_end),
            () = reply.closed() => return reply.left(),
        };
        reply.finish(result_of(ended));
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
