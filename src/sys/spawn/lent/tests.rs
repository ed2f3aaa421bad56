//! Children that are held on their way while something else happens.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::super::{Child, Ids, Prepared, Source, Spawner, Wire, c_path, c_string, exec_failure};
use super::*;
use crate::sys::process::{ExitStatus, ProcStat};

const USER: u32 = 65534;
const LIMIT: Duration = Duration::from_secs(20);

fn program(path: &Path) -> Prepared {
    let path = c_path(path).expect("no NUL");
    Prepared::new(path.clone(), vec![path])
}

/// Holds whoever executes the file, or opens it otherwise, until it is dropped (`F_SETLEASE` in `fcntl(2)`).
struct Lease(File);

/// From `asm-generic/fcntl.h`; the crate has none.
const F_SETSIG: libc::c_int = 10;

impl Lease {
    fn take(path: &Path) -> Lease {
        let file = File::open(path).expect("the file");
        let set = |command: libc::c_int, value: libc::c_int| {
            // SAFETY: numbers only.
            unsafe { libc::fcntl(file.as_raw_fd(), command, value) == 0 }
        };
        // It tells of the other's wish, and is ignored by default; SIGIO would end us.
        assert!(set(F_SETSIG, libc::SIGURG));
        let begun = Instant::now();
        // Another test's child may still have the descriptor that the file was written by.
        while !set(libc::F_SETLEASE, libc::F_WRLCK) {
            assert!(begun.elapsed() < LIMIT, "{}", std::io::Error::last_os_error());
            std::thread::sleep(Duration::from_millis(1));
        }
        Lease(file)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // Closing is not enough where another test's child has a copy.
        // SAFETY: numbers only.
        unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
    }
}

/// Until the child is in its exec, as whom it is to become: nothing else on its way lets it sleep.
fn wait_for_exec(child: &Child) {
    let begun = Instant::now();
    while ProcStat::read(child.pid()).is_none_or(|stat| stat.state != 'S') {
        assert!(begun.elapsed() < LIMIT, "it does not come to its exec");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What a process of the user says who runs this script.
fn as_user(script: &str) -> String {
    let output = Command::new("/bin/sh").args(["-c", script]).uid(USER).gid(USER).output().expect("sh");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn lent_by(spawner: &Spawner) -> usize {
    spawner.layout().arenas.iter().filter(|arena| arena.is_lent()).count()
}

/// Whoever lets go of a child that has not come to its program takes nothing from it: with its word unmapped, it would die
/// of that, or write into what has come in its place.
#[test]
fn a_child_keeps_its_word_when_nobody_asks_for_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let pipe = dir.path().join("pipe");
    crate::sys::fifo::create(&pipe, None).expect("a pipe");
    let mut prepared = program(Path::new("/nonexistent"));
    let source = Source::Path { path: c_path(&pipe).expect("no NUL"), flags: libc::O_RDONLY };
    prepared.descriptors.push(Wire { source, target: 0 });
    let spawner = Spawner::new();
    let Child { pidfd, slot } = spawner.spawn(&prepared, None).expect("spawn");
    drop((spawner, slot));
    let _writer = File::options().write(true).open(&pipe).expect("open");
    assert_eq!(pidfd.wait(), Ok(ExitStatus::Code(127)));
}

#[test]
fn a_child_that_became_somebody_else_is_out_of_that_users_sight() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let path = dir.path().join("true");
    std::fs::copy("/bin/true", &path).expect("copied");
    let mut prepared = program(&path);
    prepared.ids = Some(Ids { uid: USER, gid: USER, groups: vec![] });
    prepared.limits.push(super::super::Limit { resource: libc::RLIMIT_CORE, soft: u64::MAX, hard: None });
    let spawner = Spawner::new();
    let lease = Lease::take(&path);
    let child = spawner.spawn(&prepared, None).expect("spawn");
    wait_for_exec(&child);
    if read_setting() == 0 {
        assert_eq!(lent_by(&spawner), 0, "it has memory of its own");
        child.pidfd.signal(libc::SIGKILL).expect("it was there");
        return;
    }
    assert_eq!(lent_by(&spawner), usize::from(works()));
    let pid = child.pid();
    // It is that user's process, but neither can its memory be seen, nor what else belongs to the memory be changed.
    let seen = as_user(&format!(
        "kill -0 {pid} && echo its; for f in mem environ auxv; do head -c 1 /proc/{pid}/$f >&2 && echo $f; done
         echo 500 >/proc/{pid}/oom_score_adj && echo oom"
    ));
    assert_eq!(seen, "its\n");
    // Nor is it dumped, whatever the kernel's settings are.
    assert_eq!(as_user(&format!("kill -QUIT {pid} && echo sent")), "sent\n");
    assert_eq!(child.pidfd.wait(), Ok(ExitStatus::Signal { signal: libc::SIGQUIT, core_dumped: false }));
    drop(lease);
    assert_eq!(exec_failure(&child.slot), None);
    assert_eq!(lent_by(&spawner), 0, "the arena comes back");
}

/// A dump of the child's memory, which is svd's, harms neither; the kernel says afterwards, too, that the arena is free.
#[test]
fn a_child_that_leaves_a_core_dump_gives_its_arena_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("true");
    std::fs::copy("/bin/true", &path).expect("copied");
    let mut prepared = program(&path);
    prepared.directory = c_path(dir.path()).expect("no NUL");
    prepared.limits.push(super::super::Limit { resource: libc::RLIMIT_CORE, soft: u64::MAX, hard: None });
    let spawner = Spawner::new();
    let _lease = Lease::take(&path);
    let child = spawner.spawn(&prepared, None).expect("spawn");
    wait_for_exec(&child);
    assert_eq!(lent_by(&spawner), usize::from(works()));
    child.pidfd.signal(libc::SIGQUIT).expect("it was there");
    let status = child.pidfd.wait();
    assert!(matches!(status, Ok(ExitStatus::Signal { signal: libc::SIGQUIT, .. })), "{status:?}");
    assert_eq!(lent_by(&spawner), 0);
}

/// Each gets what is its own, whatever the others' children run into: a program that is missing, or their end at any
/// moment.
#[test]
fn threads_that_start_children_at_once() {
    let spawner = Spawner::new();
    let start = |number: usize| {
        let (reader, writer) = crate::sys::fifo::pipe().expect("a pipe");
        let argv =
            ["sh", "-c", "echo $NUMBER $0", "x".repeat(number * 97).as_str()].map(|s| c_string(s).expect("no NUL"));
        let mut prepared = Prepared::new(c"/bin/sh".into(), argv.into());
        prepared.environment = vec![c_string(format!("NUMBER={number}")).expect("no NUL")];
        prepared.descriptors = vec![Wire { source: Source::Fd(std::sync::Arc::new(writer)), target: 1 }];
        match number % 3 {
            0 => prepared.program = c"/nonexistent".into(),
            1 => {
                let child = spawner.spawn(&prepared, None).expect("spawn");
                child.pidfd.signal(libc::SIGKILL).expect("our child");
                let status = child.pidfd.wait();
                let killed = Ok(ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false });
                assert!(status == killed || status == Ok(ExitStatus::Code(0)), "{status:?}");
            }
            _ => {}
        }
        let child = spawner.spawn(&prepared, None).expect("spawn");
        drop(prepared);
        let text = std::io::read_to_string(File::from(reader)).expect("output");
        let status = child.pidfd.wait();
        match exec_failure(&child.slot) {
            None => assert_eq!(
                (status, text.lines().last()),
                (Ok(ExitStatus::Code(0)), Some(format!("{number} {}", "x".repeat(number * 97)).as_str()))
            ),
            Some(failure) => {
                assert_eq!((status, number % 3), (Ok(ExitStatus::Code(127)), 0), "{failure}");
            }
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let start = &start;
            scope.spawn(move || (0..60).for_each(|i| start(thread * 60 + i)));
        }
    });
    assert_eq!(lent_by(&spawner), 0);
}

#[test]
fn only_settings_that_hide_the_memory_allow_it() {
    assert_eq!(["0\n", "2\n", "1\n", "", "3"].map(|text| most_by(text.as_bytes())), [MOST_ARENAS, 1, 0, 0, 0]);
}
