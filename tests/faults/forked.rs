//! A master of gunicorn that was forked in svd's last moment: no record names it, and it boots while there is no svd.

use super::count;
use super::support::{Env, PATIENCE, Release, wait_for, wait_until};
use super::world::{GUNICORN, World, alive, kill, send};
use airdock::sys::process::descendants;
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Where the control groups of svd's workers are; `None`: it has none.
fn tree(worker: i32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{worker}/cgroup")).expect("it runs");
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let path = mounts.iter().map(|mount| Path::new(mount).join(group)).find(|path| path.exists())?;
    group.contains("airdock.").then(|| path.parent().map(Path::to_owned))?
}

fn groups(tree: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(tree).expect("the control groups").flatten().map(|entry| entry.path());
    entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("web."))).collect()
}

fn members(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// Does it wait in poll(2), as a worker does at the gate? Where that cannot be seen: it may.
fn waits(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/syscall")).map_or(true, |text| text.starts_with("7 "))
}

#[test]
fn what_a_master_said_that_no_svd_knows_makes_no_other_one_ready() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let mut world = World::start(Some(&env));
    let Some(tree) = tree(world.web.as_ref().expect("a site").master) else {
        return eprintln!("SKIPPED: svd has no control groups here");
    };
    let (tries, wanted) = (count(20, 100), count(2, 10));
    let (mut n, mut caught) = (0, 0);
    while n < tries && caught < wanted {
        n += 1;
        let release = format!("r{n}");
        world.web.as_ref().expect("a site").app.ship(&Release::new(&release));
        let (svd, before) = (world.svd.pid(), groups(&tree));
        world.svd.freeze_guardian();
        let reload = world.svd.svctl_beside(&["reload", "web"]);
        // As soon as it is forked, and before svd writes that down.
        let end = Instant::now() + PATIENCE;
        let (group, master) = loop {
            let new = groups(&tree).into_iter().find(|group| !before.contains(group));
            let forked = new.and_then(|group| members(&group).first().copied().map(|master| (group, master)));
            if let Some(forked) = forked {
                kill(svd);
                break forked;
            }
            assert!(Instant::now() < end, "no candidate");
        };
        wait_until("the candidate's workers wait at the gate", PATIENCE, || {
            let workers = descendants(master);
            members(&group).len() == 3 && workers.len() == 2 && workers.iter().all(|pid| waits(*pid))
        });
        send(world.svd.guardian(), Signal::SIGCONT);
        reload.finish();
        let serves = wait_for("the new release is committed", PATIENCE, || {
            let status = world.status("web").filter(|status| status["release"] == *release)?;
            i32::try_from(status["pid"].as_i64()?).ok()
        });
        if serves != master {
            caught += 1;
            assert!(!alive(master), "the one that no record named is ended");
            assert_eq!(descendants(serves).len(), 2, "committed before its workers were there");
        }
        let web = world.web.as_mut().expect("a site");
        web.master = serves;
        wait_until("the old generation is gone", PATIENCE, || groups(&tree).len() == 1);
        world.check();
    }
    println!("{caught} of {n} masters were forked and not written down");
}
