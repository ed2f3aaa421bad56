//! `kind` and the keys that only one kind has.

use super::scope::Scope;
use super::section::{Item, Section};
use super::source::Problem;
use super::spec::{JvmProgram, Kind, Template, Workers};
use super::{java, sockets, suggest};

use toml::de::DeValue;

/// Most workers or instances that one service may ask for.
const MAX_WORKERS: u32 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KindName {
    Gunicorn,
    Jvm,
    Command,
}

use KindName::{Command, Gunicorn, Jvm};

const NAMES: [(&str, KindName); 3] = [("gunicorn", Gunicorn), ("jvm", Jvm), ("command", Command)];

/// Keys of the top of a file that do not belong to every kind.
const OWN: [(&str, &[KindName]); 10] = [
    ("app", &[Gunicorn]),
    ("python", &[Gunicorn]),
    ("workers", &[Gunicorn]),
    ("args", &[Gunicorn, Jvm]),
    ("jar", &[Jvm]),
    ("main", &[Jvm]),
    ("classpath", &[Jvm]),
    ("java", &[Jvm]),
    ("command", &[Command]),
    ("instances", &[Command]),
];

impl KindName {
    fn word(self) -> &'static str {
        NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }
}

/// The value of `kind`, which every file must have.
pub(super) fn name(top: &Section<'_>) -> Option<KindName> {
    if !top.has("kind") {
        let has = |key: &str| top.key_span(key).is_some();
        let help = match () {
            () if has("app") => "add kind = \"gunicorn\"",
            () if has("jar") || has("main") => "add kind = \"jvm\"",
            () if has("command") => "add kind = \"command\"",
            () => "add kind = \"gunicorn\", \"jvm\" or \"command\"",
        };
        top.missing("kind", "it says how the service is run", help);
    }
    top.get("kind", |item| item.choice(&NAMES))
}

/// The part of the service that its kind decides. Keys of other kinds are reported.
pub(super) fn decode(top: &Section<'_>, scope: &Scope<'_>) -> Kind {
    if let Some(kind) = scope.kind {
        foreign_keys(top, kind);
    }
    match scope.kind {
        Some(Gunicorn) => gunicorn(top, scope),
        Some(Jvm) => jvm(top, scope),
        Some(Command) | None => command(top, scope),
    }
}

/// Workers of a plain command.
pub(super) fn instances(top: &Section<'_>) -> u32 {
    top.get("instances", |item| item.count(1, MAX_WORKERS)).unwrap_or(1)
}

fn foreign_keys(top: &Section<'_>, kind: KindName) {
    for (key, kinds) in OWN.iter().filter(|(_, kinds)| !kinds.contains(&kind)) {
        let Some(span) = top.key_span(key) else { continue };
        let words: Vec<_> = kinds.iter().map(|k| format!("kind = {:?}", k.word())).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let kinds = suggest::listed(&words, "and");
        let message = format!("{key:?} is a key of {kinds}, and this service is of kind {:?}", kind.word());
        let help = match (*key, kind) {
            ("instances", Gunicorn) => "gunicorn has workers = N",
            ("workers", Command) => "a plain command has instances = N",
            ("java", Command | Gunicorn) => "the variable JAVA_HOME can be set in [environment]",
            ("args", Command) => "put the arguments into command",
            ("command", Gunicorn) => "gunicorn has app, python and args",
            ("command", Jvm) => "a JVM has jar (or main and classpath), [java] and args",
            _ => "remove it, or change kind",
        };
        top.file.report(Problem::new(span, message).help(help));
    }
}

fn command(top: &Section<'_>, scope: &Scope<'_>) -> Kind {
    if scope.kind.is_some() && !top.has("command") {
        top.missing("command", "it is what a plain command runs", "add command = [\"PROGRAM\", \"ARGUMENT\", …]");
    }
    Kind::Command { command: scope.command(top, "command").unwrap_or_default() }
}

fn gunicorn(top: &Section<'_>, scope: &Scope<'_>) -> Kind {
    if !top.has("app") {
        top.missing("app", "it names the WSGI application", "add app = \"MODULE:NAME\", as for gunicorn itself");
    }
    Kind::Gunicorn {
        app: top.get("app", |item| scope.word(item)).unwrap_or_default(),
        python: top.get("python", |item| scope.word(item)),
        workers: top.get("workers", workers).unwrap_or(Workers::Unset),
        args: top.values("args", |item| gunicorn_argument(item, scope)),
    }
}

fn workers(item: &Item<'_>) -> Result<Workers, Problem> {
    match item.value {
        DeValue::String(text) if text == "auto" => Ok(Workers::Auto),
        DeValue::Integer(_) => item.count(1, MAX_WORKERS).map(Workers::Count),
        _ => Err(item.wrong_type("this must be a number or \"auto\"")),
    }
}

/// Options that take away from svd what it must have in hand are errors rather than surprises.
fn gunicorn_argument(item: &Item<'_>, scope: &Scope<'_>) -> Result<Template, Problem> {
    let template = scope.template(item)?;
    let option = template.0.split('=').next().unwrap_or_default();
    let (why, help) = match option {
        "-D" | "--daemon" | "--daemonize" => {
            ("would leave svd's sight", "remove it: svd runs gunicorn in the background")
        }
        "-b" | "--bind" if !scope.sockets.is_empty() => {
            ("would bind beside the sockets", "remove it: [sockets] has the addresses")
        }
        "--reuse-port" if !scope.sockets.is_empty() => {
            ("would ignore the sockets", "remove it: svd's sockets are shared already")
        }
        _ => return Ok(template),
    };
    Err(item.problem(format!("with {option} gunicorn {why}")).help(help))
}

fn jvm(top: &Section<'_>, scope: &Scope<'_>) -> Kind {
    sockets::at_most_one(top);
    let program = match (top.key_span("jar"), top.key_span("main")) {
        (Some(_), Some(main)) => {
            let problem = Problem::new(main, "a JVM has \"jar\" or \"main\", not both");
            top.file.report(problem.help("remove one of them"));
            None
        }
        (None, None) => {
            top.missing("jar", "it names what the JVM runs", "add jar = \"{release}/app.jar\", or main and classpath");
            None
        }
        _ => Some(()),
    };
    let jar = top.get("jar", |item| scope.word(item));
    let main = top.get("main", |item| scope.word(item));
    let classpath = top.list("classpath", |item| scope.word(item));
    if program.is_some() && top.has("main") && classpath.is_none() && !top.has("classpath") {
        top.missing("classpath", "\"main\" is looked for in it", "add classpath = [\"{release}/lib/*\"]");
    }
    if let (true, Some(span)) = (top.has("jar"), top.key_span("classpath")) {
        let problem = Problem::new(span, "\"classpath\" has no effect beside \"jar\"");
        top.file.report(problem.help("remove it, or use main instead of jar"));
    }
    let program = match main {
        Some(class) => JvmProgram::Main {
            class,
            classpath: classpath.unwrap_or_default().into_iter().map(|at| at.value).collect(),
        },
        None => JvmProgram::Jar(jar.unwrap_or_default()),
    };
    Kind::Jvm { program, java: java::decode(top, scope), args: top.values("args", |item| scope.template(item)) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, service};
    use super::*;

    #[test]
    fn gunicorn_has_its_keys() {
        let s = service("kind = 'gunicorn'\napp = 'a:b'\nworkers = 'auto'\nargs = ['-k', 'gthread']");
        let Kind::Gunicorn { app, python, workers, args } = s.kind else { panic!() };
        assert_eq!((&*app.0, python, workers, args.len()), ("a:b", None, Workers::Auto, 2));
    }

    #[test]
    fn a_jvm_has_a_jar_or_a_class() {
        let s = service("kind = 'jvm'\nmain = 'x.Main'\nclasspath = ['/a', '/b']");
        let Kind::Jvm { program: JvmProgram::Main { classpath, .. }, .. } = s.kind else { panic!() };
        assert_eq!(classpath.len(), 2);
        assert_eq!(errors("kind = 'jvm'"), ["\"jar\" is missing: it names what the JVM runs"]);
        assert_eq!(errors("kind = 'jvm'\njar = 'a'\nmain = 'b'\nclasspath = []").len(), 2);
        assert_eq!(errors("kind = 'jvm'\nmain = 'b'"), ["\"classpath\" is missing: \"main\" is looked for in it"]);
    }

    #[test]
    fn keys_of_other_kinds_are_errors() {
        assert_eq!(
            errors("kind = 'command'\ncommand = ['a']\napp = 'x'\nworkers = 2"),
            [
                "\"app\" is a key of kind = \"gunicorn\", and this service is of kind \"command\"",
                "\"workers\" is a key of kind = \"gunicorn\", and this service is of kind \"command\"",
            ]
        );
    }

    #[test]
    fn required_keys_are_required() {
        assert_eq!(errors("kind = 'command'"), ["\"command\" is missing: it is what a plain command runs"]);
        assert_eq!(errors("kind = 'command'\ncommand = []"), ["\"command\" must name a program"]);
        assert_eq!(errors("kind = 'command'\ncommand = ['']"), ["the program's name must not be empty"]);
        assert_eq!(errors("kind = 'gunicorn'"), ["\"app\" is missing: it names the WSGI application"]);
        assert_eq!(errors("app = 'a:b'"), ["\"kind\" is missing: it says how the service is run"]);
        assert_eq!(errors("kind = 'gunicorm'\napp = 'a'"), ["\"gunicorm\" is not one of gunicorn, jvm or command"]);
    }

    #[test]
    fn gunicorn_stays_in_hand() {
        let text = "kind = 'gunicorn'\napp = 'a:b'\nargs = ['--daemon', '--bind=:1', '--reuse-port']\n[sockets.http]\nlisten = '[::]:80'";
        assert_eq!(errors(text).len(), 3);
        service("kind = 'gunicorn'\napp = 'a:b'\nargs = ['--bind=:1']");
    }
}
