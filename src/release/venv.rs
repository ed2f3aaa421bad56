//! Virtual environments: what one is named after, and the commands that build it.
//!
//! One lies at `ROOT/venv/NAME`. The name is a digest of what goes into it: the requirements with all that they include, the
//! interpreter and the platform. So unchanged requirements cost nothing, and an upgraded Python builds anew.

use crate::sys::tree;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

/// In hexadecimal digits.
const NAME: usize = 32;
/// Of one file of requirements.
const LARGEST: u64 = 4 << 20;
/// Files of requirements that include each other.
const MOST: usize = 200;

/// In an environment that is whole; what has none is of an interrupted build.
pub const COMPLETE: &str = ".airdock-complete";

/// In a release: wheels that came with it, built by the machine that deploys.
pub const WHEELS: &str = ".wheels";

/// What an interpreter is asked for: everything that compiled packages depend on.
pub const QUESTION: &str = "import platform, sys, sysconfig; print(sys.version, sys.implementation.cache_tag, \
     sysconfig.get_platform(), platform.libc_ver(), sys.base_prefix, sep='\\n')";

/// By path inside the release.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// What an environment is made from.
pub struct Ingredients {
    /// The files of requirements; of a wheel its digest.
    pub files: Files,
    /// They, in the words of `pip install`, from the release's directory.
    pub words: Vec<String>,
}

/// The requirements of a release; or the wheel that it is, with all that the wheel requires. `None`: it has neither. Touches the file system.
///
/// # Errors
/// A sentence: a file is missing, or leads out of the release.
pub fn ingredients(release: &Path, names: &[Box<str>]) -> Result<Option<Ingredients>, String> {
    let files = requirements(release, names)?;
    if !files.is_empty() {
        let words = names.iter().flat_map(|name| ["-r".to_owned(), name.to_string()]).collect();
        return Ok(Some(Ingredients { files, words }));
    }
    let cannot = |e| format!("cannot read {}: {}", release.display(), crate::sys::io_text(&e));
    let Some(name) = wheel(release).map_err(cannot)? else { return Ok(None) };
    let digest = File::open(release.join(&name)).and_then(digest).map_err(cannot)?;
    let files = Files::from([(PathBuf::from(&name), digest)]);
    Ok(Some(Ingredients { files, words: vec![format!("./{name}")] }))
}

/// As SHA-256, of a file of any size.
fn digest(mut file: File) -> std::io::Result<Vec<u8>> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(digest.finalize().to_vec()),
            Ok(read) => digest.update(&buffer[..read]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The only one at the top of the release.
fn wheel(release: &Path) -> std::io::Result<Option<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(release)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if name.ends_with(".whl") && entry.file_type()?.is_file() {
            found.push(name);
        }
    }
    Ok(found.pop().filter(|_| found.is_empty()))
}

/// The files of requirements and those that they include. Empty: the release has none.
fn requirements(release: &Path, names: &[Box<str>]) -> Result<Files, String> {
    let mut files = Files::new();
    let mut wanted: Vec<PathBuf> = names.iter().map(|name| PathBuf::from(&**name)).collect();
    if let [only] = &wanted[..]
        && only == Path::new("requirements.txt")
        && release.join(only).symlink_metadata().is_err()
    {
        return Ok(files);
    }
    while let Some(path) = wanted.pop() {
        if files.contains_key(&path) {
            continue;
        }
        if files.len() >= MOST {
            return Err(format!("more than {MOST} files of requirements include each other"));
        }
        let content = tree::read_beneath(release, &path, LARGEST).map_err(|e| match e.kind() {
            ErrorKind::NotFound => {
                format!("there is no {} in the release, which the requirements name", path.display())
            }
            ErrorKind::CrossesDevices => format!("{} leads out of the release", path.display()),
            _ => format!("cannot read {}: {}", path.display(), crate::sys::io_text(&e)),
        })?;
        for included in includes(&String::from_utf8_lossy(&content)) {
            let parent = path.parent().unwrap_or(Path::new(""));
            wanted.push(
                inside(parent, &included).ok_or_else(|| {
                    format!("{} includes {included:?}, which is not inside the release", path.display())
                })?,
            );
        }
        files.insert(path, content);
    }
    Ok(files)
}

/// Does what is installed come from the release's own files (`.`, `-e libs/a`, `./x.whl`)? Then an environment is the
/// release's alone: the same words mean other code in the next one.
pub fn installs_itself(files: &Files) -> bool {
    files.values().any(|content| String::from_utf8_lossy(content).lines().any(is_local))
}

/// As pip's documentation has it: a path has a separator in it, or is a directory or an archive; options are none of these, but for
/// `-e`.
fn is_local(line: &str) -> bool {
    const ARCHIVES: [&str; 6] = [".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"];
    let line = line.split(" #").next().unwrap_or_default().trim();
    if ["-e", "--editable"].iter().any(|option| line.starts_with(option)) || line.contains("file:") {
        return !line.contains("+");
    }
    if line.is_empty() || line.starts_with(['-', '#']) || line.contains("://") {
        return false;
    }
    // What follows are conditions and extras.
    let name = line.split([';', '[', ' ']).next().unwrap_or_default();
    name.starts_with('.') || name.contains('/') || ARCHIVES.iter().any(|end| name.ends_with(end))
}

/// Files that the options `-r` and `-c` of a file of requirements name, as pip's documentation has them.
fn includes(text: &str) -> Vec<String> {
    let option = |line: &str| {
        let line = line.trim();
        for name in ["--requirement", "--constraint", "-r", "-c"] {
            let Some(rest) = line.strip_prefix(name) else { continue };
            // `-rfoo` is as good as `-r foo`, but `--requirements` would be another option.
            if name.starts_with("--") && !rest.starts_with([' ', '\t', '=']) {
                continue;
            }
            let rest = rest.strip_prefix('=').unwrap_or(rest);
            let file = rest.split(" #").next().unwrap_or_default().trim();
            return (!file.is_empty()).then(|| file.to_owned());
        }
        None
    };
    text.lines().filter_map(option).filter(|file| !file.contains("://")).collect()
}

/// The path from the release on; `None`: it leads out.
fn inside(parent: &Path, file: &str) -> Option<PathBuf> {
    let mut path = parent.to_owned();
    for part in Path::new(file).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir if path.pop() => {}
            _ => return None,
        }
    }
    Some(path)
}

/// `interpreter`: what it answers to [`QUESTION`].
pub fn name(files: &Files, interpreter: &str) -> Box<str> {
    let mut digest = Sha256::new();
    let mut part = |bytes: &[u8]| {
        digest.update((bytes.len() as u64).to_le_bytes());
        digest.update(bytes);
    };
    part(interpreter.trim().as_bytes());
    for (path, content) in files {
        part(path.as_os_str().as_encoded_bytes());
        part(content);
    }
    let text: String = digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    text[..NAME].into()
}

pub fn is_name(text: &str) -> bool {
    text.len() == NAME && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// What builds environments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tool {
    /// <https://docs.astral.sh/uv/>; its path, and whether its cache in the user's home can be used: without a home it fails.
    Uv { path: PathBuf, cache: bool },
    /// `python -m venv`, and the pip that it brings.
    Pip,
}

/// The commands that build an environment in an empty directory, from the release's directory.
///
/// `what`: [`Ingredients::words`]. `wheels`: from what came with the release alone ([`WHEELS`]).
pub fn commands(tool: &Tool, python: &str, venv: &Path, what: &[String], wheels: bool) -> Vec<Vec<String>> {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let own = text(&venv.join("bin/python"));
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
    let (mut install, make) = match tool {
        Tool::Uv { path, cache } => {
            let uv = text(path);
            let mut make = words(&[&uv, "venv", "--python", python, "--allow-existing", &text(venv)]);
            let mut install = words(&[&uv, "pip", "install", "--python", &own, "--compile-bytecode"]);
            for command in [&mut make, &mut install] {
                command.extend((!cache).then(|| "--no-cache".to_owned()));
            }
            (install, make)
        }
        Tool::Pip => {
            let make = words(&[python, "-m", "venv", &text(venv)]);
            (words(&[&own, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]), make)
        }
    };
    if wheels {
        install.extend(words(&["--no-index", "--find-links", WHEELS]));
    }
    install.extend_from_slice(what);
    vec![make, install]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn release(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("it has one")).expect("mkdir");
            fs::write(path, text).expect("write");
        }
        dir
    }

    fn names(list: &[&str]) -> Vec<Box<str>> {
        list.iter().map(|name| (*name).into()).collect()
    }

    #[test]
    fn included_files_count() {
        let text = "-r base.txt # common\n--requirement=dev/more.txt\n--constraint  ../limits.txt\n-cpins.txt\n\
                    -r https://example.org/x.txt\nflask\n--requirements x\n";
        assert_eq!(includes(text), ["base.txt", "dev/more.txt", "../limits.txt", "pins.txt"]);
        let dir = release(&[
            ("requirements/prod.txt", "-r base.txt\n-c ../limits.txt"),
            ("requirements/base.txt", "-r prod.txt\nflask"),
            ("limits.txt", "flask<9"),
        ]);
        let files = requirements(dir.path(), &names(&["requirements/prod.txt"])).expect("read");
        assert_eq!(files.len(), 3);
        let before = name(&files, "3.11");
        assert!(is_name(&before));
        fs::write(dir.path().join("limits.txt"), "flask<8").expect("write");
        let files = requirements(dir.path(), &names(&["requirements/prod.txt"])).expect("read");
        assert_ne!(name(&files, "3.11"), before);
        assert_ne!(name(&files, "3.11"), name(&files, "3.12"));
        assert_eq!(name(&files, "3.11"), name(&files, "3.11\n"));
    }

    #[test]
    fn what_comes_from_the_release_itself_is_its_own() {
        let own = |text: &str| installs_itself(&Files::from([("requirements.txt".into(), text.as_bytes().to_vec())]));
        for text in [
            "flask\n.",
            "-e .",
            "--editable=libs/a",
            "./libs/a",
            "../a",
            "libs/a[extra]",
            ".[prod] # ours",
            "x-1.0-py3-none-any.whl",
            "x @ file:///srv/x",
        ] {
            assert!(own(text), "{text}");
        }
        for text in [
            "",
            "flask==3.0 # not ./this",
            "# ./a",
            "-r base/x.txt",
            "--index-url https://example.org/a/",
            "x @ https://example.org/x.whl",
            "git+https://example.org/x.git",
            "-e git+https://example.org/x.git#egg=x",
            "a.b>=1 ; python_version < '3.9'",
        ] {
            assert!(!own(text), "{text}");
        }
    }

    #[test]
    fn requirements_are_files_inside() {
        let dir = release(&[("real.txt", "flask")]);
        let link =
            |target: &str, name: &str| std::os::unix::fs::symlink(target, dir.path().join(name)).expect("symlink");
        link("real.txt", "inside.txt");
        link("/etc/hosts", "outside.txt");
        nix::unistd::mkfifo(&dir.path().join("pipe.txt"), nix::sys::stat::Mode::S_IRWXU).expect("mkfifo");
        let read = |name: &str| requirements(dir.path(), &names(&[name]));
        assert!(read("inside.txt").is_ok());
        assert!(read("outside.txt").expect_err("refused").contains("leads out of the release"));
        assert!(read("pipe.txt").expect_err("it is not waited for").contains("it is no file"));
    }

    #[test]
    fn what_is_missing_or_outside_is_told() {
        let dir = release(&[("a.txt", "-r ../../etc/passwd"), ("b.txt", "-r c.txt")]);
        assert_eq!(requirements(dir.path(), &names(&["requirements.txt"])), Ok(Files::new()));
        let why = |name: &str| requirements(dir.path(), &names(&[name])).expect_err("refused");
        assert!(why("a.txt").contains("not inside the release"));
        assert!(why("b.txt").contains("no c.txt"));
    }

    #[test]
    fn a_wheel_is_installed_where_nothing_is_required() {
        let dir = release(&[("shared/x.whl", "")]);
        let found =
            || ingredients(dir.path(), &names(&["requirements.txt"])).expect("read").map(|i| (i.words, i.files));
        assert_eq!(found(), None);
        fs::write(dir.path().join("app-1-py3-none-any.whl"), "one").expect("write");
        let (words, first) = found().expect("the wheel");
        assert_eq!(words, ["./app-1-py3-none-any.whl"]);
        fs::write(dir.path().join("app-1-py3-none-any.whl"), "two").expect("write");
        assert_ne!(found().expect("the wheel").1, first, "its content counts");
        fs::write(dir.path().join("b-1-py3-none-any.whl"), "").expect("write");
        assert_eq!(found(), None, "which of them?");
        fs::write(dir.path().join("requirements.txt"), "flask").expect("write");
        assert_eq!(found().expect("they").0, ["-r", "requirements.txt"]);
    }

    #[test]
    fn commands_of_both_tools() {
        let line = |tool: &Tool| {
            let what = ["-r", "a.txt", "-r", "b.txt"].map(str::to_owned);
            let commands = commands(tool, "python3", Path::new("/srv/a/venv/x"), &what, false);
            commands.iter().map(|words| words.join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(
            line(&Tool::Pip),
            [
                "python3 -m venv /srv/a/venv/x",
                "/srv/a/venv/x/bin/python -m pip install --disable-pip-version-check --no-input -r a.txt -r b.txt"
            ]
        );
        assert_eq!(
            line(&Tool::Uv { path: "/usr/bin/uv".into(), cache: true }),
            [
                "/usr/bin/uv venv --python python3 --allow-existing /srv/a/venv/x",
                "/usr/bin/uv pip install --python /srv/a/venv/x/bin/python --compile-bytecode -r a.txt -r b.txt"
            ]
        );
        assert!(line(&Tool::Uv { path: "uv".into(), cache: false }).iter().all(|line| line.contains(" --no-cache")));
    }
}
