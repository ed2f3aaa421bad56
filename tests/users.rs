//! Services with a user of their own (`user = "auto"`), and supplementary groups.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use serde_json::Value;
use std::fs;
use std::os::unix::fs::MetadataExt;
use support::plain::{give_to_nobody, needs_root, script};
use support::svd::{Home, both};
use support::{PATIENCE, Svd, wait_for, wait_until};

/// Says who it is, and keeps something for itself.
const SHOWS: &str = "echo ids=$(id -u):$(id -g):$(id -G | tr ' ' ,) user=$USER:$LOGNAME home=$HOME; \
    echo precious > $HOME/own; chmod 600 $HOME/own; echo done; exec sleep 100000";

fn uid(svd: &Svd, name: &str) -> u64 {
    svd.wait_state(name, "running");
    let status = svd.status(name);
    status["user"]["uid"].as_u64().unwrap_or_else(|| panic!("no user: {status:#}"))
}

/// `ids=…` of the last start.
fn said(svd: &Svd, name: &str, starts: usize) -> String {
    wait_for("it has said who it is", PATIENCE, || {
        let output = svd.output(name);
        let done = output.lines().filter(|line| *line == "done").count() >= starts;
        done.then(|| output.lines().rfind(|line| line.starts_with("ids=")).unwrap_or_default().to_owned())
    })
}

#[test]
fn an_own_user_is_nobody_elses_and_stays() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let auto = script(SHOWS, "user = 'auto'\ngroups = ['4242', 'daemon']\n[stop]\ngrace = '1s'");
    svd.service("one", &auto);
    svd.service("two", &script(SHOWS, "user = 'auto'\n[stop]\ngrace = '1s'"));
    svd.start();
    let (one, two) = (uid(&svd, "one"), uid(&svd, "two"));
    assert!(one != two && [one, two].iter().all(|id| (70_000..80_000).contains(id)), "{one} {two}");
    let home = svd.path("state/homes/one");
    let line = said(&svd, "one", 1);
    assert_eq!(line, format!("ids={one}:{one}:{one},1,4242 user=airdock-one:airdock-one home={}", home.display()));
    let text = svd.ok(&["status", "one"]);
    assert!(text.contains(&format!("airdock-one ({one})")), "{text}");
    let meta = fs::metadata(&home).expect("its home");
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (one as u32, one as u32, 0o700));

    // What is the one's is not the other's: a hostile program there, and the same here.
    let steal = |name: &str| {
        let path = home.join("own").display().to_string();
        both(&svd.svctl(&["exec", name, "--", "cat", &path]))
    };
    assert!(steal("two").contains("Permission denied") && !steal("two").contains("precious"), "{}", steal("two"));
    assert!(steal("one").contains("precious"), "{}", steal("one"));

    // A reload, the death of everybody, and a removal in between.
    svd.ok(&["reload", "one"]);
    assert!(said(&svd, "one", 2).starts_with(&format!("ids={one}:")));
    svd.kill_both();
    svd.start();
    assert_eq!((uid(&svd, "one"), uid(&svd, "two")), (one, two));
    svd.ok(&["restart", "one"]);
    assert!(said(&svd, "one", 3).starts_with(&format!("ids={one}:")));
    svd.remove_service("one");
    svd.ok(&["update"]);
    svd.service("three", &script(SHOWS, "user = 'auto'\n[stop]\ngrace = '1s'"));
    svd.ok(&["update"]);
    assert!(![one, two].contains(&uid(&svd, "three")));
    svd.service("one", &auto);
    svd.ok(&["update"]);
    assert_eq!(uid(&svd, "one"), one);
    assert!(said(&svd, "one", 4).starts_with(&format!("ids={one}:")));
    let table: Value =
        serde_json::from_slice(&fs::read(svd.path("state/users.json")).expect("the table")).expect("JSON");
    assert_eq!(table["ids"].as_object().map(serde_json::Map::len), Some(3), "{table}");
    svd.stop();
}

#[test]
fn groups_come_beside_those_of_the_user() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    svd.service("job", &script("echo groups=$(id -G); exec sleep 100000", "user = 'nobody'\ngroups = ['4242']"));
    svd.service("none", &script("echo groups=$(id -G); exec sleep 100000", "user = 'nobody'"));
    svd.service("roots", &script("echo uid=$(id -u) groups=$(id -G); exec sleep 100000", "groups = ['4242']"));
    svd.service("wrong", &script("exec sleep 100000", "groups = ['no-such-group']"));
    svd.start();
    for (name, line) in [("job", "groups=65534 4242"), ("none", "groups=65534"), ("roots", "uid=0 groups=0 4242")] {
        wait_until(line, PATIENCE, || svd.output(name).lines().any(|said| said == line));
    }
    wait_until("it is refused", PATIENCE, || {
        both(&svd.svctl(&["status", "wrong"])).contains("no group \"no-such-group\"")
    });
    svd.stop();
}

#[test]
fn a_plain_users_svd_gives_no_users() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    svd.home = Home::PlainUser;
    svd.service("one", &script(SHOWS, "user = 'auto'\nautostart = false"));
    give_to_nobody(&svd);
    svd.start();
    let why = svd.fails(&["start", "one"]);
    assert!(why.contains("needs an svd that root runs"), "{why}");
    svd.stop();
}
