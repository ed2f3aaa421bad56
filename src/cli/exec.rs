//! `svctl exec`.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;

use serde_json::json;

use super::args::ExecArgs;
use super::context::{Context, need_names};
use super::exit::{CliError, Exit};
use super::host::understand;
use super::screen;
use super::session::{self, Ended};
use super::text::Escaper;
use crate::api::client::{ClientError, encode};
use crate::api::types::{ApiError, ErrorCode, ExecResult, Progress};

/// What a shell adds to the number of the signal that ended a command.
const SIGNALLED: i32 = 128;

/// The command's output goes where svctl's does, as it comes, or is in the document of `--json`; its exit code is svctl's.
pub fn exec(context: &Context, args: &ExecArgs) -> Result<Exit, CliError> {
    need_names(std::slice::from_ref(&args.name), "exec")?;
    if args.command.is_empty() {
        return Err(CliError::usage(
            "exec needs a command.",
            format!("For example: svctl exec {} -- python manage.py check", args.name),
        ));
    }
    if context.json || context.is_among_others() {
        if args.tty {
            return Err(CliError::usage(
                "A terminal is for a command on one host, and not with --json.",
                "Leave --tty out, or choose one host.",
            ));
        }
        return only_output(context, args);
    }
    match talk(context, args) {
        // svd is older. What it can do is done as before.
        Err(CliError::Said { error, .. }) if error.code == ErrorCode::UnknownRoute && !args.tty => {
            if !io::stdin().is_terminal() {
                context.say("svctl: svd is older than this svctl: the command gets no input.");
            }
            only_output(context, args)
        }
        done => done,
    }
}

/// With input, and with a terminal of its own where that is wanted.
fn talk(context: &Context, args: &ExecArgs) -> Result<Exit, CliError> {
    let here = io::stdin().is_terminal();
    // Who reads from its terminal in the background is stopped.
    let behind = here && !session::is_in_foreground();
    let terminal = args.tty || (!args.no_tty && here && !behind && io::stdout().is_terminal());
    let mut body = json!({ "command": args.command });
    if let Some(release) = &args.release {
        body["release"] = json!(release);
    }
    if terminal {
        let (columns, rows) = screen::size();
        let number = |size: usize| u16::try_from(size).unwrap_or(u16::MAX);
        let kind = std::env::var("TERM").unwrap_or_default();
        body["terminal"] = json!({ "columns": number(columns), "rows": number(rows), "kind": kind });
    }
    let path = format!("/v1/services/{}/session", encode(&args.name));
    let ended = context.client()?.talk(&path, &body, async |stream| {
        let raw = (terminal && here && !behind).then(screen::Raw::take);
        let ended = session::run(stream, terminal, !behind).await;
        drop(raw);
        ended
    })??;
    match ended {
        Ended::Command(result) => Ok(exit_of(context, result)),
        Ended::Signalled(signal) => Ok(u8::try_from(SIGNALLED + signal).map_or(Exit::Failed, Exit::Command)),
    }
}

fn exit_of(context: &Context, ended: ExecResult) -> Exit {
    if let Some(signal) = ended.signal {
        context.say(&format!("svctl: the command was killed by signal {signal}."));
    }
    let code = ended.exit_code.or_else(|| ended.signal.map(|signal| SIGNALLED + signal));
    code.and_then(|code| u8::try_from(code).ok()).map_or(Exit::Failed, Exit::Command)
}

/// Without input; both outputs are one.
fn only_output(context: &Context, args: &ExecArgs) -> Result<Exit, CliError> {
    let mut escaper = (context.terminal && !context.json).then(Escaper::default);
    let mut output = String::new();
    let mut written = Ok(());
    let path = format!("/v1/services/{}/exec", encode(&args.name));
    let mut body = json!({ "command": args.command });
    if let Some(release) = &args.release {
        body["release"] = json!(release);
    }
    let result = context.client()?.act_while(&path, Some(&body), |line: &Progress| {
        match &mut escaper {
            _ if context.json => output.push_str(&line.message),
            Some(escaper) => written = context.print(escaper.block(line.output())),
            None => written = context.print(line.output()),
        }
        // Where nobody reads, the command ends as well.
        if written.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    written?;
    let result = result.map_err(|error| with_release(error, args))?;
    if let Some(mut escaper) = escaper {
        context.print(escaper.end())?;
    }
    let ended: ExecResult = understand(&result)?;
    if context.json {
        let ExecResult { exit_code, signal } = ended;
        context.print_value(&json!({ "exit_code": exit_code, "signal": signal, "output": output }))?;
        let silent = ExecResult { signal: None, exit_code: exit_code.or(signal.map(|s| SIGNALLED + s)) };
        return Ok(exit_of(context, silent));
    }
    Ok(exit_of(context, ended))
}

/// An svd that is older takes no releases here.
fn with_release(error: ClientError, args: &ExecArgs) -> ClientError {
    match error {
        ClientError::Api(error)
            if error.code == ErrorCode::BadRequest && args.release.is_some() && error.message.contains("release`") =>
        {
            let why = "svd is older than this svctl, and does not know --release.";
            ClientError::Api(ApiError::new(ErrorCode::BadRequest, why).hint("`svctl version` tells both."))
        }
        other => other,
    }
}
