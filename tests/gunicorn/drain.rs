//! How long an old generation may finish its requests, and how many may do so at once.

use super::support::svd::both;
use super::support::{Env, PATIENCE, Release, alone, http_get, wait_until};
use super::{GUNICORN, Site, workers_of};
use std::io;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

type Asked = JoinHandle<io::Result<(u16, String)>>;

impl Site {
    /// Asks for a slow page, and returns when a worker has begun with it.
    fn ask_slowly(&self, seconds: u32) -> Asked {
        let workers = workers_of(self.svd.main_pid("web"));
        let before: usize = workers.iter().map(|w| connections_of(*w)).sum();
        let address = self.address;
        let asked = std::thread::spawn(move || http_get(address, &format!("/slow?seconds={seconds}")));
        wait_until("a worker has begun with the slow request", PATIENCE, || {
            workers.iter().map(|w| connections_of(*w)).sum::<usize>() > before
        });
        asked
    }

    fn draining(&self) -> usize {
        let status = self.svd.status("web");
        let generations = status["generations"].as_array().cloned().unwrap_or_default();
        generations.iter().filter(|g| g["role"] == "draining").count()
    }
}

/// Sockets of a process; a connection is one more than at rest.
fn connections_of(pid: i32) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|t| t.to_string_lossy().starts_with("socket:"))).count()
}

/// The service's own `graceful_timeout` is for stops; the drain is `[reload] drain`.
#[test]
fn a_request_in_flight_outlives_graceful_timeout() {
    let Some(env) = Env::get(GUNICORN) else { return };
    for class in ["sync", "gthread", "gevent"] {
        let _alone = alone();
        let args = format!("workers = 2\nargs = [\"--graceful-timeout\", \"1\", \"--worker-class\", \"{class}\"]");
        let site = Site::with(&env, |_| args);
        let asked = site.ask_slowly(4);
        site.reload_to(&Release::new("r1"));
        assert_eq!(site.draining(), 1, "{class}: the old generation finishes its request");
        site.comes_up("r1");
        let (status, body) = asked.join().expect("the client").unwrap_or_else(|e| panic!("{class}: {e}"));
        assert!(status == 200 && body.starts_with("release=r0"), "{class}: {status} {body}");
        wait_until("the old generation is gone", PATIENCE, || site.draining() == 0);
    }
}

#[test]
fn the_drain_has_a_limit() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::with(&env, |_| "workers = 2\nreload.drain = \"1s\"".to_owned());
    let asked = site.ask_slowly(25);
    let began = Instant::now();
    site.reload_to(&Release::new("r1"));
    wait_until("the old generation is gone", PATIENCE, || site.draining() == 0);
    assert!(began.elapsed() < Duration::from_secs(20), "the drain of 1s took {:?}", began.elapsed());
    assert!(asked.join().expect("the client").is_err(), "the request that took too long was cut off");
    site.comes_up("r1");
}

#[test]
fn only_so_many_generations_drain_at_once_unless_forced() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let site = Site::with(&env, |_| "workers = 2\nreload.max_draining = 1\nstop.grace = \"1s\"".to_owned());
    let asked = site.ask_slowly(25);
    site.reload_to(&Release::new("r1"));
    site.app.ship(&Release::new("r2"));
    let refused = site.svd.svctl(&["reload", "web"]);
    assert!(!refused.status.success(), "{}", both(&refused));
    assert!(both(&refused).contains("--force"), "{}", both(&refused));
    site.comes_up("r1");
    site.svd.ok(&["reload", "web", "--force"]);
    assert!(asked.join().expect("the client").is_err(), "the oldest was ended");
    site.comes_up("r2");
}
