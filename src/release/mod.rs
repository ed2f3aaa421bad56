//! A host's releases: what is in them, how they come here, which one is in force, and who may change that.
//!
//! | file | what |
//! |---|---|
//! | [`app`] | PURE: lock, fence, lease, the releases and their states; what may be done, and what follows |
//! | [`changed`] | which files differ between two releases |
//! | [`id`] | names of releases |
//! | [`import`] | from a place that a deployer owns to a directory that is root's: nothing leads out, nothing changes any more |
//! | [`record`] | what is written down of an app |
//! | [`layout`] | the directories below a root, and the switch of `current` |
//! | [`venv`] | what names a virtual environment, and the commands that build one |
//!
//! May use `config` and `sys`. `daemon/releases` does what is decided here.

pub mod app;
pub mod changed;
pub mod id;
pub mod import;
pub mod layout;
pub mod record;
pub mod venv;

pub use app::App;
pub use id::ReleaseId;
