//! svd and its guardian are killed again and again while services write numbered lines as fast as they can: at the end each
//! line is there once, in the order of its writer, and whole.
//!
//! A round has two deaths: of svd alone, which its guardian starts again, and of both. `AIRDOCK_TEST_SEED` repeats the moments as far as a clock can.

use crate::count;
use crate::support::svd::quoted;
use crate::support::{PATIENCE, Svd, alone, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::{Duration, Instant};

const ROUNDS: usize = 6;
const ROUNDS_LONG: usize = 300;

/// Numbered lines of all lengths, in writes that end anywhere.
const WRITER: &str = "
import os, random, time
w = '{worker}'
r = random.Random(int(w) + 7)
n, rest = [0, 0], [b'', b'']
pad = b'abcdefghijklmnopqrstuvwxyz' * 20
def more(fd, last):
    out = []
    for _ in range(r.choice((1, 1, 3, 40, 400))):
        k = n[fd - 1]
        out.append(b'w%s %d %s.\\n' % (w.encode(), k, pad[:k * 37 % 300]))
        n[fd - 1] = k + 1
    data = rest[fd - 1] + b''.join(out)
    cut = len(data) if last else r.randrange(len(data)) + 1
    os.write(fd, data[:cut])
    rest[fd - 1] = data[cut:]
while not os.path.exists(STOP):
    for fd in FDS:
        more(fd, False)
    if r.random() < 0.3:
        time.sleep(0.002)
for fd in FDS:
    more(fd, True)
open(DONE + w + '.new', 'w').write('%d %d' % tuple(n))
os.rename(DONE + w + '.new', DONE + w)
time.sleep(100000)
";

struct Writers {
    name: &'static str,
    instances: usize,
    apart: bool,
    logs: &'static str,
}

const SERVICES: [Writers; 6] = [
    Writers { name: "alone", instances: 1, apart: false, logs: "" },
    Writers { name: "both", instances: 2, apart: false, logs: "" },
    Writers { name: "apart", instances: 1, apart: true, logs: "stderr = 'apart'" },
    Writers { name: "json", instances: 2, apart: false, logs: "format = 'json'\nmax_size = '1MiB'\ncompress = false" },
    Writers { name: "times", instances: 1, apart: false, logs: "format = 'timestamps'" },
    Writers { name: "packed", instances: 2, apart: false, logs: "max_size = '256KiB'\ncompress = true" },
];

impl Writers {
    fn configure(&self, svd: &Svd) {
        let program = WRITER
            .replace("STOP", &quoted(&svd.path("stop")))
            .replace("DONE", &quoted(&svd.path(&format!("done-{}-", self.name))))
            .replace("FDS", if self.apart { "(1, 2)" } else { "(1,)" });
        let logs = if self.logs.contains("max_size") { "" } else { "max_size = 'never'\n" };
        svd.service(
            self.name,
            &format!(
                "kind = \"command\"\ninstances = {}\ncommand = ['/usr/bin/python3', '-u', '-c', '''{program}''']\n\
                 [logs]\nkeep = 10000\n{logs}{}\n[stop]\ngrace = '5s'\n",
                self.instances, self.logs
            ),
        );
    }

    fn files(&self) -> Vec<(&'static str, usize)> {
        if self.apart { vec![("stdout.log", 0), ("stderr.log", 1)] } else { vec![("output.log", 0)] }
    }

    /// What each writer says that it has written.
    fn totals(&self, svd: &Svd) -> Vec<Vec<u64>> {
        let said = |w| fs::read_to_string(svd.path(&format!("done-{}-{w}", self.name))).ok();
        (0..self.instances)
            .map(|w| {
                let text = wait_for("a writer that ends", PATIENCE, || said(w));
                text.split(' ').map(|n| n.parse().expect("a number")).collect()
            })
            .collect()
    }

    fn check(&self, svd: &Svd, totals: &[Vec<u64>]) -> u64 {
        let mut lines = 0;
        for (file, at) in self.files() {
            let mut next: BTreeMap<usize, u64> = (0..self.instances).map(|w| (w, 0)).collect();
            let (mut marks, mut begun) = (0, BTreeMap::new());
            let place = format!("{}/{file}", self.name);
            let mut number = 0;
            each_line(&svd.path(&format!("log/{}", self.name)), file, |line| {
                number += 1;
                let text = std::str::from_utf8(line).unwrap_or_else(|e| panic!("{place}, line {number}: {e}"));
                let Some(text) = self.message(text, &mut marks, &mut begun, &place) else { return };
                let mut words = text.split(' ');
                let mut word = || words.next().unwrap_or_default();
                let (writer, n) = (word().trim_start_matches('w').parse(), word().parse::<u64>());
                let (Ok(writer), Ok(n)) = (writer, n) else { panic!("{place}, line {number}: torn: {text:?}") };
                let expected = next.get_mut(&writer).unwrap_or_else(|| panic!("{place}: nobody's: {text:?}"));
                assert_eq!(n, *expected, "{place}, line {number}, writer {writer}: lost or doubled: {text:?}");
                let pad: String = ('a'..='z').cycle().take((n * 37 % 300) as usize).collect();
                assert_eq!(text, format!("w{writer} {n} {pad}."), "{place}, line {number}: torn");
                *expected += 1;
                lines += 1;
            });
            for (writer, n) in next {
                assert_eq!(n, totals[writer][at], "{place}, writer {writer}: the end is missing");
            }
            assert_eq!(marks, 1, "{place}: marks of the one generation");
        }
        lines
    }

    /// A line as the service wrote it; `None`: a mark, or the end.
    fn message(
        &self,
        line: &str,
        marks: &mut u32,
        begun: &mut BTreeMap<String, String>,
        place: &str,
    ) -> Option<String> {
        if line.is_empty() {
            return None;
        }
        if self.logs.contains("json") {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{place}: torn: {e}: {line:?}"));
            *marks += u32::from(value["event"] == "generation");
            let begun = begun.entry(value["worker"].to_string()).or_default();
            begun.push_str(value["message"].as_str().unwrap_or_default());
            // A writer that got no time in the middle of a line for a second: its next object goes on with it.
            let whole = value["partial"].is_null() && value["message"].is_string();
            return whole.then(|| std::mem::take(begun));
        }
        let line = if self.logs.contains("timestamps") {
            let (time, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{place}: torn: {line:?}"));
            humantime::parse_rfc3339(time).unwrap_or_else(|e| panic!("{place}: torn: {e}: {line:?}"));
            rest
        } else {
            line
        };
        if line.starts_with("-- ") {
            *marks += 1;
            return None;
        }
        Some(line.to_owned())
    }
}

/// The lines of all files of a log, oldest first, the compressed ones unpacked.
fn each_line(dir: &Path, file: &str, mut see: impl FnMut(&[u8])) {
    let mut numbers: Vec<u32> = fs::read_dir(dir)
        .expect("a log directory")
        .filter_map(|e| {
            let name = e.expect("an entry").file_name().into_string().expect("a name");
            name.strip_prefix(file)?.strip_prefix('.')?.trim_end_matches(".gz").parse().ok()
        })
        .collect();
    numbers.sort_unstable();
    numbers.dedup();
    let older = numbers.into_iter().rev().map(|number| format!("{file}.{number}"));
    let mut line = Vec::new();
    for name in older.chain([file.to_owned()]) {
        // Both are there when svd died between two steps: the compressed one is complete.
        let content: Box<dyn Read> = match File::open(dir.join(format!("{name}.gz"))) {
            Ok(packed) => Box::new(flate2::read::MultiGzDecoder::new(packed)),
            Err(_) => Box::new(File::open(dir.join(&name)).expect("a log file")),
        };
        let mut content = BufReader::new(content);
        // A line may go on in the next file.
        while content.read_until(b'\n', &mut line).expect("its content") > 0 {
            if let Some(whole) = line.strip_suffix(b"\n") {
                see(whole);
                line.clear();
            }
        }
    }
    see(&line);
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|n| n.parse().expect("a number"))
}

/// Kills svd alone; its guardian starts another one at once.
fn kill_svd(svd: &Svd) {
    let before = svd.pid();
    kill(Pid::from_raw(before), Signal::SIGKILL).expect("killing svd");
    wait_until("another svd", PATIENCE, || svd.pid() != before);
}

#[test]
fn no_byte_is_lost_doubled_or_torn_by_a_death_of_svd() {
    let _alone = alone();
    let rounds = count(ROUNDS, ROUNDS_LONG);
    let seed = number_of("AIRDOCK_TEST_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    eprintln!("AIRDOCK_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut pause = |most| std::thread::sleep(Duration::from_micros(random.u64(..most)));
    let mut svd = Svd::new();
    for service in &SERVICES {
        service.configure(&svd);
    }
    svd.start();
    for service in &SERVICES {
        svd.wait_state(service.name, "running");
    }
    for round in 0..rounds {
        pause(80_000);
        kill_svd(&svd);
        pause(150_000);
        svd.kill();
        // Pipes fill up now and then.
        if round % 5 == 4 {
            std::thread::sleep(Duration::from_millis(300));
        }
        svd.start();
    }
    svd.leaves_processes = false;
    fs::write(svd.path("stop"), "").expect("telling the writers");
    let totals: Vec<_> = SERVICES.iter().map(|s| s.totals(&svd)).collect();
    assert!(svd.stop().success());
    let lines: Vec<u64> = SERVICES.iter().zip(&totals).map(|(s, totals)| s.check(&svd, totals)).collect();
    eprintln!("{} deaths, {lines:?} lines", 2 * rounds);
}

const ROTATING: [Writers; 3] = [
    Writers { name: "plain", instances: 1, apart: false, logs: "max_size = '128KiB'\ncompress = false" },
    Writers { name: "packed", instances: 2, apart: false, logs: "max_size = '128KiB'\ncompress = true" },
    Writers { name: "json", instances: 1, apart: false, logs: "format = 'json'\nmax_size = '256KiB'\ncompress = true" },
];

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a log directory");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Is a number missing, or the file itself? A compression that svd's end cuts off begins anew with the next one.
fn is_half(dir: &Path) -> bool {
    let names = names(dir);
    let mut numbers: Vec<u32> = names
        .iter()
        .filter_map(|name| name.strip_prefix("output.log.")?.trim_end_matches(".gz").parse().ok())
        .collect();
    numbers.sort_unstable();
    let whole = (1..).zip(&numbers).all(|(wanted, number)| wanted == *number);
    !whole || !names.iter().any(|name| name == "output.log")
}

/// When a directory's entries have changed: a rotation has begun, or a compression, or one of their steps is done.
fn changed(dir: &Path) -> std::time::SystemTime {
    fs::metadata(dir).and_then(|meta| meta.modified()).expect("a log directory")
}

#[test]
fn no_line_is_lost_doubled_or_torn_by_a_death_in_the_middle_of_a_rotation() {
    let _alone = alone();
    let mut svd = Svd::new();
    ROTATING.iter().for_each(|service| service.configure(&svd));
    svd.start();
    ROTATING.iter().for_each(|service| svd.wait_state(service.name, "running"));
    let written = |service: &Writers| svd.path("log").join(service.name).join("output.log").exists();
    wait_until("all of them are heard", PATIENCE, || ROTATING.iter().all(written));
    let (deaths, mut half, mut rotations) = (count(12, 200), 0, 0);
    for n in 0..deaths {
        let name = ROTATING[n % ROTATING.len()].name;
        let dir = svd.path("log").join(name);
        let pid = svd.pid();
        let before = changed(&dir);
        let end = Instant::now() + PATIENCE;
        while changed(&dir) == before {
            assert!(Instant::now() < end, "no rotation");
            std::hint::spin_loop();
        }
        if n % 4 == 3 {
            svd.freeze_guardian();
        }
        kill(Pid::from_raw(pid), Signal::SIGKILL).expect("killing svd");
        if n % 4 == 3 {
            svd.kill_both();
            half += usize::from(is_half(&dir));
            let rotation = dir.join(".output.log.new").exists();
            svd.start();
            let tells = |line: &str| line.contains(name) && line.contains("a rotation of its log, in whose midst");
            let told = || svd.ok(&["events"]).lines().any(tells);
            if rotation {
                wait_until("svd tells what has become of the rotation", PATIENCE, told);
            }
            assert!(rotation || !told(), "nothing was interrupted:\n{}", svd.ok(&["events"]));
            rotations += usize::from(rotation);
        } else {
            wait_until("another svd", PATIENCE, || svd.pid() != pid);
        }
        wait_until("svd answers", PATIENCE, || svd.answers());
    }
    fs::write(svd.path("stop"), "").expect("telling the writers");
    let totals: Vec<_> = ROTATING.iter().map(|s| s.totals(&svd)).collect();
    assert!(svd.stop().success());
    let lines: Vec<u64> = ROTATING.iter().zip(&totals).map(|(s, totals)| s.check(&svd, totals)).collect();
    for service in &ROTATING {
        let dir = svd.path("log").join(service.name);
        assert!(!is_half(&dir), "{}: something half is left: {:?}", service.name, names(&dir));
    }
    println!(
        "{deaths} deaths in rotations, {half} of {} left something half, {rotations} a rotation; {lines:?} lines",
        deaths / 4
    );
}
