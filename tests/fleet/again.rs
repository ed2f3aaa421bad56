//! `rollback` and `catch-up` over a fleet, and the table that says who is where.

use super::bed::Bed;
use super::site::{GUNICORN, Site, gunicorn};
use super::support::app::{App, Release};
use super::support::env::Env;
use super::support::{PATIENCE, wait_until};
use std::fs;

/// The release that each host serves, by the table of `svctl releases`.
fn table(site: &Site<'_>) -> Vec<(String, String)> {
    let (_, document, err) = site.told(&["--json", "-H", "all", "releases", "web"]);
    let document: serde_json::Value =
        serde_json::from_str(&document).unwrap_or_else(|e| panic!("{e}: {document}{err}"));
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
    let row = |host: &serde_json::Value| (text(&host["result"]["confirmed"]), text(&host["drift"]["state"]));
    document["hosts"].as_array().expect("hosts").iter().map(row).collect()
}

fn states(site: &Site<'_>) -> Vec<String> {
    table(site).into_iter().map(|(_, state)| state).collect()
}

#[test]
fn a_fleet_goes_back_at_once_and_who_missed_something_is_caught_up() {
    let Some(bed) = Bed::start(3) else { return };
    let quick = "waves = [\"100%\"]\nbake = \"0s\"\nmax_unreachable = 1\nverdict = { min_requests = 0 }\n\
                 [app.web.hooks]\nevery = [\"sh\", \"-c\", \"cat >> told; echo >> told\"]\n";
    let Some(site) = Site::new(&bed, quick) else { return };
    let ok = |words: &[&str]| {
        let (code, out, err) = site.told(words);
        assert_eq!(code, 0, "{words:?}: {out}{err}");
        out
    };
    let deploy = |release: &str| {
        site.commit(&Release::new(release));
        let (code, out, err) = site.deploy();
        assert_eq!(code, 0, "{out}{err}");
    };
    deploy("second");
    // web-2 misses the third.
    bed.hosts[2].vanish();
    deploy("third");
    let (code, out, err) = site.told(&["-H", "all", "releases", "web"]);
    assert!(code == 4 && out.contains("cannot be reached"), "{code} {out}{err}");
    bed.hosts[2].return_to_network();
    // Its address must be found anew, which takes a busy machine some seconds.
    wait_until("web-2 is reached", PATIENCE, || site.told(&["-H", "web-2", "releases", "web"]).0 == 0);
    let out = ok(&["-H", "all", "releases", "web"]);
    assert!(out.contains("it has missed deploy-") && out.contains("`svctl catch-up web` brings 1 host there"), "{out}");
    assert_eq!(states(&site), ["with", "with", "off"]);
    let (code, out, err) = site.told(&["catch-up", "web", "-n"]);
    assert!(code == 0 && out.contains("Nothing was done."), "{code} {out}{err}");
    assert_eq!(states(&site), ["with", "with", "off"]);
    let before = site.generations();
    let ((code, out, err), reports) = site.under_load(|| site.told(&["catch-up", "web"]));
    assert!(code == 0 && out.contains("web has caught up."), "{code} {out}{err}");
    reports.iter().for_each(super::support::load::Report::assert_no_failure);
    assert_eq!(site.serves(), ["third", "third", "third"]);
    assert_eq!(site.generations()[..2], before[..2], "those that had it were not touched");
    assert_eq!(states(&site), ["with", "with", "with"]);
    let (code, out, _) = site.told(&["catch-up", "web"]);
    assert!(code == 0 && out.contains("There is nothing to do."), "{out}");

    // Back, on all hosts at once, without a gate.
    let ((code, out, err), reports) = site.under_load(|| site.told(&["rollback", "web"]));
    assert!(
        code == 0 && out.contains("web is rolled back.") && out.contains("at once: web-0, web-1, web-2"),
        "{out}{err}"
    );
    reports.iter().for_each(super::support::load::Report::assert_no_failure);
    assert_eq!(site.serves(), ["second", "second", "second"]);
    let told = std::fs::read_to_string(bed.path("told")).expect("hooks were called");
    let events: Vec<serde_json::Value> = told.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let last: Vec<_> =
        events.iter().rev().take(4).rev().map(|e| (e["event"].as_str(), e["purpose"].as_str())).collect();
    let (catch_up, rollback) = (Some("catch-up"), Some("rollback"));
    let expected = [("start", catch_up), ("success", catch_up), ("rollback", rollback), ("success", rollback)];
    assert_eq!(last, expected.map(|(event, purpose)| (Some(event), purpose)), "{told}");
    let failed = bed.hosts[0].svd.ok(&["releases", "web"]);
    assert!(failed.contains("it was rolled back to deploy-"), "{failed}");
    let history = bed.hosts[1].svd.ok(&["history", "web"]);
    assert!(history.lines().filter(|line| line.contains("confirmed")).count() >= 4, "{history}");

    // One host has not got what the others go back to: it is left out, named, and caught up.
    bed.hosts[2].vanish();
    deploy("fourth");
    bed.hosts[2].return_to_network();
    deploy("fifth");
    let (code, out, err) = site.told(&["rollback", "web"]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(out.contains("left out: it is not there; `svctl catch-up web`"), "{out}");
    assert_eq!(site.serves(), ["fourth", "fourth", "fifth"]);
    let (code, out, err) = site.told(&["catch-up", "web"]);
    assert_eq!(code, 0, "{out}{err}");
    assert_eq!(site.serves(), ["fourth", "fourth", "fourth"]);

    // The lock of people counts, and what is unclear is refused.
    ok(&["-H", "web-1", "lock", "web", "-m", "freeze"]);
    let (code, out, err) = site.told(&["rollback", "web"]);
    assert!(code == 9 && out.contains("freeze"), "{code} {out}{err}");
    ok(&["-H", "web-1", "unlock", "web"]);
    let (code, out, err) = site.told(&["rollback", "web", "--to", "deploy-1999-01-01_00-00-00"]);
    assert!(code == 1 && err.contains("No host has a release deploy-1999"), "{code} {out}{err}");
    let (code, _, err) = site.told(&["-H", "web-0,web-2", "rollback", "web"]);
    assert!(code == 1 && err.contains("would go back to different releases"), "{code} {err}");
    assert_eq!(site.serves(), ["fourth", "fourth", "fourth"]);
}

/// A database that all hosts share is a file of one line a migration, and another one tells what was done to it. The code of another
/// release does not work with what a migration leaves.
const MIGRATES: &str = r#"
[deploy]
build = 'none'
[deploy.migrate]
command = ['sh', '-euc', 'cat "$1" >> @DATABASE; echo "up $(cat "$1")" >> @DATABASE.log', 'sh', '{release}/migration']
pending = ['sh', '-euc', '! test -e "$1" || grep -qxFf "$1" @DATABASE', 'sh', '{release}/migration']
down = ['sh', '-euc', 'sed -i "/^$(cat "$1")$/d" @DATABASE; echo "down $(cat "$1")" >> @DATABASE.log', 'sh', '{release}/migration']
"#;

/// Whoever has run a migration undoes it: the newest first, also where they were run on different hosts, and before any host has the
/// code that does not know them.
#[test]
fn migrations_are_undone_on_the_way_back_where_that_is_asked_for() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let Some(bed) = Bed::start(3) else { return };
    let database = bed.path("database");
    fs::write(&database, "").expect("a file");
    let more = MIGRATES.replace("@DATABASE", &database.display().to_string());
    let site = Site::empty(&bed, "web", 8000, &gunicorn(&env, "wsgi_app:application", &more));
    site.commit(&Release::new("first"));
    site.first("waves = [\"100%\"]\nbake = \"0s\"\nmax_unreachable = 1\nverdict = { min_requests = 0 }\n");
    let migrates = |release: &str, migration: &str| {
        let dir = App::at(bed.path("migrating")).publish(&Release::new(release));
        fs::write(dir.join("migration"), format!("{migration}\n")).expect("writing");
        site.commit_files(&dir);
        let (code, out, err) = site.deploy();
        assert_eq!(code, 0, "{out}{err}");
    };
    let lines = |file: &str| fs::read_to_string(bed.path(file)).expect("reading");
    migrates("second", "one");
    // What the next one brings is run by another host.
    bed.hosts[0].vanish();
    migrates("third", "two");
    bed.hosts[0].return_to_network();
    let (code, out, err) = site.verb("catch-up");
    assert!(code == 0 && lines("database.log") == "up one\nup two\n", "{code} {out}{err}");
    let migrated = |host: usize| bed.hosts[host].svd.ok(&["releases", "web"]).matches(", migrated").count();
    assert_eq!([0, 1, 2].map(migrated), [1, 1, 0]);

    let first =
        bed.hosts[0].svd.json(&["releases", "web"])["releases"][0]["release"].as_str().expect("first").to_owned();
    let generations = site.generations();
    let (code, out, err) = site.told(&["rollback", "web", "--to", &first]);
    assert!(code == 1 && err.contains("nothing was done") && err.contains("--down"), "{code} {out}{err}");
    assert_eq!((site.generations(), lines("database").as_str()), (generations, "one\ntwo\n"));
    let ((code, out, err), reports) = site.under_load(|| site.told(&["rollback", "web", "--to", &first, "--down"]));
    assert_eq!(code, 0, "{out}{err}");
    reports.iter().for_each(super::support::load::Report::assert_no_failure);
    assert_eq!(site.serves(), ["first", "first", "first"]);
    assert_eq!(lines("database.log"), "up one\nup two\ndown two\ndown one\n");
    assert_eq!((lines("database").as_str(), [0, 1, 2].map(migrated)), ("", [0, 0, 0]));

    // All of it is told in the order in which it was done, whoever did it.
    let (code, out, err) = site.told(&["-H", "all", "history", "web"]);
    assert_eq!(code, 0, "{out}{err}");
    let told: Vec<(&str, &str)> = out.lines().skip(1).map(|line| line.split_once(" | ").expect("a mark")).collect();
    let times: Vec<&str> = told.iter().map(|(_, line)| line.split(' ').next().expect("a time")).collect();
    assert!(out.starts_with("HOST  | TIME ") && times.is_sorted(), "{out}");
    let hosts: Vec<&str> = told.iter().filter(|(_, l)| l.contains(" migrate")).map(|(host, _)| *host).collect();
    assert_eq!(hosts, ["web-0", "web-1", "web-1", "web-0"], "{out}");
    bed.hosts[1].vanish();
    let (code, out, err) = site.told(&["-H", "all", "history", "web", "-n", "2"]);
    assert!(code == 4 && err.contains("web-1 | svctl: ") && out.lines().count() == 1 + 2 * 2, "{code} {out}{err}");
}
