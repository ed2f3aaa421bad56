//! From a directory, or from texts, to a configuration.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use toml::de::DeTable;

use super::diagnostic::{Diagnostic, Diagnostics};
use super::relations::Relations;
use super::service::Decoded;
use super::source::{File, Problem, Span};
use super::spec::{Config, Daemon, Listen, Service};
use super::{check_name, daemon, service, suggest};

/// No file of a configuration is that large; something else was put there.
const MAX_FILE: u64 = 1 << 20;

/// A text and its name for messages; the service it describes, or the daemon.
struct Text<'t> {
    path: String,
    service: Option<&'t str>,
    /// `None`: it could not be read, which has been reported.
    text: Option<&'t str>,
}

/// Reads `DIR/svd.toml`, if there is one, and `DIR/conf.d/*.toml` (if there is a `conf.d`). Names that begin with a dot
/// or do not end in `.toml` are not looked at, so that an editor's backups do not become services.
///
/// # Errors
/// Everything that is wrong in all files, and every file that cannot be read.
pub fn load(dir: &Path) -> Result<Config, Diagnostics> {
    load_as_if(dir, None)
}

/// As [`load`], as if the file of this service said this.
///
/// # Errors
/// As of [`load`].
pub fn load_with(dir: &Path, service: &str, text: &str) -> Result<Config, Diagnostics> {
    load_as_if(dir, Some((service, text)))
}

fn load_as_if(dir: &Path, instead: Option<(&str, &str)>) -> Result<Config, Diagnostics> {
    let mut errors = Vec::new();
    let mut reader = Reader::default();
    let shown = |name: &str| {
        let path = dir.join(name);
        path.strip_prefix(".").unwrap_or(&path).display().to_string()
    };
    if let Err(error) = fs::metadata(dir) {
        let mut diagnostic = unreadable(dir, &dir.display().to_string(), &error);
        if error.kind() == io::ErrorKind::NotFound {
            diagnostic.help = Some("name the directory that holds svd.toml and conf.d".to_owned());
        }
        return Err(Diagnostics(vec![diagnostic]));
    }
    let daemon = "svd.toml";
    if dir.join(daemon).symlink_metadata().is_ok() {
        reader.read(&dir.join(daemon), shown(daemon), None, &mut errors);
    }
    let mut names = match service_files(&dir.join("conf.d")) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            errors.push(unreadable(&dir.join("conf.d"), &shown("conf.d"), &error));
            Vec::new()
        }
    };
    if let Some((service, _)) = instead
        && let Err(at) = names.binary_search_by(|name| stem(name).cmp(service))
    {
        names.insert(at, format!("{service}.toml"));
    }
    for name in names {
        let path = shown(&format!("conf.d/{name}"));
        match instead.filter(|(service, _)| *service == stem(&name)) {
            Some((service, text)) => reader.take(text, path, service),
            None => reader.read(&dir.join("conf.d").join(&name), path, Some(stem(&name).to_owned()), &mut errors),
        }
    }
    assemble(&reader.texts(), errors)
}

/// Says of a file or directory why it must not be used, and what to do about that.
pub type Judge = fn(&Path) -> Result<(), (String, Option<String>)>;

/// What [`load`] would read, and should not by this judgement: errors for a svd that is about to do so. Where a directory
/// is judged so, what is in it is not asked about.
pub fn distrusted(dir: &Path, judge: Judge) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let mut is_fine = |path: &Path| match judge(path) {
        Ok(()) => true,
        Err((why, help)) => {
            let path = path.strip_prefix(".").unwrap_or(path).display().to_string();
            found.push(Diagnostic { help, ..Diagnostic::of_file(&path, format!("cannot be trusted: {why}")) });
            false
        }
    };
    if is_fine(dir) {
        is_fine(&dir.join("svd.toml"));
        let services = dir.join("conf.d");
        if is_fine(&services) {
            // What cannot be listed is an error of reading.
            for name in service_files(&services).unwrap_or_default() {
                is_fine(&services.join(name));
            }
        }
    }
    found
}

/// The same from texts: that of `svd.toml`, and names of services with the texts of their files.
///
/// # Errors
/// Everything that is wrong in all of them.
pub fn load_texts(daemon: Option<&str>, services: &[(&str, &str)]) -> Result<Config, Diagnostics> {
    let daemon = daemon.map(|text| Text { path: "svd.toml".to_owned(), service: None, text: Some(text) });
    let services = services.iter().map(|(name, text)| Text {
        path: format!("conf.d/{name}.toml"),
        service: Some(*name),
        text: Some(text),
    });
    let mut texts: Vec<_> = daemon.into_iter().chain(services).collect();
    texts.sort_by_key(|text| text.service);
    assemble(&texts, Vec::new())
}

/// Sorted names of the files that describe services.
fn service_files(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        // A name that is not UTF-8 is shown with replacement characters, and refused as a service's name.
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".toml") && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable_by(|a, b| stem(a).cmp(stem(b)));
    Ok(names)
}

fn stem(file_name: &str) -> &str {
    file_name.strip_suffix(".toml").unwrap_or(file_name)
}

fn unreadable(file: &Path, path: &str, error: &io::Error) -> Diagnostic {
    let mut diagnostic = Diagnostic::of_file(path, format!("cannot be read: {error}"));
    diagnostic.help = match error.kind() {
        io::ErrorKind::PermissionDenied => Some("svd's user, and whoever checks, must be able to read it".to_owned()),
        // Its name was listed: what it leads to is not there, or it went since.
        io::ErrorKind::NotFound => Some(match file.is_symlink() {
            true => "it is a link that leads nowhere: mend or remove it".to_owned(),
            false => "it was removed, or renamed, while the configuration was read: try again".to_owned(),
        }),
        _ => None,
    };
    diagnostic
}

/// The text of one file, which messages call `shown`.
pub(crate) fn read_text(file: &Path, shown: &str) -> Result<String, Diagnostic> {
    let mut reader = Reader::default();
    reader.append(file, shown)?;
    Ok(reader.buffer)
}

/// All texts behind each other in one buffer: a thousand small ones would stay behind as holes between what is kept.
#[derive(Default)]
struct Reader {
    buffer: String,
    bytes: Vec<u8>,
    files: Vec<(String, Option<String>, Option<Range<usize>>)>,
}

impl Reader {
    /// A file that cannot be read is reported, and its name still counts: those who require it are not to blame.
    fn read(&mut self, file: &Path, path: String, service: Option<String>, errors: &mut Vec<Diagnostic>) {
        let start = self.buffer.len();
        let range = match self.append(file, &path) {
            Ok(()) => Some(start..self.buffer.len()),
            Err(diagnostic) => {
                errors.push(diagnostic);
                None
            }
        };
        self.files.push((path, service, range));
    }

    /// A text in the place of a file's.
    fn take(&mut self, text: &str, path: String, service: &str) {
        let start = self.buffer.len();
        self.buffer.push_str(text);
        self.files.push((path, Some(service.to_owned()), Some(start..self.buffer.len())));
    }

    fn append(&mut self, file: &Path, path: &str) -> Result<(), Diagnostic> {
        read_limited(file, &mut self.bytes).map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => Diagnostic::of_file(path, "has more than 1 MiB, and is no configuration"),
            _ => unreadable(file, path, &error),
        })?;
        let text = std::str::from_utf8(&self.bytes).map_err(|error| {
            let at = error.valid_up_to();
            let span = Span::from(at..at + char::REPLACEMENT_CHARACTER.len_utf8());
            let problem = Problem::new(span, "this is not UTF-8").help("save the file as UTF-8");
            File::new(path.to_owned(), &String::from_utf8_lossy(&self.bytes), &suggest::SERVICE).diagnostic(problem)
        })?;
        self.buffer.push_str(text);
        Ok(())
    }

    fn texts(&self) -> Vec<Text<'_>> {
        let mut texts = Vec::with_capacity(self.files.len());
        for (path, service, range) in &self.files {
            let text = range.clone().map(|range| &self.buffer[range]);
            texts.push(Text { path: path.clone(), service: service.as_deref(), text });
        }
        texts
    }
}

/// The file's bytes, in place of those of the one before.
fn read_limited(path: &Path, bytes: &mut Vec<u8>) -> io::Result<()> {
    use std::io::Read;
    bytes.clear();
    // Before it is opened: opening a pipe waits for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(bytes)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(io::ErrorKind::FileTooLarge.into()),
        false => Ok(()),
    }
}

/// Decodes every text, then checks them against each other. `texts` are sorted by name, the daemon's first.
fn assemble(texts: &[Text<'_>], mut errors: Vec<Diagnostic>) -> Result<Config, Diagnostics> {
    let mut config = Config::default();
    let mut http = None;
    let mut services = Vec::with_capacity(texts.len());
    let mut sources = Vec::with_capacity(texts.len());
    for text in texts {
        let Some(source) = text.text else { continue };
        let family = if text.service.is_some() { &suggest::SERVICE } else { &suggest::DAEMON };
        let file = File::new(text.path.clone(), source, family);
        let (table, syntax) = DeTable::parse_recoverable(source);
        match text.service {
            None => {
                let place;
                (config.daemon, place) = decode_daemon(&file, table.get_ref());
                http = place;
            }
            Some(name) => {
                bad_name(&file, name, &mut errors);
                services.push(service::decode(&file, table.get_ref(), name));
                sources.push((text.path.as_str(), source));
            }
        }
        file.add_syntax_errors(&syntax);
        file.take_hints(&mut config.warnings);
        file.into_diagnostics(&mut errors);
    }
    let names: Vec<&str> = texts.iter().filter_map(|text| text.service).collect();
    errors.extend(relations(&services, &names, &sources, http));
    if !errors.is_empty() {
        let order: HashMap<&str, usize> = texts.iter().enumerate().map(|(i, text)| (text.path.as_str(), i)).collect();
        errors.sort_by_cached_key(|e| (order.get(&*e.file).copied(), e.position.as_ref().map(|p| (p.line, p.column))));
        return Err(Diagnostics(errors));
    }
    // Built from a sorted list, the map's nodes are full.
    let mut last: Option<Arc<Service>> = None;
    let named = services.into_iter().map(|Decoded { mut service, .. }| {
        if let Some(last) = &last {
            service.share(last);
        }
        let service = Arc::clone(last.insert(Arc::new(service)));
        ((&*service.name).into(), service)
    });
    config.services = named.collect();
    Ok(config)
}

fn decode_daemon<'a>(file: &'a File<'a>, table: &'a DeTable<'a>) -> (Daemon, Option<(Listen, String)>) {
    let (decoded, span) = daemon::decode(file, table);
    let listen = decoded.http.zip(span);
    let place = listen.map(|(address, span)| (Listen::Tcp(address), format!("[http] at {}", file.locate(span))));
    (decoded, place)
}

fn bad_name(file: &File<'_>, name: &str, errors: &mut Vec<Diagnostic>) {
    if let Err(why) = check_name(name) {
        let mut diagnostic = Diagnostic::of_file(&file.path, format!("{name:?} cannot be a service's name: {why}"));
        diagnostic.help = Some("rename the file: a service is named after it".to_owned());
        errors.push(diagnostic);
    }
}

/// What is wrong between services, with places in their texts.
fn relations(
    services: &[Decoded],
    names: &[&str],
    sources: &[(&str, &str)],
    http: Option<(Listen, String)>,
) -> Vec<Diagnostic> {
    let file = |index: usize| File::new(sources[index].0.to_owned(), sources[index].1, &suggest::SERVICE);
    let found = RefCell::new(Vec::new());
    Relations {
        services,
        names,
        http,
        locate: &|index, span| file(index).locate(span),
        report: &|index, problem| found.borrow_mut().push(file(index).diagnostic(problem)),
    }
    .check();
    found.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_went_is_not_called_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link.toml");
        std::os::unix::fs::symlink("/nowhere/x", &link).unwrap();
        let help = |file: &Path| unreadable(file, "a.toml", &io::ErrorKind::NotFound.into()).help.unwrap();
        assert!(help(&link).contains("a link that leads nowhere"), "{}", help(&link));
        let went = help(&dir.path().join("went.toml"));
        assert!(!went.contains("link") && went.contains("while the configuration was read"), "{went}");
    }
}
