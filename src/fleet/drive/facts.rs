//! What the hosts say before a plan is made.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::super::rollout::CallError;
use super::super::rollout::plan::{DeployFacts, HostAnswer, HostFacts, MigrateOn, Migration};
use super::super::verdict::Counts;
use super::Links;
use crate::api::apps::{AppStatus, ReleaseState, StepName};

/// What one host has said.
pub type Answer = Result<AppStatus, Box<str>>;

/// Asks all hosts at once, `parallel` at a time.
pub async fn ask(links: &Links, app: &str, parallel: usize) -> BTreeMap<Box<str>, Answer> {
    let turns = Rc::new(tokio::sync::Semaphore::new(parallel.max(1)));
    let mut tasks = tokio::task::JoinSet::new();
    for (name, link) in links {
        let (name, link, turns, app) = (name.clone(), Rc::clone(link), Rc::clone(&turns), app.to_owned());
        tasks.spawn_local(async move {
            // Never closed.
            let _turn = turns.acquire().await;
            (name, link.status(&app).await.map_err(text))
        });
    }
    let mut answers = BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        if let Ok((name, answer)) = done {
            answers.insert(name, answer);
        }
    }
    answers
}

fn text(error: CallError) -> Box<str> {
    match error {
        CallError::Unreachable(why) | CallError::Failed(why) | CallError::Locked(why) | CallError::Busy(why) => why,
        CallError::Fenced { .. } | CallError::NotLocked => "it refuses to say".into(),
    }
}

/// For the plan.
pub fn facts(answers: &BTreeMap<Box<str>, Answer>, release: &str) -> Vec<HostFacts> {
    let of = |answer: &Answer| answer.as_ref().map(|status| of(status, release)).map_err(Clone::clone);
    answers.iter().map(|(name, answer)| HostFacts { name: name.clone(), answer: of(answer) }).collect()
}

/// What runs there: where the services differ, the one that is not what was confirmed.
pub fn serves(status: &AppStatus) -> Option<Box<str>> {
    let running = || status.services.iter().filter_map(|s| s.release.as_ref());
    let drifted = running().find(|release| Some(*release) != status.confirmed.as_ref());
    drifted.or_else(|| running().next()).cloned()
}

fn of(status: &AppStatus, release: &str) -> HostAnswer {
    let known = status.releases.iter().find(|r| *r.release == *release);
    let unfit = status.services.iter().find_map(|s| Some(format!("{}: {}", s.name, s.unfit.as_deref()?).into()));
    // Whoever has never had a release is not unfit for want of one.
    let unfit = if status.confirmed.is_none() && status.releases.is_empty() { None } else { unfit };
    HostAnswer {
        unfit,
        serves: serves(status),
        confirmed: status.confirmed.clone(),
        staged: known.is_some(),
        built: known.is_some_and(|r| r.state != ReleaseState::Staged),
        failed: known.filter(|r| r.state == ReleaseState::Failed).map(|r| r.reason.clone().unwrap_or_default()),
        deploy: DeployFacts {
            builds: status.builds,
            publishes: status.steps.contains(&StepName::Static),
            verifies: status.steps.contains(&StepName::Verify),
            migration: status.migration.map(|m| Migration {
                on: if m.on_each_host { MigrateOn::Each } else { MigrateOn::One },
                compatible: m.compatible,
                after: m.after,
            }),
        },
        yesterday: Counts::default(),
    }
}
