//! A simulated kernel under the pure core: virtual time, processes with a will of their own, faults, and the invariants of the
//! design checked at every step.
//!
//! What may happen next is a list of [`Choice`]s. A random [`History`] picks among them by a seed; a search takes all of them
//! up to a depth. A history is a list of choices: one that fails is replayed exactly, and shrinks to the few that matter.
//!
//! # Faults
//!
//! | fault | where |
//! |---|---|
//! | `fork` refuses: `EAGAIN`, `ENOMEM`, `EMFILE` | [`Birth::Refused`] |
//! | `exec` refuses: `ENOENT`, `EACCES` | [`Birth::NeverRuns`] |
//! | a generation cannot be prepared: no such release, `EMFILE` | [`Choice::Prepared`] |
//! | ready late | [`Choice::Ready`] at any time, after the stop signal as well; [`Choice::Extend`] |
//! | never ready | [`Birth::Mute`] |
//! | a crash at any time; unfit, or hung, though it runs | [`Choice::Exit`], [`Choice::Unfit`], [`Choice::Hung`] |
//! | the stop signal is ignored; a killed process does not end yet | [`Birth::Deaf`]; [`Choice::Deadline`] before its exit |
//! | double forks, others outlive the main process | [`Choice::Fork`], [`Choice::Exit`], [`Choice::Empty`] |
//! | a number goes to another process, of the same service, too | [`Choice::Fork`]: a child gets the lowest free number |
//! | `ENOSPC` and `EIO` on the state file, with deaths before it is written | [`Choice::Disk`] |
//! | svd dies before an event, between its record and any of its actions, and on its return | [`Choice::Death`], [`Choice::Return`] |
//! | the guardian dies, also while the state file cannot be written | [`Choice::DeathOfGuardian`] |
//! | both die; how workers end until svd returns is unknown, sockets that nobody holds are gone | [`Choice::DeathOfBoth`] |
//! | what happened together is decided about together, and done later | [`Choice::Together`] |
//! | workers crash, fork, become ready while no svd is there | the same choices before [`Choice::Return`] |
//! | time passes beyond deadlines | [`Choice::Pause`] |
//!
//! The wall clock does not occur: the core is given monotonic time, and clippy denies it every clock (`clippy.toml`).
//!
//! # Invariants
//!
//! `check` asserts, by their names: I1 (sockets of what serves are open, and not bound anew while somebody holds them), I2, I3,
//! I4, I5 (records, orders, exit statuses), I7 (backoff, no deadline that stays due). What the core has no part in is tested
//! elsewhere: I6 with faults of the log disk in `daemon::logs` and `tests/faults`; pidfds, control groups and start times of
//! real processes in `sys::worker`; a torn state file in `daemon::state`; the guardian's protocol in `tests/guardian`.

mod check;
mod choice;
mod death;
mod history;
mod kernel;
mod world;

#[cfg(test)]
mod histories;

pub use choice::{Birth, Choice, Fault, Nth};
pub use history::{Failure, History, Kind};
pub use world::World;
