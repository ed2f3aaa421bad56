//! The prepared servers: `tests/env/prepare.py` makes them once, in `AIRDOCK_TEST_ENV` or `target/test-env`.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A prepared environment. Made at the first use, which may take minutes.
#[derive(Clone, Debug)]
pub struct Env {
    pub name: String,
    pub dir: PathBuf,
}

impl Env {
    /// `None`, with the reason printed, where it cannot be prepared (then the test is skipped); a failure where
    /// `AIRDOCK_TEST_ALL` is set.
    pub fn get(name: &str) -> Option<Env> {
        let mut prepare = Command::new("python3");
        prepare.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/env/prepare.py")).arg(name);
        let done = super::run_limited(prepare, Duration::from_secs(600));
        if done.status.success() {
            let base = String::from_utf8_lossy(&done.stdout).trim().to_owned();
            return Some(Env { name: name.to_owned(), dir: PathBuf::from(base).join(name) });
        }
        let why = String::from_utf8_lossy(&done.stderr).trim().to_owned();
        assert!(std::env::var_os("AIRDOCK_TEST_ALL").is_none(), "{name} is needed: {why}");
        eprintln!("SKIPPED, as {name} is not there: {why}");
        None
    }

    /// The interpreter of a virtual environment.
    pub fn python(&self) -> PathBuf {
        self.dir.join("bin/python")
    }

    /// The program of a Java environment.
    pub fn jar(&self) -> PathBuf {
        self.dir.join("app.jar")
    }
}

/// What `promtool check metrics` has to say against them fails the test.
pub fn check_metrics(text: &str) {
    let Some(env) = Env::get("promtool") else { return };
    let mut promtool = Command::new(env.dir.join("promtool"));
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool.spawn().expect("starting promtool");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("promtool reads");
    let output = super::finish(child, "promtool", super::PATIENCE);
    let said = super::svd::both(&output);
    assert!(output.status.success() && said.trim().is_empty(), "promtool: {}\n{said}\n{text}", output.status);
}
