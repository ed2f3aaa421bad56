//! What is shipped: a commit of a git repository, or a file that was built elsewhere.
//!
//! | file | what it has |
//! |---|---|
//! | [`git`] | a local mirror of the repository, by the user's own `git`: commits, what is between two of them, their files |
//! | [`tag`] | the name and text of the tag that a deploy leaves behind |
//! | [`build`] | what is built in them before they are sent |
//! | [`artifact`] | a jar, a wheel, a tarball, known by its digest |

pub mod artifact;
pub mod build;
pub mod git;
pub mod tag;

#[cfg(test)]
mod tests;

use std::path::PathBuf;

/// What can be made again: `$XDG_CACHE_HOME/airdock` or `~/.cache/airdock`.
pub fn cache_directory() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("airdock"))
}

/// May a branch, a tag or what is to be shipped be called this? As `git-check-ref-format(1)`, and nothing that git could take
/// for an option or for an expression.
///
/// # Errors
/// Why not.
pub fn check_ref_name(name: &str) -> Result<(), &'static str> {
    let odd = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    match name {
        "" => Err("it is empty"),
        "@" | "HEAD" => Err("it means whatever is checked out"),
        _ if name.starts_with('-') => Err("what begins with - is an option to git"),
        _ if name.chars().any(odd) => Err("it has a character that git does not allow"),
        _ if name.contains("..") || name.contains("@{") || name.contains("//") => {
            Err("git does not allow .., @{ and // in names")
        }
        _ if name.starts_with('/') || name.ends_with('/') || name.ends_with('.') => {
            Err("it begins or ends with a character that git does not allow there")
        }
        _ if name.split('/').any(|part| part.starts_with('.') || part.ends_with(".lock")) => {
            Err("no part of it begins with a dot or ends with .lock")
        }
        _ => Ok(()),
    }
}
