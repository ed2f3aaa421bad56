//! Whoever is told of a rollout: commands and web hooks of the fleet file, in an order and with time limits of their own.
//!
//! - A hook never keeps a rollout waiting: a thread runs them, one after another, beside it. svctl ends when they have ended, or their time is over.
//! - A hook that fails is told on stderr, and changes nothing. The one exception is a *command* for `start`: a deploy or catch-up begins
//!   only when it has ended with 0. A rollback asks nobody.
//! - A web hook is sent by the system's `curl`, which has its address from its standard input: addresses are often secrets, and anybody on the
//!   machine can read command lines.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use serde::Serialize;

use super::inventory::{Hook, Hooks, Occasion};
use super::run::{self, RunError};

/// Of what a hook prints.
const MOST: usize = 1 << 20;
/// Messages that wait for those before; further ones are left out, and that is told.
const WAITING: usize = 64;
/// What `curl` needs beside the time that it is given.
const BESIDE: Duration = Duration::from_secs(2);

/// What a hook is told, as JSON.
#[derive(Clone, Debug, Serialize)]
pub struct Message {
    pub event: Occasion,
    /// One sentence for people; what many chat services show of a message.
    pub text: String,
    pub app: Box<str>,
    pub release: Box<str>,
    pub rollout: Box<str>,
    /// `deploy`, `rollback` or `catch-up`.
    pub purpose: crate::fleet::rollout::plan::Purpose,
    /// The user who drives the rollout, and from where, by its own words.
    pub by: Box<str>,
    /// RFC 3339.
    pub at: Box<str>,
    /// All of the rollout's.
    pub hosts: Vec<Box<str>>,
    /// From 1; of `wave`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wave: Option<usize>,
    /// Why, of `paused`, `rollback` and `failure`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Box<str>>,
}

/// A hook's failure, for people: no capital, no full stop.
pub type Failure = String;

/// Runs one to its end.
///
/// # Errors
/// Why it is not sure that it has heard.
pub fn call(hook: &Hook, message: &Message, base: &Path, limit: Duration) -> Result<(), Failure> {
    let json = serde_json::to_string(message).map_err(|e| e.to_string())?;
    match hook {
        Hook::Command(words) => {
            let Some((program, arguments)) = words.split_first() else { return Ok(()) };
            let place = if program.contains('/') { base.join(&**program) } else { PathBuf::from(&**program) };
            let mut command = Command::new(place);
            command.args(arguments.iter().map(|word| &**word)).current_dir(base);
            command.env("AIRDOCK_EVENT", message.event.as_str()).env("AIRDOCK_APP", &*message.app);
            command.env("AIRDOCK_RELEASE", &*message.release);
            heard(program, run::fed(command, json.as_bytes(), limit, MOST))
        }
        Hook::Webhook(address) => {
            let mut command = Command::new("curl");
            command.args(["--silent", "--show-error", "--fail", "--output", "/dev/null", "--config", "-"]);
            let config = curl_config(address, &json, limit);
            heard("curl", run::fed(command, config.as_bytes(), limit + BESIDE, MOST))
        }
    }
}

fn heard(program: &str, done: Result<run::Done, RunError>) -> Result<(), Failure> {
    match done {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => Err(format!("{program} {}", RunError::Failed { status: done.status, said: done.said })),
        // It has other things to say than to us.
        Err(RunError::TooMuch(_)) => Err(format!("{program} has printed too much")),
        Err(error) => Err(format!("{program} {error}")),
    }
}

/// In the format of curl's `--config`: within quotes, a backslash and a quote are escaped.
fn curl_config(address: &str, json: &str, limit: Duration) -> String {
    let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "url = \"{}\"\nproto = \"=http,https\"\nmax-time = {}\nheader = \"Content-Type: application/json\"\ndata-binary = \"{}\"\n",
        quoted(address),
        limit.as_secs().max(1),
        quoted(json),
    )
}

/// Tells people beside a rollout.
pub struct Teller {
    hooks: Hooks,
    base: PathBuf,
    waiting: Option<mpsc::SyncSender<Message>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Teller {
    /// `base`: where relative programs begin, and where hooks run. `complain`: hears failures.
    pub fn new(hooks: &Hooks, base: &Path, complain: impl Fn(String) + Send + 'static) -> Teller {
        let teller = Teller { hooks: hooks.clone(), base: base.to_owned(), waiting: None, thread: None };
        if hooks.is_empty() {
            return teller;
        }
        let (sender, receiver) = mpsc::sync_channel::<Message>(WAITING);
        let (hooks, base) = (hooks.clone(), base.to_owned());
        let work = move || {
            for message in receiver {
                let asked = if message.event == Occasion::Start { hooks.asked() } else { None };
                for hook in hooks.of(message.event).filter(|hook| asked.is_none_or(|asked| !std::ptr::eq(asked, *hook)))
                {
                    if let Err(why) = call(hook, &message, &base, hooks.timeout) {
                        complain(format!("The hook for {} has failed: {why}.", message.event.as_str()));
                    }
                }
            }
        };
        match std::thread::Builder::new().name("hooks".to_owned()).spawn(work) {
            Ok(thread) => Teller { waiting: Some(sender), thread: Some(thread), ..teller },
            Err(_) => teller,
        }
    }

    /// Asks whether a rollout may begin, and tells that it does.
    ///
    /// # Errors
    /// The command for `start` did not end with 0.
    pub fn start(&self, message: Message) -> Result<(), Failure> {
        if let Some(hook) = self.hooks.asked() {
            call(hook, &message, &self.base, self.hooks.timeout)?;
        }
        self.tell(message)
    }

    /// Without waiting.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn tell(&self, message: Message) -> Result<(), Failure> {
        match &self.waiting {
            Some(waiting) if waiting.try_send(message).is_err() => {
                Err("too many hooks wait for others to end".to_owned())
            }
            _ => Ok(()),
        }
    }

    /// Waits until all have been told.
    pub fn end(mut self) {
        self.waiting = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "hooks_test.rs"]
mod tests;
