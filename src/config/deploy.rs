//! `[deploy]`: how a release gets onto the host.

use std::time::Duration;

use super::scope::Scope;
use super::section::{Item, Schema, Section};
use super::source::Problem;
use super::spec::{Build, BuildOn, Deploy, Kind, Migrate, Step, StepOn, Template};
use super::template::Placeholder;
use super::units;

use toml::de::DeValue;

pub(super) static SCHEMA: Schema = Schema {
    name: "[deploy]",
    keys: &[
        "build",
        "build_on",
        "requirements",
        "python",
        "shared",
        "keep",
        "standby",
        "before",
        "verify",
        "migrate",
        "migrate_after",
        "static",
        "after",
    ],
};

pub(super) static STEP: Schema = Schema {
    name: "[deploy.STEP]",
    keys: &["command", "timeout", "pending", "on", "compatible", "down", "when_changed"],
};

/// Keys that only some steps have.
const OF: [(&str, &[&str]); 5] = [
    ("pending", &["migrate", "migrate_after"]),
    ("on", &["migrate", "migrate_after"]),
    ("compatible", &["migrate"]),
    ("down", &["migrate"]),
    ("when_changed", &["static"]),
];

const KEEP: u32 = 5;
/// A migration may take as long as it takes.
const TIMEOUT: Duration = Duration::from_secs(600);

/// `None`: the file has no such section, and every key its default.
pub(super) fn decode(top: &Section<'_>, scope: &Scope<'_>) -> Option<Deploy> {
    let section = top.section("deploy", &SCHEMA);
    if !section.is_present() {
        return None;
    }
    if !scope.has_root {
        let help = format!("add root = \"/srv/{}\"", scope.service);
        section.missing("root", "releases are below it", &help);
    }
    Some(Deploy {
        build: section.get("build", |item| build(item, scope)).unwrap_or_default(),
        build_on: section
            .get("build_on", |item| item.choice(&[("hosts", BuildOn::Hosts), ("here", BuildOn::Here)]))
            .unwrap_or_default(),
        requirements: match section.has("requirements") {
            true => section.values("requirements", inside),
            false => vec!["requirements.txt".into()],
        },
        python: section.get("python", |item| command_word(item, scope)),
        shared: section.values("shared", inside),
        keep: section.get("keep", |item| item.count(1, 1000)).unwrap_or(KEEP),
        standby: section.get("standby", units::duration_or_never).unwrap_or(None),
        before: step(&section, scope, "before"),
        verify: step(&section, scope, "verify"),
        migrate: migrate(&section, scope, "migrate"),
        migrate_after: migrate(&section, scope, "migrate_after"),
        static_files: step(&section, scope, "static"),
        after: step(&section, scope, "after"),
    })
}

fn build(item: &Item<'_>, scope: &Scope<'_>) -> Result<Build, Problem> {
    match item.value {
        DeValue::String(text) if text == "auto" => Ok(Build::Auto),
        DeValue::String(text) if text == "none" => Ok(Build::Nothing),
        DeValue::Array(array) if !array.is_empty() => {
            let words = array.iter().map(|word| command_word(&Item::new(item.file, word), scope));
            Ok(Build::Command(words.collect::<Result<_, _>>()?))
        }
        _ => Err(item
            .wrong_type("this must be \"auto\", \"none\" or a command, as a list")
            .help("write build = \"auto\" to build a virtual environment, or build = [\"PROGRAM\", \"ARGUMENT\", …]")),
    }
}

/// A path inside the release.
fn inside(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let path = item.name()?;
    let odd = |part: &str| part.is_empty() || part == "." || part == ".." || part.starts_with('-');
    match path.split('/').any(odd) {
        true => Err(item
            .problem(format!("{path:?} is no path inside the release"))
            .help("write it from the release's directory on, such as \"requirements/base.txt\"")),
        false => Ok(path),
    }
}

/// What a step may refer to is known without a worker.
fn command_word(item: &Item<'_>, scope: &Scope<'_>) -> Result<Template, Problem> {
    let template = scope.template(item)?;
    let of_a_worker = |p: &Placeholder<'_>| {
        matches!(
            p,
            Placeholder::Worker
                | Placeholder::Generation
                | Placeholder::Port
                | Placeholder::Fd
                | Placeholder::FdNamed(_)
                | Placeholder::FdReady
        )
    };
    let odd = template.placeholders().find(of_a_worker).map(|p| p.to_string());
    match odd {
        Some(p) => Err(item
            .problem(format!("{p} belongs to a worker, and a step of a deploy is none"))
            .help("{release}, {venv}, {root}, {service}, {host} and {env.NAME} work here")),
        None => Ok(template),
    }
}

/// Reports keys that this step does not have.
fn open<'a>(deploy: &Section<'a>, name: &'static str) -> Option<Section<'a>> {
    if !deploy.has(name) {
        return None;
    }
    let section = deploy.section(name, &STEP);
    for (key, steps) in OF.iter().filter(|(_, steps)| !steps.contains(&name)) {
        if let Some(span) = section.key_span(key) {
            let problem = Problem::new(span, format!("{key:?} has no meaning in [deploy.{name}]"));
            section.file.report(problem.help(format!("it belongs in [deploy.{}]", steps.join("] or [deploy."))));
        }
    }
    Some(section)
}

fn command(section: &Section<'_>, scope: &Scope<'_>, key: &'static str) -> Vec<Template> {
    let words = scope.command(section, key).unwrap_or_default();
    if section.has(key) {
        // Their placeholders are looked at once more; the texts were reported above.
        let _ = section.list(key, |item| match scope.template(item) {
            Ok(_) => command_word(item, scope).map(drop),
            Err(_) => Ok(()),
        });
    }
    words
}

fn step(deploy: &Section<'_>, scope: &Scope<'_>, name: &'static str) -> Option<Step> {
    let section = open(deploy, name)?;
    Some(read(&section, scope, Some(TIMEOUT)))
}

/// `limit`: where the file gives none.
fn read(section: &Section<'_>, scope: &Scope<'_>, limit: Option<Duration>) -> Step {
    if !section.has("command") {
        section.missing("command", "it is what the step runs", "add command = [\"PROGRAM\", \"ARGUMENT\", …]");
    }
    Step {
        command: command(section, scope, "command"),
        timeout: section.get("timeout", units::duration_or_never).unwrap_or(limit),
        when_changed: section.values("when_changed", Item::name),
    }
}

fn migrate(deploy: &Section<'_>, scope: &Scope<'_>, name: &'static str) -> Option<Migrate> {
    let section = open(deploy, name)?;
    Some(Migrate {
        step: read(&section, scope, None),
        pending: command(&section, scope, "pending"),
        on: section
            .get("on", |item| item.choice(&[("one", StepOn::One), ("each host", StepOn::EachHost)]))
            .unwrap_or_default(),
        compatible: section.get("compatible", Item::boolean).unwrap_or(false),
        down: command(&section, scope, "down"),
    })
}

impl Deploy {
    /// What holds where the file has no `[deploy]`.
    pub fn standard() -> Deploy {
        Deploy {
            build: Build::Auto,
            build_on: BuildOn::Hosts,
            requirements: vec!["requirements.txt".into()],
            python: None,
            shared: Vec::new(),
            keep: KEEP,
            standby: None,
            before: None,
            verify: None,
            migrate: None,
            migrate_after: None,
            static_files: None,
            after: None,
        }
    }

    /// Does `build = "auto"` make a virtual environment for this kind of service?
    pub fn wants_venv(&self, kind: &Kind) -> bool {
        self.build == Build::Auto && matches!(kind, Kind::Gunicorn { .. } | Kind::Command { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};
    use super::*;

    const BASE: &str = "kind = 'gunicorn'\napp = 'a:b'\nroot = '/srv/a'\n";

    fn with(deploy: &str) -> String {
        format!("{BASE}{deploy}")
    }

    #[test]
    fn keys_and_defaults() {
        assert_eq!(service(BASE).deploy, None);
        assert_eq!(service(&with("[deploy]")).deploy.as_deref(), Some(&Deploy::standard()));
        let deploy = service(&with(
            "[deploy]\nbuild = ['make', '{release}']\nbuild_on = 'here'\nrequirements = ['a/b.txt']\npython = 'python3.11'\nshared = ['media']\n\
             keep = 2\nstandby = '10m'\nverify = { command = ['v'], timeout = '2m' }\nstatic = { command = ['s'], when_changed = ['**/static/**'] }\n\
             [deploy.migrate]\ncommand = ['m']\npending = ['p']\non = 'each host'\ncompatible = true\ndown = ['d']",
        ))
        .deploy
        .expect("a section");
        assert!(matches!(&deploy.build, Build::Command(words) if words.len() == 2));
        assert_eq!((deploy.build_on, deploy.keep), (BuildOn::Here, 2));
        assert_eq!(deploy.standby, Some(Duration::from_secs(600)));
        assert_eq!(deploy.verify.as_ref().and_then(|s| s.timeout), Some(Duration::from_secs(120)));
        assert_eq!(deploy.static_files.as_ref().map(|s| (s.timeout, s.when_changed.len())), Some((Some(TIMEOUT), 1)));
        let migrate = deploy.migrate.expect("given");
        assert_eq!((migrate.step.timeout, migrate.on, migrate.compatible), (None, StepOn::EachHost, true));
        assert_eq!((migrate.pending.len(), migrate.down.len()), (1, 1));
    }

    #[test]
    fn mistakes() {
        assert_eq!(
            errors("kind = 'command'\ncommand = ['a']\n[deploy]\nkeep = 3"),
            ["\"root\" is missing: releases are below it"]
        );
        assert_eq!(
            errors(&with("[deploy.verify]\ntimeout = '1s'")),
            ["\"command\" is missing: it is what the step runs"]
        );
        assert_eq!(
            helps(&with("[deploy.verify]\ncommand = ['a']\ncompatible = true")),
            ["it belongs in [deploy.migrate]"]
        );
        assert_eq!(
            errors(&with("[deploy]\nshared = ['../x']\nrequirements = ['/etc/passwd']\nkeep = 0\nbuild = 'make it'"))
                .len(),
            4
        );
        assert_eq!(
            errors(&with("[deploy.verify]\ncommand = ['a', '{port}']")),
            ["{port} belongs to a worker, and a step of a deploy is none"]
        );
        assert_eq!(helps(&with("[deploy]\nkep = 3")), ["did you mean \"keep\"?"]);
    }
}
