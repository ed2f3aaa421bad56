//! No more processes, or no more memory.

use super::starved::works;
use super::support::steady::Steady;
use super::support::plain::{needs_root, script};
use super::support::{PATIENCE, Svd, wait_until};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A control group that allows so many processes, for this test's svd.
struct Few(PathBuf);

impl Few {
    fn make(most: u32) -> Option<Few> {
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        let base = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new).into_iter().find(|base| {
            base.join("cgroup.procs").exists() && (base.ends_with("pids") || controllers.contains("pids"))
        });
        let dir = base?.join(format!("airdock-faults-{}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        let few = Few(dir);
        fs::write(few.0.join("pids.max"), most.to_string()).ok()?;
        Some(few)
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        // Empty when everything in it has been reaped.
        wait_until("the control group can be removed", PATIENCE, || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_service_that_forks_without_end_is_stopped_to_the_last_process() {
    if needs_root() {
        return;
    }
    let Some(few) = Few::make(120) else {
        eprintln!("SKIPPED: no control group with a limit of processes can be made here");
        return;
    };
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    let bomb = "f() { sleep 100 & f & sleep 0.01; f & wait; }; f";
    svd.service("bomb", &script(bomb, "autostart = false\n[stop]\ngrace = '200ms'"));
    let plain = svd.command();
    let mut limited = Command::new("/bin/sh");
    let enter = format!("echo $$ >{}; exec \"$@\"", few.0.join("cgroup.procs").display());
    limited.args(["-c", &enter, "sh"]).arg(plain.get_program()).args(plain.get_args());
    svd.start_with(limited);
    works(&svd, &steady, "before");
    let bombing = svd.svctl_beside(&["start", "bomb"]);
    let count = || fs::read_to_string(few.0.join("pids.current")).ok().and_then(|n| n.trim().parse::<u32>().ok());
    wait_until("no process is left to be had", PATIENCE, || count().is_some_and(|n| n >= 118));
    bombing.finish();
    // Its place may be taken by the bomb at any moment: it is tried again until there is one.
    svd.ok(&["stop", "bomb"]);
    wait_until("the bomb is gone", PATIENCE, || count().is_some_and(|n| n < 30));
    svd.svctl(&["start", "steady"]);
    works(&svd, &steady, "afterwards");
    svd.stop();
    drop(svd);
    drop(few);
}
