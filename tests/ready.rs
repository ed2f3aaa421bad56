//! When a service is ready, and what it says about itself: sd_notify(3) and all ways of `[ready]`.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};
use support::plain::{NOBODY, SLEEP, alive, give_to_nobody, lines, needs_root, number_in, python, script};
use support::svd::{both, quoted};
use support::{PATIENCE, Svd, wait_for, wait_until};

/// What every Python service here begins with.
const SAY: &str = "
import os, signal, socket, subprocess, sys, time
def say(text):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.sendto(text.encode(), os.environ['NOTIFY_SOCKET'])
def until(path):
    while not os.path.exists(path):
        time.sleep(0.01)
";

fn notifier(program: &str, more: &str) -> String {
    python(&format!("{SAY}{program}"), more)
}

const NOTIFY: &str = "[ready]\nnotify = true\n";

#[test]
fn notify_ready_status_and_stopping() {
    let mut svd = Svd::new();
    let gate = svd.path("gate");
    let program = format!(
        "say('STATUS=warming up')\nuntil({})\nsay('READY=1\\nSTATUS=serving 5 clients')\n\
         def end(*_):\n    say('STOPPING=1\\nEXTEND_TIMEOUT_USEC=20000000'); time.sleep(1.5); print('orderly'); sys.exit(0)\n\
         signal.signal(signal.SIGTERM, end)\nprint('prepared')\nwhile True: time.sleep(100)",
        quoted(&gate)
    );
    svd.service("said", &notifier(&program, &format!("{NOTIFY}[stop]\ngrace = '500ms'")));
    svd.start();
    wait_until("its status is shown", PATIENCE, || both(&svd.svctl(&["status", "said"])).contains("warming up"));
    assert_eq!(svd.state("said"), "starting");
    fs::write(&gate, "").expect("opening the gate");
    svd.wait_state("said", "running");
    assert!(both(&svd.svctl(&["status", "said"])).contains("serving 5 clients"));
    wait_until("it is prepared for the end", PATIENCE, || lines(&svd, "said", "prepared") == 1);
    svd.ok(&["stop", "said"]);
    assert_eq!(lines(&svd, "said", "orderly"), 1, "its grace was extended");
    assert!(svd.ok(&["events"]).contains("stops by itself"));
}

#[test]
fn a_start_can_be_extended_and_has_an_end() {
    let mut svd = Svd::new();
    let slow = "say('EXTEND_TIMEOUT_USEC=20000000')\ntime.sleep(1.5)\nsay('READY=1')\ntime.sleep(1000)";
    let ready = "[ready]\nnotify = true\ntimeout = '600ms'\n";
    svd.service("slow", &notifier(slow, ready));
    let stuck = "print('stuck', flush=True)\ntime.sleep(1000)";
    svd.service("stuck", &notifier(stuck, &format!("{ready}[restart]\npolicy = 'always'\ndelay = '20s'\n")));
    svd.start();
    svd.wait_state("slow", "running");
    assert_eq!(svd.status("slow")["restarts"], 0);
    svd.wait_state("stuck", "backoff");
    let text = both(&svd.svctl(&["status", "stuck"]));
    assert!(text.contains("was not ready within 600ms"), "{text}");
}

#[test]
fn a_missed_watchdog_brings_a_replacement() {
    let mut svd = Svd::new();
    let stop = svd.path("silent");
    let program = format!(
        "print('begin', os.environ['WATCHDOG_USEC'], os.environ['WATCHDOG_PID'] == str(os.getpid()))\n\
         time.sleep(1)\nsay('READY=1')\nwhile not os.path.exists({}):\n    say('WATCHDOG=1'); time.sleep(0.1)\n\
         print('silent')\ntime.sleep(1000)",
        quoted(&stop)
    );
    let more = format!("{NOTIFY}[health]\nwatchdog = '700ms'\n[stop]\ngrace = '500ms'\n[restart]\ndelay = '10ms'\n");
    svd.service("dog", &notifier(&program, &more));
    svd.start();
    // Its start takes longer than the watchdog, which is not armed before it is ready.
    svd.wait_state("dog", "running");
    assert_eq!(lines(&svd, "dog", "begin 700000 True"), 1, "{}", svd.output("dog"));
    let first = svd.main_pid("dog");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1500) {
        assert_eq!(svd.main_pid("dog"), first, "it is fed, and goes on");
        std::thread::sleep(Duration::from_millis(50));
    }
    fs::write(&stop, "").expect("making it silent");
    wait_until("it is replaced", PATIENCE, || lines(&svd, "dog", "begin") >= 2);
    assert!(!alive(first));
    let events = svd.ok(&["events"]);
    assert!(events.contains("WATCHDOG=1"), "{events}");
}

#[test]
fn strangers_are_not_heard() {
    let mut svd = Svd::new();
    svd.service("shy", &notifier("print('at', os.environ['NOTIFY_SOCKET'])\ntime.sleep(1000)", NOTIFY));
    let pid_file = svd.path("child");
    let program = format!(
        "child = subprocess.Popen(['sleep', '1000'])\nopen({}, 'w').write(str(child.pid))\n\
         say('MAINPID=1\\nREADY=1')\ntime.sleep(0.2)\nsay('MAINPID=%d' % child.pid)\ntime.sleep(1000)",
        quoted(&pid_file)
    );
    svd.service("parent", &notifier(&program, NOTIFY));
    svd.start();
    let path = wait_for("its socket", PATIENCE, || {
        // Python may write the line in parts: the path is whole when it is there.
        let path = svd.output("shy").lines().find_map(|l| l.strip_prefix("at ").map(str::to_owned));
        path.filter(|path| std::path::Path::new(path).exists() && path.len() > 1)
    });
    let stranger = UnixDatagram::unbound().expect("a socket");
    stranger.send_to(b"READY=1\nSTATUS=stolen", &path).expect("sending");
    svd.wait_state("parent", "running");
    let child = wait_for("the child", PATIENCE, || number_in(&pid_file));
    wait_until("the main pid is the child's", PATIENCE, || svd.ok(&["pid", "parent"]).trim() == child.to_string());
    assert_eq!(svd.state("shy"), "starting", "a foreign READY=1 counts for nothing");
    assert!(!both(&svd.svctl(&["status", "shy"])).contains("stolen"));
}

/// A server that goes into the background: the first process waits for a file, then it ends.
const BACKGROUND: &str = "
said = os.pipe()
if os.fork() == 0:
    def end(signal, _):
        print('told', signal, flush=True)
        os._exit(7)
    signal.signal(signal.SIGTERM, end); signal.signal(signal.SIGUSR1, lambda *_: print('asked', flush=True))
    say('MAINPID=%d\\nREADY=1' % os.getpid()); os.write(said[1], b'!')
    while True: time.sleep(100)
signal.signal(signal.SIGTERM, lambda *_: print('the first was told', flush=True))
os.read(said[0], 1)
until(GATE)
os._exit(0)
";

fn in_the_background(svd: &mut Svd, plain_user: bool) {
    let gate = svd.path("gate");
    let program = BACKGROUND.replace("GATE", &quoted(&gate));
    let more = format!("{NOTIFY}[stop]\ngrace = '20s'\n[restart]\npolicy = 'always'\ndelay = '10ms'\nsettled = '0s'\n");
    svd.service("back", &notifier(&program, &more));
    if plain_user {
        give_to_nobody(svd);
    }
    let mut command = svd.command();
    if plain_user {
        command.uid(NOBODY).gid(NOBODY);
    }
    svd.start_with(command);
    svd.wait_state("back", "running");
    let main = svd.main_pid("back");
    svd.ok(&["signal", "USR1", "back"]);
    wait_until("the main process gets it", PATIENCE, || lines(svd, "back", "asked") == 1);
    // The first one ends, and the service goes on.
    fs::write(&gate, "").expect("a file");
    wait_until("the first has ended", PATIENCE, || svd.ok(&["events"]).contains(&format!("goes on as process {main}")));
    assert_eq!((svd.state("back").as_str(), svd.main_pid("back")), ("running", main));
    svd.ok(&["signal", "USR1", "back"]);
    wait_until("it still gets signals", PATIENCE, || lines(svd, "back", "asked") == 2);
    // Its end is the service's, with its status.
    svd.ok(&["signal", "TERM", "back"]);
    wait_until("it is replaced", PATIENCE, || svd.ok(&["events"]).contains("exited with code 7"));
    wait_until("by another", PATIENCE, || svd.state("back") == "running" && svd.main_pid("back") != main);
    // A stop reaches it, too.
    svd.ok(&["stop", "back"]);
    wait_until("both have said that they were told", PATIENCE, || lines(svd, "back", "told 15") == 2);
}

#[test]
fn a_server_in_the_background_is_the_service() {
    in_the_background(&mut Svd::new(), false);
}

#[test]
fn a_server_in_the_background_is_the_service_of_a_plain_user() {
    if !needs_root() {
        in_the_background(&mut Svd::new(), true);
    }
}

#[test]
fn the_named_process_is_told_to_stop_and_the_first_one_after_its_end() {
    let mut svd = Svd::new();
    let program = BACKGROUND.replace("GATE", &quoted(&svd.path("never")));
    let program = program.replace("first was told', flush=True)", "first was told', flush=True) or os._exit(0)");
    svd.service("back", &notifier(&program, &format!("{NOTIFY}[stop]\ngrace = '20s'\n")));
    svd.start();
    svd.wait_state("back", "running");
    let main = svd.main_pid("back");
    svd.ok(&["stop", "back"]);
    let output = svd.output("back");
    let told: Vec<&str> = output.lines().filter(|l| l.contains("told")).collect();
    assert_eq!(told, ["told 15", "the first was told"], "{output}");
    assert!(!alive(main));
}

#[test]
fn a_missed_watchdog_is_told_by_sigabrt() {
    let mut svd = Svd::new();
    let program = "def core(*_): print('would dump'); os._exit(1)\nsignal.signal(signal.SIGABRT, core)\n\
                   signal.signal(signal.SIGTERM, lambda *_: print('TERM'))\nsay('READY=1')\nwhile True: time.sleep(100)";
    let more = format!(
        "{NOTIFY}[health]\nwatchdog = '300ms'\n[stop]\ngrace = '20s'\n[restart]\ndelay = '20s'\nsettled = '20s'\n"
    );
    svd.service("dog", &notifier(program, &more));
    svd.start();
    svd.wait_state("dog", "backoff");
    assert_eq!((lines(&svd, "dog", "would dump"), lines(&svd, "dog", "TERM")), (1, 0), "{}", svd.output("dog"));
}

#[test]
fn what_was_sent_while_svd_slept_counts() {
    use nix::sys::signal::{Signal, kill};
    let mut svd = Svd::new();
    let program = "say('READY=1')\nprint('ready')\nwhile True: say('WATCHDOG=1'); time.sleep(0.1)";
    svd.service("dog", &notifier(program, &format!("{NOTIFY}[health]\nwatchdog = '2s'\n")));
    svd.start();
    svd.wait_state("dog", "running");
    let (first, own) = (svd.main_pid("dog"), nix::unistd::Pid::from_raw(svd.pid()));
    kill(own, Signal::SIGSTOP).expect("stopping svd");
    std::thread::sleep(Duration::from_millis(2500));
    kill(own, Signal::SIGCONT).expect("continuing svd");
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(700) {
        assert_eq!((svd.main_pid("dog"), svd.status("dog")["restarts"].as_u64()), (first, Some(0)));
    }
}

#[test]
fn reloading_and_stopping_are_seen() {
    let mut svd = Svd::new();
    let (one, two) = (svd.path("one"), svd.path("two"));
    let program = format!(
        "signal.signal(signal.SIGHUP, lambda *_: say('RELOADING=1'))\nsay('READY=1')\nuntil({})\nsay('READY=1')\n\
         until({})\nsay('STOPPING=1')\ntime.sleep(1000)",
        quoted(&one),
        quoted(&two)
    );
    svd.service("said", &notifier(&program, NOTIFY));
    svd.start();
    svd.wait_state("said", "running");
    svd.ok(&["signal", "HUP", "said"]);
    svd.wait_state("said", "reloading");
    assert_eq!(svd.health("said").0, 200, "it serves meanwhile");
    fs::write(&one, "").expect("a file");
    svd.wait_state("said", "running");
    fs::write(&two, "").expect("a file");
    svd.wait_state("said", "stopping");
    assert_eq!(svd.health("said").0, 503);
    assert_eq!(svd.status("said")["workers"][0]["state"], "stopping");
}

#[test]
fn who_says_that_it_stops_and_does_not_is_stopped() {
    let mut svd = Svd::new();
    let file = svd.path("stopping");
    let program = format!("say('READY=1')\nuntil({})\nsay('STOPPING=1')\ntime.sleep(1000)", quoted(&file));
    svd.service("late", &(notifier(&program, NOTIFY) + "[stop]\ngrace = '300ms'\n"));
    svd.start();
    svd.wait_state("late", "running");
    let first = svd.main_pid("late");
    fs::write(&file, "").expect("a file");
    wait_until("it is replaced", PATIENCE, || {
        svd.status("late")["pid"].as_i64().is_some_and(|pid| pid != i64::from(first))
    });
    let events = svd.ok(&["events", "late"]);
    assert!(events.contains("STOPPING=1") && events.contains("not ended within the grace"), "{events}");
}

#[test]
fn descriptor_tcp_command_log_and_delay() {
    let mut svd = Svd::new();
    let gate = svd.path("gate");
    let when = |then: &str| format!("while ! test -e {}; do sleep 0.02; done; {then}; {SLEEP}", gate.display());
    svd.service("fd", &script(&when("echo >&{fd.ready}"), "[ready]\ndescriptor = true"));
    svd.service("log", &script(&when("echo now ready to serve, at last"), "[ready]\nlog = 'ready to serve'"));
    svd.service("command", &script(SLEEP, &format!("[ready]\ncommand = ['test', '-e', {}]", quoted(&gate))));
    let listen =
        "import socket\nuntil(GATE)\ns = socket.create_server(('127.0.0.1', int(sys.argv[1])))\ntime.sleep(1000)";
    let text = notifier(&listen.replace("GATE", &quoted(&gate)), "[ready]\ntcp = '127.0.0.1:{port}'");
    svd.service("tcp", &text.replace("''']\n", "''', '{port}']\n"));
    svd.service("delay", &script(SLEEP, "[ready]\ndelay = '2s'"));
    svd.service("at-once", &script(SLEEP, "[restart]\nsettled = '0s'"));
    let gated = ["fd", "log", "command", "tcp"];
    let begun = Instant::now();
    svd.start();
    svd.wait_state("delay", "running");
    svd.wait_state("at-once", "running");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    for name in gated {
        assert_eq!(svd.state(name), "starting", "{name}");
    }
    fs::write(&gate, "").expect("opening the gate");
    for name in gated {
        svd.wait_state(name, "running");
    }
}

#[test]
fn a_readiness_descriptor_closed_without_a_word_is_a_failure() {
    let mut svd = Svd::new();
    let more = "[ready]\ndescriptor = true\n[restart]\ndelay = '20s'";
    svd.service("mute", &script(&format!("eval 'exec {{fd.ready}}>&-'; {SLEEP}"), more));
    svd.start();
    svd.wait_state("mute", "backoff");
    assert!(both(&svd.svctl(&["status", "mute"])).contains("closed its readiness descriptor"));
}

/// An HTTP server on the port of its argument, whose answers to /health are what the file says.
const HTTP: &str = "
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        good = self.path == '/health' and self.headers.get('X-Test') == 'svd' and self.headers.get('Host') == 'me.example'
        status = int(open(STATUS).read()) if good else 400
        self.send_response(status); self.send_header('Content-Length', '0'); self.end_headers()
    def log_message(self, *_): print('asked', self.path)
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()
";

fn http(status: &std::path::Path, more: &str) -> String {
    let probe = "probe = { path = '/health', port = '{port}', host = 'me.example', headers = { X-Test = 'svd' }, \
                 expect = [200, 204], timeout = '2s' }";
    let text = python(&HTTP.replace("STATUS", &quoted(status)), &more.replace("PROBE", probe));
    text.replace("''']\n", "''', '{port}']\n")
}

#[test]
fn http_probes_on_a_private_port_for_readiness_and_health() {
    let mut svd = Svd::new();
    let status = svd.path("status");
    let say = |code: &str| fs::File::create(&status).and_then(|mut f| f.write_all(code.as_bytes())).expect("a file");
    say("503");
    let health = "[ready]\nPROBE\n[health]\nPROBE\ninterval = '50ms'\nfailures = 2\n";
    svd.service("http", &http(&status, health));
    svd.start();
    wait_until("it is asked", PATIENCE, || lines(&svd, "http", "asked /health") >= 3);
    assert_eq!(svd.state("http"), "starting");
    assert_eq!(svd.health("http").0, 503);
    say("204");
    svd.wait_state("http", "running");
    let state = || svd.health("http").1["health"].as_str().unwrap_or_default().to_owned();
    wait_until("it is healthy", PATIENCE, || state() == "healthy");
    let pid = svd.main_pid("http");
    say("500");
    wait_until("it is reported as unhealthy", PATIENCE, || state() == "unhealthy");
    assert_eq!(svd.health("http").0, 200, "a database that is down must not take all hosts away");
    assert!(both(&svd.svctl(&["status", "http"])).contains("500"), "{}", both(&svd.svctl(&["status", "http"])));
    assert_eq!(svd.main_pid("http"), pid, "action = report restarts nothing");
    say("200");
    wait_until("it has recovered", PATIENCE, || state() == "healthy");
    // With restart, a worker that stays bad is replaced.
    svd.service("http", &http(&status, &format!("{health}action = 'restart'\n[stop]\ngrace = '1s'\n")));
    svd.ok(&["update"]);
    assert_eq!(svd.main_pid("http"), pid, "another action needs no new process");
    say("500");
    wait_until("it is replaced", PATIENCE, || svd.ok(&["events"]).contains("health") && !alive(pid));
    say("200");
    svd.wait_state("http", "running");
}
