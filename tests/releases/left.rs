//! What a death of svd, or a build that fails, leaves half done.

use super::Deployer;
use super::support::plain::{SLEEP, script as plain_script};
use super::support::{PATIENCE, Svd, wait_until};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn site(script: &str, more: &str) -> (Svd, Deployer) {
    let mut svd = Svd::new();
    let root = svd.path("srv/job");
    fs::create_dir_all(&root).expect("the root");
    svd.service("job", &plain_script(script, &format!("root = '{}'\n{more}", root.display())));
    svd.start();
    let deployer = Deployer::new(&svd, "job", 1);
    (svd, deployer)
}

/// A release with a file of this content.
fn ship(svd: &Svd, deployer: &Deployer, id: &str, content: &str) {
    let upload = svd.path("upload");
    fs::create_dir_all(&upload).expect("mkdir");
    fs::write(upload.join("file"), content).expect("write");
    fs::write(upload.join("requirements.txt"), "# none\n").expect("write");
    deployer.send(&upload);
    deployer.ok("stage", json!({ "release": id, "source": id }));
}

#[test]
fn a_release_that_was_half_removed_comes_again() {
    let (mut svd, deployer) = site(SLEEP, "[stop]\ngrace = '1s'\n[deploy]\nbuild = 'none'\n");
    for id in ["r1", "r2", "r3"] {
        ship(&svd, &deployer, id, "old");
    }
    assert!(svd.stop().success());
    // svd was killed when it had written that they go, and had removed nothing yet.
    let file = svd.path("state/apps/job.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&file).expect("the state")).expect("JSON");
    let releases = state["app"]["releases"].as_object_mut().expect("a table");
    assert!(releases.remove("r1").is_some() && releases.remove("r2").is_some());
    state["app"]["leaving"] = json!(["r1", "r2"]);
    fs::write(&file, state.to_string()).expect("write");
    svd.start();
    deployer.ok("lock", json!({ "seconds": 60 }));
    ship(&svd, &deployer, "r1", "new");
    let root = svd.path("srv/job/releases");
    assert_eq!(fs::read_to_string(root.join("r1/file")).expect("it is here"), "new");
    assert!(root.join("r2").exists());
    deployer.ok("prune", json!({}));
    assert!(!root.join("r2").exists() && root.join("r1").exists() && root.join("r3").exists());
    let state: Value = serde_json::from_slice(&fs::read(&file).expect("the state")).expect("JSON");
    assert!(state["app"]["leaving"].is_null(), "{state:#}");
}

#[test]
fn an_environment_that_cannot_be_renewed_stays() {
    let (svd, deployer) = site(SLEEP, "[stop]\ngrace = '1s'\n[deploy]\npython = '{root}/python'\n");
    let (python, link) = (svd.path("srv/job/python"), svd.path("srv/job/releases/r1/venv"));
    let becomes = |text: &str| {
        fs::write(&python, format!("#!/bin/sh\n{text}\n")).expect("write");
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).expect("its mode");
    };
    becomes("exec python3 \"$@\"");
    ship(&svd, &deployer, "r1", "");
    let built = deployer.ok("build", json!({ "release": "r1" }));
    let name = built["venv"].as_str().expect("a name").to_owned();
    deployer.activate("r1");
    deployer.ok("confirm", json!({}));
    // Another interpreter, which makes no environments.
    becomes("test \"$1\" = -c && echo another && exit 0; exit 1");
    let failed = deployer.fails("build", json!({ "release": "r1" }));
    assert!(failed.message.contains("build") || failed.message.contains("venv"), "{failed}");
    assert_eq!(fs::read_link(&link).expect("a link").file_name().expect("a name").to_string_lossy(), *name);
    assert!(link.join("bin/python").exists(), "what serves can be started");
    becomes("exec python3 \"$@\"");
    assert_eq!(deployer.ok("build", json!({ "release": "r1" }))["changed"], false, "it is as it was");
}

#[test]
fn what_drains_keeps_its_files() {
    // Each goes on until it is told that its work is done.
    let work = "trap 'while ! test -e ../../done; do sleep 0.1; done; exit 0' TERM; while :; do sleep 0.1; done";
    let more = "[reload]\noverlap = true\n[stop]\ngrace = '30s'\n[deploy]\nbuild = 'none'\nkeep = 1\n";
    let (svd, deployer) = site(&format!("cd {{release}} || exit 1; {work}"), more);
    for id in ["r1", "r2", "r3", "r4"] {
        ship(&svd, &deployer, id, id);
        deployer.activate(id);
        deployer.ok("confirm", json!({}));
        svd.wait_state("job", "running");
    }
    let there = |id: &str| svd.path("srv/job/releases").join(id).exists();
    deployer.ok("prune", json!({}));
    assert!(["r1", "r2", "r3", "r4"].into_iter().all(there), "{:#}", svd.status("job"));
    fs::write(svd.path("srv/job/done"), "").expect("write");
    let generations = || svd.status("job")["generations"].as_array().map_or(0, Vec::len);
    wait_until("nothing drains any more", PATIENCE, || generations() == 1);
    assert_eq!(deployer.ok("prune", json!({}))["releases"], json!(["r1", "r2"]), "r3 is the way back");
    assert!(!there("r1") && !there("r2") && there("r3") && there("r4"));
}
