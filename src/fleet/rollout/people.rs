//! What people want of a rollout that runs or is paused.

use super::event::{Action, End, Report, Wish};
use super::host::Host;
use super::journal::{Stage, What};
use super::machine::Machine;
use super::phases::Phase;
use super::timers::Timer;

impl Machine {
    pub(super) fn begin_pause(&mut self) {
        // The long lease is for now, not for when the short one would be due.
        self.hosts.iter_mut().for_each(|host| host.renewed = None);
        self.wake_all = true;
    }

    /// Every host that is reached has the long lease: whoever drives may go.
    pub(super) fn told_pause(&mut self, told: bool) -> bool {
        let waits = |host: &Host| host.locked && !host.skipped && host.lost.is_none() && host.renewed.is_none();
        if told || self.hosts.iter().any(waits) {
            return false;
        }
        let why = self.progress.paused.clone().unwrap_or_default();
        self.phase = Phase::Paused { told: true };
        self.out.push(Action::End(End::Paused { why }));
        false
    }

    pub(super) fn handle_wish(&mut self, wish: Wish) {
        let settled = self.committed == self.entries.len() && self.next.is_none();
        match wish {
            // Whatever is under way is waited for.
            Wish::Abort { .. } => self.grant(wish),
            _ if settled && matches!(self.phase, Phase::Paused { .. } | Phase::Baking(_)) => self.grant(wish),
            _ => self.wish = Some(wish),
        }
    }

    /// Does what somebody has asked for, where that can be.
    pub(super) fn grant(&mut self, wish: Wish) {
        let by = self.by.clone();
        let alert = |machine: &mut Machine, why: &str| machine.out.push(Action::Report(Report::Alert(why.into())));
        let going_back = matches!(self.progress.stage, Stage::Failing { .. });
        match wish {
            _ if self.is_past_return() || going_back => {
                let why = if going_back { "it is being taken back already" } else { "it is being confirmed already" };
                alert(self, &format!("the rollout cannot be changed any more: {why}"));
                if matches!(self.phase, Phase::Route) {
                    self.goto(Phase::Route);
                }
            }
            Wish::Abort { force } => {
                self.fail(&format!("aborted by {by}"), force);
                if matches!(self.phase, Phase::Begin | Phase::Locking { .. } | Phase::Reading { .. }) {
                    self.wish = Some(wish);
                }
            }
            Wish::Promote => match self.progress.stage {
                Stage::Wave(wave) => {
                    self.timers.clear(Timer::Bake);
                    self.write_and(What::Promoted { wave }, Phase::Route);
                }
                _ => self.resume(),
            },
            Wish::Resume => self.resume(),
            Wish::Pause => {
                self.timers.clear(Timer::Bake);
                if self.progress.paused.is_none() {
                    self.record(What::Paused { why: format!("paused by {by}").into() });
                }
                self.goto(Phase::Paused { told: false });
            }
        }
    }

    fn resume(&mut self) {
        if self.progress.paused.is_some() {
            self.record(What::Resumed);
            self.hosts.iter_mut().for_each(|host| host.renewed = None);
            return self.goto(Phase::Route);
        }
        if matches!(self.phase, Phase::Route) {
            self.goto(Phase::Route);
        }
    }
}
