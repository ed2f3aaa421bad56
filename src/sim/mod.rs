//! A simulated kernel under the pure core: virtual time, processes with a will of their own, faults, and the
//! invariants of the design checked at every step.
//!
//! What may happen next is a list of [`Choice`]s. A random history picks among them by a seed that is printed on
//! failure and replays exactly; a search takes all of them up to a depth.

mod check;
mod death;
mod world;

#[cfg(test)]
mod histories;

pub use world::{Choice, World};
