use super::*;
use crate::api::apps::{MigrationFacts, ReleaseStatus};
use serde_json::json;

/// `web-0 r2 r1`: what is confirmed and what was before; `web-1 -`: nothing is; `web-2 ?`: it does not answer; `web-3 r2 r1 r3`: and
/// what is on trial.
fn fleet(lines: &str) -> Answers {
    let host = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let word = |n: usize| words.get(n).copied().filter(|word| *word != "-");
        if words[1] == "?" {
            return (words[0].into(), Err("no route to host".into()));
        }
        let trial =
            word(3).map(|release| json!({ "release": release, "rollout": "x", "seconds_left": 60, "holds": false }));
        let serving = word(3).or(word(1));
        let status = json!({
            "app": "web", "root": "/srv/web", "confirmed": word(1), "previous": word(2), "trial": trial,
            "services": [{ "name": "web", "state": "running", "release": serving, "restarts": 0 }],
            "fence": { "number": 0, "rollout": "" }, "releases": [], "steps": [],
            "journal": { "rollout": "", "number": 0, "entries": 0 },
        });
        (words[0].into(), Ok(serde_json::from_value(status).expect("a status")))
    };
    lines.split(',').map(host).collect()
}

#[test]
fn a_migration_of_a_host_that_is_away_is_not_crossed_unseen() {
    let mut answers = fleet("a r2 r1, b r2 r1, c ?");
    let known = |names: &[&str]| -> Vec<ReleaseStatus> {
        let release = |name: &&str| json!({ "release": name, "state": "confirmed", "source": "", "label": "", "by": "", "since": "", "since_seconds": 0, "serving": false });
        names.iter().map(|name| serde_json::from_value(release(name)).expect("a release")).collect()
    };
    let mut each = |migration: Option<bool>, names: &[&str]| {
        for status in answers.values_mut().flatten() {
            status.releases = known(names);
            status.migration =
                migration.map(|compatible| MigrationFacts { on_each_host: false, compatible, after: false });
        }
        answers.clone()
    };
    let on = |host: Option<&str>| Some(Latest { release: "r2".into(), migrated_on: host.map(Into::into) });
    let unseen = |answers: &Answers, latest: Option<Latest>| {
        nothing_unseen("web", answers, "r1", latest.as_ref()).err().map(|unclear| unclear.details)
    };
    let answers = each(None, &["r1", "r2"]);
    assert_eq!(unseen(&answers, None), None, "nothing migrates");
    let answers = each(Some(true), &["r1", "r2"]);
    assert_eq!(unseen(&answers, None), None, "the older code works");
    let answers = each(Some(false), &["r1", "r2"]);
    assert_eq!(unseen(&answers, on(None)), None, "the journal says that nothing was pending");
    assert_eq!(unseen(&answers, on(Some("a"))), None, "that one has answered");
    assert!(unseen(&answers, on(Some("c"))).is_some_and(|why| why[0].contains("migration of r2")));
    assert!(unseen(&answers, None).is_some_and(|why| why[0].starts_with("c:")), "no journal");
    let answers = each(Some(false), &["r1", "r1.5", "r2"]);
    assert!(unseen(&answers, on(None)).is_some(), "nor of what came before");
    let all = fleet("a r2 r1, b r2 r1");
    assert_eq!(unseen(&all, None), None, "everybody answers");
}

#[test]
fn a_fleet_is_where_most_of_it_is() {
    let cases = [
        ("a r2 r1, b r2 r1, c r1", None, Some("r2")),
        ("a r2 r1, b r1", None, None),
        ("a r2 r1, b r1", Some("r2"), Some("r2")),
        // What nobody has any more settles nothing.
        ("a r2 r1, b r1", Some("r3"), None),
        // Most of those that answer are not most of all.
        ("a r2 r1, b ?, c ?", None, None),
        ("a r2 r1, b ?, c ?", Some("r2"), Some("r2")),
        ("a -, b -", None, None),
        ("a r1, b r2, c r2, d r1", None, None),
        // People have taken most of them elsewhere since.
        ("a r1, b r1, c r2", Some("r2"), Some("r1")),
    ];
    for (lines, latest, expected) in cases {
        assert_eq!(release_of(&fleet(lines), latest).as_deref(), expected, "{lines}");
    }
}

#[test]
fn a_rollback_goes_where_most_would_or_nowhere() {
    let cases = [
        ("a r2 r1, b r2 r1, c r2 r0", Some("r1")),
        ("a r2 r1, b r2 r0", None),
        ("a r2, b r2", None),
        ("a r2 r1, b r2 r1, c r2", Some("r1")),
        ("a r2 r1, b r2, c r2", None),
        // Who is elsewhere already is not asked where to.
        ("a r2 r1, b r2 r1, c r1 r0, d r1 r0, e r2 r1", Some("r1")),
        ("a r2 r1, b r2 r1, c ?", Some("r1")),
    ];
    for (lines, expected) in cases {
        let way = way_back("web", &fleet(lines), None);
        assert_eq!(way.as_deref().ok(), expected, "{lines}");
        if let Err(unclear) = way {
            assert_eq!(unclear.details.len(), fleet(lines).len());
        }
    }
    let none = way_back("web", &fleet("a r2, b r2"), None).expect_err("there is none");
    assert!(none.message.contains("no host has an earlier good release"), "{none:?}");
}

#[test]
fn how_hosts_stand() {
    let answers = fleet("a r2 r1, b r1, c -, d ?, e r1 r0 r2");
    let all: Vec<String> =
        answers.values().map(|answer| format!("{:?}", stands(answer, Some("r2"))).chars().take(12).collect()).collect();
    assert_eq!(all, ["With", "Off { why: \"", "Off { why: \"", "Away { why: ", "OnTrial { re"]);
    assert_eq!(stands(&answers["a"], None), Stands::Unknown);
    let on_trial = nothing_on_trial("web", &answers).expect_err("e has a trial");
    assert_eq!(&*on_trial.details, ["e: r2 of the rollout x".into()]);
}
