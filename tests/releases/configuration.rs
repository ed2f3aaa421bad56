//! What the services' files say comes with a release, is kept with it, and goes back with it.

use super::support::app::Release;
use super::support::env::Env;
use super::support::load::Load;
use super::support::plain::{SLEEP, script};
use super::support::{PATIENCE, Svd, free_port, wait_until};
use super::{Deployer, GUNICORN, deploy, running, site};
use serde_json::{Value, json};
use std::fs;
use std::net::SocketAddr;

/// Adds to the file of `web` what was not there.
fn file(svd: &Svd, base: &str, more: &str) {
    svd.service("web", &format!("{base}{more}"));
}

fn base(svd: &Svd) -> String {
    fs::read_to_string(svd.path("etc/conf.d/web.toml")).expect("its file")
}

/// A site whose `r1` serves, somebody who deploys, what the file of `web` says, and the same with `COLOR` in its environment.
fn colored() -> Option<(Svd, SocketAddr, Deployer, String)> {
    let env = Env::get(GUNICORN)?;
    let (svd, address) = site(&env);
    let deployer = Deployer::new(&svd, "web", 1);
    deployer.deploy(&Release::new("r1"), "r1");
    let base = base(&svd);
    file(&svd, &base, "[environment]\nCOLOR = 'blue'\n");
    Some((svd, address, deployer, base))
}

/// `COLOR` of the processes that run.
fn color(svd: &Svd, service: &str) -> Option<String> {
    let environ = fs::read(format!("/proc/{}/environ", svd.main_pid(service))).expect("its environment");
    let mut variables = environ.split(|byte| *byte == 0).map(|one| String::from_utf8_lossy(one).into_owned());
    variables.find_map(|one| one.strip_prefix("COLOR=").map(str::to_owned))
}

fn files(deployer: &Deployer) -> Value {
    deployer.client.fetch::<Value>("/v1/apps/web?configuration=true").expect("its status")["configuration"].clone()
}

#[test]
fn it_comes_with_a_release_and_is_taken_back_with_it() {
    let Some((mut svd, address, deployer, base)) = colored() else { return };
    let changes = files(&deployer)["changes"].clone();
    assert_eq!(changes, json!([{ "service": "web", "keys": ["environment.COLOR"], "interrupts": false }]));
    assert_eq!(color(&svd, "web"), None, "a file alone changes nothing");
    let load = Load::start(address);
    deployer.stage(&Release::new("r2"), "r2");
    deployer.activate("r2");
    assert_eq!(color(&svd, "web").as_deref(), Some("blue"));
    assert_eq!(files(&deployer)["changes"], json!([]));
    deployer.ok("take-back", json!({ "reason": "it is slow", "failed": true }));
    assert_eq!((color(&svd, "web"), running(&svd)[0].as_str()), (None, "web running r1"));
    // The file still says it: neither an update nor another svd brings it again.
    let said = svd.ok(&["update"]);
    assert!(said.contains("web: its file says what was taken back"), "{said}");
    assert!(files(&deployer)["held_back"].as_bool().expect("a flag"));
    svd.kill_both();
    svd.start();
    svd.wait_state("web", "running");
    assert_eq!(color(&svd, "web"), None);
    svd.ok(&["reload", "web"]);
    assert_eq!(color(&svd, "web"), None);
    load.more(20);
    load.stop().assert_no_failure();
    assert!(svd.stop().success());
    svd.start();
    svd.wait_state("web", "running");
    assert_eq!((color(&svd, "web"), running(&svd)[0].as_str()), (None, "web running r1"));
    // What fails at once is taken back with what came with it.
    deployer.stage(&Release::new("r3").with("import", "raise"), "r3");
    deployer.fails("activate", json!({ "release": "r3", "lease_seconds": 60 }));
    assert_eq!((color(&svd, "web"), running(&svd)[0].as_str()), (None, "web running r1"));
    // Another content is another matter.
    file(&svd, &base, "[environment]\nCOLOR = 'red'\n");
    svd.ok(&["update"]);
    wait_until("it is in force", PATIENCE, || color(&svd, "web").as_deref() == Some("red"));
    file(&svd, &base, "[environment]\nCOLOR = 'blue'\n");
    svd.ok(&["update"]);
    wait_until("nothing is held back any more", PATIENCE, || color(&svd, "web").as_deref() == Some("blue"));
}

/// What runs before a release is switched to is what the files say by then, as with the release itself; whoever drives.
#[test]
fn steps_are_those_of_the_files() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (svd, _) = site(&env);
    let deployer = Deployer::new(&svd, "web", 1);
    deployer.deploy(&Release::new("r1"), "r1");
    let base = base(&svd);
    deployer.stage(&Release::new("r2"), "r2");
    let step = |deployer: &Deployer, name| deployer.ok("step", json!({ "release": "r2", "step": name }))["ran"].clone();
    assert_eq!(step(&deployer, "before"), false, "there is none");
    let before = "[deploy.before]\ncommand = ['sh', '-c', 'test \"$COLOR\" = blue']\n";
    file(&svd, &base, &format!("{before}[environment]\nCOLOR = 'blue'\n"));
    let steps = |query| {
        let status: Value = deployer.client.fetch(&format!("/v1/apps/web{query}")).expect("its status");
        status["steps"].clone()
    };
    let has = |steps: Value| steps.as_array().expect("a list").contains(&json!("before"));
    assert_eq!((has(steps("")), has(steps("?configuration=true"))), (false, true));
    // Somebody else goes on.
    deployer.ok("unlock", json!({}));
    let next = Deployer::new(&svd, "web", 2);
    next.ok("lock", json!({ "seconds": 60 }));
    assert_eq!(step(&next, "before"), true);
    // A file with errors is not taken for one without steps.
    svd.service("web", "kind = 'nothing'");
    let refused = next.fails("step", json!({ "release": "r2", "step": "before" }));
    assert!(refused.message.contains("has errors"), "{refused}");
    file(&svd, &base, &format!("{before}[environment]\nCOLOR = 'red'\n"));
    let failed = next.fails("step", json!({ "release": "r2", "step": "before" }));
    assert!(failed.message.contains("the step before of r2 failed"), "{failed}");
    assert_eq!(color(&svd, "web"), None, "nothing of it is in force");
}

#[test]
fn a_rollback_restores_it_and_it_is_rolled_out_alone() {
    let Some((mut svd, address, deployer, base)) = colored() else { return };
    let load = Load::start(address);
    deployer.deploy(&Release::new("r2"), "r2");
    assert_eq!(color(&svd, "web").as_deref(), Some("blue"));
    deployer.ok("unlock", json!({}));
    svd.ok(&["rollback", "web"]);
    assert_eq!((color(&svd, "web"), running(&svd)[0].as_str()), (None, "web running r1"));
    let said = svd.ok(&["update"]);
    assert!(said.contains("is not used"), "{said}");
    assert_eq!(color(&svd, "web"), None, "the file is as it was");
    // Alone: r1 is what serves, and stays.
    let deployer = Deployer::new(&svd, "web", 7);
    deployer.ok("activate", json!({ "release": "r1", "lease_seconds": 5 }));
    assert_eq!((color(&svd, "web").as_deref(), running(&svd)[0].as_str()), (Some("blue"), "web running r1"));
    assert_eq!(deployer.status()["trial"]["release"], "r1");
    wait_until("its lease runs out", PATIENCE, || color(&svd, "web").is_none());
    wait_until("it is at its end", PATIENCE, || deployer.status()["switching_to"].is_null());
    assert_eq!(deployer.state_of("r1"), "confirmed", "the release is not to blame");
    deployer.ok("lock", json!({ "seconds": 60 }));
    deployer.activate("r1");
    // Killed on trial, both stay on trial.
    let was = svd.main_pid("web");
    svd.kill_both();
    svd.start();
    svd.wait_state("web", "running");
    assert!(!svd.ok(&["update"]).contains("is not used"), "it is on trial");
    assert_eq!((color(&svd, "web").as_deref(), svd.main_pid("web")), (Some("blue"), was));
    deployer.ok("confirm", json!({}));
    assert_eq!(deployer.activate("r1")["services"][0]["changed"], false, "it is confirmed, as the files say it");
    assert_eq!(svd.ok(&["update"]).matches("is not used").count(), 0);
    load.more(20);
    load.stop().assert_no_failure();
    // What would interrupt it is not switched.
    file(&svd, &base, &format!("[sockets.other]\nlisten = '127.0.0.1:{}'\n", free_port()));
    let refused = deployer.fails("activate", json!({ "release": "r1", "lease_seconds": 60 }));
    assert!(refused.message.contains("without an interruption"), "{refused}");
    svd.service("web", "kind = 'nothing'");
    let refused = deployer.fails("activate", json!({ "release": "r1", "lease_seconds": 60 }));
    assert!(refused.message.contains("has errors; nothing was switched"), "{refused}");
    assert_eq!((color(&svd, "web").as_deref(), running(&svd)[0].as_str()), (Some("blue"), "web running r1"));
}

#[test]
fn svctl_rolls_it_out_alone() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (svd, _) = site(&env);
    let repository = svd.path("repository");
    fs::create_dir(svd.path("home")).expect("mkdir");
    super::commit(&svd, &repository, &Release::new("one"));
    let ship = |words: &[&str]| deploy(&svd, &repository, None, words);
    let (code, said) = ship(&["deploy", "web", "--bake", "0s"]);
    assert_eq!(code, Some(0), "{said}");
    let was = svd.main_pid("web");
    svd.service(
        "worker",
        &script(
            SLEEP,
            &format!(
                "root = '{}'\n[stop]\ngrace = '1s'\n[environment]\nCOLOR = 'blue'\n",
                svd.path("srv/web").display()
            ),
        ),
    );
    let (code, said) = ship(&["plan", "web"]);
    assert!(code == Some(0) && said.contains("configuration changed: worker (environment.COLOR)"), "{said}");
    let (code, said) = ship(&["deploy", "web", "--bake", "0s"]);
    assert_eq!((code, color(&svd, "worker").as_deref()), (Some(0), Some("blue")), "{said}");
    assert_eq!(svd.main_pid("web"), was, "nothing has changed for it");
    let (_, said) = ship(&["deploy", "web", "--bake", "0s"]);
    assert!(said.contains("There is nothing to do."), "{said}");
    svd.service("worker", "kind = 'command'\ncommand = []\n");
    let (code, said) = ship(&["deploy", "web", "--bake", "0s"]);
    assert!(code == Some(1) && said.contains("worker.toml"), "{said}");
}
