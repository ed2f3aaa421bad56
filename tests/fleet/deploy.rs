//! `svctl deploy` to several hosts by real ssh: a repository, gunicorn on each host, and a load that counts every answer.

use super::bed::{Bed, Host};
use super::site::{Site, shell};
use super::support::app::Release;
use super::support::{PATIENCE, run_limited, wait_until};
use std::path::Path;
use std::process::Command;

#[test]
fn a_good_release_goes_to_all_hosts_in_waves() {
    let Some(bed) = Bed::start(3) else { return };
    let Some(site) = Site::new(&bed, "waves = [1, \"100%\"]\nbake = \"8s\"\nverdict = { min_requests = 50 }\n") else {
        return;
    };
    site.commit(&Release::new("second"));
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(site.serves(), ["second", "second", "second"], "{out}{err}");
    for report in reports {
        report.assert_no_failure();
    }
    assert!(out.contains("wave 1: web-0") && out.contains("wave 2: web-1") && out.contains("last: web-2"), "{out}");
    let (code, out, _) = site.deploy();
    assert!(code == 0 && out.contains("There is nothing to do."), "{out}");
    let tags = shell(&site.repository(), "git tag -n3", Path::new(""));
    assert_eq!(tags.lines().filter(|line| line.starts_with("deploy-")).count(), 2, "{tags}");
}

#[test]
fn what_does_not_boot_or_fails_requests_is_taken_back_by_the_canary() {
    let Some(bed) = Bed::start(3) else { return };
    let Some(site) = Site::new(&bed, "waves = [1, \"100%\"]\nbake = \"60s\"\nverdict = { min_requests = 50 }\n") else {
        return;
    };
    let before = site.generations();
    site.commit(&Release::new("broken").with("import", "raise"));
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert_eq!(code, 7, "{out}{err}");
    assert!(out.contains("release broken is broken"), "{out}");
    reports.iter().for_each(super::support::load::Report::assert_no_failure);
    site.commit(&Release::new("failing").with("fail_share", 0.2));
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert_eq!(code, 7, "{out}{err}");
    assert!(out.contains("was taken back") && err.contains("too many errors"), "{out}{err}");
    assert_eq!(site.serves(), ["first", "first", "first"]);
    // The canary has failed some, and the others were never touched.
    reports[1..].iter().for_each(super::support::load::Report::assert_no_failure);
    assert!(!reports[0].failures().is_empty());
    assert_eq!(site.generations()[1..], before[1..]);
    let releases = site.bed.hosts[0].svd.ok(&["releases", "web"]);
    assert_eq!(releases.lines().filter(|line| line.contains("failed")).count(), 2, "{releases}");
}

/// It answers everything, and each answer takes its time: no request fails, and the canary's wave takes it back once caches
/// could be warm. (The verdict on slow requests begins with the second minute.)
#[test]
fn what_is_slow_is_taken_back_by_the_canary() {
    let Some(bed) = Bed::start(3) else { return };
    let Some(site) = Site::new(&bed, "waves = [1, \"100%\"]\nbake = \"3m\"\nverdict = { min_requests = 50 }\n") else {
        return;
    };
    // Far beyond what counts as slow also where the machine is busy.
    site.commit(&Release::new("slow").with("wait", 1.5));
    let before = site.generations();
    let ((code, out, err), reports) = site.under_load(|| {
        // What is slow is settled by the requests before: a hundred of each host.
        let counted = |host: &Host| host.svd.json(&["releases", "web"])["services"][0]["traffic"]["requests"].as_u64();
        wait_until("each host has been asked enough", PATIENCE * 2, || {
            bed.hosts.iter().all(|host| counted(host).is_some_and(|requests| requests >= 150))
        });
        site.deploy()
    });
    assert_eq!(code, 7, "{out}{err}");
    assert!(err.contains("wave 1: no good: too slow"), "{out}{err}");
    assert!(out.contains("many more slow requests than with the release before"), "{out}{err}");
    assert_eq!(site.serves(), ["first", "first", "first"]);
    assert_eq!(site.generations()[1..], before[1..], "no host of the second wave was switched");
    for (host, report) in reports.iter().enumerate() {
        println!("slow, web-{host}: {}; {:?}", report.summary(), report.releases());
        report.assert_no_failure();
        let slow = report.releases().get("slow").copied().unwrap_or_default();
        assert_eq!(slow > 0, host == 0, "the canary alone has answered slowly");
    }
    let judged = site.verb("judge").1;
    assert!(judged.contains("too slow"), "{judged}");
}

#[test]
fn a_rollout_whose_driver_is_killed_is_taken_back_or_gone_on_with_elsewhere() {
    let Some(bed) = Bed::start(3) else { return };
    let Some(site) = Site::new(&bed, "waves = [1, \"100%\"]\nbake = \"12s\"\nverdict = { min_requests = 10 }\n") else {
        return;
    };
    let killed = |release: &str| {
        site.commit(&Release::new(release));
        let mut command = site.svctl_command(&["deploy", "web"]);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let mut child = command.stderr(std::process::Stdio::null()).spawn().expect("svctl");
        wait_until("the canary serves it", PATIENCE * 2, || {
            let status = site.bed.hosts[0].svd.json(&["releases", "web"]);
            status["trial"].is_object() && status["switching_to"].is_null()
        });
        child.kill().expect("kill");
        child.wait().expect("its end");
        // Nobody could clean up behind it.
        for left in std::fs::read_dir(site.temporary()).expect("a directory").flatten() {
            std::fs::remove_dir_all(left.path()).expect("removed");
        }
    };
    killed("second");
    assert_eq!(site.serves(), ["second", "first", "first"]);
    let (code, out, err) = site.verb("abort");
    assert_eq!(code, 7, "{out}{err}");
    assert_eq!(site.serves(), ["first", "first", "first"]);
    killed("third");
    let (_, shown, _) = site.verb("attach");
    assert!(shown.contains("wave 1 begins"), "{shown}");
    let ((code, out, err), reports) = site.under_load(|| site.verb("resume"));
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(site.serves(), ["third", "third", "third"]);
    reports.iter().for_each(super::support::load::Report::assert_no_failure);
}

/// What concerns an app on one host, on all of them by `-H`.
#[test]
fn what_is_deployed_is_seen_locked_and_taken_back_on_all_hosts() {
    let Some(bed) = Bed::start(2) else { return };
    let Some(site) = Site::new(&bed, "waves = [\"100%\"]\nbake = \"0s\"\nverdict = { min_requests = 0 }\n") else {
        return;
    };
    site.commit(&Release::new("second"));
    let (code, out, err) = site.deploy();
    assert_eq!(code, 0, "{out}{err}");
    let serving = || -> Vec<String> {
        let document = bed.json(&["-H", "all", "status", "web"]);
        let hosts = document["hosts"].as_array().expect("hosts");
        hosts.iter().map(|host| host["result"]["release"].as_str().unwrap_or_default().to_owned()).collect()
    };
    let second = serving();
    assert!(second[0] == second[1] && !second[0].is_empty(), "{second:?}");
    for (words, part) in [(["releases", "web"], second[0].as_str()), (["history", "web"], second[0].as_str())] {
        let out = bed.ok(&[&["-H", "all"], &words[..]].concat());
        for host in ["web-0", "web-1"] {
            let told = out.lines().any(|line| line.starts_with(&format!("{host} | ")) && line.contains(part));
            assert!(told, "{words:?}: {out}");
        }
    }
    let out = bed.ok(&["-H", "all", "lock", "web", "-m", "freeze"]);
    assert_eq!(out.lines().count(), 2, "{out}");
    site.commit(&Release::new("third"));
    let tags = || {
        let mut git = Command::new("git");
        git.current_dir(site.repository()).args(["tag", "--list"]);
        String::from_utf8_lossy(&run_limited(git, PATIENCE).stdout).lines().count()
    };
    let before = tags();
    let (code, out, err) = site.deploy();
    assert!(code == 9 && (out.clone() + &err).contains("freeze"), "{code} {out} {err}");
    assert_eq!(tags(), before, "who is refused leaves none behind");
    assert_eq!(serving(), second);
    bed.ok(&["-H", "all", "unlock", "web"]);
    bed.ok(&["-H", "all", "rollback", "web"]);
    let first = serving();
    assert!(first[0] == first[1] && first[0] != second[0], "{first:?}");
}
