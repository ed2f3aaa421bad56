use super::*;

const NOW: Moment = Moment(1_000);
const LATER: Moment = Moment(61_000);

fn id(text: &str) -> ReleaseId {
    ReleaseId::new(text).expect("a name")
}

fn fence(number: u64, rollout: &str) -> Fence {
    Fence { number, rollout: rollout.into() }
}

fn lock_of(fence: Fence, until: Option<Moment>) -> Lock {
    Lock { fence, holder: "alice".into(), since: 0, until, message: "".into() }
}

fn on_trial(until: Moment) -> Wanted {
    Wanted { until, holds: false, rollback: None, configurations: None }
}

/// One with release `a` confirmed, `b` built, and the lock of rollout `r`.
fn app() -> (App, Fence) {
    let mut app = App::default();
    app.found(&id("a"), 1);
    app.staged(&id("b"), 2, About::default()).expect("new");
    app.built(&id("b"), None).expect("there");
    let r = fence(1, "r");
    app.lock(NOW, 5, lock_of(r.clone(), Some(LATER))).expect("free");
    (app, r)
}

fn serving(app: &App) -> &str {
    app.serving().map_or("", ReleaseId::as_str)
}

#[test]
fn a_release_goes_on_trial_and_is_confirmed() {
    let (mut app, r) = app();
    app.begin_switch(NOW, &r, &id("b"), on_trial(LATER)).expect("allowed");
    assert_eq!(serving(&app), "a", "it does not serve yet");
    assert!(matches!(app.confirm(NOW, &r), Err(Refusal::Busy(_))));
    app.switched(Ok(()));
    assert_eq!((serving(&app), app.confirmed.as_ref()), ("b", Some(&id("a"))));
    assert_eq!(app.previous(), Some(&id("a")));
    assert_eq!(app.confirm(NOW, &r), Ok(id("b")));
    assert_eq!(app.confirm(NOW, &r), Ok(id("b")), "asked again");
    assert_eq!((app.trial.as_ref(), app.confirmed.as_ref()), (None, Some(&id("b"))));
}

#[test]
fn a_lease_that_runs_out_takes_it_back() {
    let (mut app, r) = app();
    app.begin_switch(NOW, &r, &id("b"), on_trial(LATER)).expect("allowed");
    app.switched(Ok(()));
    assert_eq!(app.expire(Moment(60_999)), Expired::Nothing);
    app.renew(NOW, &r, Moment(70_000)).expect("ours");
    assert_eq!((app.deadline(), app.expire(LATER)), (Some(Moment(70_000)), Expired::Nothing));
    assert_eq!(app.expire(Moment(70_000)), Expired::TakeBack);
    assert_eq!(app.lock, None, "it has run out as well");
    let back = app.begin_return(None).expect("idle").expect("on trial");
    assert_eq!((back.to, back.from), (Some(id("a")), Some(id("b"))));
    app.switched(Ok(()));
    assert_eq!((serving(&app), app.trial.as_ref()), ("a", None));
    let later = fence(2, "s");
    app.lock(LATER, 0, lock_of(later.clone(), Some(Moment(99_000)))).expect("free again");
    app.begin_switch(LATER, &later, &id("b"), on_trial(Moment(99_000))).expect("nobody has found it bad");
    app.switched(Ok(()));
    app.begin_return(Some("it is slow")).expect("idle").expect("on trial");
    app.switched(Ok(()));
    let again = app.begin_switch(LATER, &later, &id("b"), on_trial(Moment(99_000)));
    assert!(matches!(again, Err(Refusal::Not(_))), "it has failed");
    let (mut app, r) = self::app();
    app.begin_switch(NOW, &r, &id("b"), on_trial(LATER)).expect("allowed");
    app.switched(Err("it does not boot".into()));
    assert_eq!((serving(&app), &app.releases[&id("b")].state), ("a", &State::Failed("it does not boot".into())));
}

#[test]
fn what_an_incompatible_migration_came_with_is_held() {
    let (mut app, r) = app();
    let wanted = Wanted { holds: true, ..on_trial(LATER) };
    app.begin_switch(NOW, &r, &id("b"), wanted).expect("allowed");
    app.switched(Ok(()));
    assert!(matches!(app.expire(LATER), Expired::Holds(_)));
    assert_eq!((app.expire(LATER), app.deadline()), (Expired::Nothing, None), "told once");
    assert!(!app.booted());
    assert_eq!(serving(&app), "b");
}

#[test]
fn a_boot_starts_what_was_confirmed() {
    let (mut app, r) = app();
    app.begin_switch(NOW, &r, &id("b"), on_trial(LATER)).expect("allowed");
    let mut in_switch = app.clone();
    assert!(in_switch.booted());
    app.switched(Ok(()));
    assert!(app.booted());
    for app in [in_switch, app] {
        assert_eq!((serving(&app), app.lock.as_ref(), app.trial.as_ref()), ("a", None, None));
    }
}

#[test]
fn a_switch_that_svd_did_not_finish_is_undone() {
    let (mut app, r) = app();
    app.begin_switch(NOW, &r, &id("b"), on_trial(LATER)).expect("allowed");
    let undo = app.settle_switch().expect("under way");
    assert_eq!((undo.to.as_ref(), undo.from.as_ref()), (Some(&id("a")), Some(&id("b"))));
    assert_eq!(app.settle_switch(), Some(undo), "it may die again");
    app.switched(Ok(()));
    assert_eq!((serving(&app), app.switch.as_ref()), ("a", None));
    // One that follows a trial goes back to the trial.
    let (mut app, r) = self::app();
    app.staged(&id("c"), 3, About::default()).expect("new");
    app.begin_switch(NOW, &r, &id("b"), on_trial(LATER)).expect("allowed");
    app.switched(Ok(()));
    app.begin_switch(NOW, &r, &id("c"), on_trial(LATER)).expect("allowed");
    app.settle_switch().expect("under way");
    app.switched(Ok(()));
    assert_eq!((serving(&app), app.trial.as_ref().map(|t| &t.release)), ("b", Some(&id("b"))));
}

#[test]
fn a_switch_from_which_nobody_can_go_back_is_gone_on_with() {
    let (mut app, r) = app();
    app.begin_switch(NOW, &r, &id("b"), Wanted { holds: true, ..on_trial(LATER) }).expect("allowed");
    let on = app.settle_switch().expect("under way");
    assert_eq!((on.to.as_ref(), on.back), (Some(&id("b")), false));
    let mut booted = app.clone();
    app.switched(Ok(()));
    assert_eq!((serving(&app), app.trial.as_ref().map(|t| t.until)), ("b", Some(LATER)));
    // `current` may name either; a boot has ended the lease.
    assert!(booted.booted());
    assert_eq!((serving(&booted), booted.switch.as_ref()), ("b", None));
    assert!(matches!(booted.expire(NOW), Expired::Holds(_)));
}

#[test]
fn what_a_boot_could_not_undo_has_no_lease_any_more() {
    let (mut app, r) = app();
    app.begin_switch(NOW, &r, &id("b"), on_trial(LATER)).expect("allowed");
    app.switched(Ok(()));
    app.stranded();
    assert_eq!((app.lock.as_ref(), app.deadline()), (None, Some(Moment(0))));
    assert_eq!(app.expire(Moment(1)), Expired::TakeBack, "whatever the clock of that boot says");
}

#[test]
fn who_has_lost_the_lock_changes_nothing_any_more() {
    let (mut app, old) = app();
    let new = fence(2, "s");
    let taken = app.lock(NOW, 0, lock_of(new.clone(), Some(Moment(90_000))));
    assert!(matches!(taken, Err(Refusal::Locked(held)) if held.fence == old));
    app.lock(LATER, 0, lock_of(new.clone(), Some(Moment(90_000)))).expect("the old one has run out");
    assert_eq!(app.admit(LATER, &old), Err(Refusal::Fenced { highest: new.clone() }));
    assert_eq!(app.renew(LATER, &old, Moment(99_000)), Err(Refusal::Fenced { highest: new.clone() }));
    assert!(matches!(app.unlock(&old, false), Err(Refusal::Locked(_))));
    assert_eq!(app.unlock(&new, false), Ok(true));
    assert_eq!(app.admit(LATER, &new), Err(Refusal::NotLocked));
    let same = app.lock(LATER, 0, lock_of(fence(2, "t"), Some(Moment(90_000))));
    assert!(matches!(same, Err(Refusal::Fenced { .. })), "a number is granted once");
    app.lock(LATER, 0, lock_of(new, Some(Moment(90_000)))).expect("it may come back");
    let frozen = lock_of(fence(9, "freeze"), None);
    app.unlock(&fence(0, ""), true).expect("by force");
    app.lock(LATER, 0, frozen).expect("free");
    assert!(!app.booted());
    assert!(app.lock.is_some(), "people unlock what people have locked");
}

#[test]
fn a_rollout_takes_the_lock_over_from_itself_and_from_nobody_else() {
    let (mut app, r) = app();
    app.begin_switch(NOW, &r, &id("b"), on_trial(LATER)).expect("allowed");
    app.switched(Ok(()));
    let (next, other) = (fence(7, "r"), fence(8, "s"));
    assert!(matches!(app.lock(NOW, 0, lock_of(other.clone(), Some(LATER))), Err(Refusal::Locked(_))));
    app.lock(NOW, 0, lock_of(next.clone(), Some(LATER))).expect("it is the same rollout");
    assert_eq!(app.confirm(NOW, &r), Err(Refusal::Fenced { highest: next.clone() }));
    app.unlock(&next, false).expect("ours");
    let refused = app.lock(NOW, 0, lock_of(other, Some(LATER)));
    assert!(matches!(refused, Err(Refusal::Held(why)) if why.contains("rollout r is on trial")));
    app.lock(NOW, 0, lock_of(next.clone(), Some(LATER))).expect("it may come back");
    assert_eq!(app.confirm(NOW, &next), Ok(id("b")));
}

#[test]
fn rollbacks_go_to_what_was_good() {
    let (mut app, r) = app();
    let ship = |app: &mut App, name: &str, rollback: Option<&str>| {
        let wanted = Wanted { rollback: rollback.map(Into::into), ..on_trial(LATER) };
        app.begin_switch(NOW, &r, &id(name), wanted).expect("allowed");
        app.switched(Ok(()));
        app.confirm(NOW, &r).expect("on trial");
    };
    ship(&mut app, "b", None);
    app.staged(&id("c"), 3, About::default()).expect("new");
    app.staged(&id("d"), 3, About::default()).expect("new");
    ship(&mut app, "c", None);
    assert_eq!(app.previous(), Some(&id("b")));
    ship(&mut app, "b", Some("rolled back"));
    assert!(matches!(app.releases[&id("c")].state, State::Failed(_)));
    assert_eq!(app.previous(), Some(&id("a")), "not the one that was left");
    ship(&mut app, "a", Some("rolled back"));
    assert_eq!(app.previous(), None);
}

#[test]
fn what_is_needed_is_not_pruned() {
    let (mut app, r) = app();
    for name in ["c", "d", "e", "f"] {
        app.staged(&id(name), 3, About::default()).expect("new");
        app.begin_switch(NOW, &r, &id(name), on_trial(LATER)).expect("allowed");
        app.switched(Ok(()));
        app.confirm(NOW, &r).expect("on trial");
    }
    app.staged(&id("g"), 3, About::default()).expect("new");
    let names = |list: Vec<ReleaseId>| list.iter().map(|id| id.as_str().to_owned()).collect::<Vec<_>>();
    assert_eq!(names(app.prunable(3, &BTreeSet::new())), ["a", "b", "c", "d"]);
    assert_eq!(names(app.prunable(0, &BTreeSet::from([id("a")]))), ["b", "c", "d"], "a runs, f, e and g are needed");
    assert_eq!(names(app.prunable(9, &BTreeSet::new())), [""; 0]);
    // Until its files are gone, or it comes again, it is known that they may be there.
    app.pruned(&id("b"));
    app.pruned(&id("c"));
    assert_eq!(names(app.leaving.iter().cloned().collect()), ["b", "c"]);
    app.staged(&id("b"), 4, About::default()).expect("known no more");
    app.gone(&BTreeSet::from([id("c")]));
    assert!(app.leaving.is_empty());
}

#[test]
fn what_people_have_switched_to_by_hand_counts() {
    let (mut app, r) = app();
    app.found(&id("by-hand"), 9);
    assert_eq!((serving(&app), app.previous()), ("by-hand", Some(&id("a"))));
    app.begin_switch(NOW, &r, &id("b"), on_trial(LATER)).expect("allowed");
    app.found(&id("a"), 9);
    app.switched(Ok(()));
    app.found(&id("a"), 9);
    assert_eq!(
        (serving(&app), app.confirmed.as_ref()),
        ("b", Some(&id("by-hand"))),
        "not while something is under way"
    );
}

fn given(from: &str, to: &str) -> Option<Configurations> {
    Some(Configurations { to: to.into(), from: from.into() })
}

/// Puts a release on trial, with a configuration.
fn tried(app: &mut App, fence: &Fence, release: &str, configurations: Option<Configurations>) {
    let wanted = Wanted { configurations, ..on_trial(LATER) };
    app.begin_switch(NOW, fence, &id(release), wanted).expect("allowed");
    app.switched(Ok(()));
}

#[test]
fn a_configuration_that_was_taken_back_is_held_back() {
    let (mut app, r) = app();
    tried(&mut app, &r, "b", given("one", "two"));
    assert_eq!((app.held_back(), app.releases[&id("a")].configuration.as_deref()), (None, Some("one")));
    let back = app.begin_return(Some("it is slow")).expect("free").expect("a way");
    assert_eq!(back.configurations, given("two", "one"));
    app.switched(Ok(()));
    assert_eq!(app.held_back(), given("two", "one").as_ref());
    // Tried again, alone: its release is not to blame.
    tried(&mut app, &r, "a", given("one", "two"));
    assert_eq!(app.held_back(), None);
    app.begin_return(Some("it is slow")).expect("free");
    app.switched(Ok(()));
    assert_eq!((app.held_back(), &app.releases[&id("a")].state), (given("two", "one").as_ref(), &State::Confirmed));
    tried(&mut app, &r, "a", given("one", "two"));
    app.confirm(NOW, &r).expect("on trial");
    assert_eq!((app.held_back(), &*app.confirmed_by), (None, "r"));
    assert_eq!(app.configurations(), BTreeSet::from(["one"]), "what a rollback to a has");
}

#[test]
fn a_switch_that_fails_and_a_boot_hold_it_back() {
    let (mut app, r) = app();
    let wanted = || Wanted { configurations: given("one", "two"), ..on_trial(LATER) };
    app.begin_switch(NOW, &r, &id("b"), wanted()).expect("allowed");
    let mut killed = app.clone();
    assert_eq!(killed.settle_switch().and_then(|s| s.configurations), given("two", "one"));
    killed.switched(Ok(()));
    let mut booted = app.clone();
    booted.booted();
    app.switched(Err("it does not boot".into()));
    for app in [&app, &killed, &booted] {
        assert_eq!(app.held_back(), given("two", "one").as_ref());
    }
    // A boot goes back over all that was tried since.
    let (mut app, r) = self::app();
    tried(&mut app, &r, "b", given("one", "two"));
    app.begin_switch(NOW, &r, &id("a"), Wanted { configurations: given("two", "three"), ..on_trial(LATER) })
        .expect("allowed");
    app.booted();
    assert_eq!(app.held_back(), given("three", "one").as_ref());
}

#[test]
fn a_rollback_leaves_the_files_as_they_are() {
    let (mut app, r) = app();
    tried(&mut app, &r, "b", given("one", "two"));
    app.confirm(NOW, &r).expect("on trial");
    let wanted = Wanted { configurations: given("two", "one"), rollback: Some("slow".into()), ..on_trial(LATER) };
    app.begin_switch(NOW, &r, &id("a"), wanted).expect("allowed");
    app.switched(Ok(()));
    assert_eq!(app.held_back(), None);
    app.confirm(NOW, &r).expect("on trial");
    assert_eq!(app.held_back(), given("two", "one").as_ref());
}

#[test]
fn steps_are_done_once() {
    let mut app = App::default();
    assert_eq!(app.begin_step("r/migrate"), None);
    assert_eq!(app.begin_step("r/migrate"), Some(StepState::Begun));
    app.end_step("r/migrate", StepState::Done);
    assert_eq!(app.begin_step("r/migrate"), Some(StepState::Done));
    for number in 0..200 {
        assert_eq!(app.begin_step(&format!("{number}/migrate")), None);
    }
    assert_eq!(app.steps.len(), STEPS);
}

#[test]
fn names_are_taken_once() {
    let mut app = App::default();
    let about = |source: &str| About { source: source.into(), ..About::default() };
    app.staged(&id("a"), 1, about("x")).expect("new");
    app.staged(&id("a"), 1, about("x")).expect("the same, again");
    assert!(app.staged(&id("a"), 1, about("y")).is_err());
}

#[test]
fn a_number_that_nobody_can_have_come_to_is_not_granted() {
    const NOW_SECONDS: u64 = 1_790_000_000;
    let mut app = App::default();
    for number in [u64::MAX, (NOW_SECONDS + 2 * AHEAD) << 32, (NOW_SECONDS + AHEAD + 1) << 32] {
        let refused = app.lock(NOW, NOW_SECONDS, lock_of(fence(number, "r"), Some(LATER)));
        assert!(matches!(&refused, Err(Refusal::Not(why)) if why.contains("is no number for a lock")), "{refused:?}");
    }
    assert_eq!((app.fence.number, app.lock.clone()), (0, None), "nothing has changed");
    // The highest that is granted: whoever comes a second later gets above it.
    let highest = (NOW_SECONDS + AHEAD) << 32;
    app.lock(NOW, NOW_SECONDS, lock_of(fence(highest, "r"), Some(LATER))).expect("a clock may be ahead");
    app.lock(LATER, NOW_SECONDS + 1, lock_of(fence(next_number(highest, 7), "s"), None)).expect("higher");
    // What an older svd has granted keeps nobody out, and is admitted no more.
    let poisoned = fence(u64::MAX, "x");
    app = App { fence: poisoned.clone(), ..App::default() };
    app.lock(NOW, NOW_SECONDS, lock_of(fence(next_number(0, 7), "y"), None)).expect("as if there had been none");
    assert_eq!(app.admit(NOW, &poisoned), Err(Refusal::Fenced { highest: fence(next_number(0, 7), "y") }));
}

#[test]
fn numbers_come_to_no_end() {
    assert_eq!(next_number(0, 7), (1 << 32) + 7);
    assert_eq!(next_number((5 << 32) + 9, 0), 6 << 32);
    assert!(next_number(u64::MAX, 3) > u64::MAX - (1 << 32), "no overflow");
    assert!(is_plausible(next_number(0, u32::MAX), 0), "by a clock that was never set, too");
}
