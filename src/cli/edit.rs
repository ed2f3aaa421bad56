//! `svctl edit NAME`: a service's file in an editor, checked before it takes the old one's place.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::args::EditArgs;
use super::context::{Context, need_names};
use super::exit::{CliError, Exit};
use super::host::understand;
use super::{act, files, render};
use crate::api::types::{ApiError, ErrorCode, UpdateResult};
use crate::config::{self, Diagnostics};
use crate::sys::{durable, foreground, io_text};

/// What is larger is no configuration, and an editor may have been given anything.
const MAX_FILE: u64 = 1 << 20;
/// Where the environment names no editor.
const EDITORS: &[&str] = &["editor", "nano", "vim", "vi"];

fn failed(why: impl Into<Box<str>>, hint: impl Into<Box<str>>) -> CliError {
    CliError::Said { exit: Exit::Failed, error: ApiError::new(ErrorCode::Failed, why).hint(hint) }
}

/// The file as it was when the editor was opened, locked for other `svctl edit`.
struct Original {
    /// Without links.
    path: PathBuf,
    /// As long as this is open.
    _locked: File,
    meta: Metadata,
    text: Vec<u8>,
}

impl Original {
    fn open(path: &Path, name: &str) -> Result<Original, CliError> {
        let cannot = |e: &io::Error| match e.kind() {
            io::ErrorKind::NotFound => CliError::Said {
                exit: Exit::Unknown,
                error: ApiError::new(ErrorCode::UnknownService, format!("There is no file {}.", path.display())).hint(
                    format!(
                        "`svctl init {name}` writes one from a look at a project; -c DIR names another configuration."
                    ),
                ),
            },
            io::ErrorKind::PermissionDenied => failed(
                format!("{} cannot be read: {}.", path.display(), io_text(e)),
                format!("It takes root: sudo svctl edit {name}"),
            ),
            _ => failed(format!("{} cannot be read: {}.", path.display(), io_text(e)), "Nothing was changed."),
        };
        // The link stays, and what it leads to is changed.
        let path = path.canonicalize().map_err(|e| cannot(&e))?;
        let mut file = File::open(&path).map_err(|e| cannot(&e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let why = format!("{} is being edited by somebody else.", path.display());
                return Err(failed(why, "Try again when that is done."));
            }
            Err(TryLockError::Error(e)) => return Err(cannot(&e)),
        }
        let meta = file.metadata().map_err(|e| cannot(&e))?;
        let mut text = Vec::new();
        (&mut file).take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| cannot(&e))?;
        Ok(Original { path, _locked: file, meta, text })
    }

    /// Is what is there now still what was opened?
    fn is_as_it_was(&self) -> bool {
        let now = fs::symlink_metadata(&self.path);
        let same = now.is_ok_and(|now| (now.dev(), now.ino()) == (self.meta.dev(), self.meta.ino()));
        same && fs::read(&self.path).is_ok_and(|text| text == self.text)
    }
}

pub fn edit(context: &Context, args: &EditArgs) -> Result<Exit, CliError> {
    files::only_here(context, "edit")?;
    need_names(std::slice::from_ref(&args.name), "edit")?;
    let config = files::directory(context, args.config.as_deref());
    let original = Original::open(&files::of_service(&config, &args.name), &args.name)?;
    let copy = Copy::of(&original, &args.name)?;
    let asks = !args.yes && !context.json && io::stdin().is_terminal() && io::stderr().is_terminal();
    let text = loop {
        open_editor(&copy.file)?;
        let text = read_limited(&copy.file)?;
        if text == original.text {
            return unchanged(context, &original.path);
        }
        let Err(errors) = check(&config, &args.name, &text, context) else { break text };
        let again = asks && {
            context.say(&errors.to_string());
            ask(context, "Go on editing? Else nothing is changed, and what you have written is lost. [Y/n] ")
        };
        if !again {
            return Err(give_up(copy, &original.path, &errors, asks));
        }
    };
    if !original.is_as_it_was() {
        let kept = copy.keep();
        let why = format!("{} was changed by somebody else meanwhile; nothing was written.", original.path.display());
        return Err(failed(why, format!("What you have written is in {kept}.")));
    }
    let put = durable::replace(&original.path, &text, &original.meta);
    if let Err(e) = put {
        let kept = copy.keep();
        let why = format!("{} cannot be written: {}.", original.path.display(), io_text(&e));
        return Err(failed(why, format!("What you have written is in {kept}.")));
    }
    drop(copy);
    context.say(&format!("{}: changed", original.path.display()));
    let done = apply(context, args, asks)?;
    if context.json {
        context.print_value(&json!({ "file": original.path, "changed": true, "update": done.1 }))?;
    }
    Ok(done.0)
}

fn unchanged(context: &Context, path: &Path) -> Result<Exit, CliError> {
    match context.json {
        true => context.print_value(&json!({ "file": path, "changed": false, "update": null }))?,
        false => context.say(&format!("{}: nothing was changed", path.display())),
    }
    Ok(Exit::Ok)
}

/// A copy, in a directory of its own beside the file, which svd does not look at and nobody else can read: editors leave things
/// beside what they edit.
struct Copy {
    dir: TempDir,
    file: PathBuf,
}

impl Copy {
    fn of(original: &Original, name: &str) -> Result<Copy, CliError> {
        let beside = original.path.parent().unwrap_or(Path::new("/"));
        let make = || {
            // Mode 0700.
            let dir = tempfile::Builder::new().prefix(".edit-").tempdir_in(beside)?;
            let file = dir.path().join(format!("{name}.toml"));
            fs::write(&file, &original.text)?;
            Ok(Copy { dir, file })
        };
        make().map_err(|e: io::Error| {
            let why = format!("no copy to edit can be made in {}: {}.", beside.display(), io_text(&e));
            failed(why, format!("It takes root: sudo svctl edit {name}"))
        })
    }

    /// What was written stays: where.
    fn keep(self) -> String {
        let _ = self.dir.keep();
        self.file.display().to_string()
    }
}

/// `$VISUAL`, `$EDITOR`, or one of the usual ones; a shell reads it, as it may have arguments.
fn open_editor(file: &Path) -> Result<(), CliError> {
    let named = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var_os(name).filter(|value| !value.is_empty()));
    let editor = named.or_else(|| EDITORS.iter().find(|name| is_in_path(name)).map(OsString::from));
    let Some(mut editor) = editor else {
        return Err(failed("no editor was found.", "Name one: EDITOR=vi svctl edit …"));
    };
    let shown = editor.to_string_lossy().into_owned();
    editor.push(" \"$@\"");
    let status = foreground::run(Command::new("sh").arg("-c").arg(editor).arg("sh").arg(file));
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let why = format!("the editor ({shown}) ended with an error ({status}); nothing was changed.");
            Err(failed(why, "Another one: EDITOR=vi svctl edit …"))
        }
        Err(e) => {
            Err(failed(format!("no shell can be started for the editor: {}.", io_text(&e)), "Nothing was changed."))
        }
    }
}

fn is_in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name).is_file())
}

fn read_limited(file: &Path) -> Result<Vec<u8>, CliError> {
    let mut text = Vec::new();
    let read = File::open(file).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut text));
    match read {
        Ok(length) if length as u64 > MAX_FILE => {
            Err(failed("it has more than 1 MiB now, and is no configuration.", "Nothing was changed."))
        }
        Ok(_) => Ok(text),
        Err(e) => {
            Err(failed(format!("what the editor wrote cannot be read: {}.", io_text(&e)), "Nothing was changed."))
        }
    }
}

/// What is wrong with the file, or between it and others. What is wrong in others alone is only told.
fn check(config: &Path, name: &str, text: &[u8], context: &Context) -> Result<(), Diagnostics> {
    let file = files::of_service(config, name).display().to_string();
    let text = std::str::from_utf8(text)
        .map_err(|_| Diagnostics(vec![config::Diagnostic::of_file(&file, "this is not UTF-8: save it as UTF-8")]))?;
    let loaded = config::load_with(config, name, text);
    match loaded {
        Ok(config) => {
            let own = config.warnings.iter().filter(|w| file.ends_with(&*w.file));
            own.for_each(|warning| context.say(&format!("warning: {warning}")));
            Ok(())
        }
        Err(errors) => {
            let (own, others): (Vec<_>, Vec<_>) = errors.0.into_iter().partition(|e| file.ends_with(&*e.file));
            if own.is_empty() {
                others.iter().for_each(|error| context.say(&format!("of another file: {}", error.line())));
                return Ok(());
            }
            Err(Diagnostics(own))
        }
    }
}

/// Nobody can be asked, or does not want to go on.
fn give_up(copy: Copy, path: &Path, errors: &Diagnostics, asked: bool) -> CliError {
    let count = config::counted(errors.0.len(), "error");
    let why = format!("what was written has {count}; {} is as it was.", path.display());
    let error = ApiError::new(ErrorCode::BadConfiguration, why);
    let error = match asked {
        // They have been shown, and given up.
        true => error,
        false => {
            let details = errors.0.iter().map(|e| e.to_string().into()).collect();
            error.details(details).hint(format!("It is kept in {}, which svd does not read.", copy.keep()))
        }
    };
    CliError::Said { exit: Exit::Failed, error }
}

/// `y` by default; the end of the input is no.
fn ask(context: &Context, question: &str) -> bool {
    let _ = write!(io::stderr(), "{question}");
    let mut answer = String::new();
    match io::stdin().lock().read_line(&mut answer) {
        Ok(0) | Err(_) => {
            context.say("");
            false
        }
        Ok(_) => matches!(answer.trim().to_ascii_lowercase().as_str(), "" | "y" | "yes"),
    }
}

/// Says what the change needs, and does it where it is wanted. Gives what `svctl update` answered.
fn apply(context: &Context, args: &EditArgs, asks: bool) -> Result<(Exit, Value), CliError> {
    let nothing = Ok((Exit::Ok, Value::Null));
    let planned = context.act("/v1/update", Some(&json!({ "dry_run": true })));
    let planned: UpdateResult = match planned {
        Ok(answer) => understand(&answer)?,
        // The file is changed, which was asked for.
        Err(CliError::Said { error, .. }) => {
            context.say(&format!("not applied: {}", render::error("", &error).trim_end()));
            return nothing;
        }
        Err(other) => return Err(other),
    };
    let own = planned.changes.iter().find(|change| *change.service == *args.name);
    match own {
        Some(change) => {
            let keys = change.keys.join(", ");
            context.say(&format!("`svctl update` ({keys}): {}", super::show::action(change.action)));
        }
        None if planned.changed => {}
        None => {
            context.say("It means the same as before: there is nothing to apply.");
            return nothing;
        }
    }
    let others: Vec<&str> =
        planned.changes.iter().map(|change| &*change.service).filter(|name| *name != args.name).collect();
    if !others.is_empty() {
        context.say(&format!("It would also apply what has changed in: {}", others.join(", ")));
    }
    let wanted = match () {
        () if args.no_update => false,
        () if asks => ask(context, "Apply it now? [Y/n] "),
        // Whoever changes one file has not asked for others'.
        () => args.yes || others.is_empty(),
    };
    if !wanted {
        context.say("Not applied; `svctl update` does it.");
        return nothing;
    }
    let answer = context.act("/v1/update", Some(&json!({})))?;
    let done: UpdateResult = understand(&answer)?;
    if !context.json {
        context.print(render::update(&done))?;
        act::show(context, &done.services)?;
    }
    let exit = if done.services.iter().any(|s| !s.ok) { Exit::Failed } else { Exit::Ok };
    Ok((exit, serde_json::from_str(answer.get()).unwrap_or_default()))
}
