//! Giving back memory that only the start needed.

/// One heap for all threads: the few that svd has seldom allocate, and each heap of its own keeps pages.
///
/// To be called before there are other threads; `mallopt(3)`.
pub fn one_heap() {
    // SAFETY: sets a number of the allocator's.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Returns free heap pages to the kernel, and lets go of the program's own pages of code: what is still used comes back
/// from the page cache at its next instruction, by minor faults; what only the start used does not.
///
/// `malloc_trim(3)`, `madvise(2)` with `MADV_DONTNEED`.
pub fn trim() {
    // SAFETY: no arguments that could be wrong.
    unsafe { libc::malloc_trim(0) };
    for (start, length) in own_code() {
        // SAFETY: a private, read-only mapping of an unchanged file: dropping its pages changes nothing that can be
        // read, as they are read from the file again.
        unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) };
    }
}

/// Read-only executable mappings of files, by `/proc/self/maps`.
fn own_code() -> Vec<(usize, usize)> {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return Vec::new() };
    maps.lines().filter_map(parse).collect()
}

fn parse(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, permissions) = (words.next()?, words.next()?);
    let path = words.nth(3)?;
    if permissions != "r-xp" || !path.starts_with('/') {
        return None;
    }
    let (from, to) = range.split_once('-')?;
    let from = usize::from_str_radix(from, 16).ok()?;
    Some((from, usize::from_str_radix(to, 16).ok()?.checked_sub(from)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_let_go() {
        let code = "55d0c0000000-55d0c0002000 r-xp 00001000 fe:00 123 /usr/sbin/svd";
        assert_eq!(parse(code), Some((0x55d0_c000_0000, 0x2000)));
        assert_eq!(parse("55d0c0000000-55d0c0002000 rw-p 00001000 fe:00 123 /usr/sbin/svd"), None);
        assert_eq!(parse("7ffd0000-7ffd2000 r-xp 00000000 00:00 0 [vdso]"), None);
        assert_eq!(parse(""), None);
        trim();
    }
}
