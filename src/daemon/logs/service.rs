//! What the log thread knows of a service and of a pipe. There may be thousands that never print: everything beyond a few
//! words is made when the first byte comes.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::format;
use super::handle::{LogEvent, Notify, PipeId};
use super::memory::{Tail, Watch};
use super::names::{STREAMS, Stream};
use super::signal::Signal;
use super::sink::{Line, Sink};
use crate::config::spec::{LogFormat, Logs};

/// A line without an end is held back for at most that many bytes where several pipes share a file, or where lines are
/// formatted.
pub(super) const HOLD_MAX: usize = 64 * 1024;

/// And at most that long: a prompt or a progress dot must not be invisible.
pub(super) const HOLD: Duration = Duration::from_secs(1);

/// Generations whose last output is remembered: the running one, a new one, some that drain.
const GENERATIONS_MAX: usize = 4;

/// Followers of one file. Each costs a flag at each growth; the API has its own limits on connections.
pub(super) const FOLLOWERS_MAX: usize = 64;

/// Watches of one service: its workers', times the generations that start at once.
pub(super) const WATCHES_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Generation {
    number: u64,
    began_ms: u64,
    release: Option<Arc<str>>,
    /// One bit a stream: its file has the mark.
    marked: u8,
    pub tail: Tail,
}

#[derive(Debug)]
pub(super) struct Service {
    pub name: Arc<str>,
    pub limits: Arc<Logs>,
    pub sinks: [Option<Box<Sink>>; STREAMS],
    /// Attached pipes by stream.
    pub live: [u32; STREAMS],
    /// A pipe holds lines back until another has finished its own.
    pub waiting: bool,
    /// Removed: forgotten when the last pipe has gone.
    pub leaving: bool,
    pub generations: Vec<Generation>,
    pub watches: Vec<Watch>,
    pub followers: Vec<(Stream, Arc<Signal>)>,
}

/// The read end of a worker's pipe.
#[derive(Debug)]
pub(super) struct Pipe {
    pub fd: OwnedFd,
    pub service: u32,
    pub worker: u32,
    pub generation: u64,
    pub stream: Stream,
    /// Its capacity was raised, or that was refused: not tried again.
    pub grown: bool,
    /// Closed when it is empty.
    pub leaving: bool,
    /// The beginning of the line that comes was lost: so is its rest.
    pub skip_line: bool,
    /// A timer for `held` is set.
    pub timer: bool,
    /// Bytes read since it was asked to leave.
    pub parting: u32,
    /// Bytes not written yet.
    pub held: Vec<u8>,
    pub held_since: Option<Instant>,
}

impl Pipe {
    /// Keeps `rest` for later. `written`: something before it was written, so that it is a new line's beginning.
    pub fn hold(&mut self, rest: &[u8], written: bool, now: Instant) {
        if rest.is_empty() {
            self.held = Vec::new();
            self.held_since = None;
            return;
        }
        if written || self.held_since.is_none() {
            self.held_since = Some(now);
        }
        self.held.clear();
        self.held.extend_from_slice(rest);
    }
}

/// What a delivery needs beside the service and the pipe.
pub(super) struct Tools<'a> {
    pub log_dir: &'a Path,
    pub scratch: &'a mut Vec<u8>,
    pub notify: &'a Notify,
    pub now: Instant,
    pub wall_ms: u64,
}

/// How complete a delivery has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// More will come: parts of lines may wait.
    Normal,
    /// They have waited long enough.
    Overdue,
}

impl Service {
    pub fn new(name: Arc<str>, limits: Arc<Logs>) -> Service {
        Service {
            name,
            limits,
            sinks: [const { None }; STREAMS],
            live: [0; STREAMS],
            waiting: false,
            leaving: false,
            generations: Vec::new(),
            watches: Vec::new(),
            followers: Vec::new(),
        }
    }

    pub fn dir(&self, log_dir: &Path) -> PathBuf {
        log_dir.join(&*self.name)
    }

    /// `release` and `began` are only for the mark; without `began_ms` there will be none.
    pub fn begin(&mut self, number: u64, release: Option<Arc<str>>, began_ms: Option<u64>) {
        if self.generations.iter().any(|g| g.number == number) {
            return;
        }
        if self.generations.len() >= GENERATIONS_MAX {
            self.generations.remove(0);
        }
        self.generations.reserve_exact(1);
        self.generations.push(Generation {
            number,
            began_ms: began_ms.unwrap_or(0),
            release,
            marked: if began_ms.is_some() { 0 } else { u8::MAX },
            tail: Tail::default(),
        });
    }

    pub fn tail(&self, generation: Option<u64>, max: usize) -> Vec<u8> {
        self.generations
            .iter()
            .rev()
            .find(|g| generation.is_none_or(|n| n == g.number))
            .map_or(Vec::new(), |g| g.tail.last(max))
    }

    /// Memory and watches: every byte passes here once, before it is written.
    pub fn observe(&mut self, pipe: &Pipe, fresh: &[u8], notify: &Notify) {
        if let Some(g) = self.generations.iter_mut().find(|g| g.number == pipe.generation) {
            g.tail.push(fresh);
        }
        self.watches.retain_mut(|w| {
            let seen = w.sees(pipe.generation, pipe.worker, pipe.stream, fresh);
            if seen {
                notify(LogEvent::Matched { watch: w.id });
            }
            !seen
        });
    }

    /// Writes what is to be written of `data` (what was held back, and what is new); the pipe holds the rest.
    pub fn deliver(&mut self, id: PipeId, pipe: &mut Pipe, data: &[u8], urgency: Urgency, tools: &mut Tools<'_>) {
        let shared = self.live[pipe.stream.number()] > 1;
        let by_line = shared || self.limits.format == LogFormat::Json;
        let sink = sink_of(&mut self.sinks, pipe.stream, tools.now);
        let others_turn = matches!(sink.line, Line::Of(other) if other != id.0)
            && tools.now.saturating_duration_since(sink.line_since) < HOLD;
        let cut = if urgency == Urgency::Overdue {
            data.len()
        } else if others_turn && data.len() < HOLD_MAX {
            self.waiting = true;
            0
        } else if by_line {
            cut_at_line(data)
        } else {
            data.len()
        };
        let (out, rest) = data.split_at(cut);
        if !out.is_empty() {
            self.write(id, pipe, out, tools);
        }
        pipe.hold(rest, cut > 0, tools.now);
    }

    fn write(&mut self, id: PipeId, pipe: &mut Pipe, out: &[u8], tools: &mut Tools<'_>) {
        let dir = self.dir(tools.log_dir);
        let env = super::sink::Env {
            service: &self.name,
            dir: &dir,
            limits: &self.limits,
            now: tools.now,
            wall_ms: tools.wall_ms,
            notify: tools.notify,
        };
        let sink = sink_of(&mut self.sinks, pipe.stream, tools.now);
        let mut out = out;
        if pipe.skip_line {
            let end = out.iter().position(|b| *b == b'\n');
            let (fragment, rest) = out.split_at(end.map_or(out.len(), |at| at + 1));
            sink.drop_bytes(fragment);
            pipe.skip_line = end.is_none();
            out = rest;
        }
        let Some(&last) = out.last() else { return };
        if !sink.ready(&env) {
            sink.drop_bytes(out);
            pipe.skip_line = last != b'\n';
            return;
        }
        let bit = 1u8 << pipe.stream.number();
        let unmarked = self.generations.iter_mut().find(|g| g.number == pipe.generation && g.marked & bit == 0);
        if let Some(g) = unmarked {
            g.marked |= bit;
            let mark = format::mark(self.limits.format, &self.name, g.number, g.release.as_deref(), g.began_ms);
            sink.put_own(&mark, &env);
        }
        let origin = format::Origin {
            service: &self.name,
            generation: pipe.generation,
            worker: pipe.worker,
            stream: pipe.stream,
        };
        if !sink.put(id.0, &origin, out, tools.scratch, &env) {
            pipe.skip_line = last != b'\n';
        }
    }

    /// A pipe is gone: a line that it began is nobody's now.
    pub fn closed(&mut self, id: PipeId, stream: Stream) {
        let live = &mut self.live[stream.number()];
        *live = live.saturating_sub(1);
        if let Some(sink) = &mut self.sinks[stream.number()]
            && sink.line == Line::Of(id.0)
        {
            sink.line = Line::Orphaned;
        }
    }
}

fn sink_of(sinks: &mut [Option<Box<Sink>>; STREAMS], stream: Stream, now: Instant) -> &mut Sink {
    sinks[stream.number()].get_or_insert_with(|| Box::new(Sink::new(stream, now)))
}

/// Where to cut so that lines stay whole: after the last newline, unless more than [`HOLD_MAX`] would be left.
fn cut_at_line(data: &[u8]) -> usize {
    let cut = data.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if data.len() - cut >= HOLD_MAX { data.len() } else { cut }
}
