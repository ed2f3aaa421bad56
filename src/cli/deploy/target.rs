//! Where an app is deployed to: the fleet file's hosts, or this one alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::super::args::{Cli, DeployArgs};
use super::super::exit::CliError;
use super::super::hosts;
use crate::fleet::drive::{Link, Links};
use crate::fleet::inventory::{self, App, Hooks, Host, Source};
use crate::fleet::transport::Ways;
use crate::fleet::transport::local::Local;
use crate::fleet::transport::ssh::{Settings, Ssh};
use crate::fleet::verdict;
use crate::fleet::waves::Wave;

/// Where there is no fleet file. No verdict rests on less than 30 s.
const BAKE: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(600);
const PARALLEL: u32 = 20;

pub struct Target {
    pub app: App,
    pub groups: BTreeMap<Box<str>, Vec<Box<str>>>,
    /// What relative paths of the fleet file begin at.
    pub base: PathBuf,
    pub links: Links,
    pub ways: Arc<Ways>,
}

impl Target {
    /// `args`: what is shipped, where no fleet file says it.
    ///
    /// # Errors
    /// The fleet file has errors, does not know the app, or the hosts that were chosen.
    pub fn find(cli: &Cli, app: &str, args: Option<&DeployArgs>) -> Result<Target, CliError> {
        let here = std::env::current_dir().unwrap_or_else(|_| "/".into());
        match hosts::fleet(cli)? {
            Some(fleet) if args.is_some_and(|args| args.repository.is_some() || args.branch.is_some()) => {
                Err(CliError::usage(
                    format!(
                        "{} says where {app} comes from: --repository and --branch are for hosts without it.",
                        fleet.path.display()
                    ),
                    "--ref REF ships another branch, tag or commit of its repository.",
                ))
            }
            Some(fleet) => {
                let mut target = Target::of_fleet(cli, fleet, app)?;
                target.app.bake = args.and_then(|args| args.bake).unwrap_or(target.app.bake);
                Ok(target)
            }
            None if cli.hosts.is_empty() => Ok(Target::here(cli, app, args, here)),
            None => Err(CliError::usage(
                format!("No fleet.toml says how {app} is deployed to other hosts."),
                "Write one here, or name it: --fleet FILE. Without -H it is deployed to this host.",
            )),
        }
    }

    /// This machine alone, without a fleet file.
    pub fn is_here(&self) -> bool {
        self.links.values().all(|link| link.host.local)
    }

    fn of_fleet(cli: &Cli, fleet: inventory::Fleet, name: &str) -> Result<Target, CliError> {
        let mut app = hosts::app(&fleet, name)?.clone();
        if !cli.hosts.is_empty() {
            let chosen = fleet.select(&cli.hosts).map_err(|e| CliError::usage(e.to_string(), "See the fleet file."))?;
            app.hosts.retain(|name| chosen.iter().any(|host| host.name == *name));
            if app.hosts.is_empty() {
                return Err(CliError::usage(
                    format!("None of these hosts has {name}."),
                    format!("[app.{name}] hosts says which have it."),
                ));
            }
        }
        if let Some(parallel) = cli.parallel {
            app.parallel = parallel;
        }
        let settings = Settings { parallel: app.parallel as usize, ..hosts::settings(cli, Some(&fleet)) };
        let hosts: Vec<Host> = app.hosts.iter().filter_map(|name| fleet.host(name).cloned()).collect();
        let base = fleet.directory().to_owned();
        Ok(Target::new(cli, app, fleet.groups, base, hosts, settings))
    }

    /// A fleet of one.
    fn here(cli: &Cli, name: &str, args: Option<&DeployArgs>, base: PathBuf) -> Target {
        let host = Host { local: true, ..Host::named(&host_name()) };
        let source = match args.and_then(|args| args.artifact.clone()) {
            Some(artifact) => Source::Artifact(artifact),
            None => {
                let repository = args.and_then(|args| args.repository.clone());
                let tree = || base.ancestors().find(|dir| dir.join(".git").exists()).unwrap_or(&base);
                Source::Git {
                    repository: repository.unwrap_or_else(|| tree().to_string_lossy().into_owned()).into(),
                    branch: args.and_then(|args| args.branch.clone()).unwrap_or_default().into(),
                    trunk: None,
                    only_branch: false,
                    tag: true,
                }
            }
        };
        let app = App {
            name: name.into(),
            source,
            services: vec![name.into()],
            hosts: vec![host.name.clone()],
            paths: Vec::new(),
            build: None,
            waves: vec![Wave::Percent(100)],
            bake: args.and_then(|args| args.bake).unwrap_or(BAKE),
            parallel: cli.parallel.unwrap_or(PARALLEL),
            max_unreachable: 0,
            lease: LEASE,
            prometheus: None,
            // However few requests come: whoever deploys to one host does not wait for more.
            verdict: verdict::Settings { min_requests: 0, ..verdict::Settings::default() },
            hooks: Hooks::default(),
        };
        Target::new(cli, app, BTreeMap::new(), base, vec![host], Settings::default())
    }

    fn new(
        cli: &Cli,
        app: App,
        groups: BTreeMap<Box<str>, Vec<Box<str>>>,
        base: PathBuf,
        hosts: Vec<Host>,
        settings: Settings,
    ) -> Target {
        let ways = Arc::new(Ways::new(Local::new(&cli.socket), Ssh::new(settings)));
        let link =
            |host: Host| (host.name.clone(), Rc::new(Link::new(host, Arc::clone(&ways) as _, app.prometheus.clone())));
        let links = hosts.into_iter().map(link).collect();
        Target { app, groups, base, links, ways }
    }
}

fn host_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    name.filter(|name| inventory::check_host_name(name).is_ok()).unwrap_or_else(|| "here".to_owned())
}
