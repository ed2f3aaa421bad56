//! The dependencies: only permissive licences, and no package in two versions that nobody has looked at.
//!
//! Works offline: `cargo metadata` reads what a build has fetched anyway.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that are there twice, and why that is accepted.
const DUPLICATES: &[(&str, &str)] =
    &[("syn", "of the macros that landlock is built with; nothing of it is in the programs")];

fn packages() -> Vec<Value> {
    let rustc = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(rustc.stdout).unwrap();
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked", "--all-features", "--filter-platform", host])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// Whether an expression (<https://spdx.org/licenses>) can be met by what is allowed: AND binds closer than OR.
fn permissive(expression: &str) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = text.split_whitespace().peekable();
    either(&mut words) && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn either(words: &mut Words<'_>) -> bool {
    let mut good = both(words);
    while words.next_if_eq(&"OR").is_some() {
        good |= both(words);
    }
    good
}

fn both(words: &mut Words<'_>) -> bool {
    let mut good = one(words);
    while words.next_if_eq(&"AND").is_some() {
        good &= one(words);
    }
    good
}

fn one(words: &mut Words<'_>) -> bool {
    match words.next() {
        Some("(") => {
            let good = either(words);
            words.next() == Some(")") && good
        }
        Some(name) => {
            // An exception only adds rights.
            if words.next_if_eq(&"WITH").is_some() {
                words.next();
            }
            LICENCES.contains(&name)
        }
        None => false,
    }
}

#[test]
fn licences_are_read_as_written() {
    for good in ["MIT", "MIT/GPL-2.0", "(MIT OR GPL-3.0) AND Zlib", "Apache-2.0 WITH LLVM-exception OR GPL-2.0"] {
        assert!(permissive(good), "{good}");
    }
    for bad in ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT AND GPL-3.0) OR LGPL-2.1", "MIT MIT", "(MIT"] {
        assert!(!permissive(bad), "{bad}");
    }
}

#[test]
fn every_dependency_has_a_permissive_licence() {
    let packages = packages();
    assert!(packages.len() > 10);
    let told = |p: &Value| format!("{} {}: {}", p["name"], p["version"], p["license"]);
    let bad: Vec<_> = packages.iter().filter(|p| !permissive(p["license"].as_str().unwrap_or(""))).map(told).collect();
    assert!(bad.is_empty(), "not permissive, or not understood: {bad:#?}");
    println!("{} packages, all permissive", packages.len());
}

#[test]
fn no_package_comes_twice_unseen() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages() {
        let text = |key: &str| package[key].as_str().unwrap().to_owned();
        versions.entry(text("name")).or_default().push(text("version"));
    }
    versions.retain(|_, versions| versions.len() > 1);
    println!("in several versions: {versions:#?}");
    let known: Vec<&str> = DUPLICATES.iter().map(|(name, _)| *name).collect();
    let found: Vec<&str> = versions.keys().map(String::as_str).collect();
    assert_eq!(found, known, "unify them, or list them with the reason");
}
