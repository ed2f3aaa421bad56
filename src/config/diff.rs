//! What differs between two configurations, and what each difference asks of a service that runs.
//!
//! Meanings are compared, not texts: comments, spaces and the order of keys are no difference. The order of sockets is
//! one, for it numbers the descriptors.

mod rows;

use std::sync::Arc;

use super::spec::{Config, Service};
pub use rows::{HEAP, Row};

/// What must be done so that a change takes effect, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// It matters at the next start of svd or of the service.
    Nothing,
    /// svd itself acts differently from now on; no process is touched.
    Live,
    /// More or fewer workers of the same kind; those that stay are not touched. (A reload does it as well.)
    Scale,
    /// The processes must be started anew: a reload.
    Reload,
    /// The sockets are bound anew: stop, then start.
    Restart,
}

/// One key whose value is another. Absent: the service has no such value, on that side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyChange {
    /// As in the file, sections included: `logs.max_size`.
    pub key: String,
    pub old: Option<String>,
    pub new: Option<String>,
    pub needs: Needs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Added {
        service: Box<str>,
    },
    Removed {
        service: Box<str>,
    },
    Changed {
        service: Box<str>,
        keys: Vec<KeyChange>,
        /// The most that one of the keys needs.
        needs: Needs,
    },
    /// `svd.toml`: all of it applies without touching a service.
    Daemon {
        keys: Vec<KeyChange>,
    },
}

/// From `old` to `new`: the daemon first, then services by name. Empty where both mean the same.
pub fn difference(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = Vec::new();
    let keys = compare(rows::daemon(&old.daemon), rows::daemon(&new.daemon));
    if !keys.is_empty() {
        changes.push(Change::Daemon { keys });
    }
    let (mut olds, mut news) = (old.services.iter().peekable(), new.services.iter().peekable());
    loop {
        let (a, b) = (olds.peek().map(|(name, _)| *name), news.peek().map(|(name, _)| *name));
        // Of two sorted lists, take the smaller head, or both where they are equal.
        let first_is_old = match (a, b) {
            (None, None) => return changes,
            (Some(a), Some(b)) if a == b => {
                if let (Some((name, old)), Some((_, new))) = (olds.next(), news.next()) {
                    changes.extend(changed(name, old, new));
                }
                continue;
            }
            (Some(a), Some(b)) => a < b,
            (a, None) => a.is_some(),
            (None, Some(_)) => false,
        };
        let side = if first_is_old { &mut olds } else { &mut news };
        let Some(service) = side.next().map(|(name, _)| name.clone()) else { continue };
        changes.push(if first_is_old { Change::Removed { service } } else { Change::Added { service } });
    }
}

/// What follows from the difference between two versions of a service, if there is any.
pub fn needs(old: &Service, new: &Service) -> Option<Needs> {
    if old == new {
        return None;
    }
    compare(rows::service(old), rows::service(new)).iter().map(|key| key.needs).max()
}

/// Lets `new` have the very services of `old` where they mean the same, so that an update does not keep both alive.
pub fn keep_unchanged(old: &Config, new: &mut Config) {
    for (name, service) in &mut new.services {
        if let Some(known) = old.services.get(name).filter(|known| *known == service) {
            *service = Arc::clone(known);
        }
    }
}

/// A specification spelt out, key by key; what is absent and has no default has no row.
pub fn rows(service: &Service) -> Vec<Row> {
    rows::service(service)
}

fn changed(name: &str, old: &Service, new: &Service) -> Option<Change> {
    // Nearly all services are the same, and comparing them costs less than spelling them out.
    if old == new {
        return None;
    }
    let keys = compare(rows::service(old), rows::service(new));
    let needs = keys.iter().map(|key| key.needs).max()?;
    Some(Change::Changed { service: name.into(), keys, needs })
}

/// Rows with the same key and another value, and rows of one side only: in the old order, then the new ones.
fn compare(old: Vec<Row>, new: Vec<Row>) -> Vec<KeyChange> {
    let mut new: Vec<Option<Row>> = new.into_iter().map(Some).collect();
    let mut out = Vec::new();
    for row in old {
        let twin = new.iter_mut().find(|other| other.as_ref().is_some_and(|other| other.key == row.key));
        let twin = twin.and_then(Option::take);
        let needs = twin.as_ref().map_or(row.needs, |twin| twin.needs.max(row.needs));
        let value = twin.map(|twin| twin.value);
        if value.as_ref() != Some(&row.value) {
            out.push(KeyChange { key: row.key, old: Some(row.value), new: value, needs });
        }
    }
    out.extend(new.into_iter().flatten().map(|row| KeyChange {
        key: row.key,
        old: None,
        new: Some(row.value),
        needs: row.needs,
    }));
    out
}

#[cfg(test)]
mod tests {
    use super::super::load_texts;
    use super::*;

    const BASE: &str = "kind = 'command'\ncommand = ['a']\nroot = '/srv/a'\n";

    fn config(text: &str) -> Config {
        load_texts(None, &[("a", text)]).unwrap_or_else(|e| panic!("{e}"))
    }

    /// `key: old → new` of every change.
    fn keys(old: &str, new: &str) -> (Vec<String>, Option<Needs>) {
        let side = |s: &Option<String>| s.clone().unwrap_or("-".into());
        match &difference(&config(old), &config(new))[..] {
            [] => (vec![], None),
            [Change::Changed { keys, needs, .. }] => {
                let lines = keys.iter().map(|k| format!("{}: {} → {}", k.key, side(&k.old), side(&k.new)));
                (lines.collect(), Some(*needs))
            }
            other => panic!("{other:?}"),
        }
    }

    fn needs(rest_old: &str, rest_new: &str) -> Option<Needs> {
        keys(&format!("{BASE}{rest_old}"), &format!("{BASE}{rest_new}")).1
    }

    #[test]
    fn comments_order_and_spelling_are_no_change() {
        let other = "# a comment\nroot='/srv/a'\ncommand = [ \"a\" ] # here\nkind=\"command\"\n";
        assert_eq!(keys(BASE, other).1, None);
        assert_eq!(
            needs(
                "after = ['x', 'y']\n[stop]\ngrace = '1m'",
                "after = ['y', 'x']\n[stop]\ngrace = '60s'\nsignal = 'TERM'"
            ),
            None
        );
        assert_eq!(needs("[environment]\nA = '1'\nB = '2'", "[environment]\nB = '2'\nA = '1'"), None);
    }

    #[test]
    fn old_and_new_values_are_shown() {
        let (lines, needs) = keys(
            &format!("{BASE}[logs]\nmax_size = '1MB'\n[environment]\nA = '1'\nB = '2'"),
            &format!("{BASE}[logs]\nmax_size = '1MiB'\n[environment]\nB = '3'\nC = '4'"),
        );
        assert_eq!(
            lines,
            ["environment.A: 1 → -", "environment.B: 2 → 3", "logs.max_size: 1MB → 1MiB", "environment.C: - → 4"]
        );
        assert_eq!(needs, Some(Needs::Reload));
    }

    #[test]
    fn each_key_has_its_price() {
        for (old, new, price) in [
            ("", "autostart = false", Needs::Nothing),
            ("", "[logs]\nkeep = 3", Needs::Live),
            ("", "[logs]\nformat = 'json'", Needs::Live),
            ("", "[logs]\nstderr = 'apart'", Needs::Reload),
            ("", "[logs]\ncapture = false", Needs::Reload),
            ("", "[restart]\npolicy = 'never'", Needs::Live),
            ("", "[restart]\nlimit = { failures = 2 }", Needs::Live),
            ("", "[stop]\ngrace = '1m'", Needs::Live),
            ("", "[ready]\ntimeout = '1m1s'", Needs::Live),
            ("", "[ready]\ndelay = '1s'", Needs::Live),
            ("", "[ready]\nnotify = true", Needs::Reload),
            ("", "[health]\ntcp = '1.1.1.1:1'", Needs::Live),
            ("", "[health]\nwatchdog = '30s'", Needs::Reload),
            ("", "[reload]\noverlap = true", Needs::Live),
            ("", "after = ['b']", Needs::Live),
            ("", "[limits]\nmemory = '1GiB'", Needs::Live),
            ("", "[limits]\nnice = 3\nopen_files = 99\nswap = 0", Needs::Live),
            ("", "instances = 2", Needs::Scale),
            ("", "umask = '0027'", Needs::Reload),
            ("", "user = 'b'", Needs::Reload),
            ("", "directory = '/'", Needs::Reload),
            ("", "environment_files = ['/x']", Needs::Reload),
            ("", "[sockets.x]\nlisten = '1.1.1.1:1'", Needs::Restart),
            ("[sockets.x]\nlisten = '1.1.1.1:1'", "[sockets.x]\nlisten = '1.1.1.1:2'", Needs::Restart),
            ("[sockets.x]\nlisten = '1.1.1.1:1'", "[sockets.x]\nlisten = '1.1.1.1:1'\nbacklog = 9", Needs::Live),
            ("[sockets.x]\nlisten = 'unix:/x'", "[sockets.x]\nlisten = 'unix:/x'\nmode = '0600'", Needs::Live),
        ] {
            assert_eq!(needs(old, new), Some(price), "{old:?} → {new:?}");
            assert_eq!(needs(new, old), Some(price), "{new:?} → {old:?}");
        }
    }

    #[test]
    fn kinds_and_their_keys() {
        let gunicorn = "kind = 'gunicorn'\napp = 'a:b'\n";
        let workers = |n: &str| keys(&format!("{gunicorn}workers = 2"), &format!("{gunicorn}{n}"));
        assert_eq!(workers("workers = 3"), (vec!["workers: 2 → 3".into()], Some(Needs::Scale)));
        assert_eq!(workers("workers = 'auto'").1, Some(Needs::Reload));
        assert_eq!(workers("").1, Some(Needs::Reload));
        let (lines, price) = keys(gunicorn, "kind = 'command'\ncommand = ['a b', 'c']");
        assert_eq!(lines[..3], ["kind: gunicorn → command", "app: a:b → -", "workers: gunicorn's → -"]);
        assert!(lines.contains(&"command: - → [\"a b\", \"c\"]".to_owned()));
        assert_eq!(price, Some(Needs::Reload));
    }

    #[test]
    fn socket_order_is_a_change() {
        let (a, b) = ("[sockets.a]\nlisten = '1.1.1.1:1'\n", "[sockets.b]\nlisten = '1.1.1.1:2'\n");
        let (lines, price) = keys(&format!("{BASE}{a}{b}"), &format!("{BASE}{b}{a}"));
        assert_eq!((lines, price), (vec!["sockets: a, b → b, a".into()], Some(Needs::Reload)));
    }

    #[test]
    fn services_come_and_go_in_order() {
        let load = |names: &[&str]| {
            let texts: Vec<_> = names.iter().map(|name| (*name, BASE)).collect();
            load_texts(None, &texts).unwrap()
        };
        let changes = difference(&load(&["b", "c", "e"]), &load(&["a", "c", "d"]));
        let words: Vec<_> = changes
            .iter()
            .map(|change| match change {
                Change::Added { service } => format!("+{service}"),
                Change::Removed { service } => format!("-{service}"),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(words, ["+a", "-b", "+d", "-e"]);
        assert_eq!(difference(&load(&[]), &load(&[])), []);
    }

    #[test]
    fn unchanged_services_are_shared() {
        let load = |text: &str| load_texts(None, &[("same", BASE), ("other", text)]).unwrap();
        let (old, mut new) = (load(BASE), load("kind = 'command'\ncommand = ['b']"));
        keep_unchanged(&old, &mut new);
        assert!(Arc::ptr_eq(&old.services["same"], &new.services["same"]));
        assert_eq!(difference(&old, &new).len(), 1);
    }

    #[test]
    fn the_daemon_changes_too() {
        let load = |text: &str| load_texts(Some(text), &[]).unwrap();
        let rule = "[[access]]\nusers = ['a']\nverbs = ['status']\nservices = ['*']";
        let changes = difference(&load(""), &load(&format!("[http]\nlisten = '1.1.1.1:1'\n{rule}")));
        let [Change::Daemon { keys }] = &changes[..] else { panic!("{changes:?}") };
        let names: Vec<_> = keys.iter().map(|k| k.key.as_str()).collect();
        assert_eq!(names, ["http.listen", "access"]);
    }
}
