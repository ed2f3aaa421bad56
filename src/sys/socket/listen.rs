//! Listening sockets. They are blocking, as `socket(2)` makes them: O_NONBLOCK belongs to the open socket that all
//! generations share, so a program that wants it sets it (gunicorn, the JDK), and one that calls `accept` plainly works.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, setsockopt, socket, sockopt,
};

use super::ListenError;
use super::place::Place;

/// Binds and listens, with `SO_REUSEADDR`. An IPv6 address takes IPv4 as well unless `v6only`.
pub fn listen_tcp(address: SocketAddr, backlog: i32, v6only: bool) -> Result<OwnedFd, ListenError> {
    try_tcp(address, backlog, v6only)
        .map_err(|errno| ListenError { address: address.to_string(), reason: tcp_reason(address, errno) })
}

fn try_tcp(address: SocketAddr, backlog: i32, v6only: bool) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &v6only)?;
    }
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    start_listening(&fd, backlog)?;
    Ok(fd)
}

fn start_listening(fd: &OwnedFd, backlog: i32) -> Result<(), Errno> {
    // The kernel itself cuts the backlog to net.core.somaxconn.
    // SAFETY: numbers only.
    super::super::check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }.into()).map(drop)
}

fn tcp_reason(address: SocketAddr, errno: Errno) -> String {
    let port = address.port();
    match errno {
        Errno::EADDRINUSE => match super::holder_of_port(port) {
            Some(holder) => {
                format!("the address is in use by {holder}; stop that, or choose another port")
            }
            None => "the address is in use by another process (`ss -ltnp` as root names it); stop \
                     that, or choose another port"
                .into(),
        },
        Errno::EACCES if port < 1024 => format!(
            "permission denied: ports below 1024 need root, CAP_NET_BIND_SERVICE, or \
             `sysctl net.ipv4.ip_unprivileged_port_start={port}`"
        ),
        Errno::EADDRNOTAVAIL => format!("this host has no address {}", address.ip()),
        Errno::EAFNOSUPPORT => "this host has no IPv6".into(),
        other => other.desc().to_string(),
    }
}

/// Permissions of a UNIX socket's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnixOptions {
    pub mode: u32,
    /// `None`: as the file is created.
    pub owner: Option<u32>,
    pub group: Option<u32>,
    pub backlog: i32,
}

/// Binds and listens on a UNIX stream socket. A stale socket file (nobody answers) is replaced; a living server's, or a
/// file that is no socket, is not.
///
/// There is no moment with wrong permissions: the file is born with mode 0, then gets its owner, then its mode, and only
/// then listens. It is bound under its own name (not renamed into place), so that `getsockname` tells servers the
/// truth, and of two binders one fails.
pub fn listen_unix(path: &Path, options: UnixOptions) -> Result<OwnedFd, ListenError> {
    let fd = bind_unix(path, SockType::Stream, options)?;
    start_listening(&fd, options.backlog).map_err(|errno| {
        let _ = remove_unix(path);
        ListenError { address: format!("unix:{}", path.display()), reason: errno.desc().into() }
    })?;
    Ok(fd)
}

fn unix_reason(path: &Path, errno: Errno) -> String {
    let dir = path.parent().unwrap_or(path).display();
    match errno {
        Errno::ENOENT => format!("the directory {dir} does not exist"),
        Errno::EACCES => format!("no permission to make a file in {dir}"),
        Errno::EADDRINUSE => "another process has just bound it".into(),
        Errno::ENAMETOOLONG => "the path is too long for a socket (107 bytes at most)".into(),
        other => other.desc().to_string(),
    }
}

/// Binds a socket of any kind: as [`listen_unix`], but that it does not listen.
pub(super) fn bind_unix(path: &Path, kind: SockType, options: UnixOptions) -> Result<OwnedFd, ListenError> {
    let failed = |reason: String| ListenError { address: format!("unix:{}", path.display()), reason };
    let place = Place::of(path).map_err(|e| failed(unix_reason(path, e)))?;
    place.clear_stale().map_err(failed)?;
    let fd = bind_private(path, kind).map_err(|e| failed(unix_reason(path, e)))?;
    place.give(options, true).map_err(|errno| {
        // Ours, and of no use: nobody can connect to it.
        let _ = place.remove();
        let why = match errno {
            Errno::ENOENT | Errno::ENOTSOCK | Errno::ESTALE => "somebody puts other files in its place",
            other => other.desc(),
        };
        failed(format!("cannot set its permissions: {why}"))
    })?;
    Ok(fd)
}

/// Binds a socket whose file nobody may use yet.
fn bind_private(path: &Path, kind: SockType) -> Result<OwnedFd, Errno> {
    let address = UnixAddr::new(path)?;
    let fd = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
    // The mode of the socket itself becomes that of its file (less the umask).
    // SAFETY: numbers only.
    super::super::check(unsafe { libc::fchmod(fd.as_raw_fd(), 0) }.into())?;
    bind(fd.as_raw_fd(), &address)?;
    Ok(fd)
}

/// Gives the file of a bound socket another owner and mode.
///
/// # Errors
/// Of the file system; `ENOTSOCK`, `ESTALE`: something else has its name.
pub fn change_unix(path: &Path, options: UnixOptions) -> Result<(), Errno> {
    Place::of(path)?.give(options, false)
}

/// Ends the listening of all who have a copy (`shutdown(2)`): the guardian closes its own a moment later, and until then the
/// kernel would accept connections that nobody answers.
pub fn end_listening(socket: &OwnedFd) {
    use std::os::fd::AsRawFd;
    // Best effort: it ends with the last copy, too.
    let _ = nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both);
}

/// Removes a socket's file, and nothing else that has its name.
///
/// # Errors
/// Of the file system; `ENOTSOCK`: something else has its name.
pub fn remove_unix(path: &Path) -> Result<(), Errno> {
    Place::of(path)?.remove()
}

/// A TCP port on 127.0.0.1 that is free at this moment. Somebody else may take it before it is used.
pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::super::{cookie, is_listening, peer};
    use super::*;
    use std::io::Write;
    use std::net::TcpStream;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::net::{UnixListener, UnixStream};

    const OPTIONS: UnixOptions = UnixOptions { mode: 0o660, owner: None, group: None, backlog: 16 };

    #[test]
    fn nobody_is_let_in_any_more_whoever_has_a_copy() {
        let fd = listen_tcp(([127, 0, 0, 1], 0).into(), 100, true).expect("listen");
        let copy = TcpListener::from(fd.try_clone().expect("dup"));
        let address = copy.local_addr().expect("address");
        TcpStream::connect(address).expect("it listens");
        end_listening(&fd);
        TcpStream::connect(address).expect_err("it does not listen");
        drop(fd);
        listen_tcp(address, 100, true).expect("the address can be had again");
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let fd = listen_unix(&path, OPTIONS).expect("listen");
        let _copy = fd.try_clone().expect("dup");
        UnixStream::connect(&path).expect("it listens");
        end_listening(&fd);
        UnixStream::connect(&path).expect_err("it does not listen");
    }

    #[test]
    fn tcp_and_who_is_in_the_way() {
        let fd = listen_tcp(([127, 0, 0, 1], 0).into(), 100, true).expect("listen");
        assert!(is_listening(&fd));
        let copy = fd.try_clone().expect("dup");
        assert_eq!(cookie(&fd).expect("cookie"), cookie(&copy).expect("cookie"));
        let listener = TcpListener::from(copy);
        let address = listener.local_addr().expect("address");
        TcpStream::connect(address).expect("connect");
        let error = listen_tcp(address, 100, true).expect_err("taken").to_string();
        let own = format!("(pid {})", std::process::id());
        assert!(
            error.starts_with(&format!("cannot listen on {address}: the address is in use by "))
                && error.contains(&own),
            "{error}"
        );
        let other = listen_tcp(([127, 0, 0, 1], 0).into(), 100, true).expect("listen");
        assert_ne!(cookie(&fd).expect("cookie"), cookie(&other).expect("cookie"));
        assert!(free_port().expect("a port") > 0);
    }

    #[test]
    fn addresses_of_others_and_low_ports() {
        let error = listen_tcp(([192, 0, 2, 1], 8000).into(), 1, true).expect_err("not ours");
        assert_eq!(error.to_string(), "cannot listen on 192.0.2.1:8000: this host has no address 192.0.2.1");
        let reason = tcp_reason(([0, 0, 0, 0], 80).into(), Errno::EACCES);
        assert!(reason.contains("ports below 1024 need root"), "{reason}");
    }

    #[test]
    fn unix_stale_living_and_foreign_files() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("web.sock");
        let fd = listen_unix(&path, OPTIONS).expect("listen");
        let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let client = UnixStream::connect(&path).expect("connect");
        let listener = UnixListener::from(fd);
        let bound = listener.local_addr().expect("address");
        assert_eq!(bound.as_pathname(), Some(path.as_path()));
        let (server, _) = listener.accept().expect("accept");
        let from = peer(&server).expect("peer");
        assert_eq!(from.pid, std::process::id() as i32);
        drop(client);
        let error = listen_unix(&path, OPTIONS).expect_err("living").to_string();
        assert!(error.contains("another process answers there"), "{error}");
        drop(listener);
        let again = listen_unix(&path, OPTIONS).expect("the stale file is replaced");
        drop(again);

        let file = dir.path().join("file");
        std::fs::File::create(&file).and_then(|mut f| f.write_all(b"precious")).expect("a file");
        let error = listen_unix(&file, OPTIONS).expect_err("no socket").to_string();
        assert!(error.contains("no socket is in its place"), "{error}");
        assert_eq!(std::fs::read(&file).expect("untouched"), b"precious");

        let nowhere = dir.path().join("a/b.sock");
        let error = listen_unix(&nowhere, OPTIONS).expect_err("no directory");
        assert!(error.reason.ends_with("/a does not exist"), "{error}");
        let long = dir.path().join("x".repeat(120));
        let error = listen_unix(&long, OPTIONS).expect_err("too long");
        assert!(error.reason.contains("too long"), "{error}");
    }

    #[test]
    fn owners_of_unix_sockets() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("web.sock");
        let options = UnixOptions { owner: Some(65534), group: Some(54321), ..OPTIONS };
        let _fd = listen_unix(&path, options).expect("listen");
        let meta = std::fs::metadata(&path).expect("stat");
        assert_eq!((meta.uid(), meta.gid()), (65534, 54321));
        assert_eq!(meta.mode() & 0o777, 0o660);
    }
}
