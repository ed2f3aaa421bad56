//! What svd lives on runs out: room on its disks, descriptors, processes.

use super::support::plain::{SLEEP, needs_root, script};
use super::support::steady::Steady;
use super::support::{PATIENCE, Svd, wait_until};
use super::world::kill;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A file system of 4 MiB in memory. To be dropped before the svd that uses it, whose directory it is in.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Option<SmallDisk> {
        fs::create_dir_all(&at).expect("a directory");
        let mut mount = Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", "size=4m", "airdock-test"]).arg(&at).status();
        if !mounted.is_ok_and(|status| status.success()) {
            eprintln!("SKIPPED: a tmpfs cannot be mounted here");
            return None;
        }
        Some(SmallDisk(at))
    }

    fn fill(&self) {
        let mut zero = File::open("/dev/zero").expect("zeros");
        let filled = std::io::copy(&mut zero, &mut File::create(self.0.join("filler")).expect("a file"));
        assert!(filled.is_err_and(|e| e.kind() == std::io::ErrorKind::StorageFull));
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).expect("making room");
    }

    /// False: the system does not allow it while files are open for writing.
    fn remount(&self, how: &str) -> bool {
        let mut mount = Command::new("mount");
        mount.args(["-o", &format!("remount,{how}")]).arg(&self.0).stderr(std::process::Stdio::null());
        mount.status().is_ok_and(|status| status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// All that must work however badly svd is off: a dead worker is replaced, and svctl is answered.
#[track_caller]
fn works(svd: &Svd, steady: &Steady, when: &str) {
    let within = steady.replaced();
    assert!(within < Duration::from_secs(3), "{when}: replaced only after {within:?}");
    assert!(svd.svctl(&["status"]).status.code().is_some_and(|code| code == 0 || code == 3), "{when}: no status");
    svd.wait_state("steady", "running");
}

fn without_room(directory: &str) {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let Some(disk) = SmallDisk::mount(svd.path(directory)) else { return };
    let steady = Steady::service(&svd);
    svd.service("other", &script(SLEEP, ""));
    svd.start();
    works(&svd, &steady, "before");
    disk.fill();
    works(&svd, &steady, "full");
    // Orders are carried out, or refused with a reason.
    for order in ["stop", "start", "disable", "enable"] {
        let output = svd.svctl(&[order, "other"]);
        let said = super::support::svd::both(&output);
        assert!(output.status.success() || said.contains("space"), "{order} on a full disk:\n{said}");
    }
    disk.empty();
    works(&svd, &steady, "with room again");
    svd.ok(&["restart", "other"]);
    if disk.remount("ro") {
        works(&svd, &steady, "read-only");
        assert!(disk.remount("rw"));
    } else {
        eprintln!("SKIPPED a part: {directory} cannot be made read-only, as files in it are open for writing");
    }
    works(&svd, &steady, "writable again");
    // A death now finds what was written since.
    kill(svd.pid());
    wait_until("svd is back", PATIENCE, || svd.svctl(&["status", "other"]).status.success());
    works(&svd, &steady, "after a death");
    svd.stop();
}

#[test]
fn no_room_for_state_stops_nothing() {
    without_room("state");
}

#[test]
fn no_room_in_the_run_directory_stops_nothing() {
    without_room("run");
}

#[test]
fn no_room_for_logs_stops_nothing() {
    without_room("log");
}

#[test]
fn out_of_descriptors_svd_goes_on_and_says_so() {
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    svd.start();
    works(&svd, &steady, "before");
    let pid = svd.pid();
    let used = fs::read_dir(format!("/proc/{pid}/fd")).expect("svd runs").count();
    let limit = |most: usize| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &pid.to_string(), &format!("--nofile={most}:")]);
        assert!(prlimit.status().expect("prlimit").success());
    };
    limit(used + 30);
    for n in 0..40 {
        svd.service(&format!("more-{n}"), &script(SLEEP, ""));
    }
    let update = svd.svctl_beside(&["update"]);
    let told = || svd.said().contains("Too many open files") || svd.said().contains("descriptors");
    wait_until("svd tells that it has no descriptors left", PATIENCE, told);
    limit(4096);
    update.finish();
    works(&svd, &steady, "with descriptors again");
    let running = || {
        let list = svd.json(&["status"]);
        list["services"].as_array().is_some_and(|all| all.iter().all(|s| s["state"] == "running"))
    };
    wait_until("all of them run", PATIENCE, running);
}

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
