//! Ten upgrades in a row under load, while somebody follows a log.

use super::count;
use super::support::load::Plan;
use super::support::plain::needs_root;
use super::support::{Env, PATIENCE, wait_until};
use super::world::{Death, GUNICORN, World};
use std::fs::{self, File};
use std::process::{Child, Stdio};

/// `svctl logs -f`, into a file.
struct Follower {
    child: Child,
    file: std::path::PathBuf,
}

impl Follower {
    fn begin(world: &World, name: &str) -> Follower {
        let file = world.svd.path("followed");
        let output = File::create(&file).expect("a file");
        let mut command = world.svd.svctl_command(&["logs", "-f", name]);
        let child = command.stdin(Stdio::null()).stdout(output).stderr(Stdio::null()).spawn().expect("svctl");
        Follower { child, file }
    }

    /// The numbers of the lines that have come until now.
    fn numbers(&self) -> Vec<u64> {
        let text = fs::read_to_string(&self.file).expect("what was followed");
        // The last line may still be on its way.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let lines = whole.lines().filter(|line| !line.starts_with("-- "));
        lines.map(|line| line.strip_prefix("line ").and_then(|n| n.parse().ok()).expect("a whole line")).collect()
    }

    /// Waits for that line; each one until there has come once, in order.
    #[track_caller]
    fn check(&self, last: u64) -> usize {
        wait_until("the stream comes to the last line", PATIENCE, || self.numbers().last().is_some_and(|n| *n >= last));
        let numbers = self.numbers();
        let gap = numbers.windows(2).find(|two| two[1] != two[0] + 1);
        assert!(gap.is_none(), "the stream goes from one to the next: {gap:?}");
        numbers.len()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_line(world: &World) -> u64 {
    let output = world.svd.output("counts");
    output.lines().rev().find_map(|line| line.strip_prefix("line ")?.parse().ok()).unwrap_or(0)
}

#[test]
fn ten_upgrades_and_deaths_under_load_lose_no_request_and_no_line_of_a_stream() {
    let Some(env) = Env::get(GUNICORN) else { return };
    if needs_root() {
        return;
    }
    let mut world = World::start(Some(&env));
    let counting = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.001; done";
    let text = super::support::plain::script(counting, "[logs]\nmax_size = '1GiB'");
    world.svd.service("counts", &text);
    world.svd.ok(&["update"]);
    world.svd.wait_state("counts", "running");
    let follower = Follower::begin(&world, "counts");
    wait_until("the stream has begun", PATIENCE, || !follower.numbers().is_empty());
    let address = world.web.as_ref().expect("a site").address;
    let load = Plan { new: 2, kept: 2, ..Plan::new(address) }.start();
    load.more(50);
    let (svd, counts, web) = (world.svd.pid(), world.svd.main_pid("counts"), world.svd.main_pid("web"));
    world.svd.ok(&["restart", "pair"]);
    super::world::kill(world.svd.main_pid("pair"));
    let restarts = |world: &World| super::world::restarts(&world.svd.status("pair"));
    wait_until("a restart is counted", PATIENCE, || restarts(&world) == 1);
    let upgrades = count(10, 50);
    for _ in 0..upgrades {
        let said = world.svd.ok(&["upgrade"]);
        assert!(said.contains("runs"), "{said}");
        load.more(10);
        world.check();
    }
    assert_eq!(world.svd.pid(), svd, "the same process");
    assert_eq!((world.svd.main_pid("counts"), world.svd.main_pid("web")), (counts, web));
    assert_eq!(restarts(&world), 1, "counts are kept");
    let lines = follower.check(last_line(&world));
    println!("{upgrades} upgrades, {lines} lines followed");
    let deaths = count(3, 30);
    for _ in 0..deaths {
        world.die(Death::Svd);
        load.more(10);
    }
    let lines = follower.check(last_line(&world));
    let report = load.stop();
    println!("{deaths} deaths more, {lines} lines followed; {}", report.summary());
    report.assert_no_failure();
    assert_eq!(restarts(&world), 1, "counts are kept");
    world.svd.ok(&["stop", "counts"]);
    for (n, line) in (1..).zip(world.svd.output("counts").lines().filter(|l| !l.starts_with("-- "))) {
        assert_eq!(line, format!("line {n}"), "nothing is lost or doubled in the file");
    }
}
