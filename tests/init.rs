//! `init/install --root DIR`: what a package or an image gets, and that nothing else is touched.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use support::svd::both;
use support::{PATIENCE, run_limited};

struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Root {
        Root(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below.trim_start_matches('/'))
    }

    fn put(&self, below: &str, text: &str) {
        let path = self.path(below);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, text).expect("a file");
    }

    fn text(&self, below: &str) -> String {
        fs::read_to_string(self.path(below)).unwrap_or_else(|e| panic!("{below}: {e}"))
    }

    /// Every file below it, sorted.
    fn files(&self) -> Vec<String> {
        fn walk(dir: &Path, top: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(dir).expect("a directory").flatten() {
                let path = entry.path();
                if path.is_dir() {
                    walk(&path, top, found);
                } else {
                    found.push(path.strip_prefix(top).expect("below").display().to_string());
                }
            }
        }
        let mut found = Vec::new();
        walk(self.0.path(), self.0.path(), &mut found);
        found.sort();
        found
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/init/install"));
        command.arg("--root").arg(self.0.path()).args(words).env("HOME", self.path("home"));
        run_limited(command, PATIENCE)
    }

    #[track_caller]
    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", both(&output));
        both(&output)
    }

    #[track_caller]
    fn fails(&self, words: &[&str], code: i32) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}", both(&output));
        both(&output)
    }
}

fn is_executable_script(path: &Path) {
    assert_eq!(fs::metadata(path).expect("the script").permissions().mode() & 0o777, 0o755);
    assert!(Command::new("sh").arg("-n").arg(path).status().expect("sh").success(), "{}", path.display());
}

#[test]
fn sysv_scripts_are_put_in_place_and_taken_away() {
    let root = Root::new();
    let said = root.ok(&["--sysv", "svd"]) + &root.ok(&["--sysv", "service", "airship", "db-1"]);
    assert!(!said.contains("next:") && !said.contains("note:"), "nothing of this machine is told: {said}");
    let all = ["etc/default/svd", "etc/init.d/airship", "etc/init.d/db-1", "etc/init.d/svd"];
    assert_eq!(root.files(), all);
    for script in &all[1..] {
        is_executable_script(&root.path(script));
    }
    let script = root.text("etc/init.d/db-1");
    assert!(script.contains("\nSERVICE=db-1\n") && !script.contains("airdock-service"), "{script}");
    let (_, header) = script.split_once("### BEGIN INIT INFO").expect("an LSB header");
    assert!(header.lines().any(|l| l.starts_with("# Provides:") && l.ends_with(" db-1")), "{header}");
    // Again, as an update of the package does; the administrator's file stays.
    root.put("etc/default/svd", "CONFIG_DIR=/srv/etc\n");
    root.ok(&["--sysv", "svd"]);
    assert_eq!(root.text("etc/default/svd"), "CONFIG_DIR=/srv/etc\n");
    root.ok(&["--sysv", "remove", "service", "airship", "db-1"]);
    root.ok(&["--sysv", "remove", "svd"]);
    assert_eq!(root.files(), ["etc/default/svd"]);
}

#[test]
fn systemd_units_are_put_in_place_and_taken_away() {
    let root = Root::new();
    root.ok(&["--systemd", "svd"]);
    root.ok(&["--systemd", "service", "airship"]);
    let units = ["etc/systemd/system/airship.service", "etc/systemd/system/svd.service"];
    assert_eq!(root.files(), ["etc/default/svd", units[0], units[1]]);
    let unit = root.text(units[0]);
    assert!(unit.lines().any(|l| l.starts_with("ExecReload=") && l.ends_with(" reload airship")), "{unit}");
    assert!(!unit.contains('@'), "{unit}");
    root.ok(&["--systemd", "remove", "service", "airship"]);
    root.ok(&["--systemd", "remove", "svd"]);
    assert_eq!(root.files(), ["etc/default/svd"]);
}

#[test]
fn the_kind_is_what_the_image_boots() {
    let (with, without) = (Root::new(), Root::new());
    fs::create_dir(with.path("sbin")).expect("a directory");
    symlink("/lib/systemd/systemd", with.path("sbin/init")).expect("a link");
    with.ok(&["service", "airship"]);
    assert_eq!(with.files(), ["etc/systemd/system/airship.service", "sbin/init"]);
    without.ok(&["service", "airship"]);
    assert_eq!(without.files(), ["etc/init.d/airship"]);
    without.ok(&["--sysv", "--systemd", "service", "both"]);
    assert_eq!(without.files(), ["etc/init.d/airship", "etc/init.d/both", "etc/systemd/system/both.service"]);
}

#[test]
fn what_others_have_put_there_stays() {
    let root = Root::new();
    root.put("etc/init.d/redis", "#!/bin/sh\n# the distribution's\n");
    root.put("lib/systemd/system/redis.service", "[Unit]\n");
    for kind in ["--sysv", "--systemd"] {
        assert!(root.fails(&[kind, "service", "redis"], 1).contains("give the service another name"));
    }
    assert!(root.fails(&["--sysv", "remove", "service", "redis"], 1).contains("is not from Airdock"));
    assert_eq!(root.text("etc/init.d/redis"), "#!/bin/sh\n# the distribution's\n");
    assert_eq!(root.files(), ["etc/init.d/redis", "lib/systemd/system/redis.service"]);
    root.ok(&["--sysv", "--force", "service", "redis"]);
    assert!(root.text("etc/init.d/redis").contains("SERVICE=redis"));
}

#[test]
fn words_that_mean_nothing_write_nothing() {
    let root = Root::new();
    for name in ["../x", "", "-x", "a b", "svd"] {
        root.fails(&["--sysv", "service", name], 1);
    }
    for words in [&["service"][..], &["svd", "more"], &["--frobnicate", "svd"], &["ship"], &["--user", "svd"], &[]] {
        root.fails(words, 2);
    }
    let missing = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/init/install"))
        .arg("--root")
        .arg(root.path("nowhere"))
        .arg("svd")
        .output()
        .expect("running it");
    assert!(!missing.status.success() && both(&missing).contains("there is no directory"), "{}", both(&missing));
    assert_eq!(root.files(), [""; 0]);
}

/// The commands of the page, and the files that their comments name.
#[test]
fn the_page_names_what_is_written() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/init.md")).expect("the page");
    let commands: Vec<&str> =
        page.lines().filter(|l| l.starts_with("init/install ") && !l.contains("--user")).collect();
    assert!(commands.len() >= 6, "{commands:#?}");
    let root = Root::new();
    for line in commands {
        let (command, comment) = line.split_once('#').expect("a comment");
        let mut words = vec![if comment.contains("systemd/") { "--systemd" } else { "--sysv" }];
        words.extend(command.split_whitespace().skip(1));
        root.ok(&words);
        let named = comment.split(' ').map(|word| word.trim_end_matches(','));
        for file in named.filter(|word| word.starts_with("/etc/") && !line.contains(" remove ")) {
            assert!(root.path(file).is_file(), "{line}: there is no {file}");
        }
    }
}
