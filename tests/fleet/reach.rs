//! How far the way to a host goes, and what is told of it.

use super::bed::{Bed, STRANGER, sleeper};
use super::support::{PATIENCE, finish, wait_until};
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

#[test]
fn status_of_all_with_one_host_down() {
    let Some(bed) = Bed::start(3) else { return };
    bed.hosts[2].vanish();
    let begun = Instant::now();
    let (code, out, err) = bed.told(&["-H", "all", "status"]);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    assert_eq!(code, 4, "{out}{err}");
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().take(4).collect()).collect();
    assert_eq!(
        lines,
        [
            ["web-0", "|", "NAME", "STATE"],
            ["web-0", "|", "web", "running"],
            ["web-1", "|", "NAME", "STATE"],
            ["web-1", "|", "web", "running"]
        ]
    );
    let mut told = err.lines();
    let first = told.next().unwrap_or_default();
    assert!(
        first.starts_with("web-2 | svctl: web-2 cannot be reached: ssh: connect to host 10.77.0.3 port 22: "),
        "{err}"
    );
    assert!(told.all(|line| line.starts_with("web-2 | ")), "{err}");

    let document = bed.json(&["-H", "all", "status"]);
    let hosts = document["hosts"].as_array().expect("hosts");
    let codes: Vec<_> =
        hosts.iter().map(|host| (host["host"].as_str().unwrap(), host["exit_code"].as_i64().unwrap())).collect();
    assert_eq!(codes, [("web-0", 0), ("web-1", 0), ("web-2", 4)]);
    assert_eq!(hosts[1]["result"]["services"][0]["state"], "running");
    assert_eq!(hosts[2]["error"]["code"], "unavailable");
    assert!(hosts[2].get("result").is_none());

    // It comes back.
    bed.hosts[2].return_to_network();
    assert!(bed.ok(&["-H", "web-2", "status"]).starts_with("NAME "), "one host's words are as they are there");
}

#[test]
fn what_is_missing_on_a_host_is_told() {
    let Some(mut bed) = Bed::start(2) else { return };
    let reason = |bed: &Bed, what: &str| {
        let (code, out, err) = bed.told(&["-H", "web-1", "status"]);
        assert_eq!(out, "", "{what}");
        (code, err.lines().next().unwrap_or_default().to_owned(), err)
    };
    // No svctl.
    let fleet = fs::read_to_string(bed.path("fleet.toml")).unwrap();
    fs::write(bed.path("fleet.toml"), format!("{fleet}svctl = \"/nowhere/svctl\"\n")).unwrap();
    let (code, first, all) = reason(&bed, "no svctl");
    assert!(code == 4 && first.starts_with("svctl: web-1 has no svctl: ") && first.contains("/nowhere/svctl"), "{all}");
    fs::write(bed.path("fleet.toml"), &fleet).unwrap();

    // Not allowed: by the access rules, by the socket's mode, by the key.
    let as_stranger = fleet.replace("ssh = \"10.77.0.2\"", "ssh = \"stranger@10.77.0.2\"");
    fs::write(bed.path("fleet.toml"), &as_stranger).unwrap();
    let (code, first, all) = reason(&bed, "the socket");
    assert!(code == 4 && first.starts_with("svctl: web-1: You may not connect to svd at "), "{all}");
    let (code, _, _) = bed.told(&["-H", "web-1", "restart", "web"]);
    assert_eq!(code, 5);
    bed.hosts[1]
        .svd
        .config(&format!("[[access]]\nusers = [\"{STRANGER}\"]\nverbs = [\"status\"]\nservices = [\"*\"]\n"));
    bed.hosts[1].svd.ok(&["update"]);
    assert!(bed.ok(&["-H", "web-1", "status"]).contains("running"));
    let (code, _, err) = bed.told(&["-H", "web-1", "restart", "web"]);
    assert!(code == 5 && err.contains("stranger"), "{code} {err}");
    fs::write(bed.path("fleet.toml"), fleet.replace("ssh = \"10.77.0.2\"", "ssh = \"nobody-there@10.77.0.2\""))
        .unwrap();
    let (code, first, all) = reason(&bed, "the key");
    assert!(
        code == 4 && first.starts_with("svctl: web-1 cannot be reached: nobody-there@10.77.0.2: Permission denied"),
        "{all}"
    );
    fs::write(bed.path("fleet.toml"), &fleet).unwrap();

    // No svd.
    bed.hosts[1].svd.stop();
    let (code, first, all) = reason(&bed, "no svd");
    assert!(
        code == 4
            && first.starts_with("svctl: web-1: svd cannot be reached at ")
            && first.ends_with("there is no such socket."),
        "{all}"
    );
    assert!(bed.ok(&["-H", "web-0", "status"]).contains("running"));
}

/// What a login script prints, on either side, is not taken for an answer.
#[test]
fn chatter_of_a_login_is_no_answer() {
    let chatter =
        "ForceCommand sh -c 'echo Welcome.; echo HTTP/1.1 200 OK; echo cat >&2; eval \"$SSH_ORIGINAL_COMMAND\"'";
    let Some(bed) = Bed::start_with(1, chatter) else { return };
    let (code, out, err) = bed.told(&["-H", "all", "status"]);
    assert!(code == 0 && out.contains("running") && err.is_empty(), "{code} {out} {err}");
}

/// A server that turns connections away when they come too fast is asked again.
#[test]
fn connections_that_come_too_fast_are_made_again() {
    let Some(bed) = Bed::start_with(1, "MaxStartups 1:100:1") else { return };
    // No more than get their turn, one after the other, before the last one gives up: log ins are slow on a busy machine.
    let names: Vec<String> = (0..3).map(|n| format!("alias-{n}")).collect();
    let mut text = format!("hosts = {names:?}\nssh_config = \"ssh_config\"\n");
    for name in &names {
        text += &format!("[host.{name}]\nssh = \"10.77.0.1\"\nsocket = {:?}\n", bed.hosts[0].svd.socket());
    }
    fs::write(bed.path("fleet.toml"), text).unwrap();
    let (code, out, err) = bed.told(&["-H", "all", "version"]);
    assert_eq!((code, out.lines().filter(|line| line.contains("| svd ")).count()), (0, names.len()), "{out}{err}");
    let log = fs::read_to_string(bed.hosts[0].svd.path("ssh/log")).unwrap();
    assert!(log.contains("MaxStartups"), "none was turned away:\n{log}");
}

#[test]
fn an_interrupted_svctl_leaves_nothing() {
    let Some(bed) = Bed::start(2) else { return };
    for signal in [nix::sys::signal::SIGINT, nix::sys::signal::SIGTERM] {
        let mut child =
            bed.svctl_command(&["-H", "all", "logs", "-f", "web"]).stdout(std::process::Stdio::null()).spawn().unwrap();
        let busy = || bed.hosts.iter().all(|host| !host.processes("relay").is_empty());
        wait_until("both hosts are followed", PATIENCE, busy);
        // nsenter has become svctl.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal as i32));
        bed.assert_clean();
        let idle =
            || bed.hosts.iter().all(|host| host.processes("relay").is_empty() && host.processes("cat").is_empty());
        wait_until("nothing of it runs on the hosts", PATIENCE, idle);
    }
    // Killed, it can remove nothing, but its connections end with it.
    let mut child =
        bed.svctl_command(&["-H", "all", "logs", "-f", "web"]).stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_until("both hosts are followed", PATIENCE, || {
        bed.hosts.iter().all(|host| !host.processes("relay").is_empty())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let idle = || bed.hosts.iter().all(|host| host.processes("relay").is_empty() && host.processes("cat").is_empty());
    wait_until("nothing of it runs on the hosts", PATIENCE, idle);
    fs::remove_dir_all(bed.path("tmp")).unwrap();
}

/// A server that allows fewer sessions a connection than are wanted gets more connections.
#[test]
fn more_sessions_than_a_connection_may_have() {
    let Some(bed) = Bed::start_with(1, "MaxSessions 2") else { return };
    for name in ["db", "queue"] {
        bed.hosts[0].svd.service(name, &sleeper());
    }
    bed.hosts[0].svd.ok(&["update"]);
    bed.hosts[0].svd.ok(&["start", "*"]);
    let mut child = bed.svctl_command(&["-H", "all", "logs", "-f", "*"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut waiting = vec!["db", "queue", "web"];
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    while !waiting.is_empty() {
        let line = lines.next().expect("lines of all three");
        waiting.retain(|name| !(line.starts_with(name) && line.ends_with("begun on web-0")));
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id().cast_signed()), nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    bed.assert_clean();
}

/// It takes ssh a while to find out, so that this is among the long ones.
#[test]
fn a_host_that_vanishes_in_the_midst_is_given_up() {
    if std::env::var_os("AIRDOCK_LONG").is_none() {
        println!("skipped a part: AIRDOCK_LONG is not set");
        return;
    }
    let Some(bed) = Bed::start(2) else { return };
    let mut child = bed.svctl_command(&["-H", "all", "exec", "web", "--", "sleep", "54321"]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("both run it", PATIENCE, || bed.hosts.iter().all(|host| !host.processes("sleep 54321").is_empty()));
    for host in &bed.hosts {
        host.vanish();
    }
    let vanished = Instant::now();
    let output = finish(child, "svctl", Duration::from_secs(120));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(6) && said.contains("web-1 | svctl: The connection to svd was lost"),
        "{said}"
    );
    println!("given up after {:?}", vanished.elapsed());
    // ssh's 15 s, and a busy machine.
    assert!(vanished.elapsed() < Duration::from_secs(40), "{:?}", vanished.elapsed());
    bed.assert_clean();
}
