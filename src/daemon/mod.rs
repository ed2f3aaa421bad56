//! svd: the event loop that executes the core's actions.
//!
//! | file | what it has |
//! |---|---|
//! | [`args`], [`background`], [`boot`] | the command line, `--daemon`, start and end |
//! | [`host`] | the loop, and everything that is open |
//! | [`execute`], [`launch`], [`workers`], [`sockets`] | generations and workers: prepared, spawned, watched, ended |
//! | [`readiness`], [`probe`], [`checks`], [`notify`], [`gunicorn`], [`health`] | how they are doing |
//! | [`control`], [`status`], [`output`], [`update`], [`events`], [`audit`] | what people ask, and are told |
//! | [`store`], [`paths`] | what survives, and where |
//! | [`logs`] | the log thread |
//!
//! May use everything but `cli`. Decides nothing that the core decides.

pub mod args;
mod audit;
mod background;
mod boot;
mod checks;
mod control;
mod events;
mod execute;
mod gunicorn;
mod health;
mod host;
mod launch;
pub mod logs;
mod notify;
mod output;
mod paths;
mod probe;
mod readiness;
mod sockets;
mod status;
mod store;
mod token;
mod unit;
mod update;
mod workers;

use clap::Parser;
use std::process::ExitCode;

/// The program `svd`.
pub fn main() -> ExitCode {
    let args = args::Args::parse();
    if args.daemon {
        return background::start(&args);
    }
    let level = if args.verbose { tracing::Level::INFO } else { tracing::Level::WARN };
    tracing_subscriber::fmt().with_max_level(level).with_target(false).with_writer(std::io::stderr).init();
    let mut report = background::Report::take();
    match boot::run(&args, &mut report) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("svd: {why}");
            report.failed(&why);
            ExitCode::FAILURE
        }
    }
}
