//! Users and groups of this host, asked anew each time: they change while svd runs.

use std::ffi::CString;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User};

use super::spawn::Ids;

/// One user of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    pub home: PathBuf,
    pub shell: PathBuf,
}

/// Why a name means nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    #[error("this host has no user {0:?}; create it, or correct the name")]
    NoUser(String),
    #[error("this host has no group {0:?}; create it, or correct the name")]
    NoGroup(String),
    #[error("cannot look up {name:?}: {}", .errno.desc())]
    Lookup { name: String, errno: Errno },
}

fn lookup<T>(name: &str, result: Result<Option<T>, Errno>) -> Result<Option<T>, UserError> {
    match result {
        Ok(found) => Ok(found),
        // Several name services say "none" this way, see getpwnam(3).
        Err(Errno::ENOENT | Errno::ESRCH | Errno::EBADF) => Ok(None),
        Err(errno) => Err(UserError::Lookup { name: name.into(), errno }),
    }
}

impl Account {
    /// By name or number. A number without an entry is an account without a name, with its number as group and `/` as home.
    pub fn find(text: &str) -> Result<Account, UserError> {
        if let Some(user) = lookup(text, User::from_name(text))? {
            return Ok(user.into());
        }
        match text.parse() {
            Ok(uid) => Account::by_uid(uid),
            Err(_) => Err(UserError::NoUser(text.into())),
        }
    }

    /// By number, as [`Account::find`].
    pub fn by_uid(uid: u32) -> Result<Account, UserError> {
        let name = uid.to_string();
        let found = lookup(&name, User::from_uid(Uid::from_raw(uid)))?;
        Ok(found.map(Account::from).unwrap_or(Account {
            name,
            uid,
            gid: uid,
            home: "/".into(),
            shell: "/bin/sh".into(),
        }))
    }

    /// The account that svd itself runs as.
    pub fn own() -> Result<Account, UserError> {
        Account::by_uid(nix::unistd::geteuid().as_raw())
    }

    /// All groups of this user, the primary one (or `gid` in its place) included (`getgrouplist(3)`).
    pub fn ids(&self, gid: Option<u32>) -> Result<Ids, UserError> {
        let gid = gid.unwrap_or(self.gid);
        let lookup_error = |errno| UserError::Lookup { name: self.name.clone(), errno };
        let name = CString::new(self.name.as_str()).map_err(|_| lookup_error(Errno::EINVAL))?;
        let groups = nix::unistd::getgrouplist(&name, Gid::from_raw(gid)).map_err(lookup_error)?;
        Ok(Ids { uid: self.uid, gid, groups: groups.into_iter().map(Gid::as_raw).collect() })
    }
}

impl From<User> for Account {
    fn from(user: User) -> Account {
        Account { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), home: user.dir, shell: user.shell }
    }
}

/// The number of a group, by name or number; a number need not have an entry.
pub fn group(text: &str) -> Result<u32, UserError> {
    if let Some(group) = lookup(text, Group::from_name(text))? {
        return Ok(group.gid.as_raw());
    }
    text.parse().map_err(|_| UserError::NoGroup(text.to_string()))
}

/// The name of a group; its number if it has none.
pub fn group_name(gid: u32) -> String {
    match Group::from_gid(Gid::from_raw(gid)) {
        Ok(Some(group)) => group.name,
        _ => gid.to_string(),
    }
}

/// Has this number an account, or a group? Where that cannot be asked, it may have.
pub fn is_taken(id: u32) -> bool {
    let account = lookup("", User::from_uid(Uid::from_raw(id))).map_or(true, |found| found.is_some());
    account || lookup("", Group::from_gid(Gid::from_raw(id))).map_or(true, |found| found.is_some())
}

/// Whether a user is a member of a group, primary or supplementary.
pub fn is_member(uid: u32, gid: u32) -> bool {
    Account::by_uid(uid)
        .and_then(|account| account.ids(None))
        .is_ok_and(|ids| ids.gid == gid || ids.groups.contains(&gid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let root = Account::find("root").expect("root");
        assert_eq!((root.uid, root.gid), (0, 0));
        assert_eq!(Account::find("0"), Ok(root.clone()));
        assert!(root.ids(None).expect("groups").groups.contains(&0));
        assert!(is_member(0, 0));
        assert_eq!(
            Account::find("nobody-here").map_err(|e| e.to_string()),
            Err("this host has no user \"nobody-here\"; create it, or correct the name".into())
        );
        let odd = Account::find("54321").expect("numbers need no entry");
        assert_eq!((odd.uid, odd.gid), (54321, 54321));
        assert_eq!(odd.ids(None).expect("groups").groups, vec![54321]);
        assert_eq!(group("root"), Ok(0));
        assert_eq!(group_name(0), "root");
        assert!(matches!(group("no-such"), Err(UserError::NoGroup(_))));
        let groups = std::fs::read_to_string("/etc/group").expect("the groups");
        let ids = groups.lines().filter_map(|line| line.split(':').nth(2)?.parse().ok());
        for gid in ids {
            assert!(is_taken(gid), "group {gid}");
        }
        assert!(is_taken(0) && !is_taken(54_321));
    }
}
