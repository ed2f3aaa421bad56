//! `--daemon`: a second svd in a session of its own; the first one waits until it is up, or says why not.
//!
//! The second one is a fresh program, not a fork of this one: nothing of the shell's is left in it.

use super::args::Args;
use crate::sys::fifo;
use crate::sys::spawn::{Prepared, Source, Spawner, Wire, c_path, c_string};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;
use std::sync::Arc;

/// Tells the second svd where to report; only there for it.
pub const REPORT: &str = "AIRDOCK_REPORT_UP";
/// Its number in the second svd.
const REPORT_FD: i32 = 3;
const UP: &str = "up\n";

/// Starts svd in the background and waits for its word.
pub fn start(args: &Args) -> ExitCode {
    match try_start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("svd: {why}");
            ExitCode::FAILURE
        }
    }
}

fn try_start(args: &Args) -> Result<(), String> {
    let paths = args.paths();
    paths.create()?;
    let log = super::messages::open_own(&paths.own_log());
    let log = log.map_err(|e| format!("cannot open {}: {}", paths.own_log().display(), crate::sys::io_text(&e)))?;
    let (reader, writer) = fifo::pipe().map_err(|e| format!("cannot make a pipe: {}", crate::sys::io_text(&e)))?;
    let program = std::env::current_exe().map_err(|e| format!("cannot find svd's own file: {e}"))?;
    let mut argv = vec!["svd".to_owned()];
    for (name, path) in
        [("-c", &paths.config), ("--run-dir", &paths.run), ("--state-dir", &paths.state), ("--log-dir", &paths.log)]
    {
        argv.push(name.to_owned());
        argv.push(path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()))?.to_owned());
    }
    for (name, given) in [("--verbose", args.verbose), ("--no-guardian", args.no_guardian)] {
        argv.extend(given.then(|| name.to_owned()));
    }
    let argv = argv.iter().map(|a| c_string(a).ok_or("an argument has a NUL byte")).collect::<Result<_, _>>()?;
    let mut prepared = Prepared::new(c_path(&program).ok_or("svd's own path has a NUL byte")?, argv);
    prepared.environment = std::env::vars_os()
        .filter_map(|(name, value)| {
            let mut text = name;
            text.push("=");
            text.push(value);
            c_string(text)
        })
        .chain(c_string(format!("{REPORT}={REPORT_FD}")))
        .collect();
    let (log, writer): (Arc<OwnedFd>, Arc<OwnedFd>) = (Arc::new(log.into()), Arc::new(writer));
    prepared.descriptors = [(1, &log), (2, &log), (REPORT_FD, &writer)]
        .map(|(target, fd)| Wire { source: Source::Fd(Arc::clone(fd)), target })
        .into();
    let child = Spawner::new().spawn(&prepared, None).map_err(|e| e.to_string())?;
    // Ours would hide its end of file.
    drop((prepared, writer));
    let mut said = String::new();
    read_all(File::from(reader), &mut said)?;
    if said == UP {
        return Ok(());
    }
    let ended = child.pidfd.wait().map_or_else(|e| e.desc().to_owned(), |status| status.to_string());
    let why = if said.is_empty() { format!("it {ended}; {} may say why", paths.own_log().display()) } else { said };
    Err(why.trim_end().to_owned())
}

fn read_all(mut reader: File, text: &mut String) -> Result<(), String> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0_u8; 4096];
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => bytes.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => wait_readable(&reader)?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(format!("cannot hear from the new svd: {}", crate::sys::io_text(&e))),
        }
    }
    *text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(())
}

fn wait_readable(reader: &File) -> Result<(), String> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(format!("cannot wait for the new svd: {}", e.desc())),
    }
}

/// Does whoever started this svd wait for its [`Report`]?
pub fn is_awaited() -> bool {
    std::env::var_os(REPORT).is_some()
}

/// Is stderr svd's own log? That holds for an svd that was started by the guardian, too.
pub fn is_own_log(log: &std::path::Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let same =
        |stderr: std::fs::Metadata, log: std::fs::Metadata| (stderr.dev(), stderr.ino()) == (log.dev(), log.ino());
    let stderr = std::fs::metadata("/proc/self/fd/2");
    stderr.and_then(|stderr| Ok(same(stderr, std::fs::metadata(log)?))).unwrap_or(false)
}

/// The second svd's way to tell the first one; nobody where it was started directly.
pub struct Report(Option<File>);

impl Report {
    /// From the environment.
    pub fn take() -> Report {
        let named = std::env::var(REPORT).is_ok_and(|fd| fd == REPORT_FD.to_string());
        Report(if named { crate::sys::take_inherited(REPORT_FD).map(File::from) } else { None })
    }

    pub fn up(&mut self) {
        self.say(UP);
    }

    pub fn failed(&mut self, why: &str) {
        self.say(why);
    }

    fn say(&mut self, text: &str) {
        if let Some(mut file) = self.0.take() {
            // Whoever started us may have gone.
            let _ = file.write_all(text.as_bytes());
        }
    }
}
