//! Names of capabilities, as `capabilities(7)` has them.

use serde::{Deserialize, Serialize};

use super::section::Item;
use super::source::Problem;
use super::suggest;

/// In the order of their numbers (`linux/capability.h`).
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// One capability, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Capability(pub u8);

impl Capability {
    /// `net_bind_service` or `CAP_NET_BIND_SERVICE`.
    pub fn named(name: &str) -> Option<Capability> {
        let lower = name.to_ascii_lowercase();
        let short = lower.strip_prefix("cap_").unwrap_or(&lower);
        let number = NAMES.iter().position(|known| *known == short)?;
        u8::try_from(number).ok().map(Capability)
    }

    /// All that have a name.
    pub fn all() -> impl Iterator<Item = Capability> {
        (0..).zip(NAMES).map(|(number, _)| Capability(number))
    }

    /// As in a file; its number, where a later kernel has more.
    pub fn name(self) -> String {
        NAMES.get(usize::from(self.0)).map_or_else(|| self.0.to_string(), |name| (*name).to_owned())
    }
}

pub(super) fn decode(item: &Item<'_>) -> Result<Capability, Problem> {
    let text = item.text()?;
    Capability::named(text).ok_or_else(|| {
        let problem = item.problem(format!("the kernel has no capability {text:?}"));
        let lower = text.to_ascii_lowercase();
        let short = lower.strip_prefix("cap_").unwrap_or(&lower);
        match suggest::closest(short, NAMES.into_iter()) {
            Some(name) => problem.help(format!("did you mean {name:?}?")),
            None => problem.help("capabilities(7) lists them; write \"net_bind_service\" for CAP_NET_BIND_SERVICE"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        for (name, number) in
            [("chown", 0), ("CAP_NET_BIND_SERVICE", 10), ("sys_admin", 21), ("checkpoint_restore", 40)]
        {
            assert_eq!(Capability::named(name), Some(Capability(number)));
        }
        assert_eq!((Capability(10).name().as_str(), Capability(63).name().as_str()), ("net_bind_service", "63"));
        assert_eq!(Capability::all().count(), 41);
    }
}
