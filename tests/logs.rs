//! What services write: kept to the byte, through rotation, reloads and a full disk.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;
use support::plain::{SLEEP, lines, needs_root, python, script};
use support::svd::quoted;
use support::{PATIENCE, Svd, alone, wait_until};

fn log(svd: &Svd, name: &str, file: &str) -> PathBuf {
    svd.path(&format!("log/{name}/{file}"))
}

/// A file without the lines with which svd marks generations.
fn bytes(path: &Path) -> Vec<u8> {
    let all = fs::read(path).unwrap_or_default();
    let mut kept = Vec::with_capacity(all.len());
    for line in all.split_inclusive(|b| *b == b'\n') {
        if !(line.starts_with(b"-- ") && line.ends_with(b" --\n")) {
            kept.extend_from_slice(line);
        }
    }
    kept
}

/// All files of a log, oldest first, the compressed ones unpacked.
fn whole(svd: &Svd, name: &str, file: &str) -> Vec<u8> {
    let numbered = |n: usize| {
        let plain = log(svd, name, &format!("{file}.{n}"));
        let packed = log(svd, name, &format!("{file}.{n}.gz"));
        if packed.exists() && !plain.exists() {
            let unpacked = Command::new("gzip").arg("-dc").arg(packed).output().expect("gzip");
            assert!(unpacked.status.success());
            let kept = svd.path("unpacked");
            fs::write(&kept, unpacked.stdout).expect("a file");
            return kept;
        }
        plain
    };
    let last = (1..).find(|n| !numbered(*n).exists()).expect("an end");
    let mut all = Vec::new();
    for n in (1..last).rev() {
        all.extend(bytes(&numbered(n)));
    }
    all.extend(bytes(&log(svd, name, file)));
    all
}

#[test]
fn bytes_are_kept_as_they_are() {
    let mut svd = Svd::new();
    let text =
        "printf 'plain\\n\\000\\377\\001 \\033[31mred\\033[0m\\r\\n'; printf 'no end of line'; exec sleep 100000";
    svd.service("raw", &script(text, ""));
    svd.start();
    let wanted: &[u8] = b"plain\n\x00\xff\x01 \x1b[31mred\x1b[0m\r\nno end of line";
    svd.wait_state("raw", "running");
    svd.ok(&["stop", "raw"]);
    let is = || bytes(&log(&svd, "raw", "output.log"));
    wait_until("everything is in the file", PATIENCE, || is().starts_with(wanted));
    assert!(is()[wanted.len()..].iter().all(|b| *b == b'\n'), "{:?}", String::from_utf8_lossy(&is()));
}

#[test]
fn stdout_and_stderr_apart_joined_and_dropped() {
    let mut svd = Svd::new();
    let text = format!("echo to stdout; echo to stderr >&2; {SLEEP}");
    svd.service("joined", &script(&text, ""));
    svd.service("apart", &script(&text, "[logs]\nstderr = 'apart'"));
    svd.service(
        "none",
        &script(
            &format!("x=$(readlink /proc/$$/fd/1); echo $x >{}; {text}", svd.path("where").display()),
            "[logs]\ncapture = false",
        ),
    );
    svd.start();
    for name in ["joined", "apart", "none"] {
        svd.wait_state(name, "running");
    }
    assert_eq!(bytes(&log(&svd, "joined", "output.log")), b"to stdout\nto stderr\n");
    assert_eq!(bytes(&log(&svd, "apart", "stdout.log")), b"to stdout\n");
    assert_eq!(bytes(&log(&svd, "apart", "stderr.log")), b"to stderr\n");
    assert_eq!(fs::read_to_string(svd.path("where")).unwrap_or_default(), "/dev/null\n");
    assert!(!log(&svd, "none", "output.log").exists());
    assert!(svd.ok(&["logs", "apart", "--stderr"]).contains("to stderr"));
    assert!(!svd.ok(&["logs", "apart"]).contains("to stderr"));
}

/// Numbered lines as fast as Python can, some across the writes.
const FAST: &str = "
import os, time
data = b''.join(b'line %07d of a fast writer\\n' % n for n in range(COUNT))
step = 40009
for at in range(0, len(data), step):
    os.write(1, data[at:at + step])
open(DONE, 'w').write('done')
time.sleep(100000)
";

#[test]
fn rotation_under_a_fast_writer_loses_nothing() {
    let _alone = alone();
    let mut svd = Svd::new();
    let count = 600_000;
    for (name, compress) in [("plain", false), ("packed", true)] {
        let done = svd.path(&format!("done-{name}"));
        let program = FAST.replace("COUNT", &count.to_string()).replace("DONE", &quoted(&done));
        let more = format!("[logs]\nmax_size = '1MiB'\nkeep = 1000\ncompress = {compress}");
        svd.service(name, &python(&program, &more));
    }
    svd.start();
    for name in ["plain", "packed"] {
        wait_until("all is written", PATIENCE, || svd.path(&format!("done-{name}")).exists());
    }
    svd.stop();
    for name in ["plain", "packed"] {
        let all = whole(&svd, name, "output.log");
        let mut n = 0;
        for line in all.split_inclusive(|b| *b == b'\n') {
            assert_eq!(line, format!("line {n:07} of a fast writer\n").as_bytes(), "{name}, line {n}");
            n += 1;
        }
        assert_eq!(n, count, "{name}");
        let files = fs::read_dir(svd.path(&format!("log/{name}"))).expect("its directory").count();
        assert!(files > 10, "{files} files");
    }
}

#[test]
fn old_files_go_and_usr2_opens_anew() {
    let mut svd = Svd::new();
    let text = "n=0; while [ $n -lt 400 ]; do n=$((n+1)); echo line $n of some length, so that files fill; done; \
                while :; do echo tick; sleep 0.05; done";
    svd.service("few", &script(text, "[logs]\nmax_size = '4KiB'\nkeep = 2\ncompress = false"));
    svd.start();
    wait_until("it has ticked", PATIENCE, || lines(&svd, "few", "tick") > 0);
    let mut names: Vec<String> = fs::read_dir(svd.path("log/few"))
        .expect("its directory")
        .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.contains("index"))
        .collect();
    names.sort();
    names.retain(|n| n.starts_with("output.log"));
    assert_eq!(names, ["output.log", "output.log.1", "output.log.2"]);
    // What logrotate does.
    fs::rename(log(&svd, "few", "output.log"), svd.path("taken.log")).expect("moving the file away");
    svd.signal(Signal::SIGUSR2);
    wait_until("a new file", PATIENCE, || lines(&svd, "few", "tick") > 0);
}

#[test]
fn times_and_json_on_request() {
    let mut svd = Svd::new();
    let text = format!("echo one; echo 'a \"b\" \\ c' >&2; {SLEEP}");
    svd.service("times", &script(&text, "[logs]\nformat = 'timestamps'"));
    svd.service("json", &script(&text, "[logs]\nformat = 'json'\nstderr = 'apart'"));
    svd.start();
    for name in ["times", "json"] {
        svd.wait_state(name, "running");
    }
    let times = svd.output("times");
    let line = times.lines().find(|l| l.ends_with(" one")).unwrap_or_else(|| panic!("{times}"));
    let at = line.split(' ').next().expect("a time");
    assert!(humantime::parse_rfc3339(at).is_ok() && at.ends_with('Z'), "{line}");
    let json = |file: &str| -> Vec<Value> {
        let text = fs::read_to_string(log(&svd, "json", file)).expect("a file");
        text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    };
    let err = json("stderr.log");
    let said = err.iter().find(|v| v["message"] == "a \"b\" \\ c").unwrap_or_else(|| panic!("{err:?}"));
    assert_eq!((&said["service"], &said["stream"], &said["generation"]), (&"json".into(), &"stderr".into(), &1.into()));
    assert!(json("stdout.log").iter().any(|v| v["message"] == "one"));
}

/// `svctl logs -f`, line by line.
struct Follow {
    child: Child,
    lines: Receiver<String>,
}

impl Follow {
    fn start(svd: &Svd, args: &[&str]) -> Follow {
        let mut command = svd.svctl_command(args);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().expect("starting svctl");
        let stdout: ChildStdout = child.stdout.take().expect("its stdout");
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        Follow { child, lines }
    }

    #[track_caller]
    fn next(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("another line")
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn following_through_rotation_and_reload() {
    let mut svd = Svd::new();
    let counter = svd.path("counter");
    fs::write(&counter, "0").expect("a file");
    let text = format!(
        "while :; do n=$(($(cat {0})+1)); echo $n >{0}; echo number $n {{service}} and a few more words; sleep 0.004; done",
        counter.display()
    );
    // Enough files for a follower that gets no processor for some seconds.
    svd.service("count", &script(&text, "[logs]\nmax_size = '4KiB'\nkeep = 20\n[stop]\ngrace = '1s'"));
    svd.start();
    wait_until("it counts", PATIENCE, || lines(&svd, "count", "number") > 3);
    let follow = Follow::start(&svd, &["logs", "-f", "-n", "1", "count"]);
    let number = |line: &str| line.strip_prefix("number ").and_then(|l| l.split(' ').next()?.parse::<u64>().ok());
    let mut last = None;
    let mut seen = 0;
    let mut reloaded = false;
    while seen < 600 {
        let line = follow.next();
        let Some(n) = number(&line) else { continue };
        assert!(last.is_none_or(|last| n == last + 1), "after {last:?} came {n}");
        last = Some(n);
        seen += 1;
        if seen == 300 && !reloaded {
            svd.ok(&["reload", "count"]);
            reloaded = true;
        }
    }
    assert!(log(&svd, "count", "output.log.2").exists() || log(&svd, "count", "output.log.2.gz").exists());
}

#[test]
fn following_goes_on_where_it_was_after_a_restart_of_svd() {
    let mut svd = Svd::new();
    let counter = svd.path("counter");
    fs::write(&counter, "0").expect("a file");
    let text = format!(
        "n=$(cat {0}); trap 'end=1' TERM; while [ -z \"$end\" ]; do n=$((n+1)); echo number $n and a few more words; \
         sleep 0.004; done; echo $n >{0}",
        counter.display()
    );
    svd.service("count", &script(&text, "[logs]\nmax_size = '4KiB'\nkeep = 100\n[stop]\ngrace = '5s'"));
    svd.start();
    wait_until("it counts", PATIENCE, || lines(&svd, "count", "number") > 3);
    let follow = Follow::start(&svd, &["logs", "-f", "-n", "1", "count"]);
    let mut last = None;
    let mut until = |most: u64| {
        while last.is_none_or(|last| last < most) {
            let line = follow.next();
            let Some(n) = line.strip_prefix("number ").and_then(|l| l.split(' ').next()?.parse::<u64>().ok()) else {
                assert!(line.starts_with("-- count"), "{line}");
                continue;
            };
            assert!(last.is_none_or(|last| n == last + 1), "after {last:?} came {n}");
            last = Some(n);
        }
        last.unwrap_or_default()
    };
    let mut seen = until(100);
    for _ in 0..3 {
        assert!(svd.stop().success());
        svd.start();
        seen = until(seen + 200);
    }
}

#[test]
fn the_last_lines_and_those_since() {
    let mut svd = Svd::new();
    let gate = svd.path("gate");
    let text = format!("seq 1 50; while ! test -e {}; do sleep 0.05; done; echo fresh; {SLEEP}", gate.display());
    svd.service("some", &script(&text, ""));
    svd.service("silent", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("some", "running");
    svd.wait_state("silent", "running");
    assert_eq!(svd.ok(&["logs", "some", "-n", "3"]), "48\n49\n50\n");
    assert_eq!(svd.ok(&["logs", "some"]).lines().count(), 10);
    assert_eq!(svd.ok(&["tail", "some", "-n", "1"]), "50\n");
    assert!(svd.ok(&["logs", "some", "--since", "10m"]).contains("\n1\n2\n"));
    std::thread::sleep(Duration::from_millis(2500));
    fs::write(&gate, "").expect("opening the gate");
    wait_until("it goes on", PATIENCE, || svd.output("some").contains("fresh"));
    let since = svd.ok(&["logs", "some", "--since", "2s"]);
    assert!(since.contains("fresh"), "{since}");
    assert!(svd.fails(&["logs", "nobody-knows"]).contains("no service"));
    let quoted = svd.fails(&["logs", "some", "--since", "yesterday-ish"]);
    assert!(quoted.contains("yesterday-ish"), "{quoted}");
}

#[test]
fn the_lines_of_several_services() {
    let mut svd = Svd::new();
    let gate = svd.path("gate");
    let text = |name: &str| {
        let after = format!("while ! test -e {}; do sleep 0.05; done; echo {name} goes on; {SLEEP}", gate.display());
        script(&format!("echo {name} begins; {after}"), "")
    };
    for name in ["web", "web-queue", "other"] {
        svd.service(name, &text(name));
    }
    svd.start();
    for name in ["web", "web-queue", "other"] {
        wait_until("it has begun", PATIENCE, || svd.output(name).contains("begins"));
    }
    let both = svd.ok(&["logs", "web*", "-n", "1"]);
    assert_eq!(both, "web       | web begins\nweb-queue | web-queue begins\n");
    assert_eq!(svd.ok(&["logs", "other", "web", "-n", "1"]), "other | other begins\nweb   | web begins\n");
    let document = svd.ok(&["--json", "logs", "web*", "-n", "1"]);
    let expected = r#"{"services":[{"lines":["web begins"],"service":"web"},{"lines":["web-queue begins"],"service":"web-queue"}]}"#;
    assert_eq!(document.trim_end(), expected);
    assert!(svd.fails(&["logs", "web", "nobody-knows"]).contains("no service"));

    let follow = Follow::start(&svd, &["logs", "-f", "-n", "1", "web", "other"]);
    let mut seen = [follow.next(), follow.next()];
    seen.sort();
    assert_eq!(seen, ["other | other begins", "web   | web begins"]);
    fs::write(&gate, "").expect("opening the gate");
    let mut seen = [follow.next(), follow.next()];
    seen.sort();
    assert_eq!(seen, ["other | other goes on", "web   | web goes on"]);
}

/// Runs a command with a terminal as its stdout; what it wrote there.
fn on_terminal(mut command: Command) -> Vec<u8> {
    let pty = nix::pty::openpty(None, None).expect("a terminal");
    let mut child = command.stdin(Stdio::null()).stdout(File::from(pty.slave)).spawn().expect("starting it");
    drop(command);
    let mut master = File::from(pty.master);
    let (mut all, mut buffer) = (Vec::new(), [0_u8; 4096]);
    // EIO: nobody has the other end open any more.
    while let Ok(n @ 1..) = master.read(&mut buffer) {
        all.extend_from_slice(&buffer[..n]);
    }
    assert!(child.wait().expect("its end").success());
    all
}

#[test]
fn control_characters_do_not_reach_a_terminal() {
    let mut svd = Svd::new();
    let text = format!("printf 'a\\033]0;title\\007b\\010\\302\\233c\\n'; {SLEEP}");
    svd.service("evil", &script(&text, ""));
    svd.start();
    svd.wait_state("evil", "running");
    let shown = on_terminal(svd.svctl_command(&["logs", "evil", "-n", "1"]));
    let shown = String::from_utf8(shown).expect("text");
    assert!(shown.trim_end().chars().all(|c| !c.is_control()), "{shown:?}");
    assert!(shown.contains("title"), "{shown:?}");
    let raw = on_terminal(svd.svctl_command(&["logs", "evil", "-n", "1", "--raw"]));
    assert!(raw.contains(&0x1b), "{raw:?}");
    assert!(svd.svctl(&["logs", "evil", "-n", "1"]).stdout.contains(&0x1b), "a pipe gets the bytes");
}

/// A file system of 2 MiB in memory, gone at the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<SmallDisk> {
        fs::create_dir_all(&at).expect("a directory");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=2m", "airdock-test"]).arg(&at).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: a tmpfs cannot be mounted here");
            return None;
        }
        Some(SmallDisk(at))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_stops_no_service() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let Some(disk) = SmallDisk::mount(svd.path("log")) else { return };
    let beat = svd.path("beat");
    let text = format!("n=0; while :; do n=$((n+1)); echo $n >{}; echo line $n; sleep 0.01; done", beat.display());
    svd.service("writer", &script(&text, ""));
    svd.start();
    wait_until("it writes", PATIENCE, || lines(&svd, "writer", "line") > 3);
    let filler = disk.0.join("filler");
    let mut zero = File::open("/dev/zero").expect("zeros");
    let _ = std::io::copy(&mut zero, &mut File::create(&filler).expect("a file"));
    wait_until("svd tells of it", PATIENCE, || svd.ok(&["events"]).contains("No space left"));
    let number = || fs::read_to_string(&beat).ok().and_then(|t| t.trim().parse::<u64>().ok()).unwrap_or_default();
    let then = number();
    wait_until("the service goes on", PATIENCE, || number() > then + 50);
    svd.wait_state("writer", "running");
    let table = svd.ok(&["status"]);
    assert!(table.contains("its output is lost: cannot write") && table.contains("No space left"), "{table}");
    assert_eq!(
        (metric(&svd, "airdock_svd_logs_failing "), metric(&svd, "airdock_svd_logs_lost_bytes_total ")),
        (1.0, 0.0)
    );
    fs::remove_file(&filler).expect("making room");
    let before = lines(&svd, "writer", "line");
    wait_until("its output is kept again", PATIENCE, || lines(&svd, "writer", "line") > before + 10);
    let events = svd.ok(&["events"]);
    assert!(events.contains("bytes"), "how much was lost is told:\n{events}");
    assert!(!svd.ok(&["status"]).contains("its output is lost"));
    assert!(
        metric(&svd, "airdock_svd_logs_failing ") < 1.0 && metric(&svd, "airdock_svd_logs_lost_bytes_total ") > 0.0
    );
    // Unmounted before svd's own directory is removed, and after svd has let go of it.
    svd.stop();
}

/// A number of svd's own in `/metrics`.
fn metric(svd: &Svd, name: &str) -> f64 {
    let (_, text) = support::http_get(svd.public, "/metrics").expect("the metrics");
    let line = text.lines().find(|line| line.starts_with(name)).map(str::to_owned);
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("no {name}:\n{text}"))
}

#[test]
fn what_is_lost_is_shown_as_long_as_something_is() {
    let mut svd = Svd::new();
    // A directory has the file's name.
    let blocked = log(&svd, "quiet", "output.log");
    fs::create_dir_all(&blocked).expect("a directory");
    let text = format!("echo once; {SLEEP}");
    svd.service("quiet", &script(&text, ""));
    svd.start();
    let failing = |svd: &Svd| metric(svd, "airdock_svd_logs_failing ") > 0.0;
    let shown = |svd: &Svd| svd.ok(&["status"]).contains("its output is lost: cannot open");
    wait_until("the loss is shown", PATIENCE, || shown(&svd) && failing(&svd));
    svd.ok(&["stop", "quiet"]);
    assert!(!shown(&svd) && !failing(&svd), "nothing runs whose output could be lost");
    svd.ok(&["start", "quiet"]);
    assert!(shown(&svd) && failing(&svd), "and this one's is");
    // Its output goes to files that can be written; nothing goes to the one that can't.
    svd.service("quiet", &script(&text, "[logs]\nstderr = 'apart'"));
    svd.ok(&["update"]);
    svd.ok(&["restart", "quiet"]);
    wait_until("it writes", PATIENCE, || bytes(&log(&svd, "quiet", "stdout.log")).ends_with(b"once\n"));
    assert!(!shown(&svd) && !failing(&svd), "{}", svd.ok(&["status"]));
    svd.service("quiet", &script(&text, ""));
    svd.ok(&["update"]);
    svd.ok(&["restart", "quiet"]);
    wait_until("the loss is shown again", PATIENCE, || shown(&svd) && failing(&svd));
    fs::remove_dir(&blocked).expect("an empty directory");
    wait_until("it is over, without any output", PATIENCE, || !shown(&svd) && !failing(&svd));
    assert!(svd.ok(&["logs", "quiet"]).contains("of output were lost: "));
}
