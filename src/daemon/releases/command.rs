//! A command of a step: as the service's user, in the new release, with the environment that its workers will have. What it
//! writes is told as it comes, and kept.

use super::Task;
use super::book::on_disk;
use crate::api::Reply;
use crate::api::types::{ApiError, Progress};
use crate::config::spec::Template;
use crate::daemon::checks::Ended;
use crate::daemon::host::Message;
use crate::daemon::launch;
use crate::daemon::unit::{Plan, RunAs};
use crate::kinds::Argv;
use crate::release::ReleaseId;
use crate::sys::process::ExitStatus;
use std::collections::VecDeque;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::sync::oneshot;

/// Lines that an error quotes.
const QUOTED: usize = 30;
/// Bytes of one line that are told in one piece.
const LINE: usize = 8192;
/// Bytes of a step's output that are kept.
const KEPT: usize = 4 << 20;
/// What takes longer is a service.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// For what a command has left behind to close its output.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a command went.
pub struct Outcome {
    pub status: Result<ExitStatus, String>,
    /// Its last lines.
    pub last: Vec<Box<str>>,
    pub output: Vec<u8>,
}

impl Outcome {
    pub fn succeeded(&self) -> bool {
        matches!(self.status, Ok(ExitStatus::Code(0)))
    }
}

/// A release, resolved for commands in it.
pub struct Place {
    plan: Arc<Plan>,
}

impl Place {
    pub fn run_as(&self) -> &RunAs {
        &self.plan.run_as
    }
}

impl Task {
    /// Resolves the release's directories, the user, the environment files and the secrets.
    pub async fn place(&self, id: &ReleaseId) -> Result<Place, ApiError> {
        let (spec, users, id) = (Arc::clone(&self.lead), Arc::clone(&self.users), id.clone());
        let plan =
            on_disk(move || launch::plan(&spec, Some(id.as_str()), &users)).await.map_err(|why| self.failed(why))?;
        let plan = self.secrets.give(plan).await.map_err(|why| self.failed(why))?;
        Ok(Place { plan: Arc::new(plan) })
    }

    pub fn words(&self, place: &Place, templates: &[Template]) -> Result<Argv, ApiError> {
        launch::expand(&place.plan, &self.around, templates).map_err(|why| self.failed(why))
    }

    /// Runs a command to its end. `quiet`: its output is not told as it comes.
    pub async fn command(
        &self,
        place: &Place,
        name: &'static str,
        argv: Argv,
        limit: Option<Duration>,
        mut reply: Option<&mut Reply>,
    ) -> Outcome {
        let release = place.plan.places.id.as_deref().unwrap_or("a release");
        let _running = self.book.runs(format!("{name} of {release}"));
        let mut seen = Seen::new(KEPT);
        let status = match self.start(place, &argv, limit).await {
            Ok((mut output, ended)) => {
                let mut tell = |line: &[u8]| {
                    if let Some(reply) = reply.as_mut() {
                        let line = Progress::of_output(Some(&self.book.name), line);
                        reply.progress(&Progress { step: name.into(), ..line });
                    }
                };
                let status = follow(&mut output, ended, &mut seen, &mut tell).await;
                seen.finish(&mut tell);
                status
            }
            Err(why) => Err(why),
        };
        let status = status.map_err(|why| argv.hide(&why));
        self.keep(place, name, &argv, &seen, &status).await;
        Outcome { status, last: seen.last.into(), output: seen.kept }
    }

    async fn start(
        &self,
        place: &Place,
        argv: &Argv,
        limit: Option<Duration>,
    ) -> Result<(tokio::net::unix::pipe::Receiver, oneshot::Receiver<Ended>), String> {
        let no_pipe = |e: std::io::Error| format!("no pipe for its output can be had: {}", crate::sys::io_text(&e));
        let (output, theirs) = crate::daemon::exec::pipe().map_err(no_pipe)?;
        let (plan, around, words) = (Arc::clone(&place.plan), self.around.clone(), argv.words().to_vec());
        let prepared =
            on_disk(move || launch::prepare_command(&plan, &around, &words, launch::outputs(theirs))).await?;
        let (done, ended) = oneshot::channel();
        let message = Message::Command {
            prepared: Box::new(prepared),
            what: argv.shown(),
            limit: limit.unwrap_or(LONGEST).min(LONGEST),
            line: None,
            done,
        };
        self.messages.send(message).await.map_err(|_| "svd is about to end".to_owned())?;
        Ok((output, ended))
    }

    /// Best effort: a disk that is full must not fail a migration that is done.
    async fn keep(&self, place: &Place, name: &str, argv: &Argv, seen: &Seen, status: &Ended) {
        let release = place.plan.places.id.as_deref().unwrap_or("none");
        let file = self.book.output_file(release, name);
        let mut text = format!("$ {}\n", argv.shown()).into_bytes();
        text.extend_from_slice(&seen.kept);
        if seen.lost > 0 {
            text.extend(format!("\n({} bytes more)", seen.lost).into_bytes());
        }
        text.extend(format!("\n({})\n", ending(status)).into_bytes());
        let kept = on_disk(move || {
            let dir = file.parent().ok_or("it has no directory")?;
            let text_of = |e: std::io::Error| crate::sys::io_text(&e);
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(text_of)?;
            let mut open =
                std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&file).map_err(text_of)?;
            open.write_all(&text).map_err(text_of)
        });
        if let Err(why) = kept.await {
            tracing::warn!("{}: the output of {name} is not kept: {why}", self.book.name);
        }
    }
}

/// How it ended, in words.
pub fn ending(status: &Ended) -> String {
    match status {
        Ok(ExitStatus::Code(0)) => "done".to_owned(),
        Ok(status) => status.to_string(),
        Err(why) => why.clone(),
    }
}

/// Until the command has ended and its output is all there.
async fn follow(
    output: &mut tokio::net::unix::pipe::Receiver,
    mut ended: oneshot::Receiver<Ended>,
    seen: &mut Seen,
    tell: &mut impl FnMut(&[u8]),
) -> Ended {
    let mut block = vec![0; 16 * 1024];
    let unheard = |_| Err("svd is about to end".to_owned());
    let status = loop {
        tokio::select! {
            read = output.read(&mut block) => match read {
                Ok(0) | Err(_) => break (&mut ended).await.unwrap_or_else(unheard),
                Ok(more) => seen.add(&block[..more], tell),
            },
            status = &mut ended => break status.unwrap_or_else(unheard),
        }
    };
    let rest = async {
        while let Ok(more @ 1..) = output.read(&mut block).await {
            seen.add(&block[..more], tell);
        }
    };
    let _ = tokio::time::timeout(LAST_WORDS, rest).await;
    status
}

/// What a command has written, in lines.
struct Seen {
    kept: Vec<u8>,
    most: usize,
    /// Bytes beyond.
    lost: usize,
    line: Vec<u8>,
    last: VecDeque<Box<str>>,
}

impl Seen {
    fn new(most: usize) -> Seen {
        Seen { kept: Vec::new(), most, lost: 0, line: Vec::new(), last: VecDeque::new() }
    }

    fn add(&mut self, block: &[u8], tell: &mut impl FnMut(&[u8])) {
        let room = self.most.saturating_sub(self.kept.len()).min(block.len());
        self.kept.extend_from_slice(&block[..room]);
        self.lost += block.len() - room;
        for &byte in block {
            if byte == b'\n' || self.line.len() >= LINE {
                self.finish(tell);
            }
            if byte != b'\n' {
                self.line.push(byte);
            }
        }
    }

    /// The line is at its end, or none comes any more.
    fn finish(&mut self, tell: &mut impl FnMut(&[u8])) {
        if self.line.is_empty() {
            return;
        }
        tell(&self.line);
        if self.last.len() >= QUOTED {
            self.last.pop_front();
        }
        self.last.push_back(String::from_utf8_lossy(&self.line).into());
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_told_in_lines_and_kept_within_bounds() {
        let mut seen = Seen::new(10);
        let mut told = Vec::new();
        let mut tell = |line: &[u8]| told.push(String::from_utf8_lossy(line).into_owned());
        seen.add(b"one\ntw", &mut tell);
        seen.add(b"o\n\nthree", &mut tell);
        seen.finish(&mut tell);
        assert_eq!(told, ["one", "two", "three"]);
        assert_eq!((seen.kept.as_slice(), seen.lost), (&b"one\ntwo\n\nt"[..], 4));
        let mut pieces = 0;
        seen.add(&[b'x'; 3 * LINE], &mut |_| pieces += 1);
        assert_eq!(pieces, 2, "a line without end comes in pieces");
        (0..100).for_each(|n| seen.add(format!("line {n}\n").as_bytes(), &mut |_| {}));
        assert_eq!((seen.last.len(), seen.last.back().map(|l| &**l)), (QUOTED, Some("line 99")));
    }
}
