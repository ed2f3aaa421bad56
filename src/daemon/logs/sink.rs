//! One log file being written: opened when the first byte comes, rotated by size and age, and, where nothing can be
//! written, a counter of what was lost.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::format;
use super::handle::{LogEvent, Notify};
use super::index::{self, Index};
use super::inflight::{InFlight, Node};
use super::names::{Names, Stream};
use super::rotate::{self, Tidied};
use crate::config::spec::Logs;
use crate::sys::files::{self, Access};
use crate::sys::trust::{self, Rule};

mod writing;

/// How far beyond its limit a file may grow while it waits for the end of a line to be cut at.
pub(super) const CUT_SLACK: u64 = 64 * 1024;

/// How long a failed write or rotation waits for the next try. A timer tries again to write; a rotation waits for output.
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
    pub in_flight: Option<&'a InFlight>,
}

impl Env<'_> {
    /// See [`InFlight::step`].
    pub fn step(&self, count: usize) -> usize {
        self.in_flight.map_or(count, |f| f.step(count))
    }
}

/// The pipe that bytes are taken out of.
pub(super) struct Source<'a> {
    pub id: u64,
    pub fd: BorrowedFd<'a>,
    pub node: Node,
    /// Others go into the same file.
    pub shared: bool,
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

/// Nothing can be written, or something was not that the log has to tell of.
#[derive(Debug, Default)]
struct Trouble {
    why: String,
    /// [`LogEvent::Failing`] was sent.
    told: bool,
    /// `None`: nothing speaks against a try now.
    retry_at: Option<Instant>,
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
    node: Node,
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
    /// Why there was trouble last: the rest of a line whose beginning went with it is lost for the same reason.
    last_why: Box<str>,
    /// The next try has its timer.
    pub retry_timer: bool,
    /// A rotation failed: not tried before.
    rotate_after: Option<Instant>,
    pub lost: Lost,
    /// Bytes or files came since the flag was cleared: followers want to know.
    pub grew: bool,
    /// There may be a file to compress.
    pub rotated: bool,
    /// The rotation by age has its timer.
    pub age_timer: bool,
    /// The file system cannot take bytes out of a pipe by itself.
    cannot_pour: bool,
}

impl Sink {
    pub fn new(stream: Stream, now: Instant) -> Sink {
        Sink {
            stream,
            open: None,
            line: Line::Start,
            line_since: now,
            trouble: None,
            last_why: Box::default(),
            retry_timer: false,
            rotate_after: None,
            lost: Lost::default(),
            grew: false,
            rotated: false,
            age_timer: false,
            cannot_pour: false,
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
        // The folder itself may be the service's; where it is may not.
        trust::parents(names.dir(), Rule::Logs)?;
        let Tidied { highest, marked, interrupted } = rotate::tidy(&names)?;
        if let Some(interrupted) = interrupted {
            let text = format!("a rotation of its log, in whose midst svd was killed: {interrupted}");
            (env.notify)(LogEvent::Mended { service: env.service.into(), text });
        }
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
                if let Some(index) = &mut index {
                    index.mark(marked);
                    if size > 0 {
                        let _ = index.note(birth, 0);
                    }
                }
                (index, highest + 1, (size > 0).then_some(birth))
            }
        };
        self.line = if size == 0 { Line::Start } else { Line::Unknown };
        let mut last = [0u8];
        if size > 0 && file.read_exact_at(&mut last, size - 1).is_ok() && last[0] == b'\n' {
            self.line = Line::Start;
        }
        self.open = Some(Open { file, node: Node::of(&meta), sequence, size, birth_ms: first, index });
        self.rotated = true; // an earlier svd may have left something to compress
        Ok(())
    }

    /// An svd before was killed, and this pipe may have begun the line that the file ends with.
    pub fn inherit(&mut self, pipe: u64, env: &Env<'_>) {
        let unfinished = |path: &Path| -> io::Result<bool> {
            let file = files::open(path, Access::Read)?;
            let (size, mut last) = (file.metadata()?.size(), [0u8]);
            Ok(size > 0 && file.read_exact_at(&mut last, size - 1).is_ok() && last[0] != b'\n')
        };
        // A file that ends with a line is opened by the next byte, as always.
        if self.open.is_none()
            && unfinished(&self.names(env.dir).current()).unwrap_or(false)
            && self.ready(env)
            && self.line == Line::Unknown
        {
            self.line = Line::Of(pipe);
            self.line_since = env.now;
        }
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
        if self.trouble.as_ref().is_some_and(|t| t.retry_at.is_some_and(|at| env.now < at)) {
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
        // Somebody may have cut it (logrotate's copytruncate): going on where it was would leave a hole.
        if let Some(open) = &mut self.open
            && let Ok(meta) = open.file.metadata()
        {
            open.size = open.size.min(meta.size());
        }
        if self.due_ms(env.limits).is_some_and(|due| env.wall_ms >= due) {
            self.rotate(env);
        }
        true
    }

    fn fail(&mut self, doing: &str, error: &io::Error, env: &Env<'_>) {
        let why = sentence(error);
        let trouble = self.trouble.get_or_insert_default();
        trouble.retry_at = Some(env.now + RETRY);
        if !std::mem::replace(&mut trouble.told, true) {
            let why = format!("{doing}: {why}");
            (env.notify)(LogEvent::Failing { service: env.service.into(), stream: self.stream, why });
        }
        trouble.why = why;
    }

    /// The file is forgotten: nobody will write again what could not be written.
    pub fn give_up(&mut self, env: &Env<'_>) {
        if let Some(trouble) = self.trouble.take() {
            let lost = Lost { bytes: trouble.bytes, lines: trouble.lines };
            (env.notify)(LogEvent::GivenUp { service: env.service.into(), stream: self.stream, lost });
        }
    }

    /// The rest of a line whose beginning is lost is about to be. Where writing works again meanwhile, that is one more loss,
    /// which the next write tells of.
    pub fn expect_rest(&mut self) {
        if self.trouble.is_none() {
            self.trouble = Some(Box::new(Trouble { why: self.last_why.to_string(), ..Trouble::default() }));
        }
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
        let recovered = |stream, lost| LogEvent::Recovered { service: env.service.into(), stream, lost };
        if trouble.bytes == 0 {
            (env.notify)(recovered(self.stream, Lost::default()));
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
                self.last_why = self.trouble.take().map(|t| t.why.into()).unwrap_or_default();
                self.line = Line::Start;
                (env.notify)(recovered(self.stream, lost));
                true
            }
            Err((_, e)) => {
                self.line = Line::Orphaned;
                self.fail("cannot write", &e, env);
                false
            }
        }
    }

    // ---- rotation ------------------------------------------------------------------------------------------------

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
        let file = files::create_anew(&fresh, FILE_MODE)?;
        env.step(0);
        let meta = file.metadata()?;
        let inode = meta.ino();
        let mut index = Index::create(&names.index(inode), sequence, index::guard(&meta)).ok();
        let before = self.open.as_ref().and_then(|o| o.index.as_ref()).map_or(0, Index::marked);
        if let Some(index) = &mut index {
            index.mark(before);
        }
        env.step(0);
        let shifted = rotate::shift(&names, env.limits.keep);
        env.step(0);
        shifted.and_then(|()| fs::rename(&fresh, names.current())).inspect_err(|_| {
            let _ = fs::remove_file(&fresh);
            let _ = fs::remove_file(names.index(inode));
        })?;
        self.open = Some(Open { file, node: Node::of(&meta), sequence, size: 0, birth_ms: None, index });
        Ok(())
    }
}

/// Not for appending, which `splice(2)` refuses: whoever writes says where.
pub(super) fn open_log(path: &Path) -> io::Result<File> {
    files::open_or_create(path, FILE_MODE)
}

/// `No space left on device` without the number that `io::Error` adds.
fn sentence(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_string(),
        None => error.to_string(),
    }
}
