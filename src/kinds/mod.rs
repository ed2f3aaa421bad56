//! See the code map in the crate's documentation.

pub mod counters;
