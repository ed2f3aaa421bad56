//! `svctl security`: how much of the host services could reach, by their files; and what `svctl check` warns of.

use std::fmt::Write;
use std::path::Path;

use serde_json::json;

use super::args::SecurityArgs;
use super::context::Context;
use super::exit::{CliError, Exit};
use super::files;
use super::text::line;
use crate::api::types::{ApiError, ErrorCode};
use crate::config::spec::{AUTO_USER, Config, Service};
use crate::config::{self, Diagnostic, shown};
use crate::isolation::{Exposure, exposure, weak};

pub fn security(context: &Context, args: &SecurityArgs) -> Result<Exit, CliError> {
    files::only_here(context, "security")?;
    let dir = files::directory(context, args.config.as_deref());
    let config = config::load(&dir).map_err(|errors| super::show::wrong(&dir, &errors))?;
    let mut found = Vec::new();
    for name in &args.names {
        let fits = config.services.keys().filter(|known| crate::api::access::matches(name, known));
        let before = found.len();
        found.extend(fits.cloned());
        if found.len() == before {
            let error =
                ApiError::new(ErrorCode::UnknownService, format!("There is no service {name} in {}.", dir.display()));
            return Err(CliError::Said { exit: Exit::Unknown, error });
        }
    }
    if args.names.is_empty() {
        found.extend(config.services.keys().cloned());
    }
    found.sort_unstable();
    found.dedup();
    let looked = found.iter().filter_map(|name| {
        let service = config.services.get(name)?;
        Some((&**name, exposure(service, !same_user(&config, service).is_empty())))
    });
    let looked: Vec<(&str, Exposure)> = looked.collect();
    if context.json {
        let services: Vec<_> = looked
            .iter()
            .map(|(name, exposure)| json!({ "service": name, "total": exposure.total, "word": exposure.word, "parts": exposure.parts }))
            .collect();
        context.print_value(&json!({ "services": services }))?;
    } else if let ([(name, exposure)], false) = (&looked[..], args.names.is_empty()) {
        context.print(one(name, exposure))?;
    } else {
        context.print(table(&looked))?;
    }
    let above = |(_, exposure): &&(&str, Exposure)| args.at_most.is_some_and(|most| exposure.total > most);
    Ok(if looked.iter().any(|one| above(&one)) { Exit::Failed } else { Exit::Ok })
}

/// The names of other services that run as the same user.
fn same_user<'a>(config: &'a Config, service: &Service) -> Vec<&'a str> {
    if service.user.as_deref() == Some(AUTO_USER) {
        return Vec::new();
    }
    // What is deployed together shares its user, its files and its secrets.
    let apart = |other: &&std::sync::Arc<Service>| other.root.is_none() || other.root != service.root;
    let others = config.services.values().filter(|other| other.name != service.name && other.user == service.user);
    others.filter(apart).map(|other| &*other.name).collect()
}

/// What is allowed in the files of `dir` and hardly meant, with its place.
pub fn warnings(dir: &Path, config: &Config) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    for (name, service) in &config.services {
        let weak = weak(service, &same_user(config, service));
        if weak.is_empty() {
            continue;
        }
        let file = files::of_service(dir, name);
        let path = file.strip_prefix(".").unwrap_or(&file).display().to_string();
        let text = config::read_text(&file, &path).unwrap_or_default();
        found.extend(weak.into_iter().map(|weak| {
            let mut diagnostic = Diagnostic::of_file(&path, weak.message);
            diagnostic.position = shown::position(&text, &weak.key);
            diagnostic.help = Some(weak.help.to_owned());
            diagnostic
        }));
    }
    found
}

/// Every key, the largest part first. Pure.
fn one(name: &str, exposure: &Exposure) -> String {
    let keys = exposure.parts.iter().map(|part| part.key.len()).max().unwrap_or(0);
    let mut out = String::new();
    let _ = writeln!(out, "{:keys$}  EXPOSURE  STATE", "KEY");
    for part in &exposure.parts {
        let _ = writeln!(out, "{:keys$}  {:>8.1}  {}", part.key, part.exposure(), line(&part.state));
        if let (Some(exposes), Some(change)) = (part.exposes, &part.change) {
            let _ = writeln!(out, "{:keys$}            exposes {exposes}", "");
            let _ = writeln!(out, "{:keys$}            → {}", "", line(change));
        }
    }
    let _ = writeln!(out, "\n{}: {:.1} of 10, {}", line(name), exposure.total, exposure.word);
    out
}

/// A line for each service: what would help it most. Pure.
fn table(all: &[(&str, Exposure)]) -> String {
    let names = all.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0).max(4);
    let mut out = format!("{:names$}  EXPOSURE  {:8}  WHAT WOULD HELP MOST\n", "NAME", "");
    for (name, exposure) in all {
        let help = exposure.parts.first().and_then(|part| part.change.as_deref()).unwrap_or("nothing: all is shut");
        let _ = writeln!(out, "{:names$}  {:>8.1}  {:8}  {}", line(name), exposure.total, exposure.word, line(help));
    }
    out
}
