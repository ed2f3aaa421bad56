//! `svd.toml`: the daemon itself.

use std::net::SocketAddr;

use super::section::{Item, Schema, Section};
use super::source::{File, Problem, Span};
use super::spec::{AccessRule, Control, Daemon};
use super::{sockets, suggest, units};

use toml::de::{DeTable, DeValue};

pub(super) static SCHEMA: Schema = Schema { name: "svd.toml", keys: &["http", "control", "access"] };

pub(super) static HTTP: Schema = Schema { name: "[http]", keys: &["listen"] };

pub(super) static CONTROL: Schema = Schema { name: "[control]", keys: &["mode", "group", "connections_per_user"] };

pub(super) static ACCESS: Schema = Schema { name: "[[access]]", keys: &["users", "groups", "verbs", "services"] };

/// What a rule can grant; `*` is all but the last three.
pub(super) const VERBS: [&str; 18] = [
    "*", "status", "logs", "inspect", "start", "stop", "restart", "reload", "update", "enable", "disable", "drain",
    "scale", "signal", "shutdown", "exec", "upgrade", "deploy",
];

/// They concern svd as a whole, and are granted over all services or not at all.
pub(super) const OF_THE_HOST: [&str; 3] = ["update", "shutdown", "upgrade"];

/// The daemon's settings, and where the public address is written.
pub(super) fn decode<'a>(file: &'a File<'a>, table: &'a DeTable<'a>) -> (Daemon, Option<Span>) {
    let top = Section::open(file, table, Span::default(), &SCHEMA);
    let http = top.section("http", &HTTP);
    if http.is_present() && !http.has("listen") {
        http.missing("listen", "it is the address of health and metrics", "add listen = \"127.0.0.1:9010\"");
    }
    let listen = http.get_at("listen", address);
    let daemon = Daemon { http: listen.as_ref().map(|at| at.value), control: control(&top), access: access(&top) };
    (daemon, listen.map(|at| at.span))
}

fn address(item: &Item<'_>) -> Result<SocketAddr, Problem> {
    let text = item.text()?;
    text.parse().map_err(|_| match text.starts_with("unix:") || text.starts_with('/') {
        true => item.problem("health and metrics have a TCP address").help("write \"127.0.0.1:9010\""),
        false => sockets::not_an_address(item, text),
    })
}

fn control(top: &Section<'_>) -> Control {
    let section = top.section("control", &CONTROL);
    let default = Control::default();
    let connections = section.get("connections_per_user", |item| item.count(1, 10_000));
    Control {
        mode: section.get("mode", units::octal),
        group: section.get("group", Item::name),
        connections_per_user: connections.unwrap_or(default.connections_per_user),
    }
}

fn access(top: &Section<'_>) -> Vec<AccessRule> {
    let Some(item) = top.item("access") else {
        return Vec::new();
    };
    let DeValue::Array(rules) = item.value else {
        let problem = item.wrong_type("access rules are a list");
        item.file.report(problem.help("write [[access]], with two brackets, above each rule"));
        return Vec::new();
    };
    rules.iter().filter_map(|rule| rule_of(&Item::new(item.file, rule))).collect()
}

fn rule_of(item: &Item<'_>) -> Option<AccessRule> {
    let DeValue::Table(table) = item.value else {
        item.file.report(item.wrong_type("an access rule must be a table"));
        return None;
    };
    let section = Section::open(item.file, table, item.span, &ACCESS);
    if !section.has("users") && !section.has("groups") {
        section.missing("users", "the rule is for nobody", "add users = [\"…\"] or groups = [\"…\"]");
    }
    if !section.has("verbs") {
        section.missing("verbs", "the rule grants nothing", "add verbs = [\"status\", \"logs\"], or [\"*\"]");
    }
    if !section.has("services") {
        section.missing("services", "the rule concerns no service", "add services = [\"NAME\"], or [\"*\"] for all");
    }
    let services = section.values("services", pattern);
    let everywhere = services.iter().any(|s| &**s == "*");
    let verbs = section.list("verbs", verb).unwrap_or_default();
    for verb in verbs.iter().filter(|verb| OF_THE_HOST.contains(&&*verb.value)) {
        if !everywhere && !services.is_empty() {
            let message = format!("{:?} concerns svd as a whole, and this rule only some services", verb.value);
            section
                .file
                .report(Problem::new(verb.span, message).help("give it in a rule of its own with services = [\"*\"]"));
        }
    }
    Some(AccessRule {
        users: section.values("users", Item::name),
        groups: section.values("groups", Item::name),
        verbs: verbs.into_iter().map(|at| at.value).collect(),
        services,
    })
}

fn verb(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.name()?;
    if VERBS.contains(&&*text) {
        return Ok(text);
    }
    let problem = item.problem(format!("{text:?} is not a verb that a rule can grant"));
    Err(match (&*text, suggest::closest(&text, VERBS.into_iter())) {
        ("undrain", _) => problem.help("\"drain\" covers it"),
        ("pid" | "events" | "is-active", _) => problem.help("\"status\" covers it"),
        ("tail", _) => problem.help("\"logs\" covers it"),
        (_, Some(near)) => problem.help(format!("did you mean {near:?}?")),
        (_, None) => problem.help(format!("the verbs are {}", suggest::listed(&VERBS[1..], "and"))),
    })
}

/// A service's name in which `*` stands for any characters.
fn pattern(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.name()?;
    match text.bytes().all(|c| super::name_byte(c) || c == b'*') {
        true => Ok(text),
        false => {
            Err(item.problem(format!("{text:?} fits no service's name")).help("use letters, digits, _, ., - and *"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::load_texts;
    use super::*;

    fn daemon(text: &str) -> Daemon {
        load_texts(Some(text), &[]).unwrap_or_else(|e| panic!("{e}")).daemon
    }

    fn errors(text: &str) -> Vec<String> {
        load_texts(Some(text), &[]).unwrap_err().0.into_iter().map(|d| d.message).collect()
    }

    #[test]
    fn nothing_is_needed() {
        assert_eq!(daemon(""), Daemon::default());
    }

    #[test]
    fn every_key() {
        let d = daemon(
            "[http]\nlisten = '127.0.0.1:9010'\n[control]\nmode = '0660'\ngroup = 'adm'\nconnections_per_user = 8\n\
             [[access]]\nusers = ['ann']\nverbs = ['status']\nservices = ['air*']\n\
             [[access]]\ngroups = ['ops']\nverbs = ['*', 'exec', 'update']\nservices = ['*']",
        );
        assert_eq!(d.http, Some("127.0.0.1:9010".parse().unwrap()));
        assert_eq!(d.control, Control { mode: Some(0o660), group: Some("adm".into()), connections_per_user: 8 });
        assert_eq!(d.access.len(), 2);
        assert_eq!(&*d.access[1].verbs[1], "exec");
    }

    #[test]
    fn mistakes() {
        assert_eq!(errors("[http]"), ["\"listen\" is missing: it is the address of health and metrics"]);
        assert_eq!(errors("[http]\nlisten = 'unix:/x'").len(), 1);
        assert_eq!(errors("[access]\nusers = ['a']"), ["access rules are a list, not a table"]);
        assert_eq!(errors("[[access]]").len(), 3);
        assert_eq!(errors("[[access]]\nusers = ['a']\nverbs = ['restrat', 'undrain']\nservices = ['a b']").len(), 3);
        assert_eq!(errors("[[access]]\nusers = ['a']\nverbs = ['update']\nservices = ['a']").len(), 1);
        assert_eq!(errors("[control]\nmode = 660\n[contorl]").len(), 2);
    }
}
