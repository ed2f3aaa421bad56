//! The log thread: waits, runs commands, gives each readable pipe its turn, and keeps the timers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::compression::Compression;
use super::handle::{LogEvent, Notify, Options, PipeId, Shared};
use super::index::millis;
use super::inflight::InFlight;
use super::names::Stream;
use super::pace::Pace;
use super::service::{HOLD, LOOK_AGAIN, Pipe, Service, Urgency};
use super::sink::{Env, Sink};
use crate::config::spec::{LogFormat, Logs, Stderr};
use crate::sys::fifo;
use crate::sys::memory::Pages;

/// Events of one wait; more wait for the next.
const EVENTS: usize = 64;

/// The one buffer of the thread: what is looked at at once.
const BUFFER: NonZeroUsize = NonZeroUsize::new(128 * 1024).expect("not zero");

/// Capacity of the pipe that is copied into.
const ASIDE: usize = 512 * 1024;

/// The token of the command queue; pipes count from 1.
const WAKE: u64 = 0;

/// A pause before a failed epoll is tried again: it cannot happen, and must not spin if it does.
const TROUBLE_PAUSE: Duration = Duration::from_secs(1);

pub(super) const ALL_STREAMS: [Stream; 3] = [Stream::Joined, Stream::Stdout, Stream::Stderr];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// A pipe's held line is to be looked at, or overdue.
    Held(PipeId),
    /// A file is due for its rotation by age.
    Age(u32, Stream),
    /// It is to be tried whether a file can be written again. None is set where nothing is wrong.
    Retry(u32, Stream),
}

pub(super) struct Engine {
    pub(super) epoll: Epoll,
    pub(super) shared: Arc<Shared>,
    pub(super) log_dir: PathBuf,
    pub(super) notify: Notify,
    pub(super) lower_priority: Option<fn()>,
    pub(super) by_name: BTreeMap<Arc<str>, u32>,
    pub(super) services: Vec<Option<Service>>,
    pub(super) free: Vec<u32>,
    /// The limits that were last configured: most services share them.
    pub(super) last_limits: Arc<Logs>,
    pub(super) pipes: BTreeMap<PipeId, Pipe>,
    pub(super) timers: BTreeSet<(Instant, Timer)>,
    pub(super) buffer: Pages,
    /// A pipe of our own, empty between two turns: what a worker's has is copied into it to be looked at.
    pub(super) aside: (File, OwnedFd),
    pub(super) in_flight: Option<InFlight>,
    pub(super) scratch: Vec<u8>,
    pub(super) pace: Pace,
    /// Pipes that gave much in this round.
    pub(super) streams: BTreeSet<PipeId>,
    /// Pipes that are not watched: they have a turn in each round, until one of them gives little.
    pub(super) unwatched: BTreeSet<PipeId>,
    /// Pipes with a raised capacity.
    pub(super) grown: usize,
    pub(super) to_compress: BTreeSet<(u32, Stream)>,
    pub(super) compression: Option<Compression>,
    /// Whether what the pipes hold is left to the next svd.
    pub(super) ending: Option<bool>,
}

/// What a file without `[logs]` means.
fn default_limits() -> Logs {
    Logs {
        capture: true,
        stderr: Stderr::Join,
        format: LogFormat::Raw,
        max_size: 50_000_000,
        max_age: Some(Duration::from_secs(24 * 3600)),
        keep: 10,
        compress: true,
    }
}

impl Engine {
    pub fn new(options: Options, shared: Arc<Shared>) -> io::Result<Engine> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let (reader, writer) = fifo::pipe()?;
        let aside = (File::from(reader), writer);
        // As many pages as the pipes that are copied from may have.
        fifo::grow(&aside.1, ASIDE);
        if let Some(in_flight) = &options.in_flight
            && let Err(e) = in_flight.recover(&options.log_dir)
        {
            let why = crate::sys::io_text(&e);
            let text =
                format!("what a killed svd was writing to a log cannot be completed: {why}; bytes may be missing");
            (options.notify)(LogEvent::Trouble { service: "svd".into(), text });
        }
        epoll.add(&shared.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        Ok(Engine {
            epoll,
            shared,
            log_dir: options.log_dir,
            notify: options.notify,
            lower_priority: options.lower_priority,
            by_name: BTreeMap::new(),
            services: Vec::new(),
            free: Vec::new(),
            last_limits: Arc::new(default_limits()),
            pipes: BTreeMap::new(),
            timers: BTreeSet::new(),
            buffer: Pages::map(BUFFER)?,
            aside,
            in_flight: options.in_flight,
            scratch: Vec::new(),
            pace: Pace::default(),
            streams: BTreeSet::new(),
            unwatched: BTreeSet::new(),
            grown: 0,
            to_compress: BTreeSet::new(),
            compression: None,
            ending: None,
        })
    }

    pub fn run(&mut self) {
        let mut events = [EpollEvent::empty(); EVENTS];
        while self.ending.is_none() {
            let ready = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(n) => n,
                Err(Errno::EINTR) => 0,
                Err(e) => {
                    (self.notify)(LogEvent::Trouble {
                        service: "svd".into(),
                        text: format!("the log thread cannot wait for output: {e}; tried again in a second"),
                    });
                    std::thread::sleep(TROUBLE_PAUSE);
                    0
                }
            };
            self.pace.begin(Instant::now());
            for event in &events[..ready] {
                if event.data() == WAKE {
                    self.commands();
                } else {
                    let closed = EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                    self.turn(PipeId(event.data()), event.events().intersects(closed));
                }
            }
            for id in self.unwatched.clone() {
                self.turn(id, false);
            }
            self.run_timers();
            self.compress_next();
            let pause = self.pace.pause();
            self.choose_watched(pause.is_some());
            if self.ending.is_none()
                && let Some(pause) = pause
            {
                std::thread::sleep(pause);
            }
        }
        self.finish();
    }

    fn timeout(&self) -> EpollTimeout {
        if !self.unwatched.is_empty() {
            return EpollTimeout::ZERO;
        }
        let Some((at, _)) = self.timers.first() else {
            return EpollTimeout::NONE;
        };
        let left = at.saturating_duration_since(Instant::now());
        // Rounded up: waking too early would only go round again.
        let ms = left.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32;
        EpollTimeout::try_from(ms).unwrap_or(EpollTimeout::MAX)
    }

    fn run_timers(&mut self) {
        let now = Instant::now();
        while let Some(&(at, timer)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.pop_first();
            match timer {
                Timer::Held(pipe) => self.held_overdue(pipe, now),
                Timer::Age(slot, stream) => {
                    if let Some(sink) = self.sink(slot, stream) {
                        sink.age_timer = false;
                    }
                    self.with_env(slot, stream, |sink, env| {
                        if sink.due_ms(env.limits).is_some_and(|due| env.wall_ms >= due) {
                            sink.rotate(env);
                        }
                    });
                    self.after(slot, stream);
                }
                Timer::Retry(slot, stream) => {
                    self.with_env(slot, stream, |sink, env| {
                        sink.retry_timer = false;
                        if sink.trouble().is_some() {
                            sink.ready(env);
                        }
                    });
                    self.after(slot, stream);
                }
            }
        }
    }

    pub(super) fn service(&mut self, slot: u32) -> Option<&mut Service> {
        self.services.get_mut(slot as usize)?.as_mut()
    }

    pub(super) fn known(&mut self, name: &str) -> Option<&mut Service> {
        let slot = *self.by_name.get(name)?;
        self.service(slot)
    }

    pub(super) fn sink(&mut self, slot: u32, stream: Stream) -> Option<&mut Sink> {
        self.service(slot)?.sinks[stream.number()].as_deref_mut()
    }

    /// The service's place; a new one with the limits that were last configured.
    pub(super) fn slot(&mut self, name: &Arc<str>) -> u32 {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let service = Service::new(name.clone(), self.last_limits.clone());
        let slot = match self.free.pop() {
            Some(slot) => {
                self.services[slot as usize] = Some(service);
                slot
            }
            None => {
                self.services.push(Some(service));
                (self.services.len() - 1) as u32
            }
        };
        self.by_name.insert(name.clone(), slot);
        slot
    }

    pub(super) fn forget_if_done(&mut self, slot: u32) {
        if !self.service(slot).is_some_and(|s| s.leaving && s.live == [0; 3]) {
            return;
        }
        for stream in ALL_STREAMS {
            self.with_env(slot, stream, Sink::give_up);
        }
        self.services[slot as usize] = None;
        self.free.push(slot);
        self.to_compress.retain(|(s, _)| *s != slot);
        self.timers.retain(|(_, t)| !matches!(t, Timer::Age(s, _) | Timer::Retry(s, _) if *s == slot));
    }

    // ---- what follows a write --------------------------------------------------------------------------------------

    /// Runs `f` on an existing sink with its surroundings.
    pub(super) fn with_env(&mut self, slot: u32, stream: Stream, f: impl FnOnce(&mut Sink, &Env<'_>)) {
        let Some(service) = self.services.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        let dir = service.dir(&self.log_dir);
        let Some(sink) = service.sinks[stream.number()].as_deref_mut() else {
            return;
        };
        let env = Env {
            service: &service.name,
            dir: &dir,
            limits: &service.limits,
            now: Instant::now(),
            wall_ms: millis(SystemTime::now()),
            notify: &self.notify,
            in_flight: self.in_flight.as_ref(),
        };
        f(sink, &env);
    }

    /// After anything that may have written or rotated, or failed to: followers, the timers, compression.
    pub(super) fn after(&mut self, slot: u32, stream: Stream) {
        let Some(service) = self.services.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        let Some(sink) = service.sinks[stream.number()].as_deref_mut() else {
            return;
        };
        if std::mem::take(&mut sink.grew) {
            for (of, signal) in &service.followers {
                if *of == stream {
                    signal.raise();
                }
            }
        }
        if !sink.age_timer
            && let Some(due) = sink.due_ms(&service.limits)
        {
            let left = due.saturating_sub(millis(SystemTime::now()));
            // A rotation that failed comes back with a pause.
            let left = Duration::from_millis(left).max(super::sink::RETRY);
            if let Some(at) = Instant::now().checked_add(left) {
                sink.age_timer = true;
                self.timers.insert((at, Timer::Age(slot, stream)));
            }
        }
        if !sink.retry_timer && sink.trouble().is_some() {
            sink.retry_timer = true;
            self.timers.insert((Instant::now() + super::sink::RETRY, Timer::Retry(slot, stream)));
        }
        if std::mem::take(&mut sink.rotated) && service.limits.compress {
            self.to_compress.insert((slot, stream));
        }
    }

    // ---- the end ---------------------------------------------------------------------------------------------------

    fn finish(&mut self) {
        let pipes = if self.ending == Some(true) { Vec::new() } else { self.pipes.keys().copied().collect() };
        for pipe in pipes {
            self.drain(pipe);
        }
        for service in self.services.iter().flatten() {
            for (_, signal) in &service.followers {
                signal.raise();
                signal.close();
            }
        }
        self.cancel_compression();
        self.shared.end();
        self.services.clear();
    }

    fn held_overdue(&mut self, id: PipeId, now: Instant) {
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return;
        };
        pipe.timer = false;
        if pipe.lost {
            self.watch(id);
        }
        let Some(pipe) = self.pipes.get_mut(&id) else {
            return;
        };
        let due = pipe.held_since.is_some_and(|t| t + HOLD <= now);
        self.turn_as(id, false, if due { Urgency::Overdue } else { Urgency::Normal });
    }

    /// Sets the timer for what a pipe holds back, or for one that cannot be watched, unless it is set.
    pub(super) fn arm(&mut self, id: PipeId, pipe: &mut Pipe) {
        if !pipe.timer && (pipe.lost || pipe.held_since.is_some()) {
            pipe.timer = true;
            let soon = Instant::now() + LOOK_AGAIN;
            let at = pipe.held_since.map_or(soon, |since| soon.min(since + HOLD));
            self.timers.insert((at, Timer::Held(id)));
        }
    }
}
