//! Text with placeholders.
//!
//! The rule, in full: `{NAME}` is a placeholder where `NAME` is, letter by letter, one of `root`, `release`, `venv`,
//! `service`, `host`, `worker`, `generation`, `port`, `fd`, `fd.S` (`S` of ASCII letters, digits, `_` and `-`), `env.X` or `secret.X` (`X` an ASCII letter
//! or `_`, then those and digits). `{{NAME}` of such a name stands for the literal text `{NAME}`. Everything else is
//! itself: other braces, `{other}`, JSON, `%({x}i)s`, and closing braces always.

use std::borrow::Cow;

use super::spec::Template;

/// One name between braces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder<'a> {
    /// The service's root.
    Root,
    /// The real directory of the generation's release.
    Release,
    /// The real directory of its virtual environment.
    Venv,
    /// The service's name.
    Service,
    /// The host's name.
    Host,
    /// The worker's number within its generation.
    Worker,
    /// The generation's number.
    Generation,
    /// A private port on 127.0.0.1, chosen for each generation.
    Port,
    /// The descriptor of the service's first socket.
    Fd,
    /// `{fd.ready}`: the descriptor on which the service says that it is ready.
    FdReady,
    /// `{fd.NAME}`: the descriptor of one socket.
    FdNamed(&'a str),
    /// `{env.X}`: a variable of svd's own environment.
    Env(&'a str),
    /// `{secret.X}`: the path of a secret's file.
    Secret(&'a str),
}

impl<'a> Placeholder<'a> {
    fn parse(name: &'a str) -> Option<Self> {
        let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
        Some(match name {
            "root" => Self::Root,
            "release" => Self::Release,
            "venv" => Self::Venv,
            "service" => Self::Service,
            "host" => Self::Host,
            "worker" => Self::Worker,
            "generation" => Self::Generation,
            "port" => Self::Port,
            "fd" => Self::Fd,
            "fd.ready" => Self::FdReady,
            _ => {
                if let Some(socket) = name.strip_prefix("fd.") {
                    let fits = !socket.is_empty() && socket.bytes().all(|c| word(c) || c == b'-');
                    return fits.then_some(Self::FdNamed(socket));
                }
                let (prefix, variable) = name.split_once('.')?;
                let fits = variable.bytes().all(word) && variable.starts_with(|c: char| !c.is_ascii_digit());
                return match prefix {
                    "env" if fits => Some(Self::Env(variable)),
                    "secret" if fits => Some(Self::Secret(variable)),
                    _ => None,
                };
            }
        })
    }

    /// Can it be known without a release? `{root}`, `{release}` and `{venv}` cannot where the service has no root.
    pub fn needs_root(self) -> bool {
        matches!(self, Self::Root | Self::Release | Self::Venv)
    }
}

impl std::fmt::Display for Placeholder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => f.write_str("{root}"),
            Self::Release => f.write_str("{release}"),
            Self::Venv => f.write_str("{venv}"),
            Self::Service => f.write_str("{service}"),
            Self::Host => f.write_str("{host}"),
            Self::Worker => f.write_str("{worker}"),
            Self::Generation => f.write_str("{generation}"),
            Self::Port => f.write_str("{port}"),
            Self::Fd => f.write_str("{fd}"),
            Self::FdReady => f.write_str("{fd.ready}"),
            Self::FdNamed(name) => write!(f, "{{fd.{name}}}"),
            Self::Env(name) => write!(f, "{{env.{name}}}"),
            Self::Secret(name) => write!(f, "{{secret.{name}}}"),
        }
    }
}

const NAMES: &[&str] = &["root", "release", "venv", "service", "host", "worker", "generation", "port"];
/// Of those with a dot.
const PREFIXES: &[&str] = &["fd", "env", "secret"];

/// A stretch of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    Placeholder(Placeholder<'a>),
}

/// Cuts text into pieces. An escape ends one piece of text before its first brace and begins the next at its second.
struct Pieces<'a> {
    rest: &'a str,
    /// The first brace of `rest` is literal.
    escaped: bool,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Piece<'a>> {
        let mut from = usize::from(std::mem::take(&mut self.escaped));
        while let Some(found) = self.rest.get(from..)?.find('{') {
            let brace = from + found;
            let (before, tail) = self.rest.split_at(brace);
            let escape = tail.starts_with("{{");
            let (name, length) = match placeholder(&tail[usize::from(escape)..]) {
                Some(found) => found,
                None => {
                    from = brace + 1;
                    continue;
                }
            };
            if escape {
                (self.rest, self.escaped) = (&tail[1..], true);
                if before.is_empty() {
                    return self.next();
                }
                return Some(Piece::Text(before));
            }
            if !before.is_empty() {
                self.rest = tail;
                return Some(Piece::Text(before));
            }
            self.rest = &tail[length..];
            return Some(Piece::Placeholder(name));
        }
        let rest = std::mem::take(&mut self.rest);
        (!rest.is_empty()).then_some(Piece::Text(rest))
    }
}

/// The placeholder that `text` begins with, and its length with the braces.
fn placeholder(text: &str) -> Option<(Placeholder<'_>, usize)> {
    let inner = text.strip_prefix('{')?;
    let end = inner.bytes().position(|c| !(c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.')))?;
    let name = inner[end..].starts_with('}').then(|| &inner[..end])?;
    Some((Placeholder::parse(name)?, end + 2))
}

impl Template {
    pub fn new(text: impl Into<Box<str>>) -> Self {
        Template(text.into())
    }

    fn pieces(&self) -> Pieces<'_> {
        Pieces { rest: &self.0, escaped: false }
    }

    /// Those that stand in the text, in order, once for each time.
    pub fn placeholders(&self) -> impl Iterator<Item = Placeholder<'_>> {
        self.pieces().filter_map(|piece| match piece {
            Piece::Placeholder(placeholder) => Some(placeholder),
            Piece::Text(_) => None,
        })
    }

    /// Names in single braces that are none of a placeholder's, but nearly: each with the one that may be meant.
    pub(super) fn nearly(&self) -> Vec<(&str, &'static str)> {
        let mut found = Vec::new();
        for (at, _) in self.0.match_indices('{') {
            let (before, inner) = (&self.0[..at], &self.0[at + 1..]);
            let name = inner.split('}').next().filter(|name| name.len() < inner.len()).unwrap_or_default();
            // An escape, and gunicorn's `%({x-forwarded-for}i)s`, mean themselves.
            if Placeholder::parse(name).is_some() || before.ends_with(['{', '(']) {
                continue;
            }
            let (word, rest) = name.split_once('.').map_or((name, false), |(word, _)| (word, true));
            let letters = word.bytes().all(|c| c.is_ascii_alphabetic() || matches!(c, b'_' | b'-'));
            // Shorter ones resemble everything.
            if !letters || word.len() < if rest { 2 } else { 4 } {
                continue;
            }
            let near = super::suggest::closest(word, if rest { PREFIXES } else { NAMES }.iter().copied());
            found.extend(near.map(|near| (name, near)));
        }
        found
    }

    /// The text with each placeholder replaced by what `value` says, without looking into the values again.
    ///
    /// # Errors
    /// The first error of `value`.
    pub fn expand<'v, E>(&self, value: &dyn Fn(Placeholder<'_>) -> Result<Cow<'v, str>, E>) -> Result<Cow<'_, str>, E> {
        // The usual text has no placeholder, and the usual rest is only that one.
        if !self.0.contains('{') {
            return Ok(Cow::Borrowed(&self.0));
        }
        let mut out = String::with_capacity(self.0.len());
        for piece in self.pieces() {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Placeholder(placeholder) => out.push_str(&value(placeholder)?),
            }
        }
        Ok(Cow::Owned(out))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_nearly_is_a_placeholder() {
        let nearly = |text: &str| {
            let template = Template::new(text);
            template.nearly().into_iter().map(|(name, near)| format!("{name} {near}")).collect::<Vec<_>>()
        };
        assert_eq!(
            nearly("{relase}/bin/x {rleease} {Root} {hots}"),
            ["relase release", "rleease release", "Root root", "hots host"]
        );
        assert_eq!(nearly("{evn.HOME} {dfs.http}"), ["evn.HOME env"]);
        for text in [
            "{release} {env.X} {fd.http}",
            "{{relase}}",
            "%({x-forwarded-for}i)s %({relase}i)s",
            r#"{"root": {"hosts": 1}} {'relase'}"#,
            "{} {x} {id} {name} {relase {",
            "{something} {zebra}",
        ] {
            assert_eq!(nearly(text), [""; 0], "{text}");
        }
    }

    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// Each placeholder as `<name>`, so that what was expanded is seen.
    fn expand(text: &str) -> String {
        let template = Template::new(text);
        let named = |p: Placeholder<'_>| Ok::<_, Infallible>(p.to_string().replace('{', "<").replace('}', ">").into());
        match template.expand(&named) {
            Ok(text) => text.into_owned(),
            Err(never) => match never {},
        }
    }

    #[test]
    fn every_name_is_expanded() {
        assert_eq!(
            expand(
                "{root} {release} {venv} {service} {host} {worker} {generation} {port} {fd} {fd.ready} {fd.a-b} {env.A_1}"
            ),
            "<root> <release> <venv> <service> <host> <worker> <generation> <port> <fd> <fd.ready> <fd.a-b> <env.A_1>"
        );
        assert_eq!(expand("{release}/app.jar:{release}/lib"), "<release>/app.jar:<release>/lib");
    }

    #[test]
    fn nothing_else_is() {
        for text in [
            "%({x}i)s",
            r#"{"level": "info", "nested": {"a": {}}}"#,
            "{}",
            "{ release }",
            "{Release}",
            "{relea",
            "{env.}",
            "{env.1}",
            "{fd.}",
            "{fd.a.b}",
            "{{other}}",
            "{{",
            "}}{{}}",
            "{é}",
        ] {
            assert_eq!(expand(text), text);
        }
    }

    #[test]
    fn two_braces_before_a_name_are_one() {
        assert_eq!(expand("{{release}"), "{release}");
        assert_eq!(expand("a{{release}b{release}"), "a{release}b<release>");
        assert_eq!(expand("{{release}}"), "{release}}");
        assert_eq!(expand("{{{release}"), "{{release}");
        assert_eq!(expand(r#"{"r":{release}}"#), r#"{"r":<release>}"#);
    }

    #[test]
    fn values_are_not_expanded_again() {
        let template = Template::new("{env.A}{service}");
        let value = |_: Placeholder<'_>| Ok::<_, Infallible>(Cow::Borrowed("{root}"));
        assert_eq!(template.expand(&value), Ok("{root}{root}".into()));
    }

    #[test]
    fn the_first_error_ends_it() {
        let template = Template::new("{env.A} {env.B}");
        let value = |p: Placeholder<'_>| Err(p.to_string());
        assert_eq!(template.expand(&value), Err("{env.A}".to_owned()));
    }

    proptest! {
        #[test]
        fn text_without_placeholders_or_double_braces_is_unchanged(text in r#"[{}a-z."%()\[\] é]{0,40}"#) {
            let template = Template::new(text.as_str());
            prop_assume!(template.placeholders().next().is_none() && !text.contains("{{"));
            prop_assert_eq!(expand(&text), text);
        }

        #[test]
        fn escaped_text_comes_back(text in r"([{}]|release|port|fd|\.a|x){0,12}") {
            // Doubling the brace before each known name undoes every placeholder.
            let mut escaped = String::new();
            for (i, c) in text.char_indices() {
                if c == '{' && placeholder(&text[i..]).is_some() {
                    escaped.push('{');
                }
                escaped.push(c);
            }
            prop_assert_eq!(expand(&escaped), text);
        }
    }
}
