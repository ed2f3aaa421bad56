//! `kill -9` of svd in the middle of what svctl has ordered: it is done afterwards, or undone, and never half.

use super::count;
use super::journal::records;
use super::support::load::Plan;
use super::support::svd::{Running, both};
use super::support::{Env, PATIENCE, Release, wait_for};
use super::world::{GUNICORN, World, kill, locked, send};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::process::Output;
use std::time::Duration;

/// What came of an order in whose midst svd was killed.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    /// svctl was told that it is done.
    acknowledged: usize,
    /// The next svd has told so.
    carried_on: usize,
    done: usize,
    undone: usize,
}

impl Outcome {
    #[track_caller]
    fn add(&mut self, world: &World, done: bool, order: &Interrupted) {
        let (svctl, said) = (&order.svctl, both(&order.svctl));
        assert!(done || !svctl.status.success(), "acknowledged, and undone:\n{said}");
        let (outcome, told) = order.outcome(world, done);
        assert_eq!(outcome.as_deref() == Some("done"), done, "the journal says {outcome:?}");
        self.acknowledged += usize::from(svctl.status.success());
        self.carried_on += usize::from(told && done);
        self.done += usize::from(done);
        self.undone += usize::from(!done);
    }
}

/// An order in whose midst svd was killed.
struct Interrupted {
    verb: String,
    svctl: Output,
    /// Records in the journal before it.
    before: usize,
}

impl Interrupted {
    /// Its outcome by the audit journal, and whether the events tell of it. `done`: it was.
    #[track_caller]
    fn outcome(&self, world: &World, done: bool) -> (Option<String>, bool) {
        let ended = |line: &Value| line["outcome"] != "begun";
        let lines = wait_for("the journal tells the outcome", PATIENCE, || {
            let mut lines = records(&world.svd).split_off(self.before);
            lines.retain(|line| line["verb"] == *self.verb);
            // What svd had not heard of need not be there.
            lines.last().map_or(!done, ended).then_some(lines)
        });
        let Some(last) = lines.last() else { return (None, false) };
        assert!(lines.iter().all(|l| l["id"] == last["id"]), "one order, one number: {lines:#?}");
        // What was answered, and not written down as answered, is told once more.
        let outcomes = lines.iter().filter(|l| ended(l)).all(|l| l["outcome"] == last["outcome"]);
        assert!(outcomes, "one order, one outcome: {lines:#?}");
        let outlived = last["outlived_svd"] == true;
        let words = format!("{}, ordered by ", self.verb);
        let events = world.svd.ok(&["events"]);
        let told = events.lines().any(|line| line.contains(&words) && line.contains("before svd was"));
        assert!(outlived || !told, "the events tell of an order that was answered:\n{events}");
        assert!(told || !(outlived && done), "the events do not tell what was carried on:\n{events}");
        (last["outcome"].as_str().map(str::to_owned), told)
    }
}

/// Kills svd at a random moment of an order that takes about `length`, and waits until svctl has ended and svd answers.
fn interrupt(world: &mut World, args: &[&str], length: Duration) -> Interrupted {
    let svd = world.svd.pid();
    let before = records(&world.svd).len();
    let running: Running = world.svd.svctl_beside(args);
    // The moment is the point.
    std::thread::sleep(length.mul_f64(world.random.f64()));
    kill(svd);
    let svctl = running.finish();
    let code = svctl.status.code();
    assert!(matches!(code, Some(0 | 1 | 4 | 6)), "svctl {args:?} ended with {code:?}:\n{}", both(&svctl));
    wait_for("svd answers", PATIENCE, || world.status("pair"));
    Interrupted { verb: args[0].to_owned(), svctl, before }
}

/// The state of a service, once nothing of it is under way.
#[track_caller]
fn settled(world: &World, name: &str) -> Value {
    let mut last = Value::Null;
    let end = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < end {
        last = world.status(name).unwrap_or_default();
        let calm = matches!(last["state"].as_str(), Some("running" | "stopped"));
        if calm && last["generations"].as_array().is_none_or(|g| g.len() <= 1) {
            return last;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{name} stays half done: {last:#}\nsvd said:\n{}", world.svd.said());
}

#[test]
fn a_stop_or_a_start_is_done_or_undone() {
    let mut world = World::start(None);
    let slow = "trap 'sleep 0.08; exit 0' TERM; while :; do sleep 0.02; done";
    world.svd.service("slow", &locked(&world.svd, "slow", slow, ""));
    world.svd.ok(&["update"]);
    for (order, state) in [("stop", "stopped"), ("start", "running"), ("restart", "running")] {
        let mut outcome = Outcome::default();
        for _ in 0..count(6, 40) {
            // From the other state.
            world.svd.ok(&[if order == "start" { "stop" } else { "start" }, "slow"]);
            let old = world.svd.status("slow")["pid"].clone();
            let interrupted = interrupt(&mut world, &[order, "slow"], Duration::from_millis(180));
            let found = settled(&world, "slow");
            let done = found["state"] == state && (order != "restart" || found["pid"] != old);
            outcome.add(&world, done, &interrupted);
            if found["state"] == "stopped" {
                world.nothing_left("slow");
            }
            world.nobody_shouts();
        }
        println!("{order}: {outcome:?}");
    }
}

#[test]
fn an_update_is_done_or_undone() {
    let mut world = World::start(None);
    let mut outcome = Outcome::default();
    for n in 0..count(7, 40) {
        let (old, new) = (format!("extra-{n}"), format!("extra-{}", n + 1));
        if n > 0 {
            world.svd.remove_service(&old);
        }
        world.svd.service(&new, &locked(&world.svd, &new, "exec sleep 100000", ""));
        let interrupted = interrupt(&mut world, &["update"], Duration::from_millis(60));
        let there = |name: &str| world.status(name).is_some_and(|s| s["state"].is_string());
        let done = there(&new);
        outcome.add(&world, done, &interrupted);
        if done {
            settled(&world, &new);
            wait_for("the removed one is gone", PATIENCE, || (!there(&old)).then_some(()));
        } else {
            assert!(n == 0 || there(&old), "neither the old one nor the new one");
            world.svd.ok(&["update"]);
            settled(&world, &new);
        }
        world.nothing_left(&old);
        world.check();
    }
    println!("update: {outcome:?}");
}

#[test]
fn a_reload_is_done_or_undone_and_no_request_fails() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let mut world = World::start(Some(&env));
    let address = world.web.as_ref().expect("a site").address;
    let load = Plan { new: 1, kept: 1, ..Plan::new(address) }.start();
    load.more(20);
    let mut outcome = Outcome::default();
    for n in 1..=count(6, 40) {
        let release = format!("r{n}");
        let web = world.web.as_ref().expect("a site");
        web.app.ship(&Release::new(&release));
        let interrupted = interrupt(&mut world, &["reload", "web"], Duration::from_millis(700));
        let found = settled(&world, "web");
        let done = found["release"] == release;
        outcome.add(&world, done, &interrupted);
        if !done {
            assert_eq!(found["pid"], world.web.as_ref().expect("a site").master, "{found:#}");
        }
        world.web.as_mut().expect("a site").master = world.svd.main_pid("web");
        world.check();
        load.more(10);
    }
    let report = load.stop();
    println!("reload: {outcome:?}; {}", report.summary());
    report.assert_no_failure();
}

#[test]
fn an_upgrade_is_done_or_undone_and_no_request_fails() {
    let Some(env) = Env::get(GUNICORN) else { return };
    if super::support::plain::needs_root() {
        return;
    }
    let mut world = World::start(Some(&env));
    let address = world.web.as_ref().expect("a site").address;
    let load = Plan { new: 1, kept: 1, ..Plan::new(address) }.start();
    load.more(20);
    let (mut acknowledged, mut carried_on) = (0, 0);
    let deaths = count(6, 40);
    for _ in 0..deaths {
        let order = interrupt(&mut world, &["upgrade"], Duration::from_millis(400));
        let done = order.svctl.status.success();
        acknowledged += usize::from(done);
        let (outcome, told) = order.outcome(&world, done);
        assert!(outcome.as_deref() == Some("done") || !done, "acknowledged, and the journal says {outcome:?}");
        carried_on += usize::from(told);
        settled(&world, "web");
        world.check();
        load.more(5);
    }
    let report = load.stop();
    println!(
        "upgrade: {deaths} interrupted, {acknowledged} acknowledged, {carried_on} told later; {}",
        report.summary()
    );
    report.assert_no_failure();
}

/// A worker that says that it is ready while there is no svd.
#[test]
fn what_is_said_while_svd_is_dead_is_heard() {
    let world = World::start(None);
    let (go, said) = (world.svd.path("go"), world.svd.path("said"));
    let script = format!(
        "until test -e {go}; do sleep 0.02; done; echo is up; touch {said}; exec sleep 100000",
        go = go.display(),
        said = said.display()
    );
    world.svd.service("late", &locked(&world.svd, "late", &script, "[ready]\nlog = 'is up'\n"));
    let update = world.svd.svctl_beside(&["update"]);
    wait_for("it is started", PATIENCE, || world.status("late").filter(|s| s["pid"].is_number()));
    let svd = world.svd.pid();
    world.svd.freeze_guardian();
    kill(svd);
    update.finish();
    std::fs::write(&go, "").expect("writing a file");
    wait_for("it has said that it is up", PATIENCE, || said.exists().then_some(()));
    send(world.svd.guardian(), Signal::SIGCONT);
    settled(&world, "late");
    world.check();
}
