//! What a rollout does, settled before it begins: which step runs on which host, and why or why not; who goes when.
//!
//! A plan never changes. It is the first entry of the journal, and executing it leaves nothing to choose but what only a host
//! can tell when its turn comes ([`Run::Asks`]: whether a migration is pending).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::fleet::verdict::{Baseline, Counts, Settings, TICK};
use crate::fleet::waves::{Condition, Wave, Waves};

/// How long a wave of the first release of all is watched at most: there are no answers to compare, and nobody is served worse
/// than before. It is long enough for a health check to fail, and for workers to crash again and again.
const FIRST: Duration = Duration::from_secs(30);

/// In the order in which they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    Stage,
    Build,
    Publish,
    Verify,
    Migrate,
    Activate,
    MigrateAfter,
}

impl Step {
    pub fn as_str(self) -> &'static str {
        match self {
            Step::Stage => "upload",
            Step::Build => "build",
            Step::Publish => "static",
            Step::Verify => "verify",
            Step::Migrate => "migrate",
            Step::Activate => "activate",
            Step::MigrateAfter => "migrate after",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    Yes,
    No,
    /// The host finds out when its turn comes.
    Asks,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PlannedStep {
    pub step: Step,
    pub run: Run,
    pub why: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedHost {
    pub name: Box<str>,
    pub condition: Condition,
    /// The release that serves there.
    pub serves: Option<Box<str>>,
    pub steps: Vec<PlannedStep>,
}

impl PlannedHost {
    pub fn runs(&self, step: Step) -> bool {
        self.steps.iter().any(|s| s.step == step && s.run != Run::No)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrateOn {
    One,
    Each,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    pub on: MigrateOn,
    /// The old code works with the new schema.
    pub compatible: bool,
    /// There is a second half, for when all waves have passed.
    pub after: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Milliseconds.
    pub bake: u64,
    /// Of an unconfirmed release and of the lock.
    pub lease: u64,
    /// The same while the rollout is paused.
    pub long_lease: u64,
    /// Hosts that are worked on at once.
    pub parallel: usize,
    /// Hosts that may be down or get lost.
    pub max_unreachable: usize,
    pub verdict: Settings,
    /// What a wave is judged by.
    pub baseline: Baseline,
    /// Milliseconds: what takes longer is slow.
    pub slow: Option<u64>,
    /// Milliseconds from one count to the next.
    #[serde(default = "usual_tick")]
    pub tick: u64,
}

/// [`TICK`]
fn usual_tick() -> u64 {
    TICK.as_secs() * 1000
}

impl Limits {
    pub fn lease(&self) -> Duration {
        Duration::from_millis(self.lease)
    }
}

/// What a rollout is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// A new release: in waves, judged, and taken back everywhere if it fails anywhere.
    #[default]
    Deploy,
    /// Back to a release that was good, on all hosts at once: what fails on one of them is no reason to keep the others from it.
    Rollback,
    /// Hosts that have missed it get what the others have confirmed, each for itself.
    CatchUp,
}

impl Purpose {
    /// Hosts go in waves, which are watched and judged; all go back together.
    pub fn is_judged(self) -> bool {
        self == Purpose::Deploy
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Of this rollout, never used twice.
    pub rollout: Box<str>,
    #[serde(default)]
    pub purpose: Purpose,
    pub app: Box<str>,
    pub release: Box<str>,
    /// Who wants it.
    pub by: Box<str>,
    /// Seconds since 1970.
    pub at: u64,
    /// By name: the order in which locks are taken.
    pub hosts: Vec<PlannedHost>,
    pub waves: Waves,
    pub migration: Option<Migration>,
    pub limits: Limits,
    pub warnings: Vec<Box<str>>,
}

/// How the release differs from another one, as far as it concerns the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Anything at all.
    pub any: bool,
    pub requirements: bool,
    pub statics: bool,
}

/// What a host says before the plan is made.
#[derive(Clone, Debug, PartialEq)]
pub struct HostFacts {
    pub name: Box<str>,
    /// Err: why it cannot be reached.
    pub answer: Result<HostAnswer, Box<str>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostAnswer {
    /// Why the service does not serve.
    pub unfit: Option<Box<str>>,
    /// What the running processes were started from: not always what was confirmed.
    pub serves: Option<Box<str>>,
    pub confirmed: Option<Box<str>>,
    /// Services whose files say something else than what is in force, and in what.
    pub configuration: Option<Box<str>>,
    /// Why what the files say cannot be used.
    pub configuration_error: Option<Box<str>>,
    /// Its files are there and sealed.
    pub staged: bool,
    /// Its environment is.
    pub built: bool,
    /// It failed there before.
    pub failed: Option<Box<str>>,
    pub deploy: DeployFacts,
    /// Of the release that serves, since it does.
    pub yesterday: Counts,
}

/// The `[deploy]` of the host's service file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeployFacts {
    pub builds: bool,
    pub publishes: bool,
    /// The service says which files are static: else the step runs each time.
    pub names_statics: bool,
    pub verifies: bool,
    pub migration: Option<Migration>,
}

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    pub rollout: &'a str,
    pub purpose: Purpose,
    pub app: &'a str,
    pub release: &'a str,
    pub by: &'a str,
    pub at: u64,
    pub hosts: Vec<HostFacts>,
    /// From a release that serves somewhere to the new one; one that is not here counts as different in everything.
    pub changes: BTreeMap<Box<str>, Change>,
    pub waves: &'a [Wave],
    pub groups: &'a BTreeMap<Box<str>, Vec<Box<str>>>,
    /// Their `baseline` is replaced by yesterday's counts where a host is alone.
    pub limits: Limits,
}

impl Plan {
    /// # Errors
    /// Every reason why it cannot be done, as sentences.
    pub fn new(facts: Facts<'_>) -> Result<Plan, Vec<String>> {
        let mut errors = facts.limits.verdict.check().err().into_iter().collect::<Vec<_>>();
        let mut names = BTreeSet::new();
        errors.extend(
            facts.hosts.iter().filter(|h| !names.insert(&h.name)).map(|h| format!("{} is named twice", h.name)),
        );
        let hosts: Vec<PlannedHost> = facts.hosts.iter().map(|host| planned(host, &facts)).collect();
        let down = hosts.iter().filter(|h| h.condition == Condition::Down).count();
        if down > facts.limits.max_unreachable {
            let told = |name: &str, why: &str| match begins_with(why, name) {
                true => why.to_owned(),
                false => format!("{name} ({why})"),
            };
            let which: Vec<String> =
                facts.hosts.iter().filter_map(|h| Some(told(&h.name, h.answer.as_ref().err()?))).collect();
            errors.push(format!(
                "{} of {} hosts cannot be reached, and max_unreachable is {}: {}",
                down,
                hosts.len(),
                facts.limits.max_unreachable,
                which.join("; ")
            ));
        }
        if facts.purpose.is_judged() {
            errors.extend(failed_before(&facts));
            errors.extend(facts.hosts.iter().filter_map(|h| {
                Some(format!("{}: {}", h.name, h.answer.as_ref().ok()?.configuration_error.as_ref()?))
            }));
        }
        let switched: Vec<(Box<str>, Condition)> = hosts
            .iter()
            .filter(|h| h.runs(Step::Activate) || h.condition == Condition::Down)
            .map(|h| (h.name.clone(), h.condition))
            .collect();
        let waves = match switched.iter().any(|(_, is)| *is != Condition::Down) {
            true if facts.purpose.is_judged() => Waves::new(facts.waves, &switched, facts.groups),
            true => Ok(Waves::at_once(&switched)),
            false => Ok(Waves { down: switched.into_iter().map(|(name, _)| name).collect(), ..Waves::default() }),
        };
        let waves = waves.map_err(|why| errors.push(why)).unwrap_or_default();
        if !errors.is_empty() {
            return Err(errors);
        }
        let mut plan = Plan {
            rollout: facts.rollout.into(),
            purpose: facts.purpose,
            app: facts.app.into(),
            release: facts.release.into(),
            by: facts.by.into(),
            at: facts.at,
            // It has run, and is not undone; what each host has for itself runs again.
            migration: migration(&facts).filter(|m| match facts.purpose {
                Purpose::Deploy => true,
                Purpose::Rollback => false,
                Purpose::CatchUp => m.on == MigrateOn::Each,
            }),
            warnings: warnings(&facts),
            limits: facts.limits,
            hosts,
            waves,
        };
        plan.hosts.sort_by(|a, b| a.name.cmp(&b.name));
        if plan.is_first() {
            plan.limits.bake = plan.limits.bake.min(FIRST.as_secs() * 1000);
            plan.limits.baseline = Baseline::Health;
        }
        let alone = plan.waves.control.is_none() && plan.limits.baseline == Baseline::Control;
        if alone {
            let mut yesterday = Counts::default();
            for answer in facts.hosts.iter().filter_map(|h| h.answer.as_ref().ok()) {
                yesterday = yesterday.plus(answer.yesterday);
            }
            plan.limits.baseline = Baseline::Alone { yesterday };
        }
        Ok(plan)
    }

    /// Nothing serves on any host that answers.
    fn is_first(&self) -> bool {
        self.purpose.is_judged() && self.hosts.iter().all(|host| host.serves.is_none())
    }

    /// No host gets anything.
    pub fn is_empty(&self) -> bool {
        self.waves.waves.is_empty()
    }

    /// Hosts that serve the very release, and get another configuration.
    pub fn again(&self) -> BTreeSet<Box<str>> {
        let same = |h: &&PlannedHost| h.serves.as_deref() == Some(&*self.release) && h.runs(Step::Activate);
        self.hosts.iter().filter(same).map(|h| h.name.clone()).collect()
    }

    pub fn host(&self, name: &str) -> Option<&PlannedHost> {
        self.hosts.binary_search_by(|host| (*host.name).cmp(name)).ok().map(|at| &self.hosts[at])
    }

    /// SHA-256 of its JSON, as hexadecimal digits: what was shown is what is done.
    pub fn digest(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(json).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Of the n-th wave; the control's comes after the last.
    pub fn wave(&self, n: usize) -> &[Box<str>] {
        match self.waves.waves.get(n) {
            Some(wave) => wave,
            None if n == self.waves.waves.len() => self.waves.control.as_slice(),
            None => &[],
        }
    }

    /// The control's included.
    pub fn wave_count(&self) -> usize {
        self.waves.waves.len() + usize::from(self.waves.control.is_some())
    }

    /// A wave without a bake time: the control alone, or all hosts of what is not judged.
    pub fn is_unwatched(&self, wave: usize) -> bool {
        wave == self.waves.waves.len() || !self.purpose.is_judged()
    }
}

/// Does a reason begin with the host that it is about?
fn begins_with(why: &str, host: &str) -> bool {
    why.strip_prefix(host).is_some_and(|rest| rest.starts_with(' '))
}

fn planned(host: &HostFacts, facts: &Facts<'_>) -> PlannedHost {
    let (answer, condition) = match &host.answer {
        Ok(answer) if answer.unfit.is_some() => (Some(answer), Condition::Unfit),
        Ok(answer) => (Some(answer), Condition::Fit),
        Err(_) => (None, Condition::Down),
    };
    let steps = match &host.answer {
        Ok(answer) if facts.purpose.is_judged() => steps(answer, facts),
        Ok(answer) => steps_of_known(answer, facts),
        Err(why) => {
            // Some reasons name the host themselves.
            let prefix = if begins_with(why, &host.name) { "" } else { "cannot be reached: " };
            let why: Box<str> = format!("{prefix}{why}; it is caught up later").into();
            vec![PlannedStep { step: Step::Activate, run: Run::No, why }]
        }
    };
    PlannedHost { name: host.name.clone(), condition, serves: answer.and_then(|a| a.serves.clone()), steps }
}

fn steps(host: &HostAnswer, facts: &Facts<'_>) -> Vec<PlannedStep> {
    let mut steps = Vec::new();
    let mut add = |step, run, why: &str| steps.push(PlannedStep { step, run, why: why.into() });
    let there = host.serves.as_deref() == Some(facts.release);
    let unchanged = host.serves.as_ref().and_then(|id| facts.changes.get(id)).is_some_and(|change| !change.any);
    let confirmed = host.confirmed.as_deref() == host.serves.as_deref();
    if (there || unchanged) && confirmed && host.unfit.is_none() && host.configuration.is_none() {
        let why = match there {
            true => "the host serves it already",
            false => "nothing of the app differs from what the host serves",
        };
        add(Step::Activate, Run::No, why);
        return steps;
    }
    let serves = host.serves.as_deref().unwrap_or("nothing");
    let differ = |what: &str| match &host.serves {
        Some(id) => format!("{what} differ from those of {id}"),
        None => "the host has had no release yet".to_owned(),
    };
    let all = Change { any: true, requirements: true, statics: true };
    let change = match &host.serves {
        Some(_) if there => Change::default(),
        Some(id) => facts.changes.get(id).copied().unwrap_or(all),
        None => all,
    };
    match host.staged {
        true => add(Step::Stage, Run::No, "its files are there"),
        false => add(Step::Stage, Run::Yes, "its files are not there yet"),
    }
    match (host.deploy.builds, host.built) {
        (false, _) => add(Step::Build, Run::No, "the service needs no environment"),
        (true, true) => add(Step::Build, Run::No, "the environment for its requirements is there"),
        (true, false) if change.requirements => add(Step::Build, Run::Yes, &differ("the requirements")),
        (true, false) => {
            let why =
                format!("the requirements are those of {serves}: only another interpreter needs a new environment");
            add(Step::Build, Run::Asks, &why);
        }
    }
    match (host.deploy.publishes, change.statics, change.requirements) {
        (false, ..) => add(Step::Publish, Run::No, "the service has no static step"),
        (_, true, _) if host.serves.is_some() && !host.deploy.names_statics => {
            add(Step::Publish, Run::Yes, "the service does not say which files are static (when_changed)")
        }
        (_, true, _) => add(Step::Publish, Run::Yes, &differ("static files")),
        (_, _, true) => add(Step::Publish, Run::Yes, "requirements differ, and packages bring static files"),
        _ => add(Step::Publish, Run::No, "neither static files nor requirements differ"),
    }
    match host.deploy.verifies {
        true => add(Step::Verify, Run::Yes, "the service has a verify step"),
        false => add(Step::Verify, Run::No, "the service has no verify step"),
    }
    match host.deploy.migration {
        Some(_) => add(Step::Migrate, Run::Asks, "the command \"pending\" decides when the release is built"),
        None => add(Step::Migrate, Run::No, "the service has no migration"),
    }
    let why = match (there, confirmed, &host.unfit) {
        (_, _, Some(unfit)) => format!("the host serves {serves} and is unfit ({unfit}): it comes first"),
        (true, false, _) => "the host serves it unconfirmed".to_owned(),
        (true, ..) => "the host serves it, with another configuration".to_owned(),
        (_, false, _) => format!("the host serves {serves}, which is not what was confirmed there"),
        _ => format!("the host serves {serves}"),
    };
    let why = match &host.configuration {
        Some(changed) => format!("{why}; configuration changed: {changed}"),
        None => why,
    };
    add(Step::Activate, Run::Yes, &why);
    match host.deploy.migration.is_some_and(|m| m.after) {
        true => add(Step::MigrateAfter, Run::Yes, "when all waves have passed"),
        false => add(Step::MigrateAfter, Run::No, "the service has no second migration"),
    }
    steps
}

/// Of a release that others have, or this host had: it gets there, or says why not.
fn steps_of_known(host: &HostAnswer, facts: &Facts<'_>) -> Vec<PlannedStep> {
    let activate = |run, why: String| vec![PlannedStep { step: Step::Activate, run, why: why.into() }];
    let there = host.serves.as_deref() == Some(facts.release) && host.confirmed == host.serves;
    if there && host.unfit.is_none() {
        return activate(Run::No, "the host serves it already".to_owned());
    }
    if let Some(why) = &host.failed {
        return activate(Run::No, format!("left out: it has failed there before: {why}"));
    }
    if facts.purpose == Purpose::CatchUp {
        let once = host.deploy.migration.is_some_and(|m| m.on == MigrateOn::One);
        let mut steps = steps(host, facts);
        for step in steps.iter_mut().filter(|s| once && matches!(s.step, Step::Migrate | Step::MigrateAfter)) {
            *step =
                PlannedStep { step: step.step, run: Run::No, why: "it has run when the others got the release".into() };
        }
        return steps;
    }
    if !host.staged || (host.deploy.builds && !host.built) {
        let why = if host.staged { "its environment was never built there" } else { "it is not there" };
        return activate(
            Run::No,
            format!("left out: {why}; `svctl catch-up {}` brings it there afterwards", facts.app),
        );
    }
    activate(Run::Yes, format!("the host serves {}", host.serves.as_deref().unwrap_or("nothing")))
}

fn failed_before(facts: &Facts<'_>) -> Vec<String> {
    let failed = |host: &HostFacts| {
        let why = host.answer.as_ref().ok()?.failed.as_ref()?;
        Some(format!(
            "{} has failed on {} before: {why}. Ship a newer release, or look at it there",
            facts.release, host.name
        ))
    };
    facts.hosts.iter().filter_map(failed).collect()
}

/// The strictest of what the hosts say.
fn migration(facts: &Facts<'_>) -> Option<Migration> {
    let all = facts.hosts.iter().filter_map(|h| h.answer.as_ref().ok()?.deploy.migration);
    all.reduce(|a, b| Migration {
        on: if a.on == MigrateOn::Each { a.on } else { b.on },
        compatible: a.compatible && b.compatible,
        after: a.after || b.after,
    })
}

fn warnings(facts: &Facts<'_>) -> Vec<Box<str>> {
    let mut warnings = Vec::new();
    let answers = || facts.hosts.iter().filter_map(|h| Some((&h.name, h.answer.as_ref().ok()?)));
    for (name, answer) in answers() {
        if let (Some(serves), Some(confirmed)) = (&answer.serves, &answer.confirmed)
            && serves != confirmed
        {
            warnings.push(format!("{name} serves {serves}, though {confirmed} was confirmed there").into());
        }
    }
    if !facts.purpose.is_judged() {
        return warnings;
    }
    let settings: BTreeSet<String> = answers().map(|(_, a)| format!("{:?}", a.deploy)).collect();
    if settings.len() > 1 {
        warnings.push("the hosts' service files differ in what [deploy] says".into());
    }
    if migration(facts).is_some_and(|m| !m.compatible) {
        warnings.push(
            "the migration is not declared compatible: if it runs and the release then fails, the hosts hold and alert \
             instead of going back"
                .into(),
        );
    }
    warnings
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod tests;
