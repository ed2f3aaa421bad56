//! svd's own messages on stderr, written by a thread: a terminal in ^S, a pager that nobody moves or a hung journal must
//! not stop the supervising loop.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Messages that wait; further ones are counted and left out.
const WAITING: usize = 1024;
/// For what waits when svd ends.
const AT_THE_END: Duration = Duration::from_millis(500);

/// Gives each message to the thread.
#[derive(Clone)]
pub struct Messages {
    lines: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Starts the thread.
///
/// # Errors
/// The kernel gives no thread.
pub fn start() -> io::Result<Messages> {
    let (lines, waiting) = sync_channel(WAITING);
    let lost: Arc<AtomicU64> = Arc::default();
    let counted = Arc::clone(&lost);
    std::thread::Builder::new()
        .name("svd-messages".into())
        .stack_size(64 * 1024)
        .spawn(move || write_all(&waiting, &counted))?;
    Ok(Messages { lines, lost })
}

fn write_all(waiting: &Receiver<Message>, lost: &AtomicU64) {
    while let Ok(message) = waiting.recv() {
        let line = match message {
            Message::Line(line) => line,
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

impl Messages {
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
