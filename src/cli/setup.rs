//! `svctl setup` and `svctl remove`: what is done to hosts as root, over ssh, beside svd.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::LocalSet;

use super::args::{Cli, RemoveArgs, SetupArgs};
use super::context::{Context, need_names};
use super::exit::{CliError, Exit};
use super::hosts;
use super::text::line;
use crate::api::client::{ClientError, DEFAULT_SOCKET, runtime};
use crate::api::types::{ApiError, ErrorCode};
use crate::config;
use crate::config::spec::AUTO_USER;
use crate::fleet::drive::Link;
use crate::fleet::inventory::{Fleet, Host};
use crate::fleet::setup::{self, Found, MAIN, Wanted};
use crate::fleet::transport::local::Local;
use crate::fleet::transport::ssh::Ssh;
use crate::fleet::transport::{Ran, Ways};

const PARALLEL: usize = 20;
/// For a host to say what it has.
const LOOK: Duration = Duration::from_secs(60);
/// For the program to arrive, and services to start or stop.
const WORK: Duration = Duration::from_secs(1800);
/// What `sudo` is missing for; see [`setup::as_root`].
const NO_ROOT: i32 = 77;

/// What became of a host.
struct Outcome {
    lines: Vec<String>,
    notes: Vec<String>,
    error: Option<CliError>,
}

impl Outcome {
    fn failed(error: CliError) -> Outcome {
        Outcome { lines: Vec::new(), notes: Vec::new(), error: Some(error) }
    }
}

fn failed(why: impl Into<Box<str>>) -> CliError {
    CliError::Said { exit: Exit::Failed, error: ApiError::new(ErrorCode::Failed, why) }
}

/// Who is worked on, and by which way.
struct Crew {
    hosts: Vec<Host>,
    fleet: Option<Fleet>,
    ways: Arc<Ways>,
    parallel: usize,
}

impl Crew {
    fn find(cli: &Cli) -> Result<Crew, CliError> {
        let parallel = cli.parallel.map_or(PARALLEL, |count| count as usize);
        let (settings, hosts) = match cli.hosts.is_empty() {
            false => hosts::chosen(cli)?,
            true => (Default::default(), vec![Host { local: true, ..Host::named("here") }]),
        };
        let ways = Arc::new(Ways::new(Local::new(&cli.socket), Ssh::new(settings)));
        hosts::close_when_interrupted(Arc::clone(&ways), Arc::default());
        Ok(Crew { hosts, fleet: hosts::fleet(cli)?, ways, parallel })
    }

    /// The same on all hosts, so many at once; each is told when those before it have been.
    fn each<F>(&self, context: &Context, work: impl Fn(Arc<Ways>, Host) -> F) -> Result<Exit, CliError>
    where
        F: Future<Output = Outcome> + 'static,
    {
        let runtime = runtime()?;
        let turns = Rc::new(tokio::sync::Semaphore::new(self.parallel.max(1)));
        let done = runtime.block_on(LocalSet::new().run_until(async {
            let tasks: Vec<_> = self
                .hosts
                .iter()
                .map(|host| {
                    let (work, turns) = (work(Arc::clone(&self.ways), host.clone()), Rc::clone(&turns));
                    tokio::task::spawn_local(async move {
                        // Never closed.
                        let _turn = turns.acquire().await;
                        work.await
                    })
                })
                .collect();
            let mut rows = Vec::new();
            let mut exit = Exit::Ok;
            for (host, task) in self.hosts.iter().zip(tasks) {
                let outcome = task.await.unwrap_or_else(|_| Outcome::failed(failed("svctl has failed.")));
                let (row, code) = tell(context, &host.name, outcome)?;
                rows.push(row);
                exit = if code.code() > exit.code() { code } else { exit };
            }
            Ok::<_, CliError>((rows, exit))
        }));
        self.ways.close();
        let (rows, exit) = done?;
        if context.json {
            context.print_value(&json!({ "hosts": rows }))?;
        }
        Ok(exit)
    }
}

fn tell(context: &Context, host: &str, outcome: Outcome) -> Result<(Value, Exit), CliError> {
    let Outcome { lines, notes, error } = outcome;
    let (exit, error) = match &error {
        None => (Exit::Ok, None),
        Some(CliError::Said { exit, error }) => (*exit, Some(error)),
        Some(CliError::NobodyReads) => return Err(CliError::NobodyReads),
    };
    if !context.json {
        for text in &lines {
            context.print(format!("{host}: {}\n", line(text)))?;
        }
        if lines.is_empty() && error.is_none() {
            context.print(format!("{host}: nothing to do\n"))?;
        }
        notes.iter().for_each(|note| context.say(&format!("{host}: note: {}", line(note))));
        if let Some(error) = error {
            // Most messages name the host themselves.
            let named = error.message.starts_with(&format!("{host}: "));
            let before = if named { "svctl: ".to_owned() } else { format!("svctl: {host}: ") };
            context.say(super::render::error(&before, error).trim_end());
        }
    }
    Ok((json!({ "host": host, "exit_code": exit.code(), "changes": lines, "notes": notes, "error": error }), exit))
}

/// Runs a script as root there.
async fn as_root(ways: &Ways, host: &Host, script: &str, input: &[u8], limit: Duration) -> Result<Ran, CliError> {
    let ran = ways.run(host, &setup::as_root(script), input, limit).await;
    let ran = ran.map_err(|error| of_client(host, error))?;
    let said = |ran: &Ran| {
        let last = ran.last_line();
        last.strip_prefix("svctl: ").unwrap_or(&last).to_owned()
    };
    match ran.code {
        Some(0) => Ok(ran),
        Some(NO_ROOT) => {
            let error = ApiError::new(ErrorCode::Forbidden, format!("{}: {}.", host.name, said(&ran)))
                .hint("Log in as root ([host.NAME] user = \"root\"), or let the user there run `sudo -n`.");
            Err(CliError::Said { exit: Exit::Forbidden, error })
        }
        _ => Err(failed(format!("{}: {}.", host.name, said(&ran).trim_end_matches('.')))),
    }
}

fn of_client(host: &Host, error: ClientError) -> CliError {
    match error {
        error @ (ClientError::Away(_) | ClientError::Local { .. }) => error.into(),
        other => failed(format!("{}: {other}", host.name)),
    }
}

/// What it has done before it ended, well or not.
fn done(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.strip_prefix("done\t")).map(str::to_owned).collect()
}

/// The files that hosts are to have: texts by name below the configuration's directory.
struct Files {
    main: Option<String>,
    services: BTreeMap<String, String>,
    /// What the services' files say about users and roots.
    config: config::spec::Config,
}

impl Files {
    fn read(dir: &Path) -> Result<Files, CliError> {
        let bad = |errors: config::Diagnostics| {
            let message = format!("{}: the files for the hosts have errors; nothing was done.", dir.display());
            let lines = errors.0.iter().map(|error| error.to_string().trim_end().into());
            let error = ApiError::new(ErrorCode::BadConfiguration, message).details(lines.collect());
            CliError::Said { exit: Exit::Failed, error }
        };
        let config = config::load(dir).map_err(bad)?;
        let read = |path: PathBuf| {
            let shown = path.display().to_string();
            config::read_text(&path, &shown).map_err(|why| failed(why.to_string()))
        };
        let main = dir.join(MAIN);
        let main = if main.exists() { Some(read(main)?) } else { None };
        let mut services = BTreeMap::new();
        for name in config.services.keys() {
            services.insert(name.to_string(), read(dir.join("conf.d").join(format!("{name}.toml")))?);
        }
        Ok(Files { main, services, config })
    }
}

/// Which services a host has: those of its apps, and those that no app of the fleet file has.
fn belongs(fleet: Option<&Fleet>, host: &str, service: &str) -> bool {
    let Some(fleet) = fleet else { return true };
    let mut of = fleet.apps.values().filter(|app| app.services.iter().any(|name| **name == *service)).peekable();
    of.peek().is_none() || of.any(|app| app.hosts.iter().any(|name| **name == *host))
}

/// Is it deployed?
fn of_app(fleet: &Fleet, service: &str) -> bool {
    fleet.apps.values().any(|app| app.services.iter().any(|name| **name == *service))
}

fn wanted(host: &Host, fleet: Option<&Fleet>, files: &Files, args: &SetupArgs, program: &Program) -> Wanted {
    let mut wanted = Wanted {
        system: program.system.clone(),
        program: program.sum.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        standard: args.deployer.as_deref().map(setup::standard),
        socket: host.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET)).display().to_string(),
        ..Wanted::default()
    };
    if let Some(text) = &files.main {
        wanted.files.insert(MAIN.to_owned(), text.clone());
    }
    for (name, text) in files.services.iter().filter(|(name, _)| belongs(fleet, &host.name, name)) {
        wanted.files.insert(format!("conf.d/{name}.toml"), text.clone());
        let Some(service) = files.config.services.get(name.as_str()) else { continue };
        let root = service.root.as_ref().map(|root| root.display().to_string());
        // One of its own is svd's to choose, there.
        let user = service.user.as_deref().filter(|user| *user != AUTO_USER);
        if let Some(user) = user.filter(|user| user.parse::<u32>().is_err()) {
            wanted.users.insert(user.to_owned(), root.clone());
        }
        if let Some(root) = root {
            let user = user.map(str::to_owned);
            let shared = service.deploy.iter().flat_map(|deploy| deploy.shared.iter());
            for shared in shared.filter(|name| is_directory(name)) {
                wanted.directories.insert(format!("{root}/shared/{shared}"), user.clone());
            }
            // By it svd knows that there are to be releases.
            if service.deploy.is_some() || fleet.is_some_and(|fleet| of_app(fleet, name)) {
                wanted.directories.insert(format!("{root}/shared"), None);
            }
            wanted.directories.entry(root).or_default();
        }
    }
    wanted
}

/// Of what is shared among releases, `media` is a directory; what `local.py` is, nobody but its author knows.
fn is_directory(shared: &str) -> bool {
    shared.rsplit('/').next().is_some_and(|name| !name.contains('.'))
}

/// svctl's own file.
struct Program {
    bytes: Vec<u8>,
    sum: String,
    system: String,
}

impl Program {
    fn own() -> Result<Program, CliError> {
        // What runs, also where its file was replaced since.
        let bytes = std::fs::read("/proc/self/exe")
            .map_err(|e| failed(format!("svctl's own file cannot be read: {}.", crate::sys::io_text(&e))))?;
        let system = nix::sys::utsname::uname().map_err(|e| failed(format!("uname: {}.", e.desc())))?;
        let system = [system.sysname(), system.machine()].map(|word| word.to_string_lossy().into_owned()).join(" ");
        Ok(Program { sum: setup::sha256(&bytes), bytes, system })
    }
}

pub fn setup(context: &Context, cli: &Cli, args: &SetupArgs) -> Result<Exit, CliError> {
    if cli.hosts.is_empty() {
        return Err(CliError::usage("Which hosts are to be prepared?", "For example: svctl -H web-3 setup -n"));
    }
    let crew = Crew::find(cli)?;
    let dir = match (&args.files, &crew.fleet) {
        (Some(dir), _) => Some(dir.clone()),
        (None, Some(fleet)) => Some(fleet.directory().to_owned()),
        (None, None) => None,
    };
    let files = match dir.filter(|dir| args.files.is_some() || dir.join("conf.d").is_dir() || dir.join(MAIN).exists()) {
        Some(dir) => Files::read(&dir)?,
        None => Files { main: None, services: BTreeMap::new(), config: Default::default() },
    };
    if files.main.is_some() && args.deployer.is_some() {
        return Err(CliError::usage(
            "An svd.toml is shipped: its access rules say who may deploy.",
            "Leave --deployer out.",
        ));
    }
    let program = Arc::new(Program::own()?);
    let all: BTreeSet<Box<str>> = crew.hosts.iter().map(|host| host.name.clone()).collect();
    let plans: BTreeMap<Box<str>, Wanted> = all
        .iter()
        .filter_map(|name| crew.hosts.iter().find(|host| host.name == *name))
        .map(|host| (host.name.clone(), wanted(host, crew.fleet.as_ref(), &files, args, &program)))
        .collect();
    let dry_run = args.dry_run;
    crew.each(context, |ways, host| {
        let (wanted, program) = (plans.get(&host.name).cloned().unwrap_or_default(), Arc::clone(&program));
        async move { prepare(&ways, &host, &wanted, &program.bytes, dry_run).await.unwrap_or_else(Outcome::failed) }
    })
}

async fn prepare(
    ways: &Ways,
    host: &Host,
    wanted: &Wanted,
    program: &[u8],
    dry_run: bool,
) -> Result<Outcome, CliError> {
    let look = as_root(ways, host, &setup::probe(wanted), b"", LOOK).await?;
    let found = Found::parse(&look.output);
    let todo = setup::todo(wanted, &found).map_err(|why| failed(format!("{}: {why}.", host.name)))?;
    let mut outcome = Outcome { lines: Vec::new(), notes: todo.notes, error: None };
    if dry_run || todo.changes.is_empty() {
        outcome.lines = todo.changes.iter().map(|change| format!("would {change}")).collect();
        return Ok(outcome);
    }
    let delivery = setup::apply(&todo.changes, wanted, program);
    let ran = ways.run(host, &setup::as_root(&delivery.script), &delivery.input, WORK).await;
    let ran = ran.map_err(|error| of_client(host, error))?;
    outcome.lines = done(&ran.output);
    if ran.code != Some(0) {
        let last = ran.last_line();
        let why = last.strip_prefix("svctl: ").unwrap_or(&last).trim_end_matches('.');
        outcome.error = Some(failed(format!("{}: {why}.", host.name)));
    }
    Ok(outcome)
}

/// Brings svctl's own program to hosts, in the place of the one that svd was started from; each must run it before it is put there.
///
/// # Errors
/// The first host on which that failed; nothing was changed on it.
pub fn ship(context: &Context, ways: &Arc<Ways>, hosts: &[Host], parallel: usize) -> Result<(), CliError> {
    let program = Arc::new(Program::own()?);
    let delivery = Arc::new(setup::replace(&program.sum, env!("CARGO_PKG_VERSION"), &program.bytes));
    let turns = Rc::new(tokio::sync::Semaphore::new(parallel.max(1)));
    let results = runtime()?.block_on(LocalSet::new().run_until(async {
        let tasks: Vec<_> = hosts
            .iter()
            .map(|host| {
                let (ways, host, turns) = (Arc::clone(ways), host.clone(), Rc::clone(&turns));
                let (program, delivery) = (Arc::clone(&program), Arc::clone(&delivery));
                tokio::task::spawn_local(async move {
                    // Never closed.
                    let _turn = turns.acquire().await;
                    let there = as_root(&ways, &host, &setup::program_there(), b"", LOOK).await?;
                    if there.output.trim() == program.sum {
                        return Ok(());
                    }
                    as_root(&ways, &host, &delivery.script, &delivery.input, WORK).await.map(drop)
                })
            })
            .collect();
        let mut results = Vec::new();
        for task in tasks {
            results.push(task.await.unwrap_or_else(|_| Err(failed("svctl has failed."))));
        }
        results
    }));
    let mut first = Ok(());
    for (host, result) in hosts.iter().zip(results) {
        match result {
            Ok(()) => context.say(&format!("{}: this svctl's program is there", host.name)),
            Err(error) if first.is_ok() => first = Err(error),
            Err(error) => drop(context.report(&error)),
        }
    }
    first
}

/// Directories that are nobody's data.
const SYSTEM: [&str; 14] =
    ["bin", "boot", "dev", "etc", "home", "lib", "lib64", "opt", "proc", "root", "run", "sbin", "sys", "usr"];

/// Is it deep enough below the top to be one service's alone?
fn may_be_purged(root: &str) -> bool {
    let parts: Vec<&str> = root.split('/').filter(|part| !part.is_empty()).collect();
    let system = parts.first().is_none_or(|first| SYSTEM.contains(first) && !["home", "opt", "usr"].contains(first));
    root.starts_with('/') && parts.len() >= 2 && !system && !parts.contains(&"..") && root != "/usr/local"
}

pub fn remove(context: &Context, cli: &Cli, args: &RemoveArgs) -> Result<Exit, CliError> {
    need_names(std::slice::from_ref(&args.name), "remove")?;
    if let Err(why) = config::check_name(&args.name) {
        return Err(CliError::usage(
            format!("{:?} cannot be a service: {why}.", args.name),
            "`svctl status` lists them.",
        ));
    }
    let crew = Crew::find(cli)?;
    let (name, purge) = (args.name.clone(), args.purge);
    crew.each(context, |ways, host| {
        let name = name.clone();
        async move { take_off(ways, &host, &name, purge).await.unwrap_or_else(Outcome::failed) }
    })
}

async fn take_off(ways: Arc<Ways>, host: &Host, name: &str, purge: bool) -> Result<Outcome, CliError> {
    let (mut root, mut notes) = (None, Vec::new());
    if purge {
        // What is not a service of svd's any more has no root that anybody knows.
        let status = Link::new(host.clone(), Arc::clone(&ways) as _, None).status(name).await.ok();
        match status {
            Some(status) if status.services.len() > 1 => {
                notes.push(format!("{} stays: other services have it, too", status.root))
            }
            Some(status) if !may_be_purged(&status.root) => {
                notes.push(format!("{} stays: it is no directory of a service alone", status.root))
            }
            Some(status) => root = Some(status.root),
            None => {}
        }
    }
    let socket = host.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET)).display().to_string();
    let script = setup::remove(name, &socket, purge, root.as_deref());
    let ran = as_root(&ways, host, &script, b"", WORK).await?;
    Ok(Outcome { lines: done(&ran.output), notes, error: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_a_services_own_is_purged() {
        for root in ["/srv/airship", "/var/www/x", "/opt/app/x", "/usr/local/app"] {
            assert!(may_be_purged(root), "{root}");
        }
        for root in ["/", "/srv", "/etc/airdock", "/usr/local", "srv/x", "/srv/../etc", "/proc/1", "//srv/"] {
            assert!(!may_be_purged(root), "{root}");
        }
    }
}
