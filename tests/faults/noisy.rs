//! Services that crash, flood and hang up; the others are supervised as ever.

use super::count;
use super::support::plain::{python, script};
use super::support::steady::Steady;
use super::support::{PATIENCE, Svd, alone, wait_until};
use std::time::{Duration, Instant};

/// Slower than when it is calm by so much at most, and what the machine's own noise may add.
const RATIO: u32 = 5;
const NOISE: Duration = Duration::from_millis(150);

/// Resident memory of a process in bytes (`proc_pid_status(5)`).
pub fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("svd runs");
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("svd runs").count()
}

#[test]
fn crash_loops_do_not_slow_others_down() {
    let _alone = alone();
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    let (all, crashing) = (count(100, 1000), count(30, 300));
    for n in crashing..all {
        svd.service(&format!("calm-{n}"), &script("exec sleep 100000", ""));
    }
    svd.start();
    let running = |svd: &Svd| {
        let list = svd.json(&["status"]);
        list["services"].as_array().expect("services").iter().filter(|s| s["state"] == "running").count()
    };
    wait_until("all services run", PATIENCE * 4, || running(&svd) == all - crashing + 1);
    let calm = steady.median(9);
    let crash = "[restart]\ndelay = '100ms'\nmax_delay = '30s'\nlimit = { failures = 10000, within = '1h' }";
    for n in 0..crashing {
        svd.service(&format!("crash-{n}"), &script("exit 1", crash));
    }
    let update = svd.svctl_beside(&["update"]);
    wait_until("the crashing services are known", PATIENCE, || svd.svctl(&["pid", "crash-0"]).status.code() != Some(4));
    let stormy = steady.median(9);
    update.finish();
    println!("replaced within {calm:.1?} (calm), {stormy:.1?} ({crashing} of {all} services crash)");
    assert!(stormy <= calm * RATIO + NOISE, "{calm:?} when calm, {stormy:?} beside {crashing} crashing services");
    assert!(running(&svd) > all - crashing);
}

#[test]
fn a_service_that_exits_at_once_very_often_costs_nothing_that_stays() {
    let mut svd = Svd::new();
    let wanted = count(1_000, 10_000) as u64;
    let restart = "[logs]\nmax_size = '64KiB'\nkeep = 2\n[restart]\ndelay = '1ms'\nmax_delay = '1ms'\n\
                   limit = { failures = 10000, within = '1s' }\npolicy = 'always'";
    svd.service("brief", &script("echo a line of a service that exits at once; exit 0", restart));
    svd.start();
    let restarts = |svd: &Svd| svd.status("brief")["restarts"].as_u64().expect("a count");
    wait_until("some restarts", PATIENCE, || restarts(&svd) > 50);
    let (files, memory) = (descriptors(svd.pid()), resident(svd.pid()));
    let begun = Instant::now();
    wait_until("many restarts", Duration::from_secs(600), || restarts(&svd) > wanted);
    println!("{wanted} ends within {:.1?}; {memory} bytes before, {} after", begun.elapsed(), resident(svd.pid()));
    assert!(descriptors(svd.pid()) < files + 20, "{files} descriptors before, {} after", descriptors(svd.pid()));
    assert!(resident(svd.pid()) < memory + (16 << 20), "{memory} bytes before, {} after", resident(svd.pid()));
    let size = |path: &str| svd.path(path).metadata().map_or(0, |meta| meta.len());
    let (state, log) = (size("run/state"), size("log/brief/output.log"));
    println!("the state file has {state} bytes, the log {log}");
    assert!(state < 10 << 20 && log <= 64 << 10, "the state file has {state} bytes, the log {log}");
    let files = std::fs::read_dir(svd.path("log/brief")).expect("its logs").count();
    let left = std::fs::read_dir(svd.path("run/pipes")).expect("pipes").count();
    assert!(files <= 6 && left <= 2, "{files} files of logs, {left} pipes");
    svd.ok(&["stop", "brief"]);
}

#[test]
fn a_flood_without_a_newline_is_bounded_and_harms_nobody() {
    let mut svd = Svd::new();
    let steady = Steady::service(&svd);
    let (megabytes, done) = (count(100, 1024), svd.path("done"));
    let go = svd.path("go");
    let program = format!(
        "import os, time\nwhile not os.path.exists({go:?}): time.sleep(0.01)\nfor _ in range({megabytes}):\n    left = b'x' * (1 << 20)\n    while left:\n        left = left[os.write(1, left):]\n\
         open({done:?}, 'w').close()\ntime.sleep(100000)\n"
    );
    svd.start();
    svd.service("flood", &python(&program, ""));
    svd.ok(&["update"]);
    std::fs::write(&go, "").expect("writing a file");
    let mut worst = steady.replaced();
    while !done.exists() {
        worst = worst.max(steady.replaced());
    }
    println!(
        "{megabytes} MB without a newline: replaced within {worst:.1?} at most; svd has {} bytes",
        resident(svd.pid())
    );
    assert!(worst < Duration::from_secs(2), "a worker was replaced only after {worst:?}");
    assert!(resident(svd.pid()) < 100 << 20, "svd has {} bytes", resident(svd.pid()));
}

#[test]
fn who_closes_its_output_goes_on() {
    let mut svd = Svd::new();
    svd.service("mute", &script("echo last words; exec >&- 2>&-; exec sleep 100000", ""));
    svd.start();
    svd.wait_state("mute", "running");
    wait_until("its words are kept", PATIENCE, || svd.output("mute").contains("last words"));
    let pid = svd.main_pid("mute");
    // An svd that took it for an end, or spun, would show it by now.
    let begun = cpu(svd.pid());
    svd.ok(&["status", "mute"]);
    wait_until("a second has passed", PATIENCE, {
        let since = Instant::now();
        move || since.elapsed() > Duration::from_secs(1)
    });
    assert_eq!((svd.main_pid("mute"), svd.state("mute").as_str()), (pid, "running"));
    assert!(cpu(svd.pid()) - begun < 30, "svd spins: {} ticks within a second", cpu(svd.pid()) - begun);
}

/// Clock ticks that a process has used (`proc_pid_stat(5)`).
pub fn cpu(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("svd runs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    fields[11..13].iter().map(|f| f.parse::<u64>().expect("a number")).sum()
}
