//! What each process gets by itself, on every host.

use super::support::plain::{SLEEP, give_to_nobody, needs_root, script};
use super::support::svd::{Home, both};
use super::support::{PATIENCE, Svd, wait_until};
use super::{attempt, outcome};
use std::fs;

/// The attempt, the keys that forbid it, and what the kernel says then.
const CASES: [(&str, &str, &str); 14] = [
    ("open_files", "open_files = 64", "Too many open files"),
    ("core", "core = 0", ""),
    ("file_size", "file_size = '64KiB'", "File too large"),
    ("stack", "stack = '8MiB'", ""),
    ("memory", "address_space = '256MiB'", "Cannot allocate memory"),
    ("memory", "data = '64MiB'", "Cannot allocate memory"),
    ("locked_memory", "locked_memory = '16KiB'", "Cannot allocate memory"),
    ("message_queues", "message_queues = '1KiB'", "Too many open files"),
    ("cpu_time", "cpu_time = '1s'", "SIG"),
    ("pending_signals", "pending_signals = 8", "Resource temporarily unavailable"),
    ("user_processes", "user_processes = 120", "Resource temporarily unavailable"),
    ("nice", "nice = 7", "Permission denied"),
    ("oom_score", "oom_score = 300", "Permission denied"),
    ("realtime_priority", "realtime_priority = 0", "Operation not permitted"),
];

/// Root of a container may lack it.
fn has_sys_resource() -> bool {
    const BIT: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let set = status.lines().find_map(|l| l.strip_prefix("CapEff:")).expect("capabilities");
    u64::from_str_radix(set.trim(), 16).expect("a mask") & (1 << BIT) != 0
}

#[test]
fn what_a_process_may_not_have_it_does_not_get() {
    let mut svd = Svd::new();
    for (n, (what, limits, _)) in CASES.iter().enumerate() {
        svd.service(&format!("held-{n}"), &attempt(&svd, what, limits));
        svd.service(
            &format!("free-{n}"),
            &attempt(&svd, what, if *what == "realtime_priority" { "realtime_priority = 10" } else { "" }),
        );
    }
    svd.start();
    for (n, (what, limits, why)) in CASES.iter().enumerate() {
        if matches!(*what, "oom_score" | "realtime_priority") && !has_sys_resource() {
            println!("skipped: {what}: it needs root with CAP_SYS_RESOURCE to be given, and not to be taken back");
            continue;
        }
        let held = outcome(&svd, &format!("held-{n}"));
        assert!(held.starts_with("held") && held.contains(why), "{what} with {limits}: {held}");
        assert_eq!(outcome(&svd, &format!("free-{n}")), "broke out", "{what} without {limits}: the control");
    }
    svd.stop();
}

/// `NAME=value` of `/proc/self/limits` and its like, said by a shell.
const SAY: &str = "echo says files $(ulimit -n) hard $(ulimit -H -n) core $(ulimit -c) nice $(nice) score $(cat /proc/self/oom_score_adj) \
                   cpus $(grep Cpus_allowed_list /proc/self/status | cut -f2) io $(ionice 2>/dev/null)";
const LIMITS: &str =
    "[limits]\nopen_files = '77:99'\ncore = 0\nnice = 3\noom_score = 123\ncpus = '0'\nio = 'best-effort:6'\n";
const SAID: &str = "says files 77 hard 99 core 0 nice 3 score 123 cpus 0 io best-effort: prio 6";

#[test]
fn workers_checks_and_commands_have_the_same() {
    let mut svd = Svd::new();
    let check = svd.path("check");
    let more = format!(
        "[health]\ncommand = ['/bin/sh', '-c', '''({SAY}) > {}''']\ninterval = '1s'\n{LIMITS}",
        check.display()
    );
    svd.service("web", &script(&format!("{SAY}; {SLEEP}"), &more));
    svd.service("free", &script(&format!("{SAY}; {SLEEP}"), ""));
    svd.start();
    svd.wait_state("web", "running");
    wait_until("the worker has them", PATIENCE, || svd.output("web").contains(SAID));
    let text = || fs::read_to_string(&check).unwrap_or_default();
    wait_until("a check has them", PATIENCE, || text().trim() == SAID);
    assert_eq!(svd.ok(&["exec", "web", "--", "/bin/sh", "-c", SAY]).trim(), SAID);
    assert!(!svd.ok(&["exec", "free", "--", "/bin/sh", "-c", SAY]).contains(" nice 3"), "the control");
    svd.stop();
}

#[test]
fn who_may_not_raise_a_limit_is_told_which() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    svd.home = Home::PlainUser;
    svd.service("free", &script(SLEEP, "[limits]\nnice = 5\nopen_files = 64\n"));
    give_to_nobody(&svd);
    svd.start();
    svd.wait_state("free", "running");
    for (key, limit) in [
        ("nice", "nice = -5"),
        ("oom_score", "oom_score = -500"),
        ("io", "io = 'realtime:0'"),
        ("open_files", "open_files = 1000000000"),
    ] {
        svd.service("greedy", &script(SLEEP, &format!("[limits]\n{limit}\n")));
        let said = both(&svd.svctl(&["update"])) + &both(&svd.svctl(&["status", "greedy"]));
        assert!(said.contains(&format!("[limits] {key}")), "{limit}:\n{said}");
        svd.remove_service("greedy");
        svd.svctl(&["update"]);
    }
    svd.stop();
}
