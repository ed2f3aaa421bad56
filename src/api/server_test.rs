use std::cell::Cell;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{LocalSet, spawn_blocking};
use tokio::time::timeout;

use super::*;
use crate::api::audit::{AuditRecord, Outcome};
use crate::api::client::{Client, ClientError, Dial, Dialing, Unix};
use crate::api::request::Verb;
use crate::api::types::{ActionResult, LogPosition, Progress, ServiceResult, StatusList};
use crate::api::{Reply, Request};
use crate::config::spec::AccessRule;

/// Longer than anything here takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(30);

struct Host {
    socket: PathBuf,
    context: ServerContext,
    calls: mpsc::Receiver<Call>,
    journal: Arc<Mutex<Vec<AuditRecord>>>,
    /// Who connects next.
    uid: Rc<Cell<u32>>,
    _dir: tempfile::TempDir,
}

impl Host {
    fn counter(&self, of: impl Fn(&Counters) -> &std::sync::atomic::AtomicU64) -> u64 {
        of(&self.context.counters).load(Ordering::Relaxed)
    }

    async fn call(&mut self) -> Call {
        timeout(PATIENCE, self.calls.recv()).await.unwrap().unwrap()
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// Runs `ask` with a client in a thread of its own.
    fn client<T, F>(&self, ask: F) -> impl Future<Output = T> + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(Client) -> T + Send + 'static,
    {
        let socket = self.socket.clone();
        let task = spawn_blocking(move || ask(Client::new(&socket).unwrap()));
        async move { timeout(PATIENCE, task).await.unwrap().unwrap() }
    }
}

/// A server with services `airship`, `db` and `web`, and a user 1000 (by number) who may start and see `web`.
fn host(limits: Limits, test: impl AsyncFnOnce(Host)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("svd.sock");
        let (sender, calls) = mpsc::channel(16);
        let journal: Arc<Mutex<Vec<AuditRecord>>> = Arc::default();
        let sink = Arc::clone(&journal);
        let rule = AccessRule {
            users: vec!["1000".into()],
            groups: vec![],
            verbs: vec!["start".into(), "status".into()],
            services: vec!["web".into()],
        };
        let directory = Directory {
            names: ["airship", "db", "web"].map(Into::into).into(),
            access: Access { owner: 0, rules: Arc::from([rule]) },
            connections_per_user: 4,
        };
        let context = ServerContext {
            calls: sender,
            directory: SharedDirectory::new(directory),
            numbers: Default::default(),
            audit: Arc::new(move |record| sink.lock().unwrap().push(record.clone())),
            counters: Arc::default(),
            limits,
        };
        let listener = UnixListener::bind(&socket).unwrap();
        let uid = Rc::new(Cell::new(0));
        let next = Rc::clone(&uid);
        let identify: Identify = Rc::new(move |_| Ok(Credentials { uid: next.get(), gid: next.get(), pid: 1 }));
        tokio::task::spawn_local(serve_as(listener, context.clone(), identify));
        let host = Host { socket, context, calls, journal, uid, _dir: dir };
        test(host).await;
    });
}

async fn raw(host: &Host, text: &str) -> (u16, Value) {
    let mut stream = host.connect().await;
    stream.write_all(text.as_bytes()).await.unwrap();
    read_answer(&mut stream).await
}

async fn read_answer(stream: &mut UnixStream) -> (u16, Value) {
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    let text = String::from_utf8(answer).unwrap();
    let status = text.get(9..12).unwrap_or_else(|| panic!("{text:?}"));
    let (_, body) = text.split_once("\r\n\r\n").unwrap();
    (status.parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
}

fn head(line: &str) -> String {
    format!("{line} HTTP/1.1\r\nhost: svd\r\nconnection: close\r\n\r\n")
}

#[test]
fn a_request_reaches_the_daemon_resolved_and_in_the_journal() {
    host(Limits::default(), async |mut host| {
        let answer = host.client(|c| c.act("/v1/services/web,a*/start", None, |_| {}));
        let call = host.call().await;
        let services: Vec<Name> = ["airship", "web"].map(Into::into).into();
        assert_eq!(call.request, Request::Start { services: services.clone() });
        {
            let journal = host.journal.lock().unwrap();
            assert_eq!(journal.len(), 1, "written before the daemon is asked");
            assert_eq!(journal[0].outcome, Outcome::Begun);
            assert_eq!((journal[0].verb, &journal[0].services), (Verb::Start, &services));
        }
        let failed = ApiError::new(ErrorCode::Conflict, "No.");
        call.reply.actions(&ActionResult {
            services: vec![ServiceResult::done("airship", true, "started"), ServiceResult::failed("web", failed)],
        });
        let result: ActionResult = serde_json::from_str(answer.await.unwrap().get()).unwrap();
        assert!(result.services[0].ok && !result.services[1].ok);
        let journal = host.journal.lock().unwrap();
        assert_eq!(journal[1].outcome, Outcome::Failed(ErrorCode::Conflict));
        assert_eq!(journal[0].id, journal[1].id);
    });
}

#[test]
fn reads_are_answered_whole_and_not_in_the_journal() {
    host(Limits::default(), async |mut host| {
        let answer = host.client(|c| c.fetch::<StatusList>("/v1/status"));
        let call = host.call().await;
        assert_eq!(call.request.services().unwrap().len(), 3);
        call.reply.ok(&StatusList::default());
        assert_eq!(answer.await.unwrap(), StatusList::default());
        assert!(host.journal.lock().unwrap().is_empty());
    });
}

#[test]
fn who_may_not_does_not_reach_the_daemon() {
    host(Limits::default(), async |mut host| {
        host.uid.set(1000);
        let answer = host.client(|c| c.act("/v1/services/db/start", None, |_| {}));
        let Err(ClientError::Api(error)) = answer.await else { panic!("allowed") };
        assert_eq!(error.code, ErrorCode::Forbidden);
        assert!(host.calls.try_recv().is_err());
        assert_eq!(host.journal.lock().unwrap()[0].outcome, Outcome::Refused);
        let answer = host.client(|c| c.fetch::<StatusList>("/v1/status"));
        let call = host.call().await;
        assert_eq!(call.request.services().unwrap(), &vec![Name::from("web")]);
        call.reply.ok(&StatusList::default());
        answer.await.unwrap();
        // Rules that change count for the next request.
        let mut directory = host.context.directory.get();
        directory.access.rules = Arc::from([]);
        host.context.directory.replace(directory);
        let answer = host.client(|c| c.fetch::<StatusList>("/v1/status"));
        assert!(matches!(answer.await, Err(ClientError::Api(e)) if e.code == ErrorCode::Forbidden));
    });
}

#[test]
fn malformed_requests_are_answered_without_the_daemon() {
    let limits = Limits { body: 100, request_timeout: Duration::from_millis(300), ..Limits::default() };
    host(limits, async |mut host| {
        let (status, body) = raw(&host, &head("GET /nope")).await;
        assert_eq!((status, &body["error"]["code"]), (404, &json!("unknown_route")));
        assert!(body["error"]["details"].as_array().unwrap().len() > 10);
        let (status, _) = raw(&host, &head("DELETE /v1/status")).await;
        assert_eq!(status, 405);
        let (status, body) = raw(&host, &head("POST /v1/services/a/exec")).await;
        assert_eq!((status, &body["error"]["code"]), (400, &json!("bad_request")));
        let post = |length: usize, body: &str| {
            format!(
                "POST /v1/update HTTP/1.1\r\nhost: svd\r\nconnection: close\r\n\
                 content-length: {length}\r\n\r\n{body}"
            )
        };
        let (status, body) = raw(&host, &post(9, "{\"dry\": 1")).await;
        assert_eq!(status, 400);
        assert!(body["error"]["message"].as_str().unwrap().contains("column"), "{body}");
        let (status, _) = raw(&host, &post(200, &"x".repeat(200))).await;
        assert_eq!(status, 413);
        let (status, body) = raw(&host, &post(50, "{")).await;
        assert_eq!(status, 400, "a body that does not come: {body}");
        // A head that does not come: the connection ends.
        let mut stream = host.connect().await;
        stream.write_all(b"GET /v1/st").await.unwrap();
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
        assert!(host.calls.try_recv().is_err());
    });
}

#[test]
fn a_dropped_reply_and_a_gone_daemon_are_errors() {
    host(Limits::default(), async |mut host| {
        let answer = host.client(|c| c.get("/v1/version"));
        drop(host.call().await);
        assert!(matches!(answer.await, Err(ClientError::Api(e)) if e.code == ErrorCode::Internal));
        // Also in the middle of an operation.
        let answer = host.client(|c| c.act("/v1/services/db/stop", None, |_| {}));
        let mut call = host.call().await;
        call.reply.progress(&Progress::now(Some("db"), "stopping", "stopping"));
        drop(call);
        assert!(matches!(answer.await, Err(ClientError::Api(e)) if e.code == ErrorCode::Internal));
        assert_eq!(host.journal.lock().unwrap()[1].outcome, Outcome::Failed(ErrorCode::Internal));
        host.calls.close();
        let answer = host.client(|c| c.get("/v1/version"));
        assert!(matches!(answer.await, Err(ClientError::Api(e)) if e.code == ErrorCode::Unavailable));
    });
}

/// One process must hold both ends of all of them.
fn raise_descriptor_limit(want: u64) -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let _ = setrlimit(Resource::RLIMIT_NOFILE, soft.max(want.min(hard)), hard);
    getrlimit(Resource::RLIMIT_NOFILE).unwrap().0
}

#[test]
fn hanging_clients_do_not_stop_roots_status() {
    let clients = (raise_descriptor_limit(11_000).saturating_sub(500) / 2).min(5000);
    if clients < 5000 {
        eprintln!("the descriptor limit allows {clients} clients instead of 5000");
    }
    host(Limits::default(), async |mut host| {
        let mut hanging = Vec::new();
        for n in 0..clients {
            // Several users, so that the limit for all of them together is reached, too; and root's own programs.
            host.uid.set(if n % 10 == 0 { 0 } else { 1000 + (n % 300) as u32 });
            let mut stream = host.connect().await;
            if n % 2 == 0 {
                let _ = stream.write_all(b"GET /v1/status HTTP/1.1\r\nhost: ").await;
            }
            hanging.push(stream);
            // The server sees who connects when it accepts.
            while host.counter(|c| &c.connections) <= n {
                tokio::task::yield_now().await;
            }
        }
        // All places are taken, and a user without one is told; root comes in.
        host.uid.set(9999);
        let mut stream = host.connect().await;
        assert_eq!(read_answer(&mut stream).await.0, 503);
        host.uid.set(0);
        for _ in 0..40 {
            let answer = host.client(|c| c.fetch::<StatusList>("/v1/status"));
            let call = host.call().await;
            call.reply.ok(&StatusList::default());
            answer.await.unwrap();
        }
    });
}

#[test]
fn when_all_places_are_at_work_the_next_is_told() {
    host(Limits::default(), async |mut host| {
        host.uid.set(1000);
        let mut busy = Vec::new();
        let mut calls = Vec::new();
        for _ in 0..4 {
            let mut stream = host.connect().await;
            let request = head("GET /v1/services/web");
            stream.write_all(request.as_bytes()).await.unwrap();
            busy.push(stream);
            calls.push(host.call().await);
        }
        // Whether it asks or not.
        let mut stream = host.connect().await;
        let (status, body) = read_answer(&mut stream).await;
        assert_eq!((status, &body["error"]["code"]), (503, &json!("unavailable")));
        let answer = host.client(|c| c.get("/v1/version")).await;
        assert!(matches!(answer, Err(ClientError::Api(e)) if e.code == ErrorCode::Unavailable));
        assert_eq!(host.counter(|c| &c.connections_refused), 2);
        host.uid.set(0);
        let answer = host.client(|c| c.get("/v1/version"));
        host.call().await.reply.ok(&());
        answer.await.unwrap();
        // A place is free again when its answer is read.
        host.uid.set(1000);
        for call in calls {
            call.reply.ok(&());
        }
        for mut stream in busy {
            assert_eq!(read_answer(&mut stream).await.0, 200);
        }
        let answer = host.client(|c| c.get("/v1/version"));
        host.call().await.reply.ok(&());
        answer.await.unwrap();
    });
}

#[test]
fn who_does_not_read_a_stream_is_cut() {
    let limits = Limits { write_timeout: Duration::from_millis(200), ..Limits::default() };
    host(limits, async |mut host| {
        let mut stream = host.connect().await;
        let request = head("GET /v1/services/web/logs?follow");
        stream.write_all(request.as_bytes()).await.unwrap();
        let blocks = host.call().await.reply.stream(None);
        let mut sent = 0;
        let send = async {
            while blocks.send(Bytes::from(vec![b'x'; 16 * 1024])).await.is_ok() {
                sent += 16 * 1024;
            }
        };
        timeout(PATIENCE, send).await.expect("the client is not cut");
        assert!(sent < 2 << 20, "{sent} bytes wait for a client that reads nothing");
        assert_eq!(host.counter(|c| &c.streams_cut), 1);
    });
}

#[test]
fn who_may_take_its_time_is_waited_for() {
    let limits = Limits { write_timeout: Duration::from_millis(100), ..Limits::default() };
    host(limits, async |mut host| {
        let mut stream = host.connect().await;
        let request = head("POST /v1/services/web/reload");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply: Reply = host.call().await.reply;
        reply.wait_for_reader();
        let block = Progress::of_output(Some("web"), &[b'x'; 16 * 1024]);
        let mut sent: u64 = 0;
        // Longer than anybody else would be waited for.
        while timeout(8 * host.context.limits.write_timeout, reply.output(&block)).await.is_ok_and(|there| there) {
            sent += 1;
        }
        assert_eq!((host.counter(|c| &c.streams_cut), reply.is_closed()), (0, false));
        reply.ok(&json!("the end"));
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let text = String::from_utf8(answer).unwrap();
        assert_eq!(text.matches("\"progress\"").count() as u64, sent);
        assert!(text.contains(r#"{"result":"the end"}"#));
    });
}

#[test]
fn the_journal_gets_an_outcome_also_when_the_client_has_gone() {
    host(Limits::default(), async |mut host| {
        for (n, (left, outcome)) in
            [(true, Outcome::Left), (false, Outcome::Failed(ErrorCode::Internal))].into_iter().enumerate()
        {
            let mut stream = host.connect().await;
            stream.write_all(head("POST /v1/services/web/reload").as_bytes()).await.unwrap();
            let mut reply: Reply = host.call().await.reply;
            drop(stream);
            timeout(PATIENCE, reply.closed()).await.unwrap();
            // The first line has nowhere to go.
            assert!(!reply.output(&Progress::of_output(None, b"x")).await);
            if left {
                reply.left();
            } else {
                drop(reply);
            }
            let journal = host.journal.lock().unwrap();
            assert_eq!((journal.len(), journal[2 * n + 1].outcome), (2 * n + 2, outcome));
        }
    });
}

#[test]
fn who_reads_slowly_misses_lines_but_not_the_result() {
    host(Limits::default(), async |mut host| {
        let mut stream = host.connect().await;
        let request = head("POST /v1/services/web/reload");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply: Reply = host.call().await.reply;
        let all = 20_000;
        for n in 0..all {
            let text = format!("line {n} {}", "x".repeat(200));
            reply.progress(&Progress::now(Some("web"), "boot", text));
            if n % 50 == 0 {
                tokio::task::yield_now().await;
            }
        }
        let dropped = host.counter(|c| &c.progress_dropped);
        assert!(dropped > 0);
        reply.ok(&json!({"done": true}));
        let mut body = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut body)).await.unwrap().unwrap();
        let text = String::from_utf8_lossy(&body);
        assert!(text.contains("{\"result\":{\"done\":true}}"));
        let seen = text.matches("\"progress\"").count() as u64;
        assert_eq!(seen + dropped, all);
    });
}

#[test]
fn streams_carry_their_position_and_end_when_dropped() {
    host(Limits::default(), async |mut host| {
        let answer = host.client(|c| {
            let (mut start, mut got) = (None, Vec::new());
            let result = c.each_block(
                "/v1/services/web/logs?lines=2",
                |position| start = position,
                |block| {
                    got.extend_from_slice(block);
                    std::ops::ControlFlow::Continue(())
                },
            );
            result.map(|()| (start, got))
        });
        let call = host.call().await;
        let blocks = call.reply.stream(Some(LogPosition { file: 3, offset: 4096 }));
        blocks.try_send(Bytes::from_static(b"one\n")).unwrap();
        blocks.try_send(Bytes::from_static(b"two\n")).unwrap();
        drop(blocks);
        assert_eq!(answer.await.unwrap(), (Some(LogPosition { file: 3, offset: 4096 }), b"one\ntwo\n".to_vec()));
    });
}

#[test]
fn a_reply_knows_that_its_client_has_gone() {
    host(Limits::default(), async |mut host| {
        let mut stream = host.connect().await;
        let request = head("GET /v1/events?follow");
        stream.write_all(request.as_bytes()).await.unwrap();
        let events = host.call().await.reply.stream(None);
        drop(stream);
        timeout(PATIENCE, events.closed()).await.unwrap();
        assert!(events.is_closed());
    });
}

#[test]
fn a_full_queue_makes_requests_wait_not_fail() {
    host(Limits::default(), async |mut host| {
        let answers: Vec<_> = (0..30).map(|_| host.client(|c| c.get("/v1/version"))).collect();
        // The queue has 16 places, and nobody takes anything yet.
        while host.counter(|c| &c.requests) < 30 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        for _ in 0..30 {
            host.call().await.reply.ok(&());
        }
        for answer in answers {
            answer.await.unwrap();
        }
    });
}

/// A way to svd that is dear, and counts how often it is gone.
struct Dear {
    way: Unix,
    gone: Arc<std::sync::atomic::AtomicUsize>,
}

impl Dial for Dear {
    fn dial(&self) -> Dialing<'_> {
        self.gone.fetch_add(1, Ordering::Relaxed);
        self.way.dial()
    }

    fn place(&self) -> &str {
        self.way.place()
    }

    fn is_dear(&self) -> bool {
        true
    }
}

#[test]
fn a_dear_connection_is_used_again_while_it_is_good() {
    let limits = Limits { request_timeout: Duration::from_millis(200), ..Limits::default() };
    host(limits, async |mut host| {
        let gone: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
        let dear = Dear { way: Unix::new(&host.socket), gone: Arc::clone(&gone) };
        let task = spawn_blocking(move || {
            let client = Client::over(Arc::new(dear)).unwrap();
            for _ in 0..5 {
                client.get("/v1/version").unwrap();
            }
            assert_eq!(gone.load(Ordering::Relaxed), 1);
            // A stream that is left in its midst takes its connection with it.
            client.each_line("/v1/events?follow=true", |_| std::ops::ControlFlow::Break(())).unwrap();
            client.get("/v1/version").unwrap();
            assert_eq!(gone.load(Ordering::Relaxed), 2);
            // svd ends one that nobody uses for a while; whether it has by now or not, nobody is the worse for it.
            std::thread::sleep(Duration::from_millis(500));
            client.get("/v1/version").unwrap();
        });
        for _ in 0..5 {
            host.call().await.reply.ok(&());
        }
        let events = host.call().await.reply.stream(None);
        events.send(Bytes::from_static(b"{}\n")).await.unwrap();
        for _ in 0..2 {
            host.call().await.reply.ok(&());
        }
        timeout(PATIENCE, task).await.unwrap().unwrap();
    });
}
