//! Which system calls a process may make (`seccomp(2)`), and which files it may touch by `landlock(7)`.

use super::entrance::Result;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// System calls by their numbers on this machine, sorted, each once. All others get the opposite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Syscalls {
    pub allowed: bool,
    numbers: Vec<u32>,
    /// Answered as a kernel does that has them not, and with them all whose numbers are from `beyond` on.
    unknown: Vec<u32>,
    beyond: u32,
    /// `clone` may make namespaces.
    namespaces: bool,
}

/// The system calls of x32 programs, which an x86-64 kernel may run, have this bit, and some have numbers of their own: there are none in a
/// sandbox.
const X32: u32 = 0x4000_0000;
/// As many as a jump in a filter can be long (`BPF_JMP`), which nothing comes near.
const MOST_UNKNOWN: usize = 200;
/// Flags of `clone(2)` that make namespaces; of time it makes none.
const NAMESPACES: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u64;

impl Syscalls {
    /// Names that this machine does not have mean nothing.
    pub fn new<'a>(
        allowed: bool,
        names: impl Iterator<Item = &'a str>,
        unknown: impl Iterator<Item = &'a str>,
        namespaces: bool,
    ) -> Syscalls {
        let newest = syscalls::Sysno::iter().map(|call| call.id().unsigned_abs()).max().unwrap_or(X32);
        let beyond = if allowed { newest + 1 } else { X32 };
        Syscalls { allowed, numbers: numbers(names), unknown: numbers(unknown), beyond, namespaces }
    }

    pub(super) fn program(&self) -> Result<BpfProgram> {
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let (others, these) =
            if self.allowed { (refuse, SeccompAction::Allow) } else { (SeccompAction::Allow, refuse) };
        let failed = |e: &dyn std::fmt::Display| format!("cannot make the filter of system calls: {e}");
        let machine = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| failed(&e))?;
        let mut rules: BTreeMap<i64, Vec<_>> = self.numbers.iter().map(|n| (i64::from(*n), Vec::new())).collect();
        if let Some(clone) = rules.get_mut(&libc::SYS_clone).filter(|_| self.allowed && !self.namespaces) {
            let none = SeccompCmpOp::MaskedEq(NAMESPACES);
            let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, none, 0).map_err(|e| failed(&e))?;
            clone.push(SeccompRule::new(vec![condition]).map_err(|e| failed(&e))?);
        }
        let filter = SeccompFilter::new(rules, others, these, machine).map_err(|e| failed(&e))?;
        let mut program = self.no_such_call();
        program.extend(BpfProgram::try_from(filter).map_err(|e| failed(&e))?);
        Ok(program)
    }

    /// What stands before a filter and answers for it: ENOSYS.
    fn no_such_call(&self) -> BpfProgram {
        let instruction = |code: u32, jt: usize, k: u32| sock_filter { code: code as u16, jt: jt as u8, jf: 0, k };
        let unknown = &self.unknown[..self.unknown.len().min(MOST_UNKNOWN)];
        let mut program = Vec::with_capacity(unknown.len() + 4);
        // The number is what seccomp_data begins with.
        program.push(instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0));
        // Over all that come after it, and the one that leaves out the answer.
        program.push(instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, unknown.len() + 1, self.beyond));
        for (nth, number) in unknown.iter().enumerate() {
            program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, unknown.len() - nth, *number));
        }
        program.push(instruction(libc::BPF_JMP | libc::BPF_JA, 0, 1));
        let answer = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        program.push(instruction(libc::BPF_RET | libc::BPF_K, 0, answer));
        program
    }
}

/// Sorted, each once.
fn numbers<'a>(names: impl Iterator<Item = &'a str>) -> Vec<u32> {
    let known = names.filter_map(|name| syscalls::Sysno::from_str(name).ok());
    let mut numbers: Vec<u32> = known.filter_map(|number| u32::try_from(number.id()).ok()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

pub(super) fn restrict_syscalls(program: &BpfProgram) -> Result<()> {
    seccompiler::apply_filter(program).map_err(|e| format!("cannot restrict system calls: {e}"))
}

/// Files by their place. What the kernel's version of Landlock does not know stays allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Landlock {
    /// Everything is readable but this.
    pub hidden: Vec<PathBuf>,
    /// Readable all the same.
    pub readable: Vec<PathBuf>,
    pub writable: Vec<PathBuf>,
}

/// The newest that is made use of.
const NEWEST: ABI = ABI::V6;

impl Landlock {
    /// What [`restrict_files`] then puts in force: opened while all of it can be.
    pub(super) fn rules(&self) -> Result<RulesetCreated> {
        self.ruleset().map_err(|e| format!("cannot make the rules of Landlock: {e}"))
    }

    fn ruleset(&self) -> std::result::Result<RulesetCreated, RulesetError> {
        let read = AccessFs::from_read(NEWEST);
        let readable = all_but(Path::new("/"), &self.hidden);
        Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(ABI::V1))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .scope(Scope::Signal)?
            .create()?
            .add_rules(path_beneath_rules(readable.iter().chain(&self.readable), read))?
            .add_rules(path_beneath_rules(&self.writable, AccessFs::from_all(NEWEST)))?
            .add_rules(outputs().into_iter().map(|fd| Ok::<_, RulesetError>(PathBeneath::new(fd, REOPEN))))
    }
}

/// Of `/dev/stdout` and `/dev/stderr`, which programs open although they have them.
const REOPEN: AccessFs = AccessFs::WriteFile;

/// Those that have a place among the files, as svd's pipes have.
fn outputs() -> Vec<OwnedFd> {
    let fds = [std::io::stdout().as_fd().try_clone_to_owned(), std::io::stderr().as_fd().try_clone_to_owned()];
    // Of pipe(2); a rule for one is refused, and not needed.
    let has_place = |fd: &OwnedFd| {
        let is = nix::sys::statfs::fstatfs(fd).map(|fs| fs.filesystem_type() != nix::sys::statfs::FsType(PIPEFS));
        is.unwrap_or(false)
    };
    fds.into_iter().flatten().filter(has_place).collect()
}

/// `linux/magic.h`
const PIPEFS: nix::libc::__fsword_t = 0x5049_5045;

pub(super) fn restrict_files(rules: RulesetCreated) -> Result<()> {
    let status = rules.restrict_self().map_err(|e| format!("cannot restrict files by Landlock: {e}"))?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err("the kernel has no Landlock, or it is switched off (lsm=)".to_owned()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

/// The largest parts of `path` without `hidden`. Links count where they lead to.
fn all_but(path: &Path, hidden: &[PathBuf]) -> Vec<PathBuf> {
    if hidden.iter().any(|h| path.starts_with(h)) {
        return Vec::new();
    }
    if !hidden.iter().any(|h| h.starts_with(path)) {
        return vec![path.to_owned()];
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let real = entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_symlink()));
    real.flat_map(|entry| all_but(&entry.path(), hidden)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_made() {
        let none = std::iter::empty;
        let names = ["read", "write", "clone", "no_such_call", "read"];
        let allowed = Syscalls::new(true, names.into_iter(), ["clone3"].into_iter(), false);
        assert_eq!((allowed.numbers.len(), allowed.unknown.len()), (3, 1));
        let program = allowed.program().expect("a program");
        let free = Syscalls { namespaces: true, ..allowed }.program().expect("a program");
        assert!(program.len() > free.len(), "it looks at the flags of clone");
        // From a number that is unknown, and from one that is too large, to the answer.
        assert_eq!(program[2 + usize::from(program[2].jt) + 1].k & 0xffff, libc::ENOSYS as u32);
        assert_eq!(program[1 + usize::from(program[1].jt) + 1].k & 0xffff, libc::ENOSYS as u32);
        let forbidden = Syscalls::new(false, ["mount"].into_iter(), none(), true);
        assert_eq!((forbidden.numbers.len(), forbidden.beyond), (1, X32));
        assert!(forbidden.program().is_ok());
    }

    #[test]
    fn all_but_what_is_hidden() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        for name in ["a", "b/c", "b/d"] {
            std::fs::create_dir_all(path(name)).expect("directories");
        }
        std::os::unix::fs::symlink("b/c", path("link")).expect("a link");
        let mut left = all_but(dir.path(), &[path("b/c")]);
        left.sort();
        assert_eq!(left, [path("a"), path("b/d")]);
        assert_eq!(all_but(dir.path(), &[]), [dir.path()]);
        assert!(all_but(&path("b/c"), &[path("b")]).is_empty());
    }
}
