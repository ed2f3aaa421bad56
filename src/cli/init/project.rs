//! A project's directory, looked at without running anything of it: few files, small ones, no links followed out of it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What is larger is no source.
const MAX_FILE: u64 = 1 << 20;
/// Files that are looked at, and how deep below the project.
const MOST: usize = 5_000;
const DEPTH: usize = 4;
/// Others' code, and what programs made.
const OTHERS: &[&str] =
    &["node_modules", "venv", "env", "site-packages", "__pycache__", "tests", "test", "docs", "migrations", "static"];

pub struct Project {
    pub dir: PathBuf,
    /// Below `dir`, in the order of their depth, then of their names.
    pub files: Vec<String>,
}

impl Project {
    /// # Errors
    /// Of the file system.
    pub fn open(dir: &Path) -> std::io::Result<Project> {
        let mut project = Project { dir: dir.to_owned(), files: Vec::new() };
        let mut level = vec![String::new()];
        for _ in 0..DEPTH {
            let mut next = Vec::new();
            for below in &level {
                // The project itself must be readable; what is in it may be somebody's own.
                let found = project.list(below, &mut next);
                if below.is_empty() {
                    found?;
                }
            }
            next.sort_unstable();
            level = next;
        }
        Ok(project)
    }

    fn list(&mut self, below: &str, directories: &mut Vec<String>) -> std::io::Result<()> {
        let mut here = Vec::new();
        for entry in fs::read_dir(self.dir.join(below))?.flatten().take(MOST) {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && !name.starts_with('.') && !OTHERS.contains(&name.as_str()) {
                directories.push(path);
            } else if kind.is_file() {
                here.push(path);
            }
        }
        here.sort_unstable();
        let room = MOST.saturating_sub(self.files.len());
        self.files.extend(here.into_iter().take(room));
        Ok(())
    }

    pub fn has(&self, file: &str) -> bool {
        self.files.iter().any(|f| f == file)
    }

    /// The text of a file below the project; what is not UTF-8 in it is replaced.
    pub fn read(&self, file: &str) -> Option<String> {
        self.bytes(file, MAX_FILE).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    pub fn bytes(&self, file: &str, most: u64) -> Option<Vec<u8>> {
        let path = self.dir.join(file);
        // Before it is opened: opening a pipe waits for a writer.
        let meta = fs::symlink_metadata(&path).ok().filter(|meta| meta.is_file() && meta.len() <= most)?;
        let mut bytes = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or_default());
        fs::File::open(&path).ok()?.take(most).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    /// Files of this name, the highest first.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &str> {
        let fits = move |file: &&str| file.rsplit('/').next() == Some(name);
        self.files.iter().map(String::as_str).filter(fits)
    }

    pub fn is_executable(&self, file: &str) -> bool {
        fs::metadata(self.dir.join(file)).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    }
}

/// The directory and the name of a path below the project.
pub fn split(file: &str) -> (&str, &str) {
    file.rsplit_once('/').unwrap_or(("", file))
}

/// `name`, in a directory below the project.
pub fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}
