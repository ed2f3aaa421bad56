//! What a start costs: a bare fork-and-exec loop beside every way of ours, 1,000 children each.
//!
//! `cargo bench --bench spawn`; `SPAWN_PROGRAM` names the program (default `/bin/true`; a static one shows more of our
//! own part), `SPAWN_OPEN` how many descriptors svd holds meanwhile (default 0), `SPAWN_COUNT` how many children.

#![expect(clippy::disallowed_methods, reason = "forbidden in the core alone")]

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use airdock::sys::cgroup::Tree;
use airdock::sys::spawn::{OpenFiles, Prepared, Source, Spawner, Wire, c_string};
use airdock::sys::worker::{Containment, Worker};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, execve, fork};

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn program() -> CString {
    let name = std::env::var_os("SPAWN_PROGRAM").unwrap_or_else(|| "/bin/true".into());
    c_string(name).unwrap_or_else(|| c"/bin/true".into())
}

fn main() {
    // `cargo test` runs benches once, too: it is no place to measure.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let files = OpenFiles::raise();
    let held: Vec<OwnedFd> =
        (0..number("SPAWN_OPEN", 0)).filter_map(|_| std::fs::File::open("/dev/null").ok()).map(OwnedFd::from).collect();
    let count = number("SPAWN_COUNT", 1000);
    let mut prepared = Prepared::new(program(), vec![program()]);
    prepared.limits.extend(files.ok().map(OpenFiles::for_children));
    prepared.environment = (0..20).filter_map(|i| c_string(format!("NAME_{i}=value"))).collect();
    prepared.listen_pid = true;
    if let Ok(file) = std::fs::File::options().read(true).write(true).open("/dev/null") {
        let shared = Arc::new(OwnedFd::from(file));
        prepared.descriptors = (0..4).map(|target| Wire { source: Source::Fd(Arc::clone(&shared)), target }).collect();
    }
    println!("{count} children, {} more descriptors held, {:?}", held.len(), prepared.program);
    let dir = std::env::temp_dir().join(format!("airdock-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let stubs = Containment::Stub(airdock::sys::stub::Place::open(&dir, &dir).expect("a directory"));
    for _ in 0..3 {
        report("bare fork and exec", count, bare(count));
        report("bare, wait for each", count, bare_one_by_one(count));
        let spawner = Spawner::new();
        report("spawn", count, spawned(&spawner, &prepared, count));
        report("stub", count, workers(&spawner, &prepared, &stubs, count));
        if let Ok(tree) = Tree::create(&format!("bench-{}", std::process::id())) {
            let containment = Containment::Cgroup(Arc::clone(&tree));
            report("cgroup", count, workers(&spawner, &prepared, &containment, count));
            drop(containment);
            println!("  tree removed: {:?}", tree.remove());
        }
    }
    drop(held);
    let _ = std::fs::remove_dir_all(&dir);
}

fn report(name: &str, count: usize, times: (Duration, Duration)) {
    let each = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
    println!("  {name:20} start {:6.1} µs, start and end {:6.1} µs", each(times.0), each(times.1));
}

fn bare_child() -> Option<Pid> {
    let program = program();
    // SAFETY: this program has one thread, and the child executes or ends at once.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => Some(child),
        Ok(ForkResult::Child) => {
            let _ = execve::<_, CString>(&program, &[&program], &[]);
            std::process::abort()
        }
        Err(_) => None,
    }
}

fn bare(count: usize) -> (Duration, Duration) {
    let begun = Instant::now();
    let children: Vec<Pid> = (0..count).filter_map(|_| bare_child()).collect();
    let started = begun.elapsed();
    for child in children {
        let _ = waitpid(child, None);
    }
    (started, begun.elapsed())
}

fn bare_one_by_one(count: usize) -> (Duration, Duration) {
    let begun = Instant::now();
    for _ in 0..count {
        let _ = bare_child().map(|child| waitpid(child, None));
    }
    (Duration::ZERO, begun.elapsed())
}

fn spawned(spawner: &Spawner, prepared: &Prepared, count: usize) -> (Duration, Duration) {
    let begun = Instant::now();
    let children: Vec<_> = (0..count).filter_map(|_| spawner.spawn(prepared, None).ok()).collect();
    let started = begun.elapsed();
    for child in children {
        let _ = child.pidfd.wait();
        assert!(child.slot.exec_failure().is_none());
    }
    (started, begun.elapsed())
}

fn workers(spawner: &Spawner, prepared: &Prepared, containment: &Containment, count: usize) -> (Duration, Duration) {
    let begun = Instant::now();
    let mut workers: Vec<Worker> =
        (0..count).filter_map(|i| Worker::start(spawner, prepared, containment, &format!("w{i}")).ok()).collect();
    let started = begun.elapsed();
    let mut poll = airdock::sys::poll::Poll::new(1).ok();
    for worker in &mut workers {
        while worker.watch().is_some() {
            if let Ok(Some(_)) = worker.handle_ready() {
                continue;
            }
            if let (Some(poll), Some((fd, interest))) = (poll.as_mut(), worker.watch()) {
                let _ = poll.add(fd, interest, 0);
                let _ = poll.wait(Some(1000), &mut Vec::new());
                let _ = worker.watch().map(|(fd, _)| poll.delete(fd));
            }
        }
    }
    (started, begun.elapsed())
}
