//! What the machine knows of one host, and what it wants of it.

use std::collections::VecDeque;
use std::time::Duration;

use super::event::{Call, CallId, Totals, View};
use super::machine::Purpose;

/// Where a host is, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    Before,
    /// Was asked to switch, and has not answered.
    Unsure,
    OnTrial,
    Confirmed,
}

impl From<View> for At {
    fn from(view: View) -> At {
        match view {
            View::Before => At::Before,
            View::OnTrial => At::OnTrial,
            View::Confirmed => At::Confirmed,
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Host {
    pub name: Box<str>,
    /// The control's is one after the last; `None`: it gets nothing.
    pub wave: Option<usize>,
    pub at: At,
    /// We have asked it to switch.
    pub asked: bool,
    /// It has granted us the lock.
    pub locked: bool,
    /// How many entries of our journal it has.
    pub journal: usize,
    /// When its leases were last known to begin; `None`: they are to be renewed at once.
    pub renewed: Option<Duration>,
    /// Since when, and how, it has not answered.
    pub lost: Option<(Duration, Box<str>)>,
    /// Somebody else holds the lock there, or has left a release on trial.
    pub taken: bool,
    /// Why it has not written down what it was given.
    pub trouble: Option<Box<str>>,
    /// Not to be tried before.
    pub retry_at: Duration,
    pub skipped: bool,
    /// It did not answer when it was to go back.
    pub given_up: bool,
    pub chores: Chores,
    /// In which round it was counted, and what.
    pub counted: Option<(u64, Totals)>,
    /// Restarts when the bake time began, and in it.
    pub restarts: Option<(u64, u64)>,
    pub job: Option<Job>,
}

/// Small calls under way, one of each kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Chores {
    pub lock: bool,
    pub renew: bool,
    pub append: bool,
    pub counts: bool,
}

impl Chores {
    /// It was answered, or will not be asked.
    pub fn forget(&mut self, purpose: Purpose) {
        match purpose {
            Purpose::Job => {}
            Purpose::Lock => self.lock = false,
            Purpose::Renew => self.renew = false,
            Purpose::Append { .. } => self.append = false,
            Purpose::Counts { .. } => self.counts = false,
        }
    }
}

/// What the phase wants of a host: these calls, one after another.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub calls: VecDeque<Call>,
    pub state: JobState,
    /// Since when it does not get on.
    pub stuck: Option<Duration>,
    /// Times that something was done again from the beginning.
    pub again: u32,
    /// It ends with the call under way.
    pub dropped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobState {
    /// In the queue.
    Queued,
    UnderWay(CallId),
    /// For the lock, or for another try.
    Waiting,
}

impl Job {
    pub fn new(calls: impl IntoIterator<Item = Call>) -> Job {
        Job { calls: calls.into_iter().collect(), state: JobState::Waiting, stuck: None, again: 0, dropped: false }
    }

    pub fn is_under_way(&self) -> bool {
        matches!(self.state, JobState::UnderWay(_))
    }
}

impl Host {
    pub fn new(name: Box<str>, wave: Option<usize>) -> Host {
        Host {
            name,
            wave,
            at: At::Before,
            asked: false,
            locked: false,
            journal: 0,
            renewed: None,
            lost: None,
            taken: false,
            trouble: None,
            retry_at: Duration::ZERO,
            skipped: false,
            given_up: false,
            chores: Chores::default(),
            counted: None,
            restarts: None,
            job: None,
        }
    }

    /// The rollout counts on it.
    pub fn is_part(&self) -> bool {
        self.wave.is_some() && !self.skipped
    }

    /// It runs the release, or may.
    pub fn may_run_it(&self) -> bool {
        matches!(self.at, At::OnTrial | At::Unsure)
    }
}
