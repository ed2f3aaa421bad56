//! Requests as JVMs and plain commands report them: real datagrams, forged ones, a flood.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::plain::{SLEEP, python, script};
use support::svd::quoted;
use support::{Env, PATIENCE, Svd, free_port, http_get, wait_for, wait_until};

const COUNTED: &str = "[counts]\nstatsd = true\n";

/// Sends what it reads from the file `say` in its directory, whenever there is one, and says what its environment has.
const SAYS: &str = "
import os, socket, time
for name in ('AIRDOCK_STATSD_HOST', 'AIRDOCK_STATSD_PORT', 'STATSD_HOST', 'STATSD_PORT', 'STATSD_PREFIX'):
    print(name + '=' + str(os.environ.get(name)))
to = (os.environ['AIRDOCK_STATSD_HOST'], int(os.environ['AIRDOCK_STATSD_PORT']))
prefix, sender = os.environ['AIRDOCK_STATSD_PREFIX'], socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
print('prefix ' + prefix)
while True:
    try:
        text = open('say').read()
        os.remove('say')
        sender.sendto(text.replace('%', prefix + '.').encode(), to)
    except FileNotFoundError:
        time.sleep(0.005)
";

fn counted(svd: &Svd, name: &str, more: &str) -> String {
    let directory = svd.path(name);
    std::fs::create_dir_all(&directory).expect("the service's directory");
    python(SAYS, &format!("directory = {}\n{COUNTED}{more}", quoted(&directory)))
}

/// Lets the service send a datagram; `%` becomes its prefix.
#[track_caller]
fn say(svd: &Svd, name: &str, datagram: &str) {
    let (new, path) = (svd.path(name).join("say.new"), svd.path(name).join("say"));
    std::fs::write(&new, datagram).expect("writing a file");
    std::fs::rename(&new, &path).expect("renaming it");
    wait_until("it is sent", PATIENCE, || !path.exists());
}

fn traffic(svd: &Svd, name: &str) -> Value {
    svd.status(name)["traffic"].clone()
}

#[track_caller]
fn wait_requests(svd: &Svd, name: &str, requests: u64) -> Value {
    wait_for(&format!("{requests} requests are counted"), PATIENCE, || {
        let traffic = traffic(svd, name);
        (traffic["requests"] == requests).then_some(traffic)
    })
}

fn metric(svd: &Svd, name: &str) -> f64 {
    let text = http_get(svd.public, "/metrics").expect("svd's public address answers").1;
    let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{text}"));
    line.rsplit(' ').next().and_then(|n| n.parse().ok()).expect("a number")
}

/// Where svd listens, by what a service was told.
fn port(svd: &Svd, name: &str) -> u16 {
    wait_for("it has told the port", PATIENCE, || {
        let output = svd.output(name);
        output.lines().rev().find_map(|l| l.strip_prefix("AIRDOCK_STATSD_PORT=")?.parse().ok())
    })
}

fn sender(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    socket.connect((Ipv4Addr::LOCALHOST, port)).expect("connect");
    socket
}

#[test]
fn requests_errors_and_latency_are_shown_for_each_generation() {
    let mut svd = Svd::new();
    svd.service("web", &counted(&svd, "web", ""));
    svd.start();
    svd.wait_state("web", "running");
    assert!(svd.status("web")["traffic"].is_null(), "nothing is counted yet");
    say(&svd, "web", "%requests:3|c\n%duration:10|ms\n%5xx:1|c\n%queue:7|g\n");
    say(&svd, "web", "%requests:10|c|@0.5\n%requests:250|ms|#method:GET,status:503\n");
    let seen = wait_requests(&svd, "web", 24);
    assert_eq!(seen["errors_5xx"], 2, "{seen}");
    let (p50, p99) = (seen["latency_ms"]["p50"].as_f64(), seen["latency_ms"]["p99"].as_f64());
    assert!(p50 < Some(20.0) && p50 > Some(5.0) && p99 > Some(150.0), "{seen}");
    assert_eq!(seen["slow"], serde_json::json!([1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "250 ms: {seen}");
    assert!(seen["unreliable"].is_null() && seen["lost_datagrams"].is_null(), "{seen}");
    let health = svd.health("web").1;
    assert_eq!(health["generations"][0]["traffic"], seen, "{health}");
    assert_eq!(metric(&svd, "airdock_requests_total{service=\"web\""), 24.0);
    assert_eq!(metric(&svd, "airdock_requests_5xx_total{service=\"web\""), 2.0);
    assert_eq!(metric(&svd, "airdock_requests_unreliable{service=\"web\""), 0.0);
    assert!(svd.ok(&["status", "web"]).contains("requests 24, 5xx 2"));

    say(&svd, "web", "%begun:26|c");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(svd.main_pid("web")), nix::sys::signal::Signal::SIGKILL)
        .expect("kill");
    wait_until("the end of open requests is shown", PATIENCE, || traffic(&svd, "web")["died_open"] == 2);

    svd.ok(&["reload", "web"]);
    say(&svd, "web", "%requests:1|c");
    wait_requests(&svd, "web", 1);
    let output = svd.output("web");
    let mut prefixes: Vec<&str> = output.lines().filter(|l| l.starts_with("prefix ")).collect();
    prefixes.dedup();
    assert_eq!(prefixes.len(), 2, "each generation has its own: {output}");
}

#[test]
fn the_address_is_in_the_environment_alone_and_yields_to_the_users_own() {
    let mut svd = Svd::new();
    svd.service("web", &counted(&svd, "web", ""));
    svd.service("own", &counted(&svd, "own", "[environment]\nSTATSD_HOST = '10.0.0.1'\n"));
    svd.service("not", &script("env; exec sleep 100000", ""));
    svd.start();
    let told = |name: &str| {
        wait_for("it has told its environment", PATIENCE, || {
            let output = svd.output(name);
            output.contains("prefix ").then_some(output)
        })
    };
    let (web, own) = (told("web"), told("own"));
    let port = port(&svd, "web");
    assert!(web.contains(&format!("STATSD_HOST=127.0.0.1\nSTATSD_PORT={port}\nSTATSD_PREFIX=airdock")), "{web}");
    assert!(own.contains(&format!("AIRDOCK_STATSD_PORT={port}\nSTATSD_HOST=10.0.0.1\nSTATSD_PORT=None")), "{own}");
    svd.wait_state("not", "running");
    assert!(!svd.output("not").contains("STATSD"), "it has not asked: {}", svd.output("not"));
    let prefix = web.lines().find_map(|l| l.strip_prefix("prefix ")).expect("a prefix").to_owned();
    let shown = std::fs::read_to_string(format!("/proc/{}/cmdline", svd.main_pid("web"))).expect("arguments");
    assert!(!shown.contains(&prefix) && !svd.said().contains(&prefix), "{shown}");
    assert!(!svd.status("web").to_string().contains(&prefix));
}

#[test]
fn forged_datagrams_are_dropped_and_counted() {
    let mut svd = Svd::new();
    svd.service("web", &counted(&svd, "web", ""));
    svd.start();
    svd.wait_state("web", "running");
    let forger = sender(port(&svd, "web"));
    let guessed = format!("airdock{:032x}.requests:1000|c", 1);
    for forged in [&guessed, "requests:1000|c", "airdock.requests:1000|c", "\n\n", "", &"x".repeat(60_000)] {
        forger.send(forged.as_bytes()).expect("send");
    }
    say(&svd, "web", "%requests:1|c\nother.requests:5|c\n%requests:x|c");
    let seen = wait_requests(&svd, "web", 1);
    assert_eq!(metric(&svd, "airdock_svd_statsd_foreign_total"), 6.0);
    assert_eq!(metric(&svd, "airdock_svd_statsd_malformed_total"), 1.0);
    assert!(seen["unreliable"].is_null(), "nothing was lost: {seen}");
}

#[test]
fn the_socket_is_there_while_somebody_reports() {
    let mut svd = Svd::new();
    svd.service("web", &counted(&svd, "web", ""));
    svd.start();
    svd.wait_state("web", "running");
    let port = port(&svd, "web");
    // A socket that nobody has bound answers by ICMP, which the next call reports.
    let refused = || {
        let probe = sender(port);
        probe.send(b"x").is_err() || probe.send(b"x").is_err()
    };
    assert!(!refused(), "svd listens");
    svd.ok(&["stop", "web"]);
    wait_until("the socket is closed", PATIENCE, refused);
    svd.ok(&["start", "web"]);
    say(&svd, "web", "%requests:2|c");
    wait_requests(&svd, "web", 2);
}

#[test]
fn a_flood_makes_counts_unreliable_and_stops_nothing() {
    let _alone = support::alone();
    let mut svd = Svd::new();
    svd.service("web", &counted(&svd, "web", ""));
    svd.service("other", &script(SLEEP, "[restart]\nsettled = '0s'\n"));
    svd.start();
    svd.wait_state("web", "running");
    svd.wait_state("other", "running");
    say(&svd, "web", "%requests:5|c");
    wait_requests(&svd, "web", 5);
    let port = port(&svd, "web");
    let (done, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let socket = sender(port);
                while !done.load(Ordering::Relaxed) {
                    let _ = socket.send(b"flood.requests:1|c");
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let marked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("the counts are marked", PATIENCE, || {
                let traffic = traffic(&svd, "web");
                (traffic["unreliable"] == true).then_some(traffic)
            });
            // Others are supervised meanwhile, and svd does not spend its time with the flood.
            let busy = processor_time(svd.pid());
            let begun = Instant::now();
            for _ in 0..5 {
                let old = svd.main_pid("other");
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(old), nix::sys::signal::Signal::SIGKILL)
                    .expect("kill");
                wait_until("it is replaced", PATIENCE, || {
                    svd.status("other")["pid"].as_i64().is_some_and(|p| p != i64::from(old))
                });
            }
            wait_until("two seconds of flood", PATIENCE, || begun.elapsed() > Duration::from_secs(2));
            (processor_time(svd.pid()) - busy).div_duration_f64(begun.elapsed())
        }));
        done.store(true, Ordering::Relaxed);
        let share = marked.unwrap_or_else(|e| std::panic::resume_unwind(e));
        println!("{} datagrams; svd used {:.0} % of a core", sent.load(Ordering::Relaxed), share * 100.0);
        assert!(share < 0.15, "svd used {share} of a core");
    });
    let seen = traffic(&svd, "web");
    assert_eq!(seen["requests"], 5, "what was counted stays: {seen}");
    assert!(seen["lost_datagrams"].as_u64() > Some(0), "{seen}");
    assert!(svd.ok(&["status", "web"]).contains("unreliable"));
    assert_eq!(metric(&svd, "airdock_requests_unreliable{service=\"web\""), 1.0);
    assert!(metric(&svd, "airdock_svd_statsd_lost_total") > 0.0);
    assert!(svd.ok(&["events"]).contains("counts are unreliable"));
    // One that begins now has lost nothing.
    svd.ok(&["reload", "web"]);
    say(&svd, "web", "%requests:2|c");
    let seen = wait_requests(&svd, "web", 2);
    assert!(seen["unreliable"].is_null(), "{seen}");
}

/// User and system time of a process (proc_pid_stat(5)).
fn processor_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("reading its times");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|n| n.parse::<u64>().expect("a number")).sum();
    // USER_HZ is 100 on every architecture that Rust has.
    Duration::from_millis(ticks * 10)
}

/// The class that `docs/counts.md` offers.
#[test]
fn a_jvm_reports_its_requests() {
    if Env::get("jdk").is_none() {
        return;
    }
    let mut svd = Svd::new();
    let (port, apps) = (free_port(), std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/jvm"));
    let file = format!(
        "kind = 'jvm'\nmain = {}\nclasspath = [{}]\nargs = ['{port}']\njava.options = ['-Xmx96m']\n\
         [ready]\nprobe = {{ path = '/200', port = {port} }}\n{COUNTED}",
        quoted(&apps.join("CountedServer.java")),
        quoted(&apps),
    );
    svd.service("search", &file);
    svd.start();
    svd.wait_state("search", "running");
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let before = wait_for("the probe is counted", PATIENCE, || traffic(&svd, "search")["requests"].as_u64());
    for status in [200, 200, 404, 503, 500] {
        assert_eq!(http_get(at, &format!("/{status}")).expect("it answers").0, status);
    }
    let seen = wait_requests(&svd, "search", before + 5);
    assert_eq!(seen["errors_5xx"], 2, "{seen}");
    assert!(seen["latency_ms"]["p50"].as_f64() > Some(0.0), "{seen}");
}

/// The socket stays, and so does the prefix; what was counted before is gone.
#[test]
fn counts_go_on_when_svd_was_killed_and_when_it_is_upgraded() {
    let mut svd = Svd::new();
    svd.service("says", &counted(&svd, "says", ""));
    svd.start();
    svd.wait_state("says", "running");
    say(&svd, "says", "%requests:5|c");
    wait_requests(&svd, "says", 5);
    let killed = svd.pid();
    svd.signal(nix::sys::signal::Signal::SIGKILL);
    wait_until("another svd", PATIENCE, || svd.pid() != killed && svd.svctl(&["status"]).status.success());
    say(&svd, "says", "%requests:3|c");
    wait_requests(&svd, "says", 3);
    svd.ok(&["upgrade"]);
    say(&svd, "says", "%requests:2|c");
    wait_requests(&svd, "says", 2);
}
