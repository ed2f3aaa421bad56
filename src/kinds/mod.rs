//! From a specification to what is spawned: the command line, what the kind adds to the environment and the
//! descriptors, and what it knows about readiness.
//!
//! Pure: the daemon resolves directories and opens sockets, the kinds say what to do with them.

mod argv;
pub mod command;
pub mod counters;
pub mod environment;
pub mod gunicorn;
pub mod jvm;
mod places;
pub mod statsd;
pub mod tally;

use crate::config::spec::{Kind, Service, Template};
use crate::config::template::Placeholder;
use std::borrow::Cow;
use std::path::Path;

pub use argv::Argv;
pub use places::{Places, is_before_the_first, resolve};

/// Where the sockets begin in a worker (`sd_listen_fds(3)`).
pub const FIRST_SOCKET: i32 = 3;

/// What a worker's command line and environment are made from.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    pub spec: &'a Service,
    pub places: &'a Places,
    pub host: &'a str,
    pub generation: u64,
    /// The slot, from 0.
    pub worker: u32,
    /// The generation's private port, where the file mentions `{port}`.
    pub port: Option<u16>,
    /// Gunicorn's workers by `svctl scale`, instead of the file's.
    pub workers: Option<u32>,
    /// The launcher's file, for gunicorn.
    pub launcher: &'a Path,
    /// The directory of the secrets that are files.
    pub secrets: Option<&'a Path>,
}

impl<'a> Context<'a> {
    /// Of what is the same for all workers of all generations: files, paths, commands of the operator's.
    pub fn without_worker(spec: &'a Service, places: &'a Places) -> Context<'a> {
        Context {
            spec,
            places,
            host: "",
            generation: 0,
            worker: 0,
            port: None,
            workers: None,
            launcher: Path::new("launcher"),
            secrets: None,
        }
    }
}

impl Context<'_> {
    /// The text with its placeholders replaced.
    ///
    /// # Errors
    /// A sentence: what the placeholder needs and lacks.
    pub fn expand(&self, template: &Template) -> Result<String, String> {
        template.expand(&|p| self.value(p)).map(Cow::into_owned)
    }

    pub fn expand_all(&self, templates: &[Template]) -> Result<Vec<String>, String> {
        templates.iter().map(|t| self.expand(t)).collect()
    }

    /// The text as people may read it: what svd's own environment has stays a placeholder, as it may be a secret.
    ///
    /// # Errors
    /// As [`Context::expand`].
    pub fn show(&self, template: &Template) -> Result<String, String> {
        let shown = template.expand(&|p| match p {
            Placeholder::Env(_) => Ok(p.to_string().into()),
            p => self.value(p),
        });
        shown.map(Cow::into_owned)
    }

    /// A command that svd speaks of.
    ///
    /// # Errors
    /// As [`Context::expand`].
    pub fn argv(&self, templates: &[Template]) -> Result<Argv, String> {
        let words = templates.iter().map(|t| Ok((self.expand(t)?, self.show(t)?)));
        let (words, shown) = words.collect::<Result<Vec<_>, String>>()?.into_iter().unzip();
        Ok(Argv::new(words, shown))
    }

    fn value(&self, placeholder: Placeholder<'_>) -> Result<Cow<'static, str>, String> {
        let path = |path: Option<&Path>| {
            let path = path.ok_or_else(|| format!("{placeholder} needs a root, and the service has none"))?;
            let text = path.to_str().ok_or_else(|| format!("{placeholder} is not UTF-8: {}", path.display()))?;
            Ok(Cow::Owned(text.to_owned()))
        };
        Ok(match placeholder {
            Placeholder::Root => return path(self.places.root.as_deref()),
            Placeholder::Release => return path(self.places.release.as_deref()),
            Placeholder::Venv => return path(self.places.venv.as_deref()),
            Placeholder::Service => self.spec.name.to_string().into(),
            Placeholder::Host => self.host.to_owned().into(),
            Placeholder::Worker => self.worker.to_string().into(),
            Placeholder::Generation => self.generation.to_string().into(),
            Placeholder::Port => self.port.ok_or("no private port was chosen for {port}")?.to_string().into(),
            Placeholder::Fd => self.socket_number(None)?.to_string().into(),
            Placeholder::FdNamed(name) => self.socket_number(Some(name))?.to_string().into(),
            Placeholder::FdReady => self.ready_number().to_string().into(),
            Placeholder::Secret(name) => {
                let dir = self.secrets.ok_or_else(|| format!("{placeholder} is not known here"))?;
                return path(Some(&dir.join(name)));
            }
            Placeholder::Env(name) => match std::env::var(name) {
                Ok(value) => value.into(),
                Err(_) => return Err(format!("{placeholder}: svd has no variable {name} in its environment")),
            },
        })
    }

    /// The descriptor of a socket in the worker; `None`: of the first.
    fn socket_number(&self, name: Option<&str>) -> Result<i32, String> {
        if matches!(self.spec.kind, Kind::Jvm { .. }) {
            return Ok(0);
        }
        let index = match name {
            Some(name) => self.spec.sockets.iter().position(|s| &*s.name == name),
            None => (!self.spec.sockets.is_empty()).then_some(0),
        };
        let index = index.ok_or("{fd} needs a socket, and the service has none of that name")?;
        Ok(FIRST_SOCKET + index as i32)
    }

    /// The descriptor `{fd.ready}`: behind the sockets.
    pub fn ready_number(&self) -> i32 {
        FIRST_SOCKET + self.spec.sockets.len() as i32
    }

    /// The first descriptor that is free for a kind's own use.
    pub fn first_own(&self) -> i32 {
        self.ready_number() + 1
    }
}

/// A worker's command line, and where it finds its program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandLine {
    pub argv: Vec<String>,
    /// The socket becomes fd 0 (a JVM's `System.inheritedChannel`), not fd 3.
    pub socket_on_stdin: bool,
}

/// The command line of a worker; `variables`: what it has in its environment beside what its file says.
///
/// # Errors
/// A sentence: a placeholder without a value.
pub fn command_line(context: &Context<'_>, variables: &[(String, String)]) -> Result<CommandLine, String> {
    match &context.spec.kind {
        Kind::Command { command } => command::command_line(context, command),
        Kind::Gunicorn { app, python, workers, args } => {
            gunicorn::command_line(context, app, python.as_ref(), *workers, args)
        }
        Kind::Jvm { program, java, args } => jvm::command_line(context, program, java, args, variables),
    }
}

/// The first word of the command line, where no placeholder in it depends on the worker.
///
/// # Errors
/// One does, or has no value.
pub fn program(context: &Context<'_>) -> Result<String, String> {
    let varies = |t: &Template| {
        t.placeholders()
            .any(|p| matches!(p, Placeholder::Worker | Placeholder::Generation | Placeholder::Port | Placeholder::Host))
    };
    let text = match &context.spec.kind {
        Kind::Command { command } => command.first(),
        Kind::Jvm { java, .. } => java.home.as_ref(),
        Kind::Gunicorn { python, .. } => python.as_ref(),
    };
    match (text, &context.spec.kind) {
        (Some(text), _) if varies(text) => Err("it depends on the worker".to_owned()),
        (_, Kind::Jvm { java, .. }) => jvm::java(context, java),
        (Some(text), _) => context.expand(text),
        (None, _) => Ok(context.places.venv_python().unwrap_or_else(|| "python3".to_owned())),
    }
}

/// The word of the service file.
pub fn kind_word(kind: &Kind) -> &'static str {
    match kind {
        Kind::Gunicorn { .. } => "gunicorn",
        Kind::Jvm { .. } => "jvm",
        Kind::Command { .. } => "command",
    }
}

/// Does any text of the file mention `{port}`?
pub fn wants_port(spec: &Service) -> bool {
    let mentions = |t: &Template| t.placeholders().any(|p| p == Placeholder::Port);
    let any = |all: &[Template]| all.iter().any(mentions);
    let kind = match &spec.kind {
        Kind::Gunicorn { app, args, .. } => mentions(app) || any(args),
        Kind::Jvm { java, args, .. } => any(&java.options) || any(args),
        Kind::Command { command } => any(command),
    };
    kind || spec.environment.iter().any(|(_, value)| mentions(value))
        || spec.checks().any(|p| match p {
            crate::config::spec::ReadyBy::Http(probe) => probe.port.as_ref().is_some_and(mentions),
            crate::config::spec::ReadyBy::Tcp(address) => mentions(address),
            crate::config::spec::ReadyBy::Command(command) => any(command),
            _ => false,
        })
}
