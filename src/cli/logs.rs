//! `svctl logs`.

use std::ops::ControlFlow;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use super::args::LogsArgs;
use super::context::{Context, joined, need_names};
use super::exit::{CliError, Exit};
use super::text::Escaper;
use crate::api::client::{ClientError, encode};
use crate::api::request::parse_since;
use crate::api::types::{LogPosition, StatusList, rfc3339};
use serde_json::json;

const DEFAULT_LINES: u64 = 10;
/// Services at once: each takes a connection, of which svd gives a user only so many.
const FOLLOWED: usize = 16;

/// What comes from where, so that a new connection goes on after the last byte.
struct Place {
    /// Of the next byte, where svd told.
    next: Option<LogPosition>,
    last_byte: SystemTime,
}

pub fn logs(context: &Context, args: &LogsArgs) -> Result<Exit, CliError> {
    need_names(&args.names, "logs")?;
    if let Some(since) = &args.since
        && parse_since(since, SystemTime::now()).is_none()
    {
        return Err(CliError::usage(
            format!("--since {since}: that is neither a duration nor a time."),
            "Write --since 10m or --since 2026-11-22T18:40:00Z.",
        ));
    }
    if let [name] = &args.names[..]
        && !name.contains('*')
    {
        let mut output = Output::new(context, args, None);
        of_one(context, args, name, &mut output)?;
        if let Some(lines) = output.lines {
            context.print_value(&json!({ "lines": lines }))?;
        }
        return Ok(Exit::Ok);
    }
    let list: StatusList = context.client()?.fetch(&format!("/v1/status?services={}", joined(&args.names)))?;
    let names: Vec<&str> = list.services.iter().map(|row| &*row.name).collect();
    if args.follow { follow_all(context, args, &names) } else { one_after_the_other(context, args, &names) }
}

fn one_after_the_other(context: &Context, args: &LogsArgs, names: &[&str]) -> Result<Exit, CliError> {
    let mut all = Vec::new();
    for name in names {
        let mut output = Output::new(context, args, Some(Label::of(name, names)));
        of_one(context, args, name, &mut output)?;
        all.push(json!({ "service": name, "lines": output.lines }));
    }
    if context.json {
        context.print_value(&json!({ "services": all }))?;
    }
    Ok(Exit::Ok)
}

/// Each on a connection, and a thread, of its own. Ends when none can be followed any more.
fn follow_all(context: &Context, args: &LogsArgs, names: &[&str]) -> Result<Exit, CliError> {
    if names.len() > FOLLOWED {
        return Err(CliError::usage(
            format!("{} services are too many to be followed at once.", names.len()),
            format!("Name {FOLLOWED} at most; without -f there may be more."),
        ));
    }
    let follow = |name: &str| {
        let mut output = Output::new(context, args, Some(Label::of(name, names)));
        of_one(context, args, name, &mut output).map_or_else(
            |error| match error {
                // The others would find that out with their next lines only.
                CliError::NobodyReads => context.leave(),
                error => context.report(&error),
            },
            |()| Exit::Ok,
        )
    };
    let exits: Vec<Exit> = std::thread::scope(|scope| {
        let threads: Vec<_> = names.iter().map(|name| scope.spawn(|| follow(name))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Exit::Failed)).collect()
    });
    Ok(exits.into_iter().find(|exit| *exit != Exit::Ok).unwrap_or(Exit::Ok))
}

fn of_one(context: &Context, args: &LogsArgs, name: &str, output: &mut Output<'_>) -> Result<(), CliError> {
    let client = context.client()?;
    let mut reconnect = Reconnect::new(args.follow);
    let mut place: Option<Place> = None;
    loop {
        let path = path(name, args, place.as_ref());
        let mut written = Ok(());
        let begun = std::cell::Cell::new(None);
        let mut next = None;
        let result = client.each_block(
            &path,
            |position| begun.set(Some(position)),
            |block| {
                // The place is kept in the block's own closure: the connection may end after any of them.
                let start = next.or_else(|| begun.get().flatten());
                next = start.map(|at| LogPosition { offset: at.offset + block.len() as u64, ..at });
                written = output.block(block);
                match written {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(_) => ControlFlow::Break(()),
                }
            },
        );
        if let Some(position) = begun.get() {
            reconnect.connected();
            let last = Place { next: next.or(position), last_byte: SystemTime::now() };
            place = Some(last);
        }
        written?;
        match result {
            Ok(()) if !args.follow => {
                return output.end();
            }
            ended => reconnect.wait(context, ended)?,
        }
    }
}

fn path(name: &str, args: &LogsArgs, place: Option<&Place>) -> String {
    let mut path = format!("/v1/services/{}/logs?follow={}&stderr={}", encode(name), args.follow, args.stderr);
    match place {
        // With a position nothing is lost or doubled; without one, lines of the same second may be.
        Some(Place { next: Some(next), .. }) => path.push_str(&format!("&from={next}")),
        Some(Place { last_byte, .. }) => {
            path.push_str(&format!("&since={}", encode(&rfc3339(*last_byte))));
        }
        None => {
            if let Some(since) = &args.since {
                path.push_str(&format!("&since={}", encode(since)));
            }
            if args.lines.is_some() || args.since.is_none() {
                path.push_str(&format!("&lines={}", args.lines.unwrap_or(DEFAULT_LINES)));
            }
        }
    }
    path
}

/// Whose lines they are, where there are several services.
struct Label {
    name: String,
    /// Of the longest name.
    width: usize,
}

impl Label {
    fn of(name: &str, names: &[&str]) -> Label {
        Label { name: name.to_owned(), width: names.iter().map(|name| name.chars().count()).max().unwrap_or(0) }
    }
}

/// How bytes become output: raw into files and pipes, escaped on terminals, a JSON string a line with `--json`; of several
/// services line by line.
struct Output<'a> {
    context: &'a Context,
    label: Option<Label>,
    escaper: Option<Escaper>,
    /// The line that is not complete yet, where lines matter.
    line: Vec<u8>,
    /// `--json` without `--follow`: all of them.
    lines: Option<Vec<String>>,
}

/// A line longer than this is given in parts.
const LONGEST: usize = 1024 * 1024;

impl<'a> Output<'a> {
    fn new(context: &'a Context, args: &LogsArgs, label: Option<Label>) -> Output<'a> {
        Output {
            context,
            label,
            escaper: (context.terminal && !args.raw && !context.json).then(Escaper::default),
            line: Vec::new(),
            lines: (context.json && !args.follow).then(Vec::new),
        }
    }

    fn block(&mut self, block: &[u8]) -> Result<(), CliError> {
        if self.context.json || self.label.is_some() {
            for part in block.split_inclusive(|&b| b == b'\n') {
                self.line.extend_from_slice(part);
                if part.ends_with(b"\n") || self.line.len() > LONGEST {
                    self.line()?;
                }
            }
            return Ok(());
        }
        match &mut self.escaper {
            Some(escaper) => self.context.print(escaper.block(block)),
            None => self.context.print(block),
        }
    }

    fn line(&mut self) -> Result<(), CliError> {
        let line = std::mem::take(&mut self.line);
        let line = line.strip_suffix(b"\n").unwrap_or(&line);
        if !self.context.json {
            let Some(Label { name, width }) = &self.label else { return self.context.print(line) };
            let mut text = format!("{name:width$} | ").into_bytes();
            match &mut self.escaper {
                Some(escaper) => text.extend_from_slice((escaper.block(line) + &escaper.end()).as_bytes()),
                None => text.extend_from_slice(line),
            }
            text.push(b'\n');
            return self.context.print(text);
        }
        let text = String::from_utf8_lossy(line);
        match (&mut self.lines, &self.label) {
            (Some(lines), _) => {
                lines.push(text.into_owned());
                Ok(())
            }
            (None, Some(Label { name, .. })) => self.context.print_value(&json!({ "service": name, "line": text })),
            (None, None) => self.context.print_value(&json!({ "line": text })),
        }
    }

    fn end(&mut self) -> Result<(), CliError> {
        if !self.line.is_empty() {
            return self.line();
        }
        match &mut self.escaper {
            Some(escaper) => self.context.print(escaper.end()),
            None => Ok(()),
        }
    }
}

/// Following goes on when svd is restarted: it tries again, for as long as it had a connection once.
pub struct Reconnect {
    follow: bool,
    was_connected: bool,
    told: bool,
}

impl Reconnect {
    pub fn new(follow: bool) -> Reconnect {
        Reconnect { follow, was_connected: false, told: false }
    }

    pub fn connected(&mut self) {
        self.was_connected = true;
        self.told = false;
    }

    /// Waits before the next attempt, or gives the reason why there is none.
    pub fn wait(&mut self, context: &Context, ended: Result<(), ClientError>) -> Result<(), CliError> {
        let again = match &ended {
            Ok(()) | Err(ClientError::Lost) => true,
            Err(ClientError::Api(error)) => error.code == crate::api::types::ErrorCode::Unavailable,
            Err(error) => error.is_absence(),
        };
        if !(self.follow && self.was_connected && again) {
            ended?;
            return Ok(());
        }
        if !self.told {
            self.told = true;
            context.say("svctl: the connection to svd ended; trying again until it is back.");
        }
        sleep(Duration::from_millis(300));
        Ok(())
    }
}
