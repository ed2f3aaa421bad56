//! Where workers are held together, control groups or stubs, and the end of what an svd that was killed has left there.

use super::adopt::Found;
use super::checks;
use super::paths::Paths;
use crate::config;
use crate::sys::cgroup::{Group, NoTree, Tree};
use crate::sys::stub;
use crate::sys::worker::Containment;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// For what a killed svd has left to end; beyond that, only what hangs in the kernel is left.
pub const LEFT_LIMIT: Duration = Duration::from_secs(10);
/// Who is in uninterruptible sleep so long after he was killed may stay there.
const HUNG: Duration = Duration::from_secs(1);
/// For a process that was just killed to let go of a tree; and where workers are in it that must be found again.
const LET_GO: Duration = Duration::from_millis(500);
const LET_GO_OF_OURS: Duration = Duration::from_secs(5);

/// The tree of control groups, which is this svd's alone from now on. Another's, whose run directory has the same name in another
/// mount namespace, is left alone: this one has a tree of another name then.
///
/// `recorded`: the groups of workers that are to be taken over. `kept`: the lock, if the guardian has it.
///
/// # Errors
/// A sentence: the workers' tree cannot be had.
pub fn hold(
    paths: &Paths,
    recorded: &BTreeSet<Box<str>>,
    kept: Option<&OwnedFd>,
) -> Result<Result<Arc<Tree>, NoTree>, String> {
    let (name, own) = (paths.id(), paths.own_id()?);
    let held = |name: &str, limit| Tree::hold(name, kept, Instant::now() + limit).transpose();
    let busy = |what: &str| format!("the control groups airdock.{what} of this svd's workers are held by another svd");
    if Tree::is_made(&own) {
        return held(&own, LET_GO_OF_OURS).ok_or_else(|| format!("{}; end it, and start this one again", busy(&own)));
    }
    let ours = !recorded.is_empty();
    if let Some(tree) = held(&name, if ours { LET_GO_OF_OURS } else { LET_GO }) {
        return Ok(tree);
    }
    if ours && Tree::has_any(&name, recorded) {
        return Err(format!(
            "{}, whose run directory is called {} as well; end that one, and start this one again",
            busy(&name),
            paths.run.display()
        ));
    }
    let tree = held(&own, LET_GO).ok_or_else(|| busy(&own))?;
    if tree.is_ok() {
        tracing::warn!(
            "another svd, whose run directory is called {} as well, has the control groups airdock.{name}; \
             those of this one are airdock.{own}",
            paths.run.display()
        );
    }
    Ok(tree)
}

/// # Errors
/// A sentence.
pub fn contain(
    paths: &Paths,
    tree: Result<Arc<Tree>, NoTree>,
    found: Option<&Found>,
    limitations: &mut Vec<Box<str>>,
) -> Result<(Containment, Option<String>), String> {
    let failed = |e| format!("cannot read {}: {}", paths.run.display(), crate::sys::io_text(&e));
    let stubs = stub::Place::open(&paths.run, &paths.stubs()).map_err(failed)?;
    let recorded = found.map(Found::groups).unwrap_or_default();
    let mut left = stubs.end_orphans(&found.map(Found::stubs).unwrap_or_default(), LEFT_LIMIT);
    stubs.sweep(|file| recorded.contains(file));
    let contained = match tree {
        Ok(tree) => {
            left += sweep(&tree, |group| !recorded.contains(group.name()));
            (Containment::Cgroup(tree), None)
        }
        Err(why) => {
            limitations.push(format!("no cgroups ({why}): each worker has a small stub process above it").into());
            (Containment::Stub(stubs), Some(why.reason))
        }
    };
    if left > 0 {
        let left = config::counted(left, "worker");
        tracing::warn!("an svd that was killed has left {left}; they are ended, and the services started anew");
    }
    Ok(contained)
}

/// Ends what an svd that was killed has left and no record names: forked at the very moment of its death. Gives how many workers there were.
fn sweep(tree: &Arc<Tree>, which: impl Fn(&Group) -> bool) -> usize {
    let mut groups = tree.groups().unwrap_or_default();
    groups.retain(which);
    let workers = groups.iter().filter(|g| !checks::is_group(g.name()));
    let left = workers.filter(|g| g.is_populated().unwrap_or(false)).count();
    let (until, hung) = (Instant::now() + LEFT_LIMIT, Instant::now() + HUNG);
    loop {
        // Best effort, and again: before Linux 5.14 one round misses what is forked meanwhile.
        groups.retain(|group| !group.kill().and_then(|()| group.remove()).unwrap_or(false));
        if groups.is_empty() || Instant::now() >= until {
            return left;
        }
        if Instant::now() >= hung && groups.iter().all(hangs) {
            let names: Vec<&str> = groups.iter().map(Group::name).collect();
            tracing::warn!(
                "of an earlier svd, processes are left that nobody can end, as they hang in the kernel: {}",
                names.join(", ")
            );
            return left;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Is all that is left of it in uninterruptible sleep?
fn hangs(group: &Group) -> bool {
    let states =
        |pid: &i32| crate::sys::process::ProcStat::read(*pid).is_none_or(|stat| matches!(stat.state, 'D' | 'Z'));
    group.procs().is_ok_and(|pids| pids.iter().all(states))
}
