//! Releases and what was done with them, for people. Pure.

use std::fmt::Write;

use super::render::age;
use super::text::line;
use crate::api::apps::{AppStatus, History, HistoryEntry, ReleaseStatus};
use crate::config::counted;
use crate::fleet::drift::Stands;
use crate::fleet::drive::facts::{Answer, serves};

const HEADS: [&str; 6] = ["RELEASE", "STATE", "AGE", "SOURCE", "BY", "REASON"];
/// Digits of a commit that people compare.
const SHORT: usize = 12;

/// `svctl releases`: what is here, newest first, and what needs somebody.
pub fn releases(status: &AppStatus) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "{} in {}", line(&status.app), line(&status.root));
    for service in &status.services {
        let release = service.release.as_deref().unwrap_or("no release");
        let _ = writeln!(out, "  {:<24} {:<10} {}", line(&service.name), service.state.as_str(), line(release));
    }
    if let Some(trial) = &status.trial {
        let left = age(trial.seconds_left);
        let before = trial.before.as_deref().map_or("nothing".to_owned(), line);
        let _ = match trial.holds {
            true => writeln!(out, "{} is on trial for {left}, and is held then", line(&trial.release)),
            false => writeln!(out, "{} is on trial for {left}; then back to {before}", line(&trial.release)),
        };
    }
    if let Some(lock) = &status.lock {
        let why = if lock.message.is_empty() { String::new() } else { format!(": {}", line(&lock.message)) };
        let _ = writeln!(out, "locked by {} for {}{why}", line(&lock.holder), age(lock.since_seconds));
    }
    if let Some(alert) = &status.alert {
        let _ = writeln!(out, "ALERT: {}", line(alert));
    }
    if status.releases.is_empty() {
        out.push_str("There are no releases yet; `svctl deploy` brings one.\n");
        return out;
    }
    out.push('\n');
    let rows: Vec<[String; 6]> = status.releases.iter().rev().map(|r| row(status, r)).collect();
    push_table(&mut out, &HEADS, &rows);
    out
}

fn row(status: &AppStatus, release: &ReleaseStatus) -> [String; 6] {
    let mut state = release.state.as_str().to_owned();
    if release.serving {
        state.push_str(", serving");
    }
    if status.previous.as_deref() == Some(&*release.release) {
        state.push_str(", previous");
    }
    let source: String = line(&release.source).chars().take(SHORT).collect();
    let source = if release.label.is_empty() { source } else { format!("{source} {}", line(&release.label)) };
    if release.migrated.is_some() {
        state.push_str(", migrated");
    }
    let reason = line(release.reason.as_deref().unwrap_or(""));
    [line(&release.release), state, age(release.since_seconds), source.trim().to_owned(), line(&release.by), reason]
}

/// `svctl releases` of several hosts: which is where.
pub fn drift(app: &str, release: Option<&str>, hosts: &[(&str, &Answer, Stands)]) -> String {
    let mut out = match release {
        Some(release) => format!("{} is at {}\n\n", line(app), line(release)),
        None => format!("{}: no release was confirmed by most of the hosts\n\n", line(app)),
    };
    let of = |release: Option<&str>| release.map_or("-".to_owned(), line);
    let row = |(name, answer, stands): &(&str, &Answer, Stands)| {
        let status = answer.as_ref().ok();
        let serving = status.and_then(serves);
        let told = match stands {
            Stands::With => String::new(),
            Stands::Off { why } => format!("off: {}", line(why)),
            Stands::OnTrial { release, .. } => format!("{} is on trial", line(release)),
            Stands::Away { why } => format!("cannot be reached: {}", line(why)),
            Stands::Unknown => "?".to_owned(),
        };
        [
            line(name),
            of(serving.as_deref()),
            of(status.and_then(|s| s.confirmed.as_deref())),
            of(status.and_then(|s| s.previous.as_deref())),
            told,
        ]
    };
    let rows: Vec<[String; 5]> = hosts.iter().map(row).collect();
    push_table(&mut out, &["HOST", "SERVES", "CONFIRMED", "PREVIOUS", ""], &rows);
    let off = hosts.iter().filter(|(_, _, stands)| stands.is_off()).count();
    if off > 0 && release.is_some() {
        let _ = writeln!(out, "\n`svctl catch-up {}` brings {} there.", line(app), counted(off, "host"));
    }
    out
}

/// `svctl history`.
pub fn history(history: &History) -> String {
    if history.entries.is_empty() {
        return "Nothing was deployed here yet.\n".to_owned();
    }
    entries(history.entries.iter())
}

fn entries<'a>(entries: impl Iterator<Item = &'a HistoryEntry>) -> String {
    // In seconds.
    let time =
        |e: &HistoryEntry| e.time.split_once('.').map_or_else(|| line(&e.time), |(time, _)| format!("{}Z", line(time)));
    let row = |e: &HistoryEntry| {
        [time(e), line(&e.who), line(&e.what), line(e.release.as_deref().unwrap_or("-")), line(&e.detail)]
    };
    let mut out = String::new();
    push_table(&mut out, &["TIME", "WHO", "WHAT", "RELEASE", "DETAIL"], &entries.map(row).collect::<Vec<_>>());
    out
}

/// `svctl history` of several hosts: by time, as each host's clock tells it.
pub fn merged_history(hosts: &[(Box<str>, History)]) -> String {
    let each = |(name, history): &'_ (Box<str>, History)| -> Vec<(String, HistoryEntry)> {
        history.entries.iter().map(|entry| (line(name), entry.clone())).collect()
    };
    let mut all: Vec<(String, HistoryEntry)> = hosts.iter().flat_map(each).collect();
    if all.is_empty() {
        return "Nothing was deployed on these hosts yet.\n".to_owned();
    }
    // All are in UTC, so that the order of texts is that of times; older entries are in seconds.
    all.sort_by(|(_, a), (_, b)| a.time.trim_end_matches('Z').cmp(b.time.trim_end_matches('Z')));
    let table = entries(all.iter().map(|(_, entry)| entry));
    let names: Vec<&str> = std::iter::once("HOST").chain(all.iter().map(|(name, _)| name.as_str())).collect();
    let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    names.iter().zip(table.lines()).map(|(name, line)| format!("{name:width$} | {line}\n")).collect()
}

fn push_table<const N: usize>(out: &mut String, heads: &[&str; N], rows: &[[String; N]]) {
    let mut widths = heads.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut push = |cells: [&str; N]| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(widths) {
            let _ = write!(text, "{cell:<width$}  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    };
    push(*heads);
    for row in rows {
        push(row.each_ref().map(String::as_str));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::apps::{AppService, Fence, JournalMark, LockStatus, ReleaseState, TrialStatus};
    use crate::api::types::ServiceState;

    fn release(name: &str, state: ReleaseState, serving: bool) -> ReleaseStatus {
        ReleaseStatus {
            release: name.into(),
            state,
            reason: (state == ReleaseState::Failed).then(|| "it did not boot\x1b[2J".into()),
            source: "0123456789abcdef".into(),
            label: "production".into(),
            by: "alice".into(),
            since: "2026-11-22T18:40:00Z".into(),
            since_seconds: 4000,
            migrated: None,
            serving,
        }
    }

    #[test]
    fn releases_for_people() {
        let mut status = AppStatus {
            app: "web".into(),
            root: "/srv/web".into(),
            services: vec![AppService {
                name: "web".into(),
                state: ServiceState::Running,
                release: Some("r2".into()),
                generation: Some(4),
                restarts: 0,
                unfit: None,
                traffic: None,
            }],
            current: Some("r2".into()),
            confirmed: Some("r1".into()),
            confirmed_by: "w".into(),
            configuration: None,
            previous: Some("r1".into()),
            trial: Some(TrialStatus {
                release: "r2".into(),
                before: Some("r1".into()),
                rollout: "x".into(),
                seconds_left: 90,
                holds: false,
            }),
            switching_to: None,
            lock: Some(LockStatus {
                fence: Fence::default(),
                holder: "root (for alice)".into(),
                since: "2026-11-22T18:40:00Z".into(),
                since_seconds: 61,
                seconds_left: Some(90),
                message: "deploy".into(),
            }),
            fence: Fence::default(),
            releases: vec![
                release("r0", ReleaseState::Failed, false),
                release("r1", ReleaseState::Confirmed, false),
                release("r2", ReleaseState::Trial, true),
            ],
            may_deploy: true,
            steps: Vec::new(),
            migration: None,
            builds: true,
            built_here: false,
            requirements: Vec::new(),
            static_when_changed: Vec::new(),
            journal: JournalMark::default(),
            alert: None,
        };
        insta::assert_snapshot!(releases(&status), @r"
        web in /srv/web
          web                      running    r2
        r2 is on trial for 1m30s; then back to r1
        locked by root (for alice) for 1m01s: deploy

        RELEASE  STATE                AGE    SOURCE                   BY     REASON
        r2       on trial, serving    1h06m  0123456789ab production  alice
        r1       confirmed, previous  1h06m  0123456789ab production  alice
        r0       failed               1h06m  0123456789ab production  alice  it did not boot\x1b[2J
        ");
        status.releases.clear();
        assert!(releases(&status).ends_with("brings one.\n"));
    }

    fn entry(time: &str, what: &str) -> HistoryEntry {
        HistoryEntry {
            time: format!("2026-11-22T18:{time}Z").into(),
            who: "alice".into(),
            rollout: "x".into(),
            what: what.into(),
            release: Some("r1".into()),
            detail: "".into(),
        }
    }

    #[test]
    fn history_for_people() {
        let text = history(&History { entries: vec![entry("40:00", "confirmed")] });
        assert_eq!(text.lines().last(), Some("2026-11-22T18:40:00Z  alice  confirmed  r1"));
        assert!(history(&History::default()).starts_with("Nothing"));
    }

    #[test]
    fn history_of_several_hosts() {
        let of = |name: &str, entries: &[(&str, &str)]| {
            let entries = entries.iter().map(|(time, what)| entry(time, what)).collect();
            (name.into(), History { entries })
        };
        let hosts = [
            of("web-10", &[("40:00", "staged"), ("40:07", "activated"), ("40:07.250", "confirmed")]),
            of("web-2", &[("40:01", "staged"), ("40:07.050", "built"), ("41:00.7", "activated")]),
            of("web-3", &[]),
        ];
        insta::assert_snapshot!(merged_history(&hosts), @r"
        HOST   | TIME                  WHO    WHAT       RELEASE  DETAIL
        web-10 | 2026-11-22T18:40:00Z  alice  staged     r1
        web-2  | 2026-11-22T18:40:01Z  alice  staged     r1
        web-10 | 2026-11-22T18:40:07Z  alice  activated  r1
        web-2  | 2026-11-22T18:40:07Z  alice  built      r1
        web-10 | 2026-11-22T18:40:07Z  alice  confirmed  r1
        web-2  | 2026-11-22T18:41:00Z  alice  activated  r1
        ");
        assert!(merged_history(&hosts[2..]).starts_with("Nothing"));
    }
}
