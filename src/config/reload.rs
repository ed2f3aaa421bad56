//! `[reload]`: how one generation follows another.

use std::time::Duration;

use super::section::{Item, Schema, Section};
use super::spec::Reload;
use super::units;

pub(super) static SCHEMA: Schema = Schema { name: "[reload]", keys: &["overlap", "drain", "max_draining"] };

const DRAIN: Duration = Duration::from_secs(600);
const MAX_DRAINING: u32 = 10;

/// Processes that share svd's sockets run side by side; others would fight over what they bind or lock.
pub(super) fn decode(top: &Section<'_>, has_sockets: bool) -> Reload {
    let section = top.section("reload", &SCHEMA);
    Reload {
        overlap: section.get("overlap", Item::boolean).unwrap_or(has_sockets),
        drain: section.get("drain", units::duration).unwrap_or(DRAIN),
        max_draining: section.get("max_draining", |item| item.count(1, 64)).unwrap_or(MAX_DRAINING),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{errors, service};
    use super::*;

    #[test]
    fn sockets_decide_about_overlap() {
        let base = "kind = 'command'\ncommand = ['a']\n";
        assert!(!service(base).reload.overlap);
        assert!(service(&format!("{base}[sockets.x]\nlisten = '1.1.1.1:1'")).reload.overlap);
        let reload = service(&format!("{base}[reload]\noverlap = true\ndrain = 0\nmax_draining = 1")).reload;
        assert_eq!(reload, Reload { overlap: true, drain: Duration::ZERO, max_draining: 1 });
        assert_eq!(errors(&format!("{base}[reload]\noverlap = 'no'\ndrain = 10\nmax_draining = 0")).len(), 3);
    }
}
