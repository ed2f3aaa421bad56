//! From names and patterns to services that exist and that the peer may touch. Pure.

use super::access::{Access, Scope, is_pattern, matches};
use super::peer::Peer;
use super::request::{Name, Request, Verb};
use super::types::{ApiError, ErrorCode};

/// Resolves the names of `request` in place and decides whether `peer` may.
///
/// A pattern of a verb that acts must not hit a service that the peer may not touch: "all were restarted" would not be
/// true. One that only reads shows what the peer may see. A single unknown name fails the whole request before anything is done.
///
/// # Errors
/// [`ErrorCode::Forbidden`] or [`ErrorCode::UnknownService`]. Whoever may not touch a name does not learn whether it
/// exists.
pub fn resolve(request: &mut Request, names: &[Name], access: &Access, peer: &Peer) -> Result<(), ApiError> {
    let verb = request.verb();
    if let Some(name) = request.single_name() {
        if is_pattern(name) {
            return Err(ApiError::new(
                ErrorCode::BadRequest,
                format!("{name} may be several services; {verb} takes one.", verb = verb.as_str()),
            )
            .hint("Give one name in full."));
        }
        return check(name, verb, names, access, peer);
    }
    if let Request::Events(events) = request {
        let mine = scope_of(access, peer, verb)?;
        events.scope = mine.wanting(events.scope.wanted().to_vec());
        return Ok(());
    }
    let Some(wanted) = request.services_mut() else {
        return if access.allows(peer, verb, "") { Ok(()) } else { Err(forbidden(peer, verb, "*")) };
    };
    let mut found = Vec::with_capacity(wanted.len());
    if wanted.is_empty() {
        if !verb.is_read() {
            return Err(ApiError::new(
                ErrorCode::BadRequest,
                format!("{} needs the name of a service.", verb.as_str()),
            )
            .hint("Write `*` for all."));
        }
        wanted.push("*".into());
    }
    for want in wanted.iter() {
        if is_pattern(want) {
            expand(want, verb, names, access, peer, &mut found)?;
        } else {
            check(want, verb, names, access, peer)?;
            found.push(want.clone());
        }
    }
    found.sort_unstable();
    found.dedup();
    *wanted = found;
    Ok(())
}

/// What the peer may see at all; an empty list would look as if there were no services.
fn scope_of(access: &Access, peer: &Peer, verb: Verb) -> Result<Scope, ApiError> {
    let scope = access.scope(peer, verb);
    if scope.is_nothing() {
        return Err(forbidden(peer, verb, "*"));
    }
    Ok(scope)
}

fn check(name: &str, verb: Verb, names: &[Name], access: &Access, peer: &Peer) -> Result<(), ApiError> {
    if !access.allows(peer, verb, name) {
        return Err(forbidden(peer, verb, name));
    }
    if names.binary_search_by(|n| (**n).cmp(name)).is_ok() {
        return Ok(());
    }
    let visible = names.iter().filter(|n| access.allows(peer, Verb::Status, n) || access.allows(peer, verb, n));
    Err(unknown(name, visible))
}

fn expand(
    pattern: &str,
    verb: Verb,
    names: &[Name],
    access: &Access,
    peer: &Peer,
    found: &mut Vec<Name>,
) -> Result<(), ApiError> {
    let mine = scope_of(access, peer, verb)?;
    let before = found.len();
    for name in names.iter().filter(|n| matches(pattern, n)) {
        if mine.includes(name) {
            found.push(name.clone());
        } else if !verb.is_read() {
            return Err(ApiError::new(
                ErrorCode::Forbidden,
                format!(
                    "{who} may not use `{verb}` on all services that fit {pattern:?}; nothing was done.",
                    who = peer.label(),
                    verb = verb.as_str()
                ),
            )
            .hint("Name the services that you mean, or a narrower pattern."));
        }
    }
    // Without services at all, "all of them" is a fair question with an empty answer.
    if found.len() == before && pattern != "*" {
        return Err(ApiError::new(ErrorCode::UnknownService, format!("No service fits {pattern:?}."))
            .hint("`svctl status` lists the services."));
    }
    Ok(())
}

/// The answer to a name that does not exist, with a suggestion where one is near.
pub fn unknown<'a>(name: &str, names: impl Iterator<Item = &'a Name>) -> ApiError {
    let near = names
        .map(|n| (strsim::damerau_levenshtein(n, name), n))
        .filter(|(distance, n)| *distance <= 1 + n.len() / 4)
        .min();
    let hint: Box<str> = match near {
        Some((_, near)) => format!("Did you mean {near}? `svctl status` lists the services.").into(),
        None => "`svctl status` lists the services; a new file in conf.d needs `svctl update`.".into(),
    };
    ApiError::new(ErrorCode::UnknownService, format!("There is no service {name}.")).hint(hint)
}

pub(super) fn forbidden(peer: &Peer, verb: Verb, name: &str) -> ApiError {
    let who = peer.label();
    let verb = verb.as_str();
    let what = if name == "*" { format!("use `{verb}`") } else { format!("use `{verb}` on {name}") };
    let user = if peer.user.is_empty() { peer.uid.to_string() } else { who.clone() };
    ApiError::new(ErrorCode::Forbidden, format!("{who} may not {what}: no access rule grants it.")).hint(format!(
        "Ask root, or for this in svd.toml: [[access]] users = [{user:?}] verbs = [{verb:?}] services = [{name:?}]"
    ))
}
