//! Many hosts from one place: which there are, how they are reached, and what is shipped to them.
//!
//! | | what lives there |
//! |---|---|
//! | [`inventory`] | `fleet.toml` → hosts, groups and apps; the choice of hosts by name, group or pattern |
//! | [`transport`] | one interface to a host, over a UNIX socket or over the system's `ssh`: a connection to its svd, and files to its staging place |
//! | [`setup`] | PURE: what a host lacks, and the script that brings it |
//! | [`source`] | what is shipped: commits of a git repository, tags, artifacts and their digests |
//! | [`drift`] | PURE: which release a fleet is at, which hosts are not, and where a rollback goes |
//! | [`hooks`] | commands and web hooks that are told of a rollout |
//! | [`drive`] | a rollout, carried out on real hosts |
//! | [`rollout`] | PURE: plan, journal, and the machine that says what comes next on which host |
//! | [`verdict`] | PURE: whether a new release is worse than the one it replaces |
//! | [`waves`] | PURE: which hosts get a release in which wave |
//! | [`run`] | programs that svctl runs and waits for, with limits |
//! | [`scratch`] | directories that svctl needs while it runs |
//!
//! May use `config` (its decoder's cursor), `api` (the client and its types) and `sys` for what concerns the machine that deploys.
//! Hosts are spoken to through [`crate::api::client`] alone.

pub mod drift;
pub mod drive;
pub mod hooks;
pub mod inventory;
pub mod rollout;
pub mod run;
pub mod scratch;
pub mod setup;
pub mod source;
pub mod transport;
pub mod verdict;
pub mod waves;
