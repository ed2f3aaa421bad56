//! A tree is one svd's alone: its directory is locked (`flock(2)`) as long as that svd or its guardian lives.
//!
//! A tree is named after a run directory, and there may be several of one name beside one tree of control groups: each in a
//! mount namespace of its own. Who has not the lock neither puts anything into a tree nor ends what is there.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::stat::{fstat, stat};

use super::{NoTree, Tree, control, no_tree, own_directory};

/// Between two tries to get a lock.
const AGAIN: Duration = Duration::from_millis(5);

impl Tree {
    /// As [`Tree::create`], with the lock; waits for it until then. `None`: another has it.
    ///
    /// `kept`: by what the guardian has had the lock of a tree meanwhile.
    ///
    /// # Errors
    /// As of [`Tree::create`].
    pub fn hold(id: &str, kept: Option<&OwnedFd>, until: Instant) -> Result<Option<Arc<Tree>>, NoTree> {
        loop {
            let mut tree = Tree::create(id)?;
            let failed = |tree: &Tree, e: &std::io::Error| {
                no_tree(format!("cannot lock the cgroup {}: {}", tree.path.display(), crate::sys::io_text(e)))
            };
            if let Some(kept) = kept.filter(|kept| is_same(kept, &tree.dir)) {
                let dir = kept.try_clone().map_err(|e| failed(&tree, &e))?;
                tree = Tree::new(tree.path.clone(), dir);
            }
            // The lock is that of all copies of the descriptor, and goes with the last one.
            let copy = tree.copy().map_err(|e| failed(&tree, &e))?;
            match File::from(copy).try_lock() {
                // Whoever had it may have removed the directory before it let go.
                Ok(()) if tree.is_there() => return Ok(Some(tree)),
                Ok(()) => {}
                Err(std::fs::TryLockError::WouldBlock) if Instant::now() >= until => return Ok(None),
                Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(AGAIN),
                Err(std::fs::TryLockError::Error(e)) => return Err(failed(&tree, &e)),
            }
        }
    }

    /// Has an svd made a tree of this name, which is still there?
    pub fn is_made(id: &str) -> bool {
        own_directory().is_ok_and(|own| control::base_of(&own).join(super::name(id)).is_dir())
    }

    /// Is one of these groups in the tree of this name? It may be another svd's, and is only looked at.
    pub fn has_any(id: &str, groups: &BTreeSet<Box<str>>) -> bool {
        let Ok(own) = own_directory() else { return false };
        let tree = control::base_of(&own).join(super::name(id));
        groups.iter().any(|group| super::is_name(group) && tree.join(&**group).is_dir())
    }

    /// A copy of its descriptor, which keeps the lock.
    pub fn copy(&self) -> std::io::Result<OwnedFd> {
        self.dir.try_clone()
    }

    fn is_there(&self) -> bool {
        let (own, there) = (fstat(&self.dir), stat(&self.path));
        own.is_ok_and(|own| there.is_ok_and(|there| (own.st_dev, own.st_ino) == (there.st_dev, there.st_ino)))
    }
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let of = |fd| fstat(fd).ok().map(|stat| (stat.st_dev, stat.st_ino));
    of(one).is_some_and(|one| Some(one) == of(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_held_by_one_until_its_last_copy_is_gone() {
        let id = format!("test-hold-{}", std::process::id());
        let now = || Instant::now() + Duration::from_millis(20);
        let Ok(first) = Tree::hold(&id, None, now()) else {
            println!("skipped: needs a cgroup tree that we may write to");
            return;
        };
        let first = first.expect("nobody has it");
        assert!(Tree::is_made(&id));
        assert!(Tree::hold(&id, None, now()).expect("asked").is_none(), "another has it");
        // The guardian's, while svd is started again.
        let kept = first.copy().expect("a copy");
        drop(first);
        assert!(Tree::hold(&id, None, now()).expect("asked").is_none(), "it is kept");
        let again = Tree::hold(&id, Some(&kept), now()).expect("asked").expect("the same svd");
        drop(kept);
        assert!(Tree::hold(&id, None, now()).expect("asked").is_none(), "held by what was made of it");
        // Removed by who has it, and made anew by the next.
        assert!(again.remove().expect("removed") && !Tree::is_made(&id));
        let next = Tree::hold(&id, again.copy().ok().as_ref(), now()).expect("asked").expect("another directory");
        drop(again);
        assert!(next.is_there() && next.remove().expect("removed"));
    }
}
