//! What svd has read is told to nobody: hunted for in all that it writes and says.

use super::{DB, PATIENCE, Svd, both, exec, file, needs_root, path_of, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;

/// In every value of these tests.
const PART: &str = "s3cret";

/// All files below that have it in them, but for where it is kept.
fn files_with(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let kind = entry.file_type().expect("its type");
        if kind.is_dir() {
            files_with(&entry.path(), found);
        } else if kind.is_file() {
            let text = fs::read(entry.path()).unwrap_or_default();
            let has_it = text.windows(PART.len()).any(|part| part == PART.as_bytes());
            found.extend(has_it.then(|| entry.path().display().to_string()));
        }
    }
}

fn hunt(svd: &Svd) {
    let etc = svd.path("etc").display().to_string();
    let verbs = [
        &["status"][..],
        &["status", "web"],
        &["events"],
        &["logs", "web"],
        &["pid", "web"],
        &["releases", "web"],
        &["history", "web"],
        &["check", &etc],
        &["update", "--dry-run"],
        &["exec", "web", "--", "/there/is/none"],
        &["metrics"],
    ]
    .map(<[&str]>::to_vec);
    for words in verbs {
        for json in [&[][..], &["--json"]] {
            let said = both(&svd.svctl(&[json, &words].concat()));
            assert!(!said.contains(PART), "{words:?}: {said}");
        }
    }
    let mut found = Vec::new();
    for below in ["run", "state", "log", "svd.stderr"] {
        files_with(&svd.path(below), &mut found);
    }
    let secret = path_of(svd, "web");
    found.retain(|path| Path::new(path) != secret);
    assert!(found.is_empty() && !svd.said().contains(PART), "{found:?}");
    for pid in airdock::sys::process::all_pids() {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let ours = line.contains(&svd.path("").display().to_string());
        assert!(!ours || !line.contains(PART), "{line}");
    }
    for pid in [svd.pid(), svd.guardian()] {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&environment).contains(PART));
    }
}

#[test]
fn no_output_of_svd_has_a_secret() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    // A step that fails, and a check that does: both have them in their environment.
    let more = "user = 'auto'\n[health]\ncommand = ['sh', '-c', 'exit 7']\ninterval = '100ms'\n";
    svd.service("web", &file(&svd, more));
    let mut command = svd.command();
    command.arg("--verbose");
    svd.start_with(command);
    svd.wait_state("web", "running");
    wait_until("it is unhealthy", PATIENCE, || svd.ok(&["events"]).contains("exited with 7"));
    assert!(exec(&svd, "web", &["printenv", "DATABASE_URL"]).contains(DB), "it is there to be found");
    hunt(&svd);
    // A crash of the service, a change that does not boot, and the death of svd.
    kill(Pid::from_raw(svd.main_pid("web")), Signal::SIGABRT).expect("a signal");
    wait_until("it has crashed", PATIENCE, || svd.status("web")["restarts"].as_u64().is_some_and(|n| n > 0));
    svd.wait_state("web", "running");
    let broken = file(&svd, "user = 'auto'").replace("/bin/sh", "/there/is/none");
    svd.service("web", &broken);
    assert!(!both(&svd.svctl(&["update"])).contains(PART));
    hunt(&svd);
    svd.kill_both();
    let mut command = svd.command();
    command.arg("--verbose");
    svd.start_with(command);
    svd.wait_state("web", "running");
    hunt(&svd);
    svd.service("web", &file(&svd, "user = 'auto'"));
    svd.ok(&["update"]);
    hunt(&svd);
    svd.stop();
    let mut found = Vec::new();
    files_with(&svd.path("run"), &mut found);
    files_with(&svd.path("state"), &mut found);
    files_with(&svd.path("log"), &mut found);
    assert!(found.is_empty(), "{found:?}");
}
