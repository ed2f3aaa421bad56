//! PURE decisions: what to start, commit, signal, stop and retry. [`Machine::handle`] takes an event and the time and
//! returns actions; [`Machine::next_timeout`] says when it wants to be called again. No clock, no file, no process, no
//! hash order; the only chance is a seeded generator for jitter.
//!
//! # The contract
//!
//! A **service** is wanted up or down ([`Command::Start`], [`Command::Stop`], configuration). It owns **generations**:
//! at most one *candidate* (booting, answering nobody where it can be gated), at most one *committed* (it serves), and
//! a bounded number of *draining* ones. A generation has **slots** (one, or `instances`); a slot holds at most one
//! **worker**; a worker is one spawned process with whatever it forked, and its number is never used twice (I3).
//!
//! * **Who decides**: commands and configuration change what is wanted; exits and readiness change what is. Every
//!   event ends in the same place: a pass over the touched services that moves them towards what is wanted.
//! * **Commit**: when every slot of the candidate is ready. Only then is the old generation told to drain (I2). A
//!   candidate that exits, times out or is told to be unready before is taken back; the old generation never notices.
//! * **Standby**: who asks for a reload may ask that a copy of what is replaced is booted and kept, answering nobody, for
//!   a while: going back to it then needs no boot. It is never restarted, and given up when it ends, when its time is
//!   over, when memory is short, and when anything else happens to the service.
//! * **Canary**: a few workers of a new generation that serve beside the committed one, so that their answers can be compared.
//!   It has all that a standby has, but that its gate is open; what became of it is somebody else's to decide.
//! * **A first start** has no old generation: its candidate retries with backoff instead of being taken back.
//! * **Stop** interrupts everything. A newer reload supersedes one in progress. Start during a stop starts afterwards.
//! * **Leftovers**: when a worker's main process ends and others of it remain, they get the stop signal, the rest of
//!   the grace time, then the kill (I4). Where old and new may run side by side the replacement does not wait.
//! * **Failed**: too many failures within a window. Visible, sockets closed, tried again later or by `start`.
//! * **Death of svd**: after every event the shell writes the records of the services that it changed, and only then does
//!   what was decided. A machine that is restored from them decides again whatever may not have been done, so that doing
//!   something twice must be harmless and leaving it out cannot happen.
//!
//! What the machine may not do: read a clock, touch a process, decide by the order of a hash, or keep a timer that
//! nothing will clear (I7).
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod aside;
mod event;
mod generation;
mod machine;
pub mod memory;
mod order;
mod policy;
mod reload;
mod restart;
mod restore;
mod service;
mod time;
mod timers;
mod tracked;
mod worker;

pub use event::{
    Action, Awaited, Canary, Change, Command, Event, Exit, Failure, GenerationId, Level, OpId, ServiceId, Setup,
    Source, WorkerId,
};
pub use generation::{Generation, Role, Slot, SlotState, Worker, WorkerState};
pub use machine::Machine;
pub use policy::{Policies, Policy, SavedPolicies};
pub use reload::NOT_RUNNING;
pub use restore::{Changed, Fate, Record, Saved};
pub use service::{Phase, Service, State};
pub use time::Time;
