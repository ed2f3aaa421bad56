//! Commands that svd runs for a while: probes by command, as the service's user, in its environment.

use super::host::{Host, Message};
use super::launch::{self, Own};
use super::pool::Lane;
use super::token;
use crate::core::GenerationId;
use crate::kinds::Argv;
use crate::sys::process::ExitStatus;
use crate::sys::sandbox::{Inside, Neighbour};
use crate::sys::spawn::{Prepared, Source, Wire, c_path, c_string};
use crate::sys::worker::{Worker, WorkerEvent};
use crate::sys::{io_text, terminal};
use nix::unistd::fchown;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Commands that run at once. Those of clients are fewer (`exec::MOST`), so that checks have room beside them.
const MOST: usize = 64;
/// For a command whose client has left: from SIGHUP to SIGKILL.
const HANG_UP: Duration = Duration::from_secs(2);

/// How a command ended, or why it did not run, or not to its end.
pub type Ended = Result<ExitStatus, String>;

/// A command to run, and who wants to know how it ended.
pub struct Check {
    pub generation: GenerationId,
    pub slot: u32,
    pub argv: Argv,
    pub limit: Duration,
    /// Of a client's command.
    pub client: Option<ForClient>,
    /// Dropped unanswered where it could not even be tried.
    pub done: oneshot::Sender<Ended>,
}

/// What a command has because a client wants it.
pub struct ForClient {
    pub wires: Vec<Wire>,
    /// 0 is a terminal, of this kind; empty: not known.
    pub terminal: Option<Box<str>>,
    pub line: Line,
}

/// From a client to its command.
pub struct Line {
    /// For its process. Closed when nobody wants it any more.
    pub signals: mpsc::Receiver<i32>,
    /// One of those that run at once, until nothing of it is left, however soon its client leaves.
    pub counted: Arc<()>,
}

impl ForClient {
    /// Gives the command its descriptors, which its user may open again by their names. Gives back what tells of the client.
    ///
    /// # Errors
    /// A sentence.
    pub fn equip(self, prepared: &mut Prepared) -> Result<Line, String> {
        if let Some(ids) = &prepared.ids {
            for wire in &self.wires {
                let Source::Fd(fd) = &wire.source else { continue };
                let given = match self.terminal {
                    Some(_) => terminal::give(fd, ids.uid).map_err(|e| io_text(&e)),
                    None => fchown(fd, Some(ids.uid.into()), None).map_err(|e| e.desc().to_owned()),
                };
                given.map_err(|why| format!("its input and output cannot be made its user's: {why}"))?;
            }
        }
        let has_kind = prepared.environment.iter().any(|v| v.as_bytes().starts_with(b"TERM="));
        if let Some(kind) = self.terminal.as_deref().filter(|kind| !kind.is_empty() && !has_kind) {
            prepared.environment.extend(c_string(format!("TERM={kind}")));
        }
        prepared.terminal = self.terminal.is_some();
        prepared.descriptors = self.wires;
        Ok(self.line)
    }
}

pub struct Running {
    pub worker: Worker,
    what: String,
    limit: Duration,
    done: Option<oneshot::Sender<Ended>>,
    /// Kills it when it is late; ends with it.
    _late: super::unit::Task,
    /// Of a client's.
    counted: Option<Arc<()>>,
}

#[derive(Default)]
pub struct Checks {
    pub running: BTreeMap<u64, Running>,
    last: u64,
    /// There was no room for the last one.
    full: bool,
    /// As many more as commands of clients run.
    pub executing: Arc<()>,
}

/// What a command runs with, and where its program is to be looked for.
struct Wanted {
    prepared: Prepared,
    path: String,
    directory: PathBuf,
}

fn group_name(number: u64) -> String {
    format!("check.{number}")
}

/// Was it made for a command of svd's or a client's, and not for a worker (which has three numbers)?
pub fn is_group(name: &str) -> bool {
    name.strip_prefix("check.").is_some_and(|number| number.parse::<u64>().is_ok())
}

/// Of a command that is to succeed: `what` and how it ended instead.
pub fn verdict(what: &str, ended: Ended) -> Result<(), String> {
    match ended? {
        ExitStatus::Code(0) => Ok(()),
        status => Err(format!("{what} {status}")),
    }
}

impl Host {
    pub fn start_check(&mut self, check: Check) {
        if self.checks.running.len() >= MOST {
            return self.put_off(check);
        }
        self.checks.full = false;
        let wanted = match self.prepare_check(&check) {
            Ok(wanted) => wanted,
            Err(why) => {
                let _ = check.done.send(Err(why));
                return;
            }
        };
        // Its program may lie on a disk that hangs.
        let (pool, messages) = (self.pool.clone(), self.messages.clone());
        tokio::task::spawn_local(async move {
            let name = check.argv.words().first().cloned().unwrap_or_default();
            let Wanted { prepared, path, directory } = wanted;
            let inside = prepared.sandbox.as_ref().and_then(|sandbox| Inside::of(&sandbox.mounts));
            let find = move || launch::find(inside.as_ref(), &name, &path, &directory);
            let found = pool.run(Lane::Files(check.generation.service), find);
            let late = |_| Err(format!("`{}` could not be found in time", check.argv.shown()));
            let program = tokio::time::timeout(check.limit, found).await.unwrap_or_else(late);
            let _ = messages.send(Message::CheckFound { check, prepared: Box::new(prepared), program }).await;
        });
    }

    /// That is nobody's fault whom it would ask about.
    fn put_off(&mut self, check: Check) {
        let why = format!("{MOST} commands of svd's run already");
        if check.client.is_some() {
            return drop(check.done.send(Err(why)));
        }
        if !std::mem::replace(&mut self.checks.full, true) {
            let text = format!("`{}` is left out, as others may be: {why}", check.argv.shown());
            self.warn(Some(check.generation.service), &text);
        }
    }

    /// Its program was looked for.
    pub fn handle_check_found(&mut self, mut check: Check, prepared: Prepared, program: Result<PathBuf, String>) {
        let there = self.generations.contains_key(&check.generation);
        let program = program.and_then(|p| if there { Ok(p) } else { Err("its generation is gone".to_owned()) });
        match program.and_then(|program| self.spawn_check(&mut check, prepared, &program)) {
            Ok((worker, line)) => {
                self.watch_check(check.argv.shown(), check.limit, line, check.done, worker);
            }
            Err(why) => {
                let _ = check.done.send(Err(why));
            }
        }
    }

    fn prepare_check(&self, check: &Check) -> Result<Wanted, String> {
        let made = self.generations.get(&check.generation).ok_or("its generation is gone")?;
        let own = Own { slot: check.slot, number: None, scaled: None, output: None, notify: None, ready: None };
        let mut prepared = launch::prepare(made, &self.around, &own)?;
        // As a worker's, but for the program and the descriptors.
        prepared.descriptors.clear();
        (prepared.listen_pid, prepared.watchdog_pid) = (false, false);
        let handed_over = [
            &b"LISTEN_"[..],
            b"AIRDOCK_GATE",
            b"AIRDOCK_REPORT",
            b"AIRDOCK_COUNTERS",
            b"WATCHDOG_",
            b"AIRDOCK_MASTER",
            b"AIRDOCK_PROBE",
        ];
        prepared.environment.retain(|v| !handed_over.iter().any(|name| v.as_bytes().starts_with(name)));
        let variable = |v: &std::ffi::CString| Some(v.to_str().ok()?.strip_prefix("PATH=")?.to_owned());
        let path = prepared.environment.iter().find_map(variable).unwrap_or_default();
        let directory = PathBuf::from(prepared.directory.to_string_lossy().into_owned());
        Ok(Wanted { prepared, path, directory })
    }

    fn spawn_check(
        &self,
        check: &mut Check,
        mut prepared: Prepared,
        program: &Path,
    ) -> Result<(Worker, Option<Line>), String> {
        prepared.program = c_path(program).ok_or("the program's path has a NUL byte")?;
        let argv = check.argv.words().iter().map(|a| c_string(a).ok_or("an argument has a NUL byte"));
        prepared.argv = argv.collect::<Result<_, _>>()?;
        prepared.neighbour = self.neighbour(check.generation, check.slot);
        let line = check.client.take().map(|client| client.equip(&mut prepared)).transpose()?;
        let name = group_name(self.checks.last + 1);
        let started = Worker::start(&self.spawner, &prepared, &self.containment, &name);
        Ok((started.map_err(|e| e.to_string())?, line))
    }

    /// A process of the worker, for what is to be where that one is.
    fn neighbour(&self, generation: GenerationId, slot: u32) -> Option<Neighbour> {
        let found = self.workers.values().find(|p| p.generation == generation && p.slot == slot && !p.started_ended)?;
        let process = found.worker.process()?.try_clone_to_owned().ok()?;
        Some(Neighbour { pid: found.worker.pid()?, process: std::sync::Arc::new(process) })
    }

    /// Runs what is prepared. That it could not be started is told as any other end.
    pub fn run_check(
        &mut self,
        prepared: &Prepared,
        what: String,
        limit: Duration,
        line: Option<Line>,
        done: oneshot::Sender<Ended>,
    ) {
        let name = group_name(self.checks.last + 1);
        match Worker::start(&self.spawner, prepared, &self.containment, &name) {
            Ok(worker) => self.watch_check(what, limit, line, done, worker),
            Err(e) => _ = done.send(Err(e.to_string())),
        }
    }

    fn watch_check(
        &mut self,
        what: String,
        limit: Duration,
        line: Option<Line>,
        done: oneshot::Sender<Ended>,
        mut worker: Worker,
    ) {
        self.checks.last += 1;
        let number = self.checks.last;
        if let Some((fd, interest)) = worker.watch()
            && let Err(e) = self.poll.add(fd, interest, token::of_check(number))
        {
            let _ = worker.kill_tree();
            let _ = done.send(Err(format!("cannot watch the command: {}", e.desc())));
            return;
        }
        let messages = self.messages.clone();
        let (signals, counted) = line.map(|line| (line.signals, line.counted)).unzip();
        let late = tokio::task::spawn_local(async move {
            match signals {
                Some(signals) => _ = tokio::time::timeout(limit, pass_on(signals, number, &messages)).await,
                None => tokio::time::sleep(limit).await,
            }
            let _ = messages.send(Message::CheckLate(number)).await;
        });
        let running = Running { worker, what, limit, done: Some(done), _late: super::unit::Task(late), counted };
        self.checks.running.insert(number, running);
    }

    /// Commands of clients that run, as people would write them.
    pub fn commands_of_clients(&self) -> Vec<String> {
        let of_clients = self.checks.running.values().filter(|running| running.counted.is_some());
        of_clients.map(|running| format!("`{}`", running.what)).collect()
    }

    /// By its client.
    pub fn signal_check(&mut self, number: u64, signal: i32) {
        let Some(running) = self.checks.running.get_mut(&number) else { return };
        if let Err(e) = running.worker.signal(signal) {
            tracing::warn!("{}: cannot send it signal {signal}: {}", running.what, e.desc());
        }
    }

    /// svd ends: so do its commands.
    pub fn end_checks(&mut self) {
        for running in self.checks.running.values_mut() {
            // Best effort: what cannot be killed hangs in the kernel.
            let _ = running.worker.kill_tree();
        }
    }

    pub fn end_late_check(&mut self, number: u64) {
        let Some(running) = self.checks.running.get_mut(&number) else { return };
        // Best effort: what cannot be killed is waited for.
        let _ = running.worker.kill_tree();
        if let Some(done) = running.done.take() {
            let limit = humantime::format_duration(running.limit);
            let _ = done.send(Err(format!("{} took longer than {limit}", running.what)));
        }
    }

    pub fn handle_check(&mut self, number: u64) {
        loop {
            let Some(running) = self.checks.running.get_mut(&number) else { return };
            match running.worker.handle_ready() {
                Ok(Some(WorkerEvent::Exited { status, leftovers })) => {
                    self.to_reap.extend(running.worker.take_unreaped());
                    if let Some(done) = running.done.take() {
                        let entrance = running.worker.entrance_failure().filter(|_| status == ExitStatus::Code(127));
                        let _ = done.send(entrance.map_or(Ok(status), Err));
                    }
                    if !leftovers {
                        self.checks.running.remove(&number);
                        return;
                    }
                    // A check has no business to leave anything behind.
                    let _ = running.worker.kill_tree();
                    let _ = super::workers::watch_again(&self.poll, &running.worker, token::of_check(number));
                }
                Ok(Some(WorkerEvent::Empty)) | Err(_) => {
                    self.checks.running.remove(&number);
                    return;
                }
                Ok(Some(_)) => {}
                Ok(None) => return,
            }
        }
    }
}

/// Until nobody wants the command any more, and it has had its time to end by itself.
async fn pass_on(mut signals: mpsc::Receiver<i32>, number: u64, messages: &mpsc::Sender<Message>) {
    while let Some(signal) = signals.recv().await {
        let _ = messages.send(Message::SignalCheck { number, signal }).await;
    }
    let _ = messages.send(Message::SignalCheck { number, signal: nix::libc::SIGHUP }).await;
    tokio::time::sleep(HANG_UP).await;
}
