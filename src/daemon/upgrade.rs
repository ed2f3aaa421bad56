//! `svctl upgrade`: svd executes another program in its own place, which takes over what this one was doing.
//!
//! The pid, and with it the children, stay; what is open and must stay so is at the guardian. Everything else is as after a
//! death of svd, so that there is one way to go on.

use super::adopt;
use super::args::Args;
use super::checks::{self, Ended};
use super::host::{Host, Message};
use super::paths::Paths;
use super::pool::Lane;
use super::state::Key;
use crate::api::Reply;
use crate::api::types::{ApiError, ErrorCode, Progress, UpgradeResult};
use crate::sys::spawn::{Prepared, c_string};
use crate::sys::trust::{self, Rule};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::oneshot;

/// For the new program to say that it understands what this svd leaves.
const TRIAL: Duration = Duration::from_secs(20);
/// What a program says that can take over.
const TRIAL_ARGUMENT: &str = "--trial";

/// A program that was tried and is to be executed.
#[derive(Debug)]
pub struct Successor {
    pub file: OwnedFd,
    pub path: PathBuf,
    /// Steps of deploys and commands of clients end with this svd.
    pub force: bool,
}

impl Host {
    /// Tries the program, and executes it when it understands what this svd leaves.
    pub fn upgrade(&mut self, binary: Option<PathBuf>, force: bool, reply: Reply) {
        if self.upgrading {
            let error = ApiError::new(ErrorCode::Conflict, "An upgrade is under way.".to_owned());
            return reply.error(error.hint("Wait for it: `svctl version` says what runs."));
        }
        if !self.keeper.is_there() {
            let text = "svd runs without a guardian, which would keep its sockets meanwhile.".to_owned();
            return reply.error(
                ApiError::new(ErrorCode::Unavailable, text)
                    .hint("Stop svd and start the new version; the services go on."),
            );
        }
        if let Err(error) = self.spare_commands(force) {
            return reply.error(error);
        }
        self.upgrading = true;
        let (pool, messages) = (self.pool.clone(), self.messages.clone());
        tokio::task::spawn_local(async move {
            let found = pool.run(Lane::State, move || open(binary, force)).await;
            let _ = messages.send(Message::UpgradeFound { found, reply: Box::new(reply) }).await;
        });
    }

    /// What would be cut off in the middle: steps of deploys, and commands of clients.
    fn spare_commands(&self, force: bool) -> Result<(), ApiError> {
        self.spare_steps(force)?;
        let commands = self.commands_of_clients();
        if force || commands.is_empty() {
            return Ok(());
        }
        let why = format!("Commands of `svctl exec` would be cut off: {}.", commands.join(", "));
        let hint = "Wait for their end, or end them. --force ends them as well.";
        Err(ApiError::new(ErrorCode::Busy, why).hint(hint))
    }

    pub fn handle_upgrade_found(&mut self, found: Result<Successor, String>, mut reply: Reply) {
        let successor = match found {
            Ok(successor) => successor,
            Err(why) => return self.upgrade_refused(&why, reply),
        };
        let text = format!("{} is tried", successor.path.display());
        reply.progress(&Progress::now(None, "trial", text));
        self.write_state();
        if self.state.is_behind() {
            return self.upgrade_refused("what the new program must know cannot be written", reply);
        }
        let (done, ended) = oneshot::channel();
        let what = match self.try_out(&successor, done) {
            Ok(what) => what,
            Err(why) => return self.upgrade_refused(&why, reply),
        };
        let messages = self.messages.clone();
        tokio::task::spawn_local(async move {
            let tried = ended.await.unwrap_or_else(|_| Err("its trial was broken off".to_owned()));
            let tried = checks::verdict(&what, tried).map(|()| successor);
            let _ = messages.send(Message::UpgradeTried { tried, reply: Box::new(reply) }).await;
        });
    }

    pub fn handle_upgrade_tried(&mut self, tried: Result<Successor, String>, reply: Reply) {
        let successor = match tried {
            Ok(successor) => successor,
            Err(why) => {
                let why = format!("the new program cannot take over: {why}");
                return self.upgrade_refused(&why, reply);
            }
        };
        // One may have begun in the meantime.
        if let Err(error) = self.spare_commands(successor.force) {
            self.upgrading = false;
            return reply.error(error);
        }
        let text = format!("executes {} in its own place", successor.path.display());
        self.info(None, &text);
        reply.ok(&UpgradeResult {
            from: env!("CARGO_PKG_VERSION").into(),
            image: self.image(),
            binary: successor.path.display().to_string().into(),
        });
        // Whoever wakes up next knows that nobody was killed.
        self.state.mark(Key::Head);
        self.successor = Some(successor);
    }

    fn upgrade_refused(&mut self, why: &str, reply: Reply) {
        self.upgrading = false;
        let text = format!("svd is not upgraded: {why}.");
        self.warn(None, &text);
        reply.error(ApiError::new(ErrorCode::Failed, text).hint("Nothing was changed."));
    }

    /// Runs the program's own trial, as svd's user. What it runs.
    fn try_out(&mut self, successor: &Successor, done: oneshot::Sender<Ended>) -> Result<String, String> {
        let nul = "its path has a NUL byte";
        let mut argv = vec![successor.path.display().to_string()];
        let Paths { config, run, state, log } = &self.around.paths;
        for (name, path) in [("-c", config), ("--run-dir", run), ("--state-dir", state), ("--log-dir", log)] {
            argv.extend([name.to_owned(), path.display().to_string()]);
        }
        argv.push(TRIAL_ARGUMENT.to_owned());
        let arguments: Option<Vec<_>> = argv.iter().map(c_string).collect();
        let program = c_string(&successor.path).ok_or(nul)?;
        let mut prepared = Prepared::new(program, arguments.ok_or(nul)?);
        prepared.environment = vec![c"PATH=/usr/bin:/bin".into()];
        prepared.limits = vec![self.around.open_files];
        let what = argv.join(" ");
        self.run_check(&prepared, what.clone(), TRIAL, None, done);
        Ok(what)
    }

    /// Tells this image of svd from all others.
    pub fn image(&self) -> u64 {
        self.origin()
    }
}

/// The program to go on with: the named one, or the file that this one was started from, which may have been replaced.
fn open(binary: Option<PathBuf>, force: bool) -> Result<Successor, String> {
    let path = match binary {
        Some(path) => path,
        None => own_path()?,
    };
    if !path.is_absolute() {
        return Err(format!("{} is not an absolute path", path.display()));
    }
    // Through links, to what would be executed; each directory on the way decides on that.
    let failed = |e: std::io::Error| format!("{} cannot be used: {}", path.display(), crate::sys::io_text(&e));
    let real = path.canonicalize().map_err(failed)?;
    trust::path(&path, Rule::Strict).map_err(|e| e.to_string())?;
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(&real).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() || meta.mode() & 0o111 == 0 {
        return Err(format!("{} is not a program", real.display()));
    }
    Ok(Successor { file: file.into(), path: real, force })
}

/// Of the file that runs, whether or not another one has its name by now.
fn own_path() -> Result<PathBuf, String> {
    let link = std::fs::read_link("/proc/self/exe").map_err(|e| format!("svd's own file is not known: {e}"))?;
    let text = link.to_string_lossy();
    Ok(PathBuf::from(text.strip_suffix(" (deleted)").unwrap_or(&text)))
}

/// `--trial`: says whether this program would understand what runs. Changes nothing.
///
/// # Errors
/// A sentence.
pub fn trial(args: &Args) -> Result<(), String> {
    if let Some(why) = crate::sys::kernel::Features::detect().fatal() {
        return Err(why);
    }
    adopt::try_out(&args.paths().state_file())
}
