//! What has grown too large is replaced, under load: one of gunicorn's workers alone, or the whole generation.

use super::support::{Env, PATIENCE, Release, alone, http_get, load::Load, wait_until};
use super::{GUNICORN, Site, workers_of};
use airdock::sys::process::inner_pid;
use std::collections::BTreeSet;
use std::time::Duration;

fn workers(site: &Site) -> BTreeSet<i32> {
    workers_of(site.svd.main_pid("web")).into_iter().collect()
}

/// The pid of the worker that is a hundred megabytes larger from now on.
fn grow(site: &Site) -> i32 {
    let (status, body) = http_get(site.address, "/grow").expect("the service answers");
    assert_eq!(status, 200, "{body}");
    body.trim().rsplit('=').next().and_then(|pid| pid.parse().ok()).expect("a pid")
}

fn events(site: &Site) -> String {
    site.svd.ok(&["events"])
}

fn one_worker_alone(class: &str, more: &str) {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, class, &format!("[limits]\nworker_memory = '90MiB'\n{more}"));
    let (master, before) = (site.svd.main_pid("web"), workers(&site));
    assert_eq!(before.len(), 3);
    let load = Load::start(site.address);
    load.more(100);
    let said = grow(&site);
    // It may have numbers of its own.
    let large = before.iter().copied().find(|pid| inner_pid(*pid) == Some(said)).unwrap_or(said);
    wait_until("it is replaced", 2 * PATIENCE, || {
        events(&site).contains(&format!("gunicorn worker {large} was replaced"))
    });
    load.more(300);
    wait_until("there are as many as before", PATIENCE, || workers(&site).len() == 3);
    let after = workers(&site);
    let others: BTreeSet<i32> = before.iter().copied().filter(|pid| *pid != large).collect();
    assert!(!after.contains(&large) && others.is_subset(&after), "{before:?}, {large} of them large, then {after:?}");
    assert_eq!(site.svd.main_pid("web"), master, "the same master");
    // The master counts them as before, too.
    load.more(300);
    let report = load.stop();
    println!("{class}: {}", report.summary());
    report.assert_no_failure();
    assert_eq!(workers(&site), after);
    assert!(events(&site).contains("above limits.worker_memory 90MiB"), "{}", events(&site));
    site.svd.ok(&["scale", "web", "2"]);
    wait_until("it is scaled as ever", PATIENCE, || workers(&site).len() == 2);
}

#[test]
fn a_large_worker_is_replaced_alone_sync() {
    one_worker_alone("sync", "");
}

#[test]
fn a_large_worker_is_replaced_alone_gthread() {
    one_worker_alone("gthread", "");
}

#[test]
fn a_large_worker_is_replaced_alone_where_it_has_a_number_of_its_own() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: needs root");
    }
    one_worker_alone("gthread", "[isolation]\nprivate_pids = true\n");
}

/// No other is replaced while one does not go.
#[test]
fn a_large_worker_that_does_not_go_is_told_of() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "gthread", "[stop]\ngrace = '1s'\n[limits]\nworker_memory = '90MiB'\n");
    let large = grow(&site);
    let send = |signal| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(large), signal).expect("a signal");
    };
    send(nix::sys::signal::Signal::SIGSTOP);
    let told = format!("gunicorn worker {large} was told to end, as it is too large, and has not within 1s");
    wait_until("it is said", 2 * PATIENCE, || events(&site).contains(&told));
    send(nix::sys::signal::Signal::SIGCONT);
    let replaced = format!("gunicorn worker {large} was replaced");
    wait_until("it is replaced", PATIENCE, || events(&site).contains(&replaced));
    assert_eq!(events(&site).matches(&told).count(), 1);
}

#[test]
fn a_generation_that_is_too_large_is_replaced_once() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "gthread", "");
    // Limits that come later count for what runs.
    let file = site.svd.path("etc/conf.d/web.toml");
    let text = std::fs::read_to_string(&file).expect("its file");
    std::fs::write(&file, format!("{text}\n[limits]\nrestart_above = '180MiB'\n")).expect("its file");
    let master = site.svd.main_pid("web");
    site.svd.ok(&["update"]);
    assert_eq!(site.svd.main_pid("web"), master);
    let load = Load::start(site.address);
    load.more(100);
    grow(&site);
    grow(&site);
    let new = || site.svd.status("web")["generation"] == 2 && site.svd.state("web") == "running";
    wait_until("another generation serves", 2 * PATIENCE, new);
    load.more(300);
    let report = load.stop();
    println!("{}", report.summary());
    report.assert_no_failure();
    let told = events(&site);
    assert!(
        told.contains("is replaced by a fresh generation: it uses ")
            && told.contains("above limits.restart_above 180MiB"),
        "{told}"
    );
    // One that does not help is not tried again and again.
    site.reload_to(&Release::new("large").with("grown", 100));
    let generation = || site.svd.status("web")["generation"].as_u64();
    let first = generation();
    std::thread::sleep(Duration::from_secs(20));
    assert_eq!(generation(), first, "the pause after the last time is not over");
}
