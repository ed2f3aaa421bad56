//! Patterns of paths: `*` for any characters within a name, `?` for one, `**` for any directories.

/// Does the path, relative and with `/` between its names, fit the pattern?
///
/// `**` as a whole name stands for any number of directories, also none, and at the end for all that is below. A pattern
/// fits whole paths: `airship` is the file of that name, `airship/**` all in that directory.
pub fn fits(pattern: &str, path: &str) -> bool {
    let pattern: Vec<&str> = pattern.split('/').filter(|part| !part.is_empty()).collect();
    let path: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    wild(&pattern, &path, |part| *part == "**", |part, name| name_fits(part, name), true)
}

fn name_fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    wild(&pattern, &name, |c| *c == '*', |p, c| p == c || *p == '?', false)
}

/// Elements one by one, but for those that stand for any number of them. Going back to the last such is enough.
/// `below`: one at the end stands for at least one.
fn wild<P, T>(pattern: &[P], text: &[T], any: impl Fn(&P) -> bool, one: impl Fn(&P, &T) -> bool, below: bool) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut last: Option<(usize, usize)> = None;
    while t < text.len() {
        if p < pattern.len() && any(&pattern[p]) {
            last = Some((p, t));
            p += 1;
        } else if p < pattern.len() && one(&pattern[p], &text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((at, taken)) = last {
            last = Some((at, taken + 1));
            (p, t) = (at + 1, taken + 1);
        } else {
            return false;
        }
    }
    let empty = pattern[p..].iter().all(&any);
    // What is left is empty; a directory is not below itself.
    empty && !(below && p < pattern.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_directories() {
        for (pattern, path) in [
            ("airship/**", "airship/a.py"),
            ("airship/**", "airship/a/b/c.py"),
            ("**/static/**", "static/x.css"),
            ("**/static/**", "a/b/static/c/x.css"),
            ("requirements.txt", "requirements.txt"),
            ("**/*.html", "x.html"),
            ("**/*.html", "a/b/x.html"),
            ("a/*/c", "a/b/c"),
            ("a?c*", "abcde"),
            ("**", "a/b"),
            ("/airship/**", "airship/x"),
            ("**/a/**/b", "x/a/y/a/b"),
        ] {
            assert!(fits(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("airship/**", "airship"),
            ("airship/**", "airships/a.py"),
            ("airship", "airship/a.py"),
            ("requirements.txt", "a/requirements.txt"),
            ("*.html", "a/x.html"),
            ("a/*/c", "a/b/b/c"),
            ("a?c", "a/c"),
            ("**/static/**", "a/static"),
            ("", "a"),
        ] {
            assert!(!fits(pattern, path), "{pattern} {path}");
        }
    }

    /// The same, as its definition says it.
    fn slow(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern, path) {
            ([], []) => true,
            (["**"], rest) => !rest.is_empty(),
            (["**", after @ ..], rest) => (0..=rest.len()).any(|n| slow(after, &rest[n..])),
            ([part, after @ ..], [name, rest @ ..]) => name_fits(part, name) && slow(after, rest),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn quick_is_right(
            pattern in prop::collection::vec(prop::sample::select(vec!["**", "a", "*", "b"]), 0..6),
            path in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 0..6),
        ) {
            prop_assert_eq!(fits(&pattern.join("/"), &path.join("/")), slow(&pattern, &path));
        }
    }
}
