//! The listening sockets of a service: bound before its first worker, shared by its generations, closed when it stops.

use crate::config::spec::{Listen, Service};
use crate::sys::socket::{self, UnixOptions};
use crate::sys::user;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
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

/// Gives open sockets what can change while they are open: the length of the queue, a UNIX socket's mode and owner.
///
/// # Errors
/// A sentence; what could be changed is changed.
pub fn adjust(old: &Service, new: &Service, open: &[Arc<OwnedFd>]) -> Result<(), String> {
    for ((old, new), fd) in old.sockets.iter().zip(&new.sockets).zip(open) {
        if old.backlog != new.backlog {
            let backlog = i32::try_from(new.backlog).unwrap_or(i32::MAX);
            let backlog = nix::sys::socket::Backlog::new(backlog).unwrap_or(nix::sys::socket::Backlog::MAXCONN);
            nix::sys::socket::listen(fd, backlog)
                .map_err(|e| format!("cannot change the backlog of {}: {}", text(&new.listen), e.desc()))?;
        }
        if old.listen != new.listen
            && let Listen::Unix { path, mode, owner, group } = &new.listen
        {
            let account = owner.as_deref().map(user::Account::find).transpose().map_err(|e| e.to_string())?;
            let gid = group.as_deref().map(user::group).transpose().map_err(|e| e.to_string())?;
            let failed = |e: std::io::Error| format!("cannot change {}: {}", path.display(), crate::sys::io_text(&e));
            std::os::unix::fs::chown(path, account.map(|a| a.uid), gid).map_err(failed)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(*mode)).map_err(failed)?;
        }
    }
    Ok(())
}

/// `0.0.0.0:8000` or `unix:/run/airship.sock`.
pub fn text(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix { path, .. } => format!("unix:{}", path.display()),
    }
}
