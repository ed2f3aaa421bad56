//! Which file a program's name means, settled before the fork.

use crate::sys::sandbox::Inside;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why a program cannot be found, as a sentence for the user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    #[error("the program's name is empty")]
    Empty,
    #[error("cannot find the program {}: no such file", .0.display())]
    Missing(PathBuf),
    #[error("cannot find the program {:?} in PATH ({}); write its full path", .name, .path.display())]
    NotInPath { name: OsString, path: OsString },
    #[error("{} is a directory, not a program", .0.display())]
    Directory(PathBuf),
    #[error("{} is not executable; chmod +x it", .0.display())]
    NotExecutable(PathBuf),
    #[error("cannot look at the program {}: {}", .path.display(), .reason)]
    Unreadable { path: PathBuf, reason: String },
}

/// The file that `name` means: itself when it has a slash (relative to `dir`), else the first executable one of
/// `path_var`, whose empty and relative entries are relative to `dir` as in a shell.
///
/// Execute permission is checked for anybody, not for the user that the child will be: `execve` has the last word.
pub fn resolve_program(name: &OsStr, path_var: &OsStr, dir: &Path) -> Result<PathBuf, ProgramError> {
    resolve_program_by(name, path_var, dir, examine)
}

/// The same for who sees other files.
pub fn resolve_program_within(
    inside: &Inside,
    name: &OsStr,
    path_var: &OsStr,
    dir: &Path,
) -> Result<PathBuf, ProgramError> {
    resolve_program_by(name, path_var, dir, |path| {
        // Its name is the one that the service knows.
        examine(&inside.find(path).1).map_err(|error| match error {
            ProgramError::Missing(_) => ProgramError::Missing(path.into()),
            ProgramError::Directory(_) => ProgramError::Directory(path.into()),
            other => other,
        })
    })
}

fn resolve_program_by(
    name: &OsStr,
    path_var: &OsStr,
    dir: &Path,
    examine: impl Fn(&Path) -> Result<(), ProgramError>,
) -> Result<PathBuf, ProgramError> {
    if name.is_empty() {
        return Err(ProgramError::Empty);
    }
    if name.as_bytes().contains(&b'/') {
        let path = dir.join(name);
        return examine(&path).map(|()| path);
    }
    let mut refused = None;
    for entry in std::env::split_paths(path_var) {
        let path = dir.join(entry).join(name);
        match examine(&path) {
            Ok(()) => return Ok(path),
            Err(ProgramError::Missing(_) | ProgramError::Directory(_)) => {}
            Err(error) => {
                refused.get_or_insert(error);
            }
        }
    }
    Err(refused.unwrap_or_else(|| ProgramError::NotInPath { name: name.into(), path: path_var.into() }))
}

fn examine(path: &Path) -> Result<(), ProgramError> {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            return Err(ProgramError::Missing(path.into()));
        }
        Err(e) => {
            return Err(ProgramError::Unreadable { path: path.into(), reason: crate::sys::io_text(&e) });
        }
    };
    if meta.is_dir() {
        Err(ProgramError::Directory(path.into()))
    } else if meta.permissions().mode() & 0o111 == 0 {
        Err(ProgramError::NotExecutable(path.into()))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(name: &str, path: &str, dir: &Path) -> Result<PathBuf, String> {
        resolve_program(name.as_ref(), path.as_ref(), dir).map_err(|e| e.to_string())
    }

    #[test]
    fn names_paths_and_relative_paths() {
        let root = Path::new("/");
        assert_eq!(resolve("sh", "/nowhere:/bin", root), Ok("/bin/sh".into()));
        assert_eq!(resolve("./sh", "", Path::new("/bin")), Ok("/bin/./sh".into()));
        assert_eq!(resolve("/bin/sh", "", root), Ok("/bin/sh".into()));
        assert_eq!(
            resolve("no-such", "/bin:/usr/bin", root),
            Err("cannot find the program \"no-such\" in PATH (/bin:/usr/bin); write its full path".into())
        );
        assert_eq!(resolve("/nowhere/x", "", root), Err("cannot find the program /nowhere/x: no such file".into()));
        assert_eq!(resolve("/etc", "", root), Err("/etc is a directory, not a program".into()));
        assert_eq!(resolve("/etc/passwd", "", root), Err("/etc/passwd is not executable; chmod +x it".into()));
    }
}
