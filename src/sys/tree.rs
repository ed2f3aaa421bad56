//! Directory trees that somebody else may change while they are read.
//!
//! Whoever owns the source may put a link in a directory's place, a pipe or a device in a file's, or one more name of a file
//! that only root may read. So every step goes from an open directory to a name in it, no link is followed, nothing is waited
//! for, what was opened is looked at, and it must be the owner's own.

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, mkdirat};
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat, syncfs};
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Directories in each other.
const DEEPEST: usize = 64;
/// Bytes of the paths of all links, which are looked at when all is there.
const LINKS: usize = 64 << 20;

/// What is copied.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whose everything in it must be.
    pub owner: u32,
    /// `false`: a symbolic link must lead to something inside, however it gets there.
    pub links_out: bool,
    pub most_entries: u64,
    pub most_bytes: u64,
}

/// Whose the copy is. Nobody else may write it; who may read it is as it was, and the group may what the owner may.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    pub entries: u64,
    pub bytes: u64,
}

struct Copy<'a> {
    rules: &'a Rules,
    /// `None`: svd is not root, and everything is its own.
    owner: Option<Owner>,
    copied: Copied,
    /// From the root on, for messages.
    at: PathBuf,
    links: Vec<PathBuf>,
    /// Of their paths.
    link_bytes: usize,
}

/// Copies the tree below `from` to `to`, which must not exist; on disk when it returns. `owner`: `None` where this process
/// cannot give files away.
///
/// # Errors
/// A sentence: what in it is not copied, and why. A part of the copy may be there then.
pub fn copy(from: &Path, to: &Path, rules: &Rules, owner: Option<Owner>) -> Result<Copied, String> {
    let cannot = |what: &str, path: &Path, e: Errno| format!("cannot {what} {}: {}", path.display(), e.desc());
    let source = nix::fcntl::open(from, directory_flags(), Mode::empty()).map_err(|e| cannot("open", from, e))?;
    nix::unistd::mkdir(to, Mode::S_IRWXU).map_err(|e| cannot("make", to, e))?;
    let target = nix::fcntl::open(to, directory_flags(), Mode::empty()).map_err(|e| cannot("open", to, e))?;
    let mut copy =
        Copy { rules, owner, copied: Copied::default(), at: PathBuf::new(), links: Vec::new(), link_bytes: 0 };
    copy.directory(source, &target, 0)?;
    if !rules.links_out {
        copy.check_links(&target)?;
    }
    syncfs(&target).map_err(|e| cannot("write", to, e))?;
    Ok(copy.copied)
}

fn directory_flags() -> OFlag {
    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC
}

impl Copy<'_> {
    fn cannot(&self, what: &str, errno: Errno) -> String {
        format!("cannot {what} {}: {}", self.shown(), errno.desc())
    }

    fn shown(&self) -> String {
        if self.at.as_os_str().is_empty() { "its directory".to_owned() } else { format!("{:?}", self.at) }
    }

    fn directory(&mut self, source: OwnedFd, target: &OwnedFd, depth: usize) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(format!("{} is more than {DEEPEST} directories deep", self.shown()));
        }
        let meta = fstat(&source).map_err(|e| self.cannot("look at", e))?;
        self.own(meta.st_uid)?;
        let mut dir = Dir::from_fd(source).map_err(|e| self.cannot("read", e))?;
        let mut names: Vec<(CString, Option<Type>)> = Vec::new();
        for entry in dir.iter() {
            let entry = entry.map_err(|e| self.cannot("read", e))?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.count(0)?;
                names.push((name.to_owned(), entry.file_type()));
            }
        }
        for (name, kind) in names {
            self.at.push(OsStr::from_bytes(name.to_bytes()));
            check_name(&name).map_err(|why| format!("{} {why}", self.shown()))?;
            self.entry(&dir, target, &name, kind, depth)?;
            self.at.pop();
        }
        self.seal(target, meta.st_mode, Mode::S_IRWXU)
    }

    fn entry(
        &mut self,
        source: &Dir,
        target: &OwnedFd,
        name: &CStr,
        kind: Option<Type>,
        depth: usize,
    ) -> Result<(), String> {
        if kind == Some(Type::Symlink) {
            return self.link(source, target, name);
        }
        // What it is now, whatever the listing said; a pipe or a lease is not waited for.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let opened = match kind {
            Some(Type::File | Type::Directory) | None => openat(source, name, flags, Mode::empty()),
            Some(_) => return Err(self.odd()),
        };
        let opened = match opened {
            Err(Errno::ELOOP) => return self.link(source, target, name),
            Err(Errno::ENXIO) => return Err(self.odd()),
            opened => opened.map_err(|e| self.cannot("open", e))?,
        };
        let meta = fstat(&opened).map_err(|e| self.cannot("look at", e))?;
        let kind = SFlag::from_bits_truncate(meta.st_mode & SFlag::S_IFMT.bits());
        if kind == SFlag::S_IFDIR {
            mkdirat(target, name, Mode::S_IRWXU).map_err(|e| self.cannot("make", e))?;
            let below = openat(target, name, directory_flags(), Mode::empty()).map_err(|e| self.cannot("open", e))?;
            return self.directory(opened, &below, depth + 1);
        }
        if kind != SFlag::S_IFREG {
            return Err(self.odd());
        }
        self.own(meta.st_uid)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(target, name, flags, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|e| self.cannot("make", e))?;
        self.content(File::from(opened), &made)?;
        let runs = meta.st_mode & Mode::S_IXUSR.bits() != 0;
        let least = if runs { Mode::S_IRWXU } else { Mode::S_IRUSR | Mode::S_IWUSR };
        self.seal(&made, meta.st_mode, least)
    }

    fn content(&mut self, source: File, target: &OwnedFd) -> Result<(), String> {
        let left = self.rules.most_bytes.saturating_sub(self.copied.bytes);
        let copy = target.try_clone().map(File::from);
        // By `copy_file_range(2)`: on some file systems nothing is copied at all.
        let mut limited = std::io::Read::take(source, left.saturating_add(1));
        let bytes = copy.and_then(|mut target| std::io::copy(&mut limited, &mut target));
        let bytes = bytes.map_err(|e| format!("cannot copy {}: {}", self.shown(), super::io_text(&e)))?;
        self.copied.bytes += bytes;
        self.count_bytes()
    }

    fn link(&mut self, source: &Dir, target: &OwnedFd, name: &CStr) -> Result<(), String> {
        let meta = nix::sys::stat::fstatat(source, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        self.own(meta.map_err(|e| self.cannot("look at", e))?.st_uid)?;
        let text = readlinkat(source, name).map_err(|e| self.cannot("read", e))?;
        symlinkat(text.as_os_str(), target, name).map_err(|e| self.cannot("make", e))?;
        if let Some(owner) = self.owner {
            let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
            fchownat(target, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|e| self.cannot("give away", e))?;
        }
        if !self.rules.links_out {
            self.link_bytes += self.at.as_os_str().len();
            if self.link_bytes > LINKS {
                return Err("it has too many symbolic links".to_owned());
            }
            self.links.push(self.at.clone());
        }
        Ok(())
    }

    /// In the copy, which nobody else changes: the kernel goes where they lead, and never out (`openat2(2)`).
    fn check_links(&self, root: &OwnedFd) -> Result<(), String> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        for link in &self.links {
            match openat2(root, link, how) {
                // One that leads nowhere yet leads nowhere else.
                Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(Errno::EXDEV) => return Err(format!("the link {link:?} leads out of the release")),
                Err(Errno::ELOOP) => return Err(format!("the link {link:?} leads in a circle")),
                Err(e) => return Err(format!("cannot see where the link {link:?} leads: {}", e.desc())),
            }
        }
        Ok(())
    }

    /// Not writable but by its owner; the group may read what the owner may.
    fn seal(&self, made: &OwnedFd, mode: u32, least: Mode) -> Result<(), String> {
        let group = (least.bits() & 0o500) >> 3;
        let others = (least.bits() & 0o500) >> 6 & mode;
        let mode = Mode::from_bits_truncate(least.bits() | group | others);
        if let Some(owner) = self.owner {
            let (uid, gid) = (Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)));
            fchown(made, uid, gid).map_err(|e| self.cannot("give away", e))?;
        }
        fchmod(made, mode).map_err(|e| self.cannot("seal", e))
    }

    fn own(&self, uid: u32) -> Result<(), String> {
        match uid == self.rules.owner {
            true => Ok(()),
            false => Err(format!("{} belongs to user {uid}, and not to the one who sent it", self.shown())),
        }
    }

    fn odd(&self) -> String {
        format!("{} is neither a file, a directory nor a symbolic link", self.shown())
    }

    fn count(&mut self, bytes: u64) -> Result<(), String> {
        self.copied.entries += 1;
        self.copied.bytes += bytes;
        match self.copied.entries > self.rules.most_entries {
            true => Err(format!("it has more than {} files and directories", self.rules.most_entries)),
            false => Ok(()),
        }
    }

    fn count_bytes(&self) -> Result<(), String> {
        match self.copied.bytes > self.rules.most_bytes {
            true => Err(format!("it has more than {} bytes", self.rules.most_bytes)),
            false => Ok(()),
        }
    }
}

/// What a file below a directory has in it, wherever links inside lead; a pipe is not waited for.
///
/// # Errors
/// Of the kernel: `EXDEV`, where the path leads out. Or it is no file, or has more than `most` bytes.
pub fn read_beneath(dir: &Path, path: &Path, most: u64) -> std::io::Result<Vec<u8>> {
    use std::io::{Error, Read};
    let root = nix::fcntl::open(dir, directory_flags(), Mode::empty())?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = File::from(openat2(&root, path, how)?);
    if !file.metadata()?.is_file() {
        return Err(Error::other("it is no file"));
    }
    let mut content = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut content)?;
    match content.len() as u64 > most {
        true => Err(Error::other(format!("it has more than {most} bytes"))),
        false => Ok(content),
    }
}

/// Programs take a leading `-` for an option, and terminals take control characters for more than text.
fn check_name(name: &CStr) -> Result<(), &'static str> {
    match name.to_bytes() {
        [b'-', ..] => Err("has a name that programs take for an option"),
        bytes if bytes.iter().any(u8::is_ascii_control) => Err("has control characters in its name"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn rules() -> Rules {
        Rules { owner: nix::unistd::geteuid().as_raw(), links_out: false, most_entries: 100, most_bytes: 10_000 }
    }

    /// A source with a file in it, and where it is to go.
    fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().expect("a directory");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("app/static")).expect("mkdir");
        fs::write(from.join("app/wsgi.py"), "x = 1\n").expect("write");
        (dir, from, to)
    }

    fn refused(change: impl FnOnce(&Path)) -> String {
        let (_dir, from, to) = place();
        change(&from);
        copy(&from, &to, &rules(), None).expect_err("refused")
    }

    #[test]
    fn a_tree_is_copied_and_sealed() {
        let (_dir, from, to) = place();
        fs::write(from.join("run"), "#!/bin/sh\n").expect("write");
        fs::set_permissions(from.join("run"), fs::Permissions::from_mode(0o4777)).expect("chmod");
        fs::set_permissions(from.join("app/wsgi.py"), fs::Permissions::from_mode(0o600)).expect("chmod");
        symlink("app/wsgi.py", from.join("link")).expect("symlink");
        symlink("../not/there/yet", from.join("app/dangling")).expect("symlink");
        let copied = copy(&from, &to, &rules(), None).expect("copied");
        assert_eq!(copied, Copied { entries: 6, bytes: 16 });
        let mode = |name: &str| fs::symlink_metadata(to.join(name)).expect("there").mode() & 0o7777;
        assert_eq!((mode("run"), mode("app/wsgi.py"), mode("app")), (0o755, 0o640, 0o755));
        assert_eq!(fs::read_to_string(to.join("link")).expect("it leads inside"), "x = 1\n");
    }

    #[test]
    fn links_that_lead_out_are_refused_however_they_do() {
        for text in ["/etc/passwd", "../../etc", "app/../../from", "."] {
            let why =
                refused(|from| symlink(if text == "." { ".." } else { text }, from.join("link")).expect("symlink"));
            assert!(why.contains("leads out"), "{text}: {why}");
        }
        // Each part of it stays inside, taken as text.
        let why = refused(|from| {
            symlink("../..", from.join("app/static/top")).expect("symlink");
            symlink("app/static/top/..", from.join("above")).expect("symlink");
        });
        assert!(why.contains("leads out"), "{why}");
        assert!(refused(|from| symlink("me", from.join("me")).expect("symlink")).contains("circle"));
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let why = refused(|from| nix::unistd::mkfifo(&from.join("app/pipe"), Mode::S_IRWXU).expect("mkfifo"));
        assert_eq!(why, "\"app/pipe\" is neither a file, a directory nor a symbolic link");
        let socket = |from: &Path| drop(std::os::unix::net::UnixListener::bind(from.join("s")).expect("bind"));
        assert!(refused(socket).contains("neither a file"));
    }

    #[test]
    fn names_that_mean_something_else_are_refused() {
        assert!(refused(|from| fs::write(from.join("app/-rf"), "").expect("write")).contains("an option"));
        assert!(refused(|from| fs::write(from.join("a\x1b[2J"), "").expect("write")).contains("control characters"));
    }

    #[test]
    fn it_is_bounded() {
        let many = |from: &Path| (0..100).for_each(|n| fs::write(from.join(format!("f{n}")), "").expect("write"));
        assert!(refused(many).contains("more than 100 files"));
        assert!(refused(|from| fs::write(from.join("big"), vec![0; 10_001]).expect("write")).contains("10000 bytes"));
        let deep = |from: &Path| fs::create_dir_all(from.join("d/".repeat(70))).expect("mkdir");
        assert!(refused(deep).contains("deep"));
    }

    #[test]
    fn what_is_anothers_is_refused() {
        let (_dir, from, to) = place();
        let theirs = Rules { owner: 12_345, ..rules() };
        assert!(copy(&from, &to, &theirs, None).expect_err("refused").contains("belongs to user"));
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root can make files that are another's");
            return;
        }
        // One more name of a file that only root may read.
        let (_dir, from, to) = place();
        for path in [from.clone(), from.join("app"), from.join("app/static"), from.join("app/wsgi.py")] {
            std::os::unix::fs::chown(path, Some(12_345), None).expect("chown");
        }
        let secret = from.with_file_name("secret");
        fs::write(&secret, "of root").expect("write");
        fs::hard_link(&secret, from.join("app/mine")).expect("link");
        assert!(copy(&from, &to, &theirs, None).expect_err("refused").contains("\"app/mine\" belongs to user 0"));
        fs::remove_file(from.join("app/mine")).expect("unlink");
        fs::remove_dir_all(&to).expect("a part of it");
        copy(&from, &to, &theirs, Some(Owner { uid: 0, gid: 12_346 })).expect("copied");
        let meta = fs::metadata(to.join("app/wsgi.py")).expect("there");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (0, 12_346, 0o644));
    }
}
