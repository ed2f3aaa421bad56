//! `[logs]`: where the output goes, and how much of it is kept.

use std::time::Duration;

use super::section::{Item, Schema, Section};
use super::source::Problem;
use super::spec::{LogFormat, Logs, Stderr};
use super::units;

pub(super) static SCHEMA: Schema =
    Schema { name: "[logs]", keys: &["capture", "stderr", "format", "max_size", "max_age", "keep", "compress"] };

const MAX_SIZE: u64 = 50_000_000;
const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
const KEEP: u32 = 10;

/// Below this, a file would hold little more than one burst of output.
const SMALLEST: u64 = 4_096;

pub(super) fn decode(top: &Section<'_>) -> Logs {
    let section = top.section("logs", &SCHEMA);
    Logs {
        capture: section.get("capture", Item::boolean).unwrap_or(true),
        stderr: section
            .get("stderr", |item| item.choice(&[("join", Stderr::Join), ("apart", Stderr::Apart)]))
            .unwrap_or(Stderr::Join),
        format: section.get("format", format).unwrap_or(LogFormat::Raw),
        max_size: section.get("max_size", size).unwrap_or(MAX_SIZE),
        max_age: section.get("max_age", units::duration_or_never).unwrap_or(Some(MAX_AGE)),
        keep: section.get("keep", |item| item.count(0, 10_000)).unwrap_or(KEEP),
        compress: section.get("compress", Item::boolean).unwrap_or(true),
    }
}

fn format(item: &Item<'_>) -> Result<LogFormat, Problem> {
    item.choice(&[("raw", LogFormat::Raw), ("timestamps", LogFormat::Timestamps), ("json", LogFormat::Json)])
}

fn size(item: &Item<'_>) -> Result<u64, Problem> {
    match units::size(item)? {
        0 => Ok(0),
        bytes if bytes < SMALLEST => Err(item
            .problem("the file would be rotated all the time")
            .help("the smallest is \"4KiB\"; \"never\" turns it off")),
        bytes => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};
    use super::*;

    fn with(logs: &str) -> String {
        format!("kind = 'command'\ncommand = ['a']\n[logs]\n{logs}")
    }

    #[test]
    fn keys_and_defaults() {
        let logs = service(&with("")).logs;
        assert_eq!((logs.capture, logs.stderr, logs.format), (true, Stderr::Join, LogFormat::Raw));
        assert_eq!((logs.max_size, logs.max_age, logs.keep, logs.compress), (MAX_SIZE, Some(MAX_AGE), 10, true));
        let logs = service(&with(
            "capture = false\nstderr = 'apart'\nformat = 'json'\nmax_size = 'never'\nmax_age = 'never'\nkeep = 0\ncompress = false",
        ))
        .logs;
        assert_eq!((logs.capture, logs.stderr, logs.format), (false, Stderr::Apart, LogFormat::Json));
        assert_eq!((logs.max_size, logs.max_age, logs.keep, logs.compress), (0, None, 0, false));
    }

    #[test]
    fn mistakes() {
        assert_eq!(helps(&with("max_size = 50")), ["write \"50B\" (or kB, MB, GB, KiB, MiB, GiB)"]);
        assert_eq!(
            errors(&with("max_size = '1kB'\nmax_age = '0s'\nkeep = -1\nformat = 'xml'\nstderr = true")).len(),
            5
        );
    }
}
