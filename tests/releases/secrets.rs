//! What svd has in its own environment, and a command is given by `{env.NAME}`, is told to nobody.

use super::support::plain::{SLEEP, script};
use super::support::{PATIENCE, Svd, wait_until};
use super::{Deployer, both};
use airdock::api::client::Client;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const SECRET: &str = "s3cr3t-of-this-test";

/// A step with the secret as an argument, and what comes of it.
const STEPS: &str = "[deploy]\nbuild = ['sh', '-c', 'echo built; exit 0', '{env.TOKEN}']\n\
    [deploy.migrate]\ncommand = ['sh', '-c', 'echo migrated', '{env.TOKEN}']\n\
    pending = ['sh', '-c', '! test -e {release}/migration', '{env.TOKEN}']\n\
    [deploy.before]\ncommand = ['{release}/{env.TOKEN}/there-is-none']\n\
    [deploy.verify]\ncommand = ['sh', '-c', 'exit 3', '{env.TOKEN}']\n\
    [deploy.static]\ncommand = ['sh', '-c', 'sleep $0', '{env.NAP}', '{env.TOKEN}']\ntimeout = '1s'\n\
    [deploy.after]\ncommand = ['{env.TOKEN}']\n";

/// All files below that have it in them.
fn files_with(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry")) {
        let kind = entry.file_type().expect("its type");
        if kind.is_dir() {
            files_with(&entry.path(), found);
        } else if kind.is_file() {
            // What goes meanwhile has nothing more to tell.
            let text = fs::read(entry.path()).unwrap_or_default();
            let has_it = text.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
            found.extend(has_it.then(|| entry.path().display().to_string()));
        }
    }
}

#[test]
fn a_secret_of_a_command_is_shown_nowhere() {
    let mut svd = Svd::new();
    fs::create_dir_all(svd.path("srv/job")).expect("the root");
    let root = format!("root = '{}'\n", svd.path("srv/job").display());
    let ready = "[ready]\ncommand = ['sh', '-c', 'exit 4', '{env.TOKEN}']\ntimeout = '2s'\n";
    svd.service("job", &script(SLEEP, &format!("{root}[stop]\ngrace = '1s'\n{STEPS}")));
    svd.service("sick", &script(SLEEP, &format!("autostart = false\n{ready}[stop]\ngrace = '1s'\n")));
    let mut command = svd.command();
    command.env("TOKEN", SECRET).env("NAP", "1000");
    svd.start_with(command);
    let deployer = Deployer::new(&svd, "job", 1);
    let upload = svd.path("upload");
    fs::create_dir_all(&upload).expect("mkdir");
    fs::write(upload.join("migration"), "").expect("write");
    deployer.send(&upload);
    deployer.ok("stage", json!({ "release": "r1", "source": "r1" }));
    let client = Client::new(&svd.socket()).expect("a client");
    let ask = |verb: &str, mut body: Value| {
        body["fence"] = deployer.fence.clone();
        body["release"] = "r1".into();
        let mut told = String::new();
        let path = format!("/v1/apps/job/{verb}");
        let answer = client.act(&path, Some(&body), |line| told.push_str(&format!("{line:?}\n")));
        match answer {
            Ok(value) => format!("{told}{}", value.get()),
            Err(error) => format!("{told}{error:?}"),
        }
    };
    let step = |name: &str| ask("step", json!({ "step": name }));
    let build = ask("build", json!({}));
    assert!(build.contains("exit 0 {env.TOKEN}") && build.contains("built"), "{build}");
    let migrated = step("migrate");
    assert!(migrated.contains("migrated"), "{migrated}");
    let known = fs::read_to_string(svd.path("state/apps/job.output/r1.migrate.log")).expect("its output is kept");
    assert!(known.starts_with("$ sh -c echo migrated {env.TOKEN}\n"), "{known}");
    fs::remove_file(svd.path("srv/job/releases/r1/migration")).expect("unlink");
    let told = [
        build,
        migrated,
        // Again: nothing is pending.
        step("migrate"),
        step("before"),
        step("verify"),
        step("static"),
        step("after"),
        both(&svd.svctl(&["start", "sick"])),
    ];
    let parts = [
        "exit 0 {env.TOKEN}",
        "migrate begins",
        "nothing is pending, says `sh -c ! test -e",
        "/{env.TOKEN}/there-is-none",
        "exited with 3",
        "sh -c sleep $0 {env.NAP} {env.TOKEN} took longer than 1s",
        "{env.TOKEN}",
        "sh -c exit 4 {env.TOKEN} exited with 4",
    ];
    for (told, part) in told.iter().zip(parts) {
        assert!(told.contains(part) && !told.contains(SECRET), "{part}: {told}");
    }
    wait_until("the status says it", PATIENCE, || svd.ok(&["status", "sick"]).contains("{env.TOKEN}"));
    let verbs =
        [&["history", "job"][..], &["releases", "job"], &["status", "sick"], &["status"], &["events", "job", "sick"]];
    for words in verbs {
        for json in [&[][..], &["--json"]] {
            let said = both(&svd.svctl(&[json, words].concat()));
            assert!(!said.contains(SECRET), "{words:?}: {said}");
        }
    }
    let mut found = Vec::new();
    files_with(&svd.path(""), &mut found);
    assert!(found.is_empty(), "{found:?}");
}
