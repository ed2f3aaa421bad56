//! What the log thread knows of a service and of a pipe. There may be thousands that never print: everything beyond a few
//! words is made when the first byte comes.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::format;
use super::handle::{Begins, LogEvent, Notify, PipeId};
use super::index;
use super::inflight::{InFlight, Node};
use super::memory::{Tail, Watch};
use super::names::{STREAMS, Stream};
use super::signal::Signal;
use super::sink::{Env, Line, Sink, Source};
use crate::config::spec::{LogFormat, Logs};

/// A line without an end is held back for at most that many bytes where several pipes share a file, or where lines are
/// formatted.
pub(super) const HOLD_MAX: usize = 64 * 1024;

/// And at most that long: a prompt or a progress dot must not be invisible.
pub(super) const HOLD: Duration = Duration::from_secs(1);

/// While a line is held back, its pipe is looked at again as often.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Generations whose last output is remembered: the running one, a new one, some that drain.
const GENERATIONS_MAX: usize = 4;

/// Followers of one file. Each costs a flag at each growth; the API has its own limits on connections.
pub(super) const FOLLOWERS_MAX: usize = 64;

/// Watches of one service: its workers', times the generations that start at once.
pub(super) const WATCHES_MAX: usize = 256;

#[derive(Debug)]
pub(super) struct Generation {
    number: u64,
    /// `None`: it gets no mark.
    begins: Option<Box<Begins>>,
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
    pub node: Node,
    pub service: u32,
    pub worker: u32,
    pub generation: u64,
    pub stream: Stream,
    /// It is older than this svd.
    pub adopted: bool,
    /// In bytes.
    pub capacity: usize,
    /// Its capacity was raised, or that was refused: not tried again.
    pub grown: bool,
    /// Closed when it is empty.
    pub leaving: bool,
    /// The beginning of the line that comes was lost: so is its rest.
    pub skip_line: bool,
    /// Watched for what is new only.
    pub edge: bool,
    /// It could not be watched (again): its timer looks at it.
    pub lost: bool,
    /// A timer for `held` is set.
    pub timer: bool,
    /// Bytes read since it was asked to leave.
    pub parting: u32,
    /// So many bytes were looked at and left in the pipe: they wait for the end of a line.
    pub held: usize,
    pub held_since: Option<Instant>,
}

impl Pipe {
    /// Leaves `rest` bytes for later. `written`: something before them was written, so that they are a new line's beginning.
    pub fn hold(&mut self, rest: usize, written: bool, now: Instant) {
        self.held = rest;
        if rest == 0 {
            self.held_since = None;
        } else if written || self.held_since.is_none() {
            self.held_since = Some(now);
        }
    }
}

/// What a delivery needs beside the service and the pipe.
pub(super) struct Tools<'a> {
    pub log_dir: &'a Path,
    pub scratch: &'a mut Vec<u8>,
    pub notify: &'a Notify,
    pub in_flight: Option<&'a InFlight>,
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

    /// Without `begins` there will be no mark.
    pub fn begin(&mut self, number: u64, begins: Option<Begins>) {
        if self.generations.iter().any(|g| g.number == number) {
            return;
        }
        if self.generations.len() >= GENERATIONS_MAX {
            self.generations.remove(0);
        }
        self.generations.reserve_exact(1);
        self.generations.push(Generation {
            number,
            marked: if begins.is_some() { 0 } else { u8::MAX },
            begins: begins.map(Box::new),
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

    /// Memory and watches: every byte passes here once, before it is written; where nobody watches, the last ones do.
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

    /// Moves what the pipe has without looking at it, where that is enough: so many bytes. `waiting` is how much there is,
    /// `tail` room for the end of it.
    pub fn pour(
        &mut self,
        id: PipeId,
        pipe: &mut Pipe,
        waiting: usize,
        tail: &mut [u8],
        tools: &mut Tools<'_>,
    ) -> usize {
        let stream = pipe.stream.number();
        let bit = 1u8 << stream;
        let plain = self.limits.format == LogFormat::Raw && self.live[stream] == 1;
        let marked = self.generations.iter().all(|g| g.number != pipe.generation || g.marked & bit != 0);
        if !plain || !marked || !self.watches.is_empty() || pipe.skip_line || pipe.held > 0 {
            return 0;
        }
        let dir = self.dir(tools.log_dir);
        let env = env(&self.name, &self.limits, &dir, tools);
        let Some(sink) = &mut self.sinks[stream] else { return 0 };
        let room = usize::try_from(if sink.ready(&env) { sink.blind(id.0, &env) } else { 0 }).unwrap_or(usize::MAX);
        let source = Source { id: id.0, fd: pipe.fd.as_fd(), node: pipe.node, shared: false };
        let count = waiting.min(room);
        let moved = if count > 0 { sink.pour_blind(&source, count, tail, &env) } else { 0 };
        self.observe(pipe, &tail[..moved.min(tail.len())], tools.notify);
        moved
    }

    /// Writes what is to be written of `data`, the bytes that the pipe begins with; what it has left is held. How many bytes
    /// have been taken out.
    pub fn deliver(
        &mut self,
        id: PipeId,
        pipe: &mut Pipe,
        data: &[u8],
        urgency: Urgency,
        tools: &mut Tools<'_>,
    ) -> usize {
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
            self.write(id, pipe, out, shared, tools);
        }
        pipe.hold(rest.len(), cut > 0, tools.now);
        cut
    }

    fn write(&mut self, id: PipeId, pipe: &mut Pipe, out: &[u8], shared: bool, tools: &mut Tools<'_>) {
        let dir = self.dir(tools.log_dir);
        let env = env(&self.name, &self.limits, &dir, tools);
        let source = Source { id: id.0, fd: pipe.fd.as_fd(), node: pipe.node, shared };
        let sink = sink_of(&mut self.sinks, pipe.stream, tools.now);
        let mut out = out;
        if pipe.skip_line {
            let end = out.iter().position(|b| *b == b'\n');
            let (fragment, rest) = out.split_at(end.map_or(out.len(), |at| at + 1));
            sink.expect_rest();
            sink.lose(fragment, &source);
            pipe.skip_line = end.is_none();
            out = rest;
        }
        let Some(&last) = out.last() else { return };
        if !sink.ready(&env) {
            sink.lose(out, &source);
            pipe.skip_line = last != b'\n';
            return;
        }
        let bit = 1u8 << pipe.stream.number();
        let unmarked = self.generations.iter_mut().find(|g| g.number == pipe.generation && g.marked & bit == 0);
        if let Some(g) = unmarked {
            g.marked |= bit;
            if let Some(begins) = g.begins.as_deref().filter(|b| !(b.adopted && sink.is_marked(g.number))) {
                let at = index::millis(begins.at);
                let mark = format::mark(self.limits.format, &self.name, g.number, begins.release.as_deref(), at);
                sink.put_mark(&mark, g.number, &env);
            }
        }
        let origin = format::Origin {
            service: &self.name,
            generation: pipe.generation,
            worker: pipe.worker,
            stream: pipe.stream,
        };
        if !sink.put(&source, &origin, out, tools.scratch, &env) {
            pipe.skip_line = last != b'\n';
        }
    }

    /// The pipe was there before svd was started: a line that the file does not end may be its own.
    pub fn inherit(&mut self, id: PipeId, stream: Stream, tools: &Tools<'_>) {
        let dir = self.dir(tools.log_dir);
        let env = env(&self.name, &self.limits, &dir, tools);
        sink_of(&mut self.sinks, stream, tools.now).inherit(id.0, &env);
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

fn env<'a>(service: &'a str, limits: &'a Logs, dir: &'a Path, tools: &Tools<'a>) -> Env<'a> {
    let Tools { now, wall_ms, notify, in_flight, .. } = *tools;
    Env { service, dir, limits, now, wall_ms, notify, in_flight }
}

fn sink_of(sinks: &mut [Option<Box<Sink>>; STREAMS], stream: Stream, now: Instant) -> &mut Sink {
    sinks[stream.number()].get_or_insert_with(|| Box::new(Sink::new(stream, now)))
}

/// Where to cut so that lines stay whole: after the last newline, unless more than [`HOLD_MAX`] would be left.
fn cut_at_line(data: &[u8]) -> usize {
    let cut = data.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    if data.len() - cut >= HOLD_MAX { data.len() } else { cut }
}
