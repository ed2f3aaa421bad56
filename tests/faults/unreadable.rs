//! The state file is of no use when svd returns: what runs is taken over all the same, where it is certain what it is.

use super::support::app::Release;
use super::support::plain::needs_root;
use super::support::{Env, Load, PATIENCE, alone, wait_until};
use super::world::{GUNICORN, World, kill, send};
use nix::sys::signal::Signal;
use std::fs;

const NAMES: [&str; 3] = ["pair", "toggle", "web"];

fn workers(world: &World) -> Vec<Vec<i64>> {
    let of = |name: &&str| {
        let status = world.svd.status(name);
        status["workers"].as_array().into_iter().flatten().filter_map(|worker| worker["pid"].as_i64()).collect()
    };
    NAMES.iter().map(of).collect()
}

#[test]
fn services_go_on_without_the_state_file() {
    if needs_root() {
        return;
    }
    let Some(env) = Env::get(GUNICORN) else { return };
    let _alone = alone();
    let mut world = World::start(Some(&env));
    let web = world.web.as_ref().expect("gunicorn");
    let load = Load::start(web.address);
    load.more(20);
    let file = world.svd.path("run/state");
    for (both, garbage) in
        [(false, "airdock state 2\nnothing of use"), (true, "airdock state 99\nof the future"), (true, "")]
    {
        let before = workers(&world);
        let aside = file.with_extension("unreadable");
        let _ = fs::remove_file(&aside);
        if both {
            world.svd.kill_both();
            fs::write(&file, garbage).expect("spoiling the state");
            world.svd.start();
        } else {
            let svd = world.svd.pid();
            world.svd.freeze_guardian();
            kill(svd);
            fs::write(&file, garbage).expect("spoiling the state");
            send(world.svd.guardian(), Signal::SIGCONT);
        }
        wait_until("svd answers again", PATIENCE, || world.status("web").is_some_and(|s| s["state"] == "running"));
        assert_eq!(workers(&world), before, "{garbage}: the same processes\n{}", world.svd.said());
        assert_eq!(fs::read_to_string(&aside).expect("the file is kept"), garbage);
        assert!(world.svd.said().contains("could be taken over"), "{}", world.svd.said());
        world.check();
        load.more(20);
    }
    // What is needed for more is there as well.
    world.svd.ok(&["restart", "pair"]);
    let web = world.web.as_ref().expect("gunicorn");
    web.app.ship(&Release::new("r1"));
    world.svd.ok(&["reload", "web"]);
    load.more(20);
    let report = load.stop();
    println!("{}", report.summary());
    report.assert_no_failure();
    world.nobody_shouts();
    world.svd.ok(&["stop", "pair", "toggle"]);
    world.nothing_left("pair");
    world.nothing_left("toggle");
    assert!(world.svd.stop().success());
}
