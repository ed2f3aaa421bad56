//! What a client and a command of svd's say to each other on a connection that was upgraded ([`PROTOCOL`]): frames in both directions,
//! each with its kind (a byte), the length of the rest (four bytes, the highest first), and the rest.
//!
//! What is typed is sent as far as svd has room for it ([`WINDOW`]), so that a signal never waits behind input that the command does
//! not take. What is shown is sent as the client takes it.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::results::ExecResult;
use super::types::ApiError;

/// What the connection is upgraded to.
pub const PROTOCOL: &str = "airdock-exec/1";

/// Bytes of input that svd keeps for a command; more may be sent when it has said that it has passed some on.
pub const WINDOW: usize = 64 * 1024;

/// Bytes in a frame; a longer one is nonsense.
pub const LONGEST: usize = 64 * 1024;

/// Of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Input(Bytes),
    /// No more will come.
    InputEnd,
    Resize {
        columns: u16,
        rows: u16,
    },
    /// For the command, by its number.
    Signal(u8),
}

/// Of svd.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// Also all that a terminal shows.
    Output(Bytes),
    Errors(Bytes),
    /// So many bytes of input have been passed on.
    Taken(u32),
    /// The last one.
    Ended(ExecResult),
    /// The last one: the command could not be run, or not to its end.
    Failed(ApiError),
}

const INPUT: u8 = 0;
const INPUT_END: u8 = 1;
const RESIZE: u8 = 2;
const SIGNAL: u8 = 3;
const OUTPUT: u8 = 16;
const ERRORS: u8 = 17;
const TAKEN: u8 = 18;
const ENDED: u8 = 19;
const FAILED: u8 = 20;

/// What can be sent.
pub trait Frame: Sized {
    /// Its kind and its rest.
    fn parts(&self) -> (u8, Bytes);

    /// `None`: there is no such frame.
    fn of(kind: u8, rest: Bytes) -> Option<Self>;
}

impl Frame for Told {
    fn parts(&self) -> (u8, Bytes) {
        match self {
            Told::Input(bytes) => (INPUT, bytes.clone()),
            Told::InputEnd => (INPUT_END, Bytes::new()),
            Told::Resize { columns, rows } => {
                (RESIZE, Bytes::copy_from_slice(&[columns.to_be_bytes(), rows.to_be_bytes()].concat()))
            }
            Told::Signal(number) => (SIGNAL, Bytes::copy_from_slice(&[*number])),
        }
    }

    fn of(kind: u8, rest: Bytes) -> Option<Told> {
        Some(match (kind, &*rest) {
            (INPUT, _) => Told::Input(rest),
            (INPUT_END, []) => Told::InputEnd,
            (RESIZE, &[a, b, c, d]) => {
                Told::Resize { columns: u16::from_be_bytes([a, b]), rows: u16::from_be_bytes([c, d]) }
            }
            (SIGNAL, &[number]) => Told::Signal(number),
            _ => return None,
        })
    }
}

impl Frame for Heard {
    fn parts(&self) -> (u8, Bytes) {
        // Both are ours, and always serialise.
        match self {
            Heard::Output(bytes) => (OUTPUT, bytes.clone()),
            Heard::Errors(bytes) => (ERRORS, bytes.clone()),
            Heard::Taken(count) => (TAKEN, Bytes::copy_from_slice(&count.to_be_bytes())),
            Heard::Ended(result) => (ENDED, serde_json::to_vec(result).unwrap_or_default().into()),
            Heard::Failed(error) => (FAILED, serde_json::to_vec(error).unwrap_or_default().into()),
        }
    }

    fn of(kind: u8, rest: Bytes) -> Option<Heard> {
        Some(match kind {
            OUTPUT => Heard::Output(rest),
            ERRORS => Heard::Errors(rest),
            TAKEN => Heard::Taken(u32::from_be_bytes(rest.as_ref().try_into().ok()?)),
            ENDED => Heard::Ended(serde_json::from_slice(&rest).ok()?),
            FAILED => Heard::Failed(serde_json::from_slice(&rest).ok()?),
            _ => return None,
        })
    }
}

/// The next frame; `None`: the connection has ended between two. Must be awaited to its end.
///
/// # Errors
/// The connection ends within one, or carries something else.
pub async fn read<F: Frame>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<F>> {
    let mut head = [0; 5];
    if from.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut head[1..]).await?;
    let [kind, a, b, c, d] = head;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    if length > LONGEST {
        return Err(nonsense());
    }
    let mut rest = BytesMut::zeroed(length);
    from.read_exact(&mut rest).await?;
    F::of(kind, rest.freeze()).map(Some).ok_or_else(nonsense)
}

fn nonsense() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Sends one frame.
///
/// # Errors
/// The connection has ended.
pub async fn write<F: Frame>(to: &mut (impl AsyncWrite + Unpin), frame: &F) -> io::Result<()> {
    let (kind, rest) = frame.parts();
    let length = u32::try_from(rest.len()).map_err(|_| nonsense())?.to_be_bytes();
    let [a, b, c, d] = length;
    to.write_all(&[kind, a, b, c, d]).await?;
    to.write_all(&rest).await?;
    to.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::ErrorCode;

    async fn through<F: Frame + PartialEq + std::fmt::Debug>(frames: &[F]) {
        let mut wire = Vec::new();
        for frame in frames {
            write(&mut wire, frame).await.expect("memory");
        }
        let mut rest = &*wire;
        for frame in frames {
            assert_eq!(read::<F>(&mut rest).await.expect("a frame").as_ref(), Some(frame));
        }
        assert_eq!(read::<F>(&mut rest).await.expect("the end"), None);
        for cut in 1..wire.len() {
            let mut rest = &wire[..cut];
            while let Ok(Some(_)) = read::<F>(&mut rest).await {}
        }
    }

    #[tokio::test]
    async fn frames_arrive_as_they_were_sent() {
        let bytes = || Bytes::from_static(b"\x00\xffx");
        through(&[
            Told::Input(bytes()),
            Told::Input(Bytes::new()),
            Told::InputEnd,
            Told::Resize { columns: 300, rows: 65535 },
            Told::Signal(15),
        ])
        .await;
        through(&[
            Heard::Output(bytes()),
            Heard::Errors(bytes()),
            Heard::Taken(70_000),
            Heard::Ended(ExecResult { exit_code: Some(3), signal: None }),
            Heard::Failed(ApiError::new(ErrorCode::Failed, "no")),
        ])
        .await;
    }

    #[tokio::test]
    async fn what_is_no_frame_is_refused() {
        for wrong in [&[INPUT, 0, 1, 0, 1][..], &[99, 0, 0, 0, 0], &[SIGNAL, 0, 0, 0, 0], &[RESIZE, 0, 0, 0, 1, 1]] {
            let mut wire = wrong;
            assert!(read::<Told>(&mut wire).await.is_err(), "{wrong:?}");
        }
        assert!(read::<Heard>(&mut &[ENDED, 0, 0, 0, 1, b'x'][..]).await.is_err());
    }
}
