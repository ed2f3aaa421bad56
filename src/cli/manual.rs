//! The manual page, made from the grammar itself.

use clap::CommandFactory;

use super::args::Cli;
use super::context::Context;
use super::exit::{CliError, Exit};
use crate::api::client::ClientError;

pub fn man() -> Result<Exit, CliError> {
    output(&man_page()?)
}

/// The page and, as clap_mangen makes one page for each, the verbs' own options after it.
fn man_page() -> Result<Vec<u8>, CliError> {
    let cannot = |source| ClientError::Local { message: "svctl cannot write the manual page", source };
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page).map_err(cannot)?;
    // There is one page: a verb's own part is below, and what stands after the options has a name of its own.
    let whole =
        String::from_utf8_lossy(&page).replace("\n.SH EXTRA\n", "\n.SH \"EXIT STATUS\"\n").replace("(1)\n", "\n");
    let mut page = whole.into_bytes();
    for verb in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        let man = clap_mangen::Man::new(verb.clone());
        page.extend_from_slice(format!(".SH \"SVCTL {}\"\n", verb.get_name().to_uppercase()).as_bytes());
        let mut body = Vec::new();
        man.render_synopsis_section(&mut body).map_err(cannot)?;
        man.render_description_section(&mut body).map_err(cannot)?;
        // Its sections become subsections of this one.
        let body = String::from_utf8_lossy(&body).replace("\n.SH ", "\n.SS ");
        let body = match body.strip_prefix(".SH ") {
            Some(rest) => format!(".SS {rest}"),
            None => body,
        };
        page.extend_from_slice(body.as_bytes());
    }
    Ok(page)
}

fn output(text: &[u8]) -> Result<Exit, CliError> {
    Context::new("".into(), false).print(text)?;
    Ok(Exit::Ok)
}
