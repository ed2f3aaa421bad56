//! The temporary directory of the demo: releases, configuration, and the svd that runs there.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::failure;
use super::server::Server;
use crate::cli::exit::CliError;

/// The name of the demo's service.
pub const SERVICE: &str = "web";

/// svd's start, and its end with the service's grace time and more.
const START_LIMIT: Duration = Duration::from_secs(15);
const END_LIMIT: Duration = Duration::from_secs(20);
/// A UNIX socket's path has 107 bytes (`unix(7)`); svd's own names need some of them.
const LONGEST_TEMPORARY: usize = 60;

const APP: &str = include_str!("app.py");
const BROKEN: &str = include_str!("broken.py");

/// Removed when dropped, after svd has ended.
pub struct Site {
    dir: PathBuf,
    keep: bool,
    address: SocketAddr,
    svd: Option<Child>,
}

impl Site {
    pub fn create(keep: bool) -> Result<Site, CliError> {
        let mut base = std::env::temp_dir();
        if base.as_os_str().len() > LONGEST_TEMPORARY {
            base = "/tmp".into();
        }
        let dir = base.join(format!("airdock-demo-{:08x}", fastrand::u32(..)));
        DirBuilder::new().mode(0o700).create(&dir).map_err(|e| cannot("make", &dir, &e))?;
        let mut site = Site { dir, keep, address: (Ipv4Addr::LOCALHOST, 0).into(), svd: None };
        // Free now, and hardly anybody's before svd binds it.
        let free = TcpListener::bind(site.address).and_then(|l| l.local_addr());
        site.address = free.map_err(|e| failure(format!("There is no free port on 127.0.0.1: {e}.")))?;
        Ok(site)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the service listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/svd.sock")
    }

    /// Writes releases and configuration.
    pub fn furnish(&self, server: &Server) -> Result<(), CliError> {
        let root = self.dir.join("root");
        for (name, text) in [("1", APP), ("2", APP), ("broken", BROKEN)] {
            let release = root.join("releases").join(name);
            fs::create_dir_all(&release).map_err(|e| cannot("make", &release, &e))?;
            self.write(&release.join("app.py"), &text.replace("RELEASE = None", &format!("RELEASE = {name:?}")))?;
            if let Some(program) = server.program() {
                self.write(&release.join("server.py"), program)?;
            }
        }
        self.switch("1")?;
        let conf_d = self.dir.join("conf.d");
        fs::create_dir_all(&conf_d).map_err(|e| cannot("make", &conf_d, &e))?;
        let file = conf_d.join(format!("{SERVICE}.toml"));
        self.write(&file, &server.configuration(&root, self.address))
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), CliError> {
        fs::write(path, text).map_err(|e| cannot("write", path, &e))
    }

    /// Lets `current` name another release, at one moment.
    pub fn switch(&self, release: &str) -> Result<(), CliError> {
        let current = self.dir.join("root/current");
        let new = self.dir.join("root/.current");
        symlink(Path::new("releases").join(release), &new)
            .and_then(|()| fs::rename(&new, &current))
            .map_err(|e| cannot("change", &current, &e))
    }

    /// Starts svd and waits until it can be reached. To be called on the main thread: svd ends with the thread that
    /// started it.
    pub fn start_svd(&mut self) -> Result<(), CliError> {
        let log = self.dir.join("svd.log");
        let file = fs::File::create(&log).map_err(|e| cannot("write", &log, &e))?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("svd").arg("-c").arg(&self.dir);
        for (option, name) in [("--run-dir", "run"), ("--state-dir", "state"), ("--log-dir", "log")] {
            command.arg(option).arg(self.dir.join(name));
        }
        // This svd lives and dies with the demo.
        command.arg("--no-guardian");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file).current_dir("/");
        command.env_remove("NOTIFY_SOCKET");
        // Ctrl-C is for the demo, which then ends svd in order.
        command.process_group(0);
        crate::sys::process::end_with_parent(&mut command, Signal::SIGTERM);
        self.svd = Some(command.spawn().map_err(|e| failure(format!("svd cannot be started: {e}.")))?);
        let give_up = Instant::now() + START_LIMIT;
        // The file is there a moment before anybody listens.
        while UnixStream::connect(self.socket()).is_err() {
            if let Some(status) = self.ended() {
                return Err(failure(format!("svd ended at once ({status}): {}", said(&log))));
            }
            if Instant::now() > give_up {
                return Err(failure(format!("svd did not come up within {START_LIMIT:?}: {}", said(&log))));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.svd.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// Ends svd, which ends the service first.
    pub fn end_svd(&mut self) -> Result<(), CliError> {
        let Some(mut child) = self.svd.take() else { return Ok(()) };
        let pid = Pid::from_raw(child.id().cast_signed());
        let give_up = Instant::now() + END_LIMIT;
        // It is our child and not waited for, so that the pid is its own.
        if matches!(child.try_wait(), Ok(None)) {
            let _ = kill(pid, Signal::SIGTERM);
        }
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() > give_up {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failure(format!("svd (pid {pid}) did not end within {END_LIMIT:?} and was killed.")));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // Both are best effort: what led here is told already.
        let _ = self.end_svd();
        if !self.keep {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> CliError {
    failure(format!("The demo cannot {what} {}: {error}.", path.display()))
}

fn said(log: &Path) -> String {
    match fs::read_to_string(log) {
        Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => "it said nothing.".to_owned(),
    }
}
