//! Another directory as `/`: there is no way out of it, and all that svd does for a service works in it.

use super::plain::needs_user_namespaces;
use super::{Attempt, Outcome};
use crate::support::plain::{NOBODY, give_to_nobody, needs_root, python};
use crate::support::svd::{Home, Svd, quoted};
use crate::support::{App, Env, Load, PATIENCE, Release, alone, free_port, wait_for, wait_until};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A little root, and the keys by which it has the host's programs.
struct Root {
    path: PathBuf,
    bind: String,
}

impl Root {
    fn new(svd: &Svd) -> Root {
        let path = svd.path("root");
        let mut bind = "'/usr' = '/usr:ro'".to_owned();
        for name in ["usr", "tmp", "proc", "etc"] {
            fs::create_dir_all(path.join(name)).expect("a directory");
        }
        fs::set_permissions(path.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("its mode");
        for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            let host = Path::new("/").join(name);
            match fs::read_link(&host) {
                Ok(link) => symlink(link, path.join(name)).expect("a link"),
                Err(_) if host.is_dir() => {
                    fs::create_dir(path.join(name)).expect("a directory");
                    bind += &format!(", '/{name}' = '/{name}:ro'");
                }
                Err(_) => {}
            }
        }
        Root { path, bind }
    }

    fn key(&self) -> String {
        format!("chroot = {}", quoted(&self.path))
    }

    fn keys(&self) -> String {
        format!("bind = {{ {} }}", self.bind)
    }
}

fn outcome(svd: Svd, top: &str, keys: &str, program: &str) -> Outcome {
    Attempt::new(keys, program).top(top).run_in(svd)
}

/// The program reaches a file of the host's without the root, and not with it.
#[track_caller]
fn gets_out_only_without(control: &str, program: &str) {
    let svd = Svd::new();
    let root = Root::new(&svd);
    let secret = svd.path("secret");
    fs::write(&secret, "s3cret").expect("a secret");
    let filled = |text: &str| {
        text.replace("ROOT", &root.path.display().to_string()).replace("SECRET", &secret.display().to_string())
    };
    // Its root and its secret are those of the one that is tried.
    assert_eq!(outcome(Svd::new(), "", "", &filled(control)), Outcome::Done, "the control");
    let (key, keys, attempt) = (root.key(), root.keys(), filled(program));
    match outcome(svd, &key, &keys, &attempt) {
        Outcome::Refused(why) => println!("refused: {why}"),
        Outcome::Done => panic!("it is out: {attempt}"),
    }
}

const READ: &str = "assert open('SECRET').read() == 's3cret'";

/// From a directory that is not below the root, `..` leads on.
const CLIMB: &str = "os.makedirs('/tmp/jail', exist_ok=True)\nfd = os.open('/', os.O_RDONLY)\nos.chroot('/tmp/jail')\n\
                     os.fchdir(fd)\nfor _ in range(64): os.chdir('..')\nos.chroot('.')\n";

#[test]
fn nothing_outside_is_reached() {
    if needs_root() {
        return;
    }
    gets_out_only_without(READ, READ);
    // The old way out, as root: the control does it in a root that chroot(2) has made.
    gets_out_only_without(&format!("os.chroot('ROOT')\n{CLIMB}{READ}"), &format!("{CLIMB}{READ}"));
    // No descriptor of svd's or of the entrance's leads out.
    let by_descriptor = "for fd in range(256):\n    \
                             try:\n        os.fchdir(fd)\n    except OSError:\n        continue\n    \
                             for _ in range(64): os.chdir('..')\n    \
                             if os.path.exists('.' + 'SECRET'): break\nelse: raise OSError('no way out')";
    let opened = format!("fd = os.open('/', os.O_RDONLY)\nos.chroot('ROOT')\n{by_descriptor}");
    gets_out_only_without(&opened, by_descriptor);
    // Nor does a mount of what the host has, or one that is taken off.
    let mount = "call('mount', b'none', b'/tmp', b'proc', 0, 0)\nos.chroot(f'/tmp/{os.getppid()}/root')\n";
    // The control's mount is not the host's: a mount namespace (CLONE_NEWNS) from which nothing goes back (MS_REC, MS_PRIVATE).
    let apart = "call('unshare', 0x20000)\ncall('mount', b'none', b'/', None, 0x44000, None)\nos.chroot('ROOT')\n";
    gets_out_only_without(&format!("{apart}{mount}{READ}"), &format!("{mount}{READ}"));
    gets_out_only_without(READ, &format!("libc.umount2(b'/', 2)\n{CLIMB}{READ}"));
}

#[test]
fn it_is_one_with_the_other_keys() {
    if needs_root() {
        return;
    }
    let program = "import subprocess\n\
                   assert sorted(p for p in os.listdir('/proc') if p.isdigit()) == ['1', '2'], os.listdir('/proc')\n\
                   assert 'null' in os.listdir('/dev') and 'sda' not in os.listdir('/dev'), os.listdir('/dev')\n\
                   open('/dev/null', 'w').write('x')\nos.openpty()\nopen('/tmp/x', 'w').write('x')\n\
                   assert os.listdir('/data') == ['there'] and not os.path.exists('/var')\n\
                   open('/own/x', 'w').write('x')\n\
                   for path in '/x', '/etc/x', '/data/x', '/usr/x':\n    \
                       try: open(path, 'w')\n    except OSError as e: assert e.errno == 30, e\n    \
                       else: raise AssertionError(path + ' can be written')\n\
                   assert subprocess.run(['sh', '-c', 'echo through >/dev/stderr']).returncode == 0\n\
                   n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
                   n.sendto(b'READY=1\\nSTATUS=inside', os.environ['NOTIFY_SOCKET'])";
    let svd = Svd::new();
    let root = Root::new(&svd);
    for name in ["data", "hidden", "own"] {
        fs::create_dir(root.path.join(name)).expect("a directory");
    }
    fs::write(root.path.join("hidden/x"), "").expect("a file");
    let data = svd.path("data");
    fs::create_dir(&data).expect("a directory");
    fs::write(data.join("there"), "").expect("a file");
    let keys = format!(
        "profile = 'strict'\nlandlock = true\nhidden = ['/hidden']\nwritable = ['/own']\nbind = {{ {}, '/data' = '{}:ro' }}",
        root.bind,
        data.display()
    );
    let top = format!("{}\nready.notify = true", root.key());
    assert_eq!(outcome(svd, &top, &keys, program), Outcome::Done);
}

/// A service that says that it is there; what `more` adds to its file.
fn started(svd: &mut Svd, more: &str) {
    let program = "import os, time\nopen('/tmp/mark', 'w').write('x')\nprint('there', os.listdir('/'), flush=True)\ntime.sleep(100000)";
    svd.service("jailed", &python(program, more));
    if svd.home == Home::PlainUser {
        give_to_nobody(svd);
    }
    svd.start();
}

#[test]
fn checks_and_commands_are_in_it() {
    if needs_root() {
        return;
    }
    for (home, top) in [(Home::Here, ""), (Home::Here, "user = 'nobody'"), (Home::Container, ""), (Home::PlainUser, "")]
    {
        if home == Home::PlainUser && needs_user_namespaces() {
            continue;
        }
        let mut svd = Svd::new();
        svd.home = home;
        let root = Root::new(&svd);
        let keys = format!("[isolation]\nprivate_tmp = true\nprivate_pids = true\n{}", root.keys());
        let health =
            "[health]\ncommand = ['sh', '-c', 'cat /tmp/mark && test ! -e /var']\ninterval = '200ms'\nfailures = 1\n";
        started(&mut svd, &format!("{}\n{top}\n{health}{keys}", root.key()));
        wait_until("it is there", PATIENCE, || svd.output("jailed").contains("there"));
        wait_for("its health", PATIENCE, || {
            (svd.status("jailed")["health"]["state"].as_str()? == "healthy").then_some(())
        });
        for _ in ["with a worker", "without one"] {
            let seen = svd.ok(&["exec", "jailed", "--", "ls", "/"]);
            assert!(seen.contains("usr") && !seen.contains("var") && !seen.contains("home"), "{home:?} {top}: {seen}");
            svd.ok(&["stop", "jailed"]);
        }
        let why = svd.fails(&["exec", "jailed", "--", "no-such-program"]);
        assert!(why.contains("in chroot"), "{why}");
    }
}

#[test]
fn a_root_that_is_not_safe_is_refused() {
    if needs_root() {
        return;
    }
    let refused = |change: &dyn Fn(&Svd, &Root), key: Option<&str>| {
        let mut svd = Svd::new();
        let root = Root::new(&svd);
        change(&svd, &root);
        let key = key.map_or_else(|| root.key(), str::to_owned);
        started(&mut svd, &format!("{key}\nrestart.policy = 'never'\n[isolation]\n{}", root.keys()));
        wait_for("its refusal", PATIENCE, || {
            let status = svd.status("jailed").to_string();
            status.contains("chroot").then_some(status)
        })
    };
    let mode = |_: &Svd, root: &Root| {
        fs::set_permissions(&root.path, fs::Permissions::from_mode(0o777)).expect("its mode");
    };
    let why = refused(&mode, None);
    assert!(why.contains("may be written to by others") && why.contains("chmod go-w"), "{why}");
    let owner = |_: &Svd, root: &Root| std::os::unix::fs::chown(&root.path, Some(NOBODY), None).expect("its owner");
    let why = refused(&owner, None);
    assert!(why.contains("belongs to user 65534"), "{why}");
    let why = refused(&|_, _| {}, Some("chroot = '/no/such/root'"));
    assert!(why.contains("cannot be had"), "{why}");
    let why = refused(&|_, _| {}, Some("chroot = '/etc/passwd'"));
    assert!(why.contains("not a directory"), "{why}");
    // A place for what is bound that is not there is named as the host has it.
    let missing = |_: &Svd, root: &Root| fs::remove_dir(root.path.join("usr")).expect("an empty directory");
    let mut svd = Svd::new();
    let root = Root::new(&svd);
    missing(&svd, &root);
    started(&mut svd, &format!("{}\nrestart.policy = 'never'\n[isolation]\n{}", root.key(), root.keys()));
    let expected = format!("mkdir {}/usr", root.path.display());
    wait_until("it is named", PATIENCE, || svd.status("jailed").to_string().contains(&expected));
    // What the file alone shows is told at once.
    for (key, said) in
        [("chroot = 'root'", "chroot"), ("chroot = '/'", "changes nothing"), ("chroot = '/a/../b'", "\\\"..\\\"")]
    {
        svd.service("other", &python("pass", key));
        let why = svd.fails(&["check", &svd.path("etc").display().to_string()]);
        assert!(why.contains(&said.replace('\\', "")), "{key}: {why}");
        svd.remove_service("other");
    }
}

#[test]
fn gunicorn_serves_in_it() {
    if needs_root() {
        return;
    }
    let Some(env) = Env::get("gunicorn-27.0.1") else { return };
    let _alone = alone();
    let mut svd = Svd::new();
    let root = Root::new(&svd);
    let app: App = svd.app("web");
    app.ship(&Release::new("r0"));
    let python = env.python();
    let place = |path: &Path| {
        fs::create_dir_all(root.path.join(path.strip_prefix("/").expect("an absolute path"))).expect("a directory");
        format!(", {0} = {0}", quoted(path))
    };
    let venv = python.parent().and_then(Path::parent).expect("an environment");
    let mut bind = root.bind.clone() + &place(&app.root) + &place(venv);
    let base = fs::canonicalize(&python).expect("an interpreter");
    if !base.starts_with("/usr") {
        bind += &place(base.parent().and_then(Path::parent).expect("its home"));
    }
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let file = format!(
        "kind = 'gunicorn'\napp = 'django_app:application'\nroot = {}\npython = {}\nworkers = 2\n{}\nuser = 'auto'\n\
         sockets.http.listen = '{address}'\nready.probe = {{ path = '/healthz', host = 'airship.example.org' }}\n\
         [isolation]\nprofile = 'strict'\nbind = {{ {bind} }}",
        quoted(&app.root),
        quoted(&python),
        root.key(),
    );
    svd.service("web", &file);
    svd.start();
    svd.wait_state("web", "running");
    let load = Load::start(address);
    load.more(30);
    app.ship(&Release::new("r1"));
    svd.ok(&["reload", "web"]);
    load.more(30);
    let report = load.stop();
    report.assert_no_failure();
    assert!(report.releases().contains_key("r1"), "{:?}", report.releases());
    let seen = svd.ok(&["exec", "web", "--", "ls", "/"]);
    assert!(!seen.contains("home"), "{seen}");
}
