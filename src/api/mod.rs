//! See the code map in the crate's documentation.
