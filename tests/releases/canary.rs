//! `svctl reload --canary`: a part of the new release beside the old generation, judged, then all of it or none.

use super::GUNICORN;
use super::standby::generation;
use super::support::app::Release;
use super::support::env::Env;
use super::support::load::{Load, Outcome};
use super::support::svd::both;
use super::support::{PATIENCE, Svd, alone, free_port, http_get, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{Ipv4Addr, SocketAddr};

/// `web` runs `r1`, which is good.
fn site(env: &Env) -> (Svd, SocketAddr) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let mut svd = Svd::new();
    let app = svd.app("web");
    app.ship(&Release::new("r1"));
    let text = format!(
        "kind = 'gunicorn'\napp = 'wsgi_app:application'\nroot = '{}'\npython = '{}'\nworkers = 2\n\
         sockets.http.listen = '{address}'\n[ready]\nprobe = {{ path = '/healthz' }}\n",
        app.root.display(),
        env.python().display()
    );
    svd.service("web", &text);
    svd.start();
    svd.wait_state("web", "running");
    (svd, address)
}

#[test]
fn a_canary_that_is_no_worse_is_followed_by_all_of_it() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let (svd, address) = site(&env);
    svd.app("web").ship(&Release::new("r2"));
    let load = Load::start(address);
    let reload = svd.svctl_beside(&["reload", "web", "--canary", "1", "--bake", "20s"]);
    let canary = wait_for("the canary serves", PATIENCE, || {
        generation(&svd, "canary").filter(|g| g["workers"][0]["state"] == "running")
    });
    assert_eq!((canary["release"].as_str(), canary["gunicorn_workers"].as_u64()), (Some("r2"), Some(1)));
    assert_eq!(svd.status("web")["release"], "r1", "it is not what serves");
    let output = reload.finish();
    let said = both(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("the canary is no worse") && said.contains("s to go"), "{said}");
    assert_eq!(svd.status("web")["release"], "r2");
    assert!(generation(&svd, "canary").is_none());
    load.more(50);
    let report = load.stop();
    report.assert_no_failure();
    println!("{said}\n{}; {:?}", report.summary(), report.releases());
}

#[test]
fn a_canary_that_answers_errors_is_taken_back() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let (svd, address) = site(&env);
    svd.app("web").ship(&Release::new("r2").with("fail_share", 0.2));
    let load = Load::start(address);
    let output = svd.svctl(&["reload", "web", "--canary", "1", "--bake", "5m", "--json"]);
    let said = both(&output);
    assert_eq!(output.status.code(), Some(7), "{said}");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
    assert!(told["why"].as_str().is_some_and(|why| why.contains("more errors")), "{told:#}");
    wait_until("it is gone", PATIENCE, || generation(&svd, "canary").is_none());
    assert_eq!((&svd.status("web")["release"], &svd.status("web")["restarts"]), (&"r1".into(), &0.into()));
    let report = load.stop();
    let failed = |o: &Outcome| !matches!(o, Outcome::Ok(_));
    let share =
        report.failures().iter().filter(|r| failed(&r.outcome)).count() as f64 / report.records.len().max(1) as f64;
    println!("{said}\n{}; {share:.3} of all requests failed meanwhile", report.summary());
    // It had one worker of three.
    assert!(share < 0.15, "{share}");
    for _ in 0..50 {
        assert!(http_get(address, "/").expect("it answers").1.contains("release=r1"));
    }
}

#[test]
fn a_canary_that_nobody_decides_about_goes_by_itself() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (mut svd, address) = site(&env);
    svd.app("web").ship(&Release::new("r2"));
    let load = Load::start(address);
    let client = airdock::api::client::Client::new(&svd.socket()).expect("a client");
    let begin = |stay: u64| {
        let body = serde_json::json!({ "canary": { "workers": 1, "stay_seconds": stay } });
        client.act("/v1/services/web/reload", Some(&body), |_| {}).expect("it serves");
    };
    begin(600);
    let before = generation(&svd, "canary").expect("it serves");
    // A death of svd is nothing to it; it goes on answering.
    svd.kill_both();
    svd.start();
    let after = generation(&svd, "canary").expect("it is still there");
    assert_eq!((&after["number"], &after["workers"][0]["pid"]), (&before["number"], &before["workers"][0]["pid"]));
    wait_until("it answers", PATIENCE, || http_get(address, "/").is_ok_and(|(_, body)| body.contains("release=r2")));
    // Nor is its own end anything to the others, and it is not started again.
    let pid = after["workers"][0]["pid"].as_i64().expect("a pid") as i32;
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("it runs");
    wait_until("it is given up", PATIENCE, || generation(&svd, "canary").is_none());
    begin(1);
    wait_until("its time is over", PATIENCE, || {
        svd.ok(&["events"]).contains("the canary, is given up: its time is over")
    });
    assert_eq!((&svd.status("web")["release"], &svd.status("web")["restarts"]), (&"r1".into(), &0.into()));
    // One that does not boot changes nothing.
    svd.app("web").ship(&Release::new("r3").with("import", "raise"));
    let said = svd.fails(&["reload", "web", "--canary", "1"]);
    assert!(said.contains("the canary, is given up") && said.contains("release r3 is broken"), "{said}");
    load.more(50);
    load.stop().assert_no_failure();
}
