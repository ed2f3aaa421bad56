//! All services of an app to another release, together or not at all; and back, asked for or when a lease has run out.

use super::book::{Book, now};
use super::stage::lease;
use super::{Releases, Task, fence, release_id};
use crate::api::apps::{ActivateOptions, AppService, Fence, TakeBackOptions};
use crate::api::request::{Name, Standby};
use crate::api::types::{ActionResult, ApiError, ErrorCode, ServiceResult, ServiceState};
use crate::api::{Peer, Reply, Request};
use crate::daemon::host::{Host, Message};
use crate::release::ReleaseId;
use crate::release::app::{App, Expired, Moment, Refusal, Switch, Wanted};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

/// After a way back that failed.
const AGAIN: Duration = Duration::from_secs(30);

/// From one release to another.
struct Way<'a> {
    to: &'a ReleaseId,
    from: Option<&'a ReleaseId>,
    /// Of what they come from.
    configuration: Option<&'a str>,
    standby: Standby,
    fence: &'a Fence,
    /// For the history.
    detail: &'a str,
}

/// What became of the services, as far as they were touched.
struct Switched {
    results: Vec<ServiceResult>,
    /// Why not all are where they should be.
    failed: Option<ApiError>,
}

impl Task {
    pub async fn activate(&self, wanted: ActivateOptions, reply: &mut Reply) -> Result<ActionResult, ApiError> {
        let to = release_id(&wanted.release)?;
        let theirs = fence(&wanted.fence);
        let until = now().after(lease(wanted.lease_seconds)?);
        let _busy = self.begin("its services are being switched to another release")?;
        let services = self.running().await?;
        let given = self.given(&wanted, &to).await?;
        let changed = given.shown();
        let again = |app: &App| match &app.trial {
            Some(trial) => trial.release == to && trial.fence == theirs,
            // It is confirmed already: there is nothing to try.
            None => app.confirmed.as_ref() == Some(&to) && changed.is_empty(),
        };
        let there = |s: &AppService| !waits(s.state) && (!s.state.counts_as_running() || is_at(s, &to));
        if again(&self.book.app()) && services.iter().all(there) {
            // Asked again, after an answer that was lost.
            self.change(|app| app.renew(now(), &theirs, until)).await?;
            let known = |s: &AppService| ServiceResult::done(&s.name, false, format!("{to} runs already"));
            return Ok(ActionResult { services: services.iter().map(known).collect() });
        }
        let standby = match self.deploy.standby {
            _ if wanted.rollback.is_some() => Standby::Recall,
            Some(keep) => Standby::Keep(keep),
            None => Standby::Nothing,
        };
        let configurations = Some(given.names.clone());
        let how = Wanted { until, holds: wanted.holds, rollback: wanted.rollback, configurations };
        let from = self
            .change(|app| {
                app.begin_switch(now(), &theirs, &to, how)?;
                Ok::<_, Refusal>(app.switch.as_ref().and_then(|s| s.from.clone()))
            })
            .await?;
        let behind = self.give(given.to).await;
        let detail = if changed.is_empty() { changed } else { format!("with another configuration: {changed}") };
        let way = Way {
            to: &to,
            from: from.as_ref(),
            configuration: Some(&given.names.from),
            standby,
            fence: &wanted.fence,
            detail: &detail,
        };
        self.carry_out(way, &services, &behind, reply).await
    }

    /// Brings the services to a release, or back if that fails; the switch is at its end then.
    async fn carry_out(
        &self,
        way: Way<'_>,
        services: &[AppService],
        behind: &BTreeSet<Box<str>>,
        reply: &mut Reply,
    ) -> Result<ActionResult, ApiError> {
        let Way { to, from, configuration, standby, fence, detail } = way;
        let mut switched = self.forward(services, to, standby, behind, reply).await;
        let Some(error) = switched.failed.take() else {
            self.end_switch(Ok(())).await?;
            self.tell(fence, "activated", Some(to.as_str()), detail).await;
            return Ok(ActionResult { services: switched.results });
        };
        self.say(reply, "taking-back", format!("{to} is taken back: {}", error.message));
        let back = self.back(services, from, configuration, reply).await;
        let why: Box<str> = error.message.clone();
        self.end_switch(Err(why.clone())).await?;
        self.tell(fence, "failed", Some(to.as_str()), &why).await;
        Err(match back {
            Ok(()) => error,
            Err(also) => ApiError {
                message: format!("{} And the way back failed: {}", error.message, also.message).into(),
                ..error
            },
        })
    }

    pub async fn take_back(&self, wanted: TakeBackOptions, reply: &mut Reply) -> Result<ActionResult, ApiError> {
        let theirs = fence(&wanted.fence);
        let _busy = self.begin("its services are being switched to another release")?;
        let failed = wanted.failed.then_some(&*wanted.reason);
        let switch = self
            .change(|app| {
                app.admit_change(now(), &theirs)?;
                app.begin_return(failed)
            })
            .await?;
        match switch {
            Some(switch) => self.finish_return(&switch, &wanted.fence, &wanted.reason, reply).await,
            None => Ok(ActionResult::default()),
        }
    }

    /// The services follow what was decided.
    async fn finish_return(
        &self,
        switch: &Switch,
        fence: &Fence,
        why: &str,
        reply: &mut Reply,
    ) -> Result<ActionResult, ApiError> {
        let services = self.running().await?;
        let configuration = switch.configurations.as_ref().map(|c| &*c.to);
        let result = self.back(&services, switch.to.as_ref(), configuration, reply).await;
        let text = result.as_ref().err().map(|error| error.message.clone());
        self.end_switch(text.clone().map_or(Ok(()), Err)).await?;
        let release = switch.from.as_ref().map(ReleaseId::as_str);
        match (&result, text) {
            (Err(_), Some(also)) => {
                self.change(|app| {
                    app.postpone(now().after(AGAIN));
                    Ok(())
                })
                .await?;
                self.tell(fence, "not taken back", release, &also).await;
            }
            _ => self.tell(fence, "taken back", release, why).await,
        }
        result?;
        let to = switch.to.as_ref().map_or("nothing", ReleaseId::as_str);
        let done = |s: &AppService| ServiceResult::done(&s.name, true, format!("back at {to}"));
        Ok(ActionResult { services: services.iter().map(done).collect() })
    }

    async fn end_switch(&self, result: Result<(), Box<str>>) -> Result<(), ApiError> {
        self.change(|app| {
            app.switched(result);
            Ok(())
        })
        .await
    }

    /// One service after the other; the first that fails ends it.
    ///
    /// `behind`: those that run by another configuration than the one in force.
    async fn forward(
        &self,
        services: &[AppService],
        to: &ReleaseId,
        standby: Standby,
        behind: &BTreeSet<Box<str>>,
        reply: &mut Reply,
    ) -> Switched {
        let mut switched = Switched { results: Vec::new(), failed: None };
        for service in services.iter().filter(|s| s.state.counts_as_running()) {
            if is_at(service, to) && !behind.contains(&service.name) {
                switched.results.push(ServiceResult::done(&service.name, false, format!("{to} runs already")));
                continue;
            }
            let reload = reload(&service.name, to, standby);
            match self.one(reload, reply).await {
                Ok(result) => switched.results.push(result),
                Err(error) => return Switched { failed: Some(error), ..switched },
            }
        }
        if let Err(why) = self.name_current(Some(to)).await {
            return Switched { failed: Some(why), ..switched };
        }
        // What could not run before may be able to now.
        for service in services.iter().filter(|s| waits(s.state)) {
            match self.one(Request::Restart { services: vec![service.name.clone()] }, reply).await {
                Ok(result) => switched.results.push(result),
                Err(error) => return Switched { failed: Some(error), ..switched },
            }
        }
        let stopped = services.iter().filter(|s| !s.state.counts_as_running() && !waits(s.state));
        switched.results.extend(
            stopped.map(|s| {
                ServiceResult::done(&s.name, false, format!("it is {}, and starts with {to}", s.state.as_str()))
            }),
        );
        switched
    }

    /// Whatever runs another release goes back; one that fails does not keep the others from it.
    ///
    /// # Errors
    /// The first one's.
    async fn back(
        &self,
        services: &[AppService],
        to: Option<&ReleaseId>,
        configuration: Option<&str>,
        reply: &mut Reply,
    ) -> Result<(), ApiError> {
        let behind = self.give_back(configuration).await;
        let mut first = self.name_current(to).await.err();
        // As they are now: some may never have been touched.
        let running = self.running().await?;
        for service in services {
            let Some(now) = running.iter().find(|s| s.name == service.name) else { continue };
            let up = now.state.counts_as_running();
            let request = match to {
                // One that is on its way elsewhere is called back by another reload.
                Some(to)
                    if up
                        && (now.state == ServiceState::Reloading || !is_at(now, to) || behind.contains(&now.name)) =>
                {
                    reload(&service.name, to, Standby::Recall)
                }
                Some(_) if waits(now.state) => Request::Restart { services: vec![service.name.clone()] },
                // There was nothing before.
                None if up => Request::Stop { services: vec![service.name.clone()] },
                _ => continue,
            };
            if let Err(error) = self.one(request, reply).await {
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }

    async fn name_current(&self, to: Option<&ReleaseId>) -> Result<(), ApiError> {
        let (layout, to) = (self.layout.clone(), to.cloned());
        super::book::on_disk(move || layout.switch(to.as_ref())).await.map_err(|why| self.failed(why))
    }

    async fn one(&self, request: Request, reply: &mut Reply) -> Result<ServiceResult, ApiError> {
        let result: ActionResult = self.ask(request, Some(reply)).await?;
        let result = result.services.into_iter().next();
        let gone = || ApiError::new(ErrorCode::UnknownService, "The service is gone.");
        let mut result = result.ok_or_else(gone)?;
        match result.error.take() {
            Some(error) => Err(error),
            None => Ok(result),
        }
    }

    /// svd was killed in a switch, or a lease has run out: nobody asks, and nobody is told but the journal.
    async fn by_itself(self, matter: Matter) {
        // Whatever keeps it from its end (a full disk), or from being begun: it is looked at again.
        self.book.not_before(now().after(AGAIN));
        let Ok(busy) = self.begin("a release is being taken back") else { return };
        let result = match matter {
            Matter::Died => self.change(|app| Ok(app.settle_switch())).await,
            Matter::Lease => self.expired().await,
        };
        let Ok(Some(switch)) = result.inspect_err(|error| tracing::error!("{error}")) else { return };
        if !switch.back {
            return self.go_on(&switch).await;
        }
        let why = match matter {
            Matter::Died => "svd was killed in the switch, or could not write down how it ended",
            Matter::Lease => "its lease has run out: nobody has confirmed it in time",
        };
        let from = switch.from.as_ref().map_or("what runs", ReleaseId::as_str);
        self.announce(format!("{from} is taken back: {why}")).await;
        let fence = super::shown(&self.book.app().fence);
        let mut reply = Reply::unheard();
        if let Err(error) = self.finish_return(&switch, &fence, why, &mut reply).await {
            self.announce(format!("{from} could not be taken back: {}", error.message)).await;
        }
        drop(busy);
    }

    /// A switch from which there is no way back.
    async fn go_on(&self, switch: &Switch) {
        let Some(to) = &switch.to else { return };
        self.announce(format!(
            "{to} is gone on with: svd was killed in the switch, and the release before does not work with a migration that has run"
        ))
        .await;
        let fence = super::shown(&self.book.app().fence);
        let (given, before) = match &switch.configurations {
            Some(names) => (Some(&*names.to), Some(&*names.from)),
            None => (None, None),
        };
        let behind = self.give_back(given).await;
        let from = switch.from.as_ref();
        let (standby, detail) = (Standby::Nothing, "after a death of svd");
        let way = Way { to, from, configuration: before, standby, fence: &fence, detail };
        let done = match self.running().await {
            Ok(services) => self.carry_out(way, &services, &behind, &mut Reply::unheard()).await,
            Err(error) => Err(error),
        };
        if let Err(error) = done {
            self.announce(format!("{to} could not be gone on with: {}", error.message)).await;
        }
    }

    async fn expired(&self) -> Result<Option<Switch>, ApiError> {
        let expired = self.change(|app| {
            Ok(match app.expire(now()) {
                Expired::TakeBack => (app.begin_return(None)?, None),
                Expired::Holds(text) => (None, Some(text)),
                Expired::Nothing => (None, None),
            })
        });
        let (switch, alert) = expired.await?;
        if let Some(text) = alert {
            self.announce(text).await;
        }
        Ok(switch)
    }

    pub async fn announce(&self, text: String) {
        // svd is about to end: the next one says it again.
        let _ = self.messages.send(Message::OfApp { app: self.book.name.clone(), text }).await;
    }
}

/// Why something is done that nobody asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matter {
    /// Nobody carries a switch of the services out any more: svd was killed in it, or its end could not be written down.
    Died,
    /// A lease may have run out.
    Lease,
}

/// On the way back, nothing that drains still is in the way: where that is too much, the oldest of it is ended.
fn reload(name: &Name, to: &ReleaseId, standby: Standby) -> Request {
    let force = standby == Standby::Recall;
    Request::Reload { services: vec![name.clone()], release: Some(to.as_str().into()), force, standby }
}

fn is_at(service: &AppService, release: &ReleaseId) -> bool {
    service.release.as_deref() == Some(release.as_str())
}

/// It would run if it could.
fn waits(state: ServiceState) -> bool {
    matches!(state, ServiceState::Failed | ServiceState::Backoff | ServiceState::Waiting | ServiceState::Exited)
}

/// Tells the loop of each lease that ends.
async fn watch(books: Rc<RefCell<BTreeMap<Name, Rc<Book>>>>, leases: Rc<Notify>, messages: mpsc::Sender<Message>) {
    loop {
        let ends: Vec<(Moment, Matter, Name)> = {
            let books = books.borrow();
            let due = books.values().filter_map(|book| Some((book.due()?, book.name.clone())));
            due.map(|((end, matter), name)| (end, matter, name)).collect()
        };
        let Some(first) = ends.iter().map(|(end, ..)| *end).min() else {
            leases.notified().await;
            continue;
        };
        let left = Duration::from_millis(first.0.saturating_sub(now().0));
        if !left.is_zero() {
            // Awoken too early after a sleep of the machine, it looks again.
            let _ = tokio::time::timeout(left, leases.notified()).await;
            continue;
        }
        for (_, matter, app) in ends.into_iter().filter(|(end, ..)| *end <= now()) {
            if messages.send(Message::Lease { app, matter }).await.is_err() {
                return;
            }
        }
        // Whatever comes of it changes the book, which says so.
        let _ = tokio::time::timeout(AGAIN, leases.notified()).await;
    }
}

impl Releases {
    /// What the disk has of it stays.
    fn forget(&self, app: &Name) {
        self.books.borrow_mut().remove(app);
    }

    /// Begins to watch the leases, and the switches that an earlier svd was killed in.
    pub fn begin(&self, messages: mpsc::Sender<Message>) {
        let watched = watch(Rc::clone(&self.books), Rc::clone(&self.leases), messages);
        drop(tokio::task::spawn_local(watched));
    }
}

impl Host {
    /// The services are all there.
    pub fn begin_releases(&mut self) {
        self.releases.begin(self.messages.clone());
    }

    pub fn handle_lease(&mut self, app: &Name, matter: Matter) {
        let found = self.units.values().find(|u| *u.name == **app).map(|u| std::sync::Arc::clone(&u.spec));
        let Some((lead, root)) = found.and_then(|spec| Some((spec.clone(), spec.root.clone()?))) else {
            self.releases.forget(app);
            return self.warn(None, &format!("{app}: a lease has run out, and there is no such service any more"));
        };
        let services = self.services_of(&root);
        let itself = Peer { user: "svd".into(), ..Peer::nobody() };
        let task = self.task_of(&lead, &root, services, itself);
        drop(tokio::task::spawn_local(task.by_itself(matter)));
    }

    pub fn handle_of_app(&mut self, app: &Name, text: &str) {
        let service = self.machine.named(app).map(|s| s.id);
        self.warn(service, text);
    }
}
