//! The part of svd: it has a guardian, and does what the test tells it over a UNIX socket, a line each.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use airdock::daemon::guardian::{self, Client, Ended, Kept, Options};
use airdock::sys::poll::Signals;
use airdock::sys::process::ExitStatus;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};

/// Where the test listens; there only in this part.
pub const CONTROL: &str = "GUARDIAN_TEST_CONTROL";
/// Only for the first one.
pub const FORGET: &str = "GUARDIAN_TEST_FORGET";
const OPTIONS: Options = Options { forget: &[FORGET] };
const PATIENCE: Duration = Duration::from_secs(30);

/// What it says first.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    pub pid: i32,
    pub parent: i32,
    pub comm: String,
    pub arguments: Vec<String>,
    /// By name, what tells files apart.
    pub kept: BTreeMap<String, u64>,
    pub exits: Vec<Ended>,
    pub fallback: Option<String>,
    pub deaths: u32,
    pub last_death: Option<ExitStatus>,
    /// What it found in its environment.
    pub forget: bool,
    pub environment: Vec<String>,
    pub open_files: u64,
    /// `SigBlk` of `/proc/self/status` before it blocks any itself.
    pub blocked: String,
    pub directory: PathBuf,
}

pub fn run(control: PathBuf) -> ! {
    guardian::resume(OPTIONS);
    let dies = control.with_file_name("dies");
    let starts = control.with_file_name("starts");
    let mut client = guardian::start(OPTIONS).expect("a guardian");
    if dies.exists() {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(starts).expect("a file");
        file.write_all(format!("{}\n", airdock::sys::monotonic_micros()).as_bytes()).expect("written");
        std::process::exit(3);
    }
    airdock::sys::spawn::OpenFiles::raise().expect("a limit");
    let kept = client.receive_all(PATIENCE).expect("everything");
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let blocked = status.lines().find_map(|l| l.strip_prefix("SigBlk:")).expect("a mask").trim().to_owned();
    let signals = Signals::block().expect("a signalfd");
    let stream = UnixStream::connect(&control).expect("the test");
    let mut svd = Svd { client, signals, kept, stream };
    svd.hello(blocked);
    let lines = BufReader::new(svd.stream.try_clone().expect("a copy")).lines();
    for line in lines {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split(' ').collect();
        let answer = svd.obey(&words);
        svd.say(&answer);
    }
    // The test has given up.
    svd.client.end(99).expect("told");
    std::process::exit(99)
}

struct Svd {
    client: Client,
    signals: Signals,
    kept: Kept,
    stream: UnixStream,
}

fn inode(fd: impl AsFd) -> u64 {
    nix::sys::stat::fstat(fd).expect("stat").st_ino
}

impl Svd {
    fn say(&mut self, text: &str) {
        self.stream.write_all(format!("{text}\n").as_bytes()).expect("the test listens");
    }

    fn hello(&mut self, blocked: String) {
        let kept = &mut self.kept;
        let of_guardian = |name: &String| name.starts_with("AIRDOCK_GUARD");
        let hello = Hello {
            pid: std::process::id() as i32,
            parent: self.client.guardian(),
            comm: std::fs::read_to_string("/proc/self/comm").expect("comm").trim().to_owned(),
            arguments: std::env::args().collect(),
            kept: kept.descriptors.iter().map(|(name, fd)| (name.to_string(), inode(fd))).collect(),
            exits: std::mem::take(&mut kept.exits),
            fallback: kept.fallback.take(),
            deaths: kept.deaths,
            last_death: kept.last_death,
            forget: std::env::var_os(FORGET).is_some(),
            environment: std::env::vars().map(|(name, _)| name).filter(of_guardian).collect(),
            open_files: self.client.open_files(),
            blocked,
            directory: std::env::current_dir().expect("a directory"),
        };
        self.say(&serde_json::to_string(&hello).expect("json"));
    }

    fn obey(&mut self, words: &[&str]) -> String {
        match *words {
            ["store", name, path] => {
                let file = std::fs::File::open(path).expect("a file");
                self.client.store(name, file.as_fd()).expect("stored");
                self.kept.descriptors.push((name.into(), file.into()));
            }
            ["many", count] => {
                for i in 1..=count.parse().expect("a number") {
                    let event = nix::sys::eventfd::EventFd::from_value(i).expect("a descriptor");
                    self.client.store(&format!("event-{i}"), event.as_fd()).expect("stored");
                }
                while self.client.wants_write() {
                    wait(self.client.as_fd(), PollFlags::POLLOUT);
                    self.client.flush().expect("flushed");
                }
            }
            ["words", count] => {
                for _ in 0..count.parse().expect("a number") {
                    self.client.remove("never-there").expect("sent");
                }
                assert!(!self.client.wants_write(), "the socket has room for so many");
            }
            ["sum"] => return self.sum().to_string(),
            ["listen", name] => {
                let listener: OwnedFd = TcpListener::bind("127.0.0.1:0").expect("a port").into();
                self.client.store(name, listener.as_fd()).expect("stored");
                return self.cookie(&listener);
            }
            ["cookie", name] => {
                let found = self.kept.descriptors.iter().find(|(n, _)| **n == *name).expect("kept");
                return self.cookie(&found.1);
            }
            ["remove", name] => self.client.remove(name).expect("removed"),
            ["ready"] => self.client.ready().expect("ready"),
            ["acknowledge"] => self.client.acknowledge().expect("acknowledged"),
            ["executable", path] => {
                self.client.executable(std::fs::File::open(path).expect("a file").as_fd()).expect("told");
            }
            ["end", code] => {
                self.client.end(code.parse().expect("a code")).expect("told");
                std::process::exit(88);
            }
            ["child", fifo, code] => return self.child(fifo, code),
            ["orphans", count] => {
                let script = format!("i=0; while [ $i -lt {count} ]; do (exit 4 & ); i=$((i + 1)); done");
                let status = Command::new("/bin/sh").args(["-c", &script]).status().expect("sh");
                assert!(status.success());
            }
            ["exits"] => return serde_json::to_string(&self.exits()).expect("json"),
            ["signal"] => return self.signal(),
            ["lost"] => {
                while !self.client.is_lost() {
                    wait(self.client.as_fd(), PollFlags::POLLIN);
                    let exits = self.client.exits().expect("exits");
                    self.kept.exits.extend(exits);
                }
            }
            ["become"] => {
                let kept: Vec<_> = self.kept.descriptors.iter().map(|(name, fd)| (&**name, fd.as_fd())).collect();
                let exits = [Ended { pid: 1, start_time: 2, status: ExitStatus::Code(3) }];
                return guardian::become_guardian(OPTIONS, &kept, &exits, self.client.open_files()).to_string();
            }
            ["exec"] => {
                let (name, value) = self.client.across_exec().expect("kept");
                let program = std::env::current_exe().expect("a path");
                let error = Command::new(program).args(std::env::args_os().skip(1)).env(name, value.to_string()).exec();
                return error.to_string();
            }
            _ => panic!("{words:?}"),
        }
        "ok".into()
    }

    /// Of the numbers in the events that came back, if each is the one of its name.
    fn sum(&self) -> u32 {
        let value = |(name, fd): &(Box<str>, OwnedFd)| {
            let mut bytes = [0; 8];
            assert_eq!(nix::unistd::read(fd, &mut bytes), Ok(8));
            let value = u64::from_ne_bytes(bytes) as u32;
            assert_eq!(**name, format!("event-{value}"));
            value
        };
        self.kept.descriptors.iter().map(value).sum()
    }

    fn cookie(&self, fd: &OwnedFd) -> String {
        assert!(airdock::sys::socket::is_listening(fd));
        airdock::sys::socket::cookie(fd).expect("a cookie").to_string()
    }

    /// One that ends with this code as soon as somebody has opened the pipe for writing.
    #[expect(clippy::zombie_processes, reason = "it is to outlive us")]
    fn child(&self, fifo: &str, code: &str) -> String {
        let script = format!("echo started; read line < {fifo}; exit {code}");
        let mut command = Command::new("/bin/sh");
        let (started, theirs) = airdock::sys::fifo::pipe().expect("a pipe");
        command.args(["-c", &script]).stdout(theirs);
        let child = command.spawn().expect("sh");
        drop(command);
        let mut line = String::new();
        BufReader::new(std::fs::File::from(started)).read_line(&mut line).expect("started");
        child.id().to_string()
    }

    fn exits(&mut self) -> Vec<Ended> {
        loop {
            wait(self.client.as_fd(), PollFlags::POLLIN);
            let exits = self.client.exits().expect("exits");
            if !exits.is_empty() || self.client.is_lost() {
                return exits;
            }
        }
    }

    fn signal(&mut self) -> String {
        loop {
            wait(self.signals.as_fd(), PollFlags::POLLIN);
            match self.signals.next().expect("a signal") {
                Some((airdock::sys::poll::Received::Child, _)) | None => {}
                Some((signal, from)) => return format!("{signal:?} {from}"),
            }
        }
    }
}

fn wait(fd: std::os::fd::BorrowedFd<'_>, events: PollFlags) {
    let began = Instant::now();
    let mut fds = [PollFd::new(fd, events)];
    let limit = PollTimeout::try_from(PATIENCE).expect("a time");
    assert_eq!(poll(&mut fds, limit), Ok(1), "waited {:?} in vain", began.elapsed());
}

/// A pipe that a child waits at; dropped after [`Fifo::open`], the child ends.
pub struct Fifo(pub PathBuf);

impl Fifo {
    pub fn new(directory: &Path, name: &str) -> Fifo {
        let path = directory.join(name);
        airdock::sys::fifo::create(&path, None).expect("a pipe");
        Fifo(path)
    }

    /// Lets the child end. Waits until it has begun to read.
    pub fn open(self) {
        let mut file = std::fs::OpenOptions::new().write(true).open(&self.0).expect("somebody reads");
        file.write_all(b"\n").expect("written");
    }
}
