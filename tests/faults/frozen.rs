//! The disk of the logs hangs: whoever writes to it is in uninterruptible sleep until it goes on.

use super::disk::Disk;
use super::support::plain::{needs_root, script};
use super::support::steady::Steady;
use super::support::{PATIENCE, Svd, alone, wait_until};
use std::fs;
use std::time::Duration;

#[test]
fn while_the_disk_of_the_logs_hangs_workers_are_replaced_as_fast_as_before() {
    if needs_root() {
        return;
    }
    let _alone = alone();
    let mut svd = Svd::new();
    let Some(disk) = Disk::mount(&svd, svd.path("log")) else { return };
    let steady = Steady::service(&svd);
    svd.service("loud", &script("while :; do echo a line; sleep 0.01; done", ""));
    svd.start();
    let written = || fs::metadata(svd.path("log/loud/output.log")).map_or(0, |m| m.len());
    wait_until("the loud one is heard", PATIENCE, || written() > 50);
    let calm = steady.median(7);
    disk.freeze();
    let hung = steady.median(7);
    svd.ok(&["status", "loud"]);
    svd.ok(&["restart", "steady"]);
    let again = steady.median(7);
    disk.thaw();
    println!("replaced within {calm:.1?}; with a hung disk {hung:.1?}, {again:.1?}");
    assert!(hung.max(again) < calm * 5 + Duration::from_millis(150), "{calm:?} before, {hung:?} and {again:?} with it");
    let then = written();
    wait_until("its output is kept again", PATIENCE, || written() > then);
    svd.stop();
}
