//! A service's settings, as `svctl show` has them.

use serde::{Deserialize, Serialize};

use super::results::ChangeAction;
use crate::config::shown::Setting;

/// Answer to `GET /v1/services/NAME/configuration`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    pub service: Box<str>,
    /// The service's file; it may be gone.
    pub file: Box<str>,
    /// What the settings are those of; absent: of what would be started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Box<str>>,
    pub settings: Vec<Setting>,
    /// What `svctl update` would do to the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<ChangeAction>,
    /// What else there is to say; sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Box<str>>,
    /// Why the files cannot be compared with; nothing of them is used until they are mended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Box<str>>,
}
