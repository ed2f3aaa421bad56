//! Several hosts on one machine, each with addresses, an ssh server and an svd of its own, and svctl that goes to them by real ssh.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

#[path = "../support/mod.rs"]
mod support;

mod again;
mod apps;
mod bed;
mod deploy;
mod faults;
mod files;
mod first;
mod many;
mod prometheus;
mod reach;
mod scale;
mod session;
mod setup;
mod site;
mod verbs;
