//! What people have ordered and was not answered yet: written down before it is begun, so that the next svd knows what was
//! under way when this one was killed, carries it on, and says in the events and in the audit journal what has come of it.

use super::audit;
use super::host::Host;
use super::state::Key;
use crate::api::audit::{AuditRecord, AuditSink, Outcome};
use crate::api::request::{Name, Verb};
use crate::api::types::{ApiError, ErrorCode, ServiceResult};
use crate::api::{Call, Reply};
use crate::core::{Awaited, Command, Event, OpId, ServiceId};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
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
#[derive(Default)]
pub struct Orders {
    open: BTreeMap<u64, Order>,
    /// The numbers of those that were answered; the server's tasks tell.
    answered: Arc<Mutex<Vec<u64>>>,
    journal: Option<AuditSink>,
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

    /// For people.
    fn title(&self, how: &str) -> String {
        format!("{}, ordered by {} before svd was {how}", self.verb.as_str(), who(&self.user, self.uid))
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

/// The way to the journal, by way of the list of those that were answered.
fn told(answered: &Arc<Mutex<Vec<u64>>>, journal: AuditSink) -> AuditSink {
    let answered = Arc::clone(answered);
    Arc::new(move |record| {
        if record.outcome != Outcome::Begun {
            answered.lock().unwrap_or_else(PoisonError::into_inner).push(record.id);
        }
        journal(record);
    })
}

impl Orders {
    pub fn new() -> Orders {
        Orders::default()
    }

    /// Where the server writes its records: the journal, by way of here.
    pub fn sink(&mut self, journal: AuditSink) -> AuditSink {
        self.journal = Some(Arc::clone(&journal));
        told(&self.answered, journal)
    }

    pub fn get(&self, id: u64) -> Option<&Order> {
        self.open.get(&id)
    }

    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.open.keys().copied()
    }

    /// Forgets those that were answered, and gives their numbers.
    pub fn take_answered(&mut self) -> Vec<u64> {
        let mut answered = std::mem::take(&mut *self.answered.lock().unwrap_or_else(PoisonError::into_inner));
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
    /// of its business, for [`Host::revive_whole`] afterwards. `how`: what has ended the svd that had begun them.
    pub fn revive(&mut self, orders: BTreeMap<u64, Order>, how: &str) -> Vec<Revived> {
        let Some(journal) = self.orders.journal.clone() else { return Vec::new() };
        audit::close_others(&self.around.paths.audit_file(), &orders.keys().copied().collect(), &journal);
        let sink = told(&self.orders.answered, journal);
        let mut wholes = Vec::new();
        for (id, mut order) in orders {
            let reply = Reply::revived(order.record(id), Arc::clone(&sink));
            let (title, parts) = (order.title(how), std::mem::take(&mut order.parts));
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

    fn revive_part(&mut self, call: u64, part: Part) {
        let Part { service, name, done, awaited, command, given } = part;
        let again = command.clone().filter(|_| !given);
        let untold = command.is_none() && !given;
        let op = self.begin_op(call, service, &name, done, awaited, command);
        if let Some(command) = again {
            return self.tell(Event::Command { op: Some(op), service, command });
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
        let undone = match (order.verb, &*order.detail) {
            (Verb::Signal, _) => "it is not known whether it was sent",
            (Verb::Upgrade, _) if !executed => "it was not done; this version goes on",
            (Verb::Enable | Verb::Disable | Verb::Drain | Verb::Upgrade | Verb::Shutdown, _) => "",
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
