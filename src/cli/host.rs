//! Verbs that concern the host: update, upgrade, version.

use serde::de::DeserializeOwned;
use serde_json::json;
use serde_json::value::RawValue;

use super::args::{UpdateArgs, UpgradeArgs};
use super::context::Context;
use super::exit::{CliError, Exit};
use super::{act, render};
use crate::api::client::ClientError;
use crate::api::types::{
    ApiError, ErrorCode, FullStatusList, HealthState, ServiceStatus, UpdateResult, UpgradeResult, Version,
};
use std::thread::sleep;
use std::time::{Duration, Instant};

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

/// For the new svd to be up.
const UPGRADE: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// For services to be as well as they were before.
const WELL: Duration = Duration::from_secs(30);

/// Which service ran before and does not, or has become unhealthy.
fn unwell(before: &FullStatusList, now: &FullStatusList) -> Option<String> {
    let ill = |s: &ServiceStatus| s.health.as_ref().is_some_and(|health| health.state == HealthState::Unhealthy);
    before.services.iter().filter(|s| s.state.counts_as_running() && !ill(s)).find_map(|was| {
        match now.services.iter().find(|s| s.name == was.name) {
            None => Some(format!("{} is gone", was.name)),
            Some(is) if !is.state.counts_as_running() => Some(format!("{} is {}", was.name, is.state.as_str())),
            Some(is) if ill(is) => Some(format!("{} is unhealthy", was.name)),
            Some(_) => None,
        }
    })
}

pub fn upgrade(context: &Context, args: &UpgradeArgs) -> Result<Exit, CliError> {
    if args.ship && context.socket().is_some() {
        return Err(CliError::usage(
            "--ship brings svctl's program to other hosts.",
            "For example: svctl -H all upgrade --ship",
        ));
    }
    let services = || -> Result<FullStatusList, CliError> { Ok(context.client()?.fetch("/v1/status?full=true")?) };
    let before = services()?;
    let mut body = json!({ "binary": args.binary });
    if args.force {
        // What an older svd does not know is asked for only where it is meant.
        body["force"] = true.into();
    }
    let begun: UpgradeResult = understand(&context.act("/v1/upgrade", Some(&body))?)?;
    let until = Instant::now() + UPGRADE;
    let now = loop {
        // Its socket stays: at worst the answer of the old one is cut.
        let version: Result<Version, ClientError> = context.client()?.fetch("/v1/version");
        match version {
            Ok(version) if version.image != begun.image => break version,
            Err(error) if Instant::now() >= until => return Err(error.into()),
            Ok(_) if Instant::now() >= until => {
                let text = format!("svd {} has not been replaced within {} s.", begun.from, UPGRADE.as_secs());
                let error = ApiError::new(ErrorCode::Failed, text).hint("svd's own messages say why.");
                return Err(CliError::Said { exit: Exit::Failed, error });
            }
            _ => sleep(LOOK_AGAIN),
        }
    };
    if let Some(why) = &now.fallback {
        let text = format!("svd {} goes on instead of {}: {why}.", now.version, begun.binary);
        return Err(CliError::Said { exit: Exit::Failed, error: ApiError::new(ErrorCode::Failed, text) });
    }
    if args.ship && *now.version != *env!("CARGO_PKG_VERSION") {
        let text = format!("svd {} runs, and {} was sent.", now.version, env!("CARGO_PKG_VERSION"));
        let error = ApiError::new(ErrorCode::Failed, text)
            .hint("It was started from another file than the one in root's PATH.");
        return Err(CliError::Said { exit: Exit::Failed, error });
    }
    let until = Instant::now() + WELL;
    while let Some(why) = unwell(&before, &services()?) {
        if Instant::now() >= until {
            let text = format!("svd {} runs instead of {}, and {why}.", now.version, begun.from);
            return Err(CliError::Said { exit: Exit::Failed, error: ApiError::new(ErrorCode::Failed, text) });
        }
        sleep(LOOK_AGAIN * 10);
    }
    if context.json {
        context.print_value(&json!({ "from": begun.from, "to": now.version, "binary": begun.binary }))?;
    } else {
        context.print(format!("svd {} runs ({}), instead of {}.\n", now.version, begun.binary, begun.from))?;
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
