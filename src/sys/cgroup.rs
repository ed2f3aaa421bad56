//! The v2 cgroup tree: one directory per worker holds it and everything it forks, however it forks.
//!
//! The tree of a hybrid machine (`/sys/fs/cgroup/unified`) serves as well as a pure one. No controllers are switched on before
//! a limit needs one ([`control`]).

pub mod control;
mod hold;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::process::PidFd;

/// Why no tree can be made, as a sentence; stubs take its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct NoTree {
    pub reason: String,
}

fn no_tree(reason: impl Into<String>) -> NoTree {
    NoTree { reason: reason.into() }
}

fn name(id: &str) -> String {
    format!("airdock.{id}")
}

/// The directory `airdock.ID` below svd's own cgroup.
#[derive(Debug)]
pub struct Tree {
    path: PathBuf,
    dir: OwnedFd,
    /// Names of empty directories that are to be removed.
    discarded: Mutex<Vec<Box<str>>>,
    /// Held by whoever removes them.
    sweeping: Mutex<()>,
    /// Somebody does, or will soon.
    sweep_due: AtomicBool,
}

impl Tree {
    /// Makes (or takes, if it is there) `airdock.ID` below the cgroup of this process.
    pub fn create(id: &str) -> Result<Arc<Tree>, NoTree> {
        let own = own_directory()?;
        Tree::create_below(control::base_of(&own), id)
    }

    /// As [`Tree::create`], below a directory that is named.
    pub fn create_below(parent: &Path, id: &str) -> Result<Arc<Tree>, NoTree> {
        if id.is_empty() || id.contains(['/', '\0', '\n']) {
            return Err(no_tree(format!("{id:?} is no name for a cgroup")));
        }
        let path = parent.join(name(id));
        match nix::unistd::mkdir(&path, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => {
                return Err(no_tree(format!("cannot make the cgroup {}: {}", path.display(), errno.desc())));
            }
        }
        let tree = Tree::open(&path)
            .map_err(|e| no_tree(format!("cannot open the cgroup {}: {}", path.display(), super::io_text(&e))))?;
        // A tree of root's that we may only look at is of no use.
        if let Err(e) = openat(&tree.dir, "cgroup.procs", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            return Err(no_tree(format!("cannot use the cgroup {}: {}", path.display(), e.desc())));
        }
        Ok(tree)
    }

    /// A tree that is there, at the path that [`Tree::path`] gave once.
    pub fn open(path: &Path) -> io::Result<Arc<Tree>> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        Ok(Tree::new(path.into(), nix::fcntl::open(path, flags, Mode::empty())?))
    }

    fn new(path: PathBuf, dir: OwnedFd) -> Arc<Tree> {
        Arc::new(Tree {
            path,
            dir,
            discarded: Mutex::default(),
            sweeping: Mutex::default(),
            sweep_due: AtomicBool::default(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a worker's directory, or takes the one that is there.
    pub fn group(self: &Arc<Self>, name: &str) -> io::Result<Group> {
        if !is_name(name) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        match mkdirat(&self.dir, name, Mode::from_bits_truncate(0o755)) {
            Ok(()) | Err(Errno::EEXIST) => Ok(self.existing(name)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// A worker's directory that is there; `None` if it is not.
    pub fn existing_group(self: &Arc<Self>, name: &str) -> Option<Group> {
        let group = is_name(name).then(|| self.existing(name))?;
        group.directory().is_ok().then_some(group)
    }

    fn existing(self: &Arc<Self>, name: &str) -> Group {
        Group { tree: Arc::clone(self), name: name.into() }
    }

    /// All worker directories: ours, and those that a dead svd of the same id left. The caller decides which to adopt;
    /// for the others: [`Group::kill`], wait until empty, [`Group::remove`].
    pub fn groups(self: &Arc<Self>) -> io::Result<Vec<Group>> {
        let mut found = Vec::new();
        for name in subdirectories(self.dir.as_fd())? {
            if !name.ends_with(control::LIMITED) {
                found.push(self.existing(&name));
                continue;
            }
            let below = open_directory(self.dir.as_fd(), &name).map_err(io::Error::from);
            let workers = below.and_then(|dir| subdirectories(dir.as_fd())).unwrap_or_default();
            found.extend(workers.iter().map(|worker| self.existing(&format!("{name}/{worker}"))));
            if workers.is_empty() {
                // A spawn was cut off there.
                let _ = unlinkat(&self.dir, name.as_str(), UnlinkatFlags::RemoveDir);
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Do at least so many directories wait for [`Tree::sweep`], which nobody has been told yet? Whoever is told calls it.
    pub fn wants_sweep(&self, at_least: usize) -> bool {
        self.discarded().len() >= at_least && !self.sweep_due.swap(true, Ordering::SeqCst)
    }

    /// Removes the directories that were discarded. It takes the kernel longer than anything else at a worker's end, so it is
    /// done where nobody waits for it; when this returns, nobody else is at it either.
    pub fn sweep(self: &Arc<Self>) {
        let _alone = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever discards one from now on finds that nobody sweeps, or leaves it to this loop.
        self.sweep_due.store(false, Ordering::SeqCst);
        let pop = || self.discarded().pop();
        while let Some(name) = pop() {
            // Best effort: an empty directory does no harm, and the next svd removes it.
            let _ = self.existing(&name).remove();
        }
    }

    fn discarded(&self) -> MutexGuard<'_, Vec<Box<str>>> {
        self.discarded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the tree itself; `false` if workers are left in it.
    pub fn remove(&self) -> io::Result<bool> {
        match nix::unistd::unlinkat(nix::fcntl::AT_FDCWD, &self.path, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(true),
            Err(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// One worker's directory. Dropping it removes nothing.
#[derive(Debug, Clone)]
pub struct Group {
    tree: Arc<Tree>,
    name: Box<str>,
}

impl Group {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The worker's part of the name.
    pub fn own_name(&self) -> &str {
        self.name.split_once('/').map_or(&self.name, |(_, own)| own)
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The name of the directory that has its limits.
    pub fn limited_name(&self) -> &str {
        self.name.split_once('/').map_or(&self.name, |(together, _)| together)
    }

    pub fn path(&self) -> PathBuf {
        self.tree.path.join(&*self.name)
    }

    /// The directory's descriptor, for a spawn.
    pub fn directory(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        Ok(openat(&self.tree.dir, &*self.name, flags, Mode::empty())?)
    }

    fn file(&self, name: &str, flags: OFlag) -> Result<File, Errno> {
        let path = format!("{}/{name}", self.name);
        openat(&self.tree.dir, path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty()).map(File::from)
    }

    /// Removes the directory if no process is left in it or below it: that is the check as well.
    pub fn remove(&self) -> io::Result<bool> {
        let removed = self.remove_own()?;
        if removed {
            self.tree.remove_together(&self.name);
        }
        Ok(removed)
    }

    fn remove_own(&self) -> io::Result<bool> {
        match unlinkat(&self.tree.dir, &*self.name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(true),
            Err(Errno::EBUSY | Errno::ENOTEMPTY) => {}
            Err(errno) => return Err(errno.into()),
        }
        if self.is_populated()? {
            return Ok(false);
        }
        // The worker made cgroups of its own (an svd below svd, a container runtime).
        remove_below(self.directory()?.as_fd(), 0)?;
        match unlinkat(&self.tree.dir, &*self.name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(true),
            Err(Errno::EBUSY | Errno::ENOTEMPTY) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Has it removed by the next [`Tree::sweep`]; for one that is empty.
    pub fn discard(&self) {
        self.tree.discarded().push(self.name.clone());
    }

    /// Whether a living process is in it or below it.
    pub fn is_populated(&self) -> io::Result<bool> {
        let mut file = match self.file("cgroup.events", OFlag::O_RDONLY) {
            Ok(file) => file,
            Err(Errno::ENOENT) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        populated(&mut file)
    }

    /// A descriptor that gets `EPOLLPRI` when [`Group::is_populated`] changes.
    pub fn events(&self) -> io::Result<Events> {
        Ok(Events { file: self.file("cgroup.events", OFlag::O_RDONLY)? })
    }

    /// Kills everything in it and below it, without a race where `cgroup.kill` exists (Linux 5.14). Below that one round of
    /// SIGKILL: repeat it until nothing is left.
    pub fn kill(&self) -> io::Result<()> {
        match self.file("cgroup.kill", OFlag::O_WRONLY) {
            Ok(mut file) => file.write_all(b"1"),
            Err(Errno::ENOENT) => self.signal_all(libc::SIGKILL).map(drop),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Signals every process in it and below it; gives how many. One that is forked meanwhile may be missed.
    pub fn signal_all(&self, signal: i32) -> io::Result<usize> {
        let mut count = 0;
        let path = self.path_in_v2();
        for pid in self.procs()? {
            let Ok(pidfd) = PidFd::open(pid) else {
                continue;
            };
            // The pidfd is certain now; that it is still one of ours must be seen after it was opened.
            let still_ours = match (&path, path_of(pid)) {
                (Some(path), Some(of)) => of.starts_with(path),
                _ => self.procs()?.contains(&pid),
            };
            if still_ours && pidfd.signal(signal)? {
                count += 1;
            }
        }
        Ok(count)
    }

    /// Our directory as `/proc/PID/cgroup` writes it.
    fn path_in_v2(&self) -> Option<PathBuf> {
        let (mount, root) = v2_mount()?;
        let path = self.path();
        Some(root.join(path.strip_prefix(mount).ok()?))
    }

    /// Is the process in it or below it?
    pub fn has(&self, pid: i32) -> bool {
        let Some(tree) = self.tree.path.file_name() else { return false };
        let own = Path::new(tree).join(&*self.name);
        path_of(pid).is_some_and(|path| path.ancestors().any(|above| above.ends_with(&own)))
    }

    /// The processes in it and below it at this moment.
    pub fn procs(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        let directory = match self.directory() {
            Ok(directory) => directory,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(pids),
            Err(e) => return Err(e),
        };
        collect_procs(directory.as_fd(), &mut pids, 0)?;
        Ok(pids)
    }
}

/// The open `cgroup.events` of a [`Group`].
#[derive(Debug)]
pub struct Events {
    file: File,
}

impl Events {
    /// Reads the state and so clears the event.
    pub fn is_populated(&mut self) -> io::Result<bool> {
        populated(&mut self.file)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn populated(file: &mut File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt;
    let mut buffer = [0; 256];
    let length = match file.read_at(&mut buffer, 0) {
        Ok(length) => length,
        // The directory was removed meanwhile.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(false),
        Err(e) => return Err(e),
    };
    Ok(String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == "populated 1"))
}

/// One directory of the tree, or one in that of a generation.
fn is_name(name: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains(['\0', '\n']);
    match name.split_once('/') {
        Some((together, worker)) => {
            together.ends_with(control::LIMITED) && plain(together) && plain(worker) && !worker.contains('/')
        }
        None => plain(name),
    }
}

/// Deeper than anybody nests cgroups in earnest.
const MAX_DEPTH: usize = 32;

fn collect_procs(dir: BorrowedFd<'_>, pids: &mut Vec<i32>, depth: usize) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let mut text = String::new();
    match openat(dir, "cgroup.procs", flags, Mode::empty()) {
        // EOPNOTSUPP: a threaded cgroup, whose processes are listed above it.
        Ok(fd) => match File::from(fd).read_to_string(&mut text) {
            Ok(_) => pids.extend(text.lines().filter_map(|l| l.parse::<i32>().ok())),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EOPNOTSUPP)) => {}
            Err(e) => return Err(e),
        },
        Err(Errno::ENOENT | Errno::ENODEV) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    }
    if depth < MAX_DEPTH {
        for name in subdirectories(dir)? {
            if let Ok(below) = open_directory(dir, &name) {
                collect_procs(below.as_fd(), pids, depth + 1)?;
            }
        }
    }
    Ok(())
}

fn remove_below(dir: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    for name in subdirectories(dir)? {
        if depth < MAX_DEPTH
            && let Ok(below) = open_directory(dir, &name)
        {
            remove_below(below.as_fd(), depth + 1)?;
        }
        match unlinkat(dir, name.as_str(), UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::EBUSY | Errno::ENOTEMPTY) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn open_directory(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY | OFlag::O_NOFOLLOW;
    openat(dir, name, flags, Mode::empty())
}

fn subdirectories(dir: BorrowedFd<'_>) -> io::Result<Vec<String>> {
    // cgroupfs needs a descriptor of its own for each reading, whose position is its own.
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    Ok(names)
}

/// The directory of this process's own v2 cgroup.
fn own_directory() -> Result<PathBuf, NoTree> {
    let (mount, root) = v2_mount()
        .ok_or_else(|| no_tree("no cgroup v2 tree is mounted (neither /sys/fs/cgroup nor /sys/fs/cgroup/unified)"))?;
    let own = path_of(std::process::id() as i32).ok_or_else(|| no_tree("/proc/self/cgroup names no v2 cgroup"))?;
    let below = own
        .strip_prefix(&root)
        .map_err(|_| no_tree(format!("the own cgroup {} is outside of the mounted tree", own.display())))?;
    if below.components().any(|c| c == std::path::Component::ParentDir) {
        return Err(no_tree("the own cgroup is outside of the cgroup namespace"));
    }
    Ok(mount.join(below))
}

/// The v2 path of a process, as the kernel writes it.
fn path_of(pid: i32) -> Option<PathBuf> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(PathBuf::from(line))
}

/// The v2 cgroup of a process, as the kernel writes it (`0::/…`): tells whose an orphan is.
pub fn of_process(pid: i32) -> Option<PathBuf> {
    path_of(pid)
}

/// Where the v2 tree is mounted, and which part of it.
fn v2_mount() -> Option<(PathBuf, PathBuf)> {
    parse_mounts(&std::fs::read_to_string("/proc/self/mountinfo").ok()?)
}

fn parse_mounts(text: &str) -> Option<(PathBuf, PathBuf)> {
    text.lines().find_map(|line| {
        // ID parent major:minor ROOT MOUNT options… - TYPE source options, see proc_pid_mountinfo(5).
        let (head, tail) = line.split_once(" - ")?;
        if tail.split(' ').next()? != "cgroup2" {
            return None;
        }
        let mut fields = head.split(' ').skip(3);
        let root = unescape(fields.next()?);
        let mount = unescape(fields.next()?);
        Some((mount, root))
    })
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
pub(super) fn unescape(text: &str) -> PathBuf {
    use std::os::unix::ffi::OsStringExt;
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes
            .get(i + 1..i + 4)
            .filter(|_| bytes[i] == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_hybrid_pure_and_namespaced_hosts() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_mounts(hybrid), Some(("/sys/fs/cgroup/unified".into(), "/".into())));
        let inside = "41 31 0:38 /a\\040b /mnt/c\\134d rw - cgroup2 none rw\n";
        assert_eq!(parse_mounts(inside), Some(("/mnt/c\\d".into(), "/a b".into())));
        assert_eq!(parse_mounts("1 2 0:3 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn what_cannot_be_made_says_why() {
        let dir = tempfile::tempdir().expect("a directory");
        let missing = dir.path().join("missing");
        let reason = Tree::create_below(&missing, "x").expect_err("no parent").reason;
        assert!(reason.ends_with("missing/airdock.x: No such file or directory"), "{reason}");
        let reason = Tree::create_below(dir.path(), "x").expect_err("no cgroup").reason;
        assert!(reason.starts_with("cannot use the cgroup"), "{reason}");
        assert!(Tree::create_below(dir.path(), "a/b").is_err());
    }

    #[test]
    fn groups_nested_groups_and_removal() {
        let id = format!("test-groups-{}", std::process::id());
        let Ok(tree) = Tree::create(&id) else {
            eprintln!("skipped: needs a cgroup tree that we may write to");
            return;
        };
        let group = tree.group("web.1").expect("a group");
        assert_eq!(tree.group("web.1").expect("again").name(), "web.1");
        assert!(tree.group("../x").is_err());
        let nested = group.path().join("own/below");
        std::fs::create_dir_all(&nested).expect("mkdir");
        assert!(!group.is_populated().expect("state"));
        assert_eq!(group.procs().expect("list"), Vec::<i32>::new());
        assert!(!tree.remove().expect("busy"));
        let names: Vec<String> = tree.groups().expect("list").iter().map(|g| g.name().to_string()).collect();
        assert_eq!(names, ["web.1"]);
        assert!(group.remove().expect("removed"));
        assert!(group.remove().expect("gone is removed"));
        assert!(!group.is_populated().expect("gone is empty"));
        assert!(tree.remove().expect("removed"));
    }
}
