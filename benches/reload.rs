//! What a reload costs those who use the service: ten in a row under load, for each of gunicorn's worker classes.
//!
//! `cargo bench --bench reload [-- CLASS...]`; `RELOAD_GUNICORN` names the environment (default `gunicorn-27.0.1`, see
//! `tests/env/prepare.py`), `RELOAD_COUNT` how many reloads, `RELOAD_IMPORT` how long the application takes to import
//! (seconds, default 0.2).
//!
//! Under the same load, in turns: nothing happens (`calm`); the same gunicorn boots beside the service without svd, which
//! is the application's own boot time and what a boot takes from the machine (`boots`, `boot`); a reload. `everywhere`:
//! from the command to the begin of the last request that met old code; `beyond boot`: that, less the boot before it.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

#[path = "../tests/support/mod.rs"]
mod support;

use airdock::sys::process::descendants;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::load::Plan;
use support::svd::quoted;
use support::{App, Env, Kind, PATIENCE, Release, Report, Svd, free_port, wait_until};

const WORKERS: usize = 3;

fn setting<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn main() {
    // `cargo test` runs benches once, too: it is no place to measure.
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !args.iter().any(|a| a == "--bench") {
        return;
    }
    let mut classes: Vec<&str> = args.iter().map(|a| &**a).filter(|a| !a.starts_with('-')).collect();
    if classes.is_empty() {
        classes = vec!["sync", "gthread", "gevent"];
    }
    let Some(env) = Env::get(&setting("RELOAD_GUNICORN", "gunicorn-27.0.1".to_owned())) else { return };
    let count = setting("RELOAD_COUNT", 10);
    println!("{}, {count} reloads, times in milliseconds", env.name);
    println!(
        "{:<8} {:>8} {:>6} {:>5} {:>6} {:>6} | {:>5} {:>6} {:>7} | {:>11} {:>11} {:>11} {:>11}",
        "class",
        "requests",
        "kept",
        "slow",
        "failed",
        "stale",
        "calm",
        "boots",
        "reloads",
        "boot",
        "svctl",
        "everywhere",
        "beyond boot"
    );
    println!("{:<44}| {:^20} | {:^47}", "", "longest gap", "median (longest)");
    for class in classes {
        row(&env, class, count);
    }
}

fn row(env: &Env, class: &str, count: usize) {
    let (mut svd, app, address) = site(env, class);
    svd.start();
    svd.wait_state("web", "running");
    let load = Plan::new(address).slow(1, Duration::from_millis(400)).start();
    load.more(2000);
    let mut rounds = Vec::new();
    for n in 1..=count {
        let began = Instant::now();
        let boot = bare_boot(env, &app, class, n);
        app.ship(&release(&format!("r{n}")));
        load.more(100);
        let command = Instant::now();
        svd.ok(&["reload", "web"]);
        let returned = command.elapsed();
        load.more(100);
        rounds.push(Round { began, boot, command, returned, ended: Instant::now() });
    }
    let report = load.stop();
    let everywhere: Vec<Duration> =
        (1..).zip(&rounds).map(|(n, r)| report.everywhere(&format!("r{n}"), r.command, r.ended)).collect();
    let beyond: Vec<Duration> = everywhere.iter().zip(&rounds).map(|(e, r)| e.saturating_sub(r.boot)).collect();
    let gap = |from, until| millis(report.between(from, until).longest_gap());
    let longest = |of: &dyn Fn(&Round) -> u128| rounds.iter().map(of).max().unwrap_or_default();
    let first = rounds.first().map_or_else(Instant::now, |r| r.began);
    println!(
        "{class:<8} {:>8} {:>6} {:>5} {:>6} {:>6} | {:>5} {:>6} {:>7} | {:>11} {:>11} {:>11} {:>11}",
        report.records.len(),
        report.count(Kind::Kept),
        report.count(Kind::Slow),
        report.failures().len(),
        report.stale(),
        report.records.first().map_or(0, |r| gap(r.begun, first)),
        longest(&|r| gap(r.began, r.command)),
        longest(&|r| gap(r.command, r.ended)),
        both(rounds.iter().map(|r| r.boot)),
        both(rounds.iter().map(|r| r.returned)),
        both(everywhere.iter().copied()),
        both(beyond.iter().copied()),
    );
    explain(&report);
}

/// The same gunicorn without svd, then a reload.
struct Round {
    began: Instant,
    boot: Duration,
    command: Instant,
    /// Until svctl returned.
    returned: Duration,
    ended: Instant,
}

fn explain(report: &Report) {
    if !report.failures().is_empty() {
        println!("         {}", report.summary());
    }
}

fn release(id: &str) -> Release {
    Release::new(id).with("import_seconds", setting("RELOAD_IMPORT", 0.2))
}

fn class_args(class: &str) -> Vec<&str> {
    let threads: &[&str] = if class == "gthread" { &["--threads", "4"] } else { &[] };
    [&["--worker-class", class], threads].concat()
}

fn site(env: &Env, class: &str) -> (Svd, App, SocketAddr) {
    let svd = Svd::new();
    let app = svd.app("web");
    app.ship(&release("r0"));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let file = format!(
        "kind = \"gunicorn\"\napp = \"wsgi_app:application\"\nroot = {}\npython = {}\nworkers = {WORKERS}\nargs = {:?}\n\
         sockets.http.listen = \"{address}\"\n",
        quoted(&app.root),
        quoted(&env.python()),
        class_args(class),
    );
    svd.service("web", &file);
    (svd, app, address)
}

/// From the start of the same gunicorn without svd until all of its workers have booted.
fn bare_boot(env: &Env, app: &App, class: &str, n: usize) -> Duration {
    let dir = app.publish(&release(&format!("bare{n}")));
    let hook = "import os\ndef post_worker_init(worker):\n    open('booted.%d' % os.getpid(), 'w').close()\n";
    std::fs::write(dir.join("gunicorn.conf.py"), hook).expect("writing gunicorn.conf.py");
    let port = free_port();
    let began = Instant::now();
    let mut gunicorn = Command::new(env.python())
        .args(["-m", "gunicorn", "wsgi_app:application", "--bind", &format!("127.0.0.1:{port}")])
        .args(["--workers", &WORKERS.to_string(), "--log-level", "critical"])
        .args(class_args(class))
        .current_dir(&dir)
        .stdin(Stdio::null())
        .spawn()
        .expect("starting gunicorn");
    wait_until("gunicorn's workers have booted", PATIENCE, || {
        let files = std::fs::read_dir(&dir).expect("the release").flatten();
        files.filter(|f| f.file_name().to_string_lossy().starts_with("booted.")).count() == WORKERS
    });
    let took = began.elapsed();
    let pid = gunicorn.id().cast_signed();
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
    wait_until("gunicorn has ended", PATIENCE, || gunicorn.try_wait().is_ok_and(|s| s.is_some()));
    assert!(descendants(pid).is_empty());
    took
}

fn millis(time: Duration) -> u128 {
    time.as_millis()
}

/// Median and longest, in milliseconds.
fn both(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<Duration> = times.collect();
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or_default();
    format!("{} ({})", millis(median), millis(longest))
}
