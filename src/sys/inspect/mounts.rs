//! The mounts that a process can see (`proc_pid_mountinfo(5)`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What is mounted, in one process's view, and not covered by another mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts(Vec<Mount>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub place: PathBuf,
    pub read_only: bool,
    /// A file system of the kernel's own.
    pub is_kernels: bool,
}

/// Types of file systems.
const KERNELS: [&str; 12] = [
    "proc",
    "sysfs",
    "cgroup",
    "cgroup2",
    "devpts",
    "mqueue",
    "debugfs",
    "tracefs",
    "securityfs",
    "bpf",
    "configfs",
    "hugetlbfs",
];

impl Mounts {
    /// `most`: lines that are read.
    pub fn parse(text: &str, most: usize) -> Mounts {
        let all: Vec<Line> = text.lines().take(most).filter_map(Line::parse).collect();
        let above = Above::of(&all);
        let visible = all.iter().filter(|line| above.at(&line.mount.place) == Some(line.id));
        let mut visible: Vec<Mount> = visible.map(|line| line.mount.clone()).collect();
        visible.sort_by(|a, b| a.place.cmp(&b.place));
        Mounts(visible)
    }

    pub fn all(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter()
    }

    /// Is something mounted just there?
    pub fn at(&self, place: &Path) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.place == place)
    }

    /// `/` cannot be written to.
    pub fn is_root_read_only(&self) -> bool {
        self.at(Path::new("/")).is_some_and(|mount| mount.read_only)
    }

    /// Places below which it could write, as far as mounts decide.
    pub fn writable(&self) -> impl Iterator<Item = &Path> {
        self.0.iter().filter(|mount| !mount.read_only && !mount.is_kernels).map(|mount| &*mount.place)
    }
}

/// `ID PARENT DEV ROOT POINT OPTIONS … - TYPE SOURCE OPTIONS`.
struct Line {
    id: u32,
    parent: u32,
    mount: Mount,
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        let (head, tail) = line.split_once(" - ")?;
        let mut head = head.split(' ');
        let (id, parent) = (head.next()?.parse().ok()?, head.next()?.parse().ok()?);
        let mut head = head.skip(2);
        let (place, options) = (super::super::cgroup::unescape(head.next()?), head.next()?);
        let mut tail = tail.split(' ');
        let (kind, whole) = (tail.next().unwrap_or_default(), tail.nth(1).unwrap_or_default());
        let read_only = [options, whole].iter().any(|options| options.split(',').any(|o| o == "ro"));
        Some(Line { id, parent, mount: Mount { place, read_only, is_kernels: KERNELS.contains(&kind) } })
    }
}

/// What lies on what.
struct Above<'l> {
    by_place: BTreeMap<(u32, &'l Path), u32>,
    /// The mount that the process's root is in, which is not listed where the root is no mount itself.
    bottom: Option<u32>,
}

impl<'l> Above<'l> {
    fn of(all: &'l [Line]) -> Above<'l> {
        let root = Path::new("/");
        let by_place = all.iter().map(|line| ((line.parent, &*line.mount.place), line.id)).collect();
        let is_listed = |id: u32| all.iter().any(|line| line.id == id);
        let outer = all.iter().find(|line| line.parent == line.id || !is_listed(line.parent));
        let bottom = outer.map(|line| if line.mount.place == root { line.id } else { line.parent });
        Above { by_place, bottom }
    }

    /// The mount that a look at the path ends in.
    fn at(&self, path: &Path) -> Option<u32> {
        let mut on = self.bottom?;
        let mut places: Vec<&Path> = path.ancestors().collect();
        places.reverse();
        for place in places {
            // Each lies on the one before; as many as there are lines at most.
            for _ in 0..=self.by_place.len() {
                match self.by_place.get(&(on, place)) {
                    Some(next) if *next != on => on = *next,
                    _ => break,
                }
            }
        }
        Some(on)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "1 0 8:1 / / ro,noatime - ext4 /dev/a rw\n2 1 0:5 / /proc rw - proc proc rw\n\
                        3 1 0:6 / /srv/a\\040b rw - tmpfs none rw\n4 1 0:7 / /x rw - ext4 /dev/b ro\n";

    fn places(text: &str) -> Vec<String> {
        Mounts::parse(text, 100).all().map(|mount| mount.place.display().to_string()).collect()
    }

    #[test]
    fn lines_as_the_kernel_writes_them() {
        let mounts = Mounts::parse(HOST, 100);
        assert!(mounts.is_root_read_only());
        assert_eq!(mounts.writable().collect::<Vec<_>>(), [Path::new("/srv/a b")]);
        assert!(mounts.at(Path::new("/x")).is_some_and(|mount| mount.read_only));
        assert!(mounts.at(Path::new("/proc")).is_some_and(|mount| mount.is_kernels));
        assert_eq!((Mounts::parse(HOST, 1).all().count(), Mounts::parse("", 9).all().count()), (1, 0));
    }

    #[test]
    fn what_is_covered_is_not_seen() {
        let covered = format!("{HOST}5 1 0:8 / /srv rw - tmpfs none rw\n6 4 0:9 / /x rw - tmpfs none rw\n");
        let mounts = Mounts::parse(&covered, 100);
        assert_eq!(places(&covered), ["/", "/proc", "/srv", "/x"]);
        assert!(mounts.at(Path::new("/x")).is_some_and(|mount| !mount.read_only), "the upper of two");
        let shown_again = format!("{covered}7 5 0:6 / /srv/a\\040b rw - tmpfs none rw\n");
        assert_eq!(places(&shown_again), ["/", "/proc", "/srv", "/srv/a b", "/x"]);
    }

    #[test]
    fn a_root_that_is_no_mount() {
        let inside = "12 11 0:5 / /proc rw - proc proc rw\n13 11 0:6 / /tmp ro - tmpfs none rw\n";
        assert_eq!(places(inside), ["/proc", "/tmp"]);
        assert!(!Mounts::parse(inside, 9).is_root_read_only());
    }
}
