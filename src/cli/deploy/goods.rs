//! What is shipped: a commit of a repository, or an artifact; and how it differs from what runs.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::super::args::DeployArgs;
use super::super::exit::{CliError, Exit};
use super::target::Target;
use crate::api::apps::{AppStatus, ReleaseState, ReleaseStatus};
use crate::api::types::{ApiError, ErrorCode};
use crate::fleet::drive::First;
use crate::fleet::drive::facts::{Answer, serves};
use crate::fleet::inventory::Source;
use crate::fleet::rollout::plan::Change;
use crate::fleet::scratch::Scratch;
use crate::fleet::source::artifact::Artifact;
use crate::fleet::source::git::{CommitId, Git, GitError};
use crate::fleet::source::{cache_directory, tag};

pub enum Goods {
    Git { git: Git, commit: CommitId, label: String, paths: Vec<Box<str>>, name: OnceCell<Box<str>> },
    Artifact(Artifact),
}

/// In the words of the command line.
pub fn of_git(error: GitError) -> CliError {
    let mut said = ApiError::new(ErrorCode::Failed, error.to_string());
    said.hint = error.hint().map(Into::into);
    CliError::Said { exit: Exit::Failed, error: said }
}

impl Goods {
    /// # Errors
    /// What is to be shipped is not there.
    pub fn find(target: &Target, args: &DeployArgs) -> Result<Goods, CliError> {
        if let (Some(_), Source::Git { only_branch: true, branch, .. }) = (&args.artifact, &target.app.source) {
            return Err(super::failed(format!(
                "[app.{}] only_branch is set: what is not on {branch} is not shipped, files neither; nothing was done.",
                target.app.name
            )));
        }
        let source = match (&args.artifact, &target.app.source) {
            (Some(path), _) => Source::Artifact(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            (None, source) => source.clone(),
        };
        match source {
            Source::Artifact(path) => {
                let artifact = Artifact::read(&target.base.join(path)).map_err(|e| super::failed(e.to_string()))?;
                Ok(Goods::Artifact(artifact))
            }
            Source::Git { repository, branch, only_branch, .. } => {
                let cache =
                    cache_directory().ok_or_else(|| super::failed("There is no HOME for a copy of the repository."))?;
                let git = Git::open(&repository, &target.base, &cache).map_err(of_git)?;
                git.fetch().map_err(of_git)?;
                let branch = match (branch.is_empty(), &args.reference) {
                    (false, _) => branch.into(),
                    (true, Some(reference)) => reference.clone(),
                    (true, None) => git.default_branch().map_err(|error| match error {
                        GitError::Unknown { repository, .. } => super::failed(format!(
                            "{repository} is at no branch; say what to ship: --ref, or --branch."
                        )),
                        error => of_git(error),
                    })?,
                };
                let label = args.reference.clone().unwrap_or_else(|| branch.clone());
                let commit = git.resolve(&label).map_err(of_git)?;
                if only_branch {
                    let tip = git.resolve(&branch).map_err(of_git)?;
                    if !git.contains(&tip, &commit).map_err(of_git)? {
                        return Err(super::failed(format!(
                            "{label} ({}) is not on {branch}, and [app.{}] only_branch is set; nothing was done.",
                            commit.short(),
                            target.app.name
                        )));
                    }
                }
                Ok(Goods::Git { git, commit, label, paths: target.app.paths.clone(), name: OnceCell::new() })
            }
        }
    }

    /// What a release that some host has was made from, under the name that it has.
    ///
    /// # Errors
    /// It is not to be had any more.
    pub fn again(target: &Target, release: &ReleaseStatus) -> Result<Goods, CliError> {
        match &target.app.source {
            Source::Artifact(path) => {
                let path = target.base.join(path);
                let artifact = Artifact::read(&path).map_err(|e| super::failed(e.to_string()))?;
                if *artifact.digest != *release.source {
                    let why = format!("{} is not what {} was made from any more.", path.display(), release.release);
                    return Err(super::failed(why));
                }
                Ok(Goods::Artifact(artifact))
            }
            Source::Git { repository, .. } => {
                let cache =
                    cache_directory().ok_or_else(|| super::failed("There is no HOME for a copy of the repository."))?;
                let git = Git::open(repository, &target.base, &cache).map_err(of_git)?;
                git.fetch().map_err(of_git)?;
                let commit = CommitId::new(&release.source).filter(|id| git.has(id).unwrap_or(false));
                let commit = commit.ok_or_else(|| {
                    let from = if release.source.is_empty() { "nothing that is known" } else { &release.source };
                    super::failed(format!("{} was made from {from}, which {repository} has not got.", release.release))
                })?;
                let (label, paths) = (release.label.to_string(), target.app.paths.clone());
                Ok(Goods::Git { git, commit, label, paths, name: OnceCell::from(release.release.clone()) })
            }
        }
    }

    pub fn source(&self) -> Box<str> {
        match self {
            Goods::Git { commit, .. } => commit.as_str().into(),
            Goods::Artifact(artifact) => artifact.digest.as_str().into(),
        }
    }

    pub fn label(&self) -> Box<str> {
        match self {
            Goods::Git { label, .. } => label.as_str().into(),
            Goods::Artifact(artifact) => artifact.path.file_name().unwrap_or_default().to_string_lossy().into(),
        }
    }

    /// The release's name: of the deploy for a commit, of the content for an artifact. A commit that serves everywhere keeps the
    /// name that it has. A name is given once: where a deploy of the same second has it already (it may have failed by now), the
    /// next free second is taken.
    pub fn release(&self, answers: &BTreeMap<Box<str>, Answer>) -> Box<str> {
        match self {
            Goods::Git { git, commit, name, .. } => {
                let serving: BTreeSet<Option<Box<str>>> = answers.values().flatten().map(serves).collect();
                let all = if serving.len() == 1 { serving.into_iter().next().flatten() } else { None };
                let same = |id: &str| {
                    answers
                        .values()
                        .flatten()
                        .all(|s| source_of(s, id).is_some_and(|source| *source == *commit.as_str()))
                };
                let taken = |id: &str| {
                    let known = |status: &AppStatus| status.releases.iter().any(|r| *r.release == *id);
                    answers.values().flatten().any(known) || git.tagged(id).is_ok_and(|commit| commit.is_some())
                };
                let new = || tag::names(SystemTime::now()).find(|id| !taken(id)).unwrap_or_default().into();
                name.get_or_init(|| all.filter(|id| same(id)).unwrap_or_else(new)).clone()
            }
            // One that has failed may be shipped again, as a commit may: what it needed may be there now.
            Goods::Artifact(artifact) => {
                let failed = |id: &str| {
                    let of = |r: &ReleaseStatus| *r.release == *id && r.state == ReleaseState::Failed;
                    answers.values().flatten().any(|status| status.releases.iter().any(of))
                };
                let names =
                    std::iter::once(artifact.release()).chain((2..).map(|n| format!("{}-{n}", artifact.release())));
                names.into_iter().find(|name| !failed(name)).unwrap_or_default().into()
            }
        }
    }

    /// From each release that serves somewhere.
    ///
    /// # Errors
    /// git's.
    pub fn changes(&self, answers: &BTreeMap<Box<str>, Answer>) -> Result<BTreeMap<Box<str>, Change>, CliError> {
        let mut changes = BTreeMap::new();
        for status in answers.values().flatten() {
            let Some(id) = serves(status) else { continue };
            let source = source_of(status, &id).unwrap_or_default();
            if let Some(change) = self.change(&source, status)? {
                changes.insert(id, change);
            }
        }
        Ok(changes)
    }

    fn change(&self, from: &str, status: &AppStatus) -> Result<Option<Change>, CliError> {
        match self {
            Goods::Artifact(artifact) => {
                let any = *artifact.digest != *from;
                Ok(Some(Change { any, requirements: any, statics: any }))
            }
            Goods::Git { git, commit, paths, .. } => {
                let Some(old) = CommitId::new(from) else { return Ok(None) };
                if !git.has(&old).map_err(of_git)? {
                    return Ok(None);
                }
                let changed = git.changed(&old, commit).map_err(of_git)?;
                let fits = |globs: &[Box<str>], path: &str| globs.iter().any(|g| fast_glob::glob_match(&**g, path));
                let ours = |path: &&String| paths.is_empty() || fits(paths, path);
                let requirements = changed.iter().any(|path| status.requirements.iter().any(|r| **r == **path));
                let always = status.static_when_changed.is_empty();
                let statics = always || changed.iter().any(|path| fits(&status.static_when_changed, path));
                Ok(Some(Change { any: changed.iter().any(|path| ours(&path)), requirements, statics }))
            }
        }
    }

    /// What is new for the hosts, for people: commits, newest first.
    pub fn news(&self, answers: &BTreeMap<Box<str>, Answer>) -> Vec<String> {
        let Goods::Git { git, commit, .. } = self else { return Vec::new() };
        let sources: BTreeSet<Box<str>> =
            answers.values().flatten().filter_map(|s| source_of(s, &serves(s)?)).collect();
        let mut lines = Vec::new();
        for source in sources {
            // What the repository does not know any more cannot be compared; the plan says so.
            let Some(old) = CommitId::new(&source).filter(|old| git.has(old).unwrap_or(false)) else { continue };
            let Ok(between) = git.between(&old, commit) else { continue };
            lines.extend(between.commits.iter().map(|c| format!("{} {} ({})", c.id.short(), c.subject, c.author)));
        }
        lines.dedup();
        lines
    }

    /// Puts the release's files into a directory.
    ///
    /// # Errors
    /// git's, or the disk's.
    pub fn files(&self) -> Result<Files, CliError> {
        let cannot = |e: std::io::Error| super::failed(format!("No temporary directory can be had: {e}."));
        let scratch = Scratch::new(&std::env::temp_dir()).map_err(cannot)?;
        let files = Files { path: scratch.path().join("files"), _scratch: scratch };
        // Their place on the host gets the same mode.
        std::fs::DirBuilder::new().mode(0o700).create(&files.path).map_err(cannot)?;
        self.export(&files.path)?;
        Ok(files)
    }

    /// Leaves the tag behind: done when somebody needs it, so that a deploy that is refused leaves none.
    pub fn tagging(&self, target: &Target) -> First {
        let (Goods::Git { git, commit, name, .. }, Source::Git { tag: true, .. }) = (self, &target.app.source) else {
            return First::default();
        };
        let (git, commit, name) = (git.clone(), commit.clone(), name.get().cloned().unwrap_or_default());
        let message = tag::message(&target.app.name, &target.app.services, &super::by());
        First::new(move || {
            let tagged = git.tag(&name, &commit, &message).and_then(|()| git.push_tag(&name));
            tagged.map_err(|error| match error.hint() {
                Some(hint) => format!("{error} {hint}"),
                None => error.to_string(),
            })
        })
    }

    fn export(&self, into: &Path) -> Result<(), CliError> {
        match self {
            Goods::Git { git, commit, paths, .. } => {
                let fits = |path: &str| paths.iter().any(|glob| fast_glob::glob_match(&**glob, path));
                let ours = |path: &str| paths.is_empty() || fits(path) || fits(&format!("{path}/file"));
                git.export(commit, into, ours).map_err(of_git)
            }
            Goods::Artifact(artifact) => artifact.export(into).map_err(|e| super::failed(e.to_string())),
        }
    }
}

/// The files of a release, as long as somebody needs them.
pub struct Files {
    path: PathBuf,
    _scratch: Scratch,
}

impl Files {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Of a release that a host knows.
fn source_of(status: &AppStatus, release: &str) -> Option<Box<str>> {
    status.releases.iter().find(|r| *r.release == *release).map(|r| r.source.clone())
}
