//! Releases on this host: what [`crate::release`] decides, done. One task a request, which asks the loop for what it needs by
//! the same requests as everybody else.
//!
//! | file | what |
//! |---|---|
//! | [`book`] | what is known of an app, in memory and on the disk |
//! | [`answer`] | `svctl releases` and the like |
//! | [`configuration`] | what the files say of its services, kept with the releases |
//! | [`stage`] | lock, staging place, import, pruning |
//! | [`command`] | a command of a step: as the service's user, in the new release |
//! | [`journal`] | the journal of the latest rollout, kept for whoever drives it |
//! | [`build`] | virtual environments |
//! | [`step`] | migrations, static files, checks |
//! | [`switch`] | all services to another release, and back; the end of a lease |

mod answer;
mod book;
mod build;
mod command;
mod configuration;
mod journal;
mod stage;
mod step;
mod switch;

pub use book::on_disk;
pub use configuration::{Specs, of_release};
pub use switch::Matter;

use super::host::{Host, Message};
use super::launch::Surroundings;
use super::secrets::read::Reader;
use super::users::Users;
use crate::api::apps::{AppRequest, Fence};
use crate::api::request::{Name, Verb};
use crate::api::types::{ApiError, ErrorCode, Progress};
use crate::api::{Call, Peer, Reply, Request, internal};
use crate::config::spec::{Deploy, Service};
use crate::release::ReleaseId;
use crate::release::app::{self, App, Refusal};
use crate::release::layout::Layout;
use book::Book;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc};

/// All apps that anything was deployed of.
pub struct Releases {
    /// By name.
    books: Rc<RefCell<BTreeMap<Name, Rc<Book>>>>,
    /// To ask svd itself.
    calls: mpsc::Sender<Call>,
    /// A lease may end sooner than was thought.
    leases: Rc<Notify>,
}

/// What a task works with.
struct Task {
    book: Rc<Book>,
    /// Of the root, in the order in which they are switched.
    services: Vec<Arc<Service>>,
    /// Whose file has `[deploy]`.
    lead: Arc<Service>,
    deploy: Deploy,
    layout: Layout,
    around: Surroundings,
    users: Arc<Users>,
    secrets: Reader,
    /// svd's own user is root.
    root: bool,
    peer: Peer,
    /// The peer has the right to deploy, on all services.
    may_deploy: bool,
    calls: mpsc::Sender<Call>,
    messages: mpsc::Sender<Message>,
    leases: Rc<Notify>,
}

/// Held while something goes on that excludes others of its kind.
struct Busy {
    book: Rc<Book>,
    leases: Rc<Notify>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.book.busy.set(None);
        // It may have left something behind that somebody must look after.
        self.leases.notify_one();
    }
}

impl Releases {
    /// Reads what an earlier svd has left. If the machine was started anew since, `current` names what was confirmed when this
    /// returns. The sentences: what went wrong.
    pub fn open(paths: &super::paths::Paths, boot: &str, calls: mpsc::Sender<Call>) -> (Releases, Vec<String>) {
        let (mut books, mut troubles) = (BTreeMap::new(), Vec::new());
        let entries = std::fs::read_dir(paths.apps()).into_iter().flatten().flatten();
        for file in entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "json")) {
            match Book::open(&file, paths, boot) {
                Ok((book, rebooted)) => {
                    if rebooted {
                        troubles.extend(after_boot(&book).err());
                    }
                    book.open_held();
                    troubles.extend(book.tell_interrupted().err().map(|why| format!("{}: {why}", book.name)));
                    books.insert(book.name.clone(), Rc::new(book));
                }
                Err(why) => troubles.push(why),
            }
        }
        (Releases { books: Rc::new(RefCell::new(books)), calls, leases: Rc::default() }, troubles)
    }
}

/// What was not confirmed is not started.
fn after_boot(book: &Book) -> Result<(), String> {
    let mut app = book.app().clone();
    let changed = app.booted();
    let switched = if changed { Layout::new(&book.root).switch(app.serving()) } else { Ok(()) };
    if let Err(why) = switched {
        // The disk may come later: what was under way is taken back by itself then, as after a death.
        book.change_at_boot(App::stranded)?;
        return Err(format!("{}: {why}", book.name));
    }
    book.change_at_boot(|there| *there = app)
}

impl Host {
    /// What svd runs for deploys ends with it, wherever it stands.
    ///
    /// # Errors
    /// A step runs, and `force` is not given.
    pub fn spare_steps(&self, force: bool) -> Result<(), ApiError> {
        let steps: Vec<String> = self.releases.books.borrow().values().filter_map(|book| book.under_way()).collect();
        if force || steps.is_empty() {
            return Ok(());
        }
        let why = format!("A deploy is at work here, and would be cut off in the middle: {}.", steps.join("; "));
        let hint = "Wait for its end. --force ends it all the same; how far a migration came is not known then.";
        Err(ApiError::new(ErrorCode::Busy, why).hint(hint))
    }

    /// Begins what is asked of an app, in a task of its own.
    pub fn app(&mut self, name: &Name, ask: AppRequest, peer: Peer, reply: Reply) {
        match self.app_task(name, &ask, peer) {
            Ok(task) => drop(tokio::task::spawn_local(task.run(ask, reply))),
            Err(error) => reply.error(error),
        }
    }

    fn app_task(&mut self, name: &Name, ask: &AppRequest, peer: Peer) -> Result<Task, ApiError> {
        let spec = |name: &str| self.units.values().find(|u| *u.name == *name).map(|u| Arc::clone(&u.spec));
        let asked = spec(name).ok_or_else(|| super::control::unknown(name))?;
        let root = asked.root.clone().ok_or_else(|| {
            ApiError::new(ErrorCode::BadRequest, format!("{name} has no root, so it has no releases."))
                .hint(format!("Add root = \"/srv/{name}\" to its file, and `svctl update`."))
        })?;
        let services = self.services_of(&root);
        let lead = services.iter().find(|s| s.deploy.is_some()).unwrap_or(&asked).clone();
        if lead.name != asked.name {
            let why = format!("{name} is deployed together with {}, whose file has [deploy].", lead.name);
            return Err(ApiError::new(ErrorCode::BadRequest, why).hint(format!("Name {} instead.", lead.name)));
        }
        if self.machine.is_shutting_down() && !ask.is_read() {
            let why = format!("{name}: svd is about to end, and begins nothing of a deploy any more.");
            return Err(ApiError::new(ErrorCode::Unavailable, why));
        }
        let verb = if ask.is_read() { Verb::Status } else { Verb::Deploy };
        let access = self.directory.get().access;
        if let Some(other) = services.iter().find(|s| !access.allows(&peer, verb, &s.name)) {
            let why = format!(
                "{} may not use `{}` on {}, which is deployed together with {name}: no access rule grants it.",
                peer.label(),
                verb.as_str(),
                other.name
            );
            return Err(ApiError::new(ErrorCode::Forbidden, why));
        }
        Ok(self.task_of(&lead, &root, services, peer))
    }

    /// All that are deployed together.
    fn services_of(&self, root: &std::path::Path) -> Vec<Arc<Service>> {
        let members = self.units.values().filter(|u| !u.removed && u.spec.root.as_deref() == Some(root));
        let mut services: Vec<_> = members.map(|u| Arc::clone(&u.spec)).collect();
        services.sort_by(|a, b| a.name.cmp(&b.name));
        services
    }

    fn task_of(
        &mut self,
        lead: &Arc<Service>,
        root: &std::path::Path,
        services: Vec<Arc<Service>>,
        peer: Peer,
    ) -> Task {
        let name: Name = (&*lead.name).into();
        let access = self.directory.get().access;
        let may_deploy = services.iter().all(|s| access.allows(&peer, Verb::Deploy, &s.name));
        let (paths, boot) = (&self.around.paths, &self.boot);
        let mut books = self.releases.books.borrow_mut();
        let book = books.entry(name.clone()).or_insert_with(|| Rc::new(Book::new(&name, root, paths, boot)));
        if book.root != root {
            // Another place has other releases.
            *book = Rc::new(Book::new(&name, root, paths, boot));
        }
        Task {
            book: Rc::clone(book),
            services,
            deploy: deploy_of(lead),
            lead: Arc::clone(lead),
            layout: Layout::new(root),
            around: self.around.clone(),
            users: Arc::clone(&self.users),
            secrets: self.secrets_of_deploy(),
            root: nix::unistd::geteuid().is_root(),
            peer,
            may_deploy,
            calls: self.releases.calls.clone(),
            messages: self.messages.clone(),
            leases: Rc::clone(&self.releases.leases),
        }
    }
}

impl Task {
    async fn run(mut self, ask: AppRequest, mut reply: Reply) {
        if let Err(error) = self.look_ahead(&ask).await {
            return reply.error(error);
        }
        match ask {
            AppRequest::Status { configuration } => reply.finish(self.status(configuration).await),
            AppRequest::History { lines } => reply.finish(self.history(lines).await),
            AppRequest::Lock(wanted) => reply.finish(self.lock(wanted).await),
            AppRequest::Unlock(wanted) => reply.finish(self.unlock(wanted).await),
            AppRequest::Stage(wanted) => reply.finish(self.stage(wanted).await),
            AppRequest::Build(wanted) => {
                let result = self.build(wanted, &mut reply).await;
                reply.finish(result);
            }
            AppRequest::Step(wanted) => {
                let result = self.step(wanted, &mut reply).await;
                reply.finish(result);
            }
            AppRequest::Activate(wanted) => match self.activate(wanted, &mut reply).await {
                Ok(result) => reply.actions(&result),
                Err(error) => reply.error(error),
            },
            AppRequest::Renew(wanted) => reply.finish(self.renew(wanted).await),
            AppRequest::Confirm(wanted) => reply.finish(self.confirm(wanted).await),
            AppRequest::TakeBack(wanted) => match self.take_back(wanted, &mut reply).await {
                Ok(result) => reply.actions(&result),
                Err(error) => reply.error(error),
            },
            AppRequest::Prune(wanted) => reply.finish(self.prune(wanted).await),
            AppRequest::Journal { rollout } => match self.journal(rollout.as_deref()).await {
                Ok(journal) => reply.ok(&*journal),
                Err(error) => reply.error(error),
            },
            AppRequest::Append(wanted) => reply.finish(self.append(wanted).await),
        }
    }

    /// What a call is about, which whoever calls may change.
    ///
    /// # Errors
    /// He may not, or it is not here.
    async fn admitted(&self, theirs: &Fence, release: &str) -> Result<ReleaseId, ApiError> {
        let (id, theirs) = (release_id(release)?, fence(theirs));
        self.change(|app| {
            app.admit_change(book::now(), &theirs)?;
            app.releases.get(&id).map(drop).ok_or_else(|| Refusal::Unknown(id.clone()))
        })
        .await?;
        Ok(id)
    }

    /// Marks the app as busy until the result is dropped.
    ///
    /// # Errors
    /// It is busy.
    fn begin(&self, what: &'static str) -> Result<Busy, ApiError> {
        if let Some(other) = self.book.busy.get() {
            return Err(self.refused(Refusal::Busy(other)));
        }
        self.book.busy.set(Some(what));
        Ok(Busy { book: Rc::clone(&self.book), leases: Rc::clone(&self.leases) })
    }

    fn failed(&self, why: impl std::fmt::Display) -> ApiError {
        ApiError::new(ErrorCode::Failed, format!("{}: {why}.", self.book.name))
    }

    fn troubled(&self, trouble: &book::Trouble) -> ApiError {
        match trouble {
            book::Trouble::Said(why) => self.failed(why),
            // Whether it is done is not known, as after a connection that is lost.
            book::Trouble::Hangs(_) => {
                let why = format!("{}: {trouble}; what was asked for may still be done.", self.book.name);
                ApiError::new(ErrorCode::Unavailable, why)
            }
        }
    }

    fn refused(&self, refusal: Refusal) -> ApiError {
        let name = &self.book.name;
        let error = |code, text: String| ApiError::new(code, text);
        match refusal {
            Refusal::Locked(lock) => {
                let since = humantime::format_duration(std::time::Duration::from_secs(
                    book::seconds().saturating_sub(lock.since),
                ));
                let why = if lock.message.is_empty() { String::new() } else { format!(": {}", lock.message) };
                error(ErrorCode::Locked, format!("{name} is locked by {}, for {since}{why}.", lock.holder))
                    .hint(format!("Wait, or break it: `svctl unlock {name} --force`."))
            }
            Refusal::Held(why) => error(ErrorCode::Locked, format!("{name}: {why}."))
                .hint(format!("`svctl attach {name}` shows it; `svctl resume {name}` or `svctl abort {name}` settles it.")),
            Refusal::Fenced { highest } => error(
                ErrorCode::Fenced,
                format!(
                    "{name}: another rollout has had the lock since ({}, number {}); this one changes nothing any more.",
                    highest.rollout, highest.number
                ),
            )
            .details(vec![highest.number.to_string().into()]),
            Refusal::NotLocked => {
                error(ErrorCode::NotLocked, format!("{name}: the lock has run out, or was given back."))
                    .hint("Take it again; what was begun can be gone on with: `svctl resume`.")
            }
            Refusal::Busy(what) => {
                error(ErrorCode::Busy, format!("{name}: {what}; try again when that is done."))
            }
            Refusal::Unknown(id) => {
                ApiError::new(ErrorCode::UnknownRelease, format!("{name}: there is no release {id} on this host."))
                    .hint(format!("`svctl releases {name}` lists them."))
            }
            Refusal::Not(why) => error(ErrorCode::Conflict, format!("{name}: {why}.")),
        }
    }

    async fn change<T>(&self, change: impl FnOnce(&mut app::App) -> Result<T, Refusal>) -> Result<T, ApiError> {
        let refuse = |app: &mut app::App| change(app).map_err(|refusal| self.refused(refusal));
        let result = self.book.change(refuse, |trouble| self.troubled(&trouble)).await;
        self.leases.notify_one();
        result
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        request: Request,
        reply: Option<&mut Reply>,
    ) -> Result<T, ApiError> {
        let mut reply = reply;
        internal::ask(&self.calls, request, &mut |line: &Progress| {
            if let Some(reply) = reply.as_mut() {
                reply.progress(line);
            }
        })
        .await
    }

    fn say(&self, reply: &mut Reply, step: &str, text: impl Into<Box<str>>) {
        reply.progress(&Progress::now(Some(&self.book.name), step, text));
    }

    /// For people: the user that svd knows.
    fn who(&self) -> String {
        self.peer.label()
    }

    /// The same, and whom the client says it acts for, where that is what took the lock.
    fn on_behalf(&self, fence: &Fence) -> String {
        let who = self.who();
        let lock = self.book.app().lock.as_ref().filter(|lock| shown(&lock.fence) == *fence).map(|l| l.holder.clone());
        // Whoever else carries its fence answers for himself.
        lock.filter(|holder| holder.strip_prefix(&*who).is_some_and(|rest| rest.starts_with(" (for ")))
            .map_or(who, Into::into)
    }

    async fn tell(&self, fence: &Fence, what: &str, release: Option<&str>, detail: &str) {
        self.book.tell(book::entry(&self.on_behalf(fence), &fence.rollout, what, release, detail)).await;
    }
}

fn deploy_of(lead: &Service) -> Deploy {
    lead.deploy.as_deref().cloned().unwrap_or_else(Deploy::standard)
}

fn fence(fence: &Fence) -> app::Fence {
    app::Fence { number: fence.number, rollout: fence.rollout.clone() }
}

fn shown(fence: &app::Fence) -> Fence {
    Fence { number: fence.number, rollout: fence.rollout.clone() }
}

fn release_id(text: &str) -> Result<ReleaseId, ApiError> {
    ReleaseId::new(text).map_err(|why| ApiError::new(ErrorCode::BadRequest, format!("{why}.")))
}
