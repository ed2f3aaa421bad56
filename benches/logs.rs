//! Log capture against `cat > file`, in one run: `cargo bench --bench logs [-- MEGABYTES]`.
//!
//! A child writes 100-byte lines, one `write` each, or 40 kB blocks into a pipe; the log thread, or `cat`, moves them to a
//! file on the same disk. Printed: MB/s, CPU seconds of the mover per GB, and the ratios of their medians.

#![expect(clippy::disallowed_methods, reason = "forbidden in the core alone")]

use std::fs::{File, read_to_string};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Instant;

use airdock::config::spec::{LogFormat, Logs, Stderr};
use airdock::daemon::logs::{Attach, LogEvent, LogThread, Options, Stream};
use nix::sys::resource::{UsageWho, getrusage};

/// Rounds; the median of each mover's counts.
const ROUNDS: usize = 5;

fn write_child(block: usize, lines_per_block: usize, megabytes: usize) {
    let line = block / lines_per_block;
    let mut data = vec![b'x'; block];
    for i in 0..lines_per_block {
        data[(i + 1) * line - 1] = b'\n';
    }
    let out = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let mut out = out.expect("stdout");
    for _ in 0..megabytes * 1_000_000 / block {
        out.write_all(&data).expect("written");
    }
}

fn writer(kind: &str, megabytes: usize, to: OwnedFd) -> Child {
    let exe = std::env::current_exe().expect("own path");
    Command::new(exe)
        .args(["--write", kind, &megabytes.to_string()])
        .stdout(Stdio::from(to))
        .spawn()
        .expect("writer started")
}

/// (seconds, CPU seconds of the mover)
type Figures = (f64, f64);

fn with_cat(kind: &str, megabytes: usize, dir: &Path) -> Figures {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
    let file = File::create(dir.join("cat")).expect("file");
    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN).expect("rusage");
        let (user, system) = (usage.user_time(), usage.system_time());
        (user.tv_sec() + system.tv_sec()) as f64 + (user.tv_usec() + system.tv_usec()) as f64 / 1e6
    };
    let before = cpu();
    let mut cat = Command::new("cat").stdin(Stdio::from(read)).stdout(Stdio::from(file)).spawn().expect("cat started");
    let begin = Instant::now();
    let mut writer = writer(kind, megabytes, write);
    // cat first: only it is counted then.
    assert!(cat.wait().expect("cat ended").success());
    let (seconds, used) = (begin.elapsed().as_secs_f64(), cpu() - before);
    assert!(writer.wait().expect("writer ended").success());
    (seconds, used)
}

/// CPU seconds of the log thread so far.
fn thread_cpu() -> f64 {
    for task in std::fs::read_dir("/proc/self/task").expect("proc") {
        let task = task.expect("task").path();
        if read_to_string(task.join("comm")).is_ok_and(|c| c.trim() == "svd-logs") {
            let stat = read_to_string(task.join("schedstat")).unwrap_or_default();
            let nanos = stat.split(' ').next().and_then(|n| n.parse::<f64>().ok());
            return nanos.expect("a kernel with schedstats") / 1e9;
        }
    }
    panic!("no log thread");
}

fn with_svd(kind: &str, megabytes: usize, dir: &Path, max_size: u64) -> Figures {
    let (tx, rx) = channel();
    let notify = Box::new(move |e| {
        let _ = tx.send(e);
    });
    let thread =
        LogThread::start(Options { log_dir: dir.to_path_buf(), notify, lower_priority: None, in_flight: None });
    let thread = thread.expect("log thread");
    let handle = thread.handle();
    let limits = Logs {
        capture: true,
        stderr: Stderr::Join,
        format: LogFormat::Raw,
        max_size,
        max_age: None,
        keep: 100,
        compress: false,
    };
    handle.configure("svd".into(), limits).expect("configured");
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("pipe");
    let origin = Attach { service: "svd".into(), generation: 1, worker: 0, stream: Stream::Joined, adopted: false };
    let pipe = handle.attach(origin, read).expect("attached");
    // The thread has a name only when it runs: wait for an answer.
    let _ = handle.status("svd".into()).expect("sent").blocking_recv();
    let before = thread_cpu();
    let begin = Instant::now();
    let mut writer = writer(kind, megabytes, write);
    while rx.recv().expect("an event") != (LogEvent::Drained { pipe }) {}
    let figures = (begin.elapsed().as_secs_f64(), thread_cpu() - before);
    assert!(writer.wait().expect("writer ended").success());
    thread.shutdown();
    let written: u64 = std::fs::read_dir(dir.join("svd"))
        .expect("log folder")
        .map(|e| e.expect("entry"))
        .filter(|e| !e.file_name().to_string_lossy().starts_with('.'))
        .map(|e| e.metadata().expect("size").len())
        .sum();
    assert_eq!(written, megabytes as u64 * 1_000_000, "every byte");
    figures
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn run(kind: &str, megabytes: usize) {
    let mut figures: [Vec<Figures>; 3] = Default::default();
    for _ in 0..ROUNDS {
        for (i, list) in figures.iter_mut().enumerate() {
            let dir = tempfile::tempdir().expect("directory");
            list.push(match i {
                0 => with_svd(kind, megabytes, dir.path(), 0),
                1 => with_svd(kind, megabytes, dir.path(), 50_000_000),
                _ => with_cat(kind, megabytes, dir.path()),
            });
        }
    }
    let mb = megabytes as f64;
    let speed_and_cpu = |list: &Vec<Figures>| {
        let speed = median(list.iter().map(|f| mb / f.0).collect());
        let cpu = median(list.iter().map(|f| f.1 / (mb / 1000.0)).collect());
        (speed, cpu)
    };
    let results: Vec<(f64, f64)> = figures.iter().map(speed_and_cpu).collect();
    let (cat_speed, cat_cpu) = results[2];
    for (name, (speed, cpu)) in ["svd", "svd, rotating", "cat > file"].iter().zip(&results) {
        println!(
            "{kind:7} {name:14} {speed:6.0} MB/s ({:.2} of cat's) {cpu:6.2} CPU s/GB ({:.2} of cat's)",
            speed / cat_speed,
            cpu / cat_cpu
        );
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if args.first().is_some_and(|a| a == "--write") {
        let megabytes = args[2].parse().expect("megabytes");
        match args[1].as_str() {
            "lines" => write_child(100, 1, megabytes),
            _ => write_child(40_000, 400, megabytes),
        }
        return;
    }
    let megabytes = args.first().and_then(|a| a.parse().ok()).unwrap_or(1000);
    println!("{megabytes} MB each, median of {ROUNDS}; the second row rotates at 50 MB");
    for kind in ["lines", "blocks"] {
        run(kind, megabytes);
    }
}
