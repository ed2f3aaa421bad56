//! From types to text for people. Pure: no clock, no terminal, no environment.

use std::fmt::Write;

use super::text::line;
use crate::api::types::{
    ApiError, Event, GenerationStatus, GunicornWorker, Progress, ServiceResult, ServiceState, ServiceStatus, StatusRow,
    Traffic, UpdateResult, Version, WorkerStatus,
};

const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// The word says it; the colour only helps to find it.
fn colour_of(state: ServiceState) -> &'static str {
    match state {
        ServiceState::Running => GREEN,
        ServiceState::Failed | ServiceState::Backoff => RED,
        ServiceState::Stopped | ServiceState::Exited => "",
        _ => YELLOW,
    }
}

/// Seconds as people say them: `8s`, `5m03s`, `2h05m`, `12d3h`.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{:02}s", seconds % 60),
        3600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = usize::from(unit != "B" && value < 10.0);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

const HEADS: [&str; 8] = ["NAME", "STATE", "RELEASE", "GEN", "PID", "SINCE", "RESTARTS", "REASON"];

/// `svctl status`: one line for each service, columns aligned.
pub fn table(rows: &[StatusRow], colour: bool) -> String {
    if rows.is_empty() {
        return "There are no services. A file in conf.d makes one; then: svctl update\n".to_string();
    }
    let cells: Vec<[String; 8]> = rows.iter().map(cells).collect();
    let mut widths = HEADS.map(str::len);
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::with_capacity((rows.len() + 1) * (widths.iter().sum::<usize>() + 20));
    push_row(&mut out, &HEADS, &widths, "");
    for (row, cells) in rows.iter().zip(&cells) {
        let paint = if colour { colour_of(row.state) } else { "" };
        push_row(&mut out, &cells.each_ref().map(String::as_str), &widths, paint);
    }
    out
}

fn cells(row: &StatusRow) -> [String; 8] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_string());
    let mut state = row.state.as_str().to_string();
    if row.draining {
        state.push_str(" (drained)");
    }
    [
        line(&row.name),
        state,
        or_dash(row.release.as_deref().map(line)),
        or_dash(row.generation.map(|n| n.to_string())),
        or_dash(row.pid.map(|n| match row.further_workers {
            0 => n.to_string(),
            more => format!("{n} +{more}"),
        })),
        age(row.since_seconds),
        row.restarts.to_string(),
        line(row.reason.as_deref().unwrap_or("")),
    ]
}

fn push_row(out: &mut String, cells: &[&str; 8], widths: &[usize; 8], paint: &str) {
    let start = out.len();
    for (i, (cell, width)) in cells.iter().zip(widths).enumerate() {
        let painted = i == 1 && !paint.is_empty();
        if painted {
            out.push_str(paint);
        }
        out.push_str(cell);
        if painted {
            out.push_str(PLAIN);
        }
        let gap = width - cell.chars().count() + 2;
        out.extend(std::iter::repeat_n(' ', gap));
    }
    out.truncate(start + out[start..].trim_end_matches(' ').len());
    out.push('\n');
}

/// `svctl status NAME`.
pub fn details(status: &ServiceStatus, colour: bool) -> String {
    let mut out = String::new();
    let paint = if colour { colour_of(status.state) } else { "" };
    let end = if paint.is_empty() { "" } else { PLAIN };
    let since = age(status.since_seconds);
    let name = line(&status.name);
    let state = status.state.as_str();
    let _ = writeln!(out, "{name}: {paint}{state}{end} for {since} (since {})", status.since);
    let mut field = |key: &str, value: String| {
        let _ = writeln!(out, "{key:>11}: {value}");
    };
    if let Some(reason) = &status.reason {
        field("reason", line(reason));
    }
    if let Some(seconds) = status.next_attempt_seconds {
        field("next try", format!("in {}", age(seconds.ceil().max(0.0) as u64)));
    }
    field("kind", line(&status.kind));
    let enabled = if status.enabled { "yes" } else { "no, does not start with svd" };
    field("enabled", enabled.to_string());
    if status.draining {
        field("drained", "yes, out of the load balancer (svctl undrain)".to_string());
    }
    if let Some(release) = &status.release {
        field("release", line(release));
    }
    if let Some(user) = &status.user {
        field("user", format!("{} ({})", line(&user.name), user.uid));
    }
    if !status.listen.is_empty() {
        field("listens on", line(&status.listen.join(", ")));
    }
    if let Some(health) = &status.health {
        field("health", health_line(health));
    }
    if let Some(memory) = status.memory_bytes {
        field("memory", bytes(memory));
    }
    field("restarts", status.restarts.to_string());
    for generation in &status.generations {
        push_generation(&mut out, generation);
    }
    if !status.last_output.is_empty() {
        out.push_str("last output:\n");
        push_output(&mut out, &status.last_output);
    }
    out
}

fn health_line(health: &crate::api::types::HealthStatus) -> String {
    let mut text = health.state.as_str().to_string();
    if let Some(time) = &health.last_check {
        let _ = write!(text, ", checked {}", line(time));
    }
    if health.failures > 0 {
        let _ = write!(text, ", {} failures in a row", health.failures);
    }
    if let Some(message) = &health.message {
        let _ = write!(text, ": {}", line(message));
    }
    text
}

fn push_generation(out: &mut String, generation: &GenerationStatus) {
    let _ = write!(out, "generation {} {}", generation.number, generation.role.as_str());
    if let Some(release) = &generation.release {
        let _ = write!(out, ", release {}", line(release));
    }
    if let Some(workers) = generation.gunicorn_workers {
        let _ = write!(out, ", gunicorn workers {workers}");
    }
    let _ = write!(out, ", for {}", age(generation.since_seconds));
    if let Some(left) = generation.ends_seconds {
        let _ = write!(out, ", {} more", age(left));
    }
    out.push('\n');
    for worker in &generation.workers {
        push_worker(out, worker);
    }
    for worker in &generation.gunicorn {
        let _ = writeln!(out, "    {}", gunicorn(worker));
    }
    if let Some(traffic) = &generation.traffic {
        push_traffic(out, traffic);
    }
}

fn push_worker(out: &mut String, worker: &WorkerStatus) {
    let _ = write!(out, "  worker {}: {}", worker.index, worker.state.as_str());
    if let Some(pid) = worker.pid {
        let _ = write!(out, ", pid {pid}");
    }
    let _ = write!(out, ", for {}", age(worker.since_seconds));
    if worker.restarts > 0 {
        let _ = write!(out, ", restarts {}", worker.restarts);
    }
    if let Some(exit) = &worker.last_exit {
        let _ = write!(out, ", before: {}", line(exit));
    }
    if let Some(text) = &worker.status_text {
        let _ = write!(out, ", says: {}", line(text));
    }
    out.push('\n');
}

/// `gunicorn worker 4712: running, for 5m, 512 requests, 2 5xx, 1 open, 45.0 MiB, p50 11 ms, p90 70 ms, p99 240 ms`.
pub fn gunicorn(worker: &GunicornWorker) -> String {
    let mut out = format!("gunicorn worker {}: {}", worker.pid, worker.state.as_str());
    let mut part = |text: String| {
        out.push_str(", ");
        out.push_str(&text);
    };
    worker.since_seconds.iter().for_each(|seconds| part(format!("for {}", age(*seconds))));
    worker.requests.iter().for_each(|n| part(format!("{n} requests")));
    worker.errors_5xx.iter().for_each(|n| part(format!("{n} 5xx")));
    worker.open.iter().for_each(|n| part(format!("{n} open")));
    worker.memory_bytes.iter().for_each(|n| part(bytes(*n)));
    if let Some(latency) = worker.latency_ms {
        part(format!("p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms", latency.p50, latency.p90, latency.p99));
    }
    out
}

fn push_traffic(out: &mut String, traffic: &Traffic) {
    let _ = write!(
        out,
        "  requests {}, 5xx {}, overdue {}, workers died with requests open {}",
        traffic.requests, traffic.errors_5xx, traffic.overdue, traffic.died_open
    );
    if let Some(latency) = &traffic.latency_ms {
        let _ = write!(
            out,
            "; last minute p50 {:.1} ms, p90 {:.1} ms, p99 {:.1} ms",
            latency.p50, latency.p90, latency.p99
        );
    }
    if traffic.unreliable {
        let _ = write!(out, "; unreliable: {} datagrams with counts were lost", traffic.lost_datagrams);
    }
    out.push('\n');
}

fn push_output(out: &mut String, lines: &[Box<str>]) {
    for text in lines {
        let _ = writeln!(out, "  | {}", line(text));
    }
}

/// `airship: generation 8 is ready`.
pub fn progress(progress: &Progress) -> String {
    let mut text = String::new();
    if progress.dropped > 0 {
        let _ = writeln!(text, "({} lines were left out)", progress.dropped);
    }
    if let Some(service) = &progress.service {
        let _ = write!(text, "{}: ", line(service));
    }
    text.push_str(&line(&progress.message));
    text
}

/// What became of one service, with a newline at the end.
pub fn service_result(result: &ServiceResult) -> String {
    let name = line(&result.service);
    if let Some(failure) = &result.error {
        // Most messages name the service themselves.
        let named = failure.message.starts_with(&*result.service);
        return error(&if named { String::new() } else { format!("{name}: ") }, failure);
    }
    match &result.message {
        Some(message) => format!("{name}: {}\n", line(message)),
        None if !result.ok => format!("{name}: failed\n"),
        None if result.changed => format!("{name}: done\n"),
        None => format!("{name}: nothing to do\n"),
    }
}

/// Message, details, last output and hint, each on lines of their own.
pub fn error(before: &str, failure: &ApiError) -> String {
    let mut out = format!("{before}{}\n", line(&failure.message));
    for detail in &failure.details {
        for part in detail.lines() {
            let _ = writeln!(out, "  {}", line(part));
        }
    }
    if !failure.last_output.is_empty() {
        out.push_str("  last output:\n");
        push_output(&mut out, &failure.last_output);
    }
    if let Some(hint) = &failure.hint {
        let _ = writeln!(out, "  {}", line(hint));
    }
    out
}

/// `svctl update`.
pub fn update(result: &UpdateResult) -> String {
    let mut out = String::new();
    for change in &result.changes {
        let _ = write!(out, "{} {}", change.action.as_str(), line(&change.service));
        if !change.keys.is_empty() {
            let _ = write!(out, " ({})", line(&change.keys.join(", ")));
        }
        out.push('\n');
    }
    for note in &result.notes {
        let _ = writeln!(out, "note: {}", line(note));
    }
    out.push_str(match (result.changed, result.dry_run) {
        (false, _) => "Nothing has changed.\n",
        (true, true) => "Nothing was done: this was a dry run.\n",
        (true, false) => "The configuration is applied.\n",
    });
    out
}

/// One line.
pub fn event(event: &Event) -> String {
    let mut out = format!("{} ", line(&event.time));
    if let Some(service) = &event.service {
        let _ = write!(out, "{} ", line(service));
    }
    let _ = writeln!(out, "{}: {}", line(&event.event), line(&event.message));
    out
}

/// About svd.
pub fn version(svd: &Version) -> String {
    let mut out = format!(
        "svd {} with pid {}, running for {}, {} services\n",
        line(&svd.version),
        svd.pid,
        age(svd.since_seconds),
        svd.services
    );
    for limitation in &svd.limitations {
        let _ = writeln!(out, "  {}", line(limitation));
    }
    out
}

#[cfg(test)]
#[path = "render_test.rs"]
mod tests;
