//! `svctl exec` with input, and with a terminal of its own.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use nix::sys::signal::{Signal, kill};
use nix::sys::termios::LocalFlags;
use nix::unistd::Pid;
use std::io::{Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use support::plain::{SLEEP, alive, number_in, script};
use support::pty::Pty;
use support::svd::{Home, quoted};
use support::{App, PATIENCE, Release, Svd, wait_until};

fn started() -> Svd {
    let mut svd = Svd::new();
    svd.service("web", &script(SLEEP, "[environment]\nCOLOUR = 'blue'\n"));
    svd.start();
    svd.wait_state("web", "running");
    svd
}

/// On pipes.
fn piped(mut command: Command) -> Child {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("svctl")
}

/// With this as its input.
fn fed(svd: &Svd, args: &[&str], input: &[u8]) -> Output {
    let mut child = piped(svd.svctl_command(args));
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = support::finish(child, "svctl exec", Duration::from_secs(60));
    feeder.join().expect("no panic");
    output
}

/// A command on a terminal; svctl's other end is the test's.
fn on_terminal(svd: &Svd, args: &[&str]) -> Pty {
    Pty::start(svd.svctl_command(args), 91, 23)
}

#[test]
fn input_goes_in_to_its_end_and_outputs_come_apart() {
    let svd = started();
    let output = fed(&svd, &["exec", "web", "--", "sh", "-c", "cat; echo $COLOUR >&2; exit 42"], b"one\n\x00\xff");
    assert_eq!((&*output.stdout, &*output.stderr), (&b"one\n\x00\xff"[..], &b"blue\n"[..]));
    assert_eq!(output.status.code(), Some(42));
    // Ten megabytes there and back.
    let many: Vec<u8> = (0..10_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let output = fed(&svd, &["exec", "web", "cat"], &many);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == many, "{} bytes of {} came", output.stdout.len(), many.len());
    // A command that takes none of it ends all the same; nothing waits for ever.
    let output = fed(&svd, &["exec", "web", "sh", "-c", "exec <&-; sleep 0.3; echo done"], &many);
    assert_eq!((&*output.stdout, output.status.code()), (&b"done\n"[..], Some(0)));
    let output = fed(&svd, &["exec", "web", "echo", "done"], &many);
    assert_eq!((&*output.stdout, output.status.code()), (&b"done\n"[..], Some(0)));
    // It can open them again by their names, as /dev/stdout.
    let output = fed(&svd, &["exec", "web", "sh", "-c", "cat /dev/stdin >/dev/stdout"], b"again");
    assert_eq!(output.stdout, b"again", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn signals_pass_where_there_is_no_terminal() {
    let svd = started();
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut child = piped(svd.svctl_command(&["exec", "web", "sh", "-c", "echo up; exec sleep 100000"]));
        child.stdout.as_mut().expect("a pipe").read_exact(&mut [0; 3]).expect("its first word");
        // What it does not read does not hold the signal up.
        let mut stdin = child.stdin.take().expect("a pipe");
        let feeder = std::thread::spawn(move || drop(stdin.write_all(&vec![b'x'; 1 << 20])));
        kill(Pid::from_raw(child.id().cast_signed()), signal).expect("a signal");
        let output = support::finish(child, "svctl", PATIENCE);
        feeder.join().expect("no panic");
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let caught = "trap 'echo caught; exit 5' TERM; echo up; while :; do sleep 0.05; done";
    let mut child = piped(svd.svctl_command(&["exec", "web", "sh", "-c", caught]));
    child.stdout.as_mut().expect("a pipe").read_exact(&mut [0; 3]).expect("its first word");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("a signal");
    let output = support::finish(child, "svctl", PATIENCE);
    assert_eq!((&*output.stdout, output.status.code()), (&b"caught\n"[..], Some(5)));
}

#[test]
fn a_terminal_of_its_own() {
    let svd = started();
    let mut pty = on_terminal(&svd, &["exec", "web", "--", "python3", "-q"]);
    let before = pty.settings();
    pty.wait_seen(">>> ");
    assert!(!pty.settings().local_flags.intersects(LocalFlags::ECHO | LocalFlags::ISIG | LocalFlags::ICANON), "raw");
    let mut answers = |typed: &str, answer: &str| {
        pty.type_in(format!("{typed}\r").as_bytes());
        pty.wait_seen(answer);
    };
    answers("import os, time; 'it is ' + str(6 * 7)", "'it is 42'");
    answers("os.environ['COLOUR'] + '/' + os.environ['TERM']", "blue/xterm");
    answers("'size', os.get_terminal_size()", "columns=91, lines=23");
    answers("'ids', os.getsid(0) == os.getpid(), os.tcgetpgrp(0) == os.getpid()", "('ids', True, True)");
    answers("print('slee' + 'ping'); time.sleep(1000)", "sleeping");
    pty.type_in(b"\x03");
    pty.wait_seen("KeyboardInterrupt");
    pty.resize(120, 40);
    pty.type_in(b"os.system('stty size')\r");
    pty.wait_seen("40 120");
    pty.type_in(b"exit(17)\r");
    assert_eq!(pty.wait_end(PATIENCE).code(), Some(17));
    assert_eq!(pty.settings(), before, "the caller's terminal is as it was");
}

#[test]
fn the_callers_terminal_is_given_back_whatever_happens() {
    let svd = started();
    for (signal, code) in [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129)] {
        let mut pty = on_terminal(&svd, &["exec", "web", "sh", "-c", "echo it is up; exec sleep 100000"]);
        let before = pty.settings();
        pty.wait_seen("it is up");
        kill(Pid::from_raw(pty.pid()), signal).expect("a signal");
        assert_eq!(pty.wait_end(PATIENCE).code(), Some(code));
        assert_eq!(pty.settings(), before);
    }
    // What cannot be run is said on a terminal that is as it was.
    let mut pty = on_terminal(&svd, &["exec", "web", "no-such-program"]);
    assert_eq!(pty.wait_end(PATIENCE).code(), Some(1));
    pty.wait_seen("cannot find the program \"no-such-program\"");
    // Asked for, and asked not to be.
    let mut pty = on_terminal(&svd, &["exec", "-T", "web", "sh", "-c", "test -t 0 || test -t 1 || echo none"]);
    pty.wait_seen("none");
    assert_eq!(pty.wait_end(PATIENCE).code(), Some(0));
    let output = fed(&svd, &["exec", "--tty", "web", "sh", "-c", "test -t 0 && test -t 1 && stty size; cat"], b"a\n");
    let shown = String::from_utf8_lossy(&output.stdout);
    // The echo comes when it comes.
    assert!(shown.contains("24 80\r\n") && shown.matches("a\r\n").count() == 2, "{shown}");
    assert_eq!(output.status.code(), Some(0), "the end of the input ends it");
}

/// Types into the terminal that it runs on (`TIOCSTI`).
const PUSHES: &str = "import fcntl, termios
for name in ('/dev/tty', '/dev/stdin'):
    try:
        with open(name, 'rb+', buffering=0) as there:
            for letter in b'id\\n':
                fcntl.ioctl(there, termios.TIOCSTI, bytes([letter]))
    except OSError as error:
        print(error)
print('pushed')
";

#[test]
fn nothing_can_be_typed_into_the_callers_terminal() {
    let svd = started();
    let program = svd.path("push.py");
    std::fs::write(&program, PUSHES).expect("a program");
    let mut direct = Command::new("setsid");
    direct.args(["--ctty", "--wait", "python3"]).arg(&program);
    let mut pty = Pty::start(direct, 80, 24);
    pty.wait_seen("pushed");
    pty.wait_end(PATIENCE);
    if pty.unread() == 0 {
        return println!("skipped: this kernel lets nobody type into terminals: {}", pty.seen());
    }
    let path = program.display().to_string();
    let mut pty = on_terminal(&svd, &["exec", "web", "python3", &path]);
    pty.wait_seen("pushed");
    assert_eq!(pty.wait_end(PATIENCE).code(), Some(0));
    assert_eq!(pty.unread(), 0, "{}", pty.seen());
}

#[test]
fn a_client_that_vanishes_leaves_nothing_behind() {
    let svd = started();
    let (first, second, hung) = (svd.path("first"), svd.path("second"), svd.path("hung"));
    let program = format!(
        "trap 'touch {}; while :; do sleep 0.05; done' HUP; echo $$ >{first}.new; mv {first}.new {first}; (setsid sh -c 'trap \"\" HUP; \
         echo $$ >{second}.new; mv {second}.new {second}; while :; do sleep 0.05; done' &); while :; do sleep 0.05; done",
        hung.display(),
        first = first.display(),
        second = second.display()
    );
    for flag in ["--tty", "--no-tty"] {
        let mut client = piped(svd.svctl_command(&["exec", flag, "web", "sh", "-c", &program]));
        wait_until("both run", PATIENCE, || first.exists() && second.exists());
        let pids = [&first, &second].map(|path| number_in(path).expect("a pid"));
        client.kill().expect("killing svctl");
        client.wait().expect("its end");
        wait_until("it is told", PATIENCE, || hung.exists());
        wait_until("nothing is left", PATIENCE, || !pids.iter().any(|pid| alive(*pid)));
        for path in [&first, &second, &hung] {
            std::fs::remove_file(path).expect("a mark");
        }
    }
}

#[test]
fn a_client_that_reads_nothing_holds_nobody_up() {
    let svd = started();
    let mut client = piped(svd.svctl_command(&["exec", "web", "sh", "-c", "while :; do echo yyyyyyyyyyyyyyyy; done"]));
    let memory = || {
        let pid = svd.pid();
        std::fs::read_to_string(format!("/proc/{pid}/status"))
            .expect("svd")
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:")?.trim().trim_end_matches(" kB").parse::<u64>().ok())
    };
    let before = memory().expect("its memory");
    for _ in 0..50 {
        svd.ok(&["status"]);
    }
    let after = memory().expect("its memory");
    assert!(after < before + 4096, "{before} kB, then {after} kB");
    client.kill().expect("ending svctl");
    client.wait().expect("its end");
}

#[test]
fn where_svd_dies_the_session_ends_clearly() {
    let svd = started();
    let mark = svd.path("pid");
    let program = format!("echo $$ >{0}.new; mv {0}.new {0}; exec sleep 100000", mark.display());
    let mut pty = on_terminal(&svd, &["exec", "web", "sh", "-c", &program]);
    let before = pty.settings();
    wait_until("it runs", PATIENCE, || mark.exists());
    let pid = number_in(&mark).expect("a pid");
    svd.signal(Signal::SIGKILL);
    assert_eq!(pty.wait_end(PATIENCE).code(), Some(6));
    pty.wait_seen("The connection to svd was lost");
    assert_eq!(pty.settings(), before);
    wait_until("the command's terminal has hung up", PATIENCE, || !alive(pid));
    wait_until("svd is back", PATIENCE, || svd.answers());
    svd.ok(&["exec", "web", "true"]);
}

#[test]
fn a_release_that_does_not_run() {
    let mut svd = Svd::new();
    let app: App = svd.app("shop");
    let (one, two) = (app.publish(&Release::new("one")), app.publish(&Release::new("two")));
    app.switch("two");
    let more =
        format!("root = {}\nautostart = false\n[environment]\nIN = '{{release}}'\n", quoted(&svd.path("srv/shop")));
    svd.service("shop", &script(SLEEP, &more));
    svd.start();
    let look = ["sh", "-c", "pwd; echo $IN"];
    let run = |before: &[&str]| svd.ok(&[before, &look].concat());
    let of = |dir: &std::path::Path, _id: &str| format!("{0}\n{0}\n", dir.display());
    assert_eq!(run(&["exec", "shop"]), of(&two, "two"), "what would be started");
    assert_eq!(run(&["exec", "--release", "one", "shop"]), of(&one, "one"));
    svd.ok(&["start", "shop"]);
    assert_eq!(run(&["exec", "--release", "one", "shop"]), of(&one, "one"));
    assert_eq!(run(&["exec", "shop"]), of(&two, "two"));
    let json: serde_json::Value =
        serde_json::from_str(&run(&["--json", "exec", "--release", "one", "shop"])).expect("a document");
    assert_eq!(json["output"], of(&one, "one"));
    let said = svd.fails(&["exec", "--release", "three", "shop", "true"]);
    assert!(said.contains("three"), "{said}");
}

#[test]
fn a_terminal_in_an_isolated_service() {
    if support::plain::needs_root() {
        return;
    }
    let mut svd = Svd::new();
    svd.service("web", &script(SLEEP, "user = 'nobody'\n[isolation]\nprofile = 'strict'\n"));
    svd.start();
    svd.wait_state("web", "running");
    let mut pty = on_terminal(&svd, &["exec", "web", "--", "sh"]);
    let before = pty.settings();
    pty.type_in(b"id -un; stty size; test -t 0 && echo is a ter''minal; grep -c . /proc/self/status >/dev/null && echo do''ne\r");
    for text in ["nobody", "23 91", "is a terminal", "done"] {
        pty.wait_seen(text);
    }
    // Ctrl-C ends the command in the foreground, and not the shell.
    pty.type_in(b"echo slee''ping; sleep 100000\r");
    pty.wait_seen("sleeping");
    pty.type_in(b"\x03");
    pty.type_in(b"echo go''es on; (echo slept >/dev/tty) && ls /home 2>&1 | wc -l\r");
    pty.wait_seen("goes on");
    pty.wait_seen("slept");
    pty.type_in(b"exit 17\r");
    assert_eq!(pty.wait_end(PATIENCE).code(), Some(17));
    assert_eq!(pty.settings(), before);
    let output = fed(&svd, &["exec", "web", "cat"], b"through pipes");
    assert_eq!(output.stdout, b"through pipes", "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn without_control_groups_and_as_a_plain_user() {
    if support::plain::needs_root() {
        return;
    }
    for home in [Home::Container, Home::PlainUser] {
        let mut svd = Svd::new();
        svd.home = home;
        svd.service("web", &script(SLEEP, ""));
        if home == Home::PlainUser {
            support::plain::give_to_nobody(&svd);
        }
        svd.start();
        svd.wait_state("web", "running");
        let mut pty = on_terminal(&svd, &["exec", "web", "--", "sh"]);
        pty.type_in(b"stty size; echo slee''ping; sleep 100000\r");
        pty.wait_seen("23 91");
        pty.wait_seen("sleeping");
        pty.type_in(b"\x03exit 17\r");
        assert_eq!(pty.wait_end(PATIENCE).code(), Some(17), "{home:?}");
        let mark = svd.path("run/mark");
        let program = format!(
            "trap '' HUP; (setsid sleep 100000 &); echo $$ >{0}.new; mv {0}.new {0}; sleep 100000; true",
            mark.display()
        );
        let mut client = piped(svd.svctl_command(&["exec", "--tty", "web", "sh", "-c", &program]));
        wait_until("it runs", PATIENCE, || mark.exists());
        let pid = number_in(&mark).expect("a pid");
        client.kill().expect("killing svctl");
        client.wait().expect("its end");
        wait_until("nothing is left", PATIENCE, || !alive(pid));
    }
}

/// So that who may run commands in one service cannot take the place of another's checks.
#[test]
fn a_command_counts_as_long_as_it_lives() {
    let svd = started();
    let pids = svd.path("pids");
    std::fs::write(&pids, "").expect("a file");
    let stays = format!("trap '' HUP; echo $$ >>{}; while :; do sleep 1; done", pids.display());
    let begun = || -> Vec<i32> {
        let text = std::fs::read_to_string(&pids).expect("pids");
        text.lines().filter_map(|line| line.parse().ok()).collect()
    };
    for _ in 0..5 {
        let before = begun().len();
        let command = || svd.svctl_command(&["exec", "web", "sh", "-c", &stays]);
        let mut clients: Vec<Child> = (0..14).map(|_| piped(command())).collect();
        wait_until("each client has its command, or was refused", PATIENCE, || {
            let refused = clients.iter_mut().filter_map(|client| client.try_wait().expect("its end")).count();
            begun().len() - before + refused >= 14
        });
        let living = begun().into_iter().filter(|pid| alive(*pid)).count();
        for client in &mut clients {
            client.kill().and_then(|()| client.wait()).expect("its end");
        }
        assert!(living <= 16, "{living} commands of clients run, most of whom have left");
    }
    wait_until("all have ended", PATIENCE, || !begun().into_iter().any(alive));
    svd.ok(&["exec", "web", "true"]);
}

#[test]
fn an_upgrade_spares_commands() {
    let svd = started();
    let mut child = piped(svd.svctl_command(&["exec", "web", "sh", "-c", "echo up; read x; echo $x"]));
    child.stdout.as_mut().expect("a pipe").read_exact(&mut [0; 3]).expect("its first word");
    let said = svd.fails(&["upgrade"]);
    assert!(said.contains("would be cut off: `sh -c") && said.contains("--force"), "{said}");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"done\n").expect("its input");
    drop(stdin);
    let output = support::finish(child, "svctl", PATIENCE);
    assert_eq!((&*output.stdout, output.status.code()), (&b"done\n"[..], Some(0)));
    svd.ok(&["upgrade"]);
    let mut child = piped(svd.svctl_command(&["exec", "web", "sh", "-c", "echo up; exec sleep 100000"]));
    child.stdout.as_mut().expect("a pipe").read_exact(&mut [0; 3]).expect("its first word");
    svd.ok(&["upgrade", "--force"]);
    let output = support::finish(child, "svctl", PATIENCE);
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What could not be asked is neither well nor ill.
#[test]
fn where_checks_have_no_room_nobody_is_blamed() {
    let mut svd = Svd::new();
    let free = svd.path("free");
    let waits =
        format!("echo >>{}; while ! test -e {}; do sleep 0.2; done", svd.path("waits").display(), free.display());
    let checked = |command: &str, more: &str| {
        script(SLEEP, &format!("[health]\ncommand = [\"/bin/sh\", \"-c\", {command:?}]\ntimeout = '60s'\n{more}"))
    };
    for n in 0..64 {
        svd.service(&format!("waits-{n}"), &checked(&waits, "interval = '100ms'\n"));
    }
    let mark = svd.path("asked");
    let asked = format!("echo >>{}", mark.display());
    svd.service("web", &checked(&asked, "interval = '50ms'\nfailures = 1\naction = 'restart'\n"));
    svd.start();
    svd.wait_state("web", "running");
    wait_until("there is no room for another check", PATIENCE, || {
        svd.said().contains("64 commands of svd's run already")
    });
    wait_until("all wait", PATIENCE, || std::fs::read(svd.path("waits")).is_ok_and(|lines| lines.len() >= 64));
    let count = || std::fs::read(&mark).map_or(0, |lines| lines.len());
    let (before, pid) = (count(), svd.main_pid("web"));
    // Some of its checks are left out.
    std::thread::sleep(Duration::from_millis(500));
    let status = svd.status("web");
    assert_ne!(status["health"]["state"], "unhealthy", "{status:#}");
    assert_eq!((svd.main_pid("web"), &status["restarts"]), (pid, &serde_json::json!(0)), "{}", svd.said());
    assert!(count() <= before + 1, "its checks did run");
    std::fs::write(&free, "").expect("a file");
    wait_until("it is asked again", PATIENCE, || count() > before + 1);
}
