//! Flask, Django and UNIX sockets.

use super::support::svd::quoted;
use super::support::{App, Env, Load, PATIENCE, Release, Svd, alone, free_port, wait_until};
use super::{GUNICORN, kill_hard};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// svd with a service `web`; its file ends with `more`.
pub fn site(env: &Env, module: &str, more: &str) -> (App, Svd) {
    let mut svd = Svd::new();
    let app = svd.app("web");
    app.ship(&Release::new("r0"));
    let file = format!(
        "kind = \"gunicorn\"\napp = \"{module}\"\nroot = {}\npython = {}\nworkers = 2\n{more}",
        quoted(&app.root),
        quoted(&env.python())
    );
    svd.service("web", &file);
    svd.start();
    (app, svd)
}

#[test]
fn flask_is_reloaded() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let more = format!("sockets.http.listen = \"{address}\"\nready.probe = {{ path = \"/healthz\" }}\n");
    let (app, svd) = site(&env, "flask_app:app", &more);
    svd.wait_state("web", "running");
    let load = Load::start(address);
    load.more(50);
    app.ship(&Release::new("r1"));
    svd.ok(&["reload", "web"]);
    app.ship(&Release::new("bad").with("probe", "raise"));
    // Flask itself makes a 500 of it.
    let said = svd.fails(&["reload", "web"]);
    assert!(said.contains("answered 500"), "{said}");
    load.more(50);
    let report = load.stop();
    report.assert_no_failure();
    assert_eq!(report.releases().into_keys().collect::<Vec<_>>(), ["r0", "r1"]);
}

/// As in production: it answers for its own host alone, and only by HTTPS.
#[test]
fn django_is_probed_with_its_host_and_headers() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let more = |probe: &str| {
        format!(
            "sockets.http.listen = \"{address}\"\nready.probe = {{ path = \"/healthz\", expect = 200{probe} }}\n\
             [environment]\nDJANGO_SSL_REDIRECT = \"1\"\n"
        )
    };
    let good = more(", host = \"airship.example.org\", headers = { X-Forwarded-Proto = \"https\" }");
    let (app, svd) = site(&env, "django_app:application", &good);
    svd.wait_state("web", "running");
    app.ship(&Release::new("r1"));
    svd.ok(&["reload", "web"]);
    assert_eq!(svd.status("web")["release"], "r1");
    // The same probe without them is answered by a redirection or a refusal, and says so.
    let file = std::fs::read_to_string(svd.path("etc/conf.d/web.toml")).expect("the service's file");
    for (probe, words) in [("", "301"), (", host = \"elsewhere\"", "400")] {
        svd.service("web", &file.replace(&good, &more(probe)));
        svd.ok(&["update"]);
        let said = svd.fails(&["reload", "web"]);
        assert!(said.contains(words), "{said}");
        assert_eq!(svd.status("web")["release"], "r1");
        assert_eq!(svd.state("web"), "running");
    }
}

/// One request over a UNIX socket; the answer's body.
fn ask(path: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.rsplit("\r\n").next().unwrap_or_default().to_owned())
}

#[test]
fn a_unix_socket_stays_through_reloads_and_deaths() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let socket_dir = tempfile::tempdir().expect("a directory for the socket");
    let path = socket_dir.path().join("web.sock");
    let more = format!("[sockets.http]\nlisten = \"unix:{}\"\nmode = \"0660\"\n", path.display());
    let (app, svd) = site(&env, "wsgi_app:application", &more);
    svd.wait_state("web", "running");
    let inode = || std::fs::metadata(&path).expect("the socket").ino();
    let (before, mode) = (inode(), std::fs::metadata(&path).expect("the socket").permissions().mode());
    assert_eq!(mode & 0o777, 0o660);
    assert!(ask(&path).expect("an answer").starts_with("release=r0"));
    app.ship(&Release::new("r1"));
    svd.ok(&["reload", "web"]);
    wait_until("the new release answers", PATIENCE, || ask(&path).expect("an answer").starts_with("release=r1"));
    // gunicorn unlinks a socket's file that it thinks its own.
    let old = svd.main_pid("web");
    wait_until("the old generation is gone", PATIENCE, || {
        svd.status("web")["generations"].as_array().is_some_and(|g| g.len() == 1)
    });
    kill_hard(old);
    wait_until("a new master runs", PATIENCE, || {
        let status = svd.status("web");
        status["state"] == "running" && status["pid"] != old
    });
    assert!(ask(&path).expect("an answer").starts_with("release=r1"));
    assert_eq!(inode(), before, "it is the same file");
    svd.ok(&["stop", "web"]);
    assert!(!path.exists(), "a stop removes the file");
}
