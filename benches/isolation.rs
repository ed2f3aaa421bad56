//! What isolation costs a start: a service that is stopped and started, plain and by each profile, in turns in one run.
//!
//! `cargo bench --bench isolation`; `STARTS` is how often each is started (default 50). Needs root and `cc` (a small static
//! child notes its own first instruction). Printed: milliseconds from `svctl start` to that instruction, the median and the
//! longest of nine in ten, and what the median is above the plain one's.

#![expect(clippy::disallowed_methods, reason = "forbidden in the core alone")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use airdock::sys::monotonic_micros;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(30);

/// What the services are called, and the lines of their `[isolation]`.
const SERVICES: [(&str, &str); 9] = [
    ("plain", ""),
    ("rights", "no_new_privileges = true\ncapabilities = []\n"),
    ("syscalls", "syscalls = ['@service']\n"),
    ("landlock", "landlock = true\nwritable = [DIR]\n"),
    (
        "view",
        "private_tmp = true\nread_only = ['/']\nwritable = [DIR]\nhidden = ['/home', '/root']\nprivate_devices = true\n",
    ),
    ("pids", "private_pids = true\n"),
    ("network", "network = 'loopback'\n"),
    ("standard", "profile = 'standard'\nwritable = [DIR]\n"),
    (
        "all",
        "profile = 'strict'\nwritable = [DIR]\nbind = { '/mnt' = '/srv:ro' }\nlandlock = true\nnetwork = 'loopback'\n",
    ),
];

fn main() {
    // `cargo test` runs benches once, too: it is no place to measure.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: needs root, for a plain user's svd does it in a user namespace");
        return;
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let rounds = std::env::var("STARTS").ok().and_then(|v| v.parse().ok()).unwrap_or(50);
    let bench = Bench { dir: dir.path().to_owned() };
    let svd = bench.svd();
    let mut times = vec![Vec::new(); SERVICES.len()];
    // The first round warms caches.
    for round in 0..=rounds {
        for ((name, _), times) in SERVICES.iter().zip(&mut times) {
            let time = bench.start(name);
            if round > 0 {
                times.push(time);
            }
        }
    }
    drop(svd);
    let mut plain = None;
    println!("{rounds} starts of each, ms from `svctl start` to the program's first instruction");
    for ((name, _), mut times) in SERVICES.iter().zip(times) {
        times.sort_by(f64::total_cmp);
        let (median, late) = (times[times.len() / 2], times[times.len() * 9 / 10]);
        let above = median - *plain.get_or_insert(median);
        println!("  {name:10} median {median:6.2}  nine in ten {late:6.2}  above plain {above:6.2}");
    }
}

struct Bench {
    dir: PathBuf,
}

/// Ends with all that it runs.
struct Svd(Child);

impl Drop for Svd {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

impl Bench {
    fn records(&self, name: &str) -> PathBuf {
        self.dir.join("records").join(name)
    }

    fn svd(&self) -> Svd {
        let program = self.dir.join("bin/child");
        for name in ["bin", "conf.d", "records"] {
            fs::create_dir(self.dir.join(name)).expect("a directory");
        }
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/child.c");
        let built = Command::new("cc").args(["-static", "-O2", "-o"]).arg(&program).arg(source).status();
        assert!(built.is_ok_and(|s| s.success()), "cc cannot build the child");
        for (name, keys) in SERVICES {
            let command = [program.display().to_string(), self.records(name).display().to_string()];
            let keys = keys.replace("DIR", &format!("{:?}", self.dir.join("records").display().to_string()));
            let text = format!(
                "kind = \"command\"\nautostart = false\ncommand = {command:?}\n[restart]\nsettled = \"1ms\"\n[logs]\ncapture = false\n\
                 [isolation]\n{keys}"
            );
            fs::write(self.dir.join(format!("conf.d/{name}.toml")), text).expect("a file");
        }
        let place = |name: &str| self.dir.join(name);
        let process = Command::new(env!("CARGO_BIN_EXE_svd"))
            .args([Path::new("-c"), &self.dir, Path::new("--run-dir"), &place("run")])
            .args([Path::new("--state-dir"), &place("state"), Path::new("--log-dir"), &place("log")])
            .stdin(Stdio::null())
            .spawn()
            .expect("svd starts");
        let svd = Svd(process);
        wait_until("svd listens", || self.dir.join("run/svd.sock").exists());
        svd
    }

    fn svctl(&self, verb: &str, name: &str) {
        let socket = self.dir.join("run/svd.sock");
        let made = Command::new(env!("CARGO_BIN_EXE_svctl")).arg("--socket").arg(socket).args([verb, name]).output();
        let made = made.expect("svctl runs");
        assert!(
            made.status.success(),
            "{}{}",
            String::from_utf8_lossy(&made.stdout),
            String::from_utf8_lossy(&made.stderr)
        );
    }

    /// Milliseconds until its first instruction. It is stopped before and after.
    fn start(&self, name: &str) -> f64 {
        let records = self.records(name);
        let _ = fs::remove_file(&records);
        let begun = monotonic_micros();
        self.svctl("start", name);
        wait_until("it runs", || fs::metadata(&records).is_ok_and(|m| m.len() >= 16));
        let record = fs::read(&records).expect("its record");
        let nanos = i64::from_ne_bytes(record[..8].try_into().expect("eight bytes"));
        self.svctl("stop", name);
        (nanos as u64 / 1000 - begun) as f64 / 1e3
    }
}

fn wait_until(what: &str, is: impl Fn() -> bool) {
    let until = Instant::now() + LIMIT;
    while !is() {
        assert!(Instant::now() < until, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}
