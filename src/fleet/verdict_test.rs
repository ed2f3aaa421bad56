use super::*;

const BAKE: Duration = Duration::from_secs(300);

fn counts(requests: u64, errors: u64) -> Counts {
    Counts { requests, errors }
}

fn tick(canary: [u64; 2], control: [u64; 2]) -> Tick {
    Tick { canary: canary.into(), control: control.into(), ..Tick::default() }
}

fn judge(baseline: Baseline) -> Judge {
    Judge::new(Settings::default(), baseline, BAKE)
}

/// The same tick every 5 s, until something else than going on is said.
fn run(judge: &mut Judge, tick: Tick) -> Verdict {
    for n in 1..=240 {
        let verdict = judge.handle_tick(TICK * n, tick).clone();
        if verdict.outcome != Outcome::GoOn {
            return verdict;
        }
    }
    panic!("no end: {:?}", judge.record.verdict);
}

#[test]
fn what_is_the_same_passes_when_the_bake_time_is_over() {
    let verdict = run(&mut judge(Baseline::Control), tick([100, 1], [900, 9]));
    assert_eq!((verdict.outcome, verdict.at_ms), (Outcome::Pass, 300_000));
    assert!(verdict.evidence < 1.0, "{}", verdict.evidence);
}

#[test]
fn what_only_fails_is_taken_back_after_30_s_and_not_before() {
    let verdict = run(&mut judge(Baseline::Control), tick([100, 100], [900, 1]));
    assert_eq!((verdict.outcome, verdict.at_ms), (Outcome::TakeBack(Cause::Errors), 30_000));
    assert!((99.9..101.0).contains(&verdict.evidence), "{}", verdict.evidence);
    assert_eq!((verdict.canary, verdict.control), (counts(600, 600), counts(5400, 6)));
}

#[test]
fn a_burst_of_errors_is_no_verdict() {
    let mut judge = judge(Baseline::Control);
    for n in 1..=60 {
        let errors = if (20..25).contains(&n) { 100 } else { 0 };
        let verdict = judge.handle_tick(TICK * n, tick([100, errors], [900, 1]));
        let expected = if n < 60 { Outcome::GoOn } else { Outcome::Pass };
        assert_eq!(verdict.outcome, expected, "tick {n}: {verdict:?}");
    }
}

#[test]
fn a_bake_time_shorter_than_a_verdict_takes_is_stretched_by_what_looks_bad() {
    let short = || Judge::new(Settings::default(), Baseline::Control, TICK);
    let verdict = run(&mut short(), tick([1000, 10], [9000, 90]));
    assert_eq!((verdict.outcome, verdict.at_ms), (Outcome::Pass, 5000));
    let verdict = run(&mut short(), tick([1000, 500], [9000, 90]));
    assert_eq!((verdict.outcome, verdict.at_ms), (Outcome::TakeBack(Cause::Errors), 30_000));
    // A burst is over soon.
    let mut judge = short();
    assert_eq!(judge.handle_tick(TICK, tick([1000, 100], [9000, 90])).outcome, Outcome::GoOn);
    let verdict = run(&mut judge, tick([1000, 10], [9000, 90]));
    assert!(verdict.outcome == Outcome::Pass && verdict.at_ms < 35_000, "{verdict:?}");
}

#[test]
fn an_outage_that_hits_both_is_nobodys_fault() {
    let verdict = run(&mut judge(Baseline::Control), tick([100, 70], [900, 630]));
    assert_eq!(verdict.outcome, Outcome::Pass);
}

#[test]
fn a_difference_that_does_not_matter_takes_nothing_back() {
    // Ten times the control's rate, and all evidence there is: but 0.1 percentage points only.
    let small = tick([10_000, 11], [90_000, 10]);
    let mut certain = judge(Baseline::Control);
    let verdict = run(&mut certain, small);
    assert_eq!(verdict.outcome, Outcome::Pass);
    assert!(verdict.evidence > 1e6, "{}", verdict.evidence);
    let settings = Settings { min_difference: 0.0005, ..Settings::default() };
    let verdict = run(&mut Judge::new(settings, Baseline::Control, BAKE), small);
    assert_eq!(verdict.outcome, Outcome::TakeBack(Cause::Errors));
}

#[test]
fn what_is_tolerated_is_a_setting() {
    let thrice = tick([1000, 30], [9000, 90]);
    assert_eq!(run(&mut judge(Baseline::Control), thrice).outcome, Outcome::TakeBack(Cause::Errors));
    let lenient = Settings { tolerate: 4.0, ..Settings::default() };
    assert_eq!(run(&mut Judge::new(lenient, Baseline::Control, BAKE), thrice).outcome, Outcome::Pass);
}

#[test]
fn too_few_requests_extend_the_bake_time_three_times() {
    for (too_few, end) in [
        (TooFew::Pause, Outcome::Pause),
        (TooFew::Pass, Outcome::Pass),
        (TooFew::Fail, Outcome::TakeBack(Cause::TooFew)),
    ] {
        let mut judge = Judge::new(Settings { too_few, ..Settings::default() }, Baseline::Control, BAKE);
        let seen: Vec<(u64, Outcome)> = (1..=250)
            .map(|n| judge.handle_tick(TICK * n, tick([1, 0], [9, 0])).clone())
            .filter(|v| v.outcome != Outcome::GoOn)
            .map(|v| (v.at_ms / 1000, v.outcome))
            .collect();
        let extended = [(300, Outcome::Extend(1)), (600, Outcome::Extend(2)), (900, Outcome::Extend(3))];
        assert_eq!(seen[..3], extended);
        assert!(seen[3..].iter().all(|s| *s == (1200, end.clone())), "it stays: {seen:?}");
    }
}

#[test]
fn an_extension_that_brings_enough_requests_passes() {
    let verdict = loop_over_extensions(tick([4, 0], [36, 0]));
    assert_eq!((verdict.outcome, verdict.at_ms), (Outcome::Pass, 600_000));
}

fn loop_over_extensions(tick: Tick) -> Verdict {
    let mut judge = judge(Baseline::Control);
    let mut last = None;
    for n in 1..=240 {
        let verdict = judge.handle_tick(TICK * n, tick).clone();
        if !matches!(verdict.outcome, Outcome::GoOn | Outcome::Extend(_)) {
            return verdict;
        }
        last = Some(verdict);
    }
    panic!("no end: {last:?}");
}

#[test]
fn nothing_passes_beside_a_control_without_requests() {
    assert_eq!(loop_over_extensions(tick([100, 20], [0, 0])).outcome, Outcome::Pause);
    assert_eq!(loop_over_extensions(tick([0, 0], [900, 0])).outcome, Outcome::Pause);
}

#[test]
fn counts_that_cannot_be_relied_on_do_not_count() {
    let flood = Tick { unreliable: true, ..tick([100, 100], [900, 0]) };
    assert_eq!(loop_over_extensions(flood).outcome, Outcome::Pause);
}

#[test]
fn what_nobody_could_see_does_not_pass_however_few_requests_are_enough() {
    let settings = |too_few| Settings { min_requests: 0, too_few, ..Settings::default() };
    let blind = Tick { unknown: true, ..Tick::default() };
    let ends = |baseline, too_few, ticks: &dyn Fn(u32) -> Tick| {
        let mut judge = Judge::new(settings(too_few), baseline, TICK * 10);
        let mut all = (1..=60).map(|n| judge.handle_tick(TICK * n, ticks(n)).outcome.clone());
        let end = all.find(|outcome| !matches!(outcome, Outcome::GoOn | Outcome::Extend(_))).expect("an end");
        assert!(judge.record.agrees(), "it is judged again alike");
        (end, judge.record.verdict.at_ms / 1000)
    };
    let alone = Baseline::Alone { yesterday: Counts::default() };
    for baseline in [Baseline::Control, alone] {
        assert_eq!(ends(baseline, TooFew::Pause, &|_| Tick::default()), (Outcome::Pass, 50), "known to be none");
        assert_eq!(ends(baseline, TooFew::Pause, &|_| blind), (Outcome::Pause, 200));
        assert_eq!(ends(baseline, TooFew::Fail, &|_| blind).0, Outcome::TakeBack(Cause::TooFew));
        assert_eq!(ends(baseline, TooFew::Pass, &|_| blind).0, Outcome::Pass, "whoever says so");
        // It answers at first, or comes back.
        assert_eq!(ends(baseline, TooFew::Pause, &|n| if n > 4 { blind } else { Tick::default() }).0, Outcome::Pause);
        assert_eq!(
            ends(baseline, TooFew::Pause, &|n| if n < 9 { blind } else { Tick::default() }),
            (Outcome::Pass, 100)
        );
        assert_eq!(
            ends(baseline, TooFew::Pause, &|n| if n == 3 { blind } else { Tick::default() }),
            (Outcome::Pass, 50)
        );
    }
    assert_eq!(ends(Baseline::Health, TooFew::Pause, &|_| blind), (Outcome::Pass, 50), "it has no requests");
}

#[test]
fn an_incident_takes_back_at_once() {
    let mut judge = judge(Baseline::Health);
    assert_eq!(judge.handle_tick(TICK, Tick::default()).outcome, Outcome::GoOn);
    let incident = Incident { host: "web-1".to_owned(), what: "worker 1 crashed 10 times in 5m".to_owned() };
    let expected = Outcome::TakeBack(Cause::Incident(incident.clone()));
    assert_eq!(judge.handle_incident(Duration::from_secs(7), incident).outcome, expected);
    assert_eq!(judge.handle_tick(BAKE, Tick::default()).outcome, expected, "it stays");
    assert!(judge.record.agrees());
}

#[test]
fn what_answers_no_requests_is_judged_by_its_health() {
    let verdict = run(&mut judge(Baseline::Health), Tick::default());
    assert_eq!((verdict.outcome, verdict.at_ms), (Outcome::Pass, 300_000));
}

#[test]
fn a_host_alone_is_compared_with_yesterday() {
    let alone = |requests, errors| judge(Baseline::Alone { yesterday: counts(requests, errors) });
    let bad = tick([100, 5], [0, 0]);
    let verdict = run(&mut alone(100_000, 100), bad);
    assert_eq!(verdict.outcome, Outcome::TakeBack(Cause::Errors), "5 % where 1 % is allowed");
    assert_eq!(verdict.compared_with, 0.01);
    assert_eq!(run(&mut alone(100_000, 3_000), bad).outcome, Outcome::Pass, "5 % where 6 % is allowed");
    assert_eq!(run(&mut alone(10, 10), bad).outcome, Outcome::TakeBack(Cause::Errors), "ten requests say nothing");
    let mend = run(&mut alone(100_000, 100_000), tick([100, 90], [0, 0]));
    assert_eq!(mend.outcome, Outcome::Pass, "what was broken may be broken");
    let verdict = run(&mut alone(100_000, 0), tick([100, 100], [0, 0]));
    assert_eq!((verdict.outcome, verdict.at_ms), (Outcome::TakeBack(Cause::Errors), 30_000));
}

#[test]
fn what_became_slow_is_taken_back_when_its_caches_are_warm() {
    let slow = |canary, control| Tick { slow: Some([canary, control]), ..tick([100, 0], [900, 0]) };
    let verdict = run(&mut judge(Baseline::Control), slow(60, 20));
    assert_eq!(verdict.outcome, Outcome::TakeBack(Cause::Slow));
    assert!((90_000..=120_000).contains(&verdict.at_ms), "{}", verdict.at_ms);
    assert_eq!(run(&mut judge(Baseline::Control), slow(3, 20)).outcome, Outcome::Pass, "3 % and 2.2 %");
    let mut cold = judge(Baseline::Control);
    for n in 1..=60 {
        let tick = if n <= 12 { slow(60, 20) } else { slow(2, 20) };
        assert!(!matches!(cold.handle_tick(TICK * n, tick).outcome, Outcome::TakeBack(_)), "tick {n}");
    }
}

#[test]
fn what_became_slow_alone_is_compared_with_what_was_slow_before() {
    let slow = |canary| Tick { slow: Some([canary, 0]), ..tick([100, 0], [0, 0]) };
    let mut alone = judge(Baseline::Alone { yesterday: counts(100_000, 0) });
    let verdict = run(&mut alone, slow(60));
    assert_eq!(verdict.outcome, Outcome::TakeBack(Cause::Slow));
    assert!((90_000..=120_000).contains(&verdict.at_ms), "{}", verdict.at_ms);
    assert!(alone.record().agrees());
    let mut alone = judge(Baseline::Alone { yesterday: counts(100_000, 0) });
    assert_eq!(run(&mut alone, slow(9)).outcome, Outcome::Pass, "a tenth may be");
}

#[test]
fn ticks_that_come_too_soon_count_as_one() {
    let mut judge = judge(Baseline::Control);
    let second = Duration::from_secs(1);
    for n in 1..30 {
        let verdict = judge.handle_tick(second * n, tick([20, 20], [180, 0]));
        assert_eq!(verdict.outcome, Outcome::GoOn, "after {n} s");
    }
    let verdict = judge.handle_tick(second * 30, tick([20, 20], [180, 0]));
    assert_eq!((&verdict.outcome, verdict.canary), (&Outcome::TakeBack(Cause::Errors), counts(600, 600)));
}

#[test]
fn impossible_counts_are_bounded() {
    let mut judge = judge(Baseline::Control);
    let odd = Tick { slow: Some([u64::MAX; 2]), ..tick([5, u64::MAX], [u64::MAX, u64::MAX]) };
    for n in 1..=60 {
        let verdict = judge.handle_tick(TICK * n, odd);
        assert!(verdict.evidence.is_finite() && verdict.slow_evidence.is_finite(), "{verdict:?}");
    }
}

#[test]
fn a_record_is_judged_again() {
    let mut judge = judge(Baseline::Control);
    for n in 1..=40_u64 {
        let slow = n.is_multiple_of(2).then_some([n % 7, n % 5]);
        let tick = Tick { slow, ..tick([90 + n % 13, n % 2], [900, n % 9]) };
        judge.handle_tick(TICK * n as u32, tick);
    }
    let text = serde_json::to_string(judge.record()).unwrap();
    let back: Record = serde_json::from_str(&text).unwrap();
    assert_eq!(&back, judge.record());
    assert!(back.agrees());
    let mut forged = back.clone();
    forged.inputs.truncate(39);
    assert!(!forged.agrees());
    let mut forged = back;
    forged.verdict.outcome = Outcome::Pass;
    assert!(!forged.agrees());
}

/// Journals keep records for years: this text must be read, and judged, as it is.
#[test]
fn the_format_stays() {
    let mut judge = Judge::new(Settings::default(), Baseline::Alone { yesterday: counts(1000, 2) }, TICK);
    judge.handle_tick(TICK, Tick { unreliable: true, slow: Some([1, 2]), ..tick([4, 1], [0, 0]) });
    judge.handle_incident(TICK * 2, Incident { host: "web-0".to_owned(), what: "dead".to_owned() });
    let text = r#"{"settings":{"false_alarm":0.01,"tolerate":1.5,"min_difference":0.002,"min_requests":300,"too_few":"pause"},"baseline":{"alone":{"yesterday":[1000,2]}},"bake_ms":5000,"inputs":[{"at_ms":5000,"said":{"tick":{"canary":[4,1],"control":[0,0],"slow":[1,2],"unreliable":true}}},{"at_ms":10000,"said":{"incident":{"host":"web-0","what":"dead"}}}],"verdict":{"outcome":{"take-back":{"incident":{"host":"web-0","what":"dead"}}},"at_ms":10000,"evidence":1.0,"slow_evidence":1.0,"canary":[0,0],"control":[0,0],"compared_with":0.01}}"#;
    assert_eq!(serde_json::to_string(judge.record()).unwrap(), text);
    let back: Record = serde_json::from_str(text).unwrap();
    assert!(back.agrees());
}

#[test]
fn settings_out_of_range_are_refused() {
    assert_eq!(Settings::default().check(), Ok(()));
    for (odd, word) in [
        (Settings { false_alarm: 0.0, ..Settings::default() }, "false_alarm"),
        (Settings { false_alarm: f64::NAN, ..Settings::default() }, "false_alarm"),
        (Settings { tolerate: 0.5, ..Settings::default() }, "tolerate"),
        (Settings { min_difference: 20.0, ..Settings::default() }, "min_difference"),
    ] {
        assert!(odd.check().unwrap_err().starts_with(word), "{odd:?}");
    }
}
