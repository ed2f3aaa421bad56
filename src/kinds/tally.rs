//! The numbers of a generation that reports by statsd, kept as [`super::counters`] reads them: one page, the totals and
//! the windows of the last minute in the same places. Pure.

use super::counters::{self, PAGE};
use super::statsd::{Count, Said};
use std::time::Duration;

/// Nothing is allocated before the first count.
#[derive(Debug, Default)]
pub struct Tally {
    words: Vec<u64>,
    /// What is left of counts that are no whole numbers, as a sampling client's: begun, finished, errors.
    fractions: [f64; 3],
}

impl Tally {
    /// For [`counters::read`]; `None` before the first count.
    pub fn words(&self) -> Option<&[u64]> {
        (!self.words.is_empty()).then_some(&self.words)
    }

    /// `now_us`: CLOCK_MONOTONIC in microseconds.
    pub fn add(&mut self, count: Count, now_us: u64) {
        if self.words.is_empty() {
            self.words = vec![0; PAGE];
            for (at, word) in counters::initial_words() {
                self.words[at] = word;
            }
            self.words[counters::H_SLOW] = 1;
        }
        let Count { said, times } = count;
        match said {
            Said::Begun => {
                let n = self.whole(0, times);
                self.raise(counters::BEGUN, n);
            }
            Said::Finished => self.finished(times, now_us),
            Said::Errors => self.errors(times, now_us),
            Said::Took(took) => self.took(took, times, now_us),
            Said::Request { took, error } => {
                self.finished(times, now_us);
                if error {
                    self.errors(times, now_us);
                }
                self.took(took, times, now_us);
            }
        }
    }

    /// All processes have ended: what they had begun and not finished died with them. Clients that never tell of a begin
    /// have nothing open.
    pub fn died(&mut self) {
        if self.words.is_empty() {
            return;
        }
        let settled = self.words[counters::FINISHED].saturating_add(self.words[counters::DIED_OPEN]);
        self.raise(counters::DIED_OPEN, self.words[counters::BEGUN].saturating_sub(settled));
    }

    /// Of what has come together, the whole part; the rest waits for more.
    fn whole(&mut self, which: usize, times: f64) -> u64 {
        let sum = self.fractions[which] + times;
        self.fractions[which] = sum.fract();
        sum as u64
    }

    fn raise(&mut self, at: usize, by: u64) {
        self.words[at] = self.words[at].saturating_add(by);
    }

    fn finished(&mut self, times: f64, now_us: u64) {
        let n = self.whole(1, times);
        let window = self.window(now_us);
        self.raise(counters::FINISHED, n);
        self.raise(window + counters::W_FINISHED, n);
    }

    fn errors(&mut self, times: f64, now_us: u64) {
        let n = self.whole(2, times);
        let window = self.window(now_us);
        self.raise(counters::ERRORS, n);
        self.raise(window + counters::W_ERRORS, n);
    }

    fn took(&mut self, took: Duration, times: f64, now_us: u64) {
        let window = self.window(now_us);
        let us = took.as_micros() as u64;
        let sum = (us as f64 * times) as u64;
        self.raise(counters::DURATION_US, sum);
        self.raise(window + counters::W_DURATION_US, sum);
        let bucket = counters::bucket_of(us);
        let times = times.round().max(1.0) as u32;
        if let Some(beyond) = bucket.checked_sub(counters::SLOW_BUCKET) {
            self.raise(counters::SLOW + beyond / 2, times.into());
        }
        let word = &mut self.words[window + counters::W_HISTOGRAM + bucket / 2];
        let shift = 32 * (bucket % 2);
        let old = (*word >> shift) as u32;
        let new = old.saturating_add(times);
        *word = *word & !(u64::from(u32::MAX) << shift) | u64::from(new) << shift;
    }

    /// The window of the present, emptied where it still has an older one's numbers.
    fn window(&mut self, now_us: u64) -> usize {
        let number = now_us / counters::WINDOW_US + 1;
        let at = counters::WINDOWS + (number % counters::WINDOW_COUNT as u64) as usize * counters::WINDOW_WORDS;
        if self.words[at] != number {
            self.words[at..at + counters::WINDOW_WORDS].fill(0);
            self.words[at] = number;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn count(said: Said, times: f64) -> Count {
        Count { said, times }
    }

    fn read(tally: &Tally, now_us: u64) -> counters::Snapshot {
        counters::read(tally.words().expect("counted"), now_us).expect("our own layout")
    }

    #[test]
    fn is_read_as_gunicorns_are() {
        let mut tally = Tally::default();
        assert_eq!(tally.words(), None);
        let now = 1000 * SECOND;
        let took = Duration::from_millis(20);
        tally.add(count(Said::Begun, 3.0), now);
        tally.add(count(Said::Finished, 1.0), now);
        tally.add(count(Said::Took(took), 1.0), now);
        tally.add(count(Said::Request { took, error: true }, 1.0), now + SECOND);
        let seen = read(&tally, now + SECOND);
        assert_eq!((seen.totals.begun, seen.totals.finished, seen.totals.errors), (3, 2, 1));
        assert_eq!(seen.totals.duration, Duration::from_millis(40));
        assert_eq!((seen.recent.finished, seen.recent.errors, seen.recent.latency.count()), (2, 1, 2));
        let median = seen.recent.latency.quantile(0.5).expect("two");
        assert!((15..25).contains(&median.as_millis()), "{median:?}");
        let later = read(&tally, now + 70 * SECOND);
        assert_eq!((later.totals.finished, later.recent.finished), (2, 0), "the minute is over");
    }

    #[test]
    fn a_window_is_used_again_after_its_time() {
        let mut tally = Tally::default();
        for second in 0..600 {
            tally.add(count(Said::Request { took: Duration::ZERO, error: false }, 1.0), second * SECOND);
        }
        let seen = read(&tally, 599 * SECOND);
        assert_eq!(seen.totals.finished, 600);
        assert!((60..=65).contains(&seen.recent.finished), "{}", seen.recent.finished);
        assert_eq!(seen.recent.finished, seen.recent.latency.count());
    }

    #[test]
    fn what_is_open_at_the_end_has_died() {
        let mut tally = Tally::default();
        tally.died();
        assert_eq!(tally.words(), None);
        tally.add(count(Said::Begun, 5.0), 0);
        tally.add(count(Said::Finished, 3.0), 0);
        tally.died();
        tally.died();
        assert_eq!(read(&tally, 0).totals.died_open, 2, "each once");
        tally.add(count(Said::Finished, 9.0), 0);
        tally.died();
        assert_eq!(read(&tally, 0).totals.died_open, 2, "more have finished than begun");
    }

    #[test]
    fn samples_add_up() {
        let mut tally = Tally::default();
        for _ in 0..30 {
            tally.add(count(Said::Finished, 1.0 / 0.3), 0);
        }
        assert!((99..=100).contains(&read(&tally, 0).totals.finished));
    }

    #[test]
    fn buckets_are_the_histograms() {
        let mut last = 0;
        for us in (0..200_000u64).chain((1..40).map(|n| 1 << n)) {
            let bucket = counters::bucket_of(us);
            assert!(bucket < counters::BUCKETS && counters::Histogram::lower_us(bucket) <= us, "{us}");
            if bucket + 1 < counters::BUCKETS {
                assert!(us < counters::Histogram::lower_us(bucket + 1), "{us}");
            }
            last = last.max(bucket);
        }
        assert_eq!(last, counters::BUCKETS - 1);
    }
}
