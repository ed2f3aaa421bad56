//! `svctl demo`: an svd of its own, a real server, a load, and reloads to a good release, to a broken one, and back.
//!
//! | file | what it has |
//! |---|---|
//! | `server` | which server: gunicorn in a virtual environment of the demo's own, or Python's standard library |
//! | `site` | the temporary directory, the releases, svd |
//! | `load` | the clients and what they count |
//! | `show` | the live line |
//! | `report` | the summary, as text and as JSON |
//!
//! svd is this very program under its other name, so that building svctl builds all that the demo needs. Everything that
//! is started ends with the demo, however it ends.

mod load;
mod report;
mod server;
mod show;
mod site;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use serde_json::value::RawValue;

use super::args::DemoArgs;
use super::context::Context;
use super::exit::{CliError, Exit};
use crate::api::client::{Client, ClientError};
use crate::api::types::{ActionResult, ApiError, ErrorCode, Progress, ServiceState, ServiceStatus};
use load::Load;
use report::{Report, Step};
use show::Show;
use site::{SERVICE, Site};

/// How long the load lasts by default.
const SECONDS: u64 = 16;
/// How often the live line is drawn, and an interruption noticed.
const TICK: Duration = Duration::from_millis(100);

/// Runs the demonstration.
///
/// # Errors
/// What kept it from running. A request that failed is no error but [`Exit::Failed`].
pub fn demo(context: &Context, args: &DemoArgs) -> Result<Exit, CliError> {
    let show = Show::new(context.json);
    let interrupted = watch_signals()?;
    let mut site = Site::create(args.keep)?;
    show.say("Airdock's demo: a service is reloaded while clients use it. Nothing outside a temporary directory and a cache is touched.");
    let server = server::prepare(args.server, &site, &show, &interrupted)?;
    if let Some(why) = server.fallback() {
        show.say(&format!("Using a server from Python's standard library instead of gunicorn: {why}"));
    }
    site.furnish(&server)?;
    site.start_svd()?;
    let stage = Stage { show: &show, site: &site, interrupted: &interrupted };
    let report = stage.play(args.seconds.unwrap_or(SECONDS).max(4), &server)?;
    show.clear();
    show.say("Stopping svd and the service …");
    site.end_svd()?;
    context.print(report.render(context.json))?;
    if args.keep {
        show.say(&format!("Kept: {}", site.dir().display()));
    }
    Ok(if report.is_good() { Exit::Ok } else { Exit::Failed })
}

/// What failed, for the one place where errors are said.
fn failure(message: impl Into<Box<str>>) -> CliError {
    CliError::Said { exit: Exit::Failed, error: ApiError::new(ErrorCode::Failed, message) }
}

fn interruption() -> CliError {
    failure("Interrupted; everything the demo started has been ended.")
}

/// From now on INT, TERM and HUP set the flag, which everything that waits looks at.
///
/// Called before there are other threads, so that all of them inherit the mask.
fn watch_signals() -> Result<Arc<AtomicBool>, CliError> {
    let set = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    set.thread_block().map_err(|e| failure(format!("The demo cannot watch for signals: {}.", e.desc())))?;
    let flag = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&flag);
    std::thread::spawn(move || {
        while set.wait().is_ok() {
            seen.store(true, Ordering::Relaxed);
        }
    });
    Ok(flag)
}

/// What the acts of the demo need.
struct Stage<'a> {
    show: &'a Show,
    site: &'a Site,
    interrupted: &'a AtomicBool,
}

/// What a verb's thread tells.
enum Heard {
    Progress(Progress),
    End(Result<Box<RawValue>, ClientError>),
}

impl Stage<'_> {
    fn play(&self, seconds: u64, server: &server::Server) -> Result<Report, CliError> {
        let show = self.show;
        self.title("svctl start web");
        if let Err(error) = self.act("start", None)? {
            return Err(CliError::Said { exit: Exit::Failed, error });
        }
        let load = Load::start(self.site.address());
        show.say(&format!("Load: {} on http://{}/, for {seconds} seconds.", load::DESCRIPTION, self.site.address()));
        let began = Instant::now();
        let quarter = Duration::from_secs(seconds) / 4;
        self.until(began + quarter, &load)?;
        let quiet = load.counts().longest_gap;
        let mut steps = Vec::new();
        for (nth, release) in ["2", "broken", "1"].into_iter().enumerate() {
            steps.push(self.reload(release, &load)?);
            self.until(began + quarter * (nth as u32 + 2), &load)?;
        }
        let seconds = began.elapsed();
        let counts = load.finish();
        Ok(Report {
            server: server.name(),
            fallback: server.fallback().map(str::to_owned),
            seconds,
            quiet,
            counts,
            steps,
        })
    }

    /// What a deployer does: `current` names another release, and svd is told.
    fn reload(&self, release: &str, load: &Load) -> Result<Step, CliError> {
        let before = self.status()?.release;
        self.title(&format!("ln -sfn releases/{release} current && svctl reload web"));
        self.site.switch(release)?;
        let began = Instant::now();
        let answer = self.act("reload", Some(load))?;
        let took = began.elapsed();
        let after = self.status()?;
        let kept = answer.is_err() && after.release == before && after.state == ServiceState::Running;
        if let Err(error) = &answer {
            self.show.say(super::render::error("  svctl: ", error).trim_end());
        }
        Ok(Step { release: release.to_owned(), took, kept, refused: answer.err().map(|e| e.message) })
    }

    /// A verb on the service, with svd's own words as it goes; the inner error is svd's verdict.
    fn act(&self, verb: &str, load: Option<&Load>) -> Result<Result<(), ApiError>, CliError> {
        let (heard, hear) = mpsc::channel();
        let (socket, path) = (self.site.socket(), format!("/v1/services/{SERVICE}/{verb}"));
        std::thread::spawn(move || {
            let progress = heard.clone();
            let end = Client::new(&socket).and_then(|client| {
                client.act(&path, None, |line| {
                    // Nobody listens any more after an interruption.
                    let _ = progress.send(Heard::Progress(line.clone()));
                })
            });
            let _ = heard.send(Heard::End(end));
        });
        loop {
            match hear.recv_timeout(TICK) {
                Ok(Heard::Progress(line)) => self.show.say(&format!("  {}", super::render::progress(&line))),
                Ok(Heard::End(Ok(result))) => return Ok(verdict(&super::host::understand(&result)?)),
                Ok(Heard::End(Err(ClientError::Api(error)))) => return Ok(Err(error)),
                Ok(Heard::End(Err(error))) => return Err(error.into()),
                Err(mpsc::RecvTimeoutError::Timeout) => self.tick(load)?,
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(ClientError::Lost.into()),
            }
        }
    }

    fn status(&self) -> Result<ServiceStatus, CliError> {
        Ok(Client::new(&self.site.socket())?.fetch(&format!("/v1/services/{SERVICE}"))?)
    }

    fn until(&self, end: Instant, load: &Load) -> Result<(), CliError> {
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) {
            std::thread::sleep(left.min(TICK));
            self.tick(Some(load))?;
        }
        self.show.plain(|| load.counts().line());
        Ok(())
    }

    fn tick(&self, load: Option<&Load>) -> Result<(), CliError> {
        if let Some(load) = load {
            self.show.live(|| load.counts().line());
        }
        if self.interrupted.load(Ordering::Relaxed) { Err(interruption()) } else { Ok(()) }
    }

    fn title(&self, command: &str) {
        self.show.say(&format!("$ {command}"));
    }
}

fn verdict(result: &ActionResult) -> Result<(), ApiError> {
    match result.services.iter().find(|s| !s.ok) {
        None => Ok(()),
        Some(bad) => Err(bad.error.clone().unwrap_or_else(|| ApiError::new(ErrorCode::Failed, "It failed."))),
    }
}
