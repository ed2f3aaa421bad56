//! What must survive svd's end: which services are disabled, and the numbers of their last generations.

use super::paths::Paths;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

const VERSION: u32 = 1;
/// More than can be started before the next save.
const SKIPPED_WORKERS: u64 = 10_000;
const SKIPPED_GENERATIONS: u64 = 10;
/// No svd comes as far: a file with larger numbers is damaged, and would leave no room for the next ones.
const LARGEST: u64 = 1 << 48;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Content {
    version: u32,
    /// `svctl disable`: not started with svd.
    disabled: BTreeSet<Box<str>>,
    /// `svctl enable`, against the file's `autostart = false`.
    enabled: BTreeSet<Box<str>>,
    generations: BTreeMap<Arc<str>, u64>,
    last_worker: u64,
    /// svd ended in order, and the numbers are the last ones.
    #[serde(default)]
    ended: bool,
}

/// What all versions have.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Content {
    /// # Errors
    /// Why the bytes are no state that this svd can use.
    fn decode(bytes: &[u8]) -> Result<Content, String> {
        let text = |e: serde_json::Error| e.to_string();
        // First of all: the rest of another version may look different.
        let Versioned { version } = serde_json::from_slice(bytes).map_err(text)?;
        if version != VERSION {
            return Err(format!("it is of version {version}"));
        }
        let content: Content = serde_json::from_slice(bytes).map_err(text)?;
        if content.last_worker > LARGEST || content.generations.values().any(|number| *number > LARGEST) {
            return Err("it has numbers that no svd gives out".to_owned());
        }
        Ok(content)
    }
}

/// In memory; written by [`Snapshot::write`].
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    content: Content,
    pub dirty: bool,
    /// The numbers were raised when the file was read.
    skipped: bool,
    /// How many snapshots were taken …
    taken: u64,
    /// … and the newest of which the disk has something.
    written: Arc<Mutex<u64>>,
}

/// The content at one moment, for a thread that may block.
#[derive(Debug)]
pub struct Snapshot {
    path: PathBuf,
    text: Vec<u8>,
    number: u64,
    written: Arc<Mutex<u64>>,
}

impl Snapshot {
    /// Writes the file, durably, unless a newer snapshot has done so: what was acknowledged from that one must stay.
    ///
    /// # Errors
    /// A sentence.
    pub fn write(&self) -> Result<(), String> {
        let mut written = self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if *written > self.number {
            return Ok(());
        }
        crate::sys::durable::write(&self.path, &self.text, 0o600)
            .map_err(|e| format!("cannot write {}: {}", self.path.display(), crate::sys::io_text(&e)))?;
        *written = self.number;
        Ok(())
    }
}

impl Store {
    /// Reads the file. One that cannot be read is set aside under a telling name; the sentence says so.
    pub fn open(paths: &Paths) -> (Store, Option<String>) {
        let path = paths.services_file();
        let mut trouble = None;
        let content = match std::fs::read(&path) {
            Ok(bytes) => Content::decode(&bytes).unwrap_or_else(|why| {
                trouble = Some(set_aside(&path, &why));
                Content::default()
            }),
            Err(e) if e.kind() == ErrorKind::NotFound => Content::default(),
            Err(e) => {
                trouble = Some(format!("cannot read {}: {}", path.display(), crate::sys::io_text(&e)));
                Content::default()
            }
        };
        (Store::with(path, content), trouble)
    }

    fn with(path: PathBuf, content: Content) -> Store {
        let mut store = Store { path, content, dirty: false, skipped: false, taken: 0, written: Arc::default() };
        store.skip_unsaved();
        store
    }

    /// Numbers are saved a moment after they are given out: after a kill, those that were not saved are skipped, so that
    /// none is used twice.
    fn skip_unsaved(&mut self) {
        if !std::mem::take(&mut self.content.ended) && self.content.version > 0 {
            self.skipped = true;
            let skip = |number: &mut u64, by: u64| *number = (*number + by).min(LARGEST);
            skip(&mut self.content.last_worker, SKIPPED_WORKERS);
            self.content.generations.values_mut().for_each(|number| skip(number, SKIPPED_GENERATIONS));
        }
        self.dirty = true;
    }

    /// svd ends in order.
    pub fn end(&mut self) {
        self.content.ended = true;
    }

    pub fn enabled(&self, name: &str, autostart: bool) -> bool {
        if autostart { !self.content.disabled.contains(name) } else { self.content.enabled.contains(name) }
    }

    /// True if this changes anything. Durable when a snapshot is written.
    pub fn set_enabled(&mut self, name: &str, autostart: bool, enabled: bool) -> bool {
        if self.enabled(name, autostart) == enabled {
            return false;
        }
        let (list, listed) =
            if autostart { (&mut self.content.disabled, !enabled) } else { (&mut self.content.enabled, enabled) };
        if listed {
            list.insert(name.into())
        } else {
            list.remove(name)
        };
        self.dirty = true;
        true
    }

    pub fn last_generation(&self, name: &str) -> u64 {
        self.content.generations.get(name).copied().unwrap_or(0)
    }

    /// What [`Store::last_generation`] gives if svd was killed since it was read: at least as high as what was saved.
    fn saved_generation(&self, name: &str) -> u64 {
        self.last_generation(name).saturating_sub(if self.skipped { SKIPPED_GENERATIONS } else { 0 })
    }

    /// For who has a record of a service's last generation, which may be older: numbers beyond it that were given out.
    pub fn beyond(&self, name: &str, recorded: u64) -> u64 {
        if self.saved_generation(name) > recorded { self.last_generation(name) } else { recorded }
    }

    pub fn last_worker(&self) -> u64 {
        self.content.last_worker
    }

    pub fn began(&mut self, name: &Arc<str>, generation: u64) {
        self.content.generations.insert(Arc::clone(name), generation);
        self.dirty = true;
    }

    pub fn spawned(&mut self, worker: u64) {
        self.content.last_worker = worker;
        self.dirty = true;
    }

    /// What is to be written, for a thread that may block.
    pub fn snapshot(&mut self) -> Snapshot {
        self.dirty = false;
        self.taken += 1;
        self.content.version = VERSION;
        let text = serde_json::to_vec_pretty(&self.content).unwrap_or_default();
        Snapshot { path: self.path.clone(), text, number: self.taken, written: Arc::clone(&self.written) }
    }
}

/// The promise of [`crate::fuzz::state_file`].
#[cfg(any(test, feature = "fuzz"))]
pub fn check(bytes: &[u8]) {
    let read = match Content::decode(bytes) {
        Ok(read) => read,
        Err(why) => return assert!(!why.is_empty()),
    };
    let mut store = Store::with(PathBuf::new(), read.clone());
    assert!(store.last_worker() >= read.last_worker);
    for (name, number) in &read.generations {
        assert!(store.last_generation(name) >= *number);
    }
    assert!(read.ended || store.last_worker() > read.last_worker || read.last_worker == LARGEST);
    assert!(read.disabled.iter().all(|name| !store.enabled(name, true)));
    assert!(read.enabled.iter().all(|name| store.enabled(name, false)));
    let snapshot = store.snapshot();
    assert_eq!(Content::decode(&snapshot.text).as_ref(), Ok(&store.content));
}

fn set_aside(path: &std::path::Path, why: &str) -> String {
    let aside = path.with_extension("json.unreadable");
    match std::fs::rename(path, &aside) {
        Ok(()) => format!("{} cannot be read ({why}); it is kept as {}", path.display(), aside.display()),
        Err(e) => format!("{} cannot be read ({why}) nor moved: {}", path.display(), crate::sys::io_text(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_across_a_restart_and_sets_garbage_aside() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = dir.path().to_owned();
        let paths = Paths { config: at.clone(), run: at.clone(), state: at.clone(), log: at };
        let (mut store, trouble) = Store::open(&paths);
        assert_eq!(trouble, None);
        assert!(store.set_enabled("web", true, false));
        assert!(!store.set_enabled("web", true, false));
        assert!(store.set_enabled("batch", false, true));
        store.began(&"web".into(), 7);
        store.snapshot().write().expect("saved");
        let (killed, _) = Store::open(&paths);
        assert!(killed.last_generation("web") > 7, "after a kill, unsaved numbers are skipped");
        store.end();
        store.snapshot().write().expect("saved");
        let (store, trouble) = Store::open(&paths);
        assert_eq!(trouble, None);
        assert!(!store.enabled("web", true) && store.enabled("other", true) && store.enabled("batch", false));
        assert_eq!((store.last_generation("web"), store.last_generation("other")), (7, 0));
        for text in
            ["{", r#"{"version":1,"disabled":[],"enabled":[],"generations":{},"last_worker":18446744073709551615}"#]
        {
            std::fs::write(paths.services_file(), text).expect("write");
            let (store, trouble) = Store::open(&paths);
            assert!(trouble.is_some_and(|t| t.contains("unreadable")), "{text}");
            assert_eq!(store.last_worker(), 0);
        }
        std::fs::write(paths.services_file(), r#"{"version":2,"all":"different"}"#).expect("write");
        assert!(Store::open(&paths).1.is_some_and(|t| t.contains("of version 2")));
        std::fs::write(paths.services_file(), "{").expect("write");
        let (store, trouble) = Store::open(&paths);
        assert!(trouble.is_some_and(|t| t.contains("unreadable")));
        assert_eq!(store.last_generation("web"), 0);
    }

    #[test]
    fn a_number_that_was_saved_is_not_given_out_again() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = dir.path().to_owned();
        let paths = Paths { config: at.clone(), run: at.clone(), state: at.clone(), log: at };
        let (mut store, _) = Store::open(&paths);
        store.began(&"web".into(), 7);
        store.snapshot().write().expect("saved");
        let (killed, _) = Store::open(&paths);
        assert_eq!(killed.beyond("web", 7), 7, "the record is as new: the numbers go on");
        assert!(killed.beyond("web", 6) > 7, "the record is older, and there may have been more");
        assert_eq!(killed.beyond("web", 9), 9, "the record is newer");
        assert_eq!(killed.beyond("other", 0), 0);
    }

    #[test]
    fn an_older_snapshot_does_not_overwrite_a_newer_one() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = dir.path().to_owned();
        let paths = Paths { config: at.clone(), run: at.clone(), state: at.clone(), log: at };
        let (mut store, _) = Store::open(&paths);
        store.began(&"web".into(), 1);
        let slow = store.snapshot();
        assert!(store.set_enabled("web", true, false));
        store.snapshot().write().expect("saved, and told to somebody");
        slow.write().expect("nothing to do");
        assert!(!Store::open(&paths).0.enabled("web", true));
    }
}
