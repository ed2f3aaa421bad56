//! A fleet in virtual time: hosts, a network that fails, drivers that die, and people who take over.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use super::super::event::{Action, Call, CallError, CallId, End, Event, Reply, Report, Wish};
use super::super::journal::Entry;
use super::super::locking::believable;
use super::super::machine::{Driver, Machine, Start};
use super::super::plan::Plan;
use super::host::{Caller, Done, Host, Op, Quality};

pub const LIMIT: Duration = Duration::from_secs(10);

pub struct Rollout {
    pub plan: Plan,
    pub quality: Quality,
    /// Of each host, in the plan's order.
    pub place: Rc<Vec<usize>>,
    /// How the last driver of it ended.
    pub end: Option<End>,
    /// Migrations that were begun on any host, and have not failed.
    pub migrated: BTreeSet<Box<str>>,
    /// The journal, as far as any driver has seen it on a quorum.
    pub committed: Vec<Entry>,
    /// Somebody looks after it: no second driver is sent.
    pub watched: bool,
    pub forced: bool,
}

pub struct Drive {
    pub machine: Machine,
    pub rollout: usize,
    pub alive: bool,
    /// Hosts that it cannot reach.
    pub cut: BTreeSet<usize>,
    /// It dies after so many more calls.
    pub dies_after: Option<u64>,
    pub working: BTreeSet<CallId>,
    pub small: BTreeSet<CallId>,
}

#[derive(Clone, Debug)]
pub enum Ev {
    Deliver {
        driver: usize,
        id: CallId,
        host: usize,
        caller: Caller,
        call: Call,
        heard: bool,
    },
    Finish {
        driver: usize,
        id: CallId,
        host: usize,
        boot: u32,
        caller: Caller,
        op: Op,
        heard: bool,
    },
    Answer {
        driver: usize,
        id: CallId,
        result: Result<Reply, CallError>,
    },
    /// The network or a host fails, or is mended.
    Chaos,
    /// No driver reaches the host from here on, or all do again.
    Reach {
        host: usize,
        reached: bool,
    },
    /// Somebody looks after a rollout.
    Person {
        rollout: usize,
    },
    /// A rollout begins.
    Deploy {
        rollout: usize,
    },
}

pub struct World {
    pub now: Duration,
    seq: u64,
    queue: BTreeMap<(Duration, u64), Ev>,
    pub rng: fastrand::Rng,
    pub hosts: Vec<Host>,
    pub rollouts: Vec<Rollout>,
    pub drivers: Vec<Drive>,
    /// Until when things fail.
    pub chaos_until: Duration,
    pub hosts_fail: bool,
    pub drivers_die: bool,
    pub recorded: BTreeMap<usize, u64>,
    pub calls: u64,
    /// The next driver dies after so many calls.
    pub next_dies_after: Option<u64>,
    pub wish: Wish,
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64, hosts: Vec<Host>) -> World {
        World {
            now: Duration::ZERO,
            seq: 0,
            queue: BTreeMap::new(),
            rng: fastrand::Rng::with_seed(seed),
            hosts,
            rollouts: Vec::new(),
            drivers: Vec::new(),
            chaos_until: Duration::ZERO,
            hosts_fail: false,
            drivers_die: false,
            recorded: BTreeMap::new(),
            calls: 0,
            next_dies_after: None,
            wish: Wish::Resume,
            trace: None,
        }
    }

    pub fn say(&mut self, text: impl FnOnce(&World) -> String) {
        if self.trace.is_some() {
            let text = format!("{:10.3} {}", self.now.as_secs_f64(), text(self));
            self.trace.get_or_insert_default().push(text);
        }
    }

    pub fn plan(&mut self, after: Duration, event: Ev) {
        self.seq += 1;
        self.queue.insert((self.now + after, self.seq), event);
    }

    fn chaotic(&self) -> bool {
        self.now < self.chaos_until
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.rng.u64(from..to))
    }

    /// Until nothing is left to happen. Panics where a rule is broken.
    pub fn run(&mut self) {
        let mut events = 0_u64;
        while let Some(at) = self.next() {
            events += 1;
            assert!(events < 5_000_000, "it does not come to an end");
            assert!(at < Duration::from_secs(40 * 24 * 3600), "it takes too long");
            self.now = self.now.max(at);
            let due = |d: &Drive| d.alive && d.machine.next_timeout().is_some_and(|t| t <= self.now);
            let first = self.queue.first_key_value().map(|(key, _)| *key);
            if let Some(key) = first.filter(|(t, _)| *t <= self.now) {
                let event = self.queue.remove(&key).expect("it was there");
                self.happen(event);
            } else if let Some(driver) = self.drivers.iter().position(due) {
                self.tell(driver, Event::Tick);
            }
        }
    }

    fn next(&self) -> Option<Duration> {
        let timers = self.drivers.iter().filter(|d| d.alive).filter_map(|d| d.machine.next_timeout());
        let first = self.queue.first_key_value().map(|((at, _), _)| *at);
        timers.chain(first).min()
    }

    fn happen(&mut self, event: Ev) {
        match event {
            Ev::Deploy { rollout } => self.drive(rollout, Start::Deploy),
            Ev::Person { rollout } => self.look_after(rollout),
            Ev::Chaos => self.chaos(),
            Ev::Reach { host, reached } => {
                for driver in &mut self.drivers {
                    if reached {
                        driver.cut.remove(&host);
                    } else {
                        driver.cut.insert(host);
                    }
                }
            }
            Ev::Deliver { driver, id, host, caller, call, heard } => {
                self.deliver(driver, id, host, caller, call, heard);
            }
            Ev::Finish { driver, id, host, boot, caller, op, heard } => {
                if !self.hosts[host].up || self.hosts[host].boot != boot {
                    return self.reply(driver, id, host, Err(CallError::Unreachable("it was reset".into())), heard);
                }
                let quality = self.quality(&caller);
                let result = self.hosts[host].finish(self.now, &caller, &op, &quality);
                if let (Op::Migrate { key }, Err(_)) = (&op, &result) {
                    // What has failed may be tried again.
                    self.rollouts.iter_mut().for_each(|r| _ = r.migrated.remove(key));
                }

                self.say(|_| format!("host {host}: {op:?} of {} comes to {result:?}", caller.rollout));
                self.reply(driver, id, host, result, heard);
            }
            Ev::Answer { driver, id, result } => self.tell(driver, Event::Answer { id, result }),
        }
    }

    pub fn quality(&self, caller: &Caller) -> Quality {
        let of = self.rollouts.iter().find(|r| r.plan.rollout == caller.rollout);
        of.map(|r| r.quality.clone()).unwrap_or_default()
    }

    pub fn drive(&mut self, rollout: usize, start: Start) {
        let (plan, salt) = (self.rollouts[rollout].plan.clone(), self.rng.u32(..));
        let driver = Driver { by: format!("driver {}", self.drivers.len()).into(), salt, unix: 1_800_000_000 };
        let numbers = self.hosts.iter().map(|h| h.app.fence.number);
        let highest = numbers.filter(|number| believable(*number, driver.unix).is_ok()).max().unwrap_or(0);
        let highest = if self.rng.bool() { highest } else { 0 };
        let machine = Machine::new(plan, start, &driver, highest, self.now);
        let dies_after = match self.next_dies_after.take() {
            None if self.drivers_die && self.chaotic() && self.rng.u8(..3) > 0 => {
                let most = 20 * self.hosts.len() as u64 + 20;
                Some(self.rng.u64(..most))
            }
            fixed => fixed,
        };
        let cut = BTreeSet::new();
        let (working, small) = (BTreeSet::new(), BTreeSet::new());
        self.drivers.push(Drive { machine, rollout, alive: true, cut, dies_after, working, small });
        self.rollouts[rollout].end = None;
        let driver = self.drivers.len() - 1;
        self.say(|w| format!("driver {driver} begins {}: {start:?}", w.rollouts[rollout].plan.rollout));
        self.tell(driver, Event::Begin);
    }

    pub fn tell(&mut self, driver: usize, event: Event) {
        if !self.drivers[driver].alive {
            return;
        }
        if let Event::Answer { id, .. } = &event {
            self.drivers[driver].working.remove(id);
            self.drivers[driver].small.remove(id);
        }
        let now = self.now;
        let before = self.drivers[driver].machine.journal().len();
        let actions = self.drivers[driver].machine.handle(now, event);
        let journal = self.drivers[driver].machine.journal();
        assert!(journal.len() >= before, "a journal never gets shorter");
        let known = &mut self.rollouts[self.drivers[driver].rollout].committed;
        for (n, entry) in journal.iter().enumerate().skip(before) {
            assert!(
                known.get(n).is_none_or(|k| *k == ***entry),
                "entry {n} was something else before: {:?}",
                known.get(n)
            );
            if n == known.len() {
                known.push(Entry::clone(entry));
            }
        }
        for action in actions {
            match action {
                Action::Call { id, host, number, call } => {
                    if self.drivers[driver].dies_after == Some(0) {
                        self.say(|_| format!("driver {driver} dies before {call:?}"));
                        self.drivers[driver].alive = false;
                        return self.send_somebody(driver);
                    }
                    if let Some(left) = &mut self.drivers[driver].dies_after {
                        *left -= 1;
                    }
                    self.calls += 1;
                    self.send(driver, id, &host, number, call);
                }
                Action::Report(report) => self.reported(driver, &report),
                Action::End(end) => self.ended(driver, end),
            }
        }
    }

    fn reported(&mut self, driver: usize, report: &Report) {
        if let Report::Recorded(entry) = report {
            let what = &entry.what;
            self.say(|_| {
                format!("driver {driver} has recorded {}", format!("{what:?}").chars().take(160).collect::<String>())
            });
        } else {
            self.say(|_| format!("driver {driver}: {report:?}"));
        }
    }

    fn ended(&mut self, driver: usize, end: End) {
        self.say(|_| format!("driver {driver} ends: {end:?}"));
        let rollout = self.drivers[driver].rollout;
        self.drivers[driver].alive = false;
        match &end {
            End::Superseded => return,
            End::Over { outcome, places } => {
                let machine = &self.drivers[driver].machine;
                super::check::at_the_end(self, rollout, outcome, places, machine);
            }
            _ => self.send_somebody(driver),
        }
        self.rollouts[rollout].end = Some(end);
    }

    /// Somebody notices, sooner or later.
    fn send_somebody(&mut self, driver: usize) {
        let rollout = self.drivers[driver].rollout;
        if !std::mem::replace(&mut self.rollouts[rollout].watched, true) {
            let later = [5, 60, 900, 3_000][self.rng.usize(..4)];
            let after = Duration::from_secs(later);
            self.plan(after, Ev::Person { rollout });
        }
    }

    fn look_after(&mut self, rollout: usize) {
        self.rollouts[rollout].watched = false;
        if matches!(self.rollouts[rollout].end, Some(End::Over { .. } | End::Refused(_))) {
            return;
        }
        let begun = self.hosts.iter().any(|h| h.journal.0 == self.rollouts[rollout].plan.rollout);
        if !begun {
            // Nothing was written down: there is nothing to take over.
            return;
        }
        let paused = matches!(self.rollouts[rollout].end, Some(End::Paused { .. }));
        let wish = match self.rng.u8(..6) {
            0 => Wish::Abort { force: paused },
            1 if paused => Wish::Abort { force: true },
            2 if !paused && self.chaotic() => Wish::Pause,
            _ if paused => Wish::Promote,
            _ => self.wish,
        };
        self.rollouts[rollout].forced |= matches!(wish, Wish::Abort { force: true });
        self.drive(rollout, Start::TakeOver(wish));
    }

    fn send(&mut self, driver: usize, id: CallId, host: &str, number: u64, call: Call) {
        let drive = &mut self.drivers[driver];
        let rollout = &self.rollouts[drive.rollout];
        let kind = if call.is_work() { &mut drive.working } else { &mut drive.small };
        kind.insert(id);
        assert!(kind.len() <= rollout.plan.limits.parallel, "more calls than `parallel` under way");
        let position = rollout.plan.hosts.iter().position(|h| *h.name == *host).expect("a host of the plan");
        let host = rollout.place[position];
        let caller = Caller { rollout: rollout.plan.rollout.clone(), release: rollout.plan.release.clone(), number };
        super::check::sent(self, driver, &call, host);
        let unreachable = Err(CallError::Unreachable("it does not answer".into()));
        let late = self.chaotic() && self.rng.u8(..100) == 0;
        if self.drivers[driver].cut.contains(&host) || !self.hosts[host].up || late {
            self.plan(LIMIT, Ev::Answer { driver, id, result: unreachable });
            if late {
                let after = self.millis(1, 60_000);
                self.plan(after, Ev::Deliver { driver, id, host, caller, call, heard: false });
            }
            return;
        }
        let after = self.millis(1, 50);
        self.plan(after, Ev::Deliver { driver, id, host, caller, call, heard: true });
    }

    fn deliver(&mut self, driver: usize, id: CallId, host: usize, caller: Caller, call: Call, heard: bool) {
        let unreachable = || Err(CallError::Unreachable("the connection was cut".into()));
        if !self.hosts[host].up || self.drivers[driver].cut.contains(&host) {
            return self.reply(driver, id, host, unreachable(), heard);
        }
        let quality = self.quality(&caller);

        let done = self.hosts[host].take(self.now, &caller, &call, &quality);
        match done {
            Done::Now(result) => {
                if !matches!(call, Call::Counts { .. } | Call::Append { .. } | Call::Renew { .. }) {
                    self.say(|_| {
                        format!("host {host}: {call:?} of driver {driver}: {result:?}").chars().take(200).collect()
                    });
                }
                if result.is_ok() {
                    super::check::accepted(self, host, &caller, &call);
                }
                self.reply(driver, id, host, result, heard);
            }
            Done::Later(op) => {
                self.say(|_| format!("host {host}: begins {op:?} of driver {driver}"));
                super::check::accepted(self, host, &caller, &call);
                if let Op::Migrate { key } = &op {
                    super::check::migrates(self, &caller, key);
                }
                self.hosts[host].begin(&op);
                let lasts = match op {
                    Op::Migrate { .. } => self.millis(1_000, 400_000),
                    _ => self.millis(100, 20_000),
                };
                let boot = self.hosts[host].boot;
                self.plan(lasts, Ev::Finish { driver, id, host, boot, caller, op, heard });
            }
        }
    }

    fn reply(&mut self, driver: usize, id: CallId, host: usize, result: Result<Reply, CallError>, heard: bool) {
        if !heard {
            return;
        }
        let cut = self.drivers[driver].cut.contains(&host) || !self.hosts[host].up;
        let lost = cut || (self.chaotic() && self.rng.u8(..200) == 0);
        match lost {
            true => {
                let result = Err(CallError::Unreachable("no answer came".into()));
                self.plan(LIMIT, Ev::Answer { driver, id, result });
            }
            false => {
                let after = self.millis(1, 50);
                self.plan(after, Ev::Answer { driver, id, result });
            }
        }
    }

    fn chaos(&mut self) {
        if !self.chaotic() {
            let now = self.now;
            // What was under way on one that was down has gone with it.
            for host in self.hosts.iter_mut().filter(|host| !host.up) {
                host.up = true;
                host.reboot(now);
            }
            for driver in &mut self.drivers {
                driver.cut.clear();
            }
            return;
        }
        let host = self.rng.usize(..self.hosts.len());
        if self.hosts_fail {
            match self.rng.u8(..8) {
                0 => {
                    self.hosts[host].up = false;
                    self.say(|_| format!("host {host} is down"));
                }
                1 => {
                    self.hosts[host].up = true;
                    let now = self.now;
                    self.hosts[host].reboot(now);
                    self.say(|_| format!("host {host} has booted"));
                }
                2..5 => {
                    for host in 0..self.hosts.len() {
                        if !self.hosts[host].up {
                            self.hosts[host].up = true;
                            let now = self.now;
                            self.hosts[host].reboot(now);
                        }
                    }
                }
                _ => {}
            }
            if let Some(driver) = self.drivers.iter().rposition(|d| d.alive) {
                match self.rng.u8(..10) {
                    0 => _ = self.drivers[driver].cut.insert(host),
                    1 => {
                        let half: BTreeSet<usize> = (0..self.hosts.len()).filter(|h| h % 2 == host % 2).collect();
                        self.drivers[driver].cut = half;
                    }
                    2..6 => self.drivers[driver].cut.clear(),
                    _ => {}
                }
                let cut = self.drivers[driver].cut.clone();
                self.say(|_| format!("driver {driver} does not reach {cut:?}"));
            }
        }
        let after = self.millis(1_000, 120_000);
        self.plan(after, Ev::Chaos);
    }
}
