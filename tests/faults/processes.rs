//! No more processes, or no more memory.

use super::noisy::{cpu, resident};
use super::starved::works;
use super::support::plain::{SLEEP, needs_root, number_in, script};
use super::support::steady::Steady;
use super::support::{PATIENCE, Svd, alone, wait_for, wait_until};
use super::world::kill;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A control group with a limit, for this test's svd and all that it starts.
struct Limited(PathBuf);

impl Limited {
    /// `files`: the limit's names in the two versions of control groups.
    fn make(controller: &str, files: [&str; 2], limit: u64) -> Option<Limited> {
        let [first, second] = files;
        let old = Path::new("/sys/fs/cgroup").join(controller);
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").unwrap_or_default();
        let (base, file) = if old.join("cgroup.procs").exists() {
            (old, first)
        } else if controllers.split_whitespace().any(|c| c == controller) {
            ("/sys/fs/cgroup".into(), second)
        } else {
            return None;
        };
        let dir = base.join(format!("airdock-faults-{}", std::process::id()));
        fs::create_dir(&dir).ok()?;
        let limited = Limited(dir);
        fs::write(limited.0.join(file), limit.to_string()).ok()?;
        Some(limited)
    }

    fn start(&self, svd: &mut Svd) {
        let plain = svd.command();
        let mut limited = Command::new("/bin/sh");
        let enter = format!("echo $$ >{}; exec \"$@\"", self.0.join("cgroup.procs").display());
        limited.args(["-c", &enter, "sh"]).arg(plain.get_program()).args(plain.get_args());
        svd.start_with(limited);
    }
}

impl Drop for Limited {
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
    let Some(few) = Limited::make("pids", ["pids.max"; 2], 120) else {
        eprintln!("SKIPPED: no control group with a limit of processes can be made here");
        return;
    };
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    let bomb = "f() { sleep 100 & f & sleep 0.01; f & wait; }; f";
    svd.service("bomb", &script(bomb, "autostart = false\n[stop]\ngrace = '200ms'"));
    few.start(&mut svd);
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

/// `prlimit(1)`: the soft limit alone, so that it can be given back. By whoever the process belongs to: root may not have
/// the right.
fn limit(pid: i32, what: &str, most: &str) {
    let owner = fs::metadata(format!("/proc/{pid}")).expect("it runs");
    let mut prlimit = Command::new("prlimit");
    prlimit.uid(owner.uid()).gid(owner.gid());
    prlimit.args(["--pid", &pid.to_string(), &format!("--{what}={most}:")]);
    assert!(prlimit.status().expect("prlimit").success());
}

/// A user who has no other processes, and who can make no control group.
#[test]
fn a_plain_user_without_processes_left_is_told_and_goes_on_with_some() {
    if needs_root() {
        return;
    }
    let user = 61_000 + std::process::id() % 1000;
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    svd.service("other", &script(SLEEP, ""));
    let mut chown = Command::new("chown");
    assert!(chown.args(["-R", &format!("{user}:{user}")]).arg(svd.path("")).status().expect("chown").success());
    let mut command = svd.command();
    command.uid(user).gid(user);
    svd.start_with(command);
    works(&svd, &steady, "before");
    let other = svd.main_pid("other");
    let (own, guardian) = (svd.pid(), svd.guardian());
    let before = number_in(&svd.path("steady.pid")).expect("a pid");
    [own, guardian].iter().for_each(|pid| limit(*pid, "nproc", "1"));
    kill(before);
    wait_until("svd tells of it", PATIENCE, || svd.said().contains("cannot fork"));
    let (restarts, ticks, since) = (svd.status("steady")["restarts"].as_u64(), cpu(own), Instant::now());
    wait_until("two seconds have passed", PATIENCE, || since.elapsed() > Duration::from_secs(2));
    let (tried, used) = (svd.status("steady")["restarts"].as_u64(), cpu(own) - ticks);
    println!("{:?} attempts within 2 s, {used} ticks", tried.zip(restarts).map(|(a, b)| a - b));
    assert!(tried.zip(restarts).is_some_and(|(now, then)| now < then + 40), "it is tried without a pause");
    assert!(used < 60, "svd spins");
    // Nothing that svd does for others may need a process, or a thread that it has not.
    for order in ["status", "pid", "version"] {
        let args: &[&str] = if order == "pid" { &["pid", "other"] } else { &[order] };
        assert!(svd.svctl(args).status.code().is_some_and(|code| code == 0 || code == 3), "{order}");
    }
    svd.service("new", &script(SLEEP, ""));
    let update = svd.svctl(&["update"]);
    println!("update: {}", super::support::svd::both(&update));
    [own, guardian].iter().for_each(|pid| limit(*pid, "nproc", "4096"));
    wait_for("the steady service is back", PATIENCE, || {
        number_in(&svd.path("steady.pid")).filter(|pid| *pid != before && super::world::alive(*pid))
    });
    works(&svd, &steady, "with processes again");
    svd.ok(&["update"]);
    wait_until("the new one runs", PATIENCE, || svd.state("new") == "running");
    assert_eq!((svd.main_pid("other"), svd.pid()), (other, own), "nothing else has changed");
}

/// svd itself gets no more memory: it may die of that, and its guardian starts another one.
#[test]
fn an_svd_that_gets_no_more_memory_costs_no_service() {
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    svd.service("other", &script(SLEEP, ""));
    svd.start();
    works(&svd, &steady, "before");
    let (own, other) = (svd.pid(), svd.main_pid("other"));
    let status = fs::read_to_string(format!("/proc/{own}/status")).expect("svd runs");
    let size = status.lines().find_map(|l| l.strip_prefix("VmSize:")).expect("a size");
    let size: u64 = size.trim().trim_end_matches(" kB").parse().expect("a number");
    limit(own, "as", &(size * 1024 + (256 << 10)).to_string());
    let padding = "x".repeat(50_000);
    for n in 0..100 {
        svd.service(&format!("more-{n}"), &script(SLEEP, &format!("[environment]\nLONG = '{padding}'")));
    }
    let update = svd.svctl(&["update"]);
    println!("update ended with {:?}", update.status.code());
    wait_until("svd answers", PATIENCE, || svd.answers());
    println!("svd {}", if svd.pid() == own { "has had enough" } else { "has died, and was replaced" });
    assert_ne!(svd.pid(), own, "the limit has not been felt: the test is of no use");
    svd.ok(&["update"]);
    let running = || {
        let list = svd.json(&["status"]);
        let all = list["services"].as_array().expect("services");
        all.len() == 102 && all.iter().all(|s| s["state"] == "running")
    };
    wait_until("all of them run", PATIENCE, running);
    works(&svd, &steady, "afterwards");
    assert_eq!(svd.main_pid("other"), other, "it goes on");
}

#[test]
fn who_takes_all_memory_is_ended_and_nobody_else() {
    let _alone = alone();
    if needs_root() {
        return;
    }
    let files = ["memory.limit_in_bytes", "memory.max"];
    let Some(little) = Limited::make("memory", files, 160 << 20) else {
        eprintln!("SKIPPED: no control group with a limit of memory can be made here");
        return;
    };
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    let hog = "import time\nheld = []\nwhile True:\n    held.append(bytearray(4 << 20))\n    time.sleep(0.005)\n";
    svd.service("hog", &super::support::plain::python(hog, "autostart = false"));
    svd.service("other", &script(SLEEP, ""));
    little.start(&mut svd);
    works(&svd, &steady, "before");
    let (own, guardian, other) = (svd.pid(), svd.guardian(), svd.main_pid("other"));
    let calm = steady.median(7);
    // Told that it failed, perhaps: it is killed soon.
    svd.svctl(&["start", "hog"]);
    let mut worst = Duration::ZERO;
    let mut ends = 0;
    wait_until("it is ended three times", PATIENCE * 2, || {
        worst = worst.max(steady.replaced());
        let status = svd.status("hog");
        let exit = status["workers"][0]["last_exit"].as_str().unwrap_or_default().to_owned();
        assert!(exit.is_empty() || exit.contains("signal 9"), "{status:#}");
        ends = status["restarts"].as_u64().unwrap_or_default();
        ends >= 3
    });
    println!("replaced within {calm:.1?} (calm), {worst:.1?} at most beside {ends} ends by lack of memory");
    assert!(worst < Duration::from_secs(3), "replaced only after {worst:?}");
    assert_eq!((svd.pid(), svd.guardian(), svd.main_pid("other")), (own, guardian, other));
    println!("svd has {} bytes", resident(own));
    svd.ok(&["stop", "hog"]);
    svd.stop();
    drop(svd);
    drop(little);
}
