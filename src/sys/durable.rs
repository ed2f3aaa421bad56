//! Files that are the old ones or the new ones, never half, at whatever instant the machine stops.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Replaces `path` by a file with this content and these permission bits; on disk when it returns.
///
/// Writes `.NAME.PID-N.tmp` beside it, syncs, renames, and syncs the directory. On an error the old file is untouched.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write_with(path, content, mode, true)
}

/// As [`write`], but does not wait for the disk: whole after a death of svd, not after one of the machine. For the run
/// directory, which a boot empties anyhow.
pub fn write_fast(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    write_with(path, content, mode, false)
}

fn write_with(path: &Path, content: &[u8], mode: u32, sync: bool) -> io::Result<()> {
    let (dir, temporary) = beside(path)?;
    let result = write_file(&temporary, content, mode, sync).and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = result {
        // Best effort: the first error is the one to tell.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    if sync { sync_directory(dir) } else { Ok(()) }
}

/// Replaces a file by one with this content, the same owner, group and permission bits; on disk when it returns.
pub fn replace(path: &Path, content: &[u8], like: &std::fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let (dir, temporary) = beside(path)?;
    let make = || {
        write_file(&temporary, content, 0o600, false)?;
        let file = OpenOptions::new().write(true).open(&temporary)?;
        let made = file.metadata()?;
        if (made.uid(), made.gid()) != (like.uid(), like.gid()) {
            std::os::unix::fs::fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        // After the owner, as that takes some bits away.
        file.set_permissions(std::fs::Permissions::from_mode(like.mode() & 0o7777))?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    if let Err(error) = make() {
        // Best effort: the first error is the one to tell.
        let _ = std::fs::remove_file(&temporary);
        return Err(error);
    }
    sync_directory(dir)
}

fn beside(path: &Path) -> io::Result<(&Path, PathBuf)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}-{number}.tmp", std::process::id()));
    Ok((dir, dir.join(temporary)))
}

fn write_file(path: &Path, content: &[u8], mode: u32, sync: bool) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    // After the content, and whatever the umask: nobody reads it before it is whole.
    file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    if sync { file.sync_all() } else { Ok(()) }
}

/// Makes renames, creations and removals in a directory durable.
pub fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn replaces_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("state.json");
        write(&path, b"one", 0o644).expect("write");
        write(&path, b"two", 0o640).expect("write again");
        write_fast(&path, b"three", 0o640).expect("write fast");
        assert_eq!(std::fs::read(&path).expect("read"), b"three");
        let mode = std::fs::metadata(&path).expect("stat").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("is-a-directory");
        std::fs::create_dir(&path).expect("mkdir");
        std::fs::write(path.join("inside"), b"x").expect("a file");
        assert!(write(&path, b"new", 0o600).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 1);
    }
}
