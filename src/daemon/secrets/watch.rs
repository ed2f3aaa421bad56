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
/// What is another at so many looks that follow upon a change says something else each time, and perhaps makes something (an
/// account, a lease) whenever it is asked.
const LOOKS: u32 = 5;
/// Between two attempts to read what the svd before had read.
const AGAIN: Duration = Duration::from_secs(10);

/// What was seen of a generation's secrets.
pub enum News {
    /// These have changed, and all are what the marks say.
    Changed { names: Vec<Box<str>>, marks: Marks },
    /// One cannot be read: what runs keeps its old value.
    Unreadable(String),
    /// One is not looked at any more.
    Restless(String),
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
    /// Not looked at any more.
    restless: BTreeSet<Box<str>>,
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
        let watch = Watch { reader, plan, id, messages, seen, unreadable: BTreeSet::new(), restless: BTreeSet::new() };
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
            News::Unreadable(why) | News::Restless(why) => self.warn(Some(service), &why),
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
            due.retain(|name, _| !self.restless.contains(name));
            // From the end of a look on: one that takes long is not followed by the next at once.
            let now = Instant::now();
            for name in looked {
                if let Some(every) = every.get(&name).filter(|_| !self.restless.contains(&name)) {
                    due.insert(name, now + *every);
                }
            }
        }
    }

    /// Waits until nothing changes any more, and tells. False: nobody listens.
    async fn settle(&mut self, mut changed: Marks, every: &BTreeMap<Box<str>, Duration>) -> bool {
        // How often each of them was another than at the look before: all of that together has an end.
        let mut moves: BTreeMap<Box<str>, u32> = BTreeMap::new();
        loop {
            tokio::time::sleep(REST).await;
            // All of them: what belongs together may have changed together.
            let mut again = self.changed(|secret| every.contains_key(&secret.name)).await;
            let names = again.keys().chain(changed.keys());
            let moving: BTreeSet<Box<str>> = names.filter(|n| again.get(*n) != changed.get(*n)).cloned().collect();
            if moving.is_empty() {
                break;
            }
            for name in moving {
                *moves.entry(name).or_default() += 1;
            }
            let restless: BTreeSet<Box<str>> =
                moves.iter().filter(|(_, times)| **times == LOOKS).map(|(name, _)| name.clone()).collect();
            moves.retain(|name, _| !restless.contains(name));
            again.retain(|name, _| !restless.contains(name));
            changed = again;
            if !restless.is_empty() && !self.give_up(restless).await {
                return false;
            }
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

    /// Looks at these no more. False: nobody listens.
    async fn give_up(&mut self, restless: BTreeSet<Box<str>>) -> bool {
        let words: Vec<&str> = restless.iter().map(|name| &**name).collect();
        let (what, says) = if words.len() == 1 { ("the secret", "says") } else { ("the secrets", "say") };
        let text = format!(
            "{what} {} {says} something else whenever svd looks, and cannot be watched: until the next reload svd does not look any \
             more; let it be the same as long as nothing has changed, or leave out `every` of a command",
            listed(&words, "and")
        );
        self.restless.extend(restless);
        self.tell(News::Restless(text)).await
    }

    /// Those of the wanted that are others than what was seen. One that cannot be read is told once.
    async fn changed(&mut self, wanted: impl Fn(&Secret) -> bool) -> Marks {
        let plan = Rc::clone(&self.plan);
        let mut changed = Marks::new();
        let restless = self.restless.clone();
        let wanted = |secret: &Secret| wanted(secret) && !restless.contains(&secret.name);
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
