//! Which release a fleet is at, which hosts are not, and where a rollback goes. Pure.
//!
//! - The fleet **is at** what more than half of an app's hosts have confirmed; where no release has such a majority, at what the
//!   latest rollout has confirmed, if any host still has. Else it is not known, and somebody has to say it.
//! - A host is **off** that has confirmed, or serves, anything else.
//! - A **rollback** goes to what most of the hosts that are where the fleet is would go back to. Where they would go to
//!   different releases, and none of these has a majority among them, somebody has to name one.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;

use serde::Serialize;

use super::drive::facts::{Answer, serves};
use crate::api::apps::{AppStatus, ReleaseState};

/// What is known of all hosts of an app.
pub type Answers = BTreeMap<Box<str>, Answer>;

/// How a host stands to the fleet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Stands {
    /// It serves, and has confirmed, what the fleet is at.
    With,
    /// It has not been deployed to, or has confirmed something else.
    Off { why: Box<str> },
    /// A rollout is at work there, or has left something behind.
    OnTrial { release: Box<str>, rollout: Box<str> },
    /// It does not answer.
    Away { why: Box<str> },
    /// Nobody knows where the fleet is.
    Unknown,
}

impl Stands {
    /// A catch-up would do something there.
    pub fn is_off(&self) -> bool {
        matches!(self, Stands::Off { .. })
    }
}

/// What most of them are, and how many that is. `None`: nothing, or two have as many.
fn most<'a>(values: impl Iterator<Item = &'a str>) -> Option<(&'a str, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    values.for_each(|value| *counts.entry(value).or_default() += 1);
    let (value, count) = counts.iter().max_by_key(|(_, count)| **count)?;
    let alone = counts.values().filter(|other| *other == count).count() == 1;
    alone.then_some((*value, *count))
}

/// The release that the fleet is at. `latest`: what the latest rollout has confirmed, where it is known.
pub fn release_of(answers: &Answers, latest: Option<&str>) -> Option<Box<str>> {
    let confirmed = || answers.values().flatten().filter_map(|status| status.confirmed.as_deref());
    let majority = most(confirmed()).filter(|(_, count)| 2 * count > answers.len()).map(|(release, _)| release);
    let latest = || latest.filter(|latest| confirmed().any(|release| release == *latest));
    majority.or_else(latest).map(Into::into)
}

/// How each host stands to a fleet that is at `release`.
pub fn stands(answer: &Answer, release: Option<&str>) -> Stands {
    let (status, release) = match (answer, release) {
        (Err(why), _) => return Stands::Away { why: why.clone() },
        (Ok(_), None) => return Stands::Unknown,
        (Ok(status), Some(release)) => (status, release),
    };
    if let Some(trial) = &status.trial {
        return Stands::OnTrial { release: trial.release.clone(), rollout: trial.rollout.clone() };
    }
    if let Some(why) = failed(status, release) {
        return Stands::Off { why: format!("{release} has failed there: {why}").into() };
    }
    match (status.confirmed.as_deref(), serves(status)) {
        (None, _) => Stands::Off { why: "nothing was confirmed there yet".into() },
        (Some(confirmed), _) if confirmed != release => {
            Stands::Off { why: format!("it has missed {release}, or went back by hand").into() }
        }
        (Some(_), Some(serving)) if *serving != *release => {
            Stands::Off { why: format!("it has confirmed {release} and serves {serving}").into() }
        }
        // What does not run at all starts with what is confirmed.
        _ => Stands::With,
    }
}

fn failed<'a>(status: &'a AppStatus, release: &str) -> Option<&'a str> {
    let known = status.releases.iter().find(|known| *known.release == *release)?;
    (known.state == ReleaseState::Failed).then(|| known.reason.as_deref().unwrap_or("the reason is not known"))
}

/// Why nothing is begun: what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unclear {
    pub message: String,
    pub details: Vec<Box<str>>,
    pub hint: String,
}

/// Something is on trial: it is to be brought to its end first.
///
/// # Errors
/// On which host.
pub fn nothing_on_trial(app: &str, answers: &Answers) -> Result<(), Unclear> {
    let trial = |name: &str, answer: &Answer| {
        let trial = answer.as_ref().ok()?.trial.as_ref()?;
        Some(format!("{name}: {} of the rollout {}", trial.release, trial.rollout).into())
    };
    let details: Vec<Box<str>> = answers.iter().filter_map(|(name, answer)| trial(name, answer)).collect();
    if details.is_empty() {
        return Ok(());
    }
    Err(Unclear {
        message: format!("{app}: a release is on trial; nothing was done."),
        details,
        hint: format!("`svctl abort {app}` takes it back, `svctl resume {app}` goes on with it; then try again."),
    })
}

/// Where a rollback goes. `latest`: as for [`release_of`].
///
/// # Errors
/// The hosts would go to different places, or none has one to go to.
pub fn way_back(app: &str, answers: &Answers, latest: Option<&str>) -> Result<Box<str>, Unclear> {
    let at = release_of(answers, latest);
    let counts = |status: &&AppStatus| at.is_none() || status.confirmed == at;
    let hosts: Vec<&AppStatus> = answers.values().flatten().filter(counts).collect();
    let previous = most(hosts.iter().filter_map(|status| status.previous.as_deref()));
    if let Some((release, count)) = previous
        && 2 * count > hosts.len()
    {
        return Ok(release.into());
    }
    let named = |name: &str, answer: &Answer| match answer {
        Ok(status) => {
            let of = |release: &Option<Box<str>>| release.as_deref().unwrap_or("nothing").to_owned();
            format!("{name}: at {}, before that {}", of(&status.confirmed), of(&status.previous)).into()
        }
        Err(why) => format!("{name}: cannot be reached: {why}").into(),
    };
    let none = hosts.iter().all(|status| status.previous.is_none());
    Err(Unclear {
        message: match none {
            true => format!("{app}: no host has an earlier good release; nothing was done."),
            false => format!("{app}: the hosts would go back to different releases; nothing was done."),
        },
        details: answers.iter().map(|(name, answer)| named(name, answer)).collect(),
        hint: format!(
            "`svctl rollback {app} --to RELEASE` says where; `svctl -H all releases {app}` shows what there is."
        ),
    })
}

/// A rollout that was confirmed, by its journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latest {
    pub release: Box<str>,
    /// Where its migration ran; `None`: nothing was pending.
    pub migrated_on: Option<Box<str>>,
}

/// A way back to `to` leaves releases, and nobody knows whether a host that does not answer has run a migration with one of them
/// that the older code does not work with.
///
/// # Errors
/// On which host.
pub fn nothing_unseen(app: &str, answers: &Answers, to: &str, latest: Option<&Latest>) -> Result<(), Unclear> {
    let migrates = |status: &AppStatus| status.migration.as_ref().is_some_and(|migration| !migration.compatible);
    let away: Vec<&Box<str>> = answers.iter().filter(|(_, answer)| answer.is_err()).map(|(name, _)| name).collect();
    if away.is_empty() || !answers.values().flatten().any(migrates) {
        return Ok(());
    }
    // Oldest first, and what is left came after it.
    let left = |status: &AppStatus| status.releases.iter().rev().take_while(|r| *r.release != *to).count();
    let only_latest = |latest: &Latest| {
        let mut all = answers.values().flatten().filter(|status| left(status) > 0);
        all.all(|status| left(status) == 1 && status.releases.last().is_some_and(|r| r.release == latest.release))
    };
    // Its journal is on every host, and names the one.
    let details = match latest.filter(|latest| only_latest(latest)) {
        Some(Latest { release, migrated_on: Some(host) }) if away.contains(&host) => {
            vec![format!("{host}: has run the migration of {release}, and does not answer").into()]
        }
        Some(_) => return Ok(()),
        None => away.iter().map(|host| format!("{host}: does not answer").into()).collect(),
    };
    Err(Unclear {
        message: format!(
            "{app}: a host that does not answer may have migrated the database, and nothing says that {to} works with \
             that; nothing was done."
        ),
        details,
        hint: "--force goes back all the same; compatible = true in [deploy.migrate] says that older code works."
            .into(),
    })
}

#[cfg(test)]
#[path = "drift_test.rs"]
mod tests;
