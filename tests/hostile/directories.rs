//! A configuration, or a directory of svd's, that others may change.

use super::support::plain::{NOBODY, SLEEP, needs_root, script};
use super::support::svd::both;
use super::support::{PATIENCE, Svd, run_limited};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("chmod");
}

fn give(path: &Path) {
    lchown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
}

/// As the user nobody.
fn shell(text: &str) -> bool {
    let mut sh = Command::new("/bin/sh");
    sh.args(["-c", text]).uid(NOBODY).gid(NOBODY).stderr(std::process::Stdio::null());
    sh.status().expect("a shell").success()
}

/// What an attacker writes: svd would run it as root.
const EVIL: &str = "kind = \"command\"\ncommand = [\"/bin/sh\", \"-c\", \"id -u >>$0; exec sleep 100000\", \"%\"]\n";

struct Attack {
    name: &'static str,
    /// What makes it possible: a careless administrator.
    careless: fn(&Path),
    /// What nobody does then, in the directory with the configuration.
    attack: &'static str,
    /// In what svd says.
    told: &'static str,
}

const ATTACKS: [Attack; 7] = [
    Attack {
        name: "a file that anybody may write",
        careless: |etc| mode(&etc.join("conf.d/web.toml"), 0o666),
        attack: "cat ../evil >conf.d/web.toml",
        told: "conf.d/web.toml may be written to by others (mode 0666)",
    },
    Attack {
        name: "a file that root's group may write",
        careless: |etc| {
            chown(etc.join("conf.d/web.toml"), None, Some(NOBODY)).expect("chown");
            mode(&etc.join("conf.d/web.toml"), 0o664);
        },
        attack: "cat ../evil >conf.d/web.toml",
        told: "conf.d/web.toml may be written to by others (mode 0664)",
    },
    Attack {
        name: "a file of another user",
        careless: |etc| give(&etc.join("conf.d/web.toml")),
        attack: "cat ../evil >conf.d/web.toml",
        told: "conf.d/web.toml belongs to user 65534, who could change it",
    },
    Attack {
        name: "a link to a file of another user",
        careless: |etc| {
            let real = etc.with_file_name("users.toml");
            fs::rename(etc.join("conf.d/web.toml"), &real).expect("moved");
            give(&real);
            symlink(&real, etc.join("conf.d/web.toml")).expect("a link");
        },
        attack: "cat ../evil >../users.toml",
        told: "users.toml belongs to user 65534, who could change it",
    },
    Attack {
        name: "a conf.d where anybody may make files",
        careless: |etc| mode(&etc.join("conf.d"), 0o777),
        attack: "cp ../evil conf.d/evil.toml",
        told: "conf.d may be written to by others (mode 0777)",
    },
    Attack {
        name: "a directory above in which anybody may rename",
        careless: |etc| mode(etc.parent().expect("above"), 0o777),
        attack: "mv ../etc ../old && mkdir -p ../etc/conf.d && cp ../evil ../etc/conf.d/web.toml",
        told: "may be written to by others (mode 0777)",
    },
    Attack {
        name: "a svd.toml of another user",
        careless: |etc| give(&etc.join("svd.toml")),
        attack: "printf '[[access]]\\nusers = [\"nobody\"]\\nverbs = [\"*\"]\\nservices = [\"*\"]\\n' >>svd.toml",
        told: "svd.toml belongs to user 65534, who could change it",
    },
];

/// An svd that is configured with a service `web`, and the text that the attacker has for it.
fn configured() -> Svd {
    let svd = Svd::new();
    svd.service("web", &script(SLEEP, ""));
    let evil = svd.path("evil");
    fs::write(&evil, EVIL.replace('%', &svd.path("ran-as").display().to_string())).expect("a file");
    mode(&evil, 0o644);
    svd
}

fn succeeds(svd: &Svd, attack: &Attack) -> bool {
    shell(&format!("cd {} && {}", svd.path("etc").display(), attack.attack))
}

#[test]
fn a_configuration_that_others_may_change_is_refused() {
    if needs_root() {
        return;
    }
    for attack in &ATTACKS {
        let svd = configured();
        (attack.careless)(&svd.path("etc"));
        // With the rights as they should be, nobody can do that.
        assert!(!succeeds(&configured(), attack), "{}: possible without carelessness", attack.name);
        assert!(succeeds(&svd, attack), "{}: the attack itself", attack.name);
        let output = run_limited(svd.command(), PATIENCE);
        assert!(!output.status.success(), "{}: svd starts", attack.name);
        let said = both(&output);
        assert!(said.contains(attack.told) && said.contains("help: ch"), "{}:\n{said}", attack.name);
        assert!(!svd.path("ran-as").exists(), "{}: it was run", attack.name);
    }
}

#[test]
fn a_running_svd_keeps_its_configuration_then() {
    if needs_root() {
        return;
    }
    let mut svd = configured();
    svd.start();
    svd.wait_state("web", "running");
    let pid = svd.main_pid("web");
    let attack = &ATTACKS[0];
    (attack.careless)(&svd.path("etc"));
    let check = svd.svctl(&["check", &svd.path("etc").display().to_string()]);
    assert!(!check.status.success() && both(&check).contains(attack.told), "what svd refuses:\n{}", both(&check));
    assert!(succeeds(&svd, attack));
    let said = svd.fails(&["update"]);
    assert!(said.contains(attack.told), "{said}");
    // Killed and back, too.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(svd.pid()), nix::sys::signal::Signal::SIGKILL).expect("kill");
    super::support::wait_until("svd is back", PATIENCE, || svd.svctl(&["status"]).status.success());
    assert_eq!(svd.main_pid("web"), pid);
    assert!(svd.said().contains("goes on with the configuration that it had"), "{}", svd.said());
    assert!(!svd.path("ran-as").exists());
}

/// In a run, state or log directory of another user, svd as root would write wherever that one wants.
#[test]
fn a_directory_of_another_user_is_refused() {
    if needs_root() {
        return;
    }
    for name in ["run", "state", "log"] {
        for careless in [give as fn(&Path), |dir| mode(dir, 0o777)] {
            let svd = configured();
            let (dir, victim) = (svd.path(name), super::Victim::new(&svd));
            fs::create_dir(&dir).expect("a directory");
            careless(&dir);
            let file = ["svd.log", "svd.pid", "state", "audit.log"].map(|file| dir.join(file));
            for file in &file {
                assert!(shell(&format!("ln -s {} {}", victim.0.display(), file.display())), "nobody may plant");
            }
            victim.is_reached_by_a_naive_write(&file[0]);
            let mut command = svd.command();
            command.arg("--daemon");
            let output = run_limited(command, PATIENCE);
            assert!(!output.status.success(), "svd starts with that {name} directory");
            let said = both(&output);
            assert!(said.contains("is not used:") && said.contains("(`ch"), "{said}");
            victim.assert_unharmed(&svd);
        }
    }
}

/// One's own files are fine, whoever one is, and those of a group of one's own.
#[test]
fn a_plain_users_own_files_are_fine() {
    if needs_root() {
        return;
    }
    let mut svd = configured();
    mode(&svd.path("etc/conf.d/web.toml"), 0o664);
    mode(&svd.path("etc/conf.d"), 0o775);
    super::support::plain::give_to_nobody(&svd);
    let mut command = svd.command();
    command.uid(NOBODY).gid(NOBODY);
    svd.start_with(command);
    svd.wait_state("web", "running");
}
