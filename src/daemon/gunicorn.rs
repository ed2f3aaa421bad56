//! What gunicorn's masters and workers report, and `svctl scale` for them.

use super::host::{Alarm, Host};
use super::state::Key;
use super::unit::{Need, Scaling};
use crate::api::types::ServiceResult;
use crate::core::{Awaited, Event, Failure, GenerationId, ServiceId, WorkerId};
use crate::kinds::counters::H_LEAVING;
use crate::kinds::gunicorn::report::{self, MESSAGE_MAX, Report, WorkerState};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// Beyond its `graceful_timeout`, for the master to notice and end.
const GRACE_MORE: Duration = Duration::from_secs(5);

/// Reports taken before others have their turn.
const AT_ONCE: usize = 64;

/// Pids that are remembered of a generation: the application may write to the report socket, and invent some.
const PIDS: usize = 4096;

impl Host {
    pub fn handle_report(&mut self, id: GenerationId) {
        let mut buffer = vec![0_u8; MESSAGE_MAX];
        for _ in 0..AT_ONCE {
            let Some(gunicorn) = self.generations.get_mut(&id).and_then(|g| g.gunicorn.as_mut()) else { return };
            // It is taken when it is written down: had svd died before, the next one finds it there.
            match recv(gunicorn.report.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_PEEK) {
                // All ends of the generation's are closed.
                Ok(0) => {
                    let _ = self.poll.delete(&gunicorn.report);
                    return;
                }
                Ok(length) => match report::parse(&buffer[..length]) {
                    Ok(message) if self.is_of_master(id, message.master) => self.reported(id, message.report),
                    Ok(_) => tracing::debug!("a report of a master that is gone"),
                    // An application wrote to a descriptor that it found; nothing of ours.
                    Err(text) => tracing::debug!("{text}"),
                },
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                Err(e) => {
                    let _ = self.poll.delete(&gunicorn.report);
                    let text = format!("gunicorn's reports cannot be read any more: {}", e.desc());
                    return self.warn(Some(id.service), &text);
                }
            }
            self.deliver();
            self.write_state();
            if let Some(gunicorn) = self.generations.get(&id).and_then(|g| g.gunicorn.as_ref()) {
                let _ = recv(gunicorn.report.as_raw_fd(), &mut [], MsgFlags::MSG_DONTWAIT);
            }
        }
    }

    fn reported(&mut self, id: GenerationId, report: Report) {
        let Some(made) = self.generations.get_mut(&id) else { return };
        let grace_is_ours = made.plan.spec.stop.grace.is_none();
        let Some(gunicorn) = made.gunicorn.as_mut() else { return };
        self.state.mark(Key::Generation(id));
        match report {
            Report::Boot { graceful_timeout, workers, timeout, .. } => {
                (gunicorn.workers, gunicorn.timeout) = (workers, timeout);
                if grace_is_ours && graceful_timeout.is_finite() && graceful_timeout >= 0.0 {
                    let grace = Duration::from_secs_f64(graceful_timeout.min(86_400.0)) + GRACE_MORE;
                    self.tell(Event::Grace { service: id.service, grace });
                }
                self.gunicorn_ready(id);
                self.recycle_on(id);
            }
            Report::Worker { pid, state, reason } => match state {
                WorkerState::Booted => {
                    if gunicorn.booted.len() < PIDS {
                        gunicorn.booted.insert(pid);
                    }
                    self.scale_on(id);
                }
                WorkerState::Ready => {
                    if gunicorn.ready.len() < PIDS {
                        gunicorn.booted.insert(pid);
                        gunicorn.ready.insert(pid);
                    }
                    self.gunicorn_ready(id);
                    self.recycle_on(id);
                }
                WorkerState::Failed => {
                    let reason = reason.unwrap_or_else(|| "failed its probe".to_owned());
                    if let Some(worker) = self.worker_of(id)
                        && self.workers.get(&worker).is_some_and(|p| !p.ready)
                    {
                        self.tell(Event::Unfit { worker, reason });
                    } else {
                        self.warn(Some(id.service), &format!("a recycled worker ({pid}) failed its probe: {reason}"));
                    }
                }
            },
            Report::Exit { pid, open } => {
                gunicorn.booted.remove(&pid);
                gunicorn.ready.remove(&pid);
                if open > 0 {
                    let text = format!("gunicorn worker {pid} died with {open} requests open");
                    self.warn(Some(id.service), &text);
                }
                self.recycled(id, pid);
                self.scale_on(id);
            }
        }
    }

    /// The master of a generation.
    pub fn worker_of(&self, id: GenerationId) -> Option<WorkerId> {
        self.workers.iter().rev().find(|(_, p)| p.generation == id).map(|(id, _)| *id)
    }

    /// Reports of an earlier master wait in the same socket: of one that crashed, or was forked when svd was killed, and
    /// ended by the next svd, as no record named it. `said`: `None`, by a launcher that does not say.
    fn is_of_master(&self, id: GenerationId, said: Option<u64>) -> bool {
        said.is_none_or(|number| self.worker_of(id).is_none_or(|master| master.0 == number))
    }

    /// Ready when as many workers as the master wants have passed their probe.
    pub fn gunicorn_ready(&mut self, id: GenerationId) {
        let Some(gunicorn) = self.generations.get(&id).and_then(|g| g.gunicorn.as_ref()) else { return };
        let (ready, all) = (gunicorn.ready.len(), gunicorn.workers);
        let enough = gunicorn.workers > 0 && gunicorn.ready.len() >= gunicorn.workers as usize;
        if let (true, Some(worker)) = (enough, self.worker_of(id)) {
            self.satisfied(worker, Need::Gunicorn);
        } else if ready > 0 {
            let text = format!("generation {}: {ready} of {all} gunicorn workers are ready", id.number);
            self.progress(id.service, None, "ready", &text);
        }
    }

    /// A new master begins with nobody booted.
    pub fn gunicorn_begins(&mut self, id: GenerationId) {
        if let Some(gunicorn) = self.generations.get_mut(&id).and_then(|g| g.gunicorn.as_mut()) {
            gunicorn.booted.clear();
            gunicorn.ready.clear();
            gunicorn.workers = 0;
            gunicorn.recycling = None;
            // Its number may be somebody else's later.
            gunicorn.counters.store(H_LEAVING, 0);
        }
    }

    /// Scales the committed generation; the next ones start with that number. The call is answered when the last new
    /// worker has booted, or the last one too many is gone, and within the timeout of `[ready]`.
    pub fn scale_gunicorn(&mut self, call: u64, service: ServiceId, name: &str, count: u32) {
        if let Some(unit) = self.units.get_mut(&service) {
            unit.scaled = Some(count);
            self.state.mark(Key::Unit(service));
        }
        let committed = self.machine.service(service).and_then(|s| s.committed()).map(|g| g.id);
        let Some(id) = committed else {
            let text = format!("starts with {count} workers");
            return self.add_result(call, ServiceResult::done(name, true, text));
        };
        self.scaled(id, Err(failure("it was scaled to another number meanwhile")));
        let (now, master) = (self.now(), self.worker_of(id));
        let Some(made) = self.generations.get_mut(&id) else { return };
        let until = now + made.plan.spec.ready.timeout;
        let Some(gunicorn) = made.gunicorn.as_mut() else { return };
        let before = gunicorn.workers;
        gunicorn.target = Some(count);
        gunicorn.recycling = None;
        if before == count && gunicorn.booted.len() == count as usize {
            gunicorn.target = None;
            let text = format!("has {count} workers");
            return self.add_result(call, ServiceResult::done(name, false, text));
        }
        let op = self.begin_op(call, service, name, format!("{before} → {count} workers"), Awaited::Nothing, None);
        if let Some(gunicorn) = self.generations.get_mut(&id).and_then(|g| g.gunicorn.as_mut()) {
            gunicorn.scaling = Some(Scaling { op, until });
        }
        self.alarms.extend(master.map(|master| (until, master, Alarm::Scale)));
        self.scale_on(id);
    }

    /// A generation that began before a `svctl scale`, and was committed after it.
    pub fn scale_as_asked(&mut self, id: GenerationId) {
        let Some(count) = self.units.get(&id.service).and_then(|unit| unit.scaled) else { return };
        let Some(gunicorn) = self.generations.get_mut(&id).and_then(|g| g.gunicorn.as_mut()) else { return };
        if gunicorn.workers != count {
            gunicorn.target = Some(count);
            self.scale_on(id);
        }
    }

    /// Nobody gets what the master was asked for any more.
    pub fn scaling_ended(&mut self, id: GenerationId) {
        self.scaled(id, Err(failure("its master has ended meanwhile; the next one starts with that number")));
    }

    /// Whoever waits for the number of workers is answered.
    fn scaled(&mut self, id: GenerationId, result: Result<(), Failure>) {
        let gunicorn = self.generations.get_mut(&id).and_then(|g| g.gunicorn.as_mut());
        let Some(Scaling { op, until }) = gunicorn.and_then(|g| g.scaling.take()) else { return };
        self.alarms.retain(|(at, worker, alarm)| {
            (*at, *alarm) != (until, Alarm::Scale) || self.workers.get(worker).is_none_or(|p| p.generation != id)
        });
        self.handle_done(op, result);
    }

    /// It takes longer than a start may take. It goes on.
    pub fn scale_late(&mut self, master: WorkerId) {
        let Some(id) = self.workers.get(&master).map(|p| p.generation) else { return };
        let Some(made) = self.generations.get(&id) else { return };
        let Some(gunicorn) = &made.gunicorn else { return };
        let (booted, target) = (gunicorn.booted.len(), gunicorn.target.unwrap_or(gunicorn.workers));
        let limit = humantime::format_duration(made.plan.spec.ready.timeout);
        let why = format!(
            "it has {booted} workers instead of {target} after {limit}: new ones do not boot, or old ones finish long \
             requests; it goes on"
        );
        // Its output may say why.
        self.scaled(id, Err(Failure { reason: why, generation: Some(id.number) }));
    }

    /// One TTIN or TTOU for each worker that has booted or left: several at once coalesce.
    pub fn scale_on(&mut self, id: GenerationId) {
        let Some(gunicorn) = self.generations.get_mut(&id).and_then(|g| g.gunicorn.as_mut()) else { return };
        let Some(target) = gunicorn.target else { return };
        let booted = gunicorn.booted.len() as u32;
        if booted != gunicorn.workers {
            // The last step is still under way.
            return;
        }
        let signal = match gunicorn.workers.cmp(&target) {
            std::cmp::Ordering::Less => {
                gunicorn.workers += 1;
                libc::SIGTTIN
            }
            std::cmp::Ordering::Greater => {
                gunicorn.workers -= 1;
                libc::SIGTTOU
            }
            std::cmp::Ordering::Equal => {
                gunicorn.target = None;
                let text = format!("gunicorn has {target} workers");
                self.info(Some(id.service), &text);
                return self.scaled(id, Ok(()));
            }
        };
        if let Some(worker) = self.worker_of(id) {
            self.signal_worker(worker, signal);
        }
    }
}

fn failure(reason: &str) -> Failure {
    Failure { reason: reason.to_owned(), generation: None }
}
