//! How often the test errs, and how soon it sees: simulated rollouts of ten hosts, one of which is the canary, with a bake
//! time of ten minutes. `AIRDOCK_TRIALS=15000 cargo test --profile quick --lib fleet::verdict -- --nocapture` prints the
//! tables of docs with so many trials a cell.

use super::*;

const HOSTS: usize = 10;
const TICKS: u32 = 120;
const RATES: [f64; 3] = [0.2, 2.0, 20.0];

#[expect(clippy::disallowed_methods, reason = "forbidden to what is tested")]
fn trials(default: u64) -> u64 {
    std::env::var("AIRDOCK_TRIALS").ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// What the hosts are like.
#[derive(Clone, Copy)]
struct World {
    /// Requests a second and host.
    load: f64,
    /// Rates of errors.
    canary: f64,
    control: f64,
    /// Of the logarithm of a host's own factor to its rate of errors.
    sigma: f64,
    /// On each host, once, half of the requests of 10 s fail.
    bursts: bool,
    /// What a tick may add, as the judge has it; 0: anything.
    least_ticks: f64,
}

const SAME: World =
    World { load: 2.0, canary: 0.01, control: 0.01, sigma: 0.0, bursts: false, least_ticks: LEAST_TICKS };

struct Chance(fastrand::Rng);

impl Chance {
    fn normal(&mut self) -> f64 {
        let (a, b) = (1.0 - self.0.f64(), self.0.f64());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    }

    /// By the product of uniforms (Knuth); by its normal limit where that is close.
    fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 50.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0) as u64;
        }
        let (least, mut product, mut n) = ((-mean).exp(), self.0.f64(), 0);
        while product > least {
            product *= self.0.f64();
            n += 1;
        }
        n
    }
}

struct Host {
    errors: f64,
    burst: Option<(u32, u32)>,
}

impl Host {
    fn tick(&self, n: u32, load: f64, chance: &mut Chance) -> Counts {
        let in_burst = self.burst.is_some_and(|(from, to)| (from..to).contains(&n));
        let rate = if in_burst { 0.5 } else { self.errors };
        let mean = load * TICK.as_secs_f64();
        let errors = chance.poisson(mean * rate);
        Counts { requests: errors + chance.poisson(mean * (1.0 - rate)), errors }
    }
}

/// Seconds until the release was taken back, if it was.
fn trial(world: World, seed: u64) -> Option<u64> {
    let mut chance = Chance(fastrand::Rng::with_seed(seed));
    let hosts: Vec<Host> = (0..HOSTS)
        .map(|n| {
            let rate = if n == 0 { world.canary } else { world.control };
            let errors = (rate * (world.sigma * chance.normal()).exp()).min(1.0);
            let begins = chance.0.u32(1..TICKS - 1);
            Host { errors, burst: world.bursts.then_some((begins, begins + 2)) }
        })
        .collect();
    let mut judge = Judge::new(Settings::default(), Baseline::Control, TICK * TICKS);
    judge.least_ticks = world.least_ticks;
    for n in 1..=TICKS {
        let mut tick = Tick { canary: hosts[0].tick(n, world.load, &mut chance), ..Tick::default() };
        for host in &hosts[1..] {
            tick.control.add(host.tick(n, world.load, &mut chance));
        }
        if matches!(judge.handle_tick(TICK * n, tick).outcome, Outcome::TakeBack(_)) {
            return Some(judge.record.verdict.at_ms / 1000);
        }
    }
    None
}

/// The times to detection, in order, of so many trials.
fn detected(world: World, trials: u64) -> Vec<u64> {
    let mut times: Vec<u64> = (0..trials).filter_map(|seed| trial(world, seed)).collect();
    times.sort_unstable();
    times
}

fn percent(part: usize, of: u64) -> f64 {
    100.0 * part as f64 / of as f64
}

/// Healthy releases that were taken back, in per cent, over all loads and rates of errors.
fn false_alarms(name: &str, world: World, trials: u64) -> f64 {
    let (mut sum, mut cells) = (0.0, 0.0);
    for rate in [0.001, 0.01] {
        for load in RATES {
            let world = World { load, canary: rate, control: rate, ..world };
            let share = percent(detected(world, trials).len(), trials);
            println!("{name}: {load:>4} requests a second and host, {:.1} % errors: {share:.2} %", rate * 100.0);
            (sum, cells) = (sum + share, cells + 1.0);
        }
    }
    println!("{name}: {:.2} % of {}", sum / cells, trials * cells as u64);
    sum / cells
}

#[test]
fn healthy_releases_are_seldom_taken_back() {
    let n = trials(60);
    let same = false_alarms("no difference", SAME, n);
    let varied = false_alarms("hosts vary", World { sigma: 0.3, ..SAME }, n);
    let bursts = false_alarms("bursts", World { bursts: true, ..SAME }, n);
    assert!(same <= 0.5, "{same} %");
    assert!(varied <= if n < 1000 { 2.5 } else { 1.0 }, "{varied} %");
    assert!(bursts <= 0.5, "{bursts} %");
    // It is the bound on each tick that bursts fail at.
    let without = false_alarms("bursts, unbounded", World { bursts: true, least_ticks: 1e-9, ..SAME }, n);
    assert!(without > 10.0, "{without} %");
}

#[test]
fn bad_releases_are_taken_back_soon() {
    let n = trials(60);
    // By load: the median of canary.md in seconds, or the share that is caught.
    let rows = [
        (1.0, 0.001, [Ok(55), Ok(30), Ok(30)]),
        (0.2, 0.001, [Ok(195), Ok(40), Ok(30)]),
        (0.05, 0.001, [Err(26.0), Ok(95), Ok(35)]),
        (0.06, 0.01, [Err(5.0), Ok(170), Ok(45)]),
    ];
    for (canary, control, cells) in rows {
        for (load, expected) in RATES.into_iter().zip(cells) {
            let times = detected(World { load, canary, control, ..SAME }, n);
            let caught = percent(times.len(), n);
            let median = times.get(times.len() / 2).copied().unwrap_or(0);
            println!(
                "{:>5.1} % v {:.1} %, {load:>4} requests a second and host: {caught:.1} % caught, after {median} s (median); expected {expected:?}",
                canary * 100.0,
                control * 100.0
            );
            match expected {
                Ok(seconds) => {
                    assert!(caught >= 90.0, "{caught} %");
                    let (least, most) = (seconds as f64 * 0.75 - 5.0, seconds as f64 * 1.25 + 5.0);
                    assert!((least..=most).contains(&(median as f64)), "{median} s, expected {seconds} s");
                }
                Err(share) => assert!((caught - share).abs() <= 15.0, "{caught} %, expected {share} %"),
            }
        }
    }
}
