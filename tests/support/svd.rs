//! An svd of a test's own, in a temporary directory.

use super::leftovers::{Belongings, describe};
use super::plain::NOBODY;
use super::{App, PATIENCE, finish, free_port, http_get, run_limited, wait_for, wait_until};
use airdock::sys::process::{PidFd, ProcStat, all_pids};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Longest time that a command of svctl may take.
const COMMAND: Duration = Duration::from_secs(90);
/// Longest time that svd may take to stop everything.
const STOP: Duration = Duration::from_secs(40);

/// Configured with [`Svd::service`], then started. Dropped, it is told to stop, and nothing of it may be left.
pub struct Svd {
    dir: TempDir,
    child: Option<Guardian>,
    pub belongings: Belongings,
    /// Where `/health` and `/metrics` are.
    pub public: SocketAddr,
    /// What the test knows to be left (it killed svd, say).
    pub leaves_processes: bool,
    /// Where it runs.
    pub home: Home,
}

/// What keeps its services together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// As the test: control groups, if root runs it and they can be made.
    Here,
    /// Root, but it sees no control groups.
    Container,
    /// `nobody`, who can make none; see [`super::plain::give_to_nobody`].
    PlainUser,
    /// Root without the right to make namespaces, as in a container.
    Powerless,
    /// That, where no user namespace can be made either.
    Forbidden,
}

impl Svd {
    /// Directories and a `svd.toml` with a public address; nothing runs yet.
    pub fn new() -> Svd {
        let dir = tempfile::Builder::new().prefix("airdock-test-").tempdir().expect("a temporary directory");
        // Services of another user must reach what is theirs.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("the directory's mode");
        fs::create_dir_all(dir.path().join("etc/conf.d")).expect("making the configuration's directory");
        let public = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let belongings = Belongings::default();
        let svd = Svd { dir, child: None, belongings, public, leaves_processes: false, home: Home::Here };
        svd.config("");
        svd
    }

    /// A directory or file below the temporary one: `etc/`, `run/`, `state/`, `log/` and whatever the test wants.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("run/svd.sock")
    }

    /// An application's root below the temporary directory.
    pub fn app(&self, name: &str) -> App {
        App::at(self.path("srv").join(name))
    }

    /// Writes `svd.toml`: its public address, then `more`.
    pub fn config(&self, more: &str) {
        let text = format!("{more}\n[http]\nlisten = \"{}\"\n", self.public);
        fs::write(self.path("etc/svd.toml"), text).expect("writing svd.toml");
    }

    /// Writes `conf.d/NAME.toml`; `svctl update` tells a running svd of it.
    pub fn service(&self, name: &str, text: &str) {
        fs::write(self.path(&format!("etc/conf.d/{name}.toml")), text).expect("writing a service's file");
    }

    pub fn remove_service(&self, name: &str) {
        fs::remove_file(self.path(&format!("etc/conf.d/{name}.toml"))).expect("removing a service's file");
    }

    /// The command that starts it, for tests with wishes of their own (another user, `--daemon`).
    pub fn command(&self) -> Command {
        let svd = env!("CARGO_BIN_EXE_svd");
        let mut command = match self.home {
            Home::Here | Home::PlainUser => Command::new(svd),
            Home::Powerless => {
                let mut command = Command::new("setpriv");
                command.args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin", svd]);
                command
            }
            Home::Forbidden => {
                let mut command = Command::new("unshare");
                let forbid = "echo 0 > /proc/sys/user/max_user_namespaces && \
                              exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"";
                command.args(["--user", "--map-root-user", "sh", "-c", forbid, "sh", svd]);
                command
            }
            Home::Container => {
                let mut command = Command::new("unshare");
                let hide = "mount -t tmpfs none /sys/fs/cgroup && exec \"$@\"";
                command.args(["--mount", "sh", "-c", hide, "sh", svd]);
                command
            }
        };
        command.arg("-c").arg(self.path("etc")).arg("--run-dir").arg(self.path("run"));
        command.arg("--state-dir").arg(self.path("state")).arg("--log-dir").arg(self.path("log"));
        command.stdin(Stdio::null());
        if self.home == Home::PlainUser {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// Starts it, and waits until its control socket answers.
    #[track_caller]
    pub fn start(&mut self) -> &mut Svd {
        let command = self.command();
        self.start_with(command)
    }

    #[track_caller]
    pub fn start_with(&mut self, mut command: Command) -> &mut Svd {
        assert!(self.child.is_none(), "svd runs already");
        let log = File::options().create(true).append(true).open(self.path("svd.stderr")).expect("svd's stderr");
        let log_too = log.try_clone().expect("svd's stderr");
        self.child = Some(Guardian::Child(command.stdout(log).stderr(log_too).spawn().expect("starting svd")));
        wait_for("svd's control socket answers", PATIENCE, || {
            let ended = self.child.as_mut().and_then(Guardian::try_wait);
            assert!(ended.is_none(), "svd ended ({ended:?}) and said:\n{}", self.said());
            let socket = self.socket().exists();
            (socket && self.answers()).then_some(())
        });
        self
    }

    /// Does svd answer? `svctl version` itself succeeds without it.
    pub fn answers(&self) -> bool {
        let output = self.svctl(&["--json", "version"]);
        serde_json::from_slice::<Value>(&output.stdout).is_ok_and(|version| version["svd"].is_object())
    }

    /// What svd itself wrote to stdout and stderr.
    pub fn said(&self) -> String {
        fs::read_to_string(self.path("svd.stderr")).unwrap_or_default()
    }

    /// The process that was started: the guardian, which others know as svd.
    pub fn guardian(&self) -> i32 {
        self.child.as_ref().expect("svd runs").pid()
    }

    /// svd itself, the guardian's child.
    #[track_caller]
    pub fn pid(&self) -> i32 {
        let guardian = self.guardian();
        wait_for("an svd below its guardian", PATIENCE, || svd_below(guardian))
    }

    pub fn svctl_command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_svctl"));
        command.arg("--socket").arg(self.socket()).args(args);
        command
    }

    /// Runs svctl to its end.
    #[track_caller]
    pub fn svctl(&self, args: &[&str]) -> Output {
        run_limited(self.svctl_command(args), COMMAND)
    }

    /// Runs svctl beside the test; [`Running::finish`] waits for it.
    pub fn svctl_beside(&self, args: &[&str]) -> Running {
        let mut command = self.svctl_command(args);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Running { child: child.expect("starting svctl"), what: format!("svctl {}", args.join(" ")) }
    }

    /// svctl, which must succeed: its stdout.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.svctl(args);
        assert!(output.status.success(), "svctl {} failed ({}):\n{}", args.join(" "), output.status, both(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// svctl, which must fail: all that it wrote.
    #[track_caller]
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.svctl(args);
        assert!(!output.status.success(), "svctl {} succeeded:\n{}", args.join(" "), both(&output));
        both(&output)
    }

    /// `svctl --json`, which must succeed.
    #[track_caller]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(args);
        let text = self.ok(&all);
        serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("svctl --json {} wrote no JSON: {e}\n{text}", args.join(" ")))
    }

    /// Everything that `svctl status NAME` knows.
    #[track_caller]
    pub fn status(&self, name: &str) -> Value {
        let output = self.svctl(&["--json", "status", name]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("svctl --json status {name} wrote no JSON: {e}\n{}", both(&output)))
    }

    /// `running`, `backoff` …
    #[track_caller]
    pub fn state(&self, name: &str) -> String {
        self.status(name)["state"].as_str().unwrap_or_default().to_owned()
    }

    /// Pid of the first worker of the committed generation.
    #[track_caller]
    pub fn main_pid(&self, name: &str) -> i32 {
        let status = self.status(name);
        i32::try_from(status["pid"].as_i64().unwrap_or_else(|| panic!("{name} has no pid: {status:#}"))).expect("a pid")
    }

    #[track_caller]
    pub fn wait_state(&self, name: &str, state: &str) {
        let mut seen = String::new();
        let what = format!("{name} is {state}");
        let end = std::time::Instant::now() + PATIENCE;
        while std::time::Instant::now() < end {
            seen = self.state(name);
            if seen == state {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("waited {PATIENCE:?} in vain: {what}; it is {seen}\n{:#}", self.status(name));
    }

    /// `/health/NAME`: status code and body.
    pub fn health(&self, name: &str) -> (u16, Value) {
        let (status, body) = http_get(self.public, &format!("/health/{name}")).expect("svd's public address answers");
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// What the service wrote, as svd keeps it in `output.log`.
    pub fn output(&self, name: &str) -> String {
        let bytes = fs::read(self.path(&format!("log/{name}/output.log"))).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Sends svd a signal.
    pub fn signal(&self, signal: Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).expect("signalling svd");
    }

    /// SIGKILL for svd and its guardian: its services stay (and are killed when this is dropped).
    pub fn kill(&mut self) {
        self.belongings.note(self.pid());
        self.leaves_processes = true;
        if self.child.is_some() {
            self.kill_both();
        }
    }

    /// The same, by a test that starts it again.
    pub fn kill_both(&mut self) {
        let guardian = self.guardian();
        // Stopped first, or it would start another one at once.
        self.freeze_guardian();
        let svd = svd_below(guardian);
        svd.into_iter().for_each(|svd| send(svd, Signal::SIGKILL));
        self.kill_guardian();
        // A thread that is in the middle of a write ends later than its process seems to, and has the lock so long.
        let threads = |svd| fs::read_dir(format!("/proc/{svd}/task")).map_or(0, Iterator::count);
        let ended = |svd| ProcStat::read(svd).is_none_or(|stat| stat.state == 'Z') && threads(svd) <= 1;
        wait_until("svd's end", PATIENCE, || svd.is_none_or(ended));
    }

    /// As if the machine had lost its power: svd, its guardian and all that they started end at once.
    pub fn lose_power(&mut self) {
        self.belongings.note(self.pid());
        self.kill_both();
        self.belongings.kill(self.dir.path());
    }

    /// Another boot, as far as svd can see.
    #[track_caller]
    pub fn start_after_a_reboot(&mut self) {
        let boot = self.path("boot_id");
        fs::write(&boot, "00000000-1111-4222-8333-444444444444\n").expect("a file");
        let plain = self.command();
        let mut command = Command::new("unshare");
        let hide = format!("mount --bind {} /proc/sys/kernel/random/boot_id && exec \"$@\"", boot.display());
        command.args(["--mount", "sh", "-c", &hide, "sh"]).arg(plain.get_program()).args(plain.get_args());
        self.start_with(command);
    }

    /// The guardian does nothing until it gets SIGCONT.
    pub fn freeze_guardian(&self) {
        let guardian = self.guardian();
        send(guardian, Signal::SIGSTOP);
        let stopped = || ProcStat::read(guardian).is_none_or(|stat| stat.state == 'T');
        wait_until("the guardian is stopped", PATIENCE, stopped);
    }

    /// SIGKILL for the guardian, and its end. Then [`Svd::follow`], or another start if svd was killed as well.
    pub fn kill_guardian(&mut self) {
        let mut guardian = self.child.take().expect("svd runs");
        send(guardian.pid(), Signal::SIGKILL);
        wait_for("the guardian's end", PATIENCE, || guardian.try_wait());
    }

    /// Waits until another process, which svd names in its pid file, is the guardian in place of one that was killed.
    #[track_caller]
    pub fn follow(&mut self, killed: i32) {
        self.child = Some(wait_for("a new guardian with its svd", PATIENCE, || {
            let pid: i32 = fs::read_to_string(self.path("run/svd.pid")).ok()?.trim().parse().ok()?;
            let heir = PidFd::open(pid).ok().filter(|heir| pid != killed && !heir.has_ended())?;
            svd_below(pid).map(|_| Guardian::Heir(heir))
        }));
    }

    /// Tells it to stop, and waits for its end.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.belongings.note(self.pid());
        self.signal(Signal::SIGTERM);
        self.wait_end()
    }

    /// Waits for the end of an svd that was told to stop.
    #[track_caller]
    pub fn wait_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("svd runs");
        let end = std::time::Instant::now() + STOP;
        loop {
            if let Some(status) = child.try_wait() {
                return status;
            }
            if std::time::Instant::now() >= end {
                self.belongings.note(child.pid());
                let living: Vec<String> = self.belongings.living(self.dir.path()).iter().map(describe).collect();
                self.child = Some(child);
                panic!("svd did not end within {STOP:?}; alive:\n{}\nit said:\n{}", living.join("\n"), self.said());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn print_for_diagnosis(&self) {
        eprintln!("--- svd said:\n{}", self.said());
        for entry in fs::read_dir(self.path("log")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = self.output(&name);
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {name} wrote:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// Who keeps svd.
enum Guardian {
    Child(Child),
    /// What svd has become after the one that the test had started was killed: not the test's child.
    Heir(PidFd),
}

impl Guardian {
    fn pid(&self) -> i32 {
        match self {
            Guardian::Child(child) => child.id().cast_signed(),
            Guardian::Heir(heir) => heir.pid(),
        }
    }

    /// Its end, if it has ended. Good, where the kernel does not tell others than the parent (before Linux 6.15).
    fn try_wait(&mut self) -> Option<ExitStatus> {
        match self {
            Guardian::Child(child) => child.try_wait().expect("waiting for svd"),
            Guardian::Heir(heir) => heir.has_ended().then(|| {
                let status = heir.any_exit().and_then(airdock::sys::process::ExitStatus::to_wait_status);
                ExitStatus::from_raw(status.unwrap_or(0))
            }),
        }
    }
}

fn svd_below(guardian: i32) -> Option<i32> {
    // Stubs are called svd:ID.
    let of_it = |stat: &ProcStat| stat.parent == guardian && stat.comm == "svd" && stat.state != 'Z';
    all_pids().into_iter().filter_map(ProcStat::read).find(of_it).map(|stat| stat.pid)
}

fn send(pid: i32, signal: Signal) {
    // Children of this test, or of its child: not reaped before this returns.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
}

impl Drop for Svd {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        if panicking {
            self.print_for_diagnosis();
        }
        let mut complaint = None;
        if let Some(mut child) = self.child.take() {
            let pid = child.pid();
            self.belongings.note(pid);
            send(pid, Signal::SIGTERM);
            let end = std::time::Instant::now() + if panicking { STOP / 4 } else { STOP };
            let mut status = None;
            while status.is_none() && std::time::Instant::now() < end {
                status = child.try_wait();
                std::thread::sleep(Duration::from_millis(5));
            }
            if status.is_none() {
                self.belongings.note(pid);
                self.belongings.kill(self.dir.path());
                complaint = Some(format!("svd did not end within {STOP:?} of SIGTERM"));
            } else if status.is_some_and(|s| !s.success()) {
                complaint = Some(format!("svd ended badly: {status:?}"));
            }
        }
        // The first process of a PID namespace, which svd has killed with all others there, waits for them to be reaped.
        let until = std::time::Instant::now() + Duration::from_secs(2);
        let mut left: Vec<String>;
        loop {
            left = self.belongings.living(self.dir.path()).iter().map(describe).collect();
            if left.is_empty() || std::time::Instant::now() > until || !left.iter().all(|one| one.contains("svd-init"))
            {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.belongings.kill(self.dir.path());
        if !left.is_empty() && !self.leaves_processes {
            complaint.get_or_insert_with(|| format!("svd left processes behind:\n{}", left.join("\n")));
        }
        match complaint {
            Some(why) if panicking => eprintln!("{why}"),
            Some(why) => panic!("{why}\nit said:\n{}", self.said()),
            None => {}
        }
    }
}

/// A svctl that runs beside the test.
pub struct Running {
    child: Child,
    what: String,
}

impl Running {
    #[track_caller]
    pub fn finish(self) -> Output {
        finish(self.child, &self.what, COMMAND)
    }
}

/// stdout and stderr, for people.
pub fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A path as TOML's string.
pub fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
