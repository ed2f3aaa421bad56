//! `svctl exec`.

use std::ops::ControlFlow;

use serde_json::json;

use super::args::ExecArgs;
use super::context::{Context, need_names};
use super::exit::{CliError, Exit};
use super::host::understand;
use super::text::Escaper;
use crate::api::client::encode;
use crate::api::types::{ExecResult, Progress};

/// What a shell adds to the number of the signal that ended a command.
const SIGNALLED: i32 = 128;

/// The command's output goes to stdout as it comes, or is in the document of `--json`; its exit code is svctl's.
pub fn exec(context: &Context, args: &ExecArgs) -> Result<Exit, CliError> {
    need_names(std::slice::from_ref(&args.name), "exec")?;
    if args.command.is_empty() {
        return Err(CliError::usage(
            "exec needs a command.",
            format!("For example: svctl exec {} -- python manage.py check", args.name),
        ));
    }
    let mut escaper = (context.terminal && !context.json).then(Escaper::default);
    let mut output = String::new();
    let mut written = Ok(());
    let path = format!("/v1/services/{}/exec", encode(&args.name));
    let body = json!({ "command": args.command });
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
    let result = result?;
    if let Some(mut escaper) = escaper {
        context.print(escaper.end())?;
    }
    let ended: ExecResult = understand(&result)?;
    if context.json {
        let ExecResult { exit_code, signal } = ended;
        context.print_value(&json!({ "exit_code": exit_code, "signal": signal, "output": output }))?;
    } else if let Some(signal) = ended.signal {
        context.say(&format!("svctl: the command was killed by signal {signal}."));
    }
    let code = ended.exit_code.or_else(|| ended.signal.map(|signal| SIGNALLED + signal));
    Ok(code.and_then(|code| u8::try_from(code).ok()).map_or(Exit::Failed, Exit::Command))
}
