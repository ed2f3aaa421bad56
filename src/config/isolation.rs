//! `[isolation]`: what a service sees of the host, and what it may do there.

use super::capability;
use super::scope::Scope;
use super::section::{Item, Schema, Section};
use super::source::Problem;
use super::spec::{Bind, Isolation, Network, Profile, ReadyBy, Service, Template};
use super::syscalls;
use super::template::Placeholder;
use std::net::SocketAddr;

pub(super) static SCHEMA: Schema = Schema {
    name: "[isolation]",
    keys: &[
        "profile",
        "optional",
        "private_tmp",
        "read_only",
        "writable",
        "hidden",
        "bind",
        "private_devices",
        "private_pids",
        "network",
        "capabilities",
        "no_new_privileges",
        "syscalls",
        "landlock",
    ],
};

const PROFILES: [(&str, Profile); 3] =
    [("none", Profile::None), ("standard", Profile::Standard), ("strict", Profile::Strict)];

const NETWORKS: [(&str, Network); 3] =
    [("host", Network::Host), ("none", Network::None), ("loopback", Network::Loopback)];

pub(super) fn show_profile(profile: Profile) -> &'static str {
    PROFILES.iter().find(|(_, p)| *p == profile).map_or("", |(word, _)| word)
}

pub(super) fn show_network(network: Network) -> &'static str {
    NETWORKS.iter().find(|(_, n)| *n == network).map_or("", |(word, _)| word)
}

/// The keys that a kernel may be unable to do, and that `optional` may name: those of `[isolation]` by their own name, those
/// of other sections with the section's.
fn may_be_optional(key: &str) -> bool {
    match key.strip_prefix("limits.") {
        Some(rest) => !rest.is_empty(),
        None => SCHEMA.keys.contains(&key) && !["profile", "optional"].contains(&key),
    }
}

/// `None`: the file has no such section.
pub(super) fn decode(top: &Section<'_>, scope: &Scope<'_>) -> Option<Isolation> {
    let section = top.section("isolation", &SCHEMA);
    if !section.is_present() {
        return None;
    }
    let path = |item: &Item<'_>| path(item, scope);
    let paths = |key: &'static str| {
        let list = section.list(key, path)?;
        Some(list.into_iter().map(|at| at.value).collect::<Vec<Template>>())
    };
    let mut capabilities = section.list("capabilities", capability::decode);
    if let Some(list) = &mut capabilities {
        list.sort_by_key(|at| at.value);
        list.dedup_by_key(|at| at.value);
    }
    let rules = section.list("syscalls", syscalls::decode);
    if let Some(at) = rules.as_deref().and_then(syscalls::that_forbids_programs) {
        let problem = Problem::new(at.span, "without execve no program can start, the service itself included");
        section.file.report(problem.help("add \"execve\" behind it"));
    }
    let isolation = Isolation {
        profile: section.get("profile", |item| item.choice(&PROFILES)).unwrap_or_default(),
        optional: section.values("optional", optional),
        private_tmp: section.get("private_tmp", Item::boolean),
        read_only: paths("read_only"),
        writable: paths("writable").unwrap_or_default(),
        hidden: paths("hidden"),
        bind: binds(&section, scope),
        private_devices: section.get("private_devices", Item::boolean),
        private_pids: section.get("private_pids", Item::boolean),
        network: section.get("network", |item| item.choice(&NETWORKS)),
        capabilities: capabilities.map(|list| list.into_iter().map(|at| at.value).collect()),
        no_new_privileges: section.get("no_new_privileges", Item::boolean),
        syscalls: rules.map(|list| list.into_iter().map(|at| at.value).collect()),
        landlock: section.get("landlock", Item::boolean),
    };
    let filters = isolation.syscalls.as_ref().is_some_and(|rules| !rules.is_empty());
    let why = match (filters, isolation.landlock) {
        (true, _) => Some(("syscalls filters need", "syscalls = []")),
        (false, Some(true)) => Some(("landlock needs", "landlock = false")),
        _ => None,
    };
    if let (Some((what, instead)), Some(false), Some(item)) =
        (why, isolation.no_new_privileges, section.item("no_new_privileges"))
    {
        let problem = item
            .problem(format!("{what} no_new_privileges: a set-user-ID program could be misled by what is forbidden"));
        section.file.report(problem.help(format!("remove no_new_privileges = false, or set {instead}")));
    }
    Some(isolation)
}

/// What a network of the service's own cuts off. `service`: all of it is decoded.
pub(super) fn check_network(top: &Section<'_>, service: &Service) {
    let network = service.isolation.as_ref().and_then(|isolation| isolation.network).unwrap_or_default();
    let (Some(section), true) = (top.item("isolation"), network != Network::Host) else { return };
    let with = format!("with network = {:?}", show_network(network));
    let problem = |what: String, help: &str| section.file.report(section.problem(what).help(help));
    if network == Network::Loopback {
        let addresses = service.checks().filter_map(address_of).filter(|address| !service.listens_at(*address));
        for address in addresses.filter(|address| !address.ip().is_loopback()) {
            problem(
                format!(
                    "{with} a check of {address} fails: svd asks in the service's network, which has 127.0.0.1 alone"
                ),
                "check a port of 127.0.0.1, or leave network out",
            );
        }
        return;
    }
    let other = "set network = \"loopback\"";
    if service.has_check_of_port() {
        let help = format!("{other}, or let the check be a command, a notification or a probe of the service's socket");
        problem(format!("{with} svd cannot connect to a port of the service's for its checks"), &help);
    }
    if service.counts.statsd {
        problem(format!("{with} svd cannot be sent the service's counts"), other);
    }
}

/// Of a TCP check, where it is written as one.
fn address_of(check: &ReadyBy) -> Option<SocketAddr> {
    match check {
        ReadyBy::Tcp(address) => address.0.parse().ok(),
        _ => None,
    }
}

fn optional(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let key = item.name()?;
    match may_be_optional(&key) {
        true => Ok(key),
        false => Err(item
            .problem(format!("{key:?} is no key that can be optional"))
            .help("name a key of [isolation], or one of [limits] as \"limits.memory\"")),
    }
}

/// A path that is known when a generation begins, whatever the worker.
fn path(item: &Item<'_>, scope: &Scope<'_>) -> Result<Template, Problem> {
    known_path(item, scope.directory(item)?)
}

fn known_path(item: &Item<'_>, template: Template) -> Result<Template, Problem> {
    use Placeholder::{Release, Root, Service, Venv};
    if let Some(other) = template.placeholders().find(|p| !matches!(p, Release | Root | Service | Venv)) {
        let problem = item.problem(format!("{other} cannot be part of this path"));
        return Err(problem.help("{root}, {release}, {venv} and {service} can"));
    }
    match template.0.split('/').any(|part| part == "..") {
        true => Err(item.problem(format!("{:?} has \"..\" in it", template.0)).help("write where it leads")),
        false => Ok(template),
    }
}

/// `bind = { "/inside" = "/outside:ro" }`.
fn binds(section: &Section<'_>, scope: &Scope<'_>) -> Vec<Bind> {
    let mut all = Vec::new();
    for (target, item) in section.entries("bind") {
        let source = match item.text() {
            Ok(text) => text,
            Err(problem) => {
                item.file.report(problem);
                continue;
            }
        };
        let (source, read_only) = match source.rsplit_once(':') {
            Some((path, "ro")) => (path, true),
            Some((path, "rw")) => (path, false),
            _ => (source, false),
        };
        if !target.value.starts_with('/') || target.value.split('/').any(|part| part == "..") || target.value == "/" {
            let problem = Problem::new(target.span, format!("{:?} is no absolute path below /", target.value));
            item.file.report(problem.help("write where the service is to see it, as in \"/data\" = \"/srv/data:ro\""));
            continue;
        }
        let template = scope.template_of(&item, source).and_then(|template| {
            match template.0.starts_with('/') || template.placeholders().next().is_some() {
                true => known_path(&item, template),
                false => Err(item.problem(format!("{source:?} is not an absolute path")).help("begin it with \"/\"")),
            }
        });
        match template {
            Ok(source) => all.push(Bind { target: target.value.into(), source, read_only }),
            Err(problem) => item.file.report(problem),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};
    use super::*;

    fn with(keys: &str) -> String {
        format!("kind = 'command'\ncommand = ['a']\nroot = '/srv/{{service}}'\n[isolation]\n{keys}")
    }

    #[test]
    fn all_keys() {
        let all = with(
            "profile = 'strict'\noptional = ['landlock', 'limits.memory']\nprivate_tmp = true\nread_only = ['/']\n\
             writable = ['{root}/shared']\nhidden = []\nbind = { '/data' = '/srv/data:ro', '/b' = '{root}/b' }\n\
             private_devices = false\nprivate_pids = true\nnetwork = 'loopback'\n\
             capabilities = ['CAP_NET_RAW', 'chown', 'net_raw']\nno_new_privileges = true\n\
             syscalls = ['@service', '~mount', '~@clock']\nlandlock = true",
        );
        let isolation = service(&all).isolation.expect("the section");
        assert_eq!((isolation.profile, isolation.network), (Profile::Strict, Some(Network::Loopback)));
        assert_eq!(isolation.hidden, Some(Vec::new()), "an empty list is said, too");
        assert_eq!(isolation.bind.len(), 2);
        assert!(isolation.bind.iter().any(|b| &*b.target == "/data" && b.read_only && &*b.source.0 == "/srv/data"));
        let capabilities: Vec<_> = isolation.capabilities.into_iter().flatten().map(|c| c.name()).collect();
        assert_eq!(capabilities, ["chown", "net_raw"], "sorted, each once");
        assert_eq!(isolation.syscalls.map(|rules| rules.len()), Some(3));
        assert!(service("kind = 'command'\ncommand = ['a']").isolation.is_none());
        assert_eq!(service(&with("")).isolation, Some(Box::default()));
    }

    #[test]
    fn mistakes() {
        assert_eq!(helps(&with("profile = 'strickt'")), ["did you mean \"strict\"?"]);
        assert_eq!(helps(&with("capabilities = ['cap_net_rav']")), ["did you mean \"net_raw\"?"]);
        assert_eq!(helps(&with("syscalls = ['@servise']")), ["did you mean \"@service\"?"]);
        assert_eq!(helps(&with("syscalls = ['opennat']")), ["did you mean \"openat\"?"]);
        for rules in
            ["'@service', '~@default'", "'~execve'", "'@basic-io', '~execve', '~@aio'", "'~mount', '~@default'"]
        {
            assert_eq!(helps(&with(&format!("syscalls = [{rules}]"))), ["add \"execve\" behind it"], "{rules}");
        }
        let rules =
            service(&with("syscalls = ['@basic-io', '~@default', 'execve']")).isolation.and_then(|i| i.syscalls);
        assert_eq!(rules.map(|rules| rules.len()), Some(3));
        assert_eq!(helps(&with("writable = ['/x/{worker}']")), ["{root}, {release}, {venv} and {service} can"]);
        assert_eq!(helps(&with("hidden = ['/x/../y']")), ["write where it leads"]);
        assert_eq!(helps(&with("read_only = ['x']")), ["begin it with \"/\""]);
        assert_eq!(errors(&with("bind = { 'a' = '/b', '/' = '/x', '/c' = 'd', '/e' = 3 }")).len(), 4);
        assert_eq!(errors(&with("optional = ['profile', 'x', 'limits.', 'landlock']")).len(), 3);
        assert_eq!(errors(&with("no_new_privileges = false\nsyscalls = ['@service']")).len(), 1);
        assert_eq!(errors(&with("no_new_privileges = false\nlandlock = true")).len(), 1);
        service(&with("no_new_privileges = false\nsyscalls = []"));
        assert_eq!(errors(&with("network = 'none'\n[ready]\ntcp = '127.0.0.1:1'\n[counts]\nstatsd = true")).len(), 2);
        assert_eq!(errors(&with("network = 'none'\n[health]\nprobe = { path = '/', port = '{port}' }")).len(), 1);
        assert_eq!(errors(&with("network = 'loopback'\n[ready]\ntcp = '10.0.0.1:80'")).len(), 1);
        service(&with("network = 'loopback'\n[counts]\nstatsd = true\n[ready]\ntcp = '127.0.0.1:{port}'"));
        service(&with("network = 'none'\n[sockets.a]\nlisten = '10.0.0.1:80'\n[ready]\ntcp = '10.0.0.1:80'"));
        service(&with("network = 'none'\n[sockets.a]\nlisten = '127.0.0.1:1'\n[ready]\nprobe = { path = '/' }"));
    }
}
