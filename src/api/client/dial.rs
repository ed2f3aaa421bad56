//! How a connection to svd is made: on this host by its UNIX socket; others bring their own.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

use super::ClientError;

/// Why there is no connection where svd has ended in order.
pub(super) const NO_SOCKET: &str = "there is no such socket";

/// What HTTP is spoken over.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A connection that is being made.
pub type Dialing<'a> = Pin<Box<dyn Future<Output = Result<Box<dyn Io>, ClientError>> + Send + 'a>>;

/// A way to one svd.
pub trait Dial: Send + Sync {
    /// A new connection.
    fn dial(&self) -> Dialing<'_>;

    /// Where it leads, for messages.
    fn place(&self) -> &str;

    /// A connection costs so much that it is kept for the next request.
    fn is_dear(&self) -> bool {
        false
    }
}

/// The control socket of this host's svd.
pub struct Unix {
    socket: PathBuf,
    shown: String,
}

impl Unix {
    pub fn new(socket: &Path) -> Unix {
        Unix { socket: socket.to_path_buf(), shown: socket.display().to_string() }
    }
}

impl Dial for Unix {
    fn dial(&self) -> Dialing<'_> {
        Box::pin(async { Ok(Box::new(connect(&self.socket).await?) as Box<dyn Io>) })
    }

    fn place(&self) -> &str {
        &self.shown
    }
}

/// Connects with a control socket.
///
/// # Errors
/// [`ClientError::Unreachable`], [`ClientError::Denied`], [`ClientError::Local`].
pub async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    let place = || socket.display().to_string().into_boxed_str();
    let mut wait = Duration::from_millis(1);
    loop {
        let error = match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let why = match error.kind() {
            // The queue of connections is full for a moment (connect(2) on a non-blocking UNIX socket).
            io::ErrorKind::WouldBlock if wait < Duration::from_secs(2) => {
                tokio::time::sleep(wait).await;
                wait *= 2;
                continue;
            }
            io::ErrorKind::WouldBlock => "it has more connections waiting than it takes",
            io::ErrorKind::NotFound => NO_SOCKET,
            io::ErrorKind::ConnectionRefused => "nobody listens there",
            io::ErrorKind::NotADirectory => "a part of the path is no directory",
            // Closed before it was taken: nothing has been asked yet.
            io::ErrorKind::ConnectionReset => "it ends at this moment",
            io::ErrorKind::PermissionDenied => return Err(ClientError::Denied { place: place() }),
            io::ErrorKind::InvalidInput => "the path is too long for a socket (107 bytes)",
            _ => {
                return Err(ClientError::Local { message: "svctl cannot connect to svd", source: error });
            }
        };
        return Err(ClientError::Unreachable { place: place(), why: why.into() });
    }
}
