//! Hosts in network namespaces that a bridge joins. The bridge is in a namespace of its own, from which svctl goes out, so that nothing
//! of this machine's network is touched, and all of it is gone with the processes that hold it.

use super::support::plain::{needs_root, script};
use super::support::svd::both;
use super::support::{PATIENCE, Svd, run_limited, wait_for, wait_until};
use airdock::sys::process::{PidFd, ProcStat, all_pids, end_with_parent};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// Longest time that a command of svctl may take on all hosts.
const COMMAND: Duration = Duration::from_secs(120);
/// A user of the hosts who is nobody's friend; the number is in no passwd of this machine.
pub const STRANGER: u32 = 64_001;

/// What stays in namespaces until it is dropped.
struct Holder(Child);

impl Holder {
    /// Waits until it is there.
    fn start(namespaces: &[&str]) -> Holder {
        let mut command = Command::new("unshare");
        command.args(namespaces).args(["sh", "-c", "echo here; exec sleep 100000"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        end_with_parent(&mut command, Signal::SIGKILL);
        let mut child = command.spawn().expect("unshare");
        let mut line = String::new();
        let out = child.stdout.take().expect("a pipe");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("reading");
        assert_eq!(line, "here\n", "unshare {namespaces:?}");
        Holder(child)
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    /// A command in its namespaces.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.0.id().to_string(), "--net", "--mount", "--uts", "--"]).arg(program);
        command
    }

    #[track_caller]
    fn run(&self, words: &[&str]) {
        let mut command = self.command(words[0]);
        command.args(&words[1..]);
        let output = run_limited(command, PATIENCE);
        assert!(output.status.success(), "{words:?}: {}", both(&output));
    }
}

impl Drop for Holder {
    /// And all that is in its network with it.
    fn drop(&mut self) {
        let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let (own, here) = (network(self.pid()), network(std::process::id().cast_signed()));
        let end = std::time::Instant::now() + PATIENCE;
        while own.is_some() && own != here && std::time::Instant::now() < end {
            let inside: Vec<i32> = all_pids().into_iter().filter(|pid| network(*pid) == own).collect();
            let others: Vec<i32> = inside.into_iter().filter(|pid| *pid != self.pid()).collect();
            if others.is_empty() {
                break;
            }
            for pid in others {
                let Ok(pidfd) = PidFd::open(pid) else { continue };
                if network(pid) == own {
                    let _ = pidfd.signal(libc::SIGKILL);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One host.
pub struct Host {
    pub name: String,
    pub address: String,
    /// Stopped before its namespaces go.
    pub svd: Svd,
    sshd: Option<Child>,
    holder: Holder,
}

impl Host {
    /// `programs` come first in the `PATH` of commands over ssh.
    fn start_sshd(&mut self, bed: &Path, programs: Option<&Path>, more: &str) {
        let dir = self.svd.path("ssh");
        fs::create_dir_all(&dir).expect("a directory");
        let programs = programs.map(|dir| format!("{}:", dir.display())).unwrap_or_default();
        // The hosts' root has none of what this machine's own shells begin with.
        let text = format!(
            "ListenAddress {address}\nHostKey {key}\nPidFile none\nAuthorizedKeysFile {keys}\nStrictModes no\nUsePAM no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPrintMotd no\nUseDNS no\n\
             SetEnv PATH={programs}/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/nonexistent\n{more}\n",
            address = self.address,
            key = bed.join("hostkey").display(),
            keys = bed.join("key.pub").display(),
        );
        fs::write(dir.join("sshd_config"), text).expect("writing");
        let log = File::options().create(true).append(true).open(dir.join("log")).expect("a log");
        let mut command = self.holder.command("/usr/sbin/sshd");
        command.args(["-D", "-e", "-f"]).arg(dir.join("sshd_config"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.sshd = Some(command.spawn().expect("sshd"));
        let listens = || fs::read_to_string(dir.join("log")).is_ok_and(|log| log.contains("Server listening"));
        wait_until("sshd listens", PATIENCE, listens);
    }

    pub fn start_svd(&mut self) {
        let svd = self.svd.command();
        let mut command = self.holder.command(svd.get_program());
        command.args(svd.get_args());
        self.svd.start_with(command);
    }

    /// Its network is cut, as if a cable were pulled.
    pub fn vanish(&self) {
        self.holder.run(&["ip", "link", "set", "eth0", "down"]);
    }

    pub fn return_to_network(&self) {
        self.holder.run(&["ip", "link", "set", "eth0", "up"]);
    }

    /// A command on it, which must succeed.
    #[track_caller]
    pub fn run(&self, words: &[&str]) {
        self.holder.run(words);
    }

    /// Processes on it that have this in their command line.
    pub fn processes(&self, needle: &str) -> Vec<String> {
        let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let own = network(self.holder.pid());
        let line = |pid: i32| {
            let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&text).replace('\0', " ")
        };
        let lines = all_pids().into_iter().filter(|pid| network(*pid) == own).map(line);
        lines.filter(|line| line.contains(needle)).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.svd.path("ssh/log")).unwrap_or_default();
            eprintln!("--- sshd of {}:\n{log}", self.name);
        }
        // Whatever goes on over ssh is not svd's.
        if let Some(mut sshd) = self.sshd.take() {
            let _ = sshd.kill();
            let _ = sshd.wait();
        }
        for session in all_pids().into_iter().filter_map(ProcStat::read).filter(|stat| stat.comm.starts_with("sshd")) {
            let network = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
            if network(session.pid) == network(self.holder.pid())
                && let Ok(pidfd) = PidFd::open(session.pid)
                && network(session.pid) == network(self.holder.pid())
            {
                let _ = pidfd.signal(libc::SIGKILL);
            }
        }
        let gone = || self.processes("relay").is_empty();
        let end = std::time::Instant::now() + PATIENCE;
        while !gone() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Hosts `web-0`, `web-1` …, and a place with a fleet file from which svctl goes to them.
pub struct Bed {
    pub hosts: Vec<Host>,
    hub: Holder,
    dir: tempfile::TempDir,
}

/// Directories of the holder's alone, with what is below `own` in them already. They are in memory, and go with the holder.
fn own_directories(holder: &Holder, own: &Path) -> Result<(), String> {
    let memory = own.with_extension("memory");
    fs::create_dir_all(&memory).expect("a directory");
    let at = memory.display().to_string();
    holder.run(&["mount", "-t", "tmpfs", "-o", "mode=755", "none", &at]);
    holder.run(&["cp", "-a", &format!("{}/.", own.display()), &at]);
    for place in ["etc", "usr/local", "var", "srv", "root", "home"] {
        let (upper, work) = (memory.join(place), memory.join("work").join(place));
        holder.run(&["mkdir", "-p", &upper.display().to_string(), &work.display().to_string()]);
        let layers = format!("lowerdir=/{place},upperdir={},workdir={}", upper.display(), work.display());
        let mut mount = holder.command("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &layers, &format!("/{place}")]);
        let done = run_limited(mount, PATIENCE);
        if !done.status.success() {
            return Err(both(&done));
        }
    }
    // Where all machines have the same name for their control groups, they would share them.
    holder.run(&["mount", "-t", "tmpfs", "none", "/sys/fs/cgroup"]);
    Ok(())
}

/// Where svd and svctl are.
fn programs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_svctl")).parent().expect("a directory")
}

/// A service that runs for ever, and says who it is.
pub fn sleeper() -> String {
    script("echo begun on $(hostname); exec sleep 100000", "")
}

/// Each in a thread of its own, to the end of all; a panic of one of them is one here.
fn at_once<F: FnOnce() + Send>(all: impl Iterator<Item = F>) {
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.map(|one| scope.spawn(one)).collect();
        let panics: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().err()).collect();
        if let Some(panic) = panics.into_iter().next() {
            std::panic::resume_unwind(panic);
        }
    });
}

impl Drop for Bed {
    /// The hosts end together; where a test has failed, one by one, as each tells what it knows.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            at_once(self.hosts.drain(..).map(|host| move || drop(host)));
        }
    }
}

impl Bed {
    /// `None`, with the reason printed, where the machine has not what it takes. Every host has sshd, svd, and the service `web`.
    pub fn start(count: usize) -> Option<Bed> {
        Bed::start_with(count, "")
    }

    /// `sshd`: more of each host's sshd_config.
    pub fn start_with(count: usize, sshd: &str) -> Option<Bed> {
        let mut bed = Bed::network(count)?;
        let dir = bed.dir.path().to_path_buf();
        let dir = &dir;
        // They mostly wait.
        at_once(bed.hosts.iter_mut().map(|host| {
            move || {
                host.svd.service("web", &sleeper());
                host.start_sshd(dir, Some(programs()), sshd);
                host.start_svd();
                host.svd.ok(&["start", "web"]);
            }
        }));
        Some(bed)
    }

    /// Hosts as they come from an installation, to which svctl's user can log in as root, and a machine for that user. Whatever is changed in
    /// `/etc`, `/usr/local`, `/var`, `/srv` and in home directories is seen there alone. pip gets its packages from `wheels`.
    pub fn machines(count: usize, wheels: &Path) -> Option<Bed> {
        let mut bed = Bed::network(count)?;
        let dir = bed.dir.path().to_path_buf();
        let names: String = bed.hosts.iter().map(|host| format!("{} {}\n", host.address, host.name)).collect();
        let ssh = dir.join("machines/hub/root").join(".ssh");
        fs::create_dir_all(&ssh).expect("a directory");
        fs::set_permissions(&ssh, Permissions::from_mode(0o700)).expect("its mode");
        let key = fs::read_to_string(bed.path("hostkey.pub")).expect("a key");
        let known: String = bed.hosts.iter().map(|host| format!("{},{} {key}", host.name, host.address)).collect();
        fs::write(ssh.join("known_hosts"), known).expect("writing");
        fs::copy(bed.path("key"), ssh.join("id_ed25519")).expect("copying");
        fs::set_permissions(ssh.join("id_ed25519"), Permissions::from_mode(0o600)).expect("its mode");
        let holders = bed.hosts.iter().map(|host| (host.name.as_str(), &host.holder));
        for (name, holder) in holders.chain([("hub", &bed.hub)]) {
            let own = dir.join("machines").join(name);
            fs::create_dir_all(own.join("etc")).expect("a directory");
            // A tree of control groups would be the whole machine's.
            fs::create_dir_all(own.join("etc/default")).expect("a directory");
            fs::write(own.join("etc/default/svd"), "CONTROL_GROUPS=no\n").expect("writing");
            let pip = format!("[global]\nno-index = true\nfind-links = {}\n", wheels.display());
            fs::write(own.join("etc/pip.conf"), pip).expect("writing");
            fs::write(own.join("etc/hosts"), format!("127.0.0.1 localhost\n{names}")).expect("writing");
            if let Err(why) = own_directories(holder, &own) {
                assert!(std::env::var_os("AIRDOCK_TEST_ALL").is_none(), "overlayfs is needed: {why}");
                eprintln!("SKIPPED, as there is no overlayfs: {why}");
                return None;
            }
        }
        bed.hosts.iter_mut().for_each(|host| host.start_sshd(&dir, None, "Subsystem sftp internal-sftp"));
        Some(bed)
    }

    /// A directory with svctl as people have it: without what only debuggers read.
    pub fn svctl_as_shipped(&self) -> PathBuf {
        let dir = self.path("bin");
        if !dir.exists() {
            fs::create_dir_all(&dir).expect("a directory");
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(dir.join("svctl")).arg(env!("CARGO_BIN_EXE_svctl"));
            if !run_limited(strip, PATIENCE).status.success() {
                fs::copy(env!("CARGO_BIN_EXE_svctl"), dir.join("svctl")).expect("copying");
            }
        }
        dir
    }

    /// A command on the machine of svctl's user; its working directory is `/`.
    pub fn on_the_hub(&self, program: &str) -> Command {
        let mut command = self.hub.command(program);
        command.env_clear().env("HOME", "/root").env("USER", "root").env("LANG", "C.UTF-8");
        let svctl = self.svctl_as_shipped();
        command.env("PATH", format!("{}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", svctl.display()));
        command
    }

    fn network(count: usize) -> Option<Bed> {
        if needs_root() {
            return None;
        }
        for program in ["/usr/sbin/sshd", "/usr/bin/ssh", "/usr/bin/rsync", "/usr/bin/ssh-keygen"] {
            if !Path::new(program).exists() {
                assert!(std::env::var_os("AIRDOCK_TEST_ALL").is_none(), "{program} is needed");
                eprintln!("SKIPPED, as there is no {program}");
                return None;
            }
        }
        let dir = tempfile::Builder::new().prefix("airdock-fleet-").tempdir().expect("a directory");
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).expect("its mode");
        for key in ["hostkey", "key"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", key, "-f"]).arg(dir.path().join(key));
            assert!(run_limited(keygen, PATIENCE).status.success(), "ssh-keygen");
        }
        let hub = Holder::start(&["--net", "--mount", "--uts"]);
        for words in
            ["link set lo up", "link add br0 type bridge", "address add 10.77.255.254/16 dev br0", "link set br0 up"]
        {
            hub.run(&["ip"].into_iter().chain(words.split(' ')).collect::<Vec<_>>());
        }
        let hosts = (0..count).map(|n| Bed::host(&hub, dir.path(), n)).collect();
        let bed = Bed { hosts, hub, dir };
        bed.write_files();
        Some(bed)
    }

    fn host(hub: &Holder, bed: &Path, n: usize) -> Host {
        let (name, address) = (format!("web-{n}"), format!("10.77.{}.{}", n / 200, n % 200 + 1));
        let holder = Holder::start(&["--net", "--mount", "--uts"]);
        let (port, there) = (format!("port{n}"), holder.pid().to_string());
        hub.run(&["ip", "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &there]);
        hub.run(&["ip", "link", "set", &port, "master", "br0", "up"]);
        holder.run(&["hostname", &name]);
        holder.run(&["ip", "link", "set", "lo", "up"]);
        holder.run(&["ip", "address", "add", &format!("{address}/16"), "dev", "eth0"]);
        holder.run(&["ip", "link", "set", "eth0", "up"]);
        // sshd wants a directory of its own, and the host has a user more than this machine.
        holder.run(&["mount", "-t", "tmpfs", "none", "/run"]);
        holder.run(&["mkdir", "-p", "/run/sshd"]);
        let passwd = bed.join("passwd");
        if !passwd.exists() {
            let known = fs::read_to_string("/etc/passwd").expect("passwd");
            fs::write(&passwd, format!("{known}stranger:x:{STRANGER}:{STRANGER}::/:/bin/sh\n")).expect("writing");
        }
        holder.run(&["mount", "--bind", passwd.to_str().expect("a path"), "/etc/passwd"]);
        Host { name, address, svd: Svd::new(), sshd: None, holder }
    }

    /// ssh's configuration, and `fleet.toml` with all hosts.
    fn write_files(&self) {
        let host = self.path("hostkey.pub");
        let key = fs::read_to_string(host).expect("a key");
        let known: String = self.hosts.iter().map(|host| format!("{} {key}", host.address)).collect();
        fs::write(self.path("known_hosts"), known).expect("writing");
        let ssh = format!(
            "IdentityFile {key}\nIdentitiesOnly yes\nUserKnownHostsFile {known}\nGlobalKnownHostsFile /dev/null\n\
             StrictHostKeyChecking yes\nUser root\n",
            key = self.path("key").display(),
            known = self.path("known_hosts").display(),
        );
        fs::write(self.path("ssh_config"), ssh).expect("writing");
        self.fleet("");
    }

    /// Writes `fleet.toml`: all hosts, and `more`.
    pub fn fleet(&self, more: &str) {
        let text = self.fleet_text(&format!("connect_timeout = \"30s\"\n{more}"));
        fs::write(self.path("fleet.toml"), text).expect("writing");
    }

    /// A fleet file in the bed's directory.
    pub fn fleet_text(&self, more: &str) -> String {
        let names: Vec<&str> = self.hosts.iter().map(|host| host.name.as_str()).collect();
        let mut text = format!("hosts = {names:?}\nssh_config = \"ssh_config\"\n{more}\n");
        for host in &self.hosts {
            let socket = host.svd.socket();
            text += &format!("[host.{}]\nssh = {:?}\nsocket = {:?}\n", host.name, host.address, socket);
        }
        text
    }

    /// Connections from svctl's place to this port of hosts. (proc_net_tcp in the kernel's documentation.)
    pub fn connections(&self, port: u16) -> usize {
        let text = fs::read_to_string(format!("/proc/{}/net/tcp", self.hub.pid())).expect("a table");
        let (to, established) = (format!(":{port:04X}"), "01");
        let rows = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        // The kernel may tell one twice, as others come and go.
        let own = rows.filter(|row| row[2].ends_with(&to) && row[3] == established).map(|row| row[1]);
        own.collect::<std::collections::BTreeSet<_>>().len()
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Runs in a thread where svctl goes out.
    pub fn inside(&self, run: impl FnOnce() + Send) {
        let network = File::open(format!("/proc/{}/ns/net", self.hub.pid())).expect("a namespace");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).expect("setns");
                run();
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// A command where svctl goes out, in the directory of the fleet file.
    pub fn command(&self, program: &str) -> Command {
        // Without the mounts, which would lead away from the working directory.
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.hub.pid().to_string(), "--net", "--"]).arg(program);
        command.current_dir(self.dir.path()).env_remove("AIRDOCK_SOCKET").env_remove("XDG_RUNTIME_DIR");
        // What it leaves is seen.
        fs::create_dir_all(self.path("tmp")).expect("a directory");
        command.env("TMPDIR", self.path("tmp")).env("XDG_CACHE_HOME", self.path("cache"));
        command
    }

    pub fn svctl_command(&self, words: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_svctl"));
        command.args(words);
        command
    }

    /// svctl to its end, which leaves nothing behind.
    #[track_caller]
    pub fn svctl(&self, words: &[&str]) -> Output {
        let output = run_limited(self.svctl_command(words), COMMAND);
        self.assert_clean();
        output
    }

    /// No directory of svctl's is left, and no ssh of it runs.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.assert_clean_in(&self.path("tmp"));
    }

    /// The same of an svctl whose temporary files are there.
    #[track_caller]
    pub fn assert_clean_in(&self, dir: &Path) {
        let left: Vec<_> = fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry").path()).collect();
        assert!(left.is_empty(), "svctl has left {left:?}");
        let needle = format!("{}/", dir.display());
        let of_it = |pid: &i32| {
            let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(&needle)
        };
        wait_until("no ssh of svctl's runs", PATIENCE, || !all_pids().iter().any(of_it));
    }

    /// Exit code, stdout and stderr.
    #[track_caller]
    pub fn told(&self, words: &[&str]) -> (i32, String, String) {
        let output = self.svctl(words);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// svctl, which must succeed: its stdout.
    #[track_caller]
    pub fn ok(&self, words: &[&str]) -> String {
        let (code, out, err) = self.told(words);
        assert_eq!(code, 0, "svctl {words:?}:\n{out}{err}");
        out
    }

    /// The document of `--json`, whatever the exit code is.
    #[track_caller]
    pub fn json(&self, words: &[&str]) -> Value {
        let (_, out, err) = self.told(&[&["--json"], words].concat());
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("svctl --json {words:?}: {e}\n{out}{err}"))
    }
}

/// Waits for a line of a program's output that fits.
#[track_caller]
pub fn wait_line(lines: &std::sync::mpsc::Receiver<String>, what: &str, fits: impl Fn(&str) -> bool) -> String {
    let mut seen = Vec::new();
    let end = std::time::Instant::now() + PATIENCE;
    wait_for(what, PATIENCE, || {
        loop {
            let left = end.saturating_duration_since(std::time::Instant::now());
            match lines.recv_timeout(left.min(Duration::from_millis(100))) {
                Ok(line) if fits(&line) => return Some(line),
                Ok(line) => seen.push(line),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => panic!("{what}: it ended; seen {seen:#?}"),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) if left.is_zero() => panic!("{what}: seen {seen:#?}"),
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => return None,
            }
        }
    })
}
