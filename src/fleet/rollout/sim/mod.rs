//! Rollouts in virtual time over simulated hosts, with everything that can fail: hosts go down and boot, the network is cut, answers are
//! lost and calls come late, drivers die between any two actions and somebody else takes over, two deploys meet.
//!
//! `AIRDOCK_ROLLOUTS=n` runs so many random histories, `AIRDOCK_SEED=n` shows one.

mod check;
mod host;
mod lost;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::event::{End, Wish};
use super::journal::{Outcome, Place, Progress, What};
use super::machine::Start;
use super::plan::{DeployFacts, Facts, HostAnswer, HostFacts, Limits, MigrateOn, Migration, Plan, Purpose};
use crate::fleet::verdict::{Baseline, Counts, Settings};
use crate::fleet::waves::Wave;
use host::{Caller, Host, Quality};
use world::{Ev, Rollout, World};

const OLD: &str = "deploy-1";
const MINUTE: u64 = 60_000;

pub(super) fn name(at: usize) -> String {
    format!("web-{at:04}")
}

pub(super) fn limits(parallel: usize, max_unreachable: usize) -> Limits {
    Limits {
        bake: MINUTE,
        lease: 10 * MINUTE,
        long_lease: 24 * 60 * MINUTE,
        parallel,
        max_unreachable,
        verdict: Settings::default(),
        baseline: Baseline::Control,
        slow: None,
        tick: 5_000,
    }
}

/// A plan for so many hosts, all of which serve [`OLD`].
pub(super) fn plan(hosts: usize, n: usize, migration: Option<Migration>, limits: Limits) -> Plan {
    plan_of(Purpose::Deploy, hosts, n, migration, limits)
}

fn plan_of(purpose: Purpose, hosts: usize, n: usize, migration: Option<Migration>, limits: Limits) -> Plan {
    plan_after(Some(OLD), purpose, hosts, n, migration, limits)
}

fn plan_after(
    serves: Option<&str>,
    purpose: Purpose,
    hosts: usize,
    n: usize,
    migration: Option<Migration>,
    limits: Limits,
) -> Plan {
    let deploy = DeployFacts { builds: true, publishes: true, names_statics: true, verifies: true, migration };
    let answer = HostAnswer {
        serves: serves.map(Into::into),
        confirmed: serves.map(Into::into),
        deploy,
        yesterday: Counts { requests: 100_000, errors: 100 },
        ..HostAnswer::default()
    };
    let facts = |at| HostFacts { name: name(at).into(), answer: Ok(answer.clone()) };
    let (rollout, release) = (format!("rollout-{n}"), format!("deploy-{}", n + 2));
    let facts = Facts {
        rollout: &rollout,
        purpose,
        app: "airship",
        release: &release,
        by: "jane",
        at: 1_800_000_000,
        hosts: (0..hosts).map(facts).collect(),
        changes: BTreeMap::new(),
        waves: &[Wave::Hosts(1), Wave::Percent(50), Wave::Percent(100)],
        groups: &BTreeMap::new(),
        limits,
    };
    Plan::new(facts).expect("it can be planned")
}

/// A world with one rollout that is about to begin.
fn world(seed: u64, hosts: usize, load: u64, plan: Plan, quality: Quality) -> World {
    let mut world = World::new(seed, (0..hosts).map(|at| Host::new(at, load, OLD)).collect());
    add(&mut world, plan, quality);
    world.plan(Duration::from_secs(1), Ev::Deploy { rollout: 0 });
    world
}

fn add(world: &mut World, plan: Plan, quality: Quality) {
    let place = Rc::new((0..plan.hosts.len()).collect());
    let (end, migrated, watched, forced) = (None, BTreeSet::new(), false, false);
    let committed = Vec::new();
    world.rollouts.push(Rollout { plan, quality, place, end, migrated, committed, watched, forced });
}

fn over(world: &World) -> (&Outcome, &[(Box<str>, Place)]) {
    match &world.rollouts[0].end {
        Some(End::Over { outcome, places }) => (outcome, places),
        other => panic!("it is not over: {other:?}"),
    }
}

fn confirmed(world: &World) -> usize {
    world.hosts.iter().filter(|h| h.confirmed() == &*world.rollouts[0].plan.release).count()
}

const ONE: Migration = Migration { on: MigrateOn::One, compatible: true, after: true };
const INCOMPATIBLE: Migration = Migration { on: MigrateOn::One, compatible: false, after: false };

#[test]
fn a_good_release_ends_on_all_hosts() {
    for hosts in [1, 2, 3, 4, 10, 30] {
        for parallel in [1, 4] {
            let mut world = world(7, hosts, 200, plan(hosts, 0, Some(ONE), limits(parallel, 0)), Quality::default());
            world.run();
            assert_eq!(over(&world).0, &Outcome::Done { remarks: vec![] }, "{hosts} hosts");
            assert_eq!(confirmed(&world), hosts);
            assert!(world.hosts.iter().all(|h| h.app.lock.is_none() && h.app.trial.is_none() && h.expired == 0));
            assert_eq!(world.rollouts[0].migrated.len(), 2);
        }
    }
}

#[test]
fn one_that_answers_with_errors_is_taken_back_in_the_first_wave() {
    let quality = Quality { errors: 200, ..Quality::default() };
    let mut world = world(7, 10, 200, plan(10, 0, Some(ONE), limits(4, 0)), quality);
    world.run();
    let (outcome, places) = over(&world);
    let Outcome::TakenBack { cause } = outcome else { panic!("{outcome:?}") };
    assert!(cause.contains("requests failed") && cause.starts_with("wave 1:"), "{cause}");
    assert!(places.iter().all(|(_, place)| *place == Place::Before));
    assert_eq!(world.hosts.iter().filter(|h| h.since > Duration::ZERO).count(), 1, "one host was ever switched");
}

#[test]
fn one_that_does_not_boot_changes_no_later_host() {
    let quality = Quality { broken_on: (0..10).collect(), ..Quality::default() };
    let mut world = world(7, 10, 200, plan(10, 0, None, limits(4, 0)), quality);
    world.run();
    let Outcome::TakenBack { cause } = over(&world).0 else { panic!("{:?}", over(&world)) };
    assert_eq!(&**cause, "web-0000: activate: it does not boot");
    assert!(world.hosts.iter().all(|h| h.since == Duration::ZERO));
}

#[test]
fn what_fails_in_a_later_wave_goes_back_everywhere() {
    let quality = Quality { broken_on: BTreeSet::from([7]), ..Quality::default() };
    let mut world = world(7, 10, 200, plan(10, 0, None, limits(4, 0)), quality);
    world.run();
    assert!(matches!(over(&world).0, Outcome::TakenBack { .. }));
    assert_eq!(confirmed(&world), 0);
    assert!(world.hosts.iter().all(|h| h.app.trial.is_none()));
}

#[test]
fn what_is_not_judged_goes_everywhere_at_once_but_where_it_fails() {
    let everywhere = Limits { max_unreachable: 10, ..limits(4, 0) };
    for (broken, there) in [(BTreeSet::new(), 10), (BTreeSet::from([2, 7]), 8), ((0..10).collect(), 0)] {
        // Nobody looks at its errors.
        let quality = Quality { broken_on: broken.clone(), errors: 200, ..Quality::default() };
        let plan = plan_of(Purpose::CatchUp, 10, 0, Some(ONE), everywhere.clone());
        assert_eq!(plan.wave_count(), 1);
        let mut world = world(7, 10, 200, plan, quality);
        world.run();
        assert_eq!(confirmed(&world), there, "{broken:?}");
        let (outcome, places) = over(&world);
        let at = |place: &Place| places.iter().filter(|(_, at)| at == place).count();
        assert_eq!((at(&Place::Confirmed), at(&Place::Before)), (there, 10 - there));
        match outcome {
            Outcome::Done { remarks } => assert_eq!(remarks.len(), broken.len(), "{remarks:?}"),
            other => assert!(there == 0 && matches!(other, Outcome::TakenBack { .. }), "{other:?}"),
        }
        assert!(world.hosts.iter().all(|h| h.app.lock.is_none() && h.app.trial.is_none() && h.expired == 0));
        assert!(world.rollouts[0].migrated.is_empty(), "the migration has run with the others");
    }
}

#[test]
fn one_that_becomes_unfit_goes_back_at_once() {
    let quality = Quality { unfit_after: Some(Duration::from_secs(20)), ..Quality::default() };
    let mut world = world(7, 10, 200, plan(10, 0, None, limits(4, 0)), quality);
    world.run();
    let Outcome::TakenBack { cause } = over(&world).0 else { panic!("{:?}", over(&world)) };
    assert_eq!(&**cause, "wave 1: web-0000: the health check fails");
}

#[test]
fn one_that_is_slow_or_whose_workers_end_again_and_again_is_taken_back() {
    let cause = |quality| {
        let limits = Limits { bake: 3 * MINUTE, slow: Some(131), ..limits(4, 0) };
        let mut world = world(7, 10, 200, plan(10, 0, None, limits), quality);
        world.run();
        assert_eq!(world.hosts.iter().filter(|h| h.since > Duration::ZERO).count(), 1, "one host was ever switched");
        let Outcome::TakenBack { cause } = over(&world).0 else { panic!("{:?}", over(&world)) };
        cause.clone()
    };
    let slow = cause(Quality { slow: 500, ..Quality::default() });
    assert_eq!(&*slow, "wave 1: many more slow requests than with the release before");
    let restarts = cause(Quality { restarts: 2, ..Quality::default() });
    assert_eq!(&*restarts, "wave 1: web-0000: its workers were started again 3 times, where 0 were to be expected");
}

#[test]
fn a_migration_that_fails_switches_no_host() {
    let quality = Quality { migration_fails: true, ..Quality::default() };
    let mut world = world(7, 10, 200, plan(10, 0, Some(ONE), limits(4, 0)), quality);
    world.run();
    assert_eq!(over(&world).0, &Outcome::Failed { cause: "web-0000: migrate: no such column".into() });
}

#[test]
fn after_an_incompatible_migration_hosts_hold_until_somebody_decides() {
    let quality = Quality { errors: 200, ..Quality::default() };
    let mut world = world(7, 10, 200, plan(10, 0, Some(INCOMPATIBLE), limits(4, 0)), quality);
    // Nobody comes.
    world.rollouts[0].watched = true;
    world.run();
    assert!(matches!(world.rollouts[0].end, Some(End::Paused { .. })), "{:?}", world.rollouts[0].end);
    for host in &mut world.hosts {
        host.expire(Duration::from_secs(30 * 24 * 3600));
    }
    assert_eq!(world.hosts.iter().filter(|h| h.app.trial.is_some() && h.held).count(), 1);
    world.rollouts[0].forced = true;
    world.drive(0, Start::TakeOver(Wish::Abort { force: true }));
    world.run();
    assert!(matches!(over(&world).0, Outcome::TakenBack { .. }));
}

#[test]
fn too_few_requests_pause_and_somebody_promotes() {
    let mut world = world(7, 10, 1, plan(10, 0, None, limits(4, 0)), Quality::default());
    world.rollouts[0].watched = true;
    world.run();
    for _ in 0..3 {
        if let Some(End::Paused { why }) = &world.rollouts[0].end {
            assert!(why.contains("too few requests"), "{why}");
            world.drive(0, Start::TakeOver(Wish::Promote));
            world.run();
        }
    }

    assert_eq!(over(&world).0, &Outcome::Done { remarks: vec![] });
}

/// Of a host in others' hands, and of numbers that nobody gets above.
#[test]
fn who_names_an_impossible_number_keeps_nobody_from_the_lock() {
    for (most, outcome) in [(1, "done"), (0, "failed")] {
        let mut world = world(7, 5, 200, plan(5, 0, None, limits(4, most)), Quality::default());
        world.hosts[1].app.fence.number = u64::MAX;
        world.hosts[1].lies = true;
        world.rollouts[0].watched = true;
        world.run();
        assert_eq!(how_it_ended(&world), outcome, "{:?}", world.rollouts[0].end);
        let told = format!("{:?} {:?}", world.rollouts[0].end, world.rollouts[0].committed);
        assert!(told.contains("it names the lock's number 18446744073709551615"), "{told}");
        let others = world.hosts.iter().filter(|host| host.at != 1);
        assert!(others.into_iter().all(|host| host.app.fence.number < 9 << 32), "nobody followed it");
    }
}

/// There is nothing to compare it with: no wave waits for requests, and health and restarts count for a short while.
#[test]
fn the_first_release_is_watched_shortly_and_by_its_health() {
    let ends = |bake, quality| {
        let limits = Limits { bake, ..limits(4, 0) };
        let mut world = world(7, 10, 0, plan_after(None, Purpose::Deploy, 10, 0, None, limits), quality);
        world.run();
        let entries = &world.rollouts[0].committed;
        let at = |is: &dyn Fn(&What) -> bool| entries.iter().find(|e| is(&e.what)).map(|e| e.at).expect("it is there");
        let watched = at(&|w| matches!(w, What::Judged { wave: 1, .. } | What::Failing { .. }))
            - at(&|w| matches!(w, What::Begun { wave: 0 }));
        (over(&world).0.clone(), watched)
    };
    let good = Outcome::Done { remarks: vec![] };
    let (outcome, seconds) = ends(5 * MINUTE, Quality::default());
    assert!(outcome == good && (60..150).contains(&seconds), "{outcome:?} after {seconds} s");
    let (outcome, seconds) = ends(5_000, Quality::default());
    assert!(outcome == good && seconds < 60, "{outcome:?} after {seconds} s");
    for quality in [
        Quality { unfit_after: Some(Duration::from_secs(20)), ..Quality::default() },
        Quality { restarts: 12, ..Quality::default() },
    ] {
        let (outcome, _) = ends(5 * MINUTE, quality);
        let Outcome::TakenBack { cause } = outcome else { panic!("{outcome:?}") };
        assert!(cause.starts_with("wave 1: web-0000: "), "{cause}");
    }
}

/// What a history of a seed is made of.
fn random(seed: u64) -> World {
    let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
    let hosts = match rng.u8(..100) {
        0 if seed.is_multiple_of(7) => 300,
        0..5 => rng.usize(20..60),
        _ => rng.usize(1..11),
    };
    let migration =
        [None, Some(ONE), Some(INCOMPATIBLE), Some(Migration { on: MigrateOn::Each, ..ONE })][rng.usize(..4)];
    let quality = |rng: &mut fastrand::Rng| Quality {
        broken_on: if rng.u8(..6) == 0 { (0..hosts).filter(|_| rng.bool()).collect() } else { BTreeSet::new() },
        errors: if rng.u8(..5) == 0 { 200 } else { 1 },
        migration_fails: rng.u8(..12) == 0,
        unfit_after: (rng.u8(..10) == 0).then_some(Duration::from_secs(30)),
        ..Quality::default()
    };
    let limits = limits(rng.usize(1..9), rng.usize(..3));
    let load = if rng.u8(..10) == 0 { 1 } else { 200 };
    let first = quality(&mut rng);
    // Every eleventh is not judged: each host is there for itself.
    let purpose = if seed % 11 == 3 { Purpose::CatchUp } else { Purpose::Deploy };
    let limits = match purpose {
        Purpose::Deploy => limits,
        _ => Limits { max_unreachable: hosts, ..limits },
    };
    let mut world = world(seed, hosts, load, plan_of(purpose, hosts, 0, migration, limits.clone()), first);
    if rng.u8(..3) == 0 {
        let second = quality(&mut rng);
        add(&mut world, plan(hosts, 1, None, limits), second);
        let after = Duration::from_millis(rng.u64(..2_000_000));
        world.plan(after, Ev::Deploy { rollout: 1 });
    }
    if !seed.is_multiple_of(4) {
        world.chaos_until = Duration::from_secs(rng.u64(60..7_200));
        world.hosts_fail = rng.u8(..3) > 0;
        world.drivers_die = rng.u8(..3) > 0;
        world.plan(Duration::from_secs(1), Ev::Chaos);
    }
    world
}

#[expect(clippy::disallowed_methods, reason = "forbidden to what is tested")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

/// Runs one history to its end, and then everything that is not over, until it is.
fn finish(world: &mut World) {
    world.run();
    for round in 0.. {
        let open = |r: &Rollout| {
            let begun = world.hosts.iter().any(|h| h.journal.0 == r.plan.rollout);
            begun && !matches!(r.end, Some(End::Over { .. } | End::Refused(_)))
        };
        let Some(at) = world.rollouts.iter().position(open) else { break };
        assert!(
            round < 20,
            "{} does not come to an end: {:?}",
            world.rollouts[at].plan.rollout,
            world.rollouts[at].end
        );
        if let (Some(End::Locked(_)), true) = (&world.rollouts[at].end, world.rollouts.len() > 1) {
            // The other one has left a release on trial on a host that it had lost.
            world.drive(1 - at, Start::TakeOver(Wish::Resume));
            world.run();
        }
        world.rollouts[at].watched = true;
        world.wish = Wish::Resume;
        let wish = if round < 6 { Wish::Resume } else { Wish::Abort { force: true } };
        world.rollouts[at].forced |= round >= 6;
        world.drive(at, Start::TakeOver(wish));
        world.run();
    }
    let end = world.now + Duration::from_secs(30 * 24 * 3600);
    for host in &mut world.hosts {
        host.expire(end);
        assert!(host.app.trial.is_none() || host.held, "host {} is left on trial: {:?}", host.at, host.app.trial);
        Progress::replay(&host.journal.1).unwrap_or_else(|why| panic!("the journal on host {}: {why}", host.at));
    }
}

fn history(seed: u64, traced: bool) -> &'static str {
    let mut world = random(seed);
    world.trace = traced.then(Vec::new);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        finish(&mut world);
        calm_weather(&world);
    }));
    if let Err(panic) = result {
        if let Some(trace) = &world.trace {
            println!("{}", trace.join("\n"));
        } else {
            println!(
                "history {seed} fails: AIRDOCK_SEED={seed} cargo test --lib fleet::rollout::sim::random -- --nocapture"
            );
        }
        std::panic::resume_unwind(panic);
    }
    how_it_ended(&world)
}

fn how_it_ended(world: &World) -> &'static str {
    match &world.rollouts[0].end {
        Some(End::Over { outcome: Outcome::Done { .. }, .. }) => "done",
        Some(End::Over { outcome: Outcome::TakenBack { .. }, .. }) => "taken back",
        Some(End::Over { outcome: Outcome::Failed { .. }, .. }) => "failed",
        Some(End::Locked(_)) => "locked",
        Some(_) => "other",
        None => "nothing",
    }
}

/// Where nothing fails but perhaps the release, no lease runs out, and a good one ends on all hosts.
fn calm_weather(world: &World) {
    if !world.chaos_until.is_zero() || world.rollouts.len() > 1 {
        return;
    }
    let Rollout { quality, plan, .. } = &world.rollouts[0];
    let quality = match plan.purpose {
        Purpose::Deploy => quality.clone(),
        // Nobody looks at it. A migration that each host has for itself runs there, and may fail.
        _ => Quality { errors: 0, unfit_after: None, ..quality.clone() },
    };
    let good = quality.broken_on.is_empty()
        && quality.errors <= 1
        && quality.unfit_after.is_none()
        && !(quality.migration_fails && plan.migration.is_some());
    let few = world.hosts[0].load == 1;
    assert!(
        !good || few || how_it_ended(world) == "done",
        "a good release in calm weather: {:?}",
        world.rollouts[0].end
    );
    assert!(world.hosts.iter().all(|h| h.expired == 0), "a lease has run out in calm weather");
}

#[test]
fn random_histories() {
    if let Some(seed) = number("AIRDOCK_SEED") {
        return println!("{}", history(seed, true));
    }
    let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
    let first = number("AIRDOCK_FIRST").unwrap_or(0);
    for seed in first..first + number("AIRDOCK_ROLLOUTS").unwrap_or(200) {
        *ends.entry(history(seed, false)).or_default() += 1;
    }
    println!("{ends:?}");
    for end in ["done", "taken back", "failed"] {
        assert!(ends.contains_key(end), "no history ends {end}: {ends:?}");
    }
}

/// Every call of a driver is once the one before which it dies; somebody else resumes, or aborts.
#[test]
fn a_driver_may_die_before_any_call() {
    let cases = [
        (3, Quality::default()),
        (4, Quality { errors: 200, ..Quality::default() }),
        (5, Quality { broken_on: BTreeSet::from([3]), ..Quality::default() }),
    ];
    for (hosts, quality) in cases {
        let plan = plan(hosts, 0, Some(ONE), limits(2, 0));
        for wish in [Wish::Resume, Wish::Abort { force: false }] {
            let mut deaths = 0;
            for calls in 0.. {
                let mut world = world(calls, hosts, 200, plan.clone(), quality.clone());
                world.next_dies_after = Some(calls);
                world.wish = wish;
                world.rollouts[0].watched = true;
                world.run();
                if world.rollouts[0].end.is_some() {
                    break;
                }
                deaths += 1;
                let wait = [5, 1_000][calls as usize % 2];
                world.now += Duration::from_secs(wait);
                let now = world.now;
                world.hosts.iter_mut().for_each(|h| h.expire(now));
                if world.hosts.iter().any(|h| !h.journal.1.is_empty()) {
                    world.drive(0, Start::TakeOver(wish));
                    finish(&mut world);
                    let good = quality.errors == 0 && quality.broken_on.is_empty();
                    let done = matches!(over(&world).0, Outcome::Done { .. });
                    assert!(done || !good || wish != Wish::Resume, "death before call {calls}: {:?}", over(&world));
                    let all = confirmed(&world);
                    assert!(all == 0 || all == hosts, "death before call {calls}: {all} of {hosts} hosts");
                }
                assert!(world.hosts.iter().all(|h| h.app.trial.is_none()));
            }
            assert!(deaths > 50, "{deaths} deaths only");
        }
    }
}

/// Two deploys that begin at about the same moment: one at most is not refused.
#[test]
fn of_two_deploys_at_once_one_is_refused() {
    for seed in 0..60 {
        let mut world = world(seed, 5, 200, plan(5, 0, None, limits(2, 0)), Quality::default());
        add(&mut world, plan(5, 1, None, limits(2, 0)), Quality::default());
        let after = world.rng.u64(900..1_300);
        world.plan(Duration::from_millis(after), Ev::Deploy { rollout: 1 });
        world.rollouts.iter_mut().for_each(|r| r.watched = true);
        world.run();
        let done = |r: &Rollout| matches!(r.end, Some(End::Over { outcome: Outcome::Done { .. }, .. }));
        let locked = |r: &Rollout| matches!(r.end, Some(End::Locked(_)));
        assert_eq!(world.rollouts.iter().filter(|r| done(r)).count(), 1, "seed {seed}");
        assert_eq!(world.rollouts.iter().filter(|r| locked(r)).count(), 1, "seed {seed}");
        assert!(world.hosts.iter().all(|h| h.app.lock.is_none()));
    }
}

/// A thousand hosts, some of which fail.
#[test]
fn a_thousand_hosts() {
    let (hosts, mut seen) = (1_000, BTreeMap::new());
    for seed in 0..number("AIRDOCK_FLEETS").unwrap_or(1) {
        let quality = Quality { errors: 1, ..Quality::default() };
        let mut world = world(seed, hosts, 200, plan(hosts, 0, Some(ONE), limits(50, 30)), quality);
        world.chaos_until = Duration::from_secs(1_200);
        world.hosts_fail = true;
        world.plan(Duration::from_secs(60), Ev::Chaos);
        finish(&mut world);
        *seen.entry(format!("{:?}", over(&world).0).chars().take(60).collect::<String>()).or_insert(0) += 1;
        println!("{seed}: {} calls, {} s, {} confirmed", world.calls, world.now.as_secs(), confirmed(&world));
    }
    println!("{seen:?}");
}

/// A journal that ends after any of its entries is gone on from, whatever of the rest was done.
#[test]
fn journals_cut_short_at_any_entry_are_gone_on_from() {
    let fresh = |seed| {
        let mut world = World::new(seed, (0..4).map(|at| Host::new(at, 200, OLD)).collect());
        add(&mut world, plan(4, 0, Some(ONE), limits(4, 0)), Quality::default());
        world.rollouts[0].watched = true;
        world
    };
    let mut whole = fresh(3);
    whole.drive(0, Start::Deploy);
    whole.run();
    let journal = whole.hosts[0].journal.1.clone();
    assert!(journal.len() > 10, "{}", journal.len());
    let confirming = journal.iter().position(|e| e.what == What::Confirming).expect("it ends well");
    for length in 1..journal.len() {
        Progress::replay(&journal[..length]).expect("every beginning is a journal");
        let mut world = fresh(length as u64);
        for host in &mut world.hosts {
            host.journal = ("rollout-0".into(), journal[..length].to_vec());
            host.written = journal[length - 1].number;
            // All was prepared before, and is written down as such.
            host.prepared = whole.hosts[host.at].prepared.clone();
            host.app.releases = whole.hosts[host.at].app.releases.clone();
            if length > confirming + 1 {
                host.app.confirmed = whole.hosts[host.at].app.confirmed.clone();
            }
        }
        world.drive(0, Start::TakeOver(Wish::Resume));
        finish(&mut world);
        assert!(matches!(over(&world).0, Outcome::Done { .. }), "cut after {length}: {:?}", over(&world));
        assert_eq!(confirmed(&world), 4, "cut after {length}");
    }
}
