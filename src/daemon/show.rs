//! `svctl show`: the settings that are in force, beside what the files say now.

use super::control::unknown;
use super::host::{Host, Message};
use super::pool::Lane;
use crate::api::Reply;
use crate::api::request::Name;
use crate::api::types::{ChangeAction, Configuration};
use crate::config::shown::{InForce, settings};
use crate::config::spec::Service;
use crate::config::{self, diff, spec::Config};
use std::sync::Arc;

/// What was read: the text of the service's file, and all files together.
pub struct Read {
    /// A sentence where it cannot be read; `None` where it is gone.
    text: Result<Option<String>, Box<str>>,
    config: Result<Config, Vec<Box<str>>>,
}

impl Host {
    /// Reads the files in the pool; [`Host::handle_files_read`] answers.
    pub fn answer_configuration(&self, name: Name, reply: Reply) {
        let Some(service) = self.machine.named(&name).map(|s| s.id) else { return reply.error(unknown(&name)) };
        let (pool, messages, paths) = (self.pool.clone(), self.messages.clone(), self.around.paths.clone());
        let wanted = name.clone();
        tokio::task::spawn_local(async move {
            let work = move || {
                let file = paths.service_file(&wanted);
                let text = match file.symlink_metadata() {
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
                    _ => config::read_text(&file, &file.display().to_string()).map(Some),
                };
                let lines = |errors: config::Diagnostics| errors.0.iter().map(|e| e.line().into()).collect();
                // Both are the same text, whoever writes meanwhile.
                let with = text.as_ref().ok().and_then(Option::as_deref).map(|text| (&*wanted, text));
                Ok(Read { config: paths.load_as_if(with).map_err(lines), text: text.map_err(|e| e.line().into()) })
            };
            let read = pool
                .run(Lane::Look(service), work)
                .await
                .unwrap_or_else(|why| Read { text: Err(why.as_str().into()), config: Err(vec![why.into()]) });
            let message = Message::FilesRead { name, read: Box::new(read), reply: Box::new(reply) };
            let _ = messages.send(message).await;
        });
    }

    pub fn handle_files_read(&mut self, name: &str, read: Read, reply: Reply) {
        let Some(service) = self.machine.named(name) else { return reply.error(unknown(name)) };
        let Some(unit) = self.units.get(&service.id) else { return reply.error(unknown(name)) };
        let running = service.committed().or_else(|| service.candidate()).and_then(|g| self.generations.get(&g.id));
        let in_force = running.map_or(&unit.spec, |made| &made.plan.spec);
        let mut answer = Configuration {
            service: name.into(),
            file: self.around.paths.service_file(name).display().to_string().into(),
            generation: running.map(|made| made.id.number),
            release: running.and_then(|made| made.plan.places.id.clone()),
            settings: Vec::new(),
            update: None,
            notes: Vec::new(),
            errors: Vec::new(),
        };
        let mut now = InForce { service: in_force, scaled: unit.scaled, kept: false };
        let text = read.text.unwrap_or_else(|why| {
            answer.errors.push(why);
            None
        });
        match read.config {
            Ok(mut config) => {
                let said = config.services.get(name).cloned();
                let notes = self.releases.hold_back(&mut config);
                answer.notes.extend(notes.into_iter().filter(|note| note.split(':').next() == Some(name)));
                let kept = config.services.get(name);
                now.kept = kept != said.as_ref();
                answer.update = update(&unit.spec, kept);
                answer.settings = settings(&now, said.as_deref().zip(text.as_deref()));
            }
            Err(errors) => {
                answer.errors.extend(errors);
                answer.errors.dedup();
                answer.settings = settings(&now, None);
            }
        }
        if self.is_behind(service) {
            answer.notes.push(format!("{name} {}", super::update::behind(name)).into());
        }
        reply.ok(&answer);
    }
}

/// What `svctl update` would do.
fn update(now: &Arc<Service>, file: Option<&Arc<Service>>) -> Option<ChangeAction> {
    match file {
        None => Some(ChangeAction::Remove),
        Some(file) => diff::needs(now, file).map(|needs| super::update::action(file, needs)),
    }
}
