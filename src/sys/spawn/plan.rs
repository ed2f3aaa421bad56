//! From what a child needs to what it works from: plain memory, laid out before the fork.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;

use super::arena::Arena;
use super::child::{PID_TEXT, Plan, RawIds, RawWire};
use super::{Prepared, Slot, Source, Wire};

/// Copies everything into the arena.
///
/// # Errors
/// `E2BIG`: it does not fit.
pub(super) fn lay_out<'a>(prepared: &Prepared, slot: &'a Slot, arena: &'a Arena) -> Result<Plan<'a>, Errno> {
    let strings = |texts: &[std::ffi::CString], room: usize| {
        let mut pointers = Vec::with_capacity(texts.len() + room);
        for text in texts {
            pointers.push(string(arena, text)?);
        }
        Ok::<_, Errno>(pointers)
    };
    let mut argv = strings(&prepared.argv, 1)?;
    argv.push(std::ptr::null());
    let mut envp = strings(&prepared.environment, 3)?;
    let mut pids = [None, None];
    let wanted = [(prepared.listen_pid, &b"LISTEN_PID="[..]), (prepared.watchdog_pid, &b"WATCHDOG_PID="[..])];
    for (pid, (wanted, name)) in pids.iter_mut().zip(wanted) {
        if wanted {
            // Room for the digits and NUL.
            let text = arena.copy(&[0_u8; PID_TEXT])?;
            text[..name.len()].copy_from_slice(name);
            envp.push(text.as_ptr().cast());
            *pid = Some(&mut text[name.len()..]);
        }
    }
    envp.push(std::ptr::null());
    let ids = match &prepared.ids {
        Some(ids) => Some(RawIds { uid: ids.uid, gid: ids.gid, groups: arena.copy(&ids.groups)? }),
        None => None,
    };
    Ok(Plan {
        slot: slot.word(),
        program: string(arena, &prepared.program)?,
        argv: arena.copy(&argv)?.as_ptr(),
        envp: arena.copy(&envp)?.as_ptr(),
        directory: string(arena, &prepared.directory)?,
        wires: arena.copy(&wires(&prepared.descriptors, arena)?)?,
        pids,
        ids,
        umask: prepared.umask,
        nice: prepared.nice,
        io: prepared.io.map(super::IoPriority::number),
        cpus: arena.copy(prepared.cpus.words())?,
        limits: arena.copy(&prepared.limits)?,
        oom_score_adj: prepared.oom_score_adj,
        session: prepared.session,
        terminal: prepared.terminal,
        ignored_signals: 0,
        join_cgroup: None,
        share_files: false,
    })
}

fn string(arena: &Arena, text: &CStr) -> Result<*const libc::c_char, Errno> {
    Ok(arena.copy(text.to_bytes_with_nul())?.as_ptr().cast())
}

/// In the order of their targets, 0 to 2 filled up; a later wire for the same target wins.
fn wires(wires: &[Wire], arena: &Arena) -> Result<Vec<RawWire>, Errno> {
    let null: &'static CStr = c"/dev/null";
    let null = |target: RawFd| RawWire::path(null.as_ptr(), libc::O_RDWR, target);
    let mut raw: Vec<RawWire> = Vec::with_capacity(wires.len() + 3);
    raw.extend((0..3).filter(|target| !wires.iter().any(|w| w.target == *target)).map(null));
    for (i, wire) in wires.iter().enumerate() {
        if wires[i + 1..].iter().any(|w| w.target == wire.target) {
            continue;
        }
        raw.push(match &wire.source {
            Source::Fd(fd) => RawWire::fd(fd.as_raw_fd(), wire.target),
            Source::Path { path, flags } => RawWire::path(string(arena, path)?, *flags, wire.target),
            Source::Null => null(wire.target),
        });
    }
    raw.sort_unstable_by_key(|w| w.target);
    Ok(raw)
}
