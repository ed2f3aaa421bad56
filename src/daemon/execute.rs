//! What the core decides, done.

use super::host::{Host, Message};
use super::launch;
use super::network;
use super::pool::Lane;
use super::secrets::watch::News;
use super::sockets::Opened;
use super::state::Key;
use super::unit::{Generation, Gunicorn, Plan};
use crate::api::types::ActionResult;
use crate::config::spec::Service;
use crate::core::{Action, Canary, Event, GenerationId, Role, ServiceId, Source};
use crate::kinds::counters;
use crate::sys::socket::{self, Datagrams};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// What gunicorn gives workers that it stops before they were committed. They end at once unless they hang.
const GATED_GRACE: Duration = Duration::from_secs(1);

impl Host {
    pub fn execute(&mut self, action: Action) {
        match action {
            Action::Prepare { generation, source } => self.prepare(generation, source),
            Action::Spawn { worker, generation, slot, .. } => {
                let result = self.spawn(worker, generation, slot);
                self.tell(Event::Spawned { worker, result });
            }
            Action::Signal { worker, signal } => {
                self.hurry_gated(worker);
                self.signal_worker(worker, signal);
                if let Some(process) = self.workers.get_mut(&worker) {
                    process.signalled = Some(signal);
                    self.state.mark(Key::Process(worker));
                }
            }
            Action::SignalTree { worker, signal } => {
                if let Some(process) = self.workers.get_mut(&worker)
                    && let Err(e) = process.worker.signal_tree(signal)
                {
                    let text = format!("cannot signal what is left of {}: {e}", self.describe(worker));
                    self.warn(None, &text);
                }
            }
            Action::KillTree { worker } => {
                if let Some(process) = self.workers.get_mut(&worker)
                    && let Err(e) = process.worker.kill_tree()
                {
                    let text = format!("cannot kill {}: {e}", self.describe(worker));
                    self.warn(None, &text);
                }
            }
            Action::Commit { generation } => self.commit(generation),
            Action::Expose { generation } => self.open_gate(generation),
            Action::Drain { generation, limit } => {
                let (number, limit_text) = (generation.number, humantime::format_duration(limit));
                let text = format!("generation {number} finishes its requests, within {limit_text}");
                self.progress(generation.service, None, "drain", &text);
                if let Some(gunicorn) = self.generations.get_mut(&generation).and_then(|g| g.gunicorn.as_mut()) {
                    let (at, seconds) = crate::kinds::counters::drain_word(limit);
                    gunicorn.counters.store(at, seconds);
                }
            }
            Action::Discard { generation } => {
                let shutting_down = self.machine.is_shutting_down();
                self.state.mark_end(Key::Plan(generation), shutting_down);
                self.state.mark_end(Key::Generation(generation), shutting_down);
                self.forget_oom(generation);
                let Some(gone) = self.generations.remove(&generation) else { return };
                self.let_generation_go(generation, &gone);
                if let Some(gunicorn) = &gone.gunicorn {
                    let _ = self.poll.delete(&gunicorn.report);
                }
                if let Some(address) = &gone.statsd {
                    self.end_statsd(address);
                }
            }
            Action::CloseSockets { service } => self.close_sockets(service),
            Action::Forget { service } => self.forget(service),
            Action::Note { service, op, level, text } => self.handle_note(service, op, level, &text),
            Action::Done { op, result } => self.handle_done(op, result),
            Action::Exit => {
                self.finished = true;
                for reply in std::mem::take(&mut self.ending) {
                    reply.ok(&ActionResult::default());
                }
            }
        }
    }

    /// Resolves what the generation needs; what may hang is the pool's.
    fn prepare(&mut self, id: GenerationId, source: Source) {
        let Some(unit) = self.units.get(&id.service) else {
            return self.tell(Event::Prepared { generation: id, result: Err("it is not configured any more".into()) });
        };
        self.store.began(&unit.name, id.number);
        if self.state.is_behind() {
            // Else nobody would know that this number was given out.
            self.save_now(None);
        }
        self.save_soon();
        if self.is_standby(id) {
            return self.prepare_standby(id, &source);
        }
        let Some(unit) = self.units.get(&id.service) else { return };
        let release = match source {
            Source::Again { of } => match &unit.kept {
                Some((number, plan)) if *number == of => {
                    let plan = Rc::clone(plan);
                    if plan.spec.secrets.is_empty() {
                        return self.handle_planned(id, Ok(plan));
                    }
                    return self.plan_again(id, &plan);
                }
                _ => None,
            },
            Source::Fresh { release } | Source::Canary(Canary { release, .. }) => release,
        };
        let spec = Arc::clone(&unit.spec);
        if release.is_none() && launch::at_hand(&spec) {
            let plan = launch::plan(&spec, None, &self.users).map(Rc::new);
            return self.handle_planned(id, plan);
        }
        self.plan_in_pool(id, spec, release);
    }

    pub fn plan_in_pool(&mut self, id: GenerationId, spec: Arc<Service>, release: Option<Box<str>>) {
        let beside = if spec.reload.overlap { self.processes_of(id.service) } else { Vec::new() };
        let leaving = self.processes_that_never_served(id.service);
        let (users, secrets) = (Arc::clone(&self.users), self.secrets_of(id.service));
        let (pool, messages) = (self.pool.clone(), self.messages.clone());
        let task = tokio::task::spawn_local(async move {
            let plan = move || {
                launch::room_for_two(&beside, &leaving)?;
                launch::plan(&spec, release.as_deref(), &users)
            };
            let plan = match pool.run(Lane::Files(id.service), plan).await {
                Ok(plan) => secrets.give(plan).await,
                failed => failed,
            };
            let _ = messages.send(Message::Planned { generation: id, plan }).await;
        });
        self.plans.insert(id, task.abort_handle());
    }

    /// As an earlier generation, but with the secrets of today; with those that it had where they cannot be read.
    fn plan_again(&mut self, id: GenerationId, had: &Rc<Plan>) {
        let (plan, last) = (had.without_secrets(), had.secrets.clone());
        let (secrets, messages) = (self.secrets_of(id.service), self.messages.clone());
        let task = tokio::task::spawn_local(async move {
            let (old, known) = (plan.without_secrets(), last.filter(|secrets| secrets.variables().is_ok()));
            let plan = match (secrets.give(plan).await, known) {
                (Err(why), Some(known)) => {
                    let news = News::Unreadable(format!("{why}; it is started with the value that it had"));
                    let _ = messages.send(Message::Secrets(id, news)).await;
                    Ok(Plan { secrets: Some(known), ..old })
                }
                (plan, _) => plan,
            };
            let _ = messages.send(Message::Planned { generation: id, plan }).await;
        });
        self.plans.insert(id, task.abort_handle());
    }

    /// A generation that is not wanted any more need not wait for files that hang. True: there was one.
    pub fn take_plans_back(&mut self) -> bool {
        let unwanted = |id: &GenerationId| {
            let generations = self.machine.service(id.service).map(|s| &s.generations);
            !generations.is_some_and(|all| all.iter().any(|g| g.id == *id && g.role != Role::Draining))
        };
        let back: Vec<GenerationId> = self.plans.keys().filter(|id| unwanted(id)).copied().collect();
        for id in &back {
            if let Some(task) = self.plans.remove(id) {
                task.abort();
            }
            self.opening.remove(id);
            self.tell(Event::Prepared { generation: *id, result: Err("it was taken back".into()) });
        }
        !back.is_empty()
    }

    /// Pids of the committed generation, for its memory.
    fn processes_of(&self, service: ServiceId) -> Vec<i32> {
        let committed = self.machine.service(service).and_then(|s| s.committed()).map(|g| g.id);
        let mine = self.workers.values().filter(|p| Some(p.generation) == committed);
        mine.flat_map(|p| p.worker.processes()).collect()
    }

    /// Pids of what is on its way out and has nothing to finish, such as a standby that made room.
    fn processes_that_never_served(&self, service: ServiceId) -> Vec<i32> {
        let leaves = |id: &GenerationId| self.machine.role(*id) == Some(Role::Draining);
        let gated = |id: &GenerationId| {
            self.generations.get(id).and_then(|g| g.gunicorn.as_ref()).is_some_and(|g| !g.committed)
        };
        let of_it = self.workers.values().filter(|p| p.generation.service == service);
        of_it.filter(|p| leaves(&p.generation) && gated(&p.generation)).flat_map(|p| p.worker.processes()).collect()
    }

    pub fn handle_planned(&mut self, id: GenerationId, plan: Result<Rc<Plan>, String>) {
        let result = match plan {
            Ok(plan) if self.must_open(id, &plan) => return self.open_in_pool(id, plan),
            plan => plan.and_then(|plan| self.make_generation(id, plan, None)),
        };
        self.tell(Event::Prepared { generation: id, result });
    }

    pub fn handle_opened(&mut self, id: GenerationId, opened: Result<Opened, String>) {
        let Some(plan) = self.opening.remove(&id) else { return };
        let result = opened.and_then(|Opened { sockets, network }| {
            if let Some(unit) = self.units.get_mut(&id.service).filter(|unit| unit.sockets.is_empty()) {
                unit.sockets = sockets.unwrap_or_default();
            }
            self.make_generation(id, plan, network)
        });
        self.tell(Event::Prepared { generation: id, result });
    }

    fn make_generation(
        &mut self,
        id: GenerationId,
        plan: Rc<Plan>,
        network: Option<network::Made>,
    ) -> Result<(), String> {
        let features = Arc::clone(&self.around.features);
        features.suffice(&plan.spec)?;
        features.left_out(&plan.spec).iter().for_each(|what| self.warn(Some(id.service), what));
        let sockets = self.sockets_for(id, &plan)?;
        let from = plan.places.id.as_ref().map(|id| format!(" from release {id}")).unwrap_or_default();
        self.progress(id.service, None, "boot", &format!("generation {} boots{from}", id.number));
        let Some(unit) = self.units.get_mut(&id.service) else { return Err("it is not configured any more".into()) };
        let name = Arc::clone(&unit.name);
        let port = if crate::kinds::wants_port(&plan.spec) { Some(self.free_port()?) } else { None };
        let gunicorn =
            if crate::kinds::gunicorn::is_gunicorn(&plan.spec) { Some(Box::new(self.share(id)?)) } else { None };
        let (network, inside) = network.map(|made| (made.namespace, made.statsd)).unzip();
        let statsd = self.statsd_of(id, &plan, inside.flatten());
        let began = SystemTime::now();
        if plan.spec.logs.capture {
            let release = plan.places.id.as_deref().map(Into::into);
            // Best effort: a log thread that is stuck must not stop a start.
            let _ = self.logs.begin_generation(
                name,
                super::logs::Begins { generation: id.number, release, at: began, adopted: false },
            );
        }
        let until_gone = Vec::new();
        self.state.mark(Key::Plan(id));
        self.state.mark(Key::Generation(id));
        let made = Generation { id, plan, began, sockets, port, gunicorn, network, statsd, until_gone };
        self.generations.insert(id, Box::new(made));
        self.keep_sockets(id.service);
        self.keep_generation(id);
        self.watch_memory();
        self.watch_limits();
        Ok(())
    }

    /// Its address for counts; that there is none must not keep it from serving. `inside`: the socket in its own network.
    fn statsd_of(
        &mut self,
        id: GenerationId,
        plan: &Plan,
        inside: Option<std::io::Result<Datagrams>>,
    ) -> Option<Box<super::statsd::Address>> {
        if !plan.spec.counts.statsd {
            return None;
        }
        let inside = inside.transpose().map_err(|e| super::statsd::cannot_listen(&crate::sys::io_text(&e)));
        let address = inside.and_then(|inside| self.begin_statsd(id, inside)).map(Box::new);
        address.map_err(|why| self.warn(Some(id.service), &format!("its requests are not counted: {why}"))).ok()
    }

    /// What svd shares with a gunicorn generation: gate, report, counters.
    pub fn share(&mut self, id: GenerationId) -> Result<Gunicorn, String> {
        let text = |what: &str, e: Errno| format!("cannot make the {what}: {}", e.desc());
        let gate = socket::Gate::new().map_err(|e| text("gate", e))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (report, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).map_err(|e| text("report socket", e))?;
        let words = counters::SIZE_BYTES / 8;
        let shared = socket::SharedWords::new(c"airdock-counters", words).map_err(|e| text("shared counters", e))?;
        for (at, value) in counters::initial_words() {
            shared.store(at, value);
        }
        self.poll
            .add(&report, crate::sys::poll::Interest::Read, super::token::of_generation(id))
            .map_err(|e| text("report socket", e))?;
        let clone = |fd: std::io::Result<OwnedFd>, what| {
            fd.map(Arc::new).map_err(|e| format!("cannot share the {what}: {}", crate::sys::io_text(&e)))
        };
        let inherited = [
            ("AIRDOCK_GATE", clone(gate.descriptor(), "gate")?),
            ("AIRDOCK_REPORT", Arc::new(theirs)),
            ("AIRDOCK_COUNTERS", clone(shared.as_fd().try_clone_to_owned(), "counters")?),
        ];
        Ok(Gunicorn::new(gate, report, shared, inherited))
    }

    fn free_port(&mut self) -> Result<u16, String> {
        // One given out a moment ago is not bound yet: the kernel would give it again.
        for _ in 0..64 {
            let port =
                socket::free_port().map_err(|e| format!("no private port is free: {}", crate::sys::io_text(&e)))?;
            if !self.ports.contains(&port) {
                self.ports.push_back(port);
                if self.ports.len() > 256 {
                    self.ports.pop_front();
                }
                return Ok(port);
            }
        }
        Err("no private port is free on 127.0.0.1".to_owned())
    }

    /// A generation that never served has no requests to finish: what hangs in its import need not be waited for.
    fn hurry_gated(&mut self, worker: crate::core::WorkerId) {
        let generation = self.workers.get(&worker).and_then(|p| self.generations.get(&p.generation));
        if let Some(gunicorn) = generation.and_then(|g| g.gunicorn.as_ref()).filter(|g| !g.committed) {
            let (at, seconds) = counters::drain_word(GATED_GRACE);
            gunicorn.counters.store(at, seconds);
        }
    }

    fn open_gate(&mut self, id: GenerationId) {
        let Some(gunicorn) = self.generations.get_mut(&id).and_then(|g| g.gunicorn.as_mut()) else { return };
        gunicorn.committed = true;
        self.state.mark(Key::Generation(id));
        if let Err(e) = gunicorn.gate.open() {
            let text = format!("cannot open the gate: {}", e.desc());
            self.warn(Some(id.service), &text);
        }
    }

    fn commit(&mut self, id: GenerationId) {
        let Some(plan) = self.generations.get(&id).map(|generation| Rc::clone(&generation.plan)) else { return };
        self.open_gate(id);
        if let Some(unit) = self.units.get_mut(&id.service) {
            let before = unit.kept.replace((id.number, plan));
            for number in before.iter().map(|(number, _)| *number).chain([id.number]) {
                self.state.mark(Key::Plan(GenerationId { service: id.service, number }));
            }
            self.state.mark(Key::Unit(id.service));
            self.state.mark(Key::Generation(id));
        }
        self.scale_as_asked(id);
        self.begin_health(id);
        self.watch_secrets(id, false);
        self.save_soon();
    }

    fn close_sockets(&mut self, service: ServiceId) {
        let Some(unit) = self.units.get_mut(&service) else { return };
        (unit.health, unit.secrets) = (None, None);
        // What is stopped leaves no secrets behind.
        if let Some((number, plan)) = unit.kept.as_mut().filter(|(_, plan)| plan.secrets.is_some()) {
            self.state.mark(Key::Plan(GenerationId { service, number: *number }));
            *plan = Rc::new(plan.without_secrets());
        }
        for n in 0..unit.sockets.len() {
            self.keeper.remove(&super::state::records::kept::socket(service, n));
        }
        // What was bound: the file may name others by now, or one that another program holds.
        for socket in unit.sockets.drain(..) {
            if let Some(path) = super::sockets::path_of(&socket) {
                // Best effort: one that stays is found stale at the next start.
                let _ = crate::sys::socket::remove_unix(&path);
            }
            // One that still drains may hold it.
            if let Some(last) = std::sync::Arc::into_inner(socket) {
                crate::sys::socket::end_listening(&last);
            }
        }
    }

    fn forget(&mut self, service: ServiceId) {
        self.state.mark(Key::Spec(service));
        self.state.mark(Key::Unit(service));
        if let Some((number, _)) = self.units.get(&service).and_then(|u| u.kept.as_ref()) {
            self.state.mark(Key::Plan(GenerationId { service, number: *number }));
        }
        self.pool.forget(service);
        if let Some(unit) = self.units.remove(&service)
            && !self.units.values().any(|u| u.name == unit.name)
        {
            // Best effort, as above. One that came back under the name meanwhile has its logs there.
            let _ = self.logs.remove(unit.name);
        }
    }
}
