//! Exit codes, which are part of the interface, and the one error type of the command line.

use std::process::ExitCode;

use crate::api::client::ClientError;
use crate::api::types::{ApiError, ErrorCode};

/// See `docs/svctl.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done; for `status` and `is-active`: running.
    Ok = 0,
    /// It was tried and did not work.
    Failed = 1,
    /// Wrong arguments.
    Usage = 2,
    /// LSB: the program is not running.
    NotRunning = 3,
    /// LSB: its state is unknown: there is no such service, or svd cannot be reached.
    Unknown = 4,
    /// Access rules, or the socket's mode.
    Forbidden = 5,
    /// The connection ended before the answer; what was begun may have been done.
    Lost = 6,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

impl Exit {
    pub fn of(code: ErrorCode) -> Exit {
        match code {
            ErrorCode::UnknownService => Exit::Unknown,
            ErrorCode::NotRunning => Exit::NotRunning,
            ErrorCode::Forbidden => Exit::Forbidden,
            ErrorCode::BadRequest => Exit::Usage,
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
            ClientError::Unreachable { .. } => Exit::Unknown,
            ClientError::Denied { .. } => Exit::Forbidden,
            ClientError::Lost => Exit::Lost,
            ClientError::Nonsense { .. } | ClientError::Local { .. } => Exit::Failed,
        };
        let mut api = error.to_api();
        if let ClientError::Local { source, .. } = &error {
            api.message = format!("{error}: {source}.").into();
        }
        CliError::Said { exit, error: api }
    }
}
