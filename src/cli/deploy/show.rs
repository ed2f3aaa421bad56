//! A rollout as it goes, on stderr for people and line by line as JSON on stdout; the plan and the end on stdout.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::context::Context;
use super::super::render::age;
use super::super::screen;
use super::super::text::line;
use super::live::Live;
use crate::fleet::drive::Said;
use crate::fleet::rollout::journal::What;
use crate::fleet::rollout::plan::{Purpose, Run};
use crate::fleet::rollout::{End, Entry, Outcome, Place, Plan, Report};
use crate::fleet::verdict::{self, Cause, Counts, Verdict};

/// Commits that are shown.
const COMMITS: usize = 20;

/// Without a line for so long, one is written that says how it stands.
const SILENCE: Duration = Duration::from_secs(8);
/// What goes on is not looked at more often than that: many hosts have many events, and many lines.
const GLANCE: Duration = Duration::from_millis(100);
/// Of fewer hosts, each step is a line where lines stay.
const FEW: usize = 20;

pub struct Show<'a> {
    context: &'a Context,
    purpose: Purpose,
    live: Live,
    began: Instant,
    /// stderr is a terminal: what goes on is seen in place, below what was said.
    in_place: bool,
    /// Lines that are drawn there now, how many of them, and since when.
    lines: Vec<String>,
    drawn: usize,
    drawn_at: Option<Instant>,
    last_line: Instant,
}

impl<'a> Show<'a> {
    pub fn new(context: &'a Context) -> Show<'a> {
        let in_place =
            !context.json && io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|t| t != "dumb");
        let began = Instant::now();
        Show {
            context,
            purpose: Purpose::Deploy,
            live: Live::default(),
            began,
            in_place,
            lines: Vec::new(),
            drawn: 0,
            drawn_at: None,
            last_line: began,
        }
    }

    /// A line that stays.
    fn say(&mut self, text: &str) {
        self.last_line = Instant::now();
        if !self.in_place {
            return self.context.say(text);
        }
        self.draw(Some(text));
    }

    /// What goes on, anew, below a line that stays. The next beat has what comes too soon.
    fn draw(&mut self, above: Option<&str>) {
        let soon = self.drawn_at.is_some_and(|at| at.elapsed() < GLANCE);
        if soon && above.is_none() {
            return;
        }
        if !soon {
            self.look();
        }
        let mut text = self.erased();
        above.iter().for_each(|line| _ = writeln!(text, "{line}"));
        self.lines.iter().for_each(|line| _ = writeln!(text, "{line}"));
        self.drawn = self.lines.len();
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    fn look(&mut self) {
        let (width, height) = screen::size();
        self.lines = self.live.lines(self.began.elapsed(), width.saturating_sub(1));
        // What has left the screen cannot be taken back.
        self.lines.truncate(height.saturating_sub(2));
        self.drawn_at = Some(Instant::now());
    }

    /// What takes away what is drawn.
    fn erased(&self) -> String {
        if self.drawn == 0 { String::new() } else { format!("\x1b[{}A\r\x1b[J", self.drawn) }
    }

    /// Nothing is drawn any more.
    fn clear(&mut self) {
        let text = self.erased();
        self.drawn = 0;
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    /// Now and then.
    pub fn beat(&mut self) {
        if self.in_place {
            self.draw(None);
        } else if !self.context.json && self.last_line.elapsed() >= SILENCE {
            let text = self.live.summary(self.began.elapsed());
            self.say(&format!("… {text}"));
        }
    }

    fn tell(&self, key: &str, value: &Value) {
        // Nobody reads any more: the rollout goes on all the same.
        let _ = self.context.print_value(&json!({ key: value }));
    }

    /// What is to be carried out.
    pub fn begin(&mut self, plan: &Plan) {
        self.purpose = plan.purpose;
        self.live.begin(plan);
    }

    pub fn plan(&mut self, plan: &Plan, news: &[String]) {
        self.begin(plan);
        if self.context.json {
            let value = json!({ "plan": plan, "digest": plan.digest(), "commits": news });
            let _ = self.context.print_value(&value);
            return;
        }
        let _ = self.context.print(plan_text(plan, news));
    }

    pub fn end_of_plan(&self) {
        if !self.context.json {
            let _ = self.context.print("Nothing was done.\n");
        }
    }

    pub fn said(&mut self, said: &Said) {
        self.live.said(self.began.elapsed(), said);
        match said {
            Said::Report(Report::Recorded(entry)) => {
                if self.context.json {
                    return self.tell("journal", &serde_json::to_value(&***entry).unwrap_or_default());
                }
                if let Some(text) = entry_text(entry) {
                    self.say(&first(&text));
                }
            }
            Said::Report(Report::Host { host, what }) => match self.context.json {
                true => self.tell("host", &json!({ "host": host, "what": what })),
                false => self.say(&format!("{host}: {}", first(what))),
            },
            Said::Report(Report::Alert(text)) => match self.context.json {
                true => self.tell("alert", &json!(text)),
                false => self.say(&format!("ALERT: {}", lines(text))),
            },
            Said::Progress { host, line: progress } => match self.context.json {
                true => self.tell("progress", &json!({ "host": host, "progress": progress })),
                false => {
                    let service = progress.service.as_deref().unwrap_or("svd");
                    self.say(&format!("{host}: {service}: {}: {}", progress.step, line(&progress.message)));
                }
            },
            Said::Begun { host, doing } => match self.context.json {
                true => self.tell("doing", &json!({ "host": host, "step": doing, "state": "begun" })),
                false if self.in_place => self.draw(None),
                false if self.live.hosts() < FEW => self.say(&format!("{host}: {doing}")),
                false => {}
            },
            Said::Ended { host, doing, done } if self.context.json => {
                let state = if *done { "done" } else { "failed" };
                self.tell("doing", &json!({ "host": host, "step": doing, "state": state }));
            }
            Said::Watched(watched) if self.context.json => {
                let (at, ends) = (watched.at.as_millis(), watched.ends.as_millis());
                let value = json!({
                    "wave": watched.wave + 1, "at_ms": at as u64, "until_ms": ends as u64, "verdict": watched.verdict,
                });
                self.tell("watched", &value);
            }
            Said::Ended { .. } | Said::Watched(_) if self.in_place => self.draw(None),
            Said::Ended { .. } | Said::Watched(_) => {}
        }
    }

    /// Of a rollout that somebody else drives, or has driven.
    pub fn journal(&self, plan: &Plan, entries: &[Entry]) {
        if self.context.json {
            return self.tell("rollout", &json!({ "plan": plan, "entries": entries }));
        }
        let mut text = format!("{} of {}, by {}\n", line(&plan.release), line(&plan.app), line(&plan.by));
        for entry in entries {
            if let Some(said) = entry_text(entry) {
                let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(entry.at);
                let _ = writeln!(text, "{}  {}", humantime::format_rfc3339_seconds(time), first(&said));
            }
        }
        let _ = self.context.print(text);
    }

    /// `None`: svctl was interrupted.
    pub fn end(&mut self, app: &str, end: Option<&End>) {
        self.clear();
        if self.context.json {
            return self.tell("end", &end_value(end));
        }
        let _ = self.context.print(end_text(app, self.purpose, end));
    }
}

/// The first line; the rest was told by the host itself, and is told at the end.
fn first(text: &str) -> String {
    line(text.lines().next().unwrap_or_default())
}

/// Each line without what steers a terminal.
fn lines(text: &str) -> String {
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

fn plan_text(plan: &Plan, news: &[String]) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{} → {}", line(&plan.app), line(&plan.release));
    for commit in news.iter().take(COMMITS) {
        let _ = writeln!(out, "  {}", line(commit));
    }
    if news.len() > COMMITS {
        let _ = writeln!(out, "  … and {} more", news.len() - COMMITS);
    }
    // Hosts with the same steps for the same reasons are one line.
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for host in &plan.hosts {
        let mut steps = String::new();
        for step in &host.steps {
            let run = match step.run {
                Run::Yes => "yes",
                Run::No => "no",
                Run::Asks => "if need be",
            };
            let _ = writeln!(steps, "  {:<14} {run:<11} {}", step.step.to_string(), line(&step.why));
        }
        groups.entry(steps).or_default().push(&host.name);
    }
    for (steps, hosts) in &groups {
        let _ = write!(out, "{}:\n{steps}", hosts.join(", "));
    }
    for (n, wave) in plan.waves.waves.iter().enumerate() {
        let _ = match plan.is_unwatched(n) {
            true => writeln!(out, "at once: {}", wave.join(", ")),
            false if plan.limits.bake == 0 => writeln!(out, "wave {}: {} (not watched)", n + 1, wave.join(", ")),
            false => {
                let bake = age(plan.limits.bake / 1000);
                writeln!(out, "wave {}: {} (watched for {bake})", n + 1, wave.join(", "))
            }
        };
    }
    if let Some(control) = &plan.waves.control {
        let compared = if plan.limits.bake == 0 { "" } else { ", which the others are compared with until then" };
        let _ = writeln!(out, "last: {control}{compared}");
    }
    for host in &plan.waves.down {
        let _ = writeln!(out, "left out: {host}, which cannot be reached; it is caught up by a later deploy");
    }
    for warning in &plan.warnings {
        let _ = writeln!(out, "warning: {}", line(warning));
    }
    if plan.is_empty() {
        out.push_str("There is nothing to do.\n");
    }
    out
}

fn entry_text(entry: &Entry) -> Option<String> {
    let text = match &entry.what {
        What::Planned(plan) => format!("the rollout {} begins", plan.rollout),
        What::Taken { by } => format!("driven by {by}"),
        What::Skipped { host, why } => format!("{host} is left out: {why}"),
        What::Prepared => "the release is on all hosts".to_owned(),
        What::Migrating { host: Some(host) } => format!("{host} migrates"),
        What::Migrating { host: None } => "all hosts migrate".to_owned(),
        What::Migrated { ran: true } => "migrated".to_owned(),
        What::Migrated { ran: false } => "no migration is pending".to_owned(),
        What::Begun { wave } => format!("wave {} begins", wave + 1),
        What::Judged { wave, record } => format!("wave {}: {}", wave + 1, verdict_text(&record.verdict)),
        What::Paused { why } => format!("paused: {why}"),
        What::Resumed => "resumed".to_owned(),
        What::Promoted { wave } => format!("wave {} is promoted by hand", wave + 1),
        What::Restarted { why } => format!("begins again with the first wave: {why}"),
        What::Failing { cause, .. } => format!("everything goes back: {cause}"),
        What::Confirming => "the release is good and stays".to_owned(),
        What::Completing { host } => format!("{host} completes the migration"),
        What::Completed { error: None } => "the migration is complete".to_owned(),
        What::Completed { error: Some(why) } => format!("the second half of the migration failed: {why}"),
        What::Ended { .. } => return None,
    };
    Some(lines(&text))
}

/// Both sides'.
pub fn rates(verdict: &Verdict) -> String {
    let rate = |counts: &Counts| match counts.requests {
        0 => "no requests".to_owned(),
        n => format!("{} of {n} requests failed ({:.2} %)", counts.errors, 100.0 * counts.errors as f64 / n as f64),
    };
    format!("new: {}; old: {}", rate(&verdict.canary), rate(&verdict.control))
}

pub fn verdict_text(verdict: &Verdict) -> String {
    let said = match &verdict.outcome {
        verdict::Outcome::GoOn => "nothing to say yet".to_owned(),
        verdict::Outcome::Extend(n) => format!("too little is known of its requests; watched longer ({n})"),
        verdict::Outcome::Pass => "passed".to_owned(),
        verdict::Outcome::Pause => "too little is known of its requests to judge it".to_owned(),
        verdict::Outcome::TakeBack(Cause::Errors) => "no good: too many errors".to_owned(),
        verdict::Outcome::TakeBack(Cause::Slow) => "no good: too slow".to_owned(),
        verdict::Outcome::TakeBack(Cause::TooFew) => "too little is known of its requests to call it good".to_owned(),
        verdict::Outcome::TakeBack(Cause::Incident(incident)) => {
            format!("no good: {}: {}", incident.host, incident.what)
        }
    };
    let after = age(verdict.at_ms / 1000);
    format!("{said} after {after}; {}", rates(verdict))
}

fn end_text(app: &str, purpose: Purpose, end: Option<&End>) -> String {
    let hint = |verb: &str| format!("`svctl {verb} {app}`");
    let text = match end {
        None => format!(
            "Interrupted: the hosts hold what they have for their lease, and go back then. {} goes on, {} takes it back now.",
            hint("resume"),
            hint("abort")
        ),
        Some(End::Over { outcome, places }) => return over_text(app, purpose, outcome, places),
        Some(End::Paused { why }) => {
            format!("{app} is paused: {why}. {}, {} or {}.", hint("promote"), hint("resume"), hint("abort"))
        }
        Some(End::Locked(who)) => {
            let (attach, resume, abort) = (hint("attach"), hint("resume"), hint("abort"));
            format!(
                "Nothing was done: {who} Wait; or, where nobody drives it any more, {attach} shows it, and {resume} or {abort} \
                 ends it; `svctl unlock {app} --force` only breaks the lock there."
            )
        }
        Some(End::Superseded) => format!("Somebody else goes on with this rollout; {} shows it.", hint("attach")),
        Some(End::Lost(why)) => format!("{app}: {why}. {} when they answer again.", hint("resume")),
        Some(End::Refused(why)) => format!("{app}: {why}."),
    };
    format!("{}\n", lines(&text))
}

fn over_text(app: &str, purpose: Purpose, outcome: &Outcome, places: &[(Box<str>, Place)]) -> String {
    let mut out = match outcome {
        Outcome::Done { remarks } => {
            let mut text = match purpose {
                Purpose::Deploy => format!("{app} is deployed.\n"),
                Purpose::Rollback => format!("{app} is rolled back.\n"),
                Purpose::CatchUp => format!("{app} has caught up.\n"),
            };
            remarks.iter().for_each(|remark| _ = writeln!(text, "  {}", lines(remark)));
            text
        }
        Outcome::TakenBack { cause } if !purpose.is_judged() => {
            format!("{app} is as it was: {}\n", lines(cause))
        }
        Outcome::TakenBack { cause } => format!("{app} was taken back: {}\n", lines(cause)),
        Outcome::Failed { cause } => format!("{app} was not deployed; no host was switched: {}\n", lines(cause)),
    };
    let of = |place: fn(&Place) -> bool| {
        let names: Vec<&str> = places.iter().filter(|(_, at)| place(at)).map(|(name, _)| &**name).collect();
        names.join(", ")
    };
    let (new, old) = (of(|at| *at == Place::Confirmed), of(|at| *at == Place::Before));
    if !new.is_empty() {
        let what = if purpose.is_judged() { "the new release" } else { "there" };
        let _ = writeln!(out, "  {what}: {new}");
    }
    if !old.is_empty() {
        let _ = writeln!(out, "  as before: {old}");
    }
    for (name, at) in places {
        if let Place::Unknown(why) = at {
            let _ = writeln!(out, "  {name}: not known: {}", line(why));
        }
    }
    out
}

fn end_value(end: Option<&End>) -> Value {
    match end {
        None => json!({ "state": "interrupted" }),
        Some(End::Over { outcome, places }) => json!({ "state": "over", "outcome": outcome, "places": places }),
        Some(End::Paused { why }) => json!({ "state": "paused", "why": why }),
        Some(End::Locked(why)) => json!({ "state": "locked", "why": why }),
        Some(End::Superseded) => json!({ "state": "superseded" }),
        Some(End::Lost(why)) => json!({ "state": "lost", "why": why }),
        Some(End::Refused(why)) => json!({ "state": "refused", "why": why }),
    }
}
