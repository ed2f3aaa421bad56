//! What is no plain `pip install -r`: a release that is a wheel, and environments by uv.

use super::support::app::Release;
use super::support::env::Env;
use super::support::plain::needs_root;
use super::support::{PATIENCE, Svd, http_get, run_limited};
use super::{Deployer, GUNICORN, built_site, deploy};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// A wheel of the test application, which requires gunicorn.
fn wheel(svd: &Svd, release: &str) -> PathBuf {
    let made = svd.app("made").publish(&Release::new(release));
    let wheel = svd.path("app-1.0-py3-none-any.whl");
    let mut python = Command::new("python3");
    python.arg("-c").arg(
        "import pathlib, sys, zipfile
made, wheel = map(pathlib.Path, sys.argv[1:])
info = 'app-1.0.dist-info/'
with zipfile.ZipFile(wheel, 'w') as out:
    for file in sorted(made.iterdir()):
        out.write(file, file.name)
    out.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: app\\nVersion: 1.0\\nRequires-Dist: gunicorn==27.0.1\\n')
    out.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    out.writestr(info + 'RECORD', ''.join('%s,,\\n' % name for name in out.namelist()))",
    );
    python.arg(&made).arg(&wheel);
    assert!(run_limited(python, PATIENCE).status.success());
    wheel
}

#[test]
fn a_wheel_is_installed_with_what_it_requires() {
    if Env::get(GUNICORN).is_none() {
        return;
    }
    let (svd, address) = built_site(Svd::start);
    fs::create_dir(svd.path("home")).expect("mkdir");
    let ship = || {
        deploy(&svd, &svd.path(""), None, &["deploy", "web", "--artifact", "app-1.0-py3-none-any.whl", "--bake", "0s"])
    };
    for release in ["one", "two"] {
        wheel(&svd, release);
        let (code, said) = ship();
        assert!(
            code == Some(0) && said.contains("pip install") && said.contains("./app-1.0-py3-none-any.whl"),
            "{said}"
        );
        assert!(http_get(address, "/").expect("it answers").1.contains(&format!("release={release}")));
    }
    let (_, said) = ship();
    assert!(said.contains("There is nothing to do."), "{said}");
}

/// As the machine would be if uv were installed on it.
fn start_with_uv<'a>(svd: &'a mut Svd, uv: &Env) -> &'a mut Svd {
    let plain = svd.command();
    let mut command = Command::new("unshare");
    let add = "mount -t overlay overlay -o \"lowerdir=$1:/usr/local/bin\" /usr/local/bin && shift && exec \"$@\"";
    command.args(["--mount", "sh", "-c", add, "sh"]).arg(uv.dir.join("only"));
    command.arg(plain.get_program()).args(plain.get_args());
    svd.start_with(command)
}

#[test]
fn uv_builds_where_it_is_installed() {
    if needs_root() {
        return;
    }
    let (Some(uv), Some(wheels)) = (Env::get("uv"), Env::get("wheels")) else { return };
    // The service's user has no home.
    let (svd, address) = built_site(|svd| start_with_uv(svd, &uv));
    let packages = svd.path("packages");
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(&wheels.dir).arg(&packages);
    assert!(run_limited(copy, PATIENCE).status.success());
    let deployer = Deployer::new(&svd, "web", 1);
    let dir = deployer.site.publish(&Release::new("r1"));
    let requirements = format!("--no-index\n--find-links {}\ngunicorn==27.0.1\n", packages.display());
    fs::write(dir.join("requirements.txt"), requirements).expect("write");
    deployer.send(&dir);
    deployer.ok("stage", json!({ "release": "r1", "source": "r1" }));
    let built = deployer.ok("build", json!({ "release": "r1" }));
    let settings = svd.path("srv/web/venv").join(built["venv"].as_str().expect("a name")).join("pyvenv.cfg");
    let settings = fs::read_to_string(settings).expect("an environment");
    assert!(settings.contains("uv = "), "uv made it: {settings}");
    deployer.activate("r1");
    deployer.ok("confirm", json!({}));
    assert!(http_get(address, "/").expect("it answers").1.contains("release=r1"));
}
