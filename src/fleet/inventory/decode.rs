//! The fleet file as a whole: what it says, then what its names mean.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;

use super::list::{self, Listed, Listing, ListingError};
use super::names::{self, ALL};
use super::select;
use super::spec::{App, Fleet, Host};
use super::{app, hooks, host};
use crate::config::section::{self, Item, Schema, Section};
use crate::config::source::{At, File, Problem, Span};
use crate::config::suggest::{self, Family};
use crate::config::{Diagnostic, Diagnostics, check_name, read_text, units};
use crate::fleet::waves::Wave;
use crate::sys::trust;

pub(super) static SCHEMA: Schema = Schema {
    name: section::TOP,
    keys: &["hosts", "inventory", "groups", "ssh_config", "connect_timeout", "host", "app"],
};

/// Every table of the file.
pub(super) static TABLES: &[&Schema] =
    &[&SCHEMA, &host::SCHEMA, &app::SCHEMA, &app::VERDICT, &app::PROMETHEUS, &hooks::SCHEMA];

/// What other programs call it.
static HABITS: &[(&str, &str)] = &[
    ("address", "the address is ssh in [host.NAME]"),
    ("ansible_host", "the address is ssh in [host.NAME]"),
    ("apps", "an app is a section [app.NAME]"),
    ("batch", "the key is waves"),
    ("canary", "name a group in groups, and begin waves with it: waves = [\"canary\", \"50%\", \"100%\"]"),
    ("concurrency", "the key is parallel"),
    ("hostname", "the address is ssh in [host.NAME]"),
    ("max_down", "the key is max_unreachable"),
    ("max_fail_percentage", "the key is max_unreachable"),
    ("ref", "the key is branch; svctl deploy --ref ships anything else"),
    ("repo", "the key is repository"),
    ("roles", "hosts are put together in groups"),
    ("serial", "the key is waves"),
    ("servers", "the key is hosts"),
    ("ssh_options", "ssh_config names a file with any options of ssh"),
];

static FAMILY: Family = Family { tables: TABLES, habits: HABITS };

/// The longest that a connection may take.
const LONGEST_CONNECT: Duration = Duration::from_secs(600);

/// Reads and decodes the file, and runs the command that lists hosts where there is one.
///
/// # Errors
/// Everything that is wrong with it; that it cannot be read; that others may write to it.
pub fn load(path: &Path) -> Result<Fleet, Diagnostics> {
    let shown = path.strip_prefix(".").unwrap_or(path).display().to_string();
    // It says what is run, and as whom.
    let trusted = |path: &Path| match trust::in_words(path) {
        Ok(()) => Ok(()),
        Err((why, help)) => {
            let path = path.display().to_string();
            let diagnostic = Diagnostic::of_file(&path, format!("cannot be trusted: {why}"));
            Err(Diagnostics(vec![Diagnostic { help, ..diagnostic }]))
        }
    };
    trusted(path)?;
    let text = read_text(path, &shown).map_err(|diagnostic| Diagnostics(vec![diagnostic]))?;
    let mut fleet = decode(&shown, &text, &mut |command| list::run(command, path))?;
    fleet.path = path.to_path_buf();
    fleet.ssh_config = fleet.ssh_config.as_ref().map(|file| fleet.directory().join(file));
    if let Some(file) = &fleet.ssh_config {
        trusted(file)?;
    }
    Ok(fleet)
}

/// Gives the hosts that a command lists.
pub type Lister<'l> = dyn FnMut(&[Box<str>]) -> Result<Listing, ListingError> + 'l;

/// The same from a text, which messages call `shown`. `list` is asked only where the text itself is right.
///
/// # Errors
/// Everything that is wrong.
pub fn decode(shown: &str, text: &str, list: &mut Lister<'_>) -> Result<Fleet, Diagnostics> {
    let file = File::new(shown.to_owned(), text, &FAMILY);
    let (table, syntax) = DeTable::parse_recoverable(text);
    let draft = Draft::read(&file, table.get_ref());
    file.add_syntax_errors(&syntax);
    let mut listing = Ok(Listing::default());
    if let (Some((command, span)), true) = (&draft.inventory, file.is_good()) {
        listing = list(command).map_err(|error| {
            let problem = Problem::new(*span, error.to_string());
            file.report(match error.help() {
                Some(help) => problem.help(help),
                None => problem,
            });
        });
    }
    let fleet = match listing {
        Ok(listing) => draft.resolve(&file, listing),
        // What was not listed says nothing about names.
        Err(()) => Fleet::default(),
    };
    let mut errors = Vec::new();
    file.into_diagnostics(&mut errors);
    if errors.is_empty() { Ok(fleet) } else { Err(Diagnostics(errors)) }
}

/// Names of hosts, groups and patterns.
type Members = Vec<At<Box<str>>>;

/// What the text says, before its names are looked up.
struct Draft<'a> {
    hosts: Option<Vec<At<Box<str>>>>,
    inventory: Option<(Vec<Box<str>>, Span)>,
    groups: Vec<(At<&'a str>, Members)>,
    sections: Vec<(At<&'a str>, Section<'a>)>,
    apps: Vec<app::Draft>,
    fleet: Fleet,
}

impl<'a> Draft<'a> {
    fn read(file: &'a File<'a>, table: &'a DeTable<'a>) -> Draft<'a> {
        let top = Section::open(file, table, Span::default(), &SCHEMA);
        let inventory = inventory(&top);
        let hosts = top.list("hosts", names::host_name);
        if !top.has("hosts") && !top.has("inventory") {
            top.missing("hosts", "there is no host", "add hosts = [\"NAME\", …], or inventory = [\"COMMAND\", …]");
        }
        let groups = top.entries("groups").into_iter().filter_map(|(name, item)| {
            group_name(file, &name);
            Some((At { value: name.value, span: name.span }, item.list(name.value, names::choice)?))
        });
        let groups = groups.collect();
        let sections = tables(&top, "host", &host::SCHEMA);
        let apps = tables(&top, "app", &app::SCHEMA);
        let apps = apps.iter().map(|(name, section)| app::decode(section, name)).collect();
        let fleet = Fleet {
            ssh_config: top.get("ssh_config", |item| Ok(item.name()?.as_ref().into())),
            connect_timeout: top.get("connect_timeout", connect_timeout),
            ..Fleet::default()
        };
        Draft { hosts, inventory, groups, sections, apps, fleet }
    }

    fn resolve(self, file: &File<'_>, listing: Listing) -> Fleet {
        let Draft { hosts, groups, sections, apps, mut fleet, .. } = self;
        fleet.hosts = all_hosts(file, hosts.unwrap_or_default(), listing.hosts);
        // Where lists themselves are wrong, names that are not in them say nothing.
        let complete = file.is_good();
        for (name, section) in &sections {
            match fleet.hosts.iter_mut().find(|host| *host.name == *name.value) {
                Some(host) => host::decode(section, host),
                None => {
                    host::decode(section, &mut Host::default());
                    if complete {
                        file.report(unknown(name.span, name.value, &fleet, "host"));
                    }
                }
            }
        }
        for (name, members) in listing.groups {
            let own = groups.iter().any(|(group, _)| *group.value == *name);
            if !own && fleet.host(&name).is_none() {
                fleet.groups.insert(name, members);
            }
        }
        let mut named: BTreeMap<Box<str>, Vec<Box<str>>> = BTreeMap::new();
        for (name, members) in &groups {
            if fleet.host(name.value).is_some() {
                let problem = Problem::new(name.span, format!("{:?} is a host and cannot be a group, too", name.value));
                file.report(problem.help("give the group another name"));
            }
            named.insert(name.value.into(), members_of(file, members, &fleet, complete));
        }
        fleet.groups.append(&mut named);
        for app in apps {
            let app = place(file, app, &fleet, complete);
            fleet.apps.insert(app.name.clone(), app);
        }
        fleet
    }
}

/// Sections below `[key.NAME]`, each with its name.
fn tables<'a>(top: &Section<'a>, key: &'static str, schema: &'static Schema) -> Vec<(At<&'a str>, Section<'a>)> {
    let mut out = Vec::new();
    for (name, item) in top.entries(key) {
        if let Some(table) = item.table(&format!("{key}.{}", name.value), item.file) {
            out.push((At { value: name.value, span: name.span }, Section::open(item.file, table, item.span, schema)));
        }
    }
    out
}

fn inventory(top: &Section<'_>) -> Option<(Vec<Box<str>>, Span)> {
    let words = top.list("inventory", |item| item.text().map(Box::<str>::from))?;
    let span = top.item("inventory")?.span;
    if words.first().is_none_or(|first| first.value.is_empty()) {
        let problem = Problem::new(span, "\"inventory\" must name a program");
        top.file.report(problem.help("write inventory = [\"ansible-inventory\", \"--list\"]"));
        return None;
    }
    Some((words.into_iter().map(|at| at.value).collect(), span))
}

fn connect_timeout(item: &Item<'_>) -> Result<Duration, Problem> {
    let limit = units::positive(item)?;
    match limit >= Duration::from_secs(1) && limit <= LONGEST_CONNECT {
        true => Ok(limit),
        false => Err(item.problem("this must be from 1s to 10m")),
    }
}

fn group_name(file: &File<'_>, name: &At<&str>) {
    let why = match check_name(name.value) {
        _ if name.value == ALL => "\"all\" means every host",
        Ok(()) => return,
        Err(why) => why,
    };
    file.report(Problem::new(name.span, format!("{:?} cannot be a group: {why}", name.value)));
}

/// Those of the file, then those that were listed; the file's word counts more.
fn all_hosts(file: &File<'_>, written: Vec<At<Box<str>>>, listed: Vec<Listed>) -> Vec<Host> {
    let mut hosts: Vec<Host> = Vec::with_capacity(written.len() + listed.len());
    let mut known: BTreeMap<Box<str>, usize> = BTreeMap::new();
    for At { value, span } in written {
        if known.insert(value.clone(), hosts.len()).is_some() {
            let problem = Problem::new(span, format!("host {value:?} is given twice"));
            file.report(problem.help("remove one of them"));
        } else {
            hosts.push(Host::named(&value));
        }
    }
    for listed in listed {
        let at = *known.entry(listed.name.clone()).or_insert_with(|| {
            hosts.push(Host::named(&listed.name));
            hosts.len() - 1
        });
        let Listed { name: _, address, user, port, local } = listed;
        let host = &mut hosts[at];
        (host.ssh, host.user, host.port, host.local) = (address, user, port, local);
    }
    hosts
}

/// Names of hosts that a group's members mean, in the fleet's order.
fn members_of(file: &File<'_>, members: &[At<Box<str>>], fleet: &Fleet, complete: bool) -> Vec<Box<str>> {
    let mut chosen = vec![false; fleet.hosts.len()];
    for member in members {
        let found = select::choose(&member.value, fleet, &mut chosen);
        if !found && complete {
            file.report(unknown(member.span, &member.value, fleet, "host or group"));
        }
    }
    let hosts = fleet.hosts.iter().zip(chosen).filter(|(_, chosen)| *chosen);
    hosts.map(|(host, _)| host.name.clone()).collect()
}

/// The problem of a name that is not there.
fn unknown(span: Span, name: &str, fleet: &Fleet, what: &str) -> Problem {
    let problem = match name.contains('*') {
        true => Problem::new(span, format!("{name:?} fits no host")),
        false => Problem::new(span, format!("no {what} is called {name:?}")),
    };
    match select::near(name, fleet) {
        Some(near) => problem.help(format!("did you mean {near:?}?")),
        None if what == "host" => problem.help("hosts = [\"…\"] lists all of them"),
        None => problem,
    }
}

/// An app on its hosts.
fn place(file: &File<'_>, draft: app::Draft, fleet: &Fleet, complete: bool) -> App {
    let app::Draft { mut app, hosts, span, groups } = draft;
    app.hosts = match &hosts {
        Some(wanted) => members_of(file, wanted, fleet, complete),
        None => fleet.hosts.iter().map(|host| host.name.clone()).collect(),
    };
    if app.hosts.is_empty() && complete && file.is_good() {
        file.report(Problem::new(span, format!("app {:?} has no host", app.name)).help("add hosts = [\"…\"]"));
    }
    for group in groups {
        let members = fleet.groups.get(&group.value);
        if !app.waves.contains(&Wave::Group(group.value.clone())) || !complete {
            continue;
        }
        match members {
            None => {
                let problem = Problem::new(group.span, format!("no group is called {:?}", group.value));
                let near = suggest::closest(&group.value, fleet.groups.keys().map(|name| &**name));
                file.report(match near {
                    Some(near) => problem.help(format!("did you mean {near:?}?")),
                    None => problem.help(format!("add groups = {{ {} = [\"…\"] }}", group.value)),
                });
            }
            Some(members) if !members.iter().any(|host| app.hosts.contains(host)) => {
                let message = format!("no host of group {:?} is one of this app", group.value);
                file.report(Problem::new(group.span, message));
            }
            Some(_) => {}
        }
    }
    app
}
