//! The profiles, and what the keys change about them.

use crate::config::capability::Capability;
use crate::config::spec::{Bind, Isolation, Network, Profile, Service, SyscallRule, Template};
use std::path::PathBuf;

/// What holds, key by key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Beside the section.
    pub chroot: Option<PathBuf>,
    pub private_tmp: bool,
    pub read_only: Vec<Template>,
    pub writable: Vec<Template>,
    pub hidden: Vec<Template>,
    pub bind: Vec<Bind>,
    pub private_devices: bool,
    pub private_pids: bool,
    pub network: Network,
    /// `None`: what the user has, without what could undo the rest ([`Settings::capabilities`]).
    pub capabilities: Option<Vec<Capability>>,
    pub no_new_privileges: bool,
    pub syscalls: Vec<SyscallRule>,
    pub landlock: bool,
}

/// Of programs, configuration and the boot: no service changes them.
const SYSTEM: [&str; 4] = ["/boot", "/efi", "/etc", "/usr"];
/// Of people.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];
/// Where a service keeps what outlives its releases.
const SHARED: &str = "{root}/shared";

/// By which a process gets out of its view, or into the kernel.
const UNDOING: [&str; 7] =
    ["dac_read_search", "mknod", "sys_admin", "sys_boot", "sys_module", "sys_ptrace", "sys_rawio"];

fn templates(paths: &[&str]) -> Vec<Template> {
    paths.iter().map(|path| Template::new(*path)).collect()
}

fn profile(profile: Profile, has_root: bool) -> Settings {
    let standard = || Settings {
        private_tmp: true,
        read_only: SYSTEM.iter().chain(&super::view::KERNEL).map(|path| Template::new(*path)).collect(),
        hidden: templates(&HOMES),
        private_devices: true,
        no_new_privileges: true,
        ..Settings::default()
    };
    match profile {
        Profile::None => Settings::default(),
        Profile::Standard => standard(),
        Profile::Strict => Settings {
            read_only: templates(&["/"]),
            writable: if has_root { templates(&[SHARED]) } else { Vec::new() },
            private_pids: true,
            capabilities: Some(Vec::new()),
            syscalls: vec![SyscallRule { allow: true, name: "@service".into() }],
            ..standard()
        },
    }
}

/// What a service's file says.
pub fn of(service: &Service) -> Settings {
    let settings = settings(service.isolation.as_deref(), service.root.is_some());
    Settings { chroot: service.chroot.clone(), ..settings }
}

/// What a section means; `None`: there is none. `has_root`: the service has one.
pub fn settings(isolation: Option<&Isolation>, has_root: bool) -> Settings {
    let Some(isolation) = isolation else { return Settings::default() };
    let Isolation { optional: _, read_only, writable, hidden, bind, capabilities, syscalls, .. } = isolation.clone();
    let base = profile(isolation.profile, has_root);
    let syscalls = syscalls.unwrap_or(base.syscalls);
    let landlock = isolation.landlock.unwrap_or(base.landlock);
    Settings {
        chroot: None,
        private_tmp: isolation.private_tmp.unwrap_or(base.private_tmp),
        read_only: read_only.unwrap_or(base.read_only),
        writable: base.writable.into_iter().chain(writable).collect(),
        hidden: hidden.unwrap_or(base.hidden),
        bind,
        private_devices: isolation.private_devices.unwrap_or(base.private_devices),
        private_pids: isolation.private_pids.unwrap_or(base.private_pids),
        network: isolation.network.unwrap_or(base.network),
        capabilities: capabilities.or(base.capabilities),
        // A set-user-ID program could be misled by a filter, and the kernel takes none without.
        no_new_privileges: isolation.no_new_privileges.unwrap_or(base.no_new_privileges)
            || !syscalls.is_empty()
            || landlock,
        syscalls,
        landlock,
    }
}

impl Settings {
    /// The keys by which the service sees other files than its host.
    pub fn files(&self) -> Vec<&'static str> {
        let keys = [
            ("private_tmp", self.private_tmp),
            ("read_only", !self.read_only.is_empty()),
            ("hidden", !self.hidden.is_empty()),
            ("bind", !self.bind.is_empty()),
            ("private_devices", self.private_devices),
            ("chroot", self.chroot.is_some()),
        ];
        keys.into_iter().filter(|(_, is)| *is).map(|(key, _)| key).collect()
    }

    /// As if neither the file nor the profile said it.
    pub fn leave_out(&mut self, key: &str) {
        match key {
            "private_tmp" => self.private_tmp = false,
            "read_only" => self.read_only = Vec::new(),
            "hidden" => self.hidden = Vec::new(),
            "bind" => self.bind = Vec::new(),
            "private_devices" => self.private_devices = false,
            "private_pids" => self.private_pids = false,
            "network" => self.network = Network::Host,
            "capabilities" => self.capabilities = None,
            "syscalls" => self.syscalls = Vec::new(),
            "landlock" => self.landlock = false,
            _ => {}
        }
    }

    /// Does the service see other files than its host?
    pub fn has_view(&self) -> bool {
        self.private_pids || !self.files().is_empty()
    }

    /// The bounding set; `None`: all that there are.
    pub fn bounding_set(&self) -> Option<Vec<Capability>> {
        let undoes = |c: &Capability| UNDOING.iter().any(|name| Capability::named(name) == Some(*c));
        match &self.capabilities {
            Some(named) => Some(named.clone()),
            None if self.has_view() => Some(Capability::all().filter(|c| !undoes(c)).collect()),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(profile: Profile) -> Settings {
        settings(Some(&Isolation { profile, ..Isolation::default() }), true)
    }

    #[test]
    fn profiles() {
        assert_eq!((of(Profile::None), settings(None, true)), (Settings::default(), Settings::default()));
        assert!(!Settings::default().has_view() && Settings::default().bounding_set().is_none());
        let (standard, strict) = (of(Profile::Standard), of(Profile::Strict));
        assert!(standard.has_view() && standard.no_new_privileges && standard.syscalls.is_empty());
        let left = standard.bounding_set().expect("a set");
        let has = |name| left.contains(&Capability::named(name).expect("a capability"));
        assert!(has("chown") && !has("sys_admin") && !has("mknod"));
        assert!(strict.private_pids && !standard.private_pids);
        assert_eq!(strict.bounding_set(), Some(Vec::new()));
        assert_eq!((strict.read_only, strict.writable), (templates(&["/"]), templates(&["{root}/shared"])));
    }

    #[test]
    fn keys_beat_the_profile_and_paths_to_write_add_to_it() {
        let isolation = Isolation {
            profile: Profile::Strict,
            private_tmp: Some(false),
            hidden: Some(Vec::new()),
            writable: templates(&["/var/lib/a"]),
            syscalls: Some(Vec::new()),
            ..Isolation::default()
        };
        let strict = settings(Some(&isolation), false);
        assert!(!strict.private_tmp && strict.hidden.is_empty() && strict.syscalls.is_empty());
        assert_eq!(strict.writable, templates(&["/var/lib/a"]), "no root, so nothing is shared");
    }

    #[test]
    fn a_filter_needs_no_new_privileges() {
        let rules = vec![SyscallRule { allow: false, name: "@mount".into() }];
        let isolation = Isolation { syscalls: Some(rules), ..Isolation::default() };
        assert!(settings(Some(&isolation), true).no_new_privileges);
        let isolation = Isolation { landlock: Some(true), ..Isolation::default() };
        assert!(settings(Some(&isolation), true).no_new_privileges);
    }
}
