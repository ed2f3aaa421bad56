//! Text → a valid specification. One file per section of the file format; errors with spans, all at once.

pub mod spec;
