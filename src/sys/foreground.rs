//! A program that has the terminal for a while, as an editor does.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Of the keyboard: they are the program's alone while it runs.
const OF_THE_KEYBOARD: [Signal; 2] = [Signal::SIGINT, Signal::SIGQUIT];

/// What was there before, put back when this goes.
struct Ignored(Vec<(Signal, SigAction)>);

impl Ignored {
    fn new() -> Ignored {
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: ignoring a signal runs no code.
        let set = |signal| Some((signal, unsafe { sigaction(signal, &ignore) }.ok()?));
        Ignored(OF_THE_KEYBOARD.into_iter().filter_map(set).collect())
    }
}

impl Drop for Ignored {
    fn drop(&mut self) {
        for (signal, before) in &self.0 {
            // SAFETY: what was in place before.
            let _ = unsafe { sigaction(*signal, before) };
        }
    }
}

/// Runs it to its end; Control-C meanwhile is for it, not for us.
///
/// # Errors
/// It cannot be started.
pub fn run(command: &mut Command) -> io::Result<ExitStatus> {
    let _ignored = Ignored::new();
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    let reset = move || {
        for signal in OF_THE_KEYBOARD {
            // SAFETY: the default of a signal, set by a system call alone.
            unsafe { sigaction(signal, &default) }?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec there are only system calls.
    unsafe { command.pre_exec(reset) }.status()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyboard_is_the_programs() {
        let mut command = Command::new("sh");
        command.args(["-c", "kill -INT $PPID; kill -INT $$; sleep 9"]);
        let status = run(&mut command).expect("sh");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGINT));
        assert!(run(&mut Command::new("/nowhere/x")).is_err());
    }
}
