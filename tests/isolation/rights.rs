//! What a service may do beyond files.

use super::{breaks_out_only_without, works_with};
use crate::support::plain::needs_root;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const AS_NOBODY: &str = "user = 'nobody'";

#[test]
fn capabilities_are_given_up() {
    if needs_root() {
        return;
    }
    let chown = "import tempfile\nf = tempfile.NamedTemporaryFile()\nos.chown(f.name, 12, 12)";
    breaks_out_only_without("capabilities = []", "", chown, "Operation not permitted");
    works_with("capabilities = ['chown']", "", chown);
    // A plain user gets what is named, and no more.
    let bind =
        "s = socket.socket()\ns.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\ns.bind(('127.0.0.1', 79))";
    works_with("capabilities = ['net_bind_service']", AS_NOBODY, bind);
    let both = format!("{bind}\nos.chown('/etc/hostname', 0, 0)");
    match super::Attempt::new("capabilities = ['net_bind_service']", &both).top(AS_NOBODY).run() {
        super::Outcome::Refused(why) => assert!(why.contains("Operation not permitted"), "{why}"),
        super::Outcome::Done => panic!("it has more than it was given"),
    }
}

/// A copy of a program of root's with the set-user-ID bit, where that counts, for as long as the directory is there.
pub fn set_user_id(program: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::Builder::new().prefix("airdock-suid-").tempdir_in("/var/lib").expect("a directory");
    let copy = dir.path().join("program");
    fs::copy(program, &copy).expect("a copy");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o4755)).expect("its mode");
    (dir, copy)
}

/// Succeeds if `id` says that it is root.
pub fn ask_who(id: &Path) -> String {
    format!(
        "import subprocess\nwho = subprocess.run(['{}', '-u'], capture_output=True, text=True).stdout\n\
         assert who == '0\\n', 'it is still ' + who",
        id.display()
    )
}

#[test]
fn no_new_privileges_are_got_by_set_user_id_programs() {
    if needs_root() {
        return;
    }
    let (_dir, id) = set_user_id("/usr/bin/id");
    let ask = ask_who(&id);
    breaks_out_only_without("no_new_privileges = true", AS_NOBODY, &ask, "it is still 65534");
}

#[test]
fn system_calls_that_are_not_allowed_fail() {
    if needs_root() {
        return;
    }
    breaks_out_only_without("syscalls = ['@service']", "", "call('ptrace', 0, 0, 0, 0)", "Operation not permitted");
    let chown = "import tempfile\nf = tempfile.NamedTemporaryFile()\nos.chown(f.name, 12, 12)";
    breaks_out_only_without("syscalls = ['@service', '~@chown']", "", chown, "Operation not permitted");
    breaks_out_only_without("syscalls = ['~@chown']", "", chown, "Operation not permitted");
    works_with("syscalls = ['@service']", "", chown);
    // What a server does.
    let serve = "import subprocess, threading\ns = socket.create_server(('127.0.0.1', 0))\n\
                 c = socket.create_connection(s.getsockname())\nt = threading.Thread(target=s.accept)\nt.start()\nt.join(9)\n\
                 assert subprocess.run(['/bin/true']).returncode == 0";
    works_with("syscalls = ['@service']", AS_NOBODY, serve);
    // What the list does not know, as if the kernel had it not; and what it knows can be named alone.
    works_with("syscalls = ['@service', '~@chown', 'landlock_create_ruleset']", "", "call('syscall', 444, 0, 0, 1)");
    breaks_out_only_without("syscalls = ['@service']", "", "call('syscall', 444, 0, 0, 1)", "Function not implemented");
    // A program that starts anew is not free of it.
    let anew = "import subprocess\nr = subprocess.run([sys.executable, '-c', 'import os; os.chown(\"/dev/null\", -1, -1)'], \
                capture_output=True, text=True)\nassert r.returncode == 0, r.stderr.splitlines()[-1]";
    breaks_out_only_without("syscalls = ['~@chown']", "", anew, "Operation not permitted");
}

/// In one of its own a process has all capabilities.
#[test]
fn namespaces_are_not_made_by_what_servers_need() {
    if needs_root() {
        return;
    }
    let unshare = "call('unshare', 0x10000000)";
    breaks_out_only_without("syscalls = ['@service']", AS_NOBODY, unshare, "Operation not permitted");
    works_with("syscalls = ['@service', 'unshare']", AS_NOBODY, unshare);
    let clone = "pid = libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0)\nif pid == 0:\n    os._exit(0)\n\
                 assert pid > 0, os.strerror(ctypes.get_errno())";
    if cfg!(target_arch = "x86_64") {
        breaks_out_only_without("syscalls = ['@service']", AS_NOBODY, clone, "Operation not permitted");
        breaks_out_only_without("profile = 'strict'", AS_NOBODY, clone, "Operation not permitted");
        let plain = clone.replace("0x10000000 | ", "");
        works_with("profile = 'strict'", AS_NOBODY, &plain);
    }
}

#[test]
fn the_host_cannot_be_reached_from_a_network_of_its_own() {
    if needs_root() {
        return;
    }
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a listener");
    let port = listener.local_addr().expect("its address").port();
    let connect = format!("socket.create_connection(('127.0.0.1', {port}), 5)");
    breaks_out_only_without("network = 'none'", "", &connect, "unreachable");
    breaks_out_only_without("network = 'loopback'", "", &connect, "refused");
    let own = "s = socket.create_server(('127.0.0.1', 0))\nsocket.create_connection(s.getsockname())";
    breaks_out_only_without("network = 'none'", "", own, "");
    works_with("network = 'loopback'", AS_NOBODY, own);
    // Sockets without a file have names of the network's.
    let name = format!("airdock-abstract-{}", std::process::id());
    let address = <std::os::unix::net::SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(&name);
    let _abstract = std::os::unix::net::UnixListener::bind_addr(&address.expect("a name")).expect("a listener");
    let connect = format!("socket.socket(socket.AF_UNIX).connect(chr(0) + '{name}')");
    breaks_out_only_without("network = 'loopback'", "", &connect, "refused");
}
