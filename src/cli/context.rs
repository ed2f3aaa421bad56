//! What every verb needs: the client, the streams, and how errors are said.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;

use super::exit::{CliError, Exit};
use super::lanes::Lane;
use super::render;
use crate::api::client::{Client, ClientError, Dial, Unix, encode};
use crate::api::types::Progress;

#[derive(Clone)]
pub struct Context {
    reach: Reach,
    pub json: bool,
    /// stdout is a terminal.
    pub terminal: bool,
}

/// Which svd a verb is about, and where its words go.
#[derive(Clone)]
enum Reach {
    Here(PathBuf),
    /// A host among others.
    There(Arc<dyn Dial>, Lane),
}

impl Context {
    pub fn new(socket: PathBuf, json: bool) -> Context {
        Context { reach: Reach::Here(socket), json, terminal: io::stdout().is_terminal() }
    }

    /// For the same verb on another host.
    pub fn of_host(&self, dial: Arc<dyn Dial>, lane: Lane) -> Context {
        Context { reach: Reach::There(dial, lane), json: self.json, terminal: self.terminal }
    }

    /// The control socket of this host's svd; `None` where it is another host's.
    pub fn socket(&self) -> Option<&Path> {
        match &self.reach {
            Reach::Here(socket) => Some(socket),
            Reach::There(..) => None,
        }
    }

    /// One of several hosts: its words come in lines, and it has no input.
    pub fn is_among_others(&self) -> bool {
        match &self.reach {
            Reach::Here(_) => false,
            Reach::There(_, lane) => !lane.is_alone(),
        }
    }

    pub fn client(&self) -> Result<Client, CliError> {
        Ok(Client::over(match &self.reach {
            Reach::Here(socket) => Arc::new(Unix::new(socket)),
            Reach::There(dial, _) => Arc::clone(dial),
        })?)
    }

    /// Only where somebody can see it, and did not ask for none (<https://no-color.org>).
    pub fn colour(&self) -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|v: std::ffi::OsString| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb");
        self.terminal && !set("NO_COLOR") && !dumb
    }

    /// Writes data.
    pub fn print(&self, text: impl AsRef<[u8]>) -> Result<(), CliError> {
        match &self.reach {
            Reach::Here(_) => print(text.as_ref()),
            Reach::There(_, lane) => lane.print(text.as_ref()),
        }
    }

    /// The one document of `--json`, as svd wrote it.
    pub fn print_json(&self, text: &[u8]) -> Result<(), CliError> {
        let mut text = text.trim_ascii_end().to_vec();
        text.push(b'\n');
        self.print(text)
    }

    pub fn print_value(&self, value: &impl Serialize) -> Result<(), CliError> {
        self.print_json(&serde_json::to_vec(value).unwrap_or_default())
    }

    /// A message for people on stderr; whether it can be written does not matter.
    pub fn say(&self, text: &str) {
        match &self.reach {
            Reach::Here(_) => drop(writeln!(io::stderr().lock(), "{text}")),
            Reach::There(_, lane) => lane.say(text),
        }
    }

    /// Nobody reads the output any more: this is the end, also of what runs beside.
    pub fn leave(&self) -> Exit {
        match &self.reach {
            Reach::Here(_) => std::process::exit(0),
            // Whoever runs the hosts has been told by what could not be written.
            Reach::There(..) => Exit::Ok,
        }
    }

    /// Says an error, and gives the exit code.
    pub fn report(&self, error: &CliError) -> Exit {
        let CliError::Said { exit, error } = error else {
            return Exit::Ok;
        };
        if self.json {
            let _ = self.print_value(&serde_json::json!({ "error": error }));
        } else {
            self.say(render::error("svctl: ", error).trim_end());
        }
        *exit
    }

    /// A long operation with its progress on stderr: plain lines, above a spinner where it is a terminal.
    pub fn act(&self, path: &str, body: Option<&serde_json::Value>) -> Result<Box<RawValue>, CliError> {
        let client = self.client()?;
        let spins = !self.json && self.socket().is_some() && io::stderr().is_terminal();
        let spinner = spins.then(|| {
            let spinner = indicatif::ProgressBar::new_spinner();
            spinner.enable_steady_tick(std::time::Duration::from_millis(120));
            spinner
        });
        let result = client.act(path, body, |line: &Progress| {
            let text = render::progress(line);
            match &spinner {
                Some(spinner) => {
                    spinner.println(&text);
                    spinner.set_message(text);
                }
                None if self.json => {}
                None => self.say(&text),
            }
        });
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        Ok(result?)
    }
}

/// Writes data to stdout.
pub fn print(text: &[u8]) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::NobodyReads,
        _ => ClientError::Local { message: "svctl cannot write its output", source: error }.into(),
    })
}

/// `a,b*` as a part of a path.
pub fn joined(names: &[String]) -> String {
    encode(&names.join(","))
}

/// A verb that acts does not guess what it should act on.
pub fn need_names(names: &[String], verb: &str) -> Result<(), CliError> {
    if let Some(odd) = names.iter().find(|n| n.is_empty() || n.contains([',', '/'])) {
        return Err(CliError::usage(
            format!("{odd:?} cannot be the name of a service."),
            "Names are separated by spaces; `svctl status` lists them.",
        ));
    }
    if names.is_empty() {
        return Err(CliError::usage(
            format!("{verb} needs the name of a service."),
            format!("For all services: svctl {verb} '*'"),
        ));
    }
    Ok(())
}
