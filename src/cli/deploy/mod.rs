//! `deploy`, `plan`, `attach`, `resume`, `abort`, `promote`, `rollback`, `catch-up`: a release's journey over the hosts of an app.
//!
//! | file | what |
//! |---|---|
//! | [`again`] | rollback and catch-up: releases that hosts have had, or others have |
//! | [`target`] | which hosts, by which app of the fleet file; one host without any |
//! | [`goods`] | what is shipped: a commit or an artifact, and how it differs from what runs |
//! | [`news`] | who else is told of it: the hooks of the fleet file |
//! | [`judge`] | what verdicts rested on, judged again |
//! | [`live`] | how it stands, host by host |
//! | [`show`] | the plan and what happens, for people and as JSON |

pub mod again;
pub mod goods;
pub mod judge;
mod live;
mod news;
mod show;
mod target;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::args::{AbortArgs, Cli, DeployArgs, OfApp};
use super::context::Context;
use super::exit::{CliError, Exit};
use super::text::line;
use crate::api::apps::AppStatus;
use crate::api::client::runtime;
use crate::api::types::{ApiError, ErrorCode};
use crate::config::counted;
use crate::fleet::drive::facts::{self, Answer};
use crate::fleet::drive::{Cargo, drive};
use crate::fleet::inventory::BuildHere;
use crate::fleet::inventory::Source;
use crate::fleet::rollout::journal::What;
use crate::fleet::rollout::plan::{Facts, Limits, Purpose, Step};
use crate::fleet::rollout::{Driver, End, Entry, Machine, Outcome, Plan, Start, Wish, kept};
use crate::fleet::source::build;
use crate::fleet::source::git::Git;
use crate::fleet::verdict::{Baseline, TICK};
use goods::Goods;
use news::News;
use show::Show;
use target::Target;

/// How long hosts hold what they have while a rollout is paused.
const PAUSED: Duration = Duration::from_secs(24 * 3600);

/// Between two looks at what goes on.
const BEAT: Duration = Duration::from_millis(500);

fn failed(message: impl Into<Box<str>>) -> CliError {
    CliError::Said { exit: Exit::Failed, error: ApiError::new(ErrorCode::Failed, message) }
}

/// Whoever drives: what locks and journals say.
fn by() -> Box<str> {
    let name = ["SUDO_USER", "USER"].into_iter().find_map(|name| std::env::var(name).ok());
    let name =
        name.or_else(|| Some(nix::unistd::User::from_uid(nix::unistd::getuid()).ok()??.name)).unwrap_or_default();
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    format!("{}@{host}", if name.is_empty() { "somebody" } else { &name }).into()
}

fn driver() -> Driver {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Driver { by: by(), salt: fastrand::u32(..), unix }
}

pub fn deploy(context: &Context, cli: &Cli, args: &DeployArgs, dry_run: bool) -> Result<Exit, CliError> {
    let target = Target::find(cli, &args.app, Some(args))?;
    if let (Source::Git { repository, .. }, false) = (&target.app.source, args.artifact.is_some()) {
        if !context.json {
            context.say(&format!("Looking at {} …", line(repository)));
        }
        warn_of_uncommitted(context, repository, &target.base);
    }
    let goods = Goods::find(&target, args)?;
    let runtime = runtime()?;
    let local = LocalSet::new();
    let answers = runtime.block_on(local.run_until(ask(context, &target)));
    if !dry_run {
        may_deploy(&args.app, &answers)?;
    }
    let plan = plan(&target, &goods, &answers)?;
    let mut show = Show::new(context);
    show.plan(&plan, &goods.news(&answers));
    if dry_run || plan.is_empty() {
        show.end_of_plan();
        return Ok(Exit::Ok);
    }
    let news = News::begin(context, &target, &plan, highest(&answers))?;
    let files = goods.files().and_then(|files| {
        build_here(&target, &plan, &answers, files.path())?;
        Ok(files)
    });
    let (files, news) = news.unless_failed(files)?;
    let tagging = Rc::new(goods.tagging(&target));
    target.links.values().for_each(|link| link.after(&tagging));
    let cargo = Cargo {
        app: args.app.as_str().into(),
        purpose: plan.purpose,
        rollout: plan.rollout.clone(),
        release: plan.release.clone(),
        source: goods.source(),
        label: goods.label(),
        by: by(),
        again: plan.again(),
        files: Some(files.path().to_owned()),
    };
    let machine = Machine::new(plan, Start::Deploy, &driver(), highest(&answers), Duration::ZERO);
    let end = run(&runtime, &local, &target, machine, cargo, &mut show, &news);
    target.ways.close();
    finish(&mut show, news, &args.app, end)
}

/// What the hosts say. Whoever is slow to is named on stderr.
async fn ask(context: &Context, target: &Target) -> BTreeMap<Box<str>, Answer> {
    let tell = |awaited: &[&str]| {
        if !context.json {
            context.say(&awaited_text(awaited, target.links.len()));
        }
    };
    facts::ask_telling(&target.links, &target.app.name, target.app.parallel as usize, tell).await
}

/// Names of hosts that are told.
const NAMED: usize = 5;

fn awaited_text(awaited: &[&str], of: usize) -> String {
    let more = match awaited.len().saturating_sub(NAMED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let names: Vec<String> = awaited.iter().take(NAMED).map(|name| line(name)).collect();
    format!("Waiting for {} of {}: {}{more} …", awaited.len(), counted(of, "host"), names.join(", "))
}

/// What this machine builds, where any host is to get the files.
///
/// # Errors
/// It cannot be built, or hosts wait for what nothing here builds.
fn build_here(
    target: &Target,
    plan: &Plan,
    answers: &BTreeMap<Box<str>, Answer>,
    files: &std::path::Path,
) -> Result<(), CliError> {
    let waiting = |status: &&AppStatus| status.builds && status.built_here;
    let what = match (&target.app.build, answers.values().flatten().find(waiting)) {
        (Some(what), _) => what.clone(),
        (None, None) => return Ok(()),
        // This machine is the only host.
        (None, Some(_)) if target.is_here() => BuildHere::Wheels,
        (None, Some(status)) => {
            let why = format!(
                "The hosts' file of {} says build_on = \"here\", and [app.{}] says nothing of what is built here; nothing was done.",
                status.app, target.app.name
            );
            let hint = "Add build = \"wheels\", or a command; or take build_on away there.";
            let error = ApiError::new(ErrorCode::Failed, why).hint(hint);
            return Err(CliError::Said { exit: Exit::Failed, error });
        }
    };
    if !plan.hosts.iter().any(|host| host.runs(Step::Stage)) {
        return Ok(());
    }
    let requirements = answers.values().flatten().map(|status| &status.requirements).next();
    build::build(files, &what, requirements.map_or(&[], Vec::as_slice)).map_err(|e| failed(e.to_string()))
}

/// Who has just changed a file may think that it is shipped.
fn warn_of_uncommitted(context: &Context, repository: &str, base: &Path) {
    let tree = base.join(repository);
    let changed = if tree.is_dir() { Git::uncommitted(&tree) } else { 0 };
    if changed > 0 && !context.json {
        let files = counted(changed, "file");
        context.say(&format!(
            "{files} in {} differ from what is committed, and are not shipped as they are.",
            line(repository)
        ));
    }
}

/// # Errors
/// Where whoever asks has not the right to, before anything is begun.
fn may_deploy(app: &str, answers: &BTreeMap<Box<str>, Answer>) -> Result<(), CliError> {
    let not: Vec<&str> = answers
        .iter()
        .filter(|(_, answer)| answer.as_ref().is_ok_and(|status| !status.may_deploy))
        .map(|(name, _)| &**name)
        .collect();
    if not.is_empty() {
        return Ok(());
    }
    let message = format!("You may not deploy {app} on {}: no access rule there grants it.", not.join(", "));
    let hint = "Ask root for a rule in svd.toml there that names the verb \"deploy\"; \"*\" does not cover it.";
    let error = ApiError::new(ErrorCode::Forbidden, message).hint(hint);
    Err(CliError::Said { exit: Exit::Forbidden, error })
}

/// Shows what a rollout that was begun from elsewhere has come to, or does something with it.
pub fn take_over(context: &Context, cli: &Cli, args: &OfApp, wish: Option<Wish>) -> Result<Exit, CliError> {
    let target = Target::find(cli, &args.app, None)?;
    let runtime = runtime()?;
    let local = LocalSet::new();
    let answers = runtime.block_on(local.run_until(ask(context, &target)));
    let entries = runtime.block_on(local.run_until(furthest(&target, &answers)))?;
    let mut show = Show::new(context);
    let Some(What::Planned(plan)) = entries.first().map(|entry| &entry.what) else {
        return Err(failed(format!("{}: no host knows of a rollout.", args.app)));
    };
    let Some(wish) = wish else {
        show.journal(plan, &entries);
        return Ok(Exit::Ok);
    };
    let status = answers.values().flatten().flat_map(|s| &s.releases).find(|r| r.release == plan.release);
    let cargo = Cargo {
        app: args.app.as_str().into(),
        purpose: plan.purpose,
        rollout: plan.rollout.clone(),
        release: plan.release.clone(),
        source: status.map_or("".into(), |r| r.source.clone()),
        label: status.map_or("".into(), |r| r.label.clone()),
        by: by(),
        again: plan.again(),
        files: None,
    };
    let start = Start::TakeOver(wish);
    show.begin(plan);
    let news = News::resume(context, &target, plan, highest(&answers));
    let machine = Machine::new(Plan::clone(plan), start, &driver(), highest(&answers), Duration::ZERO);
    let end = run(&runtime, &local, &target, machine, cargo, &mut show, &news);
    target.ways.close();
    finish(&mut show, news, &args.app, end)
}

pub fn abort(context: &Context, cli: &Cli, args: &AbortArgs) -> Result<Exit, CliError> {
    let of = OfApp { app: args.app.clone() };
    take_over(context, cli, &of, Some(Wish::Abort { force: args.force }))
}

fn plan(target: &Target, goods: &Goods, answers: &BTreeMap<Box<str>, Answer>) -> Result<Plan, CliError> {
    let app = &target.app;
    let release = goods.release(answers);
    let rollout = format!("{}-{:08x}", release, fastrand::u32(..));
    // Nobody counts the requests of a service that answers none, or that nobody has used yet.
    let counts = |s: &AppStatus| facts::serves(s).is_some() && s.services.iter().any(|s| s.traffic.is_some());
    let counted = target.app.prometheus.is_some() || answers.values().flatten().any(counts);
    let limits = limits(target, if counted { Baseline::Control } else { Baseline::Health });
    let limits = Limits { slow: facts::slow(answers.values().flatten()).map(millis), ..limits };
    let driver = driver();
    let facts = Facts {
        rollout: &rollout,
        purpose: Purpose::Deploy,
        app: &app.name,
        release: &release,
        by: &driver.by,
        at: driver.unix,
        hosts: facts::facts(&target.app.hosts, answers, &release),
        changes: goods.changes(answers)?,
        waves: &app.waves,
        groups: &target.groups,
        limits,
    };
    Plan::new(facts).map_err(|why| {
        let mut error = ApiError::new(ErrorCode::Failed, format!("{} cannot be deployed; nothing was done.", app.name));
        if why.iter().any(|why| why.contains(" has no svctl: ")) {
            error = error.hint("`svctl -H all setup` brings svctl and svd to hosts that have none.");
        }
        CliError::Said { exit: Exit::Failed, error: error.details(why.into_iter().map(Into::into).collect()) }
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn limits(target: &Target, baseline: Baseline) -> Limits {
    let app = &target.app;
    Limits {
        bake: millis(app.bake),
        lease: millis(app.lease),
        long_lease: millis(PAUSED),
        parallel: app.parallel as usize,
        max_unreachable: app.max_unreachable as usize,
        verdict: app.verdict.clone(),
        baseline,
        slow: None,
        tick: millis(app.prometheus.as_ref().map_or(TICK, |from| from.every)),
    }
}

/// That any host has granted a lock with.
fn highest(answers: &BTreeMap<Box<str>, Answer>) -> u64 {
    answers.values().flatten().map(|status| status.fence.number).max().unwrap_or(0)
}

/// The journal that goes furthest.
async fn furthest(target: &Target, answers: &BTreeMap<Box<str>, Answer>) -> Result<Vec<Entry>, CliError> {
    let marks = answers.iter().filter_map(|(name, answer)| Some((name, &answer.as_ref().ok()?.journal)));
    let best = marks.max_by_key(|(_, mark)| (mark.number, mark.entries));
    let Some(link) = best.and_then(|(name, _)| target.links.get(name)) else { return Ok(Vec::new()) };
    let journal = link.journal(&target.app.name, None).await;
    let journal = journal.map_err(|e| failed(format!("{}: {}.", link.host.name, facts::text(e))))?;
    let entries: Result<Vec<Entry>, _> = journal.entries.into_iter().map(kept::read).collect();
    entries.map_err(|e| failed(format!("The journal of the rollout is not understood: {e}.")))
}

/// Until its end, or until somebody interrupts it: then the hosts hold what they have for their lease.
fn run(
    runtime: &tokio::runtime::Runtime,
    local: &LocalSet,
    target: &Target,
    machine: Machine,
    cargo: Cargo,
    show: &mut Show<'_>,
    news: &News,
) -> Option<End> {
    let cargo = Rc::new(cargo);
    let show = RefCell::new(show);
    let (_wishes, mut wished) = mpsc::channel::<Wish>(1);
    runtime.block_on(local.run_until(async {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let stopped = async {
            match kinds.map(signal) {
                [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] => tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                },
                // Then the signals end svctl as any program, which comes to the same.
                _ => std::future::pending().await,
            }
        };
        let beats = async {
            loop {
                tokio::time::sleep(BEAT).await;
                show.borrow_mut().beat();
            }
        };
        tokio::select! {
            end = drive(machine, &target.links, &cargo, &mut wished, |said| {
                news.said(&said);
                show.borrow_mut().said(&said);
            }) => Some(end),
            () = stopped => None,
            () = beats => None,
        }
    }))
}

fn finish(show: &mut Show<'_>, news: News, app: &str, end: Option<End>) -> Result<Exit, CliError> {
    show.end(app, end.as_ref());
    news.end(end.as_ref());
    Ok(match end {
        Some(End::Over { outcome: Outcome::Done { .. }, .. }) => Exit::Ok,
        Some(End::Over { outcome: Outcome::TakenBack { .. }, .. }) => Exit::TakenBack,
        Some(End::Over { outcome: Outcome::Failed { .. }, .. } | End::Refused(_)) => Exit::Failed,
        Some(End::Paused { .. }) => Exit::Paused,
        Some(End::Locked(_)) => Exit::Locked,
        Some(End::Superseded | End::Lost(_)) | None => Exit::Lost,
    })
}
