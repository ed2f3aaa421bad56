//! The guardian with real processes. This program plays the tests and, executed by them, svd and its guardian.
//!
//! Arguments: parts of the names of tests to run. No test harness, as a thread more would forbid to fork.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "forbidden in the core alone")]

#[path = "../support/mod.rs"]
mod support;
mod svd;
mod world;

use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use airdock::sys::process::{ExitStatus, PidFd, ProcStat, start_time};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use support::{PATIENCE, wait_for, wait_until};
use world::{World, ended};

const TESTS: &[(&str, fn())] = &[
    ("a_killed_svd_comes_back_with_everything", a_killed_svd_comes_back_with_everything),
    ("statuses_are_told_until_they_are_acknowledged", statuses_are_told_until_they_are_acknowledged),
    ("what_ended_with_svd_is_told_too", what_ended_with_svd_is_told_too),
    ("a_careless_starter", a_careless_starter),
    ("names_are_replaced_and_removed", names_are_replaced_and_removed),
    ("thousands_of_descriptors_come_back", thousands_of_descriptors_come_back),
    ("a_svd_that_does_not_read_holds_nobody_up", a_svd_that_does_not_read_holds_nobody_up),
    ("what_svd_said_last_counts", what_svd_said_last_counts),
    ("restarts_keep_to_their_backoff", restarts_keep_to_their_backoff),
    ("signals_are_passed_on", signals_are_passed_on),
    ("an_update_that_nobody_heard_is_not_forgotten", an_update_that_nobody_heard_is_not_forgotten),
    ("an_end_that_nobody_heard_is_not_forgotten", an_end_that_nobody_heard_is_not_forgotten),
    ("an_end_that_nobody_will_hear", an_end_that_nobody_will_hear),
    ("a_newer_file_that_does_not_work_is_taken_back", a_newer_file_that_does_not_work_is_taken_back),
    ("another_image_in_the_same_process_is_told_everything", another_image_in_the_same_process_is_told_everything),
    ("svd_becomes_its_own_guardian", svd_becomes_its_own_guardian),
    ("the_guardian_is_small_and_sleeps", the_guardian_is_small_and_sleeps),
];

fn main() -> ExitCode {
    if let Some(control) = std::env::var_os(svd::CONTROL) {
        svd::run(control.into());
    }
    // What a dead guardian leaves comes to us.
    airdock::sys::process::set_child_subreaper().expect("a sub-reaper");
    // As a login has it; a guardian raises its own.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, 1024.min(hard), hard).expect("set");
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let (mut passed, mut failed, mut others) = (0, 0, 0);
    for (name, test) in TESTS {
        if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part.as_str())) {
            others += 1;
            continue;
        }
        let ok = std::panic::catch_unwind(test).is_ok();
        let left = world::clean();
        if ok && left.is_empty() {
            passed += 1;
            println!("test {name} ... ok");
        } else {
            failed += 1;
            println!("test {name} ... FAILED; processes left behind: {left:?}");
        }
    }
    let result = if failed == 0 { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {others} filtered out\n"
    );
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn comm(pid: i32) -> String {
    ProcStat::read(pid).expect("it lives").comm
}

fn a_killed_svd_comes_back_with_everything() {
    let world = World::new();
    let mut first = world.svd();
    assert_eq!(first.hello.parent, world.guardian.pid(), "the starter's child is the guardian");
    assert_eq!(comm(first.hello.parent), "svd-guardian");
    let open = || std::fs::read_dir(format!("/proc/{}/fd", world.guardian.pid())).expect("it lives").count();
    // The standard ones, its signals, the executable, and the way to svd.
    wait_until("it holds nothing of svd's", PATIENCE, || open() == 6);
    assert!(first.hello.kept.is_empty() && first.hello.exits.is_empty() && first.hello.forget);
    let file = world.file("a");
    first.ok(&format!("store a {file}"));
    let cookie = first.tell("listen socket");
    let was = std::mem::take(&mut first.hello.arguments);
    let (pid, open_files, blocked) = (first.hello.pid, first.hello.open_files, first.hello.blocked.clone());
    let killed = Instant::now();
    first.kill();
    let mut second = world.svd();
    let after = killed.elapsed();
    assert!(after < Duration::from_secs(1), "back after {after:?}");
    let hello = &second.hello;
    assert_ne!(hello.pid, pid);
    assert_eq!((hello.parent, &*hello.comm), (world.guardian.pid(), "svd"));
    assert_eq!(hello.kept["a"], std::fs::metadata(&file).expect("stat").ino());
    assert_eq!(hello.arguments, was, "as the operator typed them");
    assert_eq!((hello.deaths, hello.last_death), (1, Some(ExitStatus::Signal { signal: 9, core_dumped: false })));
    assert!(!hello.forget && hello.environment.is_empty(), "{hello:?}");
    assert_eq!((hello.open_files, &hello.blocked), (open_files, &blocked));
    assert_eq!(hello.directory, world.path());
    assert_eq!(second.tell("cookie socket"), cookie, "the same socket");
    assert_eq!(open(), 8);
    second.ok("ready");
    second.end(5);
    assert_eq!(world.ended(), ExitStatus::Code(5));
}

fn statuses_are_told_until_they_are_acknowledged() {
    let world = World::new();
    let mut svd = world.svd();
    let fifo = world.fifo("fifo");
    let pid: i32 = svd.tell(&format!("child {} 7", fifo.0.display())).parse().expect("a pid");
    let began = start_time(pid).expect("it lives");
    svd.kill();
    let mut second = world.svd();
    second.ok("ready");
    assert_eq!(second.hello.exits, []);
    assert_eq!(
        ProcStat::read(pid).map(|stat| stat.parent),
        Some(world.guardian.pid()),
        "an orphan comes to the guardian"
    );
    fifo.open();
    let exits = second.exits();
    assert_eq!(exits.len(), 1);
    assert_eq!((exits[0].pid, exits[0].start_time, exits[0].status), (pid, began, ExitStatus::Code(7)));
    second.kill();
    let third = world.svd();
    assert_eq!(third.hello.exits, exits, "it was not recorded");
    third.kill();
    let mut fourth = world.svd();
    assert_eq!(fourth.hello.exits, exits);
    fourth.ok("acknowledge");
    fourth.kill();
    let fifth = world.svd();
    assert_eq!(fifth.hello.exits, []);
    fifth.end(0);
    assert_eq!(world.ended(), ExitStatus::Code(0));
}

fn what_ended_with_svd_is_told_too() {
    let world = World::new();
    let mut svd = world.svd();
    let fifo = world.fifo("fifo");
    let pid: i32 = svd.tell(&format!("child {} 9", fifo.0.display())).parse().expect("a pid");
    // svd leaves it unreaped, as it does whatever ends in its last moment.
    fifo.open();
    wait_until("the child ends", PATIENCE, || ProcStat::read(pid).is_some_and(|stat| stat.state == 'Z'));
    svd.kill();
    let svd = world.svd();
    let exits: Vec<_> = svd.hello.exits.iter().map(|e| (e.pid, e.status)).collect();
    assert_eq!(exits, [(pid, ExitStatus::Code(9))]);
    svd.end(0);
    world.ended();
}

fn a_careless_starter() {
    let world = World::below(&["env", "--ignore-signal=SIGCHLD,SIGHUP"]);
    let mut svd = world.svd();
    svd.ok("orphans 1");
    assert_eq!(svd.exits()[0].status, ExitStatus::Code(4));
    svd.kill();
    let svd = world.svd();
    assert_eq!(svd.hello.exits.len(), 1);
    svd.end(3);
    assert_eq!(world.ended(), ExitStatus::Code(3));
}

fn names_are_replaced_and_removed() {
    let world = World::new();
    let mut svd = world.svd();
    let (one, two) = (world.file("one"), world.file("two"));
    let long = "n".repeat(airdock::daemon::guardian::NAME_MAX);
    for command in [
        format!("store a {one}"),
        format!("store b {one}"),
        format!("store a {two}"),
        format!("store {long} {one}"),
        "remove b".into(),
        "remove never-there".into(),
    ] {
        svd.ok(&command);
    }
    svd.kill();
    let svd = world.svd();
    let inode = |path| std::fs::metadata(path).expect("stat").ino();
    let kept: Vec<_> = svd.hello.kept.iter().map(|(name, inode)| (name.as_str(), *inode)).collect();
    assert_eq!(kept, [("a", inode(&two)), (&*long, inode(&one))]);
    svd.end(0);
    world.ended();
}

fn thousands_of_descriptors_come_back() {
    const COUNT: u32 = 3000;
    let world = World::new();
    let mut svd = world.svd();
    svd.ok(&format!("many {COUNT}"));
    svd.kill();
    let mut svd = world.svd();
    assert_eq!(svd.hello.kept.len(), COUNT as usize);
    assert_eq!(svd.tell("sum"), (COUNT * (COUNT + 1) / 2).to_string());
    svd.end(0);
    world.ended();
}

fn a_svd_that_does_not_read_holds_nobody_up() {
    const ORPHANS: usize = 1500;
    let world = World::new();
    let mut svd = world.svd();
    svd.ok(&format!("orphans {ORPHANS}"));
    let guardian = world.guardian.pid();
    wait_until("all are reaped", PATIENCE, || airdock::sys::process::descendants(guardian) == [svd.hello.pid]);
    // The socket towards svd is full, and the guardian goes on.
    world.signal(Signal::SIGHUP);
    assert_eq!(svd.tell("signal"), format!("Hangup {guardian}"));
    let file = world.file("late");
    svd.ok(&format!("store late {file}"));
    svd.kill();
    let mut svd = world.svd();
    assert!(svd.hello.kept.contains_key("late"), "what it said last is read, though it left much unread");
    assert_eq!(svd.hello.exits.len(), ORPHANS);
    assert!(svd.hello.exits.iter().all(|e| e.status == ExitStatus::Code(4)));
    svd.ok("acknowledge");
    svd.ok("orphans 3");
    let mut count = 0;
    while count < 3 {
        count += svd.exits().len();
    }
    assert_eq!(count, 3);
    svd.end(0);
    world.ended();
}

fn what_svd_said_last_counts() {
    let world = World::new();
    let mut svd = world.svd();
    // More than the guardian reads in one go, and a reset by what svd has not read, before it has looked at either.
    svd.ok("orphans 5");
    let guardian = world.guardian.pid();
    wait_until("all are reaped", PATIENCE, || airdock::sys::process::descendants(guardian) == [svd.hello.pid]);
    world.signal(Signal::SIGSTOP);
    svd.ok("words 150");
    let file = world.file("late");
    svd.ok(&format!("store late {file}"));
    svd.kill();
    world.signal(Signal::SIGCONT);
    let mut svd = world.svd();
    assert!(svd.hello.kept.contains_key("late"));
    assert_eq!(svd.hello.exits.len(), 5);
    world.signal(Signal::SIGSTOP);
    svd.ok("words 150");
    // Told, and gone before the guardian knew.
    let pid = PidFd::open(svd.hello.pid).expect("it lives");
    svd.end(6);
    wait_until("svd is gone", PATIENCE, || pid.has_ended());
    world.signal(Signal::SIGCONT);
    assert_eq!(world.ended(), ExitStatus::Code(6));
}

fn starts(world: &World) -> Vec<u64> {
    let text = std::fs::read_to_string(world.path().join("starts")).unwrap_or_default();
    text.lines().map(|line| line.parse().expect("a time")).collect()
}

fn restarts_keep_to_their_backoff() {
    let world = World::new();
    let svd = world.svd();
    let dies = world.file("dies");
    svd.kill();
    let found = wait_for("five starts", PATIENCE, || Some(starts(&world)).filter(|found| found.len() >= 5));
    std::fs::remove_file(dies).expect("removed");
    // The first one came at once; from then on svd was never up.
    for (gap, at_least) in found.windows(2).map(|pair| (pair[1] - pair[0]) / 1000).zip([100, 200, 400, 800]) {
        assert!((at_least..at_least + 3000).contains(&gap), "{gap} ms instead of {at_least}");
    }
    let svd = world.svd();
    assert_eq!(svd.hello.last_death, Some(ExitStatus::Code(3)));
    assert!(svd.hello.deaths >= 6);
    svd.end(0);
    world.ended();
}

fn signals_are_passed_on() {
    let world = World::new();
    let mut svd = world.svd();
    svd.ok("ready");
    let guardian = world.guardian.pid();
    for (signal, name) in [
        (Signal::SIGHUP, "Hangup"),
        (Signal::SIGUSR1, "User1"),
        (Signal::SIGUSR2, "User2"),
        (Signal::SIGINT, "Interrupt"),
        (Signal::SIGQUIT, "Quit"),
        (Signal::SIGTERM, "Terminate"),
    ] {
        world.signal(signal);
        assert_eq!(svd.tell("signal"), format!("{name} {guardian}"));
    }
    // It was told to end, and dies before it has.
    svd.kill();
    let mut svd = world.svd();
    svd.ok("ready");
    assert_eq!(svd.tell("signal"), format!("Terminate {guardian}"));
    svd.end(0);
    assert_eq!(world.ended(), ExitStatus::Code(0));
}

fn an_update_that_nobody_heard_is_not_forgotten() {
    let world = World::new();
    let svd = world.svd();
    world.signal(Signal::SIGSTOP);
    let pid = PidFd::open(svd.hello.pid).expect("it lives");
    svd.kill();
    wait_until("svd is gone", PATIENCE, || pid.has_ended());
    // Before the guardian knows that there is no svd.
    world.signal(Signal::SIGHUP);
    world.signal(Signal::SIGCONT);
    let mut svd = world.svd();
    svd.ok("ready");
    assert_eq!(svd.tell("signal"), format!("Hangup {}", world.guardian.pid()));
    // Once.
    svd.kill();
    let mut svd = world.svd();
    svd.ok("ready");
    world.signal(Signal::SIGUSR1);
    assert_eq!(svd.tell("signal"), format!("User1 {}", world.guardian.pid()));
    svd.end(0);
    assert_eq!(world.ended(), ExitStatus::Code(0));
}

fn an_end_that_nobody_heard_is_not_forgotten() {
    let world = World::new();
    let svd = world.svd();
    let dies = world.file("dies");
    svd.kill();
    wait_until("svd dies again and again", PATIENCE, || starts(&world).len() >= 4);
    // It waits 400 ms or more now.
    world.signal(Signal::SIGTERM);
    std::fs::remove_file(dies).expect("removed");
    let mut svd = world.svd();
    svd.ok("ready");
    assert_eq!(svd.tell("signal"), format!("Terminate {}", world.guardian.pid()));
    svd.end(0);
    assert_eq!(world.ended(), ExitStatus::Code(0));
}

fn an_end_that_nobody_will_hear() {
    let world = World::new();
    let svd = world.svd();
    world.file("dies");
    svd.kill();
    wait_until("svd dies", PATIENCE, || !starts(&world).is_empty());
    world.signal(Signal::SIGTERM);
    assert_eq!(world.ended(), ExitStatus::Code(1));
}

fn a_newer_file_that_does_not_work_is_taken_back() {
    let world = World::new();
    let mut svd = world.svd();
    svd.ok("ready");
    svd.ok("executable /bin/false");
    svd.kill();
    let svd = world.svd();
    let why = svd.hello.fallback.as_deref().unwrap_or_default();
    assert!(why.contains("/false exited with 1 before it was up, twice; svd runs from "), "{why:?}");
    assert_eq!(svd.hello.deaths, 3);
    // Told until an svd is up.
    svd.kill();
    let mut svd = world.svd();
    assert!(svd.hello.fallback.is_some());
    svd.ok("ready");
    svd.kill();
    let svd = world.svd();
    assert_eq!(svd.hello.fallback, None);
    svd.end(0);
    world.ended();
}

fn another_image_in_the_same_process_is_told_everything() {
    let world = World::new();
    let mut svd = world.svd();
    svd.ok("ready");
    let file = world.file("a");
    svd.ok(&format!("store a {file}"));
    svd.ok("orphans 2");
    let mut told = 0;
    while told < 2 {
        told += svd.exits().len();
    }
    let pid = svd.hello.pid;
    svd.begin("exec");
    let mut svd = world.svd();
    assert_eq!((svd.hello.pid, svd.hello.parent), (pid, world.guardian.pid()));
    assert_eq!(svd.hello.kept.keys().collect::<Vec<_>>(), ["a"]);
    assert_eq!(svd.hello.exits.len(), 2);
    assert_eq!(svd.hello.deaths, 0);
    svd.ok("ready");
    svd.kill();
    let svd = world.svd();
    assert!(svd.hello.kept.contains_key("a"));
    svd.end(0);
    world.ended();
}

/// Descriptors of this process that an exec would not close, but for the standard ones.
fn inheritable(pid: i32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("it lives");
    let open = |name: &String| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{name}")).unwrap_or_default();
        let flags = text.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or("02000000").trim().to_owned();
        u32::from_str_radix(&flags, 8).expect("octal") & libc::O_CLOEXEC as u32 == 0
    };
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("a number"));
    names.filter(|name| !["0", "1", "2"].contains(&name.as_str())).filter(open).collect()
}

fn svd_becomes_its_own_guardian() {
    let world = World::new();
    let mut svd = world.svd();
    svd.ok("ready");
    let file = world.file("a");
    svd.ok(&format!("store a {file}"));
    svd.ok(&format!("store b {file}"));
    let (fifo, own) = (world.fifo("fifo"), world.fifo("own"));
    let orphan: i32 = svd.tell(&format!("child {} 6", fifo.0.display())).parse().expect("a pid");
    svd.kill();
    let mut svd = world.svd();
    let worker: i32 = svd.tell(&format!("child {} 7", own.0.display())).parse().expect("a pid");
    let pid = svd.hello.pid;
    world.signal(Signal::SIGKILL);
    svd.ok("lost");
    assert_eq!(ended(&world.guardian), ExitStatus::Signal { signal: 9, core_dumped: false });
    // It comes while nobody is there to hear it.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).expect("sent");
    svd.begin("become");
    let mut next = world.svd();
    assert_eq!(next.hello.parent, pid, "the workers' parent is the guardian now");
    assert_eq!((&*comm(pid), &*next.hello.comm), ("svd-guardian", "svd"));
    let inode = std::fs::metadata(&file).expect("stat").ino();
    assert_eq!(next.hello.kept.values().collect::<Vec<_>>(), [&inode, &inode]);
    assert_eq!(next.hello.exits.iter().map(|e| e.pid).collect::<Vec<_>>(), [1], "handed over");
    assert!(next.hello.environment.is_empty());
    for process in [pid, next.hello.pid] {
        assert_eq!(inheritable(process), [""; 0]);
    }
    next.ok("ready");
    assert_eq!(ProcStat::read(worker).map(|stat| stat.parent), Some(pid));
    own.open();
    let exits = next.exits();
    assert_eq!(exits.iter().map(|e| (e.pid, e.status)).collect::<Vec<_>>(), [(worker, ExitStatus::Code(7))]);
    let guardian = PidFd::open(pid).expect("our child by now");
    assert_eq!(next.tell("signal"), format!("Terminate {pid}"));
    // It does what the first one did.
    next.kill();
    let next = world.svd();
    assert_eq!((next.hello.parent, next.hello.deaths, next.hello.kept.len()), (pid, 1, 2));
    next.end(4);
    assert_eq!(ended(&guardian), ExitStatus::Code(4));
    // What was the first guardian's is nobody's child of these two.
    fifo.open();
    wait_until("the orphan ends", PATIENCE, || airdock::sys::process::reap(orphan).is_ok_and(|s| s.is_some()));
}

fn the_guardian_is_small_and_sleeps() {
    let world = World::new();
    let mut svd = world.svd();
    svd.ok("ready");
    svd.kill();
    let mut svd = world.svd();
    svd.ok("ready");
    let pid = world.guardian.pid();
    wait_until("it sleeps", PATIENCE, || ProcStat::read(pid).is_some_and(|stat| stat.state == 'S'));
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it lives");
    let sum: u64 = text
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    println!("{sum} kB of its own, {} kB as its share", airdock::sys::process::pss(pid).unwrap_or(0) / 1024);
    // This program has more constants to relocate than svd, and no optimization.
    assert!(sum < 2048, "{sum} kB");
    let switches = |pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
        let line = text.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:")).expect("a count");
        line.trim().parse::<u64>().expect("a number")
    };
    let before = switches(pid);
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(switches(pid), before, "it wakes for nothing");
    svd.end(0);
    world.ended();
}
