//! The configuration that a release serves with: read from the files when it is activated, kept with it, and given back.
//!
//! What is kept are the services as they were decoded, by a name made from what they say. The files themselves are their
//! owner's: svd never writes there. So after a release was taken back they may still say what came with it; while they do,
//! what was in force before stays in force, also over a boot ([`App::held_back`]).

use super::book::{Book, on_disk};
use super::{Releases, Task, deploy_of};
use crate::api::apps::{ActivateOptions, AppRequest, ConfigurationChange, ConfigurationStatus, StepName};
use crate::api::types::{ApiError, ErrorCode};
use crate::config::diff::{self, Change, Needs};
use crate::config::spec::{Config, Service};
use crate::daemon::host::{Host, Message};
use crate::release::ReleaseId;
use crate::release::app::{App, Configurations};
use crate::sys::{durable, io_text};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// For all files of the configuration to be read.
const READ: Duration = Duration::from_secs(30);

const VERSION: u32 = 1;

/// The services of an app, by name.
pub type Specs = BTreeMap<Box<str>, Arc<Service>>;

#[derive(Serialize, Deserialize)]
struct Content {
    version: u32,
    services: Specs,
}

/// What is not to be used again by itself.
pub struct Held {
    /// As the files may still say it.
    gone: Specs,
    in_force: Specs,
}

/// What a release is given.
pub struct Given {
    from: Specs,
    pub to: Specs,
    pub names: Configurations,
}

impl Given {
    /// Services whose configuration is to change, with what differs.
    fn changes(&self) -> Vec<ConfigurationChange> {
        changes(&self.from, &self.to)
    }

    /// For people: `web (workers, reload.overlap)`. Empty: nothing changes.
    pub fn shown(&self) -> String {
        let one = |c: &ConfigurationChange| format!("{} ({})", c.service, c.keys.join(", "));
        self.changes().iter().map(one).collect::<Vec<_>>().join(", ")
    }
}

fn changes(from: &Specs, to: &Specs) -> Vec<ConfigurationChange> {
    let config = |services: &Specs| Config { services: services.clone(), ..Config::default() };
    let found = diff::difference(&config(from), &config(to));
    let shown = found.into_iter().filter_map(|change| match change {
        Change::Changed { service, keys, needs } => Some(ConfigurationChange {
            service,
            keys: keys.into_iter().map(|key| key.key.into()).collect(),
            interrupts: needs == Needs::Restart,
        }),
        _ => None,
    });
    shown.collect()
}

fn file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.json"))
}

/// Its name: of what it says.
fn encode(services: &Specs) -> (Box<str>, Vec<u8>) {
    let text = serde_json::to_vec(&Content { version: VERSION, services: services.clone() }).unwrap_or_default();
    let digest = Sha256::digest(&text);
    (digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>().into(), text)
}

/// Touches the disk.
fn read(dir: &Path, name: &str) -> Result<Specs, String> {
    let file = file(dir, name);
    let cannot = |why: String| format!("the kept configuration {} cannot be read: {why}", file.display());
    let bytes = std::fs::read(&file).map_err(|e| cannot(io_text(&e)))?;
    let content: Content = serde_json::from_slice(&bytes).map_err(|e| cannot(e.to_string()))?;
    match content.version {
        VERSION => Ok(content.services),
        other => Err(cannot(format!("it is of version {other}"))),
    }
}

/// Touches the disk.
///
/// # Errors
/// A sentence.
pub fn held(dir: &Path, app: &App) -> Result<Option<Held>, String> {
    let Some(names) = app.held_back() else { return Ok(None) };
    Ok(Some(Held { gone: read(dir, &names.from)?, in_force: read(dir, &names.to)? }))
}

/// Removes what nothing goes back to. Touches the disk.
pub fn prune(dir: &Path, needed: &BTreeSet<Box<str>>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let kept = name.to_str().and_then(|name| name.strip_suffix(".json")).is_some_and(|name| needed.contains(name));
        if !kept {
            // Best effort: the next one removes it.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

impl Book {
    /// On the disk when it returns.
    async fn keep(&self, services: &Specs) -> Result<Box<str>, String> {
        let (name, text) = encode(services);
        let (dir, file) = (self.configurations(), file(&self.configurations(), &name));
        on_disk(move || {
            if file.exists() {
                return Ok(());
            }
            let cannot = |e: std::io::Error| format!("cannot write {}: {}", file.display(), io_text(&e));
            std::fs::create_dir_all(&dir).map_err(cannot)?;
            // It says what the service's environment is.
            durable::write(&file, &text, 0o600).map_err(cannot)
        })
        .await?;
        Ok(name)
    }

    async fn kept(&self, name: &str) -> Result<Specs, String> {
        let (dir, name) = (self.configurations(), name.to_owned());
        on_disk(move || read(&dir, &name)).await
    }
}

impl Task {
    fn in_force(&self) -> Specs {
        self.services.iter().map(|s| ((&*s.name).into(), Arc::clone(s))).collect()
    }

    /// What the files say of the services that are here. A service whose file is gone stays as it is until an update.
    async fn in_files(&self) -> Result<Specs, ApiError> {
        let paths = self.around.paths.clone();
        let loaded = on_disk(move || Ok(paths.load()));
        let loaded = tokio::time::timeout(READ, loaded).await.map_err(|_| {
            self.failed(format!("the configuration's disk does not answer within {} s", READ.as_secs()))
        })?;
        let mut config = loaded.map_err(|why| self.failed(why))?.map_err(|errors| {
            let details = errors.0.iter().map(|e| e.to_string().into()).collect();
            let why = format!("{}: the configuration on this host has errors; nothing was switched.", self.book.name);
            let hint = "Mend them; `svctl check` shows them.";
            ApiError::new(ErrorCode::BadConfiguration, why).hint(hint).details(details)
        })?;
        let specs = self.in_force().into_iter();
        Ok(specs.map(|(name, old)| config.services.remove(&*name).map_or((name.clone(), old), |s| (name, s))).collect())
    }

    /// What is done before a release is activated is done as the files say, since that is what comes in force with it: also where
    /// a rollout is gone on with. A change of the root is refused by the activation.
    ///
    /// # Errors
    /// The files have errors. Who only asks how things stand is told in the answer.
    pub async fn look_ahead(&mut self, ask: &AppRequest) -> Result<(), ApiError> {
        use StepName::{After, Before, Migrate, MigrateAfter, MigrateDown, Static, Verify};
        let (ahead, only_asks) = match ask {
            AppRequest::Status { configuration } => (*configuration, true),
            AppRequest::Stage(_) | AppRequest::Build(_) => (true, false),
            AppRequest::Step(wanted) => match wanted.step {
                Before | Verify | Static | Migrate => (true, false),
                After | MigrateAfter | MigrateDown => (false, false),
            },
            _ => (false, false),
        };
        if !ahead {
            return Ok(());
        }
        let mut specs = match self.in_files().await {
            Err(error) if !only_asks => return Err(error),
            specs => specs.unwrap_or_default(),
        };
        if let Some(lead) = specs.remove(&*self.lead.name).filter(|lead| lead.root == self.lead.root) {
            self.deploy = deploy_of(&lead);
            self.lead = lead;
        }
        Ok(())
    }

    pub async fn configuration(&self) -> ConfigurationStatus {
        match self.in_files().await {
            Ok(in_files) => {
                let (changes, held_back) = (changes(&self.in_force(), &in_files), self.book.is_held(&in_files));
                ConfigurationStatus { changes, held_back, error: None }
            }
            Err(error) => {
                let lines = error.details.iter().map(|line| &**line);
                let text = std::iter::once(&*error.message).chain(lines).collect::<Vec<_>>().join("\n    ");
                ConfigurationStatus { error: Some(text.into()), ..ConfigurationStatus::default() }
            }
        }
    }

    /// What comes with a release: what the files say, or, in a rollback, what it had. Both sides are kept when this returns.
    ///
    /// # Errors
    /// The files have errors, or ask for what would interrupt the service; or the disk's.
    pub async fn given(&self, wanted: &ActivateOptions, to: &ReleaseId) -> Result<Given, ApiError> {
        let from = self.in_force();
        let to = match &wanted.rollback {
            Some(_) => self.had(to, &from).await,
            None => self.in_files().await?,
        };
        let other: Vec<ConfigurationChange> = changes(&from, &to).into_iter().filter(|c| c.interrupts).collect();
        if let Some(change) = other.first() {
            let why = format!(
                "{}: what has changed in the file of {} ({}) cannot be switched without an interruption; nothing was done.",
                self.book.name,
                change.service,
                change.keys.join(", ")
            );
            let hint = "`svctl update` on this host does it, with a stop and a start; then deploy again.";
            return Err(ApiError::new(ErrorCode::Conflict, why).hint(hint));
        }
        let keep = async |specs: &Specs| self.book.keep(specs).await.map_err(|why| self.failed(why));
        let names = Configurations { to: keep(&to).await?, from: keep(&from).await? };
        Ok(Given { from, to, names })
    }

    /// With which configuration a release served last; that which is in force where none is kept, or not for that service.
    async fn had(&self, release: &ReleaseId, in_force: &Specs) -> Specs {
        let name = self.book.app().releases.get(release).and_then(|r| r.configuration.clone());
        let Some(name) = name else { return in_force.clone() };
        match self.book.kept(&name).await {
            Ok(mut kept) => {
                let all = in_force.iter();
                all.map(|(name, now)| (name.clone(), kept.remove(name).unwrap_or_else(|| Arc::clone(now)))).collect()
            }
            Err(why) => {
                self.announce(format!("{release} goes on with the configuration in force: {why}")).await;
                in_force.clone()
            }
        }
    }

    /// The services' next generations are made by these. Gives those that run by others.
    pub async fn give(&self, specs: Specs) -> BTreeSet<Box<str>> {
        let (done, answer) = tokio::sync::oneshot::channel();
        let services = self.services.iter().map(|s| (&*s.name).into()).collect();
        let message = Message::Given { specs, services, done };
        if self.messages.send(message).await.is_err() {
            return BTreeSet::new();
        }
        answer.await.unwrap_or_default()
    }

    /// As [`Task::give`], of what is kept under this name.
    pub async fn give_back(&self, name: Option<&str>) -> BTreeSet<Box<str>> {
        let specs = match name {
            Some(name) => self.book.kept(name).await,
            None => Ok(Specs::new()),
        };
        match specs {
            Ok(specs) => self.give(specs).await,
            Err(why) => {
                self.announce(format!("the configuration stays as it is: {why}")).await;
                self.give(Specs::new()).await
            }
        }
    }
}

/// With which configuration a release of the service has served last; that which is in force where none is kept.
pub fn of_release(
    releases: &Releases,
    spec: &Arc<Service>,
    release: &str,
) -> impl Future<Output = Result<Arc<Service>, String>> + use<> {
    let root = spec.root.clone();
    let book = releases.books.borrow().values().find(|book| Some(&book.root) == root.as_ref()).cloned();
    let name = ReleaseId::new(release).ok().and_then(|id| {
        let app = book.as_ref()?.app();
        app.releases.get(&id).and_then(|release| release.configuration.clone())
    });
    let spec = Arc::clone(spec);
    async move {
        let (Some(book), Some(name)) = (book, name) else { return Ok(spec) };
        Ok(book.kept(&name).await?.remove(&*spec.name).unwrap_or(spec))
    }
}

impl Releases {
    /// Puts what is in force in the place of what was taken back and is still in the files. A sentence for each service.
    pub fn hold_back(&self, config: &mut Config) -> Vec<Box<str>> {
        let mut notes = Vec::new();
        for book in self.books.borrow().values() {
            notes.extend(book.hold_back(config).into_iter().map(|service| {
                let why = match book.app().confirmed.as_ref() {
                    Some(id) => format!("{id} serves with what it had"),
                    None => "what was in force stays".to_owned(),
                };
                let text = "its file says what was taken back with a release, and is not used";
                format!("{service}: {text}; {why}. Change it, or deploy it again.").into()
            }));
        }
        notes
    }

    /// Others have changed the files since, and that is in force.
    pub fn overruled(&self, changes: &[Change]) {
        let changed = |names: &Specs| {
            changes.iter().any(|c| matches!(c, Change::Changed { service, .. } if names.contains_key(service)))
        };
        for book in self.books.borrow().values().filter(|book| book.holds(changed)) {
            let book = Rc::clone(book);
            drop(tokio::task::spawn_local(async move {
                let forget = |app: &mut App| {
                    app.held_back = None;
                    Ok::<_, String>(())
                };
                if let Err(why) = book.change(forget, |trouble| trouble.to_string()).await {
                    tracing::warn!("{}: {why}", book.name);
                }
            }));
        }
    }
}

impl Held {
    pub fn concerns(&self, test: impl Fn(&Specs) -> bool) -> bool {
        test(&self.gone)
    }

    /// Do these say what was taken back?
    pub fn is_said_by(&self, specs: &Specs) -> bool {
        let said = |(name, gone): (&_, &Arc<Service>)| {
            self.in_force.get(name).is_some_and(|now| now != gone) && specs.get(name) == Some(gone)
        };
        self.gone.iter().any(said)
    }

    /// Gives the services that were replaced.
    pub fn replace(&self, config: &mut Config) -> Vec<Box<str>> {
        let mut replaced = Vec::new();
        for (name, gone) in &self.gone {
            let Some(now) = self.in_force.get(name).filter(|now| *now != gone) else { continue };
            if let Some(there) = config.services.get_mut(&**name).filter(|there| *there == gone) {
                *there = Arc::clone(now);
                replaced.push(name.clone());
            }
        }
        replaced
    }
}

impl Host {
    /// Services are given another configuration: at once where no new process is needed, and else with the next generation, which
    /// whoever gives it asks for.
    pub fn handle_given(&mut self, specs: &Specs, services: &[Box<str>]) -> BTreeSet<Box<str>> {
        self.reconfigure(specs);
        let behind = services.iter().filter(|name| self.machine.named(name).is_some_and(|s| self.is_behind(s)));
        behind.cloned().collect()
    }
}
