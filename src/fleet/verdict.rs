//! Whether a new release is worse than the one it replaces: a sequential conditional test on counts of requests and errors.
//!
//! # The test
//!
//! Every tick of 5 s gives the requests and errors of the canary (what runs the new release) and of the control (what runs
//! the old one in the same seconds). Given that an error has happened, the odds that it was the canary's are
//! ρ·(requests of the canary) : (requests of the control) if the canary's rate is ρ times the control's. The control's rate
//! itself cancels, and so does an outage that hits both.
//!
//! [`Settings::tolerate`] is the ratio that counts as no worse. For six ratios beyond it, the logarithm of how much better
//! each explains the tick is added up. The *evidence* is the mean of the six likelihood ratios: a non-negative martingale
//! as long as the release is no worse than tolerated, so that the chance of it ever reaching 1/[`Settings::false_alarm`] is at most
//! that, however often one looks (Ville's inequality). Errors are assumed to be independent; since they come in bursts,
//! each tick adds at most a sixth of what a verdict needs: none rests on less than 30 s.
//!
//! Without a control (a fleet of one) each request is a trial against what the old release did yesterday: [`Baseline::Alone`].
//!
//! Slow requests are judged as errors are, by an evidence of their own, after a minute in which caches may fill. What counts as
//! slow is settled before the rollout begins ([`slow_limit`]); without a control a tenth of all requests may be.
//! Beside the test: what is unfit (a crash loop, a failing health check) is taken back at once.
//!
//! # Records
//!
//! A [`Judge`] keeps what it was told. Its [`Record`] is part of the rollout's journal, and [`Record::replay`] judges again.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Of the counts. What comes sooner is counted together with the next.
pub const TICK: Duration = Duration::from_secs(5);

/// How often a bake time may begin again for want of requests.
pub const EXTENSIONS: u32 = 3;

/// How many times worse than tolerated a release may be; the evidence is a mean over these.
const RATIOS: [f64; 6] = [1.5, 2.0, 4.0, 10.0, 30.0, 100.0];

/// No verdict on fewer ticks.
const LEAST_TICKS: f64 = 6.0;
/// So many, and one for what came in between two of them.
const LEAST: Duration = TICK.saturating_mul(LEAST_TICKS as u32 + 1);

/// The rate of errors that a host without a control is always allowed.
const ALONE_LEAST: f64 = 0.01;
/// … and the highest that counts as something to compare with: the old release was broken.
const ALONE_MOST: f64 = 0.95;
/// Requests by which a host without a control is measured against its own yesterday.
const ALONE_MEASURED: u64 = 100;
/// The share of slow requests that a host without a control is allowed: of those before at most one in twenty was slow.
const ALONE_SLOW: f64 = 0.1;

/// Caches are cold before.
const WARM_UP: Duration = Duration::from_secs(60);
/// Slow requests are to raise a false alarm ten times more seldom than errors do, so that both together keep the promise nearly.
const SLOW_RARER: f64 = 10.0;
/// The share of slow requests that the canary may have beyond the control's.
const SLOW_DIFFERENCE: f64 = 0.05;

/// What counts as enough, of [`Judge::handle_tick`]'s sums: rounding must not move a verdict by a tick.
const ROUNDING: f64 = 1e-9;

/// `verdict = { … }` of the fleet file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The chance, per wave, of taking back a release that is no worse than tolerated.
    pub false_alarm: f64,
    /// So many times the control's rate of errors count as no worse.
    pub tolerate: f64,
    /// A rate of errors less than this above the control's never takes a release back: 0.002 is 0.2 percentage points.
    pub min_difference: f64,
    /// Of the canary, and of the control: a pass needs that many.
    pub min_requests: u64,
    pub too_few: TooFew,
}

/// When there were too few requests after all extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TooFew {
    Pause,
    Pass,
    Fail,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { false_alarm: 0.01, tolerate: 1.5, min_difference: 0.002, min_requests: 300, too_few: TooFew::Pause }
    }
}

impl Settings {
    /// # Errors
    /// What is out of its range, as a sentence.
    pub fn check(&self) -> Result<(), String> {
        if !(1e-9..=0.5).contains(&self.false_alarm) {
            return Err(format!("false_alarm is {}, and must be above 0 and at most 0.5", self.false_alarm));
        }
        if !(1.0..=100.0).contains(&self.tolerate) {
            return Err(format!("tolerate is {}, and must be between 1 and 100", self.tolerate));
        }
        if !(0.0..=1.0).contains(&self.min_difference) {
            return Err(format!("min_difference is {}, and must be between 0 and 1 (100%)", self.min_difference));
        }
        Ok(())
    }
}

/// Requests whose fate was decided: finished, died with their worker, or overdue. `errors` are among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 2]", into = "[u64; 2]")]
pub struct Counts {
    pub requests: u64,
    pub errors: u64,
}

impl From<[u64; 2]> for Counts {
    fn from([requests, errors]: [u64; 2]) -> Counts {
        Counts { requests, errors }
    }
}

impl From<Counts> for [u64; 2] {
    fn from(counts: Counts) -> [u64; 2] {
        [counts.requests, counts.errors]
    }
}

impl Counts {
    fn add(&mut self, other: Counts) {
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors).min(self.requests);
    }

    /// Both together.
    #[must_use]
    pub fn plus(mut self, other: Counts) -> Counts {
        self.add(other);
        self
    }

    /// 0 without requests.
    pub fn rate(self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.errors as f64 / self.requests as f64 }
    }
}

/// What the canary is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Baseline {
    /// Hosts that run the old release in the same seconds.
    Control,
    /// There is none. At most twice yesterday's rate of errors, and 1 %, is tolerated.
    Alone { yesterday: Counts },
    /// The service answers no requests: it passes if nothing is unfit for the bake time.
    Health,
}

/// One tick's counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tick {
    pub canary: Counts,
    #[serde(default)]
    pub control: Counts,
    /// How many requests of canary and control took longer than [`slow_limit`] says; `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow: Option<[u64; 2]>,
    /// A host says that its counts cannot be relied on (a flood of foreign datagrams): the tick does not count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unreliable: bool,
    /// Nobody could be asked what the canary has counted in this time, or the control has.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
}

impl Tick {
    fn add(&mut self, other: Tick) {
        self.canary.add(other.canary);
        self.control.add(other.control);
        self.slow = self.slow.zip(other.slow).map(|([a, b], [c, d])| [a.saturating_add(c), b.saturating_add(d)]);
        self.unreliable |= other.unreliable;
        self.unknown |= other.unknown;
    }
}

/// What counts as slow during a wave, from the 95th percentile of all hosts in the minute before it.
pub fn slow_limit(before: Duration) -> Duration {
    (before * 2).max(Duration::from_millis(50))
}

/// What takes a release back at once, by its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incident {
    pub host: String,
    /// Such as "the health check fails: …".
    pub what: String,
}

/// What there is to say after each tick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Nothing yet.
    GoOn,
    /// There were too few requests for a verdict: the bake time begins again, the n-th time.
    Extend(u32),
    Pass,
    /// Too few requests, after all extensions: somebody has to decide.
    Pause,
    TakeBack(Cause),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    Errors,
    Slow,
    Incident(Incident),
    /// [`TooFew::Fail`]
    TooFew,
}

/// An [`Outcome`] with what it rests on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub outcome: Outcome,
    /// Milliseconds from the beginning of the bake time.
    pub at_ms: u64,
    /// Of more errors; a release is taken back at 1/[`Settings::false_alarm`] and more.
    pub evidence: f64,
    /// Of more slow requests.
    pub slow_evidence: f64,
    pub canary: Counts,
    pub control: Counts,
    /// The rate of errors that the canary's was compared with: the control's, or what a host without one is allowed.
    pub compared_with: f64,
}

/// What was told to a [`Judge`], and what it came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub settings: Settings,
    pub baseline: Baseline,
    pub bake_ms: u64,
    pub inputs: Vec<Input>,
    /// The last one, whether or not it ended the wave.
    pub verdict: Verdict,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// Milliseconds from the beginning of the bake time.
    pub at_ms: u64,
    pub said: Said,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    Tick(Tick),
    Incident(Incident),
}

impl Record {
    /// Judges again.
    pub fn replay(&self) -> Verdict {
        self.replay_with(&self.settings, |_, _| {})
    }

    /// Judges again, by other settings. `each`: what was said, and what there was to say then.
    pub fn replay_with(&self, settings: &Settings, mut each: impl FnMut(&Input, &Verdict)) -> Verdict {
        let mut judge = Judge::new(settings.clone(), self.baseline, Duration::from_millis(self.bake_ms));
        for input in &self.inputs {
            let at = Duration::from_millis(input.at_ms);
            let verdict = match &input.said {
                Said::Tick(tick) => judge.handle_tick(at, *tick),
                Said::Incident(incident) => judge.handle_incident(at, incident.clone()),
            };
            each(input, verdict);
        }
        judge.record.verdict
    }

    /// True: judging again comes to what was recorded (evidence apart from rounding).
    pub fn agrees(&self) -> bool {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1e-9);
        let (again, then) = (self.replay(), &self.verdict);
        near(again.evidence, then.evidence)
            && near(again.slow_evidence, then.slow_evidence)
            && again.outcome == then.outcome
            && (again.at_ms, again.canary, again.control) == (then.at_ms, then.canary, then.control)
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Logarithms of likelihood ratios, one for each of [`RATIOS`].
#[derive(Clone, Debug, Default)]
struct Evidence([f64; RATIOS.len()]);

impl Evidence {
    /// `hits` of so many `trials`, where a trial is a hit by these `odds` if the canary is just tolerable. `most`: what may be added.
    fn add(&mut self, hits: u64, trials: u64, odds: f64, most: f64) {
        if trials == 0 || !odds.is_finite() || odds <= 0.0 {
            return;
        }
        for (sum, ratio) in self.0.iter_mut().zip(RATIOS) {
            let log = hits as f64 * ratio.ln() + trials as f64 * ((1.0 + odds) / (1.0 + ratio * odds)).ln();
            // Bounded, so that its exponential is a number.
            *sum = (*sum + log.min(most)).min(100.0);
        }
    }

    fn value(&self) -> f64 {
        self.0.iter().map(|log| log.exp()).sum::<f64>() / self.0.len() as f64
    }
}

/// Judges one wave. See the module.
#[derive(Clone, Debug)]
pub struct Judge {
    record: Record,
    errors: Evidence,
    slow: Evidence,
    canary: Counts,
    control: Counts,
    /// Slow requests, and all requests of the ticks in which slow ones were judged: canary, control.
    slow_seen: [Counts; 2],
    /// Came too soon to be a tick.
    pending: Option<Tick>,
    last_tick: Duration,
    ends: Duration,
    extensions: u32,
    /// Since the bake time began, or began again: ticks, and those of which nothing is known.
    ticks: u32,
    unseen: u32,
    /// What one tick may add at most is the evidence for a verdict divided by this.
    least_ticks: f64,
}

impl Judge {
    /// `bake` is how long a wave is watched before it passes.
    pub fn new(settings: Settings, baseline: Baseline, bake: Duration) -> Judge {
        let bake_ms = milliseconds(bake);
        let verdict = Verdict {
            outcome: Outcome::GoOn,
            at_ms: 0,
            evidence: 1.0,
            slow_evidence: 1.0,
            canary: Counts::default(),
            control: Counts::default(),
            compared_with: 0.0,
        };
        Judge {
            record: Record { settings, baseline, bake_ms, inputs: Vec::new(), verdict },
            errors: Evidence::default(),
            slow: Evidence::default(),
            canary: Counts::default(),
            control: Counts::default(),
            slow_seen: [Counts::default(); 2],
            pending: None,
            last_tick: Duration::ZERO,
            ends: Duration::from_millis(bake_ms),
            extensions: 0,
            ticks: 0,
            unseen: 0,
            least_ticks: LEAST_TICKS,
        }
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    /// When the bake time ends, extensions included.
    pub fn ends(&self) -> Duration {
        self.ends
    }

    /// Of more than half of the bake time nothing is known: however few requests are enough, this is no reason to pass.
    fn is_blind(&self) -> bool {
        self.record.baseline != Baseline::Health && self.unseen * 2 > self.ticks
    }

    /// The counts since the last tick. `at`: since the bake time began; never goes back. After an outcome that ends the
    /// wave nothing is counted any more, and it stays.
    pub fn handle_tick(&mut self, at: Duration, tick: Tick) -> &Verdict {
        if self.has_ended() {
            return &self.record.verdict;
        }
        self.note(at, Said::Tick(tick));
        let mut sum = self.pending.take().unwrap_or(Tick { slow: Some([0, 0]), ..Tick::default() });
        sum.add(tick);
        if at.saturating_sub(self.last_tick) < TICK && at < self.ends {
            self.pending = Some(sum);
            return self.conclude(at, Outcome::GoOn);
        }
        self.last_tick = at;
        self.ticks += 1;
        self.unseen += u32::from(sum.unreliable || sum.unknown);
        if !sum.unreliable {
            self.count(at, sum);
        }
        let outcome = self.outcome(at);
        self.conclude(at, outcome)
    }

    /// Something that is no matter of counts.
    pub fn handle_incident(&mut self, at: Duration, incident: Incident) -> &Verdict {
        if self.has_ended() {
            return &self.record.verdict;
        }
        self.note(at, Said::Incident(incident.clone()));
        self.conclude(at, Outcome::TakeBack(Cause::Incident(incident)))
    }

    fn has_ended(&self) -> bool {
        matches!(self.record.verdict.outcome, Outcome::Pass | Outcome::Pause | Outcome::TakeBack(_))
    }

    fn note(&mut self, at: Duration, said: Said) {
        self.record.inputs.push(Input { at_ms: milliseconds(at), said });
    }

    fn conclude(&mut self, at: Duration, outcome: Outcome) -> &Verdict {
        self.record.verdict = Verdict {
            outcome,
            at_ms: milliseconds(at),
            evidence: self.errors.value(),
            slow_evidence: self.slow.value(),
            canary: self.canary,
            control: self.control,
            compared_with: self.compared_with(),
        };
        &self.record.verdict
    }

    fn compared_with(&self) -> f64 {
        match self.record.baseline {
            Baseline::Control => self.control.rate(),
            Baseline::Alone { yesterday } if yesterday.requests >= ALONE_MEASURED => {
                (2.0 * yesterday.rate()).clamp(ALONE_LEAST, ALONE_MOST)
            }
            Baseline::Alone { .. } => ALONE_LEAST,
            Baseline::Health => 0.0,
        }
    }

    fn count(&mut self, at: Duration, mut tick: Tick) {
        // More errors than requests would be a host's mistake.
        tick.canary.errors = tick.canary.errors.min(tick.canary.requests);
        tick.control.errors = tick.control.errors.min(tick.control.requests);
        self.canary.add(tick.canary);
        let needed = -self.record.settings.false_alarm.ln();
        let most = needed / self.least_ticks;
        match self.record.baseline {
            Baseline::Control => {
                self.control.add(tick.control);
                let odds = self.odds(tick.canary.requests, tick.control.requests);
                self.errors.add(tick.canary.errors, tick.canary.errors.saturating_add(tick.control.errors), odds, most);
                if let Some(slow) = tick.slow.filter(|_| at > WARM_UP) {
                    self.count_slow(tick, slow);
                }
            }
            Baseline::Alone { .. } => {
                let tolerated = self.compared_with();
                self.errors.add(tick.canary.errors, tick.canary.requests, tolerated / (1.0 - tolerated), most);
                if let Some([slow, _]) = tick.slow.filter(|_| at > WARM_UP) {
                    let slow = slow.min(tick.canary.requests);
                    let odds = ALONE_SLOW / (1.0 - ALONE_SLOW);
                    self.slow.add(slow, tick.canary.requests, odds, self.most_slow());
                    self.slow_seen[0].add(Counts { requests: tick.canary.requests, errors: slow });
                }
            }
            Baseline::Health => {}
        }
    }

    fn count_slow(&mut self, tick: Tick, [canary, control]: [u64; 2]) {
        let (n_c, n_b) = (tick.canary.requests, tick.control.requests);
        let (canary, control) = (canary.min(n_c), control.min(n_b));
        let odds = self.odds(n_c, n_b);
        self.slow.add(canary, canary.saturating_add(control), odds, self.most_slow());
        self.slow_seen[0].add(Counts { requests: n_c, errors: canary });
        self.slow_seen[1].add(Counts { requests: n_b, errors: control });
    }

    fn most_slow(&self) -> f64 {
        -(self.record.settings.false_alarm / SLOW_RARER).ln() / self.least_ticks
    }

    /// That what happens by the tolerated ratio of rates happens on the canary. Not a positive number if one has no requests.
    fn odds(&self, canary: u64, control: u64) -> f64 {
        self.record.settings.tolerate * canary as f64 / control as f64
    }

    fn outcome(&mut self, at: Duration) -> Outcome {
        let settings = &self.record.settings;
        let needed = (1.0 - ROUNDING) / settings.false_alarm;
        let difference = self.canary.rate() - self.compared_with();
        if self.errors.value() >= needed && difference >= settings.min_difference {
            return Outcome::TakeBack(Cause::Errors);
        }
        let [canary, control] = self.slow_seen;
        let allowed = if self.record.baseline == Baseline::Control { control.rate() } else { ALONE_SLOW };
        if self.slow.value() >= needed * SLOW_RARER && canary.rate() - allowed >= SLOW_DIFFERENCE {
            return Outcome::TakeBack(Cause::Slow);
        }
        // A bake time may be shorter than a verdict takes: what looks bad by now is watched until there can be one.
        let looks_bad = self.errors.value() > 1.0 && difference >= settings.min_difference;
        if at < self.ends || looks_bad && at < LEAST {
            return Outcome::GoOn;
        }
        let enough = match self.record.baseline {
            // Beside a control that has hardly any requests a canary looks good whatever it does.
            Baseline::Control => self.canary.requests.min(self.control.requests) >= settings.min_requests,
            Baseline::Alone { .. } => self.canary.requests >= settings.min_requests,
            Baseline::Health => true,
        };
        if enough && !self.is_blind() {
            return Outcome::Pass;
        }
        if self.extensions < EXTENSIONS {
            self.extensions += 1;
            (self.ticks, self.unseen) = (0, 0);
            self.ends = at.saturating_add(Duration::from_millis(self.record.bake_ms));
            return Outcome::Extend(self.extensions);
        }
        match settings.too_few {
            TooFew::Pause => Outcome::Pause,
            TooFew::Pass => Outcome::Pass,
            TooFew::Fail => Outcome::TakeBack(Cause::TooFew),
        }
    }
}

#[cfg(test)]
#[path = "verdict_test.rs"]
mod tests;

#[cfg(test)]
#[path = "verdict_trials.rs"]
mod trials;
