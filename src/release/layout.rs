//! The directories below a root: `releases/ID`, `current`, `shared`, `venv/HASH`. Everything here touches the file system,
//! which may hang: not for the event loop.

use super::ReleaseId;
use crate::sys::trust::{self, Distrust, Rule};
use crate::sys::{durable, io_text};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

/// Begins what is not whole yet.
const PARTIAL: &str = ".partial-";
/// Begins an environment that was built and is not root's yet.
const BUILT: &str = ".built-";

#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> String {
    format!("cannot {what} {}: {}", path.display(), io_text(error))
}

impl Layout {
    pub fn new(root: &Path) -> Layout {
        Layout { root: root.to_owned() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn release(&self, id: &ReleaseId) -> PathBuf {
        self.root.join("releases").join(id.as_str())
    }

    /// Where a release is put together; nothing looks for one there.
    pub fn partial(&self, id: &ReleaseId) -> PathBuf {
        self.root.join("releases").join(format!("{PARTIAL}{id}"))
    }

    pub fn current(&self) -> PathBuf {
        self.root.join("current")
    }

    pub fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }

    pub fn venv(&self, name: &str) -> PathBuf {
        self.root.join("venv").join(name)
    }

    /// Where an environment is while it is sealed: as it was built, and the copy that takes its place.
    pub fn sealing(&self, name: &str) -> (PathBuf, PathBuf) {
        (self.venv(&format!("{BUILT}{name}")), self.venv(&format!("{PARTIAL}{name}")))
    }

    /// Makes what is missing of `releases`, `venv` and `shared`, but not the root itself, whose place people choose.
    ///
    /// # Errors
    /// A sentence; also where somebody else could put another thing in the place of what root makes there.
    pub fn create(&self) -> Result<(), String> {
        if !self.root.is_dir() {
            let root = self.root.display();
            return Err(format!("there is no directory {root}, where the releases go; make it: mkdir -p {root}"));
        }
        self.check()?;
        for name in ["releases", "venv", "shared"] {
            let path = self.root.join(name);
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path)
                .map_err(|e| cannot("make the directory", &path, &e))?;
        }
        Ok(())
    }

    /// Root gives files away and removes them here, by their names: nobody else may decide what these mean.
    fn check(&self) -> Result<(), String> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(());
        }
        for path in [self.root.clone(), self.root.join("releases"), self.root.join("venv")] {
            match trust::path(&path, Rule::Strict) {
                Err(Distrust::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(distrust) => {
                    let help = distrust.help().map(|help| format!("; mend it: {help}")).unwrap_or_default();
                    return Err(format!(
                        "releases are to be out of the service's own reach, but {distrust}{help} (what the service \
                         writes belongs below {})",
                        self.shared().display()
                    ));
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// What `current` names, if that is a release.
    pub fn current_release(&self) -> Option<ReleaseId> {
        let real = self.current().canonicalize().ok()?;
        let releases = self.root.join("releases").canonicalize().ok()?;
        (real.parent() == Some(&releases)).then(|| ReleaseId::new(real.file_name()?.to_str()?).ok()).flatten()
    }

    /// `current` names this release from now on; at no moment none. `None`: it names nothing any more.
    ///
    /// # Errors
    /// A sentence; it is then as it was.
    pub fn switch(&self, to: Option<&ReleaseId>) -> Result<(), String> {
        let current = self.current();
        let Some(id) = to else {
            return match fs::remove_file(&current) {
                Err(e) if e.kind() != ErrorKind::NotFound => Err(cannot("remove", &current, &e)),
                _ => durable::sync_directory(&self.root).map_err(|e| cannot("write", &self.root, &e)),
            };
        };
        let wanted = Path::new("releases").join(id.as_str());
        if fs::read_link(&current).is_ok_and(|there| there == wanted) {
            return Ok(());
        }
        if !self.release(id).is_dir() {
            return Err(format!("there is no release {id}: {} does not exist", self.release(id).display()));
        }
        if fs::symlink_metadata(&current).is_ok_and(|meta| meta.is_dir()) {
            let text = current.display();
            return Err(format!("{text} is a directory, and must be a symbolic link to a release; move it away"));
        }
        relink(&current, &wanted)
    }

    /// `RELEASE/venv` leads to this environment from now on; at no moment to none.
    ///
    /// # Errors
    /// A sentence; it is then as it was.
    pub fn link_venv(&self, id: &ReleaseId, name: &str) -> Result<(), String> {
        let (link, target) = (self.release(id).join("venv"), Path::new("../../venv").join(name));
        if fs::read_link(&link).is_ok_and(|there| there == target) {
            return Ok(());
        }
        if fs::symlink_metadata(&link).is_ok_and(|meta| !meta.is_symlink()) {
            return Err(format!(
                "the release has something called venv itself, where the link to its environment goes; leave it \
                 out, or set [deploy] build = \"none\" to use it ({})",
                link.display()
            ));
        }
        relink(&link, &target)
    }

    /// The name of the environment that `RELEASE/venv` leads to.
    pub fn linked_venv(&self, id: &ReleaseId) -> Option<String> {
        fs::read_link(self.release(id).join("venv")).ok()?.file_name()?.to_str().map(ToOwned::to_owned)
    }

    /// Puts links to `shared` into a release that is being put together.
    ///
    /// # Errors
    /// A sentence: the release has something of that name itself.
    pub fn link_shared(&self, release: &Path, names: &[Box<str>]) -> Result<(), String> {
        for name in names {
            let (link, target) = (release.join(&**name), self.shared().join(&**name));
            if fs::symlink_metadata(&link).is_ok() {
                return Err(format!(
                    "the release has {name:?} itself, which [deploy] shared says is a link into {}; remove it from one of them",
                    self.shared().display()
                ));
            }
            if let Some(parent) = link.parent() {
                fs::create_dir_all(parent).map_err(|e| cannot("make the directory", parent, &e))?;
            }
            symlink(&target, &link).map_err(|e| cannot("make", &link, &e))?;
        }
        Ok(())
    }

    /// A release that was put together is whole.
    ///
    /// # Errors
    /// A sentence.
    pub fn complete(&self, id: &ReleaseId) -> Result<(), String> {
        let (partial, release) = (self.partial(id), self.release(id));
        fs::rename(&partial, &release).map_err(|e| cannot("rename", &partial, &e))?;
        let parent = self.root.join("releases");
        durable::sync_directory(&parent).map_err(|e| {
            // Best effort: one that is there and that nobody knows would be in the way.
            let _ = fs::rename(&release, &partial);
            cannot("write", &parent, &e)
        })
    }

    /// Removes what an interrupted import has left.
    ///
    /// # Errors
    /// A sentence.
    pub fn clear_partial(&self, id: &ReleaseId) -> Result<(), String> {
        remove_tree(&self.partial(id))
    }

    /// Removes a release, so that at no moment half of one has its name.
    ///
    /// # Errors
    /// A sentence.
    pub fn remove(&self, id: &ReleaseId) -> Result<(), String> {
        self.check()?;
        let (partial, release) = (self.partial(id), self.release(id));
        remove_tree(&partial)?;
        match fs::rename(&release, &partial) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(|e| cannot("rename", &release, &e))?,
        }
        remove_tree(&partial)
    }

    /// Removes what imports and builds have left behind that an earlier svd was killed in. Nothing of the kind may be under way.
    ///
    /// # Errors
    /// A sentence.
    pub fn clear_leftovers(&self) -> Result<(), String> {
        self.check()?;
        for (dir, beginnings) in [("releases", &[PARTIAL][..]), ("venv", &[PARTIAL, BUILT])] {
            for entry in entries(&self.root.join(dir))? {
                let name = entry.file_name();
                if beginnings.iter().any(|beginning| name.as_encoded_bytes().starts_with(beginning.as_bytes())) {
                    remove_tree(&entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// Removes virtual environments that no release leads to. Gives how many.
    ///
    /// # Errors
    /// A sentence.
    pub fn prune_venvs(&self) -> Result<u32, String> {
        self.check()?;
        // What the releases themselves say: some were here before svd knew of any.
        let mut used = BTreeSet::new();
        for release in entries(&self.root.join("releases"))? {
            let link = release.path().join("venv");
            match fs::read_link(&link) {
                Ok(target) => used.extend(target.file_name().map(ToOwned::to_owned)),
                Err(e)
                    if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput | ErrorKind::NotADirectory) => {
                }
                Err(e) => return Err(cannot("read", &link, &e)),
            }
        }
        let mut removed = 0;
        for entry in entries(&self.root.join("venv"))? {
            let name = entry.file_name();
            if name.to_str().is_some_and(super::venv::is_name) && !used.contains(&name) {
                remove_tree(&entry.path())?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

/// A link to something else, at once.
fn relink(link: &Path, target: &Path) -> Result<(), String> {
    let (Some(dir), Some(name)) = (link.parent(), link.file_name()) else { return Ok(()) };
    let new = dir.join(format!("{PARTIAL}{}", name.to_string_lossy()));
    match fs::remove_file(&new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(cannot("remove", &new, &e)),
        _ => {}
    }
    symlink(target, &new).map_err(|e| cannot("make", &new, &e))?;
    fs::rename(&new, link).map_err(|e| cannot("replace", link, &e))?;
    durable::sync_directory(dir).map_err(|e| cannot("write", dir, &e))
}

/// Empty where there is no such directory.
fn entries(dir: &Path) -> Result<Vec<fs::DirEntry>, String> {
    match fs::read_dir(dir).and_then(Iterator::collect) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        entries => entries.map_err(|e| cannot("read", dir, &e)),
    }
}

/// # Errors
/// A sentence. That there is nothing is none.
pub fn remove_tree(path: &Path) -> Result<(), String> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(cannot("remove", path, &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ReleaseId {
        ReleaseId::new(text).expect("a name")
    }

    fn layout() -> (tempfile::TempDir, Layout) {
        let dir = tempfile::tempdir().expect("a directory");
        let layout = Layout::new(dir.path());
        layout.create().expect("created");
        for name in ["a", "b"] {
            fs::create_dir(layout.release(&id(name))).expect("mkdir");
        }
        (dir, layout)
    }

    #[test]
    fn current_is_switched() {
        let (_dir, layout) = layout();
        assert_eq!(layout.current_release(), None);
        layout.switch(Some(&id("a"))).expect("switched");
        assert_eq!(fs::read_link(layout.current()).expect("a link"), Path::new("releases/a"));
        // Left by a death.
        symlink("nowhere", layout.root().join(".partial-current")).expect("symlink");
        layout.switch(Some(&id("b"))).expect("switched");
        assert_eq!(layout.current_release(), Some(id("b")));
        let why = layout.switch(Some(&id("c"))).expect_err("not there");
        assert!(why.contains("no release c"), "{why}");
        assert_eq!(layout.current_release(), Some(id("b")));
        layout.switch(None).expect("removed");
        layout.switch(None).expect("there is none");
        fs::create_dir(layout.current()).expect("mkdir");
        assert!(layout.switch(Some(&id("a"))).expect_err("a directory").contains("move it away"));
    }

    #[test]
    fn a_release_leads_to_its_environment() {
        let (_dir, layout) = layout();
        let link = layout.release(&id("a")).join("venv");
        layout.link_venv(&id("a"), "one").expect("linked");
        // Left by a death.
        symlink("nowhere", layout.release(&id("a")).join(".partial-venv")).expect("symlink");
        layout.link_venv(&id("a"), "two").expect("linked");
        assert_eq!(fs::read_link(&link).expect("a link"), Path::new("../../venv/two"));
        assert_eq!(fs::read_dir(layout.release(&id("a"))).expect("list").count(), 1);
        assert_eq!((layout.linked_venv(&id("a")).as_deref(), layout.linked_venv(&id("b"))), (Some("two"), None));
        fs::create_dir(layout.release(&id("b")).join("venv")).expect("mkdir");
        assert!(layout.link_venv(&id("b"), "one").expect_err("its own").contains("build = \"none\""));
    }

    #[test]
    fn what_is_shared_is_linked() {
        let (dir, layout) = layout();
        let release = layout.release(&id("a"));
        layout.link_shared(&release, &["media".into(), "config/local.py".into()]).expect("linked");
        assert_eq!(
            fs::read_link(release.join("config/local.py")).expect("a link"),
            dir.path().join("shared/config/local.py")
        );
        assert!(layout.link_shared(&release, &["media".into()]).expect_err("there").contains("itself"));
    }

    #[test]
    fn releases_and_environments_are_removed() {
        let (_dir, layout) = layout();
        fs::write(layout.release(&id("a")).join("file"), "").expect("write");
        layout.remove(&id("a")).expect("removed");
        layout.remove(&id("a")).expect("it is not there");
        assert_eq!(fs::read_dir(layout.root().join("releases")).expect("list").count(), 1);
        let (used, unused) = ("0".repeat(32), "1".repeat(32));
        for name in [&*used, &*unused, "people's own"] {
            fs::create_dir(layout.venv(name)).expect("mkdir");
        }
        // Nobody but the release itself says so.
        symlink(Path::new("../../venv").join(&used), layout.release(&id("b")).join("venv")).expect("symlink");
        assert_eq!(layout.prune_venvs(), Ok(1));
        assert!(layout.venv(&used).exists() && !layout.venv(&unused).exists());
        assert_eq!(fs::read_dir(layout.root().join("venv")).expect("list").count(), 2);
    }

    #[test]
    fn what_a_death_has_left_is_removed() {
        let (_dir, layout) = layout();
        let (built, sealed) = layout.sealing(&"0".repeat(32));
        for path in [layout.partial(&id("c")), built, sealed] {
            fs::create_dir_all(path.join("lib")).expect("mkdir");
        }
        layout.clear_leftovers().expect("cleared");
        assert_eq!(fs::read_dir(layout.root().join("venv")).expect("list").count(), 0);
        assert_eq!(fs::read_dir(layout.root().join("releases")).expect("list").count(), 2);
    }

    #[test]
    fn where_somebody_else_decides_nothing_is_done() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root gives files away");
            return;
        }
        let (_dir, layout) = layout();
        fs::create_dir(layout.venv(&"1".repeat(32))).expect("mkdir");
        for name in ["", "releases", "venv"] {
            let path = layout.root().join(name);
            std::os::unix::fs::chown(&path, Some(12_345), None).expect("chown");
            let why = layout.create().expect_err("refused");
            assert!(why.contains("belongs to user 12345") && why.contains("mend it: chown"), "{why}");
            assert!(layout.remove(&id("a")).is_err() && layout.prune_venvs().is_err());
            std::os::unix::fs::chown(&path, Some(0), None).expect("chown");
        }
        assert!(layout.release(&id("a")).exists());
        layout.create().expect("as before");
    }
}
