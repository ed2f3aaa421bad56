//! What the processes of a service have, as `svctl inspect` shows it.

use serde::{Deserialize, Serialize};

/// Answer to `GET /v1/services/NAME/inspect`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    pub service: Box<str>,
    pub generation: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<str>>,
    /// One of them has something that the file does not say.
    pub differs: bool,
    /// Each in a sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Box<str>>,
    pub processes: Vec<Inspected>,
    /// So many more are not shown.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

/// One process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspected {
    pub pid: i32,
    pub parent: i32,
    /// Of the worker that it belongs to.
    pub worker: u32,
    /// Without what may be a secret.
    pub command: Vec<Box<str>>,
    pub has: Vec<Has>,
}

/// One thing that a process has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Has {
    /// `user`, `capabilities`, `limits.open_files` …
    pub what: Box<str>,
    pub value: Box<str>,
    /// What the file says, where that is something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<Box<str>>,
    /// Why it may be another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Box<str>>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}
