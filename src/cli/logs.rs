//! `svctl logs`.

use std::ops::ControlFlow;
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use super::args::LogsArgs;
use super::context::{Context, need_names};
use super::exit::{CliError, Exit};
use super::text::Escaper;
use crate::api::client::{ClientError, encode};
use crate::api::request::parse_since;
use crate::api::types::{LogPosition, rfc3339};

const DEFAULT_LINES: u64 = 10;

/// What comes from where, so that a new connection goes on after the last byte.
struct Place {
    /// Of the next byte, where svd told.
    next: Option<LogPosition>,
    last_byte: SystemTime,
}

pub fn logs(context: &Context, args: &LogsArgs) -> Result<Exit, CliError> {
    need_names(std::slice::from_ref(&args.name), "logs")?;
    if let Some(since) = &args.since
        && parse_since(since, SystemTime::now()).is_none()
    {
        return Err(CliError::usage(
            format!("--since {since}: that is neither a duration nor a time."),
            "Write --since 10m or --since 2026-11-22T18:40:00Z.",
        ));
    }
    let client = context.client()?;
    let mut reconnect = Reconnect::new(args.follow);
    let mut output = Output::new(context, args);
    let mut place: Option<Place> = None;
    loop {
        let path = path(args, place.as_ref());
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
                output.end()?;
                return Ok(Exit::Ok);
            }
            ended => reconnect.wait(context, ended)?,
        }
    }
}

fn path(args: &LogsArgs, place: Option<&Place>) -> String {
    let mut path = format!("/v1/services/{}/logs?follow={}&stderr={}", encode(&args.name), args.follow, args.stderr);
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

/// How bytes become output: raw into files and pipes, escaped on terminals, a JSON string a line with `--json`.
struct Output<'a> {
    context: &'a Context,
    escaper: Option<Escaper>,
    /// `--json`: the line that is not complete yet, or without `--follow` all of them.
    line: Vec<u8>,
    lines: Option<Vec<String>>,
}

/// A line longer than this is given in parts.
const LONGEST: usize = 1024 * 1024;

impl<'a> Output<'a> {
    fn new(context: &'a Context, args: &LogsArgs) -> Output<'a> {
        Output {
            context,
            escaper: (context.terminal && !args.raw && !context.json).then(Escaper::default),
            line: Vec::new(),
            lines: (context.json && !args.follow).then(Vec::new),
        }
    }

    fn block(&mut self, block: &[u8]) -> Result<(), CliError> {
        if self.context.json {
            for part in block.split_inclusive(|&b| b == b'\n') {
                self.line.extend_from_slice(part);
                if part.ends_with(b"\n") || self.line.len() > LONGEST {
                    self.json_line()?;
                }
            }
            return Ok(());
        }
        match &mut self.escaper {
            Some(escaper) => self.context.print(escaper.block(block)),
            None => self.context.print(block),
        }
    }

    fn json_line(&mut self) -> Result<(), CliError> {
        let line = std::mem::take(&mut self.line);
        let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line));
        match &mut self.lines {
            Some(lines) => {
                lines.push(text.into_owned());
                Ok(())
            }
            None => self.context.print_value(&serde_json::json!({ "line": text })),
        }
    }

    fn end(mut self) -> Result<(), CliError> {
        if self.context.json {
            if !self.line.is_empty() {
                self.json_line()?;
            }
            if let Some(lines) = &self.lines {
                let document = serde_json::json!({ "lines": lines });
                self.context.print_value(&document)?;
            }
        } else if let Some(escaper) = &mut self.escaper {
            self.context.print(escaper.end())?;
        }
        Ok(())
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
            Ok(()) | Err(ClientError::Lost | ClientError::Unreachable { .. }) => true,
            Err(ClientError::Api(error)) => error.code == crate::api::types::ErrorCode::Unavailable,
            Err(_) => false,
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
