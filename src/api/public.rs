//! The read-only HTTP address: `/health`, `/health/NAME`, `/metrics`.
//!
//! There is no access check and no audit, so that nothing beyond these three is ever asked of the daemon.

use std::io;
use std::rc::Rc;

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderValue};
use hyper::{Method, Request as HttpRequest, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::accept::{self, Door};
use super::connections::{Place, Rooms};
use super::handle::ask;
use super::http::{self, Blocks, respond_error};
use super::peer::Peer;
use super::reply::Counters;
use super::request::Request;
use super::server::ServerContext;
use super::types::{ApiError, ErrorCode};

/// All there is; `docs/openapi.yaml` has the same.
pub const PATHS: [&str; 3] = ["/health", "/health/{name}", "/metrics"];

/// Requests that the daemon has at once: with one of each connection, workers would wait behind all of them.
const AT_ONCE: usize = 4;

/// Everybody is one user here, who has all places: the oldest idle connection gives way.
const ANYBODY: u32 = u32::MAX;

/// Serves until the future is dropped, on the current thread ([`tokio::task::LocalSet`] needed). The daemon is asked
/// for nothing but [`Request::PublicHealth`] and [`Request::Metrics`].
pub async fn serve(listener: TcpListener, context: ServerContext) {
    accept::receive(Public { listener, context, turns: Semaphore::new(AT_ONCE) }).await;
}

struct Public {
    listener: TcpListener,
    context: ServerContext,
    turns: Semaphore,
}

impl Door for Public {
    type Stream = TcpStream;
    type Guest = ();
    const FULL: &'static str = "Too many connections are open at once.";

    async fn accept(&self) -> io::Result<TcpStream> {
        Ok(self.listener.accept().await?.0)
    }

    fn guest(&self, _: &TcpStream) -> Option<((), u32)> {
        Some(((), ANYBODY))
    }

    fn context(&self) -> &ServerContext {
        &self.context
    }

    fn rooms(&self) -> Rooms {
        let places = self.context.limits.connections as usize;
        Rooms { per_user: places, shared: places, for_root: 0 }
    }

    async fn serve(&self, stream: TcpStream, (): (), place: Rc<Place>) {
        let handle = |request| self.handle(request, Rc::clone(&place));
        http::serve_connection(stream, &self.context.limits, &self.context.counters, handle).await;
    }
}

impl Public {
    async fn handle(&self, request: HttpRequest<Incoming>, place: Rc<Place>) -> Response<Blocks> {
        let work = place.work();
        Counters::add(&self.context.counters.requests);
        let mut response = match read(&request) {
            Ok(request) => self.ask(request).await.unwrap_or_else(|error| respond_error(&error)),
            Err(error) => {
                let mut response = respond_error(&error);
                if error.code == ErrorCode::MethodNotAllowed {
                    let value = HeaderValue::from_static("GET, HEAD");
                    response.headers_mut().insert(ALLOW, value);
                }
                response
            }
        };
        response.body_mut().hold(work);
        response
    }

    async fn ask(&self, request: Request) -> Result<Response<Blocks>, ApiError> {
        // Nobody closes it; a turn ends with the answer.
        let _turn = self.turns.acquire().await;
        ask(&self.context, request, Peer::nobody(), None, None).await
    }
}

fn read<B>(request: &HttpRequest<B>) -> Result<Request, ApiError> {
    let path = request.uri().path();
    let asked = match path.strip_suffix('/').filter(|path| !path.is_empty()).unwrap_or(path) {
        "/health" => Request::PublicHealth { name: None },
        "/metrics" => Request::Metrics,
        path => match path.strip_prefix("/health/") {
            Some(name) if !name.is_empty() && !name.contains(['/', '%']) => {
                Request::PublicHealth { name: Some(name.into()) }
            }
            _ => {
                let list = PATHS.iter().map(|p| format!("GET {p}").into()).collect();
                return Err(ApiError::new(ErrorCode::UnknownRoute, format!("There is no {path} here.")).details(list));
            }
        },
    };
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Err(ApiError::new(ErrorCode::MethodNotAllowed, format!("{path} can only be read (GET).")));
    }
    Ok(asked)
}

#[cfg(test)]
#[path = "public_test.rs"]
mod tests;
