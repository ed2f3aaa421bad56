//! Why a request failed, for programs and for people.

use serde::{Deserialize, Serialize};

/// Why a request failed. Programs compare `code`; people read `message` and `hint`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    /// What happened, to what, why: one or more sentences.
    pub message: Box<str>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<Box<str>>,
    /// Errors of the configuration, each with file and line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub details: Vec<Box<str>>,
    /// Last lines of what failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub last_output: Vec<Box<str>>,
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<Box<str>>) -> ApiError {
        ApiError { code, message: message.into(), hint: None, details: Vec::new(), last_output: Vec::new() }
    }

    pub fn hint(mut self, hint: impl Into<Box<str>>) -> ApiError {
        self.hint = Some(hint.into());
        self
    }

    pub fn details(mut self, details: Vec<Box<str>>) -> ApiError {
        self.details = details;
        self
    }

    pub fn last_output(mut self, lines: Vec<Box<str>>) -> ApiError {
        self.last_output = lines;
        self
    }
}

/// The kinds of failure; also the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is malformed. 400.
    BadRequest,
    /// The access rules do not allow it. 403.
    Forbidden,
    /// There is no such path. 404.
    UnknownRoute,
    /// There is no service of that name. 404.
    UnknownService,
    /// There is no such release. 404.
    UnknownRelease,
    /// 405.
    MethodNotAllowed,
    /// It does not fit what is going on now: a stop came during the reload. 409.
    Conflict,
    /// Somebody else holds the lock of the app. 409.
    Locked,
    /// Somebody else has had the lock of the app since; `details` has the number that it was granted with. 409.
    Fenced,
    /// The lock of the app has run out, or was given back. 409.
    NotLocked,
    /// Something else is being done to the app. 409.
    Busy,
    /// It needs a running service. 409.
    NotRunning,
    /// 413.
    TooLarge,
    /// The configuration has errors; nothing was changed. 422.
    BadConfiguration,
    /// It was tried and did not work: the new generation died, the signal could not be sent. 500.
    Failed,
    /// svd did something that it should not. 500.
    Internal,
    /// Too many connections or requests, or svd is about to end; try again. 503.
    Unavailable,
    /// It took too long. 504.
    Timeout,
    /// A code of a newer svd.
    #[serde(other)]
    Other,
}

impl ErrorCode {
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BadRequest => "bad_request",
            ErrorCode::Forbidden => "forbidden",
            ErrorCode::UnknownRoute => "unknown_route",
            ErrorCode::UnknownService => "unknown_service",
            ErrorCode::UnknownRelease => "unknown_release",
            ErrorCode::MethodNotAllowed => "method_not_allowed",
            ErrorCode::Conflict => "conflict",
            ErrorCode::Locked => "locked",
            ErrorCode::Fenced => "fenced",
            ErrorCode::NotLocked => "not_locked",
            ErrorCode::Busy => "busy",
            ErrorCode::NotRunning => "not_running",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::BadConfiguration => "bad_configuration",
            ErrorCode::Failed => "failed",
            ErrorCode::Internal => "internal",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Timeout => "timeout",
            ErrorCode::Other => "other",
        }
    }

    pub fn http_status(self) -> u16 {
        match self {
            ErrorCode::BadRequest => 400,
            ErrorCode::Forbidden => 403,
            ErrorCode::UnknownRoute | ErrorCode::UnknownService | ErrorCode::UnknownRelease => 404,
            ErrorCode::MethodNotAllowed => 405,
            ErrorCode::Conflict
            | ErrorCode::Locked
            | ErrorCode::Fenced
            | ErrorCode::NotLocked
            | ErrorCode::Busy
            | ErrorCode::NotRunning => 409,
            ErrorCode::TooLarge => 413,
            ErrorCode::BadConfiguration => 422,
            ErrorCode::Failed | ErrorCode::Internal | ErrorCode::Other => 500,
            ErrorCode::Unavailable => 503,
            ErrorCode::Timeout => 504,
        }
    }
}
