use super::*;
use crate::fleet::rollout::sim::limits;
use crate::fleet::verdict::Baseline;

fn answer(serves: &str) -> HostAnswer {
    let migration = Some(Migration { on: MigrateOn::One, compatible: true, after: false });
    HostAnswer {
        serves: Some(serves.into()),
        confirmed: Some(serves.into()),
        deploy: DeployFacts { builds: true, publishes: true, names_statics: true, verifies: true, migration },
        yesterday: Counts { requests: 1000, errors: 1 },
        ..HostAnswer::default()
    }
}

fn host(name: &str, answer: HostAnswer) -> HostFacts {
    HostFacts { name: name.into(), answer: Ok(answer) }
}

fn facts<'a>(
    hosts: Vec<HostFacts>,
    changes: &[(&str, Change)],
    groups: &'a BTreeMap<Box<str>, Vec<Box<str>>>,
) -> Facts<'a> {
    Facts {
        rollout: "r-1",
        purpose: Purpose::Deploy,
        app: "airship",
        release: "new",
        by: "jane",
        at: 1_800_000_000,
        hosts,
        changes: changes.iter().map(|(from, change)| ((*from).into(), *change)).collect(),
        waves: &[Wave::Hosts(1), Wave::Percent(100)],
        groups,
        limits: limits(4, 0),
    }
}

fn made(hosts: Vec<HostFacts>, changes: &[(&str, Change)]) -> Plan {
    Plan::new(facts(hosts, changes, &BTreeMap::new())).unwrap()
}

/// `build static …`: what runs on the host, `?`: what it finds out itself.
fn steps(plan: &Plan, host: &str) -> String {
    let host = plan.host(host).unwrap();
    let runs = |s: &PlannedStep| match s.run {
        Run::Yes => Some(s.step.to_string()),
        Run::Asks => Some(format!("{}?", s.step)),
        Run::No => None,
    };
    host.steps.iter().filter_map(runs).collect::<Vec<_>>().join(" ")
}

fn why(plan: &Plan, host: &str, step: Step) -> String {
    let host = plan.host(host).unwrap();
    host.steps.iter().find(|s| s.step == step).unwrap().why.clone().into()
}

const CODE: Change = Change { any: true, requirements: false, statics: false };

#[test]
fn only_what_is_needed_runs() {
    let all = Change { any: true, requirements: true, statics: true };
    let built = HostAnswer { built: true, ..answer("a") };
    let staged = HostAnswer { staged: true, built: true, ..answer("a") };
    let bare = HostAnswer { deploy: DeployFacts::default(), ..answer("a") };
    let first = HostAnswer { serves: None, confirmed: None, ..answer("a") };
    let cases = [
        ("everything", answer("a"), all, "upload build static verify migrate? activate"),
        ("code alone", built.clone(), CODE, "upload verify migrate? activate"),
        ("an environment that may be another", answer("a"), CODE, "upload build? verify migrate? activate"),
        ("static files", built.clone(), Change { statics: true, ..CODE }, "upload static verify migrate? activate"),
        (
            "requirements of which another host has built the same",
            built.clone(),
            Change { requirements: true, ..CODE },
            "upload static verify migrate? activate",
        ),
        ("what is there already", staged, CODE, "verify migrate? activate"),
        ("a service without steps", bare, all, "upload activate"),
        ("a first deploy", first, Change::default(), "upload build static verify migrate? activate"),
        ("nothing that concerns the app", built, Change::default(), ""),
    ];
    for (name, answer, change, expected) in cases {
        let plan = made(vec![host("web-0", answer)], &[("a", change)]);
        assert_eq!(steps(&plan, "web-0"), expected, "{name}");
        assert!(plan.hosts[0].steps.iter().all(|s| !s.why.is_empty()));
        assert_eq!(plan.is_empty(), expected.is_empty());
    }
}

#[test]
fn each_host_is_compared_with_what_it_really_serves() {
    let drifted = HostAnswer { serves: Some("b".into()), ..answer("a") };
    let there = HostAnswer { built: true, ..answer("new") };
    let unconfirmed = HostAnswer { confirmed: Some("a".into()), staged: true, built: true, ..answer("new") };
    let unknown = answer("elsewhere");
    let hosts = vec![
        host("web-4", unknown),
        host("web-1", drifted),
        host("web-2", there),
        host("web-3", unconfirmed),
        host("web-0", answer("a")),
    ];
    let plan = made(hosts, &[("a", CODE), ("b", Change { requirements: true, ..CODE })]);
    let names: Vec<&str> = plan.hosts.iter().map(|h| &*h.name).collect();
    assert_eq!(names, ["web-0", "web-1", "web-2", "web-3", "web-4"], "in the order of the locks");
    assert_eq!(why(&plan, "web-0", Step::Activate), "the host serves a");
    assert_eq!(why(&plan, "web-1", Step::Activate), "the host serves b, which is not what was confirmed there");
    assert_eq!(why(&plan, "web-1", Step::Build), "the requirements differ from those of b");
    assert!(why(&plan, "web-0", Step::Build).starts_with("the requirements are those of a:"));
    assert_eq!(steps(&plan, "web-2"), "");
    assert_eq!(why(&plan, "web-2", Step::Activate), "the host serves it already");
    assert_eq!(why(&plan, "web-3", Step::Activate), "the host serves it unconfirmed");
    assert_eq!(steps(&plan, "web-4"), "upload build static verify migrate? activate", "nobody knows what differs");
    assert_eq!(plan.waves.waves, [vec!["web-4".into()], vec!["web-1".into(), "web-3".into()] as Vec<Box<str>>]);
    assert_eq!(plan.waves.control.as_deref(), Some("web-0"), "in the fleet's order");
    assert!(
        plan.warnings.iter().any(|w| **w == *"web-1 serves b, though a was confirmed there"),
        "{:?}",
        plan.warnings
    );
}

#[test]
fn hosts_that_are_down_are_named_up_to_a_number() {
    let down = HostFacts { name: "web-1".into(), answer: Err("connection refused".into()) };
    let hosts = vec![host("web-0", answer("a")), down, host("web-2", answer("a"))];
    let groups = BTreeMap::new();
    let mut facts = facts(hosts, &[("a", CODE)], &groups);
    let errors = Plan::new(facts.clone()).unwrap_err();
    assert_eq!(errors, ["1 of 3 hosts cannot be reached, and max_unreachable is 0: web-1 (connection refused)"]);
    facts.limits.max_unreachable = 1;
    let plan = Plan::new(facts).unwrap();
    assert_eq!(plan.waves.down, ["web-1".into()]);
    assert_eq!(why(&plan, "web-1", Step::Activate), "cannot be reached: connection refused; it is caught up later");
}

#[test]
fn what_cannot_be_is_refused_with_all_reasons() {
    let failed = HostAnswer { failed: Some("it did not boot".into()), ..answer("a") };
    let groups = BTreeMap::new();
    let mut facts = facts(vec![host("web-0", failed), host("web-0", answer("a"))], &[("a", CODE)], &groups);
    facts.limits.verdict.false_alarm = 2.0;
    let west = [Wave::Group("west".into())];
    facts.waves = &west;
    let errors = Plan::new(facts).unwrap_err();
    assert_eq!(errors.len(), 4, "{errors:#?}");
}

#[test]
fn a_host_alone_is_judged_by_yesterday() {
    let plan = made(vec![host("web-0", answer("a"))], &[("a", CODE)]);
    assert_eq!(plan.limits.baseline, Baseline::Alone { yesterday: Counts { requests: 1000, errors: 1 } });
    let plan = made(vec![host("web-0", answer("a")), host("web-1", answer("a"))], &[("a", CODE)]);
    assert_eq!(plan.limits.baseline, Baseline::Control);
}

#[test]
fn the_strictest_migration_counts() {
    let other = |migration| HostAnswer {
        deploy: DeployFacts { migration: Some(migration), ..answer("a").deploy },
        ..answer("a")
    };
    let strict = Migration { on: MigrateOn::Each, compatible: false, after: true };
    let plan = made(vec![host("web-0", answer("a")), host("web-1", other(strict))], &[("a", CODE)]);
    assert_eq!(plan.migration, Some(strict));
    assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
}

#[test]
fn a_digest_tells_plans_apart_and_survives_json() {
    let plan = made(vec![host("web-0", answer("a"))], &[("a", CODE)]);
    let back: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
    assert_eq!((back.digest(), &back), (plan.digest(), &plan));
    assert_eq!(plan.digest().len(), 64);
    let mut other = plan.clone();
    other.hosts[0].steps[0].run = Run::No;
    assert_ne!(other.digest(), plan.digest());
}
