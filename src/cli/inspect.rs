//! `svctl inspect NAME`: what the processes of a service really have.

use std::fmt::Write;

use super::args::InspectArgs;
use super::context::{Context, need_names};
use super::exit::{CliError, Exit};
use super::text::line;
use crate::api::client::encode;
use crate::api::types::{Has, Inspected, Inspection};

/// Characters of a command line.
const COMMAND: usize = 100;

pub fn inspect(context: &Context, args: &InspectArgs) -> Result<Exit, CliError> {
    need_names(std::slice::from_ref(&args.name), "inspect")?;
    let body = context.client()?.get(&format!("/v1/services/{}/inspect", encode(&args.name)))?;
    if context.json {
        context.print_json(&body)?;
        return Ok(Exit::Ok);
    }
    let seen: Inspection = serde_json::from_slice(&body).map_err(|error| super::host::odd_answer(&error))?;
    context.print(text(&seen))?;
    Ok(Exit::Ok)
}

/// The first process in full, of the others what is not the same. Pure.
fn text(seen: &Inspection) -> String {
    let mut out = format!("{}: generation {}", line(&seen.service), seen.generation);
    if let Some(release) = &seen.release {
        let _ = write!(out, ", release {}", line(release));
    }
    out.push('\n');
    let first = seen.processes.first();
    for process in &seen.processes {
        head(&mut out, process);
        let model = first.filter(|first| first.pid != process.pid);
        let same = |has: &&Has| model.is_none_or(|model| !model.has.contains(has));
        let own: Vec<&Has> = process.has.iter().filter(same).collect();
        if let Some(model) = model {
            let but = if own.is_empty() { "" } else { ", but" };
            let _ = writeln!(out, "  as {}{but}", model.pid);
        }
        let width = own.iter().map(|has| has.what.chars().count()).max().unwrap_or(0);
        for has in own {
            let _ = writeln!(out, "  {:width$}  {}", line(&has.what), line(&has.value));
            if let Some(wanted) = &has.wanted {
                let why = has.why.as_ref().map(|why| format!(" ({})", line(why))).unwrap_or_default();
                let _ = writeln!(out, "  {:width$}  → the file says {}{why}", "", line(wanted));
            }
        }
    }
    if seen.left_out > 0 {
        let _ = writeln!(out, "{} more processes are not shown.", seen.left_out);
    }
    match (seen.differs, seen.processes.is_empty()) {
        (_, true) => out.push_str("No process could be looked at.\n"),
        (true, false) => {
            out.push_str("Not as the file says:\n");
            seen.differences.iter().for_each(|one| _ = writeln!(out, "- {}", line(one)));
        }
        (false, false) => out.push_str("All that the file says is so.\n"),
    }
    out
}

fn head(out: &mut String, process: &Inspected) {
    let words: Vec<&str> = process.command.iter().map(|word| &**word).collect();
    let command: String = line(&words.join(" ")).chars().take(COMMAND).collect();
    let _ = writeln!(out, "{} (worker {}, below {}): {command}", process.pid, process.worker, process.parent);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(what: &str, value: &str, wanted: Option<&str>) -> Has {
        let why = wanted.map(|_| "why".into());
        Has { what: what.into(), value: value.into(), wanted: wanted.map(Into::into), why }
    }

    #[test]
    fn further_processes_are_shown_by_what_differs() {
        let process = |pid, has| Inspected { pid, parent: 1, worker: 0, command: vec!["a\x1b".into()], has };
        let common = || has("user", "web (7)", None);
        let seen = Inspection {
            service: "web".into(),
            generation: 2,
            release: None,
            differs: true,
            differences: vec!["limits.nice: 0".into()],
            processes: vec![
                process(10, vec![common(), has("limits.nice", "0", Some("5"))]),
                process(11, vec![common(), has("limits.nice", "5", None)]),
                process(12, vec![common(), has("limits.nice", "0", Some("5"))]),
            ],
            left_out: 0,
        };
        assert_eq!(
            text(&seen),
            "web: generation 2\n\
             10 (worker 0, below 1): a\\x1b\n\
             \u{20} user         web (7)\n\
             \u{20} limits.nice  0\n\
             \u{20}              → the file says 5 (why)\n\
             11 (worker 0, below 1): a\\x1b\n\
             \u{20} as 10, but\n\
             \u{20} limits.nice  5\n\
             12 (worker 0, below 1): a\\x1b\n\
             \u{20} as 10\n\
             Not as the file says:\n\
             - limits.nice: 0\n"
        );
    }
}
