//! The environment of a release: built as the service's user, then sealed.

use super::Task;
use super::book::on_disk;
use super::command::{Place, ending};
use crate::api::Reply;
use crate::api::apps::{BuildResult, ReleaseOptions};
use crate::api::types::{ApiError, ErrorCode};
use crate::config::spec::{Build, BuildOn, Template};
use crate::kinds::{Argv, environment};
use crate::release::ReleaseId;
use crate::release::layout::{Layout, remove_tree};
use crate::release::venv::{self, COMPLETE, Files, Ingredients, Tool, WHEELS};
use crate::sys::spawn::{Ids, resolve_program};
use crate::sys::tree::{self, Owner, Rules};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files of one environment, and their bytes.
const ENTRIES: u64 = 2_000_000;
const BYTES: u64 = 64 << 30;
/// For an interpreter to say what it is.
const QUESTION: Duration = Duration::from_secs(30);
const BUILD: Duration = Duration::from_secs(3600);

/// What is built.
struct Wanted {
    name: Box<str>,
    /// Run one after the other, from the release's directory.
    commands: Vec<Argv>,
    /// They install what came with the release.
    wheels: bool,
}

impl Task {
    pub async fn build(&self, wanted: ReleaseOptions, reply: &mut Reply) -> Result<BuildResult, ApiError> {
        let id = self.admitted(&wanted.fence, &wanted.release).await?;
        let _busy = self.begin("a virtual environment is being built")?;
        let place = self.place(&id).await?;
        let result = match self.wanted(&id, &place).await? {
            Err(reason) => BuildResult { changed: false, reason: reason.into(), venv: None },
            Ok(wanted) => self.build_wanted(&id, &place, wanted, reply).await?,
        };
        let venv = result.venv.clone();
        self.change(|app| app.built(&id, venv)).await?;
        let detail = result.reason.clone();
        self.tell(&wanted.fence, "built", Some(id.as_str()), &detail).await;
        Ok(result)
    }

    /// What is to be built; inside, an error: why nothing is.
    async fn wanted(&self, id: &ReleaseId, place: &Place) -> Result<Result<Wanted, &'static str>, ApiError> {
        let release = self.layout.release(id);
        match &self.deploy.build {
            Build::Nothing => return Ok(Err("[deploy] build = \"none\"")),
            Build::Auto if !self.deploy.wants_venv(&self.lead.kind) => return Ok(Err("a JVM needs none")),
            Build::Command(_) if self.deploy.build_on == BuildOn::Here => {
                return Ok(Err("it came built: [deploy] build_on = \"here\""));
            }
            Build::Command(words) => {
                let source = self.book.app().releases.get(id).map(|r| r.about.source.clone()).unwrap_or_default();
                let shown: Vec<&str> = words.iter().map(|w| &*w.0).collect();
                let of = Files::from([(PathBuf::from(&*source), shown.join("\0").into_bytes())]);
                let commands = vec![self.words(place, words)?];
                return Ok(Ok(Wanted { name: venv::name(&of, id.as_str()), commands, wheels: false }));
            }
            Build::Auto => {}
        }
        let (names, at) = (self.deploy.requirements.clone(), release);
        let found = on_disk(move || venv::ingredients(&at, &names)).await.map_err(|why| self.failed(why))?;
        let Some(Ingredients { files, words }) = found else {
            return Ok(Err("the release has no requirements.txt, and is no wheel"));
        };
        let python = self.deploy.python.clone().unwrap_or_else(|| Template("python3".into()));
        let python = self.words(place, &[python])?;
        let (run, shown) = (python.words().concat(), python.shown());
        let question = |python: &str| [python, "-c", venv::QUESTION].map(str::to_owned).to_vec();
        let question = Argv::new(question(&run), question(&shown));
        let answer = self.command(place, "python", question, Some(QUESTION), None).await;
        if !answer.succeeded() {
            let why = format!("{}: {shown}: {}.", self.book.name, ending(&answer.status));
            return Err(ApiError::new(ErrorCode::Failed, why).last_output(answer.last));
        }
        let mut interpreter = String::from_utf8_lossy(&answer.output).into_owned();
        if venv::installs_itself(&files) {
            interpreter.push_str(id.as_str());
        }
        let name = venv::name(&files, &interpreter);
        let (home, ids) = (PathBuf::from(&place.run_as().login.home), place.run_as().ids.clone());
        let tool = on_disk(move || Ok(tool(&home, ids.as_ref()))).await.map_err(|why| self.failed(why))?;
        let wheels = self.deploy.build_on == BuildOn::Here;
        let venv = self.layout.venv(&name);
        let commands = |python: &str| venv::commands(&tool, python, &venv, &words, wheels).into_iter();
        let commands = commands(&run).zip(commands(&shown)).map(|(words, shown)| Argv::new(words, shown)).collect();
        Ok(Ok(Wanted { name, commands, wheels }))
    }

    async fn build_wanted(
        &self,
        id: &ReleaseId,
        place: &Place,
        wanted: Wanted,
        reply: &mut Reply,
    ) -> Result<BuildResult, ApiError> {
        let Wanted { name, commands, wheels } = wanted;
        let (layout, known) = (self.layout.clone(), name.clone());
        let there = on_disk(move || Ok(is_whole(&layout.venv(&known))));
        if there.await.map_err(|why| self.failed(why))? {
            self.link(id, &name).await?;
            let reason = "the requirements and the interpreter are the same".into();
            return Ok(BuildResult { changed: false, reason, venv: Some(name) });
        }
        let came = self.layout.release(id).join(WHEELS);
        if wheels && !on_disk(move || Ok(came.is_dir())).await.map_err(|why| self.failed(why))? {
            let app = &self.book.name;
            let why = format!("{app}: release {id} came without wheels, and [deploy] build_on is \"here\".");
            let hint = format!("Add build = \"wheels\" to [app.{app}] of the fleet file.");
            return Err(ApiError::new(ErrorCode::Failed, why).hint(hint));
        }
        let ids = place.run_as().ids.as_ref();
        let (uid, gid) = ids.map_or((nix::unistd::geteuid().as_raw(), 0), |ids| (ids.uid, ids.gid));
        let (layout, begun, owner) = (self.layout.clone(), name.clone(), self.root.then_some(Owner { uid, gid }));
        on_disk(move || prepare(&layout, &begun, owner)).await.map_err(|why| self.failed(why))?;
        // A command of the file's own finds it as {venv}. But what has one that works keeps it until there is a better one: it may serve, and
        // start with what the link leads to after a boot in the midst of this.
        let (layout, of) = (self.layout.clone(), id.clone());
        let has_one = move || Ok(layout.linked_venv(&of).is_some_and(|venv| is_whole(&layout.venv(&venv))));
        if !on_disk(has_one).await.map_err(|why| self.failed(why))? {
            self.link(id, &name).await?;
        }
        for argv in commands {
            let shown = argv.shown();
            self.say(reply, "build", shown.as_str());
            let outcome = self.command(place, "build", argv, Some(BUILD), Some(reply)).await;
            if !outcome.succeeded() {
                let (layout, failed) = (self.layout.clone(), name.clone());
                // The first error is the one to tell.
                let _ = on_disk(move || remove_tree(&layout.venv(&failed))).await;
                let why = format!("{}: `{shown}` {}.", self.book.name, ending(&outcome.status));
                return Err(ApiError::new(ErrorCode::Failed, why)
                    .hint("The environment was removed again; what ran before is untouched.")
                    .last_output(outcome.last));
            }
        }
        let (layout, built) = (self.layout.clone(), name.clone());
        let seal_for = self.root.then_some((uid, Owner { uid: 0, gid }));
        on_disk(move || seal(&layout, &built, seal_for)).await.map_err(|why| self.failed(why))?;
        self.link(id, &name).await?;
        let reason = "the requirements or the interpreter are others than before".into();
        Ok(BuildResult { changed: true, reason, venv: Some(name) })
    }

    /// `RELEASE/venv` leads to the environment.
    async fn link(&self, id: &ReleaseId, name: &str) -> Result<(), ApiError> {
        let (layout, id, name) = (self.layout.clone(), id.clone(), name.to_owned());
        on_disk(move || layout.link_venv(&id, &name)).await.map_err(|why| self.failed(why))
    }
}

/// Where services look for programs. `home`: of the user who builds.
fn tool(home: &Path, ids: Option<&Ids>) -> Tool {
    use std::os::unix::fs::MetadataExt;
    let Ok(path) = resolve_program("uv".as_ref(), environment::PATH.as_ref(), Path::new("/")) else {
        return Tool::Pip;
    };
    let uid = ids.map_or(nix::unistd::geteuid().as_raw(), |ids| ids.uid);
    Tool::Uv { path, cache: std::fs::metadata(home).is_ok_and(|meta| meta.uid() == uid) }
}

/// Is it an environment that was built to its end, by svd's own word? While it is built it is the service's, who may write
/// anything into it.
fn is_whole(venv: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let own = nix::unistd::geteuid().as_raw();
    let is_own = |path: &Path, is: fn(&std::fs::Metadata) -> bool| {
        std::fs::symlink_metadata(path).is_ok_and(|meta| meta.uid() == own && is(&meta))
    };
    is_own(venv, std::fs::Metadata::is_dir) && is_own(&venv.join(COMPLETE), std::fs::Metadata::is_file)
}

/// An empty directory of the service's user's; what an interrupted build has left is removed.
fn prepare(layout: &Layout, name: &str, owner: Option<Owner>) -> Result<(), String> {
    layout.create()?;
    let path = layout.venv(name);
    remove_tree(&path)?;
    let cannot = |e| format!("cannot make {}: {}", path.display(), crate::sys::io_text(&e));
    std::fs::DirBuilder::new().mode(0o755).create(&path).map_err(cannot)?;
    if let Some(owner) = owner {
        std::os::unix::fs::chown(&path, Some(owner.uid), Some(owner.gid)).map_err(cannot)?;
    }
    Ok(())
}

/// What was built becomes root's, by a copy: whoever has one of its files open for writing has another file.
fn seal(layout: &Layout, name: &str, owner: Option<(u32, Owner)>) -> Result<(), String> {
    let (built, sealed) = layout.sealing(name);
    let path = layout.venv(name);
    let cannot = |what: &str, path: &Path, e: std::io::Error| {
        format!("cannot {what} {}: {}", path.display(), crate::sys::io_text(&e))
    };
    let mark = |dir: &Path| {
        let mark = dir.join(COMPLETE);
        crate::sys::durable::write(&mark, b"", 0o444).map_err(|e| cannot("write", &mark, e))
    };
    let Some((user, owner)) = owner else {
        // The mark must not outlive what it is about.
        let synced = std::fs::File::open(&path).and_then(|dir| Ok(nix::unistd::syncfs(&dir)?));
        synced.map_err(|e| cannot("write", &path, e))?;
        return mark(&path);
    };
    remove_tree(&built)?;
    remove_tree(&sealed)?;
    std::fs::rename(&path, &built).map_err(|e| cannot("rename", &path, e))?;
    // Its links lead to the interpreter, and only the service itself follows them.
    let rules = Rules { owner: user, links_out: true, most_entries: ENTRIES, most_bytes: BYTES };
    tree::copy(&built, &sealed, &rules, Some(owner))?;
    mark(&sealed)?;
    std::fs::rename(&sealed, &path).map_err(|e| cannot("rename", &sealed, e))?;
    let dir = layout.root().join("venv");
    crate::sys::durable::sync_directory(&dir).map_err(|e| cannot("write", &dir, e))?;
    remove_tree(&built)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{chown, symlink};

    #[test]
    fn only_svd_says_that_an_environment_is_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let (venv, mark) = (dir.path().join("venv"), dir.path().join("venv").join(COMPLETE));
        assert!(!is_whole(&venv));
        std::fs::create_dir(&venv).expect("mkdir");
        assert!(!is_whole(&venv));
        std::fs::write(&mark, "").expect("write");
        assert!(is_whole(&venv));
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root gives files away");
            return;
        }
        // As the service's user leaves it who was at it when svd died.
        for path in [&venv, &mark] {
            chown(path, Some(12_345), None).expect("chown");
            assert!(!is_whole(&venv));
            chown(path, Some(0), None).expect("chown");
        }
        std::fs::rename(&mark, dir.path().join("elsewhere")).expect("rename");
        symlink(dir.path().join("elsewhere"), &mark).expect("symlink");
        assert!(!is_whole(&venv));
    }
}
