//! The demo, as a newcomer runs it.

#![expect(clippy::disallowed_methods, reason = "forbidden in the core alone")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The demo with its temporary files below `dir`, so that processes of it can be told from others.
fn demo(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_svctl"));
    command.args(["demo", "--seconds", "4"]).env("TMPDIR", dir).env("NO_COLOR", "1");
    // Kept from run to run: what pip fetched.
    command.env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    command
}

fn short_temporary() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ad-test-").tempdir().unwrap()
}

/// Processes that have `text` in their command line.
fn processes_of(text: &str) -> Vec<String> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok());
    let lines = pids.filter_map(|pid| fs::read(format!("/proc/{pid}/cmdline")).ok());
    lines.map(|l| String::from_utf8_lossy(&l).replace('\0', " ")).filter(|l| l.contains(text)).collect()
}

fn assert_nothing_left(dir: &Path) {
    // The end of a process that was killed with the demo is not waited for by anybody here.
    let give_up = Instant::now() + Duration::from_secs(20);
    let text = dir.to_str().unwrap();
    while !processes_of(text).is_empty() {
        assert!(Instant::now() < give_up, "left: {:#?}", processes_of(text));
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn checked(arguments: &[&str]) -> serde_json::Value {
    let dir = short_temporary();
    let output = demo(dir.path()).args(arguments).arg("--json").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stderr, b"", "with --json, the document says it all");
    assert_eq!(value["failed"], 0, "{text}");
    assert_eq!((&value["reloads"], &value["kept_old"]), (&3.into(), &1.into()), "{text}");
    assert!(value["requests"].as_u64().unwrap() > 100, "{text}");
    for release in ["1", "2"] {
        assert!(value["by_release"][release].as_u64().unwrap() > 10, "{text}");
    }
    assert_eq!(value["by_release"].get("broken"), None);
    assert_nothing_left(dir.path());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the temporary directory is gone");
    value
}

#[test]
fn nothing_fails_with_the_fallback_server() {
    let value = checked(&["--server", "python"]);
    assert!(value["fallback"].is_string());
}

#[test]
fn nothing_fails_with_gunicorn() {
    let value = checked(&[]);
    match value["fallback"].as_str() {
        Some(why) => eprintln!("skipped: gunicorn could not be had, so that the fallback was tested: {why}"),
        None => assert!(value["server"].as_str().unwrap().starts_with("gunicorn "), "{value}"),
    }
}

/// Debian's Python without python3-venv: it has the module, and says this.
#[test]
fn who_lacks_the_package_for_virtual_environments_is_told_its_name() {
    let dir = short_temporary();
    let python = dir.path().join("python3");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -c ] && {{ printf '{}\\n3.11\\n'; exit 0; }}\ncat <<'END'\nThe virtual environment was not \
         created successfully because ensurepip is not\navailable.  On Debian/Ubuntu systems, you need to install the \
         python3-venv\npackage using the following command.\nEND\nexit 1\n",
        python.display()
    );
    fs::write(&python, script).unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let mut command = demo(dir.path());
    command.args(["--server", "gunicorn"]).env("PATH", path).env("XDG_CACHE_HOME", dir.path().join("cache"));
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("apt install python3-venv"), "{said}");
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let dir = short_temporary();
        let (mut child, stderr) = started(dir.path());
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let rest: Vec<String> = stderr.map_while(Result::ok).collect();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{rest:#?}");
        assert!(rest.iter().any(|l| l.contains("Interrupted")), "{rest:#?}");
        assert_nothing_left(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the temporary directory is gone");
    }
}

/// svd notices that its demo is gone and ends the service.
#[test]
fn a_killed_demo_leaves_no_process() {
    let dir = short_temporary();
    let (mut child, _stderr) = started(dir.path());
    assert!(!processes_of(dir.path().to_str().unwrap()).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    assert_nothing_left(dir.path());
}

/// A demo that has just begun its load.
fn started(dir: &Path) -> (Child, impl Iterator<Item = std::io::Result<String>>) {
    let mut child =
        demo(dir).args(["--server", "python"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let load = lines.by_ref().map_while(Result::ok).any(|line| line.starts_with("Load:"));
    assert!(load, "the demo has not come to its load");
    (child, lines)
}
