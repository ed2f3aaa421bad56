//! What this kernel can do, found by trying, and what follows where it cannot.
//!
//! The minimum is Linux 5.4 (waiting on pidfds). What is newer is used where it is there; distributors bring features to
//! older version numbers and seccomp filters hide them, so that the number alone says little.

use nix::errno::Errno;

use super::process::PidFd;

/// The oldest kernel that svd runs on.
pub const MINIMUM: (u32, u32) = (5, 4);

/// Features that svd uses, with the kernel that brought them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `pidfd_open` 5.3 and `waitid(P_PIDFD)` 5.4: required.
    pub pidfd: bool,
    /// `clone3` 5.3 (also hidden by old container runtimes).
    pub clone3: bool,
    /// `close_range` 5.9.
    pub close_range: bool,
    /// `pidfd_getfd` 5.6: sockets can be taken back from processes after a crash of svd.
    pub pidfd_getfd: bool,
    /// Exit statuses of processes that are not our children, 6.15.
    pub foreign_exit: bool,
}

impl Features {
    /// Tries each of them, without any lasting effect.
    pub fn detect() -> Features {
        let own = PidFd::open(std::process::id() as i32);
        // Wrong arguments on purpose: a kernel that has the call complains about them, one that lacks it says ENOSYS.
        // SAFETY: no valid memory or descriptor is passed, so nothing happens.
        let clone3 = present(unsafe { libc::syscall(libc::SYS_clone3, 0_usize, 0_usize) });
        // SAFETY: as above.
        let close_range = present(unsafe { libc::syscall(libc::SYS_close_range, 1_u32, 0_u32, 0_u32) });
        // SAFETY: as above.
        let pidfd_getfd = present(unsafe { libc::syscall(libc::SYS_pidfd_getfd, -1, -1, 0) });
        let pidfd = match &own {
            // Not our own child: ECHILD where P_PIDFD is known, EINVAL where not.
            Ok(fd) => fd.try_wait() == Err(Errno::ECHILD),
            Err(_) => false,
        };
        Features { pidfd, clone3, close_range, pidfd_getfd, foreign_exit: release().is_some_and(|v| v >= (6, 15)) }
    }

    /// Why svd cannot run here at all.
    pub fn fatal(&self) -> Option<String> {
        (!self.pidfd).then(|| {
            format!(
                "this kernel ({}) has no pidfds to wait on; svd needs Linux {}.{} or newer",
                release_text(),
                MINIMUM.0,
                MINIMUM.1
            )
        })
    }

    /// Sentences about what is lacking and what follows.
    pub fn lacking(&self) -> Vec<String> {
        let lacks = [
            (
                self.clone3,
                "clone3 (Linux 5.3) is missing or forbidden: processes are forked the older way and join their cgroup themselves",
            ),
            (
                self.close_range,
                "close_range (Linux 5.9) is missing: descriptors are closed one by one, starts are slower",
            ),
            (
                self.pidfd_getfd,
                "pidfd_getfd (Linux 5.6) is missing: after a crash of svd, sockets cannot be taken back from running services",
            ),
            (
                self.foreign_exit,
                "exit statuses of processes that outlived a crash of svd are not known (Linux 6.15 tells them)",
            ),
        ];
        lacks.into_iter().filter(|(there, _)| !there).map(|(_, text)| text.to_string()).collect()
    }
}

/// A refused call exists unless the refusal is ENOSYS, or EPERM from a filter.
fn present(result: libc::c_long) -> bool {
    !matches!(super::check(result), Err(Errno::ENOSYS | Errno::EPERM))
}

/// Major and minor number of the running kernel.
pub fn release() -> Option<(u32, u32)> {
    let text = release_text();
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn release_text() -> String {
    match nix::sys::utsname::uname() {
        Ok(name) => name.release().to_string_lossy().into_owned(),
        Err(_) => "unknown".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_said() {
        let features = Features::detect();
        assert_eq!(features.fatal(), None);
        if release().is_some_and(|v| v >= (6, 15)) && features.clone3 && features.pidfd_getfd {
            assert_eq!(features.lacking(), Vec::<String>::new());
        }
        let nothing =
            Features { pidfd: false, clone3: false, close_range: false, pidfd_getfd: false, foreign_exit: false };
        assert_eq!(nothing.lacking().len(), 4);
        assert!(nothing.fatal().is_some_and(|s| s.contains("Linux 5.4")));
    }
}
