//! `svctl shutdown`: done when svd is gone, whatever is killed meanwhile.

use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::json;

use super::context::Context;
use super::exit::{CliError, Exit};
use crate::api::client::{Client, ClientError};
use crate::api::types::{ApiError, ErrorCode, Version};

/// How often svd is told: each time but the first it was killed before.
const TRIES: u32 = 5;
/// For an svd that was killed to be up again.
const RETURN: Duration = Duration::from_secs(60);
/// For svd to end when it has said that all is done: it gives hung disks that long.
const LAST: Duration = Duration::from_secs(30);
/// For one look to be answered.
const ANSWER: Duration = Duration::from_secs(5);
/// What takes longer is told.
const LONG: Duration = Duration::from_secs(3);
/// Between the first two looks; then longer and longer.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// svd's lock goes that much later than its socket, at most.
const LOCK: Duration = Duration::from_millis(20);

enum Seen {
    /// Another svd can be started.
    Gone,
    /// It has been: a service manager was quick.
    Another(u32),
    /// It goes on, and may not have heard the order.
    There,
}

pub fn shutdown(context: &Context, force: bool) -> Result<Exit, CliError> {
    let told = match end(context, force)? {
        Some(pid) => format!("svd has stopped; another one runs by now (pid {pid}).\n"),
        None => "svd has stopped.\n".to_owned(),
    };
    if context.json {
        context.print_value(&json!({ "stopped": true }))?;
    } else {
        context.print(told)?;
    }
    Ok(Exit::Ok)
}

/// Until svd has taken its socket away, which is the last that it does. The pid of another svd that runs by then.
fn end(context: &Context, force: bool) -> Result<Option<u32>, CliError> {
    let client = context.client()?;
    let before = known(&client)?;
    let body = force.then(|| json!({ "force": true }));
    for n in 0..TRIES {
        let seen = match context.act("/v1/shutdown", body.as_ref()) {
            Ok(_) => {
                let wait = Wait {
                    limit: LAST,
                    meanwhile: "All services have stopped; waiting for svd itself to end.",
                    failed: "All services have stopped, but svd has not ended",
                };
                wait.look(context, &client, |now| {
                    let same = now.since == before.since && now.pid == before.pid;
                    (!same).then_some(Seen::Another(now.pid))
                })?
            }
            // svd may be gone before its last word has arrived, or was killed, and another one goes on with it.
            Err(error) if is_lost(&error, n > 0) => {
                let wait = Wait {
                    limit: RETURN,
                    meanwhile: "The connection to svd was lost; waiting until it is up again, or gone.",
                    failed: "The connection to svd was lost, and svd was neither up again nor gone",
                };
                // svd's pid is its guardian's, and both may be killed: its beginning is remembered all the same.
                wait.look(context, &client, |now| {
                    let other = now.since != before.since && now.pid != before.pid;
                    Some(if other { Seen::Another(now.pid) } else { Seen::There })
                })?
            }
            Err(error) => return Err(error),
        };
        match seen {
            Seen::Gone => return Ok(None),
            Seen::Another(pid) => return Ok(Some(pid)),
            Seen::There if context.json => {}
            Seen::There => {
                context.say("svd was killed before all was done, and is up again: it is told once more to end.")
            }
        }
    }
    Err(failed(format!("svd was killed {TRIES} times before it had stopped everything.")))
}

/// Which svd is to end.
fn known(client: &Client) -> Result<Version, ClientError> {
    let (begun, mut pause) = (Instant::now(), FIRST_PAUSE);
    loop {
        match client.fetch_within("/v1/version", RETURN) {
            // It was killed just now: nothing has been asked for yet.
            Err(ClientError::Lost) if begun.elapsed() < RETURN => rest(&mut pause),
            other => return other,
        }
    }
}

/// `again`: it was there before, so that nobody at the socket means that it is gone, or will come back.
fn is_lost(error: &CliError, again: bool) -> bool {
    match error {
        CliError::Said { exit: Exit::Lost, .. } => true,
        CliError::Said { exit: Exit::Unknown, .. } => again,
        _ => false,
    }
}

/// What is waited for, and what is said of it.
struct Wait {
    limit: Duration,
    meanwhile: &'static str,
    failed: &'static str,
}

impl Wait {
    /// Until svd's socket is gone, or `seen` is content with the svd that answers.
    fn look(
        &self,
        context: &Context,
        client: &Client,
        seen: impl Fn(&Version) -> Option<Seen>,
    ) -> Result<Seen, CliError> {
        let (begun, mut pause, mut told) = (Instant::now(), FIRST_PAUSE, context.json);
        while context.socket().is_none_or(|socket| std::fs::symlink_metadata(socket).is_ok()) {
            match client.fetch_within("/v1/version", ANSWER) {
                Ok(now) => {
                    if let Some(seen) = seen(&now) {
                        return Ok(seen);
                    }
                }
                // Of another host there is nothing else to look at.
                Err(error) if context.socket().is_none() && error.is_gone() => break,
                Err(_) => {}
            }
            if begun.elapsed() >= self.limit {
                return Err(failed(format!("{} within {} s.", self.failed, self.limit.as_secs())));
            }
            if !told && begun.elapsed() >= LONG {
                context.say(self.meanwhile);
                told = true;
            }
            rest(&mut pause);
        }
        sleep(LOCK);
        Ok(Seen::Gone)
    }
}

fn rest(pause: &mut Duration) {
    sleep(*pause);
    *pause = (*pause * 2).min(LONGEST_PAUSE);
}

fn failed(text: String) -> CliError {
    let error = ApiError::new(ErrorCode::Failed, text).hint("svd's own messages may say why.");
    CliError::Said { exit: Exit::Failed, error }
}
