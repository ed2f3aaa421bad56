//! What other users of the machine may try: each test shows first that the attack works on what a naive daemon would do, and
//! then that svd is unharmed.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

#[path = "../support/mod.rs"]
mod support;

mod directories;
mod environment;
mod http;
mod planted;
mod sockets;
mod strangers;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use support::plain::{NOBODY, SLEEP};
use support::svd::Svd;

/// Writes as a naive daemon does: to whatever has that name.
fn naive_write(path: &Path) {
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    file.and_then(|mut file| file.write_all(b"overwritten")).expect("a naive write goes through");
}

/// A file that only root may read and write, and what it is to keep.
struct Victim(PathBuf);

impl Victim {
    fn new(svd: &Svd) -> Victim {
        let victim = Victim(svd.path("victim"));
        victim.restore();
        victim
    }

    fn restore(&self) {
        fs::write(&self.0, "precious=secret-of-root\n").expect("the victim");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(&self.0, mode).expect("its mode");
    }

    fn is_unharmed(&self) -> bool {
        let meta = fs::symlink_metadata(&self.0).expect("the victim");
        let (mode, owner) = (std::os::unix::fs::MetadataExt::mode(&meta), std::os::unix::fs::MetadataExt::uid(&meta));
        let same = fs::read_to_string(&self.0).is_ok_and(|text| text == "precious=secret-of-root\n");
        same && owner == 0 && mode & 0o777 == 0o600
    }

    /// Shows that what is planted there leads a naive write to the victim, and undoes that.
    #[track_caller]
    fn is_reached_by_a_naive_write(&self, planted: &Path) {
        naive_write(planted);
        assert!(!self.is_unharmed(), "a naive write to {} does not reach the victim", planted.display());
        self.restore();
    }

    #[track_caller]
    fn assert_unharmed(&self, svd: &Svd) {
        assert!(self.is_unharmed(), "it is now {:?}\n{}", fs::read_to_string(&self.0), svd.said());
    }
}

/// A symbolic link of the service's user.
fn link(target: &Path, planted: &Path) {
    let _ = fs::remove_file(planted);
    std::os::unix::fs::symlink(target, planted).expect("a link");
    std::os::unix::fs::lchown(planted, Some(NOBODY), Some(NOBODY)).expect("its owner");
}

/// One more name of a file. Made by root, as most kernels let nobody else do that (`fs.protected_hardlinks`); not all do.
fn hard_link(target: &Path, planted: &Path) {
    let _ = fs::remove_file(planted);
    fs::hard_link(target, planted).expect("a hard link");
}

/// A directory that belongs to the service's user.
fn users_directory(path: &Path) {
    fs::create_dir_all(path).expect("a directory");
    std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("its owner");
}
