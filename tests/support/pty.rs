//! A program on a terminal of its own, which a test reads and types into.

use super::{PATIENCE, wait_until};
use nix::pty::{Winsize, openpty};
use std::fs::File;
use std::io::{Read, Write};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub struct Pty {
    child: Child,
    master: File,
    /// Kept open, so that its settings can be looked at when the program has ended.
    slave: File,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Pty {
    /// stdin, stdout and stderr are the terminal.
    pub fn start(mut command: Command, columns: u16, rows: u16) -> Pty {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).expect("a terminal");
        let slave = File::from(pty.slave);
        let end = || slave.try_clone().expect("a descriptor");
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "xterm");
        let child = command.spawn().expect("starting it");
        drop(command);
        let master = File::from(pty.master);
        let (seen, mut from) = (Arc::<Mutex<Vec<u8>>>::default(), master.try_clone().expect("a descriptor"));
        let into = Arc::clone(&seen);
        // Ends when the last one who has the other end open is gone.
        std::thread::spawn(move || {
            let mut buffer = [0_u8; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                into.lock().expect("no panic").extend_from_slice(&buffer[..n]);
            }
        });
        Pty { child, master, slave, seen }
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// All that was written until now.
    pub fn seen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().expect("no panic")).into_owned()
    }

    #[track_caller]
    pub fn wait_seen(&self, text: &str) {
        let end = std::time::Instant::now() + PATIENCE;
        while !self.seen().contains(text) {
            assert!(std::time::Instant::now() < end, "{text:?} was never seen in {:?}", self.seen());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// As a window manager does it, and the kernel where the program has it as its session's.
    pub fn resize(&self, columns: u16, rows: u16) {
        use std::os::fd::AsRawFd;
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the kernel reads the structure.
        let result = unsafe { nix::libc::ioctl(self.master.as_raw_fd(), nix::libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(result, 0, "resizing");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), nix::sys::signal::Signal::SIGWINCH);
    }

    /// Bytes that were put into its input, and nobody has read.
    pub fn unread(&self) -> i32 {
        use std::os::fd::AsRawFd;
        let mut count = 0;
        // SAFETY: the kernel writes one int.
        let result = unsafe { nix::libc::ioctl(self.slave.as_raw_fd(), nix::libc::FIONREAD, &raw mut count) };
        assert_eq!(result, 0, "asking for unread bytes");
        count
    }

    pub fn type_in(&mut self, bytes: &[u8]) {
        self.master.write_all(bytes).expect("typing");
    }

    /// The terminal's settings: what a program changes, it has to put back.
    pub fn settings(&self) -> nix::sys::termios::Termios {
        nix::sys::termios::tcgetattr(&self.slave).expect("settings")
    }

    #[track_caller]
    pub fn wait_end(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        wait_until("the program on the terminal ends", limit, || {
            status = self.child.try_wait().expect("waiting");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
