//! The listening sockets of a service: bound before its first worker, shared by its generations, closed when it stops.

use crate::config::spec::{Listen, Service};
use crate::sys::socket::{self, UnixOptions};
use crate::sys::user;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Binds all sockets of the file, or none.
///
/// # Errors
/// A sentence: which address, why, who holds it.
pub fn open(spec: &Service) -> Result<Vec<Arc<OwnedFd>>, String> {
    spec.sockets.iter().map(|s| bind(&s.listen, s.backlog).map(Arc::new)).collect()
}

fn bind(listen: &Listen, backlog: u32) -> Result<OwnedFd, String> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    match listen {
        Listen::Tcp(address) => socket::listen_tcp(*address, backlog, false).map_err(|e| e.to_string()),
        Listen::Unix { path, mode, owner, group } => {
            let account = owner.as_deref().map(user::Account::find).transpose().map_err(|e| e.to_string())?;
            let gid = group.as_deref().map(user::group).transpose().map_err(|e| e.to_string())?;
            let options = UnixOptions { mode: *mode, owner: account.map(|a| a.uid), group: gid, backlog };
            socket::listen_unix(path, options).map_err(|e| e.to_string())
        }
    }
}

/// `0.0.0.0:8000` or `unix:/run/airship.sock`.
pub fn text(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix { path, .. } => format!("unix:{}", path.display()),
    }
}
