use super::*;
use std::time::Duration;

fn ask(line: &str, body: &str) -> Result<Request, ApiError> {
    let (method, target) = line.split_once(' ').unwrap();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    parse(find(method, path)?, query, body.as_bytes(), now)
}

fn request(line: &str, body: &str) -> Request {
    match ask(line, body) {
        Ok(request) => request,
        Err(error) => panic!("{line}: {error:?}"),
    }
}

fn names(list: &[&str]) -> Vec<Name> {
    list.iter().map(|n| (*n).into()).collect()
}

#[test]
fn every_route_is_reached() {
    for route in ROUTES {
        let path = route.path.replace("{name}", "a").replace("{names}", "a,b%2A");
        let body = match route.endpoint {
            Endpoint::Scale => r#"{"count": 2}"#,
            Endpoint::Signal => r#"{"signal": "HUP"}"#,
            Endpoint::Exec | Endpoint::Session => r#"{"command": ["true"]}"#,
            Endpoint::AppUnlock => "{}",
            // All that any of them needs, less what this one does not take.
            _ if route.path.starts_with("/v1/apps/") && route.method == "POST" => of_app(route.endpoint),
            _ => "",
        };
        let found = find(route.method, &path).unwrap();
        assert_eq!(found.route.endpoint, route.endpoint, "{path}");
        let request = parse(found, None, body.as_bytes(), SystemTime::now()).unwrap();
        if route.path.contains("{names}") {
            assert_eq!(request.services(), Some(&names(&["a", "b*"])), "{path}");
        }
    }
}

fn of_app(endpoint: Endpoint) -> &'static str {
    const FENCE: &str = r#"{"fence": {"number": 1, "rollout": "r"}}"#;
    match endpoint {
        Endpoint::AppLock => r#"{"fence": {"number": 1, "rollout": "r"}, "seconds": 60, "holder": "ci"}"#,
        Endpoint::AppStage => r#"{"fence": {"number": 1, "rollout": "r"}, "release": "r1", "source": "abc"}"#,
        Endpoint::AppBuild => r#"{"fence": {"number": 1, "rollout": "r"}, "release": "r1"}"#,
        Endpoint::AppStep => r#"{"fence": {"number": 1, "rollout": "r"}, "release": "r1", "step": "migrate"}"#,
        Endpoint::AppActivate => r#"{"fence": {"number": 1, "rollout": "r"}, "release": "r1", "lease_seconds": 60}"#,
        Endpoint::AppRenew => r#"{"fence": {"number": 1, "rollout": "r"}, "lease_seconds": 60}"#,
        Endpoint::AppAppend => r#"{"fence": {"number": 1, "rollout": "r"}, "from": 0, "entries": [{"a": 1}]}"#,
        Endpoint::AppTakeBack => r#"{"fence": {"number": 1, "rollout": "r"}, "reason": "it fails"}"#,
        _ => FENCE,
    }
}

#[test]
fn releases_have_names_that_lead_nowhere() {
    for path in ["stage", "build", "step", "activate"] {
        let found = find("POST", &format!("/v1/apps/a/{path}")).expect("a route");
        let body = of_app(found.route.endpoint).replace("r1", "../r1");
        let error = parse(found, None, body.as_bytes(), SystemTime::now()).expect_err("refused");
        assert!(error.message.contains("cannot be the name of a release"), "{path}: {error}");
    }
}

#[test]
fn options_come_from_body_and_query() {
    assert_eq!(
        request("POST /v1/services/a/reload", r#"{"release": "deploy-1"}"#),
        Request::Reload {
            services: names(&["a"]),
            release: Some("deploy-1".into()),
            force: false,
            standby: Standby::Nothing
        }
    );
    assert_eq!(
        request("POST /v1/services/a/reload", r#"{"force": true}"#),
        Request::Reload { services: names(&["a"]), release: None, force: true, standby: Standby::Nothing }
    );
    assert_eq!(
        request("POST /v1/services/a/signal", r#"{"signal": "sigusr1", "worker": 1}"#),
        Request::Signal { services: names(&["a"]), signal: 10, worker: Some(1) }
    );
    assert_eq!(
        request("GET /v1/services/a/logs?follow&lines=5&since=10m&stderr=true", ""),
        Request::Logs(LogsRequest {
            name: "a".into(),
            follow: true,
            lines: Some(5),
            since: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - 600)),
            from: None,
            stderr: true,
        })
    );
    let Request::Logs(logs) = request("GET /v1/services/a/logs?from=7.12", "") else { panic!("logs") };
    assert_eq!(logs.from, Some(LogPosition { file: 7, offset: 12 }));
    assert_eq!(request("POST /v1/update", r#"{"dry_run": true}"#), Request::Update { dry_run: true });
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let cases = [
        ("POST /v1/services/a/scale", "{\"count\": \"x\"}", "line 1 column 13"),
        ("POST /v1/services/a/scale", "", "count"),
        ("POST /v1/services/a/scale", "{\"count\": 0}", "1 to 10000"),
        ("POST /v1/services/a/start", "{\"force\": true}", "force"),
        ("POST /v1/services/a/signal", "{\"signal\": \"NOPE\"}", "NOPE"),
        ("POST /v1/services/a/reload", "{\"release\": \"../x\"}", "../x"),
        ("POST /v1/services//start", "", "missing"),
        ("POST /v1/services/a,,b/start", "", "missing"),
        ("POST /v1/services/a%00/start", "", "cannot be the name"),
        ("POST /v1/services/a%2/start", "", "percent-encoded"),
        ("GET /v1/services/a/logs?lines=x", "", "lines=x"),
        ("GET /v1/services/a/logs?since=yesterday", "", "since=yesterday"),
        ("GET /v1/status?colour=red", "", "colour"),
        ("GET /v1/status?full=1&full=1", "", "twice"),
        ("POST /v1/update", "{", "line 1 column 1"),
    ];
    for (line, body, text) in cases {
        let error = ask(line, body).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest, "{line}");
        assert!(error.message.contains(text), "{line}: {}", error.message);
    }
}

#[test]
fn unknown_paths_and_methods() {
    let error = ask("GET /v2/status", "").unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownRoute);
    assert_eq!(error.details.len(), ROUTES.len());
    let error = ask("GET /v1/services/a/start", "").unwrap_err();
    assert_eq!(error.code, ErrorCode::MethodNotAllowed);
    assert!(error.hint.unwrap().contains("POST"));
    // A slash in the place of a name does not make another route of it.
    let error = ask("POST /v1/services/a/b/start", "").unwrap_err();
    assert_eq!(error.code, ErrorCode::UnknownRoute);
}

#[test]
fn a_command_to_run_has_a_program() {
    let request = ask("POST /v1/services/a/exec", r#"{"command": ["ls", "-l"]}"#).unwrap();
    assert_eq!(request.detail(), "command=ls -l".into());
    assert_eq!(
        request,
        Request::Exec {
            services: vec!["a".into()],
            what: ExecRequest { command: vec!["ls".into(), "-l".into()], release: None, session: None },
        }
    );
    for body in ["", "{}", r#"{"command": []}"#, r#"{"command": [""]}"#, r#"{"command": ["a\u0000b"]}"#] {
        assert_eq!(ask("POST /v1/services/a/exec", body).unwrap_err().code, ErrorCode::BadRequest, "{body}");
    }
}

/// The document and the table have the same routes, and each operation names the verb that a rule must grant.
#[test]
fn openapi_has_the_same_routes() {
    let text = include_str!("../../docs/openapi.yaml");
    let mut documented = Vec::new();
    let mut path = "";
    for line in text.lines() {
        if let Some(p) = line.strip_prefix("  /").and_then(|l| l.strip_suffix(':')) {
            path = p;
        }
        for method in ["get", "post", "put", "delete", "patch"] {
            if line.strip_prefix("    ") == Some(&format!("{method}:")) {
                documented.push(format!("{} /{path}", method.to_uppercase()));
            }
        }
    }
    let mut routes: Vec<String> = ROUTES
        .iter()
        .map(|r| format!("{} {}", r.method, r.path))
        .chain(crate::api::public::PATHS.iter().map(|p| format!("GET {p}")))
        .collect();
    routes.sort();
    documented.sort();
    assert_eq!(routes, documented);
}
