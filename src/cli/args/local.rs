//! Of verbs about the files of services.

use std::path::PathBuf;

use clap::Args;

#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    /// The service's name, which its file gets
    #[arg(value_name = "NAME")]
    pub name: String,

    /// How it is run [default: by what the project is]
    #[arg(long, value_enum)]
    pub kind: Option<InitKind>,

    /// The project's directory
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub project: PathBuf,

    /// Where its releases will be [default: the project's directory, without releases]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// The WSGI application, where a look does not tell: MODULE:NAME
    #[arg(long, value_name = "APP", conflicts_with = "command")]
    pub app: Option<String>,

    /// Directory with svd.toml and conf.d [default: that of svd, else /etc/airdock]
    #[arg(short, long, value_name = "DIR")]
    pub config: Option<PathBuf>,

    /// Print it, and write nothing
    #[arg(long)]
    pub print: bool,

    /// Replace a file that is there
    #[arg(long, conflicts_with = "print")]
    pub force: bool,

    /// What is run, of kind command
    #[arg(value_name = "COMMAND", last = true)]
    pub command: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum InitKind {
    Gunicorn,
    Jvm,
    Command,
}

#[derive(Clone, Debug, Args)]
pub struct ShowArgs {
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Only where the file says something else than what is in force
    #[arg(long)]
    pub changed: bool,

    /// Read the files below this directory, without svd
    #[arg(short, long, value_name = "DIR")]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct EditArgs {
    #[arg(value_name = "NAME")]
    pub name: String,

    /// Ask nothing: with errors nothing is changed, without it is applied
    #[arg(short, long)]
    pub yes: bool,

    /// Do not apply it
    #[arg(long)]
    pub no_update: bool,

    /// Directory with svd.toml and conf.d [default: that of svd, else /etc/airdock]
    #[arg(short, long, value_name = "DIR")]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    #[arg(value_name = "NAME")]
    pub name: String,
}

#[derive(Clone, Debug, Args)]
pub struct SecurityArgs {
    /// Names; * stands for any characters [default: one line for each service]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,

    /// Fail (exit code 1) where a service has more than this
    #[arg(long, value_name = "EXPOSURE", value_parser = exposure)]
    pub at_most: Option<f64>,

    /// Directory with svd.toml and conf.d [default: that of svd, else /etc/airdock]
    #[arg(short, long, value_name = "DIR")]
    pub config: Option<PathBuf>,
}

fn exposure(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|n| (0.0..=10.0).contains(n));
    number.ok_or_else(|| "it is a number from 0 to 10".to_owned())
}
