//! The log engine: a thread of its own that moves bytes from workers' pipes to files.
//!
//! [`LogThread::start`] gives a [`LogHandle`]; the daemon attaches the read end of each worker's pipe and is told when it
//! is drained. The bytes go to `LOG_DIR/NAME/output.log` as they came, or with times, or as JSON lines; where several pipes
//! share a file, lines stay whole. Files are rotated by renaming and compressed aside; [`LogReader`] and [`Follow`] read
//! them, across rotations.
//!
//! | file | what it has |
//! |---|---|
//! | `handle` | commands, events, the handle |
//! | `engine`, `commands` | the thread's loop, timers; what it is told to do |
//! | `pump` | a pipe's turn: look, move, account |
//! | `inflight` | what a death of svd in the middle of a move leaves to the next one; why no byte is lost, doubled or torn |
//! | `pace` | when to let pipes fill |
//! | `service` | a service's state; which bytes are written now, which wait for their line's end |
//! | `sink` | one file: opening, writing, rotation, trouble |
//! | `rotate`, `names`, `index` | files' names, the index of times |
//! | `compression`, `compress` | what is compressed next; gzip in a thread of its own |
//! | `format`, `memory`, `signal` | lines; the last output and watches; waking readers |
//! | `reader` | reading: last lines, since a time, following |

mod commands;
mod compress;
mod compression;
mod engine;
mod format;
mod handle;
mod index;
mod inflight;
mod memory;
mod names;
mod pace;
mod pump;
mod reader;
mod rotate;
mod service;
mod signal;
mod sink;
#[cfg(test)]
mod tests;

pub use handle::{
    Attach, Begins, COMMANDS_MAX, LogError, LogEvent, LogHandle, LogStatus, LogThread, Notify, Options, PipeId, WatchId,
};
pub use inflight::InFlight;
pub use memory::{TAIL_MAX, WATCH_MAX};
pub use names::Stream;
pub use reader::{Follow, LogReader, Start, Step};
pub use signal::{Subscription, Wake};
pub use sink::Lost;
