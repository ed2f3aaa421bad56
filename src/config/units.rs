//! Durations, sizes, signals and permission bits: text with a unit ↔ values.

use std::time::Duration;

use toml::de::DeValue;

use super::section::Item;
use super::source::Problem;

/// Longest duration that a file may ask for: a year, far from any overflow of a clock.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Units of time in milliseconds, longest first, as they follow each other in `1h30m`.
const TIME: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of size in bytes, largest first.
const SIZE: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

/// A duration of at least a millisecond.
pub(crate) fn positive(item: &Item<'_>) -> Result<Duration, Problem> {
    match duration(item)? {
        Duration::ZERO => Err(item.problem("this must be longer than 0")),
        duration => Ok(duration),
    }
}

/// `"100ms"`, `"10m"`, `"1h30m"`; a number without a unit is an error, save 0.
pub(crate) fn duration(item: &Item<'_>) -> Result<Duration, Problem> {
    match item.value {
        DeValue::Integer(n) if n.as_str() == "0" => Ok(Duration::ZERO),
        DeValue::Integer(_) | DeValue::Float(_) => {
            let number = item.file.slice(item.span);
            Err(item.problem("a duration needs a unit").help(format!("write \"{number}s\" (or ms, m, h, d)")))
        }
        DeValue::String(text) => parse_duration(text).map_err(|(message, help)| item.problem(message).help(help)),
        _ => Err(item.wrong_type("this must be a duration in quotes, such as \"30s\"")),
    }
}

/// `never`, or a duration longer than 0.
pub(crate) fn duration_or_never(item: &Item<'_>) -> Result<Option<Duration>, Problem> {
    match item.value {
        DeValue::String(text) if text == "never" => Ok(None),
        _ => positive(item).map(Some),
    }
}

/// The duration, or what is wrong with it and what to write instead.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, (String, String)> {
    const FORM: &str = "write whole numbers with a unit, largest first: \"100ms\", \"90s\", \"1h30m\", \"1d\"";
    let wrong = |why: &str| Err((format!("{text:?} is not a duration: {why}"), FORM.to_owned()));
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut smaller_than = u64::MAX;
    let mut total: u64 = 0;
    if rest.is_empty() {
        return wrong("it is empty");
    }
    while !rest.is_empty() {
        let (digits, after) = split_at_digits_end(rest);
        if digits.is_empty() {
            return wrong("a number is expected");
        }
        let (unit, after) = after.split_at(after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len()));
        if unit.is_empty() && after.is_empty() && digits.len() == text.len() {
            return Err((format!("{text:?} has no unit"), format!("write \"{text}s\" (or ms, m, h, d)")));
        }
        let Some((_, scale)) = TIME.iter().find(|(name, _)| *name == unit) else {
            return wrong("the units are ms, s, m, h and d");
        };
        if *scale >= smaller_than {
            return wrong("larger units come first, each once");
        }
        smaller_than = *scale;
        let part = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(*scale));
        let Some(sum) = part.and_then(|part| total.checked_add(part)) else {
            return Err((format!("{text:?} is too long"), "a year is the longest".to_owned()));
        };
        total = sum;
        rest = after;
    }
    match Duration::from_millis(total) {
        duration if duration <= LONGEST => Ok(duration),
        _ => Err((format!("{text:?} is too long"), "a year is the longest".to_owned())),
    }
}

fn split_at_digits_end(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

/// The duration as a file would say it: `1h30m`.
pub fn show_duration(duration: Duration) -> String {
    let mut rest = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut out = String::new();
    for (unit, scale) in TIME {
        if rest >= scale {
            out.push_str(&format!("{}{unit}", rest / scale));
            rest %= scale;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

/// Bytes: `"50MB"` (10^6), `"1GiB"` (2^30), `"never"` or 0 for no limit.
pub(crate) fn size(item: &Item<'_>) -> Result<u64, Problem> {
    match item.value {
        DeValue::Integer(n) if n.as_str() == "0" => Ok(0),
        DeValue::Integer(_) | DeValue::Float(_) => {
            let number = item.file.slice(item.span);
            Err(item.problem("a size needs a unit").help(format!("write \"{number}B\" (or kB, MB, GB, KiB, MiB, GiB)")))
        }
        DeValue::String(text) if text == "never" => Ok(0),
        DeValue::String(text) => parse_size(text).map_err(|(message, help)| item.problem(message).help(help)),
        _ => Err(item.wrong_type("this must be a size in quotes, such as \"50MB\"")),
    }
}

/// The number of bytes, or what is wrong and what to write instead.
pub(crate) fn parse_size(text: &str) -> Result<u64, (String, String)> {
    const FORM: &str = "write a whole number with a unit: \"50MB\" (50,000,000 bytes), \"64KiB\" (65,536 bytes)";
    let (digits, unit) = split_at_digits_end(text);
    let unit = unit.trim_start();
    if digits.is_empty() {
        return Err((format!("{text:?} is not a size"), FORM.to_owned()));
    }
    if unit.is_empty() && digits != "0" {
        return Err((format!("{text:?} has no unit"), format!("write \"{digits}B\" (or kB, MB, GB, KiB, MiB, GiB)")));
    }
    let wanted = if unit == "KB" { "kB" } else { unit };
    let scale = SIZE.iter().find(|(name, _)| *name == wanted).map(|(_, scale)| *scale);
    let Some(scale) = scale.or((digits == "0" && unit.is_empty()).then_some(1)) else {
        return Err((format!("{unit:?} is not a unit of size"), size_help(digits, unit).unwrap_or(FORM.to_owned())));
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(scale));
    // Files are measured in signed 64 bits.
    bytes.filter(|n| i64::try_from(*n).is_ok()).ok_or((format!("{text:?} is too large"), FORM.to_owned()))
}

/// `50m` → `50MB` or `50MiB`.
fn size_help(digits: &str, unit: &str) -> Option<String> {
    let lower = unit.to_ascii_lowercase();
    let same = |name: &&(&str, u64)| name.0.eq_ignore_ascii_case(&lower);
    if let Some((name, _)) = SIZE.iter().find(same) {
        return Some(format!("write \"{digits}{name}\""));
    }
    let decimal = SIZE.iter().find(|(name, _)| name.len() == 2 && name.to_ascii_lowercase() == format!("{lower}b"))?;
    let binary = decimal.0[..1].to_ascii_uppercase();
    Some(format!("write \"{digits}{}\" (powers of 1,000) or \"{digits}{binary}iB\" (of 1,024)", decimal.0))
}

/// The size as a file would say it, in the largest unit that divides it.
pub fn show_size(bytes: u64) -> String {
    if bytes == 0 {
        return "never".to_owned();
    }
    let fits = |(_, scale): &&(&str, u64)| bytes.is_multiple_of(*scale);
    let best = SIZE.iter().filter(fits).min_by_key(|(_, scale)| bytes / scale);
    best.map_or_else(String::new, |(unit, scale)| format!("{}{unit}", bytes / scale))
}

/// Signals by name and number; see signal(7).
const SIGNALS: [(&str, i32); 26] = [
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// Highest signal number of Linux (SIGRTMAX).
const LAST_SIGNAL: i32 = 64;

/// The number of `TERM`, `SIGTERM`, `term`, `15` or `RTMIN+3`.
pub fn parse_signal(text: &str) -> Option<i32> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Some(*number);
    }
    let number = match name.strip_prefix("RTMIN") {
        Some("") => libc::SIGRTMIN(),
        Some(offset) => libc::SIGRTMIN() + offset.strip_prefix('+')?.parse::<u8>().map(i32::from).ok()?,
        None => upper.parse::<u8>().map(i32::from).ok()?,
    };
    (1..=LAST_SIGNAL).contains(&number).then_some(number)
}

/// `TERM` for 15; a number has no name.
pub fn show_signal(number: i32) -> String {
    let known = SIGNALS.iter().find(|(_, n)| *n == number);
    known.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

/// A signal that a process can end by: STOP, CONT and CHLD cannot be meant.
pub(crate) fn signal(item: &Item<'_>) -> Result<i32, Problem> {
    let number = match item.value {
        DeValue::Integer(_) => item.integer(1, i64::from(LAST_SIGNAL)).map(|n| n as i32)?,
        _ => {
            let text = item.text()?;
            parse_signal(text).ok_or_else(|| {
                let problem = item.problem(format!("{text:?} is no signal"));
                let upper = text.to_ascii_uppercase();
                let name = upper.strip_prefix("SIG").unwrap_or(&upper);
                match super::suggest::closest(name, SIGNALS.iter().map(|(name, _)| *name)) {
                    Some(name) => problem.help(format!("did you mean {name:?}?")),
                    None => problem.help("write a name (\"TERM\", \"SIGINT\") or a number (15)"),
                }
            })?
        }
    };
    match number {
        libc::SIGSTOP | libc::SIGCONT | libc::SIGCHLD => Err(item
            .problem(format!("{} does not end a process", show_signal(number)))
            .help("the usual one is \"TERM\"")),
        number => Ok(number),
    }
}

/// Permission bits as octal text: `"0027"`. A bare number is an error, for TOML reads 27 as decimal.
pub(crate) fn octal(item: &Item<'_>) -> Result<u32, Problem> {
    if let DeValue::Integer(number) = item.value {
        let digits = number.as_str().trim_start_matches('-');
        let problem = item.problem("permission bits are octal digits in quotes, not a number");
        return Err(problem.help(format!("write \"{digits:0>4}\"")));
    }
    let text = item.text()?;
    let digits = text.strip_prefix("0o").unwrap_or(text);
    let bits = u32::from_str_radix(digits, 8).ok().filter(|_| !digits.starts_with('+'));
    bits.filter(|bits| *bits <= 0o777).ok_or_else(|| {
        let problem = item.problem(format!("{text:?} is not a set of permission bits"));
        problem.help("write octal digits from \"0000\" to \"0777\"")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, ms) in
            [("100ms", 100), ("10m", 600_000), ("1h30m", 5_400_000), ("1d", 86_400_000), ("0", 0), ("0s", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in
            ["", "s", "5", "5 s", "5x", "1m1h", "1s1s", "1.5s", "-1s", "+1s", "999999999999999999999s", "400d", "٣s"]
        {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(parse_duration("60").unwrap_err().1, "write \"60s\" (or ms, m, h, d)");
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("50MB", 50_000_000), ("1GiB", 1 << 30), ("4kB", 4_000), ("4KB", 4_000), ("7B", 7), ("0", 0)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MB", "50", "50X", "-1MB", "1.5GB", "99999999TB", "18446744073709551616B"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert_eq!(parse_size("50mb").unwrap_err().1, "write \"50MB\"");
        assert_eq!(parse_size("50m").unwrap_err().1, "write \"50MB\" (powers of 1,000) or \"50MiB\" (of 1,024)");
    }

    #[test]
    fn signals() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(parse_signal(text), Some(15), "{text}");
        }
        assert_eq!(parse_signal("RTMIN+3"), Some(libc::SIGRTMIN() + 3));
        for text in ["", "SIG", "TREM", "0", "65", "RTMIN+40", "RTMIN3", "-9"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
        assert_eq!(show_signal(2), "INT");
        assert_eq!(show_signal(40), "40");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(ms in 0u64..31_000_000_000, bytes in 1u64..(1 << 62)) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
            prop_assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }

        #[test]
        fn any_text_is_a_value_or_an_error(text in ".{0,20}") {
            let _ = (parse_duration(&text), parse_size(&text), parse_signal(&text));
        }
    }
}
