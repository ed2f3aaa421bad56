//! UNIX sockets of a service in a directory of the service's user.

use super::support::plain::{needs_root, script};
use super::support::{PATIENCE, Svd, wait_until};
use super::{NOBODY, SLEEP, Victim, link, users_directory};
use airdock::sys::socket::{UnixOptions, listen_unix};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

fn service(path: &Path, mode: &str) -> String {
    let listen = format!("unix:{}", path.display());
    script(SLEEP, &format!("[sockets.web]\nlisten = {listen:?}\nowner = 'nobody'\nmode = '{mode}'"))
}

fn begin() -> Option<(Svd, PathBuf, Victim)> {
    if needs_root() {
        return None;
    }
    let svd = Svd::new();
    let dir = svd.path("users");
    users_directory(&dir);
    let victim = Victim::new(&svd);
    Some((svd, dir.join("web.sock"), victim))
}

/// As a naive daemon gives a socket that it has bound to its user.
fn naive_gift(path: &Path) {
    // Where nothing is there at this moment, the next time.
    let _ = chown(path, Some(NOBODY), None);
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(0o666));
}

/// Puts a link to the victim in a name's place, again and again.
struct Swapper(Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Swapper {
    fn start(victim: &Victim, path: &Path) -> Swapper {
        let go_on = Arc::new(AtomicBool::new(true));
        let (flag, victim, path) = (Arc::clone(&go_on), victim.0.clone(), path.to_owned());
        let thread = std::thread::spawn(move || {
            let new = path.with_extension("new");
            while flag.load(Ordering::Relaxed) {
                // Out of the way for a moment, so that it can be bound.
                let _ = fs::remove_file(&path);
                std::thread::yield_now();
                let _ = fs::remove_file(&new);
                let _ = std::os::unix::fs::symlink(&victim, &new).and_then(|()| fs::rename(&new, &path));
            }
        });
        Swapper(go_on, Some(thread))
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
        if let Some(thread) = self.1.take() {
            thread.join().expect("the swapper");
        }
    }
}

#[test]
fn what_is_put_in_a_sockets_place_is_not_given_away() {
    let Some((mut svd, path, victim)) = begin() else { return };
    link(&victim.0, &path);
    naive_gift(&path);
    assert!(!victim.is_unharmed(), "a naive daemon gives the victim away");
    victim.restore();
    chown(&victim.0, Some(0), None).expect("chown");
    svd.service("web", &service(&path, "0666"));
    svd.start();
    svd.wait_state("web", "failed");
    assert!(svd.said().contains("no socket is in its place"), "{}", svd.said());
    victim.assert_unharmed(&svd);
}

/// Also at the very moment between the two: thousands of times, by svd's own function, as a start takes its time.
#[test]
fn nor_what_is_put_there_meanwhile() {
    let Some((svd, path, victim)) = begin() else { return };
    let until = Instant::now() + PATIENCE;
    let swapper = Swapper::start(&victim, &path);
    while victim.is_unharmed() {
        assert!(Instant::now() < until, "the attack never wins against a naive daemon");
        if UnixListener::bind(&path).is_ok() {
            naive_gift(&path);
        }
    }
    drop(swapper);
    victim.restore();
    chown(&victim.0, Some(0), None).expect("chown");
    let _ = fs::remove_file(&path);
    let options = UnixOptions { mode: 0o666, owner: Some(NOBODY), group: None, backlog: 1 };
    let swapper = Swapper::start(&victim, &path);
    let (mut bound, mut caught, begun) = (0, 0, Instant::now());
    while begun.elapsed() < Duration::from_secs(3) || caught == 0 {
        match listen_unix(&path, options) {
            Ok(_) => bound += 1,
            Err(e) => caught += u32::from(e.reason.contains("somebody puts other files in its place")),
        }
        victim.assert_unharmed(&svd);
        assert!(begun.elapsed() < PATIENCE, "the attack never came between, in {bound} times");
    }
    drop(swapper);
    println!("bound {bound} times, and caught the attack in {caught}");
}

#[test]
fn an_update_of_the_mode_and_a_stop_touch_nothing_else() {
    let Some((mut svd, path, victim)) = begin() else { return };
    svd.service("web", &service(&path, "0600"));
    svd.start();
    svd.wait_state("web", "running");
    let meta = fs::symlink_metadata(&path).expect("the socket");
    assert_eq!((meta.uid(), meta.mode() & 0o777), (NOBODY, 0o600));
    fs::rename(&path, path.with_extension("old")).expect("the user may");
    link(&victim.0, &path);
    svd.service("web", &service(&path, "0666"));
    svd.ok(&["update"]);
    wait_until("it is said", PATIENCE, || svd.said().contains("cannot change"));
    victim.assert_unharmed(&svd);

    // The directory leads to one of root's that has a file of that name.
    let (users, roots) = (svd.path("users"), svd.path("roots"));
    fs::create_dir(&roots).expect("a directory");
    let named = roots.join("web.sock");
    fs::write(&named, "precious").expect("a file");
    fs::rename(&users, svd.path("away")).expect("renamed");
    link(&roots, &users);
    fs::remove_file(&path).expect("a naive stop removes it");
    assert!(!named.exists());
    fs::write(&named, "precious").expect("a file");
    svd.ok(&["stop", "web"]);
    assert!(named.exists(), "the stop removed a file of root's");
    victim.assert_unharmed(&svd);
}
