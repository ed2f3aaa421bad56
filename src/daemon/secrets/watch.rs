//! A secret that changes: the service is reloaded, once for each change, when the change has come to rest.

use super::Marks;
use super::read::{Reader, unread};
use crate::config::spec::Secret;
use crate::config::suggest::listed;
use crate::core::{Command, GenerationId, Role};
use crate::daemon::host::{Host, Message};
use crate::daemon::unit::{Plan, Task};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A key and its certificate are written one after the other: nothing has changed for that long.
const REST: Duration = Duration::from_secs(1);
/// Between two attempts to read what the svd before had read.
const AGAIN: Duration = Duration::from_secs(10);

/// What was seen of a generation's secrets.
pub enum News {
    /// These have changed, and all are what the marks say.
    Changed { names: Vec<Box<str>>, marks: Marks },
    /// One cannot be read: what runs keeps its old value.
    Unreadable(String),
    /// It can again.
    Readable(Box<str>),
    /// What an earlier svd had read is known again.
    Known,
}

struct Watch {
    reader: Reader,
    plan: Rc<Plan>,
    id: GenerationId,
    messages: mpsc::Sender<Message>,
    /// What the service has, or was told to reload for.
    seen: Marks,
    unreadable: BTreeSet<Box<str>>,
}

impl Host {
    /// Looks at the secrets of what serves, from time to time. `adopted`: at once, as they may have changed while no svd was there.
    pub fn watch_secrets(&mut self, id: GenerationId, adopted: bool) {
        let reader = self.secrets_of(id.service);
        let plan = self.generations.get(&id).map(|made| Rc::clone(&made.plan));
        let Some(unit) = self.units.get_mut(&id.service) else { return };
        unit.secrets = None;
        let Some(plan) = plan else { return };
        // How often is the file's in force to say, which may be newer.
        let every: BTreeMap<Box<str>, Duration> =
            unit.spec.secrets.iter().filter_map(|s| Some((s.name.clone(), s.every?))).collect();
        let Some(seen) = plan.secrets.as_ref().map(|s| s.marks().clone()).filter(|_| !every.is_empty()) else { return };
        let messages = self.messages.clone();
        let watch = Watch { reader, plan, id, messages, seen, unreadable: BTreeSet::new() };
        unit.secrets = Some(Task(tokio::task::spawn_local(watch.run(every, adopted))));
    }

    /// After a death of svd: what generations have as variables is read once more, for workers that are to be started again.
    pub fn read_secrets_again(&mut self) {
        let unknown = |plan: &Plan| plan.secrets.as_ref().is_some_and(|s| s.variables().is_err());
        let mut plans: Vec<(GenerationId, Rc<Plan>)> =
            self.generations.values().filter(|g| unknown(&g.plan)).map(|g| (g.id, Rc::clone(&g.plan))).collect();
        for (service, unit) in &self.units {
            if let Some((number, plan)) = unit.kept.as_ref().filter(|(_, plan)| unknown(plan))
                && !plans.iter().any(|(_, other)| Rc::ptr_eq(plan, other))
            {
                plans.push((GenerationId { service: *service, number: *number }, Rc::clone(plan)));
            }
        }
        for (id, plan) in plans {
            let (reader, messages) = (self.secrets_of(id.service), self.messages.clone());
            tokio::task::spawn_local(async move {
                let mut told = false;
                loop {
                    let Some(secrets) = &plan.secrets else { return };
                    // The generation is gone.
                    if Rc::strong_count(&plan) == 1 {
                        return;
                    }
                    match reader.variables(&plan).await {
                        Ok(variables) => {
                            secrets.read_again(variables);
                            let _ = messages.send(Message::Secrets(id, News::Known)).await;
                            return;
                        }
                        Err(why) if !std::mem::replace(&mut told, true) => {
                            let news =
                                News::Unreadable(format!("{why}; until then none of its workers can be started again"));
                            let _ = messages.send(Message::Secrets(id, news)).await;
                        }
                        Err(_) => {}
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            });
        }
    }

    pub fn handle_secrets(&mut self, id: GenerationId, news: News) {
        let service = id.service;
        match news {
            News::Known => {}
            News::Unreadable(why) => self.warn(Some(service), &why),
            News::Readable(name) => self.info(Some(service), &format!("the secret {name} can be read again")),
            News::Changed { names, marks } => {
                let Some(known) = self.machine.service(service) else { return };
                if known.committed().map(|g| g.id) != Some(id) || self.machine.is_shutting_down() {
                    return;
                }
                // A reload that is under way may have read them already.
                let mut booting = known.generations.iter().filter(|g| g.role == Role::Candidate);
                let has_them = |id: &GenerationId| {
                    let plan = self.generations.get(id).map(|made| &made.plan);
                    plan.and_then(|plan| plan.secrets.as_ref()).is_some_and(|secrets| *secrets.marks() == marks)
                };
                if booting.any(|g| has_them(&g.id)) {
                    return;
                }
                let words: Vec<&str> = names.iter().map(|name| &**name).collect();
                let what = if words.len() == 1 { "the secret" } else { "the secrets" };
                let text = format!("{what} {} changed: the service is reloaded", listed(&words, "and"));
                self.progress(service, None, "secret", &text);
                self.info(Some(service), &text);
                self.give(None, service, Command::Reload { release: None, force: true, keep: None, recall: None });
            }
        }
    }
}

impl Watch {
    async fn run(mut self, every: BTreeMap<Box<str>, Duration>, adopted: bool) {
        let first = |every: Duration| Instant::now() + if adopted { REST.min(every) } else { every };
        let mut due: BTreeMap<Box<str>, Instant> = every.iter().map(|(name, e)| (name.clone(), first(*e))).collect();
        while let Some(next) = due.values().min().copied() {
            tokio::time::sleep_until(next).await;
            let now = Instant::now();
            let looked: BTreeSet<Box<str>> =
                due.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
            let changed = self.changed(|secret| looked.contains(&secret.name)).await;
            if !changed.is_empty() && !self.settle(changed, &every).await {
                return;
            }
            // From the end of a look on: one that takes long is not followed by the next at once.
            let now = Instant::now();
            for name in looked {
                if let Some(every) = every.get(&name) {
                    due.insert(name, now + *every);
                }
            }
        }
    }

    /// Waits until nothing changes any more, and tells. False: nobody listens.
    async fn settle(&mut self, mut changed: Marks, every: &BTreeMap<Box<str>, Duration>) -> bool {
        loop {
            tokio::time::sleep(REST).await;
            // All of them: what belongs together may have changed together.
            let again = self.changed(|secret| every.contains_key(&secret.name)).await;
            if again == changed {
                break;
            }
            changed = again;
        }
        if changed.is_empty() {
            // It was taken back.
            return true;
        }
        let names: Vec<Box<str>> = changed.keys().cloned().collect();
        self.seen.append(&mut changed);
        let news = News::Changed { names, marks: self.seen.clone() };
        self.tell(news).await
    }

    /// Those of the wanted that are others than what was seen. One that cannot be read is told once.
    async fn changed(&mut self, wanted: impl Fn(&Secret) -> bool) -> Marks {
        let plan = Rc::clone(&self.plan);
        let mut changed = Marks::new();
        for (secret, value) in self.reader.values(&plan.spec, &plan.places, wanted).await {
            match value {
                Ok(value) => {
                    if self.unreadable.remove(&secret.name) {
                        self.tell(News::Readable(secret.name.clone())).await;
                    }
                    let mark = self.reader.mark(secret, &value);
                    if self.seen.get(&secret.name).is_some_and(|seen| *seen != mark) {
                        changed.insert(secret.name.clone(), mark);
                    }
                }
                Err(why) => {
                    if self.unreadable.insert(secret.name.clone()) {
                        let text = format!("{}; what runs keeps the value that it has", unread(secret, &why));
                        self.tell(News::Unreadable(text)).await;
                    }
                }
            }
        }
        changed
    }

    async fn tell(&self, news: News) -> bool {
        self.messages.send(Message::Secrets(self.id, news)).await.is_ok()
    }
}
