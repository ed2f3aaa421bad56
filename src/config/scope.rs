//! What the rest of a service file may refer to: the kind, the root, the sockets.

use std::borrow::Cow;
use std::path::PathBuf;

use toml::de::DeValue;

use super::kind::KindName;
use super::section::{Item, Section};
use super::source::Problem;
use super::spec::Template;
use super::suggest;
use super::template::Placeholder;

pub(super) struct Scope<'a> {
    pub service: &'a str,
    /// `None`: the file does not say it, or wrongly.
    pub kind: Option<KindName>,
    /// As the file has it; an unusable one counts, so that it is complained about once.
    pub has_root: bool,
    pub root: Option<PathBuf>,
    pub sockets: Vec<&'a str>,
    /// Of `[secrets]`; true: one that is delivered as a file.
    pub secrets: Vec<(&'a str, bool)>,
    /// `[ready] descriptor = true`.
    pub descriptor: bool,
}

impl<'a> Scope<'a> {
    /// Looks ahead: everything else in the file may refer to these.
    pub fn read(top: &Section<'a>, service: &'a str) -> Self {
        let mut scope = Scope {
            service,
            kind: super::kind::name(top),
            has_root: top.has("root"),
            root: None,
            sockets: super::sockets::names(top),
            secrets: super::secrets::names(top),
            descriptor: super::ready::descriptor(top),
        };
        scope.root = top.get("root", |item| scope.path(item));
        scope
    }

    /// Text in which placeholders work, each of them known to have a value.
    pub fn template(&self, item: &Item<'_>) -> Result<Template, Problem> {
        self.template_of(item, item.text()?)
    }

    /// As [`Scope::template`], of a part of the item's text.
    pub fn template_of(&self, item: &Item<'_>, text: &str) -> Result<Template, Problem> {
        let template = Template::new(text);
        for (name, near) in template.nearly() {
            let near = if name.contains('.') { format!("{{{near}.…}}") } else { format!("{{{near}}}") };
            let message = format!("{{{name}}} is no placeholder and stays as it is");
            item.file.hint(item.problem(message).help(format!("did you mean {near}?")));
        }
        let objection = template.placeholders().find_map(|p| self.objection(p));
        match objection {
            Some((message, help)) => Err(item.problem(message).help(help)),
            None => Ok(template),
        }
    }

    /// A template that is not empty.
    pub fn word(&self, item: &Item<'_>) -> Result<Template, Problem> {
        item.name()?;
        self.template(item)
    }

    /// A template that is an absolute path once it is expanded.
    pub fn directory(&self, item: &Item<'_>) -> Result<Template, Problem> {
        let template = self.word(item)?;
        match template.0.starts_with('/') || template.placeholders().next().is_some() {
            true => Ok(template),
            false => Err(relative(item, &template.0)),
        }
    }

    /// A list of arguments, the first of which is the program.
    pub fn command(&self, section: &Section<'a>, key: &'static str) -> Option<Vec<Template>> {
        let words = section.list(key, |item| self.template(item))?;
        let item = section.item(key)?;
        let written = matches!(item.value, DeValue::Array(array) if !array.is_empty());
        match words.first() {
            Some(first) if first.value.0.is_empty() => {
                section.file.report(Problem::new(first.span, "the program's name must not be empty"));
            }
            None if !written => {
                let problem = item.problem(format!("{key:?} must name a program"));
                section.file.report(problem.help(format!("write {key} = [\"PROGRAM\", \"ARGUMENT\", …]")));
            }
            _ => {}
        }
        Some(words.into_iter().map(|at| at.value).collect())
    }

    /// A path that svd uses before there is a generation: of the placeholders `{service}` and `{root}` work, here and now.
    pub fn path(&self, item: &Item<'_>) -> Result<PathBuf, Problem> {
        self.path_of(item, item.text()?)
    }

    /// As [`Scope::path`], of a part of the item's text.
    pub fn path_of(&self, item: &Item<'_>, text: &str) -> Result<PathBuf, Problem> {
        let template = Template::new(text);
        let value = |placeholder: Placeholder<'_>| match placeholder {
            Placeholder::Service => Ok(Cow::Borrowed(self.service)),
            Placeholder::Root => match self.root.as_deref().and_then(|root| root.to_str()) {
                Some(root) => Ok(Cow::Borrowed(root)),
                None => Err("{root} is not known here".to_owned()),
            },
            other => Err(format!("{other} is not known here, before any generation starts")),
        };
        let expanded = template.expand(&value);
        let text =
            expanded.map_err(|message| item.problem(message).help("{service} works here, and {root} below a root"))?;
        match text.starts_with('/') {
            true => Ok(PathBuf::from(text.as_ref())),
            false => Err(relative(item, &text)),
        }
    }

    /// Why the placeholder cannot have a value in this service, and what to do.
    fn objection(&self, placeholder: Placeholder<'_>) -> Option<(String, String)> {
        match placeholder {
            p if p.needs_root() && !self.has_root => Some((
                format!("{p} needs \"root\", which this service does not have"),
                format!("add root = \"/srv/{}\", or write the path itself", self.service),
            )),
            Placeholder::Fd if self.sockets.is_empty() => Some((
                "{fd} needs a socket, and this service has none".to_owned(),
                "add a section [sockets.NAME] with listen = \"…\"".to_owned(),
            )),
            Placeholder::FdReady if !self.descriptor => Some((
                "{fd.ready} needs a readiness descriptor".to_owned(),
                "add descriptor = true to [ready]".to_owned(),
            )),
            Placeholder::FdNamed(name) if !self.sockets.contains(&name) => {
                let help = match suggest::closest(name, self.sockets.iter().copied()) {
                    Some(near) => format!("did you mean {{fd.{near}}}?"),
                    None if self.sockets.is_empty() => format!("add a section [sockets.{name}] with listen = \"…\""),
                    None => format!("the sockets are {}", suggest::listed(&self.sockets, "and")),
                };
                Some((format!("no socket of this service is called {name:?}"), help))
            }
            Placeholder::Secret(name) => match self.secrets.iter().find(|(known, _)| *known == name) {
                Some((_, true)) => None,
                Some((_, false)) => Some((
                    format!("{placeholder} has no path: that secret is delivered as a variable"),
                    "write as = \"file\" there; a variable's value does not go into what others can read".to_owned(),
                )),
                None => Some((
                    format!("no secret of this service is called {name:?}"),
                    match suggest::closest(name, self.secrets.iter().map(|(known, _)| *known)) {
                        Some(near) => format!("did you mean {{secret.{near}}}?"),
                        None => format!("add to [secrets]: {name} = {{ file = \"/path\", as = \"file\" }}"),
                    },
                )),
            },
            _ => None,
        }
    }
}

fn relative(item: &Item<'_>, text: &str) -> Problem {
    item.problem(format!("{text:?} is not an absolute path")).help("begin it with \"/\"")
}
