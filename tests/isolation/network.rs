//! The network of a generation's own: what its processes reach there, that svd still counts and checks, and that it ends.

use crate::support::plain::{give_to_nobody, needs_root, pids, python};
use crate::support::svd::{Home, Svd, quoted};
use crate::support::{Env, Load, PATIENCE, Release, alone, free_port, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

const LOOPBACK: &str = "[isolation]\nnetwork = 'loopback'\n";

/// Answers on its private port with what the file `answer` says, counts each file `say` as a request, and ends with a file
/// `end`; all in its directory.
const SERVES: &str = "
import http.server, os, socket, sys, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(open('answer').read()))
        self.end_headers()
    def log_message(self, *all):
        pass
server = http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
to = ('127.0.0.1', int(os.environ['AIRDOCK_STATSD_PORT']))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
while True:
    try:
        os.remove('say')
        sender.sendto((os.environ['AIRDOCK_STATSD_PREFIX'] + '.requests:1|c').encode(), to)
    except FileNotFoundError:
        time.sleep(0.005)
";

fn network_of(pid: i32) -> String {
    let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("its network");
    link.to_str().expect("text").to_owned()
}

/// Does any process have it, or a descriptor of it?
fn is_there(network: &str) -> bool {
    let is = |path: &Path| std::fs::read_link(path).is_ok_and(|link| link.as_os_str() == network);
    airdock::sys::process::all_pids().into_iter().any(|pid| {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        is(Path::new(&format!("/proc/{pid}/ns/net"))) || descriptors.into_iter().any(|entry| is(&entry.path()))
    })
}

/// `svctl exec` of a line of Python.
fn inside(svd: &Svd, name: &str, line: &str) -> bool {
    svd.svctl(&["exec", name, "--", "/usr/bin/python3", "-c", line]).status.success()
}

#[test]
fn all_processes_of_a_generation_are_in_one_network() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    // The first listens, the others come to it.
    let program = "
import os, socket, sys, time
if sys.argv[1] == '0':
    listener = socket.create_server(('127.0.0.1', 7001))
    while True:
        listener.accept()[0].sendall(b'hello')
while True:
    try:
        print('heard', socket.create_connection(('127.0.0.1', 7001)).recv(9), flush=True)
        break
    except ConnectionRefusedError:
        time.sleep(0.01)
time.sleep(100000)
";
    let arguments = "'{worker}'";
    let text = python(program, &format!("instances = 2\n[ready]\ntcp = '127.0.0.1:7001'\n{LOOPBACK}"));
    let text = text.replace("''']", &format!("''', {arguments}]"));
    svd.service("pair", &text);
    svd.start();
    svd.wait_state("pair", "running");
    wait_until("the second hears the first", PATIENCE, || svd.output("pair").contains("heard b'hello'"));
    std::net::TcpStream::connect(("127.0.0.1", 7001)).expect_err("nobody listens there on the host");
    let networks: Vec<String> = pids(&svd, "pair").into_iter().map(network_of).collect();
    assert_eq!(networks.len(), 2);
    assert_eq!(networks[0], networks[1]);
    assert_ne!(networks[0], network_of(std::process::id() as i32));
    assert!(inside(&svd, "pair", "import socket; socket.create_connection(('127.0.0.1', 7001))"), "so is a command");
    // A worker that is started again is where the others are.
    let first = pids(&svd, "pair");
    kill(Pid::from_raw(first[1]), Signal::SIGKILL).expect("kill");
    wait_until("another worker", PATIENCE, || pids(&svd, "pair").len() == 2 && pids(&svd, "pair") != first);
    pids(&svd, "pair").into_iter().for_each(|pid| assert_eq!(network_of(pid), networks[0]));
    svd.ok(&["reload", "pair"]);
    let next = network_of(pids(&svd, "pair")[0]);
    assert_ne!(next, networks[0], "another generation, another network");
    wait_until("the old one's is gone", PATIENCE, || !is_there(&networks[0]));
    svd.ok(&["stop", "pair"]);
    wait_until("the new one's is gone", PATIENCE, || !is_there(&next));
}

/// Its service runs, and with another worker. One look: the two change together.
fn runs_another(svd: &Svd, than: i32) -> bool {
    let status = svd.status("web");
    status["state"] == "running" && status["pid"].as_i64().is_some_and(|pid| pid != i64::from(than))
}

/// A directory for [`SERVES`], with its service.
fn serves(svd: &Svd) -> std::path::PathBuf {
    let directory = svd.path("web");
    std::fs::create_dir_all(&directory).expect("a directory");
    std::fs::write(directory.join("answer"), "200").expect("a file");
    let more = format!(
        "directory = {}\n[counts]\nstatsd = true\n[ready]\nprobe = {{ path = '/', port = '{{port}}' }}\n\
         [health]\nprobe = {{ path = '/', port = '{{port}}' }}\ninterval = '100ms'\nfailures = 1\naction = 'report'\n{LOOPBACK}",
        quoted(&directory)
    );
    svd.service("web", &python(SERVES, &more).replace("''']", "''', '{port}']"));
    directory
}

/// It is counted and checked, as it is now.
#[track_caller]
fn is_counted_and_checked(svd: &Svd, directory: &Path, requests: u64) {
    let said = directory.join("say");
    std::fs::write(&said, "").expect("a file");
    wait_until("it has sent its count", PATIENCE, || !said.exists());
    wait_until("the request is counted", PATIENCE, || svd.status("web")["traffic"]["requests"] == requests);
    for (answer, health) in [("500", "unhealthy"), ("200", "healthy")] {
        let new = directory.join("new");
        std::fs::write(&new, answer).and_then(|()| std::fs::rename(&new, directory.join("answer"))).expect("a file");
        wait_for(health, PATIENCE, || (svd.status("web")["health"]["state"] == health).then_some(()));
    }
}

#[test]
fn counts_and_checks_of_ports_go_on_whoever_is_killed() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let directory = serves(&svd);
    svd.start();
    svd.wait_state("web", "running");
    let worker = svd.main_pid("web");
    let network = network_of(worker);
    is_counted_and_checked(&svd, &directory, 1);
    is_counted_and_checked(&svd, &directory, 2);
    let killed = svd.pid();
    svd.signal(Signal::SIGKILL);
    wait_until("another svd", PATIENCE, || svd.pid() != killed && svd.answers());
    is_counted_and_checked(&svd, &directory, 1);
    svd.ok(&["upgrade"]);
    is_counted_and_checked(&svd, &directory, 1);
    let guardian = svd.guardian();
    svd.kill_guardian();
    svd.follow(guardian);
    wait_until("svd is back", PATIENCE, || svd.answers());
    is_counted_and_checked(&svd, &directory, 1);
    svd.kill_both();
    svd.start();
    is_counted_and_checked(&svd, &directory, 1);
    assert_eq!((svd.main_pid("web"), network_of(worker)), (worker, network.clone()), "nothing was started anew");
    kill(Pid::from_raw(worker), Signal::SIGKILL).expect("kill");
    wait_until("another worker", PATIENCE, || runs_another(&svd, worker));
    assert_eq!(network_of(svd.main_pid("web")), network, "it comes where the other was");
    is_counted_and_checked(&svd, &directory, 2);
    // With nobody left to have it, the next worker gets another.
    let last = svd.main_pid("web");
    svd.kill_both();
    kill(Pid::from_raw(last), Signal::SIGKILL).expect("kill");
    wait_until("nobody has it", PATIENCE, || !is_there(&network));
    svd.start();
    wait_until("another worker", PATIENCE, || runs_another(&svd, last));
    let anew = network_of(svd.main_pid("web"));
    assert_ne!(anew, network_of(std::process::id() as i32));
    is_counted_and_checked(&svd, &directory, 1);
    svd.stop();
    assert!(!is_there(&anew));
}

#[test]
fn gunicorn_is_counted_and_reloaded_under_load() {
    if needs_root() {
        return;
    }
    let Some(env) = Env::get("gunicorn-27.0.1") else { return };
    let _alone = alone();
    let mut svd = Svd::new();
    let app = svd.app("web");
    app.ship(&Release::new("r0"));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let file = format!(
        "kind = 'gunicorn'\napp = 'django_app:application'\nroot = {}\npython = {}\nworkers = 2\n\
         sockets.http.listen = '{address}'\nready.tcp = '{address}'\n\
         ready.probe = {{ path = '/healthz', host = 'airship.example.org' }}\n{LOOPBACK}",
        quoted(&app.root),
        quoted(&env.python()),
    );
    svd.service("web", &file);
    svd.start();
    svd.wait_state("web", "running");
    let load = Load::start(address);
    load.more(50);
    for release in ["r1", "r2"] {
        app.ship(&Release::new(release));
        svd.ok(&["reload", "web"]);
        load.more(50);
    }
    let report = load.stop();
    report.assert_no_failure();
    assert!(report.releases().contains_key("r2"), "{:?}", report.releases());
    assert!(svd.status("web")["traffic"]["requests"].as_u64() >= Some(50), "{:#}", svd.status("web"));
    assert!(!inside(
        &svd,
        "web",
        &format!("import socket; socket.create_connection(('127.0.0.1', {}))", address.port())
    ));
}

#[test]
fn a_jvm_reports_by_statsd_and_is_asked_at_its_port() {
    if needs_root() || Env::get("jdk").is_none() {
        return;
    }
    let _alone = alone();
    let mut svd = Svd::new();
    let apps = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/jvm");
    let file = format!(
        "kind = 'jvm'\nmain = {}\nclasspath = [{}]\nargs = ['{{port}}']\njava.options = ['-Xmx96m']\n\
         [counts]\nstatsd = true\n[ready]\nprobe = {{ path = '/200', port = '{{port}}' }}\n{LOOPBACK}",
        quoted(&apps.join("CountedServer.java")),
        quoted(&apps),
    );
    svd.service("search", &file);
    svd.start();
    svd.wait_state("search", "running");
    let counted = |svd: &Svd| svd.status("search")["traffic"]["requests"].as_u64();
    wait_until("the probe is counted", PATIENCE, || counted(&svd).is_some());
    svd.ok(&["reload", "search"]);
    wait_until("that of the next one as well", PATIENCE, || counted(&svd) == Some(1));
}

#[test]
fn what_svd_cannot_reach_is_refused() {
    let mut svd = Svd::new();
    svd.service("other", &python("import time\ntime.sleep(100000)", ""));
    if crate::support::plain::is_root() {
        svd.home = Home::PlainUser;
        give_to_nobody(&svd);
    }
    svd.start();
    svd.wait_state("other", "running");
    serves(&svd);
    let said = svd.fails(&["update"]);
    assert!(said.contains("web: [isolation] network") && said.contains("CAP_SYS_ADMIN"), "{said}");
    assert_eq!(svd.state("other"), "running");
}
