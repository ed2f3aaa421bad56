use super::*;
use crate::fleet::rollout::plan::MigrateOn;
use crate::fleet::rollout::sim::{limits, plan};
use crate::fleet::verdict::{Baseline, Judge, Settings, TICK, Tick};
use std::time::Duration;

fn entries(whats: Vec<What>) -> Vec<Entry> {
    whats.into_iter().map(|what| Entry { at: 1_800_000_000, number: 7, what }).collect()
}

fn planned(after: bool) -> What {
    let migration = Migration { on: MigrateOn::One, compatible: true, after };
    What::Planned(Arc::new(plan(10, 0, Some(migration), limits(4, 1))))
}

fn passed(wave: usize) -> What {
    let mut judge = Judge::new(Settings::default(), Baseline::Health, TICK);
    judge.handle_tick(Duration::from_secs(5), Tick::default());
    What::Judged { wave, record: Box::new(judge.record().clone()) }
}

fn host() -> Option<Box<str>> {
    Some("web-0000".into())
}

fn whole() -> Vec<What> {
    vec![
        planned(true),
        What::Taken { by: "jane".into() },
        What::Prepared,
        What::Migrating { host: host() },
        What::Migrated { ran: true },
        What::Begun { wave: 0 },
        passed(0),
        What::Begun { wave: 1 },
        passed(1),
        What::Begun { wave: 2 },
        What::Skipped { host: "web-0007".into(), why: "gone".into() },
        passed(2),
        What::Begun { wave: 3 },
        What::Confirming,
        What::Completing { host: "web-0000".into() },
        What::Completed { error: None },
        What::Ended { outcome: Outcome::Done { remarks: vec![] }, places: vec![] },
    ]
}

#[test]
fn a_whole_journal_is_read_to_any_point() {
    let whole = entries(whole());
    for length in 0..=whole.len() {
        Progress::replay(&whole[..length]).unwrap_or_else(|why| panic!("{length}: {why}"));
    }
    let progress = Progress::replay(&whole).unwrap();
    assert_eq!(progress.stage, Stage::Ended);
    assert!(progress.begun == Some(3) && progress.migrated && !progress.is_one_way());
    assert_eq!(progress.skipped.len(), 1);
}

/// Leaving any entry out that others rest on, or writing any twice, is noticed.
#[test]
fn an_entry_that_may_not_follow_is_refused() {
    let whole = whole();
    for gap in 0..whole.len() - 1 {
        let mut list = whole.clone();
        let gone = list.remove(gap);
        let free = matches!(gone, What::Taken { .. } | What::Skipped { .. });
        assert_eq!(Progress::replay(&entries(list)).is_ok(), free, "without {gone:?}");
    }
    for twice in 0..whole.len() {
        let mut list = whole.clone();
        list.insert(twice, whole[twice].clone());
        let free = matches!(whole[twice], What::Taken { .. });
        assert_eq!(Progress::replay(&entries(list)).is_ok(), free, "twice {:?}", whole[twice]);
    }
}

#[test]
fn nothing_goes_back_after_the_point_of_no_return() {
    let confirming = whole().iter().position(|w| *w == What::Confirming).unwrap();
    for (n, _) in whole().iter().enumerate().skip(1) {
        for late in [
            What::Failing { cause: "x".into(), faulty: true },
            What::Paused { why: "x".into() },
            What::Restarted { why: "x".into() },
        ] {
            let mut list = whole();
            list.truncate(n);
            list.push(late.clone());
            let restarts = matches!(late, What::Restarted { .. });
            let begun = whole()[..n].iter().any(|w| matches!(w, What::Begun { .. }));
            let expected = n <= confirming && (!restarts || begun);
            assert_eq!(Progress::replay(&entries(list)).is_ok(), expected, "{late:?} after {n}");
        }
    }
}

#[test]
fn what_failed_ends_so() {
    let failing = || What::Failing { cause: "x".into(), faulty: true };
    let ended = |outcome| What::Ended { outcome, places: vec![] };
    let (back, failed) = (Outcome::TakenBack { cause: "x".into() }, Outcome::Failed { cause: "x".into() });
    let early = |end| Progress::replay(&entries(vec![planned(false), failing(), ended(end)])).is_ok();
    assert!(early(failed.clone()) && !early(back.clone()) && !early(Outcome::Done { remarks: vec![] }));
    let late = |end| {
        let mut list = whole();
        list.truncate(6);
        list.extend([failing(), What::Taken { by: "joe".into() }, ended(end)]);
        Progress::replay(&entries(list)).is_ok()
    };
    assert!(late(back) && !late(failed));
    let waves = entries(vec![planned(false), failing(), What::Begun { wave: 0 }]);
    assert!(Progress::replay(&waves).unwrap_err().contains("entry 2"), "it says which");
}

#[test]
fn a_pause_stops_everything_but_people() {
    let mut paused = whole();
    paused.truncate(6);
    paused.push(What::Paused { why: "x".into() });
    let then = |what: What| {
        let mut list = paused.clone();
        list.push(what);
        Progress::replay(&entries(list)).is_ok()
    };
    assert!(!then(passed(0)) && !then(What::Paused { why: "y".into() }));
    assert!(
        then(What::Resumed)
            && then(What::Promoted { wave: 0 })
            && then(What::Failing { cause: "x".into(), faulty: true })
    );
    assert!(!then(What::Promoted { wave: 1 }));
}

#[test]
fn numbers_never_go_back() {
    let mut list = entries(whole());
    list[3].number = 6;
    assert!(Progress::replay(&list).unwrap_err().contains("entry 3"));
}

#[test]
fn the_format_stays() {
    let text = r#"{"at":1800000000,"number":7,"what":{"migrating":{"host":"web-0000"}}}"#;
    let entry = &entries(whole())[3];
    assert_eq!(serde_json::to_string(entry).unwrap(), text);
    for entry in entries(whole()) {
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<Entry>(&text).unwrap(), entry, "{text}");
    }
}
