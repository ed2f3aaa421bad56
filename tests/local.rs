//! Verbs about the files of services: a file is written from a look at a project, shown, edited; a real svd takes it.

#![expect(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;
use support::env::Env;
use support::svd::{Svd, both};
use support::{PATIENCE, free_port, wait_for};

const GUNICORN: &str = "gunicorn-27.0.1";

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() { copy(&path, &to) } else { _ = fs::copy(path, to).unwrap() }
    }
}

/// A project below svd's directory.
fn project(svd: &Svd, name: &str, files: &[(&str, &str)]) -> PathBuf {
    let dir = svd.path("projects").join(name);
    for (file, text) in files {
        let file = dir.join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    dir
}

fn init(svd: &Svd, name: &str, project: &Path, more: &[&str]) -> Output {
    let (config, project) = (svd.path("etc"), project.to_str().unwrap().to_owned());
    let mut args = vec!["init", name, "--project", &project, "-c", config.to_str().unwrap()];
    args.extend(more);
    svd.svctl(&args)
}

#[track_caller]
fn written(svd: &Svd, name: &str, project: &Path, more: &[&str]) -> String {
    let output = init(svd, name, project, more);
    assert!(output.status.success(), "{}", both(&output));
    let text = fs::read_to_string(svd.path(&format!("etc/conf.d/{name}.toml"))).unwrap();
    let config = svd.path("etc");
    let checked = svd.ok(&["check", config.to_str().unwrap()]);
    assert!(!checked.contains("warning"), "{checked}\n{text}");
    text
}

#[track_caller]
fn has(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(
            text.lines().any(|l| l == *line || l.split("  #").next().unwrap().trim_end() == *line),
            "no {line:?} in\n{text}"
        );
    }
}

#[test]
fn each_framework_gets_a_file_that_is_right() {
    let svd = Svd::new();
    let flask = project(
        &svd,
        "flask",
        &[
            ("wsgi.py", "from shop import create_app\napp = create_app()\n"),
            (
                "shop/__init__.py",
                "import os\nfrom flask import Flask\n\ndef create_app(config=None):\n    app = Flask(__name__)\n    app.secret_key = os.environ['SECRET_KEY']\n    @app.route('/healthz')\n    def health():\n        return 'ok'\n    return app\n",
            ),
            ("requirements.txt", "flask\ngunicorn\n"),
        ],
    );
    let text = written(&svd, "shop", &flask, &[]);
    has(
        &text,
        &[
            "app = \"wsgi:app\"",
            "probe = { path = \"/healthz\" }",
            "# SECRET_KEY = \"\"",
            "listen = \"127.0.0.1:8000\"",
        ],
    );
    assert!(text.contains("environment_files = [\"-") && text.contains("shop/__init__.py:6 reads it"), "{text}");

    let factory = project(
        &svd,
        "factory",
        &[("src/store/__init__.py", "import flask\ndef make_app():\n    return flask.Flask(__name__)\n")],
    );
    has(
        &written(&svd, "store", &factory, &[]),
        &["app = \"store:make_app()\"", "directory = \"{release}/src\"", "listen = \"127.0.0.1:8001\""],
    );

    let fast = project(
        &svd,
        "fast",
        &[
            (
                "app/main.py",
                "from fastapi import FastAPI\napp = FastAPI()\n@app.get(\"/health\")\nasync def health(): return {}\n",
            ),
            ("requirements.txt", "fastapi\nuvicorn[standard]\n"),
        ],
    );
    let text = written(&svd, "fast", &fast, &[]);
    has(
        &text,
        &[
            "command = [\"{venv}/bin/python\", \"-m\", \"uvicorn\", \"--fd\", \"{fd}\", \"app.main:app\"]",
            "probe = { path = \"/health\" }",
        ],
    );
    let text = written(&svd, "fast-gated", &fast, &["--kind", "gunicorn"]);
    has(&text, &["kind = \"gunicorn\"", "args = [\"--worker-class\", \"uvicorn.workers.UvicornWorker\"]"]);

    let node = project(&svd, "node", &[("package.json", r#"{"scripts": {"start": "node ./server.js"}}"#)]);
    has(&written(&svd, "node", &node, &[]), &["command = [\"node\", \"{release}/server.js\"]", "overlap = false"]);
    let odd = written(&svd, "odd", &node, &["--", "/bin/echo", "a \"b\"\\", "\u{1}"]);
    has(&odd, &["command = [\"/bin/echo\", \"a \\\"b\\\"\\\\\", \"\\u0001\"]"]);

    let nothing = project(&svd, "nothing", &[("notes.txt", "")]);
    let said = both(&init(&svd, "nothing", &nothing, &[]));
    assert!(said.contains("does not tell how it is run"), "{said}");
    assert_eq!(init(&svd, "nothing", &nothing, &["--kind", "gunicorn"]).status.code(), Some(1));
    assert_eq!(init(&svd, "a b", &nothing, &[]).status.code(), Some(2));
}

#[test]
fn a_jar_tells_its_class_and_its_port() {
    let svd = Svd::new();
    for (name, more) in [("jdk", "[sockets.http]"), ("tomcat", "kind = \"jvm\"")] {
        let Some(env) = Env::get(name) else { return };
        let dir = svd.path("projects").join(name);
        fs::create_dir_all(dir.join("target")).unwrap();
        fs::copy(env.jar(), dir.join("target/app-1.jar")).unwrap();
        has(&written(&svd, name, &dir, &[]), &["jar = \"{release}/target/app-1.jar\"", more, "[java]"]);
    }
    // What Spring Boot's build makes, as far as it tells anything.
    let boot = project(
        &svd,
        "boot",
        &[
            (
                "META-INF/MANIFEST.MF",
                "Manifest-Version: 1.0\nMain-Class: org.springframework.boot.loader.launch.JarLauncher\nStart-Class: shop.Main\n",
            ),
            ("src/main/resources/application.yml", "server:\n  port: 9123\n"),
        ],
    );
    let made = std::process::Command::new("python3")
        .args(["-c", "import zipfile; z = zipfile.ZipFile('app.jar', 'w', zipfile.ZIP_DEFLATED); z.write('META-INF/MANIFEST.MF'); z.writestr('BOOT-INF/lib/spring-boot-actuator-3.1.jar', b'')"])
        .current_dir(&boot)
        .status();
    assert!(made.unwrap().success());
    let text = written(&svd, "boot", &boot, &[]);
    has(&text, &["probe = { path = \"/actuator/health\", port = 9123 }", "overlap = false"]);
    assert!(text.contains("Spring Boot, which runs shop.Main") && !text.contains("[sockets"), "{text}");
}

#[test]
fn what_is_there_is_not_replaced() {
    let svd = Svd::new();
    let dir = project(&svd, "node", &[("package.json", r#"{"main": "server.js"}"#)]);
    svd.service("web", "# mine\n");
    let said = both(&init(&svd, "web", &dir, &[]));
    assert!(said.contains("is there already"), "{said}");
    let printed = init(&svd, "web", &dir, &["--print"]);
    assert!(
        printed.status.success() && String::from_utf8_lossy(&printed.stdout).contains("server.js"),
        "{}",
        both(&printed)
    );
    let file = svd.path("etc/conf.d/web.toml");
    assert_eq!(fs::read_to_string(&file).unwrap(), "# mine\n");
    assert!(written(&svd, "web", &dir, &["--force"]).contains("server.js"));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(fs::read_dir(svd.path("etc/conf.d")).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn the_file_of_a_django_project_starts_it() {
    let Some(env) = Env::get(GUNICORN) else { return };
    let mut svd = Svd::new();
    let dir = svd.path("projects/airship");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/django"), &dir);
    symlink(&env.dir, dir.join("venv")).unwrap();
    let text = written(&svd, "airship", &dir, &["--kind", "gunicorn"]);
    has(
        &text,
        &[
            "app = \"airship.wsgi:application\"",
            "probe = { path = \"/healthz\" }",
            "# AIRSHIP_DATABASE = \"\"",
            "[deploy.migrate]",
            "[deploy.static]",
        ],
    );
    // As somebody does who reads it.
    fs::write(svd.path("etc/airship.env"), format!("AIRSHIP_DATABASE={}\n", svd.path("database").display())).unwrap();
    let mut migrate = std::process::Command::new(env.python());
    migrate.args(["manage.py", "migrate"]).current_dir(&dir).env("AIRSHIP_DATABASE", svd.path("database"));
    assert!(support::run_limited(migrate, PATIENCE).status.success());
    // svd and the database lie in /tmp here.
    let isolated = "profile = \"standard\"\nprivate_tmp = false";
    let port = free_port();
    svd.service(
        "airship",
        &text
            .replace("127.0.0.1:8000", &format!("127.0.0.1:{port}"))
            .replace("workers = \"auto\"", "workers = 2")
            .replace("\nuser =", "\n# user =")
            .replace("profile = \"standard\"", isolated),
    );
    svd.start();
    wait_for("airship runs", PATIENCE, || {
        String::from_utf8_lossy(&svd.svctl(&["is-active", "airship"]).stdout).contains("running").then_some(())
    });
    // Where nobody says where the files are, svd does.
    let said = both(&svd.svctl(&["init", "airship", "--project", dir.to_str().unwrap()]));
    assert!(said.contains("is there already") && said.contains(svd.path("etc").to_str().unwrap()), "{said}");
    let place = |key: &str| {
        let shown = svd.json(&["show", "airship"]);
        let all = shown["settings"].as_array().unwrap().clone();
        all.into_iter().find(|s| s["key"] == key).unwrap_or_else(|| panic!("{key}: {shown}"))
    };
    assert_eq!((&place("app")["origin"], &place("stop.grace")["origin"]), (&"file".into(), &"kind".into()));
    svd.ok(&["scale", "airship", "3"]);
    assert_eq!((&place("workers")["origin"], &place("workers")["value"]), (&"scale".into(), &"3".into()));
}

const SERVICE: &str =
    "kind = \"command\"\ncommand = [\"sleep\", \"1000\"]\n[environment]\nAPI_TOKEN = \"geheim\"\nTZ = \"UTC\"\n";

fn setting(shown: &Value, key: &str) -> Value {
    shown["settings"].as_array().unwrap().iter().find(|s| s["key"] == key).cloned().unwrap_or(Value::Null)
}

#[test]
fn settings_are_shown_beside_what_the_file_says_now() {
    let mut svd = Svd::new();
    svd.service("web", SERVICE);
    svd.start();
    wait_for("web runs", PATIENCE, || (svd.json(&["status", "web"])["state"] == "running").then_some(()));
    let shown = svd.json(&["show", "web"]);
    assert_eq!((&shown["generation"], &shown["update"]), (&1.into(), &Value::Null), "{shown}");
    assert_eq!(setting(&shown, "command")["line"], 2);
    assert!(!shown.to_string().contains("geheim") && setting(&shown, "environment.TZ")["value"] == "UTC", "{shown}");
    assert!(svd.ok(&["show", "web", "--changed"]).contains("Nothing differs."));

    svd.service("web", &SERVICE.replace("1000", "2000").replace("geheim", "anders"));
    let shown = svd.json(&["show", "web"]);
    assert_eq!(shown["update"], "reload", "{shown}");
    assert_eq!(setting(&shown, "command")["differs"]["in_file"], "[\"sleep\", \"2000\"]");
    assert!(
        !shown.to_string().contains("anders")
            && setting(&shown, "environment.API_TOKEN")["differs"]["needs"] == "reload",
        "{shown}"
    );
    let text = svd.ok(&["show", "web", "--changed"]);
    assert!(
        text.contains("→ web.toml:2 says [\"sleep\", \"2000\"] (reload)") && text.contains("svctl update"),
        "{text}"
    );

    svd.service("web", "kind = \"command\"\n");
    let text = both(&svd.svctl(&["show", "web"]));
    assert!(text.contains("[\"sleep\", \"1000\"]") && text.contains("\"command\" is missing"), "{text}");
    svd.remove_service("web");
    assert_eq!(svd.json(&["show", "web"])["update"], "remove");
    assert_eq!(svd.svctl(&["show", "none"]).status.code(), Some(4));
    // The running one stays until an update; without svd, only files count.
    let config = svd.path("etc");
    assert_eq!(svd.svctl(&["show", "-c", config.to_str().unwrap(), "web"]).status.code(), Some(4));
}

/// `svctl edit` with an editor that runs this shell command on the file `$1`.
fn edit(svd: &Svd, editor: &str, more: &[&str]) -> Output {
    let config = svd.path("etc");
    let mut command = svd.svctl_command(&["edit", "web", "-c", config.to_str().unwrap()]);
    let script = svd.path("editor");
    fs::write(&script, format!("#!/bin/sh\nset -e\n{editor}\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    command.args(more).env_remove("VISUAL").env("EDITOR", &script);
    support::run_limited(command, PATIENCE)
}

#[test]
fn an_edited_file_is_checked_before_it_counts() {
    let mut svd = Svd::new();
    svd.service("web", SERVICE);
    let file = svd.path("etc/conf.d/web.toml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    svd.start();
    wait_for("web runs", PATIENCE, || (svd.json(&["status", "web"])["state"] == "running").then_some(()));
    let inode = || fs::metadata(&file).unwrap().ino();
    let before = inode();

    let same = edit(&svd, ":", &[]);
    assert!(same.status.success() && both(&same).contains("nothing was changed"), "{}", both(&same));
    let ended = edit(&svd, "echo x >> \"$1\"; exit 3", &[]);
    assert!(!ended.status.success() && both(&ended).contains("ended with an error"), "{}", both(&ended));
    let wrong = edit(&svd, "sed -i '1i wokers = 3' \"$1\"", &["--yes"]);
    let said = both(&wrong);
    assert!(wrong.status.code() == Some(1) && said.contains("web.toml:1") && said.contains("\"wokers\""), "{said}");
    assert_eq!((inode(), fs::read_to_string(&file).unwrap().as_str()), (before, SERVICE));
    // What was written is not lost.
    let kept = said.split("It is kept in ").nth(1).unwrap().split(',').next().unwrap();
    assert!(fs::read_to_string(kept).unwrap().contains("wokers"));
    fs::remove_dir_all(Path::new(kept).parent().unwrap()).unwrap();

    let good = edit(&svd, "sed -i.bak s/1000/2000/ \"$1\"", &[]);
    let said = both(&good);
    assert!(
        good.status.success() && said.contains("(command): a reload") && said.contains("The configuration is applied"),
        "{said}"
    );
    let meta = fs::metadata(&file).unwrap();
    assert_eq!((meta.permissions().mode() & 0o7777, meta.ino() == before), (0o640, false));
    assert_eq!(svd.json(&["show", "web"])["generation"], 2);

    let later = edit(&svd, "sed -i s/2000/3000/ \"$1\"", &["--no-update", "--json"]);
    assert!(later.status.success(), "{}", both(&later));
    assert_eq!(svd.json(&["show", "web"])["update"], "reload");
    assert_eq!(fs::read_dir(svd.path("etc/conf.d")).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn what_others_changed_meanwhile_is_not_lost() {
    let svd = Svd::new();
    svd.service("web", SERVICE);
    let file = svd.path("etc/conf.d/web.toml");
    let editor = format!("sed -i s/1000/2000/ \"$1\"; sed -i s/1000/4000/ {}", file.display());
    let met = edit(&svd, &editor, &["--yes"]);
    let said = both(&met);
    assert!(!met.status.success() && said.contains("changed by somebody else meanwhile"), "{said}");
    assert!(fs::read_to_string(&file).unwrap().contains("4000"));
    let kept = said.split("have written is in ").nth(1).unwrap().trim().trim_end_matches('.');
    assert!(fs::read_to_string(kept).unwrap().contains("2000"));

    // Two at once: the later one is told.
    let config = svd.path("etc");
    let svctl = env!("CARGO_BIN_EXE_svctl");
    let inner = format!(
        "EDITOR=true {svctl} edit web -c {} > {} 2>&1 && exit 9 || true",
        config.display(),
        svd.path("inner").display()
    );
    assert!(edit(&svd, &inner, &["--yes"]).status.success());
    assert!(fs::read_to_string(svd.path("inner")).unwrap().contains("being edited by somebody else"));
}

/// What one of its processes has.
fn item<'a>(process: &'a Value, what: &str) -> &'a Value {
    process["has"].as_array().unwrap().iter().find(|has| has["what"] == what).unwrap_or(&Value::Null)
}

#[test]
fn processes_are_seen_as_they_are() {
    let mut svd = Svd::new();
    let port = free_port();
    let root = nix::unistd::geteuid().is_root();
    let user = if root { "user = \"nobody\"\n" } else { "" };
    let text = format!(
        "kind = \"command\"\n{user}umask = \"0027\"\ncommand = [\"sh\", \"-c\", \"sleep 1000 & exec sleep 1000\", \"--password=geheim\"]\n\
         [sockets.http]\nlisten = \"127.0.0.1:{port}\"\n[limits]\nnice = 3\nopen_files = 512\n[environment]\nAPI_TOKEN = \"geheim\"\n"
    );
    svd.service("web", &text);
    svd.start();
    let running = || String::from_utf8_lossy(&svd.svctl(&["is-active", "web"]).stdout).contains("running");
    support::wait_until("web runs", PATIENCE, running);
    let seen = wait_for("both processes", PATIENCE, || {
        let seen = svd.json(&["inspect", "web"]);
        let all = seen["processes"].as_array().unwrap().clone();
        let run = all.iter().all(|p| p["command"][0] == "sleep");
        (all.len() == 2 && run).then_some(seen)
    });
    assert_eq!(seen["differs"], false, "{seen:#}");
    let first = &seen["processes"][0];
    for (what, value) in [("umask", "0027"), ("limits.nice", "3"), ("directory", "/"), ("limits.open_files", "512")] {
        assert_eq!(item(first, what)["value"], value, "{seen:#}");
    }
    assert_eq!(item(first, "listens on")["value"], format!("127.0.0.1:{port}"));
    assert!(
        item(first, "environment")["value"].as_str().unwrap().contains("API_TOKEN")
            && !seen.to_string().contains("geheim"),
        "{seen:#}"
    );
    if root {
        assert!(item(first, "user")["value"].as_str().unwrap().starts_with("nobody"), "{seen:#}");
        assert!(item(first, "isolation.capabilities")["value"].as_str().unwrap().starts_with("none"), "{seen:#}");
    }
    let said = svd.ok(&["inspect", "web"]);
    assert!(said.contains("All that the file says is so.") && said.contains("  as "), "{said}");

    // Another limit than the file has, by somebody from outside.
    let pid = first["pid"].to_string();
    let renice = std::process::Command::new("renice").args(["-n", "9", "-p", &pid]).output().unwrap();
    assert!(renice.status.success());
    let seen = svd.json(&["inspect", "web"]);
    assert_eq!(
        (&item(&seen["processes"][0], "limits.nice")["wanted"], &seen["differs"]),
        (&"3".into(), &true.into()),
        "{seen:#}"
    );
    svd.ok(&["stop", "web"]);
    assert_eq!(svd.svctl(&["inspect", "web"]).status.code(), Some(3));
}

#[test]
fn exposure_is_scored_and_weak_combinations_are_told() {
    let svd = Svd::new();
    let config = svd.path("etc");
    let config = config.to_str().unwrap();
    let command = "kind = \"command\"\ncommand = [\"sleep\", \"1000\"]\n";
    svd.service("open", command);
    svd.service(
        "shut",
        &format!("user = \"auto\"\n{command}root = \"/srv/shut\"\n[isolation]\nprofile = \"strict\"\n"),
    );
    let scored = svd.json(&["security", "-c", config]);
    let total = |n: usize| scored["services"][n]["total"].as_f64().unwrap();
    assert!(total(0) > 9.0 && total(1) < 4.0, "{scored}");
    let table = svd.ok(&["security", "-c", config]);
    assert!(table.lines().count() == 3 && table.contains("unsafe") && table.contains("user = \"auto\""), "{table}");
    let one = svd.ok(&["security", "-c", config, "shut"]);
    assert!(one.contains("isolation.network") && one.contains("→ [isolation] network"), "{one}");
    assert_eq!(svd.svctl(&["security", "-c", config, "--at-most", "5", "o*"]).status.code(), Some(1));
    assert_eq!(svd.svctl(&["security", "-c", config, "--at-most", "5", "shut"]).status.code(), Some(0));
    assert_eq!(svd.svctl(&["security", "-c", config, "none"]).status.code(), Some(4));
    assert!(!svd.ok(&["check", config]).contains("warning"));

    svd.service("weak", &format!("user = \"auto\"\n{command}root = \"/srv/weak\"\n[isolation]\nprofile = \"strict\"\nwritable = [\"{{release}}\"]\n"));
    let said = svd.ok(&["check", config]);
    assert!(said.contains("weak.toml:7:1: {release} has its own code") && said.contains("1 warning"), "{said}");
    assert_eq!(svd.json(&["check", config])["warnings"][0]["line"], 7);
}
