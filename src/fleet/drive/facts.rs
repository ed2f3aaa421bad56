//! What the hosts say before a plan is made.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::super::rollout::plan::{DeployFacts, HostAnswer, HostFacts, MigrateOn, Migration};
use super::super::rollout::{CallError, believable};
use super::super::verdict::{self, Counts};
use super::Links;
use crate::api::apps::{AppStatus, ConfigurationChange, ConfigurationStatus, ReleaseState, StepName};
use crate::api::types::{SLOW_COUNT, Traffic, slow_bound};

/// A generation with fewer requests says nothing of how fast they are.
const MEASURED: u64 = 100;

/// So long nothing is said of hosts that are waited for; and that long at most between two times.
pub const SILENCE: Duration = Duration::from_secs(3);
const LONGEST_SILENCE: Duration = Duration::from_secs(8);

/// What one host has said.
pub type Answer = Result<AppStatus, Box<str>>;

/// Asks all hosts at once, `parallel` at a time.
pub async fn ask(links: &Links, app: &str, parallel: usize) -> BTreeMap<Box<str>, Answer> {
    ask_telling(links, app, parallel, |_| {}).await
}

/// As [`ask`]. `tell` hears which hosts have not answered yet: after [`SILENCE`], and then more and more seldom.
pub async fn ask_telling(
    links: &Links,
    app: &str,
    parallel: usize,
    mut tell: impl FnMut(&[&str]),
) -> BTreeMap<Box<str>, Answer> {
    let turns = Rc::new(tokio::sync::Semaphore::new(parallel.max(1)));
    let mut tasks = tokio::task::JoinSet::new();
    for (name, link) in links {
        let (name, link, turns, app) = (name.clone(), Rc::clone(link), Rc::clone(&turns), app.to_owned());
        tasks.spawn_local(async move {
            // Never closed.
            let _turn = turns.acquire().await;
            (name, link.facts(&app).await.map_err(text).and_then(believed))
        });
    }
    let mut answers = BTreeMap::new();
    let (mut silence, mut last) = (SILENCE, tokio::time::Instant::now());
    loop {
        tokio::select! {
            done = tasks.join_next() => match done {
                Some(Ok((name, answer))) => _ = answers.insert(name, answer),
                Some(Err(_)) => {}
                None => return answers,
            },
            () = tokio::time::sleep_until(last + silence) => {
                let awaited: Vec<&str> =
                    links.keys().filter(|name| !answers.contains_key(*name)).map(|name| &**name).collect();
                tell(&awaited);
                (silence, last) = ((silence * 2).min(LONGEST_SILENCE), tokio::time::Instant::now());
            }
        }
    }
}

/// One whose numbers of locks nobody gets above would keep everybody from locking the others.
fn believed(status: AppStatus) -> Answer {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    believable(status.fence.number.max(status.journal.number), seconds).map(|()| status)
}

/// Why, as the end of a sentence.
pub fn text(error: CallError) -> Box<str> {
    match error {
        CallError::Unreachable(why) | CallError::Failed(why) | CallError::Locked(why) | CallError::Busy(why) => why,
        CallError::Fenced { .. } | CallError::NotLocked => "it refuses to say".into(),
    }
}

/// For the plan: of these hosts, in their order, by which waves are counted.
pub fn facts(hosts: &[Box<str>], answers: &BTreeMap<Box<str>, Answer>, release: &str) -> Vec<HostFacts> {
    let of = |answer: &Answer| answer.as_ref().map(|status| of(status, release)).map_err(Clone::clone);
    let told = hosts.iter().filter_map(|name| answers.get_key_value(name));
    told.map(|(name, answer)| HostFacts { name: name.clone(), answer: of(answer) }).collect()
}

/// What runs there: where the services differ, the one that is not what was confirmed.
pub fn serves(status: &AppStatus) -> Option<Box<str>> {
    let running = || status.services.iter().filter_map(|s| s.release.as_ref());
    let drifted = running().find(|release| Some(*release) != status.confirmed.as_ref());
    drifted.or_else(|| running().next()).cloned()
}

/// All services of an app together.
pub fn counts(status: &AppStatus) -> Counts {
    let overdue = overdue(status);
    decided(status).plus(Counts { requests: overdue, errors: overdue })
}

/// The same without what is open still: these numbers only grow while the same processes serve.
pub fn decided(status: &AppStatus) -> Counts {
    status.services.iter().filter_map(|s| s.traffic.as_ref()).map(decided_of).fold(Counts::default(), Counts::plus)
}

/// What nobody answers any more has failed, too.
pub fn decided_of(traffic: &Traffic) -> Counts {
    Counts { requests: traffic.requests + traffic.died_open, errors: traffic.errors_5xx + traffic.died_open }
}

/// Open for longer than the service's timeout, now.
pub fn overdue(status: &AppStatus) -> u64 {
    status.services.iter().filter_map(|s| s.traffic.as_ref()).map(|t| t.overdue).sum()
}

/// What counts as slow, from the 95th percentile of the host whose is highest: hosts may differ.
pub fn slow<'a>(answers: impl Iterator<Item = &'a AppStatus>) -> Option<Duration> {
    slow_of(answers.flat_map(|status| &status.services).filter_map(|s| s.traffic.as_ref()))
}

/// The same, from what was counted in any places.
pub fn slow_of<'a>(traffic: impl Iterator<Item = &'a Traffic>) -> Option<Duration> {
    let measured = traffic.filter(|t| t.requests >= MEASURED && t.slow.is_some());
    let p95 = measured.filter_map(|t| t.latency_ms).map(|latency| latency.p95).filter(|ms| *ms > 0.0);
    let p95 = p95.fold(0.0, f64::max);
    let limit = (p95 > 0.0).then(|| verdict::slow_limit(Duration::from_secs_f64((p95 / 1e3).min(3600.0))))?;
    Some(slow_bound(place(limit)))
}

/// Of the bounds by which hosts count, the one nearest to a limit.
pub fn place(limit: Duration) -> usize {
    let octaves = (limit.as_secs_f64() / slow_bound(0).as_secs_f64()).max(1.0).log2();
    (octaves.round() as usize).min(SLOW_COUNT - 1)
}

/// What an activation brings, for people.
fn configuration(files: &ConfigurationStatus) -> Option<Box<str>> {
    let one = |c: &ConfigurationChange| format!("{} ({})", c.service, c.keys.join(", "));
    let again = if files.held_back { ", which was taken back before" } else { "" };
    let changed: Vec<String> = files.changes.iter().map(one).collect();
    (!changed.is_empty()).then(|| format!("{}{again}", changed.join(", ")).into())
}

fn of(status: &AppStatus, release: &str) -> HostAnswer {
    let known = status.releases.iter().find(|r| *r.release == *release);
    let unfit = status.services.iter().find_map(|s| Some(format!("{}: {}", s.name, s.unfit.as_deref()?).into()));
    // Whoever has never had a release is not unfit for want of one.
    let unfit = if status.confirmed.is_none() && status.releases.is_empty() { None } else { unfit };
    let files = status.configuration.as_ref();
    HostAnswer {
        unfit,
        configuration: files.and_then(configuration),
        configuration_error: files.and_then(|c| c.error.clone()),
        serves: serves(status),
        confirmed: status.confirmed.clone(),
        staged: known.is_some(),
        built: known.is_some_and(|r| !matches!(r.state, ReleaseState::Staged | ReleaseState::Unknown)),
        failed: known.filter(|r| r.state == ReleaseState::Failed).map(|r| r.reason.clone().unwrap_or_default()),
        deploy: DeployFacts {
            builds: status.builds,
            publishes: status.steps.contains(&StepName::Static),
            names_statics: !status.static_when_changed.is_empty(),
            verifies: status.steps.contains(&StepName::Verify),
            migration: status.migration.map(|m| Migration {
                on: if m.on_each_host { MigrateOn::Each } else { MigrateOn::One },
                compatible: m.compatible,
                after: m.after,
            }),
        },
        yesterday: counts(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_come_in_the_order_of_the_fleet() {
        let hosts = ["web-9", "web-10", "canary"].map(Box::<str>::from);
        let answers = hosts.iter().map(|name| (name.clone(), Err("away".into()))).collect();
        let names: Vec<Box<str>> = facts(&hosts, &answers, "r1").into_iter().map(|host| host.name).collect();
        assert_eq!(names, hosts);
    }

    #[test]
    fn a_limit_is_told_by_the_bound_that_is_nearest() {
        let of = |ms| place(Duration::from_millis(ms));
        assert_eq!((of(0), of(50), of(92), of(93), of(131), of(1_000_000)), (0, 0, 0, 1, 1, 10));
        for at in 0..SLOW_COUNT {
            let kept = u64::try_from(slow_bound(at).as_millis()).expect("small");
            assert_eq!(of(kept), at, "also after it was rounded to milliseconds");
        }
    }
}
