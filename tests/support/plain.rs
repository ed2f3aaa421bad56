//! Plain commands: shell scripts as services, and what their tests ask of the machine.

use super::Svd;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Sleeps for ever, in the shell's own process.
pub const SLEEP: &str = "exec sleep 100000";

/// The user `nobody`, who can make no cgroup.
pub const NOBODY: u32 = 65534;

/// A service that runs a script, and what `more` adds to its file: keys of the top first.
pub fn script(script: &str, more: &str) -> String {
    assert!(!script.contains("'''"), "it would end the text");
    format!("kind = \"command\"\ncommand = ['/bin/sh', '-c', '''{script}''']\n{more}\n")
}

/// The same in Python, with its output unbuffered.
pub fn python(program: &str, more: &str) -> String {
    assert!(!program.contains("'''"), "it would end the text");
    format!("kind = \"command\"\ncommand = ['/usr/bin/python3', '-u', '-c', '''\n{program}''']\n{more}\n")
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether the test must be skipped, which it says.
pub fn needs_root() -> bool {
    if !is_root() {
        assert!(std::env::var_os("AIRDOCK_TEST_ALL").is_none(), "this test needs root");
        eprintln!("SKIPPED: it needs root");
    }
    !is_root()
}

pub fn alive(pid: i32) -> bool {
    airdock::sys::process::ProcStat::read(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Lines that begin so in what the service wrote.
pub fn lines(svd: &Svd, name: &str, starting: &str) -> usize {
    svd.output(name).lines().filter(|l| l.starts_with(starting)).count()
}

pub fn number_in(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// By `svctl pid`.
#[track_caller]
pub fn pids(svd: &Svd, name: &str) -> Vec<i32> {
    svd.ok(&["pid", name]).split_whitespace().map(|pid| pid.parse().expect("a pid")).collect()
}

/// All that is in the test's directory, so that nobody can run an svd there.
pub fn give_to_nobody(svd: &Svd) {
    let mut chown = Command::new("chown");
    chown.args(["-R", "65534:65534"]).arg(svd.path(""));
    assert!(chown.status().expect("running chown").success());
}
