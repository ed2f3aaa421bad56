//! What of the host's files a service sees, and may change.

use super::{breaks_out_only_without, works_with};
use crate::support::plain::needs_root;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use tempfile::TempDir;

const AS_NOBODY: &str = "user = 'nobody'";

/// A directory of the host's that everybody may write to, outside of /tmp.
pub fn open_directory() -> TempDir {
    let dir = tempfile::Builder::new().prefix("airdock-open-").tempdir_in("/var/lib").expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("its mode");
    dir
}

#[test]
fn read_only_files_are_not_written_by_root_either() {
    if needs_root() {
        return;
    }
    let dir = open_directory();
    let path = dir.path().display();
    let write = format!("open('{path}/x', 'a').write('x')\nos.unlink('{path}/x')");
    for top in ["", AS_NOBODY] {
        breaks_out_only_without("read_only = ['/']", top, &write, "Read-only file system");
        breaks_out_only_without(&format!("read_only = ['{path}']"), top, &write, "Read-only file system");
        works_with(&format!("read_only = ['/']\nwritable = ['{path}']"), top, &write);
    }
    // Whoever has no right to mount cannot mount it anew.
    let remount = format!("call('mount', 0, b'{path}', 0, 0x1020, 0)\n{write}");
    breaks_out_only_without(&format!("read_only = ['{path}']"), "", &write, "Read-only file system");
    match super::Attempt::new(&format!("read_only = ['{path}']"), &remount).run() {
        super::Outcome::Refused(why) => assert!(why.contains("Operation not permitted"), "{why}"),
        super::Outcome::Done => panic!("mounted anew"),
    }
}

#[test]
fn hidden_files_are_not_seen() {
    if needs_root() {
        return;
    }
    let dir = open_directory();
    let path = dir.path().display();
    fs::write(dir.path().join("secret"), "s3cret").expect("a secret");
    fs::create_dir(dir.path().join("kept")).expect("a directory");
    fs::set_permissions(dir.path().join("kept"), fs::Permissions::from_mode(0o777)).expect("its mode");
    let read = format!("assert open('{path}/secret').read() == 's3cret'");
    // Whoever asks is told that there is nothing, and not that something is kept from it, which programs take for an error.
    for top in ["", AS_NOBODY] {
        breaks_out_only_without(&format!("hidden = ['{path}']"), top, &read, "No such file");
    }
    breaks_out_only_without(&format!("hidden = ['{path}/secret']"), "", &read, "");
    // What the service may write to stays visible below it.
    let kept = format!("open('{path}/kept/x', 'a').write('x')\nassert os.listdir('{path}') == ['kept']");
    works_with(&format!("hidden = ['{path}']\nwritable = ['{path}/kept']"), AS_NOBODY, &kept);
    let elsewhere = format!("open('{path}/new', 'a').write('x')");
    let keys = format!("hidden = ['{path}']\nwritable = ['{path}/kept']");
    breaks_out_only_without(&keys, "", &elsewhere, "Read-only file system");
}

#[test]
fn a_root_served_in_place_needs_nothing_to_write_to() {
    if needs_root() {
        return;
    }
    let root = open_directory();
    works_with("profile = 'strict'", &format!("root = '{}'\n{AS_NOBODY}", root.path().display()), "os.stat('.')");
}

#[test]
fn a_private_tmp_is_empty_and_writable() {
    if needs_root() {
        return;
    }
    let mark = tempfile::Builder::new().prefix("airdock-mark-").tempfile_in("/tmp").expect("a file");
    let see = format!("os.stat('{}')", mark.path().display());
    breaks_out_only_without("private_tmp = true", "", &see, "No such file");
    works_with("private_tmp = true", AS_NOBODY, "open('/tmp/x', 'w').write('x')\nopen('/var/tmp/x', 'w').write('x')");
    assert!(!std::path::Path::new("/tmp/x").exists());
}

#[test]
fn what_is_private_does_not_take_the_machines_memory() {
    if needs_root() {
        return;
    }
    let program = "memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')\n\
                   for directory in ('/tmp', '/var/tmp', '/dev/shm'):\n    \
                       with open(directory + '/much', 'wb') as file:\n        \
                           try: os.posix_fallocate(file.fileno(), 0, memory // 9)\n        \
                           except OSError as e: assert e.errno == 28, e\n        \
                           else: raise Exception(directory)\n    \
                       assert os.statvfs(directory).f_files <= 400 * 1024, 'files in ' + directory\n\
                   assert os.statvfs('/dev').f_blocks * os.statvfs('/dev').f_frsize <= 4 << 20, '/dev'";
    works_with("private_tmp = true\nprivate_devices = true", "", program);
}

#[test]
fn devices_of_the_host_are_not_there() {
    if needs_root() {
        return;
    }
    breaks_out_only_without("private_devices = true", "", "open('/dev/kmsg', 'rb', 0)", "No such file");
    // Nor can they be made.
    let make = "os.mknod('/tmp/a-kmsg', 0o20600, os.makedev(1, 11))\nos.unlink('/tmp/a-kmsg')";
    breaks_out_only_without("private_devices = true", "", make, "Operation not permitted");
    works_with(
        "private_devices = true",
        AS_NOBODY,
        "open('/dev/null', 'w').write('x')\nassert len(open('/dev/urandom', 'rb').read(8)) == 8\n\
         open('/dev/shm/x', 'w').write('x')\nimport pty\npty.openpty()\nopen('/dev/fd/1').close\nassert os.path.exists('/dev/stdin')",
    );
}

#[test]
fn binds_show_something_else() {
    if needs_root() {
        return;
    }
    let (here, there) = (open_directory(), open_directory());
    let (target, source) = (here.path().display(), there.path().display());
    fs::write(there.path().join("mark"), "m").expect("a mark");
    let write = format!("assert os.path.exists('{target}/mark')\nopen('{target}/x', 'w').write('x')");
    works_with(&format!("bind = {{ '{target}' = '{source}' }}"), AS_NOBODY, &write);
    assert!(there.path().join("x").exists() && !here.path().join("x").exists());
    fs::write(here.path().join("mark"), "m").expect("a mark for the control");
    breaks_out_only_without(&format!("bind = {{ '{target}' = '{source}:ro' }}"), AS_NOBODY, &write, "Read-only");
}

/// Root makes no directory, and attaches nothing, where a link of the service's leads.
#[test]
fn binds_do_not_follow_the_services_links() {
    if needs_root() {
        return;
    }
    let (homes, elsewhere) = (open_directory(), open_directory());
    let root = homes.path().join("app");
    std::fs::create_dir_all(root.join("shared")).expect("directories");
    std::fs::write(elsewhere.path().join("mark"), "bound").expect("a file");
    let give = |path: &std::path::Path| std::os::unix::fs::lchown(path, Some(65_534), Some(65_534)).expect("chown");
    let keys = |target: &str| {
        let bound = format!("{{ '{}' = '{}' }}", root.join(target).display(), elsewhere.path().display());
        format!("hidden = ['{}']\nwritable = ['{}']\nbind = {bound}", homes.path().display(), root.display())
    };
    std::fs::create_dir(root.join("shared/real")).expect("a directory");
    let see = format!("assert open('{}/shared/real/mark').read() == 'bound'", root.display());
    [root.clone(), root.join("shared"), root.join("shared/real")].iter().for_each(|path| give(path));
    works_with(&keys("shared/real"), AS_NOBODY, &see);
    // What leads elsewhere; what is not there is not made on the host.
    let victim = open_directory();
    std::os::unix::fs::symlink(victim.path(), root.join("shared/x")).expect("a link");
    give(&root.join("shared/x"));
    for (target, why) in
        [("shared/x/data", "a link on the way"), ("shared/x", "a link on the way"), ("shared/none", "create it")]
    {
        let mut svd = super::Svd::new();
        svd.service(
            "web",
            &super::support::plain::script("exec sleep 100000", &format!("{AS_NOBODY}\n[isolation]\n{}", keys(target))),
        );
        svd.start();
        super::wait_for("the reason", super::PATIENCE, || {
            let status = svd.status("web").to_string();
            (status.contains("cannot show anything at") && status.contains(why)).then_some(())
        });
        svd.stop();
    }
    assert_eq!(std::fs::read_dir(victim.path()).expect("it").count(), 0, "nothing was made there");
    assert!(!root.join("shared/none").exists());
}

#[test]
fn landlock_limits_files_and_signals() {
    if needs_root() {
        return;
    }
    if !std::fs::read_to_string("/sys/kernel/security/lsm").map_or(true, |modules| modules.contains("landlock")) {
        println!("skipped: the kernel has no Landlock");
        return;
    }
    let dir = open_directory();
    let path = dir.path().display();
    let write = format!("open('{path}/x', 'a').write('x')\nos.unlink('{path}/x')");
    for top in ["", AS_NOBODY] {
        breaks_out_only_without("landlock = true", top, &write, "Permission denied");
        works_with(&format!("landlock = true\nwritable = ['{path}']"), top, &write);
    }
    // Its outputs are pipes that have a name where nothing may be written.
    for top in ["", AS_NOBODY] {
        works_with(
            "landlock = true",
            top,
            "open('/dev/stdout', 'w').write('x\\n')\nopen('/dev/stderr', 'w').write('x\\n')",
        );
    }
    fs::write(dir.path().join("secret"), "s3cret").expect("a secret");
    let read = format!("open('{path}/secret').read()");
    works_with("landlock = true", AS_NOBODY, &read);
    breaks_out_only_without(&format!("landlock = true\nhidden = ['{path}']"), "", &read, "");
    let mut victim = std::process::Command::new("sleep");
    let mut victim = std::os::unix::process::CommandExt::uid(victim.arg("1000"), 65534).spawn().expect("a process");
    let signal = format!("os.kill({}, 0)", victim.id());
    breaks_out_only_without("landlock = true", AS_NOBODY, &signal, "Operation not permitted");
    victim.kill().and_then(|()| victim.wait()).expect("its end");
}

#[test]
fn root_without_capabilities_does_not_change_the_kernel() {
    if needs_root() {
        return;
    }
    // What it writes is what is there.
    let pattern = "path = '/proc/sys/kernel/core_pattern'\ntext = open(path).read()\nopen(path, 'w').write(text)";
    for keys in ["profile = 'standard'", "profile = 'strict'", "profile = 'strict'\nread_only = ['/']"] {
        breaks_out_only_without(keys, "", pattern, "Read-only file system");
    }
    works_with("profile = 'strict'", "", "open('/proc/self/comm', 'w').write('own')");
}

#[test]
fn svd_is_not_spoken_to_as_its_own_user() {
    if needs_root() {
        return;
    }
    let attempt = |keys: &str| {
        let svd = crate::support::svd::Svd::new();
        let path = svd.path("run/svd.sock");
        let connect = format!("s = socket.socket(socket.AF_UNIX)\ns.connect('{}')", path.display());
        super::Attempt::new(keys, &connect).run_in(svd)
    };
    assert_eq!(attempt(""), super::Outcome::Done, "the control");
    for keys in ["profile = 'strict'", "private_tmp = true", "read_only = ['/usr']"] {
        match attempt(keys) {
            super::Outcome::Refused(why) => assert!(why.contains("No such file"), "{keys}: {why}"),
            super::Outcome::Done => panic!("with {keys} svd's socket can be reached"),
        }
    }
}
