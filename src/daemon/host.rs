//! The supervising loop: one task that owns the core and everything that is open, and executes what the core decides.
//!
//! Whatever may block runs elsewhere and comes back as a [`Message`]: probes are tasks, files and look-ups are the
//! [`Pool`]'s, log bytes are the log thread's.

use super::control::Pending;
use super::events::Events;
use super::keeping::Keeper;
use super::launch::Surroundings;
use super::logs::{LogEvent, LogHandle, Stream};
use super::messages::Messages;
use super::orders::Orders;
use super::pool::{Lane, Pool};
use super::state::State;
use super::store::Store;
use super::trim::Trim;
use super::unit::{Generation, Need, Plan, Process, Units};
use crate::api::server::SharedDirectory;
use crate::api::types::ActionResult;
use crate::api::{Call, Reply};
use crate::config::spec::{Config, Daemon};
use crate::core::{Event, GenerationId, Machine, OpId, ServiceId, Time, WorkerId};
use crate::sys::poll::{Poll, Ready, Signals};
use crate::sys::spawn::Spawner;
use crate::sys::worker::Containment;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

/// Messages of tasks and the pool that wait for the loop; senders wait when it is full.
pub const MESSAGES: usize = 1024;

/// What was acknowledged is saved at once; numbers that only count up may come a little later.
const SAVE_AFTER: Duration = Duration::from_secs(2);

/// So many control groups are removed in one go even while there is other work.
const SWEEP_AT: usize = 32;

/// A deadline that is seen so much later: svd did not run meanwhile.
const LATE: Duration = Duration::from_millis(50);

/// What comes back from tasks, the pool and the log thread.
pub enum Message {
    Planned {
        generation: GenerationId,
        plan: Result<Plan, String>,
    },
    /// What a generation to be needs was opened, or not.
    Opened {
        generation: GenerationId,
        opened: Result<super::sockets::Opened, String>,
    },
    /// A probe of readiness passed.
    Passed {
        worker: WorkerId,
        need: Need,
    },
    Health {
        service: ServiceId,
        generation: u64,
        result: Result<(), String>,
    },
    /// A configuration was read, for an update.
    Loaded(Result<Config, crate::config::Diagnostics>, super::homes::Missing),
    /// The last output of a generation, for the result of an operation.
    Explained {
        op: OpId,
        lines: Vec<Box<str>>,
    },
    /// What a reload would start was looked at before anything is stopped.
    LookedAt(super::reload::Look, Result<(), String>),
    /// Something about the secrets of a generation.
    Secrets(GenerationId, super::secrets::watch::News),
    Check(super::checks::Check),
    /// The program of a check was looked for.
    CheckFound {
        check: super::checks::Check,
        prepared: Box<crate::sys::spawn::Prepared>,
        program: Result<std::path::PathBuf, String>,
    },
    /// The file for an upgrade was looked at.
    UpgradeFound {
        found: Result<super::upgrade::Successor, String>,
        reply: Box<Reply>,
    },
    /// It was tried.
    UpgradeTried {
        tried: Result<super::upgrade::Successor, String>,
        reply: Box<Reply>,
    },
    /// The limit of a check has passed.
    CheckLate(u64),
    SignalCheck {
        number: u64,
        signal: i32,
    },
    /// A command of a deploy, or of a client (with a line to it), whose program was found.
    Command {
        prepared: Box<crate::sys::spawn::Prepared>,
        what: String,
        limit: Duration,
        line: Option<super::checks::Line>,
        done: tokio::sync::oneshot::Sender<super::checks::Ended>,
    },
    /// The lease of an app's release may have run out.
    Lease {
        app: crate::api::request::Name,
        matter: super::releases::Matter,
    },
    /// The configuration of services of an app, with the next generation's; answered with those that run by another.
    Given {
        specs: super::releases::Specs,
        services: Vec<Box<str>>,
        done: tokio::sync::oneshot::Sender<std::collections::BTreeSet<Box<str>>>,
    },
    /// The files were read for `svctl show`.
    FilesRead {
        name: crate::api::request::Name,
        read: Box<super::show::Read>,
        reply: Box<Reply>,
    },
    /// A standby may need memory that others want.
    LookAtMemory,
    /// A process of a generation may have been killed for its memory.
    LookForKills(GenerationId),
    /// Limits of what runs were changed.
    Limited(super::limits::Limited),
    /// The next service after this one whose memory is limited is to be measured.
    Measure {
        after: Option<ServiceId>,
    },
    Measured {
        generation: GenerationId,
        measure: crate::core::memory::Measure,
    },
    /// Something that people should see.
    OfApp {
        app: crate::api::request::Name,
        text: String,
    },
    /// The state file was written. With the answer to whoever waits for that.
    Saved {
        result: Result<(), String>,
        answer: Option<(ActionResult, Reply)>,
    },
    /// Who is to own the UNIX sockets of a service whose file has changed.
    Owners {
        service: ServiceId,
        change: Box<super::sockets::Change>,
        owners: Result<Vec<super::sockets::Owner>, String>,
    },
}

/// Events that are decided about before what follows from them is written and done: a write for each would cost more than
/// most of what is done, and one for all would leave too much unwritten.
const AT_ONCE: usize = 64;

/// Everything. The files of this folder each add the methods of one matter.
pub struct Host {
    pub machine: Machine,
    began: Instant,
    pub since: SystemTime,
    pub units: Units,
    pub generations: BTreeMap<GenerationId, Box<Generation>>,
    pub workers: BTreeMap<WorkerId, Box<Process>>,
    pub poll: Poll,
    pub signals: Signals,
    pub spawner: Spawner,
    pub containment: Containment,
    pub around: Surroundings,
    pub users: std::sync::Arc<super::users::Users>,
    pub logs: LogHandle,
    pub store: Store,
    pub pool: Pool,
    /// Generations that have a plan, and for which something is being opened.
    pub opening: BTreeMap<GenerationId, Rc<super::unit::Plan>>,
    /// Generations whose plan is being made, or for which something is being opened.
    pub plans: BTreeMap<GenerationId, tokio::task::AbortHandle>,
    pub events: Events,
    pub daemon: Daemon,
    pub directory: SharedDirectory,
    pub limitations: Vec<Box<str>>,
    pub counters: std::sync::Arc<crate::api::reply::Counters>,
    pub messages: mpsc::Sender<Message>,
    /// What svd says on its stderr.
    pub own_messages: Messages,
    pub calls: BTreeMap<u64, Pending>,
    pub orders: Orders,
    /// What was deployed here.
    pub releases: super::releases::Releases,
    pub ops: BTreeMap<OpId, super::control::Op>,
    pub last_call: u64,
    pub last_op: u64,
    pub last_service: u32,
    /// Events for the core that came up while it was being obeyed.
    pub inbox: VecDeque<Event>,
    /// Delays of readiness and watchdogs.
    pub alarms: BTreeSet<(Time, WorkerId, Alarm)>,
    pub statsd: super::statsd::Statsd,
    pub oom: super::oom::Oom,
    /// Notifications of processes that are not of the service, and main processes that are not.
    pub foreign_notifications: u64,
    /// Why output cannot be written, while that is so: by the service's name and the file.
    pub unwritten: BTreeMap<Box<str>, BTreeMap<Stream, Box<str>>>,
    /// Bytes of output that could not be written, of times that are over.
    pub log_lost: u64,
    pub checks: super::checks::Checks,
    /// Private ports given out lately.
    pub ports: VecDeque<u16>,
    /// When the state file is written, if it is to be.
    pub save_at: Option<Instant>,
    pub trim: Trim,
    /// Updates in the order in which they were asked for; the first one's files are being read.
    pub updates: VecDeque<(bool, Reply)>,
    /// Looks at the memory from time to time, while there are standbys.
    pub standby_watch: Option<super::unit::Task>,
    /// Measures services whose files limit their memory, while there are some.
    pub measuring: Option<super::unit::Task>,
    /// What was measured of them.
    pub measured: BTreeMap<ServiceId, crate::core::memory::Watch>,
    /// Of paths that others must not guess.
    pub secret: super::secret::Secret,
    /// Children that have ended and whose end is told to the core: reaped when that is written down.
    pub to_reap: Vec<i32>,
    /// SIGCHLD came.
    pub reap: bool,
    pub last_policy: Option<Rc<crate::core::Policy>>,
    pub finished: bool,
    /// Those who have told svd to end, and are answered when everything is stopped.
    pub ending: Vec<Reply>,
    /// Of this machine (`random(4)`).
    pub boot: Box<str>,
    /// A program is being tried, or executed next.
    pub upgrading: bool,
    pub successor: Option<super::upgrade::Successor>,
    /// Why an older version runs than the one that was to.
    pub fallback: Option<Box<str>>,
    /// How often svd has died since the guardian began.
    pub deaths: u32,
    /// What outlives this svd.
    pub keeper: Keeper,
    /// What the next svd is to know.
    pub state: State,
    /// When `began` was, in nanoseconds of CLOCK_MONOTONIC: the core's times mean the same to the next svd.
    origin: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Alarm {
    /// How an adopted worker has ended should have been told.
    Exit,
    Delay,
    Watchdog,
    /// It has said that it stops, and should have.
    OwnEnd,
    /// Of a `svctl scale` of gunicorn.
    Scale,
}

/// What `main` has prepared.
pub struct Start {
    pub poll: Poll,
    pub signals: Signals,
    pub containment: Containment,
    pub around: Surroundings,
    pub users: std::sync::Arc<super::users::Users>,
    pub logs: LogHandle,
    pub store: Store,
    pub daemon: Daemon,
    pub directory: SharedDirectory,
    pub limitations: Vec<Box<str>>,
    pub counters: std::sync::Arc<crate::api::reply::Counters>,
    pub messages: mpsc::Sender<Message>,
    pub own_messages: Messages,
    pub keeper: Keeper,
    pub orders: Orders,
    pub releases: super::releases::Releases,
}

/// What the loop waits for, beside its own descriptors.
pub struct Inputs {
    pub calls: mpsc::Receiver<Call>,
    pub messages: mpsc::Receiver<Message>,
    /// At most one a pipe and a watch: bounded by what the loop itself opens.
    pub logs: mpsc::UnboundedReceiver<LogEvent>,
}

impl Host {
    pub fn new(start: Start) -> Host {
        let (began, origin) = (Instant::now(), crate::sys::monotonic_micros() * 1000);
        let state_file = start.around.paths.state_file();
        Host {
            machine: Machine::new(fastrand::u64(..), start.store.last_worker()),
            began,
            since: SystemTime::now(),
            units: Units::new(),
            generations: BTreeMap::new(),
            workers: BTreeMap::new(),
            poll: start.poll,
            signals: start.signals,
            spawner: Spawner::without_heap(),
            containment: start.containment,
            around: start.around,
            users: start.users,
            logs: start.logs,
            store: start.store,
            pool: Pool::default(),
            opening: BTreeMap::new(),
            plans: BTreeMap::new(),
            events: Events::default(),
            daemon: start.daemon,
            directory: start.directory,
            limitations: start.limitations,
            counters: start.counters,
            messages: start.messages,
            own_messages: start.own_messages,
            calls: BTreeMap::new(),
            orders: start.orders,
            releases: start.releases,
            ops: BTreeMap::new(),
            last_call: 0,
            last_op: 0,
            last_service: 0,
            inbox: VecDeque::new(),
            alarms: BTreeSet::new(),
            statsd: super::statsd::Statsd::default(),
            oom: super::oom::Oom::default(),
            foreign_notifications: 0,
            unwritten: BTreeMap::new(),
            log_lost: 0,
            checks: super::checks::Checks::default(),
            ports: VecDeque::new(),
            save_at: None,
            trim: Trim::default(),
            updates: VecDeque::new(),
            standby_watch: None,
            measuring: None,
            measured: BTreeMap::new(),
            secret: super::secret::Secret::new(),
            to_reap: Vec::new(),
            reap: false,
            last_policy: None,
            finished: false,
            ending: Vec::new(),
            boot: crate::sys::process::boot_id().unwrap_or_default().into(),
            upgrading: false,
            successor: None,
            fallback: None,
            deaths: 0,
            keeper: start.keeper,
            state: State::new(state_file),
            origin,
        }
    }

    /// Monotonic; `CLOCK_MONOTONIC` as `Instant` has it.
    pub fn now(&self) -> Time {
        Time(self.origin + u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX / 2))
    }

    /// When this svd began, in nanoseconds of CLOCK_MONOTONIC.
    pub fn origin(&self) -> u64 {
        self.origin
    }

    /// Runs until everything is stopped after a shutdown, or another program is to take over.
    ///
    /// # Errors
    /// The kernel refuses to poll.
    pub async fn run(&mut self, mut inputs: Inputs) -> std::io::Result<()> {
        let epoll = self.poll.for_tokio()?;
        let mut ready = Vec::with_capacity(64);
        // Whoever goes on must know what this svd knows.
        while !self.finished && (self.successor.is_none() || self.state.is_behind()) {
            let deadline = self.next_deadline();
            tokio::select! {
                guard = epoll.readable() => {
                    let mut guard = guard?;
                    self.trim.active(Instant::now());
                    self.poll_descriptors(&mut ready)?;
                    if ready.is_empty() {
                        guard.clear_ready();
                    }
                }
                Some(message) = inputs.messages.recv() => {
                    self.trim.active(Instant::now());
                    self.handle_message(message);
                }
                Some(event) = inputs.logs.recv() => {
                    self.trim.active(Instant::now());
                    self.handle_log_event(event);
                }
                Some(call) = inputs.calls.recv() => {
                    // Answers read code and constants that nothing else needs.
                    self.trim.wanted(Instant::now());
                    self.handle_call(call);
                }
                () = sleep_until(deadline), if deadline.is_some() => self.handle_deadline(),
            }
            self.deliver();
            self.write_state();
            if self.wants_guardian() {
                self.replace_guardian();
            }
            // Whoever keeps one of these ready all the time must not keep timers and connections from their turn.
            tokio::task::consume_budget().await;
        }
        Ok(())
    }

    fn poll_descriptors(&mut self, ready: &mut Vec<Ready>) -> std::io::Result<()> {
        ready.clear();
        self.poll.wait(Some(0), ready)?;
        for ready in ready.iter() {
            self.handle_descriptor(ready.token);
        }
        self.deliver();
        // Only when no pidfd has anything to tell any more: what is left then is nobody's.
        if ready.is_empty() && std::mem::take(&mut self.reap) {
            self.reap_orphans();
        }
        self.sweep(ready.is_empty());
        Ok(())
    }

    /// Feeds the core until nothing is left to tell it.
    pub fn deliver(&mut self) {
        loop {
            let mut asked = false;
            while !self.inbox.is_empty() {
                let now = self.now();
                let (mut actions, mut all_ends) = (Vec::new(), true);
                for _ in 0..AT_ONCE {
                    let Some(event) = self.inbox.pop_front() else { break };
                    self.note_given(&event);
                    all_ends &= matches!(event, Event::Exited { .. } | Event::Empty { .. });
                    asked |= matches!(event, Event::Command { .. } | Event::Configure { .. } | Event::Shutdown);
                    if let Event::Exited { worker, .. } = event {
                        self.told(worker);
                    }
                    actions.append(&mut self.machine.handle(now, event));
                }
                // What was decided is known to the next svd before anything of it is done (I5).
                self.write_state_for(all_ends, &actions);
                for action in actions {
                    self.execute(action);
                }
            }
            if !asked || !self.take_plans_back() {
                break;
            }
        }
        self.reap_recorded();
    }

    /// What has ended is reaped when its end is written down (which it need not be during a shutdown): had svd died before,
    /// the next one would have asked again.
    fn reap_recorded(&mut self) {
        for pid in self.to_reap.drain(..) {
            // It is ours and was not reaped, so the number is its own.
            let _ = crate::sys::process::reap(pid);
        }
    }

    pub fn tell(&mut self, event: Event) {
        self.inbox.push_back(event);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let core = self.machine.next_timeout();
        let alarm = self.alarms.first().map(|(at, ..)| *at);
        let first = match (core, alarm) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let first = first.map(|at| self.began + Duration::from_nanos(at.0.saturating_sub(self.origin)));
        let trim = self.trim.due(self.save_at);
        let retried = [self.keeper.flush_at(), self.state.retry_at()];
        [first, self.save_at, trim, self.statsd.paused_until()].into_iter().chain(retried).flatten().min()
    }

    fn handle_deadline(&mut self) {
        let now = self.now();
        if self.trim.due(self.save_at).is_some_and(|at| at <= Instant::now()) {
            self.trim.done(Instant::now());
            self.spawner.trim();
            crate::sys::memory::trim_before_sleep();
        } else {
            self.trim.active(Instant::now());
        }
        if self.next_deadline().is_some_and(|at| at.elapsed() > LATE) {
            self.drain_all_notify();
        }
        while let Some((at, worker, alarm)) = self.alarms.first().copied() {
            if at > now {
                break;
            }
            self.alarms.pop_first();
            self.handle_alarm(worker, alarm);
        }
        if self.machine.next_timeout().is_some_and(|at| at <= now) {
            self.tell_who_is_late(now);
            self.tell(Event::Tick);
        }
        if self.save_at.is_some_and(|at| at <= Instant::now()) {
            self.save_now(None);
        }
        self.resume_statsd();
        self.keeper.flush();
    }

    fn handle_message(&mut self, message: Message) {
        match message {
            Message::Planned { generation, plan } => {
                if self.plans.remove(&generation).is_some() {
                    self.handle_planned(generation, plan.map(Rc::new));
                }
            }
            Message::LookedAt(look, result) => self.handle_looked_at(look, result),
            Message::Opened { generation, opened } => {
                if self.plans.remove(&generation).is_some() {
                    self.handle_opened(generation, opened);
                }
            }
            Message::Passed { worker, need } => self.satisfied(worker, need),
            Message::Health { service, generation, result } => self.handle_health(service, generation, result),
            Message::Loaded(config, homes) => self.handle_loaded(config, &homes),
            Message::Explained { op, lines } => self.handle_explained(op, lines),
            Message::Secrets(generation, news) => self.handle_secrets(generation, news),
            Message::Check(check) => self.start_check(check),
            Message::CheckFound { check, prepared, program } => self.handle_check_found(check, *prepared, program),
            Message::UpgradeFound { found, reply } => self.handle_upgrade_found(found, *reply),
            Message::UpgradeTried { tried, reply } => self.handle_upgrade_tried(tried, *reply),
            Message::CheckLate(number) => self.end_late_check(number),
            Message::SignalCheck { number, signal } => self.signal_check(number, signal),
            Message::Command { prepared, what, limit, line, done } => {
                self.run_check(&prepared, what, limit, line, done);
            }
            Message::Lease { app, matter } => self.handle_lease(&app, matter),
            // Whoever asked may have been dropped meanwhile; what was given stays.
            Message::Given { specs, services, done } => _ = done.send(self.handle_given(&specs, &services)),
            Message::FilesRead { name, read, reply } => self.handle_files_read(&name, *read, *reply),
            Message::LookAtMemory => self.look_at_memory(),
            Message::LookForKills(id) => self.handle_look_for_kills(id),
            Message::Limited(limited) => self.handle_limited(limited),
            Message::Measure { after } => self.measure(after),
            Message::Measured { generation, measure } => self.handle_measured(generation, &measure),
            Message::OfApp { app, text } => self.handle_of_app(&app, &text),
            Message::Saved { result, answer } => self.handle_saved(result, answer),
            Message::Owners { service, change, owners } => self.handle_owners(service, &change, owners),
        }
    }

    /// Has the control groups of what has ended removed: when there is nothing else to do, or many of them.
    fn sweep(&self, idle: bool) {
        let Containment::Cgroup(tree) = &self.containment else { return };
        if tree.wants_sweep(if idle { 1 } else { SWEEP_AT }) {
            let tree = std::sync::Arc::clone(tree);
            if crate::sys::blocking::start({
                let tree = std::sync::Arc::clone(&tree);
                move || tree.sweep()
            })
            .is_err()
            {
                // It takes a moment, and without threads there is not much else to do.
                tree.sweep();
            }
        }
    }

    /// Writes what must survive a moment later, together with what else changes until then.
    pub fn save_soon(&mut self) {
        if self.store.dirty && self.save_at.is_none() {
            self.save_at = Some(Instant::now() + SAVE_AFTER);
        }
    }

    /// Writes what must survive, and then answers.
    pub fn save_now(&mut self, answer: Option<(ActionResult, Reply)>) {
        self.save_at = None;
        let snapshot = self.store.snapshot();
        let (pool, messages) = (self.pool.clone(), self.messages.clone());
        tokio::task::spawn_local(async move {
            let result = pool.run(Lane::State, move || snapshot.write()).await;
            let _ = messages.send(Message::Saved { result, answer }).await;
        });
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
