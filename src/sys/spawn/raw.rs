//! System calls that leave `errno` alone: a child that shares svd's memory shares that variable with the thread that has
//! started it.

/// Makes a system call: the number, then at most five integers or pointers. Gives what the kernel gives: a negative number
/// is an error's.
macro_rules! call {
    ($number:expr $(, $argument:expr)* $(,)?) => {{
        // A panic would be the end of svd, too, whose memory it would use.
        const { assert!(<[&str]>::len(&[$(stringify!($argument)),*]) <= 5) };
        let mut arguments = [0_usize; 5];
        let given = [$($argument as usize),*];
        arguments[..given.len()].copy_from_slice(&given);
        $crate::sys::spawn::raw::system_call($number, arguments)
    }};
}
pub(super) use call;

/// # Safety
/// As the system call says of its arguments.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn system_call(number: libc::c_long, arguments: [usize; 5]) -> isize {
    let result: isize;
    let [a, b, c, d, e] = arguments;
    // SAFETY: the kernel's convention for this machine: it changes `rcx`, `r11` and the result; the rest is promised by the
    // caller.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Here children have memory of their own, and an `errno`.
///
/// # Safety
/// As the system call says of its arguments.
#[cfg(not(target_arch = "x86_64"))]
pub(super) unsafe fn system_call(number: libc::c_long, arguments: [usize; 5]) -> isize {
    let [a, b, c, d, e] = arguments;
    // SAFETY: promised by the caller.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    if result < 0 { -(nix::errno::Errno::last_raw() as isize) } else { result as isize }
}
