//! A secret whose content changes reloads its service.

use super::support::{Env, Release, free_port, http_get};
use super::{DB, Svd, exec, file, needs_root, path_of, secret_file};
use super::{PATIENCE, quoted, script, wait_until};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};

fn generation(svd: &Svd, name: &str) -> u64 {
    svd.status(name)["generation"].as_u64().unwrap_or_default()
}

/// How often a reload was ordered for a change.
fn told(svd: &Svd, what: &str) -> usize {
    svd.ok(&["events"]).matches(&format!("{what} changed: the service is reloaded")).count()
}

#[test]
fn a_change_reloads_once_and_a_failure_keeps_the_old_one() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    svd.service("web", &file(&svd, "user = 'auto'"));
    svd.start();
    svd.wait_state("web", "running");
    let (before, old) = (generation(&svd, "web"), path_of(&svd, "web"));
    // Unreadable for a while: told once, and what runs goes on.
    fs::rename(svd.path("etc/key"), svd.path("etc/away")).expect("it is away");
    wait_until("it is told", PATIENCE, || svd.ok(&["events"]).contains("what runs keeps the value that it has"));
    // Written anew with the same content, it is no change.
    fs::rename(svd.path("etc/away"), svd.path("etc/key")).expect("it is back");
    wait_until("it is told", PATIENCE, || svd.ok(&["events"]).contains("the secret tls_key can be read again"));
    assert_eq!((generation(&svd, "web"), told(&svd, "")), (before, 0));
    assert!(old.exists());

    secret_file(&svd, "db", "another-s3cret\n");
    wait_until("it is reloaded", PATIENCE, || generation(&svd, "web") == before + 1);
    wait_until("its value is there", PATIENCE, || {
        exec(&svd, "web", &["printenv", "DATABASE_URL"]) == "another-s3cret\n"
    });
    assert_eq!(told(&svd, "the secret DATABASE_URL"), 1);
    assert_eq!(svd.ok(&["events"]).matches("cannot be read").count(), 1, "it was told once");

    // Two that change together are one reload.
    secret_file(&svd, "db", DB);
    secret_file(&svd, "key", "another-key-s3cret\n");
    wait_until("it is reloaded", PATIENCE, || generation(&svd, "web") == before + 2);
    assert_eq!(told(&svd, "the secrets DATABASE_URL and tls_key"), 1);
    assert!(!svd.ok(&["events"]).contains("s3cret"));
    svd.stop();
}

#[test]
fn a_change_while_no_svd_was_there_is_found_and_none_is_imagined() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    svd.service("web", &file(&svd, "user = 'auto'"));
    svd.service("same", &file(&svd, "user = 'auto'").replace("etc/db", "etc/db2"));
    secret_file(&svd, "db2", DB);
    svd.start();
    for name in ["web", "same"] {
        svd.wait_state(name, "running");
    }
    let (pid, same) = (svd.main_pid("web"), svd.main_pid("same"));
    svd.kill_both();
    secret_file(&svd, "db", "changed-s3cret");
    svd.start();
    wait_until("it is reloaded", PATIENCE, || {
        svd.status("web")["pid"].as_i64().is_some_and(|now| now != i64::from(pid))
    });
    wait_until("its value is there", PATIENCE, || {
        exec(&svd, "web", &["printenv", "DATABASE_URL"]) == "changed-s3cret\n"
    });
    // That one is looked at at the same time.
    assert_eq!((told(&svd, "the secret DATABASE_URL"), svd.main_pid("same")), (1, same));
    // A worker that dies under this svd, which never started one of it, is started again with them.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(same), nix::sys::signal::Signal::SIGKILL).expect("a signal");
    let again = || svd.status("same")["pid"].as_i64().is_some_and(|now| now != i64::from(same));
    wait_until("it is started again", PATIENCE, again);
    assert!(exec(&svd, "same", &["printenv", "DATABASE_URL"]).contains(DB));
    path_of(&svd, "same");
    svd.stop();
}

#[test]
fn a_command_is_asked_as_often_as_the_file_says() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let vault = secret_file(&svd, "vault", DB);
    let secrets = |every: &str| {
        format!("[stop]\ngrace = '1s'\n[secrets]\nA = {{ command = ['cat', {}], as = 'env'{every} }}", quoted(&vault))
    };
    svd.service("asked", &script("exec sleep 100000", &secrets(", every = '1s'")));
    svd.service("never", &script("exec sleep 100000", &secrets("")));
    svd.start();
    for name in ["asked", "never"] {
        svd.wait_state(name, "running");
    }
    let never = svd.main_pid("never");
    secret_file(&svd, "vault", "another-s3cret");
    wait_until("it is reloaded", PATIENCE, || exec(&svd, "asked", &["printenv", "A"]) == "another-s3cret\n");
    assert_eq!(svd.main_pid("never"), never);
    svd.ok(&["reload", "never"]);
    assert_eq!(exec(&svd, "never", &["printenv", "A"]), "another-s3cret\n");
    svd.stop();
}

#[test]
fn gunicorn_serves_on_while_its_secret_changes() {
    let Some(env) = Env::get("gunicorn-27.0.1") else { return };
    let mut svd = Svd::new();
    let app = svd.app("web");
    app.ship(&Release::new("r0"));
    let key = secret_file(&svd, "key", "first-s3cret\n");
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    svd.service(
        "web",
        &format!(
            "kind = 'gunicorn'\napp = 'wsgi_app:application'\nroot = {}\npython = {}\nworkers = 2\n\
             sockets.http.listen = '{at}'\n[secrets]\nKEY = {{ file = {}, as = 'env', every = '1s' }}\n",
            quoted(&app.root),
            quoted(&env.python()),
            quoted(&key)
        ),
    );
    svd.start();
    svd.wait_state("web", "running");
    let before = generation(&svd, "web");
    secret_file(&svd, "key", "second-s3cret\n");
    let mut answers = 0;
    wait_until("it is reloaded", PATIENCE, || {
        let (status, body) = http_get(at, "/").expect("it answers all the time");
        assert_eq!(status, 200, "{body}");
        answers += 1;
        generation(&svd, "web") == before + 1
    });
    println!("{answers} requests were answered meanwhile");
    assert_eq!((told(&svd, "the secret KEY"), exec(&svd, "web", &["printenv", "KEY"])), (1, "second-s3cret\n".into()));
    svd.stop();
}

#[test]
fn a_value_that_does_not_boot_is_tried_once() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let (mode, other) = (secret_file(&svd, "mode", "good"), secret_file(&svd, "other", DB));
    let rest = format!(
        "[reload]\noverlap = true\n[stop]\ngrace = '1s'\n[secrets]\nMODE = {{ file = {}, as = 'env', every = '1s' }}\n\
         OTHER = {{ file = {}, as = 'env', every = '1s' }}",
        quoted(&mode),
        quoted(&other)
    );
    svd.service("web", &script("if [ $MODE = bad ]; then exit 3; fi; exec sleep 100000", &rest));
    svd.start();
    svd.wait_state("web", "running");
    let pid = svd.main_pid("web");
    secret_file(&svd, "mode", "bad");
    wait_until("it was tried", PATIENCE, || told(&svd, "the secret MODE") == 1 && svd.state("web") == "running");
    // Looks that come after it: each tells once that the other one is away, and back.
    for round in 1..=2 {
        fs::rename(&other, svd.path("etc/away")).expect("it is away");
        let unreadable = || svd.ok(&["events"]).matches("the secret OTHER cannot be read").count() == round;
        wait_until("it is told", PATIENCE, unreadable);
        fs::rename(svd.path("etc/away"), &other).expect("it is back");
        let readable = || svd.ok(&["events"]).matches("the secret OTHER can be read again").count() == round;
        wait_until("it is told", PATIENCE, readable);
    }
    assert_eq!((told(&svd, ""), svd.main_pid("web")), (1, pid), "the old one serves on");
    secret_file(&svd, "mode", "better");
    wait_until("the next change is tried", PATIENCE, || {
        told(&svd, "the secret MODE") == 2 && svd.main_pid("web") != pid
    });
    svd.stop();
}

#[test]
fn what_says_something_else_each_time_is_not_asked_for_ever() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let asked = svd.path("asked");
    let ask = format!("echo >>{0}; wc -l <{0}", asked.display());
    let secrets = format!(
        "[stop]\ngrace = '1s'\n[secrets]\nA = {{ command = ['sh', '-c', {}], as = 'env', every = '2s' }}\n\
         B = {{ file = {}, as = 'env', every = '1s' }}",
        format_args!("{ask:?}"),
        quoted(&secret_file(&svd, "db", DB))
    );
    svd.service("lease", &script("exec sleep 100000", &secrets));
    svd.start();
    svd.wait_state("lease", "running");
    wait_until("it is told", PATIENCE, || svd.ok(&["events"]).contains("A says something else whenever svd looks"));
    let times = || fs::read_to_string(&asked).unwrap_or_default().lines().count();
    // At the start, when it had changed, and until it was given up.
    assert!(times() <= 7, "it was asked {} times", times());
    let (before, known) = (times(), generation(&svd, "lease"));
    // The other one is watched still. Its reload asks whether there are all of them, and for its generation.
    secret_file(&svd, "db", "another-s3cret");
    wait_until("it is reloaded", PATIENCE, || generation(&svd, "lease") == known + 1);
    assert_eq!((told(&svd, "the secret B"), told(&svd, "A")), (1, 0));
    assert!(times() <= before + 2, "it was asked {} times more", times() - before);
    svd.stop();
}
