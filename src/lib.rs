//! # Airdock
//!
//! Keeps a host's services running and ships new releases without dropping a request.
//!
//! ## Code map
//!
//! | folder | what lives there | may use |
//! |---|---|---|
//! | [`config`] | text → a valid specification; one file per section of the file format; errors with spans, all at once | nothing of ours |
//! | [`core`] | PURE decisions: `handle(now, event) → actions`. No clock, file, process, randomness or hash order | `config`'s types |
//! | [`kinds`] | gunicorn, jvm, command: from a specification to what is spawned, gated, counted, stopped | `config`, `sys` types |
//! | [`isolation`] | PURE: profiles and keys of `[isolation]` → what a process sees and may do | `config`, `sys` types |
//! | [`sys`] | everything unsafe: processes, pidfds, cgroups, sockets, pipes; knows nothing of services | nothing of ours |
//! | [`release`] | a host's releases: import, sealing, virtual environments, which one is in force | `config`, `sys` |
//! | [`daemon`] | the event loop that executes the core's actions; logs, probes, notify, state | all of the above, `api` |
//! | [`api`] | request and reply types, routes, access rules, server, client, public health and metrics | `config` |
//! | [`fleet`] | many hosts: the fleet file, the ways to a host, what is shipped; waves, the verdict, and a rollout's plan, journal and machine, all pure | `api::client`, `config`'s cursor, `sys` for the machine that deploys |
//! | [`cli`] | arguments, one file per verb, rendering | `api::client`, `config` (check), `fleet`, `sys` (the demo starts svd) |
//! | `fuzz` | what must hold for any input, for `fuzz/` and a test (test and feature builds only) | all of the above |
//! | `sim` | simulated kernel, faults, invariant checks (test and feature builds only) | `core`, `sys` types |
//!
//! Arrows go down only. `sys` never sees `core`; `cli` talks to svd through `api::client` alone.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // denied again in core

pub mod api;
pub mod cli;
pub mod config;
pub mod core;
pub mod daemon;
pub mod fleet;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod isolation;
pub mod kinds;
pub mod release;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod sys;

use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

/// The two names of the one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    Svd,
    Svctl,
}

/// Entry point of both programs: the name in `argv[0]` decides, and `default` where it is neither.
pub fn main(default: Program) -> ExitCode {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    let name = std::path::Path::new(&called).file_name().map(|n| n.to_os_string());
    if name.as_deref() == Some(std::ffi::OsStr::from_bytes(sys::sandbox::entrance::NAME.to_bytes())) {
        return sys::sandbox::entrance::main();
    }
    let program = match name.as_deref().and_then(|n| n.to_str()) {
        Some("svd") => Program::Svd,
        Some("svctl") => Program::Svctl,
        _ => default,
    };
    match program {
        Program::Svd => daemon::main(),
        Program::Svctl => cli::main(),
    }
}
