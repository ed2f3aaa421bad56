//! Requests of the control socket, carried out. They are allowed and their names are resolved when they come here.

use super::host::Host;
use super::orders::Part;
use super::state::Key;
use crate::api::request::Name;
use crate::api::types::{
    ActionResult, ApiError, ErrorCode, PidEntry, PidList, ServiceResult, StatusList, Version, rfc3339,
};
use crate::api::{Call, Reply, Request};
use crate::core::{Awaited, Canary, Command, Event, Failure, GenerationId, OpId, ServiceId};
use crate::kinds;
use std::borrow::Cow;
use std::time::{Duration, SystemTime};

/// Bytes of a failed generation's output that its error quotes.
const QUOTED: usize = 8192;
/// How long the end of a failed generation is waited for, so that its last output is all there.
const LAST_WORDS: Duration = Duration::from_millis(1500);
/// Lines of it.
pub const QUOTED_LINES: usize = 30;

/// A call whose services are not all done.
pub struct Pending {
    pub reply: Reply,
    left: usize,
    results: Vec<ServiceResult>,
    /// The number of the order, if it changes something.
    pub order: Option<u64>,
    /// What it is called, if it was begun by an svd that was killed.
    pub outlived: Option<std::sync::Arc<str>>,
    /// Set for an update, which answers in a form of its own.
    pub update: Option<crate::api::types::UpdateResult>,
}

/// One service's part of a call.
pub struct Op {
    pub call: u64,
    pub service: ServiceId,
    name: Name,
    done: Cow<'static, str>,
    /// It has failed, and only its explanation is still fetched.
    pub failure: Option<Failure>,
}

impl Host {
    pub fn handle_call(&mut self, call: Call) {
        self.note_order(&call);
        let Call { peer, request, reply } = call;
        match request {
            Request::Status { services, full: false } => {
                let services = services.iter().filter_map(|n| self.row(n)).collect();
                reply.ok(&StatusList { services });
            }
            Request::Status { services, full: true } => self.answer_full(&services, reply),
            Request::Service { name } => self.answer_service(name, reply),
            Request::Inspect { name } => self.answer_inspection(name, reply),
            Request::Processes { name } => self.answer_processes(name, reply),
            Request::Configuration { name } => self.answer_configuration(name, reply),
            Request::Start { services } => self.each(services, reply, "running", |_, _| Command::Start),
            Request::Stop { services } => self.each(services, reply, "stopped", |_, _| Command::Stop),
            Request::Restart { services } => self.each(services, reply, "restarted", |_, _| Command::Restart),
            Request::Reload { services, release, force, standby } => {
                self.each(services, reply, "reloaded", |host, service| {
                    host.reload_command(service, release.clone(), force, standby)
                });
            }
            Request::Canary { services, release, workers, stay } => {
                self.canary(services, &Canary { release, workers, stay }, reply);
            }
            Request::Enable { services } => self.enable(&services, true, reply),
            Request::Disable { services } => self.enable(&services, false, reply),
            Request::Drain { services } => self.drain(&services, true, reply),
            Request::Undrain { services } => self.drain(&services, false, reply),
            Request::Scale { services, count } => self.scale(services, count, reply),
            Request::Signal { services, signal, worker } => self.signal(&services, signal, worker, reply),
            Request::Pid { services } => reply.ok(&self.pids(&services)),
            Request::Logs(request) => self.answer_logs(request, reply),
            Request::Events(request) => self.follow_events(request, reply),
            Request::Update { dry_run } => self.update(dry_run, reply),
            Request::Upgrade { binary, force } => self.upgrade(binary, force, reply),
            Request::Exec { services, what } => match &*services {
                [name] => self.exec(name, what, reply),
                _ => reply.error(ApiError::new(ErrorCode::BadRequest, "exec takes one service.")),
            },
            Request::App { name, ask } => self.app(&name, ask, peer, reply),
            Request::Version => reply.ok(&self.version()),
            Request::Shutdown { force } => match self.spare_steps(force) {
                Ok(()) => {
                    self.shut_down();
                    self.ending.push(reply);
                }
                Err(error) => reply.error(error),
            },
            Request::PublicHealth { name } => self.answer_health(name, reply),
            Request::Metrics => self.answer_metrics(reply),
        }
    }

    fn version(&self) -> Version {
        Version {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: self.keeper.pid(),
            since: rfc3339(self.since),
            since_seconds: SystemTime::now().duration_since(self.since).unwrap_or_default().as_secs(),
            image: self.image(),
            fallback: self.fallback.clone(),
            services: self.units.len() as u64,
            config: Some(self.around.paths.config.display().to_string().into()),
            limitations: self.limitations.clone(),
        }
    }

    /// Gives each service a command; the call is answered when all are done.
    fn each(
        &mut self,
        services: Vec<Name>,
        reply: Reply,
        done: &'static str,
        command: impl Fn(&Host, ServiceId) -> Command,
    ) {
        let call = self.begin_call(reply);
        for name in services {
            let Some(service) = self.machine.named(&name).map(|s| s.id) else {
                self.add_result(call, ServiceResult::failed(&name, unknown(&name)));
                continue;
            };
            let command = command(self, service);
            let awaited = self.machine.awaited(service, &command);
            let op = self.begin_op(call, service, &name, done, awaited, Some(command.clone()));
            self.give(Some(op), service, command);
        }
        self.finish_call(call);
    }

    pub fn begin_call(&mut self, reply: Reply) -> u64 {
        self.last_call += 1;
        // One more than there are services, until all have been given their command.
        let order = reply.record().map(|record| record.id);
        let pending = Pending { reply, left: 1, results: Vec::new(), order, outlived: None, update: None };
        self.calls.insert(self.last_call, pending);
        self.last_call
    }

    /// `command`: what the core is told; `None` where that is more than one service's.
    pub fn begin_op(
        &mut self,
        call: u64,
        service: ServiceId,
        name: &str,
        done: impl Into<Cow<'static, str>>,
        awaited: Awaited,
        command: Option<Command>,
    ) -> OpId {
        self.last_op += 1;
        let (op, done) = (OpId(self.last_op), done.into());
        self.ops.insert(op, Op { call, service, name: name.into(), done: done.clone(), failure: None });
        if let Some(pending) = self.calls.get_mut(&call) {
            pending.left += 1;
            let order = pending.order;
            self.note_part(order, op, Part::new(service, name, done, awaited, command));
        }
        op
    }

    pub fn add_result(&mut self, call: u64, result: ServiceResult) {
        if let Some(pending) = self.calls.get_mut(&call) {
            pending.results.push(result);
        }
    }

    /// One more part that the call, if there is one, waits for.
    pub fn add_part(&mut self, call: Option<u64>) {
        if let Some(pending) = call.and_then(|call| self.calls.get_mut(&call)) {
            pending.left += 1;
        }
    }

    /// One part of a call is done; the last one answers.
    pub fn finish_call(&mut self, call: u64) {
        let Some(pending) = self.calls.get_mut(&call) else { return };
        pending.left -= 1;
        if pending.left > 0 {
            return;
        }
        let Some(mut pending) = self.calls.remove(&call) else { return };
        pending.results.sort_by(|a, b| a.service.cmp(&b.service));
        match pending.update {
            Some(mut update) => {
                update.services = pending.results;
                pending.reply.ok(&update);
            }
            None => pending.reply.actions(&ActionResult { services: pending.results }),
        }
    }

    /// The core has answered an operation.
    pub fn handle_done(&mut self, id: OpId, result: Result<(), Failure>) {
        let Some(op) = self.ops.get_mut(&id) else { return };
        match result {
            Ok(()) => {
                let (call, name, done, service) = (op.call, op.name.clone(), op.done.clone(), op.service);
                self.ops.remove(&id);
                let mut result = ServiceResult::done(&name, true, &*done);
                result.state = self.state_of(service);
                let committed = self.machine.service(service).and_then(|s| s.committed()).map(|g| g.id);
                result.generation = committed.map(|g| g.number);
                result.release = committed.and_then(|g| self.generations.get(&g)?.plan.places.id.clone());
                self.tell_outlived(call, service, &result);
                self.tell_ordered(call, service, &done);
                self.add_result(call, result);
                self.finish_call(call);
            }
            Err(failure) => {
                let (service, generation) = (op.service, failure.generation);
                op.failure = Some(failure);
                self.explain(id, service, generation);
            }
        }
    }

    /// Fetches the last output of the generation that failed, then finishes the operation. It is known to have failed
    /// before it has written why (a traceback follows the report of it), so that its end is waited for a while.
    fn explain(&mut self, op: OpId, service: ServiceId, number: Option<u64>) {
        let name = self.units.get(&service).map(|u| u.name.clone());
        let (Some(name), Some(number)) = (name, number) else { return self.handle_explained(op, Vec::new()) };
        let ended = self.generations.get_mut(&GenerationId { service, number }).map(|generation| {
            let (tell, ended) = tokio::sync::oneshot::channel();
            generation.until_gone.push(tell);
            ended
        });
        let (logs, messages) = (self.logs.clone(), self.messages.clone());
        tokio::task::spawn_local(async move {
            if let Some(ended) = ended {
                let _ = tokio::time::timeout(LAST_WORDS, ended).await;
            }
            let bytes = match logs.tail(name, Some(number), QUOTED) {
                Ok(tail) => tail.await.unwrap_or_default(),
                Err(_) => Vec::new(),
            };
            let lines = last_lines(&bytes);
            let _ = messages.send(super::host::Message::Explained { op, lines }).await;
        });
    }

    pub fn handle_explained(&mut self, id: OpId, lines: Vec<Box<str>>) {
        let Some(op) = self.ops.remove(&id) else { return };
        let Some(failure) = op.failure else { return };
        let updates = self.calls.get(&op.call).is_some_and(|call| call.update.is_some());
        if updates && kinds::is_before_the_first(&failure.reason) {
            let mut result = ServiceResult::done(&op.name, true, "waits for its first release (svctl deploy)");
            result.state = self.state_of(op.service);
            self.add_result(op.call, result);
            return self.finish_call(op.call);
        }
        let code = if failure.reason == crate::core::NOT_RUNNING { ErrorCode::NotRunning } else { ErrorCode::Failed };
        let mut error = ApiError::new(code, format!("{}: {}.", op.name, failure.reason)).last_output(lines);
        if !error.last_output.is_empty() {
            error = error.hint(format!("`svctl logs {}` has all of its output.", op.name));
        }
        let mut result = ServiceResult::failed(&op.name, error);
        result.state = self.state_of(op.service);
        self.tell_outlived(op.call, op.service, &result);
        self.add_result(op.call, result);
        self.finish_call(op.call);
    }

    pub fn enable(&mut self, services: &[Name], enabled: bool, reply: Reply) {
        let mut result = ActionResult::default();
        let word = if enabled { "enabled" } else { "disabled" };
        for name in services {
            let Some(id) = self.machine.named(name).map(|s| s.id) else {
                result.services.push(ServiceResult::failed(name, unknown(name)));
                continue;
            };
            let Some(unit) = self.units.get_mut(&id) else { continue };
            let changed = self.store.set_enabled(name, unit.spec.autostart, enabled);
            unit.enabled = enabled;
            self.state.mark(Key::Unit(id));
            result.services.push(ServiceResult::done(name, changed, word));
        }
        // Durable before it is said (I5).
        self.save_now(Some((result, reply)));
    }

    pub fn handle_saved(&mut self, result: Result<(), String>, answer: Option<(ActionResult, Reply)>) {
        if let Err(text) = &result {
            // The next change, or the end, tries again.
            self.store.dirty = true;
            self.warn(None, text);
        }
        let Some((done, reply)) = answer else { return };
        match result {
            Ok(()) => reply.actions(&done),
            Err(why) => {
                reply.error(ApiError::new(ErrorCode::Failed, format!("It would not survive a restart: {why}.")))
            }
        }
    }

    pub fn drain(&mut self, services: &[Name], drained: bool, reply: Reply) {
        let mut result = ActionResult::default();
        let word = if drained { "drained: its health answers 503" } else { "back in the load balancer" };
        for name in services {
            let id = self.machine.named(name).map(|s| s.id);
            match id.and_then(|id| Some((id, self.units.get_mut(&id)?))) {
                Some((id, unit)) => {
                    let changed = std::mem::replace(&mut unit.drained, drained) != drained;
                    self.state.mark(Key::Unit(id));
                    result.services.push(ServiceResult::done(name, changed, word));
                }
                None => result.services.push(ServiceResult::failed(name, unknown(name))),
            }
        }
        // The next svd knows before it is said (I5).
        self.write_state();
        reply.actions(&result);
    }

    fn scale(&mut self, services: Vec<Name>, count: u32, reply: Reply) {
        let is_gunicorn = |host: &Host, name: &str| {
            let unit = host.machine.named(name).and_then(|s| host.units.get(&s.id));
            unit.is_some_and(|u| crate::kinds::gunicorn::is_gunicorn(&u.spec))
        };
        let is_jvm = |host: &Host, name: &str| {
            let unit = host.machine.named(name).and_then(|s| host.units.get(&s.id));
            unit.is_some_and(|u| matches!(u.spec.kind, crate::config::spec::Kind::Jvm { .. }))
        };
        let call = self.begin_call(reply);
        for name in services {
            let Some(service) = self.machine.named(&name).map(|s| s.id) else {
                self.add_result(call, ServiceResult::failed(&name, unknown(&name)));
                continue;
            };
            if is_gunicorn(self, &name) {
                self.scale_gunicorn(call, service, &name, count);
            } else if is_jvm(self, &name) {
                let why = format!("{name} is a JVM, of which one runs at a time; its threads are its own matter.");
                self.add_result(call, ServiceResult::failed(&name, ApiError::new(ErrorCode::BadRequest, why)));
            } else {
                let command = Command::Scale(count);
                let op = self.begin_op(call, service, &name, "scaled", Awaited::Nothing, Some(command.clone()));
                self.tell(Event::Command { op: Some(op), service, command });
            }
        }
        self.finish_call(call);
    }

    fn signal(&mut self, services: &[Name], signal: i32, worker: Option<u32>, reply: Reply) {
        let mut result = ActionResult::default();
        for name in services {
            let sent = self.signal_service(name, signal, worker);
            result.services.push(match sent {
                Ok(0) => {
                    let why = match worker {
                        Some(worker) => {
                            format!("{name}: worker {worker} does not run, or there is none of that number.")
                        }
                        None => format!("{name}: it is not running."),
                    };
                    ServiceResult::failed(name, ApiError::new(ErrorCode::NotRunning, why))
                }
                Ok(_) => ServiceResult::done(name, true, "signalled"),
                Err(error) => ServiceResult::failed(name, error),
            });
        }
        reply.actions(&result);
    }

    fn signal_service(&mut self, name: &str, signal: i32, worker: Option<u32>) -> Result<usize, ApiError> {
        let service = self.machine.named(name).ok_or_else(|| unknown(name))?;
        let serving = service.committed().or_else(|| service.candidate()).map(|g| g.id);
        let mut sent = 0;
        for process in self.workers.values_mut() {
            if Some(process.generation) != serving || worker.is_some_and(|w| w != process.slot) {
                continue;
            }
            match process.signal(signal) {
                Ok(true) => sent += 1,
                Ok(false) => {}
                Err(e) => {
                    let why = format!("{name} cannot be signalled: {}.", e.desc());
                    return Err(ApiError::new(ErrorCode::Failed, why));
                }
            }
        }
        Ok(sent)
    }

    fn pids(&self, services: &[Name]) -> PidList {
        let of = |name: &Name| {
            let serving = self.machine.named(name).and_then(|s| s.committed().or_else(|| s.candidate())).map(|g| g.id);
            let mine = self.workers.values().filter(|p| Some(p.generation) == serving);
            let mut pids: Vec<(u32, u32)> =
                mine.filter_map(|p| Some((p.slot, u32::try_from(p.pid()?).ok()?))).collect();
            pids.sort_unstable();
            PidEntry { service: name.clone(), pids: pids.into_iter().map(|(_, pid)| pid).collect() }
        };
        PidList { services: services.iter().map(of).collect() }
    }
}

pub fn unknown(name: &str) -> ApiError {
    ApiError::new(ErrorCode::UnknownService, format!("There is no service {name}."))
        .hint("`svctl status` lists them; after adding a file, `svctl update`.")
}

/// The last lines, as text; what is not UTF-8 is replaced.
pub fn last_lines(bytes: &[u8]) -> Vec<Box<str>> {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(QUOTED_LINES)..].iter().map(|l| (*l).into()).collect()
}
