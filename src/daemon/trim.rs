//! When memory is given back that only a start, an update or an answer needed: when things have come to rest, as what still
//! happens would bring it back.

use std::time::{Duration, Instant};

/// Nothing has happened for so long. Longer than the pool's threads wait for further work.
const CALM: Duration = Duration::from_millis(1300);

/// Where things never come to rest it is given back in the midst of them; and never more often than this, so that who asks
/// every few seconds does not cost a wake-up each time (I7).
const EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Trim {
    /// Since when there is something to give back.
    wanted: Option<Instant>,
    /// When something has happened.
    active: Option<Instant>,
    last: Option<Instant>,
}

impl Trim {
    /// Something happens that leaves behind what nothing else needs.
    pub fn wanted(&mut self, now: Instant) {
        self.active(now);
        self.wanted.get_or_insert(now);
    }

    /// Something happens.
    pub fn active(&mut self, now: Instant) {
        self.active = Some(now);
    }

    /// It is given back.
    pub fn done(&mut self, now: Instant) {
        *self = Trim { last: Some(now), ..Trim::default() };
    }

    /// When it is to be given back, if anything is. `more`: when the next thing will happen, if that is known.
    pub fn due(&self, more: Option<Instant>) -> Option<Instant> {
        let wanted = self.wanted?;
        let calm = [self.active, more].into_iter().flatten().fold(wanted, Instant::max) + CALM;
        let due = calm.min(wanted + EVERY);
        Some(self.last.map_or(due, |last| due.max(last + EVERY)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_rest_but_not_for_ever() {
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        let mut trim = Trim::default();
        trim.active(at(0));
        assert_eq!(trim.due(Some(at(5))), None, "nothing to give back");
        trim.wanted(at(10));
        assert_eq!(trim.due(None), Some(at(10) + CALM));
        trim.active(at(500));
        assert_eq!(trim.due(None), Some(at(500) + CALM));
        assert_eq!(trim.due(Some(at(2000))), Some(at(2000) + CALM));
        trim.active(begun + 2 * EVERY);
        assert_eq!(trim.due(None), Some(at(10) + EVERY));
    }

    #[test]
    fn whoever_asks_again_and_again_does_not_wake_it_each_time() {
        let begun = Instant::now();
        let mut trim = Trim::default();
        trim.wanted(begun);
        trim.done(begun + CALM);
        assert_eq!(trim.due(None), None, "an idle svd is not woken");
        trim.wanted(begun + 2 * CALM);
        assert_eq!(trim.due(None), Some(begun + CALM + EVERY));
    }
}
