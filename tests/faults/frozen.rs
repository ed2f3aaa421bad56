//! The disk of the logs hangs: whoever writes to it is in uninterruptible sleep until it goes on.

use super::disk::Disk;
use super::support::plain::{SLEEP, needs_root, script};
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

#[test]
fn a_socket_whose_path_is_on_a_disk_that_hangs_holds_up_its_service_alone() {
    if needs_root() {
        return;
    }
    let _alone = alone();
    let mut svd = Svd::new();
    fs::create_dir(svd.path("sockets")).expect("a directory");
    let Some(disk) = Disk::mount(&svd, svd.path("sockets")) else { return };
    let steady = Steady::service(&svd);
    let listen = format!("[sockets.here]\nlisten = 'unix:{}'\n", svd.path("sockets/here.sock").display());
    svd.service("bound", &script(SLEEP, &(String::from("autostart = false\n") + &listen)));
    svd.start();
    let calm = steady.median(7);
    disk.freeze();
    let waiting = svd.svctl_beside(&["start", "bound"]);
    wait_until("it is being started", PATIENCE, || svd.state("bound") == "starting");
    let hung = steady.median(7);
    assert_eq!(svd.state("bound"), "starting");
    disk.thaw();
    println!("replaced within {calm:.1?}; while a socket hangs {hung:.1?}");
    assert!(hung < calm * 5 + Duration::from_millis(150), "{calm:?} before, {hung:?} while it hangs");
    assert!(waiting.finish().status.success(), "it starts when the disk is back");
    svd.stop();
}
