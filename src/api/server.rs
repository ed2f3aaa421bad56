//! The control server: HTTP/1.1 on a UNIX socket.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::accept::{self, Door};
use super::access::Access;
use super::audit::{AuditSink, Numbers};
use super::connections::{Place, Rooms};
use super::handle::Handler;
use super::peer::{self, Credentials, Users};
use super::reply::Counters;
use super::request::Name;
use super::types::{ApiError, ErrorCode};
use super::{Call, http};

/// What the server must know to resolve names and to decide. The daemon replaces it after each update.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Names of all services, sorted.
    pub names: Rc<[Name]>,
    pub access: Access,
    /// Connections that one user may hold at once.
    pub connections_per_user: u32,
}

/// How the daemon gives the server a new [`Directory`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedDirectory(Rc<RefCell<Directory>>);

impl SharedDirectory {
    pub fn new(directory: Directory) -> SharedDirectory {
        SharedDirectory(Rc::new(RefCell::new(directory)))
    }

    /// Counts for requests that come from now on.
    pub fn replace(&self, directory: Directory) {
        *self.0.borrow_mut() = directory;
    }

    pub fn get(&self) -> Directory {
        self.0.borrow().clone()
    }
}

/// The limits, all of which are reached visibly: an error or a counter.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of all users but root.
    pub connections: u32,
    /// Connections that only root gets.
    pub connections_for_root: u32,
    /// Bytes of a request's body.
    pub body: usize,
    /// For a request to arrive, and for the next one on a kept connection.
    pub request_timeout: Duration,
    /// A client that takes nothing of its answer for that long is cut.
    pub write_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 512,
            connections_for_root: 32,
            body: 64 * 1024,
            request_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(30),
        }
    }
}

/// What a server needs; all of it cheap to clone.
#[derive(Clone)]
pub struct ServerContext {
    /// To the supervising loop. A full queue makes requests wait, not the loop.
    pub calls: mpsc::Sender<Call>,
    pub directory: SharedDirectory,
    pub audit: AuditSink,
    pub numbers: Numbers,
    pub counters: Arc<Counters>,
    pub limits: Limits,
}

/// How a connection's user is found out; tests have several users in one process.
type Identify = Rc<dyn Fn(&UnixStream) -> io::Result<Credentials>>;

/// Serves until the future is dropped, on the current thread ([`tokio::task::LocalSet`] needed). The listener is bound
/// by the caller, who decides on path, owner and mode, and keeps it across an upgrade.
///
/// The audit sink must not block; the runtime should have few blocking threads, as they only look users up.
pub async fn serve(listener: UnixListener, context: ServerContext) {
    serve_as(listener, context, Rc::new(peer::credentials::<UnixStream>)).await;
}

async fn serve_as(listener: UnixListener, context: ServerContext, identify: Identify) {
    let handler = Handler::new(context.clone());
    accept::receive(Control { listener, context, identify, users: Users::default(), handler }).await;
}

struct Control {
    listener: UnixListener,
    context: ServerContext,
    identify: Identify,
    users: Users,
    handler: Handler,
}

impl Door for Control {
    type Stream = UnixStream;
    type Guest = Credentials;
    const FULL: &'static str = "Too many connections are open at once, of your user or in all.";

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }

    fn guest(&self, stream: &UnixStream) -> Option<(Credentials, u32)> {
        // A peer that is gone already has no credentials worth an answer.
        let who = (self.identify)(stream).ok()?;
        Some((who, who.uid))
    }

    fn context(&self) -> &ServerContext {
        &self.context
    }

    fn rooms(&self) -> Rooms {
        Rooms {
            per_user: self.context.directory.0.borrow().connections_per_user as usize,
            shared: self.context.limits.connections as usize,
            for_root: self.context.limits.connections_for_root as usize,
        }
    }

    async fn serve(&self, stream: UnixStream, who: Credentials, place: Rc<Place>) {
        let peer = self.users.peer(who).await;
        let handle = |request| self.handler.handle(request, peer.clone(), Rc::clone(&place));
        http::serve_connection(stream, &self.context.limits, &self.context.counters, handle).await;
    }
}

pub(super) fn too_many(message: &str) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, message)
        .hint("Try again in a moment; end programs that keep connections to svd open.")
}

#[cfg(test)]
#[path = "server_test.rs"]
mod tests;
