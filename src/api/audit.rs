//! The record of who did what. The daemon gives the sink; the server writes to it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use super::peer::Peer;
use super::request::{Request, Verb};
use super::types::ErrorCode;

/// One line of the audit journal. A change has two: one before anything is done, one with the outcome; both have the
/// same `id`. A refused one has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditRecord {
    /// Counts up, also beyond the life of one svd, as far as the journal tells.
    pub id: u64,
    pub time: SystemTime,
    pub uid: u32,
    pub pid: i32,
    /// Empty for a user that the database does not know.
    pub user: Box<str>,
    pub verb: Verb,
    /// Resolved names; empty for what concerns the host.
    pub services: Vec<Box<str>>,
    /// What was asked for beside the names: `release=…`, `signal=HUP`, `count=6`.
    pub detail: Box<str>,
    pub outcome: Outcome,
    /// It was begun by an svd that was killed.
    pub outlived: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Allowed; about to be done.
    Begun,
    Done,
    Failed(ErrorCode),
    /// Not allowed; nothing was done.
    Refused,
    /// The machine was started anew before it was answered.
    Interrupted,
    /// Its client went away, and it was ended for that.
    Left,
}

impl Outcome {
    /// `begun`, `done`, `refused`, `interrupted by a reboot`, `ended with its client`, or the code of the error.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Begun => "begun",
            Outcome::Done => "done",
            Outcome::Refused => "refused",
            Outcome::Interrupted => "interrupted by a reboot",
            Outcome::Left => "ended with its client",
            Outcome::Failed(code) => code.as_str(),
        }
    }
}

/// Where records go. It must not block: it is called on the supervising loop.
pub type AuditSink = Arc<dyn Fn(&AuditRecord) + Send + Sync>;

/// Numbers the records. Cheap to clone; all clones count together.
#[derive(Clone, Debug, Default)]
pub struct Numbers(Rc<Cell<u64>>);

impl Numbers {
    /// Goes on after this one.
    pub fn after(last: u64) -> Numbers {
        Numbers(Rc::new(Cell::new(last)))
    }

    /// Higher than all before.
    pub fn next(&self) -> u64 {
        self.0.set(self.0.get() + 1);
        self.0.get()
    }
}

/// What a [`super::Reply`] needs to write the outcome.
#[derive(Clone)]
pub(super) struct Pending {
    pub record: AuditRecord,
    pub sink: AuditSink,
}

impl Pending {
    /// `None`: the request changes nothing.
    pub fn new(request: &Request, peer: &Peer, numbers: &Numbers, sink: &AuditSink) -> Option<Pending> {
        let verb = request.verb();
        if verb.is_read() || request.is_renewal() {
            return None;
        }
        let record = AuditRecord {
            id: numbers.next(),
            time: SystemTime::now(),
            uid: peer.uid,
            pid: peer.pid,
            user: peer.user.clone(),
            verb,
            services: request.services().cloned().unwrap_or_default(),
            detail: request.detail(),
            outcome: Outcome::Begun,
            outlived: false,
        };
        Some(Pending { record, sink: Arc::clone(sink) })
    }

    pub fn write(mut self, outcome: Outcome) {
        self.record.time = SystemTime::now();
        self.record.outcome = outcome;
        (self.sink)(&self.record);
    }
}
