//! Verbs that concern the host: update, shutdown, version; and exec, which is reserved.

use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;

use super::args::{ExecArgs, UpdateArgs};
use super::context::{Context, need_names};
use super::exit::{CliError, Exit};
use super::{act, render};
use crate::api::client::{ClientError, encode};
use crate::api::types::{ApiError, ErrorCode, UpdateResult, Version};

pub fn understand<T: DeserializeOwned>(text: &RawValue) -> Result<T, CliError> {
    serde_json::from_str(text.get()).map_err(|error| odd_answer(&error))
}

pub fn odd_answer(error: &serde_json::Error) -> CliError {
    let message = format!("svctl does not understand svd's answer: {error}.");
    CliError::Said {
        exit: Exit::Failed,
        error: ApiError::new(ErrorCode::Internal, message)
            .hint("Are svctl and svd of the same version? See `svctl version`."),
    }
}

pub fn update(context: &Context, args: &UpdateArgs) -> Result<Exit, CliError> {
    let body = json!({ "dry_run": args.dry_run });
    let result = context.act("/v1/update", Some(&body))?;
    let done: UpdateResult = understand(&result)?;
    if context.json {
        context.print_json(result.get().as_bytes())?;
    } else {
        context.print(render::update(&done))?;
        act::show(context, &done.services)?;
    }
    Ok(match done.services.iter().any(|s| !s.ok) {
        true => Exit::Failed,
        false => Exit::Ok,
    })
}

pub fn shutdown(context: &Context) -> Result<Exit, CliError> {
    let lost = |error: &CliError| matches!(error, CliError::Said { exit: Exit::Lost, .. });
    match context.act("/v1/shutdown", None) {
        Ok(_) => {}
        // svd may be gone before its last word has arrived; that it is gone is the answer.
        Err(error) if lost(&error) && context.client()?.get("/v1/version").is_err() => {}
        Err(error) => return Err(error),
    }
    if context.json {
        context.print_value(&json!({ "stopped": true }))?;
    } else {
        context.print("svd has stopped.\n")?;
    }
    Ok(Exit::Ok)
}

/// svctl's own version is known without svd, so that a missing one is told, not failed.
pub fn version(context: &Context) -> Result<Exit, CliError> {
    let own = env!("CARGO_PKG_VERSION");
    let svd: Result<Version, ClientError> = context.client()?.fetch("/v1/version");
    if context.json {
        let svd = svd.ok();
        context.print_value(&json!({ "svctl": own, "svd": svd }))?;
        return Ok(Exit::Ok);
    }
    context.print(format!("svctl {own}\n"))?;
    match svd {
        Ok(svd) => context.print(render::version(&svd))?,
        Err(error) => context.say(&render::error("svctl: ", &error.to_api())),
    }
    Ok(Exit::Ok)
}

pub fn exec(context: &Context, args: &ExecArgs) -> Result<Exit, CliError> {
    need_names(std::slice::from_ref(&args.name), "exec")?;
    let path = format!("/v1/services/{}/exec", encode(&args.name));
    let result = context.act(&path, Some(&json!({ "command": args.command })))?;
    context.print_json(result.get().as_bytes())?;
    Ok(Exit::Ok)
}
