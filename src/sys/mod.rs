//! The only place with unsafe code: processes, cgroups, sockets, pipes, polling. It knows nothing of services.
//!
//! | file | what it gives |
//! |---|---|
//! | [`spawn`] | a child whose every step is prepared before the fork, and a name for the step that failed |
//! | [`sandbox`] | other files, devices and rights for a process, made by svd's own program between svd and the service's |
//! | [`worker`] | one handle for a worker and all its descendants, kept together by a cgroup or by a stub |
//! | [`cgroup`] | the v2 tree: a directory per worker, kill, "is anything left" |
//! | [`stub`] | the sub-reaper process that does the same where no cgroup can be made |
//! | [`process`] | pidfds, exit statuses, reaping, `/proc` |
//! | [`poll`] | epoll with tokens, signals as a descriptor |
//! | [`socket`] | listening sockets, the notify socket, peer credentials, eventfd, shared words |
//! | [`fifo`] | the named pipes of the logs |
//! | [`terminal`] | terminals for commands |
//! | [`kernel`] | what this kernel can do |
//! | [`usage`] | what a process uses now |
//! | [`user`] | users and groups |
//! | [`alone`] | what only a process with one thread may do: fork and go on, close what others opened |
//! | [`blocking`] | threads for what may block |
//! | [`memory`] | giving back what only the start needed |
//! | [`tree`] | copies of directory trees that somebody else may change meanwhile |
//! | [`files`], [`trust`] | files where others may write; what only root and svd's user may change |
//! | [`lock`], [`durable`] | one svd per run directory; files that are old or new, never half |

pub mod alone;
pub mod blocking;
pub mod cgroup;
pub mod durable;
pub mod fifo;
pub mod files;
pub mod foreground;
pub mod inspect;
pub mod kernel;
pub mod limits;
pub mod lock;
pub mod memory;
pub mod poll;
pub mod process;
pub mod sandbox;
pub mod socket;
pub mod spawn;
pub mod stub;
pub mod terminal;
pub mod tree;
pub mod trust;
pub mod usage;
pub mod user;
pub mod worker;

use nix::errno::Errno;

/// The result of a raw system call: its value, or `errno`.
fn check(result: libc::c_long) -> Result<libc::c_long, Errno> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

/// `errno` in words, as `strerror(3)` has them: "No such file or directory".
pub fn errno_text(errno: Errno) -> &'static str {
    errno.desc()
}

/// An `io::Error` in words, without the "(os error 2)" that the standard library appends.
pub fn io_text(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_string(),
        None => error.to_string(),
    }
}

/// Microseconds of `CLOCK_MONOTONIC`: the clock that gunicorn's workers put beside their counts.
pub fn monotonic_micros() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |t| t.tv_sec() as u64 * 1_000_000 + t.tv_nsec() as u64 / 1_000)
}

/// Milliseconds of `CLOCK_BOOTTIME`: it neither jumps nor stands still while the machine sleeps.
pub fn boot_millis() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(0, |t| t.tv_sec() as u64 * 1_000 + t.tv_nsec() as u64 / 1_000_000)
}

/// When this machine was started, by the wall clock as it is now (`CLOCK_BOOTTIME`).
pub fn booted() -> std::time::SystemTime {
    let since = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    let since = since.map_or(std::time::Duration::ZERO, Into::into);
    std::time::SystemTime::now().checked_sub(since).unwrap_or(std::time::SystemTime::UNIX_EPOCH)
}

/// Takes over a descriptor that this program was started with, as a copy that children do not inherit. `None` if it is
/// not open. To be called once a number, before anything else may have opened it.
pub fn take_inherited(fd: std::os::fd::RawFd) -> Option<std::os::fd::OwnedFd> {
    use std::os::fd::{FromRawFd, OwnedFd};
    // SAFETY: fcntl tells whether it is open; a pipe or file of our starter's, nobody else in this program uses it.
    let open = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
    // SAFETY: it is open, and by the contract above it has no other owner.
    open.then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}
