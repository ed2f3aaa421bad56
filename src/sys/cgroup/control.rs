//! Controllers: switched on when a limit first needs one, and the limits of the directories below.
//!
//! A limit holds for a directory and all below it. Workers of one generation are below one directory, `NAME.limits`, which
//! has the limits; it comes with its first worker and goes with its last. Commands that svd runs beside them have a directory
//! and the same limits of their own.
//!
//! Of a directory that has processes of its own the kernel lets no controller be switched on ("no internal processes",
//! `cgroups(7)`), save of the root. svd then moves itself and its guardian into the directory [`OWN`] below.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Group, Tree};
use crate::sys::process::ProcStat;

/// Where svd and its guardian are, once controllers are switched on: beside the tree. A service manager may put them there
/// from the beginning (`DelegateSubgroup=` of systemd).
pub const OWN: &str = "svd";

/// Of the directory of a generation, behind its name: no worker's directory ends like that.
pub(super) const LIMITED: &str = ".limits";

/// For the processes of svd's that are forked while they are moved.
const MOVES: usize = 8;
/// For a directory that is removed, being empty, while something is put into it.
const TRIES: usize = 16;

/// One file of a directory, and what is written to it: `memory.max`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub file: &'static str,
    pub value: Box<str>,
}

impl Setting {
    /// The controller that has it.
    pub fn controller(&self) -> &'static str {
        self.file.split_once('.').map_or(self.file, |(controller, _)| controller)
    }
}

/// The limits of what is spawned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limited {
    /// The directory that has the limits, and the worker's below it; `None`: the worker's own has them.
    pub together: Option<Box<str>>,
    pub settings: Vec<Setting>,
}

impl Limited {
    /// May the kernel kill a process of it for its memory alone?
    pub fn memory(&self) -> bool {
        self.settings.iter().any(|setting| setting.controller() == "memory")
    }
}

/// The name of a generation's directory.
pub fn together(generation: &str) -> Box<str> {
    format!("{generation}{LIMITED}").into()
}

/// Why a controller cannot be had, as the end of a sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoController(pub String);

impl Tree {
    /// Can at least one of these be had?
    pub fn offers(&self, controllers: &[&str]) -> bool {
        let offered = self.path.parent().map(|base| list(base, "cgroup.controllers")).unwrap_or_default();
        controllers.iter().any(|name| offered.iter().any(|offered| offered == name))
    }

    /// Could [`Tree::enable`] do it? Only looks.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn can_enable(&self, controller: &str) -> Result<(), NoController> {
        let Some(base) = self.without(controller)? else { return Ok(()) };
        let others = others(base);
        match others.is_empty() || !base.join("cgroup.type").exists() {
            true => Ok(()),
            false => Err(in_the_way(base, &others)),
        }
    }

    /// Would its directories have this file, as far as that can be seen before its controller is switched on?
    pub fn may_have(&self, file: &str) -> bool {
        let controller = file.split_once('.').map_or(file, |(controller, _)| controller);
        let on = |dir: &Path| list(dir, SUBTREE).iter().any(|name| name == controller);
        match self.path.parent() {
            // The root has none of them itself.
            Some(base) if !on(base) => !base.join("cgroup.type").exists() || base.join(file).exists(),
            _ => self.path.join(file).exists(),
        }
    }

    /// The directory above, where the controller is to be switched on; `None`: it is.
    fn without(&self, controller: &str) -> Result<Option<&Path>, NoController> {
        if list(&self.path, SUBTREE).iter().any(|name| name == controller) {
            return Ok(None);
        }
        let base = self.path.parent().ok_or_else(|| NoController("the tree has no directory above it".into()))?;
        if !list(base, "cgroup.controllers").iter().any(|name| name == controller) {
            return Err(NoController(absent(controller, base)));
        }
        Ok(Some(base))
    }

    /// Switches a controller on for all directories of the tree.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub fn enable(&self, controller: &str) -> Result<(), NoController> {
        let Some(base) = self.without(controller)? else { return Ok(()) };
        switch_on(base, controller)?;
        write(&self.path, SUBTREE, &format!("+{controller}")).map_err(|errno| refused(controller, &self.path, errno))
    }

    /// A worker's directory with its limits. It is there already where a spawn was tried before.
    ///
    /// # Errors
    /// A sentence.
    pub fn limited_group(self: &Arc<Self>, limited: &Limited, name: &str) -> Result<Group, String> {
        let cannot = |what: &str, e: &io::Error| {
            format!("cannot make the cgroup {}/{what}: {}", self.path.display(), crate::sys::io_text(e))
        };
        let Some(together) = &limited.together else {
            let group = self.group(name).map_err(|e| cannot(name, &e))?;
            self.limit(name, &limited.settings)?;
            return Ok(group);
        };
        let inner = format!("{together}/{name}");
        for _ in 0..TRIES {
            match mkdirat(&self.dir, &**together, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(cannot(together, &errno.into())),
            }
            match self.limit(together, &limited.settings) {
                Ok(()) => {}
                // The last worker's end has taken it away.
                Err(_) if open(self.dir.as_fd(), together).is_err() => continue,
                Err(why) => return Err(why),
            }
            match self.group(&inner) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                made => return made.map_err(|e| cannot(&inner, &e)),
            }
        }
        Err(cannot(&inner, &io::ErrorKind::NotFound.into()))
    }

    /// Sets what is limited in a directory of the tree.
    ///
    /// # Errors
    /// A sentence about the first that cannot be set.
    pub fn limit(&self, name: &str, settings: &[Setting]) -> Result<(), String> {
        if settings.is_empty() {
            return Ok(());
        }
        let failed = |setting: &Setting, why: &str| {
            format!("cannot write {:?} to {}/{name}/{}: {why}", setting.value, self.path.display(), setting.file)
        };
        for setting in settings {
            let path = format!("{name}/{}", setting.file);
            let mut written = write_at(self.dir.as_fd(), &path, &setting.value);
            if written == Err(Errno::ENOENT) && open(self.dir.as_fd(), name).is_ok() {
                self.enable(setting.controller()).map_err(|why| failed(setting, &why.0))?;
                written = write_at(self.dir.as_fd(), &path, &setting.value);
            }
            match written {
                Ok(()) => {}
                Err(Errno::ENOENT) => return Err(failed(setting, "this kernel has no such limit")),
                Err(errno) => return Err(failed(setting, errno.desc())),
            }
        }
        Ok(())
    }

    /// Takes the directory of a generation away if nothing is in it.
    pub(super) fn remove_together(&self, name: &str) {
        if let Some((together, _)) = name.split_once('/') {
            // Others of the generation may be there: the last one does it.
            let _ = unlinkat(&self.dir, together, UnlinkatFlags::RemoveDir);
        }
    }

    /// A file of the directory that has a worker's limits.
    pub fn read(&self, name: &str, file: &str) -> io::Result<String> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let mut text = String::new();
        let path = format!("{name}/{file}");
        File::from(openat(&self.dir, path.as_str(), flags, Mode::empty())?).read_to_string(&mut text)?;
        Ok(text)
    }
}

const SUBTREE: &str = "cgroup.subtree_control";

/// The directory of this process's own cgroup, or the one above where it is only there to be out of the way.
pub(super) fn base_of(own: &Path) -> &Path {
    match own.file_name() {
        Some(name) if name == OWN => own.parent().unwrap_or(own),
        _ => own,
    }
}

fn switch_on(base: &Path, controller: &str) -> Result<(), NoController> {
    // Only the root has no type. Some controllers can be switched on beside processes, and make the directories below useless.
    if base.join("cgroup.type").exists() {
        make_room(base, controller)?;
    }
    write(base, SUBTREE, &format!("+{controller}")).map_err(|errno| refused(controller, base, errno))
}

/// Leaves no process in the directory itself.
fn make_room(base: &Path, controller: &str) -> Result<(), NoController> {
    for _ in 0..MOVES {
        if pids(base).is_empty() {
            return Ok(());
        }
        move_own(base).map_err(|errno| refused(controller, base, errno))?;
    }
    let others = pids(base);
    if others.is_empty() { Ok(()) } else { Err(in_the_way(base, &others)) }
}

fn in_the_way(base: &Path, others: &[i32]) -> NoController {
    let names: Vec<String> = others.iter().take(5).map(ToString::to_string).collect();
    NoController(format!(
        "which cannot be switched on in {}, as others than svd are in that control group (processes {}): start svd in one \
         of its own, as init/systemd/svd.service does (Delegate=yes)",
        base.display(),
        names.join(", ")
    ))
}

/// The processes that are neither svd, its guardian nor what they have forked for themselves.
fn others(base: &Path) -> Vec<i32> {
    let roots = own_roots();
    pids(base).into_iter().filter(|pid| !is_below(*pid, roots)).collect()
}

/// svd and its guardian.
fn own_roots() -> [i32; 2] {
    let svd = std::process::id().cast_signed();
    let program = std::fs::read_link("/proc/self/exe").ok();
    // The guardian is the same program; below another parent svd stands alone.
    let parent = nix::unistd::getppid().as_raw();
    let same = std::fs::read_link(format!("/proc/{parent}/exe")).ok() == program;
    [svd, if same { parent } else { svd }]
}

fn is_below(pid: i32, roots: [i32; 2]) -> bool {
    let line = std::iter::successors(Some(pid), |pid| ProcStat::read(*pid).map(|stat| stat.parent));
    line.take(64).any(|pid| roots.contains(&pid))
}

/// Moves svd, its guardian and what they have forked for themselves out of the way.
fn move_own(base: &Path) -> Result<(), Errno> {
    let own = base.join(OWN);
    match nix::unistd::mkdir(&own, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    let roots = own_roots();
    for pid in pids(base) {
        if is_below(pid, roots) {
            match write(&own, "cgroup.procs", &pid.to_string()) {
                // It has ended meanwhile.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}

fn pids(dir: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

fn refused(controller: &str, dir: &Path, errno: Errno) -> NoController {
    NoController(format!("but {controller} cannot be switched on in {}: {}", dir.display(), errno.desc()))
}

/// What this host has instead, and what to do.
fn absent(controller: &str, base: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let known = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    why_absent(controller, base, &mounts, &known, &base_mount(&mounts, base))
}

/// The controllers at the top of the mounted tree.
fn base_mount(mounts: &str, base: &Path) -> Vec<String> {
    let mount = super::parse_mounts(mounts).map(|(mount, _)| mount);
    mount.filter(|mount| base.starts_with(mount)).map(|mount| list(&mount, "cgroup.controllers")).unwrap_or_default()
}

fn why_absent(controller: &str, base: &Path, mounts: &str, known: &str, top: &[String]) -> String {
    if top.iter().any(|name| name == controller) {
        return format!(
            "which is not delegated to svd's control group {}: its unit needs Delegate=yes, or its container that controller",
            base.display()
        );
    }
    let old = mounts.lines().any(|line| {
        let Some((_, tail)) = line.split_once(" - ") else { return false };
        let mut fields = tail.split(' ');
        fields.next() == Some("cgroup")
            && fields.nth(1).is_some_and(|options| options.split(',').any(|option| option == controller))
    });
    if old {
        return "which this host has in the hierarchies of version 1 (hybrid): boot it with \
                systemd.unified_cgroup_hierarchy=1, or without systemd with cgroup_no_v1=all"
            .to_owned();
    }
    let enabled = known.lines().find(|line| line.split_whitespace().next() == Some(controller));
    match enabled.map(|line| line.split_whitespace().last() == Some("1")) {
        Some(true) => {
            "which this host does not offer below version 2 of control groups: boot it with cgroup_no_v1=all".to_owned()
        }
        Some(false) => format!("which is switched off: boot the kernel with cgroup_enable={controller}"),
        None => "which this kernel or container has not".to_owned(),
    }
}

fn list(dir: &Path, file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

fn write(dir: &Path, file: &str, text: &str) -> Result<(), Errno> {
    write_at(nix::fcntl::AT_FDCWD, dir.join(file).to_str().ok_or(Errno::EINVAL)?, text)
}

/// In one piece, as the kernel wants it.
fn write_at(dir: BorrowedFd<'_>, path: &str, text: &str) -> Result<(), Errno> {
    let fd = openat(dir, path, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let text = if text.is_empty() { "\n" } else { text };
    File::from(fd).write_all(text.as_bytes()).map_err(|e| Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO)))
}

fn open(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn svd_out_of_the_way_is_beside_its_tree() {
        assert_eq!(
            base_of(Path::new("/sys/fs/cgroup/system.slice/svd.service/svd")),
            Path::new("/sys/fs/cgroup/system.slice/svd.service")
        );
        assert_eq!(base_of(Path::new("/sys/fs/cgroup")), Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn what_is_missing_has_a_reason_and_a_way_out() {
        let base = Path::new("/sys/fs/cgroup/a");
        let why = |mounts: &str, known: &str, top: &[&str]| {
            let top: Vec<String> = top.iter().map(|name| (*name).to_owned()).collect();
            why_absent("memory", base, mounts, known, &top)
        };
        assert!(why("", "", &["cpu", "memory"]).contains("not delegated to svd's control group /sys/fs/cgroup/a"));
        let hybrid = "36 31 0:33 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        assert!(why(hybrid, "", &["hugetlb"]).contains("systemd.unified_cgroup_hierarchy=1"));
        assert!(why(hybrid, "", &["hugetlb"]).contains("hybrid"));
        assert!(why("", "memory\t0\t1\t0\n", &[]).contains("cgroup_enable=memory"));
        assert!(why("", "memory\t0\t1\t1\n", &[]).contains("cgroup_no_v1=all"));
        assert!(why("", "", &[]).contains("kernel or container"));
    }

    #[test]
    fn to_ask_for_a_controller_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).expect("a file");
        std::fs::create_dir(dir.path().join("airdock.x")).expect("a directory");
        let tree = Tree::open(&dir.path().join("airdock.x")).expect("it is there");
        write("cgroup.controllers", "cpu memory\n");
        write("cgroup.procs", &format!("{}\n", std::process::id()));
        write("cgroup.type", "domain\n");
        assert_eq!(tree.can_enable("memory"), Ok(()));
        assert!(tree.can_enable("pids").is_err_and(|why| why.0.contains("which this")));
        write("cgroup.procs", "1\n");
        let why = tree.can_enable("memory").expect_err("somebody is in the way").0;
        assert!(why.contains("others than svd are in that control group (processes 1)"), "{why}");
        assert!(!dir.path().join(OWN).exists() && !dir.path().join(SUBTREE).exists());
        // What is not seen yet may be there.
        std::fs::remove_file(dir.path().join("cgroup.type")).expect("removed");
        assert!(tree.may_have("memory.swap.max"));
        write("cgroup.type", "domain\n");
        assert!(!tree.may_have("memory.swap.max"));
        write("memory.swap.max", "");
        assert!(tree.may_have("memory.swap.max"));
        write(SUBTREE, "memory\n");
        assert!(!tree.may_have("memory.swap.max"), "now it must be in the tree itself");
        // Of the kernel's own, if it has one that nobody uses.
        let Ok(real) = Tree::create(&format!("test-asked-{}", std::process::id())) else { return };
        let base = real.path().parent().expect("one above").to_owned();
        let before = list(&base, SUBTREE);
        for controller in list(&base, "cgroup.controllers") {
            let _ = real.can_enable(&controller);
        }
        let after = list(&base, SUBTREE);
        assert!(real.remove().expect("removed"));
        assert_eq!(before, after);
    }

    #[test]
    fn a_generations_workers_share_a_directory() {
        let Ok(tree) = Tree::create(&format!("test-together-{}", std::process::id())) else {
            println!("skipped: needs a cgroup tree that we may write to");
            return;
        };
        let limited = Limited { together: Some(together("web.1")), settings: Vec::new() };
        let one = tree.limited_group(&limited, "web.1.0.1").expect("a group");
        let two = tree.limited_group(&limited, "web.1.1.2").expect("a group");
        assert_eq!(one.name(), "web.1.limits/web.1.0.1");
        let flat = tree.limited_group(&Limited::default(), "check.1").expect("a group");
        let names: Vec<String> = tree.groups().expect("list").iter().map(|g| g.name().to_owned()).collect();
        assert_eq!(names, ["check.1", "web.1.limits/web.1.0.1", "web.1.limits/web.1.1.2"]);
        assert!(tree.existing_group(one.name()).is_some() && tree.existing_group("a/b/c").is_none());
        assert!(one.remove().expect("removed"));
        assert!(tree.path().join("web.1.limits").exists(), "another one is there");
        assert!(two.remove().expect("removed") && flat.remove().expect("removed"));
        assert!(!tree.path().join("web.1.limits").exists(), "it went with the last one");
        if !tree.offers(&["memory"]) {
            let settings = vec![Setting { file: "memory.max", value: "1000000".into() }];
            let why = tree.limited_group(&Limited { together: None, settings }, "x").expect_err("no controller");
            assert!(why.contains("memory.max: which this"), "{why}");
            assert!(tree.existing_group("x").expect("it is there").remove().expect("removed"));
        }
        assert!(tree.remove().expect("removed"));
    }
}
