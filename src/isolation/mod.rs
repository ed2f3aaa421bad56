//! What isolation means: profiles and keys → what a process sees and may do. Pure; [`crate::sys::sandbox`] does it.

mod exposure;
mod rules;
mod settings;
mod view;
mod weak;

pub use exposure::{Exposure, Part, exposure};
pub use rules::{Filter, landlock, syscalls};
pub use settings::{Settings, of, settings};
pub use view::{Surroundings, mounts, sources};
pub use weak::{Weak, weak};
