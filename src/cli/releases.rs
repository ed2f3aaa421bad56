//! Verbs about what is deployed on this host: releases, history, rollback, lock, unlock.

use serde::Serialize;
use serde_json::value::RawValue;

use super::args::{HistoryArgs, LockArgs, OfApp, RollbackArgs, UnlockArgs};
use super::context::{Context, need_names};
use super::exit::{CliError, Exit};
use super::host::understand;
use super::render_releases as render;
use crate::api::apps::{
    ActivateOptions, AppStatus, Fence, FenceOptions, History, LockOptions, Migrated, ReleaseState, StepName,
    StepOptions, StepResult, UnlockOptions, next_number,
};
use crate::api::client::encode;
use crate::api::types::{ActionResult, ApiError, ErrorCode};

/// For switching the services and confirming: nobody else renews it.
const LEASE: u64 = 600;

fn path(app: &str, rest: &str) -> String {
    format!("/v1/apps/{}{rest}", encode(app))
}

fn post(context: &Context, app: &str, verb: &str, body: &impl Serialize) -> Result<Box<RawValue>, CliError> {
    let body = serde_json::to_value(body).unwrap_or_default();
    context.act(&path(app, &format!("/{verb}")), Some(&body))
}

fn need_app(name: &str) -> Result<(), CliError> {
    need_names(std::slice::from_ref(&name.to_owned()), "this verb")
}

pub fn releases(context: &Context, args: &OfApp) -> Result<Exit, CliError> {
    need_app(&args.app)?;
    let text = context.client()?.get(&path(&args.app, ""))?;
    if context.json {
        context.print_json(&text)?;
        return Ok(Exit::Ok);
    }
    let status: AppStatus = serde_json::from_slice(&text).map_err(|e| super::host::odd_answer(&e))?;
    context.print(render::releases(&status))?;
    Ok(Exit::Ok)
}

pub fn history(context: &Context, args: &HistoryArgs) -> Result<Exit, CliError> {
    need_app(&args.app)?;
    let text = context.client()?.get(&path(&args.app, &format!("/history?lines={}", args.lines)))?;
    if context.json {
        context.print_json(&text)?;
        return Ok(Exit::Ok);
    }
    let history: History = serde_json::from_slice(&text).map_err(|e| super::host::odd_answer(&e))?;
    context.print(render::history(&history))?;
    Ok(Exit::Ok)
}

/// Whoever calls: what the lock says beside the user that svd knows.
fn holder() -> Box<str> {
    let name = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER"));
    name.unwrap_or_default().into()
}

/// One that nobody has had, and higher than all before.
fn next_fence(status: &AppStatus, what: &str) -> Fence {
    let number = next_number(status.fence.number, fastrand::u32(..));
    Fence { number, rollout: format!("{what}-{:08x}", fastrand::u32(..)).into() }
}

fn status_of(context: &Context, app: &str) -> Result<AppStatus, CliError> {
    Ok(context.client()?.fetch(&path(app, ""))?)
}

pub fn lock(context: &Context, args: &LockArgs) -> Result<Exit, CliError> {
    need_app(&args.app)?;
    let fence = next_fence(&status_of(context, &args.app)?, "lock");
    let message = args.message.as_str().into();
    let wanted = LockOptions { fence, seconds: None, holder: holder(), message };
    let result = post(context, &args.app, "lock", &wanted)?;
    match context.json {
        true => context.print_json(result.get().as_bytes())?,
        false => context.print(format!("{} is locked until `svctl unlock {0}`\n", args.app))?,
    }
    Ok(Exit::Ok)
}

pub fn unlock(context: &Context, args: &UnlockArgs) -> Result<Exit, CliError> {
    need_app(&args.app)?;
    let status = status_of(context, &args.app)?;
    // What people have locked, people unlock; a rollout that goes on is another matter.
    let by_people = status.lock.as_ref().filter(|lock| lock.seconds_left.is_none()).map(|lock| lock.fence.clone());
    let wanted = UnlockOptions { fence: by_people, force: args.force };
    let result = post(context, &args.app, "unlock", &wanted)?;
    let unlocked: bool = understand(&result)?;
    match context.json {
        true => context.print_value(&serde_json::json!({ "unlocked": unlocked }))?,
        false if unlocked => context.print(format!("{} is unlocked\n", args.app))?,
        false => context.print(format!("{} was not locked\n", args.app))?,
    }
    Ok(Exit::Ok)
}

pub fn rollback(context: &Context, args: &RollbackArgs) -> Result<Exit, CliError> {
    need_app(&args.which.app)?;
    let status = status_of(context, &args.which.app)?;
    if let Some(trial) = &status.trial {
        let why = format!("{}: {} of the rollout {} is on trial.", status.app, trial.release, trial.rollout);
        let error = ApiError::new(ErrorCode::Conflict, why)
            .hint("Its own rollout takes it back (`svctl abort`), or the host does when its lease runs out.");
        return Err(CliError::Said { exit: Exit::Failed, error });
    }
    let to = match &args.which.to {
        Some(to) => to.as_str().into(),
        None => status.previous.clone().ok_or_else(|| nowhere(&status))?,
    };
    let crossed = crossed(&status, &to, args)?;
    if args.which.dry_run {
        match context.json {
            true => context.print_value(&serde_json::json!({ "release": to, "services": [] }))?,
            false => {
                let from = status.confirmed.as_deref().unwrap_or("nothing");
                context.print(format!("{} would go from {from} to {to}. Nothing was done.\n", args.which.app))?;
            }
        }
        return Ok(Exit::Ok);
    }
    let fence = next_fence(&status, "rollback");
    let wanted = LockOptions {
        fence: fence.clone(),
        seconds: Some(LEASE),
        holder: holder(),
        message: format!("rollback to {to}").into(),
    };
    post(context, &args.which.app, "lock", &wanted)?;
    let done = go_back(context, args, &fence, &to, &crossed);
    // Whatever has become of it; the first error is the one to tell.
    let unlocked = post(context, &args.which.app, "unlock", &UnlockOptions { fence: Some(fence), force: false });
    let done = done?;
    unlocked?;
    match context.json {
        true => context.print_value(&serde_json::json!({ "release": to, "services": done.services }))?,
        false => {
            super::act::show(context, &done.services)?;
            context.print(format!("{} is at {to}\n", args.which.app))?;
        }
    }
    Ok(super::act::exit_of(&done.services))
}

/// Migrations that came with what is left: newest first.
///
/// # Errors
/// The older code is not said to work with one of them, and nothing was said about that.
pub fn crossed(status: &AppStatus, to: &str, args: &RollbackArgs) -> Result<Vec<(Box<str>, Migrated)>, CliError> {
    // Oldest first, and those after the one that is gone to.
    let after = status.releases.iter().rev().take_while(|r| *r.release != *to);
    let crossed: Vec<_> = after.filter_map(|r| Some((r.release.clone(), r.migrated?))).collect();
    let bad = crossed.iter().find(|(_, migrated)| *migrated == Migrated::Incompatible);
    match bad {
        Some((release, _)) if !args.down && !args.force => {
            let why = format!(
                "{}: a migration came with {release}, and nothing says that {to} works with it; nothing was done.",
                status.app
            );
            let hint = "--down undoes it, by `down` of [deploy.migrate]; --force goes back without; compatible = true there says that older code works.";
            let error = ApiError::new(ErrorCode::Conflict, why).hint(hint);
            Err(CliError::Said { exit: Exit::Failed, error })
        }
        _ => Ok(crossed),
    }
}

/// What older code does not work with is undone first, and the rest when nothing needs it any more.
fn go_back(
    context: &Context,
    args: &RollbackArgs,
    fence: &Fence,
    to: &str,
    crossed: &[(Box<str>, Migrated)],
) -> Result<ActionResult, CliError> {
    let down = |which: Migrated| -> Result<(), CliError> {
        for (release, _) in crossed.iter().filter(|(_, migrated)| args.down && *migrated == which) {
            let wanted = StepOptions { fence: fence.clone(), release: release.clone(), step: StepName::MigrateDown };
            let done: StepResult = understand(&post(context, &args.which.app, "step", &wanted)?)?;
            if !done.ran {
                let why = format!("{}: the migration of {release} stays: {}.", args.which.app, done.reason);
                return Err(CliError::Said { exit: Exit::Failed, error: ApiError::new(ErrorCode::Conflict, why) });
            }
        }
        Ok(())
    };
    down(Migrated::Incompatible)?;
    let done = switch(context, &args.which.app, fence, to)?;
    for (release, _) in crossed.iter().filter(|_| !args.down && !context.json) {
        context.print(format!("The migration that came with {release} stays.\n"))?;
    }
    down(Migrated::Compatible)?;
    Ok(done)
}

fn switch(context: &Context, app: &str, fence: &Fence, to: &str) -> Result<ActionResult, CliError> {
    let wanted = ActivateOptions {
        fence: fence.clone(),
        release: to.into(),
        lease_seconds: LEASE,
        holds: false,
        rollback: Some(format!("it was rolled back to {to}").into()),
    };
    let result = post(context, app, "activate", &wanted)?;
    post(context, app, "confirm", &FenceOptions { fence: fence.clone() })?;
    understand(&result)
}

fn nowhere(status: &AppStatus) -> CliError {
    let good = status.releases.iter().filter(|r| r.state == ReleaseState::Confirmed).count();
    let error = ApiError::new(
        ErrorCode::UnknownRelease,
        format!("{}: there is no earlier good release on this host ({good} in all).", status.app),
    );
    let hint = format!("`svctl releases {}` lists them; `svctl rollback {0} --to ID` names one.", status.app);
    CliError::Said { exit: Exit::Failed, error: error.hint(hint) }
}
