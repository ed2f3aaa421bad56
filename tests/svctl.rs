//! The real `svctl` against the real server, with a controller that plays svd.
//!
//! `SVCTL_BENCH=1 cargo test --release --test svctl -- bench --nocapture` measures `svctl status` with 1,000 services.

#![expect(clippy::disallowed_methods, reason = "forbidden in the core alone")]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc as channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use airdock::api::access::Access;
use airdock::api::server::{Directory, Limits, ServerContext, SharedDirectory, serve};
use airdock::api::types::*;
use airdock::api::{Call, Request};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

const PATIENCE: Duration = Duration::from_secs(30);

/// A svd of which only the control socket is real; ends when dropped.
struct Svd {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Svd {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn start(socket: &Path, services: usize) -> Svd {
    let (stop, stopped) = oneshot::channel();
    let (ready, is_ready) = channel::channel();
    let socket = socket.to_path_buf();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async {
            let _ = std::fs::remove_file(&socket);
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let (sender, calls) = mpsc::channel(16);
            let mut names: Vec<Box<str>> = ["airship", "db"].map(Into::into).into();
            names.extend((2..services).map(|n| format!("service-{n:04}").into_boxed_str()));
            let context = ServerContext {
                calls: sender,
                directory: SharedDirectory::new(Directory {
                    names: names.into(),
                    access: Access { owner: nix::unistd::geteuid().as_raw(), rules: Arc::from([]) },
                    connections_per_user: 64,
                }),
                numbers: Default::default(),
                audit: Arc::new(|_| {}),
                counters: Arc::default(),
                limits: Limits::default(),
            };
            tokio::task::spawn_local(serve(listener, context));
            tokio::task::spawn_local(control(calls));
            ready.send(()).unwrap();
            let _ = stopped.await;
        });
    });
    is_ready.recv_timeout(PATIENCE).unwrap();
    Svd { stop: Some(stop), thread: Some(thread) }
}

/// `db` has failed; all others run.
fn row(name: &str) -> StatusRow {
    let failed = name == "db";
    StatusRow {
        name: name.into(),
        state: if failed { ServiceState::Failed } else { ServiceState::Running },
        release: Some("deploy-2026-11-22_18-40-00".into()),
        generation: Some(3),
        pid: (!failed).then_some(4711),
        further_workers: 0,
        since_seconds: 90,
        restarts: 0,
        enabled: true,
        draining: false,
        reason: failed.then(|| "exited with code 1".into()),
    }
}

fn status(name: &str) -> Value {
    let row = row(name);
    json!({"name": name, "kind": "command", "state": row.state, "desired": "up", "enabled": true,
        "since": "2026-11-22T18:40:00Z", "since_seconds": 90, "workers": [], "generations": [],
        "restarts": 0, "draining": false})
}

async fn control(mut calls: mpsc::Receiver<Call>) {
    while let Some(mut call) = calls.recv().await {
        match call.request {
            Request::Status { services, .. } => {
                let services = services.iter().map(|n| row(n)).collect();
                call.reply.ok(&StatusList { services });
            }
            Request::Service { name } => call.reply.ok(&status(&name)),
            Request::Start { services } => {
                let result = |n: &str| match n {
                    "db" => ServiceResult::failed(n, ApiError::new(ErrorCode::Failed, "It died.")),
                    _ => ServiceResult::done(n, true, "started"),
                };
                let line = Progress::now(Some(&services[0]), "starting", "starting \x1b[2J");
                call.reply.progress(&line);
                call.reply.actions(&ActionResult { services: services.iter().map(|n| result(n)).collect() });
            }
            Request::Update { dry_run } => {
                call.reply.ok(&UpdateResult { changed: !dry_run, dry_run, ..UpdateResult::default() });
            }
            Request::Pid { services } => {
                let pids = |n: &str| if n == "db" { vec![] } else { vec![4711, 4712] };
                let services = services.iter().map(|n| PidEntry { service: n.clone(), pids: pids(n) });
                call.reply.ok(&PidList { services: services.collect() });
            }
            Request::Logs(logs) => {
                tokio::task::spawn_local(async move {
                    // The log is "0123456789\n" again and again, in one file, and an offset in it is one in the text.
                    let text = b"0123456789\n".repeat(if logs.follow { 2 } else { 10_000 });
                    let from = logs.from.unwrap_or(LogPosition { file: 1, offset: 0 });
                    let stream = call.reply.stream(Some(from));
                    let start = from.offset as usize % 11;
                    for block in text[start..].chunks(1000) {
                        if stream.send(Bytes::copy_from_slice(block)).await.is_err() {
                            return;
                        }
                    }
                    if logs.follow {
                        stream.closed().await;
                    }
                });
            }
            Request::Events(_) => {
                let event = json!({"time": "2026-11-22T18:40:00Z", "service": "db", "event": "state",
                    "state": "failed", "message": "exited with code 1"});
                let _ = call.reply.stream(None).try_line(&event);
            }
            Request::Signal { .. } => {
                call.reply.error(ApiError::new(ErrorCode::NotRunning, "db is not running."));
            }
            // As if svd died at it.
            Request::Stop { .. } => {
                call.reply.progress(&Progress::now(Some("airship"), "stopping", "stopping"));
                std::mem::forget(call.reply);
            }
            _ => call.reply.error(ApiError::new(ErrorCode::Internal, "not played here")),
        }
    }
}

struct Place {
    _dir: tempfile::TempDir,
    socket: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("svd.sock");
    Place { _dir: dir, socket }
}

fn command(socket: &Path, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_svctl"));
    command.env_clear().env("AIRDOCK_SOCKET", socket).args(args.split(' ')).stdin(Stdio::null());
    command
}

fn run(socket: &Path, args: &str) -> (i32, String, String) {
    told(command(socket, args).output().unwrap())
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn exit_codes_and_what_is_said() {
    let place = place();
    let _svd = start(&place.socket, 3);
    for (args, code, out, err) in [
        ("status", 0, "NAME", ""),
        ("status airship", 0, "airship: running for 1m30s", ""),
        ("status db", 3, "db: failed", ""),
        ("status a*", 0, "airship", ""),
        ("status airship db", 3, "exited with code 1", ""),
        ("status nope", 4, "", "There is no service nope"),
        ("status airshp", 4, "", "Did you mean airship?"),
        ("is-active airship", 0, "running\n", ""),
        ("is-active db", 3, "failed\n", ""),
        ("is-active nope", 4, "", "no service"),
        ("start airship", 0, "airship: started\n", "airship: starting \\x1b[2J\n"),
        ("start db", 1, "", "db: It died."),
        ("start *", 1, "airship: started\n", "db: It died."),
        ("start", 2, "", "svctl start '*'"),
        ("reload", 2, "", "svctl reload '*'"),
        ("stop a,b", 2, "", "cannot be the name"),
        ("start nope", 4, "", "There is no service nope."),
        ("scale airship 0", 2, "", "1..=10000"),
        ("signal HUP db", 3, "", "db is not running."),
        ("signal NOPE db", 2, "", "There is no signal"),
        ("reload airship", 1, "", "not played here"),
        ("update", 0, "The configuration is applied.", ""),
        ("update --dry-run", 0, "Nothing has changed.", ""),
        ("pid airship", 0, "4711\n4712\n", ""),
        ("pid a* db", 3, "airship 4711\n", ""),
        ("events", 0, "db state: exited with code 1", ""),
        ("exec airship ls -l", 1, "", "not played here"),
        ("exec airship", 2, "", "exec needs a command"),
        ("nonsense", 2, "", "unrecognized"),
        ("logs airship --since yesterday", 2, "", "10m"),
        ("check /nonexistent", 1, "/nonexistent", ""),
        ("completions bash", 0, "complete -F _svctl", ""),
        ("completions zsh", 0, "#compdef svctl", ""),
        ("completions fish", 0, "complete -c svctl", ""),
        ("man", 0, ".SH \"SVCTL RELOAD\"", ""),
        ("version", 0, "svctl 0", "not played here"),
        ("--help", 0, "Exit codes:", ""),
    ] {
        let got = run(&place.socket, args);
        assert_eq!(got.0, code, "{args}: {got:?}");
        assert!(got.1.contains(out) && got.2.contains(err), "{args}: {got:?}");
        assert_eq!(out.is_empty(), got.1.is_empty(), "{args}: {got:?}");
        assert!(!got.1.contains('\x1b') && !got.2.contains('\x1b'), "{args}: {got:?}");
    }
}

#[test]
fn json_is_one_document_and_nothing_else() {
    let place = place();
    let _svd = start(&place.socket, 3);
    for (args, code, pointer, value) in [
        ("status", 0, "/services/1/state", json!("failed")),
        ("status airship", 0, "/name", json!("airship")),
        ("status db", 3, "/state", json!("failed")),
        ("status nope", 4, "/error/code", json!("unknown_service")),
        ("start airship", 0, "/services/0/ok", json!(true)),
        ("start db", 1, "/services/0/error/code", json!("failed")),
        ("start", 2, "/error/code", json!("bad_request")),
        ("update", 0, "/changed", json!(true)),
        ("update --dry-run", 0, "/changed", json!(false)),
        ("pid airship", 0, "/services/0/pids/1", json!(4712)),
        ("is-active airship db", 3, "/states/db", json!("failed")),
        ("events", 0, "/events/0/service", json!("db")),
        ("logs airship", 0, "/lines/9999", json!("0123456789")),
        ("version", 0, "/svd", json!(null)),
        ("check /nonexistent", 1, "/valid", json!(false)),
    ] {
        let (got, out, err) = run(&place.socket, &format!("--json {args}"));
        assert_eq!((got, err.as_str()), (code, ""), "{args}");
        let document: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args}: {e}: {out}"));
        assert_eq!(document.pointer(pointer), Some(&value), "{args}: {document}");
        assert!(out.ends_with('\n'));
    }
}

#[test]
fn without_svd_it_says_so() {
    let place = place();
    let missing = run(&place.socket, "status");
    assert_eq!((missing.0, missing.1.as_str()), (4, ""));
    assert!(missing.2.contains("no such socket") && missing.2.contains("AIRDOCK_SOCKET"), "{missing:?}");
    drop(std::os::unix::net::UnixListener::bind(&place.socket).unwrap());
    let refused = run(&place.socket, "start airship");
    assert_eq!(refused.0, 4);
    assert!(refused.2.contains("nobody listens"), "{refused:?}");
    let (code, out, _) = run(&place.socket, "--json status");
    let document: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &document["error"]["code"]), (4, &json!("unavailable")));
    // Verbs that need none.
    assert_eq!(run(&place.socket, "version").0, 0);
    assert_eq!(run(&place.socket, "completions bash").0, 0);
}

#[test]
fn somebody_else_at_the_socket_is_not_svd() {
    let place = place();
    let listener = std::os::unix::net::UnixListener::bind(&place.socket).unwrap();
    let other = std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"220 mail.example.org ESMTP\r\n");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    });
    let (code, out, err) = run(&place.socket, "start airship");
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("not svd's"), "{err}");
    other.join().unwrap();
}

#[test]
fn a_lost_connection_is_told_apart() {
    let place = place();
    let svd = start(&place.socket, 3);
    let mut child = command(&place.socket, "stop airship").stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "airship: stopping");
    drop(svd);
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    assert_eq!(child.wait().unwrap().code(), Some(6), "{said:?}");
    assert!(said[0].contains("lost") && said[1].contains("svctl status"), "{said:?}");
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let place = place();
    let _svd = start(&place.socket, 3);
    let mut child =
        command(&place.socket, "logs airship -n 10000").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 11];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"0123456789\n");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn following_goes_on_after_svd_has_been_restarted() {
    let place = place();
    let svd = start(&place.socket, 3);
    let mut child =
        command(&place.socket, "logs -f airship").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert_eq!((next(), next()), ("0123456789".to_string(), "0123456789".to_string()));
    drop(svd);
    let _svd = start(&place.socket, 3);
    // It asks from byte 22 on, where a line begins.
    assert_eq!((next(), next()), ("0123456789".to_string(), "0123456789".to_string()));
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(said.matches("trying again").count(), 1, "{said}");
}

#[test]
fn watching_goes_on_while_svd_is_away() {
    let place = place();
    let svd = start(&place.socket, 3);
    let mut child = command(&place.socket, "status --watch").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|l| l.starts_with("NAME ")));
    drop(svd);
    assert!(lines.any(|l| l.starts_with("svd cannot be reached")));
    let _svd = start(&place.socket, 3);
    assert!(lines.any(|l| l.starts_with("airship ")));
    child.kill().unwrap();
    child.wait().unwrap();
}

/// An svd that is told to end: what each connection to its socket gets, as far as there are any.
enum Says {
    /// Its version, with this pid and beginning.
    Version(u32, &'static str),
    /// Nothing: it is killed.
    Dies,
    Done,
    /// The same as its last word, before it takes its socket away.
    DoneAndGone,
}

/// Runs `svctl shutdown` against it; gives what svctl said, and the paths that were asked for.
fn shut_down(script: Vec<Says>) -> ((i32, String, String), Vec<String>) {
    use std::io::Write;
    let place = place();
    let listener = std::os::unix::net::UnixListener::bind(&place.socket).unwrap();
    let (socket, length) = (place.socket.clone(), script.len());
    let svd = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for says in script {
            let (stream, _) = listener.accept().unwrap();
            let mut stream = BufReader::new(stream);
            let mut lines = stream.by_ref().lines().map(Result::unwrap);
            asked.push(lines.next().unwrap().split(' ').nth(1).unwrap().to_owned());
            lines.find(String::is_empty).unwrap();
            let (kind, body) = match says {
                Says::Version(pid, since) => {
                    let version =
                        json!({ "version": "1", "pid": pid, "since": since, "since_seconds": 1, "services": 1 });
                    ("application/json", version.to_string())
                }
                Says::Dies => continue,
                Says::Done | Says::DoneAndGone => {
                    ("application/x-ndjson", "{\"result\": {\"services\": []}}\n".to_owned())
                }
            };
            if matches!(says, Says::DoneAndGone) {
                std::fs::remove_file(&socket).unwrap();
            }
            let length = body.len();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n");
            stream.get_mut().write_all((head + &body).as_bytes()).unwrap();
        }
        asked
    });
    let child = command(&place.socket, "shutdown").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    let (ended, end) = std::sync::mpsc::channel();
    std::thread::spawn(move || ended.send(child.wait_with_output()));
    let Ok(output) = end.recv_timeout(PATIENCE) else {
        // It was not waited for to its end, so the number is its own.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        panic!("svctl does not end: {:?}", end.recv());
    };
    let said = told(output.unwrap());
    // Else the thread would wait for ever for the rest.
    let _ = (0..length).try_for_each(|_| std::os::unix::net::UnixStream::connect(&place.socket).map(drop));
    (said, svd.join().unwrap_or_default())
}

const MORNING: &str = "2026-11-22T06:00:00Z";
const NOON: &str = "2026-11-22T12:00:00Z";

#[test]
fn a_shutdown_that_svd_did_not_hear_is_ordered_again() {
    use Says::*;
    let there = || Version(7, MORNING);
    let ((code, out, err), asked) = shut_down(vec![there(), Dies, there(), DoneAndGone]);
    assert_eq!((code, out.as_str()), (0, "svd has stopped.\n"), "{err}");
    assert!(err.contains("told once more"), "{err}");
    assert_eq!(asked, ["/v1/version", "/v1/shutdown", "/v1/version", "/v1/shutdown"]);
    // It is killed again while it is looked for, and its guardian with it.
    let ((code, _, err), _) = shut_down(vec![there(), Dies, Dies, Version(8, MORNING), DoneAndGone]);
    assert_eq!(code, 0, "{err}");
    let always = std::iter::once(there()).chain((0..5).flat_map(|_| [Dies, there()]));
    let ((code, out, err), _) = shut_down(always.collect());
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("svd was killed 5 times"), "{err}");
}

#[test]
fn a_shutdown_is_done_when_a_service_manager_has_started_another_svd() {
    use Says::*;
    for last in [Done, Dies] {
        let script = vec![Version(7, MORNING), last, Version(9, NOON)];
        let ((code, out, err), asked) = shut_down(script);
        assert_eq!((code, out.as_str()), (0, "svd has stopped; another one runs by now (pid 9).\n"), "{err}");
        assert_eq!(asked.len(), 3, "that one is left alone");
    }
}

#[test]
fn bench_status_of_a_thousand_services() {
    if std::env::var_os("SVCTL_BENCH").is_none() {
        eprintln!("skipped: set SVCTL_BENCH to measure");
        return;
    }
    let place = place();
    let _svd = start(&place.socket, 1000);
    for args in ["status", "--json status", "status airship", "--version"] {
        let mut times: Vec<Duration> = (0..200)
            .map(|_| {
                let begun = Instant::now();
                let output = command(&place.socket, args).output().unwrap();
                assert!(output.status.success());
                begun.elapsed()
            })
            .collect();
        times.sort();
        println!("svctl {args}: median {:?}, p90 {:?}", times[100], times[180]);
    }
}
