//! Why svd gave no good answer.

use std::borrow::Cow;
use std::io;

use super::super::types::{ApiError, ErrorCode};
use super::dial::NO_SOCKET;

/// Why svd gave no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is nobody at the socket.
    #[error("svd cannot be reached at {place}: {why}.")]
    Unreachable { place: Box<str>, why: Cow<'static, str> },
    /// The socket does not let this user in.
    #[error("You may not connect to svd at {place}: permission denied.")]
    Denied { place: Box<str> },
    /// The way to another host's svd ends before.
    #[error(transparent)]
    Away(#[from] Away),
    /// The connection ended before the answer did.
    #[error("The connection to svd was lost before its answer was complete.")]
    Lost,
    /// Whoever answered is not svd, or of another age.
    #[error("The answer at {place} is not svd's: {why}.")]
    Nonsense { place: Box<str>, why: String },
    #[error("{message}")]
    Local {
        message: &'static str,
        #[source]
        source: io::Error,
    },
    /// svd's own answer.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Where the way to another host's svd ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", match stage {
    Stage::Host => format!("{host} cannot be reached: {said}."),
    Stage::Svctl => format!("{host} has no svctl: {said}."),
    Stage::Svd | Stage::Permission => format!("{host}: {said}."),
})]
pub struct Away {
    pub host: Box<str>,
    pub stage: Stage,
    /// What ssh, the host's shell or its svctl said, without a full stop.
    pub said: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It cannot be reached, or lets nobody in.
    Host,
    /// It has no svctl.
    Svctl,
    /// Nobody listens at svd's socket.
    Svd,
    /// svd's socket does not let the user in.
    Permission,
}

impl Away {
    fn hint(&self) -> &'static str {
        match self.stage {
            Stage::Host => {
                "svctl uses ssh with your configuration and lets it ask nothing (BatchMode): does `ssh HOST true` work?"
            }
            Stage::Svctl => {
                "`svctl -H HOST setup` brings it, and svd. Or say where it is: svctl = \"…\" below [host.NAME] in the fleet file."
            }
            Stage::Svd => {
                "svd is not running there, or its socket is elsewhere: socket = \"…\" below [host.NAME] in the fleet file."
            }
            Stage::Permission => {
                "Log in as another user, or let this one in: [[access]] rules, mode or group of [control] in svd.toml."
            }
        }
    }
}

/// What to do where there is no svd.
pub const NO_SVD: &str = "svd is not running, or its run directory is elsewhere: give --socket or AIRDOCK_SOCKET.";

impl ClientError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            ClientError::Unreachable { .. } => Some(NO_SVD),
            ClientError::Denied { .. } => {
                Some("Use sudo, or let others in: [[access]] rules, mode or group of [control] in svd.toml.")
            }
            ClientError::Away(away) => Some(away.hint()),
            ClientError::Lost => Some("What was begun may have been done; `svctl status` says how things stand."),
            ClientError::Nonsense { .. } => {
                Some("Is --socket the path of svd's own socket, and is svd not newer or older than svctl?")
            }
            ClientError::Local { .. } => None,
            ClientError::Api(error) => error.hint.as_deref(),
        }
    }

    /// Nobody is there now; somebody may be soon.
    pub fn is_absence(&self) -> bool {
        match self {
            ClientError::Unreachable { .. } => true,
            ClientError::Away(away) => matches!(away.stage, Stage::Host | Stage::Svd),
            _ => false,
        }
    }

    /// svd has taken its socket away, which is the last that it does.
    pub fn is_gone(&self) -> bool {
        match self {
            ClientError::Unreachable { why, .. } => *why == NO_SOCKET,
            ClientError::Away(Away { stage: Stage::Svd, said, .. }) => said.ends_with(NO_SOCKET),
            _ => false,
        }
    }

    /// The same as an [`ApiError`], for `--json`.
    pub fn to_api(&self) -> ApiError {
        if let ClientError::Api(error) = self {
            return error.clone();
        }
        let code = match self {
            ClientError::Denied { .. } | ClientError::Away(Away { stage: Stage::Permission, .. }) => {
                ErrorCode::Forbidden
            }
            ClientError::Unreachable { .. } | ClientError::Away(_) | ClientError::Lost => ErrorCode::Unavailable,
            _ => ErrorCode::Internal,
        };
        let error = ApiError::new(code, self.to_string());
        match self.hint() {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}
