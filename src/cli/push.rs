//! `svctl push APP`: brings what is ready to where deploys come from.

use std::path::Path;

use serde_json::json;

use super::args::{Cli, PushArgs};
use super::context::Context;
use super::deploy::goods::of_git;
use super::exit::{CliError, Exit};
use super::hosts;
use super::text::line;
use crate::config::counted;
use crate::fleet::inventory::Source;
use crate::fleet::source::cache_directory;
use crate::fleet::source::git::{Between, Git, Pushed};

/// Brings the app's branch forward to its trunk, and lists what is new on it.
pub fn push(context: &Context, cli: &Cli, args: &PushArgs) -> Result<Exit, CliError> {
    if !cli.hosts.is_empty() {
        return Err(hosts::not_of_hosts());
    }
    let Some(fleet) = hosts::fleet(cli)? else {
        return Err(CliError::usage("There is no fleet.toml, here or above.", "--fleet FILE names another place."));
    };
    let app = hosts::app(&fleet, &args.app)?;
    let Source::Git { repository, branch, trunk, .. } = &app.source else {
        return Err(CliError::usage(
            format!("{} is an artifact: it has no branch.", app.name),
            "An app with `repository` has one.",
        ));
    };
    let Some(cache) = cache_directory() else {
        return Err(CliError::usage(
            "There is no place for a mirror of the repository.",
            "Set HOME or XDG_CACHE_HOME.",
        ));
    };
    let git = Git::open(repository, &absolute(fleet.directory()), &cache).map_err(of_git)?;
    let trunk = match trunk {
        Some(trunk) => trunk.to_string(),
        None => git.default_branch().map_err(of_git)?,
    };
    if !context.json {
        context.say(&format!("Looking at {} …", line(git.repository())));
    }
    let pushed = git.push_forward(&trunk, branch).map_err(of_git)?;
    let new = match &pushed.from {
        Some(from) => git.between(from, &pushed.to).map_err(of_git)?,
        None => Default::default(),
    };
    if context.json {
        let commits = new
            .commits
            .iter()
            .map(|commit| json!({ "commit": commit.id.as_str(), "author": commit.author, "subject": commit.subject }));
        let commits: Vec<_> = commits.collect();
        let from = pushed.from.as_ref().map(|from| from.as_str());
        let changed = from != Some(pushed.to.as_str());
        context.print_value(&json!({
            "app": app.name, "branch": branch, "trunk": trunk, "changed": changed,
            "from": from, "to": pushed.to.as_str(), "commits": commits,
        }))?;
        return Ok(Exit::Ok);
    }
    context.print(told(branch, &trunk, &pushed, &new))?;
    Ok(Exit::Ok)
}

fn absolute(path: &Path) -> std::path::PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

fn told(branch: &str, trunk: &str, pushed: &Pushed, new: &Between) -> String {
    let (branch, trunk, to) = (line(branch), line(trunk), pushed.to.short());
    let Some(from) = &pushed.from else { return format!("{branch} is new, at {to}, where {trunk} is.\n") };
    if *from == pushed.to {
        return format!("{branch} is where {trunk} is already, at {to}.\n");
    }
    let mut text = String::new();
    for commit in &new.commits {
        text += &format!("{} {} ({})\n", commit.id.short(), line(&commit.subject), line(&commit.author));
    }
    if new.ahead > new.commits.len() as u64 {
        text += &format!("… and {} more\n", new.ahead - new.commits.len() as u64);
    }
    let count = counted(usize::try_from(new.ahead).unwrap_or(usize::MAX), "commit");
    text + &format!("{branch} has gone from {} to {to}, where {trunk} is: {count}.\n", from.short())
}
