//! Disks of a test's own, which fill up, hang, or are made read-only by an error.
//!
//! To be dropped before the svd whose directory they are in.

use super::support::Svd;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

fn run(program: &str, args: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A file system of 4 MiB in memory.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn mount(at: PathBuf) -> Option<SmallDisk> {
        fs::create_dir_all(&at).expect("a directory");
        if !run("mount", &["-t", "tmpfs", "-o", "size=4m,mode=755", "airdock-test", at.to_str().expect("UTF-8")]) {
            eprintln!("SKIPPED: a tmpfs cannot be mounted here");
            return None;
        }
        Some(SmallDisk(at))
    }

    pub fn fill(&self) {
        let mut zero = File::open("/dev/zero").expect("zeros");
        let filled = std::io::copy(&mut zero, &mut File::create(self.0.join("filler")).expect("a file"));
        assert!(filled.is_err_and(|e| e.kind() == std::io::ErrorKind::StorageFull));
    }

    pub fn empty(&self) {
        fs::remove_file(self.0.join("filler")).expect("making room");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        run("umount", &["-l", self.0.to_str().expect("UTF-8")]);
    }
}

/// An ext4 in a file.
pub struct Disk {
    at: PathBuf,
    mounted: bool,
}

impl Disk {
    pub fn mount(svd: &Svd, at: PathBuf) -> Option<Disk> {
        fs::create_dir_all(&at).expect("a directory");
        let image = svd.path("disk");
        File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("a file");
        let (image, text) = (image.to_str().expect("UTF-8"), at.to_str().expect("UTF-8"));
        if !run("mkfs.ext4", &["-q", image]) || !run("mount", &["-o", "loop,errors=remount-ro", image, text]) {
            eprintln!("SKIPPED: no ext4 can be mounted from a file here");
            return None;
        }
        Some(Disk { at, mounted: true })
    }

    fn text(&self) -> &str {
        self.at.to_str().expect("UTF-8")
    }

    /// Whoever writes to it from now on is in uninterruptible sleep.
    pub fn freeze(&self) {
        assert!(run("fsfreeze", &["-f", self.text()]), "the disk cannot be frozen");
    }

    pub fn thaw(&self) {
        assert!(run("fsfreeze", &["-u", self.text()]), "the disk cannot go on");
    }

    /// As after an error of the hardware: read-only at once, also for files that are open for writing. False, where the
    /// kernel cannot be asked for it.
    #[must_use]
    pub fn break_down(&self) -> bool {
        let output = Command::new("findmnt").args(["-no", "SOURCE", self.text()]).output();
        let source = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default();
        let device = source.rsplit('/').next().unwrap_or_default();
        let broken = fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "a test").is_ok();
        if !broken {
            eprintln!("SKIPPED: no error of an ext4 can be feigned here");
            return false;
        }
        assert!(File::create(self.at.join("probe")).is_err(), "it can be written to");
        true
    }

    /// The directory below it is in its place, empty and writable; what is open stays on the broken disk.
    pub fn take_away(&mut self) {
        assert!(run("umount", &["-l", self.text()]), "the disk cannot be unmounted");
        self.mounted = false;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            run("fsfreeze", &["-u", self.text()]);
            run("umount", &["-l", self.text()]);
        }
    }
}
