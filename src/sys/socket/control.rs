//! Receiving messages with what comes beside the bytes (`recvmsg(2)`, `cmsg(3)`).

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

use super::Peer;

/// As many descriptors as the kernel lets one message carry (`SCM_MAX_FD`).
const MAX_DESCRIPTORS: usize = 253;

/// In words, as the kernel's structures are aligned so: room for the most that can come, a sender and descriptors.
const ROOM: usize = (MAX_DESCRIPTORS * size_of::<RawFd>()).div_ceil(8) + 8;

/// One message; its bytes are in the caller's buffer.
#[derive(Debug)]
pub(super) struct Message {
    /// Bytes of the buffer that are filled.
    pub length: usize,
    /// It was longer than the buffer.
    pub truncated: bool,
    /// Something of what came beside it is lost: descriptors for which this process has no room, most often.
    pub control_truncated: bool,
    /// With `SO_PASSCRED`.
    pub sender: Option<Peer>,
    /// Close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// The next message, without waiting, by these flags of `recvmsg(2)`.
///
/// Every descriptor that the kernel has put into this process is in the result, also where there was no room for all of
/// them: one that is overlooked would stay open for ever, and whoever sends could use all up.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8], more: MsgFlags) -> Result<Message, Errno> {
    let mut control = [0_u64; ROOM];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zero is a valid value of this plain structure.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC | more.bits();
    let length = loop {
        // SAFETY: the header points to the buffer, the part and the control memory, which live through the call, with their sizes.
        let result = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) };
        match super::super::check(result as libc::c_long) {
            Ok(length) => break length as usize,
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    };
    let mut message = Message {
        length,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        control_truncated: header.msg_flags & libc::MSG_CTRUNC != 0,
        sender: None,
        descriptors: Vec::new(),
    };
    // SAFETY: the kernel has filled the control memory, and set its length in the header.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !next.is_null() {
        // SAFETY: not null, so it lies with its whole head in the control memory, which is aligned for it.
        let head = unsafe { next.read() };
        // SAFETY: as above.
        let data = unsafe { libc::CMSG_DATA(next) };
        // SAFETY: a number only.
        let length = (head.cmsg_len as usize).saturating_sub(unsafe { libc::CMSG_LEN(0) } as usize);
        match (head.cmsg_level, head.cmsg_type) {
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if length >= size_of::<libc::ucred>() => {
                // SAFETY: as long as the head says, as just compared; any bytes are a valid value.
                let from: libc::ucred = unsafe { data.cast::<libc::ucred>().read_unaligned() };
                message.sender = Some(Peer { pid: from.pid, uid: from.uid, gid: from.gid });
            }
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                for n in 0..length / size_of::<RawFd>() {
                    // SAFETY: within the length that the head says.
                    let fd = unsafe { data.cast::<RawFd>().add(n).read_unaligned() };
                    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
                    message.descriptors.push(unsafe { OwnedFd::from_raw_fd(fd) });
                }
            }
            _ => {}
        }
        // SAFETY: both are as the kernel left them.
        next = unsafe { libc::CMSG_NXTHDR(&raw const header, next) };
    }
    Ok(message)
}
