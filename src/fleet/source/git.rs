//! A local mirror of a repository, kept by the user's own `git`, over whatever transport that has.
//!
//! git is run without a prompt, in words that do not depend on the user's language, and with a limit; what it says on stderr is in the
//! errors. Names come in as [`super::check_ref_name`] allows them, so that none is an option.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::super::run::{self, Done, RunError};
use super::artifact::unpack;
use super::check_ref_name;
use crate::config::counted;
use crate::sys::io_text;

/// For what only looks at the mirror.
const LOCAL: Duration = Duration::from_secs(2 * 60);
/// For all files of a commit to be written down.
const EXPORT: Duration = Duration::from_secs(15 * 60);
/// For what speaks with the repository. A first copy of a large one takes its time.
const REMOTE: Duration = Duration::from_secs(30 * 60);
/// For another svctl to be done with the mirror.
const BUSY: Duration = Duration::from_secs(5 * 60);
/// Bytes that git may print: some hundred thousand names of files.
const LARGEST: usize = 64 << 20;
/// Commits that are told one by one.
const MOST_COMMITS: usize = 500;

/// The full name of a commit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommitId(String);

impl CommitId {
    /// 40 or 64 lower-case hexadecimal digits.
    pub fn new(text: &str) -> Option<CommitId> {
        let digits = text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c));
        (digits && matches!(text.len(), 40 | 64)).then(|| CommitId(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// For people.
    pub fn short(&self) -> &str {
        &self.0[..10]
    }
}

impl std::fmt::Display for CommitId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One commit, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    pub id: CommitId,
    pub author: String,
    /// Seconds since 1970: when it was committed.
    pub time: u64,
    /// The first line of its message.
    pub subject: String,
}

/// What lies between two commits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Between {
    /// What the new one has and the old one has not, the latest first; 500 at most.
    pub commits: Vec<Commit>,
    /// How many there are.
    pub ahead: u64,
    /// How many the old one has and the new one has not.
    pub behind: u64,
}

/// What a push of the trunk to the branch has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Where the branch was; `None`: it is new.
    pub from: Option<CommitId>,
    pub to: CommitId,
}

/// Why git did not do it. Full sentences.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    #[error("{what}: git {why}.")]
    Failed { what: String, why: RunError },
    #[error("{name:?} cannot be shipped: {why}.")]
    Name { name: String, why: &'static str },
    #[error("{repository} has no branch, tag or commit {name:?}.")]
    Unknown { repository: String, name: String },
    #[error("{branch} has {} that {trunk} has not: it cannot be brought forward.", counted(usize::try_from(*behind).unwrap_or(usize::MAX), "commit"))]
    Diverged { trunk: String, branch: String, behind: u64 },
    #[error("{} has submodules, whose files svctl does not ship: {}.", .commit.short(), .paths.join(", "))]
    Submodules { commit: CommitId, paths: Vec<String> },
    #[error("The tag {0} is there already, for another commit.")]
    TagExists(String),
    #[error("{} cannot be used: {}.", .path.display(), io_text(.source))]
    Files { path: PathBuf, source: io::Error },
    #[error("Another svctl uses {} and has not ended within {} minutes.", .0.display(), BUSY.as_secs() / 60)]
    Busy(PathBuf),
    #[error("git gave an answer that svctl does not understand, to {0}.")]
    Odd(String),
}

impl GitError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            GitError::Failed { why: RunError::Start(_), .. } => Some("Is git installed?"),
            GitError::Failed { what, .. } if what.starts_with("The tag ") => Some(
                "It needs the right to push to the repository; tag = false in the app's section of the fleet file does \
                 without the tag.",
            ),
            GitError::Failed { what, .. } if what.contains(" cannot be brought ") => {
                Some("It needs the right to push to the repository.")
            }
            GitError::Failed { .. } => Some("svctl lets git ask nothing: does `git ls-remote` with that address work?"),
            GitError::Unknown { .. } => Some("It must have been pushed."),
            GitError::Submodules { .. } => Some(
                "Put their files into the repository itself (git subtree), or leave them out: `PATH export-ignore` in .gitattributes.",
            ),
            GitError::Diverged { .. } => Some("Merge the branch into the trunk first."),
            _ => None,
        }
    }
}

/// The mirror of one repository.
#[derive(Clone, Debug)]
pub struct Git {
    repository: String,
    mirror: PathBuf,
}

impl Git {
    /// The mirror below `cache`, which is made, empty, if there is none. A `repository` that is a relative path (`.`, `./…` or `../…`)
    /// begins at `base`.
    ///
    /// # Errors
    /// [`GitError`].
    pub fn open(repository: &str, base: &Path, cache: &Path) -> Result<Git, GitError> {
        let relative = matches!(repository.split('/').next(), Some("." | ".."));
        let repository = match relative {
            true => {
                let path = base.join(repository);
                // git runs in the mirror's directory.
                std::path::absolute(&path).unwrap_or(path).display().to_string()
            }
            false => repository.to_owned(),
        };
        let digest: String = Sha256::digest(&repository).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let last = repository.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or_default();
        let kept = |c: &char| c.is_ascii_alphanumeric() || "-_".contains(*c);
        let name: String = last.trim_end_matches(".git").chars().filter(kept).take(40).collect();
        let mirror = cache.join("git").join(format!("{name}-{digest}"));
        let git = Git { repository, mirror };
        let files = |source| GitError::Files { path: git.mirror.clone(), source };
        fs::create_dir_all(&git.mirror).map_err(files)?;
        let _busy = git.lock()?;
        // What was interrupted in the middle of its making is made again: nothing is overwritten.
        if !git.mirror.join("airdock-mirror").exists() {
            let what = || format!("No mirror of {} can be made", git.repository);
            git.run(&["init", "--quiet", "--bare", "."], LOCAL, what)?;
            for (key, value) in [
                ("remote.origin.url", &*git.repository),
                ("gc.auto", "200"),
                ("core.logAllRefUpdates", "false"),
                // A pull request is somebody else's word.
                ("remote.origin.fetch", "+refs/heads/*:refs/heads/*"),
            ] {
                git.run(&["config", "--replace-all", key, value], LOCAL, what)?;
            }
            git.run(&["config", "--add", "remote.origin.fetch", "+refs/tags/*:refs/tags/*"], LOCAL, what)?;
            fs::write(git.mirror.join("airdock-mirror"), &git.repository).map_err(files)?;
        }
        Ok(git)
    }

    /// The repository's address.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The mirror's directory.
    pub fn mirror(&self) -> &Path {
        &self.mirror
    }

    /// Brings all branches and tags up to date.
    ///
    /// # Errors
    /// [`GitError`].
    pub fn fetch(&self) -> Result<(), GitError> {
        let _busy = self.lock()?;
        let what = || format!("{} cannot be fetched", self.repository);
        self.run(&["fetch", "--quiet", "--prune", "--no-write-fetch-head", "origin"], REMOTE, what).map(drop)
    }

    /// The commit that a branch, a tag, or the beginning of a commit's name (7 digits at least) stands for.
    ///
    /// # Errors
    /// [`GitError::Unknown`], [`GitError::Name`], …
    pub fn resolve(&self, name: &str) -> Result<CommitId, GitError> {
        check_ref_name(name).map_err(|why| GitError::Name { name: name.to_owned(), why })?;
        let mut tries = vec![format!("refs/heads/{name}^{{commit}}"), format!("refs/tags/{name}^{{commit}}")];
        if name.len() >= 7 && name.bytes().all(|c| c.is_ascii_hexdigit()) {
            tries.push(format!("{name}^{{commit}}"));
        }
        for expression in &tries {
            if let Some(commit) = self.look_up(expression)? {
                return Ok(commit);
            }
        }
        Err(GitError::Unknown { repository: self.repository.clone(), name: name.to_owned() })
    }

    fn look_up(&self, expression: &str) -> Result<Option<CommitId>, GitError> {
        let what = || format!("{expression} cannot be looked up");
        let done = self.any_end(&["rev-parse", "--verify", "--quiet", expression], LOCAL, what)?;
        Ok(CommitId::new(String::from_utf8_lossy(&done.output).trim()).filter(|_| done.status.success()))
    }

    /// The name of the repository's default branch, by its own word.
    ///
    /// # Errors
    /// [`GitError`]; [`GitError::Unknown`] where it has none.
    pub fn default_branch(&self) -> Result<String, GitError> {
        let what = || format!("{} cannot be asked for its default branch", self.repository);
        let text = self.text(&["ls-remote", "--symref", "origin", "HEAD"], REMOTE, what)?;
        let line = text.lines().find_map(|line| line.strip_prefix("ref: refs/heads/")?.split('\t').next());
        match line.filter(|name| check_ref_name(name).is_ok()) {
            Some(name) => Ok(name.to_owned()),
            None => Err(GitError::Unknown { repository: self.repository.clone(), name: "HEAD".to_owned() }),
        }
    }

    /// Is `old` one of the commits that `new` is made of?
    ///
    /// # Errors
    /// [`GitError`].
    pub fn contains(&self, new: &CommitId, old: &CommitId) -> Result<bool, GitError> {
        let what = || format!("{} and {} cannot be compared", old.short(), new.short());
        let done = self.any_end(&["merge-base", "--is-ancestor", old.as_str(), new.as_str()], LOCAL, what)?;
        match done.status.code() {
            Some(0) => Ok(true),
            Some(1) => Ok(false),
            _ => Err(GitError::Failed { what: what(), why: RunError::Failed { status: done.status, said: done.said } }),
        }
    }

    /// Does the mirror have this commit? What a host runs may be of a branch that is gone.
    ///
    /// # Errors
    /// [`GitError`].
    pub fn has(&self, commit: &CommitId) -> Result<bool, GitError> {
        Ok(self.look_up(&format!("{commit}^{{commit}}"))?.is_some())
    }

    /// # Errors
    /// [`GitError`].
    pub fn commit(&self, commit: &CommitId) -> Result<Commit, GitError> {
        let mut found = self.log(&["--max-count=1", commit.as_str()])?;
        found.pop().ok_or_else(|| GitError::Odd("git log".to_owned()))
    }

    /// What lies between a commit that runs and one that would.
    ///
    /// # Errors
    /// [`GitError`].
    pub fn between(&self, old: &CommitId, new: &CommitId) -> Result<Between, GitError> {
        let what = || format!("{} and {} cannot be compared", old.short(), new.short());
        let range = format!("{old}...{new}");
        let text = self.text(&["rev-list", "--count", "--left-right", &range], LOCAL, what)?;
        let mut counts = text.split_whitespace().map(str::parse);
        let (Some(Ok(behind)), Some(Ok(ahead))) = (counts.next(), counts.next()) else {
            return Err(GitError::Odd("git rev-list".to_owned()));
        };
        let most = format!("--max-count={MOST_COMMITS}");
        let commits = self.log(&[&most, &format!("{old}..{new}")])?;
        Ok(Between { commits, ahead, behind })
    }

    fn log(&self, range: &[&str]) -> Result<Vec<Commit>, GitError> {
        let what = || "The commits cannot be listed".to_owned();
        let mut words = vec!["log", "-z", "--no-show-signature", "--format=%H%x1f%ct%x1f%an%x1f%s"];
        words.extend(range);
        words.push("--");
        let text = self.text(&words, LOCAL, what)?;
        let commit = |record: &str| {
            let mut fields = record.splitn(4, '\x1f');
            Some(Commit {
                id: CommitId::new(fields.next()?)?,
                time: fields.next()?.parse().ok()?,
                author: fields.next()?.to_owned(),
                subject: fields.next()?.to_owned(),
            })
        };
        let records = text.split('\0').map(str::trim_start).filter(|record| !record.is_empty());
        records.map(|record| commit(record).ok_or_else(|| GitError::Odd("git log".to_owned()))).collect()
    }

    /// Paths that differ, as git has them; what was renamed has both its names there.
    ///
    /// # Errors
    /// [`GitError`].
    pub fn changed(&self, old: &CommitId, new: &CommitId) -> Result<Vec<String>, GitError> {
        let what = || format!("{} and {} cannot be compared", old.short(), new.short());
        let words = ["diff", "--name-only", "-z", "--no-renames", "--no-ext-diff", old.as_str(), new.as_str(), "--"];
        let text = self.text(&words, LOCAL, what)?;
        Ok(text.split('\0').filter(|path| !path.is_empty()).map(str::to_owned).collect())
    }

    /// Puts the files of a commit into an empty directory, as `git archive` has them. The directory that it is in is used for a
    /// moment as well, and must be nobody else's.
    ///
    /// # Errors
    /// [`GitError`]; [`GitError::Submodules`] where some would be empty, of those that `concerns`.
    pub fn export(&self, commit: &CommitId, into: &Path, concerns: impl Fn(&str) -> bool) -> Result<(), GitError> {
        let what = || format!("The files of {} cannot be exported to {}", commit.short(), into.display());
        let into = std::path::absolute(into).unwrap_or_else(|_| into.to_path_buf());
        let mut name = into.file_name().unwrap_or_default().to_owned();
        name.push(".tar");
        let tarball = into.with_file_name(name);
        let output = format!("--output={}", tarball.display());
        let done = self.run(&["archive", "--format=tar", &output, commit.as_str()], EXPORT, what);
        let done = done.and_then(|_| unpack(&tarball, &into).map_err(|why| GitError::Failed { what: what(), why }));
        let _ = fs::remove_file(&tarball);
        done?;
        // What .gitattributes leaves out is not there at all.
        let empty = |path: &String| concerns(path) && into.join(path).is_dir();
        let paths: Vec<String> = self.submodules(commit)?.into_iter().filter(empty).collect();
        if paths.is_empty() { Ok(()) } else { Err(GitError::Submodules { commit: commit.clone(), paths }) }
    }

    /// Where other repositories belong, of which a commit has nothing but the name.
    fn submodules(&self, commit: &CommitId) -> Result<Vec<String>, GitError> {
        let what = || format!("The files of {} cannot be listed", commit.short());
        let text = match self.text(&["ls-tree", "-r", "-z", "--full-tree", commit.as_str()], LOCAL, what) {
            // So many files are none of ours to look through.
            Err(GitError::Failed { why: RunError::TooMuch(_), .. }) => return Ok(Vec::new()),
            text => text?,
        };
        // MODE TYPE OBJECT TAB PATH
        let path = |line: &str| Some(line.strip_prefix("160000 commit ")?.split_once('\t')?.1.to_owned());
        Ok(text.split('\0').filter_map(path).collect())
    }

    /// How many files of a work tree differ from what is committed; 0 where `directory` is none.
    pub fn uncommitted(directory: &Path) -> usize {
        let mut git = Command::new("git");
        git.args(["status", "--porcelain", "-z", "--untracked-files=no", "--ignore-submodules"]).current_dir(directory);
        git.env("GIT_OPTIONAL_LOCKS", "0").env("LC_ALL", "C");
        let output = run::output(git, LOCAL, LARGEST).unwrap_or_default();
        output.split(|byte| *byte == 0).filter(|entry| entry.get(2) == Some(&b' ')).count()
    }

    /// The commit that has this tag, where the mirror knows one.
    ///
    /// # Errors
    /// git's.
    pub fn tagged(&self, name: &str) -> Result<Option<CommitId>, GitError> {
        self.look_up(&format!("refs/tags/{name}^{{commit}}"))
    }

    /// Makes an annotated tag in the mirror. The same one again is no error.
    ///
    /// # Errors
    /// [`GitError::TagExists`] where another commit has it.
    pub fn tag(&self, name: &str, commit: &CommitId, message: &str) -> Result<(), GitError> {
        check_ref_name(name).map_err(|why| GitError::Name { name: name.to_owned(), why })?;
        let _busy = self.lock()?;
        if let Some(tagged) = self.tagged(name)? {
            return if tagged == *commit { Ok(()) } else { Err(GitError::TagExists(name.to_owned())) };
        }
        let what = || format!("{} cannot get the tag {name}", commit.short());
        let mut command =
            self.command(&["tag", "--annotate", "--no-sign", "--message", message, name, commit.as_str()]);
        let known = self.any_end(&["var", "GIT_COMMITTER_IDENT"], LOCAL, what)?;
        if !known.status.success() {
            // git knows no name of the user's, and refuses to make one up.
            let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
            let user = user.ok().filter(|user| !user.is_empty()).unwrap_or_else(|| "svctl".to_owned());
            let host = nix::unistd::gethostname().unwrap_or_default();
            command.env("GIT_COMMITTER_NAME", &user);
            command.env("GIT_COMMITTER_EMAIL", format!("{user}@{}", host.to_string_lossy()));
        }
        run::output(command, LOCAL, LARGEST).map(drop).map_err(|why| GitError::Failed { what: what(), why })
    }

    /// Brings a tag of the mirror's to the repository.
    ///
    /// # Errors
    /// [`GitError`]; also where the repository has another one of that name.
    pub fn push_tag(&self, name: &str) -> Result<(), GitError> {
        check_ref_name(name).map_err(|why| GitError::Name { name: name.to_owned(), why })?;
        let what = || format!("The tag {name} cannot be pushed to {}", self.repository);
        let spec = format!("refs/tags/{name}:refs/tags/{name}");
        self.run(&["push", "--quiet", "--no-verify", "origin", &spec], REMOTE, what).map(drop)
    }

    /// Brings `branch` of the repository forward to where its `trunk` is now; never backward, and never to the side.
    ///
    /// # Errors
    /// [`GitError::Diverged`], …
    pub fn push_forward(&self, trunk: &str, branch: &str) -> Result<Pushed, GitError> {
        self.fetch()?;
        let to = self.resolve(trunk)?;
        let from = match self.resolve(branch) {
            Ok(from) => Some(from),
            Err(GitError::Unknown { .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(from) = &from {
            let behind = self.between(from, &to)?.behind;
            if behind > 0 {
                return Err(GitError::Diverged { trunk: trunk.to_owned(), branch: branch.to_owned(), behind });
            }
        }
        let what = || format!("{branch} cannot be brought forward to {}", to.short());
        // Without force, so that whatever has come there since is refused by the repository itself.
        let spec = format!("{to}:refs/heads/{branch}");
        self.run(&["push", "--quiet", "--no-verify", "origin", &spec], REMOTE, what)?;
        Ok(Pushed { from, to })
    }

    /// Until it is dropped, no other svctl changes the mirror.
    fn lock(&self) -> Result<File, GitError> {
        let files = |source| GitError::Files { path: self.mirror.clone(), source };
        let lock = File::options().create(true).append(true).open(self.mirror.join("airdock.lock")).map_err(files)?;
        let until = Instant::now() + BUSY;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::Error(source)) => return Err(files(source)),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => {
                    return Err(GitError::Busy(self.mirror.clone()));
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("git");
        // What a hook or a shell of the user's has set is about another repository.
        for name in ["GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE", "GIT_PREFIX"] {
            command.env_remove(name);
        }
        command.env("GIT_DIR", ".").current_dir(&self.mirror);
        command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_ASKPASS", "").env("LC_ALL", "C").env("GIT_PAGER", "cat");
        if std::env::var_os("GIT_SSH_COMMAND").is_none() && std::env::var_os("GIT_SSH").is_none() {
            command.env("GIT_SSH_COMMAND", "ssh -o BatchMode=yes");
        }
        command.args(["-c", "core.hooksPath=/dev/null"]).args(words);
        command
    }

    /// Whatever its exit status is.
    fn any_end(&self, words: &[&str], limit: Duration, what: impl Fn() -> String) -> Result<Done, GitError> {
        run::run(self.command(words), limit, LARGEST).map_err(|why| GitError::Failed { what: what(), why })
    }

    fn run(&self, words: &[&str], limit: Duration, what: impl Fn() -> String) -> Result<Vec<u8>, GitError> {
        run::output(self.command(words), limit, LARGEST).map_err(|why| GitError::Failed { what: what(), why })
    }

    fn text(&self, words: &[&str], limit: Duration, what: impl Fn() -> String) -> Result<String, GitError> {
        Ok(String::from_utf8_lossy(&self.run(words, limit, what)?).into_owned())
    }
}
