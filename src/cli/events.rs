//! `svctl events`.

use std::ops::ControlFlow;

use super::args::EventsArgs;
use super::context::{Context, joined, need_names};
use super::exit::{CliError, Exit};
use super::logs::Reconnect;
use super::render;
use crate::api::types::Event;

/// One line for each event; with `--json` as svd wrote it (without `--follow` one document: a list).
pub fn events(context: &Context, args: &EventsArgs) -> Result<Exit, CliError> {
    if !args.names.is_empty() {
        need_names(&args.names, "events")?;
    }
    let client = context.client()?;
    let mut reconnect = Reconnect::new(args.follow);
    loop {
        let mut path = format!("/v1/events?follow={}", args.follow);
        if !args.names.is_empty() {
            path.push_str(&format!("&services={}", joined(&args.names)));
        }
        let mut written = Ok(());
        let mut list: Vec<Box<serde_json::value::RawValue>> = Vec::new();
        let result = client.each_line(&path, |line| {
            reconnect.connected();
            written = if !context.json {
                context.print(human(line))
            } else if args.follow {
                context.print_json(line)
            } else {
                list.extend(serde_json::from_slice(line).ok());
                Ok(())
            };
            match written {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        written?;
        match result {
            Ok(()) if !args.follow => {
                if context.json {
                    context.print_value(&serde_json::json!({ "events": list }))?;
                }
                return Ok(Exit::Ok);
            }
            ended => reconnect.wait(context, ended)?,
        }
    }
}

fn human(line: &[u8]) -> String {
    match serde_json::from_slice::<Event>(line) {
        Ok(event) => render::event(&event),
        // Of a newer svd: shown as it is rather than lost.
        Err(_) => format!("{}\n", super::text::line(&String::from_utf8_lossy(line))),
    }
}
