//! `[java] home`: what an update names must be there.

use super::paths::Paths;
use crate::config::spec::{Config, Kind, Service, Template};
use crate::config::{self, Diagnostic, shown};
use crate::kinds::{Context, Places};
use crate::sys::spawn::resolve_program;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// By service: in which place of its file a JVM is named that is not there, and what to do.
pub type Missing = BTreeMap<Box<str>, String>;

/// Looks at the disk, which may hang: not for the event loop.
pub fn missing(paths: &Paths, config: &Config) -> Missing {
    let mut missing = Missing::new();
    for (name, service) in &config.services {
        let Kind::Jvm { java, .. } = &service.kind else { continue };
        // One that comes with a release is looked for when that is started.
        let Some(home) = java.home.as_ref().and_then(|home| known(service, home)) else { continue };
        let program = PathBuf::from(&home).join("bin/java");
        let Err(why) = resolve_program(program.as_os_str(), "".as_ref(), Path::new("/")) else { continue };
        let file = paths.service_file(name);
        let path = file.strip_prefix(".").unwrap_or(&file).display().to_string();
        let text = config::read_text(&file, &path).unwrap_or_default();
        let diagnostic = Diagnostic {
            position: shown::position(&text, "java.home"),
            help: Some("name the directory of a JVM, such as one of /usr/lib/jvm".to_owned()),
            ..Diagnostic::of_file(&path, format!("{home:?} is no JVM's home: {why}"))
        };
        missing.insert(name.clone(), diagnostic.line());
    }
    missing
}

/// Where nothing but the file is needed to know it.
fn known(service: &Service, home: &Template) -> Option<String> {
    let mut places = Places::default();
    places.root.clone_from(&service.root);
    let context = Context {
        spec: service,
        places: &places,
        host: "",
        generation: 0,
        worker: 0,
        port: None,
        workers: None,
        launcher: Path::new(""),
        secrets: None,
    };
    let here = |p: config::Placeholder<'_>| matches!(p, config::Placeholder::Root | config::Placeholder::Service);
    home.placeholders().all(here).then(|| context.expand(home).ok()).flatten()
}
