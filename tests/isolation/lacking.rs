//! What a host lacks is told before anything is changed, and left out only where the file says that it may be.

use crate::support::plain::{SLEEP, needs_root, script};
use crate::support::svd::{Home, Svd, both};
use crate::support::{PATIENCE, wait_until};
use std::fs;

/// The keys of the profile that need a mount namespace or one of processes.
const VIEW: [&str; 5] = ["private_tmp", "read_only", "hidden", "private_devices", "private_pids"];

/// In a sentence.
const VIEW_SAID: &str = "private_tmp, read_only, hidden, private_devices and private_pids";

/// Where neither svd itself nor a user namespace has the rights.
fn forbidden() -> Option<Svd> {
    if needs_root() {
        return None;
    }
    let made = std::process::Command::new("unshare").args(["--user", "--map-root-user", "true"]).status();
    if !made.is_ok_and(|status| status.success()) {
        println!("skipped: no user namespace can be made here to forbid others in");
        return None;
    }
    let mut svd = Svd::new();
    svd.home = Home::Forbidden;
    Some(svd)
}

#[test]
fn keys_that_cannot_be_had_are_refused_and_nothing_is_changed() {
    let Some(mut svd) = forbidden() else { return };
    svd.service("web", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("web", "running");
    let main = svd.main_pid("web");
    let view = format!("{VIEW_SAID} need a user namespace");
    for (keys, needs) in [
        ("profile = 'strict'", view.as_str()),
        ("network = 'none'", "network needs a user namespace"),
        ("bind = { '/mnt' = '/srv' }", "bind needs a user namespace"),
        ("capabilities = ['chown']", "capabilities needs"),
    ] {
        svd.service("web", &script(SLEEP, &format!("[isolation]\n{keys}")));
        for said in [svd.fails(&["update"]), svd.fails(&["check", &svd.path("etc").display().to_string()])] {
            assert!(said.contains(&format!("web: [isolation] {needs}")), "{keys}:\n{said}");
            if keys != "capabilities = ['chown']" {
                assert!(said.contains("user.max_user_namespaces is 0 here: let root set it"), "{said}");
            }
        }
        assert_eq!(svd.main_pid("web"), main, "it was not touched");
    }
    // As at a boot of svd, and at a start.
    svd.stop();
    svd.start();
    wait_until("the reason is told", PATIENCE, || {
        both(&svd.svctl(&["status", "web"])).contains("[isolation] capabilities needs")
    });
    assert!(svd.fails(&["start", "web"]).contains("[isolation] capabilities needs"));
    svd.stop();
}

#[test]
fn what_may_be_lacking_is_left_out_and_said() {
    let Some(mut svd) = forbidden() else { return };
    svd.service("other", &script(SLEEP, ""));
    svd.start();
    let all_but_one = VIEW[1..].iter().map(|key| format!("'{key}'")).collect::<Vec<_>>().join(", ");
    let file = |optional: &str| script(SLEEP, &format!("[isolation]\nprofile = 'strict'\noptional = [{optional}]"));
    svd.service("web", &file(&all_but_one));
    let said = svd.fails(&["update"]);
    assert!(said.contains("web: [isolation] private_tmp needs a user namespace"), "{said}");
    svd.service("web", &file(&format!("'private_tmp', 'capabilities', {all_but_one}")));
    let said = svd.ok(&["update"]);
    let left = format!("left out, as [isolation] optional allows: [isolation] {VIEW_SAID} need");
    assert!(said.contains(&format!("web: {left}")), "{said}");
    svd.wait_state("web", "running");
    assert!(svd.said().contains(&format!("web: {left}")), "{}", svd.said());
    // The rest holds.
    let status = fs::read_to_string(format!("/proc/{}/status", svd.main_pid("web"))).expect("a status");
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    svd.stop();
}
