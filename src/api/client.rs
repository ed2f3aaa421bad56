//! The one way from `svctl` to svd: HTTP over the control socket, for programs that do one thing at a time.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;

use super::http::POSITION;
use super::types::{ApiError, ErrorCode, LogPosition, Progress};

/// Where svd listens unless it is told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/airdock/svd.sock";

/// Longest line of a streamed answer; svd's are far below.
const MAX_LINE: usize = 64 * 1024 * 1024;

/// Why svd gave no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is nobody at the socket.
    #[error("svd cannot be reached at {}: {why}.", socket.display())]
    Unreachable { socket: PathBuf, why: &'static str },
    /// The socket does not let this user in.
    #[error("You may not connect to svd at {}: permission denied.", socket.display())]
    Denied { socket: PathBuf },
    /// The connection ended before the answer did.
    #[error("The connection to svd was lost before its answer was complete.")]
    Lost,
    /// Whoever answered is not svd, or of another age.
    #[error("The answer at {} is not svd's: {why}.", socket.display())]
    Nonsense { socket: PathBuf, why: String },
    #[error("{message}")]
    Local {
        message: &'static str,
        #[source]
        source: io::Error,
    },
    /// svd's own answer.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl ClientError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        match self {
            ClientError::Unreachable { .. } => {
                Some("svd is not running, or its run directory is elsewhere: give --socket or AIRDOCK_SOCKET.")
            }
            ClientError::Denied { .. } => {
                Some("Use sudo, or let others in: [[access]] rules, mode or group of [control] in svd.toml.")
            }
            ClientError::Lost => Some("What was begun may have been done; `svctl status` says how things stand."),
            ClientError::Nonsense { .. } => {
                Some("Is --socket the path of svd's own socket, and is svd not newer or older than svctl?")
            }
            ClientError::Local { .. } => None,
            ClientError::Api(error) => error.hint.as_deref(),
        }
    }

    /// The same as an [`ApiError`], for `--json`.
    pub fn to_api(&self) -> ApiError {
        if let ClientError::Api(error) = self {
            return error.clone();
        }
        let code = match self {
            ClientError::Denied { .. } => ErrorCode::Forbidden,
            ClientError::Unreachable { .. } | ClientError::Lost => ErrorCode::Unavailable,
            _ => ErrorCode::Internal,
        };
        let error = ApiError::new(code, self.to_string());
        match self.hint() {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// A connection is made for each request; they are cheap, and survive svd's restarts.
pub struct Client {
    socket: PathBuf,
    runtime: Runtime,
}

/// A line of a long operation.
#[derive(Deserialize)]
struct Line {
    progress: Option<Progress>,
    /// `null` is a result as well.
    #[serde(default, deserialize_with = "present")]
    result: Option<Box<RawValue>>,
    error: Option<ApiError>,
}

fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(value).map(Some)
}

impl Client {
    /// # Errors
    /// [`ClientError::Local`], when the process cannot even have an event queue.
    pub fn new(socket: &Path) -> Result<Client, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| ClientError::Local { message: "svctl cannot prepare its connection", source })?;
        Ok(Client { socket: socket.to_path_buf(), runtime })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The body of a short answer, as JSON text.
    ///
    /// # Errors
    /// [`ClientError::Api`] where svd says no; else what went wrong on the way.
    pub fn get(&self, path: &str) -> Result<Bytes, ClientError> {
        self.run(self.whole(path))
    }

    async fn whole(&self, path: &str) -> Result<Bytes, ClientError> {
        let response = self.open("GET", path, None).await?;
        let body = response.into_body().collect().await;
        Ok(body.map_err(|_| ClientError::Lost)?.to_bytes())
    }

    /// [`Client::get`], understood.
    pub fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.get(path)?;
        serde_json::from_slice(&body).map_err(|e| self.nonsense(e.to_string()))
    }

    /// [`Client::fetch`] with a limit for the whole of it.
    ///
    /// # Errors
    /// As [`Client::get`]; [`ClientError::Lost`] also when it is over.
    pub fn fetch_within<T: DeserializeOwned>(&self, path: &str, limit: Duration) -> Result<T, ClientError> {
        let body = self.run(async {
            let answer = tokio::time::timeout(limit, self.whole(path)).await;
            answer.unwrap_or(Err(ClientError::Lost))
        })?;
        serde_json::from_slice(&body).map_err(|e| self.nonsense(e.to_string()))
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

    /// The same, until `progress` has enough: then the connection is closed.
    ///
    /// # Errors
    /// As [`Client::get`]; [`ClientError::Lost`] also when it had enough.
    pub fn act_while(
        &self,
        path: &str,
        body: Option<&serde_json::Value>,
        mut progress: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Box<RawValue>, ClientError> {
        let body = body.map(|b| Bytes::from(b.to_string()));
        self.run(async {
            let response = self.open("POST", path, body).await?;
            let mut end = None;
            self.lines(response, |line| {
                let line: Line =
                    serde_json::from_slice(line).map_err(|e| self.nonsense(format!("a line of it is odd ({e})")))?;
                if line.progress.as_ref().is_some_and(|line| progress(line).is_break()) {
                    return Ok(ControlFlow::Break(()));
                }
                if let Some(error) = line.error {
                    end = Some(Err(error.into()));
                } else if let Some(result) = line.result {
                    end = Some(Ok(result));
                }
                Ok(match end {
                    Some(_) => ControlFlow::Break(()),
                    None => ControlFlow::Continue(()),
                })
            })
            .await?;
            end.unwrap_or(Err(ClientError::Lost))
        })
    }

    /// A stream of lines, until it ends or `each` has enough.
    ///
    /// # Errors
    /// As [`Client::get`]; [`ClientError::Lost`] when it ended because svd did.
    pub fn each_line(&self, path: &str, mut each: impl FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), ClientError> {
        self.run(async {
            let response = self.open("GET", path, None).await?;
            self.lines(response, |line| Ok(each(line))).await
        })
    }

    /// A stream of bytes, until it ends or `each` has enough. `begin` gets the position of the first byte, where the log has one.
    ///
    /// # Errors
    /// As [`Client::each_line`].
    pub fn each_block(
        &self,
        path: &str,
        begin: impl FnOnce(Option<LogPosition>),
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        self.run(async {
            let response = self.open("GET", path, None).await?;
            let position = response.headers().get(POSITION);
            begin(position.and_then(|p| p.to_str().ok()?.parse().ok()));
            let mut body = response.into_body();
            while let Some(block) = next_block(&mut body).await? {
                if each(&block).is_break() {
                    break;
                }
            }
            Ok(())
        })
    }

    fn run<T>(&self, future: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
        self.runtime.block_on(future)
    }

    fn nonsense(&self, why: String) -> ClientError {
        ClientError::Nonsense { socket: self.socket.clone(), why }
    }

    async fn lines(
        &self,
        response: Response<Incoming>,
        mut each: impl FnMut(&[u8]) -> Result<ControlFlow<()>, ClientError>,
    ) -> Result<(), ClientError> {
        let mut body = response.into_body();
        let mut rest: Vec<u8> = Vec::new();
        while let Some(block) = next_block(&mut body).await? {
            // Only what is new can have the end of the line.
            let mut searched = rest.len();
            rest.extend_from_slice(&block);
            let mut start = 0;
            while let Some(at) = rest[searched..].iter().position(|&b| b == b'\n') {
                let end = searched + at;
                if each(&rest[start..end])?.is_break() {
                    return Ok(());
                }
                start = end + 1;
                searched = start;
            }
            rest.drain(..start);
            if rest.len() > MAX_LINE {
                return Err(self.nonsense("a line does not end".to_string()));
            }
        }
        Ok(())
    }

    /// Sends a request; an answer that is an error becomes one, unless it comes as lines with a result of its own.
    async fn open(&self, method: &str, path: &str, body: Option<Bytes>) -> Result<Response<Incoming>, ClientError> {
        let stream = connect(&self.socket).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| ClientError::Lost)?;
        // It ends by itself when the answer is read or dropped.
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(HOST, "svd");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|e| ClientError::Api(ApiError::new(ErrorCode::BadRequest, e.to_string())))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| if e.is_parse() { self.nonsense(e.to_string()) } else { ClientError::Lost })?;
        let is_lines =
            response.headers().get(CONTENT_TYPE).is_some_and(|t| t.as_bytes() == super::reply::NDJSON.as_bytes());
        if response.status().is_success() || is_lines {
            return Ok(response);
        }
        let status = response.status();
        let body = response.into_body().collect().await;
        let body = body.map_err(|_| ClientError::Lost)?.to_bytes();
        match serde_json::from_slice(&body) {
            Ok(Line { error: Some(error), .. }) => Err(error.into()),
            _ => Err(self.nonsense(format!("status {status} without a reason"))),
        }
    }
}

async fn next_block(body: &mut Incoming) -> Result<Option<Bytes>, ClientError> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(_)) => return Err(ClientError::Lost),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
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
            io::ErrorKind::NotFound => "there is no such socket",
            io::ErrorKind::ConnectionRefused => "nobody listens there",
            io::ErrorKind::NotADirectory => "a part of the path is no directory",
            // Closed before it was taken: nothing has been asked yet.
            io::ErrorKind::ConnectionReset => "it ends at this moment",
            io::ErrorKind::PermissionDenied => {
                return Err(ClientError::Denied { socket: socket.to_path_buf() });
            }
            io::ErrorKind::InvalidInput => "the path is too long for a socket (107 bytes)",
            _ => {
                return Err(ClientError::Local { message: "svctl cannot connect to svd", source: error });
            }
        };
        return Err(ClientError::Unreachable { socket: socket.to_path_buf(), why });
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
