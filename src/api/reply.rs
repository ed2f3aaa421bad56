//! How the daemon answers a [`super::Call`]. Nothing here waits for the client, except where it says so.

use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use super::audit::{AuditRecord, AuditSink, Outcome, Pending};
use super::connections::{Place, Work};
use super::frames::PROTOCOL;
use super::types::{ActionResult, ApiError, ErrorCode, LogPosition, Progress};

/// Progress lines that wait for a slow client; further ones are left out and counted in the next line.
pub const PROGRESS_QUEUE: usize = 64;
/// Blocks of a byte stream that wait for a slow client.
pub const STREAM_QUEUE: usize = 16;

/// Counters of the servers, for `/metrics`.
#[derive(Debug, Default)]
pub struct Counters {
    pub connections: AtomicU64,
    /// Turned away because a limit was reached.
    pub connections_refused: AtomicU64,
    pub requests: AtomicU64,
    /// Not allowed by the access rules.
    pub requests_refused: AtomicU64,
    /// Progress lines left out for slow clients.
    pub progress_dropped: AtomicU64,
    /// Streams ended because the client did not read.
    pub streams_cut: AtomicU64,
}

impl Counters {
    pub(super) fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A response, or its beginning.
#[derive(Debug)]
pub(super) enum Answer {
    Whole {
        status: u16,
        content_type: &'static str,
        body: Bytes,
    },
    /// Lines (or log bytes) as they come, then perhaps one last block that always finds room.
    Stream {
        content_type: &'static str,
        position: Option<LogPosition>,
        blocks: mpsc::Receiver<Bytes>,
        last: Option<oneshot::Receiver<Bytes>>,
        /// A client that takes nothing for long is not cut.
        patient: bool,
    },
    /// The connection goes on in another way.
    Switch,
}

pub(super) const JSON: &str = "application/json";
pub(super) const NDJSON: &str = "application/x-ndjson";
pub(super) const BYTES: &str = "application/octet-stream";

/// The one answer to one call. Dropping it unanswered tells the client that svd failed.
pub struct Reply {
    /// Taken when the response begins.
    head: Option<oneshot::Sender<Answer>>,
    /// Long operations: one JSON value a line.
    lines: bool,
    /// Its client may take its time.
    patient: bool,
    stream: Option<(mpsc::Sender<Bytes>, oneshot::Sender<Bytes>)>,
    dropped: u64,
    counters: Arc<Counters>,
    audit: Option<Pending>,
    /// The client wants to go on in another way.
    upgrade: Option<Upgrade>,
}

/// A connection that may go on in another way, and what is held until it ends.
pub(super) struct Upgrade {
    pub connection: OnUpgrade,
    pub place: Rc<Place>,
}

/// A conversation with a client, by [`super::frames`]. Dropping it ends the connection.
pub struct Talk {
    connection: OnUpgrade,
    /// The connection counts as one, and is at work.
    _place: (Work, Rc<Place>),
    audit: Option<Pending>,
}

impl Talk {
    /// Both directions.
    ///
    /// # Errors
    /// The client has left.
    pub async fn begin(&mut self) -> Result<impl AsyncRead + AsyncWrite + Unpin + use<>, hyper::Error> {
        (&mut self.connection).await.map(TokioIo::new)
    }

    /// For the journal.
    pub fn end(mut self, outcome: Outcome) {
        if let Some(audit) = self.audit.take() {
            audit.write(outcome);
        }
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        if let Some(audit) = self.audit.take() {
            audit.write(Outcome::Left);
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reply").field("lines", &self.lines).finish_non_exhaustive()
    }
}

impl Reply {
    pub(super) fn new(
        lines: bool,
        counters: Arc<Counters>,
        audit: Option<Pending>,
    ) -> (Reply, oneshot::Receiver<Answer>) {
        let (head, answer) = oneshot::channel();
        let reply =
            Reply { head: Some(head), lines, patient: false, stream: None, dropped: 0, counters, audit, upgrade: None };
        (reply, answer)
    }

    pub(super) fn may_upgrade(mut self, upgrade: Option<Upgrade>) -> Reply {
        self.upgrade = upgrade;
        self
    }

    /// From now on both talk by frames. `None`, and the client is told: it has not asked for that.
    pub fn talk(mut self) -> Option<Talk> {
        let Some(Upgrade { connection, place }) = self.upgrade.take() else {
            let why = "This is spoken on a connection that is upgraded.";
            let hint = format!("Send the headers Connection: Upgrade and Upgrade: {PROTOCOL}.");
            self.error(ApiError::new(ErrorCode::BadRequest, why).hint(hint));
            return None;
        };
        let audit = self.audit.take();
        if let Some(head) = self.head.take() {
            let _ = head.send(Answer::Switch);
        }
        Some(Talk { connection, _place: (place.work(), place), audit })
    }

    /// What is in the audit journal of the call, if it changes something.
    pub fn record(&self) -> Option<&AuditRecord> {
        self.audit.as_ref().map(|audit| &audit.record)
    }

    /// To a call whose client has lost its connection when svd was killed: only the journal hears the outcome.
    pub fn revived(record: AuditRecord, sink: AuditSink) -> Reply {
        Reply::to_nobody(Some(Pending { record, sink }))
    }

    /// To nobody: svd does it by itself.
    pub fn unheard() -> Reply {
        Reply::to_nobody(None)
    }

    pub(super) fn to_nobody(audit: Option<Pending>) -> Reply {
        Reply::new(true, Arc::default(), audit).0
    }

    /// Has the client gone? What it asked for goes on all the same, unless it only reads.
    pub fn is_closed(&self) -> bool {
        match (&self.head, &self.stream) {
            (Some(head), _) => head.is_closed(),
            (None, Some((blocks, _))) => blocks.is_closed(),
            (None, None) => true,
        }
    }

    /// Sends a line about a long operation. Never waits: a client that does not keep up misses lines, and is told how
    /// many. Ignored for requests that have one short answer.
    pub fn progress(&mut self, line: &Progress) {
        let Some(blocks) = self.blocks() else { return };
        let text = if self.dropped == 0 {
            json_line("progress", line)
        } else {
            let mut line = line.clone();
            line.dropped = self.dropped;
            json_line("progress", &line)
        };
        match blocks.try_send(text) {
            Ok(()) => self.dropped = 0,
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.dropped += 1;
                Counters::add(&self.counters.progress_dropped);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {}
        }
    }

    /// As [`Reply::progress`], but waits for a client that is slow: nothing is left out. For a task of its own. `false`: the
    /// client is gone.
    pub async fn output(&mut self, line: &Progress) -> bool {
        match self.blocks() {
            Some(blocks) => blocks.send(json_line("progress", line)).await.is_ok(),
            None => false,
        }
    }

    /// What comes is as long as the client wants it: one that stops to read is waited for, not cut. To be called before the
    /// first line; whoever calls it has limits of its own.
    pub fn wait_for_reader(&mut self) {
        self.patient = true;
    }

    /// Its client is gone, and what it asked for was ended for that.
    pub fn left(mut self) {
        if let Some(audit) = self.audit.take() {
            audit.write(Outcome::Left);
        }
        (self.head, self.stream) = (None, None);
    }

    /// Waits until the client is gone.
    pub async fn closed(&mut self) {
        match (&mut self.head, &self.stream) {
            (Some(head), _) => head.closed().await,
            (None, Some((blocks, _))) => blocks.closed().await,
            (None, None) => {}
        }
    }

    /// The way for lines, begun if need be; `None`: no lines are wanted, or the client is gone.
    fn blocks(&mut self) -> Option<mpsc::Sender<Bytes>> {
        if !self.lines {
            return None;
        }
        if self.stream.is_none() {
            let head = self.head.take()?;
            let (blocks, receiver) = mpsc::channel(PROGRESS_QUEUE);
            let (last, last_receiver) = oneshot::channel();
            let begun = head.send(Answer::Stream {
                content_type: NDJSON,
                position: None,
                blocks: receiver,
                last: Some(last_receiver),
                patient: self.patient,
            });
            begun.ok()?;
            self.stream = Some((blocks, last));
        }
        self.stream.as_ref().map(|(blocks, _)| blocks.clone())
    }

    /// The end of the operation. Always reaches a client that is still there, whatever it has missed before.
    pub fn finish<T: Serialize>(mut self, result: Result<T, ApiError>) {
        match result {
            Ok(value) => self.end(Ok(&value)),
            Err(error) => self.end::<T>(Err(&error)),
        }
    }

    /// `finish(Ok(value))`.
    pub fn ok<T: Serialize>(mut self, value: &T) {
        self.end(Ok(value));
    }

    /// `finish(Err(error))`.
    pub fn error(mut self, error: ApiError) {
        self.end::<()>(Err(&error));
    }

    /// The end of a verb that acts on services. Where one of them failed, the journal and the status code (unless
    /// lines have gone out already) say so.
    pub fn actions(mut self, result: &ActionResult) {
        let failed =
            result.services.iter().find(|s| !s.ok).map(|s| s.error.as_ref().map_or(ErrorCode::Failed, |e| e.code));
        self.end_with(failed, "result", result);
    }

    fn end<T: Serialize + ?Sized>(&mut self, result: Result<&T, &ApiError>) {
        match result {
            Ok(value) => self.end_with(None, "result", value),
            Err(error) => self.end_with(Some(error.code), "error", error),
        }
    }

    fn end_with<T: Serialize + ?Sized>(&mut self, failed: Option<ErrorCode>, key: &str, value: &T) {
        if let Some(audit) = self.audit.take() {
            audit.write(failed.map_or(Outcome::Done, Outcome::Failed));
        }
        let body = if self.lines || key == "error" { json_line(key, value) } else { json(value) };
        if let Some((_, last)) = self.stream.take() {
            let _ = last.send(body);
        } else {
            let status = failed.map_or(200, ErrorCode::http_status);
            let content_type = if self.lines { NDJSON } else { JSON };
            self.whole(status, content_type, body);
        }
    }

    /// An answer of the public address: 200 where `ok`, else 503.
    pub fn health<T: Serialize>(mut self, ok: bool, body: &T) {
        let status = if ok { 200 } else { 503 };
        self.whole(status, JSON, json(body));
    }

    /// Prometheus text, version 0.0.4.
    pub fn metrics(mut self, snapshot: &super::types::MetricsSnapshot) {
        let text = super::metrics::render(snapshot);
        self.whole(200, super::metrics::CONTENT_TYPE, Bytes::from(text));
    }

    fn whole(&mut self, status: u16, content_type: &'static str, body: Bytes) {
        if let Some(head) = self.head.take() {
            let _ = head.send(Answer::Whole { status, content_type, body });
        }
    }

    /// Answers with bytes as they come (`logs`, `events`); the stream ends when the [`ByteStream`] is dropped.
    ///
    /// `position` is that of the first byte, if the log knows it: a client that lost its
    /// connection asks for it plus what it has received ([`super::request::LogsRequest::from`]).
    pub fn stream(mut self, position: Option<LogPosition>) -> ByteStream {
        let (blocks, receiver) = mpsc::channel(STREAM_QUEUE);
        if let Some(head) = self.head.take() {
            let _ = head.send(Answer::Stream {
                content_type: if self.lines { NDJSON } else { BYTES },
                position,
                blocks: receiver,
                last: None,
                patient: false,
            });
        }
        ByteStream { blocks }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        // The journal gets an outcome also where the client has gone before the first line.
        if self.head.is_some() || self.stream.is_some() || self.audit.is_some() {
            let error = ApiError::new(ErrorCode::Internal, "svd dropped the request without an answer.")
                .hint("Look at svd's own log; `svctl status` says how things stand.");
            self.end::<()>(Err(&error));
        }
    }
}

/// The body of a streamed answer. A client that has not taken anything for half a minute is cut, which shows here as
/// closed.
#[derive(Debug, Clone)]
pub struct ByteStream {
    blocks: mpsc::Sender<Bytes>,
}

/// Why a block was not taken; it comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum StreamError {
    /// The client is behind: keep the place, wait for [`ByteStream::room`].
    Full(Bytes),
    /// It is gone.
    Closed,
}

impl ByteStream {
    pub fn try_send(&self, block: Bytes) -> Result<(), StreamError> {
        self.blocks.try_send(block).map_err(|e| match e {
            mpsc::error::TrySendError::Full(block) => StreamError::Full(block),
            mpsc::error::TrySendError::Closed(_) => StreamError::Closed,
        })
    }

    /// One JSON value and a newline. A full queue loses it: the caller counts.
    pub fn try_line<T: Serialize>(&self, value: &T) -> Result<(), StreamError> {
        let mut text = serde_json::to_vec(value).unwrap_or_default();
        text.push(b'\n');
        self.try_send(Bytes::from(text))
    }

    /// Waits for room. Not for the supervising loop itself: in a task of its own.
    pub async fn send(&self, block: Bytes) -> Result<(), StreamError> {
        self.blocks.send(block).await.map_err(|_| StreamError::Closed)
    }

    /// Waits until a block fits; `false` when the client is gone.
    pub async fn room(&self) -> bool {
        self.blocks.reserve().await.is_ok()
    }

    /// Waits until the client is gone.
    pub async fn closed(&self) {
        self.blocks.closed().await;
    }

    pub fn is_closed(&self) -> bool {
        self.blocks.is_closed()
    }
}

/// Our own types always serialise; should one not, the client reads an error instead of nothing.
fn json<T: Serialize + ?Sized>(value: &T) -> Bytes {
    match serde_json::to_vec(value) {
        Ok(mut text) => {
            text.push(b'\n');
            Bytes::from(text)
        }
        Err(error) => {
            let text = serde_json::json!({"error": {
                "code": "internal",
                "message": format!("The answer cannot be written as JSON: {error}"),
            }});
            Bytes::from(format!("{text}\n"))
        }
    }
}

/// `{"KEY": VALUE}` and a newline.
pub(super) fn json_line<T: Serialize + ?Sized>(key: &str, value: &T) -> Bytes {
    struct Line<'a, T: ?Sized>(&'a str, &'a T);
    impl<T: Serialize + ?Sized> Serialize for Line<'_, T> {
        fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_map([(self.0, self.1)])
        }
    }
    json(&Line(key, value))
}
