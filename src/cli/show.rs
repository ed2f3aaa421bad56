//! `svctl show NAME`: the settings of a service, each with where it comes from.

use std::fmt::Write;
use std::path::Path;

use super::args::ShowArgs;
use super::context::{Context, need_names};
use super::exit::{CliError, Exit};
use super::files;
use super::text::line;
use crate::api::client::encode;
use crate::api::types::{ApiError, ChangeAction, Configuration, ErrorCode};
use crate::config::shown::{InForce, Origin, Setting, settings};
use crate::config::{self, Diagnostics};

pub fn show(context: &Context, args: &ShowArgs) -> Result<Exit, CliError> {
    need_names(std::slice::from_ref(&args.name), "show")?;
    let body = match &args.config {
        Some(dir) => {
            files::only_here(context, "show -c")?;
            serde_json::to_vec(&of_files(dir, &args.name)?).unwrap_or_default()
        }
        None => context.client()?.get(&format!("/v1/services/{}/configuration", encode(&args.name)))?.to_vec(),
    };
    if context.json {
        context.print_json(&body)?;
        return Ok(Exit::Ok);
    }
    let shown: Configuration = serde_json::from_slice(&body).map_err(|error| super::host::odd_answer(&error))?;
    context.print(text(&shown, args.changed))?;
    for error in &shown.errors {
        context.say(&line(error));
    }
    Ok(Exit::Ok)
}

/// As a svd that started now would have it.
fn of_files(dir: &Path, name: &str) -> Result<Configuration, CliError> {
    let file = files::of_service(dir, name);
    let shown = file.display().to_string();
    if file.symlink_metadata().is_err() {
        let error = ApiError::new(ErrorCode::UnknownService, format!("There is no file {shown}."));
        return Err(CliError::Said { exit: Exit::Unknown, error: error.hint("`svctl init` writes one.") });
    }
    let text = config::read_text(&file, &shown).map_err(|error| wrong(dir, &Diagnostics(vec![error])))?;
    let config = config::load_with(dir, name, &text).map_err(|errors| wrong(dir, &errors))?;
    let Some(service) = config.services.get(name) else {
        return Err(wrong(dir, &Diagnostics(Vec::new())));
    };
    let now = InForce { service, scaled: None, kept: false };
    Ok(Configuration {
        service: name.into(),
        file: shown.into(),
        generation: None,
        release: None,
        settings: settings(&now, Some((service, &text))),
        update: None,
        notes: Vec::new(),
        errors: Vec::new(),
    })
}

pub fn wrong(dir: &Path, errors: &Diagnostics) -> CliError {
    let details = errors.0.iter().map(|e| e.to_string().into()).collect();
    let why = format!("The configuration in {} has {}.", dir.display(), config::counted(errors.0.len(), "error"));
    CliError::Said { exit: Exit::Failed, error: ApiError::new(ErrorCode::BadConfiguration, why).details(details) }
}

/// What an `update` would do, as people say it.
pub fn action(action: ChangeAction) -> &'static str {
    match action {
        ChangeAction::Adjust => "takes effect at once; no process is touched",
        ChangeAction::Scale => "more or fewer processes; those that stay are not touched",
        ChangeAction::Reload => "a reload: new processes beside the old ones, which go on if the new ones fail",
        ChangeAction::Restart => "a stop and a start: the sockets are bound anew",
        ChangeAction::Add => "it is added",
        ChangeAction::Remove => "it is stopped and removed: its file is gone",
        ChangeAction::Unknown => "something that this svctl does not know",
    }
}

fn origin(setting: &Setting, file: &str) -> String {
    let at = setting.line.map(|number| format!("{file}:{number}"));
    match setting.origin {
        Origin::File => at.unwrap_or_else(|| file.to_owned()),
        Origin::Default => "default".to_owned(),
        Origin::Kind => "the kind's own".to_owned(),
        Origin::Scale => "svctl scale".to_owned(),
        Origin::Release => "kept with the release".to_owned(),
        Origin::Earlier => "before the file was changed".to_owned(),
        Origin::Unknown => "unknown".to_owned(),
    }
}

/// A head, a line for each key, and what an update would do. Pure.
fn text(shown: &Configuration, changed: bool) -> String {
    let mut out = String::new();
    let file = shown.file.rsplit('/').next().unwrap_or_default();
    let _ = write!(out, "{}: {}", line(&shown.service), line(&shown.file));
    if let Some(number) = shown.generation {
        let _ = write!(out, ", as generation {number} runs with it");
    }
    if let Some(release) = &shown.release {
        let _ = write!(out, ", release {}", line(release));
    }
    out.push('\n');
    let rows: Vec<&Setting> = shown.settings.iter().filter(|s| !changed || s.differs.is_some()).collect();
    let cells: Vec<[String; 3]> =
        rows.iter().map(|s| [line(&s.key), line(s.value.as_deref().unwrap_or("-")), origin(s, &line(file))]).collect();
    // One long command must not push all else out of sight.
    let width = |column: usize, most: usize| {
        cells.iter().map(|row| row[column].chars().count()).filter(|n| *n <= most).max().unwrap_or(0)
    };
    let (keys, values) = (width(0, 60), width(1, 48));
    for (setting, [key, value, from]) in rows.iter().zip(&cells) {
        let _ = writeln!(out, "  {key:keys$}  {value:values$}  {from}");
        if let Some(differs) = &setting.differs {
            let at = setting.line.map(|number| format!(":{number}")).unwrap_or_default();
            let says = match &differs.in_file {
                Some(value) => format!("says {}", line(value)),
                None => "does not have it any more".to_owned(),
            };
            let _ = writeln!(out, "  {:keys$}  → {}{at} {says} ({})", "", line(file), line(&differs.needs));
        }
    }
    for note in &shown.notes {
        let _ = writeln!(out, "note: {}", line(note));
    }
    match (shown.update, shown.errors.is_empty()) {
        (Some(update), _) => {
            let _ = writeln!(out, "The file says something else; `svctl update`: {}.", action(update));
        }
        (None, true) if changed => out.push_str("Nothing differs.\n"),
        (None, true) => {}
        (None, false) => out.push_str("The files cannot be compared with, as they have errors:\n"),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::shown::Differs;

    fn setting(key: &str, value: Option<&str>, origin: Origin, at: Option<u32>, differs: Option<Differs>) -> Setting {
        Setting { key: key.into(), value: value.map(Into::into), origin, line: at, differs }
    }

    #[test]
    fn lines_have_value_and_place() {
        let differs = Differs { in_file: Some("3".into()), needs: "scale".into() };
        let shown = Configuration {
            service: "web".into(),
            file: "/etc/airdock/conf.d/web.toml".into(),
            generation: Some(4),
            release: None,
            settings: vec![
                setting("kind", Some("gunicorn"), Origin::File, Some(1), None),
                setting("workers", Some("2"), Origin::Earlier, Some(9), Some(differs)),
                setting("umask", Some("svd's own"), Origin::Default, None, None),
            ],
            update: Some(ChangeAction::Reload),
            notes: vec!["x\x1b".into()],
            errors: Vec::new(),
        };
        assert_eq!(
            text(&shown, false),
            "web: /etc/airdock/conf.d/web.toml, as generation 4 runs with it\n\
             \u{20} kind     gunicorn   web.toml:1\n\
             \u{20} workers  2          before the file was changed\n\
             \u{20}          → web.toml:9 says 3 (scale)\n\
             \u{20} umask    svd's own  default\n\
             note: x\\x1b\n\
             The file says something else; `svctl update`: a reload: new processes beside the old ones, which go on if the new ones fail.\n"
        );
        assert_eq!(text(&shown, true).lines().count(), 5);
    }
}
