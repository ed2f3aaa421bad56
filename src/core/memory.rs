//! What follows from what a service's processes use: nothing, a fresh generation, or one fresh worker of gunicorn's.

use super::Time;
use std::collections::BTreeSet;
use std::time::Duration;

/// Measures in a row that are too high before anything is done: a large request passes.
const IN_A_ROW: u32 = 2;
/// Between two replaced workers that were young: the first pause, and the longest.
const PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3600));
/// A worker that has lived so long leaks; a younger one is too large from its beginning, and the next one will be.
const YOUNG: Duration = Duration::from_secs(300);

/// One measurement of the generation that serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measure {
    /// It uses so much in all, where that is too much.
    pub above: Option<u64>,
    /// Workers of gunicorn's that use too much, the largest first.
    pub fat: Vec<Fat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fat {
    pub pid: i32,
    /// Of the process, in the kernel's ticks.
    pub start_time: u64,
    pub used: u64,
    pub age: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Nothing,
    /// The generation uses so much.
    Replace(u64),
    Recycle(Fat),
}

/// A service's, over time.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    generation: u64,
    above: u32,
    fat_before: BTreeSet<(i32, u64)>,
    /// Young workers that were replaced one after another.
    young: u32,
    not_before: Time,
}

impl Watch {
    pub fn measured(&mut self, now: Time, generation: u64, measure: &Measure) -> Decision {
        if self.generation != generation {
            *self = Watch { generation, ..Watch::default() };
        }
        self.above = if measure.above.is_some() { self.above.saturating_add(1) } else { 0 };
        let fat: BTreeSet<(i32, u64)> = measure.fat.iter().map(|fat| (fat.pid, fat.start_time)).collect();
        let before = std::mem::replace(&mut self.fat_before, fat);
        if let Some(used) = measure.above.filter(|_| self.above >= IN_A_ROW) {
            return Decision::Replace(used);
        }
        let again = measure.fat.iter().find(|fat| before.contains(&(fat.pid, fat.start_time)));
        match again.filter(|_| now >= self.not_before) {
            Some(fat) => {
                self.pause(now, fat.age);
                Decision::Recycle(*fat)
            }
            None => Decision::Nothing,
        }
    }

    fn pause(&mut self, now: Time, age: Duration) {
        if age >= YOUNG {
            self.young = 0;
            return;
        }
        let (pause, most) = PAUSE;
        self.not_before = now + pause.saturating_mul(1 << self.young.min(16)).min(most);
        self.young = self.young.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fat(pid: i32, minutes: u64) -> Fat {
        Fat { pid, start_time: 7, used: 100, age: Duration::from_secs(60 * minutes) }
    }

    fn of(above: Option<u64>, fat: &[Fat]) -> Measure {
        Measure { above, fat: fat.to_vec() }
    }

    #[test]
    fn one_measure_is_none() {
        let (mut watch, now) = (Watch::default(), Time::default());
        assert_eq!(watch.measured(now, 1, &of(Some(9), &[fat(5, 60)])), Decision::Nothing);
        assert_eq!(watch.measured(now, 1, &of(None, &[fat(6, 60)])), Decision::Nothing, "another worker");
        assert_eq!(watch.measured(now, 1, &of(Some(9), &[fat(6, 60)])), Decision::Recycle(fat(6, 60)));
        assert_eq!(watch.measured(now, 1, &of(Some(9), &[])), Decision::Replace(9));
        assert_eq!(watch.measured(now, 2, &of(Some(9), &[])), Decision::Nothing, "another generation");
        let other = Fat { start_time: 8, ..fat(6, 60) };
        watch.measured(now, 2, &of(None, &[fat(6, 60)]));
        assert_eq!(watch.measured(now, 2, &of(None, &[other])), Decision::Nothing, "another process of that number");
    }

    #[test]
    fn workers_that_are_too_large_from_the_beginning_are_replaced_more_and_more_seldom() {
        let mut watch = Watch::default();
        let (mut now, mut count) = (Time::default(), 0);
        let day = 24 * 3600;
        for _ in 0..day / 5 {
            now = now + Duration::from_secs(5);
            if watch.measured(now, 1, &of(None, &[fat(5, 1)])) != Decision::Nothing {
                count += 1;
            }
        }
        assert!((20..40).contains(&count), "{count} in a day");
        // One that leaks slowly is not held up by that, once it is its turn.
        now = now + Duration::from_secs(3600);
        for pid in 10..20 {
            watch.measured(now, 1, &of(None, &[fat(pid, 60)]));
            assert_eq!(watch.measured(now, 1, &of(None, &[fat(pid, 60)])), Decision::Recycle(fat(pid, 60)));
        }
    }
}
