//! One log file being written: opened when the first byte comes, rotated by size and age, and, where nothing can be
//! written, a counter of what was lost.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::format::{self, Origin};
use super::handle::{LogEvent, Notify};
use super::index::{self, Index};
use super::names::{Names, Stream};
use super::rotate;
use crate::config::spec::{LogFormat, Logs};

/// How far beyond its limit a file may grow while it waits for the end of a line to be cut at.
pub(super) const CUT_SLACK: u64 = 64 * 1024;

/// How long a failed write or rotation waits for the next try; only output that comes causes one.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// Formatted output is collected up to this size before it is written: one write for many lines.
const SCRATCH_FLUSH: usize = 64 * 1024;

/// Group may read (log shippers, adm); others must not see what services print.
const FILE_MODE: u32 = 0o640;
const DIR_MODE: u32 = 0o750;

/// What a write needs to know of its surroundings.
pub(super) struct Env<'a> {
    pub service: &'a str,
    /// The service's own folder.
    pub dir: &'a Path,
    pub limits: &'a Logs,
    pub now: Instant,
    pub wall_ms: u64,
    pub notify: &'a Notify,
}

/// Where the file ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// After a newline, or at the beginning.
    Start,
    /// In a line of that pipe.
    Of(u64),
    /// In a line that was there when the file was opened: perhaps of a writer who goes on.
    Unknown,
    /// In a line that nobody finishes any more.
    Orphaned,
}

/// Nothing can be written.
#[derive(Debug)]
struct Trouble {
    why: String,
    retry_at: Instant,
    bytes: u64,
    lines: u64,
}

/// What was lost since svd started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub bytes: u64,
    pub lines: u64,
}

#[derive(Debug)]
struct Open {
    file: File,
    sequence: u64,
    size: u64,
    /// When the first byte came; `None` while empty.
    birth_ms: Option<u64>,
    index: Option<Index>,
}

#[derive(Debug)]
pub(super) struct Sink {
    stream: Stream,
    open: Option<Open>,
    pub line: Line,
    /// When the open line was begun or last went on.
    pub line_since: Instant,
    trouble: Option<Box<Trouble>>,
    /// A rotation failed: not tried before.
    rotate_after: Option<Instant>,
    pub lost: Lost,
    /// Bytes or files came since the flag was cleared: followers want to know.
    pub grew: bool,
    /// There may be a file to compress.
    pub rotated: bool,
    /// The rotation by age has its timer.
    pub age_timer: bool,
}

impl Sink {
    pub fn new(stream: Stream, now: Instant) -> Sink {
        Sink {
            stream,
            open: None,
            line: Line::Start,
            line_since: now,
            trouble: None,
            rotate_after: None,
            lost: Lost::default(),
            grew: false,
            rotated: false,
            age_timer: false,
        }
    }

    pub fn names(&self, dir: &Path) -> Names {
        Names::new(dir, self.stream)
    }

    /// The reason why nothing is written now.
    pub fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().map(|t| t.why.as_str())
    }

    /// When the file is due for a rotation by age: wall-clock milliseconds.
    pub fn due_ms(&self, limits: &Logs) -> Option<u64> {
        let open = self.open.as_ref()?;
        let age = u64::try_from(limits.max_age?.as_millis()).unwrap_or(u64::MAX);
        (open.size > 0).then(|| open.birth_ms?.checked_add(age))?
    }

    // ---- opening -------------------------------------------------------------------------------------------------

    fn open(&mut self, env: &Env<'_>) -> io::Result<()> {
        let names = self.names(env.dir);
        DirBuilder::new().recursive(true).mode(DIR_MODE).create(names.dir())?;
        let highest = rotate::tidy(&names)?;
        let file = open_log(&names.current())?;
        let meta = file.metadata()?;
        let (inode, size, guard) = (meta.ino(), meta.size(), index::guard(&meta));
        let path = names.index(inode);
        let (index, sequence, first) = match Index::resume(&path, guard) {
            Some((index, sequence, first)) => (Some(index), sequence, first),
            None => {
                // Without an index the log goes on all the same.
                let mut index = Index::create(&path, highest + 1, guard).ok();
                let birth =
                    if guard > 0 { guard / 1_000_000 } else { meta.modified().map_or(env.wall_ms, index::millis) };
                if let (true, Some(index)) = (size > 0, &mut index) {
                    let _ = index.note(birth, 0);
                }
                (index, highest + 1, (size > 0).then_some(birth))
            }
        };
        self.line = if size == 0 { Line::Start } else { Line::Unknown };
        let mut last = [0u8];
        if size > 0 && file.read_exact_at(&mut last, size - 1).is_ok() && last[0] == b'\n' {
            self.line = Line::Start;
        }
        self.open = Some(Open { file, sequence, size, birth_ms: first, index });
        self.rotated = true; // an earlier svd may have left something to compress
        Ok(())
    }

    /// Closes the file; the next byte opens it by its name again.
    pub fn reopen(&mut self) {
        // Only a file that was in use: an idle service stays as cheap as it was.
        self.open = None;
        self.grew = true;
    }

    // ---- trouble -------------------------------------------------------------------------------------------------

    /// Can something be written now? Tries to resume when it is time.
    pub fn ready(&mut self, env: &Env<'_>) -> bool {
        if self.trouble.as_ref().is_some_and(|t| env.now < t.retry_at) {
            return false;
        }
        if self.open.is_none()
            && let Err(e) = self.open(env)
        {
            let doing = format!("cannot open {}", self.names(env.dir).current().display());
            self.fail(&doing, &e, env);
            return false;
        }
        if self.trouble.is_some() && !self.resume(env) {
            return false;
        }
        if self.due_ms(env.limits).is_some_and(|due| env.wall_ms >= due) {
            self.rotate(env);
        }
        true
    }

    fn fail(&mut self, doing: &str, error: &io::Error, env: &Env<'_>) {
        let why = sentence(error);
        let retry_at = env.now + RETRY;
        if let Some(trouble) = &mut self.trouble {
            trouble.retry_at = retry_at;
            trouble.why = why;
            return;
        }
        let text = format!(
            "{}: {doing}: {why}. The service goes on; its output is counted and dropped until writing works again.",
            env.service
        );
        self.trouble = Some(Box::new(Trouble { why, retry_at, bytes: 0, lines: 0 }));
        (env.notify)(LogEvent::Trouble { service: env.service.into(), text });
    }

    /// Counts what is not written.
    pub fn drop_bytes(&mut self, data: &[u8]) {
        let lines = data.iter().filter(|b| **b == b'\n').count() as u64;
        let bytes = data.len() as u64;
        self.lost.bytes += bytes;
        self.lost.lines += lines;
        if let Some(trouble) = &mut self.trouble {
            trouble.bytes += bytes;
            trouble.lines += lines;
        }
    }

    /// Writes the line about the loss, whole or not at all as far as the log's reader can tell; it takes the trouble away.
    fn resume(&mut self, env: &Env<'_>) -> bool {
        let Some(trouble) = self.trouble.take() else {
            return true;
        };
        if trouble.bytes == 0 {
            (env.notify)(LogEvent::Recovered { service: env.service.into(), lost: Lost::default() });
            return true;
        }
        let format = env.limits.format;
        let mut line = format::lost(format, env.service, env.wall_ms, trouble.bytes, trouble.lines, &trouble.why);
        if self.line != Line::Start {
            line.insert(0, b'\n');
        }
        let lost = Lost { bytes: trouble.bytes, lines: trouble.lines };
        // Taken out above, so that a failure of this very write is not counted as a loss of the service's.
        self.trouble = Some(trouble);
        match self.write(&line, env) {
            Ok(()) => {
                self.trouble = None;
                self.line = Line::Start;
                (env.notify)(LogEvent::Recovered { service: env.service.into(), lost });
                true
            }
            Err((_, e)) => {
                self.line = Line::Orphaned;
                self.fail("cannot write", &e, env);
                false
            }
        }
    }

    // ---- writing -------------------------------------------------------------------------------------------------

    /// Writes a piece of a pipe's output in the configured format; [`Sink::ready`] said yes. `data` may end in the middle
    /// of a line. What fails is counted; false then.
    pub fn put(&mut self, pipe: u64, origin: &Origin<'_>, data: &[u8], scratch: &mut Vec<u8>, env: &Env<'_>) -> bool {
        let alone = matches!(self.line, Line::Start | Line::Unknown) || self.line == Line::Of(pipe);
        let formatted = env.limits.format != LogFormat::Raw;
        if !alone || (formatted && self.line == Line::Unknown) {
            if !self.append(b"\n", env) {
                self.drop_bytes(data);
                return false;
            }
            self.line = Line::Start;
        }
        let whole = match env.limits.format {
            LogFormat::Raw => self.append(data, env),
            format => self.put_lines(pipe, origin, data, format, scratch, env),
        };
        self.line_since = env.now;
        if self.line != Line::Start && whole {
            self.line = Line::Of(pipe);
        }
        whole
    }

    fn put_lines(
        &mut self,
        pipe: u64,
        origin: &Origin<'_>,
        data: &[u8],
        format: LogFormat,
        scratch: &mut Vec<u8>,
        env: &Env<'_>,
    ) -> bool {
        let stamp = format::time(env.wall_ms).to_string();
        let mut continues = self.line == Line::Of(pipe);
        let mut written = true;
        scratch.clear();
        for line in format::lines(data) {
            if !written {
                self.drop_bytes(line);
                continue;
            }
            match format {
                LogFormat::Json => format::json(scratch, &stamp, origin, line),
                _ => format::timestamped(scratch, &stamp, line, continues),
            }
            continues = false;
            if scratch.len() >= SCRATCH_FLUSH {
                written = self.append(scratch, env);
                scratch.clear();
            }
        }
        written && self.append(scratch, env)
    }

    /// Writes a line of svd's own (a mark) on a line of its own.
    pub fn put_own(&mut self, line: &[u8], env: &Env<'_>) {
        if self.line != Line::Start && !self.append(b"\n", env) {
            return;
        }
        self.append(line, env);
    }

    /// Writes bytes as they are, and rotates where they reach the limit.
    fn append(&mut self, mut data: &[u8], env: &Env<'_>) -> bool {
        while !data.is_empty() {
            let piece = self.until_cut(data, env);
            if let Err((written, e)) = self.write(&data[..piece], env) {
                self.fail("cannot write its log", &e, env);
                self.drop_bytes(&data[written..]);
                self.line = Line::Orphaned;
                return false;
            }
            let ended = data[piece - 1] == b'\n';
            self.line = if ended { Line::Start } else { Line::Unknown };
            data = &data[piece..];
            if self.full(env, ended) {
                self.rotate(env);
            }
        }
        true
    }

    fn may_rotate(&self, env: &Env<'_>) -> bool {
        env.limits.max_size > 0 && self.rotate_after.is_none_or(|t| env.now >= t)
    }

    /// How much of `data` (at least a byte) belongs to this file: up to the first line end at or after the limit, or the
    /// limit and the slack.
    fn until_cut(&self, data: &[u8], env: &Env<'_>) -> usize {
        let size = self.open.as_ref().map_or(0, |o| o.size);
        let limit = env.limits.max_size;
        let len = data.len() as u64;
        if !self.may_rotate(env) || size + len < limit {
            return data.len();
        }
        let from = limit.saturating_sub(size).saturating_sub(1).min(len) as usize;
        let hard = (limit + CUT_SLACK).saturating_sub(size).clamp(1, len) as usize;
        match data.get(from..hard).and_then(|d| d.iter().position(|b| *b == b'\n')) {
            Some(at) => from + at + 1,
            None => hard,
        }
    }

    fn full(&self, env: &Env<'_>, ended: bool) -> bool {
        let size = self.open.as_ref().map_or(0, |o| o.size);
        let limit = env.limits.max_size;
        self.may_rotate(env) && size >= limit && (ended || size >= limit + CUT_SLACK)
    }

    /// All of `data`, or how much of it and why not more.
    fn write(&mut self, data: &[u8], env: &Env<'_>) -> Result<(), (usize, io::Error)> {
        let Some(open) = &mut self.open else {
            return Err((0, io::Error::from_raw_os_error(libc::EBADF)));
        };
        if let Some(index) = &mut open.index
            && index.note(env.wall_ms, open.size).is_err()
        {
            open.index = None; // an aid: coarser reading is better than no log
        }
        self.grew = true;
        let mut done = 0;
        while done < data.len() {
            match open.file.write(&data[done..]) {
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

    // ---- rotation ------------------------------------------------------------------------------------------------

    /// Rotates if there is something; where that fails, the old file is written on. True if it rotated.
    pub fn rotate(&mut self, env: &Env<'_>) -> bool {
        if self.open.as_ref().is_none_or(|o| o.size == 0) {
            return false;
        }
        match self.try_rotate(env) {
            Ok(()) => {
                self.rotate_after = None;
                self.grew = true;
                self.rotated = true;
                true
            }
            Err(e) => {
                if self.rotate_after.is_none() {
                    (env.notify)(LogEvent::Trouble {
                        service: env.service.into(),
                        text: format!(
                            "{}: cannot rotate its log in {}: {}. The file grows on; tried again every second.",
                            env.service,
                            env.dir.display(),
                            sentence(&e)
                        ),
                    });
                }
                self.rotate_after = Some(env.now + RETRY);
                false
            }
        }
    }

    /// The next file is made first: while that is impossible, nothing has moved.
    fn try_rotate(&mut self, env: &Env<'_>) -> io::Result<()> {
        let names = self.names(env.dir);
        let sequence = self.open.as_ref().map_or(0, |o| o.sequence) + 1;
        let fresh = names.fresh();
        let _ = fs::remove_file(&fresh);
        let file = open_log(&fresh)?;
        let meta = file.metadata()?;
        let inode = meta.ino();
        let index = Index::create(&names.index(inode), sequence, index::guard(&meta)).ok();
        rotate::shift(&names, env.limits.keep).and_then(|()| fs::rename(&fresh, names.current())).inspect_err(
            |_| {
                let _ = fs::remove_file(&fresh);
                let _ = fs::remove_file(names.index(inode));
            },
        )?;
        self.open = Some(Open { file, sequence, size: 0, birth_ms: None, index });
        Ok(())
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(FILE_MODE).open(path)
}

/// `No space left on device` without the number that `io::Error` adds.
fn sentence(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_string(),
        None => error.to_string(),
    }
}
