//! Requests to one svd, over whatever leads to it.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::super::frames::PROTOCOL;
use super::super::http::POSITION;
use super::super::types::{ApiError, ErrorCode, LogPosition, Progress};
use super::{ClientError, Dial, Io};

/// Longest line of a streamed answer; svd's are far below.
const MAX_LINE: usize = 64 * 1024 * 1024;

type Sender = SendRequest<Full<Bytes>>;

/// Sends requests to one svd, each on a connection of its own, unless those are dear: then one is kept.
///
/// Needs a tokio runtime with its timers and I/O; a connection that is kept belongs to the runtime that made it.
pub struct Caller {
    dial: Arc<dyn Dial>,
    kept: Mutex<Option<Sender>>,
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

impl Caller {
    pub fn new(dial: Arc<dyn Dial>) -> Caller {
        Caller { dial, kept: Mutex::default() }
    }

    /// The body of a short answer, as JSON text.
    ///
    /// # Errors
    /// [`ClientError::Api`] where svd says no; else what went wrong on the way.
    pub async fn get(&self, path: &str) -> Result<Bytes, ClientError> {
        let response = self.open("GET", path, None).await?;
        let body = response.into_body().collect().await;
        Ok(body.map_err(|_| ClientError::Lost)?.to_bytes())
    }

    /// [`Caller::get`], understood.
    pub async fn fetch<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let body = self.get(path).await?;
        serde_json::from_slice(&body).map_err(|e| self.nonsense(e.to_string()))
    }

    /// A long operation: `progress` sees each line until it has enough, and then the connection is closed; the result is
    /// JSON text.
    ///
    /// # Errors
    /// As [`Caller::get`]; [`ClientError::Lost`] also when it had enough.
    pub async fn act(
        &self,
        path: &str,
        body: Option<&serde_json::Value>,
        mut progress: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Box<RawValue>, ClientError> {
        let body = body.map(|b| Bytes::from(b.to_string()));
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
    }

    /// A stream of lines, until it ends or `each` has enough.
    ///
    /// # Errors
    /// As [`Caller::get`]; [`ClientError::Lost`] when it ended because svd did.
    pub async fn each_line(
        &self,
        path: &str,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let response = self.open("GET", path, None).await?;
        self.lines(response, |line| Ok(each(line))).await
    }

    /// A stream of bytes, until it ends or `each` has enough. `begin` gets the position of the first byte, where the log has one.
    ///
    /// # Errors
    /// As [`Caller::each_line`].
    pub async fn each_block(
        &self,
        path: &str,
        begin: impl FnOnce(Option<LogPosition>),
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
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
    }

    pub(super) fn nonsense(&self, why: String) -> ClientError {
        ClientError::Nonsense { place: self.dial.place().into(), why }
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
        let mut request = Request::builder().method(method).uri(path).header(HOST, "svd");
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(body.unwrap_or_default()))
            .map_err(|e| ClientError::Api(ApiError::new(ErrorCode::BadRequest, e.to_string())))?;
        let response = self.send(request).await?;
        let is_lines = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|t| t.as_bytes() == super::super::reply::NDJSON.as_bytes());
        if response.status().is_success() || is_lines {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    /// svd's own word for why it does not.
    async fn refusal(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        let Ok(body) = response.into_body().collect().await else { return ClientError::Lost };
        match serde_json::from_slice(&body.to_bytes()) {
            Ok(Line { error: Some(error), .. }) => error.into(),
            _ => self.nonsense(format!("status {status} without a reason")),
        }
    }

    /// A connection of its own on which both sides talk from now on, by [`super::super::frames`].
    ///
    /// # Errors
    /// As [`Caller::get`].
    pub async fn talk(&self, path: &str, body: &serde_json::Value) -> Result<impl Io + use<>, ClientError> {
        let request = Request::builder().method("POST").uri(path).header(HOST, "svd");
        let request = request.header(CONTENT_TYPE, "application/json").header(CONNECTION, "upgrade");
        let request = request.header(UPGRADE, PROTOCOL).body(Full::new(Bytes::from(body.to_string())));
        let request = request.map_err(|e| ClientError::Api(ApiError::new(ErrorCode::BadRequest, e.to_string())))?;
        let stream = self.dial.dial().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| ClientError::Lost)?;
        tokio::spawn(connection.with_upgrades());
        let response = sender.send_request(request).await.map_err(|_| ClientError::Lost)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(self.refusal(response).await);
        }
        hyper::upgrade::on(response).await.map(TokioIo::new).map_err(|_| ClientError::Lost)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, ClientError> {
        let failed = |error: hyper::Error| match error.is_parse() {
            true => self.nonsense(error.to_string()),
            false => ClientError::Lost,
        };
        let mut request = request;
        if let Some(mut sender) = self.take_kept().await {
            match sender.try_send_request(request).await {
                Ok(response) => {
                    self.keep(sender);
                    return Ok(response);
                }
                // svd has ended the connection meanwhile, and has heard nothing of this.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(failed(error.into_error())),
                },
            }
        }
        let stream = self.dial.dial().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|_| ClientError::Lost)?;
        // It ends by itself when the answer is read or dropped, or when nobody can send any more.
        tokio::spawn(connection);
        let response = sender.send_request(request).await.map_err(failed)?;
        if self.dial.is_dear() {
            self.keep(sender);
        }
        Ok(response)
    }

    fn keep(&self, sender: Sender) {
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    }

    /// The connection that was kept, if its last answer has been read.
    async fn take_kept(&self) -> Option<Sender> {
        let sender = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        // Lets the connection find out that it is done, or that it has ended: once for the kernel's events, once for what
        // the connection makes of them.
        for _ in 0..2 {
            tokio::task::yield_now().await;
        }
        sender.is_ready().then_some(sender)
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
