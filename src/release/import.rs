//! From a place that a deployer owns to a release that is root's and that nobody changes any more.

use super::ReleaseId;
use super::layout::Layout;
use crate::sys::tree::{self, Copied, Owner, Rules};
use std::path::Path;

/// Files and directories of one release.
const ENTRIES: u64 = 2_000_000;
/// Bytes of one release.
const BYTES: u64 = 64 << 30;

/// Whose the files that arrive are, and whose they become.
#[derive(Clone, Copy, Debug)]
pub struct Hands {
    /// The user who has sent them.
    pub from: u32,
    /// `None`: svd is not root, and all stays its own.
    pub to: Option<Owner>,
}

/// Copies what is below `staging` to the release's directory; it is there as a whole or not at all. One that is there
/// already stays as it is.
///
/// # Errors
/// A sentence: what of it no release may have, or what the disk says.
pub fn import(
    layout: &Layout,
    id: &ReleaseId,
    staging: &Path,
    hands: Hands,
    shared: &[Box<str>],
) -> Result<Copied, String> {
    layout.create()?;
    if layout.release(id).exists() {
        return Ok(Copied::default());
    }
    layout.clear_partial(id)?;
    let partial = layout.partial(id);
    let rules = Rules { owner: hands.from, links_out: false, most_entries: ENTRIES, most_bytes: BYTES };
    let copied = tree::copy(staging, &partial, &rules, hands.to);
    let copied = copied.and_then(|copied| layout.link_shared(&partial, shared).map(|()| copied));
    match copied.and_then(|copied| layout.complete(id).map(|()| copied)) {
        Ok(copied) => Ok(copied),
        Err(why) => {
            // The first error is the one to tell.
            let _ = layout.clear_partial(id);
            Err(why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_release_is_whole_or_not_there() {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path());
        let id = ReleaseId::new("r1").expect("a name");
        let staging = dir.path().join("staging");
        fs::create_dir(&staging).expect("mkdir");
        fs::write(staging.join("app.py"), "1").expect("write");
        std::os::unix::fs::symlink("/etc/passwd", staging.join("bad")).expect("symlink");
        let hands = Hands { from: nix::unistd::geteuid().as_raw(), to: None };
        let why = import(&layout, &id, &staging, hands, &[]).expect_err("refused");
        assert!(why.contains("leads out"), "{why}");
        assert_eq!(fs::read_dir(dir.path().join("releases")).expect("list").count(), 0);
        fs::remove_file(staging.join("bad")).expect("unlink");
        // Left by a death.
        fs::create_dir(layout.partial(&id)).expect("mkdir");
        let copied = import(&layout, &id, &staging, hands, &["media".into()]).expect("imported");
        assert_eq!((copied.entries, copied.bytes), (1, 1));
        assert!(layout.release(&id).join("media").is_symlink());
        fs::write(staging.join("app.py"), "2").expect("write");
        import(&layout, &id, &staging, hands, &[]).expect("it is there");
        assert_eq!(fs::read_to_string(layout.release(&id).join("app.py")).expect("read"), "1");
    }
}
