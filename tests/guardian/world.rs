//! A guardian with its svd, as a test sees them, and the end of both.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use airdock::sys::process::{ExitStatus, PidFd, descendants};
use nix::sys::signal::Signal;

use crate::support::{PATIENCE, wait_for};
use crate::svd::{CONTROL, FORGET, Fifo, Hello};

pub struct World {
    directory: tempfile::TempDir,
    listener: UnixListener,
    pub guardian: PidFd,
}

impl World {
    pub fn new() -> World {
        World::below(&[])
    }

    /// Started by this program with its arguments (`env` and the like, in whose place it comes).
    #[expect(clippy::zombie_processes, reason = "reaped by its pidfd")]
    pub fn below(starter: &[&str]) -> World {
        let directory = tempfile::tempdir().expect("a directory");
        let control = directory.path().join("control");
        let listener = UnixListener::bind(&control).expect("a socket");
        listener.set_nonblocking(true).expect("an option");
        let program = std::env::current_exe().expect("a path").into_os_string();
        let mut words = starter.iter().map(std::ffi::OsString::from).chain([program]);
        let mut command = Command::new(words.next().expect("one at least"));
        command
            .args(words)
            .args(["--an", "argument"])
            .env(CONTROL, &control)
            .env(FORGET, "")
            .current_dir(directory.path());
        let child = command.stdin(Stdio::null()).spawn().expect("the program");
        let guardian = PidFd::open(child.id() as i32).expect("our child");
        World { directory, listener, guardian }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// A new file there.
    pub fn file(&self, name: &str) -> String {
        let path = self.path().join(name);
        std::fs::write(&path, "").expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    }

    pub fn fifo(&self, name: &str) -> Fifo {
        Fifo::new(self.path(), name)
    }

    /// The next svd.
    pub fn svd(&self) -> Svd {
        let stream = wait_for("svd comes up", PATIENCE, || self.listener.accept().ok()).0;
        stream.set_nonblocking(false).expect("an option");
        stream.set_read_timeout(Some(PATIENCE)).expect("an option");
        let mut stream = BufReader::new(stream);
        let hello: Hello = serde_json::from_str(&line(&mut stream)).expect("json");
        let process = PidFd::open(hello.pid).expect("it lives");
        Svd { stream, process, hello }
    }

    pub fn signal(&self, signal: Signal) {
        assert_eq!(self.guardian.signal(signal as i32), Ok(true));
    }

    /// The guardian has ended by itself; nothing is left.
    pub fn ended(self) -> ExitStatus {
        let status = ended(&self.guardian);
        let left = || descendants(std::process::id() as i32);
        wait_for("nothing is left", PATIENCE, || {
            // What the guardian leaves comes to us.
            while let Some(pid) = airdock::sys::process::peek_any() {
                let _ = airdock::sys::process::reap(pid);
            }
            left().is_empty().then_some(())
        });
        status
    }
}

pub fn ended(process: &PidFd) -> ExitStatus {
    wait_for("the process ends", PATIENCE, || process.try_wait().expect("our child"))
}

fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).expect("svd answers in time");
    assert!(line.ends_with('\n'), "svd has died: {line:?}");
    line.trim_end().to_owned()
}

/// One life of svd.
pub struct Svd {
    stream: BufReader<UnixStream>,
    process: PidFd,
    pub hello: Hello,
}

impl Svd {
    pub fn tell(&mut self, command: &str) -> String {
        self.begin(command);
        line(&mut self.stream)
    }

    /// Does not wait for the answer.
    pub fn begin(&mut self, command: &str) {
        self.stream.get_mut().write_all(format!("{command}\n").as_bytes()).expect("svd listens");
    }

    pub fn ok(&mut self, command: &str) {
        assert_eq!(self.tell(command), "ok", "{command}");
    }

    pub fn exits(&mut self) -> Vec<airdock::daemon::guardian::Ended> {
        serde_json::from_str(&self.tell("exits")).expect("json")
    }

    pub fn kill(self) {
        assert_eq!(self.process.signal(libc::SIGKILL), Ok(true), "it lives");
    }

    /// Ends in order; the guardian follows with this code.
    pub fn end(mut self, code: i32) {
        self.begin(&format!("end {code}"));
    }
}

/// Ends whatever a test left.
pub fn clean() -> Vec<i32> {
    let mut found = Vec::new();
    let end = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        while let Some(pid) = airdock::sys::process::peek_any() {
            let _ = airdock::sys::process::reap(pid);
        }
        let left = descendants(std::process::id() as i32);
        if left.is_empty() || std::time::Instant::now() > end {
            return found;
        }
        for pid in left {
            let Ok(process) = PidFd::open(pid) else { continue };
            // Again, now that it cannot be confused any more.
            if descendants(std::process::id() as i32).contains(&pid) {
                let _ = process.signal(libc::SIGKILL);
            }
            if !found.contains(&pid) {
                found.push(pid);
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
