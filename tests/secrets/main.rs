//! `[secrets]`: who gets them, who does not, and what a change of one leads to.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

#[path = "../support/mod.rs"]
mod support;

mod changed;
mod hidden;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use support::plain::{give_to_nobody, needs_root, script};
use support::svd::{Home, both, quoted};
use support::{PATIENCE, Svd, wait_until};

const DB: &str = "postgres-s3cret-of-this-test";
const KEY: &str = "BEGIN-KEY-s3cret-of-this-test\nEND\n";

/// A file that root alone may read.
fn secret_file(svd: &Svd, name: &str, value: &str) -> PathBuf {
    let path = svd.path("etc").join(name);
    // Anew: nobody sees half of it.
    let whole = svd.path("etc").join(format!("{name}.new"));
    fs::write(&whole, value).expect("writing a secret");
    fs::set_permissions(&whole, Permissions::from_mode(0o600)).expect("its mode");
    fs::rename(&whole, &path).expect("its name");
    path
}

/// Both ways of delivery, and what the service says of what it got.
fn file(svd: &Svd, more: &str) -> String {
    let (db, key) = (secret_file(svd, "db", &format!("{DB}\n")), secret_file(svd, "key", KEY));
    let text = "echo got=${#DATABASE_URL},$(wc -c < $0),$(stat -c %a $0),$CREDENTIALS_DIRECTORY/tls_key=$0; \
                echo up; exec sleep 100000";
    format!(
        "kind = 'command'\ncommand = ['/bin/sh', '-c', '{text}', '{{secret.tls_key}}']\n{more}\n[stop]\ngrace = '1s'\n\
         [secrets]\nDATABASE_URL = {{ file = {}, as = 'env', every = '1s' }}\n\
         tls_key = {{ file = {}, as = 'file', every = '1s' }}\n",
        quoted(&db),
        quoted(&key)
    )
}

/// The path of its file, as a worker was told.
fn path_of(svd: &Svd, name: &str) -> PathBuf {
    wait_until("it has said what it got", PATIENCE, || svd.output(name).contains("\nup\n"));
    let output = svd.output(name);
    let said = output.lines().rfind(|line| line.starts_with("got=")).expect("its line");
    let (what, path) = said.rsplit_once('=').expect("a path");
    let sizes = format!("got={},{},400,", DB.len(), KEY.len());
    assert!(what.starts_with(&sizes) && what.ends_with(path), "{said}");
    path.into()
}

fn exec(svd: &Svd, name: &str, words: &[&str]) -> String {
    both(&svd.svctl(&[&["exec", name, "--"], words].concat()))
}

/// What a hostile program of that service finds of the secrets of `web`.
fn attack(svd: &Svd, from: &str) -> String {
    let (path, pid) = (path_of(svd, "web"), svd.main_pid("web"));
    let dir = path.parent().expect("a directory");
    let script = format!(
        "cat {path}; cat /proc/{pid}/environ | tr '\\0' '\\n'; cat /proc/{pid}/root{path}; ls {dir}/..; ls {dir}; \
         cp {path} /tmp/stolen.{pid}; rm -f /tmp/stolen.{pid}; grep -r s3cret {etc} {run} {state} {log} 2>&1",
        path = path.display(),
        dir = dir.display(),
        etc = svd.path("etc").display(),
        run = svd.path("run").display(),
        state = svd.path("state").display(),
        log = svd.path("log").display(),
    );
    exec(svd, from, &["/bin/sh", "-c", &script])
}

#[test]
fn a_service_has_its_secrets_and_no_other_has() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    svd.service("web", &file(&svd, "user = 'auto'"));
    svd.service("other", &script("exec sleep 100000", "user = 'auto'\n[stop]\ngrace = '1s'"));
    svd.start();
    for name in ["web", "other"] {
        svd.wait_state(name, "running");
    }
    let stolen = attack(&svd, "other");
    assert!(stolen.contains("Permission denied") && !stolen.contains("s3cret"), "{stolen}");
    // The same program where it may: all of that is there to be found.
    let own = attack(&svd, "web");
    assert!(own.contains(DB) && own.contains("BEGIN-KEY"), "{own}");
    assert!(exec(&svd, "web", &["printenv", "DATABASE_URL"]).contains(DB));
    // Nor can it change what it was given.
    let path = path_of(&svd, "web");
    let text = format!("echo x >> {0}; rm -f {0}; touch {0}.more; ls {1}", path.display(), svd.path("run").display());
    let said = exec(&svd, "web", &["/bin/sh", "-c", &text]);
    assert!(said.matches("ermission denied").count() >= 3, "{said}");
    assert_eq!(fs::read_to_string(&path).expect("it is as it was"), KEY);

    // They go with the generation.
    svd.ok(&["reload", "web"]);
    wait_until("the old files are gone", PATIENCE, || !path.exists());
    let path = path_of(&svd, "web");
    assert!(path.exists());
    svd.ok(&["stop", "web"]);
    wait_until("what is stopped leaves none", PATIENCE, || !path.exists());
    svd.ok(&["start", "web"]);
    let path = path_of(&svd, "web");
    svd.stop();
    assert!(!path.exists() && !path.parent().and_then(std::path::Path::parent).expect("a root").exists());
}

#[test]
fn a_plain_users_services_have_theirs() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    svd.home = Home::PlainUser;
    svd.service("web", &file(&svd, ""));
    give_to_nobody(&svd);
    svd.start();
    svd.wait_state("web", "running");
    let path = path_of(&svd, "web");
    assert!(fs::metadata(path.parent().expect("a directory")).expect("there").permissions().mode() & 0o077 == 0);
    // Both are killed: the files stay for what runs, and go with it.
    svd.kill_both();
    assert!(path.exists());
    svd.start();
    svd.wait_state("web", "running");
    assert!(path.exists());
    svd.ok(&["stop", "web"]);
    wait_until("they are gone", PATIENCE, || !path.exists());
    svd.stop();
}

#[test]
fn a_secret_that_cannot_be_trusted_starts_nothing() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let open = secret_file(&svd, "open", DB);
    fs::set_permissions(&open, Permissions::from_mode(0o644)).expect("its mode");
    let theirs = secret_file(&svd, "theirs", DB);
    std::os::unix::fs::chown(&theirs, Some(65534), None).expect("its owner");
    let (mine, program) = (secret_file(&svd, "mine", DB), svd.path("etc/program"));
    fs::write(&program, format!("#!/bin/sh\necho {DB}\n")).expect("a program");
    fs::set_permissions(&program, Permissions::from_mode(0o777)).expect("its mode");
    let empty = secret_file(&svd, "empty", "\n");
    let cases = [
        ("open", format!("file = {}", quoted(&open)), "chmod o="),
        ("theirs", format!("file = {}", quoted(&theirs)), "belongs to user 65534"),
        ("empty", format!("file = {}", quoted(&empty)), "it is empty"),
        ("none", "file = '/etc/there-is-none'".to_owned(), "No such file"),
        ("fails", format!("command = ['sh', '-c', 'cat $0; cat $0 >&2; exit 3', {}]", quoted(&mine)), "exited with 3"),
        ("large", "command = ['sh', '-c', 'exec cat /dev/zero']".to_owned(), "more than 1 MiB"),
        ("worse", format!("command = [{}]", quoted(&program)), "svd does not run its command"),
    ];
    for (name, from, _) in &cases {
        let secrets = format!("autostart = false\n[secrets]\nA = {{ {from}, as = 'env' }}");
        svd.service(name, &script("echo $A; exec sleep 100000", &secrets));
    }
    let fine = format!("[stop]\ngrace = '1s'\n[secrets]\nA = {{ command = ['cat', {}], as = 'env' }}", quoted(&mine));
    svd.service("fine", &script("echo length ${#A}; exec sleep 100000", &fine));
    svd.start();
    for (name, _, why) in &cases {
        let said = svd.fails(&["start", name]);
        assert!(
            said.contains(why) && said.contains("the secret A cannot be read") && !said.contains("s3cret"),
            "{said}"
        );
        assert_eq!(svd.output(name), "", "nothing was started");
    }
    wait_until("it is given", PATIENCE, || svd.output("fine").contains(&format!("length {}", DB.len())));
    assert!(!svd.said().contains("s3cret"));
    svd.stop();
}

#[test]
fn what_is_shut_in_sees_its_own_alone() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let shut = "\n[isolation]\nprivate_devices = true\nprivate_tmp = true\nwritable = [";
    let shut = format!("{shut}{}]\n[stop]", quoted(&svd.path("")));
    svd.service("web", &file(&svd, "user = 'nobody'"));
    svd.service("in", &file(&svd, "user = 'nobody'").replace("\n[stop]", &shut));
    svd.service("out", &file(&svd, "user = 'nobody'"));
    svd.start();
    for name in ["web", "in", "out"] {
        svd.wait_state(name, "running");
    }
    // The same user, and the path is known.
    let (path, own) = (path_of(&svd, "web").display().to_string(), path_of(&svd, "in").display().to_string());
    let stolen = exec(&svd, "in", &["cat", &path]);
    assert!(stolen.contains("No such file") && !stolen.contains("s3cret"), "{stolen}");
    assert!(exec(&svd, "in", &["cat", &own]).contains("BEGIN-KEY"));
    assert!(exec(&svd, "out", &["cat", &path]).contains("BEGIN-KEY"), "a program that is not shut in reads it");
    svd.ok(&["reload", "in"]);
    let own = path_of(&svd, "in").display().to_string();
    assert!(exec(&svd, "in", &["cat", &own]).contains("BEGIN-KEY"));
    svd.stop();
}
