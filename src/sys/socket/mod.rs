//! Sockets that outlive the processes that use them, and small things that are shared with those.

mod control;
mod datagrams;
mod listen;
mod manager;
mod notify;
mod place;
pub mod rights;
mod shared;
mod who;

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{getsockopt, sockopt};

pub use datagrams::{DATAGRAM_MAX, Datagrams};
pub use listen::{UnixOptions, change_unix, end_listening, free_port, listen_tcp, listen_unix, remove_unix};
pub use manager::{has_manager, notify_manager};
pub use notify::{Datagram, NotifySocket};
pub use shared::{Gate, SharedWords};
pub use who::holder_of_port;

/// Why a socket cannot be had: a sentence with the address, the reason and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot listen on {address}: {reason}")]
pub struct ListenError {
    pub address: String,
    pub reason: String,
}

/// The kernel's number for this socket, unique until the next boot (`SO_COOKIE`, `socket(7)`): whichever process holds
/// it, the socket is the same one.
pub fn cookie(fd: impl AsFd) -> io::Result<u64> {
    let mut value = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes into `value`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_COOKIE,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    super::check(result.into())?;
    Ok(value)
}

/// Whether a descriptor is a socket that listens.
pub fn is_listening(fd: impl AsFd) -> bool {
    getsockopt(&fd.as_fd(), sockopt::AcceptConn).unwrap_or(false)
}

/// Who is at the other end of a UNIX stream socket, as of its `connect` (`SO_PEERCRED`, `unix(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub pid: i32,
    pub uid: u32,
    pub gid: u32,
}

/// See [`Peer`].
pub fn peer(fd: impl AsFd) -> io::Result<Peer> {
    let found = getsockopt(&fd.as_fd(), sockopt::PeerCredentials)?;
    Ok(Peer { pid: found.pid(), uid: found.uid(), gid: found.gid() })
}
