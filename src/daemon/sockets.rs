//! The listening sockets of a service: bound before its first worker, shared by its generations, closed when it stops.

use super::host::{Host, Message};
use super::network;
use super::pool::Lane;
use super::unit::{Generation, Plan};
use crate::config::spec::{Listen, Service};
use crate::core::{GenerationId, ServiceId};
use crate::sys::socket::{self, UnixOptions};
use crate::sys::user;
use nix::sys::socket::{Backlog, SockaddrStorage, UnixAddr, getsockname};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

/// Who is to own a UNIX socket; `None`: as it is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    uid: Option<u32>,
    gid: Option<u32>,
}

/// What was opened for a generation to be.
pub struct Opened {
    /// `None`: they are open, or take no time.
    pub sockets: Option<Vec<Arc<OwnedFd>>>,
    pub network: Option<network::Made>,
}

/// A service's file before and after an update.
pub struct Change {
    pub old: Arc<Service>,
    pub new: Arc<Service>,
}

/// Looks up who is to own each socket. Name services may hang: for the pool.
///
/// # Errors
/// A sentence: there is no such user or group.
pub fn owners(spec: &Service) -> Result<Vec<Owner>, String> {
    let look_up = |listen: &Listen| match listen {
        Listen::Tcp(_) => Ok(Owner::default()),
        Listen::Unix { owner, group, .. } => {
            let account = owner.as_deref().map(user::Account::find).transpose()?;
            let gid = group.as_deref().map(user::group).transpose()?;
            Ok(Owner { uid: account.map(|a| a.uid), gid })
        }
    };
    let found: Result<Vec<Owner>, user::UserError> = spec.sockets.iter().map(|s| look_up(&s.listen)).collect();
    found.map_err(|e| e.to_string())
}

/// Binds all sockets of the file, or none. `owners`: of [`owners`].
///
/// # Errors
/// A sentence: which address, why, who holds it.
pub fn open(spec: &Service, owners: &[Owner]) -> Result<Vec<Arc<OwnedFd>>, String> {
    let bound = spec.sockets.iter().zip(owners).map(|(s, owner)| bind(&s.listen, s.backlog, *owner).map(Arc::new));
    bound.collect()
}

fn bind(listen: &Listen, backlog: u32, owner: Owner) -> Result<OwnedFd, String> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    match listen {
        Listen::Tcp(address) => socket::listen_tcp(*address, backlog, false).map_err(|e| e.to_string()),
        Listen::Unix { path, mode, .. } => {
            let options = UnixOptions { mode: *mode, owner: owner.uid, group: owner.gid, backlog };
            socket::listen_unix(path, options).map_err(|e| e.to_string())
        }
    }
}

/// What a generation that still drains after its service failed holds of the same addresses.
fn held<'a>(
    generations: &'a BTreeMap<GenerationId, Box<Generation>>,
    id: GenerationId,
    plan: &Plan,
) -> Option<&'a Vec<Arc<OwnedFd>>> {
    let mut others = generations.range(GenerationId { service: id.service, number: 0 }..=id).map(|(_, other)| &**other);
    let same = |other: &&Generation| !other.sockets.is_empty() && other.plan.spec.sockets == plan.spec.sockets;
    others.find(same).map(|other| &other.sockets)
}

impl Host {
    /// The service's sockets, opened if they are not.
    ///
    /// # Errors
    /// As of [`open`].
    pub fn sockets_for(&mut self, id: GenerationId, plan: &Plan) -> Result<Vec<Arc<OwnedFd>>, String> {
        let Some(unit) = self.units.get_mut(&id.service) else { return Err("it is not configured any more".into()) };
        if unit.sockets.is_empty() {
            unit.sockets = match held(&self.generations, id, plan) {
                Some(sockets) => sockets.clone(),
                None => open(&plan.spec, plan.owners.as_ref()?)?,
            };
        }
        Ok(unit.sockets.clone())
    }

    /// Is there something to open for it that may take a while?
    pub fn must_open(&self, id: GenerationId, plan: &Plan) -> bool {
        self.binds_paths(id, plan) || network::wanted(plan).is_some()
    }

    /// Must files be made for its sockets? Their disk may hang.
    fn binds_paths(&self, id: GenerationId, plan: &Plan) -> bool {
        plan.spec.sockets.iter().any(|socket| matches!(socket.listen, Listen::Unix { .. }))
            && self.units.get(&id.service).is_some_and(|unit| unit.sockets.is_empty())
            && held(&self.generations, id, plan).is_none()
    }

    /// Opens what the generation needs in the pool; [`Host::handle_opened`] goes on.
    pub fn open_in_pool(&mut self, id: GenerationId, plan: Rc<Plan>) {
        let (spec, owners) = (Arc::clone(&plan.spec), plan.owners.clone());
        let (binds, network) = (self.binds_paths(id, &plan), network::wanted(&plan));
        let (pool, messages) = (self.pool.clone(), self.messages.clone());
        let task = tokio::task::spawn_local(async move {
            let all = move || {
                let sockets = if binds { Some(open(&spec, &owners?)?) } else { None };
                let network = network.map(|kind| network::make(kind, &spec)).transpose()?;
                Ok(Opened { sockets, network })
            };
            let opened = pool.run(Lane::Files(id.service), all).await;
            let _ = messages.send(Message::Opened { generation: id, opened }).await;
        });
        self.opening.insert(id, plan);
        self.plans.insert(id, task.abort_handle());
    }

    /// Those of a generation, which were lost if svd and its guardian died together with all who held them.
    ///
    /// # Errors
    /// As of [`open`].
    pub fn find_sockets(&mut self, id: GenerationId) -> Result<(), String> {
        let Some(made) = self.generations.get(&id) else { return Ok(()) };
        if !made.sockets.is_empty() || made.plan.spec.sockets.is_empty() {
            return Ok(());
        }
        let plan = Rc::clone(&made.plan);
        let sockets = self.sockets_for(id, &plan)?;
        if let Some(made) = self.generations.get_mut(&id) {
            made.sockets = sockets;
        }
        self.keep_sockets(id.service);
        self.warn(Some(id.service), "its sockets were lost with svd and its guardian, and are bound anew");
        Ok(())
    }

    /// Gives open sockets what can change while they are open: the length of the queue at once; a UNIX socket's mode and
    /// owner when these have been looked up.
    pub fn adjust_sockets(&mut self, service: ServiceId, change: Change) {
        let Some(unit) = self.units.get(&service).filter(|u| !u.sockets.is_empty()) else { return };
        let (old, new) = (&change.old.sockets, &change.new.sockets);
        let mut trouble = Vec::new();
        for ((old, new), fd) in old.iter().zip(new).zip(&unit.sockets) {
            if old.backlog != new.backlog {
                trouble.extend(lengthen(fd, new.backlog, &new.listen).err());
            }
        }
        if old.iter().zip(new).any(|(old, new)| old.listen != new.listen) {
            let (pool, messages) = (self.pool.clone(), self.messages.clone());
            tokio::task::spawn_local(async move {
                let spec = Arc::clone(&change.new);
                let owners = pool.run(Lane::Files(service), move || owners(&spec)).await;
                let _ = messages.send(Message::Owners { service, change: Box::new(change), owners }).await;
            });
        }
        for text in trouble {
            self.warn(Some(service), &text);
        }
    }

    pub fn handle_owners(&mut self, service: ServiceId, change: &Change, owners: Result<Vec<Owner>, String>) {
        let Some(unit) = self.units.get(&service) else { return };
        let give = |owners: Vec<Owner>| {
            let pairs = change.old.sockets.iter().zip(&change.new.sockets);
            for (((old, new), owner), fd) in pairs.zip(owners).zip(&unit.sockets) {
                if let Listen::Unix { path, mode, .. } = &new.listen
                    && old.listen != new.listen
                    // It may have been closed, and its name be another program's by now.
                    && path_of(fd).as_deref() == Some(path)
                {
                    give_path(path, *mode, owner)?;
                }
            }
            Ok(())
        };
        let given = owners.map_err(|why| format!("its sockets keep their owner and mode: {why}")).and_then(give);
        if let Err(why) = given {
            self.warn(Some(service), &why);
        }
    }
}

fn lengthen(fd: &OwnedFd, backlog: u32, listen: &Listen) -> Result<(), String> {
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    let backlog = Backlog::new(backlog).unwrap_or(Backlog::MAXCONN);
    nix::sys::socket::listen(&fd, backlog)
        .map_err(|e| format!("cannot change the backlog of {}: {}", text(listen), e.desc()))
}

fn give_path(path: &Path, mode: u32, owner: Owner) -> Result<(), String> {
    let options = UnixOptions { mode, owner: owner.uid, group: owner.gid, backlog: 0 };
    socket::change_unix(path, options).map_err(|e| format!("cannot change {}: {}", path.display(), e.desc()))
}

/// Where a UNIX socket is bound; `None` for others.
pub fn path_of(socket: &OwnedFd) -> Option<PathBuf> {
    let address = getsockname::<UnixAddr>(socket.as_raw_fd()).ok()?;
    address.path().map(PathBuf::from)
}

/// Is it bound to this address?
pub fn listens_at(socket: &OwnedFd, listen: &Listen) -> bool {
    match listen {
        Listen::Tcp(address) => {
            getsockname::<SockaddrStorage>(socket.as_raw_fd()).is_ok_and(|own| own.to_string() == address.to_string())
        }
        Listen::Unix { path, .. } => path_of(socket).as_ref() == Some(path),
    }
}

/// `0.0.0.0:8000` or `unix:/run/airship.sock`.
pub fn text(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix { path, .. } => format!("unix:{}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_knows_its_own_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let options = UnixOptions { mode: 0o600, owner: None, group: None, backlog: 1 };
        let unix = socket::listen_unix(&path, options).expect("listen");
        assert_eq!(path_of(&unix), Some(path));
        let tcp = socket::listen_tcp(([127, 0, 0, 1], 0).into(), 1, false).expect("listen");
        assert_eq!(path_of(&tcp), None);
    }
}
