//! What comes into the machine, and what it wants done.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::journal::{Entry, Outcome, Place};
use super::kept::Line;
use super::plan::Step;

/// Of one call, never used twice by one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// What is asked of one host. Every call carries the rollout and the number that its lock was granted with.
///
/// Each may be asked again after an answer that was lost: a host that has done it says so again.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Grants the lock for so long, or takes it over from an earlier driver of the same rollout, who had a lower number.
    Lock {
        lease: Duration,
    },
    /// The whole journal that the host has.
    Read,
    /// Writes entries from a place on, in the stead of what the host has there; but of the number that wrote last it keeps what
    /// it has and goes further: this call is late.
    Append {
        from: usize,
        entries: Vec<Arc<Line>>,
    },
    /// Of the release: bring its files, build its environment, publish its static files, verify it.
    Prepare(Step),
    /// The key, of rollout and step, keeps a host from ever doing it twice. `after`: the second half, when all waves have passed.
    Migrate {
        key: Box<str>,
        after: bool,
    },
    /// Brings the services to the release, unconfirmed, for so long. `holds`: what was before does not work any more, and the
    /// end of the lease takes nothing back.
    Activate {
        lease: Duration,
        holds: bool,
    },
    /// `slow`: count requests that take longer.
    Counts {
        slow: Option<Duration>,
    },
    /// Moves the ends of the lock and of an unconfirmed release on.
    Renew {
        lease: Duration,
    },
    Confirm,
    /// Brings the services back to what was confirmed before; nothing if they are there.
    /// `failed`: the release is no good, and nobody is to switch to it again.
    TakeBack {
        why: Box<str>,
        failed: bool,
    },
    Unlock,
}

impl Call {
    /// What it does to a host, in a word of the plan; `None`: it only asks, or keeps books.
    pub fn doing(&self) -> Option<&'static str> {
        Some(match self {
            Call::Prepare(step) => step.as_str(),
            Call::Migrate { after: false, .. } => Step::Migrate.as_str(),
            Call::Migrate { after: true, .. } => Step::MigrateAfter.as_str(),
            Call::Activate { .. } => Step::Activate.as_str(),
            Call::Confirm => "confirm",
            Call::TakeBack { .. } => "take back",
            Call::Lock { .. }
            | Call::Read
            | Call::Append { .. }
            | Call::Counts { .. }
            | Call::Renew { .. }
            | Call::Unlock => return None,
        })
    }

    /// It lasts, and loads the host or the network: [`super::plan::Limits::parallel`] counts it.
    pub fn is_work(&self) -> bool {
        matches!(self, Call::Prepare(_) | Call::Migrate { .. } | Call::Activate { .. } | Call::TakeBack { .. })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Granted {
        view: View,
        /// Of this rollout.
        journal: Mark,
        /// The number of the last entry that another rollout has written, if that is what the host keeps.
        other: Option<u64>,
    },
    Journal(Vec<Entry>),
    /// How many entries the host has now.
    Appended(usize),
    Done,
    /// False: nothing was pending.
    Migrated {
        ran: bool,
    },
    Counted(Count),
    Renewed(View),
    /// The release that is confirmed now: an older one where the lease had run out.
    Confirmed(Box<str>),
}

/// How far a host's journal goes: the later number counts more, then the length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// Of the last entry.
    pub number: u64,
    pub entries: usize,
}

/// Where a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// It serves something else than the rollout's release.
    Before,
    /// It serves the release, under the rollout's lease, or is being brought there.
    OnTrial,
    Confirmed,
}

/// Totals since some moment that does not change while the same processes serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Whose fate is decided.
    pub requests: u64,
    pub errors: u64,
    /// Open for too long, now: the one number here that may fall.
    pub overdue: u64,
    /// `None`: not known.
    pub slow: Option<u64>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Count {
    /// `None`: not known at the moment.
    pub totals: Option<Totals>,
    /// Foreign datagrams came, too.
    pub unreliable: bool,
    /// Of workers that ended by themselves, since some moment that does not change.
    pub restarts: u64,
    /// Why the service does not serve: a crash loop, a failing health check.
    pub unfit: Option<Box<str>>,
    pub view: View,
}

/// Why a call has no reply.
#[derive(Clone, Debug, PartialEq)]
pub enum CallError {
    /// Whether it was done is not known.
    Unreachable(Box<str>),
    /// Somebody else holds the lock: who, where, since when.
    Locked(Box<str>),
    /// A higher number was granted since.
    Fenced { highest: u64 },
    /// The lock's lease had run out; it may be taken again.
    NotLocked,
    /// Something else is being done to the app there.
    Busy(Box<str>),
    /// It was tried and has failed; the host serves what it did before.
    Failed(Box<str>),
}

/// What people want of a rollout that runs or is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    Pause,
    /// The wave is good, whatever was counted.
    Promote,
    /// Take everything back. `force`: also where a migration makes the old code fail.
    Abort {
        force: bool,
    },
    /// Go on where it was paused.
    Resume,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The first one.
    Begin,
    Answer {
        id: CallId,
        result: Result<Reply, CallError>,
    },
    /// [`super::Machine::next_timeout`] has come.
    Tick,
    Wish(Wish),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// To be answered by [`Event::Answer`] in any case, and within a limit.
    Call {
        id: CallId,
        host: Box<str>,
        number: u64,
        call: Call,
    },
    Report(Report),
    /// The machine wants nothing more: the program may end.
    End(End),
}

/// For people, as it happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// A line of the journal that a majority of the hosts has.
    Recorded(Arc<Line>),
    Host {
        host: Box<str>,
        what: Box<str>,
    },
    /// Somebody has to decide.
    Alert(Box<str>),
}

#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// The journal says the same.
    Over { outcome: Outcome, places: Vec<(Box<str>, Place)> },
    /// It waits for somebody: the hosts hold what they have for a long lease.
    Paused { why: Box<str> },
    /// Nothing was begun: another one holds the lock.
    Locked(Box<str>),
    /// Another driver has taken the rollout over.
    Superseded,
    /// No majority of the hosts answers; what is unconfirmed goes back by its lease.
    Lost(Box<str>),
    /// What was asked for does not fit the rollout's state.
    Refused(Box<str>),
}
