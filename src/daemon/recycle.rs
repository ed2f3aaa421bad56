//! One of gunicorn's workers is replaced alone: one more is started (TTIN), the old one is told to end when that one is ready, and the
//! master, which is told whose place is taken, does not fill it again.

use super::host::Host;
use super::state::Key;
use super::unit::Gunicorn;
use crate::core::memory::Fat;
use crate::core::{GenerationId, Time};
use crate::kinds::counters::{H_LEAVING, H_LETS_GO};
use crate::sys::process::{PidFd, start_time};

/// Under way.
pub struct Recycling {
    /// Who leaves.
    old: PidFd,
    /// What its master calls it.
    inner: i32,
    /// Why, for people.
    why: String,
    /// How many there were, and will be.
    pub count: u32,
    began: Time,
    /// When the old one was told to end.
    told: Option<Time>,
    /// It does not, and that was said.
    warned: bool,
}

impl Gunicorn {
    /// Nothing is under way, and all is as it should be.
    fn is_settled(&self) -> bool {
        let all = self.workers as usize;
        let idle = self.recycling.is_none() && self.target.is_none() && self.scaling.is_none();
        idle && self.committed && all > 0 && self.booted.len() == all && self.ready.len() == all
    }

    fn lets_go(&self) -> bool {
        self.counters.load(H_LETS_GO).is_some_and(|word| word != 0)
    }
}

impl Host {
    pub fn recycle(&mut self, id: GenerationId, fat: Fat, limit: &str) {
        let (Some(master), now) = (self.worker_of(id), self.now()) else { return };
        let Some(made) = self.generations.get_mut(&id) else { return };
        let inner = made.plan.numbers().inner(fat.pid);
        let (Some(gunicorn), Some(inner)) = (made.gunicorn.as_mut(), inner) else { return };
        // A launcher of before cannot; a reload brings another.
        if !gunicorn.is_settled() || !gunicorn.lets_go() || !gunicorn.booted.contains(&inner) {
            return;
        }
        let Ok(old) = PidFd::open(fat.pid) else { return };
        // The number may be somebody else's by now; what the descriptor stands for cannot become so.
        if start_time(fat.pid) != Some(fat.start_time) {
            return;
        }
        let why =
            format!("gunicorn worker {} uses {} MiB, above limits.worker_memory {limit}", fat.pid, fat.used >> 20);
        let text = format!("{why}: another one takes its place");
        let count = gunicorn.workers;
        gunicorn.workers += 1;
        gunicorn.recycling = Some(Recycling { old, inner, why, count, began: now, told: None, warned: false });
        self.state.mark(Key::Generation(id));
        self.warn(Some(id.service), &text);
        self.signal_worker(master, libc::SIGTTIN);
    }

    /// Another one may be ready.
    pub fn recycle_on(&mut self, id: GenerationId) {
        let now = self.now();
        let Some(gunicorn) = self.generations.get_mut(&id).and_then(|g| g.gunicorn.as_mut()) else { return };
        let Some(recycling) = &mut gunicorn.recycling else { return };
        if recycling.told.is_some() || gunicorn.ready.len() <= recycling.count as usize {
            return;
        }
        recycling.told = Some(now);
        gunicorn.counters.store(H_LEAVING, recycling.inner.unsigned_abs().into());
        if let Err(e) = recycling.old.signal(libc::SIGTERM) {
            let text = format!("{}, and cannot be told to end: {}", recycling.why, e.desc());
            self.warn(Some(id.service), &text);
        }
    }

    /// The new one may not come: then the number is to be as it was. The old one may not go: then that is said.
    pub fn recycle_late(&mut self, id: GenerationId) {
        self.recycle_stuck(id);
        let now = self.now();
        let Some(made) = self.generations.get_mut(&id) else { return };
        let limit = made.plan.spec.ready.timeout;
        let Some(gunicorn) = made.gunicorn.as_mut() else { return };
        let late = |r: &mut Recycling| r.told.is_none() && now.since(r.began) > limit;
        let Some(Recycling { why, count, .. }) = gunicorn.recycling.take_if(late) else { return };
        gunicorn.target = Some(count);
        self.state.mark(Key::Generation(id));
        let limit = humantime::format_duration(limit);
        self.warn(Some(id.service), &format!("{why}, but no other was ready within {limit}: it stays"));
        self.scale_on(id);
    }

    fn recycle_stuck(&mut self, id: GenerationId) {
        let (now, service) = (self.now(), self.machine.service(id.service));
        let serving = service.and_then(|s| s.committed()).filter(|g| g.id == id);
        let Some(grace) = serving.map(|g| g.policy.grace) else { return };
        let Some(gunicorn) = self.generations.get_mut(&id).and_then(|g| g.gunicorn.as_mut()) else { return };
        let stuck = |r: &&mut Recycling| !r.warned && r.told.is_some_and(|told| now.since(told) > grace);
        let Some(recycling) = gunicorn.recycling.as_mut().filter(stuck) else { return };
        recycling.warned = true;
        let text = format!(
            "gunicorn worker {} was told to end, as it is too large, and has not within {}: until then limits.worker_memory \
             replaces no other; `svctl reload` replaces all of them",
            recycling.old.pid(),
            humantime::format_duration(grace)
        );
        self.warn(Some(id.service), &text);
    }

    /// One has ended.
    pub fn recycled(&mut self, id: GenerationId, pid: i32) {
        let Some(gunicorn) = self.generations.get_mut(&id).and_then(|g| g.gunicorn.as_mut()) else { return };
        let Some(recycling) = gunicorn.recycling.take_if(|r| r.inner == pid) else { return };
        if recycling.told.is_none() {
            // By itself, before its successor was ready: its place is filled, too, so that there is one too many.
            gunicorn.target = Some(recycling.count);
            return;
        }
        gunicorn.workers = recycling.count;
        let pid = recycling.old.pid();
        let text = format!("gunicorn worker {pid} was replaced; {} workers serve", recycling.count);
        self.info(Some(id.service), &text);
    }
}
