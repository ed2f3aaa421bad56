//! What can be read off Python's text without Python: assignments, strings, variables of the environment, routes.

/// Paths at which applications usually tell how they are.
const HEALTH: &[&str] =
    &["healthz", "health", "healthcheck", "health-check", "_health", "readyz", "ready", "livez", "ping", "up"];
/// What stands before the path of a route.
const ROUTES: &[&str] = &["path(", ".route(", ".get(", ".add_url_rule(", ".add_route(", "Route("];

/// `name = value` at the beginning of a line.
pub struct Assigned<'t> {
    pub name: &'t str,
    /// From behind the `=` to the end of the statement, as far as brackets tell.
    pub value: &'t str,
    /// From 1.
    pub line: usize,
}

pub fn assignments(text: &str) -> impl Iterator<Item = Assigned<'_>> {
    let mut at = 0;
    (1..).zip(text.split_inclusive('\n')).filter_map(move |(line, whole)| {
        let start = at;
        at += whole.len();
        let (left, right) = whole.split_once('=')?;
        // `app: Flask = Flask()` has a type.
        let name = left.split(':').next().unwrap_or_default().trim_end();
        let is_name = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
        if !is_name || right.starts_with('=') {
            return None;
        }
        let from = start + left.len() + 1;
        Some(Assigned { name, value: statement(&text[from..]).trim(), line })
    })
}

/// Up to the end of the line on which all brackets are closed.
fn statement(text: &str) -> &str {
    let mut open = 0_i32;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => open += 1,
            ')' | ']' | '}' => open -= 1,
            '\n' if open <= 0 => return &text[..at],
            _ => {}
        }
    }
    text
}

/// All strings in quotes.
pub fn strings_of(text: &str) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(['"', '\'', '#']) {
        let quote = rest[at..].chars().next().unwrap_or('"');
        let inside = &rest[at + 1..];
        let end = inside.find(if quote == '#' { '\n' } else { quote }).unwrap_or(inside.len());
        if quote != '#' {
            out.push(inside[..end].to_owned());
        }
        rest = inside.get(end + 1..).unwrap_or_default();
    }
    out
}

/// The first string behind `word`.
pub fn quoted_after(text: &str, word: &str) -> Option<String> {
    let after = &text[text.find(word)? + word.len()..];
    strings_of(after.lines().next()?).into_iter().next()
}

/// Does the text import this module?
pub fn imports(text: &str, module: &str) -> bool {
    text.lines().any(|line| {
        let mut words = line.split([' ', '.', ',', '\t']).filter(|word| !word.is_empty());
        matches!(words.next(), Some("import" | "from")) && words.next() == Some(module)
    })
}

/// Variables that are read and have no default, each with its line: `os.environ["X"]`, `os.environ['X']`.
pub fn environment_reads(text: &str) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split('#').next().unwrap_or_default();
        for (at, word) in code.match_indices("environ[") {
            let name = strings_of(&code[at + word.len()..]).into_iter().next().unwrap_or_default();
            let is_name = !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
            // What is set is not read.
            let sets = code[at..]
                .split_once(']')
                .is_some_and(|(_, rest)| rest.trim_start().starts_with('=') && !rest.trim_start().starts_with("=="));
            if is_name && !sets && found.iter().all(|(known, _)| *known != name) {
                found.push((name, number));
            }
        }
    }
    found
}

/// The path of a page that tells how the application is, with its line.
pub fn route(text: &str) -> Option<(String, usize)> {
    let mut found: Vec<(usize, String, usize)> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.trim_start();
        let Some(at) =
            ROUTES.iter().filter(|_| !code.starts_with('#')).find_map(|word| Some(code.find(word)? + word.len()))
        else {
            continue;
        };
        let Some(path) =
            code[at..].starts_with(['"', '\'']).then(|| strings_of(&code[at..]).into_iter().next()).flatten()
        else {
            continue;
        };
        if let Some(rank) = HEALTH.iter().position(|word| *word == path.trim_matches('/')) {
            found.push((rank, format!("/{}", path.trim_start_matches('/')), number));
        }
    }
    found.into_iter().min().map(|(_, path, line)| (path, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_have_their_whole_value() {
        let text = "import x\nA = [\n    'a',  # not 'b'\n    \"c\",\n]\nif a == 1:\n    B = 2\napp: Flask = Flask(__name__)\n";
        let all: Vec<_> = assignments(text).map(|a| (a.name, a.line, strings_of(a.value))).collect();
        assert_eq!(all, [("A", 2, vec!["a".to_owned(), "c".to_owned()]), ("app", 8, vec![])]);
    }

    #[test]
    fn variables_without_a_default() {
        let text = "a = os.environ[\"A\"]\nb = environ['B'] # environ['C']\nos.environ['D'] = '1'\nc = os.environ.get('E')\nos.environ['A']";
        assert_eq!(environment_reads(text), [("A".to_owned(), 1), ("B".to_owned(), 2)]);
    }

    #[test]
    fn pages_that_tell_how_it_is() {
        assert_eq!(
            route("urlpatterns = [\n  path('', home),\n  path(\"healthz/\", f),\n]"),
            Some(("/healthz/".into(), 3))
        );
        assert_eq!(route("@app.get('/ping')\n@app.get('/health')"), Some(("/health".into(), 2)));
        assert_eq!(route("# @app.get('/ping')\n@app.get(health)\n@app.route('/healthy')"), None);
    }

    #[test]
    fn modules_that_are_imported() {
        assert!(imports("from flask import Flask", "flask") && imports("import flask", "flask"));
        assert!(!imports("from flask_login import x\n# import flask", "flask"));
    }
}
