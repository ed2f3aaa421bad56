use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::artifact::{Artifact, ArtifactError};
use super::git::{CommitId, Git, GitError};
use super::{check_ref_name, tag};

/// A repository with a clone in which people work, and a cache of our own.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().expect("a directory") };
        place.git_at(".", &["init", "--quiet", "--bare", "--initial-branch=master", "airship.git"]);
        place.git_at(".", &["clone", "--quiet", "airship.git", "work"]);
        place
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn git_at(&self, below: &str, words: &[&str]) -> String {
        let mut git = Command::new("git");
        git.current_dir(self.path(below)).args(words).env_remove("GIT_DIR");
        git.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_SYSTEM", "/dev/null");
        for role in ["AUTHOR", "COMMITTER"] {
            git.env(format!("GIT_{role}_NAME"), "Ann").env(format!("GIT_{role}_EMAIL"), "ann@example.org");
        }
        let output = git.output().expect("git runs");
        assert!(output.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn git(&self, words: &[&str]) -> String {
        self.git_at("work", words)
    }

    /// Writes files, commits all, pushes to `branch`.
    fn commit(&self, subject: &str, files: &[(&str, &str)], branch: &str) -> CommitId {
        for (name, text) in files {
            let path = self.path("work").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", subject]);
        self.git(&["push", "--quiet", "origin", &format!("HEAD:refs/heads/{branch}")]);
        CommitId::new(&self.git(&["rev-parse", "HEAD"])).expect("a commit")
    }

    fn mirror(&self) -> Git {
        let git = Git::open("./airship.git", self.dir.path(), &self.path("cache")).unwrap_or_else(|e| panic!("{e}"));
        git.fetch().unwrap_or_else(|e| panic!("{e}"));
        git
    }
}

/// The fleet file beside the code: git runs in the mirror's directory, and would take `.` for that.
#[test]
fn the_fleet_files_own_directory_is_a_repository() {
    let place = Place::new();
    let one = place.commit("one", &[("a", "1")], "production");
    for base in [".", "./", "../airship.git"] {
        let git = Git::open(base, &place.path("airship.git"), &place.path("cache")).unwrap();
        git.fetch().unwrap();
        assert_eq!(git.resolve("production").unwrap(), one, "{base}");
    }
}

#[test]
fn branches_tags_and_commits_are_resolved() {
    let place = Place::new();
    let one = place.commit("one", &[("a", "1")], "production");
    place.git(&["tag", "v1"]);
    place.git(&["push", "--quiet", "origin", "v1"]);
    let two = place.commit("two", &[("a", "2")], "feature/x");
    let git = place.mirror();
    assert_eq!(git.resolve("production").unwrap(), one);
    assert_eq!(git.resolve("feature/x").unwrap(), two);
    assert_eq!(git.resolve("v1").unwrap(), one);
    assert_eq!(git.resolve(&two.as_str()[..8]).unwrap(), two);
    for unknown in ["nothing", "0123456789", "feature"] {
        let error = git.resolve(unknown).unwrap_err();
        assert!(
            matches!(&error, GitError::Unknown { .. }) && error.to_string().contains("airship.git has no"),
            "{error}"
        );
    }
    for odd in ["-x", "--all", "a..b", "v1^", "HEAD", "a b", ""] {
        assert!(matches!(git.resolve(odd), Err(GitError::Name { .. })), "{odd}");
    }
    assert!(git.has(&one).unwrap() && !git.has(&CommitId::new(&"1".repeat(40)).unwrap()).unwrap());
    // A branch that is gone is forgotten, and a second look makes no second mirror.
    place.git(&["push", "--quiet", "origin", ":feature/x"]);
    assert!(place.mirror().resolve("feature/x").is_err());
    assert_eq!(fs::read_dir(place.path("cache/git")).unwrap().count(), 1);
    let commit = git.commit(&one).unwrap();
    assert_eq!((commit.subject.as_str(), commit.author.as_str()), ("one", "Ann"));
}

#[test]
fn what_lies_between_two_commits() {
    let place = Place::new();
    let old = place.commit("old", &[("airship/a.py", "1"), ("gone", "x"), ("näme \"q\"\n", "x")], "master");
    place.commit("between", &[("airship/b.py", "1")], "master");
    fs::remove_file(place.path("work/gone")).unwrap();
    let new = place.commit("new\u{1f}er", &[("airship/a.py", "2"), ("näme \"q\"\n", "y")], "master");
    place.git(&["checkout", "--quiet", "-b", "side", old.as_str()]);
    let side = place.commit("aside", &[("c", "1")], "side");
    let git = place.mirror();
    let between = git.between(&old, &new).unwrap();
    let subjects: Vec<&str> = between.commits.iter().map(|commit| commit.subject.as_str()).collect();
    assert_eq!((subjects, between.ahead, between.behind), (vec!["new\u{1f}er", "between"], 2, 0));
    let back = git.between(&new, &side).unwrap();
    assert_eq!((back.commits.len(), back.ahead, back.behind), (1, 1, 2));
    assert_eq!(git.between(&new, &new).unwrap().commits, []);
    assert_eq!(git.changed(&old, &new).unwrap(), ["airship/a.py", "airship/b.py", "gone", "näme \"q\"\n"]);
    assert!(git.contains(&new, &old).unwrap() && !git.contains(&side, &new).unwrap());
    let unknown = CommitId::new(&"1".repeat(40)).unwrap();
    let error = git.between(&unknown, &new).unwrap_err().to_string();
    assert!(error.contains("cannot be compared: git failed") && error.contains("fatal:"), "{error}");
}

#[test]
fn the_files_of_a_commit_are_exported() {
    let place = Place::new();
    fs::write(place.path("work/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(place.path("work/run"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("a/b", place.path("work/link")).unwrap();
    let commit = place.commit("one", &[("a/b", "text")], "master");
    place.commit("two", &[("a/b", "later")], "master");
    let (git, out) = (place.mirror(), place.path("out"));
    fs::create_dir(&out).unwrap();
    git.export(&commit, &out, |_| true).unwrap();
    assert_eq!(fs::read_to_string(out.join("a/b")).unwrap(), "text");
    assert_eq!(fs::read_link(out.join("link")).unwrap(), Path::new("a/b"));
    assert_eq!(fs::metadata(out.join("run")).unwrap().permissions().mode() & 0o111, 0o111);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 3, "nothing else");
    assert!(!place.path("out.tar").exists());
    let error = git.export(&commit, &place.path("nowhere"), |_| true).unwrap_err().to_string();
    assert!(error.contains("cannot be exported"), "{error}");
}

#[test]
fn submodules_are_refused_where_their_files_would_be_missing() {
    let place = Place::new();
    let one = place.commit("one", &[("a", "1")], "master");
    let link = |path: &str| {
        place.git(&["update-index", "--add", "--cacheinfo", &format!("160000,{one},{path}")]);
        place.git(&["commit", "--quiet", "--message", "a submodule"]);
        place.git(&["push", "--quiet", "origin", "HEAD:refs/heads/master"]);
        CommitId::new(&place.git(&["rev-parse", "HEAD"])).expect("a commit")
    };
    let with = link("libs/x");
    let git = place.mirror();
    let export = |commit: &CommitId, concerns: &dyn Fn(&str) -> bool| {
        let out = place.path("out");
        let _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).unwrap();
        git.export(commit, &out, concerns)
    };
    export(&one, &|_| true).unwrap();
    let error = export(&with, &|_| true).unwrap_err();
    assert!(error.to_string().ends_with("does not ship: libs/x.") && error.hint().is_some(), "{error}");
    export(&with, &|path| !path.starts_with("libs/")).expect("it is none of this app's");
    fs::write(place.path("work/.gitattributes"), "libs/x export-ignore\n").unwrap();
    place.git(&["add", ".gitattributes"]);
    let without = link("libs/x");
    git.fetch().unwrap();
    export(&without, &|_| true).expect("it is left out");
}

#[test]
fn what_is_not_committed_is_counted() {
    let place = Place::new();
    place.commit("one", &[("a", "1"), ("b", "1")], "master");
    let work = place.path("work");
    assert_eq!((Git::uncommitted(&work), Git::uncommitted(place.dir.path())), (0, 0));
    fs::write(work.join("a"), "2").unwrap();
    fs::remove_file(work.join("b")).unwrap();
    assert_eq!(Git::uncommitted(&work), 2);
}

#[test]
fn hints_fit_the_failure() {
    let failed = |what: &str| GitError::Failed { what: what.to_owned(), why: super::super::run::RunError::TooMuch(1) };
    let hint = |what: &str| failed(what).hint().unwrap_or_default();
    assert!(hint("git@example.org:staging.git cannot be fetched").contains("ls-remote"));
    assert!(hint("The tag v1 cannot be pushed to x").contains("right to push"));
}

#[test]
fn tags_say_who_deployed_what() {
    let place = Place::new();
    let commit = place.commit("one", &[("a", "1")], "production");
    let git = place.mirror();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_372_800);
    let names: Vec<String> = tag::names(time).take(2).collect();
    assert_eq!(names, ["deploy-2026-11-22_18-40-00", "deploy-2026-11-22_18-40-01"]);
    let name = names[0].clone();
    assert_eq!(git.tagged(&name).unwrap(), None);
    let message = tag::message("airship", &["airship", "airship-celery"], "ann\n@laptop");
    git.tag(&name, &commit, &message).unwrap();
    git.tag(&name, &commit, &message).expect("again");
    git.push_tag(&name).unwrap();
    git.push_tag(&name).expect("again");
    assert_eq!(git.tagged(&name).unwrap().as_ref(), Some(&commit));
    let text = place.git_at("airship.git", &["for-each-ref", "--format=%(objecttype) %(contents)", "refs/tags"]);
    assert_eq!(text, "tag Deploy airship\n\nServices: airship, airship-celery\nBy: ann @laptop");
    let next = place.commit("two", &[("a", "2")], "production");
    git.fetch().unwrap();
    assert!(matches!(git.tag(&name, &next, "x"), Err(GitError::TagExists(_))));
    // Somebody else has pushed another one of that name.
    place.git(&["tag", "taken"]);
    place.git(&["push", "--quiet", "origin", "taken"]);
    git.tag("taken", &commit, "x").unwrap();
    let error = git.push_tag("taken").unwrap_err();
    assert!(error.to_string().contains("cannot be pushed") && error.hint().is_some(), "{error}");
}

#[test]
fn the_branch_goes_forward_only() {
    let place = Place::new();
    let one = place.commit("one", &[("a", "1")], "master");
    let git = place.mirror();
    assert_eq!(git.default_branch().unwrap(), "master");
    let pushed = git.push_forward("master", "production").unwrap();
    assert_eq!((pushed.from, pushed.to.clone()), (None, one.clone()));
    let two = place.commit("two", &[("a", "2")], "master");
    let pushed = git.push_forward("master", "production").unwrap();
    assert_eq!((pushed.from, pushed.to), (Some(one.clone()), two.clone()));
    assert_eq!(place.git_at("airship.git", &["rev-parse", "production"]), two.as_str());
    // Mended in production alone.
    place.git(&["checkout", "--quiet", "-b", "mend"]);
    let mended = place.commit("mended", &[("b", "1")], "production");
    place.git(&["checkout", "--quiet", "-b", "on", two.as_str()]);
    place.commit("three", &[("c", "1")], "master");
    let error = git.push_forward("master", "production").unwrap_err();
    assert!(matches!(error, GitError::Diverged { behind: 1, .. }), "{error}");
    assert_eq!(place.git_at("airship.git", &["rev-parse", "production"]), mended.as_str());
}

#[test]
fn a_repository_that_is_not_there_is_told_with_gits_words() {
    let place = Place::new();
    let git = Git::open("./none.git", place.dir.path(), &place.path("cache")).unwrap();
    let error = git.fetch().unwrap_err();
    assert!(error.to_string().contains("none.git cannot be fetched: git failed"), "{error}");
    assert!(error.to_string().contains("does not appear to be a git repository"), "{error}");
    assert!(error.hint().is_some());
}

#[test]
fn names_that_git_could_misunderstand() {
    for good in ["master", "feature/x", "v1.2", "a@b", "ü"] {
        assert_eq!(check_ref_name(good), Ok(()), "{good}");
    }
    for bad in [
        "", "@", "HEAD", "-x", "a b", "a\n", "a..b", "a@{1}", "a//b", "/a", "a/", "a.", ".a", "a/.b", "a.lock", "a~1",
        "a:b", "*",
    ] {
        assert!(check_ref_name(bad).is_err(), "{bad:?}");
    }
    for odd in ["", "abc", &"g".repeat(40), &"A".repeat(40), &"1".repeat(41)] {
        assert!(CommitId::new(odd).is_none(), "{odd}");
    }
}

#[test]
fn artifacts_are_known_by_their_digest() {
    let dir = tempfile::tempdir().unwrap();
    let (jar, into) = (dir.path().join("app.jar"), dir.path().join("out"));
    fs::create_dir(&into).unwrap();
    fs::write(&jar, "abc").unwrap();
    let artifact = Artifact::read(&jar).unwrap();
    // FIPS 180-4, of "abc".
    assert_eq!(artifact.digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_eq!((artifact.release().as_str(), artifact.size), ("sha256-ba7816bf8f01cfea", 3));
    artifact.export(&into).unwrap();
    assert_eq!(fs::read_to_string(into.join("app.jar")).unwrap(), "abc");
    fs::write(&jar, "abd").unwrap();
    fs::remove_file(into.join("app.jar")).unwrap();
    assert!(matches!(artifact.export(&into), Err(ArtifactError::Changed { .. })));
    assert!(Artifact::read(&dir.path().join("none")).unwrap_err().to_string().contains("cannot be read: No such file"));
}

#[test]
fn tarballs_are_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let (made, into) = (dir.path().join("made"), dir.path().join("out"));
    fs::create_dir_all(made.join("sub")).unwrap();
    fs::create_dir(&into).unwrap();
    fs::write(made.join("sub/file"), "x").unwrap();
    let tarball = dir.path().join("app.tar.gz");
    let tar = Command::new("tar").arg("-czf").arg(&tarball).arg("-C").arg(&made).arg("sub").status().unwrap();
    assert!(tar.success());
    Artifact::read(&tarball).unwrap().export(&into).unwrap();
    assert_eq!(fs::read_to_string(into.join("sub/file")).unwrap(), "x");
    assert_eq!(fs::read_dir(&into).unwrap().count(), 1, "the tarball itself is not left");
    fs::write(&tarball, "no tarball").unwrap();
    let broken = dir.path().join("broken");
    fs::create_dir(&broken).unwrap();
    let error = Artifact::read(&tarball).unwrap().export(&broken).unwrap_err().to_string();
    assert!(error.contains("cannot be unpacked: tar failed"), "{error}");
}
