//! Scaling, draining, counting, and deaths.

use super::support::env::check_metrics;
use super::support::svd::both;
use super::support::{Env, Load, PATIENCE, Release, alone, http_get, wait_for, wait_until};
use super::{GUNICORN, Site, kill_hard, listening_inode, workers_of};
use airdock::sys::process::ProcStat;
use serde_json::Value;

#[test]
fn scale_changes_the_number_of_workers_without_a_restart() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", "");
    let master = site.svd.main_pid("web");
    let load = Load::start(site.address);
    for count in [6, 2] {
        site.svd.ok(&["scale", "web", &count.to_string()]);
        assert_eq!(workers_of(master).len(), count, "it answers when all have booted, or are gone");
    }
    assert_eq!(site.svd.main_pid("web"), master, "the master is the same");
    load.more(30);
    // The next generation keeps the number.
    site.reload_to(&Release::new("r1"));
    assert_eq!(workers_of(site.svd.main_pid("web")).len(), 2);
    load.more(30);
    load.stop().assert_no_failure();
}

#[test]
fn a_scale_meets_a_reload_and_the_file() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", "");
    let count = || workers_of(site.svd.main_pid("web")).len();
    site.app.ship(&Release::new("slow").with("import_seconds", 2));
    let reload = site.svd.svctl_beside(&["reload", "web"]);
    site.svd.wait_state("web", "reloading");
    site.svd.ok(&["scale", "web", "5"]);
    assert_eq!((count(), site.answers().as_str()), (5, "r0"), "the old generation, as it serves");
    let said = reload.finish();
    assert!(said.status.success(), "{}", both(&said));
    site.comes_up("slow");
    wait_until("the new generation has as many", PATIENCE, || count() == 5);
    let shown = || both(&site.svd.svctl(&["status", "web"]));
    wait_until("all of them are ready, and shown", PATIENCE, || shown().contains("gunicorn workers 5"));
    assert_eq!(site.svd.health("web").1["generations"][0]["gunicorn_workers"], 5, "also for whoever has only this");
    // Whoever changes the file says it later.
    site.app.ship(&Release::new("quick"));
    let file = std::fs::read_to_string(site.svd.path("etc/conf.d/web.toml")).expect("its file");
    site.svd.service("web", &file.replace("workers = 3", "workers = 4"));
    site.svd.ok(&["update"]);
    assert_eq!(count(), 4);
}

#[test]
fn scale_that_takes_too_long_is_told_and_goes_on() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", "[ready]\ntimeout = '3s'\n");
    let master = site.svd.main_pid("web");
    let before = workers_of(master);
    // What starts from now on hangs in its import.
    site.app.publish(&Release::new("r0").with("import", "hang"));
    let text = site.svd.fails(&["scale", "web", "4"]);
    assert!(text.contains("3 workers instead of 4 after 3s") && text.contains("it goes on"), "{text}");
    site.app.publish(&Release::new("r0"));
    let hung: Vec<i32> = workers_of(master).into_iter().filter(|pid| !before.contains(pid)).collect();
    assert_eq!(hung.len(), 1);
    kill_hard(hung[0]);
    wait_until("the fourth has booted", PATIENCE, || site.svd.ok(&["events"]).contains("gunicorn has 4 workers"));
    assert_eq!((workers_of(master).len(), site.answers().as_str()), (4, "r0"));
}

#[test]
fn drain_turns_health_and_lets_the_service_answer() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", "");
    assert_eq!(site.svd.health("web").0, 200);
    site.svd.ok(&["drain", "web"]);
    let (status, health) = site.svd.health("web");
    assert_eq!((status, &health["draining"]), (503, &Value::Bool(true)));
    assert_eq!(http_get(site.svd.public, "/health").expect("an answer").0, 503);
    assert_eq!(site.answers(), "r0");
    // A reload does not put it back.
    site.reload_to(&Release::new("r1"));
    site.comes_up("r1");
    assert_eq!(site.svd.health("web").0, 503);
    site.svd.ok(&["undrain", "web"]);
    assert_eq!(site.svd.health("web").0, 200);
    assert_eq!(http_get(site.svd.public, "/health").expect("an answer").0, 200);
    site.svd.ok(&["stop", "web"]);
    assert_eq!(site.svd.health("web").0, 503);
}

fn traffic(health: &Value, role: &str) -> Value {
    let generations = health["generations"].as_array().cloned().unwrap_or_default();
    generations.into_iter().find(|g| g["role"] == role).map_or(Value::Null, |g| g["traffic"].clone())
}

#[test]
fn health_counts_requests_and_errors_without_svds_own_probes() {
    let Some(env) = Env::get(GUNICORN) else { return };
    for class in ["sync", "gthread", "gevent"] {
        let _alone = alone();
        let more =
            "[ready]\nprobe = { path = \"/healthz\" }\n[health]\nprobe = { path = \"/healthz\" }\ninterval = \"1s\"";
        let site = Site::start(&env, class, more);
        for _ in 0..7 {
            site.answers();
        }
        assert_eq!(http_get(site.address, "/slow?seconds=0.2").expect("an answer").0, 200);
        for path in ["/error", "/raise"] {
            assert_eq!(http_get(site.address, path).expect("an answer").0, 500);
        }
        wait_until("svd has probed", PATIENCE, || site.svd.health("web").1["health"] == "healthy");
        // gunicorn counts behind its answer.
        let traffic = wait_for("all are counted", PATIENCE, || {
            let traffic = traffic(&site.svd.health("web").1, "committed");
            (traffic["requests"].as_u64()? >= 10).then_some(traffic)
        });
        assert_eq!((&traffic["requests"], &traffic["errors_5xx"]), (&10.into(), &2.into()), "{class}: {traffic}");
        assert!(traffic["latency_ms"]["p50"].as_f64() > Some(0.0), "{class}: {traffic}");
        assert!(traffic["slow"][1].as_u64() >= Some(1) && traffic["slow"][10] == 0, "{class}: {traffic}");
        let metrics = http_get(site.svd.public, "/metrics").expect("metrics").1;
        check_metrics(&metrics);
        assert!(metrics.lines().any(|l| l.contains("requests_total") && l.ends_with(" 10")), "{class}: {metrics}");
    }
}

#[test]
fn a_worker_killed_with_a_request_open_is_counted_and_replaced() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::with(&env, |_| "workers = 1".to_owned());
    let note = site.svd.path("slow-has-begun");
    site.reload_to(&Release::new("r1").with("slow_note", note.to_str().expect("a path")));
    site.comes_up("r1");
    let master = site.svd.main_pid("web");
    let worker = workers_of(master)[0];
    let address = site.address;
    let asked = std::thread::spawn(move || http_get(address, "/slow?seconds=20"));
    // Killed before the request has begun, it would count nothing.
    wait_until("the request has begun", PATIENCE, || note.exists());
    kill_hard(worker);
    assert!(asked.join().expect("the client").is_err(), "a killed worker does not answer");
    wait_until("it is counted", PATIENCE, || traffic(&site.svd.health("web").1, "committed")["died_open"] == 1);
    assert_eq!(site.answers(), "r1");
    assert_eq!(site.svd.main_pid("web"), master, "gunicorn has replaced it itself");
}

#[test]
fn a_killed_master_is_replaced_and_its_workers_end() {
    let Some(env) = Env::get(GUNICORN) else { return };
    for class in ["sync", "gthread", "gevent"] {
        let _alone = alone();
        let site = Site::start(&env, class, "");
        let master = site.svd.main_pid("web");
        let workers = workers_of(master);
        let socket = listening_inode(site.address);
        assert_eq!(workers.len(), 3);
        kill_hard(master);
        wait_until("the old workers have ended", PATIENCE, || workers.iter().all(|w| ProcStat::read(*w).is_none()));
        let new = wait_for("a new master runs", PATIENCE, || {
            let status = site.svd.status("web");
            let pid = status["pid"].as_i64()?;
            (status["state"] == "running" && pid != i64::from(master)).then_some(pid)
        });
        assert_eq!(site.answers(), "r0");
        assert_eq!(workers_of(new as i32).len(), 3, "{class}");
        assert_eq!(site.svd.status("web")["restarts"], 1, "{class}");
        assert_eq!(listening_inode(site.address), socket, "{class}: it is the same socket");
    }
}

#[test]
fn each_process_is_seen_with_what_it_uses() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let site = Site::start(&env, "gthread", "");
    let master = site.svd.main_pid("web");
    for _ in 0..50 {
        site.answers();
    }
    let seen = site.svd.json(&["status", "web", "--workers"]);
    let processes = seen["processes"].as_array().expect("processes");
    let parts = |part: &str| processes.iter().filter(|p| p["part"] == part).collect::<Vec<_>>();
    assert!(parts("master").len() == 1 && parts("master")[0]["pid"] == master, "{seen}");
    let workers = parts("worker");
    let pids: Vec<i32> = workers.iter().filter_map(|w| i32::try_from(w["pid"].as_i64()?).ok()).collect();
    let mut below = super::workers_of(master);
    below.sort_unstable();
    assert_eq!(pids, below, "{seen}");
    let sum = |key: &str| workers.iter().filter_map(|w| w[key].as_u64()).sum::<u64>();
    assert!(sum("requests") >= 50 && sum("memory_bytes") > 3 << 20 && sum("threads") >= 3, "{seen}");
    assert!(sum("open_files") > 15 && workers.iter().all(|w| w["cpu_percent"].is_number()), "{seen}");
    let text = site.svd.ok(&["status", "web", "--workers"]);
    assert!(text.starts_with("PID") || text.trim_start().starts_with("PID"), "{text}");
    assert!(text.contains("4 processes, ") && text.matches(" worker ").count() == 3, "{text}");
    site.svd.ok(&["stop", "web"]);
    let stopped = site.svd.svctl(&["status", "web", "--workers"]);
    assert_eq!((stopped.status.code(), &*stopped.stdout), (Some(3), &b"web has no processes.\n"[..]));
    assert_eq!(site.svd.svctl(&["status", "--workers"]).status.code(), Some(2));
}
