//! Faults of the real kernel: deaths of svd and of its guardian under load, and whatever runs out, hangs or floods.
//!
//! All of it is short unless `AIRDOCK_STORM` gives the seconds that the storm is to last; the counts of the others are
//! those of the long version then. Figures are printed (`--nocapture`).

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod frozen;
mod logs;
mod midway;
mod noisy;
mod starved;
mod storm;
mod world;

use std::time::Duration;

/// The length of the storm, where a long version is asked for.
fn asked_for() -> Option<Duration> {
    let text = std::env::var("AIRDOCK_STORM").ok()?;
    Some(Duration::from_secs(text.parse().expect("AIRDOCK_STORM is a number of seconds")))
}

/// The count for this run.
fn count(short: usize, long: usize) -> usize {
    if asked_for().is_some() { long } else { short }
}
