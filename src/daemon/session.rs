//! A command with what its client types, on a terminal of its own or on pipes. The client's bytes and the command's pass through
//! here, a block at a time, as fast as either takes them.

use super::exec::{Begun, about_to_end, result_of};
use crate::api::audit::Outcome;
use crate::api::frames::{self, Heard, Told, WINDOW};
use crate::api::reply::Talk;
use crate::api::request::TerminalWanted;
use crate::sys::spawn::{Source, Wire};
use crate::sys::terminal::{self, Size, Terminal};
use bytes::{Bytes, BytesMut};
use nix::errno::Errno;
use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{Notify, mpsc};

/// Bytes that are passed on at once.
const BLOCK: usize = 16 * 1024;
/// Frames for the client that wait for it.
const WAITING: usize = 2;

/// Our ends.
pub struct Session(Ends);

enum Ends {
    Terminal(Rc<AsyncFd<OwnedFd>>),
    Pipes { input: pipe::Sender, output: pipe::Receiver, errors: pipe::Receiver },
}

/// Input that the command has not taken; never more than the window.
#[derive(Default)]
struct Input {
    bytes: RefCell<(BytesMut, bool)>,
    news: Notify,
}

impl Input {
    fn add(&self, more: &[u8]) -> bool {
        let mut bytes = self.bytes.borrow_mut();
        if bytes.0.len() + more.len() > WINDOW || bytes.1 {
            return false;
        }
        bytes.0.extend_from_slice(more);
        self.news.notify_one();
        true
    }

    fn end(&self) {
        self.bytes.borrow_mut().1 = true;
        self.news.notify_one();
    }

    /// `None`: all has been taken, and no more comes.
    async fn next(&self) -> Option<Bytes> {
        loop {
            {
                let mut bytes = self.bytes.borrow_mut();
                let some = bytes.0.len().min(BLOCK);
                if some > 0 {
                    return Some(bytes.0.split_to(some).freeze());
                }
                if bytes.1 {
                    return None;
                }
            }
            self.news.notified().await;
        }
    }
}

/// Where output comes from.
enum Outputs {
    Terminal(Rc<AsyncFd<OwnedFd>>),
    Pipes(pipe::Receiver, pipe::Receiver),
}

/// Where input goes.
enum Sink {
    Terminal(Rc<AsyncFd<OwnedFd>>),
    Pipe(pipe::Sender),
    /// The command takes no more.
    Closed,
}

impl Session {
    /// With what the command gets.
    pub fn new(wanted: Option<&TerminalWanted>) -> io::Result<(Session, Vec<Wire>)> {
        let wire = |fd: &Arc<OwnedFd>, target| Wire { source: Source::Fd(Arc::clone(fd)), target };
        if let Some(wanted) = wanted {
            let Terminal { ours, theirs } = terminal::open(Size { columns: wanted.columns, rows: wanted.rows })?;
            let theirs = Arc::new(theirs);
            let ends = Ends::Terminal(Rc::new(terminal::watch(ours)?));
            return Ok((Session(ends), [0, 1, 2].map(|target| wire(&theirs, target)).into()));
        }
        let (input, their_input) = pipe::pipe()?;
        let (output, their_output) = super::exec::pipe()?;
        let (errors, their_errors) = super::exec::pipe()?;
        let theirs = [their_input.into_blocking_fd()?, their_output, their_errors].map(Arc::new);
        let wires = (0..).zip(&theirs).map(|(target, fd)| wire(fd, target)).collect();
        Ok((Session(Ends::Pipes { input, output, errors }), wires))
    }

    /// Until the command has ended and its client has heard so, or the client has left.
    pub async fn run(self, begun: Begun, mut talk: Talk) {
        let Ok(stream) = talk.begin().await else { return };
        let (from, to) = tokio::io::split(stream);
        let (frames, waiting) = mpsc::channel(WAITING);
        let input = Input::default();
        let terminal = match &self.0 {
            Ends::Terminal(terminal) => Some(Rc::clone(terminal)),
            Ends::Pipes { .. } => None,
        };
        let Begun { ended, signals, .. } = begun;
        let (sink, outputs) = self.split();
        let command = async {
            match outputs {
                Outputs::Terminal(terminal) => pass_terminal(&terminal, &frames).await,
                Outputs::Pipes(output, errors) => {
                    tokio::join!(pass(output, Heard::Output, &frames), pass(errors, Heard::Errors, &frames));
                }
            }
            let last = match result_of(ended.await.unwrap_or_else(about_to_end)) {
                Ok(result) => Heard::Ended(result),
                Err(error) => Heard::Failed(error),
            };
            let _ = frames.send(last).await;
            std::future::pending().await
        };
        let outcome = tokio::select! {
            outcome = tell(to, waiting) => outcome,
            () = listen(from, &input, terminal.as_deref(), &signals) => Outcome::Left,
            () = command => Outcome::Left,
            () = feed(sink, &input, &frames) => Outcome::Left,
        };
        talk.end(outcome);
    }

    fn split(self) -> (Sink, Outputs) {
        match self.0 {
            Ends::Terminal(terminal) => (Sink::Terminal(Rc::clone(&terminal)), Outputs::Terminal(terminal)),
            Ends::Pipes { input, output, errors } => (Sink::Pipe(input), Outputs::Pipes(output, errors)),
        }
    }
}

/// Writes frames for the client, until the last one or until it has left.
async fn tell(mut to: impl AsyncWrite + Unpin, mut waiting: mpsc::Receiver<Heard>) -> Outcome {
    while let Some(frame) = waiting.recv().await {
        if frames::write(&mut to, &frame).await.is_err() {
            return Outcome::Left;
        }
        let outcome = match frame {
            Heard::Ended(_) => Outcome::Done,
            Heard::Failed(error) => Outcome::Failed(error.code),
            _ => continue,
        };
        // It has been told all; whether it is still there makes no difference.
        let _ = to.shutdown().await;
        return outcome;
    }
    Outcome::Left
}

/// What the client says, until it leaves or talks nonsense.
async fn listen(
    mut from: impl AsyncRead + Unpin,
    input: &Input,
    terminal: Option<&AsyncFd<OwnedFd>>,
    signals: &mpsc::Sender<i32>,
) {
    while let Ok(Some(told)) = frames::read(&mut from).await {
        match told {
            Told::Input(bytes) if !input.add(&bytes) => return,
            Told::Input(_) => {}
            Told::InputEnd => input.end(),
            Told::Resize { columns, rows } => {
                // A terminal whose command has closed it has no size.
                let _ = terminal.map(|terminal| terminal::resize(terminal.get_ref(), Size { columns, rows }));
            }
            Told::Signal(number @ 1..=64) => _ = signals.send(number.into()).await,
            Told::Signal(_) => return,
        }
    }
}

/// Gives the command its input as it takes it, and tells the client so.
async fn feed(mut sink: Sink, input: &Input, frames: &mpsc::Sender<Heard>) {
    while let Some(bytes) = input.next().await {
        let written = match &mut sink {
            Sink::Terminal(terminal) => type_in(terminal, &bytes).await,
            Sink::Pipe(pipe) => pipe.write_all(&bytes).await,
            Sink::Closed => Ok(()),
        };
        if written.is_err() {
            sink = Sink::Closed;
        }
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if frames.send(Heard::Taken(count)).await.is_err() {
            break;
        }
    }
    if let Sink::Terminal(terminal) = &sink {
        let end = terminal::end_of_input(terminal.get_ref());
        let _ = type_in(terminal, &[end]).await;
    }
    // A pipe's reader reads its end now.
    drop(sink);
    std::future::pending().await
}

async fn type_in(terminal: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = terminal.writable().await?;
        let written = ready.try_io(|fd| nix::unistd::write(fd.get_ref().as_fd(), bytes).map_err(io::Error::from));
        match written {
            Ok(Ok(count)) => bytes = &bytes[count..],
            Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(e)) => return Err(e),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// What a terminal shows, until nobody has it open any more.
async fn pass_terminal(terminal: &AsyncFd<OwnedFd>, frames: &mpsc::Sender<Heard>) {
    let mut block = vec![0; BLOCK];
    loop {
        let Ok(mut ready) = terminal.readable().await else { return };
        let read = ready.try_io(|fd| nix::unistd::read(fd.get_ref(), &mut block).map_err(io::Error::from));
        match read {
            Ok(Ok(count @ 1..)) => {
                if frames.send(Heard::Output(Bytes::copy_from_slice(&block[..count]))).await.is_err() {
                    return;
                }
            }
            Ok(Err(e)) if e.raw_os_error() == Some(Errno::EINTR as i32) => {}
            // EIO, when it is over.
            Ok(_) => return,
            Err(_would_block) => {}
        }
    }
}

async fn pass(mut output: pipe::Receiver, kind: fn(Bytes) -> Heard, frames: &mpsc::Sender<Heard>) {
    let mut block = vec![0; BLOCK];
    while let Ok(count @ 1..) = output.read(&mut block).await {
        if frames.send(kind(Bytes::copy_from_slice(&block[..count]))).await.is_err() {
            return;
        }
    }
}
