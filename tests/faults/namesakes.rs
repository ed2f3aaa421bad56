//! Two svds whose run directories have one name, each in a mount namespace of its own, beside one tree of control groups.

use super::support::plain::{SLEEP, needs_root, script};
use super::support::{PATIENCE, Svd, wait_until};
use super::world::alive;
use nix::sys::signal::Signal;
use std::fs;
use std::process::Command;

/// Of the service's worker, where there are control groups: the path of svd's tree.
fn tree_of(pid: i32) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its control groups");
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    let end = path.find("/airdock.")? + 1;
    Some(path.split_at(end + path[end..].find('/')?).0.to_owned())
}

/// Sees its own run directory where the other's is.
fn start_as(svd: &mut Svd, other: &Svd) {
    let (own, there) = (svd.path("run"), other.path("run"));
    fs::create_dir_all(&own).expect("a run directory");
    let plain = svd.command();
    let mut command = Command::new("unshare");
    let bind = format!("mount --bind {} {} && exec \"$@\"", own.display(), there.display());
    command.args(["--mount", "sh", "-c", &bind, "sh"]).arg(plain.get_program());
    command.args(plain.get_args().map(|arg| if arg == own.as_os_str() { there.as_os_str() } else { arg }));
    svd.start_with(command);
}

#[test]
fn svds_with_run_directories_of_one_name_leave_each_others_workers_alone() {
    if needs_root() {
        return;
    }
    let (mut first, mut second) = (Svd::new(), Svd::new());
    for svd in [&first, &second] {
        svd.service("sleeps", &script(SLEEP, ""));
    }
    first.start();
    first.wait_state("sleeps", "running");
    let one = first.main_pid("sleeps");
    let Some(tree) = tree_of(one) else {
        println!("skipped: there are no control groups that svd may use");
        return;
    };
    start_as(&mut second, &first);
    second.wait_state("sleeps", "running");
    let other = second.main_pid("sleeps");
    let others = tree_of(other).expect("it has control groups as well");
    assert_ne!(tree, others);
    assert!(second.said().contains("another svd, whose run directory is called"), "{}", second.said());
    let nothing_happened = |first: &Svd, second: &Svd| {
        for (svd, pid) in [(first, one), (second, other)] {
            svd.wait_state("sleeps", "running");
            assert_eq!((svd.main_pid("sleeps"), alive(pid)), (pid, true), "{}", svd.said());
            assert_eq!(svd.status("sleeps")["restarts"], 0);
        }
    };
    nothing_happened(&first, &second);
    // svd alone dies: its guardian has the lock.
    for svd in [&first, &second] {
        let killed = svd.pid();
        svd.signal(Signal::SIGKILL);
        wait_until("another svd", PATIENCE, || svd.pid() != killed && svd.answers());
    }
    nothing_happened(&first, &second);
    // The guardian alone: svd has it, becomes the guardian, and gives it to another svd.
    let guardian = first.guardian();
    first.kill_guardian();
    first.follow(guardian);
    wait_until("svd answers", PATIENCE, || first.answers());
    // Another program in svd's place.
    for svd in [&first, &second] {
        svd.ok(&["upgrade"]);
    }
    nothing_happened(&first, &second);
    // Both of one die, and a third svd begins beside the one that is left: it finds its own again, and takes no other's.
    second.kill_both();
    start_as(&mut second, &first);
    nothing_happened(&first, &second);
    first.kill_both();
    first.start();
    nothing_happened(&first, &second);
    // And without what it had written down, too.
    second.kill_both();
    fs::write(second.path("run/state"), "of no use").expect("written");
    start_as(&mut second, &first);
    nothing_happened(&first, &second);
    second.stop();
    first.stop();
    for tree in [tree, others] {
        let left = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|mount| format!("{mount}{tree}"));
        assert!(left.iter().all(|path| !fs::exists(path).expect("looked")), "{left:?}");
    }
}
