//! Hosts that are down, vanish or have a full disk, and a machine that deploys and dies, under a load that counts every answer.

use super::bed::{Bed, Host};
use super::site::Site;
use super::support::app::Release;
use super::support::load::Report;
use super::support::{PATIENCE, wait_for, wait_until};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, SystemTime};

const QUICK: &str = "waves = [1, \"100%\"]\nbake = \"0s\"\nverdict = { min_requests = 0 }\n";

#[track_caller]
fn no_failure(what: &str, reports: &[Report]) {
    for report in reports {
        println!("{what}: {}", report.summary());
        report.assert_no_failure();
    }
}

fn away(max: u32) -> String {
    format!("{QUICK}max_unreachable = {max}\n")
}

/// One that is down is named and left out, within the limit, and is caught up by the next deploy.
#[test]
fn a_host_that_is_down_and_one_whose_disk_is_full() {
    let Some(bed) = Bed::start(3) else { return };
    let Some(site) = Site::new(&bed, &away(0)) else { return };
    let [first, second, down] = &bed.hosts[..] else { panic!("three hosts") };
    let others = [first, second];
    down.vanish();
    site.commit(&Release::new("second"));
    let ((code, out, err), reports) = site.under_load_of(&others, || site.deploy());
    let said = out + &err;
    // Meanwhile svctl has not been silent.
    assert!(said.contains("Waiting for 1 of 3 hosts: web-2 …"), "{said}");
    assert!(code == 1 && said.contains("web-2") && said.contains("max_unreachable is 0"), "{code} {said}");
    assert_eq!(site.serves_on(&others), ["first", "first"]);
    no_failure("refused", &reports);
    site.fleet(&away(1));
    let (code, out, err) = site.told(&["--json", "plan", "web"]);
    assert!(
        code == 0 && !out.contains("Waiting") && serde_json::from_str::<serde_json::Value>(&out).is_ok(),
        "{out}{err}"
    );
    let ((code, out, err), reports) = site.under_load_of(&others, || site.deploy());
    assert!(code == 0 && out.contains("left out: web-2, which cannot be reached"), "{code} {out}{err}");
    assert_eq!(site.serves_on(&others), ["second", "second"]);
    no_failure("one is down", &reports);
    down.return_to_network();
    wait_until("it is found again", PATIENCE, || site.serves_on(&[down]) == ["first"]);
    let generations = site.generations();
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(site.serves(), ["second"; 3]);
    assert_eq!(site.generations()[..2], generations[..2], "{out}");
    no_failure("caught up", &reports);

    full_disk(&site, second);
}

/// Nothing is switched; with room again, the same deploy goes through.
fn full_disk(site: &Site<'_>, host: &Host) {
    // Its releases go to a file system of their own from now on.
    let root = site.root(host).display().to_string();
    let words = "cp -a \"$1\" /run/kept && mount -t tmpfs -o size=3m,mode=755 none \"$1\" && cp -a /run/kept/. \"$1\"; \
                 head -c 10m /dev/zero >\"$1\"/filler || :";
    host.run(&["sh", "-euc", words, "sh", &root]);
    let generations = site.generations();
    site.commit(&Release::new("third"));
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert!(code == 1 && out.contains("no host was switched"), "{code} {out}{err}");
    assert!(out.contains("web-1") && out.contains("No space left on device"), "{out}{err}");
    assert_eq!(site.generations(), generations);
    no_failure("a full disk", &reports);
    host.run(&["rm", &format!("{root}/filler")]);
    let (code, out, err) = site.deploy();
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(site.serves(), ["third"; 3]);
}

/// It is given up within half a minute, the others of its wave go on, and it goes back by itself when its lease has
/// run out. (A wave of which nobody is left is no good: the release may have taken its hosts away.)
#[test]
fn a_host_that_vanishes_in_the_midst_of_a_wave() {
    let Some(bed) = Bed::start(3) else { return };
    let more =
        "waves = [\"100%\"]\nbake = \"45s\"\nverdict = { min_requests = 10 }\nmax_unreachable = 1\nlease = \"60s\"\n";
    let Some(site) = Site::new(&bed, more) else { return };
    let [first, gone, last] = &bed.hosts[..] else { panic!("three hosts") };
    let others = [first, last];
    site.commit(&Release::new("second"));
    let trial = || gone.svd.json(&["releases", "web"]);
    let ((vanished, (code, out, err)), reports) = site.under_load_of(&others, || {
        std::thread::scope(|scope| {
            let deploy = scope.spawn(|| site.deploy());
            wait_until("it has the release on trial", PATIENCE * 3, || {
                let status = trial();
                status["trial"].is_object() && status["switching_to"].is_null()
            });
            gone.vanish();
            (SystemTime::now(), deploy.join().expect("svctl"))
        })
    });
    let (_, story, _) = site.verb("attach");
    let left_out =
        story.lines().find_map(|line| line.split_once("  ").filter(|(_, what)| what.starts_with("web-1 is left")));
    let (at, _) = left_out.unwrap_or_else(|| panic!("{story}"));
    let at = humantime::parse_rfc3339(at).expect("a time");
    let after = at.duration_since(vanished).unwrap_or_default();
    println!("left out {after:.1?} after it had vanished");
    // Half a minute, and a busy machine.
    assert!(after < Duration::from_secs(45), "{story}");
    let said = format!("{out}{err}");
    assert!(code == 0 && out.contains("the new release: web-0, web-2") && out.contains("web-1: not known"), "{said}");
    assert_eq!(site.serves_on(&others), ["second", "second"]);
    no_failure("one vanishes", &reports);
    // Nobody renews its lease.
    wait_until("it has gone back", PATIENCE * 3, || trial()["trial"].is_null());
    gone.return_to_network();
    wait_until("it serves what it did before", PATIENCE, || site.serves_on(&[gone]) == ["first"]);
    let ((code, out, err), reports) = site.under_load(|| site.deploy());
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(site.serves(), ["second"; 3]);
    no_failure("it is back", &reports);
}

/// Entries of the journal, as `svctl --json deploy` tells them.
const STEPS: [&str; 10] =
    ["planned", "taken", "prepared", "begun", "judged", "begun", "judged", "begun", "confirming", "ended"];

/// Where the deploying machine dies: three places of ten, chosen by a seed, or all of them.
fn sample() -> Vec<usize> {
    let seed = std::env::var("AIRDOCK_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random = fastrand::Rng::with_seed(seed.unwrap_or_else(|| fastrand::u64(..)));
    println!("AIRDOCK_SEED={}", random.get_seed());
    let mut all: Vec<usize> = (0..STEPS.len()).collect();
    random.shuffle(&mut all);
    all.truncate(if std::env::var_os("AIRDOCK_LONG").is_some() { STEPS.len() } else { 3 });
    all
}

/// Whatever step of the journal was the last one: another machine sees it, goes on or takes it back, and the fleet ends on one release.
#[test]
fn a_driver_that_is_killed_at_any_step_of_its_journal() {
    let Some(bed) = Bed::start(3) else { return };
    let more = "waves = [1, \"100%\"]\nbake = \"1s\"\nverdict = { min_requests = 0 }\n";
    let Some(site) = Site::new(&bed, more) else { return };
    let mut before = "first".to_owned();
    for (turn, step) in sample().into_iter().enumerate() {
        let verb = if turn % 2 == 0 { "resume" } else { "abort" };
        let release = format!("r{turn}");
        let (_, reports) = site.under_load(|| {
            site.commit(&Release::new(&release));
            kill_at(&site, step);
            let (code, shown, err) = site.verb("attach");
            assert_eq!(code, 0, "{shown}{err}");
            let (code, out, err) = site.verb(verb);
            println!("killed after {} ({step}), {verb}: {code}", STEPS[step]);
            let expected = if code == 0 { &release } else { &before };
            let serves = site.serves();
            assert!(serves.iter().all(|serves| serves == expected), "{serves:?} {code} {out}{err}\n{shown}");
            // Its files had not come to the hosts, so that nobody can go on with it.
            let may_fail = step < 2;
            match verb {
                "resume" => assert!(code == 0 || may_fail && code == 1, "{code} {out}{err}\n{shown}"),
                // What is being confirmed cannot be taken back any more.
                _ => {
                    assert!(matches!(code, 1 | 7) == (step < 8) || code == 0 && step == 7, "{code} {out}{err}\n{shown}")
                }
            }
        });
        no_failure(&format!("killed after {step}"), &reports);
        let locked = |host: &Host| host.svd.json(&["releases", "web"])["lock"].is_object();
        assert!(!bed.hosts.iter().any(locked), "the lock is free");
        before = site.serves().swap_remove(0);
    }
}

/// SIGKILL, as soon as it has told of so many entries.
fn kill_at(site: &Site<'_>, step: usize) {
    let mut command = site.svctl_command(&["--json", "deploy", "web"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("svctl");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let documents = lines.map(|line| serde_json::from_str::<Value>(&line).expect("a document a line"));
    let mut entries = documents.filter(|document| document["type"] == "journal" || document["journal"].is_object());
    let entry = entries.nth(step);
    let _ = child.kill();
    wait_for("its end", PATIENCE, || child.try_wait().expect("waiting"));
    assert!(entry.is_some(), "it ended before it came to {}", STEPS[step]);
    // Nobody could clean up behind it.
    for left in fs::read_dir(site.temporary()).expect("a directory").flatten() {
        fs::remove_dir_all(left.path()).expect("removed");
    }
}
