//! A worker's processes, as any thread can look for them.

use super::{Keeper, Worker};
use crate::sys::cgroup::Group;
use crate::sys::process::{PidFd, descendants};

/// The worker and its descendants: in its control group, or below a process.
#[derive(Clone, Debug)]
pub enum Family {
    Group(Group),
    /// `itself`: the process is one of them.
    Below {
        pid: i32,
        itself: bool,
    },
}

impl Worker {
    pub fn family(&self) -> Family {
        match &self.keeper {
            Keeper::Group { group, .. } => Family::Group(group.clone()),
            Keeper::Stub(stub) => Family::Below { pid: stub.pid(), itself: false },
            Keeper::Alone { pidfd, .. } => Family::Below { pid: pidfd.pid(), itself: true },
        }
    }

    /// The worker and its descendants at this moment, for figures; not certain enough to signal.
    pub fn processes(&self) -> Vec<i32> {
        self.family().processes()
    }
}

impl Family {
    /// At this moment.
    pub fn processes(&self) -> Vec<i32> {
        match self {
            Family::Group(group) => group.procs().unwrap_or_default(),
            Family::Below { pid, itself } => {
                let mut pids = descendants(*pid);
                pids.extend(itself.then_some(*pid));
                pids
            }
        }
    }

    /// One of them by its number, which nobody else has got meanwhile: looked at again, once it cannot be mistaken.
    pub fn certain(&self, pid: i32) -> Option<PidFd> {
        let pidfd = PidFd::open(pid).ok()?;
        let ours = match self {
            Family::Group(group) => group.has(pid),
            Family::Below { .. } => self.processes().contains(&pid),
        };
        (ours && !pidfd.has_ended()).then_some(pidfd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::cgroup::Tree;
    use std::process::Command;

    #[test]
    fn a_number_is_not_enough() {
        let mut child = Command::new("sleep").arg("100").spawn().expect("sleep");
        let pid = child.id().cast_signed();
        let below = Family::Below { pid: std::process::id().cast_signed(), itself: false };
        assert!(below.processes().contains(&pid) && below.certain(pid).is_some());
        assert!(below.certain(1).is_none(), "not one of them");
        let tree = Tree::create(&format!("test-family-{}", std::process::id()));
        if let Ok(tree) = &tree {
            let group = tree.group("web.1.0.1").expect("a group");
            assert!(Family::Group(group.clone()).certain(pid).is_none(), "it is elsewhere");
            std::fs::write(group.path().join("cgroup.procs"), pid.to_string()).expect("moved");
            assert!(Family::Group(group).certain(pid).is_some());
            let other = tree.group("web.1.0.11").expect("a group");
            assert!(Family::Group(other.clone()).certain(pid).is_none(), "the name of one begins like the other's");
            assert!(other.remove().expect("removed"));
        }
        child.kill().expect("killed");
        child.wait().expect("its end");
        assert!(below.certain(pid).is_none(), "it has ended");
        if let Ok(tree) = tree {
            assert!(tree.group("web.1.0.1").expect("it").remove().expect("removed") && tree.remove().expect("removed"));
        }
    }
}
