//! When a slot is tried again, and when it is given up.

use super::time::Time;
use crate::config::spec::{Limit, Restart};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::Duration;

/// A small seeded generator (SplitMix64, Steele et al. 2014): jitter that a simulation can repeat.
#[derive(Clone, Debug)]
pub(super) struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// `by` plus up to a quarter of it, so that what failed together is not retried together.
    fn jitter(&mut self, by: Duration) -> Duration {
        let quarter = u64::try_from(by.as_nanos() / 4).unwrap_or(u64::MAX);
        by + Duration::from_nanos(if quarter == 0 { 0 } else { self.next() % quarter })
    }
}

/// A slot's history of failures.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Failures {
    /// Soon after the start, one after another.
    soon: u32,
    /// All within the limit's window; never longer than the limit.
    recent: VecDeque<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    After(Duration),
    GiveUp,
}

/// Of a worker that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Life {
    pub up: Duration,
    /// It was ready once.
    pub proved: bool,
}

impl Failures {
    /// A worker ended unasked. `failed`: not by a success that the policy restarts.
    pub fn ended(&mut self, now: Time, life: Life, failed: bool, policy: &Restart, rng: &mut Rng) -> Verdict {
        let settled = life.proved && life.up >= policy.settled;
        if !life.proved {
            // The window has no time for boots in vain: who is given a minute each time would never be given up.
            self.recent.iter_mut().for_each(|at| *at = (*at + life.up).min(now));
        }
        if failed || !settled {
            self.recent.push_back(now);
        }
        if self.over(now, &policy.limit) {
            return Verdict::GiveUp;
        }
        if settled {
            self.soon = 0;
            return Verdict::After(Duration::ZERO);
        }
        let doublings = self.soon.min(31);
        self.soon = self.soon.saturating_add(1);
        let delay = policy.delay.saturating_mul(1 << doublings).min(policy.max_delay);
        Verdict::After(rng.jitter(delay))
    }

    fn over(&mut self, now: Time, limit: &Limit) -> bool {
        while self.recent.front().is_some_and(|first| now.since(*first) > limit.within) {
            self.recent.pop_front();
        }
        self.recent.len() >= limit.failures.max(1) as usize
    }

    pub fn forget(&mut self) {
        *self = Failures::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::spec::Policy;

    const BROKEN: Life = Life { up: Duration::ZERO, proved: false };

    fn proved(seconds: u64) -> Life {
        Life { up: Duration::from_secs(seconds), proved: true }
    }

    fn policy() -> Restart {
        Restart {
            policy: Policy::Always,
            delay: Duration::from_millis(100),
            max_delay: Duration::from_secs(30),
            settled: Duration::from_secs(2),
            limit: Limit { failures: 10, within: Duration::from_secs(300), then: None },
            success: vec![],
        }
    }

    #[test]
    fn doubles_with_jitter_up_to_the_most_and_then_gives_up() {
        let (mut failures, mut rng, policy) = (Failures::default(), Rng(7), policy());
        let mut now = Time(0);
        for n in 0..9 {
            let Verdict::After(delay) = failures.ended(now, BROKEN, true, &policy, &mut rng) else {
                panic!("gave up after {n} failures");
            };
            let base = policy.delay * (1 << n);
            let base = base.min(policy.max_delay);
            assert!(delay >= base && delay < base + base / 4, "failure {n}: {delay:?}, base {base:?}");
            now = now + delay;
        }
        assert_eq!(failures.ended(now, BROKEN, true, &policy, &mut rng), Verdict::GiveUp);
    }

    #[test]
    fn a_settled_worker_is_replaced_at_once_and_old_failures_are_forgotten() {
        let (mut failures, mut rng, policy) = (Failures::default(), Rng(7), policy());
        let mut now = Time(0);
        for _ in 0..100 {
            now = now + Duration::from_secs(40);
            let verdict = failures.ended(now, proved(40), true, &policy, &mut rng);
            assert_eq!(verdict, Verdict::After(Duration::ZERO));
        }
    }

    #[test]
    fn who_is_never_ready_is_given_up_however_long_each_boot_takes() {
        let (mut failures, mut rng, policy) = (Failures::default(), Rng(7), policy());
        let (boot, mut now) = (Duration::from_secs(60), Time(0));
        let mut pause = Duration::ZERO;
        for n in 0..9 {
            now = now + boot;
            let Verdict::After(delay) = failures.ended(now, Life { up: boot, proved: false }, true, &policy, &mut rng)
            else {
                panic!("gave up after {n} failures");
            };
            assert!(delay > pause || delay >= policy.max_delay, "failure {n}: {delay:?} after {pause:?}");
            (now, pause) = (now + delay, delay);
        }
        now = now + boot;
        let verdict = failures.ended(now, Life { up: boot, proved: false }, true, &policy, &mut rng);
        assert_eq!(verdict, Verdict::GiveUp);
    }

    #[test]
    fn success_after_settling_is_no_failure() {
        let (mut failures, mut rng, policy) = (Failures::default(), Rng(7), policy());
        for n in 0..100 {
            let verdict = failures.ended(Time(n), proved(3), false, &policy, &mut rng);
            assert_eq!(verdict, Verdict::After(Duration::ZERO));
        }
    }
}
