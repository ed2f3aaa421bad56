//! The table of `svctl status NAME --workers`. Pure.

use super::render::{age, bytes};
use super::text::line;
use crate::api::types::{GenerationRole, ProcessStatus, ProcessesStatus};

const HEADS: [&str; 12] =
    ["PID", "PART", "GEN", "MEMORY", "CPU", "FILES", "THREADS", "REQUESTS", "5XX", "OPEN", "AGE", "COMMAND"];

/// One line for each process, and one with what they use in all.
pub fn table(status: &ProcessesStatus) -> String {
    if status.processes.is_empty() {
        return format!("{} has no processes.\n", line(&status.service));
    }
    let mut rows: Vec<[String; 12]> = vec![HEADS.map(str::to_owned)];
    rows.extend(status.processes.iter().map(cells));
    let mut widths = [0; 12];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in &rows {
        let mut text = String::new();
        for (index, (cell, width)) in row.iter().zip(widths).enumerate() {
            let left = matches!(index, 1 | 11);
            let cell = if left { format!("{cell:<width$}") } else { format!("{cell:>width$}") };
            text.push_str(&cell);
            text.push_str("  ");
        }
        out.push_str(text.trim_end());
        out.push('\n');
    }
    let memory: u64 = status.processes.iter().filter_map(|p| p.memory_bytes).sum();
    let processor: f64 = status.processes.iter().filter_map(|p| p.cpu_percent).sum();
    let count = match status.processes.len() {
        1 => "1 process".to_owned(),
        more => format!("{more} processes"),
    };
    out.push_str(&format!("{count}, {} in all, {processor:.1}% of a processor\n", bytes(memory)));
    if status.more > 0 {
        out.push_str(&format!("{} more are not shown\n", status.more));
    }
    out
}

fn cells(process: &ProcessStatus) -> [String; 12] {
    let number = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let generation = match process.role {
        GenerationRole::Committed => process.generation.to_string(),
        other => format!("{} {}", process.generation, other.as_str()),
    };
    [
        process.pid.to_string(),
        line(&process.part),
        generation,
        process.memory_bytes.map_or_else(|| "-".to_owned(), bytes),
        process.cpu_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent:.1}%")),
        number(process.open_files),
        process.threads.to_string(),
        number(process.requests),
        number(process.errors_5xx),
        number(process.open),
        age(process.since_seconds),
        line(&process.command),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_and_one_for_all() {
        let one = |pid, part: &str, requests| ProcessStatus {
            pid,
            part: part.into(),
            generation: 3,
            role: GenerationRole::Committed,
            command: "gunicorn".into(),
            memory_bytes: Some(40 << 20),
            cpu_percent: Some(12.5),
            open_files: None,
            threads: 4,
            requests,
            errors_5xx: requests.map(|_| 0),
            open: requests.map(|_| 1),
            since_seconds: 65,
        };
        let processes = vec![one(10, "master", None), one(11, "worker", Some(512))];
        let text = table(&ProcessesStatus { service: "web".into(), processes, more: 7 });
        assert_eq!(
            text,
            "PID  PART    GEN  MEMORY    CPU  FILES  THREADS  REQUESTS  5XX  OPEN    AGE  COMMAND\n \
             10  master    3  40 MiB  12.5%      -        4         -    -     -  1m05s  gunicorn\n \
             11  worker    3  40 MiB  12.5%      -        4       512    0     1  1m05s  gunicorn\n\
             2 processes, 80 MiB in all, 25.0% of a processor\n7 more are not shown\n"
        );
    }
}
