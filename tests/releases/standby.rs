//! A copy of the old release that stays booted behind the gate, and ways back to it without a boot.

use super::support::app::Release;
use super::support::env::Env;
use super::support::load::Load;
use super::support::{PATIENCE, Svd, alone, free_port, http_get, wait_for, wait_until};
use super::{Deployer, GUNICORN};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// What a boot takes at least.
const BOOT: Duration = Duration::from_secs(3);

fn web(env: &Env, svd: &Svd, address: SocketAddr, standby: &str) -> String {
    let (root, python) = (svd.path("srv/web"), env.python());
    std::fs::create_dir_all(root.join("releases")).expect("the root");
    format!(
        "kind = 'gunicorn'\napp = 'wsgi_app:application'\nroot = '{}'\npython = '{}'\nworkers = 2\n\
         sockets.http.listen = '{address}'\n[ready]\nprobe = {{ path = '/healthz' }}\n\
         [deploy]\nbuild = 'none'\nstandby = '{standby}'\n",
        root.display(),
        python.display()
    )
}

fn site(env: &Env) -> (Svd, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut svd = Svd::new();
    let text = web(env, &svd, address, "10m");
    svd.service("web", &text);
    svd.start();
    (svd, address)
}

/// Whose boot takes a while.
fn slow(id: &str) -> Release {
    Release::new(id).with("import_seconds", BOOT.as_secs())
}

pub fn generation(svd: &Svd, role: &str) -> Option<Value> {
    let status = svd.status("web");
    status["generations"].as_array().expect("a list").iter().find(|g| g["role"] == role).cloned()
}

fn number(generation: &Value) -> u64 {
    generation["number"].as_u64().expect("a number")
}

fn pid(generation: &Value) -> i32 {
    generation["workers"][0]["pid"].as_i64().expect("a pid") as i32
}

/// Once it has booted.
fn standby(svd: &Svd, release: &str) -> Value {
    let standby = wait_for("a standby has booted", PATIENCE, || {
        generation(svd, "standby").filter(|g| g["workers"][0]["state"] == "running")
    });
    assert_eq!((standby["release"].as_str(), &standby["gunicorn_workers"]), (Some(release), &json!(2)), "{standby:#}");
    standby
}

/// The standby, and nothing that began after it, serves.
#[track_caller]
fn took_over(svd: &Svd, standby: &Value) {
    let committed = generation(svd, "committed").expect("it serves");
    assert_eq!((number(&committed), pid(&committed)), (number(standby), pid(standby)), "{committed:#}");
    let status = svd.status("web");
    let last = status["generations"].as_array().expect("a list").iter().map(number).max();
    assert_eq!(last, Some(number(standby)), "something was booted: {status:#}");
}

#[test]
fn a_way_back_to_a_standby_needs_no_boot_and_fails_no_request() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let (svd, address) = site(&env);
    let deployer = Deployer::new(&svd, "web", 1);
    deployer.deploy(&slow("r1"), "r1");
    assert!(generation(&svd, "standby").is_none(), "there was nothing before");
    deployer.deploy(&Release::new("r2"), "r2");
    let kept = standby(&svd, "r1");
    assert!(kept["ends_seconds"].as_u64().is_some_and(|left| (500..=600).contains(&left)), "{kept:#}");
    assert!(svd.ok(&["status", "web"]).contains("standby, release r1"));
    deployer.ok("unlock", json!({}));
    let load = Load::start(address);
    load.more(200);
    let asked = Instant::now();
    svd.ok(&["rollback", "web"]);
    let answered = asked.elapsed();
    load.more(200);
    let (report, end) = (load.stop(), Instant::now());
    report.assert_no_failure();
    let everywhere = report.everywhere("r1", asked, end);
    println!(
        "rollback: answered after {answered:.0?}, old code everywhere after {everywhere:.0?}; {}",
        report.summary()
    );
    // Before the way back nobody met it, and afterwards nobody meets anything else.
    assert!(report.between(report.begun(), asked).releases().keys().all(|release| release == "r2"));
    assert!(everywhere < BOOT && answered < BOOT, "it takes as long as a boot: {everywhere:?}, {answered:?}");
    took_over(&svd, &kept);
    assert!(generation(&svd, "standby").is_none(), "a release that was left is not kept");
}

#[test]
fn a_standby_outlives_svd_and_its_own_end_is_nobodys_matter() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (mut svd, address) = site(&env);
    let deployer = Deployer::new(&svd, "web", 1);
    deployer.deploy(&slow("r1"), "r1");
    let load = Load::start(address);
    // With a configuration of its own, which goes back as well.
    let more = "[environment]\nCOLOUR = 'red'\n";
    svd.service("web", &(web(&env, &svd, address, "10m") + more));
    deployer.stage(&Release::new("r2"), "r2");
    deployer.activate("r2");
    let kept = standby(&svd, "r1");
    assert!(http_get(address, "/environ").expect("it answers").1.contains("COLOUR"));
    svd.kill_both();
    svd.start();
    let again = standby(&svd, "r1");
    assert_eq!((number(&again), pid(&again)), (number(&kept), pid(&kept)));
    assert!(again["ends_seconds"].as_u64() <= kept["ends_seconds"].as_u64(), "its time goes on");
    deployer.ok("take-back", json!({ "reason": "it is slow", "failed": true }));
    took_over(&svd, &kept);
    assert!(!http_get(address, "/environ").expect("it answers").1.contains("COLOUR"));
    // One that ends is not started again, and the way back boots.
    deployer.stage(&Release::new("r3"), "r3");
    deployer.activate("r3");
    let killed = standby(&svd, "r1");
    kill(Pid::from_raw(pid(&killed)), Signal::SIGKILL).expect("it runs");
    wait_until("it is given up", PATIENCE, || generation(&svd, "standby").is_none());
    let status = svd.status("web");
    assert_eq!(
        (&status["release"], &status["restarts"], &status["state"]),
        (&json!("r3"), &json!(0), &json!("running"))
    );
    deployer.ok("take-back", json!({ "reason": "it is slow", "failed": true }));
    let booted = generation(&svd, "committed").expect("it serves");
    assert!(number(&booted) > number(&killed) && booted["release"] == "r1", "{booted:#}");
    load.more(50);
    load.stop().assert_no_failure();
}

#[test]
fn a_standby_makes_room_for_a_reload_and_ends_with_its_time() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (svd, address) = site(&env);
    let deployer = Deployer::new(&svd, "web", 1);
    deployer.deploy(&Release::new("r1"), "r1");
    deployer.deploy(&Release::new("r2"), "r2");
    let kept = standby(&svd, "r1");
    svd.ok(&["reload", "web"]);
    let committed = generation(&svd, "committed").expect("it serves");
    assert!(number(&committed) > number(&kept) && committed["release"] == "r2", "{committed:#}");
    assert!(generation(&svd, "standby").is_none(), "an ordinary reload keeps nothing");
    // The time in force is that of the moment.
    svd.service("web", &web(&env, &svd, address, "2s"));
    svd.ok(&["update"]);
    deployer.deploy(&Release::new("r3"), "r3");
    wait_until("its time is over", PATIENCE, || {
        svd.ok(&["events"]).contains("the standby, is given up: its time is over")
    });
    assert!(generation(&svd, "standby").is_none());
    // What boots longer than that was never of use; a stop takes one along that boots.
    svd.service("web", &web(&env, &svd, address, "10m"));
    svd.ok(&["update"]);
    deployer.deploy(&slow("r4"), "r4");
    deployer.deploy(&Release::new("r5"), "r5");
    assert!(generation(&svd, "standby").is_some_and(|g| g["release"] == "r4"));
    svd.ok(&["stop", "web"]);
    assert_eq!(svd.status("web")["generations"], json!([]));
}
