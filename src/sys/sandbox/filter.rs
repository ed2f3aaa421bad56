//! Which system calls a process may make (`seccomp(2)`), and which files it may touch by `landlock(7)`.

use super::entrance::Result;
use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// System calls by their numbers on this machine, sorted, each once. All others get the opposite.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Syscalls {
    pub allowed: bool,
    numbers: Vec<u32>,
}

/// The system calls of x32 programs, which an x86-64 kernel may run, are the others with this bit.
const X32: u32 = 0x4000_0000;

impl Syscalls {
    /// Names that this machine does not have mean nothing.
    pub fn new<'a>(allowed: bool, names: impl Iterator<Item = &'a str>) -> Syscalls {
        let known = names.filter_map(|name| syscalls::Sysno::from_str(name).ok());
        let mut numbers: Vec<u32> = known.filter_map(|number| u32::try_from(number.id()).ok()).collect();
        if !allowed && cfg!(target_arch = "x86_64") {
            numbers.extend_from_within(..);
            let half = numbers.len() / 2;
            numbers[half..].iter_mut().for_each(|number| *number |= X32);
        }
        numbers.sort_unstable();
        numbers.dedup();
        Syscalls { allowed, numbers }
    }

    pub(super) fn program(&self) -> Result<BpfProgram> {
        let refuse = SeccompAction::Errno(libc::EPERM as u32);
        let (others, these) =
            if self.allowed { (refuse, SeccompAction::Allow) } else { (SeccompAction::Allow, refuse) };
        let failed = |e: &dyn std::fmt::Display| format!("cannot make the filter of system calls: {e}");
        let machine = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| failed(&e))?;
        let rules: BTreeMap<i64, Vec<_>> = self.numbers.iter().map(|n| (i64::from(*n), Vec::new())).collect();
        let filter = SeccompFilter::new(rules, others, these, machine).map_err(|e| failed(&e))?;
        BpfProgram::try_from(filter).map_err(|e| failed(&e))
    }
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
            .add_rules(path_beneath_rules(&self.writable, AccessFs::from_all(NEWEST)))
    }
}

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
        let allowed = Syscalls::new(true, ["read", "write", "exit_group", "no_such_call", "read"].into_iter());
        assert_eq!(allowed.numbers.len(), 3);
        assert!(allowed.program().is_ok_and(|program| program.len() > 3));
        let forbidden = Syscalls::new(false, ["mount"].into_iter());
        assert!(forbidden.program().is_ok());
        assert_eq!(forbidden.numbers.len(), if cfg!(target_arch = "x86_64") { 2 } else { 1 });
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
