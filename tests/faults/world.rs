//! An svd with services that complain when they are started twice, deaths by kind, and how long each was felt.

use super::support::app::{App, Release};
use super::support::leftovers::describe;
use super::support::plain::give_to_nobody;
use super::support::svd::{Home, quoted};
use super::support::{Env, PATIENCE, Svd, free_port, wait_for, wait_until};
use airdock::sys::process::{PidFd, ProcStat};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub const GUNICORN: &str = "gunicorn-27.0.1";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Death {
    Svd,
    Guardian,
    /// And svd is started by the test.
    Both,
    /// svd, and a worker before there is another svd.
    SvdAndWorker,
    Worker,
}

pub struct World {
    pub svd: Svd,
    pub web: Option<Web>,
    pub random: fastrand::Rng,
    /// From the death to a `svctl status` that works and shows what is true.
    felt: BTreeMap<Death, Vec<Duration>>,
}

pub struct Web {
    pub app: App,
    pub address: SocketAddr,
    pub master: i32,
    inode: String,
}

/// Takes the lock of its slot for as long as it lives, and says so when somebody else has it.
pub fn locked(svd: &Svd, name: &str, then: &str, more: &str) -> String {
    let dir = svd.path("locks");
    std::fs::create_dir_all(&dir).expect("making a directory");
    let lock = dir.join(name);
    let text = format!(
        "exec 9>>{lock}.$0; flock -n 9 || {{ echo {name}.$0 $$ >>{shouts}; exec sleep 100000; }}; {then}",
        lock = lock.display(),
        shouts = dir.join("shouts").display(),
    );
    assert!(!text.contains("'''"), "it would end the text");
    format!("kind = \"command\"\ncommand = ['/bin/sh', '-c', '''{text}''', '{{worker}}']\n{more}\n")
}

impl World {
    /// With a plain service `pair` of two workers, `toggle`, and `crash`, which does so all the time; and gunicorn if
    /// `env` is given. The seed is printed.
    pub fn start(env: Option<&Env>) -> World {
        World::start_at(Home::Here, env)
    }

    pub fn start_at(home: Home, env: Option<&Env>) -> World {
        let seed = std::env::var("AIRDOCK_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
        println!("AIRDOCK_SEED={seed}");
        let mut svd = Svd::new();
        let sleep = "exec sleep 100000";
        let quick = "[restart]\ndelay = '10ms'\nmax_delay = '50ms'\nsettled = '100ms'\nlimit = { failures = 10000, within = '1m' }";
        svd.service("pair", &locked(&svd, "pair", sleep, &format!("instances = 2\n{quick}")));
        svd.service("toggle", &locked(&svd, "toggle", sleep, quick));
        let crash = "[restart]\ndelay = '50ms'\nmax_delay = '200ms'\nlimit = { failures = 10000, within = '1m' }";
        svd.service("crash", &locked(&svd, "crash", "read x <&- ; sleep 0.05; exit 3", crash));
        let site = env.map(|env| gunicorn(&mut svd, env));
        svd.home = home;
        if home == Home::PlainUser {
            give_to_nobody(&svd);
        }
        svd.start();
        let stubs = svd.json(&["version"])["svd"]["limitations"].to_string().contains("stub");
        assert!(stubs || home == Home::Here, "it has control groups");
        ["pair", "toggle"].iter().for_each(|name| svd.wait_state(name, "running"));
        let web = site.map(|(app, address)| {
            svd.wait_state("web", "running");
            Web { app, address, master: svd.main_pid("web"), inode: listening_inode(address) }
        });
        World { svd, web, random: fastrand::Rng::with_seed(seed), felt: BTreeMap::new() }
    }

    /// Kills, and waits until `svctl status` tells the truth again.
    pub fn die(&mut self, death: Death) {
        let begun = match death {
            Death::Svd => {
                let svd = self.svd.pid();
                kill(svd)
            }
            Death::Guardian => {
                let killed = self.svd.guardian();
                let begun = Instant::now();
                self.svd.kill_guardian();
                self.svd.follow(killed);
                begun
            }
            Death::Both => {
                self.svd.kill_both();
                let begun = Instant::now();
                self.svd.start();
                begun
            }
            Death::SvdAndWorker => return self.die_with_worker(),
            Death::Worker => {
                let pids = self.pids("pair");
                let begun = kill(pids[self.random.usize(..2)]);
                wait_until("the worker is replaced", PATIENCE, || {
                    let now = self.pids("pair");
                    now.len() == 2 && now != pids
                });
                begun
            }
        };
        self.felt(death, begun);
    }

    /// The end of a worker while nobody looks is told afterwards, with its status.
    fn die_with_worker(&mut self) {
        let before = restarts(&self.status("pair").expect("svd answers"));
        let pids = self.pids("pair");
        let svd = self.svd.pid();
        self.svd.freeze_guardian();
        kill(svd);
        let victim = self.random.usize(..2);
        let end = PidFd::open(pids[victim]).expect("a worker");
        kill(pids[victim]);
        wait_until("the worker has ended", PATIENCE, || end.has_ended());
        let begun = Instant::now();
        send(self.svd.guardian(), Signal::SIGCONT);
        let status = wait_for("the worker is replaced, and its end told", PATIENCE, || {
            let status = self.status("pair")?;
            let told = restarts(&status) > before;
            (told && status["state"] == "running").then_some(status)
        });
        let exit = status["workers"][victim]["last_exit"].as_str().unwrap_or_default().to_owned();
        assert!(exit.contains("signal 9") || exit.contains("SIGKILL"), "its end is told: {status:#}");
        assert_eq!(status["workers"][1 - victim]["pid"], pids[1 - victim], "the other one goes on: {status:#}");
        assert_eq!(restarts(&status), before + 1, "{status:#}");
        self.felt(Death::SvdAndWorker, begun);
    }

    fn felt(&mut self, death: Death, begun: Instant) {
        let name = if self.web.is_some() { "web" } else { "toggle" };
        wait_until("svctl status tells the truth", PATIENCE, || {
            let status = self.status(name);
            status.is_some_and(|status| self.web.is_none() || status["state"] == "running")
        });
        self.felt.entry(death).or_default().push(begun.elapsed());
    }

    /// `None`: svd does not answer now.
    pub fn status(&self, name: &str) -> Option<Value> {
        let output = self.svd.svctl(&["--json", "status", name]);
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        (answer["error"]["code"] != "unavailable").then_some(answer)
    }

    fn pids(&self, name: &str) -> Vec<i32> {
        wait_for("the service has its two workers", PATIENCE, || {
            let status = self.status(name)?;
            let workers = status["workers"].as_array()?;
            let pids: Vec<i32> = workers.iter().filter_map(|w| Some(w["pid"].as_i64()? as i32)).collect();
            (pids.len() == 2).then_some(pids)
        })
    }

    /// What must hold whenever nothing is under way.
    #[track_caller]
    pub fn check(&self) {
        self.nobody_shouts();
        for pid in self.pids("pair") {
            let what = format!("{pid}, which svctl names as a worker of pair, runs");
            // It may have been replaced since.
            wait_until(&what, PATIENCE, || alive(pid) || !self.pids("pair").contains(&pid));
        }
        let Some(web) = &self.web else { return };
        let status = self.status("web").expect("svd answers");
        assert_eq!(status["pid"], web.master, "nobody has touched the master: {status:#}");
        assert!(alive(web.master), "the master runs");
        assert_eq!(listening_inode(web.address), web.inode, "it is the same socket");
    }

    /// I3.
    #[track_caller]
    pub fn nobody_shouts(&self) {
        let shouts = std::fs::read_to_string(self.svd.path("locks/shouts")).unwrap_or_default();
        assert!(shouts.is_empty(), "started twice: {shouts}");
    }

    /// Stopped, nothing of it is left, and its locks are free.
    #[track_caller]
    pub fn nothing_left(&self, name: &str) {
        for entry in std::fs::read_dir(self.svd.path("locks")).expect("the locks").flatten() {
            let file = entry.file_name().to_string_lossy().into_owned();
            if file.starts_with(&format!("{name}.")) {
                let mut flock = Command::new("flock");
                let free = flock.arg("-n").arg(entry.path()).arg("true").stdin(Stdio::null()).status().expect("flock");
                assert!(free.success(), "{file} is held by somebody: {:?}", holders(&entry.path()));
            }
        }
    }

    pub fn figures(&self) {
        for (death, times) in &self.felt {
            let mut times = times.clone();
            times.sort();
            let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
            println!(
                "{death:?}: {} times; status is true again after {median:.0?} (median), {most:.0?} (most)",
                times.len()
            );
        }
    }

    /// The longest time and the median over all deaths of svd that its guardian saw.
    pub fn latencies(&self) -> (Duration, Duration) {
        let mut all: Vec<Duration> = self.felt.get(&Death::Svd).cloned().unwrap_or_default();
        all.sort();
        (all.get(all.len() / 2).copied().unwrap_or_default(), all.last().copied().unwrap_or_default())
    }
}

fn gunicorn(svd: &mut Svd, env: &Env) -> (App, SocketAddr) {
    let app = svd.app("web");
    app.ship(&Release::new("r0"));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let text = format!(
        "kind = \"gunicorn\"\napp = \"wsgi_app:application\"\nroot = {}\npython = {}\n\
         sockets.http.listen = \"{address}\"\nworkers = 2\n\
         args = [\"--worker-class\", \"gthread\", \"--threads\", \"4\"]\n\
         [restart]\ndelay = '20ms'\nmax_delay = '200ms'\nlimit = {{ failures = 10000, within = '1m' }}\n",
        quoted(&app.root),
        quoted(&env.python()),
    );
    svd.service("web", &text);
    (app, address)
}

pub fn restarts(status: &Value) -> u64 {
    status["restarts"].as_u64().unwrap_or_default()
}

pub fn alive(pid: i32) -> bool {
    ProcStat::read(pid).is_some_and(|stat| !matches!(stat.state, 'Z' | 'X'))
}

/// Of a process that was just looked up.
pub fn send(pid: i32, signal: Signal) {
    if let Ok(process) = PidFd::open(pid) {
        let _ = process.signal(signal as i32);
    }
}

pub fn kill(pid: i32) -> Instant {
    let begun = Instant::now();
    send(pid, Signal::SIGKILL);
    begun
}

/// Names the listening socket of an IPv4 address: it changes when the address is bound anew (`proc_net(5)`).
#[track_caller]
pub fn listening_inode(address: SocketAddr) -> String {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("/proc/net/tcp");
    let end = format!(":{:04X}", address.port());
    let rows = table.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let rows: Vec<_> = rows.filter(|r| r.len() > 9 && r[1].ends_with(&end) && r[3] == "0A").collect();
    assert_eq!(rows.len(), 1, "one socket listens on {address}");
    rows[0][9].to_owned()
}

fn holders(path: &std::path::Path) -> Vec<String> {
    let holds = |pid: &i32| {
        let fds = std::fs::read_dir(format!("/proc/{pid}/fd"));
        fds.into_iter().flatten().flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == path))
    };
    let all = airdock::sys::process::all_pids().into_iter().filter(holds);
    all.filter_map(ProcStat::read).map(|stat| describe(&stat)).collect()
}
