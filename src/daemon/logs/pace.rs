//! When to pause. A service that writes line by line would have its pipe emptied, and itself and us woken up, at every
//! line; letting the pipe fill for a moment moves the same bytes with a hundredth of the system calls. But the first
//! line after a silence is written at once, and a pause never lets a pipe become full.

use std::time::{Duration, Instant};

/// The longest pause while output streams: the delay that a line may see, well below what an eye does.
const PAUSE_MAX: Duration = Duration::from_millis(2);

/// Shorter pauses cost more than they save.
const PAUSE_MIN: Duration = Duration::from_micros(60);

/// Turns that follow each other within this time are a stream.
const STREAMING: Duration = Duration::from_millis(4);

#[derive(Debug, Default)]
pub(super) struct Pace {
    began: Option<Instant>,
    /// From the beginning of the turn before to this one's.
    gap: Duration,
    moved: bool,
    /// A pipe had more than its turn allowed.
    more: bool,
    /// The time in which the fastest pipe is half full.
    fills: Duration,
}

impl Pace {
    pub fn begin(&mut self, now: Instant) {
        self.gap = self.began.map_or(Duration::MAX, |t| now.saturating_duration_since(t));
        self.began = Some(now);
        self.moved = false;
        self.more = false;
        self.fills = PAUSE_MAX;
    }

    /// A pipe with room for `capacity` gave `bytes`; `more` may be left.
    pub fn moved(&mut self, bytes: usize, capacity: usize, more: bool) {
        if bytes == 0 {
            return;
        }
        self.moved = true;
        self.more |= more;
        // bytes came in gap; capacity / 2 comes in gap × capacity / (2 × bytes).
        let nanos = self.gap.min(STREAMING).as_nanos() * capacity as u128 / (2 * bytes as u128);
        let half = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.fills = self.fills.min(half);
    }

    /// How long to let pipes fill now, if at all.
    pub fn pause(&self, _now: Instant) -> Option<Duration> {
        (self.moved && !self.more && self.gap < STREAMING && self.fills >= PAUSE_MIN).then_some(self.fills)
    }
}
