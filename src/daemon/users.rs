//! Whom services run as: accounts of this host, and ids of their own for services with `user = "auto"`.
//!
//! Such an id is a service's for ever: files that it owns outlive the service, and must not become another's. So the table only
//! grows, is on the disk before an id is used, and an id whose table cannot be read is given to nobody. The first one tried for a name
//! follows from the name alone: hosts that share files mostly agree, and so does one that has lost its table.

use super::enclosure::Walls;
use crate::config::spec::{AUTO_USER, Service};
use crate::kinds::environment::Login;
use crate::sys::spawn::Ids;
use crate::sys::user::{self, Account};
use crate::sys::{durable, io_text};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// What svd gives out: above what accounts get by themselves (`login.defs(5)`: 60000), and the dynamic users of systemd (61184 to
/// 65519); below subordinate ids (100000, `subuid(5)`).
const FIRST: u32 = 70_000;
const LAST: u32 = 79_999;

const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Table {
    version: u32,
    /// By the service's name.
    ids: BTreeMap<Box<str>, u32>,
}

/// Knows svd's own account, and gives ids out. All of it may wait for a disk or a name service: for the pool.
#[derive(Debug)]
pub struct Users {
    pub own: Arc<Login>,
    table: PathBuf,
    homes: PathBuf,
    pub walls: Arc<Walls>,
    /// Two services that start at once must not get the same one.
    turn: Mutex<()>,
}

/// The name of a service's own user, which is no account's.
pub fn name_of(service: &str) -> String {
    format!("airdock-{service}")
}

pub fn login_of(account: &Account) -> Login {
    Login {
        name: account.name.clone(),
        home: account.home.to_string_lossy().into_owned(),
        shell: account.shell.to_string_lossy().into_owned(),
    }
}

impl Users {
    /// `table`: where the ids are written down. `homes`: where the homes of such users are.
    pub fn new(own: Login, table: PathBuf, homes: PathBuf, walls: Arc<Walls>) -> Users {
        Users { own: Arc::new(own), table, homes, walls, turn: Mutex::default() }
    }

    /// `None`: as svd itself. What a service needs of a host is made: an id of its own, and a home.
    ///
    /// # Errors
    /// A sentence: there is no such user or group, or no id to be had.
    pub fn find(&self, spec: &Service) -> Result<(Option<Ids>, Arc<Login>), String> {
        let text = |e: user::UserError| e.to_string();
        let group = spec.group.as_deref().map(user::group).transpose().map_err(text)?;
        let more: Vec<u32> = spec.groups.iter().map(|g| user::group(g)).collect::<Result<_, _>>().map_err(text)?;
        let (mut ids, login) = match spec.user.as_deref() {
            Some(AUTO_USER) => self.auto(&spec.name, group)?,
            None if group.is_none() && more.is_empty() => return Ok((None, Arc::clone(&self.own))),
            named => {
                let account = named.map_or_else(Account::own, Account::find).map_err(text)?;
                let login = if named.is_some() { Arc::new(login_of(&account)) } else { Arc::clone(&self.own) };
                (account.ids(group).map_err(text)?, login)
            }
        };
        for gid in more {
            if !ids.groups.contains(&gid) {
                ids.groups.push(gid);
            }
        }
        Ok((Some(ids), login))
    }

    fn auto(&self, service: &str, group: Option<u32>) -> Result<(Ids, Arc<Login>), String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("user = \"auto\" needs an svd that root runs: only root may start processes as another user. \
                        Remove the key, and the service runs as svd's own user"
                .to_owned());
        }
        let uid = self.id_of(service)?;
        let gid = group.unwrap_or(uid);
        let home = self.home(service, uid)?;
        let login = Login { name: name_of(service), home, shell: "/bin/sh".to_owned() };
        Ok((Ids { uid, gid, groups: vec![gid] }, Arc::new(login)))
    }

    /// The id that the service has, or gets now. It is on the disk when this returns.
    fn id_of(&self, service: &str) -> Result<u32, String> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut table = self.read()?;
        if let Some(id) = table.ids.get(service) {
            return Ok(*id);
        }
        let taken: BTreeSet<u32> = table.ids.values().copied().collect();
        let id = choose(service, |id| taken.contains(&id) || user::is_taken(id)).ok_or_else(|| {
            format!(
                "user = \"auto\": all ids from {FIRST} to {LAST} are given out or are accounts or groups of this host; none is given \
                 twice. Name a user, or remove services that are gone for good, with all their files, from {}",
                self.table.display()
            )
        })?;
        table.ids.insert(service.into(), id);
        let text = serde_json::to_vec_pretty(&table).unwrap_or_default();
        durable::write(&self.table, &text, 0o644)
            .map_err(|e| format!("user = \"auto\": cannot write {}: {}", self.table.display(), io_text(&e)))?;
        Ok(id)
    }

    fn read(&self) -> Result<Table, String> {
        let unusable = |why: &str| {
            format!(
                "user = \"auto\": {} cannot be used ({why}), so which ids are given out is not known; put it back from a \
                 copy, or name a user",
                self.table.display()
            )
        };
        let bytes = match std::fs::read(&self.table) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Ok(Table { version: VERSION, ids: BTreeMap::new() });
            }
            Err(e) => return Err(unusable(&io_text(&e))),
        };
        match serde_json::from_slice::<Table>(&bytes) {
            Ok(table) if table.version == VERSION => Ok(table),
            Ok(table) => Err(unusable(&format!("it is of version {}", table.version))),
            Err(e) => Err(unusable(&e.to_string())),
        }
    }

    /// A directory that is the user's alone. One that is there stays as it is.
    fn home(&self, service: &str, uid: u32) -> Result<String, String> {
        let home = self.homes.join(service);
        let failed =
            |e: std::io::Error| format!("user = \"auto\": cannot make its home {}: {}", home.display(), io_text(&e));
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.homes).map_err(failed)?;
        match std::fs::DirBuilder::new().mode(0o700).create(&home) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(failed(e)),
        }
        // Each time, as svd may have died in between. The directory above is root's alone, so it is no link of somebody's.
        std::os::unix::fs::lchown(&home, Some(uid), Some(uid)).map_err(failed)?;
        home.to_str().map(str::to_owned).ok_or_else(|| "user = \"auto\": svd's state directory is not UTF-8".to_owned())
    }
}

/// The first free id from the one on that the name leads to.
fn choose(service: &str, taken: impl Fn(u32) -> bool) -> Option<u32> {
    let count = LAST - FIRST + 1;
    let mut hash: u32 = 0x811c_9dc5; // FNV-1a: the same in every build, on every host
    for byte in name_of(service).bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    (0..count).map(|step| FIRST + (hash % count + step) % count).find(|id| !taken(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(dir: &std::path::Path) -> Users {
        let own = Login { name: "root".into(), home: "/root".into(), shell: "/bin/sh".into() };
        Users::new(own, dir.join("users.json"), dir.join("homes"), Arc::default())
    }

    #[test]
    fn an_id_is_kept_for_ever_and_given_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = users(dir.path()).id_of("web").expect("an id");
        assert!((FIRST..=LAST).contains(&first));
        let all: BTreeSet<u32> =
            (0..200).map(|n| users(dir.path()).id_of(&format!("service-{n}")).expect("an id")).collect();
        assert!(all.len() == 200 && !all.contains(&first));
        assert_eq!(users(dir.path()).id_of("web"), Ok(first));
        let other = tempfile::tempdir().expect("another host");
        assert_eq!(users(other.path()).id_of("web"), Ok(first), "it follows from the name");
    }

    #[test]
    fn a_table_that_cannot_be_read_gives_nothing_out() {
        let dir = tempfile::tempdir().expect("a directory");
        for text in ["{", r#"{"version":2,"ids":{}}"#] {
            std::fs::write(dir.path().join("users.json"), text).expect("a file");
            let why = users(dir.path()).id_of("web").expect_err("unknown");
            assert!(why.contains("cannot be used") && why.contains("name a user"), "{why}");
            assert_eq!(std::fs::read_to_string(dir.path().join("users.json")).expect("it stays"), text);
        }
    }

    #[test]
    fn when_none_is_left_that_is_said() {
        assert_eq!(choose("web", |_| true), None);
        assert_eq!(choose("web", |id| id != LAST), Some(LAST));
        assert_eq!(choose("web", |id| id != FIRST), Some(FIRST));
        let dir = tempfile::tempdir().expect("a directory");
        let ids = (FIRST..=LAST).map(|id| (format!("s{id}").into(), id)).collect();
        let table = serde_json::to_vec(&Table { version: VERSION, ids }).expect("JSON");
        std::fs::write(dir.path().join("users.json"), table).expect("a file");
        let why = users(dir.path()).id_of("web").expect_err("all are taken");
        assert!(why.contains("none is given twice"), "{why}");
        assert_eq!(users(dir.path()).id_of("s71234"), Ok(71_234));
    }
}
