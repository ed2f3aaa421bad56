//! Names of releases.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest name in bytes, as the kernel has it for one part of a path (`NAME_MAX`).
const LONGEST: usize = 255;

/// The name of one directory below `ROOT/releases`: it leads nowhere else, is hidden nowhere, and is no option of a
/// program. Sorted as text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Box<str>", into = "Box<str>")]
pub struct ReleaseId(Box<str>);

impl ReleaseId {
    /// # Errors
    /// A sentence: why no release can be called that.
    pub fn new(text: &str) -> Result<ReleaseId, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "_-.+@:".contains(c);
        let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        match first && text.len() <= LONGEST && text.chars().all(fits) {
            true => Ok(ReleaseId(text.into())),
            false => Err(format!(
                "{text:?} cannot be the name of a release: it begins with a letter or digit and has at most {LONGEST} \
                 letters, digits and _-.+@:"
            )),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<Box<str>> for ReleaseId {
    type Error = String;

    fn try_from(text: Box<str>) -> Result<ReleaseId, String> {
        ReleaseId::new(&text)
    }
}

impl From<ReleaseId> for Box<str> {
    fn from(id: ReleaseId) -> Box<str> {
        id.0
    }
}

impl fmt::Display for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ReleaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere() {
        for good in ["deploy-2026-11-22_18-40-00", "1.2.3", "a", "v1+b:7@x", "_x"] {
            assert!(ReleaseId::new(good).is_ok(), "{good}");
        }
        let long = "a".repeat(256);
        for bad in ["", ".", "..", ".hidden", "-x", "a/b", "a b", "a\0", "é", "a\n", long.as_str()] {
            assert!(ReleaseId::new(bad).is_err(), "{bad:?}");
        }
        assert!(serde_json::from_str::<ReleaseId>("\"../x\"").is_err());
    }
}
