//! Terminals (`pty(7)`) that svd makes for commands of its clients. A client's own terminal is never handed over: whoever holds it
//! can type into it (`TIOCSTI`).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use nix::errno::Errno;
use nix::sys::termios::{SpecialCharacterIndices, tcgetattr};

use tokio::io::unix::AsyncFd;

use super::check;

/// Of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub columns: u16,
    pub rows: u16,
}

/// Both ends of one.
pub struct Terminal {
    /// What is typed is written here, and what is shown is read; does not block.
    pub ours: OwnedFd,
    /// For the command: 0, 1 and 2.
    pub theirs: OwnedFd,
}

/// What `Ctrl-D` is, where nobody has changed it.
const USUAL_END: u8 = 4;

/// A new one. Its name below `/dev/pts` is not needed.
pub fn open(size: Size) -> io::Result<Terminal> {
    let flags = libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_CLOEXEC;
    let ours: OwnedFd =
        std::fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open("/dev/ptmx")?.into();
    let locked: libc::c_int = 0;
    // SAFETY: the kernel reads one int.
    check(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &raw const locked) }.into())?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: numbers only.
    let theirs = check(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER, flags) }.into())?;
    // SAFETY: the call before has opened it; nobody else knows it.
    let theirs = unsafe { OwnedFd::from_raw_fd(theirs as i32) };
    resize(&ours, size)?;
    Ok(Terminal { ours, theirs })
}

/// For waiting until it has something, or takes something. Needs a tokio runtime.
pub fn watch(ours: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and stays the same one, for as long as it lives, which is in there.
    unsafe { AsyncFd::register(ours) }.map_err(io::Error::from)
}

/// As `login(1)` leaves one: its user's, and others may write messages to it at most.
pub fn give(theirs: &OwnedFd, uid: u32) -> io::Result<()> {
    nix::unistd::fchown(theirs, Some(uid.into()), None)?;
    let file = File::from(theirs.try_clone()?);
    file.set_permissions(std::fs::Permissions::from_mode(0o620))
}

/// The processes in its foreground get SIGWINCH.
pub fn resize(terminal: &impl AsFd, size: Size) -> Result<(), Errno> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the kernel reads the structure.
    check(unsafe { libc::ioctl(terminal.as_fd().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) }.into()).map(drop)
}

/// The character that ends the input.
pub fn end_of_input(terminal: &impl AsFd) -> u8 {
    tcgetattr(terminal).map_or(USUAL_END, |t| t.control_chars[SpecialCharacterIndices::VEOF as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    const SIZE: Size = Size { columns: 91, rows: 23 };

    #[test]
    fn what_is_typed_comes_out_at_the_other_end() {
        let Terminal { ours, theirs } = match open(SIZE) {
            Ok(terminal) => terminal,
            Err(e) => return println!("skipped: no terminal can be made here: {e}"),
        };
        give(&theirs, nix::unistd::geteuid().as_raw()).expect("our own user's");
        assert_eq!(end_of_input(&ours), 4);
        let (mut ours, mut theirs) = (File::from(ours), File::from(theirs));
        assert_eq!(theirs.metadata().expect("the terminal").permissions().mode() & 0o777, 0o620);
        let mut got = [0; 10];
        assert_eq!(ours.read(&mut got).expect_err("nothing").kind(), io::ErrorKind::WouldBlock);
        ours.write_all(b"hi\n").expect("typing");
        let n = theirs.read(&mut got).expect("reading");
        assert_eq!(&got[..n], b"hi\n");
        drop(theirs);
        let mut rest = Vec::new();
        let end = ours.read_to_end(&mut rest).expect_err("nobody has the other end");
        assert_eq!((rest, end.raw_os_error()), (b"hi\r\n".to_vec(), Some(libc::EIO)), "the echo, then the end");
    }
}
