//! What is wrong with the configuration: for people (with the line and a marking) and as JSON.

use std::fmt;

use serde::{Serialize, Serializer, ser::SerializeStruct};

/// One error of the configuration, or a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file as a user finds it: `DIR/conf.d/airship.toml`.
    pub file: Box<str>,
    /// `None`: the file as a whole (it cannot be read, its name is no service name).
    pub position: Option<Position>,
    /// What is wrong: no capital, no full stop.
    pub message: String,
    /// What to do, where that is known.
    pub help: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// From 1.
    pub line: u32,
    /// In characters, from 1.
    pub column: u32,
    /// In characters, at least 1.
    pub length: u32,
    /// The offending text (its first line), as written.
    pub text: Box<str>,
    /// The line, cut and without control characters, and how many of its characters stand before the marking.
    pub excerpt: (Box<str>, u32),
}

impl Diagnostic {
    /// An error of the file as a whole.
    pub fn of_file(file: &str, message: impl Into<String>) -> Self {
        Diagnostic { file: file.into(), position: None, message: message.into(), help: None }
    }

    /// In one line: the place, what there is, and what to do.
    pub fn line(&self) -> String {
        let place = self.position.as_ref().map(|p| format!(":{}:{}", p.line, p.column)).unwrap_or_default();
        let help = self.help.as_ref().map(|help| format!("; {}", Printable(help))).unwrap_or_default();
        format!("{}{place}: {}{help}", self.file, Printable(&self.message))
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A file's name may have any character in it, line feeds included.
        write!(f, "{}:", Printable(&self.file.replace('\n', "\u{fffd}")))?;
        if let Some(p) = &self.position {
            write!(f, "{}:{}:", p.line, p.column)?;
        }
        writeln!(f, " {}", Printable(&self.message))?;
        if let Some(p) = &self.position {
            let (line, before) = (&p.excerpt.0, p.excerpt.1 as usize);
            let room = line.chars().count().saturating_sub(before).max(1);
            let mark = "^".repeat((p.length as usize).min(room));
            let number = p.line.to_string();
            let width = number.len();
            writeln!(f, " {number} | {line}")?;
            writeln!(f, " {:width$} | {:before$}{mark}", "", "")?;
        }
        if let Some(help) = &self.help {
            writeln!(f, "help: {}", Printable(help))?;
        }
        Ok(())
    }
}

/// Text that cannot drive a terminal: messages repeat what a file says.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.0.chars().try_for_each(|c| {
            let control = c.is_control() && c != '\n';
            f.write_char(if control { char::REPLACEMENT_CHARACTER } else { c })
        })
    }
}

/// `{"file", "line", "column", "length", "text", "message", "help"}`; what is not known is null.
impl Serialize for Diagnostic {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let position = self.position.as_ref();
        let mut out = serializer.serialize_struct("Diagnostic", 7)?;
        out.serialize_field("file", &self.file)?;
        out.serialize_field("line", &position.map(|p| p.line))?;
        out.serialize_field("column", &position.map(|p| p.column))?;
        out.serialize_field("length", &position.map(|p| p.length))?;
        out.serialize_field("text", &position.map(|p| &p.text))?;
        out.serialize_field("message", &self.message)?;
        out.serialize_field("help", &self.help)?;
        out.end()
    }
}

/// Every error of a configuration, in the order of files and lines. Its text is ready to be printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, diagnostic) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// `1 error`, `3 errors`.
pub fn counted(n: usize, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Diagnostic {
        Diagnostic {
            file: "conf.d/a.toml".into(),
            position: Some(Position {
                line: 12,
                column: 3,
                length: 6,
                text: "wokers".into(),
                excerpt: ("  wokers = 4".into(), 2),
            }),
            message: "unknown key \"wokers\"".into(),
            help: Some("did you mean \"workers\"?".into()),
        }
    }

    #[test]
    fn people_see_the_line_and_a_marking() {
        assert_eq!(
            sample().to_string(),
            "conf.d/a.toml:12:3: unknown key \"wokers\"\n 12 |   wokers = 4\n    |   ^^^^^^\nhelp: did you mean \"workers\"?\n"
        );
    }

    #[test]
    fn programs_see_an_object() {
        assert_eq!(
            serde_json::to_string(&sample()).unwrap(),
            r#"{"file":"conf.d/a.toml","line":12,"column":3,"length":6,"text":"wokers","message":"unknown key \"wokers\"","help":"did you mean \"workers\"?"}"#
        );
        let whole = Diagnostic::of_file("svd.toml", "cannot be read");
        let value = serde_json::to_value(&whole).unwrap();
        assert!(value["line"].is_null() && value["help"].is_null());
    }
}
