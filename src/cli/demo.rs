//! `svctl demo`: placeholder for the show of reloads under load.

use std::process::ExitCode;

/// Runs the demonstration for about `seconds`.
pub fn run(_json: bool, _seconds: Option<u64>) -> ExitCode {
    eprintln!("svctl: demo is not built into this version.");
    ExitCode::FAILURE
}
