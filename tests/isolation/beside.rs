//! Checks and clients' commands are where a living worker is: they see its files and processes, and no more than it does.

use super::plain::needs_user_namespaces;
use crate::support::plain::{give_to_nobody, needs_root, python, script};
use crate::support::svd::{Home, Svd};
use crate::support::{PATIENCE, wait_for, wait_until};
use std::time::{Duration, Instant};

const KEYS: &str = "private_tmp = true\nprivate_pids = true\nnetwork = 'loopback'";

/// Leaves a file in its `/tmp`, listens on its 127.0.0.1, and waits.
const SERVICE: &str = "import os, socket, time\n\
                       s = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\n\
                       with open('/tmp/mark.new', 'w') as f: f.write(str(s.getsockname()[1]))\n\
                       os.rename('/tmp/mark.new', '/tmp/mark')\nprint('there', flush=True)\ntime.sleep(100000)";

/// Is where the service is.
const LOOK: &str = "import os, socket\n\
                    socket.create_connection(('127.0.0.1', int(open('/tmp/mark').read())), 5)\n\
                    assert b'mark.new' in open('/proc/2/cmdline', 'rb').read(), 'another one'\n\
                    assert '1' in os.listdir('/proc') and os.getpid() > 2\nprint('seen')";

fn started(home: Home, text: &str) -> Svd {
    let mut svd = Svd::new();
    svd.service("apart", text);
    svd.home = home;
    if home == Home::PlainUser {
        give_to_nobody(&svd);
    }
    svd.start();
    wait_until("it is there", PATIENCE, || svd.output("apart").contains("there\n"));
    svd
}

fn looks(svd: &Svd) -> String {
    svd.ok(&["exec", "apart", "--", "python3", "-c", LOOK])
}

#[test]
fn a_command_is_where_the_worker_is() {
    if needs_root() {
        return;
    }
    for (home, top) in [
        (Home::Here, ""),
        (Home::Here, "user = 'nobody'"),
        (Home::Container, ""),
        (Home::PlainUser, ""),
        (Home::Powerless, "user = 'nobody'"),
    ] {
        if matches!(home, Home::PlainUser | Home::Powerless) && needs_user_namespaces() {
            continue;
        }
        let svd = started(home, &python(SERVICE, &format!("{top}\n[isolation]\n{KEYS}")));
        assert_eq!(looks(&svd).trim(), "seen", "{home:?} {top}");
        // What it leaves there is the worker's.
        svd.ok(&["exec", "apart", "--", "sh", "-c", "echo more > /tmp/more"]);
        assert_eq!(svd.ok(&["exec", "apart", "--", "cat", "/tmp/more"]).trim(), "more", "{home:?} {top}");
        // Where none lives, the view is the command's own.
        svd.ok(&["stop", "apart"]);
        let why = svd.fails(&["exec", "apart", "--", "python3", "-c", LOOK]);
        assert!(why.contains("/tmp/mark"), "{home:?} {top}: {why}");
    }
}

#[test]
fn a_check_is_where_the_worker_is() {
    if needs_root() {
        return;
    }
    let health = "\n[health]\ncommand = ['sh', '-c', 'cat /tmp/mark']\ninterval = '200ms'\nfailures = 1\n";
    let check = |keys: &str| {
        let svd = started(Home::Here, &python(SERVICE, &format!("{health}[isolation]\n{keys}")));
        wait_for("its health", PATIENCE, || match svd.status("apart")["health"]["state"].as_str() {
            None | Some("unknown") => None,
            state => state.map(str::to_owned),
        })
    };
    assert_eq!(check(KEYS), "healthy");
    // By its own processes alone, too.
    assert_eq!(check("private_tmp = true"), "healthy");
}

/// A command that comes while its worker goes or begins finds all of the sandbox or says so; it never has a part of it.
#[test]
fn no_command_is_ever_half_in() {
    if needs_root() {
        return;
    }
    let secret = tempfile::Builder::new().prefix("airdock-host-").tempdir_in("/var/tmp").expect("a directory");
    let file = secret.path().display();
    for keys in ["private_tmp = true", "private_tmp = true\nprivate_pids = true"] {
        let sleep =
            script("trap 'exit 0' TERM; echo there; while :; do sleep 0.1; done", &format!("[isolation]\n{keys}"));
        let svd = started(Home::Here, &sleep);
        let look = format!("test ! -e {file} && echo hidden || echo SEEN");
        let (mut hidden, mut refused) = (0, 0);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(6) {
            let restart = svd.svctl_beside(&["restart", "apart"]);
            for _ in 0..6 {
                let output = svd.svctl(&["exec", "apart", "--", "sh", "-c", &look]);
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(!said.contains("SEEN"), "{keys}: {output:?}");
                if said.contains("hidden") { hidden += 1 } else { refused += 1 }
            }
            restart.finish();
        }
        println!("{keys}: {hidden} times inside, {refused} times not");
        assert!(hidden > 0, "{keys}: never inside");
    }
    let svd = started(Home::Here, &script("echo there; sleep 100000", ""));
    svd.ok(&["exec", "apart", "--", "test", "-e", &secret.path().display().to_string()]);
}

#[test]
fn with_its_processes_it_ends() {
    if needs_root() {
        return;
    }
    let svd = started(Home::Here, &python(SERVICE, &format!("[isolation]\n{KEYS}")));
    let session = svd.svctl_beside(&["exec", "apart", "--", "sh", "-c", "echo > /tmp/begun; sleep 100000"]);
    wait_until("it has begun", PATIENCE, || {
        svd.svctl(&["exec", "apart", "--", "test", "-e", "/tmp/begun"]).status.success()
    });
    svd.ok(&["stop", "apart"]);
    let output = session.finish();
    assert_eq!(output.status.code(), Some(128 + 9), "{output:?}");
}
