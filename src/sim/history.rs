//! One history: a world and a list of choices. Picked by a seed, replayed, and shrunk to what matters.

use super::choice::{Birth, Choice};
use super::world::World;
use crate::config::spec::Policy as RestartPolicy;
use crate::core::{Policy, State};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Once};

const STEPS: usize = 40;
/// Choices in which a history that was left to itself must have settled.
const SETTLES: usize = 2_000;

/// The services of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    One,
    /// Without overlap.
    OneAlone,
    Two,
    /// They need each other.
    Three,
}

#[derive(Clone, Debug, PartialEq)]
pub struct History {
    pub kind: Kind,
    /// Of the jitter.
    pub seed: u64,
    /// svd writes down what it does, and may die.
    pub mortal: bool,
    /// Afterwards all goes well, and everything must settle.
    pub ends: bool,
    /// A deliberate bug: svd that returns does not send stop signals once more.
    pub forgetful: bool,
    pub steps: Vec<Choice>,
}

#[derive(Clone, Debug)]
pub struct Failure {
    /// The broken rule.
    pub what: String,
    /// What happened.
    pub trace: Vec<String>,
}

impl Failure {
    /// What stays when numbers differ.
    fn rule(&self) -> String {
        self.what.chars().filter(|c| !c.is_ascii_digit()).take(40).collect()
    }
}

impl Kind {
    fn files(self) -> Vec<(&'static str, Policy)> {
        let policy = World::policy;
        match self {
            Kind::One => vec![("web", policy(true, 1))],
            Kind::OneAlone => vec![("web", policy(false, 1))],
            Kind::Two => {
                let mut batch = policy(true, 2);
                Arc::make_mut(&mut batch.restart).policy = RestartPolicy::OnFailure;
                vec![("beat", policy(false, 2)), ("batch", batch)]
            }
            Kind::Three => {
                let (mut beat, mut web) = (policy(false, 1), policy(true, 1));
                web.requires = vec!["db".into()];
                beat.after = vec!["web".into()];
                vec![("beat", beat), ("web", web), ("db", policy(true, 1))]
            }
        }
    }

    pub fn world(self, seed: u64) -> World {
        World::new(seed, self.files())
    }
}

impl History {
    /// Runs the history of a seed. What it comes to stands in `self` even if it fails.
    ///
    /// # Panics
    /// A rule is broken.
    pub fn random(seed: u64) -> History {
        let (history, failed) = History::of_seed(seed).pick();
        if failed {
            history.fail(&format!("history {seed}: replay it with AIRDOCK_SEED={seed}"));
        }
        history
    }

    /// Picks its choices, as far as nothing fails. True: something has.
    pub(super) fn pick(self) -> (History, bool) {
        let history = RefCell::new(self);
        let failed = quietly(|| pick_all(&history)).is_some();
        (history.into_inner(), failed)
    }

    pub(super) fn of_seed(seed: u64) -> History {
        let kind = [Kind::One, Kind::Two, Kind::Three][(seed % 3) as usize];
        History { kind, seed, mortal: seed % 4 < 2, ends: true, forgetful: false, steps: Vec::with_capacity(STEPS) }
    }

    fn world(&self) -> World {
        let mut world = self.kind.world(self.seed);
        world.mortal = self.mortal;
        world.forgetful = self.forgetful;
        world.thorough = self.seed.is_multiple_of(32);
        world
    }

    fn run(&self, trace: Option<Rc<RefCell<Vec<String>>>>) {
        let mut world = self.world();
        world.trace = trace;
        let mut world = world.begin();
        for step in &self.steps {
            take(&mut world, step);
        }
        if self.ends && !world.exited() {
            world.say(|| "   from here on all goes well".to_owned());
            ends_well(&mut world);
        }
    }

    /// What it breaks, if it does.
    pub fn failure(&self) -> Option<Failure> {
        let trace = Rc::new(RefCell::new(Vec::new()));
        let what = quietly(|| self.run(Some(Rc::clone(&trace))))?;
        let trace = trace.borrow().clone();
        Some(Failure { what, trace })
    }

    /// The same failure from as few choices as can be found: chunks are left out, smaller and smaller ones, as long as it
    /// fails in the same way (delta debugging; Zeller and Hildebrandt, 2002).
    pub fn shrink(mut self) -> History {
        let Some(failure) = self.failure() else { return self };
        let same = |h: &History| h.failure().is_some_and(|f| f.rule() == failure.rule());
        let ends = History { ends: false, ..self.clone() };
        if same(&ends) {
            self = ends;
        }
        loop {
            let before = self.steps.clone();
            self.leave_out(&same);
            self.simplify(&same);
            if self.steps == before {
                return self;
            }
        }
    }

    fn leave_out(&mut self, same: &impl Fn(&History) -> bool) {
        let mut chunk = self.steps.len().div_ceil(2);
        while chunk > 0 {
            let mut at = 0;
            while at < self.steps.len() {
                let mut less = self.clone();
                less.steps.drain(at..(at + chunk).min(self.steps.len()));
                if same(&less) || (chunk == 1 && less.die_sooner(same)) {
                    *self = less;
                } else {
                    at += chunk;
                }
            }
            chunk /= 2;
        }
    }

    /// Where something was left out, svd has less to do until it dies. True: so it fails.
    fn die_sooner(&mut self, same: &impl Fn(&History) -> bool) -> bool {
        (0..self.steps.len()).any(|at| {
            let old = self.steps[at].clone();
            let found = sooner(&old).into_iter().any(|choice| {
                self.steps[at] = choice;
                same(self)
            });
            if !found {
                self.steps[at] = old;
            }
            found
        })
    }

    fn simplify(&mut self, same: &impl Fn(&History) -> bool) {
        for at in 0..self.steps.len() {
            let old = self.steps[at].clone();
            let simpler = simpler(&old).into_iter().find(|choice| {
                self.steps[at] = choice.clone();
                same(self)
            });
            self.steps[at] = simpler.unwrap_or(old);
        }
    }

    /// Prints what happens in it.
    pub fn show(&self) {
        let trace = Rc::new(RefCell::new(Vec::new()));
        self.run(Some(Rc::clone(&trace)));
        println!("{self:?}\n\n{}", trace.borrow().join("\n"));
    }

    /// # Panics
    /// Always: with what is broken, the shortest list of choices that leads to it, and what happens then.
    pub fn fail(self, who: &str) -> ! {
        let shrunk = self.shrink();
        let Failure { what, trace } = shrunk.failure().unwrap_or(Failure {
            what: "it does not fail when it is replayed: something is not deterministic".to_owned(),
            trace: Vec::new(),
        });
        panic!(
            "{what}\n\nin {who}\nShrunk to {} choices: {shrunk:?}\n\n{}\n{what}\n",
            shrunk.steps.len(),
            trace.join("\n")
        );
    }
}

fn sooner(choice: &Choice) -> Vec<Choice> {
    match *choice {
        Choice::Death(at) => (0..at).map(Choice::Death).collect(),
        Choice::DeathOfBoth(at) => (0..at).map(Choice::DeathOfBoth).collect(),
        Choice::Return(Some(at)) => (0..at).map(|at| Choice::Return(Some(at))).collect(),
        Choice::Together(events) => (1..events).map(Choice::Together).collect(),
        _ => Vec::new(),
    }
}

/// The simplest first.
fn simpler(choice: &Choice) -> Vec<Choice> {
    let mut all = match *choice {
        Choice::DeathOfBoth(at) => vec![Choice::Death(at)],
        Choice::Return(Some(_)) => vec![Choice::Return(None)],
        Choice::Spawned(birth) if birth != Birth::Good => vec![Choice::Spawned(Birth::Good)],
        Choice::Prepared(nth, Err(_)) => vec![Choice::Prepared(nth, Ok(()))],
        Choice::Exit(nth, exit, true) => vec![Choice::Exit(nth, exit, false)],
        _ => Vec::new(),
    };
    all.extend(sooner(choice));
    all
}

/// One choice, with what must hold afterwards.
fn take(world: &mut World, choice: &Choice) {
    // Who dies may not hear the tick.
    let tick = *choice == Choice::Deadline && world.fuse.is_none() && !world.is_dead();
    if world.apply(choice) && tick && world.inbox.is_empty() {
        world.check_no_spin();
    }
    if world.thorough {
        world.check_disk();
    }
}

fn pick_all(history: &RefCell<History>) {
    let mut rng = fastrand::Rng::with_seed(history.borrow().seed);
    let world = history.borrow().world();
    let mut world = world.begin();
    for _ in 0..STEPS {
        if world.exited() {
            return;
        }
        let Some(choice) = pick(&mut rng, &world) else { continue };
        history.borrow_mut().steps.push(choice.clone());
        take(&mut world, &choice);
    }
    if !world.exited() {
        ends_well(&mut world);
    }
}

fn pick(rng: &mut fastrand::Rng, world: &World) -> Option<Choice> {
    if rng.u8(..) < 24 {
        return Some(Choice::Pause);
    }
    if world.mortal && !world.is_dead() && rng.u8(..) < 16 {
        return Some(match rng.u8(..8) {
            0 => Choice::DeathOfGuardian,
            1 | 2 => Choice::DeathOfBoth(rng.u8(..8)),
            _ => Choice::Death(rng.u8(..8)),
        });
    }
    if !world.is_dead() && rng.u8(..) < 8 {
        return Some(Choice::Together(rng.u8(1..5)));
    }
    if world.is_dead() && rng.u8(..) < 128 {
        return Some(Choice::Return(rng.bool().then(|| rng.u8(..8))));
    }
    if rng.u8(..) < 24 {
        // Seldom otherwise, as it takes two boots until there is one.
        let choices = world.standby_choices();
        if let Some(choice) = rng.choice(choices) {
            return Some(choice);
        }
    }
    if rng.u8(..) < 96 {
        // As things go: otherwise few histories would get beyond the boot.
        if let Some(choice) = world.well_behaved() {
            return Some(choice);
        }
    }
    let mut choices = if rng.u8(..) < 64 { world.people_choices(true) } else { Vec::new() };
    if rng.u8(..) < 250 {
        choices.retain(|c| *c != Choice::Shutdown);
    }
    if choices.is_empty() {
        choices = world.kernel_choices(true);
    }
    if choices.is_empty() { None } else { Some(choices.swap_remove(rng.usize(..choices.len()))) }
}

/// Without further faults everything that is wanted runs in the end, and everybody has been answered.
fn ends_well(world: &mut World) {
    (world.fuse, world.together) = (None, 0);
    if !world.inbox.is_empty() {
        world.deliver();
    }
    world.apply(&Choice::Disk(false));
    let settled = |w: &World| {
        let as_wanted = w.machine.services().all(|s| match s.state(w.machine.workers()) {
            State::Running | State::Exited => s.wanted,
            State::Stopped => !s.wanted,
            // Those that require what nobody wants wait.
            State::Waiting => s.policy.requires.iter().any(|r| w.machine.named(r).is_none_or(|r| !r.wanted)),
            _ => false,
        });
        as_wanted && w.pending_ops() == 0 && !w.is_dead()
    };
    for left in (0..SETTLES).rev() {
        if settled(world) || world.exited() {
            break;
        }
        assert!(left > 0, "never settles: {:#?}", world.machine);
        let Some(choice) = world.well_behaved() else {
            panic!("nothing will ever happen again: {:#?}", world.machine);
        };
        world.apply(&choice);
    }
    world.apply(&Choice::Shutdown);
    for _ in 0..SETTLES {
        let Some(choice) = world.well_behaved().filter(|_| !world.exited()) else { break };
        world.apply(&choice);
    }
    assert!(world.exited(), "svd does not end: {:#?}", world.machine);
    // But for what the kernel keeps.
    assert!(world.processes.values().all(|p| p.killed), "svd ends and leaves {:?}", world.processes);
}

thread_local! {
    /// What this thread's last panic said, while it is not to be printed.
    static SAID: Cell<Option<String>> = const { Cell::new(None) };
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs it without a word; `Some`: it panicked, and so.
pub(super) fn quietly(run: impl FnOnce()) -> Option<String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if QUIET.get() {
                let said = panic.payload();
                let fixed = said.downcast_ref::<&str>().map(|said| (*said).to_owned());
                SAID.set(fixed.or_else(|| said.downcast_ref::<String>().cloned()));
            } else {
                before(panic);
            }
        }));
    });
    let before = QUIET.replace(true);
    let failed = catch_unwind(AssertUnwindSafe(run)).is_err();
    QUIET.set(before);
    failed.then(|| SAID.take().unwrap_or_default())
}
