//! The datagram socket of `sd_notify(3)`: each message with the kernel's word on who sent it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockType, setsockopt, sockopt};

use super::control::{self, Message};
use super::listen::{UnixOptions, bind_unix};
use super::{ListenError, Peer};

/// A bound datagram socket that anybody with write permission on its file may send to.
#[derive(Debug)]
pub struct NotifySocket {
    fd: OwnedFd,
}

/// One message, without its text (which is in the caller's buffer).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram {
    /// How many bytes of the buffer it filled.
    pub length: usize,
    /// It was longer than the buffer.
    pub truncated: bool,
    /// The sender, vouched for by the kernel (root may claim to be another). It may have ended since.
    pub sender: Option<Peer>,
}

impl NotifySocket {
    /// Binds; a stale file is replaced, a living one refused, as for [`super::listen_unix`]. Only `owner` (and root) may send;
    /// `None`: our own user.
    pub fn bind(path: &Path, owner: Option<u32>) -> Result<NotifySocket, ListenError> {
        let options = UnixOptions { mode: 0o600, owner, group: None, backlog: 0 };
        let fd = bind_unix(path, SockType::Datagram, options)?;
        // What is sent before has no sender, and is not heard.
        setsockopt(&fd, sockopt::PassCred, &true).map_err(|errno| ListenError {
            address: format!("unix:{}", path.display()),
            reason: errno.desc().into(),
        })?;
        Ok(NotifySocket::from_fd(fd))
    }

    /// One that was kept across an exec or by another process.
    pub fn from_fd(fd: OwnedFd) -> NotifySocket {
        NotifySocket { fd }
    }

    /// The next message, without waiting; `None` if there is none. Descriptors that come with it are closed at once
    /// (which is also the answer that `sd_notify_barrier(3)` waits for).
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
        self.receive_with(buffer, MsgFlags::empty())
    }

    /// As [`NotifySocket::receive`], but the message stays, until that takes it.
    pub fn look(&self, buffer: &mut [u8]) -> io::Result<Option<Datagram>> {
        self.receive_with(buffer, MsgFlags::MSG_PEEK)
    }

    fn receive_with(&self, buffer: &mut [u8], more: MsgFlags) -> io::Result<Option<Datagram>> {
        match control::receive(&self.fd, buffer, more) {
            Ok(Message { length, truncated, sender, .. }) => Ok(Some(Datagram { length, truncated, sender })),
            Err(Errno::EAGAIN) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for NotifySocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn messages_senders_and_descriptors() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let socket = NotifySocket::bind(&path, None).expect("bind");
        let mut buffer = [0; 64];
        assert_eq!(socket.receive(&mut buffer).expect("none"), None);
        let client = UnixDatagram::unbound().expect("a socket");
        client.send_to(b"READY=1", &path).expect("send");
        let seen = socket.look(&mut buffer).expect("read").expect("one");
        let got = socket.receive(&mut buffer).expect("read").expect("one");
        assert_eq!(seen, got);
        assert_eq!(&buffer[..got.length], b"READY=1");
        let sender = got.sender.expect("credentials");
        assert_eq!(sender.pid, std::process::id() as i32);
        assert_eq!(sender.uid, nix::unistd::geteuid().as_raw());

        // The passed end of the pipe must be closed: then its reader sees the end.
        let (reader, writer) = crate::sys::fifo::pipe().expect("pipe");
        client.connect(&path).expect("connect");
        let fds = [writer.as_raw_fd()];
        nix::sys::socket::sendmsg::<()>(
            client.as_raw_fd(),
            &[io::IoSlice::new(&[b'x'; 100])],
            &[nix::sys::socket::ControlMessage::ScmRights(&fds)],
            MsgFlags::empty(),
            None,
        )
        .expect("send");
        drop(writer);
        let got = socket.receive(&mut buffer).expect("read").expect("one");
        assert!(got.truncated);
        assert_eq!(got.length, 64);
        let mut end = [0; 1];
        let count = io::Read::read(&mut std::fs::File::from(reader), &mut end);
        assert_eq!(count.expect("read"), 0);
        assert!(NotifySocket::bind(&path, None).is_err(), "it is alive");
    }
}
