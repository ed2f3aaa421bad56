//! `rollback` and `catch-up` over a fleet, and the table that says who is where.

use super::bed::Bed;
use super::site::Site;
use super::support::app::Release;

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
