//! The shell examples of the documents that are marked with `sh run` work as pasted: each document's, one after the other,
//! in one shell, in an empty directory, with svd and svctl on the path.

#![expect(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The port of the examples; here another one, for they run beside other tests.
const PORT: &str = "8123";

fn blocks(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```sh run" => inside = true,
            "```" => inside = false,
            line if inside => {
                out.push_str(line);
                out.push('\n');
            }
            _ => {}
        }
    }
    out
}

/// With a prepared environment in the place of the one that the page makes.
fn run_with(document: &str, env: &str) {
    let Some(env) = support::env::Env::get(env) else { return };
    run_as(document, |line| match line {
        line if line.contains("/bin/pip install") => ":".to_owned(),
        // svd itself lies in /tmp here, with what its services need of it.
        line if line.starts_with("svctl check ") => {
            format!("sed -i 's/^profile = .*/&\\nprivate_tmp = false/' etc/conf.d/*.toml\n{line}")
        }
        line => match line.strip_prefix("python3 -m venv ") {
            Some(place) => format!("mkdir -p $(dirname {place}); ln -s {} {place}", env.dir.display()),
            None => line.to_owned(),
        },
    });
}

fn run(document: &str) {
    run_as(document, str::to_owned);
}

fn run_as(document: &str, line: impl Fn(&str) -> String) {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
    let script = blocks(&text);
    assert!(!script.is_empty(), "{document} has no examples that are marked");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = script.replace(PORT, &free.to_string());
    let script: String = script.lines().map(|text| line(text) + "\n").collect();
    let dir = tempfile::Builder::new().prefix("ad-doc-").tempdir().unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_svd")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let output = Command::new("timeout")
        .args(["120", "sh", "-eux", "-c", &script])
        .env("PATH", path)
        .env_remove("AIRDOCK_SOCKET")
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let shown = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        // Whatever the examples have started ends before the directory goes.
        for socket in glob_sockets(dir.path()) {
            let _ = Command::new(env!("CARGO_BIN_EXE_svctl")).arg("--socket").arg(socket).arg("shutdown").output();
        }
        panic!("{document}: {}\n{said}\n{shown}", output.status);
    }
    // `svctl shutdown` is answered when the services have stopped, a moment before svd itself is gone.
    let give_up = Instant::now() + Duration::from_secs(10);
    while !glob_sockets(dir.path()).is_empty() {
        assert!(Instant::now() < give_up, "{document} leaves svd running\n{said}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn glob_sockets(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(glob_sockets(&path));
        } else if path.ends_with("svd.sock") {
            found.push(path);
        }
    }
    found
}

#[test]
fn the_readmes_examples_work_as_pasted() {
    run("README.md");
}

#[test]
fn a_django_project_becomes_a_service_as_pasted() {
    run_with("docs/django.md", "gunicorn-27.0.1");
}

#[test]
fn a_flask_project_becomes_a_service_as_pasted() {
    run_with("docs/flask.md", "gunicorn-27.0.1");
}

#[test]
fn a_fastapi_project_becomes_a_service_as_pasted() {
    run_with("docs/fastapi.md", "fastapi");
}

#[test]
fn a_jar_becomes_a_service_as_pasted() {
    if support::env::Env::get("jdk").is_none() {
        return;
    }
    run_as("docs/java.md", |line| match line {
        // javac would leave a page of counters in the system's own directory for them.
        line if line.starts_with("javac ") => format!("export JAVA_TOOL_OPTIONS=-XX:-UsePerfData; {line}"),
        line => line.to_owned(),
    });
}

#[test]
fn the_secrets_examples_work_as_pasted() {
    run("docs/secrets.md");
}
