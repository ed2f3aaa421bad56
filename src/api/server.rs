//! The control server: HTTP/1.1 on a UNIX socket.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::Call;
use super::access::Access;
use super::audit::AuditSink;
use super::reply::Counters;
use super::request::Name;

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
    pub counters: Arc<Counters>,
    pub limits: Limits,
}

/// Serves until the future is dropped, on the current thread ([`tokio::task::LocalSet`] needed). The listener is bound
/// by the caller, who decides on path, owner and mode, and keeps it across an upgrade.
pub async fn serve(_listener: UnixListener, _context: ServerContext) {
    std::future::pending::<()>().await;
}
