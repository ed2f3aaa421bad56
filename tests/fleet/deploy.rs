//! `svctl deploy` to several hosts by real ssh: a repository, gunicorn on each host, and a load that counts every answer.

use super::bed::Bed;
use super::support::app::{App, Release};
use super::support::env::Env;
use super::support::load::{Load, Plan};
use super::support::{PATIENCE, alone, run_limited, wait_until};
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

const GUNICORN: &str = "gunicorn-27.0.1";

/// Hosts with a gunicorn service `web` each, and a repository that it comes from.
struct Site {
    bed: Bed,
    /// Verdicts rest on how many requests come, which others' work must not decide.
    _alone: std::sync::MutexGuard<'static, ()>,
}

/// Sets what the next release does.
fn commit(repository: &Path, release: &Release) {
    let app = App::at(repository.with_file_name("made"));
    let made = app.publish(release);
    let git = |words: &str| {
        let mut command = Command::new("sh");
        command.current_dir(repository).args(["-c", words, "sh"]).arg(&made);
        let done = run_limited(command, PATIENCE);
        assert!(done.status.success(), "{words}: {}", String::from_utf8_lossy(&done.stderr));
    };
    if !repository.join(".git").exists() {
        git("git init -q -b production && git config user.email tester@example.org && git config user.name Tester");
    }
    git("cp -r \"$1\"/. . && git add -A && git commit -q --allow-empty -m 'another release'");
}

impl Site {
    fn new(count: usize, more: &str) -> Option<Site> {
        let env = Env::get(GUNICORN)?;
        let alone = alone();
        let bed = Bed::start(count)?;
        for host in &bed.hosts {
            let root = host.svd.path("srv/web");
            std::fs::create_dir_all(&root).expect("the root");
            let text = format!(
                "kind = 'gunicorn'\napp = 'wsgi_app:application'\nroot = '{}'\npython = '{}'\nworkers = 2\n\
                 sockets.http.listen = '{}:8000'\nready.probe = {{ path = '/healthz' }}\n\
                 args = ['--worker-class', 'gthread', '--threads', '4']\n",
                root.display(),
                env.python().display(),
                host.address
            );
            host.svd.service("web", &text);
            // It has no release yet.
            host.svd.svctl(&["update"]);
        }
        std::fs::create_dir(bed.path("repository")).expect("the repository");
        let site = Site { bed, _alone: alone };
        site.fleet("waves = [\"100%\"]\nbake = \"0s\"\n");
        site.commit(&Release::new("first"));
        let (code, out, err) = site.deploy();
        assert_eq!(code, 0, "{out}{err}");
        site.fleet(more);
        Some(site)
    }

    fn fleet(&self, more: &str) {
        let repository = self.bed.path("repository");
        self.bed.fleet(&format!(
            "[app.web]\nrepository = \"{}\"\nbranch = \"production\"\nhosts = [\"web-*\"]\nlease = \"60s\"\n{more}",
            repository.display()
        ));
    }

    fn commit(&self, release: &Release) {
        commit(&self.bed.path("repository"), release);
    }

    fn deploy(&self) -> (i32, String, String) {
        self.bed.told(&["deploy", "web"])
    }

    /// Generations are counted: who was never switched has the number that it had.
    fn generations(&self) -> Vec<u64> {
        self.bed.hosts.iter().map(|h| h.svd.status("web")["generation"].as_u64().expect("a number")).collect()
    }

    /// What each host answers with.
    fn serves(&self) -> Vec<String> {
        let serves = std::sync::Mutex::new(Vec::new());
        self.bed.inside(|| {
            for host in &self.bed.hosts {
                let address: SocketAddr = format!("{}:8000", host.address).parse().expect("an address");
                let (_, body) = super::support::http_get(address, "/").expect("it answers");
                let release = body.strip_prefix("release=").and_then(|rest| rest.split(' ').next()).unwrap_or(&body);
                serves.lock().expect("no panic").push(release.to_owned());
            }
        });
        serves.into_inner().expect("no panic")
    }

    /// Loads on all hosts while something is done.
    fn under_load<T: Send>(&self, done: impl FnOnce() -> T + Send) -> (T, Vec<super::support::load::Report>) {
        let result = std::sync::Mutex::new(None);
        self.bed.inside(|| {
            let load = |address: &str| {
                let plan = Plan::new(format!("{address}:8000").parse().expect("an address"));
                Plan { new: 1, kept: 1, pause: std::time::Duration::from_millis(20), ..plan }.start()
            };
            let loads: Vec<Load> = self.bed.hosts.iter().map(|host| load(&host.address)).collect();
            loads.iter().for_each(|load| load.more(20));
            let value = done();
            let reports = loads.into_iter().map(Load::stop).collect();
            *result.lock().expect("no panic") = Some((value, reports));
        });
        result.into_inner().expect("no panic").expect("it ran")
    }
}

#[test]
fn a_good_release_goes_to_all_hosts_in_waves() {
    let Some(site) = Site::new(3, "waves = [1, \"100%\"]\nbake = \"8s\"\nverdict = { min_requests = 50 }\n") else {
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
    let tags = run_limited(
        {
            let mut git = Command::new("git");
            git.current_dir(site.bed.path("repository")).args(["tag", "-n3"]);
            git
        },
        PATIENCE,
    );
    let tags = String::from_utf8_lossy(&tags.stdout).into_owned();
    assert_eq!(tags.lines().filter(|line| line.starts_with("deploy-")).count(), 2, "{tags}");
    site.bed.assert_clean();
}

#[test]
fn what_does_not_boot_or_fails_requests_is_taken_back_by_the_canary() {
    let Some(site) = Site::new(3, "waves = [1, \"100%\"]\nbake = \"60s\"\nverdict = { min_requests = 50 }\n") else {
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

#[test]
fn a_rollout_whose_driver_is_killed_is_taken_back_or_gone_on_with_from_elsewhere() {
    let Some(site) = Site::new(3, "waves = [1, \"100%\"]\nbake = \"20s\"\nverdict = { min_requests = 10 }\n") else {
        return;
    };
    let killed = |release: &str| {
        site.commit(&Release::new(release));
        let mut command = site.bed.svctl_command(&["deploy", "web"]);
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let mut child = command.stderr(std::process::Stdio::null()).spawn().expect("svctl");
        wait_until("the canary serves it", PATIENCE * 2, || {
            let status = site.bed.hosts[0].svd.json(&["releases", "web"]);
            status["trial"].is_object() && status["switching_to"].is_null()
        });
        child.kill().expect("kill");
        child.wait().expect("its end");
        // Nobody could clean up behind it.
        for left in std::fs::read_dir(site.bed.path("tmp")).expect("a directory").flatten() {
            std::fs::remove_dir_all(left.path()).expect("removed");
        }
    };
    killed("second");
    assert_eq!(site.serves(), ["second", "first", "first"]);
    let (code, out, err) = site.bed.told(&["abort", "web"]);
    assert_eq!(code, 7, "{out}{err}");
    assert_eq!(site.serves(), ["first", "first", "first"]);
    killed("third");
    let shown = site.bed.ok(&["attach", "web"]);
    assert!(shown.contains("wave 1 begins"), "{shown}");
    let ((code, out, err), reports) = site.under_load(|| site.bed.told(&["resume", "web"]));
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(site.serves(), ["third", "third", "third"]);
    reports.iter().for_each(super::support::load::Report::assert_no_failure);
}

/// What concerns an app on one host, on all of them by `-H`.
#[test]
fn what_is_deployed_is_seen_locked_and_taken_back_on_all_hosts() {
    let Some(site) = Site::new(2, "waves = [\"100%\"]\nbake = \"0s\"\nverdict = { min_requests = 0 }\n") else {
        return;
    };
    site.commit(&Release::new("second"));
    let (code, out, err) = site.deploy();
    assert_eq!(code, 0, "{out}{err}");
    let bed = &site.bed;
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
    let (code, out, err) = site.deploy();
    assert!(code == 9 && (out.clone() + &err).contains("freeze"), "{code} {out} {err}");
    assert_eq!(serving(), second);
    bed.ok(&["-H", "all", "unlock", "web"]);
    bed.ok(&["-H", "all", "rollback", "web"]);
    let first = serving();
    assert!(first[0] == first[1] && first[0] != second[0], "{first:?}");
}
