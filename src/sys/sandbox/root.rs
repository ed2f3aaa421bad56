//! Another directory as `/` (`pivot_root(2)`): nothing outside is left in the process's mounts, so there is no way back to it.

use super::Mount;
use super::entrance::{Result, cannot};
use super::mounts::{attach, clone_tree, show_at};
use super::places;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::unistd::{chdir, pivot_root};
use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// As many links in a path as the kernel follows.
const LINKS: u32 = 40;

/// Makes `path` the root. `shown` is svd's, and seen in it where it was before.
pub(super) fn enter(path: &Path, shown: &[PathBuf]) -> Result<()> {
    let failed = |e: Errno| cannot(format_args!("make {} the service's /", path.display()))(e);
    let mut trees = Vec::new();
    for shown in shown {
        match clone_tree(shown) {
            Ok(tree) => trees.push((shown, tree)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(e) => return Err(cannot(format_args!("show {} below chroot", shown.display()))(e)),
        }
    }
    // It must be a mount.
    clone_tree(path).and_then(|tree| attach(&tree, &places::existing(path)?)).map_err(failed)?;
    chdir(path).map_err(failed)?;
    // The old one comes to lie upon the new one, and is taken off.
    pivot_root(".", ".").map_err(failed)?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed)?;
    chdir("/").map_err(failed)?;
    for (shown, tree) in trees {
        show_at(shown, &tree).map_err(|e| {
            let place = Inside::below(path, shown);
            let what = format_args!("show {} below chroot; create {}", shown.display(), place.display()).to_string();
            cannot(what)(e)
        })?;
    }
    Ok(())
}

/// What a service sees whose `/` is another directory: where that lies on the host. The host is asked, and may hang.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inside {
    root: PathBuf,
    /// What is seen at the first path is the second one of the host's.
    binds: Vec<(PathBuf, PathBuf)>,
}

impl Inside {
    pub fn new(root: PathBuf, binds: Vec<(PathBuf, PathBuf)>) -> Inside {
        Inside { root, binds }
    }

    /// `None`: the service's root is the host's.
    pub fn of(mounts: &[Mount]) -> Option<Inside> {
        let Some(Mount::Root { path, .. }) = mounts.first() else { return None };
        let binds = mounts.iter().filter_map(|step| match step {
            Mount::Bind { source, target } => Some((target.clone(), source.clone())),
            _ => None,
        });
        Some(Inside::new(path.clone(), binds.collect()))
    }

    /// On the host.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn below(root: &Path, path: &Path) -> PathBuf {
        root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Of a path without links.
    fn outside(&self, path: &Path) -> PathBuf {
        let binds = self.binds.iter().filter(|(target, _)| path.starts_with(target));
        let Some((target, source)) = binds.max_by_key(|(target, _)| target.components().count()) else {
            return Inside::below(&self.root, path);
        };
        match path.strip_prefix(target) {
            Ok(rest) if !rest.as_os_str().is_empty() => source.join(rest),
            _ => source.clone(),
        }
    }

    /// Where the links of a path lead, as the service sees it, and where that lies on the host. What is not there stays as it is.
    pub fn find(&self, path: &Path) -> (PathBuf, PathBuf) {
        let names = |path: &Path| -> VecDeque<OsString> {
            let named = path.components().filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir));
            named.map(|c| c.as_os_str().to_owned()).collect()
        };
        let mut left = names(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&name);
            let link = std::fs::read_link(self.outside(&next)).ok().filter(|_| links < LINKS);
            let Some(link) = link else {
                at = next;
                continue;
            };
            links += 1;
            if link.is_absolute() {
                at = PathBuf::from("/");
            }
            let mut all = names(&link);
            all.append(&mut left);
            left = all;
        }
        let outside = self.outside(&at);
        (at, outside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_lead_where_they_do_inside() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("usr")).expect("usr");
        let host = dir.path().join("host");
        std::fs::create_dir_all(host.join("bin")).expect("bin");
        symlink("usr/bin", root.join("bin")).expect("a link");
        symlink("/usr/../bin/sh", root.join("shell")).expect("a link");
        symlink("/loop", root.join("loop")).expect("a link");
        symlink("/etc/alternatives/python", host.join("bin/python")).expect("a link");
        let inside = Inside::new(root.clone(), vec![("/usr".into(), host.clone())]);
        let find = |path: &str| inside.find(Path::new(path));
        assert_eq!(find("/bin/sh"), ("/usr/bin/sh".into(), host.join("bin/sh")));
        assert_eq!(find("/shell"), ("/usr/bin/sh".into(), host.join("bin/sh")));
        assert_eq!(find("/usr"), ("/usr".into(), host));
        assert_eq!(find("/bin/python"), ("/etc/alternatives/python".into(), root.join("etc/alternatives/python")));
        assert_eq!(find("/../../x"), ("/x".into(), root.join("x")));
        assert_eq!(find("/"), ("/".into(), root.clone()));
        assert_eq!(find("/loop").0, PathBuf::from("/loop"), "it ends");
    }
}
