//! One file's text while it is decoded: where things are, and what is wrong with them.

use std::cell::RefCell;
use std::ops::Range;

use super::diagnostic::{Diagnostic, Position};
use super::suggest::Family;

/// Errors kept for one file; what comes after them is counted, not listed.
const MAX_PROBLEMS: usize = 100;

/// Characters of a source line that a diagnostic shows.
const MAX_SHOWN: usize = 160;

/// A range of bytes in one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub start: u32,
    pub end: u32,
}

impl From<Range<usize>> for Span {
    fn from(range: Range<usize>) -> Self {
        let clamp = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Span { start: clamp(range.start), end: clamp(range.end) }
    }
}

/// A value and where it is written.
#[derive(Clone, Debug)]
pub(crate) struct At<T> {
    pub value: T,
    pub span: Span,
}

/// Something wrong at one place of a file: a sentence, and where possible what to do.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    pub span: Span,
    pub message: String,
    pub help: Option<String>,
    /// Something is absent rather than wrong: not worth saying of a file that could not be read to its end.
    absent: bool,
}

impl Problem {
    pub fn new(span: Span, message: impl Into<String>) -> Self {
        Problem { span, message: message.into(), help: None, absent: false }
    }

    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    pub fn absent(mut self) -> Self {
        self.absent = true;
        self
    }
}

/// A file being decoded. Decoders share it and report into it, so that none of them stops at its first error.
pub(crate) struct File<'t> {
    /// As messages show it: `conf.d/airship.toml`.
    pub path: String,
    pub text: &'t str,
    /// What else its keys could have been meant to be.
    pub family: &'static Family,
    problems: RefCell<Vec<Problem>>,
    hints: RefCell<Vec<Problem>>,
}

impl<'t> File<'t> {
    pub fn new(path: String, text: &'t str, family: &'static Family) -> Self {
        File { path, text, family, problems: RefCell::default(), hints: RefCell::default() }
    }

    pub fn report(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// Nothing was reported so far.
    pub fn is_good(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    /// Something that is allowed and hardly meant: shown, and nothing is refused for it.
    pub fn hint(&self, problem: Problem) {
        let mut hints = self.hints.borrow_mut();
        if hints.len() < MAX_PROBLEMS {
            hints.push(problem);
        }
    }

    /// All hints, in the order of the text.
    pub fn take_hints(&self, out: &mut Vec<Diagnostic>) {
        let mut hints = self.hints.take();
        hints.sort_by_key(|p| p.span.start);
        out.extend(hints.into_iter().map(|p| self.diagnostic(p)));
    }

    /// Takes over the parser's complaints, and drops what follows from them: a line that is not TOML says nothing
    /// about keys, and behind a bracket that was never closed nothing is where it seems.
    pub fn add_syntax_errors(&self, errors: &[toml::de::Error]) {
        if errors.is_empty() {
            return;
        }
        let mut torn_from = None::<u32>;
        let mut syntax: Vec<Problem> = Vec::with_capacity(errors.len());
        for error in errors {
            let span = Span::from(error.span().unwrap_or(0..0));
            let (problem, local) = self.syntax_problem(span, error.message());
            if !local {
                let start = self.line_range(span.start as usize).start as u32;
                torn_from = Some(torn_from.map_or(start, |t| t.min(start)));
            }
            // Of two at one place, the later says what is wrong, and the earlier what that led to.
            syntax.retain(|earlier| earlier.span.start != span.start);
            syntax.push(problem);
        }
        let lines: Vec<_> = syntax.iter().map(|p| self.line_range(p.span.start as usize)).collect();
        let mut problems = self.problems.borrow_mut();
        problems.retain(|p| {
            let torn = torn_from.is_some_and(|from| p.absent || p.span.start >= from);
            !torn && !lines.iter().any(|line| line.contains(&(p.span.start as usize)))
        });
        problems.append(&mut syntax);
    }

    /// The parser's message in our words, and whether the damage ends with the value.
    fn syntax_problem(&self, span: Span, message: &str) -> (Problem, bool) {
        let shown = self.slice(span);
        if message.starts_with("string values must be quoted") {
            let problem = Problem::new(span, format!("text must be in quotes: {shown}"));
            return (problem.help(format!("write {shown:?}")), true);
        }
        if message == "duplicate key" {
            let problem = Problem::new(span, format!("{shown:?} is given twice"));
            return (problem.help("keep one of them"), true);
        }
        if message.starts_with("unexpected leading zero") {
            let number = self.text.get(span.start as usize..).unwrap_or_default();
            let number = &number[..number.bytes().take_while(u8::is_ascii_alphanumeric).count()];
            let whole = Span { end: span.start + number.len() as u32, ..span };
            let problem =
                Problem::new(whole, format!("{number} must be in quotes: TOML has no numbers that begin with 0"));
            return (problem.help(format!("write {number:?}")), true);
        }
        (Problem::new(span, format!("not valid TOML: {message}")), false)
    }

    /// All that was reported, in the order of the text.
    pub fn into_diagnostics(self, out: &mut Vec<Diagnostic>) {
        let mut problems = self.problems.take();
        problems.sort_by_key(|p| p.span.start);
        let more = problems.len().saturating_sub(MAX_PROBLEMS);
        problems.truncate(MAX_PROBLEMS);
        out.extend(problems.into_iter().map(|p| self.diagnostic(p)));
        if more > 0 {
            out.push(Diagnostic::of_file(&self.path, format!("{more} more errors in this file are not shown")));
        }
    }

    pub fn diagnostic(&self, problem: Problem) -> Diagnostic {
        Diagnostic {
            file: self.path.as_str().into(),
            position: Some(self.position(problem.span)),
            message: problem.message,
            help: problem.help,
        }
    }

    /// Line and column, counted from 1, with the path: `conf.d/airship.toml:12:1`.
    pub fn locate(&self, span: Span) -> String {
        let position = self.position(span);
        format!("{}:{}:{}", self.path, position.line, position.column)
    }

    pub fn slice(&self, span: Span) -> &'t str {
        self.text.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    /// The bytes of the line that holds byte `at`, with its line end.
    fn line_range(&self, at: usize) -> Range<usize> {
        let at = at.min(self.text.len());
        let bytes = self.text.as_bytes();
        let start = bytes[..at].iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
        let end = bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| at + n + 1);
        start..end
    }

    pub fn position(&self, span: Span) -> Position {
        let mut start = (span.start as usize).min(self.text.len());
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        let range = self.line_range(start);
        let line = self.text[range.clone()].trim_end_matches(['\n', '\r']);
        let in_line = (start - range.start).min(line.len());
        let mut end = (span.end as usize).clamp(start, self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        // What spans several lines is marked to the end of its first.
        let marked = &line[in_line..(end - range.start).clamp(in_line, line.len())];
        let before = line[..in_line].chars().count();
        Position {
            line: count(self.text.as_bytes()[..range.start].iter().filter(|&&b| b == b'\n').count() + 1),
            column: count(before + 1),
            length: count(marked.chars().count()).max(1),
            text: marked.into(),
            excerpt: excerpt(line, before),
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// The line as it may be printed, without control characters, and where in it the marking begins.
fn excerpt(line: &str, before: usize) -> (Box<str>, u32) {
    let skip = if before >= MAX_SHOWN * 3 / 4 { before - MAX_SHOWN / 4 } else { 0 };
    let printable = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    let shown: String = line.chars().skip(skip).take(MAX_SHOWN).map(printable).collect();
    (shown.into(), count(before - skip))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(text: &str, range: Range<usize>) -> Position {
        File::new("f".into(), text, &super::super::suggest::SERVICE).position(range.into())
    }

    #[test]
    fn lines_and_columns_count_characters_from_one() {
        let p = position("a = 1\nüb = \"x\"\n", 6..9);
        assert_eq!((p.line, p.column, p.length), (2, 1, 2));
        assert_eq!(&*p.text, "üb");
    }

    #[test]
    fn an_end_of_file_and_a_place_within_a_character_are_positions_too() {
        let p = position("ü", 2..2);
        assert_eq!((p.line, p.column, p.length), (1, 2, 1));
        let p = position("ü", 1..2);
        assert_eq!((p.line, p.column), (1, 1));
        assert_eq!(position("", 0..0).line, 1);
        assert_eq!(position("a\n", 2..90).line, 2);
    }

    #[test]
    fn long_lines_are_cut_around_the_marking() {
        let text = format!("{}X{}", "a".repeat(5_000), "b".repeat(5_000));
        let p = position(&text, 5_000..5_001);
        let (shown, mark) = p.excerpt;
        assert_eq!(shown.chars().nth(mark as usize), Some('X'));
        assert_eq!(shown.chars().count(), MAX_SHOWN);
    }

    #[test]
    fn control_characters_do_not_reach_a_terminal() {
        let p = position("a = \u{1b}[31m", 0..1);
        assert!(!p.excerpt.0.contains('\u{1b}'));
    }
}
