//! Networks without ways out: one for a process alone, or one that svd keeps for all processes of a generation.

use super::Network;
use super::entrance::{Result, cannot};
use crate::sys::process::{self, Identity, PidFd};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

/// A network that is there as long as somebody has it: this descriptor, a process, a socket (`network_namespaces(7)`).
#[derive(Clone, Debug)]
pub struct Namespace(Arc<OwnedFd>);

impl Namespace {
    /// A new one of this kind; of [`Network::Host`] there is none to be made.
    ///
    /// # Errors
    /// As of `unshare(2)`; no thread can be had.
    pub fn new(kind: Network) -> io::Result<Namespace> {
        on_own_thread(|| {
            make(kind)?;
            Ok(Namespace::from_fd(File::open("/proc/thread-self/ns/net")?.into()))
        })
    }

    /// One that was kept by another process.
    pub fn from_fd(fd: OwnedFd) -> Namespace {
        Namespace(Arc::new(fd))
    }

    /// That of a process, unless it has ended or its network is this process's own.
    pub fn of(process: Identity) -> Option<Namespace> {
        let pidfd = PidFd::open(process.pid).ok().filter(|_| process.is(process::start_time(process.pid)))?;
        let its = File::open(format!("/proc/{}/ns/net", process.pid)).ok()?;
        // Else the number may have been another's by then.
        let certain = !pidfd.has_ended();
        let own = std::fs::metadata("/proc/self/ns/net").ok()?;
        let is_own = its.metadata().is_ok_and(|its| (its.dev(), its.ino()) == (own.dev(), own.ino()));
        (certain && !is_own).then(|| Namespace::from_fd(its.into()))
    }

    pub(super) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.0)
    }

    /// Does the work in it: what is opened there stays there. The work must not wait.
    ///
    /// # Errors
    /// The work's; as of `setns(2)`; no thread can be had.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_own_thread(|| {
            setns(self, CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }

    /// A socket in it for a connection to this address, which does not wait.
    ///
    /// # Errors
    /// As of [`Namespace::within`].
    pub fn socket_for(&self, address: &SocketAddr) -> io::Result<TcpStream> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        self.within(|| Ok(socket(family, SockType::Stream, flags, None)?.into()))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A thread that has changed its network is of no use for anything else.
fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("svd-network".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("svd's own task failed")))
    })
}

/// Enters the network that the process was given, or leaves the host's for one of its own.
pub(super) fn enter(kind: Network, given: Option<OwnedFd>) -> Result<()> {
    match given {
        Some(given) => setns(given, CloneFlags::CLONE_NEWNET).map_err(cannot("enter the network of its generation")),
        None if kind == Network::Host => Ok(()),
        None => make(kind).map_err(cannot("leave the host's network (network namespace)")),
    }
}

/// Takes this thread to a new one.
fn make(kind: Network) -> std::result::Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    if kind == Network::Loopback { raise_loopback() } else { Ok(()) }
}

/// `netdevice(7)`
fn raise_loopback() -> std::result::Result<(), Errno> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: all zero is a valid value of this plain structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[..2].copy_from_slice(&[b'l' as libc::c_char, b'o' as libc::c_char]);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads the structure, whose name ends with a zero.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::Datagrams;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn what_is_opened_within_stays_there() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let network = Namespace::new(Network::Loopback).expect("a network");
        let listener = network.within(|| TcpListener::bind("127.0.0.1:0")).expect("a listener");
        let address = listener.local_addr().expect("its address");
        TcpStream::connect(address).expect_err("it is in another network");
        network.within(|| TcpStream::connect(address)).expect("it is there");
        let socket = network.socket_for(&address).expect("a socket");
        assert!(reaches(&socket, &address), "made there and connected from here");
        let counts = network.within(|| Datagrams::bind(4096)).expect("a socket");
        let to = ("127.0.0.1", counts.port());
        network.within(|| UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", to)).expect("sent");
        assert_eq!(counts.receive(&mut [0; 8]).expect("it came"), Some(1));
        let silent = Namespace::new(Network::None).expect("a network");
        silent.within(|| TcpStream::connect(address)).expect_err("nothing is reached");
        let own = Identity::of(std::process::id() as i32).expect("this process");
        assert!(Namespace::of(own).is_none(), "this process's own is nobody else's");
    }

    fn reaches(socket: &TcpStream, address: &SocketAddr) -> bool {
        let SocketAddr::V4(v4) = address else { return false };
        let to = nix::sys::socket::SockaddrIn::from(*v4);
        matches!(nix::sys::socket::connect(socket.as_raw_fd(), &to), Ok(()) | Err(Errno::EINPROGRESS))
            && nix::sys::socket::getpeername::<nix::sys::socket::SockaddrIn>(socket.as_raw_fd()).is_ok()
    }
}
