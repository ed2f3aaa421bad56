//! What a process may do: its user, its capabilities, and no way to get more.

use super::super::spawn::Ids;
use super::Sandbox;
use super::entrance::{Result, cannot};
use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// Of `linux/capability.h`: two sets of 32 bits each.
const VERSION_3: u32 = 0x2008_0522;
/// Numbers above this exist on no kernel.
const MOST: u8 = 63;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// From svd's user to the service's, with no more capabilities than it may have (`capabilities(7)`).
pub(super) fn limit(sandbox: &Sandbox, ids: Option<&Ids>) -> Result<()> {
    let becomes_other = ids.is_some_and(|ids| ids.uid != 0);
    let stays_other = ids.is_none() && !nix::unistd::geteuid().is_root();
    if let Some(kept) = &sandbox.bounding {
        drop_from_bounding_set(kept, stays_other)?;
    }
    // Else the change of user would take all.
    let keeps = becomes_other && sandbox.ambient && sandbox.bounding.as_ref().is_some_and(|kept| !kept.is_empty());
    if keeps {
        nix::sys::prctl::set_keepcaps(true).map_err(cannot("keep capabilities"))?;
    }
    if let Some(ids) = ids {
        become_user(ids)?;
    }
    let Some(kept) = &sandbox.bounding else { return Ok(()) };
    let wanted = mask(kept);
    if keeps {
        set(wanted, wanted)?;
        for number in kept {
            raise_ambient(*number)?;
        }
    }
    // Root gets at the exec what the bounding set has left, and every other user nothing.
    Ok(())
}

/// The same in a user namespace of one's own, where the user is the service's already.
pub(super) fn limit_apart(sandbox: &Sandbox) -> Result<()> {
    if let Some(kept) = &sandbox.bounding {
        drop_from_bounding_set(kept, false)?;
    }
    set(0, 0)
}

fn mask(numbers: &[u8]) -> u64 {
    numbers.iter().filter(|n| **n <= MOST).fold(0, |mask, n| mask | 1 << n)
}

fn drop_from_bounding_set(kept: &[u8], harmless: bool) -> Result<()> {
    for number in 0..=MOST {
        // SAFETY: numbers only.
        let there = unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(number), 0, 0, 0) };
        if there < 0 {
            // One past the last that this kernel knows.
            return Ok(());
        }
        if there == 0 || kept.contains(&number) {
            continue;
        }
        // SAFETY: numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        match Errno::result(result) {
            Ok(_) => {}
            // A plain user's svd has none of them, and no_new_privileges keeps it that way.
            Err(Errno::EPERM) if harmless => return Ok(()),
            Err(e) => return Err(cannot(format_args!("give up capability {number}"))(e)),
        }
    }
    Ok(())
}

fn set(permitted: u64, inheritable: u64) -> Result<()> {
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |shift: u32| Sets {
        effective: (permitted >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let sets = [half(0), half(32)];
    // SAFETY: the kernel reads the two structures, whose layout is that of its header.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
    Errno::result(result).map(drop).map_err(cannot("set the capabilities"))
}

fn raise_ambient(number: u8) -> Result<()> {
    // SAFETY: numbers only.
    let result = unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_RAISE as libc::c_ulong,
            libc::c_ulong::from(number),
            0,
            0,
        )
    };
    Errno::result(result).map(drop).map_err(cannot(format_args!("hand capability {number} on to the program")))
}

pub(super) fn become_user(ids: &Ids) -> Result<()> {
    let hint = |what: String| {
        move |e: Errno| {
            let why = if e == Errno::EPERM { " (only root can start programs as another user)" } else { "" };
            format!("cannot {what}: {}{why}", e.desc())
        }
    };
    let groups: Vec<Gid> = ids.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    setgroups(&groups).map_err(hint("set the supplementary groups".to_owned()))?;
    let gid = Gid::from_raw(ids.gid);
    setresgid(gid, gid, gid).map_err(hint(format!("change to group {gid}")))?;
    let uid = Uid::from_raw(ids.uid);
    setresuid(uid, uid, uid).map_err(hint(format!("change to user {uid}")))
}

/// The last steps: after them the process can do little.
pub(super) fn confine(sandbox: &Sandbox) -> Result<()> {
    if sandbox.no_new_privileges {
        nix::sys::prctl::set_no_new_privs().map_err(cannot("forbid new privileges"))?;
    }
    Ok(())
}
