//! What the log thread is told to do.

use std::collections::VecDeque;
use std::sync::Arc;

use super::engine::{ALL_STREAMS, Engine, Timer};
use super::handle::{Command, LogEvent, LogStatus, PipeId};
use super::memory::Watch;
use super::names::Stream;
use super::rotate;
use super::service::{FOLLOWERS_MAX, WATCHES_MAX};
use super::signal::Signal;
use crate::config::spec::Logs;

impl Engine {
    pub(super) fn commands(&mut self) {
        let mut commands: VecDeque<Command> = self.shared.take();
        while let Some(command) = commands.pop_front() {
            self.command(command);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Configure(name, logs) => self.configure(name, *logs),
            Command::Remove(name) => self.remove(&name),
            Command::Generation { service, begins } => {
                let slot = self.slot(&service);
                if let Some(s) = self.service(slot) {
                    s.begin(begins.generation, Some(begins));
                }
            }
            Command::Attach(id, origin, fd) => {
                let slot = self.slot(&origin.service);
                self.attach(id, slot, origin, fd);
            }
            Command::Detach(pipe) => self.detach(pipe),
            Command::Reopen => self.reopen(),
            Command::Rotate(name, reply) => {
                let _ = reply.send(self.rotate_now(&name));
            }
            Command::Tail(name, generation, max, reply) => {
                let tail = self.known(&name).map_or(Vec::new(), |s| s.tail(generation, max));
                let _ = reply.send(tail);
            }
            Command::Status(name, reply) => {
                let _ = reply.send(self.status(&name));
            }
            Command::Watch { id, service, generation, worker, text } => {
                let slot = self.slot(&service);
                if let Some(s) = self.service(slot) {
                    if s.watches.len() >= WATCHES_MAX {
                        s.watches.remove(0); // the oldest: of workers that are long gone
                    }
                    s.watches.push(Watch::new(id, generation, worker, &text));
                }
            }
            Command::Unwatch(name, watch) => {
                if let Some(s) = self.known(&name) {
                    s.watches.retain(|w| w.id != watch);
                }
            }
            Command::Subscribe(name, stream, signal) => self.subscribe(&name, stream, signal),
            Command::Compressed(result) => self.compressed(result),
            Command::Shutdown { leave } => self.ending = Some(leave),
        }
    }

    fn configure(&mut self, name: Arc<str>, logs: Logs) {
        if *self.last_limits != logs {
            self.last_limits = Arc::new(logs);
        }
        let limits = self.last_limits.clone();
        let slot = self.slot(&name);
        let Some(service) = self.service(slot) else {
            return;
        };
        let old = std::mem::replace(&mut service.limits, limits.clone());
        if old == limits {
            return;
        }
        for stream in ALL_STREAMS {
            // A file that is not open needs nothing: its next byte finds the new limits.
            if self.sink(slot, stream).is_none() {
                continue;
            }
            self.timers.retain(|(_, t)| *t != Timer::Age(slot, stream));
            let keep = limits.keep;
            self.with_env(slot, stream, |sink, env| {
                sink.age_timer = false;
                sink.rotated = true;
                if let Err(e) = rotate::prune(&sink.names(env.dir), keep) {
                    (env.notify)(LogEvent::Trouble {
                        service: env.service.into(),
                        text: format!(
                            "{}: cannot remove rotated files beyond {keep} in {}: {e}; the next rotation tries again",
                            env.service,
                            env.dir.display()
                        ),
                    });
                }
            });
            self.after(slot, stream);
        }
    }

    fn remove(&mut self, name: &str) {
        let Some(slot) = self.by_name.remove(name) else {
            return;
        };
        if let Some(service) = self.service(slot) {
            service.leaving = true;
            for (_, signal) in service.followers.drain(..) {
                signal.close();
            }
        }
        let pipes: Vec<PipeId> = self.pipes.iter().filter(|(_, p)| p.service == slot).map(|(id, _)| *id).collect();
        for pipe in pipes {
            self.detach(pipe);
        }
        self.forget_if_done(slot);
    }

    fn reopen(&mut self) {
        for slot in 0..self.services.len() as u32 {
            for stream in ALL_STREAMS {
                if let Some(sink) = self.sink(slot, stream) {
                    sink.reopen();
                    self.after(slot, stream);
                }
            }
        }
    }

    fn rotate_now(&mut self, name: &str) -> bool {
        let Some(slot) = self.by_name.get(name).copied() else {
            return false;
        };
        let mut any = false;
        for stream in ALL_STREAMS {
            self.with_env(slot, stream, |sink, env| {
                any |= sink.ready(env) && sink.rotate(env);
            });
            self.after(slot, stream);
        }
        any
    }

    fn status(&mut self, name: &str) -> LogStatus {
        let mut status = LogStatus::default();
        let Some(service) = self.known(name) else {
            return status;
        };
        for sink in service.sinks.iter().flatten() {
            status.lost.bytes += sink.lost.bytes;
            status.lost.lines += sink.lost.lines;
            status.trouble = status.trouble.or(sink.trouble().map(str::to_string));
        }
        status
    }

    fn subscribe(&mut self, name: &str, stream: Stream, signal: Arc<Signal>) {
        let Some(service) = self.known(name) else {
            return signal.close();
        };
        // A reader that went away left us as the only holder.
        service.followers.retain(|(_, s)| Arc::strong_count(s) > 1);
        if service.followers.len() >= FOLLOWERS_MAX {
            return signal.close();
        }
        service.followers.push((stream, signal));
    }
}
