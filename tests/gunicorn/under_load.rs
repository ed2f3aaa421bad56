//! Reloads in a row under load. Times are printed; the strict figures are those of `benches/reload.rs`.

use super::support::load::Plan;
use super::support::{Env, Kind, Release, Report, alone};
use super::{GUNICORN, Site, listening_inode};
use std::time::{Duration, Instant};

/// New code must be everywhere this soon after the commit was reported; the aim is 100 ms, the rest is for a machine
/// that is busy with other things.
const LATE: Duration = Duration::from_millis(1500);
/// Gaps below this are the machine's own.
const GAP: Duration = Duration::from_millis(750);

struct Figures {
    report: Report,
    /// From the last to the first good answer, without and with reloads.
    calm: Duration,
    /// Of each reload: until svctl returned, and until every request met the new code.
    reloads: Vec<(Duration, Duration)>,
}

fn reloads(env: &Env, class: &str, count: usize) -> Figures {
    let _alone = alone();
    let site = Site::start(env, class, "");
    let socket = listening_inode(site.address);
    let load = Plan::new(site.address).slow(1, Duration::from_millis(400)).start();
    load.more(300);
    let calm_until = Instant::now();
    let mut commands = Vec::new();
    for n in 1..=count {
        let release = format!("r{n}");
        site.app.ship(&Release::new(&release).with("import_seconds", 0.2));
        let command = Instant::now();
        site.svd.ok(&["reload", "web"]);
        commands.push((release, command, Instant::now()));
        load.more(60);
    }
    assert_eq!(listening_inode(site.address), socket, "it is the same socket through all reloads");
    let report = load.stop();
    let end = Instant::now();
    let until = commands.iter().skip(1).map(|c| c.1).chain([end]);
    let reloads = commands
        .iter()
        .zip(until)
        .map(|((release, command, done), until)| (*done - *command, report.everywhere(release, *command, until)))
        .collect();
    let first = report.records.first().map_or(end, |r| r.begun);
    let calm = report.between(first, calm_until).longest_gap();
    Figures { report, calm, reloads }
}

fn print(name: &str, figures: &Figures) {
    println!("{name}: {}", figures.report.summary());
    println!("{name}: longest gap before the first reload {:.0?}", figures.calm);
    for (n, (svctl, everywhere)) in figures.reloads.iter().enumerate() {
        println!(
            "{name}: reload {}: svctl returned after {svctl:.0?}, new code everywhere after {everywhere:.0?}",
            n + 1
        );
    }
}

fn no_request_fails(class: &str) {
    let Some(env) = Env::get(GUNICORN) else { return };
    let figures = reloads(&env, class, 10);
    print(class, &figures);
    let report = &figures.report;
    report.assert_no_failure();
    assert_eq!(report.releases().len(), 11, "each release has answered: {:?}", report.releases());
    assert!(report.count(Kind::Slow) > 5, "too few slow requests were in flight");
    if class != "sync" {
        assert!(report.count(Kind::Kept) > 100, "too few requests on kept connections");
        assert_eq!(report.stale(), 0, "kept connections were closed under a request: {}", report.summary());
    }
    for (svctl, everywhere) in &figures.reloads {
        assert!(*everywhere <= *svctl + LATE, "old code answered {everywhere:?} after a command that took {svctl:?}");
    }
    let gap = report.longest_gap();
    assert!(gap <= GAP.max(4 * figures.calm), "a gap of {gap:?}; {:?} without a reload", figures.calm);
}

#[test]
fn ten_reloads_of_sync_workers_fail_no_request() {
    no_request_fails("sync");
}

#[test]
fn ten_reloads_of_gthread_workers_fail_no_request() {
    no_request_fails("gthread");
}

#[test]
fn ten_reloads_of_gevent_workers_fail_no_request() {
    no_request_fails("gevent");
}

/// Their own faults remain, so that only what the launcher is known to mend is asserted.
fn older(version: &str) {
    let Some(env) = Env::get(version) else { return };
    for class in ["sync", "gthread"] {
        let figures = reloads(&env, class, 3);
        print(&format!("{version} {class}"), &figures);
        let report = &figures.report;
        let new = report.failures().into_iter().filter(|r| r.kind != Kind::Kept).count();
        assert_eq!(new, 0, "{version} {class}: failures on new connections: {}", report.summary());
        assert_eq!(report.releases().len(), 4, "each release has answered: {:?}", report.releases());
    }
}

#[test]
fn gunicorn_23_reloads() {
    older("gunicorn-23.0.0");
}

#[test]
fn gunicorn_20_1_reloads() {
    older("gunicorn-20.1.0");
}
