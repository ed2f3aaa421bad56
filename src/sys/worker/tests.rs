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
    test(&stubs());
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

/// Called after a directory that this test run shares with nobody's svd.
fn stubs() -> Containment {
    Containment::Stub(stub::Name::of(&std::env::temp_dir()).expect("a name"))
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
            assert!(matches!(crate::sys::process::reap(pid), Ok(Some(_))), "it is left to whoever has noted its end");
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
    let (mut worker, mut output) = start("echo; read x < /dev/zero; exec sleep 60", &stubs());
    line(&mut output);
    let WorkerEvent::Started(pid) = next_event(&mut worker) else {
        panic!("the start comes first");
    };
    let stub = worker.child_pid().expect("a stub");
    let stat = ProcStat::read(stub).expect("stat");
    assert_eq!((&stat.comm[..4], stat.session), ("svd:", stub));
    let held = std::fs::read_dir(format!("/proc/{stub}/fd")).expect("list").count();
    assert_eq!(held, 3, "socket, signals, the worker's pidfd");
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
    let (mut worker, _output) = start("exec sleep 60", &stubs());
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
    let name = stub::Name::of(dir.path()).expect("a name");
    let script = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; echo $$; sleep 60' &); sleep 60";
    let (worker, mut output) = start(script, &Containment::Stub(name));
    let runaway: i32 = line(&mut output).trim().parse().expect("a pid");
    let stub = worker.child_pid().expect("a stub");
    // As long as its svd lives, a stub does not heed it.
    assert_eq!(stub::end_orphans(name, Duration::from_millis(100)), 1);
    assert!(ProcStat::read(runaway).is_some_and(|s| s.state != 'Z'));
    drop(worker);
    assert_eq!(stub::end_orphans(name, LIMIT), 1);
    assert!(ProcStat::read(runaway).is_none_or(|s| s.state == 'Z'), "it has left its session, and yet it is ended");
    wait_gone(stub);
    assert_eq!(stub::end_orphans(name, LIMIT), 0);
}
