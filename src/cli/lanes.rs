//! The words of one verb on many hosts, put in order: each host has a lane of its own, and what it prints comes behind its name.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::context;
use super::exit::{CliError, Exit};
use crate::api::types::ApiError;

/// Bytes of a host that wait for the hosts before it; what would be more waits in the host.
const HELD: usize = 4 << 20;
/// A line longer than this is given in parts.
const LONGEST: usize = 1 << 20;

/// When a host's words are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// One host after the other, as soon as all before it are done.
    OfHosts,
    /// Line by line.
    AsItComes,
    /// Not before all are done, and only by who asks for it.
    Never,
}

/// All lanes.
pub struct Lanes {
    names: Vec<Box<str>>,
    width: usize,
    /// Of one host: nothing is marked.
    alone: bool,
    order: Order,
    json: bool,
    state: Mutex<State>,
    changed: Condvar,
    out: Out,
    /// svctl is about to end: what its hosts have to say about that is of no interest.
    hushed: Arc<AtomicBool>,
}

/// Where data goes.
type Out = Box<dyn Fn(&[u8]) -> Result<(), CliError> + Send + Sync>;

struct State {
    lanes: Vec<Words>,
    /// The host that is printed now.
    turn: usize,
    nobody_reads: bool,
}

#[derive(Default)]
struct Words {
    /// What is to be printed in its turn.
    held: Vec<u8>,
    /// A line whose end has not come.
    line: Vec<u8>,
    done: Option<Exit>,
}

/// One host's.
#[derive(Clone)]
pub struct Lane {
    all: Arc<Lanes>,
    index: usize,
}

impl Lanes {
    /// With `hushed`, nobody says anything any more. `among`: others come before or after, so that one host alone is marked, too.
    pub fn new(names: Vec<Box<str>>, among: bool, order: Order, json: bool, hushed: Arc<AtomicBool>) -> Arc<Lanes> {
        let mut lanes = Lanes::writing(names, order, json, hushed, Box::new(context::print));
        if let Some(lanes) = Arc::get_mut(&mut lanes) {
            lanes.alone &= !among;
        }
        lanes
    }

    fn writing(names: Vec<Box<str>>, order: Order, json: bool, hushed: Arc<AtomicBool>, out: Out) -> Arc<Lanes> {
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let alone = names.len() == 1;
        let lanes = names.iter().map(|_| Words::default()).collect();
        let state = Mutex::new(State { lanes, turn: 0, nobody_reads: false });
        Arc::new(Lanes { names, width, alone, order, json, state, changed: Condvar::new(), out, hushed })
    }

    pub fn lane(self: &Arc<Lanes>, index: usize) -> Lane {
        Lane { all: Arc::clone(self), index }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all are done, or nobody reads any more.
    ///
    /// # Errors
    /// [`CliError::NobodyReads`].
    pub fn wait(&self) -> Result<(), CliError> {
        let over = |state: &mut State| !state.nobody_reads && state.lanes.iter().any(|lane| lane.done.is_none());
        let state = self.changed.wait_while(self.state(), over).unwrap_or_else(PoisonError::into_inner);
        if state.nobody_reads { Err(CliError::NobodyReads) } else { Ok(()) }
    }

    /// The highest code of those that are done.
    pub fn exit(&self) -> Exit {
        let codes = |state: &State| state.lanes.iter().filter_map(|lane| Some(lane.done?.code())).max();
        match codes(&self.state()) {
            None | Some(0) => Exit::Ok,
            Some(code) => Exit::Command(code),
        }
    }

    /// With [`Order::Never`]: what would have been printed.
    pub fn text(&self) -> Vec<u8> {
        let mut state = self.state();
        let mut out = Vec::new();
        for (index, lane) in state.lanes.iter_mut().enumerate() {
            let held = std::mem::take(&mut lane.held);
            self.mark(index, lane, &held, &mut out);
            self.last_line(index, lane, &mut out);
        }
        out
    }

    /// The one object of `--json`: each host with its document, or its error.
    pub fn document(&self) -> Value {
        let state = self.state();
        let hosts = state.lanes.iter().zip(&self.names).map(|(lane, name)| {
            let mut host = json!({ "host": name, "exit_code": lane.done.map(Exit::code) });
            match serde_json::from_slice::<Value>(&lane.held) {
                Ok(Value::Object(mut object)) if object.len() == 1 && object.contains_key("error") => {
                    host["error"] = object.remove("error").unwrap_or_default();
                }
                Ok(document) => host["result"] = document,
                Err(_) => {}
            }
            host
        });
        json!({ "hosts": hosts.collect::<Vec<_>>() })
    }

    /// With `--json`: what each host has answered, or its error. Who has said nothing has been interrupted, and is left out.
    pub fn answers<T: DeserializeOwned>(&self) -> Vec<(Box<str>, Result<T, CliError>)> {
        #[derive(serde::Deserialize)]
        struct Failed {
            error: ApiError,
        }
        let state = self.state();
        let hosts =
            state.lanes.iter().zip(self.names.iter().map(|name| &**name)).filter(|(lane, _)| !lane.held.is_empty());
        let answer = |(lane, name): (&Words, &str)| {
            let answer = match serde_json::from_slice::<Failed>(&lane.held) {
                Ok(failed) => Err(CliError::Said { exit: lane.done.unwrap_or(Exit::Failed), error: failed.error }),
                Err(_) => serde_json::from_slice(&lane.held).map_err(|e| super::host::odd_answer(&e)),
            };
            (name.into(), answer)
        };
        hosts.map(answer).collect()
    }

    /// `bytes` as lines behind the host's name; as they are, where there is no other host.
    fn mark(&self, index: usize, lane: &mut Words, bytes: &[u8], out: &mut Vec<u8>) {
        if self.alone {
            out.extend_from_slice(bytes);
            return;
        }
        for part in bytes.split_inclusive(|&b| b == b'\n') {
            lane.line.extend_from_slice(part);
            if part.ends_with(b"\n") || lane.line.len() > LONGEST {
                self.last_line(index, lane, out);
            }
        }
    }

    fn last_line(&self, index: usize, lane: &mut Words, out: &mut Vec<u8>) {
        if lane.line.is_empty() {
            return;
        }
        out.extend_from_slice(self.before(index).as_bytes());
        out.append(&mut lane.line);
        if !out.ends_with(b"\n") {
            out.push(b'\n');
        }
    }

    fn before(&self, index: usize) -> String {
        format!("{:width$} | ", self.names[index], width = self.width)
    }

    fn emit(&self, state: &mut State, bytes: &[u8]) -> Result<(), CliError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let written = (self.out)(bytes);
        if matches!(written, Err(CliError::NobodyReads)) {
            state.nobody_reads = true;
            self.changed.notify_all();
        }
        written
    }

    /// Prints what the host whose turn it is has held back, and goes on to the next while that one is done.
    fn advance(&self, state: &mut State) -> Result<(), CliError> {
        while let Some(lane) = state.lanes.get_mut(state.turn) {
            let (mut out, held) = (Vec::new(), std::mem::take(&mut lane.held));
            self.mark(state.turn, lane, &held, &mut out);
            let done = lane.done.is_some();
            if done {
                self.last_line(state.turn, lane, &mut out);
            }
            self.emit(state, &out)?;
            if !done {
                break;
            }
            state.turn += 1;
        }
        self.changed.notify_all();
        Ok(())
    }
}

impl Lane {
    /// Nobody else prints.
    pub fn is_alone(&self) -> bool {
        self.all.alone
    }

    pub fn print(&self, bytes: &[u8]) -> Result<(), CliError> {
        let all = &*self.all;
        let mut state = all.state();
        if state.nobody_reads || all.hushed.load(Ordering::SeqCst) {
            return Err(CliError::NobodyReads);
        }
        match all.order {
            Order::AsItComes if all.json => {
                let line = self.named(bytes);
                all.emit(&mut state, &line)
            }
            Order::AsItComes => {
                let mut out = Vec::new();
                all.mark(self.index, &mut state.lanes[self.index], bytes, &mut out);
                all.emit(&mut state, &out)
            }
            Order::OfHosts if !all.json => {
                state.lanes[self.index].held.extend_from_slice(bytes);
                if state.turn == self.index {
                    return all.advance(&mut state);
                }
                let full = |state: &mut State| {
                    state.lanes[self.index].held.len() > HELD && state.turn != self.index && !state.nobody_reads
                };
                drop(all.changed.wait_while(state, full).unwrap_or_else(PoisonError::into_inner));
                Ok(())
            }
            Order::OfHosts | Order::Never => {
                state.lanes[self.index].held.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// A message on stderr, at once; with [`Order::Never`] it is among what is printed.
    pub fn say(&self, text: &str) {
        let mut state = self.all.state();
        if self.all.hushed.load(Ordering::SeqCst) {
            return;
        }
        if self.all.order == Order::Never {
            state.lanes[self.index].held.extend(format!("{text}\n").bytes());
            return;
        }
        let before = if self.all.alone { String::new() } else { self.all.before(self.index) };
        let text: String = text.lines().map(|line| format!("{before}{line}\n")).collect();
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }

    /// The host's verb has ended.
    pub fn done(&self, exit: Exit) {
        let mut state = self.all.state();
        let lane = &mut state.lanes[self.index];
        lane.done = Some(exit);
        let mut out = Vec::new();
        let told = match self.all.order {
            Order::AsItComes if !self.all.json => {
                self.all.last_line(self.index, lane, &mut out);
                self.all.emit(&mut state, &out)
            }
            Order::OfHosts if !self.all.json && state.turn == self.index => self.all.advance(&mut state),
            _ => Ok(()),
        };
        // Whoever waits for all learns it by what is set already.
        drop(told);
        self.all.changed.notify_all();
    }

    /// A document of one line, with the host in it.
    fn named(&self, line: &[u8]) -> Vec<u8> {
        let name = &self.all.names[self.index];
        let rest = line.strip_prefix(b"{").filter(|_| serde_json::from_slice::<&RawValue>(line).is_ok());
        let text = match rest {
            Some(rest) => {
                let comma = if rest.trim_ascii_start().starts_with(b"}") { "" } else { "," };
                let mut text = format!("{{\"host\":{}{comma}", json!(name)).into_bytes();
                text.extend_from_slice(rest.trim_ascii_end());
                text
            }
            None => json!({ "host": name, "value": String::from_utf8_lossy(line) }).to_string().into_bytes(),
        };
        [text, b"\n".to_vec()].concat()
    }
}

#[cfg(test)]
#[path = "lanes_test.rs"]
mod tests;
