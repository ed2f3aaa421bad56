//! What `svctl monitor` shows, from what the hosts have said. Pure: no clock, no terminal.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::render::{age, bytes, gunicorn};
use super::super::screen::fit;
use super::super::text::line;
use crate::api::types::{GenerationRole, GenerationStatus, HealthState, ServiceStatus, Traffic, WorkerState};

/// Releases are shown by their end where there is no room.
const SHORT: usize = 14;
/// Lines of the log that have room even where there are many generations.
const LOG: usize = 5;

/// What one host has said last.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Empty: it is this one, and the only one.
    pub host: Box<str>,
    pub services: Vec<ServiceStatus>,
    /// Lines of the services, oldest first.
    pub log: Vec<(Box<str>, String)>,
    /// Why it does not answer.
    pub away: Option<Box<str>>,
    rates: BTreeMap<Key, Rate>,
}

/// A service's generation.
type Key = (Box<str>, u64);

#[derive(Clone, Copy, Debug, Default)]
struct Rate {
    at: Duration,
    traffic: Traffic,
    /// A second, between the last two answers; `None`: there was one alone.
    requests: Option<f64>,
}

impl Seen {
    pub fn new(host: &str) -> Seen {
        Seen { host: host.into(), away: Some("it has not answered yet".into()), ..Seen::default() }
    }

    /// It has answered, at a time of svctl's own clock.
    pub fn answered(&mut self, at: Duration, services: Vec<ServiceStatus>, log: Vec<(Box<str>, String)>) {
        let before = std::mem::take(&mut self.rates);
        for (service, generation, traffic) in counted(&services) {
            let key = (service.name.clone(), generation.number);
            let requests = before.get(&key).and_then(|last| {
                let seconds = at.checked_sub(last.at).filter(|time| !time.is_zero())?.as_secs_f64();
                Some(traffic.requests.checked_sub(last.traffic.requests)? as f64 / seconds)
            });
            self.rates.insert(key, Rate { at, traffic, requests });
        }
        (self.services, self.log, self.away) = (services, log, None);
    }

    fn rate(&self, service: &ServiceStatus, generation: &GenerationStatus) -> Option<f64> {
        self.rates.get(&(service.name.clone(), generation.number))?.requests
    }
}

fn counted(services: &[ServiceStatus]) -> impl Iterator<Item = (&ServiceStatus, &GenerationStatus, Traffic)> {
    let generations = services.iter().flat_map(|s| s.generations.iter().map(move |g| (s, g)));
    generations.filter_map(|(s, g)| Some((s, g, g.traffic?)))
}

/// What is seen, line by line. `size`: columns and lines; `None`: all of it, as wide as it is.
pub fn lines(seen: &[Seen], time: &str, size: Option<(usize, usize)>) -> Vec<String> {
    let width = size.map_or(usize::MAX, |(width, _)| width);
    let mut out = vec![head(seen, time)];
    let table = table(seen, false);
    let wide = table.iter().any(|line| line.chars().count() > width);
    out.extend(if wide { self::table(seen, true) } else { table });
    out.extend(releases(seen));
    out.extend(notes(seen));
    out.extend(workers(seen));
    let log = log(seen);
    if let Some((_, height)) = size {
        let room = height.saturating_sub(out.len() + 1).max(LOG.min(log.len()));
        let first = log.len().saturating_sub(room);
        let kept = height.saturating_sub(log.len() - first + 1);
        if out.len() > kept {
            let more = out.len() - kept + 1;
            out.truncate(kept.saturating_sub(1));
            out.push(format!("… {more} more lines"));
        }
        if !log.is_empty() {
            out.push(String::new());
        }
        out.extend_from_slice(&log[first..]);
        out.truncate(height);
    } else if !log.is_empty() {
        out.push(String::new());
        out.extend(log);
    }
    out.iter().map(|text| if width == usize::MAX { text.clone() } else { fit(text, width) }).collect()
}

fn head(seen: &[Seen], time: &str) -> String {
    let away = seen.iter().filter(|host| host.away.is_some()).count();
    match (seen.len(), away) {
        (1, _) => time.to_owned(),
        (hosts, 0) => format!("{time}  {hosts} hosts"),
        (hosts, away) => format!("{time}  {hosts} hosts, {away} of which do not answer"),
    }
}

const HEADS: [&str; 17] = [
    "HOST", "SERVICE", "STATE", "GEN", "ROLE", "RELEASE", "WORKERS", "RESTARTS", "MEMORY", "REQUESTS", "REQ/S", "5XX",
    "5XX%", "P50", "P90", "P99", "CHECK",
];
/// From here to the last but one, numbers.
const NUMBERS: std::ops::Range<usize> = 6..16;

/// A line for each generation, and for each service that has none.
fn table(seen: &[Seen], short: bool) -> Vec<String> {
    let mut rows: Vec<[String; HEADS.len()]> = vec![HEADS.map(str::to_owned)];
    for host in seen {
        for service in &host.services {
            for generation in service.generations.iter().map(Some).chain(service.generations.is_empty().then_some(None))
            {
                rows.push(row(host, service, generation, short));
            }
        }
    }
    let mut widths = [0; HEADS.len()];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    if seen.len() == 1 && seen[0].host.is_empty() {
        widths[0] = 0;
    }
    let line = |row: &[String; HEADS.len()]| {
        let cells =
            row.iter().enumerate().filter(|(n, _)| widths[*n] > 0).map(|(n, cell)| match NUMBERS.contains(&n) {
                true => format!("{cell:>width$}", width = widths[n]),
                false => format!("{cell:width$}", width = widths[n]),
            });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn row(
    host: &Seen,
    service: &ServiceStatus,
    generation: Option<&GenerationStatus>,
    short: bool,
) -> [String; HEADS.len()] {
    let release = generation.map_or(service.release.as_deref(), |g| g.release.as_deref());
    let release = release.map(|id| if short { ending(&line(id)) } else { line(id) });
    let traffic = generation.and_then(|g| g.traffic);
    let committed = generation.is_none_or(|g| g.role == GenerationRole::Committed);
    let of_service = |text: String| if committed { text } else { String::new() };
    let number = |n: Option<u64>| n.map(|n| n.to_string()).unwrap_or_default();
    let latency = |pick: fn(&crate::api::types::Latency) -> f64| {
        traffic.and_then(|t| t.latency_ms).map(|latency| milliseconds(pick(&latency))).unwrap_or_default()
    };
    let check = match service.health.as_ref().map(|health| health.state) {
        _ if service.draining => "drained",
        Some(HealthState::Healthy) => "healthy",
        Some(HealthState::Unhealthy) => "UNHEALTHY",
        Some(HealthState::Unknown) | None => "",
    };
    [
        line(&host.host),
        line(&service.name),
        of_service(service.state.as_str().to_owned()),
        number(generation.map(|g| g.number)),
        generation.map(|g| g.role.as_str().to_owned()).unwrap_or_default(),
        release.unwrap_or_default(),
        number(generation.map(running)),
        of_service(service.restarts.to_string()),
        of_service(service.memory_bytes.map(bytes).unwrap_or_default()),
        number(traffic.map(|t| t.requests)),
        generation.and_then(|g| host.rate(service, g)).map(|rate| format!("{rate:.1}")).unwrap_or_default(),
        number(traffic.map(|t| t.errors_5xx + t.overdue + t.died_open)),
        traffic.map(share).unwrap_or_default(),
        latency(|l| l.p50),
        latency(|l| l.p90),
        latency(|l| l.p99),
        of_service(check.to_owned()),
    ]
}

/// Gunicorn's own where it has some, else those that svd has started.
fn running(generation: &GenerationStatus) -> u64 {
    let ours = || generation.workers.iter().filter(|w| w.state == WorkerState::Running).count() as u64;
    generation.gunicorn_workers.unwrap_or_else(ours)
}

fn share(traffic: Traffic) -> String {
    let failed = traffic.errors_5xx + traffic.overdue + traffic.died_open;
    match traffic.requests + traffic.overdue + traffic.died_open {
        0 => String::new(),
        all => format!("{:.2}", 100.0 * failed as f64 / all as f64),
    }
}

fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.1}ms"),
        ms if ms < 1000.0 => format!("{ms:.0}ms"),
        ms => format!("{:.1}s", ms / 1000.0),
    }
}

fn ending(id: &str) -> String {
    let long = id.chars().count();
    if long <= SHORT { id.to_owned() } else { format!("…{}", id.chars().skip(long + 1 - SHORT).collect::<String>()) }
}

/// The releases that serve on several hosts, each with all its requests.
fn releases(seen: &[Seen]) -> Vec<String> {
    if seen.len() < 2 {
        return Vec::new();
    }
    let mut sums: BTreeMap<(&str, &str), (usize, u64, u64, f64)> = BTreeMap::new();
    for host in seen {
        for (service, generation, t) in counted(&host.services) {
            if generation.role != GenerationRole::Committed {
                continue;
            }
            let release = generation.release.as_deref().unwrap_or("-");
            let sum = sums.entry((&service.name, release)).or_default();
            sum.0 += 1;
            sum.1 += t.requests + t.overdue + t.died_open;
            sum.2 += t.errors_5xx + t.overdue + t.died_open;
            sum.3 += host.rate(service, generation).unwrap_or(0.0);
        }
    }
    let of = |((service, release), (hosts, requests, failed, rate)): (&(&str, &str), &(usize, u64, u64, f64))| {
        let share = if *requests == 0 { 0.0 } else { 100.0 * *failed as f64 / *requests as f64 };
        format!(
            "{} {} on {hosts} hosts: {requests} requests, {rate:.1} a second, {failed} failed ({share:.2} %)",
            line(service),
            line(release)
        )
    };
    std::iter::once(String::new()).filter(|_| !sums.is_empty()).chain(sums.iter().map(of)).collect()
}

/// Each process that svd has started, and gunicorn's own below it.
fn workers(seen: &[Seen]) -> Vec<String> {
    let mut out = Vec::new();
    for host in seen {
        let before = if host.host.is_empty() { String::new() } else { format!("{}: ", line(&host.host)) };
        for service in &host.services {
            for generation in &service.generations {
                for worker in &generation.workers {
                    let pid = worker.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
                    let release = generation.release.as_deref().map(|id| format!(", release {}", line(id)));
                    let release = release.unwrap_or_default();
                    let mut text = format!(
                        "{before}{} generation {} worker {}: {}, pid {pid}{release}, {}, {} restarts",
                        line(&service.name),
                        generation.number,
                        worker.index,
                        worker.state.as_str(),
                        age(worker.since_seconds),
                        worker.restarts
                    );
                    for (what, said) in [("before", &worker.last_exit), ("says", &worker.status_text)] {
                        said.iter().for_each(|said| text.push_str(&format!(", {what}: {}", line(said))));
                    }
                    out.push(text);
                }
                out.extend(generation.gunicorn.iter().map(|worker| format!("  {before}{}", gunicorn(worker))));
            }
        }
    }
    if !out.is_empty() {
        out.insert(0, String::new());
    }
    out
}

/// What is wrong.
fn notes(seen: &[Seen]) -> Vec<String> {
    let mut out = Vec::new();
    for host in seen {
        let name = if host.host.is_empty() { String::new() } else { format!("{}: ", line(&host.host)) };
        if let Some(why) = &host.away {
            out.push(format!("{name}{}", line(why)));
        }
        for service in &host.services {
            let ill = service.health.as_ref().filter(|health| health.state == HealthState::Unhealthy);
            let ill = ill.and_then(|health| health.message.as_ref());
            for why in service.reason.iter().chain(ill) {
                out.push(format!("{name}{}: {}", line(&service.name), line(why)));
            }
            if service.traffic.is_some_and(|traffic| traffic.unreliable) {
                out.push(format!("{name}{}: counts were lost within the last minute", line(&service.name)));
            }
        }
    }
    if !out.is_empty() {
        out.insert(0, String::new());
    }
    out
}

fn log(seen: &[Seen]) -> Vec<String> {
    let several = seen.iter().map(|host| host.services.len()).max().unwrap_or(0) > 1;
    let mut out = Vec::new();
    for host in seen {
        for (service, text) in &host.log {
            let mut before = Vec::new();
            if !host.host.is_empty() {
                before.push(line(&host.host));
            }
            if several {
                before.push(line(service));
            }
            before.push(line(text));
            out.push(before.join(" | "));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::testing::full_status;

    const SECOND: Duration = Duration::from_secs(1);

    fn seen(host: &str) -> Seen {
        let mut seen = Seen::new(host);
        let mut status = full_status("airship");
        seen.answered(SECOND, vec![status.clone()], Vec::new());
        for generation in &mut status.generations {
            if let Some(traffic) = &mut generation.traffic {
                traffic.requests += 500;
            }
        }
        let log = vec![("airship".into(), "GET / \x1b[2J".to_owned()), ("airship".into(), "the last".to_owned())];
        seen.answered(SECOND * 3, vec![status], log);
        seen
    }

    #[test]
    fn one_host_shows_each_generation_worker_and_the_log() {
        let shown = lines(&[seen("")], "now", None);
        let text = shown.join("\n");
        assert!(shown[1].starts_with("SERVICE  STATE"), "no host: {text}");
        let row = shown.iter().find(|line| line.contains(" committed ")).expect("a row");
        for part in ["airship", "running", "250.0", "1500", "12ms", "80ms", "250ms"] {
            assert!(row.contains(part), "{part} in {row}");
        }
        assert!(text.contains("airship generation 7 worker 0: running"), "{text}");
        assert!(text.contains("pid 4711, release deploy-2026-11-22_18-40-00, 5m00s, 2 restarts"), "{text}");
        let own = "gunicorn worker 4712: running, for 4m50s, 512 requests, 2 5xx, 1 open, 45 MiB, p50 11.0 ms";
        assert!(text.contains(own) && text.contains("gunicorn worker 4713: starting\n"), "{text}");
        assert!(!text.contains('\x1b') && text.contains("GET / \\x1b[2J"), "{text}");
        assert_eq!(shown.last().map(String::as_str), Some("the last"));
    }

    #[test]
    fn a_fleet_shows_its_hosts_and_what_each_release_comes_to() {
        let mut away = Seen::new("web-2");
        away.away = Some("it does not answer".into());
        let text = lines(&[seen("web-0"), seen("web-1"), away], "now", None).join("\n");
        assert!(text.starts_with("now  3 hosts, 1 of which do not answer\nHOST "), "{text}");
        assert!(text.contains("on 2 hosts: 3002 requests, 500.0 a second"), "{text}");
        assert!(text.contains("web-1: airship generation 7 worker 0: running"), "{text}");
        assert!(text.contains("  web-0: gunicorn worker 4712: running"), "{text}");
        assert!(text.contains("web-2: it does not answer") && text.contains("web-1 | the last"), "{text}");
    }

    #[test]
    fn a_screen_is_never_too_small() {
        let hosts: Vec<Seen> = (0..100).map(|n| seen(&format!("web-{n}"))).collect();
        for (width, height) in [(80, 24), (1, 1), (20, 5), (500, 50)] {
            let shown = lines(&hosts, "now", Some((width, height)));
            assert!(shown.len() <= height, "{} lines of {height}", shown.len());
            assert!(shown.iter().all(|line| line.chars().count() <= width.max(1)), "{shown:#?}");
        }
        let shown = lines(&hosts, "now", Some((200, 24)));
        assert!(shown.iter().any(|line| line.starts_with("… ")), "{shown:#?}");
        assert!(shown.last().is_some_and(|line| line.ends_with("the last")), "{shown:#?}");
    }

    #[test]
    fn what_began_anew_has_no_rate() {
        let mut seen = seen("");
        let status = full_status("airship");
        seen.answered(SECOND * 5, vec![status.clone()], Vec::new());
        assert_eq!(seen.rate(&status, &status.generations[0]), None, "fewer than before");
        assert_eq!((&*ending("deploy-2026-11-22_18-40-00"), &*ending("short")), ("…1-22_18-40-00", "short"));
    }
}
