//! What hosts, groups and git's branches may be called: never what a program could take for an option.

use crate::config::section::Item;
use crate::config::source::Problem;

/// Longest name of a host: that of the domain name system, and a user before it.
const LONGEST: usize = 300;
/// What `-H` means by it: every host.
pub(super) const ALL: &str = "all";

/// May a host be called this, for ssh and on a command line? `[user@]name`, where neither begins with `-`.
///
/// # Errors
/// Why not.
pub fn check_host_name(name: &str) -> Result<(), &'static str> {
    let fits = |c: char| c.is_alphanumeric() || "_.-:%@[]".contains(c);
    match name {
        "" => Err("it is empty"),
        ALL => Err("\"all\" means every host"),
        _ if name.starts_with('-') => Err("what begins with - is an option to ssh"),
        _ if name.contains("@-") => Err("the name after @ begins with -, which is an option to ssh"),
        _ if name.starts_with('@') || name.ends_with('@') => Err("the user or the name is missing"),
        _ if name.len() > LONGEST => Err("it is too long"),
        _ if !name.chars().all(fits) => Err("it may have letters, digits and _ . - : @ only"),
        _ => Ok(()),
    }
}

pub(super) fn host_name(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.text()?;
    match check_host_name(text) {
        Ok(()) => Ok(text.into()),
        Err(why) => Err(item.problem(format!("{text:?} cannot be a host: {why}")).help(match text.contains('*') {
            true => "a list of hosts has their names in full",
            false => "write the name by which ssh knows it",
        })),
    }
}

/// Of a host, a group, a pattern with `*`, or `all`.
pub(super) fn choice(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.text()?;
    match check_host_name(&text.replace('*', "x")) {
        Ok(()) => Ok(text.into()),
        Err(_) if text == ALL => Ok(text.into()),
        Err(why) => Err(item.problem(format!("{text:?} is no host, group or pattern: {why}"))),
    }
}

/// A branch of a repository, in the words of `git-check-ref-format(1)`, as far as they matter here.
pub(super) fn branch(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.name()?;
    match crate::fleet::source::check_ref_name(&text) {
        Ok(()) => Ok(text),
        Err(why) => Err(item.problem(format!("{text:?} cannot be a branch: {why}"))),
    }
}

/// Something that git clones. A `-` at its beginning would be an option, `ext::` a command.
pub(super) fn repository(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.name()?;
    if text.starts_with('-') {
        return Err(item.problem(format!("{text:?} is no repository: what begins with - is an option to git")));
    }
    if text.contains("::") && !text.contains("://") && !text.contains('[') {
        let problem = item.problem(format!("{text:?} names a helper that git would run"));
        return Err(problem.help("write a path, or an address with ssh://, https:// or user@host:path"));
    }
    if text.chars().any(char::is_control) {
        return Err(item.problem("a repository's address has no control characters"));
    }
    Ok(text)
}
