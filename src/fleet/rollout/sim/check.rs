//! The rules, checked at every call that a host takes.

use super::super::event::Call;
use super::super::journal::{Outcome, Place, Progress, Stage, What};
use super::super::machine::Machine;
use super::super::plan::MigrateOn;
use super::host::Caller;
use super::world::World;
use crate::fleet::verdict;
use std::time::Duration;

/// Looking at all journals for each call would take too long.
const MANY: usize = 60;

/// So many hosts of the rollout that two such sets share one have an entry like that.
fn is_on_a_quorum(world: &World, rollout: usize, is: impl Fn(&What) -> bool) -> bool {
    let rollout = &world.rollouts[rollout];
    let has = |host: &usize| world.hosts[*host].entries(&rollout.plan.rollout).iter().rev().any(|e| is(&e.what));
    let count = rollout.place.iter().filter(|h| has(h)).count();
    2 * count > rollout.place.len() || (2 * count == rollout.place.len() && has(&rollout.place[0]))
}

/// What a driver sends.
pub fn sent(world: &World, driver: usize, call: &Call, host: usize) {
    let rollout = &world.rollouts[world.drivers[driver].rollout];
    let machine = &world.drivers[driver].machine;
    if let (Call::TakeBack { .. }, Stage::Failing { .. }) = (call, &machine.progress.stage) {
        // Newest wave first: what is newer has answered, or is given up.
        let wave = machine.hosts[rollout.place.iter().position(|h| *h == host).expect("a host")].wave;
        for newer in machine.hosts.iter().filter(|h| h.wave > wave) {
            assert!(
                !newer.may_run_it() || newer.lost.is_some() || newer.skipped || newer.given_up,
                "{} goes back before {}",
                host,
                newer.name
            );
        }
        assert!(
            !machine.progress.is_one_way() || rollout.forced || !world.hosts[host].has_trial_of(&rollout.plan.rollout),
            "taken back after a migration that the old code does not work with"
        );
    }
}

/// A migration begins: never one that has run, or may have.
pub fn migrates(world: &mut World, caller: &Caller, key: &str) {
    let Some(rollout) = world.rollouts.iter_mut().find(|r| r.plan.rollout == caller.rollout) else { return };
    if matches!(rollout.plan.migration, Some(m) if m.on == MigrateOn::One) {
        assert!(rollout.migrated.insert(key.into()), "{key} runs twice");
    }
}

/// What a host has taken.
pub fn accepted(world: &mut World, host: usize, caller: &Caller, call: &Call) {
    let Some(rollout) = world.rollouts.iter().position(|r| r.plan.rollout == caller.rollout) else { return };
    let this = &world.rollouts[rollout];
    let position = this.place.iter().position(|h| *h == host).expect("a host of the rollout");
    let name = this.plan.hosts[position].name.clone();
    let wave = this.plan.waves.wave_of(&name);
    let seldom = world.hosts.len() > MANY && !world.calls.is_multiple_of(40);
    match call {
        Call::Append { .. } => no_older_number_commits(world, rollout, caller),
        Call::Activate { .. } if !seldom => {
            let wave = wave.expect("only hosts of a wave are switched");
            let begun = |what: &What| match what {
                Begun { wave: begun } => *begun >= wave,
                Confirming => true,
                _ => false,
            };
            use What::{Begun, Confirming};
            assert!(
                is_on_a_quorum(world, rollout, begun),
                "{name} of wave {wave} is switched before its wave has begun"
            );
            all_prepared(world, rollout);
        }
        Call::Migrate { after: false, .. } => {
            let may =
                |what: &What| matches!(what, What::Migrating { host } if host.as_ref().is_none_or(|h| *h == name));
            assert!(is_on_a_quorum(world, rollout, may), "{name} migrates, and nobody has written that down");
        }
        Call::Confirm if !seldom => {
            assert!(
                is_on_a_quorum(world, rollout, |w| matches!(w, What::Confirming)),
                "confirmed before all have passed"
            );
        }
        Call::TakeBack { .. } if !seldom => {
            let may = |w: &What| matches!(w, What::Failing { .. } | What::Restarted { .. });
            assert!(is_on_a_quorum(world, rollout, may), "{name} is taken back, and nobody has written that down");
        }
        _ => {}
    }
}

/// Once a quorum has an entry of a number, no quorum gets one of a lower number: never two holders of the lock act.
fn no_older_number_commits(world: &mut World, rollout: usize, caller: &Caller) {
    if world.hosts.len() > MANY {
        return;
    }
    let this = &world.rollouts[rollout];
    let has =
        |host: &usize| world.hosts[*host].entries(&caller.rollout).last().is_some_and(|e| e.number == caller.number);
    let count = this.place.iter().filter(|h| has(h)).count();
    if 2 * count > this.place.len() {
        // All rollouts of these tests are of the same hosts.
        let highest = world.recorded.entry(0).or_default();
        assert!(
            *highest <= caller.number,
            "an older holder of the lock has got a majority: {} after {highest}",
            caller.number
        );
        *highest = caller.number;
    }
}

fn all_prepared(world: &World, rollout: usize) {
    let this = &world.rollouts[rollout];
    let skipped = |name: &str| {
        world.hosts.iter().any(|h| {
            let is = |what: &What| matches!(what, What::Skipped { host, .. } if **host == *name);
            h.entries(&this.plan.rollout).iter().any(|e| is(&e.what))
        })
    };
    for (planned, at) in this.plan.hosts.iter().zip(this.place.iter()) {
        let steps = world.hosts[*at].prepared.get(&this.plan.rollout);
        let ready = planned.steps.iter().all(|s| {
            use super::super::plan::{Run, Step::*};
            !matches!(s.step, Stage | Build | Publish | Verify)
                || s.run == Run::No
                || steps.is_some_and(|done| done.contains(&s.step))
        });
        let part = this.plan.waves.wave_of(&planned.name).is_some();
        assert!(ready || !part || skipped(&planned.name), "a host is switched before {} is prepared", planned.name);
    }
}

/// The rollout is over, and says where each host is.
pub fn at_the_end(world: &World, rollout: usize, outcome: &Outcome, places: &[(Box<str>, Place)], machine: &Machine) {
    let this = &world.rollouts[rollout];
    let progress = Progress::replay(machine.journal().iter().map(|line| &***line)).expect("its journal can be read");
    assert_eq!(progress.stage, Stage::Ended);
    assert_eq!(places.len(), this.plan.hosts.len(), "every host is named");
    let unknown = places.iter().filter(|(_, place)| matches!(place, Place::Unknown(_))).count();
    let away = progress.skipped.len() + this.plan.waves.down.len();
    for (name, place) in places {
        let position = this.plan.hosts.iter().position(|h| h.name == *name).expect("a host of the plan");
        let host = &world.hosts[this.place[position]];
        match place {
            Place::Confirmed => {
                assert_eq!(host.confirmed(), &*this.plan.release, "{name} is said to be confirmed");
            }
            Place::Before => {
                assert_ne!(host.confirmed(), &*this.plan.release, "{name} is said to be as before");
                // A call that came late is its lease's business.
                let late = world.chaos_until > Duration::ZERO;
                assert!(late || host.app.trial.is_none(), "{name} is said to be as before, and has a trial");
            }
            Place::Unknown(why) => assert!(!why.is_empty()),
        }
    }
    match outcome {
        Outcome::Done { remarks } => {
            let all = places.iter().filter(|(name, _)| this.plan.waves.wave_of(name).is_some());
            let missed = all.filter(|(_, place)| *place != Place::Confirmed).count();
            let allowed = progress.skipped.len() + remarks.len() + unknown;
            assert!(missed <= allowed, "{missed} hosts missed the confirmation, and {away} are named");
        }
        Outcome::TakenBack { .. } | Outcome::Failed { .. } => {
            assert!(
                !places
                    .iter()
                    .any(|(name, place)| { this.plan.waves.wave_of(name).is_some() && *place == Place::Confirmed })
            );
        }
    }
    first_wave_failed(world, rollout, machine);
}

/// If the first wave was taken back by its verdict, no host of a later wave was ever switched.
fn first_wave_failed(world: &World, rollout: usize, machine: &Machine) {
    let this = &world.rollouts[rollout];
    let begun = machine.journal().iter().any(|e| matches!(e.what, What::Begun { wave } if wave > 0));
    let judged = machine.journal().iter().any(|e| {
        matches!(&e.what, What::Judged { wave: 0, record } if matches!(record.verdict.outcome, verdict::Outcome::TakeBack(_)))
    });
    if judged && !begun {
        for name in this.plan.waves.waves.iter().skip(1).flatten().chain(&this.plan.waves.control) {
            let position = this.plan.hosts.iter().position(|h| h.name == *name).expect("a host of the plan");
            let host = &world.hosts[this.place[position]];
            assert!(!host.has_trial_of(&this.plan.rollout), "{name} was switched, though the first wave has failed");
        }
    }
}
