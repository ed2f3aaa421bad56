//! `[sockets.NAME]`: what svd binds and hands to every generation, in the order of the file.

use std::net::SocketAddr;
use std::path::Path;

use super::scope::Scope;
use super::section::{Item, Schema, Section};
use super::source::{Problem, Span};
use super::spec::{Listen, Socket};
use super::units;

use toml::de::DeValue;

pub(super) static SCHEMA: Schema =
    Schema { name: "[sockets.NAME]", keys: &["listen", "backlog", "mode", "owner", "group"] };

/// Default length of the accept queue; the kernel caps it at `net.core.somaxconn`.
const BACKLOG: u32 = 2048;

/// Default permission bits of a UNIX socket: whoever may enter its directory may connect.
const MODE: u32 = 0o666;

/// Longest path of a UNIX socket in bytes: `sun_path` without its final NUL, see unix(7).
const PATH_MAX: usize = 107;

/// Names of the sockets in the order of the file, usable or not.
pub(super) fn names<'a>(top: &Section<'a>) -> Vec<&'a str> {
    in_order(top).into_iter().map(|(name, _, _)| name).collect()
}

fn in_order<'a>(top: &Section<'a>) -> Vec<(&'a str, Span, Item<'a>)> {
    let Some(Item { value: DeValue::Table(table), file, .. }) = top.item("sockets") else {
        return Vec::new();
    };
    let items = table.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span().into(), Item::new(file, value)));
    let mut items: Vec<(_, Span, _)> = items.collect();
    items.sort_by_key(|(_, span, _)| span.start);
    items
}

/// A JVM inherits one socket, as descriptor 0.
pub(super) fn at_most_one(top: &Section<'_>) {
    for (name, span, _) in in_order(top).into_iter().skip(1) {
        let problem = Problem::new(span, format!("a JVM inherits one socket, and {name:?} is one more"));
        top.file.report(problem.help("remove it, or let the JVM bind it for itself"));
    }
}

/// The sockets, and where each one's address is written.
pub(super) fn decode(top: &Section<'_>, scope: &Scope<'_>) -> (Vec<Socket>, Vec<Span>) {
    // Reports a `sockets` that is no table.
    top.entries("sockets");
    in_order(top).into_iter().filter_map(|(name, span, item)| socket(name, span, &item, scope)).unzip()
}

fn socket(name: &str, span: Span, item: &Item<'_>, scope: &Scope<'_>) -> Option<(Socket, Span)> {
    let DeValue::Table(table) = item.value else {
        let problem = Problem::new(span, format!("{name:?} is not a socket: each is a section of its own"));
        item.file.report(problem.help("write [sockets.NAME], and listen = \"…\" below it"));
        return None;
    };
    let known = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-');
    if name.is_empty() || !name.bytes().all(known) {
        let problem = Problem::new(span, format!("{name:?} cannot be a socket's name"));
        item.file.report(problem.help("use letters, digits, _ and -"));
    }
    if name == "ready" {
        let problem = Problem::new(span, "a socket cannot be called \"ready\": {fd.ready} is the readiness descriptor");
        item.file.report(problem.help("choose another name"));
    }
    let section = Section::open(item.file, table, item.span, &SCHEMA);
    if !section.has("listen") {
        section.missing(
            "listen",
            "it is the socket's address",
            "add listen = \"0.0.0.0:8000\" or \"unix:/run/NAME.sock\"",
        );
    }
    let backlog = section.get("backlog", |item| item.count(1, 65_535)).unwrap_or(BACKLOG);
    let mode = section.get("mode", units::octal);
    let owner = section.get("owner", Item::name);
    let group = section.get("group", Item::name);
    let mut listen = section.get_at("listen", |item| address(item, scope))?;
    match &mut listen.value {
        Listen::Unix { mode: m, owner: o, group: g, .. } => (*m, *o, *g) = (mode.unwrap_or(MODE), owner, group),
        Listen::Tcp(_) => only_unix(&section),
    }
    let socket = Socket { name: name.into(), listen: listen.value, backlog };
    Some((socket, listen.span))
}

fn only_unix(section: &Section<'_>) {
    for key in ["mode", "owner", "group"] {
        if let Some(span) = section.key_span(key) {
            let problem = Problem::new(span, format!("{key:?} is for UNIX sockets; a TCP address has none"));
            section.file.report(problem.help("remove it, or listen on \"unix:/…\""));
        }
    }
}

fn address(item: &Item<'_>, scope: &Scope<'_>) -> Result<Listen, Problem> {
    let text = item.text()?;
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(item, path, scope);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.port() == 0 => {
            Err(item.problem("port 0 would be another port at each start").help("choose a port from 1 to 65535"))
        }
        Ok(address) => Ok(Listen::Tcp(address)),
        Err(_) => Err(not_an_address(item, text)),
    }
}

fn unix(item: &Item<'_>, path: &str, scope: &Scope<'_>) -> Result<Listen, Problem> {
    let path = scope.path_of(item, path)?;
    if path.as_os_str().len() > PATH_MAX {
        let length = path.as_os_str().len();
        let problem = item.problem(format!("the path has {length} bytes, and a UNIX socket's at most {PATH_MAX}"));
        return Err(problem.help("choose a shorter one, below /run"));
    }
    if path.file_name().is_none() || path.to_str().is_some_and(|p| p.ends_with('/')) {
        return Err(item.problem("the path names a directory").help("add the socket's file name"));
    }
    Ok(Listen::Unix { path, mode: MODE, owner: None, group: None })
}

/// Says what the text was probably meant to be.
pub(super) fn not_an_address(item: &Item<'_>, text: &str) -> Problem {
    let problem = item.problem(format!("{text:?} is not an address and port"));
    let port = text.strip_prefix(':').or(text.strip_prefix("*:")).unwrap_or(text);
    if port.parse::<u16>().is_ok() {
        return problem
            .help(format!("write \"0.0.0.0:{port}\" for all interfaces, \"127.0.0.1:{port}\" for this host only"));
    }
    if Path::new(text).is_absolute() {
        return problem.help(format!("write \"unix:{text}\""));
    }
    if let Some(port) = text.strip_prefix("localhost:") {
        return problem.help(format!("names are not looked up: write \"127.0.0.1:{port}\" or \"[::1]:{port}\""));
    }
    problem.help("write \"127.0.0.1:8000\", \"[::1]:8000\" or \"unix:/run/NAME.sock\"")
}

/// The address as a file says it.
pub fn show(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix { path, .. } => format!("unix:{}", path.display()),
    }
}

/// Would the kernel refuse the second of the two? The wildcard of a family takes the port on all its addresses.
pub(super) fn collide(a: &Listen, b: &Listen) -> bool {
    match (a, b) {
        (Listen::Tcp(a), Listen::Tcp(b)) => {
            let wildcard = a.ip().is_unspecified() || b.ip().is_unspecified();
            a == b || (a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && wildcard)
        }
        (Listen::Unix { path: a, .. }, Listen::Unix { path: b, .. }) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};
    use super::*;

    fn with(sockets: &str) -> String {
        format!("kind = 'command'\ncommand = ['a']\nroot = '/srv/a'\n{sockets}")
    }

    #[test]
    fn addresses_of_every_family() {
        let text = with(
            "[sockets.web]\nlisten = '0.0.0.0:80'\n[sockets.admin]\nlisten = '[::1]:81'\nbacklog = 5\n\
             [sockets.local]\nlisten = 'unix:{root}/{service}.sock'\nmode = '0660'\nowner = 'www'\ngroup = 'adm'",
        );
        let s = service(&text);
        let names: Vec<_> = s.sockets.iter().map(|s| &*s.name).collect();
        assert_eq!(names, ["web", "admin", "local"], "the order of the file is the order of descriptors");
        assert_eq!((s.sockets[0].backlog, s.sockets[1].backlog), (2048, 5));
        let Listen::Unix { path, mode, owner, group } = &s.sockets[2].listen else { panic!() };
        assert_eq!(path.to_str(), Some("/srv/a/test.sock"));
        assert_eq!((*mode, owner.as_deref(), group.as_deref()), (0o660, Some("www"), Some("adm")));
    }

    #[test]
    fn what_is_no_address_gets_advice() {
        for (listen, help) in [
            (":8000", "write \"0.0.0.0:8000\" for all interfaces, \"127.0.0.1:8000\" for this host only"),
            ("8000", "write \"0.0.0.0:8000\" for all interfaces, \"127.0.0.1:8000\" for this host only"),
            ("/run/a.sock", "write \"unix:/run/a.sock\""),
            ("localhost:80", "names are not looked up: write \"127.0.0.1:80\" or \"[::1]:80\""),
            ("unix:a.sock", "begin it with \"/\""),
            ("unix:/run/", "add the socket's file name"),
            ("unix:/{worker}", "{service} works here, and {root} below a root"),
            ("1.2.3.4:0", "choose a port from 1 to 65535"),
        ] {
            assert_eq!(helps(&with(&format!("[sockets.x]\nlisten = '{listen}'"))), [help], "{listen}");
        }
        let long = format!("[sockets.x]\nlisten = 'unix:/{}'", "x".repeat(107));
        assert_eq!(errors(&with(&long)), ["the path has 108 bytes, and a UNIX socket's at most 107"]);
    }

    #[test]
    fn sections_and_keys_are_checked() {
        assert_eq!(errors(&with("[sockets.x]")), ["\"listen\" is missing: it is the socket's address"]);
        assert_eq!(errors(&with("[sockets]\nlisten = '1.2.3.4:1'")).len(), 1);
        assert_eq!(errors(&with("[sockets.ready]\nlisten = '1.2.3.4:1'")).len(), 1);
        assert_eq!(errors(&with("[sockets.'a b']\nlisten = '1.2.3.4:1'")).len(), 1);
        assert_eq!(errors(&with("[sockets.x]\nlisten = '1.2.3.4:1'\nmode = '0600'\nowner = 'a'")).len(), 2);
        assert_eq!(
            errors("kind = 'jvm'\njar = '/a'\n[sockets.a]\nlisten = '1.1.1.1:1'\n[sockets.b]\nlisten = '1.1.1.1:2'")
                .len(),
            1
        );
        assert_eq!(errors("kind = 'jvm'\njar = '/a'\nsockets = 3").len(), 1);
    }
}
