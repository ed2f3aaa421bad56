//! Other hosts, by the system's `ssh`: with the user's configuration, agent, known hosts and jump hosts, and without a question.
//!
//! Of each host there is one connection, the *master*, over which all else goes as sessions of its own (`ControlMaster` in
//! ssh_config(5)). The master's own session is a `cat`: its first echo says that the host lets us in and runs commands, and it ends
//! when its input does, however svctl ends. A connection to svd is `svctl relay` there, which says [`GREETING`] first, so that
//! what a login script prints is not taken for svd's answer. Where a server allows fewer sessions a connection than are wanted
//! (`MaxSessions`), ssh makes another connection by itself.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::super::inventory::Host;
use super::super::scratch::{self, Scratch};
use super::program::{self, Ended, Program, Ran};
use super::{CopyError, Transport, Under, Upload, away};
use crate::api::client::{ClientError, DEFAULT_SOCKET, Io, Stage};

/// What `svctl relay` says when it is connected with svd.
pub const GREETING: &str = "airdock relay 1";

/// For a connection to be made unless the fleet file says something else; once more for the log in.
pub const CONNECT: Duration = Duration::from_secs(10);
/// For a session on a connection that is there.
const SESSION: Duration = Duration::from_secs(20);
/// For a process whose work is over to end.
const AFTER: Duration = Duration::from_secs(2);
/// Attempts where the server turns connections away because they come too fast, and the first pause between two.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Bytes that a host may print before what we wait for.
const CHATTER: usize = 64 * 1024;
/// A path for a socket has 107 bytes (unix(7)), and ssh appends 17 for a moment.
const LONGEST_PATH: usize = 80;
/// Seconds that an upload may stand still, and how long it may take in all.
const STALL: &str = "--timeout=60";
const UPLOAD: Duration = Duration::from_secs(60 * 60);

/// What all connections have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Instead of the user's own configuration of ssh.
    pub config: Option<PathBuf>,
    pub connect_timeout: Duration,
    /// Connections that are made at once.
    pub parallel: usize,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { config: None, connect_timeout: CONNECT, parallel: 20 }
    }
}

/// See the module. Dropped, it ends its connections.
pub struct Ssh {
    settings: Settings,
    /// With the masters' sockets; nobody else's.
    directory: Mutex<Option<Scratch>>,
    hosts: Mutex<BTreeMap<Box<str>, Arc<Slot>>>,
    connects: Semaphore,
    masters: AtomicU32,
    closed: AtomicBool,
}

/// A host's place for a master: whoever holds the lock makes it.
type Slot = tokio::sync::Mutex<Option<Master>>;

struct Master {
    program: Program,
    /// It ends when this does.
    _hold: std::os::unix::net::UnixStream,
    control: PathBuf,
}

/// Why there is no master.
enum Refused {
    /// ssh's end; or what the host printed instead of an echo.
    Ended(Ended, String),
    Local(io::Error),
}

impl Ssh {
    pub fn new(settings: Settings) -> Ssh {
        let connects = Semaphore::new(settings.parallel.clamp(1, Semaphore::MAX_PERMITS));
        Ssh {
            settings,
            directory: Mutex::default(),
            hosts: Mutex::default(),
            connects,
            masters: AtomicU32::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Ends all connections, and removes what they needed. Whatever goes over them ends as well.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let hosts = std::mem::take(&mut *self.hosts.lock().unwrap_or_else(PoisonError::into_inner));
        // One that is being made ends by itself: its input closes.
        let masters = hosts.values().filter_map(|slot| slot.try_lock().ok()?.take());
        let programs: Vec<Program> = masters.map(|master| master.program).collect();
        let until = Instant::now() + AFTER;
        for program in programs {
            program.end_until(until);
        }
        drop(self.directory.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// The control socket of the host's master, which is made if there is none, or none any more.
    async fn control(&self, host: &Host) -> Result<PathBuf, ClientError> {
        let slot = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(hosts.entry(host.name.clone()).or_default())
        };
        let mut place = slot.lock().await;
        if self.closed.load(Ordering::SeqCst) {
            return Err(away(host, Stage::Host, "svctl is about to end"));
        }
        if let Some(master) = place.as_mut()
            && master.program.is_running()
        {
            return Ok(master.control.clone());
        }
        Ok(place.insert(self.connect_master(host).await?).control.clone())
    }

    async fn connect_master(&self, host: &Host) -> Result<Master, ClientError> {
        // It is never closed.
        let _permit = self.connects.acquire().await;
        let (mut pause, mut attempt) = (FIRST_PAUSE, 1);
        loop {
            match self.try_master(host).await {
                Ok(master) => return Ok(master),
                Err(Refused::Local(source)) => return Err(cannot_start(source)),
                Err(Refused::Ended(ended, _)) if attempt < TRIES && came_too_fast(&ended) => {
                    sleep(pause + pause.mul_f64(fastrand::f64())).await;
                    pause *= 2;
                    attempt += 1;
                }
                Err(Refused::Ended(ended, printed)) => {
                    let said = match (ended.said.is_empty(), printed.is_empty()) {
                        (true, false) => printed,
                        _ => ended.last_line(),
                    };
                    return Err(away(host, Stage::Host, &said));
                }
            }
        }
    }

    async fn try_master(&self, host: &Host) -> Result<Master, Refused> {
        let number = self.masters.fetch_add(1, Ordering::Relaxed);
        let control = self.directory().map_err(Refused::Local)?.join(number.to_string());
        let mut command = self.command(host, &control, true);
        command.arg("cat");
        let (program, mut stream) = Program::start(command).map_err(Refused::Local)?;
        let word = format!("airdock-{:016x}", fastrand::u64(..));
        let limit = self.settings.connect_timeout * 2;
        let seen = async {
            // That it has ended already is seen when its answer is read.
            let _ = stream.write_all(format!("{word}\n").as_bytes()).await;
            wait_for_line(&mut stream, &word).await
        };
        match timeout(limit, seen).await {
            Ok(Ok(())) => {
                let hold = stream.into_std().map_err(Refused::Local)?;
                Ok(Master { program, _hold: hold, control })
            }
            Ok(Err(printed)) => {
                drop(stream);
                Err(Refused::Ended(program.end(AFTER).await, printed))
            }
            Err(_) => {
                let ended = program.end(Duration::ZERO).await;
                let late = format!("no answer within {} s", limit.as_secs());
                let said = if ended.said.is_empty() { late } else { ended.said };
                Err(Refused::Ended(Ended { status: None, said }, String::new()))
            }
        }
    }

    /// A directory for sockets that nobody else can enter.
    fn directory(&self) -> io::Result<PathBuf> {
        let mut directory = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        if directory.is_none() {
            *directory = Some(private_directory()?);
        }
        directory.as_ref().map(|made| made.path().to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// ssh to the host, up to the command that runs there.
    pub(super) fn command(&self, host: &Host, control: &Path, is_master: bool) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.options(host, control, is_master)).arg("--").arg(host.destination());
        command
    }

    fn options(&self, host: &Host, control: &Path, is_master: bool) -> Vec<String> {
        let mut options = Vec::new();
        if let Some(config) = &self.settings.config {
            options.extend(["-F".to_owned(), config.display().to_string()]);
        }
        // A % begins a placeholder of ssh's.
        options.extend(["-S".to_owned(), control.display().to_string().replace('%', "%%")]);
        let seconds = self.settings.connect_timeout.as_secs().max(1);
        let settings = [
            format!("ControlMaster={}", if is_master { "yes" } else { "no" }),
            "ControlPersist=no".to_owned(),
            "BatchMode=yes".to_owned(),
            format!("ConnectTimeout={seconds}"),
            // Without a sign of life for 15 s a connection is given up: ssh asks after 5 s and 10 s, and ends at the next turn.
            "ServerAliveInterval=5".to_owned(),
            "ServerAliveCountMax=2".to_owned(),
            "ForwardAgent=no".to_owned(),
            "ForwardX11=no".to_owned(),
            "ClearAllForwardings=yes".to_owned(),
            "PermitLocalCommand=no".to_owned(),
            "RemoteCommand=none".to_owned(),
            "RequestTTY=no".to_owned(),
            "LogLevel=ERROR".to_owned(),
        ];
        options.extend(settings.into_iter().flat_map(|setting| ["-o".to_owned(), setting]));
        if let Some(user) = &host.user {
            options.extend(["-l".to_owned(), user.to_string()]);
        }
        if let Some(port) = host.port {
            options.extend(["-p".to_owned(), port.to_string()]);
        }
        options
    }

    async fn open(&self, host: &Host) -> Result<Box<dyn Io>, ClientError> {
        let control = self.control(host).await?;
        let mut command = self.command(host, &control, false);
        let socket = host.socket.as_deref().unwrap_or(Path::new(DEFAULT_SOCKET)).display().to_string();
        let svctl = host.svctl.as_deref().unwrap_or("svctl");
        command.arg(format!("{} --socket {} relay", for_shell(svctl), for_shell(&socket)));
        let (program, mut stream) = Program::start(command).map_err(cannot_start)?;
        match timeout(SESSION, wait_for_line(&mut stream, GREETING)).await {
            Ok(Ok(())) => Ok(Box::new(Relayed { stream, _program: program })),
            Ok(Err(_)) => {
                drop(stream);
                Err(no_relay(host, &program.end(AFTER).await))
            }
            Err(_) => Err(away(host, Stage::Host, &format!("no answer within {} s", SESSION.as_secs()))),
        }
    }

    /// A command of the shell that the host gives to whoever logs in, to its end.
    ///
    /// # Errors
    /// The host cannot be reached. What the command itself says of its end is in [`Ran`].
    pub async fn run(&self, host: &Host, command: &str, input: &[u8], limit: Duration) -> Result<Ran, ClientError> {
        let control = self.control(host).await?;
        let mut ssh = self.command(host, &control, false);
        ssh.arg(command);
        let ran = program::fed(ssh, input, limit).await.map_err(cannot_start)?;
        match ran.code {
            Some(255) => Err(away(host, Stage::Host, &ran.last_line())),
            None => Err(away(host, Stage::Host, &format!("no end within {} s", limit.as_secs()))),
            Some(_) => Ok(ran),
        }
    }

    async fn upload(&self, host: &Host, upload: &Upload) -> Result<(), CopyError> {
        upload.check(host)?;
        let gone = |why: String| CopyError { away: true, ..upload.error(host, why) };
        let control =
            self.control(host).await.map_err(|error| gone(error.to_string().trim_end_matches('.').to_owned()))?;
        let mut shell = vec!["ssh".to_owned()];
        shell.extend(self.options(host, &control, false));
        let shell: Vec<String> = shell.iter().map(|word| for_rsync(word)).collect();
        let mut command = Command::new("rsync");
        // What is the same in an earlier release is found by its content: each export has new times.
        command.args(["-rlpt", "--checksum", "--delete", "-s", STALL, "-e"]).arg(shell.join(" "));
        command.args(upload.like.iter().map(|dir| format!("--copy-dest={dir}")));
        let mut from = upload.from.as_os_str().to_owned();
        from.push("/");
        command.arg("--").arg(from).arg(format!("{}:{}/", bracketed(host.destination()), upload.to));
        let (program, stream) = Program::start(command).map_err(|error| {
            upload.error(host, format!("rsync cannot be started here: {}", crate::sys::io_text(&error)))
        })?;
        let ended = tokio::select! {
            ended = program.end(UPLOAD) => ended,
            never = no_end(stream) => match never {},
        };
        match ended.code() {
            Some(0) => Ok(()),
            // Of ssh, and timeouts of rsync's own; see EXIT VALUES in rsync(1).
            Some(255 | 30 | 35) | None => Err(gone(cause(&ended))),
            Some(127) => Err(upload.error(host, "there is no rsync on the host")),
            _ => Err(upload.error(host, cause(&ended))),
        }
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        self.close();
    }
}

impl Transport for Ssh {
    fn connect<'a>(&'a self, host: &'a Host) -> Under<'a, Result<Box<dyn Io>, ClientError>> {
        Box::pin(self.open(host))
    }

    fn copy<'a>(&'a self, host: &'a Host, upload: &'a Upload) -> Under<'a, Result<(), CopyError>> {
        Box::pin(self.upload(host, upload))
    }

    fn is_dear(&self, _: &Host) -> bool {
        true
    }
}

fn cannot_start(source: io::Error) -> ClientError {
    ClientError::Local { message: "ssh cannot be started here", source }
}

/// `MaxStartups` of sshd_config(5) drops connections at random, before or in the midst of the handshake.
pub(super) fn came_too_fast(ended: &Ended) -> bool {
    let dropped = ["Connection reset", "kex_exchange_identification", "Connection closed by remote host"];
    ended.code() == Some(255) && dropped.iter().any(|words| ended.said.contains(words))
}

/// What the end of `svctl relay`, or of the shell that was to run it, means.
pub(super) fn no_relay(host: &Host, ended: &Ended) -> ClientError {
    let told = ended.said.lines().find_map(|line| line.strip_prefix("svctl: ")).map(str::to_owned);
    let told = told.unwrap_or_else(|| ended.last_line());
    match ended.code() {
        Some(126 | 127) => away(host, Stage::Svctl, &told),
        Some(2) => away(host, Stage::Svctl, "the one there is older, and knows no relay"),
        Some(5) => away(host, Stage::Permission, &told),
        Some(1 | 4) => away(host, Stage::Svd, &told),
        _ => away(host, Stage::Host, &told),
    }
}

/// The line that says why rsync failed, not the one that sums it up.
pub(super) fn cause(ended: &Ended) -> String {
    let sums_up = |line: &&str| line.starts_with("rsync error:") || line.contains("connection unexpectedly closed");
    let first = ended.said.lines().map(str::trim).find(|line| !line.is_empty() && !sums_up(line));
    first.map_or_else(|| ended.last_line(), str::to_owned)
}

/// Takes whatever comes.
async fn no_end(mut stream: UnixStream) -> Infallible {
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    std::future::pending().await
}

/// Reads until there is a line `wanted`.
///
/// # Errors
/// What came last instead, when nothing more comes, or too much.
pub(super) async fn wait_for_line(stream: &mut UnixStream, wanted: &str) -> Result<(), String> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        bytes.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&bytes);
        if text.split_inclusive('\n').any(|line| line.ends_with('\n') && line.trim_end() == wanted) {
            return Ok(());
        }
        if read == 0 || bytes.len() > CHATTER {
            return Err(text.lines().rev().map(str::trim).find(|l| !l.is_empty()).unwrap_or_default().to_owned());
        }
    }
}

/// Where sockets are put, for this user alone.
fn private_directory() -> io::Result<Scratch> {
    let runtime =
        std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute() && dir.is_dir());
    let base = runtime.unwrap_or_else(std::env::temp_dir);
    let name = scratch::NAME + "//4294967295".len();
    let base = if base.as_os_str().len() <= LONGEST_PATH - name { base } else { "/tmp".into() };
    Scratch::new(&base)
}

/// One word for a shell (the Bourne shell's and others).
pub(in super::super) fn for_shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// One word of what rsync's `-e` takes apart: quotes as in a shell, a doubled one stands for itself.
pub(super) fn for_rsync(word: &str) -> String {
    match word.contains([' ', '\'', '"']) {
        true => format!("'{}'", word.replace('\'', "''")),
        false => word.to_owned(),
    }
}

/// An IPv6 address as rsync wants it.
pub(super) fn bracketed(destination: &str) -> String {
    let (user, name) = destination.rsplit_once('@').map_or(("", destination), |(user, name)| (user, name));
    let name = if name.contains(':') && !name.starts_with('[') { format!("[{name}]") } else { name.to_owned() };
    if user.is_empty() { name } else { format!("{user}@{name}") }
}

/// A connection to svd by way of ssh, which ends with it.
struct Relayed {
    stream: UnixStream,
    _program: Program,
}

impl AsyncRead for Relayed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Relayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
