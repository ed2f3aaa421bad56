//! svd: the event loop that executes the core's actions.
//!
//! | file | what it has |
//! |---|---|
//! | [`args`], [`background`], [`boot`] | the command line, `--daemon`, start and end |
//! | [`standin`] | what a service manager starts while another svd runs |
//! | [`host`] | the loop, and everything that is open |
//! | [`execute`], [`launch`], [`workers`], [`successor`], [`sockets`], [`network`] | generations and workers: prepared, spawned, watched, ended |
//! | [`readiness`], [`probe`], [`checks`], [`notify`], [`gunicorn`], [`statsd`], [`health`] | how they are doing |
//! | [`control`], [`status`], [`processes`], [`output`], [`show`], [`inspect`], [`update`], [`reload`], [`exec`], [`session`], [`events`], [`orders`], [`audit`] | what people ask, and are told |
//! | [`releases`], [`standby`] | what is deployed here: taken in, built, switched to, taken back; a copy for the way back |
//! | [`guardian`], [`keeping`], [`state`], [`adopt`], [`upgrade`], [`store`], [`paths`], [`secret`], [`messages`] | what survives svd's death, and the machine's; where; svd's own messages |
//! | [`guardian`] | svd's parent, which outlives it |
//! | [`pool`], [`queue`] | threads for what may block, and the way to those that write |
//! | [`memory`], [`recycle`] | what services use, and what is replaced when that is too much |
//! | [`trim`] | when memory is given back |
//! | [`logs`] | the log thread |
//!
//! May use everything but `cli`. Decides nothing that the core decides.

mod adopt;
pub mod args;
mod audit;
mod background;
mod boot;
mod checks;
mod contain;
mod control;
mod enclosure;
mod events;
mod exec;
mod execute;
mod features;
pub mod guardian;
mod gunicorn;
mod health;
mod homes;
mod host;
mod inspect;
mod keeping;
mod launch;
mod limits;
pub mod logs;
mod memory;
mod messages;
mod network;
mod notify;
mod numbers;
mod oom;
mod orders;
mod output;
mod paths;
mod pool;
mod probe;
mod processes;
mod queue;
mod readiness;
mod recycle;
mod releases;
mod reload;
mod secret;
mod secrets;
mod session;
mod show;
mod sockets;
mod standby;
mod standin;
mod state;
mod statsd;
mod status;
mod store;
mod successor;
mod token;
mod trim;
mod unit;
mod update;
mod upgrade;
mod users;
mod workers;

#[cfg(any(test, feature = "fuzz"))]
pub use {adopt::check as check_run_state, notify::check as check_notify, store::check as check_state};

use clap::Parser;
use std::process::ExitCode;

/// The program `svd`.
pub fn main() -> ExitCode {
    guardian::resume(keeping::OPTIONS);
    let args = args::Args::parse();
    if args.trial {
        return match upgrade::trial(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("svd: {why}");
                ExitCode::FAILURE
            }
        };
    }
    if args.daemon {
        return background::start(&args);
    }
    match standin::stand_in(&args) {
        Ok(standin::Next::Begin) => {}
        Ok(standin::Next::End) => return ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("svd: {why}");
            return ExitCode::FAILURE;
        }
    }
    let mut report = background::Report::take();
    let (ended, messages) = match run(&args, &mut report) {
        Ok(messages) => (ExitCode::SUCCESS, messages),
        Err((why, messages)) => {
            eprintln!("svd: {why}");
            report.failed(&why);
            (ExitCode::FAILURE, messages)
        }
    };
    if let Some(messages) = messages {
        messages.flush_at_the_end();
    }
    ended
}

type Messages = Option<messages::Messages>;

fn run(args: &args::Args, report: &mut background::Report) -> Result<Messages, (String, Messages)> {
    crate::sys::memory::one_heap();
    // While there is one thread, and little in memory that both would have.
    let guardian = if args.no_guardian { None } else { Some(guardian::start(keeping::OPTIONS)) };
    let guardian = guardian.transpose().map_err(|e| {
        let why = crate::sys::io_text(&e);
        (format!("cannot start the guardian: {why}; --no-guardian does without"), None)
    })?;
    // Before anything else: threads inherit the mask.
    let signals = crate::sys::poll::Signals::block();
    let signals = signals.map_err(|e| (format!("cannot block signals: {}", e.desc()), None))?;
    let own_log = background::is_own_log(&args.paths().own_log()).then(|| args.paths().own_log());
    let messages = messages::start(own_log).map_err(|e| (format!("cannot start a thread: {e}"), None))?;
    let level = if args.verbose { tracing::Level::INFO } else { tracing::Level::WARN };
    let writer = messages.clone();
    tracing_subscriber::fmt().with_max_level(level).with_target(false).with_writer(move || writer.clone()).init();
    match boot::run(args, signals, report, messages.clone(), guardian) {
        Ok(()) => Ok(Some(messages)),
        Err(why) => Err((why, Some(messages))),
    }
}
