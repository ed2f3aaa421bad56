//! Thirty hosts.

use super::bed::{Bed, Host};
use super::site::{GUNICORN, Site, gunicorn};
use super::support::alone;
use super::support::app::Release;
use super::support::env::Env;
use airdock::sys::process::all_pids;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn thirty_hosts_at_once() {
    let _alone = alone();
    let Some(bed) = Bed::start(30) else { return };
    let begun = Instant::now();
    let out = bed.ok(&["-H", "all", "status", "web"]);
    println!("status of 30 hosts over ssh: {:?}", begun.elapsed());
    let running: Vec<&str> = out.lines().filter(|line| line.contains("web: running")).collect();
    assert_eq!(running.len(), 30, "{out}");
    let order: Vec<usize> =
        running.iter().map(|line| line["web-".len()..].split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(order.is_sorted(), "{order:?}");
    let begun = Instant::now();
    let document = bed.json(&["-H", "all", "--parallel", "30", "restart", "web"]);
    println!("restart on 30 hosts over ssh: {:?}", begun.elapsed());
    let hosts = document["hosts"].as_array().expect("hosts");
    assert!(hosts.len() == 30 && hosts.iter().all(|host| host["result"]["services"][0]["ok"] == true), "{document:#}");
}

/// What svctl had at once of each kind, at most.
#[derive(Debug, Default)]
struct Most {
    /// Connections to hosts' ssh servers, and the processes that hold them.
    connections: usize,
    masters: usize,
    /// Processes that speak over them.
    relays: usize,
    /// Processes of uploads: one each, and another one until that is ssh.
    uploads: usize,
    /// Kibibytes of svctl itself.
    memory: usize,
}

impl Most {
    fn look(&mut self, site: &Site<'_>) {
        let mine = format!("{}/", site.temporary().display());
        let mut now = Most::default();
        for pid in all_pids() {
            let Ok(text) = std::fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let line = String::from_utf8_lossy(&text).replace('\0', " ");
            let words: Vec<&str> = line.split(' ').collect();
            match words[0].rsplit('/').next() {
                Some("svctl") if line.contains(" deploy ") && line.contains("--fleet") => {
                    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
                    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next());
                    now.memory = peak.and_then(|peak| peak.parse().ok()).unwrap_or(0);
                }
                Some("ssh") if line.contains("ControlMaster=yes") && line.contains(&mine) => now.masters += 1,
                Some("ssh") if line.contains(" relay") && line.contains(&mine) => now.relays += 1,
                Some("rsync") if line.contains(&mine) => now.uploads += 1,
                _ => {}
            }
        }
        now.connections = site.bed.connections(22);
        for (most, now) in [
            (&mut self.connections, now.connections),
            (&mut self.masters, now.masters),
            (&mut self.relays, now.relays),
            (&mut self.uploads, now.uploads),
            (&mut self.memory, now.memory),
        ] {
            *most = now.max(*most);
        }
    }
}

/// Looks until what is done is done.
fn watched<T>(site: &Site<'_>, done: impl FnOnce() -> T) -> (T, Most) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = Most::default();
            while !stop.load(Ordering::Relaxed) {
                most.look(site);
                std::thread::sleep(Duration::from_millis(100));
            }
            most
        });
        let result = done();
        stop.store(true, Ordering::Relaxed);
        (result, watcher.join().expect("the watcher"))
    })
}

/// A rollout in waves to many hosts, each with an ssh server, svd and gunicorn of its own: thirty with `AIRDOCK_LONG`, else eight.
/// One connection a host, and no more work at once than is allowed.
#[test]
fn a_rollout_to_many_hosts() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let (count, parallel) = if std::env::var_os("AIRDOCK_LONG").is_some() { (30, 8) } else { (8, 3) };
    let Some(bed) = Bed::start(count) else { return };
    let service = gunicorn(&env, "wsgi_app:application", "").replace("workers = 2", "workers = 1");
    let site = Site::empty(&bed, "web", 8000, &service);
    site.commit(&Release::new("first"));
    let begun = Instant::now();
    site.first(&format!(
        "waves = [1, \"50%\", \"100%\"]\nbake = \"5s\"\nparallel = {parallel}\nverdict = {{ min_requests = 10 }}\n"
    ));
    println!("the first release, to {count} hosts at once: {:.1?}", begun.elapsed());
    site.commit(&Release::new("second"));
    let hosts = [0, count / 2 - 1, count - 2, count - 1].map(|at| &bed.hosts[at]);
    let ((((code, out, err), took), most), reports) = site.under_load_of(&hosts, || {
        watched(&site, || {
            let begun = Instant::now();
            (site.deploy(), begun.elapsed())
        })
    });
    assert_eq!(code, 0, "{out}{err}");
    for (host, report) in hosts.iter().zip(&reports) {
        println!("{}: {}", host.name, report.summary());
        report.assert_no_failure();
    }
    let all: Vec<&Host> = bed.hosts.iter().collect();
    assert!(site.serves_on(&all).iter().all(|release| release == "second"), "{out}{err}");
    assert!(
        out.contains("wave 1: web-0 (") && out.contains("wave 2: web-1, web-2, web-3"),
        "the fleet file's order: {out}"
    );
    let own = took.saturating_sub(Duration::from_secs(15));
    println!("to {count} hosts in three waves of 5 s: {took:.1?}; without those {:.2?} a host", own / count as u32);
    println!("at most, at once: {most:?}");
    assert_eq!((most.connections, most.masters), (count, count), "one connection a host");
    assert!(most.uploads <= 2 * parallel && most.uploads > 0, "{most:?}");
    // Beside what lasts, as many short calls.
    assert!(most.relays <= 2 * parallel + count, "{most:?}");
    let waves: BTreeMap<u64, usize> = generations(&site);
    assert_eq!(waves.values().sum::<usize>(), count, "{waves:?}");
    assert_eq!(waves.len(), 1, "each host was switched once: {waves:?}");
}

/// How many hosts have which.
fn generations(site: &Site<'_>) -> BTreeMap<u64, usize> {
    let mut all = BTreeMap::new();
    site.generations().into_iter().for_each(|generation| *all.entry(generation).or_default() += 1);
    all
}
