//! Limits of what runs are changed by an update, without a restart; what this host cannot do is refused.

use super::support::plain::{SLEEP, pids, script};
use super::support::svd::both;
use super::support::{PATIENCE, Svd, wait_until};
use std::fs;

fn read(pid: i32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
}

/// Soft and hard limit of open files, the OOM score, the CPUs and the nice value.
fn limits_of(pid: i32) -> (String, String, String, String) {
    let files = read(pid, "limits").lines().find_map(|l| l.strip_prefix("Max open files").map(str::to_owned));
    let files = files.unwrap_or_default().split_whitespace().take(2).collect::<Vec<_>>().join(" ");
    let status = read(pid, "status");
    let cpus = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap_or_default().trim().to_owned();
    // The 19th field; the second is the program's name.
    let nice = read(pid, "stat").rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(16).map(str::to_owned));
    (files, read(pid, "oom_score_adj").trim().to_owned(), cpus, nice.unwrap_or_default())
}

#[test]
fn what_runs_is_changed_with_all_its_processes_and_stays_changed() {
    let mut svd = Svd::new();
    let text = format!("sleep 100001 & {SLEEP}");
    svd.service("web", &script(&text, "[limits]\noom_score = 7\n"));
    svd.start();
    svd.wait_state("web", "running");
    let main = svd.main_pid("web");
    let child = || fs::read_to_string(format!("/proc/{main}/task/{main}/children")).unwrap_or_default();
    wait_until("its child", PATIENCE, || !child().is_empty());
    let child: i32 = child().trim().parse().expect("a pid");
    let before = limits_of(main);
    let limits = "[limits]\nopen_files = '77:99'\noom_score = 55\ncpus = '0'\nnice = 3\ncore = 0\n";
    svd.service("web", &script(&text, limits));
    let said = svd.ok(&["update"]);
    assert!(!said.contains("is not changed"), "{said}");
    assert_eq!(svd.main_pid("web"), main, "no process is started anew");
    let wanted = ("77 99".to_owned(), "55".to_owned(), "0".to_owned(), "3".to_owned());
    for pid in [main, child] {
        assert_eq!(limits_of(pid), wanted);
    }
    // What is started again has them as well, and so has it after svd's death.
    svd.leaves_processes = true;
    svd.kill_both();
    svd.start();
    svd.leaves_processes = false;
    svd.wait_state("web", "running");
    for pid in pids(&svd, "web") {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).expect("killing it");
    }
    // Between its end and the next start there is none.
    wait_until("another worker", PATIENCE, || {
        let pid = String::from_utf8(svd.svctl(&["pid", "web"]).stdout).ok().and_then(|text| text.trim().parse().ok());
        svd.state("web") == "running" && pid.is_some_and(|pid: i32| pid != main)
    });
    let main = svd.main_pid("web");
    assert_eq!(limits_of(main), wanted);
    // Without the section, all is as it would have been. (A hard limit can only be raised by who may.)
    svd.service("web", &script(&text, ""));
    let said = both(&svd.svctl(&["update"]));
    assert_eq!(svd.main_pid("web"), main);
    let (_, _, cpus, _) = limits_of(main);
    assert_eq!(cpus, before.2, "{said}");
    svd.stop();
}

#[test]
fn what_cannot_be_changed_is_said() {
    let mut svd = Svd::new();
    svd.service("web", &script(SLEEP, "[limits]\nopen_files = 64\n"));
    svd.start();
    svd.wait_state("web", "running");
    let main = svd.main_pid("web");
    svd.service("web", &script(SLEEP, "[limits]\nopen_files = 65\n"));
    let said = both(&svd.svctl(&["update"]));
    let raised = limits_of(main).0 == "65 65";
    assert_eq!(!raised, said.contains("limits.open_files is not changed for what runs: of process"), "{said}");
    assert_eq!(svd.main_pid("web"), main);
    svd.stop();
}

#[test]
fn controllers_that_are_not_there_are_named() {
    let mut svd = Svd::new();
    svd.service("web", &script(SLEEP, ""));
    svd.start();
    svd.wait_state("web", "running");
    let (main, before) = (svd.main_pid("web"), svd.ok(&["status"]));
    svd.service("web", &script(SLEEP, "[limits]\nmemory = '100MiB'\ntasks = 50\n[environment]\nA = 'b'\n"));
    svd.service("other", &script(SLEEP, ""));
    let output = svd.svctl(&["update"]);
    if output.status.success() {
        println!("skipped: this host has the controllers");
        svd.stop();
        return;
    }
    let said = both(&output);
    for part in [
        "web: [limits] memory needs the memory controller of cgroup v2",
        "web: [limits] tasks needs the pids controller of cgroup v2",
        "or use restart_above",
        "nothing was changed",
    ] {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
    assert_eq!(svd.main_pid("web"), main, "it was not touched");
    assert!(!svd.ok(&["status"]).contains("other"), "{before}");
    let said = svd.fails(&["check", &svd.path("etc").display().to_string()]);
    assert!(said.contains("web: [limits] memory needs the memory controller"), "{said}");
    // As at a boot of svd.
    svd.stop();
    svd.start();
    wait_until("the reason is told", PATIENCE, || {
        both(&svd.svctl(&["status", "web"])).contains("needs the memory controller")
    });
    svd.wait_state("other", "running");
    // Who says that it may be lacking gets the rest.
    let optional = "[isolation]\noptional = ['limits.memory', 'limits.tasks']\n";
    svd.service("web", &script(SLEEP, &format!("[limits]\nmemory = '100MiB'\ntasks = 50\nnice = 4\n{optional}")));
    svd.ok(&["update"]);
    svd.wait_state("web", "running");
    assert_eq!(limits_of(svd.main_pid("web")).3, "4");
    svd.stop();
}
