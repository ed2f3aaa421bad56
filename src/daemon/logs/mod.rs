//! The log thread.
