//! The command line's grammar.

mod local;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::api::client::DEFAULT_SOCKET;
use crate::config::units;
pub use local::{EditArgs, InitArgs, InitKind, InspectArgs, SecurityArgs, ShowArgs};

/// What `--help` ends with; `docs/svctl.md` says more.
const EXIT_CODES: &str = "\
Exit codes: 0 done (status: running) · 1 the operation failed · 2 wrong usage · 3 not running · 4 no such service, or \
svd cannot be reached · 5 not permitted · 6 the connection was lost, so that the outcome is unknown · 7 a release was taken \
back · 8 a rollout waits for a decision · 9 somebody else holds the lock";

const DEPLOY: &str = "\
Examples:
  svctl plan airship                     what would be done, and why
  svctl deploy airship                   the branch of the fleet file
  svctl deploy airship --ref v2.1        a tag, another branch, or a commit
  svctl -H web-0,web-1 deploy airship    these hosts of the app's alone

Exit codes: 0 done · 1 failed before any host was switched · 7 taken back · 8 waits for a decision (promote, resume or \
abort) · 9 somebody else holds the lock";

const ROLLBACK: &str = "\
Examples:
  svctl rollback airship -n                                   where to
  svctl rollback airship                                      all hosts, to what was good before
  svctl rollback airship --to deploy-2026-11-22_18-40-00      to this one
  svctl -H web-0 rollback airship                             that host alone

Exit codes: 0 done · 1 one host at least is not there, and is named · 7 no host got there, and all are as they were · 9 \
somebody else holds the lock";

const SETUP: &str = "\
Examples:
  svctl -H web-3 setup -n                    what is missing there
  svctl -H web-3 setup --deployer deploy     with a rule by which the user deploy may deploy
  svctl -H all setup                         again, after service files have changed";

/// Heads the options that all verbs have.
const EVERYWHERE: &str = "Options of all verbs";

/// Watches and directs services, on this host or over ssh on many (-H), and ships releases to them.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "svctl",
    version,
    after_help = EXIT_CODES,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    propagate_version = false
)]
pub struct Cli {
    /// svd's control socket
    #[arg(
        long,
        global = true,
        help_heading = EVERYWHERE,
        env = "AIRDOCK_SOCKET",
        default_value = DEFAULT_SOCKET,
        value_name = "PATH",
        hide_env_values = true
    )]
    pub socket: PathBuf,

    /// Print one JSON document (one a line while following)
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,

    /// Do it on these hosts of the fleet, over ssh: names, groups, patterns, or all
    #[arg(short = 'H', long = "host", global = true, help_heading = EVERYWHERE, value_name = "HOSTS", value_delimiter = ',')]
    pub hosts: Vec<String>,

    /// The fleet file [default: the nearest fleet.toml, from the working directory upward]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "FILE", conflicts_with = "environment")]
    pub fleet: Option<PathBuf>,

    /// Use fleet.NAME.toml instead of fleet.toml
    #[arg(short = 'e', long = "environment", global = true, help_heading = EVERYWHERE, value_name = "NAME")]
    pub environment: Option<String>,

    /// Hosts that are served at once [default: 20]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub parallel: Option<u32>,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show services; with one name, everything about it
    Status(StatusArgs),
    /// Start services, and wait until they are ready
    Start(Names),
    /// Stop services, and wait until nothing of them is left
    Stop(Names),
    /// Stop and start services
    Restart(Names),
    /// Replace services by a new generation without dropping a request
    Reload(ReloadArgs),
    /// Read the configuration again and apply what has changed
    Update(UpdateArgs),
    /// Go on with another version of svd, without touching the services
    Upgrade(UpgradeArgs),
    /// Start services when svd starts
    Enable(Names),
    /// Do not start services when svd starts
    Disable(Names),
    /// Take services out of the load balancer; they go on answering
    Drain(Names),
    /// Put drained services back into the load balancer
    Undrain(Names),
    /// Change the number of workers without a restart
    Scale(ScaleArgs),
    /// Send a signal to a service's processes
    Signal(SignalArgs),
    /// Print process ids; without a name, svd's own
    Pid(Names),
    /// Print what a service wrote
    #[command(alias = "tail")]
    Logs(LogsArgs),
    /// Print what happens to services
    Events(EventsArgs),
    /// Show services as they are: generations, requests, errors, latency, memory, checks, the log
    Monitor(MonitorArgs),
    /// Run a command as a service's user, in its environment; its exit code is svctl's
    Exec(ExecArgs),
    /// Ship a release to the hosts of an app, in waves, and take it back if errors rise
    #[command(after_help = DEPLOY)]
    Deploy(DeployArgs),
    /// Show what a deploy would do, and why
    Plan(DeployArgs),
    /// Show what has become of an app's latest rollout
    Attach(OfApp),
    /// Go on with a rollout that was interrupted or is paused
    Resume(OfApp),
    /// Call the wave that is being watched good, and go on
    Promote(OfApp),
    /// Take back what a rollout has changed
    Abort(AbortArgs),
    /// Show what the verdicts of a rollout rested on, and judge again
    Judge(JudgeArgs),
    /// Show the releases of an app on a host; of several hosts, which is where
    Releases(OfApp),
    /// Show what was deployed on this host, when, by whom
    History(HistoryArgs),
    /// Go back to the previous good release, or to one by name; over a fleet on all hosts at once
    #[command(after_help = ROLLBACK)]
    Rollback(RollbackArgs),
    /// Bring hosts that have missed it to the release that the others have confirmed
    #[command(name = "catch-up")]
    CatchUp(ToRelease),
    /// Keep everybody from deploying an app
    Lock(LockArgs),
    /// Let people deploy an app again
    Unlock(UnlockArgs),
    /// Prepare hosts for svd: the program, users, directories, service files, init; needs root there, or sudo
    #[command(after_help = SETUP)]
    Setup(SetupArgs),
    /// Take a service off hosts: stop it and remove its file
    Remove(RemoveArgs),
    /// Write a service's file from a look at its project
    Init(InitArgs),
    /// Show a service's settings, each with where it comes from
    Show(ShowArgs),
    /// Show what the processes of a service really have, and where that is not what its file says
    Inspect(InspectArgs),
    /// Score how much of the host services could reach, and say what to change
    Security(SecurityArgs),
    /// Change a service's file in an editor; it is checked before it counts
    Edit(EditArgs),
    /// Check a configuration without svd
    Check(CheckArgs),
    /// Print the versions of svctl and svd
    Version,
    /// Show a reload under load, in a temporary directory
    Demo(DemoArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Print the manual page (troff)
    Man,
    /// Print the states of services; exit 0 if all are running
    #[command(name = "is-active")]
    IsActive(Names),
    /// Stop all services and svd
    Shutdown(ShutdownArgs),
    /// Bring an app's branch forward to where its trunk is, and push it
    Push(PushArgs),
    /// Connect standard input and output with svd's control socket, for svctl on another host
    #[command(hide = true)]
    Relay,
}

#[derive(Clone, Debug, Args)]
pub struct Names {
    /// Names; * stands for any characters ('*' is all services)
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Names; * stands for any characters
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// Each process of a service: memory, CPU, open files, threads, requests
    #[arg(long)]
    pub workers: bool,

    /// Show again every second, until interrupted
    #[arg(short, long)]
    pub watch: bool,
}

#[derive(Clone, Debug, Args)]
pub struct ReloadArgs {
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// A directory in releases/ [default: what `current` names]
    #[arg(long, value_name = "ID")]
    pub release: Option<String>,

    /// End the oldest generation where too many still finish their requests
    #[arg(long)]
    pub force: bool,

    /// Try so many of gunicorn's workers of the new release beside the old generation first, and compare their answers
    #[arg(long, value_name = "WORKERS", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub canary: Option<u32>,

    /// With --canary: compare for so long [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "canary")]
    pub bake: Option<Duration>,

    /// With --canary: too few requests for a verdict do not take it back
    #[arg(long, requires = "canary")]
    pub too_few_pass: bool,
}

#[derive(Clone, Debug, Args)]
pub struct UpdateArgs {
    /// Show what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub struct UpgradeArgs {
    /// The program to go on with [default: the file that svd was started from]
    #[arg(long, value_name = "PATH")]
    pub binary: Option<PathBuf>,

    /// Bring this svctl's own program there first, in the place of svd's; needs root there, or sudo
    #[arg(long, conflicts_with = "binary")]
    pub ship: bool,

    /// Also where a step of a deploy runs, which ends with it
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
pub struct ShutdownArgs {
    /// Also where a step of a deploy runs, which ends with it
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
pub struct ScaleArgs {
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Workers of gunicorn, or instances of a command
    #[arg(value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub count: u32,
}

#[derive(Clone, Debug, Args)]
pub struct SignalArgs {
    /// HUP, SIGHUP or 1
    #[arg(value_name = "SIGNAL")]
    pub signal: String,

    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// Only the worker of that number, from 0
    #[arg(long, value_name = "INDEX")]
    pub worker: Option<u32>,
}

#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// Several: each line behind the name of its service
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// Go on until interrupted, also through a restart of svd
    #[arg(short, long)]
    pub follow: bool,

    /// The last lines [default: 10; with --since: all]
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub lines: Option<u64>,

    /// From that long ago (10m) or that time (2026-11-22T18:40:00Z)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,

    /// stderr, where the service keeps it apart
    #[arg(long)]
    pub stderr: bool,

    /// Let control characters through to the terminal
    #[arg(long)]
    pub raw: bool,
}

#[derive(Clone, Debug, Args)]
pub struct EventsArgs {
    /// Only of these services
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// Go on until interrupted, also through a restart of svd
    #[arg(short, long)]
    pub follow: bool,
}

#[derive(Clone, Debug, Args)]
pub struct ExecArgs {
    /// In the directory and environment of this release, whether it runs or not
    #[arg(long, value_name = "ID")]
    pub release: Option<String>,

    /// With a terminal of its own [default: where stdin and stdout are terminals]
    #[arg(short, long)]
    pub tty: bool,

    /// Without one
    #[arg(short = 'T', long, conflicts_with = "tty")]
    pub no_tty: bool,

    #[arg(value_name = "NAME")]
    pub name: String,

    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

#[derive(Clone, Debug, Args)]
pub struct DeployArgs {
    /// A section [app.NAME] of the fleet file; without one, a service with a root
    #[arg(value_name = "APP", id = "name")]
    pub app: String,

    /// A branch, a tag or a commit [default: the branch of the fleet file]
    #[arg(long = "ref", value_name = "REF")]
    pub reference: Option<String>,

    /// Ship this file (a jar, a wheel, a tarball) instead of a commit
    #[arg(long, value_name = "FILE", conflicts_with = "reference")]
    pub artifact: Option<PathBuf>,

    /// Where there is no fleet file: the git repository [default: that of the working directory]
    #[arg(long, value_name = "URL")]
    pub repository: Option<String>,

    /// Where there is no fleet file: the branch [default: the repository's own]
    #[arg(long, value_name = "BRANCH")]
    pub branch: Option<String>,

    /// Watch each wave for so long: "5m" [default: the fleet file's; one minute where there is none]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub bake: Option<Duration>,

    /// Show what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

/// As files write it: `"1m30s"`.
fn duration(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).map_err(|(problem, _)| problem)
}

#[derive(Clone, Debug, Args)]
pub struct OfApp {
    /// A section [app.NAME] of the fleet file; without one, a service with a root
    #[arg(value_name = "APP", id = "name")]
    pub app: String,
}

#[derive(Clone, Debug, Args)]
pub struct AbortArgs {
    /// A section [app.NAME] of the fleet file; without one, a service with a root
    #[arg(value_name = "APP", id = "name")]
    pub app: String,

    /// Also where a migration came with it that the release before does not work with
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
pub struct MonitorArgs {
    /// Names, or patterns such as 'web*' [default: all]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// Show it once
    #[arg(long)]
    pub once: bool,

    /// Between two looks
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = interval)]
    pub interval: Duration,
}

/// Not so short that looking is all that svd does.
fn interval(text: &str) -> Result<Duration, String> {
    duration(text).map(|time| time.max(Duration::from_millis(100)))
}

#[derive(Clone, Debug, Args)]
pub struct JudgeArgs {
    /// The app; or the ID alone, where no other app has it
    #[arg(value_name = "APP", id = "name")]
    pub app: String,

    /// The rollout, or its release [default: the latest rollout]
    #[arg(value_name = "ID")]
    pub id: Option<String>,

    /// What if it were so: the chance of taking back a release that is no worse than tolerated
    #[arg(long, value_name = "SHARE")]
    pub false_alarm: Option<f64>,

    /// What if it were so: so many times the old release's rate of errors are tolerated
    #[arg(long, value_name = "TIMES")]
    pub tolerate: Option<f64>,

    /// What if it were so: a pass needs that many requests on each side
    #[arg(long, value_name = "COUNT")]
    pub min_requests: Option<u64>,
}

#[derive(Clone, Debug, Args)]
pub struct HistoryArgs {
    /// A section [app.NAME] of the fleet file; without one, a service with a root
    #[arg(value_name = "APP", id = "name")]
    pub app: String,

    /// The last entries
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 50)]
    pub lines: u64,
}

/// To a release that hosts have.
#[derive(Clone, Debug, Args)]
pub struct ToRelease {
    /// A section [app.NAME] of the fleet file; without one, a service with a root
    #[arg(value_name = "APP", id = "name")]
    pub app: String,

    /// Another release that a host has, than the good one before or what most of the hosts have confirmed
    #[arg(long, value_name = "ID")]
    pub to: Option<String>,

    /// Show what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub struct RollbackArgs {
    #[command(flatten)]
    pub which: ToRelease,

    /// Undo migrations that came with what is left, by `down` of [deploy.migrate]
    #[arg(long)]
    pub down: bool,

    /// Also where a migration stays that the older code is not said to work with
    #[arg(long, conflicts_with = "down")]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
pub struct LockArgs {
    /// A section [app.NAME] of the fleet file; without one, a service with a root
    #[arg(value_name = "APP", id = "name")]
    pub app: String,

    /// Why, for those who are refused
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    pub message: String,
}

#[derive(Clone, Debug, Args)]
pub struct UnlockArgs {
    /// A section [app.NAME] of the fleet file; without one, a service with a root
    #[arg(value_name = "APP", id = "name")]
    pub app: String,

    /// Also from a rollout that goes on
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
pub struct SetupArgs {
    /// A directory with svd.toml and conf.d for the hosts [default: that of the fleet file]
    #[arg(long, value_name = "DIR")]
    pub files: Option<PathBuf>,

    /// Let this user deploy, where the host has no svd.toml yet
    #[arg(long, value_name = "USER")]
    pub deployer: Option<String>,

    /// Show what would be done, and do nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Its releases, shared files and logs, too
    #[arg(long)]
    pub purge: bool,
}

#[derive(Clone, Debug, Args)]
pub struct PushArgs {
    /// An app of the fleet file
    #[arg(value_name = "APP")]
    pub app: String,
}

#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Directory with svd.toml and conf.d
    #[arg(value_name = "DIR", default_value = "/etc/airdock")]
    pub dir: PathBuf,
}

#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// How long the load lasts, in seconds [default: 16]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(4..=3600))]
    pub seconds: Option<u64>,

    /// What to serve with
    #[arg(long, value_enum, default_value_t = DemoServer::Auto)]
    pub server: DemoServer,

    /// Leave the temporary directory with releases, configuration and logs
    #[arg(long)]
    pub keep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DemoServer {
    /// gunicorn, or without a network Python's standard library
    Auto,
    /// gunicorn in a virtual environment of the demo's own
    Gunicorn,
    /// A small server of Python's standard library
    Python,
}

#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    pub shell: clap_complete::Shell,
}
