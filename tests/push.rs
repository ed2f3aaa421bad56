//! `svctl push` with a real repository.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use support::svd::both;
use support::{PATIENCE, run_limited};

fn run(dir: &Path, program: &str, words: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(words).current_dir(dir).env("XDG_CACHE_HOME", dir.join("cache")).env_remove("GIT_DIR");
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
    for role in ["AUTHOR", "COMMITTER"] {
        command.env(format!("GIT_{role}_NAME"), "Ann").env(format!("GIT_{role}_EMAIL"), "ann@example.org");
    }
    run_limited(command, PATIENCE)
}

#[track_caller]
fn git(dir: &Path, words: &[&str]) -> String {
    let output = run(dir, "git", words);
    assert!(output.status.success(), "git {words:?}: {}", both(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn the_branch_is_brought_forward_and_never_back() {
    let place = tempfile::tempdir().expect("a directory");
    let dir = place.path();
    let work = dir.join("work");
    git(dir, &["init", "--quiet", "--bare", "--initial-branch=master", "airship.git"]);
    git(dir, &["clone", "--quiet", "airship.git", "work"]);
    let commit = |subject: &str, branch: &str| {
        git(&work, &["commit", "--quiet", "--allow-empty", "--message", subject]);
        git(&work, &["push", "--quiet", "origin", &format!("HEAD:refs/heads/{branch}")]);
        git(&work, &["rev-parse", "HEAD"])
    };
    let text = "hosts = ['web-0']\n[app.airship]\nrepository = './airship.git'\n[app.search]\nartifact = 'app.jar'\n";
    fs::write(dir.join("fleet.toml"), text).expect("writing");
    let svctl = |words: &[&str]| {
        // From below: the file, and the repository that it names, are found all the same.
        let output = run(&work, env!("CARGO_BIN_EXE_svctl"), words);
        (output.status.code(), both(&output), output.stdout)
    };

    let one = commit("one", "master");
    let (code, told, _) = svctl(&["push", "airship"]);
    assert!(code == Some(0) && told.contains("production is new, at "), "{told}");
    assert_eq!(git(&dir.join("airship.git"), &["rev-parse", "production"]), one);
    commit("two \x1b[2J", "master");
    let three = commit("three", "master");
    let (code, _, out) = svctl(&["push", "airship", "--json"]);
    let document: Value = serde_json::from_slice(&out).expect("one document");
    assert_eq!(
        (code, &document["changed"], &document["from"], &document["to"]),
        (Some(0), &json!(true), &json!(one), &json!(three))
    );
    assert_eq!(document["commits"][1]["subject"], "two \x1b[2J");
    let (code, told, _) = svctl(&["push", "airship"]);
    assert!(code == Some(0) && told.contains("production is where master is already"), "{told}");

    git(&work, &["checkout", "--quiet", "-b", "mend"]);
    let mended = commit("mended", "production");
    git(&work, &["checkout", "--quiet", "-b", "on", &three]);
    commit("four \x1b[2J", "master");
    let (code, told, _) = svctl(&["push", "airship"]);
    assert!(code == Some(1) && told.contains("production has 1 commit that master has not"), "{told}");
    assert_eq!(git(&dir.join("airship.git"), &["rev-parse", "production"]), mended);
    git(&work, &["merge", "--quiet", "--no-edit", "mend"]);
    git(&work, &["push", "--quiet", "origin", "HEAD:refs/heads/master"]);
    let (code, told, _) = svctl(&["push", "airship"]);
    assert!(code == Some(0) && told.contains("four \\x1b[2J (Ann)\n") && told.contains(": 2 commits."), "{told}");

    for (words, what) in [
        (&["push", "search"][..], "is an artifact"),
        (&["push", "airshp"], "Did you mean \"airship\"?"),
        (&["-H", "all", "push", "airship"], "this machine alone"),
        (&["-e", "staging", "push", "airship"], "no fleet.staging.toml"),
    ] {
        let (code, told, _) = svctl(words);
        assert!(code == Some(2) && told.contains(what), "{words:?}: {told}");
    }
}
