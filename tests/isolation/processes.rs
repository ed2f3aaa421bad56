//! Processes of its own: what a service sees of others', and that svd has it in hand all the same.

use super::{breaks_out_only_without, works_with};
use crate::support::plain::{alive, needs_root, python};
use crate::support::svd::Svd;
use crate::support::{PATIENCE, wait_for, wait_until};
use airdock::sys::process::{descendants, inner_pid};
use std::process::{Child, Command};

/// Somebody else's process of the same user. Ended with the test.
struct Victim(Child);

impl Victim {
    fn new() -> Victim {
        Victim(Command::new("sleep").arg("98765").spawn().expect("a process"))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const KEY: &str = "private_pids = true";

#[test]
fn others_are_neither_seen_nor_signalled() {
    if needs_root() {
        return;
    }
    let victim = Victim::new();
    let pid = victim.0.id();
    breaks_out_only_without(KEY, "", &format!("os.kill({pid}, signal.SIGCONT)"), "No such process");
    let look = format!("with open('/proc/{pid}/cmdline') as f: assert '98765' in f.read()");
    breaks_out_only_without(KEY, "", &look, "No such file");
    let trace =
        format!("call('ptrace', 16, {pid}, 0, 0)\nos.waitpid({pid}, 0x40000000)\ncall('ptrace', 17, {pid}, 0, 0)");
    breaks_out_only_without(KEY, "", &trace, "No such process");
    // What it does see is its own: itself, and the first process, which it cannot end.
    let own = "assert os.getpid() == 2 and sorted(p for p in os.listdir('/proc') if p.isdigit()) == ['1', '2']\n\
               os.kill(1, signal.SIGKILL)\n\
               first = dict(l.split(':\\t', 1) for l in open('/proc/1/status') if ':\\t' in l)\n\
               assert int(first['SigPnd'], 16) == int(first['ShdPnd'], 16) == 0 and first['State'][0] == 'S', first\n\
               for name in 'environ', 'mem', 'root':\n    \
                   try:\n        open(f'/proc/1/{name}', 'rb') if name != 'root' else os.listdir('/proc/1/root')\n        \
                       raise AssertionError(name + ' of the first process can be read')\n    \
                   except PermissionError:\n        pass";
    works_with(&format!("{KEY}\ncapabilities = []"), "", own);
}

/// A service that only waits, and what it does before.
fn service(svd: &mut Svd, program: &str, top: &str) {
    let program = format!("import os, signal, subprocess, sys, time\n{program}\n");
    svd.service("apart", &python(&program, &format!("{top}\n[isolation]\n{KEY}")));
    svd.start();
}

#[test]
fn a_program_ends_as_it_would_alone() {
    if needs_root() {
        return;
    }
    for (last, expected) in [
        ("sys.exit(7)", "code 7"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("os.abort()", "SIGABRT"),
        ("os.execv('/no/such/program', ['x'])", "code 1"),
    ] {
        let mut svd = Svd::new();
        service(&mut svd, &format!("time.sleep(1.2)\n{last}"), "restart.policy = 'never'");
        let status = wait_for("its end", PATIENCE, || {
            let status = svd.status("apart").to_string();
            ["failed", "stopped", "exited"]
                .iter()
                .any(|state| status.contains(&format!("\"state\":\"{state}\"")))
                .then_some(status)
        });
        assert!(status.contains(expected), "{last}: {status}");
    }
}

#[test]
fn signals_pass_and_orphans_leave_no_zombies() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let program = "def say(number, frame): print('got', signal.Signals(number).name, flush=True)\n\
                   for s in 'HUP', 'USR1', 'USR2', 'TTIN', 'TTOU', 'WINCH', 'QUIT': signal.signal(getattr(signal, 'SIG' + s), say)\n\
                   for _ in range(20): subprocess.run(['/bin/sh', '-c', 'sleep 0.01 & exit 0'])\n\
                   def left():\n    \
                       all = [p for p in os.listdir('/proc') if p.isdigit()]\n    \
                       try: return [open(f'/proc/{p}/stat').read().split(')')[-1].split()[0] for p in all]\n    \
                       except OSError: return ['gone']\n\
                   states = left()\n\
                   while len(states) != 2 or 'Z' in states: time.sleep(0.02); states = left()\n\
                   print('states', states.count('Z'), len(states), flush=True)\n\
                   while True: signal.pause()";
    service(&mut svd, program, "");
    wait_until("it has looked", PATIENCE, || svd.output("apart").contains("states 0 2\n"));
    for name in ["HUP", "USR1", "USR2", "TTIN", "TTOU", "WINCH", "QUIT"] {
        svd.ok(&["signal", name, "apart"]);
        wait_until("it has come", PATIENCE, || svd.output("apart").contains(&format!("got SIG{name}\n")));
    }
    svd.wait_state("apart", "running");
}

/// The first process, the program, and three that it has left.
fn with_orphans(entrance: i32) -> Vec<i32> {
    wait_for("its orphans", PATIENCE, || {
        let all: Vec<i32> = descendants(entrance).into_iter().filter(|pid| alive(*pid)).collect();
        (all.len() == 5).then_some(all)
    })
}

/// All that ignores being told to stop is killed, whatever session it has fled to.
#[test]
fn a_stop_ends_everything() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let program = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
                   for _ in range(3):\n    \
                       if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n            time.sleep(98765)\n        os._exit(0)\n\
                   print('forked', flush=True)\ntime.sleep(98765)";
    service(&mut svd, program, "stop.grace = '1s'");
    wait_until("they are there", PATIENCE, || svd.output("apart").contains("forked"));
    let program = svd.main_pid("apart");
    assert_eq!(inner_pid(program), Some(2));
    let entrance = airdock::sys::process::ProcStat::read(program).expect("it runs").parent;
    let mut all = with_orphans(entrance);
    all.push(entrance);
    svd.ok(&["stop", "apart"]);
    // The first process of the namespace waits for svd to reap the others.
    assert!(all.iter().all(|pid| !alive(*pid) || inner_pid(*pid) == Some(1)), "{all:?}");
    wait_until("that one is gone, too", PATIENCE, || all.iter().all(|pid| !alive(*pid)));
    // Nor does anything outlive the process that svd knows, or the program.
    for victim in ["entrance", "program"] {
        svd.ok(&["start", "apart"]);
        let program = svd.main_pid("apart");
        let entrance = airdock::sys::process::ProcStat::read(program).expect("it runs").parent;
        let all = with_orphans(entrance);
        let pid = nix::unistd::Pid::from_raw(if victim == "program" { program } else { entrance });
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("killed");
        wait_until("all of it is gone", PATIENCE, || all.iter().all(|pid| !alive(*pid)));
        svd.ok(&["stop", "apart"]);
    }
}

#[test]
fn the_next_svd_takes_it_over() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let program = "def end(number, frame): print('told to end', flush=True); sys.exit(0)\n\
                   signal.signal(signal.SIGTERM, end)\nprint('up', flush=True)\nwhile True: time.sleep(1)";
    service(&mut svd, program, "ready.log = 'up'");
    svd.wait_state("apart", "running");
    let before = svd.main_pid("apart");
    svd.kill_both();
    svd.start();
    svd.wait_state("apart", "running");
    assert_eq!(svd.main_pid("apart"), before);
    svd.ok(&["stop", "apart"]);
    assert!(svd.output("apart").contains("told to end"), "{}", svd.output("apart"));
    assert!(!alive(before));
}

/// What systemd's protocol says about numbers of processes is right inside.
#[test]
fn numbers_in_messages_are_understood() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let program = "import socket\n\
                   s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                   assert os.environ['WATCHDOG_PID'] == str(os.getpid()), os.environ\n\
                   assert os.environ['LISTEN_PID'] == str(os.getpid()), os.environ\n\
                   s.connect(os.environ['NOTIFY_SOCKET'])\n\
                   s.send(f'MAINPID={os.getpid()}\\nREADY=1'.encode())\n\
                   child = subprocess.Popen(['sleep', '98765'])\n\
                   s.send(f'MAINPID={child.pid}'.encode())\n\
                   while True:\n    s.send(b'WATCHDOG=1')\n    time.sleep(0.2)";
    let listen = format!("sockets.a.listen = 'unix:{}'", svd.path("a.sock").display());
    service(&mut svd, program, &format!("ready.notify = true\nhealth.watchdog = '10s'\n{listen}"));
    svd.wait_state("apart", "running");
    let main = svd.main_pid("apart");
    wait_until("the other main process is refused", PATIENCE, || {
        svd.ok(&["events"]).contains("is ignored: with isolation.private_pids")
    });
    assert_eq!(svd.main_pid("apart"), main);
    let workers = svd.ok(&["status", "apart", "--workers"]);
    assert!(
        workers.contains(&main.to_string()) && workers.contains("sleep") && !workers.contains("svd-init"),
        "{workers}"
    );
}
