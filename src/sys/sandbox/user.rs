//! A user namespace (`user_namespaces(7)`): in it a plain user has the rights to make a sandbox, and nothing more than before over
//! the host.

use super::entrance::{Result, cannot};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{getegid, geteuid};

/// Leaves svd's user namespace. The one user and the one group of the process are the same inside; all others are nobody.
pub(super) fn leave() -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER).map_err(|e| format!("cannot make a user namespace: {}", why(e)))?;
    // A change of user has made root the owner of the files below.
    nix::sys::prctl::set_dumpable(true).map_err(cannot("set up the user namespace"))?;
    write("setgroups", "deny")?;
    write("uid_map", &format!("{uid} {uid} 1"))?;
    write("gid_map", &format!("{gid} {gid} 1"))
}

fn write(name: &str, text: &str) -> Result<()> {
    std::fs::write(format!("/proc/self/{name}"), text)
        .map_err(|e| format!("cannot set up the user namespace ({name}): {}", super::super::io_text(&e)))
}

/// Switches by which hosts forbid them, with the value that does, and what to set instead.
const SWITCHES: [(&str, &str, &str); 3] = [
    ("user.max_user_namespaces", "0", "10000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0, or give svd an AppArmor profile with \"userns,\""),
];

/// The error, and the switch that seems to be its cause.
fn why(errno: Errno) -> String {
    match forbidden() {
        Some(switch) => format!("{}; {switch}", errno.desc()),
        None => errno.desc().to_owned(),
    }
}

/// The switch by which this host forbids them, and what to do.
pub(super) fn forbidden() -> Option<String> {
    SWITCHES.iter().find_map(|(name, value, instead)| {
        let set = std::fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?;
        (set.trim() == *value).then(|| format!("{name} is {value} here: let root set it to {instead} (sysctl)"))
    })
}
