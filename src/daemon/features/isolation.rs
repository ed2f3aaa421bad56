//! What `[isolation]` needs: namespaces, filters, and rights.

use super::Missing;
use crate::config::capability::Capability;
use crate::config::spec::{AUTO_USER, Network, Service};
use crate::isolation::{self, Settings};
use crate::sys::limits::Capability as Right;
use crate::sys::sandbox::probe::{self, Found};

#[derive(Debug, Default)]
pub struct Features {
    found: Found,
}

/// Keys that cannot be had, and what they need.
struct Lack {
    keys: Vec<&'static str>,
    /// `a mount namespace: WHY`
    needs: String,
}

impl Features {
    /// Starts a process, and waits for it.
    pub fn probe() -> Features {
        let found = probe::probe().unwrap_or_else(|why| {
            tracing::warn!("{why}; a service that asks for what cannot be had fails when it starts");
            Found::default()
        });
        Features { found }
    }

    /// Is all of it made in a user namespace, as svd has not the rights itself?
    pub fn needs_user_namespace(&self, settings: &Settings) -> bool {
        match settings.has_view() || settings.network != Network::Host {
            true => !self.found.is_mighty(),
            // A plain user gets none by a program that it starts.
            false if settings.no_new_privileges && !self.found.root => false,
            false => settings.bounding_set().is_some() && !self.found.has(Right::SetPcap),
        }
    }

    /// What holds for a service here: without what it may lack and cannot have.
    pub fn settings(&self, spec: &Service) -> Settings {
        self.allowed(spec).0
    }

    /// What is left out of a service's isolation, each a sentence without its end.
    pub fn left_out(&self, spec: &Service) -> Vec<String> {
        self.allowed(spec).1
    }

    /// What the service asks for and cannot have, and does not say that it may lack.
    pub fn missing(&self, spec: &Service) -> Vec<Missing> {
        let mut missing = Vec::new();
        if spec.user.as_deref() == Some(AUTO_USER) && !(self.found.root && self.found.has(Right::SetUid)) {
            let why = "user = \"auto\" needs an svd that root runs: only root may start processes as another user. \
                       Remove the key, and the service runs as svd's own user";
            missing.push(Missing { key: "user", why: why.to_owned() });
        }
        let lacking = self.lacking(&self.settings(spec));
        missing.extend(lacking.into_iter().map(|lack| Missing { key: lack.keys[0], why: lack.sentence() }));
        missing
    }

    /// Leaving out one key may change what others need.
    fn allowed(&self, spec: &Service) -> (Settings, Vec<String>) {
        let mut settings = isolation::of(spec);
        let mut said = Vec::new();
        let optional = |key: &&'static str| super::may_lack(spec, key);
        loop {
            let mut lacking = self.lacking(&settings);
            lacking.iter_mut().for_each(|lack| lack.keys.retain(optional));
            lacking.retain(|lack| !lack.keys.is_empty());
            if lacking.is_empty() {
                return (settings, said);
            }
            for lack in lacking {
                lack.keys.iter().for_each(|key| self.leave_out(&mut settings, key));
                said.push(lack.sentence());
            }
        }
    }

    fn leave_out(&self, settings: &mut Settings, key: &str) {
        let apart = self.needs_user_namespace(settings);
        match (key, &mut settings.capabilities) {
            // Fewer of them is what can be had.
            ("capabilities", Some(named)) if self.found.user_namespace.is_ok() && !named.is_empty() => {
                named.retain(|capability| !apart && self.gives(*capability));
            }
            _ => settings.leave_out(key),
        }
    }

    fn gives(&self, capability: Capability) -> bool {
        self.found.root && self.found.capabilities & 1_u64.checked_shl(capability.0.into()).unwrap_or(0) != 0
    }

    fn lacking(&self, settings: &Settings) -> Vec<Lack> {
        let found = &self.found;
        let (views, pids, network) = (settings.files(), settings.private_pids, settings.network != Network::Host);
        let asked = |is: bool, key: &'static str| if is { vec![key] } else { Vec::new() };
        let (pids, network) = (asked(pids, "private_pids"), asked(network, "network"));
        let mut lacking = Vec::new();
        let mut need = |keys: Vec<&'static str>, needs: String| {
            if !keys.is_empty() {
                lacking.push(Lack { keys, needs });
            }
        };
        let apart = self.needs_user_namespace(settings);
        let named = settings.capabilities.as_deref().unwrap_or_default();
        if let (true, Err(why)) = (apart, &found.user_namespace) {
            let mut all = [views, pids, network].concat();
            if all.is_empty() {
                all.push("capabilities");
            }
            need(
                all,
                format!("a user namespace, for svd has not the rights itself, and it {why}; or let root run svd"),
            );
        } else {
            let mut tried = |keys, what: &str, result: &Result<(), String>| {
                if let Err(why) = result {
                    need(keys, format!("{what}, and svd {why}"));
                }
            };
            let devices =
                if found.mounts.is_ok() { asked(settings.private_devices, "private_devices") } else { Vec::new() };
            tried(views, "a mount namespace", &found.mounts);
            tried(devices, "terminals of its own (devpts)", &found.terminals);
            tried(pids, "a process namespace", &found.processes);
            tried(network, "a network namespace", &found.network);
            let not_given: Vec<String> = named.iter().filter(|c| apart || !self.gives(**c)).map(|c| c.name()).collect();
            if !not_given.is_empty() {
                let why = match (found.root, apart) {
                    (false, _) => "which only an svd that root runs can give",
                    (true, true) => {
                        "which svd cannot give beside the other keys: it lacks CAP_SYS_ADMIN or CAP_SETPCAP, so \
                                     that they need a user namespace, in which capabilities mean nothing to the host"
                    }
                    (true, false) => "which svd has not itself",
                };
                need(vec!["capabilities"], format!("{}, {why}", not_given.join(", ")));
            }
        }
        if let Err(why) = &found.syscalls {
            need(asked(!settings.syscalls.is_empty(), "syscalls"), format!("seccomp, and {why}"));
        }
        if let Err(why) = &found.landlock {
            need(asked(settings.landlock, "landlock"), format!("Landlock, and {why}"));
        }
        lacking
    }
}

impl Lack {
    fn sentence(&self) -> String {
        let keys = match self.keys.split_last() {
            Some((last, rest)) if !rest.is_empty() => format!("{} and {last} need", rest.join(", ")),
            _ => format!("{} needs", self.keys.join("")),
        };
        // It stands at the file's top.
        let section = if self.keys == ["chroot"] { "" } else { "[isolation] " };
        format!("{section}{keys} {}", self.needs)
    }
}
