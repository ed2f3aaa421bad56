//! What a Python project is: Django, Flask, FastAPI, or some other WSGI application. Read off its text; nothing is imported.

use super::project::{Project, join, split};
use super::source::{Assigned, assignments, environment_reads, imports, quoted_after, route, strings_of};
use super::{Found, Program, Step};

/// Where an application is looked for, the likeliest first.
const FILES: &[&str] =
    &["wsgi.py", "asgi.py", "app.py", "main.py", "application.py", "server.py", "api.py", "run.py", "__init__.py"];
/// Functions that make an application.
const FACTORIES: &[&str] = &["create_app", "make_app", "get_app", "create_application"];
const WSGI: &[&str] = &["Flask", "Bottle", "Falcon", "App"];
const ASGI: &[&str] = &["FastAPI", "Starlette", "Litestar", "Quart", "Sanic"];
/// Where a project says what it is made of.
const REQUIREMENTS: &[&str] = &["requirements.txt", "pyproject.toml", "Pipfile", "setup.cfg", "setup.py"];

/// How an application is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Interface {
    Wsgi,
    Asgi,
}

/// An application that was found.
struct Application {
    /// The directory from which it is imported, below the project.
    dir: String,
    /// `module:name`, or `module:name()`.
    app: String,
    interface: Interface,
    /// The framework.
    what: &'static str,
    file: String,
    line: usize,
}

pub struct Requirements {
    text: String,
    file: Option<String>,
}

impl Requirements {
    fn of(project: &Project) -> Requirements {
        let file = REQUIREMENTS.iter().find(|file| project.has(file)).map(|file| (*file).to_owned());
        let read: Vec<String> = REQUIREMENTS.iter().filter_map(|file| project.read(file)).collect();
        Requirements { text: read.join("\n").to_ascii_lowercase().replace('_', "-"), file }
    }

    /// Is this package among them?
    fn has(&self, package: &str) -> bool {
        self.text.match_indices(package).any(|(at, _)| {
            let before = self.text[..at].chars().next_back();
            let after = self.text[at + package.len()..].chars().next();
            let part = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '-');
            !part(before) && !part(after)
        })
    }
}

/// `None`: nothing of Python's that answers requests.
pub fn look(project: &Project, gunicorn: Option<bool>) -> Option<Found> {
    let requirements = Requirements::of(project);
    let mut found = match project.named("manage.py").find(|file| is_django(project, file)) {
        Some(manage) if gunicorn != Some(false) => django(project, manage)?,
        _ => {
            let application = application(project)?;
            if gunicorn == Some(false) && application.interface == Interface::Wsgi {
                return None;
            }
            served(project, &application, &requirements, gunicorn)
        }
    };
    found.requirements = project.has("requirements.txt");
    found.python = true;
    let server = match &found.program {
        Program::Gunicorn { .. } => "gunicorn",
        _ => "uvicorn",
    };
    match &requirements.file {
        Some(file) if !requirements.has(server) => {
            found.notes.push(format!("{file} does not name {server}, which serves the application: add it"));
        }
        None => found.notes.push(format!(
            "there is no requirements.txt: `svctl deploy` makes the virtual environment from one (with {server} in it)"
        )),
        _ => {}
    }
    let dir = found.dir.clone();
    for file in ["gunicorn.conf.py"].map(|name| join(&dir, name)).iter().filter(|file| project.has(file)) {
        found.facts.push(format!("{file}: gunicorn reads it by itself; its bind is not used, as svd has the sockets"));
        found.workers_elsewhere =
            project.read(file).is_some_and(|text| assignments(&text).any(|a| a.name == "workers"));
    }
    if project.has(".env") {
        found.notes.push(
            "there is a .env: a service that does not read it itself can have it by environment_files (see the file)"
                .to_owned(),
        );
    }
    Some(found)
}

fn is_django(project: &Project, file: &str) -> bool {
    project.read(file).is_some_and(|text| text.contains("DJANGO_SETTINGS_MODULE"))
}

fn django(project: &Project, manage: &str) -> Option<Found> {
    let text = project.read(manage)?;
    let dir = split(manage).0.to_owned();
    let settings_module =
        quoted_after(&text, "DJANGO_SETTINGS_MODULE\"").or_else(|| quoted_after(&text, "DJANGO_SETTINGS_MODULE'"));
    let mut facts = vec![match &settings_module {
        Some(module) => format!("{manage}: Django, with the settings {module}"),
        None => format!("{manage}: Django"),
    }];
    let mut settings =
        settings_module.as_deref().map(|module| settings_files(project, &dir, module)).unwrap_or_default();
    let said = settings.iter().find_map(|(file, text)| {
        let line = assignments(text).find(|a| a.name == "WSGI_APPLICATION")?;
        Some((strings_of(line.value).into_iter().next()?, format!("{file}:{}", line.line)))
    });
    let (app, why) = match said {
        Some((dotted, place)) => (with_colon(&dotted)?, format!("WSGI_APPLICATION in {place}")),
        None => {
            let file = project.named("wsgi.py").find(|file| file.starts_with(&dir))?;
            (format!("{}:application", module_of(file, &dir)), file.to_owned())
        }
    };
    facts.push(format!("{why}: {app}"));
    let wsgi = join(&dir, &format!("{}.py", app.split(':').next().unwrap_or_default().replace('.', "/")));
    let own = project.read(&wsgi).and_then(|text| {
        quoted_after(&text, "DJANGO_SETTINGS_MODULE\"").or_else(|| quoted_after(&text, "DJANGO_SETTINGS_MODULE'"))
    });
    // What serves decides, where it is not what manage.py has.
    let module = own.or_else(|| settings_module.clone());
    if let Some(module) = module.as_deref().filter(|module| Some(*module) != settings_module.as_deref()) {
        facts.push(format!("{wsgi}: it serves with the settings {module}"));
        settings = settings_files(project, &dir, module);
    }
    let mut found = Found::new("Django", Program::Gunicorn { app, args: Vec::new() });
    found.dir = dir;
    found.facts = facts;
    found.environment.extend(module.map(|module| ("DJANGO_SETTINGS_MODULE".to_owned(), module)));
    read_settings(project, &settings, &mut found);
    found.steps = steps(manage, &settings, &mut found.facts);
    Some(found)
}

/// The file of the settings module, and those beside it where it is one of a package.
fn settings_files(project: &Project, dir: &str, module: &str) -> Vec<(String, String)> {
    let path = join(dir, &module.replace('.', "/"));
    let package = split(&path).0.to_owned();
    let mut files = vec![format!("{path}.py"), format!("{path}/__init__.py")];
    let beside = project.files.iter().filter(|file| split(file).0 == package && package.ends_with("settings"));
    files.extend(beside.filter(|file| file.ends_with(".py")).cloned());
    files.dedup();
    files.into_iter().filter_map(|file| Some((file.clone(), project.read(&file)?))).collect()
}

/// `airship.wsgi.application` → `airship.wsgi:application`.
fn with_colon(dotted: &str) -> Option<String> {
    let (module, name) = dotted.rsplit_once('.')?;
    Some(format!("{module}:{name}"))
}

fn read_settings(project: &Project, settings: &[(String, String)], found: &mut Found) {
    let mut hosts = None;
    for (file, text) in settings {
        for Assigned { name, value, line } in assignments(text) {
            match name {
                "ALLOWED_HOSTS" => {
                    hosts = Some((
                        strings_of(value),
                        value.contains("environ") || value.contains("env("),
                        format!("{file}:{line}"),
                    ))
                }
                "SECURE_SSL_REDIRECT" if value.starts_with("True") => {
                    found.probe.https = Some(format!("{file}:{line}"))
                }
                "ROOT_URLCONF" => {
                    let urls = strings_of(value)
                        .into_iter()
                        .next()
                        .map(|m| join(&found.dir, &format!("{}.py", m.replace('.', "/"))));
                    found.probe.path = urls.and_then(|urls| {
                        let (path, line) = route(&project.read(&urls)?)?;
                        Some((path, format!("{urls}:{line}")))
                    });
                }
                _ => {}
            }
        }
        found.needs.extend(environment_reads(text).into_iter().map(|(name, line)| (name, format!("{file}:{line}"))));
    }
    if let Some((names, elsewhere, place)) = hosts {
        found.probe.host = host_of(&names).map(|host| (host, place.clone()));
        if elsewhere && names.iter().all(|name| !name.contains('.')) {
            found.notes.push(format!(
                "{place}: ALLOWED_HOSTS comes from the environment; a probe needs one of them as its host"
            ));
        }
    }
}

/// A name for probes, where not every host and not `localhost` is allowed.
fn host_of(allowed: &[String]) -> Option<String> {
    if allowed.iter().any(|host| host == "*" || host == "localhost") {
        return None;
    }
    allowed.first().map(|host| host.trim_start_matches('.').to_owned())
}

fn steps(manage: &str, settings: &[(String, String)], facts: &mut Vec<String>) -> Vec<Step> {
    let command = |words: &[&str]| {
        let words = ["{venv}/bin/python", manage].into_iter().chain(words.iter().copied());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut steps = vec![
        Step {
            name: "migrate",
            command: command(&["migrate", "--noinput"]),
            more: vec![("pending", command(&["migrate", "--check"]))],
            why: "brings the database to the new schema, once a rollout; nothing where `pending` exits with 0",
        },
        Step {
            name: "verify",
            command: command(&["check", "--deploy"]),
            more: Vec::new(),
            why: "before the release is switched to",
        },
    ];
    let root = settings.iter().find_map(|(file, text)| {
        let line = assignments(text).find(|a| a.name == "STATIC_ROOT")?.line;
        Some(format!("{file}:{line}"))
    });
    if let Some(place) = root {
        facts.push(format!("{place}: STATIC_ROOT, so static files are collected"));
        steps.push(Step {
            name: "static",
            command: command(&["collectstatic", "--noinput"]),
            more: Vec::new(),
            why: "publishes static files, before the first host is switched",
        });
    }
    steps
}

/// The module's name, as it is imported from `dir`.
fn module_of(file: &str, dir: &str) -> String {
    let below = file.strip_prefix(dir).unwrap_or(file).trim_start_matches('/');
    let module = below.trim_end_matches(".py").replace('/', ".");
    module.strip_suffix(".__init__").map(str::to_owned).unwrap_or(module)
}

fn application(project: &Project) -> Option<Application> {
    let depth = |file: &str| file.matches('/').count();
    let mut candidates: Vec<&str> =
        FILES.iter().flat_map(|name| project.named(name)).filter(|file| depth(file) <= 2).collect();
    // A package of its own is looked for where the top has nothing.
    candidates.sort_by_key(|file| depth(file.strip_prefix("src/").unwrap_or(file)));
    let others = project.files.iter().map(String::as_str).filter(|file| depth(file) == 0 && file.ends_with(".py"));
    candidates.into_iter().chain(others).find_map(|file| in_file(project, file))
}

/// The modules of the project that this one takes things from.
fn imported(project: &Project, dir: &str, text: &str) -> Vec<String> {
    let modules = text.lines().filter_map(|line| line.strip_prefix("from ")?.split_whitespace().next());
    let paths = modules.flat_map(|module| {
        let path = join(dir, &module.trim_start_matches('.').replace('.', "/"));
        [format!("{path}.py"), format!("{path}/__init__.py")]
    });
    paths.filter(|path| project.has(path)).collect()
}

fn in_file(project: &Project, file: &str) -> Option<Application> {
    let text = project.read(file)?;
    let dir = if file.starts_with("src/") { "src" } else { "" };
    let module = module_of(file, dir);
    let at = |app: String, what, interface, line| {
        Some(Application { dir: dir.to_owned(), app, interface, what, file: file.to_owned(), line })
    };
    let class = |value: &str| {
        let called = value.split('(').next().unwrap_or_default().rsplit('.').next().unwrap_or_default();
        let known = |names: &[&'static str], interface| names.iter().find(|n| **n == called).map(|n| (*n, interface));
        value.contains('(').then(|| known(WSGI, Interface::Wsgi).or_else(|| known(ASGI, Interface::Asgi))).flatten()
    };
    for Assigned { name, value, line } in assignments(&text) {
        if let Some((what, interface)) = class(value) {
            return at(format!("{module}:{name}"), what, interface, line);
        }
        let maker = value.split('(').next().unwrap_or_default().rsplit('.').next().unwrap_or_default();
        if value.contains('(') && FACTORIES.contains(&maker) {
            let (what, interface) = framework(project, &text)?;
            return at(format!("{module}:{name}"), what, interface, line);
        }
    }
    for (number, line) in (1..).zip(text.lines()) {
        let called = line.strip_prefix("def ").and_then(|rest| rest.split_once('('));
        match called {
            Some((name, parameters)) if FACTORIES.contains(&name) && takes_nothing(parameters) => {
                let (what, interface) = framework(project, &text)?;
                return at(format!("{module}:{name}()"), what, interface, number);
            }
            Some(("application" | "app", parameters)) if parameters.starts_with("environ") => {
                return at(format!("{module}:{}", called?.0), "WSGI", Interface::Wsgi, number);
            }
            _ => {}
        }
        // `from package import app`, as wsgi.py often has it and nothing else.
        if split(file).1 == "wsgi.py" && line.starts_with("from ") {
            let name = line.split(" import ").nth(1).and_then(|names| {
                let last = |name: &str| name.split(" as ").last().map(|n| n.trim().to_owned());
                names.split(',').filter_map(last).find(|n| n == "app" || n == "application")
            });
            if let Some(name) = name {
                let (what, interface) = framework(project, &text).unwrap_or(("WSGI", Interface::Wsgi));
                return at(format!("{module}:{name}"), what, interface, number);
            }
        }
    }
    None
}

/// Are all of a function's parameters optional?
fn takes_nothing(parameters: &str) -> bool {
    let inside = parameters.split(')').next().unwrap_or_default();
    inside.split(',').map(str::trim).all(|p| p.is_empty() || p.contains('=') || p.starts_with('*'))
}

/// By what this text imports, or else by what the project is made of.
fn framework(project: &Project, text: &str) -> Option<(&'static str, Interface)> {
    let known = [
        ("flask", "Flask", Interface::Wsgi),
        ("fastapi", "FastAPI", Interface::Asgi),
        ("starlette", "Starlette", Interface::Asgi),
        ("quart", "Quart", Interface::Asgi),
    ];
    let of = |has: &dyn Fn(&str) -> bool| known.iter().find(|(name, ..)| has(name)).map(|(_, what, i)| (*what, *i));
    let requirements = Requirements::of(project);
    of(&|name| imports(text, name)).or_else(|| of(&|name| requirements.has(name)))
}

fn served(project: &Project, application: &Application, requirements: &Requirements, gunicorn: Option<bool>) -> Found {
    let Application { dir, app, interface, what, file, line } = application;
    let mut facts = vec![format!("{file}:{line}: {what}, {app}")];
    let program = match interface {
        Interface::Wsgi => Program::Gunicorn { app: app.clone(), args: Vec::new() },
        Interface::Asgi if gunicorn.unwrap_or_else(|| requirements.has("gunicorn")) => {
            let (class, why) = match () {
                () if requirements.has("uvicorn-worker") => {
                    ("uvicorn_worker.UvicornWorker", "uvicorn-worker is among the requirements")
                }
                () if requirements.has("uvicorn") => {
                    ("uvicorn.workers.UvicornWorker", "uvicorn is among the requirements")
                }
                () => ("asgi", "gunicorn's own, as uvicorn is not among the requirements"),
            };
            facts.push(format!("{class}: {why}"));
            Program::Gunicorn { app: app.clone(), args: vec!["--worker-class".to_owned(), class.to_owned()] }
        }
        Interface::Asgi => {
            let drains = project.named("drain_uvicorn.py").next().map(str::to_owned);
            Program::Uvicorn { app: app.trim_end_matches("()").to_owned(), factory: app.ends_with("()"), drains }
        }
    };
    let mut found = Found::new(what, program);
    found.dir.clone_from(dir);
    found.facts = facts;
    let text = project.read(file).unwrap_or_default();
    let mut files = vec![file.clone()];
    files.extend(imported(project, dir, &text));
    for (file, text) in files.iter().filter_map(|file| Some((file, project.read(file)?))) {
        let place = |(what, line)| (what, format!("{file}:{line}"));
        found.probe.path = found.probe.path.take().or_else(|| route(&text).map(place));
        found.needs.extend(environment_reads(&text).into_iter().map(place));
    }
    found
}
