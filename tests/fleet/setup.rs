//! `setup`, `remove` and `upgrade` of hosts whose `/etc`, `/usr/local`, `/srv` and `/var` are theirs alone.

use super::bed::{Bed, Host};
use super::support::{PATIENCE, run_limited, wait_until};
use std::fs;
use std::path::Path;

/// What is written there is seen by nobody else, and is gone with the host.
fn keep_apart(host: &Host) {
    for dir in ["etc", "usr/local", "srv", "var"] {
        let place = format!("/run/apart/{dir}");
        host.run(&["mkdir", "-p", &format!("{place}/upper"), &format!("{place}/work")]);
        let options = format!("lowerdir=/{dir},upperdir={place}/upper,workdir={place}/work");
        host.run(&["mount", "-t", "overlay", "overlay", "-o", &options, &format!("/{dir}")]);
    }
    // A tree of control groups would be the whole machine's.
    host.run(&["sh", "-c", "echo CONTROL_GROUPS=no >/etc/default/svd"]);
}

/// Exit code, stdout and stderr of an svctl in the bed's `site`.
fn told(bed: &Bed, svctl: &str, words: &[&str]) -> (i32, String, String) {
    let mut command = bed.command(svctl);
    command.args(words).current_dir(bed.path("site"));
    let output = run_limited(command, PATIENCE * 4);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_new_host_is_made_ready_and_a_service_is_taken_off_it() {
    let Some(bed) = Bed::start(2) else { return };
    let host = &bed.hosts[1];
    keep_apart(host);
    let svctl = bed.svctl_as_shipped().join("svctl").display().to_string();
    fs::create_dir_all(bed.path("site/conf.d")).expect("a directory");
    let service = |text: &str| fs::write(bed.path("site/conf.d/shop.toml"), text).expect("writing");
    let text = "kind = 'command'\ncommand = ['/bin/sleep', '100000']\nuser = 'shopkeeper'\ndirectory = '/'\nroot = '/srv/shop'\n";
    service(&text.replace("root = '/srv/shop'\n", ""));
    let other = "kind = 'command'\ncommand = ['/bin/sleep', '100000']\n";
    fs::write(bed.path("site/conf.d/elsewhere.toml"), other).expect("writing");
    let fleet = format!(
        "hosts = [\"web-0\", \"web-1\"]\nssh_config = \"../ssh_config\"\nconnect_timeout = \"30s\"\n\
         [app.elsewhere]\nartifact = \"x.tar\"\nhosts = [\"web-0\"]\n[host.web-1]\nssh = {:?}\n[host.web-0]\nssh = {:?}\n",
        host.address, bed.hosts[0].address
    );
    fs::write(bed.path("site/fleet.toml"), fleet).expect("writing");
    let told = |words: &[&str]| told(&bed, &svctl, words);
    let ok = |words: &[&str]| {
        let (code, out, err) = told(words);
        assert_eq!(code, 0, "{words:?}: {out}{err}");
        out
    };

    let would = ok(&["-H", "web-1", "setup", "--deployer", "deploy", "-n"]);
    assert!(
        would.contains("web-1: would install /usr/local/sbin/svd") && would.contains("make the user shopkeeper"),
        "{would}"
    );
    assert!(!would.contains("elsewhere"), "another host's: {would}");
    host.run(&["test", "!", "-e", "/usr/local/sbin/svd"]);
    let did = ok(&["-H", "web-1", "setup", "--deployer", "deploy"]);
    assert_eq!(did.replace("web-1: ", "web-1: would "), would);
    host.run(&["grep", "-q", "deploy", "/etc/airdock/svd.toml"]);
    host.run(&["sh", "-c", "! test -e /etc/airdock/conf.d/elsewhere.toml"]);
    wait_until("shop runs", PATIENCE, || told(&["-H", "web-1", "is-active", "shop"]).0 == 0);
    assert_eq!(ok(&["-H", "web-1", "setup", "--deployer", "deploy"]), "web-1: nothing to do\n");

    // A changed file is replaced, and svd applies it.
    service(&format!("{}umask = '0027'\n", text.replace("root = '/srv/shop'\n", "")));
    let did = ok(&["-H", "web-1", "setup"]);
    assert!(did.contains("replace /etc/airdock/conf.d/shop.toml") && did.contains("svctl update"), "{did}");
    host.run(&["test", "-e", "/etc/airdock/conf.d/shop.toml.before"]);
    service("kind = 'command'\ncommnd = []\n");
    let (code, _, err) = told(&["-H", "web-1", "setup"]);
    assert!(code == 1 && err.contains("did you mean \"command\"") && err.contains("nothing was done"), "{err}");

    // The program is brought in the place of another one, and svd goes on with it.
    host.run(&["sh", "-c", "cp /usr/local/sbin/svd /usr/local/sbin/new && echo >>/usr/local/sbin/new && mv /usr/local/sbin/new /usr/local/sbin/svd"]);
    let before = ok(&["--json", "-H", "web-1", "status", "shop"]);
    let (code, out, err) = told(&["-H", "web-1", "upgrade", "--ship"]);
    assert!(code == 0 && err.contains("this svctl's program is there"), "{out}{err}");
    host.run(&["test", "-e", "/usr/local/sbin/svd.before"]);
    let pid = |text: &str| -> serde_json::Value {
        let value: serde_json::Value = serde_json::from_str(text).expect("JSON");
        value["hosts"][0]["result"]["pid"].clone()
    };
    assert_eq!(pid(&ok(&["--json", "-H", "web-1", "status", "shop"])), pid(&before), "the service was not touched");

    let out = ok(&["-H", "web-1", "remove", "shop", "--purge"]);
    assert!(out.contains("stopped") && out.contains("removed /etc/airdock/conf.d/shop.toml"), "{out}");
    assert_eq!(told(&["-H", "web-1", "status", "shop"]).0, 4);
    assert_eq!(ok(&["-H", "web-1", "remove", "shop"]), "web-1: there is no such service\n");
    ok(&["-H", "web-1", "shutdown"]);
    assert!(!Path::new("/usr/local/sbin/svd.before").exists(), "nothing of this machine is touched");
}

/// A user of the host's own who is let in by ssh, and has no password.
fn deployer(host: &Host) {
    host.run(&["useradd", "--create-home", "--shell", "/bin/sh", "deploy"]);
    // Without one `sshd` would take the account for locked.
    host.run(&["usermod", "--password", "*", "deploy"]);
}

/// All that needs root is done by `sudo`, with svd's program and files on its standard input.
#[test]
fn a_user_with_sudo_prepares_a_host_whose_configuration_is_elsewhere() {
    if !Path::new("/usr/bin/sudo").exists() {
        assert!(std::env::var_os("AIRDOCK_TEST_ALL").is_none(), "sudo is needed");
        eprintln!("SKIPPED, as there is no sudo");
        return;
    }
    let Some(bed) = Bed::start(1) else { return };
    let host = &bed.hosts[0];
    keep_apart(host);
    deployer(host);
    host.run(&["sh", "-c", "echo 'CONFIG_DIR=\"/opt/dock\"  ' >>/etc/default/svd"]);
    host.run(&["mount", "-t", "tmpfs", "none", "/opt"]);
    let svctl = bed.svctl_as_shipped().join("svctl").display().to_string();
    let site = bed.path("site");
    fs::create_dir_all(site.join("conf.d")).expect("a directory");
    let text = "kind = 'command'\ncommand = ['/bin/sleep', '100000']\nuser = 'shopkeeper'\nroot = '/srv/shop'\ndirectory = '/'\n\
                [deploy]\nshared = ['media', 'local.py']\n";
    fs::write(site.join("conf.d/shop.toml"), text).expect("writing");
    let till = "kind = 'command'\ncommand = ['/bin/sleep', '100000']\nuser = 'shopkeeper'\ndirectory = '/'\n";
    fs::write(site.join("conf.d/till.toml"), till).expect("writing");
    let fleet = format!(
        "hosts = [\"web-0\"]\nssh_config = \"../ssh_config\"\nconnect_timeout = \"30s\"\n[host.web-0]\nssh = {:?}\nuser = \"deploy\"\n",
        host.address
    );
    fs::write(site.join("fleet.toml"), fleet).expect("writing");
    let told = |words: &[&str]| told(&bed, &svctl, words);

    let (code, out, err) = told(&["-H", "web-0", "setup", "--deployer", "deploy"]);
    assert!(code == 5 && err.contains("this needs root, or sudo without a password"), "{code} {out}{err}");
    host.run(&["test", "!", "-e", "/usr/local/sbin/svd"]);
    let sudoers = "echo 'deploy ALL=(root) NOPASSWD: ALL' >/etc/sudoers.d/deploy && chmod 440 /etc/sudoers.d/deploy";
    host.run(&["sh", "-c", sudoers]);

    let (code, out, err) = told(&["-H", "web-0", "setup", "--deployer", "deploy"]);
    assert_eq!(code, 0, "{out}{err}");
    for did in [
        "install /usr/local/sbin/svd",
        "make the user shopkeeper",
        "make the directory /srv/shop/shared\n",
        "make the directory /srv/shop/shared/media, shopkeeper's",
        "write /opt/dock/conf.d/shop.toml",
        "write /opt/dock/svd.toml",
        "start svd, now and at boot",
    ] {
        assert!(out.contains(did), "{did:?} in {out}");
    }
    host.run(&["sh", "-c", "! test -e /etc/airdock && ! test -e /srv/shop/shared/local.py"]);
    let owners = "test \"$(stat -c %U /srv/shop /srv/shop/shared /srv/shop/shared/media /opt/dock/svd.toml | tr '\\n' ' ')\" \
                  = 'root root shopkeeper root '";
    host.run(&["sh", "-c", owners]);
    let (code, out, _) = told(&["-H", "web-0", "status", "shop"]);
    assert!(code == 3 && out.contains("there is no release in /srv/shop yet"), "{out}");
    // svd runs with what was brought, and lets the deployer in without sudo.
    wait_until("till runs", PATIENCE, || told(&["-H", "web-0", "is-active", "till"]).0 == 0);
    let (code, out, err) = told(&["-H", "web-0", "setup", "--deployer", "deploy"]);
    assert!(code == 0 && out == "web-0: nothing to do\n", "{out}{err}");
    assert!(err.contains("/opt/dock/svd.toml is there and stays"), "{err}");
    fs::write(site.join("conf.d/shop.toml"), text.replace("user =", "umask = '0027'\nuser =")).expect("writing");
    let (code, out, err) = told(&["-H", "web-0", "setup"]);
    assert!(code == 0 && out.contains("replace /opt/dock/conf.d/shop.toml"), "shop waits for a release: {out}{err}");
    let (code, out, err) = told(&["-H", "web-0", "remove", "shop", "--purge"]);
    assert!(
        code == 0 && out.contains("removed /opt/dock/conf.d/shop.toml") && out.contains("removed /srv/shop"),
        "{out}{err}"
    );
    assert_eq!(told(&["-H", "web-0", "status", "shop"]).0, 4);

    host.run(&["sh", "-c", "echo CONFIG_DIR=dock >>/etc/default/svd"]);
    let (code, out, err) = told(&["-H", "web-0", "setup"]);
    assert!(code == 1 && err.contains("CONFIG_DIR in /etc/default/svd must be a path from the root"), "{out}{err}");
    host.run(&["svctl", "shutdown"]);
}

#[test]
fn svd_is_replaced_in_waves_and_the_first_failure_ends_it() {
    let Some(bed) = Bed::start(3) else { return };
    let image = |host: &Host| host.svd.json(&["version"])["svd"]["image"].as_u64().expect("a number");
    let images = || bed.hosts.iter().map(image).collect::<Vec<_>>();
    let before = images();
    bed.fleet("groups = { canary = [\"web-2\"] }\n");
    let out = bed.ok(&["-H", "all", "upgrade"]);
    let order: Vec<&str> = out.lines().filter_map(|line| line.split(" | ").next()).collect();
    assert_eq!(order, ["web-2", "web-0", "web-1"], "{out}");
    let after = images();
    assert!(before.iter().zip(&after).all(|(before, after)| before != after), "{before:?} {after:?}");
    for host in &bed.hosts {
        assert_eq!(host.svd.status("web")["state"], "running");
    }
    let (code, out, err) = bed.told(&["-H", "all", "upgrade", "--binary", "/bin/false"]);
    assert!(code == 1 && err.contains("not touched: web-0, web-1"), "{code} {out}{err}");
    assert_eq!(images()[..2], after[..2]);
}
