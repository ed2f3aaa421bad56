//! Text → a valid specification. One file per section of the file format; errors with spans, all at once.
//!
//! [`load`] reads a directory, [`load_texts`] is the same without a file system. What comes out ([`spec::Config`]) is
//! complete and checked; what differs between two of them, and what that asks of a running service, says [`difference`].
//! The format is described in `docs/configuration.md`, which a test keeps in step with the decoder.

pub mod capability;
mod counts;
mod daemon;
mod deploy;
mod diagnostic;
pub mod diff;
pub mod glob;
mod health;
mod isolation;
pub mod java;
mod kind;
mod limits;
mod load;
mod logs;
mod probe;
mod ready;
mod relations;
mod reload;
mod restart;
mod scope;
pub mod secrecy;
mod secrets;
pub(crate) mod section;
mod service;
pub mod shown;
mod sockets;
pub(crate) mod source;
pub mod spec;
mod stop;
pub(crate) mod suggest;
pub mod syscalls;
pub mod template;
pub(crate) mod units;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use diagnostic::{Diagnostic, Diagnostics, Position, counted};
pub use diff::{Change, KeyChange, Needs, difference, keep_unchanged};
pub(crate) use load::read_text;
pub use load::{distrusted, load, load_texts, load_with};
pub use sockets::show as show_listen;
pub use template::Placeholder;
pub use units::{parse_signal, show_duration, show_signal, show_size};

/// Longest name of a service in bytes: it becomes part of paths and of cgroup names.
const MAX_NAME: usize = 64;

/// May the name of a service be this? `[A-Za-z0-9][A-Za-z0-9_.-]*`, at most 64 bytes.
///
/// # Errors
/// Why not.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    match name.as_bytes() {
        [] => Err("it is empty"),
        bytes if bytes.len() > MAX_NAME => Err("it has more than 64 bytes"),
        [first, ..] if !first.is_ascii_alphanumeric() => Err("it must begin with a letter or digit"),
        bytes if !bytes.iter().all(|&c| name_byte(c)) => Err("it may have letters, digits, _, . and - only"),
        _ => Ok(()),
    }
}

fn name_byte(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-')
}
