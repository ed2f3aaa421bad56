//! From a service's bytes to a log file's: nothing at all (raw), a time before each line, or a JSON object a line.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::names::Stream;
use crate::config::spec::LogFormat;

/// Whose bytes they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    pub service: &'a str,
    pub generation: u64,
    pub worker: u32,
    pub stream: Stream,
}

/// RFC 3339 in UTC with milliseconds: `2026-11-22T20:09:05.123Z`.
pub(super) fn time(ms: u64) -> impl std::fmt::Display {
    let t = UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(SystemTime::UNIX_EPOCH);
    humantime::format_rfc3339_millis(t)
}

/// Splits after each newline; the last piece may lack its own.
pub(super) fn lines(data: &[u8]) -> impl Iterator<Item = &[u8]> {
    data.split_inclusive(|b| *b == b'\n')
}

/// Appends `line` to `out` with a time in front, unless it continues a line that is begun already.
pub(super) fn timestamped(out: &mut Vec<u8>, stamp: &str, line: &[u8], continues: bool) {
    if !continues {
        out.extend_from_slice(stamp.as_bytes());
        out.push(b' ');
    }
    out.extend_from_slice(line);
}

/// Appends one JSON object and a newline. Whatever the bytes are, it is valid: what is not UTF-8 becomes U+FFFD. A line
/// that lacks its newline is marked with `"partial":true`; the next object goes on with it.
pub(super) fn json(out: &mut Vec<u8>, stamp: &str, origin: &Origin<'_>, line: &[u8]) {
    let (text, partial) = match line.strip_suffix(b"\n") {
        Some(text) => (text, false),
        None => (line, true),
    };
    json_head(out, stamp, origin.service);
    let middle = format!(
        ",\"generation\":{},\"worker\":{},\"stream\":\"{}\",\"message\":",
        origin.generation,
        origin.worker,
        origin.stream.word()
    );
    out.extend_from_slice(middle.as_bytes());
    json_text(out, &String::from_utf8_lossy(text));
    if partial {
        out.extend_from_slice(b",\"partial\":true");
    }
    out.extend_from_slice(b"}\n");
}

fn json_head(out: &mut Vec<u8>, stamp: &str, service: &str) {
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(stamp.as_bytes());
    out.extend_from_slice(b"\",\"service\":");
    json_text(out, service);
}

fn json_text(out: &mut Vec<u8>, text: &str) {
    // Writing a string into memory has no way to fail; an empty string keeps the object valid if it ever does.
    if serde_json::to_writer(&mut *out, text).is_err() {
        out.extend_from_slice(b"\"\"");
    }
}

/// The line that says where a generation begins. `began_ms` is when it was started, which may be earlier than its first
/// output.
pub(super) fn mark(format: LogFormat, service: &str, generation: u64, release: Option<&str>, began_ms: u64) -> Vec<u8> {
    let stamp = time(began_ms).to_string();
    let mut out = Vec::new();
    if format == LogFormat::Json {
        json_head(&mut out, &stamp, service);
        out.extend_from_slice(format!(",\"event\":\"generation\",\"generation\":{generation}").as_bytes());
        if let Some(release) = release {
            out.extend_from_slice(b",\"release\":");
            json_text(&mut out, release);
        }
        out.extend_from_slice(b"}\n");
        return out;
    }
    if format == LogFormat::Timestamps {
        out.extend_from_slice(stamp.as_bytes());
        out.push(b' ');
    }
    let release = release.map_or(String::new(), |r| format!(", release {r}"));
    out.extend_from_slice(format!("-- {service}: generation {generation}{release}, {stamp} --\n").as_bytes());
    out
}

/// The line that says, when there is room again, what could not be written.
pub(super) fn lost(format: LogFormat, service: &str, now_ms: u64, bytes: u64, lines: u64, why: &str) -> Vec<u8> {
    let stamp = time(now_ms).to_string();
    let mut out = Vec::new();
    if format == LogFormat::Json {
        json_head(&mut out, &stamp, service);
        out.extend_from_slice(
            format!(",\"event\":\"lost\",\"bytes\":{bytes},\"lines\":{lines},\"reason\":").as_bytes(),
        );
        json_text(&mut out, why);
        out.extend_from_slice(b"}\n");
        return out;
    }
    if format == LogFormat::Timestamps {
        out.extend_from_slice(stamp.as_bytes());
        out.push(b' ');
    }
    let (bytes, lines) = (grouped(bytes), grouped(lines));
    out.extend_from_slice(format!("airdock: {bytes} bytes ({lines} lines) of output were lost: {why}\n").as_bytes());
    out
}

/// `1234567` → `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_grouped() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1234567, "1,234,567")] {
            assert_eq!(grouped(n), text);
        }
    }

    #[test]
    fn marks_are_ascii_lines() {
        let m = mark(LogFormat::Raw, "airship", 7, Some("deploy-1"), 1_795_378_145_000);
        assert_eq!(
            String::from_utf8(m).unwrap(),
            "-- airship: generation 7, release deploy-1, 2026-11-22T20:09:05.000Z --\n"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_make_valid_json(line in proptest::collection::vec(any::<u8>(), 0..200), end in any::<bool>()) {
            let mut line: Vec<u8> = line.into_iter().filter(|b| *b != b'\n').collect();
            let text = String::from_utf8_lossy(&line).into_owned();
            if end { line.push(b'\n'); }
            let mut out = Vec::new();
            let origin = Origin { service: "a\"b", generation: 3, worker: 1, stream: Stream::Stderr };
            json(&mut out, "T", &origin, &line);
            prop_assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
            let v: serde_json::Value = serde_json::from_slice(&out).unwrap();
            prop_assert_eq!(v["message"].as_str().unwrap(), text);
            prop_assert_eq!(v["partial"].as_bool().unwrap_or(false), !end);
            prop_assert_eq!(v["service"].as_str().unwrap(), "a\"b");
        }
    }
}
