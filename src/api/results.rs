//! What verbs that change something answer: lines of progress, then what became of each service.

use std::borrow::Cow;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::hex;
use super::request::Name;
use super::types::{ApiError, GenerationRole, ServiceState, is_zero, rfc3339};

/// A line while a long operation goes on: `{"progress": {…}}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// RFC 3339.
    pub time: Box<str>,
    /// `None`: about the host as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Box<str>>,
    /// A word that programs may compare: `starting`, `ready`, `commit`, `drain`, `stopped` …
    pub step: Box<str>,
    /// A sentence for people.
    pub message: Box<str>,
    /// Lines that were left out before this one, because the client did not read fast enough.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub dropped: u64,
    /// Of a command's output that is not UTF-8: the bytes for which the message stands, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "hex")]
    pub bytes: Vec<u8>,
}

impl Progress {
    pub fn now(service: Option<&str>, step: &str, message: impl Into<Box<str>>) -> Progress {
        Progress {
            time: rfc3339(SystemTime::now()),
            service: service.map(Into::into),
            step: step.into(),
            message: message.into(),
            dropped: 0,
            bytes: Vec::new(),
        }
    }

    /// A part of a command's output. What is not UTF-8 is replaced in the message, and there as bytes.
    pub fn of_output(service: Option<&str>, block: &[u8]) -> Progress {
        let text = String::from_utf8_lossy(block);
        let bytes = if matches!(text, Cow::Owned(_)) { block.to_vec() } else { Vec::new() };
        Progress { bytes, ..Progress::now(service, "output", &*text) }
    }

    /// The output as it was written.
    pub fn output(&self) -> &[u8] {
        if self.bytes.is_empty() { self.message.as_bytes() } else { &self.bytes }
    }
}

/// Result of a verb that acts on services: one entry for each, in the order of their names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ActionResult {
    pub services: Vec<ServiceResult>,
}

/// What became of one service. It went well where `error` is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceResult {
    pub service: Box<str>,
    pub ok: bool,
    /// Whether anything was done (`start` of a running service does nothing and is `ok`).
    pub changed: bool,
    /// `started with pid 812`, `already running`; the last sentence of the operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ServiceState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ApiError>,
}

impl ServiceResult {
    /// It went well; `changed` says whether anything was done.
    pub fn done(service: &str, changed: bool, message: impl Into<Box<str>>) -> ServiceResult {
        ServiceResult {
            service: service.into(),
            ok: true,
            changed,
            message: Some(message.into()),
            state: None,
            generation: None,
            release: None,
            error: None,
        }
    }

    pub fn failed(service: &str, error: ApiError) -> ServiceResult {
        ServiceResult {
            service: service.into(),
            ok: false,
            changed: false,
            message: None,
            state: None,
            generation: None,
            release: None,
            error: Some(error),
        }
    }
}

/// All processes of a service, one by one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessesStatus {
    pub service: Name,
    /// Those of the generation that serves first.
    pub processes: Vec<ProcessStatus>,
    /// Left out, as there are so many.
    #[serde(default)]
    pub more: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessStatus {
    pub pid: u32,
    /// `master` and `worker` of gunicorn, `main` of other kinds, `child`: whatever else it has started.
    pub part: Box<str>,
    pub generation: u64,
    pub role: GenerationRole,
    /// Its name, without arguments: these may say what is not for everybody.
    pub command: Box<str>,
    /// Its own and its share of what it has in common with others; absent where the kernel does not tell svd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Of one processor, now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    pub threads: u32,
    /// Finished; of gunicorn's workers that count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors_5xx: Option<u64>,
    /// Requests that it is answering now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<u64>,
    pub since_seconds: u64,
}

/// How the command of an `exec` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecResult {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

/// What an `update` does, or would do, to one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    Add,
    Remove,
    /// The process stays; a log limit or a timeout is another.
    Adjust,
    /// More or fewer processes; the others stay.
    Scale,
    /// A new generation.
    Reload,
    /// Stop and start.
    Restart,
    /// What a newer svd says. svd never says it.
    #[serde(other)]
    Unknown,
}

impl ChangeAction {
    pub fn as_str(self) -> &'static str {
        match self {
            ChangeAction::Add => "add",
            ChangeAction::Remove => "remove",
            ChangeAction::Adjust => "adjust",
            ChangeAction::Scale => "scale",
            ChangeAction::Reload => "reload",
            ChangeAction::Restart => "restart",
            ChangeAction::Unknown => "change",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub service: Box<str>,
    pub action: ChangeAction,
    /// Keys whose meaning differs: `command`, `logs.max_size`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Box<str>>,
}

/// Result of `upgrade`: svd executes the program now. When `GET /v1/version` tells another image, it has taken over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UpgradeResult {
    /// The version that ends.
    pub from: Box<str>,
    /// Its image, as in [`super::types::Version`].
    pub image: u64,
    /// The program's real path.
    pub binary: Box<str>,
}

/// Result of `update`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpdateResult {
    /// Whether anything differed. With `dry_run`: whether anything would be done.
    pub changed: bool,
    pub dry_run: bool,
    pub changes: Vec<Change>,
    /// What became of the services that were touched; empty in a dry run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceResult>,
    /// Sentences about what an update cannot change while svd runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Box<str>>,
}
