//! A healthy service beside the faults, and how soon its worker is replaced.

use super::plain::{alive, number_in, script};
use super::{PATIENCE, Svd, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub struct Steady(PathBuf);

impl Steady {
    /// Writes its file; svd must read it.
    pub fn service(svd: &Svd) -> Steady {
        let pid = svd.path("steady.pid");
        let text = format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 100000", pid.display());
        let often = "[restart]\nsettled = '0ms'\nlimit = { failures = 10000, within = '1m' }";
        svd.service("steady", &script(&text, often));
        Steady(pid)
    }

    /// Kills the worker: the time until another one runs its first command.
    #[track_caller]
    pub fn replaced(&self) -> Duration {
        let old = wait_for("the steady service runs", PATIENCE, || number_in(&self.0).filter(|pid| alive(*pid)));
        let begun = Instant::now();
        // A child of this test's svd, which has it for as long as its number is in the file.
        let _ = kill(Pid::from_raw(old), Signal::SIGKILL);
        wait_for("its worker is replaced", PATIENCE, || number_in(&self.0).filter(|pid| *pid != old));
        begun.elapsed()
    }

    /// The median of so many.
    #[track_caller]
    pub fn median(&self, times: usize) -> Duration {
        let mut all: Vec<Duration> = (0..times).map(|_| self.replaced()).collect();
        all.sort();
        all[times / 2]
    }
}
