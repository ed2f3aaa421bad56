//! Random deaths under load, with orders between them.

use super::support::load::Plan;
use super::support::plain::needs_root;
use super::support::svd::Home;
use super::support::{Env, PATIENCE, alone, wait_for, wait_until};
use super::world::{Death, GUNICORN, World, kill};
use super::{long, support::Release};
use airdock::sys::process::{ProcStat, descendants};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long svd may be missed, on a machine that is busy with other things; the aim is a second.
const LATE: Duration = Duration::from_secs(3);

struct Orders {
    /// What `toggle` was told last, and svctl has acknowledged.
    toggle: &'static str,
    given: BTreeMap<&'static str, u32>,
    release: u32,
}

#[test]
fn nothing_is_lost_in_a_storm_of_deaths() {
    storm(Home::Here);
}

#[test]
fn nothing_is_lost_in_a_storm_without_control_groups() {
    if !needs_root() {
        storm(Home::Container);
    }
}

fn storm(home: Home) {
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let mut world = World::start_at(home, Some(&env));
    let address = world.web.as_ref().expect("a site").address;
    let plan = Plan { new: 2, kept: 2, pause: Duration::from_millis(5), ..Plan::new(address) };
    let load = plan.clone().start();
    load.more(50);
    rage(&mut world, super::storm());
    load.more(50);
    let report = load.stop();
    println!("{}", report.summary());
    report.assert_no_failure();
    killed_servers(&mut world, &plan);
    calm(&mut world);
}

/// Without gunicorn, which this user may not be able to run from where the tests have it.
#[test]
fn nothing_is_lost_in_a_storm_by_a_plain_user() {
    if needs_root() {
        return;
    }
    let _alone = alone();
    let mut world = World::start_at(Home::PlainUser, None);
    rage(&mut world, super::storm() / 2);
    calm(&mut world);
}

/// Deaths, and orders.
fn rage(world: &mut World, length: Duration) {
    let until = Instant::now() + length;
    let mut orders = Orders { toggle: "running", given: BTreeMap::new(), release: 0 };
    while Instant::now() < until {
        let death = match world.random.u32(..16) {
            0..5 => Some(Death::Svd),
            5..7 => Some(Death::Guardian),
            7..9 => Some(Death::SvdAndWorker),
            9 => Some(Death::Worker),
            10..12 => Some(Death::Both),
            _ => None,
        };
        match death {
            Some(death) => world.die(death),
            None => {
                order(world, &mut orders);
                // What was acknowledged just now is what a death must not undo.
                world.die(Death::Svd);
            }
        }
        world.check();
        held(world, &orders);
    }
    println!("orders: {:?}", orders.given);
    world.figures();
}

/// Stopped, nothing is left.
fn calm(world: &mut World) {
    for name in ["pair", "toggle", "crash"] {
        world.svd.ok(&["stop", name]);
        world.nothing_left(name);
    }
    world.nobody_shouts();
    assert!(world.latencies().1 < LATE, "svd was missed for {:?}", world.latencies().1);
}

fn order(world: &mut World, orders: &mut Orders) {
    let all = ["stop", "start", "restart", "reload"];
    let what = all[world.random.usize(..if world.web.is_some() { 4 } else { 3 })];
    *orders.given.entry(what).or_default() += 1;
    match what {
        "stop" => {
            world.svd.ok(&["stop", "toggle"]);
            world.nothing_left("toggle");
            orders.toggle = "stopped";
        }
        "start" => {
            world.svd.ok(&["start", "toggle"]);
            orders.toggle = "running";
        }
        "restart" => drop(world.svd.ok(&["restart", "pair"])),
        _ => {
            orders.release += 1;
            let release = format!("r{}", orders.release);
            let web = world.web.as_mut().expect("a site");
            web.app.ship(&Release::new(&release));
            world.svd.ok(&["reload", "web"]);
            web.master = world.svd.main_pid("web");
        }
    }
}

/// I5.
#[track_caller]
fn held(world: &World, orders: &Orders) {
    let toggle = world.status("toggle").expect("svd answers");
    assert_eq!(toggle["state"], orders.toggle, "it was acknowledged: {toggle:#}");
    if world.web.is_some() {
        let web = world.status("web").expect("svd answers");
        assert_eq!(web["release"], format!("r{}", orders.release), "{web:#}");
    }
}

/// Gunicorn's own processes: what they were answering is lost, and nothing else for longer than they take to boot.
fn killed_servers(world: &mut World, plan: &Plan) {
    let deaths = if long() { 4 + super::storm().as_secs() / 10 } else { 4 };
    let load = plan.clone().start();
    load.more(20);
    for n in 0..deaths {
        let web = world.web.as_mut().expect("a site");
        let old = web.master;
        if n % 2 == 0 {
            let workers = descendants(old);
            kill(workers[world.random.usize(..workers.len())]);
        } else {
            kill(old);
            web.master = wait_for("there is another master", PATIENCE, || {
                let status = world.svd.status("web");
                let pid = i32::try_from(status["pid"].as_i64()?).ok()?;
                let exit = status["workers"][0]["last_exit"].as_str().unwrap_or_default().to_owned();
                (pid != old).then(|| assert!(exit.contains("signal 9"), "its end is told: {status:#}"))?;
                Some(pid)
            });
        }
        world.die(Death::Svd);
        let booted = || {
            let stat = |pid: i32| ProcStat::read(pid).is_some_and(|s| s.state != 'Z');
            descendants(world.web.as_ref().expect("a site").master).into_iter().filter(|pid| stat(*pid)).count() == 2
        };
        wait_until("gunicorn has its two workers", PATIENCE, booted);
        load.more(20);
        world.check();
    }
    let killed = load.stop();
    println!("{deaths} deaths of gunicorn's own: {}", killed.summary());
    let load = plan.clone().start();
    load.more(100);
    load.stop().assert_no_failure();
}
