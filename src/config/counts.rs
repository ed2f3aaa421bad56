//! `[counts]`: how requests are counted where the kind does not do it by itself.

use super::kind::KindName;
use super::scope::Scope;
use super::section::{Item, Schema, Section};
use super::source::Problem;
use super::spec::Counts;

pub(super) static SCHEMA: Schema = Schema { name: "[counts]", keys: &["statsd"] };

pub(super) fn decode(top: &Section<'_>, scope: &Scope<'_>) -> Counts {
    let section = top.section("counts", &SCHEMA);
    Counts { statsd: section.get("statsd", |item| statsd(item, scope)).unwrap_or(false) }
}

fn statsd(item: &Item<'_>, scope: &Scope<'_>) -> Result<bool, Problem> {
    let asked = item.boolean()?;
    match scope.kind {
        Some(KindName::Gunicorn) if asked => Err(item
            .problem("gunicorn's requests are counted without statsd")
            .help("remove it; a statsd_host of gunicorn's own configuration is left alone")),
        _ => Ok(asked),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, helps, service};

    #[test]
    fn statsd_is_asked_for() {
        let command = "kind = 'command'\ncommand = ['a']\n";
        assert!(!service(command).counts.statsd);
        assert!(service(&format!("{command}[counts]\nstatsd = true")).counts.statsd);
        assert!(service("kind = 'jvm'\njar = '/a.jar'\n[counts]\nstatsd = true").counts.statsd);
        assert_eq!(helps(&format!("{command}[counts]\nstatsd = 'yes'")), ["write true or false, without quotes"]);
        let gunicorn = "kind = 'gunicorn'\napp = 'a:b'\n[counts]\nstatsd = ";
        assert!(!service(&format!("{gunicorn}false")).counts.statsd);
        assert_eq!(errors(&format!("{gunicorn}true")), ["gunicorn's requests are counted without statsd"]);
    }
}
