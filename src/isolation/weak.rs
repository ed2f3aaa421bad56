//! Combinations of keys of which one undoes what another is there for. Pure.

use std::path::Path;

use super::exposure::{AS_ROOT, MIGHTY, is_code, is_hosts, is_public, is_root, literal_secrets};
use crate::config::capability::Capability;
use crate::config::spec::{AUTO_USER, Profile, Service};

/// What is allowed and hardly meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weak {
    /// As in the file, sections included: where it is said.
    pub key: String,
    pub message: String,
    pub help: &'static str,
}

/// Of one service; `others` run as the same user.
pub fn weak(service: &Service, others: &[&str]) -> Vec<Weak> {
    let mut found = Vec::new();
    let mut say = |key: &str, message: String, help: &'static str| {
        found.push(Weak { key: key.to_owned(), message, help });
    };
    if let Some(group) = service.groups.iter().find(|group| AS_ROOT.contains(&&***group)) {
        let message = format!("members of the group {group} can become root, whatever the user is");
        say("groups", message, "give it a group of its own, with the files that it needs");
    }
    if service.umask.is_some_and(|mask| mask & 0o002 == 0) {
        say("umask", "everybody on the host may change the files that it makes".to_owned(), "write \"0027\"");
    }
    let named_root = matches!(service.user.as_deref(), Some("root" | "0"));
    if named_root && is_public(service) && service.isolation.is_none() {
        say(
            "user",
            "it answers the network as root, and nothing shuts it in".to_owned(),
            "set user = \"auto\", or [isolation] profile = \"strict\"",
        );
    }
    if let Some(isolation) = &service.isolation {
        isolated(service, isolation.profile, others, &mut say);
    }
    let secrets = literal_secrets(service);
    if let (Some(secret), false) = (secrets.first(), others.is_empty()) {
        let message = format!("{} runs as the same user, and can read this variable of the process", others.join(", "));
        say(&format!("environment.{secret}"), message, "set user = \"auto\", a user of its own");
    }
    found
}

fn isolated(service: &Service, profile: Profile, others: &[&str], say: &mut dyn FnMut(&str, String, &'static str)) {
    let settings = super::of(service);
    if profile == Profile::Strict && is_root(service) {
        let key = if service.user.is_some() { "user" } else { "isolation.profile" };
        let who = if service.user.is_some() { "root" } else { "svd's own user, root on most hosts," };
        let message = format!("as {who} it may read what is root's, however strict the profile is");
        say(key, message, "set user = \"auto\", a user of its own");
    }
    if let Some(path) = settings.writable.iter().find(|path| is_code(&path.0)) {
        let message = match path.0.starts_with('{') {
            true => format!("{} has its own code: what breaks in can change what is started next", path.0),
            false => format!("{} is the system's: what breaks in can change what others run", path.0),
        };
        say("isolation.writable", message, "name the places of its data alone, such as \"{root}/shared\"");
    }
    let named = settings.capabilities.as_deref().unwrap_or_default();
    let mighty = MIGHTY.iter().find(|name| Capability::named(name).is_some_and(|c| named.contains(&c)));
    if let Some(name) = mighty {
        let message = format!("with {name} a process can undo most of this section");
        say("isolation.capabilities", message, "leave it out; let a helper, or a step of the deploy, do what needs it");
    }
    if !named.is_empty() && !settings.no_new_privileges {
        let message = "programs that it starts can gain rights beside these capabilities".to_owned();
        say(
            "isolation.capabilities",
            message,
            "add no_new_privileges = true: capabilities named here are kept all the same",
        );
    }
    for bind in settings.bind.iter().filter(|bind| is_hosts(&bind.source.0)) {
        let connects = bind.source.0.ends_with(".sock");
        if !bind.read_only || connects {
            let message = format!("{} gives it the host again", bind.source.0);
            say(&format!("isolation.bind.{}", bind.target), message, "bind directories of data alone");
        }
    }
    let uncovered = settings.hidden.iter().find_map(|hidden| {
        let below = |bind: &&crate::config::spec::Bind| Path::new(&*bind.source.0).starts_with(&*hidden.0);
        settings.bind.iter().find(below).map(|bind| (bind, hidden))
    });
    if let Some((bind, hidden)) = uncovered {
        let message =
            format!("{} is below {}, which is hidden, and is seen there all the same", bind.source.0, hidden.0);
        say(&format!("isolation.bind.{}", bind.target), message, "move what it needs to a place of its own");
    }
    let auto = service.user.as_deref() == Some(AUTO_USER);
    if let (false, false, Some(other)) = (auto, settings.private_pids, others.first()) {
        let message = format!(
            "{other} runs as the same user: each can end and trace the other's processes, and see files as they do"
        );
        let key = if service.user.is_some() { "user" } else { "isolation.profile" };
        say(key, message, "set user = \"auto\", or private_pids = true");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load_texts;

    fn of(text: &str, others: &[&str]) -> Vec<String> {
        let text = format!("kind = 'command'\ncommand = ['a']\nroot = '/srv/a'\n{text}");
        let config = load_texts(None, &[("a", &text)]).unwrap_or_else(|e| panic!("{e}"));
        weak(&config.services["a"], others).into_iter().map(|weak| weak.key).collect()
    }

    #[test]
    fn what_undoes_the_rest_is_told() {
        for (text, key) in [
            ("groups = ['docker']", "groups"),
            ("umask = '0000'", "umask"),
            ("user = 'root'\n[sockets.x]\nlisten = '0.0.0.0:1'", "user"),
            ("user = 'root'\n[isolation]\nprofile = 'strict'", "user"),
            ("[isolation]\nprofile = 'strict'", "isolation.profile"),
            ("user = 'a'\n[isolation]\nprofile = 'strict'\nwritable = ['{root}/releases']", "isolation.writable"),
            ("user = 'a'\n[isolation]\nprofile = 'strict'\nwritable = ['/etc/a']", "isolation.writable"),
            ("user = 'a'\n[isolation]\nprofile = 'strict'\ncapabilities = ['sys_admin']", "isolation.capabilities"),
            ("user = 'a'\n[isolation]\ncapabilities = ['net_bind_service']", "isolation.capabilities"),
            ("user = 'a'\n[isolation]\nbind = { '/d' = '/run/docker.sock:ro' }", "isolation.bind./d"),
            ("user = 'a'\n[isolation]\nhidden = ['/srv/x']\nbind = { '/d' = '/srv/x/y' }", "isolation.bind./d"),
        ] {
            assert_eq!(of(text, &[]), [key], "{text}");
        }
        let strict = "user = 'a'\n[isolation]\nprofile = 'strict'\n";
        assert_eq!(of(&format!("{strict}private_pids = false"), &["b"]), ["user"]);
        assert!(of(strict, &["b"]).is_empty(), "it sees nobody else");
        assert_eq!(of("user = 'a'\n[environment]\nAPI_TOKEN = 'x'", &["b"]), ["environment.API_TOKEN"]);
    }

    #[test]
    fn what_is_sound_is_not() {
        for text in [
            "",
            "user = 'root'\n[sockets.x]\nlisten = '127.0.0.1:1'",
            "[sockets.x]\nlisten = '0.0.0.0:1'\n[environment]\nAPI_TOKEN = 'x'",
            "user = 'auto'\numask = '0027'\ngroups = ['media']\n[isolation]\nprofile = 'strict'\nwritable = ['{root}/shared', '/var/lib/a']\ncapabilities = ['net_bind_service']\nbind = { '/d' = '/srv/d:ro' }",
            "user = 'a'\n[isolation]\nprofile = 'standard'",
        ] {
            assert_eq!(of(text, &[]), [""; 0], "{text}");
        }
        assert_eq!(of("user = 'auto'\n[isolation]\nprofile = 'strict'", &[]), [""; 0]);
    }
}
