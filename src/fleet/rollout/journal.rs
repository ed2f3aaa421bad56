//! What has become of a rollout, as every driver of it writes down and reads.
//!
//! Append-only, on the rollout's hosts. An entry is on a majority of them before anything that follows from it is done, so that
//! whoever reads a majority knows at least as much as was acted upon. What only a minority has may come true or not: nothing
//! has followed from it. [`Progress::apply`] says which entry may follow; everything else is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::plan::{Migration, Plan};
use crate::fleet::verdict::{self, Record};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Seconds since 1970, by the clock of whoever drove.
    pub at: u64,
    /// What the lock was granted with.
    pub number: u64,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// The first entry.
    Planned(Arc<Plan>),
    /// Somebody drives from here on.
    Taken {
        by: Box<str>,
    },
    /// The host is left out from here on: it got lost, or went back by itself.
    Skipped {
        host: Box<str>,
        why: Box<str>,
    },
    /// The release is on all hosts, and can be switched to.
    Prepared,
    /// Is about to be begun; on this host, and on no other any more. `None`: on each.
    Migrating {
        host: Option<Box<str>>,
    },
    Migrated {
        ran: bool,
    },
    /// Hosts of this wave may be switched.
    Begun {
        wave: usize,
    },
    Judged {
        wave: usize,
        record: Box<Record>,
    },
    Paused {
        why: Box<str>,
    },
    Resumed,
    /// By a person, whatever was counted.
    Promoted {
        wave: usize,
    },
    /// Hosts went back by themselves: everything goes back, and then the first wave comes again.
    Restarted {
        why: Box<str>,
    },
    /// Everything goes back. `faulty`: because the release is no good.
    Failing {
        cause: Box<str>,
        faulty: bool,
    },
    /// No way back from here: all hosts get the release for good.
    Confirming,
    /// The second migration is about to be begun.
    Completing {
        host: Box<str>,
    },
    Completed {
        error: Option<Box<str>>,
    },
    Ended {
        outcome: Outcome,
        places: Vec<(Box<str>, Place)>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    Done {
        /// What came after the point of no return and did not work.
        remarks: Vec<Box<str>>,
    },
    /// It was serving on some host.
    TakenBack { cause: Box<str> },
    /// Before any host was switched.
    Failed { cause: Box<str> },
}

/// Where a host was at the end.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    Confirmed,
    /// It serves what it did before the rollout.
    Before,
    /// Why it is not known; its lease brings it back to what was confirmed there, unless a migration forbids that.
    Unknown(Box<str>),
}

/// What an entry allows to follow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    #[default]
    Nothing,
    Planned,
    Prepared,
    Migrating {
        host: Option<Box<str>>,
    },
    /// Everything before the first wave is done.
    Ready,
    Wave(usize),
    Passed(usize),
    Failing {
        cause: Box<str>,
        faulty: bool,
    },
    Confirming,
    Completing {
        host: Box<str>,
    },
    Completed {
        error: Option<Box<str>>,
    },
    Ended,
}

/// A journal as far as it was read.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub stage: Stage,
    pub plan: Option<Arc<Plan>>,
    pub number: u64,
    pub paused: Option<Box<str>>,
    pub skipped: BTreeMap<Box<str>, Box<str>>,
    /// A migration was run, or may have been.
    pub migrated: bool,
    /// Hosts of waves up to this one may have been switched.
    pub begun: Option<usize>,
}

impl Progress {
    /// Reads a whole journal.
    ///
    /// # Errors
    /// Which entry may not follow the ones before.
    pub fn replay<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Result<Progress, String> {
        let mut progress = Progress::default();
        for (n, entry) in entries.into_iter().enumerate() {
            progress.apply(entry).map_err(|why| format!("entry {n} of the rollout's journal is impossible: {why}"))?;
        }
        Ok(progress)
    }

    /// # Errors
    /// It may not follow what was there before; nothing has changed.
    pub fn apply(&mut self, entry: &Entry) -> Result<(), String> {
        if entry.number < self.number {
            return Err(format!("it was written with the lock's number {}, after {}", entry.number, self.number));
        }
        let stage = self.follow(&entry.what).ok_or_else(|| format!("{} after {:?}", name(&entry.what), self.stage))?;
        match &entry.what {
            What::Planned(plan) => self.plan = Some(plan.clone()),
            What::Skipped { host, why } => _ = self.skipped.insert(host.clone(), why.clone()),
            // What was begun may have been done.
            What::Migrating { .. } => self.migrated = true,
            What::Migrated { ran } => self.migrated = *ran,
            What::Begun { wave } => self.begun = self.begun.max(Some(*wave)),
            What::Paused { why } => self.paused = Some(why.clone()),
            What::Resumed | What::Promoted { .. } | What::Restarted { .. } | What::Failing { .. } => self.paused = None,
            _ => {}
        }
        self.number = entry.number;
        self.stage = stage;
        Ok(())
    }

    pub fn migration(&self) -> Option<Migration> {
        self.plan.as_ref()?.migration
    }

    /// The old code may not work any more.
    pub fn is_one_way(&self) -> bool {
        self.migrated && self.migration().is_some_and(|migration| !migration.compatible)
    }

    /// All waves have passed, but for the control's, which has nothing to be compared with.
    fn all_passed(&self, plan: &Plan) -> bool {
        match self.stage {
            Stage::Passed(wave) => wave + 1 == plan.wave_count(),
            Stage::Wave(wave) => plan.is_unwatched(wave),
            _ => false,
        }
    }

    /// The stage after an entry; `None`: it may not follow.
    fn follow(&self, what: &What) -> Option<Stage> {
        let Some(plan) = &self.plan else {
            return matches!(what, What::Planned(_)).then_some(Stage::Planned);
        };
        if self.stage == Stage::Ended {
            return None;
        }
        let running = self.paused.is_none();
        let can_go_back = !matches!(
            self.stage,
            Stage::Failing { .. } | Stage::Confirming | Stage::Completing { .. } | Stage::Completed { .. }
        );
        let same = || Some(self.stage.clone());
        match what {
            What::Planned(_) => None,
            What::Taken { .. } => same(),
            What::Skipped { host, .. } => {
                if plan.host(host).is_some() && !self.skipped.contains_key(host) {
                    same()
                } else {
                    None
                }
            }
            What::Prepared => (self.stage == Stage::Planned && running).then_some(Stage::Prepared),
            What::Migrating { host } => (self.stage == Stage::Prepared && running && self.migration().is_some())
                .then(|| Stage::Migrating { host: host.clone() }),
            What::Migrated { .. } => matches!(self.stage, Stage::Migrating { .. }).then_some(Stage::Ready),
            What::Begun { wave } => {
                let next = match self.stage {
                    Stage::Prepared if self.migration().is_none() => Some(0),
                    Stage::Ready => Some(0),
                    Stage::Passed(before) => Some(before + 1),
                    _ => None,
                };
                (running && next == Some(*wave) && *wave < plan.wave_count()).then_some(Stage::Wave(*wave))
            }
            What::Judged { wave, record } if self.stage == Stage::Wave(*wave) => match record.verdict.outcome {
                verdict::Outcome::Pass => running.then_some(Stage::Passed(*wave)),
                _ => same(),
            },
            What::Judged { .. } => None,
            What::Paused { .. } => {
                if running && can_go_back {
                    same()
                } else {
                    None
                }
            }
            What::Resumed => {
                if running {
                    None
                } else {
                    same()
                }
            }
            What::Promoted { wave } => (self.stage == Stage::Wave(*wave)).then_some(Stage::Passed(*wave)),
            What::Restarted { .. } => {
                (matches!(self.stage, Stage::Wave(_) | Stage::Passed(_)) && !self.is_one_way()).then_some(Stage::Ready)
            }
            What::Failing { cause, faulty } => {
                can_go_back.then(|| Stage::Failing { cause: cause.clone(), faulty: *faulty })
            }
            What::Confirming => (running && self.all_passed(plan)).then_some(Stage::Confirming),
            What::Completing { host } => (self.stage == Stage::Confirming
                && self.migration().is_some_and(|migration| migration.after))
            .then(|| Stage::Completing { host: host.clone() }),
            What::Completed { error } => {
                matches!(self.stage, Stage::Completing { .. }).then(|| Stage::Completed { error: error.clone() })
            }
            What::Ended { outcome, .. } => {
                let fits = match outcome {
                    Outcome::Done { .. } => matches!(self.stage, Stage::Confirming | Stage::Completed { .. }),
                    Outcome::TakenBack { .. } => matches!(self.stage, Stage::Failing { .. }) && self.begun.is_some(),
                    Outcome::Failed { .. } => matches!(self.stage, Stage::Failing { .. }) && self.begun.is_none(),
                };
                fits.then_some(Stage::Ended)
            }
        }
    }
}

fn name(what: &What) -> &'static str {
    match what {
        What::Planned(_) => "planned",
        What::Taken { .. } => "taken",
        What::Skipped { .. } => "skipped",
        What::Prepared => "prepared",
        What::Migrating { .. } => "migrating",
        What::Migrated { .. } => "migrated",
        What::Begun { .. } => "begun",
        What::Judged { .. } => "judged",
        What::Paused { .. } => "paused",
        What::Resumed => "resumed",
        What::Promoted { .. } => "promoted",
        What::Restarted { .. } => "restarted",
        What::Failing { .. } => "failing",
        What::Confirming => "confirming",
        What::Completing { .. } => "completing",
        What::Completed { .. } => "completed",
        What::Ended { .. } => "ended",
    }
}

#[cfg(test)]
#[path = "journal_test.rs"]
mod tests;
