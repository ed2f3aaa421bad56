//! `svctl judge`: what the verdicts of a rollout rested on, tick by tick, and what other settings would have made of it.

use std::fmt::Write;

use serde_json::{Value, json};
use tokio::task::LocalSet;

use super::super::args::{Cli, JudgeArgs};
use super::super::context::Context;
use super::super::exit::{CliError, Exit};
use super::super::hosts;
use super::super::render::age;
use super::super::text::line;
use super::failed;
use super::show::verdict_text;
use super::target::Target;
use crate::api::apps::Journal;
use crate::api::client::runtime;
use crate::api::types::{ApiError, ErrorCode, StatusList};
use crate::config::suggest;
use crate::fleet::rollout::journal::What;
use crate::fleet::rollout::{Entry, Plan, kept};
use crate::fleet::verdict::{Baseline, Counts, Input, Record, Said, Settings, Verdict};

/// # Errors
/// No host has the rollout's journal; the settings are out of their range.
pub fn judge(context: &Context, cli: &Cli, args: &JudgeArgs) -> Result<Exit, CliError> {
    let journal = match alone(context, cli, args)? {
        Some(apps) => of_any(cli, &apps, &args.app)?,
        None => of_app(cli, &args.app, args.id.as_deref())?,
    };
    let entries: Result<Vec<Entry>, _> = journal.entries.into_iter().map(kept::read).collect();
    let entries = entries.map_err(|e| failed(format!("The journal of the rollout is not understood: {e}.")))?;
    let Some(What::Planned(plan)) = entries.first().map(|entry| &entry.what) else {
        return Err(failed(format!("{}: no host knows of a rollout.", args.app)));
    };
    let judged = entries.iter().filter_map(|entry| match &entry.what {
        What::Judged { wave, record } => Some((*wave, &**record)),
        _ => None,
    });
    let judged: Vec<Judged<'_>> =
        judged.map(|(wave, record)| Judged::new(wave, record, args)).collect::<Result<_, _>>()?;
    match context.json {
        true => context.print_value(&document(plan, &judged))?,
        false => context.print(text(plan, &judged))?,
    }
    Ok(Exit::Ok)
}

/// The one name that was given is no app's, so that it may be an ID: the apps that are known.
fn alone(context: &Context, cli: &Cli, args: &JudgeArgs) -> Result<Option<Vec<Box<str>>>, CliError> {
    let apps: Vec<Box<str>> = match hosts::fleet(cli)? {
        _ if args.id.is_some() => return Ok(None),
        Some(fleet) => fleet.apps.keys().cloned().collect(),
        None if !cli.hosts.is_empty() => return Ok(None),
        None => {
            let list: StatusList = context.client()?.fetch("/v1/status")?;
            list.services.into_iter().map(|service| service.name).collect()
        }
    };
    Ok((!apps.iter().any(|app| **app == *args.app)).then_some(apps))
}

/// # Errors
/// No app has it, or several have.
fn of_any(cli: &Cli, apps: &[Box<str>], id: &str) -> Result<Journal, CliError> {
    let (mut found, mut why) = (Vec::new(), Vec::new());
    for app in apps {
        match of_app(cli, app, Some(id)) {
            Ok(journal) => found.push((&**app, journal)),
            Err(CliError::Said { error, .. }) => why.push(error.message),
            // Of a reader that has left nobody is told.
            Err(error) => return Err(error),
        }
    }
    let several: Vec<&str> = found.iter().map(|(app, _)| *app).collect();
    let error = match (found.pop(), &*several) {
        (Some((_, journal)), [_]) => return Ok(journal),
        (None, _) => {
            let text = format!("{id} is no app, and no rollout or release of one that a journal is kept of.");
            ApiError::new(ErrorCode::UnknownRelease, text)
                .details(why)
                .hint("`svctl judge APP` is about its latest rollout.")
        }
        (Some((app, _)), several) => {
            let text = format!("{} have a rollout {id}; say whose is meant.", suggest::listed(several, "and"));
            ApiError::new(ErrorCode::BadRequest, text).hint(format!("For example: svctl judge {app} {id}"))
        }
    };
    Err(CliError::Said { exit: Exit::Failed, error })
}

fn of_app(cli: &Cli, app: &str, id: Option<&str>) -> Result<Journal, CliError> {
    let target = Target::find(cli, app, None)?;
    let (runtime, local) = (runtime()?, LocalSet::new());
    let journal = runtime.block_on(local.run_until(furthest(&target, id)));
    target.ways.close();
    journal
}

/// The journal that goes furthest among those that are meant; each host is asked, for some may have been left out of it.
async fn furthest(target: &Target, id: Option<&str>) -> Result<Journal, CliError> {
    let (mut best, mut why) = (Journal::default(), None);
    for link in target.links.values() {
        match link.journal(&target.app.name, id).await {
            Ok(journal) if (journal.number, journal.entries.len()) > (best.number, best.entries.len()) => {
                best = journal
            }
            Ok(_) => {}
            Err(error) => why = why.or(Some(format!("{}: {}", link.host.name, super::facts::text(error)))),
        }
    }
    match why {
        Some(why) if best.entries.is_empty() => Err(failed(why)),
        _ => Ok(best),
    }
}

/// One verdict, and the same counts judged again.
struct Judged<'a> {
    wave: usize,
    record: &'a Record,
    settings: Settings,
    steps: Vec<(&'a Input, Verdict)>,
    again: Verdict,
}

impl<'a> Judged<'a> {
    fn new(wave: usize, record: &'a Record, args: &JudgeArgs) -> Result<Judged<'a>, CliError> {
        let mut settings = record.settings.clone();
        settings.false_alarm = args.false_alarm.unwrap_or(settings.false_alarm);
        settings.tolerate = args.tolerate.unwrap_or(settings.tolerate);
        settings.min_requests = args.min_requests.unwrap_or(settings.min_requests);
        settings.check().map_err(|why| CliError::usage(format!("{why}."), "svctl judge --help"))?;
        let mut verdicts = Vec::with_capacity(record.inputs.len());
        let again = record.replay_with(&settings, |_, verdict| verdicts.push(verdict.clone()));
        let steps = record.inputs.iter().zip(verdicts).collect();
        Ok(Judged { wave, record, settings, steps, again })
    }

    fn other_settings(&self) -> bool {
        self.settings != self.record.settings
    }
}

fn document(plan: &Plan, judged: &[Judged<'_>]) -> Value {
    let verdicts = judged.iter().map(|judged| {
        let ticks = judged.steps.iter().map(|(input, verdict)| {
            json!({
                "at_ms": input.at_ms, "said": input.said, "outcome": verdict.outcome,
                "evidence": verdict.evidence, "slow_evidence": verdict.slow_evidence,
            })
        });
        json!({
            "wave": judged.wave + 1,
            "hosts": plan.waves.waves.get(judged.wave),
            "baseline": judged.record.baseline,
            "bake_ms": judged.record.bake_ms,
            "settings": judged.settings,
            "verdict": judged.record.verdict,
            "again": judged.again,
            "agrees": judged.other_settings().then_some(()).map_or(Value::Bool(judged.record.agrees()), |()| Value::Null),
            "ticks": ticks.collect::<Vec<_>>(),
        })
    });
    json!({ "app": plan.app, "rollout": plan.rollout, "release": plan.release, "verdicts": verdicts.collect::<Vec<_>>() })
}

fn text(plan: &Plan, judged: &[Judged<'_>]) -> String {
    let mut out = format!("{} → {} (rollout {})\n", line(&plan.app), line(&plan.release), line(&plan.rollout));
    if judged.is_empty() {
        out.push_str("No wave of it has come to a verdict.\n");
    }
    for judged in judged {
        one(&mut out, plan, judged);
    }
    out
}

fn one(out: &mut String, plan: &Plan, judged: &Judged<'_>) {
    let (record, settings) = (judged.record, &judged.settings);
    let hosts = plan.waves.waves.get(judged.wave).map(|hosts| line(&hosts.join(", "))).unwrap_or_default();
    let against = match record.baseline {
        Baseline::Control => "the hosts with the release before".to_owned(),
        Baseline::Alone { yesterday } => format!("the release before: failed {}", share(yesterday)),
        Baseline::Health => "nothing: by its health alone".to_owned(),
    };
    let bake = age(record.bake_ms / 1000);
    let _ = writeln!(out, "\nwave {}: {hosts}; watched for {bake}; compared with {against}", judged.wave + 1);
    let _ = writeln!(
        out,
        "  false_alarm {}, tolerate {}, min_difference {}, min_requests {}: taken back at an evidence of {:.0}",
        settings.false_alarm,
        settings.tolerate,
        settings.min_difference,
        settings.min_requests,
        1.0 / settings.false_alarm
    );
    let _ = writeln!(
        out,
        "  {:>6}  {:>22}  {:>22}  {:>13}  {:>8}  {:>8}",
        "AT", "NEW", "OLD", "SLOW NEW/OLD", "EVIDENCE", "OF SLOW"
    );
    for (input, verdict) in &judged.steps {
        let at = age(input.at_ms / 1000);
        match &input.said {
            Said::Tick(tick) => {
                let slow = tick.slow.map_or_else(|| "-".to_owned(), |[new, old]| format!("{new}/{old}"));
                let note = match (tick.unreliable, tick.unknown) {
                    (true, _) => "  unreliable: not counted",
                    (false, true) => "  nothing is known",
                    (false, false) => "",
                };
                let (new, old) = (share(tick.canary), share(tick.control));
                let (errors, of_slow) = (number(verdict.evidence), number(verdict.slow_evidence));
                let _ = writeln!(out, "  {at:>6}  {new:>22}  {old:>22}  {slow:>13}  {errors:>8}  {of_slow:>8}{note}");
            }
            Said::Incident(incident) => {
                let _ = writeln!(out, "  {at:>6}  {}: {}", line(&incident.host), line(&incident.what));
            }
        }
    }
    let _ = writeln!(out, "  {}", line(&verdict_text(&record.verdict)));
    if judged.other_settings() {
        let _ = writeln!(out, "  by these settings: {}", line(&verdict_text(&judged.again)));
    } else if !record.agrees() {
        let _ = writeln!(out, "  judged again by this svctl: {}", line(&verdict_text(&judged.again)));
    }
}

/// `3 of 120 (2.50 %)`
fn share(counts: Counts) -> String {
    match counts.requests {
        0 => "-".to_owned(),
        n => format!("{} of {n} ({:.2} %)", counts.errors, 100.0 * counts.rate()),
    }
}

/// Evidence has no upper bound.
fn number(evidence: f64) -> String {
    if evidence < 10_000.0 { format!("{evidence:.2}") } else { format!("{evidence:.1e}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::verdict::{Incident, Judge, TICK, Tick};

    fn args() -> JudgeArgs {
        JudgeArgs { app: "web".into(), id: None, false_alarm: None, tolerate: None, min_requests: None }
    }

    #[test]
    fn each_tick_is_shown_and_other_settings_come_to_another_end() {
        let mut judge = Judge::new(Settings::default(), Baseline::Control, TICK * 20);
        let counts = |requests, errors| Counts { requests, errors };
        for n in 1..=6 {
            let tick = Tick { canary: counts(100, 20), control: counts(900, 1), slow: Some([4, 9]), ..Tick::default() };
            judge.handle_tick(TICK * n, tick);
        }
        let record = judge.record().clone();
        let mut out = String::new();
        let plan = crate::fleet::rollout::testing(2);
        one(&mut out, &plan, &Judged::new(0, &record, &args()).expect("in range"));
        assert!(out.contains("taken back at an evidence of 100") && out.contains("web-0"), "{out}");
        assert_eq!(out.lines().filter(|line| line.contains("20 of 100 (20.00 %)")).count(), 6, "{out}");
        assert!(out.contains("1 of 900 (0.11 %)") && out.contains("4/9"), "{out}");
        assert!(out.trim_end().ends_with("old: 6 of 5400 requests failed (0.11 %)"), "{out}");
        assert!(out.contains("no good: too many errors after 30s") && !out.contains("judged again"), "{out}");
        let mild = Judged::new(0, &record, &JudgeArgs { tolerate: Some(100.0), ..args() }).expect("in range");
        out.clear();
        one(&mut out, &plan, &mild);
        assert!(out.contains("by these settings: nothing to say yet"), "{out}");
        let document = document(&plan, &[mild]);
        assert_eq!(document["verdicts"][0]["ticks"].as_array().map(Vec::len), Some(6), "{document}");
        assert!(Judged::new(0, &record, &JudgeArgs { tolerate: Some(0.5), ..args() }).is_err());
    }

    #[test]
    fn what_others_wrote_does_not_steer_the_terminal() {
        let mut judge = Judge::new(Settings::default(), Baseline::Health, TICK);
        judge.handle_incident(TICK, Incident { host: "web-0".into(), what: "\x1b[2J".into() });
        let record = judge.record().clone();
        let mut out = String::new();
        one(&mut out, &crate::fleet::rollout::testing(1), &Judged::new(0, &record, &args()).expect("in range"));
        assert!(!out.contains('\x1b') && out.contains("\\x1b[2J"), "{out}");
    }
}
