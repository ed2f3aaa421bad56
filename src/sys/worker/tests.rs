//! Both kinds of containment must behave alike.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use super::*;
use crate::sys::poll::Poll;
use crate::sys::spawn::{Source, Wire, c_string};

const LIMIT: Duration = Duration::from_secs(10);

/// A tree that is removed, with all that is in it, however the test ends.
struct TestTree(Arc<Tree>);

impl Drop for TestTree {
    fn drop(&mut self) {
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            for group in self.0.groups().unwrap_or_default() {
                let _ = group.kill();
                let _ = group.remove();
            }
            if self.0.remove().unwrap_or(true) {
                break;
            }
            std::thread::yield_now();
        }
    }
}

/// Runs the test below a stub, and in a cgroup where one can be made.
fn both(name: &str, test: impl Fn(&Containment)) {
    let dir = tempfile::tempdir().expect("a directory");
    test(&Containment::Stub(stubs(&dir)));
    match Tree::create(&format!("test-{name}-{}", std::process::id())) {
        Ok(tree) => {
            let tree = TestTree(tree);
            test(&Containment::Cgroup(Arc::clone(&tree.0)));
            tree.0.sweep();
            assert_eq!(tree.0.groups().expect("list").len(), 0, "a group is left");
        }
        Err(reason) => eprintln!("only the stub was tested: {reason}"),
    }
}

/// Stubs of an svd whose run directory this is.
fn stubs(dir: &tempfile::TempDir) -> stub::Place {
    stub::Place::open(dir.path(), dir.path()).expect("a directory")
}

fn start(script: &str, containment: &Containment) -> (Worker, BufReader<File>) {
    let argv = ["sh", "-c", script].map(|s| c_string(s).expect("no NUL"));
    let mut prepared = Prepared::new(c"/bin/sh".into(), argv.into());
    prepared.environment = vec![c"PATH=/usr/bin:/bin".into()];
    prepared.listen_pid = true;
    let (reader, writer) = crate::sys::fifo::pipe().expect("pipe");
    prepared.descriptors.push(Wire { source: Source::Fd(Arc::new(writer)), target: 1 });
    let worker = Worker::start(&Spawner::new(), &prepared, containment, "w").expect("start");
    (worker, BufReader::new(File::from(reader)))
}

fn next_event(worker: &mut Worker) -> WorkerEvent {
    let mut poll = Poll::new(1).expect("epoll");
    let until = Instant::now() + LIMIT;
    loop {
        if let Some(event) = worker.handle_ready().expect("event") {
            return event;
        }
        assert!(Instant::now() < until, "no event in time: {worker:?}");
        let (fd, interest) = worker.watch().expect("still something to wait for");
        poll.add(fd, interest, 1).expect("add");
        poll.wait(Some(1000), &mut Vec::new()).expect("wait");
        let (fd, _) = worker.watch().expect("unchanged without an event");
        poll.delete(fd).expect("delete");
    }
}

/// The next event that is not `Started`, which only stubs report.
fn next_end(worker: &mut Worker) -> WorkerEvent {
    match next_event(worker) {
        WorkerEvent::Started(_) => next_event(worker),
        event => event,
    }
}

fn line(output: &mut BufReader<File>) -> String {
    let mut text = String::new();
    output.read_line(&mut text).expect("a line");
    text.trim().to_string()
}

fn exited(code: i32, leftovers: bool) -> WorkerEvent {
    WorkerEvent::Exited { status: ExitStatus::Code(code), leftovers }
}

fn ended(pid: i32) -> bool {
    ProcStat::read(pid).is_none_or(|stat| stat.state == 'Z')
}

/// Reaps the stub or the orphan, whose end may come a moment after its last word.
fn wait_gone(pid: i32) {
    let until = Instant::now() + LIMIT;
    while ProcStat::read(pid).is_some() {
        let _ = crate::sys::process::reap(pid);
        assert!(Instant::now() < until, "process {pid} is left");
        std::thread::yield_now();
    }
}

#[test]
fn statuses_and_own_pid() {
    both("statuses", |containment| {
        let (mut worker, mut output) = start("echo $$ $LISTEN_PID; exit 9", containment);
        let text = line(&mut output);
        let (own, listen) = text.split_once(' ').expect("two pids");
        assert_eq!(own, listen);
        if let Containment::Stub(_) = containment {
            assert_eq!(next_event(&mut worker), WorkerEvent::Started(own.parse().expect("pid")));
            assert_eq!(worker.cgroup(), None);
        }
        assert_eq!(worker.pid().map(|p| p.to_string()).as_deref(), Some(own));
        assert_eq!(next_event(&mut worker), exited(9, false));
        assert!(worker.watch().is_none());
        assert_eq!(worker.handle_ready().expect("nothing"), None);
        if let Some(pid) = worker.take_unreaped() {
            // A stub ends a moment after its last word.
            let status = PidFd::open(pid).expect("left to whoever has noted its end").wait();
            assert_eq!(status, Ok(ExitStatus::Code(9)));
        }
        assert_eq!(worker.signal(libc::SIGTERM), Ok(false), "it is reaped");
        worker.kill_tree().expect("nothing to kill");
        assert_eq!(worker.exec_failure(), None);
        wait_gone(worker.child_pid().expect("it was started"));
    });
}

#[test]
fn a_signal_right_after_the_start() {
    both("early", |containment| {
        let (mut worker, _output) = start("exec sleep 60", containment);
        assert_eq!(worker.signal(libc::SIGTERM), Ok(true));
        let WorkerEvent::Exited { status, .. } = next_end(&mut worker) else {
            panic!("it must end");
        };
        assert_eq!(status, ExitStatus::Signal { signal: libc::SIGTERM, core_dumped: false });
        wait_gone(worker.child_pid().expect("it was started"));
    });
}

/// Forks twice, each time into a new session, ignores what may be ignored, and outlives the worker.
const ESCAPE: &str = "setsid sh -c 'setsid sh -c \"trap : TERM HUP; echo \\$\\$; while :; do sleep 60; done\" & exit 0'; \
                      read x < /dev/null; exit 4";

#[test]
fn who_forks_twice_is_found_and_killed() {
    both("escape", |containment| {
        let (mut worker, mut output) = start(ESCAPE, containment);
        let escaped: i32 = line(&mut output).parse().expect("pid");
        assert_eq!(next_end(&mut worker), exited(4, true));
        assert!(!ended(escaped));
        assert!(worker.contains(escaped));
        assert!(!worker.contains(std::process::id() as i32));
        assert!(worker.processes().contains(&escaped));
        worker.kill_tree().expect("kill");
        assert_eq!(next_event(&mut worker), WorkerEvent::Empty);
        assert!(ended(escaped));
        assert!(worker.watch().is_none());
        wait_gone(worker.child_pid().expect("it was started"));
    });
}

#[test]
fn leftovers_that_go_by_themselves() {
    both("leftovers", |containment| {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("go");
        crate::sys::fifo::create(&path, None).expect("a pipe");
        let script = format!("(read x < {0}) & exit 0", path.display());
        let (mut worker, _output) = start(&script, containment);
        assert_eq!(next_end(&mut worker), exited(0, true));
        assert_eq!(worker.handle_ready().expect("nothing yet"), None);
        std::fs::write(&path, "go\n").expect("write");
        assert_eq!(next_event(&mut worker), WorkerEvent::Empty);
        wait_gone(worker.child_pid().expect("it was started"));
    });
}

#[test]
fn a_signal_reaches_the_whole_tree() {
    both("tree", |containment| {
        // The grandchild says when its trap is set, and when it was signalled.
        let script = "setsid sh -c 'trap \"echo got; exit\" USR1; echo set; while :; do sleep 0.05; done' & \
                      trap 'exit 5' USR1; wait; wait";
        let (mut worker, mut output) = start(script, containment);
        assert_eq!(line(&mut output), "set");
        if let Containment::Stub(_) = containment {
            assert!(matches!(next_event(&mut worker), WorkerEvent::Started(_)));
        }
        worker.signal_tree(libc::SIGUSR1).expect("signal");
        let mut rest = String::new();
        // The sleep that the signal ended as well must not keep the pipe open.
        while !rest.contains("got") {
            rest = line(&mut output);
        }
        assert!(matches!(next_event(&mut worker), WorkerEvent::Exited { status: ExitStatus::Code(5), .. }));
        worker.kill_tree().expect("kill");
        while worker.watch().is_some() {
            assert_eq!(next_event(&mut worker), WorkerEvent::Empty);
        }
        wait_gone(worker.child_pid().expect("it was started"));
    });
}

#[test]
fn a_fork_storm_is_killed() {
    both("storm", |containment| {
        // Each shell goes on by forking another and ending itself; never more than a few at once.
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("storm.sh");
        std::fs::write(&path, "setsid sh $0 & setsid sleep 30 & sleep 0.01; exit\n").expect("write");
        let script = format!("echo on; exec sh {}", path.display());
        let (mut worker, mut output) = start(&script, containment);
        assert_eq!(line(&mut output), "on");
        let first = next_end(&mut worker);
        assert_eq!(first, exited(0, true));
        worker.kill_tree().expect("kill");
        assert_eq!(next_event(&mut worker), WorkerEvent::Empty);
        wait_gone(worker.child_pid().expect("it was started"));
    });
}

#[test]
fn failed_steps_are_told_by_both() {
    both("failed", |containment| {
        let mut prepared = Prepared::new(c"/bin/true".into(), vec![c"true".into()]);
        prepared.directory = c"/no/such".into();
        let mut worker = Worker::start(&Spawner::new(), &prepared, containment, "w").expect("start");
        assert_eq!(next_end(&mut worker), exited(127, false));
        let failure = worker.exec_failure().expect("a failed step");
        assert_eq!(failure.describe(&prepared), "cannot change to directory /no/such: No such file or directory");
        wait_gone(worker.child_pid().expect("it was started"));
    });
}

#[test]
fn the_stub_goes_on_without_svd_and_holds_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let script = "echo; read x < /dev/zero; exec sleep 60";
    let (mut worker, mut output) = start(script, &Containment::Stub(stubs(&dir)));
    line(&mut output);
    let WorkerEvent::Started(pid) = next_event(&mut worker) else {
        panic!("the start comes first");
    };
    let stub = worker.child_pid().expect("a stub");
    let stat = ProcStat::read(stub).expect("stat");
    assert_eq!((&stat.comm[..4], stat.session), ("svd:", stub));
    let held = std::fs::read_dir(format!("/proc/{stub}/fd")).expect("list").count();
    assert_eq!(held, 4, "its sockets to this svd and for the next one, signals, the worker's pidfd");
    let pidfd = PidFd::open(pid).expect("a pidfd");
    drop(worker);
    assert!(ProcStat::read(stub).is_some_and(|s| s.state != 'Z'));
    pidfd.signal(libc::SIGKILL).expect("kill");
    wait_gone(stub);
    assert!(ProcStat::read(pid).is_none(), "the stub reaped it");
}

#[test]
fn a_killed_stub_is_noticed() {
    // In a process of its own it would come to svd; here it goes to whoever is the sub-reaper.
    let dir = tempfile::tempdir().expect("a directory");
    let (mut worker, _output) = start("exec sleep 60", &Containment::Stub(stubs(&dir)));
    let WorkerEvent::Started(pid) = next_event(&mut worker) else {
        panic!("the start comes first");
    };
    let stub = PidFd::open(worker.child_pid().expect("a stub")).expect("a pidfd");
    stub.signal(libc::SIGKILL).expect("kill");
    assert_eq!(next_event(&mut worker), WorkerEvent::StubLost);
    assert_eq!(worker.child_pid(), Some(pid));
    worker.kill_tree().expect("kill");
    let WorkerEvent::Exited { leftovers: false, .. } = next_event(&mut worker) else {
        panic!("it must end");
    };
    wait_gone(stub.pid());
}

#[test]
fn a_new_svd_adopts() {
    let Ok(tree) = Tree::create(&format!("test-adopt-{}", std::process::id())) else {
        eprintln!("skipped: needs a cgroup tree that we may write to");
        return;
    };
    let tree = TestTree(tree);
    let (old, _output) = start("exec sleep 60", &Containment::Cgroup(Arc::clone(&tree.0)));
    let pid = old.pid().expect("pid");
    assert_eq!(group_of(&tree.0, pid).as_deref(), Some("w"));
    let recorded = Identity::of(pid).expect("start time");
    drop(old);
    let group = || tree.0.groups().expect("list").remove(0);
    assert!(Worker::adopt(group(), Identity { start_time: recorded.start_time + 1, ..recorded }, None).is_none());
    let own = std::process::id() as i32;
    assert!(Worker::adopt(group(), Identity { pid: own, ..recorded }, None).is_none());
    assert!(Worker::adopt(group(), Identity::of(own).expect("own"), None).is_none(), "it runs, but elsewhere");
    let mut worker = Worker::adopt(group(), recorded, None).expect("the same process");
    worker.kill_tree().expect("kill");
    let WorkerEvent::Exited { status, leftovers: false } = next_event(&mut worker) else {
        panic!("it must end");
    };
    assert_eq!(status.to_string(), "was ended by signal SIGKILL");
}

/// A set that holds what has ended reports it for ever: a loop that waits on it would never sleep again.
#[test]
fn the_end_of_the_main_process_is_silent_once_told() {
    both("silent", |containment| {
        let (mut worker, mut output) = start("(trap '' TERM; exec 2>&-; sleep 60) & echo $!; exit 3", containment);
        let _ = line(&mut output);
        let mut poll = Poll::new(4).expect("epoll");
        let (fd, interest) = worker.watch().expect("something to wait for");
        poll.add(fd, interest, 1).expect("add");
        let end = next_end(&mut worker);
        assert_eq!(end, WorkerEvent::Exited { status: ExitStatus::Code(3), leftovers: true });
        if let Containment::Cgroup(_) = containment {
            assert!(
                !worker.reaps(worker.child_pid().expect("it was started")),
                "it is reaped; its number may be anybody's"
            );
        }
        if let Some(ended) = worker.watched_before() {
            poll.delete(ended).expect("delete");
        }
        let (fd, interest) = worker.watch().expect("leftovers");
        poll.modify(fd, interest, 1).or_else(|_| poll.add(fd, interest, 1)).expect("watch");
        assert_eq!(worker.handle_ready().expect("event"), None);
        let mut ready = Vec::new();
        poll.wait(Some(200), &mut ready).expect("wait");
        assert_eq!(ready, [], "nothing has happened, and yet something is ready");
        worker.kill_tree().expect("kill");
        assert_eq!(next_event(&mut worker), WorkerEvent::Empty);
    });
}

#[test]
fn what_a_killed_svd_left_below_its_stubs_is_ended() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = stubs(&dir);
    let script = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; echo $$; sleep 60' &); sleep 60";
    let (worker, mut output) = start(script, &Containment::Stub(place.clone()));
    let runaway: i32 = line(&mut output).trim().parse().expect("a pid");
    let stub = worker.child_pid().expect("a stub");
    let end = |known: &[Identity]| place.end_orphans(&known.iter().copied().collect(), LIMIT);
    let known = worker.stub().expect("a stub");
    // As long as its svd lives, a stub heeds nobody else; and what it was told then does not count later.
    assert_eq!(PidFd::open(stub).expect("a stub").signal(libc::SIGTERM), Ok(true));
    let until = Instant::now() + LIMIT;
    while std::fs::read_to_string(format!("/proc/{stub}/status")).expect("status").contains("ShdPnd:\t0000000000004000")
    {
        assert!(Instant::now() < until, "it does not read its signals");
    }
    drop(worker);
    assert_eq!(end(&[known]), 0, "it is to be taken over");
    assert!(!ended(runaway), "it was told while its svd lived");
    let other = Identity { start_time: known.start_time + 1, ..known };
    assert_eq!(end(&[other]), 1);
    assert!(ended(runaway), "it has left its session, and yet it is ended");
    wait_gone(stub);
    assert_eq!(end(&[]), 0);
}

/// Takes over what the first svd, which is dropped, knew.
fn adopt(place: &stub::Place, known: Identity) -> (Worker, Option<ExitStatus>) {
    match Worker::adopt_below_stub(place, "w", known, LIMIT).expect("reached") {
        Below::Worker(worker) => (worker, None),
        Below::Others(worker, exit) => (worker, Some(exit)),
        Below::Nothing(exit) => panic!("it has ended: {exit:?}"),
    }
}

fn is_gone(place: &stub::Place, known: Identity) -> bool {
    matches!(Worker::adopt_below_stub(place, "w", known, LIMIT), Ok(Below::Nothing(_)))
}

#[test]
fn a_new_svd_adopts_below_a_stub() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = stubs(&dir);
    let script = "(setsid sh -c 'trap \"\" TERM; echo $$; while :; do sleep 60; done' &); read x < go; exit 7";
    crate::sys::fifo::create(&dir.path().join("go"), None).expect("a pipe");
    let script = format!("cd {}; {script}", dir.path().display());
    let (old, mut output) = start(&script, &Containment::Stub(place.clone()));
    let other: i32 = line(&mut output).parse().expect("a pid");
    let known = old.stub().expect("a stub");
    assert_eq!(old.group_name(), Some("w"));
    // It never heard which worker it has.
    assert_eq!(old.pid(), None);
    drop(old);
    let strange = Identity { start_time: known.start_time + 1, ..known };
    assert!(is_gone(&place, strange), "another process");
    let (worker, exit) = adopt(&place, known);
    assert_eq!(exit, None);
    let pid = worker.pid().expect("told at once");
    assert!(worker.contains(pid) && worker.contains(other));
    // Ended while nobody was there, and the others live.
    drop(worker);
    std::fs::write(dir.path().join("go"), "go\n").expect("write");
    wait_reaped(pid);
    assert_eq!(adopt(&place, known).1, Some(ExitStatus::Code(7)));
    let (mut worker, exit) = adopt(&place, known);
    assert_eq!(exit, Some(ExitStatus::Code(7)), "told to each svd that asks");
    assert_eq!(worker.signal(libc::SIGTERM), Ok(false), "it has ended");
    worker.kill_tree().expect("kill");
    assert_eq!(next_event(&mut worker), WorkerEvent::Empty);
    assert!(ended(other));
    assert_eq!(worker.take_unreaped(), Some(known.pid));
    let status = PidFd::open(known.pid).expect("not reaped").wait().expect("our child");
    assert_eq!(status, ExitStatus::Code(7), "the stub has ended as its worker");
    assert!(std::fs::read_dir(dir.path()).expect("list").flatten().all(|e| e.file_name() != "w"), "its socket is gone");
}

/// The stub has reaped it.
fn wait_reaped(pid: i32) {
    let until = Instant::now() + LIMIT;
    while ProcStat::read(pid).is_some() {
        assert!(Instant::now() < until, "process {pid} is left");
        std::thread::yield_now();
    }
}

/// Between a look at the process and the connection.
#[test]
fn a_stub_that_ends_while_it_is_looked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = stubs(&dir);
    for _ in 0..20 {
        let (worker, mut output) =
            start("trap 'exit 5' TERM; echo $$; while :; do sleep 0.01; done", &Containment::Stub(place.clone()));
        let pid: i32 = line(&mut output).parse().expect("a pid");
        let known = worker.stub().expect("a stub");
        let stub = PidFd::open(known.pid).expect("a stub");
        drop(worker);
        PidFd::open(pid).expect("a worker").signal(libc::SIGTERM).expect("signal");
        let status = match Worker::adopt_below_stub(&place, "w", known, LIMIT).expect("looked") {
            Below::Worker(mut worker) => next_end(&mut worker),
            Below::Others(_, status) => WorkerEvent::Exited { status, leftovers: false },
            Below::Nothing(status) => {
                let status = status.or_else(|| stub.any_exit()).expect("it has ended");
                WorkerEvent::Exited { status, leftovers: false }
            }
        };
        assert!(matches!(status, WorkerEvent::Exited { status: ExitStatus::Code(5), .. }), "{status:?}");
        wait_gone(known.pid);
    }
}

#[test]
fn a_stub_ends_as_its_worker_has() {
    for (script, expected) in [
        ("exit 0", ExitStatus::Code(0)),
        ("exit 200", ExitStatus::Code(200)),
        ("kill -KILL $$", ExitStatus::Signal { signal: libc::SIGKILL, core_dumped: false }),
        ("kill -SEGV $$", ExitStatus::Signal { signal: libc::SIGSEGV, core_dumped: false }),
        ("kill -TERM $$", ExitStatus::Signal { signal: libc::SIGTERM, core_dumped: false }),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let place = stubs(&dir);
        let (worker, _output) = start(&format!("ulimit -c 0; {script}"), &Containment::Stub(place.clone()));
        let known = worker.stub().expect("a stub");
        drop(worker);
        let status = PidFd::open(known.pid).expect("not reaped").wait().expect("our child");
        assert_eq!(status, expected, "{script}");
        assert!(is_gone(&place, known));
    }
}

#[test]
fn a_stub_that_cannot_be_reached_is_ended_with_all_below_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = stubs(&dir);
    let (worker, mut output) = start("echo $$; exec sleep 60", &Containment::Stub(place.clone()));
    let pid: i32 = line(&mut output).parse().expect("a pid");
    let known = worker.stub().expect("a stub");
    drop(worker);
    std::fs::remove_file(dir.path().join("w")).expect("its socket");
    let reached = Worker::adopt_below_stub(&place, "w", known, Duration::from_millis(50));
    assert_eq!(reached.expect_err("not there").kind(), std::io::ErrorKind::NotFound);
    // Nor does somebody else count who listens there.
    let foreign = place.bind("w").expect("a socket");
    nix::sys::socket::listen(&foreign, nix::sys::socket::Backlog::new(1).expect("a number")).expect("listen");
    let reached = Worker::adopt_below_stub(&place, "w", known, Duration::from_millis(50));
    assert!(reached.expect_err("foreign").to_string().contains("another process"));
    assert!(!ended(pid));
    assert_eq!(stub::end(known, LIMIT), Ok(()));
    assert!(ended(pid));
    wait_gone(known.pid);
}

#[test]
fn a_worker_whose_stub_was_killed_is_adopted_by_its_number() {
    let dir = tempfile::tempdir().expect("a directory");
    let place = stubs(&dir);
    let (worker, mut output) = start("echo $$; exec sleep 60", &Containment::Stub(place.clone()));
    let pid: i32 = line(&mut output).parse().expect("a pid");
    let recorded = Identity::of(pid).expect("start time");
    let known = worker.stub().expect("a stub");
    drop(worker);
    PidFd::open(known.pid).expect("a stub").signal(libc::SIGKILL).expect("kill");
    wait_gone(known.pid);
    assert!(is_gone(&place, known));
    assert!(
        Worker::adopt_alone(Identity { start_time: recorded.start_time + 1, ..recorded }).is_none(),
        "another process"
    );
    let mut worker = Worker::adopt_alone(recorded).expect("it lives");
    worker.kill_tree().expect("kill");
    let WorkerEvent::Exited { leftovers: false, .. } = next_event(&mut worker) else { panic!("it must end") };
}
