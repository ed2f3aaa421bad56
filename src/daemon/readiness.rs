//! When a worker is ready: each way of `[ready]`, and what a kind knows by itself. The deadline is the core's.

use super::host::{Alarm, Host};
use super::probe::{self, Target};
use super::token;
use super::unit::{Need, Probing, Process, Task};
use crate::config::spec::{Kind, ReadyBy, Service};
use crate::core::{Event, GenerationId, Time, WorkerId};
use crate::kinds::{Context, gunicorn};
use crate::sys::fifo;
use crate::sys::poll::Interest;
use std::cell::RefCell;
use std::io::{ErrorKind, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A worker of a kind that tells nothing counts as ready when it has stayed up that long (or `settled`, if shorter).
const UNTOLD: Duration = Duration::from_secs(1);
/// Between two tries of a probe.
const PAUSE: Duration = Duration::from_millis(100);

impl Host {
    pub fn begin_readiness(&mut self, id: WorkerId) {
        if let Some(generation) = self.workers.get(&id).map(|p| p.generation) {
            self.gunicorn_begins(generation);
        }
        self.begin_readiness_again(id);
    }

    /// For a worker that was taken over while it booted: what it has told so far is known.
    pub fn begin_readiness_again(&mut self, id: WorkerId) {
        let Some(process) = self.workers.get(&id) else { return };
        let (generation, slot) = (process.generation, process.slot);
        let Some(made) = self.generations.get(&generation) else { return };
        let spec = Arc::clone(&made.plan.spec);
        let mut needs: Vec<Need> = (0..).zip(&spec.ready.by).map(|(n, by)| need_of(n, by, &spec)).collect();
        if gunicorn::is_gunicorn(&spec) {
            needs.push(Need::Gunicorn);
        }
        let mut delay = spec.ready.by.iter().find_map(|by| match by {
            ReadyBy::Delay(delay) => Some(*delay),
            _ => None,
        });
        if needs.is_empty() {
            delay = Some(UNTOLD.min(spec.restart.settled));
            needs.push(Need::Delay);
        }
        if let Some(process) = self.workers.get_mut(&id) {
            process.needs = needs;
        }
        if let Some(delay) = delay {
            self.begin_delay(id, delay);
        }
        for (n, by) in (0..).zip(&spec.ready.by) {
            match by {
                ReadyBy::Log(_) => self.begin_log_watch(id),
                ReadyBy::Descriptor => self.begin_descriptor(id),
                ReadyBy::Http(_) | ReadyBy::Tcp(_) | ReadyBy::Command(_) if need_of(n, by, &spec) == Need::Probe(n) => {
                    self.begin_probe(id, generation, slot, n, by);
                }
                _ => {}
            }
        }
    }

    fn begin_delay(&mut self, id: WorkerId, delay: Duration) {
        // By an alarm even where there is nothing to wait for: the core must hear of the spawn first.
        let at = self.now() + delay;
        self.alarms.insert((at, id, Alarm::Delay));
    }

    /// Unless that has begun.
    pub fn begin_log_watch(&mut self, id: WorkerId) {
        let Some(process) = self.workers.get(&id).filter(|p| p.watch.is_none()) else { return };
        let (generation, slot) = (process.generation, process.slot);
        let Some(made) = self.generations.get(&generation) else { return };
        let spec = Arc::clone(&made.plan.spec);
        let text = spec.ready.by.iter().find_map(|by| match by {
            ReadyBy::Log(text) => Some(text),
            _ => None,
        });
        let (Some(text), Some(unit)) = (text, self.units.get(&generation.service)) else { return };
        let watch = self.logs.watch(Arc::clone(&unit.name), generation.number, Some(slot), text.as_bytes());
        match (watch, self.workers.get_mut(&id)) {
            (Ok(watch), Some(process)) => process.watch = Some(watch),
            (Err(e), _) => {
                let reason = format!("cannot be watched for its log line: {e}");
                self.tell(Event::Unfit { worker: id, reason });
            }
            (Ok(_), None) => {}
        }
    }

    fn begin_descriptor(&mut self, id: WorkerId) {
        let Some(fd) = self.workers.get(&id).and_then(|p| p.ready_fd.as_ref()) else { return };
        if let Err(e) = self.poll.add(fd, Interest::Read, token::of_ready(id)) {
            let reason = format!("cannot be watched for its readiness: {}", e.desc());
            self.tell(Event::Unfit { worker: id, reason });
        }
    }

    /// A line on the readiness descriptor, or its end after at least a byte (s6, and JVMs by /proc/self/fd).
    pub fn handle_ready_descriptor(&mut self, id: WorkerId) {
        let Some(process) = self.workers.get_mut(&id) else { return };
        let Some(fd) = &mut process.ready_fd else { return };
        if fifo::waiting(&*fd).is_ok_and(|bytes| bytes > 0) {
            let _ = self.poll.delete(&*fd);
            self.satisfied(id, Need::Descriptor);
            // What is in it stays there until it is written down: had svd died before, the next one finds it.
            self.deliver();
            self.write_state();
            if let Some(process) = self.workers.get_mut(&id) {
                process.ready_fd = None;
            }
            return;
        }
        let mut buffer = [0_u8; 256];
        match fd.read(&mut buffer) {
            Ok(0) => {
                let _ = self.poll.delete(&*fd);
                process.ready_fd = None;
                if !process.ready {
                    let reason = "closed its readiness descriptor without a word".to_owned();
                    self.tell(Event::Unfit { worker: id, reason });
                }
            }
            Ok(_) => {
                let _ = self.poll.delete(&*fd);
                process.ready_fd = None;
                self.satisfied(id, Need::Descriptor);
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(_) => {
                let _ = self.poll.delete(&*fd);
                process.ready_fd = None;
            }
        }
    }

    fn begin_probe(&mut self, id: WorkerId, generation: GenerationId, slot: u32, n: usize, by: &ReadyBy) {
        let target = match self.target(generation, slot, by) {
            Ok(target) => target,
            Err(reason) => return self.tell(Event::Unfit { worker: id, reason }),
        };
        let messages = self.messages.clone();
        let need = Need::Probe(n);
        let last = Rc::<RefCell<Option<String>>>::default();
        let told = Rc::clone(&last);
        let task = tokio::task::spawn_local(async move {
            loop {
                match probe::run(&target, &messages).await {
                    Some(Ok(())) => break,
                    Some(Err(why)) => *told.borrow_mut() = Some(why),
                    None => *told.borrow_mut() = Some("svd had no room to run its check".to_owned()),
                }
                tokio::time::sleep(PAUSE).await;
            }
            let _ = messages.send(super::host::Message::Passed { worker: id, need }).await;
        });
        if let Some(process) = self.workers.get_mut(&id) {
            process.probes.push(Probing { need, last, _task: Task(task) });
        }
    }

    /// Whose time to become ready is over: the core is told why it is not, which the core cannot know.
    pub fn tell_who_is_late(&mut self, now: Time) {
        for (worker, reason) in self.machine.late(now) {
            // It may have become ready at the last moment, and the core not heard of that yet.
            let Some(process) = self.workers.get(&worker).filter(|p| !p.ready) else { continue };
            let missing: Vec<String> = process.needs.iter().filter_map(|need| self.missing(process, *need)).collect();
            if !missing.is_empty() {
                let reason = format!("{reason}: {}", missing.join("; "));
                self.tell(Event::Unfit { worker, reason });
            }
        }
    }

    /// One thing that a worker's readiness waits for, as it stands.
    fn missing(&self, process: &Process, need: Need) -> Option<String> {
        let made = self.generations.get(&process.generation)?;
        Some(match need {
            Need::Gunicorn => {
                let gunicorn = made.gunicorn.as_deref()?;
                match gunicorn.workers {
                    0 => "gunicorn has not begun to start its workers".to_owned(),
                    all => format!("{} of {all} gunicorn workers are ready", gunicorn.ready.len()),
                }
            }
            Need::Notify => "READY=1 has not come".to_owned(),
            Need::Descriptor => "nothing has come on its readiness descriptor".to_owned(),
            Need::Probe(_) => {
                let probing = process.probes.iter().find(|p| p.need == need)?;
                probing.last.borrow().clone().unwrap_or_else(|| "its probe has had no answer yet".to_owned())
            }
            Need::Log => {
                let text = made.plan.spec.ready.by.iter().find_map(|by| match by {
                    ReadyBy::Log(text) => Some(text),
                    _ => None,
                })?;
                format!("no line of its output contains {text:?}")
            }
            Need::Delay => return None,
        })
    }

    /// What a probe of `[ready]` or `[health]` asks, for a worker of this generation.
    ///
    /// # Errors
    /// A placeholder without a value.
    pub fn target(&self, id: GenerationId, slot: u32, by: &ReadyBy) -> Result<Target, String> {
        let made = self.generations.get(&id).ok_or("its generation is gone")?;
        let launcher = self.around.paths.launcher();
        let context = Context {
            spec: &made.plan.spec,
            places: &made.plan.places,
            host: &self.around.host,
            generation: id.number,
            worker: slot,
            port: made.port,
            workers: None,
            launcher: &launcher,
            secrets: made.plan.secrets.as_ref().and_then(|secrets| secrets.path()),
        };
        let token = made.gunicorn.as_ref().map(|g| g.token.clone());
        probe::target(&context, by, token, id, slot, made.network.as_ref())
    }

    /// Begins the interval within which `WATCHDOG=1` must come: once it is ready (until then its start has a limit of
    /// its own), and again with each message.
    pub fn feed_watchdog(&mut self, id: WorkerId) {
        let Some(process) = self.workers.get_mut(&id).filter(|p| p.ready) else { return };
        let configured = self.generations.get(&process.generation).and_then(|g| super::launch::watchdog(&g.plan.spec));
        let every = process.watchdog_every.or(configured).filter(|every| !every.is_zero());
        let at = every.map(|every| self.now() + every);
        let Some(process) = self.workers.get_mut(&id) else { return };
        if let Some(old) = std::mem::replace(&mut process.watchdog, at) {
            self.alarms.remove(&(old, id, Alarm::Watchdog));
        }
        if let Some(at) = at {
            self.alarms.insert((at, id, Alarm::Watchdog));
        }
    }

    /// The interval is over: svd may have slept with the host, and what was sent in time may wait to be read.
    pub fn watchdog_due(&mut self, id: WorkerId) {
        let now = self.now();
        self.drain_notify(id);
        if self.workers.get(&id).is_some_and(|p| p.watchdog.is_some_and(|at| at <= now)) {
            self.watchdog_failed(id, "did not send WATCHDOG=1 in time");
        }
    }

    /// It hangs: it gets the signal that lets it leave a core dump, then the grace time, then the kill.
    pub fn watchdog_failed(&mut self, id: WorkerId, reason: &str) {
        let Some(process) = self.workers.get_mut(&id) else { return };
        if let Some(at) = process.watchdog.take() {
            self.alarms.remove(&(at, id, Alarm::Watchdog));
        }
        self.tell(Event::Hung { worker: id, reason: reason.to_owned() });
    }
}

fn need_of(n: usize, by: &ReadyBy, spec: &Service) -> Need {
    match by {
        ReadyBy::Notify => Need::Notify,
        ReadyBy::Descriptor => Need::Descriptor,
        ReadyBy::Log(_) => Need::Log,
        ReadyBy::Delay(_) => Need::Delay,
        // Made by each gunicorn worker of itself.
        by if gunicorn::answers_inside(spec, by) && matches!(spec.kind, Kind::Gunicorn { .. }) => Need::Gunicorn,
        _ => Need::Probe(n),
    }
}
