//! Which files differ between two releases. Touches the file system.

use crate::sys::io_text;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The first path that fits one of the patterns (`**/static/**`) and differs between the two directories.
///
/// # Errors
/// A sentence: a directory or file cannot be read.
pub fn changed(old: &Path, new: &Path, globs: &[Box<str>]) -> Result<Option<PathBuf>, String> {
    let (before, after) = (paths(old, globs)?, paths(new, globs)?);
    if let Some(path) = before.symmetric_difference(&after).next() {
        return Ok(Some(path.clone()));
    }
    for path in after {
        let (old, new) = (old.join(&path), new.join(&path));
        if differ(&old, &new).map_err(|e| format!("cannot read {}: {}", new.display(), io_text(&e)))? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Files and links below the directory that fit.
fn paths(root: &Path, globs: &[Box<str>]) -> Result<BTreeSet<PathBuf>, String> {
    let (mut found, mut left) = (BTreeSet::new(), vec![PathBuf::new()]);
    while let Some(below) = left.pop() {
        let dir = root.join(&below);
        let cannot = |e: std::io::Error| format!("cannot read {}: {}", dir.display(), io_text(&e));
        for entry in std::fs::read_dir(&dir).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let path = below.join(entry.file_name());
            if entry.file_type().map_err(cannot)?.is_dir() {
                left.push(path);
            } else if path.to_str().is_none_or(|text| globs.iter().any(|glob| fast_glob::glob_match(&**glob, text))) {
                found.insert(path);
            }
        }
    }
    Ok(found)
}

fn differ(old: &Path, new: &Path) -> std::io::Result<bool> {
    let (a, b) = (std::fs::symlink_metadata(old)?, std::fs::symlink_metadata(new)?);
    if a.is_symlink() || b.is_symlink() {
        return Ok(a.is_symlink() != b.is_symlink() || std::fs::read_link(old)? != std::fs::read_link(new)?);
    }
    if a.len() != b.len() || !a.is_file() || !b.is_file() {
        return Ok(true);
    }
    let (mut old, mut new) = (File::open(old)?, File::open(new)?);
    let (mut one, mut other) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let read = old.read(&mut one)?;
        if read == 0 {
            return Ok(new.read(&mut other)? != 0);
        }
        match new.read_exact(&mut other[..read]) {
            Ok(()) if one[..read] == other[..read] => {}
            _ => return Ok(true),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_what_fits_counts() {
        let dir = tempfile::tempdir().expect("a directory");
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        for release in [&old, &new] {
            fs::create_dir_all(release.join("app/static/css")).expect("mkdir");
            fs::write(release.join("app/static/css/a.css"), "a").expect("write");
            fs::write(release.join("app/views.py"), "1").expect("write");
        }
        let globs = ["**/static/**".into()];
        let look = || changed(&old, &new, &globs).expect("read");
        assert_eq!(look(), None);
        fs::write(new.join("app/views.py"), "2").expect("write");
        assert_eq!(look(), None);
        fs::write(new.join("app/static/css/a.css"), "b").expect("write");
        assert_eq!(look(), Some("app/static/css/a.css".into()));
        fs::write(new.join("app/static/css/a.css"), "a").expect("write");
        std::os::unix::fs::symlink("a.css", new.join("app/static/css/b.css")).expect("symlink");
        assert_eq!(look(), Some("app/static/css/b.css".into()));
        fs::remove_file(new.join("app/static/css/a.css")).expect("unlink");
        assert_eq!(look(), Some("app/static/css/a.css".into()));
    }
}
