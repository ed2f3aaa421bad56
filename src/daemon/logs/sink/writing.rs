//! Taking bytes out of a pipe and putting them into the file, in the order that [`super::super::inflight`] explains.

use std::io;
use std::os::unix::fs::FileExt;

use super::super::format::{self, Origin};
use super::super::inflight::{InFlight, Node, Record, Text};
use super::{Env, Line, Open, SCRATCH_FLUSH, Sink, Source};
use crate::config::spec::LogFormat;
use crate::sys::fifo;

impl Sink {
    /// Takes the first bytes of a pipe and writes them in the configured format; [`Sink::ready`] said yes. `data`, which is
    /// what they are, may end in the middle of a line. What fails is counted; false then.
    pub fn put(
        &mut self,
        source: &Source<'_>,
        origin: &Origin<'_>,
        data: &[u8],
        scratch: &mut Vec<u8>,
        env: &Env<'_>,
    ) -> bool {
        let pipe = source.id;
        let alone = matches!(self.line, Line::Start | Line::Unknown) || self.line == Line::Of(pipe);
        let formatted = env.limits.format != LogFormat::Raw;
        if !alone || (formatted && self.line == Line::Unknown) {
            if !self.append(b"\n", None, None, env) {
                self.lose(data, source);
                return false;
            }
            self.line = Line::Start;
        }
        let whole = match env.limits.format {
            LogFormat::Raw => self.pass(data, source, env),
            format => self.put_lines(source, origin, data, format, scratch, env),
        };
        self.line_since = env.now;
        if self.line != Line::Start && whole {
            self.line = Line::Of(pipe);
        }
        whole
    }

    fn put_lines(
        &mut self,
        source: &Source<'_>,
        origin: &Origin<'_>,
        data: &[u8],
        format: LogFormat,
        scratch: &mut Vec<u8>,
        env: &Env<'_>,
    ) -> bool {
        let stamp = format::time(env.wall_ms).to_string();
        let mut continues = self.line == Line::Of(source.id);
        let mut written = true;
        let mut taken = 0;
        scratch.clear();
        for line in format::lines(data) {
            if !written {
                self.lose(line, source);
                continue;
            }
            match format {
                LogFormat::Json => format::json(scratch, &stamp, origin, line),
                _ => format::timestamped(scratch, &stamp, line, continues),
            }
            continues = false;
            taken += line.len();
            if scratch.len() >= SCRATCH_FLUSH {
                written = self.append(scratch, Some((source, taken)), None, env);
                scratch.clear();
                taken = 0;
            }
        }
        written && self.append(scratch, Some((source, taken)), None, env)
    }

    /// Is the generation marked, by this svd or by one that was killed?
    pub fn is_marked(&self, generation: u64) -> bool {
        self.open.as_ref().and_then(|o| o.index.as_ref()).is_some_and(|i| i.marked() >= generation)
    }

    /// Writes the line that tells of a generation, on a line of its own.
    pub fn put_mark(&mut self, line: &[u8], generation: u64, env: &Env<'_>) {
        if self.line != Line::Start && !self.append(b"\n", None, None, env) {
            return;
        }
        self.append(line, None, Some(generation), env);
    }

    /// Takes bytes out of the pipe that are not written, and counts them.
    pub fn lose(&mut self, data: &[u8], source: &Source<'_>) {
        discard(source, data.len());
        self.drop_bytes(data);
    }

    /// Writes a text as it is, in the place of so many bytes of a pipe, and rotates where it reaches the limit.
    fn append(&mut self, text: &[u8], take: Option<(&Source<'_>, usize)>, mark: Option<u64>, env: &Env<'_>) -> bool {
        let flight = env.in_flight.filter(|f| f.put(text).is_ok());
        let (mut from, mut owed) = (0, take);
        while from < text.len() {
            let piece = self.until_cut(&text[from..], env);
            let taken = take.map_or(0, |(_, count)| count as u64);
            let place = Text { taken, total: text.len() as u64, from: from as u64, mark };
            let flight = flight.filter(|f| {
                let pipe = take.map_or(Node::default(), |(source, _)| source.node);
                self.record(env, pipe, piece, Some(place)).is_some_and(|record| f.note(Some(&record)).is_ok())
            });
            if let Some((source, count)) = owed.take() {
                take_out(flight, source, count);
            }
            if let Err((written, e)) = self.write(&text[from..from + piece], env) {
                if let Some(flight) = env.in_flight {
                    flight.written();
                }
                self.fail("cannot write its log", &e, env);
                self.drop_bytes(&text[from + written..]);
                self.line = Line::Orphaned;
                return false;
            }
            let ended = text[from + piece - 1] == b'\n';
            self.line = if ended { Line::Start } else { Line::Unknown };
            from += piece;
            if self.full(env, ended) {
                self.rotate(env);
            }
        }
        if let (Some(mark), Some(index)) = (mark, self.open.as_mut().and_then(|o| o.index.as_mut())) {
            env.step(0);
            index.mark(mark);
        }
        if let Some(flight) = env.in_flight {
            flight.written();
        }
        true
    }

    fn record(&self, env: &Env<'_>, pipe: Node, length: usize, text: Option<Text>) -> Option<Record> {
        let open = self.open.as_ref()?;
        let (service, stream) = (env.service.into(), self.stream);
        Some(Record { service, stream, file: open.node, at: open.size, length: length as u64, pipe, text })
    }

    /// Moves the pipe's first bytes, which are `data`, to the file, and rotates where they reach the limit.
    fn pass(&mut self, data: &[u8], source: &Source<'_>, env: &Env<'_>) -> bool {
        let mut rest = data;
        while !rest.is_empty() {
            if self.cannot_pour {
                return self.append(rest, Some((source, rest.len())), None, env);
            }
            let piece = self.until_cut(rest, env);
            let flight = env.in_flight.filter(|f| {
                let record = self.record(env, source.node, piece, None);
                source.shared && record.is_some_and(|record| f.note(Some(&record)).is_ok())
            });
            let moved = self.pour(source, piece, env);
            if let Some(flight) = flight {
                flight.done();
            }
            match moved {
                // The service itself has read from its pipe.
                Ok(0) => return true,
                Ok(count) => {
                    let ended = rest[count - 1] == b'\n';
                    self.line = if ended { Line::Start } else { Line::Unknown };
                    rest = &rest[count..];
                    if self.full(env, ended) {
                        self.rotate(env);
                    }
                }
                Err(_) if self.cannot_pour => {}
                Err(e) => {
                    self.fail("cannot write its log", &e, env);
                    self.lose(rest, source);
                    self.line = Line::Orphaned;
                    return false;
                }
            }
        }
        true
    }

    /// How many bytes can be moved without looking at them, if that is allowed at all.
    pub fn blind(&self, pipe: u64, env: &Env<'_>) -> u64 {
        let Some(open) = self.open.as_ref().filter(|_| self.trouble.is_none() && !self.cannot_pour) else {
            return 0;
        };
        if !matches!(self.line, Line::Start | Line::Unknown) && self.line != Line::Of(pipe) {
            return 0;
        }
        if self.may_rotate(env) { env.limits.max_size.saturating_sub(open.size + 1) } else { u64::MAX }
    }

    /// As [`Sink::pour`], of bytes that nobody has looked at; the end of them is put into `tail`.
    pub fn pour_blind(&mut self, source: &Source<'_>, count: usize, tail: &mut [u8], env: &Env<'_>) -> usize {
        // What fails, fails again when it is looked at.
        let moved = self.pour(source, count, env).unwrap_or(0);
        let length = moved.min(tail.len());
        if let Some(open) = self.open.as_ref().filter(|_| moved > 0) {
            let read = open.file.read_exact_at(&mut tail[..length], open.size - length as u64);
            let ended = read.is_ok() && tail[length - 1] == b'\n';
            self.line = if ended { Line::Start } else { Line::Of(source.id) };
            self.line_since = env.now;
        }
        moved
    }

    /// Moves at most so many bytes from the pipe to the end of the file. 0: it is empty.
    fn pour(&mut self, source: &Source<'_>, count: usize, env: &Env<'_>) -> io::Result<usize> {
        let open = self.begin_write(env)?;
        loop {
            match fifo::pour(source.fd, &open.file, open.size, env.step(count)) {
                Ok(count) => {
                    if count > 0 {
                        open.size += count as u64;
                        open.birth_ms.get_or_insert(env.wall_ms);
                    }
                    return Ok(count);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
                Err(e) => {
                    self.cannot_pour = e.raw_os_error() == Some(libc::EINVAL);
                    return Err(e);
                }
            }
        }
    }

    fn begin_write(&mut self, env: &Env<'_>) -> io::Result<&mut Open> {
        let open = self.open.as_mut().ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        if let Some(index) = &mut open.index
            && index.note(env.wall_ms, open.size).is_err()
        {
            open.index = None; // an aid: coarser reading is better than no log
        }
        self.grew = true;
        Ok(open)
    }

    /// All of `data`, or how much of it and why not more.
    pub(super) fn write(&mut self, data: &[u8], env: &Env<'_>) -> Result<(), (usize, io::Error)> {
        let open = self.begin_write(env).map_err(|e| (0, e))?;
        let mut done = 0;
        while done < data.len() {
            let rest = &data[done..];
            match open.file.write_at(&rest[..env.step(rest.len())], open.size) {
                Ok(0) => return Err((done, io::ErrorKind::WriteZero.into())),
                Ok(n) => {
                    done += n;
                    open.size += n as u64;
                    open.birth_ms.get_or_insert(env.wall_ms);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err((done, e)),
            }
        }
        Ok(())
    }
}

/// Takes bytes out of a pipe that a text stands for.
fn take_out(flight: Option<&InFlight>, source: &Source<'_>, count: usize) {
    let mut left = count;
    if let Some(flight) = flight {
        if flight.take(source.fd, count as u64).is_ok() {
            return;
        }
        // The run directory is full: the service must go on all the same, without that protection.
        left = count.saturating_sub(flight.taken() as usize);
        flight.done();
    }
    discard(source, left);
}

/// Takes bytes out of a pipe and drops them.
fn discard(source: &Source<'_>, mut left: usize) {
    let mut buffer = [0u8; 8192];
    while left > 0 {
        let piece = left.min(buffer.len());
        match nix::unistd::read(source.fd, &mut buffer[..piece]) {
            Ok(0) => return,
            Ok(count) => left -= count,
            Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}
