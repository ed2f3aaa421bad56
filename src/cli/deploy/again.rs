//! Releases that hosts have had, or others have: `rollback` and `catch-up` over a fleet, and who is where.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio::task::LocalSet;

use super::super::args::{Cli, OfApp, RollbackArgs, ToRelease};
use super::super::context::Context;
use super::super::exit::{CliError, Exit};
use super::super::{hosts, render_releases};
use super::goods::{Files, Goods};
use super::news::News;
use super::show::Show;
use super::target::Target;
use super::{Cargo, Entry, Machine, Plan, Start, by, driver, finish, highest, limits, may_deploy, run};
use crate::api::apps::{Migrated, ReleaseStatus, next_number};
use crate::api::client::runtime;
use crate::api::types::{ApiError, ErrorCode, Progress};
use crate::fleet::drift::{self, Answers, Latest, Stands, Unclear};
use crate::fleet::drive::facts;
use crate::fleet::rollout::journal::What;
use crate::fleet::rollout::plan::{Change, Facts, Purpose, Step};
use crate::fleet::rollout::{End, Outcome, Place};
use crate::fleet::verdict::Baseline;

impl From<Unclear> for CliError {
    fn from(unclear: Unclear) -> CliError {
        let error = ApiError::new(ErrorCode::Conflict, unclear.message).details(unclear.details).hint(unclear.hint);
        CliError::Said { exit: Exit::Failed, error }
    }
}

/// An app's hosts, and what they have said.
struct Fleet {
    target: Target,
    runtime: tokio::runtime::Runtime,
    local: LocalSet,
    answers: Answers,
    /// What the latest rollout has confirmed, where its journal says so.
    latest: Option<Latest>,
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.target.ways.close();
    }
}

impl Fleet {
    /// `None`: there is no fleet file, and what is asked concerns one host.
    fn ask(context: &Context, cli: &Cli, app: &str) -> Result<Option<Fleet>, CliError> {
        let Some(fleet) = hosts::fleet(cli)? else { return Ok(None) };
        if !cli.hosts.is_empty() && hosts::app(&fleet, app).is_err() {
            // Of hosts that were chosen, each knows its own apps.
            return Ok(None);
        }
        let target = Target::find(cli, app, None)?;
        let (runtime, local) = (runtime()?, LocalSet::new());
        let answers = runtime.block_on(local.run_until(super::ask(context, &target)));
        // It settles nothing but what the hosts leave open.
        let entries = runtime.block_on(local.run_until(super::furthest(&target, &answers))).unwrap_or_default();
        let latest = latest(&entries);
        Ok(Some(Fleet { target, runtime, local, answers, latest }))
    }

    fn latest(&self) -> Option<&str> {
        self.latest.as_ref().map(|latest| &*latest.release)
    }

    fn app(&self) -> &str {
        &self.target.app.name
    }

    /// Of a release that any host knows; a good one, if there is one.
    fn known(&self, release: &str) -> Option<&ReleaseStatus> {
        let mut all = self.answers.values().flatten().flat_map(|s| &s.releases).filter(|r| *r.release == *release);
        let first = all.next()?;
        Some(if first.source.is_empty() { all.find(|r| !r.source.is_empty()).unwrap_or(first) } else { first })
    }

    fn plan(&self, purpose: Purpose, release: &str, changes: BTreeMap<Box<str>, Change>) -> Result<Plan, CliError> {
        let driver = driver();
        let rollout = format!("{release}-{:08x}", fastrand::u32(..));
        let mut limits = limits(&self.target, Baseline::Health);
        // Whoever is away is caught up later: that is no reason to keep the others from it.
        (limits.bake, limits.max_unreachable) = (0, self.answers.len());
        let facts = Facts {
            rollout: &rollout,
            purpose,
            app: self.app(),
            release,
            by: &driver.by,
            at: driver.unix,
            hosts: facts::facts(&self.target.app.hosts, &self.answers, release),
            changes,
            waves: &[],
            groups: &self.target.groups,
            limits,
        };
        Plan::new(facts).map_err(|why| {
            let message = format!("{}: nothing can be done.", self.app());
            let error = ApiError::new(ErrorCode::Failed, message);
            CliError::Said { exit: Exit::Failed, error: error.details(why.into_iter().map(Into::into).collect()) }
        })
    }

    fn cargo(&self, plan: &Plan, files: Option<PathBuf>) -> Cargo {
        let known = self.known(&plan.release);
        Cargo {
            app: self.app().into(),
            purpose: plan.purpose,
            rollout: plan.rollout.clone(),
            release: plan.release.clone(),
            source: known.map_or("".into(), |r| r.source.clone()),
            label: known.map_or("".into(), |r| r.label.clone()),
            by: by(),
            again: plan.again(),
            files,
        }
    }

    /// Shows the plan and carries it out.
    fn go(&self, context: &Context, plan: Plan, goods: Option<&Goods>, dry_run: bool) -> Result<Exit, CliError> {
        let mut show = Show::new(context);
        show.plan(&plan, &[]);
        if dry_run || plan.is_empty() {
            show.end_of_plan();
            let all =
                plan.is_empty() && plan.waves.down.is_empty() && plan.hosts.iter().all(|host| is_there(&plan, host));
            return Ok(if dry_run || all { Exit::Ok } else { Exit::Failed });
        }
        let news = News::begin(context, &self.target, &plan, highest(&self.answers))?;
        let files = goods.map(Goods::files).transpose().and_then(|files| {
            if let Some(dir) = &files {
                super::build_here(&self.target, &plan, &self.answers, dir.path())?;
            }
            Ok(files)
        });
        let (files, news) = news.unless_failed(files)?;
        let cargo = self.cargo(&plan, files.as_ref().map(|dir: &Files| dir.path().to_owned()));
        let machine = Machine::new(plan, Start::Deploy, &driver(), highest(&self.answers), std::time::Duration::ZERO);
        let end = run(&self.runtime, &self.local, &self.target, machine, cargo, &mut show, &news);
        let everywhere = match &end {
            Some(End::Over { places, .. }) => places.iter().all(|(_, place)| *place == Place::Confirmed),
            _ => false,
        };
        match finish(&mut show, news, self.app(), end)? {
            Exit::Ok if !everywhere => Ok(Exit::Failed),
            exit => Ok(exit),
        }
    }
}

/// By the journal of a rollout that was confirmed.
fn latest(entries: &[Entry]) -> Option<Latest> {
    let (first, last) = (entries.first()?, entries.last()?);
    let (What::Planned(plan), What::Ended { outcome: Outcome::Done { .. }, .. }) = (&first.what, &last.what) else {
        return None;
    };
    let ran = entries.iter().any(|entry| matches!(entry.what, What::Migrated { ran: true }));
    let host = |entry: &Entry| match &entry.what {
        What::Migrating { host } => host.clone(),
        _ => None,
    };
    Some(Latest { release: plan.release.clone(), migrated_on: entries.iter().rev().find_map(host).filter(|_| ran) })
}

fn is_there(plan: &Plan, host: &crate::fleet::rollout::plan::PlannedHost) -> bool {
    host.serves.as_deref() == Some(&*plan.release)
}

/// `None`: it concerns one host alone.
pub fn rollback(context: &Context, cli: &Cli, args: &RollbackArgs) -> Option<Result<Exit, CliError>> {
    let fleet = match Fleet::ask(context, cli, &args.which.app) {
        Ok(fleet) => fleet?,
        Err(error) => return Some(Err(error)),
    };
    Some(roll_back(context, fleet, args))
}

fn roll_back(context: &Context, fleet: Fleet, args: &RollbackArgs) -> Result<Exit, CliError> {
    if !args.which.dry_run {
        may_deploy(&args.which.app, &fleet.answers)?;
    }
    drift::nothing_on_trial(&args.which.app, &fleet.answers)?;
    let to: Box<str> = match &args.which.to {
        Some(to) if fleet.known(to).is_some() => to.as_str().into(),
        Some(to) => {
            let error = ApiError::new(ErrorCode::UnknownRelease, format!("No host has a release {to}."))
                .hint(format!("`svctl -H all releases {}` shows what there is.", args.which.app));
            return Err(CliError::Said { exit: Exit::Failed, error });
        }
        None => drift::way_back(&args.which.app, &fleet.answers, fleet.latest())?,
    };
    let mut crossed = Vec::new();
    for (host, answer) in &fleet.answers {
        let Ok(status) = answer else { continue };
        let all = crate::cli::releases::crossed(status, &to, args)?;
        crossed.extend(all.into_iter().map(|(release, migrated)| Crossed { host: host.clone(), release, migrated }));
    }
    if !args.force {
        drift::nothing_unseen(fleet.app(), &fleet.answers, &to, fleet.latest.as_ref())?;
    }
    // What came last is undone first, whoever ran it: names of releases begin with when they were made.
    crossed.sort_by(|a, b| b.release.cmp(&a.release));
    let plan = fleet.plan(Purpose::Rollback, &to, BTreeMap::new())?;
    let down = args.down && !args.which.dry_run;
    if down {
        undo(context, &fleet, &plan, &crossed, Migrated::Incompatible)?;
    }
    let exit = fleet.go(context, plan.clone(), None, args.which.dry_run)?;
    for Crossed { host, release, .. } in crossed.iter().filter(|_| !down && !context.json) {
        context.print(format!("The migration that came with {release}, on {host}, stays.\n"))?;
    }
    if down && exit == Exit::Ok {
        undo(context, &fleet, &plan, &crossed, Migrated::Compatible)?;
    }
    Ok(exit)
}

/// A migration that was run on a host with a release that is left.
struct Crossed {
    host: Box<str>,
    release: Box<str>,
    migrated: Migrated,
}

/// # Errors
/// One of them stays.
fn undo(context: &Context, fleet: &Fleet, plan: &Plan, crossed: &[Crossed], which: Migrated) -> Result<(), CliError> {
    for Crossed { host, release, .. } in crossed.iter().filter(|c| c.migrated == which) {
        let Some(link) = fleet.target.links.get(host) else { continue };
        let cargo = Cargo { rollout: format!("down-{:08x}", fastrand::u32(..)).into(), ..fleet.cargo(plan, None) };
        let answers = fleet.runtime.block_on(fleet.local.run_until(super::ask(context, &fleet.target)));
        let tell = |line: &Progress| context.say(&super::super::render::progress(line));
        let done = link.migrate_down(&cargo, next_number(highest(&answers), driver().salt), release, tell);
        let why = match fleet.runtime.block_on(fleet.local.run_until(done)) {
            Ok(done) if done.ran => continue,
            Ok(done) => done.reason,
            Err(error) => facts::text(error),
        };
        let error = ApiError::new(ErrorCode::Failed, format!("{host}: the migration of {release} stays: {why}."));
        return Err(CliError::Said { exit: Exit::Failed, error });
    }
    Ok(())
}

/// Brings hosts that have missed the fleet's release to it.
pub fn catch_up(context: &Context, cli: &Cli, args: &ToRelease) -> Result<Exit, CliError> {
    let Some(fleet) = Fleet::ask(context, cli, &args.app)? else {
        return Err(CliError::usage(
            format!("No fleet.toml says which hosts have {}.", args.app),
            "Write one here, or name it: --fleet FILE.",
        ));
    };
    if !args.dry_run {
        may_deploy(&args.app, &fleet.answers)?;
    }
    drift::nothing_on_trial(&args.app, &fleet.answers)?;
    let release: Box<str> = match &args.to {
        Some(to) => to.as_str().into(),
        None => drift::release_of(&fleet.answers, fleet.latest()).ok_or_else(|| {
            let message = format!("{}: no release was confirmed by most of the hosts; nothing was done.", args.app);
            let hint = format!("`svctl -H all releases {}` shows them; --to RELEASE says which one.", args.app);
            let error = ApiError::new(ErrorCode::Conflict, message).hint(hint);
            CliError::Said { exit: Exit::Failed, error }
        })?,
    };
    let Some(known) = fleet.known(&release) else {
        let error = ApiError::new(ErrorCode::UnknownRelease, format!("No host that answers has a release {release}."));
        return Err(CliError::Said { exit: Exit::Failed, error });
    };
    let plan = fleet.plan(Purpose::CatchUp, &release, BTreeMap::new())?;
    if !plan.hosts.iter().any(|host| host.runs(Step::Stage)) {
        return fleet.go(context, plan, None, args.dry_run);
    }
    let goods = Goods::again(&fleet.target, known)?;
    // Whoever is off is brought there, also where nothing of the app differs.
    let changes =
        goods.changes(&fleet.answers)?.into_iter().map(|(from, change)| (from, Change { any: true, ..change }));
    let plan = fleet.plan(Purpose::CatchUp, &release, changes.collect())?;
    fleet.go(context, plan, Some(&goods), args.dry_run)
}

/// `svctl releases` of several hosts: who is where. `None`: it concerns one host alone.
pub fn releases(context: &Context, cli: &Cli, args: &OfApp) -> Option<Result<Exit, CliError>> {
    // Here, it is about this host, whatever a fleet file says.
    if !hosts::are_meant(cli) {
        return None;
    }
    let fleet = match Fleet::ask(context, cli, &args.app) {
        Ok(fleet) => fleet?,
        Err(error) => return Some(Err(error)),
    };
    if fleet.answers.len() < 2 {
        return None;
    }
    Some(where_all_are(context, &fleet))
}

fn where_all_are(context: &Context, fleet: &Fleet) -> Result<Exit, CliError> {
    let release = drift::release_of(&fleet.answers, fleet.latest());
    let hosts: Vec<(&str, &facts::Answer, Stands)> = fleet
        .answers
        .iter()
        .map(|(name, answer)| (&**name, answer, drift::stands(answer, release.as_deref())))
        .collect();
    let away = hosts.iter().any(|(_, _, stands)| matches!(stands, Stands::Away { .. }));
    let exit = if away { Exit::Unknown } else { Exit::Ok };
    if !context.json {
        context.print(render_releases::drift(fleet.app(), release.as_deref(), &hosts))?;
        return Ok(exit);
    }
    let row = |(name, answer, stands): &(&str, &facts::Answer, Stands)| match answer {
        Ok(status) => serde_json::json!({ "host": name, "exit_code": 0, "drift": stands, "result": status }),
        Err(why) => {
            let error = ApiError::new(ErrorCode::Unavailable, &**why);
            serde_json::json!({ "host": name, "exit_code": Exit::Unknown.code(), "drift": stands, "error": error })
        }
    };
    let rows: Vec<_> = hosts.iter().map(row).collect();
    context.print_value(&serde_json::json!({ "release": release, "hosts": rows }))?;
    Ok(exit)
}
