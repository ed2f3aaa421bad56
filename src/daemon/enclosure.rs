//! What a generation's processes are shut in: its settings, with the paths of its release.

use super::features::isolation::Features;
use super::unit::Plan;
use crate::config::spec::{self, JvmProgram, Kind, Template};
use crate::isolation::{self, Filter, Settings, Surroundings};
use crate::kinds::Context;
use crate::sys::sandbox::{Inside, Mount, Network, Sandbox, Syscalls};
use crate::sys::trust::{self, Rule};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is the same for all services.
#[derive(Debug, Default)]
pub struct Walls {
    /// Svd's own files that services need, whatever else is hidden from them: gunicorn's launcher, the notify sockets.
    pub shown: Vec<PathBuf>,
    /// Svd's own directories that are hidden in every view: with the control socket.
    pub covered: Vec<PathBuf>,
    pub features: Arc<Features>,
}

/// What it sees in place of the host's files, where its `/` is another directory. Looks at paths, which may hang: for the pool.
///
/// # Errors
/// A sentence for the operator: the directory is not there, or not safe.
pub fn inside(plan: &Plan) -> Result<Option<Inside>, String> {
    let Some(chroot) = &plan.spec.chroot else { return Ok(None) };
    let failed = |why: String| format!("chroot = {:?}: {why}", chroot.display().to_string());
    match std::fs::metadata(chroot) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => return Err(failed("it is not a directory".to_owned())),
        Err(e) => return Err(failed(format!("it cannot be had: {}", crate::sys::io_text(&e)))),
    }
    // Whoever can write there decides what is run as the service's user, perhaps root, and where svd mounts what.
    trust::in_words(chroot).map_err(|(why, help)| {
        let help = help.map(|help| format!(": {help}")).unwrap_or_default();
        failed(format!("only root and svd's own user may be able to change it, and {why}{help}"))
    })?;
    let real = without_links(chroot);
    if real == Path::new("/") {
        return Err(failed("it leads to /, which changes nothing; leave it out".to_owned()));
    }
    let settings = isolation::of(&plan.spec);
    let context = Context::without_worker(&plan.spec, &plan.places);
    let binds = isolation::sources(&settings, |path| context.expand(path).map(|p| without_links(Path::new(&p))))?;
    Ok(Some(Inside::new(real, binds)))
}

/// `None`: nothing. `inside`: by [`inside`]. Looks at paths as well.
///
/// # Errors
/// A sentence for the operator.
pub fn sandbox(plan: &Plan, walls: &Walls, inside: Option<&Inside>) -> Result<Option<Sandbox>, String> {
    let mut settings = walls.features.settings(&plan.spec);
    if settings == Settings::default() {
        return Ok(None);
    }
    if plan.spec.user.as_deref() == Some(spec::AUTO_USER) {
        settings.writable.push(Template::new(plan.run_as.login.home.clone()));
    }
    let secrets = super::launch::path_of_secrets(plan);
    let context = Context { secrets, ..Context::without_worker(&plan.spec, &plan.places) };
    // As the service sees it, and on the host.
    let find = |path: &Path| match inside {
        Some(inside) => inside.find(path),
        None => {
            let real = without_links(path);
            (real.clone(), real)
        }
    };
    let own = plan.spec.isolation.as_ref().map(|isolation| isolation.writable.as_slice()).unwrap_or_default();
    // What the profile lets a service write to need not be there, as in a root that is served in place.
    let is_there = |path: &Template| context.expand(path).is_ok_and(|p| find(Path::new(&p)).1.exists());
    settings.writable.retain(|path| own.contains(path) || is_there(path));
    let around = Surroundings {
        needed: needed(plan, &context, &walls.shown, find),
        covered: walls.covered.iter().map(|path| without_links(path)).collect(),
    };
    let expand = |template: &Template| context.expand(template).map(|path| find(Path::new(&path)).0);
    let by_host = |template: &Template| context.expand(template).map(|path| without_links(Path::new(&path)));
    let sources = isolation::sources(&settings, by_host)?;
    let bounding = settings.bounding_set();
    let landlock = if settings.landlock { Some(isolation::landlock(&settings, &around, expand)?) } else { None };
    let mut mounts = isolation::mounts(&settings, &around, &sources, expand)?;
    if let Some(alone) = secrets_alone(plan).filter(|_| !mounts.is_empty()) {
        // What is read-only comes last.
        let at = mounts.iter().position(|step| matches!(step, Mount::ReadOnly { .. })).unwrap_or(mounts.len());
        mounts.insert(at, alone);
    }
    if let Some(inside) = inside {
        let shown = walls.shown.iter().cloned().chain(secrets.map(Path::to_owned));
        let shown = shown.map(|path| without_links(&path)).collect();
        mounts.insert(0, Mount::Root { path: inside.root().to_owned(), shown });
    }
    Ok(Some(Sandbox {
        user_namespace: walls.features.needs_user_namespace(&settings),
        mounts,
        bounding: bounding.map(|all| all.into_iter().map(|c| c.0).collect()),
        ambient: settings.capabilities.is_some(),
        no_new_privileges: settings.no_new_privileges,
        syscalls: isolation::syscalls(&settings.syscalls).as_ref().map(filter),
        landlock,
        network: match settings.network {
            spec::Network::Host => Network::Host,
            spec::Network::None => Network::None,
            spec::Network::Loopback => Network::Loopback,
        },
        private_pids: settings.private_pids,
    }))
}

fn filter(filter: &Filter) -> Syscalls {
    let (names, unknown) = (filter.names.iter().copied(), filter.unknown.iter().copied());
    Syscalls::new(filter.allowed, names, unknown, filter.namespaces)
}

/// Of the directory with everybody's secrets, what the service sees is its own.
fn secrets_alone(plan: &Plan) -> Option<Mount> {
    let own = super::launch::path_of_secrets(plan)?;
    let path = own.parent()?.to_owned();
    Some(Mount::Cover { path, mode: 0o711, keep: vec![own.to_owned()], make: Vec::new(), empty: false })
}

/// Where links lead; what is not there stays as it is.
fn without_links(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// What the processes must see, whatever is hidden.
fn needed(
    plan: &Plan,
    context: &Context<'_>,
    shown: &[PathBuf],
    find: impl Fn(&Path) -> (PathBuf, PathBuf),
) -> Vec<PathBuf> {
    let places = &plan.places;
    // `current` may be said to be elsewhere, and what is linked into a release lies in the root.
    let links: Vec<PathBuf> = places.links().collect();
    let linked = [places.release.as_deref(), places.venv.as_deref()].into_iter().flatten();
    let linked = linked.filter(|real| is_shown(places.root.as_deref(), &links, real)).map(Path::to_owned);
    let found = places.root.iter().cloned().chain(linked);
    let directory = super::launch::directory(context).ok();
    let program = plan.program.as_ref().and_then(|p| find(p).0.parent().map(Path::to_owned));
    let python = plan.program.as_deref().map(|p| of_python(p, &find)).unwrap_or_default();
    let archives = archives(&plan.spec.kind).filter_map(|path| context.expand(path).ok()).map(PathBuf::from);
    let all = found.chain(directory).chain(program).chain(python).chain(archives);
    let secrets = super::launch::path_of_secrets(plan).map(Path::to_owned);
    let all = all.chain(shown.iter().cloned()).chain(secrets);
    all.map(|path| find(&path).0).filter(|path| path != Path::new("/")).collect()
}

/// What links of the root lead to: below the root, or where nobody but root and svd's user could have led them. A service that may
/// write there would show itself what is hidden from it.
fn is_shown(root: Option<&Path>, links: &[PathBuf], real: &Path) -> bool {
    let below = root.is_some_and(|root| without_links(real).starts_with(without_links(root)));
    let leads = |link: &&PathBuf| link.canonicalize().is_ok_and(|target| target == real);
    let shown = below || links.iter().filter(leads).any(|link| trust::parents(link, Rule::Strict).is_ok());
    if !shown {
        tracing::warn!(
            "{} lies outside of its root, and others than root decide that it is used: if it is hidden, it stays so",
            real.display()
        );
    }
    shown
}

/// The virtual environment of an interpreter, and the Python that it was made from: as far as the interpreter lies there, or nobody but
/// root and svd's user could have written that.
fn of_python(program: &Path, find: impl Fn(&Path) -> (PathBuf, PathBuf)) -> Vec<PathBuf> {
    let Some(venv) = program.parent().and_then(Path::parent) else { return Vec::new() };
    let config = find(&venv.join("pyvenv.cfg")).1;
    let Ok(text) = std::fs::read_to_string(&config) else { return Vec::new() };
    let home = text.lines().find_map(|line| line.strip_prefix("home")?.trim_start().strip_prefix('='));
    let base = home.and_then(|home| Path::new(home.trim()).parent().map(Path::to_owned));
    let is_its = |base: &PathBuf| find(program).0.starts_with(find(base).0);
    let base = base.filter(|base| is_its(base) || trust::path(&config, Rule::Strict).is_ok());
    [Some(venv.to_owned()), base].into_iter().flatten().collect()
}

/// A JVM, and what it runs, which may lie beside the release.
fn archives(kind: &Kind) -> impl Iterator<Item = &Template> {
    let (home, jar, classpath) = match kind {
        Kind::Jvm { program: JvmProgram::Jar(jar), java, .. } => (java.home.as_ref(), Some(jar), &[][..]),
        Kind::Jvm { program: JvmProgram::Main { classpath, .. }, java, .. } => {
            (java.home.as_ref(), None, &classpath[..])
        }
        _ => (None, None, &[][..]),
    };
    home.into_iter().chain(jar).chain(classpath)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, lchown, symlink};

    /// Of somebody else than root.
    const OTHER: Option<u32> = Some(61_234);

    #[test]
    fn what_a_service_may_write_shows_it_nothing() {
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let at = |path: &str| dir.path().join(path);
        for path in ["app/releases/1", "venv/bin", "python/bin", "others/bin"] {
            std::fs::create_dir_all(at(path)).expect("directories");
        }
        std::fs::write(at("python/bin/python3"), "").expect("a file");
        symlink(at("python/bin/python3"), at("venv/bin/python")).expect("a link");
        let says = |home: &str| {
            let text = format!("home = {}\nversion = 3\n", at(home).display());
            std::fs::write(at("venv/pyvenv.cfg"), text).expect("a file");
            of_python(&at("venv/bin/python"), |path| (without_links(path), without_links(path)))
        };
        let venv = at("venv");
        assert_eq!(says("others/bin"), [venv.clone(), at("others")], "root says so");
        chown(&venv, OTHER, None).expect("chown");
        assert_eq!(says("others/bin"), std::slice::from_ref(&venv));
        assert_eq!(says("python/bin"), [venv, at("python")], "it is what runs");

        let (root, link) = (at("app"), at("app/current"));
        let links = [link.clone()];
        let leads = |to: &str| {
            let _ = std::fs::remove_file(&link);
            symlink(at(to), &link).expect("a link");
            is_shown(Some(&root), &links, &at(to))
        };
        assert!(leads("app/releases/1") && leads("others"), "root says so");
        chown(&root, OTHER, None).expect("chown");
        assert!(leads("app/releases/1") && !leads("others"));
        lchown(&link, OTHER, None).expect("lchown");
        assert!(!leads("others"));
    }
}
