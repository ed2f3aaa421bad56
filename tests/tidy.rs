//! Rules of style as tests: what a reviewer would otherwise have to say again and again.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::CommandFactory;

/// Longest source file, in lines, and those that may be longer, with the reason.
const LINES: usize = 600;
const LONGER: &[(&str, &str)] = &[];

struct Text {
    /// Below the repository.
    path: String,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if entry.file_type().unwrap().is_dir() {
            if name != "target" && name != ".git" && name != "__pycache__" {
                walk(&entry.path(), found);
            }
        } else if name != ".git" {
            found.push(entry.path());
        }
    }
}

/// Every file that is text.
fn texts() -> Vec<Text> {
    let mut paths = Vec::new();
    walk(root(), &mut paths);
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).ok()?;
        Some(Text { path: path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), text })
    };
    paths.into_iter().filter_map(read).collect()
}

fn sources() -> Vec<Text> {
    let mut texts = texts();
    texts.retain(|t| t.path.starts_with("src/") && t.path.ends_with(".rs"));
    assert!(texts.len() > 50);
    texts
}

/// `PATH:LINE: TEXT` of the lines that `is` picks.
fn lines(texts: &[Text], is: impl Fn(&Text, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for text in texts {
        for (number, line) in text.text.lines().enumerate() {
            if is(text, line) {
                found.push(format!("{}:{}: {}", text.path, number + 1, line.trim()));
            }
        }
    }
    found
}

#[track_caller]
fn assert_none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}\n{}", found.join("\n"));
}

#[test]
fn files_are_short() {
    let long = |t: &&Text| t.text.lines().count() >= LINES;
    let found: Vec<String> = sources().iter().filter(long).map(|t| t.path.clone()).collect();
    let known: Vec<&str> = LONGER.iter().map(|(path, _)| *path).collect();
    assert_eq!(found, known, "split files of {LINES} lines and more, or list them with the reason");
}

#[test]
fn nothing_is_left_to_do() {
    let words = ["todo", "unimplemented", "dbg"].map(|w| format!("{w}!("));
    let texts: Vec<Text> = texts().into_iter().filter(|t| t.path.ends_with(".rs")).collect();
    assert_none("unfinished:", &lines(&texts, |_, line| words.iter().any(|w| line.contains(w))));
}

#[test]
fn no_path_of_a_machine_and_no_blank_ends() {
    let words =
        [["/wo", "rk/"], ["/tmp/", "wt"], ["/tmp/", "airdock-"], ["/ro", "ot/"], ["/home", "/"]].map(|w| w.concat());
    let odd = |text: &Text, line: &str| {
        let blank = line.ends_with([' ', '\t']) && !text.path.contains("golden/");
        blank || words.iter().any(|w| line.contains(w))
    };
    let mut texts = texts();
    // The machines have homes of their own, and the licences are as they came.
    texts.retain(|t| !t.path.starts_with("LICENSE") && !t.path.starts_with("tests/vm/guest/"));
    assert_none("a path of somebody's machine, or blanks at the end:", &lines(&texts, odd));
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    let words = ["{", "fn", "impl", "extern"].map(|w| format!("unsafe {w}"));
    let found = lines(&sources(), |text, line| {
        let code = line.split("//").next().unwrap_or_default();
        !text.path.starts_with("src/sys/") && words.iter().any(|w| code.contains(w))
    });
    assert_none("unsafe outside of src/sys:", &found);
}

/// The table in `src/lib.rs`.
#[test]
fn folders_use_what_they_may() {
    let forbidden: &[(&str, &[&str])] = &[
        ("src/sys/", &["api", "cli", "config", "core", "daemon", "fleet", "isolation", "kinds", "sim"]),
        ("src/config/", &["api", "cli", "core", "daemon", "fleet", "isolation", "kinds", "sim", "sys"]),
        ("src/core/", &["api", "cli", "daemon", "fleet", "kinds", "sys"]),
        ("src/api/", &["cli", "core", "daemon", "fleet", "kinds", "sim", "sys"]),
        ("src/isolation/", &["api", "cli", "core", "daemon", "fleet", "kinds", "release", "sim"]),
        ("src/kinds/", &["api", "cli", "core", "daemon", "fleet", "sim"]),
        ("src/release/", &["api", "cli", "core", "daemon", "fleet", "kinds", "sim"]),
        ("src/fleet/", &["cli", "core", "daemon", "kinds", "sim"]),
        ("src/cli/", &["core", "daemon", "kinds", "sim"]),
        ("src/daemon/", &["cli", "fleet", "sim"]),
    ];
    let found = lines(&sources(), |text, line| {
        let code = line.split("//").next().unwrap_or_default();
        if text.path.ends_with("tests.rs") || text.path.ends_with("_test.rs") {
            return false;
        }
        let folder = forbidden.iter().find(|(folder, _)| text.path.starts_with(folder));
        folder.is_some_and(|(_, names)| names.iter().any(|name| code.contains(&format!("crate::{name}::"))))
    });
    assert_none("an arrow that goes up:", &found);
}

#[test]
fn every_source_file_is_part_of_the_program() {
    let sources = sources();
    let all: String = sources.iter().map(|t| t.text.as_str()).collect();
    let dead = |t: &&Text| {
        let name = Path::new(&t.path).file_stem().unwrap().to_str().unwrap();
        let folder = Path::new(&t.path).parent().unwrap().file_name().unwrap().to_str().unwrap();
        let module = if name == "mod" { folder } else { name };
        let named = [format!("mod {module};"), format!("path = \"{name}.rs\"")].iter().any(|n| all.contains(n));
        !named && t.path != "src/lib.rs" && !t.path.starts_with("src/bin/")
    };
    let found: Vec<String> = sources.iter().filter(dead).map(|t| t.path.clone()).collect();
    assert_none("no `mod` names these files:", &found);
}

/// Every deliberate bug of `tests/mutants` still has its place in the source; that the tests catch it takes longer to see.
#[test]
fn mutants_apply() {
    let list: toml::Table =
        fs::read_to_string(root().join("tests/mutants/list.toml")).unwrap().parse().expect("tests/mutants/list.toml");
    let mutants = list["mutant"].as_array().expect("mutants");
    assert!(mutants.len() > 12);
    let stale = |mutant: &&toml::Value| {
        let text = |key: &str| mutant[key].as_str().unwrap_or_else(|| panic!("{key}: {mutant:?}"));
        let source = fs::read_to_string(root().join(text("file"))).unwrap_or_default();
        source.matches(text("from")).count() != 1 || text("from") == text("to")
    };
    let found: Vec<String> = mutants.iter().filter(stale).map(|m| format!("{:?}", m["name"])).collect();
    assert_none("`from` is not in the file exactly once, of the mutants:", &found);
}

#[test]
fn every_verb_is_documented() {
    let page = fs::read_to_string(root().join("docs/svctl.md")).unwrap();
    let command = airdock::cli::args::Cli::command();
    let missing: Vec<String> = command
        .get_subcommands()
        .map(|c| format!("`svctl {}", c.get_name()))
        .filter(|verb| !["`", " "].iter().any(|end| page.contains(&format!("{verb}{end}"))))
        .collect();
    assert_none("docs/svctl.md does not mention:", &missing);
}

/// Links between documents lead somewhere, and the index names every page.
#[test]
fn documents_lead_to_each_other() {
    let mut documents = texts();
    documents.retain(|t| t.path.ends_with(".md"));
    let mut broken = Vec::new();
    let mut linked = BTreeSet::new();
    for document in &documents {
        let folder = root().join(&document.path).parent().unwrap().to_path_buf();
        for link in document.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.contains(char::is_whitespace) {
                continue;
            }
            match folder.join(file).canonicalize() {
                Ok(path) => drop(linked.insert(path)),
                Err(_) => broken.push(format!("{}: {link}", document.path)),
            }
        }
    }
    assert_none("links that lead nowhere:", &broken);
    let pages = fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().path().canonicalize().unwrap());
    let index = root().join("docs/README.md").canonicalize().unwrap();
    let alone: Vec<String> =
        pages.filter(|p| !linked.contains(p) && *p != index).map(|p| p.display().to_string()).collect();
    assert_none("no document links to:", &alone);
}

#[test]
fn the_readmes_commands_exist() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for command in ["cargo run --release -- demo", "./test"] {
        assert!(readme.lines().any(|line| line.trim() == command), "README.md has no line {command:?}");
    }
    airdock::cli::args::Cli::command().find_subcommand("demo").expect("svctl has a demo");
    for script in ["test", ".ci/run"] {
        let mode = fs::metadata(root().join(script)).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} can be executed");
    }
}
