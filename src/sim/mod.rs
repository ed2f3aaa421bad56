//! See the code map.
