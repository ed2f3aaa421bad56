//! Random histories by seed, all short histories, and that both end well.

use super::{Choice, World};
use crate::config::spec::Policy as RestartPolicy;
use crate::core::{Policy, State};
use std::sync::Arc;

const HISTORIES: u64 = 100_000;
const STEPS: usize = 40;

fn worlds(seed: u64) -> World {
    let (mut beat, mut web) = (World::policy(false, 1), World::policy(true, 1));
    let mut batch = World::policy(true, 2);
    Arc::make_mut(&mut batch.restart).policy = RestartPolicy::OnFailure;
    web.requires = vec!["db".into()];
    beat.after = vec!["web".into()];
    let policies: Vec<(&str, Policy)> = match seed % 3 {
        0 => vec![("web", World::policy(true, 1))],
        1 => vec![("beat", World::policy(false, 2)), ("batch", batch)],
        _ => vec![("beat", beat), ("web", web), ("db", World::policy(true, 1))],
    };
    World::new(seed, policies)
}

fn pick(rng: &mut fastrand::Rng, world: &World) -> Option<Choice> {
    if rng.u8(..) < 24 {
        return Some(Choice::Pause);
    }
    if world.mortal && rng.u8(..) < 12 {
        let again = rng.bool().then(|| rng.u8(..6));
        return Some(Choice::Death(rng.u8(..6), again));
    }
    if rng.u8(..) < 96 {
        // As things go: otherwise few histories would get beyond the boot.
        if let Some(choice) = world.well_behaved() {
            return Some(choice);
        }
    }
    let mut choices = world.kernel_choices();
    if rng.u8(..) < 64 {
        choices = world.people_choices();
        if rng.u8(..) < 250 {
            choices.retain(|c| *c != Choice::Shutdown);
        }
    }
    if choices.is_empty() { None } else { Some(choices.swap_remove(rng.usize(..choices.len()))) }
}

/// Without further faults everything that is wanted runs in the end, and everybody has been answered.
fn ends_well(world: &mut World) {
    (world.death, world.death_again) = (None, None);
    let mut left = 2_000;
    let settled = |w: &World| {
        w.machine.services().all(|s| match s.state(w.machine.workers()) {
            State::Running | State::Exited => s.wanted && w.pending_ops() == 0,
            State::Stopped => !s.wanted,
            // Those that require what nobody wants wait.
            State::Waiting => s.policy.requires.iter().any(|r| w.machine.named(r).is_none_or(|r| !r.wanted)),
            _ => false,
        }) && w.pending_ops() == 0
    };
    while !settled(world) {
        left -= 1;
        assert!(left > 0, "never settles: {:#?}", world.machine);
        let Some(choice) = world.well_behaved() else {
            panic!("nothing will ever happen again: {:#?}", world.machine);
        };
        world.apply(choice);
    }
    world.apply(Choice::Shutdown);
    for _ in 0..2_000 {
        let Some(choice) = world.well_behaved() else {
            break;
        };
        world.apply(choice);
    }
    assert!(world.exited(), "svd does not end: {:#?}", world.machine);
    assert_eq!(world.processes(), 0);
}

fn history(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut world = worlds(seed);
    world.mortal = seed % 4 < 2;
    for _ in 0..STEPS {
        let Some(choice) = pick(&mut rng, &world) else {
            continue;
        };
        // Who dies may not hear the tick.
        let tick = choice == Choice::Deadline && world.death.is_none();
        if std::env::var_os("AIRDOCK_SEED").is_some() {
            println!("{:?} {choice:?}", world.now);
        }
        world.apply(choice);
        if tick {
            world.check_no_spin();
        }
        if seed.is_multiple_of(32) {
            world.check_disk();
        }
    }
    if !world.exited() {
        ends_well(&mut world);
    }
}

/// `AIRDOCK_SEED=n` replays one history and prints its steps; `AIRDOCK_HISTORIES=n` runs more.
#[test]
fn random_histories() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = number("AIRDOCK_SEED") {
        return history(seed);
    }
    for seed in 0..number("AIRDOCK_HISTORIES").unwrap_or(HISTORIES) {
        let run = std::panic::catch_unwind(|| history(seed));
        assert!(run.is_ok(), "history {seed} failed: replay it with AIRDOCK_SEED={seed}");
    }
}

/// `death`: in one of the steps svd dies as well.
fn all_histories(world: &World, depth: usize, death: bool, count: &mut u64) {
    *count += 1;
    if depth == 0 {
        return;
    }
    let people = world.people_choices().into_iter();
    for choice in world.kernel_choices().into_iter().chain(people) {
        let mut next = world.clone();
        next.apply(choice.clone());
        all_histories(&next, depth - 1, death, count);
        for at in (0..4).filter(|_| death) {
            let mut next = world.clone();
            next.apply(Choice::Death(at, None));
            next.apply(choice.clone());
            all_histories(&next, depth - 1, false, count);
        }
    }
}

#[test]
fn all_short_histories() {
    for overlap in [true, false] {
        // From the very start …
        let mut count = 0;
        let fresh = World::new(1, vec![("web", World::policy(overlap, 1))]);
        all_histories(&fresh, 4, false, &mut count);
        all_histories(&fresh, 3, true, &mut count);
        // … and from a service that runs.
        let mut running = fresh;
        while running.pending_ops() > 0 {
            let choice = running.well_behaved().expect("it starts");
            running.apply(choice);
        }
        all_histories(&running, 4, false, &mut count);
        all_histories(&running, 3, true, &mut count);
        assert!(count > 10_000, "{count} histories only");
    }
}
