//! What a gunicorn generation has counted, read from the memory that its launcher shares with svd.
//!
//! The layout is documented in `gunicorn/airdock_gunicorn.py`, which writes it, and repeated here as constants; a test
//! compares the two. In short: pages of 512 eight-byte words. Page 0 is the header together with the numbers of ended
//! workers, under a sequence lock; every other page is the slot of one living worker, with totals, a ring of 5-second
//! windows (count, errors, latency histogram) and the start times of its open requests.
//!
//! Everything here is pure: memory comes as [`Words`], the time as an argument. Numbers of a worker that is just
//! counting may be one request apart from each other; they are never torn, and never lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Size of the memory that svd hands to a generation: 255 workers at a time. Only touched pages exist.
pub const SIZE_BYTES: usize = 1 << 20;
/// Words of a page.
pub const PAGE: usize = 512;
pub const MAGIC: u64 = 0x314B_434F_4452_4941;
pub const VERSION: u64 = 1;

const H_MAGIC: usize = 0;
const H_VERSION: usize = 1;
const H_DRAIN_SECONDS: usize = 2;
const H_SEQUENCE: usize = 3;
const H_UNCOUNTED: usize = 4;
pub(super) const H_SLOW: usize = 5;
/// Where svd writes the pid of a worker whose place another one has taken.
pub const H_LEAVING: usize = 6;
/// Not zero: the launcher heeds it.
pub const H_LETS_GO: usize = 7;

const S_TAKEN: usize = 0;
const S_PID: usize = 1;
const S_STARTED: usize = 2;

pub(super) const BEGUN: usize = 8;
pub(super) const FINISHED: usize = 9;
pub(super) const ERRORS: usize = 10;
pub(super) const DURATION_US: usize = 11;
pub(super) const DIED_OPEN: usize = 12;
pub(super) const SLOW: usize = 13;
/// Durations by which [`Totals::slow`] counts: 65.536 ms, and each twice the one before.
pub const SLOW_COUNT: usize = 11;
/// Bucket of the first of them.
pub(super) const SLOW_BUCKET: usize = 19;

pub(super) const WINDOWS: usize = 24;
pub(super) const WINDOW_COUNT: usize = 13;
pub(super) const WINDOW_WORDS: usize = 24;
pub(super) const WINDOW_US: u64 = 5_000_000;
pub(super) const W_FINISHED: usize = 1;
pub(super) const W_ERRORS: usize = 2;
pub(super) const W_DURATION_US: usize = 3;
pub(super) const W_HISTOGRAM: usize = 4;

const OPEN: usize = 336;
const OPEN_COUNT: usize = 176;

/// Buckets of a [`Histogram`].
pub const BUCKETS: usize = 40;
/// Windows that make "the last minute": twelve whole ones and the current one.
const RECENT: u64 = 12;
/// A fold takes microseconds; a master that died within one leaves the sequence odd for ever.
const FOLD_TRIES: usize = 1000;

/// Memory that somebody else is writing, word by word.
pub trait Words {
    /// Number of words.
    fn count(&self) -> usize;
    /// The word at `index`, which is below [`Words::count`].
    fn load(&self, index: usize) -> u64;
}

impl Words for [AtomicU64] {
    fn count(&self) -> usize {
        self.len()
    }
    fn load(&self, index: usize) -> u64 {
        self[index].load(Ordering::Acquire)
    }
}

impl Words for [u64] {
    fn count(&self) -> usize {
        self.len()
    }
    fn load(&self, index: usize) -> u64 {
        self[index]
    }
}

/// What svd writes into zeroed memory before it starts a generation: pairs of index and value.
pub fn initial_words() -> [(usize, u64); 2] {
    [(H_VERSION, VERSION), (H_MAGIC, MAGIC)]
}

/// What svd writes before it sends TERM: how long requests in flight may take, in whole seconds, rounded up; zero
/// leaves it to the user's `graceful_timeout`.
pub fn drain_word(drain: Duration) -> (usize, u64) {
    let seconds = drain.as_secs() + u64::from(drain.subsec_nanos() > 0);
    (H_DRAIN_SECONDS, seconds)
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CountersError {
    #[error("the counters have {0} words, fewer than one page")]
    TooSmall(usize),
    #[error("the counters do not begin with the mark of a gunicorn generation")]
    Foreign,
    #[error("the counters have layout {found}, and this svd reads layout {VERSION}")]
    Version { found: u64 },
}

/// Requests since the generation began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub begun: u64,
    pub finished: u64,
    /// Answered with 5xx, or cut off by an exception of the application.
    pub errors: u64,
    /// Sum of the durations of the finished ones.
    pub duration: Duration,
    /// Open when their worker died.
    pub died_open: u64,
    /// Workers whose requests are not counted, as more than 255 lived at a time.
    pub uncounted_workers: u64,
    /// Finished requests that took so long at least: 2^16 µs, 2^17 µs … `None`: a launcher of before did not count them.
    pub slow: Option<[u64; SLOW_COUNT]>,
}

/// A living worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Worker {
    /// 0 until the worker has come to write it.
    pub pid: u32,
    /// CLOCK_MONOTONIC, microseconds.
    pub started_us: u64,
    pub begun: u64,
    pub finished: u64,
    pub errors: u64,
    /// CLOCK_MONOTONIC in microseconds at which each open request began; at most 176, in no order.
    pub open_since_us: Vec<u64>,
    pub recent: Recent,
}

impl Worker {
    /// Requests that have begun and not finished, those beyond the table included.
    pub fn open(&self) -> u64 {
        self.begun.saturating_sub(self.finished)
    }
}

/// Finished requests of the last 60 to 65 seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recent {
    pub finished: u64,
    pub errors: u64,
    pub duration: Duration,
    pub latency: Histogram,
}

impl Recent {
    fn add(&mut self, more: &Recent) {
        self.finished += more.finished;
        self.errors += more.errors;
        self.duration += more.duration;
        for (sum, n) in self.latency.0.iter_mut().zip(more.latency.0) {
            *sum += n;
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub totals: Totals,
    pub workers: Vec<Worker>,
    pub recent: Recent,
}

impl Snapshot {
    /// Requests open now.
    pub fn open(&self) -> u64 {
        self.workers.iter().map(Worker::open).sum()
    }

    /// Requests that have been open for longer than `limit` at `now_us` (CLOCK_MONOTONIC, microseconds).
    pub fn overdue(&self, now_us: u64, limit: Duration) -> u64 {
        let limit_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        let all = self.workers.iter().flat_map(|w| &w.open_since_us);
        all.filter(|since| now_us.saturating_sub(**since) > limit_us).count() as u64
    }

    /// The generation has ended: what its last workers had open has died with them, although no master was there to
    /// say so.
    pub fn ended(mut self) -> Snapshot {
        self.totals.died_open += self.open();
        self.workers.clear();
        self
    }
}

/// Durations in buckets that are a third to a half of an octave wide, from 128 µs to 67 s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram(pub [u64; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Histogram([0; BUCKETS])
    }
}

impl Histogram {
    /// First microsecond of a bucket.
    pub(super) fn lower_us(bucket: usize) -> u64 {
        match bucket {
            0 => 0,
            b => {
                let octave = 128u64 << ((b - 1) / 2);
                octave + if b.is_multiple_of(2) { octave / 2 } else { 0 }
            }
        }
    }

    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The duration below which the share `q` (0 to 1) of the requests stayed, interpolated within its bucket and so
    /// right to about a fifth; `None` without requests. Above 67 s it says 67 s.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let wanted = q.clamp(0.0, 1.0) * count as f64;
        let mut below = 0u64;
        for (bucket, &n) in self.0.iter().enumerate() {
            if n > 0 && (below + n) as f64 >= wanted {
                let low = Self::lower_us(bucket);
                let high = if bucket + 1 < BUCKETS { Self::lower_us(bucket + 1) } else { low };
                let part = (wanted - below as f64).max(0.0) / n as f64;
                let us = low as f64 + part * (high - low) as f64;
                return Some(Duration::from_micros(us as u64));
            }
            below += n;
        }
        None
    }

    /// Upper bounds in seconds with the number of requests at or below each, as Prometheus wants them; the last bound
    /// is infinite.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut sum = 0;
        self.0.iter().enumerate().map(move |(bucket, n)| {
            sum += n;
            let bound = if bucket + 1 < BUCKETS { Self::lower_us(bucket + 1) as f64 / 1e6 } else { f64::INFINITY };
            (bound, sum)
        })
    }
}

/// The bucket of a duration in microseconds; `bucket_of` of the launcher.
pub(super) fn bucket_of(us: u64) -> usize {
    let bits = (u64::BITS - us.leading_zeros()) as usize;
    match bits {
        0..=7 => 0,
        _ => (1 + 2 * (bits - 8) + (us >> (bits - 2) & 1) as usize).min(BUCKETS - 1),
    }
}

/// Reads everything. `now_us` is CLOCK_MONOTONIC in microseconds.
pub fn read<W: Words + ?Sized>(words: &W, now_us: u64) -> Result<Snapshot, CountersError> {
    if words.count() < PAGE {
        return Err(CountersError::TooSmall(words.count()));
    }
    if words.load(H_MAGIC) != MAGIC {
        return Err(CountersError::Foreign);
    }
    match words.load(H_VERSION) {
        VERSION => {}
        found => return Err(CountersError::Version { found }),
    }
    // Between two equal, even sequences no worker moved from its slot to page 0: none is missed or counted twice.
    for _ in 0..FOLD_TRIES {
        let before = words.load(H_SEQUENCE);
        let snapshot = read_all(words, now_us);
        if before.is_multiple_of(2) && words.load(H_SEQUENCE) == before {
            return Ok(snapshot);
        }
    }
    Ok(read_all(words, now_us))
}

fn read_all<W: Words + ?Sized>(words: &W, now_us: u64) -> Snapshot {
    let mut snapshot = Snapshot {
        totals: Totals {
            // Finished before begun: a request that ends between the two loads must not make open negative.
            finished: words.load(FINISHED),
            begun: words.load(BEGUN),
            errors: words.load(ERRORS),
            duration: Duration::from_micros(words.load(DURATION_US)),
            died_open: words.load(DIED_OPEN),
            uncounted_workers: words.load(H_UNCOUNTED),
            slow: (words.load(H_SLOW) != 0).then_some([0; SLOW_COUNT]),
        },
        workers: Vec::new(),
        recent: Recent::default(),
    };
    add_slow(words, 0, &mut snapshot.totals);
    add_recent(words, 0, now_us, &mut snapshot.recent);
    for page in 1..words.count() / PAGE {
        let base = page * PAGE;
        if words.load(base + S_TAKEN) == 0 {
            continue;
        }
        let worker = read_worker(words, base, now_us);
        let totals = &mut snapshot.totals;
        totals.finished += worker.finished;
        totals.begun += worker.begun;
        totals.errors += worker.errors;
        totals.duration += Duration::from_micros(words.load(base + DURATION_US));
        add_slow(words, base, &mut snapshot.totals);
        snapshot.recent.add(&worker.recent);
        snapshot.workers.push(worker);
    }
    snapshot
}

/// Adds a page's octaves, each to all that it is longer than.
fn add_slow<W: Words + ?Sized>(words: &W, base: usize, totals: &mut Totals) {
    let Some(slow) = &mut totals.slow else { return };
    let mut longer = 0;
    for (octave, sum) in slow.iter_mut().enumerate().rev() {
        longer += words.load(base + SLOW + octave);
        *sum += longer;
    }
}

fn read_worker<W: Words + ?Sized>(words: &W, base: usize, now_us: u64) -> Worker {
    let finished = words.load(base + FINISHED);
    let mut recent = Recent::default();
    add_recent(words, base, now_us, &mut recent);
    Worker {
        pid: u32::try_from(words.load(base + S_PID)).unwrap_or(0),
        started_us: words.load(base + S_STARTED),
        begun: words.load(base + BEGUN),
        finished,
        errors: words.load(base + ERRORS),
        open_since_us: (base + OPEN..base + OPEN + OPEN_COUNT)
            .map(|place| words.load(place))
            .filter(|since| *since != 0)
            .collect(),
        recent,
    }
}

/// Adds the windows of a page that are not older than a minute.
fn add_recent<W: Words + ?Sized>(words: &W, base: usize, now_us: u64, recent: &mut Recent) {
    let current = now_us / WINDOW_US + 1;
    for ring in 0..WINDOW_COUNT {
        let window = base + WINDOWS + ring * WINDOW_WORDS;
        let number = words.load(window);
        if number == 0 || number + RECENT < current {
            continue;
        }
        let mut seen = Recent {
            finished: words.load(window + W_FINISHED),
            errors: words.load(window + W_ERRORS),
            duration: Duration::from_micros(words.load(window + W_DURATION_US)),
            latency: Histogram::default(),
        };
        for (pair, buckets) in seen.latency.0.chunks_exact_mut(2).enumerate() {
            let word = words.load(window + W_HISTOGRAM + pair);
            buckets[0] = word & u64::from(u32::MAX);
            buckets[1] = word >> 32;
        }
        if words.load(window) != number {
            continue; // a minute old: its worker is just taking it for the present
        }
        recent.add(&seen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAUNCHER: &str = include_str!("gunicorn/airdock_gunicorn.py");

    fn empty(pages: usize) -> Vec<u64> {
        let mut words = vec![0; pages * PAGE];
        for (index, value) in initial_words() {
            words[index] = value;
        }
        words
    }

    fn worker(words: &mut [u64], page: usize, begun: u64, finished: u64) {
        let base = page * PAGE;
        words[base + S_TAKEN] = 1;
        words[base + S_PID] = 100 + page as u64;
        words[base + BEGUN] = begun;
        words[base + FINISHED] = finished;
    }

    /// Values of `NAME = n` and `A, B = n, m` in the launcher's layout section.
    fn python_constant(name: &str) -> u64 {
        for line in LAUNCHER.lines().take_while(|l| !l.starts_with("def ")) {
            let Some((names, values)) = line.split_once(" = ") else {
                continue;
            };
            let values = values.split('#').next().unwrap_or("");
            for (n, v) in names.split(", ").zip(values.split(',')) {
                if n == name {
                    let v = v.trim();
                    return match v.strip_prefix("0x") {
                        Some(hex) => u64::from_str_radix(hex, 16).expect("a hexadecimal number"),
                        None => v.parse().expect("a number"),
                    };
                }
            }
        }
        panic!("the launcher has no constant {name}");
    }

    #[test]
    fn launcher_and_reader_agree_on_the_layout() {
        let ours = [
            ("PAGE", PAGE as u64),
            ("MAGIC", MAGIC),
            ("LAYOUT_VERSION", VERSION),
            ("H_MAGIC", H_MAGIC as u64),
            ("H_VERSION", H_VERSION as u64),
            ("H_DRAIN_SECONDS", H_DRAIN_SECONDS as u64),
            ("H_SEQUENCE", H_SEQUENCE as u64),
            ("H_UNCOUNTED", H_UNCOUNTED as u64),
            ("H_SLOW", H_SLOW as u64),
            ("H_LEAVING", H_LEAVING as u64),
            ("H_LETS_GO", H_LETS_GO as u64),
            ("S_TAKEN", S_TAKEN as u64),
            ("S_PID", S_PID as u64),
            ("S_STARTED", S_STARTED as u64),
            ("BEGUN", BEGUN as u64),
            ("FINISHED", FINISHED as u64),
            ("ERRORS", ERRORS as u64),
            ("DURATION_US", DURATION_US as u64),
            ("DIED_OPEN", DIED_OPEN as u64),
            ("SLOW", SLOW as u64),
            ("SLOW_COUNT", SLOW_COUNT as u64),
            ("SLOW_BUCKET", SLOW_BUCKET as u64),
            ("WINDOWS", WINDOWS as u64),
            ("WINDOW_COUNT", WINDOW_COUNT as u64),
            ("WINDOW_WORDS", WINDOW_WORDS as u64),
            ("WINDOW_US", WINDOW_US),
            ("W_FINISHED", W_FINISHED as u64),
            ("W_ERRORS", W_ERRORS as u64),
            ("W_DURATION_US", W_DURATION_US as u64),
            ("W_HISTOGRAM", W_HISTOGRAM as u64),
            ("LAST_BUCKET", BUCKETS as u64 - 1),
            ("OPEN", OPEN as u64),
            ("OPEN_COUNT", OPEN_COUNT as u64),
        ];
        for (name, value) in ours {
            assert_eq!(python_constant(name), value, "{name}");
        }
        assert_eq!(OPEN + OPEN_COUNT, PAGE);
        assert_eq!(SLOW + SLOW_COUNT, WINDOWS);
        assert_eq!(Histogram::lower_us(SLOW_BUCKET), 1 << 16);
        assert_eq!((BUCKETS - 1 - SLOW_BUCKET) / 2 + 1, SLOW_COUNT);
        assert_eq!(WINDOWS + WINDOW_COUNT * WINDOW_WORDS, OPEN);
        assert_eq!(W_HISTOGRAM + BUCKETS / 2, WINDOW_WORDS);
    }

    #[test]
    fn slow_requests_are_those_of_all_longer_octaves() {
        let mut words = empty(3);
        words[SLOW] = 5;
        assert_eq!(read(&words[..], 0).expect("readable").totals.slow, None, "nobody has counted them");
        words[H_SLOW] = 1;
        worker(&mut words, 1, 9, 9);
        words[PAGE + SLOW] = 2;
        words[PAGE + SLOW + 3] = 4;
        words[SLOW + SLOW_COUNT - 1] = 1;
        let slow = read(&words[..], 0).expect("readable").totals.slow;
        assert_eq!(slow, Some([12, 5, 5, 5, 1, 1, 1, 1, 1, 1, 1]));
    }

    #[test]
    fn foreign_and_other_versions_are_refused() {
        assert_eq!(read(&[0u64; 8][..], 0), Err(CountersError::TooSmall(8)));
        assert_eq!(read(&vec![0u64; PAGE][..], 0), Err(CountersError::Foreign));
        let mut words = empty(1);
        words[H_VERSION] = 2;
        assert_eq!(read(&words[..], 0), Err(CountersError::Version { found: 2 }));
    }

    #[test]
    fn living_and_ended_workers_are_added() {
        let mut words = empty(4);
        words[BEGUN] = 100;
        words[FINISHED] = 98;
        words[DIED_OPEN] = 2;
        words[DURATION_US] = 500;
        worker(&mut words, 1, 10, 7);
        worker(&mut words, 3, 5, 5);
        words[PAGE + ERRORS] = 1;
        words[PAGE + DURATION_US] = 250;
        words[PAGE + OPEN] = 9_000_000;
        words[PAGE + OPEN + 2] = 1_000_000;
        let now = 11_000_000;
        let snapshot = read(&words[..], now).expect("readable");
        assert_eq!(
            snapshot.totals,
            Totals {
                begun: 115,
                finished: 110,
                errors: 1,
                duration: Duration::from_micros(750),
                died_open: 2,
                uncounted_workers: 0,
                slow: None,
            }
        );
        assert_eq!(snapshot.open(), 3);
        assert_eq!(snapshot.workers.iter().map(|w| w.pid).collect::<Vec<_>>(), [101, 103]);
        assert_eq!(snapshot.overdue(now, Duration::from_secs(5)), 1);
        assert_eq!(snapshot.overdue(now, Duration::from_secs(1)), 2);
        let after = snapshot.ended();
        assert_eq!((after.totals.died_open, after.open()), (5, 0));
    }

    #[test]
    fn the_last_minute_forgets_older_windows() {
        let mut words = empty(2);
        worker(&mut words, 1, 9, 9);
        let now_us = 100 * WINDOW_US;
        for number in [101, 89, 87] {
            let window = PAGE + WINDOWS + (number % WINDOW_COUNT) * WINDOW_WORDS;
            words[window] = number as u64;
            words[window + W_FINISHED] = 3;
            words[window + W_ERRORS] = 1;
            words[window + W_HISTOGRAM] = (2 << 32) | 1;
        }
        let recent = read(&words[..], now_us).expect("readable").recent;
        assert_eq!((recent.finished, recent.errors), (6, 2));
        assert_eq!((recent.latency.0[0], recent.latency.0[1]), (2, 4));
        let later = read(&words[..], now_us + 13 * WINDOW_US).expect("readable");
        assert_eq!(later.recent, Recent::default());
    }

    #[test]
    fn a_master_that_died_while_folding_does_not_stop_the_reader() {
        let mut words = empty(2);
        words[H_SEQUENCE] = 7;
        words[BEGUN] = 4;
        assert_eq!(read(&words[..], 0).expect("readable").totals.begun, 4);
    }

    #[test]
    fn quantiles_lie_in_their_bucket() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        histogram.0[0] = 50; // below 128 us
        histogram.0[7] = 49; // 1024 to 1536 us
        histogram.0[39] = 1;
        assert_eq!(histogram.quantile(0.25), Some(Duration::from_micros(64)));
        let p90 = histogram.quantile(0.9).expect("not empty");
        assert!(p90 > Duration::from_micros(1024) && p90 < Duration::from_micros(1536));
        assert_eq!(histogram.quantile(1.0), Some(Duration::from_micros(1 << 26)));
        let last = histogram.cumulative().last().expect("never empty");
        assert_eq!(last, (f64::INFINITY, 100));
    }

    #[test]
    fn bucket_bounds_are_the_launchers() {
        // The launcher's bucket_of(), in one line.
        let bucket = |us: u64| match 64 - us.leading_zeros() as usize {
            bits if bits <= 7 => 0,
            bits => (1 + 2 * (bits - 8) + (us >> (bits - 2) & 1) as usize).min(BUCKETS - 1),
        };
        for b in 1..BUCKETS {
            let low = Histogram::lower_us(b);
            assert_eq!((bucket(low - 1), bucket(low)), (b - 1, b), "bound {low}");
        }
    }

    #[test]
    fn drain_is_rounded_up() {
        assert_eq!(drain_word(Duration::from_millis(1500)), (H_DRAIN_SECONDS, 2));
        assert_eq!(drain_word(Duration::ZERO), (H_DRAIN_SECONDS, 0));
    }
}
