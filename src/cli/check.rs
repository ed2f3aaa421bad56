//! `svctl check`: placeholder until the configuration's reader reports its errors here.

use std::path::Path;
use std::process::ExitCode;

/// Reads the configuration in `dir` and prints all its errors.
pub fn run(_dir: &Path, _json: bool) -> ExitCode {
    eprintln!("svctl: check is not built into this version.");
    ExitCode::FAILURE
}
