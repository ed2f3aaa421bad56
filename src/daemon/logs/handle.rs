//! The way from the daemon to the log thread and back: commands over a bounded queue, answers by one-shot channels,
//! notifications by a callback.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::oneshot;

use super::compress;
use super::engine::Engine;
use super::inflight::InFlight;
use super::names::Stream;
use super::signal::{Signal, Subscription};
use super::sink::Lost;
use crate::config::spec::Logs;

/// Commands that may wait for the log thread. A start of 1,000 services sends 3,000 at once; a thread that hangs on a dead
/// disk must not fill the memory.
pub const COMMANDS_MAX: usize = 16_384;

/// The thread has shallow calls and its large buffers on the heap.
const STACK: usize = 256 * 1024;

/// An attached pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PipeId(pub u64);

/// A text that is watched for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WatchId(pub u64);

/// What the log thread tells unasked. At most one a pipe and a watch, and one a second and file for trouble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// Everything that came from the pipe is written; it is closed.
    Drained { pipe: PipeId },
    /// The watched text has come; the watch is over.
    Matched { watch: WatchId },
    /// A file cannot be rotated, say; a sentence for the operator.
    Trouble { service: Box<str>, text: String },
    /// Something that a death of svd has interrupted was put in order; a sentence for the operator.
    Mended { service: Box<str>, text: String },
    /// Output cannot be written, and is lost until [`LogEvent::Recovered`]; why, and what follows.
    Failing { service: Box<str>, stream: Stream, why: String },
    /// Output is written again, and so much of it was lost. Not only when some comes: it is tried by a timer.
    Recovered { service: Box<str>, stream: Stream, lost: Lost },
    /// The service is forgotten while its output could not be written: so much was lost, of which no log tells.
    GivenUp { service: Box<str>, stream: Stream, lost: Lost },
}

/// Called on the log thread; it must not block.
pub type Notify = Box<dyn Fn(LogEvent) + Send>;

/// What the log thread is started with.
pub struct Options {
    /// Holds one folder a service, made when its first byte comes.
    pub log_dir: PathBuf,
    pub notify: Notify,
    /// Called first in each thread that compresses: lowers its priority.
    pub lower_priority: Option<fn()>,
    /// Without it, a death of svd may lose or tear what it moves at that moment.
    pub in_flight: Option<InFlight>,
}

/// Why a command was not taken.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LogError {
    #[error("the log thread has {COMMANDS_MAX} commands waiting: the disk of the log directory may hang")]
    Busy,
    #[error("the log thread has ended")]
    Ended,
}

/// How a service's capture is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogStatus {
    /// Lost since svd started, because nothing could be written.
    pub lost: Lost,
    /// Why nothing can be written now.
    pub trouble: Option<String>,
}

/// An attached pipe's origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attach {
    pub service: Arc<str>,
    pub generation: u64,
    pub worker: u32,
    pub stream: Stream,
    /// It was there before svd was started: taken over from one that was killed.
    pub adopted: bool,
}

/// A generation, for the line that tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Begins {
    pub generation: u64,
    pub release: Option<Arc<str>>,
    pub at: SystemTime,
    /// It was there before svd was started: a file may have the line already.
    pub adopted: bool,
}

pub(super) enum Command {
    Configure(Arc<str>, Box<Logs>),
    Remove(Arc<str>),
    Generation {
        service: Arc<str>,
        begins: Begins,
    },
    Attach(PipeId, Attach, OwnedFd),
    Detach(PipeId),
    Reopen,
    Rotate(Arc<str>, oneshot::Sender<bool>),
    Tail(Arc<str>, Option<u64>, usize, oneshot::Sender<Vec<u8>>),
    Status(Arc<str>, oneshot::Sender<LogStatus>),
    Watch {
        id: WatchId,
        service: Arc<str>,
        generation: u64,
        worker: Option<u32>,
        text: Box<[u8]>,
    },
    Unwatch(Arc<str>, WatchId),
    Subscribe(Arc<str>, Stream, Arc<Signal>),
    Compressed(io::Result<compress::Done>),
    /// `leave`: what the pipes hold is left to the next svd.
    Shutdown {
        leave: bool,
    },
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Command>,
    ended: bool,
}

pub(super) struct Shared {
    queue: Mutex<Queue>,
    pub wake: EventFd,
    ids: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while it is held.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `limit` is waived for the thread's own messages, of which there is at most one.
    pub fn push(&self, command: Command, limit: usize) -> Result<(), LogError> {
        let first = {
            let mut queue = self.lock();
            if queue.ended {
                return Err(LogError::Ended);
            }
            if queue.commands.len() >= limit {
                return Err(LogError::Busy);
            }
            queue.commands.push_back(command);
            queue.commands.len() == 1
        };
        if first {
            // It can fail only when the counter is at its end: then it is readable as well.
            let _ = self.wake.write(1);
        }
        Ok(())
    }

    pub fn take(&self) -> VecDeque<Command> {
        let _ = self.wake.read();
        std::mem::take(&mut self.lock().commands)
    }

    pub fn end(&self) {
        let mut queue = self.lock();
        queue.ended = true;
        queue.commands = VecDeque::new();
    }
}

/// For the last bytes, at the end.
const END_LIMIT: Duration = Duration::from_secs(10);

/// The running thread; its owner ends it.
pub struct LogThread {
    handle: LogHandle,
    join: Option<JoinHandle<()>>,
}

impl LogThread {
    /// Starts the thread. Errors: the kernel gives no epoll, eventfd or thread.
    pub fn start(options: Options) -> io::Result<LogThread> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            wake: EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            ids: AtomicU64::new(1),
        });
        let mut engine = Engine::new(options, shared.clone())?;
        let join = std::thread::Builder::new().name("svd-logs".into()).stack_size(STACK).spawn(move || engine.run())?;
        Ok(LogThread { handle: LogHandle(shared), join: Some(join) })
    }

    pub fn handle(&self) -> LogHandle {
        self.handle.clone()
    }

    /// Writes all that the pipes hold, closes everything and waits for the thread; not longer than [`END_LIMIT`], as a disk
    /// that hangs must not keep svd from ending.
    pub fn shutdown(mut self) {
        self.end(false);
    }

    /// As [`LogThread::shutdown`], but leaves in the pipes what is there, for the svd that goes on.
    pub fn leave(mut self) {
        self.end(true);
    }

    fn end(&mut self, leave: bool) {
        // Ended already is as good.
        let _ = self.handle.0.push(Command::Shutdown { leave }, usize::MAX);
        let Some(join) = self.join.take() else { return };
        let until = Instant::now() + END_LIMIT;
        while !join.is_finished() {
            if Instant::now() >= until {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = join.join();
    }
}

impl Drop for LogThread {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Sends commands; none of its methods blocks. Answers are futures that also have `blocking_recv`; they fail when the
/// thread has ended.
#[derive(Clone)]
pub struct LogHandle(Arc<Shared>);

impl LogHandle {
    fn send(&self, command: Command) -> Result<(), LogError> {
        self.0.push(command, COMMANDS_MAX)
    }

    fn id(&self) -> u64 {
        self.0.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a service known, or changes its limits and format from the next byte on.
    pub fn configure(&self, service: Arc<str>, logs: Logs) -> Result<(), LogError> {
        self.send(Command::Configure(service, Box::new(logs)))
    }

    /// Forgets a service. Its pipes are drained and closed first.
    pub fn remove(&self, service: Arc<str>) -> Result<(), LogError> {
        self.send(Command::Remove(service))
    }

    /// A generation begins: its first output comes after a line that says so, in each file.
    pub fn begin_generation(&self, service: Arc<str>, begins: Begins) -> Result<(), LogError> {
        self.send(Command::Generation { service, begins })
    }

    /// Moves what comes from `read_end` (a pipe or a FIFO; made non-blocking) to the service's file, until end of file or
    /// [`LogHandle::detach`]; then [`LogEvent::Drained`]. A service that is not known is configured as [`Logs`] of a file
    /// without `[logs]` would be.
    pub fn attach(&self, origin: Attach, read_end: OwnedFd) -> Result<PipeId, LogError> {
        let id = PipeId(self.id());
        self.send(Command::Attach(id, origin, read_end))?;
        Ok(id)
    }

    /// The worker is gone: what the pipe holds is written, then it is closed, even when a descendant holds it open.
    pub fn detach(&self, pipe: PipeId) -> Result<(), LogError> {
        self.send(Command::Detach(pipe))
    }

    /// Opens all files by their names again (USR2), for an external logrotate.
    pub fn reopen(&self) -> Result<(), LogError> {
        self.send(Command::Reopen)
    }

    /// Rotates the service's files now. True if there was something to rotate.
    pub fn rotate(&self, service: Arc<str>) -> Result<oneshot::Receiver<bool>, LogError> {
        let (tx, rx) = oneshot::channel();
        self.send(Command::Rotate(service, tx))?;
        Ok(rx)
    }

    /// The last output of a generation (`None`: the newest), at most `max` bytes and [`super::TAIL_MAX`].
    pub fn tail(
        &self,
        service: Arc<str>,
        generation: Option<u64>,
        max: usize,
    ) -> Result<oneshot::Receiver<Vec<u8>>, LogError> {
        let (tx, rx) = oneshot::channel();
        self.send(Command::Tail(service, generation, max, tx))?;
        Ok(rx)
    }

    pub fn status(&self, service: Arc<str>) -> Result<oneshot::Receiver<LogStatus>, LogError> {
        let (tx, rx) = oneshot::channel();
        self.send(Command::Status(service, tx))?;
        Ok(rx)
    }

    /// Tells once ([`LogEvent::Matched`]) when a generation's output (of one worker, or of any) has contained `text`, from
    /// now on: watch before you attach.
    pub fn watch(
        &self,
        service: Arc<str>,
        generation: u64,
        worker: Option<u32>,
        text: &[u8],
    ) -> Result<WatchId, LogError> {
        let id = WatchId(self.id());
        self.send(Command::Watch { id, service, generation, worker, text: text.into() })?;
        Ok(id)
    }

    pub fn unwatch(&self, service: Arc<str>, watch: WatchId) -> Result<(), LogError> {
        self.send(Command::Unwatch(service, watch))
    }

    /// A subscription to the growth and rotation of one file. Subscribe before you read: then nothing is missed.
    pub fn subscribe(&self, service: Arc<str>, stream: Stream) -> Result<Subscription, LogError> {
        let signal = Arc::new(Signal::default());
        self.send(Command::Subscribe(service, stream, signal.clone()))?;
        Ok(Subscription(signal))
    }
}
