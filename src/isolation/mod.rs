//! What isolation means: profiles and keys → what a process sees and may do. Pure; [`crate::sys::sandbox`] does it.

mod settings;
mod view;

pub use settings::{Settings, settings};
pub use view::{Surroundings, mounts};
