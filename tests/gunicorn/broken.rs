//! Releases that must not come into service, and the gate.

use super::support::svd::both;
use super::support::{Env, Load, PATIENCE, Release, alone, wait_until};
use super::{GUNICORN, Site, kill_hard};
use nix::sys::signal::Signal;
use std::fs;

const READY: &str = "[ready]\ntimeout = \"6s\"\nprobe = { path = \"/healthz\", timeout = \"1500ms\" }";

/// Reloads to a broken release under load: refused with these words, nobody notices, and the next good one comes up.
fn is_kept_off(broken: &Release, words: &[&str]) {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "gthread", READY);
    let load = Load::start(site.address);
    load.more(30);
    site.app.ship(broken);
    let said = site.svd.fails(&["reload", "web"]);
    println!("{said}");
    for word in words {
        assert!(said.contains(word), "svctl does not say {word:?}:\n{said}");
    }
    assert_eq!(site.svd.state("web"), "running");
    load.more(30);
    site.reload_to(&Release::new("r2"));
    load.more(30);
    let report = load.stop();
    println!("{}", report.summary());
    report.assert_no_failure();
    assert_eq!(report.releases().into_keys().collect::<Vec<_>>(), ["r0", "r2"], "a broken release has answered");
}

#[test]
fn a_release_that_cannot_be_imported_is_kept_off() {
    let broken = Release::new("bad").with("import", "raise");
    is_kept_off(
        &broken,
        &[
            "generation 2",
            "cannot load the application",
            "raise ImportError(\"release %s is broken\" % NAME)",
            "generation 1 goes on",
        ],
    );
}

#[test]
fn a_release_that_hangs_in_its_import_is_kept_off() {
    let broken = Release::new("bad").with("import", "hang");
    is_kept_off(&broken, &["generation 2", "6s", "generation 1 goes on"]);
}

#[test]
fn a_release_that_fails_its_probe_is_kept_off() {
    let broken = Release::new("bad").with("probe", "fail");
    is_kept_off(&broken, &["generation 2", "GET /healthz answered 500", "generation 1 goes on"]);
}

#[test]
fn a_release_whose_probe_raises_is_kept_off() {
    let broken = Release::new("bad").with("probe", "raise");
    is_kept_off(&broken, &["GET /healthz raised", "the health check of release bad raises", "generation 1 goes on"]);
}

#[test]
fn a_release_whose_probe_hangs_is_kept_off() {
    let broken = Release::new("bad").with("probe", "hang");
    is_kept_off(&broken, &["GET /healthz gave no answer within 1.5 s", "generation 1 goes on"]);
}

#[test]
fn a_generation_that_dies_before_its_commit_is_kept_off() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", "");
    let load = Load::start(site.address);
    site.app.ship(&Release::new("bad").with("import", "hang"));
    let reload = site.svd.svctl_beside(&["reload", "web"]);
    kill_hard(site.candidate());
    let output = reload.finish();
    let said = both(&output);
    println!("{said}");
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("killed by signal 9") && said.contains("generation 1 goes on"), "{said}");
    load.more(30);
    site.reload_to(&Release::new("r2"));
    load.more(30);
    let report = load.stop();
    report.assert_no_failure();
    assert_eq!(report.releases().into_keys().collect::<Vec<_>>(), ["r0", "r2"]);
}

#[test]
fn ten_broken_releases_in_a_row_fail_no_request() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", READY);
    let load = Load::start(site.address);
    for n in 0..10 {
        let broken = Release::new(&format!("bad{n}"));
        site.app.ship(&if n % 2 == 0 { broken.with("import", "raise") } else { broken.with("probe", "fail") });
        site.svd.fails(&["reload", "web"]);
        load.more(10);
    }
    site.reload_to(&Release::new("good"));
    load.more(30);
    let report = load.stop();
    println!("{}", report.summary());
    report.assert_no_failure();
    assert_eq!(report.releases().into_keys().collect::<Vec<_>>(), ["good", "r0"]);
}

/// Nobody can commit while svd itself stands still: the new workers boot, and must wait.
#[test]
fn a_booted_generation_answers_nothing_before_its_commit() {
    let Some(env) = Env::get(GUNICORN) else { return };
    for class in ["sync", "gthread", "gevent"] {
        let _alone = alone();
        let site = Site::start(&env, class, "");
        let release = site.app.publish(&Release::new("r1").with("import_seconds", 0.3));
        let hook = "import os\n\
                    def post_worker_init(worker):\n    open('booted.%d' % os.getpid(), 'w').close()\n";
        fs::write(release.join("gunicorn.conf.py"), hook).expect("writing gunicorn.conf.py");
        site.app.switch("r1");
        let load = Load::start(site.address);
        let reload = site.svd.svctl_beside(&["reload", "web"]);
        site.candidate();
        site.svd.signal(Signal::SIGSTOP);
        wait_until("the new workers have booted", PATIENCE, || {
            let files = fs::read_dir(&release).expect("the release").flatten();
            files.filter(|f| f.file_name().to_string_lossy().starts_with("booted.")).count() == 3
        });
        load.more(200);
        let before = std::time::Instant::now();
        site.svd.signal(Signal::SIGCONT);
        let output = reload.finish();
        assert!(output.status.success(), "{}", both(&output));
        load.more(50);
        let report = load.stop();
        report.assert_no_failure();
        let first = report.records[0].begun;
        let gated = report.records.iter().filter(|r| r.ended < before).cloned().collect();
        let gated = super::support::Report { records: gated };
        assert!(first < before && gated.releases().len() == 1, "{class}: {:?} before the commit", gated.releases());
        assert_eq!(report.releases().into_keys().collect::<Vec<_>>(), ["r0", "r1"], "{class}");
    }
}
