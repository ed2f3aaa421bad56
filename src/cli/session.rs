//! Both sides of a command that runs elsewhere: what is typed here and what it writes, until it ends. The rest of svctl's own terminal
//! is in [`super::screen`].

use std::future::Future;
use std::io::{self, IsTerminal, Read, Write};

use bytes::Bytes;
use nix::unistd::{getpgrp, tcgetpgrp};
use tokio::io::AsyncWrite;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};

use super::exit::CliError;
use super::screen;
use crate::api::client::{ClientError, Io};
use crate::api::frames::{self, Heard, Told, WINDOW};
use crate::api::types::ExecResult;

/// Bytes that are read at once.
const BLOCK: usize = 16 * 1024;
/// Frames that wait.
const WAITING: usize = 4;

/// How it ended.
pub enum Ended {
    Command(ExecResult),
    /// svctl was told to end; so is the command, then.
    Signalled(i32),
}

/// May the terminal be read from? Whoever does so in the background is stopped; there is none where it is not the session's own.
pub fn is_in_foreground() -> bool {
    tcgetpgrp(io::stdin()).map_or(true, |group| group == getpgrp())
}

/// Passes on what is typed, `input` provided, and all that changes here; writes what comes.
///
/// # Errors
/// svd's own; the connection is lost; nobody reads what comes.
pub async fn run(stream: Box<dyn Io>, terminal: bool, input: bool) -> Result<Ended, CliError> {
    let (from, to) = tokio::io::split(stream);
    let (frames, waiting) = mpsc::channel(WAITING);
    let room = Semaphore::new(WINDOW);
    let out = write_beside();
    tokio::select! {
        ended = listen(from, out, &room) => ended,
        () = tell(to, waiting) => Err(ClientError::Lost.into()),
        ended = signals(terminal, &frames) => ended,
        never = read_beside(input, &room, &frames) => never,
    }
}

/// What svd says.
async fn listen(
    mut from: impl tokio::io::AsyncRead + Unpin,
    out: mpsc::Sender<(Bytes, bool)>,
    room: &Semaphore,
) -> Result<Ended, CliError> {
    loop {
        let heard = frames::read(&mut from).await.ok().flatten().ok_or(ClientError::Lost)?;
        let (bytes, errors) = match heard {
            Heard::Output(bytes) => (bytes, false),
            Heard::Errors(bytes) => (bytes, true),
            Heard::Taken(count) => {
                // More than is out would be nonsense, and overflow in the end.
                room.add_permits((count as usize).min(WINDOW.saturating_sub(room.available_permits())));
                continue;
            }
            Heard::Ended(result) => {
                written(out).await?;
                return Ok(Ended::Command(result));
            }
            Heard::Failed(error) => {
                written(out).await?;
                return Err(ClientError::Api(error).into());
            }
        };
        if bytes.is_empty() {
            continue;
        }
        out.send((bytes, errors)).await.map_err(|_| CliError::NobodyReads)?;
    }
}

/// Waits until all is written.
async fn written(out: mpsc::Sender<(Bytes, bool)>) -> Result<(), CliError> {
    // The writer takes an empty block when all before it is out, and leaves.
    let _ = out.send((Bytes::new(), false)).await;
    out.closed().await;
    Ok(())
}

/// A thread that writes: whoever reads slowly must not keep signals from being passed on. Its end closes the channel.
fn write_beside() -> mpsc::Sender<(Bytes, bool)> {
    let (out, mut blocks) = mpsc::channel::<(Bytes, bool)>(1);
    let write = move || {
        while let Some((bytes, errors)) = blocks.blocking_recv().filter(|(bytes, _)| !bytes.is_empty()) {
            let written = match errors {
                true => io::stderr().lock().write_all(&bytes),
                false => {
                    let mut out = io::stdout().lock();
                    out.write_all(&bytes).and_then(|()| out.flush())
                }
            };
            if written.is_err() {
                return;
            }
        }
    };
    // Without a thread nothing is read either, which ends it all.
    let _ = std::thread::Builder::new().name("output".to_owned()).spawn(write);
    out
}

async fn tell(mut to: impl AsyncWrite + Unpin, mut waiting: mpsc::Receiver<Told>) {
    while let Some(frame) = waiting.recv().await {
        if frames::write(&mut to, &frame).await.is_err() {
            // What svd has said last is there to be read.
            return std::future::pending().await;
        }
    }
}

/// What svctl reads, in a thread: it may come never.
async fn read_beside(wanted: bool, room: &Semaphore, frames: &mpsc::Sender<Told>) -> Result<Ended, CliError> {
    let (read, mut blocks) = mpsc::channel::<Bytes>(1);
    if wanted {
        let work = move || {
            let mut block = vec![0; BLOCK];
            loop {
                match io::stdin().lock().read(&mut block) {
                    Ok(0) => return,
                    Ok(count) if read.blocking_send(Bytes::copy_from_slice(&block[..count])).is_err() => return,
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        };
        let _ = std::thread::Builder::new().name("input".to_owned()).spawn(work);
    } else {
        drop(read);
    }
    while let Some(bytes) = blocks.recv().await {
        if let Ok(permits) = room.acquire_many(u32::try_from(bytes.len()).unwrap_or(u32::MAX)).await {
            permits.forget();
        }
        let _ = frames.send(Told::Input(bytes)).await;
    }
    let _ = frames.send(Told::InputEnd).await;
    std::future::pending().await
}

/// With a terminal, its size is passed on, and svctl ends by a signal; without one, the command gets the signals.
async fn signals(terminal: bool, frames: &mpsc::Sender<Told>) -> Result<Ended, CliError> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
    let mut told = Vec::new();
    for kind in kinds {
        told.push((kind.as_raw_value(), listen_for(kind)?));
    }
    let mut resized = listen_for(SignalKind::window_change())?;
    loop {
        let number = tokio::select! {
            number = first(&mut told) => number,
            _ = resized.recv() => {
                if terminal && io::stdout().is_terminal() {
                    let (columns, rows) = screen::size();
                    let number = |size: usize| u16::try_from(size).unwrap_or(u16::MAX);
                    let _ = frames.send(Told::Resize { columns: number(columns), rows: number(rows) }).await;
                }
                continue;
            }
        };
        if terminal {
            return Ok(Ended::Signalled(number));
        }
        let _ = frames.send(Told::Signal(u8::try_from(number).unwrap_or_default())).await;
    }
}

fn listen_for(kind: SignalKind) -> Result<Signal, CliError> {
    let cannot = |source| ClientError::Local { message: "svctl cannot listen for signals", source };
    Ok(signal(kind).map_err(cannot)?)
}

/// The number of the next one.
fn first(told: &mut [(i32, Signal)]) -> impl Future<Output = i32> {
    std::future::poll_fn(move |cx| {
        for (number, signal) in told.iter_mut() {
            if signal.poll_recv(cx).is_ready() {
                return std::task::Poll::Ready(*number);
            }
        }
        std::task::Poll::Pending
    })
}
