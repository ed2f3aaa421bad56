//! The service manager that has started this process.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Where it listens, if it does (`sd_notify(3)`).
const VARIABLE: &str = "NOTIFY_SOCKET";

/// Tells the service manager; `Ok` where there is none. Does not wait.
///
/// # Errors
/// `WouldBlock`: it does not read. Else what `sendto(2)` says.
pub fn notify_manager(text: &str) -> io::Result<()> {
    let Some(path) = std::env::var_os(VARIABLE) else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    socket.send_to_addr(text.as_bytes(), &address).map(drop)
}

/// Was this process started by a service manager that waits to be told?
pub fn has_manager() -> bool {
    std::env::var_os(VARIABLE).is_some()
}
