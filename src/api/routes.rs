//! From HTTP to a [`Request`]: one table of routes, one function that reads what belongs to a route. Pure.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::access::Scope;
use super::apps::{ActivateOptions, AppRequest, ReleaseOptions, StageOptions, StepOptions};
use super::request::{
    EventsRequest, ExecRequest, LogsRequest, Name, Request, SessionWanted, Standby, TerminalWanted, parse_since,
};
use super::types::{ApiError, ErrorCode, LogPosition};
use crate::config::{check_name as check_service_name, parse_signal};

/// What a route is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Status,
    Service,
    Configuration,
    Inspect,
    Processes,
    Start,
    Stop,
    Restart,
    Reload,
    Enable,
    Disable,
    Drain,
    Undrain,
    Scale,
    Signal,
    Pid,
    Logs,
    Events,
    Update,
    Version,
    Shutdown,
    Exec,
    Session,
    Upgrade,
    App,
    AppHistory,
    AppLock,
    AppUnlock,
    AppStage,
    AppBuild,
    AppStep,
    AppActivate,
    AppRenew,
    AppConfirm,
    AppTakeBack,
    AppPrune,
    AppJournal,
    AppAppend,
}

#[derive(Clone, Copy, Debug)]
pub struct Route {
    pub method: &'static str,
    /// `{names}`: one or several names or patterns, separated by commas; `{name}`: one name.
    pub path: &'static str,
    pub endpoint: Endpoint,
    pub about: &'static str,
}

const fn route(method: &'static str, path: &'static str, endpoint: Endpoint, about: &'static str) -> Route {
    Route { method, path, endpoint, about }
}

/// All of the control socket. `docs/openapi.yaml` has the same ones; a test compares.
pub const ROUTES: &[Route] = &[
    route("GET", "/v1/status", Endpoint::Status, "State of services"),
    route("GET", "/v1/services/{name}", Endpoint::Service, "Everything about one service"),
    route("GET", "/v1/services/{name}/processes", Endpoint::Processes, "Each process, and what it uses"),
    route("GET", "/v1/services/{name}/configuration", Endpoint::Configuration, "Settings, and where they come from"),
    route("GET", "/v1/services/{name}/inspect", Endpoint::Inspect, "What its processes have"),
    route("POST", "/v1/services/{names}/start", Endpoint::Start, "Start, until ready"),
    route("POST", "/v1/services/{names}/stop", Endpoint::Stop, "Stop, until nothing is left"),
    route("POST", "/v1/services/{names}/restart", Endpoint::Restart, "Stop and start"),
    route("POST", "/v1/services/{names}/reload", Endpoint::Reload, "Replace by a new generation"),
    route("POST", "/v1/services/{names}/enable", Endpoint::Enable, "Start when svd starts"),
    route("POST", "/v1/services/{names}/disable", Endpoint::Disable, "Do not start when svd starts"),
    route("POST", "/v1/services/{names}/drain", Endpoint::Drain, "Take out of the load balancer"),
    route("POST", "/v1/services/{names}/undrain", Endpoint::Undrain, "Put back into the load balancer"),
    route("POST", "/v1/services/{names}/scale", Endpoint::Scale, "Change the number of workers"),
    route("POST", "/v1/services/{names}/signal", Endpoint::Signal, "Send a signal"),
    route("GET", "/v1/services/{names}/pid", Endpoint::Pid, "Process ids of the workers"),
    route("GET", "/v1/services/{name}/logs", Endpoint::Logs, "Captured output"),
    route("POST", "/v1/services/{name}/exec", Endpoint::Exec, "Run a command in a service's environment"),
    route("POST", "/v1/services/{name}/session", Endpoint::Session, "The same, with its input or with a terminal"),
    route("GET", "/v1/apps/{name}", Endpoint::App, "Releases, lock and lease of an app"),
    route("GET", "/v1/apps/{name}/history", Endpoint::AppHistory, "What was deployed here"),
    route(
        "GET",
        "/v1/apps/{name}/journal",
        Endpoint::AppJournal,
        "The journal of the latest rollout, or of an earlier one",
    ),
    route("POST", "/v1/apps/{name}/append", Endpoint::AppAppend, "Write entries of the rollout's journal"),
    route("POST", "/v1/apps/{name}/lock", Endpoint::AppLock, "Take or renew the lock"),
    route("POST", "/v1/apps/{name}/unlock", Endpoint::AppUnlock, "Give the lock back"),
    route("POST", "/v1/apps/{name}/stage", Endpoint::AppStage, "Take what was sent as a release"),
    route("POST", "/v1/apps/{name}/build", Endpoint::AppBuild, "Build the environment of a release"),
    route("POST", "/v1/apps/{name}/step", Endpoint::AppStep, "Run a step of [deploy]"),
    route("POST", "/v1/apps/{name}/activate", Endpoint::AppActivate, "Switch to a release, on trial"),
    route("POST", "/v1/apps/{name}/renew", Endpoint::AppRenew, "Move the end of lock and trial on"),
    route("POST", "/v1/apps/{name}/confirm", Endpoint::AppConfirm, "Keep what is on trial"),
    route("POST", "/v1/apps/{name}/take-back", Endpoint::AppTakeBack, "Go back from what is on trial"),
    route("POST", "/v1/apps/{name}/prune", Endpoint::AppPrune, "Remove old releases"),
    route("GET", "/v1/events", Endpoint::Events, "What happens"),
    route("POST", "/v1/update", Endpoint::Update, "Apply the configuration"),
    route("GET", "/v1/version", Endpoint::Version, "About svd"),
    route("POST", "/v1/shutdown", Endpoint::Shutdown, "Stop everything and svd"),
    route("POST", "/v1/upgrade", Endpoint::Upgrade, "Go on with another program"),
];

/// A route that fits, and what stands for its placeholder.
#[derive(Clone, Debug)]
pub struct Found {
    pub route: &'static Route,
    /// Decoded; empty for a route without a placeholder.
    pub names: Vec<Name>,
}

/// The route of a request line.
///
/// # Errors
/// [`ErrorCode::UnknownRoute`] with the list of routes, [`ErrorCode::MethodNotAllowed`], or
/// [`ErrorCode::BadRequest`] for names that cannot be.
pub fn find(method: &str, path: &str) -> Result<Found, ApiError> {
    let mut other = Vec::new();
    for route in ROUTES {
        let Some(captured) = capture(route.path, path) else {
            continue;
        };
        if route.method == method {
            let names = match captured {
                Some(text) => names_of(text, route.path.contains("{names}"))?,
                None => Vec::new(),
            };
            return Ok(Found { route, names });
        }
        other.push(route.method);
    }
    if other.is_empty() {
        let list = ROUTES.iter().map(|r| format!("{} {}", r.method, r.path).into()).collect();
        return Err(ApiError::new(ErrorCode::UnknownRoute, format!("There is no {path} here."))
            .hint("The paths that exist are in `details`.")
            .details(list));
    }
    Err(ApiError::new(ErrorCode::MethodNotAllowed, format!("{path} does not understand {method}."))
        .hint(format!("Use {}.", other.join(" or "))))
}

/// Methods that `path` understands, for the `Allow` header.
pub fn allowed(path: &str) -> String {
    let fits = |r: &&Route| capture(r.path, path).is_some();
    let methods: Vec<&str> = ROUTES.iter().filter(fits).map(|r| r.method).collect();
    methods.join(", ")
}

/// `Some(Some(text))`: fits, with a placeholder.
fn capture<'a>(pattern: &str, path: &'a str) -> Option<Option<&'a str>> {
    let Some((before, rest)) = pattern.split_once('{') else {
        return (pattern == path).then_some(None);
    };
    let (_, after) = rest.split_once('}')?;
    let text = path.strip_prefix(before)?.strip_suffix(after)?;
    (!text.contains('/')).then_some(Some(text))
}

fn names_of(text: &str, several: bool) -> Result<Vec<Name>, ApiError> {
    let text = percent_decode(text)?;
    let names: Vec<Name> = if several { text.split(',').map(Into::into).collect() } else { vec![text.into()] };
    for name in &names {
        check_name(name)?;
    }
    Ok(names)
}

fn check_name(name: &str) -> Result<(), ApiError> {
    if name.is_empty() {
        return Err(bad("A service's name is missing in the path.")
            .hint("Write /v1/services/NAME/…, several names with commas between, `*` for all."));
    }
    // What a star may stand for is checked with the name that it leads to.
    let letters = name.replace('*', "a");
    check_service_name(&letters).map_err(|why| bad(format!("{name:?} cannot be the name of a service: {why}.")))
}

fn bad(message: impl Into<Box<str>>) -> ApiError {
    ApiError::new(ErrorCode::BadRequest, message)
}

/// `%2A` → `*`. A `+` stays one.
fn percent_decode(text: &str) -> Result<String, ApiError> {
    let wrong = || bad(format!("{text:?} is not correctly percent-encoded UTF-8."));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digits = rest.get(..2).ok_or_else(wrong)?;
        let mut value = 0;
        for &digit in digits {
            let digit = (digit as char).to_digit(16).ok_or_else(wrong)?;
            value = value * 16 + digit as u8;
        }
        bytes.push(value);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

/// The rest of the request: its query and its body.
///
/// # Errors
/// [`ErrorCode::BadRequest`] that says where.
pub fn parse(found: Found, query: Option<&str>, body: &[u8], now: SystemTime) -> Result<Request, ApiError> {
    let endpoint = found.route.endpoint;
    let mut query = Query::of(query)?;
    let request = match endpoint {
        Endpoint::Status | Endpoint::Events | Endpoint::Logs => {
            let request = read(endpoint, found, &mut query, now)?;
            nothing(body)?;
            request
        }
        Endpoint::Service | Endpoint::Configuration | Endpoint::Inspect | Endpoint::Processes => {
            nothing(body)?;
            let name = found.names.into_iter().next().unwrap_or_default();
            match endpoint {
                Endpoint::Configuration => Request::Configuration { name },
                Endpoint::Inspect => Request::Inspect { name },
                Endpoint::Processes => Request::Processes { name },
                _ => Request::Service { name },
            }
        }
        Endpoint::Pid => {
            nothing(body)?;
            Request::Pid { services: found.names }
        }
        Endpoint::Version => {
            nothing(body)?;
            Request::Version
        }
        Endpoint::App
        | Endpoint::AppHistory
        | Endpoint::AppLock
        | Endpoint::AppUnlock
        | Endpoint::AppStage
        | Endpoint::AppBuild
        | Endpoint::AppStep
        | Endpoint::AppActivate
        | Endpoint::AppRenew
        | Endpoint::AppConfirm
        | Endpoint::AppTakeBack
        | Endpoint::AppPrune
        | Endpoint::AppJournal
        | Endpoint::AppAppend => {
            let ask = of_app(endpoint, &mut query, body)?;
            Request::App { name: found.names.into_iter().next().unwrap_or_default(), ask }
        }
        _ => act(endpoint, found.names, body)?,
    };
    query.end()?;
    Ok(request)
}

fn read(endpoint: Endpoint, found: Found, query: &mut Query, now: SystemTime) -> Result<Request, ApiError> {
    Ok(match endpoint {
        Endpoint::Logs => Request::Logs(LogsRequest {
            name: found.names.into_iter().next().unwrap_or_default(),
            follow: query.flag("follow")?,
            lines: query.number("lines")?,
            since: match query.take("since") {
                Some(text) => Some(parse_since(&text, now).ok_or_else(|| {
                    bad(format!("since={text} is neither a duration nor a time."))
                        .hint("Write since=10m or since=2026-11-22T18:40:00Z.")
                })?),
                None => None,
            },
            from: query.position("from")?,
            stderr: query.flag("stderr")?,
        }),
        Endpoint::Events => Request::Events(EventsRequest {
            follow: query.flag("follow")?,
            scope: Scope::everything().wanting(query.names()?),
        }),
        _ => Request::Status { services: query.names()?, full: query.flag("full")? },
    })
}

/// Entries of the history that one answer has at most, and without a number.
const HISTORY: u64 = 1000;

fn of_app(endpoint: Endpoint, query: &mut Query, body: &[u8]) -> Result<AppRequest, ApiError> {
    let release = |id: &str| check_release(id);
    Ok(match endpoint {
        Endpoint::AppHistory => {
            nothing(body)?;
            AppRequest::History { lines: query.number("lines")?.unwrap_or(HISTORY).min(HISTORY) }
        }
        Endpoint::AppLock => AppRequest::Lock(options(body)?),
        Endpoint::AppUnlock => AppRequest::Unlock(options(body)?),
        Endpoint::AppStage => {
            let wanted: StageOptions = options(body)?;
            release(&wanted.release)?;
            AppRequest::Stage(wanted)
        }
        Endpoint::AppBuild => {
            let wanted: ReleaseOptions = options(body)?;
            release(&wanted.release)?;
            AppRequest::Build(wanted)
        }
        Endpoint::AppStep => {
            let wanted: StepOptions = options(body)?;
            release(&wanted.release)?;
            AppRequest::Step(wanted)
        }
        Endpoint::AppActivate => {
            let wanted: ActivateOptions = options(body)?;
            release(&wanted.release)?;
            AppRequest::Activate(wanted)
        }
        Endpoint::AppRenew => AppRequest::Renew(options(body)?),
        Endpoint::AppConfirm => AppRequest::Confirm(options(body)?),
        Endpoint::AppTakeBack => AppRequest::TakeBack(options(body)?),
        Endpoint::AppPrune => AppRequest::Prune(options(body)?),
        Endpoint::AppAppend => AppRequest::Append(options(body)?),
        Endpoint::AppJournal => {
            nothing(body)?;
            AppRequest::Journal { rollout: query.take("rollout").map(Into::into) }
        }
        _ => {
            nothing(body)?;
            AppRequest::Status { configuration: query.flag("configuration")? }
        }
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoOptions {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReloadOptions {
    release: Option<Box<str>>,
    #[serde(default)]
    force: bool,
    canary: Option<CanaryOptions>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CanaryOptions {
    workers: u32,
    #[serde(default)]
    stay_seconds: u64,
}

fn exec(
    command: Vec<String>,
    release: Option<Box<str>>,
    session: Option<SessionWanted>,
) -> Result<ExecRequest, ApiError> {
    if command.first().is_none_or(String::is_empty) || command.iter().any(|word| word.contains('\0')) {
        return Err(bad("command is a list of a program and its arguments, without NUL bytes."));
    }
    if let Some(id) = &release {
        check_release(id)?;
    }
    Ok(ExecRequest { command, release, session })
}

/// Longest stay of a canary that nobody decides about.
const CANARY_MOST: u64 = 7 * 24 * 3600;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScaleOptions {
    count: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignalOptions {
    signal: Box<str>,
    worker: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateOptions {
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExecOptions {
    command: Vec<String>,
    release: Option<Box<str>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionOptions {
    command: Vec<String>,
    release: Option<Box<str>>,
    terminal: Option<TerminalWanted>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpgradeOptions {
    binary: Option<Box<str>>,
    #[serde(default)]
    force: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShutdownOptions {
    #[serde(default)]
    force: bool,
}

fn act(endpoint: Endpoint, services: Vec<Name>, body: &[u8]) -> Result<Request, ApiError> {
    Ok(match endpoint {
        Endpoint::Reload => {
            let ReloadOptions { release, force, canary } = options(body)?;
            if let Some(id) = &release {
                check_release(id)?;
            }
            match canary {
                None => Request::Reload { services, release, force, standby: Standby::Nothing },
                Some(CanaryOptions { workers, stay_seconds }) => {
                    if workers > 1000 || stay_seconds > CANARY_MOST || (workers > 0 && stay_seconds == 0) {
                        return Err(bad(format!(
                            "A canary has up to 1000 workers, and stays for 1 to {CANARY_MOST} s."
                        )));
                    }
                    Request::Canary { services, release, workers, stay: Duration::from_secs(stay_seconds) }
                }
            }
        }
        Endpoint::Scale => {
            let ScaleOptions { count } = options(body)?;
            if !(1..=10_000).contains(&count) {
                return Err(
                    bad(format!("count is {count}; it must be from 1 to 10000.")).hint("To have none, use stop.")
                );
            }
            Request::Scale { services, count }
        }
        Endpoint::Signal => {
            let SignalOptions { signal, worker } = options(body)?;
            let number = parse_signal(&signal).ok_or_else(|| {
                bad(format!("There is no signal {signal:?}.")).hint("Write a name like HUP, or a number.")
            })?;
            Request::Signal { services, signal: number, worker }
        }
        Endpoint::Update => {
            let UpdateOptions { dry_run } = options(body)?;
            Request::Update { dry_run }
        }
        Endpoint::Exec => {
            let ExecOptions { command, release } = options(body)?;
            Request::Exec { services, what: exec(command, release, None)? }
        }
        Endpoint::Session => {
            let SessionOptions { command, release, terminal } = options(body)?;
            if terminal.as_ref().is_some_and(|t| !t.is_plausible()) {
                return Err(bad("kind of terminal is a name as in $TERM: letters, digits and -+._ only."));
            }
            Request::Exec { services, what: exec(command, release, Some(SessionWanted { terminal }))? }
        }
        Endpoint::Upgrade => {
            let UpgradeOptions { binary, force } = options(body)?;
            Request::Upgrade { binary: binary.map(|path| path.into_string().into()), force }
        }
        Endpoint::Shutdown => {
            let ShutdownOptions { force } = options(body)?;
            Request::Shutdown { force }
        }
        _ => {
            let NoOptions {} = options(body)?;
            match endpoint {
                Endpoint::Start => Request::Start { services },
                Endpoint::Restart => Request::Restart { services },
                Endpoint::Enable => Request::Enable { services },
                Endpoint::Disable => Request::Disable { services },
                Endpoint::Drain => Request::Drain { services },
                Endpoint::Undrain => Request::Undrain { services },
                Endpoint::Stop => Request::Stop { services },
                _ => return Err(bad("There is nothing to do by this path.")),
            }
        }
    })
}

/// A release is one directory below `releases`, so its name must not lead elsewhere.
fn check_release(id: &str) -> Result<(), ApiError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_-.+@:".contains(c);
    if id.is_empty() || id.len() > 255 || id.starts_with('.') || !id.chars().all(fits) {
        return Err(bad(format!("{id:?} cannot be the name of a release."))
            .hint("Give the name of a directory in releases/, such as deploy-2026-11-22_18-40-00."));
    }
    Ok(())
}

/// The body as an object; an empty one has no keys.
fn options<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let body = if body.iter().all(u8::is_ascii_whitespace) { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        bad(format!("The body is not what this path takes: {error}."))
            .hint("It is a JSON object; docs/openapi.yaml names its keys.")
    })
}

fn nothing(body: &[u8]) -> Result<(), ApiError> {
    let NoOptions {} = options(body)?;
    Ok(())
}

/// `key=value` pairs; what nobody took is an error.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(text: Option<&str>) -> Result<Query, ApiError> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in text.unwrap_or_default().split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = percent_decode(key)?;
            if pairs.iter().any(|(k, _)| *k == key) {
                return Err(bad(format!("{key:?} is given twice in the query.")));
            }
            pairs.push((key, percent_decode(value)?));
        }
        Ok(Query(pairs))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        let at = self.0.iter().position(|(k, _)| k == key)?;
        Some(self.0.swap_remove(at).1)
    }

    fn flag(&mut self, key: &str) -> Result<bool, ApiError> {
        match self.take(key).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("" | "true" | "1") => Ok(true),
            Some(other) => Err(bad(format!("{key}={other}: write true or false."))),
        }
    }

    fn number(&mut self, key: &str) -> Result<Option<u64>, ApiError> {
        self.take(key).map(|text| text.parse().map_err(|_| bad(format!("{key}={text} is not a number.")))).transpose()
    }

    fn position(&mut self, key: &str) -> Result<Option<LogPosition>, ApiError> {
        let wrong = |text: &str| {
            bad(format!("{key}={text} is no place in a log.")).hint("Take it from the header airdock-log-position.")
        };
        self.take(key).map(|text| text.parse().map_err(|()| wrong(&text))).transpose()
    }

    fn names(&mut self) -> Result<Vec<Name>, ApiError> {
        let Some(text) = self.take("services") else {
            return Ok(Vec::new());
        };
        let names: Vec<Name> = text.split(',').map(Into::into).collect();
        for name in &names {
            check_name(name)?;
        }
        Ok(names)
    }

    fn end(self) -> Result<(), ApiError> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(bad(format!("This path does not know {key:?} in its query."))
                .hint("docs/openapi.yaml names what it knows.")),
        }
    }
}

#[cfg(test)]
#[path = "routes_test.rs"]
mod tests;
