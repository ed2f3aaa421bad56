//! `svctl`: arguments ([`args`]), one file per verb or close family, rendering ([`render`], pure) and exit codes
//! (`exit`). Talks to svd through [`crate::api::client`] alone.
//!
//! Data goes to stdout, progress and messages to stderr; nothing but `edit` on a terminal ever asks a question. `-H` runs a verb on many hosts (`hosts`), each
//! of which has a [`Context`] of its own; no verb knows of it.

mod act;
pub mod args;
mod canary;
pub mod check;
mod completion;
mod context;
mod demo;
mod deploy;
mod edit;
mod events;
mod exec;
mod exit;
mod files;
mod host;
mod hosts;
mod init;
mod inspect;
mod lanes;
mod logs;
mod manual;
mod monitor;
mod pid;
mod push;
mod relay;
mod releases;
pub mod render;
mod render_processes;
mod render_releases;
pub mod screen;
mod security;
mod session;
mod setup;
mod show;
mod shutdown;
mod status;
pub mod text;

use std::process::ExitCode;

use clap::Parser;

use crate::api::client::NO_SVD;
use crate::fleet::rollout::Wish;
use args::{Cli, Command};
use context::Context;
use exit::{CliError, Exit};

/// Entry point of `svctl`.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Printing fails when nobody reads, which is no reason to complain.
            let _ = error.print();
            return match error.exit_code() {
                0 => Exit::Ok.into(),
                _ => Exit::Usage.into(),
            };
        }
    };
    let context = Context::new(cli.socket.clone(), cli.json);
    let done = over_hosts(&context, &cli).unwrap_or_else(|| match hosts::are_meant(&cli) {
        true => hosts::run(&context, &cli),
        false => run(&context, &cli.command),
    });
    match done {
        Ok(exit) => exit.into(),
        Err(error) => context.report(&of_the_fleet(&cli, error)).into(),
    }
}

/// Where a fleet file is about, its hosts may be meant by somebody who asks this machine, on which no svd is.
fn of_the_fleet(cli: &Cli, error: CliError) -> CliError {
    let CliError::Said { exit, error } = error else { return error };
    let here = cli.hosts.is_empty() && error.hint.as_deref() == Some(NO_SVD);
    let error = match here.then(|| hosts::fleet(cli)) {
        Some(Ok(Some(fleet))) => {
            error.hint(format!("{NO_SVD} For the hosts of {}: svctl -H all …", fleet.path.display()))
        }
        _ => error,
    };
    CliError::Said { exit, error }
}

/// Verbs that concern all hosts of an app together, whatever `-H` chooses of them.
fn over_hosts(context: &Context, cli: &Cli) -> Option<Result<Exit, CliError>> {
    Some(match &cli.command {
        Command::Deploy(args) => deploy::deploy(context, cli, args, args.dry_run),
        Command::Plan(args) => deploy::deploy(context, cli, args, true),
        Command::Attach(args) => deploy::take_over(context, cli, args, None),
        Command::Resume(args) => deploy::take_over(context, cli, args, Some(Wish::Resume)),
        Command::Promote(args) => deploy::take_over(context, cli, args, Some(Wish::Promote)),
        Command::Abort(args) => deploy::abort(context, cli, args),
        Command::CatchUp(args) => deploy::again::catch_up(context, cli, args),
        Command::Rollback(args) => return deploy::again::rollback(context, cli, args),
        Command::Releases(args) => return deploy::again::releases(context, cli, args),
        Command::Monitor(args) => monitor::monitor(context, cli, args),
        Command::Judge(args) => deploy::judge::judge(context, cli, args),
        Command::Push(args) => push::push(context, cli, args),
        Command::Setup(args) => setup::setup(context, cli, args),
        Command::Remove(args) => setup::remove(context, cli, args),
        _ => return None,
    })
}

fn run(context: &Context, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::Status(args) => status::status(context, args),
        Command::IsActive(args) => status::is_active(context, args),
        Command::Start(args) => act::simple(context, "start", &args.names),
        Command::Stop(args) => act::simple(context, "stop", &args.names),
        Command::Restart(args) => act::simple(context, "restart", &args.names),
        Command::Enable(args) => act::simple(context, "enable", &args.names),
        Command::Disable(args) => act::simple(context, "disable", &args.names),
        Command::Drain(args) => act::simple(context, "drain", &args.names),
        Command::Undrain(args) => act::simple(context, "undrain", &args.names),
        Command::Reload(args) => match args.canary {
            Some(workers) => canary::reload(context, args, workers),
            None => act::reload(context, args),
        },
        Command::Scale(args) => act::scale(context, args),
        Command::Signal(args) => act::signal(context, args),
        Command::Update(args) => host::update(context, args),
        Command::Upgrade(args) => host::upgrade(context, args),
        Command::Shutdown(args) => shutdown::shutdown(context, args.force),
        Command::Version => host::version(context),
        Command::Exec(args) => exec::exec(context, args),
        Command::Pid(args) => pid::pid(context, &args.names),
        Command::Logs(args) => logs::logs(context, args),
        Command::Events(args) => events::events(context, args),
        // Done for all hosts together, above.
        Command::Deploy(_)
        | Command::Plan(_)
        | Command::Attach(_)
        | Command::Resume(_)
        | Command::Promote(_)
        | Command::Abort(_)
        | Command::CatchUp(_)
        | Command::Judge(_)
        | Command::Monitor(_)
        | Command::Setup(_)
        | Command::Remove(_)
        | Command::Push(_) => Ok(Exit::Usage),
        Command::Releases(args) => releases::releases(context, args),
        Command::History(args) => releases::history(context, args),
        Command::Rollback(args) => releases::rollback(context, args),
        Command::Lock(args) => releases::lock(context, args),
        Command::Unlock(args) => releases::unlock(context, args),
        Command::Init(args) => init::init(context, args),
        Command::Show(args) => show::show(context, args),
        Command::Inspect(args) => inspect::inspect(context, args),
        Command::Security(args) => security::security(context, args),
        Command::Edit(args) => edit::edit(context, args),
        Command::Check(args) => configuration(context, &args.dir),
        Command::Completions(args) => completion::completions(args.shell),
        Command::Man => manual::man(),
        Command::Demo(args) => demo::demo(context, args),
        Command::Relay => relay::relay(context),
    }
}

/// The report is the data here, whether it is good or bad.
fn configuration(context: &Context, dir: &std::path::Path) -> Result<Exit, CliError> {
    let mut checked = check::check_dir(dir, context.json);
    if checked.valid {
        check::ask_host(context, dir, &mut checked);
    }
    context.print(checked.text)?;
    Ok(if checked.valid { Exit::Ok } else { Exit::Failed })
}

#[cfg(test)]
#[path = "cli_test.rs"]
mod tests;
