//! An svd that has not the rights to make namespaces makes them in a user namespace: a plain user's, and root's in a container.

use super::files::open_directory;
use super::rights::{ask_who, set_user_id};
use super::{Attempt, Outcome};
use crate::support::plain::{NOBODY, SLEEP, give_to_nobody, needs_root, script};
use crate::support::svd::{Home, Svd};
use crate::support::{PATIENCE, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// Who starts svd, and the keys of the file's top by which the service is that of `nobody` either way.
const BY: [(Home, &str); 2] = [(Home::PlainUser, ""), (Home::Powerless, "user = 'nobody'")];

/// Is there anything to test here?
pub fn needs_user_namespaces() -> bool {
    if needs_root() {
        return true;
    }
    let mut unshare = std::process::Command::new("setpriv");
    unshare.args(["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--user", "--mount", "true"]);
    let made = unshare.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success());
    if !made {
        println!("skipped: a plain user can make no user namespace here");
    }
    !made
}

/// The program fails with the key, by this error, and succeeds without.
#[track_caller]
fn breaks_out_only_without(keys: &str, program: &str, error: &str) {
    for (home, top) in BY {
        let attempt = |keys| Attempt::new(keys, program).top(top).home(home).run();
        assert_eq!(attempt(""), Outcome::Done, "{home:?}: the control");
        match attempt(keys) {
            Outcome::Refused(why) if why.contains(error) => {}
            outcome => panic!("{home:?} with {keys}: {outcome:?}"),
        }
    }
}

#[track_caller]
fn works_with(keys: &str, program: &str) {
    for (home, top) in BY {
        let outcome = Attempt::new(keys, program).top(top).home(home).run();
        assert_eq!(outcome, Outcome::Done, "{home:?} with {keys}");
    }
}

/// With all rights in a user namespace of the program's own.
fn in_a_namespace_of_its_own(program: &str) -> String {
    format!(
        "call('unshare', 0x10020000)\nopen('/proc/self/setgroups', 'w').write('deny')\n\
         open('/proc/self/uid_map', 'w').write('{NOBODY} {NOBODY} 1')\n\
         open('/proc/self/gid_map', 'w').write('{NOBODY} {NOBODY} 1')\n{program}"
    )
}

#[test]
fn files_are_read_only() {
    if needs_user_namespaces() {
        return;
    }
    let dir = open_directory();
    let path = dir.path().display();
    let write = format!("open('{path}/x', 'a').write('x')\nos.unlink('{path}/x')");
    breaks_out_only_without("read_only = ['/']", &write, "Read-only file system");
    works_with(&format!("read_only = ['/']\nwritable = ['{path}']"), &write);
    // Nor by whoever makes himself mighty: what is read-only is locked.
    let remount = format!("libc.mount(0, b'{path}', 0, 0x1020, 0)\n{write}");
    let remount = in_a_namespace_of_its_own(&remount);
    breaks_out_only_without(&format!("read_only = ['{path}']"), &remount, "Read-only file system");
}

#[test]
fn files_are_hidden() {
    if needs_user_namespaces() {
        return;
    }
    let dir = open_directory();
    let path = dir.path().display();
    fs::write(dir.path().join("secret"), "s3cret").expect("a secret");
    fs::set_permissions(dir.path().join("secret"), fs::Permissions::from_mode(0o644)).expect("its mode");
    let keys = format!("hidden = ['{path}']");
    breaks_out_only_without(&keys, &format!("open('{path}/secret').read()"), "");
    breaks_out_only_without(
        &format!("hidden = ['{path}/secret']"),
        &format!("assert open('{path}/secret').read()"),
        "",
    );
    let uncover = format!("os.chmod('{path}', 0o755) if not os.path.exists('{path}/secret') else 0");
    breaks_out_only_without(&keys, &uncover, "Read-only file system");
    let uncover = in_a_namespace_of_its_own(&format!("libc.umount2(b'{path}', 2)\nopen('{path}/secret').read()"));
    breaks_out_only_without(&keys, &uncover, "");
    // Other processes of the same user see it: svd's, for one.
    let through = format!(
        "def seen(pid):\n        \
             try:\n            return open('/proc/%s/root{path}/secret' % pid).read() == 's3cret'\n        \
             except OSError:\n            return False\n    \
         assert any(seen(pid) for pid in os.listdir('/proc') if pid.isdigit()), 'none shows it'"
    )
    .replace("\n    ", "\n");
    breaks_out_only_without(&keys, &through, "none shows it");
}

#[test]
fn tmp_and_devices_are_its_own() {
    if needs_user_namespaces() {
        return;
    }
    let mark = tempfile::Builder::new().prefix("airdock-mark-").tempfile_in("/tmp").expect("a file");
    let see = format!("os.stat('{}')", mark.path().display());
    breaks_out_only_without("private_tmp = true", &see, "No such file");
    works_with("private_tmp = true", "open('/tmp/x', 'w').write('x')\nopen('/var/tmp/x', 'w').write('x')");
    assert!(!std::path::Path::new("/tmp/x").exists());
    breaks_out_only_without("private_devices = true", "os.stat('/dev/kmsg')", "No such file");
    works_with(
        "private_devices = true",
        "open('/dev/null', 'w').write('x')\nassert len(open('/dev/urandom', 'rb').read(8)) == 8\n\
         open('/dev/shm/x', 'w').write('x')\nimport pty\npty.openpty()",
    );
}

#[test]
fn binds_show_something_else() {
    if needs_user_namespaces() {
        return;
    }
    let (here, there) = (open_directory(), open_directory());
    let (target, source) = (here.path().display(), there.path().display());
    let write =
        format!("open('{target}/x', 'w').write('x')\nassert os.path.exists('{source}/x')\nos.unlink('{source}/x')");
    works_with(&format!("bind = {{ '{target}' = '{source}' }}"), &write);
    let write = format!("open('{target}/x', 'w').write('x')\nos.unlink('{target}/x')");
    breaks_out_only_without(&format!("bind = {{ '{target}' = '{source}:ro' }}"), &write, "Read-only");
}

#[test]
fn the_network_is_its_own() {
    if needs_user_namespaces() {
        return;
    }
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let connect = format!("socket.create_connection(('127.0.0.1', {port}), 5)");
    breaks_out_only_without("network = 'none'", &connect, "unreachable");
    breaks_out_only_without("network = 'loopback'", &connect, "refused");
    let own = "s = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(s.getsockname())";
    works_with("network = 'loopback'", own);
}

#[test]
fn other_processes_are_out_of_reach() {
    if needs_user_namespaces() {
        return;
    }
    let mut other = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "1000"])
        .spawn()
        .expect("a process of the same user");
    let status = format!("/proc/{}/status", other.id());
    wait_until("it is that user's", PATIENCE, || {
        fs::read_to_string(&status).is_ok_and(|text| text.contains("Name:\tsleep") && text.contains("Uid:\t65534"))
    });
    breaks_out_only_without("private_pids = true", &format!("os.kill({}, 0)", other.id()), "No such process");
    let look = "all = [p for p in os.listdir('/proc') if p.isdigit()]\nassert len(all) > 2, 'nobody else'";
    breaks_out_only_without("private_pids = true", look, "nobody else");
    other.kill().and_then(|()| other.wait()).expect("its end");
}

#[test]
fn no_rights_are_got() {
    if needs_user_namespaces() {
        return;
    }
    let (_dir, program) = set_user_id("/usr/bin/id");
    let ask = ask_who(&program);
    for keys in ["no_new_privileges = true", "private_tmp = true"] {
        breaks_out_only_without(keys, &ask, "it is still 65534");
    }
    let effective = "line = [l for l in open('/proc/self/status') if l.startswith(('CapEff', 'CapPrm'))]\n\
                     assert all(int(l.split()[1], 16) == 0 for l in line), line";
    works_with("private_tmp = true", effective);
    breaks_out_only_without(
        "syscalls = ['@service', '~@chown']",
        "os.chown('/dev/null', -1, -1)",
        "Operation not permitted",
    );
}

#[test]
fn a_plain_user_can_give_up_all_capabilities() {
    if needs_user_namespaces() {
        return;
    }
    // Nothing but a set-user-ID program could give it any, and none is root's in there.
    let (_dir, program) = set_user_id("/usr/bin/cat");
    let ask = format!(
        "import subprocess\nsaid = subprocess.run(['{}', '/proc/self/status'], capture_output=True, text=True).stdout\n\
         assert 'CapEff:\\t0000000000000000' not in said, 'it has none'",
        program.display()
    );
    let attempt = |keys| Attempt::new(keys, &ask).home(Home::PlainUser).run();
    assert_eq!(attempt(""), Outcome::Done, "the control");
    assert_eq!(attempt("capabilities = []"), Outcome::Refused("it has none".into()));
}

#[test]
fn a_user_namespace_is_made_only_where_it_is_needed() {
    if needs_user_namespaces() {
        return;
    }
    let own = fs::read_link("/proc/self/ns/user").expect("a namespace");
    let is_hosts = format!("assert os.readlink('/proc/self/ns/user') == '{}', 'its own'", own.display());
    for (keys, expected) in [
        ("no_new_privileges = true\nlandlock = true\nsyscalls = ['@service']\ncapabilities = []", Outcome::Done),
        ("private_tmp = true", Outcome::Refused("its own".into())),
    ] {
        assert_eq!(Attempt::new(keys, &is_hosts).home(Home::PlainUser).run(), expected, "{keys}");
    }
    assert_eq!(Attempt::new("private_tmp = true", &is_hosts).run(), Outcome::Done, "root's svd needs none");
}

#[test]
fn what_a_plain_user_cannot_have_is_refused_by_key() {
    if needs_user_namespaces() {
        return;
    }
    let mut svd = Svd::new();
    svd.home = Home::PlainUser;
    svd.service("other", &script(SLEEP, ""));
    give_to_nobody(&svd);
    svd.start();
    svd.wait_state("other", "running");
    let ports = "[isolation]\ncapabilities = ['net_bind_service']";
    for (keys, part) in [
        (ports, "web: [isolation] capabilities needs net_bind_service, which only an svd that root runs can give"),
        ("user = 'auto'", "web: user = \"auto\" needs an svd that root runs"),
    ] {
        svd.service("web", &script(SLEEP, keys));
        let said = svd.fails(&["update"]);
        assert!(said.contains(part) && said.contains("nothing was changed"), "{said}");
        assert!(!svd.ok(&["status"]).contains("web"));
    }
    svd.service("web", &script(SLEEP, &format!("{ports}\noptional = ['capabilities']")));
    let said = svd.ok(&["update"]);
    assert!(said.contains("web: left out, as [isolation] optional allows: [isolation] capabilities needs"), "{said}");
    svd.wait_state("web", "running");
    svd.stop();
}
