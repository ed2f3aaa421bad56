//! `svctl reload --canary`: a few workers of the new release beside the old generation, judged by svd's own counts of both in the
//! same seconds, then all of it or none.
//!
//! Who judges may die: svd takes the canary away after a time that was agreed with it ([`stay`]).

use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use super::args::ReloadArgs;
use super::context::{Context, joined};
use super::exit::{CliError, Exit};
use super::{act, host};
use crate::api::types::{ActionResult, ApiError, ErrorCode, GenerationRole, GenerationStatus, ServiceStatus, Traffic};
use crate::fleet::drive::facts;
use crate::fleet::verdict::{
    Baseline, Cause, Counts, EXTENSIONS, Incident, Judge, Outcome, Settings, TICK, Tick, TooFew, Verdict,
};

/// What one look at the service may take beyond the bake time, and the reload after it.
const MARGIN: Duration = Duration::from_secs(30);

/// Where nothing else is said.
const BAKE: Duration = Duration::from_secs(60);

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Between two lines of progress.
const TELL: Duration = Duration::from_secs(5);

/// With `--json`: what is written at the end.
#[derive(Serialize)]
struct Told<'a> {
    service: &'a str,
    release: Option<&'a str>,
    taken_back: bool,
    why: Option<&'a str>,
    verdict: &'a Verdict,
}

/// As long as the canary may be judged, and a little more.
fn stay(bake: Duration) -> Duration {
    bake.saturating_mul(EXTENSIONS + 1) + MARGIN
}

pub fn reload(context: &Context, args: &ReloadArgs, workers: u32) -> Result<Exit, CliError> {
    let [name] = &*args.names else {
        return Err(CliError::usage("--canary takes one service.", "For example: svctl reload airship --canary 1"));
    };
    let bake = args.bake.unwrap_or(BAKE);
    let trial = Trial { context, name, path: format!("/v1/services/{}", joined(&args.names)) };
    let before = trial.status()?;
    let serving = before.generations.iter().filter(|g| g.role == GenerationRole::Committed);
    let slow = facts::slow_of(serving.filter_map(|g| g.traffic.as_ref())).map(facts::place);
    let mut body = json!({ "canary": { "workers": workers, "stay_seconds": stay(bake).as_secs() } });
    if let Some(release) = &args.release {
        body["release"] = release.as_str().into();
    }
    if let Some(failed) = trial.act(&body)? {
        return Ok(failed);
    }
    let (verdict, release) = trial.judge(bake, slow, if args.too_few_pass { TooFew::Pass } else { TooFew::Fail })?;
    let why = reason(&verdict);
    if let Some(why) = &why {
        trial.say(&format!("{name}: the canary is taken back: {why}"));
        trial.act(&json!({ "canary": { "workers": 0 } }))?;
    } else {
        trial.say(&format!("{name}: the canary is no worse ({}); all of it follows", shown(&verdict)));
        let mut body = json!({ "force": args.force });
        // What was judged, whatever `current` names by now.
        if let Some(release) = &release {
            body["release"] = release.as_ref().into();
        }
        if let Some(failed) = trial.act(&body)? {
            return Ok(failed);
        }
    }
    let taken_back = why.is_some();
    if context.json {
        let (release, why) = (release.as_deref(), why.as_deref());
        context.print_value(&Told { service: name, release, taken_back, why, verdict: &verdict })?;
    } else if !taken_back {
        context.print(format!("{name} reloaded\n"))?;
    }
    Ok(if taken_back { Exit::TakenBack } else { Exit::Ok })
}

/// What has come since.
fn since(now: Counts, before: Counts) -> Counts {
    Counts { requests: now.requests.saturating_sub(before.requests), errors: now.errors.saturating_sub(before.errors) }
}

/// Why it is taken back, if it is.
fn reason(verdict: &Verdict) -> Option<String> {
    let rates = || shown(verdict);
    match &verdict.outcome {
        Outcome::TakeBack(Cause::Errors) => {
            Some(format!("it answers more errors than the old generation: {}", rates()))
        }
        Outcome::TakeBack(Cause::Slow) => Some(format!("more of its requests are slow: {}", rates())),
        Outcome::TakeBack(Cause::Incident(incident)) => Some(incident.what.clone()),
        Outcome::TakeBack(Cause::TooFew) | Outcome::Pause => Some(format!("there were too few requests: {}", rates())),
        Outcome::GoOn | Outcome::Extend(_) | Outcome::Pass => None,
    }
}

fn shown(verdict: &Verdict) -> String {
    let part = |c: Counts| format!("{} of {} failed", c.errors, c.requests);
    format!("canary {}, others {}", part(verdict.canary), part(verdict.control))
}

struct Trial<'a> {
    context: &'a Context,
    name: &'a str,
    path: String,
}

impl Trial<'_> {
    fn status(&self) -> Result<ServiceStatus, CliError> {
        Ok(self.context.client()?.fetch(&self.path)?)
    }

    fn say(&self, text: &str) {
        self.context.say(text);
    }

    /// `Some`: it failed, which was said.
    fn act(&self, body: &serde_json::Value) -> Result<Option<Exit>, CliError> {
        let result = self.context.act(&format!("{}/reload", self.path), Some(body))?;
        let done: ActionResult = host::understand(&result)?;
        if done.services.iter().all(|service| service.ok) {
            return Ok(None);
        }
        if self.context.json {
            self.context.print_json(result.get().as_bytes())?;
        } else {
            act::show(self.context, &done.services)?;
        }
        Ok(Some(act::exit_of(&done.services)))
    }

    /// Until there is a verdict. With the release of the canary.
    fn judge(
        &self,
        bake: Duration,
        slow: Option<usize>,
        too_few: TooFew,
    ) -> Result<(Verdict, Option<Box<str>>), CliError> {
        let settings = Settings { too_few, ..Settings::default() };
        let mut judge = Judge::new(settings, Baseline::Control, bake);
        let first = self.look()?.ok_or_else(|| self.gone())?;
        let (begun, release) = (Instant::now(), first.release.clone());
        let (mut before, mut told) = (first, Instant::now());
        let mut ticked = Instant::now();
        loop {
            std::thread::sleep(LOOK);
            let Some(now) = self.look()? else {
                let what = "it ended by itself".to_owned();
                let incident = Incident { host: self.name.to_owned(), what };
                return Ok((judge.handle_incident(begun.elapsed(), incident).clone(), release));
            };
            if ticked.elapsed() < TICK && begun.elapsed() < judge.ends() {
                continue;
            }
            ticked = Instant::now();
            let verdict = judge.handle_tick(begun.elapsed(), now.since(&before, slow)).clone();
            before = now;
            match &verdict.outcome {
                Outcome::GoOn => {}
                Outcome::Extend(n) => self.say(&format!(
                    "{}: too few requests for a verdict; the canary is watched for another time ({n} of {EXTENSIONS})",
                    self.name
                )),
                _ => return Ok((verdict, release)),
            }
            if told.elapsed() >= TELL {
                told = Instant::now();
                let left = judge.ends().saturating_sub(begun.elapsed()).as_secs();
                self.say(&format!("{}: {}; {left} s to go", self.name, shown(&verdict)));
            }
        }
    }

    fn gone(&self) -> CliError {
        let error = ApiError::new(ErrorCode::Failed, format!("{}: the canary is not there any more.", self.name));
        CliError::Said { exit: Exit::Failed, error: error.hint("`svctl events` says why.") }
    }

    /// What both have counted; `None`: there is no canary.
    fn look(&self) -> Result<Option<Look>, CliError> {
        let status = self.status()?;
        let of = |role| status.generations.iter().find(|g| g.role == role);
        let Some(canary) = of(GenerationRole::Canary) else { return Ok(None) };
        let traffic = |g: Option<&GenerationStatus>| g.and_then(|g| g.traffic).unwrap_or_default();
        Ok(Some(Look {
            release: canary.release.clone(),
            canary: traffic(Some(canary)),
            control: traffic(of(GenerationRole::Committed)),
        }))
    }
}

struct Look {
    release: Option<Box<str>>,
    canary: Traffic,
    control: Traffic,
}

impl Look {
    fn since(&self, before: &Look, slow: Option<usize>) -> Tick {
        let place = |now: &Traffic, before: &Traffic| {
            let index = slow?;
            Some(now.slow?.get(index)?.saturating_sub(*before.slow?.get(index)?))
        };
        let slow = place(&self.canary, &before.canary).zip(place(&self.control, &before.control));
        Tick {
            canary: since(facts::decided_of(&self.canary), facts::decided_of(&before.canary)),
            control: since(facts::decided_of(&self.control), facts::decided_of(&before.control)),
            slow: slow.map(|(canary, control)| [canary, control]),
            unreliable: self.canary.unreliable || self.control.unreliable,
            ..Tick::default()
        }
    }
}
