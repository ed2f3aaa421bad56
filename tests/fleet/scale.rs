//! Rollouts to many hosts that are not there: each is a task that speaks HTTP as svd does, over a stream in memory, and takes its time.

use airdock::api::client::{ClientError, Io};
use airdock::fleet::drive::{Cargo, Link, Links, drive, facts};
use airdock::fleet::inventory::Host;
use airdock::fleet::rollout::plan::{Facts, HostFacts, Limits, Plan, Purpose};
use airdock::fleet::rollout::{Driver, End, Machine, Outcome, Start};
use airdock::fleet::transport::{CopyError, Transport, Under, Upload};
use airdock::fleet::verdict::{Baseline, Settings};
use airdock::fleet::waves::Wave;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// Of one request on a connection that is there, and of making one.
const LATENCY: Duration = Duration::from_millis(15);
const CONNECT: Duration = Duration::from_millis(60);
/// Of sending the files, building, switching.
const WORK: Duration = Duration::from_millis(80);
const PARALLEL: usize = 20;

#[derive(Default)]
struct Counters {
    requests: AtomicUsize,
    connections: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    /// Of the journal, on all hosts together.
    bytes: AtomicUsize,
}

struct Fake {
    hosts: BTreeMap<Box<str>, Arc<Mutex<State>>>,
    counters: Arc<Counters>,
}

/// As much of a host as a good rollout sees.
struct State {
    serves: String,
    confirmed: String,
    releases: Vec<String>,
    fence: Value,
    trial: Option<String>,
    /// The fence that it was written with last.
    journal_of: Value,
    /// How many entries it has.
    journal: usize,
    /// Requests that it has answered to others.
    traffic: u64,
}

impl State {
    fn status(&mut self) -> Value {
        self.traffic += 1000;
        let release = |id: &String| {
            json!({"release": id, "state": if *id == self.confirmed { "confirmed" } else { "built" }, "source": id, "label": "", "by": "",
                   "since": "", "since_seconds": 1, "serving": *id == self.serves})
        };
        let trial = self.trial.as_ref().map(|rollout| {
            json!({"release": self.serves, "rollout": rollout, "seconds_left": 60, "holds": false, "before": "old"})
        });
        let mut status = json!({
            "app": "web", "root": "/srv/web", "confirmed": self.confirmed, "fence": self.fence, "steps": [],
            "may_deploy": true, "builds": true, "releases": self.releases.iter().map(release).collect::<Vec<_>>(),
            "services": [{"name": "web", "state": "running", "release": self.serves, "restarts": 0,
                          "traffic": traffic(self.traffic)}],
            "journal": {"rollout": self.journal_of["rollout"], "number": self.journal_of["number"], "entries": self.journal},
        });
        if let Some(trial) = trial {
            status["trial"] = trial;
        }
        status
    }

    fn act(&mut self, verb: &str, wanted: &Value) -> Value {
        let fence = wanted["fence"].clone();
        match verb {
            "lock" => {
                self.fence = fence.clone();
                json!({"fence": fence, "staging": "/staging"})
            }
            "append" => {
                self.journal_of = fence;
                self.journal = usize::try_from(wanted["entries"].as_u64().unwrap_or(0)).unwrap_or(0);
                json!({"entries": self.journal})
            }
            "stage" => {
                self.releases.push(wanted["release"].as_str().unwrap_or_default().to_owned());
                json!({"entries": 1, "bytes": 1})
            }
            "build" => json!({"changed": false, "reason": "the same"}),
            "step" => json!({"ran": false, "reason": "there is none"}),
            "activate" => {
                self.serves = wanted["release"].as_str().unwrap_or_default().to_owned();
                self.trial = fence["rollout"].as_str().map(str::to_owned);
                json!({"services": []})
            }
            "renew" => Value::Null,
            "confirm" => {
                self.confirmed.clone_from(&self.serves);
                self.trial = None;
                json!({"release": self.confirmed})
            }
            "prune" => json!({}),
            "unlock" => json!(true),
            other => panic!("a good rollout does not {other}"),
        }
    }
}

fn traffic(requests: u64) -> Value {
    let traffic = airdock::api::types::Traffic { requests, ..Default::default() };
    serde_json::to_value(traffic).expect("JSON")
}

/// A large one is not looked into: that would be this thread's work, and is none of svctl's.
#[derive(serde::Deserialize)]
struct Append<'a> {
    fence: Value,
    from: usize,
    #[serde(borrow)]
    entries: Vec<&'a serde_json::value::RawValue>,
}

fn wanted(verb: &str, body: &[u8]) -> Value {
    match serde_json::from_slice::<Append<'_>>(body) {
        Ok(append) if verb == "append" => {
            json!({"fence": append.fence, "entries": append.from + append.entries.len()})
        }
        _ => serde_json::from_slice(body).unwrap_or(Value::Null),
    }
}

/// HTTP/1.1, one request after the other.
async fn serve(mut stream: DuplexStream, state: Arc<Mutex<State>>, counters: Arc<Counters>) {
    let mut got = Vec::new();
    loop {
        let head = loop {
            if let Some(at) = got.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
                return;
            }
        };
        let text = String::from_utf8_lossy(&got[..head]).to_ascii_lowercase();
        let length =
            text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
        while got.len() < head + length {
            if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
        let verb = path.strip_prefix("/v1/apps/web/").unwrap_or_default();
        let body = wanted(verb, &got[head..head + length]);
        got.drain(..head + length);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        let now = counters.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        counters.most_under_way.fetch_max(now, Ordering::Relaxed);
        tokio::time::sleep(if matches!(verb, "stage" | "build" | "activate") { WORK } else { LATENCY }).await;
        let answer = match verb {
            "" => state.lock().expect("no panic").status(),
            verb => json!({"result": state.lock().expect("no panic").act(verb, &body)}),
        };
        counters.bytes.fetch_add(if verb == "append" { length } else { 0 }, Ordering::Relaxed);
        counters.under_way.fetch_sub(1, Ordering::Relaxed);
        let answer = format!("{answer}\n");
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", answer.len());
        if stream.write_all((head + &answer).as_bytes()).await.is_err() {
            return;
        }
    }
}

impl Transport for Fake {
    fn connect<'a>(&'a self, host: &'a Host) -> Under<'a, Result<Box<dyn Io>, ClientError>> {
        Box::pin(async move {
            tokio::time::sleep(CONNECT).await;
            self.counters.connections.fetch_add(1, Ordering::Relaxed);
            let (ours, theirs) = tokio::io::duplex(64 * 1024);
            drop(tokio::spawn(serve(theirs, Arc::clone(&self.hosts[&host.name]), Arc::clone(&self.counters))));
            Ok(Box::new(ours) as Box<dyn Io>)
        })
    }

    fn copy<'a>(&'a self, _host: &'a Host, _upload: &'a Upload) -> Under<'a, Result<(), CopyError>> {
        Box::pin(async {
            tokio::time::sleep(WORK).await;
            Ok(())
        })
    }

    fn is_dear(&self, _host: &Host) -> bool {
        true
    }
}

struct Run {
    hosts: usize,
    took: Duration,
    /// Of this thread's processor time.
    busy: Duration,
    counters: Arc<Counters>,
}

fn processor_time() -> Duration {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock");
    Duration::from(time)
}

/// From the question what runs there to the last lock that is given back.
fn roll_out(hosts: usize) -> Run {
    let names: Vec<Box<str>> = (0..hosts).map(|n| format!("web-{n:03}").into()).collect();
    let counters = Arc::new(Counters::default());
    let state = || State {
        serves: "old".to_owned(),
        confirmed: "old".to_owned(),
        releases: vec!["old".to_owned()],
        fence: json!({"number": 0, "rollout": ""}),
        trial: None,
        journal_of: json!({"number": 0, "rollout": ""}),
        journal: 0,
        traffic: 0,
    };
    let states = names.iter().map(|name| (name.clone(), Arc::new(Mutex::new(state())))).collect();
    let transport: Arc<dyn Transport> = Arc::new(Fake { hosts: states, counters: Arc::clone(&counters) });
    let link = |name: &str| (Box::from(name), Rc::new(Link::new(Host::named(name), Arc::clone(&transport), None)));
    let links: Links = names.iter().map(|name| link(name)).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let (begun, busy) = (Instant::now(), processor_time());
    let end = runtime.block_on(local.run_until(async {
        let answers = facts::ask(&links, "web", PARALLEL).await;
        let hosts: Vec<Box<str>> = answers.keys().cloned().collect();
        let plan = plan(facts::facts(&hosts, &answers, "new"));
        let cargo = Rc::new(Cargo {
            app: "web".into(),
            rollout: plan.rollout.clone(),
            release: "new".into(),
            source: "new".into(),
            label: "".into(),
            by: "tester".into(),
            purpose: Purpose::Deploy,
            again: BTreeSet::new(),
            files: Some("/nowhere".into()),
        });
        let driver = Driver { by: "tester".into(), salt: 1, unix: 1_800_000_000 };
        let machine = Machine::new(plan, Start::Deploy, &driver, 0, Duration::ZERO);
        let (_wishes, mut wished) = tokio::sync::mpsc::channel(1);
        drive(machine, &links, &cargo, &mut wished, |_| {}).await
    }));
    assert!(matches!(&end, End::Over { outcome: Outcome::Done { .. }, .. }), "{end:?}");
    Run { hosts, took: begun.elapsed(), busy: processor_time() - busy, counters }
}

fn plan(hosts: Vec<HostFacts>) -> Plan {
    let limits = Limits {
        bake: 0,
        lease: 600_000,
        long_lease: 600_000,
        parallel: PARALLEL,
        max_unreachable: 0,
        verdict: Settings::default(),
        baseline: Baseline::Control,
        slow: None,
        tick: 5000,
    };
    let facts = Facts {
        rollout: "new-1",
        app: "web",
        release: "new",
        by: "tester",
        purpose: Purpose::Deploy,
        at: 1_800_000_000,
        hosts,
        changes: BTreeMap::new(),
        waves: &[Wave::Hosts(1), Wave::Percent(50), Wave::Percent(100)],
        groups: &BTreeMap::new(),
        limits,
    };
    Plan::new(facts).expect("it can be planned")
}

/// The most memory that this process has used since it was asked last, in bytes; 0 where the kernel does not say. See `VmHWM` and
/// `clear_refs` in proc(5).
fn peak() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    let _ = std::fs::write("/proc/self/clear_refs", "5");
    peak.unwrap_or(0) * 1024
}

/// One after the other where their figures are wanted.
fn all(sizes: &[usize], figures: bool) -> Vec<Run> {
    let threads = if figures { 1 } else { sizes.len() };
    let some = |sizes: &[usize]| -> Vec<Run> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = sizes.iter().map(|hosts| scope.spawn(move || roll_out(*hosts))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a rollout")).collect()
        })
    };
    let mut runs = Vec::new();
    peak();
    for sizes in sizes.chunks(threads) {
        runs.extend(some(sizes));
        if figures {
            println!("{} hosts: at most {} MiB", sizes[0], peak() >> 20);
        }
    }
    runs
}

/// Requests, connections and what hosts keep grow with the hosts, and what is under way at once does not. With `AIRDOCK_LONG`, a
/// thousand hosts, and figures.
#[test]
fn a_rollout_asks_each_of_many_hosts_as_often_as_each_of_few() {
    let figures = std::env::var_os("AIRDOCK_LONG").is_some();
    let runs = all(if figures { &[100, 250, 500, 1000] } else { &[30, 150] }, figures);
    let each = |run: &Run, counter: &AtomicUsize| counter.load(Ordering::Relaxed) as f64 / run.hosts as f64;
    for run in &runs {
        let of = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        println!(
            "{} hosts: {:.1?}, {:.2?} of it busy; {:.1} requests and {:.0} bytes of journal a host; {} connections, at most {} requests at once",
            run.hosts,
            run.took,
            run.busy,
            each(run, &run.counters.requests),
            each(run, &run.counters.bytes),
            of(&run.counters.connections),
            of(&run.counters.most_under_way),
        );
        // One is kept; what is asked at the same time has its own.
        assert!(of(&run.counters.connections) <= 2 * run.hosts, "{}", of(&run.counters.connections));
        // Work and small calls, each with a limit of its own.
        assert!(of(&run.counters.most_under_way) <= 2 * PARALLEL, "{}", of(&run.counters.most_under_way));
    }
    let few = &runs[0];
    for many in &runs[1..] {
        let ratio = |of: fn(&Counters) -> &AtomicUsize| each(many, of(&many.counters)) / each(few, of(&few.counters));
        let requests = ratio(|counters| &counters.requests);
        assert!(requests < 1.3, "each of {} hosts is asked {requests:.2} times as often", many.hosts);
        // Also where the plan names all of them. A longer bake time has more ticks, and each entry its own fence.
        let bytes = ratio(|counters| &counters.bytes);
        assert!(bytes < 1.3, "each of {} hosts keeps {bytes:.2} times as much", many.hosts);
    }
}
