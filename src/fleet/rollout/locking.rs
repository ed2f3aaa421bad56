//! The lock, and the journal that whoever holds it goes on from.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::event::{Call, CallError, End, Mark, Reply};
use super::host::At;
use super::journal::{Entry, Progress, Stage, What};
use super::kept::Line;
use super::machine::{Machine, Start};
use super::phases::Phase;
use crate::api::apps::{is_plausible, next_number};

/// Times that a higher number is tried when somebody else was faster.
const HIGHER: u32 = 3;
/// By which the clocks of other drivers may be ahead, in seconds. Hosts grant what is further ahead still, so that whoever names the
/// highest number that we follow keeps nobody from locking.
const AHEAD: u64 = 3600;

/// What a host says that names a lock's number which nobody can have come to.
///
/// # Errors
/// It does: why nothing that it says counts. `seconds`: since 1970.
pub fn believable(number: u64, seconds: u64) -> Result<(), Box<str>> {
    match is_plausible(number, seconds.saturating_add(AHEAD)) {
        true => Ok(()),
        false => Err(format!(
            "it names the lock's number {number}, which nobody can have come to; nothing that it says counts"
        )
        .into()),
    }
}

impl Machine {
    /// One host must not keep all others from being locked, or end a rollout, by a number that nobody gets above: it is as good as away.
    pub(super) fn believed(&self, result: Result<Reply, CallError>) -> Result<Reply, CallError> {
        let highest = match &result {
            Ok(Reply::Granted { journal, other, .. }) => journal.number.max(other.unwrap_or(0)),
            Err(CallError::Fenced { highest }) => *highest,
            _ => return result,
        };
        believable(highest, self.unix()).map_err(CallError::Unreachable)?;
        result
    }

    pub(super) fn lock_first(&mut self, tries: u32) {
        let (rest, refused, higher, marks, other) = (false, None, 0, BTreeMap::new(), 0);
        self.phase = Phase::Locking { rest, refused, higher, tries, marks, other };
        self.give_job(0, [Call::Lock { lease: self.plan.limits.lease() }]);
    }

    /// The hosts that were asked for the lock have answered.
    pub(super) fn locked(&mut self) -> bool {
        let Phase::Locking { rest, refused, higher, tries, marks, other } = &mut self.phase else { return false };
        let refusal = refused.clone();
        if let (Some(who), Start::Deploy) = (&refusal, self.start) {
            return self.give_lock_up(End::Locked(who.clone()));
        }
        // What was written with a number was granted it, even if that is forgotten.
        let written = marks.values().map(|mark| mark.number).max().unwrap_or(0);
        *higher = (*higher).max(written);
        if *higher >= self.number {
            if *tries >= HIGHER {
                return self.give_lock_up(End::Locked("somebody else takes the lock at the same time".into()));
            }
            let tries = *tries + 1;
            self.number = next_number(*higher, self.number as u32);
            self.hosts.iter_mut().for_each(|host| host.locked = false);
            self.lock_first(tries);
            return true;
        }
        if !std::mem::replace(rest, true) && self.hosts.len() > 1 {
            let lease = self.plan.limits.lease();
            self.jobs_for(|host| (!host.locked && host.lost.is_none()).then(|| vec![Call::Lock { lease }]));
            return true;
        }
        let (marks, other) = (std::mem::take(marks), *other);
        if !self.is_quorum(|host| host.locked) {
            // What a takeover was refused by some hosts it does without; but not by most of them.
            let lost = || End::Lost(self.why_not(|host| host.locked).into());
            let end = refusal.map_or_else(lost, End::Locked);
            return self.give_lock_up(end);
        }
        if self.is_take_over() {
            return self.read_best(marks, other);
        }
        self.record(What::Planned(Arc::new(self.plan.clone())));
        self.write_and(What::Taken { by: self.by.clone() }, Phase::Route)
    }

    /// What another driver of this rollout held stays locked: its end is still to be brought about.
    fn give_lock_up(&mut self, end: End) -> bool {
        if self.is_take_over() {
            self.end(end);
            return false;
        }
        self.unlock_and(end)
    }

    /// One host's journal is gone on from: the one that goes furthest among those of a quorum that has granted us the lock.
    ///
    /// That is enough, as it is for the leader of a replicated log (Ongaro and Ousterhout, "In Search of an Understandable
    /// Consensus Algorithm", 5.4). What anybody has acted upon is on a quorum, and each quorum shares a host with ours: one of those
    /// that we have asked has it. Whoever wrote with a later number had read it from such a quorum as well, and writes whole
    /// journals; so the journal that was written with the highest number, and of these the longest, has everything that was
    /// acted upon. The marks cannot grow while we look: they were told after the lock was granted, and from then on a host
    /// refuses lower numbers.
    ///
    /// It may have more at its end, which a minority has and nothing has followed from. That comes true if we go on from it,
    /// and it does not if we never hear of it: then our number is higher, and that host gets our journal in the stead of its own.
    fn read_best(&mut self, marks: BTreeMap<usize, Mark>, other: u64) -> bool {
        let Some((&at, &best)) = marks.iter().rev().max_by_key(|(_, mark)| **mark) else { return false };
        self.phase = Phase::Reading { best, marks, error: None };
        match best.entries {
            _ if other > best.number => {
                self.unlock_and(End::Refused("another rollout has begun since: this one cannot be gone on with".into()))
            }
            0 => self.unlock_and(End::Refused("nothing of this rollout was written down: it was not begun".into())),
            _ => {
                self.give_job(at, [Call::Read]);
                true
            }
        }
    }

    /// The host with the furthest journal is lost: is there another one?
    pub(super) fn read_another(&mut self, lost: usize) {
        let Phase::Reading { best, marks, .. } = &mut self.phase else { return };
        marks.remove(&lost);
        match marks.iter().find(|(_, mark)| *mark == best).map(|(at, _)| *at) {
            Some(at) => self.give_job(at, [Call::Read]),
            None => self.end(End::Lost("the host with the rollout's latest journal does not answer any more".into())),
        }
    }

    /// The furthest journal.
    pub(super) fn read(&mut self, entries: Vec<Entry>) {
        let Phase::Reading { best, marks, error } = &mut self.phase else { return };
        let progress = match Progress::replay(&entries) {
            Ok(progress) if progress.plan.as_deref() == Some(&self.plan) && entries.len() >= best.entries => progress,
            Ok(_) => return *error = Some("the rollout's journal is of another plan".into()),
            Err(why) => return *error = Some(why.into()),
        };
        // An end gets no entry of ours after it: everybody gets it from us, and so with our number.
        let same = |mark: &Mark| mark == best && progress.stage != Stage::Ended;
        for (at, mark) in marks.iter().filter(|(_, mark)| same(mark)) {
            self.hosts[*at].journal = mark.entries;
        }
        for host in &mut self.hosts {
            host.skipped = progress.skipped.contains_key(&host.name);
            // Who does not answer now may have been switched before.
            if !host.locked && host.wave.is_some() && host.wave <= progress.begun {
                host.at = At::Unsure;
                host.lost.get_or_insert((self.now, "it does not answer".into()));
            }
        }
        self.progress = progress;
        self.entries = entries.into_iter().map(Line::new).collect();
        if let Start::TakeOver(wish) = self.start {
            self.wish = Some(wish);
        }
        match self.progress.stage {
            Stage::Ended => {
                self.replicate();
                self.goto(Phase::Route);
            }
            _ => drop(self.write_and(What::Taken { by: self.by.clone() }, Phase::Route)),
        }
    }
}
