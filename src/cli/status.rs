//! `svctl status` and `svctl is-active`.

use std::thread::sleep;
use std::time::Duration;

use super::args::{Names, StatusArgs};
use super::context::{Context, joined, need_names};
use super::exit::{CliError, Exit};
use super::render;
use super::render_processes;
use crate::api::client::{Client, encode};
use crate::api::types::{ProcessesStatus, ServiceState, ServiceStatus, StatusList};

/// Between two looks with `--watch`.
const INTERVAL: Duration = Duration::from_secs(1);

pub fn status(context: &Context, args: &StatusArgs) -> Result<Exit, CliError> {
    if !args.names.is_empty() {
        need_names(&args.names, "status")?;
    }
    if args.workers && args.names.len() != 1 {
        return Err(CliError::usage(
            "--workers shows the processes of one service.",
            "For example: svctl status airship --workers",
        ));
    }
    let client = context.client()?;
    if args.watch {
        return watch(context, &client, args);
    }
    let (text, exit) = look(context, &client, args).map_err(CliError::state_unknown)?;
    context.print(text)?;
    Ok(exit)
}

/// The text of one look, and the exit code: of named services 0 if all run, else 3. Without a name svd's answer is
/// success: which services should run is not for this command to say.
fn look(context: &Context, client: &Client, args: &StatusArgs) -> Result<(String, Exit), CliError> {
    let names = &*args.names;
    if let ([name], true) = (names, args.workers) {
        return processes(context, client, name);
    }
    if let [name] = names
        && !name.contains('*')
    {
        let body = client.get(&format!("/v1/services/{}", encode(name)))?;
        let status: ServiceStatus = parse(&body)?;
        let text = if context.json {
            String::from_utf8_lossy(&body).into_owned()
        } else {
            render::details(&status, context.colour())
        };
        return Ok((text, exit_of([status.state].into_iter())));
    }
    let path =
        if names.is_empty() { "/v1/status".to_string() } else { format!("/v1/status?services={}", joined(names)) };
    let body = client.get(&path)?;
    // A list that is only passed on is not taken apart.
    let list: StatusList = if context.json && names.is_empty() { StatusList::default() } else { parse(&body)? };
    let text = if context.json {
        String::from_utf8_lossy(&body).into_owned()
    } else {
        render::table(&list.services, context.colour())
    };
    let exit = if names.is_empty() { Exit::Ok } else { exit_of(list.services.iter().map(|s| s.state)) };
    Ok((text, exit))
}

/// Each process of one service; 0 if there are some.
fn processes(context: &Context, client: &Client, name: &str) -> Result<(String, Exit), CliError> {
    let body = client.get(&format!("/v1/services/{}/processes", encode(name)))?;
    let status: ProcessesStatus = parse(&body)?;
    let exit = if status.processes.is_empty() { Exit::NotRunning } else { Exit::Ok };
    let text =
        if context.json { String::from_utf8_lossy(&body).into_owned() } else { render_processes::table(&status) };
    Ok((text, exit))
}

fn exit_of(mut states: impl Iterator<Item = ServiceState>) -> Exit {
    if states.all(ServiceState::counts_as_running) { Exit::Ok } else { Exit::NotRunning }
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, CliError> {
    serde_json::from_slice(body).map_err(|error| super::host::odd_answer(&error))
}

/// A svd that is away is shown and awaited.
fn watch(context: &Context, client: &Client, args: &StatusArgs) -> Result<Exit, CliError> {
    let mut before = String::new();
    let mut first = true;
    loop {
        let text = match look(context, client, args) {
            Ok((text, _)) => text,
            // Wrong from the beginning: there is nothing to wait for.
            Err(error) if first => return Err(error.state_unknown()),
            Err(CliError::Said { error, .. }) if context.json => {
                format!("{}\n", serde_json::json!({ "error": error }))
            }
            Err(CliError::Said { error, .. }) => render::error("", &error),
            Err(error) => return Err(error),
        };
        first = false;
        show_again(context, text, &mut before)?;
    }
}

/// In place on a terminal; elsewhere only what differs from what was there before. Then it rests.
pub fn show_again(context: &Context, text: String, before: &mut String) -> Result<(), CliError> {
    if context.terminal && !context.json {
        // Home, each line cleared to its end, the rest of the screen cleared: no flicker.
        let text = text.replace('\n', "\x1b[K\n");
        context.print(format!("\x1b[H{text}\x1b[J"))?;
    } else if text != *before {
        let gap = if before.is_empty() || context.json { "" } else { "\n" };
        context.print(format!("{gap}{text}"))?;
        *before = text;
    }
    sleep(INTERVAL);
    Ok(())
}

/// Prints the state of each; for habit also `is-active` of systemctl: exit 0 only if all run.
pub fn is_active(context: &Context, args: &Names) -> Result<Exit, CliError> {
    need_names(&args.names, "is-active")?;
    let client = context.client()?;
    let path = format!("/v1/status?services={}", joined(&args.names));
    let list: StatusList = client.fetch(&path).map_err(|e| CliError::from(e).state_unknown())?;
    let exit = exit_of(list.services.iter().map(|s| s.state));
    if context.json {
        let states: serde_json::Map<String, serde_json::Value> =
            list.services.iter().map(|s| (s.name.to_string(), s.state.as_str().into())).collect();
        context.print_value(&serde_json::json!({ "active": exit == Exit::Ok, "states": states }))?;
    } else {
        let lines = list.services.iter().map(|s| format!("{}\n", s.state.as_str()));
        context.print(lines.collect::<String>())?;
    }
    Ok(exit)
}
