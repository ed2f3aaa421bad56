//! The tag that a deploy leaves behind, and a repository that takes none.

use super::deploy;
use super::support::plain::{SLEEP, script};
use super::support::{PATIENCE, Svd, run_limited};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn git(dir: &Path, words: &str) -> String {
    let mut command = Command::new("sh");
    command.current_dir(dir).args(["-euc", words]);
    let done = run_limited(command, PATIENCE);
    assert!(done.status.success(), "{words}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}

#[test]
fn a_repository_that_takes_no_tag_is_deployed_from_without() {
    let mut svd = Svd::new();
    let root = svd.path("srv/job");
    for dir in ["srv/job", "home", "desk"] {
        fs::create_dir_all(svd.path(dir)).expect("mkdir");
    }
    let more = format!("root = '{}'\n[deploy]\nbuild = 'none'\n[stop]\ngrace = '1s'\n", root.display());
    svd.service("job", &script(SLEEP, &more));
    svd.start();
    let (desk, bare) = (svd.path("desk"), svd.path("origin.git"));
    git(
        &svd.path(""),
        "git init -q -b production tree && cd tree && git config user.email t@example.org && git config user.name T
         echo one >file && git add file && git commit -q -m one && git clone -q --bare . ../origin.git",
    );
    // As a server does of a key that may only read.
    let hook = bare.join("hooks/pre-receive");
    fs::create_dir_all(bare.join("hooks")).expect("mkdir");
    fs::write(&hook, "#!/bin/sh\necho 'this key may only read' >&2\nexit 1\n").expect("a hook");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).expect("its mode");
    let fleet = |more: &str| {
        let app = format!("[app.job]\nrepository = {bare:?}\nwaves = ['100%']\nbake = '0s'\n{more}");
        let text = format!("hosts = ['here']\n[host.here]\nlocal = true\n{app}");
        fs::write(desk.join("fleet.toml"), text).expect("the fleet file");
    };
    let ship = || deploy(&svd, &desk, None, &["deploy", "job"]);
    let tags =
        || (git(&bare, "git tag"), git(&svd.path("home"), "for dir in .cache/airdock/git/*; do git -C $dir tag; done"));
    fleet("");
    let (code, said) = ship();
    assert!(code == Some(1) && said.contains("this key may only read"), "{said}");
    assert!(said.contains("tag = false in the app's section of the fleet file"), "{said}");
    assert!(!root.join("current").exists(), "nothing was switched");
    fleet("tag = false\n");
    let (code, said) = ship();
    assert_eq!(code, Some(0), "{said}");
    assert!(fs::read_link(root.join("current")).expect("a link").to_string_lossy().starts_with("releases/deploy-"));
    assert_eq!(tags(), (String::new(), String::new()), "no tag was made");
    // It is tagged as soon as it may be.
    fs::remove_file(&hook).expect("unlink");
    fleet("tag = true\n");
    git(&svd.path("tree"), "echo two >file && git commit -q -a -m two && git push -q ../origin.git production");
    let (code, said) = ship();
    assert_eq!(code, Some(0), "{said}");
    let current = fs::read_link(root.join("current")).expect("a link");
    assert_eq!(tags().0.trim(), current.file_name().expect("a name").to_string_lossy());
}
