//! Faults of the real kernel: deaths of svd and of its guardian under load, and whatever runs out, hangs or floods.
//!
//! All of it is short, unless `AIRDOCK_LONG` is set: then counts are the large ones, and the storm lasts ten minutes, or
//! what `AIRDOCK_STORM` says in seconds. Figures are printed (`--nocapture`).

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod died;
mod disk;
mod forked;
mod frozen;
mod journal;
mod logs;
mod midway;
mod namesakes;
mod noisy;
mod processes;
mod starved;
mod storm;
mod stubs;
mod stuck;
mod unreadable;
mod upgrades;
mod world;

use std::time::Duration;

/// Is the long version asked for?
fn long() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| value != "0");
    set("AIRDOCK_LONG") || set("AIRDOCK_STORM")
}

/// The length of the storm.
fn storm() -> Duration {
    let seconds = std::env::var("AIRDOCK_STORM").ok().map(|text| text.parse().expect("AIRDOCK_STORM: seconds"));
    Duration::from_secs(seconds.unwrap_or(if long() { 600 } else { 8 }))
}

/// The count for this run.
fn count(short: usize, long: usize) -> usize {
    if self::long() { long } else { short }
}
