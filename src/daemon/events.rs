//! What happened: remembered for a while, streamed to who follows, written to svd's own log, and told to whoever
//! waits for an operation.

use super::host::Host;
use super::logs::{LogEvent, Lost, Stream};
use crate::api::access::Scope;
use crate::api::reply::StreamError;
use crate::api::request::EventsRequest;
use crate::api::types::{ApiError, ErrorCode, Event, Progress, rfc3339};
use crate::api::{ByteStream, Reply};
use crate::core::{Level, OpId, ServiceId};
use std::collections::VecDeque;
use std::time::SystemTime;

/// Events that are remembered.
const REMEMBERED: usize = 256;
/// Remembered events that a follower begins with; fewer than fit into its queue.
const BEGINNING: usize = 10;
/// Followers of events at once.
const FOLLOWERS: usize = 256;

#[derive(Default)]
pub struct Events {
    recent: VecDeque<Event>,
    followers: Vec<(Scope, ByteStream)>,
}

impl Events {
    fn publish(&mut self, event: Event) {
        self.followers.retain(|(scope, stream)| {
            if !visible(scope, &event) {
                return !stream.is_closed();
            }
            // One that does not keep up is cut: it can ask again for what is remembered.
            match stream.try_line(&event) {
                Ok(()) => true,
                Err(StreamError::Full(_) | StreamError::Closed) => false,
            }
        });
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(event);
    }
}

fn visible(scope: &Scope, event: &Event) -> bool {
    event.service.as_ref().is_none_or(|name| scope.includes(name))
}

impl Host {
    pub fn follow_events(&mut self, request: EventsRequest, reply: Reply) {
        if request.follow && self.events.followers.len() >= FOLLOWERS {
            let why = format!("{FOLLOWERS} clients follow the events already.");
            return reply.error(ApiError::new(ErrorCode::Unavailable, why));
        }
        let stream = reply.stream(None);
        let recent = self.events.recent.iter().filter(|e| visible(&request.scope, e));
        let lines: Vec<Event> = recent.cloned().collect();
        if request.follow {
            // What fits without waiting, as `tail -f` begins.
            for event in &lines[lines.len().saturating_sub(BEGINNING)..] {
                let _ = stream.try_line(event);
            }
            self.events.followers.push((request.scope, stream.clone()));
        }
        if !request.follow {
            tokio::task::spawn_local(async move {
                for event in &lines {
                    let mut text = serde_json::to_vec(event).unwrap_or_default();
                    text.push(b'\n');
                    if stream.send(text.into()).await.is_err() {
                        return;
                    }
                }
            });
        }
    }

    /// From the core: tells whoever waits, and everybody.
    pub fn handle_note(&mut self, service: ServiceId, op: Option<OpId>, level: Level, text: &str) {
        self.progress(service, op, "note", text);
        match level {
            Level::Info => self.info(Some(service), text),
            Level::Warning => self.warn(Some(service), text),
        }
    }

    /// A line to everybody who waits for something of this service.
    pub fn progress(&mut self, service: ServiceId, op: Option<OpId>, step: &str, text: &str) {
        let wanted =
            |id: &OpId, o: &super::control::Op| (o.service == service || Some(*id) == op) && o.failure.is_none();
        let calls: Vec<u64> = self.ops.iter().filter(|(id, o)| wanted(id, o)).map(|(_, o)| o.call).collect();
        if calls.is_empty() {
            return;
        }
        let name = self.units.get(&service).map(|u| std::sync::Arc::clone(&u.name));
        let line = Progress::now(name.as_deref(), step, text);
        for call in calls {
            if let Some(pending) = self.calls.get_mut(&call) {
                pending.reply.progress(&line);
            }
        }
    }

    pub fn info(&mut self, service: Option<ServiceId>, text: &str) {
        self.publish(service, "info", text);
    }

    pub fn warn(&mut self, service: Option<ServiceId>, text: &str) {
        self.publish(service, "warning", text);
    }

    fn publish(&mut self, service: Option<ServiceId>, kind: &str, text: &str) {
        let name = service.and_then(|s| self.units.get(&s)).map(|u| std::sync::Arc::clone(&u.name));
        let shown = name.as_deref().unwrap_or("svd");
        if kind == "warning" {
            tracing::warn!("{shown}: {text}");
        } else {
            tracing::info!("{shown}: {text}");
        }
        let state = service.and_then(|s| self.state_of(s));
        let generation = service.and_then(|s| self.machine.service(s)).and_then(|s| s.committed());
        self.events.publish(Event {
            time: rfc3339(SystemTime::now()),
            service: name.as_deref().map(Into::into),
            event: kind.into(),
            state,
            generation: generation.map(|g| g.id.number),
            worker: None,
            message: text.into(),
        });
    }

    pub fn handle_log_event(&mut self, event: LogEvent) {
        match event {
            LogEvent::Drained { .. } => {}
            LogEvent::Matched { watch } => {
                let worker = self.workers.iter().find(|(_, p)| p.watch == Some(watch)).map(|(id, _)| *id);
                if let Some(worker) = worker {
                    self.satisfied(worker, super::unit::Need::Log);
                }
            }
            LogEvent::Trouble { service, text } => {
                let id = self.machine.named(&service).map(|s| s.id);
                // The event names it.
                self.warn(id, text.strip_prefix(&format!("{service}: ")).unwrap_or(&text));
            }
            LogEvent::Failing { service, stream, why } => {
                let id = self.machine.named(&service).map(|s| s.id);
                self.unwritten.entry(service).or_default().insert(stream, why.as_str().into());
                let rest = "The service goes on; its output is counted and dropped until writing works again";
                self.warn(id, &format!("{why}. {rest}"));
            }
            LogEvent::Mended { service, text } => {
                let id = self.machine.named(&service).map(|s| s.id);
                self.info(id, &text);
            }
            LogEvent::Recovered { service, stream, lost } => {
                let id = self.machine.named(&service).map(|s| s.id);
                self.written(&service, stream);
                self.log_lost += lost.bytes;
                let text = format!("output is written again; {} bytes ({} lines) were lost", lost.bytes, lost.lines);
                self.warn(id, &text);
            }
            LogEvent::GivenUp { service, stream, lost } => {
                self.written(&service, stream);
                self.log_lost += lost.bytes;
                if lost.bytes > 0 {
                    // In svd's own log alone: followers may not know a name that is no service's any more.
                    let (file, Lost { bytes, lines }) = (stream.file_name(), lost);
                    tracing::warn!("{service}: {bytes} bytes ({lines} lines) for its {file} were lost, and it is gone");
                }
            }
        }
    }

    /// Nothing is wrong with that file any more.
    fn written(&mut self, service: &str, stream: Stream) {
        if let Some(files) = self.unwritten.get_mut(service) {
            files.remove(&stream);
            if files.is_empty() {
                self.unwritten.remove(service);
            }
        }
    }
}
