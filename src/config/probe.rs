//! `probe = { path = "/healthz", … }`: an HTTP request whose answer decides.

use std::net::SocketAddr;
use std::time::Duration;

use super::kind::KindName;
use super::scope::Scope;
use super::section::{Item, Schema, Section};
use super::source::Problem;
use super::spec::{Expect, HttpProbe, ReadyBy, Template};
use super::template::Placeholder;
use super::{sockets, units};

use toml::de::DeValue;

pub(super) static SCHEMA: Schema =
    Schema { name: "probe = { … }", keys: &["path", "host", "port", "headers", "expect", "timeout"] };

/// Default limit of one probe.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// What a probe is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Gunicorn's is answered inside its workers and needs no address.
    Ready,
    Health,
}

/// `probe` of `[ready]` or `[health]`.
pub(super) fn decode(parent: &Section<'_>, scope: &Scope<'_>, purpose: Purpose) -> Option<HttpProbe> {
    if let Some(Item { value: DeValue::String(path), .. }) = parent.item("probe") {
        let item = parent.item("probe")?;
        let problem = item.wrong_type("\"probe\" must be a table");
        item.file.report(problem.help(format!("write probe = {{ path = {path:?} }}")));
        return None;
    }
    let section = parent.section("probe", &SCHEMA);
    if !section.is_present() {
        return None;
    }
    if !section.has("path") {
        section.missing("path", "it is what the probe asks for", "add path = \"/healthz\"");
    }
    let in_worker = purpose == Purpose::Ready && scope.kind == Some(KindName::Gunicorn);
    if !in_worker && scope.sockets.is_empty() && !section.has("port") {
        let problem =
            Problem::new(section.span, "the probe has nowhere to go: the service has no socket, and the probe no port");
        section.file.report(
            problem.help("add port = \"{port}\" (a private port that svd chooses) or a section [sockets.NAME]"),
        );
    }
    Some(HttpProbe {
        path: section.get("path", |item| path(item, scope)).unwrap_or_default(),
        host: section.get("host", |item| line(item, scope)),
        port: section.get("port", |item| port(item, scope)),
        headers: headers(&section, scope),
        expect: section.get("expect", |item| expect(&section, item)).unwrap_or(Expect::Success),
        timeout: section.get("timeout", units::positive).unwrap_or(TIMEOUT),
    })
}

/// A template for one line of an HTTP request.
fn line(item: &Item<'_>, scope: &Scope<'_>) -> Result<Template, Problem> {
    let template = scope.word(item)?;
    match template.0.contains(|c: char| c.is_control()) {
        true => Err(item.problem("a request's line must not contain control characters")),
        false => Ok(template),
    }
}

fn path(item: &Item<'_>, scope: &Scope<'_>) -> Result<Template, Problem> {
    let template = line(item, scope)?;
    if template.0.contains(' ') {
        return Err(item.problem("a request's path must not contain spaces").help("write %20 for a space"));
    }
    match template.0.starts_with('/') {
        true => Ok(template),
        false => Err(item.problem(format!("{:?} is not a request's path", template.0)).help("begin it with \"/\"")),
    }
}

/// A port on 127.0.0.1: a number, `"{port}"`, or other text that becomes one.
fn port(item: &Item<'_>, scope: &Scope<'_>) -> Result<Template, Problem> {
    if let DeValue::Integer(_) = item.value {
        return Ok(Template::new(item.count(1, 65_535)?.to_string()));
    }
    let template = scope.word(item)?;
    let number = template.0.parse::<u16>().is_ok_and(|port| port > 0);
    match number || template.placeholders().next().is_some() {
        true => Ok(template),
        false => Err(item
            .problem(format!("{:?} is not a port", template.0))
            .help("write 8081, or \"{port}\" for a private one")),
    }
}

fn headers(section: &Section<'_>, scope: &Scope<'_>) -> Vec<(Box<str>, Template)> {
    let entries = section.entries("headers");
    let mut out = Vec::with_capacity(entries.len());
    for (name, item) in entries {
        // RFC 9110, section 5.6.2: token.
        let token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
        if name.value.is_empty() || !name.value.bytes().all(token) {
            let problem = Problem::new(name.span, format!("{:?} cannot be a header's name", name.value));
            item.file.report(problem.help("use letters, digits and -"));
        } else if name.value.eq_ignore_ascii_case("host") {
            let problem = Problem::new(name.span, "the Host header has a key of its own");
            item.file.report(problem.help("write host = \"…\" beside path"));
        }
        match line(&item, scope) {
            Ok(value) => out.push((name.value.into(), value)),
            Err(problem) => item.file.report(problem),
        }
    }
    out
}

fn expect(section: &Section<'_>, item: &Item<'_>) -> Result<Expect, Problem> {
    let status = |item: &Item<'_>| item.count(100, 599).map(|n| n as u16);
    match item.value {
        DeValue::Integer(_) => Ok(Expect::OneOf(vec![status(item)?])),
        DeValue::Array(list) if list.is_empty() => {
            Err(item.problem("no status would ever be right").help("leave it out: 200 to 399 are right then"))
        }
        DeValue::Array(_) => {
            let mut statuses = section.values("expect", status);
            statuses.sort_unstable();
            statuses.dedup();
            Ok(Expect::OneOf(statuses))
        }
        _ => Err(item.wrong_type("this must be a status such as 200, or a list of them")),
    }
}

/// `tcp = "127.0.0.1:{port}"`: an address that accepts a connection.
pub(super) fn tcp(parent: &Section<'_>, scope: &Scope<'_>) -> Option<ReadyBy> {
    parent.get("tcp", |item| {
        let template = scope.word(item)?;
        // `{port}` has a form that is known; whatever else is in there shows at the start only.
        let checked = template.expand(&|placeholder| match placeholder {
            Placeholder::Port => Ok("1".into()),
            _ => Err(()),
        });
        match checked {
            Ok(text) if text.parse::<SocketAddr>().map_or(true, |a| a.port() == 0) => {
                Err(sockets::not_an_address(item, &template.0))
            }
            _ => Ok(ReadyBy::Tcp(template)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};
    use super::*;

    fn with(probe: &str) -> String {
        format!("kind = 'command'\ncommand = ['a']\n[sockets.http]\nlisten = '1.1.1.1:80'\n[ready]\nprobe = {probe}")
    }

    #[test]
    fn every_key() {
        let s = service(&with(
            "{ path = '/h?x=1', host = 'a.example', port = 81, headers = { B = 'c', A = 'b' }, expect = [204, 200, 200], timeout = '1s' }",
        ));
        let [ReadyBy::Http(probe)] = &s.ready.by[..] else { panic!() };
        assert_eq!(probe.port, Some(Template::new("81")));
        assert_eq!(probe.headers[0].0.as_ref(), "A");
        assert_eq!(probe.expect, Expect::OneOf(vec![200, 204]));
        assert_eq!(probe.timeout, Duration::from_secs(1));
    }

    #[test]
    fn defaults() {
        let s = service(&with("{ path = '/' }"));
        let [ReadyBy::Http(probe)] = &s.ready.by[..] else { panic!() };
        assert_eq!((&probe.expect, probe.timeout, &probe.port, &probe.host), (&Expect::Success, TIMEOUT, &None, &None));
    }

    #[test]
    fn mistakes() {
        assert_eq!(helps(&with("'/healthz'")), ["write probe = { path = \"/healthz\" }"]);
        assert_eq!(errors(&with("{}")), ["\"path\" is missing: it is what the probe asks for"]);
        assert_eq!(helps(&with("{ path = 'x' }")), ["begin it with \"/\""]);
        assert_eq!(
            errors(&with("{ path = '/', headers = { Host = 'a', 'B C' = 'd', E = \"f\\r\\nG: h\" } }")).len(),
            3
        );
        assert_eq!(errors(&with("{ path = '/', expect = [99, 'x', 600] }")).len(), 3);
        assert_eq!(errors(&with("{ path = '/', expect = [] }")).len(), 1);
        assert_eq!(errors(&with("{ path = '/', port = 0 }")).len(), 1);
        assert_eq!(errors(&with("{ path = '/', port = 'http' }")).len(), 1);
        assert_eq!(helps(&with("{ path = '/', wait = 1 }")).len(), 1);
    }

    #[test]
    fn a_probe_needs_an_address_save_gunicorns_at_its_start() {
        let probe = "probe = { path = '/' }";
        let nowhere = "the probe has nowhere to go: the service has no socket, and the probe no port";
        assert_eq!(errors(&format!("kind = 'command'\ncommand = ['a']\n[ready]\n{probe}")), [nowhere]);
        assert_eq!(errors(&format!("kind = 'gunicorn'\napp = 'a'\n[health]\n{probe}")), [nowhere]);
        service(&format!("kind = 'gunicorn'\napp = 'a'\n[ready]\n{probe}"));
        service("kind = 'command'\ncommand = ['a']\n[ready]\nprobe = { path = '/', port = '{port}' }");
    }

    #[test]
    fn tcp_addresses() {
        let with = |tcp: &str| format!("kind = 'command'\ncommand = ['a']\n[ready]\ntcp = '{tcp}'");
        for good in ["127.0.0.1:{port}", "[::1]:80", "{env.ADDRESS}:80"] {
            service(&with(good));
        }
        for bad in ["80", "127.0.0.1", "localhost:80", "127.0.0.1:0", "127.0.0.1:{prot}"] {
            assert_eq!(errors(&with(bad)).len(), 1, "{bad}");
        }
    }
}
