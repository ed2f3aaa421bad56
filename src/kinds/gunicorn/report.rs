//! What gunicorn's master and workers tell svd: one JSON object a message.

use serde::Deserialize;

/// Longest message taken; the launcher cuts what it quotes.
pub const MESSAGE_MAX: usize = 8 * 1024;

/// A report, and of whom it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// What the master found in `AIRDOCK_MASTER`.
    pub master: Option<u64>,
    pub report: Report,
}

#[derive(Deserialize)]
struct Sender {
    #[serde(default)]
    master: Option<u64>,
}

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
pub fn parse(message: &[u8]) -> Result<Message, String> {
    let failed = |e: serde_json::Error| format!("gunicorn's report cannot be read: {e}");
    let Sender { master } = serde_json::from_slice(message).map_err(failed)?;
    Ok(Message { master, report: serde_json::from_slice(message).map_err(failed)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_launcher_writes() {
        let boot = br#"{"event":"boot","graceful_timeout":30,"workers":4,"timeout":30,"worker_class":"gthread","gunicorn":"27.0.1"}"#;
        assert!(matches!(parse(boot), Ok(Message { master: None, report: Report::Boot { workers: 4, .. } })));
        let failed = br#"{"event":"worker","pid":7,"state":"failed","reason":"GET / answered 500","master":12}"#;
        let Ok(Message { master: Some(12), report }) = parse(failed) else { panic!() };
        let Report::Worker { pid: 7, state: WorkerState::Failed, reason } = report else { panic!() };
        assert_eq!(reason.as_deref(), Some("GET / answered 500"));
        assert!(parse(b"{}").is_err());
        assert!(parse(b"\xff").is_err());
    }
}
