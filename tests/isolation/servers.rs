//! Real servers under the strict profile.

use super::plain::needs_user_namespaces;
use crate::support::plain::{NOBODY, give_to_nobody, needs_root};
use crate::support::svd::{Home, Svd, quoted};
use crate::support::{Env, Load, Release, alone, free_port};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// As an operator would write it.
const STRICT: &str = "[isolation]\nprofile = 'strict'\nlandlock = true\n";
const AUTO: &str = "user = 'auto'\n";

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

/// A service that is reloaded onto three releases while it is asked. `top`: keys of the file's top; `more`: of its last section.
fn reload_django(mut svd: Svd, python: &Path, top: &str, more: &str) -> Svd {
    let app = svd.app("web");
    app.ship(&Release::new("r0"));
    std::fs::create_dir_all(app.root.join("shared")).expect("a directory");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let file = format!(
        "kind = 'gunicorn'\napp = 'django_app:application'\nroot = {}\npython = {}\nworkers = 2\n\
         sockets.http.listen = '{address}'\nready.probe = {{ path = '/healthz', host = 'airship.example.org' }}\n\
         {top}{STRICT}{more}",
        quoted(&app.root),
        quoted(python),
    );
    svd.service("web", &file);
    if svd.home == Home::PlainUser {
        give_to_nobody(&svd);
    }
    svd.start();
    svd.wait_state("web", "running");
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
    // The mounts decide, and not the owner of the directory.
    let refused = svd.fails(&["exec", "web", "--", "sh", "-c", "cat /proc/self/mounts; touch /usr/x"]);
    let whole = refused.lines().find_map(|line| line.split_once(" / ")).map(|(_, rest)| rest);
    assert!(whole.and_then(|rest| rest.split(' ').nth(1)).is_some_and(|o| o.starts_with("ro")), "{refused}");
    svd
}

#[test]
fn gunicorn_and_django_are_reloaded_under_load() {
    if needs_root() {
        return;
    }
    let Some(env) = Env::get("gunicorn-27.0.1") else { return };
    let _alone = alone();
    let svd = reload_django(Svd::new(), &env.python(), AUTO, "");
    assert_confined(svd.main_pid("web"));
}

#[test]
fn a_plain_users_gunicorn_and_django_are_reloaded_under_load() {
    if needs_user_namespaces() {
        return;
    }
    let Some(env) = Env::get("gunicorn-27.0.1") else { return };
    // The environment's own interpreter may lie in a home that others may not enter: the system's takes its packages.
    let system = Path::new("/usr/bin/python3");
    let python = env.python();
    let ask = ["-c", "import sys; print(next(path for path in sys.path if path.endswith('site-packages')))"];
    let packages = Command::new(&python).args(ask).output().expect("its Python runs").stdout;
    let packages = String::from_utf8(packages).expect("a path").trim().to_owned();
    let mut works = Command::new(system);
    works.args(["-c", "import gunicorn, django"]).env("PYTHONPATH", &packages).uid(NOBODY).gid(NOBODY);
    if !works.stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        println!("skipped: the system's Python cannot use the packages of {}", env.name);
        return;
    }
    let _alone = alone();
    let mut svd = Svd::new();
    svd.home = Home::PlainUser;
    // They may lie in what the profile hides.
    let bind = format!("bind = {{ '{packages}' = '{packages}:ro' }}\n");
    let svd = reload_django(svd, system, &format!("environment.PYTHONPATH = '{packages}'\n"), &bind);
    let main = svd.main_pid("web");
    assert_eq!((status_line(main, "NoNewPrivs"), status_line(main, "Seccomp")), ("1".into(), "2".into()));
    let own = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).expect("a namespace");
    assert_ne!(own(&main.to_string()), own("self"), "it is in a user namespace");
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
         ready.probe = {{ path = '/health', port = '{{port}}' }}\n{AUTO}{STRICT}",
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
