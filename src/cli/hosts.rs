//! `-H`: a verb on many hosts. It runs once for each, in a thread of its own and as if there were no other; [`super::lanes`] puts the
//! words in order.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use super::args::{Cli, Command};
use super::context::Context;
use super::exit::{CliError, Exit};
use super::lanes::{Lane, Lanes, Order};
use super::render;
use super::render_releases::merged_history;
use super::status::show_again;
use crate::api::client;
use crate::api::types::{ApiError, ErrorCode};
use crate::config::{counted, suggest};
use crate::fleet::inventory::{self, App, Fleet, Host, NotFound, check_host_name};
use crate::fleet::transport::local::Local;
use crate::fleet::transport::ssh::{Settings, Ssh};
use crate::fleet::transport::{HostDial, Transport, Ways};

/// Hosts that are served at once.
const PARALLEL: u32 = 20;
/// Hosts that can be followed at once: each has a thread and two processes of ssh.
const FOLLOWED: usize = 256;
/// What a shell adds to the number of a signal.
const SIGNALLED: i32 = 128;

/// Is the command line about a fleet at all?
pub fn are_meant(cli: &Cli) -> bool {
    !cli.hosts.is_empty() || cli.fleet.is_some() || cli.environment.is_some() || cli.parallel.is_some()
}

pub fn run(context: &Context, cli: &Cli) -> Result<Exit, CliError> {
    let order = order(&cli.command, cli.json)?;
    let (settings, hosts) = chosen(cli)?;
    if order == Order::AsItComes && follows(&cli.command) && hosts.len() > FOLLOWED {
        return Err(CliError::usage(
            format!("{} are too many to be followed at once.", counted(hosts.len(), "host")),
            format!("Choose {FOLLOWED} at most."),
        ));
    }
    let _ = allow_many_files();
    let ways = Arc::new(Ways::new(Local::new(&cli.socket), Ssh::new(settings)));
    let interrupted: Arc<AtomicBool> = Arc::default();
    // A command on one host gets the signals instead.
    if !(matches!(cli.command, Command::Exec(_)) && hosts.len() == 1 && !context.json) {
        close_when_interrupted(Arc::clone(&ways), Arc::clone(&interrupted));
    }
    let verb = Verb {
        hosts: hosts.into(),
        command: cli.command.clone().into(),
        ways: Arc::clone(&ways),
        interrupted: Arc::clone(&interrupted),
        among: false,
    };
    let parallel = if follows(&cli.command) { verb.hosts.len() } else { cli.parallel.unwrap_or(PARALLEL) as usize };
    let done = match &cli.command {
        Command::Status(args) if args.watch => verb.watch(context, args, parallel),
        Command::Upgrade(args) => verb.in_waves(context, cli, args.ship, parallel),
        Command::History(_) if !context.json && verb.hosts.len() > 1 => verb.merged(context, parallel),
        _ => verb.once(context, order, parallel).and_then(|lanes| {
            if context.json && order == Order::OfHosts {
                context.print_value(&lanes.document())?;
            }
            Ok(lanes.exit())
        }),
    };
    while interrupted.load(Ordering::SeqCst) {
        // Another thread ends the process, with the code that says by what.
        std::thread::park();
    }
    ways.close();
    done
}

/// When the hosts' words are printed.
///
/// # Errors
/// For verbs that are about this machine alone.
fn order(command: &Command, json: bool) -> Result<Order, CliError> {
    match command {
        Command::Check(_) | Command::Completions(_) | Command::Man | Command::Demo(_) | Command::Relay => {
            Err(not_of_hosts())
        }
        Command::Exec(_) if !json => Ok(Order::AsItComes),
        command if follows(command) => Ok(Order::AsItComes),
        _ => Ok(Order::OfHosts),
    }
}

/// The error of a verb that is not done on hosts.
pub fn not_of_hosts() -> CliError {
    CliError::usage("This verb is about this machine alone.", "Leave -H out.")
}

/// Goes on until it is interrupted.
fn follows(command: &Command) -> bool {
    match command {
        Command::Logs(args) => args.follow,
        Command::Events(args) => args.follow,
        _ => false,
    }
}

/// How ssh is used, and the hosts that `-H` means.
pub fn chosen(cli: &Cli) -> Result<(Settings, Vec<Host>), CliError> {
    if cli.hosts.is_empty() {
        return Err(CliError::usage("No host is chosen.", "For example: svctl -H all status"));
    }
    let fleet = fleet(cli)?;
    let settings = settings(cli, fleet.as_ref());
    let Some(fleet) = fleet else { return Ok((settings, bare(&cli.hosts)?)) };
    let hosts = fleet.select(&cli.hosts).map_err(|unknown| {
        let known: Vec<&str> = fleet.hosts.iter().map(|host| &*host.name).take(20).collect();
        let hint = match &unknown.near {
            Some(near) => format!("Did you mean {near:?}?"),
            None => format!("{} has {}.", fleet.path.display(), known.join(", ")),
        };
        CliError::usage(unknown.to_string(), hint)
    })?;
    Ok((settings, hosts.into_iter().cloned().collect()))
}

/// What the fleet file says that the command line means; `None` where there is none, and none was asked for.
///
/// # Errors
/// Everything that is wrong with it; that the one that was asked for is not there.
pub fn fleet(cli: &Cli) -> Result<Option<Fleet>, CliError> {
    if let Some(path) = &cli.fleet {
        return load(path).map(Some);
    }
    let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
    match inventory::find(&here, cli.environment.as_deref()) {
        Ok(path) => load(&path).map(Some),
        Err(NotFound::Nowhere { .. }) if cli.environment.is_none() => Ok(None),
        Err(error) => Err(CliError::usage(error.to_string(), "--fleet FILE names another place.")),
    }
}

/// The app of that name in the fleet file.
///
/// # Errors
/// There is none.
pub fn app<'f>(fleet: &'f Fleet, name: &str) -> Result<&'f App, CliError> {
    fleet.apps.get(name).ok_or_else(|| {
        let names: Vec<&str> = fleet.apps.keys().map(|name| &**name).collect();
        let hint = match suggest::closest(name, names.iter().copied()) {
            Some(near) => format!("Did you mean {near:?}?"),
            None if names.is_empty() => "A section [app.NAME] makes one.".to_owned(),
            None => format!("There are {}.", suggest::listed(&names, "and")),
        };
        CliError::usage(format!("{} has no app {name:?}.", fleet.path.display()), hint)
    })
}

/// How ssh is used.
pub fn settings(cli: &Cli, fleet: Option<&Fleet>) -> Settings {
    let standard = Settings::default();
    let timeout = fleet.and_then(|fleet| fleet.connect_timeout);
    Settings {
        config: fleet.and_then(|fleet| fleet.ssh_config.clone()),
        connect_timeout: timeout.unwrap_or(standard.connect_timeout),
        parallel: cli.parallel.map_or(standard.parallel, |count| count as usize),
    }
}

fn load(path: &Path) -> Result<Fleet, CliError> {
    inventory::load(path).map_err(|errors| {
        let message = format!("{} has {}; nothing was done.", path.display(), counted(errors.0.len(), "error"));
        let lines = errors.0.iter().map(|error| error.to_string().trim_end().into());
        let error = ApiError::new(ErrorCode::BadConfiguration, message).details(lines.collect());
        CliError::Said { exit: Exit::Failed, error }
    })
}

/// Where there is no fleet file: names as ssh knows them, each once.
fn bare(names: &[String]) -> Result<Vec<Host>, CliError> {
    let mut hosts: Vec<Host> = Vec::with_capacity(names.len());
    for name in names {
        if let Err(why) = check_host_name(name) {
            let hint = "Names of groups, patterns and `all` need a fleet.toml, here or above, or --fleet FILE.";
            return Err(CliError::usage(format!("{name:?} cannot be a host: {why}."), hint));
        }
        if !hosts.iter().any(|host| *host.name == **name) {
            hosts.push(Host::named(name));
        }
    }
    Ok(hosts)
}

/// Each host takes some descriptors.
pub fn allow_many_files() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

/// From now on, INT, TERM and HUP end ssh's connections and remove what they needed before they end svctl.
pub fn close_when_interrupted(ways: Arc<Ways>, interrupted: Arc<AtomicBool>) {
    let (listening, listens) = mpsc::channel();
    let thread = move || {
        let Ok(runtime) = client::runtime() else { return };
        let ended = runtime.block_on(async {
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            let [Ok(mut int), Ok(mut term), Ok(mut hup)] = kinds.map(signal) else { return None };
            let _ = listening.send(());
            Some(tokio::select! {
                _ = int.recv() => SignalKind::interrupt(),
                _ = term.recv() => SignalKind::terminate(),
                _ = hup.recv() => SignalKind::hangup(),
            })
        });
        if let Some(kind) = ended {
            interrupted.store(true, Ordering::SeqCst);
            ways.close();
            std::process::exit(SIGNALLED + kind.as_raw_value());
        }
    };
    // Without it, an interruption leaves an empty directory behind.
    if std::thread::Builder::new().name("signals".to_owned()).spawn(thread).is_ok() {
        let _ = listens.recv();
    }
}

/// What is done, and where.
struct Verb {
    hosts: Arc<[Host]>,
    command: Arc<Command>,
    ways: Arc<Ways>,
    /// svctl has been told to end.
    interrupted: Arc<AtomicBool>,
    /// There are other hosts, before or after these.
    among: bool,
}

/// Says that its host is done, also where a thread panics.
struct Done(Lane, Exit);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.done(self.1);
    }
}

impl Verb {
    /// Runs it on all hosts, `parallel` at once.
    fn once(&self, context: &Context, order: Order, parallel: usize) -> Result<Arc<Lanes>, CliError> {
        let hushed = Arc::clone(&self.interrupted);
        let names = self.hosts.iter().map(|host| host.name.clone()).collect();
        let lanes = Lanes::new(names, self.among, order, context.json, hushed);
        let next = Arc::new(AtomicUsize::new(0));
        let mut threads = 0;
        for _ in 0..parallel.clamp(1, self.hosts.len().max(1)) {
            let (lanes, next, base) = (Arc::clone(&lanes), Arc::clone(&next), context.clone());
            let (hosts, command, ways) = (Arc::clone(&self.hosts), Arc::clone(&self.command), Arc::clone(&self.ways));
            let work = move || {
                // In the hosts' order, so that the one that is printed is never waited for by those that run.
                while let Some((index, host)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|index| Some((index, hosts.get(index)?)))
                {
                    let mut done = Done(lanes.lane(index), Exit::Failed);
                    let transport: Arc<dyn Transport> = Arc::clone(&ways) as Arc<dyn Transport>;
                    let dial = Arc::new(HostDial::new(transport, host.clone()));
                    let context = base.of_host(dial, lanes.lane(index));
                    done.1 = super::run(&context, &command).unwrap_or_else(|error| context.report(&error));
                }
            };
            threads += usize::from(std::thread::Builder::new().spawn(work).is_ok());
        }
        if threads == 0 {
            let error = ApiError::new(ErrorCode::Failed, "svctl cannot start a thread.");
            return Err(CliError::Said { exit: Exit::Failed, error });
        }
        lanes.wait()?;
        Ok(lanes)
    }

    /// `upgrade`: one host first (or the group `canary`), then half of them, then all; a wave begins when all hosts of the one before are well.
    fn in_waves(&self, context: &Context, cli: &Cli, ship: bool, parallel: usize) -> Result<Exit, CliError> {
        let canary = fleet(cli)?.and_then(|fleet| fleet.groups.get("canary").cloned()).unwrap_or_default();
        let (mut hosts, others): (Vec<Host>, Vec<Host>) =
            self.hosts.iter().cloned().partition(|host| canary.contains(&host.name));
        let first = hosts.len().max(1);
        hosts.extend(others);
        let total = hosts.len();
        let mut rows = Vec::new();
        let mut exit = Exit::Ok;
        let mut done = 0;
        for until in [first, total.div_ceil(2), total] {
            let wave: Vec<Host> = hosts.drain(..until.saturating_sub(done)).collect();
            if wave.is_empty() {
                continue;
            }
            done += wave.len();
            if ship {
                super::setup::ship(context, &self.ways, &wave, parallel)?;
            }
            let part = Verb {
                hosts: wave.into(),
                command: Arc::clone(&self.command),
                ways: Arc::clone(&self.ways),
                interrupted: Arc::clone(&self.interrupted),
                among: total > 1,
            };
            let lanes = part.once(context, Order::OfHosts, parallel)?;
            exit = lanes.exit();
            rows.extend(lanes.document()["hosts"].as_array().cloned().unwrap_or_default());
            if exit != Exit::Ok {
                break;
            }
        }
        let untouched: Vec<&str> = hosts.iter().map(|host| &*host.name).collect();
        if context.json {
            context.print_value(&serde_json::json!({ "hosts": rows, "untouched": untouched }))?;
        } else if !untouched.is_empty() {
            context.say(&format!("svctl: stopped at the first failure; not touched: {}.", untouched.join(", ")));
        }
        Ok(exit)
    }

    /// `history`: one, of all hosts.
    fn merged(&self, context: &Context, parallel: usize) -> Result<Exit, CliError> {
        let mut asking = context.clone();
        asking.json = true;
        let lanes = self.once(&asking, Order::OfHosts, parallel)?;
        let (mut told, mut exit) = (Vec::new(), lanes.exit());
        for (name, answer) in lanes.answers() {
            match answer {
                Ok(history) => told.push((name, history)),
                Err(CliError::Said { exit: own, error }) => {
                    let text = render::error("svctl: ", &error);
                    text.trim_end().lines().for_each(|line| context.say(&format!("{name} | {line}")));
                    // Its words were no answer, though the host took them for one.
                    exit = if own.code() > exit.code() { own } else { exit };
                }
                Err(CliError::NobodyReads) => {}
            }
        }
        if !told.is_empty() {
            context.print(merged_history(&told))?;
        }
        Ok(exit)
    }

    /// `status --watch`: again and again, all hosts together.
    fn watch(&self, context: &Context, args: &super::args::StatusArgs, parallel: usize) -> Result<Exit, CliError> {
        let look = super::args::StatusArgs { watch: false, ..args.clone() };
        let look = Verb {
            command: Arc::new(Command::Status(look)),
            hosts: Arc::clone(&self.hosts),
            ways: Arc::clone(&self.ways),
            interrupted: Arc::clone(&self.interrupted),
            among: false,
        };
        let mut before = String::new();
        loop {
            let lanes = look.once(context, Order::Never, parallel)?;
            let text = match context.json {
                true => format!("{}\n", lanes.document()),
                false => String::from_utf8_lossy(&lanes.text()).into_owned(),
            };
            show_again(context, text, &mut before)?;
        }
    }
}
