use clap::{CommandFactory, Parser};

use super::args::{Cli, Command};

#[test]
fn the_grammar_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn signals_and_names_are_told_apart() {
    let cli = Cli::try_parse_from(["svctl", "signal", "HUP", "a", "b*", "--worker", "1", "--json"]);
    let Command::Signal(args) = cli.unwrap().command else { panic!() };
    assert_eq!((args.signal.as_str(), args.worker), ("HUP", Some(1)));
    assert_eq!(args.names, ["a", "b*"]);
}

#[test]
fn options_for_habit_are_understood() {
    for line in [
        "svctl tail -f airship",
        "svctl logs airship -n 100 --since 10m --stderr",
        "svctl status --watch",
        "svctl --socket /x status airship",
        "svctl update -n",
        "svctl is-active airship",
        "svctl exec airship ls -l",
    ] {
        let parsed = Cli::try_parse_from(line.split(' '));
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
}

/// Every verb is in the manual for operators, with the exit codes.
#[test]
fn the_document_names_every_verb() {
    let text = include_str!("../../docs/svctl.md");
    for verb in Cli::command().get_subcommands() {
        let name = verb.get_name();
        assert!(text.contains(&format!("`svctl {name}")), "{name} is missing");
    }
}
