//! Workers in uninterruptible sleep: no signal ends them, and everything else goes on.

use super::disk::Disk;
use super::support::plain::{SLEEP, needs_root, script};
use super::support::steady::Steady;
use super::support::svd::both;
use super::support::{PATIENCE, Svd, alone, wait_for, wait_until};
use airdock::sys::process::ProcStat;
use std::time::{Duration, Instant};

/// What svd gives to a worker that it has killed before it says that it hangs, and what the machine may add.
const TOLD: Duration = Duration::from_secs(20);

struct Stuck {
    svd: Svd,
    disk: Disk,
    steady: Steady,
    pid: i32,
}

fn state(pid: i32) -> Option<char> {
    ProcStat::read(pid).map(|stat| stat.state)
}

/// `stuck` waits for a frozen disk, on which nothing of svd's is.
fn stuck() -> Option<Stuck> {
    if needs_root() {
        return None;
    }
    let mut svd = Svd::new();
    let disk = Disk::mount(&svd, svd.path("data"))?;
    let steady = Steady::service(&svd);
    let file = svd.path("data/file");
    let write = format!("while :; do echo x >>{}; sleep 0.01; done", file.display());
    svd.service("stuck", &script(&write, "[stop]\ngrace = '200ms'\n[restart]\nsettled = '0ms'"));
    svd.service("other", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("stuck", "running");
    wait_until("it writes", PATIENCE, || file.metadata().is_ok_and(|m| m.len() > 2));
    let pid = svd.main_pid("stuck");
    disk.freeze();
    wait_until("it is in uninterruptible sleep", PATIENCE, || state(pid) == Some('D'));
    Some(Stuck { svd, disk, steady, pid })
}

/// Ticks of the processor that svd has used within a second.
fn busy(svd: &Svd) -> u64 {
    let pid = svd.pid();
    let (before, since) = (super::noisy::cpu(pid), Instant::now());
    wait_until("a second has passed", PATIENCE, || since.elapsed() > Duration::from_secs(1));
    super::noisy::cpu(pid) - before
}

#[test]
fn a_stop_of_what_hangs_is_said_to_be_impossible_and_hinders_nobody() {
    let _alone = alone();
    let Some(Stuck { mut svd, disk, steady, pid }) = stuck() else { return };
    let calm = steady.median(7);
    let begun = Instant::now();
    let stopping = svd.svctl_beside(&["stop", "stuck"]);
    let hung = steady.median(7);
    let stopped = stopping.finish();
    let after = begun.elapsed();
    let said = both(&stopped);
    assert!(!stopped.status.success() && said.contains("cannot be ended"), "{said}");
    assert!(after < TOLD, "svctl was told only after {after:?}");
    let again = steady.median(7);
    println!(
        "replaced within {calm:.1?}; beside a stop that hangs {hung:.1?}, after it {again:.1?}; told after {after:.1?}"
    );
    assert!(hung.max(again) < calm * 5 + Duration::from_millis(150), "{calm:?} before, {hung:?} and {again:?}");
    let status = svd.status("stuck");
    assert_eq!(status["state"], "stopping", "{status:#}");
    assert!(status["reason"].as_str().is_some_and(|r| r.contains("cannot be ended")), "{status:#}");
    // Whoever asks now is told at once.
    let begun = Instant::now();
    for order in ["stop", "start", "restart"] {
        let said = svd.fails(&[order, "stuck"]);
        assert!(said.contains("cannot be ended"), "{order}: {said}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(busy(&svd) < 30, "svd spins");
    svd.ok(&["restart", "other"]);
    svd.service("more", &script(SLEEP, ""));
    svd.ok(&["update"]);
    // Neither a death nor another version of svd changes that.
    let old = svd.pid();
    super::world::kill(old);
    wait_until("another svd", PATIENCE, || svd.pid() != old && svd.answers());
    svd.ok(&["upgrade"]);
    assert_eq!(state(pid), Some('D'));
    assert!(svd.fails(&["stop", "stuck"]).contains("cannot be ended"));
    assert!(busy(&svd) < 30, "svd spins");
    // What was asked last is done when it ends: it was a stop.
    disk.thaw();
    svd.wait_state("stuck", "stopped");
    assert!(state(pid).is_none());
    svd.ok(&["start", "stuck"]);
    svd.stop();
}

#[test]
fn svd_ends_without_what_hangs_and_the_next_one_starts_beside_it() {
    let _alone = alone();
    let Some(Stuck { mut svd, disk, steady: _steady, pid }) = stuck() else { return };
    let others: Vec<i32> = ["steady", "other"].iter().map(|name| svd.main_pid(name)).collect();
    let begun = Instant::now();
    assert!(svd.stop().success());
    println!("svd ended after {:.1?}", begun.elapsed());
    assert!(begun.elapsed() < TOLD, "svd ended only after {:?}", begun.elapsed());
    assert!(others.iter().all(|pid| state(*pid).is_none()), "everything else has ended");
    assert_eq!(state(pid), Some('D'), "nothing can end it");
    assert!(svd.said().contains("ends without it"), "{}", svd.said());
    let begun = Instant::now();
    svd.start();
    println!("another svd started within {:.1?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(5), "another svd started only after {:?}", begun.elapsed());
    svd.wait_state("other", "running");
    svd.leaves_processes = true;
    disk.thaw();
    wait_for("it ends", PATIENCE, || state(pid).is_none_or(|s| s == 'Z').then_some(()));
    svd.wait_state("stuck", "running");
    svd.stop();
}
