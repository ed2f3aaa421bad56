//! State files that real svds have left, in each format there was (`tests/state/record` makes them), read by this one.

use super::Found;
use crate::core::{Machine, Phase, Role, Time, WorkerState};
use crate::daemon::state::file;
use std::collections::BTreeMap;

const FILES: [(&str, &[u8]); 2] =
    [("1", include_bytes!("../../../tests/state/format-1")), ("2", include_bytes!("../../../tests/state/format-2"))];

fn found(bytes: &[u8]) -> Found {
    let entries = file::parse(bytes).expect("a known format");
    Found::of(&entries).unwrap_or_else(|why| panic!("{why}"))
}

#[test]
fn the_newest_format_has_its_file() {
    let (_, newest) = FILES.last().expect("one at least");
    assert!(file::with_payload(b"{}").starts_with(&newest[..16]), "tests/state wants a file of the new format, too");
    for (number, bytes) in FILES {
        assert!(bytes.starts_with(format!("airdock state {number}\n").as_bytes()));
    }
}

#[test]
fn nothing_of_a_file_in_an_older_format_is_lost() {
    for (format, bytes) in FILES {
        let found = found(bytes);
        let names: BTreeMap<&str, _> = found.specs.iter().map(|(id, spec)| (&*spec.name, *id)).collect();
        let all = ["disabled", "drained", "flap", "halted", "late", "pair", "socket", "web"];
        assert_eq!(names.keys().copied().collect::<Vec<_>>(), all, "format {format}");
        let unit = |name: &str| &found.units[&names[name]];
        assert!(!unit("disabled").enabled && unit("halted").enabled && unit("drained").drained);
        assert_eq!((unit("socket").cookies.len(), unit("web").cookies.len(), unit("pair").cookies.len()), (1, 1, 0));
        let of = |name: &str| found.processes.values().filter(|p| p.generation.service == names[name]).count();
        assert_eq!(["pair", "late", "web", "halted", "flap"].map(of), [3, 1, 1, 0, 0], "format {format}");
        assert!(found.processes.values().all(|p| p.started.is_some() && p.group.is_some()));
        let web = found.generations.values().find(|g| g.id.service == names["web"]).expect("a generation");
        let gunicorn = web.gunicorn.as_ref().expect("what is gunicorn's");
        assert!(gunicorn.committed && gunicorn.ready.len() == 2 && gunicorn.workers == 2);
        let drained = found.generations.values().find(|g| g.id.service == names["drained"]).expect("a generation");
        assert_eq!(drained.id.number, 2);
        for id in found.generations.keys() {
            assert!(found.plans.contains_key(id), "format {format}: the plan of {id:?}");
        }
    }
}

#[test]
fn a_machine_goes_on_from_a_file_in_an_older_format() {
    for (format, bytes) in FILES {
        let found = found(bytes);
        let mut machine = Machine::restore(1, 0, Time(1), found.saved.into_values().collect());
        let web = machine.named("web").expect("a service");
        let committed = web.committed().expect("a generation");
        assert_eq!((web.phase.clone(), committed.role, committed.id.number), (Phase::Active, Role::Committed, 1));
        assert!(web.policy.overlap && !machine.named("pair").expect("a service").policy.overlap, "format {format}");
        assert_eq!(machine.named("pair").map(|s| s.scale), Some(Some(3)));
        let failed = &machine.named("flap").expect("a service").phase;
        assert!(matches!(failed, Phase::Failed { reason, .. } if reason.contains("exited with code 1")), "{failed:?}");
        for name in ["halted", "disabled"] {
            let service = machine.named(name).expect("a service");
            assert_eq!((service.phase.clone(), service.wanted), (Phase::Stopped, false));
        }
        let booting = machine.workers().values().filter(|w| matches!(w.state, WorkerState::Booting { .. })).count();
        assert_eq!(booting, 1, "format {format}: late");
        let actions = machine.resume();
        assert!(!actions.iter().any(|a| matches!(a, crate::core::Action::Spawn { .. })), "{actions:?}");
    }
}
