//! Standing in for an svd that was there already.
//!
//! A service manager judges svd by the process that it has started, the guardian. When that one is killed, svd goes on in
//! another process, and the manager starts another svd, which finds the lock held. To fail would be wrong, as all is well;
//! so it stays, and is to the manager what the killed guardian was: says that svd is up, passes signals on, and ends when svd
//! ends. Should svd be killed together with its new guardian, it becomes svd, and takes the services over.

use super::args::Args;
use super::background;
use super::guardian;
use crate::sys::lock::{self, Holding};
use crate::sys::poll::{Received, Signals};
use crate::sys::process::PidFd;
use crate::sys::socket::{has_manager, notify_manager};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For an svd whose guardian was killed to write its new one into the lock file.
const NAMED: Duration = Duration::from_secs(10);
/// Between two looks at the file.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What to do after standing in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Be svd: there is none (any more).
    Begin,
    /// End: the other one has ended in order.
    End,
}

/// Stands in for as long as another svd has the run directory, if a service manager waits for this one. For a process with
/// one thread, before it is svd or guardian.
///
/// # Errors
/// A sentence: there is another one, but it cannot be followed.
pub fn stand_in(args: &Args) -> Result<Next, String> {
    // One that a guardian or `--daemon` has started is judged by these.
    if !has_manager() || guardian::is_guarded() || background::is_awaited() {
        return Ok(Next::Begin);
    }
    let paths = args.paths();
    let file = paths.pid_file();
    // Before the first look, so that no signal is deadly from then on.
    let signals = Signals::block().map_err(|e| format!("cannot block signals: {}", e.desc()))?;
    let mut standin = StandIn { file, signals, stop: None };
    let mut stood_in = false;
    while let Some(holder) = standin.holder()? {
        standin.follow(&holder)?;
        stood_in = true;
    }
    if !stood_in {
        return Ok(Next::Begin);
    }
    // One that ends in order empties the file.
    let in_order = std::fs::metadata(&standin.file).is_ok_and(|file| file.len() == 0);
    // Killed when it had stopped everything, but for itself.
    let nothing_left = standin.stop.is_some() && !paths.state_file().exists();
    if in_order || nothing_left {
        return Ok(Next::End);
    }
    eprintln!("svd: the svd that this one stood in for was killed; this one takes its place");
    tell_manager("STATUS=");
    if let Some(stop) = standin.stop {
        // Blocked, so that it waits for whoever reads it next.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), stop.signal());
    }
    Ok(Next::Begin)
}

struct StandIn {
    file: PathBuf,
    signals: Signals,
    /// It was told to end.
    stop: Option<Received>,
}

impl StandIn {
    /// The process that others know as svd; `None` if the lock is free.
    fn holder(&self) -> Result<Option<PidFd>, String> {
        let until = Instant::now() + NAMED;
        loop {
            let failed = |e| format!("cannot read {}: {}", self.file.display(), crate::sys::io_text(&e));
            match lock::holding(&self.file).map_err(failed)? {
                Holding::Nobody => return Ok(None),
                Holding::Process(pidfd) => return Ok(Some(pidfd)),
                Holding::Unnamed if Instant::now() >= until => return Err(unnamed(&self.file)),
                Holding::Unnamed => std::thread::sleep(LOOK_AGAIN),
            }
        }
    }

    /// Until it ends.
    fn follow(&mut self, holder: &PidFd) -> Result<(), String> {
        let pid = holder.pid();
        holder
            .signal(0)
            .map_err(|e| format!("svd runs already, and process {pid} cannot be signalled: {}", e.desc()))?;
        eprintln!("svd: svd runs already, known as process {pid}; this one stands in for it");
        tell_manager(&format!("READY=1\nSTATUS=Stands in for the svd that was there already, process {pid}"));
        // It may know already; the new guardian of a killed one does not.
        if let Some(stop) = self.stop {
            self.pass_on(stop, holder);
        }
        while !holder.has_ended() {
            let mut fds =
                [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN), PollFd::new(holder.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(format!("cannot wait for process {pid}: {}", e.desc())),
            }
            while let Ok(Some((received, _))) = self.signals.next() {
                if received.asks_for_the_end() {
                    self.stop = Some(received);
                    tell_manager("STOPPING=1");
                }
                self.pass_on(received, holder);
            }
        }
        Ok(())
    }

    fn pass_on(&self, received: Received, holder: &PidFd) {
        if received.is_for_svd() {
            // It may have ended already.
            let _ = holder.signal(received.signal() as i32);
        }
    }
}

fn unnamed(file: &Path) -> String {
    let file = file.display();
    format!(
        "{file} is locked, so that an svd runs, but the process that it names is not the one: who it is, `fuser {file}` says"
    )
}

fn tell_manager(text: &str) {
    if let Err(e) = notify_manager(text) {
        eprintln!("svd: cannot tell the service manager {text}: {}", crate::sys::io_text(&e));
    }
}
