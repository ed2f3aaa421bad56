//! Who may change an app, and how a release comes to the host.

use super::book::{PATIENCE, now, on_disk, seconds};
use super::{Task, configuration, fence, release_id, shown};
use crate::api::apps::{
    ConfirmResult, FenceOptions, LockOptions, LockResult, PruneResult, RenewOptions, StageOptions, StageResult,
    UnlockOptions,
};
use crate::api::types::{ApiError, ErrorCode};
use crate::release::ReleaseId;
use crate::release::app::{About, Lock, Refusal, TAKE_IN};
use crate::release::import::{self, Hands};
use crate::release::layout::remove_tree;
use crate::sys::blocking;
use crate::sys::tree::Owner;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The longest lease.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// # Errors
/// It is too short to be renewed in time, or longer than anything that is not for ever.
pub fn lease(seconds: u64) -> Result<Duration, ApiError> {
    let lease = Duration::from_secs(seconds);
    match (Duration::from_secs(1)..=LONGEST).contains(&lease) {
        true => Ok(lease),
        false => {
            let why = format!("A lease of {seconds} seconds is none: it is from 1 second to 30 days.");
            Err(ApiError::new(ErrorCode::BadRequest, why))
        }
    }
}

impl Task {
    pub async fn lock(&self, wanted: LockOptions) -> Result<LockResult, ApiError> {
        let LockOptions { fence: theirs, seconds: lasts, holder, message } = wanted;
        let until = lasts.map(lease).transpose()?.map(|lease| now().after(lease));
        let holder = match &*holder {
            "" => self.who(),
            name if *name == *self.who() => self.who(),
            name => format!("{} (for {name})", self.who()),
        };
        let lock = Lock { fence: fence(&theirs), holder: holder.into(), since: 0, until, message };
        let (layout, seen) = (self.layout.clone(), self.book.changes());
        let current = self.book.look(PATIENCE, move || Ok(layout.current_release())).await;
        let current = current.map_err(|trouble| self.troubled(&trouble))?;
        self.change(|app| {
            // What was looked at in the middle of something else says nothing.
            if let Some(id) = current.as_ref().filter(|_| self.book.changes() == seen) {
                app.found(id, seconds());
            }
            app.lock(now(), seconds(), lock)
        })
        .await?;
        let staging = self.staging(&theirs.rollout).await?;
        Ok(LockResult { fence: theirs, staging: staging.to_string_lossy().into() })
    }

    /// Makes the place where the caller's files arrive for a rollout. What comes late for another one, whose lock has run out in the
    /// midst of an upload, arrives elsewhere.
    async fn staging(&self, rollout: &str) -> Result<PathBuf, ApiError> {
        let (uid, root, own) = (self.peer.uid, self.root, nix::unistd::geteuid().as_raw());
        if !root && uid != own {
            return Err(self.failed("svd does not run as root, so only its own user can send releases"));
        }
        let all = self.around.paths.staging(uid, &self.book.name);
        let path = all.join(digest(rollout));
        let made = path.clone();
        let making = self.book.look(PATIENCE, move || make_staging(&made, uid)).await;
        making.map_err(|trouble| self.troubled(&trouble))?;
        // Nobody waits for it: other rollouts may have left much.
        drop(blocking::start(move || clear_staging(&all)));
        Ok(path)
    }

    pub async fn unlock(&self, wanted: UnlockOptions) -> Result<bool, ApiError> {
        let theirs = wanted.fence.as_ref().map(fence).unwrap_or_default();
        let unlocked = self.change(|app| app.unlock(&theirs, wanted.force)).await?;
        if unlocked && !wanted.force {
            // Its release is here, or will never be.
            let all = self.around.paths.staging(self.peer.uid, &self.book.name);
            let path = all.join(digest(&theirs.rollout));
            let forget = move || {
                forget_staging(&path);
                Ok(())
            };
            if self.book.look(PATIENCE, forget).await.is_ok() {
                drop(blocking::start(move || clear_staging(&all)));
            }
        }
        if unlocked && wanted.force {
            self.tell(&shown(&theirs), "unlocked", None, "by force").await;
        }
        Ok(unlocked)
    }

    pub async fn renew(&self, wanted: RenewOptions) -> Result<(), ApiError> {
        let until = now().after(lease(wanted.lease_seconds)?);
        let theirs = fence(&wanted.fence);
        self.change(|app| app.renew(now(), &theirs, until)).await
    }

    pub async fn confirm(&self, wanted: FenceOptions) -> Result<ConfirmResult, ApiError> {
        let theirs = fence(&wanted.fence);
        let id = self.change(|app| app.confirm(now(), &theirs)).await?;
        self.tell(&wanted.fence, "confirmed", Some(id.as_str()), "").await;
        Ok(ConfirmResult { release: id.as_str().into() })
    }

    pub async fn stage(&self, wanted: StageOptions) -> Result<StageResult, ApiError> {
        let id = release_id(&wanted.release)?;
        let theirs = fence(&wanted.fence);
        let about = About { source: wanted.source, label: wanted.label, by: self.on_behalf(&wanted.fence).into() };
        let _busy = self.begin("a release is being taken in")?;
        let key = format!("{TAKE_IN}{id}");
        // Known, by whatever name it came; or begun by an svd that was killed.
        let known = self
            .change(|app| {
                app.admit_change(now(), &theirs)?;
                if app.releases.contains_key(&id) {
                    return app.staged(&id, 0, about.clone()).map(|()| None);
                }
                Ok(Some((app.begin_step(&key).is_some(), app.leaving.contains(&id))))
            })
            .await?;
        let Some((begun, leaving)) = known else {
            return Ok(StageResult { known: true, files: 0, bytes: 0 });
        };
        let (layout, taken, staging) = (self.layout.clone(), id.clone(), self.staging(&wanted.fence.rollout).await?);
        let (hands, shared) = (self.hands().await?, self.deploy.shared.clone());
        let copied = on_disk(move || {
            if leaving {
                // svd was killed while it was removed.
                layout.remove(&taken)?;
            }
            if !begun && layout.release(&taken).exists() {
                return Err(format!("{} is there, and did not come by a deploy", layout.release(&taken).display()));
            }
            import::import(&layout, &taken, &staging, hands, &shared)
        });
        let copied = match copied.await {
            Ok(copied) => copied,
            Err(why) => {
                self.change(|app| {
                    app.forget_step(&key);
                    Ok(())
                })
                .await?;
                return Err(self.failed(format!("release {id} cannot be taken in: {why}")));
            }
        };
        self.change(|app| {
            app.forget_step(&key);
            app.staged(&id, seconds(), about)
        })
        .await?;
        self.tell(&wanted.fence, "staged", Some(id.as_str()), "").await;
        Ok(StageResult { known: false, files: copied.entries, bytes: copied.bytes })
    }

    /// Whose the files are that arrive, and whose they become: root's, readable for the service.
    async fn hands(&self) -> Result<Hands, ApiError> {
        let from = self.peer.uid;
        if !self.root {
            return Ok(Hands { from, to: None });
        }
        let (spec, users) = (std::sync::Arc::clone(&self.lead), std::sync::Arc::clone(&self.users));
        let ids = on_disk(move || users.find(&spec).map(|(ids, _)| ids)).await.map_err(|why| self.failed(why))?;
        Ok(Hands { from, to: Some(Owner { uid: 0, gid: ids.map_or(0, |ids| ids.gid) }) })
    }

    pub async fn prune(&self, wanted: FenceOptions) -> Result<PruneResult, ApiError> {
        let theirs = fence(&wanted.fence);
        let _busy = self.begin("old releases are being removed")?;
        let runs = self.in_use().await?;
        let keep = self.deploy.keep as usize;
        let old = self
            .change(|app| {
                app.admit_change(now(), &theirs)?;
                let old = app.prunable(keep, &runs);
                // First of all: a death leaves directories that nobody knows, and not the other way round.
                old.iter().for_each(|id| app.pruned(id));
                Ok::<_, Refusal>((old, app.leaving.clone()))
            })
            .await?;
        let (old, leaving) = old;
        let (layout, removed, outputs) = (self.layout.clone(), leaving.clone(), self.book.outputs());
        let venvs = on_disk(move || {
            removed.iter().try_for_each(|id| layout.remove(id))?;
            layout.clear_leftovers()?;
            forget_outputs(&outputs, &removed);
            layout.prune_venvs()
        });
        let venvs = venvs.await.map_err(|why| self.failed(why))?;
        self.change(|app| {
            app.gone(&leaving);
            Ok(())
        })
        .await?;
        let (dir, needed) =
            (self.book.configurations(), self.book.app().configurations().into_iter().map(Into::into).collect());
        on_disk(move || {
            configuration::prune(&dir, &needed);
            Ok(())
        })
        .await
        .map_err(|why| self.failed(why))?;
        for id in &old {
            self.tell(&wanted.fence, "pruned", Some(id.as_str()), "").await;
        }
        Ok(PruneResult { releases: old.iter().map(|id| id.as_str().into()).collect(), venvs })
    }
}

/// Removes what the steps of these releases have said.
fn forget_outputs(dir: &Path, releases: &BTreeSet<ReleaseId>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        // RELEASE.STEP.log
        let name = entry.file_name();
        let release = name.to_str().and_then(|name| name.strip_suffix(".log")?.rsplit_once('.')).map(|(id, _)| id);
        if releases.iter().any(|id| Some(id.as_str()) == release) {
            // Best effort: what stays is a small file.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// What a rollout is called may be no name of a directory.
fn digest(rollout: &str) -> String {
    Sha256::digest(rollout).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Begins what is about to be removed.
const GONE: &str = ".gone-";

/// A directory of the user's in one of svd's; what other rollouts of his have left there is moved away.
fn make_staging(path: &Path, uid: u32) -> Result<(), String> {
    let cannot = |what: &str, path: &Path, e: std::io::Error| {
        format!("cannot {what} the staging directory {}: {}", path.display(), crate::sys::io_text(&e))
    };
    let app = path.parent().ok_or("the staging directory has no parent")?;
    let own = nix::unistd::geteuid().as_raw();
    if std::fs::symlink_metadata(app).is_ok_and(|meta| meta.uid() != own) {
        remove_tree(app)?;
    }
    for dir in app.ancestors().take(3).collect::<Vec<_>>().into_iter().rev() {
        std::fs::DirBuilder::new().recursive(true).mode(0o711).create(dir).map_err(|e| cannot("make", dir, e))?;
    }
    for entry in std::fs::read_dir(app).map_err(|e| cannot("read", app, e))?.flatten() {
        let name = entry.file_name();
        if entry.path() != path && !name.as_encoded_bytes().starts_with(GONE.as_bytes()) {
            forget_staging(&entry.path());
        }
    }
    // They are all svd's: nobody can put another thing in its place.
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() && meta.uid() == uid => return Ok(()),
        Ok(_) => return Err(format!("{} is not a directory of user {uid}'s", path.display())),
        Err(_) => {}
    }
    std::fs::DirBuilder::new().mode(0o700).create(path).map_err(|e| cannot("make", path, e))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(|e| cannot("make", path, e))?;
    std::os::unix::fs::chown(path, Some(uid), None).map_err(|e| cannot("give away", path, e))
}

/// From now on nothing is there; whoever writes there still does so for nothing.
fn forget_staging(path: &Path) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let gone = path.with_file_name(format!("{GONE}{}-{number}", std::process::id()));
    // Best effort: the next lock tries again.
    let _ = std::fs::rename(path, gone);
}

/// Removes what was moved away.
fn clear_staging(app: &Path) {
    for entry in std::fs::read_dir(app).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(GONE.as_bytes()) {
            let _ = remove_tree(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rollout_has_a_place_of_its_own() {
        let dir = tempfile::tempdir().expect("a directory");
        let app = dir.path().join("staging/0/web");
        let (one, other) = (app.join(digest("one")), app.join(digest("../other")));
        let uid = nix::unistd::geteuid().as_raw();
        make_staging(&one, uid).expect("made");
        std::fs::write(one.join("file"), "x").expect("write");
        make_staging(&one, uid).expect("it is there");
        assert!(one.join("file").exists(), "the same rollout finds what it has sent");
        // Who writes there still, with the directory open, writes nothing of the other's.
        make_staging(&other, uid).expect("made");
        assert!(!one.exists() && std::fs::read_dir(&other).expect("list").next().is_none());
        clear_staging(&app);
        assert_eq!(std::fs::read_dir(&app).expect("list").count(), 1);
        assert_eq!(std::fs::metadata(&other).expect("there").permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn outputs_of_a_release_are_told_by_its_whole_name() {
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["r1.migrate.log", "r1.2.migrate.log", "r1", "r1.build.log"] {
            std::fs::write(dir.path().join(name), "").expect("write");
        }
        forget_outputs(dir.path(), &BTreeSet::from([ReleaseId::new("r1").expect("a name")]));
        let mut left: Vec<_> = std::fs::read_dir(dir.path()).expect("list").flatten().map(|e| e.file_name()).collect();
        left.sort();
        assert_eq!(left, ["r1", "r1.2.migrate.log"]);
    }
}
