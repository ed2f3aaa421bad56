//! What gunicorn's master and workers tell svd: one JSON object a message.

use serde::Deserialize;

/// Longest message taken; the launcher cuts what it quotes.
pub const MESSAGE_MAX: usize = 8 * 1024;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Report {
    /// The master has read its configuration (at its start, and again after its own HUP).
    Boot {
        #[serde(default)]
        graceful_timeout: f64,
        workers: u32,
        #[serde(default)]
        gunicorn: String,
        #[serde(default)]
        worker_class: String,
        /// Seconds; what `overdue` is measured by.
        #[serde(default)]
        timeout: f64,
    },
    Worker {
        pid: i32,
        state: WorkerState,
        #[serde(default)]
        reason: Option<String>,
    },
    /// A gunicorn worker ended with so many requests open.
    Exit {
        pid: i32,
        #[serde(default)]
        open: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    Booted,
    /// Its own probe passed; it waits for the gate.
    Ready,
    Failed,
}

/// # Errors
/// The message is not one of ours: an application wrote to a descriptor that it found.
pub fn parse(message: &[u8]) -> Result<Report, String> {
    serde_json::from_slice(message).map_err(|e| format!("gunicorn's report cannot be read: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_launcher_writes() {
        let boot = br#"{"event":"boot","graceful_timeout":30,"workers":4,"timeout":30,"worker_class":"gthread","gunicorn":"27.0.1"}"#;
        assert!(matches!(parse(boot), Ok(Report::Boot { workers: 4, .. })));
        let failed = br#"{"event":"worker","pid":7,"state":"failed","reason":"GET / answered 500"}"#;
        let Ok(Report::Worker { pid: 7, state: WorkerState::Failed, reason }) = parse(failed) else { panic!() };
        assert_eq!(reason.as_deref(), Some("GET / answered 500"));
        assert!(parse(b"{}").is_err());
        assert!(parse(b"\xff").is_err());
    }
}
