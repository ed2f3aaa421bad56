//! The decoder's cursor: hands out typed values of one table by key, reports what does not fit, and never stops.
//!
//! A derived decoder stops at its first error and knows nothing of neighbouring sections; this one is a few lines a
//! section, and every key that exists is in a [`Schema`], from which unknown keys get their suggestion.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::source::{At, File, Problem, Span};
use super::suggest;

/// The name of what no section is around.
pub(crate) const TOP: &str = "the top of the file";

/// The keys of one table.
pub(crate) struct Schema {
    /// How messages and the reference name it: `[ready]`.
    pub name: &'static str,
    pub keys: &'static [&'static str],
}

impl Schema {
    /// Where its keys stand.
    pub fn place(&self) -> String {
        match self.name {
            TOP => format!("at {TOP}, above the first [section]"),
            name => format!("in {name}"),
        }
    }
}

/// One table of a file; one that the file leaves out is empty.
pub(crate) struct Section<'a> {
    pub file: &'a File<'a>,
    pub schema: &'static Schema,
    /// The header, or the whole inline table.
    pub span: Span,
    table: Option<&'a DeTable<'a>>,
}

impl<'a> Section<'a> {
    /// Reports every key that the schema does not have.
    pub fn open(file: &'a File<'a>, table: &'a DeTable<'a>, span: Span, schema: &'static Schema) -> Self {
        for key in table.keys() {
            if !schema.keys.contains(&key.get_ref().as_ref()) {
                let span = Span::from(key.span());
                let header = span.start > 0 && file.text.as_bytes().get(span.start as usize - 1) == Some(&b'[');
                file.report(suggest::unknown_key(file.family, schema, key.get_ref(), span, header));
            }
        }
        Section { file, schema, span, table: Some(table) }
    }

    pub fn is_present(&self) -> bool {
        self.table.is_some()
    }

    pub fn item(&self, key: &'static str) -> Option<Item<'a>> {
        debug_assert!(self.schema.keys.contains(&key), "{key} is not in the schema of {}", self.schema.name);
        let value = self.table?.get(key)?;
        Some(Item::new(self.file, value))
    }

    pub fn has(&self, key: &'static str) -> bool {
        self.item(key).is_some()
    }

    /// Where the key is written.
    pub fn key_span(&self, key: &str) -> Option<Span> {
        let (key, _) = self.table?.get_key_value(key)?;
        Some(key.span().into())
    }

    /// The value of `key`; `None` where it is absent or wrong (and then reported).
    pub fn get<T>(&self, key: &'static str, parse: impl FnOnce(&Item<'a>) -> Result<T, Problem>) -> Option<T> {
        let item = self.item(key)?;
        parse(&item).map_err(|problem| self.file.report(problem)).ok()
    }

    pub fn get_at<T>(&self, key: &'static str, parse: impl FnOnce(&Item<'a>) -> Result<T, Problem>) -> Option<At<T>> {
        let span = self.item(key)?.span;
        Some(At { value: self.get(key, parse)?, span })
    }

    /// As [`Item::list`]; `None` also where the key is absent.
    pub fn list<T>(&self, key: &'static str, parse: impl Fn(&Item<'a>) -> Result<T, Problem>) -> Option<Vec<At<T>>> {
        self.item(key)?.list(key, parse)
    }

    /// As [`Section::list`], without the places; empty where there is none.
    pub fn values<T>(&self, key: &'static str, parse: impl Fn(&Item<'a>) -> Result<T, Problem>) -> Vec<T> {
        let list = self.list(key, parse).unwrap_or_default();
        list.into_iter().map(|at| at.value).collect()
    }

    /// The table below `key`, empty where the file has none.
    pub fn section(&self, key: &'static str, schema: &'static Schema) -> Section<'a> {
        let found = self.item(key).and_then(|item| Some((item.table(key, self.file)?, item.span)));
        match found {
            Some((table, span)) => Section::open(self.file, table, span, schema),
            None => Section { file: self.file, schema, span: self.span, table: None },
        }
    }

    /// A table whose keys are the user's own (`[environment]`), sorted by key.
    pub fn entries(&self, key: &'static str) -> Vec<(At<&'a str>, Item<'a>)> {
        let table = self.item(key).and_then(|item| item.table(key, self.file));
        let entries = table.into_iter().flat_map(|table| table.iter());
        entries
            .map(|(key, value)| {
                let name = At { value: key.get_ref().as_ref(), span: key.span().into() };
                (name, Item::new(self.file, value))
            })
            .collect()
    }

    /// Reports that `key` is absent.
    pub fn missing(&self, key: &str, why: &str, help: &str) {
        let problem = Problem::new(self.span, format!("{key:?} is missing: {why}"));
        self.file.report(problem.help(help).absent());
    }
}

/// `a b "c"` → `["a", "b", "c"]`, where that is simple.
fn as_list(text: &str) -> String {
    if text.contains(['"', '\'', '\\', '$', '|', '&', ';']) {
        return "a list, one string for each argument; there is no shell".to_owned();
    }
    let words: Vec<_> = text.split_whitespace().map(|word| format!("{word:?}")).collect();
    format!("[{}]", words.join(", "))
}

/// One value of a file.
#[derive(Clone, Copy)]
pub(crate) struct Item<'a> {
    pub file: &'a File<'a>,
    pub span: Span,
    pub value: &'a DeValue<'a>,
}

impl<'a> Item<'a> {
    pub fn new(file: &'a File<'a>, value: &'a Spanned<DeValue<'a>>) -> Self {
        Item { file, span: value.span().into(), value: value.get_ref() }
    }

    pub fn problem(&self, message: impl Into<String>) -> Problem {
        Problem::new(self.span, message)
    }

    /// `expected`, and what is there instead.
    pub fn wrong_type(&self, expected: &str) -> Problem {
        let found = match self.value {
            DeValue::String(_) => "text in quotes",
            DeValue::Integer(_) | DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date or time",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.problem(format!("{expected}, not {found}"))
    }

    /// What is below `key`; anything else is reported.
    pub fn table(&self, key: &str, file: &File<'_>) -> Option<&'a DeTable<'a>> {
        if let DeValue::Table(table) = self.value {
            return Some(table);
        }
        let problem = self.wrong_type(&format!("{key:?} must be a table"));
        file.report(problem.help(format!("write [{key}] on a line of its own, or {key} = {{ … }}")));
        None
    }

    /// Every element that fits; each that does not is reported. `None` where this is no list.
    pub fn list<T>(&self, key: &str, parse: impl Fn(&Item<'a>) -> Result<T, Problem>) -> Option<Vec<At<T>>> {
        let DeValue::Array(array) = self.value else {
            let mut problem = self.wrong_type(&format!("{key:?} must be a list"));
            if let DeValue::String(text) = self.value {
                problem = problem.help(format!("write {}", as_list(text)));
            }
            self.file.report(problem);
            return None;
        };
        let mut out = Vec::with_capacity(array.len());
        for element in array.iter() {
            let item = Item::new(self.file, element);
            match parse(&item) {
                Ok(value) => out.push(At { value, span: item.span }),
                Err(problem) => self.file.report(problem),
            }
        }
        Some(out)
    }

    /// Text without NUL, which no path, argument or variable can hold.
    pub fn text(&self) -> Result<&'a str, Problem> {
        let DeValue::String(text) = self.value else {
            let problem = self.wrong_type("this must be text in quotes");
            return Err(match self.value {
                DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) => {
                    problem.help(format!("write \"{}\"", self.file.slice(self.span)))
                }
                _ => problem,
            });
        };
        match text.contains('\0') {
            true => Err(self.problem("text must not contain a NUL character")),
            false => Ok(text.as_ref()),
        }
    }

    /// Text that is not empty.
    pub fn name(&self) -> Result<Box<str>, Problem> {
        match self.text()? {
            "" => Err(self.problem("this must not be empty").help("leave the key out to get its default")),
            text => Ok(text.into()),
        }
    }

    pub fn boolean(&self) -> Result<bool, Problem> {
        match self.value {
            DeValue::Boolean(value) => Ok(*value),
            DeValue::String(text) => Err(self.wrong_type("this must be true or false").help(match text.as_ref() {
                "no" | "off" | "false" => "write false, without quotes",
                _ => "write true or false, without quotes",
            })),
            _ => Err(self.wrong_type("this must be true or false")),
        }
    }

    /// A whole number from `min` to `max`.
    pub fn integer(&self, min: i64, max: i64) -> Result<i64, Problem> {
        let DeValue::Integer(number) = self.value else {
            let problem = self.wrong_type("this must be a whole number");
            return Err(match self.value {
                DeValue::String(text) if text.parse::<i64>().is_ok() => {
                    problem.help(format!("write {text}, without quotes"))
                }
                _ => problem,
            });
        };
        match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(n) if (min..=max).contains(&n) => Ok(n),
            _ => Err(self.problem(format!("this must be from {min} to {max}"))),
        }
    }

    /// As [`Item::integer`] for numbers that fit.
    pub fn count(&self, min: u32, max: u32) -> Result<u32, Problem> {
        let number = self.integer(i64::from(min), i64::from(max))?;
        Ok(u32::try_from(number).unwrap_or(max))
    }

    /// A number from `min` to `max`, whole or not.
    pub fn number(&self, min: f64, max: f64) -> Result<f64, Problem> {
        let number = match self.value {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(_) => self.integer(i64::MIN, i64::MAX).ok().map(|n| n as f64),
            DeValue::String(text) if text.parse::<f64>().is_ok() => {
                return Err(self.wrong_type("this must be a number").help(format!("write {text}, without quotes")));
            }
            _ => return Err(self.wrong_type("this must be a number")),
        };
        let fits = number.filter(|n| (min..=max).contains(n));
        fits.ok_or_else(|| self.problem(format!("this must be from {min} to {max}")))
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, Problem> {
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let text = self.text()?;
        let found = choices.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| *value).ok_or_else(|| {
            let problem = self.problem(format!("{text:?} is not one of {}", suggest::listed(&words, "or")));
            match suggest::closest(text, words.iter().copied()) {
                Some(word) => problem.help(format!("did you mean {word:?}?")),
                None => problem,
            }
        })
    }
}
