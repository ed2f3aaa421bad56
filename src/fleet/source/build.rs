//! What the deploying machine builds in the files of a release, before they are sent.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::inventory::BuildHere;
use super::super::run::RunError;
use crate::release::venv::{self, Ingredients, WHEELS};

/// For an interpreter to say what it is, in so many bytes.
const ANSWER: Duration = Duration::from_secs(30);
const ANSWERED: usize = 64 * 1024;
/// Wheels that nobody has asked for since are not kept.
const KEPT: Duration = Duration::from_secs(60 * 24 * 3600);

/// Why nothing was built, as a sentence.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("`{command}` cannot be run: {}.", crate::sys::io_text(.error))]
    Start { command: String, error: io::Error },
    #[error("`{command}` failed ({status}); what it said is above, and nothing was done on any host.")]
    Failed { command: String, status: std::process::ExitStatus },
    #[error("A directory to build in cannot be had: {}.", crate::sys::io_text(.0))]
    Directory(io::Error),
    #[error("{0}.")]
    Requirements(String),
    #[error("python3 on this machine {0}.")]
    Python(RunError),
}

/// Builds in `release`, which nobody else changes. What the commands print goes to stderr, as it comes.
///
/// `requirements`: the files that environments are installed from, inside the release.
///
/// # Errors
/// [`BuildError`]
pub fn build(release: &Path, what: &BuildHere, requirements: &[Box<str>]) -> Result<(), BuildError> {
    match what {
        BuildHere::Command(words) => run(release, words.iter().map(|word| word.to_string()).collect()),
        BuildHere::Wheels => {
            let found = venv::ingredients(release, requirements).map_err(BuildError::Requirements)?;
            found.map_or(Ok(()), |found| wheels(release, &found))
        }
    }
}

/// Of what is to be installed, and all that it requires, by the interpreter that is `python3` here. What was built before for
/// the same ones is taken from the cache.
fn wheels(release: &Path, Ingredients { files, words: what }: &Ingredients) -> Result<(), BuildError> {
    // The system's own Python often comes without pip.
    let own = tempfile::Builder::new().prefix("svctl-").tempdir().map_err(BuildError::Directory)?;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let mut question = Command::new("python3");
    question.args(["-c", venv::QUESTION]);
    let python = |error| BuildError::Python(error);
    let interpreter = super::super::run::output(question, ANSWER, ANSWERED).map_err(python)?;
    let name = venv::name(files, &String::from_utf8_lossy(&interpreter));
    let known = super::cache_directory().map(|cache| cache.join("wheels").join(&*name));
    let into = release.join(WHEELS);
    if let Some(known) = known.as_ref().filter(|known| known.is_dir()) {
        return copy(known, &into).map_err(BuildError::Directory);
    }
    fs::create_dir_all(&into).map_err(BuildError::Directory)?;
    run(release, words(&["python3", "-m", "venv", &text(own.path())]))?;
    let pip = text(&own.path().join("bin/python"));
    let mut wheel = words(&[&pip, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-input", "-w", WHEELS]);
    wheel.extend_from_slice(what);
    run(release, wheel)?;
    if let Some(known) = known.filter(|_| !venv::installs_itself(files)) {
        // Best effort: the next deploy builds them again.
        let _ = remember(&into, &known);
    }
    Ok(())
}

/// Whole or not at all; what nobody has used for long goes.
fn remember(wheels: &Path, known: &Path) -> io::Result<()> {
    let all = known.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(all)?;
    for old in fs::read_dir(all)?.flatten() {
        let age = old.metadata().and_then(|meta| meta.modified()).map(|time| time.elapsed().unwrap_or_default());
        if age.is_ok_and(|age| age > KEPT) {
            fs::remove_dir_all(old.path())?;
        }
    }
    let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(all)?;
    copy(wheels, &partial.path().join("wheels"))?;
    fs::rename(partial.path().join("wheels"), known)
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(from)? {
        let file = file?;
        fs::copy(file.path(), to.join(file.file_name()))?;
    }
    Ok(())
}

fn run(directory: &Path, words: Vec<String>) -> Result<(), BuildError> {
    let shown = words.join(" ");
    let start = |error| BuildError::Start { command: shown.clone(), error };
    let (program, arguments) = words.split_first().ok_or_else(|| start(io::ErrorKind::InvalidInput.into()))?;
    eprintln!("+ {shown}");
    // Results alone go to stdout.
    let output = io::stderr().as_fd().try_clone_to_owned().map_err(start)?;
    let mut command = Command::new(program);
    command.args(arguments).current_dir(directory).stdin(Stdio::null()).stdout(output);
    match command.status().map_err(start)? {
        status if status.success() => Ok(()),
        status => Err(BuildError::Failed { command: shown, status }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_builds_in_the_files_of_the_release() {
        let dir = tempfile::tempdir().expect("a directory");
        let command = |text: &str| BuildHere::Command(vec!["sh".into(), "-c".into(), text.into()]);
        build(dir.path(), &command("echo built > here"), &[]).expect("built");
        assert_eq!(fs::read_to_string(dir.path().join("here")).expect("a file"), "built\n");
        let failed = build(dir.path(), &command("exit 3"), &[]).expect_err("it fails").to_string();
        assert!(failed.contains("sh -c exit 3") && failed.contains("nothing was done on any host"), "{failed}");
        let none = build(dir.path(), &BuildHere::Command(vec!["/nowhere/x".into()]), &[]).expect_err("it is not there");
        assert!(none.to_string().contains("cannot be run"), "{none}");
    }

    #[test]
    fn without_requirements_there_are_no_wheels() {
        let dir = tempfile::tempdir().expect("a directory");
        build(dir.path(), &BuildHere::Wheels, &["requirements.txt".into()]).expect("nothing to build");
        assert!(!dir.path().join(WHEELS).exists());
        let missing = build(dir.path(), &BuildHere::Wheels, &["other.txt".into()]).expect_err("it is named");
        assert!(missing.to_string().contains("other.txt"), "{missing}");
    }
}
