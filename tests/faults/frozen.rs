//! The disk of the logs hangs: whoever writes to it is in uninterruptible sleep until it goes on.

use super::support::plain::{needs_root, script};
use super::support::steady::Steady;
use super::support::{PATIENCE, Svd, alone, wait_until};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

/// An ext4 in a file, which fsfreeze(8) can stop. To be dropped before the svd whose directory it is in.
struct Disk(PathBuf);

fn run(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Disk {
    fn mount(svd: &Svd, at: PathBuf) -> Option<Disk> {
        fs::create_dir_all(&at).expect("a directory");
        let image = svd.path("disk");
        fs::File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("a file");
        let (image, at_text) = (image.to_str().expect("UTF-8"), at.to_str().expect("UTF-8"));
        if !run("mkfs.ext4", &["-q", image]) || !run("mount", &["-o", "loop", image, at_text]) {
            eprintln!("SKIPPED: no ext4 can be mounted from a file here");
            return None;
        }
        Some(Disk(at))
    }

    fn freeze(&self, how: &str) -> bool {
        run("fsfreeze", &[how, self.0.to_str().expect("UTF-8")])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.freeze("-u");
        run("umount", &["-l", self.0.to_str().expect("UTF-8")]);
    }
}

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
    assert!(disk.freeze("-f"), "the disk cannot be frozen");
    let hung = steady.median(7);
    svd.ok(&["status", "loud"]);
    svd.ok(&["restart", "steady"]);
    let again = steady.median(7);
    assert!(disk.freeze("-u"));
    println!("replaced within {calm:.1?}; with a hung disk {hung:.1?}, {again:.1?}");
    assert!(hung.max(again) < calm * 5 + Duration::from_millis(150), "{calm:?} before, {hung:?} and {again:?} with it");
    let then = written();
    wait_until("its output is kept again", PATIENCE, || written() > then);
    svd.stop();
}
