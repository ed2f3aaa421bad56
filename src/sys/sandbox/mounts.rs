//! The view: a mount namespace in which things are covered, bound, and made read-only.

use super::entrance::{Result, cannot};
use super::{Mount, places};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Leaves the host's view.
pub(super) fn leave() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(cannot("leave the host's view of its files (mount namespace)"))?;
    // What the host mounts is seen here as well, and not the other way round.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .map_err(cannot("keep mounts apart from the host's"))
}

/// Changes what is seen.
///
/// `apart`: in a user namespace. What the user cannot reach, the program cannot reach either, and needs no cover.
pub(super) fn make(steps: &[Mount], apart: bool) -> Result<()> {
    // By this the mounts can be read, whatever is at /proc.
    let proc = nix::fcntl::open("/proc", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(cannot("open /proc"))?;
    // From the host's view, before any of it is covered.
    let root = steps.iter().find_map(|step| match step {
        Mount::Root { path, shown } => Some((path, shown)),
        _ => None,
    });
    let early = |step: &Mount| root.is_none() || is_hosts(step);
    let mut trees: Vec<_> =
        steps.iter().map(|step| early(step).then(|| open(step)).transpose()).collect::<Result<_>>()?;
    if let Some((path, shown)) = root {
        let umask = nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
        super::root::enter(path, shown)?;
        nix::sys::stat::umask(umask);
    }
    for (step, trees) in steps.iter().zip(&mut trees).filter(|(_, trees)| trees.is_none()) {
        *trees = Some(open(step)?);
    }
    for (step, trees) in steps.iter().zip(trees) {
        let trees = trees.unwrap_or_default();
        match step {
            Mount::Root { .. } => {}
            Mount::Cover { path, mode, make, empty, .. } => cover(path, *mode, make, *empty, trees, apart)?,
            Mount::Terminals => terminals()?,
            Mount::Processes => {
                let proc = Path::new("/proc");
                for (_, tree) in trees {
                    show_at(proc, &tree).map_err(cannot("show its own processes in /proc"))?;
                }
            }
            Mount::Bind { target, .. } => {
                for (_, tree) in trees {
                    let below = root.map_or_else(String::new, |(path, _)| path.display().to_string());
                    places::existing(target).and_then(|place| attach(&tree, &place)).map_err(|e| match e {
                        Errno::ELOOP => format!(
                            "cannot show anything at {}: a link on the way is another's than root's; name the place that it leads to",
                            target.display()
                        ),
                        Errno::ENOENT => {
                            format!(
                                "cannot show anything at {0}: it is not there; create it (mkdir {below}{0})",
                                target.display()
                            )
                        }
                        e => cannot(format_args!("show anything at {}", target.display()))(e),
                    })?;
                }
            }
            Mount::ReadOnly { paths, except } => read_only(paths, except, apart, &proc)?,
        }
    }
    // The directory of before is a way out of the view.
    nix::unistd::chdir("/").map_err(cannot("change to directory /"))
}

/// A path of the host's, and what is there, to be attached elsewhere.
type Trees = Vec<(PathBuf, OwnedFd)>;

/// Is it made of what the host has, whatever the service's root?
fn is_hosts(step: &Mount) -> bool {
    match step {
        Mount::Bind { .. } | Mount::Processes => true,
        Mount::Cover { path, .. } => path == Path::new("/dev"),
        _ => false,
    }
}

fn open(step: &Mount) -> Result<Trees> {
    match step {
        // While the host's own is seen: in a user namespace the kernel asks for that.
        Mount::Processes => Ok(vec![(PathBuf::from("/proc"), super::pids::own_processes()?)]),
        Mount::Cover { path, keep, .. } if path.is_dir() => {
            let found = keep.iter().map(|path| match clone_tree(path) {
                Ok(tree) => Ok(Some((path.clone(), tree))),
                Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
                Err(e) => Err(cannot(format_args!("keep {} visible", path.display()))(e)),
            });
            Ok(found.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        }
        Mount::Bind { source, target } => match clone_tree(source) {
            Ok(tree) => Ok(vec![(source.clone(), tree)]),
            Err(e) => Err(cannot(format_args!("show {} at {}", source.display(), target.display()))(e)),
        },
        _ => Ok(Vec::new()),
    }
}

fn text(path: &Path) -> std::result::Result<std::ffi::CString, Errno> {
    std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// `open_tree(2)`, Linux 5.2.
pub(super) fn clone_tree(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    let path = text(path)?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_RECURSIVE as libc::c_uint;
    // SAFETY: a NUL-terminated string that lives through the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `move_mount(2)`.
pub(super) fn attach(tree: &OwnedFd, place: &OwnedFd) -> std::result::Result<(), Errno> {
    // SAFETY: two NUL-terminated strings that live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            place.as_raw_fd(),
            c"".as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    Errno::result(result).map(drop)
}

fn make_directory(path: &Path) -> std::result::Result<(), Errno> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EINVAL)))
}

fn cover(path: &Path, mode: u32, make: &[PathBuf], empty: bool, trees: Trees, apart: bool) -> Result<()> {
    let failed = |e| cannot(format_args!("cover {}", path.display()))(e);
    match std::fs::metadata(path) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            if trees.is_empty() {
                return Ok(());
            }
            // It was there, and what is above it is covered: what is kept of it is shown nevertheless.
            make_directory(path).map_err(failed)?;
        }
        Ok(meta) if !meta.is_dir() => {
            let null = clone_tree(Path::new("/dev/null")).map_err(failed)?;
            return places::existing(path).and_then(|place| attach(&null, &place)).map_err(failed);
        }
        Err(e) if apart && e.raw_os_error() == Some(libc::EACCES) && trees.is_empty() => return Ok(()),
        // What cannot be looked at (a stale NFS) can be covered nevertheless.
        _ => {}
    }
    let flags = MsFlags::MS_NOSUID | if path == Path::new("/dev") { MsFlags::MS_NOEXEC } else { MsFlags::MS_NODEV };
    // Its own mode is set below: nothing could be made in one without permissions where there is no right to ignore them.
    let limits = match empty {
        true => "size=4k,nr_inodes=8",
        false if path == Path::new("/dev") => "size=4m,nr_inodes=64k",
        false => MOST,
    };
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, Some(&*format!("mode=0755,{limits}"))).map_err(failed)?;
    // 0755 for what is made, whatever the service's umask is.
    let umask = nix::sys::stat::umask(Mode::from_bits_truncate(0o022));
    let made = show(path, make, trees);
    nix::sys::stat::umask(umask);
    made.map_err(failed)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
        .map_err(|e| failed(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EINVAL))))
}

/// Shows in a cover what is kept, and makes the places of what is bound there later.
fn show(cover: &Path, make: &[PathBuf], trees: Trees) -> std::result::Result<(), Errno> {
    let covered = places::directory_at(cover)?;
    let below = |path: &Path| path.strip_prefix(cover).map(Path::to_owned).map_err(|_| Errno::EINVAL);
    for (path, tree) in trees {
        if let Some(place) = place_of(&tree, &covered, &below(&path)?)? {
            attach(&tree, &place)?;
        }
    }
    // What is missing in something of the host's is found missing when it is bound there.
    make.iter().try_for_each(|path| places::directory(&covered, &below(path)?).map(drop))
}

/// Shows a tree at a path, which is made in `/` where it is missing.
pub(super) fn show_at(path: &Path, tree: &OwnedFd) -> std::result::Result<(), Errno> {
    let place = match places::existing(path) {
        Err(Errno::ENOENT) => {
            let below = path.strip_prefix("/").map_err(|_| Errno::EINVAL)?;
            place_of(tree, &places::directory_at(Path::new("/"))?, below)?.ok_or(Errno::ENOENT)?
        }
        found => found?,
    };
    attach(tree, &place)
}

/// A directory for a directory, an empty file for what is none.
fn place_of(tree: &OwnedFd, above: &OwnedFd, below: &Path) -> std::result::Result<Option<OwnedFd>, Errno> {
    let is_directory = nix::sys::stat::fstat(tree).is_ok_and(|s| s.st_mode & libc::S_IFMT == libc::S_IFDIR);
    let place = if is_directory { places::directory } else { places::file };
    place(above, below)
}

/// Of the machine's memory, for what a process writes to a directory of its own.
const MOST: &str = "size=10%,nr_inodes=400k";

/// What programs expect in `/dev` beside devices.
fn terminals() -> Result<()> {
    let failed = |what: &str| cannot(format!("make /dev/{what}"));
    make_directory(Path::new("/dev/pts")).map_err(failed("pts"))?;
    let options = "newinstance,ptmxmode=0666,mode=620";
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("devpts"), "/dev/pts", Some("devpts"), flags, Some(options)).map_err(failed("pts"))?;
    make_directory(Path::new("/dev/shm")).map_err(failed("shm"))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), "/dev/shm", Some("tmpfs"), flags, Some(&*format!("mode=1777,{MOST}")))
        .map_err(failed("shm"))?;
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    for (to, name) in links {
        std::os::unix::fs::symlink(to, Path::new("/dev").join(name))
            .map_err(|e| failed(name)(Errno::from_raw(e.raw_os_error().unwrap_or(libc::EINVAL))))?;
    }
    Ok(())
}

/// A mount, by `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    path: PathBuf,
    flags: MsFlags,
}

fn mounted(proc: &OwnedFd) -> Result<Vec<Mounted>> {
    let file = nix::fcntl::openat(proc, "self/mountinfo", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(cannot("read /proc/self/mountinfo"))?;
    let mut text = Vec::new();
    File::from(file)
        .read_to_end(&mut text)
        .map_err(|e| format!("cannot read /proc/self/mountinfo: {}", super::super::io_text(&e)))?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse).collect())
}

fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|b| *b == b' ').skip(4);
    let path = PathBuf::from(std::ffi::OsString::from_vec(unescape(fields.next()?)));
    let flags = fields.next()?.split(|b| *b == b',').fold(MsFlags::empty(), |all, word| {
        all | match word {
            b"ro" => MsFlags::MS_RDONLY,
            b"nosuid" => MsFlags::MS_NOSUID,
            b"nodev" => MsFlags::MS_NODEV,
            b"noexec" => MsFlags::MS_NOEXEC,
            b"noatime" => MsFlags::MS_NOATIME,
            b"nodiratime" => MsFlags::MS_NODIRATIME,
            b"relatime" => MsFlags::MS_RELATIME,
            _ => MsFlags::empty(),
        }
    });
    Some(Mounted { path, flags })
}

/// `\040` → a blank.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *first == b'\\');
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

/// Does a step of making a view leave what is mounted there read-only? The longest path decides; of two of one length, that it can
/// be written to.
pub fn is_read_only(paths: &[PathBuf], except: &[PathBuf], place: &Path) -> bool {
    let rules = paths.iter().map(|p| (p, true)).chain(except.iter().map(|p| (p, false)));
    let found = rules.filter(|(rule, _)| place.starts_with(rule));
    found.max_by_key(|(rule, ro)| (rule.components().count(), !ro)).is_some_and(|(_, ro)| ro)
}

/// What every service may write to where it is there; a root of its own need not have it.
const COMMON: [&str; 4] = ["/dev", "/proc", "/tmp", "/var/tmp"];

/// Makes every mount at and below the paths read-only, and nothing else: what the host has read-only stays so below an
/// exception.
fn read_only(paths: &[PathBuf], except: &[PathBuf], apart: bool, proc: &OwnedFd) -> Result<()> {
    let rules = paths.iter().map(|p| (p, true)).chain(except.iter().map(|p| (p, false)));
    // A rule needs a mount of its own to hold for.
    for (path, is_read_only) in rules.clone() {
        if path == Path::new("/") {
            continue;
        }
        let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
        match mount(Some(path), path, None::<&str>, flags, None::<&str>) {
            Ok(()) => {}
            Err(Errno::ENOENT | Errno::ENOTDIR) if is_read_only || COMMON.iter().any(|p| path == Path::new(p)) => {}
            Err(Errno::EACCES) if is_read_only && apart => {}
            Err(Errno::ENOENT) => {
                return Err(format!(
                    "cannot make {0} writable: it is not there; create it (mkdir {0})",
                    path.display()
                ));
            }
            Err(e) => return Err(cannot(format_args!("set {} apart", path.display()))(e)),
        }
    }
    for Mounted { path, flags } in mounted(proc)? {
        if flags.contains(MsFlags::MS_RDONLY) || !is_read_only(paths, except, &path) {
            continue;
        }
        let flags = flags | MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        match mount(None::<&str>, &path, None::<&str>, flags, None::<&str>) {
            Ok(()) => {}
            // Covered by another mount, so that nobody can write there by this name.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EINVAL) => {}
            Err(Errno::EACCES) if apart => {}
            Err(e) => return Err(cannot(format_args!("make {} read-only", path.display()))(e)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_as_the_kernel_writes_them() {
        let line = b"36 35 98:0 /mnt1 /mnt\\0402 rw,noatime,nosuid master:1 - ext3 /dev/root rw,errors=continue";
        let flags = MsFlags::MS_NOATIME | MsFlags::MS_NOSUID;
        assert_eq!(parse(line), Some(Mounted { path: "/mnt 2".into(), flags }));
        assert_eq!(parse(b""), None);
        assert_eq!(unescape(b"a\\134b\\"), b"a\\b\\");
        let proc = OwnedFd::from(File::open("/proc").expect("/proc"));
        assert!(mounted(&proc).expect("mountinfo").iter().any(|m| m.path == Path::new("/")));
    }
}
