//! What is known of an app, in memory and on the disk: changed as a whole or not at all.

use super::configuration::{self, Held, Specs};
use super::journal::Kept;
use super::switch::Matter;
use crate::api::apps::{HistoryEntry, StepName};
use crate::config::spec::Config;
use crate::daemon::paths::{JOURNAL_BYTES, Paths, older};
use crate::daemon::pool::no_thread;
use crate::release::ReleaseId;
use crate::release::app::{App, Moment};
use crate::sys::{blocking, durable, io_text};
use serde::{Deserialize, Serialize};
use std::cell::{Cell, Ref, RefCell};
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const VERSION: u32 = 1;

/// For the state's disk to answer: less than clients wait.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// For an entry of the history, which nothing depends on.
const TELLING: Duration = Duration::from_secs(5);

/// The file.
#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    /// Of the machine, by which its moments are counted (`random(4)`).
    boot: Box<str>,
    root: PathBuf,
    app: App,
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// One app.
pub struct Book {
    pub name: Box<str>,
    pub root: PathBuf,
    paths: Paths,
    boot: Box<str>,
    app: RefCell<App>,
    /// One change at a time.
    turn: Arc<Turns>,
    /// One entry of the history at a time.
    telling: Arc<Turns>,
    /// One look at the root's disk at a time: what hangs there holds one thread.
    looking: Arc<Turns>,
    /// What is to be done by itself, and has failed, is not tried again before.
    again: Cell<Moment>,
    /// Of the latest rollout.
    pub kept: Kept,
    /// How often something has changed.
    changes: Cell<u64>,
    /// What must not come in force by itself.
    held: RefCell<Option<Held>>,
    /// What takes its time, and excludes other such things.
    pub busy: Cell<Option<&'static str>>,
    /// The command of a deploy that runs: of what, and since when.
    pub running: RefCell<Option<(String, Moment)>>,
}

/// A command runs until it is dropped.
pub struct Running(Rc<Book>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.replace(None);
    }
}

pub fn now() -> Moment {
    Moment(crate::sys::boot_millis())
}

/// Since 1970.
pub fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Work on a thread of its own that may take as long as the disk does.
///
/// # Errors
/// The work's own; or no thread can be had.
pub async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let done = blocking::start(work).map_err(no_thread)?;
    done.await.unwrap_or_else(|_| Err("svd's own task failed".to_owned()))
}

type Turns = tokio::sync::Mutex<()>;
pub type Turn = tokio::sync::OwnedMutexGuard<()>;

/// Why something is not on the disk, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("{0}")]
    Said(String),
    /// It may still be done.
    #[error("the disk does not answer within {} s", .0.as_secs())]
    Hangs(Duration),
}

async fn turn_of(turns: &Arc<Turns>, limit: Duration) -> Result<Turn, Trouble> {
    let turn = tokio::time::timeout(limit, Arc::clone(turns).lock_owned()).await;
    turn.map_err(|_| Trouble::Hangs(limit))
}

/// Work that keeps its turn until its end, also when that is not waited for any longer.
///
/// # Errors
/// The work's; or that its end has not come.
pub async fn within<T: 'static>(
    turn: Turn,
    limit: Duration,
    work: impl Future<Output = Result<T, String>> + 'static,
) -> Result<T, Trouble> {
    let task = tokio::task::spawn_local(async move {
        let done = work.await;
        drop(turn);
        done
    });
    match tokio::time::timeout(limit, task).await {
        Ok(Ok(done)) => done.map_err(Trouble::Said),
        Ok(Err(_)) => Err(Trouble::Said("svd's own task failed".to_owned())),
        Err(_) => Err(Trouble::Hangs(limit)),
    }
}

impl Book {
    pub fn new(name: &str, root: &Path, paths: &Paths, boot: &str) -> Book {
        Book::with(name, root, paths, boot, App::default(), Kept::new(paths.app_journal(name)))
    }

    fn with(name: &str, root: &Path, paths: &Paths, boot: &str, app: App, kept: Kept) -> Book {
        Book {
            name: name.into(),
            root: root.to_owned(),
            paths: paths.clone(),
            boot: boot.into(),
            app: RefCell::new(app),
            turn: Arc::default(),
            telling: Arc::default(),
            looking: Arc::default(),
            again: Cell::default(),
            kept,
            changes: Cell::new(0),
            held: RefCell::default(),
            busy: Cell::new(None),
            running: RefCell::default(),
        }
    }

    /// Of an earlier svd; and whether the machine was started anew since. Touches the disk.
    ///
    /// # Errors
    /// A sentence: the file is of no use, and was set aside.
    pub fn open(file: &Path, paths: &Paths, boot: &str) -> Result<(Book, bool), String> {
        let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let read = std::fs::read(file).map_err(|e| io_text(&e)).and_then(|bytes| decode(&bytes));
        let content = read.map_err(|why| set_aside(file, &why))?;
        let rebooted = *content.boot != *boot;
        let kept = Kept::open(paths.app_journal(&name));
        Ok((Book::with(&name, &content.root, paths, boot, content.app, kept), rebooted))
    }

    /// Nobody else changes anything until the result is dropped.
    ///
    /// # Errors
    /// Somebody else's change does not come to its end.
    pub async fn turn(&self) -> Result<Turn, Trouble> {
        turn_of(&self.turn, PATIENCE).await
    }

    /// Looks at the root's disk, one after the other and no longer than `limit`.
    ///
    /// # Errors
    /// The look's, or the disk does not answer.
    pub async fn look<T: Send + 'static>(
        &self,
        limit: Duration,
        look: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, Trouble> {
        let turn = turn_of(&self.looking, limit).await?;
        within(turn, limit, on_disk(look)).await
    }

    /// When something is to be done by itself, and what: a switch that nobody carries out any more, or the end of a lease.
    pub fn due(&self) -> Option<(Moment, Matter)> {
        let app = self.app();
        let (end, matter) = match &app.switch {
            Some(_) if self.busy.get().is_some() => return None,
            Some(_) => (Moment(0), Matter::Died),
            None => (app.deadline()?, Matter::Lease),
        };
        Some((end.max(self.again.get()), matter))
    }

    /// `what`: of which step and release it is.
    pub fn runs(self: &Rc<Self>, what: String) -> Running {
        self.running.replace(Some((what, now())));
        Running(Rc::clone(self))
    }

    /// What runs, for people.
    pub fn under_way(&self) -> Option<String> {
        let running = self.running.borrow();
        let (what, since) = running.as_ref()?;
        let since = Duration::from_secs(now().0.saturating_sub(since.0) / 1000);
        Some(format!("{}: {what}, for {}", self.name, humantime::format_duration(since)))
    }

    pub fn not_before(&self, moment: Moment) {
        self.again.set(moment);
    }

    pub fn app(&self) -> Ref<'_, App> {
        self.app.borrow()
    }

    /// Changes what is known; on the disk when it returns. Refused by `change`, or by the disk: nothing has changed.
    ///
    /// # Errors
    /// The change's own, or by `text` the disk's.
    pub async fn change<T, E>(
        self: &Rc<Self>,
        change: impl FnOnce(&mut App) -> Result<T, E>,
        text: impl FnOnce(Trouble) -> E,
    ) -> Result<T, E> {
        let turn = match self.turn().await {
            Ok(turn) => turn,
            Err(trouble) => return Err(text(trouble)),
        };
        let mut app = self.app.borrow().clone();
        let result = change(&mut app)?;
        if app != *self.app.borrow() {
            let book = Rc::clone(self);
            // It goes on where nobody waits for it any more: what is on the disk and what is known stay the same.
            let written = within(turn, PATIENCE, async move { book.put(app).await }).await;
            written.map_err(text)?;
        }
        Ok(result)
    }

    async fn put(&self, app: App) -> Result<(), String> {
        self.save(&app).await?;
        let before = self.app.replace(app);
        self.changes.set(self.changes.get() + 1);
        if before.held_back() != self.app().held_back() {
            let (dir, app) = (self.configurations(), self.app().clone());
            let held = on_disk(move || configuration::held(&dir, &app)).await;
            self.hold(held);
        }
        Ok(())
    }

    async fn save(&self, app: &App) -> Result<(), String> {
        let (file, text) = self.encoded(app);
        on_disk(move || write(&file, &text)).await
    }

    /// As [`Book::change`], before there is a loop.
    ///
    /// # Errors
    /// The disk's.
    pub fn change_at_boot(&self, change: impl FnOnce(&mut App)) -> Result<(), String> {
        change(&mut self.app.borrow_mut());
        let (file, text) = self.encoded(&self.app());
        write(&file, &text)
    }

    /// Where configurations of its releases are kept.
    pub fn configurations(&self) -> PathBuf {
        self.paths.app_configurations(&self.name)
    }

    /// Reads what must not come in force by itself; before there is a loop.
    pub fn open_held(&self) {
        self.hold(configuration::held(&self.configurations(), &self.app()));
    }

    fn hold(&self, held: Result<Option<Held>, String>) {
        let held = held.inspect_err(|why| {
            tracing::warn!("{}: {why}; the next update brings what the files say", self.name);
        });
        self.held.replace(held.unwrap_or_default());
    }

    /// Do the files say what was taken back?
    pub fn is_held(&self, in_files: &Specs) -> bool {
        self.held.borrow().as_ref().is_some_and(|held| held.is_said_by(in_files))
    }

    pub fn holds(&self, test: impl Fn(&Specs) -> bool) -> bool {
        self.held.borrow().as_ref().is_some_and(|held| held.concerns(test))
    }

    /// Gives the services that were replaced.
    pub fn hold_back(&self, config: &mut Config) -> Vec<Box<str>> {
        self.held.borrow().as_ref().map(|held| held.replace(config)).unwrap_or_default()
    }

    fn encoded(&self, app: &App) -> (PathBuf, Vec<u8>) {
        let content = Content { version: VERSION, boot: self.boot.clone(), root: self.root.clone(), app: app.clone() };
        (self.paths.app_file(&self.name), serde_json::to_vec_pretty(&content).unwrap_or_default())
    }

    /// Appends to the journal. What cannot be written is told, and stops nothing: the state is what counts.
    pub async fn tell(&self, entry: HistoryEntry) {
        let (dir, file) = (self.paths.apps(), self.paths.app_history(&self.name));
        let written = async {
            let turn = turn_of(&self.telling, TELLING).await?;
            within(turn, TELLING, on_disk(move || append(&dir, &file, &entry))).await
        };
        if let Err(why) = written.await {
            tracing::warn!("{}: the history of its deploys misses an entry: {why}", self.name);
        }
    }

    /// The newest entries, oldest first.
    ///
    /// # Errors
    /// A sentence.
    pub async fn history(&self, most: usize) -> Result<Vec<HistoryEntry>, String> {
        let file = self.paths.app_history(&self.name);
        on_disk(move || read(&file, most)).await
    }

    /// Tells of the steps that an earlier svd has begun and nobody knows the end of, each once; before there is a loop.
    ///
    /// # Errors
    /// A sentence: the history cannot be read or written.
    pub fn tell_interrupted(&self) -> Result<(), String> {
        const UNKNOWN: &str = "svd ended in it: how far it came is not known";
        let (dir, file) = (self.paths.apps(), self.paths.app_history(&self.name));
        let app = self.app();
        let interrupted: Vec<_> = app.interrupted().collect();
        if interrupted.is_empty() {
            return Ok(());
        }
        let known = read(&file, usize::MAX)?;
        for (rollout, step) in interrupted {
            let of_release = (step == StepName::MigrateDown.as_str()).then(|| rollout.rsplit_once(' ')).flatten();
            let rollout = of_release.map_or(rollout, |(rollout, _)| rollout);
            let told = |e: &HistoryEntry| *e.rollout == *rollout && *e.what == *step && *e.detail == *UNKNOWN;
            if !known.iter().any(told) {
                // Rollouts are called by their releases.
                let is_its =
                    |id: &&ReleaseId| rollout.strip_prefix(id.as_str()).is_some_and(|rest| rest.starts_with('-'));
                let release = app.releases.keys().filter(is_its).max_by_key(|id| id.as_str().len());
                let release = of_release.map(|(_, release)| release).or(release.map(ReleaseId::as_str));
                append(&dir, &file, &entry("svd", rollout, step, release, UNKNOWN))?;
            }
        }
        Ok(())
    }

    /// Differs where anything has changed meanwhile.
    pub fn changes(&self) -> u64 {
        self.changes.get()
    }

    /// Where the output of steps is kept.
    pub fn outputs(&self) -> PathBuf {
        self.paths.app_output(&self.name)
    }

    pub fn output_file(&self, release: &str, step: &str) -> PathBuf {
        self.outputs().join(format!("{release}.{step}.log"))
    }
}

pub fn entry(who: &str, rollout: &str, what: &str, release: Option<&str>, detail: &str) -> HistoryEntry {
    HistoryEntry {
        // Of several hosts, the order is told by it.
        time: humantime::format_rfc3339_millis(SystemTime::now()).to_string().into(),
        who: who.into(),
        rollout: rollout.into(),
        what: what.into(),
        release: release.map(Into::into),
        detail: detail.into(),
    }
}

fn decode(bytes: &[u8]) -> Result<Content, String> {
    let text = |e: serde_json::Error| e.to_string();
    // First of all: the rest of another version may look different.
    let Versioned { version } = serde_json::from_slice(bytes).map_err(text)?;
    if version != VERSION {
        return Err(format!("it is of version {version}"));
    }
    serde_json::from_slice(bytes).map_err(text)
}

fn write(file: &Path, text: &[u8]) -> Result<(), String> {
    let cannot = |e: std::io::Error| format!("cannot write {}: {}", file.display(), io_text(&e));
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir).map_err(cannot)?;
    }
    durable::write(file, text, 0o600).map_err(cannot)
}

/// Of the history.
fn read(file: &Path, most: usize) -> Result<Vec<HistoryEntry>, String> {
    let mut entries = Vec::new();
    for file in [&older(file), file] {
        match std::fs::read_to_string(file) {
            Ok(text) => entries.extend(text.lines().filter_map(|line| serde_json::from_str(line).ok())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(format!("cannot read {}: {}", file.display(), io_text(&e))),
        }
    }
    let surplus = entries.len().saturating_sub(most);
    entries.drain(..surplus);
    Ok(entries)
}

fn append(dir: &Path, file: &Path, entry: &HistoryEntry) -> Result<(), String> {
    let cannot = |e: std::io::Error| format!("cannot write {}: {}", file.display(), io_text(&e));
    std::fs::create_dir_all(dir).map_err(cannot)?;
    if std::fs::metadata(file).is_ok_and(|meta| meta.len() > JOURNAL_BYTES) {
        std::fs::rename(file, older(file)).map_err(cannot)?;
    }
    let mut line = serde_json::to_vec(entry).unwrap_or_default();
    line.push(b'\n');
    let mut open = std::fs::OpenOptions::new().append(true).create(true).open(file).map_err(cannot)?;
    open.write_all(&line).and_then(|()| open.sync_data()).map_err(cannot)
}

fn set_aside(file: &Path, why: &str) -> String {
    let aside = file.with_extension("json.unreadable");
    match std::fs::rename(file, &aside) {
        Ok(()) => format!("{} cannot be read ({why}); it is kept as {}", file.display(), aside.display()),
        Err(e) => format!("{} cannot be read ({why}) nor moved: {}", file.display(), io_text(&e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(dir: &Path) -> Paths {
        Paths { config: dir.into(), run: dir.into(), state: dir.into(), log: dir.into() }
    }

    #[tokio::test(flavor = "local")]
    async fn a_change_is_on_the_disk_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let paths = paths(dir.path());
        let book = Rc::new(Book::new("web", Path::new("/srv/web"), &paths, "boot-1"));
        let id = ReleaseId::new("r1").expect("a name");
        let found = |app: &mut App| {
            app.found(&id, 7);
            Ok::<_, String>(())
        };
        book.change(found, |trouble| trouble.to_string()).await.expect("written");
        let refused = book.change(
            |app| {
                app.found(&id, 9);
                app.confirmed = None;
                Err::<(), _>("no".to_owned())
            },
            |trouble| trouble.to_string(),
        );
        assert_eq!(refused.await, Err("no".to_owned()));
        assert_eq!(book.app().confirmed, Some(id.clone()));
        let (again, rebooted) = Book::open(&paths.app_file("web"), &paths, "boot-1").expect("read");
        assert_eq!((&*again.name, again.root.as_path(), rebooted), ("web", Path::new("/srv/web"), false));
        assert_eq!(*again.app(), *book.app());
        assert!(Book::open(&paths.app_file("web"), &paths, "boot-2").expect("read").1);
        std::fs::remove_dir_all(paths.apps()).expect("removed");
        std::fs::write(paths.apps(), "no directory").expect("a file in its place");
        let lost = book
            .change(
                |app| {
                    app.confirmed = None;
                    Ok::<_, String>(())
                },
                |trouble| trouble.to_string(),
            )
            .await;
        assert!(lost.is_err_and(|why| why.contains("cannot write")));
        assert_eq!(book.app().confirmed, Some(id), "as before");
    }

    #[tokio::test(flavor = "local")]
    async fn what_hangs_is_not_waited_for_and_keeps_its_turn() {
        let turns = Arc::<Turns>::default();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let limit = Duration::from_millis(20);
        let turn = turn_of(&turns, limit).await.expect("free");
        let hanging = async { wait.await.map_err(|e| e.to_string()) };
        assert!(matches!(within(turn, limit, hanging).await, Err(Trouble::Hangs(_))));
        assert!(turn_of(&turns, limit).await.is_err(), "nobody comes in between");
        go.send(()).expect("it waits still");
        turn_of(&turns, Duration::from_secs(60)).await.expect("its end has come");
    }

    #[tokio::test(flavor = "local")]
    async fn what_nobody_carries_out_is_due_and_not_at_once_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let book = Rc::new(Book::new("web", Path::new("/srv/web"), &paths(dir.path()), "boot"));
        assert_eq!(book.due(), None);
        book.app.borrow_mut().switch =
            Some(crate::release::app::Switch { to: None, from: None, back: true, trial: None, configurations: None });
        assert_eq!(book.due(), Some((Moment(0), Matter::Died)));
        book.busy.set(Some("a test"));
        assert_eq!(book.due(), None, "somebody is at it");
        book.busy.set(None);
        book.not_before(Moment(7));
        assert_eq!(book.due(), Some((Moment(7), Matter::Died)));
    }

    #[tokio::test(flavor = "local")]
    async fn the_history_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let book = Book::new("web", Path::new("/srv/web"), &paths(dir.path()), "boot");
        for number in 0..5 {
            book.tell(entry("root", "r", "staged", Some(&format!("r{number}")), "")).await;
        }
        let last = book.history(2).await.expect("read");
        assert_eq!(last.iter().filter_map(|e| e.release.as_deref()).collect::<Vec<_>>(), ["r3", "r4"]);
    }

    #[test]
    fn garbage_is_set_aside() {
        let dir = tempfile::tempdir().expect("a directory");
        let paths = paths(dir.path());
        std::fs::create_dir(paths.apps()).expect("mkdir");
        for text in ["{", r#"{"version": 9}"#, ""] {
            std::fs::write(paths.app_file("web"), text).expect("write");
            let why = Book::open(&paths.app_file("web"), &paths, "b").err().expect("refused");
            assert!(why.contains("unreadable"), "{why}");
        }
    }
}
