//! `fleet.toml` → hosts, groups and apps: decoded with the cursor of [`crate::config`], all errors at once.
//!
//! [`find`] looks for the file, [`load`] reads it (and asks the command that lists hosts, where there is one), [`Fleet::select`]
//! is what `-H` means. The format is described in `docs/fleet.md`, which a test keeps in step with the decoder.

mod app;
mod decode;
mod find;
mod hooks;
mod host;
mod list;
mod names;
mod select;
mod spec;

#[cfg(test)]
mod tests;

pub use decode::{decode, load};
pub use find::{NotFound, find};
pub use list::{Listed, Listing, ListingError};
pub use names::check_host_name;
pub use select::UnknownHost;
pub use spec::{App, BuildHere, Fleet, Hook, Hooks, Host, Occasion, Prometheus, Source};
