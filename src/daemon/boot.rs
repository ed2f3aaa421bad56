//! From nothing to a running svd, and its end.

use super::adopt::rebuild::Known;
use super::adopt::{self, Found, Kept, Left};
use super::args::Args;
use super::background::Report;
use super::enclosure::Walls;
use super::guardian::Client;
use super::host::{Host, Inputs, MESSAGES, Start};
use super::keeping::{self, Keeper};
use super::launch::Surroundings;
use super::logs::{InFlight, LogThread, Options};
use super::messages::Messages;
use super::orders::Orders;
use super::paths::Paths;
use super::releases::Releases;
use super::secrets::place;
use super::state::aside::{self, Aside};
use super::state::{Key, State};
use super::store::Store;
use super::upgrade::Successor;
use super::users::{self, Users};
use super::{audit, contain, features, token, update};
use crate::api::audit::Numbers;
use crate::api::public;
use crate::api::reply::Counters;
use crate::api::server::{self, Limits, ServerContext, SharedDirectory};
use crate::config::spec::{Config, Daemon, Listen};
use crate::config::{self, diff};
use crate::core::Event;
use crate::sys::kernel::Features;
use crate::sys::lock::{Lock, LockError};
use crate::sys::poll::{Interest, Poll, Signals};
use crate::sys::socket::{self, UnixOptions};
use crate::sys::spawn::OpenFiles;
use crate::sys::user::{self, Account};
use crate::sys::worker::Containment;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// Calls that wait for the loop.
const CALLS: usize = 256;
/// Connections that wait to be taken, on both of svd's own sockets.
const BACKLOG: i32 = 1024;
/// Between two tries to get the public address, where svd goes on without it.
const PUBLIC_AGAIN: Duration = Duration::from_secs(5);
/// Turns for the server's tasks before svd ends; an answer takes a few.
const LAST_TURNS: u32 = 64;
/// For the last output to reach its files when svd ends.
const LOGS_END: Duration = Duration::from_secs(10);
/// For an svd that was killed to let go of the run directory.
const LOCK_LIMIT: Duration = Duration::from_secs(3);
const STATE_END: Duration = Duration::from_secs(10);

/// Runs svd until it is told to end.
///
/// # Errors
/// A sentence: why it cannot start.
pub fn run(
    args: &Args,
    signals: Signals,
    report: &mut Report,
    own_messages: Messages,
    guardian: Option<Client>,
) -> Result<(), String> {
    let mut keeper = Some(Keeper::new(guardian));
    let result = begin(args, signals, report, own_messages, &mut keeper);
    if let Some(mut keeper) = keeper {
        keeper.end(i32::from(result.is_err()));
    }
    result
}

/// `keeper`: still there afterwards if the guardian is to end as well. Where it is not, it starts another svd.
fn begin(
    args: &Args,
    signals: Signals,
    report: &mut Report,
    own_messages: Messages,
    keeper: &mut Option<Keeper>,
) -> Result<(), String> {
    let features = Features::detect();
    if let Some(why) = features.fatal() {
        return Err(why);
    }
    let kept = keeper.as_mut().map(Keeper::receive).transpose()?.unwrap_or_default();
    // After a death, or as an upgrade.
    let again = kept.deaths > 0 || kept.descriptors.contains_key(keeping::LOCK);
    let prepared = Prepared { features, signals, own_messages, kept };
    let result = begin_with(args, prepared, report, keeper);
    if again && result.is_err() {
        // The guardian tries again, as long as it takes: the services run, and somebody must look after them.
        *keeper = None;
    }
    result
}

struct Prepared {
    features: Features,
    signals: Signals,
    own_messages: Messages,
    kept: Kept,
}

fn begin_with(args: &Args, prepared: Prepared, report: &mut Report, keeper: &mut Option<Keeper>) -> Result<(), String> {
    let Prepared { features, signals, own_messages, mut kept } = prepared;
    let paths = args.paths();
    let config = paths.load().map_err(|errors| format!("the configuration has errors:\n{errors}"));
    for warning in config.iter().flat_map(|config| &config.warnings) {
        tracing::warn!("{}", warning.line());
    }
    if !paths.state_file().exists() {
        // Nothing is made before it is known that there is something to do.
        config.as_ref().map_err(Clone::clone)?;
    }
    paths.create()?;
    let open_files = OpenFiles::raise().map_err(|e| format!("cannot raise the limit of open files: {}", e.desc()))?;
    let pid = keeper.as_ref().map_or_else(std::process::id, Keeper::pid);
    let lock = match kept.descriptors.remove(keeping::LOCK).map(|fd| Lock::adopt(fd, pid)) {
        Some(Ok(lock)) => lock,
        _ => acquire(&paths.pid_file(), pid)?,
    };
    let copy = lock.as_fd().try_clone_to_owned().map_err(|e| format!("cannot keep the lock: {e}"))?;
    if let Some(keeper) = keeper.as_mut() {
        keeper.store_own(keeping::LOCK, copy);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .on_thread_park(crate::sys::memory::before_sleep)
        .build()
        .map_err(|e| format!("cannot start: {e}"))?;
    let local = LocalSet::new();
    let beginning = Beginning { paths: paths.clone(), config, features, signals, own_messages, open_files, kept };
    let result = runtime.block_on(local.run_until(serve(beginning, report, keeper)));
    // A hung disk must not keep svd from ending.
    runtime.shutdown_timeout(Duration::from_secs(1));
    crate::sys::blocking::finish(Duration::from_secs(1));
    if keeper.is_some() {
        let _ = std::fs::remove_file(paths.socket());
        lock.release();
    }
    result
}

/// A killed svd has its lock until its last thread has left the kernel.
fn acquire(path: &std::path::Path, pid: u32) -> Result<Lock, String> {
    let until = Instant::now() + LOCK_LIMIT;
    loop {
        match Lock::acquire(path, pid) {
            Err(LockError::Held { holder, .. }) if holder.has_ended() && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result.map_err(|e| e.to_string()),
        }
    }
}

/// What svd begins with.
struct Beginning {
    paths: Paths,
    config: Result<Config, String>,
    features: Features,
    signals: Signals,
    own_messages: Messages,
    open_files: OpenFiles,
    kept: Kept,
}

/// `keeper` is taken while svd runs, and given back when it has ended in order.
async fn serve(beginning: Beginning, report: &mut Report, keeper: &mut Option<Keeper>) -> Result<(), String> {
    let Beginning { paths, config, features, signals, own_messages, open_files, mut kept } = beginning;
    let aside = kept.descriptors.remove(aside::KEPT).map(Aside::left);
    let (Left { found, interrupted }, unusable) = match aside.as_ref().and_then(adopt::look_aside) {
        Some(found) => (Left { found: Some(found), ..Left::default() }, None),
        None => adopt::look(&paths.state_file()).map_or_else(|why| (Left::default(), Some(why)), |left| (left, None)),
    };
    let (store, trouble) = Store::open(&paths);
    let own = Account::own().map_err(|e| e.to_string())?;
    let shut_in = Arc::new(features::isolation::Features::probe());
    let walls = Arc::new(Walls {
        shown: vec![paths.launcher(), paths.notify()],
        covered: vec![paths.run.clone()],
        features: Arc::clone(&shut_in),
    });
    let users = Arc::new(Users::new(users::login_of(&own), paths.users_file(), paths.homes(), walls));
    let places = place::roots(&paths.run, &paths.own_id()?);
    let recorded = found.as_ref().map(Found::groups).unwrap_or_default();
    let tree = contain::hold(&paths, &recorded, kept.descriptors.remove(keeping::TREE).as_ref())?;
    if let (Ok(tree), Some(keeper)) = (&tree, keeper.as_mut()) {
        keeper.store_own(keeping::TREE, tree.copy().map_err(|e| format!("cannot keep the control groups: {e}"))?);
    }
    let found = match (&unusable, &config, &tree) {
        (Some(_), Ok(config), Ok(tree)) => {
            let known = Known { store: &store, users: &users, places: &places };
            adopt::rebuild::rebuild(config, tree, &known, &mut kept)
        }
        _ => found,
    };
    let daemon = match (&found, &config) {
        (Some(found), _) => found.daemon(),
        (None, Ok(config)) => config.daemon.clone(),
        (None, Err(why)) => return Err(why.clone()),
    };
    crate::sys::process::set_child_subreaper().map_err(|e| format!("cannot become a sub-reaper: {}", e.desc()))?;
    write_launcher(&paths)?;
    let mut limitations: Vec<Box<str>> = features.lacking().into_iter().map(Into::into).collect();
    let (containment, no_tree) = contain::contain(&paths, tree, found.as_ref(), &mut limitations)?;
    place::sweep(&places, &found.as_ref().map(Found::secrets).unwrap_or_default());
    let (log_events, logs_in) = mpsc::unbounded_channel();
    let notify = Box::new(move |event| {
        // Only while svd ends is nobody there to hear it.
        let _ = log_events.send(event);
    });
    let in_flight = match InFlight::open(&paths.in_flight(), &paths.pipes()) {
        Ok(in_flight) => Some(in_flight),
        Err(e) => {
            let (path, why) = (paths.in_flight(), crate::sys::io_text(&e));
            tracing::warn!("cannot make {}: {why}; a death of svd now may tear a line of output", path.display());
            None
        }
    };
    let options = Options { log_dir: paths.log.clone(), notify, lower_priority: None, in_flight };
    let log_thread = LogThread::start(options).map_err(|e| format!("cannot start the log thread: {e}"))?;
    let around = Surroundings {
        host: host_name(),
        paths: paths.clone(),
        open_files: open_files.for_children(),
        oom_score_adj: crate::sys::spawn::fresh_oom_score(),
        umask: 0o022,
        features: Arc::new(features::Features::probe(&containment, no_tree, shut_in)),
    };
    let poll = Poll::new(64).map_err(|e| format!("cannot make an epoll set: {}", e.desc()))?;
    poll.add(&signals, Interest::Read, token::SIGNALS).map_err(|e| format!("cannot watch signals: {}", e.desc()))?;
    let counters: Arc<Counters> = Arc::default();
    let (messages, messages_in) = mpsc::channel(MESSAGES);
    let (calls, calls_in) = mpsc::channel(CALLS);
    let machine = crate::core::Machine::new(0, 0);
    let directory = SharedDirectory::new(update::directory(&machine, &daemon));
    let journal = audit::start(&paths);
    // The journal may lack the last ones: its thread was killed with svd.
    let known = found.as_ref().map_or(0, Found::last_order).max(interrupted.keys().next_back().copied().unwrap_or(0));
    let numbers = Numbers::after(audit::last_id(&paths).max(known));
    let orders = Orders::new(&journal, numbers.clone());
    let boot = crate::sys::process::boot_id().unwrap_or_default();
    // Before anything is started: what was not confirmed is not started by a boot.
    let mut held_back = Vec::new();
    let (releases, of_releases) = Releases::open(&paths, &boot, calls.clone());
    let config = config.map(|mut config| {
        held_back = releases.hold_back(&mut config);
        config
    });
    let context = ServerContext {
        calls,
        directory: directory.clone(),
        audit: journal.sink(),
        numbers,
        counters: Arc::clone(&counters),
        limits: Limits::default(),
    };
    listen(&paths, &daemon, &context, &mut kept, keeper).await?;
    let not_public = match (listen_publicly(&daemon, &context, &mut kept, keeper), daemon.http) {
        // Services run, and somebody must look after them, whoever has taken the address meanwhile.
        (Err(why), Some(address)) if found.is_some() => {
            tokio::task::spawn_local(listen_publicly_later(address, context.clone()));
            Some(format!("{why}; it is tried again every {} s", PUBLIC_AGAIN.as_secs()))
        }
        (result, _) => result.map(|()| None)?,
    };
    let start = Start {
        poll,
        signals,
        containment,
        around,
        users,
        logs: log_thread.handle(),
        store,
        daemon: Daemon::default(),
        directory,
        limitations,
        counters,
        messages,
        own_messages,
        keeper: keeper.take().unwrap_or_default(),
        orders,
        releases,
    };
    let mut host = Host::new(start);
    if let Some(aside) = aside {
        host.state.take_aside(aside);
    }
    host.keeper.watch(&host.poll).map_err(|e| format!("cannot watch the guardian: {}", e.desc()))?;
    (host.deaths, host.fallback) = (kept.deaths, kept.fallback.take());
    let rebuilt = unusable.is_some();
    let unusable = unusable.map(|why| match &found {
        Some(found) => {
            let count = config::counted(found.services().count(), "service");
            format!(
                "{why} {count} could be taken over by what is seen of them; what else runs is ended and started anew."
            )
        }
        None => format!("{why} What runs is ended and started anew."),
    });
    for why in held_back {
        host.warn(None, &why);
    }
    for why in trouble.into_iter().chain(of_releases).chain(unusable).chain(not_public) {
        host.warn(None, &why);
    }
    match (found, config) {
        (Some(found), Ok(config)) if rebuilt => {
            let services = found.services().map(|spec| ((*spec.name).into(), Arc::clone(spec))).collect();
            let known = Config { daemon: config.daemon.clone(), services, ..Config::default() };
            host.take_over(found, kept);
            // What does not run, or could not be taken over.
            let changes = diff::difference(&known, &config);
            host.apply(config, &changes, None);
        }
        (Some(found), config) => {
            host.take_over(found, kept);
            if let Err(why) = config {
                host.warn(None, &format!("svd goes on with the configuration that it had: {why}"));
            }
        }
        (None, Ok(config)) => {
            kept.descriptors.keys().for_each(|name| host.keeper.remove(name));
            host.write_whole_state(std::collections::BTreeMap::new());
            host.close_orders(interrupted);
            let changes = diff::difference(&Config::default(), &config);
            host.apply(config, &changes, None);
        }
        (None, Err(why)) => return Err(why),
    }
    host.begin_releases();
    host.daemon_ready();
    report.up();
    let inputs = Inputs { calls: calls_in, messages: messages_in, logs: logs_in };
    let result = host.run(inputs).await.map_err(|e| format!("svd cannot go on: {}", crate::sys::io_text(&e)));
    if !host.finished {
        place::leave_all();
    }
    // Answers that were given with the last events are on their way to their clients: the server's tasks have a turn.
    for _ in 0..LAST_TURNS {
        tokio::task::yield_now().await;
    }
    journal.flush();
    host.end_checks();
    host.store.end();
    let last = host.store.snapshot();
    let save = move || last.write().unwrap_or_else(|why| tracing::warn!("{why}"));
    if !within(STATE_END, save) {
        tracing::warn!("the state directory's disk hangs: what has changed last may be lost");
    }
    if let Some(successor) = host.successor.take() {
        return hand_over(host, &successor, open_files, log_thread);
    }
    if host.finished {
        std::mem::replace(&mut host.state, State::new(paths.state_file())).remove();
        *keeper = Some(std::mem::take(&mut host.keeper));
    }
    if let Containment::Cgroup(tree) = &host.containment {
        tree.sweep();
        // Best effort: an empty one is taken again.
        let _ = tree.remove();
    }
    let finished = host.finished;
    drop(host);
    if finished {
        place::sweep(&places, &std::collections::BTreeSet::new());
    }
    end_logs(move || log_thread.shutdown());
    result
}

/// Executes another program in this one's place. Should that fail, svd ends, and the guardian starts this version again.
fn hand_over(mut host: Host, successor: &Successor, open_files: OpenFiles, logs: LogThread) -> Result<(), String> {
    end_logs(move || logs.leave());
    let error = host.keeper.execute(successor.file.as_fd(), open_files);
    Err(format!("cannot execute {}: {}", successor.path.display(), crate::sys::io_text(&error)))
}

/// Writes what the pipes hold.
fn end_logs(end: impl FnOnce() + Send + 'static) {
    if !within(LOGS_END, end) {
        tracing::warn!("the log directory's disk hangs: the last output may be lost");
    }
}

/// Does a last piece of work, but does not wait for a disk that hangs: svd is to end. True: it is done.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) -> bool {
    let (done, ended) = std::sync::mpsc::channel();
    let work = move || {
        work();
        // Nobody listens any more when it took too long.
        let _ = done.send(());
    };
    let started = std::thread::Builder::new().name("svd-end".into()).spawn(work);
    started.is_ok() && ended.recv_timeout(limit).is_ok()
}

impl Host {
    /// Everything is set up: whoever started svd may know.
    fn daemon_ready(&mut self) {
        let count = self.units.len();
        self.info(None, &format!("up, with {}", config::counted(count, "service")));
        self.keeper.ready();
        self.keeper.notify("READY=1");
    }

    /// Stops everything in order, and then ends.
    pub fn shut_down(&mut self) {
        self.info(None, "told to end: everything is stopped in order");
        self.keeper.notify("STOPPING=1");
        self.state.mark(Key::Head);
        self.tell(Event::Shutdown);
    }
}

fn host_name() -> String {
    nix::unistd::gethostname().map(|n| n.to_string_lossy().into_owned()).unwrap_or_else(|_| "localhost".to_owned())
}

fn write_launcher(paths: &Paths) -> Result<(), String> {
    let path = paths.launcher();
    let text = crate::kinds::gunicorn::LAUNCHER.as_bytes();
    if std::fs::read(&path).is_ok_and(|there| there == text) {
        // Where there is no room for it, the next svd must come up all the same.
        return Ok(());
    }
    crate::sys::durable::write_fast(&path, text, 0o644)
        .map_err(|e| format!("cannot write {}: {}", path.display(), crate::sys::io_text(&e)))
}

async fn listen(
    paths: &Paths,
    daemon: &Daemon,
    context: &ServerContext,
    kept: &mut Kept,
    keeper: &mut Option<Keeper>,
) -> Result<(), String> {
    let mut keep = |name, fd: std::os::fd::BorrowedFd<'_>| {
        if let (Some(keeper), Ok(copy)) = (keeper.as_mut(), fd.try_clone_to_owned()) {
            keeper.store_own(name, copy);
        }
    };
    let socket = match kept.descriptors.remove(keeping::CONTROL) {
        // Whoever connected meanwhile waits in its queue.
        Some(socket) if paths.socket().exists() => socket,
        _ => control_socket(paths, daemon)?,
    };
    keep(keeping::CONTROL, socket.as_fd());
    let listener = std::os::unix::net::UnixListener::from(socket);
    let failed = |e: std::io::Error| format!("cannot listen on {}: {e}", paths.socket().display());
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
    tokio::task::spawn_local(server::serve(listener, context.clone()));
    Ok(())
}

/// The address of `[http]`.
fn listen_publicly(
    daemon: &Daemon,
    context: &ServerContext,
    kept: &mut Kept,
    keeper: &mut Option<Keeper>,
) -> Result<(), String> {
    let had = kept.descriptors.remove(keeping::HTTP);
    let fits = |socket: &std::os::fd::OwnedFd| {
        daemon.http.is_some_and(|at| super::sockets::listens_at(socket, &Listen::Tcp(at)))
    };
    let (had, other) = if had.as_ref().is_some_and(fits) { (had, None) } else { (None, had) };
    if let (Some(other), Some(keeper)) = (other, keeper.as_mut()) {
        // The configuration names another address by now, or none: nobody is to wait at the old one. The guardian gives its
        // copy up a moment later, and the new address may include the old one.
        keeper.remove(keeping::HTTP);
        socket::end_listening(&other);
    }
    let Some(address) = daemon.http else { return Ok(()) };
    let listener = public_listener(address, had)?;
    if let (Some(keeper), Ok(copy)) = (keeper.as_mut(), listener.as_fd().try_clone_to_owned()) {
        keeper.store_own(keeping::HTTP, copy);
    }
    tokio::task::spawn_local(public::serve(listener, context.clone()));
    Ok(())
}

/// As soon as whoever has the address gives it up. The guardian does not keep the socket then: the next svd binds it anew.
async fn listen_publicly_later(address: std::net::SocketAddr, context: ServerContext) {
    loop {
        tokio::time::sleep(PUBLIC_AGAIN).await;
        // Not here: who holds the address is looked for in all processes.
        let Ok(bound) = crate::sys::blocking::start(move || socket::listen_tcp(address, BACKLOG, false)) else {
            continue;
        };
        let Ok(Ok(socket)) = bound.await else { continue };
        if let Ok(listener) = public_listener(address, Some(socket)) {
            tracing::warn!("svd: listens on {address} ([http] listen in svd.toml) again");
            return public::serve(listener, context).await;
        }
    }
}

/// `kept`: one that is open already.
fn public_listener(
    address: std::net::SocketAddr,
    kept: Option<std::os::fd::OwnedFd>,
) -> Result<tokio::net::TcpListener, String> {
    let failed = |why: String| format!("cannot listen on {address} ([http] listen in svd.toml): {why}");
    let io_failed = |e: std::io::Error| failed(crate::sys::io_text(&e));
    let socket = match kept {
        Some(socket) => socket,
        None => socket::listen_tcp(address, BACKLOG, false).map_err(|e| failed(e.reason))?,
    };
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true).map_err(io_failed)?;
    tokio::net::TcpListener::from_std(listener).map_err(io_failed)
}

/// Of the control socket. Where others have rights, all may connect, and the access rules decide; else nobody need. A plain
/// user's svd is that user's alone.
pub fn control_mode(daemon: &Daemon) -> u32 {
    let others = nix::unistd::geteuid().is_root() && !daemon.access.is_empty();
    daemon.control.mode.unwrap_or(if others { 0o666 } else { 0o600 })
}

fn control_socket(paths: &Paths, daemon: &Daemon) -> Result<std::os::fd::OwnedFd, String> {
    let group = daemon.control.group.as_deref().map(user::group).transpose().map_err(|e| e.to_string())?;
    let options = UnixOptions { mode: control_mode(daemon), owner: None, group, backlog: BACKLOG };
    socket::listen_unix(&paths.socket(), options).map_err(|e| e.to_string())
}
