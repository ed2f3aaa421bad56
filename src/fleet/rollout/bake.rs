//! A wave's bake time: rounds of counts from all hosts at once, and the verdict on them.

use std::time::Duration;

use super::event::{Action, Count, Report, Totals, Wish};
use super::host::{At, Host};
use super::journal::What;
use super::machine::{Machine, Purpose};
use super::phases::{Failure, Phase};
use super::plan::Limits;
use super::timers::Timer;
use crate::fleet::verdict::{Baseline, Cause, Incident, Judge, Outcome, TICK, Tick, Verdict};

/// Of a release on trial, beyond those that the old one has where it has most: a worker that ends now and then is back before
/// anybody sees it in backoff.
const RESTARTS: u64 = 3;

/// Of `too_few`.
const TOO_FEW: &str = "too few requests, or too little is known of them, for a verdict";

/// A round ends then, whoever has answered.
const LONGEST_ROUND: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub(super) struct Bake {
    pub wave: usize,
    pub judge: Judge,
    began: Duration,
    round: u64,
    round_began: Duration,
    /// Answers of this round that are still to come; `None`: it is over.
    awaited: Option<usize>,
    tick: Tick,
    /// Whom this round says something of: those with the release, those with the one before.
    known: [bool; 2],
    /// The wave has hosts of its own that serve the release.
    own: bool,
    /// One of them has answered in this round.
    seen: bool,
}

impl Bake {
    pub fn new(wave: usize, limits: &Limits, now: Duration) -> Bake {
        let judge = Judge::new(limits.verdict.clone(), limits.baseline, Duration::from_millis(limits.bake));
        Bake {
            wave,
            judge,
            began: now,
            round: 0,
            round_began: now,
            awaited: None,
            tick: empty(),
            known: [false; 2],
            own: false,
            seen: false,
        }
    }

    /// It is not watched for any time, and requests do not matter.
    fn looks_once(&self) -> bool {
        let record = self.judge.record();
        record.bake_ms == 0 && (record.baseline == Baseline::Health || record.settings.min_requests == 0)
    }
}

/// A wave that is being watched, and how it looks.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    pub wave: usize,
    /// Since the bake time began, and until when it is watched, extensions included.
    pub at: Duration,
    pub ends: Duration,
    /// After the latest tick.
    pub verdict: Verdict,
}

fn empty() -> Tick {
    Tick { slow: Some([0, 0]), ..Tick::default() }
}

impl Machine {
    /// What is watched at the moment of the latest event.
    pub fn watched(&self) -> Option<Watched> {
        let Phase::Baking(bake) = &self.phase else { return None };
        let (at, ends) = (self.now.saturating_sub(bake.began), bake.judge.ends());
        Some(Watched { wave: bake.wave, at, ends, verdict: bake.judge.record().verdict.clone() })
    }

    pub(super) fn begin_bake(&mut self) {
        for host in &mut self.hosts {
            host.counted = None;
            host.restarts = None;
        }
        if let Phase::Baking(bake) = &mut self.phase {
            bake.own = self.hosts.iter().any(|host| is_new(host, bake.wave));
        }
        if let Some(wish @ (Wish::Pause | Wish::Promote)) = self.wish {
            self.wish = None;
            return self.grant(wish);
        }
        self.next_round();
    }

    /// Whoever has not answered the last one by now is not counted in it.
    pub(super) fn next_round(&mut self) {
        if let Phase::Baking(bake) = &self.phase
            && bake.awaited.is_some_and(|n| n > 0)
            && self.now < bake.round_began + LONGEST_ROUND
        {
            // Many hosts, few calls at once: it counts as one long tick.
            return self.timers.set(Timer::Bake, bake.round_began + LONGEST_ROUND);
        }
        self.end_round();
        if self.next.is_some() || self.ended {
            return;
        }
        let Phase::Baking(bake) = &mut self.phase else { return };
        bake.round += 1;
        bake.round_began = self.now;
        bake.tick = empty();
        bake.known = [false; 2];
        bake.seen = false;
        let round = bake.round;
        let mut awaited = 0;
        for (at, host) in self.hosts.iter_mut().enumerate() {
            if host.is_part() && host.locked && host.lost.is_none() && !host.chores.counts {
                host.chores.counts = true;
                self.chores.push_back((at, Purpose::Counts { round }));
                awaited += 1;
            }
        }
        if let Phase::Baking(bake) = &mut self.phase {
            bake.awaited = Some(awaited);
        }
        let tick = self.tick();
        self.timers.set(Timer::Bake, self.now + tick);
    }

    pub(super) fn uncounted(&mut self, round: u64) {
        if let Phase::Baking(bake) = &mut self.phase
            && bake.round == round
        {
            bake.awaited = bake.awaited.map(|n| n.saturating_sub(1));
            self.end_round_if_complete();
        }
    }

    fn end_round_if_complete(&mut self) {
        if matches!(&self.phase, Phase::Baking(bake) if bake.awaited == Some(0)) {
            self.end_round();
            if let Phase::Baking(bake) = &self.phase
                && self.next.is_none()
            {
                self.timers.set(Timer::Bake, self.now.max(bake.round_began + self.tick()));
            }
        }
    }

    pub(super) fn counted(&mut self, at: usize, round: u64, count: Count) {
        self.seen(at, count.view);
        let Phase::Baking(bake) = &mut self.phase else { return };
        let host = &mut self.hosts[at];
        let before = std::mem::replace(&mut host.counted, count.totals.map(|totals| (round, totals)));
        if bake.round != round {
            return;
        }
        bake.awaited = bake.awaited.map(|n| n.saturating_sub(1));
        let canary = host.at == At::OnTrial;
        bake.seen |= is_new(host, bake.wave);
        let (first, _) = host.restarts.unwrap_or((count.restarts, 0));
        host.restarts = Some((first, count.restarts.saturating_sub(first)));
        let restarts = self.too_many_restarts(at);
        let Phase::Baking(bake) = &mut self.phase else { return };
        let host = &self.hosts[at];
        if canary && let Some(why) = count.unfit.or(restarts) {
            let incident = Incident { host: host.name.as_ref().into(), what: why.into() };
            bake.judge.handle_incident(self.now.saturating_sub(bake.began), incident);
            return self.conclude();
        }
        // The same seconds of all: a host that was not counted in the round before has nothing to compare.
        let before = before.filter(|(last, _)| last + 1 == round).zip(count.totals);
        let delta = before.and_then(|((_, before), now)| since(before, now));
        if let (Some(delta), At::OnTrial | At::Before) = (delta, host.at) {
            add(&mut bake.tick, canary, delta);
            bake.known[usize::from(!canary)] = true;
            bake.tick.unreliable |= count.unreliable;
        }
        self.end_round_if_complete();
    }

    fn tick(&self) -> Duration {
        Duration::from_millis(self.plan.limits.tick).max(TICK)
    }

    fn too_many_restarts(&self, at: usize) -> Option<Box<str>> {
        let of = |host: &Host| host.restarts.map_or(0, |(_, since)| since);
        let new = of(&self.hosts[at]);
        if new < RESTARTS {
            return None;
        }
        let old = self.hosts.iter().filter(|host| host.at == At::Before).map(of).max().unwrap_or(0);
        let why = || format!("its workers were started again {new} times, where {old} were to be expected").into();
        (new >= old + RESTARTS).then(why)
    }

    fn end_round(&mut self) {
        let Phase::Baking(bake) = &mut self.phase else { return };
        if bake.awaited.take().is_none() || self.next.is_some() {
            return;
        }
        let mut tick = std::mem::replace(&mut bake.tick, empty());
        let [new, old] = bake.known;
        tick.unknown = !(new && (old || bake.judge.record().baseline != Baseline::Control));
        let at = bake.round_began.saturating_sub(bake.began);
        let wave = bake.wave;
        if bake.own && !self.hosts.iter().any(|host| is_new(host, wave)) {
            return self.fail(&format!("no host of wave {} serves the release any more", wave + 1), false);
        }
        // Nobody is found good whom nobody has seen. Requests are counted from one round to the next.
        if (bake.round > 1 || bake.looks_once()) && (bake.seen || !bake.own) {
            bake.judge.handle_tick(at, tick);
            self.conclude();
        }
    }

    /// Follows the verdict.
    fn conclude(&mut self) {
        let Phase::Baking(bake) = &self.phase else { return };
        let (wave, record) = (bake.wave, bake.judge.record().clone());
        let verdict = record.verdict.clone();
        let judged = What::Judged { wave, record: Box::new(record) };
        match verdict.outcome {
            Outcome::GoOn => return,
            Outcome::Extend(n) => {
                let text =
                    format!("wave {}: too little is known for a verdict; its bake time begins again ({n})", wave + 1);
                return self.out.push(Action::Report(Report::Alert(text.into())));
            }
            Outcome::Pass => {
                self.record(judged);
                self.next_wave(wave + 1);
            }
            Outcome::Pause => {
                self.record(judged);
                let why = format!("wave {}: {TOO_FEW}", wave + 1);
                self.record(What::Paused { why: why.as_str().into() });
                self.out.push(Action::Report(Report::Alert(why.into())));
                self.goto(Phase::Paused { told: false });
            }
            Outcome::TakeBack(cause) => {
                self.record(judged);
                let (canary, other) = (verdict.canary, verdict.compared_with);
                let faulty = cause != Cause::TooFew;
                let cause = match cause {
                    Cause::Incident(Incident { host, what }) => format!("{host}: {what}"),
                    Cause::TooFew => TOO_FEW.to_owned(),
                    Cause::Slow => "many more slow requests than with the release before".to_owned(),
                    Cause::Errors => format!(
                        "{} of {} requests failed ({:.2} %), where {:.2} % were to be expected",
                        canary.errors,
                        canary.requests,
                        100.0 * canary.rate(),
                        100.0 * other
                    ),
                };
                let cause = format!("wave {}: {cause}", wave + 1).into();
                self.fail_by(Failure { cause, force: false, faulty });
            }
        }
        self.timers.clear(Timer::Bake);
    }
}

/// It has got the release with this wave, and serves it.
fn is_new(host: &Host, wave: usize) -> bool {
    host.is_part() && host.wave == Some(wave) && host.at == At::OnTrial
}

/// `None`: other processes count now.
fn since(before: Totals, now: Totals) -> Option<Totals> {
    let slow = before.slow.zip(now.slow).map(|(before, now)| now.saturating_sub(before));
    // Once for each that has become overdue; what becomes of it then counts as any other.
    let overdue = now.overdue.saturating_sub(before.overdue);
    Some(Totals {
        requests: now.requests.checked_sub(before.requests)? + overdue,
        errors: now.errors.checked_sub(before.errors)? + overdue,
        overdue,
        slow,
    })
}

fn add(tick: &mut Tick, canary: bool, delta: Totals) {
    let side = if canary { &mut tick.canary } else { &mut tick.control };
    *side = side.plus([delta.requests, delta.errors].into());
    let which = usize::from(!canary);
    tick.slow = tick.slow.zip(delta.slow).map(|(mut slow, more)| {
        slow[which] += more;
        slow
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overdue_counts_once_and_hides_nothing() {
        let of = |requests, errors, overdue| Totals { requests, errors, overdue, slow: None };
        let counted = |before, now| since(before, now).map(|t| (t.requests, t.errors));
        assert_eq!(counted(of(10, 1, 0), of(15, 2, 3)), Some((8, 4)));
        assert_eq!(counted(of(15, 2, 3), of(20, 2, 3)), Some((5, 0)), "they wait still");
        // Two were answered after all, the third died with its worker.
        assert_eq!(counted(of(15, 2, 3), of(22, 4, 0)), Some((7, 2)), "fewer are overdue: the rest counts");
        assert_eq!(counted(of(15, 2, 3), of(3, 0, 0)), None, "another generation");
    }
}
