//! A UDP socket on loopback that tells how many datagrams the kernel had to drop.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt};

/// Largest UDP datagram over IPv4 (RFC 768 and RFC 791: 65,535 bytes less both headers).
pub const DATAGRAM_MAX: usize = 65_507;

/// Bound to 127.0.0.1 alone: nothing of the network gets there.
#[derive(Debug)]
pub struct Datagrams {
    socket: UdpSocket,
    port: u16,
}

impl Datagrams {
    /// A port of the kernel's choice. `buffer`: bytes that may wait; without the right to ask for as many
    /// (CAP_NET_ADMIN), up to `net.core.rmem_max` (`socket(7)`).
    pub fn bind(buffer: usize) -> io::Result<Datagrams> {
        Datagrams::bind_to(0, buffer)
    }

    /// As [`Datagrams::bind`], with this port.
    pub fn bind_to(port: u16, buffer: usize) -> io::Result<Datagrams> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, port))?;
        socket.set_nonblocking(true)?;
        if setsockopt(&socket, sockopt::RcvBufForce, &buffer).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &buffer)?;
        }
        let port = socket.local_addr()?.port();
        Ok(Datagrams { socket, port })
    }

    /// One that was kept by another process.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Datagrams> {
        let socket = UdpSocket::from(fd);
        let port = socket.local_addr()?.port();
        Ok(Datagrams { socket, port })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next datagram's length; `None` if there is none now. What does not fit into the buffer is cut off.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match self.socket.recv(buffer) {
            Ok(length) => Ok(Some(length)),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// How many the kernel has dropped since the socket was bound, for a full buffer or a wrong checksum; it wraps.
    /// `SO_MEMINFO`, Linux 4.12: unlike `SO_RXQ_OVFL` it needs no later datagram to tell of the last ones.
    pub fn dropped(&self) -> io::Result<u32> {
        // SK_MEMINFO_VARS, which the last index is.
        let mut values = [0_u32; libc::SK_MEMINFO_DROPS as usize + 1];
        let mut length = size_of_val(&values) as libc::socklen_t;
        // SAFETY: the kernel writes at most `length` bytes into `values`.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_MEMINFO,
                values.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        crate::sys::check(result.into())?;
        Ok(values[libc::SK_MEMINFO_DROPS as usize])
    }
}

impl AsFd for Datagrams {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn datagrams_come_and_lost_ones_are_told() {
        let socket = Datagrams::bind(4096).expect("bind");
        let mut buffer = [0; 64];
        assert_eq!(socket.receive(&mut buffer).expect("none"), None);
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
        let to = (Ipv4Addr::LOCALHOST, socket.port());
        client.send_to(b"requests:1|c", to).expect("send");
        assert_eq!(socket.receive(&mut buffer).expect("one"), Some(12));
        assert_eq!(socket.dropped().expect("told"), 0);
        for _ in 0..1000 {
            client.send_to(b"requests:1|c", to).expect("send");
        }
        // On loopback a datagram is queued or dropped before `send` returns: each is accounted for.
        let lost = socket.dropped().expect("told");
        let mut came = 0;
        while socket.receive(&mut buffer).expect("receive").is_some() {
            came += 1;
        }
        assert!(lost > 0, "none of 1000 was lost with a buffer of 4 kB");
        assert_eq!(came + lost, 1000);
    }
}
