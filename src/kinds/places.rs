//! Where a generation lives: `current` and the virtual environment, resolved once and kept as real directories.

use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

/// The real directories of a generation. Empty where the service has no root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    pub root: Option<PathBuf>,
    /// The release's real directory; the root itself where there are no releases.
    pub release: Option<PathBuf>,
    /// The release's name, where there are releases.
    pub id: Option<Box<str>>,
    /// The virtual environment's real directory; where none is, the place that it is looked for first.
    pub venv: Option<PathBuf>,
    venv_exists: bool,
}

/// Looked for in this order: the release's own, then one that all releases share.
const VENVS: [&str; 2] = ["venv", ".venv"];

/// Resolves `root`, the release (`None`: what `current` names) and the virtual environment. Touches the file system,
/// which may hang: not for the event loop.
///
/// # Errors
/// A sentence: what does not exist, and what to do.
pub fn resolve(root: Option<&Path>, release: Option<&str>) -> Result<Places, String> {
    let Some(root) = root else {
        return match release {
            None => Ok(Places::default()),
            Some(id) => Err(format!("cannot take release {id}: the service has no root, so it has no releases")),
        };
    };
    let (directory, id) = match release {
        Some(id) => (named(root, id)?, Some(id.into())),
        None => current(root)?,
    };
    let mut venvs = VENVS.iter().flat_map(|name| [directory.join(name), root.join(name)]);
    let venv = venvs.find(|venv| venv.join("bin/python").exists());
    let venv_exists = venv.is_some();
    let venv = match venv {
        Some(venv) => venv.canonicalize().unwrap_or(venv),
        None => directory.join(VENVS[0]),
    };
    let root = Some(root.to_owned());
    Ok(Places { root, release: Some(directory), id, venv: Some(venv), venv_exists })
}

fn named(root: &Path, id: &str) -> Result<PathBuf, String> {
    let mut parts = Path::new(id).components();
    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
        return Err(format!("{id:?} is no release: give the name of a directory in {}/releases", root.display()));
    }
    let path = root.join("releases").join(id);
    path.canonicalize().map_err(|e| match e.kind() {
        ErrorKind::NotFound => format!("there is no release {id}: {} does not exist", path.display()),
        _ => format!("cannot look at release {id} ({}): {}", path.display(), crate::sys::io_text(&e)),
    })
}

/// What is said of a root that was made ready, and has had no release so far, begins with this.
const NO_RELEASE: &str = "there is no release in ";

/// Is it no fault but the state before the first deploy that this is the reason of?
pub fn is_before_the_first(reason: &str) -> bool {
    reason.starts_with(NO_RELEASE)
}

fn current(root: &Path) -> Result<(PathBuf, Option<Box<str>>), String> {
    let current = root.join("current");
    match current.canonicalize() {
        Ok(real) => {
            let releases = root.join("releases").canonicalize().ok();
            let below = releases.is_some() && real.parent() == releases.as_deref();
            let id = below.then(|| real.file_name()).flatten().map(|id| id.to_string_lossy().into());
            Ok((real, id))
        }
        Err(e) if e.kind() == ErrorKind::NotFound && current.symlink_metadata().is_ok() => {
            let target = current.read_link().unwrap_or_default();
            Err(format!("{} names {}, which does not exist", current.display(), target.display()))
        }
        Err(e)
            if e.kind() == ErrorKind::NotFound && !root.join("releases").exists() && root.join("shared").exists() =>
        {
            Err(format!("{NO_RELEASE}{} yet; `svctl deploy` brings one", root.display()))
        }
        Err(e) if e.kind() == ErrorKind::NotFound && root.join("releases").exists() => Err(format!(
            "{} has releases but no `current` that names one; `svctl deploy` brings one, or make it: ln -sfn releases/ID {}",
            root.display(),
            current.display()
        )),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let real = root.canonicalize().map_err(|e| format!("{}: {}", root.display(), crate::sys::io_text(&e)))?;
            Ok((real, None))
        }
        Err(e) => Err(format!("cannot look at {}: {}", current.display(), crate::sys::io_text(&e))),
    }
}

impl Places {
    /// The virtual environment's Python, if there is one.
    pub fn venv_python(&self) -> Option<String> {
        if !self.venv_exists {
            return None;
        }
        Some(self.venv.as_ref()?.join("bin/python").to_str()?.to_owned())
    }

    /// The links that release and environment may have been found by.
    pub fn links(&self) -> impl Iterator<Item = PathBuf> {
        let current = self.root.iter().map(|root| root.join("current"));
        let named = self.root.iter().zip(&self.id).map(|(root, id)| root.join("releases").join(&**id));
        let above = [self.release.as_deref(), self.root.as_deref()].into_iter().flatten();
        current
            .chain(named)
            .chain(above.flat_map(|dir| VENVS.iter().map(|name| dir.join(name))))
            .collect::<Vec<_>>()
            .into_iter()
    }

    /// The virtual environment, if there is one.
    pub fn real_venv(&self) -> Option<&Path> {
        self.venv.as_deref().filter(|_| self.venv_exists)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_root_without_releases_is_the_release() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let real = dir.path().canonicalize().expect("it exists");
        let places = resolve(Some(&real), None).expect("resolves");
        assert_eq!(places.release.as_deref(), Some(&*real));
        assert_eq!((places.id, places.venv_exists), (None, false));
        // It was prepared for releases.
        fs::create_dir(real.join("shared")).expect("mkdir");
        let none = resolve(Some(&real), None).expect_err("no release");
        assert!(is_before_the_first(&none) && none.contains("svctl deploy"), "{none}");
    }

    #[test]
    fn current_and_the_environment_become_real_directories() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path().canonicalize().expect("it exists");
        fs::create_dir_all(root.join("releases/one")).expect("mkdir");
        fs::create_dir_all(root.join("venv-7/bin")).expect("mkdir");
        fs::write(root.join("venv-7/bin/python"), "").expect("write");
        symlink("../../venv-7", root.join("releases/one/venv")).expect("symlink");
        let missing = resolve(Some(&root), None).expect_err("no current");
        assert!(missing.contains("no `current`"), "{missing}");
        symlink("releases/one", root.join("current")).expect("symlink");
        let places = resolve(Some(&root), None).expect("resolves");
        assert_eq!(places.release, Some(root.join("releases/one")));
        assert_eq!(places.id.as_deref(), Some("one"));
        assert_eq!(places.real_venv(), Some(&*root.join("venv-7")));
        let other = resolve(Some(&root), Some("two")).expect_err("no such release");
        assert!(other.contains("there is no release two") && !is_before_the_first(&other), "{other}");
        for bad in ["..", "one/..", "/etc", ""] {
            assert!(resolve(Some(&root), Some(bad)).is_err(), "{bad:?} was taken");
        }
    }
}
