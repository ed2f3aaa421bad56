//! The text of the file: every choice with its reason. Pure.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::project::join;
use super::{Found, Program};
use crate::config::spec::{Isolation, Profile};
use crate::isolation;

/// Where comments begin, if there is room.
const COMMENTS: usize = 44;
/// Facts and comments are cut there.
const WIDTH: usize = 300;

pub struct Page<'a> {
    pub name: &'a str,
    pub root: &'a Path,
    /// The project is served from where it is, without releases.
    pub in_place: bool,
    /// And why.
    pub user: Option<(&'a str, &'a str)>,
    /// Nobody else's.
    pub port: u16,
    /// A file for what must not stand in this one.
    pub secrets: PathBuf,
    pub found: &'a Found,
    /// Where that is below what a profile hides.
    pub interpreter: Option<&'a Path>,
    /// Where the java in `PATH` is, if it can be seen from there.
    pub java: Option<&'a Path>,
}

/// What `profile = "standard"` hides.
pub fn homes() -> Vec<String> {
    let standard = Isolation { profile: Profile::Standard, ..Isolation::default() };
    let hidden = isolation::settings(Some(&standard), true).hidden;
    hidden.into_iter().map(|path| path.0.into_string()).collect()
}

/// Text as TOML has it in quotes.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => drop(write!(out, "\\u{:04X}", c as u32)),
            c => out.push(c),
        }
    }
    out + "\""
}

pub fn list(words: &[String]) -> String {
    format!("[{}]", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(", "))
}

/// For a comment: one line of it.
fn said(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WIDTH).collect()
}

/// A line, with what it is for.
fn line(out: &mut String, text: &str, why: &str) {
    let gap = COMMENTS.saturating_sub(text.chars().count()).max(2);
    let _ = match why {
        "" => writeln!(out, "{text}"),
        why => writeln!(out, "{text}{:gap$}# {}", "", said(why)),
    };
}

fn section(out: &mut String, name: &str, why: &str) {
    out.push('\n');
    line(out, &format!("[{name}]"), why);
}

impl Page<'_> {
    pub fn text(&self) -> String {
        let mut out = String::new();
        self.head(&mut out);
        self.program(&mut out);
        self.places(&mut out);
        self.sockets(&mut out);
        self.java(&mut out);
        self.environment(&mut out);
        self.ready(&mut out);
        self.reload(&mut out);
        self.shut_in(&mut out);
        self.deploy(&mut out);
        out
    }

    fn head(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "# {}: {}. Written by `svctl init` after a look at the project; what it found:",
            self.name, self.found.what
        );
        for fact in &self.found.facts {
            let _ = writeln!(out, "#   {}", said(fact));
        }
        out.push_str("# Keys that are not here have their defaults; `svctl show ");
        let _ = writeln!(out, "{}` lists them all. After a change: `svctl update`.\n", self.name);
    }

    fn program(&self, out: &mut String) {
        match &self.found.program {
            Program::Gunicorn { app, args } => {
                line(out, "kind = \"gunicorn\"", "a reload is tried behind a gate, and no request is lost");
                line(out, &format!("app = {}", quoted(app)), "the application, as gunicorn names it");
                if !args.is_empty() {
                    line(out, &format!("args = {}", list(args)), "gunicorn's own options");
                }
                match self.found.workers_elsewhere {
                    true => line(out, "# workers = 4", "gunicorn.conf.py says how many"),
                    false => line(out, "workers = \"auto\"", "2 × cores + 1; a number where memory is short"),
                }
            }
            Program::Uvicorn { app, factory, drains } => {
                let mut words = vec!["{venv}/bin/python".to_owned()];
                match drains {
                    Some(file) => words.push(format!("{{release}}/{file}")),
                    None => words.extend(["-m", "uvicorn"].map(str::to_owned)),
                }
                words.extend(["--fd", "{fd}"].map(str::to_owned));
                words.extend(factory.then(|| "--factory".to_owned()));
                words.push(app.clone());
                line(
                    out,
                    "kind = \"command\"",
                    "uvicorn by itself; below gunicorn a reload would be gated: --kind gunicorn",
                );
                let why = "{fd}: svd's socket, which old and new processes share";
                let _ = writeln!(out, "# {why}");
                if drains.is_none() {
                    out.push_str("# uvicorn closes idle connections when it stops: docs/fastapi.md has a wrapper that loses no request\n");
                }
                line(out, &format!("command = {}", list(&words)), "");
            }
            Program::Jar { jar, inherits, .. } => {
                line(out, "kind = \"jvm\"", "");
                line(out, &format!("jar = {}", quoted(&format!("{{release}}/{jar}"))), "");
                if !inherits {
                    out.push_str("# It binds its port itself, so that a reload stops it first. docs/java.md says how it gets svd's socket instead.\n");
                }
            }
            Program::Command(words) => {
                line(out, "kind = \"command\"", "");
                line(out, &format!("command = {}", list(words)), "program and arguments; no shell reads them");
            }
        }
    }

    fn places(&self, out: &mut String) {
        let root = format!("root = {}", quoted(&self.root.to_string_lossy()));
        match self.in_place {
            true => {
                line(out, &root, "the project, served as it is here");
                let _ = writeln!(
                    out,
                    "# With releases (`svctl deploy`), a directory of the service's own instead: root = \"/srv/{}\"",
                    self.name
                );
            }
            false => line(out, &root, "releases/ID, and current, a link to one of them"),
        }
        if !self.found.dir.is_empty() {
            line(
                out,
                &format!("directory = {}", quoted(&join("{release}", &self.found.dir))),
                "where it is imported from",
            );
        }
        if let Some((user, why)) = self.user {
            line(out, &format!("user = {}", quoted(user)), why);
        }
        line(out, "umask = \"0027\"", "new files are not for others");
    }

    fn sockets(&self, out: &mut String) {
        let shared = match &self.found.program {
            Program::Gunicorn { .. } | Program::Uvicorn { .. } => true,
            Program::Jar { inherits, .. } => *inherits,
            Program::Command(_) => false,
        };
        if shared {
            section(out, "sockets.http", "svd binds it, and keeps it through reloads and crashes");
            line(
                out,
                &format!("listen = \"127.0.0.1:{}\"", self.port),
                "this host alone: a web server stands in front; \"0.0.0.0:…\" for all",
            );
        }
    }

    fn java(&self, out: &mut String) {
        if !matches!(self.found.program, Program::Jar { .. }) {
            return;
        }
        section(out, "java", "the heap is sized from [limits]: `svctl show` has it");
        match self.java {
            Some(home) => {
                line(out, &format!("home = {}", quoted(&home.to_string_lossy())), "JAVA_HOME; the java in PATH is its")
            }
            None => line(out, "# home = \"/usr/lib/jvm/NAME\"", "JAVA_HOME; without it the java in PATH"),
        }
        line(out, "# options = [\"-XX:+ExitOnOutOfMemoryError\"]", "of the JVM itself");
    }

    fn environment(&self, out: &mut String) {
        let Found { environment, needs, .. } = self.found;
        let needs: Vec<_> =
            needs.iter().filter(|(name, _)| environment.iter().all(|(known, _)| known != name)).collect();
        if !needs.is_empty() {
            // Above the first section.
            let at = out.find("\n[").unwrap_or(out.len());
            let mut top = String::new();
            line(
                &mut top,
                &format!("environment_files = [{}]", quoted(&format!("-{}", self.secrets.display()))),
                "secrets: NAME=value lines, chmod 0600; may be absent",
            );
            out.insert_str(at, &top);
        }
        if environment.is_empty() && needs.is_empty() {
            return;
        }
        section(out, "environment", "nothing of svd's own or of a shell's is in it");
        for (name, value) in environment {
            line(out, &format!("{} = {}", key(name), quoted(value)), "");
        }
        for (name, place) in needs {
            line(out, &format!("# {} = \"\"", key(name)), &format!("{place} reads it, and has no default"));
        }
    }

    fn ready(&self, out: &mut String) {
        let probe = &self.found.probe;
        let own_port = match &self.found.program {
            Program::Jar { port, .. } => *port,
            _ => None,
        };
        let mut keys = Vec::new();
        let mut why = Vec::new();
        let path = probe.path.as_ref().map(|(path, place)| {
            why.push(place.clone());
            path.as_str()
        });
        keys.push(format!("path = {}", quoted(path.unwrap_or("/healthz"))));
        if let Some((host, place)) = &probe.host {
            keys.push(format!("host = {}", quoted(host)));
            why.push(format!("{place} allows that host"));
        }
        if let Some(place) = &probe.https {
            keys.push("headers = { X-Forwarded-Proto = \"https\" }".to_owned());
            why.push(format!("{place} redirects plain HTTP"));
        }
        if let Some(port) = own_port {
            keys.push(format!("port = {port}"));
        }
        let text = format!("probe = {{ {} }}", keys.join(", "));
        let serves = !matches!(self.found.program, Program::Command(_));
        if !serves {
            return;
        }
        section(out, "ready", "when a new generation counts as started");
        match (path, own_port) {
            (Some(_), _) => {
                let _ = writeln!(out, "# {}", said(&why.join("; ")));
                line(out, &text, "");
            }
            (None, Some(port)) => {
                line(out, &format!("tcp = \"127.0.0.1:{port}\""), "it accepts; a page of its own would tell more")
            }
            (None, None) => {
                if let Program::Uvicorn { .. } = self.found.program {
                    line(
                        out,
                        "log = \"Application startup complete\"",
                        "uvicorn's word, as no page that tells its health was found",
                    );
                }
                line(out, &format!("# {text}"), "a page that is quick, and fails where the application cannot work");
            }
        }
        line(out, "timeout = \"60s\"", "a start that takes longer has failed");
        if path.is_some() {
            section(out, "health", "while it runs");
            line(out, &text, "");
            line(out, "action = \"report\"", "\"restart\" where a restart mends it");
        }
    }

    fn reload(&self, out: &mut String) {
        if matches!(self.found.program, Program::Jar { inherits: false, .. } | Program::Command(_)) {
            section(out, "reload", "");
            line(out, "overlap = false", "a port of its own: the old process ends before the new one starts");
        }
    }

    fn shut_in(&self, out: &mut String) {
        section(out, "isolation", "what it sees of the host; \"strict\" shuts more: docs/configuration.md");
        match self.user {
            Some(_) => line(out, "profile = \"standard\"", "its own /tmp, few devices, no homes, the system read-only"),
            None => {
                line(out, "# profile = \"standard\"", "where svd may do that: run by root, or with user namespaces")
            }
        }
        if let (Some(interpreter), Some(_)) = (self.interpreter, self.user) {
            let others: Vec<String> = homes().into_iter().filter(|home| !interpreter.starts_with(home)).collect();
            let why = format!("not where its interpreter is: {}", interpreter.display());
            line(out, &format!("hidden = {}", list(&others)), &why);
        }
        section(out, "limits", "of a generation; see [limits] in docs/configuration.md");
        let why = match self.found.program {
            Program::Jar { .. } => "what asks for more is killed; the heap is three quarters of it",
            _ => "what asks for more is killed, and started again",
        };
        line(out, "# memory = \"1GiB\"", why);
        line(out, "# tasks = 512", "processes and threads");
    }

    fn deploy(&self, out: &mut String) {
        if !self.found.python {
            return;
        }
        section(out, "deploy", "what `svctl deploy` does here, and nothing else");
        match self.found.requirements {
            true => line(
                out,
                "requirements = [\"requirements.txt\"]",
                "a virtual environment is made from it, anew where it changes",
            ),
            false => {
                line(out, "# requirements = [\"requirements.txt\"]", "none was found: {venv} is not made without one")
            }
        }
        for step in &self.found.steps {
            section(out, &format!("deploy.{}", step.name), step.why);
            line(out, &format!("command = {}", list(&step.command)), "");
            for (key, words) in &step.more {
                line(out, &format!("{key} = {}", list(words)), "");
            }
        }
    }
}

/// Bare where TOML allows it.
fn key(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-'));
    if bare { name.to_owned() } else { quoted(name) }
}
