//! What may come between the begin of a reload and its end, and which release it takes.

use super::support::svd::both;
use super::support::{Env, Load, Release, alone, http_get};
use super::{GUNICORN, Site, kill_hard, workers_of};
use std::io::ErrorKind;

fn slow(id: &str) -> Release {
    Release::new(id).with("import_seconds", 2.5)
}

#[test]
fn a_reload_during_a_reload_takes_its_place() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", "");
    let load = Load::start(site.address);
    site.app.ship(&slow("r1"));
    let first = site.svd.svctl_beside(&["reload", "web"]);
    site.candidate();
    site.reload_to(&Release::new("r2"));
    let first = first.finish();
    assert!(!first.status.success(), "{}", both(&first));
    assert!(both(&first).contains("a newer reload took its place"), "{}", both(&first));
    load.more(30);
    let report = load.stop();
    report.assert_no_failure();
    assert_eq!(report.releases().into_keys().collect::<Vec<_>>(), ["r0", "r2"]);
    site.comes_up("r2");
}

#[test]
fn a_stop_during_a_reload_stops_both_generations() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "gthread", "");
    site.app.ship(&slow("r1"));
    let reload = site.svd.svctl_beside(&["reload", "web"]);
    let masters = [site.candidate(), site.svd.main_pid("web")];
    site.svd.ok(&["stop", "web"]);
    let reload = reload.finish();
    assert!(!reload.status.success(), "{}", both(&reload));
    assert!(both(&reload).contains("stop"), "{}", both(&reload));
    assert_eq!(site.svd.state("web"), "stopped");
    for master in masters {
        assert!(airdock::sys::process::ProcStat::read(master).is_none(), "{master} still runs");
    }
    let refused = http_get(site.address, "/").expect_err("its socket is closed");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    site.svd.ok(&["start", "web"]);
    site.comes_up("r1");
}

#[test]
fn the_death_of_the_old_master_during_a_reload_does_not_stop_it() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", "");
    site.app.ship(&slow("r1"));
    let reload = site.svd.svctl_beside(&["reload", "web"]);
    site.candidate();
    kill_hard(site.svd.main_pid("web"));
    let reload = reload.finish();
    assert!(reload.status.success(), "{}", both(&reload));
    assert_eq!(site.svd.state("web"), "running");
    site.comes_up("r1");
}

#[test]
fn the_death_of_the_old_master_does_not_help_a_broken_release() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", "[ready]\nprobe = { path = \"/healthz\" }");
    site.app.ship(&slow("bad").with("probe", "fail"));
    let reload = site.svd.svctl_beside(&["reload", "web"]);
    site.candidate();
    kill_hard(site.svd.main_pid("web"));
    let reload = reload.finish();
    assert!(!reload.status.success(), "{}", both(&reload));
    // The one that was killed is replaced by its own release.
    assert_eq!(site.answers(), "r0");
    site.svd.wait_state("web", "running");
    assert_eq!(site.svd.status("web")["release"], "r0");
}

#[test]
fn a_named_release_needs_no_current_and_later_reloads_follow_it_again() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", "");
    site.app.publish(&Release::new("r1"));
    site.svd.ok(&["reload", "web", "--release", "r1"]);
    site.comes_up("r1");
    assert_eq!(site.svd.status("web")["release"], "r1");
    // `current` moves beneath a running generation: nothing changes before a reload.
    site.app.ship(&Release::new("r2"));
    kill_hard(workers_of(site.svd.main_pid("web"))[0]);
    site.comes_up("r1");
    site.svd.ok(&["reload", "web"]);
    site.comes_up("r2");
    assert_eq!(site.svd.status("web")["release"], "r2");
}

#[test]
fn what_cannot_be_reloaded_says_why_and_changes_nothing() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", "");
    let pid = site.svd.main_pid("web");
    let said = site.svd.fails(&["reload", "web", "--release", "nope"]);
    assert!(said.contains("there is no release nope"), "{said}");
    let said = site.svd.fails(&["reload", "web", "--release", "../r0"]);
    assert!(said.contains("cannot be the name of a release"), "{said}");
    let said = site.svd.fails(&["reload"]);
    assert!(said.contains("NAME") || said.contains("name"), "{said}");
    let said = site.svd.fails(&["reload", "wbe"]);
    assert!(said.contains("wbe"), "{said}");
    std::fs::remove_file(site.app.root.join("current")).expect("removing current");
    let said = site.svd.fails(&["reload", "web"]);
    assert!(said.contains("no `current`"), "{said}");
    assert_eq!((site.svd.main_pid("web"), site.answers().as_str()), (pid, "r0"));
    assert_eq!(site.svd.state("web"), "running");
}
