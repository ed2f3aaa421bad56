//! What a service sees of the host's files, as steps of making it.

use super::Settings;
use crate::sys::sandbox::Mount;
use std::path::{Path, PathBuf};

/// Where the service is, all of it absolute and without links.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// What it must see wherever it lies: its releases, its directory, its program, svd's sockets for it.
    pub needed: Vec<PathBuf>,
    /// What it must not reach in a view of its own: svd's directory with the control socket. Whoever speaks there as svd's user may
    /// do anything, and a socket can be reached in what is read-only.
    pub covered: Vec<PathBuf>,
}

/// Paths of the settings, expanded.
#[derive(Clone, Debug, Default)]
struct Paths {
    read_only: Vec<PathBuf>,
    writable: Vec<PathBuf>,
    hidden: Vec<PathBuf>,
    binds: Vec<(PathBuf, PathBuf, bool)>,
}

/// Where a process of root's without any capability changes the kernel and its devices, and so gets out of everything.
pub(super) const KERNEL: [&str; 8] =
    ["/proc/acpi", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/scsi", "/proc/sys", "/proc/sysrq-trigger", "/sys"];
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];
const DEVICES: &str = "/dev";
/// What is left of [`DEVICES`]; `log` is a socket.
const HARMLESS: [&str; 7] = ["full", "log", "null", "random", "tty", "urandom", "zero"];

/// What is bound: where it is seen, and where that is on the host. `expand` as in [`mounts`], by the host.
///
/// # Errors
/// What `expand` says.
pub fn sources<E>(
    settings: &Settings,
    expand: impl Fn(&crate::config::spec::Template) -> Result<PathBuf, E>,
) -> Result<Vec<(PathBuf, PathBuf)>, E> {
    settings.bind.iter().map(|b| Ok((PathBuf::from(&*b.target), expand(&b.source)?))).collect()
}

/// The steps that make the view, in their order, within the service's root. `sources`: of [`sources`]. `expand` gives the path that a template means, without links; one that is not there
/// stays as it is.
///
/// # Errors
/// What `expand` says.
pub fn mounts<E>(
    settings: &Settings,
    around: &Surroundings,
    sources: &[(PathBuf, PathBuf)],
    expand: impl Fn(&crate::config::spec::Template) -> Result<PathBuf, E>,
) -> Result<Vec<Mount>, E> {
    let all =
        |templates: &[crate::config::spec::Template]| templates.iter().map(&expand).collect::<Result<Vec<_>, E>>();
    let binds = sources.iter().zip(&settings.bind);
    let binds = binds.map(|((target, source), bind)| (target.clone(), source.clone(), bind.read_only));
    let paths = Paths {
        read_only: all(&settings.read_only)?,
        writable: all(&settings.writable)?,
        hidden: all(&settings.hidden)?,
        binds: binds.collect(),
    };
    Ok(steps(settings, &paths, around))
}

fn steps(settings: &Settings, paths: &Paths, around: &Surroundings) -> Vec<Mount> {
    let mut steps = Vec::new();
    let visible: Vec<&PathBuf> = around.needed.iter().chain(&paths.writable).collect();
    let keep = |cover: &Path| {
        let mut below: Vec<PathBuf> =
            visible.iter().filter(|p| p.starts_with(cover) && ***p != *cover).map(|p| (*p).clone()).collect();
        below.sort();
        below.dedup();
        // What lies below something that is kept comes with it.
        let outermost = |p: &PathBuf| !below.iter().any(|other| other != p && p.starts_with(other));
        below.iter().filter(|p| outermost(p)).cloned().collect::<Vec<_>>()
    };
    let mut places = paths.binds.iter().map(|(target, ..)| target.clone()).collect::<Vec<_>>();
    places.sort();
    let made = |cover: &Path| places.iter().filter(|t| t.starts_with(cover)).cloned().collect::<Vec<_>>();
    let mut writable = paths.writable.clone();
    if settings.private_tmp {
        for path in TEMPORARY.map(PathBuf::from) {
            // What it must see there it need not be able to change.
            steps.push(Mount::Cover {
                keep: keep(&path),
                make: made(&path),
                path: path.clone(),
                mode: 0o1777,
                empty: false,
            });
            writable.push(path);
        }
    }
    if settings.private_devices {
        let devices = Path::new(DEVICES);
        let mut all = keep(devices);
        all.extend(HARMLESS.map(|name| devices.join(name)));
        steps.push(Mount::Cover { path: devices.into(), mode: 0o755, keep: all, make: made(devices), empty: false });
        steps.push(Mount::Terminals);
    }
    if settings.private_pids {
        steps.push(Mount::Processes);
    }
    writable.push(DEVICES.into());
    writable.push("/proc".into());
    for path in around.covered.iter().filter(|_| settings.has_view()) {
        let (keep, make) = (keep(path), made(path));
        steps.push(Mount::Cover { path: path.clone(), mode: 0o711, keep, make, empty: false });
    }
    for path in &paths.hidden {
        let (keep, make) = (keep(path), made(path));
        let empty = keep.is_empty() && make.is_empty();
        // Programs look for files of their user's (~/.postgresql), and take "there is none" for an answer, not "you may not".
        steps.push(Mount::Cover { path: path.clone(), mode: 0o555, keep, make, empty });
    }
    for (target, source, read_only) in &paths.binds {
        steps.push(Mount::Bind { source: source.clone(), target: target.clone() });
        for path in &around.covered {
            let Ok(below) = path.strip_prefix(source) else { continue };
            let path = if below.as_os_str().is_empty() { target.clone() } else { target.join(below) };
            steps.push(Mount::Cover { keep: keep(&path), path, mode: 0o711, make: Vec::new(), empty: false });
        }
        if !read_only {
            writable.push(target.clone());
        }
    }
    let mut read_only = paths.read_only.clone();
    if read_only.iter().any(|path| path == Path::new("/")) {
        read_only.extend(KERNEL.map(PathBuf::from));
    }
    read_only.extend(paths.binds.iter().filter(|(.., ro)| *ro).map(|(target, ..)| target.clone()));
    // What is hidden is empty, and stays so.
    read_only.extend(paths.hidden.iter().cloned());
    if !read_only.is_empty() {
        // A path that is said to be both: what is more special wins, and then what can be written.
        read_only.retain(|path| !writable.contains(path) || path == Path::new("/"));
        steps.push(Mount::ReadOnly { paths: read_only, except: writable });
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::spec::{Bind, Template};

    fn paths(all: &[&str]) -> Vec<PathBuf> {
        all.iter().map(PathBuf::from).collect()
    }

    fn of(settings: &Settings, needed: &[&str]) -> Vec<Mount> {
        let around = Surroundings { needed: paths(needed), ..Surroundings::default() };
        let expand = |t: &Template| Ok::<_, ()>(PathBuf::from(&*t.0));
        let sources = sources(settings, expand).expect("no error is possible");
        mounts(settings, &around, &sources, expand).expect("no error is possible")
    }

    #[test]
    fn what_is_needed_stays_visible_below_what_is_hidden() {
        let settings = Settings { hidden: vec![Template::new("/home2")], ..Settings::default() };
        let steps = of(&settings, &["/home2/a/app", "/home2/a/app/releases/1", "/srv/x", "/home2"]);
        let Mount::Cover { keep, empty, mode, .. } = &steps[0] else { panic!("{steps:?}") };
        assert_eq!((keep.clone(), *empty, *mode), (paths(&["/home2/a/app"]), false, 0o555));
        let Mount::Cover { mode, empty, .. } = &of(&settings, &["/home22/a"])[0] else { panic!("a cover") };
        assert_eq!((*mode, *empty), (0o555, true));
    }

    #[test]
    fn a_view_has_no_way_to_svd_and_none_to_change_the_kernel() {
        let around = Surroundings { covered: paths(&["/run/a"]), ..Surroundings::default() };
        let of = |settings: &Settings| mounts(settings, &around, &[], |t: &Template| Ok::<_, ()>(PathBuf::from(&*t.0)));
        let steps = of(&Settings { read_only: vec![Template::new("/")], ..Settings::default() }).expect("steps");
        assert!(matches!(&steps[0], Mount::Cover { path, .. } if *path == around.covered[0]), "{steps:?}");
        let Mount::ReadOnly { paths: read_only, except } = &steps[1] else { panic!("{steps:?}") };
        assert!(read_only.contains(&"/proc/sys".into()) && except.contains(&"/proc".into()));
        assert_eq!(of(&Settings { landlock: true, ..Settings::default() }), Ok(Vec::new()), "no view, nothing covered");
    }

    #[test]
    fn binds_are_made_after_covers_and_have_their_place_in_them() {
        let bind = Bind { target: "/tmp/data".into(), source: Template::new("/srv/data"), read_only: true };
        let steps = of(&Settings { private_tmp: true, bind: vec![bind], ..Settings::default() }, &[]);
        let Mount::Cover { make, .. } = &steps[0] else { panic!("{steps:?}") };
        assert_eq!(*make, paths(&["/tmp/data"]));
        assert!(matches!(&steps[2], Mount::Bind { .. }), "{steps:?}");
        let Mount::ReadOnly { paths: read_only, except } = &steps[3] else { panic!("{steps:?}") };
        assert_eq!(*read_only, paths(&["/tmp/data"]));
        assert!(except.contains(&"/tmp".into()));
    }

    #[test]
    fn nothing_asked_nothing_done() {
        assert!(of(&Settings::default(), &["/srv/x"]).is_empty());
    }
}
