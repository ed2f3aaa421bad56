//! Who may what, with real users and groups on the control socket: svd runs in a mount namespace that has its own
//! `/etc/passwd` and `/etc/group`, and svctl as the users that these have.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use support::plain::{SLEEP, needs_root, script};
use support::svd::both;
use support::{PATIENCE, Svd, run_limited, wait_until};

/// uid and primary gid. Numbers that no machine has given out.
#[derive(Clone, Copy)]
struct User(u32, u32);

/// In the group deploy by `/etc/group`.
const ANN: User = User(61_001, 62_001);
/// deploy is her primary group.
const BEA: User = User(61_002, 62_000);
/// In no group that a rule names.
const CAT: User = User(61_003, 62_003);
/// Not in `/etc/passwd` at all, and in a group that a rule names by its number.
const DOT: User = User(61_004, 62_100);

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n\
    ann:x:61001:62001::/:/bin/sh\nbea:x:61002:62000::/:/bin/sh\ncat:x:61003:62003::/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnogroup:x:65534:\ndeploy:x:62000:ann\nann:x:62001:\ncat:x:62003:\n";

const RULES: &str = "[[access]]\ngroups = ['deploy']\nverbs = ['status', 'restart']\nservices = ['web-*']\n\
    [[access]]\ngroups = ['62100']\nverbs = ['status']\nservices = ['db']\n";

/// An svd with `web-1` and `db`; `None` where the test cannot run.
fn start(more: &str) -> Option<Svd> {
    let mut svd = Svd::new();
    if needs_root() || !can_run(&svd) {
        return None;
    }
    svd.config(&format!("{RULES}{more}"));
    svd.service("web-1", &script(SLEEP, ""));
    svd.service("db", &script(SLEEP, ""));
    fs::write(svd.path("passwd"), PASSWD).expect("a file");
    fs::write(svd.path("group"), GROUP).expect("a file");
    let plain = svd.command();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c"]);
    command.arg("mount --bind \"$0\" /etc/passwd && mount --bind \"$1\" /etc/group && shift && exec \"$@\"");
    command.arg(svd.path("passwd")).arg(svd.path("group")).arg(plain.get_program()).args(plain.get_args());
    svd.start_with(command);
    for name in ["web-1", "db"] {
        svd.wait_state(name, "running");
    }
    Some(svd)
}

/// Strangers must be able to execute the program, wherever it was built.
fn can_run(svd: &Svd) -> bool {
    let can = by(svd, CAT, &["--version"]).output().is_ok_and(|o| o.status.success());
    if !can {
        assert!(std::env::var_os("AIRDOCK_TEST_ALL").is_none(), "other users must reach the program");
        eprintln!("SKIPPED: other users cannot reach the program");
    }
    can
}

fn by(svd: &Svd, user: User, args: &[&str]) -> Command {
    let mut command = svd.svctl_command(args);
    command.uid(user.0).gid(user.1);
    command
}

fn as_user(svd: &Svd, user: User, args: &[&str]) -> Output {
    run_limited(by(svd, user, args), PATIENCE)
}

#[test]
fn rules_by_group_hold_for_members_and_for_nobody_else() {
    let Some(svd) = start("") else { return };
    let code = |user, args: &[&str]| as_user(&svd, user, args).status.code();
    for member in [ANN, BEA] {
        assert_eq!(code(member, &["status", "web-1"]), Some(0));
        assert_eq!(code(member, &["restart", "web-1"]), Some(0));
        for refused in [&["stop", "web-1"][..], &["restart", "db"], &["logs", "web-1"], &["update"], &["shutdown"]] {
            assert_eq!(code(member, refused), Some(5), "{refused:?}");
        }
        let list = as_user(&svd, member, &["--json", "status"]);
        assert!(both(&list).contains("web-1") && !both(&list).contains("\"db\""), "{}", both(&list));
    }
    // By number, also where the system knows neither the user nor the group.
    assert_eq!((code(DOT, &["status", "db"]), code(DOT, &["restart", "db"])), (Some(0), Some(5)));
    assert_eq!(code(DOT, &["restart", "web-1"]), Some(5));
    // For status, what may not be seen is unknown.
    for (args, code) in [(["status", "web-1"], 4), (["restart", "web-1"], 5), (["status", "db"], 4)] {
        let said = as_user(&svd, CAT, &args);
        assert_eq!(said.status.code(), Some(code), "{args:?}: {}", both(&said));
        assert!(both(&said).contains("cat may not"), "{}", both(&said));
    }
    assert_eq!(code(CAT, &["version"]), Some(0), "that is anybody's");
    let journal = fs::read_to_string(svd.path("state/audit.log")).expect("the journal");
    for (user, outcome) in [("ann", "done"), ("bea", "done"), ("cat", "refused")] {
        let found =
            journal.lines().any(|l| ["restart", user, outcome].iter().all(|word| l.contains(&format!("\"{word}\""))));
        assert!(found, "{user} {outcome}:\n{journal}");
    }
}

/// A connection that is at work, and has been answered its first line.
struct Busy(Child);

impl Busy {
    fn new(svd: &Svd, user: User) -> Busy {
        let mut child = by(svd, user, &["events", "-f"]).stdout(Stdio::piped()).spawn().expect("starting svctl");
        let mut line = String::new();
        let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
        reader.read_line(&mut line).expect("an event");
        assert!(!line.is_empty(), "it got no event");
        // Kept open, so that it goes on.
        std::thread::spawn(move || reader.lines().for_each(drop));
        Busy(child)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_user_at_the_limit_of_connections_hinders_nobody_else() {
    let Some(svd) = start("[control]\nconnections_per_user = 2\n") else { return };
    let busy = [Busy::new(&svd, ANN), Busy::new(&svd, ANN)];
    let refused = as_user(&svd, ANN, &["status", "web-1"]);
    assert!(!refused.status.success(), "{}", both(&refused));
    assert!(both(&refused).contains("Too many connections are open at once"), "{}", both(&refused));
    // Another user of the same group, and root.
    assert_eq!(as_user(&svd, BEA, &["status", "web-1"]).status.code(), Some(0));
    svd.ok(&["status"]);
    let (_, metrics) = support::http_get(svd.public, "/metrics").expect("metrics");
    let count = metrics.lines().find_map(|l| l.strip_prefix("airdock_svd_connections_refused_total "));
    assert!(count.is_some_and(|n| n.trim() != "0"), "{metrics}");
    drop(busy);
    wait_until("ann may come again", PATIENCE, || as_user(&svd, ANN, &["status", "web-1"]).status.success());
}

/// Programs that connect and ask nothing do not even lock out their own user.
#[test]
fn idle_connections_give_way() {
    let Some(svd) = start("[control]\nconnections_per_user = 2\n") else { return };
    let program = "import socket, sys, time\nheld = []\nfor n in range(20):\n    s = socket.socket(socket.AF_UNIX)\n    \
        s.connect(sys.argv[1])\n    held.append(s)\nprint('held', flush=True)\ntime.sleep(1000)\n";
    let mut python = Command::new("/usr/bin/python3");
    python.arg("-c").arg(program).arg(svd.socket()).uid(ANN.0).gid(ANN.1).stdout(Stdio::piped());
    let mut child = python.spawn().expect("starting python");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let _held = Busy(child);
    assert_eq!(line.trim(), "held");
    for user in [ANN, BEA] {
        let output = as_user(&svd, user, &["status", "web-1"]);
        assert!(output.status.success(), "{}", both(&output));
    }
}
