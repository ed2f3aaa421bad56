use super::*;
use crate::fleet::rollout::journal::Outcome;
use crate::fleet::rollout::sim::{limits, plan};
use proptest::prelude::*;

fn entry(what: What) -> Entry {
    Entry { at: 1_800_000_000, number: 7, what }
}

fn bytes(entry: &Entry) -> usize {
    write(entry).unwrap().to_string().len()
}

fn list(names: &str) -> Vec<Box<str>> {
    names.split_whitespace().map(Into::into).collect()
}

fn folded(text: &str) -> String {
    let kept = names(&list(text));
    let json = serde_json::to_string(&kept).unwrap();
    assert_eq!(serde_json::from_str::<Names>(&json).unwrap().read().unwrap(), list(text));
    json.replace('"', "")
}

#[test]
fn names_that_count_on_are_their_first_and_last() {
    let cases = [
        ("", "[]"),
        ("web", "[web]"),
        ("web-1 web-2 web-3", "[[web-,1,3,]]"),
        ("web-08 web-09 web-10 web-12", "[[web-,08,10,],web-12]"),
        ("web-8 web-9 web-10", "[[web-,8,10,]]"),
        ("web-1 web-02", "[web-1,web-02]"),
        ("web-099 web-100 db-101", "[[web-,099,100,],db-101]"),
        ("a1.eu-1.org a2.eu-1.org a2.eu-2.org", "[[a,1,2,.eu-1.org],a2.eu-2.org]"),
        ("ä1 ä2 å3", "[[ä,1,2,],å3]"),
        ("18446744073709551615 18446744073709551616", "[18446744073709551615,18446744073709551616]"),
        ("web-3 web-2 web-1", "[web-3,web-2,web-1]"),
        ("web-1 web-1", "[web-1,web-1]"),
    ];
    for (names, expected) in cases {
        assert_eq!(folded(names), expected, "{names}");
    }
}

proptest! {
    #[test]
    fn any_names_are_read_as_they_were(names in proptest::collection::vec("[a1]{0,2}[0-9äb.]{0,5}", 0..20)) {
        let names: Vec<Box<str>> = names.into_iter().map(Into::into).collect();
        let json = serde_json::to_string(&super::names(&names)).unwrap();
        prop_assert_eq!(serde_json::from_str::<Names>(&json).unwrap().read().unwrap(), names);
    }
}

#[test]
fn what_is_kept_of_a_plan_does_not_grow_with_its_hosts() {
    let mut sizes = Vec::new();
    for hosts in [10, 1_000] {
        let plan = plan(hosts, 0, None, limits(4, 1));
        let places = plan.hosts.iter().map(|h| (h.name.clone(), Place::Confirmed)).collect();
        for what in [
            What::Planned(Arc::new(plan)),
            What::Ended { outcome: Outcome::Done { remarks: vec!["odd".into()] }, places },
        ] {
            let entry = entry(what);
            assert_eq!(read(write(&entry).unwrap()).unwrap(), entry);
            sizes.push(bytes(&entry));
        }
    }
    assert!(sizes[2] < sizes[0] + 100 && sizes[3] < sizes[1] + 20, "{sizes:?}");
}

#[test]
fn hosts_that_differ_stay_what_they_are() {
    let mut plan = plan(9, 0, None, limits(4, 1));
    plan.hosts[3].serves = None;
    plan.hosts[4].condition = Condition::Unfit;
    plan.hosts[7].steps.pop();
    plan.waves.down = vec!["web-0007".into()];
    let places = [Place::Before, Place::Unknown("gone".into()), Place::Confirmed];
    let places = plan.hosts.iter().zip(places.iter().cycle()).map(|(h, p)| (h.name.clone(), p.clone())).collect();
    for what in [
        What::Planned(Arc::new(plan)),
        What::Ended { outcome: Outcome::Done { remarks: vec![] }, places },
        What::Skipped { host: "web-0003".into(), why: "gone".into() },
    ] {
        let entry = entry(what);
        assert_eq!(read(write(&entry).unwrap()).unwrap(), entry);
        // As an earlier svctl has written it, and as people are shown it.
        assert_eq!(read(serde_json::to_value(&entry).unwrap()).unwrap(), entry);
    }
}

#[test]
fn what_a_host_says_is_read_with_a_limit() {
    let of = |last: &str| serde_json::from_str::<Names>(&format!(r#"[["a","0","{last}",""]]"#)).unwrap().read();
    assert_eq!(of("99999").unwrap().len(), MOST);
    for last in ["100000", "18446744073709551615", "x", "-1"] {
        assert!(of(last).is_err(), "{last}");
    }
    let run = r#"["a","0","99999",""]"#;
    assert!(serde_json::from_str::<Names>(&format!("[{run},{run}]")).unwrap().read().is_err());
    assert!(read(serde_json::json!({"at": 1, "number": 1, "what": {"planned": {"hosts": 3}}})).is_err());
    assert!(read(serde_json::json!(3)).is_err());
}
