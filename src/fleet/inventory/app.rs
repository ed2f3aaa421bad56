//! `[app.NAME]`: what is deployed together, and how carefully.

use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::spec::{App, BuildHere, Prometheus, Source};
use super::{hooks, names};
use crate::config::check_name;
use crate::config::section::{Item, Schema, Section};
use crate::config::source::{At, Problem, Span};
use crate::config::units;
use crate::fleet::verdict::{Settings, TICK, TooFew};
use crate::fleet::waves::Wave;

pub(super) static SCHEMA: Schema = Schema {
    name: "[app.NAME]",
    keys: &[
        "repository",
        "branch",
        "trunk",
        "only_branch",
        "tag",
        "artifact",
        "services",
        "hosts",
        "paths",
        "build",
        "waves",
        "bake",
        "parallel",
        "max_unreachable",
        "lease",
        "verdict",
        "hooks",
    ],
};

pub(super) static VERDICT: Schema = Schema {
    name: "verdict = { … }",
    keys: &["false_alarm", "tolerate", "min_difference", "min_requests", "too_few", "prometheus"],
};

pub(super) static PROMETHEUS: Schema =
    Schema { name: "prometheus = { … }", keys: &["url", "requests", "errors", "every"] };

const BAKE: Duration = Duration::from_secs(5 * 60);
const LEASE: Duration = Duration::from_secs(10 * 60);
/// Two scrapes of a usual Prometheus.
const EVERY: Duration = Duration::from_secs(30);
/// A lease is renewed several times before it runs out.
const SHORTEST_LEASE: Duration = Duration::from_secs(30);
const PARALLEL: u32 = 20;
const MOST_PARALLEL: u32 = 1_000;
const BRANCH: &str = "production";

/// An app whose names of hosts and groups are yet to be looked up.
pub(super) struct Draft {
    pub app: App,
    /// `None`: all hosts.
    pub hosts: Option<Vec<At<Box<str>>>>,
    /// The app's header.
    pub span: Span,
    pub groups: Vec<At<Box<str>>>,
}

pub(super) fn decode(section: &Section<'_>, name: &At<&str>) -> Draft {
    if let Err(why) = check_name(name.value) {
        let problem = Problem::new(name.span, format!("{:?} cannot be an app's name: {why}", name.value));
        section.file.report(problem);
    }
    let (waves, groups) = waves(section);
    let services = section.list("services", service);
    if let Some([]) = services.as_deref()
        && section.item("services").is_some_and(|item| matches!(item.value, DeValue::Array(list) if list.is_empty()))
        && let Some(span) = section.key_span("services")
    {
        let problem = Problem::new(span, "an app without a service has nothing to run");
        section.file.report(problem.help(format!("leave it out: the service is {:?} then", name.value)));
    }
    let (verdict, prometheus) = verdict(section);
    let app = App {
        name: name.value.into(),
        source: source(section),
        services: match services {
            Some(services) => services.into_iter().map(|at| at.value).collect(),
            None => vec![name.value.into()],
        },
        hosts: Vec::new(),
        paths: section.values("paths", path_pattern),
        build: section.get("build", build),
        waves,
        bake: section.get("bake", units::duration).unwrap_or(BAKE),
        parallel: section.get("parallel", |item| item.count(1, MOST_PARALLEL)).unwrap_or(PARALLEL),
        max_unreachable: section.get("max_unreachable", |item| item.count(0, u32::MAX)).unwrap_or(0),
        lease: section.get("lease", lease).unwrap_or(LEASE),
        verdict,
        prometheus,
        hooks: hooks::decode(section),
    };
    Draft { app, hosts: section.list("hosts", names::choice), span: name.span, groups }
}

fn source(section: &Section<'_>) -> Source {
    let repository = section.get("repository", names::repository);
    let artifact = section.get("artifact", Item::name);
    match (section.key_span("repository"), section.key_span("artifact")) {
        (Some(_), Some(span)) => {
            let problem = Problem::new(span, "an app comes from a repository or is an artifact, not both");
            section.file.report(problem.help("remove \"repository\" or \"artifact\""));
        }
        (None, None) => {
            let why = "nothing says where releases come from";
            section.missing("repository", why, "add repository = \"…\", or artifact = \"FILE\"");
        }
        (None, Some(_)) => {
            for key in ["branch", "trunk", "only_branch", "tag", "paths"] {
                if let Some(span) = section.key_span(key) {
                    let problem =
                        Problem::new(span, format!("{key:?} is of a repository, and this app is an artifact"));
                    section.file.report(problem.help("remove it"));
                }
            }
        }
        (Some(_), None) => {}
    }
    let branch = section.get("branch", names::branch);
    let trunk = section.get("trunk", names::branch);
    let only_branch = section.get("only_branch", Item::boolean).unwrap_or(false);
    let tag = section.get("tag", Item::boolean).unwrap_or(true);
    match artifact {
        Some(file) => Source::Artifact(PathBuf::from(&*file)),
        None => Source::Git {
            repository: repository.unwrap_or_default(),
            branch: branch.unwrap_or_else(|| BRANCH.into()),
            trunk,
            only_branch,
            tag,
        },
    }
}

fn build(item: &Item<'_>) -> Result<BuildHere, Problem> {
    match item.value {
        DeValue::String(text) if text == "wheels" => Ok(BuildHere::Wheels),
        DeValue::Array(words) if !words.is_empty() => {
            let words = words.iter().map(|word| Item::new(item.file, word).name());
            Ok(BuildHere::Command(words.collect::<Result<_, _>>()?))
        }
        _ => Err(item
            .wrong_type("this must be \"wheels\" or a command, as a list")
            .help("write build = \"wheels\", or build = [\"PROGRAM\", \"ARGUMENT\", …]")),
    }
}

fn service(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.text()?;
    match check_name(text) {
        Ok(()) => Ok(text.into()),
        Err(why) => Err(item.problem(format!("{text:?} cannot be a service: {why}"))),
    }
}

/// Of files below the repository's root.
fn path_pattern(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.name()?;
    match text.starts_with('/') || text.split('/').any(|part| part == "..") {
        true => Err(item
            .problem(format!("{text:?} is not below the repository's root"))
            .help("write it as git shows it: \"airship/**\"")),
        false => Ok(text),
    }
}

fn lease(item: &Item<'_>) -> Result<Duration, Problem> {
    match units::duration(item)? {
        short if short < SHORTEST_LEASE => {
            Err(item.problem("a lease this short runs out while hosts are busy").help("write at least \"30s\""))
        }
        lease => Ok(lease),
    }
}

/// The waves, and the groups among them.
fn waves(section: &Section<'_>) -> (Vec<Wave>, Vec<At<Box<str>>>) {
    let standard = || vec![Wave::Hosts(1), Wave::Percent(50), Wave::Percent(100)];
    let Some(list) = section.list("waves", wave) else { return (standard(), Vec::new()) };
    let all = |wave: &Wave| *wave == Wave::Percent(100);
    let written = section.item("waves");
    let complete = written.is_some_and(|item| matches!(item.value, DeValue::Array(array) if array.len() == list.len()));
    for pair in list.windows(2) {
        let grows = match (&pair[0].value, &pair[1].value) {
            (Wave::Hosts(a), Wave::Hosts(b)) | (Wave::Percent(a), Wave::Percent(b)) => a < b,
            (before, _) => !all(before),
        };
        if !grows {
            let problem = Problem::new(pair[1].span, "a wave must go further than the one before");
            section.file.report(problem.help("waves are cumulative: [1, \"50%\", \"100%\"]"));
        }
    }
    if let Some(item) = written.filter(|_| complete && !list.last().is_some_and(|last| all(&last.value))) {
        let problem = Problem::new(item.span, "the last wave must be all hosts");
        section.file.report(problem.help("end the list with \"100%\""));
    }
    let group = |at: &At<Wave>| match &at.value {
        Wave::Group(name) => Some(At { value: name.clone(), span: at.span }),
        _ => None,
    };
    let groups = list.iter().filter_map(group).collect();
    (list.into_iter().map(|at| at.value).collect(), groups)
}

fn wave(item: &Item<'_>) -> Result<Wave, Problem> {
    match item.value {
        DeValue::Integer(_) => item.count(1, u32::MAX).map(Wave::Hosts),
        DeValue::String(text) => Wave::parse(text).map_err(|why| item.problem(why)),
        _ => Err(item.wrong_type("a wave is a number of hosts, a share such as \"50%\", or a group")),
    }
}

fn verdict(parent: &Section<'_>) -> (Settings, Option<Prometheus>) {
    let section = parent.section("verdict", &VERDICT);
    let standard = Settings::default();
    const CHOICES: [(&str, TooFew); 3] = [("pause", TooFew::Pause), ("pass", TooFew::Pass), ("fail", TooFew::Fail)];
    let settings = Settings {
        false_alarm: section.get("false_alarm", |item| item.number(1e-9, 0.5)).unwrap_or(standard.false_alarm),
        tolerate: section.get("tolerate", |item| item.number(1.0, 100.0)).unwrap_or(standard.tolerate),
        min_difference: section.get("min_difference", share).unwrap_or(standard.min_difference),
        min_requests: section
            .get("min_requests", |item| item.count(0, u32::MAX))
            .map_or(standard.min_requests, u64::from),
        too_few: section.get("too_few", |item| item.choice(&CHOICES)).unwrap_or(standard.too_few),
    };
    let prometheus = section.key_span("prometheus").map(|_| prometheus(&section.section("prometheus", &PROMETHEUS)));
    (settings, prometheus)
}

fn prometheus(section: &Section<'_>) -> Prometheus {
    let text = |key: &'static str, parse: fn(&Item<'_>) -> Result<Box<str>, Problem>| {
        if section.key_span(key).is_none() {
            section.missing(
                key,
                "a verdict needs the address, the requests and the errors",
                "see the manual of fleet.toml",
            );
        }
        section.get(key, parse).unwrap_or_default()
    };
    Prometheus {
        url: text("url", url),
        requests: text("requests", |item| item.name()),
        errors: text("errors", |item| item.name()),
        every: section.get("every", every).unwrap_or(EVERY),
    }
}

fn url(item: &Item<'_>) -> Result<Box<str>, Problem> {
    let text = item.text()?;
    match text.starts_with("http://") || text.starts_with("https://") {
        true => Ok(text.into()),
        false => Err(item.problem(format!("{text:?} is no address")).help("write \"https://prometheus.example.org\"")),
    }
}

fn every(item: &Item<'_>) -> Result<Duration, Problem> {
    match units::duration(item)? {
        short if short < TICK => Err(item.problem("no verdict is looked at so often").help("write at least \"5s\"")),
        every => Ok(every),
    }
}

/// `"0.2%"` is 0.002.
fn share(item: &Item<'_>) -> Result<f64, Problem> {
    let DeValue::String(text) = item.value else {
        let problem = item.wrong_type("a difference is a share in quotes, such as \"0.2%\"");
        return Err(match item.number(0.0, 100.0) {
            Ok(number) => problem.help(format!("write \"{number}%\"")),
            Err(_) => problem,
        });
    };
    let number = text.strip_suffix('%').and_then(|digits| digits.trim_end().parse::<f64>().ok());
    let fits = number.filter(|n| (0.0..=100.0).contains(n));
    fits.map(|n| n / 100.0).ok_or_else(|| {
        item.problem(format!("{text:?} is no share")).help("write percentage points, from \"0%\" to \"100%\": \"0.2%\"")
    })
}
