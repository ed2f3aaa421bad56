//! Servers that are no gunicorn, reloaded under load: uvicorn, the JDK's own sockets, Tomcat.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use support::load::Plan;
use support::svd::quoted;
use support::{Env, Release, Report, Svd, alone, free_port};

const RELOADS: u32 = 10;

fn address() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()))
}

/// Reloads it again and again under a load; what the load met, and the slowest reload.
fn reload_under_load(svd: &Svd, name: &str, at: SocketAddr, mut before: impl FnMut(u32)) -> Report {
    let load = Plan::new(at).slow(1, Duration::from_secs(1)).start();
    load.more(100);
    let mut slowest = Duration::ZERO;
    for n in 1..=RELOADS {
        before(n);
        let begun = Instant::now();
        svd.ok(&["reload", name]);
        slowest = slowest.max(begun.elapsed());
        load.more(50);
    }
    let report = load.stop();
    println!("{name}: {RELOADS} reloads, the slowest took {slowest:.1?}: {}", report.summary());
    report
}

#[test]
fn uvicorn_by_descriptor() {
    let Some(env) = Env::get("gunicorn-27.0.1") else { return };
    let _alone = alone();
    let mut svd = Svd::new();
    let (app, at) = (svd.app("asgi"), address());
    app.ship(&Release::new("r0"));
    let file = format!(
        "kind = 'command'\nroot = {}\ncommand = [{}, 'drain_uvicorn.py', '--fd', '{{fd}}', 'asgi_app:application']\n\
         [sockets.http]\nlisten = '{at}'\n[reload]\nmax_draining = 32\n[ready]\nlog = 'Uvicorn running on'\n",
        quoted(&app.root),
        quoted(&env.python()),
    );
    svd.service("asgi", &file);
    svd.start();
    svd.wait_state("asgi", "running");
    let report = reload_under_load(&svd, "asgi", at, |n| {
        app.ship(&Release::new(&format!("r{n}")));
    });
    // A kept connection that is closed before any byte of an answer is repeated once, and counted as stale.
    report.assert_no_failure();
    assert!(report.releases().contains_key(&format!("r{RELOADS}")), "{:?}", report.releases());
}

fn jvm(name: &str) {
    let Some(env) = Env::get(name) else { return };
    let _alone = alone();
    let mut svd = Svd::new();
    let at = address();
    // What Tomcat unpacks, and the page of counters that each JVM has in the system's own directory for them.
    let temporary = svd.path("tmp");
    std::fs::create_dir(&temporary).expect("a directory for the JVM's temporary files");
    let file = format!(
        "kind = 'jvm'\njar = {}\nargs = ['{{port}}']\njava.options = ['-Drelease=g{{generation}}', '-Xmx96m', \
         '-XX:TieredStopAtLevel=1', '-XX:-UsePerfData', '-Djava.io.tmpdir={}']\n[sockets.http]\nlisten = '{at}'\n\
         [ready]\nprobe = {{ path = '/health', port = '{{port}}' }}\n[reload]\nmax_draining = 32\n",
        quoted(&env.jar()),
        temporary.display(),
    );
    svd.service(name, &file);
    svd.start();
    svd.wait_state(name, "running");
    let report = reload_under_load(&svd, name, at, |_| {});
    report.assert_no_failure();
    assert_eq!(report.stale(), 0, "clients are told before their connection is closed");
    let last = format!("g{}", RELOADS + 1);
    assert!(report.releases().contains_key(&last), "{:?}", report.releases());
}

#[test]
fn a_jdk_server_on_descriptor_0() {
    jvm("jdk");
}

#[test]
fn tomcat_with_the_drain_helper() {
    jvm("tomcat");
}
