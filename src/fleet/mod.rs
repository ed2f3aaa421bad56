//! Many hosts from one place.
//!
//! | file | what lives there |
//! |---|---|
//! | [`verdict`] | PURE: whether a new release is worse than the one it replaces |
//! | [`waves`] | PURE: which hosts get a release in which wave |

pub mod verdict;
pub mod waves;
