//! A plain command: what the file says, word by word, no shell.

use super::{CommandLine, Context};
use crate::config::spec::Template;

pub(super) fn command_line(context: &Context<'_>, command: &[Template]) -> Result<CommandLine, String> {
    Ok(CommandLine { argv: context.expand_all(command)?, socket_on_stdin: false })
}
