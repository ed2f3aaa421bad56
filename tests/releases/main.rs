//! Releases on one host by the control socket: taken in, built, switched to on trial, confirmed, taken back.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

#[path = "../support/mod.rs"]
mod support;

mod built_here;
mod canary;
mod configuration;
mod cut_off;
mod down;
mod judged;
mod left;
mod secrets;
mod standby;
mod tags;
mod wheel;

use airdock::api::client::{Client, ClientError};
use serde_json::{Value, json};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::app::Release;
use support::deployer::Deployer;
use support::env::Env;
use support::load::Load;
use support::plain::{NOBODY, SLEEP, needs_root, script};
use support::pty::Pty;
use support::svd::both;
use support::{PATIENCE, Svd, free_port, http_get, run_limited, wait_until};

/// What both services of the app say they are.
fn running(svd: &Svd) -> Vec<String> {
    let list = svd.json(&["status"]);
    let services = list["services"].as_array().expect("a list");
    services.iter().map(|s| format!("{} {} {}", s["name"], s["state"], s["release"]).replace('"', "")).collect()
}

fn current(svd: &Svd) -> Option<PathBuf> {
    fs::read_link(svd.path("srv/web/current")).ok()
}

/// A gunicorn service `web` and a plain `worker`, of one root without releases yet.
fn site(env: &Env) -> (Svd, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut svd = Svd::new();
    let root = svd.path("srv/web");
    fs::create_dir_all(root.join("releases")).expect("the root");
    let (root, python) = (root.display(), env.python());
    let web = format!(
        "kind = 'gunicorn'\napp = 'wsgi_app:application'\nroot = '{root}'\npython = '{}'\nworkers = 2\n\
         sockets.http.listen = '{address}'\n[ready]\nprobe = {{ path = '/healthz' }}\n\
         [restart]\ndelay = '100ms'\nlimit = {{ failures = 2, then = 'never' }}\n\
         [deploy]\nkeep = 2\nshared = ['media']\n\
         [deploy.migrate]\ncommand = ['sh', '-c', 'echo migrating; echo x >> {{root}}/migrated']\n\
         pending = ['sh', '-c', '! test -e {{release}}/migration']\n\
         [deploy.static]\ncommand = ['sh', '-c', 'echo x >> {{root}}/published']\nwhen_changed = ['**/static/**']\n\
         [deploy.verify]\ncommand = ['sh', '-c', 'test -e release.json || exit 3']\n",
        python.display()
    );
    svd.service("web", &web);
    svd.service("worker", &script(SLEEP, &format!("root = '{root}'\n[stop]\ngrace = '1s'\n")));
    svd.start();
    (svd, address)
}

const GUNICORN: &str = "gunicorn-27.0.1";

#[test]
fn a_release_comes_serves_on_trial_and_is_kept() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (svd, address) = site(&env);
    assert!(svd.fails(&["rollback", "web"]).contains("no earlier good release"));
    let deployer = Deployer::new(&svd, "web", 1);
    deployer.deploy(&Release::new("r1"), "r1");
    svd.wait_state("web", "running");
    assert_eq!(running(&svd), ["web running r1", "worker running r1"], "{:#}", deployer.status());
    assert_eq!(current(&svd), Some("releases/r1".into()));
    let load = Load::start(address);
    load.more(50);
    deployer.stage(&Release::new("r2"), "r2");
    let built = deployer.ok("build", json!({ "release": "r2" }));
    assert_eq!(built["reason"], "the release has no requirements.txt, and is no wheel");
    deployer.activate("r2");
    assert_eq!(running(&svd), ["web running r2", "worker running r2"]);
    let status = deployer.status();
    assert_eq!((&status["confirmed"], &status["trial"]["before"]), (&json!("r1"), &json!("r1")), "{status:#}");
    assert_eq!(deployer.activate("r2")["services"][0]["changed"], false, "asked again");
    assert!(svd.fails(&["rollback", "web"]).contains("r2 of the rollout rollout-1 is on trial"));
    deployer.ok("take-back", json!({ "reason": "it is slow", "failed": true }));
    assert_eq!(running(&svd), ["web running r1", "worker running r1"]);
    assert_eq!(deployer.state_of("r2"), "failed");
    let refused = deployer.fails("activate", json!({ "release": "r2", "lease_seconds": 60 }));
    assert!(refused.message.contains("it is slow"), "{refused}");
    deployer.deploy(&Release::new("r3"), "r3");
    let said = svd.fails(&["rollback", "web"]);
    assert!(said.contains("web is locked by root (for alice)") && said.contains("a test"), "{said}");
    assert_eq!(deployer.ok("unlock", json!({})), true);
    assert!(deployer.fails("confirm", json!({})).message.contains("the lock has run out, or was given back"));
    svd.ok(&["rollback", "web"]);
    assert_eq!(running(&svd), ["web running r1", "worker running r1"]);
    assert_eq!(current(&svd), Some("releases/r1".into()));
    assert!(svd.fails(&["rollback", "web"]).contains("no earlier good release"), "neither r2 nor r3 was good");
    load.more(50);
    let report = load.stop();
    report.assert_no_failure();
    let table = svd.ok(&["releases", "web"]);
    assert!(table.contains("r1       confirmed, serving"), "{table}");
    let history = svd.ok(&["history", "web"]);
    let told = ["staged", "built", "activated", "confirmed", "taken back"];
    assert!(told.iter().all(|what| history.contains(what)), "{history}");
}

#[test]
fn all_services_are_switched_or_none() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (svd, address) = site(&env);
    let deployer = Deployer::new(&svd, "web", 1);
    deployer.deploy(&Release::new("r1"), "r1");
    let load = Load::start(address);
    for (id, key, value) in [("r2", "import", "raise"), ("r3", "probe", "fail")] {
        deployer.stage(&Release::new(id).with(key, value), id);
        let error = deployer.fails("activate", json!({ "release": id, "lease_seconds": 60 }));
        assert!(error.message.contains("is taken back"), "{error:?}");
        assert_eq!(running(&svd), ["web running r1", "worker running r1"]);
        assert_eq!((current(&svd), deployer.state_of(id)), (Some("releases/r1".into()), "failed".to_owned()));
    }
    // The second service is the one that fails: the first goes back as well.
    svd.service(
        "worker",
        &script(
            "test $(cat release.json | wc -c) -lt 40 || exit 1; exec sleep 1000",
            &format!("root = '{}'\nready.delay = '200ms'\n[stop]\ngrace = '1s'\n", svd.path("srv/web").display()),
        ),
    );
    svd.ok(&["update"]);
    svd.wait_state("worker", "running");
    deployer.stage(&Release::new("r4").with("slow_note", "x".repeat(100)), "r4");
    deployer.fails("activate", json!({ "release": "r4", "lease_seconds": 60 }));
    svd.wait_state("worker", "running");
    assert_eq!(running(&svd), ["web running r1", "worker running r1"]);
    load.more(20);
    load.stop().assert_no_failure();
}

#[test]
fn a_lease_that_runs_out_and_a_death_in_the_switch_go_back() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (mut svd, address) = site(&env);
    let deployer = Deployer::new(&svd, "web", 1);
    deployer.deploy(&Release::new("r1"), "r1");
    deployer.stage(&Release::new("r2"), "r2");
    let load = Load::start(address);
    deployer.ok("activate", json!({ "release": "r2", "lease_seconds": 5 }));
    assert_eq!(running(&svd), ["web running r2", "worker running r2"]);
    wait_until("r2 is taken back", PATIENCE, || running(&svd) == ["web running r1", "worker running r1"]);
    wait_until("it is at its end", PATIENCE, || deployer.status()["switching_to"].is_null());
    assert_eq!((current(&svd), deployer.state_of("r2")), (Some("releases/r1".into()), "staged".to_owned()));
    // One that was renewed stays, also with another svd.
    deployer.ok("lock", json!({ "seconds": 60 }));
    deployer.stage(&Release::new("r3"), "r3");
    deployer.ok("activate", json!({ "release": "r3", "lease_seconds": 5 }));
    deployer.ok("renew", json!({ "lease_seconds": 60 }));
    svd.kill_both();
    svd.start();
    wait_until("svd knows it again", PATIENCE, || running(&svd) == ["web running r3", "worker running r3"]);
    assert_eq!(deployer.status()["trial"]["release"], "r3");
    deployer.ok("confirm", json!({}));
    // Killed while it waits for r4 to boot.
    deployer.stage(&Release::new("r4").with("import_seconds", 3), "r4");
    let client = Client::new(&svd.socket()).expect("a client");
    let body = json!({ "release": "r4", "lease_seconds": 60, "fence": deployer.fence });
    std::thread::scope(|scope| {
        let lost = scope.spawn(move || client.act("/v1/apps/web/activate", Some(&body), |_| {}).err());
        wait_until("the switch goes on", PATIENCE, || svd.state("web") == "reloading");
        svd.kill_both();
        svd.start();
        assert!(matches!(lost.join(), Ok(Some(ClientError::Lost))));
    });
    wait_until("it is undone", PATIENCE, || deployer.status()["switching_to"].is_null());
    wait_until("r3 serves", PATIENCE, || running(&svd) == ["web running r3", "worker running r3"]);
    assert_eq!((current(&svd), deployer.state_of("r4")), (Some("releases/r3".into()), "staged".to_owned()));
    load.more(20);
    load.stop().assert_no_failure();
    assert!(http_get(address, "/").expect("it answers").1.contains("release=r3"));
}

#[test]
fn a_machine_that_is_started_anew_has_the_release_that_was_confirmed() {
    if needs_root() {
        return;
    }
    let Some(env) = Env::get(GUNICORN) else { return };
    let (mut svd, address) = site(&env);
    let deployer = Deployer::new(&svd, "web", 1);
    deployer.deploy(&Release::new("r1"), "r1");
    deployer.stage(&Release::new("r2"), "r2");
    deployer.ok("activate", json!({ "release": "r2", "lease_seconds": 600 }));
    assert_eq!(running(&svd), ["web running r2", "worker running r2"]);
    svd.lose_power();
    svd.start_after_a_reboot();
    wait_until("r1 serves", PATIENCE, || running(&svd) == ["web running r1", "worker running r1"]);
    assert!(http_get(address, "/").expect("it answers").1.contains("release=r1"));
    assert_eq!((current(&svd), deployer.state_of("r2")), (Some("releases/r1".into()), "staged".to_owned()));
    assert!(deployer.status()["trial"].is_null(), "{:#}", deployer.status());
}

/// Begins a switch to a release that boots for three seconds, and does something in the midst of it. Gives what became of the call.
fn in_the_switch(
    svd: &mut Svd,
    deployer: &Deployer,
    id: &str,
    holds: bool,
    done: impl FnOnce(&mut Svd),
) -> ClientError {
    deployer.stage(&Release::new(id).with("import_seconds", 3), id);
    let client = Client::new(&svd.socket()).expect("a client");
    let body = json!({ "release": id, "lease_seconds": 600, "holds": holds, "fence": deployer.fence });
    std::thread::scope(|scope| {
        let lost = scope.spawn(move || client.act("/v1/apps/web/activate", Some(&body), |_| {}).expect_err("it fails"));
        wait_until("the switch goes on", PATIENCE, || svd.state("web") == "reloading");
        done(svd);
        lost.join().expect("no panic")
    })
}

#[test]
fn a_switch_is_gone_on_with_where_the_old_code_does_not_work_any_more() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (mut svd, _) = site(&env);
    let deployer = Deployer::new(&svd, "web", 1);
    deployer.deploy(&Release::new("r1"), "r1");
    let lost = in_the_switch(&mut svd, &deployer, "r2", true, |svd| {
        svd.kill_both();
        svd.start();
    });
    assert!(matches!(lost, ClientError::Lost), "{lost}");
    wait_until("it is at its end", PATIENCE, || deployer.status()["switching_to"].is_null());
    assert_eq!(running(&svd), ["web running r2", "worker running r2"]);
    assert_eq!((current(&svd), deployer.status()["trial"]["holds"].clone()), (Some("releases/r2".into()), json!(true)));
}

#[test]
fn a_switch_whose_end_could_not_be_written_is_undone_as_soon_as_it_can() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (mut svd, _) = site(&env);
    let deployer = Deployer::new(&svd, "web", 1);
    deployer.deploy(&Release::new("r1"), "r1");
    let (apps, away) = (svd.path("state/apps"), svd.path("state/away"));
    let failed = in_the_switch(&mut svd, &deployer, "r2", false, |_| {
        // As full as a disk can be.
        fs::rename(&apps, &away).expect("moved away");
        fs::write(&apps, "").expect("a file in its place");
    });
    assert!(failed.to_string().contains("cannot write"), "{failed}");
    assert!(deployer.ask("take-back", json!({ "reason": "a test" })).is_err());
    fs::remove_file(&apps).expect("removed");
    fs::rename(&away, &apps).expect("moved back");
    wait_until("it is undone", PATIENCE * 2, || deployer.status()["switching_to"].is_null());
    assert_eq!(running(&svd), ["web running r1", "worker running r1"]);
    // Nothing is in the way of what comes next.
    deployer.ok("lock", json!({ "seconds": 60 }));
    deployer.deploy(&Release::new("r3"), "r3");
}

#[test]
fn steps_run_where_they_are_needed_and_migrations_once() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (svd, _) = site(&env);
    let deployer = Deployer::new(&svd, "web", 1);
    let dir = deployer.site.publish(&Release::new("r1"));
    fs::create_dir_all(dir.join("app/static")).expect("mkdir");
    fs::write(dir.join("app/static/a.css"), "a").expect("write");
    deployer.send(&dir);
    let stage = |id: &str| deployer.ok("stage", json!({ "release": id, "source": id }));
    let step = |id: &str, step: &str| deployer.ok("step", json!({ "release": id, "step": step }));
    let lines = |name: &str| fs::read_to_string(svd.path("srv/web").join(name)).unwrap_or_default().lines().count();
    stage("r1");
    assert!(step("r1", "migrate")["reason"].as_str().is_some_and(|why| why.starts_with("nothing is pending")));
    assert_eq!(step("r1", "static")["ran"], true, "there is nothing to compare with");
    assert_eq!(step("r1", "verify")["ran"], true);
    assert!(step("r1", "before")["reason"].as_str().is_some_and(|why| why.contains("no [deploy.before]")));
    deployer.activate("r1");
    deployer.ok("confirm", json!({}));
    fs::write(dir.join("migration"), "").expect("write");
    deployer.send(&dir);
    stage("r2");
    assert_eq!(step("r2", "static")["ran"], false, "its static files are the same");
    assert_eq!(step("r2", "migrate")["ran"], true);
    assert_eq!(step("r2", "migrate")["reason"], "it was done before in this rollout");
    assert_eq!((lines("migrated"), lines("published")), (1, 1));
    fs::write(dir.join("app/static/a.css"), "b").expect("write");
    fs::remove_file(dir.join("release.json")).expect("unlink");
    deployer.send(&dir);
    stage("r3");
    assert_eq!(step("r3", "static")["ran"], true);
    let error = deployer.fails("step", json!({ "release": "r3", "step": "verify" }));
    assert!(error.message.contains("the step verify of r3 failed: exited with 3"), "{error}");
    let kept = fs::read_to_string(svd.path("state/apps/web.output/r2.migrate.log")).expect("its output is kept");
    assert!(kept.contains("migrating\n"), "{kept}");
}

#[test]
fn releases_are_sealed_and_nothing_bad_comes_in() {
    let mut svd = Svd::new();
    fs::create_dir_all(svd.path("srv/job")).expect("the root");
    let root = svd.path("srv/job");
    svd.service(
        "job",
        &script(SLEEP, &format!("root = '{}'\n[deploy]\nkeep = 1\nshared = ['media']\n", root.display())),
    );
    svd.start();
    let deployer = Deployer::new(&svd, "job", 1);
    let upload = svd.path("upload");
    fs::create_dir_all(upload.join("lib")).expect("mkdir");
    fs::write(upload.join("lib/x.py"), "1").expect("write");
    let stage = |id: &str| {
        deployer.send(&upload);
        deployer.ask("stage", json!({ "release": id, "source": id }))
    };
    stage("r1").expect("taken");
    let release = root.join("releases/r1");
    assert_eq!(fs::read_link(release.join("media")).expect("a link"), root.join("shared/media"));
    assert_eq!(fs::metadata(release.join("lib/x.py")).expect("there").mode() & 0o022, 0, "nobody else writes it");
    symlink("/etc/passwd", upload.join("bad")).expect("symlink");
    assert!(stage("r2").expect_err("refused").message.contains("leads out of the release"));
    fs::remove_file(upload.join("bad")).expect("unlink");
    fs::write(upload.join("-rf"), "").expect("write");
    assert!(stage("r2").expect_err("refused").message.contains("programs take for an option"));
    fs::remove_file(upload.join("-rf")).expect("unlink");
    assert!(!root.join("releases/r2").exists());
    for id in ["../r2", "-x", ".."] {
        assert!(stage(id).expect_err("refused").message.contains("cannot be the name of a release"));
    }
    assert!(deployer.ask("stage", json!({ "release": "r1", "source": "other" })).is_err(), "another r1");
    // One that somebody has made by hand is not taken for ours.
    fs::create_dir(root.join("releases/r2")).expect("mkdir");
    assert!(stage("r2").expect_err("refused").message.contains("did not come by a deploy"));
    for id in ["r3", "r4", "r5", "r6"] {
        stage(id).expect("taken");
        deployer.activate(id);
        deployer.ok("confirm", json!({}));
    }
    let pruned = deployer.ok("prune", json!({}));
    assert_eq!(pruned["releases"], json!(["r1", "r3", "r4"]));
    assert!(root.join("releases/r5").exists() && !root.join("releases/r1").exists());
    assert_eq!(
        deployer.ok("append", json!({ "from": 0, "entries": [{ "planned": "x".repeat(1 << 20) }] }))["entries"],
        1
    );
    assert_eq!(deployer.status()["journal"], json!({ "rollout": "rollout-1", "number": 1u64 << 32, "entries": 1 }));
    let journal: Value = deployer.client.fetch("/v1/apps/job/journal").expect("the journal");
    assert_eq!(journal["entries"][0]["planned"].as_str().map(str::len), Some(1 << 20));
    let other = json!({ "fence": { "number": 1, "rollout": "other" }, "seconds": 60 });
    let refused = deployer.client.act("/v1/apps/job/lock", Some(&other), |_| {});
    assert!(refused.is_err_and(|e| e.to_string().contains("is locked by")));
}

/// A service that runs from an environment that svd builds, as another user where that is possible.
fn built_site(start: impl FnOnce(&mut Svd) -> &mut Svd) -> (Svd, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut svd = Svd::new();
    let root = svd.path("srv/web");
    fs::create_dir_all(root.join("releases")).expect("the root");
    let user = if nix::unistd::geteuid().is_root() { "user = 'nobody'\n" } else { "" };
    let web = format!(
        "kind = 'gunicorn'\napp = 'wsgi_app:application'\nroot = '{}'\nworkers = 1\n{user}\
         sockets.http.listen = '{address}'\n[restart]\nlimit = {{ failures = 1, then = 'never' }}\n[deploy]\nkeep = 1\n",
        root.display()
    );
    svd.service("web", &web);
    start(&mut svd);
    (svd, address)
}

#[test]
fn an_environment_is_built_once_and_sealed() {
    // Also says whether packages can be had at all.
    if Env::get(GUNICORN).is_none() {
        return;
    }
    let (svd, address) = built_site(Svd::start);
    let deployer = Deployer::new(&svd, "web", 1);
    let build = |id: &str, requirements: &str| {
        let dir = deployer.site.publish(&Release::new(id));
        fs::write(dir.join("requirements.txt"), requirements).expect("write");
        deployer.send(&dir);
        deployer.ok("stage", json!({ "release": id, "source": id }));
        deployer.ask("build", json!({ "release": id }))
    };
    let first = build("r1", "gunicorn==27.0.1\nitsdangerous\n").expect("built");
    deployer.activate("r1");
    deployer.ok("confirm", json!({}));
    assert!(http_get(address, "/").expect("it answers").1.contains("release=r1"));
    let venv = svd.path("srv/web/venv").join(first["venv"].as_str().expect("a name"));
    assert_eq!(
        fs::read_link(svd.path("srv/web/releases/r1/venv")).map(|l| l.file_name() == venv.file_name()).ok(),
        Some(true)
    );
    let own = nix::unistd::geteuid().as_raw();
    for file in ["", "bin/gunicorn", "pyvenv.cfg", "lib"] {
        let meta = fs::metadata(venv.join(file)).expect("there");
        assert_eq!((meta.uid(), meta.mode() & 0o022), (own, 0), "{file}: only root can change it");
    }
    let began = std::time::Instant::now();
    let again = build("r2", "gunicorn==27.0.1\nitsdangerous\n").expect("built");
    assert_eq!((&again["changed"], &again["venv"]), (&json!(false), &first["venv"]));
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "nothing was built");
    let other = build("r3", "gunicorn==27.0.1\n").expect("built");
    assert_eq!(other["changed"], true);
    assert_ne!(other["venv"], first["venv"]);
    let error = build("r4", "no-such-package-anywhere==77\n").expect_err("there is none");
    assert!(error.message.contains("pip install"), "{error}");
    assert!(error.last_output.iter().any(|line| line.contains("no-such-package-anywhere")), "{error:?}");
    assert_eq!(fs::read_dir(svd.path("srv/web/venv")).expect("a directory").count(), 2, "nothing of it is left");
    // One that was killed in the middle of it is built anew.
    fs::remove_file(venv.join(".airdock-complete")).expect("unlink");
    assert_eq!(build("r5", "gunicorn==27.0.1\nitsdangerous\n").expect("built")["changed"], true);
    deployer.activate("r5");
    deployer.ok("confirm", json!({}));
    assert_eq!(deployer.ok("prune", json!({}))["venvs"], 1, "r3's; r1 and r5 have the same");
}

/// Alone, what is slow is told by what was slow before; caches may fill for a minute.
#[test]
fn a_release_that_is_slow_is_taken_back() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (svd, address) = site(&env);
    fs::create_dir(svd.path("home")).expect("mkdir");
    let ship = |release: &Release, bake: &str| {
        let made = svd.app("made").publish(release);
        let file = svd.path("release.tar");
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&made).arg("-cf").arg(&file).arg(".");
        assert!(run_limited(tar, PATIENCE).status.success());
        let words = ["deploy", "web", "--artifact", "release.tar", "--bake", bake];
        deploy(&svd, &svd.path(""), None, &words)
    };
    let (code, said) = ship(&Release::new("one"), "0s");
    assert_eq!(code, Some(0), "{said}");
    let load = Load::start(address);
    load.more(150);
    let (code, said) = ship(&Release::new("two").with("wait", 0.3), "110s");
    load.stop().assert_no_failure();
    assert!(code == Some(7) && said.contains("no good: too slow"), "{said}");
    assert!(http_get(address, "/").expect("it answers").1.contains("release=one"));
}

/// svctl in a directory, with a home for what it keeps; `user`: not as root.
fn deploy(svd: &Svd, dir: &Path, user: Option<u32>, words: &[&str]) -> (Option<i32>, String) {
    let mut command = svd.svctl_command(words);
    command.current_dir(dir).env("HOME", svd.path("home")).env_remove("XDG_CACHE_HOME");
    if let Some(id) = user {
        command.uid(id).gid(id);
    }
    let output = run_limited(command, PATIENCE * 4);
    (output.status.code(), both(&output))
}

/// Commits a release's files, in a repository that is made first.
fn commit(svd: &Svd, repository: &Path, release: &Release) {
    fs::create_dir_all(repository).expect("mkdir");
    let mut git = Command::new("sh");
    let made = svd.app("made").publish(release);
    git.current_dir(repository).arg("-c").arg(
        "test -e .git || { git init -q -b main && git config user.email t@example.org && git config user.name T; }
         cp -r \"$1\"/. . && git add -A && git commit -q -m 'another release'",
    );
    git.arg("sh").arg(made);
    assert!(run_limited(git, PATIENCE).status.success());
}

/// As if another deploy had begun in each of the seconds to come, for the commit before.
fn take_names_of_this_minute(repository: &Path) {
    let mut sh = Command::new("sh");
    sh.current_dir(repository).arg("-c").arg(
        "for s in $(seq 0 59); do git tag \"$(date -u -d \"+$s sec\" +deploy-%Y-%m-%d_%H-%M-%S)\" HEAD~1 || exit; done",
    );
    assert!(run_limited(sh, PATIENCE).status.success());
}

/// The last commit is shipped by another name.
fn on_a_terminal_a_deploy_is_seen_in_place(svd: &Svd, repository: &Path) {
    let mut tar = Command::new("git");
    tar.current_dir(repository).args(["archive", "-o", "five.tar", "HEAD~2"]);
    assert!(run_limited(tar, PATIENCE).status.success());
    let mut command = svd.svctl_command(&["deploy", "web", "--artifact", "five.tar", "--bake", "8s"]);
    command.current_dir(repository).env("HOME", svd.path("home")).env_remove("XDG_CACHE_HOME");
    let mut pty = Pty::start(command, 60, 20);
    let end = pty.wait_end(PATIENCE * 2);
    let seen = pty.seen();
    for part in ["activate 0s", "on the new release", "wave 1 of 1: watched for ", "is deployed", "\x1b[1A\r\x1b[J"] {
        assert!(seen.contains(part), "{part:?} in {seen:?}");
    }
    assert!(end.success(), "{seen}");
    let after = seen.rsplit_once("\x1b[J").expect("it was erased").1;
    assert!(after.contains("is deployed") && !after.contains("watched for"), "nothing of it is left: {after:?}");
}

#[test]
fn svctl_deploys_a_commit_to_this_host() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (svd, address) = site(&env);
    let repository = svd.path("repository");
    let commit = |release: &Release| commit(&svd, &repository, release);
    fs::create_dir(svd.path("home")).expect("mkdir");
    commit(&Release::new("one"));
    let (code, said) = deploy(&svd, &repository, None, &["plan", "web"]);
    assert!(code == Some(0) && said.contains("its files are not there yet"), "{said}");
    assert_eq!(current(&svd), None, "a plan does nothing");
    let (code, said) = deploy(&svd, &repository, None, &["deploy", "web"]);
    assert_eq!(code, Some(0), "{said}");
    let load = Load::start(address);
    commit(&Release::new("two"));
    take_names_of_this_minute(&repository);
    fs::write(repository.join("wsgi_app.py"), "what is not committed is not shipped").expect("write");
    let (code, said) = deploy(&svd, &repository, None, &["deploy", "web", "--bake", "15s"]);
    assert!(code == Some(0) && said.contains("another release (T)"), "{said}");
    assert!(said.contains("… wave 1 of 1: watched for ") && !said.contains('\x1b'), "it is not silent: {said}");
    assert!(http_get(address, "/").expect("it answers").1.contains("release=two"));
    let (_, said) = deploy(&svd, &repository, None, &["deploy", "web"]);
    assert!(said.contains("There is nothing to do."), "{said}");
    commit(&Release::new("three").with("probe", "fail"));
    let (code, said) = deploy(&svd, &repository, None, &["deploy", "web"]);
    assert!(code == Some(7) && said.contains("answered 500"), "{said}");
    load.more(20);
    load.stop().assert_no_failure();
    // Alone, it is compared with what was there before; the rest of the bake time is not waited for.
    let load = Load::start(address);
    commit(&Release::new("four").with("fail_share", 0.2));
    let (code, said) = deploy(&svd, &repository, None, &["deploy", "web", "--bake", "100s"]);
    assert!(code == Some(7) && said.contains("too many errors"), "{said}");
    assert!(http_get(address, "/").expect("it answers").1.contains("release=two"));
    assert!(!load.stop().failures().is_empty());
    let (code, said) = deploy(&svd, &repository, None, &["judge", "web"]);
    assert!(code == Some(0) && said.contains("no good: too many errors") && said.contains("EVIDENCE"), "{said}");
    assert!(!said.contains("judged again"), "{said}");
    let (_, said) = deploy(&svd, &repository, None, &["judge", "web", "--false-alarm", "0.000001"]);
    assert!(said.contains("by these settings: no good: too many errors after 30s"), "{said}");
    let two = svd.json(&["releases", "web"])["confirmed"].as_str().expect("a release").to_owned();
    let (_, said) = deploy(&svd, &repository, None, &["judge", "web", &two, "--json"]);
    let said: serde_json::Value = serde_json::from_str(&said).expect("a document");
    assert!(said["release"] == two.as_str() && said["verdicts"][0]["agrees"] == true, "an earlier one: {said}");
    svd.ok(&["lock", "web", "-m", "no deploys on Fridays"]);
    let (code, said) = deploy(&svd, &repository, None, &["deploy", "web"]);
    assert!(code == Some(9) && said.contains("no deploys on Fridays"), "{said}");
    svd.ok(&["unlock", "web"]);
    svd.ok(&["rollback", "web"]);
    assert!(http_get(address, "/").expect("it answers").1.contains("release=one"));
    on_a_terminal_a_deploy_is_seen_in_place(&svd, &repository);
}

#[test]
fn whoever_may_deploy_needs_not_be_root() {
    if support::plain::needs_root() {
        return;
    }
    let mut svd = Svd::new();
    fs::create_dir_all(svd.path("srv/job")).expect("the root");
    let root = svd.path("srv/job");
    svd.service(
        "job",
        &script("exec sh {release}/run", &format!("root = '{}'\n[deploy]\nbuild = 'none'\n", root.display())),
    );
    let rule = |verbs: &str| format!("[[access]]\nusers = ['nobody']\nverbs = [{verbs}]\nservices = ['job']\n");
    svd.config(&rule("'*'"));
    svd.start();
    let dir = svd.path("home");
    fs::create_dir(&dir).expect("mkdir");
    std::os::unix::fs::chown(&dir, Some(NOBODY), Some(NOBODY)).expect("chown");
    fs::write(dir.join("run"), "exec sleep 1000").expect("write");
    let artifact = ["--artifact", "run"];
    let words = |verb: &'static str| [&[verb, "job"][..], &artifact].concat();
    let (code, said) = deploy(&svd, &dir, Some(NOBODY), &words("deploy"));
    assert!(code == Some(5) && said.contains("You may not deploy job"), "everything but what must be named: {said}");
    assert!(fs::read_dir(&root).expect("a directory").next().is_none(), "nothing was done");
    svd.config(&rule("'*', 'deploy'"));
    svd.ok(&["update"]);
    let (code, said) = deploy(&svd, &dir, Some(NOBODY), &words("deploy"));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(svd.state("job"), "running");
    let release = fs::read_link(root.join("current")).expect("a link");
    for path in [root.join(&release), root.join(release).join("run")] {
        let meta = fs::metadata(path).expect("there");
        assert_eq!((meta.uid(), meta.mode() & 0o022), (0, 0), "root's alone");
    }
    let history = svd.ok(&["history", "job"]);
    assert!(history.contains("nobody"), "{history}");
}
