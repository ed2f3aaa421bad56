//! One release's journey over all hosts: what is to be done is settled in a [`plan`], what has become of it is in a [`journal`],
//! and the [`Machine`] says what comes next. PURE: [`Machine::handle`] takes an event and the time and returns actions; no clock,
//! no file, no network, no hash order.
//!
//! # The contract
//!
//! ```text
//! lock ─ plan ─ prepare all hosts ─ migrate once ─┬─ wave: activate ─ bake ─ verdict ─┬─ control ─ confirm ─ migrate after ─ unlock
//!                                                 └────────── next wave ──────────────┘
//!                     any failure: take back, newest wave first ─ unlock
//! ```
//!
//! - **Lock.** The first host in the order of their names is asked alone, then the others: of two deploys that begin together one is
//!   refused there. Any refusal ends the attempt. A *quorum* must grant it: more than half of the hosts, or just half with the
//!   first one, so that any two quorums share a host. It is granted with a number that every later call carries; a host refuses
//!   lower ones for ever. Another driver of the same rollout takes it over with a higher number, and the one before ends with its next
//!   call (*superseded*). The lock is a lease as well: who vanishes keeps it no longer than that.
//! - **Journal.** Every entry is on a quorum before anything that follows from it is done. A new driver reads the furthest journal of those that have
//!   granted him the lock, and goes on from there; what was under way is asked for again, which hosts answer from what they have done.
//! - **Prepare.** The release is uploaded, built, its static files are published and it is verified on all hosts before the first one is switched.
//! - **Migrate.** Which host migrates is written down before it is asked to, and no other host is asked any more. The call has a
//!   key of rollout and step; the host does it once for each key. Whether it ran on a host that is lost is not known: the
//!   rollout fails, and nothing was switched.
//! - **Waves.** A wave begins when the one before has passed: by its verdict, or by a person. What is judged is everything that runs the new release
//!   against everything that still runs the old one. The control is switched after the last verdict.
//! - **Leases.** Hosts hold the lock and an unconfirmed release for a lease, which is renewed after a third of it. A host that goes back by itself, or
//!   that cannot be reached for a while, is *skipped*: named, not renewed, left to its lease. More than `max_unreachable` of them, those that were
//!   down included, fail the rollout before it confirms. A paused rollout has a long lease.
//! - **Failure** takes back every host that was switched or may have been: newest wave first, all hosts of a wave in parallel, the next wave when
//!   each of them has answered or is given up. Calls under way are waited for before. After a migration that the old code may not work with, the
//!   rollout pauses and alerts instead, until a person promotes it or aborts with force.
//! - **Confirm.** With that entry there is no way back: hosts that missed it are named, those whose lease had run out are switched once more.
//! - **Resume** of a rollout that has ended confirms or takes back what hosts that were lost still have on trial. Resume of a rollout whose hosts went back meanwhile takes back the rest and begins at the first wave.
//! - **Limits.** At most `parallel` calls that work are under way, and as many small ones; no host has two of a kind.
//! - **Linear.** What is asked of a host, and what it keeps ([`kept`]), does not grow with the number of the others.
//!
//! What the machine may not do: decide by what a minority of the hosts has written down, or end without saying where each host is.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod bake;
mod calls;
pub mod event;
mod host;
pub mod journal;
pub mod kept;
mod locking;
mod machine;
mod people;
mod phases;
pub mod plan;
#[cfg(test)]
mod sim;
mod timers;

pub use bake::Watched;
pub use event::{Action, Call, CallError, CallId, End, Event, Reply, Report, Wish};
pub use journal::{Entry, Outcome, Place, Progress};
pub use locking::believable;
pub use machine::{Driver, Machine, Start};
pub use plan::Plan;

/// A plan for so many hosts, in tests elsewhere.
#[cfg(test)]
pub(crate) fn testing(hosts: usize) -> Plan {
    sim::plan(hosts, 0, None, sim::limits(4, 0))
}
