//! `svctl init NAME`: a service's file, written from a look at the project.

mod java;
mod other;
mod page;
mod project;
mod python;
mod source;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::args::{InitArgs, InitKind};
use super::context::Context;
use super::exit::{CliError, Exit};
use super::files;
use crate::api::types::{ApiError, ErrorCode};
use crate::config::spec::Listen;
use crate::config::{self, check_name};
use crate::sys::{durable, io_text, user::Account};
use page::Page;
use project::Project;

/// What a look at a project has found.
struct Found {
    /// `Django`.
    what: &'static str,
    program: Program,
    /// Where it is imported from, and runs: below the release.
    dir: String,
    /// What was seen, and where.
    facts: Vec<String>,
    /// What is left to do.
    notes: Vec<String>,
    environment: Vec<(String, String)>,
    /// Variables that it reads and that have no default, each with the place.
    needs: Vec<(String, String)>,
    probe: Probe,
    steps: Vec<Step>,
    requirements: bool,
    python: bool,
    /// Another file says how many.
    workers_elsewhere: bool,
}

impl Found {
    fn new(what: &'static str, program: Program) -> Found {
        Found {
            what,
            program,
            dir: String::new(),
            facts: Vec::new(),
            notes: Vec::new(),
            environment: Vec::new(),
            needs: Vec::new(),
            probe: Probe::default(),
            steps: Vec::new(),
            requirements: false,
            python: false,
            workers_elsewhere: false,
        }
    }
}

enum Program {
    Gunicorn {
        app: String,
        args: Vec<String>,
    },
    Uvicorn {
        app: String,
        factory: bool,
        /// The project has a copy of `drain_uvicorn.py`.
        drains: Option<String>,
    },
    Jar {
        jar: String,
        /// It takes its socket from svd.
        inherits: bool,
        /// Which it binds itself.
        port: Option<u16>,
    },
    Command(Vec<String>),
}

/// What is known of a page that tells how the application is; each with the place.
#[derive(Default)]
struct Probe {
    path: Option<(String, String)>,
    host: Option<(String, String)>,
    https: Option<String>,
}

/// A step of `[deploy]`.
struct Step {
    name: &'static str,
    command: Vec<String>,
    more: Vec<(&'static str, Vec<String>)>,
    why: &'static str,
}

fn failed(why: impl Into<Box<str>>, hint: impl Into<Box<str>>) -> CliError {
    CliError::Said { exit: Exit::Failed, error: ApiError::new(ErrorCode::Failed, why).hint(hint) }
}

pub fn init(context: &Context, args: &InitArgs) -> Result<Exit, CliError> {
    files::only_here(context, "init")?;
    if let Err(why) = check_name(&args.name) {
        let hint = "For example: svctl init airship --project /srv/airship";
        return Err(CliError::usage(format!("{:?} cannot be a service's name: {why}.", args.name), hint));
    }
    let config = files::directory(context, args.config.as_deref());
    let file = files::of_service(&config, &args.name);
    // Asked again when it is put in place: this is to be told before anything is looked at.
    if !args.print && !args.force && file.symlink_metadata().is_ok() {
        return Err(exists(&file, &args.name));
    }
    let root = std::path::absolute(&args.project).and_then(|path| path.canonicalize());
    let root = root.map_err(|e| unreadable(&args.project, &e))?;
    // A root with releases: what is served is looked at.
    let current = root.join("current").canonicalize().ok().filter(|real| real.starts_with(root.join("releases")));
    let mut found = look(args, current.as_deref().unwrap_or(&root))?;
    let user = user(&args.name, current.as_deref().unwrap_or(&root));
    let in_place = args.root.is_none() && current.is_none();
    if in_place && found.steps.iter().any(|step| step.name == "migrate") {
        found.notes.push(
            "nothing runs the migrations of what is served in place: that is a step of `svctl deploy`".to_owned(),
        );
    }
    let interpreter = hidden_interpreter(current.as_deref().unwrap_or(&root), &mut found);
    let java = java::home();
    let page = Page {
        name: &args.name,
        root: args.root.as_deref().unwrap_or(&root),
        in_place,
        user: user.as_ref().map(|(user, why)| (user.as_str(), *why)),
        port: free_port(&config, &args.name, if matches!(found.program, Program::Jar { .. }) { 8080 } else { 8000 }),
        secrets: config.join(format!("{}.env", args.name)),
        found: &found,
        interpreter: interpreter.as_deref(),
        java: java.as_deref(),
    };
    let text = page.text();
    check(&config, &args.name, &text)?;
    if !args.print {
        put(&file, &text, args.force, &args.name)?;
    }
    tell(context, args, &found, &file, &text)
}

fn exists(file: &Path, name: &str) -> CliError {
    failed(
        format!("{} is there already; nothing was written.", file.display()),
        format!("`svctl edit {name}` changes it; --force writes it anew, --print shows what that would be."),
    )
}

fn unreadable(dir: &Path, error: &std::io::Error) -> CliError {
    failed(
        format!("{} cannot be looked at: {}.", dir.display(), io_text(error)),
        "Name the project's directory by --project DIR.",
    )
}

fn look(args: &InitArgs, dir: &Path) -> Result<Found, CliError> {
    if !args.command.is_empty() {
        if args.kind.is_some_and(|kind| kind != InitKind::Command) {
            return Err(CliError::usage(
                "a command line is for --kind command alone.",
                "Leave out --kind, or the command.",
            ));
        }
        return Ok(other::command(&args.command));
    }
    let project = Project::open(dir).map_err(|e| unreadable(dir, &e))?;
    if let Some(app) = &args.app {
        return Ok(other::application(&project, app));
    }
    let found = match args.kind {
        None => {
            python::look(&project, None).or_else(|| java::look(&project)).or_else(|| other::look(&project, &args.name))
        }
        Some(InitKind::Gunicorn) => python::look(&project, Some(true)),
        Some(InitKind::Jvm) => java::look(&project),
        Some(InitKind::Command) => python::look(&project, Some(false)).or_else(|| other::look(&project, &args.name)),
    };
    found.ok_or_else(|| {
        let (what, hint) = match args.kind {
            None => (
                "how it is run: no Django, Flask or FastAPI, no jar, no package.json, no program of its own",
                "After `--`, say the command: svctl init NAME -- PROGRAM ARGUMENT…",
            ),
            Some(InitKind::Gunicorn) => (
                "a WSGI application: no manage.py, and none in wsgi.py, app.py, main.py or a package's __init__.py",
                "Name it: --app MODULE:NAME",
            ),
            Some(InitKind::Jvm) => (
                "a jar with a Main-Class, at its top, in target/ or in build/libs/",
                "Build it first, or name the project's directory by --project DIR.",
            ),
            Some(InitKind::Command) => {
                ("a program", "After `--`, say the command: svctl init NAME -- PROGRAM ARGUMENT…")
            }
        };
        failed(format!("{} does not tell {what}.", dir.display()), hint)
    })
}

/// Whom the service should run as, and why: never root. `None` where svd is no root that could choose.
fn user(name: &str, dir: &Path) -> Option<(String, &'static str)> {
    use std::os::unix::fs::MetadataExt;
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    if Account::find(name).is_ok() {
        return Some((name.to_owned(), "the account of its name; what breaks in has this user's rights"));
    }
    let owner = std::fs::metadata(dir).ok().map(|meta| meta.uid()).filter(|uid| *uid != 0);
    if let Some(account) = owner.and_then(|uid| Account::by_uid(uid).ok()) {
        return Some((account.name, "whose the project is; \"auto\" would be a user of its own"));
    }
    Some(("auto".to_owned(), "a user of its own, without an account; what it writes to must be its own"))
}

/// Where a virtual environment's Python really is, if that is in somebody's home.
fn hidden_interpreter(dir: &Path, found: &mut Found) -> Option<PathBuf> {
    let python = ["venv", ".venv"].iter().find_map(|venv| dir.join(venv).join("bin/python").canonicalize().ok())?;
    let python = python.ancestors().nth(2)?.to_owned();
    let hidden = found.python && page::homes().iter().any(|home| python.starts_with(home));
    if hidden {
        found.notes.push(format!(
            "its interpreter is in {}, a home that other users may not enter: one of the system's serves better",
            python.display()
        ));
    }
    hidden.then_some(python)
}

/// The first port from `first` on that no other service has.
fn free_port(config: &Path, name: &str, first: u16) -> u16 {
    let services = config::load(config).map(|config| config.services).unwrap_or_default();
    let others = services.values().filter(|service| &*service.name != name).flat_map(|service| &service.sockets);
    let taken: BTreeSet<u16> = others
        .filter_map(|socket| match &socket.listen {
            Listen::Tcp(address) => Some(address.port()),
            Listen::Unix { .. } => None,
        })
        .collect();
    (first..).find(|port| !taken.contains(port)).unwrap_or(first)
}

/// What is written must be right; what is wrong elsewhere is its owner's to mend.
fn check(config: &Path, name: &str, text: &str) -> Result<(), CliError> {
    let Err(errors) = config::load_with(config, name, text) else { return Ok(()) };
    let own = files::of_service(config, name).display().to_string();
    let own: Vec<Box<str>> =
        errors.0.iter().filter(|e| own.ends_with(&*e.file)).map(|e| e.to_string().into()).collect();
    if own.is_empty() {
        return Ok(());
    }
    let why = "What was found makes no file that is right; nothing was written.";
    let error = ApiError::new(ErrorCode::BadConfiguration, why).hint("`svctl init --print` shows it.").details(own);
    Err(CliError::Said { exit: Exit::Failed, error })
}

/// In one step; what is there already is replaced by `--force` alone.
fn put(file: &Path, text: &str, force: bool, name: &str) -> Result<(), CliError> {
    let cannot = |e: &std::io::Error| {
        let hint = match e.kind() {
            std::io::ErrorKind::PermissionDenied => "It takes root: sudo svctl init …",
            std::io::ErrorKind::NotFound => {
                "The directory of services is conf.d below that of svd.toml; -c DIR names another one."
            }
            _ => "--print shows what was to be written.",
        };
        failed(format!("{} cannot be written: {}.", file.display(), io_text(e)), hint)
    };
    if force {
        return durable::write(file, text.as_bytes(), 0o644).map_err(|e| cannot(&e));
    }
    let dir = file.parent().unwrap_or(Path::new("."));
    let mut new = tempfile::Builder::new().prefix(".init-").tempfile_in(dir).map_err(|e| cannot(&e))?;
    let written = new.write_all(text.as_bytes()).and_then(|()| files::set_mode(new.as_file(), 0o644));
    written.and_then(|()| new.as_file().sync_all()).map_err(|e| cannot(&e))?;
    match new.persist_noclobber(file) {
        Ok(_) => durable::sync_directory(dir).map_err(|e| cannot(&e)),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Err(exists(file, name)),
        Err(error) => Err(cannot(&error.error)),
    }
}

fn tell(context: &Context, args: &InitArgs, found: &Found, file: &PathBuf, text: &str) -> Result<Exit, CliError> {
    if context.json {
        let written = (!args.print).then_some(file);
        let document = json!({ "service": args.name, "what": found.what, "file": written, "found": found.facts, "notes": found.notes, "text": text });
        context.print_value(&document)?;
        return Ok(Exit::Ok);
    }
    for fact in &found.facts {
        context.say(&format!("found {fact}"));
    }
    if args.print {
        context.print(text)?;
    } else {
        context.print(format!("{}: written, {}\n", file.display(), found.what))?;
    }
    for note in &found.notes {
        context.say(&format!("note: {note}"));
    }
    if !args.print {
        context.say(&format!("Look at it (svctl edit {}), then: svctl update", args.name));
    }
    Ok(Exit::Ok)
}
