//! The real svd with real gunicorn: sockets, the gate, and reloads under load.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use support::svd::quoted;
use support::{App, Env, Load, Release, Svd, alone, free_port};

/// One gunicorn service `web` with three workers and what `more` adds to its file.
struct Site {
    app: App,
    address: SocketAddr,
    // Dropped last: its end removes the directory.
    svd: Svd,
}

impl Site {
    fn start(env: &Env, class: &str, more: &str) -> Site {
        let mut svd = Svd::new();
        let app = svd.app("web");
        app.ship(&Release::new("r0"));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        svd.service("web", &file(env, &app, address, class, more));
        svd.start();
        svd.wait_state("web", "running");
        Site { app, address, svd }
    }
}

fn file(env: &Env, app: &App, address: SocketAddr, class: &str, more: &str) -> String {
    let threads = if class == "gthread" { ", \"--threads\", \"4\"" } else { "" };
    format!(
        "kind = \"gunicorn\"\napp = \"wsgi_app:application\"\nroot = {root}\npython = {python}\nworkers = 3\n\
         args = [\"--worker-class\", \"{class}\"{threads}]\n[sockets.http]\nlisten = \"{address}\"\n{more}\n",
        root = quoted(&app.root),
        python = quoted(&env.python()),
    )
}

#[test]
fn one_reload_under_load_is_not_noticed() {
    let Some(env) = Env::get("gunicorn-27.0.1") else { return };
    let _alone = alone();
    let site = Site::start(&env, "sync", "");
    let load = Load::start(site.address);
    load.more(50);
    site.app.ship(&Release::new("r1"));
    site.svd.ok(&["reload", "web"]);
    load.more(50);
    let report = load.stop();
    println!("{}", report.summary());
    report.assert_no_failure();
    assert_eq!(report.releases().into_keys().collect::<Vec<_>>(), ["r0", "r1"]);
}
