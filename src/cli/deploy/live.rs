//! How a rollout stands, from what was said of it: one line a host and one for the wave. Pure; [`super::show`] draws it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::render::age;
use super::super::screen::fit;
use super::super::text::line;
use super::show::rates;
use crate::fleet::drive::Said;
use crate::fleet::rollout::journal::What;
use crate::fleet::rollout::{Plan, Report, Watched};

/// Lines of hosts that are shown at most.
const HOSTS: usize = 12;

/// What has become of a host; in the order in which they are worth a line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum State {
    /// In a word of the plan, since when, and what it says itself.
    Busy(&'static str, Duration, Box<str>),
    /// What was done to it did not work.
    Failed(&'static str),
    /// Serves the new release, unconfirmed.
    New,
    Waiting,
    TakenBack,
    Confirmed,
    LeftOut,
}

impl State {
    /// For hosts without a line.
    fn word(&self) -> &'static str {
        match self {
            State::Busy(doing, ..) => doing,
            State::Failed(_) => "failed",
            State::New => "on the new release",
            State::Waiting => "waiting",
            State::TakenBack => "taken back",
            State::Confirmed => "confirmed",
            State::LeftOut => "left out",
        }
    }
}

#[derive(Debug, Default)]
pub struct Live {
    hosts: BTreeMap<Box<str>, State>,
    waves: usize,
    watched: Option<(Watched, Duration)>,
}

impl Live {
    pub fn begin(&mut self, plan: &Plan) {
        let hosts = plan.waves.waves.iter().flatten().chain(&plan.waves.control);
        self.hosts = hosts.map(|host| (host.clone(), State::Waiting)).collect();
        self.waves = plan.waves.waves.len();
    }

    /// `now`: since svctl began.
    pub fn said(&mut self, now: Duration, said: &Said) {
        match said {
            Said::Begun { host, doing } => self.set(host, State::Busy(doing, now, "".into())),
            Said::Ended { host, doing, done } => self.set(host, after(doing, *done)),
            Said::Progress { host, line } => {
                if let Some(State::Busy(.., says)) = self.hosts.get_mut(host) {
                    *says = line.message.clone();
                }
            }
            Said::Watched(watched) => self.watched = Some((watched.clone(), now)),
            Said::Report(Report::Recorded(entry)) => match &entry.what {
                What::Skipped { host, .. } => self.set(host, State::LeftOut),
                What::Judged { .. } | What::Paused { .. } | What::Promoted { .. } | What::Failing { .. } => {
                    self.watched = None;
                }
                _ => {}
            },
            Said::Report(_) => {}
        }
    }

    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    fn set(&mut self, host: &str, state: State) {
        self.hosts.insert(host.into(), state);
    }

    /// What is to be seen, in lines that fit; empty when nothing goes on.
    pub fn lines(&self, now: Duration, width: usize) -> Vec<String> {
        let mut hosts: Vec<(&str, &State)> = self.hosts.iter().map(|(name, state)| (&**name, state)).collect();
        // Stable: by name among those of one state.
        hosts.sort_by_key(|(_, state)| rank(state));
        let longest = hosts.iter().take(HOSTS).map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut out: Vec<String> = hosts
            .iter()
            .take(HOSTS)
            .map(|(name, state)| fit(&format!("{:longest$}  {}", line(name), one(state, now)), width))
            .collect();
        // In the order of names: they do not jump about while nothing changes.
        if hosts.len() <= HOSTS {
            out.sort();
        } else {
            out.push(fit(&rest(hosts[HOSTS..].iter().map(|(_, state)| *state)), width));
        }
        out.extend(self.wave(now).map(|text| fit(&text, width)));
        out
    }

    /// In one line, for where lines stay.
    pub fn summary(&self, now: Duration) -> String {
        if let Some(text) = self.wave(now) {
            return text;
        }
        let busy = self.hosts.iter().filter(|(_, state)| matches!(state, State::Busy(..)));
        let busy: Vec<String> = busy.map(|(name, state)| format!("{}: {}", line(name), one(state, now))).collect();
        match busy.len() {
            0 => rest(self.hosts.values()),
            1..=3 => busy.join("; "),
            n => format!("{}; and {} more", busy[..3].join("; "), n - 3),
        }
    }

    fn wave(&self, now: Duration) -> Option<String> {
        let (watched, told) = self.watched.as_ref()?;
        let at = (watched.at + now.saturating_sub(*told)).min(watched.ends);
        let verdict = &watched.verdict;
        let evidence = verdict.evidence.max(verdict.slow_evidence / 10.0);
        Some(format!(
            "wave {} of {}: watched for {} of {}; {}; evidence {evidence:.1}",
            watched.wave + 1,
            self.waves.max(watched.wave + 1),
            age(at.as_secs()),
            age(watched.ends.as_secs()),
            rates(verdict)
        ))
    }
}

fn after(doing: &'static str, done: bool) -> State {
    match (doing, done) {
        (doing, false) => State::Failed(doing),
        ("activate", true) => State::New,
        ("confirm", true) => State::Confirmed,
        ("take back", true) => State::TakenBack,
        (_, true) => State::Waiting,
    }
}

fn rank(state: &State) -> u8 {
    match state {
        State::Busy(..) => 0,
        State::Failed(_) => 1,
        State::LeftOut => 2,
        State::New => 3,
        State::TakenBack => 4,
        State::Waiting => 5,
        State::Confirmed => 6,
    }
}

fn one(state: &State, now: Duration) -> String {
    match state {
        State::Busy(doing, since, says) => {
            let says = if says.is_empty() { String::new() } else { format!("  {}", line(says)) };
            format!("{doing} {}{says}", age(now.saturating_sub(*since).as_secs()))
        }
        State::Failed(doing) => format!("{doing} failed"),
        state => state.word().to_owned(),
    }
}

/// `3 waiting, 2 confirmed`
fn rest<'a>(states: impl Iterator<Item = &'a State>) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for state in states {
        match counts.iter_mut().find(|(word, _)| *word == state.word()) {
            Some((_, count)) => *count += 1,
            None => counts.push((state.word(), 1)),
        }
    }
    let counts: Vec<String> = counts.iter().map(|(word, count)| format!("{count} {word}")).collect();
    format!("hosts: {}", counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Progress;
    use crate::fleet::rollout::testing;
    use crate::fleet::verdict::{Baseline, Counts, Judge, Settings, TICK, Tick};

    const SECOND: Duration = Duration::from_secs(1);

    fn begun(hosts: usize) -> Live {
        let mut live = Live::default();
        live.begin(&testing(hosts));
        live
    }

    fn host(n: usize) -> Box<str> {
        format!("web-{n:04}").into()
    }

    #[test]
    fn each_host_has_a_line_with_its_step() {
        let mut live = begun(3);
        live.said(SECOND, &Said::Begun { host: host(0), doing: "activate" });
        let line = Progress::now(Some("web"), "candidate", "generation 8 \x1b[2Jboots");
        live.said(SECOND, &Said::Progress { host: host(0), line });
        let lines = live.lines(SECOND * 13, 60);
        let expected = ["web-0000  activate 12s  generation 8 \\x1b[2Jboots", "web-0001  waiting", "web-0002  waiting"];
        assert_eq!(lines, expected);
        assert_eq!(live.lines(SECOND * 13, 20)[0], "web-0000  activate …");
        live.said(SECOND, &Said::Ended { host: host(0), doing: "activate", done: true });
        assert_eq!(live.lines(SECOND * 13, 60)[0], "web-0000  on the new release");
        assert_eq!(live.summary(SECOND), "hosts: 1 on the new release, 2 waiting");
    }

    #[test]
    fn of_many_hosts_those_that_do_something_are_seen() {
        let mut live = begun(500);
        for n in [77, 400] {
            live.said(SECOND, &Said::Begun { host: host(n), doing: "build" });
        }
        live.said(SECOND, &Said::Ended { host: host(450), doing: "build", done: false });
        let lines = live.lines(SECOND * 5, 80);
        assert_eq!(lines.len(), HOSTS + 1);
        assert_eq!(&lines[..3], ["web-0077  build 4s", "web-0400  build 4s", "web-0450  build failed"]);
        assert_eq!(lines[HOSTS], "hosts: 488 waiting");
        assert_eq!(live.summary(SECOND * 5), "web-0077: build 4s; web-0400: build 4s");
    }

    #[test]
    fn a_wave_that_is_watched_is_told_with_its_rates() {
        let mut live = begun(3);
        let mut judge = Judge::new(Settings::default(), Baseline::Control, TICK * 60);
        let counts = |requests, errors| Counts { requests, errors };
        let tick = Tick { canary: counts(100, 3), control: counts(900, 0), ..Tick::default() };
        let verdict = judge.handle_tick(TICK, tick).clone();
        live.said(SECOND, &Said::Watched(Watched { wave: 0, at: TICK, ends: judge.ends(), verdict }));
        let told = live.summary(SECOND * 4);
        let expected = "wave 1 of 2: watched for 8s of 5m00s; new: 3 of 100 requests failed (3.00 %); old: 0 of 900 requests failed (0.00 %); evidence ";
        assert!(told.starts_with(expected), "{told}");
        assert_eq!(live.lines(SECOND * 4, 300).last(), Some(&told));
    }
}
