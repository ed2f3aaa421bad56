//! Every verb on many hosts.

use super::bed::{Bed, wait_line};
use super::support::PATIENCE;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;

/// Lines of a program's stdout as they come.
fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let out = child.stdout.take().expect("a pipe");
    std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// A svctl that is told to end when it is dropped.
struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        // It was not waited for, so that the number is its own.
        let pid = nix::unistd::Pid::from_raw(self.0.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        let _ = self.0.wait();
    }
}

fn beside(bed: &Bed, words: &[&str]) -> (Beside, mpsc::Receiver<String>) {
    let mut child = bed.svctl_command(words).stdout(Stdio::piped()).spawn().expect("svctl");
    let lines = lines(&mut child);
    (Beside(child), lines)
}

#[test]
fn verbs_that_act() {
    let Some(bed) = Bed::start(2) else { return };
    for (words, line) in [
        (&["stop", "web"][..], "web: "),
        (&["start", "web"], "web: "),
        (&["restart", "web"], "web: "),
        (&["signal", "WINCH", "web"], "web: "),
        (&["disable", "web"], "web: "),
        (&["enable", "web"], "web: "),
        (&["drain", "web"], "web: "),
        (&["undrain", "web"], "web: "),
        (&["update"], "Nothing has changed."),
        (&["version"], "svd "),
    ] {
        let out = bed.ok(&[&["-H", "all"], words].concat());
        for host in ["web-0", "web-1"] {
            let told = out.lines().any(|text| text.starts_with(&format!("{host} | ")) && text.contains(line));
            assert!(told, "{words:?}: {out}");
        }
    }
    let pids = bed.ok(&["-H", "all", "pid", "web"]);
    let expected: String =
        bed.hosts.iter().map(|host| format!("{} | {}\n", host.name, host.svd.main_pid("web"))).collect();
    assert_eq!(pids, expected);
    assert_eq!(bed.ok(&["-H", "all", "is-active", "web"]), "web-0 | running\nweb-1 | running\n");
    // The highest code counts, and the others have done theirs.
    bed.hosts[0].svd.ok(&["stop", "web"]);
    let (code, out, _) = bed.told(&["-H", "all", "is-active", "web"]);
    assert_eq!((code, out.as_str()), (3, "web-0 | stopped\nweb-1 | running\n"));
    let (code, out, err) = bed.told(&["-H", "all", "restart", "none"]);
    assert!(code == 4 && out.is_empty() && err.lines().any(|line| line.starts_with("web-1 | ")), "{code} {out} {err}");
    bed.ok(&["-H", "web-1", "shutdown"]);
    assert!(!bed.hosts[1].svd.socket().exists());
}

#[test]
fn commands_and_their_exit_codes() {
    let Some(bed) = Bed::start(2) else { return };
    let out = bed.ok(&["-H", "all", "exec", "web", "--", "hostname"]);
    let mut told: Vec<&str> = out.lines().collect();
    told.sort_unstable();
    assert_eq!(told, ["web-0 | web-0", "web-1 | web-1"]);
    let (code, _, _) = bed.told(&["-H", "all", "exec", "web", "--", "sh", "-c", "exit $(hostname | tail -c 2)7"]);
    assert_eq!(code, 17);
    // Of one host, byte for byte.
    let bytes = bed.svctl(&["-H", "web-0", "exec", "web", "--", "printf", "a\\000\\377\\nb"]);
    assert_eq!(bytes.stdout, b"a\0\xff\nb");
    let document = bed.json(&["-H", "web-*", "exec", "web", "--", "hostname"]);
    assert_eq!(document["hosts"][1]["result"]["output"], "web-1\n");
    // Much of it, through a reader that is slower than the hosts; and one that leaves.
    let out = bed.ok(&["-H", "all", "exec", "web", "--", "seq", "1", "200000"]);
    for host in ["web-0", "web-1"] {
        let own: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix(&format!("{host} | "))).collect();
        assert!(own.len() == 200_000 && own.iter().enumerate().all(|(n, line)| *line == (n + 1).to_string()), "{host}");
    }
    let mut child =
        bed.svctl_command(&["-H", "all", "exec", "web", "--", "yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let got = lines(&mut child);
    wait_line(&got, "a line", |line| line.ends_with("| y"));
    drop(got);
    assert_eq!(super::support::wait_for("its end", PATIENCE, || child.try_wait().unwrap()).code(), Some(0));
    bed.assert_clean();
}

#[test]
fn logs_and_events_are_merged_as_they_come() {
    let Some(bed) = Bed::start(3) else { return };
    let out = bed.ok(&["-H", "all", "logs", "web"]);
    let told: Vec<&str> = out.lines().filter(|line| line.contains("begun on")).collect();
    assert_eq!(told, ["web-0 | begun on web-0", "web-1 | begun on web-1", "web-2 | begun on web-2"]);
    let document = bed.json(&["-H", "web-0,web-2", "logs", "web", "-n", "1"]);
    assert_eq!(document["hosts"][1]["result"]["lines"][0], "begun on web-2");

    let (_logs, log) = beside(&bed, &["-H", "all", "logs", "-f", "web"]);
    let (_events, event) = beside(&bed, &["--json", "-H", "all", "events", "-f", "web"]);
    let mut waiting = vec!["web-0", "web-1", "web-2"];
    while !waiting.is_empty() {
        let line = wait_line(&log, "the last lines", |line| {
            waiting.iter().any(|host| line == format!("{host} | begun on {host}"))
        });
        waiting.retain(|host| !line.starts_with(host));
    }
    for host in [&bed.hosts[2], &bed.hosts[0]] {
        host.svd.ok(&["restart", "web"]);
        wait_line(&log, "a new line", |line| line == format!("{0} | begun on {0}", host.name));
        wait_line(&event, "an event", |line| {
            let event: serde_json::Value = serde_json::from_str(line).expect("an object a line");
            event["host"] == *host.name && event["service"] == "web"
        });
    }
    // It goes on through svd's end and return on one host.
    bed.hosts[1].svd.signal(nix::sys::signal::SIGKILL);
    super::support::wait_until("svd is back", PATIENCE, || bed.hosts[1].svd.answers());
    bed.hosts[1].svd.ok(&["restart", "web"]);
    wait_line(&log, "a line after svd's return", |line| line == "web-1 | begun on web-1");
}

#[test]
fn all_hosts_are_monitored_together_also_when_one_is_gone() {
    let Some(bed) = Bed::start(3) else { return };
    let out = bed.ok(&["-H", "all", "monitor", "web", "--once"]);
    assert!(out.contains("3 hosts\n") && out.contains("web-2 | begun on web-2"), "{out}");
    assert_eq!(out.lines().filter(|line| line.starts_with("web-") && line.contains(" committed ")).count(), 3, "{out}");
    bed.hosts[1].vanish();
    let (code, out, _) = bed.told(&["--json", "-H", "all", "monitor", "web", "--once"]);
    let document: serde_json::Value = serde_json::from_str(&out).expect("a document");
    assert_eq!(code, 4, "{document}");
    assert_eq!(document["hosts"][0]["services"][0]["state"], "running", "{document}");
    assert!(document["hosts"][1]["error"].is_string() && document["hosts"][1]["host"] == "web-1", "{document}");
    // ssh's connections are ended, and what they needed is gone.
    let mut monitor = bed.svctl_command(&["-H", "web-0,web-2", "monitor", "web", "--interval", "200ms"]);
    let mut child = monitor.stdout(Stdio::piped()).spawn().expect("svctl");
    let lines = lines(&mut child);
    wait_line(&lines, "the last host's log", |line| line == "web-2 | begun on web-2");
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGINT).expect("a signal");
    assert_eq!(child.wait().expect("its end").code(), Some(130));
    bed.assert_clean();
}

#[test]
fn hosts_are_chosen_before_anything_is_done() {
    let Some(bed) = Bed::start(2) else { return };
    bed.fleet("groups = { canary = [\"web-1\"] }");
    assert_eq!(bed.ok(&["-H", "canary", "exec", "web", "--", "hostname"]), "web-1\n");
    let pid = bed.hosts[0].svd.main_pid("web");
    let (code, _, err) = bed.told(&["-H", "web-0,canry", "restart", "web"]);
    assert!(
        code == 2 && err.contains("no host or group \"canry\"") && err.contains("Did you mean \"canary\"?"),
        "{err}"
    );
    assert_eq!(bed.hosts[0].svd.main_pid("web"), pid);
    let (code, _, err) = bed.told(&["-H", "all", "demo"]);
    assert!(code == 2 && err.contains("this machine alone"), "{err}");
    let (code, _, err) = bed.told(&["-e", "staging", "-H", "all", "status"]);
    assert!(code == 2 && err.contains("no fleet.staging.toml"), "{err}");
    fs::copy(bed.path("fleet.toml"), bed.path("fleet.staging.toml")).unwrap();
    assert!(bed.ok(&["-e", "staging", "-H", "canary", "status"]).contains("running"));
    let broken = bed.path("broken.toml");
    fs::write(&broken, "hosts = [\"web-0\"]\nhost = 3\nbranch = 'x'\n").unwrap();
    let (code, _, err) = bed.told(&["--fleet", broken.to_str().unwrap(), "-H", "all", "status"]);
    assert!(
        code == 1 && err.contains("has 2 errors") && err.contains("broken.toml:3:1: unknown key \"branch\""),
        "{err}"
    );
}
