//! svd's command line.

use super::paths::{Paths, absolute};
use clap::Parser;
use std::path::PathBuf;

/// Keeps services running: reads one file per service from DIR/conf.d, owns their sockets, starts, watches and reloads
/// them. Talk to it with svctl.
#[derive(Clone, Debug, Parser)]
#[command(name = "svd", version, max_term_width = 100)]
pub struct Args {
    /// Directory of svd.toml and conf.d
    #[arg(short = 'c', long = "config", value_name = "DIR", default_value = "/etc/airdock")]
    pub config: PathBuf,
    /// Control socket, pid file and pipes; gone at boot
    #[arg(long, value_name = "DIR", default_value = "/run/airdock")]
    pub run_dir: PathBuf,
    /// What must survive a boot
    #[arg(long, value_name = "DIR", default_value = "/var/lib/airdock")]
    pub state_dir: PathBuf,
    /// Output of the services
    #[arg(long, value_name = "DIR", default_value = "/var/log/airdock")]
    pub log_dir: PathBuf,
    /// Go to the background; returns when svd is up, and its exit code says whether
    #[arg(long)]
    pub daemon: bool,
    /// Do without the process that starts svd again when it is killed, and keeps its sockets meanwhile
    #[arg(long)]
    pub no_guardian: bool,
    /// Say by the exit code whether this version could take over what runs, and change nothing
    #[arg(long, hide = true)]
    pub trial: bool,
    /// Say more on stderr (or in svd.log)
    #[arg(short, long)]
    pub verbose: bool,
}

impl Args {
    pub fn paths(&self) -> Paths {
        Paths {
            config: absolute(&self.config),
            run: absolute(&self.run_dir),
            state: absolute(&self.state_dir),
            log: absolute(&self.log_dir),
        }
    }
}
