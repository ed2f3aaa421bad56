//! What both servers have in common: response bodies, a connection that notices clients who stopped reading, and the
//! answer when there is no room.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, UPGRADE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Sleep, timeout};

use super::connections::Work;
use super::frames::PROTOCOL;
use super::reply::{Answer, Counters, json_line};
use super::server::Limits;
use super::types::ApiError;

/// Of streamed logs: offset of the first byte in the log's own count.
pub const POSITION: &str = "airdock-log-position";

/// Bytes that hyper may hold for one connection; also the longest request head.
const BUFFER: usize = 64 * 1024;

/// A response's body: a block, or blocks as they come.
pub(super) struct Blocks {
    kind: Kind,
    /// Until the last byte is handed over.
    work: Option<Work>,
    /// Its reader may stop for as long as it wants.
    patient: bool,
}

enum Kind {
    One(Option<Bytes>),
    Many { blocks: mpsc::Receiver<Bytes>, last: Option<oneshot::Receiver<Bytes>> },
}

impl Blocks {
    fn of(kind: Kind) -> Response<Blocks> {
        Response::new(Blocks { kind, work: None, patient: false })
    }

    pub fn hold(&mut self, work: Work) {
        self.work = Some(work);
    }
}

impl Body for Blocks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let block = match &mut self.kind {
            Kind::One(block) => block.take(),
            Kind::Many { blocks, last } => match ready!(blocks.poll_recv(cx)) {
                Some(block) => Some(block),
                None => match last {
                    Some(receiver) => {
                        let block = ready!(Pin::new(receiver).poll(cx)).ok();
                        *last = None;
                        block
                    }
                    None => None,
                },
            },
        };
        Poll::Ready(block.map(|b| Ok(Frame::data(b))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::One(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::One(block) => SizeHint::with_exact(block.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Many { .. } => SizeHint::default(),
        }
    }
}

pub(super) fn respond(answer: Answer) -> Response<Blocks> {
    match answer {
        Answer::Whole { status, content_type, body } => whole(status, content_type, body),
        Answer::Stream { content_type, position, blocks, last, patient } => {
            let mut response = Blocks::of(Kind::Many { blocks, last });
            response.body_mut().patient = patient;
            let headers = response.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
            if let Some(position) = position {
                let name = HeaderName::from_static(POSITION);
                headers.extend(HeaderValue::try_from(position.to_string()).ok().map(|value| (name, value)));
            }
            response
        }
        Answer::Switch => {
            let mut response = Blocks::of(Kind::One(None));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            // Who talks takes his time.
            response.body_mut().patient = true;
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
            response
        }
    }
}

fn whole(status: u16, content_type: &'static str, body: Bytes) -> Response<Blocks> {
    let mut response = Blocks::of(Kind::One(Some(body)));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    let value = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, value);
    response
}

pub(super) fn respond_error(error: &ApiError) -> Response<Blocks> {
    let body = json_line("error", error);
    whole(error.code.http_status(), super::reply::JSON, body)
}

/// Clients that are being refused at once; further ones are closed without a word.
const MAX_REFUSALS: usize = 64;
/// How long a refused client's request is waited for.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Answers clients for whom there is no connection left; hyper is not involved.
#[derive(Clone, Debug, Default)]
pub(super) struct Refusals(Rc<std::cell::Cell<usize>>);

impl Refusals {
    /// Lets the request come before the answer: HTTP clients do not expect one earlier, and closing a socket with
    /// unread bytes would reset it.
    pub fn refuse(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin + 'static, error: &ApiError) {
        if self.0.get() >= MAX_REFUSALS {
            return;
        }
        self.0.set(self.0.get() + 1);
        let count = Rc::clone(&self.0);
        let text = refusal(error);
        tokio::task::spawn_local(async move {
            let _ = timeout(REFUSAL_TIMEOUT, stream.read(&mut [0; 4096])).await;
            let answer = async {
                stream.write_all(&text).await?;
                stream.shutdown().await
            };
            let _ = timeout(REFUSAL_TIMEOUT, answer).await;
            count.set(count.get() - 1);
        });
    }
}

fn refusal(error: &ApiError) -> Vec<u8> {
    let body = json_line("error", error);
    let mut text = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    text.extend_from_slice(&body);
    text
}

/// Serves one connection until it ends. Errors are the client's: it went away, was too slow or spoke no HTTP.
pub(super) async fn serve_connection<S, F, Fut>(stream: S, limits: &Limits, counters: &Arc<Counters>, handle: F)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Fn(Request<Incoming>) -> Fut,
    Fut: Future<Output = Response<Blocks>>,
{
    // Of the response that is being written.
    let patient = Arc::new(AtomicBool::new(false));
    let stream = Watched {
        inner: stream,
        limit: limits.write_timeout,
        patient: Arc::clone(&patient),
        waiting: None,
        counters: Arc::clone(counters),
    };
    let service = service_fn(|request| {
        let (response, patient) = (handle(request), &patient);
        async move {
            let response = response.await;
            patient.store(response.body().patient, Ordering::Relaxed);
            Ok::<_, Infallible>(response)
        }
    });
    let _ = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.request_timeout)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
}

/// A stream whose writes fail when the other side has taken nothing for `limit`, unless it is to be waited for.
struct Watched<S> {
    inner: S,
    limit: Duration,
    patient: Arc<AtomicBool>,
    waiting: Option<Pin<Box<Sleep>>>,
    counters: Arc<Counters>,
}

impl<S> Watched<S> {
    /// Starts the clock at the first write that does not go through, and stops it at the next that does.
    fn watch(&mut self, cx: &mut Context<'_>, pending: bool) -> Poll<io::Result<()>> {
        if !pending || self.patient.load(Ordering::Relaxed) {
            self.waiting = None;
            return Poll::Pending;
        }
        let limit = self.limit;
        let sleep = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(sleep.as_mut().poll(cx));
        self.waiting = None;
        Counters::add(&self.counters.streams_cut);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write(cx, buf);
        match self.watch(cx, done.is_pending()) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => done,
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        match self.watch(cx, done.is_pending()) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => done,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
