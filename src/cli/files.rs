//! The files of services, for the verbs that work on this host's own.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::context::Context;
use super::exit::CliError;
use crate::api::types::Version;

/// Where svd reads its configuration by default.
const DEFAULT: &str = "/etc/airdock";

/// Files are where svctl is: of other hosts, they are shown by their svd, and changed there.
pub fn only_here(context: &Context, verb: &str) -> Result<(), CliError> {
    match context.socket() {
        Some(_) => Ok(()),
        None => Err(CliError::usage(
            format!("{verb} works on this host's files, not on those of others."),
            format!("On the host itself: ssh -t HOST sudo svctl {verb} …"),
        )),
    }
}

/// The directory of `svd.toml` and `conf.d`: the given one, else that of the svd that answers, else the usual one.
pub fn directory(context: &Context, given: Option<&Path>) -> PathBuf {
    if let Some(dir) = given {
        return dir.to_owned();
    }
    let version: Option<Version> = context.client().ok().and_then(|client| client.fetch("/v1/version").ok());
    version.and_then(|version| version.config).map_or_else(|| DEFAULT.into(), |dir| PathBuf::from(&*dir))
}

pub fn of_service(config: &Path, name: &str) -> PathBuf {
    config.join("conf.d").join(format!("{name}.toml"))
}

/// Whatever the umask.
pub fn set_mode(file: &File, mode: u32) -> std::io::Result<()> {
    file.set_permissions(Permissions::from_mode(mode))
}
