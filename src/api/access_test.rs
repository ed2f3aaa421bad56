use std::sync::Arc;

use super::*;
use crate::api::peer::PeerGroup;
use crate::api::request::Request;
use crate::api::resolve::resolve;
use crate::api::types::ErrorCode;

fn list(words: &[&str]) -> Vec<Box<str>> {
    words.iter().map(|w| (*w).into()).collect()
}

fn rule(users: &[&str], groups: &[&str], verbs: &[&str], services: &[&str]) -> AccessRule {
    AccessRule { users: list(users), groups: list(groups), verbs: list(verbs), services: list(services) }
}

fn peer(uid: u32, user: &str, groups: &[(u32, &str)]) -> Peer {
    Peer {
        uid,
        pid: 1,
        user: user.into(),
        groups: groups
            .iter()
            .map(|(gid, name)| PeerGroup { gid: *gid, name: (*name).into() })
            .collect::<Vec<_>>()
            .into(),
    }
}

fn access(rules: Vec<AccessRule>) -> Access {
    Access { owner: 900, rules: Arc::from(rules) }
}

#[test]
fn patterns() {
    for (pattern, name, fits) in [
        ("*", "", true),
        ("*", "web", true),
        ("web", "web", true),
        ("web", "web1", false),
        ("web*", "web", true),
        ("web-*", "web", false),
        ("*-worker", "a-worker-worker", true),
        ("a*b*c", "axxbyyc", true),
        ("a*b*c", "axxbyy", false),
        ("a**c", "abc", true),
        ("*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ("", "", true),
        ("", "x", false),
    ] {
        assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
    }
}

#[test]
fn who_may_what() {
    let access = access(vec![
        rule(&["ann"], &[], &["restart", "status"], &["web-*"]),
        rule(&[], &["deploy"], &["*"], &["*"]),
        rule(&["1500"], &["77"], &["logs"], &["db"]),
        rule(&["eve"], &[], &["exec", "upgrade", "deploy"], &["*"]),
        rule(&["kim"], &[], &["update"], &["web-*"]),
        rule(&["", "x"], &[""], &["*"], &["*"]),
    ]);
    let root = peer(0, "root", &[]);
    let owner = peer(900, "svd", &[]);
    let ann = peer(1000, "ann", &[(1000, "ann")]);
    let bob = peer(1001, "bob", &[(1001, "bob"), (50, "deploy")]);
    let number = peer(1500, "", &[]);
    let group_number = peer(1501, "", &[(77, "")]);
    let eve = peer(1002, "eve", &[]);
    let kim = peer(1003, "kim", &[]);
    let nobody = peer(65534, "", &[(65534, "")]);
    for verb in Verb::ALL {
        assert!(access.allows(&root, verb, "web-1") && access.allows(&owner, verb, "web-1"));
        let named = matches!(verb, Verb::Exec | Verb::Upgrade | Verb::Deploy);
        assert_eq!(access.allows(&bob, verb, "web-1"), !named, "bob {verb:?}");
        let eve_may = named || verb == Verb::Version;
        assert_eq!(access.allows(&eve, verb, "web-1"), eve_may, "eve {verb:?}");
        let ann_may = matches!(verb, Verb::Restart | Verb::Status | Verb::Version);
        assert_eq!(access.allows(&ann, verb, "web-1"), ann_may, "ann {verb:?}");
        let anyone = verb == Verb::Version;
        assert_eq!(access.allows(&ann, verb, "db"), anyone, "ann db {verb:?}");
        assert_eq!(access.allows(&nobody, verb, "db"), anyone, "{verb:?}");
        // A right on some services is none on the host.
        assert_eq!(access.allows(&kim, verb, "web-1"), anyone, "kim {verb:?}");
    }
    assert!(access.allows(&number, Verb::Logs, "db"));
    assert!(access.allows(&group_number, Verb::Logs, "db"));
    assert!(!access.allows(&number, Verb::Logs, "db2"));
}

fn start(names: &[&str]) -> Request {
    Request::Start { services: list(names) }
}

fn status(names: &[&str]) -> Request {
    Request::Status { services: list(names), full: false }
}

fn resolved(request: &mut Request, access: &Access, peer: &Peer) -> Result<Vec<Box<str>>, ErrorCode> {
    let names = list(&["airship", "db", "web-1", "web-2"]);
    resolve(request, &names, access, peer).map_err(|e| e.code)?;
    Ok(request.services().cloned().unwrap_or_default())
}

#[test]
fn names_are_resolved_within_the_rules() {
    let access = access(vec![rule(&["ann"], &[], &["start", "status"], &["web-*"])]);
    let root = peer(0, "root", &[]);
    let ann = peer(1000, "ann", &[]);
    let bob = peer(1001, "bob", &[]);
    let ok = |names: &[&str]| Ok(list(names));
    let ask = |mut r: Request, who: &Peer| resolved(&mut r, &access, who);
    assert_eq!(ask(start(&["web-*", "db", "web-1"]), &root), ok(&["db", "web-1", "web-2"]));
    assert_eq!(ask(start(&["nope"]), &root), Err(ErrorCode::UnknownService));
    assert_eq!(ask(start(&["db", "nope*"]), &root), Err(ErrorCode::UnknownService));
    assert_eq!(ask(start(&["web-*"]), &ann), ok(&["web-1", "web-2"]));
    // To act on "all" must not quietly mean some.
    assert_eq!(ask(start(&["*"]), &ann), Err(ErrorCode::Forbidden));
    assert_eq!(ask(status(&[]), &ann), ok(&["web-1", "web-2"]));
    assert_eq!(ask(status(&[]), &bob), Err(ErrorCode::Forbidden));
    // What exists and what does not look the same to whoever may not see it.
    assert_eq!(ask(status(&["db"]), &ann), Err(ErrorCode::Forbidden));
    assert_eq!(ask(status(&["dc"]), &ann), Err(ErrorCode::Forbidden));
    assert_eq!(ask(status(&["web-3"]), &ann), Err(ErrorCode::UnknownService));
    assert_eq!(ask(Request::Shutdown { force: false }, &ann), Err(ErrorCode::Forbidden));
    assert_eq!(ask(Request::Version, &bob), ok(&[]));
    let service = |name: &str| Request::Service { name: name.into() };
    assert_eq!(ask(service("web-1"), &ann), ok(&[]));
    assert_eq!(ask(service("db"), &ann), Err(ErrorCode::Forbidden));
    assert_eq!(ask(service("web-*"), &ann), Err(ErrorCode::BadRequest));
}

#[test]
fn without_services_all_of_them_is_an_empty_list() {
    let access = access(Vec::new());
    let mut request = status(&[]);
    resolve(&mut request, &[], &access, &peer(0, "root", &[])).unwrap();
    assert_eq!(request.services(), Some(&Vec::new()));
}

#[test]
fn a_near_name_is_suggested_only_to_those_who_may_see_it() {
    let access = access(vec![rule(&["ann"], &[], &["start"], &["web-*"])]);
    let names = list(&["airship", "web-1"]);
    let hint = |who: &Peer, name: &str| {
        let error = resolve(&mut start(&[name]), &names, &access, who).unwrap_err();
        error.hint.unwrap_or_default().to_string()
    };
    assert!(hint(&peer(0, "root", &[]), "airshp").contains("Did you mean airship?"));
    assert!(hint(&peer(1000, "ann", &[]), "web-11").contains("web-1"));
    assert!(!hint(&peer(1000, "ann", &[]), "airshp").contains("airship?"));
}

#[test]
fn events_are_limited_to_what_one_may_see() {
    let access = access(vec![rule(&["ann"], &[], &["status"], &["web-*"])]);
    let mut request = Request::Events(crate::api::request::EventsRequest {
        follow: true,
        scope: Scope::everything().wanting(list(&["*-1", "db"])),
    });
    resolve(&mut request, &[], &access, &peer(1000, "ann", &[])).unwrap();
    let Request::Events(events) = request else { panic!() };
    assert!(events.scope.includes("web-1"));
    assert!(!events.scope.includes("web-2") && !events.scope.includes("db"));
}

/// The words that a file may grant are those that are asked for here.
#[test]
fn the_configuration_knows_every_verb() {
    let load = |verb: &str| {
        let rule = format!("[[access]]\nusers = ['a']\nverbs = ['{verb}']\nservices = ['*']\n");
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("svd.toml"), rule).unwrap();
        crate::config::load(dir.path())
    };
    for verb in Verb::ALL.into_iter().filter(|v| *v != Verb::Version) {
        assert!(load(verb.as_str()).is_ok(), "{verb:?}");
    }
    assert!(load("undrain").is_err());
}
