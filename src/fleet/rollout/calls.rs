//! Calls: what each host is to be asked next, how many at once, and what the answers mean.

use std::time::Duration;

use super::event::{Action, Call, CallError, CallId, End, Mark, Reply, View};
use super::host::{At, Job, JobState};
use super::journal::{Stage, What};
use super::machine::{Machine, Purpose, RETRY, Start, UnderWay};
use super::phases::{Failure, Phase};
use super::timers::Timer;

/// Times that a host is asked to take a release back, or to confirm it, when it says that this has failed.
const TRIES: u32 = 3;

impl Machine {
    /// How long hosts are to hold what they have.
    pub(super) fn lease(&self) -> Duration {
        match &self.progress.paused {
            Some(_) => Duration::from_millis(self.plan.limits.long_lease),
            None => self.plan.limits.lease(),
        }
    }

    pub(super) fn give_job(&mut self, at: usize, calls: impl IntoIterator<Item = Call>) {
        let job = Job::new(calls);
        if job.calls.is_empty() {
            return;
        }
        if self.hosts[at].job.replace(job).is_none() {
            self.jobs += 1;
        }
        self.queue(at);
        self.tend(at);
    }

    /// Its job may go on, if nothing is in its way.
    fn queue(&mut self, at: usize) {
        let (now, locking) = (self.now, matches!(self.phase, Phase::Locking { .. }));
        let host = &mut self.hosts[at];
        let may = (host.locked || locking) && host.retry_at <= now;
        if let Some(job) = host.job.as_mut().filter(|job| may && job.state == JobState::Waiting) {
            job.state = JobState::Queued;
            self.ready.push_back(at);
        }
    }

    fn end_job(&mut self, at: usize) {
        if self.hosts[at].job.take().is_some() {
            self.jobs -= 1;
        }
    }

    /// It is not gone on with; what is under way is still waited for.
    fn drop_job(&mut self, at: usize) {
        match self.hosts[at].job.as_mut() {
            Some(job) if job.is_under_way() => job.dropped = true,
            _ => self.end_job(at),
        }
    }

    pub(super) fn drop_jobs(&mut self) {
        for at in 0..self.hosts.len() {
            self.drop_job(at);
        }
    }

    /// As many calls as may be under way: small ones first, since leases depend on them.
    pub(super) fn send(&mut self) {
        let most = self.plan.limits.parallel.max(1);
        while !self.ended && self.small < most {
            let Some((at, purpose)) = self.chores.pop_front() else { break };
            self.send_chore(at, purpose);
        }
        while !self.ended && self.committed == self.entries.len() {
            let Some(&at) = self.ready.front() else { break };
            let queued = self.hosts[at].job.as_ref().filter(|job| job.state == JobState::Queued);
            let Some(call) = queued.and_then(|job| job.calls.front()).cloned() else {
                self.ready.pop_front();
                continue;
            };
            if (if call.is_work() { self.working } else { self.small }) >= most {
                break;
            }
            self.ready.pop_front();
            if matches!(call, Call::Activate { .. }) {
                let host = &mut self.hosts[at];
                host.asked = true;
                if host.at == At::Before {
                    host.at = At::Unsure;
                }
            }
            let id = self.call(at, Purpose::Job, call);
            if let Some(job) = &mut self.hosts[at].job {
                job.state = JobState::UnderWay(id);
            }
        }
    }

    fn call(&mut self, at: usize, purpose: Purpose, call: Call) -> CallId {
        let (id, work) = (self.next_call(), call.is_work());
        self.under_way.insert(id, UnderWay { host: at, purpose, work, sent: self.now, lease: self.lease() });
        *(if work { &mut self.working } else { &mut self.small }) += 1;
        let host = self.hosts[at].name.clone();
        self.out.push(Action::Call { id, host, number: self.number, call });
        id
    }

    fn send_chore(&mut self, at: usize, purpose: Purpose) {
        let lease = self.lease();
        let host = &mut self.hosts[at];
        if !host.locked && purpose != Purpose::Lock {
            host.chores.forget(purpose);
            if let Purpose::Counts { round } = purpose {
                self.uncounted(round);
            }
            return;
        }
        let (call, purpose) = match purpose {
            Purpose::Lock => (Call::Lock { lease }, purpose),
            Purpose::Renew => (Call::Renew { lease }, purpose),
            Purpose::Append { .. } => {
                let from = self.hosts[at].journal;
                let call = Call::Append { from, entries: self.entries[from..].to_vec() };
                (call, Purpose::Append { until: self.entries.len() })
            }
            Purpose::Counts { .. } => {
                (Call::Counts { slow: self.plan.limits.slow.map(Duration::from_millis) }, purpose)
            }
            Purpose::Job => return,
        };
        self.call(at, purpose, call);
    }

    /// Whatever the host needs now but its job; and when to look again.
    pub(super) fn tend(&mut self, at: usize) {
        if self.ended || matches!(self.phase, Phase::Begin | Phase::Unlocking { .. }) {
            return;
        }
        let patience = self.patience();
        if let Some((since, why)) = self.hosts[at].lost.clone()
            && since + patience <= self.now
        {
            self.give_up(at, &why);
        }
        if let Some(since) = self.hosts[at].job.as_ref().and_then(|job| job.stuck)
            && since + self.plan.limits.lease().max(patience) <= self.now
        {
            self.give_up(at, "it does not get on");
        }
        self.queue(at);
        let (now, entries, renew_after) = (self.now, self.entries.len(), self.lease() / 3);
        let locking = matches!(self.phase, Phase::Locking { .. });
        let host = &mut self.hosts[at];
        let wanted = host.is_part() || host.job.is_some();
        let mut due = Vec::new();
        if let Some((since, _)) = &host.lost {
            due.push(*since + patience);
        }
        if let Some(since) = host.job.as_ref().and_then(|job| job.stuck) {
            due.push(since + self.plan.limits.lease().max(patience));
        }
        if host.retry_at > now {
            due.push(host.retry_at);
        } else if !host.locked {
            // Whoever is left out still counts for the journal.
            if (wanted || host.journal < entries) && !locking && !host.chores.lock {
                host.chores.lock = true;
                self.chores.push_front((at, Purpose::Lock));
            }
        } else {
            if host.skipped && host.job.is_none() {
                // Its lease is to end.
            } else if let Some(due_at) = host.renewed.map(|time| time + renew_after).filter(|time| *time > now)
                && (locking || host.lost.is_none())
            {
                due.push(due_at);
            } else if !host.chores.renew {
                // Whoever has not answered is asked until patience ends, after the others: it may take up its turn for long. While the
                // lock is being taken nobody is left out, and it would never be the others' turn.
                host.chores.renew = true;
                match host.lost {
                    None => self.chores.push_front((at, Purpose::Renew)),
                    Some(_) => self.chores.push_back((at, Purpose::Renew)),
                }
            }
            if host.journal < entries && !host.chores.append {
                host.chores.append = true;
                self.chores.push_back((at, Purpose::Append { until: 0 }));
            }
        }
        match due.into_iter().filter(|time| *time > now).min() {
            Some(time) => self.timers.set(Timer::Host(at), time),
            None => self.timers.clear(Timer::Host(at)),
        }
    }

    pub(super) fn handle_answer(&mut self, id: CallId, result: Result<Reply, CallError>) {
        let Some(UnderWay { host: at, purpose, work, sent, lease }) = self.under_way.remove(&id) else { return };
        *(if work { &mut self.working } else { &mut self.small }) -= 1;
        self.hosts[at].chores.forget(purpose);
        match self.believed(result) {
            Ok(reply) => {
                self.hosts[at].lost = None;
                if matches!(reply, Reply::Granted { .. } | Reply::Renewed(_)) {
                    // It began no earlier; and it may have to be another one meanwhile.
                    self.hosts[at].renewed = (lease == self.lease()).then_some(sent);
                }
                self.replied(at, purpose, reply);
            }
            Err(error) => self.refused(at, purpose, error),
        }
        if !self.ended {
            self.tend(at);
        }
    }

    fn replied(&mut self, at: usize, purpose: Purpose, reply: Reply) {
        match (purpose, reply) {
            (Purpose::Job, reply) => self.job_replied(at, reply),
            (Purpose::Lock, Reply::Granted { view, journal, .. }) => self.granted(at, view, journal),
            (Purpose::Renew, Reply::Renewed(view)) => self.seen(at, view),
            (Purpose::Append { until }, Reply::Appended(has)) => {
                self.hosts[at].journal = has.min(until);
                self.appended();
            }
            (Purpose::Counts { round }, Reply::Counted(count)) => self.counted(at, round, count),
            // A host that answers something else than it was asked is not spoken to any more.
            (purpose, _) => self.refused(at, purpose, CallError::Unreachable("its answer makes no sense".into())),
        }
    }

    fn refused(&mut self, at: usize, purpose: Purpose, error: CallError) {
        let locking = matches!(self.phase, Phase::Locking { .. });
        let unlocking = matches!(self.phase, Phase::Unlocking { .. });
        if !locking && !unlocking && self.is_superseded(at, &error) {
            return;
        }
        if let Purpose::Counts { round } = purpose {
            self.uncounted(round);
        }
        let under_way = self.hosts[at].job.as_mut().filter(|_| purpose == Purpose::Job);
        if let Some(job) = under_way {
            job.state = JobState::Waiting;
            job.stuck.get_or_insert(self.now);
        }
        match error {
            CallError::Unreachable(why) => {
                let host = &mut self.hosts[at];
                host.lost.get_or_insert((self.now, why));
                let seldom = !host.is_part() && host.job.is_none();
                host.retry_at = self.now + if seldom { self.plan.limits.lease() / 2 } else { RETRY };
                if let (Phase::Migrating { ran }, Purpose::Job) = (&mut self.phase, purpose) {
                    // Asked again, a host says that nothing is pending.
                    *ran = true;
                }
                if locking {
                    self.end_job(at);
                }
            }
            CallError::Busy(_) => self.hosts[at].retry_at = self.now + RETRY,
            CallError::Locked(who) if locking => self.lock_refused(at, Some(who), 0),
            CallError::Fenced { highest } if locking => self.lock_refused(at, None, highest),
            CallError::Failed(why) if locking => {
                self.hosts[at].lost.get_or_insert((self.now, why));
                self.end_job(at);
            }
            _ if locking => self.end_job(at),
            CallError::Locked(who) => {
                let host = &mut self.hosts[at];
                (host.locked, host.retry_at) = (false, self.now + RETRY);
                host.lost.get_or_insert((self.now, who));
            }
            CallError::NotLocked | CallError::Fenced { .. } => self.hosts[at].locked = false,
            CallError::Failed(why) if purpose == Purpose::Job => self.job_failed(at, &why),
            CallError::Failed(why) => {
                let host = &mut self.hosts[at];
                host.retry_at = self.now + RETRY;
                // One that says no again and again is as good as one that says nothing.
                match purpose {
                    Purpose::Lock | Purpose::Renew => _ = host.lost.get_or_insert((self.now, why)),
                    _ => host.trouble = Some(why),
                }
            }
        }
        let is_over = |job: &Job| job.dropped && !job.is_under_way();
        if unlocking || self.hosts[at].job.as_ref().is_some_and(is_over) {
            self.end_job(at);
        }
    }

    fn lock_refused(&mut self, at: usize, who: Option<Box<str>>, highest: u64) {
        let name = self.hosts[at].name.clone();
        if let Some(who) = &who {
            let host = &mut self.hosts[at];
            host.taken = true;
            host.lost.get_or_insert((self.now, who.clone()));
        }
        if let Phase::Locking { refused, higher, .. } = &mut self.phase {
            if let Some(who) = who {
                refused.get_or_insert_with(|| format!("{name}: {who}").into());
            }
            *higher = (*higher).max(highest);
        }
        self.end_job(at);
    }

    fn granted(&mut self, at: usize, view: View, mark: Mark) {
        let (now, number, entries) = (self.now, self.number, self.entries.len());
        let host = &mut self.hosts[at];
        host.locked = true;
        host.taken = false;
        host.retry_at = now;
        // What it has of our own entries it has as they are; anything else is written anew.
        if mark.number != number || mark.entries > entries {
            host.journal = 0;
        } else {
            host.journal = host.journal.min(mark.entries);
        }
        self.seen(at, view);
        if matches!(self.phase, Phase::Unlocking { .. }) {
            self.give_job(at, [Call::Unlock]);
        }
    }

    /// Where a host says that it is.
    pub(super) fn seen(&mut self, at: usize, view: View) {
        let fresh = self.entries.is_empty();
        let changing = matches!(self.progress.stage, Stage::Failing { .. })
            || matches!(self.phase, Phase::Tidying)
            || self.is_past_return();
        let host = &mut self.hosts[at];
        match (host.at, view) {
            _ if host.wave.is_none() => {}
            _ if fresh => host.at = view.into(),
            // It is being asked to, or will be.
            (At::OnTrial, View::Before) if changing => {}
            (At::OnTrial, View::Before) => {
                host.at = At::Before;
                self.skip(at, "it has gone back by itself: it was started anew, or its lease had run out");
            }
            // Whoever drove before us can ask it no more.
            (At::Unsure, View::Before) if !host.asked => host.at = At::Before,
            (At::Unsure, View::OnTrial | View::Confirmed) | (At::OnTrial, View::Confirmed) => host.at = view.into(),
            _ => {}
        }
    }

    fn job_replied(&mut self, at: usize, reply: Reply) {
        let Some(job) = self.hosts[at].job.as_mut() else { return };
        job.state = JobState::Waiting;
        job.stuck = None;
        let Some(call) = job.calls.pop_front() else { return self.end_job(at) };
        match (call, reply) {
            (Call::Lock { .. }, Reply::Granted { view, journal, other }) => {
                if let Phase::Locking { marks, other: highest, .. } = &mut self.phase {
                    marks.insert(at, journal);
                    *highest = (*highest).max(other.unwrap_or(0));
                }
                self.granted(at, view, journal);
            }
            (Call::Read, Reply::Journal(entries)) => self.read(entries),
            (Call::Migrate { after, .. }, Reply::Migrated { ran }) => {
                self.say(at, if ran { "migrated" } else { "no migration was pending" });
                if let Phase::Migrating { ran: any } = &mut self.phase {
                    *any |= ran && !after;
                }
            }
            (Call::Activate { .. }, Reply::Done) => {
                self.hosts[at].at = At::OnTrial;
                self.say(at, "serves the release");
            }
            (Call::TakeBack { .. }, Reply::Done) => {
                self.hosts[at].at = At::Before;
                self.say(at, "serves again what it did before");
            }
            (Call::Confirm, Reply::Confirmed(release)) => self.confirmed(at, &release),
            (Call::Unlock, Reply::Done) => self.hosts[at].locked = false,
            (Call::Prepare(step), Reply::Done) => self.say(at, format!("{step}: done")),
            (call, _) => {
                if let Some(job) = self.hosts[at].job.as_mut() {
                    job.calls.push_front(call);
                }
                return self.refused(at, Purpose::Job, CallError::Unreachable("its answer makes no sense".into()));
            }
        }
        if self.hosts[at].job.as_ref().is_some_and(|job| job.dropped || job.calls.is_empty()) {
            self.end_job(at);
        }
        self.queue(at);
    }

    /// The release that a host has confirmed: ours, unless the lease had run out.
    fn confirmed(&mut self, at: usize, release: &str) {
        if *release == *self.plan.release {
            self.hosts[at].at = At::Confirmed;
            return;
        }
        let activate = self.activation();
        let host = &mut self.hosts[at];
        host.at = At::Before;
        if let Some(job) = host.job.as_mut().filter(|job| job.again < TRIES) {
            job.again += 1;
            job.calls.extend([activate, Call::Confirm]);
        }
    }

    pub(super) fn activation(&self) -> Call {
        Call::Activate { lease: self.lease(), holds: self.progress.is_one_way() }
    }

    /// It was tried and has failed.
    fn job_failed(&mut self, at: usize, why: &str) {
        let Some(job) = self.hosts[at].job.as_mut() else { return };
        let Some(call) = job.calls.front().cloned() else { return self.end_job(at) };
        let name = self.hosts[at].name.clone();
        let step = match &call {
            Call::Prepare(step) => step.to_string(),
            Call::Migrate { .. } => "migrate".to_owned(),
            Call::Activate { .. } => "activate".to_owned(),
            Call::Confirm => "confirm".to_owned(),
            Call::TakeBack { .. } => "take back".to_owned(),
            _ => "journal".to_owned(),
        };
        let cause = format!("{name}: {step}: {why}");
        self.say(at, format!("{step} has failed: {why}"));
        if matches!(call, Call::Activate { .. }) && self.hosts[at].at == At::Unsure {
            self.hosts[at].at = At::Before;
        }
        match call {
            Call::Read => {
                self.end_job(at);
                self.end(End::Refused(cause.into()));
            }
            Call::TakeBack { .. } | Call::Confirm => self.try_again(at, &cause),
            Call::Migrate { after: true, .. } => {
                self.end_job(at);
                if let Phase::Completing { error } = &mut self.phase {
                    *error = Some(cause.into());
                }
            }
            _ if self.is_past_return() => {
                self.end_job(at);
                self.remarks.push(cause.into());
            }
            Call::Prepare(_) | Call::Activate { .. } if !self.plan.purpose.is_judged() => {
                self.end_job(at);
                self.leave_out(at, &cause);
            }
            _ => {
                self.end_job(at);
                let faulty = matches!(call, Call::Activate { .. });
                self.fail_by(Failure { cause: cause.into(), force: false, faulty });
            }
        }
    }

    /// What has failed here is no reason to take the others back. It answers: it is told that the rollout is over.
    fn leave_out(&mut self, at: usize, cause: &str) {
        let host = &mut self.hosts[at];
        host.skipped = true;
        let name = host.name.clone();
        self.remarks.push(cause.into());
        if !self.progress.skipped.contains_key(&name) {
            self.record(What::Skipped { host: name, why: cause.into() });
        }
    }

    fn try_again(&mut self, at: usize, cause: &str) {
        let now = self.now;
        let host = &mut self.hosts[at];
        host.retry_at = now + RETRY;
        let Some(job) = host.job.as_mut() else { return };
        job.again += 1;
        if job.again >= TRIES {
            host.lost = Some((now, cause.into()));
            self.end_job(at);
            if self.is_past_return() {
                self.remarks.push(cause.into());
            }
            if matches!(self.phase, Phase::Tidying) {
                self.skip(at, cause);
            }
        }
    }

    pub(super) fn is_past_return(&self) -> bool {
        matches!(
            self.progress.stage,
            Stage::Confirming | Stage::Completing { .. } | Stage::Completed { .. } | Stage::Ended
        )
    }

    /// A host has not answered for too long, or does not get on.
    fn give_up(&mut self, at: usize, why: &str) {
        let host = &mut self.hosts[at];
        if !host.is_part() && host.job.is_none() {
            host.locked = false;
            host.lost = None;
            return;
        }
        if let Phase::Completing { error } = &mut self.phase
            && host.job.is_some()
        {
            *error = Some(format!("{}: whether the second migration ran is not known: {why}", host.name).into());
        }
        if matches!(self.phase, Phase::Reading { .. }) && host.job.is_some() {
            self.drop_job(at);
            return self.read_another(at);
        }
        let going_back = matches!(self.progress.stage, Stage::Failing { .. });
        match host.skipped || going_back {
            true => {
                self.drop_job(at);
                self.hosts[at].locked = false;
                self.hosts[at].given_up = true;
            }
            false => self.skip(at, why),
        }
    }

    /// Leaves a host out from here on.
    pub(super) fn skip(&mut self, at: usize, why: &str) {
        let host = &mut self.hosts[at];
        let known = !matches!(self.progress.stage, Stage::Nothing | Stage::Ended);
        if host.skipped || host.wave.is_none() || !known {
            return;
        }
        host.skipped = true;
        host.locked = false;
        let name = host.name.clone();
        host.lost.get_or_insert((self.now, why.into()));
        self.drop_job(at);
        self.say(at, format!("is left out: {why}"));
        if !self.progress.skipped.contains_key(&name) {
            self.record(What::Skipped { host: name.clone(), why: why.into() });
        }
        if self.progress.stage == (Stage::Migrating { host: Some(name.clone()) }) {
            return self.fail(&format!("{name}: whether the migration ran there is not known: {why}"), false);
        }
        let away = self.plan.waves.down.len() + self.hosts.iter().filter(|host| host.skipped).count();
        let most = self.plan.limits.max_unreachable;
        if away > most && !self.is_past_return() {
            self.fail(&format!("{name}: {why}; {away} hosts are away, and max_unreachable is {most}"), false);
        }
    }

    pub(super) fn is_take_over(&self) -> bool {
        matches!(self.start, Start::TakeOver(_))
    }
}
