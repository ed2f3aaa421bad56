//! A service's settings as people may see them: each with where its value comes from, and without what may be a secret.

use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use super::diagnostic::Position;
use super::diff::{self, Needs, Row};
use super::secrecy;
use super::source::{File, Span};
use super::spec::{Kind, Service, Workers};
use super::suggest;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The service's file says so, in the line beside it.
    File,
    /// No file says anything else.
    Default,
    /// So it is with this kind of service.
    Kind,
    /// `svctl scale`, until the file names another number.
    Scale,
    /// The configuration that was kept with a release, after the one that came with another file was taken back.
    Release,
    /// What runs was started from the file as it was then.
    Earlier,
    /// What a newer svd says. svd never says it.
    #[serde(other)]
    Unknown,
}

/// One key of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// As in the file, sections included: `logs.max_size`.
    pub key: Box<str>,
    /// In force; absent where only the file has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Box<str>>,
    pub origin: Origin,
    /// Of the service's file, where the key stands in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The file says something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub differs: Option<Differs>,
}

/// What the file says, and what it needs that this is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Differs {
    /// Absent: the file does not have the key any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_file: Option<Box<str>>,
    /// `nothing`, `live`, `scale`, `reload` or `restart`.
    pub needs: Box<str>,
}

/// The word of a price.
pub fn word(needs: Needs) -> &'static str {
    match needs {
        Needs::Nothing => "nothing",
        Needs::Live => "live",
        Needs::Scale => "scale",
        Needs::Reload => "reload",
        Needs::Restart => "restart",
    }
}

/// What is in force.
pub struct InForce<'a> {
    /// What runs was started with this, or what would be started.
    pub service: &'a Service,
    /// Gunicorn's workers by `svctl scale`.
    pub scaled: Option<u32>,
    /// What the file says was taken back with a release, and is not used.
    pub kept: bool,
}

/// All settings of a service: what is in force, beside what its file says now (`None`: nothing that could be used).
pub fn settings(now: &InForce<'_>, file: Option<(&Service, &str)>) -> Vec<Setting> {
    let places = Places::of(file.map(|(_, text)| text).unwrap_or_default());
    let mut in_file: Vec<Row> = file.map(|(service, _)| rows(service, None)).unwrap_or_default();
    let implied: Vec<&str> = IMPLIED.iter().map(|i| i.key).collect();
    let mut out = Vec::new();
    for row in rows(now.service, now.scaled) {
        let twin = in_file.iter().position(|other| other.key == row.key).map(|at| in_file.remove(at));
        let line = places.line(&row.key);
        let same = twin.as_ref().is_some_and(|twin| twin.value == row.value);
        let scaled = now.scaled.is_some() && row.key == "workers";
        let origin = match () {
            () if scaled => Origin::Scale,
            () if !same && file.is_some() => {
                if now.kept {
                    Origin::Release
                } else {
                    Origin::Earlier
                }
            }
            () if file.is_none() => Origin::Earlier,
            () if line.is_some() => Origin::File,
            () if is_kinds_own(&row, now.service) => Origin::Kind,
            () => Origin::Default,
        };
        let differs = (!same && file.is_some() && !scaled).then(|| Differs {
            in_file: twin
                .as_ref()
                .filter(|t| !implied.contains(&&*t.key) || line.is_some())
                .map(|twin| secrecy::shown(&twin.key, &twin.value)),
            needs: word(twin.as_ref().map_or(row.needs, |twin| twin.needs.max(row.needs))).into(),
        });
        out.push(Setting {
            value: Some(secrecy::shown(&row.key, &row.value)),
            key: row.key.into(),
            origin,
            line,
            differs,
        });
    }
    out.extend(in_file.into_iter().map(|row| Setting {
        value: None,
        origin: if now.kept { Origin::Release } else { Origin::Earlier },
        line: places.line(&row.key),
        differs: Some(Differs { in_file: Some(secrecy::shown(&row.key, &row.value)), needs: word(row.needs).into() }),
        key: row.key.into(),
    }));
    out
}

/// A default that a specification does not spell out.
struct Implied {
    key: &'static str,
    value: fn(&Service) -> Option<&'static str>,
    kinds_own: bool,
}

static IMPLIED: &[Implied] = &[
    Implied { key: "user", value: |_| Some("svd's own user"), kinds_own: false },
    Implied { key: "group", value: |_| Some("the user's primary group"), kinds_own: false },
    Implied { key: "directory", value: |s| Some(if s.root.is_some() { "{release}" } else { "/" }), kinds_own: false },
    Implied { key: "umask", value: |_| Some("0022"), kinds_own: false },
    Implied {
        key: "python",
        value: |s| matches!(s.kind, Kind::Gunicorn { .. }).then_some("{venv}/bin/python, else python3 from PATH"),
        kinds_own: true,
    },
    Implied {
        key: "java.home",
        value: |s| matches!(s.kind, Kind::Jvm { .. }).then_some("that of the java in PATH"),
        kinds_own: true,
    },
    Implied {
        key: "ready",
        value: |s| match s.kind {
            Kind::Gunicorn { .. } => Some("all of gunicorn's workers have booted"),
            _ if s.ready.by.is_empty() => Some("it has run for a second"),
            _ => None,
        },
        kinds_own: true,
    },
    Implied {
        key: "stop.grace",
        value: |s| matches!(s.kind, Kind::Gunicorn { .. }).then_some("gunicorn's graceful_timeout and 5s"),
        kinds_own: true,
    },
];

fn is_kinds_own(row: &Row, service: &Service) -> bool {
    let unset = matches!(service.kind, Kind::Gunicorn { workers: Workers::Unset, .. });
    row.key == diff::HEAP || IMPLIED.iter().any(|i| i.kinds_own && i.key == row.key) || (row.key == "workers" && unset)
}

/// What a specification spells out, and behind that what it implies.
fn rows(service: &Service, scaled: Option<u32>) -> Vec<Row> {
    let mut rows = diff::rows(service);
    // Only a plain command has them.
    if !matches!(service.kind, Kind::Command { .. }) {
        rows.retain(|row| row.key != "instances");
    }
    if let (Some(count), Some(row)) = (scaled, rows.iter_mut().find(|row| row.key == "workers")) {
        row.value = count.to_string();
    }
    for implied in IMPLIED {
        if rows.iter().any(|row| row.key == implied.key) {
            continue;
        }
        let Some(value) = (implied.value)(service) else { continue };
        rows.push(Row { key: implied.key.to_owned(), value: value.to_owned(), needs: Needs::Nothing });
    }
    rows
}

/// Where a key stands in a service's file.
pub fn position(text: &str, key: &str) -> Option<Position> {
    let places = Places::of(text);
    Some(places.file.position(find(&places.table, key)?))
}

/// Where the keys of a file stand.
struct Places<'t> {
    file: File<'t>,
    table: DeTable<'t>,
}

impl<'t> Places<'t> {
    fn of(text: &'t str) -> Places<'t> {
        let (table, _) = DeTable::parse_recoverable(text);
        Places { file: File::new(String::new(), text, &suggest::SERVICE), table: table.into_inner() }
    }

    /// The line of a key as rows name it.
    fn line(&self, key: &str) -> Option<u32> {
        Some(self.file.position(find(&self.table, key)?).line)
    }
}

/// Names of variables and headers may have dots in them: what is left of the key is looked for as a whole first.
fn find(table: &DeTable<'_>, key: &str) -> Option<Span> {
    if let Some((found, _)) = table.get_key_value(key) {
        return Some(found.span().into());
    }
    key.match_indices('.').find_map(|(dot, _)| match table.get(&key[..dot])?.get_ref() {
        DeValue::Table(below) => find(below, &key[dot + 1..]),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    const FILE: &str = "kind = 'gunicorn'\napp = 'a:b'\nroot = '/srv/a'\nworkers = 2\n\n[sockets.http]\nlisten = '1.1.1.1:1'\n\n[environment]\n'A.B' = '1'\nAPI_TOKEN = 'x'\nOTHER_TOKEN = '{env.T}'\n[restart]\nlimit = { failures = 3 }\n";

    fn shown(running: &str, scaled: Option<u32>, file: Option<&str>) -> Vec<String> {
        let (service, parsed) = (testing::service(running), file.map(testing::service));
        let now = InForce { service: &service, scaled, kept: false };
        let all = settings(&now, parsed.as_ref().zip(file));
        let word = |s: &Setting| {
            let line = s.line.map(|l| format!(":{l}")).unwrap_or_default();
            let differs =
                s.differs.as_ref().map(|d| format!(" → {} by {}", d.in_file.as_deref().unwrap_or("-"), d.needs));
            format!(
                "{} = {} ({:?}{line}){}",
                s.key,
                s.value.as_deref().unwrap_or("-"),
                s.origin,
                differs.unwrap_or_default()
            )
        };
        all.iter().map(word).collect()
    }

    #[test]
    fn each_value_has_its_place() {
        let all = shown(FILE, None, Some(FILE));
        for line in [
            "kind = gunicorn (File:1)",
            "workers = 2 (File:4)",
            "sockets.http.listen = 1.1.1.1:1 (File:7)",
            "sockets.http.backlog = 2048 (Default)",
            "environment.A.B = 1 (File:10)",
            "environment.API_TOKEN = (hidden) (File:11)",
            "environment.OTHER_TOKEN = {env.T} (File:12)",
            "restart.limit.failures = 3 (File:14)",
            "restart.limit.within = 5m (Default)",
            "user = svd's own user (Default)",
            "directory = {release} (Default)",
            "stop.grace = gunicorn's graceful_timeout and 5s (Kind)",
            "reload.overlap = true (Default)",
        ] {
            assert!(all.iter().any(|one| one == line), "{line} is not in\n{}", all.join("\n"));
        }
        assert!(!all.iter().any(|line| line.starts_with("instances") || line.contains('→')), "{}", all.join("\n"));
    }

    #[test]
    fn what_an_update_would_change_is_beside_it() {
        let file = FILE.replace("workers = 2", "workers = 3\nuser = 'b'").replace("API_TOKEN = 'x'", "API_TOKEN = 'y'");
        let all = shown(FILE, None, Some(&file));
        for line in [
            "workers = 2 (Earlier:4) → 3 by scale",
            "user = svd's own user (Earlier:5) → b by reload",
            "environment.API_TOKEN = (hidden) (Earlier:12) → (hidden) by reload",
        ] {
            assert!(all.iter().any(|one| one == line), "{line} is not in\n{}", all.join("\n"));
        }
        let gone = shown(&file, None, Some(FILE));
        assert!(gone.iter().any(|line| line == "user = b (Earlier) → - by reload"), "{}", gone.join("\n"));
    }

    #[test]
    fn scaled_workers_are_told() {
        let all = shown(FILE, Some(7), Some(FILE));
        assert!(all.iter().any(|line| line == "workers = 7 (Scale:4)"), "{}", all.join("\n"));
        assert!(shown(FILE, None, None).iter().all(|line| line.contains("(Earlier)")));
    }
}
