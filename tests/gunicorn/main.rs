//! The real svd with real gunicorn: sockets, the gate, reloads under load, and what may come between.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

#[path = "../support/mod.rs"]
mod support;

mod asgi;
mod broken;
mod drain;
mod frameworks;
mod interrupted;
mod memory;
mod operated;
mod under_load;
mod users_own;

use airdock::sys::process::{ProcStat, descendants};
use std::net::{Ipv4Addr, SocketAddr};
use support::svd::quoted;
use support::{App, Env, PATIENCE, Release, Svd, free_port, http_get, wait_for, wait_until};

/// The version that is asked to lose nothing; older ones have tests of their own.
const GUNICORN: &str = "gunicorn-27.0.1";

/// A service `web`, whose release `r0` runs.
struct Site {
    app: App,
    address: SocketAddr,
    // Dropped last: its end removes the directory.
    svd: Svd,
}

impl Site {
    /// `more` is added to the service's file, behind its tables.
    fn start(env: &Env, class: &str, more: &str) -> Site {
        Site::with(env, |_| {
            let threads = if class == "gthread" { ", \"--threads\", \"4\"" } else { "" };
            format!("workers = 3\nargs = [\"--worker-class\", \"{class}\"{threads}]\n{more}")
        })
    }

    /// `text` gives the rest of the service's file, keys first; it may put files into the release.
    fn with(env: &Env, text: impl FnOnce(&App) -> String) -> Site {
        let mut svd = Svd::new();
        let app = svd.app("web");
        app.ship(&Release::new("r0"));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let file = format!(
            "kind = \"gunicorn\"\napp = \"wsgi_app:application\"\nroot = {root}\npython = {python}\n\
             sockets.http.listen = \"{address}\"\n{text}\n",
            root = quoted(&app.root),
            python = quoted(&env.python()),
            text = text(&app),
        );
        svd.service("web", &file);
        svd.start();
        svd.wait_state("web", "running");
        Site { app, address, svd }
    }

    /// Ships a release and reloads to it.
    #[track_caller]
    fn reload_to(&self, release: &Release) {
        self.app.ship(release);
        self.svd.ok(&["reload", "web"]);
    }

    /// The release that answers one request.
    #[track_caller]
    fn answers(&self) -> String {
        let (status, body) = http_get(self.address, "/").expect("the service answers");
        assert_eq!(status, 200, "{body}");
        body.split_whitespace().next().and_then(|w| w.strip_prefix("release=")).unwrap_or_default().to_owned()
    }

    /// Waits until that release answers: the old workers may take a connection for a moment after the commit.
    #[track_caller]
    fn comes_up(&self, release: &str) {
        wait_until(&format!("{release} answers"), PATIENCE, || self.answers() == release);
    }

    /// Waits for the candidate of a reload, and for its master: its pid.
    #[track_caller]
    fn candidate(&self) -> i32 {
        wait_for("a candidate is started", PATIENCE, || {
            let status = self.svd.status("web");
            let generations = status["generations"].as_array()?;
            let candidate = generations.iter().find(|g| g["role"] == "candidate")?;
            i32::try_from(candidate["workers"][0]["pid"].as_i64()?).ok()
        })
    }
}

/// Gunicorn's workers below a master.
fn workers_of(master: i32) -> Vec<i32> {
    let living = |pid: &i32| ProcStat::read(*pid).is_some_and(|s| !matches!(s.state, 'Z' | 'X'));
    descendants(master).into_iter().filter(living).collect()
}

/// SIGKILL for a process of the service that has just been looked up.
fn kill_hard(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("killing it");
}

/// Names the listening socket of an IPv4 address: it changes when the address is bound anew (`proc_net(5)`).
fn listening_inode(address: SocketAddr) -> String {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let end = format!(":{:04X}", address.port());
    let mut rows = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let row = rows.find(|r| r.len() > 9 && r[1].ends_with(&end) && r[3] == "0A").expect("a listening socket");
    row[9].to_owned()
}
