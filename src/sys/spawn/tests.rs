//! Real children; each test ends those it started.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::sys::process::ExitStatus;

const WAYS: [Way; 4] = [Way::Lent, Way::Clone3IntoCgroup, Way::Clone3, Way::Clone];

fn shell(script: &str) -> Prepared {
    let argv = ["sh", "-c", script].map(|s| c_string(s).expect("no NUL"));
    let mut prepared = Prepared::new(c"/bin/sh".into(), argv.into());
    prepared.environment = vec![c"PATH=/usr/bin:/bin".into()];
    prepared
}

/// Adds a pipe as descriptor 1; gives its reading end.
fn captured(prepared: &mut Prepared) -> File {
    let (reader, writer) = crate::sys::fifo::pipe().expect("pipe");
    prepared.descriptors.push(Wire { source: Source::Fd(Arc::new(writer)), target: 1 });
    File::from(reader)
}

fn output_of(mut prepared: Prepared, spawner: &Spawner) -> (String, ExitStatus) {
    let mut reader = captured(&mut prepared);
    let child = spawner.spawn(&prepared, None).expect("spawn");
    drop(prepared);
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("output");
    let status = child.pidfd.wait().expect("our child");
    if let Some(failure) = child.slot.exec_failure() {
        panic!("{failure}");
    }
    (text, status)
}

fn failure_of(prepared: &Prepared) -> String {
    let child = Spawner::new().spawn(prepared, None).expect("spawn");
    assert_eq!(child.pidfd.wait(), Ok(ExitStatus::Code(127)));
    let failure = exec_failure(&child.slot).expect("a step failed");
    failure.describe(prepared)
}

#[test]
fn every_way_of_forking_starts_programs() {
    for way in WAYS {
        let spawner = Spawner::with_way(way);
        let (text, status) = output_of(shell("echo hello; exit 3"), &spawner);
        assert_eq!((text.as_str(), status), ("hello\n", ExitStatus::Code(3)));
        assert_eq!(spawner.way(), way, "no fall-back on this kernel");
    }
}

/// A child that hangs before its program, in `open(2)` of a pipe that nobody writes to, costs an arena, and delays nobody.
#[test]
fn children_that_hang_on_their_way_hold_up_no_others() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("pipe");
    crate::sys::fifo::create(&path, None).expect("a pipe");
    let spawner = Spawner::new();
    let mut hanging = shell("exit 5");
    let source = Source::Path { path: c_path(&path).expect("no NUL"), flags: libc::O_RDONLY };
    hanging.descriptors.push(Wire { source, target: 0 });
    let count = MOST_ARENAS + 4;
    let hung: Vec<Child> = (0..count).map(|_| spawner.spawn(&hanging, None).expect("spawn")).collect();
    assert!(spawner.layout().arenas.iter().all(Arena::is_lent));
    assert_eq!(spawner.layout().arenas.len(), MOST_ARENAS);
    let (text, _) = output_of(shell("echo $$"), &spawner);
    assert!(text.trim().parse::<u32>().is_ok(), "{text}");
    // Opens, as readers are there, and lets all of them go on.
    let writer = File::options().write(true).open(&path).expect("open");
    for child in hung {
        assert_eq!(child.pidfd.wait(), Ok(ExitStatus::Code(5)));
    }
    drop(writer);
    let (text, _) = output_of(shell("echo again"), &spawner);
    assert_eq!(text, "again\n");
    spawner.trim();
    assert_eq!(spawner.layout().arenas.len(), 1);
}

/// Threads that fail in system calls while children fail in theirs: each sees its own errors.
#[test]
fn errors_of_children_are_not_ours() {
    let spawner = Spawner::new();
    let mut prepared = shell("exit 0");
    prepared.directory = c"/nonexistent".into();
    for _ in 0..200 {
        let child = spawner.spawn(&prepared, None).expect("spawn");
        for _ in 0..50 {
            let error = File::open("/proc/self/mem/x").expect_err("not a directory");
            assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
        }
        assert_eq!(child.pidfd.wait(), Ok(ExitStatus::Code(127)));
        assert!(child.slot.exec_failure().is_some());
    }
}

/// `oom_score_adj` is a property of the memory.
#[test]
fn anothers_oom_score_leaves_ours_alone() {
    let own = || std::fs::read_to_string("/proc/self/oom_score_adj").expect("proc");
    let before = own();
    let mut prepared = shell("cat /proc/self/oom_score_adj");
    prepared.oom_score_adj = Some(777);
    let (text, _) = output_of(prepared, &Spawner::new());
    assert_eq!((text.trim(), own()), ("777", before));
}

#[test]
fn the_next_way_is_taken_only_for_errors_about_the_way() {
    use Way::*;
    assert_eq!(Lent.without(Errno::EINVAL, false), Some(Clone3IntoCgroup));
    assert_eq!(Lent.without(Errno::ENOSYS, true), Some(Clone));
    assert_eq!(Lent.without(Errno::EAGAIN, true), None);
    assert_eq!(Clone3IntoCgroup.without(Errno::ENOSYS, false), Some(Clone));
    assert_eq!(Clone3IntoCgroup.without(Errno::EPERM, true), Some(Clone));
    assert_eq!(Clone3IntoCgroup.without(Errno::E2BIG, true), Some(Clone3));
    assert_eq!(Clone3IntoCgroup.without(Errno::EINVAL, true), Some(Clone3));
    assert_eq!(Clone3IntoCgroup.without(Errno::EAGAIN, true), None);
    assert_eq!(Clone3IntoCgroup.without(Errno::ENODEV, true), None);
    assert_eq!(Clone.without(Errno::ENOSYS, false), None);
}

#[test]
fn an_own_127_is_no_failed_step() {
    let child = Spawner::new().spawn(&shell("exit 127"), None).expect("spawn");
    assert_eq!(child.pidfd.wait(), Ok(ExitStatus::Code(127)));
    assert_eq!(exec_failure(&child.slot), None);
}

#[test]
fn pids_in_the_environment_are_the_childs_own() {
    let mut prepared = shell("echo $$ $LISTEN_PID $WATCHDOG_PID");
    prepared.listen_pid = true;
    prepared.watchdog_pid = true;
    let spawner = Spawner::new();
    for _ in 0..2 {
        let (text, _) = output_of(prepared.clone(), &spawner);
        let pids: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(pids.len(), 3, "{text}");
        assert!(pids[1] == pids[0] && pids[2] == pids[0], "{text}");
    }
    let (text, _) = output_of(shell("env"), &spawner);
    assert!(!text.contains("LISTEN_PID") && !text.contains("WATCHDOG_PID"));
}

#[test]
fn nothing_leaks_and_missing_ones_are_null() {
    // A descriptor without close-on-exec, as a careless library would leave it.
    let careless = nix::unistd::dup(std::io::stderr()).expect("dup");
    let (text, _) = output_of(shell("ls -l /proc/self/fd | sed -n 's/.* \\([0-9]*\\) -> /\\1 /p'"), &Spawner::new());
    let lines: Vec<&str> = text.lines().collect();
    // `ls` itself opens the directory as 3.
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!(lines[0], "0 /dev/null");
    assert!(lines[1].starts_with("1 pipe:"), "{text}");
    assert_eq!(lines[2], "2 /dev/null");
    assert!(lines[3].starts_with("3 /proc/"), "{text}");
    drop(careless);
}

#[test]
fn descriptors_cross_over() {
    // Files with known content at numbers that collide with each other's targets.
    let file = |text: &str| {
        let (reader, writer) = crate::sys::fifo::pipe().expect("pipe");
        File::from(writer).write_all(text.as_bytes()).expect("write");
        Arc::new(reader)
    };
    let (a, b, c) = (file("a\n"), file("b\n"), file("c\n"));
    let (na, nb, nc) = (a.as_raw_fd(), b.as_raw_fd(), c.as_raw_fd());
    let wire = |fd: &Arc<OwnedFd>, target| Wire { source: Source::Fd(Arc::clone(fd)), target };
    // A swap of a and b, c in its own place, and c once more as standard input.
    let script = format!("cat /proc/self/fd/{na} /proc/self/fd/{nb} <&{nc}; read x <&{nc}; echo $x");
    let mut prepared = shell(&script);
    prepared.descriptors = vec![wire(&a, nb), wire(&b, na), wire(&c, nc), wire(&c, 0)];
    // The shell's redirections know one digit only.
    if [na, nb, nc].iter().any(|n| *n > 9) {
        let moved = 100;
        let script = format!("cat /dev/fd/{na} /dev/fd/{nb}; cat /dev/fd/{nc}; test -e /dev/fd/{moved}");
        prepared = shell(&script);
        prepared.descriptors = vec![wire(&a, nb), wire(&b, na), wire(&c, nc), wire(&c, moved), wire(&c, 0)];
    }
    let (text, status) = output_of(prepared, &Spawner::new());
    assert_eq!(text, "b\na\nc\n");
    assert!(status.success());
}

#[test]
fn a_fresh_session_with_clean_signals() {
    let thread = std::thread::spawn(|| {
        // As svd: signals blocked; SIGPIPE is ignored by Rust's runtime already.
        let _signals = crate::sys::poll::Signals::block().expect("signalfd");
        output_of(
            shell("cat /proc/self/status | grep -E '^Sig(Blk|Ign|Cgt)'; umask; cut -d' ' -f6 /proc/$$/stat; echo $$"),
            &Spawner::new(),
        )
    });
    let (text, _) = thread.join().expect("the thread");
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[..3] {
        assert!(line.ends_with("\t0000000000000000"), "{text}");
    }
    assert_eq!(lines[3], "0022");
    assert_eq!(lines[4], lines[5], "a session leader: {text}");
}

#[test]
fn umask_nice_limits_and_directory() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut prepared = shell("umask; nice; ulimit -n; ulimit -H -n; pwd; grep Cpus_allowed_list /proc/self/status");
    prepared.umask = 0o027;
    prepared.cpus = CpuMask::of(&[(0, 0), (4000, 4001)]);
    prepared.io = Some(IoPriority::Idle);
    // A plain user may only raise its own.
    prepared.nice = Some(19);
    prepared.directory = c_path(dir.path()).expect("no NUL");
    prepared.limits = vec![Limit { resource: libc::RLIMIT_NOFILE, soft: 77, hard: Some(99) }];
    let (text, _) = output_of(prepared, &Spawner::new());
    let path = dir.path().display();
    assert_eq!(text, format!("0027\n19\n77\n99\n{path}\nCpus_allowed_list:\t0\n"));
}

#[test]
fn failing_steps_have_sentences() {
    let mut prepared = shell("true");
    prepared.directory = c"/no/such".into();
    assert_eq!(failure_of(&prepared), "cannot change to directory /no/such: No such file or directory");

    let mut prepared = shell("true");
    prepared.program = c"/no/such/program".into();
    assert_eq!(failure_of(&prepared), "cannot execute /no/such/program: No such file or directory");

    let mut prepared = shell("true");
    prepared
        .descriptors
        .push(Wire { source: Source::Path { path: c"/no/such/pipe".into(), flags: libc::O_RDWR }, target: 2 });
    assert_eq!(failure_of(&prepared), "cannot open /no/such/pipe as descriptor 2: No such file or directory");
    let mut prepared = shell("true");
    prepared.limits.push(Limit { resource: 999, soft: 0, hard: None });
    assert_eq!(failure_of(&prepared), "cannot set the limit number 999: Invalid argument");
}

#[test]
fn programs_that_cannot_be_executed() {
    let dir = tempfile::tempdir().expect("a directory");
    let with = |name: &str, content: &str, mode: u32| {
        let path = dir.path().join(name);
        // Written by a child, as a descriptor for writing that leaks into another test's fork would mean ETXTBSY.
        let mut writer = std::process::Command::new("/bin/sh")
            .args(["-c", "cat > \"$0\""])
            .arg(&path)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        let mut input = writer.stdin.take().expect("stdin");
        input.write_all(content.as_bytes()).expect("write");
        drop(input);
        writer.wait().expect("sh ends");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("chmod");
        let mut prepared = shell("true");
        prepared.program = c_path(&path).expect("no NUL");
        failure_of(&prepared)
    };
    let interpreter = with("script", "#!/no/such/python -u\n", 0o755);
    assert!(
        interpreter.ends_with(
            "/script: No such file or directory (the file is there, but its interpreter /no/such/python is not)"
        ),
        "{interpreter}"
    );
    let text = with("text", "hello\n", 0o755);
    assert!(text.contains("has no #! line"), "{text}");
    let plain = with("plain", "#!/bin/sh\n", 0o644);
    assert!(plain.contains("not executable; chmod +x"), "{plain}");
}

fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

#[test]
fn becoming_somebody_else() {
    if !is_root() {
        return;
    }
    let mut prepared = shell("id -u; id -g; id -G; grep CapEff /proc/self/status");
    prepared.ids = Some(Ids { uid: 65534, gid: 54321, groups: vec![54321, 54322] });
    let (text, _) = output_of(prepared.clone(), &Spawner::new());
    assert_eq!(text, "65534\n54321\n54321 54322\nCapEff:\t0000000000000000\n");
    // The directory is entered as that user.
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).expect("chmod");
    prepared.directory = c_path(dir.path()).expect("no NUL");
    let sentence = failure_of(&prepared);
    assert!(
        sentence.ends_with(": Permission denied (user 65534 needs search permission on every directory of the path)"),
        "{sentence}"
    );
}

#[test]
fn a_user_with_too_many_processes() {
    if !is_root() {
        return;
    }
    let ids = || Some(Ids { uid: 61234, gid: 61234, groups: vec![] });
    // The kernel counts at setresuid(2), before it adds the caller: somebody of that user must be there already.
    let mut other = shell("echo started; read never");
    other.ids = ids();
    let (stdin, held) = crate::sys::fifo::pipe().expect("pipe");
    other.descriptors.push(Wire { source: Source::Fd(Arc::new(stdin)), target: 0 });
    let mut started = captured(&mut other);
    let running = Spawner::new().spawn(&other, None).expect("spawn");
    let mut word = [0; 8];
    started.read_exact(&mut word).expect("the other process starts");

    let mut prepared = shell("true");
    prepared.ids = ids();
    prepared.limits = vec![Limit { resource: libc::RLIMIT_NPROC, soft: 0, hard: None }];
    let sentence = failure_of(&prepared);
    drop(held);
    running.pidfd.wait().expect("our child");
    assert!(sentence.ends_with(" (the user has as many processes as its limit allows)"), "{sentence}");
}

#[test]
fn a_plain_user_cannot_become_root() {
    let mut prepared = shell("true");
    prepared.ids = Some(Ids { uid: 0, gid: 0, groups: vec![] });
    let sentence = if nix::unistd::geteuid().is_root() {
        // In a thread of its own: raw setresuid changes this thread alone.
        let attempt = move || {
            // SAFETY: numbers only; the thread ends afterwards.
            unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
            failure_of(&prepared)
        };
        std::thread::spawn(attempt).join().expect("the thread")
    } else {
        failure_of(&prepared)
    };
    assert_eq!(
        sentence,
        "cannot set the supplementary groups: Operation not permitted (only root can start programs as another user; run svd as root, or leave `user` out)"
    );
}
