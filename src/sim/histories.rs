//! Random histories by seed, all short histories, and that both end well.

use super::{Birth, Choice, History, Kind, Nth, World};
use crate::core::{Command, Exit, ServiceId};
use std::cell::RefCell;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

const HISTORIES: u64 = 100_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|v| v.parse().ok())
}

/// On as many threads as there are processors: the n-th of so many.
fn on_all(run: impl Fn(u64, u64) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    std::thread::scope(|scope| {
        let all: Vec<_> =
            (0..threads).map(|n| (n, &run)).map(|(n, run)| scope.spawn(move || run(n, threads))).collect();
        for thread in all {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// `AIRDOCK_SEED=n` shows one history; `AIRDOCK_HISTORIES=n` runs more, and `AIRDOCK_FIRST=n` begins with another seed.
#[test]
fn random_histories() {
    if let Some(seed) = number("AIRDOCK_SEED") {
        return History::random(seed).show();
    }
    let first = number("AIRDOCK_FIRST").unwrap_or(0);
    let last = first + number("AIRDOCK_HISTORIES").unwrap_or(HISTORIES);
    let (begun, choices) = (std::time::Instant::now(), AtomicU64::new(0));
    on_all(|n, threads| {
        for seed in (first + n..last).step_by(threads as usize) {
            choices.fetch_add(History::random(seed).steps.len() as u64, Relaxed);
        }
    });
    println!("{} histories of {} choices in {:.1?}", last - first, choices.into_inner(), begun.elapsed());
}

/// A bug that needs a stop and a death at the right moment, among forty choices.
#[test]
fn what_fails_shrinks_to_what_matters() {
    let mut lengths = Vec::new();
    for seed in (0..).filter(|seed| seed % 4 < 2) {
        let (history, failed) = History { forgetful: true, ..History::of_seed(seed) }.pick();
        if !failed {
            continue;
        }
        let before = history.failure().expect("what has failed fails when it is replayed");
        let shrunk = history.clone().shrink();
        let after = shrunk.failure().expect("what is left fails as well");
        println!(
            "{} of {} choices:\n{}\n{}\n",
            shrunk.steps.len(),
            history.steps.len(),
            after.trace.join("\n"),
            after.what
        );
        assert_eq!(before.what.split(':').next(), after.what.split(':').next(), "the same rule is broken");
        let deaths = shrunk
            .steps
            .iter()
            .filter(|c| matches!(c, Choice::Death(_) | Choice::DeathOfBoth(_) | Choice::DeathOfGuardian));
        assert!(deaths.count() >= 1, "{shrunk:?}");
        // Until there is a standby, two generations have to boot.
        let keeps =
            |c: &Choice| matches!(c, Choice::Command(_, Command::Reload { keep: Some(_), .. } | Command::Canary(_)));
        let boots = if shrunk.steps.iter().any(keeps) { 4 } else { 0 };
        lengths.push(shrunk.steps.len() - boots);
        if lengths.len() == 5 {
            break;
        }
    }
    // Prepared, spawned, stopped, killed, returned, and what has to be there before.
    assert!(lengths.iter().all(|length| *length <= 10), "{lengths:?}");
}

/// Histories that failed once.
#[test]
fn what_failed_once_does_not_fail_again() {
    let (batch, nth) = (ServiceId(1), |n| Nth(ServiceId(1), n));
    // Of two workers that were being spawned when svd died one has ended, so that the generation is taken back before it is
    // told that the other one was never forked.
    let unspawned = vec![
        Choice::Prepared(nth(0), Ok(())),
        Choice::Spawned(Birth::Good),
        Choice::Ready(nth(0)),
        Choice::Spawned(Birth::Good),
        Choice::Exit(nth(1), Exit::Code(0), false),
        Choice::Command(batch, Command::reload(None, true)),
        Choice::Death(4),
        Choice::Prepared(nth(0), Ok(())),
        Choice::Spawned(Birth::Good),
        Choice::Exit(nth(1), Exit::Signal(15), false),
    ];
    let history = History { kind: Kind::Two, seed: 1, mortal: true, ends: true, forgetful: false, steps: unspawned };
    assert!(history.failure().is_none(), "{:#?}", history.failure());
}

/// What was just replaced for one reason is replaced for the other at once, and for the same only after its pause.
#[test]
fn memory_and_health_have_pauses_of_their_own() {
    let mut world = Kind::One.world(1).begin();
    let service = ServiceId(0);
    let mut next = |choice: Option<Choice>| {
        choice.iter().for_each(|choice| _ = world.apply(choice));
        for _ in 0..100 {
            match world.well_behaved().filter(|choice| !matches!(choice, Choice::Deadline)) {
                Some(choice) => world.apply(&choice),
                None => break,
            };
        }
        world.serving(service)
    };
    let (large, ill) = (|| Some(Choice::Oversized(service)), || Some(Choice::Unhealthy(service)));
    let first = next(None).expect("it serves");
    assert_eq!(next(large()), Some(first + 1));
    assert_eq!(next(large()), Some(first + 1), "its pause is not over");
    assert_eq!(next(ill()), Some(first + 2), "that is another reason");
    assert_eq!((next(ill()), next(large())), (Some(first + 2), Some(first + 2)));
}

/// What was chosen so far.
struct Search {
    path: RefCell<Vec<Choice>>,
    count: RefCell<u64>,
}

impl Search {
    /// Everything from here that begins with a choice that is `mine`; `deaths`: in so many of the steps svd may die as well.
    fn all(&self, world: &World, depth: usize, deaths: usize, mine: impl Fn(u64) -> bool) {
        if depth == 0 || world.exited() {
            return;
        }
        let people = world.people_choices(false).into_iter();
        for (_, choice) in (0..).zip(world.kernel_choices(false).into_iter().chain(people)).filter(|(at, _)| mine(*at))
        {
            self.one(world.clone(), std::slice::from_ref(&choice), depth, deaths);
            if deaths > 0 && !world.is_dead() {
                for at in 0..4 {
                    self.one(world.clone(), &[Choice::Death(at), choice.clone()], depth, deaths - 1);
                }
                self.one(world.clone(), &[Choice::DeathOfBoth(1), choice.clone()], depth, deaths - 1);
            }
        }
    }

    fn one(&self, mut next: World, choices: &[Choice], depth: usize, deaths: usize) {
        *self.count.borrow_mut() += 1;
        let length = self.path.borrow().len();
        for choice in choices {
            self.path.borrow_mut().push(choice.clone());
            next.apply(choice);
        }
        self.all(&next, depth - 1, deaths, |_| true);
        self.path.borrow_mut().truncate(length);
    }
}

/// All histories of a world, from its start or from when it runs. Every thread takes its share of the first choices.
fn search(kind: Kind, runs: bool, depth: usize, deaths: usize) -> u64 {
    let total = AtomicU64::new(0);
    on_all(|n, threads| {
        let search = Search { path: RefCell::default(), count: RefCell::default() };
        let failed = super::history::quietly(|| {
            let mut world = kind.world(1).begin();
            while runs && world.pending_ops() > 0 {
                let choice = world.well_behaved().expect("it starts");
                search.path.borrow_mut().push(choice.clone());
                world.apply(&choice);
            }
            search.all(&world, depth, deaths, |at| at % threads == n);
        });
        if failed.is_some() {
            let steps = search.path.take();
            History { kind, seed: 1, mortal: true, ends: false, forgetful: false, steps }
                .fail("a search of all short histories");
        }
        total.fetch_add(search.count.take(), Relaxed);
    });
    total.into_inner()
}

#[test]
fn all_short_histories() {
    let deeper = number("AIRDOCK_DEPTH").unwrap_or(0) as usize;
    let mut count = 0;
    for kind in [Kind::One, Kind::OneAlone] {
        for runs in [false, true] {
            count += search(kind, runs, 4 + deeper, 0);
            count += search(kind, runs, 3 + deeper, 1);
        }
    }
    println!("{count} histories");
    assert!(count > 20_000, "{count} histories only");
}
