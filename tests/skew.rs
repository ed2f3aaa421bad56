//! svctl with svds of other versions: a newer one says more than it knows, an older one less.

#![allow(clippy::disallowed_methods, reason = "forbidden in the core alone")]

mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use support::{PATIENCE, run_limited};

/// Answers what it is told to, by method and path.
struct Fake {
    dir: tempfile::TempDir,
    asked: std::sync::Arc<std::sync::Mutex<Vec<(String, String)>>>,
}

type Answers = Vec<(&'static str, u16, Value)>;

impl Fake {
    fn new(answers: Answers) -> Fake {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("svd.sock")).expect("a socket");
        let asked: std::sync::Arc<std::sync::Mutex<Vec<_>>> = std::sync::Arc::default();
        let heard = std::sync::Arc::clone(&asked);
        // Ends with the process: it waits for connections that nobody makes any more.
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answers, heard) = (answers.clone(), std::sync::Arc::clone(&heard));
                std::thread::spawn(move || while let Some(()) = answer(&stream, &answers, &heard) {});
            }
        });
        Fake { dir, asked }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("svd.sock")
    }

    fn svctl(&self, words: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_svctl"));
        command.arg("--socket").arg(self.socket()).args(words).current_dir(self.dir.path());
        let output = run_limited(command, PATIENCE);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }
}

fn answer(stream: &UnixStream, answers: &Answers, heard: &std::sync::Mutex<Vec<(String, String)>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let words: Vec<&str> = first.split(' ').collect();
    let request = format!("{} {}", words[0], words[1]);
    heard.lock().expect("no panic").push((request.clone(), String::from_utf8_lossy(&body).into_owned()));
    let unknown = json!({"error": {"code": "unknown_route", "message": "There is no such path."}});
    let (status, value) = answers
        .iter()
        .find(|(known, ..)| *known == request)
        .map_or((404, unknown), |(_, status, value)| (*status, value.clone()));
    let text = format!("{value}\n");
    let kind = if words[0] == "POST" { "application/x-ndjson" } else { "application/json" };
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", text.len());
    (&*stream).write_all((head + &text).as_bytes()).ok()
}

/// As the next version but one may put it.
fn newer() -> Fake {
    let row = |name: &str, state: &str| json!({"name": name, "state": state, "since_seconds": 3, "restarts": 0, "enabled": true, "mood": "good"});
    let release = |id: &str, state: &str| {
        json!({"release": id, "state": state, "source": "", "label": "", "by": "", "since": "2026-11-22T18:40:00Z",
            "since_seconds": 4, "serving": false, "colour": {"deep": [1, 2]}})
    };
    let app = json!({
        "app": "web", "root": "/srv/web", "confirmed": "r1", "previous": "r0",
        "services": [{"name": "web", "state": "hibernating", "release": "r1", "restarts": 0, "dreams": true}],
        "fence": {"number": 7, "rollout": "x"}, "releases": [release("r0", "confirmed"), release("r1", "simmering")],
        "steps": ["before", "incantation"], "journal": {"rollout": "", "number": 0, "entries": 0}, "weather": "fair",
    });
    let worker =
        json!({"index": 0, "state": "dreaming", "since": "2026-11-22T18:40:00Z", "since_seconds": 9, "restarts": 0});
    let zen = json!({
        "name": "zen", "kind": "koan", "state": "hibernating", "desired": "asleep", "enabled": true, "draining": false,
        "since": "2026-11-22T18:40:00Z", "since_seconds": 90, "restarts": 2, "workers": [worker], "health": {"state": "pensive", "failures": 0},
        "generations": [{"number": 3, "role": "ghost", "since": "2026-11-22T18:40:00Z", "since_seconds": 9, "workers": []}],
    });
    Fake::new(vec![
        ("GET /v1/services/zen", 200, zen),
        ("GET /v1/status", 200, json!({"services": [row("web", "running"), row("zen", "hibernating")], "next": null})),
        ("GET /v1/apps/web", 200, app),
        (
            "POST /v1/services/web/restart",
            409,
            json!({"error": {"code": "eclipsed", "message": "The moon is in the way.", "until": "noon"}}),
        ),
        (
            "GET /v1/version",
            200,
            json!({"version": "9.9.9", "pid": 1, "since": "2026-11-22T18:40:00Z", "since_seconds": 1,
            "services": 2, "choir": ["alto"]}),
        ),
    ])
}

#[test]
fn a_newer_svd_is_understood_as_far_as_it_can_be() {
    let svd = newer();
    let (code, out, err) = svd.svctl(&["status"]);
    assert_eq!(code, 0, "{out}{err}");
    let line =
        |name: &str| out.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{out}")).to_owned();
    assert!(line("web").contains("running") && line("zen").contains("unknown"), "{out}");
    let (_, out, err) = svd.svctl(&["status", "zen"]);
    assert!(out.contains("koan") && out.matches("unknown").count() >= 3, "{out}{err}");
    // Programs get svd's own words.
    let (_, out, _) = svd.svctl(&["--json", "status"]);
    assert!(out.contains("hibernating") && out.contains("mood"), "{out}");
    let (code, out, err) = svd.svctl(&["releases", "web"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("unknown") && out.contains("r0"), "{out}");
    let (code, out, err) = svd.svctl(&["is-active", "zen"]);
    assert_ne!(code, 0, "{out}{err}");
    let (code, _, err) = svd.svctl(&["restart", "web"]);
    assert!(code == 1 && err.contains("The moon is in the way."), "{code} {err}");
    let (code, out, _) = svd.svctl(&["version"]);
    assert!(code == 0 && out.contains("9.9.9"), "{out}");
}

#[test]
fn an_older_svd_is_asked_for_no_more_than_it_knows() {
    let row = json!({"name": "web", "state": "running", "since_seconds": 3, "restarts": 0, "enabled": true});
    let refused = json!({"error": {"code": "bad_request", "message": "There is no option \"force\" here."}});
    let svd = Fake::new(vec![
        ("GET /v1/status", 200, json!({"services": [row]})),
        ("POST /v1/services/web/reload", 400, refused),
        ("POST /v1/services/web/exec", 200, json!({"result": {"exit_code": 3}})),
        (
            "GET /v1/version",
            200,
            json!({"version": "0.0.1", "pid": 1, "since": "2026-11-22T18:40:00Z",
            "since_seconds": 1, "services": 2}),
        ),
    ]);
    let (code, out, err) = svd.svctl(&["status"]);
    assert!(code == 0 && out.contains("web"), "{out}{err}");
    let (code, _, err) = svd.svctl(&["reload", "web", "--force"]);
    assert!(code == 2 && err.contains("no option"), "{code} {err}");
    // No input, no terminal, but the command all the same; where a terminal is asked for, not.
    let (code, out, err) = svd.svctl(&["exec", "web", "true"]);
    assert!(code == 3 && out.is_empty() && err.contains("gets no input"), "{code} {out}{err}");
    let (code, _, err) = svd.svctl(&["exec", "--tty", "web", "true"]);
    assert!(code == 1 && err.contains("svd is older than this svctl"), "{code} {err}");
    // A path that it does not have.
    let (code, _, err) = svd.svctl(&["releases", "web"]);
    assert!(code == 1 && err.contains("svd is older than this svctl"), "{code} {err}");
    let (code, out, _) = svd.svctl(&["version"]);
    assert!(code == 0 && out.contains("0.0.1"), "{out}");
    assert!(svd.asked.lock().expect("no panic").iter().all(|(request, _)| request.contains(" /v1/")));
}
