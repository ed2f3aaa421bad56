//! A new configuration, applied to what differs (SIGHUP, `svctl update`). With any error nothing changes (I8).

use super::boot::control_mode;
use super::homes::{self, Missing};
use super::host::{Host, Message};
use super::state::Key;
use super::unit::Unit;
use crate::api::Reply;
use crate::api::access::Access;
use crate::api::server::Directory;
use crate::api::types::{ApiError, Change as Shown, ChangeAction, ErrorCode, UpdateResult};
use crate::config::diff::{self, Change, Needs};
use crate::config::spec::{Config, Daemon, Service};
use crate::config::{self, Diagnostics};
use crate::core::{self, Awaited, Command, Event, OpId, Phase, Policy, ServiceId, Setup};
use crate::sys::socket::UnixOptions;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

/// Changes that an event names.
const APPLIED_SHOWN: usize = 20;
/// Into a changed file, whatever drains still.
const RELOAD: Command = Command::Reload { release: None, force: true, keep: None, recall: None };
/// Updates that wait.
const UPDATES: usize = 64;

impl Host {
    /// Reads the configuration in the pool; [`Host::handle_loaded`] goes on. One at a time, so that what was read
    /// first is not applied last.
    pub fn update(&mut self, dry_run: bool, reply: Reply) {
        if self.updates.len() >= UPDATES {
            let why = format!("{UPDATES} updates wait already: the configuration's disk may hang.");
            return reply.error(ApiError::new(ErrorCode::Unavailable, why));
        }
        self.updates.push_back((dry_run, reply));
        if self.updates.len() == 1 {
            self.load();
        }
    }

    fn load(&mut self) {
        let paths = self.around.paths.clone();
        let messages = self.messages.clone();
        tokio::task::spawn_local(async move {
            let shown = paths.config.display().to_string();
            let failed = |why: String| {
                let why = format!("cannot be read: {why}");
                Err(Diagnostics(vec![config::Diagnostic::of_file(&shown, why)]))
            };
            let load = move || {
                let config = paths.load();
                let homes = config.as_ref().map(|config| homes::missing(&paths, config)).unwrap_or_default();
                (config, homes)
            };
            let (config, homes) = match crate::sys::blocking::start(load) {
                Ok(loaded) => {
                    loaded.await.unwrap_or_else(|_| (failed("svd's own task failed".into()), Missing::default()))
                }
                Err(e) => (failed(super::pool::no_thread(e)), Missing::default()),
            };
            let _ = messages.send(Message::Loaded(config, homes)).await;
        });
    }

    pub fn handle_loaded(&mut self, config: Result<Config, Diagnostics>, homes: &Missing) {
        if let Some((dry_run, reply)) = self.updates.pop_front() {
            self.loaded(config, homes, dry_run, reply);
        }
        if !self.updates.is_empty() {
            self.load();
        }
    }

    fn configuration(&self) -> Config {
        // One that is on its way out is not there any more: its file may come back before it has stopped.
        let services =
            self.units.values().filter(|u| !u.removed).map(|u| ((&*u.name).into(), Arc::clone(&u.spec))).collect();
        Config { daemon: self.daemon.clone(), services, warnings: Vec::new() }
    }

    fn loaded(&mut self, config: Result<Config, Diagnostics>, homes: &Missing, dry_run: bool, reply: Reply) {
        let (new, held_back) = match config {
            Ok(mut new) => {
                let held_back = self.releases.hold_back(&mut new);
                (new, held_back)
            }
            Err(errors) => {
                let count = config::counted(errors.0.len(), "error");
                self.warn(None, &format!("the configuration has {count}; nothing is changed:\n{errors}"));
                let details = errors.0.iter().map(|e| e.to_string().into()).collect();
                let error = ApiError::new(
                    ErrorCode::BadConfiguration,
                    format!("The configuration has {count}; nothing was changed."),
                )
                .hint("Mend them; `svctl check` shows them without svd.")
                .details(details);
                return reply.error(error);
            }
        };
        let changes = diff::difference(&self.configuration(), &new);
        let refused = self.refused(&new, homes, &changes);
        if !refused.is_empty() {
            let count = config::counted(refused.len(), "key");
            self.warn(
                None,
                &format!(
                    "this host lacks what {count} of the configuration ask for; nothing is changed: {}",
                    refused.join("; ")
                ),
            );
            let why = format!("This host lacks what {count} of the configuration ask for; nothing was changed.");
            let details = refused.into_iter().map(Into::into).collect();
            return reply.error(ApiError::new(ErrorCode::BadConfiguration, why).details(details));
        }
        let shown: Vec<Shown> = changes.iter().filter_map(|change| show(change, &new)).collect();
        let mut result = UpdateResult {
            changed: !changes.is_empty(),
            dry_run,
            changes: shown,
            services: Vec::new(),
            notes: new.warnings.iter().map(|w| w.line().into()).collect(),
        };
        if new.daemon.http != self.daemon.http {
            result.notes.push("[http] listen takes effect with the next svd: `svctl upgrade` goes on with one, and touches no service.".into());
        }
        if new.daemon.control != self.daemon.control {
            result.notes.push("[control] mode and group take effect when svd is started anew.".into());
        }
        result.notes.extend(held_back);
        result.notes.extend(self.behind(&result.changes));
        result.notes.extend(self.left_out(&new, &result.changes));
        if dry_run || changes.is_empty() {
            return reply.ok(&result);
        }
        self.info(None, &applied(&result.changes));
        let call = self.begin_call(reply);
        if let Some(pending) = self.calls.get_mut(&call) {
            pending.update = Some(result);
            let order = pending.order;
            self.note_applied(order);
        }
        self.releases.overruled(&changes);
        self.apply(new, &changes, Some(call));
        self.finish_call(call);
    }

    /// What the services that are new or changed ask for, and this host cannot do.
    fn refused(&self, new: &Config, homes: &Missing, changes: &[Change]) -> Vec<String> {
        let touched = || {
            changes.iter().filter_map(|change| match change {
                Change::Added { service } | Change::Changed { service, .. } => new.services.get(service),
                Change::Removed { .. } | Change::Daemon { .. } => None,
            })
        };
        let mut refused = self.around.features.refused(touched().map(|spec| &**spec));
        refused.extend(touched().filter_map(|spec| homes.get(&*spec.name).cloned()));
        refused
    }

    /// What those that are new or changed may lack, and do.
    fn left_out(&self, new: &Config, changes: &[Shown]) -> Vec<Box<str>> {
        let touched = changes.iter().filter_map(|change| new.services.get(&change.service));
        let of = |spec: &Arc<Service>| {
            let all = self.around.features.left_out(spec);
            all.into_iter().map(|what| format!("{}: {what}", spec.name).into()).collect::<Vec<Box<str>>>()
        };
        touched.flat_map(of).collect()
    }

    /// Of services that `changes` do not touch: those whose processes do not have the configuration that is in force.
    fn behind(&self, changes: &[Shown]) -> Vec<Box<str>> {
        let touched = |name: &str| changes.iter().any(|change| &*change.service == name);
        let services = self.machine.services().filter(|service| !touched(&service.name));
        let note = |name: &str| format!("{name} {}", behind(name)).into();
        services.filter(|service| self.is_behind(service)).map(|service| note(&service.name)).collect()
    }

    /// A reload into the changed configuration has failed, and what ran before goes on as it was.
    pub fn is_behind(&self, service: &core::Service) -> bool {
        let settled = service.state(self.machine.workers()) != core::State::Reloading;
        let committed = service.committed().filter(|_| settled).and_then(|g| self.generations.get(&g.id));
        let (Some(unit), Some(made)) = (self.units.get(&service.id), committed) else { return false };
        let needs = diff::needs(&made.plan.spec, &unit.spec);
        let behind = needs.is_some_and(|needs| !matches!(to_core(&unit.spec, needs), core::Change::Live));
        // What it would start may still be looked at.
        behind && !self.ops.values().any(|op| op.service == service.id && op.failure.is_none())
    }

    /// Applies a configuration that is valid as a whole.
    pub fn apply(&mut self, new: Config, changes: &[Change], call: Option<u64>) {
        let (mut add, mut change, mut remove) = (Vec::new(), Vec::new(), Vec::new());
        let mut reload = Vec::new();
        for one in changes {
            match one {
                Change::Daemon { .. } => {
                    self.open_to_others(&new.daemon);
                    self.daemon = new.daemon.clone();
                    self.state.mark(Key::Head);
                }
                Change::Added { service } => {
                    if let Some(spec) = new.services.get(service) {
                        add.push(self.add(spec, call));
                    }
                }
                Change::Removed { service } => {
                    if let Some(id) = self.machine.named(service).map(|s| s.id) {
                        remove.push((id, self.op(call, id, service, "removed", Awaited::Stopped)));
                        if let Some(unit) = self.units.get_mut(&id) {
                            unit.removed = true;
                            self.state.mark(Key::Unit(id));
                        }
                    }
                }
                Change::Changed { service, needs, .. } => {
                    if let (Some(id), Some(spec)) =
                        (self.machine.named(service).map(|s| s.id), new.services.get(service))
                    {
                        self.change(id, spec, *needs, call);
                        let (policy, needed) = (Rc::new(Policy::new(spec)), to_core(spec, *needs));
                        if needed == core::Change::Reload && self.stopped_first(id).is_some() {
                            change.push((id, policy, core::Change::Next, None));
                            reload.push((id, self.reload_op(call, id, service)));
                        } else {
                            let op = self.op(call, id, service, "updated", self.awaited(id, needed));
                            change.push((id, policy, needed, op));
                        }
                    }
                }
            }
        }
        self.tell(Event::Configure { add, change, remove });
        self.watch_limits();
        reload.into_iter().for_each(|(id, op)| self.give(op, id, RELOAD));
        self.publish_directory();
        self.trim.wanted(Instant::now());
    }

    /// Gives services another configuration, of which nothing is started anew: what needs new processes is the next generation's.
    pub fn reconfigure(&mut self, specs: &BTreeMap<Box<str>, Arc<Service>>) {
        let mut change = Vec::new();
        for (name, spec) in specs {
            let Some(id) = self.machine.named(name).map(|s| s.id) else { continue };
            let Some(unit) = self.units.get(&id).filter(|unit| !unit.removed) else { continue };
            let Some(needs) = diff::needs(&unit.spec, spec) else { continue };
            if needs == Needs::Restart {
                let why =
                    "keeps its configuration: its sockets are others since, and only a stop and a start changes that";
                self.warn(Some(id), why);
                continue;
            }
            self.change(id, spec, needs, None);
            let needed = match to_core(spec, needs) {
                core::Change::Live => core::Change::Live,
                _ => core::Change::Next,
            };
            change.push((id, self.policy(spec), needed, None));
        }
        if !change.is_empty() {
            self.tell(Event::Configure { add: Vec::new(), change, remove: Vec::new() });
        }
    }

    fn op(
        &mut self,
        call: Option<u64>,
        id: ServiceId,
        name: &str,
        done: &'static str,
        awaited: Awaited,
    ) -> Option<OpId> {
        call.map(|call| self.begin_op(call, id, name, done, awaited, None))
    }

    /// The same, for a reload that the state machine is told of by itself.
    fn reload_op(&mut self, call: Option<u64>, id: ServiceId, name: &str) -> Option<OpId> {
        let awaited = self.machine.awaited(id, &RELOAD);
        call.map(|call| self.begin_op(call, id, name, "updated", awaited, Some(RELOAD)))
    }

    /// When a changed file is in force.
    fn awaited(&self, id: ServiceId, change: core::Change) -> Awaited {
        let runs = self.machine.service(id).is_some_and(|s| s.phase == Phase::Active);
        match change {
            core::Change::Reload if runs => Awaited::Replaced { before: self.machine.committed_number(id) },
            core::Change::Restart if runs => Awaited::Running,
            _ => Awaited::Nothing,
        }
    }

    /// With the first access rule others may connect, and no more when the last one goes; with a mode of the file's own, at svd's
    /// next start.
    fn open_to_others(&mut self, new: &Daemon) {
        let mode = control_mode(new);
        if new.control != self.daemon.control || mode == control_mode(&self.daemon) {
            return;
        }
        let options = UnixOptions { mode, owner: None, group: None, backlog: 0 };
        let path = self.around.paths.socket();
        if let Err(e) = crate::sys::socket::change_unix(&path, options) {
            let path = path.display();
            self.warn(None, &format!("cannot let those connect to {path} who have rights now: {}", e.desc()));
        }
    }

    fn add(&mut self, spec: &Arc<Service>, call: Option<u64>) -> Setup {
        self.last_service += 1;
        let service = ServiceId(self.last_service);
        let name = Arc::clone(&spec.name);
        let enabled = self.store.enabled(&name, spec.autostart);
        let unit = Unit {
            spec: Arc::clone(spec),
            name: Arc::clone(&name),
            sockets: Vec::new(),
            enabled,
            drained: false,
            removed: false,
            scaled: None,
            health: None,
            kept: None,
            secrets: None,
        };
        self.configure_logs(&unit);
        self.units.insert(service, Box::new(unit));
        self.state.mark(Key::Head);
        self.state.mark(Key::Spec(service));
        self.state.mark(Key::Unit(service));
        let op = if enabled { self.op(call, service, &name, "started", Awaited::Running) } else { None };
        Setup {
            service,
            name: spec.name.clone(),
            policy: self.policy(spec),
            start: enabled,
            last_generation: self.store.last_generation(&name),
            op,
        }
    }

    /// Many services have the same policy: they share it.
    fn policy(&mut self, spec: &Service) -> Rc<Policy> {
        let policy = Policy::new(spec);
        match &self.last_policy {
            Some(last) if **last == policy => Rc::clone(last),
            _ => Rc::clone(self.last_policy.insert(Rc::new(policy))),
        }
    }

    pub fn configure_logs(&mut self, unit: &Unit) {
        if unit.spec.logs.capture
            && let Err(e) = self.logs.configure(Arc::clone(&unit.name), unit.spec.logs.clone())
        {
            self.warn(None, &format!("the logs of {} cannot be set up: {e}", unit.name));
        }
    }

    /// For the answer to an update.
    pub fn note(&mut self, call: Option<u64>, name: &str, text: &str) {
        let pending = call.and_then(|call| self.calls.get_mut(&call));
        if let Some(result) = pending.and_then(|pending| pending.update.as_mut()) {
            result.notes.push(format!("{name}: {text}").into());
        }
    }

    /// `call`: who asks, and is told what of it does not take effect.
    fn change(&mut self, id: ServiceId, spec: &Arc<Service>, needs: Needs, call: Option<u64>) {
        let old = self.units.get(&id).map(|unit| Arc::clone(&unit.spec.limits));
        self.state.mark(Key::Unit(id));
        self.mark_spec(id);
        if let Some(unit) = self.units.get_mut(&id) {
            let change = super::sockets::Change { old: Arc::clone(&unit.spec), new: Arc::clone(spec) };
            let logs = unit.spec.logs != spec.logs;
            let health = unit.spec.health != spec.health;
            let secrets = unit.spec.secrets != spec.secrets;
            if workers_of(&unit.spec) != workers_of(spec) {
                // The file's word is the later one now.
                unit.scaled = None;
            }
            unit.spec = Arc::clone(spec);
            unit.enabled = self.store.enabled(&spec.name, spec.autostart);
            if logs && spec.logs.capture {
                // Best effort: the log thread says itself when it is stuck.
                let _ = self.logs.configure(Arc::clone(&unit.name), spec.logs.clone());
            }
            let committed = self.machine.service(id).and_then(|s| s.committed()).map(|g| g.id);
            if let (true, Some(committed)) = (health, committed) {
                self.begin_health(committed);
            }
            if let (true, Some(committed)) = (secrets, committed) {
                self.watch_secrets(committed, false);
            }
            if needs != Needs::Restart {
                self.adjust_sockets(id, change);
            }
        }
        if let Some(old) = old.filter(|old| *old != spec.limits) {
            self.change_limits(id, old, spec, call);
        }
    }

    /// Tells the server which services there are, and who may what.
    pub fn publish_directory(&mut self) {
        self.deliver();
        self.directory.replace(directory(&self.machine, &self.daemon));
    }
}

pub fn to_core(spec: &Service, needs: Needs) -> core::Change {
    match needs {
        Needs::Nothing | Needs::Live => core::Change::Live,
        Needs::Scale if scales(spec) => core::Change::Live,
        Needs::Scale | Needs::Reload => core::Change::Reload,
        Needs::Restart => core::Change::Restart,
    }
}

fn workers_of(spec: &Service) -> Option<crate::config::spec::Workers> {
    match &spec.kind {
        crate::config::spec::Kind::Gunicorn { workers, .. } => Some(*workers),
        _ => None,
    }
}

/// The core gives a plain command more or fewer slots; gunicorn's number is its master's argument.
fn scales(spec: &Service) -> bool {
    matches!(spec.kind, crate::config::spec::Kind::Command { .. })
}

pub fn directory(machine: &core::Machine, daemon: &crate::config::spec::Daemon) -> Directory {
    let mut names: Vec<Box<str>> = machine.services().map(|s| (&*s.name).into()).collect();
    names.sort_unstable();
    // One may be on its way out while its successor is there.
    names.dedup();
    Directory {
        names: names.into(),
        access: Access { owner: nix::unistd::geteuid().as_raw(), rules: daemon.access.clone().into() },
        connections_per_user: daemon.control.connections_per_user,
    }
}

/// What is to be said of a service that [`Host::is_behind`].
pub fn behind(name: &str) -> String {
    format!("runs with the configuration that it had before: its reload failed; `svctl reload {name}` tries it again")
}

/// For the events: who sends SIGHUP is answered nowhere else.
fn applied(changes: &[Shown]) -> String {
    let one = |change: &Shown| format!("{} {}", change.action.as_str(), change.service);
    let shown: Vec<String> = changes.iter().take(APPLIED_SHOWN).map(one).collect();
    let more = match changes.len() - shown.len() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    match shown.is_empty() {
        true => "the changed configuration is applied".to_owned(),
        false => format!("the changed configuration is applied: {}{more}", shown.join(", ")),
    }
}

/// What is done to a service whose file now says this.
pub fn action(spec: &Service, needs: Needs) -> ChangeAction {
    match needs {
        Needs::Nothing | Needs::Live => ChangeAction::Adjust,
        Needs::Scale if scales(spec) => ChangeAction::Scale,
        Needs::Scale | Needs::Reload => ChangeAction::Reload,
        Needs::Restart => ChangeAction::Restart,
    }
}

fn show(change: &Change, new: &Config) -> Option<Shown> {
    let (service, action, keys) = match change {
        Change::Added { service } => (service.clone(), ChangeAction::Add, Vec::new()),
        Change::Removed { service } => (service.clone(), ChangeAction::Remove, Vec::new()),
        Change::Changed { service, keys, needs } => {
            let action = new.services.get(service).map_or(ChangeAction::Reload, |spec| action(spec, *needs));
            (service.clone(), action, keys.iter().map(|k| k.key.as_str().into()).collect())
        }
        Change::Daemon { .. } => return None,
    };
    Some(Shown { service, action, keys })
}
