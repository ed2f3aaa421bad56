//! svd with 1,000 services beside the bare system calls, in one run: cold start, idle, a killed worker's replacement,
//! status, stop.
//!
//! `cargo bench --bench supervise`; `SERVICES` is how many (default 1,000), `ROUNDS` how often (default 3). Needs `cc`
//! (a small static child notes its own first instruction) and takes half a minute. Ratios are what counts: the machine
//! should have nothing else to do.

#![expect(clippy::disallowed_methods, reason = "forbidden in the core alone")]

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use airdock::sys::cgroup::{Group, Tree};
use airdock::sys::monotonic_micros;
use airdock::sys::process::{ProcStat, all_pids, pss};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, execve, fork};

const LIMIT: Duration = Duration::from_secs(60);

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn main() {
    // `cargo test` runs benches once, too: it is no place to measure.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let bench = Bench { count: number("SERVICES", 1000), program: compile(dir.path()), dir: dir.path().to_owned() };
    for _ in 0..number("ROUNDS", 3) {
        bench.round();
    }
}

/// Of all threads.
fn switches(pid: i32) -> u64 {
    let of = |task: &Path| {
        let text = fs::read_to_string(task.join("status")).unwrap_or_default();
        let line = text.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:").map(str::to_owned));
        line.and_then(|l| l.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(|entry| of(&entry.path())).sum()
}

fn compile(dir: &Path) -> PathBuf {
    let program = dir.join("child");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/child.c");
    let built = Command::new("cc").args(["-static", "-O2", "-o"]).arg(&program).arg(source).status();
    assert!(built.is_ok_and(|s| s.success()), "cc cannot build the child");
    program
}

struct Bench {
    count: usize,
    program: PathBuf,
    dir: PathBuf,
}

/// A record of the child: microseconds of CLOCK_MONOTONIC, pid.
type Record = (u64, i32);

impl Bench {
    fn records(&self) -> Vec<Record> {
        let bytes = fs::read(self.dir.join("records")).unwrap_or_default();
        let word = |b: &[u8]| i64::from_ne_bytes(b.try_into().expect("eight bytes"));
        bytes.chunks_exact(16).map(|r| (word(&r[..8]) as u64 / 1000, word(&r[8..]) as i32)).collect()
    }

    fn wait_for(&self, count: usize) -> Vec<Record> {
        let until = Instant::now() + LIMIT;
        loop {
            let length = fs::metadata(self.dir.join("records")).map_or(0, |m| m.len());
            if length >= 16 * count as u64 {
                return self.records();
            }
            assert!(Instant::now() < until, "{count} children did not run within {LIMIT:?}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    fn forget(&self) {
        let _ = fs::remove_file(self.dir.join("records"));
    }

    fn round(&self) {
        let bare = self.bare();
        let (svd, mut process) = self.svd();
        let ratio = |a: f64, b: f64| a / b;
        let shown = |name: &str, unit: &str, ours: f64, bare: f64| {
            println!("  {name:28} {ours:9.2} {unit:3} bare {bare:9.2} {unit:3} {:5.2} ×", ratio(ours, bare));
        };
        println!("{} services", self.count);
        shown("cold start until all run", "ms", svd.start, bare.start);
        self.idle(&process);
        let replaced = self.replacements(50);
        shown("kill to first instruction", "ms", replaced, bare.replaced);
        let status = self.status();
        println!("  svctl status of all          {status:9.2} ms");
        let begun = monotonic_micros();
        let _ = kill(Pid::from_raw(process.id() as i32), Signal::SIGTERM);
        let _ = process.wait();
        let stopped = (monotonic_micros() - begun) as f64 / 1e3;
        shown("stop", "ms", stopped, bare.stop);
        if let Some(grouped) = bare.stop_grouped {
            shown("  each in a control group", "ms", stopped, grouped);
        }
    }

    fn bare(&self) -> Bare {
        self.forget();
        let program = CString::new(self.program.to_string_lossy().into_owned()).expect("no NUL");
        let records = CString::new(self.dir.join("records").to_string_lossy().into_owned()).expect("no NUL");
        let spawn = || bare_child(&program, &records);
        let begun = monotonic_micros();
        let mut children: Vec<Pid> = (0..self.count).map(|_| spawn()).collect();
        let last = self.wait_for(self.count).iter().map(|r| r.0).max().unwrap_or(begun);
        let start = (last - begun) as f64 / 1e3;
        let mut replaced = Vec::new();
        for n in 1..=50 {
            let victim = children.pop().expect("there are more");
            let begun = monotonic_micros();
            let _ = kill(victim, Signal::SIGKILL);
            let _ = waitpid(victim, None);
            children.insert(0, spawn());
            let last = self.wait_for(self.count + n).iter().map(|r| r.0).max().unwrap_or(begun);
            replaced.push((last - begun) as f64 / 1e3);
        }
        let stop = stop_bare(children, &[]);
        let stop_grouped = Tree::create(&format!("bench-{}", std::process::id())).ok().map(|tree| {
            let children: Vec<Pid> = (0..self.count).map(|_| spawn()).collect();
            let groups: Vec<Group> = children.iter().filter_map(|child| grouped(&tree, *child)).collect();
            assert_eq!(groups.len(), children.len(), "every child is in its group");
            let stop = stop_bare(children, &groups);
            let _ = tree.remove();
            stop
        });
        Bare { start, replaced: median(replaced), stop, stop_grouped }
    }

    fn svd(&self) -> (Started, Child) {
        self.forget();
        let config = self.dir.join("conf.d");
        fs::create_dir_all(&config).expect("mkdir");
        for n in 0..self.count {
            let command = [self.program.display().to_string(), self.dir.join("records").display().to_string()];
            let text = format!(
                "kind = \"command\"\ncommand = {command:?}\n[restart]\ndelay = \"0s\"\nsettled = \"100ms\"\n[logs]\ncapture = false\n"
            );
            fs::write(config.join(format!("s{n:04}.toml")), text).expect("write");
        }
        let begun = monotonic_micros();
        let process = Command::new(env!("CARGO_BIN_EXE_svd"))
            .arg("-c")
            .arg(&self.dir)
            .arg("--run-dir")
            .arg(self.dir.join("run"))
            .arg("--state-dir")
            .arg(self.dir.join("state"))
            .arg("--log-dir")
            .arg(self.dir.join("log"))
            .stdin(Stdio::null())
            .spawn()
            .expect("svd starts");
        let last = self.wait_for(self.count).iter().map(|r| r.0).max().unwrap_or(begun);
        (Started { start: (last - begun) as f64 / 1e3 }, process)
    }

    /// Memory and wake-ups, when things have settled.
    fn idle(&self, process: &Child) {
        std::thread::sleep(Duration::from_secs(6));
        // svd and its guardian, with all their threads.
        let guardian = process.id() as i32;
        let of_it = |stat: &ProcStat| stat.parent == guardian && stat.comm.starts_with("svd");
        let svd = all_pids().into_iter().filter_map(ProcStat::read).find(of_it).expect("an svd below its guardian").pid;
        let pids = [guardian, svd];
        let before: u64 = pids.into_iter().map(switches).sum();
        std::thread::sleep(Duration::from_secs(5));
        let after: u64 = pids.into_iter().map(switches).sum();
        let [guardian, svd] = pids.map(|pid| pss(pid).unwrap_or(0) as f64 / 1e6);
        let both = guardian + svd;
        println!("  idle: {both:.2} MB (PSS; the guardian {guardian:.2}), {} wake-ups in 5 s", after - before);
    }

    fn replacements(&self, count: usize) -> f64 {
        let victims: Vec<i32> = self.records().iter().take(count).map(|r| r.1).collect();
        let mut times = Vec::new();
        for victim in victims {
            let have = self.records().len();
            let begun = monotonic_micros();
            let _ = kill(Pid::from_raw(victim), Signal::SIGKILL);
            let last = self.wait_for(have + 1).last().map_or(begun, |r| r.0);
            times.push((last - begun) as f64 / 1e3);
        }
        median(times)
    }

    fn status(&self) -> f64 {
        let mut times = Vec::new();
        for _ in 0..10 {
            let begun = Instant::now();
            let socket = self.dir.join("run/svd.sock");
            let shown = Command::new(env!("CARGO_BIN_EXE_svctl")).arg("--socket").arg(socket).arg("status").output();
            let lines = shown.map_or(0, |o| o.stdout.iter().filter(|b| **b == b'\n').count());
            assert!(lines > self.count, "svctl status shows {lines} lines");
            times.push(begun.elapsed().as_secs_f64() * 1e3);
        }
        median(times)
    }
}

struct Bare {
    start: f64,
    replaced: f64,
    stop: f64,
    /// The same with a control group for each, which is removed. `None`: there is no tree to be had.
    stop_grouped: Option<f64>,
}

struct Started {
    start: f64,
}

fn bare_child(program: &CString, records: &CString) -> Pid {
    let arguments = [program, records];
    // SAFETY: this program has one thread, and the child executes or ends at once.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => child,
        Ok(ForkResult::Child) => {
            let _ = execve::<_, CString>(program, &arguments, &[]);
            std::process::abort()
        }
        Err(e) => panic!("cannot fork: {e}"),
    }
}

/// Milliseconds.
fn stop_bare(children: Vec<Pid>, groups: &[Group]) -> f64 {
    let begun = monotonic_micros();
    for child in &children {
        let _ = kill(*child, Signal::SIGTERM);
    }
    for child in children {
        let _ = waitpid(child, None);
    }
    for group in groups {
        let _ = group.remove();
    }
    (monotonic_micros() - begun) as f64 / 1e3
}

/// Puts the child into a control group of its own, as svd does, so that nothing of it can survive.
fn grouped(tree: &Arc<Tree>, child: Pid) -> Option<Group> {
    let group = tree.group(&child.to_string()).ok()?;
    fs::write(group.path().join("cgroup.procs"), child.to_string()).ok()?;
    Some(group)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
