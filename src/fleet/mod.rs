//! Many hosts from one place.
//!
//! | file | what lives there |
//! |---|---|
//! | [`rollout`] | PURE: plan, journal, and the machine that says what comes next on which host |
//! | [`verdict`] | PURE: whether a new release is worse than the one it replaces |
//! | [`waves`] | PURE: which hosts get a release in which wave |

pub mod rollout;
pub mod verdict;
pub mod waves;
