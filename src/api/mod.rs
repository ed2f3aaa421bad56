//! How programs talk to svd: HTTP/1.1 with JSON over a UNIX socket, and a read-only HTTP address for load balancers
//! and Prometheus.
//!
//! The way of a request: [`server`] accepts, [`peer`] says who asks, [`request`] turns HTTP into a typed [`Request`],
//! names are resolved and [`access`] decides, [`audit`] writes it down, and the daemon gets a [`Call`] whose
//! [`Reply`] it answers. The daemon therefore sees only requests that are well-formed and allowed.
//!
//! May use `config` (access rules); may not use `core`, `daemon` or `sys`.

mod accept;
pub mod access;
pub mod apps;
pub mod audit;
pub mod client;
mod configuration;
mod connections;
mod error;
pub mod frames;
mod handle;
mod health;
mod hex;
mod http;
mod inspected;
pub mod internal;
pub mod metrics;
pub mod peer;
pub mod public;
pub mod reply;
pub mod request;
pub mod resolve;
mod results;
pub mod routes;
pub mod server;
#[cfg(test)]
pub mod testing;
pub mod types;

use audit::{AuditSink, Numbers, Outcome, Pending};
pub use peer::Peer;
pub use reply::{ByteStream, Reply};
pub use request::{Request, Verb};
pub use types::{ApiError, ErrorCode};

/// One request on its way to the daemon, which answers through `reply`.
///
/// It is allowed, its names are resolved and exist (they may vanish before the daemon looks: then the result of that
/// service is [`ErrorCode::UnknownService`]). A client that goes away does not stop what it has asked for.
#[derive(Debug)]
pub struct Call {
    pub peer: Peer,
    pub request: Request,
    pub reply: Reply,
}

impl Call {
    /// What a signal to svd asks for. It is written down as what others ask for; there is nobody to answer.
    pub fn by_signal(request: Request, signal: &str, peer: Peer, numbers: &Numbers, sink: &AuditSink) -> Call {
        let audit = Pending::new(&request, &peer, numbers, sink).map(|mut audit| {
            audit.record.detail = signal.into();
            audit.clone().write(Outcome::Begun);
            audit
        });
        Call { peer, request, reply: Reply::to_nobody(audit) }
    }
}
