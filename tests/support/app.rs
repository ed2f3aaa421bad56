//! The test applications (`tests/apps/python`), laid out as releases below a root.

use serde_json::{Map, Value};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// What a release does; `release.py` beside the applications says what each key means.
#[derive(Clone, Debug)]
pub struct Release {
    id: String,
    settings: Map<String, Value>,
}

impl Release {
    /// A good one, which answers with its own name.
    pub fn new(id: &str) -> Release {
        let mut settings = Map::new();
        settings.insert("name".into(), id.into());
        Release { id: id.to_owned(), settings }
    }

    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Release {
        self.settings.insert(key.into(), value.into());
        self
    }
}

/// A root with `releases/ID` and `current`.
pub struct App {
    pub root: PathBuf,
}

impl App {
    pub fn at(root: PathBuf) -> App {
        fs::create_dir_all(root.join("releases")).expect("making the application's root");
        App { root }
    }

    /// Writes a release without naming it `current`; its directory.
    pub fn publish(&self, release: &Release) -> PathBuf {
        let dir = self.root.join("releases").join(&release.id);
        fs::create_dir_all(&dir).expect("making a release");
        let apps = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/python");
        for file in fs::read_dir(apps).expect("the test applications").flatten() {
            if file.path().is_file() {
                fs::copy(file.path(), dir.join(file.file_name())).expect("copying a test application");
            }
        }
        let settings = Value::Object(release.settings.clone()).to_string();
        fs::write(dir.join("release.json"), settings).expect("writing release.json");
        dir
    }

    /// Switches `current`, in one step.
    pub fn switch(&self, id: &str) {
        let new = self.root.join("current.new");
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => panic!("{}: {e}", new.display()),
            _ => symlink(Path::new("releases").join(id), &new).expect("making a link"),
        }
        fs::rename(&new, self.root.join("current")).expect("switching current");
    }

    /// Publishes a release and names it `current`.
    pub fn ship(&self, release: &Release) -> PathBuf {
        let dir = self.publish(release);
        self.switch(&release.id);
        dir
    }
}
