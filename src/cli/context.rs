//! What every verb needs: the client, the streams, and how errors are said.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::value::RawValue;

use super::exit::{CliError, Exit};
use super::render;
use crate::api::client::{Client, ClientError, encode};
use crate::api::types::Progress;

pub struct Context {
    socket: PathBuf,
    pub json: bool,
    /// stdout is a terminal.
    pub terminal: bool,
}

impl Context {
    pub fn new(socket: PathBuf, json: bool) -> Context {
        Context { socket, json, terminal: io::stdout().is_terminal() }
    }

    /// svd's control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn client(&self) -> Result<Client, CliError> {
        Ok(Client::new(&self.socket)?)
    }

    /// Only where somebody can see it, and did not ask for none (<https://no-color.org>).
    pub fn colour(&self) -> bool {
        let set = |name| std::env::var_os(name).is_some_and(|v: std::ffi::OsString| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|t| t == "dumb");
        self.terminal && !set("NO_COLOR") && !dumb
    }

    /// Writes data.
    pub fn print(&self, text: impl AsRef<[u8]>) -> Result<(), CliError> {
        let mut out = io::stdout().lock();
        let written = out.write_all(text.as_ref()).and_then(|()| out.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => CliError::NobodyReads,
            _ => ClientError::Local { message: "svctl cannot write its output", source: error }.into(),
        })
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
        let _ = writeln!(io::stderr().lock(), "{text}");
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
        let spinner = (!self.json && io::stderr().is_terminal()).then(|| {
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
