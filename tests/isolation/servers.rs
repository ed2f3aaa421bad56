//! Real servers under the strict profile.

use crate::support::plain::needs_root;
use crate::support::svd::{Svd, quoted};
use crate::support::{Env, Load, Release, alone, free_port};
use std::net::{Ipv4Addr, SocketAddr};

/// As an operator would write it.
const STRICT: &str = "user = 'auto'\n[isolation]\nprofile = 'strict'\nlandlock = true\n";

/// Of a process: a line of its status.
fn status_line(pid: i32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
    line.trim_start_matches(':').trim().to_owned()
}

fn assert_confined(pid: i32) {
    assert_eq!(status_line(pid, "CapEff"), "0000000000000000");
    assert_eq!(status_line(pid, "CapBnd"), "0000000000000000");
    assert_eq!(status_line(pid, "NoNewPrivs"), "1");
    assert_eq!(status_line(pid, "Seccomp"), "2");
    let uid: u32 = status_line(pid, "Uid").split_whitespace().next().and_then(|n| n.parse().ok()).expect("a number");
    assert!((70_000..80_000).contains(&uid), "{uid}");
}

#[test]
fn gunicorn_and_django_are_reloaded_under_load() {
    if needs_root() {
        return;
    }
    let Some(env) = Env::get("gunicorn-27.0.1") else { return };
    let _alone = alone();
    let mut svd = Svd::new();
    let app = svd.app("web");
    app.ship(&Release::new("r0"));
    std::fs::create_dir_all(app.root.join("shared")).expect("a directory");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let file = format!(
        "kind = 'gunicorn'\napp = 'django_app:application'\nroot = {}\npython = {}\nworkers = 2\n\
         sockets.http.listen = '{address}'\nready.probe = {{ path = '/healthz', host = 'airship.example.org' }}\n{STRICT}",
        quoted(&app.root),
        quoted(&env.python()),
    );
    svd.service("web", &file);
    svd.start();
    svd.wait_state("web", "running");
    assert_confined(svd.main_pid("web"));
    let load = Load::start(address);
    load.more(50);
    for release in ["r1", "r2", "r3"] {
        app.ship(&Release::new(release));
        svd.ok(&["reload", "web"]);
        load.more(50);
    }
    let report = load.stop();
    report.assert_no_failure();
    assert!(report.releases().contains_key("r3"), "{:?}", report.releases());
    // A command of the operator's is confined as well.
    let status = svd.ok(&["exec", "web", "--", "cat", "/proc/self/status"]);
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    let refused = svd.svctl(&["exec", "web", "--", "touch", "/etc/airdock-was-here"]);
    assert!(!refused.status.success());
}

#[test]
fn a_jvm_serves() {
    if needs_root() {
        return;
    }
    let Some(env) = Env::get("jdk") else { return };
    let _alone = alone();
    let mut svd = Svd::new();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let file = format!(
        "kind = 'jvm'\njar = {}\nargs = ['{{port}}']\njava.options = ['-Drelease=g{{generation}}', '-Xmx96m', \
         '-XX:TieredStopAtLevel=1']\nsockets.http.listen = '{address}'\n\
         ready.probe = {{ path = '/health', port = '{{port}}' }}\n{STRICT}",
        quoted(&env.jar()),
    );
    svd.service("jdk", &file);
    svd.start();
    svd.wait_state("jdk", "running");
    assert_confined(svd.main_pid("jdk"));
    let load = Load::start(address);
    load.more(50);
    svd.ok(&["reload", "jdk"]);
    load.more(50);
    load.stop().assert_no_failure();
}
