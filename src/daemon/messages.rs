//! svd's own messages on stderr, written by a thread: a terminal in ^S, a pager that nobody moves or a hung journal must
//! not stop the supervising loop. A daemon's stderr is `svd.log`, which the thread keeps short.

use super::paths::{JOURNAL_BYTES, older};
use super::queue::{Receiver, Sender, queue};
use crate::sys::files;
use nix::unistd::{dup2_stderr, dup2_stdout};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

/// Messages that wait; further ones are counted and left out.
const WAITING: usize = 1024;
/// For what waits when svd ends.
const AT_THE_END: Duration = Duration::from_millis(500);

/// Gives each message to the thread.
#[derive(Clone)]
pub struct Messages {
    lines: Sender<Message>,
    lost: Arc<AtomicU64>,
    reopen: Arc<AtomicBool>,
}

enum Message {
    Line(Vec<u8>),
    /// There may be something to do beside writing.
    Wake,
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Starts the thread. `own_log`: where stderr is this file, by `--daemon`.
///
/// # Errors
/// The kernel gives no thread.
pub fn start(own_log: Option<PathBuf>) -> io::Result<Messages> {
    let (lines, waiting) = queue(WAITING);
    let messages = Messages { lines, lost: Arc::default(), reopen: Arc::default() };
    let (lost, reopen) = (Arc::clone(&messages.lost), Arc::clone(&messages.reopen));
    std::thread::Builder::new()
        .name("svd-messages".into())
        .stack_size(64 * 1024)
        .spawn(move || write_all(&waiting, own_log.as_deref(), &lost, &reopen))?;
    Ok(messages)
}

fn write_all(waiting: &Receiver<Message>, own_log: Option<&Path>, lost: &AtomicU64, reopen: &AtomicBool) {
    while let Ok(message) = waiting.recv() {
        if let Some(path) = own_log {
            keep_short(path, reopen.swap(false, Ordering::Relaxed));
        }
        let line = match message {
            Message::Line(line) => line,
            Message::Wake => continue,
            Message::Flush(done) => {
                // Whoever asked may have given up.
                let _ = done.try_send(());
                continue;
            }
        };
        let mut stderr = io::stderr().lock();
        // Nobody reads any more: there is nothing better to do with it.
        let _ = stderr.write_all(&line);
        let missed = lost.swap(0, Ordering::Relaxed);
        if missed > 0 {
            let _ = writeln!(stderr, "svd: {missed} messages were left out: they were not read fast enough");
        }
    }
}

/// Renames `svd.log` when it is long, and opens it anew then or when somebody else has renamed it. What cannot be done is
/// tried again at the next message; until then the old file grows.
fn keep_short(path: &Path, reopen: bool) {
    let Ok(now) = nix::sys::stat::fstat(io::stderr()) else { return };
    let long = u64::try_from(now.st_size).unwrap_or(0) >= JOURNAL_BYTES;
    if !long && !reopen {
        return;
    }
    // Only its own: the name may be another file's by now.
    let same = |m: std::fs::Metadata| (m.dev(), m.ino()) == (now.st_dev, now.st_ino);
    if long && std::fs::metadata(path).is_ok_and(same) {
        let _ = std::fs::rename(path, older(path));
    }
    if let Err(e) = open_own(path).and_then(|log| Ok((dup2_stdout(&log)?, dup2_stderr(&log)?))) {
        let _ = writeln!(io::stderr(), "svd: cannot open {}: {}, ignoring", path.display(), crate::sys::io_text(&e));
    }
}

/// `svd.log`, to write at its end.
///
/// # Errors
/// Of [`files::append`].
pub fn open_own(path: &Path) -> io::Result<File> {
    files::append(path, 0o640)
}

impl Messages {
    /// Opens `svd.log` by its name again (USR2). Never blocks.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
        // Where the queue is full, there are others to wake it.
        let _ = self.lines.try_send(Message::Wake);
    }

    /// Waits until what was said is written, but not for a reader who does not read.
    pub fn flush_at_the_end(&self) {
        let (done, written) = sync_channel(1);
        if self.lines.try_send(Message::Flush(done)).is_ok() {
            // Too late is as good: the process ends.
            let _ = written.recv_timeout(AT_THE_END);
        }
    }
}

impl Write for Messages {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.lines.try_send(Message::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
