//! Completion scripts: the grammar by clap, and the names of services, which only svd knows.

use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Cli;
use super::context::Context;
use super::exit::{CliError, Exit};

/// A line for each service that the caller may see.
const SERVICES: &str = "svctl status 2>/dev/null | awk 'NR > 1 { print $1 }'";

pub fn completions(shell: Shell) -> Result<Exit, CliError> {
    let mut command = Cli::command();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "svctl", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    let script = match shell {
        Shell::Bash => script + &bash(&verbs(&command)),
        Shell::Zsh => zsh(&script),
        Shell::Fish => script + &fish(&verbs(&command)),
        _ => script,
    };
    Context::new("".into(), false).print(script)?;
    Ok(Exit::Ok)
}

/// Those that take names of services.
fn verbs(command: &clap::Command) -> Vec<&str> {
    let takes_names = |verb: &&clap::Command| {
        !verb.is_hide_set() && verb.get_positionals().any(|arg| matches!(arg.get_id().as_str(), "name" | "names"))
    };
    let with_names = command.get_subcommands().filter(takes_names);
    with_names.flat_map(|verb| [verb.get_name()].into_iter().chain(verb.get_visible_aliases())).collect()
}

/// Adds the names to what clap's function finds.
fn bash(verbs: &[&str]) -> String {
    let verbs = verbs.join("|");
    format!(
        r#"
_svctl_with_services() {{
    _svctl "$@"
    local at verb="" cur="${{COMP_WORDS[COMP_CWORD]}}"
    for ((at = 1; at < COMP_CWORD; at++)); do
        case "${{COMP_WORDS[at]}}" in
            --socket|-H|--host|--fleet|-e|--environment|--parallel) ((at++)) ;;
            -*) ;;
            *) verb="${{COMP_WORDS[at]}}"; break ;;
        esac
    done
    case "$verb" in
        {verbs}) [[ "$cur" == -* ]] || COMPREPLY+=($(compgen -W "$({SERVICES})" -- "$cur")) ;;
    esac
}}

complete -F _svctl_with_services -o bashdefault -o default svctl
"#
    )
}

/// Names instead of files.
fn zsh(script: &str) -> String {
    let services = format!(
        "(( $+functions[_svctl_services] )) ||\n_svctl_services() {{\n    local -a names\n    names=(${{(f)\"$({SERVICES})\"}})\n    compadd -a names\n}}\n\n"
    );
    let mut out = String::with_capacity(script.len() + services.len());
    for line in script.split_inclusive('\n') {
        if line.starts_with("if [ \"$funcstack[1]\"") {
            out.push_str(&services);
        }
        let names = line.starts_with("'*::names") || line.starts_with("':name");
        out.push_str(&if names { line.replacen(":_default'", ":_svctl_services'", 1) } else { line.to_owned() });
    }
    out
}

fn fish(verbs: &[&str]) -> String {
    let services = SERVICES.replace('$', "\\$");
    let line = |verb| format!("complete -c svctl -n \"__fish_svctl_using_subcommand {verb}\" -f -a \"({services})\"\n");
    verbs.iter().map(line).collect()
}
