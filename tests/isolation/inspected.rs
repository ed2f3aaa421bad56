//! `svctl inspect` names what processes have otherwise than the file says, and nothing else.

use crate::support::plain::{is_root, needs_root, script};
use crate::support::svd::Svd;
use crate::support::{PATIENCE, wait_for, wait_until};
use serde_json::Value;
use std::process::{Child, Command, Stdio};

/// A parent and its child, which both do nothing.
const TWO: &str = "sleep 100001 & exec sleep 100000";

/// As it is when both run their program.
fn inspect(svd: &Svd) -> Value {
    wait_for("both processes", PATIENCE, || {
        let seen = svd.json(&["inspect", "web"]);
        let all = seen["processes"].as_array().expect("processes");
        (all.len() == 2 && all.iter().all(|p| p["command"][0] == "sleep")).then_some(seen)
    })
}

fn run(more: &str) -> Svd {
    let mut svd = Svd::new();
    svd.service("web", &script(TWO, more));
    svd.start();
    svd.wait_state("web", "running");
    svd
}

fn differences(seen: &Value) -> Vec<&str> {
    seen["differences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

#[track_caller]
fn tool(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("the tool");
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn nothing_differs_under_any_profile() {
    let users = if is_root() { &["", "user = 'nobody'\n", "user = 'auto'\n"][..] } else { &[""] };
    for user in users {
        for keys in ["", "[isolation]\n", "[isolation]\nprofile = 'standard'\n", "[isolation]\nprofile = 'strict'\n"] {
            if !is_root() && keys.contains("profile") {
                continue;
            }
            let svd = run(&format!("{user}{keys}[limits]\nnice = 3\nopen_files = 512\noom_score = 77\n"));
            let seen = inspect(&svd);
            assert!(seen["differs"] == false && differences(&seen).is_empty(), "{user}{keys}: {seen:#}");
            assert!(svd.ok(&["inspect", "web"]).contains("All that the file says is so."));
        }
    }
    if !is_root() {
        return;
    }
    for keys in ["capabilities = ['net_bind_service']", "network = 'loopback'\nbind = { '/mnt' = '/srv:ro' }"] {
        let svd = run(&format!("user = 'nobody'\n[isolation]\n{keys}\n"));
        let seen = inspect(&svd);
        assert!(differences(&seen).is_empty(), "{keys}: {seen:#}");
    }
}

#[test]
fn what_somebody_has_changed_is_named_process_by_process() {
    if needs_root() {
        return;
    }
    let svd = run("user = 'nobody'\n[isolation]\nprofile = 'strict'\n[limits]\nnice = 3\nopen_files = 512\n");
    let seen = inspect(&svd);
    assert!(differences(&seen).is_empty(), "{seen:#}");
    let pid = |n: usize| seen["processes"][n]["pid"].to_string();
    // As its own user: even root may need CAP_SYS_RESOURCE for others.
    let as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    tool(&[&as_nobody[..], &["prlimit", "--pid", &pid(1), "--nofile=100:200"]].concat());
    tool(&["renice", "-n", "9", "-p", &pid(0)]);
    let inside = |words: &[&str]| tool(&[&["nsenter", "-m", "-t", &pid(0)], words].concat());
    // What covers it, and what made that read-only.
    inside(&["sh", "-c", "while umount /home 2>/dev/null; do :; done"]);
    inside(&["mount", "-t", "tmpfs", "none", "/srv"]);
    let seen = inspect(&svd);
    let all = differences(&seen);
    let mut wanted = vec![
        format!("limits.nice: 9 (process {}), and the file says 3; its program has changed that by itself, or", pid(0)),
        format!("limits.open_files: 100, at most 200 (process {}), and the file says 512; the process that", pid(1)),
        format!("isolation.read_only: /srv can be written to (processes {}, {}), and the", pid(0), pid(1)),
    ];
    // Without anything there it was not covered.
    wanted.push(format!("isolation.hidden: /home is as on the host (processes {}, {})", pid(0), pid(1)));
    for sentence in &wanted {
        assert!(all.iter().any(|one| one.starts_with(sentence)), "{sentence} is not in {all:#?}");
    }
    assert_eq!((all.len(), &seen["differs"]), (wanted.len(), &true.into()), "{all:#?}");
    let said = svd.ok(&["inspect", "web"]);
    assert!(said.contains("Not as the file says:\n- ") && said.contains("- limits.nice: 9 (process"), "{said}");
}

/// Ends with it.
struct Stranger(Child);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_that_svd_has_not_shut_in_is_named() {
    if needs_root() {
        return;
    }
    let svd = run("user = 'nobody'\n[isolation]\nprofile = 'strict'\nnetwork = 'none'\n");
    let main = svd.main_pid("web");
    let groups = std::fs::read_to_string(format!("/proc/{main}/cgroup")).expect("its groups");
    let group = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let places = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|dir| format!("{dir}{group}/cgroup.procs"));
    let Some(place) = places.iter().find(|place| group != "/" && std::path::Path::new(place).exists()) else {
        println!("skipped: the service has no control group of version 2");
        return;
    };
    let stranger = Stranger(Command::new("sleep").arg("100002").stdin(Stdio::null()).spawn().expect("a process"));
    let pid = stranger.0.id();
    std::fs::write(place, pid.to_string()).expect("moving it there");
    let seen = svd.json(&["inspect", "web"]);
    let all = differences(&seen);
    for what in
        ["user", "isolation.capabilities", "isolation.no_new_privileges", "isolation.syscalls", "namespaces of its own"]
    {
        let begin = format!("{what}: ");
        let found = all.iter().find(|one| one.starts_with(&begin) && one.contains(&format!("(process {pid})")));
        assert!(found.is_some(), "{what} is not in {all:#?}");
    }
    drop(stranger);
    wait_until("it is gone", PATIENCE, || svd.json(&["inspect", "web"])["differs"] == false);
}

#[test]
fn what_the_file_says_since_is_named() {
    let mut svd = Svd::new();
    svd.service("web", &script(TWO, ""));
    svd.start();
    svd.wait_state("web", "running");
    // What it fails with is taken back.
    svd.service("web", &script("exit 3", "[environment]\nNEW = 'x'\n"));
    assert!(!svd.svctl(&["update"]).status.success());
    svd.wait_state("web", "running");
    let seen = inspect(&svd);
    let all = differences(&seen);
    for begin in ["command: ", "environment: "] {
        let found = all.iter().any(|one| one.starts_with(begin) && one.ends_with("a reload mends it."));
        assert!(found, "{begin} is not in {all:#?}");
    }
}
