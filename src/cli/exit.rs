//! Exit codes, which are part of the interface, and the one error type of the command line.

use std::process::ExitCode;

use crate::api::client::{Away, ClientError, Stage};
use crate::api::types::{ApiError, ErrorCode};

/// See `docs/svctl.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done; for `status` and `is-active`: running.
    Ok,
    /// It was tried and did not work.
    Failed,
    /// Wrong arguments.
    Usage,
    /// LSB: the program is not running.
    NotRunning,
    /// LSB: its state is unknown: there is no such service, or svd cannot be reached.
    Unknown,
    /// Access rules, or the socket's mode.
    Forbidden,
    /// The connection ended before the answer; what was begun may have been done.
    Lost,
    /// Of `deploy` and the like: the release was taken back.
    TakenBack,
    /// Of the same: it waits for somebody's decision.
    Paused,
    /// Of the same: somebody else holds the lock.
    Locked,
    /// Of `exec`: what its command ended with.
    Command(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Ok => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotRunning => 3,
            Exit::Unknown => 4,
            Exit::Forbidden => 5,
            Exit::Lost => 6,
            Exit::TakenBack => 7,
            Exit::Paused => 8,
            Exit::Locked => 9,
            Exit::Command(code) => code,
        }
    }

    pub fn of(code: ErrorCode) -> Exit {
        match code {
            ErrorCode::UnknownService => Exit::Unknown,
            ErrorCode::NotRunning => Exit::NotRunning,
            ErrorCode::Forbidden => Exit::Forbidden,
            ErrorCode::BadRequest => Exit::Usage,
            ErrorCode::Locked => Exit::Locked,
            _ => Exit::Failed,
        }
    }
}

/// Why `svctl` ends without success.
#[derive(Debug)]
pub enum CliError {
    /// To be said, as text or as JSON.
    Said { exit: Exit, error: ApiError },
    /// Nobody reads the output any more (`svctl logs web | head`): ends quietly.
    NobodyReads,
}

impl CliError {
    pub fn usage(message: impl Into<Box<str>>, hint: impl Into<Box<str>>) -> CliError {
        CliError::Said { exit: Exit::Usage, error: ApiError::new(ErrorCode::BadRequest, message).hint(hint) }
    }

    /// For verbs that tell a state: whatever hides it makes it unknown.
    pub fn state_unknown(self) -> CliError {
        match self {
            CliError::Said { error, .. } => CliError::Said { exit: Exit::Unknown, error },
            other => other,
        }
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> CliError {
        let exit = match &error {
            ClientError::Api(error) => Exit::of(error.code),
            ClientError::Away(Away { stage: Stage::Permission, .. }) => Exit::Forbidden,
            ClientError::Unreachable { .. } | ClientError::Away(_) => Exit::Unknown,
            ClientError::Denied { .. } => Exit::Forbidden,
            ClientError::Lost => Exit::Lost,
            ClientError::Nonsense { .. } | ClientError::Local { .. } => Exit::Failed,
        };
        let mut api = error.to_api();
        if let (ClientError::Api(_), ErrorCode::UnknownRoute) = (&error, api.code) {
            api.hint =
                Some("svd is older than this svctl, and does not know this yet: `svctl version` tells both.".into());
        }
        if let ClientError::Local { source, .. } = &error {
            api.message = format!("{error}: {source}.").into();
        }
        CliError::Said { exit, error: api }
    }
}
