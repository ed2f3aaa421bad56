//! A network without ways out.

use super::Network;
use super::entrance::{Result, cannot};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use std::os::fd::AsRawFd;

/// Leaves the host's network.
pub(super) fn leave(network: Network) -> Result<()> {
    if network == Network::Host {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNET).map_err(cannot("leave the host's network (network namespace)"))?;
    if network == Network::Loopback { raise_loopback().map_err(cannot("bring up 127.0.0.1")) } else { Ok(()) }
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
