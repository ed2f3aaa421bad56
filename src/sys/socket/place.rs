//! Files of UNIX sockets. Their directory may belong to the service's user, who can put other things there at any moment: so it
//! is held open, what has the name is looked at before anything is done to it, and nothing is followed.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, unlinkat};

use super::UnixOptions;

/// A name in a directory.
pub(super) struct Place<'a> {
    dir: File,
    name: &'a OsStr,
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// A path by which the kernel finds a descriptor's file, whatever its name is by now.
fn by_descriptor(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

impl<'a> Place<'a> {
    pub fn of(path: &'a Path) -> Result<Place<'a>, Errno> {
        let name = path.file_name().ok_or(Errno::EINVAL)?;
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
        Ok(Place { dir: options.open(dir).map_err(|e| errno(&e))?, name })
    }

    fn look(&self) -> Result<FileStat, Errno> {
        fstatat(&self.dir, self.name, AtFlags::AT_SYMLINK_NOFOLLOW)
    }

    fn is_socket(stat: &FileStat) -> bool {
        SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFSOCK
    }

    /// Removes a socket file that nobody answers; says why it may not be removed.
    pub fn clear_stale(&self) -> Result<(), String> {
        match self.look() {
            Err(Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.desc().into()),
            Ok(stat) if !Self::is_socket(&stat) => {
                return Err("a file that is no socket is in its place; move it away or choose another path".into());
            }
            Ok(_) => {}
        }
        for kind in [SockType::Stream, SockType::Datagram, SockType::SeqPacket] {
            match self.try_connect(kind) {
                Err(Errno::ECONNREFUSED | Errno::EPROTOTYPE | Errno::ENOENT) => {}
                Ok(()) | Err(Errno::EAGAIN | Errno::EINPROGRESS) => {
                    return Err("another process answers there; stop that, or choose another path".into());
                }
                Err(errno) => return Err(errno.desc().into()),
            }
        }
        self.remove().map_err(|errno| format!("cannot remove the stale socket file: {}", errno.desc()))
    }

    fn try_connect(&self, kind: SockType) -> Result<(), Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, kind, flags, None)?;
        connect(fd.as_raw_fd(), &UnixAddr::new(&by_descriptor(&self.dir).join(self.name))?)
    }

    /// Removes the socket file, if there is one.
    pub fn remove(&self) -> Result<(), Errno> {
        match self.look() {
            Ok(stat) if Self::is_socket(&stat) => match unlinkat(&self.dir, self.name, UnlinkatFlags::NoRemoveDir) {
                Err(Errno::ENOENT) => Ok(()),
                result => result,
            },
            Ok(_) => Err(Errno::ENOTSOCK),
            Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Gives a socket's file its owner and, last, its mode. `fresh`: it was bound just now, as nobody else's can look.
    pub fn give(&self, options: UnixOptions, fresh: bool) -> Result<(), Errno> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.dir, self.name, flags, Mode::empty())?);
        let meta = file.metadata().map_err(|e| errno(&e))?;
        if !meta.file_type().is_socket() {
            return Err(Errno::ENOTSOCK);
        }
        // A second name is of somebody else's socket. What is ours and new has no mode yet (`bind_private`).
        let ours = !fresh || (meta.uid() == nix::unistd::geteuid().as_raw() && meta.mode() & 0o7777 == 0);
        if meta.nlink() > 1 || !ours {
            return Err(Errno::ESTALE);
        }
        if options.owner.is_some() || options.group.is_some() {
            let (owner, group) = (options.owner.map(Uid::from_raw), options.group.map(Gid::from_raw));
            fchownat(file.as_fd(), "", owner, group, AtFlags::AT_EMPTY_PATH)?;
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(options.mode & 0o7777);
        // By its descriptor, whatever has the name by now.
        std::fs::set_permissions(by_descriptor(&file), mode).map_err(|e| errno(&e))
    }
}
