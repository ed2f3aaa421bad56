//! Messages with a descriptor, over a pair of `SOCK_SEQPACKET` sockets (`unix(7)`, `SCM_RIGHTS`). Nothing here waits.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};

use super::control;

/// Two ends that keep the borders of messages; both are close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
}

/// Sends one message, whole or not at all. `EAGAIN`: the other end has not read for a while; `ETOOMANYREFS`: too many
/// descriptors are under way; `EPIPE`, `ECONNRESET`: nobody is there any more.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let descriptor = descriptor.map(|fd| [fd.as_raw_fd()]);
    let control = descriptor.as_ref().map(|fds| ControlMessage::ScmRights(fds));
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], control.as_slice(), flags, None) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// One message, without its text (which is in the caller's buffer).
#[derive(Debug)]
pub struct Packet {
    /// How many bytes of the buffer it filled; 0: the other end is closed.
    pub length: usize,
    /// Close-on-exec.
    pub descriptor: Option<OwnedFd>,
    /// A descriptor came, and there was no room for it in this process (`RLIMIT_NOFILE`).
    pub descriptor_lost: bool,
}

/// The next message; `EAGAIN` if there is none now.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Packet, Errno> {
    let mut message = control::receive(socket, buffer, MsgFlags::empty())?;
    // Nobody sends more than one.
    let descriptor = message.descriptors.pop();
    Ok(Packet { length: message.length, descriptor, descriptor_lost: message.control_truncated })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_borders_and_descriptors() {
        let (one, other) = pair().expect("a pair");
        let (reader, writer) = crate::sys::fifo::pipe().expect("a pipe");
        send(&one, b"first", Some(reader.as_fd())).expect("send");
        send(&one, b"second", None).expect("send");
        let mut buffer = [0; 16];
        let first = receive(&other, &mut buffer).expect("receive");
        assert_eq!(&buffer[..first.length], b"first");
        nix::unistd::write(&writer, b"x").expect("write");
        let copy = first.descriptor.expect("a descriptor");
        assert_eq!(crate::sys::fifo::waiting(&copy).expect("the same pipe"), 1);
        let flags = nix::fcntl::fcntl(&copy, nix::fcntl::FcntlArg::F_GETFD).expect("flags");
        assert_eq!(flags, libc::FD_CLOEXEC);
        let second = receive(&other, &mut buffer).expect("receive");
        assert_eq!((second.length, second.descriptor.is_none(), second.descriptor_lost), (6, true, false));
        assert_eq!(receive(&other, &mut buffer).err(), Some(Errno::EAGAIN));
        drop(one);
        assert_eq!(receive(&other, &mut buffer).expect("the end").length, 0);
        assert_eq!(send(&other, b"x", None), Err(Errno::EPIPE));
    }

    #[test]
    fn nobody_waits_for_a_reader_that_does_not_read() {
        let (one, _other) = pair().expect("a pair");
        let refused = (0..100_000).find_map(|_| send(&one, &[0; 64], None).err());
        assert_eq!(refused, Some(Errno::EAGAIN));
    }
}
