//! For tests of decoders: one service, called `test`; what the golden files of a format say, and its reference.

use super::load_texts;
use super::section::Schema;
use super::spec::Service;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;

pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every script of this directory, of which there are so many at least, and what is said of it. `UPDATE_GOLDEN=1` writes the outputs
/// anew.
pub fn golden(dir: &str, least: usize, said: impl Fn(&str) -> String) {
    let entries = fs::read_dir(repository().join(dir)).unwrap().map(|entry| entry.unwrap().path());
    let mut scripts: Vec<_> = entries.filter(|path| path.extension().is_some_and(|e| e == "in")).collect();
    scripts.sort();
    assert!(scripts.len() >= least, "scripts are missing");
    let mut wrong = String::new();
    for script in scripts {
        let (got, golden) = (said(&fs::read_to_string(&script).unwrap()), script.with_extension("out"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &got).unwrap();
        }
        let wanted = fs::read_to_string(&golden).unwrap_or_default();
        if got != wanted {
            write!(wrong, "{}: got\n{got}\nwanted\n{wanted}\n", golden.display()).unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// The page's part on this table has its keys and no others, and the table names none twice.
pub fn has_every_key(page: &str, schema: &Schema) {
    let document = fs::read_to_string(repository().join(page)).unwrap();
    let named = |part: &&str| part.lines().next().is_some_and(|h| h.replace('`', "").eq_ignore_ascii_case(schema.name));
    let part = document.split("\n## ").find(named).unwrap_or_else(|| panic!("{page} has no section {}", schema.name));
    let mut rows: Vec<_> = part.lines().filter_map(|l| l.strip_prefix("| `")?.split('`').next()).collect();
    rows.sort_unstable();
    rows.dedup();
    let mut keys = schema.keys.to_vec();
    keys.sort_unstable();
    assert_eq!(rows, keys, "{page}, {}", schema.name);
    keys.dedup();
    assert_eq!(keys.len(), schema.keys.len(), "{} names a key twice", schema.name);
}

pub fn service(text: &str) -> Service {
    match load_texts(None, &[("test", text)]) {
        Ok(config) => (*config.services["test"]).clone(),
        Err(errors) => panic!("{errors}"),
    }
}

fn diagnostics(text: &str) -> Vec<super::Diagnostic> {
    match load_texts(None, &[("test", text)]) {
        Ok(_) => panic!("no error in:\n{text}"),
        Err(errors) => errors.0,
    }
}

/// The messages of a text's errors.
pub fn errors(text: &str) -> Vec<String> {
    diagnostics(text).into_iter().map(|d| d.message).collect()
}

/// What each error's help says.
pub fn helps(text: &str) -> Vec<String> {
    diagnostics(text).into_iter().map(|d| d.help.unwrap_or_default()).collect()
}
