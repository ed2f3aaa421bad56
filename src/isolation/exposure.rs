//! How much of its host a service could reach if it were taken over, key by key, and what to change. Pure.

use std::path::Path;

use serde::Serialize;

use super::Settings;
use crate::config::capability::Capability;
use crate::config::secrecy;
use crate::config::spec::{AUTO_USER, Listen, Network, SecretTo, Service, Template};

/// One key's part in the exposure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    pub key: &'static str,
    /// What the file says, or what holds without it.
    pub state: String,
    /// Of ten, how much of what this key decides is open.
    pub open: f64,
    /// Of all that ten are made of, this key's share if it is wide open.
    pub weight: f64,
    /// What that exposes, and what to change; absent where nothing is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposes: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub change: Option<String>,
}

impl Part {
    /// Its part of the total.
    pub fn exposure(&self) -> f64 {
        self.weight * self.open / 10.0
    }
}

/// A service's exposure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exposure {
    /// From 0 to 10.
    pub total: f64,
    pub word: &'static str,
    /// The largest first.
    pub parts: Vec<Part>,
}

/// `unsafe`, `exposed`, `medium`, `guarded` or `tight`.
pub fn word(total: f64) -> &'static str {
    match total {
        t if t >= 9.0 => "unsafe",
        t if t >= 7.0 => "exposed",
        t if t >= 4.0 => "medium",
        t if t >= 2.0 => "guarded",
        _ => "tight",
    }
}

/// Groups whose members can become root.
pub(super) const AS_ROOT: [&str; 9] = ["adm", "disk", "docker", "kmem", "lxd", "root", "shadow", "sudo", "wheel"];
/// Capabilities by which a process takes over its host, or leaves its view.
pub(super) const MIGHTY: [&str; 15] = [
    "bpf",
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "mknod",
    "setfcap",
    "setgid",
    "setuid",
    "sys_admin",
    "sys_boot",
    "sys_module",
    "sys_ptrace",
    "sys_rawio",
    "mac_admin",
];

/// `shared`: others of this configuration run as the same user.
pub fn exposure(service: &Service, shared: bool) -> Exposure {
    let settings = super::of(service);
    let mut parts = vec![user(service, shared), groups(service), capabilities(service, &settings)];
    parts.extend([no_new_privileges(&settings), syscalls(&settings)]);
    parts.extend([read_only(service, &settings), writable(&settings), hidden(service, &settings), binds(&settings)]);
    parts.extend([
        yes(settings.private_tmp, "isolation.private_tmp", 500.0, "files of others in /tmp, and theirs of it"),
        yes(
            settings.private_devices,
            "isolation.private_devices",
            800.0,
            "devices of the host, as far as the user may open them",
        ),
        yes(
            settings.private_pids,
            "isolation.private_pids",
            700.0,
            "other processes: their command lines, and signals to those of the same user",
        ),
        network(&settings),
        yes(settings.landlock, "isolation.landlock", 300.0, "files, should the view of them be left"),
    ]);
    parts.extend([limits(service), umask(service), listens(service), environment(service), secrets(service)]);
    let whole: f64 = parts.iter().map(|part| part.weight).sum();
    for part in &mut parts {
        part.weight *= 10.0 / whole;
    }
    parts.sort_by(|a, b| b.exposure().total_cmp(&a.exposure()));
    let total = (parts.iter().map(Part::exposure).sum::<f64>() * 10.0).round() / 10.0;
    Exposure { total, word: word(total), parts }
}

fn part(
    key: &'static str,
    weight: f64,
    state: impl Into<String>,
    open: f64,
    exposes: &'static str,
    change: impl Into<String>,
) -> Part {
    let is_open = open > 0.0;
    let change = is_open.then(|| change.into());
    Part { key, state: state.into(), open, weight, exposes: is_open.then_some(exposes), change }
}

fn yes(holds: bool, key: &'static str, weight: f64, exposes: &'static str) -> Part {
    let name = key.rsplit('.').next().unwrap_or(key);
    let open = if holds { 0.0 } else { 10.0 };
    part(key, weight, if holds { "true" } else { "false" }, open, exposes, format!("[isolation] {name} = true"))
}

/// Is it root, as far as the file tells? Without a user it is svd's own: root, on a host.
pub(super) fn is_root(service: &Service) -> bool {
    matches!(service.user.as_deref(), None | Some("root" | "0"))
}

fn user(service: &Service, shared: bool) -> Part {
    let state = service.user.as_deref().unwrap_or("svd's own");
    let (open, exposes) = match () {
        () if is_root(service) => (10.0, "as root, all that the keys below leave open"),
        () if service.user.as_deref() == Some(AUTO_USER) => (0.0, ""),
        () if shared || state == "nobody" => (4.0, "the files and processes of others that run as this user"),
        () => (0.5, "the files of an account that others may use as well"),
    };
    part("user", 2000.0, state, open, exposes, "user = \"auto\", a user of its own")
}

fn groups(service: &Service) -> Part {
    let all: Vec<&str> = service.groups.iter().chain(&service.group).map(|group| &**group).collect();
    let open = match all.iter().any(|group| AS_ROOT.contains(group)) {
        true => 10.0,
        false => f64::from(u8::try_from(all.len()).unwrap_or(u8::MAX)).min(2.0),
    };
    let state = if all.is_empty() { "the user's own".to_owned() } else { all.join(", ") };
    part("groups", 300.0, state, open, "what the members of these groups may do", "only those whose files it needs")
}

fn is_mighty(capability: Capability) -> bool {
    MIGHTY.iter().any(|name| Capability::named(name) == Some(capability))
}

fn capabilities(service: &Service, settings: &Settings) -> Part {
    let set = settings.bounding_set();
    let named = settings.capabilities.is_some();
    let (state, open) = match &set {
        None => ("all".to_owned(), if is_root(service) { 10.0 } else { 4.0 }),
        Some(_) if !named => ("all but those that undo its view".to_owned(), if is_root(service) { 7.0 } else { 2.0 }),
        Some(set) if set.is_empty() => ("none".to_owned(), 0.0),
        Some(set) => {
            let names: Vec<String> = set.iter().map(|capability| capability.name()).collect();
            (names.join(", "), if set.iter().any(|c| is_mighty(*c)) { 9.0 } else { 2.0 })
        }
    };
    let exposes = "parts of root's power, at once or by a set-user-ID program";
    part(
        "isolation.capabilities",
        1500.0,
        state,
        open,
        exposes,
        "[isolation] capabilities = [], or the one that it needs",
    )
}

fn no_new_privileges(settings: &Settings) -> Part {
    yes(settings.no_new_privileges, "isolation.no_new_privileges", 1000.0, "set-user-ID programs such as sudo and su")
}

fn syscalls(settings: &Settings) -> Part {
    let rules: Vec<String> =
        settings.syscalls.iter().map(|rule| format!("{}{}", if rule.allow { "" } else { "~" }, rule.name)).collect();
    let (state, open) = match settings.syscalls.iter().any(|rule| rule.allow) {
        _ if rules.is_empty() => ("all".to_owned(), 10.0),
        true => (rules.join(", "), 1.0),
        false => (rules.join(", "), 6.0),
    };
    let exposes = "faults of the kernel, by system calls that a server never makes";
    part("isolation.syscalls", 1300.0, state, open, exposes, "[isolation] syscalls = [\"@service\"]")
}

fn shown(paths: &[Template]) -> String {
    match paths {
        [] => "none".to_owned(),
        paths => paths.iter().map(|path| &*path.0).collect::<Vec<_>>().join(", "),
    }
}

fn covers(paths: &[Template], path: &str) -> bool {
    paths.iter().any(|cover| Path::new(path).starts_with(&*cover.0))
}

/// What is said of files, where they are those of another root.
fn within(service: &Service, state: String) -> String {
    match &service.chroot {
        Some(root) => format!("{state}, in {}", root.display()),
        None => state,
    }
}

fn read_only(service: &Service, settings: &Settings) -> Part {
    let paths = &settings.read_only;
    let open = match () {
        () if covers(paths, "/") => 0.0,
        // What it breaks there is its own.
        () if service.chroot.is_some() => 4.0,
        () if covers(paths, "/usr") && covers(paths, "/etc") => 4.0,
        () if paths.is_empty() => 10.0,
        () => 7.0,
    };
    let change = "[isolation] read_only = [\"/\"], and writable for what it writes to";
    let state = within(service, shown(paths));
    part("isolation.read_only", 1000.0, state, open, "all files that its user may write to", change)
}

/// Is this where code or the host's own configuration is?
pub(super) fn is_code(path: &str) -> bool {
    let exact = ["/", "{root}", "{release}", "{venv}", "{root}/current", "{root}/releases", "{root}/venv"];
    let path = if path == "/" { path } else { path.trim_end_matches('/') };
    let below = ["{release}", "{venv}", "/bin", "/boot", "/etc", "/lib", "/lib64", "/sbin", "/usr", "/root"];
    exact.contains(&path) || below.iter().any(|place| Path::new(path).starts_with(place))
}

fn writable(settings: &Settings) -> Part {
    let open = match () {
        // Without a read-only path, that key tells all.
        () if settings.read_only.is_empty() => 10.0,
        () if settings.writable.iter().any(|path| is_code(&path.0)) => 10.0,
        () => 0.0,
    };
    let state = if settings.read_only.is_empty() { "everything".to_owned() } else { shown(&settings.writable) };
    let change = "[isolation] writable: places of data alone, such as {root}/shared";
    part("isolation.writable", 500.0, state, open, "its own code and the system's: what breaks in stays", change)
}

fn hidden(service: &Service, settings: &Settings) -> Part {
    let is_bound = settings
        .bind
        .iter()
        .any(|bind| ["/home", "/root"].iter().any(|home| Path::new(&*bind.source.0).starts_with(home)));
    let open = match (covers(&settings.hidden, "/home"), covers(&settings.hidden, "/root")) {
        (true, true) => 0.0,
        // The host's are not in it.
        _ if service.chroot.is_some() && !is_bound => 0.0,
        (false, false) => 10.0,
        _ => 5.0,
    };
    let change = "[isolation] hidden = [\"/home\", \"/root\", \"/run/user\"]";
    let state = within(service, shown(&settings.hidden));
    part("isolation.hidden", 500.0, state, open, "the homes of people: keys and tokens", change)
}

/// By which the host is given back, if it can be written to or connected with.
pub(super) fn is_hosts(source: &str) -> bool {
    let exact = ["/", "/dev", "/etc", "/proc", "/run", "/sys", "/usr", "/var", "/var/run"];
    let within = ["/proc", "/sys", "/dev", "/etc", "/run/airdock", "/var/lib/airdock"];
    let path = if source == "/" { source } else { source.trim_end_matches('/') };
    exact.contains(&path)
        || path.ends_with("docker.sock")
        || within.iter().any(|place| Path::new(path).starts_with(place))
}

fn binds(settings: &Settings) -> Part {
    let state: Vec<&str> = settings.bind.iter().map(|bind| &*bind.target).collect();
    let open = match settings.bind.iter().any(|bind| !bind.read_only && is_hosts(&bind.source.0)) {
        true => 10.0,
        false => 0.0,
    };
    let state = if state.is_empty() { "none".to_owned() } else { state.join(", ") };
    part(
        "isolation.bind",
        200.0,
        state,
        open,
        "what the host itself is run by",
        "bind = { \"/inside\" = \"/outside:ro\" }, of data alone",
    )
}

fn network(settings: &Settings) -> Part {
    let (state, open) = match settings.network {
        Network::Host => ("host", 10.0),
        Network::Loopback => ("loopback", 1.0),
        Network::None => ("none", 0.0),
    };
    let exposes = "connections to anywhere, also to what listens for this host alone";
    let change = "[isolation] network = \"loopback\" or \"none\", where svd's sockets are enough";
    part("isolation.network", 1000.0, state, open, exposes, change)
}

fn limits(service: &Service) -> Part {
    let limits = &service.limits;
    let given = [("memory", limits.memory.is_some()), ("tasks", limits.tasks.is_some()), ("cpu", limits.cpu.is_some())];
    let missing: Vec<&str> = given.iter().filter(|(_, is)| !is).map(|(name, _)| *name).collect();
    let open = match missing.len() {
        0 => 0.0,
        1 => 3.0,
        2 => 6.0,
        _ => 10.0,
    };
    let state = if missing.is_empty() { "given".to_owned() } else { format!("no {}", missing.join(", ")) };
    part("limits", 300.0, state, open, "the host's memory, processes and time", "[limits] memory, tasks and cpu")
}

fn umask(service: &Service) -> Part {
    let (state, open) = match service.umask {
        None => ("svd's own".to_owned(), 3.0),
        Some(mask) => (
            format!("{mask:04o}"),
            if mask & 0o002 == 0 {
                10.0
            } else if mask & 0o004 == 0 {
                3.0
            } else {
                0.0
            },
        ),
    };
    part("umask", 100.0, state, open, "new files, to all users of the host", "umask = \"0027\"")
}

/// Does it answer everybody who reaches the host?
pub(super) fn is_public(service: &Service) -> bool {
    service.sockets.iter().any(|s| matches!(&s.listen, Listen::Tcp(address) if !address.ip().is_loopback()))
}

fn listens(service: &Service) -> Part {
    let open_to_all =
        |s: &crate::config::spec::Socket| matches!(&s.listen, Listen::Unix { mode, .. } if mode & 0o006 != 0);
    let (state, open) = match () {
        () if is_public(service) => ("the network", 10.0),
        () if service.sockets.iter().any(open_to_all) => ("all users of the host", 3.0),
        () if service.sockets.is_empty() => ("no socket of svd's", 0.0),
        () => ("this host", 1.0),
    };
    let change = "listen = \"127.0.0.1:…\", or unix: with mode = \"0660\", behind a web server";
    part("sockets", 300.0, state, open, "the service itself, to whoever can connect", change)
}

/// Variables whose value is a secret, and stands in the file.
pub(super) fn literal_secrets(service: &Service) -> Vec<&str> {
    let is = |(name, value): &&(Box<str>, Template)| secrecy::variable(name, &value.0) != *value.0;
    service.environment.iter().filter(is).map(|(name, _)| &**name).collect()
}

fn environment(service: &Service) -> Part {
    let secrets = literal_secrets(service);
    let open = if secrets.is_empty() { 0.0 } else { 10.0 };
    let state = if secrets.is_empty() { "no secret in the file".to_owned() } else { secrets.join(", ") };
    let change = "into [secrets], or a file that only root reads, by environment_files";
    part("environment", 200.0, state, open, "secrets, to whoever reads the file or a copy of it", change)
}

fn secrets(service: &Service) -> Part {
    let variables = service.secrets.iter().filter(|secret| secret.to == SecretTo::Variable);
    let variables: Vec<&str> = variables.map(|secret| &*secret.name).collect();
    let state = match (service.secrets.len(), &variables[..]) {
        (0, _) => "none".to_owned(),
        (_, []) => "files".to_owned(),
        (_, names) => format!("variables: {}", names.join(", ")),
    };
    let open = if variables.is_empty() { 0.0 } else { 3.0 };
    let exposes = "them to all that the service starts, and to its reports of crashes";
    part("secrets", 100.0, state, open, exposes, "as = \"file\", where the program can read one")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_texts;

    fn of(text: &str) -> Exposure {
        let text = format!("kind = 'command'\ncommand = ['a']\nroot = '/srv/a'\n{text}");
        let config = load_texts(None, &[("a", &text)]).unwrap_or_else(|e| panic!("{e}"));
        exposure(&config.services["a"], false)
    }

    fn open(exposure: &Exposure, key: &str) -> f64 {
        exposure.parts.iter().find(|part| part.key == key).unwrap_or_else(|| panic!("{key}")).open
    }

    #[test]
    fn each_profile_leaves_less() {
        let bare = of("");
        let user = of("user = 'auto'");
        let standard = of("user = 'auto'\n[isolation]\nprofile = 'standard'");
        let strict = of(
            "user = 'auto'\numask = '0077'\n[isolation]\nprofile = 'strict'\n[limits]\nmemory = '1GiB'\ntasks = 100\ncpu = '100%'",
        );
        let all = of(
            "user = 'auto'\numask = '0077'\n[isolation]\nprofile = 'strict'\nprivate_pids = true\nlandlock = true\nnetwork = 'none'\n[limits]\nmemory = '1GiB'\ntasks = 100\ncpu = '100%'",
        );
        let totals = [&bare, &user, &standard, &strict, &all].map(|e| e.total);
        assert!(totals.windows(2).all(|two| two[0] > two[1] + 0.4), "{totals:?}");
        let words = [&bare, &user, &standard, &strict].map(|e| e.word);
        assert_eq!(words, ["unsafe", "medium", "guarded", "tight"], "{totals:?}");
        let whole: f64 = bare.parts.iter().map(|part| part.weight).sum();
        assert!((whole - 10.0).abs() < 1e-9 && bare.total <= 10.0);
        assert!(
            all.parts
                .iter()
                .filter(|part| part.open == 0.0)
                .all(|part| part.change.is_none() && part.exposes.is_none())
        );
    }

    #[test]
    fn each_key_counts_by_itself() {
        for (key, worse, better) in [
            ("user", "user = 'root'", "user = 'web'"),
            ("user", "user = 'nobody'", "user = 'auto'"),
            ("groups", "groups = ['docker']", "groups = ['media']"),
            ("isolation.capabilities", "user = 'a'", "user = 'a'\n[isolation]\nprofile = 'standard'"),
            (
                "isolation.capabilities",
                "[isolation]\ncapabilities = ['sys_admin']",
                "[isolation]\ncapabilities = ['net_bind_service']",
            ),
            ("isolation.no_new_privileges", "", "[isolation]\nno_new_privileges = true"),
            ("isolation.syscalls", "[isolation]\nsyscalls = ['~@mount']", "[isolation]\nsyscalls = ['@service']"),
            ("isolation.read_only", "[isolation]\nread_only = ['/usr', '/etc']", "[isolation]\nread_only = ['/']"),
            (
                "isolation.writable",
                "[isolation]\nprofile = 'strict'\nwritable = ['{release}/x']",
                "[isolation]\nprofile = 'strict'",
            ),
            ("isolation.hidden", "[isolation]\nhidden = ['/home']", "[isolation]\nhidden = ['/home', '/root']"),
            (
                "isolation.bind",
                "[isolation]\nbind = { '/x' = '/run/docker.sock' }",
                "[isolation]\nbind = { '/x' = '/srv/x' }",
            ),
            ("isolation.network", "", "[isolation]\nnetwork = 'loopback'"),
            ("isolation.private_tmp", "", "[isolation]\nprivate_tmp = true"),
            ("isolation.private_devices", "", "[isolation]\nprivate_devices = true"),
            ("isolation.private_pids", "", "[isolation]\nprivate_pids = true"),
            ("isolation.landlock", "", "[isolation]\nlandlock = true"),
            ("limits", "[limits]\ntasks = 9", "[limits]\ntasks = 9\nmemory = '1GiB'"),
            ("umask", "umask = '0000'", "umask = '0027'"),
            ("sockets", "[sockets.x]\nlisten = '0.0.0.0:1'", "[sockets.x]\nlisten = '127.0.0.1:1'"),
            ("sockets", "[sockets.x]\nlisten = 'unix:/x'", "[sockets.x]\nlisten = 'unix:/x'\nmode = '0660'"),
            ("isolation.hidden", "", "chroot = '/srv/x'"),
            ("isolation.read_only", "", "chroot = '/srv/x'"),
            (
                "isolation.hidden",
                "chroot = '/srv/x'\n[isolation]\nbind = { '/h' = '/home' }",
                "chroot = '/srv/x'\n[isolation]\nbind = { '/h' = '/srv/a' }",
            ),
            (
                "secrets",
                "[secrets]\nA = { file = '/etc/a', as = 'env' }",
                "[secrets]\nA = { file = '/etc/a', as = 'file' }",
            ),
            ("environment", "[environment]\nAPI_TOKEN = 'x'", "[environment]\nAPI_TOKEN = '{env.T}'"),
        ] {
            let (worse_by, better_by) = (of(worse), of(better));
            assert!(open(&worse_by, key) > open(&better_by, key), "{key}: {worse} against {better}");
            assert!(worse_by.total >= better_by.total, "{key}: {worse} against {better}");
        }
    }
}
