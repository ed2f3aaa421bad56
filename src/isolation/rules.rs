//! Which system calls and which files: `syscalls` and `landlock`.

use super::{Settings, Surroundings};
use crate::config::spec::{SyscallRule, Template};
use crate::config::syscalls::{in_no_group, names};
use crate::sys::sandbox::Landlock;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Without these no program starts or ends.
const ALWAYS: &str = "@default";
/// Where every program may write, as far as its view and its user let it.
const COMMON: [&str; 4] = ["/dev", "/proc", "/tmp", "/var/tmp"];

/// Of calls that are there, these make namespaces, in which a process has all capabilities.
const NAMESPACES: [&str; 3] = ["clone3", "setns", "unshare"];

/// Which system calls a process may make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// The named ones are those that are allowed, and not those that are not.
    pub allowed: bool,
    pub names: BTreeSet<&'static str>,
    /// As if the kernel had them not: programs then do without.
    pub unknown: BTreeSet<&'static str>,
    /// `clone` may make namespaces.
    pub namespaces: bool,
}

/// `None`: there is no rule. As in systemd the first rule decides, and later ones add and take away. Where calls are allowed, those that make
/// namespaces are not by their group: they must be named.
pub fn syscalls(rules: &[SyscallRule]) -> Option<Filter> {
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
    let named = |name: &str| rules.iter().any(|rule| rule.allow && *rule.name == *name);
    let mut unknown = BTreeSet::new();
    if allowed {
        unknown.extend(in_no_group());
        NAMESPACES.iter().filter(|name| !named(name)).for_each(|name| {
            set.remove(name);
        });
        // The C library then takes `clone`, into which a filter can look.
        unknown.insert("clone3");
        unknown.retain(|name| !set.contains(name));
    }
    Some(Filter { allowed, names: set, unknown, namespaces: !allowed || named("unshare") || named("clone3") })
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
        let filter = syscalls(&rules(&["@service", "~@chown", "~unlink", "mount"])).expect("rules");
        assert!(filter.allowed && filter.names.contains("execve") && filter.names.contains("mount"));
        assert!(!["chown", "unlink", "reboot"].iter().any(|name| filter.names.contains(name)));
        let filter = syscalls(&rules(&["~@mount", "umount2"])).expect("rules");
        assert!(!filter.allowed && filter.names.contains("mount"));
        assert!(!filter.names.contains("umount2") && !filter.names.contains("execve"));
        assert!(filter.unknown.is_empty() && filter.namespaces);
    }

    #[test]
    fn namespaces_are_made_by_what_is_named_alone() {
        let filter = syscalls(&rules(&["@service"])).expect("rules");
        assert!(!filter.namespaces && filter.names.contains("clone"));
        assert!(!NAMESPACES.iter().any(|name| filter.names.contains(name)));
        assert!(filter.unknown.contains("clone3") && filter.unknown.contains("landlock_create_ruleset"));
        let filter = syscalls(&rules(&["@service", "unshare", "clone3", "landlock_create_ruleset"])).expect("rules");
        assert!(filter.namespaces && filter.names.contains("unshare"));
        assert!(!filter.unknown.contains("clone3") && !filter.unknown.contains("landlock_create_ruleset"));
    }

    #[test]
    fn files_by_landlock() {
        let settings =
            Settings { hidden: vec![Template::new("/h")], writable: vec![Template::new("/w")], ..Settings::default() };
        let around = Surroundings { needed: vec!["/h/app".into()], ..Surroundings::default() };
        let rules = landlock(&settings, &around, |t| Ok::<_, ()>(PathBuf::from(&*t.0))).expect("rules");
        assert_eq!((rules.hidden, rules.readable), (vec!["/h".into()], vec![PathBuf::from("/h/app")]));
        assert!(rules.writable.contains(&"/w".into()) && !rules.writable.contains(&"/h/app".into()));
    }
}
