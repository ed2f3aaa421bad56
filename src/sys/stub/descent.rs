//! Whom a stub finds below itself, by `/proc`. Only system calls and memory on the stack.

use std::os::fd::RawFd;

use super::super::check;
use super::super::spawn::child::{close, write_decimal};

pub(super) fn send_signal(pidfd: RawFd, signal: i32) {
    // SAFETY: numbers and a null siginfo. ESRCH (it has ended) is as good as success.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, signal, std::ptr::null_mut::<libc::siginfo_t>(), 0) };
}

/// Walks `/proc` once. The list of children (`/proc/PID/task/TID/children`) would be shorter, but not every kernel has it,
/// and it leaves out what is forked meanwhile just the same.
pub(super) fn signal_descendants(own: i32, signal: i32) {
    // SAFETY: a NUL-terminated constant.
    let proc = check(unsafe {
        libc::syscall(
            libc::SYS_openat,
            libc::AT_FDCWD,
            c"/proc".as_ptr(),
            libc::O_RDONLY | libc::O_DIRECTORY | libc::O_CLOEXEC,
            0,
        )
    });
    let Ok(proc) = proc else { return };
    let mut buffer = [0_u64; 512];
    loop {
        // SAFETY: the kernel writes at most the stated 4,096 bytes.
        let length = unsafe { libc::syscall(libc::SYS_getdents64, proc, buffer.as_mut_ptr(), 4096_usize) };
        if length <= 0 {
            break;
        }
        // SAFETY: the same memory as bytes; any byte is valid.
        let bytes: &[u8; 4096] = unsafe { &*buffer.as_ptr().cast() };
        let mut rest = bytes.get(..length as usize).unwrap_or_default();
        // struct linux_dirent64: inode u64, offset i64, length u16, type u8, name.
        while let (Some(&[low, high]), Some(name)) = (rest.get(16..18), rest.get(19..)) {
            if let Some(pid) = leading_number(name).filter(|pid| *pid != own) {
                signal_if_descendant(own, pid, signal);
            }
            let length = usize::from(u16::from_ne_bytes([low, high])).max(1);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
    close(proc as RawFd);
}

fn signal_if_descendant(own: i32, pid: i32, signal: i32) {
    if !is_descendant(own, pid) {
        return;
    }
    // SAFETY: numbers only.
    let pidfd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) });
    let Ok(pidfd) = pidfd else { return };
    // Again, now that the process cannot be confused any more.
    if is_descendant(own, pid) {
        send_signal(pidfd as RawFd, signal);
    }
    close(pidfd as RawFd);
}

/// Whether the chain of parents leads to us. A parent that ends meanwhile (our own signal may have ended it) changes the
/// chain, so that it is walked again.
fn is_descendant(own: i32, pid: i32) -> bool {
    for _ in 0..4 {
        match walk(own, pid) {
            Chain::Ours => return true,
            Chain::Foreign => return false,
            Chain::Changed => {}
        }
    }
    false
}

enum Chain {
    Ours,
    Foreign,
    Changed,
}

/// Walks the chain twice: a parent that ended in between, and whose number was given away, shows as a different chain. One
/// that is deeper than 64 is found when its upper part has gone.
fn walk(own: i32, pid: i32) -> Chain {
    let mut chain = [0_i32; 64];
    let mut depth = 0;
    let mut current = pid;
    for place in &mut chain {
        current = parent_of(current);
        *place = current;
        depth += 1;
        if current <= 1 || current == own {
            break;
        }
    }
    match current {
        // Somebody above it was reaped while we looked (or has no parent here, as kernel threads).
        0 if depth > 1 => return Chain::Changed,
        _ if current != own => return Chain::Foreign,
        _ => {}
    }
    let mut current = pid;
    let same = chain.iter().take(depth).all(|parent| {
        let same = parent_of(current) == *parent;
        current = *parent;
        same
    });
    if same { Chain::Ours } else { Chain::Changed }
}

/// The fourth field of `/proc/PID/stat`; 0 if there is no such process.
fn parent_of(pid: i32) -> i32 {
    let mut path = [0_u8; 32];
    let (start, end) = (b"/proc/", b"/stat");
    path[..start.len()].copy_from_slice(start);
    let digits = write_decimal(&mut path[start.len()..24], pid.unsigned_abs());
    let after = start.len() + digits;
    path[after..after + end.len()].copy_from_slice(end);
    // SAFETY: NUL-terminated, as the buffer is longer than the text.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC, 0)
    });
    let Ok(fd) = fd else { return 0 };
    let mut text = [0_u8; 256];
    // SAFETY: at most the buffer's length is written.
    let length = unsafe { libc::syscall(libc::SYS_read, fd, text.as_mut_ptr(), text.len()) };
    close(fd as RawFd);
    let text = text.get(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
    // PID (NAME) STATE PARENT: the name may contain parentheses itself.
    let Some(end) = text.iter().rposition(|b| *b == b')') else {
        return 0;
    };
    text.get(end + 4..).and_then(leading_number).unwrap_or(0)
}

fn leading_number(text: &[u8]) -> Option<i32> {
    let mut number: Option<i32> = None;
    for byte in text {
        if !byte.is_ascii_digit() {
            break;
        }
        let digit = i32::from(byte - b'0');
        number = Some(number.unwrap_or(0).checked_mul(10)?.checked_add(digit)?);
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_and_chains() {
        let own = std::process::id() as i32;
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().expect("sleep");
        let pid = child.id() as i32;
        assert_eq!(parent_of(pid), own);
        assert!(is_descendant(own, pid));
        assert!(!is_descendant(pid, own));
        assert!(!is_descendant(own, 1));
        child.kill().expect("kill");
        child.wait().expect("wait");
        assert_eq!(parent_of(pid), 0);
        assert!(!is_descendant(own, pid));
        assert_eq!(leading_number(b"4711 (x)"), Some(4711));
        assert_eq!(leading_number(b"self"), None);
        assert_eq!(leading_number(b"99999999999"), None);
    }
}
