//! The one way from `svctl` to svd: HTTP over the control socket, or over whatever leads to another host's.
//!
//! [`Client`] is for programs that do one thing at a time, [`Caller`] for those that wait for many at once. Either takes a [`Dial`],
//! which makes connections.

mod caller;
mod dial;
mod error;

use std::future::Future;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::runtime::Runtime;

use super::types::{LogPosition, Progress};
pub use caller::Caller;
pub use dial::{Dial, Dialing, Io, Unix, connect};
pub use error::{Away, ClientError, NO_SVD, Stage};

/// Where svd listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/airdock/svd.sock";

/// As [`Caller`], for a thread that waits.
pub struct Client {
    caller: Caller,
    runtime: Runtime,
}

/// An event loop for this thread.
///
/// # Errors
/// [`ClientError::Local`], when the process cannot even have an event queue.
pub fn runtime() -> Result<Runtime, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|source| ClientError::Local { message: "svctl cannot prepare its connection", source })
}

impl Client {
    /// For this host's svd. A connection is made for each request; they are cheap, and survive svd's restarts.
    ///
    /// # Errors
    /// [`ClientError::Local`], as [`runtime`].
    pub fn new(socket: &Path) -> Result<Client, ClientError> {
        Client::over(Arc::new(Unix::new(socket)))
    }

    /// The same for the svd that `dial` leads to.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn over(dial: Arc<dyn Dial>) -> Result<Client, ClientError> {
        Ok(Client { caller: Caller::new(dial), runtime: runtime()? })
    }

    /// As [`Caller::get`].
    ///
    /// # Errors
    /// As there.
    pub fn get(&self, path: &str) -> Result<Bytes, ClientError> {
        self.run(self.caller.get(path))
    }

    /// As [`Caller::fetch`].
    ///
    /// # Errors
    /// As there.
    pub fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.run(self.caller.fetch(path))
    }

    /// [`Client::fetch`] with a limit for the whole of it.
    ///
    /// # Errors
    /// As [`Client::get`]; [`ClientError::Lost`] also when it is over.
    pub fn fetch_within<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T, ClientError> {
        self.run(async {
            let answer = tokio::time::timeout(limit, self.caller.fetch(path)).await;
            answer.unwrap_or(Err(ClientError::Lost))
        })
    }

    /// A long operation: `progress` sees each line, the result is JSON text.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub fn act(
        &self,
        path: &str,
        body: Option<&serde_json::Value>,
        mut progress: impl FnMut(&Progress),
    ) -> Result<Box<RawValue>, ClientError> {
        self.act_while(path, body, |line| {
            progress(line);
            ControlFlow::Continue(())
        })
    }

    /// As [`Caller::act`].
    ///
    /// # Errors
    /// As there.
    pub fn act_while(
        &self,
        path: &str,
        body: Option<&serde_json::Value>,
        progress: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Box<RawValue>, ClientError> {
        self.run(self.caller.act(path, body, progress))
    }

    /// As [`Caller::each_line`].
    ///
    /// # Errors
    /// As there.
    pub fn each_line(&self, path: &str, each: impl FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), ClientError> {
        self.run(self.caller.each_line(path, each))
    }

    /// As [`Caller::each_block`].
    ///
    /// # Errors
    /// As there.
    pub fn each_block(
        &self,
        path: &str,
        begin: impl FnOnce(Option<LogPosition>),
        each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        self.run(self.caller.each_block(path, begin, each))
    }

    /// As [`Caller::talk`]; then what both say, to its end.
    ///
    /// # Errors
    /// As there.
    pub fn talk<T>(
        &self,
        path: &str,
        body: &serde_json::Value,
        talk: impl AsyncFnOnce(Box<dyn Io>) -> T,
    ) -> Result<T, ClientError> {
        self.run(async { Ok(talk(Box::new(self.caller.talk(path, body).await?)).await) })
    }

    fn run<T>(&self, future: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        self.runtime.block_on(future)
    }
}

/// A name as a part of a path.
pub fn encode(text: &str) -> String {
    use std::fmt::Write;
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~*,@:".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
