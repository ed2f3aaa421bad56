//! `[secrets]`: what only the service may know, and from where svd has it.

use std::time::Duration;

use super::scope::Scope;
use super::section::{Item, Schema, Section};
use super::source::{At, Problem};
use super::spec::{Secret, SecretFrom, SecretTo, Template};
use super::template::Placeholder;
use super::units;

use toml::de::DeValue;

pub(super) static SCHEMA: Schema = Schema { name: "[secrets]", keys: &["file", "command", "as", "every"] };

/// How often svd looks whether a file has another content.
const FILE_EVERY: Duration = Duration::from_secs(30);
/// More often would keep the host busy.
const LEAST_EVERY: Duration = Duration::from_secs(1);
/// Each may have a MiB.
const MOST: usize = 64;

const TO: [(&str, SecretTo); 2] = [("env", SecretTo::Variable), ("file", SecretTo::File)];

/// Names of those that are delivered as files, and of the others.
pub(super) fn names<'a>(top: &Section<'a>) -> Vec<(&'a str, bool)> {
    let Some(Item { value: DeValue::Table(table), .. }) = top.item("secrets") else { return Vec::new() };
    let is_file = |value: &DeValue<'_>| match value {
        DeValue::Table(one) => {
            matches!(one.get("as").map(toml::Spanned::get_ref), Some(DeValue::String(to)) if to == "file")
        }
        _ => false,
    };
    table.iter().map(|(key, value)| (key.get_ref().as_ref(), is_file(value.get_ref()))).collect()
}

pub(super) fn decode(top: &Section<'_>, scope: &Scope<'_>) -> Vec<Secret> {
    let entries = top.entries("secrets");
    if let Some((name, _)) = entries.get(MOST) {
        top.file.report(Problem::new(name.span, format!("a service has {MOST} secrets at most")));
    }
    let variables = top.item("environment");
    let twice = |name: &At<&str>| match variables {
        Some(Item { value: DeValue::Table(table), .. }) => table.contains_key(name.value),
        _ => false,
    };
    entries.iter().filter_map(|(name, item)| secret(name, item, scope, twice(name))).collect()
}

fn secret(name: &At<&str>, item: &Item<'_>, scope: &Scope<'_>, twice: bool) -> Option<Secret> {
    if !matches!(item.value, DeValue::Table(_)) {
        let problem = item.problem("a secret does not stand here: this file may be read by others");
        item.file.report(problem.help(format!("write {} = {{ file = \"/path\", as = \"env\" }}", name.value)));
        return None;
    }
    let section = Section::open(item.file, item.table(name.value, item.file)?, item.span, &SCHEMA);
    check_name(name, &section);
    let to = section.get("as", |item| item.choice(&TO));
    if !section.has("as") {
        let help = "add as = \"file\" (a file of the service's own, by {secret.NAME}), or as = \"env\" (a variable)";
        section.missing("as", "it says how the service is given the secret", help);
    }
    if twice && to == Some(SecretTo::Variable) {
        let problem = Problem::new(name.span, format!("{:?} stands in [environment] as well", name.value));
        item.file.report(problem.help("remove one of the two"));
    }
    let file = section.get("file", |item| scope.path(item));
    let command = scope.command(&section, "command");
    let from = match (file, command) {
        (Some(file), None) if !section.has("command") => SecretFrom::File(file),
        (None, Some(words)) if !section.has("file") => {
            words.iter().for_each(|word| check_word(word, &section));
            SecretFrom::Command(words)
        }
        _ => {
            match (section.key_span("file"), section.key_span("command")) {
                (Some(_), Some(span)) => {
                    let problem = Problem::new(span, "a secret has a \"file\" or a \"command\", not both");
                    item.file.report(problem.help("remove one of the two"));
                }
                (None, None) => section.missing(
                    "file",
                    "it says where the secret is",
                    "add file = \"/path\" or command = [\"PROGRAM\", …]",
                ),
                // Its value is wrong, which was said.
                _ => {}
            }
            return None;
        }
    };
    let every = section.get("every", |item| at_least(item)).or(match from {
        SecretFrom::File(_) => Some(FILE_EVERY),
        SecretFrom::Command(_) => None,
    });
    Some(Secret { name: name.value.into(), from, to: to?, every })
}

fn at_least(item: &Item<'_>) -> Result<Duration, Problem> {
    let every = units::duration(item)?;
    if every < LEAST_EVERY { Err(item.problem("the shortest is \"1s\"")) } else { Ok(every) }
}

/// It is the name of a variable or of a file, and stands in placeholders.
fn check_name(name: &At<&str>, section: &Section<'_>) {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let fits = name.value.bytes().all(word) && name.value.starts_with(|c: char| !c.is_ascii_digit());
    if !fits || name.value.len() > 128 {
        let problem = Problem::new(name.span, format!("{:?} cannot be the name of a secret", name.value));
        section.file.report(problem.help("use letters, digits and _, at most 128 of them, and no digit first"));
    } else if super::service::is_ours(name.value) {
        let problem = Problem::new(name.span, format!("svd sets {} itself", name.value));
        section.file.report(problem.help("give the secret another name"));
    }
}

/// The command is run before there is a worker, and by svd itself.
fn check_word(word: &Template, section: &Section<'_>) {
    use Placeholder::{Env, Host, Release, Root, Service, Venv};
    let known = |p: &Placeholder<'_>| matches!(p, Env(_) | Host | Release | Root | Service | Venv);
    if let Some(unknown) = word.placeholders().find(|p| !known(p)) {
        let span = section.key_span("command").unwrap_or(section.span);
        let problem = Problem::new(span, format!("{unknown} is not known before a worker starts"));
        section.file.report(problem.help("{root}, {release}, {venv}, {service}, {host} and {env.X} work here"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};
    use super::*;

    fn with(rest: &str) -> String {
        format!(
            "kind = 'command'\nroot = '/srv/a'\ncommand = ['a', '{{secret.key}}']\n[secrets]\nkey = {{ file = '/k', as = 'file' }}\n{rest}"
        )
    }

    #[test]
    fn files_and_commands() {
        let s = service(&with("DB = { command = ['vault', '{service}'], as = 'env', every = '5m' }\n"));
        let [db, key] = &s.secrets[..] else { panic!("{:?}", s.secrets) };
        assert_eq!((&*key.name, &key.from, key.to), ("key", &SecretFrom::File("/k".into()), SecretTo::File));
        assert_eq!((key.every, db.every), (Some(FILE_EVERY), Some(Duration::from_secs(300))));
        assert!(db.to == SecretTo::Variable && matches!(&db.from, SecretFrom::Command(words) if words.len() == 2));
        let s =
            service(&with("B = { command = ['x'], as = 'env' }\nC = { file = '{root}/c', as = 'env', every = '1s' }"));
        assert_eq!((s.secrets[0].every, &s.secrets[1].from), (None, &SecretFrom::File("/srv/a/c".into())));
    }

    #[test]
    fn mistakes() {
        for (line, help) in [
            ("A = 'hunter2'", "write A = { file = \"/path\", as = \"env\" }"),
            (
                "A = { file = '/a' }",
                "add as = \"file\" (a file of the service's own, by {secret.NAME}), or as = \"env\" (a variable)",
            ),
            ("A = { as = 'env' }", "add file = \"/path\" or command = [\"PROGRAM\", …]"),
            ("A = { file = '/a', command = ['b'], as = 'env' }", "remove one of the two"),
            ("A = { file = 'a', as = 'env' }", "begin it with \"/\""),
            (
                "'a b' = { file = '/a', as = 'env' }",
                "use letters, digits and _, at most 128 of them, and no digit first",
            ),
            ("LISTEN_FDS = { file = '/a', as = 'env' }", "give the secret another name"),
            ("AIRDOCK_X = { file = '/a', as = 'env' }", "give the secret another name"),
            ("A = { file = '/a', as = 'env', evry = '1s' }", "did you mean \"every\"?"),
            (
                "A = { command = ['x', '{port}'], as = 'env' }",
                "{root}, {release}, {venv}, {service}, {host} and {env.X} work here",
            ),
            ("A = { file = '/a', as = 'env' }\n[environment]\nA = 'b'", "remove one of the two"),
            ("[environment]\nB = '{secret.kye}'", "did you mean {secret.key}?"),
        ] {
            assert_eq!(helps(&with(line)), [help], "{line}");
        }
        assert_eq!(errors(&with("A = { file = '/a', as = 'env', every = '1ms' }")), ["the shortest is \"1s\""]);
        let why = errors(&with("A = { file = '/a', as = 'env' }\n[environment]\nB = '{secret.A}'"));
        assert_eq!(why, ["{secret.A} has no path: that secret is delivered as a variable"]);
    }
}
