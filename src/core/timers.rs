//! One deadline a key; setting a key again moves it. What is not set does not wake anybody (I7).

use super::event::{GenerationId, ServiceId, WorkerId};
use super::time::Time;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A worker's boot deadline, or the end of its grace time.
    Worker(WorkerId),
    /// A slot's next attempt.
    Slot(GenerationId, u32),
    /// A failed service's next attempt.
    Service(ServiceId),
    /// The end of a standby's or a canary's time.
    Aside(ServiceId),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Timers {
    at: BTreeMap<Timer, Time>,
    queue: BTreeSet<(Time, Timer)>,
}

impl Timers {
    pub fn set(&mut self, timer: Timer, at: Time) {
        self.clear(timer);
        self.at.insert(timer, at);
        self.queue.insert((at, timer));
    }

    pub fn clear(&mut self, timer: Timer) {
        if let Some(at) = self.at.remove(&timer) {
            self.queue.remove(&(at, timer));
        }
    }

    pub fn next(&self) -> Option<Time> {
        self.queue.first().map(|(at, _)| *at)
    }

    /// What is due, in order.
    pub fn due(&self, now: Time) -> impl Iterator<Item = Timer> {
        self.queue.iter().take_while(move |(at, _)| *at <= now).map(|(_, timer)| *timer)
    }

    /// Takes one timer that is due.
    pub fn pop(&mut self, now: Time) -> Option<Timer> {
        let (at, timer) = *self.queue.first()?;
        if at > now {
            return None;
        }
        self.clear(timer);
        Some(timer)
    }
}
