//! What people have ordered and was not answered yet: written down before it is begun, so that the next svd knows what was
//! under way when this one was killed, carries it on, and says in the events and in the audit journal what has come of it.

use super::audit::{self, Answered, Journal};
use super::host::Host;
use super::state::Key;
use crate::api::audit::{AuditRecord, AuditSink, Numbers, Outcome};
use crate::api::request::{Name, Verb};
use crate::api::types::{ApiError, ErrorCode, ServiceResult};
use crate::api::{Call, Peer, Reply, Request};
use crate::core::{Awaited, Command, Event, OpId, ServiceId};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

/// Who has asked for what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    time: SystemTime,
    uid: u32,
    pid: i32,
    user: Box<str>,
    verb: Verb,
    services: Vec<Name>,
    detail: Box<str>,
    /// Its parts, once it was begun.
    #[serde(default)]
    parts: BTreeMap<u64, Part>,
    /// An update that is in force, as far as it has no parts.
    #[serde(default)]
    applied: bool,
}

/// What it means for one service.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Part {
    service: ServiceId,
    name: Name,
    /// What is said when it is done.
    done: Cow<'static, str>,
    awaited: Awaited,
    /// What the state machine is told; `None`: it was told as a part of something larger.
    command: Option<Command>,
    /// It was told.
    given: bool,
}

/// All that are not answered.
pub struct Orders {
    open: BTreeMap<u64, Order>,
    answered: Answered,
    journal: AuditSink,
    numbers: Numbers,
}

/// An order of an earlier svd.
pub struct Revived {
    order: Order,
    title: String,
    reply: Reply,
}

impl Order {
    fn of(record: &AuditRecord) -> Order {
        Order {
            time: record.time,
            uid: record.uid,
            pid: record.pid,
            user: record.user.clone(),
            verb: record.verb,
            services: record.services.clone(),
            detail: record.detail.clone(),
            parts: BTreeMap::new(),
            applied: false,
        }
    }

    fn record(&self, id: u64) -> AuditRecord {
        AuditRecord {
            id,
            time: self.time,
            uid: self.uid,
            pid: self.pid,
            user: self.user.clone(),
            verb: self.verb,
            services: self.services.clone(),
            detail: self.detail.clone(),
            outcome: Outcome::Begun,
            outlived: true,
        }
    }

    /// svd got a signal: nobody waits for the outcome, or will ask again.
    fn is_by_signal(&self) -> bool {
        self.detail.starts_with("SIG")
    }

    /// For people. `before`: what it was before.
    fn title(&self, before: &str) -> String {
        let who = if self.is_by_signal() { self.detail.to_string() } else { who(&self.user, self.uid) };
        format!("{}, ordered by {who} before {before}", self.verb.as_str())
    }
}

/// `user`: empty where the user database has no name.
fn who(user: &str, uid: u32) -> String {
    if user.is_empty() { format!("user {uid}") } else { user.to_owned() }
}

impl Part {
    pub fn new(
        service: ServiceId,
        name: &str,
        done: Cow<'static, str>,
        awaited: Awaited,
        command: Option<Command>,
    ) -> Part {
        // What nobody is told of is done with the order itself.
        let given = command.is_none() && awaited == Awaited::Nothing;
        Part { service, name: name.into(), done, awaited, command, given }
    }
}

impl Orders {
    pub fn new(journal: &Journal, numbers: Numbers) -> Orders {
        Orders { open: BTreeMap::new(), answered: journal.answered(), journal: journal.sink(), numbers }
    }

    pub fn get(&self, id: u64) -> Option<&Order> {
        self.open.get(&id)
    }

    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.open.keys().copied()
    }

    /// Forgets those whose outcome is in the journal, and gives their numbers.
    pub fn take_answered(&mut self) -> Vec<u64> {
        let mut answered = self.answered.take();
        answered.retain(|id| self.open.remove(id).is_some());
        answered
    }
}

impl Host {
    /// A call begins: if it changes something, it is in the state file before anything of it is done.
    pub fn note_order(&mut self, call: &Call) {
        let Some(record) = call.reply.record() else { return };
        self.orders.open.insert(record.id, Order::of(record));
        self.state.mark(Key::Order(record.id));
    }

    /// What a signal to svd asks for, as if somebody had asked by the control socket.
    pub fn obey_signal(&mut self, request: Request, signal: &str) {
        let pid = std::process::id().cast_signed();
        let (uid, user) = (nix::unistd::geteuid().as_raw(), self.users.own.name.as_str().into());
        let peer = Peer { uid, pid, user, groups: Arc::new([]) };
        let call = Call::by_signal(request, signal, peer, &self.orders.numbers, &self.orders.journal);
        self.handle_call(call);
    }

    /// An update is about to be applied, and is written down together with what it changes.
    pub fn note_applied(&mut self, order: Option<u64>) {
        let Some((id, order)) = order.and_then(|id| Some((id, self.orders.open.get_mut(&id)?))) else { return };
        order.applied = true;
        self.state.mark(Key::Order(id));
    }

    /// A part of an order.
    pub fn note_part(&mut self, order: Option<u64>, op: OpId, part: Part) {
        let Some((id, order)) = order.and_then(|id| Some((id, self.orders.open.get_mut(&id)?))) else { return };
        order.parts.insert(op.0, part);
        self.state.mark(Key::Order(id));
    }

    /// The state machine is about to be told, and what it decides will be written together with this.
    pub fn note_given(&mut self, event: &Event) {
        let ops: Vec<OpId> = match event {
            Event::Command { op, .. } => op.iter().copied().collect(),
            Event::Configure { add, change, remove } => {
                let (add, change) = (add.iter().map(|s| s.op), change.iter().map(|(.., op)| *op));
                add.chain(change).chain(remove.iter().map(|(_, op)| *op)).flatten().collect()
            }
            _ => return,
        };
        for op in ops {
            self.set_given(op);
        }
    }

    fn set_given(&mut self, op: OpId) {
        let Some(id) = self.ops.get(&op).and_then(|o| self.calls.get(&o.call)?.order) else { return };
        if let Some(part) = self.orders.open.get_mut(&id).and_then(|order| order.parts.get_mut(&op.0)) {
            part.given = true;
            self.state.mark(Key::Order(id));
        }
    }

    /// What becomes of them is heard again. To be called before the restored state machine goes on; gives those that are none
    /// of its business, for [`Host::revive_whole`] afterwards. `before`: what has ended the svd that had begun them.
    pub fn revive(&mut self, orders: BTreeMap<u64, Order>, before: &str) -> Vec<Revived> {
        let sink = Arc::clone(&self.orders.journal);
        let mut wholes = Vec::new();
        let (mut orders, unknown) = self.close_others(orders);
        for record in unknown {
            let order = Order::of(&record);
            if order.verb == Verb::Update && order.is_by_signal() {
                orders.insert(record.id, order);
            } else {
                self.close_unbegun(record);
            }
        }
        for (id, mut order) in orders {
            let reply = Reply::revived(order.record(id), Arc::clone(&sink));
            let (title, parts) = (order.title(before), std::mem::take(&mut order.parts));
            self.orders.open.insert(id, order.clone());
            if parts.is_empty() {
                wholes.push(Revived { order, title, reply });
                continue;
            }
            let call = self.begin_call(reply);
            if let Some(pending) = self.calls.get_mut(&call) {
                pending.outlived = Some(title.into());
            }
            for part in parts.into_values() {
                self.revive_part(call, part);
            }
            self.finish_call(call);
        }
        wholes
    }

    /// Nothing runs that an earlier svd has left. `orders`: of its state file, if that is of another boot.
    pub fn close_orders(&mut self, orders: BTreeMap<u64, Order>) {
        let (orders, unknown) = self.close_others(orders);
        orders.into_iter().for_each(|(id, order)| self.close_interrupted(order.record(id)));
        // The configuration is read anyhow.
        unknown.into_iter().for_each(|record| self.close_unbegun(record));
    }

    /// Closes what the journal tells of an earlier boot. Gives those of the orders whose outcome is not in the journal yet,
    /// and the records without an outcome that these orders do not name.
    fn close_others(&mut self, mut orders: BTreeMap<u64, Order>) -> (BTreeMap<u64, Order>, Vec<AuditRecord>) {
        let audit::Earlier { open, ended } = audit::earlier(&self.around.paths.audit_file());
        orders.retain(|id, _| !ended.contains(id));
        let booted = crate::sys::booted();
        let unnamed = open.into_values().filter(|record| !orders.contains_key(&record.id));
        let (interrupted, unknown): (Vec<_>, Vec<_>) = unnamed.partition(|record| record.time < booted);
        interrupted.into_iter().for_each(|record| self.close_interrupted(record));
        (orders, unknown)
    }

    /// None of its state is left, or svd was killed before it did anything (a signal may have been sent).
    fn close_unbegun(&mut self, record: AuditRecord) {
        let (time, outcome) = (SystemTime::now(), Outcome::Failed(ErrorCode::Unavailable));
        (self.orders.journal)(&AuditRecord { time, outcome, ..record });
    }

    fn close_interrupted(&mut self, record: AuditRecord) {
        let text = format!("{}: it was interrupted", Order::of(&record).title("the machine was started anew"));
        self.warn(None, &text);
        (self.orders.journal)(&AuditRecord { time: SystemTime::now(), outcome: Outcome::Interrupted, ..record });
    }

    fn revive_part(&mut self, call: u64, part: Part) {
        let Part { service, name, done, awaited, command, given } = part;
        let again = command.clone().filter(|_| !given);
        let untold = command.is_none() && !given;
        let op = self.begin_op(call, service, &name, done, awaited, command);
        if let Some(command) = again {
            return self.give(Some(op), service, command);
        }
        self.set_given(op);
        if untold {
            let reason = "svd ended before that was begun".to_owned();
            self.handle_done(op, Err(crate::core::Failure { reason, generation: None }));
        } else {
            self.machine.await_again(op, service, awaited);
        }
    }

    /// One without parts: it is done now, was done (`executed`: the upgrade), or is not done.
    pub fn revive_whole(&mut self, revived: Revived, executed: bool) {
        let Revived { order, title, reply } = revived;
        if order.verb == Verb::Update && order.is_by_signal() && !order.applied {
            self.info(None, &format!("{title}: it had not been begun, and is done now"));
            return self.update(false, reply);
        }
        let undone = match order.verb {
            Verb::Signal => "it is not known whether it was sent",
            Verb::Exec => "what had begun of it was ended",
            Verb::Deploy => "it was interrupted; `svctl releases` says how things stand",
            Verb::Upgrade if !executed => "it was not done; this version goes on",
            Verb::Update if order.applied => "",
            Verb::Enable | Verb::Disable | Verb::Drain | Verb::Upgrade | Verb::Shutdown => "",
            _ => "it was not begun, and nothing was changed",
        };
        if !undone.is_empty() {
            self.warn(None, &format!("{title}: {undone}"));
            return reply.error(ApiError::new(ErrorCode::Unavailable, format!("{title}: {undone}.")));
        }
        self.info(None, &format!("{title}: done"));
        match order.verb {
            Verb::Enable => self.enable(&order.services, true, reply),
            Verb::Disable => self.enable(&order.services, false, reply),
            Verb::Drain => self.drain(&order.services, &*order.detail != "undrain", reply),
            // All of it may have ended while no svd was there: this one is about to end.
            Verb::Shutdown if self.finished => reply.ok(&()),
            Verb::Shutdown => {
                self.tell(Event::Shutdown);
                self.ending.push(reply);
            }
            _ => reply.ok(&()),
        }
    }

    /// What somebody has ordered of a service is done.
    pub fn tell_ordered(&mut self, call: u64, service: ServiceId, done: &str) {
        let Some(pending) = self.calls.get(&call).filter(|pending| pending.outlived.is_none()) else { return };
        let Some(record) = pending.reply.record() else { return };
        let text = format!("{done}, ordered by {}", who(&record.user, record.uid));
        self.info(Some(service), &text);
    }

    /// A part of an order that outlived svd has ended.
    pub fn tell_outlived(&mut self, call: u64, service: ServiceId, result: &ServiceResult) {
        let Some(title) = self.calls.get(&call).and_then(|pending| pending.outlived.clone()) else { return };
        match &result.error {
            None => self.info(Some(service), &format!("{title}: {}", result.message.as_deref().unwrap_or("done"))),
            Some(error) => self.warn(Some(service), &format!("{title}: it was not done: {}", error.message)),
        }
    }
}
