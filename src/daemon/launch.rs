//! From a generation to a process: the plan, resolved once, and what each spawn is prepared with.

use super::features::Features;
use super::logs::Stream;
use super::paths::Paths;
use super::statsd;
use super::unit::{Generation, Plan, RunAs};
use super::users::Users;
use crate::config::spec::{Kind, Listen, Service, Stderr, Template};
use crate::kinds::environment::{self, HandedOver};
use crate::kinds::{self, Argv, Context, FIRST_SOCKET, Places, gunicorn};
use crate::sys::files;
use crate::sys::sandbox::Inside;
use crate::sys::spawn::{Limit, Prepared, Source, Wire, c_path, c_string, resolve_program, resolve_program_within};
use std::borrow::Cow;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a service finds its secrets that are files, as systemd calls it: many programs look there (`systemd.exec(5)`).
pub const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";

/// Resolves what a generation keeps, but for its secrets. Reads directories, files and the user database, any of which may hang: for the
/// pool.
///
/// # Errors
/// A sentence for the operator.
pub fn plan(spec: &Arc<Service>, release: Option<&str>, users: &Users) -> Result<Plan, String> {
    let places = kinds::resolve(spec.root.as_deref(), release)?;
    let (ids, login) = users.find(spec)?;
    let run_as = RunAs { ids, login };
    let mut variables = Vec::new();
    for template in &spec.environment_files {
        // Only what is known without a worker; the rest has no meaning in a file's name.
        let text = Context::without_worker(spec, &places).expand(template)?;
        let (path, optional) = match text.strip_prefix('-') {
            Some(path) => (path, true),
            None => (&*text, false),
        };
        match files::read_for(Path::new(path), run_as.ids.as_ref()) {
            Ok(text) => variables.extend(environment::parse_file(&text).map_err(|e| format!("{path}: {e}"))?),
            Err(e) if optional && e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => {
                let why = crate::sys::io_text(&e);
                return Err(format!("cannot read the environment file {path}: {why}; a leading - allows its absence"));
            }
        }
    }
    let owners = super::sockets::owners(spec);
    let mut plan =
        Plan { spec: Arc::clone(spec), places, run_as, owners, program: None, variables, sandbox: None, secrets: None };
    let inside = super::enclosure::inside(&plan)?;
    plan.program = find_program(&plan, inside.as_ref());
    plan.sandbox = super::enclosure::sandbox(&plan, &users.walls, inside.as_ref())?.map(Arc::new);
    Ok(plan)
}

/// Is all that a plan reads on the disk that svd itself runs from? Then it need not be made in the pool, which costs a
/// thread's memory where a thousand services start at once.
pub fn at_hand(spec: &Service) -> bool {
    let elsewhere = spec.root.is_some() || !spec.environment_files.is_empty() || !spec.secrets.is_empty();
    // Its paths are looked at.
    let elsewhere = elsewhere || spec.isolation.is_some() || spec.chroot.is_some();
    let owner = |l: &Listen| matches!(l, Listen::Unix { owner, group, .. } if owner.is_some() || group.is_some());
    let names = spec.user.is_some() || spec.group.is_some() || !spec.groups.is_empty();
    let names = names || spec.sockets.iter().any(|s| owner(&s.listen));
    let own_path = spec.environment.iter().any(|(name, _)| &**name == "PATH");
    let Kind::Command { command } = &spec.kind else { return false };
    let is_systems = |program: &Template| {
        let text = &program.0;
        let below = |dir: &&str| text.starts_with(*dir);
        if text.contains('/') { ["/usr/", "/bin/", "/sbin/"].iter().any(below) } else { !own_path }
    };
    let literal = |program: &&Template| program.placeholders().next().is_none();
    !elsewhere && !names && command.first().filter(literal).is_some_and(is_systems)
}

/// The program, if it can be told without a worker. What is wrong with it is said when a worker is prepared.
fn find_program(plan: &Plan, inside: Option<&Inside>) -> Option<PathBuf> {
    let context = Context::without_worker(&plan.spec, &plan.places);
    // Arguments may need what is not known yet; the program alone seldom does.
    let name = kinds::program(&context).ok()?;
    let directory = directory(&context).ok()?;
    let login = &plan.run_as.login;
    let variables = environment::variables(&context, login, "", &plan.variables, HandedOver::default()).ok()?;
    let path = variables.iter().find(|(n, _)| n == "PATH").map_or("", |(_, v)| v);
    find(inside, name.as_ref(), path, &directory).ok()
}

/// The file that a program's name means to the service. Looks at files, which may hang.
///
/// # Errors
/// A sentence for the operator.
pub fn find(inside: Option<&Inside>, name: &str, path: &str, directory: &Path) -> Result<PathBuf, String> {
    let found = match inside {
        Some(inside) => resolve_program_within(inside, name.as_ref(), path.as_ref(), directory),
        None => resolve_program(name.as_ref(), path.as_ref(), directory),
    };
    found.map_err(|e| match inside {
        Some(_) => format!("{e} (in chroot)"),
        None => e.to_string(),
    })
}

fn inside(plan: &Plan) -> Option<Inside> {
    Inside::of(&plan.sandbox.as_ref()?.mounts)
}

/// A reload that overlaps needs memory for two. `old`: pids of what runs now and the new generation would have to fit beside;
/// `leaving`: of what ends in a moment. For the pool.
///
/// # Errors
/// A sentence for the operator.
pub fn room_for_two(old: &[i32], leaving: &[i32]) -> Result<(), String> {
    if old.is_empty() {
        return Ok(());
    }
    let used = crate::sys::process::pss_of(old);
    // Where the kernel does not say it, nothing is refused.
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    memory_available(&text).map_or(Ok(()), |free| fits_beside(used, free + crate::sys::process::pss_of(leaving)))
}

/// Is so little left that what answers nobody should go? Where the kernel does not say it, it is not.
pub fn memory_is_short(meminfo: &str) -> bool {
    let (total, free) = (memory_line(meminfo, "MemTotal:"), memory_available(meminfo));
    matches!((total, free), (Some(total), Some(free)) if free < total / SHORT)
}

/// Of all memory.
const SHORT: u64 = 20;

/// Both in bytes: of the running generation, and what can be had without swapping.
fn fits_beside(used: u64, free: u64) -> Result<(), String> {
    if used <= free {
        return Ok(());
    }
    let mib = |bytes: u64| bytes >> 20;
    Err(format!(
        "there is no room for a second generation: the running one uses {} MiB and {} MiB are available; free memory, \
         or set [reload] overlap = false to stop the old one first",
        mib(used),
        mib(free)
    ))
}

/// In bytes, by the text of `/proc/meminfo`.
fn memory_available(meminfo: &str) -> Option<u64> {
    memory_line(meminfo, "MemAvailable:")
}

fn memory_line(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix(name))?;
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// What stays the same for all spawns of this svd.
#[derive(Clone)]
pub struct Surroundings {
    pub host: String,
    pub paths: Paths,
    pub open_files: Limit,
    pub oom_score_adj: Option<i32>,
    pub umask: u32,
    pub features: Arc<Features>,
}

/// What one spawn has of its own.
pub struct Own<'a> {
    pub slot: u32,
    /// What gunicorn's master says in its reports; `None`: it is no master.
    pub number: Option<u64>,
    /// Gunicorn's workers by `svctl scale`.
    pub scaled: Option<u32>,
    /// Pipes for stdout and stderr; none: /dev/null. The same one twice: joined.
    pub output: Option<(&'a Source, &'a Source)>,
    pub notify: Option<&'a Path>,
    pub ready: Option<Arc<std::os::fd::OwnedFd>>,
}

/// Everything that a worker is spawned with.
///
/// # Errors
/// A sentence for the operator.
pub fn prepare(generation: &Generation, around: &Surroundings, own: &Own<'_>) -> Result<Prepared, String> {
    let plan = &generation.plan;
    let launcher = around.paths.launcher();
    let context = Context {
        spec: &plan.spec,
        places: &plan.places,
        host: &around.host,
        generation: generation.id.number,
        worker: own.slot,
        port: generation.port,
        workers: own.scaled,
        launcher: &launcher,
        secrets: path_of_secrets(plan),
    };
    let given = given(plan)?;
    let line = kinds::command_line(&context, &given)?;
    let directory = directory(&context)?;
    let (handed, wires) = handed_over(generation, &context, line.socket_on_stdin, own)?;
    let text = directory.to_str().ok_or("the directory's path is not UTF-8")?;
    let variables = environment::variables(&context, &plan.run_as.login, text, &given, handed)?;
    let path = variables.iter().find(|(n, _)| n == "PATH").map_or("", |(_, v)| v);
    let name = line.argv.first().ok_or("the command is empty")?;
    let program = match &plan.program {
        Some(program) => program.clone(),
        None => find(inside(plan).as_ref(), name, path, &directory)?,
    };
    let mut prepared = of_service(plan, around, &program, &line.argv, &variables, &directory)?;
    prepared.descriptors = wires;
    prepared.network.clone_from(&generation.network);
    prepared.listen_pid = !plan.spec.sockets.is_empty() && !line.socket_on_stdin;
    prepared.watchdog_pid = watchdog(&plan.spec).is_some();
    Ok(prepared)
}

/// The context of what is no worker's.
fn without_worker<'a>(plan: &'a Plan, around: &'a Surroundings) -> Context<'a> {
    Context { secrets: path_of_secrets(plan), ..before_worker(&plan.spec, &plan.places, around) }
}

fn before_worker<'a>(spec: &'a Service, places: &'a Places, around: &'a Surroundings) -> Context<'a> {
    // A variable of the environment may mention the port, which nothing but a worker listens on.
    Context { host: &around.host, port: Some(0), ..Context::without_worker(spec, places) }
}

/// The directory of its secrets that are files.
pub fn path_of_secrets(plan: &Plan) -> Option<&Path> {
    plan.secrets.as_ref().and_then(|secrets| secrets.path())
}

/// The words of a command that is run before there is a plan.
///
/// # Errors
/// A sentence: a placeholder without a value.
pub fn words_of(
    spec: &Service,
    places: &Places,
    around: &Surroundings,
    templates: &[Template],
) -> Result<Argv, String> {
    before_worker(spec, places, around).argv(templates)
}

/// From the environment files, and the secrets, which win.
///
/// # Errors
/// A sentence: they are not known yet.
fn given(plan: &Plan) -> Result<Cow<'_, [(String, String)]>, String> {
    let Some(secrets) = &plan.secrets else { return Ok(Cow::Borrowed(&plan.variables)) };
    let mut all = plan.variables.clone();
    all.extend_from_slice(secrets.variables()?);
    if let Some(path) = secrets.path().and_then(Path::to_str) {
        all.push((CREDENTIALS.to_owned(), path.to_owned()));
    }
    Ok(Cow::Owned(all))
}

/// The words of a command that is no worker's.
///
/// # Errors
/// A sentence: a placeholder without a value.
pub fn expand(plan: &Plan, around: &Surroundings, templates: &[Template]) -> Result<Argv, String> {
    without_worker(plan, around).argv(templates)
}

/// A command that is no worker's, as the service's user, in its directory and environment. Looks for the program on the disk.
///
/// # Errors
/// A sentence for the operator.
pub fn prepare_command(
    plan: &Plan,
    around: &Surroundings,
    argv: &[String],
    wires: Vec<Wire>,
) -> Result<Prepared, String> {
    let context = without_worker(plan, around);
    let directory = directory(&context)?;
    let text = directory.to_str().ok_or("the directory's path is not UTF-8")?;
    let handed = HandedOver::default();
    let variables = environment::variables(&context, &plan.run_as.login, text, &given(plan)?, handed)?;
    let path = variables.iter().find(|(n, _)| n == "PATH").map_or("", |(_, v)| v);
    let name = argv.first().ok_or("the command is empty")?;
    let program = find(inside(plan).as_ref(), name, path, &directory)?;
    let mut prepared = of_service(plan, around, &program, argv, &variables, &directory)?;
    prepared.descriptors = wires;
    Ok(prepared)
}

/// Both of a command's.
pub fn outputs(output: std::os::fd::OwnedFd) -> Vec<Wire> {
    let output = Arc::new(output);
    [1, 2].map(|target| Wire { source: Source::Fd(Arc::clone(&output)), target }).into()
}

/// What all that runs for a service has.
fn of_service(
    plan: &Plan,
    around: &Surroundings,
    program: &Path,
    argv: &[String],
    variables: &[(String, String)],
    directory: &Path,
) -> Result<Prepared, String> {
    let mut prepared = Prepared::new(
        c_path(program).ok_or("the program's path has a NUL byte")?,
        argv.iter().map(|a| text_for_kernel(a)).collect::<Result<_, _>>()?,
    );
    prepared.environment = variables.iter().map(|(n, v)| variable_for_kernel(n, v)).collect::<Result<_, _>>()?;
    prepared.directory = c_path(directory).ok_or("the directory's path has a NUL byte")?;
    prepared.ids.clone_from(&plan.run_as.ids);
    prepared.umask = plan.spec.umask.unwrap_or(around.umask);
    super::limits::prepare(&mut prepared, &around.features.limits_of(&plan.spec), around);
    prepared.sandbox.clone_from(&plan.sandbox);
    Ok(prepared)
}

fn text_for_kernel(text: &str) -> Result<CString, String> {
    c_string(text).ok_or_else(|| format!("{text:?} has a NUL byte"))
}

/// Without the value, which may be a secret.
fn variable_for_kernel(name: &str, value: &str) -> Result<CString, String> {
    c_string(format!("{name}={value}")).ok_or_else(|| format!("the variable {name} has a NUL byte"))
}

/// Where the processes of a generation begin, where that can be told without a worker.
pub fn directory_of(plan: &Plan, around: &Surroundings) -> Option<PathBuf> {
    directory(&without_worker(plan, around)).ok()
}

pub(super) fn directory(context: &Context<'_>) -> Result<PathBuf, String> {
    match (&context.spec.directory, &context.places.release) {
        (Some(template), _) => Ok(PathBuf::from(context.expand(template)?)),
        (None, Some(release)) => Ok(release.clone()),
        (None, None) => Ok(PathBuf::from("/")),
    }
}

/// Does the service talk to a notify socket?
pub fn notifies(spec: &Service) -> bool {
    watchdog(spec).is_some() || spec.ready.by.contains(&crate::config::spec::ReadyBy::Notify)
}

pub fn watchdog(spec: &Service) -> Option<std::time::Duration> {
    spec.health.as_ref().and_then(|h| h.watchdog)
}

/// Descriptors, and the variables that tell of them.
fn handed_over(
    generation: &Generation,
    context: &Context<'_>,
    socket_on_stdin: bool,
    own: &Own<'_>,
) -> Result<(HandedOver, Vec<Wire>), String> {
    let mut wires = Vec::with_capacity(8);
    let mut variables = Vec::new();
    let mut say = |name: &str, value: String| variables.push((name.to_owned(), value));
    if let Some((stdout, stderr)) = own.output {
        wires.extend([(stdout, 1), (stderr, 2)].map(|(source, target)| Wire { source: source.clone(), target }));
    }
    if socket_on_stdin {
        wires.extend(generation.sockets.first().map(|s| Wire { source: Source::Fd(Arc::clone(s)), target: 0 }));
    } else if !generation.sockets.is_empty() {
        for (target, socket) in (FIRST_SOCKET..).zip(&generation.sockets) {
            wires.push(Wire { source: Source::Fd(Arc::clone(socket)), target });
        }
        let names: Vec<&str> = context.spec.sockets.iter().map(|s| &*s.name).collect();
        say("LISTEN_FDS", generation.sockets.len().to_string());
        say("LISTEN_FDNAMES", names.join(":"));
    }
    if let Some(port) = generation.port {
        say("AIRDOCK_PORT", port.to_string());
    }
    if let Some(ready) = &own.ready {
        say("AIRDOCK_READY_FD", context.ready_number().to_string());
        wires.push(Wire { source: Source::Fd(Arc::clone(ready)), target: context.ready_number() });
    }
    if let Some(path) = own.notify {
        say("NOTIFY_SOCKET", path.display().to_string());
    }
    if let Some(interval) = watchdog(context.spec) {
        say("WATCHDOG_USEC", interval.as_micros().to_string());
    }
    if let Some(gunicorn) = &generation.gunicorn {
        let first = context.first_own();
        for (target, (name, source)) in (first..).zip(&gunicorn.inherited) {
            wires.push(Wire { source: Source::Fd(Arc::clone(source)), target });
            say(name, target.to_string());
        }
        say("AIRDOCK_PROBE_TOKEN", gunicorn.token.to_string());
        if let Some(number) = own.number {
            say("AIRDOCK_MASTER", number.to_string());
        }
        if let Some(probe) = gunicorn::probe_inside(context)? {
            say("AIRDOCK_PROBE", probe);
        }
    }
    let mut offered = Vec::new();
    if let Some(address) = &generation.statsd {
        variables.extend(address.variables(statsd::OURS));
        offered.extend(address.variables(statsd::COMMON));
    }
    Ok((HandedOver { fixed: variables, offered }, wires))
}

/// Are stdout and stderr one pipe?
pub fn joined(spec: &Service) -> bool {
    spec.logs.stderr == Stderr::Join
}

/// The pipes of a worker: their names, and what comes through them.
pub fn streams(spec: &Service) -> &'static [(&'static str, Stream)] {
    if joined(spec) { &[("output", Stream::Joined)] } else { &[("stdout", Stream::Stdout), ("stderr", Stream::Stderr)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_hand(text: &str) -> bool {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("conf.d")).expect("conf.d");
        std::fs::write(dir.path().join("conf.d/x.toml"), format!("kind = 'command'\n{text}")).expect("a file");
        let config = crate::config::load(dir.path()).unwrap_or_else(|e| panic!("{e}"));
        super::at_hand(config.services.values().next().expect("a service"))
    }

    #[test]
    fn what_may_lie_on_another_disk_or_at_a_name_service_is_not_at_hand() {
        assert!(at_hand("command = ['sleep', '1']") && at_hand("command = ['/usr/bin/sleep', '{env.X}']"));
        for text in [
            "command = ['/srv/x/bin/run']",
            "command = ['{env.X}/run']",
            "command = ['run']\n[environment]\nPATH = '/srv/bin'",
            "command = ['sleep']\nroot = '/srv/x'",
            "command = ['sleep']\nuser = 'nobody'",
            "command = ['sleep']\ngroups = ['nogroup']",
            "command = ['sleep']\nenvironment_files = ['/srv/x']",
            "command = ['sleep']\n[isolation]\nhidden = ['/srv/x']",
            "command = ['sleep']\n[sockets.a]\nlisten = 'unix:/run/x'\nowner = 'nobody'",
        ] {
            assert!(!at_hand(text), "{text}");
        }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_second_generation_needs_the_memory_of_the_first() {
        assert_eq!(fits_beside(300 * MIB, 300 * MIB), Ok(()));
        let why = fits_beside(300 * MIB + 1, 300 * MIB).expect_err("one byte too much");
        for part in ["uses 300 MiB and 300 MiB are available", "free memory", "[reload] overlap = false"] {
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn a_first_generation_needs_no_room_beside() {
        assert_eq!(room_for_two(&[], &[]), Ok(()));
    }

    #[test]
    fn available_memory_as_the_kernel_writes_it() {
        let text = "MemTotal:       24684500 kB\nMemFree:          100 kB\nMemAvailable:   23330000 kB\n";
        assert_eq!(memory_available(text), Some(23_330_000 * 1024));
        assert_eq!(memory_available("MemTotal: 5 kB\n"), None, "before Linux 3.14");
        assert!(!memory_is_short(text) && !memory_is_short("MemTotal: 5 kB\n"));
        assert!(memory_is_short("MemTotal: 2000 kB\nMemAvailable: 99 kB\n"));
        assert!(!memory_is_short("MemTotal: 2000 kB\nMemAvailable: 100 kB\n"));
        let own = std::fs::read_to_string("/proc/meminfo").expect("meminfo");
        assert!(memory_available(&own).is_some_and(|bytes| bytes > MIB));
    }
}
