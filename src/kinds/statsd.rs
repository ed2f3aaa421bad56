//! Counts as JVMs and plain commands report them: statsd datagrams
//! (<https://github.com/statsd/statsd/blob/master/docs/metric_types.md>, tags as in DogStatsD). Pure.
//!
//! A datagram has lines, each `PREFIX.NAME:VALUE|TYPE[|@RATE][|#TAGS]`. The prefix says whose they are, and is the proof:
//! nobody but the generation knows it. `docs/counts.md` lists the names that mean something; others are passed over.

use std::fmt;
use std::time::Duration;

/// Whose counts they are: 128 bits that cannot be guessed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Prefix(pub u128);

/// What every prefix begins with.
const MARK: &[u8] = b"airdock";
const DIGITS: usize = 32;

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "airdock{:032x}", self.0)
    }
}

/// Messages and panics must not give it away.
impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prefix(…)")
    }
}

/// What a line says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Said {
    /// Requests have begun.
    Begun,
    /// Requests are finished.
    Finished,
    /// Requests were answered with 5xx.
    Errors,
    /// A finished request took that long.
    Took(Duration),
    /// All three in one: a request is finished, took that long, and was answered with 5xx or not.
    Request { took: Duration, error: bool },
}

/// One line that means something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Count {
    pub said: Said,
    /// How many of them; more than were sent where the client sends a sample. Above 0, finite, at most [`MOST`].
    pub times: f64,
}

/// What one line can be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Line<'a> {
    /// Nothing of ours: no prefix.
    Foreign,
    /// With something that has the form of a prefix, and what follows it. [`read`] reads that on.
    Ours(Prefix, &'a [u8]),
}

/// Most that one value may count: more is nonsense, and would make the sums useless.
pub const MOST: f64 = 1e9;
/// Longest duration that is believed.
const LONGEST_MS: f64 = 86_400_000.0;
/// Values in one line (`name:1:2:3|ms`).
const MOST_VALUES: usize = 1024;

/// The lines of a datagram.
pub fn lines(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    datagram.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// Takes the prefix off.
pub fn line(text: &[u8]) -> Line<'_> {
    let Some(rest) = text.strip_prefix(MARK) else { return Line::Foreign };
    let Some((digits, rest)) = rest.split_at_checked(DIGITS) else { return Line::Foreign };
    let (Some(b'.'), true) = (rest.first(), digits.iter().all(u8::is_ascii_hexdigit)) else { return Line::Foreign };
    match std::str::from_utf8(digits).ok().and_then(|digits| u128::from_str_radix(digits, 16).ok()) {
        Some(prefix) => Line::Ours(Prefix(prefix), &rest[1..]),
        None => Line::Foreign,
    }
}

/// Reads what follows a prefix and its dot, and gives each count to `to`. True if it has a name that means nothing here,
/// which is no mistake: clients send other metrics as well. False if the line is malformed.
pub fn read(rest: &[u8], mut to: impl FnMut(Count)) -> bool {
    let Ok(text) = std::str::from_utf8(rest) else { return false };
    let Some((name, rest)) = text.trim_end().split_once(':') else { return false };
    let mut fields = rest.split('|');
    let (Some(values), Some(kind)) = (fields.next(), fields.next()) else { return false };
    let Some(meaning) = meaning(name, kind) else { return true };
    let (mut rate, mut tags) = (1.0, "");
    for field in fields {
        if let Some(text) = field.strip_prefix('@') {
            match number(text).filter(|rate| *rate > 0.0 && *rate <= 1.0) {
                Some(number) => rate = number,
                None => return false,
            }
        } else if let Some(text) = field.strip_prefix('#') {
            tags = text;
        }
    }
    for value in values.split(':').take(MOST_VALUES) {
        let Some(value) = number(value) else { return false };
        let (said, times) = match meaning {
            Meaning::Counter(said) => (said, value / rate),
            Meaning::Duration => (Said::Took(milliseconds(value)), 1.0 / rate),
            Meaning::Request => {
                (Said::Request { took: milliseconds(value), error: has_error_status(tags) }, 1.0 / rate)
            }
        };
        if times > MOST {
            return false;
        }
        if times > 0.0 {
            to(Count { said, times });
        }
    }
    true
}

#[derive(Clone, Copy)]
enum Meaning {
    Counter(Said),
    Duration,
    Request,
}

fn meaning(name: &str, kind: &str) -> Option<Meaning> {
    let name = name.strip_prefix("gunicorn.").unwrap_or(name);
    Some(match (name, kind) {
        ("requests", "c") => Meaning::Counter(Said::Finished),
        ("begun", "c") => Meaning::Counter(Said::Begun),
        ("errors" | "5xx", "c") => Meaning::Counter(Said::Errors),
        ("duration" | "request.duration", "ms") => Meaning::Duration,
        ("requests" | "http.server.requests", "ms") => Meaning::Request,
        (name, "c") if name.strip_prefix("request.status.").is_some_and(is_error) => Meaning::Counter(Said::Errors),
        _ => return None,
    })
}

fn is_error(status: &str) -> bool {
    status.len() == 3 && status.starts_with('5') && status.bytes().all(|c| c.is_ascii_digit())
}

/// Among `method:GET,status:503,uri:/x`.
fn has_error_status(tags: &str) -> bool {
    tags.split(',').any(|tag| tag.strip_prefix("status:").is_some_and(is_error))
}

/// Zero or more, and finite. Not negative: a request that has happened cannot be taken back.
fn number(text: &str) -> Option<f64> {
    // Signs, `inf` and `nan` are nothing that a count can be.
    let plain = |c: u8| c.is_ascii_digit() || matches!(c, b'.' | b'e' | b'E' | b'-');
    if text.starts_with('-') || !text.bytes().all(plain) {
        return None;
    }
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

fn milliseconds(value: f64) -> Duration {
    Duration::from_secs_f64(value.clamp(0.0, LONGEST_MS) / 1e3)
}

#[cfg(test)]
#[path = "statsd_test.rs"]
mod tests;
