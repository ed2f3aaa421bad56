//! The user's own configuration of gunicorn goes on working below svd.

use super::support::{App, Env, Load, PATIENCE, Release, alone, wait_for, wait_until};
use super::{GUNICORN, Site, workers_of};
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

/// A configuration with every hook that the launcher also wants, and two workers.
const OWN: &str = "
import os
workers = 2
worker_class = 'gthread'
threads = 3
def note(what):
    with open(os.path.join(os.environ['NOTES'], what + '.' + str(os.getpid())), 'w'):
        pass
def post_fork(server, worker): note('post_fork')
def post_worker_init(worker): note('post_worker_init')
def pre_request(worker, req): note('pre_request')
def post_request(worker, req, environ, resp): note('post_request')
def child_exit(server, worker): note('child_exit')
";

fn notes(app: &App) -> String {
    let dir = app.root.join("notes");
    fs::create_dir_all(&dir).expect("a directory for notes");
    format!("[environment]\nNOTES = {:?}\n", dir.display().to_string())
}

fn noted(dir: &Path, what: &str) -> usize {
    let files = fs::read_dir(dir).expect("notes").flatten();
    files.filter(|f| f.file_name().to_string_lossy().split('.').next() == Some(what)).count()
}

#[track_caller]
fn own_hooks_run_and_reload_works(site: &Site) {
    let dir = site.app.root.join("notes");
    assert_eq!(workers_of(site.svd.main_pid("web")).len(), 2, "the user's number of workers");
    let load = Load::start(site.address);
    load.more(50);
    let old = fs::read_link(site.app.root.join("current")).expect("current");
    let release = site.app.publish(&Release::new("r1"));
    for file in ["gunicorn.conf.py", "own.py"] {
        let _ = fs::copy(site.app.root.join(&old).join(file), release.join(file));
    }
    site.app.switch("r1");
    site.svd.ok(&["reload", "web"]);
    load.more(50);
    let report = load.stop();
    println!("{}", report.summary());
    report.assert_no_failure();
    site.comes_up("r1");
    wait_until("the old workers are noted", PATIENCE, || noted(&dir, "child_exit") > 0);
    for (hook, least) in [("post_fork", 4), ("post_worker_init", 4), ("pre_request", 2), ("post_request", 2)] {
        assert!(noted(&dir, hook) >= least, "the user's {hook} ran in {} processes", noted(&dir, hook));
    }
    // And ours beside it.
    let traffic = &site.svd.status("web")["traffic"];
    assert!(traffic["requests"].as_u64() > Some(0), "{traffic}");
}

#[test]
fn a_configuration_named_by_c() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::with(&env, |app| {
        fs::write(app.root.join("releases/r0/own.py"), OWN).expect("own.py");
        format!("args = [\"-c\", \"{{release}}/own.py\"]\n{}", notes(app))
    });
    own_hooks_run_and_reload_works(&site);
}

#[test]
fn a_gunicorn_conf_py_in_the_directory() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::with(&env, |app| {
        fs::write(app.root.join("releases/r0/gunicorn.conf.py"), OWN).expect("gunicorn.conf.py");
        notes(app)
    });
    own_hooks_run_and_reload_works(&site);
}

#[test]
fn arguments_in_gunicorn_cmd_args() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::with(&env, |app| {
        fs::write(app.root.join("releases/r0/own.py"), OWN).expect("own.py");
        format!("{}GUNICORN_CMD_ARGS = \"--config own.py --max-requests 100000\"\n", notes(app))
    });
    own_hooks_run_and_reload_works(&site);
}

#[test]
fn max_requests_recycles_workers_and_loses_no_count() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::with(&env, |_| "workers = 3\nargs = [\"--max-requests\", \"60\"]".to_owned());
    let before = workers_of(site.svd.main_pid("web"));
    let load = Load::start(site.address);
    load.more(500);
    let master = site.svd.main_pid("web");
    wait_until("workers are recycled", PATIENCE, || !workers_of(master).iter().any(|w| before.contains(w)));
    site.reload_to(&Release::new("r1"));
    load.more(200);
    let report = load.stop();
    println!("{}", report.summary());
    report.assert_no_failure();
    let answered = report.releases()["r1"] as u64;
    let counted = wait_for("all requests are counted", PATIENCE, || {
        let counted = site.svd.status("web")["traffic"]["requests"].as_u64()?;
        (counted >= answered).then_some(counted)
    });
    assert_eq!(counted, answered, "requests of recycled workers are counted once");
    let died = site.svd.status("web")["traffic"]["died_open"].as_u64();
    assert_eq!(died, Some(0), "a recycled worker has finished its requests");
}

#[test]
fn preload_app_meets_the_new_code() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let more = "workers = 3\nargs = [\"--preload\"]\n[ready]\nprobe = { path = \"/healthz\" }";
    let site = Site::with(&env, |_| more.to_owned());
    let load = Load::start(site.address);
    site.reload_to(&Release::new("r1"));
    load.more(50);
    site.app.ship(&Release::new("bad").with("import", "raise"));
    let said = site.svd.fails(&["reload", "web"]);
    assert!(said.contains("release bad is broken"), "{said}");
    site.app.ship(&Release::new("bad2").with("probe", "fail"));
    let said = site.svd.fails(&["reload", "web"]);
    assert!(said.contains("GET /healthz answered 500"), "{said}");
    load.more(50);
    let report = load.stop();
    report.assert_no_failure();
    assert_eq!(report.releases().into_keys().collect::<Vec<_>>(), ["r0", "r1"]);
}

#[test]
fn a_logger_class_and_statsd_of_the_users_own_still_get_theirs() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let sink = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a UDP socket");
    sink.set_nonblocking(true).expect("a socket that does not block");
    let port = sink.local_addr().expect("its address").port();
    let own = format!(
        "from gunicorn.instrument.statsd import Statsd\n\
         class Own(Statsd):\n    def access(self, resp, req, environ, request_time):\n        \
         self.info('own logger: %s', environ['PATH_INFO'])\n        \
         super().access(resp, req, environ, request_time)\n\
         logger_class = Own\nstatsd_host = '127.0.0.1:{port}'\nstatsd_prefix = 'mine'\nworkers = 2\n"
    );
    let site = Site::with(&env, |app| {
        fs::write(app.root.join("releases/r0/gunicorn.conf.py"), own).expect("gunicorn.conf.py");
        String::new()
    });
    site.answers();
    let mut buffer = [0_u8; 2048];
    wait_for("a datagram on the user's own socket", PATIENCE, || {
        let length = sink.recv(&mut buffer).ok()?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        text.starts_with("mine.gunicorn.requests:1|c").then_some(())
    });
    wait_until("the user's own logger writes", PATIENCE, || site.svd.output("web").contains("own logger: /"));
    assert_eq!(site.svd.status("web")["traffic"]["requests"], 1);
}
