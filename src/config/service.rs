//! A file of `conf.d`: its top, and the sections in it.

use super::kind;
use super::scope::Scope;
use super::section::{self, Item, Schema, Section};
use super::source::{At, File, Problem, Span};
use super::spec::{Service, Template};
use super::{
    counts, deploy, health, isolation, java, limits, logs, ready, reload, restart, secrets, sockets, stop, units,
};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use toml::de::DeTable;

pub(super) static SCHEMA: Schema = Schema {
    name: section::TOP,
    keys: &[
        "kind",
        "root",
        "user",
        "group",
        "groups",
        "chroot",
        "directory",
        "umask",
        "autostart",
        "after",
        "requires",
        "environment_files",
        // Of one kind each.
        "app",
        "python",
        "workers",
        "args",
        "jar",
        "main",
        "classpath",
        "java",
        "command",
        "instances",
        // Sections.
        "sockets",
        "environment",
        "secrets",
        "ready",
        "health",
        "reload",
        "stop",
        "restart",
        "limits",
        "logs",
        "counts",
        "isolation",
        "deploy",
    ],
};

/// Variables that svd sets itself, differently for every worker.
const OURS: [&str; 6] =
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Is it a variable that svd sets, and nobody else?
pub(super) fn is_ours(name: &str) -> bool {
    OURS.contains(&name) || name.starts_with("AIRDOCK_") || name == "CREDENTIALS_DIRECTORY"
}

/// A service and where it says what concerns other services.
pub(super) struct Decoded {
    pub service: Service,
    /// Beside `service.sockets`.
    pub sockets: Vec<Span>,
    /// Beside `service.requires`.
    pub requires: Vec<Span>,
    /// Beside `service.after`.
    pub after: Vec<Span>,
}

/// What is `/` for the service.
fn chroot(item: &Item<'_>, scope: &Scope<'_>) -> Result<PathBuf, Problem> {
    let path = scope.path(item)?;
    if path.components().any(|part| part == Component::ParentDir) {
        let problem = item.problem(format!("{:?} has \"..\" in it", path.display().to_string()));
        return Err(problem.help("write where it leads"));
    }
    match path == Path::new("/") {
        true => Err(item.problem("chroot = \"/\" changes nothing").help("leave it out")),
        false => Ok(path),
    }
}

/// The service, as far as the file makes sense; what does not is reported.
pub(super) fn decode<'a>(file: &'a File<'a>, table: &'a DeTable<'a>, name: &'a str) -> Decoded {
    let top = Section::open(file, table, Span::default(), &SCHEMA);
    let scope = Scope::read(&top, name);
    let (mut listening, sockets) = sockets::decode(&top, &scope);
    listening.shrink_to_fit();
    let (after, after_spans) = names(&top, "after");
    let (requires, requires_spans) = names(&top, "requires");
    let service = Service {
        name: name.into(),
        kind: kind::decode(&top, &scope),
        user: top.get("user", account),
        group: top.get("group", account),
        groups: groups(&top),
        chroot: top.get("chroot", |item| chroot(item, &scope)),
        directory: top.get("directory", |item| scope.directory(item)),
        umask: top.get("umask", units::octal),
        after,
        requires,
        environment: environment(&top, &scope),
        environment_files: top.values("environment_files", |item| environment_file(item, &scope)),
        secrets: secrets::decode(&top, &scope),
        instances: kind::instances(&top),
        autostart: top.get("autostart", Item::boolean).unwrap_or(true),
        ready: Arc::new(ready::decode(&top, &scope)),
        health: health::decode(&top, &scope).map(Box::new),
        reload: reload::decode(&top, !listening.is_empty()),
        stop: stop::decode(&top, &scope),
        restart: Arc::new(restart::decode(&top)),
        limits: Arc::new(limits::decode(&top, &scope)),
        logs: logs::decode(&top),
        counts: counts::decode(&top, &scope),
        isolation: isolation::decode(&top, &scope).map(Box::new),
        deploy: deploy::decode(&top, &scope).map(Box::new),
        sockets: listening,
        root: scope.root,
    };
    isolation::check_network(&top, &service);
    java::check(&top, &service);
    Decoded { service, sockets, requires: requires_spans, after: after_spans }
}

/// A user or group: a name, or a number in quotes.
fn account(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let name = item.name()?;
    match name.contains([':', '/', '\n', ' ', '{']) {
        true => Err(item.problem(format!("{name:?} cannot be the name of a user or group"))),
        false => Ok(name),
    }
}

/// Sorted, each once, as their order means nothing.
fn groups(top: &Section<'_>) -> Vec<Box<str>> {
    let mut all = top.values("groups", account);
    all.sort();
    all.dedup();
    all
}

/// Names of services, sorted, each once: their order means nothing.
fn names(top: &Section<'_>, key: &'static str) -> (Vec<Box<str>>, Vec<Span>) {
    let valid = |item: &Item<'_>| {
        let name = item.name()?;
        super::check_name(&name).map(|()| name).map_err(|why| item.problem(format!("no service has this name: {why}")))
    };
    let mut list: Vec<At<Box<str>>> = top.list(key, valid).unwrap_or_default();
    list.sort_by(|a, b| a.value.cmp(&b.value));
    list.dedup_by(|a, b| a.value == b.value);
    list.into_iter().map(|at| (at.value, at.span)).unzip()
}

fn environment(top: &Section<'_>, scope: &Scope<'_>) -> Vec<(Box<str>, Template)> {
    let entries = top.entries("environment");
    let mut out = Vec::with_capacity(entries.len());
    for (name, item) in entries {
        if name.value.is_empty() || name.value.contains(['=', '\0', '\n']) {
            let problem = Problem::new(name.span, format!("{:?} cannot be the name of a variable", name.value));
            item.file.report(problem.help("use letters, digits and _"));
        } else if OURS.contains(&name.value) {
            let problem = Problem::new(name.span, format!("svd sets {} itself, for each worker", name.value));
            item.file.report(problem.help("remove it"));
        }
        match scope.template(&item) {
            Ok(value) => out.push((name.value.into(), value)),
            Err(problem) => item.file.report(problem),
        }
    }
    out
}

/// A path; with a leading `-` the file may be absent.
fn environment_file(item: &Item<'_>, scope: &Scope<'_>) -> Result<Template, Problem> {
    let template = scope.word(item)?;
    let path = template.0.strip_prefix('-').unwrap_or(&template.0);
    match path.starts_with('/') || (path.starts_with('{') && template.placeholders().next().is_some()) {
        true => Ok(template),
        false => Err(item
            .problem(format!("{path:?} is not an absolute path"))
            .help("begin it with \"/\", or \"-/\" where the file may be absent")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};

    const COMMAND: &str = "kind = 'command'\ncommand = ['a']\n";

    fn with(rest: &str) -> String {
        format!("{COMMAND}{rest}")
    }

    #[test]
    fn defaults() {
        let s = service(COMMAND);
        assert_eq!((&*s.name, s.instances, s.autostart), ("test", 1, true));
        assert_eq!((s.root, s.user, s.group, s.directory, s.umask), (None, None, None, None, None));
        assert!(s.sockets.is_empty() && s.environment.is_empty() && s.environment_files.is_empty());
    }

    #[test]
    fn keys_of_the_top() {
        let s = service(&with(
            "root = '/srv/{service}'\nuser = 'a'\ngroup = '7'\ngroups = ['z', '12', 'z']\ndirectory = '{release}/x'\numask = '0027'\nautostart = false\n\
             instances = 3\nafter = ['z', 'b', 'z']\nenvironment_files = ['-/etc/default/a', '{root}/env']\n[environment]\nB = '{venv}'\nA = ''",
        ));
        assert_eq!(s.root.as_deref(), Some("/srv/test".as_ref()));
        assert_eq!((s.umask, s.instances, s.autostart), (Some(0o27), 3, false));
        assert_eq!((s.after.len(), s.groups), (2, vec!["12".into(), "z".into()]), "sorted, each once");
        assert_eq!(&*s.environment[0].0, "A");
        assert_eq!(s.environment_files.len(), 2);
    }

    #[test]
    fn mistakes() {
        assert_eq!(helps(&with("umask = 27")), ["write \"0027\""]);
        assert_eq!(helps(&with("umask = '999'")), ["write octal digits from \"0000\" to \"0777\""]);
        assert_eq!(helps(&with("user = 1000")), ["write \"1000\""]);
        assert_eq!(errors(&with("groups = ['a b', '']")).len(), 2);
        assert_eq!(helps(&with("groups = 'media'")), ["write [\"media\"]"]);
        assert_eq!(helps(&with("root = 'srv'")), ["begin it with \"/\""]);
        assert_eq!(helps(&with("directory = '{venv}/x'")), ["add root = \"/srv/test\", or write the path itself"]);
        assert_eq!(errors(&with("umask = '8'\ninstances = 0\nautostart = 'yes'\nafter = ['a b']")).len(), 4);
        assert_eq!(errors(&with("[environment]\nLISTEN_FDS = '1'\n'A=B' = '2'\nC = 3\nD = \"\\u0000\"")).len(), 4);
        assert_eq!(errors(&with("environment = ['A=b']")), ["\"environment\" must be a table, not a list"]);
        assert_eq!(errors(&with("environment_files = ['x']")).len(), 1);
        assert_eq!(helps(&with("environment_files = '/x'")), ["write [\"/x\"]"]);
    }

    #[test]
    fn descriptors_must_exist() {
        let sockets = "[sockets.http]\nlisten = '1.1.1.1:1'\n[environment]\n";
        assert_eq!(helps(&with(&format!("{sockets}A = '{{fd.htpp}}'"))), ["did you mean {fd.http}?"]);
        service(&with(&format!("{sockets}A = '{{fd.http}} {{fd}} {{{{fd.other}}'")));
        assert_eq!(errors(&with("[environment]\nA = '{fd}'")), ["{fd} needs a socket, and this service has none"]);
    }
}
