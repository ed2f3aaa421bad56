//! What others must not guess: paths of notify sockets, prefixes of counts.

use serde::{Deserialize, Serialize};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};

/// A key of the kernel's random bytes. It lives as long as the services do, not as long as one svd.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Secret([u64; 2]);

impl Secret {
    pub fn new() -> Secret {
        // The keys of each state are the kernel's.
        Secret([RandomState::new().hash_one(0), RandomState::new().hash_one(1)])
    }

    /// SipHash-1-3 of the value by this key.
    pub fn hash_one(&self, value: impl Hash) -> u64 {
        let mut hasher = siphasher::sip::SipHasher13::new_with_keys(self.0[0], self.0[1]);
        value.hash(&mut hasher);
        hasher.finish()
    }
}
