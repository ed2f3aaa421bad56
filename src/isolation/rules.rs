//! Which system calls and which files: `syscalls` and `landlock`.

use super::{Settings, Surroundings};
use crate::config::spec::{SyscallRule, Template};
use crate::config::syscalls::names;
use crate::sys::sandbox::Landlock;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Without these no program starts or ends.
const ALWAYS: &str = "@default";
/// Where every program may write, as far as its view and its user let it.
const COMMON: [&str; 4] = ["/dev", "/proc", "/tmp", "/var/tmp"];

/// Are the named system calls those that are allowed, or those that are not? `None`: there is no rule. As in systemd the
/// first rule decides, and later ones add and take away.
pub fn syscalls(rules: &[SyscallRule]) -> Option<(bool, BTreeSet<&'static str>)> {
    let allowed = rules.first()?.allow;
    let mut set: BTreeSet<&'static str> = BTreeSet::new();
    if allowed {
        set.extend(names(ALWAYS).unwrap_or_default());
    }
    for rule in rules {
        let named = names(&rule.name).unwrap_or_default();
        if rule.allow == allowed {
            set.extend(named);
        } else {
            set.retain(|name| !named.contains(name));
        }
    }
    Some((allowed, set))
}

/// Reading everywhere but where it is hidden; writing where it is writable, and where every program writes.
///
/// # Errors
/// What `expand` says.
pub fn landlock<E>(
    settings: &Settings,
    around: &Surroundings,
    expand: impl Fn(&Template) -> Result<PathBuf, E>,
) -> Result<Landlock, E> {
    let all = |templates: &[Template]| templates.iter().map(&expand).collect::<Result<Vec<_>, E>>();
    let binds = settings.bind.iter().map(|b| (PathBuf::from(&*b.target), b.read_only));
    let mut writable = all(&settings.writable)?;
    writable.extend(COMMON.map(PathBuf::from));
    writable.extend(binds.clone().filter(|(_, read_only)| !read_only).map(|(target, _)| target));
    let readable = around.needed.iter().cloned().chain(binds.map(|(target, _)| target)).collect();
    Ok(Landlock { hidden: all(&settings.hidden)?, readable, writable })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(words: &[&str]) -> Vec<SyscallRule> {
        let rule =
            |word: &&str| SyscallRule { allow: !word.starts_with('~'), name: word.trim_start_matches('~').into() };
        words.iter().map(rule).collect()
    }

    #[test]
    fn the_first_rule_decides() {
        assert_eq!(syscalls(&[]), None);
        let (allowed, set) = syscalls(&rules(&["@service", "~@chown", "~unlink", "mount"])).expect("rules");
        assert!(allowed && set.contains("execve") && set.contains("mount"));
        assert!(!set.contains("chown") && !set.contains("unlink") && !set.contains("reboot"));
        let (allowed, set) = syscalls(&rules(&["~@mount", "umount2"])).expect("rules");
        assert!(!allowed && set.contains("mount") && !set.contains("umount2") && !set.contains("execve"));
    }

    #[test]
    fn files_by_landlock() {
        let settings =
            Settings { hidden: vec![Template::new("/h")], writable: vec![Template::new("/w")], ..Settings::default() };
        let around = Surroundings { needed: vec!["/h/app".into()] };
        let rules = landlock(&settings, &around, |t| Ok::<_, ()>(PathBuf::from(&*t.0))).expect("rules");
        assert_eq!((rules.hidden, rules.readable), (vec!["/h".into()], vec![PathBuf::from("/h/app")]));
        assert!(rules.writable.contains(&"/w".into()) && !rules.writable.contains(&"/h/app".into()));
    }
}
