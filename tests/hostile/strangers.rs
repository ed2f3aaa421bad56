//! A local user who has no rights here: what such a one can reach, and what forged notifications do.

use super::support::plain::{NOBODY, needs_root, python, script};
use super::support::svd::{both, quoted};
use super::support::{PATIENCE, Svd, http_get, run_limited, wait_for, wait_until};
use super::users_directory;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

/// No machine has given that number out.
const STRANGER: u32 = 61_005;

fn as_user(uid: u32, mut command: Command) -> Output {
    command.uid(uid).gid(uid);
    run_limited(command, PATIENCE)
}

fn run_python(uid: u32, program: &str, args: &[&str]) -> Output {
    let mut python = Command::new("/usr/bin/python3");
    python.arg("-c").arg(program).args(args);
    as_user(uid, python)
}

/// Files below a directory that a user can read, and those that he can write to.
fn reachable(svd: &Svd, uid: u32, below: &str) -> Vec<String> {
    let mut find = Command::new("find");
    find.arg(svd.path(below)).args(["!", "-type", "d", "!", "-type", "l", "(", "-readable", "-o", "-writable", ")"]);
    let output = as_user(uid, find);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let prefix = svd.path("").display().to_string();
    text.lines().map(|l| l.trim_start_matches(&prefix).trim_start_matches('/').to_owned()).collect()
}

const SAYS: &str = "import os, socket, time\nprint('a secret', flush=True)\nprint('at', os.environ['NOTIFY_SOCKET'], flush=True)\n\
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
    def say(text): s.sendto(text.encode(), os.environ['NOTIFY_SOCKET'])\n";

fn notify_path(svd: &Svd, name: &str) -> String {
    wait_for("its notify socket", PATIENCE, || {
        let output = svd.output(name);
        let line = output.lines().find_map(|l| l.strip_prefix("at "))?;
        fs::symlink_metadata(line).is_ok().then(|| line.to_owned())
    })
}

fn foreign(svd: &Svd) -> u64 {
    let text = http_get(svd.public, "/metrics").expect("svd's public address answers").1;
    let line = text.lines().find_map(|l| l.strip_prefix("airdock_svd_notify_foreign_total "));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or_else(|| panic!("no such metric in\n{text}"))
}

const SEND: &str =
    "import socket, sys\nsocket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), sys.argv[1])";

#[test]
fn a_stranger_reaches_neither_control_nor_files_nor_notify_sockets() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    let waits = format!("{SAYS}say('READY=1')\ntime.sleep(1000)\n");
    svd.service("web", &python(&waits, "user = 'nobody'\n[ready]\nnotify = true\n"));
    svd.start();
    svd.wait_state("web", "running");
    let path = notify_path(&svd, "web");

    // Files as a naive daemon makes them.
    let naive = svd.path("state/naive");
    fs::write(&naive, "a secret").expect("a file");
    assert_eq!(reachable(&svd, STRANGER, "state"), ["state/naive"], "a naive file is readable");
    fs::remove_file(&naive).expect("removed");
    assert_eq!(reachable(&svd, STRANGER, "log"), [""; 0]);
    assert_eq!(reachable(&svd, STRANGER, "state"), [""; 0]);
    // Its pid, and the text of the launcher; the folders of pipes and of notify sockets cannot even be listed.
    let mut run = reachable(&svd, STRANGER, "run");
    run.sort();
    assert_eq!(run, ["run/airdock_gunicorn.py", "run/svd.pid"]);
    for name in fs::read_dir(svd.path("run/pipes")).expect("root can list it").flatten() {
        let open = "import os, sys\nos.open(sys.argv[1], getattr(os, sys.argv[2]) | os.O_NONBLOCK)";
        for how in ["O_RDONLY", "O_WRONLY", "O_RDWR"] {
            let output = run_python(STRANGER, open, &[&name.path().display().to_string(), how]);
            assert!(both(&output).contains("PermissionError"), "{how}: {}", both(&output));
        }
    }

    // Datagrams: a naive socket takes them from anybody, svd's from the service's user alone.
    let naive = svd.path("naive.sock");
    let open = UnixDatagram::bind(&naive).expect("a socket");
    fs::set_permissions(&naive, fs::Permissions::from_mode(0o777)).expect("its mode");
    let output = run_python(STRANGER, SEND, &[&naive.display().to_string(), "STATUS=forged"]);
    assert!(output.status.success(), "{}", both(&output));
    let mut buffer = [0; 64];
    assert_eq!(open.recv(&mut buffer).expect("a datagram"), 13);
    let output = run_python(STRANGER, SEND, &[&path, "STATUS=forged"]);
    assert!(both(&output).contains("PermissionError"), "{}", both(&output));

    // The control socket: nobody has rights here, so nobody else gets in at all.
    let mut svctl = svd.svctl_command(&["version"]);
    svctl.uid(STRANGER).gid(STRANGER);
    let output = run_limited(svctl, PATIENCE);
    let connect = "import socket, sys\nsocket.socket(socket.AF_UNIX).connect(sys.argv[1])";
    let raw = run_python(STRANGER, connect, &[&svd.socket().display().to_string()]);
    assert!(both(&raw).contains("PermissionError"), "{}", both(&raw));
    assert!(both(&output).contains("let others in"), "{}", both(&output));
    // With the first rule they may ask, and with the last one's end no more.
    svd.config("[[access]]\nusers = ['nobody']\nverbs = ['status']\nservices = ['web']\n");
    svd.ok(&["update"]);
    let status = |uid| {
        let mut svctl = svd.svctl_command(&["status", "web"]);
        svctl.uid(uid).gid(uid);
        run_limited(svctl, PATIENCE)
    };
    assert!(status(NOBODY).status.success(), "{}", both(&status(NOBODY)));
    assert!(!status(STRANGER).status.success());
    svd.config("");
    svd.ok(&["update"]);
    assert!(!status(NOBODY).status.success());
}

/// As the service's own user, but not of the service.
#[test]
fn forged_notifications_are_dropped_and_counted() {
    if needs_root() {
        return;
    }
    let mut svd = Svd::new();
    users_directory(&svd.path("told"));
    let told = svd.path("told/mainpid");
    let program = format!(
        "{SAYS}import signal\nsignal.signal(signal.SIGTERM, lambda *_: (print('told', flush=True), os._exit(0)))\n\
        while not os.path.exists({0}): time.sleep(0.01)\nsay('MAINPID=' + open({0}).read().strip())\nsay('READY=1')\ntime.sleep(1000)\n",
        quoted(&told)
    );
    svd.service("web", &python(&program, "user = 'nobody'\n[ready]\nnotify = true\n"));
    svd.service("other", &script(super::SLEEP, "user = 'nobody'\n"));
    svd.start();
    svd.wait_state("other", "running");
    let path = notify_path(&svd, "web");
    let before = foreign(&svd);

    // Who sends is not what the message says, nor what the sender claims.
    let naive = svd.path("told/naive.sock");
    let open = UnixDatagram::bind(&naive).expect("a socket");
    fs::set_permissions(&naive, fs::Permissions::from_mode(0o777)).expect("its mode");
    let worker = svd.main_pid("web");
    let output = run_python(NOBODY, SEND, &[&naive.display().to_string(), "READY=1\nSTATUS=forged"]);
    assert!(output.status.success() && open.recv(&mut [0; 64]).is_ok(), "a naive daemon believes it");
    let output = run_python(NOBODY, SEND, &[&path, "READY=1\nSTATUS=forged"]);
    assert!(output.status.success(), "the file lets that user send: {}", both(&output));
    let claim = "import socket, struct, sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.connect(sys.argv[1])\n\
        s.sendmsg([b'READY=1\\nSTATUS=forged'], [(socket.SOL_SOCKET, 2, struct.pack('iII', int(sys.argv[2]), 65534, 65534))])";
    let output = run_python(NOBODY, claim, &[&path, &worker.to_string()]);
    assert!(both(&output).contains("PermissionError"), "the kernel refuses another's pid: {}", both(&output));
    wait_until("it is counted", PATIENCE, || foreign(&svd) == before + 1);
    assert_eq!(svd.state("web"), "starting", "a forged READY=1 counts for nothing");
    assert!(!both(&svd.svctl(&["status", "web"])).contains("forged"));

    // The service names a process that isn't its own: a naive daemon would signal that one.
    let other = svd.main_pid("other");
    fs::write(&told, other.to_string()).expect("a file");
    svd.wait_state("web", "running");
    assert_eq!((svd.main_pid("web"), foreign(&svd)), (worker, before + 2));
    svd.ok(&["stop", "web"]);
    assert!(svd.output("web").contains("told"), "its own process is told to stop");
    assert_eq!(svd.main_pid("other"), other);
    assert_eq!(svd.status("other")["restarts"], 0);
}

/// A service passes as many descriptors as fit into a message, and more than svd has room for.
#[test]
fn descriptors_that_come_along_are_closed_whatever_their_number() {
    if needs_root() {
        return;
    }
    const LIMIT: usize = 128;
    let mut svd = Svd::new();
    let program = format!(
        "{SAYS}import array\nsent = 0\nwhile sent < 30:\n    \
        try:\n        s.sendmsg([b'STATUS=x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [0] * 253))], 0, os.environ['NOTIFY_SOCKET'])\n        sent += 1\n    \
        except OSError: time.sleep(0.01)\nsay('READY=1')\ntime.sleep(1000)\n"
    );
    svd.service("web", &python(&program, "user = 'nobody'\n[ready]\nnotify = true\n"));
    let plain = svd.command();
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={LIMIT}:{LIMIT}")).arg(plain.get_program()).args(plain.get_args());
    svd.start_with(command);
    svd.wait_state("web", "running");
    let open = fs::read_dir(format!("/proc/{}/fd", svd.pid())).expect("svd runs").count();
    assert!(open < LIMIT - 20, "{open} descriptors are open, of {LIMIT}");
}
