//! Hosts that do not answer for a while or for ever, and what only a minority has written down.

use super::super::journal::Entry;
use super::*;
use crate::release::app::Fence;

/// Seconds of the world, by which the first driver has written something down; the rollout begins after one.
fn at(entry: &Entry) -> u64 {
    entry.at - 1_800_000_000 + 1
}

fn when(world: &World, is: impl Fn(&What) -> bool) -> Option<u64> {
    world.rollouts[0].committed.iter().find(|entry| is(&entry.what)).map(at)
}

fn begins() -> World {
    let mut world = world(7, 10, 200, plan(10, 0, Some(ONE), limits(4, 1)), Quality::default());
    world.rollouts[0].watched = true;
    world
}

fn left_out(what: &What) -> bool {
    matches!(what, What::Skipped { .. })
}

#[test]
fn a_host_that_hiccups_at_any_time_is_not_left_out() {
    let mut calm = begins();
    calm.run();
    let last = calm.now.as_secs();
    for from in (2..last).step_by(23) {
        for host in [0, 3, 9] {
            let mut world = begins();
            world.plan(Duration::from_secs(from), Ev::Reach { host, reached: false });
            world.plan(Duration::from_secs(from + 12), Ev::Reach { host, reached: true });
            world.run();
            assert_eq!(over(&world).0, &Outcome::Done { remarks: vec![] }, "host {host}, from {from}");
            assert_eq!((when(&world, left_out), confirmed(&world)), (None, 10), "host {host}, from {from}");
        }
    }
}

/// Whether it serves the old release then, or the new one, or is to be switched with others.
#[test]
fn a_host_that_vanishes_in_a_wave_is_left_out_within_half_a_minute() {
    let mut calm = begins();
    calm.run();
    for wave in 0..2 {
        let begun = when(&calm, |what| *what == What::Begun { wave }).expect("it begins");
        for (host, later) in [(1, 30), (3, 50), (8, 40), (8, 50)] {
            let gone = begun + later;
            let mut world = begins();
            world.plan(Duration::from_secs(gone), Ev::Reach { host, reached: false });
            world.run();
            let after = when(&world, left_out).expect("it is left out") - gone;
            // Five until it is asked, ten until that has failed.
            assert!((15..=31).contains(&after), "host {host}, {later} s after wave {wave} began: {after} s");
            assert!(matches!(over(&world).0, Outcome::Done { .. }), "{:?}", over(&world).0);
        }
    }
}

/// One that is neither the first, nor alone in its wave, nor the one that others are compared with.
const ODD: usize = 2;

/// Five hosts with what the first driver has left: `length` entries, and on one of them `more`.
fn left(length: usize, more: &[Entry]) -> World {
    let mut whole = begun_on_five();
    whole.drive(0, Start::Deploy);
    whole.run();
    let journal = whole.hosts[0].journal.1.clone();
    let mut world = begun_on_five();
    for host in &mut world.hosts {
        host.journal = ("rollout-0".into(), journal[..length].to_vec());
        host.written = journal[0].number;
        host.prepared = whole.hosts[host.at].prepared.clone();
        host.app.releases = whole.hosts[host.at].app.releases.clone();
    }
    world.hosts[ODD].journal.1.extend(more.iter().cloned());
    world
}

fn begun_on_five() -> World {
    let mut world = World::new(3, (0..5).map(|at| Host::new(at, 200, OLD)).collect());
    add(&mut world, plan(5, 0, None, limits(4, 1)), Quality::default());
    world.rollouts[0].watched = true;
    world
}

/// What has been written down by one host alone, further than what all others have, before its driver died.
#[test]
fn what_a_minority_has_written_comes_true_if_it_is_read_and_else_never() {
    let number = left(3, &[]).hosts[0].written;
    let cause: Box<str> = "a minority knows".into();
    let failing = Entry { at: 1_800_000_000, number, what: What::Failing { cause: cause.clone(), faulty: false } };
    let failing = [failing];

    let mut read = left(3, &failing);
    read.drive(0, Start::TakeOver(Wish::Resume));
    read.run();
    assert_eq!(over(&read).0, &Outcome::Failed { cause }, "it is gone on from");

    // Nobody can read it, and all go on without it.
    let mut unread = left(3, &failing);
    unread.hosts[ODD].up = false;
    unread.drive(0, Start::TakeOver(Wish::Resume));
    unread.run();
    assert!(matches!(over(&unread).0, Outcome::Done { .. }), "{:?}", over(&unread));
    assert_eq!(confirmed(&unread), 4);
    // It is back, with a journal that the others' number makes void.
    unread.hosts[ODD].up = true;
    assert_eq!(unread.hosts[ODD].journal.1.last(), failing.last(), "nobody has told it yet");
    unread.drive(0, Start::TakeOver(Wish::Resume));
    unread.run();
    assert!(matches!(over(&unread).0, Outcome::Done { .. }), "{:?}", over(&unread));
    assert_eq!(unread.hosts[ODD].journal, unread.hosts[0].journal, "it has what the others have");
    assert_eq!(confirmed(&unread), 4, "and is caught up later");
}

/// The longer journal is not the further one: what was written with a higher number counts more.
#[test]
fn a_longer_journal_of_an_earlier_driver_is_void() {
    let number = left(3, &[]).hosts[0].written;
    let entry = |number, what| Entry { at: 1_800_000_000, number, what };
    let earlier = [
        entry(number, What::Begun { wave: 0 }),
        entry(number, What::Paused { why: "nobody knows".into() }),
        entry(number, What::Failing { cause: "a minority knows".into(), faulty: true }),
    ];
    let mut world = left(3, &earlier);
    let later = number + (1 << 32);
    for host in world.hosts.iter_mut().filter(|host| [0, 1, 3].contains(&host.at)) {
        host.journal.1.push(entry(later, What::Taken { by: "another driver".into() }));
        host.written = later;
    }
    world.drive(0, Start::TakeOver(Wish::Resume));
    world.run();
    assert_eq!(over(&world).0, &Outcome::Done { remarks: vec![] });
    assert_eq!(confirmed(&world), 5);
}

/// Two drivers have each brought their last words to some hosts and died; whoever has acted upon an end is believed by all that follow.
#[test]
fn an_end_that_was_acted_upon_stays_the_end() {
    let mut world = left(3, &[]);
    let number = world.hosts[0].written;
    let places = world.hosts.iter().map(|h| (name(h.at).into(), Place::Before)).collect();
    let outcome = Outcome::Failed { cause: "it was so".into() };
    let entry = |number, what| Entry { at: 1_800_000_000, number, what };
    let failing = entry(number, What::Failing { cause: "it was so".into(), faulty: false });
    world.hosts.iter_mut().for_each(|host| host.journal.1.push(failing.clone()));
    // Two hosts have the end; a third one has heard of a later driver, who did not know it.
    for host in &mut world.hosts[..2] {
        host.journal.1.push(entry(number, What::Ended { outcome: outcome.clone(), places: Vec::clone(&places) }));
    }
    let later = number + (1 << 32);
    world.hosts[3].journal.1.push(entry(later, What::Taken { by: "another driver".into() }));
    world.hosts[3].written = later;
    // Whom a majority had granted the lock.
    for host in &mut world.hosts[2..] {
        host.app.fence = Fence { number: later, rollout: "rollout-0".into() };
    }
    // Whoever comes now does not reach that one, and acts.
    world.hosts[3].up = false;
    world.drive(0, Start::TakeOver(Wish::Resume));
    world.run();
    assert_eq!(over(&world).0, &outcome);
    let told = world.hosts.iter().filter(|host| host.written > later).count();
    assert!(told >= 3, "{told} have it from the one who acted");
    // The one that has heard of another driver changes nothing any more.
    world.hosts[3].up = true;
    world.hosts[4].up = false;
    world.drive(0, Start::TakeOver(Wish::Resume));
    world.run();
    assert_eq!(over(&world).0, &outcome);
    assert_eq!(world.hosts[3].journal, world.hosts[0].journal);
}

/// A host that grants no lock, for whatever reason, is left out like one that does not answer, and told with its reason.
#[test]
fn who_refuses_the_lock_is_left_out_and_named() {
    for (refusing, most, outcome) in [(1, 1, "done"), (1, 0, "failed"), (3, 5, "other")] {
        let mut world = world(7, 5, 200, plan(5, 0, None, limits(4, most)), Quality::default());
        for host in world.hosts.iter_mut().skip(1).take(refusing) {
            host.refuses = Some("its disk is full");
        }
        world.rollouts[0].watched = true;
        world.run();
        assert_eq!(how_it_ended(&world), outcome, "{:?}", world.rollouts[0].end);
        if outcome != "done" {
            let end = format!("{:?}", world.rollouts[0].end);
            assert!(end.contains("web-0001: its disk is full"), "{end}");
        }
    }
}

/// One that is on trial for an unfinished rollout refuses whoever begins, and is no obstacle to who goes on.
#[test]
fn a_takeover_does_without_a_minority_that_is_another_rollouts() {
    let mut world = world(7, 5, 200, plan(5, 0, None, limits(4, 2)), Quality::default());
    world.rollouts[0].watched = true;
    world.next_dies_after = Some(60);
    world.run();
    assert!(world.rollouts[0].end.is_none() && world.hosts.iter().any(|h| !h.journal.1.is_empty()));
    let other = Caller { rollout: "other".into(), release: "deploy-9".into(), number: 1 };
    world.hosts[1].app.lock = None;
    let now = world.now;
    world.hosts[1].hold_for(now, &other);
    world.drive(0, Start::TakeOver(Wish::Resume));
    world.run();
    assert_eq!(how_it_ended(&world), "done", "{:?}", world.rollouts[0].end);
    let (_, places) = over(&world);
    assert!(matches!(&places[1].1, Place::Unknown(why) if why.contains("is on trial here")), "{places:?}");
}

/// Where health alone decides, a canary that has vanished is not taken for a good one.
#[test]
fn who_vanishes_with_the_release_is_not_found_good() {
    let limits = Limits { baseline: Baseline::Health, ..limits(4, 3) };
    let mut world = world(7, 10, 200, plan(10, 0, None, limits), Quality::default());
    world.hosts[0].vanishes = true;
    world.rollouts[0].watched = true;
    world.run();
    let Outcome::TakenBack { cause } = over(&world).0 else { panic!("{:?}", over(&world)) };
    assert_eq!(&**cause, "no host of wave 1 serves the release any more");
    assert!(world.hosts[1..].iter().all(|h| h.since.is_zero()), "nobody else was switched");
}
