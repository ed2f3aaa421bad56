//! Who is on the other end of a control connection.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::sync::Semaphore;

/// A user, as the kernel and the user database know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    /// Of the connecting process, at the time of `connect`.
    pub pid: i32,
    /// Empty for a user that the database does not know.
    pub user: Box<str>,
    /// Primary group of the process, and all groups of the user.
    pub groups: Arc<[PeerGroup]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerGroup {
    pub gid: u32,
    /// Empty where the database has no name.
    pub name: Box<str>,
}

impl Peer {
    /// svd itself, as for requests of the public HTTP address.
    pub fn nobody() -> Peer {
        Peer { uid: u32::MAX, pid: 0, user: "".into(), groups: Arc::new([]) }
    }

    /// `airship`, or `uid 1204` without a name.
    pub fn label(&self) -> String {
        if self.user.is_empty() { format!("uid {}", self.uid) } else { self.user.to_string() }
    }
}

/// What `SO_PEERCRED` says (unix(7)): fixed when the peer connected, so that a descriptor handed on keeps its first
/// owner's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub pid: i32,
}

pub fn credentials<S: AsFd>(socket: &S) -> io::Result<Credentials> {
    let found = getsockopt(&socket.as_fd(), sockopt::PeerCredentials)?;
    Ok(Credentials { uid: found.uid(), gid: found.gid(), pid: found.pid() })
}

/// How long a user's groups are remembered: a new member of a group waits no longer than this.
const REMEMBER: Duration = Duration::from_secs(30);
/// Users remembered at once.
const MAX_USERS: usize = 1024;
/// Lookups at once, a thread each.
const MAX_LOOKUPS: usize = 4;

#[derive(Clone)]
struct Known {
    user: Box<str>,
    groups: Arc<[PeerGroup]>,
    until: Instant,
}

/// Users and groups by number, from the system's database (getpwuid(3), getgrouplist(3)), remembered for a while.
///
/// A lookup may ask a directory server over the network, so it never runs on the loop that supervises.
#[derive(Clone)]
pub struct Users {
    known: Arc<Mutex<HashMap<(u32, u32), Known>>>,
    /// A directory server that hangs must not collect threads.
    lookups: Arc<Semaphore>,
}

impl Default for Users {
    fn default() -> Self {
        Users { known: Arc::default(), lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }
}

impl Users {
    pub async fn peer(&self, who: Credentials) -> Peer {
        let peer = |user: Box<str>, groups| Peer { uid: who.uid, pid: who.pid, user, groups };
        // Root needs no rules, so neither its groups nor a lookup that could hang while the directory is down.
        if who.uid == 0 {
            return peer("root".into(), Arc::new([]));
        }
        let key = (who.uid, who.gid);
        if let Some(found) = self.remembered(key) {
            return peer(found.user, found.groups);
        }
        let permit = Arc::clone(&self.lookups).acquire_owned().await;
        if let Some(found) = self.remembered(key) {
            return peer(found.user, found.groups);
        }
        let (done, found) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new().name("svd-lookup".into()).spawn(move || {
            // Kept by the thread: whoever asked may have gone.
            let _permit = permit;
            let _ = done.send(look_up(who.uid, who.gid));
        });
        let nobody = || -> (Box<str>, Arc<[PeerGroup]>) { ("".into(), Arc::new([])) };
        // Without a thread it is not remembered: there may be one the next time.
        if thread.is_err() {
            let (user, groups) = nobody();
            return peer(user, groups);
        }
        let (user, groups) = found.await.unwrap_or_else(|_| nobody());
        self.remember(key, &user, &groups);
        peer(user, groups)
    }

    fn remembered(&self, key: (u32, u32)) -> Option<Known> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key).filter(|k| k.until > Instant::now()).cloned()
    }

    fn remember(&self, key: (u32, u32), user: &str, groups: &Arc<[PeerGroup]>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_USERS {
            known.clear();
        }
        let entry = Known { user: user.into(), groups: Arc::clone(groups), until: Instant::now() + REMEMBER };
        known.insert(key, entry);
    }
}

/// Name and groups; what the database does not know stays a number without a name, which no rule by name fits.
fn look_up(uid: u32, gid: u32) -> (Box<str>, Arc<[PeerGroup]>) {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let primary = Gid::from_raw(gid);
    let mut gids = vec![primary];
    let mut name = String::new();
    if let Some(user) = user {
        name = user.name;
        if let Ok(c_name) = CString::new(name.as_str())
            && let Ok(list) = getgrouplist(&c_name, user.gid)
        {
            gids.extend(list);
        }
    }
    gids.sort_by_key(|g| g.as_raw());
    gids.dedup();
    let groups = gids
        .into_iter()
        .map(|gid| PeerGroup {
            gid: gid.as_raw(),
            name: Group::from_gid(gid).ok().flatten().map(|g| g.name.into_boxed_str()).unwrap_or_default(),
        })
        .collect();
    (name.into_boxed_str(), groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_socket_pair_is_ourselves() {
        let (a, _b) = UnixStream::pair().unwrap();
        let who = credentials(&a).unwrap();
        assert_eq!(who.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(who.pid, std::process::id() as i32);
    }

    #[test]
    fn groups_of_a_user_come_from_the_database() {
        // uid 1 is `daemon` on every Debian and most others; elsewhere it has no name, and still its primary group.
        let (_user, groups) = look_up(1, 1);
        assert!(groups.iter().any(|g| g.gid == 1));
        let (user, groups) = look_up(3_999_999_999, 3_999_999_998);
        assert_eq!(&*user, "");
        assert_eq!(groups.len(), 1);
        assert_eq!(&*groups[0].name, "");
    }
}
